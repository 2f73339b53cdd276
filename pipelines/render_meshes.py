"""Scanned or modelled meshes to object tars: `python -m pipelines.render_meshes --help`.

In: archives or folders of meshes (`--input`) in one of three layouts. Out: `datasets/<dataset>/<preset>/objects/<key>.tar`,
one an object, and `render.stats.json` beside that folder. Convention: the layout is how the files lie, the data set what the
objects are. A tar that is whole and was made from the same files with the same settings is kept, so a run that was stopped
goes on where it was. An object that cannot be used is counted by its reason and loses nothing else; too many of them fail
the run. Verified by tests/test_render_meshes.py on small meshes and on ten real scans.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from tqdm import tqdm

from geolrm.config import Params, load_params
from geolrm.data.fetch import Ledger
from geolrm.data.lighting import LIGHTING
from geolrm.data.meshes import KNOWN_DATASETS, Bundle, Dropped, Layout, SourceFacts, Up, read_source
from geolrm.data.object_tar import read_object_tar
from geolrm.data.pathtrace import SAMPLES, MitsubaMissing, import_mitsuba
from geolrm.data.raycast import Open3DMissing, import_open3d
from geolrm.data.render_tasks import SURFACE_POINTS, Colour, RenderJob, batches, render_part, write_object
from geolrm.data.reprojection import reprojection_error
from geolrm.data.rig import FOV, RADIUS, VIEWS, view_roles
from geolrm.failures import BadInput, run_command
from geolrm.files import write_whole
from geolrm.pictures import save_picture

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
    colour: Colour = "cast"
    """cast: each surface point under the fixed light, the same from all sides. path: traced with Mitsuba, with shadows and light
    from surface to surface (pip install -e '.[mitsuba]'), some twenty times as long. Depth, normals and alpha are the same."""
    samples: int = SAMPLES
    """Paths a pixel, of --colour path."""
    albedo: bool = False
    """Write each view's albedo too, as GObjaverse has it; nothing here reads it."""
    workers: int | None = None
    """Processes of one thread. Default: meshes.workers of the params file."""
    scheduler: str | None = None
    """Address of a running Dask scheduler to use instead, such as tcp://127.0.0.1:8786; its workers must see the same folders."""
    batch: int = VIEWS
    """Views that a worker renders at a time. Fewer spread one object over several workers, each of which reads its mesh: worth
    it with --colour path."""
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
    cores: int = 1
    processor_seconds: float = 0.0
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

    @property
    def per_hour_and_core(self) -> float | None:
        """Objects that a core renders in an hour: by processor time, which other work on the machine hardly changes."""
        return 3600 * self.rendered / self.processor_seconds if self.rendered and self.processor_seconds else None


@dataclass(frozen=True)
class Work:
    """One object to render: its files and what is to be made of them."""

    bundle: Bundle
    job: RenderJob


Submit = Callable[
    [Work], "Future[float]"
]  # renders an object somewhere; its result is the processor seconds that it took


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


def jobs(options: Options, params: Params, dataset: str, known: SourceFacts, folder: Path) -> Iterator[Work | Dropped]:
    """The objects of the source as work, or the reason why one cannot be read."""
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
        if options.colour == "path":
            settings |= {"colour": "path", "samples": options.samples}
        if options.albedo:
            settings |= {"albedo": True}
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
        threads = 0 if workers == 1 and options.scheduler is None else 1
        size, sub_rays, path = params.meshes.resolution, params.meshes.supersampling, folder / f"{item.key}.tar"
        colour = (options.colour, options.samples, options.albedo)
        job = RenderJob(facts, up, size, sub_rays, threads, path.absolute(), *colour)
        yield Work(item, job)


def is_current(work: Work, meta: dict[str, Any] | None) -> bool:
    """Whether the tar that is there is what this work would write."""
    if meta is None:
        return False
    bundle = work.bundle
    expected = {**work.job.facts, "up": work.job.up, "source_id": bundle.source_id, "category": bundle.category}
    return all(meta.get(name) == value for name, value in expected.items())


def render_here(work: Work) -> Future[float]:
    """Render an object in this process: no start-up, for few objects and for debugging."""
    future: Future[float] = Future()
    try:
        parts = [render_part(work.job, work.bundle, batch) for batch in batches(VIEWS)]
        future.set_result(write_object(work.job, work.bundle.key, parts))
    except BadInput as error:
        future.set_exception(error)
    return future


