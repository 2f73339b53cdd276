"""The fused kernel of deformable cross-attention against its definition, in values and in all gradients.

Small sizes run anywhere (on a CPU by Triton's interpreter), sizes like those in use on a GPU (`pytest -m gpu`).
"""

import pytest
import torch

from geolrm.cameras import orbit
from geolrm.kernels import deformable as kernel
from geolrm.model import execution
from geolrm.model.deformable import DeformableCrossAttention, average_views, project_anchors

NAMES = ("output", "shares", "low", "high", "projection", "bias", "view_logit", "offsets", "weights")


def scene(device, *, batch, tokens, views, heads, width, points, channels, sizes, reach=0.8):
    """Inputs of `attend`: points in and out of frames (the first in none), samples in and out of maps that are not square."""
    torch.manual_seed(0)
    anchors = (torch.rand(batch, tokens, 3) * 2 - 1) * reach
    anchors[0, 0] = torch.tensor([0.0, 0.0, 9.0])
    ring = orbit(torch.arange(views) * 360.0 / views, torch.full((views,), 15.0), 2.0, 39.6)
    uv, visible = project_anchors(anchors, ring[torch.arange(views).expand(batch, views)])
    assert not visible[0, :, 0].any()
    assert visible.any()
    offsets = torch.randn(batch, tokens, heads, 2, points, 2) * 3
    weights = torch.randn(batch, tokens, heads, 2 * points).softmax(dim=-1).unflatten(-1, (2, points))
    maps = [torch.randn(batch, views, channels, h, w) for h, w in sizes]
    projection, bias, logit = torch.randn(width, channels) * channels**-0.5, torch.randn(width), torch.randn(width)
    leaves = [t.to(device) for t in (*maps, projection, bias, logit * width**-0.5, offsets, weights)]
    return leaves, uv.to(device), visible.to(device)


def results(attend, leaves, uv, visible):
    """Output, shares, and the gradients of all leaves under random weights of both."""
    leaves = [t.detach().requires_grad_() for t in leaves]
    output, shares = attend((leaves[0], leaves[1]), *leaves[2:], uv, visible)
    draw = torch.Generator(uv.device).manual_seed(1)
    weights = [torch.randn(t.shape, generator=draw, device=uv.device) for t in (output, shares)]
    loss = (output * weights[0]).sum() + (shares * weights[1]).sum()
    return [output.detach(), shares.detach(), *torch.autograd.grad(loss, leaves)]


def on_a_kink(offsets, uv, maps):
    """Offsets whose sample lies on the line between two cells' centres in some view: there the gradient jumps, to either side."""
    sizes = torch.tensor([[m.shape[-1], m.shape[-2]] for m in maps], device=uv.device)  # (levels, 2)
    places = uv[:, :, :, None, None, None].double() * sizes[:, None] + offsets[:, None].double() - 0.5
    return ((places - places.round()).abs() < 1e-4).any(dim=1)


def assert_agree(leaves, uv, visible, dtype, limit) -> None:
    """Relative difference (Frobenius) of everything to the definition in float64, on maps of the kernel's precision."""
    leaves = [t.to(dtype) if i < 4 else t for i, t in enumerate(leaves)]  # maps, projection, bias
    ours = results(kernel.attend, leaves, uv, visible)
    theirs = results(average_views, [t.double() for t in leaves], uv.double(), visible)
    kinks = on_a_kink(leaves[5], uv, leaves[:2])
    assert kinks.float().mean() < 0.05
    ours[7], theirs[7] = ours[7].masked_fill(kinks, 0), theirs[7].masked_fill(kinks, 0)
    assert (ours[0][0, 0] == 0).all()  # seen by no view
    assert (ours[1][0, :, 0] == 0).all()
    errors = {
        n: ((a - b).norm() / b.norm().clamp(min=1e-9)).item() for n, a, b in zip(NAMES, ours, theirs, strict=True)
    }
    assert {name: error for name, error in errors.items() if not error < limit} == {}


