"""Stored pictures and depth codes as floats, at the size that is asked for: the inner loops, in numba.

In: one picture's bytes or one depth map's codes, as decoded. Out: colour and straight alpha, or depth, of another size or the
same. Convention: colour by the triangle filter of torch's antialiased bilinear interpolation, applied to colour times alpha
and to alpha, then divided again, so that what is clear all around becomes black and clear; depth by nearest neighbour.
`geolrm.views.Views.resized` says the same in plain torch. Trade: CPU and one thread, which is where samples are loaded; clear
margins are skipped, and nothing is ever held at full size as floats, whose fresh pages cost more than the arithmetic.
Verified against plain torch.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import njit

CLEAR = np.float32(1e-4)  # of alpha: below it a colour is rounding, and becomes 0


@cache
def triangle(before: int, after: int) -> tuple[np.ndarray, np.ndarray]:
    """First source pixel (after,) int64 and weights (taps, after) float32 of each pixel of a side that is resized."""
    scale = before / after
    support = max(scale, 1.0)
    centre = scale * (np.arange(after) + 0.5)
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), before)
    taps = np.arange((last - first).max())[:, None]
    weights = np.maximum(1 - np.abs(taps + first - centre + 0.5) / support, 0) * (taps < last - first)
    start = np.minimum(first, before - len(taps))  # so that no tap, even of weight 0, lies outside
    weights = np.stack([np.roll(column, shift) for column, shift in zip(weights.T, first - start, strict=True)], axis=1)
    return start, (weights / weights.sum(0)).astype(np.float32)


@cache
def nearest(before: int, after: int) -> np.ndarray:
    """Source pixel (after,) int64 whose centre is nearest to that of each pixel of a side that is resized."""
    return np.minimum(((np.arange(after) + 0.5) * (before / after)).astype(np.int64), before - 1)


@njit(cache=True, error_model="numpy")
def resize_pixels(
    rgba: Any, y_first: Any, y_weights: Any, x_first: Any, x_weights: Any, colour: Any, alpha: Any
) -> None:
    """Fill colour (3, h, w) and alpha (1, h, w), float32 zeros when given, from rgba (H, W, 4) uint8; first pixels and
    weights are `triangle`'s. Rows of the source are premultiplied once and kept for as long as they are needed."""
    wide, rows, columns = rgba.shape[1], len(y_weights), len(x_weights)
    kept, row = np.zeros((rows, 4 * wide), np.float32), np.empty(4 * wide, np.float32)
    number, first, last = np.full(rows, -1), np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    part = np.float32(1 / 255)
    for i in range(alpha.shape[1]):
        low, high = wide, 0
        for tap in range(rows):
            y = y_first[i] + tap
            slot = y % rows
            if number[slot] != y:
                number[slot], first[slot], last[slot] = y, wide, 0
                source, target = rgba[y], kept[slot]
                for j in range(wide):
                    a = np.float32(source[j, 3]) * part
                    if a > 0:
                        first[slot] = min(first[slot], j)
                        last[slot] = j + 1
                    for c in range(3):
                        target[4 * j + c] = a * (np.float32(source[j, c]) * part)
                    target[4 * j + 3] = a
            low, high = min(low, first[slot]), max(high, last[slot])
        if low >= high:
            continue
        begin, end = max(low - columns, 0), min(high + columns, wide)  # what taps at the seen pixels' edges may touch
        row[4 * begin : 4 * end] = np.float32(0)
        for tap in range(rows):
            weight, source = y_weights[tap, i], kept[(y_first[i] + tap) % rows]
            for k in range(4 * begin, 4 * end):
                row[k] += weight * source[k]
        for j in range(np.searchsorted(x_first, low - columns + 1), np.searchsorted(x_first, high)):
            r = g = b = a = np.float32(0)
            for tap in range(columns):
                weight, k = x_weights[tap, j], 4 * (x_first[j] + tap)
                r += weight * row[k]
                g += weight * row[k + 1]
                b += weight * row[k + 2]
                a += weight * row[k + 3]
            near = np.float32(1) / a if a > CLEAR else np.float32(0)
            colour[0, i, j] = min(r * near, np.float32(1))
            colour[1, i, j] = min(g * near, np.float32(1))
            colour[2, i, j] = min(b * near, np.float32(1))
            alpha[0, i, j] = min(a, np.float32(1))


@njit(cache=True, error_model="numpy")
def copy_pixels(rgba: Any, colour: Any, alpha: Any) -> None:
    """Fill colour (3, H, W) and alpha (1, H, W) with rgba (H, W, 4) uint8, in [0, 1]."""
    for i in range(rgba.shape[0]):
        for j in range(rgba.shape[1]):
            for c in range(3):
                colour[c, i, j] = np.float32(rgba[i, j, c]) / np.float32(255)
            alpha[0, i, j] = np.float32(rgba[i, j, 3]) / np.float32(255)


@njit(cache=True, error_model="numpy")
def pick_depth(codes: Any, rows: Any, columns: Any, scale: Any, offset: Any, depth: Any) -> None:
    """Fill depth (h, w) with offset + scale * code at these rows (h,) and columns (w,) of codes (H, W), 0 where the code is 0;
    all float32, exact for codes and offsets that are at most 2^24 scales."""
    for i in range(len(rows)):
        source = codes[rows[i]]
        for j in range(len(columns)):
            code = source[columns[j]]
            depth[i, j] = np.float32(code) * scale + offset if code > 0 else np.float32(0)
