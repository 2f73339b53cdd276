"""Carving cues on pictures whose answer is known."""

import torch

from geolrm.cameras import orbit
from geolrm.model.carving import carving_cues, look_up

RING = orbit(torch.arange(4) * 90.0, torch.zeros(4), radius=2.0, fov=39.6)


def flat(*levels: float) -> torch.Tensor:
    return torch.tensor(levels)[:, None, None, None].expand(len(levels), 3, 16, 16)


def test_views_that_agree_show_their_colour_and_no_deviation() -> None:
    cues = carving_cues(torch.zeros(1, 3), flat(0.3, 0.3, 0.3, 0.3), RING)[0]
    torch.testing.assert_close(cues, torch.tensor([-0.4, -0.4, -0.4, 0, 0, 0, 4 * 0.3 - 3, 1]), atol=1e-3, rtol=0)


def test_views_that_differ_show_mean_deviation_and_the_whitest() -> None:
    cues = carving_cues(torch.zeros(1, 3), flat(0.2, 1.0, 0.2, 1.0), RING)[0]
    torch.testing.assert_close(cues, torch.tensor([0.2, 0.2, 0.2, 1.6, 1.6, 1.6, 1.0, 1.0]), atol=1e-5, rtol=0)


def test_a_point_that_no_view_sees_is_grey_and_unseen() -> None:
    cues = carving_cues(torch.tensor([[0.0, 0.0, 5.0]]), flat(0.2, 1.0, 0.2, 1.0), RING)[0]
    torch.testing.assert_close(cues, torch.tensor([0.0, 0, 0, 0, 0, 0, -3, 0]))


def test_a_point_outside_one_frame_is_judged_by_the_others() -> None:
    point = torch.tensor([[1.5, 0.6, 0.0]])  # near camera 0, beside its frame
    visible = [bool(look_up(point, flat(0.5)[0], RING[v])[1]) for v in range(4)]
    assert visible[0] is False
    cues = carving_cues(point, flat(0.9, 0.1, 0.1, 0.1), RING)[0]
    assert cues[-1].item() == sum(visible) / 4
    assert cues[0].item() < -0.7


def test_the_picture_is_read_where_the_point_projects() -> None:
    image = torch.zeros(3, 64, 64)
    image[0, :, 32:] = 1.0  # red to the right
    points = torch.tensor([[0.0, 0.3, 0.0], [0.0, -0.3, 0.0]])  # camera 0 stands at +x: +y is right
    colours, visible = look_up(points, image, RING[0])
    assert visible.all()
    torch.testing.assert_close(colours[:, 0], torch.tensor([1.0, 0.0]))
