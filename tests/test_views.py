"""Views: compositing once, resizing without inventing colours or surfaces."""

import pytest
import torch

from geolrm.cameras import orbit
from geolrm.views import Views


def disc(size: int = 64) -> Views:
    """A flat red disc with garbage colour under zero alpha, depth 2 on the disc."""
    cameras = orbit(torch.tensor([0.0, 90.0]), torch.tensor([0.0, 0.0]), 2.0, 39.6)
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    inside = ((x - size / 2) ** 2 + (y - size / 2) ** 2).sqrt() < size / 3
    alpha = inside.float().expand(2, 1, size, size)
    red, garbage = torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.0, 1.0, 0.0])
    colour = torch.where(inside[..., None], red, garbage).movedim(-1, 0).expand(2, 3, size, size)
    return Views("disc", cameras, colour, alpha, alpha[:, 0] * 2.0)


def test_transparent_pixels_show_the_background_alone():
    composited = disc().composited(torch.tensor([0.2, 0.4, 0.6]))
    torch.testing.assert_close(composited[0, :, 0, 0], torch.tensor([0.2, 0.4, 0.6]))
    torch.testing.assert_close(composited[0, :, 32, 32], torch.tensor([0.9, 0.1, 0.1]))


def test_resizing_keeps_a_flat_colour_flat_up_to_the_silhouette():
    small = disc().resized(23, 23)
    visible = small.alpha[0, 0] > 0.01
    torch.testing.assert_close(
        small.colour[0, :, visible].T, torch.tensor([0.9, 0.1, 0.1]).expand(int(visible.sum()), 3)
    )


def test_views_over_a_background_are_composited_once_before_or_after_resizing():
    views = disc()
    over = views.over(1.0)
    before, after = over.resized(23, 23).composited(1.0), views.resized(23, 23).composited(1.0)
    torch.testing.assert_close(before, after, atol=1e-4, rtol=0)  # what is all but clear has no colour when straight
    torch.testing.assert_close(over[[1]].to("cpu").composited(1.0), views.composited(1.0)[[1]])
    for other in (0.5, torch.ones(3)):
        with pytest.raises(ValueError, match="composited over 1"):
            over.composited(other)


def test_resizing_invents_no_depth():
    assert set(disc().resized(23, 23).depth.unique().tolist()) == {0.0, 2.0}


def test_picking_views_keeps_pictures_and_cameras_together():
    views = disc()
    picked = views[[1, 0, 1]]
    torch.testing.assert_close(picked.cameras.positions, views.cameras.positions[[1, 0, 1]])
    assert len(views[:1]) == 1


def test_mismatched_parts_are_refused():
    views = disc()
    with pytest.raises(ValueError, match="disc"):
        Views("disc", views.cameras, views.colour, views.alpha[:1])
