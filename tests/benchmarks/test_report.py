"""The report says everything that the rows say, needs nothing from outside, and hides no gap."""

import json
import re

import numpy as np
import pytest
from synthetic_results import METHODS, OBJECTS, VIEWS, row, sweep_rows, write_lines, write_results, write_stats

from benchmarks.estimates import groups, summarise, summarise_group
from benchmarks.report import PAPER_SWEEP, build
from benchmarks.rows import check_row
from geolrm.failures import BadInput


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    results = write_results(folder / "results" / "smoke")
    write_stats(folder / "datasets")
    return build(results, summarise(results), folder / "datasets")


def without_plotly(page: str) -> str:
    return re.sub(r"<script>(?s:.*?)</script>", "", page)


def charts(page: str) -> dict:
    return json.loads(re.search(r'id="charts">(.*?)</script>', page).group(1))


def test_the_made_up_rows_are_rows():
    for made in sweep_rows():
        check_row(made)


def test_every_method_and_view_count_is_in_the_tables(page):
    text = without_plotly(page)
    for method in METHODS:
        for views in VIEWS:
            assert re.search(rf'<td class="text">{method}</td><td class="" data-v="{views}">{views}</td>', text)


def test_curves_have_a_line_per_method_over_the_view_counts(page):
    lines = [t for chart in charts(page).values() for t in chart["data"] if t.get("meta") and t["mode"] != "lines"]
    first = {t["meta"]: t for t in lines[: len(METHODS)]}
    assert set(first) == set(METHODS)
    assert first["geolrm"]["x"] == list(VIEWS)
    mean = [np.mean([row("geolrm", key, v)["psnr_foreground"] for key in OBJECTS]) for v in VIEWS]
    assert first["geolrm"]["y"] == pytest.approx(mean)


def test_the_gap_of_lpips_is_named_with_its_reason(page):
    text = without_plotly(page)
    assert "no values: no alex.pth (made up)" in text
    assert "LPIPS VGG</b> has no value in 48 rows: no vgg16.pth (made up)" in text


def test_floor_and_departures_from_the_protocol_are_said(page):
    text = without_plotly(page)
    assert "the truth against itself, 8192 points each: Chamfer, sum 0.040" in text
    assert "made-up with image_size 48, not 512" in text


def test_nothing_is_fetched_from_outside(page):
    tags = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", without_plotly(page))
    assert tags, "no tags found at all"
    assert not [tag for tag in tags if re.search(r'(?:src|href)\s*=\s*"(?!data:)', tag)]
    assert not re.search(r'(?:href|src)="https?:|@import|url\(', without_plotly(page))
    assert "Plotly" in page
    assert len(page) > 4_000_000


def test_pictures_of_the_best_and_the_worst_object_are_inside(page):
    text = without_plotly(page)
    best, worst = text.index(f"Best: {OBJECTS[2]}"), text.index(f"Worst: {OBJECTS[0]}")
    assert text[best:worst].count('src="data:image/webp;base64,') == 4 * len(VIEWS)
    assert "pictures were kept of 2 of the 3 objects" in text


def test_the_papers_numbers_stand_apart(page):
    text = without_plotly(page)
    box = text[text.index('<section id="paper">') :]
    box = box[: box.index("</section>")]
    assert "Not comparable" in box
    assert "25.13" in box
    assert "25.13" not in text.replace(box, "")
    assert PAPER_SWEEP["GeoLRM"][4][0] == 22.84


def test_drops_of_the_data_set_are_shown_by_reason(page):
    assert "pose_not_rotation: 1" in page


def test_a_name_from_outside_is_text_and_never_markup(tmp_path):
    results = write_results(tmp_path / "smoke")
    rows = [made | {"object": "</script><b>x"} for made in sweep_rows()[:4]]
    write_lines(results / "sweep" / "procedural" / "rows.jsonl", rows)
    text = build(results, summarise(results), tmp_path)
    assert "</script><b>x" not in text
    assert "&lt;/script&gt;&lt;b&gt;x" in text


def test_a_failed_row_is_listed_and_an_object_that_failed_is_no_common_one():
    rows = sweep_rows()
    rows[5] |= {"status": "failed", "reason": "RuntimeError: made up"}  # geolrm on the second object, 8 views
    group = summarise_group(rows, "geolrm")
    assert group["failures"] == [{n: rows[5][n] for n in ("method", "object", "views", "status", "reason")}]
    assert group["common_objects"] == [OBJECTS[0], OBJECTS[2]]
    at_8 = group["methods"]["mean_colour"]["8"]["metrics"]["psnr_foreground"]
    assert at_8["n"] == 3
    assert at_8["common"]["mean"] == pytest.approx(METHODS["mean_colour"] + 1.5)
    assert group["empty_by_design"] == ["white"]


def test_differences_are_paired_by_object():
    rows = [r for r in sweep_rows() if not (r["method"] == "mean_colour" and r["object"] == OBJECTS[2])]
    every = summarise_group(rows, "geolrm")["differences"]["mean_colour"]["4"]
    found = every["psnr_foreground"]
    assert (found["n"], found["low"]) == (2, None)
    assert set(every) >= {
        "psnr",
        "ssim",
        "cd_sum",
        "fscore_0.1",
        "mask_iou",
        "latency_s",
    }  # in every metric that both have
    assert found["mean"] == pytest.approx(3.0)  # though the means of both methods over their own objects differ by more


def test_objects_with_another_kind_of_surface_are_a_group_of_their_own():
    rows = [row("geolrm", OBJECTS[0], 4, "a", "mesh"), row("geolrm", OBJECTS[1], 4, "b", "mesh")]
    assert list(groups(rows)) == ["all objects", "a", "b"]
    rows.append(row("geolrm", OBJECTS[2], 4, "b", "depth"))
    assert list(groups(rows)) == ["a", "b, surface from depth", "b, surface from mesh"]


def test_validation_loss_of_the_last_tenth_is_set_beside_the_first(tmp_path):
    training = summarise(write_results(tmp_path / "smoke"))["training"]["reconstruction"]
    assert training["steps"] == 500
    assert training["validation_loss_last_tenth"] < 0.5 * training["validation_loss_first_tenth"]
    assert training["data_wait_share"] == pytest.approx(0.04)


def test_a_sweep_that_is_not_there_is_named(tmp_path):
    results = write_results(tmp_path / "smoke")
    with pytest.raises(BadInput, match="gso"):
        summarise(results, ["procedural", "gso"])
