"""What building shards costs: objects per second and core, by step, with one worker and with two; a worker's memory.

In: object tars, or small procedural ones made here; repeated under new names where more are asked for than there are. Out: a
JSON file with its passport, and a table on the screen. Convention: the shards are those of `pipelines/shard.py`, built by its own
Dask workers, one core each; seconds by step are what the shards' stats say. The same code in this process, one object a shard,
gives the processor time of an object, which other work on the machine hardly changes, and the memory resident after each; these
shards are then verified, every member hashed again, and every object is read as training reads it. One worker and two build the
same shards in one run. Trade: links to few distinct objects stand for many, so files come from the system's cache and disks are
not measured. Verified by equal bytes from one worker and from two.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import tyro

from geolrm.config import Procedural, Shard
from geolrm.data.catalog import merge_catalogs
from geolrm.data.loader import ShardDataset
from geolrm.data.shard_build import build_shard
from geolrm.data.shard_plan import HashCache, ShardJob, find_objects, plan_shards, read_stats
from geolrm.data.verification import verify
from geolrm.failures import BadInput, run_command
from geolrm.files import sha256_of, write_whole
from geolrm.passport import passport
from pipelines.render_procedural import render_objects
from pipelines.shard import build_shards

VIEWS_READ = 8  # of each object, as training reads it


@dataclass(frozen=True)
class Options:
    """Time the building of shards."""

    objects: tuple[Path, ...] = ()
    """Object tars, or folders of them, of one data set and split. Default: procedural ones are made, as many as are asked for."""
    pixels: int = 32
    """Pixels a side of those that are made."""
    out: Path = Path("docs/results/building.json")
    """Where the result goes."""
    count: int = 8
    """Objects to build in each turn: those given, over and over. 1000 for the full claim."""
    per_shard: int = 1
    """Objects a shard; count / per_shard should be even, so that two workers have equal shares."""
    voxels: int = 128
    """Resolution of the occupancy label."""
    memory_objects: int = 4
    """Objects built in this process, two at least, for processor time and memory; then verified and read. 1000 for the full
    claim."""


def made(options: Options, folder: Path) -> Options:
    """The options with procedural objects made here, all but two of the split train, where they name none."""
    if options.objects:
        return options
    count = max(options.count, options.memory_objects, 3) - 2
    drawn = Procedural(train=count, val=1, test=1, resolution=options.pixels, supersampling=1, workers=1, seed=0)
    render_objects(drawn, folder, 1)
    return replace(options, objects=(folder,))


def jobs_for(options: Options, folder: Path, count: int, per_shard: int) -> list[ShardJob]:
    """Shards of `count` objects in a new folder, the given tars linked in turn. Keys are their files' names: a tar that is
    linked twice is one object built twice, in a shard and a home of its own."""
    paths = [p for place in options.objects for p in (sorted(place.glob("*.tar")) if place.is_dir() else [place])]
    settings = Shard(
        voxel_resolution=options.voxels, objects_per_shard=per_shard, surface_points=16384, workers=1, max_drop_rate=0.0
    )
    jobs = []
    for turn, start in enumerate(range(0, count, len(paths))):
        home = folder / f"turn-{turn:04d}"
        objects, shards = home / "objects", home / "shards"
        objects.mkdir(parents=True)
        for path in paths[: count - start]:
            (objects / path.name).symlink_to(path.resolve())
        shards.mkdir()
        found = find_objects(objects, HashCache(folder / "hashes.json"), 1)
        jobs += plan_shards(found, shards, home.name, settings)  # a name of its own, or Dask builds it once
    return jobs


def built(options: Options, folder: Path, workers: int) -> tuple[float, list[dict[str, Any]], list[str]]:
    """Seconds, stats and hashes of the shards that so many workers build; the cluster's start is part of it."""
    jobs = jobs_for(options, folder, options.count, options.per_shard)
    start = time.perf_counter()
    failures = build_shards(jobs, workers, None)
    seconds = time.perf_counter() - start
    if failures:
        raise RuntimeError("; ".join(failures))
    stats = [found for job in jobs if (found := read_stats(job)) is not None]
    return seconds, stats, [sha256_of(job.tar) for job in jobs]


def alone_in_this_process(jobs: list[ShardJob]) -> tuple[list[int], float]:
    """Resident bytes after each shard, and processor seconds of each after the first, which also compiles."""
    process, resident, spent = psutil.Process(), [], []
    for job in jobs:
        start = time.process_time()
        build_shard(job)
        spent.append(time.process_time() - start)
        resident.append(process.memory_info().rss)
    return resident, sum(spent[1:]) / len(spent[1:])


