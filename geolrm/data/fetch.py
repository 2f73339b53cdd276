"""Taking in a data set object by object: what is there is kept, what fails is counted and named, the rest goes on.

In: `Task`s, each of which fetches or converts one object (or the objects of one archive). Out: files in one folder, a line an
object in `fetch.jsonl` beside it (sizes and hashes of what came and of what was written, licence), and `fetch.stats.json`.
Convention: a file counts as there if its line says so and its size is right (`verify`: its hash too); a line is written after
its file, so a run killed at any moment repeats at most what it had in hand. Trade: threads, since the time goes to the network,
to unpacking and to hashing, which all release the lock. Verified against a misbehaving server on loopback, by kills in
mid-object, and by second runs.
"""

from __future__ import annotations

import hashlib
import json
import platform
import queue
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import requests
from tqdm import tqdm
from urllib3.exceptions import HTTPError

from geolrm.download import Client
from geolrm.failures import BadInput
from geolrm.files import full_disk_named, sha256_of, write_whole

PROBES = 16
PROBE_BYTES = 1 << 20
NAMED = 10  # objects named on the screen for each reason; the stats name all
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Fetched:
    """One object that was taken in: a line of `fetch.jsonl`.

    Attributes:
        key: file name and key of the object.
        source_id: what the source calls it.
        file: name in the folder; empty where the object stays where it was and was only checked, or came for a shard.
        bytes, sha256: of that file, or of the source where there is none.
        source, source_bytes, source_sha256: where it came from (URL or path) and what came.
        licence: as the source says.
        category: as the source says.
        unexpected: what of this object is not as the data set's description says (`fov`, `roles`), counted in stats.
    """

    key: str
    source_id: str
    file: str
    bytes: int
    sha256: str
    source: str
    source_bytes: int
    source_sha256: str
    licence: str | None = None
    category: str | None = None
    unexpected: tuple[str, ...] = ()


def as_fetched(record: dict[str, Any]) -> Fetched:
    """The same from JSON. Raises TypeError, KeyError."""
    return Fetched(**{**record, "unexpected": tuple(record["unexpected"])})


@dataclass(frozen=True)
class Failed:
    """One object that could not be taken in."""

    source_id: str
    error: BadInput


@dataclass(frozen=True)
class Kept:
    """One object of an archive that is there already, or lies sound where it is: nothing was written for it."""

    source_id: str


Outcome = Fetched | Failed | Kept


@dataclass(frozen=True)
class Task:
    """Work that takes in one object or several.

    Attributes:
        source_id: what it is about, for messages.
        do: yields what became of each object, telling its argument of bytes as they come. Raises BadInput where the
            task as a whole fails.
        target: the file it makes; None where it makes several and itself leaves out those that are there.
        key: of the object that the target holds.
    """

    source_id: str
    do: Callable[[Progress], Iterator[Outcome]]
    target: Path | None = None
    key: str = ""


class Ledger:
    """`fetch.jsonl`: what has been taken in, by key; the last line of a key holds, a torn last line does not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, Fetched] = {}
        with suppress(FileNotFoundError):
            for line in path.read_text().splitlines():
                with suppress(ValueError, TypeError):  # the end of a run that was killed while it wrote
                    fetched = as_fetched(json.loads(line))
                    self.records[fetched.key] = fetched

    def add(self, fetched: Fetched) -> None:
        """Note an object, at once on the disk's side of this process. Raises `DiskFull`."""
        line = json.dumps(asdict(fetched), sort_keys=True)
        with full_disk_named(self.path), self.path.open("a") as file:
            torn = self.path.stat().st_size > 0 and not self._ends_whole()
            file.write(("\n" if torn else "") + line + "\n")
        self.records[fetched.key] = fetched

    def _ends_whole(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, 2)
            return file.read(1) == b"\n"

    def holds(self, key: str, path: Path, verify: bool = False) -> bool:
        """Whether this object's file is there as its line says: its size, and with `verify` its hash."""
        record = self.records.get(key)
        if record is None or not path.exists() or path.stat().st_size != record.bytes:
            return False
        return not verify or sha256_of(path) == record.sha256

    def check_source(self, key: str, sha256: str) -> None:
        """Raise BadInput `source_changed` if an earlier run got other bytes for this object."""
        if key in self.records:
            same_source(self.records[key].source, self.records[key].source_sha256, sha256)

    def source_sha256(self, key: str) -> str | None:
        """Of the bytes that an earlier run got for this object; None if there was none."""
        record = self.records.get(key)
        return None if record is None else record.source_sha256


def same_source(source: str, known_sha256: str | None, sha256: str) -> None:
    """Raise BadInput `source_changed` if an earlier run got other bytes than now."""
    if known_sha256 not in (None, sha256):
        detail = f"the source gives SHA-256 {sha256[:16]}..., an earlier run got {str(known_sha256)[:16]}..."
        raise BadInput("source_changed", source, detail, "delete its line in fetch.jsonl to accept the new one")


