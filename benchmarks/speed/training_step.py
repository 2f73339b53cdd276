"""How fast a training step of the reconstruction stage is: bf16 products and fused kernels against plain PyTorch, in one run.

In: nothing but options; weights and pictures are drawn, cost does not depend on them. Out: a line per number of inputs on the
screen, and a JSON file of rows and passport. Convention: the stage of `geolrm.training` with all its losses, at the paper's
setting (8 views of 448 px, 4,096 anchors, 32 Gaussians each, batch 1): proposal, network, gsplat, LPIPS, backward pass,
clipping, AdamW. `plain` is the readable definitions in float32 with TF32 products and fused attention in bfloat16; `fast` is what
`precision: auto` gives. Both train the same network in turn, TF32 is allowed to both, and all numbers of inputs that the recipe
draws are measured. Memory is torch's peak in a step, with weights, gradients and AdamW's moments. Trade: without the weights of
LPIPS' VGG16 the same network with random ones is timed, and every row says so; such a loss means nothing. Verified by
finite losses and gradients on both paths.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks.planted import sphere_shell
from benchmarks.speed.model import FAST, MIB, drawn_views
from geolrm.config import Params, load_params
from geolrm.files import write_whole
from geolrm.metrics.perceptual import Lpips, weights_file
from geolrm.model.execution import definitions_only, missing_for_kernels
from geolrm.model.proposal import ProposalNetwork
from geolrm.model.reconstruction import ReconstructionNetwork
from geolrm.passport import passport
from geolrm.training.loop import make_optimiser
from geolrm.training.stages import Drawn, ReconstructionStage
from geolrm.views import Views

PLAIN = "plain"


@dataclass(frozen=True)
class Options:
    """Time a training step on a GPU against plain PyTorch."""

    out: Path = Path("docs/results/training-step.json")
    """Where the result goes."""
    params: Path = Path("presets/paper.yaml")
    """The recipe."""
    rounds: int = 5
    """Counted rounds; each takes one step either way for every number of inputs."""
    warmup: int = 1
    """Rounds before counting."""
    seed: int = 0
    """Of weights and pictures."""


class UntrainedLpips(nn.Module):
    """The network of LPIPS (VGG16) with random weights: what it costs, not what it says."""

    def __init__(self) -> None:
        super().__init__()
        import lpips

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            self.network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).requires_grad_(False).eval()

    def forward(self, images: Tensor, truth: Tensor) -> Tensor:
        return self.network(images, truth, normalize=True).reshape(-1)


def drawn_item(params: Params, seed: int, device: torch.device) -> Drawn:
    """One object of the recipe's size: random pictures on discs of constant depth, a sphere's voxels."""
    settings = params.reconstruction.optimisation
    views = drawn_views(settings.views, settings.image_size, seed, device)
    depth = 1.6 * views.alpha[:, 0]
    views = Views(views.key, views.cameras, views.colour, views.alpha, depth)
    return Drawn("drawn", views, sphere_shell(params.proposal.voxel_resolution))


@contextlib.contextmanager
def attention_in_bfloat16() -> Iterator[None]:
    """torch's fused attention, which float32 queries do not reach, for plain PyTorch too."""
    fused = F.scaled_dot_product_attention

    def cast(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return fused(query.bfloat16(), key.bfloat16(), value.bfloat16(), *args, **kwargs).to(query.dtype)

    F.scaled_dot_product_attention = cast
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused


def stage_with_inputs(
    params: Params, count: int, way: str, network: ReconstructionNetwork, proposal: ProposalNetwork, lpips: nn.Module
) -> ReconstructionStage:
    precision = "auto" if way == FAST else "fp32"
    optimisation = params.reconstruction.optimisation.model_copy(
        update={"min_inputs": count, "max_inputs": count, "precision": precision}
    )
    return ReconstructionStage(
        network, params.reconstruction.model_copy(update={"optimisation": optimisation}), proposal, lpips
    )


def step(stage: ReconstructionStage, item: Drawn, optimiser: torch.optim.Optimizer) -> tuple[float, float]:
    """Seconds of one step, and its loss."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    optimiser.zero_grad(set_to_none=True)
    loss, _ = stage.losses([item], 0)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(stage.network.parameters(), stage.optimisation.clip)
    optimiser.step()
    torch.cuda.synchronize()
    taken = time.perf_counter() - began
    if not torch.isfinite(loss) or not torch.isfinite(norm):
        raise SystemExit(f"error: the loss is {loss.item()}, the gradient's norm {norm.item()}: this times nothing")
    return taken, loss.item()


def main(options: Options) -> None:
    device = torch.device("cuda")
    missing = missing_for_kernels(device)
    if missing:
        raise SystemExit(f"error: the fast path is not there: {missing}")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.manual_seed(options.seed)
    params = load_params(options.params)
    settings = params.reconstruction.optimisation
    network = ReconstructionNetwork(params.reconstruction, pretrained=False).to(device).train()
    proposal = ProposalNetwork(params.proposal, pretrained=False).to(device)
    trained = weights_file("vgg") is not None
    lpips: nn.Module = (Lpips("vgg") if trained else UntrainedLpips()).to(device)
    perceptual = "LPIPS (vgg)" if trained else "LPIPS (vgg), random weights: its cost alone is real"
    optimiser = make_optimiser(network, settings)
    item = drawn_item(params, options.seed, device)
    counts = range(settings.min_inputs, settings.max_inputs + 1)
    seconds: dict[tuple[str, int], list[float]] = {(way, count): [] for way in (PLAIN, FAST) for count in counts}
    memory: dict[tuple[str, int], tuple[int, int]] = {}
    for index in tqdm(range(options.warmup + options.rounds), desc="rounds", mininterval=5):
        for way, count in seconds:
            stage = stage_with_inputs(params, count, way, network, proposal, lpips)
            with contextlib.ExitStack() as stack:
                if way == PLAIN:
                    stack.enter_context(definitions_only())
                    stack.enter_context(attention_in_bfloat16())
                if index == 0:
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
                taken, _ = step(stage, item, optimiser)
            if index == 0:  # the second step on has AdamW's moments from its beginning, the first of all has not
                memory[way, count] = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            if index >= options.warmup:
                seconds[way, count].append(taken)
    rows: list[dict[str, Any]] = []
    for (way, count), times in seconds.items():
        allocated, reserved = memory[way, count]
        rows.append(
            {"implementation": way, "views": settings.views, "inputs": count, "step_s": statistics.median(times)}
            | {"peak_memory_bytes": allocated, "reserved_memory_bytes": reserved, "perceptual": perceptual}
        )
    by_way = {way: [row for row in rows if row["implementation"] == way] for way in (PLAIN, FAST)}
    means = {way: statistics.fmean(row["step_s"] for row in of_way) for way, of_way in by_way.items()}
    for plain, fast in zip(by_way[PLAIN], by_way[FAST], strict=True):
        print(
            f"{plain['inputs']} inputs, {plain['views'] - plain['inputs']} targets: plain {1e3 * plain['step_s']:.0f} ms, "
            f"{plain['peak_memory_bytes'] / 1024 / MIB:.1f} GiB; fast {1e3 * fast['step_s']:.0f} ms, "
            f"{fast['peak_memory_bytes'] / 1024 / MIB:.1f} GiB; {plain['step_s'] / fast['step_s']:.2f} times as fast"
        )
    print(f"over the recipe's inputs: {means[PLAIN] / means[FAST]:.2f} times the steps per second; {perceptual}")
    summary = {"plain_steps_per_s": 1 / means[PLAIN], "fast_steps_per_s": 1 / means[FAST]}
    about = passport(seed=options.seed, rounds=options.rounds, image_size=settings.image_size, perceptual=perceptual)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(options.out, json.dumps({"rows": rows, "summary": summary, "passport": about}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
