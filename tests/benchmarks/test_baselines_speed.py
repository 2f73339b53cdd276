"""What the baselines cost, with small networks on a CPU: every number of views gives a row, and no row claims a quality."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_networks import SMOKE

from benchmarks.methods import Method, NotApplicable, lgm
from benchmarks.rows import GEOMETRY_METRICS, PICTURE_METRICS
from benchmarks.speed import baselines
from benchmarks.speed.baselines import Options, inputs_of, rows_of, run, table

OPTIONS = Options(views=(4, 6), params=Path("presets/smoke.yaml"), anchors=64, image_size=32, device="cpu", small=True)


@pytest.fixture
def quick(monkeypatch):
    """LGM for pictures of 32 pixels."""
    monkeypatch.setattr(lgm, "SIDE", 32)


def rows(name: str) -> list[dict]:
    told: list[dict] = []
    rows_of(name, OPTIONS, told.append)
    return told


@pytest.mark.parametrize(
    ("name", "taken", "made"),
    [
        ("geolrm", (4, 6), {"gaussians": 64 * SMOKE.reconstruction.gaussians_per_token}),
        ("lgm", (4,), {"gaussians": 4 * 16 * 16}),
        ("lgm-half", (4,), {"gaussians": 4 * 16 * 16}),
        ("crm", (6,), {"vertices", "faces"}),
        ("instantmesh", (4, 6), {"vertices", "faces"}),
    ],
)
def test_every_method_is_measured_at_the_view_counts_that_it_takes(quick, name, taken, made):
    found = rows(name)
    assert [row["views"] for row in found] == [4, 6]
    for row in found:
        assert row["weights"] == "random"
        assert not {*PICTURE_METRICS, *GEOMETRY_METRICS} & set(row)
        if row["views"] in taken:
            assert row["status"] == "ok"
            assert 0 < row["latency_s"] <= row["latency_p90_s"]
            assert row["peak_memory_bytes"] > 0
            assert row["made"] == made if isinstance(made, dict) else set(row["made"]) == made
            assert all(row["made"].values())
        else:
            assert row["status"] == "not_applicable"
            assert row["latency_s"] is None
            assert row["reason"]
    assert {row["precision"] for row in found if row["status"] == "ok"} == {"bfloat16" if "half" in name else "float32"}


def test_crm_sees_its_own_faces_and_the_others_an_orbit():
    assert inputs_of("crm", 6, OPTIONS).depth is not None
    for name, count in (("crm", 4), ("lgm", 6)):
        assert torch.allclose(inputs_of(name, count, OPTIONS).cameras.positions.norm(dim=-1), torch.tensor(2.0))


def raising(error: Exception):
    def reconstruct(views):
        if len(views) == 4:
            raise error
        return lgm.Gaussians.empty("cpu")

    return lambda options: Method(reconstruct, "none")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.cuda.OutOfMemoryError("no room\nmore"), "out_of_memory"),
        (NotApplicable("view_count", "x", "not so many"), "not_applicable"),
        (RuntimeError("broken"), "failed"),
    ],
)
def test_what_goes_wrong_at_one_view_count_is_a_row_and_the_rest_goes_on(monkeypatch, error, status):
    monkeypatch.setitem(baselines.MADE, "lgm", raising(error))
    first, second = rows("lgm")
    assert (first["status"], second["status"]) == (status, "ok")
    assert first["reason"]
    assert "more" not in first["reason"]
    text = table([first, second], "memory")
    assert f"lgm, 4 views: {status}: " in text
    assert "| lgm | 6 |" in text


def test_a_method_that_does_not_fit_at_all_is_a_row_per_view_count(monkeypatch):
    def load(options):
        raise torch.cuda.OutOfMemoryError("no room for its weights")

    monkeypatch.setitem(baselines.MADE, "lgm", load)
    found = rows("lgm")
    assert [(row["views"], row["status"]) for row in found] == [(4, "out_of_memory"), (6, "out_of_memory")]
    assert "no room" in found[0]["reason"]


def test_a_method_has_a_process_of_its_own_and_the_file_says_what_it_is(tmp_path):
    options = replace(OPTIONS, methods=("instantmesh",), views=(4,), out=tmp_path / "cost.json")
    (row,) = run(options)
    written = json.loads(options.out.read_text())
    assert written["rows"] == [row]
    assert written["passport"]["small"]
    assert "resident" in written["passport"]["memory"]
    page = options.out.with_suffix(".md").read_text()
    assert "random weights" in page
    assert "| instantmesh | 4 | float32 |" in page
