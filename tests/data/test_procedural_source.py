"""Claims about objects drawn while training: those that shards of the same params hold, whoever draws them."""

import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import changed, lines, make_stage, split, state_bytes

from geolrm.config import Params
from geolrm.data.procedural.source import GeneratedDataset
from geolrm.failures import BadInput
from geolrm.training import loop
from geolrm.training.loop import one_ahead, train

CPU = torch.device("cpu")


def generated(params: Params, name: str = "train") -> GeneratedDataset:
    return GeneratedDataset(params.procedural, name, params.shard.voxel_resolution, CPU)


def test_a_generated_sample_is_the_one_in_the_shard(tiny_params: Params, tiny_dataset: Path) -> None:
    shards, drawn = split(tiny_dataset, "train"), generated(tiny_params)
    assert len(drawn) == len(shards)
    for number in range(len(shards)):
        stored, made = shards.sample(number), drawn[number]
        assert (made.key, made.roles) == (stored.key, stored.roles)
        assert made.orbit_inputs(7) == stored.orbit_inputs(7)
        one, other = stored.views([5, 0, 30]), made.views([5, 0, 30])
        assert torch.equal(one.cameras.camera_to_world, other.cameras.camera_to_world)
        assert (one.alpha - other.alpha).abs().max() < 1 / 250
        assert (one.composited() - other.composited()).abs().mean() < 0.01
        assert one.depth is not None
        assert other.depth is not None
        assert torch.equal(one.depth > 0, other.depth > 0)
        assert (one.depth - other.depth).abs().max() < 1e-3
        hit, union = (stored.occupancy & made.occupancy).sum(), (stored.occupancy | made.occupancy).sum()
        assert hit >= 0.99 * union  # depth in a shard is rounded to 16 bits


def test_views_that_are_not_there_and_objects_beyond_the_split_are_refused(tiny_params: Params) -> None:
    data = generated(tiny_params, "val")
    for number in (1, -1):
        with pytest.raises(IndexError):
            data.sample(number)
    for views in ([38], [-1], []):
        with pytest.raises(BadInput, match="too_few_views"):
            data.sample(0).views(views)


def test_a_training_on_generated_objects_is_the_same_from_workers_and_in_pieces(
    tiny_params: Params, tmp_path: Path
) -> None:
    params = changed(tiny_params, "proposal", steps=4, validate_every=4)
    judges = [generated(params, "val").sample(0)]
    for name, workers, stops in (("at once", 0, [3]), ("worker", 1, [3]), ("pieces", 0, [1, 2, 3])):
        for stop in stops:
            stage = make_stage(params, "proposal")
            train(stage, generated(params), judges, tmp_path / name, {}, workers=workers, stop_after=stop)
    for name in ("worker", "pieces"):
        assert state_bytes(tmp_path / name) == state_bytes(tmp_path / "at once")
        assert lines(tmp_path / name) == lines(tmp_path / "at once")


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
def test_a_training_that_traces_ahead_is_the_one_that_traces_when_asked(
    workers: int, tiny_params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = changed(tiny_params, "proposal", steps=5, validate_every=5)
    judges = [generated(params, "val").sample(0)]

    def when_asked(batches: Iterator[list[Any]], pool: Executor) -> Iterator[list[Any]]:
        yield from batches

    for name in ("ahead", "asked"):
        if name == "asked":
            monkeypatch.setattr(loop, "one_ahead", when_asked)
        for stop in (2, 4):  # goes on after two
            stage = make_stage(params, "proposal")
            train(stage, generated(params), judges, tmp_path / name, {}, workers=workers, stop_after=stop)
    assert state_bytes(tmp_path / "ahead") == state_bytes(tmp_path / "asked")
    assert lines(tmp_path / "ahead") == lines(tmp_path / "asked")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tracing")]
