"""How long a sweep takes, and what of it is the harness's own: all but the method.

In: a sharded data set with test views, methods that run here. Out: a JSON file with passport: seconds of one sweep from start to
end, in a process of its own; `harness_s` of its rows (`benchmarks/rows.py`: reading the truth, rendering, metrics, LPIPS and
geometry included), apart for the first row of each method, which compiles; seconds that `--of` objects would take at that
rate. Convention: nothing is kept of the objects (artefacts 0). Trade: imports, loading and compiling are paid once in any
sweep, and counted for every share of the objects here, so that the estimate errs to the long side. Verified by rows of known
seconds and by one small sweep.

    python -m benchmarks.speed.sweep --dataset gso --split gso-100 --params presets/paper.yaml
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tyro

from benchmarks.protocol import VIEW_COUNTS
from benchmarks.rows import Row, read_rows
from geolrm.failures import BadInput, run_command
from geolrm.files import write_whole


@dataclass(frozen=True)
class Options:
    """Time a sweep of some objects, and say what a whole one would take."""

    out: Path = Path("docs/results/sweep-speed.json")
    """Where the result goes."""
    params: Path = Path("params.yaml")
    """Params file: sizes, and the preset whose data and checkpoints are used."""
    dataset: tuple[str, ...] = ("procedural",)
    """Data sets that are sharded."""
    split: str = "test"
    """Of the catalog, or one of the benchmark's lists."""
    methods: tuple[str, ...] = ("geolrm",)
    """Methods, one after another."""
    views: tuple[int, ...] = VIEW_COUNTS
    """Numbers of input views."""
    objects: int = 10
    """How many are measured, of each data set."""
    of: int = 100
    """For how many the time is estimated."""
    device: str = "auto"
    """Where to compute; auto takes a GPU if there is one."""


def seconds_of(rows: list[Row]) -> dict[str, float]:
    """Mean, median, 90th percentile and largest of the harness's seconds of rows."""
    found = [row["harness_s"] for row in rows]
    p90 = float(np.percentile(found, 90))
    return {"mean": statistics.fmean(found), "median": statistics.median(found), "p90": p90, "max": max(found)}


def summarise(rows: list[Row], wall_s: float, of: int) -> dict[str, Any]:
    """What the rows of a sweep that took `wall_s` say, and the seconds of a sweep of `of` objects.

    Raises `BadInput` (`rows_not_scored`) where a row was not scored: its seconds say nothing.
    """
    wrong = next((row for row in rows if row["status"] not in ("ok", "empty")), None)
    if wrong or not rows:
        detail = f"{wrong['method']} on {wrong['object']}: {wrong['status']}: {wrong['reason']}" if wrong else "no rows"
        raise BadInput("rows_not_scored", "the sweep", detail, "time methods that run here, on inputs that they take")
    objects = len({(row["dataset"], row["object"]) for row in rows})
    first = {(row["dataset"], row["method"]): row for row in reversed(rows)}  # each in a process of its own
    later = [row for row in rows if row is not first[row["dataset"], row["method"]]]
    return {
        "objects": objects,
        "rows": len(rows),
        "wall_s": wall_s,
        "harness_s": seconds_of(rows),
        "harness_s_first_rows": [row["harness_s"] for row in first.values()],
        "harness_s_later_rows": seconds_of(later) if later else None,
        "harness_share": sum(row["harness_s"] for row in rows) / wall_s,
        "estimate": {"objects": of, "rows": len(rows) * of // objects, "wall_s": wall_s * of / objects},
        "passport": rows[0]["passport"],
    }


def main() -> None:
    """Sweep, summarise, write."""
    options = tyro.cli(Options)
    with TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "benchmarks.sweep_views", "--params", str(options.params)),
            *("--dataset", *options.dataset, "--split", options.split, "--methods", *options.methods),
            *("--views", *map(str, options.views), "--inputs", "orbit", "--objects", str(options.objects)),
            *("--artefacts", "0", "--device", options.device, "--output", folder),
        ]
        begun = time.perf_counter()
        subprocess.run(command, check=True)
        wall_s = time.perf_counter() - begun
        rows = [row for name in options.dataset for row in read_rows(Path(folder) / name / "rows.jsonl")]
    found = summarise(rows, wall_s, options.of)
    write_whole(options.out, json.dumps({"command": command[1:], **found}, indent=1) + "\n")
    later, whole = found["harness_s_later_rows"] or found["harness_s"], found["estimate"]
    print(f"{len(rows)} rows in {wall_s:.1f} s; harness {later['mean']:.3f} s a row, at most {later['max']:.3f}")
    print(f"{whole['objects']} objects, {whole['rows']} rows: at most {whole['wall_s'] / 60:.1f} min")


if __name__ == "__main__":
    sys.exit(run_command(main, subprocess.CalledProcessError))
