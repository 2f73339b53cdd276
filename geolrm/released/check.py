"""The released mode against recorded outputs of the public code's own modules.

In: a folder of safetensors files with weights (`sd.*`), inputs (`in.*`), intermediate and final outputs, and the configuration
in each file's metadata. Out: a table of the largest absolute difference per output. Convention: what a file is about is told by
the names of its tensors, never by its own name; every size comes from metadata and shapes; an output that nothing here
computes, an input that is missing and a file of another kind are failures, never skipped. Trade: the proposal's points are
taken from the recorded logits, because a logit within rounding of zero would change their number. Verified by fixtures with
one number, name or weight changed.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from geolrm.cameras import OPENCV_TO_BLENDER, Cameras, intrinsics_from_fov, orbit
from geolrm.config import Encoder, Transformer
from geolrm.failures import BadInput
from geolrm.model import rope
from geolrm.model.deformable import LEVELS, DeformableCrossAttention, attend_view, project_to_every_view
from geolrm.model.encoder import PATCH, HierarchicalEncoder, positions_by_factor, square_rays
from geolrm.model.proposal import ProposalNetwork
from geolrm.model.reconstruction import PADDINGS, GaussianHead
from geolrm.model.released import (
    ENCODER,
    PUBLISHED_PROPOSAL,
    PUBLISHED_RECONSTRUCTION,
    RECONSTRUCTION,
    TRANSFORMER,
    fill,
    released_proposal,
)
from geolrm.model.transformer import GeometryTransformer
from geolrm.occupancy import anchor_points
from geolrm.parity import TOLERANCE, Difference, compare, exit_status, table
from geolrm.released import surroundings

INPUTS = re.compile(
    r"(sd|in)\..+|loss\.(depth_pred|depth_gt|rgb|mask)|occ\.(logits|target)|occgt\.(depth_z|c2ws|Ks)|lr\.stage2_steps"
)
ATTENTIONS = {"token_attention": "tokens", "official_fp32": "heads"}  # the public code's two branches


@dataclass(frozen=True)
class Fixture:
    """One file."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise BadInput("fixture_incomplete", self.path.name, f"tensor {name} is missing")
        return self.tensors[name]

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name[3:]: tensor for name, tensor in self.tensors.items() if name.startswith("sd.")}

    @property
    def outputs(self) -> list[str]:
        return [name for name in self.tensors if not INPUTS.fullmatch(name)]

    @property
    def cameras(self) -> Cameras:
        """Of `in.c2ws` (Blender axes) and `in.Ks`."""
        return from_blender(self["in.c2ws"], self["in.Ks"])

    def config(self, name: str) -> Any:
        """A value of the metadata, JSON decoded where it is JSON."""
        if name not in self.metadata:
            raise BadInput("fixture_incomplete", self.path.name, f"metadata has no {name!r}")
        return json.loads(self.metadata[name])

    def matches(self, pattern: str) -> Iterator[re.Match[str]]:
        """Outputs whose whole name matches."""
        return (match for name in self.outputs if (match := re.fullmatch(pattern, name)))


def from_blender(poses: Tensor, intrinsics: Tensor) -> Cameras:
    return Cameras(poses @ OPENCV_TO_BLENDER, intrinsics)


def to_blender(cameras: Cameras) -> Tensor:
    return cameras.camera_to_world @ OPENCV_TO_BLENDER


def recorded(module: nn.Module, into: dict[str, Tensor], name: str, what: Callable[..., Tensor]) -> None:
    """Keep `what(inputs, output)` of the module's next runs."""

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        into[name] = what(inputs, output)

    module.register_forward_hook(keep)


# --- the four modules and the proposal network ---


def _encoder_settings(dino: dict[str, Any], channels: int) -> Encoder:
    if dino.get("patch_size", PATCH) != PATCH:
        raise BadInput("fixture_unknown", "dino", f"patch_size {dino['patch_size']}, this encoder has {PATCH}")
    sizes = {
        "dinov2": "scratch",
        "dinov2_width": dino["hidden_size"],
        "dinov2_layers": dino["num_hidden_layers"],
        "dinov2_heads": dino["num_attention_heads"],
        "channels": channels,
    }
    return Encoder.model_validate(sizes | ENCODER)


