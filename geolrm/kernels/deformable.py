"""Deformable cross-attention as one fused Triton kernel, forward and backward (twin of `geolrm.model.deformable`).

In: feature maps of all views, the layer's value projection, sampling offsets and weights of every token, projections and
visibility. Out: the views' average of equation 3 before the output projection, and the share of each view. A program takes a
few tokens and all their heads through one view after another: bilinear samples, their weighted sum, that sum's logit, and
an online softmax over the views, so that nothing is ever expanded per view. Convention: that of the definition, to the
half pixel; values may be bfloat16 or float32, positions, logits, softmax and sums are float32. Trade: value maps are projected
for a few views at a time and thrown away (again in the backward pass), so that memory grows with the views by their
feature maps alone; gradients of the maps are added by atomics, so that they repeat to rounding. The backward pass goes
through the samples twice: once for how well each view's sum agrees with the incoming gradient, which gives the gradient
of the views' softmax, and once for everything else. Verified against the definition in values and gradients, on a GPU and by
Triton's interpreter on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

VALUE_BYTES = 192 * 2**20  # of projected maps at a time: five views of 512 px in bfloat16 at width 768
ROWS, WARPS = 32, 2  # of a program of the forward pass: tokens times heads
TOKENS, WARPS_BACKWARD = 16, 2  # of a program of the backward pass, one head
LARGEST_MAP = 2**31  # elements of one view's value map: places within it are 32-bit integers
UNSEEN = -1e30  # running maximum before the first view


@triton.jit
def _axis(centre, offset, size):
    """A sample between two cells along one axis: both cells, how far beyond the first it lies, and whether each exists.

    Cells outside the frame come back as the nearest one inside, to be counted zero times.
    """
    place = tl.minimum(tl.maximum(centre * size + offset - 0.5, -2.0), size * 1.0)  # far outside is all the same
    cell = tl.floor(place)
    first = cell.to(tl.int32)
    first_real, second_real = (first >= 0) & (first < size), (first >= -1) & (first < size - 1)
    second = tl.minimum(tl.maximum(first + 1, 0), size - 1)
    first = tl.minimum(tl.maximum(first, 0), size - 1)
    return first, second, place - cell, first_real, second_real


@triton.jit
def _thirds(pointer, THIRD: tl.constexpr, PADDED: tl.constexpr):
    """Three runs of THIRD numbers from each of the pointers (rows,): three tensors (rows, PADDED), float32."""
    channels = tl.arange(0, PADDED)
    place = pointer[:, None] + channels[None, :]
    if PADDED == THIRD:
        a, b, c = tl.load(place), tl.load(place + THIRD), tl.load(place + 2 * THIRD)
    else:
        real = (channels < THIRD)[None, :]
        a, b = tl.load(place, real, 0.0), tl.load(place + THIRD, real, 0.0)
        c = tl.load(place + 2 * THIRD, real, 0.0)
    return a.to(tl.float32), b.to(tl.float32), c.to(tl.float32)


@triton.jit
def _add_cells(a, b, c, weight, pointer, THIRD: tl.constexpr, PADDED: tl.constexpr):
    """Add the weighted values at `pointer` to a, b, c."""
    x, y, z = _thirds(pointer, THIRD, PADDED)
    return a + weight[:, None] * x, b + weight[:, None] * y, c + weight[:, None] * z


@triton.jit
def _level_sum(
    a, b, c, values, columns, rows, offsets, weights, sample, u, v, seen,
    POINTS: tl.constexpr, WIDTH: tl.constexpr, THIRD: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Add the weighted bilinear samples of one level of one view; `values` (rows,) points at each row's channels."""
    for point in range(POINTS):
        weight = tl.load(weights + sample + point, mask=seen, other=0.0).to(tl.float32)
        dx = tl.load(offsets + 2 * (sample + point), mask=seen, other=0.0).to(tl.float32)
        dy = tl.load(offsets + 2 * (sample + point) + 1, mask=seen, other=0.0).to(tl.float32)
        left, right, beyond_x, left_real, right_real = _axis(u, dx, columns)
        above, below, beyond_y, above_real, below_real = _axis(v, dy, rows)
        at_left, at_right = tl.where(left_real, 1 - beyond_x, 0.0), tl.where(right_real, beyond_x, 0.0)
        at_above = tl.where(above_real, weight * (1 - beyond_y), 0.0)
        at_below = tl.where(below_real, weight * beyond_y, 0.0)
        upper, lower = above * (columns * WIDTH), below * (columns * WIDTH)
        left, right = left * WIDTH, right * WIDTH
        a, b, c = _add_cells(a, b, c, at_above * at_left, values + (upper + left), THIRD, PADDED)
        a, b, c = _add_cells(a, b, c, at_above * at_right, values + (upper + right), THIRD, PADDED)
        a, b, c = _add_cells(a, b, c, at_below * at_left, values + (lower + left), THIRD, PADDED)
        a, b, c = _add_cells(a, b, c, at_below * at_right, values + (lower + right), THIRD, PADDED)
    return a, b, c


