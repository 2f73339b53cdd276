"""Claims about reading: only what is asked for, in an order that ranks and restarts agree on, and damage is named."""

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from spheres import build_all, sphere_object

from geolrm.data import loader, shards
from geolrm.data.catalog import read_rows
from geolrm.data.loader import ShardDataset, batches, order, stream
from geolrm.failures import BadInput


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("loader")
    build_all(home, {"train": 5, "val": 1})
    return home


@pytest.fixture
def broken(tmp_path: Path, home: Path) -> Path:
    """A copy of the data set, to be damaged."""
    import shutil

    shutil.copytree(home, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_sample_is_the_object_that_went_in(home: Path) -> None:
    data = ShardDataset(home, "train")
    assert data.keys == [f"train-{i:05d}" for i in range(5)]
    sample, obj = data.sample("train-00003"), sphere_object("train-00003")
    assert torch.equal(sample.test_views().colour, obj.test_views.colour)  # type: ignore[union-attr]
    views = sample.views([30, 2])
    numbers = [sample.meta["source_views"][i] for i in (30, 2)]
    assert torch.equal(views.colour, obj.views.colour[numbers])
    assert torch.equal(views.cameras.camera_to_world, obj.views.cameras.camera_to_world[numbers])
    assert views.depth is not None
    assert obj.views.depth is not None
    assert (views.depth - obj.views.depth[numbers]).abs().max() < 1 / (20 * 128)
    assert sample.occupancy.sum() == sample.meta["occupied_voxels"] > 0
    assert sample.points is not None
    assert sample.points.shape == sample.point_normals.shape == (100, 3)  # type: ignore[union-attr]


def test_only_the_picked_views_are_decoded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    real = shards.decode_planes
    monkeypatch.setattr(shards, "decode_planes", lambda data: decoded.append(len(data)) or real(data))
    ShardDataset(home, "train").sample(0).views([1, 7, 30])
    assert len(decoded) == 2 * 3  # colour and depth


@pytest.mark.parametrize("size", [None, (21, 17)])
def test_views_read_over_a_background_are_those_read_straight_and_composited(
    home: Path, size: tuple[int, int] | None
) -> None:
    sample = ShardDataset(home, "train").sample(1)
    straight, over = sample.views([3, 0], size), sample.views([3, 0], size, 1.0)
    assert (over.composited(1.0) - straight.composited(1.0)).abs().max() < 4e-5
    assert torch.equal(over.alpha, straight.alpha)
    assert over.depth is not None
    assert straight.depth is not None
    assert torch.equal(over.depth, straight.depth)


def test_a_shard_of_another_version_of_the_format_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "FORMAT_VERSION", 99)
    with pytest.raises(BadInput, match=r"(?s)version \d+ .* reads version 99.*pipelines\.shard") as error:
        ShardDataset(home, "train").sample(0)
    assert error.value.reason == "shard_format"


def test_orbit_inputs_are_spread_over_the_orbit_by_role(home: Path) -> None:
    sample = ShardDataset(home, "val").sample(0)
    assert sample.orbit_inputs(4) == [0, 6, 12, 18]
    assert all(sample.roles[i] == "orbit" for i in sample.orbit_inputs(21))


def test_more_views_than_there_are_is_too_few_views(home: Path) -> None:
    sample = ShardDataset(home, "val").sample(0)
    for ask in (lambda: sample.views([38]), lambda: sample.views([-1]), lambda: sample.orbit_inputs(25)):
        with pytest.raises(BadInput) as error:
            ask()
        assert error.value.reason == "too_few_views"


def test_an_order_is_a_permutation_and_a_pure_function_of_seed_and_epoch() -> None:
    assert sorted(order(100, 1, 2)) == list(range(100))
    assert list(order(100, 1, 2)) == list(order(100, 1, 2))
    assert list(order(100, 1, 2)) != list(order(100, 1, 3))
    assert list(order(100, 1, 2)) != list(order(100, 2, 2))
    assert order(6, 0, 0).tolist() == [0, 2, 1, 5, 4, 3]  # and it is the same on every machine, for ever


