"""Stage 1 of training: shards to a proposal network.

In: `datasets/procedural/<preset>/` shards, the `proposal` section of params.yaml. Out: `results/<preset>/proposal/`. Stopped at
any moment and started again, it goes on from its newest saved state. `torchrun -m pipelines.train_proposal` shares each batch
among several processes, one a GPU (docs/training.md).
"""

from __future__ import annotations

import sys

import torch
import tyro

from geolrm.config import load_params
from geolrm.model.proposal import ProposalNetwork
from geolrm.training.stages import ProposalStage
from pipelines.training_data import TrainingData, begin_with, run


def main(
    params: str = "params.yaml",
    dataset: str = "procedural",
    datasets: str = "datasets",
    cache_gib: float = 64.0,
    workers: int = 0,
    minutes: float | None = None,
    start: str | None = None,
) -> None:
    """Train the proposal network: pictures to occupancy.

    Args:
        params: the params file.
        dataset: name of the data set to train on, a folder below `datasets`.
        datasets: the folder of the data sets, or the address of a store such as s3://bucket/datasets; docs/cluster.md.
        cache_gib: how much of this disk (~/.cache/geolrm/samples) samples of a store may take, in GiB.
        workers: processes that decode ahead of each training process; 0 decodes in it.
        minutes: save and stop after so many; run again to go on. Leave room for one step, a validation and the saving.
        start: folder of a finished training of this stage whose weights to begin with, in place of random ones.
    """
    settings = load_params(params)
    data = TrainingData.of(settings, dataset, datasets, cache_gib)
    torch.manual_seed(settings.proposal.optimisation.seed)
    network = ProposalNetwork(settings.proposal).to(data.device)
    data.train(ProposalStage(network, settings.proposal), workers, minutes, **begin_with(network, start))


if __name__ == "__main__":
    sys.exit(run(lambda: tyro.cli(main)))
