"""Volume rendering of InstantMesh's NeRF variants, as published, with its quirks.

In: planes, a decoder, cameras of 25 numbers. Out: colour over white, opacity, distance along the ray. Convention: OpenGL
camera-to-world, the box [-1, 1]^3; random numbers are the caller's, so that a picture is a pure function. Trade: kept as
published are the near and far of rays that miss the box, importance weights spread half an interval early, and the clamp of
distances over the whole call. Verified by every recorded intermediate of the published renderer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.methods.instantmesh.network import DensityDecoder, density

EMPTY = -torch.finfo(torch.float32).max / 3  # raw density outside the box
FLOOR, EVEN = 0.01, 1e-5  # added to the importance weights, before and after the ends are dropped


@dataclass(frozen=True)
class Window:
    """Part of a square picture of `side` pixels a side; the whole of it by default."""

    side: int
    top: int = 0
    left: int = 0
    height: int | None = None
    width: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.height or self.side, self.width or self.side


@dataclass(frozen=True)
class Rays:
    """Rays of N pictures, row by row: origins and unit directions (N, P, 3), ends (N, P, 1) within the box."""

    origins: Tensor
    directions: Tensor
    near: Tensor
    far: Tensor


@dataclass(frozen=True)
class Picture:
    """What rays see: colour (N, P, 3), opacity (N, P, 1), sum of weight times distance (N, P, 1), weights (N, P, S - 1, 1)."""

    colour: Tensor
    opacity: Tensor
    distance: Tensor
    weights: Tensor


def rays_of(cameras: Tensor, window: Window) -> Rays:
    """Rays of cameras (N, 25) through the pixel centres of a window."""
    poses, k = cameras[:, :16].reshape(-1, 4, 4), cameras[:, 16:].reshape(-1, 3, 3)
    height, width = window.size
    rows = (torch.arange(window.top, window.top + height, device=cameras.device) + 0.5) / window.side
    columns = (torch.arange(window.left, window.left + width, device=cameras.device) + 0.5) / window.side
    v, u = (grid.flatten() for grid in torch.meshgrid(rows, columns, indexing="ij"))
    fx, skew, cx, fy, cy = (k[:, i, j, None] for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2)))
    x = (u - cx + cy * skew / fy - skew * v / fy) / fx
    y = (v - cy) / fy
    in_camera = torch.stack([x, -y, -torch.ones_like(x)], dim=-1)
    directions = torch.nn.functional.normalize(in_camera @ poses[:, :3, :3].mT, dim=-1)
    origins = poses[:, None, :3, 3].expand_as(directions)
    near, far = box_ends(origins, directions)
    return Rays(origins, directions, near, far)


def box_ends(origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (..., 1) at which lines enter and leave the box, behind the origin too.

    Lines that miss it get the smallest and the largest near of all that hit, -1 and -2 if none does.
    """
    low, high = ((side - origins) / directions for side in (-1, 1))
    near = torch.minimum(low, high).amax(dim=-1, keepdim=True)
    far = torch.maximum(low, high).amin(dim=-1, keepdim=True)
    hits = far > near
    if not hits.any():
        return torch.full_like(near, -1), torch.full_like(far, -2)
    return torch.where(hits, near, near[hits].min()), torch.where(hits, far, near[hits].max())


def coarse_samples(rays: Rays, jitter: Tensor) -> Tensor:
    """Even distances (N, P, S, 1), each moved by jitter (N, P, S, 1) in [0, 1) of a step."""
    count = jitter.shape[-2]
    steps = torch.linspace(0, 1, count, device=jitter.device)[:, None]
    length = (rays.far - rays.near)[..., None, :]
    return rays.near[..., None, :] + length * steps + jitter * length / (count - 1)


