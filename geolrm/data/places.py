"""Where shards lie: a folder, or an address of an object store such as s3://bucket/gso.

In: what a person wrote. Out: a `Place`, which reads alike in both cases (`/`, `exists`, `open`, `read_bytes`, `iterdir`), and
the few things that differ: writing, removing, the stamp by which a file's hash is remembered. Convention: an object of a
store appears when its last byte has arrived, which is what a rename gives in a folder. Trade: a write to a store is tried
again with growing pauses for as long as the caller has patience; what a store refuses after that is a `BadInput` in plain
words, and whatever was finished before stays. Verified against a real S3 server on loopback that fails on demand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

from geolrm.failures import BadInput
from geolrm.files import write_whole

Place: TypeAlias = Path  # or a UPath, which reads like one and is none
T = TypeVar("T")
PATIENCE = 300.0  # seconds for which a write is tried again
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


@contextmanager
def reached(where: Place) -> Iterator[None]:
    """A block that talks to a store and does nothing else; what is not there is a FileNotFoundError, as in a folder.

    Raises:
        BadInput: `storage_failed` in place of whatever the store's own library raises.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        if not is_remote(where):
            raise
        detail = f"the storage does not answer as it should: {type(error).__name__}: {error}"
        remedy = "what was finished is safe; once the storage is back run the same command again, it goes on here"
        raise BadInput("storage_failed", where, detail, remedy) from error


def steadily(work: Callable[[], T], where: Place, patience: float = PATIENCE) -> T:
    """What `work` returns; tried again with pauses that double from one second on, until they add up to `patience`. A refusal
    for want of rights is final.

    Raises:
        BadInput: as `reached`, of the last try.
    """
    waited, pause = 0.0, 1.0
    while True:
        try:
            with reached(where):
                return work()
        except BadInput as error:
            if isinstance(error.__cause__, PermissionError) or waited + pause > patience:
                raise
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


def write_at(where: Place, content: bytes) -> None:
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
        steadily(lambda: store.pipe_file(path, content), where)


@contextmanager
def _bucket_named(where: Place) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise BadInput("storage_missing", where, f"no such bucket: {error}", "make it first") from error


def stamp(where: Place) -> dict[str, Any]:
    """`{size, time}` of a file: if both are as they were, so are its bytes. In a store `time` is its mark of the version."""
    if not is_remote(where):
        status = where.stat()
        return {"size": status.st_size, "time": status.st_mtime_ns}
    store, path = _store(where)
    with reached(where):
        info = store.info(path)
    return {"size": info["size"], "time": info.get("ETag") or str(info)}


def read_range(where: Place, start: int, end: int) -> bytes:
    """The bytes from `start` to before `end` of a file in a store, fewer where it ends before. Raises as `reached`."""
    store, path = _store(where)
    with reached(where):
        return bytes(store.cat_file(path, start=start, end=end))


def names_in(where: Place) -> list[str]:
    """Names of the files in a folder, sorted; none where there is no such folder."""
    with suppress(FileNotFoundError, NotADirectoryError):
        if not is_remote(where):
            return sorted(path.name for path in where.iterdir() if path.is_file())
        store, folder = _store(where)
        with reached(where):
            found = store.ls(folder, detail=True)
        return sorted(info["name"].rpartition("/")[2] for info in found if info["type"] == "file")
    return []


@contextmanager
def on_disk(where: Place, folder: Path) -> Iterator[Path]:
    """The file itself, or a copy of it that lies in `folder` while the block runs. Raises FileNotFoundError, `BadInput`."""
    if not is_remote(where):
        yield where
        return
    store, path = _store(where)
    copy = folder / where.name
    try:
        with reached(where):
            store.get_file(path, str(copy))
        yield copy
    finally:
        copy.unlink(missing_ok=True)
