"""What each kind of variety of the procedural objects gives on real scans: trainings that leave one of them out.

In: a params file whose `procedural.variety` has several kinds, and shards of the ten scans at its preset. Out: for each run a
preset of its own, `<preset>-<run>`, with what its stages leave, and `results/<preset>-<run>/variety.json`; from several of those
`docs/results/variety.json` and a page. Convention: a run draws its objects straight into shards and trains both stages with the
same seed, steps and sizes; it is judged on the validation scans, never on the test scans, with the params' numbers of inputs, by
the voxels that its proposal network finds and by the pictures of the Gaussians at them. The gain of a kind is what all kinds give
less what all but it give, paired over scans. Trade: short trainings at a small size, so that signs and order count, not decibels;
what has run is kept, what was stopped goes on. Verified by a run at a tiny size and by planted scores.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
import yaml
from tqdm import tqdm

from benchmarks.ablations import difference, trained, write_page
from benchmarks.scores import BACKGROUND, picture_scores
from benchmarks.splits import SCANS, SCANS_VAL, split_list
from benchmarks.tables import as_markdown
from geolrm.config import Params, load_params
from geolrm.data.loader import Sample, ShardDataset
from geolrm.data.places import hash_file
from geolrm.failures import BadInput, run_command
from geolrm.files import write_whole
from geolrm.metrics.perceptual import PerceptualMetrics, load_perceptual
from geolrm.model.execution import in_precision
from geolrm.model.geolrm import GeoLRM
from geolrm.passport import passport
from geolrm.rendering import render
from geolrm.training.checkpoint import load_geolrm, load_model
from geolrm.training.ranks import own_device
from geolrm.training.stages import occupancy_scores

FORMAT = "geolrm-variety-1"
ALL, NONE, WITHOUT = "all", "none", "without_"
SCORES = "variety.json"
SHOWN = ("psnr", "psnr_foreground", "iou", "recall")
DIGITS = {"psnr": 2, "psnr_foreground": 2, "iou": 3, "recall": 3}


def runs_of(params: Params) -> dict[str, dict[str, float]]:
    """The shares of variety of each run, by its name: all kinds, all but one, none.

    Raises:
        BadInput: `variety_missing` where the params ask for none.
    """
    shares = {kind: share for kind, share in params.procedural.variety.model_dump().items() if share > 0}
    if not shares:
        detail = "no kind of variety has a share"
        raise BadInput("variety_missing", "procedural.variety", detail, "--params presets/variety.yaml")
    without = {f"{WITHOUT}{kind}": {k: s for k, s in shares.items() if k != kind} for kind in shares}
    return {ALL: shares, **without, NONE: {}}


def params_of(params: Params, run: str) -> dict[str, Any]:
    """The params of one run, as a file holds them."""
    data = params.model_dump(mode="json")
    data["preset"] = f"{params.preset}-{run}"
    data["procedural"]["variety"] = runs_of(params)[run]
    return data


def validation_scans(datasets: Path, preset: str) -> tuple[list[Sample], dict[str, str]]:
    """The scans to choose a recipe by, and the hash of the catalog of each data set that they lie in.

    Raises:
        BadInput: as `ShardDataset`; `scans_incomplete` where some of the listed scans are not there.
    """
    scans, hashes = [], {}
    for name in SCANS:
        folder = datasets / name / preset
        data, wanted = ShardDataset(folder, "test"), split_list(name, SCANS_VAL) or []
        if missing := [key for key in wanted if key not in data.keys]:
            detail = f"these validation scans are not among its objects: {', '.join(missing)}"
            raise BadInput("scans_incomplete", folder, detail, "render and shard all of them: docs/real-scans.md")
        scans += [data.sample(key) for key in wanted]
        hashes[name] = hash_file(folder / "catalog.parquet")
    return scans, hashes


def judge(
    model: GeoLRM, scans: Sequence[Sample], params: Params, perceptual: PerceptualMetrics, device: torch.device
) -> list[dict[str, Any]]:
    """A row for each scan and number of inputs: voxels found against the label, pictures against the scan's test views."""
    size, precision = params.sweep.image_size, params.reconstruction.optimisation.precision
    rows = []
    for sample in tqdm(scans, desc="judge", unit="scan"):
        truth = sample.test_views().resized(size, size).to(device)
        for inputs in params.sweep.views:
            views = sample.views(sample.orbit_inputs(inputs)).resized(size, size).to(device)
            with torch.no_grad(), in_precision(precision, device):
                found = model.proposal(views.composited(BACKGROUND)[None], views.cameras[None])[0] > 0
            gaussians = model.reconstruct(views, params.sweep.max_anchors, precision)
            with torch.no_grad():
                rendering = render(gaussians, truth.cameras, *truth.size, BACKGROUND)
                rendering = replace(rendering, colour=rendering.colour.clamp(0, 1))
                scores = picture_scores(rendering, truth, perceptual)
            rows.append(
                {"object": sample.key, "inputs": inputs, **occupancy_scores(found.cpu(), sample.occupancy), **scores}
            )
    return rows


