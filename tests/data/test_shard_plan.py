"""Which shards there are and when one is stale: everything that its bytes depend on is in its fingerprint, and nothing else."""

import json
import os
import tarfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

from geolrm.config import Shard
from geolrm.data import shard_plan
from geolrm.data.shard_plan import TEST_SURFACE_POINTS, HashCache, ObjectTar, find_objects, plan_shards, split_of

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
    monkeypatch.setattr(shard_plan, "hash_file", lambda path, _: hashed.append(path.name) or f"hash {len(hashed)}")
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


def test_the_split_is_remembered_with_the_hash_and_read_again_with_a_changed_tar(tmp_path: Path, monkeypatch) -> None:
    looked: list[str] = []
    monkeypatch.setattr(shard_plan, "split_of", lambda path: looked.append(path.name) or split_of(path))

    def look() -> tuple[str, int]:
        cache = HashCache(tmp_path / "hashes.json")
        (found,) = find_objects(tmp_path, cache, 1)
        cache.save()
        return found.split, len(looked)

    os.utime(tar(tmp_path / "a.tar", {"split": "val"}), ns=(0, 1000))
    assert (look(), look()) == (("val", 1), ("val", 1))
    os.utime(tar(tmp_path / "a.tar", {"split": "test"}), ns=(0, 2000))
    assert (look(), look()) == (("test", 2), ("test", 2))


def test_a_hash_remembered_without_its_split_is_no_answer_to_who_asks_for_the_split(tmp_path: Path) -> None:
    file = tar(tmp_path / "a.tar", {"split": "val"})

    def look(with_split: bool) -> object:
        cache = HashCache(tmp_path / "hashes.json")
        found = cache.entry(file, with_split=with_split)
        cache.save()
        return found.get("split")

    assert look(False) is None
    assert look(True) == "val"
    assert look(False) == "val"
    assert json.loads((tmp_path / "hashes.json").read_bytes())[str(file)]["split"] == "val"  # kept for who asks next


def test_what_a_writer_has_just_hashed_is_not_hashed_again_until_it_changes(tmp_path: Path, monkeypatch) -> None:
    file, remembered = tmp_path / "a", tmp_path / "hashes.json"
    file.write_text("one")
    os.utime(file, ns=(0, 1000))
    cache = HashCache(remembered)
    cache.remember(file, "as its writer says")
    cache.save()
    monkeypatch.setattr(shard_plan, "hash_file", lambda *_: "hashed")
    assert HashCache(remembered).entry(file)["sha256"] == "as its writer says"
    os.utime(file, ns=(0, 2000))
    assert HashCache(remembered).entry(file)["sha256"] == "hashed"


@pytest.mark.parametrize(("asked", "test"), [(100, TEST_SURFACE_POINTS), (200_000, 200_000)])
def test_test_objects_keep_what_geometry_needs_or_what_is_asked_for_if_that_is_more(asked: int, test: int) -> None:
    objects = [ObjectTar(split, split, f"{split}.tar", "0" * 64, 1) for split in ("train", "val", "test")]
    jobs = plan_shards(objects, Path("here"), "made-up", SETTINGS.model_copy(update={"surface_points": asked}))
    assert {job.split: job.surface_points for job in jobs} == {"train": asked, "val": asked, "test": test}
