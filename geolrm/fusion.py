"""Depth maps averaged into a truncated signed distance grid: the inner loops, in numba.

In: depth maps and the affine maps from voxel indices to their homogeneous pixels. Out: distance and weight of every voxel.
Convention: pixel (row, column) holds what projects into [column, column + 1) x [row, row + 1); depth 0 is unknown, infinity
empty all along the ray; the rule of one view's distance and weight is `geolrm.meshing.fuse`'s. Trade: CPU only; where
rounding decides between two pixels, a voxel may take the other one. One thread owns a slab of voxels and takes the views in
their order: the numbers do not depend on the number of threads. Verified against the same in plain torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

ZERO, ONE = np.float32(0), np.float32(1)


@njit(cache=True, error_model="numpy", parallel=True)
def average(depth: Any, projections: Any, side: int, truncation: Any, fall: Any, distance: Any, weight: Any) -> None:
    """Fill distance and weight (side, side, side).

    Args:
        depth: (V, H, W) float32 planar z.
        projections: (V, 3, 4) float64; (column z, row z, z) = projection @ (i, j, k, 1) of a voxel's indices.
        side: voxels a side.
        truncation: float32, object units.
        fall: float32; a view's weight is (signed distance in truncations + 1) * fall, at most 1.
        distance, weight: (side, side, side) float32, written.
    """
    views, height, width = depth.shape
    flat = depth.reshape(views, height * width)
    inverse, wide, high = ONE / truncation, np.float32(width), np.float32(height)
    for i in prange(side):
        seen, z = np.empty(side, np.float32), np.empty(side, np.float32)
        pixel = np.empty(side, np.int32)
        for j in range(side):
            total, trust = distance[i, j], weight[i, j]
            total[:] = ZERO
            trust[:] = ZERO
            for view in range(views):
                p = projections[view]
                x0 = np.float32(p[0, 0] * i + p[0, 1] * j + p[0, 3])
                y0 = np.float32(p[1, 0] * i + p[1, 1] * j + p[1, 3])
                z0 = np.float32(p[2, 0] * i + p[2, 1] * j + p[2, 3])
                dx, dy, dz = np.float32(p[0, 2]), np.float32(p[1, 2]), np.float32(p[2, 2])
                for k in range(side):
                    step = np.float32(k)
                    z[k] = z0 + dz * step
                    near = ONE / z[k]
                    column, row = (x0 + dx * step) * near, (y0 + dy * step) * near
                    inside = (column >= ZERO) & (column < wide) & (row >= ZERO) & (row < high) & (z[k] > ZERO)
                    pixel[k] = np.int32(row) * np.int32(width) + np.int32(column) if inside else np.int32(-1)
                for k in range(side):
                    seen[k] = flat[view, pixel[k]] if pixel[k] >= 0 else ZERO
                for k in range(side):
                    signed = min((seen[k] - z[k]) * inverse, ONE)
                    counts = min(max((signed + ONE) * fall, ZERO), ONE) if seen[k] > ZERO else ZERO
                    total[k] += max(signed, -ONE) * counts
                    trust[k] += counts
            for k in range(side):
                total[k] /= max(trust[k], np.float32(1e-6))
