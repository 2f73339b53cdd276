"""Result rows: one JSON line per method, object and view count, and the passport that each carries.

In: what a sweep measured. Out: `rows.jsonl`, appended and synced line by line, so that an interrupted sweep loses at most the
row in the making; several processes may write to one file. Convention: every row has every field of `FIELDS`; a value that
could not be measured is null, with the reason in `reason`; `status` decides what was scored (see `STATUSES`). A row holds as
long as the fields `IDENTITY` of its passport are those of today's run; a stale one is dropped and made anew. Trade: the commit
is in the passport but not in `IDENTITY`; a hash of the code that methods, renders and metrics consist of is. Verified by
interrupted, repeated and simultaneous sweeps.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import geolrm
from geolrm.failures import BadInput
from geolrm.files import sha256_of, write_whole
from geolrm.metrics.geometry import THRESHOLDS

Row = dict[str, Any]
HEADLINE_VIEWS = 6  # number of input views at which methods are compared first
Key = tuple[str, str, int]  # method, object, number of input views

PICTURE_METRICS = (
    *("psnr", "psnr_pooled", "psnr_foreground", "ssim", "lpips_vgg", "lpips_alex"),
    *("mask_iou", "depth_error"),
)
SURFACE_METRICS = ("cd_sum", "cd_mean", *(f"{m}_{t:g}" for m in ("fscore", "precision", "recall") for t in THRESHOLDS))
FULL_METRICS = tuple(
    f"{name}{end}" for end in ("_100k", "_visible") for name in SURFACE_METRICS
)  # settings ask for them
GEOMETRY_METRICS = SURFACE_METRICS + FULL_METRICS
COST_METRICS = ("latency_s", "latency_p90_s", "peak_memory_bytes")
METRICS = PICTURE_METRICS + GEOMETRY_METRICS + COST_METRICS
FIELDS = (
    *("method", "dataset", "split", "object", "views", "inputs", "input_views", "rig", "test_views"),
    *METRICS,
    *("latency_runs", "stages", "peak_reserved_bytes"),  # stages: name -> seconds; reserved on a GPU alone
    "harness_s",  # seconds of the row that are not the method's: reading the truth, rendering, scoring; no artefacts
    *("gaussians", "surface", "floor", "status", "reason", "seed", "passport"),
)
STATUSES = {
    "ok": "scored as measured",
    "empty": "the method returned no Gaussian: white pictures, no surface",
    "failed": "the method raised an error: scored as white pictures and no surface",
    "out_of_memory": "likewise",
    "not_applicable": "the method cannot take these inputs, or the object has too few: not scored",
    "cost_only": "random weights: latency and memory alone, not scored",
    "not_installed": "a part of the method is missing here: not scored, tried again by the next sweep",
}
PASSPORT = (
    *(
        "protocol",
        "protocol_hash",
        "settings",
        "deviations",
        "dataset_hash",
        "checkpoint_hash",
        "commit",
        "device",
        "versions",
        "precision",
        "seed",
    ),
    *("code_hash", "lpips", "memory", "split_hash", "max_anchors"),
)
IDENTITY = (
    "protocol_hash",
    "settings",
    "dataset_hash",
    "checkpoint_hash",
    "max_anchors",
    "code_hash",
    "lpips",
    "device",
    "precision",
    "seed",
)


def digest(content: Any) -> str:
    """sha256 of a JSON-like value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def code_hash(files: list[Path]) -> str:
    """Digest of the code that decides a score: what the library sees and renders by, the scorer, and `files` of a method; the
    networks of the library only where one of these names them."""
    library, here = Path(geolrm.__file__).parent, Path(__file__).parent
    shared = [library / f"{name}.py" for name in ("cameras", "views", "gaussians", "occupancy", "fusion", "meshing")]
    has_network = any(b"geolrm.model" in file.read_bytes() for file in files)
    parts = ("metrics", "rendering", *(("kernels", "model") if has_network else ()))
    shared += [file for part in parts for file in sorted((library / part).glob("*.py"))]
    shared += [here / f"{name}.py" for name in ("measure", "pictures", "scores", "stages")]
    return digest([[file.name, sha256_of(file)] for file in shared + files])


def check_row(row: Row) -> None:
    """Raise ValueError unless the row has exactly the fields of `FIELDS`, a known status, finite numbers, reasons for nulls."""
    if set(row) != set(FIELDS):
        raise ValueError(f"fields missing {sorted(set(FIELDS) - set(row))}, unknown {sorted(set(row) - set(FIELDS))}")
    if absent := set(PASSPORT) - set(row["passport"]):
        raise ValueError(f"the passport lacks {sorted(absent)}")
    if row["status"] not in STATUSES:
        raise ValueError(f"unknown status {row['status']!r}")
    asked = METRICS if (row["passport"]["settings"] or {}).get("full_geometry") else set(METRICS) - set(FULL_METRICS)
    numbers = {name: row[name] for name in METRICS}
    if wrong := {name: value for name, value in numbers.items() if value is not None and not math.isfinite(value)}:
        raise ValueError(f"not finite: {wrong}")
    if not row["reason"] and (row["status"] != "ok" or any(numbers[name] is None for name in asked)):
        raise ValueError(f"status {row['status']} or a null without a reason: {numbers}")


def key_of(row: Row) -> Key:
    """What a row is about, within the file of its data set."""
    return row["method"], row["object"], row["views"]


def identity(passport: dict[str, Any]) -> dict[str, Any]:
    """The fields of a passport that must agree for a row to hold."""
    return {name: passport.get(name) for name in IDENTITY}


def read_rows(path: Path) -> list[Row]:
    """All whole rows of a file, none where there is no file. A last line cut short is left out, any other is `BadInput`."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")  # the part after the last newline: empty, or a row that was cut short
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise BadInput(
                "row_unreadable", f"{path}, line {number}", str(error), "remove the line, or the file"
            ) from error
    return rows


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A block that changes a file of rows: one at a time among all processes, by a lock on its folder, freed if we are killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def keep_rows(path: Path, keep: Callable[[Row], bool]) -> tuple[list[Row], list[Row]]:
    """Leave in the file the rows that `keep` says yes to; returns these and the others. Whole or not at all."""
    with _writing(path):
        rows = read_rows(path)
        kept, others = [row for row in rows if keep(row)], [row for row in rows if not keep(row)]
        if others:
            write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))
    return kept, others


def append_row(path: Path, row: Row) -> None:
    """Check a row and add it to the file, synced to the disk; a line that a killed writer left unfinished is cut off."""
    check_row(row)
    line = json.dumps({name: row[name] for name in FIELDS}, allow_nan=False) + "\n"
    with _writing(path), path.open("ab+") as file:
        size = file.tell()
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.truncate(path.read_bytes().rfind(b"\n") + 1)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())
