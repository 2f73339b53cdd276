"""Which views of an object a method is given, and which it is measured on.

In: an object's cameras with their roles. Out: positions of the input views of an input set, and of the held-out views where a
source brings its own cameras. Convention: `orbit` spreads V views evenly, floor(24 i / V) of the 24-view orbit; `nested` is one
order of that orbit, each prefix well spread, so that V + 1 views are V views and one more; `random` takes the views nearest to
random directions, nested too. Every set is a pure function of cameras and key. Trade: `random` picks among views that are
there, so on our rig most of its views lie between 5 degrees below and 30 above. Verified by the printed lists.

Sources with native cameras have no test views of ours. Where they have a full orbit (GObjaverse), inputs come from it and the
other views are held out. Where they have none (OmniObject3D's renders), the first 16 of the farthest-point order of all views
are held out and inputs come from the rest: `orbit` and `nested` in its farthest-point order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.splits import PROTOCOL
from geolrm.cameras import Cameras
from geolrm.data.rig import ORBIT_VIEWS, TEST_VIEWS, orbit_inputs
from geolrm.failures import BadInput

InputSet = Literal["orbit", "nested", "random"]
INPUT_SETS: tuple[InputSet, ...] = ("orbit", "nested", "random")
ANGLE_STEP = 1e-3  # degrees; angles nearer to each other are equal


def farthest_point_order(distances: Tensor) -> list[int]:
    """An order of N things of which each prefix is well spread, from their distances (N, N): the first is 0.

    Next comes the one whose nearest taken one is farthest; among equals the one whose second nearest is, and so on; among
    those still equal, the first.
    """
    taken = [0]
    rest = list(range(1, len(distances)))
    while rest:
        near = {i: sorted(distances[i, taken].tolist()) for i in rest}
        best = max(rest, key=lambda i: (near[i], -i))
        taken.append(best)
        rest.remove(best)
    return taken


def nested_orbit() -> list[int]:
    """Positions 0 to 23 of the orbit in farthest-point order, by steps around the circle."""
    step = torch.arange(ORBIT_VIEWS)
    apart = (step[:, None] - step).abs()
    return farthest_point_order(torch.minimum(apart, ORBIT_VIEWS - apart))


def angles(directions: Tensor, others: Tensor) -> Tensor:
    """Degrees (N, M) between directions (N, 3) and (M, 3), in whole steps of `ANGLE_STEP`."""
    cosines = F.normalize(directions.double(), dim=-1) @ F.normalize(others.double(), dim=-1).T
    return (torch.rad2deg(cosines.clamp(-1, 1).acos()) / ANGLE_STEP).round() * ANGLE_STEP


def random_direction(key: str, number: int) -> Tensor:
    """(3,) unit vector, even over the sphere, from the hash of an object's key."""
    digest = hashlib.sha256(f"{PROTOCOL}/random/{key}/{number}".encode()).digest()
    first, second = (int.from_bytes(digest[i : i + 8], "big") / 2**64 for i in (0, 8))
    z, azimuth = 2 * first - 1, 2 * math.pi * second
    ring = math.sqrt(max(0.0, 1 - z * z))
    return torch.tensor([ring * math.cos(azimuth), ring * math.sin(azimuth), z], dtype=torch.float64)


def nearest_to_random(key: str, positions: Tensor, count: int) -> list[int]:
    """Numbers of `count` camera positions (N, 3): for each random direction of the key the nearest that is not taken."""
    taken: list[int] = []
    for number in range(count):
        apart = angles(random_direction(key, number)[None], positions)[0]
        apart[taken] = math.inf
        taken.append(int(apart.argmin()))
    return taken


@dataclass(frozen=True)
class ViewPlan:
    """The views of one object that inputs are taken from, and those that are held out.

    Attributes:
        key: of the object.
        cameras: (V,) of all its input-able views, duplicates left out.
        orbit: positions of a full orbit of 24 among them, else none.
        pool: positions that inputs may come from.
        held_out: positions to measure on; none where the object has test views of its own.
    """

    key: str
    cameras: Cameras
    orbit: list[int]
    pool: list[int]
    held_out: list[int]

    @classmethod
    def of(cls, key: str, cameras: Cameras, roles: Sequence[str], has_tests: bool) -> ViewPlan:
        """From the roles (V,) of cameras (V,). Raises `BadInput` where too few views are left to give and to hold out."""
        everything = list(range(len(cameras)))
        orbit = [i for i in everything if roles[i] == "orbit"]
        orbit = orbit if len(orbit) == ORBIT_VIEWS else []
        if has_tests:
            return cls(key, cameras, orbit, everything, [])
        if orbit:
            held_out = [i for i in everything if i not in orbit]
        else:
            held_out = farthest_point_order(angles(cameras.positions, cameras.positions))[:TEST_VIEWS]
        pool = [i for i in everything if i not in held_out]
        if not pool or not held_out:
            detail = f"{len(everything)} views, none of them a test view: too few to hold some out"
            raise BadInput("no_test_views", key, detail, "render it with this project's rig")
        return cls(key, cameras, orbit, pool, sorted(held_out))

    def inputs(self, name: InputSet, count: int) -> list[int]:
        """Positions of the `count` input views of a set. Raises `BadInput` (`too_few_views`)."""
        native = bool(self.held_out)
        candidates = self.pool if name == "random" or (native and not self.orbit) else self.orbit
        if not 1 <= count <= len(candidates):
            detail = f"{count} input views asked of {len(candidates)} (a full orbit has {ORBIT_VIEWS})"
            raise BadInput("too_few_views", self.key, detail, "ask for fewer views or render the object again")
        if name == "random":
            return [self.pool[i] for i in nearest_to_random(self.key, self.cameras[self.pool].positions, count)]
        if self.orbit:
            chosen = orbit_inputs(count) if name == "orbit" else nested_orbit()[:count]
            return [self.orbit[i] for i in chosen]
        positions = self.cameras[self.pool].positions
        return [self.pool[i] for i in farthest_point_order(angles(positions, positions))[:count]]
