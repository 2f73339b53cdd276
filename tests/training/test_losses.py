"""Losses against closed forms."""

import math

import pytest
import torch

from geolrm.cameras import orbit
from geolrm.rendering import Rendering
from geolrm.training.losses import edge_aware_depth_loss, occupancy_losses, rendering_losses
from geolrm.views import Views


@pytest.fixture
def truth() -> torch.Tensor:
    return torch.rand(2, 8, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.1


def test_a_perfect_occupancy_costs_nothing(truth):
    for name, value in occupancy_losses(torch.where(truth, 50.0, -50.0), truth).items():
        assert value.item() == pytest.approx(0, abs=1e-3), name


def test_an_undecided_occupancy_costs_what_the_closed_form_says(truth):
    share = truth.float().mean().item()
    losses = occupancy_losses(torch.zeros(truth.shape), truth)
    assert losses["bce"].item() == pytest.approx(math.log(2), rel=1e-5)
    occupied = -math.log(share) - 2 * math.log(0.5)  # precision = share, recall = specificity = 1/2
    free = -math.log(1 - share) - 2 * math.log(0.5)
    assert losses["geometric"].item() == pytest.approx(occupied, rel=1e-3)
    assert losses["semantic"].item() == pytest.approx((occupied + free) / 2, rel=1e-3)


def test_predicting_nothing_stays_finite_and_is_pulled_towards_the_truth(truth):
    logits = torch.full(truth.shape, -30.0, requires_grad=True)
    total = torch.stack(list(occupancy_losses(logits, truth).values())).sum()
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[truth] < 0).all()


def test_depth_counts_only_where_the_truth_has_a_surface():
    depth, target = torch.full((1, 4, 4), 2.0), torch.zeros(1, 4, 4)
    image = torch.ones(1, 3, 4, 4)
    assert edge_aware_depth_loss(depth, target, image).item() == 0
    target[:, :2] = 1.5
    assert edge_aware_depth_loss(depth, target, image).item() == pytest.approx(2 * math.log(1.5), rel=1e-5)


def test_an_edge_in_the_picture_weakens_the_depth_penalty():
    depth, target = torch.full((1, 4, 4), 2.0), torch.full((1, 4, 4), 1.5)
    flat, edged = torch.ones(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    edged[..., 2:] = 0
    assert edge_aware_depth_loss(depth, target, edged) < edge_aware_depth_loss(depth, target, flat)
    expected = (2 / 3 + math.exp(-1) / 3 + 1) * math.log(1.5)  # one of three columns of pairs crosses the edge
    assert edge_aware_depth_loss(depth, target, edged).item() == pytest.approx(expected, rel=1e-5)


def test_rendering_the_truth_costs_nothing():
    generator = torch.Generator().manual_seed(0)
    cameras = orbit(torch.tensor([0.0, 40.0]), torch.tensor([0.0, 10.0]), 2.0, 39.6)
    alpha = (torch.rand(2, 1, 6, 6, generator=generator) > 0.5).float()
    views = Views("x", cameras, torch.rand(2, 3, 6, 6, generator=generator), alpha, alpha[:, 0] * 2)
    perfect = Rendering(views.composited(1.0), views.alpha, views.depth)
    assert all(value.item() == 0 for value in rendering_losses([perfect], [views], 1.0).values())
    with pytest.raises(ValueError, match="depth"):
        rendering_losses([perfect], [Views("x", cameras, views.colour, alpha)], 1.0)


def test_the_losses_of_a_batch_are_the_means_of_its_objects() -> None:
    """Also of the depth, although the objects have surfaces of different sizes."""
    generator = torch.Generator().manual_seed(0)
    cameras = orbit(torch.tensor([0.0, 40.0]), torch.tensor([0.0, 10.0]), 2.0, 39.6)
    renderings, targets = [], []
    for share in (0.1, 0.9):
        alpha = (torch.rand(2, 1, 6, 6, generator=generator) < share).float()
        targets.append(Views("x", cameras, torch.rand(2, 3, 6, 6, generator=generator), alpha, alpha[:, 0] * 2))
        colour, depth = torch.rand(2, 3, 6, 6, generator=generator), torch.rand(2, 6, 6, generator=generator)
        renderings.append(Rendering(colour, alpha * 0.5, depth))
    together = rendering_losses(renderings, targets, 1.0)
    apart = [rendering_losses([r], [t], 1.0) for r, t in zip(renderings, targets, strict=True)]
    for name, value in together.items():
        assert apart[0][name] != apart[1][name]
        torch.testing.assert_close(value, (apart[0][name] + apart[1][name]) / 2)
