"""Scanned or modelled meshes to object tars: `python -m pipelines.render_meshes --help`.

In: archives or folders of meshes (`--input`) in one of three layouts. Out: `datasets/<dataset>/<preset>/objects/<key>.tar`,
one an object, and `render.stats.json` beside that folder. Convention: the layout is how the files lie, the data set what the
objects are. A tar that is whole and was made from the same files with the same settings is kept, so a run that was stopped
goes on where it was. An object that cannot be used is counted by its reason and loses nothing else; too many of them fail
the run. Verified by tests/test_render_meshes.py on small meshes and on ten real scans.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import tyro
from tqdm import tqdm

from geolrm.config import Params, load_params
from geolrm.data.fetch import Ledger
from geolrm.data.lighting import LIGHTING
from geolrm.data.meshes import KNOWN_DATASETS, Bundle, Dropped, Layout, SourceFacts, Up, read_source
from geolrm.data.object_tar import read_object_tar, write_object_tar
from geolrm.data.raycast import SURFACE_POINTS, Open3DMissing, import_open3d, rendered_object
from geolrm.data.reprojection import reprojection_error
from geolrm.data.rig import FOV, RADIUS, view_roles
from geolrm.failures import BadInput, run_command
from geolrm.files import write_whole
from geolrm.pictures import save_picture

T = TypeVar("T")

RENDER_FORMAT = 1  # changes with anything in the renderer that changes its pictures
CHECK_RESOLUTION = 128  # voxels: depth must reproject to half of one, at the paper's grid
SHEET_VIEWS = (0, 6, 12, 18, 25, 26, 27)
DEFAULT_DATASET: dict[str, str | None] = {"gso_zip": "gso", "raw_scans": "omniobject3d", "folder": None}


@dataclass(frozen=True)
class Options:
    """Render meshes into object tars (40 views and 16 test views an object), by ray casting, without display or GPU.

    Layouts: `gso_zip` is a Gazebo Fuel zip (meshes/model.obj, materials/textures/texture.png) or a folder of them;
    `raw_scans` is OmniObject3D's <category>.tar.gz (<category>/<object>/Scan/Scan.obj), a folder of them, or the same
    extracted; `folder` is any OBJ, GLB or PLY, a folder of them searched in depth, or zips of them.
    """

    layout: Layout
    """How the files lie."""
    input: Path
    """The archive, or the folder that holds archives or meshes."""
    dataset: str | None = None
    """What the objects are: names the output folder and stands in every result row. Default by layout: gso_zip: gso,
    raw_scans: omniobject3d; the layout `folder` has none."""
    licence: str | None = None
    """Licence of the objects. Default: that of a data set we know (gso, omniobject3d, hope), else none is stored."""
    attribution: str | None = None
    """Whom to name beside pictures of the objects. Default: as for the licence."""
    unit: str | None = None
    """Unit of the source's coordinates, for example m, cm, mm. Default: as for the licence."""
    up: Up | None = None
    """The source's axis that points up. Default: that of a data set we know; y for GLB by its standard; else z."""
    up_exceptions: dict[str, Up] = field(default_factory=dict)
    """Objects that stand otherwise, as pairs of key and axis: --up-exceptions bottle_002 z."""
    split: str = "test"
    """Split that the objects belong to: train, val or test."""
    params: Path = Path("params.yaml")
    """The params file: resolution, supersampling, workers, max_drop_rate of its section `meshes`, and the preset's name."""
    workers: int | None = None
    """Processes. Default: meshes.workers of the params file."""
    limit: int | None = None
    """Stop after this many objects: a trial on a large source."""
    root: Path = Path("datasets")
    """The folder under which <dataset>/<preset>/objects is written."""
    check: Path | None = None
    """After rendering, measure how the depth of each view lands on the next and write the numbers to this JSON file
    (objects of earlier runs in it stay). Fails if an object's median error exceeds half a voxel of a 128 grid."""
    sheet: Path | None = None
    """After rendering, write a contact sheet (PNG) of this run's objects. Mind their licence before publishing it."""


