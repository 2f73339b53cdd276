"""Claims about what the shard stage says at its end: totals of all shards, what was dropped and why, when it is too much."""

import json
from pathlib import Path

import pytest

from geolrm.data.shard_plan import ShardJob
from pipelines.shard import report


@pytest.fixture
def jobs(tmp_path: Path) -> list[ShardJob]:
    """Three shards: of 20 objects 12 were dropped, of 10 none, and one that could not be written has no stats."""
    drops = [("empty_object", 8), ("tar_truncated", 4)]
    dropped = [
        {"key": f"{reason}-{i}", "reason": reason, "detail": f"detail {i}"} for reason, n in drops for i in range(n)
    ]
    made = {
        "train-000000": {"objects_in": 20, "dropped": dropped, "bytes_in": 1_500_000_000, "bytes_out": 20_000_000},
        "train-000001": {"objects_in": 10, "dropped": [], "bytes_in": 34_000_000, "bytes_out": 3_300_000},
    }
    for name, stats in made.items():
        (tmp_path / f"{name}.stats.json").write_text(json.dumps(stats))
    return [ShardJob(name, "train", "made-up", str(tmp_path), 16, 100, ()) for name in (*made, "train-000002")]


def test_it_adds_up_all_shards_that_there_are_and_names_ten_of_the_dropped(jobs, capsys) -> None:
    report(jobs, 1.0)
    out, err = capsys.readouterr()
    assert out == "2 shards, 18 of 30 objects, 1,534.0 MB of object tars -> 23.3 MB\n"
    lines = err.splitlines()
    assert lines[0] == "dropped 12: empty_object 8, tar_truncated 4"
    assert lines[1] == "  empty_object-0: detail 0"
    assert lines[10] == "  tar_truncated-1: detail 1"
    assert lines[11:] == ["  and 2 more, in the shards' .stats.json"]


@pytest.mark.parametrize(("limit", "complaints"), [(0.39, 1), (0.4, 0)])
def test_it_complains_of_more_than_the_allowed_share_of_all_objects(jobs, limit: float, complaints: int) -> None:
    found = report(jobs, limit)
    assert len(found) == complaints
    for complaint in found:
        assert complaint == "12 of 30 objects dropped, more than shard.max_drop_rate = 0.39 allows"


def test_where_nothing_was_dropped_it_has_nothing_to_complain_of(jobs, capsys) -> None:
    assert report(jobs[1:], 0.0) == []
    assert capsys.readouterr().err == ""
