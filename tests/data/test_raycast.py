"""Ray casting: what each pixel shows, against closed forms."""

import builtins
import math

import numpy as np
import pytest
import torch
import trimesh
from mesh_files import FACES, box_files, png
from PIL import Image

from geolrm.cameras import Cameras, intrinsics_from_fov, look_at
from geolrm.data import raycast
from geolrm.data.lighting import LIGHTS, irradiance, linear_to_srgb, srgb_to_linear
from geolrm.data.meshes import Bundle, Material, TexturedMesh, normalised, read_mesh
from geolrm.data.raycast import GBuffers, Open3DMissing, RayCaster, import_open3d, sample_texture
from geolrm.data.reprojection import reprojection_error
from geolrm.data.rig import render_rig
from geolrm.views import Views


def bundle(files: dict[str, bytes], mesh="box.obj") -> Bundle:
    return Bundle("box", "box", None, "test", mesh, files)


def box(up="z", **sides) -> TexturedMesh:
    return normalised(read_mesh(bundle(box_files(**sides))), up)[0]


def facing_camera(direction, distance=2.0, fov=39.6) -> Cameras:
    position = torch.tensor([direction], dtype=torch.float32)
    position = distance * position / position.norm()
    return Cameras(look_at(position), intrinsics_from_fov(math.radians(fov))[None])


def lit(colour, normal) -> torch.Tensor:
    """sRGB (3,) of an 8-bit colour on a surface of this normal: the documented formula, in one line."""
    light = irradiance(torch.tensor([normal], dtype=torch.float32).T)
    return linear_to_srgb((srgb_to_linear(torch.tensor(colour) / 255) * light).clamp(0, 1))


def sphere(subdivisions=5, radius=0.5) -> TexturedMesh:
    ball = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    faces = np.asarray(ball.faces, dtype=np.int64)
    return TexturedMesh(np.asarray(ball.vertices), faces, (Material(),), np.zeros(len(faces), np.int64))


# --- colour ---


@pytest.mark.parametrize("number", range(6))
def test_each_face_of_a_box_shows_its_colour_the_right_way_round(number):
    face = FACES[number]
    buffers = RayCaster(box()).render(facing_camera(face.normal), 64, 2)
    picture, middle, near, far = buffers.colour[0], 32, 20, 43
    assert buffers.alpha[0, 0, middle, middle] == 1
    upper_left, upper_right = picture[:, near, near], picture[:, near, far]
    lower_left, lower_right = picture[:, far, near], picture[:, far, far]
    assert torch.allclose(upper_left, lit(face.light, face.normal), atol=2e-3)
    for other in (upper_right, lower_left, lower_right):
        assert torch.allclose(other, lit(face.colour, face.normal), atol=2e-3)
    albedo = buffers.albedo[0]
    assert torch.allclose(albedo[:, near, near] * 255, torch.tensor(face.light).float(), atol=0.5)
    assert torch.allclose(albedo[:, far, far] * 255, torch.tensor(face.colour).float(), atol=0.5)


@pytest.mark.parametrize(("up", "turn"), [("y", ((1, 0, 0), (0, 0, 1), (0, -1, 0))), ("z", np.eye(3))])
def test_a_source_with_another_axis_up_looks_the_same_once_turned(up, turn):
    camera = facing_camera((1, 0.7, 0.5))
    upright = RayCaster(box(sides=(1, 0.6, 0.8))).render(camera, 32, 1)
    turned = RayCaster(box(up, sides=(1, 0.6, 0.8), turn=turn)).render(camera, 32, 1)
    assert torch.allclose(upright.colour, turned.colour, atol=1e-4)
    assert torch.allclose(upright.depth, turned.depth, atol=1e-5)


