"""Gaussians and their file."""

import numpy as np
import plyfile
import pytest
import torch

from geolrm.failures import BadInput
from geolrm.gaussians import SH_C0, Gaussians


def some(n: int = 50) -> Gaussians:
    g = torch.Generator().manual_seed(0)
    return Gaussians(*(torch.randn(*shape, generator=g) for shape in ((n, 3), (n, 3), (n,), (n, 3), (n, 4))))


def test_ply_round_trip_is_exact(tmp_path):
    gaussians = some()
    gaussians.save_ply(tmp_path / "splat.ply")
    for saved, loaded in zip(gaussians.tensors, Gaussians.load_ply(tmp_path / "splat.ply").tensors, strict=True):
        assert torch.equal(saved, loaded)


def test_ply_columns_are_the_standard_3dgs_layout(tmp_path):
    some().save_ply(tmp_path / "splat.ply")
    header = (tmp_path / "splat.ply").read_bytes().split(b"end_header")[0].decode()
    columns = [line.split()[-1] for line in header.splitlines() if line.startswith("property")]
    standard = "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3"
    assert columns == standard.split()
    assert "format binary_little_endian 1.0" in header


def test_activated_values_come_back():
    colours, opacities, scales = torch.rand(9, 3), torch.rand(9) * 0.98 + 0.01, torch.rand(9, 3) * 0.1 + 1e-3
    gaussians = Gaussians.from_activated(torch.zeros(9, 3), colours, opacities, scales, torch.eye(4)[[0] * 9] * 3)
    torch.testing.assert_close(gaussians.colours, colours)
    torch.testing.assert_close(gaussians.opacities, opacities)
    torch.testing.assert_close(gaussians.scales, scales)
    torch.testing.assert_close(gaussians.unit_quaternions.norm(dim=-1), torch.ones(9))
    torch.testing.assert_close(gaussians.sh_dc, (colours - 0.5) / SH_C0)


def test_a_file_of_zero_gaussians_opens(tmp_path):
    Gaussians.empty().save_ply(tmp_path / "none.ply")
    assert len(Gaussians.load_ply(tmp_path / "none.ply")) == 0


def test_files_that_are_no_splat_are_refused(tmp_path):
    (tmp_path / "text.ply").write_text("hello")
    with pytest.raises(BadInput, match="not_a_splat"):
        Gaussians.load_ply(tmp_path / "text.ply")
    points = np.zeros(3, dtype=[("x", "<f4"), ("y", "<f4"), ("z", "<f4")])
    plyfile.PlyData([plyfile.PlyElement.describe(points, "vertex")]).write(str(tmp_path / "points.ply"))
    with pytest.raises(BadInput, match="opacity"):
        Gaussians.load_ply(tmp_path / "points.ply")


def test_view_dependent_colour_is_refused_rather_than_dropped(tmp_path):
    some().save_ply(tmp_path / "splat.ply")
    data = plyfile.PlyData.read(str(tmp_path / "splat.ply"))["vertex"].data
    rows = np.zeros(len(data), dtype=[*data.dtype.descr, ("f_rest_0", "<f4")])
    for name in data.dtype.names:
        rows[name] = data[name]
    rows["f_rest_0"] = 0.5
    plyfile.PlyData([plyfile.PlyElement.describe(rows, "vertex")]).write(str(tmp_path / "sh.ply"))
    with pytest.raises(BadInput, match="f_rest"):
        Gaussians.load_ply(tmp_path / "sh.ply")


def test_inconsistent_tensors_are_refused():
    with pytest.raises(ValueError, match="shapes"):
        Gaussians(torch.zeros(2, 3), torch.zeros(3, 3), torch.zeros(2), torch.zeros(2, 3), torch.zeros(2, 4))
