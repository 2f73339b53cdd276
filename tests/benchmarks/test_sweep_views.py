"""The sweep on one closed form: a coloured ball, whose pictures, depth and surface are known without a renderer."""

import csv
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import sweep_views
from benchmarks.artefacts import ELEVATION, FRAMES, SECONDS, artefact_folder
from benchmarks.methods import Method, NotApplicable, Reconstruction
from benchmarks.published import UNTRAINED
from benchmarks.rows import FIELDS, IDENTITY, PASSPORT, append_row, check_row, key_of, read_rows
from benchmarks.scores import Scorer
from benchmarks.summary import table
from benchmarks.sweep_views import Arguments, DatasetSweep, check_apart, sweep, with_arguments
from geolrm.cameras import Cameras, orbit
from geolrm.config import load_params
from geolrm.data.rig import render_rig, test_rig, view_roles
from geolrm.failures import BadInput
from geolrm.files import sha256_of
from geolrm.gaussians import Gaussians
from geolrm.meshing import Mesh
from geolrm.metrics.geometry import missing_surface
from geolrm.metrics.image import PSNR_MAX
from geolrm.metrics.perceptual import COMMAND, FILES, PerceptualMetrics, load_perceptual
from geolrm.rendering import Rendering
from geolrm.tracking import read_records
from geolrm.views import Views

ROOT = Path(__file__).parents[2]
SIZE = 96
RADIUS = 0.4
NO_LPIPS = PerceptualMetrics({}, {"alex": "lpips_alex: no weights", "vgg": "lpips_vgg: no weights"})


def fibonacci_ball(count: int) -> torch.Tensor:
    index = torch.arange(count, dtype=torch.float64)
    z, azimuth = 1 - (2 * index + 1) / count, index * math.pi * (3 - math.sqrt(5))
    ring = (1 - z * z).sqrt()
    return RADIUS * torch.stack([ring * azimuth.cos(), ring * azimuth.sin(), z], dim=-1).float()


def paint(points: torch.Tensor) -> torch.Tensor:
    """Colours of surface points (..., 3): no symmetry that a wrong axis could hide behind."""
    return (0.5 + points @ torch.tensor([[0.8, 0.1, 0.0], [0.0, 0.7, 0.3], [0.2, 0.0, 0.9]])).clamp(0, 1)