def fine_samples(distances: Tensor, weights: Tensor, uniform: Tensor) -> Tensor:
    """Distances (N, P, K, 1), not sorted, drawn where the coarse weights (N, P, S - 1, 1) are, by uniform (N, P, K) in [0, 1)."""
    t, w = distances[..., 0], weights[..., 0]
    padded = torch.nn.functional.pad(w, (1, 1), value=-torch.inf)
    larger = torch.maximum(padded[..., :-1], padded[..., 1:])
    smooth = (larger[..., :-1] + larger[..., 1:]) / 2 + FLOOR
    share = smooth[..., 1:-1] + EVEN
    cumulative = torch.cumsum(share / share.sum(dim=-1, keepdim=True), dim=-1)
    cumulative = torch.nn.functional.pad(cumulative, (1, 0))
    bins = (t[..., :-1] + t[..., 1:]) / 2
    above = torch.searchsorted(cumulative, uniform.contiguous(), right=True)
    low, high = (above - 1).clamp(min=0), above.clamp(max=share.shape[-1])
    start, end = cumulative.gather(-1, low), cumulative.gather(-1, high)
    width = torch.where(end - start < 1e-5, 1, end - start)
    first, last = bins.gather(-1, low), bins.gather(-1, high)
    return (first + (uniform - start) / width * (last - first))[..., None]


def samples_along(decoder: DensityDecoder, planes: Tensor, rays: Rays, distances: Tensor) -> tuple[Tensor, Tensor]:
    """Raw density (N, P, S, 1) and colour (N, P, S, 3) at distances (N, P, S, 1); nothing outside the box.

    Planes (B, 3, C, S, S) serve N / B consecutive pictures each.
    """
    points = rays.origins[..., None, :] + distances * rays.directions[..., None, :]
    raw, colour = decoder(planes, points.reshape(len(planes), -1, 3))
    outside = (points.abs() > 1).any(dim=-1, keepdim=True)
    raw, colour = raw.reshape(distances.shape), colour.reshape(points.shape)
    return raw.masked_fill(outside, EMPTY), colour.masked_fill(outside, 0)


def composite(raw: Tensor, colour: Tensor, distances: Tensor) -> Picture:
    """Blend sorted samples (N, P, S, .): an interval has the mean colour, and the density of the mean raw density."""
    delta = distances[..., 1:, :] - distances[..., :-1, :]
    middle = (distances[..., 1:, :] + distances[..., :-1, :]) / 2
    mean_colour = (colour[..., 1:, :] + colour[..., :-1, :]) / 2
    alpha = 1 - torch.exp(-density((raw[..., 1:, :] + raw[..., :-1, :]) / 2) * delta)
    passed = torch.cumprod(torch.cat([torch.ones_like(alpha[..., :1, :]), 1 - alpha + 1e-10], dim=-2), dim=-2)
    weights = alpha * passed[..., :-1, :]
    opacity = weights.sum(dim=-2)
    seen = (weights * mean_colour).sum(dim=-2) + 1 - opacity
    return Picture(seen, opacity, (weights * middle).sum(dim=-2), weights)


def render(
    decoder: DensityDecoder, planes: Tensor, rays: Rays, jitter: Tensor, uniform: Tensor
) -> tuple[Picture, dict[str, Tensor]]:
    """Coarse samples, fine samples where the coarse ones weigh, both blended; the picture, and all distances by name.

    Args:
        jitter: (N, P, S, 1) in [0, 1), of the coarse samples; 0.5 throughout for their middles.
        uniform: (N, P, K) in [0, 1), of the fine ones.
    """
    coarse = coarse_samples(rays, jitter)
    raw, colour = samples_along(decoder, planes, rays, coarse)
    weights = composite(raw, colour, coarse).weights
    fine = fine_samples(coarse, weights, uniform)
    raw_fine, colour_fine = samples_along(decoder, planes, rays, fine)
    distances, order = torch.sort(torch.cat([coarse, fine], dim=-2), dim=-2)
    raw = torch.cat([raw, raw_fine], dim=-2).gather(-2, order)
    colour = torch.cat([colour, colour_fine], dim=-2).gather(-2, order.expand(*order.shape[:-1], 3))
    kept = {"coarse": coarse, "fine": fine, "all": distances, "weights": weights}
    return composite(raw, colour, distances), kept
