"""A chart says what the summary and the training steps say: values, bands, units, colours."""

import pytest

from benchmarks.charts import COLOURS, GREY, MAIN_COLOUR, MOST_POINTS, method_colours, training_charts, view_curves

COLOURED = {"geolrm": MAIN_COLOUR, "white": GREY}


def point(mean, low=None, high=None, n=3):
    return {"mean": mean, "low": low, "high": high, "n": n}


def curves(metric, **methods):
    """The chart of one metric; methods as {view count: point}."""
    cells = {m: {str(v): {"metrics": {metric: p}} for v, p in by_views.items()} for m, by_views in methods.items()}
    return view_curves({"methods": cells, "views": [4, 8, 16]}, metric, COLOURED, "geolrm")


def trace(chart, name):
    return next(found for found in chart["data"] if found.get("name") == name)


def test_the_main_method_is_blue_white_is_grey_and_no_two_others_share_a_colour():
    found = method_colours(["visual_hull", "white", "geolrm", "mean_colour"], "geolrm")
    assert (found["geolrm"], found["white"]) == (MAIN_COLOUR, GREY)
    assert (found["visual_hull"], found["mean_colour"]) == COLOURS[:2]


def test_a_line_lies_at_its_view_counts_and_its_band_runs_out_along_the_upper_bounds_and_back_along_the_lower():
    band, line = curves("psnr", geolrm={4: point(20, 19, 22), 16: point(25, 24, 27)})["data"]
    assert (line["x"], line["y"]) == ([4, 16], [20, 25])
    assert (band["x"], band["y"]) == ([4, 16, 16, 4], [22, 27, 24, 19])
    assert line["text"] == ["20.00 [19.00, 22.00] dB, n = 3", "25.00 [24.00, 27.00] dB, n = 3"]


def test_values_are_drawn_in_the_unit_that_their_title_names():
    band, line = curves("peak_memory_bytes", geolrm={4: point(3 * 2**20, 2**20, 5 * 2**20, n=7)})["data"]
    assert (line["y"], band["y"]) == ([3], [5, 1])
    assert line["text"] == ["3 [1, 5] MiB, n = 7"]


def test_one_failure_does_not_flatten_all_other_distances():
    near, far = {4: point(0.1), 16: point(0.2)}, {4: point(6.9), 16: point(6.9)}
    assert curves("cd_sum", geolrm=near, white=far)["layout"]["yaxis"]["type"] == "log"
    assert "yaxis" not in curves("cd_sum", geolrm=near)["layout"]
    assert "yaxis" not in curves("psnr", geolrm=near, white=far)["layout"]  # decibels are logarithms already


def test_without_intervals_there_is_no_band_and_without_values_no_chart():
    chart = curves("psnr", geolrm={4: point(20)}, white={4: point(9)})
    assert [found["mode"] for found in chart["data"]] == ["lines+markers"] * 2
    assert [found["line"]["dash"] for found in chart["data"]] == ["solid", "dot"]
    assert chart["layout"]["xaxis"]["tickvals"] == [4, 8, 16]
    assert (
        view_curves({"methods": {"geolrm": {"4": {"metrics": {}}}}, "views": [4]}, "psnr", COLOURED, "geolrm") is None
    )


@pytest.fixture
def training():
    """A thousand steps whose loss is the number of the step; half of it is the mask's."""
    steps = []
    for step in range(1, 1001):
        steps.append({"step": step, "loss": step, "loss/mask": step / 2, "step_s": 0.5, "data_wait_s": 0.1})
        if step % 500 == 0:
            steps.append({"step": step, "validation/loss": step * 2, "validation/psnr": 14.0})
    return training_charts(steps)


def test_the_running_mean_is_over_the_last_fiftieth_of_the_run(training):
    loss = training["loss (grey: each step, blue: running mean, orange: validation)"]
    mean = trace(loss, "running mean")
    assert mean["x"][-1] == 999  # of a thousand steps every second one is drawn
    assert mean["y"][-1] == pytest.approx(sum(range(980, 1000)) / 20)
    assert mean["y"][0] == 1  # of fewer steps where there are no more
    assert len(mean["x"]) == len(trace(loss, "each step")["x"]) == 500 <= MOST_POINTS


def test_validation_is_drawn_at_its_own_steps_on_the_axis_of_the_loss(training):
    loss = training["loss (grey: each step, blue: running mean, orange: validation)"]
    found = trace(loss, "validation")
    assert (found["x"], found["y"]) == ([500, 1000], [1000, 2000])
    assert loss["layout"]["yaxis"]["type"] == "log"
    assert training["validation psnr"]["data"][0]["y"] == [14.0, 14.0]
    assert training["validation psnr"]["layout"]["yaxis"]["type"] == "linear"


def test_parts_of_the_loss_and_the_time_of_a_step_have_charts_of_their_own(training):
    parts = training["parts of the loss, running mean"]
    assert [found["name"] for found in parts["data"]] == ["mask"]
    assert parts["data"][0]["y"][0] == 0.5
    seconds = training["seconds a step"]
    assert trace(seconds, "step")["y"][0] == 0.5
    assert trace(seconds, "of it waiting for data")["y"][0] == 0.1
    assert "validation loss" not in training


def test_a_stage_without_validation_has_no_empty_chart():
    charts = training_charts([{"step": 1, "loss": 1.0, "step_s": 0.5}])
    assert list(charts) == ["loss (grey: each step, blue: running mean, orange: validation)", "seconds a step"]
