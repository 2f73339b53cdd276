"""Which voxels hold surface: labels from depth maps, anchor points from voxels.

In: depth maps with cameras, or points, or a predicted grid. Out: a boolean grid (R, R, R) indexed [x, y, z], the centres of
its voxels, packed bits for storage, a spatially even subsample for the anchor points. Convention: the object cube
[-0.5, 0.5]^3; voxel index = floor((p + 0.5) R), centre = (index + 0.5) / R - 0.5, the same on both sides, labels and
anchors (the public code uses two other grids, half a voxel apart; paper, A.1). Trade: the label is the set of voxels that
depth maps hit, so it holds no surface that no view sees; how many views hit a voxel says how far to trust it. Verified
against closed forms (sphere, box, torus) and by round trips.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from geolrm.cameras import Cameras


def voxel_indices(points: Tensor, resolution: int) -> tuple[Tensor, int]:
    """Voxels of points.

    Args:
        points: (N, 3) object units.

    Returns:
        (M, 3) int64 indices, one per accepted point; and the number of refused points. Points up to one voxel outside the
        cube are clamped onto its faces (surfaces that touch the cube), farther ones are refused.
    """
    scaled = torch.floor((points + 0.5) * resolution)
    accepted = ((scaled >= -1) & (scaled <= resolution)).all(dim=-1)
    return scaled[accepted].clamp(0, resolution - 1).long(), int((~accepted).sum())


def voxel_centres(indices: Tensor, resolution: int) -> Tensor:
    """(N, 3) float32 centres, object units, of voxels (N, 3)."""
    return (indices.float() + 0.5) / resolution - 0.5


def voxel_corners(indices: Tensor, resolution: int) -> Tensor:
    """The public code's places (N, 3) of voxels (N, 3): the first and the last lie on the faces of the cube."""
    return torch.linspace(-0.5, 0.5, resolution).to(indices.device)[indices]


GRIDS = {"centres": voxel_centres, "corners": voxel_corners}


def occupancy_from_points(points: Tensor, resolution: int) -> tuple[Tensor, int]:
    """Grid (R, R, R) bool of the voxels that hold at least one of the points (N, 3), and the number of points refused."""
    indices, refused = voxel_indices(points, resolution)
    grid = torch.zeros(resolution, resolution, resolution, dtype=torch.bool, device=points.device)
    grid[indices[:, 0], indices[:, 1], indices[:, 2]] = True
    return grid, refused


def hit_counts(depth: Tensor, cameras: Cameras, resolution: int) -> tuple[Tensor, int]:
    """How many views' depth hits each voxel, in float64: where a point falls depends on no rounding of its own.

    Args:
        depth: (V, H, W) planar z, 0 = no surface.
        cameras: (V,).

    Returns:
        counts (R, R, R) int16, and the number of pixels refused for lying more than a voxel outside the cube.
    """
    if depth.device.type != "cpu":
        return hit_counts_definition(depth, cameras, resolution)
    from geolrm.hits import count_hits  # numba takes half a second to import

    height, width = depth.shape[-2:]
    to_world = cameras.rotations.double() @ torch.linalg.inv(cameras.intrinsics.double())
    counts = torch.zeros(resolution, resolution, resolution, dtype=torch.int16)
    arrays = (depth.float(), _centres(width), _centres(height), to_world, cameras.positions.double(), counts - 1)
    refused = count_hits(*(array.contiguous().numpy() for array in arrays), counts.numpy())
    return counts, refused


def hit_counts_definition(depth: Tensor, cameras: Cameras, resolution: int) -> tuple[Tensor, int]:
    """`hit_counts` on any device, readable."""
    precise = Cameras(cameras.camera_to_world.double(), cameras.intrinsics.double())
    counts = torch.zeros(resolution, resolution, resolution, dtype=torch.int16, device=depth.device)
    refused = 0
    for view in range(len(depth)):  # one view at a time: 40 views of 512 px as points would take 252 MB at once
        points = precise[view].unproject(depth[view].double())[depth[view] > 0]
        hit, outside = occupancy_from_points(points, resolution)
        counts += hit
        refused += outside
    return counts, refused


