"""The public code's model: its choices, its published weights, and the proof that they are reproduced.

In: settings of any size, or a checkpoint of the public code (alibaba-yuanjing-aigclab/GeoLRM, commit da3f30f). Out: the same
settings with every choice made as there (`released`), a `GeoLRM` with those weights (`load_released_checkpoint`), a table of
differences against outputs of the public modules (`python -m geolrm.model.released check FOLDER`). Convention: the choices are
fields of params.yaml's sections, each with its alternative beside the default in the module concerned, so any one of them
alone is an ablation; docs/released-vs-paper.md says what each does. Trade: what the public code computes without autocast,
which is what its inference runs; its own names are kept on disk, ours in memory. Verified by parity fixtures, and by the
names and shapes of all 920 published tensors.
"""

from __future__ import annotations

import pickle
import struct
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from geolrm.config import Proposal, Reconstruction
from geolrm.failures import BadInput
from geolrm.model.geolrm import GeoLRM
from geolrm.model.proposal import ProposalNetwork
from geolrm.model.reconstruction import ReconstructionNetwork
from geolrm.tensors import read_tensors, require_shapes, shapes_of, write_tensors

# --- its choices ---

ENCODER = {"fit": "crop", "position_embedding": "factor", "low_colour": "imagenet", "rays": "square", "norm": "batch"}
TRANSFORMER = {
    "token_input": "raw",
    "positions": "index",
    "self_attention": "heads",  # in float32; its half-precision branch attends across tokens
    "projection": "every",
    "residual": "normalised",
    "feed_forward_multiple": 256,
}
PROPOSAL = {"grid": "corners", "carving": "none"}
RECONSTRUCTION = {
    "grid": "corners",
    "subset": "random",
    "padding": "origin",
    "offsets": "one_sided",
    "carving": "none",
    "colours": "tokens",
}


def released_proposal(settings: Proposal) -> Proposal:
    """The proposal network of these sizes as the public code has it."""
    data = settings.model_dump()
    positions = {"index_grid": settings.voxel_resolution, "index_scale": 0.5}
    data |= PROPOSAL | {"encoder": data["encoder"] | ENCODER}
    data["transformer"] |= TRANSFORMER | positions
    return Proposal.model_validate(data)


def released_reconstruction(settings: Reconstruction) -> Reconstruction:
    """The reconstruction network of these sizes as the public code's inference has it (its training has scale 0.5)."""
    data = settings.model_dump()
    data |= RECONSTRUCTION | {"encoder": data["encoder"] | ENCODER}
    data["transformer"] |= TRANSFORMER | {"index_grid": 128, "index_scale": 1.0}
    return Reconstruction.model_validate(data)


_ENCODER_SIZE = {"dinov2": "scratch", "dinov2_width": 768, "dinov2_layers": 12, "dinov2_heads": 12, "channels": 384}
_OPTIMISATION = {"image_size": 448, "views": 8, "min_inputs": 1, "max_inputs": 7, "weight_decay": 0.05, "seed": 42}
_INTERVALS = {"validate_every": 250, "checkpoint_every": 250}
PUBLISHED_PROPOSAL = released_proposal(
    Proposal.model_validate(
        {
            "encoder": _ENCODER_SIZE,
            "transformer": {"width": 384, "layers": 6, "heads": 16, "sampling_points": 8},
            "coarse_resolution": 16,
            "voxel_resolution": 128,
            "losses": {"bce": 1.0, "geometric": 1.0, "semantic": 0.0},
            "optimisation": _OPTIMISATION
            | _INTERVALS
            | {"steps": 50_000, "batch": 2, "accumulate": 1, "learning_rate": 2e-4, "warmup": 500, "clip": 10.0},
        }
    )
)
PUBLISHED_RECONSTRUCTION = released_reconstruction(
    Reconstruction.model_validate(
        {
            "encoder": _ENCODER_SIZE,
            "transformer": {"width": 768, "layers": 16, "heads": 16, "sampling_points": 8},
            "max_anchors": 8192,
            "gaussians_per_token": 32,
            "max_offset": 0.2,
            "max_scale": 0.02,
            "losses": {"mse": 4.0, "lpips": 2.0, "mask": 1.0, "depth": 0.2},
            "optimisation": _OPTIMISATION
            | _INTERVALS
            | {"steps": 12_500, "batch": 1, "accumulate": 8, "learning_rate": 1e-4, "warmup": 1500, "clip": 4.0},
        }
    )
)

