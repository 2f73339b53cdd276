"""Gaussians laid on closed forms come back as meshes on them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import trimesh
from torch import Tensor
from torch.nn import functional as F

from geolrm.cameras import Cameras
from geolrm.failures import BadInput
from geolrm.gaussians import Gaussians
from geolrm.meshing import TRUNCATION, Mesh, fibonacci_cameras, fuse, gaussians_to_mesh

RESOLUTION = 64
RING, TUBE = 0.32, 0.12  # of the torus


def discs(points: Tensor, normals: Tensor, radius: float, opacity: float = 0.95) -> Gaussians:
    """Flat Gaussians on a surface, coloured by its normals."""
    z = torch.tensor([0.0, 0.0, 1.0]).expand_as(normals)
    turn = torch.cat([1 + (z * normals).sum(dim=-1, keepdim=True), torch.linalg.cross(z, normals)], dim=-1)
    turn[turn.norm(dim=-1) < 1e-4] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    scales = torch.tensor([radius, radius, 0.1 * radius]).expand_as(points)
    return Gaussians.from_activated(
        points, 0.5 + 0.4 * normals, torch.full((len(points),), opacity), scales.clone(), turn
    )


def sphere(count: int, radius: float, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Gaussians:
    index = torch.arange(count, dtype=torch.float64)
    z = 1 - (2 * index + 1) / count
    azimuth = index * math.pi * (3 - math.sqrt(5))
    ring = (1 - z * z).sqrt()
    normals = torch.stack([ring * azimuth.cos(), ring * azimuth.sin(), z], dim=-1).float()
    return discs(radius * normals + torch.tensor(centre), normals, radius * 2.4 / math.sqrt(count))


def join(*sets: Gaussians) -> Gaussians:
    return Gaussians(*(torch.cat(parts) for parts in zip(*(s.tensors for s in sets), strict=True)))


def torus() -> Gaussians:
    u, v = torch.meshgrid(torch.arange(128) / 128, torch.arange(64) / 64, indexing="ij")
    u, v = 2 * math.pi * u.flatten(), 2 * math.pi * v.flatten()
    normals = torch.stack([v.cos() * u.cos(), v.cos() * u.sin(), v.sin()], dim=-1)
    return discs(RING * torch.stack([u.cos(), u.sin(), 0 * u], dim=-1) + TUBE * normals, normals, 0.015)


@pytest.fixture(scope="module")
def ball() -> Mesh:
    return gaussians_to_mesh(sphere(4000, 0.4), resolution=RESOLUTION, cameras=24, image_size=128)


def test_gaussians_on_a_sphere_become_that_sphere_within_a_voxel(ball: Mesh) -> None:
    error = (ball.vertices.norm(dim=-1) - 0.4) * RESOLUTION
    assert error.abs().max() < 1.0
    assert error.abs().mean() < 0.5
    area = ball.crosses.norm(dim=-1).sum() / 2
    assert area == pytest.approx(4 * math.pi * 0.4**2, rel=0.05)  # one shell, closed


def test_faces_of_the_sphere_look_outward_and_carry_its_colours(ball: Mesh) -> None:
    points, normals = ball.sample(4000, seed=0)
    outward = F.normalize(points, dim=-1)
    assert (normals * outward).sum(dim=-1).min() > 0.7
    expected = 0.5 + 0.4 * F.normalize(ball.vertices, dim=-1)
    assert (ball.colours - expected).abs().max() < 0.05


def test_gaussians_on_a_torus_become_that_torus_within_a_voxel() -> None:
    mesh = gaussians_to_mesh(torus(), resolution=RESOLUTION)
    x, y, z = mesh.vertices.unbind(dim=-1)
    error = (torch.hypot(torch.hypot(x, y) - RING, z) - TUBE) * RESOLUTION
    assert error.abs().quantile(0.99) < 1.5
    assert error.abs().mean() < 1.0
    assert trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy()).euler_number == 0  # the hole stays open


def plain_fusion(depth: Tensor, cameras: Cameras, resolution: int, truncation: float) -> tuple[Tensor, Tensor]:
    """What `fuse` says it does, every voxel projected by the cameras themselves, all in float64."""
    side = resolution + 2 * TRUNCATION
    axis = (torch.arange(side, dtype=torch.float64) - TRUNCATION + 0.5) / resolution - 0.5
    points = torch.cartesian_prod(axis, axis, axis)
    total, weight = torch.zeros(2, len(points), dtype=torch.float64)
    height, width = depth.shape[-2:]
    exact = Cameras(cameras.camera_to_world.double(), cameras.intrinsics.double())
    for view in range(len(depth)):
        uv, z = exact[view].project(points)
        inside = ((uv >= 0) & (uv < 1)).all(dim=-1)
        column, row = (uv * torch.tensor([width, height])).long().unbind(-1)
        seen = torch.where(inside, depth[view].double()[torch.where(inside, row, 0), torch.where(inside, column, 0)], 0)
        signed = ((seen - z) / truncation).clamp(max=1)
        trust = ((signed + 1) * TRUNCATION / (TRUNCATION - 1)).clamp(0, 1) * (seen > 0)
        total += signed.clamp(min=-1) * trust
        weight += trust
    return (total / weight.clamp(min=1e-6)).reshape(side, side, side), weight.reshape(side, side, side)


def test_fused_depth_is_that_of_the_plain_definition() -> None:
    cameras = fibonacci_cameras(7)
    cameras = cameras[[0, 2, 3, 5, 6]]
    noise = torch.rand(5, 40, 56, generator=torch.Generator().manual_seed(0))
    depth = torch.where(noise < 0.1, 0.0, torch.where(noise > 0.9, math.inf, 1.6 + 0.8 * noise))
    for found, expected in zip(fuse(depth, cameras, 30, 0.13), plain_fusion(depth, cameras, 30, 0.13), strict=True):
        assert found.shape == expected.shape == (38, 38, 38)
        apart = (found - expected).abs() > 1e-4
        assert apart.float().mean() < 1e-4  # voxels that lie on the border of two pixels


def test_fusion_does_not_hang_on_the_number_of_threads() -> None:
    depth, cameras = torch.full((3, 16, 16), 1.9), fibonacci_cameras(3)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(fuse(depth, cameras, 20, 0.2))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_a_surface_that_touches_the_object_cube_is_closed() -> None:
    mesh = gaussians_to_mesh(sphere(6000, 0.5), resolution=48)
    assert trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy()).is_watertight
    assert mesh.vertices.abs().max() == pytest.approx(0.5, abs=1 / 48)


def test_floaters_are_dropped_and_parts_are_kept() -> None:
    large, part = sphere(4000, 0.25, (0.0, 0.0, -0.2)), sphere(600, 0.1, (0.0, 0.0, 0.35))
    floater = sphere(60, 0.01, (0.42, 0.0, 0.3))
    mesh = gaussians_to_mesh(join(large, part, floater), resolution=RESOLUTION)
    assert mesh.vertices[:, 2].max() == pytest.approx(0.45, abs=1.5 / RESOLUTION)
    assert mesh.vertices[:, 0].max() < 0.3
    assert len(mesh.faces.unique()) == len(mesh.vertices)


@pytest.mark.parametrize(
    "gaussians",
    [
        pytest.param(Gaussians.empty(), id="no Gaussians"),
        pytest.param(sphere(500, 0.4)[:0], id="an empty selection"),
        pytest.param(discs(torch.zeros(1, 3), torch.eye(3)[:1], 0.1, opacity=0.3), id="nothing above half opaque"),
        pytest.param(discs(torch.full((1, 3), 9.0), torch.eye(3)[:1], 0.1), id="outside every frame"),
    ],
)
def test_no_surface_is_the_empty_mesh(gaussians: Gaussians) -> None:
    mesh = gaussians_to_mesh(gaussians, resolution=16, cameras=4, image_size=32)
    assert mesh.vertices.shape == (0, 3)
    assert mesh.faces.shape == (0, 3)
    assert mesh.colours.shape == (0, 3)


def test_the_empty_mesh_has_neither_points_nor_a_file(tmp_path: Path) -> None:
    for use in (lambda: Mesh.empty().sample(10, seed=0), lambda: Mesh.empty().save_glb(tmp_path / "mesh.glb")):
        with pytest.raises(BadInput) as raised:
            use()
        assert raised.value.reason == "mesh_empty"
    assert not list(tmp_path.iterdir())


def test_a_glb_opens_with_y_up_and_linear_colours(tmp_path: Path) -> None:
    vertices = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    Mesh(vertices, faces, torch.full((4, 3), 0.5)).save_glb(tmp_path / "mesh.glb")
    loaded = trimesh.load(tmp_path / "mesh.glb", force="mesh", process=False)
    assert torch.equal(
        torch.as_tensor(loaded.vertices).float(), torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 0, -2], [0, 3, 0]])
    )
    assert loaded.volume == pytest.approx(1.0)  # positive: the faces still look outward
    assert loaded.visual.vertex_colors[0].tolist() == [55, 55, 55, 255]  # sRGB 0.5 is 0.214 of the light


def test_samples_are_spread_by_area_and_repeat_with_their_seed() -> None:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 0, 0], [8, 0, 0], [5, 1, 0]])
    mesh = Mesh(vertices, torch.tensor([[0, 1, 2], [3, 4, 5]]), torch.zeros(6, 3))  # areas 0.5 and 1.5
    points, normals = mesh.sample(20_000, seed=3)
    assert (points[:, 0] > 2).float().mean() == pytest.approx(0.75, abs=0.01)
    small = points[points[:, 0] < 2]
    torch.testing.assert_close(small.mean(dim=0), torch.tensor([1 / 3, 1 / 3, 0.0]), atol=0.01, rtol=0)
    assert torch.equal(normals, torch.tensor([0.0, 0.0, 1.0]).expand(20_000, 3))
    assert torch.equal(points, mesh.sample(20_000, seed=3)[0])
    assert not torch.equal(points, mesh.sample(20_000, seed=4)[0])
