"""The ablations of the paper's Tables 4 and 5, and of this project's own choices, as one command each.

In: a params file, its trained proposal network, the name of an ablation. Out: under `results/<preset>/ablations/<name>/` what
any training leaves and `scores.json`; from several of those `docs/results/ablations.json` and a page beside the paper's numbers.
Convention: each run is the params' reconstruction stage with one thing changed, the same seed, steps and data, and anchor
points of the same frozen proposal network; judged on the validation objects with 4, 6, 8 and 12 inputs of the orbit and eight
targets off it, at the training's number of anchor points, and with 6 inputs at four times as many. What is a choice of the
model is changed in its settings; what is none (a level of features without a say, no offsets) is changed on the finished
network from outside, so that the model carries no switch for it. Trade: a short run, so that differences are those of a short
training; the paper's are of 12 layers at 224 px on other data, so signs and order compare, not decibels. Verified by what each
change does to a network, and by runs of all of it at a tiny size (tests/benchmarks/test_ablations.py).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor, nn

from benchmarks.bootstrap import paired
from benchmarks.scores import BACKGROUND, picture_scores
from benchmarks.tables import as_markdown
from geolrm.config import Params, Reconstruction, load_params
from geolrm.data.loader import Sample
from geolrm.failures import BadInput
from geolrm.files import write_whole
from geolrm.metrics.perceptual import Lpips, PerceptualMetrics, load_perceptual
from geolrm.model.deformable import DeformableCrossAttention
from geolrm.model.geolrm import GeoLRM
from geolrm.model.proposal import ProposalNetwork
from geolrm.model.reconstruction import ReconstructionNetwork
from geolrm.passport import passport
from geolrm.rendering import render
from geolrm.training.checkpoint import load_model, newest_resume_state
from geolrm.training.loop import train
from geolrm.training.stages import ReconstructionStage
from pipelines.training_data import TrainingData
from pipelines.training_data import run as run_training

FORMAT = "geolrm-ablation-1"
INPUTS = (4, 6, 8, 12)
PAPER_INPUTS = 6  # of the paper's Table 4, above, and Table 5
GROWTH = 4
TARGETS = 8
SCORES = "scores.json"
METRICS = ("psnr", "psnr_foreground", "ssim", "lpips_vgg", "lpips_alex")
Changes = dict[str, Any]


# --- what is changed on a network from outside ---


def untouched(network: ReconstructionNetwork) -> None:
    """The settings say it all."""


def without_rays(network: ReconstructionNetwork) -> None:
    """The low level sees colours alone: zeros in place of the six Pluecker coordinates."""

    def colours_alone(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (together,) = inputs
        return (torch.cat([together[:, :3], torch.zeros_like(together[:, 3:])], dim=1),)

    network.encoder.low.register_forward_pre_hook(colours_alone)


def without_level(network: ReconstructionNetwork, parts: Sequence[str]) -> None:
    """A level of features says nothing: its map, the last of these parts of the encoder, is zero, and none of them learns."""
    modules = [getattr(network.encoder, part).requires_grad_(False) for part in parts]
    modules[-1].register_forward_hook(lambda _, __, output: torch.zeros_like(output))


def without_positions(network: ReconstructionNetwork) -> None:
    """Every token stands at the origin for RoPE, which then turns nothing; its place stays in its first features."""
    network.transformer.positions = torch.zeros_like


def without_offsets(network: ReconstructionNetwork) -> None:
    """Features are read at the projection itself."""
    for module in network.modules():
        if isinstance(module, DeformableCrossAttention):
            for parameter in module.offsets.requires_grad_(False).parameters():
                nn.init.zeros_(parameter)


# --- the ablations ---


@dataclass(frozen=True)
class Ablation:
    """One thing changed.

    Attributes:
        what: in words.
        settings: of the params' section `reconstruction`.
        alter: done to the new network, before training and judging.
        paper: psnr, ssim, lpips in the paper's Table 4 (above) or 5; none for what is this project's.
        paper_by_inputs: psnr by number of inputs, Table 4 below.
        paper_growth: dB that four times the anchor points give, in the paper's text.
    """

    what: str
    settings: Changes = field(default_factory=dict)
    alter: Callable[[ReconstructionNetwork], None] = untouched
    paper: tuple[float, float, float] | None = None
    paper_by_inputs: dict[int, float] = field(default_factory=dict)
    paper_growth: float | None = None


def _points(count: int, paper: tuple[float, float, float]) -> Ablation:
    return Ablation(f"{count} sampling points", {"transformer": {"sampling_points": count}}, paper=paper)


ABLATIONS = {
    "full": Ablation(
        "the preset as it is",
        paper=(20.73, 0.831, 0.216),
        paper_by_inputs={4: 19.94, 8: 21.16, 12: 22.04},
        paper_growth=0.4,
    ),
    "no_pluecker": Ablation("without Plücker rays", alter=without_rays, paper=(20.64, 0.826, 0.244)),
    "no_low_level": Ablation(
        "without low-level features",
        alter=partial(without_level, parts=("low", "low_norm")),
        paper=(20.29, 0.817, 0.246),
    ),
    "no_high_level": Ablation(
        "without high-level features",
        alter=partial(without_level, parts=("dinov2", "high", "high_norm")),
        paper=(15.85, 0.798, 0.289),
    ),
    "no_rope": Ablation("without 3D RoPE", alter=without_positions, paper=(20.52, 0.827, 0.224), paper_growth=0.2),
    "fixed_views": Ablation(
        "always 6 inputs in training",
        {"optimisation": {"min_inputs": PAPER_INPUTS, "max_inputs": PAPER_INPUTS}},
        paper=(20.97, 0.839, 0.220),
        paper_by_inputs={4: 19.72, 8: 20.85, 12: 21.43},
    ),
    "points_0": Ablation(
        "0 sampling points: one sample, at the projection itself",
        {"transformer": {"sampling_points": 1}},
        without_offsets,
        paper=(19.52, 0.802, 0.265),
    ),
    "points_4": _points(4, (20.21, 0.819, 0.238)),
    "points_8": _points(8, (20.73, 0.839, 0.220)),
    "points_16": _points(16, (20.80, 0.846, 0.219)),
    "head_attention": Ablation("released: attention across heads", {"transformer": {"self_attention": "heads"}}),
    "normalised_residual": Ablation(
        "released: residual of the normalised stream", {"transformer": {"residual": "normalised"}}
    ),
    "one_sided_offsets": Ablation("released: one-sided offsets of the Gaussians", {"offsets": "one_sided"}),
    "corner_grid": Ablation("released: anchor points on voxel corners", {"grid": "corners"}),
    "random_subset": Ablation("released: a random subsample of the anchor points", {"subset": "random"}),
    "no_cues": Ablation("without carving cues at the anchor points (as the paper)", {"carving": "none"}),
    "token_colours": Ablation("colours from the token alone (as the paper)", {"colours": "tokens"}),
}


def merged(base: Changes, changes: Changes) -> Changes:
    """Nested settings with some of them changed."""
    return base | {
        name: merged(base[name], value) if isinstance(value, dict) else value for name, value in changes.items()
    }


def settings_of(ablation: Ablation, section: Reconstruction, steps: int, anchors: int) -> Reconstruction:
    """The section of one run: shorter, with fewer anchor points, and changed; the warm-up keeps its share of the steps.

    Raises:
        BadInput: `ablation_views` where too few views are drawn for a changed number of inputs.
    """
    o = section.optimisation
    shorter = {"steps": steps, "warmup": round(o.warmup * steps / o.steps)}
    shorter |= {"validate_every": max(1, steps // 5), "checkpoint_every": max(1, steps // 5)}
    data = merged(section.model_dump(), {"max_anchors": anchors, "optimisation": shorter})
    if ablation.settings.get("optimisation", {}).get("max_inputs", 0) >= o.views:
        detail = f"{o.views} views are drawn, of which {PAPER_INPUTS} would be inputs"
        raise BadInput("ablation_views", "reconstruction.optimisation.views", detail, "draw more views")
    return Reconstruction.model_validate(merged(data, ablation.settings))


def new_network(ablation: Ablation, section: Reconstruction, device: torch.device) -> ReconstructionNetwork:
    """The network of one run, drawn from the section's seed."""
    torch.manual_seed(section.optimisation.seed)
    network = ReconstructionNetwork(section).to(device)
    ablation.alter(network)
    return network


