"""Precision and the choice of kernels: what is asked for happens, what is not there is named, and everything still runs."""

import math
import sys

import pytest
import torch
from small_networks import plant, rig

from geolrm.model import execution
from geolrm.model.geolrm import GeoLRM
from geolrm.rendering import render

CUDA = torch.device("cuda")


@pytest.fixture
def young_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA device that kernels would run on, whatever this machine has."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    execution._load_kernels.cache_clear()
    yield
    execution._load_kernels.cache_clear()


@pytest.mark.parametrize("absent", ["triton", "geolrm.kernels"])
def test_without_triton_or_without_the_kernels_the_definitions_run_and_the_reason_is_named(
    young_device: None, monkeypatch: pytest.MonkeyPatch, absent: str
) -> None:
    for name in [n for n in sys.modules if n.startswith("geolrm.kernels")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("geolrm.kernels.deformable", raising=False)
    monkeypatch.setitem(sys.modules, absent, None)
    assert execution.missing_for_kernels(CUDA) == f"{absent} is not installed"


def test_where_triton_is_kernels_run_on_cuda_and_nowhere_else(young_device: None) -> None:
    pytest.importorskip("triton")
    assert execution.missing_for_kernels(CUDA) == ""
    assert execution.missing_for_kernels(torch.device("cpu")) == "no CUDA device"
    assert execution.kernel("deformable", torch.zeros(1)) is None


def test_auto_means_bfloat16_where_a_gpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, expected in (((9, 0), True), ((8, 0), True), ((7, 5), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_, c=capability: c)
        assert execution.products_in_bfloat16("auto", CUDA) is expected
    assert not execution.products_in_bfloat16("auto", torch.device("cpu"))
    assert execution.products_in_bfloat16("bf16", torch.device("cpu"))
    assert not execution.products_in_bfloat16("fp32", CUDA)


def test_float32_asked_for_wins_over_an_outer_autocast() -> None:
    a = torch.randn(4, 4)
    with torch.autocast("cpu", torch.bfloat16), execution.in_precision("fp32", torch.device("cpu")):
        assert (a @ a).dtype == torch.float32
    with execution.in_precision("bf16", torch.device("cpu")):
        assert (a @ a).dtype == torch.bfloat16


def test_on_a_cpu_auto_gives_the_bits_of_float32(model: GeoLRM, views) -> None:
    plant(model, 1.0)
    for a, b in zip(model.reconstruct(views).tensors, model.reconstruct(views, precision="fp32").tensors, strict=True):
        assert torch.equal(a, b)


def test_in_bfloat16_the_stream_of_tokens_the_logits_and_the_gaussians_stay_float32(model: GeoLRM, views) -> None:
    plant(model, 1.0)
    seen = {}
    for block in model.reconstruction.transformer.blocks:
        block.register_forward_hook(lambda _, inputs, outputs: seen.update(stream=outputs[0].dtype))
        block.self_attention.register_forward_hook(lambda _, inputs, outputs: seen.update(attention=outputs.dtype))
        block.cross_attention.register_forward_hook(
            lambda _, inputs, outputs: seen.update(
                features=inputs[1][0].dtype, uv=inputs[2].dtype, shares=outputs[1].dtype
            )
        )
    model.proposal.register_forward_hook(lambda _, inputs, outputs: seen.update(logits=outputs.dtype))
    gaussians = model.reconstruct(views, precision="bf16")
    low = {name for name, dtype in seen.items() if dtype == torch.bfloat16}
    assert low == {"attention", "features"}
    assert all(t.dtype == torch.float32 for t in gaussians.tensors)


def decibels(model: GeoLRM, views) -> float:
    """PSNR between renders of bf16 and fp32 Gaussians from the same anchors."""
    plant(model, 1.0)
    sets = [model.reconstruct(views, precision=precision).to("cpu") for precision in ("bf16", "fp32")]
    fast, full = (render(s, rig(2)[0], 48, 48).colour for s in sets)
    assert full.std() > 0.02
    return -10 * math.log10((fast - full).square().mean().item())


def test_renders_in_bfloat16_are_those_of_float32_to_50_decibels(model: GeoLRM, views) -> None:
    assert decibels(model, views) > 50


@pytest.mark.gpu
def test_on_a_gpu_too_with_the_fused_kernels(model: GeoLRM, views) -> None:
    assert decibels(model.to("cuda"), views) > 50


def test_halved_weights_give_the_same_gaussians_in_half_the_memory(model: GeoLRM, views) -> None:
    plant(model, 1.0)
    before = model.reconstruct(views, precision="bf16")

    def bytes_of() -> int:
        return sum(p.numel() * p.element_size() for p in model.reconstruction.transformer.parameters())

    whole = bytes_of()
    after = model.for_use_in_bfloat16().reconstruct(views, precision="bf16")
    assert bytes_of() < 0.6 * whole
    for a, b in zip(before.tensors, after.tensors, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-3)
