"""Deformable cross-attention: 3D tokens look at the pictures around their own projections (paper, section 3.2, equation 3).

In: tokens, where their anchor points project in each view, the feature maps of all views. Out: one feature a token. Per view,
a head sums a few bilinear samples of its share of the channels, taken at the projection plus predicted offsets, with predicted
weights (softmax over both levels' points); offsets and weights come from the token and serve every view. The views' sums are
then averaged with weights derived from the sums themselves (softmax over views). Convention: offsets are in pixels of their
level, frame coordinates in [0, 1] with pixel centres at (i + 0.5) / size, zero outside the frame; a view counts only where it
sees the anchor point, in front of the camera and inside the frame (occlusion is left to the weights). A point that no view
sees gets exactly zero. Trade: `average_views` is a plain definition over `grid_sample`, one view at a time, so that the samples
of one view are the largest tensor in use; on CUDA with Triton `geolrm.kernels.deformable.attend` stands in for it. Verified
against loops over single points and by finite differences, points out of view included, and kernel against definition.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geolrm.cameras import NEAR, Cameras
from geolrm.model import execution

LEVELS = 2
OUTSIDE = 1e4  # frame coordinate beyond any sample's reach


def project_anchors(anchors: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Where anchor points (B, N, 3) appear in cameras (B, V): uv (B, V, N, 2), and whether they do (B, V, N) bool."""
    uv, depth = cameras.project(anchors[:, None])
    visible = (depth > NEAR) & (uv >= 0).all(dim=-1) & (uv <= 1).all(dim=-1)
    return uv, visible


