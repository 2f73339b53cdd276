"""The two stages: images to occupancy, and anchor points with images to Gaussians.

In: samples of a shard data set. Out: losses, validation metrics and picture grids for the loop. Convention: of the views drawn
for an object the first k are inputs and the rest are targets; which views is a pure function of (seed, epoch, key), k of
(seed, step), the same for all objects of a batch. The second stage sees the anchor points that the trained, frozen proposal
network predicts from the same inputs, as it will at test time. Trade: the objects of a batch share one number of anchor
points, the smallest among them, so that nothing is ever padded; what belongs to the batch as a whole (that number, the sums
of the affinity) is taken over all ranks that share it. Verified by overfitting one object and by the loop's tests.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from geolrm.cameras import Cameras
from geolrm.config import Optimisation, Proposal, Reconstruction, Section
from geolrm.data.loader import Sample
from geolrm.failures import BadInput
from geolrm.gaussians import Gaussians
from geolrm.metrics.image import psnr, psnr_foreground
from geolrm.model.execution import in_precision
from geolrm.model.proposal import ProposalNetwork
from geolrm.model.reconstruction import ReconstructionNetwork
from geolrm.pictures import save_picture
from geolrm.rendering import Rendering, render
from geolrm.training.loop import Stage
from geolrm.training.losses import occupancy_losses, rendering_losses
from geolrm.views import Views

VALIDATION_INPUTS = 6
BACKGROUND = 1.0


@dataclass(frozen=True)
class Drawn:
    """What one object gives to one step: its drawn views in random order, and its occupancy label."""

    key: str
    views: Views
    occupancy: Tensor  # (R, R, R) bool

    def to(self, device: torch.device) -> Drawn:
        return Drawn(self.key, self.views.to(device), self.occupancy.to(device))

    def pin_memory(self) -> Drawn:
        """The same in memory from which a GPU reads by itself; asked for by torch's DataLoader."""
        return Drawn(self.key, self.views.pin_memory(), self.occupancy.pin_memory())


def _generator(*parts: object) -> random.Random:
    """Random numbers that are a pure function of the parts, whatever the process or platform."""
    return random.Random(hashlib.sha256(repr(parts).encode()).digest())


def draw_views(sample: Sample, optimisation: Optimisation, epoch: int) -> Drawn:
    """`optimisation.views` of the object's views in random order, at the training size and over white. Raises BadInput
    `too_few_views`."""
    if optimisation.views > len(sample.roles):
        detail = f"{optimisation.views} views are to be drawn, it has {len(sample.roles)}"
        raise BadInput("too_few_views", sample.key, detail, "lower optimisation.views of this stage")
    picked = _generator("views", optimisation.seed, epoch, sample.key).sample(
        range(len(sample.roles)), optimisation.views
    )
    size = optimisation.image_size
    return Drawn(sample.key, sample.views(picked, (size, size), BACKGROUND), sample.occupancy)


def input_count(optimisation: Optimisation, step: int) -> int:
    """How many of the drawn views are inputs at this step."""
    return _generator("inputs", optimisation.seed, step).randint(optimisation.min_inputs, optimisation.max_inputs)


def stack(views: Sequence[Views], device: torch.device) -> tuple[Tensor, Cameras]:
    """Images (B, V, 3, H, W) over white and cameras (B, V) of B objects with V views each."""
    images = torch.stack([v.composited(BACKGROUND) for v in views]).to(device)
    poses = torch.stack([v.cameras.camera_to_world for v in views]).to(device)
    return images, Cameras(poses, torch.stack([v.cameras.intrinsics for v in views]).to(device))


