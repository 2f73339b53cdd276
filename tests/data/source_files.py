"""Small files in the real layouts of the three sources, all of one object that no flip or turn maps onto itself: three spheres
of different radii, off every axis, with closed forms for depth, normals and surface."""

import io
import json
import math
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import OpenEXR
import torch
from PIL import Image

from geolrm.cameras import Cameras, intrinsics_from_fov, look_at, to_blender, to_gobjaverse
from geolrm.data.object_tar import exr_bytes
from geolrm.data.rig import render_rig

CENTRES = torch.tensor([[0.12, -0.08, -0.15], [-0.2, 0.14, 0.1], [0.06, 0.22, 0.24]])
RADII = torch.tensor([0.25, 0.15, 0.1])
USED = (".png", ".json", "_nd.exr")


def seen(
    cameras: Cameras, size: int, centres: torch.Tensor = CENTRES, radii: torch.Tensor = RADII
) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    """RGBA (V, H, W, 4) uint8, depth (V, H, W) and world normals (V, 3, H, W) of the spheres."""
    origins, directions = cameras.rays(size, size)
    depth = torch.full(directions.shape[:-1], math.inf)
    normals = torch.zeros_like(directions)
    for centre, radius in zip(centres, radii, strict=True):
        towards = origins - centre
        a, b = (directions**2).sum(-1), (directions * towards).sum(-1)
        root = b**2 - a * ((towards**2).sum(-1) - radius**2)
        hit = (-b - root.clamp(min=0).sqrt()) / a
        nearer = (root > 0) & (hit > 0) & (hit < depth)
        depth = torch.where(nearer, hit, depth)
        points = origins + hit[..., None] * directions
        normals = torch.where(nearer[..., None], (points - centre) / radius, normals)
    there = depth.isfinite()
    rgba = torch.cat([normals / 2 + 0.5, there[..., None].float()], dim=-1) * there[..., None]
    return (rgba * 255).round().byte().numpy(), depth.nan_to_num(posinf=0).numpy(), normals.permute(0, 3, 1, 2)


def png(rgba: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def tar_of(members: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


# --- GObjaverse ---


def gobjaverse_views(key: str = "some", size: int = 64) -> dict[str, bytes]:
    """All files of an object, `{vvvvv}/{vvvvv}{suffix}`, unused ones included."""
    cameras = render_rig(key)
    rgba, depth, normals = seen(cameras, size)
    files = {}
    for view in range(40):
        stem = f"{view:05d}/{view:05d}"
        files[f"{stem}.json"] = json.dumps(to_gobjaverse(cameras[view])).encode()
        files[f"{stem}.png"] = png(rgba[view])
        files[f"{stem}_nd.exr"] = exr_bytes(normals[view].numpy(), depth[view])
        for unused in ("_albedo.png", "_hdr.exr", "_mr.png", "_ng.exr"):
            files[f"{stem}{unused}"] = bytes(300)
    return files


def gobjaverse_tar(instance: str, files: dict[str, bytes], *, level: str = "campos_512_v4/") -> bytes:
    """An object's tar, as the server has it."""
    return tar_of({f"{instance}/{level}{name}": content for name, content in files.items()})


def gobjaverse_folder(root: Path, identifier: str, files: dict[str, bytes], *, level: str = "campos_512_v4/") -> None:
    """An object's loose files, as the two download scripts leave them."""
    for name, content in files.items():
        path = root / identifier / f"{level}{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


# --- GSO ---


def gso_zip(textured: bool = True) -> bytes:
    """A zip as Gazebo Fuel gives it: a square with a texture. The same bytes at any time of the day."""
    files: dict[str, bytes | str] = {
        "model.config": "<model/>",
        "model.sdf": "<sdf/>",
        "meshes/model.mtl": "newmtl m\nmap_Kd texture.png\n",
        "meshes/model.obj": "mtllib model.mtl\nusemtl m\nv 0 0 0\nv 1 0 0\nv 1 1 0.5\nvt 0 0\nvt 1 0\nvt 1 1\nf 1/1 2/2 3/3\n",
    }
    if textured:
        files["materials/textures/texture.png"] = png(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
    files["thumbnails/0.jpg"] = bytes(50)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)  # dated 1980
    return buffer.getvalue()


# --- OmniObject3D ---

SCAN_SCALE = 0.02  # renders' units per scan unit
RENDER_OFFSET = torch.tensor([0.1, 0.05, 0.3])  # the scan is not centred


def omni_spheres() -> tuple[torch.Tensor, torch.Tensor]:
    """Centres and radii in the frame of the renders: z up, about twice the size of our object frame."""
    return CENTRES * 1.6 + RENDER_OFFSET, RADII * 1.6


def scan_points(points: torch.Tensor) -> torch.Tensor:
    """Points (N, 3) of the renders' frame in the scan's: y up, not scaled."""
    x, y, z = (points / SCAN_SCALE).unbind(-1)
    return torch.stack([x, z, -y], dim=-1)


def omni_cameras(count: int) -> Cameras:
    """Cameras on the upper hemisphere around the object, as far off as the object is large."""
    turn, height = torch.arange(count) * 2.399963, torch.linspace(0.02, 0.95, count)
    flat = (1 - height**2).sqrt()
    positions = torch.stack([flat * turn.cos(), flat * turn.sin(), height], dim=-1) * 4.0 + RENDER_OFFSET
    fov = math.radians(30)
    return Cameras(look_at(positions, RENDER_OFFSET), intrinsics_from_fov(fov).expand(count, 3, 3).clone())


def blender_exr(depth: np.ndarray, channels: tuple[str, ...] = ("V",)) -> bytes:
    """A depth map as Blender writes it: 1e10 where nothing is seen."""
    plane = np.where(depth > 0, depth, 1e10).astype(np.float32)
    buffer = io.BytesIO()
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, dict.fromkeys(channels, plane), num_threads=0).write(buffer)
    return buffer.getvalue()


def omni_renders(name: str, count: int = 24, size: int = 96, suffix: str = "_depth0001") -> dict[str, bytes]:
    """Files of one object's native renders, `<name>/render/...`."""
    cameras = omni_cameras(count)
    rgba, depth, _ = seen(cameras, size, *omni_spheres())
    transforms = to_blender(cameras, [f"r_{view}" for view in range(count)])
    del transforms["camera_angle_y"]  # theirs have none
    for frame in transforms["frames"]:
        frame |= {"rotation": 0.06, "scale": SCAN_SCALE}
    files = {}
    for view in range(count):
        files[f"{name}/render/images/r_{view}.png"] = png(rgba[view])
        files[f"{name}/render/depths/r_{view}{suffix}.exr"] = blender_exr(depth[view])
        files[f"{name}/render/normals/r_{view}_normal0001.png"] = bytes(20)
    files[f"{name}/render/transforms.json"] = json.dumps(transforms).encode()
    return files


def omni_scan(category: str, name: str) -> dict[str, bytes]:
    """Files of one raw scan: a triangle with a texture."""
    folder = f"{category}/{name}/Scan"
    return {
        f"{folder}/Scan.obj": b"mtllib Scan.mtl\nusemtl m\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\nf 1/1 2/2 3/3\n",
        f"{folder}/Scan.mtl": b"newmtl m\nmap_Kd Scan.jpg\n",
        f"{folder}/Scan.jpg": png(np.zeros((4, 4, 3), np.uint8)),
    }
