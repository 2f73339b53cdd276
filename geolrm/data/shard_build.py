"""Building one shard: object tars in, the trio of shard, Parquet rows and stats out.

In: a `ShardJob`, whose objects lie here, are drawn, or are fetched, a few ahead, and dropped once they are in the shard. Out:
`<name>.tar`, `<name>.parquet`, `<name>.stats.json`, each whole or not at all, the stats last: they vouch for the other two.
Convention: an object that cannot be used is counted by its reason and leaves no gap in the others; a full disk or any other
error ends the job and leaves none of its files half-written. Trade: objects pass one at a time, so that a worker's memory and
disk do not grow with the shard. Runs in Dask workers, which receive nothing but the job. Verified by killing it, by filling
its disk, by bad objects among good ones, and against a server that misbehaves.
"""

from __future__ import annotations

import json
import os
import platform
import tarfile
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from geolrm.data.catalog import catalog_row, rows_to_parquet
from geolrm.data.fetch import Fetched
from geolrm.data.inventory import kind_of
from geolrm.data.object_tar import RenderedObject, read_object_tar
from geolrm.data.procedural import procedural_object
from geolrm.data.shard_plan import FORMAT_VERSION, ObjectTar, ShardJob, codec_versions
from geolrm.data.shards import (
    KEY,
    DistinctViews,
    EncodedObject,
    ShardWriter,
    distinct_views,
    encode_object,
    even_draw,
    label,
    surface_from_depth,
    without_stray_depth,
)
from geolrm.failures import BadInput
from geolrm.files import sha256_of, whole_file, write_whole

DEPTH_SURFACE_RESOLUTION = 256  # points of a surface known from depth maps alone: at most one per voxel of this grid


