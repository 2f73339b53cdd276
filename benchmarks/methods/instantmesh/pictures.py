"""Pictures of a mesh whose colours are a function of the point, by ray casting.

In: a mesh, a colour for any point of its surface, cameras. Out: colour over white, alpha, planar depth. Convention: four rays a
pixel, averaged; colour and alpha over all of them, depth over those that hit. Trade: Open3D casts on the CPU, wherever the
network is. Verified on a ball in closed form.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from geolrm.cameras import Cameras
from geolrm.data.raycast import import_open3d
from geolrm.meshing import Mesh
from geolrm.rendering import Rendering

RAYS_A_SIDE = 2  # of a pixel


@torch.no_grad()
def mesh_pictures(
    mesh: Mesh, colour: Callable[[Tensor], Tensor], cameras: Cameras, height: int, width: int
) -> Rendering:
    """Pictures of a mesh with faces, on its device.

    Args:
        colour: points (N, 3) of the surface, object frame -> sRGB (N, 3) in [0, 1].
    """
    open3d, device = import_open3d(), mesh.vertices.device
    scene = open3d.t.geometry.RaycastingScene()
    vertices, faces = mesh.vertices.cpu().numpy(), mesh.faces.cpu().numpy().astype(np.uint32)
    scene.add_triangles(open3d.core.Tensor(np.ascontiguousarray(vertices)), open3d.core.Tensor(faces))
    views = []
    for view in range(len(cameras)):
        origin, directions = cameras[view].to("cpu").rays(height * RAYS_A_SIDE, width * RAYS_A_SIDE)
        rays = torch.cat([origin.expand_as(directions), directions], dim=-1).contiguous().numpy()
        depth = torch.from_numpy(scene.cast_rays(open3d.core.Tensor(rays))["t_hit"].numpy().copy())
        hit = depth.isfinite()
        planes = torch.zeros(5, *hit.shape, device=device)  # colour, alpha, depth
        points = (origin + torch.where(hit, depth, 0)[..., None] * directions)[hit].to(device)
        planes[:, hit] = torch.cat([colour(points).T, points.new_ones(1, len(points)), depth[hit].to(points)[None]])
        views.append(F.avg_pool2d(planes[None], RAYS_A_SIDE)[0])
    mean = torch.stack(views) if views else torch.zeros(0, 5, height, width, device=device)
    alpha = mean[:, 3:4]
    return Rendering(mean[:, :3] + 1 - alpha, alpha, mean[:, 4] / alpha[:, 0].clamp(min=1e-6))
