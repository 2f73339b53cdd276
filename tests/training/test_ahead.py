"""Claims about what is brought to the training device while a step runs."""

import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tiny_training import changed, lines, make_stage, split, state_bytes

from geolrm.config import Params
from geolrm.failures import BadInput
from geolrm.training import loop
from geolrm.training.loop import one_ahead, train


def test_batches_drawn_ahead_come_in_order_from_another_thread_and_one_ahead_at_most() -> None:
    begun: list[int] = []
    threads: set[int] = set()

    def batches() -> Iterator[list[int]]:
        for number in range(5):
            begun.append(number)
            threads.add(threading.get_ident())
            yield [number]

    with ThreadPoolExecutor(1) as pool:
        for number, batch in enumerate(one_ahead(batches(), pool)):
            assert batch == [number]
            assert max(begun) <= number + 1
    assert number == 4
    assert threads.isdisjoint({threading.get_ident()})


def test_what_goes_wrong_ahead_is_raised_where_its_batch_is_asked_for() -> None:
    def batches() -> Iterator[list[int]]:
        yield [0]
        raise BadInput("object_empty", "train-00001", "nothing to see")

    with ThreadPoolExecutor(1) as pool:
        ahead = one_ahead(batches(), pool)
        assert next(ahead) == [0]
        with pytest.raises(BadInput, match="object_empty"):
            next(ahead)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_training_that_decodes_ahead_is_the_one_that_decodes_when_asked(
    workers: int, tiny_params: Params, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = changed(tiny_params, "proposal", steps=5, validate_every=5)
    judges = [split(tiny_dataset, "val").sample(0)]

    def when_asked(batches: Iterator[list[Any]], pool: Executor) -> Iterator[list[Any]]:
        yield from batches

    for name in ("ahead", "asked"):
        if name == "asked":
            monkeypatch.setattr(loop, "one_ahead", when_asked)
        for stop in (2, 4):  # goes on after two
            stage = make_stage(params, "proposal")
            train(stage, split(tiny_dataset, "train"), judges, tmp_path / name, {}, workers=workers, stop_after=stop)
    assert state_bytes(tmp_path / "ahead") == state_bytes(tmp_path / "asked")
    assert lines(tmp_path / "ahead") == lines(tmp_path / "asked")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("bringing")]
