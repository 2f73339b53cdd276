"""One prediction against the truth of one object.

In: Gaussians, and an object's test views and true surface. Out: the metrics of a result row. Convention: truth resized first
and composited on white after; the prediction rendered on white at the same size and clamped to [0, 1]; metrics per view, then
the mean over views; geometry through the TSDF mesh of the prediction, 16,384 seeded points. What is empty, or failed, is
scored as white pictures and a missing surface. Trade: geometry measures Gaussians and mesh converter together. Verified by
truth as prediction, white, planted shifts and flips.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from geolrm.cameras import Cameras
from geolrm.config import Sweep
from geolrm.gaussians import Gaussians
from geolrm.metrics import image
from geolrm.metrics.geometry import POINTS, TrueSurface, missing_surface, surface_scores
from geolrm.metrics.perceptual import PerceptualMetrics
from geolrm.rendering import render
from geolrm.views import Views

if TYPE_CHECKING:
    from geolrm.meshing import Mesh

BACKGROUND = 1.0


def picture_scores(
    images: Tensor, truth: Tensor, foreground: Tensor, perceptual: PerceptualMetrics
) -> dict[str, float | None]:
    """Picture metrics, means over views, of pictures (V, 3, H, W); None for what cannot be measured here."""
    in_front = image.psnr_foreground(images, truth, foreground)
    values: dict[str, Tensor | None] = {
        "psnr": image.psnr(images, truth),
        "psnr_foreground": in_front[~in_front.isnan()],
        "ssim": image.ssim(images, truth),
        **perceptual.distances(images, truth),
    }
    return {name: None if value is None or len(value) == 0 else value.mean().item() for name, value in values.items()}


@dataclass
class Scorer:
    """The truth of one object, prepared once for every prediction of it.

    Attributes:
        test_views: (V,) true views at the size of the sweep, on the device of the predictions.
        surface: true surface, None where the data set has none.
    """

    test_views: Views
    surface: TrueSurface | None
    settings: Sweep
    perceptual: PerceptualMetrics

    @cached_property
    def truth(self) -> Tensor:
        """(V, 3, H, W) on white."""
        return self.test_views.composited(BACKGROUND)

    @property
    def cameras(self) -> Cameras:
        return self.test_views.cameras

    def pictures(self, gaussians: Gaussians) -> Tensor:
        """(V, 3, H, W) renders of a prediction at the test cameras, on white, in [0, 1]."""
        with torch.no_grad():
            return render(gaussians, self.cameras, *self.test_views.size, background=BACKGROUND).colour.clamp(0, 1)

    def score_pictures(self, images: Tensor) -> dict[str, float | None]:
        """Picture metrics of renders (V, 3, H, W)."""
        return picture_scores(images, self.truth, self.test_views.foreground, self.perceptual)

    def mesh(self, gaussians: Gaussians) -> Mesh:
        """The prediction's surface."""
        from geolrm.meshing import gaussians_to_mesh  # lazy: scikit-image and trimesh

        mesh = self.settings.mesh
        with torch.no_grad():
            return gaussians_to_mesh(gaussians, mesh.resolution, mesh.cameras, mesh.image_size)

    def score_mesh(self, mesh: Mesh) -> dict[str, float]:
        """Geometry metrics of a mesh, none where there is no true surface."""
        if self.surface is None:
            return {}
        if len(mesh.faces) == 0:
            return missing_surface()
        points, _ = mesh.sample(POINTS, self.settings.seed)
        return surface_scores(torch.as_tensor(points).cpu().numpy(), self.surface)

    @cached_property
    def nothing(self) -> dict[str, float | None]:
        """Scores of white pictures and no surface."""
        scores = self.score_pictures(torch.full_like(self.truth, BACKGROUND))
        return scores | (missing_surface() if self.surface is not None else {})
