"""Both networks and the two together: what goes in, what comes out, and what must not matter."""

import copy
import math

import pytest
import torch
from small_networks import RECONSTRUCTION, pictures, plant, rig

from geolrm.failures import BadInput
from geolrm.gaussians import SH_C0
from geolrm.model.reconstruction import GaussianHead, picture_colours
from geolrm.occupancy import voxel_centres

# --- proposal ---


def test_every_voxel_comes_from_the_token_in_whose_cell_it_lies(proposal) -> None:
    """Voxel (3 i + a, 3 j + b, 3 k + c) is entry (a, b, c) of token (i, j, k), x-major on both levels."""
    blocks = torch.zeros(1, 64, 27)
    i, j, k, a, b, c = 1, 0, 3, 2, 1, 0
    blocks[0, (i * 4 + j) * 4 + k, (a * 3 + b) * 3 + c] = 1.0
    grid = proposal.fine_grid(blocks)
    assert grid.shape == (1, 12, 12, 12)
    assert grid[0].nonzero().tolist() == [[3 * i + a, 3 * j + b, 3 * k + c]]


def test_a_token_stands_in_the_middle_of_its_block(proposal) -> None:
    numbers = torch.arange(64.0)[None, :, None].expand(1, 64, 27)
    fine = proposal.fine_grid(numbers)[0]
    for token in (0, 7, 63):
        centre = voxel_centres((fine == token).nonzero(), 12).mean(dim=0)
        torch.testing.assert_close(centre, proposal.coarse_anchors("cpu")[token])


def test_the_untrained_proposal_expects_one_voxel_in_twenty(proposal) -> None:
    share = proposal(pictures(3), rig(3)).sigmoid()
    assert share.shape == (1, 12, 12, 12)
    assert 0.04 < share.mean() < 0.06


# --- reconstruction ---


def test_permuting_the_anchors_permutes_the_gaussians(reconstruction, anchors) -> None:
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    (straight,) = reconstruction(pictures(3), rig(3), anchors)
    (permuted,) = reconstruction(pictures(3), rig(3), anchors[:, order])
    for a, b in zip(straight.tensors, permuted.tensors, strict=True):
        torch.testing.assert_close(b.unflatten(0, (9, 5)), a.unflatten(0, (9, 5))[order], atol=1e-4, rtol=1e-4)


def test_tokens_attend_to_one_another(reconstruction, anchors) -> None:
    """Moving one anchor changes the Gaussians of the others (not so in the public code in float32)."""
    moved = anchors.clone()
    moved[0, 0] = torch.tensor([0.3, -0.3, 0.3])
    (before,), (after,) = (reconstruction(pictures(3), rig(3), points) for points in (anchors, moved))
    assert ((before.sh_dc - after.sh_dc).unflatten(0, (9, 5))[1:].abs().amax(dim=(1, 2)) > 1e-5).all()


def test_the_order_of_views_changes_nothing(reconstruction, proposal, anchors) -> None:
    order = [2, 0, 3, 1]
    images, cameras = pictures(4), rig(4)
    (a,), (b,) = (reconstruction(images[:, v], cameras[:, v], anchors) for v in (range(4), order))
    for x, y in zip(a.tensors, b.tensors, strict=True):
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(proposal(images[:, order], cameras[:, order]), proposal(images, cameras))


def test_the_pictures_matter(reconstruction, anchors) -> None:
    (a,), (b,) = (reconstruction(images, rig(3), anchors) for images in (pictures(3), 1 - pictures(3)))
    assert (a.sh_dc - b.sh_dc).abs().mean() > 0.01


@pytest.mark.parametrize("count", [1, 9])
def test_any_number_of_views_works(proposal, reconstruction, anchors, count) -> None:
    assert torch.isfinite(proposal(pictures(count), rig(count))).all()
    (gaussians,) = reconstruction(pictures(count), rig(count), anchors)
    assert all(torch.isfinite(t).all() for t in gaussians.tensors)


