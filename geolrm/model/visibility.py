"""Which views see which anchor points: a z-buffer of the points themselves.

In: points that sample a surface, cameras. Out: for each view and point, whether another point hides it. Convention: a frame is
cut into cells as wide as some spacings of the points look at the depth of the nearest one; a point is hidden where the nearest
point of its cell is nearer by more than some spacings; outside the frame nothing is seen. The spacing is measured: the median
distance of some of the points from their nearest neighbours. Trade: not in the paper, and coarse: what a view sees at a grazing
angle may pass as hidden, what lies within two spacings behind a surface as seen. It spares the network to learn occlusion
(LOG.md). Verified on spheres, whose near side is known.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geolrm.cameras import NEAR, Cameras

CELL = 1.5  # spacings: wide enough that a cell on a surface holds a point
SLACK = 2.0  # spacings of depth that a tilted surface spans within a cell
FINEST = 256  # cells along a side of the frame
PROBES = 256  # points whose nearest neighbours tell the spacing


def spacing_of(points: Tensor) -> Tensor:
    """() median distance of points (N, 3) to the nearest other point, told by some of them; infinite for one point."""
    probes = torch.linspace(0, len(points) - 1, min(PROBES, len(points)), device=points.device).round().long()
    distances = torch.cdist(points[probes], points)
    return distances.scatter_(1, probes[:, None], torch.inf).amin(dim=1).median()


@torch.no_grad()
def sees(points: Tensor, cameras: Cameras) -> Tensor:
    """(V, N) bool: which of cameras (V,) see which of points (N, 3), N >= 1, that hide one another."""
    uv, depth = cameras.project(points.float())
    inside = (depth > NEAR) & ((uv >= 0) & (uv < 1)).all(dim=-1)
    spacing = spacing_of(points.float())
    closest = torch.where(inside, depth, torch.inf).amin(dim=1, keepdim=True)
    focal = cameras.intrinsics[:, 0, 0, None]
    cells = (closest / (CELL * focal * spacing)).nan_to_num(1.0).clamp(1, FINEST).floor()
    column, row = (uv * cells[..., None]).clamp(min=0).minimum(cells[..., None] - 1).long().unbind(-1)
    cell = row * FINEST + column
    nearest = depth.new_full((len(depth), FINEST * FINEST), torch.inf)
    nearest.scatter_reduce_(1, cell, torch.where(inside, depth, torch.inf), "amin")
    return inside & (depth <= nearest.gather(1, cell) + SLACK * spacing)
