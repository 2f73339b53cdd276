"""The rig's numbering, elevations and roles, recomputed from the poses."""

import pytest
import torch

from geolrm.cameras import Cameras
from geolrm.data import rig


def test_files_follow_the_numbering_of_gobjaverse():
    azimuths, elevations = rig.azimuths_and_elevations(rig.render_rig("train-00000"))
    assert torch.allclose(azimuths[:24], 15.0 * torch.arange(24).double(), atol=1e-4)
    assert torch.allclose(azimuths[27:39], 30.0 * torch.arange(12).double(), atol=1e-4)
    assert elevations[:25].max() - elevations[:25].min() < 1e-4
    assert elevations[27:].max() - elevations[27:].min() < 1e-4
    assert elevations[25] > 89.9
    assert elevations[26] < -89.9


def test_roles_are_24_orbit_12_ring_top_bottom_and_two_duplicates():
    roles = rig.view_roles(rig.render_rig("any key"))
    expected = ["orbit"] * 24 + ["duplicate", "top", "bottom"] + ["ring"] * 12 + ["duplicate"]
    assert roles == expected


def test_roles_hold_for_many_keys_and_elevations_fill_their_range():
    orbits, rings = [], []
    for i in range(300):
        cameras = rig.render_rig(f"object {i}")
        elevations = rig.azimuths_and_elevations(cameras)[1]
        orbits.append(elevations[0].item())
        rings.append(elevations[27].item())
        assert rig.view_roles(cameras).count("orbit") == 24
    assert 5 < min(orbits) < 6
    assert 29 < max(orbits) < 30
    assert -5 < min(rings) < -4
    assert 4 < max(rings) < 5


def test_roles_come_from_the_poses_and_not_from_the_numbers():
    cameras = rig.render_rig("shuffled")
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    roles = rig.view_roles(cameras[order])
    counts = {role: roles.count(role) for role in set(roles)}
    assert counts == {"orbit": 24, "ring": 12, "top": 1, "bottom": 1, "duplicate": 2}
    assert rig.view_roles(rig.test_rig()).count("other") == 8  # at -10 and 50 degrees


def test_test_views_equal_no_input_view():
    azimuths, elevations = rig.azimuths_and_elevations(rig.test_rig())
    assert torch.allclose(azimuths, 11.25 + 22.5 * torch.arange(16).double(), atol=1e-4)
    assert torch.allclose(elevations, torch.tensor([-10.0, 10, 30, 50]).double().repeat(4), atol=1e-4)
    distances = torch.cdist(rig.test_rig().positions, rig.render_rig("train-00000").positions)
    assert distances.min() > 0.01


def test_all_cameras_look_at_the_centre_from_radius_2():
    for cameras in (rig.render_rig("a"), rig.test_rig()):
        uv, depth = cameras.project(torch.zeros(1, 3))
        assert torch.allclose(uv, torch.full_like(uv, 0.5), atol=1e-6)
        assert torch.allclose(depth, torch.full_like(depth, 2.0), atol=1e-5)


def test_the_ball_of_radius_half_fits_every_frame():
    directions = torch.nn.functional.normalize(torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    for cameras in (rig.render_rig("a"), rig.test_rig()):
        uv, _ = cameras.project(0.5 * directions)
        assert uv.min() > 0.1
        assert uv.max() < 0.9


def test_a_key_always_gives_the_same_poses_and_another_key_others():
    assert torch.equal(rig.render_rig("a").camera_to_world, rig.render_rig("a").camera_to_world)
    assert not torch.equal(rig.render_rig("a").camera_to_world, rig.render_rig("b").camera_to_world)


def test_orbit_inputs_are_spread_evenly():
    assert rig.orbit_inputs(4) == (0, 6, 12, 18)
    assert rig.orbit_inputs(1) == (0,)
    assert rig.orbit_inputs(24) == tuple(range(24))
    for count in range(1, 25):
        picked = rig.orbit_inputs(count)
        assert len(set(picked)) == count
        assert picked == tuple(int(24 * i / count) for i in range(count))


@pytest.mark.parametrize("count", [0, -1, 25])
def test_more_or_fewer_inputs_than_the_orbit_holds_are_refused(count):
    with pytest.raises(ValueError, match="input views"):
        rig.orbit_inputs(count)


def test_a_single_camera_has_a_role():
    cameras = rig.render_rig("a")
    assert rig.view_roles(Cameras(cameras.camera_to_world[25:26], cameras.intrinsics[25:26])) == ["top"]
