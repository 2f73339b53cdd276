"""Result rows and training steps, aggregated: what the report, the README table and `docs/results/*.json` are made from.

In: a results folder of one preset (`<stage>/steps.jsonl`, `sweep/<name>/rows.jsonl`). Out: one JSON-able summary: per sweep
and group of objects the mean of every metric by method and view count with its 95 % interval, over all objects and over those
that every method reconstructed, paired differences of the main method to the others in every metric, status counts, gaps with
their reasons, the passport. Convention: a group is one data set with one kind of true surface; objects are what intervals
resample (`benchmarks.bootstrap`). Trade: below three objects no interval is given. Verified against closed forms and by
planting failures and gaps.
"""

from __future__ import annotations

import platform
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bootstrap import estimate, paired
from benchmarks.rows import FULL_METRICS, GEOMETRY_METRICS
from benchmarks.summary import common_objects, floor_means
from geolrm.failures import BadInput
from geolrm.metrics.geometry import THRESHOLDS
from geolrm.tracking import STAGES, Record, flatten, numbers, read_records

FORMAT = "geolrm-summary-2"  # of the summary file
READABLE = ("geolrm-summary-1", FORMAT)  # whose means and passports lie at the same places
MAIN = "geolrm"
HEADLINE = "psnr_foreground"


