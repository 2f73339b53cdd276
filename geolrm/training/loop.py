"""The training loop that both stages share.

In: a stage (what to draw, what to minimise, how to judge), a shard data set, `Optimisation` from params. Out: in the stage's
folder `steps.jsonl` (one line a step, one line a validation, the first of the untrained network), `system.jsonl` (how busy
the machine is), `pictures/`, a resume state every `checkpoint_every` steps and at the end `checkpoint.safetensors` + `.json`.
Convention: everything random is a pure function of (seed, step) or (seed, epoch, key), so that a run stopped anywhere and
started again takes the same next steps, bit for bit on a CPU; several ranks share each batch, and the first alone judges and
writes. Trade: the lines after the newest resume state are taken back and their steps repeated. Verified by bit-equal
continuation, by killing the process, one of its ranks or a data worker, by a planted NaN, and by the curve of two ranks against
that of one.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import psutil
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from geolrm.config import Optimisation, Section
from geolrm.data.loader import Sample, ShardDataset, batches
from geolrm.failures import BadInput
from geolrm.files import write_whole
from geolrm.monitor import FILE, watched
from geolrm.passport import passport
from geolrm.training.checkpoint import (
    discard_resume_states,
    load_resume_state,
    newest_resume_state,
    save_checkpoint,
    save_resume_state,
)
from geolrm.training.ranks import ALONE, Ranks

Item = TypeVar("Item")
_Fault = tuple[str, list[str]] | None  # what is no number on this rank, and the objects it was seen on


class TrainingDiverged(RuntimeError):
    """The loss is no number any more; the message names the step, the objects and the checkpoint that is still good."""


class WorkerLost(RuntimeError):
    """A process that decodes ahead has ended; the message names the state from which the next run goes on."""


class Stage(ABC, Generic[Item]):
    """One of the two stages: what a sample gives, what is minimised, how it is judged.

    Attributes:
        name: "proposal" or "reconstruction".
        network: what is trained.
        config: its section of params.yaml.
        ranks: the processes that share each batch.
    """

    name: str
    network: nn.Module
    config: Section
    optimisation: Optimisation
    ranks: Ranks = ALONE

    @abstractmethod
    def draw(self, sample: Sample, epoch: int) -> Item:
        """What training needs of one object: a pure function of (seed, epoch, key)."""

    @abstractmethod
    def bring(self, item: Item) -> Item:
        """The item on the device where training runs."""

    @abstractmethod
    def losses(self, items: list[Item], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch and its named parts; what is random is a pure function of (seed, step).

        `items` are this rank's share. The mean of the ranks' losses, and of their gradients, is that of the whole batch.
        """

    @abstractmethod
    def validate(self, samples: Sequence[Sample]) -> dict[str, float]:
        """`loss` and metrics, means over fixed views of fixed objects."""

    @abstractmethod
    def picture(self, sample: Sample, path: Path) -> None:
        """Write a picture grid of one validation object."""


class _Loaded(Dataset[Any]):
    """Map-style view of a data set: index (epoch, position) -> drawn item."""

    def __init__(self, dataset: ShardDataset, stage: Stage[Any]) -> None:
        self.dataset, self.stage = dataset, stage

    def __getitem__(self, index: tuple[int, int]) -> Any:
        epoch, position = index
        return self.stage.draw(self.dataset.sample(position), epoch)


class _Losses(nn.Module):
    """A stage's losses as a module: what `DistributedDataParallel` must see called to share the network's gradients."""

    def __init__(self, stage: Stage[Any]) -> None:
        super().__init__()
        self.network = stage.network
        self.losses = stage.losses

    def forward(self, items: list[Any], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        try:
            return self.losses(items, step)
        except BadInput as error:
            if error.reason != "gaussians_not_finite":
                raise
        # A rank that raised here would leave the others waiting for its gradients: it tells them by its loss.
        every = torch.stack([p.sum() for p in self.network.parameters() if p.requires_grad]).sum()
        return every * math.nan, {}


def learning_rate(step: int, optimisation: Optimisation) -> float:
    """Linear warm-up, then a cosine to zero at the last step."""
    if step < optimisation.warmup:
        return optimisation.learning_rate * (step + 1) / optimisation.warmup
    progress = (step - optimisation.warmup) / max(1, optimisation.steps - optimisation.warmup)
    return optimisation.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimiser: torch.optim.Optimizer, step: int, optimisation: Optimisation) -> float:
    """Give the optimiser the rate of this step, and say which."""
    rate = learning_rate(step, optimisation)
    for group in optimiser.param_groups:
        group["lr"] = rate
    return rate


