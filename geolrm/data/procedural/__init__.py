"""Procedural objects: the pipeline's embedded data, ray-traced in closed form.

In: a seed, a key, a resolution. Out: the object rendered from its rig, with alpha, planar depth, normals and true surface
samples. Convention: DESIGN as for every render of ours (`geolrm/data/rig.py`); depth and normals come from the ray through
the pixel's centre, an exact hit or nothing; alpha and colour are means over supersampling^2 rays a pixel, colour over the
rays that hit, in sRGB, the space that pictures are composited in. A pixel that no such ray hits has no depth either; at a
silhouette a pixel can have some alpha and no depth. Trade: one device's floats; the bytes repeat on one machine and torch
version, while other machines may differ in the last bit of a cosine. Verified by closed forms and between views.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geolrm.cameras import Cameras
from geolrm.data.object_tar import RenderedObject
from geolrm.data.procedural.scene import BALL_RADIUS, Scene, draw_scene, large_enough, scene_generator
from geolrm.data.rig import render_rig, test_rig, view_roles
from geolrm.failures import BadInput
from geolrm.views import Views

VERSION = 1  # of what is drawn and how it is rendered: raise it when either changes
SURFACE_POINTS = 16384
ATTEMPTS = 64
RAYS_AT_ONCE = {"cpu": 1 << 15, "cuda": 1 << 23}


def draw_object(seed: int, key: str) -> tuple[Scene, Tensor, Tensor]:
    """The scene of this seed and key, with true surface points (P, 3) and normals (P, 3).

    What turns out empty or too small is drawn again, deterministically.
    """
    for attempt in range(ATTEMPTS):
        random = scene_generator(seed, key, attempt)
        scene = draw_scene(random)
        points, normals, area = scene.sample_surface(SURFACE_POINTS, random)
        if len(points) == SURFACE_POINTS and large_enough(points, area):
            return scene, points, normals
    raise BadInput("object_empty", key, f"{ATTEMPTS} draws gave no object of some size", "choose another seed")


def procedural_object(
    seed: int, key: str, resolution: int, supersampling: int, device: torch.device | str = "cpu"
) -> RenderedObject:
    """Draw and render one object: 40 views, 16 test views, surface samples.

    Args:
        seed: of the whole data set.
        key: of this object, "train-00000" and so on; the part before the dash is its split.
        resolution: pixels a side.
        supersampling: rays a pixel along each side, for colour and alpha.
        device: where rays are traced; the result is on the CPU.
    """
    scene, points, point_normals = draw_object(seed, key)
    cameras = render_rig(key)
    distinct = [i for i, role in enumerate(view_roles(cameras)) if role != "duplicate"]
    views, normals = render_scene(scene.to(device), key, cameras[distinct], resolution, supersampling)
    again = [distinct.index({24: 0, 39: 27}.get(i, i)) for i in range(len(cameras))]
    tests, _ = render_scene(scene.to(device), key, test_rig(), resolution, supersampling)
    return RenderedObject(key, views[again], normals[again], tests, points, point_normals, _meta(seed, key, scene))


def _meta(seed: int, key: str, scene: Scene) -> dict[str, Any]:
    return {
        "dataset": "procedural",
        "layout": "gobjaverse",
        "source_id": f"seed {seed}, {key}",
        "split": key.partition("-")[0],
        "licence": "Apache-2.0",
        "attribution": None,
        "unit": None,
        "object_to_source": torch.eye(4).tolist(),
        "surface": "closed form",
        "rig": "own",
        "generator_version": VERSION,
        "solids": [("-" if solid.carves else "+") + solid.kind for solid in scene.solids],
        "textures": [solid.texture.pattern for solid in scene.solids],
    }


def render_scene(
    scene: Scene, key: str, cameras: Cameras, resolution: int, supersampling: int
) -> tuple[Views, Tensor]:
    """Render a scene, on the device that it lies on.

    Returns:
        Views (V,) of resolution^2 pixels and world normals (V, 3, H, W), 0 where there is no depth; on the CPU.
    """
    device = scene.solids[0].centre.device
    side, per_view = resolution * supersampling, resolution**2 * (supersampling**2 + 1)
    group = max(1, RAYS_AT_ONCE[device.type] // per_view)
    colours, alphas, depths, normals = [], [], [], []
    for start in range(0, len(cameras), group):
        some = cameras[start : start + group].to(device)
        _, _, fine_colour = _cast(scene, some, side, colour=True)
        depth, normal, _ = _cast(scene, some, resolution, colour=False)
        total = torch.nn.functional.avg_pool2d(fine_colour, supersampling)
        alpha = total[:, 3:]
        seen = (alpha > 0) & (depth[:, None] > 0)
        colours.append(torch.where(alpha > 0, total[:, :3] / alpha.clamp(min=1e-6), 0.0).clamp(0, 1).cpu())
        alphas.append(alpha.cpu())
        depths.append((depth * seen[:, 0]).cpu())
        normals.append((normal * seen).cpu())
    views = Views(key, cameras, torch.cat(colours), torch.cat(alphas), torch.cat(depths))
    return views, torch.cat(normals)


def _cast(scene: Scene, cameras: Cameras, side: int, *, colour: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Trace side^2 rays a view.

    Returns:
        depth (V, S, S) planar z, 0 for none; normals (V, 3, S, S); with `colour`, RGBA premultiplied (V, 4, S, S).
    """
    origins, directions = cameras.rays(side, side)
    count = len(cameras) * side * side
    direction = directions.reshape(count, 3).T
    origin = origins.expand_as(directions).reshape(count, 3).T
    along = -(origin * direction).sum(0) / (direction * direction).sum(0)
    (near,) = torch.nonzero((origin + along * direction).square().sum(0) < BALL_RADIUS**2, as_tuple=True)
    origin, direction = origin[:, near], direction[:, near]
    t, owner = scene.trace(origin, direction)
    (hit,) = torch.nonzero(torch.isfinite(t), as_tuple=True)
    points = origin[:, hit] + t[hit] * direction[:, hit]
    rgb, normal = scene.shade(points, owner[hit])
    pixel = near[hit]
    flat = torch.zeros(8, count, device=direction.device)
    flat[0, pixel] = t[hit]
    flat[1:4, pixel] = normal
    if colour:
        flat[4:7, pixel] = rgb
        flat[7, pixel] = 1.0
    image = flat.reshape(8, len(cameras), side, side).transpose(0, 1)
    return image[:, 0], image[:, 1:4], image[:, 4:]
