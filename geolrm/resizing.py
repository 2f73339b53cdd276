"""Stored planes of steps as pictures and depth maps, at the size that is asked for: the inner loops, in numba.

In: one picture's or one depth map's planes, each row less the row above it (`geolrm.data.shards`). Out: colour and straight
alpha, colour over a background and alpha, or depth, of another size or the same. Convention: colour by the triangle filter of
torch's antialiased bilinear interpolation, applied to colour times alpha and to alpha, then divided again or composited, so
that what is clear all around becomes black and clear, or background; depth by nearest neighbour. `geolrm.views.Views` says the
same in plain torch. Trade: CPU and one thread, which is where samples are loaded. Rows go through one at a time, along the row
first, then down into the output, so that whatever is at full size stays in the first cache; clear margins are skipped. Loops
run over slices from 0, or by unsigned numbers: where an index could be negative, numba's care for it keeps a loop scalar.
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
def _add_row(steps: Any, y: int, rgba: Any) -> None:
    """Bring the row above, (4, W) uint8, to row y of a picture whose red and blue are stored less green."""
    red, green, blue, alpha = rgba[0], rgba[1], rgba[2], rgba[3]
    for j in range(len(green)):
        red[j] += steps[0, y, j] + steps[1, y, j]
    for j in range(len(green)):
        blue[j] += steps[2, y, j] + steps[1, y, j]
    for j in range(len(green)):
        green[j] += steps[1, y, j]
    for j in range(len(green)):
        alpha[j] += steps[3, y, j]


@njit(cache=True, error_model="numpy")
def _seen(alpha: Any) -> tuple[int, int]:
    """First column that is not clear, and the one behind the last; (W, 0) of a clear row."""
    low, high = 0, len(alpha)
    while low < high and alpha[low] == 0:
        low += 1
    if low == high:
        return len(alpha), 0
    while alpha[high - 1] == 0:
        high -= 1
    return low, high


@njit(cache=True, error_model="numpy")
def _premultiply(rgba: Any, begin: int, end: int, room: int, line: Any) -> None:
    """Pixels begin to end of a row (4, W) uint8 into line, pixel by pixel, each at 4 (column + room), clear ones around."""
    part = np.float32(1 / 255)
    line[4 * begin : 4 * (begin + room)] = np.float32(0)
    line[4 * (end + room) : 4 * (end + 2 * room)] = np.float32(0)
    red, green, blue, alpha = rgba[0, begin:end], rgba[1, begin:end], rgba[2, begin:end], rgba[3, begin:end]
    target = line[4 * (begin + room) : 4 * (end + room)]
    for j in range(len(alpha)):
        a = np.float32(alpha[j]) * part
        target[4 * j] = a * (np.float32(red[j]) * part)
        target[4 * j + 1] = a * (np.float32(green[j]) * part)
        target[4 * j + 2] = a * (np.float32(blue[j]) * part)
        target[4 * j + 3] = a


@njit(cache=True, error_model="numpy")
def _along(line: Any, x_first: Any, x_weights: Any, first: int, last: int, target: Any) -> None:
    """Columns first to last of a resized row (4, w) from a line of `_premultiply`, all others clear."""
    columns = len(x_weights)
    target[:] = np.float32(0)
    red, green, blue, alpha = (
        target[0, first:last],
        target[1, first:last],
        target[2, first:last],
        target[3, first:last],
    )
    starts, weights = x_first[first:last], x_weights[:, first:last]
    for j in range(len(starts)):
        r = g = b = a = np.float32(0)
        k = np.uintp(4 * (starts[j] + columns))
        for tap in range(columns):
            weight = weights[tap, j]
            r += weight * line[k]
            g += weight * line[k + np.uintp(1)]
            b += weight * line[k + np.uintp(2)]
            a += weight * line[k + np.uintp(3)]
            k += np.uintp(4)
        red[j], green[j], blue[j], alpha[j] = r, g, b, a


@njit(cache=True, error_model="numpy")
def _add_weighted(source: Any, weight: Any, low: int, high: int, sums: Any) -> None:
    """Add columns low to high of a row (4, w) to sums."""
    for c in range(4):
        part, total = source[c, low:high], sums[c, low:high]
        for j in range(len(total)):
            total[j] += weight * part[j]


@njit(cache=True, error_model="numpy")
def _store(sums: Any, low: int, high: int, over: bool, grey: Any, colour: Any, alpha: Any) -> None:
    """A row of colour (3, w) and alpha (w,) from premultiplied sums (4, w) in columns low to high, nothing elsewhere."""
    one = np.float32(1)
    colour[:, :low] = grey
    colour[:, high:] = grey
    alpha[:low] = np.float32(0)
    alpha[high:] = np.float32(0)
    seen, covered = alpha[low:high], sums[3, low:high]
    for j in range(len(seen)):
        seen[j] = min(covered[j], one)
    for c in range(3):
        target, part = colour[c, low:high], sums[c, low:high]
        if over:
            for j in range(len(target)):
                target[j] = min(part[j] + grey * (one - min(covered[j], one)), one)
        else:
            for j in range(len(target)):
                a = covered[j]
                target[j] = min(part[j] / a, one) if a > CLEAR else np.float32(0)


@njit(cache=True, error_model="numpy")
def resize_pixels(
    steps: Any,
    y_first: Any,
    y_weights: Any,
    x_first: Any,
    x_weights: Any,
    over: bool,
    grey: Any,
    colour: Any,
    alpha: Any,
) -> None:
    """Fill colour (3, h, w) and alpha (1, h, w), float32, from steps (4, H, W) uint8; first pixels and weights are
    `triangle`'s. Colour is straight or, if `over`, composited over that grey."""
    wide, rows, columns = steps.shape[2], len(y_weights), len(x_weights)
    height, width = alpha.shape[1:]
    rgba, line = np.zeros((4, wide), np.uint8), np.empty(4 * (wide + 2 * columns), np.float32)
    kept, sums = (
        np.empty((rows, 4, width), np.float32),
        np.empty((4, width), np.float32),
    )  # rows of the source, resized along
    number, first, last = np.full(rows, -1), np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    reached = 0
    for i in range(height):
        low, high = width, 0
        for tap in range(rows):
            y = y_first[i] + tap
            slot = y % rows
            if number[slot] != y:
                while reached <= y:
                    _add_row(steps, reached, rgba)
                    reached += 1
                number[slot], first[slot], last[slot] = y, width, 0
                begin, end = _seen(rgba[3])
                if begin < end:
                    _premultiply(rgba, begin, end, columns, line)
                    first[slot] = np.searchsorted(x_first, begin - columns + 1)
                    last[slot] = np.searchsorted(x_first, end)
                    _along(line, x_first, x_weights, first[slot], last[slot], kept[slot])
            low, high = min(low, first[slot]), max(high, last[slot])
        low = min(low, high)
        sums[:, low:high] = np.float32(0)
        for tap in range(rows):
            slot = (y_first[i] + tap) % rows
            if first[slot] < last[slot]:
                _add_weighted(kept[slot], y_weights[tap, i], low, high, sums)
        _store(sums, low, high, over, grey, colour[:, i], alpha[0, i])


