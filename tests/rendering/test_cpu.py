"""The numba rasterizer against the definition, closed forms and itself on other numbers of threads."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geolrm.cameras import Cameras, intrinsics_from_fov, look_at
from geolrm.failures import BadInput
from geolrm.gaussians import Gaussians
from geolrm.rendering import Rendering, definition, render

NAMES = ("means", "sh_dc", "opacity_logits", "log_scales", "quaternions")


def cloud(count: int, seed: int, spread: float = 0.3, scale: float = 0.04) -> Gaussians:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    scales = math.log(scale) + 0.6 * normal(count, 3)
    return Gaussians(spread * normal(count, 3), normal(count, 3), 2 * normal(count), scales, normal(count, 4))


def ring(views: int, seed: int = 0) -> Cameras:
    """Cameras around the origin, unlike each other, their principal points off the middle."""
    draw = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(views, 3, generator=draw), dim=-1)
    intrinsics = intrinsics_from_fov(0.7, 0.9).repeat(views, 1, 1)
    intrinsics[:, :2, 2] += 0.1 * torch.rand(views, 2, generator=draw)
    return Cameras(look_at((1.5 + torch.rand(views, 1, generator=draw)) * directions), intrinsics)


def front(fov_degrees: float = 40.0) -> Cameras:
    """One camera at (0, -2, 0) looking along +y."""
    return Cameras(look_at(torch.tensor([[0.0, -2.0, 0.0]])), intrinsics_from_fov(math.radians(fov_degrees))[None])


def value_and_gradients(
    renderer: Callable[..., Rendering], gaussians: Gaussians, cameras: Cameras, height: int, width: int
) -> tuple[Rendering, tuple[Tensor, ...]]:
    """The rendering, and the gradients of a fixed random weighting of all that it holds."""
    leaves = Gaussians(*(t.clone().requires_grad_() for t in gaussians.tensors))
    rendering = renderer(leaves, cameras, height, width, 0.4)
    draw = torch.Generator().manual_seed(1)
    pictures = (rendering.colour, rendering.alpha, rendering.depth)
    loss = sum((p * torch.randn(p.shape, generator=draw).to(p)).mean() for p in pictures)
    assert isinstance(loss, Tensor)
    return rendering, torch.autograd.grad(loss, leaves.tensors)


def assert_same(a: Rendering, b: Rendering, tolerance: float = 1e-4) -> None:
    """Equal but for at most one pixel in 500, where a weight may fall on the other side of the threshold 1/255."""
    for name in ("colour", "alpha", "depth"):
        x, y = getattr(a, name).cpu(), getattr(b, name).cpu()
        assert x.shape == y.shape, name
        error = (x - y).abs()
        # a pixel whose only weight is on the threshold has a depth on one side and none on the other
        crossed = (a.alpha.cpu()[:, 0] - b.alpha.cpu()[:, 0]).abs() > 1e-3
        error = error.masked_fill(crossed if name == "depth" else crossed[:, None], 0)
        assert crossed.float().mean() <= 1 / 500, name
        assert error.numel() == 0 or error.max() <= tolerance, f"{name} is off by {error.max():.2g}"


def assert_close_gradients(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    for name, x, y in zip(NAMES, got, expected, strict=True):
        scale = max(y.norm().item(), 1e-6)
        assert (x.cpu() - y.cpu()).norm() <= tolerance * scale, f"{name}: {(x.cpu() - y.cpu()).norm() / scale:.2g}"


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("count", "views", "height", "width", "spread"),
    [
        pytest.param(300, 1, 48, 48, 0.3, id="one view"),
        pytest.param(200, 5, 37, 50, 0.3, id="five views, odd sizes"),
        pytest.param(400, 3, 70, 33, 1.5, id="many behind the cameras and outside the frame"),
        pytest.param(1, 2, 8, 90, 0.0, id="one Gaussian"),
        pytest.param(3000, 1, 24, 24, 0.1, id="pixels that close early"),
    ],
)
def test_the_tile_rasterizer_equals_the_definition(
    count: int, views: int, height: int, width: int, spread: float
) -> None:
    gaussians, cameras = cloud(count, seed=count, spread=spread), ring(views)
    got, got_gradients = value_and_gradients(render, gaussians, cameras, height, width)
    expected, gradients = value_and_gradients(definition.render, gaussians, cameras, height, width)
    assert expected.alpha.max() > 0.1
    assert_same(got, expected)
    assert_close_gradients(got_gradients, gradients, tolerance=2e-3)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    count=st.integers(0, 40),
    views=st.integers(1, 3),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    spread=st.sampled_from([0.05, 0.4, 2.0]),
    scale=st.sampled_from([0.003, 0.05, 0.4]),
)
def test_any_small_scene_equals_the_definition(
    count: int, views: int, height: int, width: int, spread: float, scale: float
) -> None:
    gaussians, cameras = cloud(count, 7 * count + height, spread, scale), ring(views, seed=width)
    got, got_gradients = value_and_gradients(render, gaussians, cameras, height, width)
    expected, gradients = value_and_gradients(definition.render, gaussians, cameras, height, width)
    error = (got.alpha - expected.alpha).abs()
    assert (error > 1e-4).sum() <= 1 + error.numel() / 500
    if error.max() <= 1e-4:
        assert_same(got, expected)
        assert_close_gradients(got_gradients, gradients, tolerance=1e-2)


def test_rendering_by_tiles_equals_the_definition() -> None:
    gaussians, cameras = cloud(150, seed=3), ring(2)
    got, got_gradients = value_and_gradients(definition.render_by_tiles, gaussians, cameras, 40, 27)
    expected, gradients = value_and_gradients(definition.render, gaussians, cameras, 40, 27)
    assert_same(got, expected, tolerance=1e-5)
    assert_close_gradients(got_gradients, gradients, tolerance=1e-4)


def test_gradients_of_the_definition_are_finite_differences() -> None:
    gaussians = cloud(4, seed=2, spread=0.1, scale=0.2)
    doubles = [t.double().requires_grad_() for t in gaussians.tensors]
    cameras = Cameras(*(t.double() for t in (ring(2).camera_to_world, ring(2).intrinsics)))

    def pictures(*tensors: Tensor) -> tuple[Tensor, ...]:
        rendering = definition.render(Gaussians(*tensors), cameras, 5, 6)
        return rendering.colour, rendering.alpha, rendering.depth

    assert torch.autograd.gradcheck(pictures, doubles, eps=1e-6, atol=1e-6)


def test_gradients_of_the_rasterizer_are_finite_differences() -> None:
    means, sh_dc, logits, log_scales, quaternions = cloud(6, seed=2, spread=0.1).tensors
    # wide enough to cover the frame: where a weight falls below the threshold inside it, differences see a jump
    gaussians = Gaussians(means, sh_dc, logits.abs() / 2, 0.2 * (log_scales + 3) - 0.3, quaternions)
    cameras = ring(1)
    draw = torch.Generator().manual_seed(5)
    target = torch.rand(1, 3, 20, 20, generator=draw)

    def loss(g: Gaussians) -> Tensor:
        rendering = render(g, cameras, 20, 20)
        return ((rendering.colour - target).double() ** 2).sum() + (rendering.depth.double() ** 2).sum() / 10

    leaves = Gaussians(*(t.clone().requires_grad_() for t in gaussians.tensors))
    gradients = torch.autograd.grad(loss(leaves), leaves.tensors)
    for i, (name, gradient) in enumerate(zip(NAMES, gradients, strict=True)):
        direction = torch.randn(gradient.shape, generator=draw)
        step = 1e-4 * direction  # larger steps change the order in depth
        ahead, behind = ([*gaussians.tensors] for _ in range(2))
        ahead[i], behind[i] = ahead[i] + step, behind[i] - step
        difference = (loss(Gaussians(*ahead)) - loss(Gaussians(*behind))).item() / 2e-4
        assert (gradient * direction).sum().item() == pytest.approx(difference, rel=0.01, abs=0.2), name


def test_numbers_are_bit_equal_whatever_the_number_of_threads(threads: None) -> None:
    gaussians, cameras = cloud(2000, seed=0), ring(3)
    runs = []
    for count in (1, 2, 3, 2):
        torch.set_num_threads(count)
        rendering, gradients = value_and_gradients(render, gaussians, cameras, 80, 60)
        runs.append((rendering.colour, rendering.alpha, rendering.depth, *gradients))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_rendering_leaves_the_number_of_threads_of_torch_alone() -> None:
    program = """
