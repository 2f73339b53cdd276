"""The trained weights that come with the package.

In: the name of a set of weights. Out: the whole model, ready to use; and from two trained checkpoints such a set. Convention: a
set is a card, `NAME.md`, and a folder beside it laid out as results are (`NAME/<stage>/checkpoint.safetensors` + `.json`), so
that what reads a training reads a set; tensors are float16, computing is in float32 as ever; configuration, hashes and
where the weights come from are in the JSON, so that no params file has a part in loading. Trade: 11 bits of mantissa in place of
24 for half the bytes; what that costs in decibels stands in the card. Verified by rendering from both, by planted damage, by sets
that are too large, and from an installed wheel.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from geolrm.failures import BadInput
from geolrm.files import sha256_of
from geolrm.model.geolrm import GeoLRM
from geolrm.training.checkpoint import load_geolrm, save_checkpoint

ROOT = Path(__file__).parent
LIMIT_BYTES = 22 << 20  # of the weights of a set, which git and every wheel carry
STAGES = ("proposal", "reconstruction")
RESTORE = (
    "they are files of the package: `git checkout -- geolrm/pretrained` brings them back in a clone, and elsewhere "
    "installing it again; `geolrm checkpoint publish` makes a set from a training"
)


def names() -> list[str]:
    """The sets that there are, by their cards."""
    return sorted(card.stem for card in ROOT.glob("*.md"))


def folder_of(name: str) -> Path:
    """The folder of a set. Raises `BadInput` (`pretrained_unknown`) with the nearest name and all that there are."""
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        detail = "no trained weights of this name" + (f", the nearest is '{near[0]}'" if near else "")
        raise BadInput("pretrained_unknown", name, detail, f"there are: {', '.join(known) or 'none'}")
    return ROOT / name


def load_set(name: str) -> tuple[GeoLRM, dict[str, Any]]:
    """The model of a set, and {stage: content of its checkpoint.json}. Raises as `load_pretrained`."""
    folder = folder_of(name)
    try:
        return load_geolrm(folder)
    except BadInput as error:
        raise BadInput(error.reason, error.where, error.detail, RESTORE) from error


def load_pretrained(name: str) -> GeoLRM:
    """Trained weights that come with the package, both networks in one model.

        model = geolrm.load_pretrained("small")
        gaussians = model.reconstruct(views)  # `views`: geolrm.views.Views, one picture or more
        gaussians.save_ply("object.ply")

    Args:
        name: of a set; its card `geolrm/pretrained/NAME.md` says what it was trained on and what to expect of it.

    Returns:
        The model in eval mode on the CPU, float32; `.to("cuda")` moves it.

    Raises:
        BadInput: `pretrained_unknown`; `checkpoint_missing`, `checkpoint_unreadable`, `checkpoint_mismatch` where the files are
            not those that were published.
    """
    return load_set(name)[0]


@dataclass(frozen=True)
class Published:
    """One network of a set, as it lies there."""

    stage: str
    parameters: int
    size: int  # bytes of the weights' file
    sha256: str


def publish(results: Path, target: Path, limit: int = LIMIT_BYTES) -> list[Published]:
    """Write the two checkpoints of a training as a set of float16 weights.

    Args:
        results: holds `proposal/` and `reconstruction/`, both trained to the end, the second on the first.
        target: the folder of the set; files of an earlier one are replaced.
        limit: bytes of weights, both networks together.

    Raises:
        BadInput: as `load_geolrm`; `checkpoint_mismatch` where the networks were not trained together; `weights_published`
            for a set made from a set; `weights_overflow`; `weights_too_large`. Nothing is written then.
    """
    model, records = load_geolrm(results)
    if any("trained_sha256" in record for record in records.values()):
        raise BadInput("weights_published", results, "these are float16 already", "name the results of the training")
    trained_on = records["reconstruction"].get("proposal_sha256", records["proposal"]["sha256"])
    if trained_on != records["proposal"]["sha256"]:
        detail = "the reconstruction was trained on the anchor points of another proposal network"
        raise BadInput("checkpoint_mismatch", results, detail, "train the second stage on this first one")
    networks = {stage: _halved(getattr(model, stage), results / stage) for stage in STAGES}
    size = sum(len(safetensors.torch.save(network.state_dict())) for network in networks.values())
    if size > limit:
        detail = f"{size:,} bytes of weights, of which {limit:,} may be"
        raise BadInput("weights_too_large", results, detail, "train smaller networks")
    for stage, network in networks.items():
        record = records[stage]
        facts = {name: value for name, value in record.items() if name not in ("stage", "sha256", "config")}
        facts |= {"weights": "float16", "trained_sha256": record["sha256"]}
        save_checkpoint(target / stage, stage, network, network.settings, facts)
    return [describe(target, stage) for stage in STAGES]


def _halved(network: nn.Module, where: Path) -> Any:
    """The network in float16. Raises `BadInput` naming the tensors that it cannot hold."""
    network = network.half()
    beyond = [name for name, tensor in network.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    if beyond:
        detail = f"beyond the range of float16, or no number: {', '.join(beyond)}"
        raise BadInput("weights_overflow", where, detail, "train with weight decay, or publish nothing")
    return network


def describe(folder: Path, stage: str) -> Published:
    """What lies in the folder of a set."""
    file = folder / stage / "checkpoint.safetensors"
    with safetensors.safe_open(file, "pt") as tensors:
        parameters = sum(tensors.get_tensor(name).numel() for name in tensors.keys())  # noqa: SIM118
    return Published(stage, parameters, file.stat().st_size, sha256_of(file))
