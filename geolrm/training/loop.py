"""The training loop that both stages share.

In: a stage (what to draw, what to minimise, how to judge), a shard data set, `Optimisation` from params. Out: in the stage's
folder `steps.jsonl` (one line a step, one line a validation, the first of the untrained network), `pictures/`, a resume state
every `checkpoint_every` steps and at the end `checkpoint.safetensors` + `.json`. Convention: everything random is a pure
function of (seed, step) or (seed, epoch, key), so that a run stopped anywhere and started again takes the same next steps,
bit for bit on a CPU. Trade: the lines after the newest resume state are taken back and their steps repeated. Verified by
bit-equal continuation, by killing the process, and by a planted NaN.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from geolrm.config import Optimisation, Section
from geolrm.data.loader import Sample, ShardDataset, batches
from geolrm.failures import BadInput
from geolrm.files import write_whole
from geolrm.passport import passport
from geolrm.training.checkpoint import (
    discard_resume_states,
    load_resume_state,
    newest_resume_state,
    save_checkpoint,
    save_resume_state,
)

Item = TypeVar("Item")


class TrainingDiverged(RuntimeError):
    """The loss is no number any more; the message names the step, the objects and the checkpoint that is still good."""


class Stage(ABC, Generic[Item]):
    """One of the two stages: what a sample gives, what is minimised, how it is judged.

    Attributes:
        name: "proposal" or "reconstruction".
        network: what is trained.
        config: its section of params.yaml.
    """

    name: str
    network: nn.Module
    config: Section
    optimisation: Optimisation

    @abstractmethod
    def draw(self, sample: Sample, epoch: int) -> Item:
        """What training needs of one object: a pure function of (seed, epoch, key)."""

    @abstractmethod
    def losses(self, items: list[Item], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch and its named parts; what is random is a pure function of (seed, step)."""

    @abstractmethod
    def validate(self, samples: list[Sample]) -> dict[str, float]:
        """`loss` and metrics, means over fixed views of fixed objects."""

    @abstractmethod
    def picture(self, sample: Sample, path: Path) -> None:
        """Write a picture grid of one validation object."""


class _Drawn(Dataset[Any]):
    """Map-style view of a shard data set: index (epoch, position) -> drawn item."""

    def __init__(self, dataset: ShardDataset, stage: Stage[Any]) -> None:
        self.dataset, self.stage = dataset, stage

    def __getitem__(self, index: tuple[int, int]) -> Any:
        epoch, position = index
        return self.stage.draw(self.dataset.sample(position), epoch)


def learning_rate(step: int, optimisation: Optimisation) -> float:
    """Linear warm-up, then a cosine to zero at the last step."""
    if step < optimisation.warmup:
        return optimisation.learning_rate * (step + 1) / optimisation.warmup
    progress = (step - optimisation.warmup) / max(1, optimisation.steps - optimisation.warmup)
    return optimisation.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimiser(network: nn.Module, optimisation: Optimisation) -> torch.optim.AdamW:
    """AdamW (paper, Table A); norms, biases and other vectors do not decay."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": optimisation.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=optimisation.learning_rate, betas=(0.9, 0.95))


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def _resume(stage: Stage[Any], folder: Path, optimiser: torch.optim.Optimizer, facts: dict[str, Any]) -> int:
    """Put the newest state of the same training in place; returns the first step to take."""
    newest = newest_resume_state(folder)
    if newest is None:
        return 0
    state, record = newest
    step = int(record["step"])
    if {name: record.get(name) for name in facts} != facts:
        tqdm.write(f"{stage.name}: {state} belongs to other parameters or data: starting anew")
        return 0
    load_resume_state(state, stage.network, optimiser)
    tqdm.write(f"{stage.name}: going on after step {step} from {state}")
    return step


def _kept_lines(path: Path, first_step: int) -> str:
    """The lines of an earlier run that its resume state already covers."""
    if first_step == 0 or not path.exists():
        return ""
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
    return "".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= first_step)


def _loader(stage: Stage[Any], dataset: ShardDataset, first_step: int, workers: int) -> Iterator[list[Any]]:
    o = stage.optimisation
    size = o.batch * o.accumulate
    indices = islice(batches(len(dataset), o.seed, size, start_step=first_step), o.steps - first_step)
    return iter(
        DataLoader(
            _Drawn(dataset, stage), batch_sampler=list(indices), num_workers=workers, collate_fn=list, pin_memory=False
        )
    )


def _diverged(stage: Stage[Any], what: str, step: int, items: list[Any], folder: Path) -> TrainingDiverged:
    newest = newest_resume_state(folder)
    good = f"the last good state is {newest[0]}" if newest else "no state had been saved"
    keys = ", ".join(item.key for item in items)
    return TrainingDiverged(f"{stage.name}: {what} at step {step + 1} on {keys}; {good}")


def _train_step(
    stage: Stage[Any], items: list[Any], step: int, optimiser: torch.optim.Optimizer, folder: Path
) -> dict[str, float]:
    """One optimiser step over `accumulate` batches; returns what the step's line holds."""
    o = stage.optimisation
    rate = learning_rate(step, o)
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad(set_to_none=True)
    line: dict[str, float] = {}
    for part in range(o.accumulate):
        batch = items[part * o.batch : (part + 1) * o.batch]
        try:
            loss, parts = stage.losses(batch, step * o.accumulate + part)
        except BadInput as error:
            if error.reason == "gaussians_not_finite":
                raise _diverged(stage, "Gaussians are not finite", step, batch, folder) from error
            raise
        if not torch.isfinite(loss):
            raise _diverged(stage, f"the loss is {loss.item()}", step, batch, folder)
        (loss / o.accumulate).backward()
        for name, value in {"loss": loss, **{f"loss/{n}": v for n, v in parts.items()}}.items():
            line[name] = line.get(name, 0.0) + value.item() / o.accumulate
    norm = torch.nn.utils.clip_grad_norm_(stage.network.parameters(), o.clip)
    if not torch.isfinite(norm):
        raise _diverged(stage, f"the gradient norm is {norm.item()}", step, items, folder)
    optimiser.step()
    return {**line, "learning_rate": rate, "gradient_norm": norm.item()}


