"""FlexiCubes: signed distance on a lattice that may be bent, and weights, to a triangle mesh; decoding only, no gradients.

In: values at lattice points, their positions, 21 raw weights a cell. Out: vertices and faces. Convention: lattice point
(i, j, k) has index (i (R + 1) + j)(R + 1) + k and cell (i, j, k) index (i R + j) R + k, for x, y, z; corner c of a cell lies at
the offset (c & 1, c >> 1 & 1, c >> 2 & 1); negative is inside, faces are counter-clockwise seen from outside; an edge on the
border of the lattice makes no face, so that a surface that reaches it stays open there. Trade: loops of every case come from
the rule on faces, worked out at import, in place of a table. Verified by recorded outputs of the published decoder on smooth
and on noisy fields, and by spheres.

FlexiCubes: Shen et al. 2023, "Flexible Isosurface Extraction for Gradient-Based Mesh Optimization".
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ROUNDING = 5  # decimals of the lattice's coordinates, as published
CORNERS = torch.tensor([[c & 1, c >> 1 & 1, c >> 2 & 1] for c in range(8)])
# Corner pairs of the twelve edges, as the weights count them, and the axis along which each runs.
EDGES = torch.tensor([[0, 1], [1, 5], [4, 5], [0, 4], [2, 3], [3, 7], [6, 7], [2, 6], [2, 0], [3, 1], [7, 5], [6, 4]])
EDGE_AXES = (CORNERS[EDGES[:, 0]] != CORNERS[EDGES[:, 1]]).int().argmax(dim=1)
MOST_LOOPS = 4


def _faces() -> list[tuple[int, int, list[int]]]:
    """(axis, side, edges) of the six faces of a cell."""
    in_face = [[all(CORNERS[c, a] == s for c in pair) for pair in EDGES.tolist()] for a in range(3) for s in range(2)]
    return [(n // 2, n % 2, [e for e in range(12) if holds[e]]) for n, holds in enumerate(in_face)]


def _loops(case: int) -> tuple[list[int], list[int]]:
    """Loop number of each edge of a case, -1 where the sign does not change; and which faces are ambiguous."""
    inside = [case >> c & 1 for c in range(8)]
    pairs = EDGES.tolist()
    crossed = [inside[a] != inside[b] for a, b in pairs]
    group = list(range(12))  # the smallest edge of the loop that an edge is on

    def join(edges: list[int]) -> None:
        joined = {group[e] for e in edges}
        for e in range(12):
            if group[e] in joined:
                group[e] = min(joined)

    ambiguous = []
    for number, (_, _, edges) in enumerate(_faces()):
        cut = [e for e in edges if crossed[e]]
        if len(cut) == 2:
            join(cut)
        elif len(cut) == 4:  # each inside corner of the face is cut off by itself
            ambiguous.append(number)
            for corner in {c for e in cut for c in pairs[e] if inside[c]}:
                join([e for e in cut if corner in pairs[e]])
    order = sorted({group[e] for e in range(12) if crossed[e]})
    return [order.index(group[e]) if crossed[e] else -1 for e in range(12)], ambiguous


def _tables() -> tuple[Tensor, Tensor]:
    """Loop numbers (256, 12), and the face (256,) across which a critical case must look at its neighbour, -1 for others.

    A case is critical if one face alone is ambiguous and it has a single loop.
    """
    found = [_loops(case) for case in range(256)]
    critical = [faces[0] if len(faces) == 1 and max(loops) == 0 else -1 for loops, faces in found]
    return torch.tensor([loops for loops, _ in found]), torch.tensor(critical)


LOOPS, CRITICAL_FACE = _tables()


def lattice(cells: int, box: float, device: torch.device | str = "cpu") -> Tensor:
    """Points ((R + 1)^3, 3) of R cells a side over a cube of side `box` around the origin."""
    axis = torch.arange(cells + 1, device=device) / cells
    axis = (axis * 10**ROUNDING).round() / 10**ROUNDING - 0.5
    return torch.cartesian_prod(axis, axis, axis) * box


def cell_corners(index: Tensor, cells: int) -> Tensor:
    """Lattice points (N, 8) at the corners of the cells of these indices (N,)."""
    i, j, k = index // cells**2, index // cells % cells, index % cells
    offsets = CORNERS.to(index.device)
    side = cells + 1
    i, j, k = (axis[:, None] + offsets[:, n] for n, axis in enumerate((i, j, k)))
    return (i * side + j) * side + k


def active_cells(sdf: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Indices (N,) of the cells with corners on both sides, in increasing order, and their cases (N,)."""
    inside = (sdf < 0).reshape(cells + 1, cells + 1, cells + 1)
    case = torch.zeros(cells, cells, cells, dtype=torch.long, device=sdf.device)
    for c, (x, y, z) in enumerate(CORNERS.tolist()):
        case += inside[x : x + cells, y : y + cells, z : z + cells].long() << c
    index = ((case > 0) & (case < 255)).flatten().nonzero()[:, 0]
    return index, case.flatten()[index]


