"""The report: one HTML page that says what a sweep and its training gave, and shows it.

In: a summary (`benchmarks/estimates.py`), the result rows, training steps and pictures that it was made from. Out: a
self-contained page: script, style and pictures inside, nothing fetched. Convention: a section per sweep; every mean has its
95 % interval, every gap its reason, every failure a line; what papers say stands in columns and a box of its own that say so.
Trade: the page carries Plotly (5 MB) so that it opens anywhere, for ever. Verified by reading the page back: every method and
view count, pictures, gaps, no address to fetch from.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.artefacts import TURNTABLE, artefact_folder
from benchmarks.charts import CURVES, Chart, method_colours, object_scatter, pareto, training_charts, view_curves
from benchmarks.comparison import BESIDE, NONE, PAPER_SWEEP, PUBLISHED, comparison, narrow, published_table, views_of
from benchmarks.comparison import Table as Comparison
from benchmarks.estimates import HEADLINE, METRICS
from benchmarks.estimates import groups as grouped
from geolrm.tracking import PICTURES, STAGES, Record, numbers, read_records

MOST_ROWS = 2000  # of the table of objects; more are left to the JSONL
WIDEST = 1024  # pixels of an embedded picture


@dataclass(frozen=True)
class Cell:
    """A table cell: what is shown (HTML), what it sorts by, its style."""

    shown: str
    value: float | None = None
    style: str = ""


class Page:
    """The growing page: sections of HTML, the charts that its script draws, the entries of its navigation."""

    def __init__(self) -> None:
        self.sections: list[str] = []
        self.charts: dict[str, Chart] = {}
        self.entries: list[tuple[str, str]] = []

    def section(self, anchor: str, title: str, parts: Iterable[str]) -> None:
        self.entries.append((anchor, title))
        body = "\n".join(parts)
        self.sections.append(f'<section id="{anchor}"><h2>{escape(title)}</h2>\n{body}\n</section>')

    def chart(self, title: str, chart: Chart | None, gap: str = "", aside: str = "") -> str:
        """A card with a chart, or with the reason why there is none."""
        head = f"<h4>{escape(title)} <small>{escape(aside)}</small></h4>"
        if chart is None:
            return f'<div class="chart">{head}<div class="gap">no values: {escape(gap)}</div></div>'
        name = f"chart-{len(self.charts)}"
        self.charts[name] = chart
        return f'<div class="chart">{head}<div class="plot" id="{name}"></div></div>'


def table(
    heads: list[Cell], rows: Iterable[tuple[str, list[Cell]]], sortable: bool = True, compact: bool = False
) -> str:
    """An HTML table; each row is (style, cells); a compact one has its heads in lines and intervals below their means."""

    def cell(tag: str, c: Cell, numeric: bool) -> str:
        key = f' data-v="{"" if c.value is None else c.value}"' if numeric and sortable and tag == "td" else ""
        return f'<{tag} class="{c.style}"{key}>{c.shown}</{tag}>'

    head = "".join(cell("th", c, False) for c in heads)
    body = "\n".join(
        f'<tr class="{style}">' + "".join(cell("td", c, "text" not in c.style) for c in cells) + "</tr>"
        for style, cells in rows
    )
    kind = " ".join(name for name, is_so in (("sortable", sortable), ("compact", compact)) if is_so)
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def words(text: object) -> Cell:
    return Cell(escape(str(text)), style="text")


def _heads(*texts: str) -> list[Cell]:
    return [Cell(escape(text), style="text") for text in texts]


# ---------------------------------------------------------------------------------------------------------- one sweep


def add_sweep(page: Page, results: Path, name: str, sweep: Record, views: int | None = None) -> None:
    """The section of one sweep: curves and tables for every group of objects, methods compared at `views`, then pictures."""
    rows = read_records(results / "sweep" / name / "rows.jsonl")
    main = sweep["main_method"]
    parts: list[str] = []
    apart = grouped(rows)
    for title, group in sweep["groups"].items():
        if len(sweep["groups"]) > 1:
            parts.append(f"<h3>{escape(title)} · {len(group['objects'])} objects</h3>")
        at = views_of(group, views)
        parts += _group_parts(page, group, main)
        parts += _comparison_parts(page, title, group, apart[title], main, at)
        parts.append(_notes(group, sweep["passport"]))
    parts.append(_pictures(results / "sweep" / name, rows, main))
    empty = {method for group in sweep["groups"].values() for method in group["empty_by_design"]}
    parts.append(_objects_table(rows, empty))
    page.section(f"sweep-{name}", f"Sweep: {name}", parts)


def _group_parts(page: Page, group: Record, main: str) -> list[str]:
    colours = method_colours(list(group["methods"]), main)
    chips = "".join(
        f'<button data-method="{escape(m)}" aria-pressed="true"><i style="background:{c}"></i>{escape(m)}</button>'
        for m, c in colours.items()
    )
    cards = []
    for metric in CURVES:
        spec, gap = METRICS[metric], "; ".join(group["gaps"].get(metric, {"not in the result rows": 0}))
        aside = "↑" if spec.higher_is_better else "↓"
        cards.append(page.chart(spec.label, view_curves(group, metric, colours, main), gap, aside))
    parts = [f'<div class="legend">{chips}</div>', f'<div class="charts">{"".join(cards)}</div>']
    parts += ["<h3>Means by method and view count</h3>", _means_table(group, main)]
    if group["differences"]:
        title = f"{escape(main)} minus the others, foreground PSNR, paired by object"
        parts += [f"<h3>{title}</h3>", _differences_table(group)]
    return parts


COSTS = ("latency_s", "peak_memory_bytes")


def _qualities(group: Record) -> tuple[str, ...]:
    """What methods are compared by; LPIPS on VGG, the primary one, unless no row has it."""
    measured = {name for cells in group["methods"].values() for cell in cells.values() for name in cell["metrics"]}
    return "psnr_foreground", "ssim", "lpips_vgg" if "lpips_vgg" in measured else "lpips_alex", "cd_sum"


def _comparison_parts(page: Page, title: str, group: Record, rows: list[Record], main: str, views: int) -> list[str]:
    """What quality costs, object by object, and the tables of methods with the published numbers beside them."""
    colours = method_colours(list(group["methods"]), main)
    cards = []
    for cost in COSTS:
        for metric in _qualities(group):
            chart = pareto(group, metric, cost, colours, main)
            aside = "↑" if METRICS[metric].higher_is_better else "↓"
            if chart is not None:
                cards.append(
                    page.chart(f"{METRICS[metric].label} against {METRICS[cost].title.lower()}", chart, aside=aside)
                )
    parts = [
        "<h3>What quality costs</h3><p class='quiet'>A line per method through its view counts (the numbers); dashed: what no "
        "other beats in both. The curves above have quality against views.</p>",
        f'<div class="charts">{"".join(cards)}</div>',
    ]
    shown = {method: colour for method, colour in colours.items() if method not in group["empty_by_design"]}
    scatter = [
        page.chart(METRICS[metric].label, chart)
        for metric in _qualities(group)
        if (chart := object_scatter(rows, metric, views, shown, main)) is not None
    ]
    if scatter:
        parts.append(f"<h3>Object by object: {escape(main)} (upright) against the others, {views} views</h3>")
        parts.append(f'<div class="charts">{"".join(scatter)}</div>')
    for common in (False, True):
        found = comparison(title, group, main, views, common)
        parts.append(f"<h3>{escape(found.caption.partition(' (published')[0])}</h3>{_as_html(found)}")
        parts += [] if common else _beside_published(found)
    stages = _stages_table(group, str(views))
    return [*parts, *([f"<h3>Seconds by stage, {views} views</h3>", stages] if stages else [])]


OURS = {  # what stands beside a published number, its heads in a comparison; the first that is there
    **{field: (METRICS[field].label,) for field in ("psnr", "ssim", "cd_sum", "fscore_0.2", "latency_s")},
    "lpips": (METRICS["lpips_vgg"].label, METRICS["lpips_alex"].label),
    "memory_gb": (METRICS["peak_memory_bytes"].label,),
}
PAPERS = "published: "  # what the heads of a comparison's published columns start with


def _as_html(found: Comparison) -> str:
    """Our columns of a comparison, made narrow: half the width of an interval below its mean, its ends when pointed at."""
    heads = [Cell(escape(head), style="text" if i == 0 else "") for i, head in enumerate(found.heads)]
    ours = [i for i, head in enumerate(found.heads) if not head.startswith(PAPERS)]
    lines = []
    for cells in found.lines:
        if "not run" in cells:
            continue  # only papers have numbers of it
        line = [words(cells[0])]
        for i in ours[1:]:
            mean, _, half = narrow(cells[i]).partition(" ")
            line.append(
                Cell(escape(mean) + (f' <small title="{escape(cells[i])}">{escape(half)}</small>' if half else ""))
            )
        lines.append(("", line))
    return table([heads[i] for i in ours], lines, sortable=False, compact=True)


def _beside_published(found: Comparison) -> list[str]:
    """The methods that papers have numbers of, each of these beside ours; nothing where there are none."""
    at = {head: i for i, head in enumerate(found.heads)}
    pairs = [
        (head, next((at[ours] for ours in OURS[field] if ours in at), None), at[PAPERS + head])
        for field, head in PUBLISHED.items()
        if PAPERS + head in at
    ]
    lines = []
    for cells in found.lines:
        if all(cells[paper] == NONE for _, _, paper in pairs):
            continue
        line = [words(cells[0])]
        for head, ours, paper in pairs:
            mean = NONE if ours is None else cells[ours].partition(" ")[0]
            if head == "GB" and mean != NONE:
                mean = f"{float(mean) * 2**20 / 1e9:.2f}"  # from MiB
            line += [Cell(escape(mean)), Cell(f'<span class="quiet">{escape(cells[paper])}</span>')]
        lines.append(("", line))
    heads = [
        *_heads("method"),
        *(Cell(escape(f"{head}, {who}")) for head, _, _ in pairs for who in ("ours", "published")),
    ]
    title = f"<h4>Beside published numbers: {escape(BESIDE)}; another protocol, not to compare</h4>"
    return [title, table(heads, lines, sortable=False, compact=True)] if lines else []


def _worded(found: Comparison, column: int, text: str) -> Cell:
    """A cell of a comparison: words to the left, the last ones in several lines, numbers to the right."""
    if column not in found.words:
        return Cell(escape(text))
    return Cell(escape(text), style="text wrap" if column == len(found.heads) - 1 else "text")


def _stages_table(group: Record, views: str) -> str:
    """Mean seconds of each stage, as far as methods name them; rendering is of all test views, meshing the harness's."""
    found = {method: cells.get(views, {}).get("stages", {}) for method, cells in group["methods"].items()}
    names = list(dict.fromkeys(name for stages in found.values() for name in stages))
    if not names:
        return ""
    shown = METRICS["latency_s"]
    lines = [
        ("", [words(method), *(Cell(shown.text(stages.get(name)), stages.get(name)) for name in names)])
        for method, stages in found.items()
    ]
    note = "<p class='quiet'>Rendering is of all test views, once; meshing of Gaussians is the harness's converter.</p>"
    return table([*_heads("method"), *map(Cell, names)], lines) + note


