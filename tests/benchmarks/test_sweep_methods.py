"""The controls of the sweep on closed forms."""

import contextlib
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_sweep_views import RADIUS, BallSample, ball_pictures, fibonacci_ball, paint

from benchmarks import measure as measure_module
from benchmarks import rows
from benchmarks.measure import Effort, measure
from benchmarks.methods import Context, Method, Spec, gaussian_fitting, load_method, method_names, refine, sources, spec
from benchmarks.methods.gaussian_fitting import fit
from benchmarks.methods.nearest_view import nearest
from benchmarks.methods.visual_hull import carve, colour_from_views, surface_of, visible, visual_hull
from benchmarks.round_gaussians import half_spacing, mean_foreground_colour
from benchmarks.stages import name_stage, stage
from geolrm.config import load_params
from geolrm.data.rig import orbit_inputs, render_rig
from geolrm.failures import BadInput
from geolrm.gaussians import Gaussians
from geolrm.metrics.image import psnr, psnr_foreground
from geolrm.occupancy import voxel_centres
from geolrm.rendering import render
from geolrm.views import Views

SAMPLE = BallSample("test-0")
INPUTS = SAMPLE.views(orbit_inputs(8))
PRESET = load_params(Path(__file__).parents[2] / "presets" / "smoke.yaml")


def context(tmp_path, other_views=None) -> Context:
    return Context(PRESET, tmp_path, torch.device("cpu"), other_views or (lambda key, count: INPUTS))


def test_every_method_says_what_it_is():
    run_here = {"geolrm", "gaussian_fitting", "refine", "visual_hull", "nearest_view"}
    assert run_here | {"mean_colour", "other_images", "white"} <= set(method_names())
    for name in method_names():
        assert isinstance(spec(name), Spec)


def test_the_code_of_a_method_is_all_that_it_imports_from_its_neighbours():
    assert [file.name for file in sources("white")] == ["white.py"]
    names = {file.name for file in sources("gaussian_fitting")}
    assert names == {"gaussian_fitting.py", "visual_hull.py", "round_gaussians.py", "stages.py"}


def test_networks_count_as_code_of_the_methods_that_use_them_alone(monkeypatch):
    seen: list[Path] = []

    def hashed(file: Path) -> str:
        seen.append(file)
        return ""

    monkeypatch.setattr(rows, "sha256_of", hashed)
    for name, has_network in {"gaussian_fitting": False, "visual_hull": False, "geolrm": True, "refine": True}.items():
        seen.clear()
        rows.code_hash(sources(name))
        parts = {file.parent.name for file in seen}
        assert {"metrics", "rendering"} <= parts
        assert ({"model", "kernels"} & parts == {"model", "kernels"}) is has_network, name


def test_the_hull_holds_the_ball_and_little_more():
    grid = carve(INPUTS, 32)
    centres = voxel_centres(torch.ones_like(grid).nonzero(), 32)
    distance = centres.norm(dim=-1).reshape(grid.shape)
    assert grid[distance < RADIUS - 1.5 / 32].all()
    assert not grid[(distance > RADIUS + 0.1) & (centres[:, 2].reshape(grid.shape).abs() < 0.2)].any()


def test_what_no_frame_shows_stays_in_the_hull():
    """A camera too close to see the whole ball must not carve what it does not see."""
    camera = INPUTS.cameras[:1]
    narrow = replace(camera, intrinsics=camera.intrinsics * torch.tensor([[3.0, 1, 1], [1, 3.0, 1], [1, 1, 1]]))
    grid = carve(ball_pictures("close", narrow), 16)
    assert grid.all()  # the frame shows nothing but the ball


def test_surface_voxels_are_one_layer_with_outward_normals():
    grid = carve(INPUTS, 32)
    surface, normals = surface_of(grid)
    centres = voxel_centres(surface, 32)
    assert len(surface) < 0.5 * grid.sum()
    cosine = (torch.nn.functional.normalize(centres, dim=-1) * normals).sum(dim=-1)
    assert cosine.median() > 0.95
    full = torch.ones(4, 4, 4, dtype=torch.bool)
    assert len(surface_of(full)[0]) == 4**3 - 2**3  # the cube's faces are surface


def test_a_camera_sees_the_near_side_alone():
    points = fibonacci_ball(8000)
    camera = INPUTS.cameras[0]
    towards = torch.nn.functional.normalize(camera.positions - points, dim=-1)
    facing = (towards * torch.nn.functional.normalize(points, dim=-1)).sum(dim=-1)
    seen = visible(points, facing, camera, 1 / 64)
    assert seen[facing > 0.25].float().mean() > 0.98
    assert seen[facing < -0.3].float().mean() < 0.02