@triton.jit
def _over_heads(values, TOKENS: tl.constexpr, HEADS_PADDED: tl.constexpr):
    """Sum (tokens * heads,) over the heads of each token, given back to all of its rows."""
    total = tl.sum(tl.reshape(values, (TOKENS, HEADS_PADDED)), axis=1)
    return tl.reshape(tl.broadcast_to(total[:, None], (TOKENS, HEADS_PADDED)), (TOKENS * HEADS_PADDED,))


@triton.jit
def _store_thirds(pointer, a, b, c, real, THIRD: tl.constexpr, PADDED: tl.constexpr):
    """Write a, b, c (rows, PADDED) as three runs of THIRD numbers to the pointers (rows,) that are real."""
    channels = tl.arange(0, PADDED)
    place = pointer[:, None] + channels[None, :]
    mask = real[:, None] & (channels < THIRD)[None, :]
    kind = pointer.dtype.element_ty
    tl.store(place, a.to(kind), mask)
    tl.store(place + THIRD, b.to(kind), mask)
    tl.store(place + 2 * THIRD, c.to(kind), mask)


@triton.jit
def _views_kernel(
    low, high, low_columns, low_rows, high_columns, high_rows,
    offsets, weights, uv, visible, direction,
    sums, maxima, masses, dots, output,
    tokens, views, first, count,
    HEADS: tl.constexpr, HEADS_PADDED: tl.constexpr, THIRD: tl.constexpr, PADDED: tl.constexpr,
    POINTS: tl.constexpr, TOKENS: tl.constexpr, UNSEEN: tl.constexpr,
    AVERAGE: tl.constexpr, BEGIN: tl.constexpr, END: tl.constexpr,
):  # fmt: skip
    """Take some tokens with all heads through views first .. first + count; grid (blocks of tokens, objects).

    Writes the dot product of every view's sum with `direction` to `dots` (B, V, N). With AVERAGE (the forward pass),
    `direction` is the layer's view logit (width,), and the online softmax goes on from `sums`, `maxima`, `masses` unless this
    is the BEGIN, and goes back there unless it is the END, which writes `output`. Without it (the backward pass),
    `direction` is the gradient of the output (B, N, width). A row is one head of one token; its channels are held as three
    thirds, whose width is a power of two at every usual size (heads are multiples of six wide, for 3D RoPE).
    """
    CHANNELS: tl.constexpr = 3 * THIRD
    WIDTH: tl.constexpr = HEADS * CHANNELS
    obj = tl.program_id(1).to(tl.int64)
    row = tl.arange(0, TOKENS * HEADS_PADDED)
    token = tl.program_id(0) * TOKENS + row // HEADS_PADDED
    head = row % HEADS_PADDED
    real = (token < tokens) & (head < HEADS)
    token, head = tl.minimum(token, tokens - 1), tl.minimum(head, HEADS - 1)  # what is not real reads what is
    at = (obj * tokens + token) * HEADS + head  # of each row among (B, N, heads)
    sample = at * (2 * POINTS)
    asked = direction + head * CHANNELS if AVERAGE else direction + at * CHANNELS
    a = tl.zeros((TOKENS * HEADS_PADDED, PADDED), tl.float32)
    b, c = a, a
    maximum = tl.full((TOKENS * HEADS_PADDED,), UNSEEN, tl.float32)
    mass = tl.zeros((TOKENS * HEADS_PADDED,), tl.float32)
    if AVERAGE and not BEGIN:
        a, b, c = _thirds(sums + at * CHANNELS, THIRD, PADDED)
        maximum = tl.load(maxima + obj * tokens + token)
        mass = tl.load(masses + obj * tokens + token)
    low_size, high_size = low_rows * low_columns * WIDTH, high_rows * high_columns * WIDTH
    for view in range(count):
        projected = (obj * views + first + view) * tokens + token  # among (B, V, N)
        seen = real & (tl.load(visible + projected) != 0)
        if tl.max(seen.to(tl.int32), axis=0) > 0:
            u, v = tl.load(uv + 2 * projected), tl.load(uv + 2 * projected + 1)
            x = tl.zeros((TOKENS * HEADS_PADDED, PADDED), tl.float32)
            x, y, z = _level_sum(
                x, x, x, low + (obj * count + view) * low_size + head * CHANNELS, low_columns, low_rows,
                offsets, weights, sample, u, v, seen, POINTS, WIDTH, THIRD, PADDED,
            )  # fmt: skip
            x, y, z = _level_sum(
                x, y, z, high + (obj * count + view) * high_size + head * CHANNELS, high_columns, high_rows,
                offsets, weights, sample + POINTS, u, v, seen, POINTS, WIDTH, THIRD, PADDED,
            )  # fmt: skip
            i, j, k = _thirds(asked, THIRD, PADDED)
            dot = tl.where(real, tl.sum(x * i + y * j + z * k, axis=1), 0.0)
            dot = _over_heads(dot, TOKENS, HEADS_PADDED)
            tl.store(dots + projected, dot, mask=seen & (row % HEADS_PADDED == 0))
            if AVERAGE:
                larger = tl.where(seen, tl.maximum(maximum, dot), maximum)
                shrink = tl.exp(maximum - larger)
                share = tl.where(seen, tl.exp(tl.minimum(dot - larger, 0.0)), 0.0)
                a = a * shrink[:, None] + share[:, None] * x
                b = b * shrink[:, None] + share[:, None] * y
                c = c * shrink[:, None] + share[:, None] * z
                mass = mass * shrink + share
                maximum = larger
    if AVERAGE and END:
        scale = 1 / tl.where(mass > 0, mass, 1.0)[:, None]
        _store_thirds(output + at * CHANNELS, a * scale, b * scale, c * scale, real, THIRD, PADDED)
    if AVERAGE and not END:
        _store_thirds(sums + at * CHANNELS, a, b, c, real, THIRD, PADDED)
        tl.store(maxima + obj * tokens + token, maximum, mask=real & (row % HEADS_PADDED == 0))
        tl.store(masses + obj * tokens + token, mass, mask=real & (row % HEADS_PADDED == 0))


