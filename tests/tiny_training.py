"""Both training stages at the size of the fixture `tiny_params`, for the tests that train them."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geolrm.cameras import Cameras
from geolrm.config import Params, parse_params
from geolrm.data.loader import Sample, ShardDataset
from geolrm.model.proposal import ProposalNetwork
from geolrm.model.reconstruction import ReconstructionNetwork
from geolrm.training.loop import Stage, train
from geolrm.training.stages import ProposalStage, ReconstructionStage

STAGES = ("proposal", "reconstruction")
FACTS = {"params": "tiny", "catalog_sha256": "0"}
CLOCKS = ("data_wait_s", "step_s", "objects_per_s", "memory_bytes")


class KnownOccupancy(nn.Module):
    """A proposal network that answers with given grids (B, R, R, R) bool, whatever it is shown."""

    def __init__(self, grids: Tensor) -> None:
        super().__init__()
        self.grids = grids

    def forward(self, images: Tensor, cameras: Cameras) -> Tensor:
        return torch.where(self.grids[: len(images)], 1.0, -1.0)


def changed(params: Params, stage: str, **optimisation: Any) -> Params:
    """The parameters with another `optimisation` section of one stage."""
    data = params.model_dump(mode="json")
    data[stage]["optimisation"] |= optimisation
    return parse_params(data, "tiny")


def make_stage(params: Params, name: str, seed: int = 0, proposal: nn.Module | None = None) -> Stage[Any]:
    """A stage with a network drawn from a seed; the second one's anchors are the label's unless a proposal is given."""
    torch.manual_seed(seed)
    if name == "proposal":
        return ProposalStage(ProposalNetwork(params.proposal), params.proposal)
    network = ReconstructionNetwork(params.reconstruction)
    proposal = proposal or ProposalNetwork(params.proposal)  # undecided: it proposes nothing
    return ReconstructionStage(network, params.reconstruction, proposal)  # type: ignore[arg-type]


def split(root: Path, name: str) -> ShardDataset:
    return ShardDataset(root / "datasets/procedural/tiny", name)


def samples(root: Path, name: str) -> list[Sample]:
    data = split(root, name)
    return [data.sample(i) for i in range(len(data))]


def run(stage: Stage[Any], root: Path, folder: Path, stop_after: int | None = None, facts: Any = None) -> None:
    """Train a stage on the tiny data set."""
    train(stage, split(root, "train"), samples(root, "val"), folder, facts or FACTS, stop_after=stop_after)


def lines(folder: Path) -> list[dict[str, Any]]:
    """What steps.jsonl says, clocks and memory apart."""
    found = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in found]


def state_bytes(folder: Path) -> dict[str, bytes]:
    """The files of the only resume state there, by name with its step."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("resume/*/*"))}
