"""GeoLRM as its public code computes it, with its published weights: the *released* mode beside the default one."""

from __future__ import annotations

from pathlib import Path

from benchmarks.methods import Context, Method, Spec
from benchmarks.planted import Planted
from benchmarks.published import UNTRAINED, VARIABLE, published_folder
from benchmarks.stages import name_stage
from geolrm.failures import BadInput
from geolrm.files import sha256_of
from geolrm.gaussians import Gaussians
from geolrm.model.geolrm import GeoLRM
from geolrm.model.proposal import ProposalNetwork
from geolrm.model.reconstruction import ReconstructionNetwork
from geolrm.model.released import PUBLISHED_PROPOSAL, PUBLISHED_RECONSTRUCTION, load_released_checkpoint
from geolrm.views import Views

FILES = ("geolrm.safetensors", "geolrm.ckpt")  # what `geolrm checkpoint convert` wrote, else the published file itself
SPEC = Spec(
    what="GeoLRM's public code, faults included (docs/released-vs-paper.md), with the published weights, in float32",
    inputs="any number of posed pictures, composited on white; what 14 pixels do not divide is cut off",
    cameras="exact, OpenCV camera-to-world, object frame",
    licence="code of this repository Apache-2.0; public code and weights: as their owners say",
    weights=f"the published checkpoint as {' or '.join(FILES)} in the folder {VARIABLE}",
    paper="those of `geolrm`: its tables were made with this code, as far as is known",
)


def weights() -> Path:
    """The published checkpoint. Raises `BadInput` (`weights_missing`) where it is not here."""
    folder = published_folder()
    found = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if found is None:
        remedy = f"put it there as {FILES[1]}, or set {VARIABLE} to the folder that holds it"
        raise BadInput("weights_missing", folder / FILES[1], "the published checkpoint is not here", remedy)
    return found


def method(model: GeoLRM, checkpoint: str, max_anchors: int) -> Method:
    """The method of a model in released mode, in eval mode, on its device."""
    name_stage("proposal", model.proposal)
    name_stage("reconstruction", model.reconstruction)

    def reconstruct(views: Views) -> Gaussians:
        return model.reconstruct(views, max_anchors, "fp32")

    return Method(reconstruct, checkpoint)


def load(context: Context) -> Method:
    """Raises `BadInput` where the checkpoint is missing, damaged, or not exactly GeoLRM's."""
    file = weights()
    model = load_released_checkpoint(file).to(context.device)
    return method(model, sha256_of(file), context.params.sweep.max_anchors)


def untrained(context: Context) -> Method:
    """Random weights in the published sizes, for rows of costs alone: what it proposes is a sphere, whatever it sees."""
    proposal = Planted(ProposalNetwork(PUBLISHED_PROPOSAL, pretrained=False))
    model = GeoLRM(proposal, ReconstructionNetwork(PUBLISHED_RECONSTRUCTION, pretrained=False))  # type: ignore[arg-type]
    return method(model.eval().to(context.device), UNTRAINED, context.params.sweep.max_anchors)
