"""Chamfer distance and F-score against closed forms."""

import math

import numpy as np
import pytest

from geolrm.metrics.geometry import (
    BOX_DIAGONAL,
    POINTS,
    TrueSurface,
    missing_surface,
    sampling_floor,
    surface_scores,
)


def sphere(seed: int, count: int = POINTS, radius: float = 0.5) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(count, 3))
    return radius * points / np.linalg.norm(points, axis=1, keepdims=True)


TRUTH = TrueSurface.from_points(sphere(0), seed=0)


def test_the_truth_itself_scores_one_at_the_sampling_floor():
    scores = surface_scores(sphere(1), TRUTH)
    assert scores["fscore_0.05"] > 0.999
    assert 0.02 < scores["cd_sum"] < 0.035  # two samples of a unit sphere by 16k points: 0.028
    assert scores["cd_mean"] == scores["cd_sum"] / 2


def test_a_larger_sphere_is_as_far_as_its_radius_says():
    scores = surface_scores(sphere(1, radius=0.65), TRUTH)  # 0.3 apart in [-1, 1]^3
    assert math.isclose(scores["cd_sum"], 0.6, rel_tol=0.02)
    assert scores["fscore_0.2"] == 0.0
    assert surface_scores(sphere(1, radius=0.575), TRUTH)["fscore_0.2"] == 1.0  # 0.15 apart


def test_a_shifted_sphere_moves_by_no_more_than_the_shift():
    floor = surface_scores(sphere(1), TRUTH)["cd_sum"]
    shifted = surface_scores(sphere(1) + np.array([0.05, 0, 0]), TRUTH)  # 0.1 apart in [-1, 1]^3
    # the nearest point of a sphere shifted by s lies |s cos| away: the mean over the sphere is s / 2, both ways
    assert math.isclose(shifted["cd_sum"], 0.1, abs_tol=floor)
    assert shifted["cd_sum"] > 2 * floor
    assert shifted["fscore_0.1"] > 0.98 > 0.7 > shifted["fscore_0.05"]


def test_the_truth_s_box_alone_decides_the_map():
    """The unit in which an object is given changes nothing, a prediction of another size or with a floater does."""
    moved = TrueSurface.from_points(sphere(0) * 3 + 7, seed=0)
    expected = surface_scores(sphere(1), TRUTH)
    for name, value in surface_scores(sphere(1) * 3 + 7, moved).items():
        assert math.isclose(value, expected[name], rel_tol=1e-6)
    floater = np.concatenate([sphere(1), [[50.0, 0, 0]]])
    assert surface_scores(floater, TRUTH)["fscore_0.05"] > 0.99
    assert surface_scores(sphere(1, radius=0.4), TRUTH)["fscore_0.05"] == 0.0


def test_half_a_sphere_is_precise_and_incomplete():
    half = sphere(1)
    scores = surface_scores(half[half[:, 2] > 0], TRUTH)
    assert scores["precision_0.05"] == 1.0
    assert math.isclose(scores["recall_0.05"], 0.525, abs_tol=0.02)  # the rim reaches 0.05 below the equator
    assert math.isclose(scores["fscore_0.05"], 2 * 0.525 / 1.525, abs_tol=0.02)


def test_nothing_scores_zero_and_twice_the_diagonal():
    scores = surface_scores(np.zeros((0, 3)), TRUTH)
    assert scores == missing_surface()
    assert scores["cd_sum"] == 2 * BOX_DIAGONAL == pytest.approx(2 * math.dist([-1, -1, -1], [1, 1, 1]))
    assert {v for k, v in scores.items() if not k.startswith("cd")} == {0.0}


def test_a_large_cloud_is_drawn_from_by_its_seed():
    many = sphere(0, 3 * POINTS)
    first, again, other = (TrueSurface.from_points(many, seed=s).points for s in (0, 0, 1))
    assert first.shape == (POINTS, 3)
    assert (first == again).all()
    assert not (first == other).all()


def test_a_truth_without_extent_is_refused():
    with pytest.raises(ValueError, match="single point"):
        TrueSurface.from_points(np.zeros((5, 3)), seed=0)


def test_the_floor_is_that_of_two_draws_and_says_how_large_they_are():
    many = sphere(0, 2 * POINTS)
    floor = sampling_floor(many, TRUTH, seed=0)
    assert floor["points"] == POINTS
    assert math.isclose(floor["cd_sum"], 0.028, abs_tol=0.001)
    half = sampling_floor(sphere(0), TRUTH, seed=0)  # too few for two whole draws: half as many each
    assert half["points"] == POINTS // 2
    assert math.isclose(half["cd_sum"], math.sqrt(2) * floor["cd_sum"], rel_tol=0.03)


def test_other_points_of_the_truth_keep_its_map():
    cap = sphere(1)[sphere(1)[:, 2] > 0.4]  # its own box would blow it up
    other = TRUTH.with_points(cap, seed=0, count=1000)
    assert (other.mapped(cap) == TRUTH.mapped(cap)).all()
    assert len(other.points) == 1000
    assert surface_scores(cap, other)["recall_0.05"] == 1.0
