"""The committed results: every method at every number of views, on made-up objects and real scans, by one command.

In: sharded data sets, the trained networks of a preset, the sections of its params file. Out, in `docs/results/<preset>-sweep`:
`report.md` (tables with intervals, charts, passports), `comparison.{md,tex,csv}`, the rows themselves with their passports
(`<sweep>.jsonl.gz`), a chart a group of objects and, of data sets whose pictures may be published, a contact sheet that names
their makers. Convention: the rows are a sweep's (`benchmarks/sweep_views.py`), so what is there and holds is not made again and
an interrupted run goes on; data sets of scans are tabled together, then each. Trade: the HTML report is left out, since it
carries 5 MB of Plotly; `benchmarks/compare_baselines.py` makes it from the same rows. Methods that only random weights stand in
for are measured on one object, apart, and have costs alone. Verified by two objects at two view counts, stopped on the way.

    python -m benchmarks.results --params presets/small.yaml
"""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from benchmarks import sheet
from benchmarks.charts import method_colours
from benchmarks.comparison import as_csv, tables
from benchmarks.estimates import FORMAT, METRICS, groups, main_method, passport, summarise_group
from benchmarks.processes import Stopped
from benchmarks.rows import Row, read_rows
from benchmarks.summary import UNSCORED
from benchmarks.sweep_views import Arguments as Sweeping
from benchmarks.sweep_views import sweep
from benchmarks.tables import as_markdown
from geolrm.config import load_params
from geolrm.failures import BadInput, run_command
from geolrm.files import whole_file, write_whole
from geolrm.tracking import Record

MADE_UP = "procedural"
SCANS = "scans"  # all other data sets together
PICTURED = ("gso",)  # data sets whose licence lets pictures be published, with attribution
TABLED = ("psnr", "psnr_foreground", "ssim", "lpips_vgg", "lpips_alex", "mask_iou", "cd_sum", "fscore_0.1", "latency_s")
DRAWN = ("psnr", "psnr_foreground", "lpips_alex", "cd_sum", "fscore_0.1", "latency_s")
LOGARITHMIC = ("cd_sum", "latency_s")
FASTEST = 1e-3  # seconds that a latency axis starts at: controls that compute nothing lie below
SHOWN = ("geolrm", "gaussian_fitting", "visual_hull")  # on the contact sheet, where they have rows
SHEET_VIEWS = 8  # of the inputs
SAID = (
    "protocol",
    "protocol_hash",
    "deviations",
    "dataset_hash",
    "checkpoint_hash",
    "commit",
    "device",
    "processor",
    "lpips",
)


@dataclass
class Options(Sweeping):
    """Sweep every method of the params file over all numbers of views, then write what is committed of it.

    Options of the sweep work here too; `--report-only` measures nothing.
    """

    params: Path = Path("presets/small.yaml")
    """Params file: what is swept, and the preset whose data and networks are used."""
    dataset: tuple[str, ...] = (MADE_UP, "gso", "hope")
    """Data sets to sweep, folders of datasets/ that `pipelines.shard` has sharded."""
    costs: tuple[str, ...] = ("geolrm_released",)
    """Methods to measure with random weights on one object, where their own are missing: costs alone. None: `--costs`."""
    out: Path | None = None
    """Folder to write to (docs/results/<preset>-sweep)."""
    report_only: bool = False
    """Write from the rows that are there."""


@dataclass(frozen=True)
class Results:
    """What is written about: rows by sweep, rows of costs alone, their preset."""

    preset: str
    rows: dict[str, list[Row]]
    costs: list[Row]

    @property
    def summary(self) -> Record:
        """As `benchmarks.estimates.summarise` gives it, of scans together."""
        sweeps = {}
        for name, rows in self.rows.items():
            main = main_method(rows)
            of = {title: summarise_group(found, main) for title, found in groups(rows).items()}
            sweeps[name] = {"main_method": main, "passport": passport(rows), "groups": of}
        return {"format": FORMAT, "preset": self.preset, "sweeps": sweeps}


def make_rows(options: Options) -> None:
    """Sweep what is missing, and on one object what has costs alone."""
    apart = options.processes == "own"
    sweep(options, apart)
    if options.costs:
        some = replace(
            options, dataset=options.dataset[:1], methods=options.costs, objects=1, artefacts=0, untrained=True
        )
        sweep(replace(some, output=costs_folder(options)), apart)


def sweep_folder(options: Options) -> Path:
    """Where the sweep of each data set has its folder."""
    results = options.results or Path("results") / load_params(options.params).preset
    return options.output or results / "sweep"


def costs_folder(options: Options) -> Path:
    return sweep_folder(options).with_name(f"{sweep_folder(options).name}-costs")