def ball_depth(cameras: Cameras, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Depth (V, size, size) along the rays of pixel centres, 0 = missed, and where they hit (V, size, size, 3)."""
    origins, directions = cameras.rays(size, size)
    a, b = directions.square().sum(-1), (origins * directions).sum(-1)
    root = b * b - a * (origins.square().sum(-1) - RADIUS**2)
    depth = torch.where(root > 0, (-b - root.clamp(min=0).sqrt()) / a, 0.0)
    return depth, origins + depth[..., None] * directions


def ball_pictures(key: str, cameras: Cameras, size: int = SIZE, samples: int = 4) -> Views:
    """The ball traced through samples^2 rays a pixel, its depth through one."""
    fine, points = ball_depth(cameras, size * samples)
    hit = fine > 0
    colour = paint(points) * hit[..., None]

    def pixels(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(values, samples)

    alpha = pixels(hit[:, None].float())
    straight = torch.where(alpha > 0, pixels(colour.movedim(-1, 1)) / alpha.clamp(min=1e-6), 0.0)
    return Views(key, cameras, straight, alpha, ball_depth(cameras, size)[0])


@cache
def ball_at_test_views() -> Views:
    return ball_pictures("ball", test_rig())


class BallSample:
    """What the sweep reads of an object."""

    def __init__(self, key: str, orbit: int = 24, tests: bool = True, surface: bool = True, rig: str = "own"):
        cameras = render_rig(key)
        distinct = [i for i, role in enumerate(view_roles(cameras)) if role != "duplicate"]
        self.key, self.cameras = key, cameras[distinct]
        self.roles = view_roles(self.cameras)
        for i in range(orbit, 24):
            self.roles[i] = "other"
        self.test_cameras = test_rig() if tests else None
        self.points = fibonacci_ball(16384) if surface else None
        self.meta = {"surface": "closed form", "rig": rig}

    def views(self, indices) -> Views:
        return ball_pictures(self.key, self.cameras[list(indices)], samples=1)

    def test_views(self) -> Views:
        return replace(ball_at_test_views(), key=self.key)


class Balls:
    """A split of balls; `samples` counts how often one was read."""

    def __init__(self, *samples: BallSample):
        self._samples = {sample.key: sample for sample in samples}
        self.keys = list(self._samples)
        self.read = 0

    def sample(self, key: str) -> BallSample:
        self.read += 1
        return self._samples[key]


def ball_gaussians(views: Views) -> Gaussians:
    """The truth as a prediction: small Gaussians on the ball, inside by a pixel so that their blur does not widen it."""
    points = fibonacci_ball(20_000)
    sigma, upright = torch.full((len(points), 3), 0.004), torch.tensor([1.0, 0, 0, 0]).expand(len(points), 4)
    return Gaussians.from_activated(points * 0.95, paint(points), torch.full((len(points),), 0.6), sigma, upright)


def moved(shift: torch.Tensor | None = None, flip: int | None = None):
    def reconstruct(views: Views) -> Gaussians:
        gaussians = ball_gaussians(views)
        means = gaussians.means.clone()
        if shift is not None:
            means += shift
        if flip is not None:
            means[:, flip] *= -1
        return replace(gaussians, means=means)

    return reconstruct


def nothing(views: Views) -> Gaussians:
    return Gaussians.empty()


def params(methods, views=(4,), objects=1, artefacts=0, **changes):
    whole = load_params(ROOT / "presets" / "smoke.yaml")
    mesh = whole.sweep.mesh.model_copy(update={"resolution": 48, "cameras": 12, "image_size": 96})
    settings = {"methods": list(methods), "views": list(views), "objects": objects, "artefacts": artefacts}
    update = {**settings, "image_size": SIZE, "mesh": mesh, **changes}
    return whole.model_copy(update={"sweep": whole.sweep.model_copy(update=update)})


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run methods, given as functions or exceptions to raise on loading, over balls."""

    def run(
        methods,
        data=None,
        checkpoint=None,
        perceptual=NO_LPIPS,
        dataset_hash="d",
        code=(),
        listed=None,
        inputs="orbit",
        names=None,
        untrained=False,
        **settings,
    ):
        def load(name, context):
            if isinstance(methods[name], Exception):
                raise methods[name]
            return Method(methods[name], checkpoint)

        monkeypatch.setattr(sweep_views, "load_method", load)
        monkeypatch.setattr(sweep_views, "sources", lambda name: list(code))
        data = data or Balls(BallSample("test-0"))
        whole = params(methods, **settings)
        device = torch.device("cpu")
        output = tmp_path / "sweep"
        facts = (whole, tmp_path, output, perceptual, device, dataset_hash, listed, inputs, names)
        return DatasetSweep("balls", data, *facts, untrained=untrained).run()

    return run


@pytest.fixture(scope="module")
def scored():
    """Rows of the truth, of planted errors, and of nothing, by method."""
    import tempfile

    pixel = 2.0 * 2 * math.tan(math.radians(39.6 / 2)) / SIZE  # object units at the ball's centre
    methods = {
        "truth": ball_gaussians,
        "half_pixel": moved(shift=torch.tensor([0.0, 0.0, pixel / 2])),
        "flipped": moved(flip=1),
        "nothing": nothing,
    }
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_views, "load_method", lambda name, context: Method(methods[name]))
        patch.setattr(sweep_views, "sources", lambda name: [])
        one = DatasetSweep(
            *("balls", Balls(BallSample("test-0")), params(methods), Path(folder), Path(folder)),
            *(NO_LPIPS, torch.device("cpu"), "d"),
        )
        return {row["method"]: row for row in one.run()}


def test_the_truth_as_prediction_scores_high_in_every_metric(scored):
    row = scored["truth"]
    assert row["status"] == "ok"
    assert row["psnr"] > 38
    assert row["psnr_foreground"] > 34
    assert row["ssim"] > 0.99
    assert row["fscore_0.1"] > 0.99
    assert row["cd_sum"] < 0.12
    assert row["mask_iou"] > 0.97
    assert row["depth_error"] < 0.035  # they lie a little inside
    assert 0 <= row["psnr"] - row["psnr_pooled"] < 1


def test_nothing_scores_what_the_background_gives(scored):
    row, truth = scored["nothing"], ball_at_test_views()
    error = (1 - truth.composited()).square().mean(dim=(1, 2, 3))
    assert row["status"] == "empty"
    assert math.isclose(row["psnr"], (-10 * error.log10()).mean().item(), abs_tol=1e-3)
    assert {name: row[name] for name in missing_surface()} == missing_surface()
    assert row["mask_iou"] == 0
    assert row["depth_error"] == pytest.approx(math.sqrt(3))


def test_half_a_pixel_of_shift_costs_in_the_pictures(scored):
    truth, shifted = scored["truth"], scored["half_pixel"]
    assert shifted["psnr"] < truth["psnr"] - 3
    assert shifted["ssim"] < truth["ssim"]