def verified_and_read(jobs: list[ShardJob]) -> dict[str, Any]:
    """Hash every member of the shards again, and read every object with `VIEWS_READ` of its views; what that came to.

    Raises AssertionError at any fault, and where an object is missing.
    """
    objects, members, read, seconds = 0, 0, 0, {"verify": 0.0, "read": 0.0}
    by_home: dict[Path, list[ShardJob]] = {}
    for job in jobs:
        by_home.setdefault(Path(job.folder).parent, []).append(job)
    for home, its in by_home.items():
        write_whole(home / "catalog.parquet", merge_catalogs(job.rows for job in its))
        start = time.process_time()
        verdict = verify(home, 1)
        seconds["verify"] += time.process_time() - start
        objects, members = objects + verdict.objects, members + verdict.members
        if verdict.faults:
            raise AssertionError("; ".join(map(str, verdict.faults)))
        start = time.process_time()
        for split in sorted({job.split for job in its}):
            data = ShardDataset(home, split)
            for number in range(len(data)):
                sample = data.sample(number)
                views = sample.views(range(VIEWS_READ))
                if int(sample.occupancy.sum()) != sample.meta["occupied_voxels"] or len(views) != VIEWS_READ:
                    raise AssertionError(f"{home}: {sample.key} is not what its metadata say")
                read += 1
        seconds["read"] += time.process_time() - start
    wanted = sum(len(job.objects) for job in jobs)
    if not wanted == objects == read:
        raise AssertionError(f"{wanted} objects built, {objects} verified, {read} read")
    each = {f"{name}_processor_seconds_per_object": round(value / wanted, 5) for name, value in seconds.items()}
    return {"built": wanted, "verified": objects, "members_hashed": members, "read": read, **each}


def thinned(values: list[int], most: int = 50) -> dict[str, int]:
    """Evenly chosen values by their number from 1 on, the first and the last among them."""
    step = max(1, -(-(len(values) - 1) // (most - 1)))
    chosen = sorted({*range(0, len(values), step), len(values) - 1})
    return {str(number + 1): values[number] for number in chosen}


def table(record: dict[str, Any]) -> str:
    """The Markdown table of a record: where the time of an object goes."""
    steps = record["seconds_per_object"]
    lines = ["| step | seconds an object | share |", "|---|---:|---:|"]
    lines += [f"| {name} | {value:.2f} | {value / steps['total']:.0%} |" for name, value in steps.items()]
    return "\n".join(lines)


def main(options: Options) -> None:
    if options.memory_objects < 2:
        raise BadInput("option_range", "--memory-objects", f"{options.memory_objects} is below 2")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = made(options, folder / "made")
        alone, stats, hashes = built(options, folder / "one", 1)
        together, _, other_hashes = built(options, folder / "two", 2)
        if hashes != other_hashes:
            raise AssertionError("two workers built other bytes than one")
        jobs = jobs_for(options, folder / "memory", options.memory_objects, 1)
        resident, spent = alone_in_this_process(jobs)
        proved = verified_and_read(jobs)
    steps: Counter[str] = Counter()
    for entry in stats:
        steps.update(entry["seconds"])
    each = {step: round(seconds / options.count, 3) for step, seconds in steps.most_common() if step != "total"}
    record = {
        "objects": options.count,
        "seconds_per_object": each | {"total": round(steps["total"] / options.count, 3)},
        "processor_seconds_per_object": round(spent, 3),
        "objects_per_second_and_core": round(1 / spent, 3),
        "wall_seconds": {"1 worker": round(alone, 1), "2 workers": round(together, 1)},
        "times_faster_with_two": round(alone / together, 2),
        "bytes_in_per_object": sum(entry["bytes_in"] for entry in stats) // options.count,
        "bytes_out_per_object": sum(entry["bytes_out"] for entry in stats) // options.count,
        "in_this_process": proved,
        "resident_mib_after_object": thinned([round(value / 2**20) for value in resident]),
    }
    about = passport(
        load=os.getloadavg()[0],
        per_shard=options.per_shard,
        voxels=options.voxels,
        made_pixels=options.pixels if options.objects == (folder / "made",) else None,
    )
    write_whole(options.out, json.dumps(record | {"passport": about}, indent=1) + "\n")
    print(table(record))
    print(
        f"{record['objects_per_second_and_core']} objects a second and core; two workers {record['times_faster_with_two']}x"
    )


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(tyro.cli(Options))))
