"""What the two stages minimise.

In: predicted occupancy logits or renderings, and their truth. Out: a dictionary of named scalar parts; the weighted sum is the
loss. Convention: images in [0, 1] (the public code's MSE on [-1, 1] is four times ours); depth is planar z in object units and
counts only where the truth has a surface. Trade: the affinity terms are sums over the whole batch, as published, so a batch of
one object is noisier than a batch of two, and ranks that share a batch must add up theirs. Verified by closed forms: perfect,
uniform and empty predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from geolrm.rendering import Rendering
from geolrm.views import Views

EPSILON = 1e-6


def _affinity(probability: Tensor, target: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
    """-log precision - log recall - log specificity of one class, soft counts over the whole batch (MonoScene, 3.4)."""
    hit = total((probability * target).sum())
    precision = hit / (total(probability.sum()) + EPSILON)
    recall = hit / (total(target.sum()) + EPSILON)
    specificity = total(((1 - probability) * (1 - target)).sum()) / (total((1 - target).sum()) + EPSILON)
    return -torch.stack([precision, recall, specificity]).clamp(min=EPSILON).log().sum()


def _here(sums: Tensor) -> Tensor:
    return sums


def occupancy_losses(logits: Tensor, target: Tensor, total: Callable[[Tensor], Tensor] = _here) -> dict[str, Tensor]:
    """Binary cross-entropy and scene-class affinity (paper, 3.3).

    Args:
        logits: (B, R, R, R).
        target: (B, R, R, R) bool, at least one voxel of each kind in the batch.
        total: adds up the sums of all parts of a batch that several processes share.

    Returns:
        `bce`; `geometric`, the affinity of occupied voxels; `semantic`, the mean affinity over the two classes, occupied and
        free. The paper names the loss of MonoScene, which has both terms; the public code computes the geometric one alone.
    """
    truth = target.to(logits.dtype)
    probability = torch.sigmoid(logits)
    occupied, free = _affinity(probability, truth, total), _affinity(1 - probability, 1 - truth, total)
    return {
        "bce": F.binary_cross_entropy_with_logits(logits, truth),
        "geometric": occupied,
        "semantic": (occupied + free) / 2,
    }


def edge_aware_depth_loss(depth: Tensor, target_depth: Tensor, image: Tensor) -> Tensor:
    """Mean of exp(-|gradient of the image|) log(1 + |d - d_true|) over both axes (paper, equation 13; DN-Splatter).

    Args:
        depth: (..., V, H, W) rendered planar z.
        target_depth: (..., V, H, W), 0 = no surface; only pixels with a surface count.
        image: (..., V, 3, H, W) the true picture whose edges weaken the penalty.

    Returns:
        (...), one of each object.
    """
    error = torch.log1p((depth - target_depth).abs())
    valid = target_depth > 0
    total = depth.new_zeros(())
    for dim in (-1, -2):
        size = depth.shape[dim] - 1
        gradient = image.diff(dim=dim).abs().mean(dim=-3)
        mask = valid.narrow(dim, 0, size)
        weighted = torch.exp(-gradient) * error.narrow(dim, 0, size) * mask
        total = total + weighted.sum((-3, -2, -1)) / mask.sum((-3, -2, -1)).clamp(min=1)
    return total


def rendering_losses(renderings: Sequence[Rendering], targets: Sequence[Views], background: float) -> dict[str, Tensor]:
    """Colour, mask and depth terms of the second stage (paper, equations 10 to 13), LPIPS apart; means over the objects,
    computed for all of them together: on a GPU the number of operations counts.

    Args:
        renderings: of each object's target cameras, composited over `background`.
        targets: each object's target views with depth, of all the same number.
        background: grey level under the truth.
    """
    depths = [views.depth for views in targets if views.depth is not None]
    if len(depths) < len(targets):
        raise ValueError(f"{[v.key for v in targets if v.depth is None]}: the second stage needs depth")
    truth = torch.stack([views.composited(background) for views in targets])
    depth = torch.stack([rendering.depth for rendering in renderings])
    return {
        "mse": F.mse_loss(torch.stack([rendering.colour for rendering in renderings]), truth),
        "mask": F.mse_loss(
            torch.stack([rendering.alpha for rendering in renderings]), torch.stack([views.alpha for views in targets])
        ),
        "depth": edge_aware_depth_loss(depth, torch.stack(depths), truth).mean(),
    }
