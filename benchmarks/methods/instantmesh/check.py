"""InstantMesh re-implemented against recorded outputs of the published modules.

In: a folder of safetensors files with weights (`sd.*`), inputs (`in.*`), intermediate and final outputs, sizes in the
metadata's `config`. Out: a table of largest absolute differences, an exit status. Convention: what a file is about is told by
the names of its tensors, and every size by metadata and shapes; an output that nothing here computes, a missing input and a
file of another kind are failures. Trade: vertices carry no order, so ours are put in the recorded one, each to the nearest,
one to one, and faces are compared as a set. Verified by fixtures with a number, a name, a face or a file changed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file
from scipy.spatial import cKDTree
from torch import Tensor, nn

from benchmarks.methods.instantmesh import cameras, flexicubes, surface, volume
from benchmarks.methods.instantmesh.network import (
    PREFIX,
    DensityDecoder,
    EncoderSizes,
    ImageEncoder,
    Sizes,
    SurfaceDecoder,
    TriplaneSizes,
    TriplaneTransformer,
    built,
    density,
    plane_features,
)
from geolrm.cameras import intrinsics_from_fov, orbit
from geolrm.failures import BadInput
from geolrm.parity import Difference, compare, exit_status, table
from geolrm.tensors import load_strictly

MESH_NEAR, MESH_FAR = 0.1, 1000.0  # of the published mesh renderer


@dataclass(frozen=True)
class Fixture:
    """One file."""

    path: Path
    tensors: dict[str, Tensor]
    settings: dict[str, Any]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise BadInput("fixture_incomplete", self.path.name, f"tensor {name} is missing")
        return self.tensors[name]

    def config(self, name: str) -> Any:
        """A size by name."""
        if name not in self.settings:
            raise BadInput("fixture_incomplete", self.path.name, f"its config has no {name!r}")
        return self.settings[name]

    def weights(self, prefix: str = "") -> dict[str, Tensor]:
        """The state dict, without `prefix`."""
        start = f"sd.{prefix}"
        return {name.removeprefix(start): tensor for name, tensor in self.tensors.items() if name.startswith(start)}

    @property
    def outputs(self) -> dict[str, Tensor]:
        """What is recorded to be reproduced, intermediates included."""
        return {name: tensor for name, tensor in self.tensors.items() if name.startswith(("mid.", "out."))}

    def filled(self, module: nn.Module, prefix: str = "") -> Any:
        """A module with the file's weights, in eval mode."""
        load_strictly(module, self.weights(prefix), self.path.name)
        return module.eval()


