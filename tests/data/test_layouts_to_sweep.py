"""Claims about the real layouts: real scans in three of them, and generated GObjaverse objects in both of its forms, go through
every command from fetching to the sweep."""

import itertools
import json
import runpy
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from distributed import LocalCluster
from misbehaving_server import Server, serving
from served_sources import fuel_record, serve_fuel, serve_gobjaverse
from source_files import gobjaverse_folder, gobjaverse_views

from geolrm import cli
from geolrm.config import Params
from geolrm.data.catalog import read_catalog
from geolrm.data.gobjaverse import split_of

ROLES = (
    ["orbit"] * 24 + ["top", "bottom"] + ["ring"] * 12
)  # of 40 files: 24 and 39 are duplicates, 25 and 26 top and bottom
METHODS = ["geolrm", "white"]
QUICK = ["--requests-per-second", "1000", "--attempts", "2"]


def run(module: str, *arguments: object) -> None:
    """`python -m MODULE ARGUMENTS`, or `geolrm ...`, in this process: it starts once for all of them."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'.*' found in sys.modules", RuntimeWarning)
        patch.setattr(sys, "argv", [module, *map(str, arguments)])
        try:
            status = (
                cli.main()
                if module == "geolrm"
                else runpy.run_module(module, run_name="__main__", alter_sys=True) and 0
            )
        except SystemExit as ended:
            status = ended.code or 0
    assert status == 0, (module, arguments)


@pytest.fixture
def home(tiny_params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with params of a few steps."""
    data = tiny_params.model_dump(mode="json")
    data["meshes"] |= {"resolution": 48, "supersampling": 1, "workers": 1, "max_drop_rate": 0.0}
    data["shard"] |= {"max_drop_rate": 0.0}
    for stage in ("proposal", "reconstruction"):
        data[stage]["optimisation"] |= {"steps": 2, "warmup": 1, "validate_every": 2, "checkpoint_every": 2}
    data["sweep"] |= {"methods": METHODS, "views": [4], "objects": 1, "artefacts": 0}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    monkeypatch.delenv("GEOLRM_LPIPS_WEIGHTS", raising=False)  # takes seconds, and is no part of the claim
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def shard(dataset: str) -> None:
    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        protocol="tcp",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    ) as cluster:
        run("pipelines.shard", "--dataset", dataset, "--scheduler", cluster.scheduler_address)


def check_trained_and_swept(home: Path, dataset: str) -> None:
    """Shard, verify, train both stages and sweep a data set, and look at what each wrote."""
    shard(dataset)
    folder, results = home / "datasets" / dataset / "tiny", home / "results" / "tiny"
    run("geolrm", "data", "verify", folder.relative_to(home))
    for stage in ("proposal", "reconstruction"):
        run(f"pipelines.train_{stage}", "--dataset", dataset)
        lines = [json.loads(line) for line in (results / stage / "steps.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "loss" in line] == [1, 2]
        assert (results / stage / "checkpoint.safetensors").exists()
    run("benchmarks.sweep_views", "--dataset", dataset)
    rows = [json.loads(line) for line in (results / "sweep" / dataset / "rows.jsonl").read_text().splitlines()]
    assert [(row["method"], row["views"]) for row in rows] == [(method, 4) for method in METHODS]
    assert {row["status"] for row in rows} <= {"ok", "empty"}


def splits(home: Path, dataset: str) -> dict[str, str]:
    """Split of each object in a catalog, by where it comes from."""
    rows = read_catalog(home / "datasets" / dataset / "tiny" / "catalog.parquet").to_pylist()
    return {f"{row['layout']} {row['source_id']}": row["split"] for row in rows}


@pytest.mark.slow
def test_gobjaverse_tars_and_loose_files_go_from_the_server_to_the_sweep(home: Path, server: Server) -> None:
    names: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for number in itertools.count():
        split = split_of(f"0/{number}")
        names[split] += [f"0/{number}"] if len(names[split]) < 2 else []
        if all(names.values()) and len(names["train"]) == 2:
            break
    train, val, test, incomplete = names["train"][0], names["val"][0], names["test"][0], names["train"][1]
    objects = {name: gobjaverse_views(name, size=48) for name in (train, val, test, incomplete)}
    del objects[incomplete]["00011/00011.png"]
    loose = objects.pop(test)
    serve_gobjaverse(server, objects, {"Poor-quality": ["9/9"]})
    run("geolrm", "data", "fetch", "gobjaverse", "--base-url", server.url, "--max-failure-rate", 0.34, *QUICK)
    stats = json.loads((home / "datasets/gobjaverse/tiny/fetch.stats.json").read_text())
    assert (stats["fetched"], stats["failed"]) == (2, {"view_missing": 1})
    gobjaverse_folder(home / "copy", test, loose, level="")
    run("geolrm", "data", "fetch", "gobjaverse", "--source", "copy")
    check_trained_and_swept(home, "gobjaverse")
    assert splits(home, "gobjaverse") == {f"gobjaverse {name}": split_of(name) for name in (train, val, test)}
    catalog = read_catalog(home / "datasets/gobjaverse/tiny/catalog.parquet")
    assert catalog["roles"].to_pylist() == [ROLES] * 3
    assert catalog["test_views"].to_pylist() == [0] * 3  # the sweep has held some of its own views out


@pytest.mark.slow
def test_real_scans_go_from_the_server_or_their_archives_to_the_sweep(shared: Path, home: Path, server: Server) -> None:
    scans = shared / "scans"
    zips = {path.stem: path.read_bytes() for path in sorted((scans / "gso").glob("*.zip"))}
    serve_fuel(server, [fuel_record(name) for name in zips], zips)
    run("geolrm", "data", "fetch", "gso", "--base-url", server.url, "--expect", len(zips), *QUICK)
    run("geolrm", "data", "fetch", "omniobject3d", "--source", scans / "hope")
    fetched = home / "datasets" / "gso" / "source"
    assert {path.name: path.read_bytes() for path in fetched.glob("*.zip")} == {f"{n}.zip": d for n, d in zips.items()}
    sources = [
        ("gso", "gso_zip", fetched / "plate.zip", "train"),
        ("gso", "gso_zip", fetched / "white_bowl.zip", "val"),
        ("gso", "gso_zip", fetched / "chefmate_8_frypan.zip", "test"),
        ("hope", "raw_scans", scans / "hope/raw_scans/box.tar.gz", "train"),
        ("hope", "raw_scans", scans / "hope/raw_scans/can.tar.gz", "val"),
        ("hope", "folder", scans / "folder/popcorn.zip", "test"),
    ]
    for dataset, layout, path, split in sources:
        rendered = ["--layout", layout, "--input", path, "--dataset", dataset, "--split", split, "--limit", 1]
        run("pipelines.render_meshes", *rendered)
    for dataset in ("gso", "hope"):
        check_trained_and_swept(home, dataset)
    assert splits(home, "gso") == {
        "gso_zip plate": "train",
        "gso_zip white_bowl": "val",
        "gso_zip chefmate_8_frypan": "test",
    }
    found = splits(home, "hope")
    assert sorted(found.values()) == ["test", "train", "val"]
    assert {name.partition(" ")[0] for name in found} == {"raw_scans", "folder"}
