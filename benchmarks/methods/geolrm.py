"""GeoLRM itself, default mode: both trained stages of this preset, and what its controls share with it."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.methods import Context, Method, Spec
from benchmarks.stages import name_stage
from geolrm.config import Precision
from geolrm.gaussians import Gaussians
from geolrm.model.execution import in_precision, products_in_bfloat16
from geolrm.model.geolrm import GeoLRM
from geolrm.training.checkpoint import load_geolrm
from geolrm.views import Views

SPEC = Spec(
    what="GeoLRM as this preset trained it: proposal network, anchor points, reconstruction transformer",
    inputs="any number of posed pictures, composited on white, resized inside the encoder",
    cameras="exact, OpenCV camera-to-world, object frame",
    licence="Apache-2.0, code and weights of this repository",
    weights="results/<preset>/{proposal,reconstruction}/checkpoint.safetensors, made by `dvc repro`",
    paper="100 GSO objects at 512 px (arXiv:2406.15333, main table): PSNR 23.57; 22.84 to 25.13 from 4 to 20 views (Table 3). "
    "Objects, cameras and test views are unpublished, its LPIPS network is not named; weights trained on Objaverse, not these",
)


DIFFERS = "100 objects; their list, cameras, test views and scripts are unpublished; trained on Objaverse"
PAPER = (  # CD is the sum of both unsquared directions in [-1, 1]^3; LPIPS of an unnamed network
    {
        **{"table": "GeoLRM, GSO", "differs": DIFFERS, "psnr": 23.57, "ssim": 0.872, "lpips": 0.167, "cd_sum": 0.167},
        **{"fscore_0.2": 0.892, "latency_s": 0.67, "memory_gb": 4.92},
    },
    {
        **{"table": "GeoLRM, OmniObject3D", "differs": DIFFERS, "psnr": 24.74, "ssim": 0.883, "lpips": 0.134},
        **{"cd_sum": 0.156, "fscore_0.2": 0.863},
    },
)
PRECISION: Precision = "auto"  # of all that is computed here, so that the controls have the anchor points of `geolrm`


def precision_on(device: torch.device) -> str:
    """What `PRECISION` means on this device, for the passport."""
    return "bfloat16" if products_in_bfloat16(PRECISION, device) else "float32"


def prepared(model: GeoLRM, records: dict[str, Any], device: torch.device) -> tuple[GeoLRM, str]:
    """The model on its device, its stages named, and one hash for the two checkpoints."""
    name_stage("proposal", model.proposal)
    name_stage("reconstruction", model.reconstruction)
    both = "".join(str(records[stage]["sha256"]) for stage in ("proposal", "reconstruction"))
    return model.to(device), hashlib.sha256(both.encode()).hexdigest()


@lru_cache(maxsize=2)
def _load(folder: Path, device: torch.device, written: tuple[int, ...]) -> tuple[GeoLRM, str]:
    """Networks and hash of both checkpoints; `written` renews the cache when the files change."""
    return prepared(*load_geolrm(folder), device)


def load_networks(context: Context) -> tuple[GeoLRM, str]:
    """Both stages in eval mode on the context's device, and one hash for the two checkpoints; read once per process."""
    files = [context.results / stage / "checkpoint.json" for stage in ("proposal", "reconstruction")]
    return _load(context.results, context.device, tuple(f.stat().st_mtime_ns if f.exists() else 0 for f in files))


@torch.no_grad()
def anchors_of(model: GeoLRM, views: Views, max_anchors: int) -> Tensor:
    """(N, 3) anchor points that the model proposes for these views, N = 0 where it sees nothing."""
    with in_precision(PRECISION, views.colour.device):
        occupied = model.proposal(views.composited()[None], views.cameras[None])[0] > 0
    return model.reconstruction.anchors_of(occupied, max_anchors)


def load(context: Context) -> Method:
    """Raises `BadInput` where a checkpoint is missing or damaged."""
    return method(*load_networks(context), context)


def method(model: GeoLRM, checkpoint: str, context: Context) -> Method:
    """The method of a prepared model."""

    def reconstruct(views: Views) -> Gaussians:
        return model.reconstruct(views, context.params.sweep.max_anchors, PRECISION)

    return Method(reconstruct, checkpoint, precision_on(context.device))
