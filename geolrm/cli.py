"""The `geolrm` command: presets, the state of this machine, weights.

In: a verb and its options. Out: what the verb says. Each verb is one function; stages of the pipeline are not verbs here but
scripts in `pipelines/`, which DVC and people run alike. Verified by running each verb as a process.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import tyro

from geolrm.config import load_params
from geolrm.failures import BadInput, run_command

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Preset:
    """Put presets/NAME.yaml in place as params.yaml and print what it will cost."""

    name: tyro.conf.Positional[str]
    """smoke, small, paper, or another file of presets/."""
    params: Path = Path("params.yaml")
    """where to put it."""

    def run(self) -> None:
        folder = ROOT / "presets"
        source = folder / f"{self.name}.yaml"
        if not source.exists():
            names = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
            raise BadInput("preset_unknown", self.name, "no such preset", f"choose one of {names}")
        load_params(source)
        shutil.copyfile(source, self.params)
        for line in source.read_text().splitlines():
            if not line.startswith("#"):
                break
            print(line.removeprefix("#").strip())
        print(f"\n{self.params} now is the preset {self.name}; `dvc repro` runs it.")


@dataclass(frozen=True)
class Doctor:
    """Say which backend each operation will use here and why, and which optional parts are missing."""

    def run(self) -> None:
        for operation, backend, reason in diagnose():
            print(f"{operation:<24} {backend:<28} {reason}")


def _installed(module: str, package: str) -> str | None:
    return version(package) if importlib.util.find_spec(module) else None


def diagnose() -> list[tuple[str, str, str]]:
    """Rows of (operation, backend or state, reason or the command that adds what is missing)."""
    import torch

    rows = [("python", sys.version.split()[0], ""), ("torch", torch.__version__, "")]
    cuda = torch.cuda.is_available()
    if cuda:
        rows.append(("device", torch.cuda.get_device_name(), "CUDA is available"))
    else:
        rows.append(("device", "cpu", "torch sees no CUDA device"))
    gsplat = _installed("gsplat", "gsplat")
    if cuda and gsplat:
        rows.append(("rendering", f"gsplat {gsplat}", "CUDA device; compiles once, about a minute"))
    elif cuda:
        rows.append(("rendering", "missing", "on a CUDA device it needs gsplat: pip install -e '.[gpu]'"))
    else:
        rows.append(("rendering", "numba tiles on the CPU", "no CUDA device"))
    rows.append(("deformable attention", "torch grid_sample", "the readable definition, on every device"))
    rows.append(("token attention", "torch SDPA", "torch picks its fused kernel where it has one"))
    rows.append(("mesh rendering", *_open3d()))
    rows.append(("mesh extraction", "torch TSDF + scikit-image", "marching cubes"))
    rows.extend(_lpips())
    rows.append(("DINOv2", "drawn from its config", "`dinov2: pretrained` needs facebook/dinov2-base in the cache"))
    rows.append(("tracking", f"mlflow {version('mlflow')}", "sqlite:///mlflow.db"))
    rows.append(("pipeline", f"dvc {version('dvc')}", "dvc repro"))
    return rows


def _open3d() -> tuple[str, str]:
    from geolrm.data.raycast import Open3DMissing, import_open3d

    try:
        import_open3d()
    except Open3DMissing as missing:
        return "missing", str(missing)
    return f"open3d {version('open3d')}", "ray casting on the CPU"


def _lpips() -> list[tuple[str, str, str]]:
    from geolrm.metrics.perceptual import NETS, weights_file

    rows = []
    for net in NETS:
        state, reason = "missing", "geolrm weights fetch lpips, or set GEOLRM_LPIPS_WEIGHTS to their folder"
        try:
            if path := weights_file(net):
                state, reason = "lpips package", str(path)
        except BadInput as error:
            reason = f"{error.where}: {error.detail}; {error.remedy}"
        rows.append((f"LPIPS ({net})", state, reason))
    return rows


@dataclass(frozen=True)
class Fetch:
    """Download weights once into the cache: LPIPS' backbones, as torchvision publishes them."""

    what: tyro.conf.Positional[Literal["lpips"]]

    def run(self) -> None:
        from geolrm.metrics.perceptual import fetch_weights

        for path in fetch_weights():
            print(path)


@dataclass(frozen=True)
class Weights:
    """Weights that are not trained here."""

    verb: Annotated[Fetch, tyro.conf.subcommand("fetch")]

    def run(self) -> None:
        self.verb.run()


Verb = (
    Annotated[Preset, tyro.conf.subcommand("preset")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    | Annotated[Weights, tyro.conf.subcommand("weights")]
)


def main() -> int:
    """Entry point of the `geolrm` command."""
    description = "GeoLRM: posed pictures of an object to 3D Gaussians."
    return run_command(lambda: tyro.cli(Verb, prog="geolrm", description=description).run())