@contextmanager
def workforce(workers: int, scheduler: str | None, batch: int) -> Iterator[tuple[Submit, int]]:
    """What renders an object, and how many cores are at it: this process for one worker, else workers of a Dask cluster, each of
    which does a batch of views at a time. Pixels stay among the workers, one of which writes the tar."""
    if workers == 1 and scheduler is None:
        yield render_here, os.cpu_count() or 1
        return
    from pipelines.shard import dask_client

    with dask_client(workers, scheduler) as client, client.get_executor(pure=False) as executor:

        def submit(work: Work) -> Future[float]:
            bundle = client.scatter(work.bundle, hash=False)
            parts = [client.submit(render_part, work.job, bundle, some, pure=False) for some in batches(batch)]
            done: Future[float] = executor.submit(write_object, work.job, work.bundle.key, parts)
            return done

        yield submit, max(1, sum(client.nthreads().values()))


def run(work: Iterator[Work | Dropped], workers: int, scheduler: str | None = None, batch: int = VIEWS) -> Tally:
    """Do the work on this many processes; at most two objects a worker wait in memory."""
    tally = Tally()
    pending: dict[Future[float], Work] = {}
    with workforce(workers, scheduler, batch) as (submit, tally.cores), tqdm(unit="object", desc="render") as bar:
        waiting = 2 * (tally.cores if scheduler is not None else workers)
        for item in work:
            if isinstance(item, Dropped):
                tally.drop(item.source_id, item.error)
                bar.update()
                continue
            meta = stored_meta(item.job.path)
            if meta is not None and is_current(item, meta):
                tally.take(item.job.path, meta, was_kept=True)
                bar.update()
                continue
            pending[submit(item)] = item
            if len(pending) >= waiting:
                bar.update(collect(pending, tally))
        while pending:
            bar.update(collect(pending, tally))
    tally.keys.sort()
    return tally


def collect(pending: dict[Future[float], Work], tally: Tally) -> int:
    """Wait for an object, move what is done from `pending` to the tally, and say how many that were."""
    done, _ = wait(pending, return_when=FIRST_COMPLETED)
    told: tuple[type[Exception], ...] = (BadInput, *lost_worker())
    for future in done:
        work = pending.pop(future)
        path = work.job.path
        try:
            tally.processor_seconds += future.result()
        except told as error:
            path.unlink(missing_ok=True)  # of other files or settings: no longer what this source says
            if not isinstance(error, BadInput):
                detail = f"its worker died again and again, out of memory perhaps ({error})"
                error = BadInput("worker_killed", path, detail, "run the command again with fewer --workers")
            tally.drop(work.bundle.source_id, error)
            continue
        meta = stored_meta(path)
        if meta is None:
            raise RuntimeError(f"{path} was written and is not whole")
        tally.take(path, meta, was_kept=False)
    return len(done)


def lost_worker() -> tuple[type[Exception], ...]:
    """The error by which a cluster tells that it gave a task up, where there is a cluster."""
    if "distributed" not in sys.modules:
        return ()
    from distributed import KilledWorker

    return (KilledWorker,)


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
        "objects_per_hour_and_core": round(tally.per_hour_and_core, 1) if tally.per_hour_and_core else None,
        "colour": options.colour,
        "workers": options.workers or params.meshes.workers,
        "settings": asdict_settings(params),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in used_packages(options.colour)},
    }


def used_packages(colour: Colour) -> tuple[str, ...]:
    """What the pictures depend on."""
    return ("torch", "numpy", "open3d", "trimesh", "pillow", *(("mitsuba",) if colour == "path" else ()))


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
    if tally.per_hour_and_core:
        print(f"  {tally.per_hour_and_core:,.0f} objects an hour and core")
    for reason, count in Counter(entry["reason"] for entry in tally.dropped).most_common():
        objects = ", ".join(entry["object"] for entry in tally.dropped if entry["reason"] == reason)
        print(f"  dropped, {reason}: {count} ({objects})")
    for warning, count in tally.warnings.items():
        print(f"  warning, {warning}: {count}")
    if tally.cropped:
        print(f"  cropped by the frame in some view: {', '.join(sorted(tally.cropped))}")


def render_meshes(options: Options) -> int:
    """Run the stage; the exit status. Raises BadInput for what concerns the run as a whole, `Open3DMissing`, `MitsubaMissing`."""
    params = load_params(options.params)
    dataset, known = source_facts(options)
    for name in ("samples", "batch"):
        if getattr(options, name) < 1:
            raise BadInput("option_range", f"--{name}", f"{getattr(options, name)} is not above 0")
    import_open3d()
    if options.colour == "path":
        import_mitsuba()
    folder = options.root / dataset / params.preset / "objects"
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    workers = options.workers or params.meshes.workers
    tally = run(jobs(options, params, dataset, known, folder), workers, options.scheduler, options.batch)
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
    return run_command(lambda: render_meshes(options), Open3DMissing, MitsubaMissing)


if __name__ == "__main__":
    sys.exit(main())