def project_to_every_view(anchors: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """The public code's projection: as `project_anchors`, but every view counts as seeing every point.

    A point behind a camera appears as its mirror image; where the principal point is not centred, u is mirrored about it. A
    point beside the camera, where the public code divides by zero, lies outside every frame.
    """
    blender = (anchors[:, None] - cameras.positions[..., None, :]) @ cameras.rotations * anchors.new_tensor([1, -1, -1])
    u, v, w = (blender @ cameras.intrinsics.transpose(-1, -2)).unbind(-1)
    uv = torch.stack([1 - u / w, v / w], dim=-1).nan_to_num(nan=OUTSIDE).clamp(-OUTSIDE, OUTSIDE)
    return uv, torch.ones_like(w, dtype=torch.bool)


PROJECTIONS = {"seeing": project_anchors, "every": project_to_every_view}


def attend_view(maps: list[Tensor], uv: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """One view's sum of equation 3.

    Args:
        maps: values of each level, (B, heads * D, h, w).
        uv: (B, N, 2) projections in [0, 1].
        offsets: (B, heads, N, levels, points, 2) in pixels of each level, x right and y down.
        weights: (B, heads, N, levels, points), adding up to 1 over levels and points.

    Returns:
        (B, N, heads * D).
    """
    heads = weights.shape[1]
    total = torch.zeros((), device=uv.device)
    for level, values in enumerate(maps):
        size = uv.new_tensor([values.shape[-1], values.shape[-2]])
        places = uv[:, None, :, None] + offsets[:, :, :, level] / size
        samples = F.grid_sample(  # (B * heads, D, N, points)
            values.reshape(len(values) * heads, -1, *values.shape[-2:]).to(places.dtype),
            2 * places.flatten(0, 1) - 1,
            padding_mode="zeros",
            align_corners=False,
        )
        total = total + (samples * weights[:, :, :, level].flatten(0, 1)[:, None]).sum(dim=-1)
    return total.unflatten(0, (-1, heads)).permute(0, 3, 1, 2).flatten(2)


def view_shares(logits: Tensor, visible: Tensor) -> Tensor:
    """Equation 3's weights of the views: logits and visible (B, V, N) -> (B, V, N), adding up to 1, or 0 where none sees."""
    masked = logits.masked_fill(~visible, torch.finfo(logits.dtype).min)
    return masked.softmax(dim=1) * visible  # where no view sees, the softmax is uniform and the product zero: no NaN


def average_views(
    features: tuple[Tensor, Tensor],
    projection: Tensor,
    bias: Tensor,
    view_logit: Tensor,
    offsets: Tensor,
    weights: Tensor,
    uv: Tensor,
    visible: Tensor,
) -> tuple[Tensor, Tensor]:
    """Equation 3 before its output projection.

    Args:
        features: low and high level, (B, V, channels, h, w).
        projection, bias: of the values, (width, channels) and (width,).
        view_logit: (width,).
        offsets: (B, N, heads, levels, points, 2) in pixels of each level.
        weights: (B, N, heads, levels, points), adding up to 1 over levels and points.
        uv: (B, V, N, 2) projections in [0, 1].
        visible: (B, V, N) bool.

    Returns:
        (B, N, width), and the share of each view (B, V, N).
    """
    offsets, weights = offsets.transpose(1, 2), weights.transpose(1, 2)

    def values(level: Tensor, view: int) -> Tensor:
        return F.conv2d(level[:, view], projection[..., None, None], bias)

    sums = torch.stack(
        [
            attend_view([values(level, view) for level in features], uv[:, view], offsets, weights)
            for view in range(uv.shape[1])
        ],
        dim=1,
    )
    with torch.autocast(uv.device.type, enabled=False):  # the softmax over views stays fp32
        shares = view_shares(sums @ view_logit.to(sums.dtype), visible)
    return (sums * shares[..., None]).sum(dim=1), shares


class DeformableCrossAttention(nn.Module):
    """Equation 3 with several heads and two levels.

    Args:
        width: channels of the tokens, a multiple of heads.
        channels: of the feature maps.
        points: samples per head and level.
    """

    def __init__(self, width: int, channels: int, heads: int, points: int) -> None:
        super().__init__()
        self.heads, self.points = heads, points
        self.offsets = nn.Linear(width, heads * LEVELS * points * 2)
        self.weights = nn.Linear(width, heads * LEVELS * points)
        self.values = nn.Conv2d(channels, width, kernel_size=1)
        self.view_logit = nn.Linear(width, 1, bias=False)  # a bias would cancel in the softmax over views
        self.output = nn.Linear(width, width)
        self._initialise()

    def _initialise(self) -> None:
        """Start as deformable DETR does: a star of 1, 2, ... pixels, one direction a head, and equal weights."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        radii = torch.arange(1, self.points + 1)
        star = directions[:, None, None] * radii[:, None]  # (heads, 1, points, 2)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.weights.weight)
        nn.init.xavier_uniform_(self.values.weight)
        nn.init.xavier_uniform_(self.output.weight)
        with torch.no_grad():
            self.offsets.bias.copy_(star.expand(-1, LEVELS, -1, -1).reshape(-1))

    def forward(
        self, tokens: Tensor, features: tuple[Tensor, Tensor], uv: Tensor, visible: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Look at all views.

        Args:
            tokens: (B, N, width), normalised.
            features: low and high level, (B, V, channels, h, w).
            uv: (B, V, N, 2) projections in [0, 1], float32.
            visible: (B, V, N) bool.

        Returns:
            (B, N, width), and the share of each view (B, V, N).
        """
        split = (self.heads, LEVELS, self.points)
        # the bias apart, in fp32: it is the star of whole pixels, whose rounding to bf16 would move far samples visibly
        offsets = (F.linear(tokens, self.offsets.weight) + self.offsets.bias).to(uv.dtype).unflatten(-1, (*split, 2))
        weights = self.weights(tokens).to(uv.dtype).unflatten(-1, split)
        weights = weights.flatten(-2).softmax(dim=-1).view_as(weights)
        projection, bias, view_logit = self.values.weight.flatten(1), self.values.bias, self.view_logit.weight[0]
        assert bias is not None
        kernel = execution.kernel("deformable", uv, tokens)
        attend = kernel.attend if kernel else average_views
        averaged, shares = attend(features, projection, bias, view_logit, offsets, weights, uv, visible)
        return self.output(averaged), shares
