"""A made-up results folder for tests of what reads one: numbers from formulas, pictures of flat colour. Nothing measured."""

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.rows import FIELDS, FULL_METRICS, PASSPORT

PASS = {
    **{
        "protocol": "made-up",
        "commit": "c" * 40,
        "device": "cpu",
        "processor": "made-up processor",
        "cores": 2,
        "seed": 0,
        "settings": {"full_geometry": False},
        "deviations": ["image_size 48, not 512"],
    },
    **{"versions": {"torch": "0"}, "memory": "made-up convention"},
    **{"dataset_hash": "d" * 64, "checkpoint_hash": "e" * 64},
}
START, EVERY = 1_700_000_000.0, 5.0  # seconds, of the samples of how busy the machine was
FLOOR = {"fscore_0.2": 1.0, "fscore_0.1": 1.0, "fscore_0.05": 0.99}
METHODS = {"geolrm": 18.0, "mean_colour": 15.0, "visual_hull": 16.0, "white": 6.0}
VIEWS = (4, 8, 16, 21)
OBJECTS = ("test-00000", "test-00001", "test-00002")
NO_ALEX, NO_VGG = "lpips_alex: no alex.pth (made up)", "lpips_vgg: no vgg16.pth (made up)"


def row(method: str, key: str, views: int, dataset: str = "procedural", surface: str = "closed form") -> dict:
    index = int(key[-1])
    white = method == "white"
    gain = 0.0 if white else 1.5 * math.log2(views / 4)
    foreground = METHODS[method] + gain + (index - 1) * 1.25
    cd = 0.5 / views + 0.01 * index
    made = {
        **{"method": method, "dataset": dataset, "split": "test", "object": key, "views": views, "test_views": 16},
        **{"inputs": "orbit", "rig": "own", "floor": {"points": 8192, "cd_sum": 0.04, **FLOOR}},
        "input_views": [24 * i // views for i in range(views)],
        **{
            "psnr": foreground + 4,
            "psnr_pooled": foreground + 3,
            "psnr_foreground": foreground,
            "ssim": 0.8 + views / 200,
        },
        **{"mask_iou": 0.0 if white else 0.9, "depth_error": 1.7 if white else 0.01, **dict.fromkeys(FULL_METRICS)},
        **{"lpips_alex": None, "lpips_vgg": None, "cd_sum": 2 * cd, "cd_mean": cd},
        **{f"{name}_{t:g}": 2 * t for name in ("fscore", "precision", "recall") for t in (0.2, 0.1, 0.05)},
        **{"latency_s": 0.1 + 0.02 * views, "latency_p90_s": 0.12 + 0.02 * views, "latency_runs": 3},
        **{"peak_memory_bytes": (300 + 10 * views) * 2**20, "peak_reserved_bytes": None, "harness_s": 0.5},
        "stages": {} if white else {"proposal": 0.04, "reconstruction": 0.06 + 0.02 * views, "rendering": 0.2},
        **{"gaussians": 0 if white else 4096, "surface": surface, "status": "empty" if white else "ok", "seed": 0},
        "reason": "; ".join((["no Gaussians"] if white else []) + [NO_ALEX, NO_VGG]),
        "passport": {**dict.fromkeys(PASSPORT), **PASS},
    }
    return {name: made[name] for name in FIELDS}


def sweep_rows(dataset: str = "procedural") -> list[dict]:
    return [row(method, key, views, dataset) for method in METHODS for key in OBJECTS for views in VIEWS]


def write_lines(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def picture(path: Path, shade: int, size: int = 48) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0, 255, size, dtype=np.uint8)
    Image.fromarray(np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], np.uint8(shade)), -1)).save(path)


def write_results(results: Path) -> Path:
    """A whole `results/<preset>`: two training stages, one sweep with pictures of two objects."""
    write_stage(results / "proposal", 300)
    write_stage(results / "reconstruction", 500)
    sweep = results / "sweep" / "procedural"
    write_lines(sweep / "rows.jsonl", sweep_rows())
    write_lines(sweep / "system" / "geolrm.jsonl", samples(3))
    for method in ("geolrm", "visual_hull"):
        for key in OBJECTS[::2]:
            for views in VIEWS:
                folder = sweep / "artefacts" / method / key / str(views)
                for i, name in enumerate(("input", "truth", "render", "error")):
                    picture(folder / f"{name}.png", shade=60 * i + views)
                (folder / "gaussians.ply").write_bytes(b"ply\nmade up\n")
                (folder / "turntable.webm").write_bytes(b"webm made up")
                (folder / "mesh.glb").write_bytes(b"glTF made up")
    return results


def samples(count: int) -> list[dict]:
    """How busy a machine was: each sample by one percent busier."""
    return [{"time": START + EVERY * i, "cpu_utilization_percentage": 50.0 + i} for i in range(count)]


def write_stage(folder: Path, steps: int) -> None:
    records: list[dict] = []
    for step in range(1, steps + 1):
        loss = math.exp(-step / 150) + 0.1 + 0.05 * math.sin(step * 1.7)
        record = {"step": step, "loss": loss, "loss/mse": 0.6 * loss, "loss/mask": 0.4 * loss}
        record |= {"learning_rate": 1e-3, "gradient_norm": 1 + loss, "data_wait_s": 0.01, "step_s": 0.25}
        records.append(record | {"memory_bytes": 900 * 2**20})
        if step % 30 == 0:
            records.append({"step": step, "validation/loss": loss + 0.05, "validation/psnr": 14 + step / 100})
    write_lines(folder / "steps.jsonl", records)
    write_lines(folder / "system.jsonl", samples(1200))
    config = {"optimisation": {"steps": steps, "learning_rate": 1e-3}, "max_anchors": 1024}
    record = {"stage": folder.name, "sha256": "a" * 64, "config": config, "steps": steps, "passport": PASS}
    (folder / "checkpoint.json").write_text(json.dumps(record))
    for step in (100, steps):
        picture(folder / "pictures" / f"step-{step:06d}.png", shade=step % 256, size=96)


def write_stats(datasets: Path) -> None:
    """Stats of two made-up shards, one object of which was dropped."""
    for i, drops in enumerate(({}, {"pose_not_rotation": 1})):
        stats = {"split": "test", "objects_in": 4, "objects_out": 4 - i, "bytes_in": 2**24, "bytes_out": 2**22}
        stats |= {"seconds": {"total": 1.5, "encode": 1.0}, "drops": drops, "versions": {"format": 1}}
        file = datasets / "procedural" / "smoke" / "shards" / f"test-{i:06d}.stats.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(stats))
