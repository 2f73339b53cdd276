"""LGM against recorded outputs of its public modules: network, cameras, loader.

In: one fixture. Out: every recorded output, computed anew. Convention: which part of the network an intermediate output is of
is read off its name (`mid.down5`, `mid.attn_d1_0`); all sizes are the fixture's. Trade: what only the public code's loader and
orbit define (their matrices, its resizing without antialiasing) stands here and is used for nothing else. Verified by planted
breaks in the tests.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.fixtures import Fixture, outputs_of
from benchmarks.methods.lgm.frame import RADIUS, Frame, network_input, ray_channels
from benchmarks.methods.lgm.network import LGM, Config
from benchmarks.published import filled
from geolrm.cameras import OPENCV_TO_BLENDER, Cameras, intrinsics_from_fov

FOV = 49.1  # of the default rig
RENDER_RADIUS = 1.5  # of the pictures that the public loader reads
GUARD = 1e-10  # smallest length that is divided by
PLY_OPACITY = 0.005  # below it the public code's PLY leaves a Gaussian out
PARTS = (  # names of intermediate outputs, and the parts of the network that they are of
    (r"mid\.down(\d+)", r"unet.down_blocks.\1"),
    (r"mid\.up(\d+)", r"unet.up_blocks.\1"),
    (r"mid\.mid_block", "unet.mid_block"),
    (r"mid\.resnet_d(\d+)_(\d+)", r"unet.down_blocks.\1.nets.\2"),
    (r"mid\.attn_d(\d+)_(\d+)", r"unet.down_blocks.\1.attns.\2"),
    (r"mid\.resnet_u(\d+)_(\d+)", r"unet.up_blocks.\1.nets.\2"),
    (r"mid\.attn_u(\d+)_(\d+)", r"unet.up_blocks.\1.attns.\2"),
    (r"mid\.raw", "conv"),
)


def check_network(fixture: Fixture) -> dict[str, Tensor]:
    """Gaussians, intermediate outputs, and the rows of the PLY of the first sample."""
    sizes = fixture.config
    lists = ("down_channels", "down_attention", "up_channels", "up_attention")
    config = Config(**{name: tuple(sizes[name]) for name in lists}, mid_attention=sizes["mid_attention"])
    network = filled(lambda: LGM(config), fixture.weights, fixture.file)
    predicted, ours = outputs_of(network, PARTS, fixture.recorded, lambda: network(fixture.inputs["images"]))
    ours["out.gaussians"] = predicted
    if "out.ply_table" in fixture.recorded:
        ours["out.ply_table"] = ply_rows(predicted[0])
    return ours


def ply_rows(predicted: Tensor) -> Tensor:
    """(M, 14) what the public code's PLY holds of Gaussians (N, 14) in the network's frame."""
    identity = Frame(torch.eye(3), torch.zeros(3), 1.0)
    stored = identity.gaussians_to_object(predicted[predicted[:, 3] >= PLY_OPACITY])
    return torch.cat([tensor.reshape(len(stored), -1) for tensor in stored.tensors], dim=-1)


def check_cameras(fixture: Fixture) -> dict[str, Tensor]:
    """Rays of any pose, the orbit, and the rays of the default rig at the elevations that the outputs' names say."""
    given = fixture.inputs
    ours = {"out.orbit_c2w": orbit(*given["orbit_elev_azim"].unbind(-1))} if "orbit_elev_azim" in given else {}
    for i, (height, width) in enumerate(given["ray_hw"].tolist()):
        camera = square_pixels(given["ray_c2w"][i : i + 1], given["ray_fovy"][i].item(), height, width)
        ours[f"out.rays{i}"] = ray_channels(camera, height, width)[0]
    for name, tensor in fixture.recorded.items():
        if named := re.fullmatch(r"out\.default_rays_elev(-?\d+)", name):
            azimuths = torch.arange(len(tensor)) * (360 / len(tensor))
            poses = orbit(torch.full_like(azimuths, float(named[1])), azimuths)
            ours[name] = ray_channels(square_pixels(poses, FOV, *tensor.shape[-2:]), *tensor.shape[-2:])
    return ours