def test_a_flipped_axis_costs_in_the_pictures_though_the_ball_is_as_round(scored):
    assert scored["flipped"]["psnr_foreground"] < scored["truth"]["psnr_foreground"] - 8
    assert math.isclose(scored["flipped"]["cd_sum"], scored["truth"]["cd_sum"], rel_tol=0.1)


def test_every_row_has_every_field_and_a_whole_passport(scored):
    for row in scored.values():
        check_row(row)
        assert set(row) == set(FIELDS)
        assert set(PASSPORT) <= set(row["passport"])
        assert row["input_views"] == [0, 6, 12, 18]
        assert (row["surface"], row["inputs"], row["rig"]) == ("closed form", "orbit", "own")
        assert row["floor"]["points"] == 8192  # half of the points that the balls have
        assert 0.03 < row["floor"]["cd_sum"] < 0.06
        assert row["cd_sum_100k"] is row["fscore_0.1_visible"] is None  # this preset does not ask for them
        assert "image_size 96, not 512" in row["passport"]["deviations"]
        assert row["latency_s"] > 0
        assert row["peak_memory_bytes"] > 10_000_000
        assert "lpips_vgg: no weights" in row["reason"]  # a null says why


def ball_mesh() -> Mesh:
    import trimesh

    ball = trimesh.creation.icosphere(5, RADIUS)
    vertices = torch.from_numpy(np.array(ball.vertices)).float()
    return Mesh(vertices, torch.from_numpy(np.array(ball.faces)), paint(vertices))


def true_pictures(cameras: Cameras, height: int, width: int) -> Rendering:
    truth = ball_at_test_views()
    return Rendering(truth.composited(), truth.alpha, truth.depth)


def test_what_is_no_set_of_gaussians_is_measured_by_its_own_pictures_and_mesh(run, tmp_path):
    methods = {
        "whole": lambda views: Reconstruction(true_pictures, ball_mesh),
        "pictures": lambda views: Reconstruction(true_pictures),
        "blank": lambda views: Reconstruction(
            lambda c, h, w: Rendering(torch.ones(16, 3, h, w), torch.zeros(16, 1, h, w), torch.zeros(16, h, w)),
            Mesh.empty,
        ),
        "wild": lambda views: Reconstruction(
            lambda c, h, w: Rendering(
                torch.full((16, 3, h, w), torch.nan), torch.ones(16, 1, h, w), torch.ones(16, h, w)
            )
        ),
    }
    rows = {row["method"]: row for row in run(methods, artefacts=1)}
    assert {name: row["status"] for name, row in rows.items()} == {
        "whole": "ok",
        "pictures": "ok",
        "blank": "empty",
        "wild": "failed",
    }
    whole, pictures = rows["whole"], rows["pictures"]
    assert whole["psnr"] == pictures["psnr"] == PSNR_MAX
    assert (whole["mask_iou"], whole["depth_error"], whole["gaussians"]) == (1.0, 0.0, None)
    assert whole["cd_sum"] < 0.035
    assert whole["fscore_0.05"] > 0.999
    assert pictures["cd_sum"] is pictures["depth_error"] is None
    assert "the method claims no surface" in pictures["reason"]
    for name in ("blank", "wild"):
        assert rows[name]["cd_sum"] == missing_surface()["cd_sum"]
    files = {p.name for p in artefact_folder(tmp_path / "sweep", "whole", "test-0", 4).iterdir()}
    assert {"render.png", "mesh.glb"} <= files
    assert "gaussians.ply" not in files


def test_full_geometry_is_measured_at_more_points_and_where_the_test_views_look(run):
    pytest.importorskip("open3d")
    dense, sparse = BallSample("dense"), BallSample("sparse")
    dense.points = fibonacci_ball(100_000)

    def filled(views):
        """The ball with another one inside, as scans close what they did not see."""
        mesh = ball_mesh()
        vertices, faces = (
            torch.cat([mesh.vertices, mesh.vertices / 2]),
            torch.cat([mesh.faces, mesh.faces + len(mesh.vertices)]),
        )
        return Reconstruction(true_pictures, lambda: Mesh(vertices, faces, paint(vertices)))

    methods = {"whole": lambda views: Reconstruction(true_pictures, ball_mesh), "filled": filled, "white": nothing}
    rows = run(methods, Balls(dense, sparse), objects=2, full_geometry=True)
    of = {(row["method"], row["object"]): row for row in rows}
    whole, inner = of["whole", "dense"], of["filled", "dense"]
    assert whole["cd_sum_100k"] < 0.5 * whole["cd_sum"]
    assert whole["cd_sum_visible"] < 0.02
    assert inner["precision_0.2"] < 0.85 < whole["precision_0.2"]
    assert inner["precision_0.2_100k"] < 0.85
    assert inner["precision_0.05_visible"] == whole["precision_0.05_visible"] == 1.0
    assert of["white", "dense"]["cd_sum_visible"] == missing_surface()["cd_sum"]
    assert of["whole", "sparse"]["cd_sum_100k"] is None
    assert "100k: the data set stores 16384 points" in of["whole", "sparse"]["reason"]
    assert of["whole", "sparse"]["cd_sum_visible"] < 0.02


