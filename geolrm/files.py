"""Files that are there whole or not at all, and the name of their content.

In: a path, and what to write there. Out: the file under its name only once its bytes are on the disk. Convention: written
beside its final place under a hidden temporary name that holds the process id (a writer thought dead but alive shares it
with no successor), synced, renamed, the folder synced; on any error the temporary file is removed and what stood there
before stays. Trade: two syncs a file; a writer that is killed leaves its temporary file, for the owner of the folder to
sweep (`TEMPORARY`). Verified by killing writers at random moments and by filling a small file system.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = ".*.tmp"  # pattern of the names under which files are written
FULL = (errno.ENOSPC, errno.EDQUOT)
# What writes by itself raises errors of its own, without a number: safetensors and OpenEXR quote the system, SQLite does not.
FULL_IN_WORDS = (*map(os.strerror, FULL), "database or disk is full")


class DiskFull(OSError):
    """No room for a file; `strerror` names the file, the free space and the way out."""


def disk_full(error: BaseException, path: Path | None = None) -> DiskFull | None:
    """What to raise in place of an error that says, by number or in words, that a disk or a quota is full; else None.

    Args:
        error: of whatever was writing.
        path: the file that was being written whole, where that is known.
    """
    if isinstance(error, DiskFull):
        return error
    number = error.errno if isinstance(error, OSError) else None
    if number not in FULL and not any(words in str(error) for words in FULL_IN_WORDS):
        return None
    if path is None:
        seen, left = str(error).partition("\n")[0], ""
    else:
        seen = f"{shutil.disk_usage(path.parent).free:,} bytes are free where {path} was being written"
        left = " and nothing of this file is left"
    message = (
        f"the disk is full: {seen}; what was finished before is safe{left}. "
        "Free some space and run the same command again: it goes on here"
    )
    return DiskFull(number or errno.ENOSPC, message, None if path is None else str(path))


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to; when the block ends well it becomes `path`.

    Raises:
        DiskFull: in place of the error of a full disk or quota.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with full_disk_named(path):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """A block that writes towards `path`. Raises `DiskFull` in place of the error of a full disk or quota."""
    try:
        yield
    except Exception as error:
        if full := disk_full(error, path):
            raise full from error
        raise


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a small file whole or not at all. Raises as `whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: a run that outlived its killed parent is waited for, never raced. Freed if we are killed."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another run is writing {folder}; waiting for it", file=sys.stderr)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
