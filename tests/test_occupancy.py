"""Occupancy against closed forms, and the evenness of its subsample."""

import pytest
import torch
from scipy.spatial import cKDTree

from geolrm import occupancy
from geolrm.cameras import orbit
from geolrm.occupancy import (
    anchor_points,
    even_subsample,
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


def test_labelled_voxels_touch_the_sphere_and_seen_surface_is_labelled():
    cameras = orbit(
        torch.arange(0, 360, 30.0).repeat(3), torch.tensor([-50.0, 0.0, 50.0]).repeat_interleave(12), 2.0, 39.6
    )
    resolution = 32
    grid, refused = occupancy_from_depth(sphere_depth(cameras, 128), cameras, resolution)
    assert refused == 0
    half_diagonal = 3**0.5 / 2 / resolution
    distance = (voxel_centres(grid.nonzero(), resolution).norm(dim=-1) - RADIUS).abs()
    assert distance.max() <= half_diagonal + 1e-5
    # Every voxel that holds much surface is hit: draw densely, keep voxels with a fair share of the samples.
    indices, _ = voxel_indices(sphere_points(400_000), resolution)
    voxels, counts = indices.unique(dim=0, return_counts=True)
    well_covered = voxels[counts > counts.float().mean() * 0.5]
    assert grid[well_covered[:, 0], well_covered[:, 1], well_covered[:, 2]].float().mean() > 0.995


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
