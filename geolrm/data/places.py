"""Where shards lie: a folder, or an address of an object store such as s3://bucket/gso.

In: what a person wrote. Out: a `Place`, which reads alike in both cases (`/`, `exists`, `open`, `read_bytes`, `iterdir`), and
the few things that differ: reading, writing, removing, the stamp by which a file's hash is remembered. Convention: an object of a
store appears when its last byte has arrived, which is what a rename gives in a folder. Trade: whatever is asked of a store,
reads as writes, is tried again with growing pauses for as long as the caller has patience; what a store refuses after that is
a `BadInput` in plain words, and whatever was finished before stays. Verified against a real S3 server on loopback that fails
on demand, and that refuses every request once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

from geolrm.failures import BadInput
from geolrm.files import sha256_of, write_whole

Place: TypeAlias = Path  # or a UPath, which reads like one and is none
T = TypeVar("T")
PATIENCE = 300.0  # seconds for which a store is asked again
LONGEST_PAUSE = 30.0


def place(where: str | Place) -> Place:
    """The folder or file of that name; where it holds `://`, the place in that store.

    Raises:
        BadInput: `storage_unsupported` where the package for this kind of store is missing.
    """
    if not isinstance(where, str) or "://" not in where:
        return Path(where) if isinstance(where, str) else where
    try:
        from upath import UPath

        found: Any = UPath(where, use_listings_cache=False)  # other processes write there too
        _store(found)
    except (ImportError, ValueError) as error:
        raise BadInput("storage_unsupported", where, str(error), "for s3://: pip install -e '.[s3]'") from error
    return cast(Place, found)


def is_remote(where: Place) -> bool:
    """Whether it lies in a store rather than in a folder."""
    return not isinstance(where, Path)


def _store(where: Any) -> tuple[Any, str]:
    """The fsspec file system of a remote place and the path in it. A connection does not outlive a fork: fsspec gives each
    process one of its own, the place would keep that of the process in which it was made."""
    import fsspec

    return fsspec.filesystem(where.protocol, **where.storage_options), where.path


def steadily(work: Callable[[], T], where: Place, patience: float = PATIENCE) -> T:
    """What `work` returns, which asks something of a store and does nothing else; tried again with pauses that double from one
    second on, until they add up to `patience`. A refusal for want of rights or keys is final. In a folder there is one try.

    Raises:
        FileNotFoundError: as in a folder.
        BadInput: `storage_failed` in place of whatever the store's own library raised last.
    """
    waited, pause = 0.0, 1.0
    while True:
        try:
            return work()
        except FileNotFoundError:
            raise
        except Exception as error:
            if not is_remote(where):
                raise
            detail = f"the storage does not answer as it should: {type(error).__name__}: {error}"
            refused = isinstance(error, PermissionError) or "Credentials" in type(error).__name__
            if refused or waited + pause > patience:
                remedy = (
                    "what was finished is safe; once the storage is back run the same command again, it goes on here"
                )
                raise BadInput("storage_failed", where, detail, remedy) from error
            if waited == 0:
                print(f"{where}: {detail}; asking again for {patience:g} s", file=sys.stderr)
        time.sleep(pause)
        waited, pause = waited + pause, min(2 * pause, LONGEST_PAUSE)


def remove(where: Place, patience: float = PATIENCE) -> None:
    """Remove a file, if it is there."""
    with suppress(FileNotFoundError):
        if is_remote(where):
            store, path = _store(where)
            steadily(lambda: store.rm_file(path), where, patience)
        else:
            where.unlink()


def upload(source: Path, target: Place, patience: float = PATIENCE) -> None:
    """Copy a file into a store, whole or not at all. Raises as `steadily`, and as `write_at`."""
    store, path = _store(target)
    with _bucket_named(target):
        steadily(lambda: store.put_file(str(source), path), target, patience)


def write_at(where: Place, content: bytes, patience: float = PATIENCE) -> None:
    """Write a small file whole or not at all.

    Raises:
        DiskFull: in a folder, from `write_whole`.
        BadInput: in a store, as `steadily`, and `storage_missing` where its bucket is not there.
    """
    if not is_remote(where):
        write_whole(where, content)
        return
    store, path = _store(where)
    with _bucket_named(where):
        steadily(lambda: store.pipe_file(path, content), where, patience)


@contextmanager
def _bucket_named(where: Place) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise BadInput("storage_missing", where, f"no such bucket: {error}", "make it first") from error


def stamp(where: Place, patience: float = PATIENCE) -> dict[str, Any]:
    """`{size, time}` of a file: if both are as they were, so are its bytes. In a store `time` is its mark of the version.
    Raises as `steadily`."""
    if not is_remote(where):
        status = where.stat()
        return {"size": status.st_size, "time": status.st_mtime_ns}
    store, path = _store(where)
    info = steadily(lambda: store.info(path), where, patience)
    return {"size": info["size"], "time": info.get("ETag") or str(info)}


def read_file(where: Place, patience: float = PATIENCE) -> bytes:
    """All bytes of a small file. Raises as `steadily`."""
    if not is_remote(where):
        return where.read_bytes()
    store, path = _store(where)
    return steadily(lambda: bytes(store.cat_file(path)), where, patience)


def hash_file(where: Place, patience: float = PATIENCE) -> str:
    """SHA-256 of a file of any size. Raises as `steadily`."""
    return steadily(lambda: sha256_of(where), where, patience)


def read_range(where: Place, start: int, end: int, patience: float = PATIENCE) -> bytes:
    """The bytes from `start` to before `end` of a file in a store, fewer where it ends before. Raises as `steadily`."""
    store, path = _store(where)
    return steadily(lambda: bytes(store.cat_file(path, start=start, end=end)), where, patience)


def names_in(where: Place, patience: float = PATIENCE) -> list[str]:
    """Names of the files in a folder, sorted; none where there is no such folder. Raises BadInput as `steadily`."""
    with suppress(FileNotFoundError, NotADirectoryError):
        if not is_remote(where):
            return sorted(path.name for path in where.iterdir() if path.is_file())
        store, folder = _store(where)
        found = steadily(lambda: store.ls(folder, detail=True), where, patience)
        return sorted(info["name"].rpartition("/")[2] for info in found if info["type"] == "file")
    return []


@contextmanager
def on_disk(where: Place, folder: Path, patience: float = PATIENCE) -> Iterator[Path]:
    """The file itself, or a copy of it that lies in `folder` while the block runs. Raises as `steadily`."""
    if not is_remote(where):
        yield where
        return
    store, path = _store(where)
    copy = folder / where.name
    try:
        steadily(lambda: store.get_file(path, str(copy)), where, patience)
        yield copy
    finally:
        copy.unlink(missing_ok=True)