@dataclass
class Tally:
    """What became of the objects of one run."""

    fetched: list[Fetched] = field(default_factory=list)
    kept: int = 0
    failed: list[Failed] = field(default_factory=list)
    bytes_in: int = 0
    seconds: float = 0.0

    @property
    def failure_rate(self) -> float:
        return len(self.failed) / max(len(self.failed) + len(self.fetched) + self.kept, 1)

    @property
    def reasons(self) -> dict[str, int]:
        return dict(Counter(item.error.reason for item in self.failed).most_common())


def run(tasks: Sequence[Task], ledger: Ledger, client: Client, tally: Tally, verify: bool = False) -> None:
    """Do the tasks on as many threads as the client may have connections, and add what became of them to the tally.

    Raises:
        DiskFull, and whatever else is no bad input: everything in hand is stopped, what is done stays.
    """
    start, lock, came = time.perf_counter(), threading.Lock(), queue.SimpleQueue[Outcome]()
    workers = client.manners.connections

    def count(size: int) -> None:
        with lock:
            tally.bytes_in += size

    def do(task: Task) -> None:
        try:
            for outcome in task.do(count):
                came.put(outcome)
        except BadInput as error:
            came.put(Failed(task.source_id, error))

    def collect() -> None:
        while not came.empty():
            outcome = came.get()
            if isinstance(outcome, Fetched):
                ledger.add(outcome)
                tally.fetched.append(outcome)
            elif isinstance(outcome, Kept):
                tally.kept += 1
            else:
                tally.failed.append(outcome)
                tqdm.write(f"failed {outcome.source_id}: {outcome.error}", file=sys.stderr)

    waiting, pending, exhausted = iter(tasks), set[Future[None]](), False
    with tqdm(total=len(tasks), desc="fetch", unit="task") as bar, ThreadPoolExecutor(workers) as pool:
        try:
            while pending or not exhausted:
                while not exhausted and len(pending) < 2 * workers:
                    task = next(waiting, None)
                    if task is None:
                        exhausted = True
                    elif task.target is not None and ledger.holds(task.key, task.target, verify):
                        tally.kept += 1
                        bar.update()
                    else:
                        pending.add(pool.submit(do, task))
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                collect()
                for future in done:
                    future.result()
                bar.update(len(done))
                bar.set_postfix_str(f"{tally.bytes_in / 1e6:,.0f} MB, {len(tally.failed)} failed")
        except BaseException:
            client.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        finally:
            collect()
            tally.seconds += time.perf_counter() - start


# --- what it will cost ---


@dataclass(frozen=True)
class Estimate:
    """What a run will cost, and what these numbers rest on.

    Attributes:
        objects: to be taken in, beside `there`, which are there already.
        bytes: to be read from the source; disk: to be written; seconds. None where nothing is known.
        basis: where the numbers come from, in sentences.
    """

    objects: int
    there: int
    bytes: float | None
    disk: float | None
    seconds: float | None
    basis: tuple[str, ...]

    def lines(self, folder: Path) -> list[str]:
        """The estimate in words, with the room on the disk of the folder."""
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free
        hours = "unknown" if self.seconds is None else f"{self.seconds / 3600:,.2f}"
        fits = "" if self.disk is None or self.disk < free else "  NOT ENOUGH"
        return [
            f"objects   {self.objects:,} to fetch, {self.there:,} there",
            f"download  {readable(self.bytes)}",
            f"hours     {hours}",
            f"disk      {readable(self.disk)} in {folder}; free {readable(free)}{fits}",
            *(f"  {sentence}" for sentence in self.basis),
        ]


def readable(size: float | None) -> str:
    """A number of bytes as people say it."""
    if size is None:
        return "unknown"
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.2f} TB"