@dataclass(frozen=True)
class Run:
    """Draw, train and judge with all kinds, without each, and with none; what is done is kept, what was stopped goes on."""

    names: tyro.conf.Positional[tuple[str, ...]]
    """Which: all, none, without_KIND; `every` for every one."""
    params: Path = Path("presets/variety.yaml")
    """The params file; shards of the scans lie under its preset (docs/real-scans.md)."""
    draw: Literal["cpu", "cuda"] = "cpu"
    """Where objects are traced."""
    workers: int = 0
    """Processes that decode ahead of training."""

    def __call__(self) -> None:
        params = load_params(self.params)
        known = runs_of(params)
        names = tuple(known) if "every" in self.names else self.names
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise BadInput("variety_unknown", ", ".join(unknown) or "names", "no such run", ", ".join(known))
        scans, catalogs = validation_scans(Path("datasets"), params.preset)
        for name in names:
            print(f"== {name}", flush=True)
            self._one(params, name, scans, catalogs)

    def _one(self, params: Params, name: str, scans: list[Sample], catalogs: dict[str, str]) -> None:
        settings = params_of(params, name)
        home = Path("results") / settings["preset"]
        home.mkdir(parents=True, exist_ok=True)
        own = home / "params.yaml"
        write_whole(own, yaml.safe_dump(settings, sort_keys=False))
        _stage("pipelines.shard", "--params", own, "--dataset", "procedural", "--draw", self.draw)
        facts: dict[str, Any] = {
            "catalog_sha256": hash_file(Path("datasets/procedural") / settings["preset"] / "catalog.parquet")
        }
        for stage in ("proposal", "reconstruction"):
            if not trained(home / stage, facts | {"params": settings[stage]}):
                _stage(f"pipelines.train_{stage}", "--params", own, "--workers", self.workers)
            facts["proposal_sha256"] = load_model(home / "proposal")[1]["sha256"]
        model, records = load_geolrm(home)
        facts = {"params": settings, "scans": catalogs, "weights": {s: r["sha256"] for s, r in records.items()}}
        scores = home / SCORES
        if scores.exists() and json.loads(scores.read_text())["facts"] == facts:
            return
        device = own_device()
        perceptual = load_perceptual("auto", device=device)
        rows = judge(model.to(device).eval(), scans, load_params(own), perceptual, device)
        about = passport(seed=params.procedural.seed, preset=params.preset, lpips=perceptual.sha256)
        result = {"format": FORMAT, "name": name, "facts": facts, "passport": about, "rows": rows}
        write_whole(scores, json.dumps(result, indent=1) + "\n")


def _stage(module: str, *arguments: object) -> None:
    """Run a stage script in a process of its own. Raises BadInput `stage_failed` where it does not end well."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    if (status := subprocess.run(command, check=False).returncode) != 0:
        raise BadInput("stage_failed", " ".join(command[1:]), f"exit status {status}", "see what it said above")


# --- the page ---

INTRODUCTION = """# What each kind of variety gives on real scans

Written by `python -m benchmarks.variety page` from result files. Each run draws its own objects, trains both networks from
nothing and is judged on the five validation scans, which choose the recipe; the test scans have no part in it:

    python -m benchmarks.variety run every              # on a GPU: --draw cuda --workers 8
    python -m benchmarks.variety page --results results

