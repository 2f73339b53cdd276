"""Procedural objects against closed forms, against themselves between views, and against their own description."""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml

from geolrm.cameras import Cameras
from geolrm.config import Procedural
from geolrm.data import object_tar, procedural
from geolrm.data.procedural import TEST_SURFACE_POINTS, draw_object, keys, primitives, procedural_object, render_scene
from geolrm.data.procedural.drawing import draw_scene, fitted, scene_generator
from geolrm.data.procedural.primitives import Kind
from geolrm.data.procedural.scene import BALL_RADIUS, Scene, Solid
from geolrm.data.procedural.spans import dot, normalised
from geolrm.data.procedural.textures import Pattern, albedo, draw_texture
from geolrm.data.rig import render_rig
from geolrm.data.rig import test_rig as rig_of_tests
from pipelines.render_procedural import MANIFEST, render_objects

REPOSITORY = Path(__file__).parents[2]
KINDS = get_args(Kind)
TUBE = 0.35


def solid(kind: Kind, scale=(0.3, 0.3, 0.3), centre=(0.0, 0.0, 0.0), carves=False) -> Solid:
    texture = draw_texture(scene_generator(0, kind))
    tube = TUBE if kind == "torus" else 0.0
    return Solid(kind, tube, torch.diag(torch.tensor(scale)), torch.tensor(centre), carves, texture)


def some_views(key: str = "any") -> Cameras:
    cameras = render_rig(key)
    return cameras[[0, 5, 25, 26, 30]]


def depth_of(scene: Scene, cameras: Cameras, side: int) -> torch.Tensor:
    depth = render_scene(scene, "scene", cameras, side, 1)[0].depth
    assert depth is not None
    return depth


@pytest.fixture(scope="module")
def rendered():
    """Twelve drawn objects, small."""
    return [procedural_object(0, f"train-{i:05d}", 64, 2) for i in range(12)]


# --- single solids ---


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_are_where_points_of_the_ray_are_inside(kind):
    generator = torch.Generator().manual_seed(0)
    direction = normalised(torch.randn(3, 20000, generator=generator))
    origin = torch.randn(3, 20000, generator=generator)
    origin = origin - dot(origin, direction) * direction
    spans = primitives.intervals(kind, TUBE, origin, direction)
    for t in torch.linspace(-1.6, 1.6, 41):
        inside = primitives.contains(kind, TUBE, origin + t * direction)
        spanned = torch.stack([(enter < t) & (t < leave) for enter, leave in spans]).any(0)
        assert (inside != spanned).float().mean() < 2e-4  # rounding, where t falls on the surface


@pytest.mark.parametrize("kind", KINDS)
def test_interval_ends_lie_on_the_surface(kind):
    """At each end a small step along the ray changes sides."""
    generator = torch.Generator().manual_seed(1)
    direction = normalised(torch.randn(3, 20000, generator=generator))
    origin = torch.randn(3, 20000, generator=generator) * 0.7
    origin = origin - dot(origin, direction) * direction
    for enter, leave in primitives.intervals(kind, TUBE, origin, direction):
        hit = torch.isfinite(enter) & (leave - enter > 1e-2)
        assert hit.sum() > 100
        for t, sign in ((enter, 1), (leave, -1)):
            for step in (1e-4, -1e-4):
                points = (origin + (t + sign * step) * direction)[:, hit]
                wrong = primitives.contains(kind, TUBE, points) != (step > 0)
                assert wrong.float().mean() < 1e-3


def test_depth_of_a_sphere_is_its_closed_form():
    cameras, radius = some_views(), 0.3
    origins, directions = cameras.rays(48, 48)
    a, b, c = (directions**2).sum(-1), (origins * directions).sum(-1), (origins**2).sum(-1) - radius**2
    discriminant = (b * b - a * c).double()
    expected = torch.where(discriminant > 0, (-b - discriminant.clamp(min=0).sqrt()) / a, 0.0)
    clear = (discriminant.abs() > 1e-4) | (discriminant == 0)
    error = (depth_of(Scene((solid("ellipsoid"),)), cameras, 48) - expected).abs()[clear]
    assert error.max() < 1e-5


def test_depth_of_a_box_is_its_closed_form():
    cameras, half = some_views(), torch.tensor([0.2, 0.3, 0.25])
    origins, directions = cameras.rays(48, 48)
    ends = torch.stack([(sign * half - origins) / directions for sign in (-1, 1)])
    enter, leave = ends.amin(0).amax(-1), ends.amax(0).amin(-1)
    expected = torch.where(enter < leave, enter, 0.0)
    error = (depth_of(Scene((solid("box", half.tolist()),)), cameras, 48) - expected).abs()[
        (leave - enter).abs() > 1e-4
    ]
    assert error.max() < 1e-5


