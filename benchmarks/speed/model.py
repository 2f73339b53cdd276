"""How fast the full-size model is and what memory it takes, part by part, beside its plain PyTorch definition in one run.

In: nothing but options; weights are drawn, cost does not depend on them. Out: a line per view count on the screen, and a JSON
file of rows and passport, which `benchmarks/speed/model_report.py` turns into a table and plots. Convention: the whole is
`GeoLRM.reconstruct`, pictures on the GPU to Gaussians, both encoders and both networks, in the order that a user runs it; the
proposal is computed in full and then replaced by a sphere's voxels, so that the number of anchor points is what is asked for.
`fast` is the default (bf16 products, fused kernels) with halved weights, `definition` the readable definitions in float32
without TF32. Each view count interleaves the two; times are CUDA events after warm-up. Memory is torch's, weights and
pictures included, the other model moved away: of the whole in a pass of its own, of a part while it runs. Trade: random
weights, with sampling offsets, attention and the Gaussian head drawn so wide that what the tokens say shows in the picture.
Verified by the parts, which must add up to nine tenths of the fast whole at 16 views and more, or the run says so.
"""

from __future__ import annotations

import contextlib
import copy
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import nn
from tqdm import tqdm

from benchmarks.planted import Planted
from geolrm.cameras import orbit
from geolrm.config import Params, Precision, load_params
from geolrm.files import write_whole
from geolrm.gaussians import Gaussians
from geolrm.metrics.image import psnr
from geolrm.model.deformable import DeformableCrossAttention
from geolrm.model.execution import definitions_only, in_precision, missing_for_kernels
from geolrm.model.geolrm import GeoLRM
from geolrm.model.proposal import ProposalNetwork
from geolrm.model.reconstruction import ReconstructionNetwork
from geolrm.occupancy import anchor_points
from geolrm.passport import passport
from geolrm.rendering import render
from geolrm.views import Views

MIB = 2**20
FAST, DEFINITION = "fast", "definition"
OFFSET_SPREAD, WEIGHT_SPREAD, HEAD_SPREAD = 0.07, 0.036, 0.13  # of drawn weights: offsets of 2 pixels, logits of 1


@dataclass(frozen=True)
class Options:
    """Time the full-size model on a GPU against its plain definition."""

    out: Path = Path("docs/results/model-speed.json")
    """Where the result goes."""
    params: Path = Path("presets/paper.yaml")
    """The model's size."""
    views: tuple[int, ...] = (4, 6, 8, 12, 16, 20, 21, 32, 64)
    """Numbers of input views."""
    anchors: int = 16384
    """Anchor points; each becomes gaussians_per_token Gaussians."""
    more_views: int = 64
    more_anchors: int = 32768
    """A run of its own with so many views and anchor points; 0 anchors leave it out."""
    image_size: int = 512
    """Pixels a side."""
    rounds: int = 20
    """Counted rounds of the fast model."""
    definition_rounds: int = 3
    """Counted rounds of the definition, spread among them; 0 leaves it out."""
    part_rounds: int = 4
    """Counted rounds of the parts, of the fast model."""
    warmup: int = 3
    """Rounds before counting."""
    pictures: int = 4
    """Cameras that the two precisions are compared in, at half the image size; 0 leaves it out."""
    seed: int = 0
    """Of weights and pictures."""


def planted(model: GeoLRM) -> Planted:
    assert isinstance(model.proposal, Planted)
    return model.proposal


def full_model(params: Params, device: torch.device) -> GeoLRM:
    """Both networks with drawn weights, the wide ones among them drawn again wide."""
    model = GeoLRM(
        ProposalNetwork(params.proposal, pretrained=False),
        ReconstructionNetwork(params.reconstruction, pretrained=False),
    )
    for module in model.modules():
        if isinstance(module, DeformableCrossAttention):
            nn.init.normal_(module.offsets.weight, std=OFFSET_SPREAD)
            nn.init.normal_(module.weights.weight, std=WEIGHT_SPREAD)
    nn.init.normal_(model.reconstruction.head.output.weight, std=HEAD_SPREAD)
    return model.eval().to(device)


