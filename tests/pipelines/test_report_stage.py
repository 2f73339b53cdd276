"""The stage writes what DVC expects, and says where to look."""

import json
import shutil
from pathlib import Path

import pytest
from synthetic_results import write_results, write_stats

from benchmarks.estimates import FORMAT
from geolrm.failures import BadInput
from pipelines.report import main

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder that looks like a clone with results of the smoke preset."""
    shutil.copyfile(ROOT / "presets" / "smoke.yaml", tmp_path / "params.yaml")
    write_results(tmp_path / "results" / "smoke")
    write_stats(tmp_path / "datasets")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_stage_writes_report_and_summary(clone, capsys):
    (clone / "seconds.json").write_text('{"train_proposal": 61.0, "sweep": 30.5}')
    main(tracking_uri="none", stage_seconds=clone / "seconds.json")
    summary = json.loads((clone / "results/smoke/summary.json").read_text())
    assert summary["format"] == FORMAT
    assert summary["stage_seconds"]["sweep"] == 30.5
    assert {"processor", "cores", "memory_gib"} <= set(summary["machine"])
    page = (clone / "results/smoke/report.html").read_text()
    assert "Stages: 92 s in all" in page
    assert not (clone / "mlflow.db").exists()
    assert "results/smoke/report.html" in capsys.readouterr().out


def test_a_report_can_be_of_one_sweep_only(clone):
    write_results(clone / "results" / "other")
    shutil.move(clone / "results/other/sweep/procedural", clone / "results/smoke/sweep/scans")
    main(tracking_uri="none", datasets=["scans"])
    assert list(json.loads((clone / "results/smoke/summary.json").read_text())["sweeps"]) == ["scans"]


def test_results_that_are_not_there_are_named_with_the_way_out(clone):
    shutil.rmtree(clone / "results" / "smoke" / "sweep")
    with pytest.raises(BadInput, match="dvc repro"):
        main(tracking_uri="none")
