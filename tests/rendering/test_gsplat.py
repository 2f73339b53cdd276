"""Both backends draw the same pictures. The comparison itself needs a GPU; its failure messages do not."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from geolrm.cameras import orbit
from geolrm.gaussians import Gaussians
from geolrm.rendering import cuda, render


def scene(count: int) -> Gaussians:
    """Gaussians on and around a sphere, small and large, faint and opaque, some behind the cameras."""
    draw = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=draw), dim=-1)
    means = directions * 0.4 + 0.02 * torch.randn(count, 3, generator=draw)
    means[::50] *= 6.0
    return Gaussians(
        means,
        torch.randn(count, 3, generator=draw),
        2 * torch.randn(count, generator=draw),
        math.log(0.015) + 0.7 * torch.randn(count, 3, generator=draw),
        torch.randn(count, 4, generator=draw),
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("height", "width"), [(128, 128), (90, 139)])
def test_pictures_and_gradients_equal_those_of_gsplat(height: int, width: int) -> None:
    pytest.importorskip("gsplat", reason=f"gsplat is not installed: {cuda.INSTALL}")
    gaussians = scene(8000)
    cameras = orbit(torch.tensor([0.0, 50.0, 170.0]), torch.tensor([5.0, 30.0, -40.0]), 2.0, 39.6)
    renderings, gradients = [], []
    for device in ("cpu", "cuda"):
        leaves = Gaussians(*(t.to(device).requires_grad_() for t in gaussians.tensors))
        rendering = render(leaves, cameras, height, width, 0.4)
        pictures = (rendering.colour, rendering.alpha, rendering.depth)
        draw = torch.Generator().manual_seed(1)
        weights = [torch.randn(p.shape, generator=draw).to(device) for p in pictures]
        loss = torch.stack([(p * w).mean() for p, w in zip(pictures, weights, strict=True)]).sum()
        gradients.append([g.cpu() for g in torch.autograd.grad(loss, leaves.tensors)])
        renderings.append([p.detach().cpu() for p in pictures])
    # a weight on the other side of the threshold 1/255 may change a pixel in 500
    crossed = (renderings[0][1] - renderings[1][1]).abs() > 1e-3
    assert crossed.float().mean() <= 1 / 500
    errors = {}
    for name, ours, theirs in zip(("colour", "alpha", "depth"), *renderings, strict=True):
        error = (ours - theirs).abs().masked_fill(crossed[:, 0] if name == "depth" else crossed, 0)
        errors[name] = error.max().item()
    names = ("means", "sh_dc", "opacity_logits", "log_scales", "quaternions")
    for name, ours, theirs in zip(names, *gradients, strict=True):
        errors[f"gradient of {name}"] = ((ours - theirs).norm() / theirs.norm()).item()
    print(f"{crossed.float().mean():.2g} of the pixels crossed a threshold", errors)
    limits = {"colour": 5e-4, "alpha": 5e-4, "depth": 1e-3}
    assert {name: error for name, error in errors.items() if error > limits.get(name, 5e-3)} == {}


def test_without_a_cuda_device_gsplat_is_never_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "gsplat", None)
    with pytest.raises(RuntimeError, match="CUDA device"):
        cuda.load_gsplat()


def test_a_missing_gsplat_names_the_command_that_adds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "gsplat", None)
    with pytest.raises(ImportError, match=r"pip install 'geolrm\[gpu\]'"):
        cuda.load_gsplat()
