"""Plotly figures of the report, as plain dictionaries.

In: summaries, result rows and training steps. Out: {"data": [...], "layout": {...}} that the page's script hands to Plotly.
Convention: a trace's `meta` is the method it belongs to (one legend steers all the charts of a section); the horizontal axis
of a sweep is the number of input views, that of a Pareto plot a cost, and its dashed line joins what nothing beats in both.
Trade: no plotly Python objects, so a report needs no import of it but for its script; colours of axes and text are the page's
(dark and light). Verified by what the report's tests read back from the page.
"""

from __future__ import annotations

from typing import Any

from benchmarks.estimates import METRICS
from geolrm.tracking import Record, numbers

Chart = dict[str, Any]

CURVES = (
    *("psnr_foreground", "psnr", "ssim", "lpips_alex", "lpips_vgg"),
    *("cd_sum", "fscore_0.1", "fscore_0.05", "latency_s", "peak_memory_bytes"),
)
GREY = "#8b9199"
COLOURS = ("#d98b2b", "#3a9d74", "#c4679b", "#7f72c6", "#c9584a", "#4fa3c7", "#9a8a3c", "#6b8f4e")
MAIN_COLOUR = "#3279bd"
LOGARITHMIC = {"type": "log", "tickvals": [m * 10.0**e for e in range(-5, 5) for m in (1, 2, 5)], "tickformat": "~g"}
FAR_APART = 20  # largest value over smallest, from which an axis of distances is logarithmic
MOST_POINTS = 800  # of a training curve


def method_colours(methods: list[str], main: str) -> dict[str, str]:
    """The main method blue, all-white grey, the others from a palette that reads on dark and on light."""
    others = [method for method in methods if method not in (main, "white")]
    chosen = {method: COLOURS[i % len(COLOURS)] for i, method in enumerate(others)}
    return {m: MAIN_COLOUR if m == main else GREY if m == "white" else chosen[m] for m in methods}


def view_curves(group: Record, metric: str, colours: dict[str, str], main: str) -> Chart | None:
    """A metric's means against the view count, a line per method with its 95 % band; None where no method has values."""
    spec = METRICS[metric]
    bands: list[Chart] = []
    lines: list[Chart] = []
    for method, cells in group["methods"].items():
        points = [(int(v), cell["metrics"][metric]) for v, cell in cells.items() if metric in cell["metrics"]]
        if not points:
            continue
        bounded = [(views, point) for views, point in points if point["low"] is not None]
        if bounded:
            bands.append(_band(bounded, spec.scale, method, colours[method]))
        lines.append(_line(points, metric, method, colours[method], method == main))
    views = group["views"]
    margin = max(1.0, (views[-1] - views[0]) * 0.05)
    axis = {"title": {"text": "input views"}, "tickvals": views, "range": [views[0] - margin, views[-1] + margin]}
    values = [value for line in lines for value in line["y"]]
    if not lines:
        return None
    layout: Chart = {"xaxis": axis}
    if metric.startswith("cd_") and 0 < min(values) < max(values) / FAR_APART:  # else one failure flattens all others
        layout["yaxis"] = LOGARITHMIC
    return {"data": bands + lines, "layout": layout}


def _band(points: list[tuple[int, Record]], scale: float, method: str, colour: str) -> Chart:
    views = [v for v, _ in points]
    edge = [p["high"] * scale for _, p in points] + [p["low"] * scale for _, p in reversed(points)]
    return {
        **{"type": "scatter", "mode": "lines", "meta": method, "x": views + views[::-1], "y": edge, "fill": "toself"},
        **{"fillcolor": colour + "22", "line": {"width": 0}, "hoverinfo": "skip"},
    }


