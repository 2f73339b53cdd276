"""A procedural object: solids united and carved, traced along rays and sampled on their surface.

In: a random generator to draw from; rays to trace. Out: a `Scene`; exact hits with normals and colours; area-uniform points
of its true surface. Convention: the object is the union of its solids less the union of those that carve, centred, inside
the ball of radius 0.5. Along a ray each solid is one interval (a torus two), so the first surface is the nearest of the
solids' entries and the carvers' exits that lies in the object: no marching, no mesh. Shading is Lambertian and fixed, so
that colour does not hang on the view: a sky-and-ground ambient and two lights, no shadows. Trade: pieces may float apart
after carving, as in Zeroverse (arXiv 2406.09371), whose recipe this follows in spirit. Verified against closed forms.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from geolrm.data.procedural import primitives
from geolrm.data.procedural.primitives import Kind, dot, normalised
from geolrm.data.procedural.textures import Texture, albedo, draw_texture, linear_to_srgb

MAX_SOLIDS = 9
MAX_CARVERS = 3
BALL_RADIUS = 0.5
MARGIN = 1.005  # hull points understate round solids by up to 0.3 %
MIN_AREA = 0.3  # object units squared; the ball itself has 3.14
MIN_SIDES = (0.5, 0.15)  # of the longest and the middle side of the object's box
CANDIDATES = 32768  # surface candidates a round
AMBIENT_SKY, AMBIENT_GROUND = 0.5, 0.22
LIGHTS = (((0.5, -0.35, 0.79), 0.55), ((-0.75, 0.5, 0.2), 0.2))  # directions towards the light, strengths


@dataclass(frozen=True)
class Solid:
    """A canonical solid placed in the world by p = to_world q + centre.

    Attributes:
        kind: which solid.
        tube: tube radius of a torus in its canonical frame; 0 otherwise.
        to_world: (3, 3) rotation times scale.
        centre: (3,).
        carves: takes away instead of adding.
        texture: its colour; a carver colours the walls that it leaves.
    """

    kind: Kind
    tube: float
    to_world: Tensor
    centre: Tensor
    carves: bool
    texture: Texture

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
        return primitives.contains(self.kind, self.tube, self.canonical(points))

    def normals(self, points: Tensor) -> Tensor:
        """Unit normals (3, N) at world points (3, N) of its surface, outwards; a carver's point into it."""
        gradient = primitives.gradient(self.kind, self.canonical(points))
        return normalised(self.to_canonical.T @ gradient) * (-1.0 if self.carves else 1.0)

    def intervals(self, origins: Tensor, directions: Tensor) -> list[primitives.Interval]:
        """Where rays (3, N) are inside: one interval in units of `directions`, two for a torus; (inf, -inf) for none."""
        start, direction = self.canonical(origins), self.to_canonical @ directions
        speed = torch.sqrt(dot(direction, direction))
        unit = direction / speed
        nearest = -dot(start, unit)
        start = start + nearest * unit
        near = dot(start, start) < primitives.bounding_radius(self.kind, self.tube) ** 2
        index = torch.nonzero(near)[:, 0]
        start, unit = start.index_select(1, index), unit.index_select(1, index)
        nearest, near_speed = nearest.index_select(0, index), speed.index_select(0, index)
        result = []
        for enter, leave in primitives.intervals(self.kind, self.tube, start, unit):
            scattered = []
            for t, miss in ((enter, math.inf), (leave, -math.inf)):
                distances = torch.full_like(speed, miss)
                distances.index_copy_(0, index, (t + nearest) / near_speed)
                scattered.append(distances)
            result.append((scattered[0], scattered[1]))
        return result

    def to(self, device: torch.device | str) -> Solid:
        texture = self.texture.to(device)
        return replace(self, to_world=self.to_world.to(device), centre=self.centre.to(device), texture=texture)


