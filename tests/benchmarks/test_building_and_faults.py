"""Claims about two benchmarks of the shard stage: what is built is verified and read; a kill holds only if nothing was lost."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.speed.building import Options, alone_in_this_process, jobs_for, made, thinned, verified_and_read
from benchmarks.speed.faults import VICTIMS, Kill, killed


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
