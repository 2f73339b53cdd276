"""LPIPS v0.1 (Zhang et al. 2018) by the `lpips` package, with backbones from local files.

In: two stacks of pictures in [0, 1] (asserted), mapped to [-1, 1] here. Out: one distance per view, under a name that
says which network: `alex` or `vgg`. Convention: the linear weights are the package's own; the convolutional backbones
come from `lpips_alexnet_features.safetensors` and `lpips_vgg16_features.safetensors` (torchvision's `features.N.weight`),
in a folder or file that the caller names, else that `GEOLRM_LPIPS_WEIGHTS` names, else in the cache. Trade: nothing is
downloaded unless `fetch_weights` is called, and a backbone that is absent means no value: random weights are never used.
Verified against the package's own call, by identity, symmetry and order, and by a fetch from a server of the test's own.
"""

from __future__ import annotations

import os
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from geolrm.failures import BadInput
from geolrm.files import sha256_of
from geolrm.metrics.image import check_pictures

Net = Literal["alex", "vgg"]
NETS: tuple[Net, ...] = ("alex", "vgg")
FILES: dict[Net, str] = {"alex": "lpips_alexnet_features.safetensors", "vgg": "lpips_vgg16_features.safetensors"}
LAYERS: dict[Net, tuple[int, ...]] = {
    "alex": (0, 3, 6, 8, 10),
    "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
}
VARIABLE = "GEOLRM_LPIPS_WEIGHTS"
COMMAND = "geolrm weights fetch lpips"


def cache_folder() -> Path:
    """Where fetched weights live: `$XDG_CACHE_HOME/geolrm`, `~/.cache/geolrm` where that is unset."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "geolrm"


def weights_file(net: Net, weights: Path | None = None) -> Path | None:
    """The backbone's file of one network, or None.

    The first place that is named decides: `weights`, the environment variable, the cache. A folder is searched for the
    file by name; a file serves the one network whose name it bears. Raises BadInput if a named place does not exist.
    """
    named = weights if weights is not None else os.environ.get(VARIABLE)
    place = Path(named) if named else cache_folder()
    if named and not place.exists():
        raise BadInput("lpips_weights_missing", place, "no such file or folder", f"`{COMMAND}` fills the cache instead")
    file = place / FILES[net] if not place.is_file() else place
    return file if file.is_file() and file.name == FILES[net] else None


def _load_backbone(network: nn.Module, net: Net, file: Path) -> None:
    """Fill the backbone of an LPIPS network from a features file, every tensor of it and nothing else."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    remedy = f"delete it and `{COMMAND}`"
    try:
        stored = load_file(file)
    except (SafetensorError, OSError) as error:
        raise BadInput("lpips_weights_unreadable", file, str(error), remedy) from error
    expected = {f"features.{layer}.{kind}" for layer in LAYERS[net] for kind in ("weight", "bias")}
    if set(stored) != expected:
        wrong = ", ".join(sorted(expected ^ set(stored))[:4])
        raise BadInput("lpips_weights_unreadable", file, f"not the {net} backbone: {wrong} missing or unknown", remedy)
    # The package deals the layers out to slices, keeping torchvision's numbers: net.slice2.3.weight is features.3.weight.
    backbone = network.get_submodule("net")
    own = backbone.state_dict()
    renamed = {name: stored[f"features.{name.partition('.')[2]}"] for name in own}
    try:
        backbone.load_state_dict(renamed, strict=True)
    except RuntimeError as error:
        raise BadInput("lpips_weights_unreadable", file, f"tensors of another shape: {error}", remedy) from error


class Lpips(nn.Module):
    """One LPIPS network, frozen, differentiable in the pictures.

    Args:
        net: `alex` or `vgg`.
        weights: file or folder of the backbone; see `weights_file`.

    Raises:
        BadInput: `lpips_weights_missing` or `lpips_weights_unreadable`.
    """

    def __init__(self, net: Net, weights: Path | None = None) -> None:
        super().__init__()
        file = weights_file(net, weights)
        if file is None:
            raise BadInput("lpips_weights_missing", FILES[net], "not found", f"run `{COMMAND}`, or set {VARIABLE}")
        import lpips  # lazy: pulls in torchvision's model zoo

        with warnings.catch_warnings():  # torchvision deprecates the argument by which lpips asks for no download
            warnings.simplefilter("ignore", UserWarning)
            self.network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        _load_backbone(self.network, net, file)
        self.network.requires_grad_(False)
        self.network.eval()
        self.sha256 = sha256_of(file)

    def forward(self, images: Tensor, truth: Tensor) -> Tensor:
        """Distances (V,) between pictures (V, 3, H, W) in [0, 1]. Raises ValueError outside that range."""
        check_pictures(images, truth)
        return self.network(images, truth, normalize=True).reshape(-1)