@pytest.mark.parametrize("count", [1, 200])
def test_any_number_of_anchors_works_beyond_that_of_the_training_too(reconstruction, count) -> None:
    points = torch.rand(1, count, 3) - 0.5
    assert len(reconstruction(pictures(2), rig(2), points)[0]) == 5 * count


def test_512_pixels_work_though_14_does_not_divide_them(proposal, reconstruction, anchors) -> None:
    images = pictures(1, size=512)
    assert torch.isfinite(proposal(images, rig(1))).all()
    assert torch.isfinite(reconstruction(images, rig(1), anchors)[0].sh_dc).all()


def test_a_batch_equals_its_objects_one_by_one(proposal, reconstruction, anchors) -> None:
    images, cameras = torch.cat([pictures(3), 1 - pictures(3)]), rig(3, batch=2)
    points = torch.cat([anchors, -anchors])
    grids, sets = proposal(images, cameras), reconstruction(images, cameras, points)
    for i in range(2):
        torch.testing.assert_close(grids[i], proposal(images[i : i + 1], cameras[i : i + 1])[0], atol=1e-5, rtol=1e-4)
        (one,) = reconstruction(images[i : i + 1], cameras[i : i + 1], points[i : i + 1])
        torch.testing.assert_close(sets[i].means, one.means, atol=1e-5, rtol=1e-4)


def test_offsets_reach_equally_far_both_ways_and_no_farther(anchors) -> None:
    torch.manual_seed(0)
    head = GaussianHead(RECONSTRUCTION)
    torch.nn.init.normal_(head.output.weight, std=50.0)
    (gaussians,) = head(torch.randn(1, 9, 24), anchors[:1], pictures(3)[:1], rig(3)[:1], torch.full((1, 3, 9), 1 / 3))
    offsets = gaussians.means - anchors[0].repeat_interleave(5, dim=0)
    limit = RECONSTRUCTION.max_offset
    assert offsets.max().item() == pytest.approx(limit, rel=1e-4)
    assert offsets.min().item() == pytest.approx(-limit, rel=1e-4)
    assert (gaussians.log_scales <= math.log(RECONSTRUCTION.max_scale) + 1e-6).all()
    assert ((gaussians.sh_dc * SH_C0).abs() <= 0.5 + 1e-6).all()
    assert all(torch.isfinite(t).all() for t in gaussians.tensors)


def test_the_first_gaussians_cover_the_surface_between_anchors() -> None:
    """Offsets within half an anchor spacing, standard deviations of half of it, mostly opaque, in the colour of the pictures."""
    torch.manual_seed(0)
    head = GaussianHead(RECONSTRUCTION)
    spacing = 64**-0.5
    tokens = torch.nn.functional.normalize(torch.randn(1, 100, 24), dim=-1) * 24**0.5
    grey = torch.full((1, 3, 3, 32, 32), 0.5)
    (gaussians,) = head(tokens, torch.zeros(1, 100, 3), grey, rig(3)[:1], torch.full((1, 3, 100), 1 / 3))
    limit = min(spacing / 2, RECONSTRUCTION.max_offset)
    assert gaussians.means.abs().max() < limit
    assert gaussians.means.std(dim=0).min() > 0.2 * limit
    expected = min(spacing / 2, 0.9 * RECONSTRUCTION.max_scale)
    assert gaussians.log_scales.exp().mean().item() == pytest.approx(expected, rel=0.05)
    assert gaussians.opacity_logits.sigmoid().mean().item() == pytest.approx(0.7, abs=0.02)
    assert (gaussians.sh_dc * SH_C0).abs().max() < 0.1
    torch.testing.assert_close(gaussians.quaternions.norm(dim=-1), torch.ones(500))


