"""Procedural objects: the pipeline's embedded data, ray-traced in closed form.

In: a seed, a key, a resolution. Out: the object rendered from its rig, with alpha, planar depth, normals and true surface
samples. Convention: cameras of `geolrm/data/rig.py`, the ball of radius 0.5 or the cube around it; depth and normals come
from the ray through the pixel's centre, an exact hit or nothing; alpha and colour are means over supersampling^2 rays a pixel,
colour over the rays that hit, in sRGB, the space that pictures are composited in. A pixel that no such ray hits has no depth
either; at a silhouette a pixel can have some alpha and no depth. Trade: one device's floats; the bytes repeat on one machine
and torch version, while other machines may differ in the last bit of a cosine. Verified by closed forms and between views.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from geolrm.cameras import Cameras
from geolrm.config import Procedural, Variety
from geolrm.data.lighting import FIXED, LIGHTING
from geolrm.data.object_tar import RenderedObject
from geolrm.data.procedural.drawing import PLAIN, draw_scene, large_enough, scene_generator
from geolrm.data.procedural.scene import Scene
from geolrm.data.procedural.spans import dot
from geolrm.data.rig import render_rig, test_rig, view_roles
from geolrm.failures import BadInput
from geolrm.views import Views

VERSION = 4  # of what is drawn and how it is rendered: raise it when either changes
SURFACE_POINTS = 16384
TEST_SURFACE_POINTS = 131_072  # of an object of the split test: what the benchmark measures 100,000 points against
ATTEMPTS = 64
RAYS_AT_ONCE = {"cpu": 1 << 15, "cuda": 1 << 24}  # on a GPU a batch of rays takes as many launches, however large it is


def drawn_from(settings: Procedural, device: str) -> dict[str, Any]:
    """All that the bytes of an object hang on beside its key: of two runs with the same, each object is the same."""
    return {
        "device": device,
        "generator_version": VERSION,
        "lighting": LIGHTING,
        "resolution": settings.resolution,
        "seed": settings.seed,
        "supersampling": settings.supersampling,
        **settings.variety.model_dump(exclude_defaults=True),
    }


def keys(settings: Procedural) -> list[str]:
    """Keys of all objects, split by split."""
    counts = {"train": settings.train, "val": settings.val, "test": settings.test}
    return [f"{split}-{number:05d}" for split, count in counts.items() for number in range(count)]


def draw_object(seed: int, key: str, variety: Variety = PLAIN) -> tuple[Scene, Tensor, Tensor]:
    """The scene of this seed, key and variety, with true surface points (P, 3) and normals (P, 3).

    What turns out empty or too small is drawn again, deterministically.
    """
    for attempt in range(ATTEMPTS):
        random = scene_generator(seed, key, attempt)
        scene = draw_scene(random, variety)
        points, normals, area = scene.sample_surface(SURFACE_POINTS, random)
        if len(points) == SURFACE_POINTS and large_enough(points, area):
            return scene, points, normals
    raise BadInput("object_empty", key, f"{ATTEMPTS} draws gave no object of some size", "choose another seed")


def procedural_object(
    seed: int,
    key: str,
    resolution: int,
    supersampling: int,
    device: torch.device | str = "cpu",
    variety: Variety = PLAIN,
) -> RenderedObject:
    """Draw and render one object: 40 views, surface samples, 16 test views.

    Args:
        seed: of the whole data set.
        key: of this object, "train-00000" and so on; the part before the dash is its split.
        resolution: pixels a side.
        supersampling: rays a pixel along each side, for colour and alpha.
        device: where rays are traced; the result is on the CPU.
        variety: what objects have beyond solids united and carved.
    """
    scene, points, point_normals = draw_object(seed, key, variety)
    if key.partition("-")[0] == "test":
        random = scene_generator(seed, f"{key}/surface")
        points, point_normals, _ = scene.sample_surface(TEST_SURFACE_POINTS, random)
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
        "lighting": LIGHTING if scene.light == FIXED else asdict(scene.light),
        "solids": [("-" if solid.carves else "+") + solid.kind for solid in scene.solids],
        "textures": [solid.texture.pattern for solid in scene.solids],
    }


def render_scene(
    scene: Scene,
    key: str,
    cameras: Cameras,
    resolution: int,
    supersampling: int,
    to: torch.device | str = "cpu",
) -> tuple[Views, Tensor]:
    """Render a scene, on the device that it lies on.

    Returns:
        Views (V,) of resolution^2 pixels and world normals (V, 3, H, W), 0 where there is no depth; on the device `to`.
    """
    device = scene.solids[0].centre.device
    group = max(1, RAYS_AT_ONCE[device.type] // (resolution**2 * (supersampling**2 + 1)))
    parts = []
    for start in range(0, len(cameras), group):
        parts.append(_render_some(scene, cameras[start : start + group].to(device), resolution, supersampling).to(to))
    image = torch.cat(parts)
    return Views(key, cameras.to(to), image[:, :3], image[:, 3:4], image[:, 4]), image[:, 5:]


def _render_some(scene: Scene, cameras: Cameras, resolution: int, supersampling: int) -> Tensor:
    """(V, 8, H, W): colour, alpha, depth, normal; all rays of these views in one batch."""
    fine_origins, fine_directions = _rays(cameras, resolution * supersampling)
    centre_origins, centre_directions = _rays(cameras, resolution)
    fine, centre = fine_directions.shape[1], centre_directions.shape[1]
    ray, origin, direction = _towards_ball(
        torch.cat([fine_origins, centre_origins], 1), torch.cat([fine_directions, centre_directions], 1), scene.radius
    )
    t, owner = scene.trace(origin, direction)
    hit = torch.nonzero(torch.isfinite(t))[:, 0]
    ray, t, owner = ray[hit], t[hit], owner[hit]
    points = origin.index_select(1, hit) + t * direction.index_select(1, hit)
    split = int((ray < fine).sum())  # rays stay in order: those for colour first

    coloured = torch.zeros(4, fine, device=t.device)
    rgb = scene.colours(points[:, :split], owner[:split], direction.index_select(1, hit[:split]))
    coloured.index_copy_(1, ray[:split], torch.cat([rgb, torch.ones_like(rgb[:1])]))
    surface = torch.zeros(4, centre, device=t.device)
    normals = scene.normals(points[:, split:], owner[split:])
    surface.index_copy_(1, ray[split:] - fine, torch.cat([t[None, split:], normals]))

    total = F.avg_pool2d(coloured.reshape(4, len(cameras), *[resolution * supersampling] * 2), supersampling)
    alpha = total[3:]
    colour = (total[:3] / alpha.clamp(min=1e-6)).clamp(max=1)
    surface = surface.reshape(4, len(cameras), resolution, resolution) * (alpha > 0)
    return torch.cat([colour, alpha, surface]).transpose(0, 1)


def _rays(cameras: Cameras, side: int) -> tuple[Tensor, Tensor]:
    """Origins and directions (3, N) of the rays through the side^2 pixels of every view."""
    origins, directions = cameras.rays(side, side)
    return tuple(x.expand_as(directions).reshape(-1, 3).T.contiguous() for x in (origins, directions))  # type: ignore[return-value]


def _towards_ball(origins: Tensor, directions: Tensor, radius: float) -> tuple[Tensor, Tensor, Tensor]:
    """Which rays (3, N) meet the ball that holds the object: their positions, origins, directions."""
    start = origins - dot(origins, directions) / dot(directions, directions) * directions
    ray = torch.nonzero(dot(start, start) < radius**2)[:, 0]
    return ray, origins.index_select(1, ray), directions.index_select(1, ray)