def make_optimiser(network: nn.Module, optimisation: Optimisation) -> torch.optim.AdamW:
    """AdamW (paper, Table A); norms, biases and other vectors do not decay."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": optimisation.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = parameters[0].is_cuda  # one kernel for all of them
    return torch.optim.AdamW(groups, lr=optimisation.learning_rate, betas=(0.9, 0.95), fused=fused)


def _memory(network: nn.Module) -> int:
    device = next(network.parameters()).device
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def _resume(
    stage: Stage[Any], folder: Path, optimiser: torch.optim.Optimizer, facts: dict[str, Any]
) -> tuple[int, dict[str, Any]]:
    """Put the newest state of the same training in place; returns the first step to take and what else the state tells."""
    newest = newest_resume_state(folder)
    if newest is None:
        return 0, {}
    state, record = newest
    step = int(record["step"])
    if {name: record.get(name) for name in facts} != facts:
        _say(stage, f"{state} belongs to other parameters or data: starting anew")
        return 0, {}
    load_resume_state(state, stage.network, optimiser)
    _say(stage, f"going on after step {step} from {state}")
    return step, {"carried": record["carried"]} if "carried" in record else {}


def _say(stage: Stage[Any], message: str) -> None:
    if stage.ranks.first:
        tqdm.write(f"{stage.name}: {message}")


def _kept_lines(path: Path, first_step: int) -> str:
    """The lines of an earlier run that its resume state already covers."""
    if first_step == 0 or not path.exists():
        return ""
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
    return "".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= first_step)


@contextmanager
def _loader(stage: Stage[Any], dataset: ShardDataset, first_step: int, workers: int) -> Iterator[Iterator[list[Any]]]:
    """The batches of the steps from `first_step` on."""
    o, ranks = stage.optimisation, stage.ranks
    size = o.batch * o.accumulate // ranks.count
    indices = islice(
        batches(len(dataset), o.seed, size, ranks.rank, ranks.count, start_step=first_step), o.steps - first_step
    )
    device = next(stage.network.parameters()).device
    loaded = DataLoader(
        _Loaded(dataset, stage),
        batch_sampler=list(indices),
        num_workers=workers,
        collate_fn=list,
        pin_memory=device.type == "cuda",  # by a thread of its own: a copy from other memory holds up what is launched
    )
    with ThreadPoolExecutor(1, "bringing") as pool:
        yield one_ahead(_brought(stage, iter(loaded), device), pool)


def _brought(stage: Stage[Any], loaded: Iterator[list[Any]], device: torch.device) -> Iterator[list[Any]]:
    """Decoded items on the training device, done when they are yielded.

    On a GPU that happens on a stream of its own, beside the training step. Their memory, which belongs to that stream, is
    free again when the step lets go of them: after its numbers were fetched, which waits for all that reads them.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    for batch in loaded:
        with torch.cuda.stream(stream):
            items = [stage.bring(item) for item in batch]
        if stream is not None:
            stream.synchronize()
        yield items


def one_ahead(batches: Iterator[list[Any]], pool: Executor) -> Iterator[list[Any]]:
    """The same batches in the same order, each begun in the pool when the one before it is handed out."""
    following = pool.submit(next, batches, None)
    while (items := following.result()) is not None:
        following = pool.submit(next, batches, None)
        yield items


