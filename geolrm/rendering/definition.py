"""What rendering means, in plain PyTorch: every Gaussian against every pixel; and the same by tiles.

In: `Gaussians`, `Cameras` (V,), an image size. Out: a `Rendering`, in the dtype of the inputs (float64 for finite
differences), with autograd's gradients. The constants and their order are gsplat 1.5.3's "classic" mode. Trade: memory and
time grow with N x H x W; `render_by_tiles` is the ordinary PyTorch remedy, the yardstick of `benchmarks/speed/rasterizer.py`.
Verified by closed forms and finite differences; `cpu.py` and gsplat are verified against it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geolrm.cameras import Cameras
from geolrm.gaussians import Gaussians
from geolrm.rendering import Rendering

BLUR, NEAR, FAR = 0.3, 0.01, 1e10
MIN_ALPHA, MAX_ALPHA, MIN_TRANSMITTANCE = 1 / 255, 0.999, 1e-4


def rotation_matrices(quaternions: Tensor) -> Tensor:
    """(N, 3, 3) of unit quaternions (N, 4) wxyz."""
    w, x, y, z = quaternions.unbind(-1)
    rows = (
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack(rows, dim=-1).reshape(-1, 3, 3)


def project(gaussians: Gaussians, camera: Cameras, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """EWA projection (Zwicker et al. 2002) into one camera of shape ().

    Returns:
        means (N, 2) in pixels, covariances (N, 2, 2) in pixels^2 with the blur, depths (N,), and which to draw (N,) bool.
    """
    pose, intrinsics = camera.world_to_camera, camera.pixel_intrinsics(height, width)
    focal, centre = intrinsics.diagonal()[:2], intrinsics[:2, 2]
    size = centre.new_tensor([width, height])
    points = gaussians.means @ pose[:3, :3].T + pose[:3, 3]
    depths = points[:, 2]
    drawn = (depths >= NEAR) & (depths <= FAR)
    z = torch.where(drawn, depths, torch.ones_like(depths))
    tangents = points[:, :2] / z[:, None]
    margin = 0.3 * 0.5 * size / focal
    u, v = tangents.clamp(-centre / focal - margin, (size - centre) / focal + margin).unbind(-1)
    zero = torch.zeros_like(u)
    jacobian = torch.stack([focal[0] / z, zero, -focal[0] * u / z, zero, focal[1] / z, -focal[1] * v / z], dim=-1)
    spread = rotation_matrices(gaussians.unit_quaternions) * gaussians.scales[:, None, :]
    axes = jacobian.reshape(-1, 2, 3) @ pose[:3, :3] @ spread
    covariances = axes @ axes.transpose(-1, -2) + BLUR * torch.eye(2, dtype=axes.dtype, device=axes.device)
    return tangents * focal + centre, covariances, depths, drawn


def composite(
    pixels: Tensor, means: Tensor, covariances: Tensor, values: Tensor, opacities: Tensor
) -> tuple[Tensor, Tensor]:
    """Blend Gaussians that are sorted front to back.

    Args:
        pixels: (P, 2) pixel centres x, y.
        means, covariances: (N, 2), (N, 2, 2).
        values: (N, K) what to blend, colours and depth for instance.
        opacities: (N,).

    Returns:
        (P, K) blended values without background, and (P,) alpha.
    """
    offsets = means[:, None] - pixels
    sigma = 0.5 * torch.einsum("npi,nij,npj->np", offsets, torch.linalg.inv(covariances), offsets)
    alpha = (opacities[:, None] * torch.exp(-sigma)).clamp(max=MAX_ALPHA)
    alpha = torch.where(alpha >= MIN_ALPHA, alpha, torch.zeros_like(alpha))
    alpha = torch.where(torch.cumprod(1 - alpha, dim=0) > MIN_TRANSMITTANCE, alpha, torch.zeros_like(alpha))
    after = torch.cumprod(1 - alpha, dim=0)
    before = torch.cat([torch.ones_like(after[:1]), after[:-1]])
    weights = alpha * before
    return weights.T @ values, weights.sum(dim=0)


def _pixel_centres(top: int, left: int, height: int, width: int, like: Tensor) -> Tensor:
    y = torch.arange(top, top + height, dtype=like.dtype, device=like.device) + 0.5
    x = torch.arange(left, left + width, dtype=like.dtype, device=like.device) + 0.5
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)


def _rendering(pictures: list[Tensor], background: float) -> Rendering:
    """From planes (5, H, W) per view: red, green, blue, summed depth, alpha."""
    planes = torch.stack(pictures)
    alpha = planes[:, 4:5]
    colour = planes[:, :3] + (1 - alpha) * background
    return Rendering(colour, alpha, planes[:, 3] / alpha[:, 0].clamp(min=1e-10))


def render(gaussians: Gaussians, cameras: Cameras, height: int, width: int, background: float = 1.0) -> Rendering:
    """The definition: project, sort by depth, blend; memory N x H x W floats per view and step."""
    return render_by_tiles(gaussians, cameras, height, width, background, tile=max(height, width))


def render_by_tiles(
    gaussians: Gaussians, cameras: Cameras, height: int, width: int, background: float = 1.0, tile: int = 16
) -> Rendering:
    """The same numbers, each tile of the image blending only the Gaussians whose support may reach it."""
    pictures = []
    for camera in (cameras[i] for i in range(len(cameras))):
        means, covariances, depths, drawn = project(gaussians, camera, height, width)
        order = torch.argsort(depths, stable=True)
        order = order[drawn[order] & (gaussians.opacities[order] >= MIN_ALPHA)]
        means, covariances, opacities = means[order], covariances[order], gaussians.opacities[order]
        values = torch.cat([gaussians.colours[order], depths[order, None]], dim=-1)
        reach = torch.sqrt(2 * torch.log(opacities / MIN_ALPHA))
        extents = (reach[:, None] * covariances.diagonal(dim1=-2, dim2=-1).sqrt() * 1.001 + 0.01).detach()
        low, high = (means - extents).detach(), (means + extents).detach()
        rows = []
        for top in range(0, height, tile):
            row = []
            for left in range(0, width, tile):
                h, w = min(tile, height - top), min(tile, width - left)
                near = (high >= low.new_tensor([left, top])) & (low <= low.new_tensor([left + w, top + h]))
                picked = near.all(dim=-1).nonzero()[:, 0]
                pixels = _pixel_centres(top, left, h, w, means)
                blended, alpha = composite(
                    pixels, means[picked], covariances[picked], values[picked], opacities[picked]
                )
                row.append(torch.cat([blended, alpha[:, None]], dim=-1).T.reshape(5, h, w))
            rows.append(torch.cat(row, dim=-1))
        pictures.append(torch.cat(rows, dim=-2))
    return _rendering(pictures, background)
