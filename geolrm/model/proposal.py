"""Proposal network: pictures to the probability that each voxel holds surface (paper, section 3.2, post-processing).

In: posed pictures. Out: a logit for each voxel of the fine grid (R, R, R), indexed [x, y, z]; above zero is occupied. The
tokens stand at the cell centres of a coarse dense grid and each is mapped linearly to the block of fine voxels inside its
cell; a U-Net over the fine voxels adds what their carving cues and the tokens say (not in the paper). Convention: cell
centres of `occupancy.voxel_centres` on both grids, so that a block lies around its token (the public code puts coarse anchors
on the cube's faces, up to 3.5 voxels from their blocks). Trade: beside its cues, a block knows the pictures only through its
token's samples, which is what makes a dense grid affordable. Verified by planting a marker in one block.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from geolrm import config
from geolrm.cameras import Cameras
from geolrm.model.carving import CARVINGS
from geolrm.model.encoder import HierarchicalEncoder
from geolrm.model.transformer import GeometryTransformer
from geolrm.occupancy import GRIDS

EXPECTED_OCCUPANCY = 0.05  # share of occupied voxels (paper, 3.3): the untrained network starts from it
INITIAL_SPREAD = 0.02  # of the last weights, so that the first logits stay near that share


class ProposalNetwork(nn.Module):
    """Stage 1.

    Args:
        settings: sizes.
        pretrained: see `HierarchicalEncoder`.
    """

    def __init__(self, settings: config.Proposal, pretrained: bool = True) -> None:
        super().__init__()
        self.settings = settings
        self.coarse = settings.coarse_resolution
        self.block = settings.voxel_resolution // settings.coarse_resolution
        self.places = GRIDS[settings.grid]
        self.encoder = HierarchicalEncoder(settings.encoder, pretrained)
        self.transformer = GeometryTransformer(settings.transformer, settings.encoder.channels)
        self.upsampling = nn.Linear(settings.transformer.width, self.block**3)
        nn.init.normal_(self.upsampling.weight, std=INITIAL_SPREAD)
        nn.init.constant_(self.upsampling.bias, math.log(EXPECTED_OCCUPANCY / (1 - EXPECTED_OCCUPANCY)))
        self.carving = CARVINGS[settings.carving](settings.transformer.width)

    def forward(self, images: Tensor, cameras: Cameras) -> Tensor:
        """Predict occupancy.

        Args:
            images: (B, V, 3, H, W) sRGB in [0, 1], composited on white, V from 1 up.
            cameras: (B, V).

        Returns:
            (B, R, R, R) logits, float32, indexed [x, y, z].
        """
        anchors = self.coarse_anchors(images.device).expand(len(images), -1, -1)
        tokens, _ = self.transformer(anchors, self.encoder(images, cameras), cameras)
        with torch.autocast(images.device.type, enabled=False):  # logits stay fp32
            logits = self.fine_grid(self.upsampling(tokens.float()))
        return logits + self.carving.carve(images, cameras, tokens, self.coarse * self.block)

    def coarse_anchors(self, device: torch.device | str) -> Tensor:
        """(coarse^3, 3) object units, z fastest: the centres of the cells, unless the settings say otherwise."""
        axis = torch.arange(self.coarse, device=device)
        return self.places(torch.cartesian_prod(axis, axis, axis), self.coarse)

    def fine_grid(self, blocks: Tensor) -> Tensor:
        """Blocks (B, coarse^3, block^3), both x-major, to (B, R, R, R): voxel b i + a is entry a of token i on each axis."""
        n, b = self.coarse, self.block
        return blocks.reshape(-1, n, n, n, b, b, b).permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, n * b, n * b, n * b)