def test_colours_start_from_what_the_trusted_pictures_show() -> None:
    images = torch.tensor([0.1, 0.4, 0.8])[:, None, None, None].expand(3, 3, 32, 32)  # flat: one grey level a view
    points, cameras = torch.zeros(4, 3), rig(3)[0]
    shares = torch.tensor([[1.0, 0, 0.5, 0], [0, 1, 0.25, 0], [0, 0, 0.25, 0]])
    seen = picture_colours(points, images, cameras, shares)
    expected = torch.tensor([0.1, 0.4, 0.35, 0.5])  # the last is trusted to no view: grey
    torch.testing.assert_close(seen, expected[:, None].expand(4, 3), atol=1e-5, rtol=0)
    outside = picture_colours(points + 5, images, cameras, shares)
    torch.testing.assert_close(outside, torch.full((4, 3), 0.5))


def test_colours_of_all_views_at_once_in_training_are_those_of_one_view_at_a_time() -> None:
    torch.manual_seed(0)
    images, points, cameras = torch.rand(3, 3, 32, 24), torch.rand(12, 3) * 1.6 - 0.8, rig(3)[0]
    shares = torch.rand(3, 4, requires_grad=True)
    together = picture_colours(points, images, cameras, shares)
    with torch.no_grad():
        torch.testing.assert_close(together.detach(), picture_colours(points, images, cameras, shares))
    together.square().sum().backward()
    assert shares.grad is not None
    assert shares.grad.abs().amax(dim=1).gt(0).all()


@pytest.mark.parametrize("network", ["proposal", "reconstruction"])
def test_every_parameter_gets_a_gradient(network, request, anchors) -> None:
    model = request.getfixturevalue(network)
    for block in model.transformer.blocks:  # zero at first: what they read gets its gradient from the second step on
        torch.nn.init.normal_(block.cross_attention.offsets.weight)
        torch.nn.init.normal_(block.cross_attention.weights.weight)
    if network == "proposal":
        model(pictures(3), rig(3)).square().sum().backward()
    else:
        sets = model(pictures(3), rig(3), anchors)
        weights = torch.Generator().manual_seed(3)
        sum((t * torch.rand(t.shape, generator=weights)).sum() for t in sets[0].tensors).backward()
    cancelling = {name for name, _ in model.named_parameters() if "k_proj.bias" in name}  # softmax ignores DINOv2's
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any() or name in cancelling, name


# --- both ---


def test_no_occupied_voxel_gives_an_empty_set(model, views) -> None:
    plant(model, -1.0)
    assert len(model.reconstruct(views)) == 0


def test_a_full_grid_gives_as_many_anchors_as_allowed_and_no_padding(model, views) -> None:
    plant(model, 1.0)
    assert len(model.reconstruct(views)) == 64 * 5
    assert len(model.reconstruct(views, max_anchors=7)) == 7 * 5
    assert len(model.reconstruct(views, max_anchors=5000)) == 12**3 * 5


def test_gaussians_lie_around_the_occupied_voxels_only(model, views) -> None:
    plant(model, -1.0)
    with torch.no_grad():
        model.proposal.upsampling.bias[0] = 1.0  # the lowest corner of each block of 3^3
    gaussians = model.reconstruct(views)
    corners = voxel_centres(torch.cartesian_prod(*[torch.arange(0, 12, 3)] * 3), 12)
    assert len(gaussians) == 64 * 5
    nearest = (gaussians.means[:, None] - corners).abs().amax(dim=-1).amin(dim=-1)
    assert (nearest <= RECONSTRUCTION.max_offset + 1e-6).all()


def test_pictures_are_composited_on_white_once(model, views) -> None:
    """What the transparent pixels hold must not matter."""
    plant(model, 1.0)
    painted = copy.copy(views)
    object.__setattr__(painted, "colour", torch.where(views.alpha > 0, views.colour, 0.123))
    torch.testing.assert_close(model.reconstruct(painted).means, model.reconstruct(views).means)


def test_reconstructing_from_no_picture_is_bad_input(model, views) -> None:
    with pytest.raises(BadInput, match="no_views"):
        model.reconstruct(views[[]])