def read_results(options: Options) -> Results:
    """The rows that are there. Raises `BadInput` (`no_results`) for a data set without any."""
    rows: dict[str, list[Row]] = {}
    for name in options.dataset:
        file = sweep_folder(options) / name / "rows.jsonl"
        found = read_rows(file)
        if not found:
            raise BadInput("no_results", file, "no rows", "run it without --report-only, or name other data sets")
        rows.setdefault(name if name == MADE_UP else SCANS, []).extend(found)
    costs = read_rows(costs_folder(options) / options.dataset[0] / "rows.jsonl")
    return Results(load_params(options.params).preset, rows, [row for row in costs if row["status"] == "cost_only"])


# --- the page ---


def number(metric: str, point: Record | None, objects: int) -> str:
    """A mean, half the width of its interval, and of how many objects where these are not all."""
    if point is None:
        return "–"
    spec = METRICS[metric]
    text = spec.text(point["mean"])
    if point["low"] is not None:
        text += f" ±{spec.text((point['high'] - point['low']) / 2)}"
    return text if point["n"] == objects else f"{text} (n={point['n']})"


def metric_table(group: Record, metric: str) -> list[str]:
    """A line per method, a column per view count; nothing where no method has the metric."""
    counts, objects = [str(views) for views in group["views"]], len(group["objects"])
    lines = []
    for method, cells in group["methods"].items():
        points = [cells.get(views, {}).get("metrics", {}).get(metric) for views in counts]
        if any(points):
            lines.append([f"`{method}`", *(number(metric, point, objects) for point in points)])
    if not lines:
        return []
    spec = METRICS[metric]
    better = "higher" if spec.higher_is_better else "lower"
    return [f"**{spec.label}**, {better} is better", "", *as_markdown(["method", *counts], lines), ""]


def differences(group: Record, main: str, metric: str = "psnr") -> list[str]:
    """The main method minus each other one, paired by object."""
    counts = [str(views) for views in group["views"]]
    lines = []
    for method, by_views in group["differences"].items():
        cells = [f"`{method}`"]
        for views in counts:
            point = by_views.get(views, {}).get(metric)
            bounds = "" if point is None or point["low"] is None else f" [{point['low']:+.2f}, {point['high']:+.2f}]"
            cells.append("–" if point is None else f"{point['mean']:+.2f}{bounds}")
        lines.append(cells)
    title = f"**`{main}` minus the others, {METRICS[metric].label}**, paired by object, 95 % interval"
    return [title, "", *as_markdown(["minus", *counts], lines), ""] if lines else []


def costs_table(rows: list[Row]) -> list[str]:
    """Latency and memory of methods with random weights."""
    mib = METRICS["peak_memory_bytes"]
    lines = [
        [
            f"`{row['method']}`",
            str(row["views"]),
            METRICS["latency_s"].text(row["latency_s"]),
            mib.text(row["peak_memory_bytes"]),
        ]
        for row in rows
    ]
    head = [
        "## Costs alone",
        "",
        f"Random weights, one object ({rows[0]['object']}), {rows[0]['passport']['device']}; no quality.",
        "",
    ]
    return [*head, *as_markdown(["method", "views", "latency (s)", "peak memory (MiB)"], lines), ""]


def passport_table(found: dict[str, list[Any]]) -> list[str]:
    """The fields that say what was measured by what."""
    shown = {name: found[name] for name in SAID if name in found}
    shown |= {name: values for name, values in found.items() if name.startswith("versions.")}
    lines = [
        [name, ", ".join(f"`{value}`" for value in values if value not in (None, []))] for name, values in shown.items()
    ]
    return as_markdown(["field", "values"], [[name, values or "–"] for name, values in lines])


def page(made: Results, summary: Record, command: str, files: dict[str, str], credit: str) -> str:
    """The Markdown page; `files` are charts by group, and under "sheet" the contact sheet."""
    counts = {name: len({row["object"] for row in rows}) for name, rows in made.rows.items()}
    everywhere = [*dict.fromkeys(row["method"] for rows in made.rows.values() for row in rows)]
    lines = [
        f"# Every method at every number of views, preset `{made.preset}`",
        "",
        f"Written by `{command}`; do not edit. {', '.join(f'{count} objects of {name}' for name, count in counts.items())}; "
        f"methods {', '.join(f'`{method}`' for method in everywhere)}. Means over objects with half the width of their 95 % "
        "bootstrap interval; failures are scored by their status ([protocol](../../protocol.md)). At one number of views, with "
        "what papers say beside it: [comparison.md](comparison.md). All means and paired differences: "
        "[comparison.csv](comparison.csv). Rows with their passports: "
        f"{', '.join(f'[{name}.jsonl.gz]({name}.jsonl.gz)' for name in made.rows)}.",
        "",
    ]
    for name, content in summary["sweeps"].items():
        for title, group in content["groups"].items():
            heading = title if title == name else f"{name}, {title}"
            statuses = ", ".join(f"{count} {status}" for status, count in group["status"].items())
            lines += [
                f"## {heading[0].upper()}{heading[1:]}",
                "",
                f"{len(group['objects'])} objects; rows: {statuses}.",
                "",
            ]
            if title in files:
                lines += [f"![{heading}]({files[title]})", ""]
            for metric in TABLED:
                lines += metric_table(group, metric)
            lines += differences(group, content["main_method"])
    if made.costs:
        lines += costs_table(made.costs)
    if "sheet" in files:
        lines += [
            "## Pictures",
            "",
            f"![objects beside their reconstructions]({files['sheet']})",
            "",
            f"*{credit}*",
            "",
        ]
    lines += ["## Passports", ""]
    for name, content in summary["sweeps"].items():
        lines += [f"**{name}**", "", *passport_table(content["passport"]), ""]
    return "\n".join(lines)


