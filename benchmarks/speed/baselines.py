"""What GeoLRM, LGM, CRM and InstantMesh cost at every number of views that they can take, side by side in one run.

In: nothing but options; weights are random, cost does not depend on them. Out: a line per row on the screen, a JSON file of rows
and passport, a Markdown table beside it. Convention: measured is `reconstruct` of the method's adapter, as a sweep runs it
(`benchmarks.measure`): pictures on the device to Gaussians, or to a mesh with colours. Each method has a process of its own.
CRM is shown its own six faces, the others pictures from an orbit. A row says `weights: random` and holds no quality; what a
method cannot take, or has no memory for, is a row too. Trade: what comes out is made up, so that there is as much of it as
from published weights: anchor points on a sphere, InstantMesh's surface a ball, CRM's a rough one. float32 products are TF32
on a GPU unless asked otherwise, which no adapter does by itself. Verified by small networks of every kind on a CPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from benchmarks.measure import CPU_MEMORY, CUDA_MEMORY, measure
from benchmarks.methods import Method, NotApplicable, Prediction, crm, instantmesh, lgm
from benchmarks.methods.crm.faces import FACES, own_cameras
from benchmarks.methods.crm.network import Config as CRMConfig
from benchmarks.methods.instantmesh.network import PUBLISHED, EncoderSizes, Sizes, TriplaneSizes
from benchmarks.methods.lgm.network import BIG
from benchmarks.methods.lgm.network import Config as LGMConfig
from benchmarks.planted import Planted
from benchmarks.processes import Tell, in_own_process
from benchmarks.published import UNTRAINED
from benchmarks.speed.model import MIB, drawn_views, full_model
from geolrm.config import load_params
from geolrm.failures import BadInput
from geolrm.files import write_whole
from geolrm.gaussians import Gaussians
from geolrm.model.execution import products_in_bfloat16
from geolrm.passport import passport
from geolrm.views import Views

Row = dict[str, Any]
# What a method's own code, or the memory of the machine, may raise.
METHOD_ERRORS = (RuntimeError, ValueError, ArithmeticError, LookupError, MemoryError)
LGM_SMALL = LGMConfig(
    down_channels=(32,) * 6,
    down_attention=(False,) * 3 + (True,) * 3,
    mid_attention=True,
    up_channels=(32,) * 5,
    up_attention=(True,) * 3 + (False,) * 2,
)
CRM_SMALL = CRMConfig(side=32, channels=(32, 32), down_attention=(False, True), up_attention=(True, False), layers=1)
CRM_SMALL_CELLS = 20
INSTANTMESH_SMALL = Sizes(
    EncoderSizes(width=24, layers=1, heads=2),
    TriplaneSizes(width=16, layers=1, heads=2, image_width=24, side=4, channels=4),
    hidden=8,
    cells=24,
)


@dataclass(frozen=True)
class Options:
    """Measure GeoLRM and the published baselines with random weights; cost alone."""

    out: Path = Path("docs/results/baselines-speed.json")
    """Where the rows go; the table goes beside them."""
    methods: tuple[str, ...] = ("geolrm", "lgm", "lgm-half", "crm", "instantmesh")
    """Which methods; lgm-half is LGM with products of float16, as its public code computes."""
    views: tuple[int, ...] = (4, 6, 8, 12, 16, 20, 21)
    """Numbers of input views."""
    params: Path = Path("presets/paper.yaml")
    """GeoLRM's size."""
    anchors: int = 16384
    """GeoLRM's anchor points."""
    image_size: int = 512
    """Pixels a side of the pictures that are given."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    tf32: bool = True
    """TF32 for the products of float32 on a GPU."""
    small: bool = False
    """Small networks of the same kinds, to try the command on a CPU."""
    seed: int = 0
    """Of weights and pictures."""

    @property
    def place(self) -> torch.device:
        # counted without initialising the device, which belongs to the processes of the methods
        return torch.device(self.device if self.device != "auto" else "cuda" if torch.cuda.device_count() else "cpu")


def geolrm(options: Options) -> Method:
    """GeoLRM as its adapter runs it, with a proposal that is computed in full and then replaced by a sphere's voxels."""
    device = options.place
    model = full_model(load_params(options.params), device)
    model.proposal = Planted(model.proposal).to(device)  # type: ignore[assignment]
    precision = "bfloat16" if products_in_bfloat16("auto", device) else "float32"
    return Method(lambda views: model.reconstruct(views, options.anchors), UNTRAINED, precision)


def drawn_lgm(options: Options, half: bool = False) -> Method:
    return lgm.drawn(options.place, LGM_SMALL if options.small else BIG, half)


def drawn_crm(options: Options) -> Method:
    return crm.drawn(options.place, *((CRM_SMALL, CRM_SMALL_CELLS) if options.small else (CRMConfig(),)))


def drawn_instantmesh(options: Options) -> Method:
    sizes = INSTANTMESH_SMALL if options.small else PUBLISHED[instantmesh.VARIANT]
    return instantmesh.drawn(options.place, sizes)


MADE: dict[str, Callable[[Options], Method]] = {
    "geolrm": geolrm,
    "lgm": drawn_lgm,
    "lgm-half": partial(drawn_lgm, half=True),
    "crm": drawn_crm,
    "instantmesh": drawn_instantmesh,
}


