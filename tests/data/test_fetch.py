"""`geolrm data fetch` from a server on loopback that serves the real layouts, and misbehaves: what fails is counted and named,
the rest arrives, a second run does only what is missing."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from misbehaving_server import Page, Server, serving
from served_sources import fuel_address, fuel_record, serve_fuel, serve_gobjaverse, tar_address
from source_files import gobjaverse_folder, gobjaverse_tar, gobjaverse_views, gso_zip, omni_renders, omni_scan, tar_of
from spheres import write_params

from geolrm import cli
from geolrm.data.cards import read_card, split_objects
from geolrm.data.fetch import Estimate, Failed, Fetched, Ledger, Tally, readable, report
from geolrm.data.gobjaverse import split_of
from geolrm.data.object_tar import read_object_tar
from geolrm.data.omniobject3d import Census, scans_task
from geolrm.failures import BadInput
from geolrm.files import DiskFull, sha256_of

REPOSITORY = Path(__file__).parents[2]
QUICK = ["--timeout", "0.4", "--attempts", "2", "--requests-per-second", "1000"]
NAMES = ["Cup", "Bowl", "Shoe_A", "Shoe_B", "Pokémon_Red", "Plate", "Pan"]
VERSIONS = {"Pan": 2}
OBJECTS = ["0/10", "0/11", "1/20", "1/21", "2/30", "2/31", "2/32"]


@pytest.fixture
def geolrm(monkeypatch, capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["geolrm", *map(str, arguments)])
        try:
            status = cli.main()
        except SystemExit as ended:  # the parser's way
            status = int(ended.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


# --- Google Scanned Objects ---


def fuel(server: Server, total: int | None = None) -> None:
    """Fuel's listing in pages, a stranger's model among them, and its zips."""
    records = [
        fuel_record(name, version=VERSIONS.get(name, 1), categories=["Shoe" if name.startswith("Shoe") else "Kitchen"])
        for name in NAMES
    ]
    records[NAMES.index("Plate")]["license_name"] += " - Non Commercial"
    records.append({"name": "Stranger", "owner": "somebody", "version": 1})
    serve_fuel(server, records, dict.fromkeys(NAMES, gso_zip()), total)


def gso_address(name: str) -> str:
    return fuel_address(name, VERSIONS.get(name, 1))


@pytest.fixture
def gso(geolrm, tmp_path):
    with serving() as server:
        fuel(server)

        def run(*more: object, expect: int = len(NAMES)) -> tuple[int, str, str]:
            common = ["--root", tmp_path, "--base-url", server.url, "--expect", expect, *QUICK]
            return geolrm("data", "fetch", "gso", *common, *more)

        yield server, run, tmp_path / "gso" / "source"


def zips(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.zip"))


def stats(folder: Path) -> dict:
    return json.loads((folder / "fetch.stats.json").read_text())


def test_gso_is_listed_page_by_page_counted_and_fetched(gso):
    server, run, folder = gso
    status, said, _ = run()
    assert status == 0
    assert zips(folder) == sorted(["Pok-mon_Red", *(name for name in NAMES if name.isascii())])
    assert (folder / "Pan.zip").read_bytes() == gso_zip()
    ledger = Ledger(folder / "fetch.jsonl")
    assert ledger.records["Pok-mon_Red"].source_id == "Pokémon_Red"
    assert {record.licence for record in ledger.records.values()} == {"CC-BY-4.0", "CC-BY-NC-4.0"}
    assert all(record.sha256 == sha256_of(folder / record.file) for record in ledger.records.values())
    assert "7 fetched, 0 kept, 0 failed" in said


@pytest.mark.parametrize(("expect", "total"), [(8, None), (7, 9)])
def test_a_count_that_differs_stops_before_anything_is_fetched(gso, expect, total):
    server, run, folder = gso
    fuel(server, total=total)
    status, _, error = run(expect=expect)
    assert status == 1
    assert "count_differs" in error
    assert zips(folder) == []


def test_without_another_number_the_known_counts_are_asked_for(geolrm, gso, tmp_path):
    server, _, _ = gso
    status, _, error = geolrm("data", "fetch", "gso", "--root", tmp_path, "--base-url", server.url, *QUICK)
    assert (status, "1030 or 1033" in error) == (1, True)


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[1]", b'[{"name": 3}]'])
def test_a_listing_that_is_none_is_refused(gso, body):
    server, run, _ = gso
    address = next(iter(server.pages))
    server.pages[address] = Page(body)
    status, _, error = run()
    assert status == 1
    assert "index_unreadable" in error or "html_page" in error


def test_a_listing_that_leads_to_another_host_is_refused(gso):
    server, run, _ = gso
    page = server.pages[next(iter(server.pages))]
    page.headers["Link"] = '<http://127.0.0.2:1/1.0/models>; rel="next"'
    assert "another host" in run()[2]


FAULTS = {"stall": "network_stall", "reset": "network_broken", "short": "length_mismatch", "wrong": "zip_unreadable"}
FAULTS |= {404: "http_not_found", 500: "http_status", "html": "html_page", "disguised": "html_page"}  # type: ignore[dict-item]


@pytest.mark.parametrize("fault", FAULTS)
def test_an_object_that_fails_is_counted_and_named_and_a_second_run_gets_just_it(gso, fault):
    server, run, folder = gso
    server.faults[gso_address("Bowl")] = [fault] * 2
    status, said, error = run("--max-failure-rate", 0.5)
    assert (status, len(zips(folder))) == (0, len(NAMES) - 1)
    assert f"failed, {FAULTS[fault]}: 1 (Bowl)" in said
    assert stats(folder)["failed"] == {FAULTS[fault]: 1}
    assert stats(folder)["failed_objects"][0]["object"] == "Bowl"
    server.faults.clear()
    server.requests.clear()
    status, said, _ = run()
    assert (status, zips(folder)) == (0, sorted(name.replace("é", "-") for name in NAMES))
    assert "1 fetched, 6 kept, 0 failed" in said
    assert [path for path, _ in server.requests if path.endswith(".zip")] == [gso_address("Bowl")]


@pytest.mark.parametrize(
    "fault", [fault for fault in FAULTS if fault != 404]
)  # what is not there is not asked for again
def test_an_object_that_fails_once_is_mended_within_the_run(gso, fault):
    server, run, folder = gso
    for name in NAMES:
        server.faults[gso_address(name)] = [fault]
    assert run()[0] == 0
    assert len(zips(folder)) == len(NAMES)


def test_too_many_failures_fail_the_run_and_say_so(gso):
    server, run, folder = gso
    for name in ("Bowl", "Cup"):
        del server.pages[gso_address(name)]
    status, _, error = run("--max-failure-rate", 0.2)
    assert status == 1
    assert "28.6% of the objects failed, more than 20.0%" in error
    assert len(zips(folder)) == len(NAMES) - 2


def test_a_zip_without_what_it_names_fails_by_the_reason_of_the_mesh_reader(gso):
    server, run, folder = gso
    server.pages[gso_address("Bowl")] = Page(b"PK" + bytes(50))
    server.pages[gso_address("Cup")] = Page(tar_of({"a": b"b"}))
    assert "failed, zip_unreadable: 2" in run()[1]


def test_a_limit_takes_the_first_by_hash_and_a_larger_one_holds_it(gso):
    _, run, folder = gso
    run("--limit", 2)
    first = zips(folder)
    run("--limit", 4)
    assert len(first) == 2
    assert len(zips(folder)) == 4
    assert set(first) < set(zips(folder))


def test_a_category_and_a_licence_choose_and_what_is_left_out_is_counted(gso):
    _, run, folder = gso
    run("--only", "Shoe")
    assert zips(folder) == ["Shoe_A", "Shoe_B"]
    _, said, _ = run("--license-allow", "commercial")
    assert "left out, licence CC-BY-NC-4.0: 1" in said
    assert "Plate" not in zips(folder)
    assert "categories: Kitchen, Shoe" in run("--only", "Shoes")[2]
    assert "licence_unknown" in run("--license-allow", "free")[2]


def test_a_dry_run_says_what_it_would_cost_and_leaves_no_trace(gso, tmp_path):
    server, run, _ = gso
    size = len(gso_zip())
    status, said, _ = run("--dry-run")
    assert status == 0
    assert "7 to fetch, 0 there" in said
    assert f"download  {readable(7 * size)}" in said
    assert f"disk      {readable(7 * size)}" in said
    assert "hours" in said
    assert "measured now" in said
    assert list(tmp_path.iterdir()) == []
    assert all(given == "bytes=0-1048575" for path, given in server.requests if path.endswith(".zip"))


def test_a_dry_run_counts_only_what_is_missing(gso):
    _, run, folder = gso
    run("--limit", 3)
    assert "4 to fetch, 3 there" in run("--dry-run")[1]


def test_damage_is_found_when_it_is_looked_for_and_a_wrong_size_always(gso):
    server, run, folder = gso
    run()
    good = (folder / "Cup.zip").read_bytes()
    (folder / "Cup.zip").write_bytes(b"x" + good[1:])
    assert "0 fetched, 7 kept" in run()[1]
    assert "1 fetched, 6 kept" in run("--verify")[1]
    (folder / "Cup.zip").write_bytes(good[:-1])
    assert "1 fetched, 6 kept" in run()[1]
    assert (folder / "Cup.zip").read_bytes() == good


def test_a_source_that_changed_since_is_not_taken_for_the_same(gso):
    server, run, folder = gso
    run()
    (folder / "Cup.zip").unlink()
    server.pages[gso_address("Cup")] = Page(gso_zip() + b" ")
    status, said, _ = run("--max-failure-rate", 0.5)
    assert "failed, source_changed: 1 (Cup)" in said
    assert "Cup" not in zips(folder)


def test_what_was_fetched_is_rendered_with_the_licence_that_its_record_names(gso, tmp_path):
    import yaml

    from pipelines import render_meshes

    _, run, folder = gso
    run("--license-allow", "CC-BY-NC-4.0")
    assert zips(folder) == ["Plate"]
    params = yaml.safe_load((REPOSITORY / "presets" / "smoke.yaml").read_text())
    params["meshes"] |= {"resolution": 16, "supersampling": 1, "workers": 1}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    common = ["--layout", "gso_zip", "--input", str(folder), "--root", str(tmp_path)]
    assert render_meshes.main([*common, "--params", str(tmp_path / "params.yaml")]) == 0
    obj = read_object_tar(tmp_path / "gso" / "smoke" / "objects" / "Plate.tar")
    assert obj.meta["licence"] == "CC-BY-NC-4.0"


def test_no_more_connections_are_open_than_asked_for(gso):
    server, run, _ = gso
    server.delay = 0.05
    run("--workers", 2)
    assert server.most_open == 2


@pytest.mark.parametrize("option", ["--workers", "--timeout", "--attempts", "--requests-per-second"])
def test_an_option_out_of_range_is_named(gso, option):
    assert option in gso[1](option, 0)[2]


# --- GObjaverse ---


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, bytes]]:
    return {name: gobjaverse_views(name, size=48) for name in OBJECTS}


def gobjaverse_server(server: Server, objects: dict[str, dict[str, bytes]]) -> None:
    categories = {"Poor-quality": ["2/32", "9/99"], "Buildings&&Outdoor": ["1/20", "1/21", "2/32"]}
    serve_gobjaverse(server, objects, categories)


@pytest.fixture
def gobjaverse(geolrm, tmp_path, objects):
    params = write_params(tmp_path / "params.yaml")
    with serving() as server:
        gobjaverse_server(server, objects)

        def run(*more: object) -> tuple[int, str, str]:
            common = ["--root", tmp_path / "data", "--base-url", server.url, "--params", params, *QUICK]
            return geolrm("data", "fetch", "gobjaverse", *common, *more)

        yield server, run, tmp_path / "data" / "gobjaverse" / "smoke"


def keys(home: Path) -> list[str]:
    return sorted(path.stem for path in (home / "objects").glob("*"))


def test_gobjaverse_is_one_request_an_object_and_no_loose_file(gobjaverse, objects):
    server, run, home = gobjaverse
    status, said, _ = run()
    assert status == 0
    assert keys(home) == ["0_10", "0_11", "1_20", "1_21", "2_30", "2_31"]  # 2/32 is of poor quality
    assert [given for path, given in server.requests if "objaverse_tar" in path] == [None] * 6
    assert sorted(path.name for path in home.iterdir()) == ["fetch.jsonl", "fetch.stats.json", "objects"]
    meta = read_object_tar(home / "objects" / "1_20.tar").meta
    assert (meta["objaverse_uid"], meta["source_id"], meta["split"]) == ("u2", "1/20", split_of("1/20"))
    assert meta["source_sha256"] == Ledger(home / "fetch.jsonl").records["1_20"].source_sha256
    assert stats(home)["index_objects"] == 6
    assert len(stats(home)["accepted"]) == 3  # landed depth on depth before the rest was fetched


@pytest.mark.parametrize("fault", ["stall", "reset", "short", "busy", 500, "html", "disguised"])
def test_a_tar_that_breaks_off_goes_on_in_the_middle(gobjaverse, fault):
    server, run, home = gobjaverse
    for name in OBJECTS:
        server.faults[tar_address(name)] = [fault]
    assert run()[0] == 0
    assert len(keys(home)) == 6
    again = {given for path, given in server.requests if "objaverse_tar" in path}
    assert (len(again) > 1) == (fault in ("stall", "reset", "short"))  # the others had sent nothing yet


def test_each_way_in_which_an_object_fails_is_named_and_the_rest_arrives(gobjaverse, objects):
    server, run, home = gobjaverse
    good = objects["1/21"]
    less = {name: content for name, content in good.items() if not name.startswith("00039")}
    page = good | {"00007/00007.png": b"<html>NoSuchKey</html>"}
    spoilt = good | {"00007/00007.png": good["00007/00007.png"][:-9] + b"123456789"}
    for name, files in (("0/10", less), ("0/11", page), ("1/20", spoilt)):
        server.pages[tar_address(name)] = Page(gobjaverse_tar(name.partition("/")[2], files))
    server.pages[tar_address("2/30")] = Page(server.pages[tar_address("2/30")].body[:50_000])
    del server.pages[tar_address("2/31")]
    status, said, _ = run()
    assert status == 1
    assert keys(home) == ["1_21"]
    expected = {"view_missing": 1, "html_page": 1, "image_unreadable": 1, "tar_truncated": 1, "http_not_found": 1}
    assert stats(home)["failed"] == expected
    for reason, name in (("view_missing", "0/10"), ("html_page", "0/11"), ("image_unreadable", "1/20")):
        assert f"failed, {reason}: 1 ({name})" in said


def test_what_does_not_land_depth_on_depth_stops_the_run_before_the_rest_is_fetched(gobjaverse, objects):
    server, run, home = gobjaverse
    for name in OBJECTS:
        files = dict(objects[name])
        for view in range(40):
            record = json.loads(files[f"{view:05d}/{view:05d}.json"])
            files[f"{view:05d}/{view:05d}.json"] = json.dumps(
                record | {axis: [-value for value in record[axis]] for axis in "yz"}
            ).encode()
        server.pages[tar_address(name)] = Page(gobjaverse_tar(name.partition("/")[2], files))
    status, _, error = run()
    assert status == 1
    assert "reprojection" in error
    assert len([path for path, _ in server.requests if "objaverse_tar" in path]) == 3


def test_categories_are_taken_and_left_out(gobjaverse):
    server, run, home = gobjaverse
    run("--only", "Buildings&&Outdoor")
    assert keys(home) == ["1_20", "1_21"]
    assert Ledger(home / "fetch.jsonl").records["1_20"].category == "Buildings&&Outdoor"
    run("--only", "Buildings&&Outdoor", "--exclude")
    assert keys(home) == ["1_20", "1_21", "2_32"]
    assert "choose among Human-Shape" in run("--only", "Buildings")[2]


def test_licences_come_from_the_annotations_and_without_them_nothing_is_guessed(gobjaverse, tmp_path):
    server, run, home = gobjaverse
    assert "load_annotations" in run("--license-allow", "commercial")[2]
    entries = {"u0": {"license": "by", "name": "Dog", "user": {"username": "ann"}}, "u1": {"license": "by-nc"}}
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "000-000.json.gz").write_bytes(gzip.compress(json.dumps(entries).encode()))
    status, said, _ = run("--license-allow", "commercial", "--annotations", tmp_path / "notes")
    assert (status, keys(home)) == (0, ["0_10"])
    assert "left out, licence unknown: 4" in said
    assert "left out, licence CC-BY-NC-4.0: 1" in said
    meta = read_object_tar(home / "objects" / "0_10.tar").meta
    assert (meta["licence"], meta["attribution"].startswith("Dog by ann")) == ("CC-BY-4.0", True)


def test_a_dry_run_measures_and_a_later_one_knows(gobjaverse, monkeypatch):
    server, run, home = gobjaverse
    sizes = [len(server.pages[tar_address(name)].body) for name in OBJECTS[:-1]]
    _, said, _ = run("--dry-run")
    assert "6 to fetch, 0 there" in said
    assert f"download  {readable(sum(sizes))}" in said
    assert f"disk      {readable(0.4 * sum(sizes))}" in said
    assert not home.exists()
    monkeypatch.setattr("geolrm.data.fetch.PROBES", 3)
    run("--limit", 4)
    server.requests.clear()
    _, said, _ = run("--dry-run")
    assert "2 to fetch, 4 there" in said
    assert "measured on 4 objects fetched before" in said
    assert not [path for path, _ in server.requests if "objaverse_tar" in path]


def test_a_local_copy_needs_no_network_at_all(geolrm, tmp_path, objects):
    params = write_params(tmp_path / "params.yaml")
    copy = tmp_path / "copy"
    gobjaverse_folder(copy, "0/10", objects["0/10"])
    gobjaverse_folder(copy, "0/11", objects["0/11"], level="")
    (copy / "1").mkdir()
    (copy / "1" / "20.tar").write_bytes(gobjaverse_tar("20", objects["1/20"]))
    nowhere = ["--base-url", "http://127.0.0.1:1", "--source", copy]
    common = ["data", "fetch", "gobjaverse", "--root", tmp_path / "data", "--params", params, *nowhere]
    assert "3 to fetch" in geolrm(*common, "--dry-run")[1]
    assert geolrm(*common)[0] == 0
    assert keys(tmp_path / "data" / "gobjaverse" / "smoke") == ["0_10", "0_11", "1_20"]


@contextmanager
def fetching(server: Server, root: Path, params: Path) -> Iterator[subprocess.Popen]:
    arguments = ["data", "fetch", "gobjaverse", "--root", root, "--base-url", server.url, "--params", params, *QUICK]
    code = "from geolrm.cli import main; main()"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments), "--workers", "1", "--timeout", "20"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_run_killed_in_mid_object_goes_on_and_ends_with_the_same_bytes(gobjaverse, tmp_path):
    server, run, home = gobjaverse
    run()
    undisturbed = {key: (home / "objects" / f"{key}.tar").read_bytes() for key in keys(home)}
    other = tmp_path / "other"
    folder = other / "gobjaverse" / "smoke"
    order = [path for path, _ in server.requests if "objaverse_tar" in path]
    server.faults[order[-2]] = ["stall"]
    server.requests.clear()
    with fetching(server, other, tmp_path / "params.yaml") as process:
        deadline = time.monotonic() + 60
        while order[-2] not in [path for path, _ in server.requests]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.1)  # a third of its tar has come
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = len(Ledger(folder / "fetch.jsonl").records)
    assert 0 < done < 6
    server.released.set()
    status, said, _ = run("--root", other)
    assert status == 0
    assert f"{6 - done} fetched, {done} kept, 0 failed" in said
    assert {key: (folder / "objects" / f"{key}.tar").read_bytes() for key in keys(folder)} == undisturbed


def test_what_was_fetched_becomes_shards(gobjaverse, tmp_path, monkeypatch):
    from geolrm.config import load_params
    from geolrm.data.catalog import merge_catalogs, read_catalog
    from geolrm.data.shard_build import build_shard
    from geolrm.data.shard_plan import HashCache, find_objects, plan_shards
    from geolrm.files import write_whole

    _, run, home = gobjaverse
    run()
    (home / "shards").mkdir()
    found = find_objects(home / "objects", HashCache(home / "shard-hashes.json"), 1)
    jobs = plan_shards(found, home / "shards", "gobjaverse", load_params(tmp_path / "params.yaml").shard)
    built = [build_shard(job) for job in jobs]
    assert sum(stats["objects_out"] for stats in built) == 6
    write_whole(home / "catalog.parquet", merge_catalogs(job.rows for job in jobs))
    rows = read_catalog(home / "catalog.parquet").to_pylist()
    assert sorted(row["source_id"] for row in rows) == OBJECTS[:-1]
    for row in rows:
        assert (
            row["roles"] == ["orbit"] * 24 + ["top", "bottom"] + ["ring"] * 12
        )  # duplicates found, top and bottom named
        assert row["occupied_voxels"] > 50


# --- OmniObject3D ---


@pytest.fixture
def omni(geolrm, tmp_path):
    params = write_params(tmp_path / "params.yaml")
    copy = tmp_path / "copy"
    for kind in ("raw_scans", "blender_renders"):
        (copy / kind).mkdir(parents=True)
    scans = omni_scan("ball", "ball_001") | omni_scan("ball", "ball_002")
    broken = {name: content for name, content in omni_scan("ball", "ball_003").items() if not name.endswith("jpg")}
    (copy / "raw_scans" / "ball.tar.gz").write_bytes(tar_of(scans | broken, "w:gz"))
    renders = omni_renders("ball_001", count=12, size=64)
    (copy / "blender_renders" / "ball.tar.gz").write_bytes(tar_of(renders, "w:gz"))

    def run(*more: object) -> tuple[int, str, str]:
        return geolrm("data", "fetch", "omniobject3d", "--root", tmp_path / "data", "--params", params, *more)

    return run, copy, tmp_path / "data"


def test_omniobject3d_without_a_copy_says_how_to_get_one(omni):
    status, _, error = omni[0]()
    assert status == 1
    assert "source_needs_key" in error
    assert "openxlab login" in error


def test_omniobject3d_scans_are_noted_and_renders_become_tars(omni):
    run, copy, data = omni
    status, said, _ = run("--source", copy)
    assert status == 0
    record = Ledger(data / "omniobject3d" / "source" / "fetch.jsonl").records["ball"]
    assert record.source_sha256 == sha256_of(copy / "raw_scans" / "ball.tar.gz")
    assert keys(data / "omniobject3d_native" / "smoke") == ["ball_001"]
    assert "left out" not in said
    before = (data / "omniobject3d_native" / "smoke" / "objects" / "ball_001.tar").stat().st_mtime_ns
    status, said, _ = run("--source", copy)
    assert status == 0
    assert "1 fetched, 3 kept, 0 failed" in said  # an archive of three sound scans
    assert "0 fetched, 1 kept, 0 failed" in said  # the renders of one object
    assert (data / "omniobject3d_native" / "smoke" / "objects" / "ball_001.tar").stat().st_mtime_ns == before


def test_omniobject3ds_names_are_written_once_and_only_from_the_whole_of_it(omni, monkeypatch):
    run, copy, data = omni
    names, archive = data / "omniobject3d" / "names.txt", copy / "raw_scans" / "ball.tar.gz"
    monkeypatch.setattr("geolrm.data.omniobject3d.WHOLE", 3)

    def told(*scans: str) -> str:
        found = [omni_scan("ball", name) for name in scans]
        archive.write_bytes(tar_of({name: data for scan in found for name, data in scan.items()}, "w:gz"))
        return run("--source", copy, "--verify")[1]

    assert "not written from a part of the data set: 2 sound scans" in told("ball_001", "ball_002")
    assert not names.exists()
    said = told("ball_003", "ball_001", "ball_002")
    assert names.read_text() == "ball_001\nball_002\nball_003\n"
    assert f"3 names in {names}, sha256 {sha256_of(names)}" in said
    assert "1 scans here are not in it, 0 of its names not here" in told("ball_001", "ball_002", "ball_003", "ball_004")
    assert names.read_text() == "ball_001\nball_002\nball_003\n"


def test_omniobject3ds_names_are_not_written_where_a_scan_failed(tmp_path, monkeypatch):
    monkeypatch.setattr("geolrm.data.omniobject3d.WHOLE", 3)
    assert "1 failures" in Census({"a", "b", "c"}, failed=1).freeze(tmp_path / "names.txt")
    assert not (tmp_path / "names.txt").exists()
    home = tmp_path / "raw_scans"
    home.mkdir()
    (home / "cup.tar.gz").write_bytes(tar_of(omni_scan("cup", "cup_001"), "w:gz")[:-60])
    census = Census()
    with pytest.raises(BadInput, match="source_missing"):
        list(scans_task(home / "cup.tar.gz", census).do(lambda _: None))
    assert census.names == set()
    assert census.failed > 0


def test_omniobject3d_takes_the_categories_asked_for_and_says_what_it_costs(omni):
    run, copy, data = omni
    assert "category_unknown" in run("--source", copy, "--only", "cup")[2]
    said = run("--source", copy, "--dry-run", "--only", "ball")[1]
    assert "1 to fetch" in said
    assert "speed not measured yet" in said
    assert not data.exists()
    assert "licence_not_allowed" in run("--source", copy, "--license-allow", "CC0-1.0")[2]


# --- the ledger and the words ---


def fetched(key: str, **changes) -> Fetched:
    return Fetched(**{**vars(Fetched(key, key, "", 1, "a", "b", 1, "c")), **changes})


def test_a_torn_last_line_loses_nothing_else(tmp_path):
    ledger = Ledger(tmp_path / "fetch.jsonl")
    ledger.add(fetched("a"))
    ledger.add(fetched("b"))
    text = ledger.path.read_text()
    ledger.path.write_text(text[:-20])
    again = Ledger(ledger.path)
    assert list(again.records) == ["a"]
    again.add(fetched("c", unexpected=("fov",)))
    assert Ledger(ledger.path).records == {"a": fetched("a"), "c": fetched("c", unexpected=("fov",))}


def test_a_full_disk_stops_the_run_in_plain_words(gso, monkeypatch):
    server, run, folder = gso

    def full(*_: object) -> None:
        raise DiskFull(28, "the disk is full: 0 bytes are free", "somewhere")

    monkeypatch.setattr("geolrm.data.fetch.Ledger.add", full)
    status, _, error = run()
    assert status == 1
    assert "disk_full" in error
    assert "Traceback" not in error


def test_a_defect_is_no_failed_object(gso, monkeypatch):
    server, run, folder = gso

    def defect(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("geolrm.data.gso.check_zip", defect)
    with pytest.raises(ZeroDivisionError):
        run()


def test_a_long_list_of_failures_is_cut_on_the_screen():
    tally = Tally(failed=[Failed(f"o{i}", BadInput("r", "w", "d")) for i in range(13)])
    assert "o9 and 3 more" in "\n".join(report(tally, Path("x"), {}))


def test_an_estimate_that_does_not_fit_says_so(tmp_path):
    lines = Estimate(1, 0, 1e18, 1e18, 3600.0, ()).lines(tmp_path / "not" / "yet")
    assert "NOT ENOUGH" in "\n".join(lines)
    assert "hours     1.00" in lines


def test_a_card_shows_what_is_here_and_under_which_licence(gso, geolrm, tmp_path):
    _, run, folder = gso
    run()
    status, said, _ = geolrm("data", "card", "gso", "--root", tmp_path, "--license-allow", "commercial")
    assert status == 0
    assert "# gso: Google Scanned Objects" in said
    assert "7 objects fetched (CC-BY-4.0 6, CC-BY-NC-4.0 1); allowed 6" in said
    assert "card_missing" in geolrm("data", "card", "nothing")[2]
    assert split_objects(read_card("gso"), "gso-100")
