"""What the public code computes around its networks: labels, losses, learning rate, its PLY, its rasterizer's arguments.

In: depth maps, predictions, Gaussians, cameras, in this project's conventions. Out: the public code's numbers, defects
included (docs/released-vs-paper.md names each). Convention: nothing here is used by this project's own training or results;
it is the executable record of how theirs differ. Verified by the parity fixtures (`released.py`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from geolrm.cameras import Cameras
from geolrm.gaussians import Gaussians

LABEL_RESOLUTION = 128
MIN_OPACITY = 0.005  # Gaussians below are left out of its PLY
NEAR_FAR = 0.867  # half the diagonal of the object cube
LOWEST_RATE = 0.001  # of the learning rate


def scaled_label_points(depth: Tensor, cameras: Cameras) -> Tensor:
    """Surface points (N, 3) in voxels of its label, before rounding, from depth maps (V, H, W), 0 = no surface."""
    return (cameras.unproject(depth)[depth > 0] + 0.5) * LABEL_RESOLUTION


def rounded_label(points: Tensor) -> Tensor:
    """Voxels (M, 3) of its occupancy label: k means k / 128 - 0.5, and points outside the cube pile up on its faces."""
    return points.round().unique(dim=0).clamp(0, LABEL_RESOLUTION - 1).long()


def occupancy_losses(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Its stage 1: cross-entropy, and the geometric affinity without a floor (an empty target gives NaN)."""
    probability = logits.sigmoid()
    hit = (probability * target).sum()
    miss = ((1 - probability) * (1 - target)).sum()
    shares = torch.stack([hit / probability.sum(), hit / target.sum(), miss / (1 - target).sum()])
    return {
        "bce": F.binary_cross_entropy_with_logits(logits, target),
        "geometric": -shares.log().clamp(min=-100).sum(),
    }


def depth_losses(depth: Tensor, truth: Tensor, images: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Its stage 2's depth terms; in its training the mask is alpha > 0, so rims whose depth was set to 0 count.

    Args:
        depth, truth: (..., 1, H, W).
        images: (..., 3, H, W) in [0, 1].
        mask: (..., 1, H, W) bool.
    """
    error = torch.log1p((depth - truth).abs())
    edge_aware = depth.new_zeros(())
    for axis in (-1, -2):
        size = depth.shape[axis] - 1
        weight = torch.exp(-images.diff(dim=axis).abs().mean(dim=-3, keepdim=True))
        edge_aware = edge_aware + (weight * error.narrow(axis, 0, size))[mask.narrow(axis, 0, size)].mean()
    variation = depth.diff(dim=-1).abs().mean() + depth.diff(dim=-2).abs().mean()
    return {"edge_aware_logl1": edge_aware, "tv": variation}


def learning_rate(step: Tensor, warmup: int = 12_000, total: int = 100_000) -> Tensor:
    """Its factor of the learning rate at micro-steps: cosine up, cosine down, and up again past `total`."""
    step = step.double()
    rising = (1 - torch.cos(math.pi * step / warmup)) / 2
    falling = (1 + torch.cos(math.pi * (step - warmup) / (total - warmup))) / 2
    return LOWEST_RATE + (1 - LOWEST_RATE) * torch.where(step < warmup, rising, falling)


def activated(gaussians: Gaussians) -> Tensor:
    """(N, 14) in its order: centre, opacity, scales, quaternion wxyz, RGB."""
    columns = gaussians.means, gaussians.opacities[:, None], gaussians.scales, gaussians.quaternions, gaussians.colours
    return torch.cat(columns, dim=-1)


def ply_table(gaussians: Gaussians) -> Tensor:
    """(M, 14) what its PLY holds: x y z f_dc opacity scale rot, activated values under the names of raw ones."""
    centre, opacity, scale, quaternion, colour = activated(gaussians).split([3, 1, 3, 4, 3], dim=-1)
    return torch.cat([centre, colour, opacity, scale, quaternion], dim=-1)[opacity[:, 0] >= MIN_OPACITY]


def raster_arguments(cameras: Cameras) -> dict[str, Tensor]:
    """What it hands to the rasterizer for cameras (V,): 3DGS row-vector matrices, vertical field of view on both axes, and the
    camera's position with the wrong sign."""
    view = cameras.world_to_camera.transpose(-1, -2)
    tangent = 0.5 / cameras.intrinsics[..., 1, 1]
    distance = cameras.positions.norm(dim=-1)
    near, far = distance - NEAR_FAR, distance + NEAR_FAR
    projection = torch.zeros_like(view)
    projection[..., 0, 0] = projection[..., 1, 1] = 1 / tangent
    projection[..., 2, 2], projection[..., 2, 3] = (far + near) / (far - near), 1
    projection[..., 3, 2] = -far * near / (far - near)
    return {
        "viewmatrix": view,
        "projmatrix": view @ projection,
        "campos": -cameras.positions,
        "tanfovx": tangent,
        "tanfovy": tangent,
    }
