"""What both training stages read, how they train on it, and how a stage script ends.

In: params, the name of a data set, the folder or address of a store below which it lies. Out: its training and validation
splits, the folder of the results, the facts that identify a training, the same wherever the data set lies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from geolrm.config import Params
from geolrm.data.loader import Sample, ShardDataset
from geolrm.data.places import hash_file, place
from geolrm.failures import run_command
from geolrm.tensors import load_strictly
from geolrm.training.checkpoint import load_model
from geolrm.training.loop import Stage, TrainingDiverged, WorkerLost, train
from geolrm.training.ranks import all_ranks, own_device


@dataclass(frozen=True)
class TrainingData:
    """The splits of one data set, and where the results go."""

    training: ShardDataset
    validation: Sequence[Sample]
    identity: dict[str, Any]
    results: Path
    device: torch.device

    @classmethod
    def of(cls, params: Params, dataset: str, datasets: str, cache_gib: float) -> TrainingData:
        """The shards of a data set."""
        results, device = Path("results") / params.preset, own_device()
        folder, cache_bytes = place(datasets) / dataset / params.preset, int(cache_gib * 2**30)
        training, validation = (ShardDataset(folder, split, cache_bytes=cache_bytes) for split in ("train", "val"))
        stored = [validation.sample(i) for i in range(len(validation))]
        identity = {"catalog_sha256": hash_file(folder / "catalog.parquet")}
        return cls(training, stored, identity, results, device)

    def facts(self, stage: Stage[Any], **more: Any) -> dict[str, Any]:
        """Parameters, data and what else a resume state must share to be used."""
        return {"params": stage.config.model_dump(mode="json"), **self.identity, **more}

    def train(self, stage: Stage[Any], workers: int, minutes: float | None, **more: Any) -> None:
        """Train a stage on these data, by all processes that share it, into its folder of the results; see `facts`."""
        folder, facts = self.results / stage.name, self.facts(stage, **more)
        with all_ranks() as ranks:
            train(stage, self.training, self.validation, folder, facts, ranks=ranks, workers=workers, minutes=minutes)


def begin_with(network: torch.nn.Module, start: str | None) -> dict[str, str]:
    """Give a network the weights of a finished training of its stage, if one is named: a warm restart, with an optimiser and a
    schedule of its own. Returns the fact that tells of it. Raises BadInput as `load_model`, and where the weights do not fit."""
    if start is None:
        return {}
    trained, record = load_model(start)
    load_strictly(network, trained.state_dict(), Path(start))
    return {"started_from": record["sha256"]}


def run(main: Callable[[], None]) -> int:
    """Run a stage script to its exit status; diverged training and a killed worker too end with one plain message."""
    torch.set_flush_denormal(True)
    return run_command(main, TrainingDiverged, WorkerLost)
