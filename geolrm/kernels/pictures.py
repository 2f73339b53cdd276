"""What the pictures show at 3D points, all views in one pass: Triton twins of `carving_cues` and `picture_colours`.

In: points, pictures, cameras. Out: carving cues, or colours averaged with given weights of the views. Convention: that of the
definitions: a view sees a point in front of it and inside its frame; colours are bilinear with the border repeated. Trade:
no gradient (carving cues have none; where view weights need theirs, the definition of `picture_colours` runs). A program
takes some points through all views, so that nothing is stored per view. Verified against the definitions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from geolrm.cameras import NEAR, Cameras

POINTS = 256  # of a program


@triton.jit
def _dot(row, x, y, z):
    """Three consecutive numbers at `row` times (x, y, z)."""
    return tl.load(row) * x + tl.load(row + 1) * y + tl.load(row + 2) * z


@triton.jit
def _look_up(images, cameras, view, x, y, z, rows, columns, NEAR: tl.constexpr):
    """Red, green and blue that a view shows at points, and whether it sees them. Cameras: 24 numbers each, see `_flat`."""
    camera = cameras + 24 * view
    dx, dy, dz = x - tl.load(camera), y - tl.load(camera + 1), z - tl.load(camera + 2)
    right, down, depth = _dot(camera + 3, dx, dy, dz), _dot(camera + 6, dx, dy, dz), _dot(camera + 9, dx, dy, dz)
    divisor = tl.maximum(depth, NEAR)
    u, v = _dot(camera + 12, right, down, depth) / divisor, _dot(camera + 15, right, down, depth) / divisor
    seen = (depth > NEAR) & (u >= 0) & (v >= 0) & (u <= 1) & (v <= 1)
    column = tl.minimum(tl.maximum(u * columns - 0.5, 0.0), columns - 1.0)
    row = tl.minimum(tl.maximum(v * rows - 0.5, 0.0), rows - 1.0)
    left, top = tl.floor(column), tl.floor(row)
    across, along = column - left, row - top
    upper = top.to(tl.int32) * columns
    lower = tl.minimum(top.to(tl.int32) + 1, rows - 1) * columns
    first = left.to(tl.int32)
    second = tl.minimum(first + 1, columns - 1)
    plane = images + view * (3 * rows * columns)
    red = _bilinear(plane, upper, lower, first, second, across, along, seen)
    green = _bilinear(plane + rows * columns, upper, lower, first, second, across, along, seen)
    blue = _bilinear(plane + 2 * rows * columns, upper, lower, first, second, across, along, seen)
    return red, green, blue, seen


@triton.jit
def _bilinear(plane, upper, lower, first, second, across, along, seen):
    a, b = tl.load(plane + upper + first, seen, 0.0), tl.load(plane + upper + second, seen, 0.0)
    c, d = tl.load(plane + lower + first, seen, 0.0), tl.load(plane + lower + second, seen, 0.0)
    return (1 - along) * ((1 - across) * a + across * b) + along * ((1 - across) * c + across * d)


@triton.jit
def _carving_kernel(
    points, images, cameras, cues, count, views, rows, columns, POINTS: tl.constexpr, NEAR: tl.constexpr
):
    index = tl.program_id(0) * POINTS + tl.arange(0, POINTS)
    real = index < count
    x, y, z = (
        tl.load(points + 3 * index, real),
        tl.load(points + 3 * index + 1, real),
        tl.load(points + 3 * index + 2, real),
    )
    red = tl.zeros((POINTS,), tl.float32)
    green, blue, red_2, green_2, blue_2, total, whitest = red, red, red, red, red, red, red
    for step in range(views):
        view = step + tl.program_id(1).to(tl.int64)  # 64 bits: all pictures together may hold more than 2^31 numbers
        r, g, b, seen = _look_up(images, cameras, view, x, y, z, rows, columns, NEAR)
        red, green, blue = red + r, green + g, blue + b
        red_2, green_2, blue_2 = red_2 + r * r, green_2 + g * g, blue_2 + b * b
        total += seen.to(tl.float32)
        whitest = tl.maximum(whitest, tl.minimum(tl.minimum(r, g), b))
    seen_by = tl.maximum(total, 1.0)
    red, green, blue = red / seen_by, green / seen_by, blue / seen_by
    out = cues + 8 * index
    tl.store(out, tl.where(total > 0, 2 * red - 1, 0.0), real)
    tl.store(out + 1, tl.where(total > 0, 2 * green - 1, 0.0), real)
    tl.store(out + 2, tl.where(total > 0, 2 * blue - 1, 0.0), real)
    tl.store(out + 3, 4 * tl.sqrt(tl.maximum(red_2 / seen_by - red * red, 0.0)), real)
    tl.store(out + 4, 4 * tl.sqrt(tl.maximum(green_2 / seen_by - green * green, 0.0)), real)
    tl.store(out + 5, 4 * tl.sqrt(tl.maximum(blue_2 / seen_by - blue * blue, 0.0)), real)
    tl.store(out + 6, 4 * whitest - 3, real)
    tl.store(out + 7, total / views, real)


@triton.jit
def _colours_kernel(
    points, images, cameras, shares, colours, count, group, views, rows, columns,
    POINTS: tl.constexpr, NEAR: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * POINTS + tl.arange(0, POINTS)
    real = index < count
    x, y, z = (
        tl.load(points + 3 * index, real),
        tl.load(points + 3 * index + 1, real),
        tl.load(points + 3 * index + 2, real),
    )
    weight = tl.full((POINTS,), 1e-6, tl.float32)
    red, green, blue = 0.5 * weight, 0.5 * weight, 0.5 * weight
    for step in range(views):
        view = step + tl.program_id(1).to(tl.int64)  # 64 bits: all pictures together may hold more than 2^31 numbers
        r, g, b, seen = _look_up(images, cameras, view, x, y, z, rows, columns, NEAR)
        share = tl.load(shares + view * (count // group) + index // group, real & seen, 0.0)
        red, green, blue, weight = red + share * r, green + share * g, blue + share * b, weight + share
    tl.store(colours + 3 * index, red / weight, real)
    tl.store(colours + 3 * index + 1, green / weight, real)
    tl.store(colours + 3 * index + 2, blue / weight, real)


def _flat(cameras: Cameras) -> Tensor:
    """(V, 24): position, the three axes, the three rows of the intrinsics, padding."""
    axes = cameras.rotations.transpose(-1, -2)
    parts = (cameras.positions, axes.flatten(-2), cameras.intrinsics.flatten(-2), cameras.positions)
    return torch.cat(parts, dim=-1).contiguous()


def carving_cues(points: Tensor, images: Tensor, cameras: Cameras) -> Tensor:
    """Cues (M, 8) of points (M, 3), as `geolrm.model.carving.carving_cues`."""
    cues = points.new_empty(len(points), 8)
    _carving_kernel[(triton.cdiv(len(points), POINTS), 1)](
        points.contiguous(), images.contiguous(), _flat(cameras), cues, len(points), len(images), *images.shape[-2:],
        POINTS=POINTS, NEAR=NEAR,
    )  # fmt: skip
    return cues


def picture_colours(points: Tensor, images: Tensor, cameras: Cameras, shares: Tensor) -> Tensor:
    """Colours (M, 3) at points (M, 3) with shares (V, M / group), as `geolrm.model.reconstruction.picture_colours`."""
    colours = points.new_empty(len(points), 3)
    _colours_kernel[(triton.cdiv(len(points), POINTS), 1)](
        points.contiguous(), images.contiguous(), _flat(cameras), shares.contiguous(), colours,
        len(points), len(points) // shares.shape[1], len(images), *images.shape[-2:], POINTS=POINTS, NEAR=NEAR,
    )  # fmt: skip
    return colours