def _line(points: list[tuple[int, Record]], metric: str, method: str, colour: str, is_main: bool) -> Chart:
    spec = METRICS[metric]
    texts = []
    for _, point in points:
        bounds = "" if point["low"] is None else f" [{spec.text(point['low'])}, {spec.text(point['high'])}]"
        texts.append(f"{spec.text(point['mean'])}{bounds} {spec.unit}, n = {point['n']}")
    return {
        **{"type": "scatter", "mode": "lines+markers", "meta": method, "name": method, "text": texts},
        "x": [views for views, _ in points],
        "y": [point["mean"] * spec.scale for _, point in points],
        "hovertemplate": "%{text}<br>%{x} views<extra>%{data.name}</extra>",
        "line": {"color": colour, "width": 3 if is_main else 1.6, "dash": "dot" if method == "white" else "solid"},
        "marker": {"size": 7 if is_main else 5, "color": colour},
    }


def pareto_front(points: list[tuple[float, float]], higher_is_better: bool) -> list[tuple[float, float]]:
    """Of points (cost, quality) those that no other beats or equals in both, cheapest first."""
    sign = -1 if higher_is_better else 1
    front: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda point: (point[0], sign * point[1])):
        if not front or sign * quality < sign * front[-1][1]:
            front.append((cost, quality))
    return front


def pareto(group: Record, metric: str, cost: str, colours: dict[str, str], main: str) -> Chart | None:
    """A metric's means against those of a cost, a line per method through its view counts, and the front of them all."""
    quality, price = METRICS[metric], METRICS[cost]
    lines: list[Chart] = []
    found: list[tuple[float, float]] = []
    for method, cells in group["methods"].items():
        if method in group["empty_by_design"]:
            continue
        points = [
            (cell["metrics"][cost]["mean"] * price.scale, cell["metrics"][metric]["mean"] * quality.scale, views)
            for views, cell in cells.items()
            if metric in cell["metrics"] and cost in cell["metrics"]
        ]
        found += [(x, y) for x, y, _ in points]
        if points:
            lines.append(
                {
                    **{"type": "scatter", "mode": "lines+markers+text", "meta": method, "name": method},
                    **{
                        "x": [x for x, _, _ in points],
                        "y": [y for _, y, _ in points],
                        "text": [v for _, _, v in points],
                    },
                    **{
                        "cliponaxis": False,
                        "textposition": "top center",
                        "textfont": {"size": 9, "color": colours[method]},
                    },
                    "hovertemplate": f"%{{y:.4g}} {quality.unit}<br>%{{x:.4g}} {price.unit}, %{{text}} views",
                    "line": {"color": colours[method], "width": 3 if method == main else 1.6},
                    "marker": {"size": 7 if method == main else 5, "color": colours[method]},
                }
            )
    if not lines:
        return None
    front = pareto_front(found, quality.higher_is_better)
    dashed = {
        **{"type": "scatter", "mode": "lines", "name": "front", "hoverinfo": "skip"},
        **{"x": [x for x, _ in front], "y": [y for _, y in front]},
        "line": {"color": GREY, "width": 1.2, "dash": "dash", "shape": "hv"},
    }
    axis: Chart = {"title": {"text": price.label}}
    if cost == "latency_s":
        axis |= LOGARITHMIC
    return {"data": [dashed, *lines], "layout": {"xaxis": axis}}


def object_scatter(rows: list[Record], metric: str, views: int, colours: dict[str, str], main: str) -> Chart | None:
    """Each object's value by the main method against that by every other of `colours`, at one number of views; equal on the
    dashed line."""
    spec = METRICS[metric]
    values: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["views"] == views and row["method"] in colours and metric in numbers(row):
            values.setdefault(str(row["method"]), {})[str(row["object"])] = numbers(row)[metric] * spec.scale
    ours = values.pop(main, {})
    traces: list[Chart] = []
    for method, theirs in values.items():
        both = [key for key in theirs if key in ours]
        if both:
            traces.append(
                {
                    **{"type": "scatter", "mode": "markers", "meta": method, "name": method, "text": both},
                    **{"x": [theirs[key] for key in both], "y": [ours[key] for key in both]},
                    "hovertemplate": f"%{{text}}<br>%{{x:.4g}} by {method}, %{{y:.4g}} by {main}<extra></extra>",
                    "marker": {"size": 7, "color": colours[method]},
                }
            )
    if not traces:
        return None
    ends = [pick(value for trace in traces for value in trace["x"] + trace["y"]) for pick in (min, max)]
    equal = {
        **{"type": "scatter", "mode": "lines", "x": ends, "y": ends, "hoverinfo": "skip"},
        "line": {"color": GREY, "width": 1.2, "dash": "dash"},
    }
    axes = {"xaxis": {"title": {"text": "another method"}}, "yaxis": {"title": {"text": main}}}
    return {"data": [equal, *traces], "layout": axes}


