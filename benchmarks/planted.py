"""A proposal network that proposes what is wanted: for measurements of cost with random weights.

In: any proposal network. Out: the same, computed in full, with the voxels of a sphere as its answer. Convention: the sphere has
radius 0.4. Trade: the shell is thicker than a surface, so that there are anchor points enough for every setting. Verified by
the methods that are measured with it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geolrm.cameras import Cameras
from geolrm.model.proposal import ProposalNetwork


class Planted(nn.Module):
    """A proposal network that is computed in full and then proposes given voxels, so that anchors are fixed."""

    grid: Tensor

    def __init__(self, network: ProposalNetwork) -> None:
        super().__init__()
        self.network, self.settings = network, network.settings
        self.register_buffer("grid", sphere_shell(network.coarse * network.block), persistent=False)

    def forward(self, images: Tensor, cameras: Cameras) -> Tensor:
        logits = self.network(images, cameras)
        return torch.where(self.grid, logits.abs() + 1, -logits.abs() - 1)


def sphere_shell(resolution: int) -> Tensor:
    """(R, R, R) bool: voxels within 1.2 cells of the sphere of radius 0.4, more than 32,768 at R = 128."""
    axis = (torch.arange(resolution) + 0.5) / resolution - 0.5
    distance = torch.cartesian_prod(axis, axis, axis).norm(dim=-1).reshape([resolution] * 3)
    return (distance - 0.4).abs() < 1.2 / resolution
