"""The `geolrm` command: presets, the state of this machine, weights, checkpoints, data sets.

In: a verb and its options. Out: what the verb says. Each verb is one function; stages of the pipeline are not verbs here but
scripts in `pipelines/`, which DVC and people run alike. Verified by running each verb as a process.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from geolrm.config import load_params
from geolrm.data.commands import Data
from geolrm.failures import BadInput, run_command
from geolrm.files import write_whole

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Preset:
    """Put presets/NAME.yaml in place as params.yaml and print what it will cost."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """smoke, small, paper, overfit, or another file of presets/."""
    params: Path = Path("params.yaml")
    """where to put it."""

    def run(self) -> None:
        folder = ROOT / "presets"
        source = folder / f"{self.name}.yaml"
        if not source.exists():
            names = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
            raise BadInput("preset_unknown", self.name, "no such preset", f"choose one of {names}")
        load_params(source)
        text = source.read_text()
        write_whole(self.params, text)
        for line in text.splitlines():
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
    rows.extend(_execution(torch.device("cuda" if cuda else "cpu")))
    rows.append(("mesh rendering", *_open3d()))
    rows.append(("mesh extraction", "torch TSDF + scikit-image", "marching cubes"))
    rows.extend(_lpips())
    rows.append(("DINOv2", *_dinov2()))
    rows.append(("tracking", f"mlflow {version('mlflow')}", "sqlite:///mlflow.db"))
    rows.append(("pipeline", f"dvc {version('dvc')}", "dvc repro"))
    return rows


def _execution(device: torch.device) -> list[tuple[str, str, str]]:
    from geolrm.model.execution import missing_for_kernels, products_in_bfloat16

    missing = missing_for_kernels(device)
    low = products_in_bfloat16("auto", device)
    kernels = (
        ("torch grid_sample", f"the readable definition: {missing}")
        if missing
        else (f"triton {version('triton')}", "fused kernels: deformable attention, carving cues, colours")
    )
    return [
        ("precision", "bf16 products" if low else "fp32", "what `precision: auto` means here"),
        ("deformable attention", *kernels),
        ("token attention", "torch SDPA", "fused in bf16" if low else "torch picks its fused kernel where it has one"),
    ]


def _open3d() -> tuple[str, str]:
    from geolrm.data.raycast import Open3DMissing, import_open3d

    try:
        import_open3d()
    except Open3DMissing as missing:
        return "missing", str(missing)
    return f"open3d {version('open3d')}", "ray casting on the CPU"


def _dinov2() -> tuple[str, str]:
    from huggingface_hub import try_to_load_from_cache

    from geolrm.model.encoder import PRETRAINED

    path = try_to_load_from_cache(PRETRAINED, "model.safetensors")
    if isinstance(path, str):
        return "transformers", f"`dinov2: pretrained` reads {path}"
    return "drawn at random", f"that is `dinov2: scratch`; for `pretrained` (preset paper): hf download {PRETRAINED}"


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
class Weights:
    """Weights that are not trained here: fetch LPIPS' backbones once into the cache, as torchvision publishes them."""

    verb: tyro.conf.Positional[Literal["fetch"]]
    what: tyro.conf.Positional[Literal["lpips"]]

    def run(self) -> None:
        from geolrm.metrics.perceptual import fetch_weights

        for path in fetch_weights():
            print(path)


@dataclass(frozen=True)
class Convert:
    """Rewrite the published GeoLRM checkpoint as safetensors, every tensor's name and shape checked."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Lightning checkpoint of the public code, or weights already converted."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    """safetensors file to write; `geolrm.model.released.load_released_checkpoint` reads it."""

    def run(self) -> None:
        from geolrm.model.released import UNUSED, convert

        written, ignored = convert(self.source, self.target)
        idle = [name for name in written if name.endswith(tuple(unused for _, unused, _ in UNUSED))]
        print(f"{self.target}: {len(written)} tensors, {self.target.stat().st_size / 2**20:,.1f} MiB")
        print(f"kept, but without a part in any result: {', '.join(idle)}")
        print(f"left out (the training's LPIPS network): {', '.join(ignored) or 'nothing'}")


@dataclass(frozen=True)
class Publish:
    """Write both networks of a training as float16 weights that come with the package (`geolrm.load_pretrained`)."""

    results: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RESULTS")]
    """Folder with the checkpoints of both stages, such as results/small."""
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Of the set; its card geolrm/pretrained/NAME.md must be there."""

    def run(self) -> None:
        from geolrm.pretrained import LIMIT_BYTES, folder_of, publish

        target = folder_of(self.name)
        networks = publish(self.results, target)
        for network in networks:
            facts = f"{network.parameters:,} parameters, {network.size:,} bytes, sha256 {network.sha256}"
            print(f"{target / network.stage}: {facts}")
        size = sum(network.size for network in networks)
        parameters = sum(network.parameters for network in networks)
        print(f"{parameters:,} parameters, {size / 2**20:.2f} MiB of at most {LIMIT_BYTES / 2**20:.0f}")


@dataclass(frozen=True)
class Checkpoint:
    """Checkpoints for others: the published one of GeoLRM, and those that come with this package."""

    verb: Annotated[Convert, tyro.conf.subcommand("convert")] | Annotated[Publish, tyro.conf.subcommand("publish")]

    def run(self) -> None:
        self.verb.run()


Verb = (
    Annotated[Preset, tyro.conf.subcommand("preset")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    | Annotated[Weights, tyro.conf.subcommand("weights")]
    | Annotated[Checkpoint, tyro.conf.subcommand("checkpoint")]
    | Annotated[Data, tyro.conf.subcommand("data")]
)


def main() -> int:
    """Entry point of the `geolrm` command."""
    names = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    description = (
        "GeoLRM: posed pictures of an object to 3D Gaussians. `dvc repro` runs the whole pipeline of params.yaml; each of its "
        "stages is a script of its own: python -m pipelines.train_proposal --help, and so on (README.md lists them)."
    )
    return run_command(lambda: tyro.cli(Verb, prog="geolrm", description=description, config=names).run())
