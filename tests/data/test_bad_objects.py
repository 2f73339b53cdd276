"""Claims about bad objects among good ones: forty kinds, in each layout in which objects come, through the commands that take
them in and make shards of them (docs/bad-input.md)."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from bad_objects import (
    GOB_FOLDER,
    GOB_TAR,
    GSO,
    KINDS,
    MESHES,
    NATIVE,
    OBJECT_TAR,
    SCANS,
    Kind,
    name_of,
    put,
)
from spheres import write_params

from geolrm import cli
from geolrm.data.catalog import read_catalog
from geolrm.data.shard_build import build_shard
from pipelines import render_meshes
from pipelines import shard as stage

PAGE = Path(__file__).parents[2] / "docs" / "bad-input.md"
DOORS = list(dict.fromkeys(kind.door for kind in KINDS))
GOOD = {OBJECT_TAR: ["train-90001", "val-90002"]}  # beside the bad ones, in front of and behind them
DATASETS = {GOB_TAR: "gobjaverse", GOB_FOLDER: "gobjaverse", GSO: "gso", NATIVE: "omniobject3d_native"}
LAYOUTS = {GSO: "gso_zip", SCANS: "raw_scans", MESHES: "folder"}


@dataclass(frozen=True)
class Outcome:
    """What became of all objects of a door.

    Attributes:
        statuses: exit status at a limit that the dropped ones just reach, and at one just below.
        complaint: what the second run said on stderr.
        dropped: name of each dropped object and its reason, from the stats.
        arrived: keys in the catalog.
    """

    statuses: tuple[int, int]
    complaint: str
    dropped: list[tuple[str, str]]
    arrived: list[str]


def good_names(door: str) -> list[str]:
    return GOOD.get(door, ["1000", "0"])


def keys_expected(door: str) -> list[str]:
    kept = [f"{name_of(kind)}{suffix}" for kind in KINDS if kind.door == door for suffix in kind.arrives]
    names = good_names(door) + kept
    return sorted(f"9_{name}" for name in names) if door in (GOB_TAR, GOB_FOLDER) else sorted(names)


def run_door(door: str, root: Path, said: Callable[[], str]) -> Outcome:
    """Put the good objects and all bad kinds of a door into one source and run its commands on it, twice."""
    params, dataset = write_params(root / "params.yaml"), DATASETS.get(door, "mine")
    home = root / "data" / dataset / "smoke"
    source = home / "objects" if door == OBJECT_TAR else root / "source"
    source.mkdir(parents=True)
    for name in good_names(door):
        put(door, source, name)
    bad = [kind for kind in KINDS if kind.door == door]
    for kind in bad:
        put(door, source, name_of(kind), kind)
    rate = len(bad) / (len(bad) + len(keys_expected(door)))

    def take_in(limit: float) -> int:
        if door in (GOB_TAR, GOB_FOLDER, NATIVE):
            verb = "omniobject3d" if door == NATIVE else "gobjaverse"
            common = ["--root", root / "data", "--params", params, "--max-failure-rate", limit]
            return geolrm("data", "fetch", verb, "--source", source, *common)
        data = yaml.safe_load(params.read_text())
        data["meshes"] |= {"resolution": 16, "supersampling": 1, "workers": 1, "max_drop_rate": limit}
        data["shard"] |= {"max_drop_rate": limit if door == OBJECT_TAR else 0.0}
        params.write_text(yaml.safe_dump(data))
        if door == OBJECT_TAR:
            return shard()
        common = ["--params", str(params), "--root", str(root / "data"), "--dataset", dataset]
        return render_meshes.main(["--layout", LAYOUTS[door], "--input", str(source), *common])

    def shard() -> int:
        return stage.shard(dataset, params=params, root=root / "data")

    reached = take_in(rate + 1e-9)
    said()
    statuses = reached, take_in(rate - 1e-9)
    complaint = said()
    if door != OBJECT_TAR:
        assert shard() == 0  # with nothing dropped: what was taken in is good
    return Outcome(statuses, complaint, drops_in(home), read_catalog(home / "catalog.parquet")["key"].to_pylist())


def drops_in(home: Path) -> list[tuple[str, str]]:
    """(name, reason) of all dropped objects in the stats of a data set's stages."""
    found = []
    for path in home.glob("shards/*.stats.json"):
        found += [(entry["key"], entry["reason"]) for entry in json.loads(path.read_text())["dropped"]]
    if (home / "fetch.stats.json").exists():
        entries = json.loads((home / "fetch.stats.json").read_text())["failed_objects"]
        found += [(entry["object"], entry["reason"]) for entry in entries]
    if (home / "render.stats.json").exists():
        (stats,) = json.loads((home / "render.stats.json").read_text()).values()
        found += [(entry["object"], entry["reason"]) for entry in stats["dropped_objects"]]
    return sorted((name.rpartition("/")[2].removesuffix(".tar.gz"), reason) for name, reason in found)


def geolrm(*arguments: object) -> int:
    """The `geolrm` command in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["geolrm", *map(str, arguments)])
        try:
            return cli.main()
        except SystemExit as ended:
            return int(ended.code or 0)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[], str]], Outcome]:
    """What became of the objects of a door; its commands run when it is first asked for."""
    known: dict[str, Outcome] = {}

    def outcome(door: str, said: Callable[[], str]) -> Outcome:
        if door not in known:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(stage, "build_shards", lambda jobs, *_: [build_shard(job) for job in jobs] and [])
                known[door] = run_door(door, tmp_path_factory.mktemp("door"), said)
        return known[door]

    return outcome


@pytest.fixture
def seen(outcomes, capsys: pytest.CaptureFixture[str]) -> Callable[[str], Outcome]:
    return lambda door: outcomes(door, lambda: capsys.readouterr().err)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{KINDS.index(kind) + 1}-{kind.reason}")
def test_a_bad_object_is_counted_under_its_reason_and_every_good_one_arrives(kind: Kind, seen) -> None:
    outcome = seen(kind.door)
    assert [reason for name, reason in outcome.dropped if name == name_of(kind)] == [kind.reason]
    assert sorted(outcome.arrived) == keys_expected(kind.door)


@pytest.mark.parametrize("door", DOORS)
def test_nothing_else_is_dropped_and_the_exit_status_tells_when_the_drop_rate_passes_its_limit(door: str, seen) -> None:
    outcome = seen(door)
    assert sorted(name for name, _ in outcome.dropped) == sorted(name_of(kind) for kind in KINDS if kind.door == door)
    assert outcome.statuses == (0, 1)
    assert "error: " in outcome.complaint
    assert "more than " in outcome.complaint
    assert "Traceback" not in outcome.complaint


def test_the_table_of_the_documents_is_the_list_of_kinds() -> None:
    rows = re.findall(r"(?m)^\| (\d+) \| (.+?) \| (.+?) \| `(\w+)` \|$", PAGE.read_text())
    expected = [(str(i), kind.door, kind.wrong, kind.reason) for i, kind in enumerate(KINDS, 1)]
    assert rows == expected
    assert len(rows) == 40