# --- its weights ---

# Ours to the public code's, applied in this order. Within DINOv2 both are the published weights' (`encoder.PUBLISHED_NAMES`).
NAMES = (
    ("proposal.", "serializer."),
    ("reconstruction.", "lrm_generator."),
    ("encoder.dinov2.", "encoder.model."),
    ("encoder.high.", "encoder.deconv.0."),
    ("encoder.high_norm.", "encoder.deconv.1."),
    ("encoder.low.", "encoder.low_level_encoder.0."),
    ("encoder.low_norm.", "encoder.low_level_encoder.1."),
    ("transformer.token_input.shared", "transformer.query_token"),
    ("transformer.blocks.", "transformer.layers."),
    ("self_attention.output.", "self_attention.wo."),
    ("cross_attention.offsets.", "cross_attention.deformable_attention.sampling_offsets."),
    ("cross_attention.weights.", "cross_attention.deformable_attention.attention_weights."),
    ("cross_attention.values.", "cross_attention.deformable_attention.value_proj."),
    ("cross_attention.view_logit.", "cross_attention.cross_view_weight."),
    ("cross_attention.output.", "cross_attention.output_proj."),
    ("feed_forward.gate.", "feed_forward.w1."),
    ("feed_forward.down.", "feed_forward.w2."),
    ("feed_forward.up.", "feed_forward.w3."),
    ("self_norm.", "self_attention_norm."),
    ("cross_norm.", "cross_attention_norm."),
    ("feed_norm.", "ffn_norm."),
    ("upsampling.", "upsample."),
    ("head.hidden.", "renderer.latent_decoder.0."),
    ("head.output.", "renderer.latent_decoder.2."),
)
PACKED = "queries_keys_values", ("wq", "wk", "wv")  # one tensor of ours, three of theirs
# In the published file without a part in its results: a bias that the softmax over views cancels, and a token of masked
# pretraining. They must be there, and are not loaded. Each with the tensor beside it, whose shape tells its own.
UNUSED = (
    ("cross_view_weight.weight", "cross_view_weight.bias", slice(None, 1)),
    ("embeddings.cls_token", "embeddings.mask_token", slice(1, None)),
)
IGNORED = "lpips."  # the training's LPIPS network, saved with it
DAMAGED = (  # what torch's reader raises on files cut short or with bytes changed at random
    *(pickle.UnpicklingError, struct.error, RuntimeError, EOFError, OSError),
    *(ValueError, LookupError, TypeError, AttributeError, AssertionError),
)


