"""One prediction against the truth of one object.

In: Gaussians or another reconstruction, and an object's test views and true surface. Out: the metrics of a result row.
Convention: truth resized first and composited on white after; the prediction rendered on white at the same size and clamped
to [0, 1]; metrics per view, then the mean over views; geometry by points of the prediction's mesh, that of Gaussians through
the TSDF converter: 16,384 seeded points, and, if asked for, 100,000 and those that the test views see. What is empty, or
failed, is scored as white pictures and a missing surface. Trade: geometry measures Gaussians and mesh converter together;
`depth_error` does without it. Verified by truth as prediction, white, planted shifts and flips (`benchmarks.selftest`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from benchmarks.methods import Prediction
from benchmarks.pictures import mesh_depth
from geolrm.cameras import Cameras
from geolrm.config import Sweep
from geolrm.gaussians import Gaussians
from geolrm.metrics import image
from geolrm.metrics.geometry import (
    POINTS,
    Points,
    TrueSurface,
    missing_surface,
    sampling_floor,
    seeded_draw,
    surface_scores,
)
from geolrm.metrics.perceptual import PerceptualMetrics
from geolrm.rendering import Rendering, render
from geolrm.views import Views

if TYPE_CHECKING:
    from geolrm.meshing import Mesh

BACKGROUND = 1.0
DENSE_POINTS = 100_000
VISIBLE_POINTS = 100_000
DENSE, VISIBLE = "_100k", "_visible"  # what the names of these geometry metrics end in
Scores = dict[str, float | None]


def _mean(values: Tensor | None) -> float | None:
    """Mean over views (V,), those without a value left out."""
    known = None if values is None else values[~values.isnan()]
    return None if known is None or len(known) == 0 else known.mean().item()


def picture_scores(rendering: Rendering, truth: Views, perceptual: PerceptualMetrics) -> Scores:
    """Picture metrics of a rendering over white, colour in [0, 1], of V views; None for what cannot be measured here."""
    images, expected = rendering.colour, truth.composited(BACKGROUND)
    depth = None if truth.depth is None else image.depth_error(rendering.depth, rendering.alpha, truth.depth)
    return {
        "psnr": _mean(image.psnr(images, expected)),
        "psnr_pooled": image.psnr_pooled(images, expected),
        "psnr_foreground": _mean(image.psnr_foreground(images, expected, truth.foreground)),
        "ssim": _mean(image.ssim(images, expected)),
        **{name: _mean(values) for name, values in perceptual.distances(images, expected).items()},
        "mask_iou": _mean(image.mask_iou(rendering.alpha, truth.alpha)),
        "depth_error": depth,
    }


def depth_points(depth: Tensor, cameras: Cameras) -> Points:
    """(N, 3) surface points, object units, where depth maps (V, H, W) of V cameras have a surface."""
    return cameras.unproject(depth)[depth > 0].double().cpu().numpy()


def ended(scores: dict[str, float], end: str) -> dict[str, float]:
    """Scores under their names followed by `end`."""
    return {f"{name}{end}": value for name, value in scores.items()}


@dataclass
class Scorer:
    """The truth of one object, prepared once for every prediction of it.

    Attributes:
        test_views: (V,) true views at the size of the sweep, on the device of the predictions.
        points: (P, 3) of the true surface, object units; None where the data set has none.
    """

    test_views: Views
    points: Points | None
    settings: Sweep
    perceptual: PerceptualMetrics

    @cached_property
    def truth(self) -> Tensor:
        """(V, 3, H, W) on white."""
        return self.test_views.composited(BACKGROUND)

    @property
    def bytes_held(self) -> int:
        """Of the true pictures, on the device of the predictions."""
        views = self.test_views
        return sum(t.nbytes for t in (views.colour, views.alpha, views.depth, self.truth) if t is not None)

    @cached_property
    def surfaces(self) -> dict[str, TrueSurface]:
        """What a prediction's surface is compared with, by the end of the metrics' names: '', and where the settings and
        the data allow it 100,000 points and the visible ones. Nothing where there is no true surface."""
        if self.points is None:
            return {}
        whole = TrueSurface.from_points(self.points, self.settings.seed)
        surfaces = {"": whole}
        if self.settings.full_geometry and len(self.points) >= DENSE_POINTS:
            surfaces[DENSE] = whole.with_points(self.points, self.settings.seed, DENSE_POINTS)
        if self.settings.full_geometry and not self._visible_gap:
            assert self.test_views.depth is not None
            seen = depth_points(self.test_views.depth, self.cameras)
            surfaces[VISIBLE] = whole.with_points(seen, self.settings.seed, VISIBLE_POINTS)
        return surfaces

    @cached_property
    def floor(self) -> dict[str, float] | None:
        """What the true surface scores against itself, and by how many points; None where there is none."""
        return sampling_floor(self.points, self.surfaces[""], self.settings.seed) if self.points is not None else None

    @property
    def gaps(self) -> list[str]:
        """Why metrics of every prediction of this object are null: missing weights, missing truth."""
        reasons = list(self.perceptual.missing.values())
        if self.test_views.depth is None:
            reasons.append("depth_error: the data set has no true depth of its test views")
        if self.points is None:
            reasons.append("geometry: the data set has no true surface")
        elif self.settings.full_geometry:
            if DENSE not in self.surfaces:
                reasons.append(f"100k: the data set stores {len(self.points)} points of the surface")
            if self._visible_gap:
                reasons.append(f"visible: {self._visible_gap}")
        return reasons

    @cached_property
    def _visible_gap(self) -> str:
        """Why nothing can be measured on the visible surface; empty where it can."""
        from geolrm.data.raycast import Open3DMissing, import_open3d

        if self.test_views.depth is None or not (self.test_views.depth > 0).any():
            return "the data set has no true depth of its test views"
        try:
            import_open3d()
        except Open3DMissing as error:
            return str(error)
        return ""

    @property
    def cameras(self) -> Cameras:
        return self.test_views.cameras

    def rendering(self, prediction: Prediction, cameras: Cameras | None = None) -> Rendering:
        """A prediction at cameras (V,), those of the test views unless others are given, on white, colour (V, 3, H, W) in
        [0, 1]."""
        cameras = self.cameras if cameras is None else cameras.to(self.test_views.colour.device)
        with torch.no_grad():
            if isinstance(prediction, Gaussians):
                seen = render(prediction, cameras, *self.test_views.size, background=BACKGROUND)
            else:
                seen = prediction.render(cameras, *self.test_views.size)
        return Rendering(seen.colour.clamp(0, 1), seen.alpha, seen.depth)

    def score_pictures(self, rendering: Rendering) -> Scores:
        """Picture metrics of a rendering at the test cameras."""
        return picture_scores(rendering, self.test_views, self.perceptual)

    def mesh(self, prediction: Prediction) -> Mesh | None:
        """The prediction's surface; None where its method claims none."""
        if not isinstance(prediction, Gaussians):
            return None if prediction.mesh is None else prediction.mesh()
        from geolrm.meshing import gaussians_to_mesh  # lazy: scikit-image and trimesh

        mesh = self.settings.mesh
        with torch.no_grad():
            return gaussians_to_mesh(prediction, mesh.resolution, mesh.cameras, mesh.image_size)

    def score_mesh(self, mesh: Mesh) -> dict[str, float]:
        """Geometry metrics of a mesh, none where there is no true surface."""
        scores: dict[str, float] = {}
        for end, surface in self.surfaces.items():
            scores |= ended(surface_scores(self._points_of(mesh, end), surface), end)
        return scores

    def _points_of(self, mesh: Mesh, end: str) -> Points:
        """The points of a mesh to compare, object units: none of a mesh without triangles."""
        if len(mesh.faces) == 0:
            return np.zeros((0, 3))
        if end != VISIBLE:
            points, _ = mesh.sample(DENSE_POINTS if end == DENSE else POINTS, self.settings.seed)
            return points.cpu().numpy()
        seen = depth_points(mesh_depth(mesh, self.cameras, *self.test_views.size), self.cameras.to("cpu"))
        return seeded_draw(seen, self.settings.seed, VISIBLE_POINTS)

    @cached_property
    def nothing(self) -> Scores:
        """Scores of white pictures and no surface."""
        blank = torch.zeros_like(self.test_views.alpha)
        scores = self.score_pictures(Rendering(torch.full_like(self.truth, BACKGROUND), blank, blank[:, 0]))
        for end in self.surfaces:
            scores |= ended(missing_surface(), end)
        return scores
