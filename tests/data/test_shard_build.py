"""Claims about building one shard: what each sample and its row say of their object, and what the stats add up."""

import io
import json
import tarfile
from collections import Counter
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from imagecodecs import jpegls_decode
from spheres import sphere_object

from geolrm.config import Shard
from geolrm.data import shard_build
from geolrm.data.object_tar import RenderedObject, write_object_tar
from geolrm.data.shard_build import build_shard
from geolrm.data.shard_plan import HashCache, ShardJob, find_objects, holds, plan_shards, read_stats
from geolrm.views import Views

SETTINGS = Shard(voxel_resolution=16, objects_per_shard=4, surface_points=100, workers=1, max_drop_rate=0.0)
STRAY = 160.0  # a ray tracer's hit of something far behind the object
BESIDE_CUBE = 1.2  # at a camera 2 away: 0.8 before the centre, within reach, and outside the cube


def with_depth(views: Views, *pixels: tuple[int, int, int, float]) -> Views:
    """Views with other depth at some pixels (view, row, column, depth)."""
    assert views.depth is not None
    depth = views.depth.clone()
    for view, row, column, value in pixels:
        depth[view, row, column] = value
    return replace(views, depth=depth)


def spoilt(key: str, *, samples: int, orbit: int) -> RenderedObject:
    """A sphere with so many stray pixels in one orbit view, one pixel beside the cube, and strays where none count: two in
    the view that repeats the first one, three in a test view."""
    obj = sphere_object(key, samples=samples)
    assert obj.test_views is not None
    strays = [(3, 0, column, STRAY) for column in range(orbit)]
    views = with_depth(obj.views, *strays, (0, 12, 12, BESIDE_CUBE), (24, 0, 0, STRAY), (24, 0, 1, STRAY))
    tests = with_depth(obj.test_views, *((5, 0, column, STRAY) for column in range(3)))
    return replace(obj, views=views, test_views=tests)


@dataclass(frozen=True)
class Built:
    """A shard of four objects: `a`, whole; `b`, known by its depth alone, with stray depth; `c`, whose tar holds another
    one; `e`, whose tar names no split, with stray depth."""

    job: ShardJob
    stats: dict[str, Any]

    def members(self, key: str) -> dict[str, bytes]:
        with tarfile.open(self.job.tar) as shard:
            files = {
                m.name.removeprefix(f"{key}."): shard.extractfile(m) for m in shard if m.name.startswith(f"{key}.")
            }
            return {name: file.read() for name, file in files.items() if file is not None}

    def meta(self, key: str) -> dict[str, Any]:
        return dict(json.loads(self.members(key)["meta.json"]))

    def surface(self, key: str) -> tuple[torch.Tensor, torch.Tensor]:
        members = self.members(key)
        arrays = (np.load(io.BytesIO(members[f"surface.{name}.npy"])) for name in ("points", "normals"))
        points, normals = (torch.from_numpy(array).float() for array in arrays)
        return points, normals

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["key"]: row for row in parquet.read_table(self.job.rows).to_pylist()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    home = tmp_path_factory.mktemp("built")
    (home / "shards").mkdir()
    (home / "objects").mkdir()
    nameless = spoilt("e", samples=500, orbit=2)
    objects = {
        "a": sphere_object("a"),
        "b": spoilt("b", samples=0, orbit=4),
        "c": sphere_object("d"),
        "e": replace(nameless, meta=nameless.meta | {"split": None}),
    }
    for name, obj in objects.items():
        write_object_tar(home / "objects" / f"{name}.tar", obj)
    found = find_objects(home / "objects", HashCache(home / "hashes.json"), 1)
    (job,) = plan_shards(found, home / "shards", "made-up", SETTINGS)
    with pytest.MonkeyPatch.context() as patch:  # a clock that goes on by a second whenever it is looked at
        patch.setattr(shard_build, "time", SimpleNamespace(perf_counter=count().__next__))
        return Built(job, build_shard(job))


def test_the_stats_add_up_what_went_in_and_what_came_out(built: Built) -> None:
    job, stats = built.job, built.stats
    assert json.loads(job.stats.read_bytes()) == stats
    assert (stats["objects_in"], stats["objects_out"], stats["drops"]) == (4, 3, {"key_mismatch": 1})
    assert [(drop["key"], drop["reason"]) for drop in stats["dropped"]] == [("c", "key_mismatch")]
    assert stats["bytes_in"] == sum(Path(item.path).stat().st_size for item in job.objects)
    assert stats["bytes_out"] == job.tar.stat().st_size


