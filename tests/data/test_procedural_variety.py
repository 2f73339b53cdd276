"""Claims about the variety of procedural objects: exact like the plain ones, off unless asked for, each share apart."""

import math
from dataclasses import replace

import pytest
import torch

from geolrm.cameras import Cameras
from geolrm.config import Variety, load_params
from geolrm.data.lighting import FIXED, Light, highlights, irradiance
from geolrm.data.procedural import draw_object, primitives, procedural_object, render_scene
from geolrm.data.procedural.drawing import draw_light, draw_scene, scene_generator
from geolrm.data.procedural.profiles import Profile
from geolrm.data.procedural.scene import BALL_RADIUS, Scene, Solid
from geolrm.data.procedural.spans import dot, normalised
from geolrm.data.procedural.textures import Texture, albedo, draw_texture
from geolrm.data.procedural.vessels import draw_profile, draw_vessel
from geolrm.data.rig import render_rig

FULL = Variety(vessels=0.5, profiles=0.8, lettering=0.8, lights=0.8)
OUTLINES = {
    "can with bevels": Profile((-1.0, -0.8, 0.7, 1.0), (0.7, 1.0, 1.0, 0.6), False),
    "box with bevels": Profile((-1.0, -0.8, 0.7, 1.0), (0.7, 1.0, 1.0, 0.6), True),
    "bottle": Profile((-1.0, 0.1, 0.4, 1.0), (0.9, 1.0, 0.3, 0.35), False),
    "hourglass box": Profile((-0.9, -0.1, 0.2, 0.8), (0.9, 0.3, 0.4, 0.8), True),
}


def vessel(key: str) -> list[Solid]:
    random = scene_generator(0, key)
    return draw_vessel(random, lambda: draw_texture(random))