@triton.jit
def _cell_gradients(
    a, b, c, values, grads, place, weight, exists, gradient_a, gradient_b, gradient_c,
    THIRD: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """One corner of the samples: a, b, c and the weighted values, and the dot product of values and gradient, or 0 outside.

    Adds weight * gradient to the gradient of the map.
    """
    x, y, z = _thirds(values + place, THIRD, PADDED)
    dot = tl.where(exists, tl.sum(gradient_a * x + gradient_b * y + gradient_c * z, axis=1), 0.0)
    channels = tl.arange(0, PADDED)
    target = (grads + place)[:, None] + channels[None, :]
    mask = exists[:, None] & (channels < THIRD)[None, :]
    tl.atomic_add(target, weight[:, None] * gradient_a, mask=mask, sem="relaxed")
    tl.atomic_add(target + THIRD, weight[:, None] * gradient_b, mask=mask, sem="relaxed")
    tl.atomic_add(target + 2 * THIRD, weight[:, None] * gradient_c, mask=mask, sem="relaxed")
    return a + weight[:, None] * x, b + weight[:, None] * y, c + weight[:, None] * z, dot


@triton.jit
def _level_gradients(
    a, b, c, values, grads, columns, rows, offsets, weights, grad_offsets, grad_weights, sample, u, v, seen,
    gradient_a, gradient_b, gradient_c,
    POINTS: tl.constexpr, WIDTH: tl.constexpr, THIRD: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """As `_level_sum`, and with the gradient of that sum, those of maps, offsets and weights."""
    for point in range(POINTS):
        weight = tl.load(weights + sample + point, mask=seen, other=0.0).to(tl.float32)
        dx = tl.load(offsets + 2 * (sample + point), mask=seen, other=0.0).to(tl.float32)
        dy = tl.load(offsets + 2 * (sample + point) + 1, mask=seen, other=0.0).to(tl.float32)
        left, right, x, left_real, right_real = _axis(u, dx, columns)
        above, below, y, above_real, below_real = _axis(v, dy, rows)
        above_real, below_real = above_real & seen, below_real & seen
        at_left, at_right = tl.where(left_real, 1 - x, 0.0), tl.where(right_real, x, 0.0)
        at_above, at_below = tl.where(above_real, weight * (1 - y), 0.0), tl.where(below_real, weight * y, 0.0)
        upper, lower = above * (columns * WIDTH), below * (columns * WIDTH)
        left, right = left * WIDTH, right * WIDTH
        a, b, c, nw = _cell_gradients(
            a, b, c, values, grads, upper + left, at_above * at_left, above_real & left_real,
            gradient_a, gradient_b, gradient_c, THIRD, PADDED,
        )  # fmt: skip
        a, b, c, ne = _cell_gradients(
            a, b, c, values, grads, upper + right, at_above * at_right, above_real & right_real,
            gradient_a, gradient_b, gradient_c, THIRD, PADDED,
        )  # fmt: skip
        a, b, c, sw = _cell_gradients(
            a, b, c, values, grads, lower + left, at_below * at_left, below_real & left_real,
            gradient_a, gradient_b, gradient_c, THIRD, PADDED,
        )  # fmt: skip
        a, b, c, se = _cell_gradients(
            a, b, c, values, grads, lower + right, at_below * at_right, below_real & right_real,
            gradient_a, gradient_b, gradient_c, THIRD, PADDED,
        )  # fmt: skip
        north, south = (1 - x) * nw + x * ne, (1 - x) * sw + x * se
        across = weight * ((1 - y) * (ne - nw) + y * (se - sw))
        tl.atomic_add(grad_weights + sample + point, (1 - y) * north + y * south, mask=seen, sem="relaxed")
        tl.atomic_add(grad_offsets + 2 * (sample + point), across, mask=seen, sem="relaxed")
        tl.atomic_add(grad_offsets + 2 * (sample + point) + 1, weight * (south - north), mask=seen, sem="relaxed")
    return a, b, c


@triton.jit
def _gradients_kernel(
    low, high, grad_low, grad_high, low_columns, low_rows, high_columns, high_rows,
    offsets, weights, grad_offsets, grad_weights, uv, visible, view_logit, grad_view_logit,
    grad_output, shares, grad_logits,
    tokens, views, first, count,
    HEADS: tl.constexpr, THIRD: tl.constexpr, PADDED: tl.constexpr, POINTS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Gradients through the sums of views first .. first + count, some tokens and one head a program.

    Grid (blocks of tokens, heads, objects). A view's sum has the gradient share * grad_output + grad_logit * view_logit.
    """
    CHANNELS: tl.constexpr = 3 * THIRD
    WIDTH: tl.constexpr = HEADS * CHANNELS
    head = tl.program_id(1)
    obj = tl.program_id(2).to(tl.int64)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    real = token < tokens
    token = tl.minimum(token, tokens - 1)
    at = (obj * tokens + token) * HEADS + head
    sample = at * (2 * POINTS)
    base = token * 0 + head * CHANNELS
    incoming_a, incoming_b, incoming_c = _thirds(grad_output + at * CHANNELS, THIRD, PADDED)
    logit_a, logit_b, logit_c = _thirds(view_logit + base, THIRD, PADDED)
    along_a = tl.zeros((TOKENS, PADDED), tl.float32)
    along_b, along_c = along_a, along_a
    low_size, high_size = low_rows * low_columns * WIDTH, high_rows * high_columns * WIDTH
    for view in range(count):
        projected = (obj * views + first + view) * tokens + token
        seen = real & (tl.load(visible + projected) != 0)
        if tl.max(seen.to(tl.int32), axis=0) > 0:
            u, v = tl.load(uv + 2 * projected), tl.load(uv + 2 * projected + 1)
            share = tl.load(shares + projected, mask=seen, other=0.0)[:, None]
            slope = tl.load(grad_logits + projected, mask=seen, other=0.0)[:, None]
            gradient_a, gradient_b = share * incoming_a + slope * logit_a, share * incoming_b + slope * logit_b
            gradient_c = share * incoming_c + slope * logit_c
            a = tl.zeros((TOKENS, PADDED), tl.float32)
            low_place, high_place = (obj * count + view) * low_size, (obj * count + view) * high_size
            a, b, c = _level_gradients(
                a, a, a, low + low_place + base, grad_low + low_place + base, low_columns, low_rows, offsets, weights,
                grad_offsets, grad_weights, sample, u, v, seen, gradient_a, gradient_b, gradient_c,
                POINTS, WIDTH, THIRD, PADDED,
            )  # fmt: skip
            a, b, c = _level_gradients(
                a, b, c, high + high_place + base, grad_high + high_place + base, high_columns, high_rows, offsets,
                weights, grad_offsets, grad_weights, sample + POINTS, u, v, seen, gradient_a, gradient_b, gradient_c,
                POINTS, WIDTH, THIRD, PADDED,
            )  # fmt: skip
            along_a, along_b, along_c = along_a + slope * a, along_b + slope * b, along_c + slope * c
    channels = tl.arange(0, PADDED)
    target = grad_view_logit + head * CHANNELS + channels
    tl.atomic_add(target, tl.sum(along_a, axis=0), mask=channels < THIRD)
    tl.atomic_add(target + THIRD, tl.sum(along_b, axis=0), mask=channels < THIRD)
    tl.atomic_add(target + 2 * THIRD, tl.sum(along_c, axis=0), mask=channels < THIRD)


def _chunks(maps: tuple[Tensor, Tensor], width: int) -> Iterator[tuple[int, int]]:
    """First view and number of views of each chunk whose projected maps take at most VALUE_BYTES (one view at least)."""
    batch, views = maps[0].shape[:2]
    one = sum(m.shape[-2] * m.shape[-1] for m in maps) * width * batch * maps[0].element_size()
    size = max(1, VALUE_BYTES // one)
    size = -(-views // -(-views // size))  # even chunks
    return ((first, min(size, views - first)) for first in range(0, views, size))


def _pixels(maps: Tensor, first: int, count: int) -> Tensor:
    """Features (B, V, C, h, w) of some views, channels last: (B * count * h * w, C)."""
    return maps[:, first : first + count].movedim(2, -1).reshape(-1, maps.shape[2])


class _Attention(torch.autograd.Function):
    """`attend`, which says what goes in."""

    @staticmethod
    def forward(
        ctx: Any,
        low: Tensor,
        high: Tensor,
        projection: Tensor,
        bias: Tensor,
        view_logit: Tensor,
        offsets: Tensor,
        weights: Tensor,
        uv: Tensor,
        visible: Tensor,
    ) -> tuple[Tensor, Tensor]:
        batch, tokens, heads = weights.shape[:3]
        views, width = uv.shape[1], len(projection)
        output = low.new_empty(batch, tokens, width)
        logits = uv.new_zeros(batch, views, tokens)
        sums = maxima = masses = logits  # not touched where one chunk holds all views
        chunks = list(_chunks((low, high), width))
        if len(chunks) > 1:
            sums, maxima, masses = uv.new_empty(batch, tokens, width), *uv.new_empty(2, batch, tokens)
        for first, count in chunks:
            values = [F.linear(_pixels(maps, first, count), projection, bias) for maps in (low, high)]
            state = (view_logit, sums, maxima, masses, logits, output)
            flags = {"AVERAGE": True, "BEGIN": first == 0, "END": first + count == views}
            _go_through_views(values, (low, high), offsets, weights, uv, visible, state, first, count, flags)
        shares = logits.masked_fill(~visible, UNSEEN).softmax(dim=1) * visible
        ctx.save_for_backward(low, high, projection, bias, view_logit, offsets, weights, uv, visible, shares)
        return output, shares

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, grad_shares: Tensor) -> tuple[Tensor | None, ...]:
        low, high, projection, bias, view_logit, offsets, weights, uv, visible, shares = ctx.saved_tensors
        maps = (low, high)
        batch, tokens, heads = weights.shape[:3]
        views, width = uv.shape[1], len(projection)
        grad_output = grad_output.contiguous()
        chunks = list(_chunks(maps, width))

        def projected(first: int, count: int) -> list[Tensor]:
            return [F.linear(_pixels(m, first, count), projection, bias) for m in maps]

        agreement = uv.new_zeros(batch, views, tokens)
        for first, count in chunks:
            values = projected(first, count)
            state = (grad_output, agreement, agreement, agreement, agreement, agreement)
            flags = {"AVERAGE": False, "BEGIN": True, "END": True}
            _go_through_views(values, maps, offsets, weights, uv, visible, state, first, count, flags)
        agreement = agreement + grad_shares
        grad_logits = shares * (agreement - (shares * agreement).sum(dim=1, keepdim=True))

        grad_maps = [torch.zeros_like(m, memory_format=torch.preserve_format) for m in maps]
        grad_projection, grad_bias = uv.new_zeros(projection.shape), uv.new_zeros(bias.shape)
        grad_offsets, grad_weights = uv.new_zeros(offsets.shape), uv.new_zeros(weights.shape)
        grad_view_logit = uv.new_zeros(view_logit.shape)
        for first, count in chunks:
            values = values if len(chunks) == 1 else projected(first, count)
            grad_values = [torch.zeros_like(v, dtype=torch.float32) for v in values]
            third = width // heads // 3
            _gradients_kernel[(triton.cdiv(tokens, TOKENS), heads, batch)](
                *values, *grad_values, *_sizes(maps), offsets, weights, grad_offsets, grad_weights, uv,
                visible.view(torch.int8), view_logit, grad_view_logit, grad_output, shares, grad_logits,
                tokens, views, first, count,
                HEADS=heads, THIRD=third, PADDED=triton.next_power_of_2(third), POINTS=weights.shape[-1],
                TOKENS=TOKENS, num_warps=WARPS_BACKWARD,
            )  # fmt: skip
            for features, gradient, grad_features in zip(maps, grad_values, grad_maps, strict=True):
                grad_bias += gradient.sum(dim=0)
                gradient = gradient.to(features.dtype)
                grad_projection += gradient.T @ _pixels(features, first, count)
                rows = (gradient @ projection).reshape(batch, count, *features.shape[-2:], -1)
                grad_features[:, first : first + count] = rows.movedim(-1, 2)
        grads = (*grad_maps, grad_projection, grad_bias, grad_view_logit, grad_offsets, grad_weights)
        inputs = (low, high, projection, bias, view_logit, offsets, weights)
        return *(g.to(i.dtype) for g, i in zip(grads, inputs, strict=True)), None, None


def _sizes(maps: tuple[Tensor, Tensor]) -> tuple[int, int, int, int]:
    return maps[0].shape[-1], maps[0].shape[-2], maps[1].shape[-1], maps[1].shape[-2]


def _go_through_views(
    values: list[Tensor],
    maps: tuple[Tensor, Tensor],
    offsets: Tensor,
    weights: Tensor,
    uv: Tensor,
    visible: Tensor,
    state: tuple[Tensor, ...],
    first: int,
    count: int,
    flags: dict[str, bool],
) -> None:
    batch, tokens, heads, _, points = weights.shape
    heads_padded, third = triton.next_power_of_2(heads), values[0].shape[-1] // heads // 3
    block = max(1, ROWS // heads_padded)
    _views_kernel[(triton.cdiv(tokens, block), batch)](
        *values, *_sizes(maps), offsets, weights, uv, visible.view(torch.int8), *state, tokens, uv.shape[1], first, count,
        HEADS=heads, HEADS_PADDED=heads_padded, THIRD=third, PADDED=triton.next_power_of_2(third),
        POINTS=points, TOKENS=block, UNSEEN=UNSEEN, **flags, num_warps=WARPS,
    )  # fmt: skip


def attend(
    features: tuple[Tensor, Tensor],
    projection: Tensor,
    bias: Tensor,
    view_logit: Tensor,
    offsets: Tensor,
    weights: Tensor,
    uv: Tensor,
    visible: Tensor,
) -> tuple[Tensor, Tensor]:
    """Equation 3 before its output projection, differentiable in everything but `uv`.

    Args:
        features: low and high level, (B, V, channels, h, w), float32 or bfloat16; fastest with the channels last in memory.
        projection, bias: of the values, (width, channels) and (width,).
        view_logit: (width,).
        offsets: (B, N, heads, levels, points, 2) in pixels of each level.
        weights: (B, N, heads, levels, points), adding up to 1 over levels and points.
        uv: (B, V, N, 2) projections in [0, 1], float32.
        visible: (B, V, N) bool.

    Returns:
        (B, N, width) of the features' type (under autocast its type), and the share of each view (B, V, N) float32.
    """
    width, heads = len(projection), weights.shape[2]
    if width % (3 * heads):
        raise ValueError(f"the kernel takes heads of a multiple of 3 channels, got {width} / {heads}")
    largest = max(m.shape[-2] * m.shape[-1] for m in features) * width
    if largest >= LARGEST_MAP:
        raise ValueError(f"a value map of {largest} numbers: the kernel addresses fewer than 2^31")
    kind = uv.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else features[0].dtype
    cast = (t.to(dtype) for t in (*features, projection, bias))
    inputs = (*cast, view_logit, offsets.contiguous(), weights.contiguous(), uv.contiguous(), visible.contiguous())
    with torch.autocast(kind, enabled=False):
        return _Attention.apply(*inputs)