def drawn_views(count: int, size: int, seed: int, device: torch.device) -> Views:
    """Smooth random pictures from an orbit with elevations from -10 to 50 degrees."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 4, 16, 16, generator=draw)
    smooth = nn.functional.interpolate(coarse, (size, size), mode="bicubic", align_corners=False).clamp(0, 1)
    elevations = torch.tensor([-10.0, 10.0, 30.0, 50.0])[torch.arange(count) % 4]
    cameras = orbit(torch.arange(count) * 360.0 / count, elevations, 2.0, 39.6)
    return Views("drawn", cameras, smooth[:, :3], (smooth[:, 3:] > 0.3).float()).to(device)


def parts_of(model: GeoLRM) -> dict[str, list[tuple[Any, str]]]:
    """Which calls make up each part: (object, name of its method)."""
    proposal, reconstruction = planted(model).network, model.reconstruction
    blocks: Any = reconstruction.transformer.blocks
    return {
        "proposal: encoder": [(proposal.encoder, "forward")],
        "proposal: transformer": [(proposal.transformer, "forward")],
        "proposal: carving": [(proposal.carving, "carve")],
        "reconstruction: encoder": [(reconstruction.encoder, "forward")],
        "reconstruction: token attention": [(block.self_attention, "forward") for block in blocks],
        "reconstruction: cross-attention": [(block.cross_attention, "forward") for block in blocks],
        "reconstruction: feed-forward": [(block.feed_forward, "forward") for block in blocks],
        "reconstruction: head": [(reconstruction.head, "forward")],
    }


class Clock:
    """Times and memory of the parts, taken by standing in front of their methods."""

    def __init__(self, parts: dict[str, list[tuple[Any, str]]]) -> None:
        self.parts = parts
        self.pairs: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in parts}
        self.peak = dict.fromkeys(parts, 0)
        self.reserved = dict.fromkeys(parts, 0)

    @contextlib.contextmanager
    def running(self, memory: bool) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name, calls in self.parts.items():
                for owner, method in calls:
                    setattr(owner, method, self._timed(name, getattr(owner, method), memory))
                    stack.callback(delattr, owner, method)  # the class's own method shows again
            yield

    def _timed(self, name: str, call: Callable[..., Any], memory: bool) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if memory:
                torch.cuda.reset_peak_memory_stats()
            events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            events[0].record()
            result = call(*args, **kwargs)
            events[1].record()
            self.pairs[name].append(events)
            if memory:
                self.peak[name] = max(self.peak[name], torch.cuda.max_memory_allocated())
                self.reserved[name] = max(self.reserved[name], torch.cuda.memory_reserved())
            return result

        return timed

    def take(self) -> dict[str, float]:
        """Seconds of each part since the last call."""
        torch.cuda.synchronize()
        seconds = {name: sum(a.elapsed_time(b) for a, b in pairs) / 1e3 for name, pairs in self.pairs.items()}
        for pairs in self.pairs.values():
            pairs.clear()
        return seconds


def seconds_of(run: Callable[[], Any]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def memory_of(run: Callable[[], Any]) -> tuple[int, int]:
    """Peak bytes allocated, and reserved from an empty cache."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def ninth_decile(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.9 * len(values)))]


