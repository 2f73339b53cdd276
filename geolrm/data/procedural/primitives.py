"""Solids in closed form: where rays enter and leave them, their normals, points on their surfaces.

In: rays or points in a solid's own frame, coordinates first (3, N). Out: intervals along the rays, gradients, membership,
area-uniform surface samples. Convention: canonical solids, which an affine map places in the world: the box [-1, 1]^3; the
unit ball; the cylinder of radius 1 and the cone of base radius 1 and apex (0, 0, 1), both over z in [-1, 1]; the torus of
ring radius 1 about z with tube radius `shape` < 1; turned and tapered solids with the outline `shape` (profiles.py). Rays
start at their point nearest the centre and have unit direction, which keeps float32 exact to some 1e-6; the torus' quartic is
solved in float64. Trade: a convex solid gives one interval, a torus two, an outline one for each convex run, so that set
operations on solids become comparisons of numbers. Verified by closed forms and residuals.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from geolrm.data.procedural.profiles import Profile
from geolrm.data.procedural.spans import (
    PARALLEL,
    Interval,
    dot,
    largest_axis,
    meet,
    nappe,
    quadratic_roots,
    slab,
)

Kind = Literal["box", "ellipsoid", "cylinder", "cone", "torus"]
AnyKind = Kind | Literal["turned", "tapered"]
Shape = float | Profile  # tube radius of a torus, outline of a turned or tapered solid, 0 of the others

NEWTON_STEPS = 14


def intervals(kind: AnyKind, shape: Shape, origin: Tensor, direction: Tensor) -> list[Interval]:
    """Where rays are inside a canonical solid: one interval, two for a torus, one for each convex run of an outline.

    Args:
        kind: which solid.
        shape: of a torus, a turned or a tapered solid, unused otherwise.
        origin: (3, N) the rays' points nearest the centre.
        direction: (3, N) unit.
    """
    if isinstance(shape, Profile):
        return shape.intervals(origin, direction)
    if kind == "torus":
        return _torus(origin, direction, shape)
    return [_CONVEX[kind](origin, direction)]


def _box(origin: Tensor, direction: Tensor) -> Interval:
    return meet(*(slab(origin[axis], direction[axis]) for axis in range(3)))


def _ellipsoid(origin: Tensor, direction: Tensor) -> Interval:
    half = torch.sqrt(1 - dot(origin, origin))  # NaN, so a miss, beyond the unit ball
    return meet((-half, half))


def _cylinder(origin: Tensor, direction: Tensor) -> Interval:
    (x, y, z), (dx, dy, dz) = origin, direction
    a = (dx * dx + dy * dy).clamp(min=PARALLEL)
    first, second, discriminant = quadratic_roots(a, x * dx + y * dy, x * x + y * y - 1)
    enter = first.masked_fill(discriminant < 0, math.inf)
    return meet((enter, second), slab(z, dz))


def _cone(origin: Tensor, direction: Tensor) -> Interval:
    """x^2 + y^2 <= h^2 with h = (1 - z) / 2; the other nappe lies above z = 1, outside the slab."""
    z, dz = origin[2], direction[2]
    return meet(nappe(origin, direction, (1 - z) / 2, -dz / 2), slab(z, dz))


_CONVEX: dict[str, Callable[[Tensor, Tensor], Interval]] = {
    "box": _box,
    "ellipsoid": _ellipsoid,
    "cylinder": _cylinder,
    "cone": _cone,
}


def _torus(origin: Tensor, direction: Tensor, tube: float) -> list[Interval]:
    """The quartic f(t) = t^4 + p t^2 + q t + r is negative inside (no cubic term: the ray starts nearest the centre).

    Its extrema, minimum, maximum, minimum, are roots of a cubic with a closed form, and their signs say which roots there
    are; nothing hangs on the discriminant of the quartic, where closed forms lose their digits. Each root then comes by
    Newton's method from a point whence it cannot overshoot: the outer ones from beyond, where f is convex, the inner ones
    from the point of inflection between the two extrema that enclose them. Where there is one minimum alone, both points
    of inflection lie to one side of it, and the root on that side may lie before the second: then it starts at the first.
    """
    (x, y, z), (dx, dy, _) = origin.double(), direction.double()
    distance2 = x * x + y * y + z * z
    k = distance2 + 1 - tube * tube
    p = 2 * k - 4 * (dx * dx + dy * dy)
    q = -8 * (x * dx + y * dy)
    r = k * k - 4 * (x * x + y * y)
    low, middle, high = _extrema(p, q)

    def f(t: Tensor) -> Tensor:
        return ((t * t + p) * t + q) * t + r

    first, second, split = f(low) < 0, f(high) < 0, f(middle) > 0
    reach = torch.sqrt(((1 + tube) ** 2 - distance2).clamp(min=0))
    inflection = torch.sqrt((-p / 6).clamp(min=0))
    facing = torch.copysign(inflection, low)  # of a lone minimum, the point of inflection next to it
    bent = (low == high) & (p < 0) & ((f(facing) > 0) | (f(-facing) >= 0))
    before = torch.where(bent & (low > 0), facing, -reach)
    beyond = torch.where(bent & (low < 0), facing, reach)
    wanted = [
        torch.nonzero(mask)[:, 0]
        for mask in (first, second & split, first & split, (first & ~split) | (second & split))
    ]
    starts = [before[wanted[0]], inflection[wanted[1]], -inflection[wanted[2]], beyond[wanted[3]]]
    rays = torch.cat(wanted)
    roots = _newton(torch.cat(starts), p[rays], q[rays], r[rays]).to(origin.dtype).split([len(w) for w in wanted])

    def scattered(which: tuple[int, ...], miss: float) -> Tensor:
        distances = torch.full_like(origin[0], miss)
        for part in which:
            distances.index_copy_(0, wanted[part], roots[part])
        return distances

    two_enter, two_leave = scattered((1,), math.inf), scattered((3,), -math.inf)
    # Unless f rises above zero between its minima, the ray leaves once, at the outermost root.
    one_leave = torch.where(first & ~split, two_leave, scattered((2,), -math.inf))
    return [(scattered((0,), math.inf), one_leave), (two_enter, two_leave.masked_fill(~(second & split), -math.inf))]


def _extrema(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sorted real roots of f'(t) / 4 = t^3 + p/2 t + q/4; three times the same one where there is only one."""
    a, b = p / 2, q / 4
    size = torch.sqrt(a.abs().clamp(min=1e-30) / 3)
    ratio = b / (2 * size**3)  # cos 3 phi, cosh 3 phi or sinh 3 phi of the substitution t = 2 size (...)
    angle = torch.arccos((-ratio).clamp(-1, 1)) / 3
    three = [2 * size * torch.cos(angle + turn) for turn in (2 * math.pi / 3, 4 * math.pi / 3, 0.0)]
    steep = -2 * size * torch.copysign(torch.cosh(torch.arccosh(ratio.abs().clamp(min=1)) / 3), b)
    flat = -2 * size * torch.sinh(torch.arcsinh(ratio) / 3)
    single = torch.where(a < 0, steep, flat)
    alone = (a >= 0) | (ratio.abs() > 1)
    low, middle, high = (torch.where(alone, single, root) for root in three)
    return low, middle, high


