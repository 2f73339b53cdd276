"""The sweep over input view counts: every method, object and view count gives one result row.

In: shards of a data set with test views, the methods of `benchmarks/methods`, the section `sweep` of params.yaml. Out, under
`results/<preset>/sweep/<data set>/`: `rows.jsonl`, `metrics.json`, `curve.csv`, `protocol.json`, `artefacts/`, and in `system/`
how busy the machine was, a file a method. Convention: the protocol is docs/protocol.md; each set of inputs but the first,
`orbit`, has a folder of its own, `<data set>-<inputs>`; the targets are the test views, or those that a source's own cameras
leave, never among the inputs. A row that is there and holds is kept, so that an interrupted sweep goes on where it stopped;
sweeps may run at once, in one folder too: no row is made twice. Each method has a process of its own, whose crash is a row.
Trade: the truth of an object is prepared once per method. Verified by truth as prediction, planted errors, failing methods, and
sweeps killed while others run.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from tqdm import tqdm

from benchmarks import protocol
from benchmarks.artefacts import artefact_folder, complete, save_artefacts, turntable
from benchmarks.inputs import InputSet, ViewPlan
from benchmarks.measure import CPU_MEMORY, CUDA_MEMORY, Measured, measure
from benchmarks.methods import Context, Method, NotApplicable, check_method, load_method, load_untrained, sources
from benchmarks.processes import Stopped, Tell, in_own_process, memory_kills
from benchmarks.published import UNTRAINED
from benchmarks.rows import METRICS, Key, Row, append_row, code_hash, identity, keep_rows, key_of, read_rows
from benchmarks.scores import BACKGROUND, Scorer, Scores
from benchmarks.splits import list_hash, split_list
from benchmarks.stages import Stopwatch
from benchmarks.summary import common_objects, curve_csv, floor_means, metrics_json, table
from geolrm.cameras import Cameras
from geolrm.config import Params, Sweep, load_params
from geolrm.data.loader import Sample, ShardDataset
from geolrm.data.places import Place, hash_file, place
from geolrm.data.rig import ORBIT_VIEWS
from geolrm.data.sample_cache import CACHE_BYTES
from geolrm.failures import BadInput, run_command
from geolrm.files import alone_in, write_whole
from geolrm.gaussians import Gaussians
from geolrm.metrics.perceptual import PerceptualMetrics, load_perceptual
from geolrm.monitor import watched
from geolrm.passport import passport
from geolrm.views import Views

SAME_POSE = 1e-4
LIST_SPLIT = "test"  # of the catalog, where the objects of the benchmark's lists lie
# What a method's own code, or the memory of the machine, may raise; anything else is a defect and stops the sweep.
METHOD_ERRORS = (RuntimeError, ValueError, ArithmeticError, LookupError, MemoryError)


@dataclass
class Arguments:
    """Sweep methods over the number of input views and write one result row per method, object and view count.

    Whatever is not given comes from the section `sweep` of the params file. Rows and artefacts of an earlier sweep that
    neither that section nor this command asks for are removed; `--output` keeps sweeps apart.
    """

    params: Path = Path("params.yaml")
    """Params file; its preset names the folders of data and results."""
    dataset: tuple[str, ...] = ("procedural",)
    """One or several data sets, folders of datasets/ that `pipelines.shard` has sharded (their catalog.parquet must exist)."""
    views: tuple[int, ...] | None = None
    """Numbers of input views, 1 to 24."""
    inputs: tuple[InputSet, ...] | None = None
    """Sets of input views: orbit (evenly around the object), nested (one order, each prefix well spread), random."""
    methods: tuple[str, ...] | None = None
    """Methods to run: modules of benchmarks/methods."""
    objects: int | None = None
    """How many objects, the first of the split."""
    split: str | None = None
    """Which objects: a split of the data set (test), or one of the benchmark's lists, such as gso-100."""
    artefacts: int | None = None
    """Of how many objects, the first of the split, pictures, films, splats and meshes are kept."""
    lpips: Literal["auto", "required"] | None = None
    """auto: go on without LPIPS where its weights are missing; required: stop."""
    weights: Path | None = None
    """File or folder of the LPIPS backbones, instead of GEOLRM_LPIPS_WEIGHTS or the cache."""
    datasets: str = "datasets"
    """Folder of the data sets, or the address of a store such as s3://bucket/datasets."""
    cache_gib: float = 64.0
    """How much of this disk (~/.cache/geolrm/samples) samples of a store may take, in GiB."""
    results: Path | None = None
    """Folder of the preset's results, where its checkpoints are read from (results/<preset>)."""
    output: Path | None = None
    """Where to write, one folder per data set (results/<preset>/sweep)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    untrained: bool = False
    """Measure what a method without its published weights costs, with random ones; such rows have no scores and say so."""
    processes: Literal["own", "shared"] = "own"
    """own: each method in a process of its own, so that no peak of memory leaks into the next and a crash is a row; shared:
    all in this one, for a debugger."""


def check_apart(inputs: Cameras, tests: Cameras, where: object) -> None:
    """Raise `BadInput` if a test camera has the pose of an input camera."""
    distance = (inputs.camera_to_world[:, None] - tests.camera_to_world[None]).abs().amax(dim=(-1, -2))
    if (distance < SAME_POSE).any():
        view = int(distance.amin(dim=1).argmin())
        raise BadInput(
            "test_view_among_inputs", where, f"input {view} has the pose of a test view", "render test views apart"
        )


@contextlib.contextmanager
def registered(output: Path, tidy: Callable[[], None]) -> Iterator[bool]:
    """A block that sweeps into a folder, together with any number of others; the lock is freed if we are killed.

    Args:
        tidy: is called first, if no other sweep is at work there; the block is given whether it was.
    """
    place = output / "artefacts"
    place.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            tidy()
            alone = True
        except BlockingIOError:
            alone = False
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield alone
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Crash:
    """A row during which the process of its method ended."""

    status: str
    reason: str


@dataclass
class DatasetSweep:
    """The sweep of one data set: what is asked for, what is loaded, what is written where."""

    name: str
    data: ShardDataset
    params: Params
    results: Path
    output: Path
    perceptual: PerceptualMetrics
    device: torch.device
    dataset_hash: str
    listed: Sweep | None = None  # the params file's section where the command line asks for others: its rows stay too
    inputs: InputSet = "orbit"
    names: list[str] | None = None  # objects of the split where it is a list, in its order
    dropped: dict[str, str] = field(default_factory=dict)
    untrained: bool = False  # whether random weights stand in for missing ones, for costs alone
    alone: bool = True  # whether no other sweep writes to this folder
    _warm: set[tuple[str, int]] = field(default_factory=set)
    _rendered: bool = False
    _harness_bytes: int = 0
    _not_harness: float = 0.0

    @property
    def settings(self) -> Sweep:
        return self.params.sweep

    @property
    def split_keys(self) -> list[str]:
        return self.names or list(self.data.keys)

    @property
    def keys(self) -> list[str]:
        return self.split_keys[: self.settings.objects]

    def check_objects(self) -> None:
        """Raise `BadInput` if objects that the sweep is asked for are not there: a mean over some is not that of the list."""
        absent = [key for key in self.keys if key not in set(self.data.keys)]
        if absent:
            detail = f"{len(absent)} of its first {len(self.keys)} objects are not here, {absent[0]} for one"
            remedy = "fetch, render and shard them, or ask for fewer --objects"
            raise BadInput("split_incomplete", f"{self.name}/{self.settings.split}", detail, remedy)

    @property
    def named(self) -> list[str]:
        """Objects whose pictures, films, splats and meshes are kept."""
        return self.keys[: self.settings.artefacts]

    @property
    def rows_file(self) -> Path:
        return self.output / "rows.jsonl"

    def other_views(self, key: str, count: int) -> Views:
        """Input views of the next object of the split, chosen as those of `key` are."""
        here = set(self.data.keys)
        keys = [name for name in self.split_keys if name in here]
        if len(keys) < 2:
            raise NotApplicable("one_object", f"{self.name}/{key}", "the split holds no other object")
        sample = self.data.sample(keys[(keys.index(key) + 1) % len(keys)])
        return sample.views(self.plan(sample).inputs(self.inputs, count))

    def plan(self, sample: Sample) -> ViewPlan:
        """Which views of an object are given and which are held out. Raises `BadInput` for one without views to measure on."""
        native = sample.meta.get("rig") == "native"
        if sample.test_cameras is None and not native:
            detail, remedy = "the data set has no test views to measure on", "render it with this project's rig"
            raise BadInput("no_test_views", f"{self.name}/{sample.key}", detail, remedy)
        return ViewPlan.of(sample.key, sample.cameras, sample.roles, has_tests=not native)

    def load(self, name: str) -> Method | str:
        """A method, or in its place the reason why it cannot run here."""
        context = Context(self.params, self.results, self.device, self.other_views)
        try:
            return load_method(name, context)
        except (BadInput, ImportError) as error:
            random = load_untrained(name, context) if self.untrained else None
            if random is not None:
                print(f"!!! {name} has random weights, for costs alone: {error}", flush=True)
                return random
            print(f"!!! {name} cannot run here: {error}", flush=True)
            return f"{type(error).__name__}: {error}"

    def passport_of(self, name: str, method: Method | str) -> dict[str, Any]:
        """The passport of a method's rows."""
        on_cuda = self.device.type == "cuda"
        return passport(
            protocol=protocol.PROTOCOL,
            protocol_hash=protocol.protocol_hash(),
            settings=self.settings.model_dump(include={*protocol.SETTINGS}) | {"inputs": self.inputs},
            deviations=protocol.deviations(self.settings),
            dataset_hash=self.dataset_hash,
            split_hash=list_hash(self.names) if self.names else None,
            checkpoint_hash=method.checkpoint if isinstance(method, Method) else None,
            max_anchors=self.settings.max_anchors if isinstance(method, Method) and method.checkpoint else None,
            code_hash=code_hash(sources(name)),
            lpips=self.perceptual.sha256,
            device=torch.cuda.get_device_name() if on_cuda else "cpu",
            precision=method.precision if isinstance(method, Method) else None,
            seed=self.settings.seed,
            memory=CUDA_MEMORY if on_cuda else CPU_MEMORY,
        )

    def holds(self, row: Row, passport: dict[str, Any]) -> bool:
        """Whether a row of an earlier run is what this run would write.

        Args:
            passport: of today's rows of the method, or of another one: then what is the method's own need not agree.
        """
        if row["status"] == "not_installed":
            return False
        of_weights = {"checkpoint_hash", "max_anchors", "precision"}
        own = of_weights | {"code_hash"} if row["method"] != passport["method"] else set()
        if row["status"] == "cost_only" and passport["checkpoint_hash"] is None:
            own = own | of_weights  # its weights are still missing: what random ones cost stays true
        today = passport | {name: row["passport"].get(name) for name in own}
        return identity(row["passport"]) == identity(today)

    def asked(self, settings: Sweep) -> set[Key]:
        """The rows that these settings ask for."""
        keys = self.split_keys[: settings.objects] if self.inputs in settings.inputs else []
        return {(method, key, views) for method in settings.methods for key in keys for views in settings.views}

    def drop_unasked(self) -> None:
        """Remove the rows that neither this run nor the params file asks for, and their files."""
        wanted = self.asked(self.settings) | (self.asked(self.listed) if self.listed else set())
        _, others = keep_rows(self.rows_file, lambda row: key_of(row) in wanted)
        for row in others:
            shutil.rmtree(artefact_folder(self.output, *key_of(row)), ignore_errors=True)
        if others:
            print(f"{self.rows_file}: {len(others)} rows are asked for no more and removed", flush=True)

    def kept(self, name: str, passport: dict[str, Any]) -> set[Key]:
        """Drop stale rows of this method, and of those that are not in this run at all, and say which rows need not be made."""
        mine = {name} if not self.alone else {row["method"] for row in read_rows(self.rows_file)}
        mine -= set(self.settings.methods) - {name}  # each of these comes to its own turn

        def holds(row: Row) -> bool:
            return row["method"] not in mine or (
                self.holds(row, passport | {"method": name}) and self._artefacts_there(row)
            )

        held, stale = keep_rows(self.rows_file, holds)
        done = {key_of(row) for row in held if row["method"] == name}
        if done or stale:
            print(f"{self.rows_file}, {name}: {len(done)} rows hold, {len(stale)} are stale and made anew", flush=True)
        return done & self.asked(self.settings)

    def _artefacts_there(self, row: Row) -> bool:
        if row["object"] not in self.named or row["status"] not in ("ok", "empty"):
            return True
        return complete(artefact_folder(self.output, *key_of(row)), row["status"])

    def scorer(self, sample: Sample, plan: ViewPlan) -> Scorer:
        """The truth of one object. Raises `BadInput` for pictures smaller than those to compare."""
        size = self.settings.image_size
        tests = sample.views(plan.held_out) if plan.held_out else sample.test_views()
        if min(tests.size) < size:
            detail = f"pictures of {tests.size[0]} x {tests.size[1]} pixels, to be compared at {size}"
            raise BadInput("truth_too_small", f"{self.name}/{sample.key}", detail, "render larger, or lower image_size")
        points = None
        if sample.points is not None and len(sample.points):
            points = torch.as_tensor(sample.points).double().cpu().numpy()
        return Scorer(tests.resized(size, size).to(self.device), points, self.settings, self.perceptual)

    def run(self, apart: bool = False) -> list[Row]:
        """Make the missing rows, write the summaries, return the rows asked for.

        Args:
            apart: each method in a process of its own.
        """
        self.check_objects()
        with registered(self.output, self.drop_unasked) as self.alone:
            write_whole(self.output / "protocol.json", protocol.block() + "\n")
            for name in self.settings.methods:
                if apart:
                    self._make_apart(name)
                else:
                    self.make(name)
        asked = self.asked(self.settings)
        rows = [row for row in read_rows(self.rows_file) if key_of(row) in asked]
        if len({row["rig"] for row in rows}) > 1:
            detail = "some objects have this project's cameras and some their own: no mean is over both"
            raise BadInput("rigs_mixed", self.rows_file, detail, "keep them in two data sets")
        write_whole(self.output / "metrics.json", metrics_json(rows))
        write_whole(self.output / "curve.csv", curve_csv(rows))
        return rows

    def _make_apart(self, name: str) -> None:
        """`make` in a process of its own; a crash becomes the row that was in the making, and the rest goes on."""
        crashes: dict[tuple[str, int], Crash] = {}
        while True:
            at: list[tuple[str, int]] = []  # where it was last

            def hear(message: tuple[str, Any], at: list[tuple[str, int]] = at) -> None:
                kind, content = message
                if kind == "dropped":
                    self.dropped |= content
                else:
                    at[:] = [content]

            before = memory_kills()
            start: Literal["fork", "spawn"] = "spawn" if self.device.type == "cuda" else "fork"
            ended = in_own_process(partial(self.make, name, crashes), hear, start)
            if ended is None:
                return
            if not at:
                detail = f"its process was ended by {ended.name} while it was loaded"
                raise BadInput("method_crashed", name, detail, "run it with --processes shared to see where")
            no_memory = ended == signal.SIGKILL and memory_kills() > before
            why = f"the method's process was ended by {ended.name}" + ("; memory had run out" if no_memory else "")
            tqdm.write(f"!!! {name} on {at[0][0]}, {at[0][1]} views: {why}")
            crashes[at[0]] = Crash("out_of_memory" if no_memory else "failed", why)

    def make(self, name: str, crashes: dict[tuple[str, int], Crash] | None = None, tell: Tell = lambda _: None) -> None:
        """Make the missing rows of one method; another sweep that is at this method here is waited for.

        Args:
            crashes: rows, by object and view count, that have ended a process: they are written as that.
            tell: is told of each row before it is begun, and of objects that are left out.
        """
        place = self.output / "artefacts" / name
        place.mkdir(parents=True, exist_ok=True)
        with alone_in(place):
            for network in self.perceptual.networks.values():
                network.to(self.device)
            self._harness_bytes = self._allocated()
            method = self.load(name)
            passport = self.passport_of(name, method)
            held = self.kept(name, passport)
            missing = {key for key in self.asked(self.settings) if key[0] == name} - held
            if not missing:
                return
            with (
                watched(self.output / "system" / f"{name}.jsonl", fresh=not held),
                tqdm(total=len(missing), desc=f"sweep {self.name} {name}", unit="row") as bar,
            ):
                for key in self.keys:
                    wanted = [views for views in self.settings.views if (name, key, views) in missing]
                    for row in self._object_rows(key, wanted, name, method, crashes or {}, tell) if wanted else ():
                        append_row(self.rows_file, row | {"passport": passport})
                        bar.update()

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated() if self.device.type == "cuda" else 0

    def _object_rows(
        self,
        key: str,
        wanted: list[int],
        name: str,
        method: Method | str,
        crashes: dict[tuple[str, int], Crash],
        tell: Tell,
    ) -> Iterator[Row]:
        begun = time.perf_counter()
        try:
            sample = self.data.sample(key)
            plan = self.plan(sample)
            scorer = self.scorer(sample, plan)
        except BadInput as error:
            if error.reason in ("no_test_views", "truth_too_small"):
                raise
            self.dropped[key] = str(error)  # without a truth there is nothing to score any method by
            tell(("dropped", {key: str(error)}))
            return
        for count in wanted:
            tell(("at", (key, count)))
            self._not_harness = 0.0
            row = self._row(sample, plan, scorer, count, name, crashes.get((key, count), method))
            now = time.perf_counter()
            yield row | {"harness_s": now - begun - self._not_harness}
            begun = time.perf_counter()

    def _row(
        self,
        sample: Sample,
        plan: ViewPlan,
        scorer: Scorer,
        count: int,
        name: str,
        method: Method | Crash | str,
    ) -> Row:
        row: Row = dict.fromkeys(METRICS) | {
            "method": name,
            "dataset": self.name,
            "split": self.settings.split,
            "object": sample.key,
            "views": count,
            "inputs": self.inputs,
            "input_views": [],
            "rig": sample.meta.get("rig", "unknown"),
            "test_views": len(scorer.cameras),
            "latency_runs": 0,
            "stages": {},
            "peak_reserved_bytes": None,
            "gaussians": None,
            "surface": sample.meta.get("surface", "unknown") if scorer.points is not None else "none",
            "floor": scorer.floor,
            "seed": self.settings.seed,
        }
        if isinstance(method, str):
            return row | {"status": "not_installed", "reason": method}
        if isinstance(method, Crash):
            return row | scorer.nothing | {"status": method.status, "reason": self._reason(method.reason, scorer)}
        try:
            row["input_views"] = plan.inputs(self.inputs, count)
            inputs = sample.views(row["input_views"]).to(self.device)
            check_apart(inputs.cameras, scorer.cameras.to(self.device), f"{self.name}/{sample.key}")
            with self._apart_from_harness():
                measured = measure(
                    method, inputs, (name, count) not in self._warm, self._harness_bytes + scorer.bytes_held
                )
        except METHOD_ERRORS as error:
            if isinstance(error, BadInput) and error.reason == "test_view_among_inputs":
                raise
            if isinstance(error, NotApplicable) or (isinstance(error, BadInput) and error.reason == "too_few_views"):
                return row | {"status": "not_applicable", "reason": str(error)}
            return row | self._failure(error, f"{name} on {sample.key}, {count} views", scorer)
        self._warm.add((name, count))
        if isinstance(method, Method) and method.checkpoint == UNTRAINED:
            return row | self._costs(measured) | {"status": "cost_only", "reason": UNTRAINED}
        folder = artefact_folder(self.output, name, sample.key, count) if sample.key in self.named else None
        try:
            return row | self._scored(measured, inputs, scorer, folder)
        except (torch.cuda.OutOfMemoryError, MemoryError) as error:
            return row | self._failure(error, f"scoring {name} on {sample.key}, {count} views", scorer)

    @contextlib.contextmanager
    def _apart_from_harness(self) -> Iterator[None]:
        """A block whose time is not the harness's own."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._not_harness += time.perf_counter() - begun

    def _failure(self, error: Exception, where: str, scorer: Scorer) -> Row:
        """Scores and status of a method that raised."""
        refused = isinstance(error, BadInput) and error.reason == "out_of_memory"
        no_memory = refused or isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
        no_memory = no_memory or "can't allocate memory" in str(error)
        status = "out_of_memory" if no_memory else "failed"
        if not no_memory:
            tqdm.write(f"!!! {where}: failed\n{''.join(traceback.format_exception(error))}")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        first_line = str(error).partition("\n")[0]
        return scorer.nothing | {
            "status": status,
            "reason": self._reason(f"{type(error).__name__}: {first_line}", scorer),
        }

    def _scored(self, measured: Measured, inputs: Views, scorer: Scorer, folder: Path | None) -> Row:
        """Scores, status and costs of a prediction; its files go to `folder`, if any."""
        prediction = measured.prediction
        costs = self._costs(measured)
        if isinstance(prediction, Gaussians):
            prediction = prediction.detach()
            costs["gaussians"] = len(prediction)
            if not all(bool(torch.isfinite(tensor).all()) for tensor in prediction.tensors):
                reason = self._reason("not_finite: a Gaussian holds NaN or infinity", scorer)
                return scorer.nothing | costs | {"status": "failed", "reason": reason}
        if not self._rendered:  # kernels are compiled, and device memory is taken, before anything is timed
            scorer.rendering(prediction)
            self._rendered = True
        watch = Stopwatch(self.device.type == "cuda")
        rendering = scorer.rendering(prediction)
        watch.stop()
        costs["stages"] = measured.stages | {"rendering": watch.seconds}
        if not all(bool(torch.isfinite(part).all()) for part in (rendering.colour, rendering.alpha, rendering.depth)):
            reason = self._reason("not_finite: a picture holds NaN or infinity", scorer)
            return scorer.nothing | costs | {"status": "failed", "reason": reason}
        empty = not len(prediction) if isinstance(prediction, Gaussians) else not bool((rendering.alpha > 0).any())
        mesh = None
        if not empty and (scorer.points is not None or folder):
            watch = Stopwatch(self.device.type == "cuda")
            mesh = scorer.mesh(prediction)
            watch.stop()
            costs["stages"] |= {"meshing": watch.seconds} if mesh is not None else {}
        if folder is not None:
            with self._apart_from_harness():
                shutil.rmtree(folder, ignore_errors=True)
                seen = inputs.resized(*scorer.test_views.size).composited(BACKGROUND)
                turn = None if empty else scorer.rendering(prediction, turntable()).colour
                save_artefacts(folder, seen, rendering.colour, scorer.truth, prediction, mesh, turn)
        if empty:
            nothing = "no Gaussians" if isinstance(prediction, Gaussians) else "nothing in any test view"
            return scorer.nothing | costs | {"status": "empty", "reason": self._reason(nothing, scorer)}
        scores: Scores = dict(scorer.score_pictures(rendering))
        reason = ""
        if not isinstance(prediction, Gaussians) and prediction.mesh is None:
            scores["depth_error"] = None
            reason = "geometry: the method claims no surface; depth_error: likewise"
        elif mesh is not None and scorer.points is not None:
            scores |= scorer.score_mesh(mesh)
            reason = "" if len(mesh.faces) else "mesh_empty: no surface to measure"
        return scores | costs | {"status": "ok", "reason": self._reason(reason, scorer)}

    def _costs(self, measured: Measured) -> Row:
        return {
            "latency_s": measured.latency_s,
            "latency_p90_s": measured.latency_p90_s,
            "latency_runs": measured.runs,
            "stages": measured.stages,
            "peak_memory_bytes": measured.peak_memory_bytes,
            "peak_reserved_bytes": measured.peak_reserved_bytes,
        }

    def _reason(self, own: str, scorer: Scorer) -> str:
        """A row's reason, with those of its nulls: absent weights, absent truth."""
        return "; ".join(filter(None, [own, *scorer.gaps]))


