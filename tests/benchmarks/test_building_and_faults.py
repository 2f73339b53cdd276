"""Claims about two benchmarks of the shard stage: what is built is verified and read; a kill holds only if nothing was lost."""

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.speed import faults
from benchmarks.speed.building import Options, alone_in_this_process, jobs_for, made, thinned, verified_and_read
from benchmarks.speed.faults import VICTIMS, Bench, Kill, killed, moment, page, small_objects, taken_up

REPOSITORY = Path(__file__).parents[2]


def test_objects_that_are_made_are_built_verified_and_read_and_damage_is_told(tmp_path: Path) -> None:
    options = made(Options(pixels=16, count=1, memory_objects=3, voxels=16), tmp_path / "made")
    jobs = jobs_for(options, tmp_path / "memory", 4, 1)  # one more than there are: it is built twice
    resident, seconds = alone_in_this_process(jobs)
    assert len(resident) == 4
    assert seconds > 0
    proved = verified_and_read(jobs)
    assert (proved["built"], proved["verified"], proved["read"]) == (4, 4, 4)
    assert proved["members_hashed"] > 4 * 2 * (38 + 16)
    data = bytearray(jobs[0].tar.read_bytes())
    data[3000] ^= 1
    jobs[0].tar.write_bytes(data)
    with pytest.raises(AssertionError, match="shard_corrupt"):
        verified_and_read(jobs)


def test_a_thousand_numbers_are_thinned_to_fifty_with_the_first_and_the_last() -> None:
    found = thinned(list(range(1000)))
    assert len(found) <= 51
    assert (found["1"], found["1000"]) == (0, 999)
    assert thinned([7, 8]) == {"1": 7, "2": 8}


def test_a_kill_holds_only_if_nothing_was_lost_and_a_lost_worker_did_not_end_the_run() -> None:
    good = Kill("main", 1, 0.1, 1, 1, -9, truthful=True, equal=True)
    assert good.holds
    assert not replace(good, truthful=False).holds
    assert not replace(good, equal=False).holds
    assert not replace(good, victim="worker", status=1).holds
    assert replace(good, victim="worker", status=0).holds
    assert {"worker", "main", "scheduler"} == set(VICTIMS)


def test_a_process_that_is_gone_cannot_be_hit() -> None:
    assert not killed(2**22 - 3)  # beyond the largest number of a process


def test_a_moment_lies_in_the_work_of_its_victim() -> None:
    seconds = [2.0, 2.1, 2.5, 3.0]  # three shards and the catalog
    for victim, gaps in (
        ("main", [2.0, 0.1, 0.4, 0.5]),
        ("scheduler", [2.0, 0.1, 0.4, 0.5]),
        ("worker", [2.0, 0.1, 0.4]),
    ):
        draws = [moment(random.Random(seed), victim, seconds) for seed in range(400)]
        assert {after for after, _ in draws} == set(range(len(gaps)))
        for number, gap in enumerate(gaps):
            delays = [delay for after, delay in draws if after == number]
            assert 0 <= min(delays) < gap / 4
            assert gap * 3 / 4 < max(delays) <= gap


def test_kills_that_were_counted_are_taken_up_by_the_next_run_of_the_same_code_and_by_no_other(tmp_path: Path) -> None:
    kill, late = (
        Kill("main", 1, 0.1, 1, 1, -9, truthful=True, equal=True),
        [{"victim": "main", "after": 3, "delay": 0.5}],
    )
    facts = {"commit": "abc", "seed": 0, "load": 1.0}
    record = {"summary": {"seconds": 12.5}, "rows": [asdict(kill)], "too_late": late, "passport": facts}
    (tmp_path / "faults.json").write_text(json.dumps(record))
    assert taken_up(tmp_path / "faults.json", facts | {"load": 2.0}) == ([kill], late, 12.5)
    assert taken_up(tmp_path / "faults.json", facts | {"commit": "abd"}) == ([], [], 0.0)
    assert taken_up(tmp_path / "none.json", facts) == ([], [], 0.0)


def test_the_page_of_the_kills_is_that_of_its_record_and_all_hold() -> None:
    record = json.loads((REPOSITORY / "docs" / "results" / "faults.json").read_text())
    assert (REPOSITORY / "docs" / "results" / "faults.md").read_text() == page(record)
    assert all(Kill(**row).holds for row in record["rows"])


def test_a_benchmark_that_is_ended_ends_the_stage_that_it_had_started(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from benchmarks.speed import faults; import test_building_and_faults as t; "
    script += "t.wait_in_a_run(Path(sys.argv[1]))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)])}
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as benchmark:
        assert benchmark.stdout is not None
        stage = int(benchmark.stdout.readline())
        benchmark.send_signal(signal.SIGTERM)
        benchmark.wait(60)
    assert benchmark.returncode == 128 + signal.SIGTERM
    assert not killed(stage)


def wait_in_a_run(folder: Path) -> None:
    """Be a benchmark in the middle of a round."""
    faults.end_in_order()
    bench = Bench(folder / "bench", small_objects(folder / "made", 3, 16, 0), 2, REPOSITORY / "presets/smoke.yaml")
    with bench.running(folder / "out") as run:
        print(run.pid, flush=True)
        run.wait()
