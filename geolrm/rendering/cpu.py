"""Gaussian splatting on the CPU: a tile rasterizer in numba, with its backward written by hand.

In: activated Gaussians and world-to-camera poses. Out: five planes per view (red, green, blue, sum of weight times depth,
transmittance), differentiable in means, colours, opacities, scales and quaternions. Convention: the one of gsplat 1.5.3
("classic": EWA projection, `BLUR` added to the 2D covariance, weights under `MIN_ALPHA` skipped, a pixel closed before
its transmittance falls to `MIN_TRANSMITTANCE`), pixel centres at (i + 0.5), camera z as depth. Trade: float32 and pinhole
only, no gradient to cameras. A tile is one thread's work and leaves the gradients of every (Gaussian, tile) pair in a slot
of its own, summed afterwards in a fixed order: the numbers do not depend on the number of threads. Verified against
`definition.py` in values and all gradients, and against gsplat on a GPU.

The arithmetic is that of Kerbl et al. 2023 (3D Gaussian Splatting, section 4 and appendix A) and Zwicker et al. 2002 (EWA
splatting). Inner loops run over the 16 pixels of a tile's row without branches, so that LLVM turns them into vector code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import config, njit, prange, set_num_threads
from torch import Tensor
from torch.autograd.function import once_differentiable

BLUR = np.float32(0.3)
NEAR, FAR = np.float32(0.01), np.float32(1e10)
MIN_ALPHA, MAX_ALPHA = np.float32(1 / 255), np.float32(0.999)
MIN_TRANSMITTANCE = np.float32(1e-4)
FRUSTUM_MARGIN = np.float32(0.3)  # of the half frame: beyond it the projection's Jacobian is frozen

TILE = 16
AREA = TILE * TILE
# What is kept per view and Gaussian: 2D mean, conic, opacity, colour, depth, half extents of the support in pixels.
X, Y, A, B, C, OPACITY, RED, GREEN, BLUE, DEPTH, EXTENT_X, EXTENT_Y = range(12)
RECORD = 12
# Sums over a tile's pixels that the backward keeps per (Gaussian, tile): d loss / d sigma times 1, dx, dy, dx^2, dx dy,
# dy^2 (d = 2D mean - pixel centre), then d loss / d (colour, depth).
SLOT = 10

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

ZERO, ONE, HALF = np.float32(0), np.float32(1), np.float32(0.5)
LOG2_E = np.float32(1.4426950408889634)
# 2^f on [0, 1): interpolated at the seven Chebyshev points; relative error below 1e-7 in float32.
EXP2 = tuple(
    np.float32(c) for c in (1.0, 0.693146944, 0.240230456, 0.0554806292, 0.00968418643, 0.00123913318, 0.000218657849)
)


@njit(cache=True, error_model="numpy")
def _exp_negative(sigma: Any) -> Any:
    """exp(-sigma) for sigma in [0, 16], clamped to there: polynomial 2^f and an exponent made of bits, no call."""
    bounded = sigma if sigma < np.float32(16) else np.float32(16)
    bounded = bounded if bounded > ZERO else ZERO
    power = np.float32(127) - bounded * LOG2_E  # biased, so that truncation is floor
    whole = np.int32(power)
    f = power - np.float32(whole)
    scale = np.int32(whole << 23).view(np.float32)
    c0, c1, c2, c3, c4, c5, c6 = EXP2
    return scale * (c0 + f * (c1 + f * (c2 + f * (c3 + f * (c4 + f * (c5 + f * c6))))))


@njit(cache=True, error_model="numpy")
def _sigma(a: Any, b: Any, c: Any, dx: Any, dy: Any) -> Any:
    return HALF * (a * dx * dx + c * dy * dy) + b * dx * dy


@njit(cache=True, error_model="numpy")
def _rotation(q: FloatArray) -> Any:
    """Row-major entries of the rotation of a unit quaternion wxyz."""
    w, x, y, z = q[0], q[1], q[2], q[3]
    two = np.float32(2)
    return (
        ONE - two * (y * y + z * z), two * (x * y - w * z), two * (x * z + w * y),
        two * (x * y + w * z), ONE - two * (x * x + z * z), two * (y * z - w * x),
        two * (x * z - w * y), two * (y * z + w * x), ONE - two * (x * x + y * y),
    )  # fmt: skip


@njit(cache=True, error_model="numpy")
def _covariance(s: FloatArray, q: FloatArray) -> Any:
    """xx, xy, xz, yy, yz, zz of R diag(s)^2 R^T."""
    r00, r01, r02, r10, r11, r12, r20, r21, r22 = _rotation(q)
    u, v, w = s[0] * s[0], s[1] * s[1], s[2] * s[2]
    return (
        r00 * r00 * u + r01 * r01 * v + r02 * r02 * w,
        r00 * r10 * u + r01 * r11 * v + r02 * r12 * w,
        r00 * r20 * u + r01 * r21 * v + r02 * r22 * w,
        r10 * r10 * u + r11 * r11 * v + r12 * r12 * w,
        r10 * r20 * u + r11 * r21 * v + r12 * r22 * w,
        r20 * r20 * u + r21 * r21 * v + r22 * r22 * w,
    )


@njit(cache=True, error_model="numpy")
def _camera_point(mean: FloatArray, pose: FloatArray) -> Any:
    x = pose[0, 0] * mean[0] + pose[0, 1] * mean[1] + pose[0, 2] * mean[2] + pose[0, 3]
    y = pose[1, 0] * mean[0] + pose[1, 1] * mean[1] + pose[1, 2] * mean[2] + pose[1, 3]
    z = pose[2, 0] * mean[0] + pose[2, 1] * mean[1] + pose[2, 2] * mean[2] + pose[2, 3]
    return x, y, z


@njit(cache=True, error_model="numpy")
def _clamped_tangent(tangent: Any, focal: Any, centre: Any, size: Any) -> Any:
    """x/z (or y/z) kept within the frame plus `FRUSTUM_MARGIN` of its half, as gsplat does for the Jacobian."""
    margin = FRUSTUM_MARGIN * HALF * np.float32(size) / focal
    high = (np.float32(size) - centre) / focal + margin
    low = -(centre / focal) - margin
    return min(high, max(low, tangent))


@njit(cache=True, error_model="numpy")
def _jacobian_times_rotation(x: Any, y: Any, z: Any, pose: FloatArray, k: FloatArray, height: int, width: int) -> Any:
    """The 2 x 3 matrix J W of EWA splatting, row by row; J's nonzero entries are fx/z, -fx u/z, fy/z, -fy v/z."""
    u = _clamped_tangent(x / z, k[0, 0], k[0, 2], width)
    v = _clamped_tangent(y / z, k[1, 1], k[1, 2], height)
    fx, fy = k[0, 0] / z, k[1, 1] / z
    return (
        fx * (pose[0, 0] - u * pose[2, 0]), fx * (pose[0, 1] - u * pose[2, 1]), fx * (pose[0, 2] - u * pose[2, 2]),
        fy * (pose[1, 0] - v * pose[2, 0]), fy * (pose[1, 1] - v * pose[2, 1]), fy * (pose[1, 2] - v * pose[2, 2]),
    )  # fmt: skip


