"""Rendering one object in pieces that any worker can do: batches of views, then the object tar of them.

In: a `RenderJob` and the object's `Bundle`. Out: the object tar, the same bytes whatever the batches and whoever did them.
Convention: a batch is some of the 40 views of the rig or of the 16 test views; it comes back encoded, a hundredth of its pixels'
size, and the batch with view 0 brings what belongs to the object as a whole. Trade: each worker reads the mesh for itself, once
for all batches that it does in a row. Colour is by ray casting, or by path tracing where the job says so; depth, normals and
alpha are by ray casting in both. Verified by comparing batches, workers and one process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from geolrm.data.meshes import Bundle, TexturedMesh, Up, normalised, read_mesh, sample_surface
from geolrm.data.object_tar import (
    INPUT_FOLDER,
    TEST_FOLDER,
    check_meta,
    cropped_views,
    json_bytes,
    png_bytes,
    surface_bytes,
    view_members,
    write_members,
)
from geolrm.data.pathtrace import PathTracer
from geolrm.data.raycast import GBuffers, RayCaster
from geolrm.data.rig import TEST_VIEWS, VIEWS, render_rig, test_rig
from geolrm.views import Views

SURFACE_POINTS = 131_072
Colour = Literal["cast", "path"]


@dataclass(frozen=True)
class RenderJob:
    """One object to render: what travels to a worker beside its files.

    Attributes:
        facts: what its meta shall say beside what is found here: dataset, layout, split, licence, attribution, unit, ...
        up: the axis of the source that points up.
        resolution, supersampling: pixels a side, sub-rays a pixel along each side.
        threads: of ray casting, 0 for all cores.
        path: of the object tar.
        colour: by ray casting or by path tracing, with so many `samples` a pixel.
        albedo: whether the tar holds the surface's own colour too, as GObjaverse's do: `<view>_albedo.png`.
    """

    facts: dict[str, Any]
    up: Up
    resolution: int
    supersampling: int
    threads: int
    path: Path
    colour: Colour = "cast"
    samples: int = 0
    albedo: bool = False


@dataclass(frozen=True)
class Batch:
    """Views `first` to before `last` of the rig's 40, or of the test views."""

    tests: bool
    first: int
    last: int


@dataclass(frozen=True)
class Part:
    """A rendered batch: members of the object tar, facts about the object, and the processor seconds that it took."""

    members: dict[str, bytes] = field(repr=False)
    facts: dict[str, Any]
    cropped: list[int]
    seconds: float


@dataclass(frozen=True)
class Scene:
    """A mesh in the object frame, ready to be looked at."""

    mesh: TexturedMesh
    object_to_source: np.ndarray
    caster: RayCaster
    tracer: PathTracer | None


_held: dict[str, Scene] = {}  # of the object that this process was last at: its views may come in several batches


def batches(size: int) -> Iterator[Batch]:
    """All views of an object in batches of at most that size."""
    for tests, count in ((False, VIEWS), (True, TEST_VIEWS)):
        yield from (Batch(tests, first, min(first + size, count)) for first in range(0, count, size))


def scene_of(job: RenderJob, bundle: Bundle) -> Scene:
    """Read, check and normalise an object. Raises BadInput (as `geolrm.data.meshes.read_mesh`), Open3DMissing, MitsubaMissing."""
    name = f"{bundle.sha256} {bundle.mesh_name} {job.up} {job.threads} {job.colour}"
    if name not in _held:
        _held.clear()
        mesh, object_to_source = normalised(read_mesh(bundle), job.up)
        tracer = PathTracer(mesh, job.threads) if job.colour == "path" else None
        _held[name] = Scene(mesh, object_to_source, RayCaster(mesh, job.threads), tracer)
    return _held[name]


def render_part(job: RenderJob, bundle: Bundle, batch: Batch) -> Part:
    """Render some views of an object. Raises as `scene_of`."""
    start = time.process_time()
    scene = scene_of(job, bundle)
    cameras = (test_rig() if batch.tests else render_rig(bundle.key))[batch.first : batch.last]
    buffers = scene.caster.render(cameras, job.resolution, job.supersampling, batch.first)
    if scene.tracer is not None:
        buffers = painted(buffers, *scene.tracer.render(cameras, job.resolution, job.samples, batch.first))
    views = Views(bundle.key, cameras, buffers.colour, buffers.alpha, buffers.depth)
    folder = f"{bundle.key}/{TEST_FOLDER if batch.tests else INPUT_FOLDER}"
    members = dict(view_members(folder, views, None if batch.tests else buffers.normals, batch.first))
    if job.albedo:
        for i in range(len(views)):
            stem = f"{folder}/{batch.first + i:05d}/{batch.first + i:05d}"
            members[f"{stem}_albedo.png"] = png_bytes(buffers.albedo[i], buffers.alpha[i])
    facts: dict[str, Any] = {}
    if not batch.tests and batch.first == 0:
        members[f"{bundle.key}/surface.npz"] = surface_bytes(*sample_surface(scene.mesh, SURFACE_POINTS, seed=0))
        facts = {
            "source_id": bundle.source_id,
            "category": bundle.category,
            "object_to_source": scene.object_to_source.tolist(),
            "faces": len(scene.mesh.faces),
            "warnings": list(scene.mesh.warnings),
        }
    cropped = [] if batch.tests else [batch.first + view for view in cropped_views(views)]
    return Part(members, facts, cropped, time.process_time() - start)


def painted(buffers: GBuffers, colour: torch.Tensor, alpha: torch.Tensor) -> GBuffers:
    """The views with another colour (V, 3, H, W) where that has any coverage: where not one of its samples hit, theirs stays."""
    return replace(buffers, colour=torch.where((alpha > 0) & (buffers.alpha > 0), colour, buffers.colour))


def write_object(job: RenderJob, key: str, parts: Sequence[Part]) -> float:
    """Write the object tar of all parts of an object; the processor seconds that it took in all. Raises DiskFull."""
    start = time.process_time()
    found = {name: value for part in parts for name, value in part.facts.items()}
    cropped = sorted(view for part in parts for view in part.cropped)
    meta = {**job.facts, **found, "up": job.up, "surface": "mesh", "rig": "own", "cropped_views": cropped}
    check_meta(meta, key)
    members = {name: data for part in parts for name, data in part.members.items()}
    write_members(job.path, members | {f"{key}/meta.json": json_bytes(meta)})
    return sum(part.seconds for part in parts) + time.process_time() - start