def with_arguments(params: Params, arguments: Arguments) -> Params:
    """The params with the section `sweep` as the command line asks for it; every value checked."""
    asked = {
        name: getattr(arguments, name)
        for name in ("views", "inputs", "methods", "objects", "split", "artefacts", "lpips")
    }
    changes = {name: list(v) if isinstance(v, tuple) else v for name, v in asked.items() if v is not None}
    settings = Sweep.model_validate({**params.sweep.model_dump(), **changes})
    if wrong := [count for count in settings.views if count > ORBIT_VIEWS]:
        raise BadInput(
            "view_count", "--views", f"{wrong[0]} input views asked of an orbit of {ORBIT_VIEWS}", "ask for fewer"
        )
    for name in settings.methods:
        check_method(name)
    return params.model_copy(update={"sweep": settings})


def open_dataset(folder: Place, split: str, cache_bytes: int = CACHE_BYTES) -> tuple[ShardDataset, str]:
    """The objects of one split and the hash of the catalog. Raises `BadInput` where nothing is sharded there."""
    return ShardDataset(folder, split, cache_bytes=cache_bytes), hash_file(folder / "catalog.parquet")


def report(sweep: DatasetSweep, rows: list[Row]) -> None:
    """Print the means, over all objects and over the common ones, the floor, and everything that did not go well."""
    title = f"{sweep.name}, {sweep.inputs} inputs"
    print(f"\n{title}: means over all objects, failures scored as white pictures and no surface\n{table(rows)}")
    objects, common = {row["object"] for row in rows}, common_objects(rows)
    print(f"\n{title}: over the {len(common)} of {len(objects)} objects that every method reconstructed")
    print(table([row for row in rows if row["object"] in common]) if common != objects else "the same means")
    if floor := floor_means(rows):
        text = " ".join(f"{name} {value:.5g}" for name, value in floor.items())
        print(f"\n{title}: truth against truth, the floor of every distance: {text}")
    if found := protocol.deviations(sweep.settings):
        print(f"\n{title}: {protocol.PROTOCOL} with {'; '.join(found)}")
    for row in rows:
        if row["status"] in ("failed", "out_of_memory"):
            print(f"!!! {row['method']}, {row['object']}, {row['views']} views: {row['status']}: {row['reason']}")
    for key, reason in sweep.dropped.items():
        print(f"!!! {key} was left out: {reason}")
    print(f"{len(rows)} rows in {sweep.rows_file}", flush=True)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """A block that starts no pool of threads: a process that has one cannot be forked safely."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def input_lists(rows: list[Row]) -> dict[int, list[int]]:
    """Positions of the inputs of the first object, by view count."""
    found = {
        row["views"]: row["input_views"] for row in rows if row["object"] == rows[0]["object"] and row["input_views"]
    }
    return dict(sorted(found.items()))


def sweep(arguments: Arguments, apart: bool = False) -> dict[str, list[Row]]:
    """Run what the arguments ask for; rows by data set and set of inputs, as their folders are named.

    Args:
        apart: each method in a process of its own, which is safe where this one has computed nothing in parallel yet.
    """
    listed = load_params(arguments.params)
    params = with_arguments(listed, arguments)
    # counted without initialising the device, which belongs to the processes of the methods
    chosen = arguments.device if arguments.device != "auto" else "cuda" if torch.cuda.device_count() else "cpu"
    device = torch.device(chosen)
    results = arguments.results or Path("results") / params.preset
    output = arguments.output or results / "sweep"
    protocol.check_page()
    split = params.sweep.split
    lists = {name: split_list(name, split) for name in arguments.dataset}
    home, cache_bytes = place(arguments.datasets), int(arguments.cache_gib * 2**30)
    opened = {
        name: open_dataset(home / name / params.preset, LIST_SPLIT if names else split, cache_bytes)
        for name, names in lists.items()
    }
    with one_thread():
        perceptual = load_perceptual(params.sweep.lpips, arguments.weights)
    made = {}
    for name, (data, dataset_hash) in opened.items():
        for inputs in params.sweep.inputs:
            folder = name if inputs == "orbit" else f"{name}-{inputs}"
            facts = (params, results, output / folder, perceptual, device, dataset_hash, listed.sweep, inputs)
            one = DatasetSweep(name, data, *facts, lists[name], untrained=arguments.untrained)
            made[folder] = one.run(apart)
            for count, picked in input_lists(made[folder]).items():
                print(f"{folder}: {count:2d} inputs of {one.keys[0]}: {' '.join(map(str, picked))}")
            report(one, made[folder])
    return made


def main() -> None:
    """Command line of `sweep`."""
    arguments = tyro.cli(Arguments)
    sweep(arguments, apart=arguments.processes == "own")


if __name__ == "__main__":
    sys.exit(run_command(main, Stopped))
