"""What both training stages read, and how a stage script ends.

In: params and the name of a data set. Out: its training and validation splits, the folder of the results, the facts that
identify a training. A stage script that meets bad input prints one plain message and ends with status 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from geolrm.config import Params
from geolrm.data.loader import Sample, ShardDataset
from geolrm.failures import BadInput
from geolrm.files import sha256_of
from geolrm.training.loop import Stage, TrainingDiverged, WorkerLost
from geolrm.training.ranks import own_device


@dataclass(frozen=True)
class TrainingData:
    """The splits of one data set, and where the results go."""

    training: ShardDataset
    validation: list[Sample]
    catalog_sha256: str
    results: Path
    device: torch.device

    @classmethod
    def of(cls, params: Params, dataset: str) -> TrainingData:
        folder = Path("datasets") / dataset / params.preset
        validation = ShardDataset(folder, "val")
        return cls(
            ShardDataset(folder, "train"),
            [validation.sample(i) for i in range(len(validation))],
            sha256_of(folder / "catalog.parquet"),
            Path("results") / params.preset,
            own_device(),
        )

    def facts(self, stage: Stage[Any]) -> dict[str, Any]:
        """Parameters and data: what a resume state must share to be used."""
        return {"params": stage.config.model_dump(mode="json"), "catalog_sha256": self.catalog_sha256}


def run(main: Callable[[], None]) -> None:
    """Run a stage script: bad input, diverged training and a killed worker end with one plain message and status 1."""
    torch.set_flush_denormal(True)
    try:
        main()
    except (BadInput, TrainingDiverged, WorkerLost) as error:
        sys.exit(f"error: {error}")
