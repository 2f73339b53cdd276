"""The report says everything that the rows say, needs nothing from outside, and hides no gap."""

import json
import re

import numpy as np
import pytest
from synthetic_results import METHODS, OBJECTS, VIEWS, picture, row, sweep_rows, write_lines, write_results, write_stats

from benchmarks import report
from benchmarks.estimates import groups, summarise, summarise_group
from benchmarks.report import (
    PAPER_SWEEP,
    Page,
    add_headline,
    add_paper,
    add_passport,
    add_sweep,
    add_training,
    build,
    dataset_stats,
    ranked_objects,
)
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


def sections(folder, rows, *adders):
    """The sections about a sweep of these rows alone."""
    write_lines(folder / "smoke" / "sweep" / "made" / "rows.jsonl", rows)
    summary, page = summarise(folder / "smoke"), Page()
    for add in adders:
        add(page, summary)
    add_sweep(page, folder / "smoke", "made", summary["sweeps"]["made"])
    return "\n".join(page.sections)


def tables(text):
    """Tables of a page: lists of lines, a line {head: (style, text)}."""
    found = []
    for table in re.findall(r"(?s)<table.*?</table>", text):
        heads = re.findall(r"<th class=\"[^\"]*\">(.*?)</th>", table)
        lines = [
            re.findall(r"<td class=\"([^\"]*)\"[^>]*>(.*?)</td>", line)
            for line in re.findall(r"<tr[^>]*>(.*?)</tr>", table)
        ]
        found.append([dict(zip(heads, line, strict=True)) for line in lines if line])
    return [table for table in found if table]


def test_the_best_method_is_bold_where_more_is_better_and_where_less_is(tmp_path):
    made = [
        row("geolrm", OBJECTS[0], 4) | {"psnr_foreground": 20.0, "cd_sum": 0.3},
        row("visual_hull", OBJECTS[0], 4) | {"psnr_foreground": 18.0, "cd_sum": 0.1},
        row("geolrm", OBJECTS[0], 8) | {"psnr_foreground": 15.0},
    ]
    ours, alone, hull = tables(sections(tmp_path, made))[0]
    assert (ours["Foreground PSNR (dB)"], hull["Foreground PSNR (dB)"]) == (("best", "20.00"), ("", "18.00"))
    assert (ours["Chamfer, sum"], hull["Chamfer, sum"]) == (("", "0.300"), ("best", "0.100"))
    assert alone["Foreground PSNR (dB)"] == ("", "15.00")  # nobody to be better than


def test_means_over_common_objects_stand_beside_those_over_all_and_a_failure_is_red(tmp_path):
    made = [row(method, key, 4) for method in ("geolrm", "visual_hull") for key in OBJECTS]
    made[0] |= {
        "status": "failed",
        "reason": "made up",
        "psnr_foreground": 0.0,
    }  # geolrm on the first, the hardest object
    ours, hull = tables(sections(tmp_path, made))[0]
    assert (ours["ok"], hull["ok"]) == (("bad", "2/3"), ("", "3/3"))
    assert hull["Foreground PSNR (dB)"][1].startswith("16.00")
    assert hull["Foreground PSNR (dB), common"][1].startswith("16.62")  # of the other two: 16 and 17.25
    assert ours["Foreground PSNR (dB), common"][1].startswith("18.62")


def test_a_gain_is_green_a_loss_red_and_bounds_run_from_low_to_high(tmp_path):
    made = [row(method, key, 4) for method in ("geolrm", "visual_hull", "white") for key in OBJECTS]
    for i, extra in enumerate((0.0, 0.5, 2.5)):
        made[3 + i]["psnr_foreground"] += extra
    made = [r | ({"psnr_foreground": 30.0} if r["method"] == "white" else {}) for r in made]
    hull, white = tables(sections(tmp_path, made))[1]
    style, shown = hull["4 views (dB)"]
    mean, low, high = map(float, re.match(r"(\S+) <small>\[(\S+), (\S+)\]", shown).groups())
    assert (style, mean) == ("good", 1.0)
    assert low < mean < high
    assert white["4 views (dB)"][0] == "bad"


