"""Means of rows with numbers that one can add up by hand: who counts, in which mean, in which unit."""

import csv
import io
import json

import pytest
from synthetic_results import OBJECTS, VIEWS, row, sweep_rows

from benchmarks.rows import GEOMETRY_METRICS, PICTURE_METRICS
from benchmarks.summary import (
    MEANS,
    common_objects,
    curve_csv,
    floor_means,
    groups,
    means,
    metrics_json,
    summarise,
    table,
)


def failed(made, status="failed", **values):
    return made | {"status": status, "reason": "made up"} | values


@pytest.fixture
def rows():
    """The made-up sweep; `geolrm` failed on the second object at 8 views."""
    made = sweep_rows()
    assert (made[5]["method"], made[5]["object"], made[5]["views"]) == ("geolrm", OBJECTS[1], 8)
    made[5] = failed(made[5], psnr=1.0)
    return made


def test_methods_stand_in_the_order_of_the_sweep_and_views_in_theirs():
    made = [row("white", OBJECTS[0], 16), row("geolrm", OBJECTS[0], 8), row("white", OBJECTS[0], 4)]
    assert [group[:2] for group in groups(made)] == [("white", 4), ("white", 16), ("geolrm", 8)]


def test_an_object_is_common_unless_a_method_that_can_do_any_failed_on_it(rows):
    assert common_objects(rows) == {OBJECTS[0], OBJECTS[2]}  # white, empty throughout, takes nothing away


def test_an_object_with_a_row_missing_is_no_common_one(rows):
    left = [r for r in rows if (r["method"], r["object"], r["views"]) != ("visual_hull", OBJECTS[2], 16)]
    assert common_objects(left) == {OBJECTS[0]}  # the second one failed
    assert common_objects([r for r in rows if r["method"] == "white"]) == set(
        OBJECTS
    )  # nobody able, nothing taken away


def test_a_method_that_cannot_take_some_view_count_or_was_only_timed_at_it_takes_no_object_away(rows):
    for status in ("not_applicable", "cost_only"):
        less = [r | ({"status": status} if r["method"] == "visual_hull" and r["views"] > 8 else {}) for r in rows]
        assert common_objects(less) == {OBJECTS[0], OBJECTS[2]}  # the second one failed
    some = [r | ({"status": "not_applicable"} if (r["object"], r["views"]) == (OBJECTS[0], 21) else {}) for r in rows]
    assert common_objects(some) == {OBJECTS[2]}  # where it takes others, what it does not take is not common


def test_a_failure_counts_and_what_was_not_applicable_or_installed_does_not():
    good = row("geolrm", OBJECTS[0], 4) | {"psnr": 20.0}
    found = means([good, failed(good, psnr=10.0), failed(good, "not_applicable"), failed(good, "not_installed")])
    assert (found["objects"], found["ok"], found["psnr"]) == (2, 1, 15.0)


def test_a_mean_is_over_the_rows_that_have_the_metric():
    made = [row("geolrm", key, 4) | {"ssim": value} for key, value in zip(OBJECTS, (0.2, None, 0.6), strict=True)]
    assert means(made)["ssim"] == pytest.approx(0.4)
    assert means(made)["lpips_vgg"] is None


def test_costs_alone_count_for_latency_and_memory_and_are_no_object():
    good = row("geolrm", OBJECTS[0], 4) | {"psnr": 20.0, "latency_s": 0.2}
    costs = row("geolrm", OBJECTS[1], 4) | dict.fromkeys((*PICTURE_METRICS, *GEOMETRY_METRICS))
    found = means([good, costs | {"status": "cost_only", "reason": "untrained", "latency_s": 0.6}])
    assert (found["objects"], found["ok"], found["psnr"], found["latency_s"]) == (1, 1, 20.0, pytest.approx(0.4))


def test_an_interval_is_of_the_objects_that_a_mean_is_of_a_failure_among_them():
    made = [row("geolrm", key, 4) | {"psnr": value} for key, value in zip(OBJECTS, (10.0, 10.0, 13.0), strict=True)]
    found = means([failed(made[0]), *made[1:]])
    assert (found["psnr"], found["intervals"]["psnr"]) == (11.0, [10.0, 13.0])  # test_bootstrap.py says why
    assert "psnr" not in means(made[1:])["intervals"]  # two objects have none


def test_objects_that_agree_leave_no_interval_whatever_other_view_counts_and_methods_say():
    made = [r | {"psnr": r["views"] + len(r["method"])} for r in sweep_rows()]
    for method, by_views in summarise(made)["all"].items():
        assert list(by_views) == [str(views) for views in VIEWS]  # by number: 4 comes before 16
        for views, found in by_views.items():
            value = int(views) + len(method)
            assert (found["objects"], found["psnr"], found["intervals"]["psnr"]) == (3, value, [value, value])


