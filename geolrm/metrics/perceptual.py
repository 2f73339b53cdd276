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
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import torch
from torch import Tensor, nn
from tqdm import tqdm

from geolrm.failures import BadInput
from geolrm.files import sha256_of, whole_file
from geolrm.metrics.image import check_pictures

if TYPE_CHECKING:
    from geolrm.download import Manners, RemoteFile

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


def fetch_weights(
    folder: Path | None = None, urls: dict[Net, str] | None = None, manners: Manners | None = None
) -> list[Path]:
    """Download torchvision's AlexNet and VGG16 and keep their convolutional layers, for `Lpips` to read.

    A download that breaks off is taken up where it broke, by the next attempt or by the next call; its SHA-256 must begin as
    its name says, as torchvision names its files.

    Args:
        folder: where to, the cache if None. A file that is there is kept.
        urls: instead of torchvision's, a mirror for example.
        manners: how often and how patiently the server is asked.

    Returns:
        The files, AlexNet's and VGG16's.

    Raises:
        BadInput: as `download_file`, or `lpips_weights_unreadable` for other tensors than expected.
    """
    from geolrm.download import Client, Manners, download_file  # lazy: scoring needs no HTTP

    client = Client(manners or Manners())
    folder = cache_folder() if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for net, url in (source_urls() if urls is None else urls).items():
        files.append(folder / FILES[net])
        if files[-1].exists():
            continue
        download = folder / url.rpartition("/")[2]
        with tqdm(desc=download.name, unit="B", unit_scale=True) as bar:

            def progress(_: int, stream: RemoteFile, bar: tqdm[NoReturn] = bar) -> None:
                bar.total = stream.total
                bar.update(stream.position - bar.n)

            download_file(client, url, download, lambda path, url=url: _check_name(url, path), progress)  # type: ignore[misc]
        try:
            _keep_features(download, net, url, files[-1])
        finally:
            download.unlink()
    return files


def _check_name(url: str, path: Path) -> None:
    """Raise BadInput unless the SHA-256 of a file begins as the end of its URL's name says."""
    found, expected = sha256_of(path), url.rpartition("-")[2].partition(".")[0]
    if not found.startswith(expected):
        detail = f"its SHA-256 {found} does not begin with {expected}"
        raise BadInput("hash_mismatch", url, detail, f"`{COMMAND}` again")


def _keep_features(download: Path, net: Net, url: str, file: Path) -> None:
    """Write the convolutional layers of a network as torchvision publishes it. Raises BadInput."""
    from safetensors.torch import save_file

    state = torch.load(download, map_location="cpu", weights_only=True)
    names = [f"features.{layer}.{kind}" for layer in LAYERS[net] for kind in ("weight", "bias")]
    if absent := [name for name in names if name not in state]:
        raise BadInput("lpips_weights_unreadable", url, f"no tensor {absent[0]}", "expected torchvision's weights")
    with whole_file(file) as temporary:
        save_file({name: state[name].contiguous() for name in names}, temporary)
