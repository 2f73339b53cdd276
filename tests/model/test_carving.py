"""Carving cues on pictures whose answer is known."""

import torch

from geolrm.cameras import orbit
from geolrm.model import carving
from geolrm.model.carving import AnchorCues, CarvingNetwork, carving_cues, look_up

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
    visible = look_up(point, flat(0.5, 0.5, 0.5, 0.5), RING)[1].flatten().tolist()
    assert visible[0] is False
    cues = carving_cues(point, flat(0.9, 0.1, 0.1, 0.1), RING)[0]
    assert cues[-1].item() == sum(visible) / 4
    assert cues[0].item() < -0.7


def test_the_picture_is_read_where_the_point_projects() -> None:
    image = torch.zeros(3, 64, 64)
    image[0, :, 32:] = 1.0  # red to the right
    points = torch.tensor([[0.0, 0.3, 0.0], [0.0, -0.3, 0.0]])  # camera 0 stands at +x: +y is right
    colours, visible = look_up(points, image[None], RING[:1])
    assert visible.all()
    torch.testing.assert_close(colours[0, :, 0], torch.tensor([1.0, 0.0]))


def test_a_voxel_is_judged_by_the_cues_within_two_voxels_of_it() -> None:
    torch.manual_seed(0)
    network = CarvingNetwork()
    cues = torch.rand(1, 8, 9, 9, 9)
    changed = cues.clone()
    changed[0, :, 4, 5, 3] += 1
    touched = (network(changed) - network(cues))[0, 0].abs() > 1e-6
    assert touched[2:7, 3:8, 1:6].all()
    assert touched.sum() == 5**3


def test_the_grid_of_cues_is_indexed_x_y_z(monkeypatch) -> None:
    """A cue that is a point's x (y, z) grows along the first (second, third) axis of the logits."""
    network = CarvingNetwork()
    for axis in range(3):
        monkeypatch.setattr(
            carving, "carving_cues", lambda points, *_, axis=axis: points[:, axis : axis + 1].expand(-1, 8)
        )
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(0.0)
            network[0].weight[:, 0, 1, 1, 1] = network[2].weight[0, :, 1, 1, 1] = (
                1.0  # no neighbours: a voxel's own cue
            )
            logits = network.carve(torch.zeros(2, 3, 3, 8, 8), RING[torch.tensor([[0, 1, 2], [1, 2, 3]])], 6)
        assert logits.shape == (2, 6, 6, 6)
        along = logits.diff(dim=axis + 1)
        assert (along > 0).all()
        assert logits.movedim(axis + 1, 0).flatten(1).std(dim=1).max() < 1e-6


def test_a_token_is_told_the_cues_at_its_anchor() -> None:
    images = torch.rand(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    anchors = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(1)) * 0.4 - 0.2
    hints = AnchorCues(8)
    with torch.no_grad():
        hints.weight.copy_(torch.eye(8))
        hints.bias.zero_()
        told = hints.hint(anchors, images, RING[torch.arange(4).expand(2, 4)])
    for b in range(2):
        torch.testing.assert_close(told[b], carving_cues(anchors[b], images[b], RING))
