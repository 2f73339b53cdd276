"""Procedural textures: a colour at every point of a solid.

In: a texture's drawn parameters and points in its solid's frame. Out: linear RGB. Convention: coordinates are lengths in
units of the texture's cell, so that patterns keep their size whatever the solid's scale; flat patterns (dots, glyphs) are
laid on along the axis that the normal is nearest to. Trade: every texture carries faint noise, and patterns stay coarser
than some four pixels at 128 px, so that a small model has something to learn and not to alias. Verified by looking, and
by tests that each kind varies over a surface and never leaves [0, 1].
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from geolrm.data.procedural.primitives import dot, largest_axis

Pattern = Literal["noise", "checker", "stripes", "rings", "gradient", "dots", "glyphs"]
NOISE_CELLS = 12  # cells along a side of the noise volume, which is mirrored beyond
NOISE_SIDE = 49
GLYPHS = 24
GLYPH_SIDE = 5
GRAIN = 0.3  # share of the faint noise on every texture


@dataclass(frozen=True)
class Texture:
    """One drawn texture.

    Attributes:
        pattern: which pattern.
        cell: its period in object units.
        palette: (3, 3) linear RGB, one colour a row.
        direction: (3,) unit: stripes run across it, gradients along it.
        warp: how far noise bends stripes and rings, in cells.
        offset: (3,) cells.
        noise: (1, 1, D, D, D) value noise in [0, 1].
        glyphs: (GLYPHS, 5, 5) 0 or 1, mirror-symmetric signs.
    """

    pattern: Pattern
    cell: float
    palette: Tensor
    direction: Tensor
    warp: float
    offset: Tensor
    noise: Tensor
    glyphs: Tensor

    def to(self, device: torch.device | str) -> Texture:
        names = ("palette", "direction", "offset", "noise", "glyphs")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def draw_texture(random: np.random.Generator) -> Texture:
    """A random texture."""
    direction = random.standard_normal(3)
    grid = (random.random((GLYPHS, GLYPH_SIDE, (GLYPH_SIDE + 1) // 2)) < 0.55).astype(np.float32)
    return Texture(
        pattern=get_args(Pattern)[random.integers(len(get_args(Pattern)))],
        cell=float(np.exp(random.uniform(math.log(0.07), math.log(0.2)))),
        palette=_palette(random),
        direction=torch.tensor(direction / np.linalg.norm(direction), dtype=torch.float32),
        warp=float(random.choice([0.0, 0.0, random.uniform(0.5, 2.5)])),
        offset=torch.tensor(random.uniform(0, 1, 3), dtype=torch.float32),
        noise=_noise_volume(random),
        glyphs=torch.from_numpy(np.concatenate([grid, grid[:, :, -2::-1]], axis=2)),
    )


def _palette(random: np.random.Generator) -> Tensor:
    """Three colours, of which the first two differ clearly in lightness."""
    hue = random.random()
    dark, light = random.uniform(0.15, 0.5), random.uniform(0.75, 1.0)
    spread = random.choice([0.04, 0.15, 0.5])  # one hue, neighbours, or opposites
    colours = []
    for value in (dark, light, random.uniform(0.3, 1.0)):
        saturation = random.uniform(0.0, 0.25) if random.random() < 0.2 else random.uniform(0.35, 0.95)
        colours.append(colorsys.hsv_to_rgb((hue + random.uniform(-spread, spread)) % 1, saturation, value))
    srgb = np.array(colours)[[*random.permutation(2).tolist(), 2]]
    return srgb_to_linear(torch.tensor(srgb, dtype=torch.float32))


def _noise_volume(random: np.random.Generator) -> Tensor:
    """(1, 1, D, D, D): three octaves of value noise, stretched to [0, 1]."""
    size, volume = (NOISE_SIDE,) * 3, torch.zeros(1, 1, *(NOISE_SIDE,) * 3)
    for cells, weight in ((NOISE_CELLS, 0.55), (2 * NOISE_CELLS, 0.3), (4 * NOISE_CELLS, 0.15)):
        values = torch.from_numpy(random.random((1, 1) + (cells + 1,) * 3, dtype=np.float32))
        volume += weight * F.interpolate(values, size, mode="trilinear", align_corners=True)
    return ((volume - 0.25) * 2).clamp(0, 1)


def srgb_to_linear(srgb: Tensor) -> Tensor:
    """IEC 61966-2-1."""
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: Tensor) -> Tensor:
    """IEC 61966-2-1."""
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


def albedo(texture: Texture, points: Tensor, normals: Tensor, canonical: Tensor) -> Tensor:
    """Linear RGB (3, N).

    Args:
        texture: what to evaluate.
        points: (3, N) in the solid's axes, object units, so that patterns are not stretched.
        normals: (3, N) in the same axes.
        canonical: (3, N) in the canonical solid's frame, about [-1, 1], for gradients over the whole solid.
    """
    cells = points / texture.cell + texture.offset[:, None]
    noise = _noise(texture, cells)
    first, second, third = texture.palette[:, :, None]
    if texture.pattern == "gradient":
        along = dot(canonical, texture.direction) * 0.55 + 0.5 + 0.2 * (noise - 0.5)
        upper, lower = (2 * along - 1).clamp(0, 1), (2 * along).clamp(0, 1)
        colour = torch.lerp(torch.lerp(first, third, lower), second, upper)
    else:
        amount, accent = _amounts(texture, cells, normals, noise)
        colour = torch.lerp(torch.lerp(first, second, amount), third, accent)
    return colour * (1 - GRAIN + GRAIN * noise)


def _noise(texture: Texture, cells: Tensor) -> Tensor:
    """(N,) noise at cell coordinates (3, N)."""
    grid = (cells * (2 / NOISE_CELLS)).T.reshape(1, 1, 1, -1, 3)
    return F.grid_sample(texture.noise, grid, padding_mode="reflection", align_corners=True).reshape(-1)


def _amounts(texture: Texture, cells: Tensor, normals: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Share (N,) of the second colour over the first, then of the third over both."""
    zero = torch.zeros_like(noise)
    if texture.pattern == "noise":
        return _step(noise, 0.5, 0.06), _step(noise, 0.75, 0.06)
    if texture.pattern == "checker":
        return cells.floor().sum(0) % 2, zero
    if texture.pattern in ("stripes", "rings"):
        line = torch.hypot(cells[0], cells[1]) if texture.pattern == "rings" else _across(texture, cells)
        wave = (line + texture.warp * (noise - 0.5)) % 1
        return _step((2 * wave - 1).abs(), 0.5, 0.08), _step(wave, 0.88, 0.04)
    u, v = _flat(cells, normals)
    column, row = u.floor(), v.floor()
    u, v = u - column, v - row
    pick = (column * 7 + row * 13).long()
    if texture.pattern == "dots":
        distance = torch.hypot(u - 0.5, v - 0.5)
        inside = 1 - _step(distance, 0.33, 0.04)
        return inside, inside * (pick % 3 == 0)
    margin = 1.0  # of the glyph's own pixels, on each side
    across, down = u * (GLYPH_SIDE + 2 * margin) - margin, v * (GLYPH_SIDE + 2 * margin) - margin
    on = (across >= 0) & (across < GLYPH_SIDE) & (down >= 0) & (down < GLYPH_SIDE)
    last = GLYPH_SIDE - 1
    ink = texture.glyphs[pick % GLYPHS, down.long().clamp(0, last), across.long().clamp(0, last)] * on
    return ink, zero


def _across(texture: Texture, cells: Tensor) -> Tensor:
    return dot(cells, texture.direction)


def _step(x: Tensor, at: float, width: float) -> Tensor:
    return ((x - at) / (2 * width) + 0.5).clamp(0, 1)


def _flat(cells: Tensor, normals: Tensor) -> tuple[Tensor, Tensor]:
    """The two coordinates (N,) across the axis that each normal is nearest to."""
    axis = largest_axis(normals)
    return torch.where(axis == 0, cells[1], cells[0]), torch.where(axis == 2, cells[1], cells[2])
