"""Which shards there are and when one is stale: everything that its bytes depend on is in its fingerprint, and nothing else."""

import json
import os
import tarfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from spheres import sphere_object

from geolrm.config import Shard
from geolrm.data import shard_plan
from geolrm.data.object_tar import write_object_tar
from geolrm.data.shard_build import build_shard
from geolrm.data.shard_plan import HashCache, ObjectTar, find_objects, holds, plan_shards, read_stats, split_of

SETTINGS = Shard(voxel_resolution=16, objects_per_shard=2, surface_points=100, workers=1, max_drop_rate=0.0)
OBJECTS = [
    ObjectTar(f"{key}", split, f"{key}.tar", key * 64, 10)
    for key, split in zip("dbca", ("train",) * 3 + ("val",), strict=True)
]


def fingerprints(objects=OBJECTS, dataset="made-up", settings=SETTINGS, folder=Path("here")) -> list[str]:
    return [job.fingerprint for job in plan_shards(objects, folder, dataset, settings)]


def test_keys_are_sorted_within_a_split_and_cut_into_numbered_shards() -> None:
    jobs = plan_shards(OBJECTS, Path("here"), "made-up", SETTINGS)
    assert [(job.name, [item.key for item in job.objects]) for job in jobs] == [
        ("train-000000", ["b", "c"]),
        ("train-000001", ["d"]),
        ("val-000000", ["a"]),
    ]
    assert fingerprints(OBJECTS[::-1]) == fingerprints()


@pytest.mark.parametrize("changed", ["format", "codec", "data set", "resolution", "points", "content", "key"])
def test_whatever_shapes_the_bytes_of_a_shard_changes_its_fingerprint(changed: str, monkeypatch) -> None:
    before, given = fingerprints(), {}
    if changed == "format":
        monkeypatch.setattr(shard_plan, "FORMAT_VERSION", 99)
    elif changed == "codec":
        monkeypatch.setattr(shard_plan, "codec_versions", lambda: {"imagecodecs": "99"})
    elif changed == "data set":
        given = {"dataset": "another"}
    elif changed in ("resolution", "points"):
        name = {"resolution": "voxel_resolution", "points": "surface_points"}[changed]
        given = {"settings": SETTINGS.model_copy(update={name: 32})}
    else:
        one = replace(OBJECTS[0], **{"content": {"sha256": "f" * 64}, "key": {"key": "e"}}[changed])
        given = {"objects": [one, *OBJECTS[1:]]}
    after = fingerprints(**given)
    stale = [old != new for old, new in zip(before, after, strict=True)]
    assert stale == ([False, True, False] if changed in ("content", "key") else [True] * 3)


def test_where_the_objects_and_the_shards_lie_does_not() -> None:
    elsewhere = [replace(item, path=f"/elsewhere/{item.path}") for item in OBJECTS]
    assert fingerprints(elsewhere, folder=Path("there")) == fingerprints()


def test_a_file_is_hashed_once_and_again_only_when_its_size_or_time_changes(tmp_path: Path, monkeypatch) -> None:
    hashed = []
    monkeypatch.setattr(shard_plan, "sha256_of", lambda path: hashed.append(path.name) or f"hash {len(hashed)}")
    file, remembered = tmp_path / "a", tmp_path / "hashes.json"

    def look() -> int:
        cache = HashCache(remembered)
        cache.entry(file)
        cache.save()
        return len(hashed)

    file.write_text("one")
    os.utime(file, ns=(0, 1000))
    assert (look(), look()) == (1, 1)
    os.utime(file, ns=(0, 2000))
    assert (look(), look()) == (2, 2)
    file.write_text("longer")
    os.utime(file, ns=(0, 2000))
    assert (look(), look()) == (3, 3)
    remembered.write_text('{"cut')
    assert (look(), look()) == (4, 4)


