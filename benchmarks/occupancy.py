"""How well a proposal network finds the voxels that hold surface, by number of input views.

In: a trained preset (`results/<preset>/proposal`) and shards of data sets. Out: `occupancy.jsonl` beside the rows of each sweep,
`results/<preset>/sweep/<data set>/`, a line per object and view count: intersection over union, precision and recall against the
label, and how many voxels are predicted. Convention: the inputs are those that a sweep takes, evenly around the orbit, unscaled;
a label is what all input-able views show, so surface that the few inputs cannot see counts as missed. Trade: written anew as a
whole by each call, since it takes seconds. Verified by a network that knows the answer.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from benchmarks.methods.geolrm import PRECISION, precision_on
from benchmarks.sweep_views import open_dataset
from geolrm.cameras import Cameras
from geolrm.config import load_params
from geolrm.data.loader import ShardDataset
from geolrm.data.places import place
from geolrm.failures import run_command
from geolrm.files import write_whole
from geolrm.model.execution import in_precision
from geolrm.passport import passport
from geolrm.training.checkpoint import load_model
from geolrm.training.stages import occupancy_scores

FILE = "occupancy.jsonl"
SCORES = ("iou", "precision", "recall")


@dataclass
class Arguments:
    """Judge the proposal network of a preset by its voxels, at several numbers of input views."""

    params: Path = Path("params.yaml")
    """Params file; its preset names the folders of data and results, its section `sweep` what is not given here."""
    dataset: tuple[str, ...] = ("procedural",)
    """Data sets that `pipelines.shard` has sharded."""
    views: tuple[int, ...] | None = None
    """Numbers of input views, 1 to 24."""
    objects: int | None = None
    """How many objects, the first of the split."""
    split: str | None = None
    """Which objects: a split of the catalog."""
    datasets: str = "datasets"
    """Folder of the data sets, or the address of a store."""
    results: Path | None = None
    """Folder of the preset's results (results/<preset>)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU if there is one."""


def judge(
    network: Any, data: ShardDataset, keys: list[str], counts: list[int], device: torch.device
) -> list[dict[str, Any]]:
    """A record per object and view count.

    Args:
        network: (1, V, 3, H, W) pictures on white, (1, V) cameras -> (1, R, R, R) logits.
        data: whose labels have R voxels a side.
    """

    def occupied(images: Tensor, cameras: Cameras) -> Tensor:
        with torch.no_grad(), in_precision(PRECISION, device):
            found: Tensor = network(images, cameras)[0] > 0
        return found

    records = []
    for key in tqdm(keys, desc="occupancy", unit="object"):
        sample = data.sample(key)
        truth = sample.occupancy.to(device)
        for count in counts:
            views = sample.views(sample.orbit_inputs(count)).to(device)
            predicted = occupied(views.composited()[None], views.cameras[None])
            scores = {"voxels": int(predicted.sum()), "true_voxels": int(truth.sum())}
            records.append({"object": key, "views": count} | occupancy_scores(predicted, truth) | scores)
    return records


def main(arguments: Arguments) -> None:
    """Write the records of each data set and print their means. Raises `BadInput`."""
    params = load_params(arguments.params)
    results = arguments.results or Path("results") / params.preset
    chosen = arguments.device if arguments.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(chosen)
    network, record = load_model(results / "proposal")
    network.to(device)
    counts, split = list(arguments.views or params.sweep.views), arguments.split or params.sweep.split
    for name in arguments.dataset:
        data, dataset_hash = open_dataset(place(arguments.datasets) / name / params.preset, split)
        keys = list(data.keys)[: arguments.objects or params.sweep.objects]
        found = judge(network, data, keys, counts, device)
        about = {"dataset_hash": dataset_hash, "checkpoint_hash": record["sha256"], "precision": precision_on(device)}
        known = passport(**about)
        folder = results / "sweep" / name
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"dataset": name, "split": split} | one | {"passport": known}) + "\n" for one in found]
        write_whole(folder / FILE, "".join(lines))
        for count in counts:
            own = [one for one in found if one["views"] == count]
            means = " ".join(f"{score} {sum(one[score] for one in own) / len(own):.3f}" for score in SCORES)
            print(f"{name}, {count:2d} views, {len(own)} objects: {means}")


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(tyro.cli(Arguments))))
