"""The self-test passes on the harness as it is, and fails on one that is broken on purpose."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import scores, selftest
from benchmarks.selftest import Bench, Check
from geolrm.config import load_params
from geolrm.metrics import image
from geolrm.metrics.geometry import TrueSurface
from geolrm.metrics.perceptual import PerceptualMetrics
from geolrm.rendering import render

ROOT = Path(__file__).parents[2]
SIZE = 64
NO_LPIPS = PerceptualMetrics({}, {"alex": "lpips_alex: no weights", "vgg": "lpips_vgg: no weights"})


@pytest.fixture(scope="module")
def settings():
    sweep = load_params(ROOT / "presets" / "smoke.yaml").sweep
    mesh = sweep.mesh.model_copy(update={"resolution": 48, "cameras": 12, "image_size": SIZE})
    return sweep.model_copy(update={"image_size": SIZE, "mesh": mesh})


@pytest.fixture(scope="module")
def subject():
    return selftest.made_up(SIZE, dense=False)


@pytest.fixture
def bench(subject, settings):
    return Bench(subject, settings, NO_LPIPS)


def failed(checks) -> list[str]:
    return [check.name for check in checks if not check.passed]


def test_the_harness_passes_and_prints_its_floors(subject, settings):
    checks = selftest.run(subject, settings, NO_LPIPS)
    assert failed(checks) == []
    shown = "\n".join(map(str, checks))
    assert "the floor" in shown
    assert "through the converter: cd_sum" in shown
    assert "what every method must beat" in shown


def test_a_check_fails_beyond_its_bounds_and_never_without_any():
    assert not Check("a", 1.0, low=2.0).passed
    assert not Check("a", 3.0, high=2.0).passed
    assert not Check("a", float("nan"), high=2.0).passed
    assert not Check("a", float("nan"), low=2.0).passed
    assert Check("a", 3.0).passed


def test_half_a_pixel_in_the_renderer_is_caught(bench, monkeypatch):
    def displaced(gaussians, cameras, height, width, background=1.0):
        return render(gaussians, selftest.shifted(cameras, 0.5, 0.0, (height, width)), height, width, background)

    monkeypatch.setattr(selftest, "render", displaced)
    assert failed(selftest.gaussian_checks(bench)) == [
        "Gaussians on the true surface: columns that their masks are off"
    ]


def test_a_flipped_axis_in_the_stored_cameras_is_caught(bench):
    """Cameras whose y axis points up: the pictures of the truth's Gaussians do not lie on the stored ones any more."""
    flip = torch.diag(torch.tensor([1.0, -1.0, 1.0, 1.0]))
    tests = bench.scorer.test_views
    cameras = replace(tests.cameras, camera_to_world=tests.cameras.camera_to_world @ flip)
    bench.scorer = replace(bench.scorer, test_views=replace(tests, cameras=cameras))
    assert any("mask_iou" in name for name in failed(selftest.gaussian_checks(bench)))


def test_a_prediction_measured_in_its_own_box_is_caught(bench, monkeypatch):
    def own_box(self, points):
        points = np.asarray(points)
        low, high = points.min(axis=0), points.max(axis=0)
        return (points - (low + high) / 2) * 2 / (high - low).max()

    monkeypatch.setattr(TrueSurface, "mapped", own_box)
    found = failed(selftest.geometry_checks(bench))
    assert any(name.startswith("shifted") for name in found)
    assert any(name.startswith("scaled") for name in found)


def test_a_depth_error_that_leaves_out_what_is_missing_is_caught(bench, monkeypatch):
    def lenient(depth, alpha, true_depth):
        return (depth - true_depth).abs()[(true_depth > 0) & (alpha[:, 0] > 0.5)].sum().item()

    monkeypatch.setattr(image, "depth_error", lenient)
    assert failed(selftest.truth_checks(bench)) == ["empty: depth_error"]


def test_a_converter_that_moves_the_surface_is_caught(bench, monkeypatch):
    whole = scores.Scorer.mesh
    monkeypatch.setattr(
        scores.Scorer, "mesh", lambda self, p: replace(mesh := whole(self, p), vertices=mesh.vertices + 0.1)
    )
    assert any("through the converter: cd_sum" in name for name in failed(selftest.gaussian_checks(bench)))


def test_the_command_writes_its_numbers_and_fails_with_a_check(tmp_path, monkeypatch, subject, settings):
    """With the checks themselves replaced: what is told, and the status."""
    monkeypatch.setattr(selftest, "made_up", lambda size, dense: subject)
    monkeypatch.setattr(selftest, "load_perceptual", lambda *_: NO_LPIPS)
    monkeypatch.setattr(selftest, "run", lambda *_, planted: [Check("fine", 1.0, low=0.0), Check("only printed", 2.0)])
    arguments = {"params": ROOT / "presets" / "smoke.yaml", "output": tmp_path / "selftest.json"}
    assert selftest.main(**arguments) == 0
    record = json.loads((tmp_path / "selftest.json").read_text())
    assert record["values"] == {f"made up: {subject.key}": {"fine": 1.0, "only printed": 2.0}}
    assert record["passport"]["protocol_hash"]
    monkeypatch.setattr(selftest, "run", lambda *_, planted: [Check("broken", 1.0, high=0.0)])
    assert selftest.main(**arguments) == 1
    assert json.loads((tmp_path / "selftest.json").read_text())["failed"] == [f"made up: {subject.key}: broken"]