@contextmanager
def _worker_losses_told(stage: Stage[Any], folder: Path) -> Iterator[None]:
    """Tell of a killed data worker, which torch raises in the middle of whatever this process is doing."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        # torch tells it in an error that has no class of its own, unless it finds the channel to the dead process broken first
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        remedy = "run the command again to go on from there, with fewer --workers if memory ran out"
        raise WorkerLost(f"{stage.name}: a data worker was killed; {_last_good(folder)}: {remedy}") from error


def _last_good(folder: Path) -> str:
    newest = newest_resume_state(folder)
    return f"the last good state is {newest[0]}" if newest else "no state had been saved"


def _keys(items: list[Any]) -> list[str]:
    return [item.key for item in items]


def _gradients(stage: Stage[Any], losses: nn.Module, items: list[Any], step: int) -> tuple[dict[str, float], _Fault]:
    """Leave the clipped gradient of one step, over `accumulate` batches, in the network; this rank's numbers of the step."""
    o, ranks = stage.optimisation, stage.ranks
    share = o.batch // ranks.count
    shares = [items[part * share : (part + 1) * share] for part in range(o.accumulate)]
    stage.network.zero_grad(set_to_none=True)
    told: list[dict[str, Tensor]] = []
    for part, batch in enumerate(shares):
        later = ranks.count > 1 and part < o.accumulate - 1  # gradients of the ranks are averaged once a step
        with losses.no_sync() if later else nullcontext():  # type: ignore[operator]
            loss, parts = losses(batch, step * o.accumulate + part)
            (loss / o.accumulate).backward()
        told.append({"loss": loss, **{f"loss/{name}": value for name, value in parts.items()}})
    norm = torch.nn.utils.clip_grad_norm_(stage.network.parameters(), o.clip)
    # One transfer for all numbers of the step: a GPU that is asked for each of them waits each time.
    *numbers, size = torch.stack(
        [*(value.detach().to(norm) for part in told for value in part.values()), norm]
    ).tolist()
    line: dict[str, float] = {}
    fault: _Fault = None
    names = [(batch, name) for batch, part in zip(shares, told, strict=True) for name in part]
    for (batch, name), value in zip(names, numbers, strict=True):
        line[name] = line.get(name, 0.0) + value / o.accumulate
        if name == "loss" and not math.isfinite(value):
            fault = fault or (f"the loss is {value}", _keys(batch))
    return line | {"gradient_norm": size}, fault


def _diverged(
    stage: Stage[Any], norm: float, fault: _Fault, items: list[Any], step: int, folder: Path
) -> TrainingDiverged:
    """The error that all ranks raise, which names the objects of those at fault."""
    faults = [found for found in stage.ranks.gathered(fault) if found is not None]
    what = faults[0][0] if faults else f"the gradient norm is {norm}"
    shares = [found[1] for found in faults] or stage.ranks.gathered(_keys(items))
    keys = ", ".join(key for share in shares for key in share)
    return TrainingDiverged(f"{stage.name}: {what} at step {step + 1} on {keys}; {_last_good(folder)}")


@dataclass
class _Journal:
    """What the first rank writes while it trains."""

    stage: Stage[Any]
    validation: Sequence[Sample]
    folder: Path
    optimiser: torch.optim.Optimizer
    facts: dict[str, Any]
    log: IO[str]
    bar: tqdm[Any]

    def write(self, step: int, values: dict[str, float]) -> None:
        self.log.write(json.dumps({"step": step, **values}) + "\n")

    def judge(self, step: int) -> None:
        judged = _validate(self.stage, self.validation, self.folder, step)
        self.write(step, judged)
        self.bar.set_postfix({name.removeprefix("validation/"): f"{value:.3g}" for name, value in judged.items()})

    def after_step(self, step: int, line: dict[str, float], stops: bool) -> None:
        """`step` steps have been taken, the last of them with this line; save where it is due or where training stops."""
        o = self.stage.optimisation
        self.write(step, line)
        self.bar.update()
        if step % o.validate_every == 0 or step == o.steps:
            self.judge(step)
        if step % o.checkpoint_every == 0 or stops:
            self.log.flush()
            save_resume_state(self.folder, step, self.stage.network, self.optimiser, self.facts)


