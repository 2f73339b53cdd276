"""Claims about which views see which points."""

import torch

from geolrm.cameras import orbit
from geolrm.gaussians import SH_C0
from geolrm.model.reconstruction import paint_from_pictures
from geolrm.model.visibility import sees, spacing_of

SIDES = orbit(torch.tensor([0.0, 180.0, 70.0]), torch.tensor([0.0, 0.0, 40.0]), 2.0, 39.6)


def ball(count: int, radius: float = 0.4) -> torch.Tensor:
    """(count, 3) points spread evenly over a sphere."""
    turn = torch.arange(count) * 2.399963
    height = 1 - (2 * torch.arange(count) + 1) / count
    ring = (1 - height.square()).sqrt()
    return radius * torch.stack([ring * turn.cos(), ring * turn.sin(), height], dim=-1)


def test_the_spacing_is_that_of_neighbours() -> None:
    axis = torch.arange(12) * 0.05
    assert torch.isclose(spacing_of(torch.cartesian_prod(axis, axis, axis)), torch.tensor(0.05), atol=1e-5)
    assert spacing_of(torch.zeros(1, 3)) == torch.inf


def test_of_a_sphere_each_view_sees_what_faces_it_and_nothing_of_the_far_side_at_any_density() -> None:
    for count in (300, 2000, 20000):
        points = ball(count)
        seen = sees(points, SIDES)
        towards = SIDES.positions[:, None] - points
        cosines = (torch.nn.functional.normalize(towards, dim=-1) * points / 0.4).sum(
            dim=-1
        )  # normal and line of sight
        assert seen[cosines > 0.75].all()
        assert not seen[cosines < -0.2 - 4 * spacing_of(points)].any()


def test_a_single_point_and_points_outside_the_frame() -> None:
    assert sees(torch.zeros(1, 3), SIDES).all()
    assert not sees(torch.full((5, 3), 30.0), SIDES).any()
    beside = torch.cat([ball(500), torch.tensor([[0.0, 5.0, 0.0], [9.0, 0.0, 0.0]])])
    assert not sees(beside, SIDES)[
        :2, -2:
    ].any()  # one beside the frame, one behind a camera and beyond the other's frame
    torch.testing.assert_close(sees(beside, SIDES)[:, :500], sees(ball(500), SIDES))


def test_the_order_of_views_changes_nothing_and_that_of_points_next_to_nothing() -> None:
    points, order = ball(900), torch.randperm(900, generator=torch.Generator().manual_seed(0))
    seen = sees(points, SIDES)
    assert torch.equal(sees(points, SIDES[[2, 0, 1]]), seen[[2, 0, 1]])
    assert (sees(points[order], SIDES) != seen[:, order]).float().mean() < 0.01  # other probes, another median


def test_a_point_takes_its_colour_from_the_pictures_that_see_it() -> None:
    """Two opposite pictures, one red and one blue, trusted alike: what faces one has its colour."""
    points, cameras = ball(2000), SIDES[:2]
    red, blue = torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.1, 0.9])
    images = torch.stack([red, blue])[:, :, None, None].expand(2, 3, 16, 16)
    shares = torch.full((2, len(points)), 0.5)
    sh = paint_from_pictures(torch.zeros(len(points), 3), points, points, images, cameras, shares)
    colours = sh * SH_C0 + 0.5
    towards_red = points @ cameras.positions[0] / (0.4 * 2)
    assert (colours[towards_red > 0.8] - red).abs().max() < 0.02
    assert (colours[towards_red < -0.8] - blue).abs().max() < 0.02
