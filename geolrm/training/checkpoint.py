"""Weights and training state on disk.

In: a network with its configuration, and during training the optimiser's moments and the step. Out: `checkpoint.safetensors` +
`checkpoint.json` for users, `resume/step-NNNNNN/` for the next run of the same training. Convention: a file or folder is
written under a temporary name, synced, and renamed, so that it is there whole or not at all; loading is strict and lists
every missing, extra or mis-shaped tensor by name. Trade: one resume state is kept, the newest, and none beside a finished
training's checkpoint. Verified by bit-equal
continuation, by kills during writing, and by planted damage.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from geolrm.config import Proposal, Reconstruction, Section
from geolrm.failures import BadInput
from geolrm.files import sha256_of, write_whole
from geolrm.model.geolrm import GeoLRM
from geolrm.model.proposal import ProposalNetwork
from geolrm.model.reconstruction import ReconstructionNetwork
from geolrm.tensors import load_strictly, read_tensors, write_tensors

NETWORKS: dict[str, tuple[type[Section], type[nn.Module]]] = {
    "proposal": (Proposal, ProposalNetwork),
    "reconstruction": (Reconstruction, ReconstructionNetwork),
}


def save_checkpoint(folder: Path, stage: str, network: nn.Module, config: Section, facts: dict[str, Any]) -> None:
    """Write `checkpoint.safetensors` and, last, `checkpoint.json`, which carries the configuration and the weights' hash."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "checkpoint.safetensors"
    write_tensors(weights, network.state_dict())
    record = {"stage": stage, "sha256": sha256_of(weights), "config": config.model_dump(mode="json"), **facts}
    write_whole(folder / "checkpoint.json", json.dumps(record, indent=1) + "\n")


def load_model(path: Path | str) -> tuple[nn.Module, dict[str, Any]]:
    """A trained network in eval mode, and the content of its `checkpoint.json`.

    Args:
        path: the folder of a stage, or its `checkpoint.safetensors`.

    Raises:
        BadInput: no checkpoint there, damaged files, or weights that do not fit the configuration.
    """
    path = Path(path)
    weights = path / "checkpoint.safetensors" if path.is_dir() or not path.suffix else path
    side = weights.with_suffix(".json")
    try:
        record = json.loads(side.read_text())
        config_type, network_type = NETWORKS[record["stage"]]
        config, expected = config_type.model_validate(record["config"]), record["sha256"]
    except FileNotFoundError as error:
        raise BadInput("checkpoint_missing", side, "no such file", "train the stage first: `dvc repro`") from error
    except (json.JSONDecodeError, KeyError, TypeError, ValidationError) as error:
        first_line = str(error).partition("\n")[0]
        raise BadInput("checkpoint_unreadable", side, f"no checkpoint record ({first_line})") from error
    tensors = read_tensors(weights)
    network = network_type(config, pretrained=False)
    load_strictly(network, tensors, weights)
    if sha256_of(weights) != expected:
        raise BadInput("checkpoint_unreadable", weights, "its hash is not the one in checkpoint.json", "train again")
    return network.eval(), record


def load_geolrm(folder: Path | str) -> tuple[GeoLRM, dict[str, Any]]:
    """Both stages from `folder`/proposal and `folder`/reconstruction, and {stage: content of its checkpoint.json}."""
    proposal, proposal_record = load_model(Path(folder) / "proposal")
    reconstruction, reconstruction_record = load_model(Path(folder) / "reconstruction")
    if not isinstance(proposal, ProposalNetwork) or not isinstance(reconstruction, ReconstructionNetwork):
        raise BadInput("checkpoint_mismatch", folder, "the two checkpoints are not a proposal and a reconstruction")
    records = {"proposal": proposal_record, "reconstruction": reconstruction_record}
    return GeoLRM(proposal, reconstruction).eval(), records


def save_resume_state(
    folder: Path, step: int, network: nn.Module, optimiser: torch.optim.Optimizer, facts: dict[str, Any]
) -> None:
    """Write `folder`/resume/step-NNNNNN whole, then remove older ones."""
    parent = folder / "resume"
    final = parent / f"step-{step:06d}"
    temporary = parent / f".step-{step:06d}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_tensors(temporary / "network.safetensors", network.state_dict())
    state = optimiser.state_dict()["state"]
    moments = {f"{i}.{name}": tensor for i, entry in state.items() for name, tensor in entry.items()}
    write_tensors(temporary / "optimiser.safetensors", moments)
    write_whole(temporary / "state.json", json.dumps({"step": step, **facts}, indent=1) + "\n")
    temporary.rename(final)  # states of an earlier training are gone (`discard_resume_states`), so the name is free
    for other in parent.iterdir():
        if other != final:
            shutil.rmtree(other)


def discard_resume_states(folder: Path) -> None:
    """Remove all states of `folder` at once: killed within, either all of them are still there or none."""
    gone = folder / ".resume.gone"
    shutil.rmtree(gone, ignore_errors=True)
    if (folder / "resume").exists():
        (folder / "resume").rename(gone)
        shutil.rmtree(gone)


def newest_resume_state(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole resume state of `folder` and its facts, None if there is none."""
    states = sorted((folder / "resume").glob("step-*"))
    if not states:
        return None
    return states[-1], json.loads((states[-1] / "state.json").read_text())


def load_resume_state(state: Path, network: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Put weights and moments back in place."""
    load_strictly(network, read_tensors(state / "network.safetensors"), state)
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in read_tensors(state / "optimiser.safetensors").items():
        index, field = name.split(".", 1)
        entries.setdefault(int(index), {})[field] = tensor
    optimiser.load_state_dict({"state": entries, "param_groups": optimiser.state_dict()["param_groups"]})
