"""Sweeps in real processes: one that is killed, two at once, a method that takes its process down, memory that leaks nowhere."""

import os
import pickle
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from benchmarks.rows import check_row, key_of, read_rows
from benchmarks.sweep_views import DatasetSweep, open_dataset
from geolrm.config import load_params
from geolrm.metrics.perceptual import load_perceptual

ROOT = Path(__file__).parents[2]
METHODS, VIEWS = ("visual_hull", "white"), (2, 3, 4, 5, 6, 7, 8)
PLANTED = """
import os, signal
import torch
from benchmarks import sweep_views
from benchmarks.methods import Method
from geolrm.failures import BadInput
from geolrm.gaussians import Gaussians

held = []

def load(name, context):
    def reconstruct(views):
        if name == "visual_hull":
            held.append(torch.ones(50_000_000)) if not held else None  # 200 MB, for good
        if name == "visual_hull" and len(views) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "mean_colour":
            raise AttributeError("a defect")
        return Gaussians.empty()
    return Method(reconstruct)

sweep_views.load_method = load
"""


@pytest.fixture
def place(tiny_dataset, tmp_path):
    """A folder to sweep in, beside the shards of one test object; its params list `METHODS` and `VIEWS`."""
    listed = yaml.safe_load((tiny_dataset / "params.yaml").read_text())
    listed["sweep"] |= {"methods": list(METHODS), "views": list(VIEWS)}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(listed))
    (tmp_path / "datasets").symlink_to(tiny_dataset / "datasets")
    return tmp_path


def test_a_sweep_survives_the_way_into_a_process_that_starts_anew(place):
    """As on a GPU, where a process is not forked."""
    data, dataset_hash = open_dataset(place / "datasets" / "procedural" / "tiny", "test")
    facts = (load_params(place / "params.yaml"), place, place / "out", load_perceptual("auto"), torch.device("cpu"))
    one = DatasetSweep("procedural", data, *facts, dataset_hash)
    pickle.loads(pickle.dumps(partial(one.make, "white", {})))()
    assert [row["views"] for row in read_rows(one.rows_file)] == list(VIEWS)


@pytest.fixture
def begin(place):
    """Start Python in that folder; what still runs at the end of the test is killed."""
    begun: list[subprocess.Popen] = []

    def start(*command: str) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        begun.append(subprocess.Popen([sys.executable, *command], cwd=place, env=environment, **pipes))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def rows_in(place: Path) -> list[dict]:
    return read_rows(place / "results" / "tiny" / "sweep" / "procedural" / "rows.jsonl")


def test_two_sweeps_at_once_one_killed_make_every_row_once_and_a_third_goes_on(place, begin):
    command = ("-m", "benchmarks.sweep_views")
    killed, other = begin(*command), begin(*command)
    while not rows_in(place):
        assert killed.poll() is None or other.poll() is None
        time.sleep(0.02)
    workers = psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    killed.communicate()
    output, _ = other.communicate()
    assert other.returncode == 0, output
    psutil.wait_procs(workers, timeout=30)
    assert not [worker for worker in workers if worker.is_running()]
    rows = rows_in(place)
    for row in rows:
        check_row(row)
    assert sorted(map(key_of, rows)) == sorted(
        (m, row_key, v) for m in METHODS for row_key in {rows[0]["object"]} for v in VIEWS
    )
    again = begin(*command)
    output, _ = again.communicate()
    assert again.returncode == 0, output
    assert rows_in(place) == rows


def test_a_method_that_takes_its_process_down_is_a_row_and_its_memory_is_not_the_next_ones(place, begin):
    sweep = "sweep_views.sweep(sweep_views.Arguments(methods=('visual_hull', 'white'), views=(2, 4, 6)))"
    process = begin("-c", PLANTED + sweep)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    rows = {(row["method"], row["views"]): row for row in rows_in(place)}
    assert [rows["visual_hull", views]["status"] for views in (2, 4, 6)] == ["empty", "failed", "empty"]
    crashed = rows["visual_hull", 4]
    assert "SIGKILL" in crashed["reason"]
    assert crashed["psnr"] == rows["white", 4]["psnr"]  # scored as white pictures
    peaks = {name: rows[name, 2]["peak_memory_bytes"] for name in METHODS}
    assert peaks["white"] < peaks["visual_hull"] - 150e6


def test_a_defect_in_a_methods_process_stops_the_sweep_with_its_traceback(place, begin):
    sweep = "sweep_views.sweep(sweep_views.Arguments(methods=('white', 'mean_colour'), views=(2,)))"
    process = begin("-c", PLANTED + sweep)
    output, _ = process.communicate()
    assert process.returncode == 1
    assert "AttributeError: a defect" in output
    assert "in reconstruct" in output
    assert [key_of(row)[0] for row in rows_in(place)] == ["white"]  # what was finished stays