def placed(shape: Profile, carves: bool = False, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Solid:
    kind = "tapered" if shape.square else "turned"
    texture = draw_texture(scene_generator(0, "texture"))
    return Solid(kind, shape, 0.3 * torch.eye(3), torch.tensor(centre), carves, texture)


def depth_of(scene: Scene, cameras: Cameras, side: int) -> torch.Tensor:
    depth = render_scene(scene, "scene", cameras, side, 1)[0].depth
    assert depth is not None
    return depth


def varied(count: int) -> list[Scene]:
    return [draw_scene(scene_generator(1, f"varied {number}"), FULL) for number in range(count)]


# --- off unless asked for ---


def test_the_smoke_preset_draws_the_objects_that_it_drew_before_there_was_variety() -> None:
    settings = load_params("presets/smoke.yaml").procedural
    assert settings.variety == Variety()
    scene, points, normals = draw_object(settings.seed, "train-00000", settings.variety)
    assert [solid.kind for solid in scene.solids] == ["cylinder", "cylinder", "ellipsoid", "ellipsoid", "ellipsoid"]
    assert [solid.texture.pattern for solid in scene.solids] == ["rings", "glyphs", "gradient", "dots", "checker"]
    centres = [0.07854, -0.02168, 0.0887, -0.0458, -0.05439, 0.0, 0.17501, 0.10462, 0.05432]
    centres += [0.27155, -0.08369, -0.12114, 0.13467, -0.19673, 0.03256]
    assert torch.cat([solid.centre for solid in scene.solids]).tolist() == pytest.approx(centres, abs=1e-5)
    assert points.mean(0).tolist() == pytest.approx([0.04537, -0.0295, -0.00934], abs=1e-5)
    assert normals.abs().mean(0).tolist() == pytest.approx([0.49413, 0.4926, 0.4881], abs=1e-5)
    obj = procedural_object(settings.seed, "train-00000", 48, 2, variety=settings.variety)
    assert obj.views.composited().mean((0, 2, 3)).tolist() == pytest.approx([0.85543, 0.8305, 0.8509], abs=1e-4)
    assert obj.views.depth is not None
    assert obj.views.depth.mean().item() == pytest.approx(0.40456, abs=1e-4)
    assert obj.meta["lighting"] == "sky-ground-two-lights-3"


@pytest.mark.parametrize("share", Variety.model_fields)
def test_each_share_brings_its_own_kind_of_variety_and_no_other(share: str) -> None:
    scenes = [draw_scene(scene_generator(2, str(number)), Variety(**{share: 1.0})) for number in range(6)]
    solids = [solid for scene in scenes for solid in scene.solids]
    pairs = [scene.solids[:2] for scene in scenes if len(scene.solids) > 1]
    found = {
        "vessels": any(torch.equal(one.centre, two.centre) for one, two in pairs),  # a body and its cavity
        "profiles": all(isinstance(solid.shape, Profile) for solid in solids),
        "lettering": all(solid.texture.lettering is not None for solid in solids),
        "lights": all(scene.light != FIXED for scene in scenes),
        "cubes": all(scene.radius > BALL_RADIUS for scene in scenes),
    }
    assert {name for name, there in found.items() if there} == {share}
    assert any(solid.texture.lettering for solid in solids) == (share == "lettering")
    assert any(scene.light != FIXED for scene in scenes) == (share == "lights")
    assert any(isinstance(solid.shape, Profile) for solid in solids) == (share in ("vessels", "profiles"))


def test_a_light_of_its_own_leaves_an_object_what_it_was() -> None:
    plain = draw_scene(scene_generator(0, "lit"))
    lit = draw_scene(scene_generator(0, "lit"), Variety(lights=1.0))
    assert [solid.kind for solid in lit.solids] == [solid.kind for solid in plain.solids]
    assert torch.equal(depth_of(lit, render_rig("k")[[1]], 32), depth_of(plain, render_rig("k")[[1]], 32))


def test_an_object_that_fills_the_cube_is_the_same_object_larger_and_all_of_it_is_seen() -> None:
    for number in range(4):
        plain, full = (draw_scene(scene_generator(3, str(number)), Variety(cubes=share)) for share in (0.0, 1.0))
        grown = full.solids[0].to_world.norm() / plain.solids[0].to_world.norm()
        points, _, _ = full.sample_surface(4096, scene_generator(3, "points"))
        assert points.abs().max() <= 0.5
        assert points.norm(dim=1).max() <= full.radius <= math.sqrt(0.75)
        outside = points[points.norm(dim=1) > BALL_RADIUS + 0.01]
        assert 1.0 < grown <= math.sqrt(3)
        views, _ = render_scene(full, "k", render_rig("k")[:24], 96, 1)
        assert views.depth is not None
        seen = views.cameras.unproject(views.depth)[views.depth > 0]
        assert seen.abs().max() <= 0.5 + 1e-4
        near = torch.cdist(outside, seen).amin(dim=1) < 0.03
        assert len(outside) == 0 or near.float().mean() > 0.5


# --- outlines ---


@pytest.mark.parametrize("name", OUTLINES)
def test_rays_are_inside_an_outline_where_its_points_are(name: str) -> None:
    shape, generator = OUTLINES[name], torch.Generator().manual_seed(0)
    direction = normalised(torch.randn(3, 20000, generator=generator))
    origin = torch.randn(3, 20000, generator=generator) * 0.7
    origin = origin - dot(origin, direction) * direction
    spans = shape.intervals(origin, direction)
    assert len(spans) == {"bottle": 2, "hourglass box": 3}.get(name, 1)  # convex runs
    for t in torch.linspace(-1.6, 1.6, 41):
        inside = shape.contains(origin + t * direction)
        spanned = torch.stack([(enter <= t) & (t < leave) for enter, leave in spans]).any(0)
        assert (inside != spanned).float().mean() < 2e-4


@pytest.mark.parametrize("name", OUTLINES)
def test_points_of_an_outline_lie_on_it_evenly_with_normals_that_finite_differences_give(name: str) -> None:
    shape = OUTLINES[name]
    points = shape.sample_surface(torch.rand(3, 40000, generator=torch.Generator().manual_seed(0)))
    normals = normalised(shape.gradient(points))
    for step, inside in ((1e-4, False), (-1e-4, True)):
        assert (shape.contains(points + step * normals) != inside).float().mean() < 3e-3  # at edges
    top = (points[2] - shape.heights[-1]).abs() < 1e-6
    assert top.float().mean().item() == pytest.approx(shape.areas[-1] / sum(shape.areas), abs=0.01)
    assert (points[:2].mean(1).abs() < 0.02).all()
    halves = [(points[2] < z).float().mean().item() for z in shape.heights[1:-1]]
    below = torch.tensor([*shape.areas[-2:-1], *shape.areas[:-2]]).cumsum(0)[1:-1] / sum(shape.areas)
    assert halves == pytest.approx(below.tolist(), abs=0.01)

    z, (low, high), (a, b) = points[2], shape.heights[:2], shape.radii[:2]
    first = (z > low) & (z < high)  # of the lowest piece: denser where it is wider
    expected = low + (high - low) * (a + 2 * b) / (3 * (a + b))
    assert z[first].mean().item() == pytest.approx(expected, abs=0.02 * (high - low))

    def level(q: torch.Tensor) -> torch.Tensor:  # 0 on the surface, positive outside, by the outline's definition alone
        out = q[:2].abs().amax(0) if shape.square else torch.hypot(q[0], q[1])
        width = torch.zeros_like(out)
        for i in range(len(shape.slopes)):
            here = (q[2] >= shape.heights[i]) & (q[2] <= shape.heights[i + 1])
            width = torch.where(here, shape.radii[i] + shape.slopes[i] * (q[2] - shape.heights[i]), width)
        return out - width

    rest = (points[2] > shape.heights[0] + 0.01) & (points[2] < shape.heights[-1] - 0.01)
    edges = torch.stack([(points[2] - z).abs() < 0.01 for z in shape.heights]).any(0)
    some = points[:, rest & ~edges].double()
    steps = 1e-4 * torch.eye(3, dtype=torch.float64)
    slopes = torch.stack([level(some + step[:, None]) - level(some - step[:, None]) for step in steps])
    agree = (normalised(slopes) * normals[:, rest & ~edges]).sum(0)
    assert (agree < 0.999).float().mean() < 2e-3  # upright edges of square ones


def test_areas_of_an_outline_are_those_of_frustums() -> None:
    assert sum(Profile((-1.0, 1.0), (1.0, 1.0), False).areas) == pytest.approx(primitives.area("cylinder", 0.0))
    assert sum(Profile((-1.0, 1.0), (1.0, 1.0), True).areas) == pytest.approx(primitives.area("box", 0.0))
    cone = sum(Profile((-1.0, 1.0), (1.0, 1e-9), False).areas)
    assert cone == pytest.approx(primitives.area("cone", 0.0))


def test_no_ray_finds_a_gap_between_the_runs_of_a_cavity() -> None:
    """A block with a bottle carved out of it: rays from above that see the floor never stop at the neck's plane."""
    hollow = placed(Profile((-0.8, 0.1, 0.2, 1.2), (0.8, 0.8, 0.3, 0.3), False), carves=True)
    block = placed(Profile((-1.0, 1.0), (1.0, 1.0), True))
    depth = depth_of(Scene((block, hollow)), render_rig("k")[[25]], 301)
    heights = 2.0 - depth[depth > 0]
    planes = torch.tensor([0.1, 0.2]) * 0.3
    assert (heights[:, None] - planes).abs().amin() > 1e-3
    assert ((heights + 0.24).abs() < 1e-4).sum() > 1000  # the floor


# --- vessels ---


def test_the_inside_of_a_bowl_is_seen_from_above_and_is_not_filled() -> None:
    body = Profile((-1.0, 0.0, 1.0), (0.5, 0.8, 1.0), False)
    bowl = Scene((placed(body), placed(body.inset(0.05, 0.1, 0.05), carves=True)))
    depth = depth_of(bowl, render_rig("k")[[25]], 65)
    assert depth[0, 32, 32].item() == pytest.approx(2.0 - 0.3 * (-1 + 0.1), abs=1e-5)
    assert not bowl.contains(torch.tensor([[0.0], [0.0], [0.1]])).any()
    wall = torch.tensor([[0.3 * (1.0 - 0.02)], [0.0], [0.29]])
    assert bowl.contains(wall).all()


def test_drawn_vessels_are_hollow_and_most_show_it_from_above() -> None:
    seen = 0
    for number in range(30):
        solids = vessel(f"vessel {number}")
        hollow = [solid for solid in solids if solid.carves]
        body = depth_of(scaled([solids[0]]), render_rig("k")[[25]], 48)
        carved = depth_of(scaled(solids[:1] + hollow), render_rig("k")[[25]], 48)
        deeper = (carved > body + 0.01) & (body > 0)
        seen += bool(deeper.sum() > 0.2 * (body > 0).sum())
    assert seen >= 18


def scaled(solids: list[Solid]) -> Scene:
    return Scene(tuple(replace(s, to_world=0.25 * s.to_world, centre=0.25 * s.centre) for s in solids))


def test_a_cavity_spares_what_is_kept_and_leaves_no_wall_in_it() -> None:
    body = Profile((-1.0, 1.0), (1.0, 1.0), True)
    ball = placed(Profile((-0.5, 0.5), (0.4, 0.4), False), centre=(0.0, 0.0, -0.1))
    kept, cavity = replace(ball, kept=True), placed(body.inset(0.1, 0.2, 0.1), carves=True)
    scene = Scene((placed(body), cavity, kept))
    assert scene.contains(ball.centre[:, None]).all()
    assert not Scene((placed(body), cavity, ball)).contains(ball.centre[:, None]).any()
    assert depth_of(scene, render_rig("k")[[25]], 65)[0, 32, 32].item() == pytest.approx(2.0 - 0.05, abs=1e-5)
    points, normals, _ = scene.sample_surface(8192, scene_generator(0, "kept"))
    assert (scene.contains((points + 1e-4 * normals).T)).float().mean() < 3e-3
    assert (scene.contains((points - 1e-4 * normals).T)).float().mean() > 0.997
    on_ball = ((points - ball.centre)[:, :2].norm(dim=1) - 0.12).abs() < 1e-5
    assert on_ball.sum() > 200


# --- exact all the same ---


def test_surface_points_of_varied_objects_lie_on_them_and_their_normals_point_out() -> None:
    for scene in varied(12):
        points, normals, _ = scene.sample_surface(4096, scene_generator(0, "points"))
        outside, inside = (scene.contains((points + step * normals).T) for step in (1e-4, -1e-4))
        assert outside.float().mean() < 1e-2  # at the rims of thin walls
        assert inside.float().mean() > 0.99
        assert points.norm(dim=1).max() < 0.5


def test_tracing_varied_objects_agrees_with_marching_through_membership() -> None:
    cameras = render_rig("m")[[3, 25]]
    origins, directions = cameras.rays(24, 24)
    for scene in varied(12):
        depth = depth_of(scene, cameras, 24)
        first = torch.zeros_like(depth)
        for t in torch.linspace(1.4, 2.6, 601):
            inside = scene.contains((origins + t * directions).reshape(-1, 3).T).reshape(depth.shape)
            first = torch.where((first == 0) & inside, t, first)
        marched = first > 0
        assert (marched & (depth == 0)).sum() == 0
        off = (first - depth)[marched]
        assert off.min() > -1e-4
        assert (off > 0.0021).float().mean() < 0.03  # walls thinner than a step, seen edge on


def test_depth_of_varied_objects_lands_on_another_view_within_half_a_voxel() -> None:
    for number in range(6):
        key = f"landing {number}"
        views, _ = render_scene(draw_object(0, key, FULL)[0], key, render_rig(key)[[0, 1, 6, 7]], 128, 1)
        assert views.depth is not None
        for a, b in ((0, 1), (3, 2)):
            points = views.cameras[a].unproject(views.depth[a])[views.depth[a] > 0]
            uv, z = views.cameras[b].project(points)
            column, row = (uv * 128).floor().long().clamp(0, 127).unbind(-1)
            seen = views.depth[b][row, column]
            assert (z - seen).abs()[seen > 0].median() < 0.5 / 64


def test_normals_of_varied_objects_are_those_of_their_depth_maps() -> None:
    """Finite differences of unprojected depth, where three neighbours lie on one smooth piece."""
    for scene in varied(6):
        cameras = render_rig("n")[[2, 25]]
        views, normals = render_scene(scene, "scene", cameras, 192, 1)
        assert views.depth is not None
        points = cameras.unproject(views.depth)
        across, down = points[:, 1:-1, 2:] - points[:, 1:-1, :-2], points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
        expected = torch.nn.functional.normalize(torch.linalg.cross(down, across), dim=-1)
        smooth = (views.depth > 0)[:, 1:-1, 1:-1] & (across.norm(dim=-1) < 0.02) & (down.norm(dim=-1) < 0.02)
        agree = (expected * normals.movedim(1, -1)[:, 1:-1, 1:-1]).sum(-1)[smooth]
        assert smooth.sum() > 1000
        assert (agree > 0.99).float().mean() > 0.85  # the rest are edges
        assert agree.median() > 0.9999


def test_drawn_outlines_are_outlines() -> None:
    random = scene_generator(0, "outlines")
    for _ in range(200):
        shape = draw_profile(random)
        assert all(low < high for low, high in zip(shape.heights, shape.heights[1:], strict=False))
        assert max(shape.radii) == pytest.approx(1.0)
        assert min(shape.radii) > 0


# --- looks ---


def test_lettering_is_ink_on_a_part_of_the_surface_in_colours_that_are_colours() -> None:
    shares = []
    for number in range(10):
        texture = draw_texture(scene_generator(4, str(number)), lettered=1.0)
        plain = draw_texture(scene_generator(4, str(number)))
        points, normals = torch.rand(3, 20000) - 0.5, torch.tensor([[1.0], [0.0], [0.0]]).expand(3, 20000)
        colour = albedo(texture, points, normals, points)
        assert colour.min() >= 0
        assert colour.max() <= 1
        assert plain.lettering is None
        assert texture.lettering is not None
        base = draw_base(texture, points, normals)
        shares.append(((colour - base).abs().amax(0) > 0.02).float().mean().item())
    assert all(0.01 < share < 0.95 for share in shares)
    assert min(shares) < 0.3


def test_every_panel_that_holds_something_has_ink_and_most_hold_letters() -> None:
    texture = draw_texture(scene_generator(0, "panels"), lettered=1.0)
    assert texture.lettering is not None
    full = replace(texture.lettering, density=1.0, paper=0.0, side=0.2, height=1.0)
    texture = replace(texture, lettering=full, palette=torch.zeros(3, 3))
    axis = (torch.arange(400) + 0.5) / 200 - 1  # ten panels along each
    points = torch.stack([torch.zeros(160000), *torch.cartesian_prod(axis, axis).T])
    colour = albedo(texture, points, torch.tensor([[1.0], [0.0], [0.0]]).expand(3, 160000), points)
    ink = (colour.amax(0) > 0.01).float()
    column, row = (points[1] / 0.2 + full.shift[0]).floor(), (points[2] / 0.2 + full.shift[1]).floor()
    shares = torch.stack([ink[(column == c) & (row == r)].mean() for c in range(-4, 4) for r in range(-4, 4)])
    assert (shares > 0).float().mean() > 0.95
    assert (shares < 0.35).float().mean() > 0.5  # strokes leave most of a panel bare, bars half of it


def draw_base(texture: Texture, points: torch.Tensor, normals: torch.Tensor) -> torch.Tensor:
    return albedo(replace(texture, lettering=None), points, normals, points)


def test_lettering_goes_around_what_is_round() -> None:
    """A turn about the axis by some angle moves it by that angle times the half-width, as upright on each side."""
    texture = draw_texture(scene_generator(0, "round"), lettered=1.0)
    turn, around = torch.rand(4000) * 2, 0.3
    height = torch.rand(4000) * 0.4

    def on_side(angle: torch.Tensor) -> torch.Tensor:
        cos, sin = torch.cos(angle), torch.sin(angle)
        points = torch.stack([around * cos, around * sin, height])
        lettered = albedo(texture, points, torch.stack([cos, sin, torch.zeros_like(cos)]), points, around)
        bare = draw_base(texture, points, torch.stack([cos, sin, torch.zeros_like(cos)]))
        return (lettered - bare).abs().amax(0) > 1e-4

    flat = torch.stack([around * turn, torch.zeros_like(turn), height])  # a side that looks along y
    normals = torch.tensor([[0.0], [1.0], [0.0]]).expand(3, 4000)
    unrolled = (albedo(texture, flat, normals, flat) - draw_base(texture, flat, normals)).abs().amax(0) > 1e-4
    assert (on_side(turn) == unrolled).float().mean() > 0.98
    assert 0.01 < unrolled.float().mean() < 0.99


def test_a_drawn_light_never_clips_white_and_the_fixed_one_has_no_highlights() -> None:
    normals = normalised(torch.randn(3, 5000, generator=torch.Generator().manual_seed(0)))
    glossy = 0
    for number in range(20):
        light = draw_light(scene_generator(0, f"light {number}"))
        falls = irradiance(normals, light)
        assert falls.min() >= 0
        assert 0.2 < falls.max() <= 0.999
        glossy += light.gloss > 0
    assert 4 < glossy < 16
    assert highlights(normals, normals, FIXED).max() == 0


def test_a_highlight_lies_where_the_lamp_is_mirrored() -> None:
    light = Light(0.2, 0.2, (((0.0, 0.0, 2.0), 0.5),), gloss=0.8, shininess=20.0)
    up = torch.tensor([[0.0], [0.0], [1.0]])
    tilted = torch.tensor([[math.sin(0.5)], [0.0], [math.cos(0.5)]])
    mirrored = torch.tensor([[math.sin(1.0)], [0.0], [math.cos(1.0)]])
    assert highlights(up, up, light).item() == pytest.approx(0.4)
    assert highlights(tilted, mirrored, light).item() == pytest.approx(0.4)
    assert highlights(up, mirrored, light).item() < 0.1
