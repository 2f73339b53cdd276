"""How fast the CPU rasterizer is: numba against the tiled PyTorch definition, forward and backward, in one run.

In: nothing but options. Out: one line per setting on the screen, and a JSON file with medians, ratios and a passport.
Convention: one view of Gaussians on a sphere, the same for both; rounds interleave the two, so that a busy moment of the
machine meets both; the first rounds of each compile and warm up and are not counted. Trade: one scene, whose Gaussians
shrink as their number grows, as a model's do. Verified by recording how far apart the two renderings are.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from tqdm import tqdm

from geolrm.cameras import Cameras, orbit
from geolrm.files import write_whole
from geolrm.gaussians import Gaussians
from geolrm.passport import passport
from geolrm.rendering import Rendering, definition, render

SETTINGS = ((128, 10_000, 0.010), (256, 50_000, 0.005))  # image side, Gaussians, median standard deviation
RENDERERS: dict[str, Callable[..., Rendering]] = {"numba": render, "tiled_pytorch": definition.render_by_tiles}


@dataclass(frozen=True)
class Options:
    """Time the CPU rasterizer against tiled PyTorch."""

    out: Path = Path("docs/results/rasterizer.json")
    """Where the result goes."""
    rounds: int = 10
    """Counted rounds; each renders forward and backward once with either rasterizer."""
    warmup: int = 1
    """Rounds before counting: compilation, caches."""
    threads: int = len(os.sched_getaffinity(0))
    """Threads of both."""
    seed: int = 0
    """Of the scene."""


def sphere(count: int, deviation: float, seed: int) -> Gaussians:
    """Gaussians of random shape, colour and opacity on the sphere of radius 0.4."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    means = 0.4 * torch.nn.functional.normalize(normal(count, 3), dim=-1)
    scales = torch.tensor(deviation).log() + 0.3 * normal(count, 3)
    return Gaussians(means, normal(count, 3), 1 + normal(count), scales, normal(count, 4))


def timed(
    renderer: Callable[..., Rendering], gaussians: Gaussians, camera: Cameras, side: int
) -> tuple[float, float, Rendering]:
    """Seconds forward and backward, and the pictures."""
    leaves = Gaussians(*(t.clone().requires_grad_() for t in gaussians.tensors))
    start = time.perf_counter()
    rendering = renderer(leaves, camera, side, side)
    forward = time.perf_counter()
    loss = rendering.colour.square().mean() + rendering.alpha.mean() + rendering.depth.mean()
    begin = time.perf_counter()
    loss.backward()
    return forward - start, time.perf_counter() - begin, rendering


def measure(side: int, count: int, deviation: float, options: Options) -> dict[str, Any]:
    """Medians in milliseconds and how many times faster numba is, for one setting."""
    gaussians = sphere(count, deviation, options.seed)
    camera = orbit(torch.zeros(1), torch.full((1,), 10.0), 2.0, 39.6)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in RENDERERS}
    pictures: dict[str, Rendering] = {}
    for index in tqdm(range(options.warmup + options.rounds), desc=f"{side} px, {count} Gaussians"):
        for name, renderer in RENDERERS.items():
            forward, backward, pictures[name] = timed(renderer, gaussians, camera, side)
            if index >= options.warmup:
                seconds[name].append((forward, backward))
    row: dict[str, Any] = {"image_size": side, "gaussians": count, "scale": deviation}
    for name, pairs in seconds.items():
        row[f"{name}_forward_ms"], row[f"{name}_backward_ms"] = (
            round(1e3 * statistics.median(values), 2) for values in zip(*pairs, strict=True)
        )
    for part in ("forward", "backward"):
        row[f"times_faster_{part}"] = round(row[f"tiled_pytorch_{part}_ms"] / row[f"numba_{part}_ms"], 1)
    error = (pictures["numba"].colour - pictures["tiled_pytorch"].colour).abs()
    row["largest_colour_difference"] = error.max().item()
    return row


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    rows = []
    for setting in SETTINGS:
        row = measure(*setting, options)
        rows.append(row)
        print(
            f"{row['image_size']} px, {row['gaussians']} Gaussians: "
            f"numba {row['numba_forward_ms']} + {row['numba_backward_ms']} ms, "
            f"tiled PyTorch {row['tiled_pytorch_forward_ms']} + {row['tiled_pytorch_backward_ms']} ms, "
            f"{row['times_faster_forward']} and {row['times_faster_backward']} times faster"
        )
    about = passport(seed=options.seed, threads=options.threads, rounds=options.rounds, load=os.getloadavg()[0])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(options.out, json.dumps({"rows": rows, "passport": about}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
