"""The committed results are written from the rows of a sweep, which one command makes and goes on with."""

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from synthetic_results import FIELDS, METHODS, VIEWS, sweep_rows, write_lines

from benchmarks.results import Options, write_results
from benchmarks.rows import read_rows
from geolrm.failures import BadInput

ROOT = Path(__file__).parents[2]


def made_up(root: Path, **changes) -> Options:
    """Rows of made-up objects and of scans of one data set, and one row of costs alone."""
    write_lines(root / "sweep" / "procedural" / "rows.jsonl", sweep_rows())
    scans = [row | {"surface": "mesh"} for row in sweep_rows("hope")]
    write_lines(root / "sweep" / "hope" / "rows.jsonl", scans)
    alone = sweep_rows()[0] | {"method": "geolrm_released", "status": "cost_only", "reason": "random weights"}
    write_lines(root / "sweep-costs" / "procedural" / "rows.jsonl", [alone])
    facts = {"dataset": ("procedural", "hope"), "output": root / "sweep", "out": root / "out", "report_only": True}
    return Options(params=ROOT / "presets" / "smoke.yaml", **(facts | changes))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_results(made_up(tmp_path_factory.mktemp("results")))


def test_the_page_has_every_method_at_every_number_of_views_and_where_the_numbers_are_from(written):
    page = (written / "report.md").read_text()
    procedural, scans = page.split("## Scans")
    rows = sweep_rows()
    for part in (procedural, scans):
        psnr = part.split("**PSNR (dB)**")[1].split("**")[0]
        for method in METHODS:
            (line,) = [line for line in psnr.splitlines() if line.startswith(f"| `{method}` ")]
            cells = [cell.strip().split(" ±")[0] for cell in line.split("|")[2:-1]]
            means = [
                [row["psnr"] for row in rows if (row["method"], row["views"]) == (method, views)] for views in VIEWS
            ]
            assert cells == [f"{sum(found) / len(found):.2f}" for found in means]
        assert "**`geolrm` minus the others, PSNR (dB)**" in part
    for value in ("made-up processor", "c" * 40, "d" * 64, "e" * 64, "image_size 48, not 512"):
        assert value in page
    assert "| `geolrm_released` | 4 |" in page.split("## Costs alone")[1]
    assert "geolrm_released" not in page.split("## Costs alone")[0]


def test_means_over_fewer_objects_than_others_say_so(tmp_path):
    options = made_up(tmp_path)
    file = tmp_path / "sweep" / "procedural" / "rows.jsonl"
    write_lines(file, [row for row in sweep_rows() if (row["method"], row["object"]) != ("visual_hull", "test-00002")])
    lines = (write_results(options) / "report.md").read_text().splitlines()
    hull = next(line for line in lines if line.startswith("| `visual_hull`"))
    assert hull.count("(n=2)") == len(VIEWS)
    assert "n=" not in next(line for line in lines if line.startswith("| `geolrm`"))


def test_the_rows_are_there_with_their_passports_and_all_files_are_the_same_when_written_again(written, tmp_path):
    rows = [json.loads(line) for line in gzip.decompress((written / "procedural.jsonl.gz").read_bytes()).splitlines()]
    assert rows == sweep_rows()
    assert set(rows[0]) == set(FIELDS)
    assert rows[0]["passport"]["commit"]
    again = write_results(made_up(tmp_path))
    assert {f.name: f.read_bytes() for f in again.iterdir()} == {f.name: f.read_bytes() for f in written.iterdir()}
    lines = list(csv.DictReader(io.StringIO((written / "comparison.csv").read_text())))
    assert {line["sweep"] for line in lines if line["source"] == "measured"} == {"procedural", "scans"}


def test_charts_are_drawn_and_no_picture_of_what_may_not_be_shown(written):
    assert {file.name for file in written.iterdir()} == {
        *("report.md", "comparison.md", "comparison.tex", "comparison.csv"),
        *("procedural.jsonl.gz", "scans.jsonl.gz", "procedural.svg", "hope.svg"),
    }
    chart = (written / "hope.svg").read_text()
    assert all(method in chart for method in METHODS)


def test_a_data_set_without_rows_is_said(tmp_path):
    options = made_up(tmp_path, dataset=("procedural", "gso"))
    with pytest.raises(BadInput, match=r"gso/rows\.jsonl: no rows"):
        write_results(options)


def test_one_command_sweeps_what_is_missing_and_writes(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_dataset)
    facts = {"dataset": ("procedural",), "costs": (), "device": "cpu", "processes": "shared", "objects": 1}
    facts |= {"methods": ("white",), "artefacts": 0, "output": tmp_path / "sweep", "out": tmp_path / "out"}
    write_results(Options(params=Path("params.yaml"), views=(4,), **facts))
    before = read_rows(tmp_path / "sweep" / "procedural" / "rows.jsonl")
    (tmp_path / "sweep" / "procedural" / "rows.jsonl").write_text(json.dumps(before[0]) + "\n" + '{"cut off')
    write_results(Options(params=Path("params.yaml"), views=(4, 6), **facts))
    after = read_rows(tmp_path / "sweep" / "procedural" / "rows.jsonl")
    assert [row["views"] for row in after] == [4, 6]
    assert after[0] == before[0]
    assert "| method | 4 | 6 |" in (tmp_path / "out" / "report.md").read_text()
