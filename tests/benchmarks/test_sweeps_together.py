"""Sweeps in real processes: one that is killed, two at once, a method that takes its process down, memory that leaks nowhere."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from benchmarks.rows import check_row, key_of, read_rows

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


def begin(place: Path, *command: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *command], cwd=place, env=environment, **pipes)


def rows_in(place: Path) -> list[dict]:
    return read_rows(place / "results" / "tiny" / "sweep" / "procedural" / "rows.jsonl")


def test_two_sweeps_at_once_one_killed_make_every_row_once_and_a_third_goes_on(place):
    command = ("-m", "benchmarks.sweep_views")
    killed, other = begin(place, *command), begin(place, *command)
    while not rows_in(place):
        assert killed.poll() is None or other.poll() is None
        time.sleep(0.02)
    workers = psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    killed.communicate()
    output, _ = other.communicate(timeout=200)
    assert other.returncode == 0, output
    psutil.wait_procs(workers, timeout=30)
    assert not [worker for worker in workers if worker.is_running()]
    rows = rows_in(place)
    for row in rows:
        check_row(row)
    assert sorted(map(key_of, rows)) == sorted(
        (m, row_key, v) for m in METHODS for row_key in {rows[0]["object"]} for v in VIEWS
    )
    again = begin(place, *command)
    output, _ = again.communicate(timeout=200)
    assert again.returncode == 0, output
    assert rows_in(place) == rows


def test_a_method_that_takes_its_process_down_is_a_row_and_its_memory_is_not_the_next_ones(place):
    sweep = "sweep_views.sweep(sweep_views.Arguments(methods=('visual_hull', 'white'), views=(2, 4, 6)))"
    process = begin(place, "-c", PLANTED + sweep)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    rows = {(row["method"], row["views"]): row for row in rows_in(place)}
    assert [rows["visual_hull", views]["status"] for views in (2, 4, 6)] == ["empty", "failed", "empty"]
    crashed = rows["visual_hull", 4]
    assert "SIGKILL" in crashed["reason"]
    assert crashed["psnr"] == rows["white", 4]["psnr"]  # scored as white pictures
    peaks = {name: rows[name, 2]["peak_memory_bytes"] for name in METHODS}
    assert peaks["white"] < peaks["visual_hull"] - 150e6


def test_a_defect_in_a_methods_process_stops_the_sweep_with_its_traceback(place):
    sweep = "sweep_views.sweep(sweep_views.Arguments(methods=('white', 'mean_colour'), views=(2,)))"
    process = begin(place, "-c", PLANTED + sweep)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "AttributeError: a defect" in output
    assert "in reconstruct" in output
    assert [key_of(row)[0] for row in rows_in(place)] == ["white"]  # what was finished stays
