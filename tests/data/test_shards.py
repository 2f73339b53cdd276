"""Claims about the shard format: what goes in comes out, within stated bounds, as the documented table says."""

import io
import json
import re
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from imagecodecs import zstd_decode
from spheres import sphere_object, write_spheres

from geolrm.cameras import Cameras
from geolrm.config import Shard
from geolrm.data import shards
from geolrm.data.shard_build import build_shard
from geolrm.data.shard_plan import TEST_SURFACE_POINTS, HashCache, ObjectTar, ShardJob, find_objects, plan_shards
from geolrm.failures import BadInput
from geolrm.views import Views

DOCUMENT = Path(__file__).parents[2] / "docs" / "shard-format.md"
PARAMS = Shard(voxel_resolution=16, objects_per_shard=3, surface_points=200, workers=1, max_drop_rate=0.0)


def one_job(home: Path, counts: dict[str, int]) -> ShardJob:
    write_spheres(home / "objects", counts)
    (home / "shards").mkdir()
    objects = find_objects(home / "objects", HashCache(home / "hashes.json"), 1)
    (job,) = plan_shards(objects, home / "shards", "spheres", PARAMS)
    return job


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> ShardJob:
    job = one_job(tmp_path_factory.mktemp("format"), {"train": 2})
    build_shard(job)
    return job


def members_of(tar_path: Path, key: str) -> dict[str, bytes]:
    with tarfile.open(tar_path) as tar:
        contents = {member.name: tar.extractfile(member) for member in tar}
        return {
            name.removeprefix(f"{key}."): f.read() for name, f in contents.items() if f and name.startswith(f"{key}.")
        }


def test_colour_is_kept_to_the_bit_also_where_alpha_is_zero() -> None:
    noise = torch.randint(0, 256, (4, 37, 41), generator=torch.Generator().manual_seed(0)).float() / 255
    noise[3, :10] = 0
    colour, alpha = shards.decode_rgba(shards.encode_rgba(noise[:3], noise[3:]))
    assert torch.equal(torch.cat([colour, alpha]), noise)


def noise_views(size: tuple[int, int]) -> Views:
    """Two views of noise with 8-bit colours and coded depths, with clear rows in one and a clear margin in the other."""
    draw = torch.Generator().manual_seed(0)
    rgba = torch.randint(0, 256, (2, 4, *size), generator=draw)
    rgba[:, 3] = (2 * rgba[:, 3] - 200).clamp(0, 255)
    rgba[0, 3, : size[0] // 3] = 0
    rgba[1, 3, :, : size[1] // 2] = 0
    picture = rgba.float() / 255
    depth = torch.randint(0, 9000, (2, *size), generator=draw).clamp(min=800) - 800
    depth = torch.where(depth > 0, 1 + depth * shards.DEPTH_STEP, 0.0)
    cameras = Cameras(torch.eye(4).expand(2, 4, 4), torch.eye(3).expand(2, 3, 3))
    return Views("noise", cameras, picture[:, :3], picture[:, 3:], depth)


@pytest.mark.parametrize("background", [None, 1.0, 0.25])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((64, 64), (56, 56)),
        ((37, 41), (23, 19)),
        ((20, 30), (64, 31)),
        ((2, 3), (4, 4)),
        ((9, 9), (2, 3)),
        ((7, 9), (7, 9)),
    ],
)
def test_what_is_read_at_another_size_and_over_a_background_is_what_plain_torch_makes_of_it(
    before: tuple[int, int], after: tuple[int, int], background: float | None
) -> None:
    """Alpha and visible colour to a hundredth of an 8-bit step, depth to the bit."""
    views = noise_views(before)
    expected = views.resized(*after) if background is None else views.over(background).resized(*after)
    assert expected.depth is not None
    assert views.depth is not None
    for i in range(2):
        member = shards.encode_rgba(views.colour[i], views.alpha[i])
        colour, alpha = np.full((3, *after), np.nan, np.float32), np.full((1, *after), np.nan, np.float32)
        shards.fill_picture(shards.decode_planes(member), colour, alpha, background)
        assert (torch.from_numpy(alpha) - expected.alpha[i]).abs().max() < 2e-5
        visible = expected.alpha[i] if background is None else 1.0
        assert ((torch.from_numpy(colour) - expected.colour[i]) * visible).abs().max() < 4e-5
        scale, offset = shards.depth_code(views.depth[i], "here")
        read = np.full(after, np.nan, np.float32)
        shards.fill_depth(shards.decode_planes(shards.encode_depth(views.depth[i], scale, offset)), scale, offset, read)
        assert np.array_equal(read, expected.depth[i].numpy())