def test_the_floor_is_a_mean_over_objects_however_many_rows_each_has():
    made = [row("geolrm", OBJECTS[0], 4), row("geolrm", OBJECTS[0], 8), row("geolrm", OBJECTS[1], 4)]
    made[2] |= {"floor": made[2]["floor"] | {"cd_sum": 0.08}}
    assert floor_means(made)["cd_sum"] == pytest.approx(0.06)
    assert floor_means([made[0] | {"floor": None}]) == {}
    assert floor_means([made[0], made[2] | {"floor": None}])["cd_sum"] == pytest.approx(0.04)


def test_the_means_of_all_and_of_common_objects_are_both_there(rows):
    found = json.loads(metrics_json(rows))
    assert found == summarise(rows)
    every, common = (found[name]["geolrm"]["8"] for name in ("all", "common"))
    assert (every["objects"], every["ok"], common["objects"]) == (3, 2, 2)
    assert every["psnr"] == pytest.approx((2 * (18 + 1.5 + 4) + 1) / 3)
    assert common["psnr"] == pytest.approx(18 + 1.5 + 4)
    low, high = every["intervals"]["psnr"]
    assert low < every["psnr"] < high


def test_surfaces_of_two_kinds_are_told_apart_by_name():
    made = [row("geolrm", OBJECTS[0], 4, surface="mesh"), row("geolrm", OBJECTS[1], 4, surface="depth")]
    assert list(summarise(made)["all"]["geolrm"]) == ["4 depth", "4 mesh"]
    assert list(summarise(made[:1])["all"]["geolrm"]) == ["4"]


def test_the_curve_has_each_mean_with_its_bounds_and_a_gap_where_there_is_none(rows):
    lines = list(csv.DictReader(io.StringIO(curve_csv(rows))))
    assert len(lines) == 4 * len(VIEWS)
    assert set(MEANS) <= set(lines[0])
    assert not [name for name in lines[0] if name.startswith(("precision", "recall"))]
    first, mean = lines[0], means([r for r in rows if (r["method"], r["views"]) == ("geolrm", 4)])
    assert float(first["ssim"]) == pytest.approx(mean["ssim"], rel=1e-5)
    low, high = mean["intervals"]["psnr"]
    assert (float(first["psnr_low"]), float(first["psnr_high"])) == pytest.approx((low, high), rel=1e-5)
    assert (first["lpips_alex"], first["lpips_alex_low"], first["lpips_alex_high"]) == ("", "", "")
    assert float(first["peak_memory_bytes"]) == pytest.approx(
        340 * 2**20, rel=1e-5
    )  # the columns after a gap stay in their place


def test_the_table_shows_each_value_under_its_name_memory_in_mib_and_half_the_interval_below():
    made = [row("geolrm", key, 4) | {"lpips_alex": 0.25, "lpips_vgg": 0.5, "surface": "mesh"} for key in OBJECTS]
    head, line, halves = table(made).splitlines()
    names, values = head.replace("psnr fg", "psnr_fg").replace("cd sum", "cd_sum").split(), line.split()
    shown = dict(zip(names, values, strict=True))
    assert (shown["views"], shown["objects"], shown["ok"], shown["surface"]) == ("4", "3", "3", "mesh")
    assert (shown["psnr"], shown["psnr_fg"], shown["ssim"]) == ("22.00", "18.00", "0.820")
    assert (shown["lpips-v"], shown["lpips-a"], shown["F@0.05"]) == ("0.500", "0.250", "0.100")
    assert (shown["depth"], shown["seconds"], shown["MiB"]) == ("0.0100", "0.180", "340")
    low, high = means(made)["intervals"]["psnr"]
    assert halves.split()[0] == f"±{(high - low) / 2:.2f}"
    assert halves.index(halves.split()[0]) + len(halves.split()[0]) == line.index("22.00") + len("22.00")


def test_what_was_not_measured_is_a_dash_in_the_table_and_never_a_zero():
    head, line = table([row("geolrm", OBJECTS[0], 4) | {"peak_memory_bytes": None}]).splitlines()
    names, values = head.replace("psnr fg", "psnr_fg").replace("cd sum", "cd_sum").split(), line.split()
    shown = dict(zip(names, values, strict=False))  # the kind of surface is of two words
    assert (shown["lpips-v"], shown["lpips-a"], shown["MiB"]) == ("-", "-", "-")
    assert (shown["psnr"], shown["seconds"]) == ("20.75", "0.180")


def test_the_curve_is_in_the_order_of_the_views_and_in_the_units_of_the_rows(rows):
    lines = [line for line in csv.DictReader(io.StringIO(curve_csv(rows))) if line["method"] == "geolrm"]
    assert [line["views"] for line in lines] == ["4", "8", "16", "21"]
    assert [float(line["latency_s"]) for line in lines] == pytest.approx([0.18, 0.26, 0.42, 0.52])
    assert [(line["objects"], line["ok"]) for line in lines] == [("3", "3"), ("3", "2"), ("3", "3"), ("3", "3")]
    assert [(line["psnr_low"] == "", line["lpips_vgg"]) for line in lines] == [(False, "")] * 4
