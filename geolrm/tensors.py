"""Named tensors on disk, and into a network.

In: tensors by name. Out: a safetensors file; and back, into a network that must want exactly these. Convention: files are
written whole or not at all (`files.py`); what is missing, extra or of another shape is named, every one. Trade: safetensors
alone is written, since reading one runs no code. Verified by planted damage of files, names and shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from geolrm.failures import BadInput
from geolrm.files import whole_file

Shapes = Mapping[str, tuple[int, ...]]


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file."""
    with whole_file(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)


def read_tensors(path: Path, remedy: str = "train the stage first: `dvc repro`") -> dict[str, Tensor]:
    """Tensors of a safetensors file. Raises `BadInput` for a missing or damaged file, with `remedy` where there is none."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise BadInput("checkpoint_missing", path, "no such file", remedy) from error
    except safetensors.SafetensorError as error:
        raise BadInput(
            "checkpoint_unreadable", path, str(error), "the file is cut short or no safetensors file"
        ) from error


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Name to shape."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def require_shapes(found: Shapes, expected: Shapes, where: object) -> None:
    """Raise `BadInput` naming every tensor that is missing, extra or of another shape."""
    problems = [f"missing {name}" for name in sorted(expected.keys() - found.keys())]
    problems += [f"extra {name}" for name in sorted(found.keys() - expected.keys())]
    problems += [
        f"{name} is {found[name]}, expected {expected[name]}"
        for name in sorted(expected.keys() & found.keys())
        if found[name] != expected[name]
    ]
    if problems:
        remedy = "the checkpoint is of a network of another size or kind"
        raise BadInput("checkpoint_mismatch", where, "; ".join(problems), remedy)


def load_strictly(network: nn.Module, tensors: Mapping[str, Tensor], where: object) -> None:
    """Load weights by name. Raises as `require_shapes`."""
    require_shapes(shapes_of(tensors), shapes_of(network.state_dict()), where)
    network.load_state_dict(dict(tensors))
