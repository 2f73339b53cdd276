"""3D Gaussians fitted to the input pictures of each object: what a user would pick instead of a network.

In: posed pictures with masks. Out: Gaussians optimised through the renderer. Convention: they start on the visual hull's
surface; each step renders one input view, in turn over shuffled rounds, on a background of a random colour, against the
picture on the same one; loss, Adam and learning rates are those of 3DGS (Kerbl et al. 2023), on an object of radius 1.
Trade: their number stays as it is, without 3DGS's splitting and pruning, since the hull is dense already; few views leave
the rest of the object to the start. Verified by pictures that get nearer to views that were not given.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from benchmarks.methods import Context, Method, Spec
from benchmarks.methods.visual_hull import RESOLUTION, visual_hull
from benchmarks.stages import stage
from geolrm.gaussians import Gaussians
from geolrm.metrics.image import ssim
from geolrm.rendering import render
from geolrm.views import Views

STEPS = 1000
FINEST = 128  # hull voxels a side
LEARNING_RATES = (1.6e-4, 2.5e-3, 5e-2, 5e-3, 1e-3)  # of means, colours, opacities, scales, quaternions
LAST_MEANS = 0.01  # of the means' learning rate, at the last step; it falls exponentially
DSSIM = 0.2  # share of structure in the loss

SPEC = Spec(
    what=f"Gaussians of the visual hull, each object fitted for {STEPS} steps of one view through the renderer",
    inputs="any number of posed pictures with masks, at their own size",
    cameras="exact, OpenCV camera-to-world, object frame",
    licence="Apache-2.0; gsplat, used on CUDA, is Apache-2.0 too",
    weights="none: it is fitted anew to every object, and the latency counts that",
)


def picture_loss(image: Tensor, truth: Tensor) -> Tensor:
    """0.8 L1 + 0.2 (1 - SSIM) of pictures (V, 3, H, W)."""
    structure = ssim(image.clamp(0, 1), truth).mean()
    return (1 - DSSIM) * (image - truth).abs().mean() + DSSIM * (1 - structure)


def fit(start: Gaussians, views: Views, steps: int) -> Gaussians:
    """Gaussians after that many steps of one view each; a pure function of its arguments."""
    tensors = [tensor.detach().clone().requires_grad_() for tensor in start.tensors]
    groups = [{"params": [t], "lr": rate} for t, rate in zip(tensors, LEARNING_RATES, strict=True)]
    optimiser = torch.optim.Adam(groups, eps=1e-15)
    draw = random.Random(f"{views.key}/{len(views)}")
    order: list[int] = []
    with torch.enable_grad():
        for step in range(steps):
            order = order or draw.sample(range(len(views)), len(views))
            view = views[[order.pop()]]
            background = torch.tensor([draw.random() for _ in range(3)], device=view.colour.device)
            groups[0]["lr"] = LEARNING_RATES[0] * LAST_MEANS ** (step / steps)
            image = render(Gaussians(*tensors), view.cameras, *view.size, background=background).colour
            loss = picture_loss(image, view.composited(background))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return Gaussians(*(tensor.detach() for tensor in tensors))


def load(context: Context) -> Method:
    """Never fails."""

    def reconstruct(views: Views) -> Gaussians:
        with stage("hull"):
            hull = visual_hull(views, max(RESOLUTION, min(FINEST, views.size[0] // 2)))
        with stage("fitting"):
            return fit(hull, views, STEPS) if len(hull) else hull

    return Method(reconstruct)