def test_the_readable_decoders_say_what_the_fast_ones_do() -> None:
    views = noise_views((37, 41))
    assert views.depth is not None
    for i in range(2):
        member = shards.encode_rgba(views.colour[i], views.alpha[i])
        pixels = torch.from_numpy(shards.decode_pixels(member).astype(np.float32) / np.float32(255)).permute(2, 0, 1)
        assert torch.equal(pixels, torch.cat(shards.decode_rgba(member)))
        scale, offset = shards.depth_code(views.depth[i], "here")
        coded = shards.encode_depth(views.depth[i], scale, offset)
        codes = torch.from_numpy(shards.decode_codes(coded).astype(np.float32))
        depth = torch.where(codes > 0, offset + scale * (codes - 1), 0.0)
        assert torch.equal(depth, shards.decode_depth(coded, scale, offset))


def test_planes_of_anything_but_bytes_in_rows_are_refused() -> None:
    from imagecodecs import zstd_encode

    for array in (np.zeros((4, 3, 2), np.uint16), np.asfortranarray(np.zeros((4, 3, 2), np.uint8))):
        file = io.BytesIO()
        np.save(file, array)
        with pytest.raises(ValueError, match="planes"):
            shards.decode_planes(zstd_encode(file.getvalue()))


def test_an_opaque_picture_keeps_its_alpha() -> None:
    colour, alpha = shards.decode_rgba(shards.encode_rgba(torch.zeros(3, 8, 8), torch.ones(1, 8, 8)))
    assert torch.equal(alpha, torch.ones(1, 8, 8))
    assert not colour.any()


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.732, 20.0])
def test_depth_error_is_below_a_twentieth_of_a_voxel_and_no_surface_stays_none(spread: float) -> None:
    depth = 1.1 + spread * torch.rand(64, 64, generator=torch.Generator().manual_seed(3))
    depth[:7] = 0
    scale, offset = shards.depth_code(depth, "here")
    back = shards.decode_depth(shards.encode_depth(depth, scale, offset), scale, offset)
    assert (back - depth).abs().max() < 1 / (20 * 128)
    assert torch.equal(back == 0, depth == 0)


def test_depth_of_objects_in_the_cube_is_coded_to_a_hundredth_of_a_voxel() -> None:
    scale, _ = shards.depth_code(torch.tensor([1.1, 2.9]), "here")
    assert scale / 2 < 1 / (100 * 128)


def test_a_span_of_depths_that_sixteen_bits_cannot_hold_is_refused() -> None:
    with pytest.raises(BadInput) as error:
        shards.depth_code(torch.tensor([1.0, 1000.0]), "here")
    assert error.value.reason == "depth_range"


def test_a_sample_holds_what_the_object_holds(job: ShardJob) -> None:
    key = "train-00000"
    members, obj = members_of(job.tar, key), sphere_object(key)
    meta = json.loads(members["meta.json"])
    kept = meta["source_views"]
    assert kept == [i for i in range(40) if i not in (24, 39)]
    assert torch.equal(shards.decode_array(members["cameras.poses.npy"]), obj.views.cameras.camera_to_world[kept])
    for i in (0, 24, 37):
        colour, alpha = shards.decode_rgba(members[f"rgba.{i:02d}.npy.zst"])
        assert torch.equal(colour, obj.views.colour[kept[i]])
        assert torch.equal(alpha, obj.views.alpha[kept[i]])
    assert obj.test_views is not None
    assert torch.equal(shards.decode_rgba(members["test.rgba.05.npy.zst"])[0], obj.test_views.colour[5])


def test_the_label_is_what_the_kept_views_hit_and_no_test_view_adds_to_it(job: ShardJob) -> None:
    members, obj = members_of(job.tar, "train-00001"), sphere_object("train-00001")
    grid = shards.decode_occupancy(members["occupancy.zst"], 16)
    assert obj.views.depth is not None
    points = obj.views.cameras.unproject(obj.views.depth)[obj.views.depth > 0]
    expected = {tuple(row) for row in torch.floor((points + 0.5) * 16).long().tolist()}
    assert {tuple(row) for row in grid.nonzero().tolist()} == expected


