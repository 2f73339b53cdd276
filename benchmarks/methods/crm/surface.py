"""CRM's surface: signed distance on a lattice, and its mesh by FlexiCubes.

In: the heads and a triplane. Out: a mesh with colours. Convention: distance is positive inside, a sphere of radius 0.5 plus
what the head says; lattice of 80 cells a side over [-1, 1]^3, its points moved by at most a quarter cell; faces come out turned
inwards and are turned round for export. Trade: a surface that reaches the box stays open there. Verified by recorded meshes.

FlexiCubes is decoded exactly, in plain PyTorch. Marching cubes on the same distances would lose the shift of crossings, the
averaging within a cell that puts vertices on sharp edges, and the choice of diagonals: all within one cell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.flexicubes import cell_corners, decode, lattice
from benchmarks.methods.crm.network import Decoder, features_at

CELLS = 80
RADIUS = 0.5
SCALE = 0.95  # the public setting; the way points may move is relative to it
AT_ONCE = 1 << 16  # points whose features are held together


@dataclass(frozen=True)
class Field:
    """What the heads say on a lattice: distance (P,), raw deformation (P, 3), moved points (P, 3)."""

    distance: Tensor
    deformation: Tensor
    positions: Tensor


def in_parts(function: Callable[[Tensor], Tensor], points: Tensor, count: int = AT_ONCE) -> Tensor:
    return torch.cat([function(part) for part in points.split(count)])


def field(decoder: Decoder, triplane: Tensor, cells: int, radius: float = RADIUS, scale: float = SCALE) -> Field:
    """Of a triplane (C, S, 3 S)."""
    points = lattice(cells, 2.0, triplane.device)
    raw = in_parts(lambda part: decoder.sdfMlp(features_at(triplane, part)), points)
    distance = raw[:, 0] + radius - points.norm(dim=-1)
    moved = points + raw[:, 1:].tanh() * (0.5 / cells * scale / 0.95)
    return Field(distance, raw[:, 1:], moved)


def weights_of(decoder: Decoder, triplane: Tensor, cells: int, index: Tensor) -> Tensor:
    """(N, 21) weights of the cells of these indices (N,)."""
    points = lattice(cells, 2.0, triplane.device)

    def weights(part: Tensor) -> Tensor:
        corners = points[cell_corners(part, cells)]
        return decoder.weights(features_at(triplane, corners.reshape(-1, 3)).unflatten(0, (-1, 8)))

    return in_parts(weights, index, AT_ONCE // 8)


def mesh_of(
    decoder: Decoder, triplane: Tensor, cells: int = CELLS, radius: float = RADIUS, scale: float = SCALE
) -> tuple[Tensor, Tensor]:
    """Vertices (M, 3) in triplane coordinates and faces (F, 3) turned inwards."""
    found = field(decoder, triplane, cells, radius, scale)
    return decode(found.distance, found.positions, cells, lambda index: weights_of(decoder, triplane, cells, index))


def colours_at(decoder: Decoder, triplane: Tensor, points: Tensor) -> Tensor:
    """sRGB (N, 3) at points (N, 3)."""
    if not len(points):
        return points
    return in_parts(lambda part: (0.5 * decoder.rgbMlp(features_at(triplane, part)) + 0.5).clamp(0, 1), points)
