"""Pinhole cameras: where each picture was taken from, and how its pixels see the world.

In: poses and intrinsics of V views, in this project's convention or a foreign one. Out: projections, rays, Pluecker
coordinates. Convention: camera-to-world, OpenCV axes (x right, y down, z forward), world z up; intrinsics divided by image
width (first row) and height (second row), so that they survive resizing; pixel centres at (i + 0.5). Depth is planar z.
Trade: plain pinhole only, no lens distortion; foreign conventions are converted on the way in, never later. Verified by
closed forms, by project/unproject round trips, and by landing the depth of one view on that of another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from geolrm.failures import BadInput

# OpenCV camera axes <-> Blender/OpenGL camera axes (x right, y up, z backward): the same matrix both ways.
OPENCV_TO_BLENDER = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
ROTATION_TOLERANCE = 1e-3
FOV_RANGE_DEGREES = (5.0, 150.0)
NEAR = 1e-4


@dataclass(frozen=True)
class Cameras:
    """V pinhole cameras, or any batch shape "..." of them.

    Attributes:
        camera_to_world: (..., 4, 4) float32, OpenCV axes.
        intrinsics: (..., 3, 3) float32, normalised by image width and height.
    """

    camera_to_world: Tensor
    intrinsics: Tensor

    def __post_init__(self) -> None:
        if self.camera_to_world.shape[-2:] != (4, 4) or self.intrinsics.shape[-2:] != (3, 3):
            raise ValueError(
                f"expected (..., 4, 4) and (..., 3, 3), got {self.camera_to_world.shape}, {self.intrinsics.shape}"
            )
        if self.camera_to_world.shape[:-2] != self.intrinsics.shape[:-2]:
            raise ValueError(f"{self.camera_to_world.shape[:-2]} poses but {self.intrinsics.shape[:-2]} intrinsics")

    @property
    def shape(self) -> torch.Size:
        """Batch shape, (V,) for the views of one object."""
        return self.camera_to_world.shape[:-2]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Cameras:
        return Cameras(self.camera_to_world[index], self.intrinsics[index])

    def to(self, device: torch.device | str) -> Cameras:
        return Cameras(self.camera_to_world.to(device), self.intrinsics.to(device))

    @property
    def positions(self) -> Tensor:
        """(..., 3) camera centres in the world."""
        return self.camera_to_world[..., :3, 3]

    @property
    def rotations(self) -> Tensor:
        """(..., 3, 3) whose columns are the camera's axes in the world."""
        return self.camera_to_world[..., :3, :3]

    @property
    def world_to_camera(self) -> Tensor:
        """(..., 4, 4) exact inverse of the rigid pose."""
        transposed = self.rotations.transpose(-1, -2)
        inverse = torch.zeros_like(self.camera_to_world)
        inverse[..., :3, :3] = transposed
        inverse[..., :3, 3] = -(transposed @ self.positions[..., None])[..., 0]
        inverse[..., 3, 3] = 1.0
        return inverse

    def pixel_intrinsics(self, height: int, width: int) -> Tensor:
        """(..., 3, 3) intrinsics in pixels of an image of that size."""
        return self.intrinsics * self.intrinsics.new_tensor([[width], [height], [1.0]])

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Project world points.

        Args:
            points: (..., N, 3), its leading dimensions broadcastable against the cameras' batch shape.

        Returns:
            uv (..., N, 2) in [0, 1] inside the frame, u right and v down; depth (..., N) planar z. Where depth is not
            above NEAR the point is at or behind the camera and uv is finite but meaningless: mask by depth.
        """
        with torch.autocast(points.device.type, enabled=False):  # a pixel is 1/256 of the frame, as is bf16's last bit
            in_camera = (points - self.positions[..., None, :]) @ self.rotations
            homogeneous = in_camera @ self.intrinsics.transpose(-1, -2)
        depth = in_camera[..., 2]
        return homogeneous[..., :2] / depth.clamp(min=NEAR)[..., None], depth

    def rays(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Rays through the pixel centres.

        Returns:
            origins (..., 1, 1, 3) and directions (..., height, width, 3) in the world. Directions are scaled so that their
            z in the camera is 1: origin + depth * direction is the surface point of planar depth.
        """
        device = self.intrinsics.device
        v, u = torch.meshgrid(
            (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height,
            (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width,
            indexing="ij",
        )
        pixels = torch.stack([u, v, torch.ones_like(u)], dim=-1).to(self.intrinsics.dtype)
        to_world = self.rotations @ torch.linalg.inv(self.intrinsics)
        directions = (pixels.reshape(-1, 3) @ to_world.transpose(-1, -2)).reshape(*self.shape, height, width, 3)
        return self.positions[..., None, None, :], directions

    def unproject(self, depth: Tensor) -> Tensor:
        """World points (..., H, W, 3) of planar depth maps (..., H, W); pixels without surface are the caller's to mask."""
        origins, directions = self.rays(depth.shape[-2], depth.shape[-1])
        return origins + depth[..., None] * directions

    def pluecker(self, height: int, width: int) -> Tensor:
        """Pluecker coordinates (..., 6, H, W): unit direction d, then moment o x d (paper, section 3.2)."""
        origins, directions = self.rays(height, width)
        unit = torch.nn.functional.normalize(directions, dim=-1)
        moment = torch.linalg.cross(origins.expand_as(unit), unit)
        return torch.cat([unit, moment], dim=-1).movedim(-1, -3)


def intrinsics_from_fov(x_fov: float, y_fov: float | None = None) -> Tensor:
    """(3, 3) normalised intrinsics of full fields of view in radians, principal point in the middle."""
    fx = 0.5 / math.tan(x_fov / 2)
    fy = fx if y_fov is None else 0.5 / math.tan(y_fov / 2)
    return torch.tensor([[fx, 0.0, 0.5], [0.0, fy, 0.5], [0.0, 0.0, 1.0]])


def look_at(positions: Tensor, target: Tensor | None = None) -> Tensor:
    """Camera-to-world (..., 4, 4) of cameras at `positions` (..., 3) looking at `target` (3,), the origin if None.

    World z points up in the picture; where a camera looks along z, world y does (GObjaverse's top and bottom views).
    """
    target = torch.zeros(3, dtype=positions.dtype, device=positions.device) if target is None else target
    forward = torch.nn.functional.normalize(target - positions, dim=-1)
    up = torch.zeros_like(forward)
    up[..., 2] = 1.0
    vertical = forward[..., 2].abs() > 0.9999
    up[vertical] = up.new_tensor([0.0, 1.0, 0.0])
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=-1)
    down = torch.linalg.cross(forward, right)
    pose = torch.zeros(*positions.shape[:-1], 4, 4, dtype=positions.dtype, device=positions.device)
    pose[..., :3, 0], pose[..., :3, 1], pose[..., :3, 2], pose[..., :3, 3] = right, down, forward, positions
    pose[..., 3, 3] = 1.0
    return pose


def orbit(azimuths: Tensor, elevations: Tensor, radius: float, fov: float) -> Cameras:
    """Cameras on a sphere around the origin, looking at it.

    Args:
        azimuths: (V,) degrees, from world x towards y.
        elevations: (V,) degrees above the xy plane.
        radius: distance from the origin, object units.
        fov: full field of view, degrees.
    """
    azimuth, elevation = torch.deg2rad(azimuths.double()), torch.deg2rad(elevations.double())
    positions = radius * torch.stack(
        [elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()], dim=-1
    )
    intrinsics = intrinsics_from_fov(math.radians(fov)).expand(len(positions), 3, 3)
    return Cameras(look_at(positions).float(), intrinsics.clone())


def check_camera(camera_to_world: Tensor, x_fov: float, y_fov: float, where: object) -> None:
    """Raise `BadInput` naming `where` unless the pose (4, 4) is rigid and both fields of view (radians) are usable."""
    if not torch.isfinite(camera_to_world).all():
        raise BadInput("pose_not_finite", where, "the pose holds NaN or infinity", "render or export this view again")
    rotation = camera_to_world[:3, :3].double()
    if not rotation.any():
        raise BadInput("pose_zero", where, "the rotation is all zeros", "render or export this view again")
    error = (rotation.T @ rotation - torch.eye(3, dtype=torch.float64)).abs().max().item()
    if error > ROTATION_TOLERANCE or torch.linalg.det(rotation) < 0:
        kind = "mirrored" if error <= ROTATION_TOLERANCE else f"not orthonormal (off by {error:.2g})"
        raise BadInput("pose_not_rotation", where, f"the rotation is {kind}", "check the axes' order and convention")
    low, high = FOV_RANGE_DEGREES
    for name, fov in (("x", x_fov), ("y", y_fov)):
        if not math.isfinite(fov) or not low <= math.degrees(fov) <= high:
            detail = f"{name} field of view {math.degrees(fov):.4g} degrees, outside {low:g} to {high:g}"
            raise BadInput("fov_out_of_range", where, detail, "fields of view are stored in radians")


def _number(record: dict[str, Any], key: str, where: object) -> float:
    try:
        return float(record[key])
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(
            "camera_fields", where, f"{key!r} is missing or no number", "expected a camera record"
        ) from error


def _vectors(record: dict[str, Any], keys: tuple[str, ...], size: tuple[int, ...], where: object) -> list[Tensor]:
    vectors = []
    for key in keys:
        try:
            vector = torch.tensor(record[key], dtype=torch.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput("camera_fields", where, f"{key!r} is missing or holds no numbers") from error
        if tuple(vector.shape) != size:
            raise BadInput("camera_fields", where, f"{key!r} has shape {tuple(vector.shape)}, expected {size}")
        vectors.append(vector)
    return vectors


def from_gobjaverse(record: dict[str, Any], where: object = "camera json") -> Cameras:
    """One camera (shape ()) from a GObjaverse json: axes `x`, `y`, `z`, `origin`, and `x_fov`, `y_fov` in radians.

    [x | y | z | origin] already is an OpenCV camera-to-world.
    """
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :4] = torch.stack(_vectors(record, ("x", "y", "z", "origin"), (3,), where), dim=-1)
    x_fov, y_fov = _number(record, "x_fov", where), _number(record, "y_fov", where)
    check_camera(pose, x_fov, y_fov, where)
    return Cameras(pose.float(), intrinsics_from_fov(x_fov, y_fov))


def to_gobjaverse(camera: Cameras) -> dict[str, Any]:
    """The GObjaverse json of one camera of shape (); `bbox` is the object cube [-0.5, 0.5]^3."""
    pose, intrinsics = camera.camera_to_world.double(), camera.intrinsics.double()
    fields: dict[str, Any] = {name: pose[:3, i].tolist() for i, name in enumerate(("x", "y", "z", "origin"))}
    fields["x_fov"] = 2 * math.atan(0.5 / intrinsics[0, 0].item())
    fields["y_fov"] = 2 * math.atan(0.5 / intrinsics[1, 1].item())
    fields["bbox"] = [[-0.5, -0.5, -0.5], [0.5, 0.5, 0.5]]
    return fields


def from_blender(transforms: dict[str, Any], where: object = "transforms.json") -> Cameras:
    """Cameras (V,) from a Blender/NeRF `transforms.json` (OpenGL camera-to-world, one `camera_angle_x`).

    Pictures are taken to be square unless the file gives `camera_angle_y`, or `w` and `h`.
    """
    frames = transforms.get("frames")
    if not isinstance(frames, list) or not frames:
        raise BadInput("camera_fields", where, "'frames' is missing or empty", "expected a NeRF transforms.json")
    x_fov = _number(transforms, "camera_angle_x", where)
    if "camera_angle_y" in transforms:
        y_fov = _number(transforms, "camera_angle_y", where)
    elif "w" in transforms and "h" in transforms:
        aspect = _number(transforms, "h", where) / _number(transforms, "w", where)
        y_fov = 2 * math.atan(math.tan(x_fov / 2) * aspect)
    else:
        y_fov = x_fov
    poses = []
    for i, frame in enumerate(frames):
        place = f"{where}, frame {i} ({frame.get('file_path', 'no file_path')})"
        (matrix,) = _vectors(frame, ("transform_matrix",), (4, 4), place)
        pose = matrix @ OPENCV_TO_BLENDER.double()
        check_camera(pose, x_fov, y_fov, place)
        poses.append(pose.float())
    return Cameras(torch.stack(poses), intrinsics_from_fov(x_fov, y_fov).expand(len(poses), 3, 3).clone())


def to_blender(cameras: Cameras, file_paths: list[str]) -> dict[str, Any]:
    """The `transforms.json` of cameras (V,) that share one field of view and have square pixels' frames named by `file_paths`."""
    if not torch.allclose(cameras.intrinsics, cameras.intrinsics[:1].expand_as(cameras.intrinsics), atol=1e-6):
        raise ValueError("transforms.json holds one field of view; these cameras have several")
    intrinsics = cameras.intrinsics[0].double()
    poses = cameras.camera_to_world.double() @ OPENCV_TO_BLENDER.double()
    return {
        "camera_angle_x": 2 * math.atan(0.5 / intrinsics[0, 0].item()),
        "camera_angle_y": 2 * math.atan(0.5 / intrinsics[1, 1].item()),
        "frames": [
            {"file_path": path, "transform_matrix": pose.tolist()} for path, pose in zip(file_paths, poses, strict=True)
        ],
    }
