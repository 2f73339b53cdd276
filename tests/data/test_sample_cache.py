"""Claims about the cache of a store's samples: it holds what was used last, never more than its limit, whoever shares it."""

import hashlib
import multiprocessing
import os
import random
import shutil
from pathlib import Path

import pytest
from spheres import build_all

from geolrm.data.loader import ShardDataset
from geolrm.data.places import Place, place, write_at
from geolrm.data.sample_cache import SampleCache
from geolrm.failures import BadInput

SIZE = 1000


def content(number: int) -> bytes:
    return random.Random(number).randbytes(SIZE)


def name_of(number: int) -> str:
    return hashlib.sha256(content(number)).hexdigest()


def ask(cache: SampleCache, number: int, fetched: list[int] | None = None) -> bytes:
    """The sample of that number through the cache; what had to be fetched is noted."""

    def fetch() -> bytes:
        if fetched is not None:
            fetched.append(number)
        return content(number)

    with cache.open(name_of(number), fetch) as file:
        return file.read()


def kept(folder: Path) -> int:
    """Bytes of all samples and temporary files there."""
    total = 0
    for path in folder.glob("??/*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # removed by another process meanwhile
            continue
    return total


def test_a_sample_is_fetched_once(tmp_path: Path) -> None:
    cache, fetched = SampleCache(tmp_path / "cache", 10 * SIZE), []
    assert [ask(cache, number, fetched) for number in (1, 2, 1, 1, 2)] == [content(n) for n in (1, 2, 1, 1, 2)]
    assert fetched == [1, 2]


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    cache, fetched = SampleCache(tmp_path, 5 * SIZE), []
    for number in (0, 1, 2, 3, 4, 0, 2, 5):  # the last one needs room: 1, 3 and 4 were used before 0 and 2
        ask(cache, number, fetched)
    assert kept(tmp_path) == 4 * SIZE  # nine tenths of the limit
    fetched.clear()
    for number in (0, 2, 4, 5):
        ask(cache, number, fetched)
    assert fetched == []
    for number in (1, 3):
        ask(cache, number, fetched)
    assert fetched == [1, 3]


def test_a_sample_that_has_no_room_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as error:
        ask(SampleCache(tmp_path, SIZE - 1), 0)
    assert error.value.reason == "cache_too_small"
    assert ask(SampleCache(tmp_path, SIZE), 0) == content(0)


def use_at_random(folder: Path, seed: int, limit: int) -> None:
    """Read samples in random order; exit with an error where one is wrong or the folder holds too much."""
    cache, draw = SampleCache(folder, limit), random.Random(seed)
    for _ in range(60):
        number = draw.randrange(20)
        if ask(cache, number) != content(number) or kept(folder) > limit:
            os._exit(1)


def test_processes_that_share_a_cache_keep_the_limit_and_read_the_right_bytes(tmp_path: Path) -> None:
    processes = [
        multiprocessing.get_context("fork").Process(target=use_at_random, args=(tmp_path, seed, 6 * SIZE))
        for seed in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert 0 < kept(tmp_path) <= 6 * SIZE


@pytest.mark.parametrize("note", [None, "", "12x", "0"])
def test_what_a_killed_writer_left_is_swept_and_the_limit_kept(tmp_path: Path, note: str | None) -> None:
    cache = SampleCache(tmp_path, 5 * SIZE)
    for number in range(3):
        ask(cache, number)
    leftover = tmp_path / "ab" / ".abc.1.tmp"
    leftover.parent.mkdir(exist_ok=True)
    leftover.write_bytes(bytes(SIZE))
    note_file = tmp_path / ".bytes"
    if note is None:
        note_file.unlink()
    elif note == "0":  # a note that is too large, as of a writer killed between note and file
        note_file.write_text(str(5 * SIZE))
    else:
        note_file.write_text(note)
    for number in range(3, 9):
        ask(cache, number)
    assert not leftover.exists()
    assert kept(tmp_path) <= 5 * SIZE


def test_a_cache_may_be_deleted_at_any_time(tmp_path: Path) -> None:
    cache = SampleCache(tmp_path / "cache", 5 * SIZE)
    held = cache.open(name_of(0), lambda: content(0))
    shutil.rmtree(tmp_path / "cache")
    with held:
        assert held.read() == content(0)
    assert ask(cache, 0) == content(0)


@pytest.fixture
def stored(tmp_path: Path) -> Place:
    """Three spheres in a store that is this process's memory."""
    build_all(tmp_path / "home", {"train": 3})
    home = place(f"memory://{tmp_path.name}")
    for path in (tmp_path / "home" / "catalog.parquet", *(tmp_path / "home" / "shards").glob("*.tar")):
        write_at(home / path.relative_to(tmp_path / "home").as_posix(), path.read_bytes())
    return home


def test_a_sample_whose_copy_made_room_for_others_is_fetched_again(stored: Place, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    sample = ShardDataset(stored, "train", cache).sample(0)
    limit = kept(cache)
    data = ShardDataset(stored, "train", cache, cache_bytes=limit + 8192)  # room for one
    first = data.sample(0)
    other = data.sample(1)
    assert other.views([0]).colour.any()
    assert kept(cache) <= limit + 8192
    assert (first.views([0]).colour == sample.views([0]).colour).all()


def test_a_store_needs_a_cache_that_holds_a_sample(stored: Place, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as error:
        ShardDataset(stored, "train", tmp_path / "cache", cache_bytes=100).sample(0)
    assert error.value.reason == "cache_too_small"