def read_fixture(path: Path) -> Fixture:
    """Raises `BadInput` for a damaged file, or one without a readable config."""
    try:
        tensors = load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            settings = json.loads((file.metadata() or {})["config"])
    except (safetensors.SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise BadInput("fixture_unreadable", path, f"{type(error).__name__}: {error}") from error
    return Fixture(path, tensors, settings)


def kept(module: nn.Module, calls: list[Tensor]) -> None:
    """Append what the module returns, in every later run."""

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        calls.append(output[0] if isinstance(output, tuple) else output)

    module.register_forward_hook(keep)


# --- meshes whose elements bear no order ---


def in_recorded_order(ours: Tensor, recorded: Tensor, where: str) -> Tensor:
    """(M,) positions of our vertices (M, 3) in the order of the recorded ones. Raises `BadInput` unless they pair off."""
    if ours.shape != recorded.shape:
        raise BadInput("mesh_differs", where, f"{len(ours)} vertices, recorded {len(recorded)}")
    if not len(ours):
        return torch.zeros(0, dtype=torch.long)
    nearest = torch.from_numpy(cKDTree(ours.numpy()).query(recorded.numpy())[1]).long()
    if len(nearest.unique()) != len(ours):
        raise BadInput("mesh_differs", where, f"{len(ours) - len(nearest.unique())} vertices are nearest to none")
    return nearest


def face_set(faces: Tensor) -> Tensor:
    """Faces (F, 3) with the smallest vertex first, turned and not mirrored, in lexical order."""
    turns = (torch.arange(3) + faces.argmin(dim=1, keepdim=True)) % 3
    turned = faces.long().gather(1, turns)
    return torch.from_numpy(np.unique(turned.numpy(), axis=0)) if len(turned) else turned


def mesh_outputs(
    vertices: Tensor, faces: Tensor, recorded_vertices: Tensor, recorded_faces: Tensor, where: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Our vertices in the recorded order, that order, and our faces to be compared with the recorded `face_set`."""
    order = in_recorded_order(vertices, recorded_vertices, where)
    ours = face_set(renamed(order)[faces])
    if len(ours) != len(recorded_faces):
        raise BadInput("mesh_differs", where, f"{len(ours)} faces, recorded {len(recorded_faces)}")
    return vertices[order], order, ours


def renamed(order: Tensor) -> Tensor:
    """The inverse of a permutation."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))


def cell_borders(places: Tensor, faces: Tensor) -> Tensor:
    """Directed edges (E, 5) of the polygons that a mesh cuts out of each lattice cell: cell, start, end.

    How a polygon is cut into triangles is each library's own; its border is not.

    Args:
        places: (M, 3) vertices in lattice units.
    """
    cells = places[faces].mean(dim=1).floor().long()
    rows = torch.cat([torch.cat([cells, faces[:, [a, b]]], dim=1) for a, b in ((0, 1), (1, 2), (2, 0))])
    kept = {tuple(row) for row in rows.tolist()}
    return torch.tensor(sorted(row for row in kept if (*row[:3], row[4], row[3]) not in kept)).reshape(-1, 5)


# --- what each kind of file records ---

Outputs = dict[str, Tensor]


def encoder_outputs(fixture: Fixture) -> tuple[Outputs, Outputs]:
    config = fixture.config
    sizes = EncoderSizes(
        width=config("hidden"),
        layers=config("layers"),
        heads=config("heads"),
        patch=config("patch"),
        grid=config("pos_grid"),
        mlp_ratio=config("mlp_ratio"),
        eps=config("ln_eps"),
        mean=tuple(config("mean")),
        std=tuple(config("std")),
    )
    encoder: ImageEncoder = fixture.filled(ImageEncoder(sizes))
    ours: Outputs = {}
    for name in [key.removeprefix("in.images_") for key in fixture.tensors if key.startswith("in.images_")]:
        images = fixture[f"in.images_{name}"]
        calls = _encoder_calls(encoder)
        ours[f"out.features_{name}"] = encoder(images, fixture[f"in.cameras_{name}"])
        inner = {f"mid.{key}_{name}": value[0] for key, value in calls.items()}
        inner[f"mid.patch_tokens_{name}"] = inner[f"mid.patch_tokens_{name}"].flatten(2).mT
        inner |= {f"mid.pixel_values_{name}_view{v}": encoder.normalised(images)[:, v] for v in range(images.shape[1])}
        ours |= {key: value for key, value in inner.items() if key in fixture.tensors}
    for key in fixture.tensors:
        if size := re.fullmatch(r"out\.pos_embed_(\d+)x(\d+)", key):
            embeddings: Any = encoder.model["embeddings"]
            ours[key] = embeddings.positions(int(size[1]), int(size[2]))
    return ours, fixture.outputs


def _encoder_calls(encoder: ImageEncoder) -> dict[str, list[Tensor]]:
    """What the parts of the encoder return from now on, by the names under which it is recorded."""
    embeddings = encoder.model["embeddings"]
    parts = {
        "patch_tokens": embeddings.get_submodule("patch_embeddings.projection"),
        "embedded": embeddings,
        "camera_embedding": encoder.camera_embedder,
    }
    for n, layer in enumerate(encoder.model.get_submodule("encoder.layer").children()):
        parts |= {f"layer{n}": layer, f"attn{n}": layer.get_submodule("attention")}
        parts[f"modulation{n}"] = layer.get_submodule("adaLN_modulation")
    calls: dict[str, list[Tensor]] = {name: [] for name in parts}
    for name, part in parts.items():
        kept(part, calls[name])
    return calls


def transformer_outputs(fixture: Fixture) -> tuple[Outputs, Outputs]:
    config = fixture.config
    sizes = TriplaneSizes(
        width=config("inner_dim"),
        layers=config("num_layers"),
        heads=config("num_heads"),
        image_width=config("image_feat_dim"),
        side=config("triplane_low_res"),
        channels=config("triplane_dim"),
        mlp_ratio=config("mlp_ratio"),
        block_eps=config("block_norm_eps"),
        final_eps=config("final_norm_eps"),
    )
    transformer: TriplaneTransformer = fixture.filled(TriplaneTransformer(sizes))
    parts: dict[str, nn.Module] = {"mid.final_norm": transformer.norm}
    for n, layer in enumerate(transformer.layers):
        parts |= {f"mid.block{n}": layer, f"mid.block{n}_mlp": layer.get_submodule("mlp")}
        parts |= {f"mid.block{n}_{kind}_attn": layer.get_submodule(f"{kind}_attn") for kind in ("cross", "self")}
    calls: dict[str, list[Tensor]] = {name: [] for name in parts}
    for name, part in parts.items():
        kept(part, calls[name])
    ours = {"out.planes": transformer(fixture["in.image_feats"])}
    return ours | {name: calls[name][0] for name in parts if name in fixture.tensors}, fixture.outputs


def _hidden(fixture: Fixture, head: str) -> tuple[int, int]:
    """Width and number of affine layers of a head, by its weights."""
    weights = [name for name in fixture.tensors if re.fullmatch(rf".*\.{head}\.\d+\.weight", name)]
    if not weights:
        raise BadInput("fixture_incomplete", fixture.path.name, f"no weights of {head}")
    first = next(name for name in weights if name.endswith(".0.weight"))
    return len(fixture[first]), len(weights)


def _density_decoder(fixture: Fixture) -> DensityDecoder:
    decoder = DensityDecoder(fixture.config("triplane_dim"), *_hidden(fixture, "net"))
    filled: DensityDecoder = fixture.filled(decoder, "decoder.")
    return filled


def density_outputs(fixture: Fixture) -> tuple[Outputs, Outputs]:
    decoder = _density_decoder(fixture)
    planes, points = fixture["in.planes"], fixture["in.points"]
    raw, colour = decoder(planes, points)
    side, level = fixture.config("grid_size"), fixture.config("mc_threshold")
    grid_raw, grid_colour = decoder(planes, surface.density_lattice(side).expand(len(planes), -1, -1))
    grid = density(grid_raw).unflatten(1, (side, side, side))
    ours = {
        "mid.plane_features": plane_features(planes, points),
        "mid.sigma_raw": raw,
        "out.sigma": density(raw),
        "out.rgb": colour,
        "out.grid_sigma": grid,
        "out.grid_rgb": grid_colour.unflatten(1, (side, side, side)),
    }
    recorded = fixture.outputs
    if "out.mc_vertices" in recorded and "out.mc_faces" in recorded:
        vertices, faces = surface.marching_cubes(grid[0, ..., 0], level)
        vertices = vertices / (side - 1) * 2 - 1
        expected, expected_faces = recorded["out.mc_vertices"], recorded["out.mc_faces"].long()
        order = in_recorded_order(vertices, expected, fixture.path.name)
        places = (expected + 1) / 2 * (side - 1)
        ours["out.mc_vertices"] = vertices[order]
        ours["out.mc_faces"] = cell_borders(places, renamed(order)[faces])
        recorded["out.mc_faces"] = cell_borders(places, expected_faces)
    return ours, recorded


def render_outputs(fixture: Fixture) -> tuple[Outputs, Outputs]:
    decoder = _density_decoder(fixture)
    planes, numbers = fixture["in.planes"], fixture["in.render_cameras"]
    objects, count = numbers.shape[:2]
    jitter, uniform = fixture["in.jitter"], fixture["in.u"]
    if 2 * jitter.shape[-2] != fixture.config("samples_per_ray"):
        raise BadInput("fixture_unknown", fixture.path.name, f"jitter of {jitter.shape[-2]} coarse samples a ray")
    uniform = uniform.unflatten(0, jitter.shape[:2])
    side = fixture.config("render_size")
    rays = volume.rays_of(numbers.flatten(0, 1), volume.Window(side))
    picture, distances = volume.render(decoder, planes, rays, jitter, uniform)
    ours = {
        "mid.ray_o": rays.origins,
        "mid.ray_d": rays.directions,
        "mid.near": rays.near,
        "mid.far": rays.far,
        "mid.depths_coarse": distances["coarse"],
        "mid.weights_coarse": distances["weights"],
        "mid.depths_fine": distances["fine"],
        "mid.depths_all": distances["all"],
    }
    depth = picture.distance.clamp(distances["all"].min(), distances["all"].max())
    shown = {"rgb": picture.colour, "depth": depth, "weight": picture.opacity}
    ours |= {f"out.{name}": _as_pictures(value, objects, count, side) for name, value in shown.items()}
    if "out.rgb_crop" in fixture.tensors:
        top, left, height, width = fixture.config("crop")
        part = volume.Window(side, top, left, height, width)
        kept_rays = torch.arange(side * side).reshape(side, side)[top : top + height, left : left + width].flatten()
        rays = volume.rays_of(numbers.flatten(0, 1), part)
        crop, _ = volume.render(decoder, planes, rays, jitter[:, kept_rays], uniform[:, kept_rays])
        ours["out.rgb_crop"] = _as_pictures(crop.colour, objects, count, height)
    return ours, fixture.outputs


def _as_pictures(values: Tensor, objects: int, count: int, height: int) -> Tensor:
    """(B V, P, C) as (B, V, C, H, W)."""
    return values.mT.unflatten(0, (objects, count)).unflatten(-1, (height, -1))


def field_outputs(fixture: Fixture) -> tuple[Outputs, Outputs]:
    channels, cells = fixture.config("triplane_dim"), fixture.config("grid_res")
    hidden = _hidden(fixture, "net_sdf")
    decoder: SurfaceDecoder = fixture.filled(SurfaceDecoder(channels, *hidden), "decoder.")
    planes, points = fixture["in.planes"], fixture["in.points"]
    lattice = flexicubes.lattice(cells, fixture.config("grid_scale"))
    corners = flexicubes.cell_corners(torch.arange(cells**3), cells)
    sdf, deformation = decoder.fields(planes, lattice.expand(len(planes), -1, -1))
    ours = {
        "mid.plane_features_points": plane_features(planes, points),
        "out.rgb": decoder.colour(planes, points),
        "out.grid_vertices": lattice,
        "out.cube_indices": corners,
        "out.sdf": sdf,
        "out.deformation_raw": deformation,
        "out.deformation": surface.bent(deformation, cells, fixture.config("deformation_multiplier")),
        "out.weight": decoder.weights(planes[:1], lattice[corners]),
    }
    for sign in ("positive", "negative"):
        if f"out.sdf_all_{sign}_fixed" in fixture.tensors:
            shifted = sdf[:1] + fixture.config(f"bias_shift_all_{sign}")
            ours[f"out.sdf_all_{sign}_fixed"] = with_planted_surface(shifted, cells)
    return ours, fixture.outputs


def with_planted_surface(sdf: Tensor, cells: int) -> Tensor:
    """What the published code does to fields (B, (R + 1)^3, 1) without a sign change inside; ours are no surface instead.

    One point near the centre and all within two layers of the border are set to values of opposite signs.
    """
    side = cells + 1
    grid = sdf.reshape(-1, side, side, side)
    within = grid[:, 1:-1, 1:-1, 1:-1].flatten(1)
    flat = ~(within > 0).any(dim=1) | ~(within < 0).any(dim=1)
    planted = torch.zeros_like(grid)
    planted[:, cells // 2 + 1, cells // 2 + 1, cells // 2 + 1] = 1 - sdf.min()
    for layer in (0, 1, cells - 1, cells):
        for axis in (1, 2, 3):
            planted.select(axis, layer).fill_(-1 - sdf.max())
    replaced = flat[:, None, None, None] & (planted != 0)
    return torch.where(replaced, planted, grid).reshape(sdf.shape)


def flexicubes_outputs(fixture: Fixture) -> tuple[Outputs, Outputs]:
    cells = fixture.config("grid_res")
    if not torch.equal(fixture["in.cube_indices"].long(), flexicubes.cell_corners(torch.arange(cells**3), cells)):
        raise BadInput("fixture_unknown", fixture.path.name, "in.cube_indices orders the corners of cells otherwise")
    positions = fixture["in.grid_vertices"] + fixture["in.deformation"]
    ours, recorded = {}, fixture.outputs
    for name in [key.removeprefix("in.sdf_") for key in fixture.tensors if key.startswith("in.sdf_")]:
        for suffix, weights in ((name, fixture["in.weight"].__getitem__), (f"{name}_unit_weights", None)):
            if f"out.vertices_{suffix}" not in recorded:
                continue
            vertices, faces = flexicubes.decode(fixture[f"in.sdf_{name}"], positions, cells, weights)
            expected = recorded[f"out.vertices_{suffix}"], fixture[f"out.faces_{suffix}"]
            where = f"{fixture.path.name} {suffix}"
            ours[f"out.vertices_{suffix}"], _, ours[f"out.faces_{suffix}"] = mesh_outputs(
                vertices, faces, *expected, where
            )
            recorded[f"out.faces_{suffix}"] = face_set(expected[1])
    return ours, recorded


def whole_sizes(fixture: Fixture) -> Sizes:
    """Sizes of a whole network of the mesh kind: from the config, and what it leaves out from the weights' shapes."""
    config, weights = fixture.config, fixture.weights(PREFIX)

    def shape(name: str) -> tuple[int, ...]:
        if name not in weights:
            raise BadInput("fixture_incomplete", fixture.path.name, f"tensor sd.{PREFIX}{name} is missing")
        return tuple(weights[name].shape)

    vit, width = config("encoder"), config("transformer_dim")
    encoder = EncoderSizes(
        width=vit["hidden"],
        layers=vit["layers"],
        heads=vit["heads"],
        patch=shape("encoder.model.embeddings.patch_embeddings.projection.weight")[-1],
        grid=math.isqrt(shape("encoder.model.embeddings.position_embeddings")[1]),
        mlp_ratio=shape("encoder.model.encoder.layer.0.intermediate.dense.weight")[0] // vit["hidden"],
    )
    triplane = TriplaneSizes(
        width=width,
        layers=config("transformer_layers"),
        heads=config("transformer_heads"),
        image_width=vit["hidden"],
        side=config("triplane_low_res"),
        channels=config("triplane_dim"),
        mlp_ratio=shape("transformer.layers.0.mlp.0.weight")[0] // width,
    )
    hidden, depth = _hidden(fixture, "net_sdf")
    return Sizes(encoder, triplane, hidden, depth, cells=config("grid_res"), box=config("grid_scale"))


def whole_outputs(fixture: Fixture) -> tuple[Outputs, Outputs]:
    sizes = whole_sizes(fixture)
    network = built(sizes, fixture.weights(PREFIX), fixture.path.name)
    planes = network(fixture["in.images"], fixture["in.cameras"])
    lattice = flexicubes.lattice(sizes.cells, sizes.box)
    decoder: Any = network.decoder
    sdf, deformation = decoder.fields(planes, lattice.expand(len(planes), -1, -1))
    vertices, faces = surface.mesh_of(network, planes[:1])
    expected = fixture["out.vertices"], fixture["out.faces"]
    ours = {"out.planes": planes, "out.sdf": sdf, "out.deformation": surface.bent(deformation, sizes.cells)}
    ours["out.vertices"], order, ours["out.faces"] = mesh_outputs(vertices, faces, *expected, fixture.path.name)
    colours = surface.colours_at(network, planes[:1], vertices)[order]
    recorded = fixture.outputs | {"out.faces": face_set(expected[1])}
    ours["out.vertex_rgb"] = colours
    # In units of [0, 1]; what lies on the edge between two counts may have been cut off to either.
    count = fixture["out.vertex_colors"]
    recorded["out.vertex_colors"] = count / 255
    ours["out.vertex_colors"] = (
        count + (colours * 255 - count).clamp(max=0) + (colours * 255 - count - 1).clamp(min=0)
    ) / 255
    return ours, recorded


def camera_outputs(fixture: Fixture) -> tuple[Outputs, Outputs]:
    config, ours = fixture.config, {}
    azimuths = torch.arange(config("M")) * 360.0 / config("M")
    circle = orbit(azimuths, torch.full_like(azimuths, config("elevation")), config("radius"), config("fov"))
    poses = cameras.opengl_poses(circle)
    for name in fixture.outputs:
        if rig := re.fullmatch(r"out\.zero123plus_16_r([\d.]+)_fov([\d.]+)", name):
            ours[name] = cameras.input_numbers(cameras.demo_rig(float(rig[1]), float(rig[2])))[None]
        elif fov := re.fullmatch(r"out\.projection_fov([\d.]+)", name):
            ours[name] = mesh_projection(float(fov[1]))
    known = {
        "out.circular_c2w": poses,
        "out.circular_w2c": torch.linalg.inv(poses.double()).float(),
        "out.K_fov": intrinsics_from_fov(math.radians(config("fov"))),
    }
    return ours | {name: value for name, value in known.items() if name in fixture.tensors}, fixture.outputs


def mesh_projection(fov: float) -> Tensor:
    """(4, 4) of the published mesh renderer: OpenGL clip space with y down, a field of view of `fov` degrees."""
    focal = 1 / math.tan(math.radians(fov) / 2)
    depth = MESH_FAR - MESH_NEAR
    third = [0, 0, -(MESH_FAR + MESH_NEAR) / depth, -2 * MESH_FAR * MESH_NEAR / depth]
    return torch.tensor([[focal, 0, 0, 0], [0, -focal, 0, 0], third, [0, 0, -1, 0]])


# What a file is about, by the first of these tensors that it holds.
KINDS: dict[str, Callable[[Fixture], tuple[Outputs, Outputs]]] = {
    f"sd.{PREFIX}transformer.pos_embed": whole_outputs,
    "sd.model.embeddings.cls_token": encoder_outputs,
    "sd.pos_embed": transformer_outputs,
    "in.render_cameras": render_outputs,
    "sd.decoder.net.0.weight": density_outputs,
    "sd.decoder.net_sdf.0.weight": field_outputs,
    "in.cube_indices": flexicubes_outputs,
    "out.circular_c2w": camera_outputs,
}


@torch.no_grad()
def check_file(path: Path) -> list[Difference]:
    """Differences of all outputs of one file.

    Raises `BadInput` for a file that is damaged, incomplete, or of a kind that is not known, and for a mesh of other elements.
    """
    fixture = read_fixture(path)
    kinds = [outputs for name, outputs in KINDS.items() if name in fixture.tensors]
    if not kinds:
        known = ", ".join(KINDS)
        raise BadInput("fixture_unknown", path.name, "it holds none of the tensors that tell its kind", known)
    ours, recorded = kinds[0](fixture)
    try:
        return compare(path.name, ours, recorded)
    except ValueError as error:
        raise BadInput("fixture_differs", path.name, str(error)) from error


def check(folder: Path) -> int:
    """Check every file of a folder, print the table, return the exit status: 0 if there are files and all of them hold."""
    differences, failures = [], []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            differences += check_file(path)
        except BadInput as error:
            failures.append(str(error))
    print("\n".join([table(differences), *failures]))
    return 1 if failures else exit_status(differences)