@pytest.mark.parametrize(("count", "batch", "world"), [(48, 2, 2), (7, 3, 2), (5, 1, 4), (3, 4, 2)])
def test_ranks_together_see_the_batches_of_one_and_every_sample_once_an_epoch(
    count: int, batch: int, world: int
) -> None:
    steps = 3 * count
    ranks = [list(itertools.islice(batches(count, 7, batch, rank, world), steps)) for rank in range(world)]
    alone = list(itertools.islice(batches(count, 7, batch * world), steps))
    for step in range(steps):
        assert [place for turn in zip(*(rank[step] for rank in ranks), strict=True) for place in turn] == alone[step]
    seen = [place for places in alone for place in places]
    for epoch in range(len(seen) // count):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == [(epoch, index) for index in range(count)]


@pytest.mark.parametrize("start", [0, 1, 5, 23])
def test_a_run_that_starts_at_a_step_sees_what_an_unbroken_one_sees(start: int) -> None:
    unbroken = list(itertools.islice(batches(7, 3, 2, 1, 2), 30))
    resumed = list(itertools.islice(batches(7, 3, 2, 1, 2, start_step=start), 30 - start))
    assert resumed == unbroken[start:]


def test_a_stream_resumes_at_any_sample_without_going_through_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = list(itertools.islice(stream(7, 3, 0), 40))
    for start in range(33):
        assert list(itertools.islice(stream(7, 3, start), 7)) == unbroken[start : start + 7]
    epochs: list[int] = []
    real = loader.order
    monkeypatch.setattr(loader, "order", lambda count, seed, epoch: epochs.append(epoch) or real(count, seed, epoch))
    next(stream(7, 3, 7 * 1000 + 2))
    assert epochs == [1000]


@pytest.mark.parametrize(("world", "workers"), [(1, 2), (2, 1), (3, 2)])
def test_ranks_with_workers_see_every_object_of_uneven_shards_once_an_epoch(
    home: Path, world: int, workers: int
) -> None:
    data = ShardDataset(home, "train")
    shard_sizes = Counter(data._rows["shard"].to_pylist()).values()
    assert sorted(shard_sizes) == [1, 2, 2]
    epochs, seen = 3, []
    for rank in range(world):
        places = itertools.islice(stream(len(data), 11, rank, world), len(range(rank, epochs * len(data), world)))
        sampler = [index for _, index in places]
        loaded = torch.utils.data.DataLoader(Keys(data), batch_size=None, sampler=sampler, num_workers=workers)
        seen += list(zip(range(rank, epochs * len(data), world), loaded, strict=True))
    keys = [key for _, key in sorted(seen)]
    for epoch in range(epochs):
        assert sorted(keys[epoch * 5 : epoch * 5 + 5]) == data.keys


class Keys(torch.utils.data.Dataset[str]):
    """The key of each object, from its sample as read from the shard."""

    def __init__(self, data: ShardDataset) -> None:
        self.data = data

    def __getitem__(self, index: int) -> str:
        return str(self.data.sample(index).meta["key"])


def test_a_torch_data_loader_with_workers_can_wrap_the_dataset(home: Path) -> None:
    data = ShardDataset(home, "train")
    loaded = torch.utils.data.DataLoader(data, batch_size=None, sampler=[4, 0, 2], num_workers=1)
    assert [sample.key for sample in loaded] == ["train-00004", "train-00000", "train-00002"]


def test_a_shard_cut_short_is_named_with_the_remedy(broken: Path) -> None:
    shard = broken / "shards" / "train-000001.tar"
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size // 2)
    data = ShardDataset(broken, "train")
    data.sample("train-00000").test_views()
    with pytest.raises(BadInput, match=r"(?s)train-000001\.tar.*pipelines\.shard") as error:
        data.sample("train-00003").test_views()
    assert error.value.reason == "shard_truncated"


def read_some(sample_of: Callable[[int], loader.Sample]) -> None:
    sample = sample_of(0)
    sample.views([5])
    assert sample.occupancy.any()


@pytest.mark.parametrize("member", ["meta.json", "rgba.05.npy.zst", "occupancy.zst", "cameras.poses.npy"])
def test_a_changed_byte_is_found_by_its_hash(broken: Path, member: str) -> None:
    data = ShardDataset(broken, "train")
    (row, *_) = read_rows(broken / "catalog.parquet").to_pylist()
    places = {place["name"]: place["offset"] for place in row["members"]}
    with (broken / "shards" / "train-000000.tar").open("r+b") as file:
        file.seek(places[member] + 30)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(BadInput) as error:
        read_some(data.sample)
    assert error.value.reason == "shard_corrupt"
    assert member in str(error.value)


def test_a_missing_shard_catalog_or_split_is_named(broken: Path, tmp_path: Path) -> None:
    (broken / "shards" / "val-000000.tar").unlink()
    with pytest.raises(BadInput, match=r"val-000000\.tar") as missing_shard:
        ShardDataset(broken, "val").sample(0)
    with pytest.raises(BadInput) as missing_split:
        ShardDataset(broken, "tset")
    with pytest.raises(BadInput) as missing_catalog:
        ShardDataset(tmp_path / "nowhere", "train")
    reasons = [error.value.reason for error in (missing_shard, missing_split, missing_catalog)]
    assert reasons == ["shard_missing", "split_missing", "catalog_missing"]


def test_a_damaged_catalog_is_named(broken: Path) -> None:
    (broken / "catalog.parquet").write_bytes(b"PAR1 and then nothing of the kind")
    with pytest.raises(BadInput) as error:
        loader.ShardDataset(broken, "train")
    assert error.value.reason == "catalog_unreadable"