SMALL = {
    "batch": 2,
    "tokens": 5,
    "views": 3,
    "heads": 2,
    "width": 12,
    "points": 2,
    "channels": 5,
    "sizes": ((6, 9), (4, 3)),
}


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"views": 1, "tokens": 1, "batch": 1, "reach": 0.0},
        {"heads": 3, "width": 54, "points": 3},  # thirds of 6 channels
        {"sizes": ((1, 1), (1, 2)), "reach": 0.3},
    ],
    ids=["small", "one of each", "odd", "tiny maps"],
)
def test_values_and_gradients_equal_those_of_the_definition(device, change, dtype, limit) -> None:
    if change.get("reach") == 0.0:
        change = change | {"tokens": 2}
    assert_agree(*scene(device, **(SMALL | change)), dtype, limit)


def test_views_in_chunks_give_what_all_at_once_give(device, monkeypatch) -> None:
    monkeypatch.setattr(kernel, "VALUE_BYTES", 1)  # one view at a time
    assert_agree(*scene(device, **(SMALL | {"views": 5})), torch.float32, 1e-5)


def test_a_token_block_that_is_not_full_leaves_the_rest_alone(device, monkeypatch) -> None:
    """Programs take several tokens; the last has fewer, and no program writes beyond its own."""
    monkeypatch.setattr(kernel, "ROWS", 8)
    monkeypatch.setattr(kernel, "TOKENS", 4)
    assert_agree(*scene(device, **(SMALL | {"tokens": 6})), torch.float32, 1e-5)


def test_the_online_softmax_survives_logits_far_from_zero(device) -> None:
    leaves, uv, visible = scene(device, **SMALL)
    leaves[4] = leaves[4] * 1e3
    output, shares = kernel.attend((leaves[0], leaves[1]), *leaves[2:], uv, visible)
    expected, expected_shares = average_views((leaves[0], leaves[1]), *leaves[2:], uv, visible)
    torch.testing.assert_close(shares, expected_shares, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(output, expected, atol=1e-3, rtol=1e-3)


def test_under_autocast_features_may_come_in_float32(device) -> None:
    leaves, uv, visible = scene(device, **SMALL)
    with torch.autocast(device.type, torch.bfloat16):
        output, shares = kernel.attend((leaves[0], leaves[1]), *leaves[2:], uv, visible)
    expected, _ = average_views((leaves[0], leaves[1]), *leaves[2:], uv, visible)
    assert output.dtype == torch.bfloat16
    assert shares.dtype == torch.float32
    torch.testing.assert_close(output.float(), expected, atol=5e-2, rtol=5e-2)


def test_heads_that_do_not_split_in_three_are_refused(device) -> None:
    leaves, uv, visible = scene(device, **(SMALL | {"width": 16}))
    with pytest.raises(ValueError, match="multiple of 3 channels"):
        kernel.attend((leaves[0], leaves[1]), *leaves[2:], uv, visible)


PAPER = {"heads": 16, "width": 768, "points": 8, "channels": 384}


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize(("batch", "tokens", "views"), [(1, 333, 1), (2, 129, 7), (1, 513, 21), (1, 200, 64)])
def test_sizes_in_use_agree_from_1_to_64_views(device, batch, tokens, views, dtype, limit) -> None:
    sizes = ((29, 30), (17, 16))
    assert_agree(*scene(device, batch=batch, tokens=tokens, views=views, sizes=sizes, **PAPER), dtype, limit)


@pytest.mark.gpu
def test_the_layer_takes_the_kernel_on_its_own_and_the_definition_when_told(device, monkeypatch) -> None:
    taken = []
    monkeypatch.setattr(kernel, "attend", lambda *a, real=kernel.attend: taken.append(1) or real(*a))
    layer = DeformableCrossAttention(48, 10, 4, 3).to(device)
    torch.nn.init.normal_(layer.offsets.weight)
    leaves, uv, visible = scene(device, **(SMALL | {"channels": 10}))
    tokens = torch.randn(2, 5, 48, device=device)
    fused, shares = layer(tokens, (leaves[0], leaves[1]), uv, visible)
    assert taken == [1]
    with execution.definitions_only():
        plain, plain_shares = layer(tokens, (leaves[0], leaves[1]), uv, visible)
    assert taken == [1]
    torch.testing.assert_close(fused, plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(shares, plain_shares, atol=1e-4, rtol=1e-4)
