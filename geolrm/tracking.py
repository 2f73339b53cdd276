"""MLflow as a view on the files that runs write.

In: a results folder of one preset (`proposal/`, `reconstruction/` with `steps.jsonl`, `system.jsonl`, `checkpoint.json`,
`pictures/`; `sweep/<name>/` with `rows.jsonl`, `system/`, `artefacts/`). Out: an MLflow store with one run per training
stage, and one experiment per protocol (its smaller sizes under a preset apart) with a parent run per method and sweep and a
child run per view count. Convention: the step of a sweep's metric is the number of input views, so that the dashboard draws
every metric against it; under `by milliseconds/` and `by MiB/` the step is the mean latency and peak memory instead, under
`system/` the number of the sample. Files are the truth: a run carries the hash of what it shows, `rebuild` keeps the runs whose
hash still holds, replaces the others and never touches runs that it did not make; a server that is down loses nothing.
Trade: a method whose rows changed is replaced as a whole, parent and children. Verified by rebuilding twice, by changing one
row, by a server that goes away, and by reading metric histories and artifacts back.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from tqdm import tqdm

from geolrm.failures import BadInput
from geolrm.files import sha256_of
from geolrm.monitor import FILE as SYSTEM

if TYPE_CHECKING:
    from mlflow import MlflowClient

Record = dict[str, Any]

STAGES = ("proposal", "reconstruction")
MADE = "geolrm.rebuilt"  # of an experiment
TAG = "geolrm.content"  # hash of what a run shows; only runs that carry this tag are ever replaced
GEOMETRY = ("cd_", "fscore_", "precision_", "recall_")  # metrics against the true surface
PICTURES = ("input", "truth", "render", "error")  # of one object and view count, in reading order
_NOT_METRICS = {
    "views",
    "test_views",
    "latency_runs",
    "seed",
}  # numbers of a row that say what was run, not how it went
COSTS = {"by milliseconds": ("latency_s", 1e3), "by MiB": ("peak_memory_bytes", 2.0**-20)}  # also steps of all metrics
REBUILD = "python -m pipelines.report --tracking-uri {uri}"
NOTE = (
    "Rebuilt from result files by `python -m pipelines.report`; do not edit runs here. In a sweep there is one run per method "
    "with a child per view count, and a metric's step is the number of input views; of a metric under 'by milliseconds' and "
    "'by MiB' it is the mean latency and peak memory. Metrics under 'system' say how busy the machine was, by time."
)
NO_CURVE = ("objects", "gaussians")
SAMPLES = 500  # of how busy the machine was, shown of one run; more are thinned out
_BATCH = 1000  # metrics that MLflow takes in one call; 100 for parameters and tags


def read_records(path: Path) -> list[Record]:
    """Read a JSONL file: one object a line, blank lines ignored, a last line that is still being written left out.

    Raises `BadInput` (`record_corrupt`) that names the file and the line (from 1) which holds no JSON object.
    """
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):  # the rest after the last newline
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
            raise _corrupt(path, number, str(error)) from error
        if not isinstance(record, dict):
            raise _corrupt(path, number, f"expected an object, got {type(record).__name__}")
        records.append(record)
    return records


def _corrupt(path: Path, number: int, detail: str) -> BadInput:
    remedy = "delete this line, and run the stage again: it writes what is missing"
    return BadInput("record_corrupt", f"{path}:{number}", f"no JSON record on this line ({detail})", remedy)


def numbers(record: Record) -> dict[str, float]:
    """The metrics of a result row or step: its finite and infinite numbers, without null and without identifiers; the
    stages of a row by name (`stages/rendering`)."""
    stages = {f"stages/{name}": seconds for name, seconds in record.get("stages", {}).items()}
    return {
        name: float(value)
        for name, value in (record | stages).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in _NOT_METRICS
    }


def flatten(mapping: Record, prefix: str = "") -> dict[str, Any]:
    """Nested sections to dotted names: {"a": {"b": 1}} gives {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in mapping.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


@dataclass(frozen=True)
class PlannedRun:
    """What one MLflow run shall show.

    Attributes:
        metrics: (name, value, step, seconds before `ended`).
        files: (file, folder among the run's artifacts).
        images: (key, step, pictures glued side by side).
        rows: the table of objects.
        system: how busy the machine was, sample by sample, at the `time` of each.
        ended: time of the files, seconds since the epoch; no part of the content. Nor is `seconds`, how long it took where
            no metric says when it began.
    """

    name: str
    ended: float
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    metrics: tuple[tuple[str, float, int, float], ...] = ()
    files: tuple[tuple[Path, str], ...] = ()
    images: tuple[tuple[str, int, tuple[Path, ...]], ...] = ()
    rows: tuple[Record, ...] = ()
    system: tuple[Record, ...] = ()
    children: tuple[PlannedRun, ...] = ()
    seconds: float = 0.0

    def content(self) -> str:
        """Hash of all that the run and its children show, files by their bytes."""
        files = [(sha256_of(file), file.name, folder) for file, folder in self.files]
        images = [(key, step, [sha256_of(file) for file in strip]) for key, step, strip in self.images]
        children = [child.content() for child in self.children]
        parts = (self.name, self.tags, self.params, self.metrics, files, images, self.rows, self.system, children)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def plan_training(folder: Path, preset: str) -> PlannedRun:
    """The run of one training stage, from `folder` (`results/<preset>/<stage>`)."""
    steps_file, checkpoint_file = folder / "steps.jsonl", folder / "checkpoint.json"
    steps = read_records(steps_file)
    checkpoint = json.loads(checkpoint_file.read_text()) if checkpoint_file.exists() else {}
    config = checkpoint.get("config", {})
    facts = {
        name: value for name, value in checkpoint.items() if name not in ("config", "params", "passport", "sha256")
    }
    found = _tags(facts | flatten(checkpoint.get("passport", {})))
    tags = found | {"preset": preset, "stage": folder.name, "machine": _machine(found)}
    if "sha256" in checkpoint:
        tags["checkpoint_hash"] = checkpoint["sha256"]
    seconds_left = sum(step.get("step_s", 0.0) for step in steps)
    metrics = []
    for record in steps:
        seconds_left -= record.get("step_s", 0.0)
        values = {name: value for name, value in numbers(record).items() if name != "step"}
        metrics += [(name, value, int(record["step"]), seconds_left) for name, value in values.items()]
    pictures = sorted((folder / "pictures").glob("step-*.png"))
    return PlannedRun(
        name=f"{preset} {folder.name}",
        ended=steps_file.stat().st_mtime,
        tags=tags,
        params={name: str(value) for name, value in flatten(config).items()},
        metrics=tuple(metrics),
        images=tuple(("pictures", int(picture.stem.removeprefix("step-")), (picture,)) for picture in pictures),
        system=_samples(folder / SYSTEM),
    )


def _samples(file: Path) -> tuple[Record, ...]:
    """What `geolrm.monitor` wrote, thinned to some `SAMPLES` lines; none where there is no file."""
    found = read_records(file) if file.exists() else []
    return tuple(found[:: max(1, -(-len(found) // SAMPLES))])


def _tags(record: Record) -> dict[str, str]:
    """The plain values of a passport or checkpoint record; nested ones (the configuration) are parameters."""
    return {name: str(value) for name, value in record.items() if isinstance(value, str | int | float | bool)}


def experiment_of(row: Record, preset: str) -> str:
    """The experiment that a row belongs to: its protocol, or that protocol at the smaller sizes of a preset."""
    passport = row.get("passport", {})
    name = str(passport.get("protocol") or "no protocol")
    return f"{name}/{preset}" if passport.get("deviations") else name


def _machine(tags: dict[str, str]) -> str:
    return ", ".join(dict.fromkeys(tags[name] for name in ("device", "processor") if name in tags))


def plan_sweep(folder: Path, preset: str) -> dict[str, list[PlannedRun]]:
    """One parent run per method with its children, by experiment, from `folder` (`results/<preset>/sweep/<name>`)."""
    apart: dict[tuple[str, str], list[Record]] = {}
    for row in read_records(folder / "rows.jsonl"):
        apart.setdefault((experiment_of(row, preset), row["method"]), []).append(row)
    began = (folder / "rows.jsonl").stat().st_mtime - sum(map(_seconds, apart.values()))
    planned: dict[str, list[PlannedRun]] = {}
    for i, ((experiment, _), rows) in enumerate(apart.items()):
        # begun a second apart: the dashboard lists the newest run first, so methods keep the order of the sweep
        planned.setdefault(experiment, []).append(_plan_method(folder, preset, rows, began - i))
    return planned


def _seconds(rows: list[Record]) -> float:
    """How long rows took: the runs of the method that were timed, and scoring."""
    return sum((row.get("latency_s") or 0.0) * row.get("latency_runs", 0) + row.get("harness_s", 0.0) for row in rows)


def _distinct(rows: Iterable[Record], name: str) -> list[Any]:
    return list(dict.fromkeys(row[name] for row in rows))


def _plan_method(folder: Path, preset: str, rows: list[Record], began: float) -> PlannedRun:
    method = rows[0]["method"]
    found = _passport_tags(rows)
    tags = found | {"preset": preset, "stage": "sweep", "method": method, "machine": _machine(found)}
    tags |= {"sweep": folder.name, "dataset": " | ".join(map(str, _distinct(rows, "dataset")))}
    children, images = [], []
    metrics: list[tuple[str, float, int, float]] = []
    for views in sorted(_distinct(rows, "views")):
        of_count = [row for row in rows if row["views"] == views]
        values = mean_metrics(of_count)
        means = tuple((name, value, views, 0.0) for name, value in values.items())
        metrics += [*means, *_by_cost(values)]
        files = []
        for row in of_count:
            name = row["object"].replace("/", "_")  # as the sweep names its folders
            artefacts = folder / "artefacts" / method / name / str(views)
            files += [(file, name) for file in sorted(artefacts.glob("*")) if file.is_file()]
            strip = tuple(p for kind in PICTURES if (p := artefacts / f"{kind}.png").exists())
            images += [(_key(name), views, strip)] if strip else []
        children.append(
            PlannedRun(
                name=f"{method} on {folder.name}, {views} views",
                ended=began + _seconds(of_count),
                seconds=_seconds(of_count),
                tags=tags | {"views": str(views)},
                params={"method": method, "views": str(views), "input_views": str(of_count[0].get("input_views"))},
                metrics=means,
                files=tuple(files),
                rows=tuple(of_count),
            )
        )
    return PlannedRun(
        name=f"{method} on {folder.name}",
        ended=began + _seconds(rows),
        seconds=_seconds(rows),
        tags=tags,
        params={"method": method, "views": ", ".join(child.params["views"] for child in children)},
        metrics=tuple(metrics),
        images=tuple(images),
        rows=tuple(rows),
        system=_samples(folder / "system" / f"{method}.jsonl"),
        children=tuple(children),
    )


def _by_cost(means: dict[str, float]) -> list[tuple[str, float, int, float]]:
    """The means of one view count as points of curves against what they cost."""
    points = []
    for group, (cost, scale) in COSTS.items():
        if cost in means:
            step = round(means[cost] * scale)
            points += [(f"{group}/{name}", value, step, 0.0) for name, value in means.items() if name not in NO_CURVE]
    return points


def _key(name: str) -> str:
    """A name with nothing in it that MLflow refuses in an image's key."""
    return re.sub(r"[^\w\-. /]", "_", name)


def _passport_tags(rows: list[Record]) -> dict[str, str]:
    """Every plain field of the rows' passports; values that differ between rows are joined, never one of them picked."""
    tags: dict[str, list[str]] = {}
    for row in rows:
        for name, value in _tags(flatten(row.get("passport", {}))).items():
            if value not in tags.setdefault(name, []):
                tags[name].append(value)
    return {name: " | ".join(values) for name, values in tags.items()}


def mean_metrics(rows: list[Record]) -> dict[str, float]:
    """Means over objects of every metric that has a value, the number of objects, and how many of each status.

    Where the true surface comes from a mesh for some objects and from depth for others, geometry is averaged apart and
    the name says which (`cd_sum/mesh`).
    """
    surfaces = {row.get("surface") for row in rows}
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in numbers(row).items():
            apart = len(surfaces) > 1 and name.startswith(GEOMETRY)
            values.setdefault(f"{name}/{row.get('surface')}" if apart else name, []).append(value)
    means = {name: statistics.fmean(found) for name, found in sorted(values.items())}
    statuses = Counter(str(row["status"]) for row in rows)
    counts = {f"objects/{status}": float(count) for status, count in sorted(statuses.items())}
    return means | {"objects": float(len(rows))} | counts


def plan(results: Path) -> dict[str, list[PlannedRun]]:
    """All runs that `results` (`results/<preset>`) asks for, by experiment."""
    preset = results.name
    stages = [results / stage for stage in STAGES if (results / stage / "steps.jsonl").exists()]
    experiments = {f"{preset}/training": [plan_training(folder, preset) for folder in stages]} if stages else {}
    for rows in sorted(results.glob("sweep/*/rows.jsonl")):
        for name, runs in plan_sweep(rows.parent, preset).items():
            experiments.setdefault(name, []).extend(runs)
    return experiments


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild did, in runs (parents and training stages; children go with their parent)."""

    kept: int
    written: int
    removed: int


def rebuild(results: Path, tracking_uri: str = "sqlite:///mlflow.db") -> Rebuilt:
    """Make an MLflow store show the results of one preset. Idempotent.

    Args:
        results: `results/<preset>`.
        tracking_uri: any MLflow store. With SQLite the artifacts lie beside the database in `mlartifacts/`; a server
            decides for itself.

    Raises `BadInput` for a corrupt record, for results with nothing to show, and for a server that is down or goes down:
    rows are in files, and the message has the command that shows them once it is back.
    """
    experiments = plan(results)
    if not experiments:
        raise BadInput("no_results", results, "no steps.jsonl and no rows.jsonl", "run `dvc repro` first")
    _be_quiet()
    from mlflow.exceptions import MlflowException, RestException

    try:
        _require_server(tracking_uri)
        return _rebuild(experiments, results.name, tracking_uri)
    except RestException:  # the server answered, and refused: no failure of the way to it
        raise
    except (MlflowException, OSError) as error:  # what requests raises is an OSError
        if not tracking_uri.startswith("http"):
            raise
        told = str(error).partition("\n")[0][:200]
        detail = f"talking to the MLflow server failed ({told}); nothing is lost: {results} holds it all"
        remedy = f"start the server, then: {REBUILD.format(uri=tracking_uri)}"
        raise BadInput("tracking_server_down", tracking_uri, detail, remedy) from error


def _require_server(tracking_uri: str) -> None:
    """Ask a server for a sign of life, once and briefly: MLflow's own client would try for minutes."""
    from urllib.error import HTTPError
    from urllib.request import urlopen

    if tracking_uri.startswith(("http://", "https://")):
        try:
            urlopen(f"{tracking_uri.rstrip('/')}/health", timeout=10).close()
        except HTTPError:
            return  # something answers, and MLflow will say what it thinks of us


def _rebuild(experiments: dict[str, list[PlannedRun]], preset: str, tracking_uri: str) -> Rebuilt:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri)
    kept = written = removed = 0
    stale: dict[str, list[PlannedRun]] = {e.name: [] for e in _experiments_of(client)}
    with tqdm(total=sum(map(len, experiments.values())), desc="mlflow", unit="run") as progress:
        for name, runs in (stale | experiments).items():
            experiment = _experiment(client, name, tracking_uri)
            present = _present(client, experiment, preset)
            wanted = {run.content(): run for run in runs}
            for content, run_ids in present.items():
                surplus = run_ids[1:] if content in wanted else run_ids
                for run_id in surplus:
                    _remove(client, experiment, run_id)
                removed += len(surplus)
            for content, run in wanted.items():
                if content in present:
                    kept += 1
                else:
                    _write(client, experiment, run, content)
                    written += 1
                progress.update()
    return Rebuilt(kept, written, removed)


def _be_quiet() -> None:
    """Have MLflow report to nobody; it reads these variables when it is first imported."""
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # a server that went away is said, not waited for


def _experiments_of(client: MlflowClient) -> Iterator[Any]:
    """The experiments that a rebuild made, of any preset."""
    yield from client.search_experiments(filter_string=f"tags.`{MADE}` = 'yes'")


def _experiment(client: MlflowClient, name: str, tracking_uri: str) -> str:
    """The id of the experiment `name`, made or taken back from the trash where needed."""
    found = client.get_experiment_by_name(name)
    if found is None:
        location = None
        if tracking_uri.startswith("sqlite:///"):
            database = Path(tracking_uri.removeprefix("sqlite:///"))
            location = (database.resolve().parent / "mlartifacts" / name).as_uri()
        tags = {
            MADE: "yes",
            "mlflow.note.content": NOTE,
            "mlflow.experimentKind": "custom_model_development",
        }
        return str(client.create_experiment(name, artifact_location=location, tags=tags))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _present(client: MlflowClient, experiment: str, preset: str) -> dict[str, list[str]]:
    """Ids of the parent runs of a preset that an earlier rebuild made, by content; empty for a run that was cut short."""
    present: dict[str, list[str]] = {}
    for run in _search(client, experiment, f"tags.`{TAG}` != 'none' and tags.preset = '{preset}'"):
        if "mlflow.parentRunId" not in run.data.tags:
            present.setdefault(run.data.tags[TAG], []).append(run.info.run_id)
    return present


def _search(client: MlflowClient, experiment: str, query: str) -> Iterator[Any]:
    token: str | None = None
    while True:
        page = client.search_runs([experiment], query, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _remove(client: MlflowClient, experiment: str, run_id: str) -> None:
    """Delete a run, its children, and what of their artifacts lies on this machine."""
    children = _search(client, experiment, f"tags.`mlflow.parentRunId` = '{run_id}'")
    for run in [*children, client.get_run(run_id)]:
        client.delete_run(run.info.run_id)
        place = urlparse(run.info.artifact_uri)
        if place.scheme in ("", "file"):
            shutil.rmtree(unquote(place.path), ignore_errors=True)


def _write(client: MlflowClient, experiment: str, run: PlannedRun, content: str, parent: str | None = None) -> None:
    """Write a run, then its children; its content tag comes last, so that a run cut short is replaced next time."""
    from mlflow.entities import Metric, Param

    ended = int(run.ended * 1000)
    tags = run.tags | {TAG: ""} | ({"mlflow.parentRunId": parent} if parent else {})
    started = ended - int(max((before for *_, before in run.metrics), default=0.0) * 1000 or run.seconds * 1000)
    # with its tags from the first moment: a run without them would be nobody's, and stay, if we are killed now
    own = {name: value[:8000] for name, value in tags.items()}
    run_id = client.create_run(experiment, start_time=started, tags=own, run_name=run.name).info.run_id
    for batch in _batches([Param(name, value[:6000]) for name, value in run.params.items()], 100):
        client.log_batch(run_id, params=batch)
    metrics = [Metric(name, value, ended - int(before * 1000), step) for name, value, step, before in run.metrics]
    for step, sample in enumerate(run.system):
        stamp = int(sample["time"] * 1000)
        metrics += [Metric(f"system/{name}", x, stamp, step) for name, x in sample.items() if name != "time"]
    for batch in _batches(metrics, _BATCH):
        client.log_batch(run_id, metrics=batch)
    for file, folder in run.files:
        client.log_artifact(run_id, str(file), folder)
    for key, step, strip in run.images:
        client.log_image(run_id, _glued(strip), key=key, step=step, timestamp=ended)
    if run.rows:
        client.log_dict(run_id, _table(run.rows), "objects.json")
        client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([{"path": "objects.json", "type": "table"}]))
    for child in run.children:
        _write(client, experiment, child, child.content(), parent=run_id)
    client.set_terminated(run_id, "FINISHED", end_time=ended)
    client.set_tag(run_id, TAG, content)


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _table(rows: Iterable[Record]) -> dict[str, list[Any]]:
    """The table of objects in the form of MLflow's `log_table`: what is read most comes first, the
    passport is left to the tags."""
    first = ("object", "views", "status", "psnr", "psnr_foreground", "ssim", "cd_sum", "fscore_0.1", "latency_s")
    plain = [
        {name: value for name, value in row.items() if value is None or isinstance(value, str | int | float)}
        for row in rows
    ]
    found = list(dict.fromkeys(name for row in plain for name in row))
    names = [name for name in first if name in found] + [name for name in found if name not in first]
    return {"columns": names, "data": [[row.get(name) for name in names] for row in plain]}


def _glued(strip: tuple[Path, ...]) -> Any:
    """Pictures side by side on white, each at its own size."""
    from PIL import Image

    pictures = []
    for path in strip:
        with Image.open(path) as picture:
            pictures.append(picture.convert("RGB"))
    glued = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)), "white")
    left = 0
    for part in pictures:
        glued.paste(part, (left, 0))
        left += part.width
    return glued
