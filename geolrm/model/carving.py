"""Carving: how well the pictures agree about a point, and a network that reads it off a grid of points (space carving, Kutulakos
and Seitz 2000; a volume of feature statistics and a 3D U-Net as in MVSNet, Yao et al. 2018).

In: points, pictures composited on white, cameras. Out: eight numbers a point, and from a grid of them what is added to each
voxel's logit. The cues are mean and standard deviation of the colours that the views show there, the whitest of them, and
the share of the views that see it; beside them the network sees mean and deviation of a few learned features, which tell apart
what has the same colour, and how well the best pairs of neighbouring views agree. A point on a surface shows alike, one in the
open shows the white background in some view; a U-Net over the grid, with the coarse tokens at its bottom, finds where the
open ends. Convention: a view sees a point in front of it and inside its frame; a point that no view sees has mean grey,
deviation 0, whitest 0, share 0. Trade: not in the paper; a few bilinear reads a point and some convolutions a voxel, for IoU
0.500 in place of 0.469 for two convolutions over the cues, and with the pairs 0.52 in place of 0.51 on scans from 20 views, 0.45
in place of 0.48 from 4 (one seed, LOG.md); the tokens of the second stage, which start from the cues at their anchor points, gain
half a dB. Verified on flat pictures, on points that no view sees, by views in any order and number, and a token's reach.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from geolrm.cameras import NEAR, Cameras
from geolrm.model import execution
from geolrm.occupancy import voxel_centres

CUES = 8
FEATURES = 8
UNSEEN = 2.0  # difference of a pair of views that do not both see a point
STATISTICS = 2 * FEATURES + 4
FINEST = 64  # cells a side of the grid on which features are compared; a finer volume takes them from there
CHUNK = 1 << 16  # points at once: one for each view and feature is much
WIDTH = 12  # of the finest level of the U-Net; each of the two below has twice that of the one above
GROUPS = 4
DEVIATION_FLOOR = 1e-8  # under the root, whose slope has no bound at zero
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


def feature_statistics(points: Tensor, maps: Tensor, cameras: Cameras) -> Tensor:
    """How alike views show points: all of them, and each beside its neighbour.

    A surface hides its points from half of the views around it, so that over all of them it looks as unlike as what lies behind
    it; of pairs of neighbouring views some see it both, and agree.

    Args:
        points: (M, 3) object units.
        maps: (B, V, FEATURES + 3, h, w) learned features and colours of the views, covering the whole frame.
        cameras: (B, V).

    Returns:
        (B, STATISTICS, M) float32: mean and standard deviation of the learned features over the views that see a point, 0 where
        none does; and how much the best third of the pairs differ in the mean, in features and in colours times 4, and the
        same of the best two thirds.
    """
    uv, depth = cameras.project(points)
    visible = ((depth > NEAR) & (uv >= 0).all(dim=-1) & (uv <= 1).all(dim=-1))[:, :, None]  # (B, V, 1, M)
    places = 2 * uv.flatten(0, 1)[:, None] - 1
    read = F.grid_sample(maps.flatten(0, 1), places, padding_mode="border", align_corners=False)
    read = read[:, :, 0].unflatten(0, maps.shape[:2]) * visible
    learned, seen_by = read[:, :, :FEATURES], visible.sum(dim=1).clamp(min=1)
    mean = learned.sum(dim=1) / seen_by
    deviation = (learned.square().sum(dim=1) / seen_by - mean.square()).clamp(min=DEVIATION_FLOOR).sqrt()

    objects, pairs = torch.arange(len(maps), device=maps.device)[:, None], []
    for other in neighbouring(cameras).unbind(dim=-1):
        difference = (read - read[objects, other]).abs()
        parts = difference[:, :, :FEATURES].mean(dim=2), 4 * difference[:, :, FEATURES:].mean(dim=2)
        pairs.append(torch.where(visible & visible[objects, other], torch.stack(parts, dim=2), UNSEEN))
    sorted_pairs = torch.cat(pairs, dim=1).sort(dim=1).values  # (B, pairs, 2, M)
    best = [sorted_pairs[:, : math.ceil(sorted_pairs.shape[1] * share / 3)].mean(dim=1) for share in (1, 2)]
    return torch.cat([mean, deviation, *best], dim=1)


def neighbouring(cameras: Cameras) -> Tensor:
    """(B, V, 2) of each view the two whose directions from the middle are nearest; (B, 2, 1) of two, (B, 1, 1) itself of one.

    Two, since on an orbit two are equally near, and which of them rounding prefers should not matter.
    """
    directions = F.normalize(cameras.positions, dim=-1)
    views = directions.shape[1]
    alike = directions @ directions.mT - 3 * torch.eye(views, device=directions.device)
    return alike.topk(max(1, min(2, views - 1)), dim=-1).indices


def _twice(channels: int, width: int) -> nn.Sequential:
    """Two convolutions of 3 voxels, each normalised over groups of channels."""
    layers: list[nn.Module] = []
    for inputs in (channels, width):
        layers += [nn.Conv3d(inputs, width, 3, padding=1, bias=False), nn.GroupNorm(GROUPS, width), nn.SiLU()]
    return nn.Sequential(*layers)


class CarvingNetwork(nn.Module):
    """Cues and features of a grid of fine voxels, and the coarse tokens, to what is added to each voxel's logit.

    Args:
        width: of the tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 2 * FEATURES, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * FEATURES, 2 * FEATURES, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * FEATURES, FEATURES, 3, padding=1),
        )
        self.fine, self.middle = _twice(CUES + STATISTICS, WIDTH), _twice(WIDTH, 2 * WIDTH)
        self.coarse = _twice(2 * WIDTH, 4 * WIDTH)
        self.tokens = nn.Linear(width, 4 * WIDTH)
        self.middle_again, self.fine_again = _twice(6 * WIDTH, 2 * WIDTH), _twice(3 * WIDTH, WIDTH)
        self.output = nn.Conv3d(WIDTH, 1, 1, bias=False)
        nn.init.normal_(self.output.weight, std=INITIAL_SPREAD)

    def carve(self, images: Tensor, cameras: Cameras, tokens: Tensor, resolution: int) -> Tensor:
        """(B, R, R, R) float32 for images (B, V, 3, H, W), cameras (B, V) and tokens (B, coarse^3, width), x-major."""
        maps = self.features(images.flatten(0, 1) * 2 - 1)
        colours = F.interpolate(images.flatten(0, 1), maps.shape[-2:], mode="area")
        with torch.autocast(images.device.type, enabled=False):
            maps = torch.cat([maps.float(), colours], dim=1).unflatten(0, images.shape[:2])
            points = _grid(min(resolution, FINEST), images.device)
            alike = _volume(torch.cat([_compared(part, maps, cameras) for part in points.split(CHUNK)], dim=-1))
            with torch.no_grad():
                centres = _grid(resolution, images.device)
                cues = torch.stack([carving_cues(centres, images[b], cameras[b]).T for b in range(len(images))])
            volume = _volume(cues)
            volume = torch.cat([volume, _brought_to(alike, volume)], dim=1)
        return self(volume, tokens).float()

    def forward(self, volume: Tensor, tokens: Tensor) -> Tensor:
        """Volume (B, CUES + STATISTICS, R, R, R) and tokens (B, coarse^3, width) -> (B, R, R, R)."""
        fine = self.fine(volume)
        middle = self.middle(F.avg_pool3d(fine, 2, ceil_mode=True))
        heard = _volume(self.tokens(tokens).transpose(1, 2))
        pooled = F.avg_pool3d(middle, 2, ceil_mode=True)
        coarse = self.coarse(pooled) + _brought_to(heard, pooled)
        middle = self.middle_again(torch.cat([_brought_to(coarse, middle), middle], dim=1))
        fine = self.fine_again(torch.cat([_brought_to(middle, fine), fine], dim=1))
        logits: Tensor = self.output(fine)
        return logits[:, 0]