def training_charts(steps: list[Record]) -> dict[str, Chart]:
    """Charts of one training stage by title: loss with validation, parts of the loss, validation metrics, time a step."""
    trained = [step for step in steps if "loss" in step]
    validated = [step for step in steps if "validation/loss" in step]
    loss = [
        _trace(_thinned(trained), "loss", "each step", GREY, width=1, opacity=0.45),
        _trace(_thinned(_running_mean(trained, "loss")), "loss", "running mean", MAIN_COLOUR, width=2.4),
        _trace(validated, "validation/loss", "validation", COLOURS[0], width=2, mode="lines+markers"),
    ]
    charts = {"loss (grey: each step, blue: running mean, orange: validation)": _chart(loss, logarithmic=True)}
    parts = sorted({name for step in trained for name in step if name.startswith("loss/")})
    if parts:
        smooth = [
            _trace(_thinned(_running_mean(trained, name)), name, name.removeprefix("loss/"), colour, width=2)
            for name, colour in zip(parts, COLOURS, strict=False)
        ]
        charts["parts of the loss, running mean"] = _chart(smooth, logarithmic=True, legend=True)
    names = sorted({name for step in validated for name in numbers(step) if name.startswith("validation/")})
    for name in [name for name in names if name != "validation/loss"]:
        trace = _trace(validated, name, name, COLOURS[0], width=2, mode="lines+markers")
        charts[f"validation {name.removeprefix('validation/')}"] = _chart([trace])
    costs = [
        _trace(_thinned(trained), "step_s", "step", MAIN_COLOUR, width=1.2),
        _trace(_thinned(trained), "data_wait_s", "of it waiting for data", COLOURS[0], width=1.2),
    ]
    charts["seconds a step"] = _chart(costs, legend=True)
    return {title: chart for title, chart in charts.items() if any(trace["x"] for trace in chart["data"])}


def _chart(data: list[Chart], logarithmic: bool = False, legend: bool = False) -> Chart:
    layout: Chart = {"xaxis": {"title": {"text": "step"}}, "yaxis": {"type": "log" if logarithmic else "linear"}}
    if legend:
        layout |= {"showlegend": True, "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}}
    return {"data": data, "layout": layout}


def _trace(
    steps: list[Record], name: str, label: str, colour: str, *, width: float, opacity: float = 1.0, mode: str = "lines"
) -> Chart:
    with_value = [step for step in steps if step.get(name) is not None]
    return {
        **{
            "type": "scatter",
            "mode": mode,
            "name": label,
            "opacity": opacity,
            "line": {"color": colour, "width": width},
        },
        **{"marker": {"size": 5}, "x": [s["step"] for s in with_value], "y": [s[name] for s in with_value]},
        "hovertemplate": "%{y:.4g}<br>step %{x}<extra>%{data.name}</extra>",
    }


def _thinned(steps: list[Record]) -> list[Record]:
    """Every k-th step, so that at most `MOST_POINTS` are left."""
    return steps[:: max(1, -(-len(steps) // MOST_POINTS))]


def _running_mean(steps: list[Record], name: str) -> list[Record]:
    """Mean of `name` over the last fiftieth of the run, at every step that has it."""
    values = [(step["step"], float(step[name])) for step in steps if step.get(name) is not None]
    window = max(1, len(values) // 50)
    sums = [0.0]
    for _, value in values:
        sums.append(sums[-1] + value)
    spans = [(max(0, i + 1 - window), i + 1) for i in range(len(values))]
    return [
        {"step": step, name: (sums[end] - sums[start]) / (end - start)}
        for (step, _), (start, end) in zip(values, spans, strict=True)
    ]
