"""Things that hold things, and outlines with bevels: what random unions of primitives hardly ever are.

In: a random generator. Out: the solids of one vessel (bowl, cup, pan, basket, box without a lid, jar, bottle), or the outline
of one solid. Convention: a vessel stands around z, its body about [-1, 1] wide; its cavity is a carver, the body's outline
narrowed by the wall and open above; what lies in it is `kept` from carving. Trade: all of it is closed forms united and
carved, walls of one horizontal thickness, bevels and curves of straight pieces; no displacement, which has no closed form.
Verified by looking (docs/images/procedural-variety.png) and by the depth that the view from above sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from geolrm.data.procedural.primitives import AnyKind, Shape
from geolrm.data.procedural.profiles import Profile
from geolrm.data.procedural.scene import Solid
from geolrm.data.procedural.textures import Texture

RIM = 0.05  # how far a cavity reaches beyond the rim
LIE = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])  # brings z to x
STAND = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])  # brings y to z: a ring around z stands up


def _between(random: np.random.Generator, low: float, high: float) -> float:
    """Log-uniform."""
    return float(np.exp(random.uniform(math.log(low), math.log(high))))


def _solid(
    kind: AnyKind,
    scale: tuple[float, float, float],
    centre: tuple[float, float, float],
    texture: Texture,
    *,
    shape: Shape = 0.0,
    axes: np.ndarray | None = None,
    carves: bool = False,
    kept: bool = False,
) -> Solid:
    to_world = (np.eye(3) if axes is None else axes) * np.array(scale)
    place = torch.tensor(centre, dtype=torch.float32)
    return Solid(kind, shape, torch.tensor(to_world, dtype=torch.float32), place, carves, texture, kept)


def draw_profile(random: np.random.Generator) -> Profile:
    """The outline of one solid: a bevelled or rounded block or can, or a stack of a few widths."""
    square = bool(random.random() < 0.5)
    if random.random() < 0.6:
        bevel, steps = random.uniform(0.06, 0.35), int(random.integers(1, 3))
        turns = [math.pi / 2 * i / steps for i in range(steps + 1)]  # 1 step is a bevel, 2 go round
        heights = [-1 + bevel * (1 - math.cos(t)) for t in turns]
        radii = [1 - bevel + bevel * math.sin(t) for t in turns]
        corners = [
            *zip(heights, radii, strict=True),
            *((-z, r) for z, r in zip(heights[::-1], radii[::-1], strict=True)),
        ]
        return Profile(tuple(z for z, _ in corners), tuple(r for _, r in corners), square)
    inner = np.sort(random.uniform(-0.9, 0.9, random.integers(0, 4)))
    inner = inner[np.diff(inner, prepend=-1.0) > 0.05]
    widths = random.uniform(0.3, 1.0, len(inner) + 2)
    widths /= widths.max()
    return Profile((-1.0, *inner.tolist(), 1.0), tuple(widths.tolist()), square)


def _body(random: np.random.Generator, square: bool) -> tuple[Profile, bool]:
    """The outline of a vessel, and whether it has a neck."""
    kind = random.random()
    if kind < 0.4:  # straight, or wider or narrower above
        return Profile((-1.0, 1.0), (float(random.uniform(0.5, 1.0)), float(random.uniform(0.7, 1.0))), square), False
    if kind < 0.75:  # a bowl: a quarter of an ellipse on a foot
        foot, pieces = random.uniform(0.3, 0.7), 4
        turns = [math.pi / 2 * i / pieces for i in range(pieces + 1)]
        heights, radii = [-math.cos(t) * 2 + 1 for t in turns], [foot + (1 - foot) * math.sin(t) for t in turns]
        return Profile(tuple(heights), tuple(radii), square), False
    neck, shoulder = random.uniform(0.25, 0.6), random.uniform(0.0, 0.5)
    slope = random.uniform(0.1, 0.8) * (0.9 - shoulder)
    radii = [float(random.uniform(0.8, 1.0)), 1.0, float(neck), float(neck * random.uniform(0.9, 1.2))]
    return Profile((-1.0, float(shoulder), float(shoulder + slope), 1.0), tuple(radii), square), True


def draw_vessel(random: np.random.Generator, draw_texture: Callable[[], Texture]) -> list[Solid]:
    """The solids of one vessel."""
    square = bool(random.random() < 0.35)
    kind: AnyKind = "tapered" if square else "turned"
    body, necked = _body(random, square)
    high = _between(random, 0.7, 1.8) if necked else _between(random, 0.15, 1.4)
    deep = _between(random, 0.5, 1.0) if square else _between(random, 0.85, 1.0)  # along y, of the width
    wall, outside = _between(random, 0.02, 0.1), draw_texture()
    floor = wall * random.uniform(1.0, 2.0) / high
    scale = (1.0, deep, high)
    solids = [_solid(kind, scale, (0, 0, 0), outside, shape=body)]
    top = body.radii[-1]
    if necked and random.random() < 0.5:  # a bottle with its cap
        cap = _between(random, 0.08, 0.25)
        width = top * random.uniform(1.0, 1.15)
        return [*solids, _solid("cylinder", (width, width * deep, cap), (0, 0, high + 0.9 * cap), draw_texture())]
    inside = outside if random.random() < 0.6 else draw_texture()
    if not square and not necked and random.random() < 0.3:  # an ellipsoid less its own smaller copy and its upper part
        cut, thin = random.uniform(-0.1, 0.4), 1 - wall
        solids = [
            _solid("ellipsoid", scale, (0, 0, 0), outside),
            _solid("ellipsoid", (thin, deep * thin, high * thin), (0, 0, 0), inside, carves=True),
            _solid("box", (1.1, 1.1, high), (0, 0, high * (1 + cut)), outside, carves=True),
        ]
        rim, low = cut * high, -high * thin
        top, bottom, side = math.sqrt(1 - cut * cut), 0.4, math.sqrt(1 - ((cut - thin) / 2) ** 2)
    else:
        solids.append(_solid(kind, scale, (0, 0, 0), inside, shape=body.inset(wall, floor, RIM), carves=True))
        rim, low, bottom = high, high * (floor - 1), body.radii[0]
        side = 1.0 if necked else (bottom + top) / 2
    depth = rim - low
    if random.random() < 0.3:
        texture = draw_texture() if random.random() < 0.5 else outside
        solids.append(_handle(random, side, None if necked else top, rim, depth, texture))
    if not necked and random.random() < 0.25:
        solids += _slots(random, low, depth, outside)
    if not necked and random.random() < 0.25:
        width = min(top, bottom) * deep
        solids += [_content(random, width, low, draw_texture()) for _ in range(random.integers(1, 4))]
    return solids


def _handle(
    random: np.random.Generator, side: float, top: float | None, rim: float, depth: float, texture: Texture
) -> Solid:
    """An ear at the side, a stick, or an arch across; the cavity cuts off what reaches inside.

    Args:
        side: x of the wall half-way up.
        top: x of the rim; None takes an ear.
        rim: height of the rim.
        depth: of the cavity.
    """
    kind, thick = random.random(), _between(random, 0.1, 0.25)
    if kind < 0.5 or top is None:
        tall = depth * random.uniform(0.25, 0.4)
        wide = min(tall, 0.4) * random.uniform(0.7, 1.3)
        place = (side, 0.0, rim - depth * random.uniform(0.45, 0.55))
        return _solid("torus", (wide, tall, min(wide, tall)), place, texture, shape=thick, axes=STAND)
    if kind < 0.8:
        long, radius = random.uniform(0.3, 0.8), 0.4 * thick
        place = (top - 0.02 + long, 0.0, rim - radius * random.uniform(1.0, 2.0))
        return _solid("cylinder", (radius, radius, long), place, texture, axes=LIE)
    scale = (0.95 * top, 0.9 * depth, 0.5)
    return _solid("torus", scale, (0.0, 0.0, rim), texture, shape=thick / 2, axes=STAND)


def _slots(random: np.random.Generator, low: float, depth: float, texture: Texture) -> list[Solid]:
    """Openings through opposite walls, as baskets and crates have."""
    wide, rows = random.uniform(0.25, 0.6), int(random.integers(1, 3))
    slots = []
    for row in range(rows):
        height = low + depth * (0.15 + 0.7 * (row + 0.5) / rows)
        for axis in range(2):
            scale = (1.5, wide, 0.2 * depth / rows) if axis == 0 else (wide, 1.5, 0.2 * depth / rows)
            slots.append(_solid("box", scale, (0, 0, height), texture, carves=True))
    return slots


def _content(random: np.random.Generator, width: float, low: float, texture: Texture) -> Solid:
    """Something that lies on a floor of some width."""
    a, b, c = (width * random.uniform(0.1, 0.3, 3)).tolist()
    x, y = (0.4 * width * random.uniform(-1, 1, 2)).tolist()
    kind: AnyKind = "ellipsoid" if random.random() < 0.6 else "box"
    return _solid(kind, (a, b, c), (x, y, low + 0.9 * c), texture, kept=True)