def measure(models: dict[str, GeoLRM], views: Views, anchors: int, options: Options) -> list[dict[str, Any]]:
    """Rows of the whole and of its parts, of each of the models: fast, by the definition, or both."""
    device = views.colour.device

    def fast() -> Gaussians:
        return models[FAST].reconstruct(views, anchors)

    def plain() -> Gaussians:
        with definitions_only():
            return models[DEFINITION].reconstruct(views, anchors, precision="fp32")

    runs = {name: {FAST: fast, DEFINITION: plain}[name] for name in models}
    rounds = {FAST: options.rounds, DEFINITION: options.definition_rounds}
    part_rounds = {FAST: options.part_rounds, DEFINITION: options.definition_rounds}
    memory: dict[str, tuple[int, int]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    parts: dict[str, dict[str, list[float]]] = {name: {} for name in runs}
    clocks = {name: Clock(parts_of(model)) for name, model in models.items()}
    for name, run in runs.items():
        for other, model in models.items():
            model.to(device if other == name else "cpu")
        for _ in range(options.warmup if name == FAST else 1):
            run()
        memory[name] = memory_of(run)
        with clocks[name].running(memory=True):
            run()
        clocks[name].take()
    for model in models.values():
        model.to(device)
    for index in range(options.rounds):
        for name, run in runs.items():
            if index * rounds[name] % options.rounds < rounds[name]:
                seconds[name].append(seconds_of(run))
            if index * part_rounds[name] % options.rounds < part_rounds[name]:
                with clocks[name].running(memory=False):
                    run()
                for part, value in clocks[name].take().items():
                    parts[name].setdefault(part, []).append(value)
    rows = []
    for name in runs:
        facts = {"views": len(views), "anchors": anchors, "implementation": name}
        every = {"whole": seconds[name]} | parts[name]
        for part, values in every.items():
            peak, reserved = memory[name] if part == "whole" else (clocks[name].peak[part], clocks[name].reserved[part])
            rows.append(
                facts
                | {"part": part, "latency_s": statistics.median(values), "latency_p90_s": ninth_decile(values)}
                | {"peak_memory_bytes": peak, "reserved_memory_bytes": reserved, "rounds": len(values)}
            )
    return rows


def compare_precisions(models: dict[str, GeoLRM], views: Views, options: Options) -> dict[str, float]:
    """PSNR between renders of fast and full float32 Gaussians from the same anchors, and the IoU of their proposals.

    The proposal is thresholded at its own upper twentieth: random weights put no logit above zero.
    """
    images, cameras = views.composited()[None], views.cameras[None]
    anchors = anchor_points(planted(models[FAST]).grid, options.anchors)[None]
    sets, grids = [], []
    ways: list[tuple[str, Precision, contextlib.AbstractContextManager[None]]] = [
        (FAST, "auto", contextlib.nullcontext()),
        (DEFINITION, "fp32", definitions_only()),
    ]
    with torch.no_grad():
        for name, precision, context in ways:
            with context, in_precision(precision, images.device):
                sets.append(models[name].reconstruction(images, cameras, anchors)[0])
                grids.append(planted(models[name]).network(images, cameras)[0])
    cut = torch.quantile(grids[1].flatten()[::16], 0.95)
    fast, full = (grid > cut for grid in grids)
    side = options.image_size // 2
    rig = orbit(
        torch.arange(options.pictures) * 360.0 / options.pictures + 17, torch.full((options.pictures,), 20.0), 2, 39.6
    )
    pictures = [render(one.to("cpu"), rig, side, side).colour for one in sets]
    grey = (pictures[1] - pictures[1].mean()).square().mean().sqrt().item()
    return {
        "psnr_db": psnr(pictures[0].clamp(0, 1), pictures[1].clamp(0, 1)).min().item(),
        "picture_deviation": grey,
        "occupancy_iou": ((fast & full).sum() / (fast | full).sum()).item(),
    }


def ceilings(device: torch.device) -> dict[str, float]:
    """What this device reaches: bf16 products on random data (FLOP/s), copies (bytes/s, read and written)."""
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(2**30, dtype=torch.int8, device=device).random_()
    target = torch.empty_like(source)
    for _ in range(3):
        a @ b
        target.copy_(source)
    products = statistics.median(seconds_of(lambda: a @ b) for _ in range(10))
    copies = statistics.median(seconds_of(lambda: target.copy_(source)) for _ in range(10))
    properties = torch.cuda.get_device_properties(device)
    return {
        "bf16_flops_per_s": 2 * 8192**3 / products,
        "copy_bytes_per_s": 2 * 2**30 / copies,
        "multiprocessors": properties.multi_processor_count,
    }


def main(options: Options) -> None:
    device = torch.device("cuda")
    missing = missing_for_kernels(device)
    if missing:
        raise SystemExit(f"error: the fast path is not there: {missing}")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(options.seed)
    params = load_params(options.params)
    model = full_model(params, device)
    facts: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters()), "ceilings": ceilings(device)}
    torch.cuda.empty_cache()
    models = {FAST: copy.deepcopy(model).for_use_in_bfloat16(), DEFINITION: model}
    for one in models.values():
        one.proposal = Planted(one.proposal).to(device)  # type: ignore[assignment]
    rows: list[dict[str, Any]] = []

    def save() -> None:
        about = passport(seed=options.seed, rounds=options.rounds, image_size=options.image_size, **facts)
        about["gaussians_per_anchor"] = params.reconstruction.gaussians_per_token
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(options.out, json.dumps({"rows": rows, "passport": about}, indent=1) + "\n")

    measured_models = models if options.definition_rounds else {FAST: models[FAST]}
    settings = [(count, options.anchors, measured_models) for count in options.views]
    if options.more_anchors:
        settings.append((options.more_views, options.more_anchors, {FAST: models[FAST]}))
    for count, anchors, measured in tqdm(settings, desc="view counts", mininterval=5):
        views = drawn_views(count, options.image_size, options.seed, device)
        for name, one in models.items():
            one.to(device if name in measured else "cpu")
        new = measure(measured, views, anchors, options)
        rows += new
        save()
        fast = {row["part"]: row["latency_s"] for row in new if row["implementation"] == FAST}
        if count >= 16 and sum(fast.values()) < 1.9 * fast["whole"]:
            print(f"!!! at {count} views the parts explain less than nine tenths of the whole", flush=True)
        for row in rows:
            if (row["views"], row["anchors"], row["part"]) == (count, anchors, "whole"):
                print(
                    f"{count} views, {anchors} anchors, {row['implementation']}: {1e3 * row['latency_s']:.1f} ms "
                    f"(p90 {1e3 * row['latency_p90_s']:.1f}), {row['peak_memory_bytes'] / MIB:.0f} MiB allocated, "
                    f"{row['reserved_memory_bytes'] / MIB:.0f} reserved",
                    flush=True,
                )
    if options.pictures:
        views = drawn_views(21, options.image_size, options.seed, device)
        models[DEFINITION].to(device)
        facts["precision"] = compare_precisions(models, views, options)
        print(facts["precision"])
        save()


if __name__ == "__main__":
    main(tyro.cli(Options))
