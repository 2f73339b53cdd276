"""Claims about `geolrm.parity`: what is not the same is told, and nothing counts as the same by being absent."""

import math

import pytest
import torch

from geolrm.parity import Difference, compare, exit_status, table

RECORDED = {"tokens": torch.zeros(2, 3), "logits": torch.ones(4)}


def test_equal_outputs_hold_and_a_planted_difference_does_not():
    same = compare("a.safetensors", RECORDED, RECORDED)
    assert exit_status(same) == 0
    near = compare("a.safetensors", RECORDED | {"logits": torch.ones(4) + 0.9e-4}, RECORDED)
    far = compare("a.safetensors", RECORDED | {"logits": torch.tensor([1, 1, 1, 1.0002])}, RECORDED)
    assert exit_status(near) == 0
    assert exit_status(far) == 1
    assert "logits" in table(far).splitlines()[1]
    assert [line.endswith("TOO FAR") for line in table(far).splitlines()] == [False, True, False]


def test_a_number_that_is_not_finite_never_holds():
    broken = compare("a.safetensors", RECORDED | {"logits": torch.tensor([1, 1, 1, math.nan])}, RECORDED)
    assert exit_status(broken) == 1


@pytest.mark.parametrize("ours", [{"tokens": torch.zeros(2, 3)}, RECORDED | {"extra": torch.ones(1)}])
def test_an_output_that_one_side_lacks_is_an_error(ours):
    with pytest.raises(ValueError, match=r"logits|extra"):
        compare("a.safetensors", ours, RECORDED)


def test_an_output_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match=r"tokens is \(3, 2\), recorded \(2, 3\)"):
        compare("a.safetensors", RECORDED | {"tokens": torch.zeros(3, 2)}, RECORDED)


def test_nothing_compared_is_no_success():
    assert exit_status([]) == 1
    assert exit_status([Difference("a", "b", (1,), 0.0)]) == 0
