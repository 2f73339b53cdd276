"""Stage 2 of training: shards and a proposal network to a reconstruction network.

In: `datasets/procedural/<preset>/` shards, `results/<preset>/proposal/`, the `reconstruction` section of params.yaml. Out:
`results/<preset>/reconstruction/`. Stopped at any moment and started again, it goes on from its newest saved state.
"""

from __future__ import annotations

import sys

import torch
import tyro

from geolrm.config import load_params
from geolrm.model.proposal import ProposalNetwork
from geolrm.model.reconstruction import ReconstructionNetwork
from geolrm.training.checkpoint import load_model
from geolrm.training.loop import train
from geolrm.training.stages import ReconstructionStage
from pipelines.training_data import TrainingData, run


def main(params: str = "params.yaml", dataset: str = "procedural", workers: int = 0) -> None:
    """Train the reconstruction network: anchor points and pictures to Gaussians.

    Args:
        params: the params file.
        dataset: name of the folder under datasets/ to train on.
        workers: processes that decode ahead of the training; 0 decodes in the training process.
    """
    settings = load_params(params)
    data = TrainingData.of(settings, dataset)
    proposal, record = load_model(data.results / "proposal")
    assert isinstance(proposal, ProposalNetwork)
    torch.manual_seed(settings.reconstruction.optimisation.seed)
    network = ReconstructionNetwork(settings.reconstruction).to(data.device)
    perceptual = None
    if settings.reconstruction.losses.lpips > 0:
        from geolrm.metrics.perceptual import Lpips

        perceptual = Lpips("vgg").to(data.device)
    stage = ReconstructionStage(network, settings.reconstruction, proposal.to(data.device), perceptual)
    facts = data.facts(stage) | {"proposal_sha256": record["sha256"]}
    train(stage, data.training, data.validation, data.results / stage.name, facts, workers=workers)


if __name__ == "__main__":
    sys.exit(run(lambda: tyro.cli(main)))