def test_the_stats_add_up_the_bytes_of_each_kind_of_member(built: Built) -> None:
    expected: Counter[str] = Counter()
    with tarfile.open(built.job.tar) as shard:
        for member in shard:
            expected[member.name.partition(".")[2].removesuffix(".webp").removesuffix(".jls")] += member.size
    found = built.stats["member_bytes"]
    assert sum(found.values()) == sum(expected.values())
    for kind in ("rgba", "depth", "test.rgba", "test.depth"):
        views = 16 if kind.startswith("test") else 38
        assert found[kind] == sum(expected[f"{kind}.{view:02d}"] for view in range(views))
    assert found["meta"] == sum(len(built.members(key)["meta.json"]) for key in "abe")
    assert {"occupancy", "surface", "cameras"} < set(found)


def test_the_seconds_of_a_step_are_those_of_all_objects_together(built: Built) -> None:
    """By a clock that goes on by a second at every look: a step that is gone through once takes one second."""
    steps = {"read": 4, "occupancy": 3, "surface": 3, "encode": 3}  # `c` goes no farther than reading
    steps["write"] = 3 + 1 + 1  # each object, the end of the tar, the rows
    looks = 2 * sum(steps.values()) + 2  # at both ends of each step, and at both ends of it all
    assert built.stats["seconds"] == steps | {"total": looks - 1}


def test_an_object_known_by_its_depth_alone_has_its_surface_from_there(built: Built) -> None:
    assert {key: row["surface"] for key, row in built.rows.items()} == {
        "a": "closed form",
        "b": "depth",
        "e": "closed form",
    }
    assert {row["surface_points"] for row in built.rows.values()} == {100}


@pytest.mark.parametrize("key", ["a", "b", "e"])
def test_each_surface_point_has_its_own_normal(built: Built, key: str) -> None:
    """On a sphere around the origin a point's normal is its direction, whether it was sampled or comes from depth."""
    points, normals = built.surface(key)
    assert points.shape == normals.shape == (100, 3)
    assert (normals - points / points.norm(dim=-1, keepdim=True)).abs().max() < 2e-3
    assert len(torch.unique(points, dim=0)) == 100


def test_objects_with_the_same_samples_draw_different_ones(built: Built) -> None:
    """All spheres are sampled in the same 500 directions; which 100 of them stay follows from the key."""
    drawn = [
        {tuple(row) for row in (points / points.norm(dim=-1, keepdim=True)).mul(1000).round().int().tolist()}
        for points, _ in map(built.surface, ("a", "e"))
    ]
    assert len(drawn[0] & drawn[1]) < 60  # 20 by chance


def test_a_sample_and_its_row_name_the_split_also_where_the_tar_names_none(built: Built) -> None:
    assert built.job.split == "train"
    for key in ("a", "e"):
        assert built.meta(key)["split"] == "train"
        assert built.rows[key]["split"] == "train"


def test_only_depth_of_input_views_counts_as_refused_and_each_view_once(built: Built) -> None:
    """Strays of `b` and `e` in an orbit view are 4 and 2, and each has a pixel beside the cube; those of test views and of a
    view that repeats another are nobody's."""
    refused = {"a": 0, "b": 4 + 1, "e": 2 + 1}
    assert {key: built.meta(key)["refused_points"] for key in refused} == refused
    assert {key: row["refused_points"] for key, row in built.rows.items()} == refused
    assert built.stats["refused_points"] == 8


@pytest.mark.parametrize(("member", "view"), [("depth.03.jls", "views"), ("test.depth.05.jls", "test_views")])
def test_stray_depth_is_stored_as_no_surface_in_input_and_in_test_views(built: Built, member: str, view: str) -> None:
    meta, codes = built.meta("e"), jpegls_decode(built.members("e")[member])
    truth = getattr(sphere_object("e"), view).depth[int(member.partition("depth.")[2][:2])]
    stored = meta["depth_offset"] + meta["depth_scale"] * (torch.from_numpy(codes.astype(np.float64)) - 1)
    assert not codes[0, :3].any()
    assert (torch.where(torch.from_numpy(codes > 0), stored, 0.0) - truth).abs().max() <= meta["depth_scale"] / 2
    assert meta["depth_scale"] == 2.0**-13  # the strays stretch no code


def test_a_shard_holds_until_its_fingerprint_a_file_or_its_stats_change(built: Built, tmp_path: Path) -> None:
    job = built.job
    cache = HashCache(tmp_path / "hashes.json")
    assert holds(job, cache)
    assert not holds(replace(job, fingerprint="of other objects"), cache)
    rows = job.rows.read_bytes()
    job.rows.write_bytes(rows[:-1] + bytes([rows[-1] ^ 1]))
    assert not holds(job, cache)
    job.rows.write_bytes(rows)
    assert holds(job, cache)
    stats = job.stats.read_bytes()
    job.stats.write_text("[]")
    assert read_stats(job) is None
    assert not holds(job, cache)
    job.stats.write_bytes(stats)
