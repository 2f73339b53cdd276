"""InstantMesh against recorded outputs of its public modules: encoder, transformer, fields, meshes, pictures, cameras.

In: one fixture. Out: every recorded output, computed anew. Convention: every size is read off metadata and shapes; a mesh is
brought into the recorded order, and of marching cubes the borders within each cell are compared, since how they are cut into
triangles is each library's own. Trade: what only the public code needs (its repair of empty fields, its mesh renderer's
projection) stands here and is used for nothing else. Verified by planted breaks in the tests.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

from benchmarks import flexicubes
from benchmarks.fixtures import Fixture, faces_in_order, outputs_of, renamed, vertex_order
from benchmarks.methods.instantmesh import cameras, surface, volume
from benchmarks.methods.instantmesh.network import (
    PREFIX,
    DensityDecoder,
    EncoderSizes,
    ImageEncoder,
    InstantMesh,
    Sizes,
    SurfaceDecoder,
    TriplaneSizes,
    TriplaneTransformer,
    density,
    plane_features,
)
from benchmarks.published import filled, under
from geolrm.cameras import intrinsics_from_fov, orbit
from geolrm.failures import BadInput

MESH_NEAR, MESH_FAR = 0.1, 1000.0  # of the published mesh renderer
Outputs = dict[str, Tensor]


def mesh_outputs(fixture: Fixture, mesh: tuple[Tensor, Tensor], end: str = "") -> tuple[Outputs, Tensor]:
    """Our vertices and faces as `out.vertices` and `out.faces` hold them, and the order of the vertices."""
    names = f"out.vertices{end}", f"out.faces{end}"
    vertices, faces = (fixture.recorded[name] for name in names)
    where = f"{fixture.file} {names[0]}"
    order = vertex_order(mesh[0], vertices, where)
    placed = faces_in_order(renamed(mesh[1], order), faces, where)
    return dict(zip(names, (mesh[0][order], placed), strict=True)), order


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


def encoder_outputs(fixture: Fixture) -> Outputs:
    config = fixture.config
    sizes = EncoderSizes(
        width=config["hidden"],
        layers=config["layers"],
        heads=config["heads"],
        patch=config["patch"],
        grid=config["pos_grid"],
        mlp_ratio=config["mlp_ratio"],
        eps=config["ln_eps"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
    encoder = filled(lambda: ImageEncoder(sizes), fixture.weights, fixture.file)
    ours: Outputs = {}
    for name, images in under("images_", fixture.inputs).items():
        ours |= pictures_outputs(fixture, encoder, name, images, fixture.inputs[f"cameras_{name}"])
    for key in fixture.recorded:
        if size := re.fullmatch(r"out\.pos_embed_(\d+)x(\d+)", key):
            embeddings: Any = encoder.model["embeddings"]
            ours[key] = embeddings.positions(int(size[1]), int(size[2]))
    return ours


def pictures_outputs(fixture: Fixture, encoder: ImageEncoder, name: str, images: Tensor, views: Tensor) -> Outputs:
    """Features of one set of pictures, and the intermediate outputs that are recorded under its name."""
    end, layer = f"_{re.escape(name)}", r"model.encoder.layer.\1"
    parts = (
        (rf"mid\.patch_tokens{end}", "model.embeddings.patch_embeddings.projection"),
        (rf"mid\.embedded{end}", "model.embeddings"),
        (rf"mid\.camera_embedding{end}", "camera_embedder"),
        (rf"mid\.layer(\d+){end}", layer),
        (rf"mid\.attn(\d+){end}", f"{layer}.attention"),
        (rf"mid\.modulation(\d+){end}", f"{layer}.adaLN_modulation"),
    )
    features, ours = outputs_of(encoder, parts, fixture.recorded, lambda: encoder(images, views))
    ours[f"out.features_{name}"] = features
    if (tokens := f"mid.patch_tokens_{name}") in ours:
        ours[tokens] = ours[tokens].flatten(2).mT
    for key in fixture.recorded:
        if view := re.fullmatch(rf"mid\.pixel_values{end}_view(\d+)", key):
            ours[key] = encoder.normalised(images)[:, int(view[1])]
    return ours


def transformer_outputs(fixture: Fixture) -> Outputs:
    config = fixture.config
    sizes = TriplaneSizes(
        width=config["inner_dim"],
        layers=config["num_layers"],
        heads=config["num_heads"],
        image_width=config["image_feat_dim"],
        side=config["triplane_low_res"],
        channels=config["triplane_dim"],
        mlp_ratio=config["mlp_ratio"],
        block_eps=config["block_norm_eps"],
        final_eps=config["final_norm_eps"],
    )
    transformer = filled(lambda: TriplaneTransformer(sizes), fixture.weights, fixture.file)
    parts = (
        (r"mid\.final_norm", "norm"),
        (r"mid\.block(\d+)", r"layers.\1"),
        (r"mid\.block(\d+)_mlp", r"layers.\1.mlp"),
        (r"mid\.block(\d+)_(cross|self)_attn", r"layers.\1.\2_attn"),
    )
    tokens = fixture.inputs["image_feats"]
    planes, ours = outputs_of(transformer, parts, fixture.recorded, lambda: transformer(tokens))
    return ours | {"out.planes": planes}


def _hidden(fixture: Fixture, head: str) -> tuple[int, int]:
    """Width and number of affine layers of a head, by its weights."""
    names = [name for name in fixture.weights if re.search(rf"\.{head}\.\d+\.weight$", name)]
    first = next((name for name in names if name.endswith(".0.weight")), None)
    if first is None:
        raise BadInput("fixture_incomplete", fixture.file, f"no weights of {head}")
    return len(fixture.weights[first]), len(names)


def _density_decoder(fixture: Fixture) -> DensityDecoder:
    def make() -> DensityDecoder:
        return DensityDecoder(fixture.config["triplane_dim"], *_hidden(fixture, "net"))

    return filled(make, under("decoder.", fixture.weights), fixture.file)


def density_outputs(fixture: Fixture) -> Outputs:
    decoder = _density_decoder(fixture)
    planes, points = fixture.inputs["planes"], fixture.inputs["points"]
    raw, colour = decoder(planes, points)
    side, level = fixture.config["grid_size"], fixture.config["mc_threshold"]
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
    if "out.mc_vertices" in fixture.recorded:
        vertices, faces = surface.marching_cubes(grid[0, ..., 0], level)
        vertices = vertices / (side - 1) * 2 - 1
        expected, expected_faces = (fixture.recorded[f"out.mc_{name}"] for name in ("vertices", "faces"))
        order = vertex_order(vertices, expected, fixture.file)
        places = (expected + 1) / 2 * (side - 1)
        ours["out.mc_vertices"] = vertices[order]
        ours["out.mc_faces"] = cell_borders(places, renamed(faces, order))
        fixture.recorded["out.mc_faces"] = cell_borders(places, expected_faces.long())
    return ours


def render_outputs(fixture: Fixture) -> Outputs:
    decoder = _density_decoder(fixture)
    planes, numbers = fixture.inputs["planes"], fixture.inputs["render_cameras"]
    objects, count = numbers.shape[:2]
    jitter, uniform = fixture.inputs["jitter"], fixture.inputs["u"]
    if 2 * jitter.shape[-2] != fixture.config["samples_per_ray"]:
        raise BadInput("fixture_unknown", fixture.file, f"jitter of {jitter.shape[-2]} coarse samples a ray")
    uniform = uniform.unflatten(0, jitter.shape[:2])
    side = fixture.config["render_size"]
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
    if "out.rgb_crop" in fixture.recorded:
        top, left, height, width = fixture.config["crop"]
        part = volume.Window(side, top, left, height, width)
        kept_rays = torch.arange(side * side).reshape(side, side)[top : top + height, left : left + width].flatten()
        rays = volume.rays_of(numbers.flatten(0, 1), part)
        crop, _ = volume.render(decoder, planes, rays, jitter[:, kept_rays], uniform[:, kept_rays])
        ours["out.rgb_crop"] = _as_pictures(crop.colour, objects, count, height)
    return ours


def _as_pictures(values: Tensor, objects: int, count: int, height: int) -> Tensor:
    """(B V, P, C) as (B, V, C, H, W)."""
    return values.mT.unflatten(0, (objects, count)).unflatten(-1, (height, -1))


def field_outputs(fixture: Fixture) -> Outputs:
    channels, cells = fixture.config["triplane_dim"], fixture.config["grid_res"]
    hidden, weights = _hidden(fixture, "net_sdf"), under("decoder.", fixture.weights)
    decoder = filled(lambda: SurfaceDecoder(channels, *hidden), weights, fixture.file)
    planes, points = fixture.inputs["planes"], fixture.inputs["points"]
    lattice = flexicubes.lattice(cells, fixture.config["grid_scale"])
    corners = flexicubes.cell_corners(torch.arange(cells**3), cells)
    sdf, deformation = decoder.fields(planes, lattice.expand(len(planes), -1, -1))
    ours = {
        "mid.plane_features_points": plane_features(planes, points),
        "out.rgb": decoder.colour(planes, points),
        "out.grid_vertices": lattice,
        "out.cube_indices": corners,
        "out.sdf": sdf,
        "out.deformation_raw": deformation,
        "out.deformation": surface.bent(deformation, cells, fixture.config["deformation_multiplier"]),
        "out.weight": decoder.weights(planes[:1], lattice[corners]),
    }
    for sign in ("positive", "negative"):
        if f"out.sdf_all_{sign}_fixed" in fixture.recorded:
            shifted = sdf[:1] + fixture.config[f"bias_shift_all_{sign}"]
            ours[f"out.sdf_all_{sign}_fixed"] = with_planted_surface(shifted, cells)
    return ours


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


def flexicubes_outputs(fixture: Fixture) -> Outputs:
    cells = fixture.config["grid_res"]
    if not torch.equal(fixture.inputs["cube_indices"].long(), flexicubes.cell_corners(torch.arange(cells**3), cells)):
        raise BadInput("fixture_unknown", fixture.file, "in.cube_indices orders the corners of cells otherwise")
    positions = fixture.inputs["grid_vertices"] + fixture.inputs["deformation"]
    ours: Outputs = {}
    for name, sdf in under("sdf_", fixture.inputs).items():
        for end, weights in ((f"_{name}", fixture.inputs["weight"].__getitem__), (f"_{name}_unit_weights", None)):
            if f"out.vertices{end}" in fixture.recorded:
                ours |= mesh_outputs(fixture, flexicubes.decode(sdf, positions, cells, weights), end)[0]
    return ours


def whole_sizes(fixture: Fixture) -> Sizes:
    """Sizes of a whole network of the mesh kind: from the config, and what it leaves out from the weights' shapes."""
    config = fixture.config

    def shape(name: str) -> tuple[int, ...]:
        return tuple(fixture.weights[f"{PREFIX}{name}"].shape)

    vit, width = config["encoder"], config["transformer_dim"]
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
        layers=config["transformer_layers"],
        heads=config["transformer_heads"],
        image_width=vit["hidden"],
        side=config["triplane_low_res"],
        channels=config["triplane_dim"],
        mlp_ratio=shape("transformer.layers.0.mlp.0.weight")[0] // width,
    )
    hidden, depth = _hidden(fixture, "net_sdf")
    return Sizes(encoder, triplane, hidden, depth, cells=config["grid_res"], box=config["grid_scale"])


