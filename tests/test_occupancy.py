"""Occupancy against closed forms, and the evenness of its subsample."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from scipy.spatial import cKDTree

from geolrm import occupancy
from geolrm.cameras import Cameras, orbit
from geolrm.occupancy import (
    anchor_points,
    even_subsample,
    hit_counts,
    hit_counts_definition,
    morton_codes,
    occupancy_from_depth,
    occupancy_from_points,
    pack,
    unpack,
    voxel_centres,
    voxel_indices,
)

RADIUS = 0.4


def sphere_points(count: int, seed: int = 0) -> torch.Tensor:
    points = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return RADIUS * torch.nn.functional.normalize(points, dim=-1)


def sphere_depth(cameras, size: int) -> torch.Tensor:
    """Closed-form planar depth of the sphere around the origin."""
    origins, directions = cameras.rays(size, size)
    a, b = (directions**2).sum(-1), (origins * directions).sum(-1)
    discriminant = b**2 - a * ((origins**2).sum(-1) - RADIUS**2)
    return torch.where(discriminant > 0, (-b - discriminant.clamp(min=0).sqrt()) / a, 0.0)


@dataclass(frozen=True)
class Solid:
    """A closed form: signed distance of points (..., 3); surface points (N, 3), normals (N, 3) and distance to the nearest
    crease (N,); the largest curvature."""

    distance: Callable[[torch.Tensor], torch.Tensor]
    samples: Callable[[int], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    curvature: float


HALF = torch.tensor([0.30, 0.22, 0.35])
RING, TUBE = 0.29, 0.16


def box_distance(points: torch.Tensor) -> torch.Tensor:
    beyond = points.abs() - HALF
    return beyond.clamp(min=0).norm(dim=-1) + beyond.amax(-1).clamp(max=0)


def box_samples(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    points = HALF * (2 * torch.rand(count, 3, generator=draw) - 1)
    axis = torch.randint(3, (count, 1), generator=draw)
    sign = torch.randint(2, (count, 1), generator=draw).float() * 2 - 1
    normals = torch.zeros(count, 3).scatter(1, axis, sign)
    edge = (HALF - points.abs()).scatter(1, axis, torch.inf).amin(-1)
    return points.scatter(1, axis, sign * HALF.expand(count, 3).gather(1, axis)), normals, edge


def torus_distance(points: torch.Tensor) -> torch.Tensor:
    return torch.stack([points[..., :2].norm(dim=-1) - RING, points[..., 2]], dim=-1).norm(dim=-1) - TUBE


def torus_samples(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    around, about = (2 * torch.pi * torch.rand(2, count, generator=torch.Generator().manual_seed(2))).unbind()
    normals = torch.stack([about.cos() * around.cos(), about.cos() * around.sin(), about.sin()], dim=-1)
    middle = RING * torch.stack([around.cos(), around.sin(), torch.zeros(count)], dim=-1)
    return middle + TUBE * normals, normals, torch.full((count,), torch.inf)


def sphere_samples(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    points = sphere_points(count)
    return points, points / RADIUS, torch.full((count,), torch.inf)


SOLIDS = {
    "sphere": Solid(lambda points: points.norm(dim=-1) - RADIUS, sphere_samples, 1 / RADIUS),
    "box": Solid(box_distance, box_samples, 0.0),
    "torus": Solid(torus_distance, torus_samples, 1 / TUBE),
}
SIZE, RESOLUTION = 128, 16


@cache
def rig() -> Cameras:
    """24 cameras all around, from above, from the side and from below."""
    elevations = torch.tensor([-50.0, 0.0, 50.0]).repeat_interleave(8)
    return orbit(torch.arange(0, 360, 45.0).repeat(3) + elevations / 3, elevations, 2.0, 39.6)


def traced_depth(solid: Solid, cameras: Cameras, size: int) -> torch.Tensor:
    """Planar depth (V, size, size) of a solid by stepping along the rays as far as its distance allows, in float64."""
    origins, directions = cameras.rays(size, size)
    origins, directions = origins.double().expand_as(directions), directions.double()
    length = directions.norm(dim=-1)
    depth = torch.full(length.shape, 1.0, dtype=torch.float64)
    for _ in range(40):
        depth = depth + solid.distance(origins + depth[..., None] * directions) / length
    missed = solid.distance(origins + depth[..., None] * directions).abs() > 1e-7
    return torch.where(missed, 0.0, depth).float()


@pytest.fixture(scope="module", params=SOLIDS)
def solid(request: pytest.FixtureRequest) -> Solid:
    return SOLIDS[request.param]


@pytest.fixture(scope="module")
def label(solid: Solid) -> torch.Tensor:
    grid, refused = occupancy_from_depth(traced_depth(solid, rig(), SIZE), rig(), RESOLUTION)
    assert refused == 0
    return grid


def test_a_voxel_centre_lies_in_its_own_voxel_at_every_resolution():
    for resolution in (1, 2, 31, 32, 128):
        indices = torch.stack(torch.meshgrid(*[torch.arange(resolution).unique()[:8]] * 3, indexing="ij"), -1).reshape(
            -1, 3
        )
        again, refused = voxel_indices(voxel_centres(indices, resolution), resolution)
        assert refused == 0
        assert torch.equal(again, indices)


def test_points_up_to_a_voxel_outside_are_clamped_and_farther_ones_refused():
    points = torch.tensor([[0.5, 0.0, 0.0], [0.509, 0.0, 0.0], [0.53, 0.0, 0.0], [-0.509, 0.0, 0.0], [-0.53, 0.0, 0.0]])
    indices, refused = voxel_indices(points, 64)
    assert indices[:, 0].tolist() == [63, 63, 0]
    assert refused == 2


def test_every_labelled_voxel_touches_the_surface(solid: Solid, label: torch.Tensor) -> None:
    """A voxel that holds a surface point has its centre within half a voxel's diagonal of the surface."""
    distance = solid.distance(voxel_centres(label.nonzero(), RESOLUTION).double()).abs()
    assert len(distance) > 300
    assert distance.max() <= 3**0.5 / 2 / RESOLUTION + 1e-6


