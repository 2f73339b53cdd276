"""Kernels run where they can: on a CUDA device, and by Triton's interpreter on the CPU of a machine without one."""

import os

import pytest
import torch

CUDA = torch.cuda.is_available()
if not CUDA:
    os.environ["TRITON_INTERPRET"] = (
        "1"  # read when the kernels are imported, which nothing but tests does without CUDA
    )

pytest.importorskip("triton", reason="Triton is not installed: the readable definitions run instead")


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if CUDA else "cpu")