@dataclass(frozen=True)
class Scene:
    """Solids, of which those that carve take away from all others."""

    solids: tuple[Solid, ...]

    def to(self, device: torch.device | str) -> Scene:
        return Scene(tuple(solid.to(device) for solid in self.solids))

    def contains(self, points: Tensor) -> Tensor:
        """Which world points (3, N) are strictly inside the object."""
        inside = torch.zeros(points.shape[1], dtype=torch.bool, device=points.device)
        for solid in sorted(self.solids, key=lambda solid: solid.carves):
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
            (index, solid.carves, span)
            for index, solid in enumerate(self.solids)
            for span in solid.intervals(origins, directions)
        ]
        nearest = torch.full_like(origins[0], math.inf)
        owner = torch.zeros(len(nearest), dtype=torch.long, device=nearest.device)
        for number, (index, carves, (enter, leave)) in enumerate(spans):
            t = leave if carves else enter
            better = (t < nearest) & (t > 0)
            held = torch.zeros_like(better)
            for other, (_, other_carves, (other_enter, other_leave)) in enumerate(spans):
                if other != number and (carves or other_carves):  # an entry only asks whether it was carved away
                    within = (other_enter <= t) & (t < other_leave)
                    if other_carves:
                        better &= ~within
                    else:
                        held |= within
            if carves:
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

    def colours(self, points: Tensor, owner: Tensor) -> Tensor:
        """Shaded sRGB (3, N) of surface points (3, N) that belong to solids `owner` (N,)."""
        colours = torch.zeros_like(points)
        for number, solid in enumerate(self.solids):
            index = torch.nonzero(owner == number)[:, 0]
            hit = points.index_select(1, index)
            normal, to_local = solid.normals(hit), solid.axes.T
            local = to_local @ (hit - solid.centre[:, None])
            painted = albedo(solid.texture, local, to_local @ normal, solid.canonical(hit))
            colours.index_copy_(1, index, painted * _light(normal))
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
        bounds = [_largest_stretch(s) * primitives.area(s.kind, s.tube) for s in self.solids]
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
            canonical = primitives.sample_surface(solid.kind, solid.tube, uniforms[:3])
            gradient = normalised(primitives.gradient(solid.kind, canonical))
            keep = uniforms[3] * _largest_stretch(solid) < _stretch(solid, gradient)
            point = solid.to_world @ canonical[:, keep] + solid.centre[:, None]
            others = [other for i, other in enumerate(self.solids) if i != number]
            adding = [other.contains(point) for other in others if not other.carves]
            carving = [other.contains(point) for other in others if other.carves]
            nothing = torch.zeros(point.shape[1], dtype=torch.bool)
            within = torch.stack([nothing, *adding]).any(0)
            visible = (within if solid.carves else ~within) & ~torch.stack([nothing, *carving]).any(0)
            points.append(point[:, visible])
            normals.append(solid.normals(points[-1]))
        order = torch.from_numpy(random.permutation(sum(p.shape[1] for p in points)))
        return torch.cat(points, 1)[:, order], torch.cat(normals, 1)[:, order]


def _stretch(solid: Solid, normals: Tensor) -> Tensor:
    """(N,) world area over canonical area where the canonical unit normals are (3, N)."""
    volume = torch.linalg.det(solid.to_world.double()).abs().float()
    inverse = solid.to_canonical.T @ normals
    return volume * torch.sqrt(dot(inverse, inverse))


def _largest_stretch(solid: Solid) -> float:
    scales = solid.to_world.norm(dim=0).sort().values
    return float(scales[1] * scales[2])


def _light(normals: Tensor) -> Tensor:
    """(N,) linear irradiance over white."""
    sky = 0.5 + 0.5 * normals[2]
    light = AMBIENT_GROUND + (AMBIENT_SKY - AMBIENT_GROUND) * sky
    for direction, strength in LIGHTS:
        towards = F.normalize(normals.new_tensor(direction), dim=0)
        light = light + strength * (towards @ normals).clamp(min=0)
    return light