def train(
    stage: Stage[Any],
    dataset: ShardDataset,
    validation: list[Sample],
    folder: Path,
    facts: dict[str, Any],
    *,
    workers: int = 0,
    stop_after: int | None = None,
) -> None:
    """Train a stage to its last step, going on from where an earlier run of the same training stopped.

    Args:
        stage: network and losses.
        dataset: the training split.
        validation: objects of the validation split.
        folder: where everything is written.
        facts: what identifies this training (parameters, data hash); a resume state with other facts is not used. They
            also end in `checkpoint.json`.
        workers: processes that decode ahead; 0 decodes in this one.
        stop_after: end before the last step, after saving a state (tests, time-sliced machines).

    Raises:
        TrainingDiverged: a loss or gradient that is no number. States saved before stay.
    """
    o = stage.optimisation
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pictures").mkdir(exist_ok=True)
    device = next(stage.network.parameters()).device
    optimiser = make_optimiser(stage.network, o)
    first = _resume(stage, folder, optimiser, facts)
    if first == 0:
        discard_resume_states(folder)  # before the lines that they go with
        for leftover in (folder / "pictures").iterdir():
            leftover.unlink()
    steps_file = folder / "steps.jsonl"
    write_whole(steps_file, _kept_lines(steps_file, first))
    last = o.steps if stop_after is None else min(o.steps, stop_after)
    data = _loader(stage, dataset, first, workers)
    with steps_file.open("a") as log, tqdm(total=o.steps, initial=first, desc=stage.name, unit="step") as bar:
        stage.network.train()
        if first == 0:  # where training starts from: the curve's first point is the untrained network
            log.write(json.dumps({"step": 0, **_validate(stage, validation, folder, 0)}) + "\n")
        for step in range(first, last):
            began = time.perf_counter()
            items = next(data)
            waited = time.perf_counter() - began
            line = _train_step(stage, items, step, optimiser, folder)
            taken = time.perf_counter() - began
            line |= {"data_wait_s": waited, "step_s": taken, "memory_bytes": _memory(device)}
            log.write(json.dumps({"step": step + 1, **line}) + "\n")
            bar.update()
            if (step + 1) % o.validate_every == 0 or step + 1 == o.steps:
                judged = _validate(stage, validation, folder, step + 1)
                log.write(json.dumps({"step": step + 1, **judged}) + "\n")
                bar.set_postfix({name.removeprefix("validation/"): f"{value:.3g}" for name, value in judged.items()})
            if (step + 1) % o.checkpoint_every == 0 or step + 1 == last:
                log.flush()
                save_resume_state(folder, step + 1, stage.network, optimiser, facts)
    if last == o.steps:
        facts = {"steps": o.steps, **facts, "passport": passport(seed=o.seed)}
        save_checkpoint(folder, stage.name, stage.network, stage.config, facts)
        discard_resume_states(folder)  # done: started again, it trains anew


def _validate(stage: Stage[Any], samples: list[Sample], folder: Path, step: int) -> dict[str, float]:
    stage.network.eval()
    with torch.no_grad():
        judged = {f"validation/{name}": value for name, value in stage.validate(samples).items()}
        stage.picture(samples[0], folder / "pictures" / f"step-{step:06d}.png")
    stage.network.train()
    return judged
