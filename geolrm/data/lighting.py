"""The one fixed lighting of our own renders, procedural or scanned, and the form of others that training may see.

In: surface normals. Out: the light that falls there. Convention: linear light relative to full white; fixed in the world, so
that a point has one colour from wherever it is seen; Lambertian: linear colour = linear albedo times irradiance, then the
sRGB transfer function (IEC 61966-2-1). The brightest normal gets 0.999, so that white is never clipped and every normal of
a white surface shows. Trade: no shadows, no inter-reflection, and under `FIXED` no gloss, which keeps colour a function of
the surface alone and costs no rays; another light may add highlights (Blinn-Phong), for procedural training objects only.
Verified by its range and by the colours of the faces of a cube (tests/data/test_raycast.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LIGHTING = "sky-ground-two-lights-3"  # changes whenever a number below does: what was rendered otherwise is stale
AMBIENT_SKY, AMBIENT_GROUND = 0.56, 0.31  # of a surface that looks straight up, straight down; linear in between
LIGHTS = (((0.5, -0.35, 0.79), 0.46), ((-0.75, 0.5, 0.2), 0.16))  # directions towards the light, strengths


@dataclass(frozen=True)
class Light:
    """What falls on a surface, linear, relative to full white.

    Attributes:
        sky, ground: ambient light of a surface that looks straight up, straight down.
        lamps: directions towards distant lights, world frame, and their strengths.
        gloss: share of a lamp that a highlight adds at its brightest; 0 for none.
        shininess: exponent of the highlights; the larger, the smaller they are.
    """

    sky: float
    ground: float
    lamps: tuple[tuple[tuple[float, float, float], float], ...]
    gloss: float = 0.0
    shininess: float = 1.0


FIXED = Light(AMBIENT_SKY, AMBIENT_GROUND, LIGHTS)


def irradiance(normals: Tensor, light: Light = FIXED) -> Tensor:
    """(N,) light on surfaces of unit normals (3, N), linear, relative to full white."""
    total = light.ground + (light.sky - light.ground) * (0.5 + 0.5 * normals[2])
    for direction, strength in light.lamps:
        x, y, z = F.normalize(normals.new_tensor(direction), dim=0)
        total = total + strength * (x * normals[0] + y * normals[1] + z * normals[2]).clamp(min=0)
    return total


def highlights(normals: Tensor, towards: Tensor, light: Light) -> Tensor:
    """(N,) white light that surfaces of unit normals (3, N) mirror to a camera in the unit directions `towards` (3, N)."""
    total = torch.zeros_like(normals[0])
    for direction, strength in light.lamps:
        half = F.normalize(F.normalize(normals.new_tensor(direction), dim=0)[:, None] + towards, dim=0)
        total = total + light.gloss * strength * (half * normals).sum(0).clamp(min=0) ** light.shininess
    return total


def srgb_to_linear(srgb: Tensor) -> Tensor:
    """Linear light of sRGB values in [0, 1], any shape."""
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: Tensor) -> Tensor:
    """Inverse of `srgb_to_linear`."""
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp(min=1e-8) ** (1 / 2.4) - 0.055)
