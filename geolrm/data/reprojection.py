"""Whether the depth maps of an object agree with one another: the acceptance test of every source adapter.

In: views with depth. Out: how far the surface that one view sees lies from where another view sees it. Convention: a pixel
of view a is unprojected, projected into view b and compared with the depth there, in object units. Trade: a pixel of a that
b sees something else in front of is occluded and does not count; how many are is told, for a wrong pose would hide there.
Verified on a sphere in closed form, and by a flipped axis, which it must not let pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geolrm.views import Views

FLAT = 0.03  # object units: four neighbouring depths within this are one surface, and may be interpolated
OCCLUSION_MARGIN = 0.1  # object units: farther behind the depth of view b than this, a point is taken for hidden


@dataclass(frozen=True)
class Reprojection:
    """How the depth of some views lands on others.

    Attributes:
        median: of |dz| over the pixels that count, object units; infinite if none does.
        percentile_90: of the same.
        compared: how many pixels count.
        occluded: share of the pixels landing on surface that lie too far behind it.
        missed: share of the pixels inside the other frame that land where it has no surface.
    """

    median: float
    percentile_90: float
    compared: int
    occluded: float
    missed: float


def _depth_at(depth: Tensor, pixels: Tensor) -> Tensor:
    """Depth (N,) of a map (H, W) at positions (N, 2), x and y in pixels inside the frame; 0 where the nearest pixel has none."""
    height, width = depth.shape
    column, row = pixels.floor().long().unbind(-1)
    nearest = depth[row, column]
    left, top = (pixels - 0.5).floor().unbind(-1)
    fx, fy = pixels[:, 0] - 0.5 - left, pixels[:, 1] - 0.5 - top
    x0, y0 = left.long().clamp(0, width - 1), top.long().clamp(0, height - 1)
    x1, y1 = (left.long() + 1).clamp(0, width - 1), (top.long() + 1).clamp(0, height - 1)
    four = torch.stack([depth[y0, x0], depth[y0, x1], depth[y1, x0], depth[y1, x1]])
    one_surface = (four > 0).all(dim=0) & (four.amax(dim=0) - four.amin(dim=0) < FLAT)
    upper, lower = four[0] * (1 - fx) + four[1] * fx, four[2] * (1 - fx) + four[3] * fx
    return torch.where(one_surface, upper * (1 - fy) + lower * fy, nearest)


def reprojection_error(views: Views, pairs: Sequence[tuple[int, int]] | None = None) -> Reprojection:
    """Land the depth of view a on view b for each of the pairs (a, b).

    Args:
        views: with depth (V, H, W).
        pairs: positions among the views; by default each view and the next, both ways.

    The depth of b is read between four pixels where these are one surface, at the nearest pixel elsewhere. Points in front
    of b's surface count however far they lie before it, since nothing can be there; points behind it by more than
    `OCCLUSION_MARGIN` are hidden. Raises ValueError without depth.
    """
    if views.depth is None:
        raise ValueError(f"{views.key}: no depth")
    if pairs is None:
        count = len(views)
        pairs = [(a, (a + step) % count) for a in range(count) for step in (1, -1)]
    errors, landed, hidden, missed, inside = [], 0, 0, 0, 0
    height, width = views.size
    for a, b in pairs:
        source, target = views.depth[a], views.depth[b]
        points = views.cameras[a].unproject(source)[source > 0]
        uv, depth = views.cameras[b].project(points)
        visible = (depth > 0) & ((uv >= 0) & (uv < 1)).all(dim=-1)
        there, depth = _depth_at(target, uv[visible] * uv.new_tensor([width, height])), depth[visible]
        difference = (depth - there)[there > 0]
        kept = difference <= OCCLUSION_MARGIN
        errors.append(difference[kept].abs())
        inside, landed = inside + len(there), landed + len(difference)
        missed, hidden = missed + int((there <= 0).sum()), hidden + int((~kept).sum())
    error = torch.cat(errors) if errors else torch.zeros(0)
    if not len(error):
        return Reprojection(float("inf"), float("inf"), 0, hidden / max(landed, 1), missed / max(inside, 1))
    ordered = error.sort().values
    return Reprojection(
        ordered[len(ordered) // 2].item(),
        ordered[int(0.9 * (len(ordered) - 1))].item(),
        len(ordered),
        hidden / max(landed, 1),
        missed / max(inside, 1),
    )
