"""Parity with recorded fixtures: is what we compute what the published code computed?

In: outputs by name, ours and recorded. Out: the largest absolute difference of each, a table, an exit status. Convention: a
fixture is a safetensors file whose metadata holds the configuration and whose tensors hold weights, inputs and the recorded
outputs; a missing, extra or mis-shaped output is a failure, never skipped, and so is a number that is not finite. Trade: one
absolute tolerance for all outputs. Verified by planted differences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Difference:
    """One output of one fixture file: how far ours is from the recorded one."""

    file: str
    output: str
    shape: tuple[int, ...]
    largest: float  # absolute; NaN where either side holds one

    @property
    def holds(self) -> bool:
        return self.largest <= TOLERANCE  # false for NaN


def compare(file: str, ours: Mapping[str, Tensor], recorded: Mapping[str, Tensor]) -> list[Difference]:
    """Differences of all recorded outputs of one file.

    Raises:
        ValueError: an output that one side lacks, or of another shape, by name.
    """
    if ours.keys() != recorded.keys():
        raise ValueError(
            f"{file}: only ours {sorted(ours.keys() - recorded)}, only recorded {sorted(recorded.keys() - ours)}"
        )
    differences = []
    for name, expected in recorded.items():
        got = ours[name]
        if got.shape != expected.shape:
            raise ValueError(f"{file}: {name} is {tuple(got.shape)}, recorded {tuple(expected.shape)}")
        gap = (got.double() - expected.double()).abs()
        differences.append(Difference(file, name, tuple(expected.shape), gap.max().item() if gap.numel() else 0.0))
    return differences


def table(differences: list[Difference]) -> str:
    """One line an output, with a mark where it is beyond the tolerance."""
    width = max((len(f"{d.file} {d.output}") for d in differences), default=0)
    lines = [
        f"{d.file} {d.output}".ljust(width) + f"  {d.largest:9.2e}  {tuple(d.shape)}{'' if d.holds else '  TOO FAR'}"
        for d in differences
    ]
    verdict = f"{sum(d.holds for d in differences)} of {len(differences)} outputs within {TOLERANCE:g}"
    return "\n".join([*lines, verdict])


def exit_status(differences: list[Difference]) -> int:
    """0 where there is something to compare and all of it holds, else 1."""
    return 0 if differences and all(d.holds for d in differences) else 1
