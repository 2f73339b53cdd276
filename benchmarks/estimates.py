"""Result rows and training steps, aggregated: what the report, the README table and `docs/results/*.json` are made from.

In: a results folder of one preset (`<stage>/steps.jsonl`, `sweep/<name>/rows.jsonl`). Out: one JSON-able summary: per sweep
and group of objects the mean of every metric by method and view count with its 95 % interval, paired differences to the main
method, status counts, gaps with their reasons, the passport. Convention: a group is one data set with one kind of true
surface; objects are what intervals resample (percentile bootstrap, the same draws for every method, so that differences are
paired). Trade: below three objects no interval is given. Verified against closed forms and by planting failures and gaps.
"""

from __future__ import annotations

import platform
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import GEOMETRY_METRICS
from benchmarks.summary import common_objects
from geolrm.failures import BadInput
from geolrm.tracking import STAGES, Record, flatten, numbers, read_records

FORMAT = "geolrm-summary-1"  # of the summary file
MAIN = "geolrm"
HEADLINE = "psnr_foreground"
DRAWS = 2000  # bootstrap resamples
FEWEST = 3  # objects that an interval needs


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


METRICS = {
    "psnr": Metric("PSNR", 2, True, "dB"),
    "psnr_foreground": Metric("Foreground PSNR", 2, True, "dB"),
    "ssim": Metric("SSIM", 3, True),
    "lpips_alex": Metric("LPIPS AlexNet", 3, False),
    "lpips_vgg": Metric("LPIPS VGG", 3, False),
    "cd_sum": Metric("Chamfer, sum", 3, False),
    "cd_mean": Metric("Chamfer, mean", 3, False),
    "fscore_0.2": Metric("F-score @ 0.2", 3, True),
    "fscore_0.1": Metric("F-score @ 0.1", 3, True),
    "fscore_0.05": Metric("F-score @ 0.05", 3, True),
    "latency_s": Metric("Latency", 3, False, "s"),
    "peak_memory_bytes": Metric("Peak memory", 0, False, "MiB", 2.0**-20),
}


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """95 % bootstrap interval of the mean of `values` (n,), None below three; the draws depend on n and seed only."""
    if len(values) < FEWEST or not np.isfinite(values).all():
        return None
    draws = np.random.default_rng(seed).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def estimate(values: list[float]) -> Record:
    """Mean with interval: {"mean", "low", "high", "n"}; low and high are null where there is no interval."""
    low, high = interval(np.asarray(values, dtype=np.float64)) or (None, None)
    return {"mean": float(np.mean(values)), "low": low, "high": high, "n": len(values)}


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
            metrics[name] = estimate(list(values.values())) | {
                "mean_common": float(np.mean(shared)) if shared else None
            }
    return {"status": dict(Counter(str(row["status"]) for row in rows)), "metrics": metrics}


def _differences(rows: list[Record], main: str) -> Record:
    """Main method minus each other one in the headline metric, paired by object: method -> view count -> estimate."""
    table = {(r["method"], r["views"], r["object"]): numbers(r)[HEADLINE] for r in rows if HEADLINE in numbers(r)}
    paired: dict[str, dict[str, list[float]]] = {}
    for (method, views, key), value in table.items():
        if method != main and (main, views, key) in table:
            paired.setdefault(method, {}).setdefault(str(views), []).append(table[main, views, key] - value)
    return {method: {v: estimate(values) for v, values in by_views.items()} for method, by_views in paired.items()}


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
            if row.get(name) is None and row["status"] in ("ok", "empty"):
                gaps.setdefault(name, Counter())[gap_reason(row, name)] += 1
    return {name: dict(reasons) for name, reasons in gaps.items()}


def gap_reason(row: Record, metric: str) -> str:
    """Why `metric` is null in `row`: the part of its reason that names the metric or its kind, else the whole reason."""
    about = (metric, "geometry") if metric in GEOMETRY_METRICS else (metric,)
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
