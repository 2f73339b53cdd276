"""Claims about `geolrm data ls`, `show`, `stats` and `verify`: the numbers are the shards', and no fault stays unnamed."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from spheres import build_all, sphere_object

from geolrm import cli
from geolrm.data.catalog import read_catalog, read_rows, rows_to_parquet
from geolrm.data.inventory import merged_stats, table

COUNTS = {"train": 3, "val": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inventory")
    (root / "spheres" / "smoke").mkdir(parents=True)
    build_all(root / "spheres" / "smoke", COUNTS)
    return root


@pytest.fixture
def home(root: Path, tmp_path: Path) -> Path:
    """A copy of the data set, to be damaged."""
    shutil.copytree(root / "spheres" / "smoke", tmp_path / "smoke")
    return tmp_path / "smoke"


def data(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["geolrm", "data", *arguments])
    try:
        return cli.main()
    except SystemExit as end:
        return int(end.code or 0)


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def places(home: Path, key: str) -> dict[str, tuple[int, int]]:
    rows = read_catalog(home / "catalog.parquet").to_pylist()
    members = next(row["members"] for row in rows if row["key"] == key)
    return {member["name"]: (member["offset"], member["size"]) for member in members}


# --- ls, show, stats ---


def test_ls_lists_data_sets_then_shards_then_objects(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data(monkeypatch, "ls", str(root)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["folder", "shards", "objects", "dropped", "bytes", "splits"]
    assert lines[1].split()[1:4] == ["3", "4", "0"]
    assert lines[1].endswith("train 3, val 1")
    home = root / "spheres" / "smoke"
    assert data(monkeypatch, "ls", str(home)) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    sizes = [f"{(home / 'shards' / name).stat().st_size:,}" for name in ("train-000000.tar", "train-000001.tar")]
    assert [line.split() for line in lines[:2]] == [
        ["train-000000.tar", "2", "0", sizes[0]],
        ["train-000001.tar", "1", "0", sizes[1]],
    ]
    assert data(monkeypatch, "ls", str(home), "--objects", "--split", "val") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].split()[:5] == ["val-00000", "val", "val-000000.tar", "38", "16"]


def test_a_folder_without_shards_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("ls", "stats", "verify"):
        assert data(monkeypatch, verb, str(tmp_path)) == 1
        assert "[shards_missing]" in capsys.readouterr().err


def test_show_names_one_object_and_draws_its_views(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, sheet = root / "spheres" / "smoke", tmp_path / "sheet.png"
    assert data(monkeypatch, "show", str(home), "train-00002", "--sheet", str(sheet)) == 0
    shown = capsys.readouterr().out
    assert "train-000001.tar" in shown
    assert "CC0-1.0" in shown
    assert "38 of 24 x 24 (orbit 24, top 1, bottom 1, ring 12)" in shown
    tile = np.asarray(Image.open(sheet))[4 : 4 + 128, 4 : 4 + 128][52:76, 52:76]  # the first view, not enlarged
    first = sphere_object("train-00002").views[:1]
    expected = (first.colour[0] * first.alpha[0] + 1 - first.alpha[0]).permute(1, 2, 0).numpy() * 255
    assert np.abs(tile - expected).max() < 1


def test_show_of_an_unknown_object_names_its_neighbours(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data(monkeypatch, "show", str(root / "spheres" / "smoke"), "train-0002") == 1
    complaint = capsys.readouterr().err
    assert "[object_unknown]" in complaint
    assert "train-00002" in complaint


def test_stats_are_the_sums_over_the_shards(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = root / "spheres" / "smoke"
    assert data(monkeypatch, "stats", str(home), "--json") == 0
    merged = json.loads(capsys.readouterr().out)
    rows = read_catalog(home / "catalog.parquet").to_pylist()
    members = [member for row in rows for member in row["members"]]
    assert (merged["shards"], merged["objects_in"], merged["objects_out"]) == (3, 4, 4)
    assert merged["objects_by_split"] == COUNTS
    assert merged["bytes_out"] == sum(path.stat().st_size for path in (home / "shards").glob("*.tar"))
    assert merged["bytes_by_member"]["rgba"] == sum(m["size"] for m in members if m["name"].startswith("rgba."))
    assert merged["share_of_volume"] == sum(row["occupied_voxels"] for row in rows) / (4 * 16**3) > 0
    assert merged["voxels_seen_by_fewer_than_two_views"] == sum(row["voxels_seen_once"] for row in rows) > 0
    assert data(monkeypatch, "stats", str(home)) == 0
    words = capsys.readouterr().out
    assert "4 (train 3, val 1)" in words
    assert "0 of 4 (none)" in words


def test_drops_are_summed_by_reason(home: Path) -> None:
    for name in ("train-000000", "train-000001"):
        path = home / "shards" / f"{name}.stats.json"
        stats = json.loads(path.read_text())
        path.write_text(json.dumps(stats | {"objects_in": stats["objects_in"] + 1, "drops": {"tar_truncated": 1}}))
    merged = merged_stats(home)
    assert merged["dropped_by_reason"] == {"tar_truncated": 2}
    assert merged["objects_in"] - merged["objects_out"] == 2


def test_numbers_stand_to_the_right_of_their_columns() -> None:
    assert table([["a", "n"], ["one", 5], ["two", 12345]]) == ["a         n", "one       5", "two  12,345"]


# --- verify ---


def test_verify_hashes_every_member_of_a_whole_folder(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data(monkeypatch, "verify", str(root / "spheres" / "smoke")) == 0
    said = capsys.readouterr()
    members = 4 * len(places(root / "spheres" / "smoke", "val-00000")) - 4  # meta.json is hashed too, by the row
    assert f"3 shards, 4 objects, {members} members" in said.out
    assert "no faults" in said.out
    assert "fault:" not in said.err


def verdict(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert data(monkeypatch, "verify", str(home)) == 1
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("fault: ")]


@pytest.mark.parametrize("member", ["meta.json", "rgba.07.npy.zst", "occupancy.zst", "test.depth.15.npy.zst"])
def test_verify_names_the_file_and_the_member_of_a_changed_byte(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], member: str
) -> None:
    flip(home / "shards" / "train-000000.tar", places(home, "train-00001")[member][0] + 20)
    (fault,) = verdict(home, monkeypatch, capsys)
    assert f"train-000000.tar: train-00001.{member}: " in fault
    assert "[shard_corrupt]" in fault


def test_verify_names_every_member_that_a_cut_took(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offset, size = places(home, "val-00000")["rgba.30.npy.zst"]
    os.truncate(home / "shards" / "val-000000.tar", offset + size // 2)
    lost = {name for name, (start, _) in places(home, "val-00000").items() if start >= offset}
    faults = verdict(home, monkeypatch, capsys)
    assert {fault.partition("val-00000.")[2].partition(": ")[0] for fault in faults} == lost
    assert all("[shard_truncated]" in fault for fault in faults)


def test_verify_names_each_kind_of_damage_to_the_files_around_the_members(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, pristine = home / "shards", home.with_name("pristine")
    shutil.copytree(home, pristine)

    def faults() -> list[str]:
        found = verdict(home, monkeypatch, capsys)
        shutil.rmtree(home)
        shutil.copytree(pristine, home)
        return found

    flip(shards / "train-000000.tar", 3)  # in a header: no member's byte
    (fault,) = faults()
    assert fault.startswith(f"fault: {shards / 'train-000000.tar'}: ")
    assert "[shard_differs]" in fault

    for name, reason in (("tar", "shard_missing"), ("parquet", "rows_missing"), ("stats.json", "stats_missing")):
        (shards / f"val-000000.{name}").unlink()
        (fault,) = faults()
        assert f"val-000000.{name}: " in fault
        assert f"[{reason}]" in fault

    for path in shards.glob("val-*"):
        path.unlink()
    (fault,) = faults()
    assert f"{shards / 'val-000000.tar'}: the catalog names it" in fault

    flip(shards / "val-000000.parquet", 40)
    (fault,) = faults()
    assert "val-000000.parquet: " in fault
    assert "[rows_corrupt]" in fault

    (shards / "val-000000.stats.json").write_text("{}")
    (fault,) = faults()
    assert "[stats_unreadable]" in fault

    (home / "catalog.parquet").unlink()
    (fault,) = faults()
    assert "[catalog_missing]" in fault

    (home / "catalog.parquet").write_bytes(b"PAR1 and no more")
    (fault,) = faults()
    assert "[catalog_unreadable]" in fault

    rows = read_rows(home / "catalog.parquet").to_pylist()
    (home / "catalog.parquet").write_bytes(rows_to_parquet([rows[0] | {"licence": "CC-BY-4.0"}, *rows[1:]]))
    (fault,) = faults()
    assert "its rows of train-000000.tar are not those of train-000000.parquet" in fault
    assert "[catalog_differs]" in fault


def test_a_temporary_file_of_a_killed_writer_is_no_fault(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "shards" / ".train-000000.tar.99.tmp").write_bytes(b"half")
    assert data(monkeypatch, "verify", str(home)) == 0
