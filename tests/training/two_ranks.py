"""What one of two ranks does in tests/training/test_ranks.py: run by torchrun, with the data set's folder and an output folder.

Each rank writes what it saw beside what the first rank's training leaves: keys of its samples, its error's message.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_training import FACTS, STAGES, changed, make_stage, samples, split

from geolrm.config import Params, load_params
from geolrm.training.loop import TrainingDiverged, train
from geolrm.training.ranks import Ranks, all_ranks

STEPS = 6


def params_of(root: Path, name: str) -> Params:
    """Four objects a step in two batches, of which each rank has a half; anchor points as many as the smaller object has."""
    params = changed(load_params(root / "params.yaml"), name, batch=2, accumulate=2, steps=STEPS)
    return params.model_copy(update={"reconstruction": params.reconstruction.model_copy(update={"max_anchors": 4096})})


def trained(root: Path, name: str, folder: Path, ranks: Ranks, poisoned: bool = False, **how: Any) -> list[list[int]]:
    """Train a stage; returns the (epoch, object) of every sample that this rank drew."""
    stage, seen = make_stage(params_of(root, name), name), []
    draw, losses = stage.draw, stage.losses

    def noted(sample, epoch):  # type: ignore[no-untyped-def]
        seen.append([epoch, int(sample.key.split("-")[1])])
        return draw(sample, epoch)

    def spoilt(items, step):  # type: ignore[no-untyped-def]
        loss, parts = losses(items, step)
        return (loss * torch.nan if step == 2 * 3 else loss), parts  # in the first batch of step 4

    stage.draw = noted  # type: ignore[method-assign]
    if poisoned:
        stage.losses = spoilt  # type: ignore[method-assign]
    train(stage, split(root, "train"), samples(root, "val"), folder, FACTS, ranks=ranks, **how)
    return seen


def main(root: Path, out: Path) -> None:
    torch.set_num_threads(1)
    with all_ranks() as ranks:
        for name in STAGES:
            seen = trained(root, name, out / name, ranks)
            (out / f"{name}-seen-{ranks.rank}.json").write_text(json.dumps(seen))
        trained(root, "proposal", out / "stopped", ranks, minutes=0.0)
        try:
            trained(root, "proposal", out / "poisoned", ranks, poisoned=ranks.rank == 1)
        except TrainingDiverged as error:
            (out / f"diverged-{ranks.rank}.txt").write_text(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