def chart(group: Record, main: str, path: Path) -> None:
    """Means against the number of views, a panel a metric, with bands of 95 %; the same bytes for the same numbers."""
    try:
        import matplotlib
    except ImportError as error:
        remedy = "pip install -c constraints.txt -e '.[notebooks]'"
        raise BadInput(
            "matplotlib_missing", path, "charts are drawn by Matplotlib, which is not here", remedy
        ) from error
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    colours = method_colours(list(group["methods"]), main)
    with plt.rc_context({"svg.hashsalt": "geolrm", "font.size": 9, "svg.fonttype": "none"}):
        figure, places = plt.subplots(2, 3, figsize=(11, 6.2), constrained_layout=True)
        for axes, metric in zip(places.flat, DRAWN, strict=True):
            spec = METRICS[metric]
            for method, cells in group["methods"].items():
                if metric in LOGARITHMIC and method in group["empty_by_design"]:
                    continue
                points = [(int(v), c["metrics"][metric]) for v, c in cells.items() if metric in c["metrics"]]
                views = [v for v, _ in points]
                means, low, high = (
                    [(p[end] if p[end] is not None else p["mean"]) * spec.scale for _, p in points]
                    for end in ("mean", "low", "high")
                )
                wide = 2.4 if method == main else 1.3
                axes.plot(views, means, marker="o", markersize=3, linewidth=wide, color=colours[method], label=method)
                axes.fill_between(views, low, high, color=colours[method], alpha=0.12, linewidth=0)
            axes.set_title(f"{spec.label} {'↑' if spec.higher_is_better else '↓'}", fontsize=10)
            axes.set_xticks(group["views"])
            axes.grid(alpha=0.25)
            if metric in LOGARITHMIC:
                axes.set_yscale("log")
            if metric == "latency_s":
                axes.set_ylim(bottom=max(FASTEST, axes.get_ylim()[0]))
        figure.supxlabel("input views", fontsize=9)
        figure.legend(*places.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False)
        with whole_file(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
        plt.close(figure)


def write_results(options: Options) -> Path:
    """Sweep, then write; returns the folder. Raises `BadInput`."""
    if not options.report_only:
        make_rows(options)
    made = read_results(options)
    summary, folder = made.summary, options.out or Path("docs/results") / f"{made.preset}-sweep"
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in made.rows.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_whole(folder / f"{name}.jsonl.gz", gzip.compress(lines.encode(), mtime=0))
    files: dict[str, str] = {}
    for name, content in summary["sweeps"].items():
        for title, group in content["groups"].items():
            files[title] = f"{name if title in (name, 'all objects') else title}.svg"
            chart(group, content["main_method"], folder / files[title])
    credit = ""
    for name in (name for name in PICTURED if name in options.dataset):
        here = {
            row["method"]
            for row in read_rows(sweep_folder(options) / name / "rows.jsonl")
            if row["status"] not in UNSCORED
        }
        wanted = tuple(method for method in SHOWN if method in here)
        drawn = folder / f"{name}.png"
        place = Path(options.datasets)
        sheet.contact_sheet(
            sheet.Arguments(
                *(drawn, name, wanted, SHEET_VIEWS, (3,), options.params, place), sweep=sweep_folder(options) / name
            )
        )
        files["sheet"] = drawn.name
        catalog = place / name / made.preset / "catalog.parquet"
        objects = sorted({row["object"] for row in made.rows[SCANS] if row["dataset"] == name})
        credit = (
            f"{sheet.credit(catalog, objects)}: {', '.join(objects)}. Changed: rendered under this project's light."
        )
    found = tables(summary)
    command = f"python -m benchmarks.results --params {options.params}"
    write_whole(folder / "report.md", page(made, summary, command, files, credit))
    write_whole(
        folder / "comparison.md", "\n\n".join(["# Methods side by side", *(table.markdown() for table in found)]) + "\n"
    )
    write_whole(folder / "comparison.tex", "\n\n".join(table.latex() for table in found) + "\n")
    write_whole(folder / "comparison.csv", as_csv(summary))
    print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.2f} MB")
    return folder


def main() -> None:
    """Command line of `write_results`."""
    write_results(tyro.cli(Options))


if __name__ == "__main__":
    sys.exit(run_command(main, Stopped))