def test_stats_count_the_voxels_that_fewer_than_two_views_see_and_the_share_of_the_volume(job: ShardJob) -> None:
    stats = json.loads(job.stats.read_bytes())["occupancy"]
    metas = [json.loads(members_of(job.tar, f"train-0000{i}")["meta.json"]) for i in range(2)]
    assert stats["voxels"] == sum(meta["occupied_voxels"] for meta in metas)
    assert stats["share_of_volume"] == stats["voxels"] / (2 * 16**3)
    expected = 0
    for i, meta in enumerate(metas):
        views = sphere_object(f"train-0000{i}").views
        assert views.depth is not None
        views_of_voxel = Counter(
            voxel
            for view in meta["source_views"]
            for voxel in set(voxels_of(views.cameras[view].unproject(views.depth[view])[views.depth[view] > 0]))
        )
        expected += sum(count < 2 for count in views_of_voxel.values())
    assert stats["seen_once"] == expected > 0


def voxels_of(points: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(row) for row in torch.floor((points + 0.5) * 16).long().tolist()]


def test_roles_are_24_orbit_12_ring_top_and_bottom(job: ShardJob) -> None:
    roles = json.loads(members_of(job.tar, "train-00000")["meta.json"])["roles"]
    assert {role: roles.count(role) for role in set(roles)} == {"orbit": 24, "ring": 12, "top": 1, "bottom": 1}


def test_test_objects_keep_the_points_that_geometry_is_measured_against(tmp_path: Path) -> None:
    objects = [ObjectTar(f"{split}-00000", split, "a.tar", "0" * 64, 1) for split in ("train", "test")]
    points = {job.split: job.surface_points for job in plan_shards(objects, tmp_path, "made-up", PARAMS)}
    assert points == {"train": 200, "test": TEST_SURFACE_POINTS}
    assert TEST_SURFACE_POINTS >= 100_000


def test_surface_points_are_drawn_from_the_objects_own(job: ShardJob) -> None:
    members, obj = members_of(job.tar, "train-00000"), sphere_object("train-00000")
    points = shards.decode_array(members["surface.points.npy"])
    assert points.shape == (200, 3)
    assert obj.points is not None
    assert {tuple(p) for p in points.tolist()} <= {tuple(p) for p in obj.points.tolist()}
    normals = shards.decode_array(members["surface.normals.npy"]).float()
    assert ((points - points / points.norm(dim=-1, keepdim=True) * points[0].norm()).abs().max()) < 1e-5
    assert (normals - torch.nn.functional.normalize(points, dim=-1)).abs().max() < 1e-3


def test_surface_of_depth_maps_lies_on_the_surface_one_point_a_voxel() -> None:
    obj = sphere_object("a", samples=0)
    kept = shards.distinct_views(obj.views)
    assert obj.normals is not None
    points, normals = shards.surface_from_depth(kept.views, obj.normals[kept.numbers], 64)
    radius = points.norm(dim=-1)
    assert (radius - radius.mean()).abs().max() < 1e-4
    assert (normals - points / radius[:, None]).abs().max() < 1e-3
    voxels = torch.floor((points + 0.5) * 64).long()
    assert len(torch.unique(voxels, dim=0)) == len(points)


def test_an_even_draw_is_pure_and_differs_between_objects() -> None:
    first = shards.even_draw(1000, 100, "a")
    assert torch.equal(first, shards.even_draw(1000, 100, "a"))
    assert not torch.equal(first, shards.even_draw(1000, 100, "b"))
    assert len(torch.unique(first)) == 100


def test_an_object_without_surface_is_named_empty() -> None:
    cameras = Cameras(torch.eye(4).expand(2, 4, 4), torch.eye(3).expand(2, 3, 3))
    nothing = Views("a", cameras, torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8))
    with pytest.raises(BadInput) as error:
        shards.label(nothing, 16)
    assert error.value.reason == "empty_object"