@njit(cache=True, error_model="numpy")
def _tile_range(centre: Any, extent: Any, tiles: int) -> Any:
    """First and one past the last tile that [centre - extent, centre + extent] touches."""
    low = max(ZERO, min(np.float32(tiles), np.floor((centre - extent) / np.float32(TILE))))
    high = max(ZERO, min(np.float32(tiles), np.floor((centre + extent) / np.float32(TILE)) + ONE))
    return np.int32(low), np.int32(high)


@njit(cache=True, parallel=True, error_model="numpy")
def _project(
    means: FloatArray, colours: FloatArray, opacities: FloatArray, scales: FloatArray, quaternions: FloatArray,
    poses: FloatArray, intrinsics: FloatArray, height: int, width: int,
    records: FloatArray, rectangles: npt.NDArray[np.int32], tile_counts: IntArray,
) -> None:  # fmt: skip
    """Fill records (V, N, 12), tile rectangles (V, N, 4: x0, x1, y0, y1) and tiles per Gaussian (V, N), 0 = culled.

    The support is where alpha reaches `MIN_ALPHA`: sigma <= ln(opacity / MIN_ALPHA), whose box is exact, so culling by
    it never changes a pixel.
    """
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    for n in prange(len(means)):
        xx, xy, xz, yy, yz, zz = _covariance(scales[n], quaternions[n])
        opacity = opacities[n]
        for view in range(len(poses)):
            tile_counts[view, n] = 0
            pose, k = poses[view], intrinsics[view]
            x, y, z = _camera_point(means[n], pose)
            if not (z >= NEAR and z <= FAR and opacity >= MIN_ALPHA):
                continue
            p0, p1, p2, q0, q1, q2 = _jacobian_times_rotation(x, y, z, pose, k, height, width)
            s0, s1, s2 = xx * p0 + xy * p1 + xz * p2, xy * p0 + yy * p1 + yz * p2, xz * p0 + yz * p1 + zz * p2
            t0, t1, t2 = xx * q0 + xy * q1 + xz * q2, xy * q0 + yy * q1 + yz * q2, xz * q0 + yz * q1 + zz * q2
            cov_xx = p0 * s0 + p1 * s1 + p2 * s2 + BLUR
            cov_xy = p0 * t0 + p1 * t1 + p2 * t2
            cov_yy = q0 * t0 + q1 * t1 + q2 * t2 + BLUR
            determinant = cov_xx * cov_yy - cov_xy * cov_xy
            if not (determinant > ZERO and determinant < np.float32(np.inf)):
                continue
            reach = math.sqrt(np.float32(2) * math.log(opacity / MIN_ALPHA)) * np.float32(1.001) + np.float32(0.01)
            record = records[view, n]
            record[X] = k[0, 0] * x / z + k[0, 2]
            record[Y] = k[1, 1] * y / z + k[1, 2]
            record[A], record[B], record[C] = cov_yy / determinant, -cov_xy / determinant, cov_xx / determinant
            record[OPACITY] = opacity
            record[RED], record[GREEN], record[BLUE] = colours[n, 0], colours[n, 1], colours[n, 2]
            record[DEPTH] = z
            record[EXTENT_X], record[EXTENT_Y] = reach * math.sqrt(cov_xx), reach * math.sqrt(cov_yy)
            x0, x1 = _tile_range(record[X], record[EXTENT_X], tiles_x)
            y0, y1 = _tile_range(record[Y], record[EXTENT_Y], tiles_y)
            rectangle = rectangles[view, n]
            rectangle[0], rectangle[1], rectangle[2], rectangle[3] = x0, x1, y0, y1
            tile_counts[view, n] = np.int64(x1 - x0) * np.int64(y1 - y0)


