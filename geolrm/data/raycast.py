"""Pictures and geometry of a textured mesh, by ray casting on the CPU.

In: a normalised `TexturedMesh` and cameras. Out: colour, albedo, alpha, planar depth and world normals per view. Convention:
depth and normals are those of the ray through the pixel's centre, alpha is the share of the pixel's sub-rays (a jittered grid)
that hit, colour and albedo the mean of those that hit; the lighting is fixed in the world, the same for all views and objects
(`geolrm.data.lighting`). Trade: Open3D's Embree needs no display and no GPU, but textures are antialiased by the sub-rays alone,
without mip levels, so that nothing bleeds across the seams of a scan's atlas. Verified on cubes with a colour a face, on spheres
in closed form, and by landing the depth of each view on the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geolrm.cameras import Cameras
from geolrm.data.lighting import irradiance, linear_to_srgb, srgb_to_linear
from geolrm.data.meshes import Material, TexturedMesh

RAYS_AT_ONCE = 1 << 18

Floats = NDArray[np.float32]


class Open3DMissing(ImportError):
    """Open3D cannot be imported; the message is one plain line that says what to install."""


def import_open3d() -> Any:
    """Open3D, or `Open3DMissing` with the command that brings it or its system libraries."""
    try:
        import open3d
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] == "open3d":
            line = "rendering meshes needs Open3D, which is not installed: pip install -e '.[meshes]'"
        else:
            line = f"Open3D is installed, but not the module {error.name} that it needs: pip install -e '.[meshes]'"
        raise Open3DMissing(line) from error
    except (ImportError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        command = "apt-get install libusb-1.0-0 libgl1 libgomp1 libegl1 libx11-6"
        raise Open3DMissing(f"Open3D lacks a system library ({first}): {command}") from error
    return open3d


@dataclass(frozen=True)
class GBuffers:
    """What V views show.

    Attributes:
        colour: (V, 3, H, W) sRGB in [0, 1], straight alpha, 0 where alpha is 0.
        albedo: (V, 3, H, W) likewise, the surface's own colour without light.
        alpha: (V, 1, H, W) covered share of the pixel.
        depth: (V, H, W) planar z at the pixel's centre, 0 = no surface there or alpha 0.
        normals: (V, 3, H, W) unit, world, of the flat face, turned towards the camera; 0 where depth is 0.
    """

    colour: Tensor
    albedo: Tensor
    alpha: Tensor
    depth: Tensor
    normals: Tensor


def sample_texture(texture: NDArray[np.uint8], uv: Floats) -> Floats:
    """Bilinear lookup (N, 3), sRGB in [0, 1], at (N, 2) coordinates: u right, v up, repeated beyond [0, 1].

    Texel centres lie at (i + 0.5) / size; row 0 of the texture is at v = 1.
    """
    height, width = texture.shape[:2]
    x = uv[:, 0].astype(np.float64) * width - 0.5
    y = (1.0 - uv[:, 1].astype(np.float64)) * height - 0.5
    left, top = np.floor(x), np.floor(y)
    fx, fy = (x - left).astype(np.float32)[:, None], (y - top).astype(np.float32)[:, None]
    x0, y0 = left.astype(np.int64) % width, top.astype(np.int64) % height
    x1, y1 = (x0 + 1) % width, (y0 + 1) % height
    upper = texture[y0, x0] * (1 - fx) + texture[y0, x1] * fx
    lower = texture[y1, x0] * (1 - fx) + texture[y1, x1] * fx
    return ((upper * (1 - fy) + lower * fy) / 255.0).astype(np.float32)


class RayCaster:
    """A mesh ready to be looked at.

    Args:
        mesh: in the object frame.
        threads: of one cast, 0 for all cores.

    Raises `Open3DMissing`.
    """

    def __init__(self, mesh: TexturedMesh, threads: int = 0) -> None:
        self.open3d = import_open3d()
        self.mesh, self.threads = mesh, threads
        self.scene = self.open3d.t.geometry.RaycastingScene(nthreads=threads)
        vertices = np.ascontiguousarray(mesh.vertices, dtype=np.float32)
        self.scene.add_triangles(
            self.open3d.core.Tensor(vertices), self.open3d.core.Tensor(mesh.faces.astype(np.uint32))
        )
        self.box = torch.from_numpy(vertices[np.unique(mesh.faces)])

    def cast(self, origin: Floats, directions: Floats) -> dict[str, Any]:
        """First hits of rays (N, 3) from one origin (3,): Open3D's arrays as NumPy; t in units of the direction's length."""
        rays = np.concatenate([np.broadcast_to(origin, directions.shape), directions], axis=-1, dtype=np.float32)
        hits = self.scene.cast_rays(self.open3d.core.Tensor(np.ascontiguousarray(rays)), nthreads=self.threads)
        names = ("t_hit", "primitive_ids", "primitive_uvs", "primitive_normals")
        return {name: hits[name].numpy() for name in names}

    def albedo(self, face: NDArray[np.int64], weights: Floats) -> Floats:
        """Diffuse colour (N, 3), sRGB, at barycentric weights (N, 3) of faces (N,)."""
        mesh = self.mesh
        colour = np.zeros((len(face), 3), dtype=np.float32)
        material_of = mesh.face_material[face]
        for index, material in enumerate(mesh.materials):
            picked = np.flatnonzero(material_of == index)
            if len(picked):
                colour[picked] = self._material_colour(material, face[picked], weights[picked])
        return colour

    def _material_colour(self, material: Material, face: NDArray[np.int64], weights: Floats) -> Floats:
        mesh = self.mesh
        if material.texture is not None and mesh.corner_uv is not None:
            uv = np.einsum("nk,nkc->nc", weights, mesh.corner_uv[face], dtype=np.float32)
            return sample_texture(material.texture, uv)
        if mesh.vertex_colours is not None:
            return np.einsum("nk,nkc->nc", weights, mesh.vertex_colours[mesh.faces[face]], dtype=np.float32)
        return np.broadcast_to(np.array(material.colour, dtype=np.float32), (len(face), 3))

    def shading_normals(self, face: NDArray[np.int64], weights: Floats, flat: Floats) -> Floats:
        """Unit normals (N, 3) for shading: the file's, interpolated, on the side of the `flat` ones; else the flat ones."""
        if self.mesh.corner_normals is None:
            return flat
        smooth = np.einsum("nk,nkc->nc", weights, self.mesh.corner_normals[face], dtype=np.float32)
        length = np.linalg.norm(smooth, axis=-1, keepdims=True)
        usable = np.isfinite(length) & (length > 1e-3)
        smooth = np.where(usable, smooth / np.where(usable, length, 1), flat)
        return np.where((smooth * flat).sum(-1, keepdims=True) < 0, -smooth, smooth).astype(np.float32)

    def colours(self, directions: Floats, hits: dict[str, Any]) -> tuple[NDArray[np.bool_], Floats, Floats]:
        """Which rays (N,) hit, and the colour (M, 3) and albedo (M, 3), both sRGB, that those that do see."""
        hit = np.isfinite(hits["t_hit"])
        face = hits["primitive_ids"][hit].astype(np.int64)
        second_third = hits["primitive_uvs"][hit]
        weights = np.concatenate([1 - second_third.sum(-1, keepdims=True), second_third], axis=-1)
        flat = facing(hits["primitive_normals"][hit], directions[hit])
        light = irradiance(torch.from_numpy(self.shading_normals(face, weights, flat).T))
        albedo = self.albedo(face, weights)
        linear = srgb_to_linear(torch.from_numpy(albedo)) * light[:, None]
        return hit, linear_to_srgb(linear.clamp(0, 1)).numpy(), albedo

    def render(self, cameras: Cameras, resolution: int, supersampling: int, first: int = 0) -> GBuffers:
        """Views of `resolution` pixels a side, `supersampling`^2 sub-rays a pixel, from cameras (V,), of which the first is
        number `first`: the sub-rays of a view follow from its number."""
        views = [self._view(cameras[v], resolution, supersampling, seed=first + v) for v in range(len(cameras))]
        colour, albedo, alpha, depth, normals = (torch.from_numpy(np.stack(part)) for part in zip(*views, strict=True))
        colour, albedo, normals = (part.movedim(-1, 1).contiguous() for part in (colour, albedo, normals))
        return GBuffers(colour, albedo, alpha[:, None], depth, normals)

    def _view(
        self, camera: Cameras, resolution: int, supersampling: int, seed: int
    ) -> tuple[Floats, Floats, Floats, Floats, Floats]:
        """Colour, albedo (H, W, 3), alpha, depth (H, W), normals (H, W, 3) of one camera of shape ()."""
        colour = np.zeros((resolution, resolution, 3), dtype=np.float32)
        alpha = np.zeros((resolution, resolution), dtype=np.float32)
        albedo, depth, normals = colour.copy(), alpha.copy(), colour.copy()
        rows, columns = self._window(camera, resolution)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if height <= 0 or width <= 0:
            return colour, albedo, alpha, depth, normals
        origin = camera.positions.numpy()
        matrix = (camera.rotations @ torch.linalg.inv(camera.intrinsics)).numpy()
        jitter = subpixel_grid(resolution, supersampling, seed)[rows, columns]
        step = max(1, RAYS_AT_ONCE // (width * supersampling**2))
        for first in range(0, height, step):
            count = min(step, height - first)
            row, column = np.mgrid[rows.start + first : rows.start + first + count, columns].astype(np.float32)
            corner = np.stack([column, row], axis=-1)
            out = np.s_[rows.start + first : rows.start + first + count, columns]
            directions = pixel_directions(corner + np.float32(0.5), resolution, matrix)
            hits = self.cast(origin, directions)
            depth[out] = np.where(np.isfinite(hits["t_hit"]), hits["t_hit"], 0).reshape(count, width)
            flat = facing(hits["primitive_normals"], directions)
            subpixels = corner[:, :, None] + jitter[first : first + count]
            directions = pixel_directions(subpixels, resolution, matrix)
            hit, colours, albedos = self.colours(directions, self.cast(origin, directions))
            hit = hit.reshape(count, width, -1)
            colour[out], alpha[out] = average(hit, colours)
            albedo[out] = average(hit, albedos)[0]
            seen = (depth[out] > 0) & (alpha[out] > 0)
            depth[out], normals[out] = depth[out] * seen, flat.reshape(count, width, 3) * seen[..., None]
        return colour, albedo, alpha, depth, normals

    def _window(self, camera: Cameras, resolution: int) -> tuple[slice, slice]:
        """Rows and columns outside which this camera sees nothing of the mesh."""
        uv, depth = camera.project(self.box)
        if (depth <= 1e-3).any():
            return slice(0, resolution), slice(0, resolution)
        low = torch.floor(uv.amin(dim=0) * resolution - 1).clamp(0, resolution).int().tolist()
        high = torch.ceil(uv.amax(dim=0) * resolution + 1).clamp(0, resolution).int().tolist()
        return slice(low[1], high[1]), slice(low[0], high[0])


def facing(normals: Floats, directions: Floats) -> Floats:
    """Unit normals (N, 3), each on the side from which its ray (N, 3) comes: surfaces have two sides."""
    unit = normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-20)
    return np.where((unit * directions).sum(-1, keepdims=True) > 0, -unit, unit).astype(np.float32)


