"""Turned and tapered solids: an outline of straight pieces, swept around an axis or along a square.

In: an outline, heights and half-widths; rays or points in its frame, coordinates first (3, N). Out: as `primitives`: intervals,
membership, gradients, area-uniform samples. Convention: at height z the solid is a disc of radius r(z), or the square
[-r, r]^2, with r linear between the outline's corners; a bevel is a short slanted piece, a bowl a curved outline of a few.
Trade: pieces are grouped into convex runs, each the common part of its cones (or half-spaces) and one slab, so that a bowl is
one interval along a ray and a bottle two; runs share their planes to the bit, so no ray finds a gap between them. Verified
by points of rays, by areas, by normals against finite differences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from geolrm.data.procedural.spans import Interval, between, half_space, meet, nappe

SIDES = 64  # of the ring that stands for a round outline's hull


@dataclass(frozen=True)
class Profile:
    """An outline from bottom to top.

    Attributes:
        heights: (K + 1) growing.
        radii: (K + 1) half-widths there, above 0.
        square: square across, else round.
    """

    heights: tuple[float, ...]
    radii: tuple[float, ...]
    square: bool

    @cached_property
    def slopes(self) -> tuple[float, ...]:
        """(K) growth of the half-width with height."""
        ends = zip(pairwise(self.radii), pairwise(self.heights), strict=True)
        return tuple((b - a) / (high - low) for (a, b), (low, high) in ends)

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """Pieces [first, last) of which each group is convex: slopes fall from bottom to top."""
        bends = [i for i in range(1, len(self.slopes)) if self.slopes[i] > self.slopes[i - 1]]
        return list(pairwise([0, *bends, len(self.slopes)]))

    @property
    def bounding_radius(self) -> float:
        across = math.sqrt(2) if self.square else 1.0
        return max(math.hypot(z, across * r) for z, r in zip(self.heights, self.radii, strict=True))

    @cached_property
    def areas(self) -> tuple[float, ...]:
        """Of the K pieces' sides, of the bottom, of the top."""
        around, cap = (8.0, 4.0) if self.square else (2 * math.pi, math.pi)  # perimeter and area of half-width 1
        sides = [
            around * (a + b) / 2 * math.hypot(high - low, b - a)
            for (a, b), (low, high) in zip(pairwise(self.radii), pairwise(self.heights), strict=True)
        ]
        return (*sides, cap * self.radii[0] ** 2, cap * self.radii[-1] ** 2)

    def intervals(self, origin: Tensor, direction: Tensor) -> list[Interval]:
        """Where rays (3, N) are inside, run by run."""
        (x, y, z), (dx, dy, dz) = origin, direction
        spans = []
        for first, last in self.runs:
            parts = [between(z, dz, self.heights[first], self.heights[last])]
            for i in range(first, last):
                h, dh = self.radii[i] + self.slopes[i] * (z - self.heights[i]), self.slopes[i] * dz
                if self.square:
                    sides = ((x, dx), (-x, -dx), (y, dy), (-y, -dy))
                    parts += [half_space(value - h, slope - dh) for value, slope in sides]
                else:
                    parts.append(nappe(origin, direction, h, dh))
            spans.append(meet(*parts))
        return spans

    def _side(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """At the heights of points (3, N): how far out they are, the half-width, its slope; beyond the ends those go on."""
        z = points[2]
        heights, radii, slopes = (z.new_tensor(values) for values in (self.heights, self.radii, self.slopes))
        piece = torch.bucketize(z, heights[1:-1])
        out = points[:2].abs().amax(0) if self.square else torch.hypot(points[0], points[1])
        return out, radii[piece] + slopes[piece] * (z - heights[piece]), slopes[piece]

    def contains(self, points: Tensor) -> Tensor:
        """Which points (3, N) lie strictly inside."""
        out, width, _ = self._side(points)
        return (points[2] > self.heights[0]) & (points[2] < self.heights[-1]) & (out < width)

    def gradient(self, points: Tensor) -> Tensor:
        """Outward normals (3, N), of any length, at points (3, N) of the surface; an edge takes one of its faces."""
        x, y, z = points
        out, width, slope = self._side(points)
        zero = torch.zeros_like(x)
        if self.square:
            along = x.abs() >= y.abs()
            side = torch.stack([torch.where(along, x.sign(), zero), torch.where(along, zero, y.sign()), -slope])
        else:
            radial = out.clamp(min=1e-12)
            side = torch.stack([x / radial, y / radial, -slope])
        from_side = (out - width) / torch.sqrt(1 + slope * slope)
        above, below = z - self.heights[-1], self.heights[0] - z
        cap = torch.stack([zero, zero, torch.where(above > below, 1.0, -1.0)])
        return torch.where(torch.maximum(above, below) > from_side, cap, side)

    def sample_surface(self, uniforms: Tensor) -> Tensor:
        """Points (3, N), area-uniform, from uniform numbers (3, N) in [0, 1)."""
        u, v, w = uniforms
        pieces = len(self.slopes)
        ends = torch.tensor(self.areas, dtype=torch.float64).cumsum(0)
        choice = torch.bucketize(w.double() * ends[-1], ends[:-1], right=True)
        lower = torch.tensor([*range(pieces), 0, pieces])[choice]
        upper = torch.tensor([*range(1, pieces + 1), 0, pieces])[choice]
        heights, radii = torch.tensor(self.heights), torch.tensor(self.radii)
        a, b = radii[lower], radii[upper]
        along = v * (a + b) / (a + torch.sqrt(a * a + v * (b * b - a * a)))  # density grows with the half-width
        r, z = a + along * (b - a), heights[lower] + along * (heights[upper] - heights[lower])
        cap = choice >= pieces
        if self.square:
            face = (4 * u).long().clamp(max=3)
            across = (2 * (4 * u - face) - 1) * r
            x = torch.stack([r, -across, -r, across]).gather(0, face[None])[0]
            y = torch.stack([across, r, -across, -r]).gather(0, face[None])[0]
            return torch.stack([torch.where(cap, (2 * u - 1) * r, x), torch.where(cap, (2 * v - 1) * r, y), z])
        reach, turn = torch.where(cap, r * torch.sqrt(v), r), 2 * math.pi * u
        return torch.stack([reach * torch.cos(turn), reach * torch.sin(turn), z])

    def hull_points(self) -> Tensor:
        """(3, N) points whose convex hull is the solid's, up to 0.3 % for a round one."""
        turns = torch.arange(4 if self.square else SIDES) * (2 * math.pi / (4 if self.square else SIDES))
        reach = math.sqrt(2) if self.square else 1.0
        turns = turns + (math.pi / 4 if self.square else 0.0)
        rings = [
            torch.stack([r * reach * torch.cos(turns), r * reach * torch.sin(turns), torch.full_like(turns, z)])
            for z, r in zip(self.heights, self.radii, strict=True)
        ]
        return torch.cat(rings, dim=1)

    def inset(self, wall: float, floor: float, rim: float) -> Profile:
        """The cavity of a vessel of this outline: its copy, `wall` narrower, from `floor` above the bottom to `rim` above the
        top. The half-width stays above a fifth of the outline's."""
        bottom = self.heights[0] + floor
        kept = [(z, r) for z, r in zip(self.heights, self.radii, strict=True) if bottom < z < self.heights[-1]]
        start = self._side(torch.tensor([[0.0], [0.0], [bottom]]))[1].item()
        corners = [(bottom, start), *kept, (self.heights[-1] + rim, self.radii[-1])]
        heights, radii = zip(*((z, max(r - wall, 0.2 * r)) for z, r in corners), strict=True)
        return Profile(heights, radii, self.square)