@njit(cache=True)
def _depth_order(depths: FloatArray, visible: IntArray) -> IntArray:
    """`visible` sorted by depth, ties by index: least-significant-digit radix sort of the positive floats' bits."""
    keys = depths.view(np.uint32)
    source, target = visible, np.empty_like(visible)
    for shift in (0, 11, 22):
        count = np.zeros(2049, np.int64)
        for n in source:
            count[((keys[n] >> shift) & 2047) + 1] += 1
        for digit in range(2048):
            count[digit + 1] += count[digit]
        for n in source:
            digit = (keys[n] >> shift) & 2047
            target[count[digit]] = n
            count[digit] += 1
        source, target = target, source
    return source


@njit(cache=True, parallel=True)
def _bin(
    records: FloatArray, rectangles: npt.NDArray[np.int32], tile_counts: IntArray, slot_starts: IntArray,
    tiles_x: int, tiles_y: int, tile_starts: IntArray, listed: npt.NDArray[np.int32], slots: IntArray,
) -> None:  # fmt: skip
    """List per tile its Gaussians front to back, and each entry's slot: slots run Gaussian by Gaussian."""
    views, count = tile_counts.shape
    tiles = tiles_x * tiles_y
    for view in prange(views):
        cursor = np.zeros(tiles + 1, np.int64)
        visible = np.flatnonzero(tile_counts[view])
        for n in visible:
            x0, x1, y0, y1 = rectangles[view, n]
            for ty in range(y0, y1):
                for tx in range(x0, x1):
                    cursor[ty * tiles_x + tx + 1] += 1
        cursor[0] = slot_starts[view * count]
        for tile in range(tiles):
            cursor[tile + 1] += cursor[tile]
            tile_starts[view * tiles + tile] = cursor[tile]
        for n in _depth_order(records[view, :, DEPTH].copy(), visible):
            x0, x1, y0, y1 = rectangles[view, n]
            slot = slot_starts[view * count + n]
            for ty in range(y0, y1):
                for tx in range(x0, x1):
                    entry = cursor[ty * tiles_x + tx]
                    cursor[ty * tiles_x + tx] = entry + 1
                    listed[entry] = n
                    slots[entry] = slot
                    slot += 1


