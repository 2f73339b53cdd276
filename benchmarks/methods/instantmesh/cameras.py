"""Cameras as InstantMesh wants them.

In: this project's cameras. Out: 16 numbers a camera for its encoder. Convention: theirs is
camera-to-world with OpenGL axes (x right, y up, z backward), world z up, the object inside [-1, 1]^3, twice our frame;
intrinsics are divided by the picture's side on both sides. Trade: none. Verified by recorded outputs of the published code.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from geolrm.cameras import OPENCV_TO_BLENDER, Cameras, orbit

OBJECT_SCALE = 2.0  # of our object frame in theirs
RIG_AZIMUTHS = (30.0, 90.0, 150.0, 210.0, 270.0, 330.0)  # of the six views that Zero123++ draws
RIG_ELEVATIONS = (20.0, -10.0)  # in turn


def in_their_frame(cameras: Cameras) -> Cameras:
    """Cameras (V,) of our object frame, moved to where they see the object twice as large."""
    poses = cameras.camera_to_world.clone()
    poses[..., :3, 3] *= OBJECT_SCALE
    return replace(cameras, camera_to_world=poses)


def opengl_poses(cameras: Cameras) -> Tensor:
    """(..., 4, 4)."""
    return cameras.camera_to_world @ OPENCV_TO_BLENDER.to(cameras.camera_to_world)


def input_numbers(cameras: Cameras) -> Tensor:
    """(..., 16): three rows of the pose, then fx, fy, cx, cy."""
    k = cameras.intrinsics
    lens = torch.stack([k[..., 0, 0], k[..., 1, 1], k[..., 0, 2], k[..., 1, 2]], dim=-1)
    return torch.cat([opengl_poses(cameras)[..., :3, :].flatten(-2), lens], dim=-1)


def demo_rig(radius: float, fov: float) -> Cameras:
    """The six cameras (6,) of the published demonstration, at which the generator of views draws."""
    elevations = torch.tensor(RIG_ELEVATIONS).repeat(len(RIG_AZIMUTHS) // len(RIG_ELEVATIONS))
    return orbit(torch.tensor(RIG_AZIMUTHS), elevations, radius, fov)
