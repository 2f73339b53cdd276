"""Claims about the way from a server straight to shards: the bytes of the two steps, never more than a few objects on disk."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from misbehaving_server import Page, Server, serving
from s3_server import s3_server
from served_sources import serve_gobjaverse, tar_address
from source_files import gobjaverse_tar, gobjaverse_views
from spheres import write_params

from geolrm import cli
from geolrm.data import gobjaverse, shard_build
from geolrm.data.addresses import read_addresses, shared
from geolrm.data.fetch import Ledger
from geolrm.data.places import place
from geolrm.data.verification import verify
from geolrm.download import Manners
from pipelines import shard as stage

REPOSITORY = Path(__file__).parents[2]
NAMES = [f"{i % 3}/{i}" for i in range(10, 17)]
QUICK = ["--timeout", "2", "--attempts", "3", "--requests-per-second", "1000", "--workers", "2"]


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, bytes]]:
    return {name: gobjaverse_views(name, size=32) for name in NAMES}


@dataclass
class Place:
    """A folder of data sets, and the server that has one."""

    root: Path
    server: Server

    @property
    def home(self) -> Path:
        return self.root / "data" / "gobjaverse" / "smoke"

    def fetch(self, *more: object) -> int:
        common = ["--root", self.root / "data", "--base-url", self.server.url, "--params", self.root / "params.yaml"]
        arguments = ["geolrm", "data", "fetch", "gobjaverse", *common, *QUICK, *more]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", list(map(str, arguments)))
            try:
                return cli.main() or 0
            except SystemExit as ended:
                return int(ended.code or 0)

    def shard(self, output: str | None = None) -> int:
        """The stage, its shards built in this process as workers build them."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stage, "build_shards", lambda jobs, *_: [stage.build(job) for job in jobs] and [])
            return stage.shard(
                "gobjaverse", params=self.root / "params.yaml", root=self.root / "data", output=output, workers=1
            )

    def asked(self) -> int:
        """Requests for objects so far."""
        return sum("objaverse_tar" in path for path, _ in self.server.requests)

    def stats(self) -> dict[str, Any]:
        return {path.name.partition(".")[0]: json.loads(path.read_bytes()) for path in self.home.glob("shards/*.json")}

    def drops(self) -> dict[str, str]:
        return {drop["key"]: drop["reason"] for entry in self.stats().values() for drop in entry["dropped"]}


@pytest.fixture
def here(tmp_path: Path, objects: dict[str, dict[str, bytes]]) -> Iterator[Place]:
    with serving() as server:
        serve_gobjaverse(server, objects, {"Poor-quality": ["9/99"]})
        for name in NAMES[::2]:  # the other form on disk
            server.pages[tar_address(name)] = Page(gobjaverse_tar(name.partition("/")[2], objects[name], level=""))
        write_params(tmp_path / "params.yaml", max_drop_rate=0.0)
        yield Place(tmp_path, server)


def products(home: Any) -> dict[str, bytes]:
    names = sorted(path.name for path in (home / "shards").iterdir() if not path.name.endswith(".stats.json"))
    return {name: (home / "shards" / name).read_bytes() for name in names} | {
        "catalog.parquet": (home / "catalog.parquet").read_bytes()
    }


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory, objects: dict[str, dict[str, bytes]]) -> Place:
    """What fetching to object tars and then sharding them makes of the same objects."""
    root = tmp_path_factory.mktemp("two-steps")
    with serving() as server:
        serve_gobjaverse(server, objects, {"Poor-quality": ["9/99"]})
        for name in NAMES[::2]:
            server.pages[tar_address(name)] = Page(gobjaverse_tar(name.partition("/")[2], objects[name], level=""))
        write_params(root / "params.yaml", max_drop_rate=0.0)
        made = Place(root, server)
        assert made.fetch() == 0
        assert made.shard() == 0
    return made


def test_straight_from_a_server_that_misbehaves_come_the_bytes_of_the_two_steps(here: Place, two_steps: Place) -> None:
    assert here.fetch("--addresses") == 0
    for name, fault in zip(NAMES, ["stall", "reset", "short", "busy", 500, "html", "disguised"], strict=True):
        here.server.faults[tar_address(name)] = [fault]
    assert here.shard() == 0
    assert products(here.home) == products(two_steps.home)
    assert verify(here.home).faults == []
    assert sorted(path.name for path in here.home.iterdir()) == [
        "addresses.json",
        "catalog.parquet",
        "fetch.jsonl",
        "fetch.stats.json",
        "shard-hashes.json",
        "shards",
    ]