@dataclass(frozen=True)
class PerceptualMetrics:
    """The LPIPS networks at hand. Attributes: `networks` by name; `missing`: why a network is absent, by name."""

    networks: dict[Net, Lpips]
    missing: dict[Net, str]

    @property
    def sha256(self) -> dict[str, str | None]:
        """Digest of every backbone file, None for an absent one: part of a result's passport."""
        return {net: self.networks[net].sha256 if net in self.networks else None for net in NETS}

    def distances(self, images: Tensor, truth: Tensor) -> dict[str, Tensor | None]:
        """`lpips_alex` and `lpips_vgg`: (V,) distances of pictures (V, 3, H, W) in [0, 1], None without weights."""
        with torch.no_grad():
            return {f"lpips_{n}": self.networks[n](images, truth) if n in self.networks else None for n in NETS}


def load_perceptual(
    mode: Literal["auto", "required"], weights: Path | None = None, device: torch.device | str = "cpu"
) -> PerceptualMetrics:
    """Load what there is (`auto`, one loud line for what there is not) or both networks (`required`, else BadInput)."""
    networks: dict[Net, Lpips] = {}
    missing: dict[Net, str] = {}
    for net in NETS:
        if weights_file(net, weights) is None and mode == "auto":
            missing[net] = f"lpips_{net}: no {FILES[net]} (`{COMMAND}`)"
        else:
            networks[net] = Lpips(net, weights).to(device)
    if missing:
        names = " and ".join(f"lpips_{net}" for net in missing)
        print(
            f"!!! {names} will be null: the backbone's weights are not here. Get them once with: {COMMAND}", flush=True
        )
    return PerceptualMetrics(networks, missing)


def source_urls() -> dict[Net, str]:
    """torchvision's addresses of the ImageNet weights whose features LPIPS v0.1 was calibrated on."""
    from torchvision.models import AlexNet_Weights, VGG16_Weights

    return {"alex": AlexNet_Weights.IMAGENET1K_V1.url, "vgg": VGG16_Weights.IMAGENET1K_V1.url}


def fetch_weights(
    folder: Path | None = None, urls: dict[Net, str] | None = None, check_hash: bool = True
) -> list[Path]:
    """Download torchvision's AlexNet and VGG16 and keep their convolutional layers, for `Lpips` to read.

    Args:
        folder: where to, the cache if None. A file that is there is kept.
        urls: instead of torchvision's, a mirror for example.
        check_hash: compare the download with the digest in its name, as torchvision does.

    Returns:
        The files, AlexNet's and VGG16's. Raises BadInput where a download fails or holds other tensors.
    """
    from safetensors.torch import save_file

    folder = cache_folder() if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for net, url in (source_urls() if urls is None else urls).items():
        file = folder / FILES[net]
        files.append(file)
        if file.exists():
            continue
        download = folder / f"{file.name}.download"
        try:
            torch.hub.download_url_to_file(
                url, str(download), url.rpartition("-")[2].partition(".")[0] if check_hash else None
            )
            state = torch.load(download, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            raise BadInput(
                "download_failed", url, str(error), f"try again, or put {file.name} into {folder}"
            ) from error
        finally:
            download.unlink(missing_ok=True)
        names = [f"features.{layer}.{kind}" for layer in LAYERS[net] for kind in ("weight", "bias")]
        absent = [name for name in names if name not in state]
        if absent:
            raise BadInput("lpips_weights_unreadable", url, f"no tensor {absent[0]}", "expected torchvision's weights")
        part = folder / f"{file.name}.part"
        save_file({name: state[name].contiguous() for name in names}, part)
        part.replace(file)
    return files