def subpixel_grid(resolution: int, supersampling: int, seed: int) -> Floats:
    """Positions (resolution, resolution, S^2, 2) inside each pixel, x and y in [0, 1): one at random in each cell of S x S.

    One sub-ray a pixel goes through the centre.
    """
    if supersampling == 1:
        return np.full((resolution, resolution, 1, 2), 0.5, dtype=np.float32)
    row, column = np.mgrid[:supersampling, :supersampling].reshape(2, -1)
    shape = (resolution, resolution, supersampling**2, 2)
    jitter = np.random.Generator(np.random.PCG64(seed)).random(shape, dtype=np.float32)
    return (np.stack([column, row], axis=-1).astype(np.float32) + jitter) / np.float32(supersampling)


def pixel_directions(pixels: Floats, resolution: int, matrix: Floats) -> Floats:
    """Ray directions (N, 3) in the world, z in the camera 1, through pixel positions (..., 2) given as x, y.

    Args:
        matrix: (3, 3) rotation times inverse intrinsics.
    """
    flat = pixels.reshape(-1, 2) / np.float32(resolution)
    # spelled out, for a matrix product rounds differently with the number of rays
    return flat[:, :1] * matrix[:, 0] + flat[:, 1:] * matrix[:, 1] + matrix[:, 2]


def average(hit: NDArray[np.bool_], colours: Floats) -> tuple[Floats, Floats]:
    """Colour (H, W, 3) and alpha (H, W) of pixels from their sub-rays.

    Args:
        hit: (H, W, S^2).
        colours: (M, 3) sRGB, of the sub-rays that hit, in order. Their mean is taken as it is, in sRGB, the space in which
            this project composites and compares pictures.
    """
    spread = np.zeros((*hit.shape, 3), dtype=np.float32)
    spread[hit] = colours
    count = hit.sum(axis=-1)
    mean = spread.sum(axis=2) / np.maximum(count, 1)[..., None]
    return mean.astype(np.float32), (count / hit.shape[-1]).astype(np.float32)