def inputs_of(name: str, count: int, options: Options) -> Views:
    """Pictures of noise: CRM's six faces with their depth where it is to have six, else an orbit."""
    drawn = drawn_views(count, options.image_size, options.seed, torch.device("cpu"))
    if name == "crm" and count == len(FACES):
        cameras = own_cameras()
        middle = cameras.positions.norm(dim=-1)[:, None, None].expand(-1, *drawn.size)
        drawn = replace(drawn, cameras=cameras, depth=middle * drawn.foreground[:, 0])
    return drawn.to(options.place)


def counted(prediction: Prediction) -> dict[str, int]:
    """How much was made."""
    if isinstance(prediction, Gaussians):
        return {"gaussians": len(prediction)}
    assert prediction.mesh is not None
    mesh = prediction.mesh()
    return {"vertices": len(mesh.vertices), "faces": len(mesh.faces)}


def empty_row(name: str, count: int) -> Row:
    """A row that holds no number yet, and never a quality."""
    numbers = ("precision", "latency_s", "latency_p90_s", "latency_runs", "peak_memory_bytes", "peak_reserved_bytes")
    return {
        "method": name,
        "views": count,
        "weights": "random",
        "status": "ok",
        "reason": "",
        "stages": {},
        "made": {},
    } | dict.fromkeys(numbers)


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def failure(error: Exception) -> dict[str, str]:
    """Status and reason of a row whose method raised."""
    no_memory = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "out_of_memory" in str(error)
    reason = f"{type(error).__name__}: {first_line(error)}"
    return {"status": "out_of_memory" if no_memory else "failed", "reason": reason}


def measured_row(name: str, method: Method, count: int, options: Options) -> Row:
    """One method at one number of views."""
    row = empty_row(name, count)
    try:
        found = measure(method, inputs_of(name, count, options), first=True)
    except NotApplicable as error:
        return row | {"status": "not_applicable", "reason": first_line(error)}
    except METHOD_ERRORS as error:
        return row | failure(error)
    precision = method.precision
    if options.place.type == "cuda" and options.tf32 and precision == "float32":
        precision = "float32, TF32 products"
    return row | {
        "precision": precision,
        "latency_s": found.latency_s,
        "latency_p90_s": found.latency_p90_s,
        "latency_runs": found.runs,
        "stages": found.stages,
        "peak_memory_bytes": found.peak_memory_bytes,
        "peak_reserved_bytes": found.peak_reserved_bytes,
        "made": counted(found.prediction),
    }


def rows_of(name: str, options: Options, tell: Tell) -> None:
    """Tell the rows of one method, one by one."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
    torch.manual_seed(options.seed)
    try:
        method = MADE[name](options)
    except METHOD_ERRORS as error:
        for count in options.views:
            tell(empty_row(name, count) | failure(error))
        return
    for count in options.views:
        tell(measured_row(name, method, count, options))


def table(rows: list[Row], memory: str) -> str:
    """Markdown: what was measured, then what could not be."""
    done = [row for row in rows if row["status"] == "ok"]
    lines = [
        f"| method | views | precision | median (ms) | p90 (ms) | {memory} (MiB) | reserved (MiB) | made |",
        "|---|---:|---|---:|---:|---:|---:|---|",
    ]
    for row in done:
        made = ", ".join(f"{count:,} {what}" for what, count in row["made"].items())
        reserved = row["peak_reserved_bytes"]
        cells = [row["method"], row["views"], row["precision"]]
        cells += [f"{1e3 * row[name]:.1f}" for name in ("latency_s", "latency_p90_s")]
        cells += [f"{row['peak_memory_bytes'] / MIB:,.0f}", f"{reserved / MIB:,.0f}" if reserved else "-", made]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    others = [f"- {r['method']}, {r['views']} views: {r['status']}: {r['reason']}" for r in rows if r["status"] != "ok"]
    return "\n".join([*(lines if done else []), *([""] if done and others else []), *others])


def run(options: Options) -> list[Row]:
    """Measure every method in a process of its own, and write rows and table after each."""
    if unknown := set(options.methods) - set(MADE):
        raise BadInput("method_unknown", sorted(unknown)[0], "no such method here", f"these are {', '.join(MADE)}")
    memory = CUDA_MEMORY if options.place.type == "cuda" else CPU_MEMORY
    names = ("seed", "small", "tf32", "image_size", "anchors")
    facts: dict[str, Any] = {name: getattr(options, name) for name in names} | {"params": str(options.params)}
    facts |= {"memory": memory} | ({"device": "cpu"} if options.place.type == "cpu" else {})
    rows: list[Row] = []
    for name in options.methods:
        ended = in_own_process(partial(rows_of, name, options), rows.append, "spawn")
        measured = {row["views"] for row in rows if row["method"] == name}
        if ended is not None:
            crash = {"status": "failed", "reason": f"its process was ended by {ended.name}"}
            rows += [empty_row(name, count) | crash for count in options.views if count not in measured]
        about = passport(**facts)
        title = f"# What the methods cost with random weights, on {about['device']}"
        note = f"Pictures of {options.image_size} px; no number here is a quality. By `python -m benchmarks.speed.baselines`."
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(options.out, json.dumps({"rows": rows, "passport": about}, indent=1) + "\n")
        write_whole(options.out.with_suffix(".md"), f"{title}\n\n{note}\n\n{table(rows, memory)}\n")
        print(table([row for row in rows if row["method"] == name], memory), flush=True)
    return rows


if __name__ == "__main__":
    run(tyro.cli(Options))
