"""Carving cues on pictures whose answer is known."""

import pytest
import torch

from geolrm.cameras import orbit
from geolrm.model import carving
from geolrm.model.carving import (
    CUES,
    FEATURES,
    STATISTICS,
    AnchorCues,
    CarvingNetwork,
    carving_cues,
    feature_statistics,
    look_up,
    neighbouring,
)

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


def uniform(*levels: float) -> torch.Tensor:
    """Maps (1, V, C, 8, 8) of views that show one level each, in every channel."""
    return torch.tensor(levels, dtype=torch.float32).reshape(1, -1, 1, 1, 1).expand(1, len(levels), FEATURES + 3, 8, 8)


def parts_of(statistics: torch.Tensor) -> list[torch.Tensor]:
    """Mean, deviation and pairs of (STATISTICS, M), all channels of the first two being alike."""
    mean, deviation, pairs = statistics.split([FEATURES, FEATURES, 4])
    for part in (mean, deviation):
        torch.testing.assert_close(part, part[:1].expand_as(part))
    return [mean[0], deviation[0], pairs]


@pytest.mark.parametrize("views", [1, 2, 3, 4])
def test_views_that_agree_have_their_mean_no_deviation_and_no_different_pairs(views: int) -> None:
    found = feature_statistics(torch.zeros(3, 3), uniform(*[0.3] * views), RING[None, :views])[0]
    mean, deviation, pairs = parts_of(found)
    torch.testing.assert_close(mean, torch.full((3,), 0.3))
    torch.testing.assert_close(deviation, torch.zeros(3), atol=2e-4, rtol=0)
    torch.testing.assert_close(pairs, torch.zeros(4, 3))


def test_features_count_in_the_views_that_see_a_point_and_nowhere_else() -> None:
    seen_by_all, beside_the_first, by_none = (
        torch.zeros(3),
        torch.tensor([0.5, 0.56, 0.0]),
        torch.tensor([0.0, 0.0, 5.0]),
    )
    points = torch.stack([seen_by_all, beside_the_first, by_none])
    visible = look_up(points[1:2], torch.zeros(4, 3, 8, 8), RING)[1].flatten()
    assert visible.tolist() == [False, True, True, True]
    values = torch.tensor([0.5, 0.1, 0.3, 0.1])
    mean, deviation, pairs = parts_of(feature_statistics(points, uniform(0.5, 0.1, 0.3, 0.1), RING[None])[0])
    kept = values[visible]
    assert mean.tolist() == pytest.approx([0.25, kept.mean().item(), 0.0], abs=1e-5)
    assert deviation.tolist() == pytest.approx(
        [values.std(correction=0).item(), kept.std(correction=0).item(), 0.0], abs=2e-4
    )
    far = carving.UNSEEN
    for times, third, two_thirds in zip((1, 4), pairs[:2].tolist(), pairs[2:].tolist(), strict=True):
        # of eight pairs four differ by 0.2, four by 0.4; beside the first camera four by 0.2 are left
        assert third == pytest.approx([0.2 * times, 0.2 * times, far], abs=1e-5)
        assert two_thirds == pytest.approx([1.6 / 6 * times, (0.8 * times + 2 * far) / 6, far], abs=1e-5)


def test_neighbours_that_see_a_surface_agree_though_over_all_views_it_looks_like_nothing() -> None:
    ring = orbit(torch.arange(8) * 45.0, torch.zeros(8), radius=2.0, fov=39.6)[None]
    surface = parts_of(feature_statistics(torch.zeros(1, 3), uniform(1, 1, 1, 1, 0.5, 0.7, 0.5, 0.7), ring)[0])
    nothing = parts_of(feature_statistics(torch.zeros(1, 3), uniform(1, 0.5, 1, 0.7, 1, 0.5, 1, 0.7), ring)[0])
    assert surface[1].item() == pytest.approx(nothing[1].item(), abs=1e-4)
    assert surface[2][0].item() == 0
    assert nothing[2][0].item() > 0.29


def test_neighbours_are_the_two_nearest_directions() -> None:
    around = torch.tensor([0.0, 200.0, 30.0, 170.0, 15.0])
    found = neighbouring(orbit(around, torch.zeros(5), radius=2.0, fov=39.6)[None])[0]
    assert [set(pair) for pair in found.tolist()] == [{4, 2}, {3, 0}, {4, 0}, {1, 2}, {0, 2}]


def test_features_are_the_same_for_views_in_any_order() -> None:
    random = torch.Generator().manual_seed(0)
    maps = torch.randn(1, 4, FEATURES + 3, 8, 8, generator=random)
    points = torch.rand(50, 3, generator=random) - 0.5
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        feature_statistics(points, maps[:, order], RING[None, order]),
        feature_statistics(points, maps, RING[None]),
        atol=1e-5,
        rtol=1e-5,
    )