def _compared(points: Tensor, maps: Tensor, cameras: Cameras) -> Tensor:
    """`feature_statistics`; of a large grid worked out again for the gradient, rather than kept."""
    if len(points) < CHUNK:
        return feature_statistics(points, maps, cameras)
    statistics: Tensor = checkpoint(feature_statistics, points, maps, cameras, use_reentrant=False)
    return statistics


def _grid(resolution: int, device: torch.device) -> Tensor:
    """(R^3, 3) centres of the voxels, x-major."""
    axis = torch.arange(resolution, device=device)
    return voxel_centres(torch.cartesian_prod(axis, axis, axis), resolution)


def _volume(rows: Tensor) -> Tensor:
    """(B, C, R, R, R) of (B, C, R^3)."""
    side = round(rows.shape[-1] ** (1 / 3))
    return rows.unflatten(-1, (side, side, side))


def _brought_to(volume: Tensor, like: Tensor) -> Tensor:
    """A volume at the resolution of another one."""
    size = like.shape[2:]
    return volume if volume.shape[2:] == size else F.interpolate(volume, size, mode="trilinear", align_corners=False)


class NoCarving(nn.Module):
    """As in the paper: the tokens alone decide."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def carve(self, images: Tensor, cameras: Cameras, tokens: Tensor, resolution: int) -> Tensor:
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
