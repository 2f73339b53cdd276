"""CRM: its faces, its surface, its published names, and what the public code computed."""

import csv
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.fixtures import check_folder
from benchmarks.methods import NotApplicable, crm, load_method, sources
from benchmarks.methods.crm.check import KINDS
from benchmarks.methods.crm.faces import GREY, arranged, coordinate_maps, own_cameras
from benchmarks.methods.crm.network import CRM, Config, Decoder, features_at
from benchmarks.methods.crm.surface import mesh_of
from geolrm.cameras import orbit
from geolrm.failures import BadInput
from geolrm.views import Views

HERE = SimpleNamespace(device=torch.device("cpu"))  # all that loading asks of its context
BALL = 0.4
SMALL = Config(
    side=32,
    channels=(32, 32),
    down_attention=(False, True),
    up_attention=(True, False),
    learned=4,
    layers=1,
)


def ball(cameras, size: int = 64) -> Views:
    """A ball of radius 0.4 whose colour says where it is: 0.5 + p."""
    origins, directions = cameras.rays(size, size)
    a, b = directions.square().sum(-1), (origins * directions).sum(-1)
    root = b * b - a * (origins.square().sum(-1) - BALL**2)
    hit = root > 0
    depth = torch.where(hit, (-b - root.clamp(min=0).sqrt()) / a, 0.0)
    points = origins + depth[..., None] * directions
    colour = ((0.5 + points) * hit[..., None]).movedim(-1, 1).clamp(0, 1)
    return Views("ball", cameras, colour, hit[:, None].float(), depth)


FACES = ball(own_cameras())


def test_after_arrangement_every_pixel_lies_where_the_planes_say():
    """Plane xy has x along its columns and y along its rows, yz y and z, zx z and x, in the triplane's frame (-x, -y, z)."""
    side = FACES.size[0]
    picture = arranged(FACES.composited(GREY), coordinate_maps(FACES, 0.5))
    across = (torch.arange(side) + 0.5) / side * 2 - 1
    for group in (0, 3):  # colours of the upper and of the lower set
        planes = picture[group : group + 3].unflatten(-1, (3, side)).movedim(-2, 0)
        for plane, (column, row) in zip(planes, ((0, 1), (1, 2), (2, 0)), strict=True):
            place = (plane - 0.5) * 2 * torch.tensor([-1.0, -1, 1])[:, None, None]
            inside = across[None, :] ** 2 + across[:, None] ** 2 < 0.6
            assert (place[column] - across[None, :]).abs()[inside].max() < 0.1
            assert (place[row] - across[:, None]).abs()[inside].max() < 0.1