def _newton(t: Tensor, p: Tensor, q: Tensor, r: Tensor) -> Tensor:
    """Roots (N,) of t^4 + p t^2 + q t + r from starts (N,) that lead to them without overshooting."""
    for _ in range(NEWTON_STEPS):
        square = t * t
        slope = (4 * square + 2 * p) * t + q
        t = t - (((square + p) * t + q) * t + r) / torch.where(slope == 0, 1.0, slope)
    return t


def contains(kind: AnyKind, shape: Shape, points: Tensor) -> Tensor:
    """Which points (3, N) lie strictly inside a canonical solid."""
    if isinstance(shape, Profile):
        return shape.contains(points)
    x, y, z = points
    if kind == "box":
        return points.abs().amax(0) < 1
    if kind == "ellipsoid":
        return dot(points, points) < 1
    radial = torch.hypot(x, y)
    if kind == "torus":
        return torch.hypot(radial - 1, z) < shape
    side = torch.ones_like(z) if kind == "cylinder" else (1 - z) / 2
    return (z.abs() < 1) & (radial < side)


def gradient(kind: AnyKind, shape: Shape, points: Tensor) -> Tensor:
    """Outward normals (3, N), of any length, at points (3, N) on a canonical solid; an edge takes one of its faces."""
    if isinstance(shape, Profile):
        return shape.gradient(points)
    x, y, z = points
    if kind == "ellipsoid":
        return points
    if kind == "box":
        return torch.nn.functional.one_hot(largest_axis(points), 3).T * points.sign()
    radial = torch.hypot(x, y).clamp(min=1e-12)
    if kind == "torus":
        return torch.stack([x - x / radial, y - y / radial, z])
    zero = torch.zeros_like(z)
    if kind == "cylinder":
        cap = z.abs() > radial
        return torch.where(cap, torch.stack([zero, zero, z.sign()]), torch.stack([x, y, zero]))
    cap = -1 - z > radial - (1 - z) / 2  # the base, where it is nearer than the side
    return torch.where(cap, torch.stack([zero, zero, zero - 1]), torch.stack([x / radial, y / radial, zero + 0.5]))


