"""The page of a trained preset: recipe, curves, and what the model reaches on scans and made-up objects that it never saw.

In: `results/<preset>`, that is what both stages left (`checkpoint.json`, `steps.jsonl`, `pictures/`), the rows of its sweeps over
`gso`, `hope` and `procedural`, and `occupancy.jsonl` beside them. Out: `docs/results/<preset>.json` with all numbers, the page
`<preset>.md` and its pictures beside it, and the numbers of the card of the weights. Convention: the five test scans and all ten
(`benchmarks.splits`) are groups over both data sets, made-up objects one of their own; every claim has a line with the mean, the
worst object, and a verdict that the numbers decide; a difference is paired over objects, its interval is 95 %. Trade: page and
card are written from the JSON alone, so that both can be checked without the results; the pictures need these. Verified on
made-up results whose claims are known to hold or to fail, and by the committed page.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
import yaml

from benchmarks import charts
from benchmarks.bootstrap import estimate, paired
from benchmarks.comparison import NONE, PAPER_SWEEP, shown
from benchmarks.estimates import MAIN, METRICS, passport, summarise_group, summarise_training
from benchmarks.occupancy import FILE as OCCUPANCY
from benchmarks.occupancy import SCORES
from benchmarks.splits import DATASETS, SCANS, SCANS_TEST, SCANS_VAL, split_list
from benchmarks.tables import as_markdown, spliced
from geolrm import pretrained
from geolrm.failures import BadInput, run_command
from geolrm.files import sha256_of, whole_file, write_whole
from geolrm.tracking import STAGES, Record, read_records

FORMAT = "geolrm-trained-1"
COUNTS = (4, 6, 8, 12, 16, 20)
STEPS = ((4, 8), (8, 12), (12, 20))  # of input views, over which quality is to rise
TEST, ALL, MADE_UP = "test scans", "all ten scans", "procedural objects"
MADE_UP_OBJECTS = 64
RIVALS = ("gaussian_fitting", "visual_hull")
OUR_OWN = ("psnr", "psnr_foreground", "lpips_alex", "lpips_vgg", "fscore_0.1", "mask_iou", "latency_s")
PUBLISHED = f"{MAIN}_small"
LEAST = {4: (24.5, 27.0), 8: (27.0, 29.0), 20: (29.0, 31.0)}  # views -> PSNR to reach, PSNR to aim for
MARGINS = {4: 3.0, 8: 2.0}  # views -> dB above Gaussians that are fitted to each object
FSCORE, FSCORE_VIEWS = 0.85, 8
KEPT_PICTURES = 5
TILE = 128  # pixels


# --- numbers ---


def collect(results: Path, datasets: Path = DATASETS) -> Record:
    """All numbers of the page.

    Raises:
        BadInput: `training_missing`, `no_results`; `scans_incomplete` where some of the scans of a list have no rows.
    """
    training = {stage: collect_stage(results / stage) for stage in STAGES}
    swept: list[Record] = []
    voxels: list[Record] = []
    for name in (*SCANS, "procedural"):
        folder = results / "sweep" / name
        for file, found in (("rows.jsonl", swept), (OCCUPANCY, voxels)):
            found += read_records(folder / file) if (folder / file).exists() else []
    rows = [row for row in swept if row["views"] in COUNTS and row["inputs"] == "orbit"]
    if not any(row["method"] == MAIN for row in rows):
        where = results / "sweep" / "*" / "rows.jsonl"
        raise BadInput("no_results", where, f"no rows of `{MAIN}` at these view counts", "sweep first: see the page")
    groups = {name: collect_group(found) for name, found in grouped(rows, datasets).items()}
    occupancy = {name: collect_occupancy(found) for name, found in grouped(voxels, datasets).items()}
    return {
        **{"format": FORMAT, "preset": results.name, "training": training, "groups": groups, "occupancy": occupancy},
        **{"float16": float16_cost(rows), "passport": passport(rows)},
    }


def collect_stage(folder: Path) -> Record:
    """One training stage: the record of its checkpoint, what it cost, its validations."""
    side, log = folder / "checkpoint.json", folder / "steps.jsonl"
    for file in (side, log):
        if not file.exists():
            raise BadInput("training_missing", file, "no such file", "train both stages to their end first")
    record, steps = json.loads(side.read_text()), read_records(log)
    summary = summarise_training(steps)
    rates = [step["objects_per_s"] for step in steps if "objects_per_s" in step]
    summary["objects_per_s"] = sum(rates) / len(rates) if rates else None
    judged = [{n: v for n, v in step.items() if n == "step" or n.startswith("validation/")} for step in steps]
    record.pop("params", None)  # the configuration again
    return {"checkpoint": record, "summary": summary, "validation": [line for line in judged if len(line) > 1]}


def grouped(records: list[Record], datasets: Path = DATASETS) -> dict[str, list[Record]]:
    """Rows of the test scans, of all ten, and of made-up objects, as far as there are any. Raises `BadInput`."""
    lists = {name: split_scans(name, datasets) for name in (SCANS_VAL, SCANS_TEST)}
    found = {}
    for name, wanted in ((TEST, lists[SCANS_TEST]), (ALL, lists[SCANS_VAL] | lists[SCANS_TEST])):
        own = [record for record in records if (record["dataset"], record["object"]) in wanted]
        absent = wanted - {(record["dataset"], record["object"]) for record in own}
        if own and absent:
            detail = f"{len(absent)} of {len(wanted)} have no rows, {sorted(absent)[0][1]} for one"
            remedy = f"sweep all ten: --dataset {' '.join(SCANS)} --split test"
            raise BadInput("scans_incomplete", name, detail, remedy)
        if own:
            found[name] = own
    made_up = [record for record in records if record["dataset"] == "procedural"]
    return found | ({MADE_UP: made_up} if made_up else {})


def split_scans(name: str, datasets: Path = DATASETS) -> set[tuple[str, str]]:
    """(data set, object) of a list of scans."""
    return {(dataset, key) for dataset in SCANS for key in split_list(dataset, name, datasets) or []}


def collect_group(rows: list[Record]) -> Record:
    """Means and differences of one group of objects, gains from one view count to the next, and each object's values."""
    whole = summarise_group(rows, MAIN)
    methods = {
        method: {v: {"metrics": _only(cell["metrics"]), "status": cell["status"]} for v, cell in cells.items()}
        for method, cells in whole["methods"].items()
    }
    differences = {m: {v: _only(found) for v, found in by.items()} for m, by in whole["differences"].items()}
    objects = {
        method: {
            metric: {str(v): by_object(rows, method, v, metric) for v in whole["views"]}
            for metric in ("psnr", "fscore_0.1")
        }
        for method in (MAIN, *RIVALS)
        if method in methods
    }
    gains = {
        method: {
            f"{low} {high}": found
            for low, high in STEPS
            if (found := paired(by_object(rows, method, high, "psnr"), by_object(rows, method, low, "psnr")))
        }
        for method in methods
    }
    facts = {name: whole[name] for name in ("objects", "views", "status", "failures")}
    return facts | {"methods": methods, "differences": differences, "gains": gains, "by_object": objects}