def _give_dinov2(encoder: HierarchicalEncoder, dino: dict[str, Any]) -> None:
    """Replace DINOv2 by one of this configuration, whose other sizes the encoder's settings do not name."""
    from transformers import Dinov2Config, Dinov2Model

    encoder.dinov2 = Dinov2Model(Dinov2Config(**{**dino, "use_mask_token": False}))
    positions_by_factor(encoder.dinov2)


def _flattened(maps: tuple[Tensor, Tensor]) -> Tensor:
    """Both levels (B, V, C, h, w) as (B, V, positions, C), low level first."""
    return torch.cat([level.flatten(3).transpose(2, 3) for level in maps], dim=2)


def _unflattened(features: Tensor, shapes: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse, for maps of (h, w) `shapes` (2, 2)."""
    if len(shapes) != LEVELS:
        raise BadInput("fixture_unknown", "in.spatial_shapes", f"{len(shapes)} levels, this model has {LEVELS}")
    sizes = [(int(h), int(w)) for h, w in shapes]
    levels = features.transpose(2, 3).split([h * w for h, w in sizes], dim=3)
    low, high = (level.unflatten(3, size) for level, size in zip(levels, sizes, strict=True))
    return low.contiguous(), high.contiguous()


def encoder_outputs(fixture: Fixture) -> dict[str, Tensor]:
    dino = fixture.config("dino")
    encoder = HierarchicalEncoder(_encoder_settings(dino, fixture.config("out_dim")))
    _give_dinov2(encoder, dino)
    fill(encoder, fixture.weights, fixture.path, "encoder")
    encoder.eval()
    images, cameras = fixture["in.images"], fixture.cameras
    training = copy.deepcopy(encoder).train()
    outputs: dict[str, Tensor] = {}
    recorded(encoder.high, outputs, "mid.dino_feature_map", lambda inputs, _: inputs[0])
    recorded(encoder.high_norm, outputs, "mid.high", lambda _, output: output)
    recorded(encoder.low_norm, outputs, "mid.low", lambda _, output: output)
    maps = encoder(images, cameras)
    outputs["out.features"] = _flattened(maps)
    outputs["out.spatial_shapes"] = torch.tensor([level.shape[-2:] for level in maps])
    with torch.enable_grad():  # as in training, where all pictures of a batch go through together
        outputs["out.features_bn_train_mode"] = _flattened(training(images, cameras)).detach()
    rays = encoder.rays(cameras, *images.shape[-2:]).flatten(0, 1)
    for match in fixture.matches(r"mid\.ray_embedding_view(\d+)_every(\d+)"):
        view, step = map(int, match.groups())
        outputs[match[0]] = rays[view, :, ::step, ::step]
    return outputs


def _transformer_settings(sizes: dict[str, int], attention: str, grid: int, hidden: int) -> Transformer:
    choices = TRANSFORMER | {"self_attention": attention, "index_grid": grid, "feed_forward_multiple": hidden}
    return Transformer.model_validate(sizes | choices)


def transformer_outputs(fixture: Fixture) -> dict[str, Tensor]:
    arguments, attention = fixture.config("model_args"), fixture.metadata.get("attention", "").partition(" ")[0]
    branches = {"tokens": "tokens", "heads-inside-token": "heads"}
    if attention not in branches:
        raise BadInput("fixture_unknown", fixture.path.name, f"attention {attention!r} is none of {list(branches)}")
    deformable = arguments["deform_att_cfg"]["deformable_attention"]
    if deformable["num_heads"] != arguments["n_heads"]:
        raise BadInput("fixture_unknown", fixture.path.name, "its two attentions have different numbers of heads")
    sizes = {
        "width": arguments["dim"],
        "layers": arguments["n_layers"],
        "heads": arguments["n_heads"],
        "sampling_points": deformable["num_points"],
    }
    hidden = len(fixture["sd.layers.0.feed_forward.w1.weight"])
    grid = arguments["grid_size"]
    transformer = GeometryTransformer(
        _transformer_settings(sizes, branches[attention], grid, hidden), deformable["value_dim"]
    )
    fill(transformer, fixture.weights, fixture.path, "transformer")
    anchors, cameras = fixture["in.xyzs"], fixture.cameras
    features = _unflattened(fixture["in.img_feats"], fixture["in.spatial_shapes"])
    outputs = {"mid.reference_points_cam": project_to_every_view(anchors, cameras)[0]}
    for scale in {match[1] for match in fixture.matches(r".*_scale([\d.]+)")}:
        transformer.positions = partial(rope.index_positions, grid=grid, scale=float(scale))
        outputs[f"mid.xyzs_idx_scale{scale}"] = transformer.positions(anchors).long()
        for number, block in enumerate(transformer.blocks):
            recorded(block, outputs, f"mid.block{number}_scale{scale}", lambda _, output: output[0])
            attending = block.get_submodule("self_attention")
            recorded(attending, outputs, f"mid.selfattn{number}_scale{scale}", lambda _, output: output)
        outputs[f"out.latents_scale{scale}"] = transformer(anchors, features, cameras)[0]
        for module in transformer.modules():
            module._forward_hooks.clear()
    return outputs


def deformable_outputs(fixture: Fixture) -> dict[str, Tensor]:
    settings = fixture.config("cfg")["deformable_attention"]
    heads, points = settings["num_heads"], settings["num_points"]
    layer = DeformableCrossAttention(settings["query_dim"], settings["value_dim"], heads, points)
    fill(layer, fixture.weights, fixture.path, "cross_attention")
    queries, places = fixture["in.query"], fixture["in.reference_points_cam"]
    features = _unflattened(fixture["in.value"], fixture["in.spatial_shapes"])
    offsets = layer.offsets(queries).unflatten(-1, (heads, LEVELS, points, 2))
    logits = layer.weights(queries).unflatten(-1, (heads, LEVELS * points))
    weights = logits.softmax(dim=-1).unflatten(-1, (LEVELS, points))
    maps = ([layer.values(level[:, view]) for level in features] for view in range(places.shape[1]))
    parts = [
        attend_view(values, places[:, view], offsets.transpose(1, 2), weights.transpose(1, 2))
        for view, values in enumerate(maps)
    ]
    sums = torch.stack(parts, dim=1)
    seen, _ = layer(queries, features, places, torch.ones(places.shape[:-1], dtype=torch.bool))
    return {
        "mid.raw_offsets_view0": offsets,
        "mid.attn_logits_view0": logits,
        "mid.per_view": sums,
        "mid.view_logits": layer.view_logit(sums) + fixture["sd.cross_view_weight.bias"],  # which cancels
        "out": queries + seen,
    }


def head_outputs(fixture: Fixture) -> dict[str, Tensor]:
    sizes = {"width": fixture.config("transformer_dim"), "heads": 1}
    settings = PUBLISHED_RECONSTRUCTION.model_copy(
        update={
            "transformer": PUBLISHED_RECONSTRUCTION.transformer.model_copy(update=sizes),
            "gaussians_per_token": fixture.config("gs_per_token"),
            "max_offset": fixture.config("offset_max"),
            "max_scale": fixture.config("scale_max"),
        }
    )
    head = GaussianHead(settings)
    fill(head, fixture.weights, fixture.path, "head")
    anchors, tokens = fixture["in.xyzs"], fixture["in.latents"]
    outputs: dict[str, Tensor] = {}
    recorded(head.output, outputs, "mid.raw_decoder", lambda _, output: output)
    count = len(anchors)  # its colours come from the tokens alone
    unused = torch.zeros(count, 0, 3, 1, 1), Cameras(torch.zeros(count, 0, 4, 4), torch.zeros(count, 0, 3, 3))
    sets = head(tokens, anchors, *unused, torch.zeros(count, 0, 1))
    outputs["out.gaussians"] = torch.stack([surroundings.activated(one) for one in sets])
    outputs["out.ply_table"] = torch.cat([surroundings.ply_table(one) for one in sets])
    cameras = from_blender(fixture["in.render_c2ws"].flatten(0, 1), fixture["in.render_Ks"].flatten(0, 1))
    arguments = surroundings.raster_arguments(cameras)
    return outputs | {f"out.raster_{name}": value for name, value in arguments.items()}


def proposal_outputs(fixture: Fixture) -> dict[str, Tensor]:
    dino, arguments = fixture.config("dino"), fixture.config("kwargs")
    sizes = {
        "width": arguments["transformer_dim"],
        "layers": arguments["transformer_layers"],
        "heads": arguments["transformer_heads"],
        "sampling_points": arguments["num_deform_points"],
    }
    grid, hidden = arguments["grid_size"], len(fixture["sd.transformer.layers.0.feed_forward.w1.weight"])
    outputs: dict[str, Tensor] = {}
    for mode in {match[1] for match in fixture.matches(r"out\.logits_(\w+)")}:
        if mode not in ATTENTIONS:
            raise BadInput("fixture_unknown", fixture.path.name, f"attention {mode!r} is none of {list(ATTENTIONS)}")
        transformer = _transformer_settings(sizes, ATTENTIONS[mode], grid, hidden)
        settings = released_proposal(PUBLISHED_PROPOSAL).model_copy(
            update={
                "encoder": _encoder_settings(dino, arguments["encoder_feat_dim"]),
                "transformer": transformer.model_copy(update={"index_scale": arguments["scale"]}),
                "voxel_resolution": grid,
                "coarse_resolution": grid // arguments["token_res"],
            }
        )
        network = ProposalNetwork(settings)
        _give_dinov2(network.encoder, dino)
        fill(network, fixture.weights, fixture.path)
        outputs["const.xyzs_coarse"] = network.coarse_anchors("cpu")
        outputs[f"out.logits_{mode}"] = network.eval()(fixture["in.images"], fixture.cameras)
        outputs |= _proposed_points(fixture, mode, arguments["max_seq_len"])
    axis = torch.arange(grid)[:, None]
    outputs["const.xyzs_full_axis"] = network.places(axis.expand(-1, 3), grid)[:, 0]
    return outputs


def _proposed_points(fixture: Fixture, mode: str, max_count: int) -> dict[str, Tensor]:
    """Anchor points from the recorded logits: all, cut to the recorded length; and a random draw of fewer."""
    logits = fixture[f"out.logits_{mode}"]
    if len(logits) != 1:
        raise BadInput("fixture_unknown", fixture.path.name, f"proposal of {len(logits)} objects, expected one")
    occupied = logits[0] > 0

    def pick(count: int) -> Tensor:
        points = anchor_points(occupied, count, RECONSTRUCTION["grid"], RECONSTRUCTION["subset"])
        return PADDINGS[RECONSTRUCTION["padding"]](points, count)[None]

    outputs = {f"out.num_occupied_{mode}": occupied.sum()}
    for match in fixture.matches(rf"out\.pts_padded_first_{mode}"):
        outputs[match[0]] = pick(max_count)[:, : fixture[match[0]].shape[1]]
    for match in fixture.matches(rf"out\.pts_max(\d+)_seed(\d+)_{mode}"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(match[2]))
            outputs[match[0]] = pick(int(match[1]))
    return outputs


# --- what surrounds them ---


def surroundings_outputs(fixture: Fixture) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = {}
    groups = {name.partition(".")[0] for name in fixture.outputs}
    for group, compute in SURROUNDINGS.items():
        if group in groups:
            outputs |= compute(fixture)
    return outputs


def _rigs(fixture: Fixture) -> dict[str, Tensor]:
    """The public code's cameras, by the numbers in their names."""
    outputs = {}
    for match in fixture.matches(r"cam\.orbit(\d+)_r([\d.]+)_el(-?[\d.]+)"):
        count = int(match[1])
        azimuths, elevations = torch.arange(count) * 360 / count, torch.full((count,), float(match[3]))
        outputs[match[0]] = to_blender(orbit(azimuths, elevations, float(match[2]), 39.6))
    for match in fixture.matches(r"cam\.K_fov([\d.]+)"):
        outputs[match[0]] = intrinsics_from_fov(
            float(torch.deg2rad(torch.tensor(float(match[1]), dtype=torch.float64)))
        )
    for match in fixture.matches(r"cam\.(sv3d|zero123plus)\.c2ws"):
        count = len(fixture[match[0]])
        turn = torch.arange(count) * 360 / count
        if match[1] == "sv3d":
            rig = orbit(turn, torch.full((count,), 10.0), 1.5, 39.6)
        else:
            rig = orbit(turn + 30, torch.tensor([20.0, -10.0]).repeat(count)[:count], 1.5, 30.0)
        outputs |= {match[0]: to_blender(rig), f"cam.{match[1]}.Ks": rig.intrinsics}
    return outputs


def _rays(fixture: Fixture) -> dict[str, Tensor]:
    """Of every pixel of a square picture by the fourth of the SV3D cameras."""
    side = round(len(fixture["rays.d"]) ** 0.5)
    camera = from_blender(fixture["cam.sv3d.c2ws"][3], fixture["cam.sv3d.Ks"][3])
    directions = square_rays(camera, side, side)[:3].flatten(1).T
    return {"rays.d": directions, "rays.o": camera.positions.expand_as(directions)}


def _losses(fixture: Fixture) -> dict[str, Tensor]:
    inputs = [fixture[f"loss.{name}"] for name in ("depth_pred", "depth_gt", "rgb", "mask")]
    return {f"loss.{name}": value for name, value in surroundings.depth_losses(*inputs).items()}


def _occupancy_losses(fixture: Fixture) -> dict[str, Tensor]:
    losses = surroundings.occupancy_losses(fixture["occ.logits"], fixture["occ.target"])
    return {"occ.bce": losses["bce"], "occ.geo_scal": losses["geometric"]}


def _label(fixture: Fixture) -> dict[str, Tensor]:
    """Voxels of the label; a coordinate within rounding of the border between two voxels falls to the recorded one."""
    cameras = from_blender(fixture["occgt.c2ws"], fixture["occgt.Ks"])
    recorded_voxels = {tuple(row) for row in fixture["occgt.indices"].tolist()}
    points = surroundings.scaled_label_points(fixture["occgt.depth_z"][:, 0], cameras)
    at_border = ((points.frac().abs() - 0.5).abs() < TOLERANCE).any(dim=-1)
    for i in at_border.nonzero()[:, 0].tolist():
        for shift in itertools.product((0.0, -2 * TOLERANCE, 2 * TOLERANCE), repeat=3):
            nudged = points[i] + torch.tensor(shift)
            if tuple(surroundings.rounded_label(nudged[None])[0].tolist()) in recorded_voxels:
                points[i] = nudged
                break
    return {"occgt.indices": surroundings.rounded_label(points)}


def _schedule(fixture: Fixture) -> dict[str, Tensor]:
    return {"lr.stage2_multiplier": surroundings.learning_rate(fixture["lr.stage2_steps"])}


SURROUNDINGS = {
    "cam": _rigs,
    "rays": _rays,
    "loss": _losses,
    "occ": _occupancy_losses,
    "occgt": _label,
    "lr": _schedule,
}

# A file's kind: a tensor that only this kind has, what computes its outputs, and a pattern of which at least one must be there.
KINDS = (
    ("sd.deconv.0.weight", encoder_outputs, r"out\.features"),
    ("sd.layers.0.self_attention.wq.weight", transformer_outputs, r"out\.latents_scale[\d.]+"),
    ("sd.deformable_attention.value_proj.weight", deformable_outputs, r"out"),
    ("sd.latent_decoder.0.weight", head_outputs, r"out\.gaussians"),
    ("sd.upsample.weight", proposal_outputs, r"out\.logits_\w+"),
    ("", surroundings_outputs, "(" + "|".join(SURROUNDINGS) + r")\..+"),
)


def read_fixture(path: Path) -> Fixture:
    """Raises `BadInput` for a file that is no safetensors file."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return Fixture(path, dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise BadInput("fixture_unreadable", path, str(error)) from error


@torch.no_grad()
def differences(fixture: Fixture) -> list[Difference]:
    """Of every output. Raises `BadInput` for a file of no known kind or without what it needs, else as `compare`."""
    compute, required = next((kind[1:] for kind in KINDS if kind[0] in fixture.tensors), KINDS[-1][1:])
    if not any(True for _ in fixture.matches(required)):
        detail = f"no tensor matches {required}: no output to compare, or a file of another kind"
        raise BadInput("fixture_unknown", fixture.path.name, detail)
    ours = compute(fixture)
    recorded = {name: fixture[name] for name in sorted(fixture.outputs)}
    return compare(fixture.path.name, {name: ours[name] for name in recorded if name in ours}, recorded)


def check(folder: Path) -> int:
    """Print a table of every safetensors file of a folder; exit status 0 where all of it is within the tolerance.

    Raises:
        BadInput: `fixtures_missing` where there is no such file.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise BadInput("fixtures_missing", folder, "no *.safetensors there", "name the folder of the parity fixtures")
    found, failures = [], []
    for path in paths:
        try:
            found += differences(read_fixture(path))
        except (ValueError, KeyError, RuntimeError) as error:  # whatever a file holds, the others are still checked
            failures.append(f"{path.name} FAILED: {type(error).__name__} {error}")
    print("\n".join([table(found), *failures]))
    return 1 if failures else exit_status(found)
