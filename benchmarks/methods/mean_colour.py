"""A control: GeoLRM's anchor points as round, nearly opaque Gaussians of one colour, the mean of the input foreground."""

from __future__ import annotations

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from benchmarks.methods import Context, Method, Spec
from benchmarks.methods.geolrm import anchors_of, load_networks, precision_on
from geolrm.gaussians import Gaussians
from geolrm.views import Views

SPEC = Spec(
    what="control: what the second stage adds to the anchor points of the first, in colour and in shape",
    inputs="those of `geolrm`",
    cameras="those of `geolrm`",
    licence="Apache-2.0",
    weights="those of the first stage of `geolrm`",
)
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


def load(context: Context) -> Method:
    """Raises `BadInput` where a checkpoint is missing or damaged."""
    model, checkpoint = load_networks(context)
    half_voxel = 0.5 / context.params.proposal.voxel_resolution

    def reconstruct(views: Views) -> Gaussians:
        anchors = anchors_of(model, views, context.params.sweep.max_anchors)
        colours = mean_foreground_colour(views).expand(len(anchors), 3)
        return round_gaussians(anchors, colours, half_spacing(anchors, half_voxel))

    return Method(reconstruct, checkpoint, precision_on(context.device))