def test_an_arrow_says_which_way_is_better(page):
    text = without_plotly(page)
    assert "Foreground PSNR (dB) <small>↑</small>" in text
    assert "Chamfer, sum <small>↓</small>" in text


def test_the_table_of_objects_holds_every_row_or_says_where_the_rest_is(page, tmp_path, monkeypatch):
    objects = next(t for t in tables(without_plotly(page)) if "object" in t[0])
    assert len(objects) == len(sweep_rows())
    assert {line["status"] for line in objects} == {
        ("text", "ok"),
        ("text", "empty"),
    }  # white is empty by design: not red
    monkeypatch.setattr(report, "MOST_ROWS", 2)
    text = sections(tmp_path, sweep_rows())
    assert "Every object, 48 rows (the first 2; all of them are in rows.jsonl)" in text
    assert len(next(t for t in tables(text) if "object" in t[0])) == 2


def test_the_best_object_is_best_on_average_over_the_view_counts(tmp_path):
    made = [row("geolrm", key, views) for key in OBJECTS[:2] for views in (4, 8)]
    for r, value in zip(made, (10.0, 30.0, 22.0, 22.0), strict=True):
        r["psnr_foreground"] = value
        picture(tmp_path / "artefacts" / "geolrm" / r["object"] / str(r["views"]) / "render.png", 1)
    assert ranked_objects(tmp_path, made, "geolrm") == [(OBJECTS[1], 22.0), (OBJECTS[0], 20.0)]


def test_the_headline_sets_the_method_beside_its_strongest_rival_at_the_fewest_and_the_most_views(tmp_path):
    text = sections(tmp_path, sweep_rows(), add_headline)
    cards = re.findall(r'<div class="card"><small>(.*?)</small><b>(.*?)</b><small>(.*?)</small>', text)
    assert cards[:2] == [
        ("geolrm, 4 views", "18.00 dB", "foreground PSNR · visual_hull: 16.00 dB"),
        ("geolrm, 21 views", "21.59 dB", "foreground PSNR · visual_hull: 19.59 dB"),
    ]
    assert ("SSIM", "0.905 ", "at 21 views") in cards
    assert f"<b>{12 * 'c'}</b>" in text  # the commit, cut to what tells it


def test_training_is_told_in_seconds_shares_and_mebibytes(page):
    text = without_plotly(page)
    assert "500 steps in 125 s, 4.0% of it waiting for data, peak memory 900 MiB" in text
    first, last, ratio = map(
        float, re.search(r"loss (\S+) in the first tenth, (\S+) in the last \((\S+) of it", text).groups()
    )
    assert ratio == pytest.approx(last / first, abs=0.01)
    assert ratio < 1
    assert "Validation pictures, step-000500" in text


def test_the_stats_of_shards_are_added_up_by_split(page, tmp_path):
    write_stats(tmp_path)
    (found,) = dataset_stats(tmp_path / "procedural" / "smoke").values()
    assert found == {
        **{"shards": 2, "drops": {"pose_not_rotation": 1}, "objects_in": 8, "objects_out": 7},
        **{"bytes_in": 2**25, "bytes_out": 2**23, "seconds": 3.0},
    }
    (line,) = next(t for t in tables(without_plotly(page)) if "MiB in" in t[0])
    shown = {name: text for name, (_, text) in line.items()}
    assert (shown["shards"], shown["objects in"], shown["objects out"]) == ("2", "8", "7")
    assert (shown["MiB in"], shown["MiB out"], shown["seconds"]) == ("32.0", "8.0", "3.0")