def test_features_learn_even_where_views_agree_to_the_bit() -> None:
    maps = torch.zeros(1, 4, FEATURES + 3, 8, 8, requires_grad=True)  # exactly no deviation
    feature_statistics(torch.zeros(3, 3), maps, RING[None]).sum().backward()
    assert maps.grad is not None
    assert maps.grad.isfinite().all()


def test_a_large_grid_in_chunks_gives_the_same_logits_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    network, random = network_of(), torch.Generator().manual_seed(0)
    images, tokens = torch.rand(2, 3, 3, 16, 16, generator=random), torch.rand(2, 8, 6, generator=random)
    cameras, found = RING[torch.tensor([[0, 1, 2], [1, 2, 3]])], []
    for chunk in (1 << 16, 100):
        monkeypatch.setattr(carving, "CHUNK", chunk)
        network.zero_grad()
        logits = network.carve(images, cameras, tokens, 8)
        logits.square().sum().backward()
        gradients = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
        assert len(gradients) == len(list(network.parameters()))
        found.append([logits.detach(), *gradients])
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=1e-4)


def test_a_volume_finer_than_the_features_grid_takes_them_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    network, asked = network_of(), []
    statistics = carving.feature_statistics
    monkeypatch.setattr(
        carving, "feature_statistics", lambda points, *rest: asked.append(len(points)) or statistics(points, *rest)
    )
    monkeypatch.setattr(carving, "FINEST", 4)
    with torch.no_grad():
        logits = network.carve(torch.rand(1, 4, 3, 16, 16), RING[None], torch.rand(1, 8, 6), 8)
    assert logits.shape == (1, 8, 8, 8)
    assert asked == [4**3]


def network_of(width: int = 6) -> CarvingNetwork:
    torch.manual_seed(0)
    return CarvingNetwork(width).eval()


@torch.no_grad()
@pytest.mark.parametrize(("resolution", "side"), [(8, 2), (8, 1), (9, 3), (10, 5)])
def test_every_voxel_has_a_logit_at_any_resolution(resolution: int, side: int) -> None:
    images, cameras = torch.rand(2, 3, 3, 16, 16), RING[torch.tensor([[0, 1, 2], [1, 2, 3]])]
    logits = network_of().carve(images, cameras, torch.rand(2, side**3, 6), resolution)
    assert logits.shape == (2, resolution, resolution, resolution)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@torch.no_grad()
def test_a_token_is_heard_around_its_own_cell_and_axes_are_x_y_z() -> None:
    network, side = network_of(), 4
    for module in network.modules():
        if isinstance(module, torch.nn.GroupNorm):  # its statistics reach all over the grid
            module.forward = lambda x: x  # type: ignore[method-assign]
    volume, tokens = torch.zeros(1, CUES + STATISTICS, 32, 32, 32), torch.zeros(1, side**3, 6)
    told = tokens.clone()
    told[0, (0 * side + 2) * side + 3] = 5.0  # x 0, y 2, z 3
    change = (network(volume, told) - network(volume, tokens))[0].abs()
    x, y, z = (change.sum(dim=[d for d in range(3) if d != axis]).argmax().item() // 8 for axis in range(3))
    assert (x, y, z) == (0, 2, 3)
    assert change[24:].max() < 0.1 * change[:8].max()


@torch.no_grad()
@pytest.mark.parametrize("finest", [64, 8])
def test_the_volume_is_indexed_x_y_z(finest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the U-Net is given at a voxel are the cues and features of that voxel's centre, also from a coarser grid."""
    network, given, inside = network_of(), [], slice(1, -1)
    monkeypatch.setattr(carving, "FINEST", finest)
    monkeypatch.setattr(carving, "carving_cues", lambda points, *_: points[:, [0, 1, 2, 0, 1, 2, 0, 1]])
    monkeypatch.setattr(carving, "feature_statistics", lambda points, *_: points.T[None, torch.arange(STATISTICS) % 3])
    network.forward = lambda volume, tokens: given.append(volume) or volume[:, 0]  # type: ignore[method-assign, assignment, func-returns-value]
    network.carve(torch.zeros(1, 4, 3, 8, 8), RING[None], torch.zeros(1, 1, 6), 16)
    axis = (torch.arange(16) + 0.5) / 16 - 0.5
    expected = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    assert given[0].shape == (1, CUES + STATISTICS, 16, 16, 16)
    for first in (0, CUES):
        found = given[0][0, first : first + 3]
        torch.testing.assert_close(found[:, inside, inside, inside], expected[:, inside, inside, inside])


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
