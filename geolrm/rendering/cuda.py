"""Gaussian splatting on CUDA: gsplat 1.5.3, asked for the numbers that `cpu.py` gives.

In: activated Gaussians, world-to-camera poses, pixel intrinsics, all on one CUDA device. Out: colour without background,
alpha, expected depth. Trade: gsplat compiles its kernels on first use (about a minute, once per machine) and adds
gradients by atomics, so that values repeat to the bit and gradients only to rounding. Verified by the GPU tests in
`tests/rendering`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

INSTALL = "pip install 'geolrm[gpu]'"


def load_gsplat() -> Any:
    """gsplat's `rasterization`. Raises ImportError with the command that adds it; never imported where CUDA is absent."""
    if not torch.cuda.is_available():
        raise RuntimeError("gsplat needs a CUDA device, and none is available: render on the CPU instead")
    try:
        from gsplat import rasterization
    except ImportError as error:
        raise ImportError(f"rendering on CUDA needs gsplat, which is not installed: {INSTALL}") from error
    return rasterization


def rasterize(
    means: Tensor,
    colours: Tensor,
    opacities: Tensor,
    scales: Tensor,
    quaternions: Tensor,
    world_to_camera: Tensor,
    pixel_intrinsics: Tensor,
    height: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments as `geolrm.rendering.cpu.rasterize`.

    Returns:
        colour (V, 3, H, W) without background, alpha (V, 1, H, W), depth (V, H, W) already divided by alpha.
    """
    rasterization = load_gsplat()
    image, alpha, _ = rasterization(
        means.float().contiguous(),
        quaternions.float().contiguous(),
        scales.float().contiguous(),
        opacities.float().contiguous(),
        colours.float().contiguous(),
        world_to_camera.float().contiguous(),
        pixel_intrinsics.float().contiguous(),
        width,
        height,
        near_plane=0.01,
        far_plane=1e10,
        eps2d=0.3,
        render_mode="RGB+ED",
        rasterize_mode="classic",
        packed=False,
    )
    image, alpha = image.movedim(-1, 1), alpha.movedim(-1, 1)
    return image[:, :3], alpha, image[:, 3]
