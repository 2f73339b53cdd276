"""CRM against recorded outputs of its public modules: arrangement, U-Net, decoding.

In: one fixture. Out: every recorded output, computed anew. Convention: a mesh is brought into the recorded order. Trade: an
intermediate output stored at every fourth pixel is told by its shape. Verified by planted breaks in the tests.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.fixtures import Fixture, faces_in_order, outputs_of, renamed, vertex_order
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
    x, time = fixture.inputs["x"], fixture.inputs["t"]
    triplane, ours = outputs_of(network, PARTS, fixture.recorded, lambda: network(x, time))
    return {name: like(tensor, fixture.recorded[name]) for name, tensor in ours.items()} | {"out.triplane": triplane}


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
    recorded = fixture.recorded
    order = vertex_order(vertices, recorded["out.mesh_verts"], fixture.file)
    exported = vertices[:, [0, 2, 1]] * vertices.new_tensor([1, 1, -1])  # of the OBJ: y up, faces turned outwards
    export_order = vertex_order(exported, recorded["out.export_verts"], fixture.file)
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
        "out.mesh_verts": vertices[order],
        "out.mesh_faces": faces_in_order(renamed(faces, order), recorded["out.mesh_faces"], fixture.file),
        "out.mesh_colours": colours_at(decoder, triplane, vertices)[order],
        "out.export_verts": exported[export_order],
        "out.export_faces": faces_in_order(
            renamed(faces.flip(-1), export_order), recorded["out.export_faces"], fixture.file
        ),
    }


KINDS = {"in.rgb": check_arrangement, "in.x": check_unet, "in.triplane": check_decoding}
