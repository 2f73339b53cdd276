"""LGM: its frame, its network, its published names, and what the public code computed."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.spatial.transform import Rotation

from benchmarks.fixtures import check_folder
from benchmarks.methods import NotApplicable, lgm, load_method, sources
from benchmarks.methods.lgm.check import KINDS
from benchmarks.methods.lgm.frame import FOV, Frame, quaternion_product, with_field_of_view
from benchmarks.methods.lgm.network import LGM, Config
from geolrm.cameras import Cameras, orbit
from geolrm.failures import BadInput
from geolrm.gaussians import Gaussians
from geolrm.rendering import render
from geolrm.views import Views

HERE = SimpleNamespace(device=torch.device("cpu"))  # all that loading asks of its context


def disc(cameras: Cameras) -> Views:
    """A disc of noise in every picture of 96 pixels."""
    across = (torch.arange(96) + 0.5) / 48 - 1
    inside = (across[:, None] ** 2 + across**2 < 0.6).float().expand(len(cameras), 1, 96, 96)
    colour = torch.rand(len(cameras), 3, 96, 96, generator=torch.Generator().manual_seed(0))
    return Views("disc", cameras, colour * inside, inside.clone())


INPUTS = disc(orbit(torch.tensor([10.0, 100, 190, 280]), torch.tensor([20.0, 10, 20, -5]), 2.0, 39.6))
TINY = Config((32, 32, 64), (False, False, True), True, (64, 32), (True, False))


@pytest.fixture(scope="module")
def network() -> LGM:
    torch.manual_seed(0)
    return LGM(TINY).eval()


@pytest.fixture
def small(network, monkeypatch):
    """The method with a small network and pictures of 32 pixels."""
    monkeypatch.setattr(lgm, "SIDE", 32)
    return lgm.method(network, "none")


def predicted(count: int) -> torch.Tensor:
    """(N, 14) Gaussians as the network gives them, within its view."""
    draw = torch.rand(count, 14, generator=torch.Generator().manual_seed(0))
    turn = torch.nn.functional.normalize(draw[:, 7:11] - 0.5, dim=-1)
    scales = 0.02 + 0.1 * draw[:, 4:7]
    return torch.cat([draw[:, :3] - 0.5, 0.2 + 0.7 * draw[:, 3:4], scales, turn, draw[:, 11:]], dim=-1)


# --- frame ---


def test_the_first_camera_stands_at_one_and_a_half_and_the_origin_at_the_origin():
    first = INPUTS.cameras[0]
    frame = Frame.of_first(first, 1.5 / first.positions.norm().item())
    moved = frame.cameras(INPUTS.cameras)
    assert torch.allclose(moved.positions[0], torch.tensor([0, 0, 1.5]), atol=1e-5)
    assert torch.allclose(moved.rotations[0], torch.diag(torch.tensor([1.0, -1, -1])), atol=1e-5)
    assert torch.allclose(frame.translation, torch.zeros(3), atol=1e-5)
    assert torch.allclose(moved.positions.norm(dim=-1), torch.full((4,), 1.5), atol=1e-5)


def test_gaussians_look_the_same_in_both_frames():
    first = INPUTS.cameras[0]
    frame = Frame.of_first(first, 1.5 / first.positions.norm().item())
    inside = predicted(40)
    position, opacity, scale, rotation, colour = inside.split([3, 1, 3, 4, 3], dim=-1)
    there = Gaussians.from_activated(position, colour, opacity[:, 0], scale, rotation)
    theirs = render(there, frame.cameras(INPUTS.cameras), 48, 48)
    ours = render(frame.gaussians_to_object(inside), INPUTS.cameras, 48, 48)
    assert theirs.alpha.max() > 0.9
    assert torch.allclose(ours.colour, theirs.colour, atol=1e-3)
    assert torch.allclose(ours.depth * frame.scale, theirs.depth, atol=1e-3)


def test_the_quaternion_of_two_turns_is_the_second_after_the_first():
    first, second = Rotation.random(2, random_state=0)
    ours = quaternion_product(*(torch.from_numpy(r.as_quat(scalar_first=True)) for r in (first, second)))
    theirs = torch.from_numpy((first * second).as_quat(scalar_first=True))
    assert torch.allclose(ours * ours[0].sign(), theirs * theirs[0].sign())


@pytest.mark.parametrize("fov", [60.0, FOV, 25.0])
def test_another_field_of_view_keeps_every_pixel_on_its_ray(fov):
    wider = with_field_of_view(INPUTS, fov)
    side, before = wider.size[0], INPUTS.size[0]
    angle = 2 * math.degrees(math.atan(0.5 / wider.cameras.intrinsics[0, 0, 0].item()))
    assert angle == pytest.approx(fov, abs=1.5)  # a pixel of a small picture on either side
    margin = (side - before) // 2
    crop = slice(max(margin, 0), side - max(margin, 0)), slice(max(-margin, 0), before - max(-margin, 0))
    theirs = wider.cameras.pluecker(side, side)[..., crop[0], crop[0]]
    assert torch.allclose(theirs, INPUTS.cameras.pluecker(before, before)[..., crop[1], crop[1]], atol=1e-5)
    assert torch.equal(wider.colour[..., crop[0], crop[0]], INPUTS.colour[..., crop[1], crop[1]])


# --- network ---


def test_one_pixel_of_any_view_reaches_all_views_of_its_object_and_no_other_object(network):
    images = torch.randn(2, 4, 9, 16, 16, generator=torch.Generator().manual_seed(1))
    changed = images.clone()
    changed[0, 2, :, 3, 3] += 5
    with torch.no_grad():
        moved = (network(changed) - network(images)).abs().amax(dim=-1).reshape(2, 4, -1).amax(dim=-1)
    assert (moved[0] > 1e-4).all()
    assert moved[1].max() < 1e-6


def test_the_network_has_the_published_size():
    with torch.device("meta"):
        state = LGM().state_dict()
    assert len(state) == 376
    assert sum(tensor.numel() for tensor in state.values()) == 415_042_848


def test_every_published_tensor_has_its_name_and_shape_here(shared):
    with (shared / "reference" / "lgm-state-dict.tsv").open() as file:
        published = {row["key"]: tuple(json.loads(row["shape"])) for row in csv.DictReader(file, delimiter="\t")}
    with torch.device("meta"):
        ours = {name: tuple(tensor.shape) for name, tensor in LGM().state_dict().items()}
    assert ours == published


# --- method ---


def test_turning_the_object_with_its_cameras_turns_the_gaussians(small):
    """The network sees views relative to the first one, so nothing else may enter, and the way back must be the way in."""
    turn = torch.eye(4)
    turn[:3, :3] = torch.from_numpy(Rotation.random(random_state=1).as_matrix()).float()
    ours = small.reconstruct(INPUTS)
    cameras = Cameras(turn @ INPUTS.cameras.camera_to_world, INPUTS.cameras.intrinsics)
    turned = small.reconstruct(replace(INPUTS, cameras=cameras))
    assert len(ours) == 4 * 16 * 16
    assert torch.allclose(turned.means, ours.means @ turn[:3, :3].T, atol=1e-4)
    assert torch.allclose(turned.sh_dc, ours.sh_dc, atol=1e-3)


def test_half_precision_products_change_little_and_leave_what_follows_in_float32(small, network):
    full, half = small.reconstruct(INPUTS), lgm.method(network, "none", torch.bfloat16).reconstruct(INPUTS)
    assert half.means.dtype == torch.float32
    moved = (half.means - full.means).abs()
    assert 1e-6 < moved.mean() < 0.01


def test_what_it_cannot_take_is_not_applicable(small):
    with pytest.raises(NotApplicable, match="4 views, not 3"):
        small.reconstruct(INPUTS[:3])
    aside = INPUTS.cameras.camera_to_world.clone()
    aside[:, :3, 3] += aside[:, :3, 0] * 0.1
    with pytest.raises(NotApplicable, match="first_camera"):
        small.reconstruct(replace(INPUTS, cameras=Cameras(aside, INPUTS.cameras.intrinsics)))
    shifted = INPUTS.cameras.intrinsics + torch.tensor([[0, 0, 0.1], [0, 0, 0], [0, 0, 0]])
    with pytest.raises(NotApplicable, match="not_centred"):
        small.reconstruct(replace(INPUTS, cameras=Cameras(INPUTS.cameras.camera_to_world, shifted)))


def test_without_its_weights_it_says_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOLRM_BASELINE_WEIGHTS", str(tmp_path))
    with pytest.raises(BadInput, match=r"weights_missing[\s\S]*ashawkey/LGM model_fp16_fixrot\.safetensors"):
        load_method("lgm", HERE)


def test_weights_that_do_not_fit_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOLRM_BASELINE_WEIGHTS", str(tmp_path))
    tensors = {"unet.conv_in.weight": torch.zeros(64, 3, 3, 3), "lpips.0": torch.zeros(1)}
    save_file(tensors, tmp_path / "model_fp16_fixrot.safetensors")
    with pytest.raises(BadInput) as caught:
        load_method("lgm", HERE)
    assert "missing unet.up_blocks.4.nets.2.conv2.bias" in caught.value.detail
    assert "extra lpips.0" in caught.value.detail
    assert "unet.conv_in.weight is (64, 3, 3, 3), expected (64, 9, 3, 3)" in caught.value.detail


def test_rows_know_all_of_its_code():
    package = Path(lgm.__file__).parent
    assert {package / f"{name}.py" for name in ("__init__", "network", "frame")} <= set(sources("lgm"))
    assert [file.name for file in sources("mean_colour")] == [
        "geolrm.py",
        "mean_colour.py",
        "round_gaussians.py",
        "stages.py",
    ]


# --- recorded outputs ---


def write_fixture(path: Path, network: LGM) -> dict[str, torch.Tensor]:
    """A fixture as the recorded ones are, of our own outputs; its tensors."""
    images = torch.randn(1, 4, 9, 16, 16, generator=torch.Generator().manual_seed(2))
    state = {f"sd.{name}": tensor.half() for name, tensor in network.state_dict().items()}
    network.load_state_dict({name.removeprefix("sd."): tensor.float() for name, tensor in state.items()})
    with torch.no_grad():
        tensors = state | {"in.images": images, "out.gaussians": network(images)}
    config = {name: getattr(TINY, name) for name in TINY.__dataclass_fields__}
    save_file(tensors, path, {"config": json.dumps(config)})
    return tensors


def rewrite(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    config = {name: getattr(TINY, name) for name in TINY.__dataclass_fields__}
    save_file(tensors, path, {"config": json.dumps(config)})


def test_the_check_tells_a_planted_difference_and_names_what_is_missing(tmp_path, network, capsys):
    path = tmp_path / "any-name.safetensors"
    tensors = write_fixture(path, network)
    assert check_folder(KINDS, tmp_path) == 0
    rewrite(path, tensors | {"out.gaussians": tensors["out.gaussians"] + 2e-4})
    assert check_folder(KINDS, tmp_path) == 1
    assert "TOO FAR" in capsys.readouterr().out
    rewrite(path, tensors | {"mid.unheard_of": torch.zeros(1)})
    assert check_folder(KINDS, tmp_path) == 1
    assert "only recorded ['mid.unheard_of']" in capsys.readouterr().out
    rewrite(path, {name: tensor for name, tensor in tensors.items() if name != "sd.conv.bias"})
    assert check_folder(KINDS, tmp_path) == 1
    assert "missing conv.bias" in capsys.readouterr().out


def test_the_public_code_is_reproduced(shared):
    assert check_folder(KINDS, shared / "fixtures" / "lgm-parity") == 0


def test_the_recorded_loader_and_ours_see_the_same_frame(shared):
    """The public loader turns the world before it moves it to the first camera; we need not."""
    recorded = load_file(shared / "fixtures" / "lgm-parity" / "loader.safetensors")
    poses = recorded["in.c2w_blender_opencv"]
    frame = Frame.of_first(Cameras(poses[0], torch.eye(3)), 1.0)
    assert torch.allclose(frame.from_object, recorded["mid.world_to_lgm"], atol=1e-5)
