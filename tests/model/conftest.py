"""The small networks of `small_networks` as fixtures, with the same weights in every test."""

import pytest
import torch
from small_networks import PROPOSAL, RECONSTRUCTION, pictures, rig

from geolrm.model.geolrm import GeoLRM
from geolrm.model.proposal import ProposalNetwork
from geolrm.model.reconstruction import ReconstructionNetwork
from geolrm.views import Views


@pytest.fixture
def proposal() -> ProposalNetwork:
    torch.manual_seed(0)
    return ProposalNetwork(PROPOSAL)


@pytest.fixture
def reconstruction() -> ReconstructionNetwork:
    torch.manual_seed(0)
    network = ReconstructionNetwork(RECONSTRUCTION)
    torch.nn.init.normal_(network.head.output.weight, std=0.3)  # so that what the tokens say shows in the Gaussians
    return network


@pytest.fixture
def anchors() -> torch.Tensor:
    return torch.rand(1, 9, 3, generator=torch.Generator().manual_seed(1)) * 0.8 - 0.4


@pytest.fixture
def model(proposal, reconstruction) -> GeoLRM:
    return GeoLRM(proposal, reconstruction).eval()


@pytest.fixture
def views() -> Views:
    colour = pictures(3)[0]
    return Views("object", rig(3)[0], colour, (colour.mean(dim=1, keepdim=True) > 0.5).float())