def tar(path: Path, meta: object, name: str = "key/meta.json") -> Path:
    with tarfile.open(path, "w") as file:
        content = json.dumps(meta).encode()
        member = tarfile.TarInfo(name)
        member.size = len(content)
        file.addfile(member, BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("name", "meta", "split"),
    [
        ("train-1.tar", {"split": "val"}, "val"),  # its metadata says so, whatever its name
        ("val-1.tar", {}, "val"),
        ("test-1.tar", {"split": "Not a name!"}, "test"),
        ("val-1.tar", {"split": 3}, "val"),
        ("val-1.tar", ["no", "object"], "val"),
        ("12_3456.tar", {}, "train"),
        ("chair-1.tar", {}, "train"),  # a dash alone makes no split
    ],
)
def test_the_split_of_an_object_is_that_of_its_metadata_else_of_its_name(tmp_path: Path, name, meta, split) -> None:
    assert split_of(tar(tmp_path / name, meta)) == split


def test_a_broken_tar_is_counted_in_the_split_that_its_name_says(tmp_path: Path) -> None:
    (tmp_path / "val-1.tar").write_bytes(b"no tar")
    assert split_of(tmp_path / "val-1.tar") == "val"
    assert split_of(tar(tmp_path / "test-1.tar", {"split": "val"}, "key/deeper/meta.json")) == "test"


def test_what_a_writer_has_not_finished_is_no_object(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", {"split": "val"})
    tar(tmp_path / ".b.tar", {})
    (found,) = find_objects(tmp_path, HashCache(tmp_path / "hashes.json"), 1)
    assert (found.key, found.split, found.bytes) == ("a", "val", (tmp_path / "a.tar").stat().st_size)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory):
    """A shard of three objects: whole; known by its depth alone; under another name than its own."""
    home = tmp_path_factory.mktemp("built")
    (home / "shards").mkdir()
    (home / "objects").mkdir()
    write_object_tar(home / "objects" / "a.tar", sphere_object("a"))
    write_object_tar(home / "objects" / "b.tar", sphere_object("b", samples=0))
    write_object_tar(home / "objects" / "c.tar", sphere_object("d"))
    settings = SETTINGS.model_copy(update={"objects_per_shard": 3})
    objects = find_objects(home / "objects", HashCache(home / "hashes.json"), 1)
    (job,) = plan_shards(objects, home / "shards", "made-up", settings)
    return job, build_shard(job)


def test_the_stats_add_up_what_went_in_and_what_came_out(built) -> None:
    job, stats = built
    assert (stats["objects_in"], stats["objects_out"], stats["drops"]) == (3, 2, {"key_mismatch": 1})
    assert stats["bytes_in"] == sum(Path(item.path).stat().st_size for item in job.objects)
    assert stats["bytes_out"] == job.tar.stat().st_size
    with tarfile.open(job.tar) as shard:
        members = {member.name.partition(".")[2]: member.size for member in shard if member.name.startswith("a.")}
        every = sum(member.size for member in shard)
    assert {"rgba", "depth", "occupancy", "surface", "cameras", "meta", "test.rgba", "test.depth"} <= set(
        stats["member_bytes"]
    )
    assert sum(stats["member_bytes"].values()) == every
    assert stats["member_bytes"]["rgba"] > sum(size for name, size in members.items() if name.startswith("rgba."))
    assert 0 < sum(value for name, value in stats["seconds"].items() if name != "total") <= stats["seconds"]["total"]


def test_an_object_known_by_its_depth_alone_has_its_surface_from_there(built) -> None:
    import pyarrow.parquet as parquet

    rows = {row["key"]: row for row in parquet.read_table(built[0].rows).to_pylist()}
    assert (rows["a"]["surface"], rows["b"]["surface"]) == ("closed form", "depth")
    assert (rows["a"]["surface_points"], rows["b"]["surface_points"]) == (100, 100)


def test_a_shard_holds_until_its_fingerprint_a_file_or_its_stats_change(built, tmp_path: Path) -> None:
    job, _ = built
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
