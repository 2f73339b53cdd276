"""The fused look-ups in the pictures against their definitions."""

import pytest
import torch

from geolrm.cameras import orbit
from geolrm.kernels import pictures as kernel
from geolrm.model import execution
from geolrm.model.carving import carving_cues
from geolrm.model.reconstruction import picture_colours


def scene(device, points, views, size):
    """Points around the object; one above every frame, one behind a camera that would fall into its frame but for that."""
    draw = torch.Generator().manual_seed(0)
    places = (torch.rand(points, 3, generator=draw) * 2 - 1) * 0.8
    places[0] = torch.tensor([0.0, 0.0, 9.0])
    images = torch.rand(views, 3, *size, generator=draw)
    cameras = orbit(torch.arange(views) * 360.0 / views, torch.full((views,), 15.0), 2.0, 39.6)
    aside = (1 + 5e-5) / cameras.intrinsics[0, 0, 0].item()  # two units behind, `Cameras.project` gives (0.5, 0.5)
    places[1] = cameras.positions[0] + cameras.rotations[0] @ torch.tensor([aside, aside, -2.0])
    return places.to(device), images.to(device), cameras.to(device)


@pytest.mark.parametrize(
    ("points", "views", "size"),
    [(300, 3, (11, 17)), (5, 1, (1, 1)), pytest.param(100_003, 64, (120, 97), marks=pytest.mark.gpu)],
)
def test_carving_cues_equal_those_of_the_definition(device, points, views, size) -> None:
    places, images, cameras = scene(device, points, views, size)
    ours = kernel.carving_cues(places, images, cameras)
    with execution.definitions_only():
        theirs = carving_cues(places, images, cameras)
    torch.testing.assert_close(ours[1], theirs[1], atol=2e-3, rtol=0)
    assert ours[0].tolist() == pytest.approx([0, 0, 0, 0, 0, 0, -3, 0])
    differ = (ours - theirs).abs().amax(dim=-1) > 2e-3  # the deviation is a root of a difference
    assert differ.float().mean() < 1e-3  # a point on a frame's edge may fall to either side


@pytest.mark.parametrize(
    ("points", "group", "views", "size"),
    [(300, 4, 3, (11, 17)), (6, 6, 1, (1, 1)), pytest.param(96_000, 32, 64, (120, 97), marks=pytest.mark.gpu)],
)
def test_picture_colours_equal_those_of_the_definition(device, points, group, views, size) -> None:
    places, images, cameras = scene(device, points, views, size)
    shares = torch.rand(views, points // group, generator=torch.Generator().manual_seed(1)).to(device)
    ours = kernel.picture_colours(places, images, cameras, shares)
    with execution.definitions_only():
        theirs = picture_colours(places, images, cameras, shares)
    torch.testing.assert_close(ours[0], torch.full((3,), 0.5, device=device))
    assert ((ours - theirs).abs().amax(dim=-1) > 1e-4).float().mean() < 1e-3


@pytest.mark.gpu
def test_view_weights_that_are_trained_get_their_gradient(device) -> None:
    """The kernel has none, so the definition runs."""
    places, images, cameras = scene(device, 64, 3, (11, 17))
    shares = torch.rand(3, 16, device=device, requires_grad=True)
    picture_colours(places, images, cameras, shares).sum().backward()
    assert shares.grad is not None
    assert shares.grad.any()
