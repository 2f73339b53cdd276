"""Tables and plots of `benchmarks/speed/model.py`'s results: latency, memory, and how far each part is from its floor.

In: its JSON files, the first with the sweep over view counts, the others with single runs. Out: a Markdown page and two SVG
plots beside it. Convention: the floor of a part is the larger of two times, matrix products at the rate and bytes at the
bandwidth that the same run measured; the gathers of cross-attention, which the caches serve, are counted at the multiprocessors'
own limit (128 bytes from the first-level cache a cycle) and added, for the products run before them. Trade: counted by
formula, weights and maps once, activations once in and once out. Verified by counting a tiny model by hand.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from geolrm.config import Encoder, Params, Transformer, load_params
from geolrm.files import write_whole
from geolrm.model import carving
from geolrm.model.encoder import PATCH, STRIDE

GIB, MIB = 2**30, 2**20
CYCLES_PER_S = 1.98e9  # of an H200's multiprocessors, as nvidia-smi shows them under load
COLOURS = {"fast": "#1b6ca8", "definition": "#b8522e"}


@dataclass(frozen=True)
class Options:
    """Write the page of the model's speed."""

    results: tuple[Path, ...] = (
        Path("docs/results/model-speed.json"),
        Path("docs/results/model-speed-million.json"),
        Path("docs/results/model-speed-more.json"),
    )
    """The sweep, and further runs."""
    out: Path = Path("docs/results/model-speed.md")
    params: Path = Path("presets/paper.yaml")
    views: int = 21
    """The view count of the table part by part."""


@dataclass(frozen=True)
class Work:
    """Floating-point operations of matrix products, bytes through device memory, bytes gathered through the caches."""

    flops: float
    bytes: float
    gathered: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes, self.gathered + other.gathered)

    def floor(self, ceilings: dict[str, float]) -> float:
        """Seconds below which no version runs."""
        cache = ceilings["multiprocessors"] * 128 * CYCLES_PER_S
        streamed = max(self.flops / ceilings["bf16_flops_per_s"], self.bytes / ceilings["copy_bytes_per_s"])
        return streamed + self.gathered / cache


def pixels(size: int) -> tuple[int, int]:
    """Cells a view of both feature maps."""
    low, patches = round(size / STRIDE) ** 2, round(size / PATCH) ** 2
    return low, 4 * patches


def encoder_work(s: Encoder, views: int, size: int) -> Work:
    low, high = pixels(size)
    width, tokens = s.dinov2_width, high // 4 + 1
    layer = 24 * tokens * width**2 + 4 * tokens**2 * width
    patches = high // 4
    flops = s.dinov2_layers * layer + 2 * patches * 3 * PATCH**2 * width
    flops += 2 * patches * width * s.channels * 16 + 2 * low * 9 * STRIDE**2 * s.channels
    weights = 2 * (12 * s.dinov2_layers * width**2 + 16 * width * s.channels)
    return Work(views * flops, weights + views * (12 * size**2 + 2 * (low + high) * s.channels))


def attention_work(s: Transformer, tokens: int) -> Work:
    flops = 4 * tokens**2 * s.width + 8 * tokens * s.width**2
    return Work(s.layers * flops, s.layers * (8 * s.width**2 + 16 * tokens * s.width))


