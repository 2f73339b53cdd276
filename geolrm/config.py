"""params.yaml as frozen, typed sections, one per DVC stage.

In: a params file (the project's `params.yaml` or a preset). Out: `Params`, read-only. Convention: an unknown key, a missing
key or a value of the wrong type is an error that names the key, the file and the nearest valid key; nothing has a default,
so a params file says everything that shapes a result, but for the named choices of the model: the first value of each is the
model of this project, and only a departure from it is written down (an ablation names one, `model/released.py` sets all that
the public code makes); likewise the variety of procedural objects, which starts from none. Trade: pydantic's strict mode (1 is
no float for it, so `_Number` admits integers where a real number is meant). Verified by parsing every preset and by planting
each kind of mistake.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from geolrm.failures import BadInput

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1, strict=False)]
Positive = Annotated[float, Field(gt=0, strict=False)]
NotNegative = Annotated[float, Field(ge=0, strict=False)]
Precision = Literal["auto", "bf16", "fp32"]  # of matrix products: bf16 where the device has it, or always, or never


class Section(BaseModel):
    """A frozen part of params.yaml that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Variety(Section):
    """What procedural objects have beyond solids united and carved: shares, none unless a preset asks for it."""

    vessels: Share = 0.0  # of the objects: bowls, cups, baskets, boxes without lids, bottles
    profiles: Share = 0.0  # of the solids: bevelled, turned or tapered
    lettering: Share = 0.0  # of the textures: with lines of text and bars on panels of several sizes
    lights: Share = 0.0  # of the objects: under a light of their own, half of them with highlights
    cubes: Share = 0.0  # of the objects: as large as the cube [-0.5, 0.5]^3 allows, as scans are, not the ball in it


class Procedural(Section):
    """Procedural objects: how many of each split, and how they are drawn."""

    train: Count
    val: Count
    test: Count
    resolution: Count  # pixels a side
    supersampling: Count  # rays a pixel along each side
    workers: Count
    seed: int
    variety: Variety = Variety()


class Meshes(Section):
    """Rendering of scanned or modelled meshes."""

    resolution: Count
    supersampling: Count
    workers: Count
    max_drop_rate: Share


class Shard(Section):
    """Object tars to WebDataset shards."""

    voxel_resolution: Count
    objects_per_shard: Count
    surface_points: Count
    workers: Count
    max_drop_rate: Share


class Encoder(Section):
    """Hierarchical image encoder (paper, 3.2, equations 1 and 2)."""

    dinov2: Literal["scratch", "pretrained"]
    dinov2_width: Count
    dinov2_layers: Count
    dinov2_heads: Count
    channels: Count  # of both feature maps
    fit: Literal["resize", "crop"] = "resize"  # pictures whose sides the strides do not divide
    position_embedding: Literal["size", "factor"] = "size"  # resized to the patches, or scaled by a factor
    low_colour: Literal["signed", "imagenet"] = "signed"  # of the low level: in [-1, 1], or ImageNet's statistics
    rays: Literal["unit", "square"] = "unit"  # unit directions, or those of a square camera at unit depth
    norm: Literal["layer", "batch"] = "layer"  # of both feature maps


