"""A procedural object: solids united and carved, traced along rays and sampled on their surface.

In: solids; rays to trace. Out: exact hits with normals and colours; area-uniform points of the true surface. Convention: the
object is the union of its solids less the union of those that carve, which spare the solids that are `kept`. Along a ray each
solid is an interval or a few, so the first surface is the nearest of the solids' entries and the carvers' exits that lies in
the object: no marching, no mesh. Shading is Lambertian under the one fixed light, so that colour does not hang on the view; a
light of the scene's own may add highlights, which do. No shadows. Trade: pieces may float apart after carving, as in Zeroverse
(arXiv 2406.09371), whose recipe this follows in spirit. Verified against closed forms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from geolrm.data.lighting import FIXED, Light, highlights, irradiance, linear_to_srgb
from geolrm.data.procedural import primitives
from geolrm.data.procedural.primitives import AnyKind, Shape
from geolrm.data.procedural.profiles import Profile
from geolrm.data.procedural.spans import Interval, dot, normalised
from geolrm.data.procedural.textures import Texture, albedo

BALL_RADIUS = 0.5
CANDIDATES = 32768  # surface candidates a round
ROUND = ("cylinder", "cone", "turned")  # about their own z


@dataclass(frozen=True)
class Solid:
    """A canonical solid placed in the world by p = to_world q + centre.

    Attributes:
        kind: which solid.
        shape: tube radius of a torus, outline of a turned or tapered solid, in the canonical frame; 0 otherwise.
        to_world: (3, 3) rotation times scale.
        centre: (3,).
        carves: takes away instead of adding.
        texture: its colour; a carver colours the walls that it leaves.
        kept: carvers spare it, as they do what lies in a bowl.
    """

    kind: AnyKind
    shape: Shape
    to_world: Tensor
    centre: Tensor
    carves: bool
    texture: Texture
    kept: bool = False

    @cached_property
    def to_canonical(self) -> Tensor:
        """(3, 3) inverse of to_world."""
        return torch.linalg.inv(self.to_world.double()).to(self.to_world.dtype)

    @cached_property
    def axes(self) -> Tensor:
        """(3, 3) unit axes of the solid, as columns."""
        return F.normalize(self.to_world, dim=0)

    def canonical(self, points: Tensor) -> Tensor:
        """World points (3, N) in the canonical frame."""
        return self.to_canonical @ (points - self.centre[:, None])

    def contains(self, points: Tensor) -> Tensor:
        """Which world points (3, N) are strictly inside."""
        return primitives.contains(self.kind, self.shape, self.canonical(points))

    def normals(self, points: Tensor) -> Tensor:
        """Unit normals (3, N) at world points (3, N) of its surface, outwards; a carver's point into it."""
        gradient = primitives.gradient(self.kind, self.shape, self.canonical(points))
        return normalised(self.to_canonical.T @ gradient) * (-1.0 if self.carves else 1.0)

    def intervals(self, origins: Tensor, directions: Tensor) -> list[Interval]:
        """Where rays (3, N) are inside: intervals in units of `directions`; (inf, -inf) for none."""
        start, direction = self.canonical(origins), self.to_canonical @ directions
        speed = torch.sqrt(dot(direction, direction))
        unit = direction / speed
        nearest = -dot(start, unit)
        start = start + nearest * unit
        near = dot(start, start) < primitives.bounding_radius(self.kind, self.shape) ** 2
        index = torch.nonzero(near)[:, 0]
        start, unit = start.index_select(1, index), unit.index_select(1, index)
        nearest, near_speed = nearest.index_select(0, index), speed.index_select(0, index)
        result = []
        for enter, leave in primitives.intervals(self.kind, self.shape, start, unit):
            scattered = []
            for t, miss in ((enter, math.inf), (leave, -math.inf)):
                distances = torch.full_like(speed, miss)
                distances.index_copy_(0, index, (t + nearest) / near_speed)
                scattered.append(distances)
            result.append((scattered[0], scattered[1]))
        return result

    @property
    def around(self) -> float:
        """Half-width of a round solid, by which print is wrapped around it; 0 of others."""
        width = max(self.shape.radii) if isinstance(self.shape, Profile) and not self.shape.square else 1.0
        return width * self.to_world[:, :2].norm(dim=0).mean().item() if self.kind in ROUND else 0.0

    def to(self, device: torch.device | str) -> Solid:
        texture = self.texture.to(device)
        return replace(self, to_world=self.to_world.to(device), centre=self.centre.to(device), texture=texture)