def test_a_sweep_of_two_commits_is_marked_mixed_and_one_of_two_data_sets_has_a_heading_for_each(tmp_path):
    made = [row("geolrm", OBJECTS[0], 4, "a"), row("geolrm", OBJECTS[1], 8, "b")]
    made[1] |= {"passport": made[1]["passport"] | {"commit": "d" * 40}}
    text = sections(tmp_path, made, add_passport)
    passport = {line["field"][1]: line["value"][1] for line in tables(text)[0]}
    assert "mixed" in passport["commit"]
    assert "mixed" not in passport["seed"]
    assert passport["input views, 8"] == "<code>[0, 3, 6, 9, 12, 15, 18, 21]</code>"
    assert [
        f"<h3>{name} · {count} objects</h3>" in text for name, count in (("all objects", 2), ("a", 1), ("b", 1))
    ] == [True] * 3
    assert "· 48" not in text


def test_tables_sort_by_the_value_and_not_by_how_it_is_shown(page):
    assert re.search(r'<td class="[^"]*" data-v="18.0">18.00 <small>', without_plotly(page))


def valued(method, metric, *values, views=4):
    """A row an object, of these values."""
    return [row(method, key, views) | {metric: value} for key, value in zip(OBJECTS, values, strict=True)]


def test_means_and_differences_are_of_objects_a_failed_one_among_them(tmp_path):
    """The bounds follow from the binomial law (test_bootstrap.py): one object of three differs by 3."""
    made = valued("geolrm", "psnr_foreground", 10.0, 10.0, 13.0) + valued("visual_hull", "psnr_foreground", 12, 12, 12)
    made[0] |= {"status": "failed", "reason": "made up"}
    means, differences, *_ = tables(sections(tmp_path, made))
    ours, hull = (line["Foreground PSNR (dB)"] for line in means)
    assert ours == ("", "11.00 <small>[10.00, 13.00]</small>")
    assert hull == ("best", "12.00 <small>[12.00, 12.00]</small>")
    assert differences[0]["4 views (dB)"] == ("bad", "-1.00 <small>[-2.00, +1.00]</small>")


def test_costs_are_shown_in_seconds_and_mebibytes_and_the_cheapest_is_the_best(tmp_path):
    made = valued("geolrm", "latency_s", 0.2, 0.4, 0.9) + valued("visual_hull", "latency_s", 0.1, 0.1, 0.1)
    for r in made:
        r["peak_memory_bytes"] = 3 * 2**20 if r["method"] == "geolrm" else 5 * 2**20
    ours, hull = tables(sections(tmp_path, made))[0]
    assert (ours["Latency (s)"][1].split()[0], hull["Latency (s)"][1].split()[0]) == ("0.500", "0.100")
    assert (ours["Latency (s)"][0], hull["Latency (s)"][0]) == ("", "best")
    assert (ours["Peak memory (MiB)"], hull["Peak memory (MiB)"]) == (
        ("best", "3 <small>[3, 3]</small>"),
        ("", "5 <small>[5, 5]</small>"),
    )


def test_view_counts_stand_in_the_order_of_numbers(tmp_path):
    means, differences, *_ = tables(sections(tmp_path, sweep_rows()[::-1]))
    assert [line["views"][1] for line in means if line["method"][1] == "geolrm"] == ["4", "8", "16", "21"]
    assert list(differences[0]) == ["against", "4 views (dB)", "8 views (dB)", "16 views (dB)", "21 views (dB)"]


def test_what_one_method_has_no_value_of_is_a_dash_that_sorts_as_nothing(tmp_path):
    made = [
        row("geolrm", OBJECTS[0], 4) | {"lpips_alex": 0.25},
        row("geolrm", OBJECTS[0], 8),
        row("white", OBJECTS[0], 4),
    ]
    text = sections(tmp_path, made)
    at_4, at_8, white = tables(text)[0]
    assert at_4["LPIPS AlexNet"] == ("", "0.250")
    assert at_8["LPIPS AlexNet"] == white["LPIPS AlexNet"] == ("", '<span class="quiet">–</span>')
    (difference,) = tables(text)[1]
    assert (difference["4 views (dB)"][1], difference["8 views (dB)"][1]) == ("+12.00", "–")
    objects = next(t for t in tables(text) if "object" in t[0])
    assert [line["LPIPS AlexNet"][1] for line in objects] == ["0.250", "–", "–"]
    assert 'data-v="">–' in text
    assert 'data-v="">' in text.partition("Every object")[2]


