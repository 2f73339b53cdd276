"""What several tests share: where the optional shared folder lies, and a procedural data set small enough to train on at once."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from geolrm.config import Params, parse_params

REPOSITORY = Path(__file__).parents[1]

torch.set_num_threads(1)  # suites run side by side, and threads that wait for each other spin


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real scans, parity fixtures and LPIPS weights, named by GEOLRM_SHARED."""
    folder = os.environ.get("GEOLRM_SHARED")
    if not folder or not Path(folder).is_dir():
        pytest.skip("GEOLRM_SHARED names no folder: real scans and weights are not on this machine")
    return Path(folder).resolve()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


def _shrunk(data: dict[str, Any]) -> dict[str, Any]:
    """The content of presets/smoke.yaml brought down to what a test can train: 42 px, 16^3 voxels, a handful of steps."""
    encoder = {"dinov2": "scratch", "dinov2_width": 12, "dinov2_layers": 1, "dinov2_heads": 2, "channels": 12}
    transformer = {"width": 12, "layers": 1, "heads": 2, "sampling_points": 2}
    optimisation = {
        "steps": 6,
        "image_size": 42,
        "views": 6,
        "max_inputs": 4,
        "warmup": 2,
        "validate_every": 3,
        "checkpoint_every": 2,
    }
    data["preset"] = "tiny"
    data["procedural"] |= {"train": 3, "val": 1, "test": 1, "resolution": 42, "supersampling": 1, "workers": 1}
    data["shard"] |= {"voxel_resolution": 16, "objects_per_shard": 2, "surface_points": 256, "workers": 1}
    data["proposal"] |= {
        "encoder": encoder,
        "transformer": transformer,
        "coarse_resolution": 4,
        "voxel_resolution": 16,
        "optimisation": data["proposal"]["optimisation"] | optimisation,
    }
    data["reconstruction"] |= {
        "encoder": encoder,
        "transformer": transformer,
        "max_anchors": 64,
        "gaussians_per_token": 4,
        "optimisation": data["reconstruction"]["optimisation"] | optimisation | {"min_inputs": 3},
    }
    data["sweep"] |= {
        "views": [4, 8],
        "objects": 1,
        "image_size": 42,
        "max_anchors": 64,
        "mesh": {"resolution": 24, "cameras": 6, "image_size": 42},
        "artefacts": 1,
    }
    return data


@pytest.fixture
def small_disk() -> Iterator[Callable[[Path, int], Callable[[int], None]]]:
    """Give a folder a small file system of its own: (folder, kilobytes) -> what gives it another size. Needs root."""
    mounted: list[Path] = []

    def mount(folder: Path, options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        return shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0

    def small(folder: Path, kilobytes: int) -> Callable[[int], None]:
        folder.mkdir(parents=True, exist_ok=True)
        if not mount(folder, f"size={kilobytes}k"):
            pytest.skip("mounting a small file system needs root")
        mounted.append(folder)

        def resize(kilobytes: int) -> None:
            assert mount(folder, f"remount,size={kilobytes}k")

        return resize

    yield small
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def tiny_params() -> Params:
    """Parameters of both stages that train in seconds."""
    return parse_params(_shrunk(yaml.safe_load((REPOSITORY / "presets/smoke.yaml").read_text())), "tiny")


@pytest.fixture(scope="session")
def tiny_dataset(tiny_params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to run stages in: `params.yaml` and the shards of 3 training, 1 validation and 1 test object at 42 px."""
    from geolrm.data.catalog import merge_catalogs, write_if_changed
    from geolrm.data.shard_build import build_shard
    from geolrm.data.shard_plan import HashCache, find_objects, plan_shards
    from pipelines.render_procedural import render_objects

    root = tmp_path_factory.mktemp("tiny")
    (root / "params.yaml").write_text(yaml.safe_dump(tiny_params.model_dump(mode="json"), sort_keys=False))
    home = root / "datasets" / "procedural" / tiny_params.preset
    render_objects(tiny_params.procedural, home / "objects", workers=1)
    (home / "shards").mkdir()
    objects = find_objects(home / "objects", HashCache(home / "shard-hashes.json"), threads=1)
    jobs = plan_shards(objects, home / "shards", "procedural", tiny_params.shard)
    for job in jobs:
        build_shard(job)
    write_if_changed(home / "catalog.parquet", merge_catalogs(job.rows for job in jobs))
    return root
