"""Deformable cross-attention against loops, closed forms and finite differences."""

import math

import pytest
import torch

from geolrm.cameras import orbit
from geolrm.model.deformable import DeformableCrossAttention, attend_view, project_anchors, view_shares


def cameras(count: int, batch: int = 1):
    ring = orbit(torch.arange(count) * 360.0 / count, torch.full((count,), 15.0), 2.0, 39.6)
    return ring[torch.arange(count).expand(batch, count)]


def bilinear(image: torch.Tensor, u: float, v: float) -> torch.Tensor:
    """Sample (D, h, w) at frame coordinates, pixel centres at (i + 0.5) / size, zero outside: one corner after another."""
    height, width = image.shape[-2:]
    x, y = u * width - 0.5, v * height - 0.5
    total = torch.zeros(len(image), dtype=image.dtype)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += image[:, row, column] * (1 - abs(x - column)) * (1 - abs(y - row))
    return total


def equation_3(layer: DeformableCrossAttention, tokens, features, uv, visible) -> torch.Tensor:
    """The layer, one token, view, head, level and point at a time."""
    width = tokens.shape[-1]
    head_width = width // layer.heads
    result = torch.zeros_like(tokens)
    for b in range(tokens.shape[0]):
        for n in range(tokens.shape[1]):
            offsets = layer.offsets(tokens[b, n]).view(layer.heads, 2, layer.points, 2)
            weights = layer.weights(tokens[b, n]).view(layer.heads, -1).softmax(-1).view(layer.heads, 2, layer.points)
            sums, logits = [], []
            for v in visible[b, :, n].nonzero().flatten().tolist():
                parts = []
                for h in range(layer.heads):
                    channels = slice(h * head_width, (h + 1) * head_width)
                    part = torch.zeros(head_width, dtype=tokens.dtype)
                    for level in range(2):
                        values = layer.values(features[level][b, v][None])[0, channels]
                        for p in range(layer.points):
                            dx, dy = offsets[h, level, p].tolist()
                            u = uv[b, v, n, 0].item() + dx / values.shape[-1]
                            w = uv[b, v, n, 1].item() + dy / values.shape[-2]
                            part += weights[h, level, p] * bilinear(values, u, w)
                    parts.append(part)
                sums.append(torch.cat(parts))
                logits.append(layer.view_logit(sums[-1]))
            if sums:
                shares = torch.cat(logits).softmax(0)
                result[b, n] = sum(share * g for share, g in zip(shares, sums, strict=True))
    return layer.output(result)


@pytest.fixture
def scene():
    """A layer with random weights and offsets of a few pixels; anchors inside and outside of some frames; sizes not square."""
    torch.manual_seed(0)
    layer = DeformableCrossAttention(width=12, channels=5, heads=2, points=3).double()
    torch.nn.init.normal_(layer.offsets.weight, std=0.5)
    torch.nn.init.normal_(layer.weights.weight, std=0.5)
    torch.nn.init.normal_(layer.values.bias)
    tokens = torch.randn(2, 6, 12, dtype=torch.float64)
    features = tuple(torch.randn(2, 3, 5, h, w, dtype=torch.float64) for h, w in ((8, 10), (5, 4)))
    anchors = torch.rand(2, 6, 3) * 1.6 - 0.8
    anchors[0, 0] = torch.tensor([0.0, 0.0, 9.0])  # above every frame
    uv, visible = project_anchors(anchors, cameras(3, batch=2))
    assert not visible[0, :, 0].any()
    assert visible.any()
    assert not visible[1].all()
    return layer, tokens, features, uv.double(), visible


def test_the_layer_equals_a_loop_over_single_points(scene) -> None:
    layer = scene[0]
    torch.testing.assert_close(layer(*scene[1:])[0], equation_3(*scene))


