"""Small rendered objects with closed forms, for the tests of shards: textured spheres as object tars."""

import hashlib
from pathlib import Path

import torch
import yaml

from geolrm.cameras import Cameras
from geolrm.config import Shard
from geolrm.data.catalog import merge_catalogs
from geolrm.data.object_tar import RenderedObject, default_meta, write_object_tar
from geolrm.data.rig import render_rig, test_rig
from geolrm.data.shard_build import build_shard
from geolrm.data.shard_plan import HashCache, find_objects, plan_shards
from geolrm.files import write_whole
from geolrm.views import Views


def sphere_views(
    key: str, cameras: Cameras, size: int, radius: float, centre: torch.Tensor
) -> tuple[Views, torch.Tensor]:
    """Views of a sphere with a texture of many colours, and its normals (V, 3, H, W)."""
    origins, directions = cameras.rays(size, size)
    towards = origins - centre
    a, b = (directions**2).sum(-1), (directions * towards).sum(-1)
    root = b**2 - a * ((towards**2).sum(-1) - radius**2)
    hit = root > 0
    depth = torch.where(hit, (-b - root.clamp(min=0).sqrt()) / a, 0.0)
    points = cameras.unproject(depth)
    normals = torch.where(hit[..., None], (points - centre) / radius, 0.0)
    colour = torch.sin(points * torch.tensor([31.0, 43.0, 57.0])) / 2 + 0.5
    alpha = hit.float() * (0.75 + 0.25 * colour[..., 0])
    colour = ((colour * 255).round() / 255).permute(0, 3, 1, 2)
    alpha = ((alpha * 255).round() / 255)[:, None]
    return Views(key, cameras, colour, alpha, depth), normals.permute(0, 3, 1, 2)


def sphere_object(
    key: str, split: str = "train", size: int = 24, *, samples: int = 500, shift: float = 0.0
) -> RenderedObject:
    """A sphere whose radius follows from its key; without true surface samples if `samples` is 0."""
    radius = 0.2 + 0.2 * hashlib.sha256(key.encode()).digest()[0] / 255
    centre = torch.tensor([shift, 0.0, 0.0])
    views, normals = sphere_views(key, render_rig(key), size, radius, centre)
    tests, _ = sphere_views(key, test_rig(), size, radius, centre)
    meta = default_meta(key) | {
        "dataset": "spheres",
        "layout": "procedural",
        "split": split,
        "licence": "CC0-1.0",
        "attribution": "nobody",
        "unit": "object",
        "surface": "closed form" if samples else "depth",
        "rig": "own",
    }
    directions = torch.nn.functional.normalize(
        torch.randn(samples, 3, generator=torch.Generator().manual_seed(1)), dim=-1
    )
    points, point_normals = (directions * radius + centre, directions) if samples else (None, None)
    return RenderedObject(key, views, normals, tests, points, point_normals, meta)


def write_spheres(folder: Path, counts: dict[str, int], size: int = 24) -> None:
    """Object tars `<split>-%05d.tar` of so many spheres per split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        for i in range(count):
            key = f"{split}-{i:05d}"
            write_object_tar(folder / f"{key}.tar", sphere_object(key, split, size))


def write_params(path: Path, **shard: float) -> Path:
    """The smoke params file with small shards, some of the section's values replaced."""
    params = yaml.safe_load((Path(__file__).parents[2] / "presets" / "smoke.yaml").read_text())
    params["shard"] |= {"voxel_resolution": 16, "objects_per_shard": 2, "surface_points": 100, "workers": 2} | shard
    params["proposal"]["voxel_resolution"] = params["shard"]["voxel_resolution"]
    path.write_text(yaml.safe_dump(params))
    return path


def build_all(home: Path, counts: dict[str, int], objects_per_shard: int = 2) -> None:
    """Object tars, shards and catalog of a small data set, built in this process."""
    write_spheres(home / "objects", counts)
    (home / "shards").mkdir()
    settings = Shard(
        voxel_resolution=16, objects_per_shard=objects_per_shard, surface_points=100, workers=1, max_drop_rate=0.0
    )
    objects = find_objects(home / "objects", HashCache(home / "shard-hashes.json"), 1)
    jobs = plan_shards(objects, home / "shards", "spheres", settings)
    for job in jobs:
        build_shard(job)
    write_whole(home / "catalog.parquet", merge_catalogs(job.rows for job in jobs))