def train(
    stage: Stage[Any],
    dataset: ShardDataset,
    validation: Sequence[Sample],
    folder: Path,
    facts: dict[str, Any],
    *,
    ranks: Ranks = ALONE,
    workers: int = 0,
    stop_after: int | None = None,
    minutes: float | None = None,
) -> None:
    """Train a stage to its last step, going on from where an earlier run of the same training stopped.

    Args:
        stage: network and losses.
        dataset: the training split.
        validation: objects of the validation split.
        folder: where everything is written; ranks on several machines must see the same one.
        facts: what identifies this training (parameters, data hash); a resume state with other facts is not used. They
            also end in `checkpoint.json`.
        ranks: the processes that share each batch; they need not be as many as in the run that this one goes on from.
        workers: processes that decode ahead; 0 decodes in this one.
        stop_after: end before the last step, after saving a state (tests).
        minutes: end after the first step past this time since the call, after saving a state (machines lent for a time).
            Leave room for one step, one validation and the saving.

    Raises:
        TrainingDiverged: a loss or gradient that is no number. States saved before stay.
        WorkerLost: a data worker was killed. States saved before stay.
        BadInput: `batch_not_divisible`, `results_not_shared`.
    """
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    o = stage.optimisation
    if o.batch % ranks.count:
        detail = f"{o.batch} objects a step cannot be shared evenly by {ranks.count} ranks"
        raise BadInput("batch_not_divisible", "optimisation.batch", detail, "change the batch or the number of ranks")
    stage.ranks = ranks
    folder.mkdir(parents=True, exist_ok=True)
    optimiser = make_optimiser(stage.network, o)
    first, told = _resume(stage, folder, optimiser, facts)
    facts = facts | told  # after which steps the state travelled in fewer bits
    if len(found := set(ranks.gathered(first))) > 1:
        detail = f"ranks found states after the steps {sorted(found)}"
        raise BadInput("results_not_shared", folder, detail, "put results/ where the ranks of all machines see it")
    last = o.steps if stop_after is None else min(o.steps, stop_after)
    losses = ranks.wrapped(_Losses(stage))
    stage.network.train()
    with (
        _worker_losses_told(stage, folder),
        _loader(stage, dataset, first, workers) as data,
        _journal(stage, validation, folder, optimiser, facts, first) as journal,
    ):
        reached, late = first, False
        while reached < last:
            began = time.perf_counter()
            items = next(data)
            waited = time.perf_counter() - began
            own, fault = _gradients(stage, losses, items, reached)
            now = {"loss": own["loss"], "late": float(ranks.first and time.monotonic() > deadline)}
            now = ranks.means(now)  # all stop where one finds a fault, or where the first is out of time
            if not (math.isfinite(now["loss"]) and math.isfinite(own["gradient_norm"])):
                raise _diverged(stage, own["gradient_norm"], fault, items, reached, folder)  # before a weight has moved
            rate = set_learning_rate(optimiser, reached, o)
            optimiser.step()
            line = ranks.means(own | {"data_wait_s": waited, "step_s": time.perf_counter() - began})
            line |= {"learning_rate": rate, "memory_bytes": _memory(stage.network)}
            line["objects_per_s"] = o.batch * o.accumulate / line["step_s"]
            late = now["late"] > 0
            reached += 1
            if journal:
                journal.after_step(reached, line, stops=late or reached == last)
            if late:
                break
    if reached == o.steps and ranks.first:
        facts = {"steps": o.steps, **facts, "passport": passport(seed=o.seed)}
        save_checkpoint(folder, stage.name, stage.network, stage.config, facts)
        discard_resume_states(folder)  # done: started again, it trains anew
    elif late:
        _say(stage, f"the time is up after step {reached} of {o.steps}: run the command again to go on")


@contextmanager
def _journal(
    stage: Stage[Any],
    validation: Sequence[Sample],
    folder: Path,
    optimiser: torch.optim.Optimizer,
    facts: dict[str, Any],
    first: int,
) -> Iterator[_Journal | None]:
    """The first rank's journal of a training that goes on after step `first`; None on the others."""
    if not stage.ranks.first:
        yield None
        return
    pictures, steps_file = folder / "pictures", folder / "steps.jsonl"
    pictures.mkdir(exist_ok=True)
    if first == 0:
        discard_resume_states(folder)  # before the lines that they go with
        for leftover in pictures.iterdir():
            leftover.unlink()
    write_whole(steps_file, _kept_lines(steps_file, first))
    steps = stage.optimisation.steps
    with (
        watched(folder / FILE, fresh=first == 0),
        steps_file.open("a") as log,
        tqdm(total=steps, initial=first, desc=stage.name, unit="step") as bar,
    ):
        journal = _Journal(stage, validation, folder, optimiser, facts, log, bar)
        if first == 0:  # where training starts from: the curve's first point is the untrained network
            journal.judge(0)
        yield journal


def _validate(stage: Stage[Any], samples: Sequence[Sample], folder: Path, step: int) -> dict[str, float]:
    stage.network.eval()
    with torch.no_grad():
        judged = {f"validation/{name}": value for name, value in stage.validate(samples).items()}
        stage.picture(samples[0], folder / "pictures" / f"step-{step:06d}.png")
    stage.network.train()
    return judged
