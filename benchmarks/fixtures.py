"""Fixtures of the published baselines: read from a folder, and compared with what a re-implementation computes.

In: a folder of safetensors files, each with weights (`sd.*`), inputs (`in.*`) and everything else recorded, and its configuration
in its metadata. Out: the table and exit status of `geolrm.parity`. Convention: what a file is about is told by its tensors,
never by its name; half precision is brought to float32, as the recorded outputs were computed; a mesh has no order, so ours is
brought into the recorded one. Trade: whatever is recorded is compared, so a file with an output that nothing here computes
fails by name; a file that fails does not hide the others. Verified by fixtures written in the tests, right and wrong.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from scipy.spatial import cKDTree
from torch import Tensor, nn

from benchmarks.published import under
from geolrm.failures import BadInput
from geolrm.parity import Difference, compare, exit_status, table

Value = TypeVar("Value")


class Named(dict[str, Value]):
    """What a file holds of one kind. A name that is not there is `BadInput` (`fixture_incomplete`)."""

    def __init__(self, content: Mapping[str, Value], file: str, kind: str) -> None:
        super().__init__(content)
        self.file, self.kind = file, kind

    def __missing__(self, name: str) -> Value:
        raise BadInput("fixture_incomplete", self.file, f"{self.kind}{name} is missing")


@dataclass(frozen=True)
class Fixture:
    """One file.

    Attributes:
        file: its name.
        config: sizes, from its metadata; empty where it needs none.
        weights: `sd.*`, names without the prefix.
        inputs: `in.*`, likewise.
        recorded: everything else, by full name. A check may bring an entry into a form that can be compared.
    """

    file: str
    config: Named[Any]
    weights: Named[Tensor]
    inputs: Named[Tensor]
    recorded: Named[Tensor]

    def holds(self, name: str) -> bool:
        """Whether a tensor of this full name is there."""
        return name in self.recorded or name[3:] in {"sd.": self.weights, "in.": self.inputs}.get(name[:3], {})


Check = Callable[[Fixture], Mapping[str, Tensor]]  # -> what was recorded, computed anew
Kinds = Mapping[str, Check]  # by the full name of a tensor: how a file that holds it is checked; the first one counts
Parts = Iterable[tuple[str, str]]  # patterns of recorded names, and the parts of a network whose outputs they are of


def _float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def read_fixture(path: Path) -> Fixture:
    """Raises `BadInput` (`fixture_unreadable`) for a file that is no safetensors file or whose configuration is no JSON."""
    try:
        with safe_open(path, "pt") as file:
            config = json.loads((file.metadata() or {}).get("config", "{}"))
            tensors = {name: _float32(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise BadInput("fixture_unreadable", path, str(error)) from error
    recorded = {name: tensor for name, tensor in tensors.items() if not name.startswith(("sd.", "in."))}
    weights, inputs = (Named(under(prefix, tensors), path.name, prefix) for prefix in ("sd.", "in."))
    return Fixture(path.name, Named(config, path.name, "config: "), weights, inputs, Named(recorded, path.name, ""))


def outputs_of(
    network: nn.Module, parts: Parts, recorded: Iterable[str], run: Callable[[], Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """What `run` gives, and what parts of a network give meanwhile, those whose names are recorded.

    Raises:
        ValueError: a submodule that the network has not, or that did not run.
    """
    names = {
        name: re.sub(pattern, part, name) for name in recorded for pattern, part in parts if re.fullmatch(pattern, name)
    }
    kept: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor | tuple[Tensor, ...]) -> None:
        kept[name] = output[0] if isinstance(output, tuple) else output

    hooks = []
    for name, part in names.items():
        try:
            module = network.get_submodule(part)
        except AttributeError as error:
            raise ValueError(f"{name}: the network has no part {part}") from error
        hooks.append(module.register_forward_hook(lambda _m, _i, output, name=name: keep(name, output)))
    try:
        result = run()
    finally:
        for hook in hooks:
            hook.remove()
    if names.keys() != kept.keys():
        raise ValueError(f"did not run: {sorted(names.keys() - kept)}")
    return result, kept


# --- meshes, whose vertices and faces have no order ---


def vertex_order(vertices: Tensor, recorded: Tensor, where: str) -> Tensor:
    """(M,) of our vertices (M, 3) the nearest to each recorded one. Raises `BadInput` unless they pair off."""
    if vertices.shape != recorded.shape:
        raise BadInput("mesh_differs", where, f"{len(vertices)} vertices, recorded {len(recorded)}")
    if not len(vertices):
        return torch.zeros(0, dtype=torch.long)
    nearest = torch.from_numpy(cKDTree(vertices.numpy()).query(recorded.numpy())[1]).long()
    if alone := len(vertices) - len(nearest.unique()):
        raise BadInput("mesh_differs", where, f"{alone} vertices are nearest to none of the recorded ones")
    return nearest


def renamed(faces: Tensor, order: Tensor) -> Tensor:
    """Faces of vertices that are brought into another order."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))[faces.long()]


def faces_in_order(faces: Tensor, recorded: Tensor, where: str) -> Tensor:
    """Our faces (F, 3), of the recorded vertices, each at the place and with the first corner that it has there.

    A face is the same wherever it starts, and another one where it is turned over. Where a face differs, some row does.
    """
    if faces.shape != recorded.shape:
        raise BadInput("mesh_differs", where, f"{len(faces)} faces, recorded {len(recorded)}")
    if not len(faces):
        return faces
    start = recorded.argmin(dim=1, keepdim=True)
    ours, theirs = (
        rows.long().gather(1, (rows.argmin(dim=1, keepdim=True) + torch.arange(3)) % 3) for rows in (faces, recorded)
    )
    sorting, places = (torch.from_numpy(np.lexsort(rows.numpy().T[::-1].copy())) for rows in (ours, theirs))
    placed = torch.empty_like(ours)
    placed[places] = ours[sorting]
    return placed.gather(1, (torch.arange(3) - start) % 3)


# --- folders ---


def check_file(kinds: Kinds, path: Path) -> list[Difference]:
    """Differences of all recorded outputs of a file.

    Raises:
        BadInput: it cannot be read, is of no known kind, or lacks something.
        ValueError: an output that is recorded and not computed, or of another shape.
    """
    fixture = read_fixture(path)
    found = next((check for name, check in kinds.items() if fixture.holds(name)), None)
    if found is None:
        raise BadInput("fixture_unknown", path.name, f"it holds none of {', '.join(kinds)}")
    return compare(path.name, found(fixture), fixture.recorded)


@torch.no_grad()
def check_folder(kinds: Kinds, folder: Path) -> int:
    """Print the table of all files of a folder; 0 where every recorded output is reproduced, else 1.

    Raises `BadInput` (`no_fixtures`) where there is no file.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BadInput("no_fixtures", folder, "no *.safetensors file", "name the folder that holds the fixtures")
    differences, failures = [], []
    for file in files:
        try:
            differences += check_file(kinds, file)
        except (BadInput, ValueError) as error:
            failures.append(f"!!! {file.name}: {error}")
    print("\n".join([table(differences), *failures]))
    return 1 if failures else exit_status(differences)


def main(kinds: Kinds, name: str) -> int:
    """The command line `python -m benchmarks.methods.NAME check FOLDER`."""
    arguments = sys.argv[1:]
    if len(arguments) != 2 or arguments[0] != "check":
        print(f"usage: python -m benchmarks.methods.{name} check FOLDER", file=sys.stderr)
        return 2
    try:
        return check_folder(kinds, Path(arguments[1]))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