class Transformer(Section):
    """Geometry-aware transformer (paper, 3.2, equations 3 to 6)."""

    width: Count
    layers: Count
    heads: Count
    sampling_points: Count  # of deformable attention, per head and level
    token_input: Literal["fourier", "raw"] = "fourier"
    positions: Literal["real", "index"] = "real"  # of 3D RoPE: exact, or cut down to cells of the next two
    index_grid: Count = 128  # cells along each axis
    index_scale: Positive = 0.5  # half the side of the cube that they span, object units
    self_attention: Literal["tokens", "heads"] = "tokens"  # across tokens, or across the heads of one token
    projection: Literal["seeing", "every"] = "seeing"  # views with a say: those that see the point, or all
    residual: Literal["stream", "normalised"] = "stream"  # what cross-attention is added to
    feed_forward_multiple: Count = 64  # the hidden width is rounded up to one

    @model_validator(mode="after")
    def _heads_fit(self) -> Transformer:
        if self.width % self.heads or (self.width // self.heads) % 6:
            raise ValueError(f"width / heads must be a multiple of 6 (3D RoPE), got {self.width} / {self.heads}")
        return self


class Optimisation(Section):
    """The training loop of one stage (paper, Table A)."""

    steps: Count
    batch: Count  # objects at a time, shared by all processes; a step takes `accumulate` times as many
    accumulate: Count
    image_size: Count
    views: Count  # drawn per object
    min_inputs: Count
    max_inputs: Count  # of the drawn views; the rest are targets
    learning_rate: Positive
    weight_decay: NotNegative
    warmup: int
    clip: Positive
    validate_every: Count
    checkpoint_every: Count
    seed: int
    precision: Precision = "auto"

    @model_validator(mode="after")
    def _inputs_fit(self) -> Optimisation:
        if not self.min_inputs <= self.max_inputs < self.views:
            raise ValueError(
                f"need min_inputs <= max_inputs < views, got {self.min_inputs}, {self.max_inputs}, {self.views}"
            )
        return self


class OccupancyLossWeights(Section):
    """Stage 1 losses (paper, 3.3): cross-entropy and the two terms of the scene-class affinity."""

    bce: NotNegative
    geometric: NotNegative
    semantic: NotNegative


class Proposal(Section):
    """Stage 1: images to occupancy."""

    encoder: Encoder
    transformer: Transformer
    coarse_resolution: Count  # tokens along each axis
    voxel_resolution: Count
    grid: Literal["centres", "corners"] = "centres"  # coarse anchors: in their cells, or from face to face of the cube
    carving: Literal["cues", "none"] = "cues"  # added to the logits
    losses: OccupancyLossWeights
    optimisation: Optimisation

    @model_validator(mode="after")
    def _grids_fit(self) -> Proposal:
        if self.voxel_resolution % self.coarse_resolution:
            raise ValueError(f"voxel_resolution {self.voxel_resolution} is no multiple of {self.coarse_resolution}")
        return self


class RenderingLossWeights(Section):
    """Stage 2 losses (paper, equations 10 to 13)."""

    mse: NotNegative
    lpips: NotNegative
    mask: NotNegative
    depth: NotNegative


class Reconstruction(Section):
    """Stage 2: anchor points and images to Gaussians."""

    encoder: Encoder
    transformer: Transformer
    max_anchors: Count
    gaussians_per_token: Count
    max_offset: Positive  # object units, along each axis, both ways (one_sided: one way)
    max_scale: Positive  # object units
    grid: Literal["centres", "corners"] = "centres"  # where in its voxel an anchor point lies
    subset: Literal["even", "random"] = "even"  # of the voxels where there are more than max_anchors
    padding: Literal["none", "origin"] = "none"  # up to max_anchors
    offsets: Literal["symmetric", "one_sided"] = "symmetric"
    carving: Literal["cues", "none"] = "cues"  # where the tokens start from, beside their place
    colours: Literal["pictures", "tokens"] = "pictures"  # start from what the pictures show, or from the token alone
    losses: RenderingLossWeights
    optimisation: Optimisation


class Mesh(Section):
    """Gaussians to mesh by TSDF fusion of rendered depth."""

    resolution: Count
    cameras: Count
    image_size: Count


class Sweep(Section):
    """The sweep over input view counts."""

    methods: list[str]
    views: list[Count]
    inputs: list[Literal["orbit", "nested", "random"]]  # sets of input views
    objects: Count
    split: str
    image_size: Count
    max_anchors: Count  # at test; a network trained with fewer takes more
    lpips: Literal["auto", "required"]
    mesh: Mesh
    full_geometry: bool  # also at 100,000 points and on the visible surface
    artefacts: int  # objects, the first of the split, whose pictures, film, PLY and GLB are kept
    seed: int


class Params(Section):
    """A whole params file."""

    preset: str
    procedural: Procedural
    meshes: Meshes
    shard: Shard
    proposal: Proposal
    reconstruction: Reconstruction
    sweep: Sweep

    @model_validator(mode="after")
    def _labels_fit(self) -> Params:
        if self.shard.voxel_resolution != self.proposal.voxel_resolution:
            raise ValueError(
                f"shard.voxel_resolution {self.shard.voxel_resolution} is the label of "
                f"proposal.voxel_resolution {self.proposal.voxel_resolution}: they must be equal"
            )
        return self


def _keys_at(path: tuple[str | int, ...]) -> list[str]:
    section: Any = Params
    for part in path:
        field = section.model_fields.get(part) if isinstance(part, str) else None
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        section = field.annotation
    return list(section.model_fields)


def parse_params(data: Any, where: object) -> Params:
    """Parse the content of a params file; `where` names it in errors."""
    if not isinstance(data, dict):
        raise BadInput("params_not_a_mapping", where, "expected sections with keys", "start from a file in presets/")
    try:
        return Params.model_validate(data)
    except ValidationError as error:
        problems = []
        for entry in error.errors():
            key = ".".join(map(str, entry["loc"])) or "(the file)"
            if entry["type"] == "extra_forbidden":
                near = difflib.get_close_matches(str(entry["loc"][-1]), _keys_at(entry["loc"][:-1]), n=1, cutoff=0.0)
                problems.append(f"unknown key '{key}'" + (f", nearest valid key '{near[0]}'" if near else ""))
            elif entry["type"] == "missing":
                problems.append(f"missing key '{key}'")
            else:
                message = entry["msg"].removeprefix("Value error, ")
                problems.append(f"key '{key}': {message}, got {entry['input']!r:.60}")
        raise BadInput("params_key", where, "; ".join(problems), "compare with the files in presets/") from error


def load_params(path: Path | str = "params.yaml") -> Params:
    """Read and check a params file."""
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        remedy = "run from the repository's root, or `geolrm preset smoke`"
        raise BadInput("params_missing", path, "no such file", remedy) from error
    except yaml.YAMLError as error:
        raise BadInput("params_not_yaml", path, str(error).replace("\n", " ")) from error
    return parse_params(data, path)