@dataclass
class Tally:
    """What became of the objects of one run."""

    rendered: int = 0
    kept: int = 0
    bytes: int = 0
    keys: list[str] = field(default_factory=list)
    warnings: Counter[str] = field(default_factory=Counter)
    cropped: list[str] = field(default_factory=list)
    dropped: list[dict[str, str]] = field(default_factory=list)

    def drop(self, source_id: str, error: BadInput) -> None:
        self.dropped.append({"object": source_id, "reason": error.reason, "where": error.where, "detail": error.detail})
        tqdm.write(f"dropped {source_id}: {error}", file=sys.stderr)

    def take(self, path: Path, meta: dict[str, Any], was_kept: bool) -> None:
        self.kept, self.rendered = self.kept + was_kept, self.rendered + (not was_kept)
        self.bytes += path.stat().st_size
        self.keys.append(path.stem)
        self.warnings.update(meta["warnings"])
        if meta["cropped_views"]:
            self.cropped.append(path.stem)

    @property
    def drop_rate(self) -> float:
        return len(self.dropped) / max(len(self.dropped) + len(self.keys), 1)


@dataclass(frozen=True)
class Job:
    """One object to render: picklable, on its way to a worker."""

    bundle: Bundle
    facts: dict[str, Any]
    up: Up
    resolution: int
    supersampling: int
    threads: int
    path: Path


def render(job: Job) -> None:
    """Render an object and write its tar. Raises BadInput."""
    obj = rendered_object(job.bundle, job.facts, job.up, job.resolution, job.supersampling, job.threads)
    write_object_tar(job.path, obj)


def stored_meta(path: Path) -> dict[str, Any] | None:
    """`meta.json` of an object tar, or None if there is no whole tar at this path."""
    try:
        with tarfile.open(path, "r:") as tar:
            tar.getmembers()
            stream = tar.extractfile(f"{path.stem}/meta.json")
            with open(path, "rb") as file:
                file.seek(-1024, os.SEEK_END)
                whole = not any(file.read())
            return json.loads(stream.read()) if stream and whole else None
    except (tarfile.ReadError, KeyError, OSError, ValueError):
        return None


def source_facts(options: Options) -> tuple[str, SourceFacts]:
    """Name and facts of the data set: what is known of it, where the command line does not say otherwise."""
    dataset = options.dataset or DEFAULT_DATASET[options.layout]
    if dataset is None or Path(dataset).name != dataset or dataset in (".", ".."):
        wrong = "the layout names no data set" if dataset is None else f"data set {dataset!r} cannot name a folder"
        raise BadInput("dataset_name", options.input, wrong, "say what the meshes are: --dataset NAME")
    known = KNOWN_DATASETS.get(dataset, SourceFacts(None, None, None, "z"))
    return dataset, SourceFacts(
        options.licence or known.licence,
        options.attribution or known.attribution,
        options.unit or known.unit,
        options.up or known.up,
        {**known.up_exceptions, **options.up_exceptions},
    )


def object_up(bundle: Bundle, facts: SourceFacts, given: Up | None) -> Up:
    """The axis that points up in this object's file."""
    if bundle.key in facts.up_exceptions:
        return facts.up_exceptions[bundle.key]
    if given is None and bundle.mesh_name.lower().endswith(".glb"):
        return "y"
    return facts.up


def jobs(options: Options, params: Params, dataset: str, known: SourceFacts, folder: Path) -> Iterator[Job | Dropped]:
    """The objects of the source as jobs, or the reason why one cannot be read."""
    workers = options.workers or params.meshes.workers
    beside = options.input if options.input.is_dir() else options.input.parent  # one zip, or a folder of them
    own = {record.file: record for record in Ledger(beside / "fetch.jsonl").records.values()}
    for count, item in enumerate(read_source(options.input, options.layout)):
        if options.limit is not None and count >= options.limit:
            return
        if isinstance(item, Dropped):
            yield item
            continue
        up = object_up(item, known, options.up)
        settings = {
            "format": RENDER_FORMAT,
            "resolution": params.meshes.resolution,
            "supersampling": params.meshes.supersampling,
            "lighting": LIGHTING,
            "surface_points": SURFACE_POINTS,
            "fov": FOV,
            "radius": RADIUS,
        }
        record = own.get(Path(item.where).name)  # what was fetched may know the licence of each object
        facts = {
            "dataset": dataset,
            "layout": options.layout,
            "split": options.split,
            "licence": options.licence or (record.licence if record else None) or known.licence,
            "attribution": known.attribution,
            "unit": known.unit,
            "source_sha256": item.sha256,
            "render": settings,
        }
        threads = 0 if workers == 1 else 1
        size, samples = params.meshes.resolution, params.meshes.supersampling
        yield Job(item, facts, up, size, samples, threads, folder / f"{item.key}.tar")


