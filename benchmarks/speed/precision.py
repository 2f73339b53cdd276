"""What bf16 products change in the pictures of a trained model, against float32 throughout.

In: the trained stages of a preset, objects of its data set. Out: a line an object on the screen, and a JSON file of rows and
passport. Convention: both precisions reconstruct from the same anchor points, those that the float32 proposal gives, and are
compared by the PSNR between their renders, the worst of the views; the proposals are compared apart, by the IoU of their voxels.
On a CUDA device the bf16 side uses the fused kernels as well. Trade: small models where no large one is trained; a bf16
product's error does not depend on how many there are beside it. Verified by float32 against itself, which is exact.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from tqdm import tqdm

from geolrm.cameras import Cameras
from geolrm.config import Precision
from geolrm.data.loader import Sample, ShardDataset
from geolrm.files import write_whole
from geolrm.gaussians import Gaussians
from geolrm.metrics.image import psnr
from geolrm.model.execution import definitions_only, in_precision
from geolrm.model.geolrm import GeoLRM
from geolrm.passport import passport
from geolrm.rendering import render
from geolrm.training.checkpoint import load_geolrm


@dataclass(frozen=True)
class Options:
    """Compare bf16 with float32 on trained weights."""

    preset: str = "smoke"
    """Whose checkpoints under results/ and whose objects under datasets/procedural/."""
    split: str = "test"
    objects: int = 8
    """At most so many."""
    inputs: int = 8
    """Input views of each."""
    max_anchors: int = 4096
    out: Path = Path("docs/results/precision.json")
    """Where the result goes."""


@torch.no_grad()
def compare(model: GeoLRM, sample: Sample, options: Options, device: torch.device) -> dict[str, Any]:
    """One row: IoU of the proposals, and the worst PSNR between renders from the same anchors."""
    views = sample.views(sample.orbit_inputs(options.inputs)).to(device)
    images, cameras = views.composited()[None], views.cameras[None]
    targets = sample.test_views().to(device)

    def occupied(precision: Precision) -> torch.Tensor:
        with in_precision(precision, device):
            return model.proposal(images, cameras)[0] > 0

    def pictures(precision: Precision, anchors: torch.Tensor, target: Cameras) -> torch.Tensor:
        with in_precision(precision, device):
            gaussians: Gaussians = model.reconstruction(images, cameras, anchors[None])[0]
        return render(gaussians, target, *targets.size).colour.clamp(0, 1)

    with definitions_only():
        full = occupied("fp32")
        anchors = model.reconstruction.anchors_of(full, options.max_anchors)
        truth = pictures("fp32", anchors, targets.cameras)
    fast = occupied("bf16")
    worst = psnr(pictures("bf16", anchors, targets.cameras), truth).min().item()
    iou = (fast & full).sum() / (fast | full).sum()
    return {"object": sample.key, "anchors": len(anchors), "psnr_db": worst, "occupancy_iou": iou.item()}


def main(options: Options) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model, records = load_geolrm(Path("results") / options.preset)
    model = model.to(device)
    dataset = ShardDataset(Path("datasets/procedural") / options.preset, options.split)
    rows = [
        compare(model, dataset[index], options, device) for index in tqdm(range(min(options.objects, len(dataset))))
    ]
    for row in rows:
        print(f"{row['object']}: {row['anchors']} anchors, {row['psnr_db']:.1f} dB, IoU {row['occupancy_iou']:.4f}")
    hashes = {stage: record["sha256"] for stage, record in records.items()}
    about = passport(preset=options.preset, split=options.split, inputs=options.inputs, checkpoints=hashes)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(options.out, json.dumps({"rows": rows, "passport": about}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
