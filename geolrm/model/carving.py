"""Carving cues: how well the pictures agree about a point (space carving, Kutulakos and Seitz 2000).

In: points, pictures composited on white, cameras. Out: eight numbers a point, and from them what is added to a voxel's logit:
mean and standard deviation of the colours that the views show there, the whitest of them, and the share of the views that see
it. A point on a surface shows like colours, a point in the open shows the white background in some view, and neither needs to
be learned; two small convolutions over the grid of cues find where the open ends. Convention: a view sees a point in front of
it and inside its frame; a point that no view sees has mean grey, deviation 0, whitest 0, share 0. Trade: not in the paper; a
few bilinear reads a point, one view at a time, raise occupancy IoU from 0.32 to 0.38 in 300 steps, and the neighbours' cues to
0.46; the tokens of the second stage, which start from the cues at their anchor points, gain half a dB (LOG.md). Verified on flat
pictures, on points that no view sees, and by how far cues reach.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geolrm.cameras import NEAR, Cameras
from geolrm.model import execution
from geolrm.occupancy import voxel_centres

CUES = 8
WIDTH = 16
INITIAL_SPREAD = 0.02  # of the last weights: at first the cues say little


def look_up(points: Tensor, images: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """What pictures (V, 3, H, W) show at points (M, 3): colours (V, M, 3), and whether each sees them (V, M, 1) bool."""
    uv, depth = cameras.project(points)
    visible = (depth > NEAR) & (uv >= 0).all(dim=-1) & (uv <= 1).all(dim=-1)
    colours = F.grid_sample(images, 2 * uv[:, None] - 1, padding_mode="border", align_corners=False)
    return colours[:, :, 0].transpose(1, 2), visible[..., None]


def carving_cues(points: Tensor, images: Tensor, cameras: Cameras) -> Tensor:
    """Cues of one object.

    Args:
        points: (M, 3) object units.
        images: (V, 3, H, W) in [0, 1], composited on white.
        cameras: (V,).

    Returns:
        (M, 8) float32, each about in [-1, 1]: mean colour, four times the deviation, whiteness stretched around 0.75,
        share of the views.
    """
    if kernel := execution.kernel("pictures", points):
        return kernel.carving_cues(points, images, cameras)
    total, squares = torch.zeros_like(points), torch.zeros_like(points)
    count, whitest = torch.zeros_like(points[:, :1]), torch.zeros_like(points[:, :1])
    for view in range(len(images)):
        seen_by = slice(view, view + 1)
        colours, visible = (part[0] for part in look_up(points, images[seen_by], cameras[seen_by]))
        colours = colours * visible
        total, squares, count = total + colours, squares + colours.square(), count + visible
        whitest = torch.maximum(whitest, colours.amin(dim=-1, keepdim=True))
    seen = count.clamp(min=1)
    mean = torch.where(count > 0, total / seen, 0.5)
    deviation = (squares / seen - (total / seen).square()).clamp(min=0).sqrt()
    return torch.cat([2 * mean - 1, 4 * deviation, 4 * whitest - 3, count / len(images)], dim=-1)


class CarvingNetwork(nn.Sequential):
    """Cues of the fine voxels around each to what they add to its logit."""

    def __init__(self) -> None:
        output = nn.Conv3d(WIDTH, 1, 3, padding=1, bias=False)
        nn.init.normal_(output.weight, std=INITIAL_SPREAD)
        super().__init__(nn.Conv3d(CUES, WIDTH, 3, padding=1), nn.SiLU(), output)

    def carve(self, images: Tensor, cameras: Cameras, resolution: int) -> Tensor:
        """(B, R, R, R) float32 for images (B, V, 3, H, W) and cameras (B, V)."""
        axis = torch.arange(resolution, device=images.device)
        centres = voxel_centres(torch.cartesian_prod(axis, axis, axis), resolution)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            cues = torch.stack([carving_cues(centres, images[b], cameras[b]).T for b in range(len(images))])
        return self(cues.unflatten(-1, (resolution, resolution, resolution))).float()[:, 0]


class NoCarving(nn.Module):
    """As in the paper: the tokens alone decide."""

    def carve(self, images: Tensor, cameras: Cameras, resolution: int) -> Tensor:
        return images.new_zeros(())


class AnchorCues(nn.Linear):
    """Cues at each anchor point to what its token starts with, beside its place."""

    def __init__(self, width: int) -> None:
        super().__init__(CUES, width)

    def hint(self, anchors: Tensor, images: Tensor, cameras: Cameras) -> Tensor:
        """(B, N, width) float32 for anchors (B, N, 3), images (B, V, 3, H, W) and cameras (B, V)."""
        with torch.autocast(images.device.type, enabled=False):
            with torch.no_grad():
                cues = torch.stack([carving_cues(anchors[b], images[b], cameras[b]) for b in range(len(images))])
            return self(cues)


class NoCues(nn.Module):
    """As in the paper: a token starts from where it is."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def hint(self, anchors: Tensor, images: Tensor, cameras: Cameras) -> Tensor:
        return images.new_zeros(())


HINTS: dict[str, type[AnchorCues | NoCues]] = {"cues": AnchorCues, "none": NoCues}
CARVINGS: dict[str, type[CarvingNetwork | NoCarving]] = {"cues": CarvingNetwork, "none": NoCarving}
