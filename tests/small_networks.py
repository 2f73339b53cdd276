"""Both networks at a size that a test can afford, the pictures and cameras that they are shown."""

import torch

from geolrm import config
from geolrm.cameras import Cameras, orbit
from geolrm.model.geolrm import GeoLRM

ENCODER = {"dinov2": "scratch", "dinov2_width": 24, "dinov2_layers": 2, "dinov2_heads": 2, "channels": 16}
TRANSFORMER = {"width": 24, "layers": 2, "heads": 2, "sampling_points": 2}
SMOKE = config.load_params("presets/smoke.yaml")
PROPOSAL = SMOKE.proposal.model_copy(
    update={
        "encoder": config.Encoder(**ENCODER),
        "transformer": config.Transformer(**TRANSFORMER),
        "coarse_resolution": 4,
        "voxel_resolution": 12,
    }
)
RECONSTRUCTION = SMOKE.reconstruction.model_copy(
    update={
        "encoder": config.Encoder(**ENCODER),
        "transformer": config.Transformer(**TRANSFORMER),
        "max_anchors": 64,
        "gaussians_per_token": 5,
    }
)


def rig(count: int, batch: int = 1) -> Cameras:
    ring = orbit(torch.arange(count) * 360.0 / count, torch.full((count,), 15.0), 2.0, 39.6)
    return ring[torch.arange(count).expand(batch, count)]


def pictures(count: int, batch: int = 1, size: int = 42) -> torch.Tensor:
    return torch.rand(batch, count, 3, size, size, generator=torch.Generator().manual_seed(count))


def plant(model: GeoLRM, bias: float) -> None:
    torch.nn.init.zeros_(model.proposal.upsampling.weight)
    torch.nn.init.constant_(model.proposal.upsampling.bias, bias)
