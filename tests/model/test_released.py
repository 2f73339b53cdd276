"""Claims about the released mode: it is what the public code computes, its weights load by name, and nothing of it is default."""

import copy
import csv
import io
import json
import re
import sys
import typing
from pathlib import Path
from random import Random

import public_code
import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from geolrm import cli, config
from geolrm.cameras import OPENCV_TO_BLENDER, Cameras
from geolrm.failures import BadInput
from geolrm.model import released, rope
from geolrm.model.geolrm import GeoLRM
from geolrm.model.proposal import ProposalNetwork
from geolrm.model.reconstruction import ReconstructionNetwork
from geolrm.occupancy import voxel_corners
from geolrm.parity import TOLERANCE
from geolrm.released import check as parity
from geolrm.released import effects, surroundings
from geolrm.views import Views

SIZES = ((0, 2, 1), (1, 3, 5))  # seed, heads, views
KINDS = ("encoder", "transformer_True", "transformer_False", "deformable", "head", "proposal")


@pytest.fixture(scope="module")
def fixtures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of parity fixtures from `public_code`, the second of SIZES."""
    folder = tmp_path_factory.mktemp("fixtures")
    public_code.write_fixtures(folder, *SIZES[1])
    return folder


# --- what the public code computes ---


def test_every_recorded_output_of_the_public_code_is_reproduced(shared, capsys) -> None:
    assert released.main(["check", str(shared / "fixtures" / "released-parity")]) == 0
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) >= 50
    for part in ("encoder", "proposal", "transformer_official_fp32", "gaussian_head", "misc", "deformable"):
        assert part in printed


@pytest.mark.parametrize(("seed", "heads", "views"), SIZES)
def test_other_sizes_heads_and_views_are_reproduced_too(seed, heads, views, tmp_path, capsys) -> None:
    """Against a second writing of the public code, from its description."""
    public_code.write_fixtures(tmp_path, seed, heads, views)
    assert parity.check(tmp_path) == 0
    assert "55 of 55 outputs within" in capsys.readouterr().out


def test_the_second_writing_is_the_public_code(shared) -> None:
    folder = shared / "fixtures" / "released-parity"
    fixture = parity.read_fixture(folder / "encoder.safetensors")
    inputs = fixture["in.images"][0], fixture["in.c2ws"][0], fixture["in.Ks"][0]
    maps = public_code.encoder(fixture.weights, *inputs, fixture.config("dino"), train=False)
    features, _ = public_code.flattened(maps)
    torch.testing.assert_close(features[None], fixture["out.features"], atol=1e-5, rtol=0)
    for name, tokens in (("token_attention", True), ("official_fp32", False)):
        fixture = parity.read_fixture(folder / f"transformer_{name}.safetensors")
        places = public_code.project(fixture["in.xyzs"], fixture["in.c2ws"], fixture["in.Ks"])
        shapes = fixture["in.spatial_shapes"].tolist()
        found = public_code.transformer(
            fixture.weights, fixture["in.xyzs"], fixture["in.img_feats"], shapes, places, 4, 128, 0.5, tokens
        )
        torch.testing.assert_close(found["latents"], fixture["out.latents_scale0.5"], atol=2e-5, rtol=0)


# --- a check that can fail ---


def changed(fixtures: Path, folder: Path, kind: str, change) -> Path:
    """A folder with one changed file: `change` gets its tensors and its metadata."""
    fixture = parity.read_fixture(fixtures / f"{kind}.safetensors")
    tensors, metadata = dict(fixture.tensors), dict(fixture.metadata)
    change(tensors, metadata)
    save_file(tensors, folder / f"{kind}.safetensors", metadata=metadata)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_one_number_off_in_any_output_fails(kind, fixtures, tmp_path) -> None:
    outputs = parity.read_fixture(fixtures / f"{kind}.safetensors").outputs
    assert len(outputs) >= 5

    def off_by_a_bit(tensors, _):
        for name in outputs:
            flat = tensors[name].reshape(-1).clone()
            flat[-1] += 1 if not flat.is_floating_point() else 2e-4
            tensors[name] = flat.reshape(tensors[name].shape)

    changed(fixtures, tmp_path, kind, off_by_a_bit)
    rows = parity.differences(parity.read_fixture(tmp_path / f"{kind}.safetensors"))
    assert {row.output for row in rows if row.largest > TOLERANCE} >= {
        name for name in outputs if "pts_" not in name and "num_" not in name
    }
    assert parity.check(tmp_path) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_that_nobody_computes_fails(kind, fixtures, tmp_path) -> None:
    changed(fixtures, tmp_path, kind, lambda tensors, _: tensors.update({"out.stowaway": torch.zeros(3)}))
    assert parity.check(tmp_path) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_tensor_of_any_sort_fails(kind, fixtures, tmp_path, capsys) -> None:
    """Inputs, weights, the outputs without which there is nothing to compare; none of them ends the run on the others."""
    names = parity.read_fixture(fixtures / f"{kind}.safetensors").tensors
    wanted = [next(n for n in names if n.startswith("in.") and "level_start" not in n)]
    wanted.append([n for n in names if n.startswith("sd.")][-1])
    for name in wanted:
        changed(fixtures, tmp_path, kind, lambda tensors, _, name=name: tensors.pop(name))
        assert parity.check(tmp_path) == 1, name
        assert "FAILED" in capsys.readouterr().out

    def without_outputs(tensors, _):
        for name in [n for n in tensors if n.startswith(("out", "mid"))]:
            tensors.pop(name)

    changed(fixtures, tmp_path, kind, without_outputs)
    assert parity.check(tmp_path) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_missing_metadata_fails(kind, fixtures, tmp_path) -> None:
    changed(fixtures, tmp_path, kind, lambda _, metadata: metadata.clear())
    assert parity.check(tmp_path) == 1


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("transformer_True", "residual", "stream"),
        ("transformer_True", "positions", "real"),
        ("transformer_True", "projection", "seeing"),
        ("encoder", "norm", "layer"),
        ("encoder", "low_colour", "signed"),
        ("encoder", "rays", "unit"),
        ("proposal", "grid", "centres"),
    ],
)
def test_a_choice_of_our_own_fails(kind, field, value, fixtures, tmp_path, monkeypatch) -> None:
    """The default mode has none of these: each alone breaks parity."""
    changed(fixtures, tmp_path, kind, lambda *_: None)
    assert parity.check(tmp_path) == 0
    table = next(t for t in (released.ENCODER, released.TRANSFORMER, released.PROPOSAL) if field in t)
    monkeypatch.setitem(table, field, value)
    if field == "positions":  # the scales are set from the file's names, over the choice
        monkeypatch.setattr(parity, "partial", lambda *_, **__: rope.real_positions)
    assert parity.check(tmp_path) == 1


def test_files_of_another_kind_and_empty_folders_fail(fixtures, tmp_path, capsys) -> None:
    assert released.main(["check", str(tmp_path)]) == 1
    assert "fixtures_missing" in capsys.readouterr().err
    changed(fixtures, tmp_path, "head", lambda *_: None)
    assert parity.check(tmp_path) == 0
    save_file({"weights": torch.zeros(3)}, tmp_path / "other.safetensors")
    assert parity.check(tmp_path) == 1
    (tmp_path / "other.safetensors").write_bytes(b"no tensors")
    assert parity.check(tmp_path) == 1
    assert released.main(["chekc", str(tmp_path)]) == 2


def test_a_label_within_rounding_of_a_border_is_settled_as_recorded_and_no_other(shared, tmp_path) -> None:
    fixture = parity.read_fixture(shared / "fixtures" / "released-parity" / "misc.safetensors")
    tensors = {name: tensor for name, tensor in fixture.tensors.items() if name.startswith("occgt.")}
    (row,) = parity.differences(parity.Fixture(fixture.path, {}, tensors))
    assert (row.output, row.largest) == ("occgt.indices", 0.0)
    tensors["occgt.indices"] = tensors["occgt.indices"].clone()
    tensors["occgt.indices"][5] += 1
    assert parity.differences(parity.Fixture(fixture.path, {}, tensors))[0].largest >= 1


# --- grids, positions, what surrounds the networks ---


def test_positions_are_cut_to_grid_indices_as_published() -> None:
    """20 of the 128 fine coordinates fall to the index below; training and inference scales span other ranges."""
    axis = voxel_corners(torch.arange(128), 128)
    found = rope.index_positions(axis, 128, 0.5)
    assert (found != torch.arange(128)).sum() == 20
    assert len(found.unique()) == 120
    coarse = rope.index_positions(voxel_corners(torch.arange(16), 16), 128, 0.5)
    assert coarse[[0, 1, 2, 3, 15]].tolist() == [0, 8, 16, 25, 127]
    whole = rope.index_positions(axis, 128, 1.0)
    assert (whole.min(), whole.max(), len(whole.unique())) == (31, 95, 65)


def test_coarse_anchors_lie_up_to_three_and_a_half_voxels_from_their_blocks() -> None:
    blocks = voxel_corners(torch.arange(128), 128).view(16, 8).mean(dim=1)
    offsets = (voxel_corners(torch.arange(16), 16) - blocks) * 127
    torch.testing.assert_close(offsets[[0, 15]], torch.tensor([-3.5, 3.5]), atol=1e-4, rtol=0)


def test_an_empty_target_has_no_finite_affinity_and_ours_has() -> None:
    from geolrm.training.losses import occupancy_losses

    logits, empty = torch.randn(1, 4, 4, 4), torch.zeros(1, 4, 4, 4)
    assert surroundings.occupancy_losses(logits, empty)["geometric"].isnan()
    assert torch.isfinite(occupancy_losses(logits, empty > 0)["geometric"])


def test_the_learning_rate_rises_again_past_its_end() -> None:
    rates = surroundings.learning_rate(torch.tensor([0, 12_000, 100_000, 105_000, 188_000]))
    expected = torch.tensor([0.001, 1.0, 0.001, 0.0089, 1.0], dtype=torch.float64)
    torch.testing.assert_close(rates, expected, atol=1e-4, rtol=0)


# --- choices ---


def choices(section: type[BaseModel]) -> dict[str, tuple]:
    """Name to values of the fields that have a default: these, and no others, are choices."""
    return {
        name: typing.get_args(field.annotation)
        for name, field in section.model_fields.items()
        if not field.is_required()
    }


SECTIONS = {
    "encoder": (config.Encoder, released.ENCODER),
    "transformer": (config.Transformer, released.TRANSFORMER | {"index_grid": 128, "index_scale": 1.0}),
    "proposal": (config.Proposal, released.PROPOSAL),
    "reconstruction": (config.Reconstruction, released.RECONSTRUCTION),
}


@pytest.mark.parametrize("name", SECTIONS)
def test_the_released_preset_makes_every_choice_and_the_default_makes_none(name) -> None:
    section, made = SECTIONS[name]
    assert choices(section).keys() == made.keys()
    for field, values in choices(section).items():
        if values:
            assert section.model_fields[field].default == values[0]
            assert made[field] in values[1:]


@pytest.mark.parametrize("path", sorted(Path("presets").glob("*.yaml")), ids=lambda p: p.stem)
def test_no_preset_departs_from_the_default(path) -> None:
    params = config.load_params(path)
    for stage in (params.proposal, params.reconstruction):
        for section in (stage, stage.encoder, stage.transformer):
            for field in choices(type(section)):
                assert getattr(section, field) == type(section).model_fields[field].default


# --- weights ---

SIZE = {
    "encoder": {"dinov2": "scratch", "dinov2_width": 12, "dinov2_layers": 1, "dinov2_heads": 3, "channels": 8},
    "transformer": {"width": 24, "layers": 2, "heads": 2, "sampling_points": 3},
}
DINO = {**public_code.dino_config(12, 3, image=518), "mlp_ratio": 4}


@pytest.fixture(scope="module")
def settings() -> tuple[config.Proposal, config.Reconstruction]:
    """Small networks with the public code's choices."""
    proposal = released.PUBLISHED_PROPOSAL.model_dump() | {"coarse_resolution": 3, "voxel_resolution": 12}
    reconstruction = released.PUBLISHED_RECONSTRUCTION.model_dump() | {"max_anchors": 2000, "gaussians_per_token": 2}
    for data in (proposal, reconstruction):
        data["encoder"], data["transformer"] = (
            data["encoder"] | SIZE["encoder"],
            data["transformer"] | SIZE["transformer"],
        )
    return (
        released.released_proposal(config.Proposal.model_validate(proposal)),
        released.released_reconstruction(config.Reconstruction.model_validate(reconstruction)),
    )