def _only(metrics: Record) -> Record:
    kept = {name: metrics[name] for name in OUR_OWN if name in metrics}
    return {name: {f: v for f, v in point.items() if f != "common"} for name, point in kept.items()}


def by_object(rows: list[Record], method: str, views: int, metric: str) -> dict[str, float]:
    """The metric of each object that has it."""
    chosen = [row for row in rows if row["method"] == method and row["views"] == views]
    return {row["object"]: row[metric] for row in chosen if row[metric] is not None}


def collect_occupancy(records: list[Record]) -> Record:
    """View count -> score -> estimate, over objects."""
    found: dict[str, Record] = {}
    for count in sorted({record["views"] for record in records} & set(COUNTS)):
        own = [record for record in records if record["views"] == count]
        found[str(count)] = {score: estimate([record[score] for record in own]) for score in SCORES}
    return found


def float16_cost(rows: list[Record]) -> Record | None:
    """The largest difference in PSNR that float16 weights made in any row, None where they were not swept beside."""
    values: dict[tuple[str, str, int], dict[str, float]] = {}
    for row in rows:
        if row["method"] in (MAIN, PUBLISHED) and row["psnr"] is not None:
            values.setdefault((row["dataset"], row["object"], row["views"]), {})[row["method"]] = row["psnr"]
    apart = {key: abs(found[MAIN] - found[PUBLISHED]) for key, found in values.items() if len(found) == 2}
    if not apart:
        return None
    worst = max(apart, key=lambda key: apart[key])
    return {"rows": len(apart), "largest_db": apart[worst], "object": worst[1], "views": worst[2]}