def test_depth_of_a_torus_lies_on_its_surface_and_before_any_other_part_of_it():
    cameras, scale = some_views(), 0.3
    depth = depth_of(Scene((solid("torus"),)), cameras, 48)
    covered = depth > 0
    x, y, z = (cameras.unproject(depth)[covered] / scale).unbind(-1)
    assert covered.sum() > 1000
    assert (torch.hypot(torch.hypot(x, y) - 1, z) - TUBE).abs().max() < 1e-5
    origins, directions = cameras.rays(48, 48)
    for share in torch.linspace(0.7, 0.999, 40):  # no point of the ray before the hit is inside
        points = (origins + share * depth[..., None] * directions)[covered] / scale
        assert not primitives.contains("torus", TUBE, points.T).any()
    above = cameras[2:3]  # the view from the top looks through the hole
    assert depth_of(Scene((solid("torus"),)), above, 47)[0, 23, 23] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_surface_samples_are_area_uniform(kind):
    """Halves of equal area hold equal shares, also under a stretching map; areas equal the closed forms."""
    scene = Scene((solid(kind, scale=(0.4, 0.2, 0.3)),))
    points, normals, area = scene.sample_surface(16384, scene_generator(0, "area"))
    for axis in (0, 1):  # these solids are symmetric in x and y
        assert abs((points[:, axis] > 0).float().mean() - 0.5) < 0.02
    assert torch.allclose(normals.norm(dim=1), torch.ones(len(normals)), atol=1e-5)
    if kind == "box":
        assert area == pytest.approx(8 * (0.08 + 0.06 + 0.12), rel=0.02)
        top = (points[:, 2].abs() - 0.3).abs() < 1e-5
        assert top.float().mean().item() == pytest.approx(0.08 / 0.26, abs=0.015)
    if kind == "cylinder":
        round_solid = Scene((solid(kind),))
        assert round_solid.sample_surface(16384, scene_generator(0, "a"))[2] == pytest.approx(
            primitives.area(kind, 0.0) * 0.09, rel=0.02
        )


@pytest.mark.parametrize("number", [42, 45, 8, 32, 38])
def test_every_depth_of_every_view_lies_in_the_ball_that_holds_the_object(number: int):
    """Of objects with tori, whose quartic is where a root can go astray; one stray root spoils a depth map's range."""
    obj = procedural_object(0, f"train-{number:05d}", 128, 1)
    assert "+torus" in obj.meta["solids"]
    for views in (obj.views, obj.test_views):
        assert views is not None
        assert views.depth is not None
        origins, directions = views.cameras.rays(*views.size)
        hit = views.depth > 0
        distance = (origins + views.depth[..., None] * directions).norm(dim=-1)[hit]
        assert len(distance) > 1000
        assert distance.max() < BALL_RADIUS + 1e-3


def test_torus_samples_are_denser_outside_than_inside_as_its_area_is():
    """Of its area 4 pi^2 t, the half facing outwards holds 2 pi^2 t + 4 pi t^2."""
    uniforms = torch.rand(3, 100000, generator=torch.Generator().manual_seed(0))
    x, y, _ = primitives.sample_surface("torus", TUBE, uniforms)
    assert (torch.hypot(x, y) > 1).float().mean().item() == pytest.approx(0.5 + TUBE / math.pi, abs=0.006)


# --- set operations ---


def test_a_carver_takes_away_and_leaves_its_own_wall():
    cameras = some_views()
    ball, bite = solid("ellipsoid"), solid("ellipsoid", scale=(0.2, 0.2, 0.2), centre=(0.3, 0.0, 0.0), carves=True)
    whole, carved = depth_of(Scene((ball,)), cameras, 48), depth_of(Scene((ball, bite)), cameras, 48)
    assert ((carved == 0) | (carved >= whole - 1e-6)).all()
    deeper = (carved > whole + 1e-4) & (whole > 0)
    assert deeper.sum() > 100
    wall = cameras.unproject(carved)[deeper]
    on_bite = (wall - bite.centre).norm(dim=-1)
    on_ball = wall.norm(dim=-1)
    assert (torch.minimum((on_bite - 0.2).abs(), (on_ball - 0.3).abs()) < 1e-5).all()
    assert ((on_bite - 0.2).abs() < 1e-5).float().mean() > 0.9
    assert not Scene((ball, bite)).contains(bite.centre[:, None]).any()