@dataclass(frozen=True)
class Scene:
    """Solids, of which those that carve take away from all others but those that are kept, their light, and the radius of a
    ball around the origin that holds them all."""

    solids: tuple[Solid, ...]
    light: Light = FIXED
    radius: float = BALL_RADIUS

    def to(self, device: torch.device | str) -> Scene:
        return replace(self, solids=tuple(solid.to(device) for solid in self.solids))

    def contains(self, points: Tensor) -> Tensor:
        """Which world points (3, N) are strictly inside the object."""
        inside = torch.zeros(points.shape[1], dtype=torch.bool, device=points.device)
        for solid in sorted(self.solids, key=lambda solid: (solid.kept, solid.carves)):
            held = solid.contains(points)
            inside = inside & ~held if solid.carves else inside | held
        return inside

    def trace(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """First hits of rays that start outside.

        Args:
            origins, directions: (3, N), directions of any length.

        Returns:
            t (N,) along the directions, inf for a miss, and the index (N,) of the solid whose surface is hit.
        """
        spans = [
            (index, solid, span)
            for index, solid in enumerate(self.solids)
            for span in solid.intervals(origins, directions)
        ]
        nearest = torch.full_like(origins[0], math.inf)
        owner = torch.zeros(len(nearest), dtype=torch.long, device=nearest.device)
        for number, (index, solid, (enter, leave)) in enumerate(spans):
            t = leave if solid.carves else enter
            better = (t < nearest) & (t > 0)
            held = torch.zeros_like(better)
            for other, (_, another, (other_enter, other_leave)) in enumerate(spans):
                if other == number or solid.kept or not (solid.carves or another.carves):
                    continue  # an entry only asks whether it was carved away, and of a kept solid not even that
                within = (other_enter <= t) & (t < other_leave)
                if another.carves:
                    better &= ~within
                else:
                    held |= within
            if solid.carves:
                better &= held
            nearest, owner = torch.where(better, t, nearest), owner.masked_fill(better, index)
        return nearest, owner

    def normals(self, points: Tensor, owner: Tensor) -> Tensor:
        """Unit normals (3, N), out of the object, at surface points (3, N) that belong to solids `owner` (N,)."""
        normals = torch.zeros_like(points)
        for number, solid in enumerate(self.solids):
            index = torch.nonzero(owner == number)[:, 0]
            normals.index_copy_(1, index, solid.normals(points.index_select(1, index)))
        return normals

    def colours(self, points: Tensor, owner: Tensor, directions: Tensor) -> Tensor:
        """Shaded sRGB (3, N) of surface points (3, N) that belong to solids `owner` (N,), met by rays of `directions` (3, N)."""
        colours = torch.zeros_like(points)
        for number, solid in enumerate(self.solids):
            index = torch.nonzero(owner == number)[:, 0]
            hit = points.index_select(1, index)
            normal, to_local = solid.normals(hit), solid.axes.T
            local = to_local @ (hit - solid.centre[:, None])
            around = solid.around if solid.texture.lettering else 0.0
            painted = albedo(solid.texture, local, to_local @ normal, solid.canonical(hit), around)
            shaded = painted * irradiance(normal, self.light)
            if self.light.gloss:
                shaded = shaded + highlights(normal, -normalised(directions.index_select(1, index)), self.light)
            colours.index_copy_(1, index, shaded)
        return linear_to_srgb(colours.clamp(0, 1))

    def sample_surface(self, count: int, random: np.random.Generator) -> tuple[Tensor, Tensor, float]:
        """Area-uniform samples of the true surface, also where no camera sees it.

        Every solid is sampled uniformly by area (uniform on the canonical solid, then kept in proportion to the map's
        stretch of area), and what lies inside another solid, or was carved away, is dropped.

        Returns:
            points (count, 3), normals (count, 3) unit, on the CPU, and the estimated area. Fewer points, down to none,
            where the object has hardly any surface.
        """
        points, normals = [torch.zeros(3, 0)], [torch.zeros(3, 0)]
        kept = tried = 0
        bounds = [_largest_stretch(s) * primitives.area(s.kind, s.shape) for s in self.solids]
        while kept < count and tried < 64 * (count + CANDIDATES):
            point, normal = self._surface_candidates(bounds, random)
            points.append(point)
            normals.append(normal)
            kept, tried = kept + point.shape[1], tried + CANDIDATES
            if tried == CANDIDATES and kept < CANDIDATES // 512:
                break  # next to nothing
        area = sum(bounds) * kept / tried
        return torch.cat(points, 1).T[:count].contiguous(), torch.cat(normals, 1).T[:count].contiguous(), area

    def _surface_candidates(self, bounds: list[float], random: np.random.Generator) -> tuple[Tensor, Tensor]:
        choice = np.searchsorted(np.cumsum(bounds) / sum(bounds), random.random(CANDIDATES), side="right")
        counts = np.bincount(choice.clip(max=len(bounds) - 1), minlength=len(bounds)).tolist()
        points, normals = [], []
        for number, (solid, count) in enumerate(zip(self.solids, counts, strict=True)):
            uniforms = torch.from_numpy(random.random((4, count))).float()
            canonical = primitives.sample_surface(solid.kind, solid.shape, uniforms[:3])
            gradient = normalised(primitives.gradient(solid.kind, solid.shape, canonical))
            keep = uniforms[3] * _largest_stretch(solid) < _stretch(solid, gradient)
            point = solid.to_world @ canonical[:, keep] + solid.centre[:, None]
            others = [other for i, other in enumerate(self.solids) if i != number]
            within = _in_any([other for other in others if not (other.carves or other.kept)], point)
            carved = _in_any([other for other in others if other.carves], point)
            apart = within if solid.carves else ~within  # a carver's wall is where it bites
            visible = ~within | carved if solid.kept else apart & ~carved
            visible &= ~_in_any([other for other in others if other.kept], point)
            points.append(point[:, visible])
            normals.append(solid.normals(points[-1]))
        order = torch.from_numpy(random.permutation(sum(p.shape[1] for p in points)))
        return torch.cat(points, 1)[:, order], torch.cat(normals, 1)[:, order]


def _in_any(solids: list[Solid], points: Tensor) -> Tensor:
    """Which points (3, N) lie strictly inside one of the solids."""
    nothing = torch.zeros(points.shape[1], dtype=torch.bool, device=points.device)
    return torch.stack([nothing, *(solid.contains(points) for solid in solids)]).any(0)


def _stretch(solid: Solid, normals: Tensor) -> Tensor:
    """(N,) world area over canonical area where the canonical unit normals are (3, N)."""
    volume = torch.linalg.det(solid.to_world.double()).abs().float()
    inverse = solid.to_canonical.T @ normals
    return volume * torch.sqrt(dot(inverse, inverse))


def _largest_stretch(solid: Solid) -> float:
    scales = solid.to_world.norm(dim=0).sort().values
    return float(scales[1] * scales[2])