def test_what_came_is_in_the_ledger_with_its_size_and_hash(here: Place, two_steps: Place) -> None:
    here.fetch("--addresses")
    here.shard()
    found, whole = (Ledger(each.home / "fetch.jsonl").records for each in (here, two_steps))
    assert sorted(found) == sorted(whole) == sorted(map(gobjaverse.key_of, NAMES))
    for key, record in found.items():
        assert (record.file, record.source_bytes, record.source_sha256) == (
            "",
            whole[key].source_bytes,
            whole[key].source_sha256,
        )


def test_an_address_is_asked_for_once_and_not_again_while_its_shard_holds(here: Place) -> None:
    here.fetch("--addresses")
    assert here.asked() == 3  # which had to land depth on depth
    here.shard()
    assert here.asked() == 3 + len(NAMES)
    here.shard()
    here.fetch("--addresses")
    assert here.asked() == 3 + len(NAMES)
    first = sorted(here.home.glob("shards/*.tar"))[0]
    held = here.stats()[first.stem]["objects_in"]
    first.unlink()
    here.shard()
    assert here.asked() == 3 + len(NAMES) + held


def test_the_same_goes_into_a_store(
    here: Place, two_steps: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here.fetch("--addresses")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    with s3_server("straight") as (_, variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert here.shard("s3://straight/data") == 0
        assert products(place("s3://straight/data/gobjaverse/smoke")) == products(two_steps.home)
    assert list((tmp_path / "scratch").iterdir()) == []
    assert not (here.home / "shards").exists()


def test_only_a_few_objects_lie_on_the_disk_at_any_moment(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are connections, and the one that is being encoded, however many a shard has."""
    write_params(here.root / "params.yaml", max_drop_rate=0.0, objects_per_shard=100)
    here.fetch("--addresses")
    seen: list[set[str]] = []

    def look() -> int:
        names = [path.name for path in (here.home / "shards").glob(".*.tmp")]
        seen.append({key for key in map(gobjaverse.key_of, NAMES) for name in names if f".{key}." in name})
        return len(seen[-1])

    def encode(*arguments: Any) -> Any:
        deadline = time.monotonic() + 60
        while look() < 3 and here.asked() < 3 + len(NAMES) and time.monotonic() < deadline:
            time.sleep(0.01)  # for what is fetched ahead
        return encode_tar(*arguments)

    def write(*arguments: Any) -> Any:
        look()
        return write_object(*arguments)

    encode_tar, write_object = shard_build.encode_tar, gobjaverse.write_object
    monkeypatch.setattr(shard_build, "encode_tar", encode)
    monkeypatch.setattr(gobjaverse, "write_object", write)
    assert here.shard() == 0
    largest = max(entry["objects_in"] for entry in here.stats().values())
    assert largest >= 6
    assert max(map(len, seen)) == 3
    assert here.server.most_open <= 2
    assert not list((here.home / "shards").glob(".*"))


def test_each_way_in_which_an_object_fails_is_named_and_every_other_arrives(
    here: Place, two_steps: Place, objects: dict[str, dict[str, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    here.fetch("--addresses")
    pages, good = here.server.pages, objects[NAMES[0]]
    spoilt = good | {"00007/00007.png": good["00007/00007.png"][:-9] + b"123456789"}
    del pages[tar_address(NAMES[1])]
    pages[tar_address(NAMES[0])] = Page(gobjaverse_tar("10", spoilt))
    pages[tar_address(NAMES[2])] = Page(gobjaverse_tar("12", {k: v for k, v in good.items() if k[:5] != "00039"}))
    deep = objects[NAMES[6]] | {
        "00007/00007_nd.exr": good["00007/00007_nd.exr"][:4] + bytes(2000)
    }  # found by decoding alone
    pages[tar_address(NAMES[6])] = Page(gobjaverse_tar(NAMES[6].partition("/")[2], deep))
    here.server.faults[tar_address(NAMES[3])] = ["html"] * 3
    here.server.faults[tar_address(NAMES[4])] = [500] * 3
    here.server.faults[tar_address(NAMES[5])] = ["short"] * 3
    assert here.shard() == 1
    expected = ["image_unreadable", "http_not_found", "view_missing", "html_page", "http_status", "length_mismatch"]
    expected.append("exr_unreadable")
    assert here.drops() == dict(zip(map(gobjaverse.key_of, NAMES), expected, strict=True))
    assert "7 of 7 objects dropped" in capsys.readouterr().err
    assert ".tmp" not in json.dumps(here.stats())  # places are told by their address
    here.shard()  # what the server may mend is asked for again, and nothing else
    assert sorted(here.drops().values()) == sorted([*expected[:4], expected[6]])
    asked = here.asked()
    here.shard()
    assert here.asked() == asked
    kept = {gobjaverse.key_of(name) for name in NAMES[4:6]}
    members = [
        {m["name"]: m["size"] for m in row["members"]} | {"key": row["key"], "sha256": row["sha256"]}
        for home in (here.home, two_steps.home)
        for row in stage_rows(home)
        if row["key"] in kept
    ]
    assert members[: len(kept)] == members[len(kept) :]


def stage_rows(home: Path) -> list[dict[str, Any]]:
    from geolrm.data.catalog import read_catalog

    return sorted(read_catalog(home / "catalog.parquet").to_pylist(), key=lambda row: row["key"])


def test_other_bytes_than_before_are_refused_until_the_ledger_says_otherwise(
    here: Place, objects: dict[str, dict[str, bytes]]
) -> None:
    here.fetch("--addresses")
    here.shard()
    changed, key = NAMES[1], gobjaverse.key_of(NAMES[1])
    here.server.pages[tar_address(changed)].body += bytes(10240)
    write_params(here.root / "params.yaml", max_drop_rate=0.0, surface_points=90)
    assert here.shard() == 1
    assert here.drops() == {key: "source_changed"}
    ledger = here.home / "fetch.jsonl"
    ledger.write_text("".join(line + "\n" for line in ledger.read_text().splitlines() if f'"{key}"' not in line))
    assert here.shard() == 0
    assert here.drops() == {}


@pytest.mark.slow
def test_killed_and_run_again_it_fetches_only_what_no_finished_shard_holds(here: Place, two_steps: Place) -> None:
    here.fetch("--addresses")
    command = [sys.executable, "-m", "pipelines.shard", "--dataset", "gobjaverse", "--workers", "1"]
    command += ["--root", str(here.root / "data"), "--params", str(here.root / "params.yaml")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    here.server.delay = 0.2
    with subprocess.Popen(command, env=environment, cwd=REPOSITORY, **quiet) as process:
        deadline = time.monotonic() + 240
        while not list(here.home.glob("shards/*.stats.json")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        others = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert not psutil.wait_procs(others, timeout=60)[1]  # its workers end with it
    here.server.delay = 0.0
    left = len(NAMES) - sum(entry["objects_in"] for entry in here.stats().values())
    asked = here.asked()
    assert here.shard() == 0
    assert here.asked() == asked + left < asked + len(NAMES)
    assert products(here.home) == products(two_steps.home)
    assert len(Ledger(here.home / "fetch.jsonl").records) == len(NAMES)  # also of those that the killed run had fetched


def test_what_it_would_cost_is_said_and_nothing_is_written(here: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert here.fetch("--addresses", "--dry-run") == 0
    said = capsys.readouterr().out
    assert f"objects   {len(NAMES)} to fetch, 0 there" in said
    assert "16% of what comes is kept" in said
    assert all(word in said for word in ("download", "hours", "disk"))
    assert not here.home.exists()
    here.fetch("--addresses")
    here.shard()
    capsys.readouterr()
    here.fetch("--addresses", "--dry-run")
    assert f"0 to fetch, {len(NAMES)} there" in capsys.readouterr().out


def test_what_does_not_land_depth_on_depth_is_not_written_down(
    here: Place, objects: dict[str, dict[str, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in NAMES:
        files = dict(objects[name])
        for view in range(40):
            record = json.loads(files[f"{view:05d}/{view:05d}.json"])
            turned = {axis: [-value for value in record[axis]] for axis in "yz"}
            files[f"{view:05d}/{view:05d}.json"] = json.dumps(record | turned).encode()
        here.server.pages[tar_address(name)] = Page(gobjaverse_tar(name.partition("/")[2], files))
    assert here.fetch("--addresses") == 1
    assert "reprojection" in capsys.readouterr().err
    assert not (here.home / "addresses.json").exists()
    assert here.asked() == 3


def test_a_tar_that_lies_here_is_not_fetched_again(here: Place) -> None:
    here.fetch("--limit", "4")
    here.fetch("--addresses")
    asked = here.asked()
    assert here.shard() == 0
    assert here.asked() == asked + len(NAMES) - 4


def test_a_list_that_is_none_and_options_that_exclude_each_other_are_named(
    here: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert here.fetch("--addresses", "--source", here.root) == 1
    here.fetch("--addresses")
    (here.home / "addresses.json").write_text("[]")
    with pytest.raises(ValueError, match="addresses_unreadable"):
        read_addresses(here.home)


def test_workers_share_the_manners() -> None:
    manners = Manners(connections=8, requests_per_second=10, timeout=5, attempts=2)
    assert shared(manners, 4) == Manners(2, 2.5, 5, 2)
    assert shared(manners, 20) == Manners(1, 0.5, 5, 2)