def _means_table(group: Record, main: str) -> str:
    """Means with intervals; the best method at each view count in bold."""
    shown = [
        name for name in METRICS if any(name in c["metrics"] for m in group["methods"].values() for c in m.values())
    ]
    heads = [*_heads("method"), Cell("views"), *(Cell(escape(METRICS[name].label)) for name in shown), Cell("ok")]
    heads.insert(2, Cell(f"{escape(METRICS[HEADLINE].label)}, common"))
    best = {(views, name): _best(group, str(views), name) for views in group["views"] for name in shown}
    lines = []
    for method, cells in group["methods"].items():
        for views, cell in cells.items():
            metrics = cell["metrics"]
            common = metrics.get(HEADLINE, {}).get("common")
            ok, count = cell["status"].get("ok", 0), sum(cell["status"].values())
            line = [words(method), Cell(views, int(views)), _estimate_cell(HEADLINE, common, None)]
            for name in shown:
                line.append(_estimate_cell(name, metrics.get(name), best[int(views), name]))
            style = "" if ok == count or method in group["empty_by_design"] else "bad"
            line.append(Cell(f"{ok}/{count}", ok / count, style))
            lines.append(("main" if method == main else "", line))
    common = len(group["common_objects"])
    note = (
        f"<p class='quiet'>Means over all objects, failures scored by their status; &ldquo;common&rdquo; over the {common} "
        f"of {len(group['objects'])} objects that every method reconstructed. Brackets: 95 % interval. Click a head to sort.</p>"
    )
    return table(heads, lines, compact=True) + note


