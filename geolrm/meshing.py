"""Gaussians to a triangle mesh: rendered depth maps fused into a signed distance grid, and its zero level.

In: `Gaussians`. Out: a `Mesh` with colours. Convention: object frame, z up, voxel (i, j, k) centred at (index + 0.5) / R - 0.5;
the grid is `resolution` voxels a side of the object cube plus a rim of the truncation, so that surfaces that touch the cube
close. A depth counts where alpha is above 0.5 and no accepted neighbour is farther than the truncation (4 voxels); a pixel
of alpha below 0.05 is empty all the way. Trade: the expected depth of overlapping splats lies in front of their surface, by
0.5 to 1 voxel at the default sizes, and parts thinner than about two voxels swell or are lost. Verified on Gaussians laid
on a sphere and a torus, whose meshes must lie on the closed forms.

The method is that of Curless and Levoy 1996 on Fibonacci cameras, as GRM (Xu et al. 2024) uses it for Gaussians.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from geolrm.cameras import Cameras, intrinsics_from_fov, look_at
from geolrm.data.lighting import srgb_to_linear
from geolrm.failures import BadInput
from geolrm.gaussians import Gaussians
from geolrm.rendering import render

RADIUS, FOV = 2.0, 39.6  # of the fusing cameras: object units, degrees
TRUNCATION = 4  # voxels
MIN_ALPHA, EMPTY_ALPHA = 0.5, 0.05  # a surface is above the one, free space below the other, the rest is unknown
MIN_COMPONENT = 0.01  # of the largest component's area; smaller ones are floaters


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh, possibly of no triangles.

    Attributes:
        vertices: (N, 3) float32, object frame.
        faces: (M, 3) int64, counter-clockwise seen from outside.
        colours: (N, 3) sRGB in [0, 1].
    """

    vertices: Tensor
    faces: Tensor
    colours: Tensor

    @classmethod
    def empty(cls) -> Mesh:
        return cls(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3))

    @property
    def crosses(self) -> Tensor:
        """(M, 3) outward normals of length twice the triangle's area."""
        a, b, c = self.vertices[self.faces].unbind(dim=1)
        return torch.linalg.cross(b - a, c - a)

    def sample(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Points (count, 3) spread evenly by area and their outward unit normals (count, 3), a pure function of the seed.

        Raises `BadInput` (`mesh_empty`) for a mesh without area.
        """
        crosses = self.crosses.double()
        cumulative = torch.cumsum(crosses.norm(dim=-1), dim=0)
        if not len(cumulative) or not cumulative[-1] > 0:
            raise BadInput("mesh_empty", "sample", f"{len(self.faces)} triangles without area hold no points")
        draws = torch.rand(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        picked = torch.searchsorted(cumulative, draws[:, 0] * cumulative[-1], right=True).clamp(max=len(cumulative) - 1)
        root = draws[:, 1].sqrt()
        weights = torch.stack([1 - root, root * (1 - draws[:, 2]), root * draws[:, 2]], dim=-1)
        points = (weights[..., None] * self.vertices[self.faces[picked]].double()).sum(dim=1)
        return points.float(), F.normalize(crosses[picked], dim=-1).float()

    def save_glb(self, path: Path | str) -> None:
        """Write binary glTF: y up, vertex colours linear, as its specification asks.

        Raises `BadInput` (`mesh_empty`) for a mesh without triangles, which glTF cannot hold.
        """
        import trimesh

        if not len(self.faces):
            raise BadInput("mesh_empty", path, "a mesh without triangles has no GLB")
        vertices = torch.stack([self.vertices[:, 0], self.vertices[:, 2], -self.vertices[:, 1]], dim=-1)
        linear = srgb_to_linear(self.colours.double().clamp(0, 1))
        mesh = trimesh.Trimesh(
            vertices.numpy(), self.faces.numpy(), vertex_colors=(linear * 255).round().byte().numpy(), process=False
        )
        mesh.export(str(path), file_type="glb")


def fibonacci_cameras(count: int) -> Cameras:
    """`count` cameras spread evenly over the sphere of radius `RADIUS`, looking at its centre."""
    index = torch.arange(count, dtype=torch.float64)
    z = 1 - (2 * index + 1) / count
    azimuth = index * math.pi * (3 - math.sqrt(5))
    ring = (1 - z * z).sqrt()
    positions = RADIUS * torch.stack([ring * azimuth.cos(), ring * azimuth.sin(), z], dim=-1)
    intrinsics = intrinsics_from_fov(math.radians(FOV)).expand(count, 3, 3).clone()
    return Cameras(look_at(positions).float(), intrinsics)


@torch.no_grad()
def gaussians_to_mesh(gaussians: Gaussians, resolution: int = 96, cameras: int = 24, image_size: int = 128) -> Mesh:
    """Fuse `cameras` rendered depth maps of `image_size` pixels a side on a grid of `resolution` voxels per object unit.

    Gaussians that render no surface give the empty mesh.
    """
    if not len(gaussians):
        return Mesh.empty()
    poses = fibonacci_cameras(cameras).to(gaussians.means.device)
    rendering = render(gaussians, poses, image_size, image_size, background=0.0)
    truncation = TRUNCATION / resolution
    alpha = rendering.alpha[:, 0]
    depth = rendering.depth * _is_surface(rendering.depth, alpha, truncation)
    depth[alpha < EMPTY_ALPHA] = math.inf
    distance, weight = fuse(depth, poses, resolution, truncation)
    vertices, faces = _zero_level(distance, weight, resolution)
    faces = _drop_floaters(vertices, faces)
    used, faces = torch.unique(faces, return_inverse=True)
    vertices = vertices[used]
    colour = rendering.colour / rendering.alpha.clamp(min=1e-6)
    colours = _vertex_colours(vertices.to(depth.device), colour, depth, poses, truncation)
    return Mesh(vertices, faces, colours.cpu())


def _is_surface(depth: Tensor, alpha: Tensor, jump: float) -> Tensor:
    """(V, H, W) pixels whose expected depth is a surface's: opaque, and not between an edge's front and back."""
    opaque = alpha > MIN_ALPHA
    accepted = opaque.clone()
    for d, o, a in ((depth, opaque, accepted), (depth.mT, opaque.mT, accepted.mT)):  # along rows, along columns
        broken = o[..., 1:] & o[..., :-1] & ((d[..., 1:] - d[..., :-1]).abs() > jump)
        a[..., 1:] &= ~broken
        a[..., :-1] &= ~broken
    return accepted


def fuse(depth: Tensor, cameras: Cameras, resolution: int, truncation: float) -> tuple[Tensor, Tensor]:
    """Truncated signed distance of depth maps, averaged.

    A view's weight is 1 in front of its surface and to one voxel behind, then falls linearly to 0 at the truncation
    (Bylow et al. 2013): what one view guesses behind a thin part or an edge yields to what another sees there.

    Args:
        depth: (V, H, W) planar z, 0 = unknown, infinity = no surface along the ray.
        cameras: (V,).
        truncation: object units; voxels deeper than that behind a surface learn nothing from the view.

    Returns:
        distance (S, S, S) in [-1, 1] truncations, positive outside; weight (S, S, S), 0 where no view knows;
        S = resolution + 2 * TRUNCATION. On the CPU, as what marching cubes reads.
    """
    from geolrm.fusion import average  # numba takes half a second to import
    from geolrm.rendering.cpu import threads_of_torch

    height, width = depth.shape[-2:]
    side = resolution + 2 * TRUNCATION
    to_object = torch.eye(4, dtype=torch.float64) / resolution  # of voxel indices
    to_object[:3, 3] = (0.5 - TRUNCATION) / resolution - 0.5
    to_object[3, 3] = 1
    pixels = cameras.pixel_intrinsics(height, width).double() @ cameras.world_to_camera.double()[:, :3]
    projections = pixels.cpu() @ to_object
    distance, weight = torch.empty(side, side, side), torch.empty(side, side, side)
    maps = depth.detach().float().cpu().contiguous().numpy()
    fall = np.float32(TRUNCATION / (TRUNCATION - 1))
    with threads_of_torch():
        average(maps, projections.numpy(), side, np.float32(truncation), fall, distance.numpy(), weight.numpy())
    return distance, weight


def _look_up(points: Tensor, maps: Tensor, camera: Cameras) -> tuple[Tensor, Tensor]:
    """Values (K, N) of maps (K, H, W) at the pixels that hold points (N, 3), 0 outside the frame; depths (N,) of the points."""
    height, width = maps.shape[-2:]
    uv, z = camera.project(points)
    column, row = (uv * uv.new_tensor([width, height])).floor().unbind(-1)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (z > 0)
    pixel = torch.where(inside, row * width + column, 0).long()
    return torch.where(inside, maps.reshape(len(maps), -1)[:, pixel], 0), z


def _zero_level(distance: Tensor, weight: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """Vertices (N, 3) and faces (M, 3) where the distance crosses 0 between observed voxels."""
    from skimage.measure import marching_cubes

    observed = (weight > 0).numpy()
    cells = np.zeros_like(observed)  # all eight corners; scikit-image keeps a cell by the mask at its upper corner
    pairs = observed[1:] & observed[:-1]
    squares = pairs[:, 1:] & pairs[:, :-1]
    cells[1:, 1:, 1:] = squares[..., 1:] & squares[..., :-1]
    values = distance.numpy()
    if not cells.any() or not (values[observed] < 0).any() or not (values[observed] > 0).any():
        return torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64)
    try:
        vertices, faces, _, _ = marching_cubes(values, 0.0, mask=cells, gradient_direction="descent")
    except RuntimeError:  # no cell holds a crossing
        return torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64)
    positions = (torch.from_numpy(vertices.copy()) - TRUNCATION + 0.5) / resolution - 0.5
    return positions.float(), torch.from_numpy(faces.astype(np.int64))


def _drop_floaters(vertices: Tensor, faces: Tensor) -> Tensor:
    """Faces (K, 3) of the connected components with more than `MIN_COMPONENT` of the largest one's area."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(faces):
        return faces
    a, b, c = faces.numpy().T
    edges = coo_array(
        (np.ones(2 * len(a)), (np.concatenate([a, b]), np.concatenate([b, c]))), shape=2 * (len(vertices),)
    )
    _, label = connected_components(edges, directed=False)
    areas = Mesh(vertices, faces, vertices).crosses.double().norm(dim=-1)
    of_face = torch.from_numpy(label.astype(np.int64))[faces[:, 0]]
    area = torch.zeros(int(of_face.max()) + 1, dtype=torch.float64).index_add_(0, of_face, areas)
    return faces[(area > MIN_COMPONENT * area.max())[of_face]]


def _vertex_colours(vertices: Tensor, colour: Tensor, depth: Tensor, cameras: Cameras, truncation: float) -> Tensor:
    """(N, 3) sRGB: the mean over the views that see the vertex, nearer to their surface counting more."""
    total = torch.full((len(vertices), 1), 1e-6, device=vertices.device)
    mean = torch.full((len(vertices), 3), 0.5e-6, device=vertices.device)
    for view in range(len(depth)):
        seen, z = _look_up(vertices, torch.cat([depth[view, None], colour[view]]), cameras[view])
        weight = torch.where(seen[0] > 0, (1 - (seen[0] - z).abs() / truncation).clamp(min=0), 0)[:, None]
        total += weight
        mean += weight * seen[1:].T
    return (mean / total).clamp(0, 1)
