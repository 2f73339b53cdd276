"""Intervals hold the true mean about as often as they say, and differences are paired."""

import numpy as np
import pytest

from benchmarks.bootstrap import FEWEST, estimate, interval, paired


def test_an_interval_is_about_four_standard_errors_wide():
    values = np.random.default_rng(0).normal(20, 3, 100)
    low, high = interval(values)
    assert low < values.mean() < high
    assert (high - low) == pytest.approx(2 * 1.96 * values.std() / 10, rel=0.1)


def test_intervals_hold_the_true_mean_as_often_as_they_say():
    random = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        low, high = interval(random.gamma(2.0, 1.0, 50))
        held += low <= 2.0 <= high
    assert 0.88 <= held / 200 <= 0.98  # 95 %, a little less for skewed values


@pytest.mark.parametrize(
    ("values", "bounds"),
    [  # of n objects one has the value n: a resample's mean is how often it was drawn, by the binomial law of n and 1/n
        (
            [0, 0, 3],
            (0, 3),
        ),  # three times in 3.7 % of the resamples, more than the 2.5 % that lie above the upper bound
        ([0, 4, 0, 0], (0, 3)),  # four times in 0.4 %, three or four times in 5.1 %
        ([5, 0, 0, 0, 0], (0, 3)),  # four or five times in 0.7 %, three to five times in 5.8 %
        ([3, 3, 0], (0, 3)),  # the same from above
        ([0, 4, 4, 4], (1, 4)),
        ([5, 5, 5, 5, 0], (2, 5)),
    ],
)
def test_bounds_are_those_of_the_binomial_law(values, bounds):
    assert interval(np.asarray(values, dtype=float)) == bounds


def test_draws_depend_on_the_number_of_objects_alone_whatever_was_asked_before():
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    low, high = interval(values)
    for count in range(3, 40):
        interval(np.arange(count, dtype=float))
    assert interval(values) == (low, high)
    assert interval(100 + values) == pytest.approx((100 + low, 100 + high))
    assert interval(-values) == pytest.approx((-high, -low))


def test_below_three_objects_there_is_no_interval():
    assert FEWEST == 3
    assert estimate([2.0, 4.0]) == {"mean": 3.0, "low": None, "high": None, "n": 2}
    assert estimate([0.0, 0.0, 3.0]) == {"mean": 1.0, "low": 0.0, "high": 3.0, "n": 3}


def test_a_value_that_is_not_finite_leaves_the_mean_without_an_interval():
    found = estimate([1.0, 2.0, float("inf")])
    assert (found["mean"], found["low"], found["high"]) == (float("inf"), None, None)


def test_a_constant_gain_is_certain_though_the_objects_spread():
    spread = {f"object-{i}": float(v) for i, v in enumerate(np.random.default_rng(2).normal(20, 5, 30))}
    gain = paired({key: value + 0.4 for key, value in spread.items()}, spread)
    assert gain["low"] == pytest.approx(0.4)
    assert gain["high"] == pytest.approx(0.4)
    own = estimate(list(spread.values()))
    assert own["high"] - own["low"] > 2


def test_differences_count_the_objects_that_both_have():
    found = paired({"a": 1.0, "b": 2.0, "c": 9.0}, {"b": 1.0, "c": 7.0, "d": 0.0})
    assert (found["n"], found["mean"]) == (2, 1.5)
    assert paired({"a": 1.0}, {"b": 1.0}) is None


def test_a_difference_is_ours_minus_theirs_object_by_object():
    ours, theirs = {"a": 10.0, "b": 30.0, "c": 20.0}, {"c": 20.0, "b": 27.0, "a": 10.0}  # in another order
    assert paired(ours, theirs) == {"mean": 1.0, "low": 0.0, "high": 3.0, "n": 3}
    assert paired(theirs, ours) == {"mean": -1.0, "low": -3.0, "high": 0.0, "n": 3}