def test_a_glb_shows_its_faces_as_the_obj_does():
    """glTF is y up; Blender and trimesh write (x, y, z) of a z-up world as (x, z, -y)."""
    points = read_mesh(bundle(box_files()))
    corner_points = points.vertices[points.faces].reshape(-1, 3) @ np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]).T
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(points.materials[0].texture))
    visual = trimesh.visual.TextureVisuals(uv=points.corner_uv.reshape(-1, 2), material=material)
    faces = np.arange(len(corner_points)).reshape(-1, 3)
    data = trimesh.Trimesh(corner_points, faces, visual=visual, process=False).export(file_type="glb")
    mesh, _ = normalised(read_mesh(bundle({"box.glb": data}, "box.glb")), "y")
    camera = facing_camera((1, 0.7, 0.5))
    expected = RayCaster(box()).render(camera, 32, 1)
    assert torch.allclose(RayCaster(mesh).render(camera, 32, 1).colour, expected.colour, atol=1e-3)


def test_texture_lookup_is_bilinear_between_texel_centres_and_repeats():
    texture = np.array([[[0, 0, 0], [100, 0, 0]], [[0, 200, 0], [100, 200, 0]]], dtype=np.uint8)

    def at(u, v):
        return (sample_texture(texture, np.array([[u, v]], np.float32)) * 255).round(3)[0].tolist()

    assert at(0.25, 0.75) == [0, 0, 0]  # the first texel of the first row, which lies on top
    assert at(0.75, 0.75) == [100, 0, 0]
    assert at(0.25, 0.25) == [0, 200, 0]
    assert at(0.5, 0.75) == [50, 0, 0]
    assert at(0.5, 0.5) == [50, 100, 0]
    assert at(0.0, 0.75) == [50, 0, 0]  # half way around the edge
    assert at(3.25, -1.25) == at(0.25, 0.75)


def test_light_is_the_documented_one_and_hangs_on_the_normal_alone():
    up, down = irradiance(torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, -1.0]])).tolist()
    above = sum(strength * d[2] / math.dist(d, (0, 0, 0)) for d, strength in LIGHTS)
    assert up == pytest.approx(0.56 + above)
    assert down == pytest.approx(0.31)
    steps = torch.linspace(0, 1, 256)
    assert torch.allclose(linear_to_srgb(srgb_to_linear(steps)), steps, atol=1e-5)
    one = RayCaster(box()).render(facing_camera((1, 0.2, 0.3)), 64, 1)
    other = RayCaster(box()).render(facing_camera((1, -0.3, 0.2)), 64, 1)
    ordinary = [
        torch.allclose(b.colour[0, :, 44, 32], lit(FACES[0].colour, (1, 0, 0)), atol=2e-3) for b in (one, other)
    ]
    assert ordinary == [True, True]


def test_the_brightest_white_is_just_below_full_white():
    z, turn = torch.meshgrid(torch.linspace(-1, 1, 401), torch.linspace(0, 2 * math.pi, 401), indexing="ij")
    ring = torch.sqrt((1 - z * z).clamp(min=0))
    light = irradiance(torch.stack([ring * torch.cos(turn), ring * torch.sin(turn), z]).flatten(1))
    assert 0.99 < light.max() <= 1
    assert light.min() > 0.3


def test_a_mesh_wound_inside_out_looks_the_same():
    mesh, camera = box(), facing_camera((1, 0.7, 0.5))
    swapped = np.array([0, 2, 1])
    turned = TexturedMesh(
        mesh.vertices, mesh.faces[:, swapped], mesh.materials, mesh.face_material, mesh.corner_uv[:, swapped]
    )
    one, other = RayCaster(mesh).render(camera, 32, 1), RayCaster(turned).render(camera, 32, 1)
    assert torch.allclose(one.colour, other.colour, atol=1e-5)
    assert torch.allclose(one.normals, other.normals, atol=1e-5)