def edge_loops(index: Tensor, case: Tensor, cells: int) -> Tensor:
    """Loop numbers (N, 12) of active cells: those of the complementary case where two critical cells share their face."""
    faces = CRITICAL_FACE.to(index.device)
    critical = torch.full((cells**3,), False, device=index.device)
    critical[index] = faces[case] >= 0
    position = torch.stack([index // cells**2, index // cells % cells, index % cells], dim=-1)
    face = faces[case].clamp(min=0)
    axis, step = face // 2, face % 2 * 2 - 1
    across = position.scatter_add(1, axis[:, None], step[:, None])
    within = ((across >= 0) & (across < cells)).all(dim=1)
    i, j, k = across.clamp(0, cells - 1).unbind(-1)
    both = critical[index] & within & critical[(i * cells + j) * cells + k]
    return LOOPS.to(index.device)[torch.where(both, 255 - case, case)]


def dual_vertices(
    sdf: Tensor, positions: Tensor, weights: Tensor, corners: Tensor, loops: Tensor
) -> tuple[Tensor, Tensor]:
    """One vertex a loop.

    Args:
        weights: (N, 21) raw, of the active cells: edges, corners, cell.
        corners: (N, 8) their lattice points; `loops` (N, 12) their loop numbers.

    Returns:
        vertices (M, 3), ordered by cell, then by loop; the vertex (N, 12) that an edge of a cell is part of, -1 for none.
    """
    bent = 1 + 0.5 * torch.tanh(weights[:, :20])
    of_edge, of_corner = bent[:, :12], bent[:, 12:]
    first, second = EDGES.to(sdf.device).unbind(-1)
    x, s = positions[corners], (sdf[corners] * of_corner)[..., None]
    between = s[:, second] - s[:, first]
    crossings = (x[:, first] * s[:, second] - x[:, second] * s[:, first]) / torch.where(between == 0, 1, between)
    crossed = loops >= 0
    slots = torch.arange(len(corners), device=sdf.device)[:, None] * MOST_LOOPS + loops
    used, vertex = torch.unique(slots[crossed], return_inverse=True)
    of_edges = torch.full_like(loops, -1).masked_scatter(crossed, vertex)
    share = of_edge[crossed][:, None]
    total = share.new_zeros(len(used), 1).index_add_(0, vertex, share)
    summed = share.new_zeros(len(used), 3).index_add_(0, vertex, share * crossings[crossed])
    return summed / total, of_edges


def dual_faces(sdf: Tensor, gamma: Tensor, corners: Tensor, of_edges: Tensor) -> Tensor:
    """Two triangles (F, 3) around every crossed lattice edge with four cells.

    Args:
        gamma: (N,) of the active cells: the diagonal between the two cells with the larger product is taken.
        of_edges: (N, 12) from `dual_vertices`.
    """
    cell, edge = (of_edges >= 0).nonzero().unbind(-1)  # by increasing cell
    ends = EDGES.to(sdf.device)[edge]
    low, high = corners[cell[:, None], ends].aminmax(dim=1)
    # An edge is known by its ends; sorting is stable, so its four cells stay in increasing order.
    _, name, count = torch.unique(torch.stack([low, high], dim=-1), dim=0, return_inverse=True, return_counts=True)
    order = torch.argsort(name, stable=True)
    order = order[(count == 4)[name[order]]].reshape(-1, 4)
    cell, edge = cell[order], edge[order]
    vertex = of_edges[cell, edge]
    first = EDGES.to(sdf.device)[edge[:, 0], 0]
    positive_first = sdf[corners[cell[:, 0], first]] > 0
    g = gamma[cell]
    towards, across = g[:, 0] * g[:, 3], g[:, 1] * g[:, 2]
    split_03 = (towards > across) | ((towards == across) & ~positive_first)
    a, b, c, d = vertex[:, [0, 1, 3, 2]].unbind(-1)  # around the edge
    halves_03 = torch.stack([a, b, c, a, c, d], dim=-1)
    halves_12 = torch.stack([b, c, d, b, d, a], dim=-1)
    triangles = torch.where(split_03[:, None], halves_03, halves_12).reshape(-1, 2, 3)
    return torch.where(positive_first[:, None, None], triangles, triangles.flip(-1)).reshape(-1, 3)


def decode(
    sdf: Tensor, positions: Tensor, cells: int, weights: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Vertices (M, 3) and faces (F, 3) of the zero level; both are empty where the sign never changes.

    Args:
        sdf: ((R + 1)^3,) negative inside.
        positions: ((R + 1)^3, 3) of the lattice points, bent or not.
        cells: R.
        weights: indices of cells (N,) -> their raw weights (N, 21); only asked for cells that hold a surface. None: all 0.
    """
    index, case = active_cells(sdf, cells)
    raw = sdf.new_zeros(len(index), 21) if weights is None else weights(index)
    corners = cell_corners(index, cells)
    vertices, of_edges = dual_vertices(sdf, positions, raw, corners, edge_loops(index, case, cells))
    gamma = 0.25 + 0.5 * torch.sigmoid(raw[:, 20])
    return vertices, dual_faces(sdf, gamma, corners, of_edges)
