"""Pictures of Gaussians: colour, alpha and depth of V views, differentiable in the Gaussians.

In: `Gaussians`, `Cameras` (V,), an image size. Out: a `Rendering`. Convention: gsplat's "classic" mode on either backend
(2D blur 0.3, weights under 1/255 skipped, depth is the expected camera z divided by alpha), colour over a background,
white by default. The Gaussians' device decides the backend: gsplat on CUDA, our numba rasterizer on the CPU. Trade: no
gradient to cameras or background. Verified against `definition.py`, closed forms, and the two backends against each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geolrm.cameras import Cameras
from geolrm.failures import BadInput
from geolrm.gaussians import Gaussians

__all__ = ["Rendering", "render"]


@dataclass(frozen=True)
class Rendering:
    """Pictures of V views.

    Attributes:
        colour: (V, 3, H, W) sRGB over the background.
        alpha: (V, 1, H, W) in [0, 1).
        depth: (V, H, W) planar z in object units, expected depth divided by alpha; 0 where alpha is 0.
    """

    colour: Tensor
    alpha: Tensor
    depth: Tensor


def render(
    gaussians: Gaussians, cameras: Cameras, height: int, width: int, background: float | Tensor = 1.0
) -> Rendering:
    """Render N Gaussians (N may be 0: the background) into cameras (V,) of height x width pixels.

    Args:
        background: one value, (3,) or (V, 3) sRGB.

    Raises:
        BadInput: `gaussians_not_finite` when a Gaussian holds NaN or infinity.
        ValueError: cameras not of shape (V,), or an image without pixels.
    """
    if len(cameras.shape) != 1 or height < 1 or width < 1:
        raise ValueError(
            f"expected cameras (V,) and an image, got cameras {cameras.shape} and {height} x {width} pixels"
        )
    if not torch.stack([torch.isfinite(t).all() for t in gaussians.tensors]).all():  # a GPU is asked once
        detail = "means, colours, opacities, scales or quaternions hold NaN or infinity"
        raise BadInput("gaussians_not_finite", "render", detail, "look at the run's losses: training may have diverged")
    device = gaussians.means.device
    cameras = cameras.to(device)
    colour, alpha, depth = _rasterize(gaussians, cameras, height, width)
    behind = torch.as_tensor(background, dtype=torch.float32, device=device).expand(len(cameras), 3)[..., None, None]
    return Rendering(colour + (1 - alpha) * behind, alpha, depth)


def _rasterize(gaussians: Gaussians, cameras: Cameras, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Colour (V, 3, H, W) without background, alpha (V, 1, H, W), depth (V, H, W), from the device's backend."""
    inputs = (
        *(gaussians.means, gaussians.colours, gaussians.opacities, gaussians.scales, gaussians.unit_quaternions),
        *(cameras.world_to_camera, cameras.pixel_intrinsics(height, width), height, width),
    )
    if gaussians.means.device.type == "cuda" and len(gaussians):
        from geolrm.rendering import cuda

        return cuda.rasterize(*inputs)
    if gaussians.means.device.type != "cpu" and len(gaussians):
        raise ValueError(f"no rasterizer for {gaussians.means.device}: move the Gaussians to the CPU or to CUDA")
    if not len(gaussians) or not len(cameras):  # nothing, but differentiable
        nothing = sum(t.sum() for t in gaussians.tensors) * gaussians.means.new_zeros(len(cameras), 5, height, width)
        return nothing[:, :3], nothing[:, 3:4], nothing[:, 4]
    from geolrm.rendering import cpu  # numba takes half a second to import

    planes = cpu.rasterize(*inputs)
    alpha = 1 - planes[:, 4:5]
    return planes[:, :3], alpha, planes[:, 3] / alpha[:, 0].clamp(min=1e-10)
