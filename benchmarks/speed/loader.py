"""How fast training samples come from shards, against the files that they replace, in one run.

In: object tars. Out: a JSON file with its passport, and a table on the screen. Convention: a sample is one object: 8 of its
views drawn at random at 448 px, colour over white, alpha and depth, and its occupied voxels. `files` is how the public code
reads: loose PNG, JSON and EXR files and a list of voxels, colour over white at full size, then torchvision's antialiased resize
of the colour and nearest neighbours for alpha and depth (the normals beside each depth are decoded with it and not used, and
are spared its resizing). Rounds interleave all modes; numbers are the processor time of all that works for a sample, so a
core's share, and files come from the system's cache. `read` stops at bytes, `decode` starts from bytes in memory and stops
before resizing, `whole` does all, `worker` does it in a worker process of torch's `DataLoader` whose consumer throws samples
away. Trade: a handful of objects stands for a data set. Verified in the run: colours equal to the bit, depth to a twentieth of
a voxel at R = 128.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import statistics
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import OpenEXR
import torch
import tyro
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from geolrm.cameras import from_gobjaverse
from geolrm.config import Shard
from geolrm.data import shards
from geolrm.data.catalog import merge_catalogs
from geolrm.data.loader import Sample, ShardDataset
from geolrm.data.shard_build import build_shard
from geolrm.data.shard_plan import HashCache, codec_versions, find_objects, plan_shards
from geolrm.files import write_whole
from geolrm.passport import passport

SUFFIXES = (".png", ".json", "_nd.exr")


@dataclass(frozen=True)
class Options:
    """Time loading from shards against loading the files that they replace."""

    objects: tuple[Path, ...]
    """Object tars, or folders of them, of one data set."""
    out: Path = Path("docs/results/loader.json")
    """Where the result goes."""
    views: int = 8
    """Views of a sample."""
    size: int = 448
    """Their side, pixels."""
    rounds: int = 5
    """Counted rounds; each loads every object in every mode."""
    draws: int = 2
    """Samples of each object in a round, with other views each time."""
    voxels: int = 128
    """Resolution of the occupancy label."""
    seed: int = 0
    """Of the drawn views."""


@dataclass(frozen=True)
class Home:
    """The same objects twice: loose files by key, and shards."""

    loose: Path
    data: ShardDataset
    replaced_bytes: int
    shard_bytes: int


def prepare(options: Options, folder: Path) -> Home:
    """Shards, and loose files with the labels' voxels as the public tool writes them."""
    objects = folder / "objects"
    objects.mkdir()
    for place in options.objects:
        for path in sorted(place.glob("*.tar")) if place.is_dir() else [place]:
            (objects / path.name).symlink_to(path.resolve())
    (folder / "shards").mkdir()
    settings = Shard(
        voxel_resolution=options.voxels, objects_per_shard=64, surface_points=16384, workers=1, max_drop_rate=0.0
    )
    jobs = plan_shards(
        find_objects(objects, HashCache(folder / "hashes.json"), 1), folder / "shards", "speed", settings
    )
    (job,) = jobs  # objects of one split
    build_shard(job)
    write_whole(folder / "catalog.parquet", merge_catalogs([job.rows]))
    data = ShardDataset(folder, job.split)
    loose, replaced = folder / "loose", 0
    for path in sorted(objects.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                if stream is None or not member.name.endswith(SUFFIXES) or member.name.count("/") < 2:
                    continue
                replaced += member.size
                if "/test/" not in member.name:
                    target = loose / path.stem / Path(member.name).parent.name / Path(member.name).name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(stream.read())
        voxels = data.sample(path.stem).occupancy.nonzero().numpy().astype(np.uint8)
        np.save(loose / path.stem / "pts.npy", voxels)
    return Home(loose, data, replaced, job.tar.stat().st_size)


# --- files -----------------------------------------------------------------------------------------------------------


def read_files(home: Home, key: str, views: list[int]) -> list[bytes]:
    """Bytes of the views' files, in the order of `SUFFIXES`, and of the voxels."""
    folder = home.loose / key
    names = [f"{v:05d}/{v:05d}{suffix}" for v in views for suffix in SUFFIXES]
    return [(folder / name).read_bytes() for name in (*names, "pts.npy")]


def decode_files(data: list[bytes]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Colour over white (V, 3, H, W), alpha (V, 1, H, W), depth (V, 1, H, W), poses (V, 4, 4), voxels (N, 3)."""
    colours, alphas, depths, poses = [], [], [], []
    for png, camera, exr in zip(data[:-1:3], data[1:-1:3], data[2:-1:3], strict=True):
        rgba = torch.from_numpy(np.array(Image.open(io.BytesIO(png)))).permute(2, 0, 1).float() / 255
        colours.append(rgba[:3] * rgba[3:] + (1 - rgba[3:]))
        alphas.append(rgba[3:])
        channels = OpenEXR.File(io.BytesIO(exr), separate_channels=True, num_threads=0).channels()
        depths.append(torch.from_numpy(channels["A"].pixels)[None])
        poses.append(from_gobjaverse(json.loads(camera)).camera_to_world)
    voxels = torch.from_numpy(np.load(io.BytesIO(data[-1])))
    return torch.stack(colours), torch.stack(alphas), torch.stack(depths), torch.stack(poses), voxels


def files_sample(home: Home, key: str, views: list[int], size: int) -> tuple[Tensor, ...]:
    colour, alpha, depth, poses, voxels = decode_files(read_files(home, key, views))
    colour = v2.functional.resize(colour, [size, size], v2.InterpolationMode.BILINEAR, antialias=True)
    alpha, depth = (F.interpolate(picture, (size, size), mode="nearest") for picture in (alpha, depth))
    return colour, alpha, depth, poses, voxels


# --- shards ----------------------------------------------------------------------------------------------------------


def positions(sample: Sample, views: list[int]) -> list[int]:
    """Where the shard has the views of these numbers."""
    return [sample.meta["source_views"].index(view) for view in views]


def read_shards(home: Home, key: str, views: list[int]) -> tuple[Sample, list[bytes]]:
    """Bytes of the views' members and of the label, checked by their hashes."""
    sample = home.data.sample(key)
    names = [part("", i) for i in positions(sample, views) for part in (shards.rgba_member, shards.depth_member)]
    return sample, sample._members.read_all([*names, shards.OCCUPANCY])


def decode_shards(data: tuple[Sample, list[bytes]]) -> Tensor:
    """All of them decoded; the label is returned."""
    sample, members = data
    meta = sample.meta
    for rgba, depth in zip(members[:-1:2], members[1:-1:2], strict=True):
        shards.decode_rgba(rgba)
        shards.decode_depth(depth, meta["depth_scale"], meta["depth_offset"])
    return shards.decode_occupancy(members[-1], meta["voxel_resolution"])


def shards_sample(home: Home, key: str, views: list[int], size: int) -> tuple[Tensor, ...]:
    sample = home.data.sample(key)
    picked = sample.views(positions(sample, views), (size, size), 1.0)
    depth = torch.empty(0) if picked.depth is None else picked.depth
    return picked.composited(1.0), picked.alpha, depth, picked.cameras.camera_to_world, sample.occupancy


class _Samples(Dataset[Any]):
    """A way to load, as torch's `DataLoader` wants it: the index is a key and its views."""

    def __init__(self, load: Callable[..., Any], home: Home, size: int) -> None:
        self.load, self.home, self.size = load, home, size

    def __getitem__(self, index: tuple[str, list[int]]) -> Any:
        return self.load(self.home, *index, self.size)


# --- timing ----------------------------------------------------------------------------------------------------------


def spent() -> float:
    """Processor seconds of this process and of all its children that have ended."""
    return sum(
        u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def timed_round(home: Home, drawn: list[tuple[str, list[int]]], size: int) -> dict[str, float]:
    """Processor milliseconds a sample of every way and mode, each over all drawn samples once; starting a worker process is
    shared among them."""
    ways: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {
        "files": (read_files, decode_files, files_sample),
        "shards": (read_shards, decode_shards, shards_sample),
    }
    seconds: dict[str, float] = {}
    for way, (read, decode, whole) in ways.items():
        start = spent()
        data = [read(home, *place) for place in drawn]
        seconds[f"{way}, read"] = spent() - start
        start = spent()
        for item in data:
            decode(item)
        seconds[f"{way}, decode"] = spent() - start
        start = spent()
        for place in drawn:
            whole(home, *place, size)
        seconds[f"{way}, whole"] = spent() - start
        start = spent()
        for _ in DataLoader(_Samples(whole, home, size), batch_size=None, sampler=drawn, num_workers=1):
            pass
        seconds[f"{way}, worker"] = spent() - start
    return {name: 1e3 * value / len(drawn) for name, value in seconds.items()}


def differences(home: Home, drawn: list[tuple[str, list[int]]]) -> dict[str, float]:
    """The largest difference between the two ways at full size: colour (premultiplied over white), alpha, depth in voxels."""
    largest = {"colour": 0.0, "alpha": 0.0, "depth_in_voxels_at_128": 0.0}
    for key, views in drawn:
        colour, alpha, depth, _, _ = decode_files(read_files(home, key, views))
        sample = home.data.sample(key)
        found = sample.views(positions(sample, views))
        assert found.depth is not None
        for name, error in (
            ("colour", (found.composited(1.0) - colour).abs().max()),
            ("alpha", (found.alpha - alpha).abs().max()),
            ("depth_in_voxels_at_128", 128 * (found.depth - depth[:, 0]).abs().max()),
        ):
            largest[name] = max(largest[name], error.item())
    if largest["alpha"] > 0 or largest["colour"] > 1e-6 or largest["depth_in_voxels_at_128"] > 1 / 20:
        raise AssertionError(f"the two ways differ: {largest}")
    return largest


def table(record: dict[str, Any]) -> str:
    """The Markdown table of a record."""
    rows = record["ms_per_sample"]
    lines = ["| mode | files, ms a sample | shards, ms a sample | times faster |", "|---|---:|---:|---:|"]
    for mode in ("read", "decode", "whole", "worker"):
        files, ours = (rows[f"{way}, {mode}"] for way in ("files", "shards"))
        lines.append(f"| {mode} | {files:.1f} | {ours:.1f} | {files / ours:.1f} |")
    return "\n".join(lines)


def main(options: Options) -> None:
    torch.set_num_threads(1)
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        home = prepare(options, Path(folder))
        distinct = home.data.sample(0).meta["source_views"]
        rounds = []
        for _ in range(1 + options.rounds):
            keys = home.data.keys * options.draws
            drawn = [(key, draw.sample(distinct, options.views)) for key in keys]
            rounds.append(timed_round(home, drawn, options.size))
        medians = {name: round(statistics.median(r[name] for r in rounds[1:]), 2) for name in rounds[0]}
        record = {
            "objects": home.data.keys,
            "views": options.views,
            "size": options.size,
            "ms_per_sample": medians,
            "samples_per_second_and_core": {
                way: round(1e3 / medians[f"{way}, whole"], 1) for way in ("files", "shards")
            },
            "times_faster": round(medians["files, whole"] / medians["shards, whole"], 2),
            "replaced_bytes": home.replaced_bytes,
            "shard_bytes": home.shard_bytes,
            "share_of_bytes": round(home.shard_bytes / home.replaced_bytes, 4),
            "largest_differences": differences(home, drawn),
        }
    about = passport(seed=options.seed, rounds=options.rounds, load=os.getloadavg()[0], codecs=codec_versions())
    write_whole(options.out, json.dumps(record | {"passport": about}, indent=1) + "\n")
    print(table(record))
    share = record["share_of_bytes"]
    print(
        f"{record['times_faster']} times the samples per second and core; shards hold {share:.1%} of the files' bytes"
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
