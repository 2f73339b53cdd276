"""The comparison of methods at one number of views: tables of our means beside published numbers, in every format.

In: a summary (`benchmarks/estimates.py`). Out: tables as text, Markdown, LaTeX and HTML, and all numbers as CSV. Convention: one
table over all objects and one over those that every method reconstructed; a mean is followed by its 95 % interval in brackets;
what a paper says stands in columns of its own that name the table they are from, never in ours; a method that only a paper has
numbers of is a line without ours. The CSV has the paired differences too. Trade: one published table stands beside ours, the
others below, each with how its protocol differs. Verified by reading the formats back.
"""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks.estimates import HEADLINE, METRICS
from benchmarks.methods import method_names, published
from benchmarks.rows import HEADLINE_VIEWS
from benchmarks.tables import as_markdown
from geolrm.tracking import Record

COLUMNS = (
    *("psnr_foreground", "psnr", "ssim", "lpips_vgg", "lpips_alex", "cd_sum", "fscore_0.2", "fscore_0.1"),
    *("latency_s", "latency_p90_s", "peak_memory_bytes"),
)
BESIDE = "GeoLRM, GSO"  # the published table that has most of these methods
PUBLISHED = {
    **{"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS", "cd_sum": "CD", "fscore_0.2": "F@0.2"},
    **{"latency_s": "s", "memory_gb": "GB"},
}
TWO_DIGITS = ("psnr", "latency_s", "memory_gb")  # as papers print them; three of the others
# GeoLRM's Table 3 (arXiv:2406.15333): method -> input views -> PSNR, SSIM, seconds, GB; 100 GSO objects at 512 px.
PAPER_SWEEP = {
    "InstantMesh": {
        **{4: (22.87, 0.832, 0.68, 22.09), 8: (23.22, 0.861, 0.87, 24.35), 12: (23.05, 0.843, 1.07, 24.62)},
        **{16: (23.15, 0.861, 1.30, 26.69), 20: (23.25, 0.895, 1.62, 28.73)},
    },
    "GeoLRM": {
        **{4: (22.84, 0.851, 0.51, 4.30), 8: (23.82, 0.883, 0.84, 5.50), 12: (24.43, 0.892, 1.16, 6.96)},
        **{16: (24.79, 0.903, 1.51, 8.23), 20: (25.13, 0.905, 1.84, 9.43)},
    },
}
NONE = "–"
HEAD_WIDTH = 12


@dataclass(frozen=True)
class Table:
    """Attributes: `caption`; `heads`; `lines`, each a cell per head, plain text; `words`, the columns that hold no numbers."""

    caption: str
    heads: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    words: tuple[int, ...] = (0,)

    def text(self) -> str:
        """For a terminal: heads over several lines, half the width of an interval in place of its ends."""
        heads = [textwrap.wrap(head, HEAD_WIDTH) for head in self.heads]
        tall = max(map(len, heads))
        above = zip(*([""] * (tall - len(head)) + head for head in heads), strict=True)
        rows = [*above, *(tuple(map(narrow, cells)) for cells in self.lines)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        aligned = [
            "  ".join(
                cell.ljust(width) if i in self.words else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
            )
            for cells in rows
        ]
        return "\n".join([self.caption, *(row.rstrip() for row in aligned)])

    def markdown(self) -> str:
        return f"**{self.caption}**\n\n" + "\n".join(as_markdown(self.heads, self.lines))

    def latex(self) -> str:
        """A float in booktabs' style."""
        rows = [" & ".join(map(latex_text, cells)) + r" \\" for cells in (self.heads, *self.lines)]
        columns = "".join("l" if i in self.words else "r" for i in range(len(self.heads)))
        return "\n".join(
            [
                *(r"\begin{table}", r"  \centering\small", rf"  \caption{{{latex_text(self.caption)}}}"),
                *(rf"  \begin{{tabular}}{{{columns}}}", r"    \toprule", f"    {rows[0]}"),
                *(r"    \midrule", *(f"    {row}" for row in rows[1:]), r"    \bottomrule"),
                *(r"  \end{tabular}", r"\end{table}"),
            ]
        )


def narrow(cell: str) -> str:
    """`1.50 [1.25, 2.00]` as `1.50 ±0.38`; anything else as it is."""
    found = re.fullmatch(r"(\S+) \[(\S+), (\S+)\]", cell)
    if found is None:
        return cell
    digits = len(found[1].partition(".")[2])
    return f"{found[1]} ±{(float(found[3]) - float(found[2])) / 2:.{digits}f}"


_LATEX = {"\\": r"\textbackslash{}", "–": "--", "−": "$-$", "±": r"$\pm$", "~": r"\textasciitilde{}", "^": r"\^{}"}
_LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}


def latex_text(text: str) -> str:
    """Plain text as LaTeX shows it."""
    return re.sub("|".join(map(re.escape, _LATEX)), lambda found: _LATEX[found.group()], text)


def views_of(group: Record, asked: int | None = None) -> int:
    """The number of views to compare at: what is asked for, else the protocol's headline, else the largest that there is."""
    for views in (asked, HEADLINE_VIEWS):
        if views is not None and views in group["views"]:
            return views
    return int(max(group["views"]))


