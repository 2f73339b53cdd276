"""How many depth maps hit each voxel: the inner loop, in numba.

In: depth maps, and per view the matrix from a pixel to its ray. Out: the count of views per voxel, and how many pixels lay in
no voxel. Convention: that of `geolrm.occupancy`, whose `hit_counts_definition` says the same in plain torch. Trade: CPU and
one thread, since shards are built one object a core; no point is ever stored, so memory is that of the grid. Verified against
the definition, voxel for voxel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit


@njit(cache=True, error_model="numpy")
def count_hits(depth: Any, columns: Any, rows: Any, to_world: Any, origins: Any, latest: Any, counts: Any) -> int:
    """Fill `counts`; returns the number of pixels that lie more than a voxel outside the cube.

    Args:
        depth: (V, H, W) float32 planar z, 0 = no surface.
        columns, rows: (W,) and (H,) float64 pixel centres in [0, 1].
        to_world: (V, 3, 3) float64; a pixel's ray, of unit z in the camera, is to_world @ (column, row, 1).
        origins: (V, 3) float64 camera centres.
        latest: (R, R, R) int16, -1: the last view that hit a voxel; written.
        counts: (R, R, R) int16, 0: written.
    """
    views, height, width = depth.shape
    side = counts.shape[0]
    refused = 0
    for view in range(views):
        m, origin = to_world[view], origins[view]
        for i in range(height):
            x0 = m[0, 1] * rows[i] + m[0, 2]
            y0 = m[1, 1] * rows[i] + m[1, 2]
            z0 = m[2, 1] * rows[i] + m[2, 2]
            for j in range(width):
                z = np.float64(depth[view, i, j])
                if not z > 0:
                    continue
                x = np.floor((origin[0] + z * (x0 + m[0, 0] * columns[j]) + 0.5) * side)
                y = np.floor((origin[1] + z * (y0 + m[1, 0] * columns[j]) + 0.5) * side)
                w = np.floor((origin[2] + z * (z0 + m[2, 0] * columns[j]) + 0.5) * side)
                if x < -1 or y < -1 or w < -1 or x > side or y > side or w > side:
                    refused += 1
                    continue
                a = min(max(int(x), 0), side - 1)
                b = min(max(int(y), 0), side - 1)
                c = min(max(int(w), 0), side - 1)
                if latest[a, b, c] != view:
                    latest[a, b, c] = view
                    counts[a, b, c] += 1
    return refused