def check_loader(fixture: Fixture) -> dict[str, Tensor]:
    """What the public loader makes of posed pictures."""
    config = fixture.config
    side, output_side, fov, radius = (config[name] for name in ("input_size", "output_size", "fovy", "cam_radius"))
    rgba = fixture.inputs["rgba"].float().movedim(-1, 1) / 255
    colour, alpha = rgba[:, :3], rgba[:, 3:]
    pictures = colour * alpha + 1 - alpha
    intrinsics = intrinsics_from_fov(math.radians(fov)).expand(len(rgba), 3, 3)
    cameras = Cameras(fixture.inputs["c2w_blender_opencv"], intrinsics)
    frame = Frame.of_first(cameras[0], radius / RENDER_RADIUS, radius)
    moved = frame.cameras(cameras)
    inputs = config["num_input_views"]
    view = moved.world_to_camera.mT
    return {
        "mid.world_to_lgm": frame.from_object,
        "mid.lgm_to_world": torch.linalg.inv(frame.from_object),
        "mid.c2w_lgm_opengl": moved.camera_to_world @ OPENCV_TO_BLENDER,
        "out.input": network_input(resized(pictures[:inputs], side), moved[:inputs]),
        "out.images_output": resized(pictures, output_side),
        "out.masks_output": resized(alpha, output_side),
        "out.cam_view": view,
        "out.cam_view_proj": view @ projection(fov, config["znear"], config["zfar"]),
        "out.cam_pos": -moved.positions,  # the public code's sign, which its rasterizer never looks at
    }


def resized(pictures: Tensor, side: int) -> Tensor:
    """(V, C, side, side) as the public loader does it: bilinear, without antialiasing."""
    return F.interpolate(pictures, (side, side), mode="bilinear", align_corners=False)


def projection(fov: float, near: float, far: float) -> Tensor:
    """(4, 4) the public code's, for row vectors; its last row lacks OpenGL's factor 2, which only a depth would show."""
    focal = 1 / math.tan(math.radians(fov) / 2)
    matrix = torch.zeros(4, 4)
    matrix[0, 0] = matrix[1, 1] = focal
    matrix[2, 2], matrix[3, 2], matrix[2, 3] = (far + near) / (far - near), -far * near / (far - near), 1.0
    return matrix


def square_pixels(camera_to_world: Tensor, fov: float, height: int, width: int) -> Cameras:
    """Cameras of poses (V, 4, 4) with OpenGL axes, vertical field of view in degrees, square pixels."""
    vertical = math.radians(fov)
    horizontal = 2 * math.atan(math.tan(vertical / 2) * width / height)
    intrinsics = intrinsics_from_fov(horizontal, vertical).expand(len(camera_to_world), 3, 3)
    return Cameras(camera_to_world @ OPENCV_TO_BLENDER, intrinsics)


def orbit(elevations: Tensor, azimuths: Tensor) -> Tensor:
    """(V, 4, 4) poses with OpenGL axes: y up, azimuth 0 on +z, azimuth 90 on +x, a positive elevation below the object."""
    elevation, azimuth = torch.deg2rad(elevations.double()), torch.deg2rad(azimuths.double())
    ring = elevation.cos()
    backward = torch.stack([ring * azimuth.sin(), -elevation.sin(), ring * azimuth.cos()], dim=-1)
    up = backward.new_tensor([0.0, 1.0, 0.0]).expand_as(backward)
    right = F.normalize(torch.linalg.cross(up, backward), dim=-1, eps=GUARD)
    upward = F.normalize(torch.linalg.cross(backward, right), dim=-1, eps=GUARD)
    poses = torch.eye(4, dtype=torch.float64).repeat(len(backward), 1, 1)
    poses[:, :3, :3] = torch.stack([right, upward, backward], dim=-1)
    poses[:, :3, 3] = RADIUS * backward
    return poses.float()


KINDS = {"in.images": check_network, "in.rgba": check_loader, "in.ray_c2w": check_cameras}
