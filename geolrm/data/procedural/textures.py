"""Procedural textures: a colour at every point of a solid.

In: a texture's drawn parameters and points in its solid's frame. Out: linear RGB. Convention: coordinates are lengths in
units of the texture's cell, so that patterns keep their size whatever the solid's scale; flat patterns (dots, glyphs) are
laid on along the axis that the normal is nearest to; print is, too, or is wrapped around a round solid. Trade: every texture
carries faint noise, and patterns stay coarser than some four pixels at 128 px, so that a small model has something to learn
and not to alias; print is finer, as real print is. Verified by looking, and by tests that each kind varies over a surface and
never leaves [0, 1].
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

from geolrm.data.lighting import srgb_to_linear
from geolrm.data.procedural.spans import dot, largest_axis

Pattern = Literal["noise", "checker", "stripes", "rings", "gradient", "dots", "glyphs"]
NOISE_CELLS = 12  # cells along a side of the noise volume, which is mirrored beyond
NOISE_SIDE = 49
GLYPHS = 24
GLYPH_SIDE = 5
GRAIN = 0.3  # share of the faint noise on every texture
LETTERS = 26
STROKES = 3
LETTER_WIDTH = 0.65  # of its height; a letter stands in a cell one wide and LINE high
ADVANCE, LINE = 0.85, 1.5  # from letter to letter, from line to line, in heights
MARGIN = 0.08  # of a panel's side, left free


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
        lettering: what is printed on top of it.
    """

    pattern: Pattern
    cell: float
    palette: Tensor
    direction: Tensor
    warp: float
    offset: Tensor
    noise: Tensor
    glyphs: Tensor
    lettering: Lettering | None = None

    def to(self, device: torch.device | str) -> Texture:
        names = ("palette", "direction", "offset", "noise", "glyphs")
        moved = {name: getattr(self, name).to(device) for name in names}
        return replace(self, **moved, lettering=self.lettering.to(device) if self.lettering else None)


@dataclass(frozen=True)
class Lettering:
    """Panels in rows, each empty, or with lines of small or of large letters, or with bars.

    Attributes:
        side: width of a panel in object units.
        height: of a panel, of its width.
        lines: of small letters in a panel.
        density: share of the panels that hold something.
        paper: share of those that have a ground of their own.
        weight: half the width of a stroke, of a letter's height.
        inks: (3, 3) linear RGB: ground, ink, a second ink.
        strokes: (LETTERS, STROKES, 4) straight strokes x, y, x, y in [0, LETTER_WIDTH] x [0, 1], y up.
        rings: (LETTERS, 3) x, y, radius of a round stroke; radius 0 for none.
        shift: (3,) two offsets in panels, and a number that tells prints apart.
    """

    side: float
    height: float
    lines: int
    density: float
    paper: float
    weight: float
    inks: Tensor
    strokes: Tensor
    rings: Tensor
    shift: Tensor

    def to(self, device: torch.device | str) -> Lettering:
        names = ("inks", "strokes", "rings", "shift")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def draw_texture(random: np.random.Generator, lettered: float = 0.0) -> Texture:
    """A random texture, with letters on a share `lettered` of them."""
    texture = _draw_plain(random)
    if not lettered or random.random() >= lettered:
        return texture
    if random.random() < 0.5:  # on one colour, as most print is
        texture = replace(texture, palette=texture.palette[:1].expand(3, 3).contiguous())
    return replace(texture, lettering=_draw_lettering(random))


def _draw_plain(random: np.random.Generator) -> Texture:
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


def _draw_lettering(random: np.random.Generator) -> Lettering:
    columns, rows = np.array([0.05, 0.5, 0.95]) * LETTER_WIDTH, np.array([0.0, 0.5, 1.0])
    strokes = np.zeros((LETTERS, STROKES, 4), dtype=np.float32)
    for letter in range(LETTERS):  # a walk over a lattice of 3 x 3, whose steps are strokes
        place = random.integers(3, size=2)
        for stroke in range(STROKES):
            following = random.integers(3, size=2)
            if random.random() < 0.6:  # upright or level
                axis = random.integers(2)
                following[axis] = place[axis]
            strokes[letter, stroke] = columns[place[0]], rows[place[1]], columns[following[0]], rows[following[1]]
            place = following
    radius = np.where(random.random(LETTERS) < 0.5, random.uniform(0.2, 0.3, LETTERS), 0.0)
    centre = 0.5 * LETTER_WIDTH * np.ones(LETTERS), random.choice([0.3, 0.5, 0.7], LETTERS)
    side = float(np.exp(random.uniform(math.log(0.15), math.log(0.6))))
    return Lettering(
        side=side,
        height=float(random.uniform(0.5, 1.2)),
        lines=int(random.integers(3, 7)),
        density=float(random.uniform(0.5, 1.0)),
        paper=float(random.choice([0.0, 0.5, 1.0])),
        weight=float(random.uniform(0.05, 0.11)),
        inks=_palette(random),
        strokes=torch.from_numpy(strokes),
        rings=torch.tensor(np.stack([*centre, radius], axis=1), dtype=torch.float32),
        shift=torch.tensor([*random.random(2), random.integers(1000)], dtype=torch.float32),
    )


