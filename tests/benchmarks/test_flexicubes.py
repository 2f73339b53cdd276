"""FlexiCubes on closed forms; recorded meshes are in the tests of InstantMesh and CRM."""

import math

import pytest
import torch

from benchmarks import flexicubes


def test_thirty_six_cases_are_critical_and_complements_cut_the_same_edges():
    assert (flexicubes.CRITICAL_FACE >= 0).sum() == 36
    assert torch.equal(flexicubes.LOOPS >= 0, (flexicubes.LOOPS >= 0).flip(0))


def ball(cells: int, radius: float) -> tuple[torch.Tensor, torch.Tensor]:
    points = flexicubes.lattice(cells, 2.1)
    return points.norm(dim=-1) - radius, points


def test_a_ball_is_closed_outward_and_on_the_sphere():
    sdf, points = ball(32, 0.6)
    vertices, faces = flexicubes.decode(sdf, points, 32)
    assert (vertices.norm(dim=-1) - 0.6).abs().max() < 0.1 * 2.1 / 32
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    assert {tuple(e) for e in edges.tolist()} == {tuple(e) for e in edges.flip(1).tolist()}
    a, b, c = vertices[faces].unbind(1)
    volume = (a * torch.linalg.cross(b, c)).sum() / 6
    assert volume == pytest.approx(4 / 3 * math.pi * 0.6**3, rel=0.02)


def test_a_field_without_a_sign_change_is_no_surface():
    sdf, points = ball(8, -1.0)
    vertices, faces = flexicubes.decode(sdf, points, 8)
    assert (len(vertices), len(faces)) == (0, 0)