# --- claims ---


def claims(groups: Record) -> list[list[str]]:
    """A line per claim of the project: the claim, the mean, the worst object, the verdict."""
    lines = []
    for name in (group for group in (TEST, ALL) if group in groups):
        group = groups[name]
        for views, (least, aim) in LEAST.items():
            text = f"{name}, {views} views: PSNR of at least {least:g} dB (aim: {aim:g})"
            lines.append(_claim(text, "psnr", _mean_of(group, views, "psnr"), _own(group, views, "psnr"), least, aim))
        for rival, views, margin in [
            *((RIVALS[0], views, margin) for views, margin in MARGINS.items()),
            *((RIVALS[1], views, 0.0) for views in COUNTS),
        ]:
            mean = group["differences"].get(rival, {}).get(str(views), {}).get("psnr")
            text = f"{name}, {views} views: PSNR above `{rival}`" + (f" by at least {margin:g} dB" if margin else "")
            lines.append(_claim(text, "psnr", mean, _above(group, rival, views), margin, sign="+"))
        text = f"{name}, {FSCORE_VIEWS} views: F-score at 0.1 of at least {FSCORE:g}"
        mean = _mean_of(group, FSCORE_VIEWS, "fscore_0.1")
        lines.append(_claim(text, "fscore_0.1", mean, _own(group, FSCORE_VIEWS, "fscore_0.1"), FSCORE))
    for low, high in STEPS if MADE_UP in groups else ():
        gain = groups[MADE_UP]["gains"].get(MAIN, {}).get(f"{low} {high}")
        enough = len(groups[MADE_UP]["objects"]) == MADE_UP_OBJECTS
        text = f"{len(groups[MADE_UP]['objects'])} {MADE_UP}: PSNR rises from {low} to {high} views"
        rises = gain is not None and gain["low"] is not None and gain["low"] > 0
        verdict = ("holds" if rises else "fails") if gain is not None else "not measured"
        verdict += "" if enough else f", on {len(groups[MADE_UP]['objects'])} objects of {MADE_UP_OBJECTS}"
        lines.append([text, shown("psnr", gain, "+"), NONE, verdict])
    return lines


def _mean_of(group: Record, views: int, metric: str) -> Record | None:
    found: Record | None = group["methods"].get(MAIN, {}).get(str(views), {}).get("metrics", {}).get(metric)
    return found


def _own(group: Record, views: int, metric: str) -> dict[str, float]:
    found: dict[str, float] = group["by_object"].get(MAIN, {}).get(metric, {}).get(str(views), {})
    return found


def _above(group: Record, rival: str, views: int) -> dict[str, float]:
    ours, theirs = (group["by_object"].get(m, {}).get("psnr", {}).get(str(views), {}) for m in (MAIN, rival))
    return {key: ours[key] - theirs[key] for key in ours if key in theirs}


