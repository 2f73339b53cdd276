"""Claims about several ranks: two processes on this machine train as one does, stop together, and lose no more than one."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import two_ranks
import yaml
from tiny_training import STAGES, changed, lines, make_stage, samples, split

from geolrm.config import Params
from geolrm.failures import BadInput
from geolrm.training.loop import train
from geolrm.training.ranks import ALONE, Ranks

REPOSITORY = Path(__file__).parents[2]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def two(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks left (tests/training/two_ranks.py)."""
    out = tmp_path_factory.mktemp("two")
    command = [*TWO, str(Path(two_ranks.__file__)), str(tiny_dataset), str(out)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def assert_same_curve(found: list[dict[str, Any]], expected: list[dict[str, Any]], tolerance: float = 1e-4) -> None:
    assert [line.keys() for line in found] == [line.keys() for line in expected]
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=tolerance, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_two_ranks_take_the_steps_of_one(name: str, two: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    """Losses with sums over the batch, numbers of anchor points that the batch shares, gradients: all of the whole batch."""
    seen = two_ranks.trained(tiny_dataset, name, tmp_path, ALONE)
    assert_same_curve(lines(two / name), lines(tmp_path))
    shares = [json.loads((two / f"{name}-seen-{rank}.json").read_text()) for rank in (0, 1)]
    assert [key for pair in zip(*shares, strict=True) for key in pair] == seen
    first_epochs = [tuple(key) for key in seen[: 3 * (len(seen) // 3)]]  # of three objects
    assert len(set(first_epochs)) == len(first_epochs)


@pytest.mark.slow
def test_one_rank_finishes_what_two_began_to_the_same_curve(two: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    """The time was up at once: both ranks stopped after their first step, and a state was left to go on from."""
    folder = tmp_path / "on"
    folder.mkdir()
    assert [path.name for path in (two / "stopped/resume").iterdir()] == ["step-000001"]
    subprocess.run(["cp", "-r", *map(str, (two / "stopped").iterdir()), str(folder)], check=True)
    two_ranks.trained(tiny_dataset, "proposal", folder, ALONE)
    assert_same_curve(lines(folder), lines(two / "proposal"))


@pytest.mark.slow
def test_a_loss_that_is_no_number_on_one_rank_stops_both_and_names_its_objects_alone(two: Path) -> None:
    messages = [(two / f"diverged-{rank}.txt").read_text() for rank in (0, 1)]
    assert messages[0] == messages[1]
    assert "proposal: the loss is nan at step 4 on train-" in messages[0]
    (key,) = [key for key in ("train-00000", "train-00001", "train-00002") if key in messages[0]]
    drawn = json.loads((two / "proposal-seen-1.json").read_text())
    assert drawn[2 * 3][1] == int(key[-1])  # two samples a step and rank
    assert "the last good state is" in messages[0]
    assert [path.name for path in (two / "poisoned/resume").iterdir()] == ["step-000002"]
    assert not (two / "poisoned/checkpoint.json").exists()


def test_a_batch_that_ranks_cannot_share_evenly_is_refused(
    tiny_params: Params, tiny_dataset: Path, tmp_path: Path
) -> None:
    stage = make_stage(changed(tiny_params, "proposal", batch=4), "proposal")
    data, judges = split(tiny_dataset, "train"), samples(tiny_dataset, "val")
    with pytest.raises(BadInput, match="4 objects a step cannot be shared evenly by 3 ranks") as error:
        train(stage, data, judges, tmp_path, {}, ranks=Ranks(rank=0, count=3))
    assert error.value.reason == "batch_not_divisible"


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_and_the_next_loses_no_saved_step(
    tiny_params: Params, tiny_dataset: Path, tmp_path: Path
) -> None:
    params = changed(tiny_params, "proposal", batch=2, steps=400, checkpoint_every=2, validate_every=400)
    (tmp_path / "datasets").symlink_to(tiny_dataset / "datasets")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json")))
    command, results = [*TWO, "-m", "pipelines.train_proposal"], tmp_path / "results/tiny/proposal"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    run = subprocess.Popen(command, cwd=tmp_path, env=environment(), **quiet)  # type: ignore[call-overload]
    deadline = time.monotonic() + 120
    while not list(results.glob("resume/step-*")) and time.monotonic() < deadline:
        assert run.poll() is None
        time.sleep(0.05)
    ranks = psutil.Process(run.pid).children()
    assert len(ranks) == 2
    (second,) = [rank for rank in ranks if rank.environ()["RANK"] == "1"]
    second.send_signal(signal.SIGKILL)
    assert run.wait(timeout=120) != 0
    (state,) = sorted(results.glob("resume/step-*"))
    reached = int(state.name[5:])
    kept = (results / "steps.jsonl").read_text().splitlines()
    data, judges = split(tiny_dataset, "train"), samples(tiny_dataset, "val")
    facts = {k: v for k, v in json.loads((state / "state.json").read_text()).items() if k != "step"}
    train(make_stage(params, "proposal"), data, judges, results, facts, stop_after=reached + 1)
    after = [line for line in lines(results) if "loss" in line]
    assert [line["step"] for line in after] == list(range(1, reached + 2))
    assert all(math.isfinite(line["loss"]) for line in after)
    assert (results / "steps.jsonl").read_text().splitlines()[:reached] == kept[:reached]  # not taken again