def test_gradients_match_finite_differences(scene) -> None:
    layer, tokens, features, uv, visible = scene
    inputs = [t.detach().requires_grad_() for t in (tokens, *features, uv)]

    def output(tokens, low, high, uv):
        return layer(tokens, (low, high), uv, visible)[0]

    assert torch.autograd.gradcheck(output, inputs, atol=1e-5, rtol=1e-4, fast_mode=True)


def test_gradients_of_the_parameters_match_finite_differences(scene) -> None:
    layer = scene[0]
    names = [name for name, _ in layer.named_parameters()]

    def output(*values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), scene[1:])

    values = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(output, values, atol=1e-5, rtol=1e-4, fast_mode=True)


def test_a_point_outside_every_view_gets_exactly_zero_and_finite_gradients(scene) -> None:
    layer, tokens, features, uv, visible = scene
    inputs = [t.detach().requires_grad_() for t in (tokens, *features, uv)]
    offsets = torch.zeros(2, 2, 6, 2, 3, 2, dtype=torch.float64)
    weights = torch.full((2, 2, 6, 2, 3), 1 / 6, dtype=torch.float64)
    maps = [[layer.values(level[:, v]) for level in inputs[1:3]] for v in range(3)]
    sums = torch.stack([attend_view(maps[v], inputs[3][:, v], offsets, weights) for v in range(3)], dim=1)
    shares = view_shares(layer.view_logit(sums)[..., 0], visible)
    averaged = (sums * shares[..., None]).sum(dim=1)
    assert (averaged[0, 0] == 0).all()
    assert (averaged[visible.any(dim=1)] != 0).any(dim=-1).all()

    result, _ = layer(inputs[0], (inputs[1], inputs[2]), inputs[3], visible)
    torch.testing.assert_close(result[0, 0], layer.output.bias)
    for gradient in torch.autograd.grad(result.square().sum(), [*inputs, *layer.parameters()]):
        assert torch.isfinite(gradient).all()


def test_a_view_that_does_not_see_the_point_has_no_say(scene) -> None:
    layer, tokens, features, uv, visible = scene
    before, _ = layer(tokens, features, uv, visible)
    b, v, n = (~visible & visible.any(dim=1, keepdim=True)).nonzero()[0].tolist()
    uv = uv.clone()
    uv[b, v, n] = 0.5  # as if a mirror image behind the camera fell into the frame
    torch.testing.assert_close(layer(tokens, features, uv, visible)[0], before, atol=0, rtol=0)


def test_the_order_of_views_changes_nothing(scene) -> None:
    layer, tokens, features, uv, visible = scene
    order = [2, 0, 1]
    swapped, _ = layer(tokens, tuple(f[:, order] for f in features), uv[:, order], visible[:, order])
    torch.testing.assert_close(swapped, layer(tokens, features, uv, visible)[0])


def test_points_behind_a_camera_or_outside_its_frame_are_not_visible() -> None:
    camera = orbit(torch.tensor([0.0]), torch.tensor([0.0]), 2.0, 39.6)[None]
    aside = (1 + 5e-5) / camera.intrinsics[
        0, 0, 0, 0
    ].item()  # behind, where `Cameras.project` gives 0.5, 0.5 all the same
    anchors = torch.tensor([[[0.0, 0.0, 0.0], [4.0, aside, -aside], [0.0, 0.9, 0.0], [0.0, 0.0, 0.7]]])
    uv, visible = project_anchors(anchors, camera)
    assert visible[0, 0].tolist() == [True, False, False, True]
    assert 0 < uv[0, 0, 1, 0] < 1
    assert torch.isfinite(uv).all()
    torch.testing.assert_close(uv[0, 0, 0], torch.tensor([0.5, 0.5]))


def test_the_first_samples_form_a_star_of_one_direction_a_head() -> None:
    layer = DeformableCrossAttention(width=24, channels=4, heads=4, points=2)
    star = layer.offsets(torch.randn(24)).view(4, 2, 2, 2)
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    torch.testing.assert_close(star[:, 0, 0], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(star[:, 1], 1 * star[:, 0])
    torch.testing.assert_close(star[:, :, 1], 2 * star[:, :, 0])