def _best(group: Record, views: str, name: str) -> float | None:
    found = [
        c[views]["metrics"][name]["mean"] for c in group["methods"].values() if name in c.get(views, _EMPTY)["metrics"]
    ]
    pick = max if METRICS[name].higher_is_better else min
    return pick(found) if len(found) > 1 else None


_EMPTY: Record = {"metrics": {}}


def _estimate_cell(name: str, point: Record | None, best: float | None) -> Cell:
    if point is None:
        return Cell('<span class="quiet">–</span>')
    spec = METRICS[name]
    bounds = "" if point["low"] is None else f" <small>[{spec.text(point['low'])}, {spec.text(point['high'])}]</small>"
    return Cell(spec.text(point["mean"]) + bounds, point["mean"], "best" if point["mean"] == best else "")


def _differences_table(group: Record) -> str:
    heads = [*_heads("against"), *(Cell(f"{views} views (dB)") for views in group["views"])]
    lines = []
    for method, by_views in group["differences"].items():
        cells = [words(method)]
        for views in group["views"]:
            point = by_views.get(str(views), {}).get(HEADLINE)
            if point is None:
                cells.append(Cell("–"))
                continue
            bounds = "" if point["low"] is None else f" <small>[{point['low']:+.2f}, {point['high']:+.2f}]</small>"
            cells.append(Cell(f"{point['mean']:+.2f}{bounds}", point["mean"], "good" if point["mean"] > 0 else "bad"))
        lines.append(("", cells))
    return table(heads, lines)


