"""Where rays are inside simple convex sets: the pieces that solids are cut from.

In: origins and directions of rays, coordinates first (3, N), or one coordinate of them (N,). Out: the interval along each ray
that lies inside a slab, a half-space or one nappe of a cone. Convention: an interval is entry and exit, +inf and -inf where the
ray misses; a convex solid is the common part of its pieces' intervals (`meet`). Trade: parallel rays are told by a direction
that is moved away from zero, so that nothing is ever divided by it. Verified through the solids (tests/data/test_procedural.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Interval = tuple[Tensor, Tensor]  # (N,) entry and (N,) exit along the ray; +inf and -inf where the ray misses

PARALLEL = 1e-9  # below it a direction or a leading coefficient counts as this


def meet(*parts: Interval) -> Interval:
    """Common part of intervals."""
    enter, leave = parts[0]
    for other_enter, other_leave in parts[1:]:
        enter, leave = torch.maximum(enter, other_enter), torch.minimum(leave, other_leave)
    miss = ~(enter < leave)
    return enter.masked_fill(miss, math.inf), leave.masked_fill(miss, -math.inf)


def away_from_zero(x: Tensor) -> Tensor:
    return torch.where(x.abs() < PARALLEL, torch.copysign(x.new_tensor(PARALLEL), x), x)


def slab(origin: Tensor, direction: Tensor) -> Interval:
    """|o + t d| <= 1 along one axis (N,)."""
    inverse = 1 / away_from_zero(direction)
    middle, half = -origin * inverse, inverse.abs()
    return middle - half, middle + half


def half_space(value: Tensor, slope: Tensor) -> Interval:
    """Where value + t slope <= 0, both (N,)."""
    slope = away_from_zero(slope)
    t = -value / slope
    return t.masked_fill(slope > 0, -math.inf), t.masked_fill(slope < 0, math.inf)


def between(position: Tensor, direction: Tensor, low: float, high: float) -> Interval:
    """Where low <= position + t direction <= high, both (N,); a plane that two slabs share is met at the same t to the bit."""
    inverse = 1 / away_from_zero(direction)
    first, second = (low - position) * inverse, (high - position) * inverse
    return torch.minimum(first, second), torch.maximum(first, second)


def quadratic_roots(a: Tensor, half_b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Smaller and larger root of a t^2 + 2 half_b t + c, without cancellation, and the discriminant; a is not 0."""
    discriminant = half_b * half_b - a * c
    q = -(half_b + torch.copysign(torch.sqrt(discriminant.clamp(min=0)), half_b))
    first, second = q / a, c / away_from_zero(q)
    return torch.minimum(first, second), torch.maximum(first, second), discriminant


def nappe(origin: Tensor, direction: Tensor, h: Tensor, dh: Tensor) -> Interval:
    """x^2 + y^2 <= (h + t dh)^2, h and dh (N,), of the two nappes that where h + t dh > 0.

    A ray less steep than the cone meets one nappe only, be it the other one: a slab has to leave that out.
    """
    (x, y, _), (dx, dy, _) = origin, direction
    a = away_from_zero(dx * dx + dy * dy - dh * dh)
    first, second, discriminant = quadratic_roots(a, x * dx + y * dy - h * dh, x * x + y * y - h * h)
    # Steeper than the cone (a < 0), the ray is inside before the first root and after the second: once in each nappe.
    infinite = torch.full_like(first, math.inf)
    enter = torch.where(a > 0, first, torch.where(dh < 0, -infinite, second))
    leave = torch.where(a > 0, second, torch.where(dh < 0, first, infinite))
    return enter.masked_fill((a > 0) & (discriminant < 0), math.inf), leave


def largest_axis(vectors: Tensor) -> Tensor:
    """(N,) index of the coordinate of largest size in (3, N); written out, since argmax over so short an axis is slow."""
    x, y, z = vectors.abs()
    return torch.where(z > torch.maximum(x, y), 2, (y > x).long())


def dot(a: Tensor, b: Tensor) -> Tensor:
    """(N,) inner products of (3, N)."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def normalised(vectors: Tensor) -> Tensor:
    """(3, N) over its lengths."""
    return vectors / torch.sqrt(dot(vectors, vectors)).clamp(min=1e-12)