def test_an_object_outside_the_cube_is_named_so() -> None:
    with pytest.raises(BadInput) as error:
        shards.label(sphere_object("a", shift=0.4).views, 16)
    assert error.value.reason == "outside_cube"


def test_a_stray_depth_is_taken_for_no_surface_and_counted() -> None:
    views = sphere_object("a").views
    assert views.depth is not None
    stray = views.depth.clone()
    stray[3, 0, 0], stray[7, 2, 5] = 160.0, 0.5
    cleaned, count = shards.without_stray_depth(replace(views, depth=stray))
    assert count == 2
    assert cleaned.depth is not None
    assert torch.equal(cleaned.depth, views.depth)
    found = shards.label(cleaned, 16, count)
    assert found.refused == 2
    assert torch.equal(found.grid, shards.label(views, 16).grid)


def test_every_hash_in_the_metadata_is_that_of_its_member(job: ShardJob) -> None:
    import hashlib

    members = members_of(job.tar, "train-00001")
    listed = json.loads(members["meta.json"])["sha256"]
    assert listed == {n: hashlib.sha256(d).hexdigest() for n, d in members.items() if n != "meta.json"}


def test_the_documented_table_describes_a_real_shard(job: ShardJob) -> None:
    members = members_of(job.tar, "train-00000")
    meta = json.loads(members["meta.json"])
    sizes = {
        "V": len(meta["roles"]),
        "T": meta["test_views"],
        "R": meta["voxel_resolution"],
        "P": meta["surface_points"],
        "H": meta["height"],
        "W": meta["width"],
    }
    counts = {"1": 1, "V": sizes["V"], "T": sizes["T"], "T > 0": int(sizes["T"] > 0)}
    described: set[str] = set()
    rows = re.findall(r"^\| `([\w.]+)` \| ([^|]+) \| ([^|]+) \| [^|]+ \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert len(rows) == 12
    for name, count, kind in rows:
        pattern = re.compile(re.escape(name).replace("VV", r"\d\d"))
        found = [member for member in members if pattern.fullmatch(member)]
        assert len(found) == counts[count], name
        described |= set(found)
        for member in found:
            assert kind_of(member, members[member], meta) == substitute(kind, sizes), member
    assert described == set(members)


def test_the_documented_fields_are_those_of_the_metadata(job: ShardJob) -> None:
    meta = json.loads(members_of(job.tar, "train-00000")["meta.json"])
    section = DOCUMENT.read_text().split("## Metadata")[1].split("## Catalog")[0]
    fields = {
        name for row in re.findall(r"^\| (`.+?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert fields == set(meta)


def substitute(kind: str, sizes: dict[str, int]) -> str:
    name, _, shape = kind.partition(" ")
    return name + " " + re.sub(r"[A-Z]", lambda letter: str(sizes[letter[0]]), shape) if shape else name


def kind_of(name: str, data: bytes, meta: dict[str, object]) -> str:
    """Type and shape of a member as the table writes them, found out without the code under test."""
    if name.endswith(".json"):
        return "json" if isinstance(json.loads(data), dict) else "?"
    plain = zstd_decode(data) if name.endswith(".zst") else data
    if name == "occupancy.zst":
        side = round((8 * len(plain)) ** (1 / 3))
        return f"bits ({side}, {side}, {side})"
    array = np.load(io.BytesIO(plain))
    return f"{array.dtype} {array.shape}"


def test_plain_webdataset_reads_the_shard(job: ShardJob) -> None:
    import webdataset

    samples = list(webdataset.WebDataset(str(job.tar), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["train-00000", "train-00001"]
    for sample in samples:
        members = members_of(job.tar, sample["__key__"])
        assert {name: data for name, data in sample.items() if not name.startswith("__")} == members


def test_a_key_that_would_split_into_others_is_refused(tmp_path: Path) -> None:
    from geolrm.data.object_tar import write_object_tar

    (tmp_path / "objects").mkdir()
    write_object_tar(tmp_path / "objects" / "a.b.tar", sphere_object("a.b"))
    (tmp_path / "shards").mkdir()
    objects = find_objects(tmp_path / "objects", HashCache(tmp_path / "hashes.json"), 1)
    (job,) = plan_shards(objects, tmp_path / "shards", "spheres", PARAMS)
    assert build_shard(job)["drops"] == {"key_characters": 1}
