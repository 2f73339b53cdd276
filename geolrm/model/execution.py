"""How the model's arithmetic is carried out: in which precision, and by fused kernels or by the readable definitions.

In: what the caller asks for, and what the machine has. Out: contexts to run a network in, and the choice of a kernel. Convention:
in bfloat16 run matrix products, convolutions and attention's queries, keys and values; cameras, projections, RoPE angles,
norms, softmax statistics, the Gaussian head, rasterizer and losses stay float32, as do all weights on disk and in memory (a
weight is cast where it is used, unless `halve_weights` did so for good). `auto` is bfloat16 on a CUDA device that has it and
float32 elsewhere. A kernel of `geolrm.kernels` stands in for its definition on CUDA where Triton is installed; without
Triton, or without that folder, the definition runs everywhere. Trade: bfloat16 moves a logit near zero to the other side now
and then, so that the proposed voxels differ a little between precisions. Verified by `tests/kernels` and measured by
`benchmarks/speed/model.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache
from types import ModuleType

import torch
from torch import Tensor, nn

from geolrm.config import Precision

OLDEST_DEVICE = (8, 0)  # CUDA compute capability of the first one with bfloat16

_definitions = ContextVar("definitions", default=False)


def products_in_bfloat16(precision: Precision, device: torch.device) -> bool:
    """What `precision` means on this device."""
    if precision != "auto":
        return precision == "bf16"
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= OLDEST_DEVICE


def in_precision(precision: Precision, device: torch.device) -> torch.autocast:
    """A context in which networks on `device` run in this precision."""
    wanted = products_in_bfloat16(precision, device)
    # no cache of cast weights: it would hold a second copy of the model
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted, cache_enabled=False)


def halve_weights(*networks: nn.Module) -> None:
    """Keep in bfloat16 what bfloat16 products would cast at each use: the same numbers, half the memory, no way back.

    For a model that is only used. Give it encoders and transformer blocks: the weights of their linear maps and
    convolutions are cast, all but those of the views' softmax.
    """
    for network in networks:
        for name, module in network.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) and not name.endswith("view_logit"):
                module.weight.data = module.weight.data.to(torch.bfloat16)


@contextlib.contextmanager
def definitions_only() -> Iterator[None]:
    """Run the readable definitions where kernels would stand in, to compare the two."""
    before = _definitions.set(True)
    try:
        yield
    finally:
        _definitions.reset(before)


@cache
def _load_kernels() -> tuple[dict[str, ModuleType], str]:
    """The modules of `geolrm.kernels` by name, and what is missing where there are none."""
    try:
        from geolrm.kernels import deformable, pictures
    except ImportError as error:
        return {}, f"{error.name or error} is not installed"
    return {"deformable": deformable, "pictures": pictures}, ""


def missing_for_kernels(device: torch.device) -> str:
    """Why the definitions run on this device; empty where kernels do."""
    if device.type != "cuda":
        return "no CUDA device"
    if torch.cuda.get_device_capability(device) < OLDEST_DEVICE:
        return f"{torch.cuda.get_device_name(device)} is older than the kernels support"
    return _load_kernels()[1]


def kernel(name: str, *inputs: Tensor) -> ModuleType | None:
    """The kernel module that stands in for a definition on these inputs, or None: then the definition runs."""
    if _definitions.get() or any(t.dtype == torch.float64 for t in inputs) or missing_for_kernels(inputs[0].device):
        return None
    return _load_kernels()[0][name]