def test_shading_follows_the_normals_of_the_file_on_the_side_that_is_seen():
    mesh = box()
    tilted = np.broadcast_to(np.array([0.6, 0, 0.8], np.float32), (len(mesh.faces), 3, 3))
    for sign in (1, -1):
        shaded = TexturedMesh(
            mesh.vertices, mesh.faces, mesh.materials, mesh.face_material, mesh.corner_uv, sign * tilted
        )
        buffers = RayCaster(shaded).render(facing_camera((1, 0, 0)), 32, 1)
        assert torch.allclose(buffers.colour[0, :, 20, 20], lit(FACES[0].colour, (0.6, 0, 0.8)), atol=2e-3)
        assert torch.allclose(buffers.normals[0, :, 20, 20], torch.tensor([1.0, 0, 0]), atol=1e-5)  # stays the face's


def test_vertex_colours_are_interpolated_over_the_face():
    mesh = TexturedMesh(
        np.array([[0.0, -0.5, -0.5], [0.0, 0.5, -0.5], [0.0, 0.0, 0.5]]),
        np.array([[0, 1, 2]]),
        (Material(),),
        np.zeros(1, np.int64),
        vertex_colours=np.eye(3, dtype=np.float32),
    )
    caster = RayCaster(mesh)
    weights = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.25, 0.25]], np.float32)
    assert np.allclose(caster.albedo(np.zeros(4, np.int64), weights), weights)
    picture = caster.render(facing_camera((1, 0, 0)), 64, 1).colour[0]
    assert picture[:, 44, 22].argmax() == 0  # y = -0.5 is on the left as seen from +x
    assert picture[:, 44, 42].argmax() == 1
    assert picture[:, 14, 32].argmax() == 2


# --- geometry ---


def test_depth_is_planar_and_matches_the_closed_form_of_a_box_and_a_sphere():
    camera = facing_camera((1, 0, 0))
    flat = RayCaster(box()).render(camera, 64, 1)
    inside = flat.depth[0, 14:50, 14:50]
    assert torch.allclose(inside, torch.full_like(inside, 1.5), atol=1e-5)  # planar z: the same to the corners
    assert torch.allclose(flat.normals[0, :, 14:50, 14:50], torch.tensor([1.0, 0, 0])[:, None, None], atol=1e-5)
    ball = RayCaster(sphere()).render(camera, 64, 1)
    origins, directions = camera.rays(64, 64)
    a, b = (directions**2).sum(-1), (origins * directions).sum(-1)
    root = b**2 - a * (4 - 0.25)
    exact = torch.where(root > 0, (-b - root.clamp(min=0).sqrt()) / a, 0.0)
    both = (ball.depth > 0) & (exact > 0)
    assert ((ball.depth > 0) ^ (exact > 0)).float().mean() < 0.01
    assert (ball.depth - exact)[both].abs().median() < 1e-3
    points = camera.unproject(ball.depth)[both]
    assert ((ball.normals.movedim(1, -1)[both] * points / 0.5).sum(-1)).median() > 0.999


def test_alpha_is_the_covered_share_of_the_pixel():
    camera = facing_camera((1, 0, 0))
    buffers = RayCaster(box()).render(camera, 41, 4)
    focal = 0.5 / math.tan(math.radians(39.6) / 2) * 41
    side = focal / 1.5  # of the front face in pixels: it hides the rest
    assert buffers.alpha.sum().item() == pytest.approx(side**2, rel=2e-3)
    values = buffers.alpha.unique()
    assert torch.allclose(values * 16, (values * 16).round())
    assert len(values) > 4
    assert (buffers.colour[(buffers.alpha == 0).expand_as(buffers.colour)] == 0).all()
    edge = (buffers.alpha[0, 0] > 0) & (buffers.alpha[0, 0] < 1)
    base = lit(FACES[0].colour, (1, 0, 0))
    straight = buffers.colour[0][:, edge & (torch.arange(41) > 24)]
    assert (straight - base[:, None]).abs().max() < 0.01  # straight alpha: the edge keeps the face's colour