# --- drawing ---


def scene_generator(seed: int, key: str, attempt: int = 0) -> np.random.Generator:
    """The random numbers of one object: a function of the seed, the key and the attempt alone."""
    digest = hashlib.sha256(f"{seed}/{attempt}/{key}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def draw_scene(random: np.random.Generator) -> Scene:
    """A random object of 1 to 9 solids, of which up to 3 carve, centred and scaled to the ball of radius 0.5.

    Each solid after the first is centred near the surface of an earlier one, so that pieces touch and carvers bite.
    """
    solids: list[Solid] = []
    for number in range(random.integers(1, MAX_SOLIDS + 1)):
        carvers = sum(solid.carves for solid in solids)
        carves = number > 0 and carvers < MAX_CARVERS and random.random() < 0.25
        size = math.exp(random.uniform(math.log(0.4), 0.0)) * (0.6 if carves else 1.0)
        anchor = [solid for solid in solids if not solid.carves]
        solids.append(_draw_solid(random, size, carves, anchor[random.integers(len(anchor))] if anchor else None))
    return fitted(Scene(tuple(solids)))


def _draw_solid(random: np.random.Generator, size: float, carves: bool, anchor: Solid | None) -> Solid:
    kinds = get_args(Kind)
    kind: Kind = kinds[random.integers(len(kinds))]
    scale = size * np.exp(random.uniform(math.log(0.4), 0.0, 3))
    if kind == "torus":
        scale = size * np.exp(random.uniform(math.log(0.75), 0.0, 3))
    rotation = _rotation(random) if random.random() < 0.5 else np.eye(3)[random.permutation(3)]
    if anchor is not None and random.random() < 0.5:
        rotation = anchor.axes.double().numpy() @ rotation
    centre = np.zeros(3)
    if anchor is not None:
        uniforms = torch.from_numpy(random.random((3, 1))).float()
        on_anchor = primitives.sample_surface(anchor.kind, anchor.tube, uniforms)
        place = (anchor.to_world @ on_anchor)[:, 0] + anchor.centre
        outwards = anchor.normals(place[:, None])[:, 0] * float(random.uniform(-0.2, 0.6) * scale.min())
        centre = (place + outwards).double().numpy()
    return Solid(
        kind=kind,
        tube=float(random.uniform(0.2, 0.45)) if kind == "torus" else 0.0,
        to_world=torch.tensor(rotation * scale, dtype=torch.float32),
        centre=torch.tensor(centre, dtype=torch.float32),
        carves=carves,
        texture=draw_texture(random),
    )


def _rotation(random: np.random.Generator) -> np.ndarray:
    """Uniform over all rotations, from a unit quaternion."""
    w, x, y, z = (q := random.standard_normal(4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def fitted(scene: Scene) -> Scene:
    """The scene moved and scaled so that its uncarved solids just fit the ball of radius 0.5, centred by their box."""
    hull = torch.cat(
        [s.to_world @ primitives.hull_points(s.kind, s.tube) + s.centre[:, None] for s in scene.solids if not s.carves],
        dim=1,
    )
    middle = (hull.amax(1) + hull.amin(1)) / 2
    scale = BALL_RADIUS / (MARGIN * (hull - middle[:, None]).norm(dim=0).max())
    return Scene(
        tuple(replace(s, to_world=s.to_world * scale, centre=(s.centre - middle) * scale) for s in scene.solids)
    )


def large_enough(points: Tensor, area: float) -> bool:
    """Whether surface samples (P, 3) and their area make an object worth rendering."""
    if area < MIN_AREA or not len(points):
        return False
    sides: Sequence[float] = sorted((points.amax(0) - points.amin(0)).tolist(), reverse=True)
    return sides[0] >= MIN_SIDES[0] and sides[1] >= MIN_SIDES[1]
