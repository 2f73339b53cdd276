"""Stage 1 of training: shards to a proposal network.

In: `datasets/procedural/<preset>/` shards, the `proposal` section of params.yaml. Out: `results/<preset>/proposal/`. Stopped at
any moment and started again, it goes on from its newest saved state.
"""

from __future__ import annotations

import sys

import torch
import tyro

from geolrm.config import load_params
from geolrm.model.proposal import ProposalNetwork
from geolrm.training.loop import train
from geolrm.training.stages import ProposalStage
from pipelines.training_data import TrainingData, run


def main(params: str = "params.yaml", dataset: str = "procedural", workers: int = 0) -> None:
    """Train the proposal network: pictures to occupancy.

    Args:
        params: the params file.
        dataset: name of the folder under datasets/ to train on.
        workers: processes that decode ahead of the training; 0 decodes in the training process.
    """
    settings = load_params(params)
    data = TrainingData.of(settings, dataset)
    torch.manual_seed(settings.proposal.optimisation.seed)
    network = ProposalNetwork(settings.proposal).to(data.device)
    stage = ProposalStage(network, settings.proposal)
    facts = data.facts(stage)
    train(stage, data.training, data.validation, data.results / stage.name, facts, workers=workers)


if __name__ == "__main__":
    sys.exit(run(lambda: tyro.cli(main)))