def test_of_a_coordinate_map_the_depth_axis_alone_is_kept_and_the_two_sets_face_each_other():
    side = FACES.size[0]
    maps = arranged(FACES.composited(GREY), coordinate_maps(FACES, 0.5))[6:].unflatten(-1, (3, side))
    kept = maps.abs().sum(dim=(1, 3)) > 0
    expected = torch.tensor([[1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]]).bool()
    assert torch.equal(kept, expected)
    middle = maps[:, side // 2, :, side // 2]
    depth = torch.stack([middle[:3].sum(dim=0), middle[3:].sum(dim=0)]) - GREY  # xy, yz, zx of both sets
    assert torch.allclose(depth.abs(), torch.full((2, 3), 0.8 * 128 / 255), atol=0.01)
    assert torch.equal(depth[0].sign(), -depth[1].sign())


def test_the_triplane_is_read_where_it_is_written():
    side = 33
    axis = torch.linspace(-1, 1, side)
    column, row = axis.expand(side, side), axis[:, None].expand(side, side)
    triplane = torch.cat([torch.stack([f * column, f * row]) for f in (1.0, 10.0, 100.0)], dim=-1)
    (seen,) = features_at(triplane, torch.tensor([[0.1, -0.3, 0.7]]))
    expected = [0.1 + 10 * -0.3 + 100 * 0.7, -0.3 + 10 * 0.7 + 100 * 0.1]  # columns x, y, z; rows y, z, x
    assert torch.allclose(seen, torch.tensor(expected), atol=1e-4)


def test_a_head_that_says_nothing_gives_a_sphere_whose_faces_look_inwards():
    decoder = Decoder(features=4, hidden=8)
    for parameter in decoder.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        vertices, faces = mesh_of(decoder, torch.zeros(4, 8, 24), 21)
    assert (vertices.norm(dim=-1) - 0.5).abs().max() < 0.01
    a, b, c = vertices[faces].unbind(dim=1)
    volume = (a * torch.linalg.cross(b, c)).sum() / 6
    assert volume == pytest.approx(-4 / 3 * torch.pi * 0.5**3, rel=0.08)


def test_the_network_has_the_published_size():
    with torch.device("meta"):
        state = CRM().state_dict()
    assert len(state) == 629
    assert sum(tensor.numel() for tensor in state.values()) == 118_841_404


def test_every_published_tensor_has_its_name_and_shape_here(shared):
    with (shared / "reference" / "crm-state-dict.tsv").open() as file:
        published = {row["key"]: tuple(json.loads(row["shape"])) for row in csv.DictReader(file, delimiter="\t")}
    with torch.device("meta"):
        ours = {name: tuple(tensor.shape) for name, tensor in CRM().state_dict().items()}
    assert ours == published


def test_a_mesh_comes_back_into_the_object_frame_facing_outwards_the_same_every_time():
    torch.manual_seed(0)
    network = CRM(SMALL).eval()
    torch.nn.init.zeros_(network.sdfMlp.fc3.weight)
    torch.nn.init.zeros_(network.sdfMlp.fc3.bias)  # the sphere of radius 0.5 of the triplane, 0.25 of the object
    method = crm.method(network, "none", 21)
    mesh, again = (method.reconstruct(FACES).mesh() for _ in range(2))
    assert (mesh.vertices.norm(dim=-1) - 0.25).abs().max() < 0.01
    outwards = (mesh.crosses * mesh.vertices[mesh.faces].mean(dim=1)).sum(dim=-1)
    assert outwards.min() > -1e-7
    assert outwards.sum() / 6 == pytest.approx(4 / 3 * torch.pi * 0.25**3, rel=0.08)
    assert torch.equal(mesh.colours, again.colours)


def test_a_pixel_and_the_vertex_behind_it_have_one_colour():
    torch.manual_seed(0)
    network = CRM(SMALL).eval()
    torch.nn.init.zeros_(network.sdfMlp.fc3.weight)
    torch.nn.init.zeros_(network.sdfMlp.fc3.bias)
    network.rgbMlp.fc3.weight.data *= 20  # colours that differ from place to place
    made = crm.method(network, "none", 41).reconstruct(FACES)
    mesh, cameras = made.mesh(), orbit(torch.tensor([40.0]), torch.tensor([25.0]), 2.0, 39.6)
    seen = made.render(cameras, 64, 64)
    depth = torch.where(seen.alpha[:, 0] == 1, seen.depth, 0)
    points = cameras.unproject(depth)[depth > 0]
    nearest = torch.cdist(points, mesh.vertices).argmin(dim=1)
    behind, ahead = mesh.colours[nearest], seen.colour[0].movedim(0, -1)[depth[0] > 0]
    assert mesh.colours.std(dim=0).max() > 0.02
    assert (behind - ahead).abs().mean() < 0.2 * mesh.colours.std(dim=0).max()


def test_posed_pictures_are_not_applicable():
    views = ball(orbit(torch.arange(6) * 60.0, torch.full((6,), 20.0), 2.0, 39.6), 16)
    with pytest.raises(NotApplicable, match="own_inputs"):
        crm.half_width_of(views)
    with pytest.raises(NotApplicable, match="own_inputs"):
        crm.half_width_of(FACES[[1, 0, 2, 3, 4, 5]])
    assert crm.half_width_of(FACES) == pytest.approx(0.5, abs=1e-5)


def test_without_its_weights_it_says_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOLRM_BASELINE_WEIGHTS", str(tmp_path))
    with pytest.raises(BadInput, match=r"weights_missing[\s\S]*Zhengyi/CRM CRM\.pth"):
        load_method("crm", HERE)


@pytest.mark.parametrize(
    "content",
    [{"sdfMlp.a": torch.zeros(1), "lpips.0": torch.zeros(1), "rgbMlp.fc3.bias": torch.zeros(4)}, {"a": print}, [1]],
)
def test_weights_that_do_not_fit_are_named_and_a_file_of_objects_runs_no_code(tmp_path, monkeypatch, content):
    monkeypatch.setenv("GEOLRM_BASELINE_WEIGHTS", str(tmp_path))
    torch.save(content, tmp_path / "CRM.pth")
    with pytest.raises(BadInput) as caught:
        load_method("crm", HERE)
    if isinstance(content, dict) and "rgbMlp.fc3.bias" in content:
        assert "missing unet2.learned_plane" in caught.value.detail
        assert "extra sdfMlp.a" in caught.value.detail
        assert "lpips" not in caught.value.detail
        assert "rgbMlp.fc3.bias is (4,), expected (3,)" in caught.value.detail
    else:
        assert caught.value.reason == "checkpoint_unreadable"


def test_rows_know_all_of_its_code():
    assert {"faces.py", "network.py", "surface.py"} <= {file.name for file in sources("crm")}


def test_the_public_code_is_reproduced(shared):
    assert check_folder(KINDS, shared / "fixtures" / "crm-parity") == 0


@pytest.mark.parametrize("name", ["out.mesh_faces", "out.mesh_verts", "mid.noise", "out.export_faces"])
def test_a_planted_break_is_told(shared, tmp_path, name):
    source = shared / "fixtures" / "crm-parity"
    file = "arrangement.safetensors" if name == "mid.noise" else "decode.safetensors"
    with safe_open(source / file, "pt") as stored:
        metadata, tensors = stored.metadata(), {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    broken = tensors[name].clone()
    if name.endswith("faces"):
        broken[0] = broken[0].flip(0)  # one face turned
    else:
        broken[0] += 1e-3
    shutil.rmtree(tmp_path, ignore_errors=True)
    tmp_path.mkdir()
    save_file(tensors | {name: broken}, tmp_path / file, metadata)
    assert check_folder(KINDS, tmp_path) == 1