@pytest.fixture(scope="module")
def state_dict() -> dict[str, torch.Tensor]:
    """A checkpoint of that size, drawn under the public names."""
    public_code.GENERATOR.manual_seed(5)
    networks = {}
    for network in ("serializer", "lrm_generator"):
        parts = {
            "encoder": public_code.drawn_encoder(DINO, 8),
            "transformer": public_code.drawn_transformer(24, 2, 8, 2, 3),
        }
        if network == "serializer":
            parts["upsample"] = public_code.drawn_linear("", 64, 24)
        else:
            parts["renderer.latent_decoder"] = public_code.drawn_linear("0", 28, 24) | public_code.drawn_linear(
                "2", 28, 28
            )
        networks |= {
            f"{network}.{part}.{name}".replace("..", "."): tensor
            for part, tensors in parts.items()
            for name, tensor in tensors.items()
        }
    return networks


def lightning(state_dict, path: Path, **others) -> Path:
    """A file as Lightning writes it, LPIPS of the training included."""
    stored = state_dict | {"lpips.net.slice1.0.weight": torch.zeros(2, 2), "lpips.lin0.weight": torch.zeros(1)}
    torch.save(
        {"epoch": 11, "global_step": 7, "state_dict": stored, "pytorch-lightning_version": "2.1.2", **others}, path
    )
    return path


