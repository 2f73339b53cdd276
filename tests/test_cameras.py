"""Cameras against closed forms, and foreign conventions there and back."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geolrm.cameras import (
    Cameras,
    from_blender,
    from_gobjaverse,
    intrinsics_from_fov,
    look_at,
    orbit,
    to_blender,
    to_gobjaverse,
)
from geolrm.failures import BadInput

FOV = 39.6


@pytest.fixture
def ring() -> Cameras:
    return orbit(torch.arange(0, 360, 30.0), torch.linspace(-60, 60, 12), radius=2.0, fov=FOV)


def test_the_origin_projects_to_the_middle_of_every_picture(ring):
    uv, depth = ring.project(torch.zeros(1, 3))
    torch.testing.assert_close(uv, torch.full((12, 1, 2), 0.5))
    torch.testing.assert_close(depth, torch.full((12, 1), 2.0))


def test_a_pinhole_projects_as_similar_triangles_say():
    camera = orbit(torch.tensor([0.0]), torch.tensor([0.0]), radius=2.0, fov=90.0)[0]  # at (2, 0, 0), right is +y
    uv, depth = camera.project(torch.tensor([[1.0, 0.25, 0.5]]))
    assert depth.item() == pytest.approx(1.0)
    assert uv[0].tolist() == pytest.approx([0.5 + 0.25 / 2, 0.5 - 0.5 / 2], abs=1e-6)


def test_world_z_points_up_in_the_picture_and_x_grows_to_the_right(ring):
    above, _ = ring.project(torch.tensor([[0.0, 0.0, 0.1]]))
    assert (above[..., 1] < 0.5).all()
    right = ring.positions + ring.rotations[..., :, 2] * 2 + ring.rotations[..., :, 0] * 0.1
    uv, _ = ring.project(right[:, None])
    assert (uv[..., 0] > 0.5).all()


def test_pixel_centres_lie_at_half_integers(ring):
    origins, directions = ring.rays(4, 6)
    uv, depth = ring.project((origins + directions).reshape(12, -1, 3))
    expected_u = ((torch.arange(6) + 0.5) / 6).expand(4, 6).reshape(-1)
    expected_v = ((torch.arange(4) + 0.5) / 4)[:, None].expand(4, 6).reshape(-1)
    torch.testing.assert_close(uv[..., 0], expected_u.expand(12, -1), atol=1e-5, rtol=0)
    torch.testing.assert_close(uv[..., 1], expected_v.expand(12, -1), atol=1e-5, rtol=0)
    torch.testing.assert_close(depth, torch.ones_like(depth), atol=1e-5, rtol=0)


def test_unprojected_depth_projects_back_to_its_pixel_and_depth(ring):
    depth = torch.rand(12, 5, 7) + 1
    uv, back = ring.project(ring.unproject(depth).reshape(12, -1, 3))
    torch.testing.assert_close(back.reshape(12, 5, 7), depth, atol=1e-5, rtol=1e-5)
    assert ((uv > 0) & (uv < 1)).all()


def test_points_behind_a_camera_have_negative_depth_and_finite_projections(ring):
    behind = ring.positions * 2
    uv, depth = ring.project(behind[:, None])
    assert (depth < 0).all()
    assert torch.isfinite(uv).all()


def test_world_to_camera_is_the_inverse(ring):
    eye = torch.eye(4).expand(12, 4, 4)
    torch.testing.assert_close(ring.world_to_camera @ ring.camera_to_world, eye, atol=1e-5, rtol=0)


def test_pluecker_moment_is_the_same_for_every_point_of_the_ray(ring):
    pluecker = ring.pluecker(3, 3)
    direction, moment = pluecker[:, :3], pluecker[:, 3:]
    torch.testing.assert_close(direction.norm(dim=1), torch.ones(12, 3, 3))
    further = ring.positions[:, :, None, None] + 1.7 * direction
    torch.testing.assert_close(torch.linalg.cross(further, direction, dim=1), moment, atol=1e-5, rtol=1e-4)


def test_looking_straight_down_keeps_a_proper_rotation():
    pose = look_at(torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, -2.0]]))
    assert torch.linalg.det(pose[:, :3, :3]).tolist() == pytest.approx([1.0, 1.0])


@given(azimuth=st.floats(0, 360), elevation=st.floats(-89, 89), fov=st.floats(10, 120))
def test_gobjaverse_json_round_trip(azimuth, elevation, fov):
    camera = orbit(torch.tensor([azimuth]), torch.tensor([elevation]), 2.0, fov)[0]
    again = from_gobjaverse(json.loads(json.dumps(to_gobjaverse(camera))))
    torch.testing.assert_close(again.camera_to_world, camera.camera_to_world, atol=1e-6, rtol=0)
    torch.testing.assert_close(again.intrinsics, camera.intrinsics, atol=1e-5, rtol=1e-6)


def test_gobjaverse_axes_are_opencv_axes():
    fields = {"x": [0, 1, 0], "y": [0, 0, -1], "z": [-1, 0, 0], "origin": [2, 0, 0], "x_fov": 0.69, "y_fov": 0.69}
    uv, depth = from_gobjaverse(fields).project(torch.tensor([[0.0, 0.1, 0.1]]))
    assert depth.item() == pytest.approx(2.0)
    assert uv[0, 0] > 0.5
    assert uv[0, 1] < 0.5


def test_blender_transforms_round_trip_and_flip_two_axes(ring):
    transforms = to_blender(ring, [f"r_{i}" for i in range(12)])
    matrix = torch.tensor(transforms["frames"][3]["transform_matrix"])
    torch.testing.assert_close(matrix[:3, 2], -ring.camera_to_world[3, :3, 2])  # OpenGL looks along -z
    again = from_blender(json.loads(json.dumps(transforms)))
    torch.testing.assert_close(again.camera_to_world, ring.camera_to_world, atol=1e-6, rtol=0)
    torch.testing.assert_close(again.intrinsics, ring.intrinsics, atol=1e-6, rtol=0)


def test_transforms_with_width_and_height_have_square_pixels(ring):
    transforms = to_blender(ring, ["a"] * 12) | {"w": 200, "h": 100}
    del transforms["camera_angle_y"]
    pixels = from_blender(transforms).pixel_intrinsics(100, 200)
    torch.testing.assert_close(pixels[:, 0, 0], pixels[:, 1, 1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"x": [0, 0, 0], "y": [0, 0, 0], "z": [0, 0, 0]}, "pose_zero"),
        ({"x": [0, 2, 0]}, "pose_not_rotation"),
        ({"x": [0, -1, 0]}, "pose_not_rotation"),  # mirrored
        ({"origin": [math.nan, 0, 0]}, "pose_not_finite"),
        ({"x_fov": 39.6}, "fov_out_of_range"),  # degrees where radians are stored
        ({"y_fov": 0.0}, "fov_out_of_range"),
        ({"x": [1, 0]}, "camera_fields"),
        ({"origin": "here"}, "camera_fields"),
        ({"x_fov": None}, "camera_fields"),
    ],
)
def test_a_bad_camera_is_refused_by_its_reason_and_names_its_file(change, reason):
    fields = to_gobjaverse(orbit(torch.tensor([0.0]), torch.tensor([0.0]), 2.0, FOV)[0]) | change
    with pytest.raises(BadInput) as caught:
        from_gobjaverse(fields, "bowl/00007.json")
    assert caught.value.reason == reason
    assert "bowl/00007.json" in str(caught.value)


def test_transforms_without_frames_are_refused():
    with pytest.raises(BadInput, match="frames"):
        from_blender({"camera_angle_x": 0.7, "frames": []})


def test_intrinsics_survive_resizing():
    camera = Cameras(torch.eye(4), intrinsics_from_fov(math.radians(FOV)))
    assert camera.pixel_intrinsics(512, 512)[0, 0].item() == pytest.approx(711.1, abs=0.1)
