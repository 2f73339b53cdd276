"""Claims about the whole pipeline under DVC: one command makes everything, the next one nothing, a killed one goes on.

A copy of the repository with parameters far below smoke: what is shown is that the stages fit together, not what they learn.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from geolrm.config import Params

REPOSITORY = Path(__file__).parents[1]
HOME = "datasets/procedural/tiny"
RESULTS = "results/tiny"
STEPS = 60  # of the second stage: enough to be killed among them
EXPECTED = [
    f"{HOME}/catalog.parquet",
    f"{HOME}/shards/train-000000.tar",
    f"{HOME}/shards/val-000000.tar",
    f"{HOME}/shards/test-000000.tar",
    f"{RESULTS}/proposal/checkpoint.safetensors",
    f"{RESULTS}/proposal/checkpoint.json",
    f"{RESULTS}/proposal/steps.jsonl",
    f"{RESULTS}/reconstruction/checkpoint.safetensors",
    f"{RESULTS}/reconstruction/checkpoint.json",
    f"{RESULTS}/reconstruction/steps.jsonl",
    f"{RESULTS}/sweep/procedural/rows.jsonl",
    f"{RESULTS}/sweep/procedural/metrics.json",
    f"{RESULTS}/sweep/procedural/curve.csv",
    f"{RESULTS}/report.html",
    f"{RESULTS}/summary.json",
    "mlflow.db",
]


def environment(root: Path) -> dict[str, str]:
    cache = Path(os.environ.get("NUMBA_CACHE_DIR", root / ".numba"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    known = {"PATH": path, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "NUMBA_CACHE_DIR": str(cache)}
    return os.environ | known | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}


def repro(root: Path) -> str:
    """Run `dvc repro` to its end; returns what it said."""
    command = [sys.executable, "-m", "dvc", "repro"]
    done = subprocess.run(command, cwd=root, env=environment(root), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def stages_run(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def edit_params(root: Path, section: str, **values: Any) -> None:
    data = yaml.safe_load((root / "params.yaml").read_text())
    data[section] |= values
    (root / "params.yaml").write_text(yaml.safe_dump(data, sort_keys=False))


@pytest.fixture(scope="module")
def clone(tiny_params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked files, a repository of its own, with tiny parameters."""
    root = tmp_path_factory.mktemp("clone")
    git = {"check": True, "capture_output": True, "text": True}
    names = subprocess.run(["git", "-C", REPOSITORY, "ls-files"], **git).stdout.splitlines()  # type: ignore[call-overload]
    for name in names:
        if (REPOSITORY / name).is_file() and name != "dvc.lock":
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes((REPOSITORY / name).read_bytes())
    subprocess.run(["git", "init", "-q", root], **git)  # type: ignore[call-overload]
    data = tiny_params.model_dump(mode="json")
    data["procedural"] |= {"train": 2, "resolution": 48}
    data["reconstruction"]["optimisation"] |= {"steps": STEPS, "checkpoint_every": 4, "validate_every": STEPS}
    (root / "params.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    return root


def written_steps(root: Path, stage: str) -> list[dict[str, Any]]:
    file = root / RESULTS / stage / "steps.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [line for line in found if "loss" in line]


def kill_while_training(root: Path, stage: str, after: int) -> int:
    """Start `dvc repro`, kill it and all its processes once a state beyond a step is there; returns that state's step."""
    command = [sys.executable, "-m", "dvc", "repro"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    process = subprocess.Popen(command, cwd=root, env=environment(root), **quiet)  # type: ignore[call-overload]
    folder, deadline = root / RESULTS / stage / "resume", time.monotonic() + 240
    try:
        while not any(int(path.name[5:]) >= after for path in folder.glob("step-*")):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return max(int(path.name[5:]) for path in folder.glob("step-*"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_and_run_again_it_goes_on_and_then_runs_no_more_than_it_must(clone: Path, tiny_params: Params) -> None:
    state = kill_while_training(clone, "reconstruction", after=8)
    assert state < STEPS
    before = written_steps(clone, "reconstruction")[:state]
    assert stages_run(repro(clone)) == ["train_reconstruction", "sweep", "report"]
    after = written_steps(clone, "reconstruction")
    assert [line["step"] for line in after] == list(range(1, STEPS + 1))
    assert after[:state] == before  # their clocks too: these steps were not taken again

    missing = [name for name in EXPECTED if not (clone / name).exists() or (clone / name).stat().st_size == 0]
    assert not missing
    rows = [json.loads(line) for line in (clone / RESULTS / "sweep/procedural/rows.jsonl").read_text().splitlines()]
    methods = tiny_params.sweep.methods
    assert {(row["method"], row["views"]) for row in rows} == {(m, v) for m in methods for v in tiny_params.sweep.views}

    again = repro(clone)
    assert stages_run(again) == []
    assert "up to date" in again

    edit_params(clone, "sweep", views=[4, 6])
    assert stages_run(repro(clone)) == ["sweep", "report"]