def _sources(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Public names and shapes of one tensor of ours."""
    for ours, theirs in NAMES:
        name = name.replace(ours, theirs)
    if PACKED[0] in name:
        return {name.replace(PACKED[0], part): (shape[0] // 3, *shape[1:]) for part in PACKED[1]}
    if name.endswith("value_proj.weight"):  # theirs is linear, ours a convolution of one pixel
        return {name: shape[:2]}
    return {name: shape}


def _all_sources(network: nn.Module, part: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """For each tensor of ours the public names and shapes; `part` is the network's name within the whole, "" for the whole."""
    sources = {}
    for name, tensor in network.state_dict().items():
        public = _sources(f"{part}.{name}" if part else name, tuple(tensor.shape))
        sources[name] = {key.partition(".")[2] if part else key: shape for key, shape in public.items()}
    return sources


def public_shapes(network: nn.Module, part: str = "") -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a public checkpoint of this network holds, LPIPS apart.

    Args:
        network: a `GeoLRM` or a part of it, with the public code's choices.
        part: the part's name within the whole (`encoder`, `transformer`, `cross_attention`, `head`); not in the names.
    """
    shapes = {name: shape for source in _all_sources(network, part).values() for name, shape in source.items()}
    for used, unused, axes in UNUSED:
        shapes |= {
            name.replace(used, unused): shape[axes] for name, shape in list(shapes.items()) if name.endswith(used)
        }
    return shapes


def fill(network: nn.Module, tensors: dict[str, Tensor], where: object, part: str = "") -> None:
    """Load public tensors. Raises `BadInput` naming every tensor that is missing, extra or of another shape."""
    require_shapes(shapes_of(tensors), public_shapes(network, part), where)
    own = network.state_dict()
    filled = {}
    for name, source in _all_sources(network, part).items():
        parts = [tensors[key] for key in source]
        filled[name] = (torch.cat(parts) if len(parts) > 1 else parts[0]).reshape(own[name].shape)
    network.load_state_dict(filled)


def read_public(path: Path | str) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of a public checkpoint, Lightning's or safetensors, by public name; and the names that are ignored.

    Raises:
        BadInput: `checkpoint_missing`; `checkpoint_unreadable`, also where the file holds more than tensors and plain values,
            which could run code when read.
    """
    path = Path(path)
    if not path.is_file():
        remedy = "download the published checkpoint, or name the file that `geolrm checkpoint convert` wrote"
        raise BadInput("checkpoint_missing", path, "no such file", remedy)
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{":  # a safetensors file: eight bytes of length, then JSON
        tensors = read_tensors(path)
    else:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=start.startswith(b"PK"))
        except DAMAGED as error:
            detail = str(error).strip().partition("\n")[0]
            remedy = (
                "it is cut short, of another kind, or holds objects: save its `state_dict` alone where you trust it"
            )
            raise BadInput("checkpoint_unreadable", path, detail, remedy) from error
        tensors = content.get("state_dict", content) if isinstance(content, dict) else {}
        if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            raise BadInput("checkpoint_unreadable", path, "holds no `state_dict` of named tensors")
    ignored = [name for name in tensors if name.startswith(IGNORED)]
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(IGNORED)}, ignored


def load_released_checkpoint(
    path: Path | str,
    proposal: Proposal = PUBLISHED_PROPOSAL,
    reconstruction: Reconstruction = PUBLISHED_RECONSTRUCTION,
) -> GeoLRM:
    """The public code's model with its published weights, in eval mode, float32.

    Args:
        path: Lightning checkpoint, or the safetensors file of `convert`.
        proposal: settings, from `released_proposal`.
        reconstruction: settings, from `released_reconstruction`.

    Raises:
        BadInput: as `read_public`; `checkpoint_mismatch` naming every tensor that is missing, extra or of another shape.
    """
    tensors, _ = read_public(path)
    model = GeoLRM(ProposalNetwork(proposal, pretrained=False), ReconstructionNetwork(reconstruction, pretrained=False))
    fill(model, tensors, path)
    return model.eval()


def convert(
    source: Path,
    target: Path,
    proposal: Proposal = PUBLISHED_PROPOSAL,
    reconstruction: Reconstruction = PUBLISHED_RECONSTRUCTION,
) -> tuple[list[str], list[str]]:
    """Write a public checkpoint as safetensors under its own names; what was written and what was ignored, by name.

    Raises:
        BadInput: as `load_released_checkpoint`; then nothing is written.
    """
    tensors, ignored = read_public(source)
    with torch.device("meta"):
        expected = GeoLRM(
            ProposalNetwork(proposal, pretrained=False), ReconstructionNetwork(reconstruction, pretrained=False)
        )
    require_shapes(shapes_of(tensors), public_shapes(expected), source)
    write_tensors(target, tensors)
    return list(tensors), ignored


def main(arguments: list[str]) -> int:
    """`check FOLDER`: exit status 0 where every output of every parity fixture is reproduced."""
    from geolrm.released.check import check  # it stands above the model and is only wanted here

    if len(arguments) != 2 or arguments[0] != "check":
        print("usage: python -m geolrm.model.released check FOLDER", file=sys.stderr)
        return 2
    try:
        return check(Path(arguments[1]))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
