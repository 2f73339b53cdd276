"""Colour of a textured mesh by path tracing: beside ray casting, with shadows and light from surface to surface.

In: a normalised `TexturedMesh` and cameras. Out: colour and alpha per view; depth and normals stay those of
`geolrm.data.raycast`, whose cameras and pixels these are. Convention: the light is that of `geolrm.data.lighting`. Its ambient
term, linear in the normal's z, is what a sky of radiance a + b z lends a surface that sees all of it, and its two lights are far
away; so what nothing shades has the colours of ray casting, and a hollow is darker and takes colour from its own walls. Trade:
Mitsuba's `scalar_rgb` needs no GPU and no LLVM, and takes some twenty times as long at 64 paths a pixel; paths are averaged in
linear light, where ray casting averages sub-rays in sRGB. Verified against ray casting on boxes and a ball, and by a hollow that
shades itself.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geolrm.cameras import Cameras
from geolrm.data.lighting import AMBIENT_GROUND, AMBIENT_SKY, LIGHTS, linear_to_srgb, srgb_to_linear
from geolrm.data.meshes import Material, TexturedMesh

BOUNCES = 6  # surfaces that a path meets at most
SKY_ROWS = 128  # of the picture of the sky
SAMPLES = 64  # paths a pixel
NEAR, FAR = 1e-3, 100.0
# Mitsuba's cameras have x to the left and y up.
TO_MITSUBA = np.diag([-1.0, -1.0, 1.0, 1.0])


class MitsubaMissing(ImportError):
    """Mitsuba cannot be imported; the message is one plain line that says what to install."""


def import_mitsuba() -> Any:
    """Mitsuba in its variant `scalar_rgb`. Raises `MitsubaMissing`."""
    try:
        import mitsuba
    except ImportError as error:
        line = f"path tracing needs Mitsuba, which cannot be imported ({error}): pip install -e '.[mitsuba]'"
        raise MitsubaMissing(line) from error
    mitsuba.set_variant("scalar_rgb")
    return mitsuba


class PathTracer:
    """A mesh under the fixed light, ready to be looked at.

    Args:
        mesh: in the object frame.
        threads: of this process that trace, 0 for all cores.

    Raises `MitsubaMissing`.
    """

    def __init__(self, mesh: TexturedMesh, threads: int = 0) -> None:
        self.mitsuba = import_mitsuba()
        if threads:
            import drjit

            drjit.set_thread_count(threads)
        parts = {
            f"part_{index}": self._part(mesh, material, np.flatnonzero(mesh.face_material == index))
            for index, material in enumerate(mesh.materials)
            if (mesh.face_material == index).any()
        }
        integrator = {"type": "path", "max_depth": BOUNCES, "hide_emitters": True}
        self.scene = self.mitsuba.load_dict({"type": "scene", "integrator": integrator, **self._lights(), **parts})

    def render(self, cameras: Cameras, resolution: int, samples: int, first: int = 0) -> tuple[Tensor, Tensor]:
        """Colour (V, 3, H, W) sRGB with straight alpha, and alpha (V, 1, H, W), of square pictures from cameras (V,).

        Args:
            samples: paths a pixel.
            first: number of the first camera, from which the random numbers of each view follow.
        """
        colours, alphas = [], []
        for view in range(len(cameras)):
            sensor = self.mitsuba.load_dict(self._sensor(cameras[view], resolution))
            rendered = self.mitsuba.render(self.scene, sensor=sensor, spp=samples, seed=first + view)
            image = torch.from_numpy(np.array(rendered, dtype=np.float32)).movedim(-1, 0)
            alpha = image[3:].clamp(0, 1)
            straight = torch.where(alpha > 0, image[:3] / alpha.clamp(min=1e-8), 0.0)
            colours.append(linear_to_srgb(straight.clamp(0, 1)) * (alpha > 0))
            alphas.append(alpha)
        return torch.stack(colours), torch.stack(alphas)

    def _lights(self) -> dict[str, Any]:
        """The light of `geolrm.data.lighting` as emitters, whose radiance a white surface gives back divided by pi."""
        mean, slope = (AMBIENT_SKY + AMBIENT_GROUND) / 2, (AMBIENT_SKY - AMBIENT_GROUND) / 2
        height = np.cos((np.arange(SKY_ROWS) + 0.5) / SKY_ROWS * math.pi)  # of the direction of each row, up first
        sky = np.broadcast_to((mean + 1.5 * slope * height)[:, None, None], (SKY_ROWS, 8, 3)).astype(np.float32)
        upright = self.mitsuba.ScalarTransform4f().rotate([1, 0, 0], 90)  # its pictures of the sky are y up
        emitters: dict[str, Any] = {
            "sky": {"type": "envmap", "bitmap": self.mitsuba.Bitmap(np.ascontiguousarray(sky)), "to_world": upright}
        }
        for number, (direction, strength) in enumerate(LIGHTS):
            emitters[f"light_{number}"] = {
                "type": "directional",
                "direction": [-value for value in direction],
                "irradiance": {"type": "rgb", "value": [math.pi * strength] * 3},
            }
        return emitters

    def _sensor(self, camera: Cameras, resolution: int) -> dict[str, Any]:
        """One camera of shape (). Raises ValueError unless it is square and centred, as those of the rig are."""
        focal = camera.intrinsics[0, 0].item()
        centred = torch.tensor([[focal, 0, 0.5], [0, focal, 0.5], [0, 0, 1]])
        if not torch.allclose(camera.intrinsics, centred, atol=1e-6):
            raise ValueError("path tracing takes cameras with square pixels and the principal point in the middle")
        film = {"type": "hdrfilm", "width": resolution, "height": resolution, "pixel_format": "rgba"}
        return {
            "type": "perspective",
            "fov": math.degrees(2 * math.atan(0.5 / focal)),
            "near_clip": NEAR,
            "far_clip": FAR,
            "to_world": self.mitsuba.ScalarTransform4f(camera.camera_to_world.double().numpy() @ TO_MITSUBA),
            "film": film | {"component_format": "float32", "rfilter": {"type": "box"}},
            "sampler": {"type": "independent"},
        }

    def _part(self, mesh: TexturedMesh, material: Material, faces: NDArray[np.int64]) -> Any:
        """The faces of one material as a shape, no corner shared."""
        corners = mesh.vertices[mesh.faces[faces]]
        texture, attribute = self._reflectance(mesh, material, faces)
        properties = self.mitsuba.Properties()
        two_sided = {"type": "twosided", "bsdf": {"type": "diffuse", "reflectance": texture}}
        properties["mesh_bsdf"] = self.mitsuba.load_dict(two_sided)
        shape = self.mitsuba.Mesh(
            "part",
            vertex_count=3 * len(faces),
            face_count=len(faces),
            has_vertex_normals=mesh.corner_normals is not None,
            has_vertex_texcoords=mesh.corner_uv is not None,
            props=properties,
        )
        content = self.mitsuba.traverse(shape)
        content["vertex_positions"] = corners.astype(np.float32).ravel()
        content["faces"] = np.arange(3 * len(faces), dtype=np.uint32)
        if mesh.corner_normals is not None:
            content["vertex_normals"] = shading_normals(corners, mesh.corner_normals[faces]).ravel()
        if mesh.corner_uv is not None:  # v down: the first row of a picture lies at 0
            uv = np.nan_to_num(mesh.corner_uv[faces]) * np.array([1, -1]) + np.array([0, 1])
            content["vertex_texcoords"] = uv.astype(np.float32).ravel()
        content.update()
        if attribute is not None:
            shape.add_attribute("vertex_color", 3, attribute.ravel())
        return shape

    def _reflectance(
        self, mesh: TexturedMesh, material: Material, faces: NDArray[np.int64]
    ) -> tuple[dict[str, Any], NDArray[np.float32] | None]:
        """What colours a material, in the order of docs/rendering.md; for vertex colours also these, linear, a row a corner."""
        if material.texture is not None and mesh.corner_uv is not None:
            texels = self.mitsuba.Bitmap(
                np.array(material.texture)
            )  # 8 bits are taken for sRGB; it refuses what is read-only
            return {"type": "bitmap", "bitmap": texels}, None
        if mesh.vertex_colours is not None:
            colours = mesh.vertex_colours[mesh.faces[faces]].reshape(-1, 3)
            linear = srgb_to_linear(torch.from_numpy(colours)).numpy()
            return {"type": "mesh_attribute", "name": "vertex_color"}, linear.astype(np.float32)
        flat = srgb_to_linear(torch.tensor(material.colour)).tolist()
        return {"type": "rgb", "value": flat}, None


def shading_normals(corners: NDArray[np.float64], normals: NDArray[np.float32]) -> NDArray[np.float32]:
    """Unit normals (M, 3, 3) of the corners (M, 3, 3) of triangles: the file's, on the side of the face's own, or that."""
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    flat /= np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-30)
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    usable = np.isfinite(length) & (length > 1e-3)
    unit = np.where(usable, normals / np.where(usable, length, 1), flat[:, None])
    return np.where((unit * flat[:, None]).sum(-1, keepdims=True) < 0, -unit, unit).astype(np.float32)