def test_a_carver_that_swallows_everything_leaves_nothing():
    scene = Scene((solid("box"), solid("ellipsoid", scale=(0.6, 0.6, 0.6), carves=True)))
    assert depth_of(scene, some_views(), 32).max() == 0
    points, _, area = scene.sample_surface(1000, scene_generator(0, "empty"))
    assert len(points) == 0
    assert area == 0


def test_the_nearer_of_two_united_solids_is_seen():
    near, far = solid("box", (0.1, 0.1, 0.1), (0.3, 0.0, 0.0)), solid("ellipsoid")
    cameras = some_views()
    together = depth_of(Scene((near, far)), cameras, 48)
    apart = torch.stack([depth_of(Scene((one,)), cameras, 48) for one in (near, far)])
    expected = apart.masked_fill(apart == 0, math.inf).amin(0)
    assert torch.allclose(together, expected.masked_fill(expected.isinf(), 0.0), atol=1e-6)


def test_tracing_agrees_with_marching_through_membership():
    """The hit is where membership first turns true: no interval logic in the check."""
    for number in range(6):
        scene = draw_scene(scene_generator(3, f"march {number}"))
        cameras = render_rig("m")[[3, 25]]
        depth = depth_of(scene, cameras, 24)
        origins, directions = cameras.rays(24, 24)
        first = torch.zeros_like(depth)
        for t in torch.linspace(1.4, 2.6, 601):
            inside = scene.contains((origins + t * directions).reshape(-1, 3).T).reshape(depth.shape)
            first = torch.where((first == 0) & inside, t, first)
        marched = first > 0
        assert (marched & (depth == 0)).sum() == 0
        off = (first - depth)[marched]
        assert off.min() > -1e-4
        assert (off > 0.0021).float().mean() < 0.01  # slivers thinner than a step


# --- drawn objects ---


def test_depth_of_one_view_lands_on_another_within_half_a_voxel():
    """Neighbours on both orbits, all covered pixels; hidden points, a minority, do not move the median."""
    for number in range(6):
        key = f"landing {number}"
        views, _ = render_scene(draw_object(0, key)[0], key, render_rig(key)[[0, 1, 6, 7, 30, 31, 5]], 192, 1)
        for a, b in ((0, 1), (3, 2), (4, 5), (6, 4)):
            points = views.cameras[a].unproject(views.depth[a])[views.depth[a] > 0]
            uv, z = views.cameras[b].project(points)
            column, row = (uv * 192).floor().long().clamp(0, 191).unbind(-1)
            seen = views.depth[b][row, column]
            assert (seen > 0).float().mean() > 0.7
            assert (z - seen).abs()[seen > 0].median() < 0.5 / 64


def test_normals_are_unit_and_face_the_camera(rendered):
    for obj in rendered:
        covered = obj.views.depth > 0
        normals = obj.normals.movedim(1, -1)
        assert (normals[covered].norm(dim=-1) - 1).abs().max() < 1e-4
        assert normals[~covered].abs().max() == 0
        directions = obj.views.cameras.rays(64, 64)[1]
        facing = (normals * directions).sum(-1)[covered]
        assert (facing > 1e-3).float().mean() < 1e-3


def test_no_surface_outside_the_ball_and_none_where_there_is_no_alpha(rendered):
    for obj in rendered:
        for views in (obj.views, obj.test_views):
            covered = views.depth > 0
            assert views.cameras.unproject(views.depth)[covered].norm(dim=-1).max() < 0.5
            assert (views.alpha[:, 0][covered] > 0).all()
            around = torch.nn.functional.max_pool2d(covered[:, None].float(), 3, 1, 1)[:, 0] > 0
            assert (views.alpha[:, 0][~around] == 0).float().mean() > 0.9999
            assert (views.alpha[:, 0][covered].mean()) > 0.9
        assert object_tar.cropped_views(obj.views) == []


def test_alpha_is_the_share_of_rays_that_hit():
    scene = Scene((solid("ellipsoid"),))
    cameras = some_views()
    fine = depth_of(scene, cameras, 96) > 0
    alpha = render_scene(scene, "scene", cameras, 32, 3)[0].alpha
    assert torch.allclose(alpha, torch.nn.functional.avg_pool2d(fine[:, None].float(), 3))


def test_what_only_the_centre_ray_meets_has_neither_alpha_nor_depth():
    """So that a pixel with depth is never transparent: a speck between the rays for alpha is left out altogether."""
    speck, cameras = Scene((solid("ellipsoid", (0.004,) * 3),)), some_views()
    assert (depth_of(speck, cameras, 33)[:, 16, 16] > 0).all()
    views, normals = render_scene(speck, "speck", cameras, 33, 2)
    assert views.alpha.max() == 0
    assert views.depth.max() == 0
    assert normals.abs().max() == 0