def validation_targets(sample: Sample, inputs: list[int]) -> list[int]:
    """Positions of four fixed views between the inputs and beyond the orbit."""
    rest = [i for i in range(len(sample.roles)) if i not in inputs]
    return [rest[len(rest) * (2 * i + 1) // 8] for i in range(4)]


def occupancy_scores(predicted: Tensor, truth: Tensor) -> dict[str, float]:
    """Intersection over union, precision and recall of bool grids; 0 where nothing is predicted."""
    hit = (predicted & truth).sum().item()
    union = (predicted | truth).sum().item()
    return {
        "iou": hit / max(union, 1),
        "precision": hit / max(predicted.sum().item(), 1),
        "recall": hit / max(truth.sum().item(), 1),
    }


def _weighted_sum(parts: dict[str, Tensor], weights: Section) -> Tensor:
    """The loss: each part times the weight of its name in params.yaml."""
    return torch.stack([getattr(weights, name) * value for name, value in parts.items()]).sum()


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _save_grid(rows: list[Tensor], path: Path) -> None:
    """Rows of pictures (3, H, W) in [0, 1], each row side by side, one PNG."""
    save_picture(torch.cat([torch.cat(list(row), dim=-1) for row in rows], dim=-2), path)


class ProposalStage(Stage[Drawn]):
    """Stage 1 (paper, 3.3): binary cross-entropy and scene-class affinity against the occupancy label."""

    name = "proposal"
    config: Proposal

    def __init__(self, network: ProposalNetwork, config: Proposal) -> None:
        self.network, self.config, self.optimisation = network, config, config.optimisation
        self.device = next(network.parameters()).device

    def draw(self, sample: Sample, epoch: int) -> Drawn:
        return draw_views(sample, self.optimisation, epoch)

    def bring(self, item: Drawn) -> Drawn:
        return item.to(self.device)

    def losses(self, items: list[Drawn], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        count = input_count(self.optimisation, step)
        images, cameras = stack([item.views[:count] for item in items], self.device)
        target = torch.stack([item.occupancy for item in items]).to(self.device)
        parts = occupancy_losses(self._predict(images, cameras), target, self.ranks.total)
        return _weighted_sum(parts, self.config.losses), parts

    def _predict(self, images: Tensor, cameras: Cameras) -> Tensor:
        with in_precision(self.optimisation.precision, self.device):
            return self.network(images, cameras)

    def _logits(self, sample: Sample) -> Tensor:
        size = self.optimisation.image_size
        images, cameras = stack([sample.views(sample.orbit_inputs(VALIDATION_INPUTS)).resized(size, size)], self.device)
        return self._predict(images, cameras)

    def validate(self, samples: Sequence[Sample]) -> dict[str, float]:
        rows = []
        for sample in samples:
            logits, truth = self._logits(sample), sample.occupancy[None].to(self.device)
            loss = _weighted_sum(occupancy_losses(logits, truth), self.config.losses)
            rows.append({"loss": loss.item(), **occupancy_scores(logits > 0, truth)})
        return _mean(rows)

    def picture(self, sample: Sample, path: Path) -> None:
        """Depth of the occupied voxels seen along the three axes: truth above, prediction below."""
        grids = [sample.occupancy.to(self.device), self._logits(sample)[0] > 0]
        _save_grid([torch.stack([_column_heights(grid, axis) for axis in range(3)]) for grid in grids], path)


def _column_heights(grid: Tensor, axis: int) -> Tensor:
    """(3, R, R) grey picture of a bool grid: how near the first occupied voxel is along an axis, white where none."""
    size = grid.shape[0]
    steps = torch.arange(size, device=grid.device).reshape([-1 if i == axis else 1 for i in range(3)])
    first = torch.where(grid, steps, size).amin(dim=axis)
    shade = torch.where(first < size, first / size * 0.8, 1.0)
    return shade.T.flip(0).expand(3, size, size)


class ReconstructionStage(Stage[Drawn]):
    """Stage 2 (paper, 3.3): rendered colour, mask and depth of the target views against the truth.

    Args:
        network: what is trained.
        config: its section of params.yaml.
        proposal: trained network of stage 1, frozen, which gives the anchor points.
        perceptual: LPIPS (V, 3, H, W) x 2 in [0, 1] -> scalar; needed where its loss weight is not 0.
    """

    name = "reconstruction"
    network: ReconstructionNetwork
    config: Reconstruction

    def __init__(
        self,
        network: ReconstructionNetwork,
        config: Reconstruction,
        proposal: ProposalNetwork,
        perceptual: torch.nn.Module | None = None,
    ) -> None:
        if config.losses.lpips > 0 and perceptual is None:
            raise ValueError("reconstruction.losses.lpips is not 0, so the perceptual network is needed")
        self.network, self.config, self.optimisation = network, config, config.optimisation
        self.proposal, self.perceptual = proposal.eval().requires_grad_(False), perceptual
        self.device = next(network.parameters()).device

    def draw(self, sample: Sample, epoch: int) -> Drawn:
        return draw_views(sample, self.optimisation, epoch)

    def bring(self, item: Drawn) -> Drawn:
        return item.to(self.device)

    def _anchors(
        self, images: Tensor, cameras: Cameras, labels: Sequence[Tensor], agree: Callable[[int], int] = int
    ) -> tuple[Tensor, int]:
        """Anchor points (B, N, 3) of the predicted occupancy; where nothing is predicted the label stands in, counted.

        `agree` brings the number of anchor points to that of the whole batch where several ranks share it.
        """
        with torch.no_grad(), in_precision(self.optimisation.precision, self.device):
            grids = self.proposal(images, cameras) > 0
        empty = [i for i, grid in enumerate(grids) if not grid.any()]
        for i in empty:
            grids[i] = labels[i].to(self.device)
        count = agree(min(self.config.max_anchors, min(int(grid.sum()) for grid in grids)))
        return torch.stack([self.network.anchors_of(grid, count) for grid in grids]), len(empty)

    def _decode(self, images: Tensor, cameras: Cameras, anchors: Tensor) -> list[Gaussians]:
        with in_precision(self.optimisation.precision, self.device):
            return self.network(images, cameras, anchors)

    def _compare(
        self, gaussians: Sequence[Gaussians], targets: Sequence[Views]
    ) -> tuple[Tensor, list[Rendering], dict[str, Tensor]]:
        """Loss, renderings and parts of the loss of a batch: each object's Gaussians seen from its target views."""
        targets = [views.to(self.device) for views in targets]
        renderings = [
            render(one, views.cameras, *views.size, BACKGROUND) for one, views in zip(gaussians, targets, strict=True)
        ]
        parts = rendering_losses(renderings, targets, BACKGROUND)
        if self.perceptual is not None and self.config.losses.lpips > 0:
            apart = [
                self.perceptual(rendering.colour.clamp(0, 1), views.composited(BACKGROUND)).mean()
                for rendering, views in zip(renderings, targets, strict=True)
            ]
            parts["lpips"] = torch.stack(apart).mean()
        return _weighted_sum(parts, self.config.losses), renderings, parts

    def losses(self, items: list[Drawn], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        count = input_count(self.optimisation, step)
        images, cameras = stack([item.views[:count] for item in items], self.device)
        anchors, empty = self._anchors(images, cameras, [item.occupancy for item in items], self.ranks.smallest)
        gaussians = self._decode(images, cameras, anchors)
        loss, _, parts = self._compare(gaussians, [item.views[count:] for item in items])
        whole = float(empty * self.ranks.count)  # so that its mean over the ranks is the count of the whole batch
        return loss, parts | {"empty_proposals": torch.tensor(whole)}

    def _reconstruct(self, sample: Sample) -> tuple[Views, Gaussians, Views]:
        size = self.optimisation.image_size
        positions = sample.orbit_inputs(VALIDATION_INPUTS)
        inputs = sample.views(positions).resized(size, size)
        images, cameras = stack([inputs], self.device)
        anchors, _ = self._anchors(images, cameras, [sample.occupancy])
        targets = sample.views(validation_targets(sample, positions)).resized(size, size)
        return inputs, self._decode(images, cameras, anchors)[0], targets

    def validate(self, samples: Sequence[Sample]) -> dict[str, float]:
        rows = []
        for sample in samples:
            _, gaussians, targets = self._reconstruct(sample)
            loss, (rendering,), parts = self._compare([gaussians], [targets])
            images = rendering.colour.clamp(0, 1)
            truth, foreground = targets.composited(BACKGROUND).to(self.device), targets.foreground.to(self.device)
            scores = {"psnr": psnr(images, truth), "psnr_foreground": psnr_foreground(images, truth, foreground)}
            row = {"loss": loss.item(), **{name: values.mean().item() for name, values in scores.items()}}
            rows.append(row | {f"loss/{name}": value.item() for name, value in parts.items()})
        return _mean(rows)

    def picture(self, sample: Sample, path: Path) -> None:
        """Four inputs above, the four true target views below them, their renderings at the bottom."""
        inputs, gaussians, targets = self._reconstruct(sample)
        rendering = render(gaussians, targets.cameras.to(self.device), *targets.size, BACKGROUND)
        rows = [inputs.composited(BACKGROUND)[:4], targets.composited(BACKGROUND), rendering.colour.cpu()]
        _save_grid(rows, path)
