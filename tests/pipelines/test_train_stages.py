"""Claims about the two training scripts as processes: killed at any moment and run again, the same bytes; bad input, one line."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny_training import changed

from geolrm.config import Params
from geolrm.failures import BadInput
from pipelines import train_proposal

REPOSITORY = Path(__file__).parents[2]
STEPS = 16


def start(root: Path, stage: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, "-m", f"pipelines.{stage}"], cwd=root, env=environment, **pipes)  # type: ignore[call-overload, no-any-return]


def finish(root: Path, stage: str) -> tuple[int, str]:
    process = start(root, stage)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


@pytest.fixture
def workplace(tiny_params: Params, tiny_dataset: Path, tmp_path: Path) -> Path:
    """A folder to run the stages in: shards and parameters with a state after every step."""
    params = changed(tiny_params, "proposal", steps=STEPS, checkpoint_every=1, validate_every=STEPS)
    shutil.copytree(tiny_dataset / "datasets", tmp_path / "datasets")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json")))
    return tmp_path


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_bytes_of_an_undisturbed_run(workplace: Path) -> None:
    status, output = finish(workplace, "train_proposal")
    assert status == 0, output
    results = workplace / "results/tiny/proposal"
    expected = (results / "checkpoint.safetensors").read_bytes()
    losses = [json.loads(line).get("loss") for line in (results / "steps.jsonl").read_text().splitlines()]
    shutil.rmtree(results)
    moments = random.Random(0)
    for number, moment in enumerate(("a state is being written", "any")):
        process, deadline = start(workplace, "train_proposal"), time.monotonic() + 90
        reached = 0
        while reached < 2 + 8 * number and process.poll() is None and time.monotonic() < deadline:
            states = sorted(path.name for path in results.glob("resume/step-*"))
            reached = int(states[-1][5:]) if states else 0
            time.sleep(0.005)  # a busy wait would take the core from what it waits for
        if moment == "any":
            time.sleep(moments.uniform(0, 0.05))
        else:
            while process.poll() is None and not list(results.glob("resume/.step-*.tmp")):
                time.sleep(0.0005)
        process.kill()
        output, _ = process.communicate(timeout=30)
        assert process.returncode == -9, output
        assert not (results / "checkpoint.json").exists()
    status, output = finish(workplace, "train_proposal")
    assert status == 0, output
    assert "going on after step" in output
    assert (results / "checkpoint.safetensors").read_bytes() == expected
    assert [json.loads(line).get("loss") for line in (results / "steps.jsonl").read_text().splitlines()] == losses
    assert not list(results.rglob(".*"))


@pytest.mark.parametrize(
    ("stage", "damage", "said"),
    [
        ("train_proposal", "catalog", "catalog_missing"),
        ("train_reconstruction", "nothing", "checkpoint_missing"),
        ("train_proposal", "params", "unknown key 'proposal.optimisation.stepps'"),
        ("train_proposal", "shard", "shard_truncated"),
    ],
)
def test_bad_input_ends_in_one_plain_message(stage: str, damage: str, said: str, workplace: Path) -> None:
    home = workplace / "datasets/procedural/tiny"
    if damage == "catalog":
        (home / "catalog.parquet").unlink()
    elif damage == "shard":
        shard = home / "shards/train-000000.tar"
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 4])
    elif damage == "params":
        text = (workplace / "params.yaml").read_text()
        (workplace / "params.yaml").write_text(text.replace("    steps:", "    stepps: 1\n    steps:", 1))
    status, output = finish(workplace, stage)
    assert status == 1, output
    assert "error: " in output
    assert said in output
    assert "Traceback" not in output


def test_a_warm_restart_begins_where_the_weights_that_it_names_had_ended(
    tiny_params: Params, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)

    def trained(**changes: int) -> list[dict[str, float]]:
        params = changed(tiny_params, "proposal", **{"steps": 2, "validate_every": 2, "warmup": 1} | changes)
        Path("params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json")))
        train_proposal.main(start="first" if Path("first").exists() else None)
        lines = map(json.loads, Path("results/tiny/proposal/steps.jsonl").read_text().splitlines())
        return [line for line in lines if "validation/loss" in line]

    ended = trained()[-1]
    Path("results/tiny/proposal").rename("first")
    begun = trained(seed=1)[0]
    assert begun["step"] == 0
    assert begun["validation/loss"] == pytest.approx(ended["validation/loss"], rel=1e-6)
    first, second = (
        json.loads(Path(folder, "checkpoint.json").read_text()) for folder in ("first", "results/tiny/proposal")
    )
    assert second["started_from"] == first["sha256"]
    assert "started_from" not in first
    with pytest.raises(BadInput, match="checkpoint_missing"):
        train_proposal.main(start="nowhere")