def test_surface_points_lie_on_the_object_and_their_normals_point_out():
    for number in range(6):
        scene, points, normals = draw_object(0, f"surface {number}")
        outside, inside = (scene.contains((points + step * normals).T) for step in (1e-4, -1e-4))
        assert outside.float().mean() < 2e-3  # at the rims of thin walls
        assert inside.float().mean() > 0.998
        assert points.norm(dim=1).max() < 0.5


def test_a_test_object_has_points_enough_to_measure_100_000_against_and_they_are_its_own():
    obj = procedural_object(0, "test-00000", 16, 1)
    scene, few, _ = draw_object(0, "test-00000")
    assert len(obj.points) == len(obj.point_normals) == TEST_SURFACE_POINTS >= 100_000
    assert len(procedural_object(0, "val-00000", 16, 1).points) == len(few)
    some, normals = obj.points[::50], obj.point_normals[::50]
    assert scene.contains((some + 1e-4 * normals).T).float().mean() < 2e-3
    assert scene.contains((some - 1e-4 * normals).T).float().mean() > 0.998
    assert torch.cdist(few[::40], obj.points).amin(1).max() < 0.02  # all over the surface


def test_every_pixel_with_depth_is_close_to_a_surface_point(rendered):
    """The two ways to the true surface, rays and samples, meet."""
    for obj in rendered[:4]:
        points = obj.views.cameras.unproject(obj.views.depth)[obj.views.depth > 0][::97]
        gap = torch.cdist(points, obj.points).amin(1)
        assert gap.max() < 0.05
        assert gap.median() < 0.01


def test_repeated_views_equal_their_first(rendered):
    for first, again in ((0, 24), (27, 39)):
        assert torch.equal(rendered[0].views.colour[first], rendered[0].views.colour[again])
        assert torch.equal(rendered[0].views.depth[first], rendered[0].views.depth[again])


def test_the_same_seed_and_key_give_the_same_bytes_and_others_do_not(tmp_path):
    content = {}
    for name, seed, key in (("a", 0, "val-00001"), ("b", 0, "val-00001"), ("c", 1, "val-00001"), ("d", 0, "val-00002")):
        object_tar.write_object_tar(tmp_path / name, procedural_object(seed, key, 32, 1))
        content[name] = (tmp_path / name).read_bytes()
    assert content["a"] == content["b"]
    assert content["a"] != content["c"]
    assert content["a"] != content["d"]


def test_objects_are_varied_and_coloured(rendered):
    kinds = {name[1:] for obj in rendered for name in obj.meta["solids"]}
    assert kinds == set(KINDS)
    assert any(name.startswith("-") for obj in rendered for name in obj.meta["solids"])
    for obj in rendered:
        pixels = obj.views.colour.movedim(1, -1)[obj.views.alpha[:, 0] == 1]
        assert pixels.std(0).max() > 0.05


@pytest.mark.parametrize("pattern", get_args(Pattern))
def test_each_texture_varies_over_a_surface_and_stays_a_colour(pattern):
    texture = replace(draw_texture(scene_generator(0, pattern)), pattern=pattern)
    ball = solid("ellipsoid")
    points, normals, _ = Scene((ball,)).sample_surface(4096, scene_generator(0, "ball"))
    colour = albedo(texture, points.T, normals.T, points.T / 0.3)
    assert colour.min() >= 0
    assert colour.max() <= 1
    assert colour.std(dim=1).max() > 0.03


def test_a_fitted_scene_fills_the_ball():
    for number in range(20):
        scene = fitted(draw_scene(scene_generator(5, str(number))))
        united = Scene(tuple(one for one in scene.solids if not one.carves))
        points, _, _ = united.sample_surface(16384, scene_generator(0, "fill"))
        assert 0.45 < points.norm(dim=1).max() < 0.5


def test_test_views_are_rendered_from_the_test_rig(rendered):
    views = rendered[0].test_views
    assert torch.equal(views.cameras.camera_to_world, rig_of_tests().camera_to_world)
    assert (views.depth > 0).flatten(1).any(1).all()


# --- the stage ---


def settings(**changes) -> Procedural:
    tiny = {"train": 2, "val": 1, "test": 1, "resolution": 16, "supersampling": 1, "workers": 1, "seed": 0}
    return Procedural.model_validate(tiny | changes)


