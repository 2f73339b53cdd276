"""Depth and pictures of a mesh at any cameras, by ray casting.

In: a mesh, a colour for any point of its surface, cameras. Out: planar depth of first hits; colour over white, alpha, depth.
Convention: four rays a pixel, averaged; colour and alpha over all of them, depth over those that hit. Trade: Open3D casts on
the CPU, wherever the mesh is. Verified on a ball in closed form.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.methods import Reconstruction
from geolrm.cameras import Cameras
from geolrm.data.raycast import import_open3d
from geolrm.meshing import Mesh
from geolrm.rendering import Rendering

RAYS_A_SIDE = 2  # of a pixel
Colour = Callable[[Tensor], Tensor]  # points (N, 3) of the surface, object frame -> sRGB (N, 3) in [0, 1]


def mesh_depth(mesh: Mesh, cameras: Cameras, height: int, width: int) -> Tensor:
    """Planar depth (V, H, W) of first hits along the rays of pixel centres, on the CPU, 0 = none. Raises `Open3DMissing`."""
    open3d = import_open3d()
    scene = open3d.t.geometry.RaycastingScene()
    vertices, faces = mesh.vertices.float().cpu().numpy(), mesh.faces.cpu().numpy().astype(np.uint32)
    scene.add_triangles(open3d.core.Tensor(np.ascontiguousarray(vertices)), open3d.core.Tensor(faces))
    depth = torch.zeros(len(cameras), height, width)
    for view in range(len(cameras)):
        origin, directions = cameras[view].to("cpu").rays(height, width)
        rays = torch.cat([origin.expand_as(directions), directions], dim=-1).contiguous().numpy()
        distance = torch.from_numpy(scene.cast_rays(open3d.core.Tensor(rays))["t_hit"].numpy().copy())
        depth[view] = torch.where(distance.isfinite(), distance, 0)  # a direction's length is 1 along z
    return depth


@torch.no_grad()
def mesh_pictures(mesh: Mesh, colour: Colour, cameras: Cameras, height: int, width: int) -> Rendering:
    """Pictures of a mesh with faces, on its device."""
    fine = mesh_depth(mesh, cameras, height * RAYS_A_SIDE, width * RAYS_A_SIDE).to(mesh.vertices.device)
    views = []
    for camera, depth in zip(range(len(cameras)), fine, strict=True):
        hit = depth > 0
        points = cameras[camera].to(depth.device).unproject(depth)[hit]
        planes = depth.new_zeros(5, *hit.shape)  # colour, alpha, depth
        planes[:, hit] = torch.cat([colour(points).T, points.new_ones(1, len(points)), depth[hit][None]])
        views.append(F.avg_pool2d(planes[None], RAYS_A_SIDE)[0])
    mean = torch.stack(views) if views else fine.new_zeros(0, 5, height, width)
    alpha = mean[:, 3:4]
    return Rendering(mean[:, :3] + 1 - alpha, alpha, mean[:, 4] / alpha[:, 0].clamp(min=1e-6))


def coloured_mesh(mesh: Mesh, colour: Colour) -> Reconstruction:
    """The reconstruction that is a mesh with faces, on any device, and a colour for every point of it."""
    on_cpu = Mesh(mesh.vertices.cpu(), mesh.faces.cpu(), mesh.colours.cpu())
    return Reconstruction(
        lambda cameras, height, width: mesh_pictures(mesh, colour, cameras, height, width), lambda: on_cpu
    )