def test_the_table_of_objects_says_what_its_row_says(page):
    first = next(t for t in tables(without_plotly(page)) if "object" in t[0])[0]
    shown = {head: text for head, (_, text) in first.items()}
    assert (shown["object"], shown["method"], shown["views"]) == (OBJECTS[0], "geolrm", "4")
    assert (shown["Foreground PSNR (dB)"], shown["SSIM"], shown["Chamfer, sum"]) == ("16.75", "0.820", "0.250")
    assert (shown["Latency (s)"], shown["Peak memory (MiB)"]) == ("0.180", "340")


def test_the_rows_are_counted_by_how_they_ended(page):
    assert "<b>Rows</b>: 36 ok, 12 empty.</p>" in without_plotly(page)


def test_stages_are_means_over_objects_at_the_number_of_views_that_is_compared(tmp_path):
    made = [row("geolrm", key, views) for views in (4, 8) for key in OBJECTS] + [row("white", OBJECTS[0], 8)]
    for r, seconds in zip(made, (9.0, 9.0, 9.0, 0.1, 0.1, 0.4), strict=False):
        r["stages"] = {"proposal": seconds}
    text = sections(tmp_path, made)
    assert "Seconds by stage, 8 views" in text
    ours, white = next(t for t in tables(text) if "proposal" in t[0])
    assert (ours["proposal"][1], white["proposal"][1]) == ("0.200", "–")


def test_each_row_of_pictures_names_its_view_count_and_its_own_value(page):
    text = without_plotly(page)
    best, worst = text.index(f"Best: {OBJECTS[2]}"), text.index(f"Worst: {OBJECTS[0]}")
    shown = [re.findall(r"<td>(\d+) views<br>([\d.]+) dB</td>", part) for part in (text[best:worst], text[worst:])]
    assert shown[0] == [("4", "19.25"), ("8", "20.75"), ("16", "22.25"), ("21", "22.84")]
    assert shown[1] == [("4", "16.75"), ("8", "18.25"), ("16", "19.75"), ("21", "20.34")]


def test_the_first_and_the_last_tenth_of_a_training_are_tenths(tmp_path):
    results = write_results(tmp_path / "smoke")
    validated = {0: 8.0, 10: 4.0, 11: 100.0, 50: 100.0, 89: 100.0, 90: 1.0, 100: 2.0}
    steps = [
        {"step": step, "loss": 1.0, "step_s": 0.5, "data_wait_s": 0.1, "memory_bytes": step * 2**20}
        for step in range(1, 101)
    ]
    validations = [{"step": step, "validation/loss": loss} for step, loss in validated.items()]
    write_lines(results / "reconstruction" / "steps.jsonl", steps + validations)
    page = Page()
    add_training(page, results, summarise(results))
    said = page.sections[0].partition("<h3>reconstruction</h3>")[2]
    assert said.startswith(
        "<p>100 steps in 50 s, 20.0% of it waiting for data, peak memory 100 MiB. "
        "Validation loss 6 in the first tenth, 1.5 in the last (0.25 of it).</p>"
    )


def test_the_headline_says_what_was_swept_and_what_it_took(tmp_path):
    took = {"stage_seconds": {"shard": 61.2, "sweep": 30.5}}
    made = [
        r | ({"status": "failed"} if r["object"] == OBJECTS[1] else {}) for r in sweep_rows()
    ]  # all objects all the same
    text = sections(tmp_path, made, lambda page, summary: add_headline(page, summary | took))
    facts = dict(re.findall(r"<li><span>(.*?)</span><b>(.*?)</b></li>", text))
    assert (facts["sweep"], facts["objects"], facts["views"]) == ("made", "3 (procedural)", "4, 8, 16, 21")
    cards = re.findall(r'<div class="card"><small>(.*?)</small><b>(.*?)</b><small>(.*?)</small>', text)
    assert cards[2:] == [
        ("SSIM", "0.905 ", "at 21 views"),
        ("Chamfer, sum", "0.068 ", "at 21 views"),  # 2 (0.5 / 21 + 0.01)
        ("Latency", "0.520 s", "at 21 views"),
    ]
    assert "Stages: 92 s in all" in text
    assert [(line["stage"][1], line["seconds"][1]) for line in tables(text)[0]] == [
        ("shard", "61.2"),
        ("sweep", "30.5"),
    ]