def test_hull_colours_are_those_of_the_side_that_is_seen():
    points = fibonacci_ball(2000)
    colours = colour_from_views(points, torch.nn.functional.normalize(points, dim=-1), INPUTS, 1 / 64)
    band = points[:, 2].abs() < 0.2
    assert (colours - paint(points)).abs()[band].mean() < 0.02


def test_the_hull_beats_the_mean_colour_of_its_own_pictures_and_repeats_to_the_bit():
    hull = visual_hull(INPUTS)
    truth = SAMPLE.test_views()
    images = render(hull, truth.cameras, *truth.size).colour.clamp(0, 1)
    flat = mean_foreground_colour(INPUTS).reshape(1, 3, 1, 1).expand_as(images)
    ours, theirs = (psnr_foreground(i, truth.composited(), truth.foreground).mean() for i in (images, flat))
    assert ours > theirs + 5
    again = visual_hull(INPUTS)
    assert all(torch.equal(a, b) for a, b in zip(hull.tensors, again.tensors, strict=True))


def test_masks_that_share_nothing_give_no_hull():
    empty = replace(INPUTS, alpha=torch.zeros_like(INPUTS.alpha))
    assert len(visual_hull(empty)) == 0


def test_half_spacing_is_half_a_voxel_on_a_whole_plane_and_more_on_a_sparse_one():
    plane = torch.cartesian_prod(torch.arange(20.0), torch.arange(20.0), torch.zeros(1)) / 32
    assert half_spacing(plane, 9.0).median() == pytest.approx(0.5 / 32)
    assert half_spacing(plane[::4], 9.0).median() > 0.7 / 32
    assert (half_spacing(plane[:3], 9.0) == 9.0).all()


@pytest.fixture
def trained(tmp_path):
    """Untrained networks of the smoke preset; the proposal is told to see everything."""
    from geolrm.model.proposal import ProposalNetwork
    from geolrm.model.reconstruction import ReconstructionNetwork
    from geolrm.training.checkpoint import save_checkpoint

    torch.manual_seed(0)
    proposal, reconstruction = ProposalNetwork(PRESET.proposal), ReconstructionNetwork(PRESET.reconstruction)
    torch.nn.init.constant_(proposal.upsampling.bias, 100.0)
    save_checkpoint(tmp_path / "proposal", "proposal", proposal, PRESET.proposal, {})
    save_checkpoint(tmp_path / "reconstruction", "reconstruction", reconstruction, PRESET.reconstruction, {})
    return tmp_path


def test_geolrm_and_its_controls_share_their_anchor_points_and_checkpoint(trained):
    other = ball_pictures("other", render_rig("other")[[0, 8]])
    white = replace(other, colour=torch.ones_like(other.colour))
    loaded = {
        n: load_method(n, context(trained, lambda key, count: white)) for n in ("geolrm", "mean_colour", "other_images")
    }
    views = INPUTS[[0, 4]]
    ours, flat, wrong = (method.reconstruct(views) for method in loaded.values())
    assert len({method.checkpoint for method in loaded.values()}) == 1
    anchors = PRESET.sweep.max_anchors
    assert len(flat) == anchors
    assert len(ours) == len(wrong) == anchors * PRESET.reconstruction.gaussians_per_token
    assert torch.allclose(flat.colours, mean_foreground_colour(views).expand(anchors, 3), atol=1e-6)
    per_anchor = ours.means.reshape(anchors, -1, 3) - flat.means[:, None]
    assert per_anchor.abs().max() <= PRESET.reconstruction.max_offset + 1e-5
    assert not torch.equal(ours.sh_dc, wrong.sh_dc)  # the pictures matter, and they alone differ


def test_a_missing_checkpoint_is_said_on_loading(tmp_path):
    with pytest.raises(BadInput, match="checkpoint_missing"):
        load_method("geolrm", context(tmp_path))


def test_latency_is_the_median_of_calls_without_the_warm_up():
    import time

    calls = []

    def slow_at_first(views):
        calls.append(len(calls))
        time.sleep(0.2 if len(calls) == 1 else 0.02)
        return Gaussians.empty()

    measured = measure(Method(slow_at_first), INPUTS, first=True)
    assert (len(calls), measured.runs) == (4, 3)
    assert 0.02 <= measured.latency_s < 0.15


def test_named_stages_add_up_and_are_medians_of_the_timed_runs(monkeypatch):
    import time

    slow = torch.nn.Identity()
    name_stage("network", slow)
    slow.register_forward_pre_hook(lambda *_: time.sleep(0.02))

    def reconstruct(views):
        slow(torch.zeros(1))
        for _ in range(2):
            with stage("half"):
                time.sleep(0.01)
        time.sleep(0.02)  # no stage's own
        return Gaussians.empty()

    measured = measure(Method(reconstruct), INPUTS, first=True)
    assert set(measured.stages) == {"network", "half"}
    assert all(seconds >= 0.02 for seconds in measured.stages.values())
    assert sum(measured.stages.values()) < measured.latency_s - 0.015 <= measured.latency_p90_s
    reconstruct(INPUTS)  # outside a measurement the names cost nothing and keep nothing


