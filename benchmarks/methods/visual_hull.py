"""A control: the visual hull of the input masks, coloured from the input pictures.

In: posed pictures with masks. Out: one round Gaussian per surface voxel. Convention: a voxel belongs to the hull if its centre
falls inside every mask whose frame it falls into; a pixel outside a frame is unknown, never empty. A surface voxel has a
neighbour outside the hull. Its colour is the mean over the views that see it (a z-buffer of surface voxels decides),
weighted by how squarely they do. Trade: concavities stay filled, by definition. Verified on closed forms in
`tests/benchmarks`. Deterministic: no random draw, and sums in a fixed order.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.methods import Context, Method, Spec
from benchmarks.round_gaussians import mean_foreground_colour, round_gaussians
from geolrm.cameras import Cameras
from geolrm.gaussians import Gaussians
from geolrm.occupancy import voxel_centres
from geolrm.views import Views

SPEC = Spec(
    what="control: silhouettes and colours of the inputs, without any learning; what a model must beat",
    inputs="any number of posed pictures with masks",
    cameras="exact, OpenCV camera-to-world, object frame",
    licence="Apache-2.0",
    weights="none",
)
RESOLUTION = 64
SIGMA = 0.6  # voxels
STEEPEST = 0.2  # cosine below which a surface is taken to be no steeper
CELL = 1.5  # voxels that a z-buffer cell measures at the nearest depth, so that a surface leaves no holes in it


def carve(views: Views, resolution: int) -> Tensor:
    """Hull (R, R, R) bool of the masks of V views."""
    device = views.colour.device
    inside = torch.ones(resolution, resolution, resolution, dtype=torch.bool, device=device).nonzero()
    for view in range(len(views)):  # each view has only what the earlier ones left to look at
        uv, depth = views.cameras[view].project(voxel_centres(inside, resolution))
        in_frame = (depth > 0) & ((uv >= 0) & (uv < 1)).all(dim=-1)
        height, width = views.size
        row, column = (uv[:, 1] * height).long().clamp(0, height - 1), (uv[:, 0] * width).long().clamp(0, width - 1)
        inside = inside[~in_frame | views.foreground[view, 0, row, column]]
    grid = torch.zeros(resolution, resolution, resolution, dtype=torch.bool, device=device)
    grid[inside[:, 0], inside[:, 1], inside[:, 2]] = True
    return grid


def surface_of(grid: Tensor) -> tuple[Tensor, Tensor]:
    """Surface voxels (N, 3) of a grid (R, R, R) bool, those with one of six neighbours empty, and outward normals (N, 3)."""
    solid = F.pad(grid.float()[None, None], (1,) * 6)
    buried = -F.max_pool3d(-solid, (3, 1, 1), 1, (1, 0, 0))
    for kernel in ((1, 3, 1), (1, 1, 3)):
        buried = torch.minimum(buried, -F.max_pool3d(-solid, kernel, 1, tuple(k // 2 for k in kernel)))
    surface = (grid & (buried[0, 0, 1:-1, 1:-1, 1:-1] == 0)).nonzero()
    smooth = F.avg_pool3d(F.pad(grid.float()[None, None], (4,) * 6), 5, 1)[0, 0]  # grows by 2 on each side
    x, y, z = (surface + 2).unbind(-1)
    gradient = [
        smooth[x + 1, y, z] - smooth[x - 1, y, z],
        smooth[x, y + 1, z] - smooth[x, y - 1, z],
        smooth[x, y, z + 1] - smooth[x, y, z - 1],
    ]
    return surface, F.normalize(-torch.stack(gradient, dim=-1), dim=-1)


def visible(points: Tensor, cosines: Tensor, camera: Cameras, voxel: float) -> Tensor:
    """Which surface points one camera (shape ()) sees in its frame.

    Args:
        points: (N, 3), one per voxel of side `voxel`.
        cosines: (N,) between each point's normal and the direction to the camera: a steep surface spans more depth within
            one cell of the z-buffer, and is not to hide itself.

    Returns:
        (N,) bool.
    """
    uv, depth = camera.project(points)
    seen = (depth > 0) & ((uv >= 0) & (uv < 1)).all(dim=-1)
    if not seen.any():
        return seen
    focal = camera.intrinsics[[0, 1], [0, 1]].max().item()
    cells = max(1, int(depth[seen].min().item() / (CELL * focal * voxel)))
    column, row = (uv[seen] * cells).long().unbind(-1)
    nearest = depth.new_full((cells * cells,), torch.inf)
    nearest.scatter_reduce_(0, row * cells + column, depth[seen], "amin")
    cosine = cosines[seen].clamp(STEEPEST, 1)
    slack = voxel * (1 + CELL * (1 - cosine.square()).sqrt() / cosine)
    return seen.masked_scatter(seen, depth[seen] <= nearest[row * cells + column] + slack)


def colour_from_views(points: Tensor, normals: Tensor, views: Views, voxel: float) -> Tensor:
    """(N, 3) colours of surface points from the views that see them; the mean foreground colour where none does."""
    fallback = mean_foreground_colour(views)
    total, weights = torch.zeros_like(points), points.new_zeros(len(points), 1)
    premultiplied = torch.cat([views.colour * views.alpha, views.alpha], dim=1)
    for view in range(len(views)):
        camera = views.cameras[view]
        uv, _ = camera.project(points)
        sampled = F.grid_sample(premultiplied[view : view + 1], uv[None, None] * 2 - 1, align_corners=False)[0, :, 0].T
        cosines = (F.normalize(camera.positions - points, dim=-1) * normals).sum(dim=-1)
        weight = (cosines.clamp(min=0.05) ** 2 * visible(points, cosines, camera, voxel))[:, None]
        total += weight * sampled[:, :3]
        weights += weight * sampled[:, 3:]
    return torch.where(weights > 1e-3, total / weights.clamp(min=1e-3), fallback).clamp(0, 1)


def visual_hull(views: Views, resolution: int = RESOLUTION) -> Gaussians:
    """The coloured hull, empty where the masks share no voxel."""
    voxel = 1 / resolution
    surface, normals = surface_of(carve(views, resolution))
    points = voxel_centres(surface, resolution)
    if len(points) == 0:
        return Gaussians.empty(views.colour.device)
    colours = colour_from_views(points, normals, views, voxel)
    return round_gaussians(points, colours, points.new_full((len(points),), SIGMA * voxel))


def load(context: Context) -> Method:
    """Never fails."""
    return Method(visual_hull)