def _palette(random: np.random.Generator) -> Tensor:
    """Three colours, of which the first two differ clearly in lightness."""
    hue = random.random()
    dark, light = random.uniform(0.2, 0.6), random.uniform(0.8, 1.0)
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


def albedo(texture: Texture, points: Tensor, normals: Tensor, canonical: Tensor, around: float = 0.0) -> Tensor:
    """Linear RGB (3, N).

    Args:
        texture: what to evaluate.
        points: (3, N) in the solid's axes, object units, so that patterns are not stretched.
        normals: (3, N) in the same axes.
        canonical: (3, N) in the canonical solid's frame, about [-1, 1], for gradients over the whole solid.
        around: half-width of a solid that is round about z, whose sides print is wrapped around; 0 for others.
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
    if texture.lettering is not None:
        colour = _printed(texture.lettering, colour, *_unrolled(points, normals, around))
    return colour * (1 - GRAIN + GRAIN * noise)


def _unrolled(points: Tensor, normals: Tensor, around: float) -> tuple[Tensor, Tensor]:
    """Coordinates (N,) across the surface in object units; upwards is z where it is a side."""
    u, v = _flat(points, normals)
    if not around:
        return u, v
    side = largest_axis(normals) != 2
    turned = torch.atan2(points[1], points[0]) * around
    return torch.where(side, turned, u), torch.where(side, points[2], v)


def _mixed(*numbers: Tensor) -> Tensor:
    """Whole numbers (N,) to a number in [0, 1) that looks random."""
    mixed = torch.zeros_like(numbers[0], dtype=torch.long)
    for factor, number in zip((73856093, 19349663, 83492791, 49979687, 67867979), numbers, strict=False):
        mixed = mixed ^ (number.long() * factor)
    mixed = (mixed ^ (mixed >> 13)) * 1274126177
    return ((mixed ^ (mixed >> 16)) % 65536).to(numbers[0].dtype) / 65536


def _printed(lettering: Lettering, colour: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Colour (3, N) with print at surface coordinates (N,) in object units."""
    u, v = u / lettering.side + lettering.shift[0], v / (lettering.side * lettering.height) + lettering.shift[1]
    column, row = u.floor(), v.floor()
    which = lettering.shift[2].expand_as(u)
    filled = (_mixed(column, row, which) < lettering.density).to(u.dtype)
    kind = _mixed(row, column, which)  # below 0.45 small letters, below 0.8 large ones, bars beyond
    inside = (u - column - MARGIN) / (1 - 2 * MARGIN), (v - row - MARGIN) / (1 - 2 * MARGIN)
    within = torch.stack([*inside, *(1 - x for x in inside)]).amin(0) > 0
    lines = torch.where(kind < 0.45, lettering.lines, max(1, lettering.lines // 3)).to(u.dtype)
    end = lines * LINE / lettering.height
    letters = _letters(lettering, inside[0] * end, inside[1] * lines, end, (column, row, which))
    bars = (_mixed((inside[0] * 24).floor(), column, row, which) < 0.5).to(u.dtype)
    marks = torch.where(kind < 0.8, letters, bars) * within * filled
    ground = filled * (_mixed(which, row, column) < lettering.paper)
    paper, ink, other = lettering.inks[:, :, None]
    ink = torch.where(_mixed(row, which, column) < 0.7, ink, other)
    return torch.lerp(torch.lerp(colour, paper.expand_as(colour), ground), ink, marks)


def _letters(
    lettering: Lettering, across: Tensor, lines: Tensor, end: Tensor, panel: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """Ink (N,) of letters.

    Args:
        across, lines: (N,) in heights of a letter and in lines, from the panel's lower left corner.
        end: (N,) width of the panel in heights of a letter.
        panel: numbers (N,) that tell panels apart.
    """
    line, place = lines.floor(), (across / ADVANCE).floor()
    x, y = across - place * ADVANCE, (lines - line) * LINE - (LINE - 1) / 2
    letter = (_mixed(place, line, *panel) * (LETTERS * 1.2)).long()  # beyond the last: a space
    shown = (letter < LETTERS) & ((place + 1) * ADVANCE < end * (0.5 + 0.5 * _mixed(line, *panel)))
    letter = letter.clamp(max=LETTERS - 1)
    ax, ay, bx, by = lettering.strokes[letter].unbind(-1)  # (N, STROKES)
    dx, dy, px, py = bx - ax, by - ay, x[:, None] - ax, y[:, None] - ay
    along = ((px * dx + py * dy) / (dx * dx + dy * dy).clamp(min=1e-9)).clamp(0, 1)
    straight = torch.hypot(px - along * dx, py - along * dy).amin(1)
    cx, cy, radius = lettering.rings[letter].unbind(-1)
    ring = (torch.hypot(x - cx, y - cy) - radius).abs().masked_fill(radius == 0, 1.0)
    return shown * (1 - _step(torch.minimum(straight, ring), lettering.weight, 0.02))


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