import torch
from geolrm.cameras import orbit
from geolrm.gaussians import Gaussians
from geolrm.rendering import render
one = Gaussians(torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1), torch.zeros(1, 3), torch.ones(1, 4))
render(one, orbit(torch.zeros(1), torch.zeros(1), 2.0, 40.0), 16, 16)
print(torch.get_num_threads())
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_one_gaussian_equals_its_closed_form() -> None:
    scale, opacity, size, fov = 0.05, 0.7, 33, 40.0
    colour = torch.tensor([[0.9, 0.2, 0.1]])
    one = Gaussians.from_activated(
        torch.zeros(1, 3), colour, torch.tensor([opacity]), torch.full((1, 3), scale), torch.tensor([[2.0, 0, 0, 0]])
    )
    rendering = render(one, front(fov), size, size, background=0.0)
    focal = 0.5 * size / math.tan(math.radians(fov) / 2)
    variance = (focal * scale / 2.0) ** 2 + 0.3
    offset = torch.arange(size) + 0.5 - size / 2
    alpha = opacity * torch.exp(-0.5 * (offset[:, None] ** 2 + offset**2) / variance)
    alpha = torch.where(alpha >= 1 / 255, alpha, 0)
    torch.testing.assert_close(rendering.alpha[0, 0], alpha, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(rendering.colour[0], colour[0, :, None, None] * alpha, atol=1e-6, rtol=1e-5)
    # alpha is 1 - transmittance in float32: at 1/255 it holds five digits
    torch.testing.assert_close(rendering.depth[0], 2.0 * (alpha > 0), atol=5e-5, rtol=0)


def test_depth_of_a_plane_is_the_plane() -> None:
    x, z = torch.meshgrid(torch.linspace(-1, 1, 60), torch.linspace(-1, 1, 60), indexing="ij")
    means = torch.stack([x.flatten(), torch.full((3600,), 0.25), z.flatten()], dim=-1)
    scales = torch.tensor([0.03, 0.001, 0.03]).expand(3600, 3)
    plane = Gaussians.from_activated(
        means, torch.rand(3600, 3), torch.full((3600,), 0.6), scales, torch.tensor([[1.0, 0, 0, 0]]).expand(3600, 4)
    )
    rendering = render(plane, front(), 64, 48)
    assert rendering.alpha.min() > 0.9
    torch.testing.assert_close(rendering.depth, torch.full((1, 64, 48), 2.25), atol=2e-6, rtol=0)


def test_the_nearer_gaussian_covers_the_farther_whatever_their_order() -> None:
    means = torch.tensor([[0.0, -0.2, 0.0], [0.0, 0.3, 0.0]])
    colours = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
    pair = Gaussians.from_activated(means, colours, torch.full((2,), 0.98), torch.full((2, 3), 0.2), torch.ones(2, 4))
    for order in (torch.tensor([0, 1]), torch.tensor([1, 0])):
        middle = render(pair[order], front(), 21, 21).colour[0, :, 10, 10]
        assert middle[0] > 0.95
        assert middle[1] < 0.05


def test_no_gaussians_render_the_background() -> None:
    empty = Gaussians(*(t.requires_grad_() for t in Gaussians.empty().tensors))
    rendering = render(empty, ring(2), 12, 10, background=torch.tensor([0.1, 0.2, 0.3]))
    assert torch.equal(rendering.colour, torch.tensor([0.1, 0.2, 0.3])[None, :, None, None].expand(2, 3, 12, 10))
    assert not rendering.alpha.any()
    assert not rendering.depth.any()
    rendering.colour.sum().backward()  # a training step on an object without Gaussians goes on


def test_gaussians_that_no_camera_sees_render_the_background_and_get_no_gradient() -> None:
    behind = cloud(50, seed=0, spread=0.01)
    moved = Gaussians(behind.means + torch.tensor([0.0, -4.0, 0.0]), *behind.tensors[1:])
    rendering, gradients = value_and_gradients(render, moved, front(), 20, 20)
    assert torch.equal(rendering.colour, torch.full((1, 3, 20, 20), 0.4))
    assert not any(g.any() for g in gradients)


def test_each_view_may_have_its_own_background() -> None:
    empty = Gaussians.empty()
    backgrounds = torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.0, 0.25]])
    assert torch.equal(render(empty, ring(2), 4, 4, backgrounds).colour[:, :, 2, 1], backgrounds)


@pytest.mark.parametrize("name", NAMES)
def test_gaussians_with_nan_are_bad_input_and_no_picture(name: str) -> None:
    tensors = [t.clone() for t in cloud(5, seed=0).tensors]
    tensors[NAMES.index(name)].view(-1)[2] = math.nan
    with pytest.raises(BadInput) as raised:
        render(Gaussians(*tensors), ring(1), 8, 8)
    assert raised.value.reason == "gaussians_not_finite"


def test_cameras_without_a_view_dimension_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(V,\)"):
        render(cloud(5, seed=0), ring(1)[0], 8, 8)