def test_the_papers_numbers_stand_under_their_heads():
    page = Page()
    add_paper(page)
    lines = {tuple(text for _, text in [*line.values()][:2]): line for line in tables(page.sections[0])[0]}
    for key, values in {
        ("GeoLRM", "20"): ("25.13", "0.905", "1.84", "9.43"),
        ("InstantMesh", "4"): ("22.87", "0.832", "0.68", "22.09"),
    }.items():
        heads = ("PSNR (dB)", "SSIM", "time (s)", "memory (GB)")
        assert tuple(lines[key][head][1] for head in heads) == values
    assert len(lines) == 10


def test_a_difference_is_of_the_objects_of_one_data_set_and_view_count(tmp_path):
    made = [row(method, key, views) for method in ("geolrm", "visual_hull") for key in OBJECTS for views in (4, 8)]
    for r in made:
        r["psnr_foreground"] = r["views"] * (2.0 if r["method"] == "geolrm" else 1.0)
    (difference,) = tables(sections(tmp_path, made))[1]
    assert difference["4 views (dB)"] == ("good", "+4.00 <small>[+4.00, +4.00]</small>")
    assert difference["8 views (dB)"] == ("good", "+8.00 <small>[+8.00, +8.00]</small>")


def test_drops_add_up_over_the_shards_of_a_split_and_over_no_other(tmp_path):
    dropped = [
        ("train", {"empty_object": 1}),
        ("train", {"empty_object": 2, "tar_truncated": 1}),
        ("val", {"empty_object": 4}),
    ]
    counts = dict.fromkeys(("objects_in", "objects_out", "bytes_in", "bytes_out"), 0)
    for i, (split, drops) in enumerate(dropped):
        file = tmp_path / "shards" / f"{split}-{i:06d}.stats.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(counts | {"split": split, "drops": drops, "seconds": {"total": 1.0}}))
    found = {split: (stats["shards"], stats["drops"]) for split, stats in dataset_stats(tmp_path).items()}
    assert found == {"train": (2, {"empty_object": 3, "tar_truncated": 1}), "val": (1, {"empty_object": 4})}


def test_methods_are_compared_in_a_table_of_ours_and_one_of_ours_beside_published_numbers(page):
    text = without_plotly(page)
    ours = text.split("failures scored by their status</h3>")[1]
    beside = ours.split("<h4>Beside published numbers")[1].split("</table>")[0]
    ours = ours.split("</table>")[0]
    assert "published" not in ours
    assert "lgm" not in ours
    (cell,) = re.findall(r'<td class="text">geolrm</td>.*?title="(\S+) \[(\S+), (\S+)\]">±(\S+)</small>', ours)
    mean, low, high, half = map(float, cell)
    assert low < mean < high
    assert half == pytest.approx((high - low) / 2, abs=0.006)
    heads = re.findall(r"<th[^>]*>(.*?)</th>", beside)
    lines = dict(re.findall(r'<tr class=""><td class="text">(\w+)</td>(.*?)</tr>', beside))
    cells = {m: [re.sub("<.*?>", "", c) for c in re.findall("<td.*?</td>", line)] for m, line in lines.items()}
    assert heads[1:3] == ["PSNR, ours", "PSNR, published"]
    assert cells["geolrm"][:2] == [
        f"{np.mean([r['psnr'] for r in sweep_rows() if r['method'] == 'geolrm' and r['views'] == 21]):.2f}",
        "23.57",
    ]
    memory = np.mean([r["peak_memory_bytes"] for r in sweep_rows() if r["method"] == "geolrm" and r["views"] == 21])
    assert cells["geolrm"][-2:] == [f"{memory / 1e9:.2f}", "4.92"]
    assert cells["lgm"][:2] == ["–", "20.76"]
