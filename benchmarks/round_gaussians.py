"""Gaussians without a network: round, nearly opaque ones at given points, as wide as the points are apart.

In: points with colours, or pictures to take one colour from. Out: Gaussians. Convention: colours are sRGB in [0, 1], lengths
are object units. Trade: no module of a network is imported here, so that methods without one keep their rows when a network
changes. Verified by the methods that use them.
"""

from __future__ import annotations

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from geolrm.gaussians import Gaussians
from geolrm.views import Views

NEIGHBOURS = 4  # of a voxel within a flat piece of surface
OPACITY = 0.95


def mean_foreground_colour(views: Views) -> Tensor:
    """(3,) mean sRGB of the pixels in the foreground of all views, mid-grey where there is none."""
    foreground = views.foreground
    if not foreground.any():
        return views.colour.new_full((3,), 0.5)
    return views.colour.movedim(1, -1)[foreground[:, 0]].mean(dim=0)


def round_gaussians(centres: Tensor, colours: Tensor, sigmas: Tensor, opacity: float = OPACITY) -> Gaussians:
    """Isotropic Gaussians at centres (N, 3) with colours (N, 3) and standard deviations (N,)."""
    upright = centres.new_tensor([1.0, 0.0, 0.0, 0.0]).expand(len(centres), 4)
    opacities = centres.new_full((len(centres),), opacity)
    return Gaussians.from_activated(centres, colours, opacities, sigmas[:, None].expand(-1, 3), upright)


def half_spacing(points: Tensor, fallback: float) -> Tensor:
    """(N,) half the mean distance of points (N, 3) to their nearest four, `fallback` where there are too few.

    On a whole grid that is half a voxel; where the anchors are a subsample it grows with their spacing, so that they still
    cover the surface and the control is not beaten by its holes.
    """
    if len(points) <= NEIGHBOURS:
        return points.new_full((len(points),), fallback)
    cloud = points.cpu().numpy()
    distances = cKDTree(cloud).query(cloud, NEIGHBOURS + 1)[0][:, 1:]
    return torch.from_numpy(distances.mean(axis=1) / 2).to(points)
