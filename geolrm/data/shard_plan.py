"""Which shards a folder of object tars becomes, and which of them already hold.

In: `objects/*.tar` of one data set and preset. Out: `ShardJob`s in a fixed order, each with a fingerprint over everything
that its bytes depend on: parameters, input hashes, format and codec versions. A shard holds if its `.stats.json`, written
last of its three files, carries that fingerprint and the files still have the sizes and hashes that it names; every other
one is made anew, and files that belong to no planned shard are removed. Convention: sorted keys, cut every
`objects_per_shard` within a split, before anything is read, so that a bad object moves no other. Trade: a file whose size
and modification time are as remembered is not hashed again. Verified by kills, planted damage and changed parameters.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geolrm.config import Procedural, Shard
from geolrm.data.places import PATIENCE, Place, hash_file, names_in, place, read_file, remove, stamp
from geolrm.failures import BadInput
from geolrm.files import DiskFull, write_whole

if TYPE_CHECKING:
    from geolrm.data.addresses import Address
    from geolrm.download import Manners

FORMAT_VERSION = 3  # raise it whenever the bytes of a shard change for the same input: every shard becomes stale
TEST_SURFACE_POINTS = 131_072  # kept of an object of the split test, for geometry measured at 100,000 points
DEFAULT_SPLIT = "train"  # of tars that name none, as GObjaverse's
SPLIT_NAME = re.compile(r"[a-z0-9_]+")
MAX_META_BYTES = 1 << 20
MENDABLE = frozenset(  # reasons for which an object did not come that another day, or somebody, may mend
    {"network_stall", "network_broken", "http_status", "http_forbidden", "length_mismatch", "hash_mismatch"}
    | {"content_changed", "source_changed"}
)


def codec_versions() -> dict[str, str]:
    """What the bytes of shards and rows depend on besides input and parameters."""
    return {name: version(name) for name in ("imagecodecs", "pyarrow")}  # zstd lies in the first


@dataclass(frozen=True)
class ObjectTar:
    """One input: its key (the tar's stem), the split that its metadata names, its place and content.

    With an `address` there is no tar yet: `path` is its URL, `sha256` stands for the address and for what is known of the
    object, `bytes` are the source's when it came before, or 0.
    """

    key: str
    split: str
    path: str
    sha256: str
    bytes: int
    address: Address | None = None


@dataclass(frozen=True)
class Drawing:
    """Procedural objects, drawn and traced where their shard is built: no object tar is ever written."""

    settings: Procedural
    device: str

    def objects(self) -> list[ObjectTar]:
        """All of the settings' objects; in place of a tar's content stands what draws it."""
        from geolrm.data import procedural

        origin = json.dumps(procedural.drawn_from(self.settings, self.device), sort_keys=True)
        return [
            ObjectTar(
                key, key.partition("-")[0], f"drawn/{key}", hashlib.sha256(f"{origin} {key}".encode()).hexdigest(), 0
            )
            for key in procedural.keys(self.settings)
        ]


@dataclass(frozen=True)
class ShardJob:
    """One shard to build: `folder/name.tar` with its rows and stats, from these objects, in this order."""

    name: str
    split: str
    dataset: str
    folder: str
    voxel_resolution: int
    surface_points: int
    objects: tuple[ObjectTar, ...]
    fingerprint: str = field(default="", compare=False)
    drawing: Drawing | None = None
    manners: Manners | None = field(default=None, compare=False)  # how the server of those with an address is treated

    @property
    def tar(self) -> Place:
        return place(self.folder) / f"{self.name}.tar"

    @property
    def rows(self) -> Place:
        return place(self.folder) / f"{self.name}.parquet"

    @property
    def stats(self) -> Place:
        return place(self.folder) / f"{self.name}.stats.json"


class HashCache:
    """SHA-256 of files, remembered in a JSON file by size and modification time, with the split of object tars. A store that
    holds some of them is asked again for `patience` seconds."""

    def __init__(self, path: Path, patience: float = PATIENCE) -> None:
        self._path, self.patience = path, patience
        self._known: dict[str, dict[str, Any]] = {}
        self._seen: dict[str, dict[str, Any]] = {}
        if path.exists():
            try:
                self._known = json.loads(path.read_bytes())
            except ValueError:  # a cache may be lost: it is only made again
                self._known = {}

    def entry(self, path: Place, *, with_split: bool = False) -> dict[str, Any]:
        """`{size, time, sha256}` and, for an object tar, `split`."""
        now = stamp(path, self.patience)
        known = self._known.get(str(path), {})
        if {name: known.get(name) for name in now} == now and ("split" in known) >= with_split:
            found = known
        else:
            found = {**now, "sha256": hash_file(path, self.patience)}
            if with_split:
                found["split"] = split_of(path)
        self._seen[str(path)] = found
        return found

    def remember(self, path: Place, sha256: str) -> None:
        """Take over the hash of a file that its writer has just computed."""
        self._seen[str(path)] = {**stamp(path, self.patience), "sha256": sha256}

    def save(self) -> None:
        """Write what was asked for since loading; the rest is forgotten. A full disk leaves the cache unwritten: it is only
        a saving, and whoever filled the disk hears of it from the shards."""
        if self._seen != self._known:
            with suppress(DiskFull):
                write_whole(self._path, json.dumps(self._seen, sort_keys=True, indent=0))


def split_of(path: Path) -> str:
    """The split that an object tar's `meta.json` names; of a tar that names none or cannot be read, the one before the
    dash in its file name, if that is a usual one, else `DEFAULT_SPLIT`: a broken tar is counted where it belongs."""
    named = path.name.partition("-")[0]
    fallback = named if named in ("train", "val", "test") else DEFAULT_SPLIT
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.name.count("/") == 1 and member.name.endswith("/meta.json") and member.isreg():
                    stream = tar.extractfile(member)
                    if stream is None or member.size > MAX_META_BYTES:
                        return fallback
                    split = json.loads(stream.read()).get("split")
                    return split if isinstance(split, str) and SPLIT_NAME.fullmatch(split) else fallback
    except (tarfile.TarError, EOFError, ValueError, AttributeError):  # the reader of the object will say what is wrong
        return fallback
    return fallback


def find_objects(folder: Path, cache: HashCache, threads: int) -> list[ObjectTar]:
    """All object tars of a folder, sorted by key.

    Raises:
        BadInput: `objects_missing` when there is none.
    """
    paths = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
    if not paths:
        raise BadInput("objects_missing", folder, "no object tars", "render or fetch the data set first")
    with ThreadPoolExecutor(threads) as pool:
        entries = list(pool.map(lambda path: cache.entry(path, with_split=True), paths))
    return [
        ObjectTar(path.stem, entry["split"], str(path), entry["sha256"], entry["size"])
        for path, entry in zip(paths, entries, strict=True)
    ]


def plan_shards(
    objects: Iterable[ObjectTar], folder: Path, dataset: str, params: Shard, drawing: Drawing | None = None
) -> list[ShardJob]:
    """Cut the objects of each split, sorted by key, into shards of `objects_per_shard`."""
    by_split: dict[str, list[ObjectTar]] = defaultdict(list)
    for item in sorted(objects, key=lambda item: item.key):
        by_split[item.split].append(item)
    versions, jobs = codec_versions(), []
    resolution = params.voxel_resolution
    for split, items in sorted(by_split.items()):
        points = max(params.surface_points, TEST_SURFACE_POINTS) if split == "test" else params.surface_points
        for number, start in enumerate(range(0, len(items), params.objects_per_shard)):
            chosen = tuple(items[start : start + params.objects_per_shard])
            name = f"{split}-{number:06d}"
            content = {
                "format": FORMAT_VERSION,
                "codecs": versions,
                "shard": [dataset, split, name],
                "params": [resolution, points],
                "objects": [[item.key, item.sha256] for item in chosen],
            }
            fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
            jobs.append(ShardJob(name, split, dataset, str(folder), resolution, points, chosen, fingerprint, drawing))
    return jobs


def read_stats(job: ShardJob, patience: float = PATIENCE) -> dict[str, Any] | None:
    """The stats of a shard that exists, or None. Raises BadInput as `steadily`."""
    try:
        stats = json.loads(read_file(job.stats, patience))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return stats if isinstance(stats, dict) else None


def holds(job: ShardJob, cache: HashCache) -> bool:
    """Whether the shard's three files are there, were made from just this job, are undamaged, and lack no object that may be
    had today."""
    stats = read_stats(job, cache.patience)
    if stats is None or stats.get("fingerprint") != job.fingerprint:
        return False
    if any(drop["reason"] in MENDABLE for drop in stats["dropped"]):
        return False
    for name, path in (("tar", job.tar), ("rows", job.rows)):
        written = stats["files"][name]
        try:
            if (
                stamp(path, cache.patience)["size"] != written["size"]
                or cache.entry(path)["sha256"] != written["sha256"]
            ):
                return False
        except FileNotFoundError:
            return False
    return True


def remember(job: ShardJob, cache: HashCache) -> None:
    """Note the hashes of a shard that was just built, so that the next run need not read it."""
    stats = read_stats(job, cache.patience)
    if stats is not None:
        cache.remember(job.tar, stats["files"]["tar"]["sha256"])
        cache.remember(job.rows, stats["files"]["rows"]["sha256"])


def remove_leftovers(folder: Place, jobs: Iterable[ShardJob], patience: float = PATIENCE) -> list[Place]:
    """Remove what belongs to no planned shard: temporary files of killed writers, shards of other parameters."""
    planned = {name for job in jobs for name in (job.tar.name, job.rows.name, job.stats.name)}
    leftovers = [folder / name for name in names_in(folder, patience) if name not in planned]
    for path in leftovers:
        remove(path, patience)
    return leftovers
