"""LGM's frame: where its cameras stand, what it sees of them, and the way back to the object frame.

In: cameras and pictures of this project. Out: the network's 9 input channels; its Gaussians in the object frame. Convention:
the first camera stands at (0, 0, 1.5), its axes (x right, y up, z backward) are the frame's own, and lengths are multiplied by
`scale` so that the object's origin falls on the frame's. (The public loader first turns z up into y up; relative to the first
camera that cancels.) Trade: the origin is met only if the first camera looks at it. Verified by recorded outputs of the public
loader, by a round trip, and by a picture that the moved camera must reproduce.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional as F

from geolrm.cameras import OPENCV_TO_BLENDER, Cameras
from geolrm.gaussians import Gaussians
from geolrm.views import Views

RADIUS = 1.5  # of the cameras that it was trained with
FOV = 49.1  # degrees, likewise
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALLEST = (
    1e-8  # standard deviation, added to all before their logarithm is taken, as the public code's PLY writer does
)


@dataclass(frozen=True)
class Frame:
    """x_network = scale * rotation @ x_object + translation.

    Attributes:
        rotation: (3, 3).
        translation: (3,).
        scale: network units per object unit.
    """

    rotation: Tensor
    translation: Tensor
    scale: float

    @classmethod
    def of_first(cls, first: Cameras, scale: float, radius: float = RADIUS) -> Frame:
        """The frame that the first camera, shape (), defines."""
        rotation = OPENCV_TO_BLENDER[:3, :3].to(first.positions) @ first.rotations.mT
        away = first.positions.new_tensor([0.0, 0.0, radius])
        return cls(rotation, away - scale * rotation @ first.positions, scale)

    @property
    def from_object(self) -> Tensor:
        """(4, 4) transform of points."""
        matrix = torch.eye(4).to(self.rotation)
        matrix[:3, :3], matrix[:3, 3] = self.scale * self.rotation, self.translation
        return matrix

    def cameras(self, cameras: Cameras) -> Cameras:
        """The same cameras in the network's frame, still with OpenCV axes."""
        poses = cameras.camera_to_world.clone()
        poses[..., :3, :3] = self.rotation @ cameras.rotations
        poses[..., :3, 3] = self.scale * cameras.positions @ self.rotation.mT + self.translation
        return Cameras(poses, cameras.intrinsics)

    def gaussians_to_object(self, predicted: Tensor) -> Gaussians:
        """Gaussians of the network (N, 14) in the object frame."""
        position, opacity, scale, rotation, colour = predicted.split([3, 1, 3, 4, 3], dim=-1)
        means = (position - self.translation) @ self.rotation / self.scale
        turn = Rotation.from_matrix(self.rotation.mT.double().cpu().numpy()).as_quat(scalar_first=True)
        turned = quaternion_product(torch.from_numpy(turn).to(rotation), rotation)
        scales = (scale + SMALLEST) / self.scale
        return Gaussians.from_activated(means, colour, opacity[:, 0], scales, turned)


def quaternion_product(first: Tensor, second: Tensor) -> Tensor:
    """(..., 4) wxyz: the turn `second`, then the turn `first`."""
    a, u = first[..., :1], first[..., 1:]
    b, v = second[..., :1], second[..., 1:]
    u, v = torch.broadcast_tensors(u, v)
    real = a * b - (u * v).sum(dim=-1, keepdim=True)
    return torch.cat([real, a * v + b * u + torch.linalg.cross(u, v)], dim=-1)


def with_field_of_view(views: Views, fov: float = FOV) -> Views:
    """The pictures of square, centred cameras with another field of view (degrees), to the nearest pixel on each side.

    A camera that turns and moves nowhere sees the same at another field of view, but for an empty margin, which is added, or
    cut off.
    """
    side = views.size[0]
    wanted = side * views.cameras.intrinsics[0, 0, 0].item() * 2 * math.tan(math.radians(fov) / 2)
    margin = round((wanted - side) / 2)
    pad = (margin,) * 4
    shrink = side / (side + 2 * margin)
    intrinsics = views.cameras.intrinsics.clone()
    intrinsics[:, [0, 1], [0, 1]] *= shrink
    return replace(
        views,
        cameras=Cameras(views.cameras.camera_to_world, intrinsics),
        colour=F.pad(views.colour, pad),
        alpha=F.pad(views.alpha, pad),
        depth=None,
    )


def ray_channels(cameras: Cameras, height: int, width: int) -> Tensor:
    """(V, 6, H, W): o x d, then the unit direction d, through the pixel centres."""
    return cameras.pluecker(height, width).roll(3, dims=-3)


def network_input(pictures: Tensor, cameras: Cameras) -> Tensor:
    """(V, 9, H, W) of pictures (V, 3, H, W) on white at the network's side and cameras in its frame."""
    mean, deviation = (pictures.new_tensor(t).reshape(3, 1, 1) for t in (MEAN, DEVIATION))
    return torch.cat([(pictures - mean) / deviation, ray_channels(cameras, *pictures.shape[-2:])], dim=1)