@njit(cache=True, error_model="numpy")
def _rows(record: FloatArray, top: int) -> Any:
    """First and one past the last row of the tile, counted from its top, that the Gaussian's support reaches."""
    low = max(ZERO, min(np.float32(TILE), np.ceil(record[Y] - record[EXTENT_Y] - HALF - np.float32(top))))
    high = max(ZERO, min(np.float32(TILE), np.floor(record[Y] + record[EXTENT_Y] - HALF - np.float32(top)) + ONE))
    return np.int64(low), np.int64(high)


# Planes of a tile's working memory, one float32 array so that LLVM knows that they do not overlap.
_T = np.uint64(0)
_OPEN = np.uint64(AREA)
_LAST = np.uint64(2 * AREA)
_R, _G, _B, _D = (np.uint64(i * AREA) for i in range(3, 7))
_REST = np.uint64(AREA)


@njit(cache=True, error_model="numpy")
def _composite_tile(state: FloatArray, records: FloatArray, listed: npt.NDArray[np.int32], top: int, left: int) -> None:
    for position in range(len(listed)):
        if position % 16 == 15:
            still_open = ZERO
            for i in range(AREA):
                still_open = max(still_open, state[_OPEN + np.uint64(i)])
            if still_open == ZERO:
                break
        record = records[listed[position]]
        a, b, c, opacity = record[A], record[B], record[C], record[OPACITY]
        red, green, blue, depth = record[RED], record[GREEN], record[BLUE], record[DEPTH]
        x = record[X] - np.float32(left) - HALF
        first, end = _rows(record, top)
        for row in range(first, end):
            dy = record[Y] - np.float32(top + row) - HALF
            for column in range(TILE):
                p = np.uint64(row * TILE) + np.uint64(column)
                sigma = _sigma(a, b, c, x - np.float32(column), dy)
                alpha = state[_OPEN + p] * min(MAX_ALPHA, opacity * _exp_negative(sigma))
                before = state[_T + p]
                after = before * (ONE - alpha)
                hit = (sigma >= ZERO) & (alpha >= MIN_ALPHA)
                full = hit & (after <= MIN_TRANSMITTANCE)
                hit = hit & (after > MIN_TRANSMITTANCE)
                weight = alpha * before if hit else ZERO
                state[_OPEN + p] = ZERO if full else state[_OPEN + p]
                state[_T + p] = after if hit else before
                state[_LAST + p] = np.float32(position) if hit else state[_LAST + p]
                state[_R + p] += weight * red
                state[_G + p] += weight * green
                state[_B + p] += weight * blue
                state[_D + p] += weight * depth