def _claim(
    text: str,
    metric: str,
    mean: Record | None,
    each: dict[str, float],
    least: float,
    aim: float | None = None,
    sign: str = "",
) -> list[str]:
    if mean is None or not each:
        return [text, NONE, NONE, "not measured"]
    worst = min(each, key=lambda key: each[key])
    below = sum(value < least for value in each.values())
    if mean["mean"] < least:
        verdict = "missed"
    else:
        verdict = "aim reached" if aim is not None and mean["mean"] >= aim else "held"
        verdict += (
            f" in the mean, missed by {below} of {len(each)} objects" if below else " by the mean and by each object"
        )
    return [text, shown(metric, mean, sign), f"{each[worst]:{sign}.{METRICS[metric].digits}f} ({worst})", verdict]


# --- page ---

NOT_YET = "Not trained yet: `python -m benchmarks.trained` fills this part from result files."
INTRODUCTION = """# The preset {preset}: trained from nothing, judged on scans that it never saw

Written by `python -m benchmarks.trained --preset {preset}` from what training and sweeps left; no number is typed. The weights
come with the package ([their card](../../geolrm/pretrained/{preset}.md)): `geolrm.load_pretrained("{preset}")`. What is measured,
and how: [protocol.md](../protocol.md), at the smaller sizes of the preset; inputs are pictures and cameras alone.
"""
RECIPE = """## Recipe

    python -m pipelines.shard --params {params} --dataset procedural --draw cuda --workers 15
    python -m pipelines.train_proposal --params {params} --workers 8
    python -m pipelines.train_reconstruction --params {params} --workers 8

In pieces: `--minutes 8`, and `python -m pipelines.carry` between machines ([training.md](../training.md)). Then the objects to
judge by, beside {made_up} made-up ones the scans of [real-scans.md](../real-scans.md):

    python -m pipelines.render_meshes --params {params} --layout gso_zip --input SCANS/gso
    python -m pipelines.render_meshes --params {params} --layout raw_scans --dataset hope --input SCANS/hope/raw_scans
    python -m pipelines.render_meshes --params {params} --layout folder --dataset hope --input SCANS/folder
    python -m pipelines.shard --params {params} --dataset gso      # likewise hope

The weights, the sweep, and everything on this page; the last one shows all of it in MLflow, curves and system metrics too:

    geolrm checkpoint publish results/{preset} {preset}
    python benchmarks/sweep_views.py --params {params} --dataset gso hope procedural --split test --objects {made_up} \\
        --views {counts} --methods {methods}
    python -m benchmarks.occupancy --params {params} --dataset gso hope procedural --objects {made_up} --views {counts}
    python -m benchmarks.trained --preset {preset} --results results/{preset}
    python -m benchmarks.sheet --params {params} --dataset gso --out docs/results/{preset}-gso.png \\
        --methods geolrm gaussian_fitting visual_hull
    python -m pipelines.report --params {params}

The scans are parted by the order of sha256 of their names: {val} were there to choose a recipe by, {test} were not looked at
before the end (`datasets/gso/scans-test.txt`, `datasets/hope/scans-test.txt`).
"""


def page(preset: str, found: Record | None, beside: Path) -> str:
    """The page's text; `beside` is its folder, whose pictures it shows as far as they are there."""
    lines = [INTRODUCTION.format(preset=preset)]
    if found is None:
        return "\n".join([*lines, NOT_YET, "", _recipe(preset)])
    groups, training = found["groups"], found["training"]
    lines += ["## Claims", "", "Whole frame, camera radius 2.0; an interval in brackets is 95 %.", ""]
    lines += [*as_markdown(["claim", "mean", "worst object", "verdict"], claims(groups)), ""]
    lines += ["## By number of input views", ""]
    paper = ", ".join(f"{values[0]:.2f} from {views}" for views, values in PAPER_SWEEP["GeoLRM"].items())
    lines += [f"The paper has {paper} views (dB, other objects, its own protocol and a larger model).", ""]
    lines += [*_picture(f"{preset}-views.svg", "Quality by number of input views", beside)]
    for name, group in groups.items():
        lines += [f"### {len(group['objects'])} {name}" if name == MADE_UP else f"### {name.capitalize()}", ""]
        lines += _group_tables(group)
        if name in found["occupancy"]:
            lines += ["Occupied voxels of the proposal network against the label, which holds what all views show:", ""]
            lines += _occupancy_table(found["occupancy"][name])
    lines += _picture(f"{preset}-gso.png", "Scans of Google Scanned Objects: inputs, truth, renderings", beside)
    lines += [_recipe(preset), "## Training", "", *_training_tables(training)]
    lines += _picture(f"{preset}-training.svg", "Loss, validation and seconds a step, both stages", beside)
    for stage in STAGES:
        about = f"Validation object of the {stage} stage: truth above, then predictions over training"
        lines += _picture(f"{preset}-{stage}.png", about, beside)
    lines += ["## Settings", "", "As the checkpoints carry them:", "", "```yaml"]
    settings = {stage: training[stage]["checkpoint"]["config"] for stage in STAGES}
    lines += [yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=120).strip(), "```", ""]
    return "\n".join(lines)


