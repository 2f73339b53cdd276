"""Path tracing: what nothing shades looks as by ray casting, what shades itself does not."""

import builtins
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from mesh_files import box_files, box_obj

from geolrm.cameras import Cameras, intrinsics_from_fov, look_at
from geolrm.data.meshes import Bundle, Material, TexturedMesh, normalised, read_mesh
from geolrm.data.pathtrace import MitsubaMissing, PathTracer, import_mitsuba
from geolrm.data.raycast import RayCaster
from geolrm.data.rig import render_rig


@pytest.fixture
def mitsuba() -> None:
    pytest.importorskip("mitsuba", reason="path tracing needs Mitsuba: pip install -e '.[mitsuba]'")


def box(files: dict[str, bytes]) -> TexturedMesh:
    return normalised(read_mesh(Bundle("box", "box", None, "test", "box.obj", files)), "z")[0]


def ball(**content) -> TexturedMesh:
    shape = trimesh.creation.icosphere(subdivisions=3, radius=0.5)
    faces = np.asarray(shape.faces, dtype=np.int64)
    vertices = np.asarray(shape.vertices)
    return TexturedMesh(vertices, faces, (Material(),), np.zeros(len(faces), np.int64), **content)


def from_above(distance: float = 2.0) -> Cameras:
    return Cameras(look_at(torch.tensor([[0.0, 0.0, distance]])), intrinsics_from_fov(math.radians(39.6))[None])


def compared(mesh: TexturedMesh, cameras: Cameras, size: int = 48, samples: int = 64) -> tuple[float, float, float]:
    """Of tracing against casting: share of pixels on another side of the silhouette, largest difference of the mean colour of
    a view, mean difference of a pixel that both cover."""
    colour, alpha = PathTracer(mesh, threads=1).render(cameras, size, samples)
    cast = RayCaster(mesh, threads=1).render(cameras, size, 4)
    silhouette = ((alpha > 0.5) != (cast.alpha > 0.5)).float().mean().item()
    inside = (alpha > 0.99) & (cast.alpha > 0.99)
    difference = (colour - cast.colour) * inside
    count = inside.sum(dim=(-1, -2))
    assert (count > 100).all()
    means = difference.sum(dim=(-1, -2)) / count
    return silhouette, means.abs().max().item(), (difference.abs().sum(dim=(-1, -2)) / count).mean().item()


def test_silhouettes_and_mean_colours_of_a_textured_box_are_those_of_ray_casting(mitsuba: None) -> None:
    cameras = render_rig("box")[[0, 7, 13, 25, 26]]
    silhouette, mean, pixel = compared(box(box_files(sides=(0.5, 0.4, 0.6))), cameras)
    assert silhouette < 0.01
    assert mean < 0.015
    assert pixel < 0.03  # 64 samples of noise; a texture upside down gives 0.17


def test_a_box_in_one_colour_of_its_own_material_too(mitsuba: None) -> None:
    files = {"box.obj": box_obj(sides=(0.5, 0.4, 0.6)), "box.mtl": b"newmtl skin\nKd 0.8 0.3 0.1\n"}
    silhouette, mean, pixel = compared(box(files), render_rig("box")[[3, 26]])
    assert (silhouette < 0.01, mean < 0.015, pixel < 0.03) == (True, True, True)


def test_vertex_colours_are_interpolated_as_by_ray_casting(mitsuba: None) -> None:
    mesh = ball(vertex_colours=(ball().vertices + 0.5).astype(np.float32))
    silhouette, mean, pixel = compared(mesh, render_rig("ball")[[2, 25]])
    assert (silhouette < 0.01, mean < 0.015, pixel < 0.03) == (True, True, True)


@pytest.mark.parametrize("side", [1, -1])
def test_shading_follows_the_normals_of_the_file_on_the_side_that_is_seen(mitsuba: None, side: int) -> None:
    square = np.array([[-0.4, -0.4, 0], [0.4, -0.4, 0], [0.4, 0.4, 0], [-0.4, 0.4, 0]])
    tilted = np.broadcast_to(side * np.array([-0.6, 0, 0.8], np.float32), (2, 3, 3))
    faces, white = np.array([[0, 1, 2], [0, 2, 3]]), Material(colour=(0.9, 0.9, 0.9))
    mesh = TexturedMesh(square, faces, (white,), np.zeros(2, np.int64), corner_normals=tilted)
    assert compared(mesh, from_above())[1] < 0.01
    assert compared(replace(mesh, corner_normals=None), from_above())[1] < 0.01
    shaded, plain = (
        PathTracer(one, threads=1).render(from_above(), 16, 64)[0] for one in (mesh, replace(mesh, corner_normals=None))
    )
    assert plain[0, :, 8, 8].mean() - shaded[0, :, 8, 8].mean() > 0.03  # turned away from the first light


def test_a_hollow_is_darker_than_by_ray_casting_and_not_black(mitsuba: None) -> None:
    open_box = box({"box.obj": box_obj(library="", sides=(0.5, 0.5, 0.5))})
    kept = np.flatnonzero((open_box.vertices[open_box.faces][..., 2] < 0.49).any(axis=1))  # all but the lid
    mesh = TexturedMesh(open_box.vertices, open_box.faces[kept], open_box.materials, open_box.face_material[kept])
    colour, _ = PathTracer(mesh, threads=1).render(from_above(), 32, 64)
    cast = RayCaster(mesh, threads=1).render(from_above(), 32, 2)
    ground = np.s_[0, :, 12:20, 12:20]
    assert 0.15 < colour[ground].mean() < 0.85 * cast.colour[ground].mean()


def test_a_view_hangs_on_its_number_alone_and_not_on_its_neighbours_or_threads(mitsuba: None) -> None:
    mesh, cameras = box(box_files(sides=(0.5, 0.4, 0.6))), render_rig("box")[:3]
    together, _ = PathTracer(mesh, threads=1).render(cameras, 16, 4)
    alone, _ = PathTracer(mesh, threads=2).render(cameras[2:], 16, 4, first=2)
    assert torch.equal(together[2], alone[0])


def test_a_camera_off_the_middle_is_refused(mitsuba: None) -> None:
    cameras = from_above()
    cameras.intrinsics[0, 0, 2] = 0.6
    with pytest.raises(ValueError, match="principal point"):
        PathTracer(box(box_files()), threads=1).render(cameras, 8, 1)


def test_a_missing_mitsuba_is_one_plain_line_with_the_command_that_brings_it(monkeypatch) -> None:
    original = builtins.__import__

    def failing(name, *args, **kwargs):
        if name == "mitsuba":
            raise ModuleNotFoundError("No module named 'mitsuba'", name="mitsuba")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", failing)
    with pytest.raises(MitsubaMissing, match=r"pip install -e '\.\[mitsuba\]'") as raised:
        import_mitsuba()
    assert "\n" not in str(raised.value)
