"""3D rotary position embedding: attention scores that know how far apart two tokens are (paper, section 3.2).

In: queries or keys and the tokens' positions. Out: the same, rotated. Convention: a head's channels are three consecutive
thirds for x, y, z; in each third of 2 Q channels, channel k and channel Q + k form a pair turned by position * 10000^(-k / Q);
positions are real numbers in units of 1/128 of the object cube's side, the paper's fine grid, whatever grid the anchor points
come from, so that a checkpoint means the same on another grid. Trade: angles and rotation are computed in float32, also where
queries and keys are bfloat16. Verified by shifting all positions, which must leave every score as it was.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

POSITION_UNITS = 128  # along each side of the object cube
BASE = 10000.0


def real_positions(points: Tensor) -> Tensor:
    """Positions (..., 3) of points (..., 3) in object units."""
    return points.float() * POSITION_UNITS


def index_positions(points: Tensor, grid: int, scale: float) -> Tensor:
    """The public code's positions: indices of the grid points below, of `grid` from -scale to scale, in its float32 order."""
    return ((points.float() / scale + 1) * (grid - 1) / 2).trunc()


def rotations(
    points: Tensor, head_width: int, positions: Callable[[Tensor], Tensor] = real_positions
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (..., N, 3, head_width / 6) of the angles of points (..., N, 3) in object units, float32."""
    if head_width % 6:
        raise ValueError(f"3D RoPE needs a head width that is a multiple of 6, got {head_width}")
    pairs = head_width // 6
    frequencies = BASE ** (-torch.arange(pairs, device=points.device, dtype=torch.float32) / pairs)
    angles = positions(points)[..., None] * frequencies
    return angles.cos(), angles.sin()


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate queries or keys (B, heads, N, head_width) by the `rotations` (B, N, 3, head_width / 6) of their points."""
    cosines, sines = cosines[:, None], sines[:, None]  # the same for every head
    first, second = heads.float().unflatten(-1, (3, 2, -1)).unbind(-2)
    turned = torch.stack([first * cosines - second * sines, second * cosines + first * sines], dim=-2)
    return turned.flatten(-3).to(heads.dtype)