def estimate(
    urls: Sequence[str],
    there: int,
    ledger: Ledger,
    client: Client,
    kept_share: float,
    kept_basis: str,
    measure_kept: bool = True,
) -> Estimate:
    """What fetching one object from each of these URLs will cost.

    Sizes and speed are those of earlier runs (`fetch.stats.json` and the ledger) where there are some, else measured now
    on the first MiB of up to `PROBES` of the objects, evenly spread.

    Args:
        there: objects that need not be fetched.
        kept_share: bytes written for each byte that comes, where no run has measured it; `kept_basis` says whose number.
        measure_kept: whether what earlier runs kept says what this one will.
    """
    records = [record for record in ledger.records.values() if record.source_bytes]
    rate = read_stats(stats_path(ledger)).get("bytes_per_second")
    basis = []
    if not urls:
        return Estimate(0, there, 0, 0, 0, ("everything is there",))
    if len(records) >= PROBES and rate:
        mean = sum(record.source_bytes for record in records) / len(records)
        basis.append(
            f"mean size {readable(mean)} and {readable(rate)}/s: measured on {len(records)} objects fetched before"
        )
    else:
        picked = [urls[i * len(urls) // min(PROBES, len(urls))] for i in range(min(PROBES, len(urls)))]
        sizes, came, seconds = _probe(picked, client)
        if not sizes:
            return Estimate(len(urls), there, None, None, None, (f"none of {len(picked)} probed objects could be had",))
        mean, rate = sum(sizes) / len(sizes), came / seconds
        basis.append(
            f"mean size {readable(mean)}: of {len(sizes)} objects, asked now ({len(picked) - len(sizes)} could not be had)"
        )
        basis.append(
            f"{readable(rate)}/s: measured now on {readable(came)} over {client.manners.connections} connections"
        )
    kept = [record for record in records if record.file]
    if measure_kept and len(kept) >= PROBES:
        kept_share = sum(record.bytes for record in kept) / sum(record.source_bytes for record in kept)
        kept_basis = f"measured on {len(kept)} objects fetched before"
    basis.append(f"{kept_share:.0%} of what comes is kept: {kept_basis}")
    total = mean * len(urls)
    pace = len(urls) / client.manners.requests_per_second
    return Estimate(len(urls), there, total, total * kept_share, max(total / rate, pace), tuple(basis))


def _probe(urls: Sequence[str], client: Client) -> tuple[list[int], int, float]:
    """Sizes of the objects that answer, bytes that came in all, and seconds."""

    def ask(url: str) -> tuple[int | None, int]:
        try:
            with client.get(url, {"Range": f"bytes=0-{PROBE_BYTES - 1}"}) as response:
                if response.status_code not in (200, 206) or "html" in response.headers.get("Content-Type", ""):
                    return None, 0
                came = len(response.raw.read(PROBE_BYTES))
                size = response.headers.get("Content-Range", "").rpartition("/")[2]
                size = size or response.headers.get("Content-Length", "")
                return (int(size) if size.isdigit() else None), came
        except (requests.RequestException, HTTPError, OSError):  # an estimate lives with what it gets, and says so
            return None, 0

    start = time.perf_counter()
    with ThreadPoolExecutor(client.manners.connections) as pool:
        answers = list(pool.map(ask, urls))
    sizes = [size for size, _ in answers if size is not None]
    return sizes, sum(came for _, came in answers), time.perf_counter() - start


# --- what there is to say afterwards ---


def stats_path(ledger: Ledger) -> Path:
    return ledger.path.with_name("fetch.stats.json")


def read_stats(path: Path) -> dict[str, Any]:
    """The stats of the run before, {} if there is none."""
    with suppress(FileNotFoundError, ValueError):
        record = json.loads(path.read_text())
        return record if isinstance(record, dict) else {}
    return {}


def write_stats(ledger: Ledger, tally: Tally, left_out: dict[str, int], facts: dict[str, Any]) -> dict[str, Any]:
    """Write and return `fetch.stats.json`: this run's counts, what the folder holds now, the speed for later estimates."""
    path = stats_path(ledger)
    before = read_stats(path)
    rate = tally.bytes_in / tally.seconds if tally.bytes_in and tally.seconds else before.get("bytes_per_second")
    stats = {
        **{name: before[name] for name in ("accepted",) if name in before},
        **facts,
        "fetched": len(tally.fetched),
        "kept": tally.kept,
        "failed": tally.reasons,
        "failed_objects": [
            {"object": item.source_id, "reason": item.error.reason, "detail": str(item.error)} for item in tally.failed
        ],
        "failure_rate": tally.failure_rate,
        "left_out": left_out,
        "unexpected": dict(Counter(name for item in ledger.records.values() for name in item.unexpected)),
        "objects_in_ledger": len(ledger.records),
        "bytes_in": tally.bytes_in,
        "seconds": round(tally.seconds, 3),
        "bytes_per_second": rate,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("requests", "urllib3")},
    }
    write_whole(path, json.dumps(stats, indent=1, sort_keys=True) + "\n")
    return stats


def report(tally: Tally, folder: Path, left_out: dict[str, int]) -> list[str]:
    """What became of the objects, in words."""
    lines = [
        f"{folder}: {len(tally.fetched)} fetched, {tally.kept} kept, {len(tally.failed)} failed, "
        f"{readable(tally.bytes_in)} in {tally.seconds:.1f} s"
    ]
    for reason, count in tally.reasons.items():
        names = [item.source_id for item in tally.failed if item.error.reason == reason]
        rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        lines.append(f"  failed, {reason}: {count} ({', '.join(names[:NAMED])}{rest})")
    lines += [f"  left out, {reason}: {count}" for reason, count in left_out.items()]
    unexpected = Counter(name for item in tally.fetched for name in item.unexpected)
    lines += [f"  not as described, {name}: {count}" for name, count in unexpected.items()]
    return lines


def by_hash(names: Iterable[str], salt: str) -> list[str]:
    """Names in the order of the SHA-256 of name and salt: any first part is an even sample, the same on every machine."""
    return sorted(names, key=lambda name: hashlib.sha256((name + salt).encode()).digest())