def bounding_radius(kind: AnyKind, shape: Shape) -> float:
    """Radius of the ball around the centre that holds a canonical solid."""
    if isinstance(shape, Profile):
        return shape.bounding_radius
    radii = {"box": math.sqrt(3), "ellipsoid": 1.0, "cylinder": math.sqrt(2), "cone": math.sqrt(2), "torus": 1 + shape}
    return radii[kind]


def area(kind: AnyKind, shape: Shape) -> float:
    """Surface area of a canonical solid."""
    if isinstance(shape, Profile):
        return sum(shape.areas)
    areas = {
        "box": 24.0,
        "ellipsoid": 4 * math.pi,
        "cylinder": 6 * math.pi,
        "cone": math.pi * (1 + math.sqrt(5)),
        "torus": 4 * math.pi**2 * shape,
    }
    return areas[kind]


def sample_surface(kind: AnyKind, shape: Shape, uniforms: Tensor) -> Tensor:
    """Points (3, N), area-uniform on a canonical solid, from uniform numbers (3, N) in [0, 1)."""
    if isinstance(shape, Profile):
        return shape.sample_surface(uniforms)
    u, v, w = uniforms
    turn = 2 * math.pi * u
    cos, sin = torch.cos(turn), torch.sin(turn)
    if kind == "box":
        face = (6 * w).long().clamp(max=5)
        axis, end = face % 3, (face // 3) * 2.0 - 1
        planes = [torch.stack(order) for order in ((end, 2 * u - 1, 2 * v - 1), (2 * v - 1, end, 2 * u - 1))]
        planes.append(torch.stack([2 * u - 1, 2 * v - 1, end]))
        return torch.where(axis == 0, planes[0], torch.where(axis == 1, planes[1], planes[2]))
    if kind == "ellipsoid":
        z = 2 * v - 1
        ring = torch.sqrt(1 - z * z)
        return torch.stack([ring * cos, ring * sin, z])
    if kind == "torus":
        return _sample_torus(cos, sin, v, w, shape)
    root = torch.sqrt(v)  # density over a disc, or over a cone's side seen from its apex
    disc = torch.stack([root * cos, root * sin, torch.ones_like(u)])
    if kind == "cylinder":
        side = torch.stack([cos, sin, 2 * v - 1])
        base = torch.stack([disc[0], disc[1], torch.where(w < 1 / 6, 1.0, -1.0)])
        return torch.where(w < 1 / 3, base, side)
    side = torch.stack([root * cos, root * sin, 1 - 2 * root])
    base = torch.stack([disc[0], disc[1], -torch.ones_like(u)])
    return torch.where(w < 1 / (1 + math.sqrt(5)), base, side)


def _sample_torus(cos: Tensor, sin: Tensor, v: Tensor, w: Tensor, tube: float) -> Tensor:
    """The area element grows as 1 + tube cos(phi): inner angles are mirrored outwards by that excess, which is exact."""
    phi = 2 * math.pi * v
    # Of phi and pi - phi, which have densities 1 + c and 1 - c, keep phi with probability (1 + c) / 2.
    phi = torch.where(w < 0.5 * (1 + tube * torch.cos(phi)), phi, math.pi - phi)
    ring = 1 + tube * torch.cos(phi)
    return torch.stack([ring * cos, ring * sin, tube * torch.sin(phi)])


def hull_points(kind: AnyKind, shape: Shape) -> Tensor:
    """(3, N) points whose convex hull is a canonical solid's, up to 0.3 % of its size for the round ones."""
    if isinstance(shape, Profile):
        return shape.hull_points()
    if kind == "box":
        signs = torch.tensor([-1.0, 1.0])
        return torch.cartesian_prod(signs, signs, signs).T.contiguous()
    turns = torch.arange(64) * (2 * math.pi / 64)
    cos, sin = torch.cos(turns), torch.sin(turns)
    if kind == "cylinder":
        return torch.stack([torch.stack([cos, sin, torch.full_like(cos, z)]) for z in (-1.0, 1.0)], 1).flatten(1)
    if kind == "cone":
        rim = torch.stack([cos, sin, -torch.ones_like(cos)])
        return torch.cat([rim, torch.tensor([[0.0], [0.0], [1.0]])], dim=1)
    across = torch.arange(33) * (math.pi / 32) - math.pi / 2
    ring, height = (torch.cos(across), torch.sin(across)) if kind == "ellipsoid" else _outer_tube(across, shape)
    return torch.stack([torch.outer(cos, ring), torch.outer(sin, ring), height.expand(64, 33)]).flatten(1)


def _outer_tube(across: Tensor, tube: float) -> tuple[Tensor, Tensor]:
    return 1 + tube * torch.cos(across), tube * torch.sin(across)