@njit(cache=True, error_model="numpy")
def copy_pixels(steps: Any, over: bool, grey: Any, colour: Any, alpha: Any) -> None:
    """Fill colour (3, H, W) and alpha (1, H, W) from steps (4, H, W) uint8: straight, or composited over that grey."""
    rgba, most, one = np.zeros((4, steps.shape[2]), np.uint8), np.float32(255), np.float32(1)
    for i in range(steps.shape[1]):
        _add_row(steps, i, rgba)
        for j in range(steps.shape[2]):
            alpha[0, i, j] = np.float32(rgba[3, j]) / most
        for c in range(3):
            for j in range(steps.shape[2]):
                colour[c, i, j] = np.float32(rgba[c, j]) / most
            if over:
                for j in range(steps.shape[2]):
                    colour[c, i, j] = colour[c, i, j] * alpha[0, i, j] + grey * (one - alpha[0, i, j])


@njit(cache=True, error_model="numpy")
def pick_depth(steps: Any, rows: Any, columns: Any, scale: Any, offset: Any, depth: Any) -> None:
    """Fill depth (h, w) with offset + scale * code at these rows (h,) and columns (w,) of the codes whose steps (2, H, W) are
    given as low and high bytes, 0 where the code is 0; all float32, exact for codes and offsets of at most 2^24 scales."""
    codes, reached = np.zeros(steps.shape[2], np.uint16), 0
    for i in range(len(rows)):
        while reached <= rows[i]:
            for j in range(len(codes)):
                codes[j] += np.uint16(steps[0, reached, j]) + np.uint16(256) * np.uint16(steps[1, reached, j])
            reached += 1
        for j in range(len(columns)):
            code = codes[columns[j]]
            depth[i, j] = np.float32(code) * scale + offset if code > 0 else np.float32(0)
