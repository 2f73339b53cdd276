"""3D rotary position embedding."""

import pytest
import torch

from geolrm.model import rope


def scores(points: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    turned = rope.rotations(points, queries.shape[-1])
    return rope.rotate(queries, *turned) @ rope.rotate(keys, *turned).transpose(-1, -2)


@pytest.fixture
def heads() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(2, 3, 5, 24, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw(), draw()


def test_scores_depend_on_relative_positions_only(heads) -> None:
    queries, keys = heads
    points = torch.rand(2, 5, 3) - 0.5
    here = scores(points, queries, keys)
    torch.testing.assert_close(
        scores(points + torch.tensor([0.25, -0.125, 0.5]), queries, keys), here, atol=2e-4, rtol=0
    )
    moved = points.clone()
    moved[:, 0] += torch.tensor([0.0, 0.0, 0.1])
    assert (scores(moved, queries, keys) - here)[:, :, 0, 1:].abs().max() > 0.1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_axis_turns_its_own_third_of_the_channels_only(axis: int) -> None:
    point = torch.zeros(1, 1, 3)
    point[..., axis] = 0.3
    ones = torch.ones(1, 1, 1, 24)
    changed = (rope.rotate(ones, *rope.rotations(point, 24)) != ones).flatten()
    assert changed.view(3, 8).all(dim=1).tolist() == [axis == third for third in range(3)]


def test_angles_follow_the_papers_frequencies() -> None:
    """One fine voxel along y turns pair k of the second third, channels 8 + k and 12 + k, by 10000^(-k / 4) radians."""
    cosines, sines = rope.rotations(torch.tensor([[[0.3, 1 / 128, -0.2]]]), 24)
    start = torch.zeros(1, 1, 1, 24)
    start[..., 9] = 1.0
    turned = rope.rotate(start, cosines, sines).flatten()
    angle = torch.tensor(10000.0 ** (-1 / 4))
    torch.testing.assert_close(turned[[9, 13]], torch.stack([angle.cos(), angle.sin()]))
    assert turned.count_nonzero() == 2


def test_lengths_are_kept_and_the_type_too() -> None:
    heads = torch.randn(1, 2, 7, 12)
    turned = rope.rotations(torch.rand(1, 7, 3) - 0.5, 12)
    torch.testing.assert_close(rope.rotate(heads, *turned).norm(dim=-1), heads.norm(dim=-1))
    assert rope.rotate(heads.bfloat16(), *turned).dtype == torch.bfloat16


def test_a_head_width_that_three_axes_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 6"):
        rope.rotations(torch.zeros(1, 1, 3), 16)
