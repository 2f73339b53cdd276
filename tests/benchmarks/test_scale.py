"""Claims about costs on paper: hours fall with workers, money does not, bytes follow the codecs."""

import json
from pathlib import Path

import pytest

from benchmarks.speed.scale import COLOUR, DEPTH, SURFACE_BYTES, Options, rates, rows, table


@pytest.fixture
def options(tmp_path: Path) -> Options:
    (tmp_path / "building.json").write_text(json.dumps({"processor_seconds_per_object": 3.6}))
    codecs = {"rows": {COLOUR: {"bytes": 50_000}, DEPTH: {"bytes": 20_000}}}
    (tmp_path / "codecs.json").write_text(json.dumps(codecs))
    return Options(tmp_path / "building.json", tmp_path / "codecs.json", objects=(1000,), source_bytes=1e7)


def test_a_thousand_objects_of_three_and_a_half_seconds_take_an_hour_of_one_core(options: Options) -> None:
    rate = rates(json.loads(options.building.read_text()), json.loads(options.codecs.read_text()))
    assert rate.bytes == 38 * 70_000 + SURFACE_BYTES
    one, sixteen, many = rows(1000, rate, options)
    assert one["hours"] == pytest.approx(1)
    assert many["hours"] == pytest.approx(1 / 256)
    assert one["dollars"] == sixteen["dollars"] == many["dollars"] == pytest.approx(0.05)
    assert many["gigabits_in"] == pytest.approx(256 / 3.6 * 0.08)


def test_the_table_has_a_line_for_each_number_of_workers(options: Options) -> None:
    lines = table(options).splitlines()
    assert [line.split("|")[5].strip() for line in lines[4:]] == ["1", "16", "256"]