def test_supersampling_smooths_a_texture_finer_than_the_pixels():
    checker = (np.indices((512, 512)).sum(axis=0) % 2 * 255).astype(np.uint8)
    mesh = read_mesh(bundle({**box_files(), "texture.png": png(np.repeat(checker[..., None], 3, axis=2))}))
    caster = RayCaster(normalised(mesh, "z")[0])
    spread = [caster.render(facing_camera((1, 0, 0)), 32, s).colour[0, :, 8:24, 8:24].std() for s in (1, 6)]
    assert spread[1] < 0.5 * spread[0]


def test_depth_of_one_view_lands_on_another():
    mesh = box(sides=(1, 0.6, 0.8))
    cameras = render_rig("box")
    buffers = RayCaster(mesh).render(cameras[:24], 64, 1)
    views = Views("box", cameras[:24], buffers.colour, buffers.alpha, buffers.depth)
    error = reprojection_error(views)
    assert error.median < 0.25 / 128
    assert error.compared > 5000
    assert error.missed < 0.1
    for axis in ((-1, 1, 1), (1, -1, 1), (1, 1, -1)):  # mirrored cameras: what a wrong axis would do
        poses = views.cameras.camera_to_world.clone()
        poses[:, :3, :3] *= torch.tensor(axis, dtype=torch.float32)
        wrong = Views("box", Cameras(poses, cameras[:24].intrinsics), buffers.colour, buffers.alpha, buffers.depth)
        assert reprojection_error(wrong).median > 0.5 / 64


def test_nothing_in_common_is_no_agreement():
    empty = torch.zeros(2, 8, 8)
    views = Views("none", render_rig("none")[:2], torch.zeros(2, 3, 8, 8), empty[:, None], empty)
    assert reprojection_error(views).median == float("inf")
    with pytest.raises(ValueError, match="no depth"):
        reprojection_error(Views("none", views.cameras, views.colour, views.alpha))


def test_many_rays_are_cast_in_portions_without_a_trace(monkeypatch):
    mesh, camera = box(), facing_camera((1, 0.7, 0.5))
    whole = RayCaster(mesh).render(camera, 32, 2)
    monkeypatch.setattr(raycast, "RAYS_AT_ONCE", 500)
    parts: GBuffers = RayCaster(mesh).render(camera, 32, 2)
    assert torch.allclose(whole.colour, parts.colour, atol=1e-5)
    assert torch.equal(whole.depth, parts.depth)
    assert torch.equal(whole.alpha, parts.alpha)


def test_a_camera_that_sees_nothing_of_the_object_or_stands_inside_it_is_no_error():
    away = facing_camera((1, 0, 0))
    pose = away.camera_to_world.clone()
    pose[0, :3, :2] *= -1
    pose[0, :3, 2] *= -1
    pose[0, :3, 0] *= -1
    buffers = RayCaster(box()).render(Cameras(pose, away.intrinsics), 16, 2)
    assert buffers.alpha.max() == 0
    inside = RayCaster(box()).render(facing_camera((1, 0, 0), distance=0.1), 16, 1)
    assert inside.alpha.min() == 1
    assert torch.allclose(inside.depth[0, 8, 8], torch.tensor(0.6), atol=1e-3)


# --- Open3D that is not there ---


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModuleNotFoundError("No module named 'open3d'", name="open3d"), "pip install -e '.[meshes]'"),
        (OSError("libusb-1.0.so.0: cannot open shared object file"), "apt-get install libusb-1.0-0"),
        (ImportError("libGL.so.1: cannot open shared object file"), "libgl1"),
    ],
)
def test_a_missing_open3d_is_one_plain_line_with_the_command_that_brings_it(monkeypatch, error, said):
    original = builtins.__import__

    def failing(name, *args, **kwargs):
        if name == "open3d":
            raise error
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", failing)
    with pytest.raises(Open3DMissing) as raised:
        import_open3d()
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
