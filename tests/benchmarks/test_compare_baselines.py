"""The comparison says what the rows say, in every format, and never puts a paper's number among ours."""

import csv
import io
import re

import pytest
from synthetic_results import METHODS, OBJECTS, VIEWS, row, sweep_rows, write_lines

from benchmarks.charts import method_colours, object_scatter, pareto, pareto_front
from benchmarks.compare_baselines import Arguments, compare
from benchmarks.comparison import as_csv, latex_text, tables
from benchmarks.estimates import summarise, summarise_group
from benchmarks.methods import published
from geolrm.failures import BadInput


@pytest.fixture
def results(tmp_path):
    """Rows of four methods; the hull failed on the second object at 8 views."""
    rows = sweep_rows()
    for made in rows:
        if (made["method"], made["object"], made["views"]) == ("visual_hull", OBJECTS[1], 8):
            made |= {"status": "failed", "reason": "RuntimeError: made up", "psnr_foreground": 6.0}
    write_lines(tmp_path / "smoke" / "sweep" / "procedural" / "rows.jsonl", rows)
    return tmp_path / "smoke"


def lines_of(table) -> dict[str, dict[str, str]]:
    return {line[0]: dict(zip(table.heads, line, strict=True)) for line in table.lines}


def test_means_over_all_objects_count_a_failure_and_those_over_common_ones_leave_its_object_out(results):
    over_all, over_common, _ = tables(summarise(results), 8)
    head = "Foreground PSNR (dB)"
    values = [row("visual_hull", key, 8)["psnr_foreground"] for key in OBJECTS]
    hull = lines_of(over_all)["visual_hull"]
    assert hull["ok"] == "2/3"
    assert hull[head].startswith(f"{(values[0] + 6 + values[2]) / 3:.2f} [")
    assert (
        lines_of(over_common)["visual_hull"][head] == f"{(values[0] + values[2]) / 2:.2f}"
    )  # of two there is no interval
    assert "the 2 of 3 objects" in over_common.caption
    ours = [row("geolrm", key, 8)["psnr_foreground"] for key in OBJECTS]
    lower = (sum(ours) - values[0] - 6 - values[2]) / 3
    assert hull["geolrm minus it, Foreground PSNR (dB)"].startswith(f"{lower:+.2f} [")


def test_published_numbers_stand_in_columns_of_their_own_and_methods_without_rows_have_no_others(results):
    table, *_, every = tables(summarise(results))
    assert "21 views" in table.caption  # there is no 6
    shown = lines_of(table)
    for method, psnr in (("geolrm", "23.57"), ("lgm", "20.76"), ("crm", "22.78"), ("instantmesh", "23.19")):
        assert [head for head, cell in shown[method].items() if cell == psnr] == ["published: PSNR"]
    assert shown["lgm"]["ok"] == "not run"
    assert {cell for head, cell in shown["lgm"].items() if "published" not in head} == {"lgm", "not run", "–"}
    assert {shown["white"][head] for head in table.heads if "published" in head} == {"–"}
    assert sum(line[0] == "lgm" for line in every.lines) == len(published("lgm")) > 3
    crm = next(line for line in every.lines if line[:2] == ("crm", "GeoLRM, GSO"))
    assert crm[2:9] == ("22.78", "0.843", "0.190", "0.213", "0.831", "0.30", "5.93")  # with the paper's digits


def test_words_stand_to_the_left_and_numbers_to_the_right(results):
    *_, every = tables(summarise(results))
    shown = every.text().splitlines()
    first = next(i for i, line in enumerate(shown) if line.startswith("crm"))
    differs = [line[-1] for line in every.lines]
    starts = {line.index(text) for line, text in zip(shown[first:], differs, strict=True)}
    assert len(starts) == 1
    assert r"\begin{tabular}{llrrrrrrrl}" in every.latex()


def test_the_files_hold_the_same_numbers_and_the_screen_has_the_tables(results, capsys):
    files = {file.name: file.read_text() for file in compare(Arguments(results=results, views=4))}
    shown = capsys.readouterr().out
    assert set(files) == {"comparison.md", "comparison.tex", "comparison.csv", "report.html"}
    mean = f"{sum(row('geolrm', key, 4)['psnr_foreground'] for key in OBJECTS) / len(OBJECTS):.2f}"
    for name in ("comparison.md", "comparison.tex"):
        for method in METHODS:
            shown_as = re.escape(latex_text(method) if name.endswith("tex") else method)
            assert re.search(rf"{shown_as} [|&] \d/3 [|&] ", files[name])
        assert mean in files[name]
    assert re.search(rf"geolrm +3/3 +{mean} ±1.25", shown)
    assert "published: GeoLRM, GSO" in shown
    assert (
        "--methods crm gaussian_fitting geolrm_released geolrm_small instantmesh lgm nearest_view other_images refine"
        in shown
    )
    assert "procedural, 4 views, over all 3 objects" in files["report.html"]


