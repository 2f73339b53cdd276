"""Files that are there whole or not at all.

In: a path and what to write. Out: that file, or nothing: bytes go to a hidden temporary name in the same folder, are synced,
renamed, and the folder is synced, so that neither SIGKILL nor a power cut leaves half a file under the real name. A full
disk removes the temporary file and says in plain words what was being written and what to do. Trade: two syncs a file,
nothing beside a shard of megabytes. Verified by killing a writer at random moments and by filling a small file system.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
PARTIAL = ".partial"


def is_partial(path: Path) -> bool:
    """Whether this is the temporary file of a writer that was killed (or still writes)."""
    return path.name.startswith(".") and path.name.endswith(PARTIAL)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file open for writing that appears at `path` when the block ends, and not at all if it raises.

    The temporary name holds the process id: a writer that is thought dead but is not cannot share it with its successor.

    Raises:
        OSError: ENOSPC or EDQUOT, naming the file, the free space and the way out, when the disk is full.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        _remove(partial)
        if error.errno in DISK_FULL:
            free = shutil.disk_usage(path.parent).free
            message = (
                f"the disk is full: {free:,} bytes are free where {path} was being written; what was finished before is "
                "safe and nothing of this file is left. Free some space and run the same command again: it goes on here"
            )
            raise OSError(error.errno, message, str(path)) from error
        raise
    except BaseException:
        _remove(partial)
        raise


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file at once, whole or not at all."""
    with whole_file(path) as file:
        file.write(data)


def _remove(partial: Path) -> None:
    with suppress(FileNotFoundError):
        partial.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