def test_a_stage_that_raises_leaves_no_stage_open():
    broken = torch.nn.Linear(2, 2)
    name_stage("network", broken)

    def reconstruct(views):
        with contextlib.suppress(RuntimeError):
            broken(torch.zeros(3))
        broken(torch.zeros(2))
        return Gaussians.empty()

    assert set(measure(Method(reconstruct), INPUTS, first=False).stages) == {"network"}


def test_a_slow_method_is_timed_once_on_a_cpu():
    import time

    def slow(views):
        time.sleep(0.6)
        return Gaussians.empty()

    measured = measure(Method(slow), INPUTS, first=False)
    assert measured.runs == 1
    assert math.isclose(measured.latency_s, 0.6, abs_tol=0.2)


def test_peak_memory_sees_what_the_method_held_for_a_moment():
    def light(views):
        return Gaussians.empty()

    def heavy(views):
        torch.ones(50_000_000)  # 200 MB
        return Gaussians.empty()

    before = measure(Method(light), INPUTS, first=False).peak_memory_bytes
    peak = measure(Method(heavy), INPUTS, first=False).peak_memory_bytes
    after = measure(Method(light), INPUTS, first=False).peak_memory_bytes
    assert peak - before > 150_000_000
    assert peak - after > 150_000_000 or after == peak  # the kernel may refuse to start its record anew


def test_the_nearest_view_is_the_input_itself_where_it_was_taken_and_its_neighbour_half_way(tmp_path):
    method = load_method("nearest_view", context(tmp_path))
    prediction = method.reconstruct(INPUTS)
    assert prediction.mesh is None
    own = prediction.render(INPUTS.cameras, *INPUTS.size)
    assert torch.equal(own.colour, INPUTS.composited())
    assert torch.equal(own.alpha, INPUTS.alpha)
    cameras = SAMPLE.cameras[[1, 22]]  # inputs are every third view of the orbit
    assert nearest(cameras, INPUTS) == [0, 7]
    assert prediction.render(cameras, 48, 48).colour.shape == (2, 3, 48, 48)


def test_fitting_brings_views_nearer_that_were_not_given_and_repeats_to_the_bit():
    small = SAMPLE.views(orbit_inputs(8)).resized(48, 48)
    truth = SAMPLE.test_views().resized(48, 48)
    hull = visual_hull(small, 24)

    def score(gaussians):
        images = render(gaussians, truth.cameras, *truth.size).colour.detach().clamp(0, 1)
        return psnr(images, truth.composited()).mean().item()

    with torch.no_grad():  # as the sweep calls methods
        fitted = fit(hull, small, 80)
        again = fit(hull, small, 80)
    assert score(fitted) > score(hull) + 1
    assert len(fitted) == len(hull)
    assert not any(tensor.requires_grad for tensor in fitted.tensors)
    assert all(torch.equal(a, b) for a, b in zip(fitted.tensors, again.tensors, strict=True))


def test_fitting_starts_from_the_hull_and_leaves_nothing_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(gaussian_fitting, "STEPS", 2)
    method = load_method("gaussian_fitting", context(tmp_path))
    assert len(method.reconstruct(INPUTS)) == len(visual_hull(INPUTS))
    assert len(method.reconstruct(replace(INPUTS, alpha=torch.zeros_like(INPUTS.alpha)))) == 0


def test_refine_starts_from_what_geolrm_gives(trained, monkeypatch):
    views = INPUTS[[0, 4]].resized(48, 48)
    ours = load_method("geolrm", context(trained))
    start = ours.reconstruct(views)
    monkeypatch.setattr(refine, "STEPS", 3)
    refined = load_method("refine", context(trained))
    moved = (refined.reconstruct(views).means - start.means).abs()
    assert 0 < moved.max() < 3.1 * gaussian_fitting.LEARNING_RATES[0]  # three steps of Adam
    assert refined.checkpoint == ours.checkpoint


def test_a_slow_method_is_not_timed_again_and_again(monkeypatch):
    monkeypatch.setattr(measure_module, "EFFORTS", {"cpu": (Effort(3, 3, 0.0),) * 2})
    made: list[Views] = []

    def reconstruct(views: Views) -> Gaussians:
        made.append(views)
        return Gaussians.empty()

    assert measure(Method(reconstruct), INPUTS, first=True).runs == 1
    assert len(made) == 2  # one to warm up
    assert measure(Method(reconstruct), INPUTS, first=False).runs == 1
    assert len(made) == 3
