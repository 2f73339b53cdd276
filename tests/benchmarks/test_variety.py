"""Claims about what each kind of variety gives: runs differ in the kinds alone, one is judged and kept, the page adds up."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import variety
from benchmarks.variety import Page, Run, page, params_of, runs_of, validation_scans
from geolrm.config import Params, load_params
from geolrm.failures import BadInput

PRESET = Path(__file__).parents[2] / "presets" / "variety.yaml"


def test_runs_have_all_kinds_each_but_one_and_none_and_are_alike_in_all_else() -> None:
    params = load_params(PRESET)
    runs = runs_of(params)
    kinds = set(params.procedural.variety.model_dump())
    assert set(runs["all"]) == kinds
    assert runs["none"] == {}
    assert {name: kinds - set(shares) for name, shares in runs.items() if name.startswith("without_")} == {
        f"without_{kind}": {kind} for kind in kinds
    }
    for name in runs:
        one, whole = params_of(params, name), params.model_dump(mode="json")
        assert one.pop("preset") == f"variety-{name}"
        assert one["procedural"].pop("variety") == runs[name]
        whole.pop("preset"), whole["procedural"].pop("variety")
        assert one == whole


def test_params_without_variety_are_refused(tiny_params: Params) -> None:
    with pytest.raises(BadInput, match="variety_missing"):
        runs_of(tiny_params)


@pytest.fixture
def home(tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params of two kinds of variety and, in place of scans, the tiny data set under the names of theirs."""
    params = yaml.safe_load((tiny_dataset / "params.yaml").read_text())
    params["procedural"]["variety"] = {"cubes": 1.0, "lights": 0.5}
    params["sweep"]["views"] = [2, 4]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    for name in ("gso", "hope"):
        shutil.copytree(tiny_dataset / "datasets" / "procedural" / "tiny", tmp_path / "datasets" / name / "tiny")
    monkeypatch.setattr(variety, "split_list", lambda name, split: ["test-00000"] if name == "gso" else [])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GEOLRM_LPIPS_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nothing"))
    return tmp_path


@pytest.mark.slow
def test_a_run_draws_trains_and_judges_by_the_scans_and_is_kept(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Run(("without_lights",), params=Path("params.yaml"))()
    scores = home / "results" / "tiny-without_lights" / "variety.json"
    result = json.loads(scores.read_text())
    assert load_params("results/tiny-without_lights/params.yaml").procedural.variety.model_dump() == {
        "vessels": 0.0, "profiles": 0.0, "lettering": 0.0, "lights": 0.0, "cubes": 1.0
    }  # fmt: skip
    assert [(row["object"], row["inputs"]) for row in result["rows"]] == [("test-00000", 2), ("test-00000", 4)]
    assert all(5 < row["psnr"] < 60 and 0 <= row["iou"] <= row["recall"] <= 1 for row in result["rows"])
    made = [scores, *(scores.parent / stage / "checkpoint.safetensors" for stage in ("proposal", "reconstruction"))]
    written = [path.stat().st_mtime_ns for path in made]
    Run(("without_lights",), params=Path("params.yaml"))()
    assert [
        path.stat().st_mtime_ns for path in made
    ] == written  # a finished training that is started again begins anew
    (made[2].parent / "checkpoint.json").unlink()  # as if killed in the second stage
    scores.unlink()
    Run(("without_lights",), params=Path("params.yaml"))()
    assert made[1].stat().st_mtime_ns == written[1]
    assert json.loads(scores.read_text())["rows"] == result["rows"]
    in_the_way = home / "datasets" / "procedural" / "tiny-none"
    in_the_way.parent.mkdir(exist_ok=True)
    in_the_way.write_text("a file where the stage needs a folder")
    with pytest.raises(BadInput, match="stage_failed"):
        Run(("none",), params=Path("params.yaml"))()
    Page(home / "results", preset="tiny", out=home / "variety.md")()
    assert "Not run yet" in (home / "variety.md").read_text()  # `all` has not


def test_a_run_that_there_is_not_and_scans_that_are_not_there_are_named(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match="without_light"):
        Run(("without_light",), params=Path("params.yaml"))()
    monkeypatch.setattr(variety, "split_list", lambda name, split: ["popcorn"])
    with pytest.raises(BadInput, match="popcorn"):
        validation_scans(home / "datasets", "tiny")


def planted(name: str, worse: float) -> dict[str, Any]:
    rows = [
        {
            "object": key,
            "inputs": n,
            "psnr": 20 + start / 2 - worse + n / 4,
            "psnr_foreground": 15.0,
            "iou": 0.5,
            "recall": 0.75,
        }
        for start, key in enumerate(("popcorn", "plate", "pan", "bottle", "can"))
        for n in (4, 8)
    ]
    params = params_of(load_params(PRESET), name)
    about = {"preset": "variety", "device": "a CPU", "commit": "c" * 40, "seed": 3}
    return {
        "name": name,
        "facts": {"params": params, "scans": {"gso": "s"}, "weights": {}},
        "passport": about,
        "rows": rows,
    }


def test_the_page_holds_planted_means_and_gains() -> None:
    text = page({name: planted(name, worse) for name, worse in (("all", 0.0), ("without_cubes", 0.5), ("none", 1.0))})
    assert "| `all` | 22.00 | 23.00 | 15.00 | 0.500 | 0.750 |  |  |  |" in text
    assert "| `without_cubes` | 21.50 | 22.50 | 15.00 | 0.500 | 0.750 | +0.50 [+0.50, +0.50] | +0.00" in text
    assert "| `none` | 21.00 | 22.00 |" in text
    assert "240 objects at 128 px, 400 and 300 steps, a CPU, commit `cccccccccc`, seed 3" in text


@pytest.mark.parametrize("what", ["scans", "steps", "objects"])
def test_results_that_cannot_be_compared_are_refused(what: str) -> None:
    other = planted("none", 0.0)
    if what == "scans":
        other["facts"]["scans"] = {"gso": "t"}
    elif what == "steps":
        other["facts"]["params"]["proposal"]["optimisation"]["steps"] = 99
    else:
        other["facts"]["params"]["procedural"]["train"] = 99
    with pytest.raises(BadInput, match="none"):
        page({"all": planted("all", 0.0), "none": other})


def test_the_committed_page_is_the_one_that_its_results_give() -> None:
    folder = Path(__file__).parents[2] / "docs" / "results"
    collected = folder / "variety.json"
    assert (folder / "variety.md").read_text() == page(json.loads(collected.read_text()) if collected.exists() else {})
