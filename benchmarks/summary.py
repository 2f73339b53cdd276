"""Means of result rows by method and view count: a table to read, `metrics.json` and `curve.csv` for DVC.

In: rows of one data set. Out: means over objects. Convention: `all` counts every scored row, failures with their scores;
`common` only the objects that every method reconstructed at every view count, methods that reconstruct nothing by design
apart. Rows whose true surface comes from elsewhere (mesh, depth, closed form) are never in one mean. Every mean has its 95 %
bootstrap interval over objects; the table shows half its width. Trade: precision and recall stay in the rows. Verified on
rows whose means are known.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks.bootstrap import interval
from benchmarks.rows import COST_METRICS, GEOMETRY_METRICS, PICTURE_METRICS, Row
from geolrm.metrics.geometry import THRESHOLDS

MEANS = (*PICTURE_METRICS, *(m for m in GEOMETRY_METRICS if not m.startswith(("precision", "recall"))), *COST_METRICS)
TABLE = (
    "psnr",
    "psnr_foreground",
    "ssim",
    "lpips_vgg",
    "lpips_alex",
    "mask_iou",
    "depth_error",
    "cd_sum",
    "fscore_0.2",
    "fscore_0.1",
    "fscore_0.05",
)
UNSCORED = ("not_applicable", "not_installed", "cost_only")  # statuses of rows without quality; the last one has costs
Group = tuple[str, int, str]  # method, views, where the true surface came from


def groups(rows: Iterable[Row]) -> dict[Group, list[Row]]:
    """Rows by method, in the order of their first appearance, then by view count and kind of true surface."""
    methods: dict[str, int] = {}
    found: dict[Group, list[Row]] = {}
    for row in rows:
        methods.setdefault(row["method"], len(methods))
        found.setdefault((row["method"], row["views"], row["surface"]), []).append(row)
    return {group: found[group] for group in sorted(found, key=lambda g: (methods[g[0]], g[1:]))}


def common_objects(rows: list[Row]) -> set[str]:
    """Objects with an `ok` row for every view count of every method that has any `ok` row; a row that is not there is none.

    A view count at which a method was scored on no object (it cannot take so many) is not asked of it.
    """
    able = {row["method"] for row in rows if row["status"] == "ok"}
    asked = {(row["method"], row["views"]) for row in rows if row["method"] in able and row["status"] not in UNSCORED}
    done: dict[str, set[tuple[str, int]]] = {row["object"]: set() for row in rows}
    for row in rows:
        if row["status"] == "ok":
            done[row["object"]].add((row["method"], row["views"]))
    return {key for key, found in done.items() if found >= asked}


def means(rows: list[Row]) -> dict[str, Any]:
    """`objects` scored, `ok` among them; the mean of every metric over the rows that have it (None where none has), and
    under `intervals` the bounds [low, high] of those that have one."""
    scored = [row for row in rows if row["status"] not in UNSCORED]
    measured = scored + [row for row in rows if row["status"] == "cost_only"]
    result: dict[str, Any] = {"objects": len(scored), "ok": sum(row["status"] == "ok" for row in scored)}
    intervals: dict[str, list[float]] = {}
    for name in MEANS:
        values = [row[name] for row in measured if row[name] is not None]
        result[name] = sum(values) / len(values) if values else None
        if bounds := interval(np.asarray(values)):
            intervals[name] = list(bounds)
    return result | {"intervals": intervals}


def floor_means(rows: Iterable[Row]) -> dict[str, float]:
    """What the truth scores against itself, the mean over objects; nothing where there is no true surface."""
    floors = {row["object"]: row["floor"] for row in rows if row["floor"] is not None}
    names = ("points", "cd_sum", *(f"fscore_{t:g}" for t in THRESHOLDS))
    return {name: sum(floor[name] for floor in floors.values()) / len(floors) for name in names} if floors else {}


def summarise(rows: list[Row]) -> dict[str, Any]:
    """{"all" | "common": {method: {views: means}}}; where surfaces are of several kinds, views carry the kind's name."""
    mixed = len({row["surface"] for row in rows}) > 1
    common = common_objects(rows)
    result: dict[str, Any] = {}
    for name, chosen in (("all", rows), ("common", [row for row in rows if row["object"] in common])):
        methods: dict[str, Any] = {}
        for (method, views, surface), group in groups(chosen).items():
            methods.setdefault(method, {})[f"{views} {surface}" if mixed else str(views)] = means(group)
        result[name] = methods
    return result


def metrics_json(rows: list[Row]) -> str:
    """Content of `metrics.json`, for `dvc metrics`."""
    return json.dumps(summarise(rows), indent=1) + "\n"


def curve_csv(rows: list[Row]) -> str:
    """Content of `curve.csv`, for `dvc plots`: one line per method, view count and kind of surface."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    bounds = [f"{name}_{bound}" for name in MEANS for bound in ("low", "high")]
    writer.writerow(["method", "views", "surface", "objects", "ok", *MEANS, *bounds])
    for (method, views, surface), group in groups(rows).items():
        mean = means(group)
        numbers = ["" if mean[name] is None else f"{mean[name]:.6g}" for name in MEANS]
        for name in MEANS:
            numbers += [f"{bound:.6g}" for bound in mean["intervals"].get(name, ())] or ["", ""]
        writer.writerow([method, views, surface, mean["objects"], mean["ok"], *numbers])
    return text.getvalue()


def _cell(value: float | None, width: int, digits: int) -> str:
    return ("-" if value is None else f"{value:.{digits}f}").rjust(width)


def _half(bounds: list[float] | None, digits: int) -> str:
    return ("" if bounds is None else f"±{(bounds[1] - bounds[0]) / 2:.{digits}f}").rjust(7)


def table(rows: list[Row]) -> str:
    """Means as text, one line per method, view count and kind of surface."""
    width = max([len(row["method"]) for row in rows] + [6])
    head: tuple[str, ...] = ("psnr", "psnr fg", "ssim", "lpips-v", "lpips-a", "IoU", "depth", "cd sum")
    head += ("F@0.2", "F@0.1", "F@0.05", "seconds", "MiB")
    lines = [f"{'method':{width}} views objects    ok " + " ".join(name.rjust(7) for name in head) + "  surface"]
    for (method, views, surface), group in groups(rows).items():
        mean = means(group)
        digits = [2 if name.startswith("psnr") else 4 if name == "depth_error" else 3 for name in TABLE]
        cells = [_cell(mean[name], 7, d) for name, d in zip(TABLE, digits, strict=True)]
        halves = [_half(mean["intervals"].get(name), d) for name, d in zip(TABLE, digits, strict=True)]
        memory = mean["peak_memory_bytes"]
        cells += [_cell(mean["latency_s"], 7, 3), _cell(None if memory is None else memory / 2**20, 7, 0)]
        lines.append(f"{method:{width}} {views:5d} {mean['objects']:7d} {mean['ok']:5d} {' '.join(cells)}  {surface}")
        if any(half.strip() for half in halves):
            lines.append(" " * (width + 21) + " ".join(halves).rstrip())
    return "\n".join(lines)