def is_current(job: Job, meta: dict[str, Any] | None) -> bool:
    """Whether the tar that is there is what this job would write."""
    if meta is None:
        return False
    expected = {**job.facts, "up": job.up, "source_id": job.bundle.source_id, "category": job.bundle.category}
    return all(meta.get(name) == value for name, value in expected.items())


class Inline(Executor):
    """One worker that is this process: no start-up, for few objects and for debugging."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BadInput as error:
            future.set_exception(error)
        return future


def workforce(workers: int) -> Executor:
    """This process for one worker, else that many of one thread each."""
    if workers == 1:
        return Inline()
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,))


def run(work: Iterator[Job | Dropped], workers: int) -> Tally:
    """Do the jobs on this many processes; at most two a worker wait in memory."""
    tally = Tally()
    pending: dict[Future[None], Job] = {}
    with workforce(workers) as pool, tqdm(unit="object", desc="render") as bar:
        for item in work:
            if isinstance(item, Dropped):
                tally.drop(item.source_id, item.error)
                bar.update()
                continue
            meta = stored_meta(item.path)
            if meta is not None and is_current(item, meta):
                tally.take(item.path, meta, was_kept=True)
                bar.update()
                continue
            pending[pool.submit(render, item)] = item
            if len(pending) >= 2 * workers:
                bar.update(collect(pending, tally, FIRST_COMPLETED))
        while pending:
            bar.update(collect(pending, tally, FIRST_COMPLETED))
    tally.keys.sort()
    return tally


def collect(pending: dict[Future[None], Job], tally: Tally, when: str) -> int:
    """Wait, move what is done from `pending` to the tally, and say how many that were."""
    done, _ = wait(pending, return_when=when)
    for future in done:
        job = pending.pop(future)
        try:
            future.result()
        except BadInput as error:
            job.path.unlink(missing_ok=True)  # of other files or settings: no longer what this source says
            tally.drop(job.bundle.source_id, error)
            continue
        meta = stored_meta(job.path)
        if meta is None:
            raise RuntimeError(f"{job.path} was written and is not whole")
        tally.take(job.path, meta, was_kept=False)
    return len(done)


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(record, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file written by an earlier run, {} if there is none or it is damaged."""
    try:
        record = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def statistics(options: Options, params: Params, tally: Tally, seconds: float) -> dict[str, Any]:
    """What one run did, for render.stats.json."""
    return {
        "input": options.input.name,
        "layout": options.layout,
        "split": options.split,
        "objects": len(tally.keys),
        "rendered": tally.rendered,
        "kept": tally.kept,
        "dropped": dict(Counter(entry["reason"] for entry in tally.dropped)),
        "dropped_objects": tally.dropped,
        "drop_rate": tally.drop_rate,
        "max_drop_rate": params.meshes.max_drop_rate,
        "warnings": dict(tally.warnings),
        "cropped_objects": sorted(tally.cropped),
        "bytes": tally.bytes,
        "seconds": round(seconds, 2),
        "seconds_per_rendered_object": round(seconds / tally.rendered, 2) if tally.rendered else None,
        "workers": options.workers or params.meshes.workers,
        "settings": asdict_settings(params),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "numpy", "open3d", "trimesh", "pillow")},
    }


def asdict_settings(params: Params) -> dict[str, Any]:
    """The section `meshes` of the params and the lighting."""
    return {**params.meshes.model_dump(), "lighting": LIGHTING, "format": RENDER_FORMAT}


