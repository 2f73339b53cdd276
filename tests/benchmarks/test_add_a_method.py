"""docs/add-a-method.md, followed to the letter: its file, its command, the rows that it promises."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from benchmarks import methods
from benchmarks.rows import code_hash
from benchmarks.sweep_views import Arguments, sweep
from geolrm.data.loader import ShardDataset

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "add-a-method.md").read_text()


@pytest.fixture
def ball(tmp_path, monkeypatch):
    """The page's file among the methods, as if it lay in their folder."""
    (name,) = re.findall(r"^`benchmarks/methods/(\w+)\.py`:$", PAGE, re.MULTILINE)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    yield name
    sys.modules.pop(f"{methods.__name__}.{name}", None)


def test_the_page_s_file_and_command_give_what_it_promises(ball, tiny_dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tiny_dataset)
    (command,) = re.findall(r"^    python benchmarks/sweep_views.py (.*)$", PAGE, re.MULTILINE)
    arguments = tyro.cli(Arguments, args=shlex.split(command))
    rows = sweep(arguments)["procedural"]
    assert {(row["method"], row["views"]): row["status"] for row in rows} == {
        (ball, 4): "ok",
        ("white", 4): "empty",
        (ball, 21): "not_applicable",
        ("white", 21): "empty",
    }
    by = {(row["method"], row["views"]): row for row in rows}
    assert by[ball, 4]["mask_iou"] > 0.3
    assert by[ball, 4]["cd_sum"] < 1 < by["white", 4]["cd_sum"]
    folder = tiny_dataset / "results" / "mine" / "procedural"
    assert [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    (key,) = ShardDataset(tiny_dataset / "datasets" / "procedural" / "tiny", "test").keys
    kept = {file.name for file in (folder / "artefacts" / ball / key / "4").iterdir()}
    assert kept == {"input.png", "truth.png", "render.png", "error.png", "turntable.webm", "gaussians.ply", "mesh.glb"}
    shown = capsys.readouterr().out
    assert "truth against truth" in shown
    assert "geolrm-bench-v1 with image_size" in shown


def test_the_page_s_first_command_makes_the_data(tiny_dataset):
    (command,) = re.findall(r"^    (python -m pipelines.render_procedural .*)$", PAGE, re.MULTILINE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        command.replace("python ", f"{sys.executable} "), shell=True, cwd=tiny_dataset, env=environment, check=True
    )


def test_a_change_in_the_file_or_in_what_it_imports_makes_its_rows_stale(ball, tmp_path):
    files = methods.sources(ball)
    assert {file.name for file in files} >= {f"{ball}.py", "round_gaussians.py"}
    before = code_hash(files)
    with (tmp_path / f"{ball}.py").open("a") as file:
        file.write("# a better ball\n")
    assert code_hash(methods.sources(ball)) != before
