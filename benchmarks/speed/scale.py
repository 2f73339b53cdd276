"""What a data set of any size will cost: bytes, hours and money, from measured rates.

In: the result files of `building.py` and `codecs.py`, and prices as options. Out: the Markdown tables of docs/scale.md.
Convention: GObjaverse's 38 distinct views of 512 px an object; a worker is one core; hours are processor time over workers, so
a floor that a network, a disk or a source's patience can only raise. Trade: scanned objects stand for all others. Verified by
tests/benchmarks/test_scale.py on made-up rates.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

COLOUR = "colour: planes of row steps, zstd, level 9"
DEPTH = "depth: planes of row steps, zstd, level 9, step 2^-13"
WORKERS = (1, 16, 256)
VIEWS = 38
SURFACE_BYTES = 16384 * (12 + 6)


@dataclass(frozen=True)
class Options:
    """Print what data sets of several sizes cost."""

    building: Path = Path("docs/results/building.json")
    """What `benchmarks/speed/building.py` wrote."""
    codecs: Path = Path("docs/results/codecs.json")
    """What `benchmarks/speed/codecs.py` wrote."""
    objects: tuple[int, ...] = (280_000, 10_000_000)
    """Sizes of data sets."""
    source_bytes: float = 2.6e12 / 280_000
    """Bytes to fetch of each object: of GObjaverse's 2.6 TB for 280,000, as its users report it."""
    core_hour: float = 0.05
    """Price of a core for an hour, dollars: a round figure for rented processors."""
    gigabyte_month: float = 0.023
    """Price of a gigabyte for a month, dollars: a round figure for object storage."""


@dataclass(frozen=True)
class Rates:
    """What one object costs: processor seconds, and bytes of its shard."""

    seconds: float
    bytes: float


def rates(building: dict[str, Any], codecs: dict[str, Any]) -> Rates:
    """Rates of one object: seconds as built (its test views, which GObjaverse lacks, included: a bound from above), bytes of
    its views and surface points."""
    each = codecs["rows"][COLOUR]["bytes"] + codecs["rows"][DEPTH]["bytes"]
    return Rates(building["processor_seconds_per_object"], VIEWS * each + SURFACE_BYTES)


def rows(objects: int, rate: Rates, options: Options) -> list[dict[str, float]]:
    """For each number of workers: hours, gigabits a second read, and dollars."""
    core_hours = objects * rate.seconds / 3600
    return [
        {
            "workers": workers,
            "hours": core_hours / workers,
            "gigabits_in": 8e-9 * workers / rate.seconds * options.source_bytes,
            "dollars": core_hours * options.core_hour,
        }
        for workers in WORKERS
    ]


def table(options: Options) -> str:
    """The Markdown table."""
    rate = rates(json.loads(options.building.read_text()), json.loads(options.codecs.read_text()))
    lines = [
        f"{rate.seconds:.2f} processor seconds and {rate.bytes / 1e6:.2f} MB of shard an object.",
        "",
        "| objects | fetched, TB | shards, TB | a month's storage | workers | hours | read, Gbit/s | processors |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for objects in options.objects:
        fetched, made = objects * options.source_bytes, objects * rate.bytes
        for row in rows(objects, rate, options):
            lines.append(
                f"| {objects:,} | {fetched / 1e12:.1f} | {made / 1e12:.2f} | ${made / 1e9 * options.gigabyte_month:,.0f} "
                f"| {row['workers']} | {row['hours']:,.1f} | {row['gigabits_in']:.2f} | ${row['dollars']:,.0f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(tyro.cli(Options)))