@njit(cache=True, parallel=True, error_model="numpy")
def _composite(
    records: FloatArray, tile_starts: IntArray, listed: npt.NDArray[np.int32], tiles_x: int, tiles_y: int,
    planes: FloatArray, last: FloatArray,
) -> None:  # fmt: skip
    """Fill planes (V, 5, H, W) and, per pixel, the position in its tile's list of the last Gaussian that counted."""
    views, _, height, width = planes.shape
    for job in prange(views * tiles_y * tiles_x):
        view, tile = job // (tiles_y * tiles_x), job % (tiles_y * tiles_x)
        top, left = (tile // tiles_x) * TILE, (tile % tiles_x) * TILE
        rows, columns = min(TILE, height - top), min(TILE, width - left)
        state = np.zeros(7 * AREA, np.float32)
        state[:AREA] = ONE
        state[2 * AREA : 3 * AREA] = -ONE
        for row in range(rows):
            state[AREA + row * TILE : AREA + row * TILE + columns] = ONE
        _composite_tile(state, records[view], listed[tile_starts[job] : tile_starts[job + 1]], top, left)
        for row in range(rows):
            for column in range(columns):
                p = row * TILE + column
                for plane in range(4):
                    planes[view, plane, top + row, left + column] = state[(3 + plane) * AREA + p]
                planes[view, 4, top + row, left + column] = state[p]
                last[view, top + row, left + column] = state[2 * AREA + p]


@njit(cache=True, error_model="numpy", fastmath={"reassoc", "nsz"})
def _composite_tile_backward(
    state: FloatArray, records: FloatArray, listed: npt.NDArray[np.int32], slots: IntArray, top: int, left: int,
    sums: FloatArray,
) -> None:  # fmt: skip
    """Walk the tile's list back to front. `_T` is undone step by step; `_REST` holds d loss / d (what lies behind)."""
    for position in range(len(listed) - 1, -1, -1):
        record = records[listed[position]]
        a, b, c, opacity = record[A], record[B], record[C], record[OPACITY]
        red, green, blue, depth = record[RED], record[GREEN], record[BLUE], record[DEPTH]
        x = record[X] - np.float32(left) - HALF
        first, end = _rows(record, top)
        g_1 = g_x = g_y = g_xx = g_xy = g_yy = g_red = g_green = g_blue = g_depth = ZERO
        for row in range(first, end):
            dy = record[Y] - np.float32(top + row) - HALF
            row_1 = row_x = row_xx = ZERO
            for column in range(TILE):
                p = np.uint64(row * TILE) + np.uint64(column)
                dx = x - np.float32(column)
                sigma = _sigma(a, b, c, dx, dy)
                unclamped = opacity * _exp_negative(sigma)
                alpha = min(MAX_ALPHA, unclamped)
                hit = (sigma >= ZERO) & (alpha >= MIN_ALPHA) & (state[_LAST + p] >= np.float32(position))
                alpha = alpha if hit else ZERO
                unshadowed = ONE / (ONE - alpha)
                transmittance = state[_T + p] * unshadowed
                state[_T + p] = transmittance
                weight = alpha * transmittance
                v_red, v_green, v_blue, v_depth = state[_R + p], state[_G + p], state[_B + p], state[_D + p]
                own = red * v_red + green * v_green + blue * v_blue + depth * v_depth
                rest = state[_REST + p]
                v_alpha = transmittance * own - rest * unshadowed
                state[_REST + p] = rest + weight * own
                v_sigma = -unclamped * v_alpha if hit & (unclamped <= MAX_ALPHA) else ZERO
                row_1 += v_sigma
                row_x += v_sigma * dx
                row_xx += v_sigma * dx * dx
                g_red += weight * v_red
                g_green += weight * v_green
                g_blue += weight * v_blue
                g_depth += weight * v_depth
            g_1 += row_1
            g_x += row_x
            g_y += row_1 * dy
            g_xx += row_xx
            g_xy += row_x * dy
            g_yy += row_1 * dy * dy
        out = sums[slots[position]]
        out[0], out[1], out[2], out[3], out[4], out[5] = g_1, g_x, g_y, g_xx, g_xy, g_yy
        out[6], out[7], out[8], out[9] = g_red, g_green, g_blue, g_depth


@njit(cache=True, parallel=True, error_model="numpy")
def _composite_backward(
    records: FloatArray, tile_starts: IntArray, listed: npt.NDArray[np.int32], slots: IntArray,
    tiles_x: int, tiles_y: int, planes: FloatArray, last: FloatArray, v_planes: FloatArray, sums: FloatArray,
) -> None:  # fmt: skip
    """Fill sums (slots, 10) from d loss / d planes (V, 5, H, W)."""
    views, _, height, width = planes.shape
    for job in prange(views * tiles_y * tiles_x):
        view, tile = job // (tiles_y * tiles_x), job % (tiles_y * tiles_x)
        top, left = (tile // tiles_x) * TILE, (tile % tiles_x) * TILE
        rows, columns = min(TILE, height - top), min(TILE, width - left)
        state = np.zeros(7 * AREA, np.float32)
        state[2 * AREA : 3 * AREA] = -ONE
        furthest = np.float32(-1)
        for row in range(rows):
            for column in range(columns):
                p, py, px = row * TILE + column, top + row, left + column
                state[p] = planes[view, 4, py, px]
                state[AREA + p] = planes[view, 4, py, px] * v_planes[view, 4, py, px]
                state[2 * AREA + p] = last[view, py, px]
                furthest = max(furthest, last[view, py, px])
                for plane in range(4):
                    state[(3 + plane) * AREA + p] = v_planes[view, plane, py, px]
        start = tile_starts[job]
        end = start + np.int64(furthest) + 1
        _composite_tile_backward(state, records[view], listed[start:end], slots[start:end], top, left, sums)
        for entry in range(end, tile_starts[job + 1]):
            sums[slots[entry]] = ZERO


@njit(cache=True, error_model="numpy")
def _covariance_backward(s: FloatArray, q: FloatArray, v: Any, v_scale: FloatArray, v_quaternion: FloatArray) -> None:
    """From d loss / d covariance (xx, xy, xz, yy, yz, zz of a symmetric matrix) to scale and unit quaternion."""
    xx, xy, xz, yy, yz, zz = v
    r = _rotation(q)
    w, x, y, z = q[0], q[1], q[2], q[3]
    two = np.float32(2)
    d = np.empty(9, np.float32)  # d loss / d rotation
    for j in range(3):
        r0, r1, r2 = r[j], r[3 + j], r[6 + j]
        m0, m1, m2 = xx * r0 + xy * r1 + xz * r2, xy * r0 + yy * r1 + yz * r2, xz * r0 + yz * r1 + zz * r2
        v_scale[j] = two * s[j] * (r0 * m0 + r1 * m1 + r2 * m2)
        d[j], d[3 + j], d[6 + j] = two * s[j] * s[j] * m0, two * s[j] * s[j] * m1, two * s[j] * s[j] * m2
    v_quaternion[0] = two * (x * (d[7] - d[5]) + y * (d[2] - d[6]) + z * (d[3] - d[1]))
    v_quaternion[1] = two * (y * (d[1] + d[3]) + z * (d[2] + d[6]) + w * (d[7] - d[5]) - two * x * (d[4] + d[8]))
    v_quaternion[2] = two * (x * (d[1] + d[3]) + z * (d[5] + d[7]) + w * (d[2] - d[6]) - two * y * (d[0] + d[8]))
    v_quaternion[3] = two * (x * (d[2] + d[6]) + y * (d[5] + d[7]) + w * (d[3] - d[1]) - two * z * (d[0] + d[4]))


@njit(cache=True, error_model="numpy")
def _mean_backward(
    x: Any, y: Any, z: Any, pose: FloatArray, k: FloatArray, height: int, width: int, v_pixel: Any, v_jw: Any, v_z: Any
) -> Any:
    """d loss / d (point in the camera) from that to its pixel, to J W (2 x 3), and to its depth."""
    fx, fy = k[0, 0], k[1, 1]
    u, v = _clamped_tangent(x / z, fx, k[0, 2], width), _clamped_tangent(y / z, fy, k[1, 2], height)
    p0, p1, p2, q0, q1, q2 = v_jw
    v_fx_z = p0 * pose[0, 0] + p1 * pose[0, 1] + p2 * pose[0, 2]
    v_px_w2 = p0 * pose[2, 0] + p1 * pose[2, 1] + p2 * pose[2, 2]
    v_fy_z = q0 * pose[1, 0] + q1 * pose[1, 1] + q2 * pose[1, 2]
    v_qy_w2 = q0 * pose[2, 0] + q1 * pose[2, 1] + q2 * pose[2, 2]
    v_z -= (fx * (v_fx_z - u * v_px_w2) + fy * (v_fy_z - v * v_qy_w2)) / (z * z)
    v_tangent_x = fx * v_pixel[0] - (fx / z * v_px_w2 if u == x / z else ZERO)
    v_tangent_y = fy * v_pixel[1] - (fy / z * v_qy_w2 if v == y / z else ZERO)
    v_z -= (v_tangent_x * x + v_tangent_y * y) / (z * z)
    return v_tangent_x / z, v_tangent_y / z, v_z


@njit(cache=True, parallel=True, error_model="numpy")
def _project_backward(
    means: FloatArray, scales: FloatArray, quaternions: FloatArray, poses: FloatArray, intrinsics: FloatArray,
    height: int, width: int, records: FloatArray, slot_starts: IntArray, sums: FloatArray,
    v_means: FloatArray, v_colours: FloatArray, v_opacities: FloatArray, v_scales: FloatArray, v_quaternions: FloatArray,
) -> None:  # fmt: skip
    """Gather each Gaussian's slots view by view, tile by tile, and carry them back to its parameters."""
    count = len(means)
    for n in prange(count):
        xx, xy, xz, yy, yz, zz = _covariance(scales[n], quaternions[n])
        v_xx = v_xy = v_xz = v_yy = v_yz = v_zz = ZERO
        for view in range(len(poses)):
            start, end = slot_starts[view * count + n], slot_starts[view * count + n + 1]
            if start == end:
                continue
            g_1 = g_x = g_y = g_xx = g_xy = g_yy = g_depth = ZERO
            for slot in range(start, end):
                s = sums[slot]
                g_1, g_x, g_y, g_xx, g_xy, g_yy = (
                    g_1 + s[0],
                    g_x + s[1],
                    g_y + s[2],
                    g_xx + s[3],
                    g_xy + s[4],
                    g_yy + s[5],
                )
                for channel in range(3):
                    v_colours[n, channel] += s[6 + channel]
                g_depth += s[9]
            record, pose, k = records[view, n], poses[view], intrinsics[view]
            v_opacities[n] -= g_1 / record[OPACITY]
            a, b, c = record[A], record[B], record[C]
            # d loss / d covariance = -M V M with V = half the second moments and M the conic
            e0, e1, e2, e3 = a * g_xx + b * g_xy, a * g_xy + b * g_yy, b * g_xx + c * g_xy, b * g_xy + c * g_yy
            h_xx, h_xy, h_yy = -HALF * (e0 * a + e1 * b), -HALF * (e0 * b + e1 * c), -HALF * (e2 * b + e3 * c)
            x, y, z = _camera_point(means[n], pose)
            p0, p1, p2, q0, q1, q2 = _jacobian_times_rotation(x, y, z, pose, k, height, width)
            # left factors of A^T H A (covariance in the world) and of 2 H A Sigma (J W)
            u0, u1, u2 = h_xx * p0 + h_xy * q0, h_xx * p1 + h_xy * q1, h_xx * p2 + h_xy * q2
            w0, w1, w2 = h_xy * p0 + h_yy * q0, h_xy * p1 + h_yy * q1, h_xy * p2 + h_yy * q2
            v_xx += p0 * u0 + q0 * w0
            v_xy += p0 * u1 + q0 * w1
            v_xz += p0 * u2 + q0 * w2
            v_yy += p1 * u1 + q1 * w1
            v_yz += p1 * u2 + q1 * w2
            v_zz += p2 * u2 + q2 * w2
            two = np.float32(2)
            v_jw = (
                two * (u0 * xx + u1 * xy + u2 * xz), two * (u0 * xy + u1 * yy + u2 * yz),
                two * (u0 * xz + u1 * yz + u2 * zz), two * (w0 * xx + w1 * xy + w2 * xz),
                two * (w0 * xy + w1 * yy + w2 * yz), two * (w0 * xz + w1 * yz + w2 * zz),
            )  # fmt: skip
            v_pixel = (a * g_x + b * g_y, b * g_x + c * g_y)
            v_x, v_y, v_z = _mean_backward(x, y, z, pose, k, height, width, v_pixel, v_jw, g_depth)
            for i in range(3):
                v_means[n, i] += pose[0, i] * v_x + pose[1, i] * v_y + pose[2, i] * v_z
        v_covariance = (v_xx, v_xy, v_xz, v_yy, v_yz, v_zz)
        _covariance_backward(scales[n], quaternions[n], v_covariance, v_scales[n], v_quaternions[n])


@contextmanager
def threads_of_torch() -> Iterator[None]:
    """Run numba on as many threads as torch, and leave torch's number alone.

    The two share one OpenMP library, and numba's start sets the number for both: torch would go on with more threads than
    it was told, which on a busy machine made every later torch operation up to thirty times slower.
    """
    count = torch.get_num_threads()
    set_num_threads(min(count, config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_num_threads(count)


def _array(tensor: Tensor) -> FloatArray:
    return tensor.detach().to(torch.float32).contiguous().numpy()


class _Rasterize(torch.autograd.Function):
    """Planes (V, 5, H, W) of activated Gaussians; see `rasterize`."""

    @staticmethod
    def forward(
        ctx: Any, means: Tensor, colours: Tensor, opacities: Tensor, scales: Tensor, quaternions: Tensor,
        world_to_camera: Tensor, pixel_intrinsics: Tensor, height: int, width: int,
    ) -> Tensor:  # fmt: skip
        arrays = tuple(_array(t) for t in (means, colours, opacities, scales, quaternions))
        poses, intrinsics = _array(world_to_camera), _array(pixel_intrinsics)
        views, count = len(poses), len(means)
        tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
        records = np.empty((views, count, RECORD), np.float32)
        rectangles = np.empty((views, count, 4), np.int32)
        tile_counts = np.empty((views, count), np.int64)
        m, c, o, s, q = arrays
        with threads_of_torch():
            _project(m, c, o, s, q, poses, intrinsics, height, width, records, rectangles, tile_counts)
        slot_starts = np.zeros(views * count + 1, np.int64)
        np.cumsum(tile_counts.reshape(-1), out=slot_starts[1:])
        tile_starts = np.full(views * tiles_y * tiles_x + 1, slot_starts[-1])
        listed, slots = np.empty(slot_starts[-1], np.int32), np.empty(slot_starts[-1], np.int64)
        planes = np.empty((views, 5, height, width), np.float32)
        last = np.empty((views, height, width), np.float32)
        with threads_of_torch():
            _bin(records, rectangles, tile_counts, slot_starts, tiles_x, tiles_y, tile_starts, listed, slots)
            _composite(records, tile_starts, listed, tiles_x, tiles_y, planes, last)
        if any(ctx.needs_input_grad):
            ctx.arrays = arrays, poses, intrinsics, records, slot_starts, tile_starts, listed, slots, planes, last
        return torch.from_numpy(planes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *v_outputs: Tensor) -> Any:
        arrays, poses, intrinsics, records, slot_starts, tile_starts, listed, slots, planes, last = ctx.arrays
        m, c, o, s, q = arrays
        height, width = planes.shape[-2:]
        tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
        sums = np.empty((len(slots), SLOT), np.float32)
        v_planes = _array(v_outputs[0])
        v_m, v_c, v_o, v_s, v_q = (np.zeros_like(array) for array in (m, c, o, s, q))
        with threads_of_torch():
            _composite_backward(records, tile_starts, listed, slots, tiles_x, tiles_y, planes, last, v_planes, sums)
            _project_backward(
                m, s, q, poses, intrinsics, height, width, records, slot_starts, sums, v_m, v_c, v_o, v_s, v_q
            )
        return *(torch.from_numpy(v) for v in (v_m, v_c, v_o, v_s, v_q)), None, None, None, None


def rasterize(
    means: Tensor,
    colours: Tensor,
    opacities: Tensor,
    scales: Tensor,
    quaternions: Tensor,
    world_to_camera: Tensor,
    pixel_intrinsics: Tensor,
    height: int,
    width: int,
) -> Tensor:
    """Splat N Gaussians into V views.

    Args:
        means, colours, opacities, scales: (N, 3), (N, 3), (N,), (N, 3), activated; float32 inside.
        quaternions: (N, 4) wxyz of length 1.
        world_to_camera: (V, 4, 4), OpenCV axes.
        pixel_intrinsics: (V, 3, 3) in pixels of the image asked for; no skew.

    Returns:
        (V, 5, height, width): red, green, blue, sum of weight times camera z, transmittance left; no background.
    """
    planes: Tensor = _Rasterize.apply(
        means, colours, opacities, scales, quaternions, world_to_camera, pixel_intrinsics, height, width
    )
    return planes