def test_every_surface_voxel_that_two_views_see_is_labelled(solid: Solid, label: torch.Tensor) -> None:
    """A view's nearest pixel ray passes a seen point within half a pixel's diagonal, times depth, and meets the tangent plane
    1 / cos(incidence) as far away, the surface by its curvature farther: a point deeper than that in its voxel is hit there.
    """
    points, normals, to_edge = solid.samples(20_000)
    indices, _ = voxel_indices(points, RESOLUTION)
    margin = torch.minimum((0.5 / RESOLUTION - (points - voxel_centres(indices, RESOLUTION)).abs()).amin(-1), to_edge)
    views_of_point = torch.zeros(len(points), dtype=torch.long)
    pixel = (1 / (rig().intrinsics[0, 0, 0] * SIZE)).item()
    for camera in rig():
        towards = camera.positions - points
        length = towards.norm(dim=-1)
        cosine = (normals * towards).sum(-1) / length
        slip = 0.5**0.5 * pixel * camera.project(points)[1] / cosine.clamp(min=0.3)
        reach = 1.02 * slip + solid.curvature * slip**2 / cosine.clamp(min=0.3)
        deep = torch.nonzero((cosine > 0.3) & (margin > reach)).flatten()
        steps = torch.linspace(0.05, 1.2, 40)[:, None, None]
        path = points[deep] + steps * (towards / length[:, None])[deep]
        views_of_point[deep[solid.distance(path).amin(0) > 0.01]] += 1
    voxels, of_point = indices.unique(dim=0, return_inverse=True)
    seen = torch.zeros(len(voxels), dtype=torch.bool)
    seen[of_point[views_of_point >= 2]] = True
    assert seen[of_point].float().mean() > 0.6  # the claim is about most of the surface
    assert label[tuple(voxels[seen].T)].all()


def test_voxels_that_one_view_alone_hits_are_told_apart() -> None:
    front, back = (orbit(torch.tensor([azimuth]), torch.tensor([0.0]), 2.0, 39.6) for azimuth in (0.0, 180.0))
    depths = [sphere_depth(camera, SIZE) for camera in (front, back)]
    poses, intrinsics = (
        torch.cat([getattr(c, part) for c in (front, back)]) for part in ("camera_to_world", "intrinsics")
    )
    opposite = Cameras(poses, intrinsics)
    counts, _ = hit_counts(torch.cat(depths), opposite, RESOLUTION)
    assert set(counts.unique().tolist()) == {0, 1}  # radius 2 sees less than half of the sphere: the two never meet
    alone, _ = hit_counts(depths[0], front, RESOLUTION)
    twice, _ = hit_counts(torch.cat([depths[0]] * 2), front[[0, 0]], RESOLUTION)
    assert alone.sum() > 100
    assert torch.equal(twice, 2 * alone)


@pytest.mark.parametrize("size", [(31, 45), (64, 64)])
def test_the_fast_count_equals_the_definition(size: tuple[int, int]) -> None:
    """Also where points lie outside the cube, some within a voxel of it, and where the background is 0 or NaN."""
    draw = torch.Generator().manual_seed(0)
    cameras = rig()[:6]
    depth = 2 + 0.6 * torch.randn(6, *size, generator=draw)
    depth[torch.rand(depth.shape, generator=draw) < 0.3] = 0.0
    depth[0, 0, :5] = torch.nan
    counts, refused = hit_counts(depth, cameras, 20)
    expected, expected_refused = hit_counts_definition(depth, cameras, 20)
    assert refused == expected_refused > 100
    assert counts.max() > 1
    assert torch.equal(counts, expected)


