"""Drawing procedural objects at random.

In: a random generator, and which `Variety` is asked for. Out: a `Scene`. Convention: random numbers are a function of (seed,
key, attempt) alone, and a kind of variety whose share is 0 draws none, so that plain objects stay what they are whatever is
added to the drawing. Trade: what is drawn may turn out empty or too small, and is then drawn again by the caller
(`large_enough`). Verified by known first objects and by what drawn scenes show (tests/data/test_procedural.py).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from geolrm.config import Variety
from geolrm.data.lighting import FIXED, Light
from geolrm.data.procedural import primitives
from geolrm.data.procedural.primitives import AnyKind, Kind, Shape
from geolrm.data.procedural.scene import BALL_RADIUS, Scene, Solid
from geolrm.data.procedural.textures import draw_texture
from geolrm.data.procedural.vessels import draw_profile, draw_vessel

PLAIN = Variety()
MAX_SOLIDS = 9
MAX_CARVERS = 3
MARGIN = 1.005  # hull points understate round solids by up to 0.3 %
MIN_AREA = 0.3  # object units squared; the ball itself has 3.14
MIN_SIDES = (0.5, 0.15)  # of the longest and the middle side of the object's box


def scene_generator(seed: int, key: str, attempt: int = 0) -> np.random.Generator:
    """The random numbers of one object: a function of the seed, the key and the attempt alone."""
    digest = hashlib.sha256(f"{seed}/{attempt}/{key}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def draw_scene(random: np.random.Generator, variety: Variety = PLAIN) -> Scene:
    """A random object, centred and scaled to the ball of radius 0.5 or, by `variety`, to the cube around it.

    Either 1 to 9 solids, of which up to 3 carve, each after the first centred near the surface of an earlier one, so that
    pieces touch and carvers bite; or, by `variety`, a vessel, sometimes with a solid or two beside it.
    """
    if variety.vessels and random.random() < variety.vessels:
        solids = _draw_vessel(random, variety)
    else:
        solids = []
        for number in range(random.integers(1, MAX_SOLIDS + 1)):
            carvers = sum(solid.carves for solid in solids)
            carves = number > 0 and carvers < MAX_CARVERS and random.random() < 0.25
            size = math.exp(random.uniform(math.log(0.4), 0.0)) * (0.6 if carves else 1.0)
            solids.append(_draw_solid(random, size, carves, _anchor(random, solids), variety))
    own_light = variety.lights and random.random() < variety.lights
    light = draw_light(random) if own_light else FIXED
    return fitted(Scene(tuple(solids), light), cube=variety.cubes > 0 and random.random() < variety.cubes)


def _anchor(random: np.random.Generator, solids: list[Solid]) -> Solid | None:
    adding = [solid for solid in solids if not (solid.carves or solid.kept)]
    return adding[random.integers(len(adding))] if adding else None


def _draw_vessel(random: np.random.Generator, variety: Variety) -> list[Solid]:
    """A vessel, mostly upright, with up to two solids outside it."""
    turn = 2 * math.pi * random.random()
    upright = np.array([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
    rotation = torch.tensor(upright if random.random() < 0.75 else _rotation(random), dtype=torch.float32)
    solids = [
        replace(solid, to_world=rotation @ solid.to_world, centre=rotation @ solid.centre)
        for solid in draw_vessel(random, partial(draw_texture, random, variety.lettering))
    ]
    for _ in range(random.integers(1, 3) if random.random() < 0.3 else 0):
        size = math.exp(random.uniform(math.log(0.2), math.log(0.6)))
        solids.append(_draw_solid(random, size, False, _anchor(random, solids), variety))
    return solids


def _draw_solid(
    random: np.random.Generator, size: float, carves: bool, anchor: Solid | None, variety: Variety
) -> Solid:
    kinds = get_args(Kind)
    kind: AnyKind = kinds[random.integers(len(kinds))]
    scale = size * np.exp(random.uniform(math.log(0.4), 0.0, 3))
    if kind == "torus":
        scale = size * np.exp(random.uniform(math.log(0.75), 0.0, 3))
    rotation = _rotation(random) if random.random() < 0.5 else np.eye(3)[random.permutation(3)]
    if anchor is not None and random.random() < 0.5:
        rotation = anchor.axes.double().numpy() @ rotation
    centre = np.zeros(3)
    if anchor is not None:
        uniforms = torch.from_numpy(random.random((3, 1))).float()
        on_anchor = primitives.sample_surface(anchor.kind, anchor.shape, uniforms)
        place = (anchor.to_world @ on_anchor)[:, 0] + anchor.centre
        outwards = anchor.normals(place[:, None])[:, 0] * float(random.uniform(-0.2, 0.6) * scale.min())
        centre = (place + outwards).double().numpy()
    shape: Shape = float(random.uniform(0.2, 0.45)) if kind == "torus" else 0.0
    if variety.profiles and random.random() < variety.profiles:
        shape = draw_profile(random)
        kind = "tapered" if shape.square else "turned"
    return Solid(
        kind=kind,
        shape=shape,
        to_world=torch.tensor(rotation * scale, dtype=torch.float32),
        centre=torch.tensor(centre, dtype=torch.float32),
        carves=carves,
        texture=draw_texture(random, variety.lettering),
    )


def draw_light(random: np.random.Generator) -> Light:
    """A light of an object's own: a key light from above, sometimes a second, dim or bright ambient light; half with gloss.

    A surface that all of it met squarely would get at most 0.999, so that white is never clipped but by highlights.
    """
    lamps = []
    for weight, lowest in ((1.0, 0.1), (float(random.random() < 0.5) * 0.4, -0.3)):
        turn, z = 2 * math.pi * random.random(), random.uniform(lowest, 1.0)
        ring = math.sqrt(1 - z * z)
        lamps.append(((ring * math.cos(turn), ring * math.sin(turn), float(z)), weight))
    sky = random.uniform(0.4, 1.5)
    share = random.uniform(0.75, 0.999) / (sky + sum(weight for _, weight in lamps))
    glossy = random.random() < 0.5
    return Light(
        sky=float(sky * share),
        ground=float(sky * share * random.uniform(0.3, 1.0)),
        lamps=tuple((direction, float(weight * share)) for direction, weight in lamps if weight > 0),
        gloss=float(random.uniform(0.1, 0.8)) if glossy else 0.0,
        shininess=float(np.exp(random.uniform(math.log(8), math.log(80)))),
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


def fitted(scene: Scene, cube: bool = False) -> Scene:
    """The scene moved and scaled so that its uncarved solids just fit the ball of radius 0.5, or else the cube
    [-0.5, 0.5]^3, centred by their box."""
    adding = [s for s in scene.solids if not s.carves]
    hull = torch.cat([s.to_world @ primitives.hull_points(s.kind, s.shape) + s.centre[:, None] for s in adding], dim=1)
    middle = (hull.amax(1) + hull.amin(1)) / 2
    reach = MARGIN * (hull - middle[:, None]).norm(dim=0).max()
    scale = BALL_RADIUS / (MARGIN * (hull - middle[:, None]).abs().max() if cube else reach)
    solids = (replace(s, to_world=s.to_world * scale, centre=(s.centre - middle) * scale) for s in scene.solids)
    return replace(scene, solids=tuple(solids), radius=float(scale * reach) if cube else BALL_RADIUS)


def large_enough(points: Tensor, area: float) -> bool:
    """Whether surface samples (P, 3) and their area make an object worth rendering."""
    if area < MIN_AREA or not len(points):
        return False
    sides: Sequence[float] = sorted((points.amax(0) - points.amin(0)).tolist(), reverse=True)
    return sides[0] >= MIN_SIDES[0] and sides[1] >= MIN_SIDES[1]