def _recipe(preset: str) -> str:
    lists = {name: ", ".join(key for _, key in sorted(split_scans(name))) for name in (SCANS_VAL, SCANS_TEST)}
    return RECIPE.format(
        **{"preset": preset, "params": f"presets/{preset}.yaml", "made_up": MADE_UP_OBJECTS},
        **{"counts": " ".join(map(str, COUNTS)), "methods": " ".join((MAIN, PUBLISHED, *RIVALS, "white"))},
        **{"val": lists[SCANS_VAL], "test": lists[SCANS_TEST]},
    )


def _picture(name: str, about: str, beside: Path) -> list[str]:
    return [f"![{about}]({name})", ""] if (beside / name).exists() else []


def _group_tables(group: Record) -> list[str]:
    counts = [str(views) for views in group["views"]]
    heads = [f"{views} views" for views in counts]
    lines = ["PSNR (dB):", ""]
    cells = {
        m: [shown("psnr", by.get(v, {"metrics": {}})["metrics"].get("psnr")) for v in counts]
        for m, by in group["methods"].items()
    }
    lines += [*as_markdown(["method", *heads], [[f"`{m}`", *own] for m, own in cells.items()]), ""]
    rows = []
    for metric in OUR_OWN[1:]:
        points = [group["methods"].get(MAIN, {}).get(v, {"metrics": {}})["metrics"].get(metric) for v in counts]
        if any(points):
            rows.append([METRICS[metric].label, *(shown(metric, point) for point in points)])
    lines += [f"`{MAIN}`, other metrics:", "", *as_markdown(["metric", *heads], rows), ""]
    rows = []
    for rival in RIVALS:
        by = group["differences"].get(rival, {})
        for metric in ("psnr", "psnr_foreground"):
            points = [by.get(v, {}).get(metric) for v in counts]
            if any(points):
                about = f"`{MAIN}` minus `{rival}`, {METRICS[metric].label}"
                rows.append([about, *(shown(metric, point, "+") for point in points)])
    if rows:
        lines += ["Paired over objects:", "", *as_markdown(["difference", *heads], rows), ""]
    rows = [
        [f"`{method}`", *(shown("psnr", gains.get(f"{low} {high}"), "+") for low, high in STEPS)]
        for method, gains in group["gains"].items()
    ]
    steps = [f"{low} to {high} views" for low, high in STEPS]
    lines += ["PSNR gained by more views, paired over objects (dB):", "", *as_markdown(["method", *steps], rows), ""]
    if len(group["objects"]) <= 10:
        own = group["by_object"][MAIN]["psnr"]
        rows = [[key, *(f"{own[v][key]:.2f}" if key in own[v] else NONE for v in counts)] for key in group["objects"]]
        lines += [f"`{MAIN}`, PSNR of each object (dB):", "", *as_markdown(["object", *heads], rows), ""]
    for failure in group["failures"]:
        lines += [f"- `{failure['method']}`, {failure['object']}, {failure['views']} views: {failure['status']}"]
    lines += [""] if group["failures"] else []
    return lines