def cross_work(s: Transformer, channels: int, tokens: int, views: int, size: int) -> Work:
    cells, samples = sum(pixels(size)) * views, s.heads * 2 * s.sampling_points
    flops = 2 * cells * channels * s.width + 2 * tokens * s.width * (3 * samples + s.width)
    streamed = 2 * cells * (channels + 2 * s.width) + 16 * tokens * s.width
    gathered = views * tokens * samples * 4 * (s.width // s.heads) * 2
    return Work(s.layers * flops, s.layers * streamed, s.layers * gathered)


def feed_work(s: Transformer, tokens: int) -> Work:
    multiple = s.feed_forward_multiple
    hidden = -(-8 * s.width // 3 // multiple) * multiple
    return Work(s.layers * 6 * tokens * s.width * hidden, s.layers * (6 * s.width * hidden + 12 * tokens * s.width))


def works(params: Params, views: int, size: int, anchors: int) -> dict[str, Work]:
    """What each part must do."""
    one, two = params.proposal, params.reconstruction
    coarse, fine = one.coarse_resolution**3, one.voxel_resolution**3
    numbers = two.gaussians_per_token * 14
    head = 2 * anchors * (two.transformer.width + numbers) * numbers
    channels = one.encoder.channels
    return {
        "proposal: encoder": encoder_work(one.encoder, views, size),
        "proposal: transformer": attention_work(one.transformer, coarse)
        + cross_work(one.transformer, channels, coarse, views, size)
        + feed_work(one.transformer, coarse),
        "proposal: carving": Work(
            2 * 27 * carving.WIDTH * (carving.CUES + 1) * fine,
            4 * (9 * fine + 3 * views * size**2),
            4 * 12 * fine * views,
        ),
        "reconstruction: encoder": encoder_work(two.encoder, views, size),
        "reconstruction: token attention": attention_work(two.transformer, anchors),
        "reconstruction: cross-attention": cross_work(two.transformer, channels, anchors, views, size),
        "reconstruction: feed-forward": feed_work(two.transformer, anchors),
        "reconstruction: head": Work(head, 4 * anchors * (two.transformer.width + 3 * numbers)),
    }


def picked(rows: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def sweep_table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| views | fast, ms | p90 | allocated, GiB | reserved | definition, ms | p90 | allocated, GiB | reserved | times |",
        "|" + "---|" * 10,
    ]
    for fast in picked(rows, part="whole", implementation="fast"):
        cells = [str(fast["views"])]
        plain = picked(rows, part="whole", implementation="definition", views=fast["views"], anchors=fast["anchors"])
        for row in (fast, *plain):
            times = (f"{1e3 * row[name]:.0f}" for name in ("latency_s", "latency_p90_s"))
            memory = (f"{row[name] / GIB:.2f}" for name in ("peak_memory_bytes", "reserved_memory_bytes"))
            cells += [*times, *memory]
        cells += [f"{plain[0]['latency_s'] / fast['latency_s']:.1f}"] if plain else [""] * 5
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def roofline_table(rows: list[dict[str, Any]], about: dict[str, Any], params: Params, views: int) -> list[str]:
    chosen = picked(rows, views=views, implementation="fast")
    measured = {row["part"]: row for row in chosen}
    whole = measured["whole"]
    lines = [
        "| part | TFLOP | GB streamed | GB gathered | floor, ms | measured, ms | times the floor |",
        "|" + "---|" * 7,
    ]
    total = 0.0
    needed = works(params, views, about["image_size"], whole["anchors"])
    for part, work in needed.items():
        floor, taken = work.floor(about["ceilings"]), measured[part]["latency_s"]
        total += floor
        lines.append(
            f"| {part} | {work.flops / 1e12:.2f} | {work.bytes / 1e9:.1f} | {work.gathered / 1e9:.0f} | {1e3 * floor:.1f} | "
            f"{1e3 * taken:.1f} | {taken / floor:.1f} |"
        )
    rest = whole["latency_s"] - sum(measured[part]["latency_s"] for part in needed)
    lines.append(f"| the rest | | | | | {1e3 * rest:.1f} | |")
    taken = whole["latency_s"]
    lines.append(f"| **whole** | | | | **{1e3 * total:.0f}** | **{1e3 * taken:.0f}** | **{taken / total:.1f}** |")
    return lines


def slope(rows: list[dict[str, Any]], name: str) -> float:
    """Growth of the fast whole from the fewest to the most views, per view."""
    ends = sorted(picked(rows, part="whole", implementation="fast"), key=lambda row: int(row["views"]))
    return (ends[-1][name] - ends[0][name]) / (ends[-1]["views"] - ends[0]["views"])


def plot(series: dict[str, list[tuple[float, float]]], title: str) -> str:
    """An SVG of lines over the number of views, logarithmic upwards, each point with its value."""
    from math import log10

    width, height, left, bottom, top = 640, 360, 56, 40, 40
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    low, high = log10(min(ys)) - 0.1, log10(max(ys)) + 0.15

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (x - min(xs)) / (max(xs) - min(xs)) * (width - left - 30)
        return across, height - bottom - (log10(y) - low) / (high - low) * (height - bottom - top)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/><text x="{left}" y="20" font-size="14">{title}</text>',
    ]
    for x in sorted(set(xs)):
        across, _ = place(x, min(ys))
        lines.append(f'<text x="{across:.0f}" y="{height - 20}" text-anchor="middle">{x:.0f}</text>')
    lines.append(f'<text x="{width / 2}" y="{height - 4}" text-anchor="middle">input views</text>')
    for name, points in series.items():
        places = [place(*point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>')
        for (x, y), (_, value) in zip(places, points, strict=True):
            lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{COLOURS[name]}"/>')
            lines.append(
                f'<text x="{x:.1f}" y="{y - 8:.1f}" text-anchor="middle" font-size="10" fill="{COLOURS[name]}">{value:.3g}</text>'
            )
        x, y = places[-1]
        lines.append(f'<text x="{x:.0f}" y="{y + 18:.0f}" text-anchor="end" fill="{COLOURS[name]}">{name}</text>')
    return "\n".join([*lines, "</svg>", ""])


def main(options: Options) -> None:
    files = [json.loads(path.read_text()) for path in options.results]
    rows, about = files[0]["rows"], files[0]["passport"]
    params = load_params(options.params)
    ceilings = about["ceilings"]
    anchors = rows[0]["anchors"]
    page = [
        f"# Speed and memory of the full-size model on one {about['device']}",
        "",
        f"Written by `python -m benchmarks.speed.model_report` from {', '.join(f'`{p.name}`' for p in options.results)};",
        f"measured by `python -m benchmarks.speed.model`. {about['image_size']} px, {anchors:,} anchors, "
        f"{anchors * about['gaussians_per_anchor']:,} Gaussians, {about['parameters'] / 1e6:.0f} million parameters, "
        f"commit `{str(about['commit'])[:10]}`, torch {about['versions']['torch']}.",
        "Fast: bf16 products with halved weights and fused kernels. Definition: readable PyTorch, float32, no TF32.",
        "",
        *sweep_table(rows),
        "",
        f"Each further view costs the fast model {1e3 * slope(rows, 'latency_s'):.1f} ms and "
        f"{slope(rows, 'peak_memory_bytes') / MIB:.0f} MiB (from the fewest to the most views).",
        "",
        "![latency](model-speed-latency.svg) ![memory](model-speed-memory.svg)",
        "",
        f"## Part by part at {options.views} views, against the floor",
        "",
        f"Ceilings measured in the same run: {ceilings['bf16_flops_per_s'] / 1e12:.0f} TFLOP/s in bf16, "
        f"{ceilings['copy_bytes_per_s'] / 1e12:.2f} TB/s; gathers at 128 bytes a cycle and multiprocessor.",
        "",
        *roofline_table(rows, about, params, options.views),
        "",
        "## Further runs",
        "",
    ]
    for more in files[1:]:
        page += [
            f"- {row['views']} views, {row['anchors']:,} anchors: {1e3 * row['latency_s']:.0f} ms, "
            f"{row['peak_memory_bytes'] / GIB:.2f} GiB allocated, {row['reserved_memory_bytes'] / GIB:.2f} reserved "
            f"(commit `{str(more['passport']['commit'])[:10]}`)."
            for row in picked(more["rows"], part="whole", implementation="fast")
        ]
        if "precision" in more["passport"]:
            precision = more["passport"]["precision"]
            page.append(
                f"- Random, deliberately wide weights: renders of fast and of float32 from the same anchors differ by "
                f"{precision['psnr_db']:.1f} dB PSNR, the proposals' voxels agree to an IoU of {precision['occupancy_iou']:.3f}."
            )
    write_whole(options.out, "\n".join([*page, ""]))
    for name, key, unit, title in (
        ("latency", "latency_s", 1e-3, "latency, ms"),
        ("memory", "peak_memory_bytes", GIB, "memory allocated, GiB"),
    ):
        series = {
            way: [(row["views"], row[key] / unit) for row in picked(rows, part="whole", implementation=way)]
            for way in ("fast", "definition")
        }
        chosen = {way: points for way, points in series.items() if points}
        write_whole(options.out.with_name(f"model-speed-{name}.svg"), plot(chosen, title))


if __name__ == "__main__":
    main(tyro.cli(Options))
