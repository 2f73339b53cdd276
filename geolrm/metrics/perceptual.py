"""LPIPS v0.1 (Zhang et al. 2018) by the `lpips` package, with backbones from local files.

In: two stacks of pictures in [0, 1] (asserted), mapped to [-1, 1] here. Out: one distance per view, under a name that
says which network: `alex` or `vgg`. Convention: the linear weights are the package's own; the convolutional backbones
come from `lpips_alexnet_features.safetensors` and `lpips_vgg16_features.safetensors` (torchvision's `features.N.weight`),
in a folder or file that the caller names, or else that `GEOLRM_LPIPS_WEIGHTS` names; what is not there is looked for in the
cache. Trade: nothing is downloaded unless `fetch_weights` is called, and a backbone that is absent means no value: random
weights are never used. Verified against the package's own network, by identity, symmetry and order, and by fetching from a
server of the test's own that breaks off.
"""

from __future__ import annotations

import os
import time
import warnings
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from torch import Tensor, nn
from tqdm import tqdm

from geolrm.failures import BadInput
from geolrm.files import disk_full, full_disk_named, sha256_of, whole_file
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
ATTEMPTS, PAUSE, STALLED = 4, 1.0, 30.0  # of a download; seconds before the second, 3 and 7 of it later; without a byte


def cache_folder() -> Path:
    """Where fetched weights live: `$XDG_CACHE_HOME/geolrm`, `~/.cache/geolrm` where that is unset."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "geolrm"


def weights_file(net: Net, weights: Path | None = None) -> Path | None:
    """The backbone's file of one network, or None.

    Looked for in the place that `weights` names, or else the environment variable, then in the cache. A folder is searched for
    the file by name; a file serves the one network whose name it bears. Raises BadInput if the named place does not exist.
    """
    named = weights if weights is not None else os.environ.get(VARIABLE)
    places = [Path(named)] if named else []
    if named and not places[0].exists():
        raise BadInput("lpips_weights_missing", named, "no such file or folder", f"`{COMMAND}` fills the cache instead")
    for place in [*places, cache_folder()]:
        file = place if place.is_file() else place / FILES[net]
        if file.is_file() and file.name == FILES[net]:
            return file
    return None


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


def fetch_weights(folder: Path | None = None, urls: dict[Net, str] | None = None) -> list[Path]:
    """Download torchvision's AlexNet and VGG16 and keep their convolutional layers, for `Lpips` to read.

    A download that breaks off is taken up where it broke, by the next attempt or by the next call; its SHA-256 must begin as
    its name says, as torchvision names its files.

    Args:
        folder: where to, the cache if None. A file that is there is kept.
        urls: instead of torchvision's, a mirror for example.

    Returns:
        The files, AlexNet's and VGG16's.

    Raises:
        BadInput: `download_failed`, `download_damaged`, or `lpips_weights_unreadable` for other tensors than expected.
    """
    folder = cache_folder() if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for net, url in (source_urls() if urls is None else urls).items():
        files.append(folder / FILES[net])
        if not files[-1].exists():
            download = folder / f"{FILES[net]}.download"
            with full_disk_named(download):
                _download(url, download)
            try:
                _keep_features(download, net, url, files[-1])
            finally:
                download.unlink()
    return files


def _download(url: str, path: Path) -> None:
    """Bring a file here, going on after the bytes of it that are here already. Raises BadInput `download_failed`."""
    for attempt in range(ATTEMPTS):
        time.sleep(PAUSE * (2**attempt - 1))
        have = path.stat().st_size if path.exists() else 0
        try:
            with urlopen(Request(url, headers={"Range": f"bytes={have}-"}), timeout=STALLED) as answer:
                have = have if answer.status == 206 else 0
                total = None if answer.length is None else have + answer.length
                with (
                    path.open("ab" if have else "wb") as file,
                    tqdm(desc=url.rpartition("/")[2], total=total, initial=have, unit="B", unit_scale=True) as bar,
                ):
                    while chunk := answer.read(1 << 18):
                        file.write(chunk)
                        bar.update(len(chunk))
            if total in (None, path.stat().st_size):
                return
            seen = f"it ended after {path.stat().st_size:,} of {total:,} bytes"
        except (OSError, HTTPException) as error:
            if disk_full(error):
                raise
            seen, status = str(error), error.code if isinstance(error, HTTPError) else None
            if status == 416:  # nothing beyond what is here: that may be of another file
                path.unlink(missing_ok=True)
            elif status is not None and status < 500:
                break
    raise BadInput("download_failed", url, seen, f"`{COMMAND}` again goes on where it broke")


def _keep_features(download: Path, net: Net, url: str, file: Path) -> None:
    """Write the convolutional layers of a network as torchvision publishes it. Raises BadInput."""
    from safetensors.torch import save_file

    found, expected = sha256_of(download), url.rpartition("-")[2].partition(".")[0]
    if not found.startswith(expected):
        raise BadInput(
            "download_damaged", url, f"its SHA-256 {found} does not begin with {expected}", f"`{COMMAND}` again"
        )
    state = torch.load(download, map_location="cpu", weights_only=True)
    names = [f"features.{layer}.{kind}" for layer in LAYERS[net] for kind in ("weight", "bias")]
    if absent := [name for name in names if name not in state]:
        raise BadInput("lpips_weights_unreadable", url, f"no tensor {absent[0]}", "expected torchvision's weights")
    with whole_file(file) as temporary:
        save_file({name: state[name].contiguous() for name in names}, temporary)