def _occupancy_table(by_views: Record) -> list[str]:
    def cell(point: Record) -> str:
        bounds = "" if point["low"] is None else f" [{point['low']:.3f}, {point['high']:.3f}]"
        return f"{point['mean']:.3f}{bounds}"

    names = {"iou": "intersection over union"}
    rows = [[names.get(score, score), *(cell(found[score]) for found in by_views.values())] for score in SCORES]
    return [*as_markdown(["score", *(f"{views} views" for views in by_views)], rows), ""]


def _training_tables(training: Record) -> list[str]:
    facts = []
    for stage in STAGES:
        checkpoint, summary = training[stage]["checkpoint"], training[stage]["summary"]
        about, rate, share = checkpoint.get("passport", {}), summary["objects_per_s"], summary["data_wait_share"]
        o = checkpoint["config"]["optimisation"]
        facts.append(
            [
                stage,
                f"{summary['steps']:,}",
                NONE if "batch" not in o else f"{o['batch'] * o['accumulate']}",
                f"{summary['seconds'] / 3600:.2f}",
                NONE if not summary["seconds"] else f"{summary['steps'] / summary['seconds']:.2f}",
                NONE if rate is None else f"{rate:.1f}",
                NONE if share is None else f"{100 * share:.2f} %",
                f"{summary['peak_memory_bytes'] / 2**30:.2f}",
                str(o.get("seed", NONE)),
                str(about.get("device", NONE)),
                f"`{str(about.get('commit', NONE))[:10]}`",
                ", ".join(f"{step:,}" for step in checkpoint.get("carried", [])) or NONE,
            ]
        )
    heads = ["stage", "steps", "objects a step", "hours in steps", "steps/s", "objects/s", "waiting for data"]
    heads += ["memory, GiB", "seed", "device", "commit", "carried to another machine after steps"]
    lines = [*as_markdown(heads, facts), ""]
    for stage in STAGES:
        judged = training[stage]["validation"]
        if judged:
            names = [name for name in judged[-1] if name != "step" and not name.startswith("validation/loss/")]
            rows = [
                [f"{line['step']:,}", *(f"{line[n]:.4g}" if n in line else NONE for n in names)]
                for line in spread(judged, KEPT_PICTURES + 1)
            ]
            heads = ["step", *(name.removeprefix("validation/") for name in names)]
            lines += [f"Validation of the {stage} stage, made-up objects:", "", *as_markdown(heads, rows), ""]
    return lines


def spread(found: list[Any], count: int) -> list[Any]:
    """At most `count` of them, evenly, the first and the last among them."""
    if len(found) <= count:
        return found
    return [found[round(i * (len(found) - 1) / (count - 1))] for i in range(count)]


# --- card ---


def card_numbers(name: str, found: Record | None, card: Path) -> str:
    """What the card of a set says between its markers.

    Raises:
        BadInput: `weights_differ` where the published weights are not those that the numbers were measured with.
    """
    folder = card.with_suffix("")
    if found is None or not (folder / STAGES[-1] / "checkpoint.json").exists():
        return NOT_YET
    networks = {stage: pretrained.describe(folder, stage) for stage in STAGES}
    rows = []
    for stage, network in networks.items():
        record = json.loads((folder / stage / "checkpoint.json").read_text())
        measured = found["training"][stage]["checkpoint"]["sha256"]
        if record["trained_sha256"] != measured:
            detail = f"made from {record['trained_sha256'][:10]}, measured was {measured[:10]}"
            raise BadInput("weights_differ", folder / stage, detail, "publish the weights again, or sweep again")
        rows.append([stage, f"{network.parameters:,}", f"{network.size:,}", f"`{network.sha256}`"])
    sizes = [
        sum(network.parameters for network in networks.values()),
        sum(network.size for network in networks.values()),
    ]
    rows.append(["both", *(f"{size:,}" for size in sizes), ""])
    lines = [*as_markdown(["network", "parameters", "bytes", "sha256"], rows), ""]
    lines += _training_line(found)
    for group_name, group in found["groups"].items():
        counts = [str(views) for views in group["views"]]
        lines += [f"PSNR on white (dB), {len(group['objects'])} {group_name}, 95 % intervals:", ""]
        table = [
            [f"`{m}`", *(shown("psnr", by.get(v, {"metrics": {}})["metrics"].get("psnr")) for v in counts)]
            for m, by in group["methods"].items()
            if m in (MAIN, *RIVALS)
        ]
        lines += [*as_markdown(["method", *(f"{v} views" for v in counts)], table), ""]
    cost = found["float16"]
    if cost is not None:
        lines += [
            f"`{MAIN}` stands for the trained weights in float32. Those here, in float16, differ from them by at most "
            f"{cost['largest_db']:.2g} dB in any of {cost['rows']} rows ({cost['object']}, {cost['views']} views).",
            "",
        ]
    lines += [f"Everything else, the recipe in full: [{name}.md](../../docs/results/{name}.md)."]
    return "\n".join(lines)


