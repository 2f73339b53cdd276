"""Surface metrics of one object: Chamfer distance, precision, recall and F-score.

In: points drawn evenly from the predicted and from the true surface, object frame. Out: one dict of numbers. Convention:
distances are Euclidean, not squared, measured in [-1, 1]^3, into which one uniform scale and one shift from the *truth's*
box alone carry both clouds: no alignment, no box of the prediction's own. `cd_sum` adds the two mean nearest distances
(what GeoLRM and InstantMesh report), `cd_mean` halves that (TripoSR, SF3D). A missing surface scores F 0 and twice the
diagonal of [-1, 1]^3. Trade: points against points, so that two samples of one surface are some 0.03 apart, not 0;
`sampling_floor` says how far. Verified by spheres that are shifted, scaled, empty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

THRESHOLDS = (0.2, 0.1, 0.05)
POINTS = 16_384
BOX_DIAGONAL = 2 * math.sqrt(3.0)

Points = NDArray[np.floating]


def seeded_draw(points: Points, seed: int, count: int) -> Points:
    """`count` of the points (M, 3) without repetition, in their order, or all of them where there are no more."""
    if len(points) <= count:
        return points
    return points[np.sort(np.random.default_rng(seed).choice(len(points), count, replace=False))]


@dataclass(frozen=True)
class TrueSurface:
    """The true surface of one object, prepared once for many predictions.

    Attributes:
        points: (M, 3) in [-1, 1]^3.
        centre: (3,) middle of the truth's box, object units.
        scale: 2 / longest side of the truth's box.
        tree: nearest neighbours among `points`.
    """

    points: Points
    centre: Points
    scale: float
    tree: cKDTree

    @classmethod
    def from_points(cls, points: Points, seed: int, count: int = POINTS) -> TrueSurface:
        """From points (M, 3) of the surface, object units; a seeded draw of `count` where there are more.

        Raises ValueError for a cloud without extent.
        """
        points = np.asarray(points, dtype=np.float64)
        if len(points) == 0 or not np.isfinite(points).all():
            raise ValueError(f"{len(points)} points, expected some and all finite")
        low, high = points.min(axis=0), points.max(axis=0)
        side = float((high - low).max())
        if side <= 0:
            raise ValueError("the true surface is a single point: its box has no side to measure by")
        centre, scale = (low + high) / 2, 2 / side
        mapped = (seeded_draw(points, seed, count) - centre) * scale
        return cls(mapped, centre, scale, cKDTree(mapped))

    def with_points(self, points: Points, seed: int, count: int) -> TrueSurface:
        """Other points (M, 3) of the same object, object units, under the same map; a seeded draw where there are more."""
        mapped = self.mapped(seeded_draw(points, seed, count))
        return TrueSurface(mapped, self.centre, self.scale, cKDTree(mapped))

    def mapped(self, points: Points) -> Points:
        """(N, 3) points of a prediction, object units, under the truth's map into [-1, 1]^3."""
        return (np.asarray(points, dtype=np.float64) - self.centre) * self.scale


def surface_scores(prediction: Points, truth: TrueSurface) -> dict[str, float]:
    """Scores of predicted surface points (N, 3), object units, N may be 0.

    Returns:
        `cd_sum`, `cd_mean`, and `precision_t`, `recall_t`, `fscore_t` for every threshold t, all in [-1, 1]^3.
    """
    if len(prediction) == 0:
        return missing_surface()
    points = truth.mapped(prediction)
    to_truth = truth.tree.query(points)[0]
    to_prediction = cKDTree(points).query(truth.points)[0]
    total = float(to_truth.mean() + to_prediction.mean())
    scores = {"cd_sum": total, "cd_mean": total / 2}
    for threshold in THRESHOLDS:
        precision, recall = float((to_truth < threshold).mean()), float((to_prediction < threshold).mean())
        both = precision + recall
        scores[f"precision_{threshold:g}"], scores[f"recall_{threshold:g}"] = precision, recall
        scores[f"fscore_{threshold:g}"] = 2 * precision * recall / both if both > 0 else 0.0
    return scores


def missing_surface() -> dict[str, float]:
    """What an empty or failed prediction scores: every point of each surface is a whole diagonal away from the other."""
    scores = {"cd_sum": 2 * BOX_DIAGONAL, "cd_mean": BOX_DIAGONAL}
    return scores | {f"{name}_{t:g}": 0.0 for t in THRESHOLDS for name in ("precision", "recall", "fscore")}


def sampling_floor(points: Points, truth: TrueSurface, seed: int, count: int = POINTS) -> dict[str, float]:
    """What the truth scores against itself: two seeded draws of the true points (M, 3), object units, that share none.

    Returns:
        the scores of `surface_scores`, and `points`, how many each draw has: `count`, or M // 2 where there are too few.
    """
    each = min(count, len(points) // 2)
    order = np.random.default_rng([seed, 1]).permutation(len(points))
    other = truth.with_points(points[order[:each]], seed, each)
    return {"points": each, **surface_scores(points[order[each : 2 * each]], other)}