def test_each_set_of_inputs_is_a_sweep_of_its_own(tmp_path, monkeypatch, capsys, small):
    monkeypatch.setattr(sweep_views, "open_dataset", lambda *_: (Balls(BallSample("test-0")), "d"))
    arguments = Arguments(
        params=small,
        methods=("white",),
        views=(4, 6),
        output=tmp_path / "out",
        device="cpu",
        objects=1,
        processes="shared",
    )
    rows = sweep(replace(arguments, inputs=("orbit", "nested", "random"), dataset=("balls",)))
    assert set(rows) == {"balls", "balls-nested", "balls-random"} == {p.name for p in (tmp_path / "out").iterdir()}
    picked = {name: {row["views"]: row["input_views"] for row in found} for name, found in rows.items()}
    assert picked["balls"][6] == [0, 4, 8, 12, 16, 20]
    assert picked["balls-nested"] == {4: [0, 12, 6, 18], 6: [0, 12, 6, 18, 3, 15]}
    assert picked["balls-random"][6][:4] == picked["balls-random"][4]
    assert {name: found[0]["inputs"] for name, found in rows.items()}["balls-random"] == "random"
    shown = capsys.readouterr().out
    assert "balls-nested:  4 inputs of test-0: 0 12 6 18" in shown
    assert "truth against truth" in shown
    assert "image_size 96, not 512" in shown
    before = (tmp_path / "out" / "balls-nested" / "rows.jsonl").read_text()
    sweep(replace(arguments, inputs=("nested",), dataset=("balls",)))
    assert (tmp_path / "out" / "balls-nested" / "rows.jsonl").read_text() == before


def test_a_list_of_objects_is_swept_in_its_order_and_refused_where_one_is_missing(run):
    data = Balls(*(BallSample(f"ball-{i}") for i in range(3)))
    rows = run({"white": nothing}, data, names=["ball-2", "ball-0", "ball-9"], objects=2)
    assert [row["object"] for row in rows] == ["ball-2", "ball-0"]
    with pytest.raises(BadInput, match="1 of its first 3 objects are not here, ball-9"):
        run({"white": nothing}, data, names=["ball-2", "ball-0", "ball-9"], objects=3)


def test_an_object_with_native_cameras_is_measured_on_views_held_out_of_its_own(run):
    seen = []

    def looks(views):
        seen.append(views.cameras)
        return ball_gaussians(views)

    sample = BallSample("native-0", tests=False, rig="native")
    (row,) = run({"looks": looks}, Balls(sample), views=(6,))
    assert (row["rig"], row["status"], row["test_views"]) == ("native", "ok", 14)
    assert row["input_views"] == [0, 4, 8, 12, 16, 20]
    assert row["psnr"] > 30
    check_apart(seen[0], sample.cameras[list(range(24, 38))], "balls")


def test_own_and_native_cameras_are_never_in_one_mean(run):
    with pytest.raises(BadInput, match="rigs_mixed"):
        run({"white": nothing}, Balls(BallSample("a", tests=False, rig="native"), BallSample("b")), objects=2)


def test_pictures_smaller_than_those_to_compare_are_refused(run):
    with pytest.raises(BadInput, match="truth_too_small"):
        run({"white": nothing}, image_size=2 * SIZE)