@pytest.mark.gpu
def test_the_count_on_a_gpu_equals_that_on_the_processor() -> None:
    cameras = rig()
    depth = sphere_depth(cameras, SIZE)
    counts, _ = hit_counts(depth, cameras, RESOLUTION)
    on_gpu, _ = hit_counts(depth.cuda(), cameras.to("cuda"), RESOLUTION)
    assert (on_gpu.cpu() != counts).sum() <= 2  # a point on the face of two voxels may fall to either


def test_a_box_in_the_middle_of_voxels_gives_exactly_its_shell():
    resolution = 16
    low, high = 4, 11  # faces through the middle of these voxels
    coordinates = torch.linspace((low + 0.5) / 16 - 0.5, (high + 0.5) / 16 - 0.5, 200)
    u, v = torch.meshgrid(coordinates, coordinates, indexing="ij")
    faces = []
    for axis in range(3):
        for value in (coordinates[0], coordinates[-1]):
            face = torch.stack([u, v], dim=-1).reshape(-1, 2)
            faces.append(torch.cat([face[:, :axis], value.expand(len(face), 1), face[:, axis:]], dim=1))
    grid, _ = occupancy_from_points(torch.cat(faces), resolution)
    expected = torch.zeros_like(grid)
    expected[low : high + 1, low : high + 1, low : high + 1] = True
    expected[low + 1 : high, low + 1 : high, low + 1 : high] = False
    assert torch.equal(grid, expected)


def test_background_pixels_label_nothing():
    cameras = orbit(torch.tensor([0.0]), torch.tensor([0.0]), 2.0, 39.6)
    grid, refused = occupancy_from_depth(torch.zeros(1, 8, 8), cameras, 8)
    assert not grid.any()
    assert refused == 0


@pytest.mark.parametrize("resolution", [1, 3, 32])
def test_packing_is_exact_and_refuses_other_lengths(resolution):
    grid = torch.rand(resolution, resolution, resolution) < 0.3
    assert torch.equal(unpack(pack(grid), resolution), grid)
    with pytest.raises(ValueError, match="no occupancy grid"):
        unpack(pack(grid) + b"\0", resolution)


def test_z_order_interleaves_bits():
    indices = torch.tensor([[0, 0, 1], [0, 1, 0], [1, 0, 0], [3, 3, 3], [0, 0, 2]])
    assert morton_codes(indices).tolist() == [1, 2, 4, 63, 8]


def test_z_order_gives_every_voxel_its_own_place():
    indices = torch.stack(torch.meshgrid(*[torch.arange(16)] * 3, indexing="ij"), -1).reshape(-1, 3)
    assert torch.equal(morton_codes(indices).sort().values, torch.arange(16**3))


def test_the_subsample_is_exact_in_number_free_of_repeats_and_independent_of_order():
    grid, _ = occupancy_from_points(sphere_points(200_000), 64)
    indices = grid.nonzero()
    picked = even_subsample(indices, 1000)
    assert len(picked.unique(dim=0)) == 1000
    shuffled = indices[torch.randperm(len(indices), generator=torch.Generator().manual_seed(1))]
    assert torch.equal(even_subsample(shuffled, 1000), picked)
    assert len(even_subsample(indices, len(indices) + 5)) == len(indices)


def test_the_even_subsample_leaves_smaller_holes_than_a_random_draw():
    grid, _ = occupancy_from_points(sphere_points(400_000), 64)
    surface = voxel_centres(grid.nonzero(), 64)

    def holes(anchors: torch.Tensor) -> tuple[float, float]:
        distance = cKDTree(anchors.numpy()).query(surface.numpy())[0]
        return float(distance.max()), float(distance.mean())

    largest, mean = holes(anchor_points(grid, 2048))
    for seed in range(5):
        draw = torch.randperm(len(surface), generator=torch.Generator().manual_seed(seed))[:2048]
        random_largest, random_mean = holes(surface[draw])
        assert largest < 0.85 * random_largest
        assert mean < 0.92 * random_mean


def test_a_larger_subsample_holds_the_smaller_one():
    grid, _ = occupancy_from_points(sphere_points(100_000), 32)
    small, large = ({tuple(v) for v in even_subsample(grid.nonzero(), n).tolist()} for n in (300, 900))
    assert small < large


def test_anchor_points_are_centres_of_occupied_voxels():
    grid = torch.rand(8, 8, 8) < 0.2
    anchors = anchor_points(grid, 20)
    indices, _ = voxel_indices(anchors, 8)
    assert grid[tuple(indices.T)].all()
    assert occupancy.anchor_points(torch.zeros(4, 4, 4, dtype=torch.bool), 5).shape == (0, 3)
