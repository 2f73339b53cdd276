"""Meshes of InstantMesh's fields: FlexiCubes for the mesh variants, marching cubes for the NeRF ones.

In: a network and the planes of one object. Out: vertices in the model's box and faces. Convention: negative signed distance,
and density above 10, are inside; faces are counter-clockwise seen from outside. Trade: a field without a sign change inside
the lattice is no surface here; the published code plants an inside-out shell. Verified by recorded meshes.

FlexiCubes is decoded exactly. What marching cubes (`marching_cubes` on the negated distance) would lose: the shift of crossings
(alpha), the averaging within a cell that puts vertices on sharp edges (beta), the choice of diagonals (gamma), and the bend of
the lattice; both surfaces pass through the same cells, so at most a cell's diagonal, 0.028 of a box of side 2.1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks import flexicubes
from benchmarks.methods.instantmesh.network import DensityDecoder, InstantMesh, SurfaceDecoder, density

DENSITY_LEVEL, DENSITY_POINTS = 10.0, 256
DEFORMATION = 4.0  # a lattice point moves by at most 1 / (DEFORMATION R)
AT_ONCE = 1 << 19  # points, or corners of cells, whose features are held together


def density_lattice(points: int, device: torch.device | str = "cpu") -> Tensor:
    """(points^3, 3) over the box [-1, 1]^3, its borders included."""
    axis = torch.linspace(-1, 1, points, device=device)
    return torch.cartesian_prod(axis, axis, axis)


def marching_cubes(values: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Vertices (M, 3) in lattice units and faces (F, 3) around what lies above the level in values (X, Y, Z).

    Linear crossings of lattice edges alone (Lorensen); where the corners of a face alternate, those inside are joined, as
    PyMCubes does, which published meshes are made by.
    """
    from skimage.measure import marching_cubes as by_scikit

    grid = values.float().cpu().numpy()
    if not (grid > level).any() or not (grid < level).any():
        return torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64)
    vertices, faces, _, _ = by_scikit(-grid, -level, method="lorensen")
    return torch.from_numpy(vertices.copy()), torch.from_numpy(faces.astype(np.int64))


def bent(deformation: Tensor, cells: int, factor: float = DEFORMATION) -> Tensor:
    """By how much lattice points move, of the raw deformation."""
    return torch.tanh(deformation) / (factor * cells)


def _distance_mesh(decoder: SurfaceDecoder, planes: Tensor, cells: int, box: float) -> tuple[Tensor, Tensor]:
    points = flexicubes.lattice(cells, box, planes.device)
    parts = [decoder.fields(planes, part[None]) for part in points.split(AT_ONCE)]
    sdf, deformation = (torch.cat(field, dim=1)[0] for field in zip(*parts, strict=True))

    def weights(index: Tensor) -> Tensor:
        parts = index.split(AT_ONCE // 8)
        return torch.cat([decoder.weights(planes, points[flexicubes.cell_corners(part, cells)]) for part in parts])

    return flexicubes.decode(sdf[:, 0], points + bent(deformation, cells), cells, weights)


def _density_mesh(decoder: DensityDecoder, planes: Tensor) -> tuple[Tensor, Tensor]:
    points = density_lattice(DENSITY_POINTS, planes.device)
    values = torch.cat([density(decoder(planes, part[None])[0])[0] for part in points.split(AT_ONCE)])
    vertices, faces = marching_cubes(values.reshape(3 * (DENSITY_POINTS,)), DENSITY_LEVEL)
    return (vertices / (DENSITY_POINTS - 1) * 2 - 1).to(planes.device), faces.to(planes.device)


@torch.no_grad()
def mesh_of(network: InstantMesh, planes: Tensor) -> tuple[Tensor, Tensor]:
    """Vertices (M, 3) in the model's box and faces (F, 3) of planes (1, 3, C, S, S), on their device; possibly none."""
    if isinstance(network.decoder, SurfaceDecoder):
        return _distance_mesh(network.decoder, planes, network.sizes.cells, network.sizes.box)
    assert isinstance(network.decoder, DensityDecoder)
    return _density_mesh(network.decoder, planes)


@torch.no_grad()
def colours_at(network: InstantMesh, planes: Tensor, points: Tensor) -> Tensor:
    """sRGB (N, 3) in [0, 1] at points (N, 3) of the model's box."""
    parts = []
    for part in points.split(AT_ONCE):
        if isinstance(network.decoder, SurfaceDecoder):
            parts.append(network.decoder.colour(planes, part[None])[0])
        else:
            parts.append(network.decoder(planes, part[None])[1][0])
    return torch.cat(parts).clamp(0, 1) if parts else points.new_zeros(0, 3)