# --- judging ---


def targets_of(sample: Sample) -> list[int]:
    """Positions of eight views off the orbit, the same for every number of inputs."""
    rest = [i for i, role in enumerate(sample.roles) if role != "orbit"]
    return [rest[len(rest) * i // TARGETS] for i in range(TARGETS)]


def judge(
    proposal: ProposalNetwork,
    network: ReconstructionNetwork,
    samples: Sequence[Sample],
    perceptual: PerceptualMetrics,
    device: torch.device,
) -> list[dict[str, Any]]:
    """A row for each object, number of inputs and number of anchor points asked for."""
    model, settings = GeoLRM(proposal, network).eval(), network.settings
    torch.manual_seed(settings.optimisation.seed)  # the random subsample draws from torch's generator
    size, most = settings.optimisation.image_size, settings.max_anchors
    rows = []
    for sample in samples:
        truth = sample.views(targets_of(sample)).resized(size, size).to(device)
        for inputs, anchors in (*((inputs, most) for inputs in INPUTS), (PAPER_INPUTS, GROWTH * most)):
            views = sample.views(sample.orbit_inputs(inputs)).resized(size, size).to(device)
            gaussians = model.reconstruct(views, anchors, settings.optimisation.precision)
            with torch.no_grad():
                rendering = render(gaussians, truth.cameras, *truth.size, BACKGROUND)
                rendering = replace(rendering, colour=rendering.colour.clamp(0, 1))
                scores = picture_scores(rendering, truth, perceptual)
            used = len(gaussians) // settings.gaussians_per_token
            row = {"object": sample.key, "inputs": inputs, "max_anchors": anchors, "anchors": used}
            rows.append(row | {name: scores[name] for name in METRICS})
    return rows


# --- running ---


def run_one(
    name: str,
    params: Params,
    data: TrainingData,
    perceptual: PerceptualMetrics,
    *,
    steps: int,
    anchors: int,
    workers: int = 0,
    minutes: float | None = None,
) -> str:
    """Train and judge one ablation, going on from where it was stopped; returns what became of it, in words."""
    ablation, folder = ABLATIONS[name], data.results / "ablations" / name
    section = settings_of(ablation, params.reconstruction, steps, anchors)
    proposal, record = load_model(data.results / "proposal")
    assert isinstance(proposal, ProposalNetwork)
    network = new_network(ablation, section, data.device)
    stage = ReconstructionStage(network, section, proposal.to(data.device), _perceptual_loss(section, data.device))
    facts = data.facts(stage, ablation=name, proposal_sha256=record["sha256"])
    scores = folder / SCORES
    if scores.exists() and json.loads(scores.read_text())["facts"] == facts:
        return "kept"
    if trained(folder, facts):  # and stopped before it was judged
        network.load_state_dict(load_model(folder)[0].state_dict())
    else:
        train(stage, data.training, data.validation, folder, facts, workers=workers, minutes=minutes)
        if newest_resume_state(folder) is not None:
            return "stopped: run the command again to go on"
    rows = judge(proposal, network, data.validation, perceptual, data.device)
    about = passport(seed=section.optimisation.seed, preset=params.preset, lpips=perceptual.sha256)
    result = {"format": FORMAT, "name": name, "facts": facts, "passport": about, "rows": rows}
    write_whole(scores, json.dumps(result, indent=1) + "\n")
    return "done"


def trained(folder: Path, facts: dict[str, Any]) -> bool:
    """Whether a training of these facts has ended there; started again, it would begin anew."""
    side = folder / "checkpoint.json"
    record = json.loads(side.read_text()) if side.exists() else {}
    return {name: record.get(name) for name in facts} == facts


def _perceptual_loss(section: Reconstruction, device: torch.device) -> nn.Module | None:
    return Lpips("vgg").to(device) if section.losses.lpips > 0 else None


@dataclass(frozen=True)
class Run:
    """Train and judge ablations, one after the other; what is done is kept, what was stopped goes on."""

    names: tyro.conf.Positional[tuple[str, ...]]
    """Which; `all` for all."""
    params: str = "params.yaml"
    """The params file, whose proposal network is trained already."""
    dataset: str = "procedural"
    """Name of the folder under datasets/ to train on."""
    steps: int = 2000
    """Of each training."""
    anchors: int = 2048
    """Anchor points in training; judging tries four times as many too."""
    workers: int = 0
    """Processes that decode ahead."""
    minutes: float | None = None
    """Save and stop after so many, all runs together."""

    def __call__(self) -> None:
        names = tuple(ABLATIONS) if "all" in self.names else self.names
        unknown = [name for name in names if name not in ABLATIONS]
        if unknown or not names:
            raise BadInput("ablation_unknown", ", ".join(unknown) or "names", "no such ablation", ", ".join(ABLATIONS))
        params = load_params(self.params)
        data = TrainingData.of(params, self.dataset, datasets="datasets", cache_gib=0)
        perceptual, began = load_perceptual("auto", device=data.device), time.monotonic()
        for name in names:
            left = None if self.minutes is None else self.minutes - (time.monotonic() - began) / 60
            if left is not None and left <= 0:
                print(f"{name}: no time left")
                continue
            sizes = {"steps": self.steps, "anchors": self.anchors, "workers": self.workers, "minutes": left}
            print(f"{name}: {run_one(name, params, data, perceptual, **sizes)}")  # type: ignore[arg-type]


# --- the page ---

INTRODUCTION = """# Ablations: the paper's Tables 4 and 5, and our own choices

Written by `python -m benchmarks.ablations page`. Each row is one command, on a GPU ([training.md](../training.md)):

    python -m benchmarks.ablations run NAME --params presets/small.yaml

The paper's: 12 layers, 224 px, trained on Objaverse, judged on GSO; 4,096 to 16,384 anchor points gave 0.4 dB with RoPE and 0.2
without. Ours: the preset's reconstruction network on its trained proposal network, a short run each with one seed, judged on
validation objects.
"""


def means_of(rows: list[dict[str, Any]], metric: str, inputs: int, max_anchors: int) -> dict[str, float]:
    """The metric by object."""
    chosen = [row for row in rows if (row["inputs"], row["max_anchors"]) == (inputs, max_anchors)]
    return {row["object"]: row[metric] for row in chosen if row[metric] is not None}


def _cell(values: dict[str, float], digits: int) -> str:
    return f"{sum(values.values()) / len(values):.{digits}f}" if values else "-"


def difference(ours: dict[str, float], theirs: dict[str, float], digits: int = 2) -> str:
    """The mean of ours - theirs over the objects, with its 95 % interval where there are enough of them."""
    found = paired(ours, theirs)
    if found is None:
        return "-"
    interval = "" if found["low"] is None else f" [{found['low']:+.{digits}f}, {found['high']:+.{digits}f}]"
    return f"{found['mean']:+.{digits}f}{interval}"


def _paper(values: tuple[float, float, float] | None) -> list[str]:
    """The paper's difference to its full model in dB, and what it gives."""
    if not values:
        return [""] * 4
    full = ABLATIONS["full"].paper
    assert full is not None
    return [f"{values[0] - full[0]:+.2f}", f"{values[0]:.2f}", f"{values[1]:.3f}", f"{values[2]:.3f}"]


def page(results: dict[str, dict[str, Any]]) -> str:
    """The page of these results by name; of none, what there will be.

    Raises:
        BadInput: `ablations_differ` where results are of other sizes, data or seeds than `full`'s.
    """
    lines = [INTRODUCTION]
    if "full" not in results:
        lines += ["**Not run yet**: the runs need a GPU. The paper's numbers, for comparison:", ""]
        heads = ["ablation", "what", "difference, paper", "PSNR, paper", "SSIM, paper", "LPIPS, paper"]
        rows = [[f"`{name}`", ablation.what, *_paper(ablation.paper)] for name, ablation in ABLATIONS.items()]
        return "\n".join([*lines, *as_markdown(heads, rows), ""])
    full = results["full"]
    _require_alike(results)
    o = full["facts"]["params"]["optimisation"]
    most = full["facts"]["params"]["max_anchors"]
    about = full["passport"]
    objects = len({row["object"] for row in full["rows"]})
    lines += [
        f"Preset `{about['preset']}`, {o['steps']:,} steps at {o['image_size']} px, {most:,} anchor points, {objects} objects, "
        f"{about['device']}, commit `{str(about['commit'])[:10]}`, seed {about['seed']}.",
        "",
        f"At {PAPER_INPUTS} inputs, whole frame; the difference to `full` is paired over objects, with its 95 % interval:",
        "",
    ]
    heads = ["ablation", "what", "PSNR", "difference", "SSIM", "LPIPS VGG"]
    heads += ["difference, paper", "PSNR, paper", "SSIM, paper", "LPIPS, paper"]
    rows = []
    for name, ablation in ABLATIONS.items():
        if name not in results:
            rows.append([f"`{name}`", ablation.what, "not run yet", "", "", "", *_paper(ablation.paper)])
            continue
        found = {m: means_of(results[name]["rows"], m, PAPER_INPUTS, most) for m in METRICS}
        ours = [_cell(found["psnr"], 2), difference(found["psnr"], means_of(full["rows"], "psnr", PAPER_INPUTS, most))]
        ours += [_cell(found["ssim"], 3), _cell(found["lpips_vgg"], 3)]
        rows.append([f"`{name}`", ablation.what, *ours, *_paper(ablation.paper)])
    lines += [*as_markdown(heads, rows), "", "PSNR by number of inputs:", ""]
    heads = ["ablation", *(f"{n} inputs" for n in INPUTS), *(f"{n}, paper" for n in (4, 8, 12))]
    rows = []
    for name in ABLATIONS:
        if name in results:
            ours = [_cell(means_of(results[name]["rows"], "psnr", n, most), 2) for n in INPUTS]
            theirs = ABLATIONS[name].paper_by_inputs
            rows.append([f"`{name}`", *ours, *(f"{theirs[n]:.2f}" if theirs else "" for n in (4, 8, 12))])
    lines += [*as_markdown(heads, rows), ""]
    lines += [f"PSNR gained by {GROWTH} times the anchor points at test time, {PAPER_INPUTS} inputs:", ""]
    rows = []
    for name in (name for name in ABLATIONS if name in results):
        grown, trained = (means_of(results[name]["rows"], "psnr", PAPER_INPUTS, n) for n in (GROWTH * most, most))
        theirs_growth = ABLATIONS[name].paper_growth
        rows.append([f"`{name}`", difference(grown, trained), "" if theirs_growth is None else f"+{theirs_growth:.1f}"])
    return "\n".join([*lines, *as_markdown(["ablation", "gain", "paper"], rows), ""])


def _require_alike(results: dict[str, dict[str, Any]]) -> None:
    """Raise `BadInput` unless all are of one preset, device, data and size."""

    def sizes(result: dict[str, Any]) -> Any:
        facts = {name: value for name, value in result["facts"].items() if name not in ("params", "ablation")}
        o = result["facts"]["params"]["optimisation"]
        known = {name: o[name] for name in ("steps", "batch", "accumulate", "image_size", "seed")}
        return facts, known, result["facts"]["params"]["max_anchors"], result["passport"]["preset"]

    other = [name for name, result in results.items() if sizes(result) != sizes(results["full"])]
    if other:
        detail = "of another preset, data, proposal network, size or seed than `full`"
        raise BadInput("ablations_differ", ", ".join(other), detail, "run them again with the same options")


def write_page(page: Callable[[dict[str, dict[str, Any]]], str], results: dict[str, Any] | None, out: Path) -> None:
    """Write the page of these results, and them beside it as JSON; of None, the page of what lies there."""
    collected = out.with_suffix(".json")
    if results is None:
        text = page(json.loads(collected.read_text()) if collected.exists() else {})
    else:
        text = page(results)
        write_whole(collected, json.dumps(results, indent=1) + "\n")
    write_whole(out, text)
    print(out)


@dataclass(frozen=True)
class Page:
    """Collect the scores of a folder, if one is named, and write the page."""

    results: Path | None = None
    """`results/<preset>/ablations`; without it the page is written from what was collected before."""
    out: Path = Path("docs/results/ablations.md")
    """The page; what was collected lies beside it as JSON."""

    def __call__(self) -> None:
        results = None
        if self.results is not None:
            found = [json.loads(path.read_text()) for path in sorted(self.results.glob(f"*/{SCORES}"))]
            if not found:
                raise BadInput("ablations_missing", self.results, f"no */{SCORES} there", "run ablations first")
            results = {name: one for name in ABLATIONS for one in found if one["name"] == name}
        write_page(page, results, self.out)


def main() -> None:
    command: Callable[[], None] = tyro.cli(
        Annotated[Run, tyro.conf.subcommand("run")] | Annotated[Page, tyro.conf.subcommand("page")]
    )
    command()


if __name__ == "__main__":
    sys.exit(run_training(main))