class StepTimes:
    """Seconds spent in each named step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@torch.no_grad()
def build_shard(job: ShardJob) -> dict[str, Any]:
    """Build a shard and return its stats.

    Raises:
        DiskFull: from `whole_file`.
    """
    torch.set_num_threads(1)  # one worker, one core: the parallelism is over shards
    times, start = StepTimes(), time.perf_counter()
    rows: list[dict[str, Any]] = []
    dropped: list[dict[str, str]] = []
    member_bytes: Counter[str] = Counter()
    job.stats.unlink(missing_ok=True)  # from here until the new stats are written, the shard does not hold
    fetched: list[Fetched] = []
    with (
        whole_file(job.tar) as temporary,
        temporary.open("wb") as file,
        closing(at_hand(job, times, fetched)) as objects,
    ):
        writer = ShardWriter(file)
        for item, missing in objects:
            try:
                if missing is not None:
                    raise missing
                sample = encode_tar(item, job, times)
            except BadInput as error:
                detail = str(error) if item.address is None else str(error).replace(item.path, item.address.url)
                dropped.append({"key": item.key, "reason": error.reason, "detail": detail})
                continue
            with times.step("write"):
                rows.append(catalog_row(sample, job.tar.name, writer.add(sample)))
            for name, data in sample.members.items():
                member_bytes[kind_of(name)] += len(data)
        with times.step("write"):
            writer.close()
    with times.step("write"):
        write_whole(job.rows, rows_to_parquet(rows))
    stats = {
        "shard": job.tar.name,
        "dataset": job.dataset,
        "split": job.split,
        "fingerprint": job.fingerprint,
        "objects_in": len(job.objects),
        "objects_out": len(rows),
        "drops": dict(sorted(Counter(drop["reason"] for drop in dropped).items())),
        "dropped": dropped,
        "refused_points": sum(row["refused_points"] for row in rows),
        "occupancy": _occupancy(rows),
        "bytes_in": sum(item.bytes for item in job.objects if item.address is None) + sum(f.bytes for f in fetched),
        "bytes_out": job.tar.stat().st_size,
        "member_bytes": dict(sorted(member_bytes.items())),
        "files": {name: _file_record(path) for name, path in (("tar", job.tar), ("rows", job.rows))},
        "worker": f"{platform.node()}:{os.getpid()}",
        "seconds": {**times.seconds, "total": time.perf_counter() - start},
        "versions": {
            "format": FORMAT_VERSION,
            **codec_versions(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    if any(
        item.address is not None for item in job.objects
    ):  # no tar stays of what came: only where from, and its hash
        stats["fetched"] = [asdict(replace(f, file="", bytes=f.source_bytes, sha256=f.source_sha256)) for f in fetched]
    write_whole(job.stats, json.dumps(stats, indent=1, sort_keys=True))
    return stats


def at_hand(
    job: ShardJob, times: StepTimes, fetched: list[Fetched]
) -> Generator[tuple[ObjectTar, BadInput | None], None, None]:
    """The objects of a job in turn, each with its tar in place, or with the reason why it could not be had.

    What has an address is fetched beside the shard, under a temporary name, as many at a time as the job's manners allow
    connections, so that at most one more than that lie there; it is removed when the next one is asked for. `fetched` is told
    of each that came. Raises `DiskFull`.
    """
    if all(item.address is None for item in job.objects):
        yield from ((item, None) for item in job.objects)
        return
    from geolrm.data.gobjaverse import Facts, fetch_object
    from geolrm.download import Client, Manners

    client, folder = Client(job.manners or Manners()), Path(job.folder)

    def get(item: ObjectTar) -> tuple[ObjectTar, Fetched | BadInput | None]:
        if item.address is None:
            return item, None
        there, tar = item.address, folder / f".{item.key}.{os.getpid()}.tmp"
        try:
            facts = Facts(**there.facts)
            came = fetch_object(client, there.url, there.source_id, facts, tar, there.known_sha256)
        except BadInput as error:
            return item, error
        return replace(item, path=str(tar)), came

    upcoming, ahead = iter(job.objects), deque[Future[tuple[ObjectTar, Fetched | BadInput | None]]]()
    with ThreadPoolExecutor(client.manners.connections) as pool:
        try:
            ahead.extend(pool.submit(get, item) for item in islice(upcoming, client.manners.connections))
            while ahead:
                with times.step("fetch"):
                    item, came = ahead.popleft().result()
                ahead.extend(pool.submit(get, item) for item in islice(upcoming, 1))
                if isinstance(came, BadInput):
                    yield item, came
                    continue
                if came is not None:
                    fetched.append(came)
                yield item, None
                if came is not None:
                    Path(item.path).unlink()
        finally:  # of a job that ended before its last object, nothing stays
            client.stop.set()
            pool.shutdown(cancel_futures=True)
            for item in job.objects:
                (folder / f".{item.key}.{os.getpid()}.tmp").unlink(missing_ok=True)


def encode_tar(item: ObjectTar, job: ShardJob, times: StepTimes) -> EncodedObject:
    """Read, label and encode one object.

    Raises:
        BadInput: whatever is wrong with it.
    """
    if not KEY.fullmatch(item.key):
        detail = f"{item.key!r} holds characters that part names in a WebDataset"
        raise BadInput("key_characters", item.path, detail, "name the tar by letters, digits, '_', '-' and '+' only")
    with times.step("read"):
        obj = _object(item, job)
        if obj.key != item.key:
            raise BadInput("key_mismatch", item.path, f"holds the object {obj.key!r}", f"name it {obj.key}.tar")
        test = None if obj.test_views is None else without_stray_depth(obj.test_views)[0]
        obj = replace(obj, test_views=test, meta={**obj.meta, "split": item.split})
        kept = distinct_views(obj.views)
    with times.step("occupancy"):
        views, stray = without_stray_depth(kept.views)
        kept = replace(kept, views=views)
        occupancy = label(views, job.voxel_resolution, stray)
    with times.step("surface"):
        surface = _surface(obj, kept, job.surface_points)
    with times.step("encode"):
        return encode_object(obj, kept, occupancy, surface)


def _object(item: ObjectTar, job: ShardJob) -> RenderedObject:
    if job.drawing is not None:
        s = job.drawing.settings
        return procedural_object(s.seed, item.key, s.resolution, s.supersampling, job.drawing.device, s.variety)
    return read_object_tar(Path(item.path), normals=not _has_surface(Path(item.path)))


def _has_surface(path: Path) -> bool:
    """Whether the tar holds surface samples: only without them are the normals of its views worth decoding."""
    try:
        with tarfile.open(path, "r:") as tar:
            return any(name.endswith("/surface.npz") for name in tar.getnames())
    except (tarfile.TarError, EOFError, FileNotFoundError):  # the reader of the object will say what is wrong
        return False


def _surface(obj: RenderedObject, kept: DistinctViews, wanted: int) -> tuple[torch.Tensor, torch.Tensor]:
    """True surface samples where the object has them, else its depth maps', evenly drawn."""
    if obj.points is not None and obj.point_normals is not None:
        points, normals = obj.points, obj.point_normals
    else:
        if obj.normals is None:
            raise ValueError(f"{obj.key}: read without normals")
        points, normals = surface_from_depth(kept.views, obj.normals[kept.numbers], DEPTH_SURFACE_RESOLUTION)
    rows = even_draw(len(points), wanted, obj.key)
    return points[rows], normals[rows]


def _occupancy(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of all labels together: voxels, those that fewer than two views hit, and the share of the volume that they fill."""
    voxels = sum(row["occupied_voxels"] for row in rows)
    volume = sum(row["voxel_resolution"] ** 3 for row in rows)
    seen_once = sum(row["voxels_seen_once"] for row in rows)
    return {"voxels": voxels, "seen_once": seen_once, "share_of_volume": voxels / max(volume, 1)}


def _file_record(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}
