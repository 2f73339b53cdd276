"""Samples of a store on this disk: read once from there, kept here while there is room.

In: the name of a sample, which is a hash of all its bytes, and what fetches them. Out: an open file of these bytes.
Convention: the files of a folder, all processes that share it taken together, never hold more than the limit; the samples
whose last use is longest ago make room, a tenth of the limit at a time. Trade: a lock of the folder is held while a sample is
written, not while it is fetched or read; the total is kept beside the samples, noted before each write, so that a process
that is killed leaves it too large and never too small, and the next look at the folder corrects it. Everything in the folder
may be deleted at any time: who holds a file open reads on. Verified by processes that write into one small cache at once.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from geolrm.failures import BadInput
from geolrm.files import whole_file

CACHE_BYTES = 64 * 2**30
KEPT_SHARE = 0.9  # of the limit is what stays when room is made
LOCK, TOTAL = ".lock", ".bytes"


@dataclass(frozen=True)
class SampleCache:
    """A folder of samples and the bytes that they may take in all, `.lock` and `.bytes` apart."""

    folder: Path
    limit: int = CACHE_BYTES

    def open(self, name: str, fetch: Callable[[], bytes]) -> BinaryIO:
        """The sample's file, unbuffered, from its first byte; fetched where it is not there.

        Raises:
            BadInput: `cache_too_small` where one sample is larger than the limit; whatever `fetch` raises.
            DiskFull: where the disk holds less than the limit.
        """
        path = self.folder / name[:2] / name
        with suppress(FileNotFoundError):
            return _used(path)
        data = fetch()
        if len(data) > self.limit:
            detail = f"a sample has {len(data):,} bytes, the cache may hold {self.limit:,}"
            raise BadInput("cache_too_small", self.folder, detail, "give the cache more room")
        with self._alone():
            with suppress(FileNotFoundError):  # another process was faster
                return _used(path)
            self._make_room(len(data))
            path.parent.mkdir(exist_ok=True)
            with whole_file(path) as temporary:
                temporary.write_bytes(data)
            return _used(path)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK).open("wb") as lock:  # closing it lets go
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make_room(self, wanted: int) -> None:
        """Remove samples where that many bytes more would pass the limit, and note the total with them."""
        note = self.folder / TOTAL
        try:
            total = int(note.read_text())
        except (FileNotFoundError, ValueError):  # a new cache, or a note that was cut short
            total = self.limit
        if total + wanted > self.limit:
            total = self._removed_to(max(int(KEPT_SHARE * self.limit) - wanted, 0))
        note.write_text(str(total + wanted))

    def _removed_to(self, most: int) -> int:
        """Bytes of the samples that are left when the oldest are gone, at most that many. What killed writers left counts as
        samples that nobody uses."""
        found = []
        for path in self.folder.glob("??/*"):
            with suppress(FileNotFoundError):  # deleted by hand
                status = path.stat()
                found.append((status.st_mtime_ns, path, status.st_size))
        total = sum(size for _, _, size in found)
        for _, path, size in sorted(found):
            if total <= most:
                break
            path.unlink(missing_ok=True)
            total -= size
        return total


def _used(path: Path) -> BinaryIO:
    """The open file, marked as used now: its time of modification says when that was. Raises FileNotFoundError."""
    file = path.open("rb", buffering=0)
    now = time.time_ns()
    os.utime(file.fileno(), ns=(now, now))
    return file