@dataclass(frozen=True)
class Metric:
    """How a metric of the result rows is shown."""

    title: str
    digits: int
    higher_is_better: bool
    unit: str = ""
    scale: float = 1.0  # from the row's unit to the shown one

    def text(self, value: float | None) -> str:
        return "–" if value is None else f"{value * self.scale:.{self.digits}f}"

    @property
    def label(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title


OPTIONAL = (*FULL_METRICS, "peak_reserved_bytes", "harness_s")  # no gap where no row has one
SURFACES = {"": "", "_100k": ", 100k points", "_visible": ", visible surface"}
METRICS = {
    "psnr": Metric("PSNR", 2, True, "dB"),
    "psnr_pooled": Metric("PSNR, pooled", 2, True, "dB"),
    "psnr_foreground": Metric("Foreground PSNR", 2, True, "dB"),
    "ssim": Metric("SSIM", 3, True),
    "lpips_vgg": Metric("LPIPS VGG", 3, False),
    "lpips_alex": Metric("LPIPS AlexNet", 3, False),
    "mask_iou": Metric("Mask IoU", 3, True),
    "depth_error": Metric("Depth error", 4, False),
    **{f"cd_sum{end}": Metric(f"Chamfer, sum{of}", 3, False) for end, of in SURFACES.items()},
    **{f"cd_mean{end}": Metric(f"Chamfer, mean{of}", 3, False) for end, of in SURFACES.items()},
    **{
        f"fscore_{t:g}{end}": Metric(f"F-score @ {t:g}{of}", 3, True)
        for end, of in SURFACES.items()
        for t in THRESHOLDS
    },
    "latency_s": Metric("Latency", 3, False, "s"),
    "latency_p90_s": Metric("Latency, 90th percentile", 3, False, "s"),
    "peak_memory_bytes": Metric("Peak memory", 0, False, "MiB", 2.0**-20),
    "peak_reserved_bytes": Metric("Peak memory, reserved", 0, False, "MiB", 2.0**-20),
    "harness_s": Metric("Scoring, not the method's", 2, False, "s"),
}


def main_method(rows: list[Record]) -> str:
    """The method that the report is about: `geolrm` where it was swept, else the first one."""
    methods = [str(row["method"]) for row in rows]
    return MAIN if MAIN in methods else methods[0]


def groups(rows: list[Record]) -> dict[str, list[Record]]:
    """Rows by data set, and by kind of true surface where a data set has two.

    Where there are several data sets with one kind of surface, all objects together come first.
    """
    kinds: dict[str, set[Any]] = {}
    for row in rows:
        kinds.setdefault(str(row["dataset"]), set()).add(row.get("surface"))
    apart: dict[str, list[Record]] = {}
    for row in rows:
        dataset = str(row["dataset"])
        name = dataset if len(kinds[dataset]) == 1 else f"{dataset}, surface from {row.get('surface')}"
        apart.setdefault(name, []).append(row)
    one_kind = len(set().union(*kinds.values())) == 1
    return ({"all objects": rows} if len(apart) > 1 and one_kind else {}) | dict(sorted(apart.items()))


def summarise_group(rows: list[Record], main: str) -> Record:
    """Means, differences, status and gaps of one group of objects."""
    common = common_objects(rows)
    cells: dict[str, dict[str, list[Record]]] = {}
    for row in sorted(rows, key=lambda row: int(row["views"])):
        cells.setdefault(str(row["method"]), {}).setdefault(str(row["views"]), []).append(row)
    order = dict.fromkeys(str(row["method"]) for row in rows)
    return {
        "objects": sorted({str(row["object"]) for row in rows}),
        "common_objects": sorted(common),
        "views": sorted({int(row["views"]) for row in rows}),
        "surface": sorted({str(row.get("surface")) for row in rows}),
        "methods": {m: {v: _summarise_cell(cell, common) for v, cell in cells[m].items()} for m in order},
        "differences": _differences(rows, main),
        "floor": floor_means(rows),
        "status": dict(Counter(str(row["status"]) for row in rows)),
        "empty_by_design": _empty_by_design(rows),
        "failures": _failures(rows),
        "gaps": _gaps(rows),
    }


def _summarise_cell(rows: list[Record], common: set[str]) -> Record:
    metrics: Record = {}
    for name in METRICS:
        values = {str(row["object"]): numbers(row)[name] for row in rows if name in numbers(row)}
        if values:
            shared = [value for key, value in values.items() if key in common]
            common_mean = estimate(shared) if shared else None
            metrics[name] = estimate(list(values.values())) | {"common": common_mean}
    stages: dict[str, list[float]] = {}
    for row in rows:
        for name, seconds in row.get("stages", {}).items():
            stages.setdefault(name, []).append(seconds)
    return {
        "status": dict(Counter(str(row["status"]) for row in rows)),
        "metrics": metrics,
        "stages": {name: float(np.mean(seconds)) for name, seconds in stages.items()},
    }


def _differences(rows: list[Record], main: str) -> Record:
    """Main method minus each other one, paired by object: method -> view count -> metric -> estimate."""
    table: dict[tuple[str, int, str], dict[str, float]] = {}
    for row in rows:
        for name, value in numbers(row).items():
            table.setdefault((row["method"], row["views"], name), {})[str(row["object"])] = value
    result: Record = {}
    for method, views, name in table:
        ours = table.get((main, views, name))
        found = paired(ours, table[method, views, name]) if method != main and name in METRICS and ours else None
        if found is not None:
            result.setdefault(method, {}).setdefault(str(views), {})[name] = found
    return result


def _empty_by_design(rows: list[Record]) -> list[str]:
    """Methods that returned no Gaussian in any row (all-white pictures do so on purpose)."""
    return [
        m
        for m in dict.fromkeys(r["method"] for r in rows)
        if {r["status"] for r in rows if r["method"] == m} == {"empty"}
    ]


def _failures(rows: list[Record]) -> list[Record]:
    """Every row that did not end `ok`, with its reason; methods that are empty throughout are listed apart."""
    names, empty = ("method", "object", "views", "status", "reason"), _empty_by_design(rows)
    return [{n: row[n] for n in names} for row in rows if row["status"] != "ok" and row["method"] not in empty]


def _gaps(rows: list[Record]) -> Record:
    """Metrics without a value in rows that were scored: metric -> reason -> rows."""
    gaps: dict[str, Counter[str]] = {}
    for row in rows:
        for name in METRICS:
            not_asked = name in OPTIONAL and all(other.get(name) is None for other in rows)
            if row.get(name) is None and row["status"] in ("ok", "empty") and not not_asked:
                gaps.setdefault(name, Counter())[gap_reason(row, name)] += 1
    return {name: dict(reasons) for name, reasons in gaps.items()}


def gap_reason(row: Record, metric: str) -> str:
    """Why `metric` is null in `row`: the part of its reason that names the metric or its kind, else the whole reason."""
    own = tuple(end for end in ("100k", "visible") if metric.endswith(f"_{end}"))
    about = (metric, *own, "geometry") if metric in GEOMETRY_METRICS else (metric,)
    parts = [part for part in str(row["reason"]).split("; ") if part.startswith(about)]
    return parts[0].partition(": ")[2] if parts else str(row["reason"]) or "no reason recorded"


def passport(rows: list[Record]) -> Record:
    """Fields of the rows' passports with the distinct values of each: more than one value means a mixed sweep."""
    values: Record = {}
    for row in rows:
        for name, value in flatten(row.get("passport", {})).items():
            known = values.setdefault(name, [])
            if value not in known:
                known.append(value)
    return values


def summarise_training(steps: list[Record]) -> Record:
    """One training stage: length, cost, how far the validation loss fell (means over the first and last tenth of the steps)."""
    trained = [step for step in steps if "loss" in step]
    validated = [step for step in steps if "validation/loss" in step]
    seconds = sum(step.get("step_s", 0.0) for step in trained)
    waited = sum(step.get("data_wait_s", 0.0) for step in trained)
    summary: Record = {
        "steps": max((int(step["step"]) for step in steps), default=0),
        "seconds": round(seconds, 1),
        "data_wait_share": waited / seconds if seconds else None,
        "peak_memory_bytes": max((step.get("memory_bytes", 0) for step in trained), default=0),
    }
    if validated:
        losses = {int(step["step"]): float(step["validation/loss"]) for step in validated}
        early, late = 0.1 * summary["steps"], 0.9 * summary["steps"]  # step 0, the untrained network, is early
        summary["validation_loss_first_tenth"] = float(np.mean([v for s, v in losses.items() if s <= early]))
        summary["validation_loss_last_tenth"] = float(np.mean([v for s, v in losses.items() if s >= late]))
        summary["validation"] = {n: v for n, v in numbers(validated[-1]).items() if n.startswith("validation/")}
    return summary


def machine() -> Record:
    """The machine that this runs on, without its name."""
    import psutil

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
    return {
        "processor": model or platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def summarise(results: Path, only: list[str] | None = None) -> Record:
    """The summary of `results` (`results/<preset>`); `only` names the sweeps to read, all of them by default.

    Raises `BadInput`: a corrupt record, a sweep without rows, or nothing to summarise.
    """
    sweeps: Record = {}
    for file in sorted(results.glob("sweep/*/rows.jsonl")):
        if only is None or file.parent.name in only:
            sweeps[file.parent.name] = _summarise_sweep(read_records(file), file)
    missing = sorted(set(only or ()) - set(sweeps))
    if missing or not sweeps:
        where = results / "sweep" / (missing[0] if missing else "*") / "rows.jsonl"
        raise BadInput("no_results", where, "no such file", "run `python benchmarks/sweep_views.py`, or `dvc repro`")
    stages = [stage for stage in STAGES if (results / stage / "steps.jsonl").exists()]
    training = {stage: summarise_training(read_records(results / stage / "steps.jsonl")) for stage in stages}
    return {"format": FORMAT, "preset": results.name, "machine": machine(), "training": training, "sweeps": sweeps}


def _summarise_sweep(rows: list[Record], file: Path) -> Record:
    if not rows:
        raise BadInput("no_results", file, "no rows", "run the sweep again")
    main = main_method(rows)
    by_group = {name: summarise_group(found, main) for name, found in groups(rows).items()}
    inputs = {str(row["views"]): row.get("input_views") for row in sorted(rows, key=lambda row: int(row["views"]))}
    return {"main_method": main, "input_views": inputs, "passport": passport(rows), "groups": by_group}