def test_inputs_are_spread_over_the_orbit_and_never_among_the_test_views(run):
    seen = []

    def looks(views):
        seen.append(views.cameras)
        return Gaussians.empty()

    rows = run({"looks": looks}, views=(4, 21))
    assert [row["input_views"] for row in rows] == [[0, 6, 12, 18], [24 * i // 21 for i in range(21)]]
    for cameras in seen:
        check_apart(cameras, test_rig(), "balls")
    with pytest.raises(BadInput, match="test_view_among_inputs"):
        check_apart(test_rig()[3:5], test_rig(), "balls")


def test_an_interrupted_sweep_makes_only_the_missing_rows(run, tmp_path):
    calls = []

    def stopped(views):
        calls.append(len(views))
        if len(calls) > 2:
            raise KeyboardInterrupt
        return Gaussians.empty()

    with pytest.raises(KeyboardInterrupt):
        run({"white": nothing, "counted": stopped}, views=(4, 8))
    file = tmp_path / "sweep" / "rows.jsonl"
    before = read_rows(file)
    assert 0 < len(before) < 4
    with file.open("a") as cut:
        cut.write('{"method": "cut sh')  # what a kill in the middle of a line leaves
    calls.clear()

    def counted(views):
        calls.append(len(views))
        return Gaussians.empty()

    rows = run({"white": nothing, "counted": counted}, views=(4, 8))
    assert rows[: len(before)] == before
    assert len(rows) == 4
    done = [row["views"] for row in before if row["method"] == "counted"]
    assert set(calls) == {4, 8} - set(done)
    calls.clear()
    assert run({"white": nothing, "counted": counted}, views=(4, 8)) == rows
    assert not calls


def test_a_sweep_of_another_method_runs_while_one_is_at_work_in_its_folder_and_neither_loses_a_row(run, tmp_path):
    file, others = tmp_path / "sweep" / "rows.jsonl", []

    def busy(views):
        if len(views) == 8 and not others:
            others.extend(run({"other": nothing}))
        return Gaussians.empty()

    rows = run({"busy": busy}, views=(4, 8))
    assert [row["method"] for row in others] == ["other"]
    assert {key_of(row) for row in read_rows(file)} == {key_of(row) for row in rows + others}
    run({"busy": busy}, views=(4, 8))  # alone again: what nothing asks for goes
    assert read_rows(file) == rows


def test_rows_and_files_that_nothing_asks_for_are_removed_and_the_rest_is_not_made_again(run, tmp_path):
    data, file = Balls(BallSample("test-0"), BallSample("test-1")), tmp_path / "sweep" / "rows.jsonl"
    run({"white": nothing, "gone": nothing}, data, views=(4, 8), objects=2, artefacts=2)
    before = {key_of(row): row for row in read_rows(file)}
    assert len(before) == 8
    data.read = 0
    assert run({"white": nothing}, data, views=(8,), objects=1, artefacts=2) == [before["white", "test-0", 8]]
    assert data.read == 0
    assert read_rows(file) == [before["white", "test-0", 8]]
    left = list((tmp_path / "sweep" / "artefacts").rglob("render.png"))
    assert left == [artefact_folder(tmp_path / "sweep", "white", "test-0", 8) / "render.png"]


def test_rows_that_the_params_file_asks_for_outlive_a_command_that_asks_for_others(run, tmp_path):
    listed = params({"white": nothing, "other": nothing}, views=(4, 8)).sweep
    run({"white": nothing, "other": nothing}, views=(4, 8))
    assert len(run({"white": nothing}, views=(4, 16), listed=listed)) == 2
    rows = read_rows(tmp_path / "sweep" / "rows.jsonl")
    expected = {("white", 4), ("white", 8), ("white", 16), ("other", 4), ("other", 8)}
    assert {(row["method"], row["views"]) for row in rows} == expected


def test_a_finished_sweep_run_again_reads_no_object(run):
    data = Balls(BallSample("test-0"))
    run({"white": nothing}, data)
    data.read = 0
    run({"white": nothing}, data)
    assert data.read == 0


@pytest.mark.parametrize(
    "changed", [{"checkpoint": "other"}, {"dataset_hash": "other"}, {"image_size": 48}, {"seed": 7}]
)
def test_rows_of_another_checkpoint_dataset_protocol_or_seed_are_made_anew(run, changed):
    before = run({"white": nothing}, checkpoint="first")
    after = run({"white": nothing}, **{"checkpoint": "first", **changed})
    assert len(after) == 1
    assert {name: after[0]["passport"][name] for name in IDENTITY} != {
        name: before[0]["passport"][name] for name in IDENTITY
    }


def test_the_number_of_anchors_concerns_methods_with_weights_alone(run, tmp_path):
    before = run({"white": nothing}, checkpoint="first", max_anchors=7)
    assert run({"white": nothing}, checkpoint="first", max_anchors=8) != before
    before = run({"white": nothing}, max_anchors=7)
    assert run({"white": nothing}, max_anchors=8) == before


def test_rows_without_lpips_are_made_anew_once_its_weights_are_here(run, shared):
    assert run({"white": nothing})[0]["lpips_alex"] is None
    (row,) = run({"white": nothing}, perceptual=load_perceptual("auto", shared / "weights"))
    assert row["lpips_alex"] > 0.1
    assert row["lpips_vgg"] is None
    assert COMMAND in row["reason"]


@pytest.fixture
def backbones(tmp_path):
    """A folder of both LPIPS backbones, the shared ones where they are here, else drawn; and the package's own networks on them.

    The package asks torchvision for a backbone, slices it and computes; here it is handed one that holds the same file.
    """
    import lpips
    from safetensors.torch import load_file, save_file

    networks = {}
    for net, model in (("alex", "alexnet"), ("vgg", "vgg16")):
        whole = getattr(lpips.pretrained_networks.tv, model)(weights=None)
        shared = Path(os.environ.get("GEOLRM_SHARED", tmp_path)) / "weights" / FILES[net]
        if shared.exists():
            whole.load_state_dict(load_file(shared), strict=False)
        features = {name: value for name, value in whole.state_dict().items() if name.startswith("features.")}
        save_file(features, tmp_path / FILES[net])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lpips.pretrained_networks.tv, model, lambda pretrained, whole=whole: whole)
            networks[f"lpips_{net}"] = lpips.LPIPS(net=net, verbose=False)
    return tmp_path, networks


def test_with_both_backbones_lpips_in_the_rows_is_what_the_package_says(run, backbones):
    folder, networks = backbones
    perceptual = load_perceptual("required", folder)
    rows = run({"truth": ball_gaussians, "white": nothing}, perceptual=perceptual, image_size=48)
    tests = ball_at_test_views().resized(48, 48)
    rendering = Scorer(tests, None, params(["truth"]).sweep, perceptual).rendering(ball_gaussians(tests))
    seen = {"truth": rendering.colour.clamp(0, 1)}
    seen["white"] = torch.ones_like(seen["truth"])
    for row in rows:
        for name, network in networks.items():
            with torch.no_grad():
                expected = network(2 * seen[row["method"]] - 1, 2 * tests.composited() - 1).mean().item()
            assert row[name] == pytest.approx(expected, rel=1e-4), (row["method"], name)
            assert name not in row["reason"]
        assert set(row["passport"]["lpips"].values()) == {sha256_of(folder / file) for file in FILES.values()}


def test_a_failing_method_becomes_a_row_and_the_sweep_goes_on(run, capsys):
    def broken(views):
        raise RuntimeError("size of tensor a must match")

    def hungry(views):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    def wild(views):
        return replace(ball_gaussians(views), means=torch.full((20_000, 3), torch.nan))

    def particular(views):
        raise NotApplicable("takes_six_views", views.key, "it takes six views")

    methods = {"broken": broken, "hungry": hungry, "wild": wild, "particular": particular, "white": nothing}
    rows = {row["method"]: row for row in run(methods | {"absent": ImportError("No module named 'nerf'")})}
    assert {name: row["status"] for name, row in rows.items()} == {
        "broken": "failed",
        "hungry": "out_of_memory",
        "wild": "failed",
        "particular": "not_applicable",
        "white": "empty",
        "absent": "not_installed",
    }
    for name in ("broken", "hungry", "wild"):  # scored as white pictures and no surface
        assert rows[name]["psnr"] == rows["white"]["psnr"]
        assert rows[name]["cd_sum"] == missing_surface()["cd_sum"]
    for name in ("particular", "absent"):
        assert rows[name]["psnr"] is None
        assert rows[name]["fscore_0.1"] is None
    assert "size of tensor a" in rows["broken"]["reason"]
    assert "not_finite" in rows["wild"]["reason"]
    assert "nerf" in rows["absent"]["reason"]
    shown = capsys.readouterr()
    assert "Traceback" in shown.out + shown.err  # of the method that raised, for its author


def test_random_weights_give_costs_and_no_score_and_never_without_being_asked_for(run, monkeypatch):
    monkeypatch.setattr(sweep_views, "load_untrained", lambda name, context: Method(ball_gaussians, UNTRAINED))
    methods = {"big": BadInput("weights_missing", "big.ckpt", "the published weights are not here"), "white": nothing}
    (big,) = [row for row in run(methods) if row["method"] == "big"]
    assert (big["status"], big["latency_s"]) == ("not_installed", None)
    rows = run(methods, untrained=True)
    (big,) = [row for row in rows if row["method"] == "big"]
    assert (
        (big["status"], big["reason"]) == ("cost_only", UNTRAINED) == ("cost_only", big["passport"]["checkpoint_hash"])
    )
    assert big["latency_s"] > 0 < big["peak_memory_bytes"]
    assert big["psnr"] is big["cd_sum"] is big["mask_iou"] is None
    assert "big" in table(rows)
    assert run(methods) == rows  # they stay until there are weights


def test_a_defect_in_a_method_is_not_hidden_in_a_row(run):
    with pytest.raises(AttributeError):
        run({"defect": lambda views: views.no_such_field})


def test_an_object_with_fewer_views_than_asked_for_is_a_row_that_is_not_scored(run):
    rows = run({"white": nothing}, Balls(BallSample("test-0", orbit=12), BallSample("test-1")), objects=2)
    assert [(row["object"], row["status"]) for row in rows] == [("test-0", "not_applicable"), ("test-1", "empty")]
    assert "too_few_views" in rows[0]["reason"]


def test_more_views_than_the_orbit_has_are_refused_at_once():
    with pytest.raises(BadInput, match="25 input views asked of an orbit of 24"):
        with_arguments(load_params(ROOT / "presets" / "smoke.yaml"), Arguments(views=(4, 25)))


def test_an_unknown_method_is_refused_with_the_names_of_those_there_are():
    with pytest.raises(BadInput, match="visual_hull"):
        with_arguments(load_params(ROOT / "presets" / "smoke.yaml"), Arguments(methods=("geo_lrm",)))


def test_a_data_set_without_test_views_is_refused(run):
    with pytest.raises(BadInput, match="no_test_views"):
        run({"white": nothing}, Balls(BallSample("test-0", tests=False)))


def test_an_object_without_true_surface_has_pictures_and_a_reason(run):
    (row,) = run({"truth": ball_gaussians}, Balls(BallSample("test-0", surface=False)))
    assert row["psnr"] > 30
    assert row["cd_sum"] is None
    assert row["surface"] == "none"
    assert "no true surface" in row["reason"]


def film(path: Path) -> np.ndarray:
    """(N, H, W, 3) the frames of a film in 8 bits, by the colours that it says it has."""
    import av

    with av.open(str(path)) as opened:
        stream = opened.streams.video[0]
        assert stream.codec_context.name == "vp9"
        assert float(opened.duration / av.time_base) == pytest.approx(SECONDS)
        frames = [f.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray() for f in opened.decode(stream)]
    return np.stack(frames)


def test_named_objects_leave_pictures_a_film_a_splat_and_a_mesh(run, tmp_path):
    data = Balls(BallSample("test-0"), BallSample("test-1"))
    run({"truth": ball_gaussians, "white": nothing}, data, objects=2, artefacts=1)
    folder = tmp_path / "sweep" / "artefacts"
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    pictures = ("input.png", "truth.png", "render.png", "error.png", "gaussians.ply")
    expected = {f"{method}/test-0/4/{name}" for method in ("truth", "white") for name in pictures}
    assert files == expected | {"truth/test-0/4/mesh.glb", "truth/test-0/4/turntable.webm"}  # no film of nothing
    assert Image.open(folder / "truth/test-0/4/render.png").size == (4 * SIZE, 4 * SIZE)  # 16 test views
    assert Image.open(folder / "truth/test-0/4/input.png").size == (2 * SIZE, 2 * SIZE)
    assert Image.open(folder / "white/test-0/4/render.png").getextrema() == ((255, 255),) * 3
    error, blank = (Image.open(folder / m / "test-0/4/error.png").convert("L") for m in ("truth", "white"))
    assert np.asarray(error).mean() < 0.2 * np.asarray(blank).mean()
    assert len(Gaussians.load_ply(folder / "truth/test-0/4/gaussians.ply")) == 20_000
    shown = film(folder / "truth/test-0/4/turntable.webm")
    quarters = orbit(torch.tensor([0.0, 90, 180, 270]), torch.full((4,), ELEVATION), 2.0, 39.6)
    seen = ball_pictures("ball", quarters, samples=2).composited()
    expected = (seen * 255).movedim(1, -1).numpy()
    errors = [[np.abs(frame - truth).mean() for frame in shown[::9].astype(float)] for truth in expected]
    assert np.argmin(errors, axis=1).tolist() == [0, 1, 2, 3]  # the camera goes round, from azimuth 0 towards y
    assert np.diagonal(errors).max() < 4
    assert len(shown) == FRAMES == 36


def test_a_row_whose_film_is_gone_is_made_again(run, tmp_path):
    sweep = partial(run, {"truth": ball_gaussians, "white": nothing}, Balls(BallSample("test-0")), artefacts=1)
    before = {row["method"]: row for row in sweep()}
    folder = artefact_folder(tmp_path / "sweep", "truth", "test-0", 4)
    (folder / "turntable.webm").unlink()
    after = {row["method"]: row for row in sweep()}
    assert (folder / "turntable.webm").exists()
    assert after["truth"] != before["truth"]  # measured again
    assert after["white"] == before["white"]


def test_a_sweep_says_how_busy_the_machine_was_and_one_with_nothing_to_do_says_nothing(run, tmp_path):
    file = tmp_path / "sweep" / "system" / "white.jsonl"
    run({"white": nothing})
    first = read_records(file)
    assert len(first) >= 1  # at its end, however short it was
    run({"white": nothing})
    assert read_records(file) == first
    run({"white": nothing}, views=(4, 8))  # goes on
    assert read_records(file)[: len(first)] == first
    assert len(read_records(file)) > len(first)
    run({"white": nothing}, views=(4, 8), dataset_hash="e")  # all rows anew
    assert first[0] not in read_records(file)


def test_other_views_are_those_of_the_next_object(run, tmp_path):
    data = Balls(BallSample("test-0"), BallSample("test-1"))
    one = DatasetSweep("balls", data, params(["white"]), tmp_path, tmp_path, NO_LPIPS, torch.device("cpu"), "d")
    assert one.other_views("test-0", 4).key == "test-1"
    assert one.other_views("test-1", 4).key == "test-0"  # around, also beyond the objects of the sweep
    assert len(one.other_views("test-0", 7)) == 7


def test_summaries_hold_the_means_for_dvc(run, tmp_path):
    rows = run({"white": nothing}, Balls(BallSample("test-0"), BallSample("test-1")), objects=2, views=(4, 8))
    folder = tmp_path / "sweep"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["all"]["white"]["4"]["psnr"] == pytest.approx(sum(r["psnr"] for r in rows if r["views"] == 4) / 2)
    assert metrics["all"]["white"]["8"]["objects"] == 2
    assert metrics["all"]["white"]["8"]["intervals"] == {}  # of two objects there is none
    lines = list(csv.DictReader((folder / "curve.csv").open()))
    assert [(line["method"], line["views"]) for line in lines] == [("white", "4"), ("white", "8")]
    assert lines[0]["lpips_vgg"] == ""


def test_a_row_with_a_field_missing_or_a_silent_null_is_never_written(scored, tmp_path):
    row = scored["truth"]
    for wrong in (
        {k: v for k, v in row.items() if k != "ssim"},
        row | {"reason": ""},  # LPIPS is null
        row | {"psnr": math.inf},
        row | {"status": "fine"},
        row | {"passport": {}},
    ):
        with pytest.raises(ValueError):
            append_row(tmp_path / "rows.jsonl", wrong)
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize("command", [["benchmarks/sweep_views.py"], ["-m", "benchmarks.sweep_views"]])
def test_the_command_explains_its_options_and_says_what_is_missing(command, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    call = [sys.executable, *command]
    if command[0] == "-m":
        shown = subprocess.run([*call, "--help"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        for option in ("--params", "--dataset", "--views", "--methods", "--objects", "--split", "--lpips", "--weights"):
            assert option in shown.stdout
    else:
        empty = [*call, "--datasets", str(tmp_path), "--output", str(tmp_path / "out")]
        failed = subprocess.run(empty, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert failed.returncode != 0
        assert "catalog" in failed.stderr
        assert "Traceback" not in failed.stderr


@pytest.fixture
def small(tmp_path):
    """The params of smoke at the size of the balls' pictures."""
    file = tmp_path / "params.yaml"
    text = (ROOT / "presets" / "smoke.yaml").read_text()
    file.write_text(text.replace("split: test\n  image_size: 128", f"split: test\n  image_size: {SIZE}"))
    assert load_params(file).sweep.image_size == SIZE
    return file


def test_required_lpips_stops_the_sweep_before_anything_is_measured(tmp_path, monkeypatch, small):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("GEOLRM_LPIPS_WEIGHTS", raising=False)
    monkeypatch.setattr(sweep_views, "open_dataset", lambda *_: (Balls(BallSample("test-0")), "d"))
    arguments = Arguments(params=small, methods=("white",), output=tmp_path / "out", device="cpu")
    with pytest.raises(BadInput, match="lpips_weights_missing"):
        sweep(replace(arguments, lpips="required"))
    assert not (tmp_path / "out").exists()


def test_auto_lpips_goes_on_with_one_loud_line_and_prints_lists_and_table(tmp_path, monkeypatch, capsys, small):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("GEOLRM_LPIPS_WEIGHTS", raising=False)
    monkeypatch.setattr(sweep_views, "open_dataset", lambda *_: (Balls(BallSample("test-0")), "d"))
    arguments = Arguments(params=small, methods=("white",), views=(6,), output=tmp_path / "out")
    rows = sweep(replace(arguments, objects=1, device="cpu", dataset=("a", "b")))
    shown = capsys.readouterr().out
    assert set(rows) == {"a", "b"}
    assert rows["a"][0]["lpips_alex"] is None
    assert COMMAND in rows["a"][0]["reason"]
    assert shown.count("!!!") == 1
    assert "0 4 8 12 16 20" in shown
    assert "psnr fg" in shown