def _training_line(found: Record) -> list[str]:
    parts = []
    for stage in STAGES:
        checkpoint, summary = found["training"][stage]["checkpoint"], found["training"][stage]["summary"]
        device = checkpoint.get("passport", {}).get("device", "an unknown device")
        parts.append(f"{stage} {summary['steps']:,} steps in {summary['seconds'] / 3600:.2f} h of steps on {device}")
    return [f"Trained from nothing: {'; '.join(parts)}.", ""]


# --- pictures ---


def draw_charts(found: list[list[tuple[str, charts.Chart]]], path: Path) -> None:
    """Charts of the report as one SVG, a row of them a list; the same bytes for the same numbers."""
    try:
        import matplotlib
    except ImportError as error:
        raise BadInput("matplotlib_missing", path, "charts need it", "pip install -e '.[notebooks]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = max(map(len, found))
    with matplotlib.rc_context({"svg.hashsalt": "geolrm", "font.size": 9}):
        figure, axes = pyplot.subplots(len(found), columns, figsize=(4.6 * columns, 3.2 * len(found)), squeeze=False)
        for row, own in zip(axes, found, strict=True):
            for axis in row[len(own) :]:
                axis.set_visible(False)
            for axis, (title, chart) in zip(row, own, strict=False):
                _draw(axis, title, chart)
        figure.tight_layout()
        with whole_file(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def _draw(axis: Any, title: str, chart: charts.Chart) -> None:
    for trace in chart["data"]:
        if trace.get("fill"):
            axis.fill(trace["x"], trace["y"], color=trace["fillcolor"], linewidth=0)
            continue
        line, marked = trace["line"], "markers" in trace["mode"]
        style = {"color": line["color"], "linewidth": line["width"] / 1.5, "alpha": trace.get("opacity", 1.0)}
        dash = ":" if line.get("dash") == "dot" else "-"
        axis.plot(trace["x"], trace["y"], dash, marker="." if marked else "", label=trace["name"], **style)
    layout = chart["layout"]
    if layout.get("yaxis", {}).get("type") == "log":
        axis.set_yscale("log")
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(layout["xaxis"]["title"]["text"])
    axis.legend(fontsize=7, frameon=False)
    axis.grid(alpha=0.25)


def training_rows(results: Path) -> list[list[tuple[str, charts.Chart]]]:
    """The charts of both stages: loss, validation, seconds a step."""
    rows = []
    for stage in STAGES:
        found = charts.training_charts(read_records(results / stage / "steps.jsonl"))
        wanted = [(title, chart) for title, chart in found.items() if not title.startswith("validation loss/")]
        rows.append([(f"{stage}: {title.partition(' (')[0]}", chart) for title, chart in wanted])
    return rows


def view_rows(groups: Record) -> list[list[tuple[str, charts.Chart]]]:
    """Curves over the number of views: a row a group."""
    rows = []
    for name, group in groups.items():
        colours = charts.method_colours(list(group["methods"]), MAIN)
        shown_metrics = ("psnr", "psnr_foreground", "fscore_0.1")
        made = [(metric, charts.view_curves(group, metric, colours, MAIN)) for metric in shown_metrics]
        rows.append([(f"{name}: {METRICS[metric].label}", chart) for metric, chart in made if chart])
    return rows


def picture_strip(folder: Path, path: Path, grid_rows: int) -> bool:
    """The validation pictures of a training over one another: truth, then the prediction after ever more steps.

    Args:
        folder: `pictures/` of a stage; each picture has `grid_rows` rows, the truth in the last but one, the prediction in the
            last.
        path: the PNG to write.

    Returns:
        Whether there was anything to show.
    """
    from PIL import Image

    files = spread(sorted(folder.glob("step-*.png")), KEPT_PICTURES)
    if not files:
        return False
    strips = []
    for index, file in enumerate(files):
        with Image.open(file) as whole:
            height = whole.height // grid_rows
            width = min(whole.width, round(whole.width * TILE / height))
            for row in (grid_rows - 2, grid_rows - 1) if index == 0 else (grid_rows - 1,):
                strip = whole.convert("RGB").crop((0, row * height, whole.width, (row + 1) * height))
                strips.append(strip.resize((width, min(height, TILE))))
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    with whole_file(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)
    return True


GRID_ROWS = {"proposal": 2, "reconstruction": 3}  # of what `Stage.picture` writes


@dataclass(frozen=True)
class Arguments:
    """Write the page of a trained preset and the numbers of its weights' card.

    With `--results` from what training and sweeps left; without it from what was collected before, pictures left as they are.
    """

    preset: str = "small"
    """Names page and card."""
    results: Path | None = None
    """Folder of its results (results/<preset>), to collect from."""
    out: Path = Path("docs/results")
    """Folder of the page, its numbers and pictures."""
    card: Path | None = None
    """Card of the weights (geolrm/pretrained/<preset>.md); of a preset without one only the page is written."""
    check: bool = False
    """Change nothing, and fail (`page_stale`) if page or card is not current."""


def write(arguments: Arguments) -> None:
    """Collect, if asked to, and write page and card. Raises `BadInput`."""
    name, out = arguments.preset, arguments.out
    numbers, written = out / f"{name}.json", out / f"{name}.md"
    card = arguments.card or Path("geolrm/pretrained") / f"{name}.md"
    if arguments.results is not None:
        found = collect(arguments.results)
        out.mkdir(parents=True, exist_ok=True)
        draw_charts(training_rows(arguments.results), out / f"{name}-training.svg")
        draw_charts(view_rows(found["groups"]), out / f"{name}-views.svg")
        for stage, rows in GRID_ROWS.items():
            picture_strip(arguments.results / stage / "pictures", out / f"{name}-{stage}.png", rows)
        write_whole(numbers, json.dumps(found, indent=1) + "\n")
    current = texts(name, numbers, written, card)
    stale = [path for path, text in current.items() if not path.exists() or path.read_text() != text]
    if arguments.check and stale:
        raise BadInput("page_stale", stale[0], "it is not what the numbers say", "python -m benchmarks.trained")
    for path in stale:
        write_whole(path, current[path])
    print("current" if not stale else "\n".join(f"{path}: {sha256_of(path)[:10]}" for path in stale))


def texts(name: str, numbers: Path, written: Path, card: Path) -> dict[Path, str]:
    """Page and card as they should be. Raises `BadInput`."""
    found = read_numbers(numbers)
    current = {written: page(name, found, written.parent)}
    if card.exists():
        current[card] = spliced(card.read_text(), card_numbers(name, found, card), card)
    return current


def read_numbers(path: Path) -> Record | None:
    """What was collected; None where nothing was yet. Raises `BadInput`."""
    if not path.exists():
        return None
    found: Record = json.loads(path.read_text())
    if found.get("format") != FORMAT:
        raise BadInput(
            "numbers_format", path, f"{found.get('format')}, expected {FORMAT}", "collect again, with --results"
        )
    return found


if __name__ == "__main__":
    sys.exit(run_command(lambda: write(tyro.cli(Arguments))))
