"""Fixtures of the published baselines: read from a folder, and compared with what a re-implementation computes.

In: a folder of safetensors files, each with weights (`sd.*`), inputs (`in.*`) and everything else recorded, and its configuration
in its metadata. Out: the table and exit status of `geolrm.parity`. Convention: what a file is about is told by its tensors,
never by its name; half precision is brought to float32, as the recorded outputs were computed. Trade: whatever is
recorded is compared, so a file with an output that nothing here computes is an error that names it. Verified by fixtures
written in the tests, right and wrong.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from geolrm.failures import BadInput
from geolrm.parity import compare, exit_status, table


@dataclass(frozen=True)
class Fixture:
    """One file.

    Attributes:
        file: its name.
        config: sizes, from its metadata; empty where it needs none.
        weights: `sd.*`, names without the prefix.
        inputs: `in.*`, likewise.
        recorded: everything else, by full name.
    """

    file: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    recorded: dict[str, Tensor]


Check = Callable[[Fixture], Mapping[str, Tensor]]  # -> what was recorded, computed anew


def _float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def read_fixture(path: Path) -> Fixture:
    """Raises `BadInput` (`fixture_unreadable`) for a file that is no safetensors file or whose configuration is no JSON."""
    try:
        with safe_open(path, "pt") as file:
            config = json.loads((file.metadata() or {}).get("config", "{}"))
            tensors = {name: _float32(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise BadInput("fixture_unreadable", path, str(error)) from error
    recorded = {name: tensor for name, tensor in tensors.items() if not name.startswith(("sd.", "in."))}
    return Fixture(path.name, config, _under("sd.", tensors), _under("in.", tensors), recorded)


def outputs_of(network: nn.Module, names: Mapping[str, str], run: Callable[[], object]) -> dict[str, Tensor]:
    """What parts of a network give while `run` runs.

    Args:
        names: under which name to keep the output of which submodule.

    Raises:
        ValueError: a submodule that the network has not, or that did not run.
    """
    kept: dict[str, Tensor] = {}
    hooks = []
    for name, part in names.items():
        try:
            module = network.get_submodule(part)
        except AttributeError as error:
            raise ValueError(f"{name}: the network has no part {part}") from error
        hooks.append(module.register_forward_hook(lambda _m, _i, output, name=name: kept.__setitem__(name, output)))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    if names.keys() != kept.keys():
        raise ValueError(f"did not run: {sorted(names.keys() - kept)}")
    return kept


@torch.no_grad()
def check_folder(check: Check, folder: Path) -> int:
    """Print the table of all files of a folder; 0 where every recorded output is reproduced, else 1.

    Raises:
        BadInput: no fixture there, or one that cannot be read, or whose weights do not fit its configuration.
        ValueError: an output that is recorded and not computed, or of another shape.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BadInput("no_fixtures", folder, "no *.safetensors file", "name the folder that holds the fixtures")
    differences = []
    for file in files:
        fixture = read_fixture(file)
        differences += compare(fixture.file, check(fixture), fixture.recorded)
    print(table(differences))
    return exit_status(differences)


def main(check: Check, name: str) -> int:
    """The command line `python -m benchmarks.methods.NAME check FOLDER`."""
    arguments = sys.argv[1:]
    if len(arguments) != 2 or arguments[0] != "check":
        print(f"usage: python -m benchmarks.methods.{name} check FOLDER", file=sys.stderr)
        return 2
    try:
        return check_folder(check, Path(arguments[1]))
    except (BadInput, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
