"""Compare methods from the rows of sweeps: tables to read, to print in a paper, to compute with, and the HTML report.

In: `results/<preset>/sweep/*/rows.jsonl`. Out: the tables on the screen, and `comparison.{md,tex,csv}` with `report.html` in a
folder. Convention: nothing is measured here: `benchmarks/sweep_views.py` makes the rows, and the command that adds a method
without rows is printed; published numbers are in columns of their own (`benchmarks/comparison.py`). Trade: the report is that
of `pipelines.report`, made by the same code. Verified by running it on made-up rows.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.comparison import as_csv, tables
from benchmarks.estimates import summarise
from benchmarks.methods import method_names
from benchmarks.report import build
from geolrm.config import load_params
from geolrm.failures import BadInput, run_command
from geolrm.files import write_whole


@dataclass
class Arguments:
    """Compare methods over the objects of one or several sweeps; write Markdown, LaTeX, CSV and an HTML report.

    Means over all objects (failures scored by their status) and over those that every method reconstructed, with 95 % bootstrap
    intervals and paired differences; quality against latency, memory and views; objects one by one; published numbers in
    columns of their own. Measures nothing: `python benchmarks/sweep_views.py --methods ...` makes the rows.
    """

    params: Path = Path("params.yaml")
    """Params file; its preset names the folder of results."""
    results: Path | None = None
    """Folder of the preset's results (results/<preset>), which holds sweep/NAME/rows.jsonl."""
    sweeps: tuple[str, ...] | None = None
    """Sweeps to compare in, folders of sweep/ (all)."""
    views: int | None = None
    """Number of input views of the tables: 6, the protocol's headline, or the largest where there is no 6."""
    output: Path | None = None
    """Folder to write to (results/<preset>/comparison)."""
    datasets: Path = Path("datasets")
    """Folder of the data sets, for the counts in the report."""


def compare(arguments: Arguments) -> list[Path]:
    """Print and write the comparison; returns the files. Raises `BadInput` where there are no rows."""
    results = arguments.results or Path("results") / load_params(arguments.params).preset
    summary = summarise(results, list(arguments.sweeps) if arguments.sweeps else None)
    every = {
        views for sweep in summary["sweeps"].values() for group in sweep["groups"].values() for views in group["views"]
    }
    if arguments.views is not None and arguments.views not in every:
        detail = f"no row has {arguments.views} views; there are {', '.join(map(str, sorted(every)))}"
        raise BadInput("view_count", "--views", detail, f"python benchmarks/sweep_views.py --views {arguments.views}")
    found = tables(summary, arguments.views)
    print("\n\n".join(table.text() for table in found))
    for name, sweep in summary["sweeps"].items():
        here = {method for group in sweep["groups"].values() for method in group["methods"]}
        absent = [method for method in method_names() if method not in here]
        if absent:
            print(f"\n{name} has no rows of {', '.join(absent)}; this makes them:")
            print(f"python benchmarks/sweep_views.py --dataset {name} --methods {' '.join(absent)}")
    output = arguments.output or results / "comparison"
    output.mkdir(parents=True, exist_ok=True)
    contents = {
        "comparison.md": "\n\n".join(table.markdown() for table in found) + "\n",
        "comparison.tex": "\n\n".join(table.latex() for table in found) + "\n",
        "comparison.csv": as_csv(summary),
        "report.html": build(results, summary, arguments.datasets, arguments.views),
    }
    for name, content in contents.items():
        write_whole(output / name, content)
        print(f"{output / name}")
    return [output / name for name in contents]


def main() -> None:
    """Command line of `compare`."""
    compare(tyro.cli(Arguments))


if __name__ == "__main__":
    sys.exit(run_command(main))
