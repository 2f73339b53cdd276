"""CRM's six faces: where their cameras stand, and how their pictures become the planes of the network's input.

In: colour and coordinate maps of the six faces. Out: 12 channels over three planes side by side, noised. Convention: faces in
the order front, left, bottom, back, right, top; world z up, front at -y; the triplane's own axes are (-x, -y, z) of the world.
A coordinate map holds red, green, blue = x, y, z of the triplane, 127 of 255 for 0. Trade: scale, sign and background of
coordinate maps are not in the public code, and are inferred here; to be tested with the published weights before any number is
believed. Verified by recorded outputs of the public entry, and by pictures that say where they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from geolrm.cameras import Cameras, intrinsics_from_fov
from geolrm.views import Views

FACES = ("front", "left", "bottom", "back", "right", "top")
# camera at, picture right, picture up
AXES = (
    ((0, -1, 0), (1, 0, 0), (0, 0, 1)),
    ((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
    ((0, 0, -1), (1, 0, 0), (0, -1, 0)),
    ((0, 1, 0), (-1, 0, 0), (0, 0, 1)),
    ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    ((0, 0, 1), (1, 0, 0), (0, 1, 0)),
)
WIDE_ORDER = (1, 2, 3, 4, 5, 0)  # faces of the public entry's wide picture, from the left
TRIPLANE_AXES = (-1.0, -1.0, 1.0)  # of the world
GREY = 127 / 255  # background, and the coordinate 0
STEPS, TIME = 1000, 20
BETAS = (0.00085, 0.012)
NOISE_MEAN, NOISE_DEVIATION = 0.5, 0.5
FOV = 5.0  # degrees, of perspective cameras that come near to parallel rays


def own_cameras(half_width: float = 0.5) -> Cameras:
    """(6,) far cameras whose pictures span `half_width` object units to each side of the centre."""
    distance = half_width / math.tan(math.radians(FOV) / 2)
    poses = torch.eye(4).repeat(6, 1, 1)
    for pose, (place, right, up) in zip(poses, torch.tensor(AXES, dtype=torch.float32), strict=True):
        pose[:3, :3] = torch.stack([right, -up, -place], dim=-1)
        pose[:3, 3] = distance * place
    return Cameras(poses, intrinsics_from_fov(math.radians(FOV)).expand(6, 3, 3).clone())


def coordinate_maps(views: Views, half_width: float) -> Tensor:
    """(6, 3, H, W) of pictures with depth, grey where there is no surface."""
    assert views.depth is not None
    points = views.cameras.unproject(views.depth) / half_width * views.depth.new_tensor(TRIPLANE_AXES)
    maps = (GREY + points.movedim(-1, 1) * (128 / 255)).clamp(0, 1)
    return torch.where((views.depth > 0)[:, None], maps, GREY)


def arranged(colour: Tensor, maps: Tensor) -> Tensor:
    """The network's picture (12, S, 3 S) before noise, of colours and coordinate maps (6, 3, S, S) in [0, 1].

    Of a coordinate map each plane keeps one channel.
    """

    def turned(faces: Tensor) -> tuple[Tensor, Tensor]:
        front, left, bottom, back, right, top = faces
        upper = [bottom.flip(-2, -1), right.flip(-2, -1), front.mT.flip(-2, -1)]
        lower = [top.flip(-1), left.flip(-2), back.mT.flip(-1)]
        return torch.stack(upper), torch.stack(lower)  # planes xy, yz, zx

    kept = torch.tensor([[1, 0, 0], [0, 0, 1], [0, 1, 0]], device=maps.device)[:, :, None, None]
    groups = [*turned(colour), *(group * kept for group in turned(maps.flip(-3)))]
    return torch.cat([torch.cat(list(group), dim=-1) for group in groups])


def alphas_cumprod() -> Tensor:
    """(1000,) how much of the picture is left after each step of noise, as variance."""
    betas = torch.linspace(BETAS[0] ** 0.5, BETAS[1] ** 0.5, STEPS) ** 2
    return torch.cumprod(1 - betas, dim=0)


def noised(picture: Tensor, noise: Tensor) -> Tensor:
    """The picture with noise of mean and deviation 1/2, as at step 20: the network knows, and does not remove it."""
    left = alphas_cumprod()[TIME].to(picture)
    return left.sqrt() * picture + (1 - left).sqrt() * noise
