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


def test_below_three_objects_there_is_no_interval():
    assert estimate([1.0] * (FEWEST - 1))["low"] is None
    assert estimate([1.0] * FEWEST)["low"] == 1.0


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
