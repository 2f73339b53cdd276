"""Pictures brought to another size, premultiplied and antialiased: the inner loops, in numba.

In: colour and straight alpha of V pictures. Out: the same at another size. Convention: the triangle filter of torch's
antialiased bilinear interpolation, applied to colour times alpha and to alpha, then divided again; what is clear all around
becomes black and clear. `geolrm.views.Views.resized` says the same in plain torch. Trade: CPU, one thread and no gradient,
where loading spends most of its time otherwise; clear rows and margins are skipped. Verified against plain torch.
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


@njit(cache=True, error_model="numpy")
def resize(
    colour: Any, alpha: Any, y_first: Any, y_weights: Any, x_first: Any, x_weights: Any, out_colour: Any, out_alpha: Any
) -> None:
    """Fill out_colour (V, 3, h, w) and out_alpha (V, 1, h, w) from colour (V, 3, H, W) and alpha (V, 1, H, W), all float32;
    the outputs hold zeros when given. First pixels and weights are `triangle`'s."""
    views, _, _, wide = colour.shape
    high_out, wide_out = out_alpha.shape[2:]
    row = np.empty((4, wide), np.float32)
    for view in range(views):
        for i in range(high_out):
            row[:] = np.float32(0)
            for tap in range(len(y_weights)):
                weight, y = y_weights[tap, i], y_first[i] + tap
                a = alpha[view, 0, y]
                for j in range(wide):
                    row[3, j] += weight * a[j]
                for c in range(3):
                    source = colour[view, c, y]
                    for j in range(wide):
                        row[c, j] += weight * (source[j] * a[j])
            low, high = 0, wide - 1
            while low < wide and row[3, low] == 0:
                low += 1
            while high > low and row[3, high] == 0:
                high -= 1
            begin, end = np.searchsorted(x_first, low - len(x_weights)), np.searchsorted(x_first, high + 1)
            for c in range(4):
                target, source = (out_alpha[view, 0, i], row[3]) if c == 3 else (out_colour[view, c, i], row[c])
                for tap in range(len(x_weights)):
                    for j in range(begin, end):
                        target[j] += x_weights[tap, j] * source[x_first[j] + tap]
            a = out_alpha[view, 0, i]
            for j in range(begin, end):
                a[j] = min(a[j], np.float32(1))
                visible = a[j] > CLEAR
                near = np.float32(1) / max(a[j], CLEAR) if visible else np.float32(0)
                for c in range(3):
                    out_colour[view, c, i, j] = min(out_colour[view, c, i, j] * near, np.float32(1))