def check_reprojection(folder: Path, keys: list[str], dataset: str, preset: str, path: Path) -> list[str]:
    """Measure each object's depth against itself, add the numbers to a JSON file, and name the objects that fail."""
    record = read_json(path)
    tolerance, failed = 0.5 / CHECK_RESOLUTION, []
    for key in tqdm(keys, unit="object", desc="check"):
        obj = read_object_tar(folder / f"{key}.tar")
        around = [i for i, role in enumerate(view_roles(obj.views.cameras)) if role in ("orbit", "ring")]
        error = reprojection_error(obj.views[around])
        record[f"{dataset}/{preset}/{key}"] = {
            **{
                name: value if isinstance(value, int) else float(f"{value:.4g}")
                for name, value in asdict(error).items()
            },
            "resolution": obj.views.size[0],
            "views": len(around),
            "half_voxel_at_64": 0.5 / 64,
            "half_voxel_at_128": tolerance,
            "ok": error.median < tolerance,
        }
        if error.median >= tolerance:
            failed.append(key)
    write_json(path, record)
    return failed


def write_sheet(folder: Path, keys: list[str], path: Path) -> None:
    """A row of pictures an object: four of the orbit, top, bottom, one of the ring, then two test views."""
    rows = []
    for key in keys:
        obj = read_object_tar(folder / f"{key}.tar")
        pictures = list(obj.views[SHEET_VIEWS].composited())
        if obj.test_views is not None:
            pictures += list(obj.test_views[[3, 8]].composited())
        rows.append(torch.cat(pictures, dim=2))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(torch.cat(rows, dim=1), path)


def report(tally: Tally, folder: Path, seconds: float) -> None:
    """Print what became of the objects."""
    print(
        f"{folder}: {tally.rendered} rendered, {tally.kept} kept, {len(tally.dropped)} dropped, "
        f"{tally.bytes / 1e6:.1f} MB, {seconds:.1f} s"
    )
    for reason, count in Counter(entry["reason"] for entry in tally.dropped).most_common():
        objects = ", ".join(entry["object"] for entry in tally.dropped if entry["reason"] == reason)
        print(f"  dropped, {reason}: {count} ({objects})")
    for warning, count in tally.warnings.items():
        print(f"  warning, {warning}: {count}")
    if tally.cropped:
        print(f"  cropped by the frame in some view: {', '.join(sorted(tally.cropped))}")


def render_meshes(options: Options) -> int:
    """Run the stage; the exit status. Raises BadInput for what concerns the run as a whole, `Open3DMissing`."""
    params = load_params(options.params)
    dataset, known = source_facts(options)
    import_open3d()
    folder = options.root / dataset / params.preset / "objects"
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    tally = run(jobs(options, params, dataset, known, folder), options.workers or params.meshes.workers)
    seconds = time.monotonic() - start
    stats_path = folder.parent / "render.stats.json"
    stats = {
        **read_json(stats_path),
        f"{options.layout}/{options.input.name}": statistics(options, params, tally, seconds),
    }
    write_json(stats_path, stats)
    report(tally, folder, seconds)
    status = 0
    if options.sheet is not None and tally.keys:
        write_sheet(folder, tally.keys, options.sheet)
    if options.check is not None:
        failed = check_reprojection(folder, tally.keys, dataset, params.preset, options.check)
        if failed:
            print(f"error: depth does not reproject within half a voxel: {', '.join(failed)}", file=sys.stderr)
            status = 1
    if tally.drop_rate > params.meshes.max_drop_rate:
        limit = params.meshes.max_drop_rate
        names = ", ".join(f"{entry['object']} ({entry['reason']})" for entry in tally.dropped)
        print(f"error: {tally.drop_rate:.0%} of the objects dropped, more than {limit:.0%}: {names}", file=sys.stderr)
        status = 1
    return status


def main(arguments: Annotated[list[str] | None, tyro.conf.Suppress] = None) -> int:
    """Parse the command line and run."""
    options = tyro.cli(Options, prog="python -m pipelines.render_meshes", args=arguments)
    return run_command(lambda: render_meshes(options), Open3DMissing)


if __name__ == "__main__":
    sys.exit(main())