def public_reconstruction(sd, images, poses, intrinsics) -> torch.Tensor:
    """Gaussians (N, 14) by the second writing of the public code, both stages, 2,000 anchors."""

    def tokens_of(network, points, scale, grid):
        part = public_code.part(sd, network)
        maps = public_code.encoder(public_code.part(part, "encoder"), images, poses, intrinsics, DINO, train=False)
        value, shapes = public_code.flattened(maps)
        places = public_code.project(points, poses[None], intrinsics[None])
        weights = public_code.part(part, "transformer")
        return public_code.transformer(weights, points, value[None], shapes, places, 2, grid, scale, False)["latents"]

    axis = torch.linspace(-0.5, 0.5, 3)
    coarse = torch.cartesian_prod(axis, axis, axis)[None]
    blocks = public_code.linear(sd, "serializer.upsample", tokens_of("serializer", coarse, 0.5, 12))[0]
    logits = blocks.reshape(3, 3, 3, 4, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(12, 12, 12)
    occupied = torch.linspace(-0.5, 0.5, 12)[(logits > 0).nonzero()]
    points = torch.cat([occupied, torch.zeros(2000 - len(occupied), 3)])[None]
    hidden = public_code.linear(
        sd, "lrm_generator.renderer.latent_decoder.0", tokens_of("lrm_generator", points, 1.0, 128)[0]
    )
    raw = public_code.linear(sd, "lrm_generator.renderer.latent_decoder.2", F.silu(hidden)).reshape(-1, 14)
    return torch.cat(
        [
            points[0].repeat_interleave(2, dim=0) + 0.2 * raw[:, :3].sigmoid(),
            raw[:, 3:4].sigmoid(),
            0.02 * raw[:, 4:7].sigmoid(),
            F.normalize(raw[:, 7:11], dim=-1),
            raw[:, 11:].clamp(-0.5, 0.5) + 0.5,
        ],
        dim=-1,
    )


def test_pictures_become_the_public_codes_gaussians(state_dict, settings, tmp_path) -> None:
    """The whole way with weights from a Lightning file: encoders, occupancy, padding, tokens that do not attend, decoding."""
    model = released.load_released_checkpoint(lightning(state_dict, tmp_path / "geolrm.ckpt"), *settings)
    poses, intrinsics = public_code.drawn_cameras(3)
    images = torch.rand(3, 3, 60, 60, generator=torch.Generator().manual_seed(8))  # 4 pixels more than 4 patches
    views = Views("object", Cameras(poses @ OPENCV_TO_BLENDER, intrinsics), images, torch.ones(3, 1, 60, 60))
    gaussians = model.reconstruct(views)
    expected = public_reconstruction(state_dict, images, poses, intrinsics)
    assert len(gaussians) == 4000
    assert (gaussians.means[:, 0] > 0.01).any()
    torch.testing.assert_close(surroundings.activated(gaussians), expected, atol=1e-4, rtol=0)


def test_the_names_and_shapes_are_the_published_ones(shared) -> None:
    with (shared / "reference" / "geolrm-state-dict.tsv").open() as file:
        rows = {row["key"]: tuple(json.loads(row["shape"])) for row in csv.DictReader(file, delimiter="\t")}
    assert len(rows) == 920
    assert released.public_shapes(published()) == rows


def published() -> GeoLRM:
    with torch.device("meta"):
        return GeoLRM(
            ProposalNetwork(released.PUBLISHED_PROPOSAL, pretrained=False),
            ReconstructionNetwork(released.PUBLISHED_RECONSTRUCTION, pretrained=False),
        )


def test_the_published_model_has_the_published_number_of_parameters() -> None:
    shapes = released.public_shapes(published())
    parameters = {n: s for n, s in shapes.items() if "running_" not in n and "num_batches" not in n}
    assert len(shapes) == 920
    assert sum(torch.Size(shape).numel() for shape in parameters.values()) == 334_556_304


def refusal(path: Path, settings) -> BadInput:
    with pytest.raises(BadInput) as caught:
        released.load_released_checkpoint(path, *settings)
    return caught.value


def test_every_missing_extra_and_misshaped_tensor_is_named(state_dict, settings, tmp_path) -> None:
    stored = dict(state_dict)
    gone = [name for name in stored if ".w1." in name or "running_mean" in name or "mask_token" in name]
    for name in gone:
        stored.pop(name)
    bent = "lrm_generator.transformer.layers.1.self_attention.wk.weight"
    stored |= {bent: torch.zeros(24, 23), "serializer.stowaway": torch.zeros(1)}
    refused = refusal(lightning(stored, tmp_path / "damaged.ckpt"), settings)
    assert refused.reason == "checkpoint_mismatch"
    for name in gone:
        assert f"missing {name}" in refused.detail
    assert "extra serializer.stowaway" in refused.detail
    assert f"{bent} is (24, 23), expected (24, 24)" in refused.detail
    assert "lpips" not in refused.detail


def test_a_file_that_holds_objects_runs_nothing(state_dict, settings, tmp_path) -> None:
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    refused = refusal(lightning(state_dict, tmp_path / "trap.ckpt", hyper_parameters=Trap()), settings)
    assert refused.reason == "checkpoint_unreadable"
    assert "state_dict" in refused.remedy
    assert not (tmp_path / "sprung").exists()


def test_a_checkpoint_cut_short_or_damaged_is_unreadable_or_misfits(settings, tmp_path) -> None:
    """At any length, with any bytes changed: never another error, and never a model."""
    tensors = {f"serializer.{i}": torch.randn(20) for i in range(3)}
    random = Random(0)
    for zipped in (True, False):
        whole = io.BytesIO()
        torch.save({"state_dict": tensors}, whole, _use_new_zipfile_serialization=zipped)
        for trial in range(60):
            damaged = bytearray(whole.getvalue())
            if trial % 2:
                damaged = damaged[: random.randrange(len(damaged))]
            for _ in range(0 if trial % 2 else 10):
                damaged[random.randrange(len(damaged))] = random.randrange(256)
            (tmp_path / "damaged.ckpt").write_bytes(damaged)
            assert refusal(tmp_path / "damaged.ckpt", settings).reason in (
                "checkpoint_unreadable",
                "checkpoint_mismatch",
            )


def test_other_files_are_no_checkpoint(settings, tmp_path) -> None:
    assert refusal(tmp_path / "none.ckpt", settings).reason == "checkpoint_missing"
    for content in ({}, [1, 2], {"state_dict": {"a": 3}}, torch.zeros(3)):
        torch.save(content, tmp_path / "other.ckpt")
        assert refusal(tmp_path / "other.ckpt", settings).reason == "checkpoint_unreadable"


def test_converted_weights_are_the_same_weights(state_dict, settings, tmp_path, monkeypatch, capsys) -> None:
    source, target = lightning(state_dict, tmp_path / "geolrm.ckpt"), tmp_path / "geolrm.safetensors"
    monkeypatch.setattr(released, "convert", lambda a, b, convert=released.convert: convert(a, b, *settings))
    monkeypatch.setattr(sys, "argv", ["geolrm", "checkpoint", "convert", str(source), str(target)])
    cli.main()
    printed = capsys.readouterr().out
    assert "lpips.net.slice1.0.weight" in printed
    assert "serializer.encoder.model.embeddings.mask_token" in printed
    assert f"{len(state_dict)} tensors" in printed
    stored = load_file(target)
    assert stored.keys() == state_dict.keys()
    assert all(torch.equal(stored[name], state_dict[name]) for name in stored)
    one, two = (released.load_released_checkpoint(file, *settings).state_dict() for file in (source, target))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_damaged_checkpoint_converts_to_nothing(state_dict, settings, tmp_path) -> None:
    stored = dict(state_dict)
    stored.pop("serializer.upsample.bias")
    with pytest.raises(BadInput, match=r"missing serializer\.upsample\.bias"):
        released.convert(lightning(stored, tmp_path / "a.ckpt"), tmp_path / "b.safetensors", *settings)
    assert not (tmp_path / "b.safetensors").exists()


def test_half_precision_weights_are_read_as_float32(state_dict, settings, tmp_path) -> None:
    half = {name: t.half() if t.is_floating_point() else t for name, t in state_dict.items()}
    model = released.load_released_checkpoint(lightning(half, tmp_path / "half.ckpt"), *settings)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_copied_model_keeps_its_choices(state_dict, settings, tmp_path) -> None:
    model = released.load_released_checkpoint(lightning(state_dict, tmp_path / "geolrm.ckpt"), *settings)
    twin = copy.deepcopy(model)
    torch.nn.init.zeros_(model.proposal.encoder.dinov2.embeddings.position_embeddings)
    images, (poses, intrinsics) = torch.rand(1, 1, 3, 28, 28), public_code.drawn_cameras(1, 1)
    cameras = Cameras(poses @ OPENCV_TO_BLENDER, intrinsics)
    assert (model.proposal(images, cameras) - twin.proposal(images, cameras)).abs().max() > 1e-3


# --- the page ---


def test_the_page_shows_what_each_choice_does_as_measured_now() -> None:
    """Same words, numbers within a fiftieth or one in the last digit; every choice has its row."""
    page = Path("docs/released-vs-paper.md").read_text()
    shown = page.partition("<!-- effects:begin -->\n")[2].partition("<!-- effects:end -->")[0].splitlines()
    measured = effects.rows()
    number = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
    assert [number.sub("#", row) for row in shown] == [number.sub("#", row) for row in measured]
    for old, new in zip(shown, measured, strict=True):
        pairs = zip(map(float, number.findall(old)), map(float, number.findall(new)), strict=True)
        assert all(abs(a - b) <= max(0.02 * abs(a), 0.011) for a, b in pairs), (old, new)
    for _section, made in SECTIONS.values():
        for field in set(made) - {"index_grid", "index_scale"}:
            assert re.search(rf"`(\w+\.)?{field}: {made[field]}`", page), field
