"""Both stages together: posed pictures in, 3D Gaussians out (paper, section 3.1).

In: any number of views of one object, from one up. Out: its Gaussians. The pictures are composited on white, the proposal
network says which voxels are occupied, a spatially even subsample of them becomes the anchor points, the reconstruction
network turns each into Gaussians. Convention: occupied is a logit above zero; nothing is padded, so nothing but an occupied
voxel ever becomes a Gaussian; no occupied voxel gives an empty set. Trade: the two stages share no features, as in the paper,
so the pictures are encoded twice. Verified by planted occupancy grids, from empty to more voxels than anchors.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from geolrm.config import Precision
from geolrm.failures import BadInput
from geolrm.gaussians import Gaussians
from geolrm.model.execution import halve_weights, in_precision
from geolrm.model.memory import Demand, free_bytes
from geolrm.model.proposal import ProposalNetwork
from geolrm.model.reconstruction import ReconstructionNetwork
from geolrm.views import Views


class GeoLRM(nn.Module):
    """The whole model."""

    def __init__(self, proposal: ProposalNetwork, reconstruction: ReconstructionNetwork) -> None:
        super().__init__()
        self.proposal = proposal
        self.reconstruction = reconstruction

    def for_use_in_bfloat16(self) -> GeoLRM:
        """Halve the memory of the weights for good: `reconstruct` in bf16 gives the same numbers, fp32 is gone."""
        for stage in (self.proposal, self.reconstruction):
            halve_weights(stage.encoder, *stage.transformer.blocks)
        return self

    @torch.no_grad()
    def reconstruct(self, views: Views, max_anchors: int | None = None, precision: Precision = "auto") -> Gaussians:
        """Reconstruct one object.

        Args:
            views: V posed pictures, on any device.
            max_anchors: at most so many anchor points, 0 for none; None keeps the number of the training.
            precision: of matrix products, see `geolrm.model.execution`; `fp32` takes some three times as long on a GPU.

        Returns:
            Gaussians on the model's device, empty where no voxel is occupied.

        Raises:
            BadInput: `no_views`; `max_anchors` below 0; `out_of_memory` with the estimate of what is needed and a number of
                anchor points that would fit.
        """
        if len(views) == 0:
            raise BadInput("no_views", views.key, "there is no picture to reconstruct from", "give at least one view")
        count = self.reconstruction.max_anchors if max_anchors is None else max_anchors
        if count < 0:
            raise BadInput("max_anchors", views.key, f"{count} anchor points are asked for", "give 0 or more")
        device = next(self.parameters()).device
        demand = Demand(self.proposal.settings, self.reconstruction.settings, len(views), views.size, anchors=0)
        try:
            demand.require(views.key, device)
            views = views.to(device)
            images, cameras = views.composited()[None], views.cameras[None]
            with in_precision(precision, device):
                occupied = self.proposal(images, cameras)[0] > 0
                anchors = self.reconstruction.anchors_of(occupied, count)
                demand = replace(demand, anchors=len(anchors))
                demand.require(views.key, device)
                return self.reconstruction(images, cameras, anchors[None])[0]
        except torch.cuda.OutOfMemoryError as error:
            raise demand.refusal(views.key, free_bytes(device)) from error
