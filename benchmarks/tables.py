"""The results tables of README and docs, generated from committed summary files.

In: `docs/results/*.json` (summaries that `pipelines/report.py` wrote). Out: Markdown between two marker comments of a page,
the README unless another is named; nobody types a number by hand. Convention: one table per sweep and group of objects, a
row per method; foreground PSNR at every view count, the other metrics at the largest one. Trade: intervals and single
objects stay in the report. `python -m benchmarks.tables` writes, with `--check` it only says whether the page is current.
Verified by a round trip.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.estimates import FORMAT, HEADLINE, METRICS, READABLE
from geolrm.failures import BadInput, run_command
from geolrm.files import write_whole
from geolrm.tracking import Record

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
BESIDE = ("ssim", "lpips_alex", "cd_sum", "fscore_0.1", "latency_s")  # shown at the largest view count


def load_summaries(folder: Path, only: list[str] | None = None) -> dict[str, Record]:
    """The summaries among the JSON files of a folder, or among those named `only`, by file name; other kinds are left alone.

    Raises `BadInput` for a file that is not there, holds no JSON, or a summary of another version.
    """
    summaries = {}
    for path in sorted(folder.glob("*.json")) if only is None else [folder / name for name in only]:
        if not path.exists():
            raise BadInput("summary_missing", path, "no such file", "name a summary in that folder")
        try:
            content = json.loads(path.read_text())
        except ValueError as error:
            raise BadInput("summary_corrupt", path, f"no JSON ({error})", "python -m pipelines.report") from error
        found = str(content.get("format", "")) if isinstance(content, dict) else ""
        if found in READABLE:
            summaries[path.name] = content
        elif found.startswith(FORMAT.rpartition("-")[0]):
            raise BadInput("summary_format", path, f"{found}, expected {FORMAT}", "python -m pipelines.report")
    return summaries


def group_table(group: Record) -> list[str]:
    """The Markdown lines of one group of objects."""
    counts = [str(views) for views in group["views"]]
    last = counts[-1]
    best = METRICS[HEADLINE]
    heads = ["method", *(f"{views} views" for views in counts), *(METRICS[name].label for name in BESIDE)]
    lines = []
    for method, cells in group["methods"].items():
        values = [best.text(_mean(cells, views, HEADLINE)) for views in counts]
        values += [METRICS[name].text(_mean(cells, last, name)) for name in BESIDE]
        lines.append([f"`{method}`", *values])
    return as_markdown(heads, lines)


def as_markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, first column to the left, numbers to the right; a bar in a cell stays in it."""
    rule = "|---" + "|---:" * (len(heads) - 1) + "|"
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in (heads, *lines)]
    return [rows[0], rule, *rows[1:]]


def _mean(cells: Record, views: str, metric: str) -> float | None:
    found = cells.get(views, {}).get("metrics", {}).get(metric)
    return None if found is None else float(found["mean"])


def markdown(summaries: dict[str, Record], place: str = "docs/results") -> str:
    """All tables, by name of the file that each comes from; `place` is the files' folder as the page links to it."""
    lines: list[str] = []
    for source, summary in summaries.items():
        for sweep, found in summary["sweeps"].items():
            for name, group in found["groups"].items():
                lines += [
                    *_caption(f"{place}/{source}", summary, sweep, name, group, found),
                    "",
                    *group_table(group),
                    "",
                ]
    return "\n".join(lines)


def _caption(source: str, summary: Record, sweep: str, name: str, group: Record, found: Record) -> list[str]:
    commits = ", ".join(str(commit)[:10] for commit in found["passport"].get("commit", ["unknown"]))
    devices = ", ".join(map(str, found["passport"].get("device", ["unknown device"])))
    what = sweep if name == sweep else f"{sweep}: {name}"
    protocol = ", ".join(map(str, found["passport"].get("protocol", ["unknown protocol"])))
    if any(found["passport"].get("deviations", [])):
        protocol += " at smaller sizes"
    return [
        f"**{what}**, {len(group['objects'])} objects, preset `{summary['preset']}`, {protocol}, {devices}, commit `{commits}` "
        f"([{Path(source).name}]({source})): foreground PSNR (dB) by number of input views; the other columns are at "
        f"{group['views'][-1]} views."
    ]


def spliced(readme: str, tables: str, where: object = "README.md") -> str:
    """`readme` with `tables` between its markers. Raises `BadInput` where the markers are missing."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BadInput("readme_markers", where, f"no {BEGIN} ... {END}", "put both markers where the table goes")
    return f"{before}{BEGIN}\n{tables.strip()}\n{END}{after}"


def update_readme(
    readme: Path = Path("README.md"),
    results: Path = Path("docs/results"),
    check: bool = False,
    only: list[str] | None = None,
) -> None:
    """Generate the results tables of the README, or of another page, from committed summary files.

    Args:
        readme: the file with the two markers.
        results: folder of committed summary files (JSON).
        check: change nothing, and fail (`readme_stale`) if the page is not current.
        only: names of the files to show; all by default.
    """
    text = readme.read_text()
    place = Path(os.path.relpath(results, readme.parent)).as_posix()
    current = spliced(text, markdown(load_summaries(results, only), place), readme)
    if current == text:
        print("current")
    elif check:
        raise BadInput("readme_stale", readme, "its tables are not those of the results", "python -m benchmarks.tables")
    else:
        write_whole(readme, current)
        print("written")


if __name__ == "__main__":
    import tyro

    sys.exit(run_command(lambda: tyro.cli(update_readme)))