def bytes_in(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_stage_writes_what_is_asked_for_and_keeps_what_holds(tmp_path):
    assert render_objects(settings(), tmp_path, 1) == {"kept": 0, "rendered": 4}
    first = bytes_in(tmp_path)
    assert set(first) == {MANIFEST, *(f"{key}.tar" for key in keys(settings()))}
    times = [path.stat().st_mtime_ns for path in sorted(tmp_path.iterdir())]
    assert render_objects(settings(), tmp_path, 1) == {"kept": 4, "rendered": 0}
    assert times == [path.stat().st_mtime_ns for path in sorted(tmp_path.iterdir())]
    assert object_tar.read_object_tar(tmp_path / "val-00000.tar").meta["split"] == "val"


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path):
    render_objects(settings(), tmp_path / "whole", 1)
    render_objects(settings(), tmp_path / "killed", 1)
    (tmp_path / "killed" / "train-00001.tar").unlink()
    short = tmp_path / "killed" / "val-00000.tar"
    short.write_bytes(short.read_bytes()[:5000])
    (tmp_path / "killed" / ".test-00000.tar.123.tmp").write_bytes(b"left over")
    assert render_objects(settings(), tmp_path / "killed", 1) == {"kept": 2, "rendered": 2}
    assert bytes_in(tmp_path / "killed") == bytes_in(tmp_path / "whole")


def test_changed_parameters_render_again_and_fewer_objects_remove_the_rest(tmp_path):
    render_objects(settings(), tmp_path, 1)
    before = bytes_in(tmp_path)
    assert render_objects(settings(train=1), tmp_path, 1) == {"kept": 3, "rendered": 0}
    assert "train-00001.tar" not in bytes_in(tmp_path)
    assert render_objects(settings(train=1, seed=7), tmp_path, 1) == {"kept": 0, "rendered": 3}
    assert bytes_in(tmp_path)["val-00000.tar"] != before["val-00000.tar"]


def test_another_light_renders_all_again(tmp_path, monkeypatch):
    render_objects(settings(), tmp_path, 1)
    monkeypatch.setattr(procedural, "LIGHTING", "another")
    assert render_objects(settings(), tmp_path, 1) == {"kept": 0, "rendered": 4}


def test_tars_without_a_manifest_are_not_trusted(tmp_path):
    render_objects(settings(train=1), tmp_path, 1)
    (tmp_path / MANIFEST).unlink()
    assert render_objects(settings(train=1), tmp_path, 1) == {"kept": 0, "rendered": 3}


@pytest.mark.slow
def test_a_run_that_is_killed_outright_is_finished_by_the_next_with_the_same_bytes(tmp_path):
    params = yaml.safe_load((REPOSITORY / "presets/smoke.yaml").read_text())
    asked = settings(train=12, resolution=32, workers=2)
    params["procedural"] = asked.model_dump()
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    folder = tmp_path / "datasets/procedural/smoke/objects"
    command = [sys.executable, "-m", "pipelines.render_procedural"]
    run = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    while run.poll() is None and len(list(folder.glob("*.tar"))) < 3:
        time.sleep(0.01)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    time.sleep(2)  # its workers end with it
    done = len(list(folder.glob("*.tar")))
    assert 3 <= done < 14
    time.sleep(1)
    assert len(list(folder.glob("*.tar"))) == done
    counts = render_objects(asked, folder, 1)
    assert counts["kept"] == done
    render_objects(asked, tmp_path / "never killed", 1)
    assert bytes_in(folder) == bytes_in(tmp_path / "never killed")


@pytest.mark.slow
def test_two_workers_write_the_same_bytes_as_one(tmp_path):
    render_objects(settings(), tmp_path / "one", 1)
    render_objects(settings(), tmp_path / "two", 2)
    assert bytes_in(tmp_path / "one") == bytes_in(tmp_path / "two")


def test_orbit_neighbours_differ(rendered):
    for a, b in pairwise(range(0, 24, 6)):
        assert not torch.equal(rendered[0].views.depth[a], rendered[0].views.depth[b])


def test_variety_renders_all_again_and_none_of_it_leaves_the_manifest_as_it_was(tmp_path):
    render_objects(settings(train=1), tmp_path, 1)
    plain = (tmp_path / MANIFEST).read_bytes()
    assert b"vessels" not in plain
    assert render_objects(settings(train=1, variety={"vessels": 0}), tmp_path, 1) == {"kept": 3, "rendered": 0}
    assert render_objects(settings(train=1, variety={"vessels": 1}), tmp_path, 1) == {"kept": 0, "rendered": 3}
    assert (tmp_path / MANIFEST).read_bytes() != plain
