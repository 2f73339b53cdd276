"""DVC stage `report`: what the sweeps gave, for people and for tools.

In: `results/<preset>/` (training steps, sweep rows, pictures) and params.yaml. Out, in the same folder: `report.html`
(self-contained) and `summary.json` (what README tables and `docs/results/` are made from), and an MLflow store rebuilt from
the same files. Convention: files are the truth, nothing is measured anew here. Trade: MLflow's database is no DVC output;
`--tracking-uri none` leaves it alone. Verified by tests/pipelines and by looking at both (docs/images/screenshots.py).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tyro

from benchmarks.estimates import summarise
from benchmarks.report import build
from geolrm.config import load_params
from geolrm.failures import run_command
from geolrm.files import write_whole
from geolrm.tracking import Record, rebuild

SERVE = "mlflow server --backend-store-uri {uri} --host 127.0.0.1 --port 5000 --workers 1"


def write_report(
    results: Path, datasets: Path, only: list[str] | None, stage_seconds: dict[str, float] | None = None
) -> Record:
    """Write the files of the stage into `results`; returns the summary."""
    summary = summarise(results, only)
    if stage_seconds:
        summary["stage_seconds"] = stage_seconds
    write_whole(results / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    write_whole(results / "report.html", build(results, summary, datasets))
    return summary


def main(
    params: Path = Path("params.yaml"),
    datasets: list[str] | None = None,
    tracking_uri: str = "sqlite:///mlflow.db",
    stage_seconds: Path | None = None,
) -> None:
    """Write report, summary and dashboard from the results of the preset that params.yaml names.

    Args:
        params: the params file; its preset says which folder under results/ is read.
        datasets: sweeps to report on (folder names under results/PRESET/sweep); all of them by default.
        tracking_uri: MLflow store to rebuild (sqlite:///FILE or the address of a server), or `none`.
        stage_seconds: JSON file with the seconds that each stage took (stage -> seconds), shown beside the results.
    """
    results = Path("results") / load_params(params).preset
    seconds = json.loads(stage_seconds.read_text()) if stage_seconds else None
    write_report(results, Path("datasets"), datasets, seconds)
    print(f"report     {results / 'report.html'}")
    print(f"summary    {results / 'summary.json'}")
    if tracking_uri != "none":
        done = rebuild(results, tracking_uri)
        print(f"dashboard  {done.written} runs written, {done.kept} kept, {done.removed} removed; to look at it:")
        if tracking_uri.startswith("sqlite:"):
            print(f"           {SERVE.format(uri=tracking_uri)}\n           then open 127.0.0.1:5000 in a browser")
        else:
            print(f"           {tracking_uri}")


if __name__ == "__main__":
    sys.exit(run_command(lambda: tyro.cli(main)))
