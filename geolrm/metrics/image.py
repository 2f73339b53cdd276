"""Picture metrics of one object: PSNR, pooled and foreground PSNR, SSIM, mask IoU, median depth error, error maps.

In: rendered and true pictures (V, 3, H, W) in [0, 1], already composited on the same background, their alpha and depth. Out:
one value per view, whose mean over views and then over objects is the caller's; pooled PSNR and depth error are one value an
object. Convention: range 1; foreground = true alpha > 0.5, the same pixels for every method; SSIM with a Gaussian window of
11, sigma 1.5, K 0.01 and 0.03, the mean over channels, without the border that the window does not fit into. Trade: PSNR ends
at `PSNR_MAX`, so that a perfect picture has a finite row; SSIM is written in torch, all views in one call and on any device,
where scikit-image takes 16 calls. Verified by closed forms, by scikit-image's `structural_similarity`, and by planted
half-pixel shifts and flips.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

PSNR_MAX = 100.0  # dB; a mean squared error of 1e-10, below what float32 pictures can show
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_K = (0.01, 0.03)
SURFACE_ALPHA = 0.5  # above it a pixel shows surface
DEPTH_MISSING = math.sqrt(3.0)  # object units, the diagonal of the object cube: the error of a pixel without surface


def check_pictures(images: Tensor, truth: Tensor) -> None:
    """Raise ValueError unless both are (V, 3, H, W) of one shape with finite values in [0, 1] (1e-4 of slack)."""
    if images.shape != truth.shape or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected two stacks (V, 3, H, W) of one shape, got {images.shape} and {truth.shape}")
    for name, pictures in (("images", images), ("truth", truth)):
        low, high = pictures.min().item(), pictures.max().item()
        if not (low >= -1e-4 and high <= 1 + 1e-4):  # written so that NaN fails too
            raise ValueError(f"{name} must lie in [0, 1], seen {low:.4g} to {high:.4g}")


def _decibels(squared_error: Tensor) -> Tensor:
    return -10 * torch.log10(squared_error.clamp(min=10 ** (-PSNR_MAX / 10)))


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """PSNR (V,) in dB of pictures (V, 3, H, W) over the whole frame, range 1, at most `PSNR_MAX`."""
    check_pictures(images, truth)
    return _decibels((images - truth).square().mean(dim=(1, 2, 3)))


def psnr_pooled(images: Tensor, truth: Tensor) -> float:
    """PSNR in dB of the mean squared error over all pixels of all views (V, 3, H, W); never above the mean of `psnr`."""
    check_pictures(images, truth)
    return _decibels((images - truth).square().mean()).item()


def psnr_foreground(images: Tensor, truth: Tensor, foreground: Tensor) -> Tensor:
    """PSNR (V,) in dB over the pixels where `foreground` (V, 1, H, W) bool holds; NaN for a view without any."""
    check_pictures(images, truth)
    squared = (images - truth).square().mean(dim=1, keepdim=True)
    count = foreground.sum(dim=(1, 2, 3))
    error = torch.where(foreground, squared, 0.0).sum(dim=(1, 2, 3)) / count.clamp(min=1)
    return torch.where(count > 0, _decibels(error), torch.nan)


def _window(device: torch.device) -> Tensor:
    offsets = torch.arange(SSIM_WINDOW, device=device, dtype=torch.float32) - SSIM_WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    return weights / weights.sum()


def ssim(images: Tensor, truth: Tensor) -> Tensor:
    """SSIM (V,) of pictures (V, 3, H, W) at least 11 pixels a side (Wang et al. 2004), population covariance."""
    check_pictures(images, truth)
    if min(images.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs {SSIM_WINDOW} pixels a side, got {tuple(images.shape[-2:])}")
    views, _, height, width = images.shape
    x, y = images.float(), truth.float()
    maps = torch.stack([x, y, x * x, y * y, x * y]).reshape(1, -1, height, width)
    # as channels of one picture, each with a window of its own: on a CPU some twenty times as fast as one channel each
    window, count = _window(images.device), maps.shape[1]
    down = F.conv2d(maps, window.reshape(1, 1, -1, 1).expand(count, -1, -1, -1), groups=count)
    smooth = F.conv2d(down, window.reshape(1, 1, 1, -1).expand(count, -1, -1, -1), groups=count)
    mean_x, mean_y, xx, yy, xy = smooth.reshape(5, views, 3, *smooth.shape[-2:])
    c1, c2 = (k**2 for k in SSIM_K)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    covariance, variances = xy - mean_x * mean_y, xx - mean_x**2 + yy - mean_y**2
    return (luminance * (2 * covariance + c2) / (variances + c2)).mean(dim=(1, 2, 3))


def mask_iou(alpha: Tensor, true_alpha: Tensor) -> Tensor:
    """Intersection over union (V,) of the masks alpha > 0.5, both (V, 1, H, W); NaN for a view where both are empty."""
    mask, truth = alpha > SURFACE_ALPHA, true_alpha > SURFACE_ALPHA
    union = (mask | truth).sum(dim=(1, 2, 3))
    return torch.where(union > 0, (mask & truth).sum(dim=(1, 2, 3)) / union, torch.nan)


def depth_error(depth: Tensor, alpha: Tensor, true_depth: Tensor) -> float | None:
    """Median of |depth - true depth| over all pixels of all views that have a true depth; None where none has.

    A pixel where the prediction shows no surface counts `DEPTH_MISSING`, so that leaving things out gains nothing.

    Args:
        depth, true_depth: (V, H, W) planar z in object units, truth 0 = no surface.
        alpha: (V, 1, H, W) of the prediction; its surface is where it is above 0.5.
    """
    if depth.shape != true_depth.shape or alpha[:, 0].shape != depth.shape:
        raise ValueError(f"depth {depth.shape}, alpha {alpha.shape}, true depth {true_depth.shape}")
    error = torch.where(alpha[:, 0] > SURFACE_ALPHA, (depth - true_depth).abs(), DEPTH_MISSING)
    seen = error[true_depth > 0]
    return seen.median().item() if len(seen) else None


def error_map(images: Tensor, truth: Tensor) -> Tensor:
    """(V, 1, H, W) absolute error in [0, 1], the mean over the three channels."""
    check_pictures(images, truth)
    return (images - truth).abs().mean(dim=1, keepdim=True)
