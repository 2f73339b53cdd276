"""Every stage on a disk that is really full: one plain message, nothing lost, and with room the same command finishes.

The shard stage, whose writers are processes of a cluster, has its claim in tests/data/test_shard_pipeline.py.
"""

from __future__ import annotations

import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mesh_files import gso_files, write_zip
from synthetic_results import write_results
from tiny_training import make_stage

from geolrm.config import Params
from geolrm.files import TEMPORARY
from geolrm.training.checkpoint import save_checkpoint

STAGES = {  # name: (arguments, folder that the small disk holds, its kilobytes)
    "pipelines.render_procedural": ([], "datasets/procedural/tiny/objects", 300),
    "pipelines.render_meshes": (
        ["--layout", "gso_zip", "--input", "box.zip", "--workers", "1"],
        "datasets/gso/tiny/objects",
        100,
    ),
    "pipelines.train_proposal": ([], "results/tiny/proposal", 100),
    "pipelines.train_reconstruction": ([], "results/tiny/reconstruction", 100),
    "benchmarks.sweep_views": (["--methods", "white", "--objects", "1"], "results/tiny/sweep", 40),
    "pipelines.report": (["--tracking-uri", "none"], "results/tiny", 2000),
}


@pytest.fixture
def workplace(
    tiny_params: Params, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The folder in which a stage is called, with everything that any of them reads."""
    shutil.copytree(tiny_dataset, tmp_path, dirs_exist_ok=True)
    stage = make_stage(tiny_params, "proposal")
    save_checkpoint(tmp_path / "results/tiny/proposal", "proposal", stage.network, stage.config, {})
    write_zip(tmp_path / "box.zip", gso_files())
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    torch.set_flush_denormal(False)  # as the training scripts leave it


def run(module: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """`python -m module`, in this process: imports are what takes long."""
    monkeypatch.setattr(sys, "argv", [module, *STAGES[module][0]])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize("module", STAGES)
def test_a_full_disk_ends_a_stage_in_one_plain_message_and_with_room_it_finishes(
    module: str, workplace: Path, small_disk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if module == "pipelines.render_meshes":
        pytest.importorskip("open3d")
    _, place, kilobytes = STAGES[module]
    folder = workplace / place
    shutil.rmtree(folder, ignore_errors=True)
    resize = small_disk(folder, kilobytes)
    if module == "pipelines.report":
        write_results(folder)
    assert run(module, monkeypatch) == 1
    said = capsys.readouterr().err.splitlines()
    (message,) = [line for line in said if line.startswith("error: ")]
    assert message.startswith("error: the disk is full: ")
    assert "run the same command again" in message
    assert said[-1] == message
    assert not [path for path in folder.rglob(TEMPORARY) if path.is_file()]
    resize(64 << 10)
    assert run(module, monkeypatch) == 0