def _notes(group: Record, passport: Record) -> str:
    """How to read the numbers; status counts, each gap with its reason, each failure."""
    counts = ", ".join(f"{count} {escape(status)}" for status, count in group["status"].items())
    surface, memory = (escape(", ".join(map(str, found))) for found in (group["surface"], passport.get("memory", [])))
    parts = [
        "<p><b>↑</b> higher is better, <b>↓</b> lower. <b>Intervals</b> are 95 % bootstrap intervals of the mean "
        f"over {len(group['objects'])} objects: none below three, rough below some twenty. <b>Geometry</b> is measured in "
        f"[-1, 1]³ against a surface from: {surface}. <b>Memory</b>: {memory or 'not said'}.</p>",
        f"<p><b>Rows</b>: {counts}.</p>",
    ]
    if floor := group["floor"]:
        shown = ", ".join(f"{METRICS[n].label} {METRICS[n].text(v)}" for n, v in floor.items() if n in METRICS)
        parts.append(
            f"<p><b>Floor</b>: the truth against itself, {floor['points']:.0f} points each: {escape(shown)}.</p>"
        )
    differs = [escape(text) for texts in passport.get("deviations", []) for text in texts or ()]
    name = escape(", ".join(map(str, passport.get("protocol", []))))
    parts.append(f"<p><b>Protocol</b>: {name}{' with ' + '; '.join(differs) if differs else ''}.</p>")
    parts += [f"<p><b>{escape(method)}</b> returns no Gaussian, in any row.</p>" for method in group["empty_by_design"]]
    for metric, reasons in group["gaps"].items():
        for reason, count in reasons.items():
            parts.append(
                f"<p><b>{escape(METRICS[metric].title)}</b> has no value in {count} rows: {escape(reason)}</p>"
            )
    if group["failures"]:
        names = list(group["failures"][0])
        lines = [("", [words(failure[name]) for name in names]) for failure in group["failures"]]
        listing = table(_heads(*names), lines)
        parts.append(f"<details><summary>{len(lines)} rows did not end ok</summary>{listing}</details>")
    return f'<div class="note">{"".join(parts)}</div>'


