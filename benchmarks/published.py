"""Published weights of the baselines: where they lie, and how they get into a network.

In: the name of a file, a network on the meta device. Out: the network with these weights in float32, on its device. Convention:
files lie under their published names in the folder that `GEOLRM_BASELINE_WEIGHTS` names, else in `baselines` of the cache;
nothing is downloaded, the error says how to. A pickled file is read without running code. Trade: names and shapes must agree
to the last tensor, so a file that holds more than the network is refused, by name. Verified by planted damage.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from geolrm.failures import BadInput
from geolrm.metrics.perceptual import cache_folder
from geolrm.tensors import read_tensors, require_shapes, shapes_of

Network = TypeVar("Network", bound=nn.Module)
VARIABLE = "GEOLRM_BASELINE_WEIGHTS"
DIFFERS = "other objects (lists unpublished), cameras, renders and scripts than here"  # true of every published number
UNTRAINED = "random weights: for latency and memory alone"  # in place of a checkpoint's hash


def published_folder() -> Path:
    """Where published weights lie."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else cache_folder() / "baselines"


def published_file(repository: str, name: str) -> Path:
    """The file of this name of a Hugging Face repository. Raises `BadInput` (`weights_missing`) where it is not here."""
    folder = published_folder()
    file = folder / name
    if not file.is_file():
        remedy = (
            f"`hf download {repository} {name} --local-dir {folder}`, or set {VARIABLE} to the folder that holds it"
        )
        raise BadInput("weights_missing", file, "the published weights are not here", remedy)
    return file


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names start with `prefix`, which is cut off."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def read_published(file: Path) -> dict[str, Tensor]:
    """Named tensors of a safetensors file, or of a pickle of tensors and plain values, there or under its `state_dict`.

    Raises `BadInput` (`checkpoint_unreadable`), for a pickle that would run code too.
    """
    if file.suffix == ".safetensors":
        return read_tensors(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        detail = str(error).strip().partition("\n")[0]
        remedy = "it is cut short, or holds more than tensors and plain values"
        raise BadInput("checkpoint_unreadable", file, detail, remedy) from error
    if isinstance(content, Mapping):
        content = content.get("state_dict", content)
    if not isinstance(content, Mapping) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise BadInput("checkpoint_unreadable", file, "holds no plain table of named tensors")
    return dict(content)


def filled(make: Callable[[], Network], tensors: Mapping[str, Tensor], where: object) -> Network:
    """A network with these weights in float32, in eval mode, where the tensors are.

    Args:
        make: makes the network; called on the meta device, so that nothing is drawn or allocated twice.

    Raises:
        BadInput: `checkpoint_mismatch` naming every tensor that is missing, extra or of another shape.
    """
    with torch.device("meta"):
        network = make()
    require_shapes(shapes_of(tensors), shapes_of(network.state_dict()), where)
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return network.eval().requires_grad_(False)
