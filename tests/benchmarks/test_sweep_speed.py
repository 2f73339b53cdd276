"""What a sweep costs is added up from its rows, and what was not scored is no cost of scoring."""

import json
import sys

import pytest
from synthetic_results import VIEWS, row

from benchmarks.speed import sweep
from geolrm.failures import BadInput


def rows(count: int) -> list[dict]:
    """Of one method: the first row takes two seconds, the others half of one."""
    made = [row("visual_hull", f"test-0000{i}", views) for i in range(count) for views in VIEWS]
    made[0]["harness_s"] = 2.0
    return made


def test_the_harness_is_told_from_the_method_and_the_first_row_from_the_others():
    found = sweep.summarise(rows(5), wall_s=40.0, of=100)
    assert found["harness_s"]["mean"] == pytest.approx((2.0 + 19 * 0.5) / 20)
    assert found["harness_s_later_rows"] == {"mean": 0.5, "median": 0.5, "p90": 0.5, "max": 0.5}
    assert found["harness_s_first_rows"] == [2.0]
    assert found["harness_share"] == pytest.approx(11.5 / 40)
    assert found["estimate"] == {"objects": 100, "rows": 400, "wall_s": 800.0}


def test_objects_of_two_data_sets_are_counted_apart_though_their_names_agree():
    made = rows(2) + [row | {"dataset": "gso", "harness_s": 0.5} for row in rows(2)]
    found = sweep.summarise(made, wall_s=16.0, of=100)
    assert found["objects"] == 4
    assert found["harness_s_first_rows"] == [0.5, 2.0]
    assert found["estimate"]["wall_s"] == 400.0


def test_rows_that_were_not_scored_are_refused():
    made = rows(2)
    made[3] |= {"status": "failed", "reason": "made up"}
    with pytest.raises(BadInput, match="visual_hull on test-00000: failed: made up"):
        sweep.summarise(made, 1.0, 100)
    with pytest.raises(BadInput, match="no rows"):
        sweep.summarise([], 1.0, 100)


def test_one_command_sweeps_and_says_what_a_whole_one_would_take(tiny_dataset, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tiny_dataset)
    out = tmp_path / "sweep-speed.json"
    arguments = [
        "--params",
        "params.yaml",
        "--methods",
        "white",
        "--views",
        "4",
        "6",
        "--objects",
        "1",
        "--out",
        str(out),
    ]
    monkeypatch.setattr(sys, "argv", ["sweep", *arguments, "--device", "cpu"])
    sweep.main()
    found = json.loads(out.read_text())
    assert (found["objects"], found["rows"], found["estimate"]["rows"]) == (1, 2, 200)
    assert found["estimate"]["wall_s"] == pytest.approx(100 * found["wall_s"])
    assert 0 < found["harness_share"] < 1
    assert found["passport"]["commit"] is not None
    assert "100 objects, 200 rows: at most" in capfd.readouterr().out