def _objects_table(rows: list[Record], empty_by_design: set[str]) -> str:
    shown = [name for name in METRICS if any(row.get(name) is not None for row in rows)]
    heads = [*_heads("object", "data set", "method"), Cell("views"), *(Cell(escape(METRICS[n].label)) for n in shown)]
    heads += _heads("status")
    lines = []
    for row in rows[:MOST_ROWS]:
        cells = [
            words(row["object"]),
            words(row["dataset"]),
            words(row["method"]),
            Cell(str(row["views"]), row["views"]),
        ]
        cells += [Cell(METRICS[n].text(numbers(row).get(n)), numbers(row).get(n)) for n in shown]
        status = str(row["status"])
        fine = status == "ok" or row["method"] in empty_by_design
        lines.append(("", [*cells, Cell(escape(status), style="text" if fine else "text bad")]))
    left = f" (the first {MOST_ROWS}; all of them are in rows.jsonl)" if len(rows) > MOST_ROWS else ""
    return f"<details><summary>Every object, {len(rows)} rows{left}</summary>{table(heads, lines)}</details>"


# ----------------------------------------------------------------------------------------------------------- pictures


def ranked_objects(sweep: Path, rows: list[Record], method: str) -> list[tuple[str, float]]:
    """Objects whose pictures of `method` were kept, with the mean of the headline metric over view counts, best first."""
    values: dict[str, list[float]] = {}
    for row in rows:
        kept = artefact_folder(sweep, method, row["object"], row["views"]) / "render.png"
        if row["method"] == method and kept.exists() and HEADLINE in numbers(row):
            values.setdefault(str(row["object"]), []).append(numbers(row)[HEADLINE])
    means = [(key, sum(found) / len(found)) for key, found in values.items()]
    return sorted(means, key=lambda item: (-item[1], item[0]))


def _pictures(sweep: Path, rows: list[Record], main: str) -> str:
    ranked = ranked_objects(sweep, rows, main)
    if not ranked:
        return f'<h3>Pictures</h3><p class="quiet">No pictures of {escape(main)} were kept (sweep.artefacts in params.yaml).</p>'
    objects = len({row["object"] for row in rows})
    named = [("Best", ranked[0])] + ([("Worst", ranked[-1])] if len(ranked) > 1 else [])
    cards = "".join(_object_card(sweep, rows, main, title, key) for title, (key, _) in named)
    of = "" if len(ranked) == objects else f"; pictures were kept of {len(ranked)} of the {objects} objects"
    return f"<h3>{escape(main)}: best and worst object by foreground PSNR{of}</h3><div class='pair'>{cards}</div>"