The scans come first, at the same preset: the commands of [real-scans.md](../real-scans.md) with `--params presets/variety.yaml`.
Kinds: [training.md](../training.md). A gain is `all` less the run without the kind, in the mean over scans and numbers of inputs,
with its 95 % interval over the scans.
"""


def page(results: dict[str, dict[str, Any]]) -> str:
    """The page of these results by name.

    Raises:
        BadInput: `variety_differs` where results are of other scans, seeds or sizes than those of `all`.
    """
    if ALL not in results:
        return f"{INTRODUCTION}\n**Not run yet.**\n"
    full = results[ALL]
    if other := [name for name, one in results.items() if _sizes(one) != _sizes(full)]:
        raise BadInput(
            "variety_differs", ", ".join(other), f"not of the sizes, scans or seed of `{ALL}`", "run them again"
        )
    about, settings = full["passport"], full["facts"]["params"]
    steps = [settings[stage]["optimisation"]["steps"] for stage in ("proposal", "reconstruction")]
    counts = sorted({row["inputs"] for row in full["rows"]})
    drawn = settings["procedural"]
    lines = [
        INTRODUCTION,
        f"{drawn['train']} objects at {drawn['resolution']} px, {steps[0]} and {steps[1]} steps, {about['device']}, "
        f"commit `{str(about['commit'])[:10]}`, seed {about['seed']}; whole frame.",
        "",
    ]
    heads = [
        "run",
        *(f"PSNR, {n} inputs" for n in counts),
        "foreground",
        "IoU",
        "recall",
        "gain, dB",
        "gain, foreground",
        "gain, IoU",
    ]
    rows = []
    for name, one in results.items():
        by_inputs = [_mean([row["psnr"] for row in one["rows"] if row["inputs"] == n]) for n in counts]
        means = [f"{_mean([row[m] for row in one['rows']]):.{DIGITS[m]}f}" for m in SHOWN[1:]]
        gains = [difference(_by_object(full, m), _by_object(one, m), DIGITS[m]) for m in SHOWN[:3]]
        if name == ALL:
            gains = [""] * len(gains)
        rows.append([f"`{name}`", *(f"{value:.2f}" for value in by_inputs), *means, *gains])
    return "\n".join([*lines, *as_markdown(heads, rows), ""])


def _sizes(result: dict[str, Any]) -> Any:
    settings = result["facts"]["params"]
    drawn = {name: value for name, value in settings["procedural"].items() if name != "variety"}
    return (
        drawn,
        {name: settings[name] for name in ("proposal", "reconstruction", "shard", "sweep")},
        result["facts"]["scans"],
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _by_object(result: dict[str, Any], metric: str) -> dict[str, float]:
    keys = dict.fromkeys(row["object"] for row in result["rows"])
    return {key: _mean([row[metric] for row in result["rows"] if row["object"] == key]) for key in keys}


@dataclass(frozen=True)
class Page:
    """Collect the scores below a folder, if one is named, and write the page."""

    results: Path | None = None
    """The folder of the results of all presets; without it the page is written from what was collected before."""
    preset: str = "variety"
    """Whose runs."""
    out: Path = Path("docs/results/variety.md")
    """The page; what was collected lies beside it as JSON."""

    def __call__(self) -> None:
        results = None
        if self.results is not None:
            found = [json.loads(path.read_text()) for path in sorted(self.results.glob(f"{self.preset}-*/{SCORES}"))]
            if not found:
                raise BadInput("variety_missing", self.results, f"no {self.preset}-*/{SCORES} there", "run some first")
            ordered = sorted(found, key=lambda one: (one["name"] != ALL, one["name"] == NONE, one["name"]))
            results = {one["name"]: one for one in ordered}
        write_page(page, results, self.out)


def main() -> None:
    command: Run | Page = tyro.cli(
        Annotated[Run, tyro.conf.subcommand("run")] | Annotated[Page, tyro.conf.subcommand("page")]
    )
    command()


if __name__ == "__main__":
    sys.exit(run_command(main))