def shown(metric: str, point: Record | None, sign: str = "") -> str:
    """A mean with its interval in brackets, as tables have it; `sign` is "+" for a difference."""
    if point is None:
        return NONE
    spec = METRICS[metric]

    def number(value: float) -> str:
        return f"{value * spec.scale:{sign}.{spec.digits}f}"

    bounds = "" if point["low"] is None else f" [{number(point['low'])}, {number(point['high'])}]"
    return number(point["mean"]) + bounds


def comparison(name: str, group: Record, main: str, views: int, common: bool) -> Table:
    """Every method at one number of views: our columns and then, over all objects, the differences and the published ones.

    Args:
        name: of the group of objects.
        group: of a summary.
        main: the method that the others are subtracted from.
        common: over the objects that every method reconstructed, instead of over all.
    """
    cells = {method: found.get(str(views), {"status": {}, "metrics": {}}) for method, found in group["methods"].items()}

    def point(method: str, metric: str) -> Record | None:
        found: Record | None = cells[method]["metrics"].get(metric)
        return found and found["common"] if common else found

    metrics = [metric for metric in COLUMNS if any(point(method, metric) for method in cells)]
    quoted = {method: paper for method in method_names() if (paper := published_at(method, BESIDE))}
    papers = {} if common else quoted
    lines = []
    for method in [*cells, *(method for method in papers if method not in cells)]:
        status = cells[method]["status"] if method in cells else {}
        line = [method, f"{status.get('ok', 0)}/{sum(status.values())}" if status else "not run"]
        line += [shown(metric, point(method, metric)) if method in cells else NONE for metric in metrics]
        if not common:
            difference = group["differences"].get(method, {}).get(str(views), {}).get(HEADLINE)
            line.append(shown(HEADLINE, difference, "+"))
            line += [_quoted(papers.get(method, {}), field) for field in PUBLISHED]
        lines.append(tuple(line))
    heads = ["method", "ok", *(METRICS[metric].label for metric in metrics)]
    if not common:
        heads += [f"{main} minus it, {METRICS[HEADLINE].label}", *(f"published: {h}" for h in PUBLISHED.values())]
    objects = len(group["common_objects"] if common else group["objects"])
    which = f"the {objects} of {len(group['objects'])} objects that every method reconstructed" if common else ""
    caption = f"{name}, {views} views, over {which or f'all {objects} objects, failures scored by their status'}"
    caption += "" if common else f" (published: {BESIDE}; another protocol, not to compare)"
    return Table(caption, tuple(heads), tuple(lines))


def published_at(method: str, table: str) -> Record | None:
    """A method's numbers in one published table."""
    return next((paper for paper in published(method) if paper["table"] == table), None)


def published_table() -> Table:
    """Every published number that a method's module quotes, with how its protocol differs from ours."""
    lines = [
        (method, str(paper["table"]), *(_quoted(paper, field) for field in PUBLISHED), str(paper["differs"]))
        for method in method_names()
        for paper in published(method)
    ]
    heads = ("method", "paper's table", *PUBLISHED.values(), "differs from ours in")
    return Table("Published numbers, each under a protocol of its own", heads, tuple(lines), (0, 1, len(heads) - 1))


def _quoted(paper: Record, field: str) -> str:
    return f"{paper[field]:.{2 if field in TWO_DIGITS else 3}f}" if field in paper else NONE


def tables(summary: Record, asked: int | None = None) -> list[Table]:
    """All tables of a summary: for each group of objects over all and over the common ones, then the published ones."""
    found = []
    for sweep, content in summary["sweeps"].items():
        for name, group in content["groups"].items():
            title = sweep if name == sweep else f"{sweep}: {name}"
            facts = (title, group, content["main_method"], views_of(group, asked))
            found += [comparison(*facts, common=False), comparison(*facts, common=True)]
    return [*found, published_table()]


CSV_HEADS = ("sweep", "group", "objects", "method", "views", "metric", "mean", "low", "high", "n", "source", "differs")


def as_csv(summary: Record) -> str:
    """Every mean and every paired difference at every number of views, and every published number, a line each; `source` tells
    them apart."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_HEADS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_measured(summary))
    for method in method_names():
        for paper in published(method):
            facts = {"method": method, "source": f"published: {paper['table']}", "differs": paper["differs"]}
            writer.writerows(facts | {"metric": m, "mean": paper[m]} for m in PUBLISHED if m in paper)
    return text.getvalue()


def _measured(summary: Record) -> Iterable[dict[str, Any]]:
    for sweep, content in summary["sweeps"].items():
        for name, group in content["groups"].items():
            for method, by_views in group["methods"].items():
                for views, cell in by_views.items():
                    facts = {"sweep": sweep, "group": name, "method": method, "views": views, "source": "measured"}
                    for metric, point in cell["metrics"].items():
                        for objects, found in (("all", point), ("common", point["common"])):
                            if found:
                                yield facts | {"objects": objects, "metric": metric} | _numbers(found)
            for method, by_views in group["differences"].items():
                for views, metrics in by_views.items():
                    facts = {"sweep": sweep, "group": name, "method": method, "views": views, "objects": "paired"}
                    facts["source"] = f"difference: {content['main_method']} minus it"
                    for metric, found in metrics.items():
                        yield facts | {"metric": metric} | _numbers(found)


def _numbers(found: Record) -> Record:
    """Six digits: more than any of these is known to."""
    return {field: None if found[field] is None else f"{found[field]:.6g}" for field in ("mean", "low", "high", "n")}