def _centres(count: int) -> Tensor:
    """(count,) pixel centres in [0, 1], rounded as those of `Cameras.rays` are."""
    return ((torch.arange(count, dtype=torch.float32) + 0.5) / count).double()


def occupancy_from_depth(depth: Tensor, cameras: Cameras, resolution: int) -> tuple[Tensor, int]:
    """Occupancy label (R, R, R) bool of one object (paper, A.1): the voxels that any pixel with depth hits; and the number of
    pixels refused. Arguments as of `hit_counts`."""
    counts, refused = hit_counts(depth, cameras, resolution)
    return counts > 0, refused


def pack(grid: Tensor) -> bytes:
    """Bits of a grid (R, R, R), eight voxels a byte, z fastest, most significant bit first."""
    return np.packbits(grid.cpu().numpy().reshape(-1)).tobytes()


def unpack(data: bytes, resolution: int) -> Tensor:
    """Inverse of `pack`. Raises ValueError when the length is not that of a grid of this resolution."""
    if len(data) != (resolution**3 + 7) // 8:
        raise ValueError(f"{len(data)} bytes are no occupancy grid of {resolution}^3")
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=resolution**3)
    return torch.from_numpy(bits.view(bool)).reshape(resolution, resolution, resolution)


def morton_codes(indices: Tensor) -> Tensor:
    """(N,) int64 position of voxels (N, 3) along the Z-order curve; indices below 2^20."""

    def spread(v: Tensor) -> Tensor:  # 20 bits, two zeros between each
        for shift, mask in (
            (32, 0x1F00000000FFFF),
            (16, 0x1F0000FF0000FF),
            (8, 0x100F00F00F00F00F),
            (4, 0x10C30C30C30C30C3),
            (2, 0x1249249249249249),
        ):
            v = (v | (v << shift)) & mask
        return v

    x, y, z = indices.long().unbind(-1)
    return (spread(x) << 2) | (spread(y) << 1) | spread(z)


def even_subsample(indices: Tensor, count: int) -> Tensor:
    """At most `count` of the voxels (N, 3), spread evenly in space; deterministic, nested in `count`, in Z-order.

    Each voxel has a fixed place in an order of low discrepancy: the fractional part of its indices times the powers of
    1/g, g = 1.2207 the root of g^4 = g + 1 (the additive recurrence R3 of M. Roberts, "The unreasonable effectiveness of
    quasirandom sequences", 2018). The voxels of the smallest fractions are kept. On a sphere the mean distance from a
    surface voxel to the nearest anchor is that of farthest-point sampling, at the cost of one sort; a random draw leaves
    holes by chance, the top scores leave them by preference (`tests/test_occupancy.py` measures it, LOG.md compares).
    """
    if len(indices) > count:
        powers = torch.tensor([0.8191725133961645, 0.6710436067037893, 0.5497004779019703], dtype=torch.float64)
        fractions = (indices.double() @ powers.to(indices.device)).frac()
        indices = indices[torch.argsort(fractions)[:count]]
    return indices[torch.argsort(morton_codes(indices))]


def random_subsample(indices: Tensor, count: int) -> Tensor:
    """The public code's choice of at most `count` of the voxels (N, 3): in their order, or drawn where there are as many.

    It draws from torch's global generator on the CPU.
    """
    if len(indices) < count:
        return indices
    return indices[torch.randperm(len(indices))[:count].to(indices.device)]


SUBSETS = {"even": even_subsample, "random": random_subsample}


def anchor_points(grid: Tensor, max_count: int, places: str = "centres", subset: str = "even") -> Tensor:
    """(N, 3) anchor points of a grid (R, R, R) bool: `places` of a `subset` of at most max_count of its occupied voxels."""
    return GRIDS[places](SUBSETS[subset](grid.nonzero(), max_count), grid.shape[0])