def _object_card(sweep: Path, rows: list[Record], method: str, title: str, key: str) -> str:
    lines = []
    for row in sorted(rows, key=lambda row: int(row["views"])):
        folder = artefact_folder(sweep, method, key, row["views"])
        if row["method"] != method or str(row["object"]) != key or not folder.is_dir():
            continue
        value = METRICS[HEADLINE].text(numbers(row).get(HEADLINE))
        cells = [f"<td>{row['views']} views<br>{value} dB</td>"]
        for name in PICTURES:
            file = folder / f"{name}.png"
            cells.append(f'<td><img alt="{name}" src="{embedded(file)}"></td>' if file.exists() else "<td>–</td>")
        cells.append(f"<td>{_film(folder / TURNTABLE)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    heads = "".join(f"<th>{name}</th>" for name in (*PICTURES, "turntable"))
    place = f"sweep/{sweep.name}/artefacts/{method}/{key.replace('/', '_')}/"
    return (
        f'<div class="pictures"><h4>{title}: {escape(key)}</h4><table><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table><small>Splats (PLY) and meshes (GLB): <code>{escape(place)}</code></small></div>"
    )


def _film(file: Path) -> str:
    """A film inside the page, running; a dash where there is none."""
    if not file.exists():
        return "–"
    content = base64.b64encode(file.read_bytes()).decode()
    return f'<video autoplay loop muted playsinline src="data:video/webm;base64,{content}"></video>'


def embedded(file: Path) -> str:
    """A picture as a data address: WebP, at most `WIDEST` pixels wide."""
    from PIL import Image

    with Image.open(file) as picture:
        picture.thumbnail((WIDEST, WIDEST))
        stream = io.BytesIO()
        picture.convert("RGB").save(stream, "WEBP", quality=90, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()


# ------------------------------------------------------------------------------------------------- the other sections


def add_headline(page: Page, summary: Record) -> None:
    """Title, what was measured and where, the main method's numbers at the fewest and the most views."""
    parts = []
    for name, sweep in summary["sweeps"].items():
        first_name, group = next(iter(sweep["groups"].items()))
        facts = {"sweep": name, "objects": f"{len(group['objects'])} ({first_name})", "views": _listed(group["views"])}
        facts |= {
            key: _listed(sweep["passport"][key])
            for key in ("protocol", "commit", "device", "processor", "cores")
            if key in sweep["passport"]
        }
        items = "".join(f"<li><span>{escape(k)}</span><b>{escape(str(v))}</b></li>" for k, v in facts.items())
        parts.append(f'<ul class="facts">{items}</ul><div class="cards">{_headline_cards(sweep, group)}</div>')
    machine = summary["machine"]
    described = (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, Python {machine['python']}"
    )
    parts.append(f'<p class="quiet">Report made on: {escape(described)}.</p>')
    if summary.get("stage_seconds"):
        times = [("", [words(stage), Cell(f"{s:.1f}", s)]) for stage, s in summary["stage_seconds"].items()]
        total = sum(summary["stage_seconds"].values())
        parts.append(f"<details><summary>Stages: {total:.0f} s in all</summary>")
        parts.append(table([*_heads("stage"), Cell("seconds")], times) + "</details>")
    page.section("summary", "Summary", parts)


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(str(value)[:12] if len(str(value)) == 40 else str(value) for value in values)


def _headline_cards(sweep: Record, group: Record) -> str:
    """The main method's headline metric at the fewest and the most views, beside the strongest other method."""
    main, cards = sweep["main_method"], []
    for views in dict.fromkeys([str(group["views"][0]), str(group["views"][-1])]):
        means = {
            method: cells[views]["metrics"][HEADLINE]["mean"]
            for method, cells in group["methods"].items()
            if HEADLINE in cells.get(views, _EMPTY)["metrics"]
        }
        if main in means:
            others = {method: mean for method, mean in means.items() if method != main}
            rival = max(others, key=lambda method: others[method], default=None)
            beside = f"{rival}: {others[rival]:.2f} dB" if rival else ""
            cards.append((f"{main}, {views} views", f"{means[main]:.2f} dB", f"foreground PSNR · {beside}"))
    for name in ("ssim", "cd_sum", "latency_s"):
        point = group["methods"][main].get(str(group["views"][-1]), _EMPTY)["metrics"].get(name)
        if point:
            spec = METRICS[name]
            cards.append((spec.title, f"{spec.text(point['mean'])} {spec.unit}", f"at {group['views'][-1]} views"))
    return "".join(
        f'<div class="card"><small>{escape(a)}</small><b>{escape(b)}</b><small>{escape(c)}</small></div>'
        for a, b, c in cards
    )


def add_training(page: Page, results: Path, summary: Record) -> None:
    parts = []
    for stage in [stage for stage in STAGES if stage in summary["training"]]:
        found = summary["training"][stage]
        parts.append(f"<h3>{stage}</h3><p>{_training_sentence(found)}</p>")
        charts = training_charts(read_records(results / stage / "steps.jsonl"))
        parts.append('<div class="charts wide">' + "".join(page.chart(t, c) for t, c in charts.items()) + "</div>")
        pictures = sorted((results / stage / "pictures").glob("step-*.png"))
        if pictures:
            last = pictures[-1]
            image = f'<img style="max-width:100%" alt="{escape(last.stem)}" src="{embedded(last)}">'
            parts.append(f"<details><summary>Validation pictures, {escape(last.stem)}</summary>{image}</details>")
    if parts:
        page.section("training", "Training", parts)


def _training_sentence(found: Record) -> str:
    waited = found["data_wait_share"]
    text = f"{found['steps']} steps in {found['seconds']:.0f} s"
    text += "" if waited is None else f", {waited:.1%} of it waiting for data"
    if found["peak_memory_bytes"]:
        text += f", peak memory {found['peak_memory_bytes'] / 2**20:.0f} MiB"
    if "validation_loss_first_tenth" in found:
        first, last = found["validation_loss_first_tenth"], found["validation_loss_last_tenth"]
        text += f". Validation loss {first:.4g} in the first tenth, {last:.4g} in the last ({last / first:.2f} of it)"
    return text + "."


def dataset_stats(folder: Path) -> dict[str, Record]:
    """Sums over the stats of a data set's shards, by split: counts, bytes, seconds, drops by reason."""
    splits: dict[str, Record] = {}
    for file in sorted(folder.glob("shards/*.stats.json")):
        stats = json.loads(file.read_text())
        total = splits.setdefault(stats["split"], {"shards": 0, "drops": {}})
        total["shards"] += 1
        for name in ("objects_in", "objects_out", "bytes_in", "bytes_out"):
            total[name] = total.get(name, 0) + stats[name]
        total["seconds"] = total.get("seconds", 0.0) + stats["seconds"]["total"]
        for reason, count in stats["drops"].items():
            total["drops"][reason] = total["drops"].get(reason, 0) + count
    return splits


def add_data(page: Page, datasets: Path, summary: Record) -> None:
    """Counts of the data sets behind the sweeps, where their stats lie on this machine."""
    parts = []
    heads = [*_heads("split"), *map(Cell, ("shards", "objects in", "objects out", "MiB in", "MiB out", "seconds"))]
    for name in summary["sweeps"]:
        lines = []
        for split, s in dataset_stats(datasets / name / summary["preset"]).items():
            values = (
                s["shards"],
                s["objects_in"],
                s["objects_out"],
                s["bytes_in"] / 2**20,
                s["bytes_out"] / 2**20,
                s["seconds"],
            )
            drops = ", ".join(f"{reason}: {count}" for reason, count in s["drops"].items()) or "none"
            cells = [Cell(f"{value:,.1f}" if isinstance(value, float) else f"{value:,}", value) for value in values]
            lines.append(("", [words(split), *cells, words(drops)]))
        if lines:
            parts.append(f"<h3>{escape(name)}</h3>" + table([*heads, *_heads("drops by reason")], lines))
    if parts:
        page.section("data", "Data", parts)


def add_paper(page: Page) -> None:
    heads = [*_heads("paper's method"), *map(Cell, ("views", "PSNR (dB)", "SSIM", "time (s)", "memory (GB)"))]
    lines = []
    for method, by_views in PAPER_SWEEP.items():
        for views, values in by_views.items():
            numbers_shown = [Cell(f"{v:.3f}" if i == 1 else f"{v:.2f}", v) for i, v in enumerate(values)]  # SSIM
            lines.append(("", [words(method), Cell(str(views), views), *numbers_shown]))
    text = (
        "<p><b>Not comparable with the columns above.</b> Published by the authors of GeoLRM (arXiv:2406.15333, Table 3): 100 "
        "Google Scanned Objects whose list, cameras and scripts were never published, 512-pixel renders, whole-frame PSNR, a "
        "model trained on some 280,000 objects. Other objects, lighting, share of background, test views and SSIM windows "
        "each move these numbers; only the trend with the number of views can be set beside ours.</p>"
    )
    quoted = published_table()
    others = table(
        [_worded(quoted, i, head) for i, head in enumerate(quoted.heads)],
        [("", [_worded(quoted, i, cell) for i, cell in enumerate(line)]) for line in quoted.lines],
        sortable=False,
    )
    box = f'<div class="note">{text}{table(heads, lines)}<p><b>{escape(quoted.caption)}</b></p>{others}</div>'
    page.section("paper", "What papers say, for reference", [box])


def add_passport(page: Page, summary: Record) -> None:
    parts = []
    for name, sweep in summary["sweeps"].items():
        lines = []
        for key, values in sorted(sweep["passport"].items()):
            mixed = ' <span class="bad">mixed</span>' if len(values) > 1 else ""
            shown = " | ".join(f"<code>{escape(str(value))}</code>" for value in values)
            lines.append(("", [words(key), Cell(shown + mixed, style="text wrap")]))
        inputs = [
            ("", [words(f"input views, {views}"), Cell(f"<code>{escape(str(ids))}</code>", style="text wrap")])
            for views, ids in sweep["input_views"].items()
        ]
        parts.append(f"<h3>{escape(name)}</h3>" + table(_heads("field", "value"), lines + inputs, sortable=False))
    page.section("passport", "Passport", parts)


def build(results: Path, summary: Record, datasets: Path = Path("datasets"), views: int | None = None) -> str:
    """The whole page for `results` (`results/<preset>`) and its summary.

    Args:
        datasets: where stats of shards are looked for.
        views: number of input views at which methods are compared; see `benchmarks.comparison.views_of`.
    """
    page = Page()
    add_headline(page, summary)
    for name, sweep in summary["sweeps"].items():
        add_sweep(page, results, name, sweep, views)
    add_training(page, results, summary)
    add_data(page, datasets, summary)
    add_paper(page)
    add_passport(page, summary)
    return _document(f"GeoLRM · {summary['preset']}", page)


def _document(title: str, page: Page) -> str:
    from plotly.offline import get_plotlyjs

    here = Path(__file__)
    style = here.with_name("report.css").read_text()
    script = here.with_name("report.js").read_text()
    charts = json.dumps(page.charts, allow_nan=False).replace("</", "<\\/")
    links = "".join(f'<a href="#{anchor}">{escape(text)}</a>' for anchor, text in page.entries)
    body = "\n".join(page.sections)
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{style}</style></head>
<body>
<nav><div><b>{escape(title)}</b>{links}</div></nav>
<main>
{body}
</main>
<script type="application/json" id="charts">{charts}</script>
<script>{get_plotlyjs()}</script>
<script>{script}</script>
</body></html>
"""
