"""Stage 2 of training: shards and a proposal network to a reconstruction network.

In: `datasets/procedural/<preset>/` shards, `results/<preset>/proposal/`, the `reconstruction` section of params.yaml. Out:
`results/<preset>/reconstruction/`. Stopped at any moment and started again, it goes on from its newest saved state.
`torchrun -m pipelines.train_reconstruction` shares each batch among several processes, one a GPU (docs/training.md).
"""

from __future__ import annotations

import sys

import torch
import tyro

from geolrm.config import load_params
from geolrm.model.proposal import ProposalNetwork
from geolrm.model.reconstruction import ReconstructionNetwork
from geolrm.training.checkpoint import load_model
from geolrm.training.stages import ReconstructionStage
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
    """Train the reconstruction network: anchor points and pictures to Gaussians.

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
    proposal, record = load_model(data.results / "proposal")
    assert isinstance(proposal, ProposalNetwork)
    torch.manual_seed(settings.reconstruction.optimisation.seed)
    network = ReconstructionNetwork(settings.reconstruction).to(data.device)
    perceptual = None
    if settings.reconstruction.losses.lpips > 0:
        from geolrm.metrics.perceptual import Lpips

        perceptual = Lpips("vgg").to(data.device)
    stage = ReconstructionStage(network, settings.reconstruction, proposal.to(data.device), perceptual)
    begun = begin_with(network, start)
    data.train(stage, workers, minutes, proposal_sha256=record["sha256"], **begun)


if __name__ == "__main__":
    sys.exit(run(lambda: tyro.cli(main)))