def test_the_csv_has_every_mean_and_tells_measured_from_published(results):
    lines = list(csv.DictReader(io.StringIO(as_csv(summarise(results)))))
    measured = [line for line in lines if line["source"] == "measured"]
    key = {"method": "geolrm", "views": "4", "metric": "psnr_foreground"}
    (found,) = [line for line in measured if line["objects"] == "all" and {**line, **key} == line]
    assert float(found["mean"]) == pytest.approx(18.0)
    assert float(found["low"]) < 18 < float(found["high"])
    assert {line["views"] for line in measured} == {str(views) for views in VIEWS}
    papers = [line for line in lines if line["source"] == "published: GeoLRM, GSO" and line["metric"] == "psnr"]
    assert {line["method"]: line["mean"] for line in papers}["lgm"] == "20.76"
    assert all(line["differs"] and not line["n"] for line in papers)
    pairs = [line for line in lines if line["source"] == "difference: geolrm minus it"]
    assert {line["method"] for line in pairs} == set(METHODS) - {"geolrm"}
    (found,) = [line for line in pairs if {**line, **key, "method": "mean_colour"} == line]
    assert (found["objects"], found["n"]) == ("paired", "3")
    assert [float(found[name]) for name in ("mean", "low", "high")] == pytest.approx(
        [3.0] * 3
    )  # the same for each object


def test_every_line_of_the_latex_has_as_many_cells_and_no_bare_special_character(results):
    for table in tables(summarise(results)):
        rows = [line for line in table.latex().splitlines() if line.endswith(r"\\")]
        assert len(rows) == 1 + len(table.lines)
        for line in rows:
            assert len(re.findall(r"(?<!\\)&", line)) == len(table.heads) - 1
            assert not re.search(r"(?<!\\)[%#_]", line)
    assert latex_text("a_b & 5 % ±1") == r"a\_b \& 5 \% $\pm$1"


def test_nothing_on_the_front_is_beaten_and_everything_else_is():
    points = [(1.0, 10.0), (2.0, 9.0), (2.0, 12.0), (3.0, 12.0), (0.5, 3.0), (4.0, 20.0)]
    assert pareto_front(points, higher_is_better=True) == [(0.5, 3.0), (1.0, 10.0), (2.0, 12.0), (4.0, 20.0)]
    assert pareto_front(points, higher_is_better=False) == [(0.5, 3.0)]


def test_a_pareto_plot_has_a_point_per_view_count_and_leaves_out_what_is_empty():
    group = summarise_group(sweep_rows(), "geolrm")
    colours = method_colours(list(METHODS), "geolrm")
    traces = {t["name"]: t for t in pareto(group, "psnr_foreground", "latency_s", colours, "geolrm")["data"]}
    assert set(traces) == {"front", *METHODS} - {"white"}
    assert traces["geolrm"]["x"] == pytest.approx([0.1 + 0.02 * views for views in VIEWS])
    assert traces["geolrm"]["y"] == traces["front"]["y"]  # the others cost as much and give less
    assert pareto(group, "lpips_alex", "latency_s", colours, "geolrm") is None


def test_the_scatter_has_a_point_per_object_the_main_method_upright():
    chart = object_scatter(sweep_rows(), "psnr_foreground", 8, method_colours(list(METHODS), "geolrm"), "geolrm")
    traces = {t["name"]: t for t in chart["data"] if t["mode"] == "markers"}
    assert set(traces) == set(METHODS) - {"geolrm"}
    hull = traces["visual_hull"]
    assert dict(zip(hull["text"], hull["y"], strict=True)) == {
        k: row("geolrm", k, 8)["psnr_foreground"] for k in OBJECTS
    }
    assert dict(zip(hull["text"], hull["x"], strict=True)) == {
        k: row("visual_hull", k, 8)["psnr_foreground"] for k in OBJECTS
    }


def test_a_number_of_views_without_rows_is_refused_with_those_there_are(results):
    with pytest.raises(BadInput, match="there are 4, 8, 16, 21"):
        compare(Arguments(results=results, views=5))
