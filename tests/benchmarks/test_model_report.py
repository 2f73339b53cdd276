"""The page of the model's speed: floors counted by hand, tables and plots from planted rows."""

import json
from pathlib import Path

import pytest

from benchmarks.speed.model_report import Options, Work, attention_work, cross_work, main, pixels, slope
from geolrm.config import Transformer

TINY = Transformer(width=12, layers=2, heads=2, sampling_points=3)


def test_maps_have_a_cell_for_4_pixels_and_for_7() -> None:
    assert pixels(56) == (14 * 14, 8 * 8)
    assert pixels(512) == (128 * 128, 74 * 74)  # 518 pixels are 37 patches


def test_attention_is_counted_as_scores_values_and_four_projections() -> None:
    tokens, width = 5, 12
    scores_and_values, projections = 2 * 2 * tokens * tokens * width, 4 * 2 * tokens * width * width
    assert attention_work(TINY, tokens).flops == 2 * (scores_and_values + projections)


def test_gathers_are_four_corners_of_every_sample_of_every_view() -> None:
    views, tokens, heads, levels, points, corners, channels, bytes_each = 3, 5, 2, 2, 3, 4, 6, 2
    expected = views * tokens * heads * levels * points * corners * channels * bytes_each
    assert cross_work(TINY, 8, tokens, views, 56).gathered == 2 * expected


def test_the_floor_is_the_longer_of_products_and_bytes_and_the_gathers_on_top() -> None:
    ceilings = {"bf16_flops_per_s": 10.0, "copy_bytes_per_s": 5.0, "multiprocessors": 1 / (128 * 1.98e9)}
    assert Work(20, 5).floor(ceilings) == pytest.approx(2)
    assert Work(20, 50).floor(ceilings) == pytest.approx(10)
    assert Work(20, 50, 3).floor(ceilings) == pytest.approx(13)


def rows(views: int, way: str, whole: float) -> list[dict]:
    parts = (
        ("encoder", "transformer", "carving"),
        ("encoder", "token attention", "cross-attention", "feed-forward", "head"),
    )
    names = [f"{n}: {p}" for n, of in zip(("proposal", "reconstruction"), parts, strict=True) for p in of]
    shared = {"views": views, "anchors": 16, "implementation": way, "rounds": 1}
    shared |= {"peak_memory_bytes": views * 2**20, "reserved_memory_bytes": views * 2**21}
    seconds = {"whole": whole} | dict.fromkeys(names, whole / 10)
    return [{**shared, "part": p, "latency_s": s, "latency_p90_s": s} for p, s in seconds.items()]


def test_the_page_shows_both_ways_the_growth_per_view_and_each_part(tmp_path: Path) -> None:
    every = [row for v in (4, 21) for row in (*rows(v, "fast", 0.01 * v), *rows(v, "definition", 0.1 * v))]
    about = {"device": "D", "commit": "abc", "image_size": 56, "gaussians_per_anchor": 32, "parameters": 1e6}
    about |= {"versions": {"torch": "2"}}
    about |= {"ceilings": {"bf16_flops_per_s": 1e14, "copy_bytes_per_s": 1e12, "multiprocessors": 100}}
    sweep, more = tmp_path / "sweep.json", tmp_path / "more.json"
    sweep.write_text(json.dumps({"rows": every, "passport": about}))
    precision = {"psnr_db": 51.25, "occupancy_iou": 0.5}
    more.write_text(json.dumps({"rows": rows(64, "fast", 0.9), "passport": about | {"precision": precision}}))
    main(Options(results=(sweep, more), out=tmp_path / "page.md"))
    page = (tmp_path / "page.md").read_text()
    assert "| 21 | 210 | 210 | 0.02 | 0.04 | 2100 | 2100 | 0.02 | 0.04 | 10.0 |" in page
    assert "costs the fast model 10.0 ms and 1 MiB" in page
    assert slope(every, "latency_s") == pytest.approx(0.01)
    assert "| the rest | | | | | 42.0 | |" in page
    assert "64 views, 16 anchors: 900 ms" in page
    assert "51.2 dB" in page
    for name in ("latency", "memory"):
        assert (tmp_path / f"model-speed-{name}.svg").read_text().count("<circle") == 4
