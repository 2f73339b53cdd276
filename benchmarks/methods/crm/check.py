"""CRM against recorded outputs of its public modules: arrangement, U-Net, decoding.

In: one fixture. Out: every recorded output, computed anew. Convention: meshes have no order, so ours is brought into the
recorded one: vertices by nearness, faces by their smallest vertex. Trade: an intermediate output stored at every fourth pixel
is told by its shape. Verified by planted breaks in the tests.
"""

from __future__ import annotations

import re

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from benchmarks.fixtures import Fixture, outputs_of
from benchmarks.flexicubes import cell_corners, lattice
from benchmarks.methods.crm.faces import TIME, WIDE_ORDER, alphas_cumprod, arranged, noised
from benchmarks.methods.crm.network import PICTURE_CHANNELS, Config, Decoder, TriplaneUNet, features_at
from benchmarks.methods.crm.surface import colours_at, field, mesh_of, weights_of
from benchmarks.published import filled

PARTS = (  # names of intermediate outputs, and the parts of the network that they are of
    (r"mid\.(time_proj|time_embedding|mid_block)", r"unet.\1"),
    (r"mid\.(down|up)(\d+)", r"unet.\1_blocks.\2"),
    (r"mid\.(down|up)(\d+)_resnet(\d+)", r"unet.\1_blocks.\2.resnets.\3"),
    (r"mid\.(down|up)(\d+)_attn(\d+)", r"unet.\1_blocks.\2.attentions.\3"),
)


def check(fixture: Fixture) -> dict[str, Tensor]:
    """The recorded outputs, computed anew. Raises ValueError for a file that is of no known kind."""
    if "rgb" in fixture.inputs:
        return check_arrangement(fixture)
    if "x" in fixture.inputs:
        return check_unet(fixture)
    if "triplane" in fixture.inputs:
        return check_decoding(fixture)
    raise ValueError(f"{fixture.file}: neither of the arrangement, nor of the U-Net, nor of the decoding")


def check_arrangement(fixture: Fixture) -> dict[str, Tensor]:
    """From wide pictures to the network's input."""

    def faces(wide: Tensor) -> Tensor:
        ordered = torch.empty(6, 3, len(wide), len(wide))
        ordered[list(WIDE_ORDER)] = (wide.float() / 255).unflatten(1, (6, -1)).permute(1, 3, 0, 2)
        return ordered

    picture = arranged(faces(fixture.inputs["rgb"]), faces(fixture.inputs["ccm"]))[None]
    left = alphas_cumprod()[TIME]
    return {
        "const.alphas_cumprod": alphas_cumprod(),
        "out.arranged": picture,
        "out.noised": noised(picture, fixture.recorded["mid.noise"]),
        # the draw is given; what the recorded input has of it beside our picture must be it
        "mid.noise": (fixture.recorded["out.noised"] - left.sqrt() * picture) / (1 - left).sqrt(),
    }


def config_of(fixture: Fixture) -> Config:
    sizes = fixture.config
    return Config(
        side=sizes["sample_size"][0],
        channels=tuple(sizes["block_out_channels"]),
        down_attention=tuple("Attn" in kind for kind in sizes["down_block_types"]),
        up_attention=tuple("Attn" in kind for kind in sizes["up_block_types"]),
        learned=sizes["in_channels"] - PICTURE_CHANNELS,
        features=sizes["out_channels"],
        layers=sizes["layers_per_block"],
        groups=sizes["norm_num_groups"],
    )


def check_unet(fixture: Fixture) -> dict[str, Tensor]:
    """The triplane and intermediate outputs."""
    network = filled(lambda: TriplaneUNet(config_of(fixture)), fixture.weights, fixture.file)
    parts = {
        name: re.sub(pattern, part, name)
        for name in fixture.recorded
        for pattern, part in PARTS
        if re.fullmatch(pattern, name)
    }
    results: list[Tensor] = []
    ours = outputs_of(network, parts, lambda: results.append(network(fixture.inputs["x"], fixture.inputs["t"])))
    return {name: like(tensor, fixture.recorded[name]) for name, tensor in ours.items()} | {"out.triplane": results[0]}


def like(ours: Tensor, recorded: Tensor) -> Tensor:
    """Every n-th row and column where the recorded one has fewer by that factor."""
    if ours.ndim != 4 or recorded.ndim != 4:
        return ours
    rows, columns = (-(-ours.shape[axis] // recorded.shape[axis]) for axis in (-2, -1))
    return ours[..., ::rows, ::columns]


def check_decoding(fixture: Fixture) -> dict[str, Tensor]:
    """Heads at points and on the lattice, and the mesh."""
    sizes, triplane, points = fixture.config, fixture.inputs["triplane"][0], fixture.inputs["query"][0]
    cells, radius, scale = sizes["tet_grid_size"], sizes["radius"], sizes["scale"]
    decoder = filled(lambda: Decoder(sizes["channels"], sizes["hidden"]), fixture.weights, fixture.file)
    seen = features_at(triplane, points)
    found = field(decoder, triplane, cells, radius, scale)
    every = torch.arange(cells**3)
    vertices, faces = mesh_of(decoder, triplane, cells, radius, scale)
    place, numbered = in_order_of(vertices, faces, fixture.recorded["out.mesh_verts"])
    exported, export_faces = to_export(vertices, faces)
    export_place, export_numbered = in_order_of(exported, export_faces, fixture.recorded["out.export_verts"])
    for name in ("out.mesh_faces", "out.export_faces"):
        fixture.recorded[name] = without_order(fixture.recorded[name])
    return {
        "const.grid_verts": lattice(cells, 2.0),
        "const.grid_cubes": cell_corners(every, cells),
        "mid.features": seen[None],
        "out.sdf_mlp": decoder.sdfMlp(seen)[None],
        "out.rgb_mlp": decoder.rgbMlp(seen)[None],
        "mid.weight": weights_of(decoder, triplane, cells, every)[None],
        "mid.sdf": found.distance[None],
        "mid.deformation": found.deformation[None],
        "mid.verts_deformed": found.positions,
        "out.mesh_verts": vertices[place],
        "out.mesh_faces": numbered,
        "out.mesh_colours": colours_at(decoder, triplane, vertices)[place],
        "out.export_verts": exported[export_place],
        "out.export_faces": export_numbered,
    }


def to_export(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """The OBJ's frame, y up, and faces turned outwards."""
    x, y, z = vertices.unbind(-1)
    return torch.stack([x, z, -y], dim=-1), faces.flip(-1)


def in_order_of(vertices: Tensor, faces: Tensor, recorded: Tensor) -> tuple[Tensor, Tensor]:
    """For each recorded vertex the nearest of ours; our faces by recorded vertices, in no order.

    Raises ValueError where the two have not as many vertices.
    """
    if vertices.shape != recorded.shape:
        raise ValueError(f"the mesh has {len(vertices)} vertices, the recorded one {len(recorded)}")
    nearest = torch.from_numpy(cKDTree(vertices.numpy()).query(recorded.numpy())[1])
    back = torch.from_numpy(cKDTree(recorded.numpy()).query(vertices.numpy())[1])
    return nearest, without_order(back[faces])


def without_order(faces: Tensor) -> Tensor:
    """Faces (F, 3) each from its smallest vertex on, sorted; their orientation stays."""
    first = faces.long().argmin(dim=1, keepdim=True)
    turned = faces.long().gather(1, (first + torch.arange(3)) % 3)
    rows = sorted(turned.tolist())
    return torch.tensor(rows, dtype=torch.long).reshape(-1, 3)