def whole_outputs(fixture: Fixture) -> Outputs:
    sizes = whole_sizes(fixture)
    network = filled(lambda: InstantMesh(sizes), under(PREFIX, fixture.weights), fixture.file)
    planes = network(fixture.inputs["images"], fixture.inputs["cameras"])
    lattice = flexicubes.lattice(sizes.cells, sizes.box)
    decoder: Any = network.decoder
    sdf, deformation = decoder.fields(planes, lattice.expand(len(planes), -1, -1))
    mesh = surface.mesh_of(network, planes[:1])
    ours, order = mesh_outputs(fixture, mesh)
    colours = surface.colours_at(network, planes[:1], mesh[0])[order].double()
    # A count of 255 stands for a whole interval, and what lies on its border may have been cut off to either side: ours is
    # the count, plus by how much of [0, 1] the colour is beyond the interval.
    count = fixture.recorded["out.vertex_colors"].double()
    beyond = (colours - count / 255).clamp(max=0) + (colours - (count + 1) / 255).clamp(min=0)
    return ours | {
        "out.planes": planes,
        "out.sdf": sdf,
        "out.deformation": surface.bent(deformation, sizes.cells),
        "out.vertex_rgb": colours,
        "out.vertex_colors": count + beyond,
    }


def camera_outputs(fixture: Fixture) -> Outputs:
    config, ours = fixture.config, dict[str, Tensor]()
    azimuths = torch.arange(config["M"]) * 360.0 / config["M"]
    circle = orbit(azimuths, torch.full_like(azimuths, config["elevation"]), config["radius"], config["fov"])
    poses = cameras.opengl_poses(circle)
    for name in fixture.recorded:
        if rig := re.fullmatch(r"out\.zero123plus_16_r([\d.]+)_fov([\d.]+)", name):
            ours[name] = cameras.input_numbers(cameras.demo_rig(float(rig[1]), float(rig[2])))[None]
        elif fov := re.fullmatch(r"out\.projection_fov([\d.]+)", name):
            ours[name] = mesh_projection(float(fov[1]))
    known = {
        "out.circular_c2w": poses,
        "out.circular_w2c": torch.linalg.inv(poses.double()).float(),
        "out.K_fov": intrinsics_from_fov(math.radians(config["fov"])),
    }
    return ours | {name: value for name, value in known.items() if name in fixture.recorded}


def mesh_projection(fov: float) -> Tensor:
    """(4, 4) of the published mesh renderer: OpenGL clip space with y down, a field of view of `fov` degrees."""
    focal = 1 / math.tan(math.radians(fov) / 2)
    depth = MESH_FAR - MESH_NEAR
    third = [0, 0, -(MESH_FAR + MESH_NEAR) / depth, -2 * MESH_FAR * MESH_NEAR / depth]
    return torch.tensor([[focal, 0, 0, 0], [0, -focal, 0, 0], third, [0, 0, -1, 0]])


KINDS = {
    f"sd.{PREFIX}transformer.pos_embed": whole_outputs,
    "sd.model.embeddings.cls_token": encoder_outputs,
    "sd.pos_embed": transformer_outputs,
    "in.render_cameras": render_outputs,
    "sd.decoder.net.0.weight": density_outputs,
    "sd.decoder.net_sdf.0.weight": field_outputs,
    "in.cube_indices": flexicubes_outputs,
    "out.circular_c2w": camera_outputs,
}
