"""The contact sheet shows the sweep's own pixels, and whom to name for them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from synthetic_results import row, write_lines

from benchmarks.artefacts import artefact_folder, grid
from benchmarks.sheet import GAP, LINE, MARGIN, Arguments, contact_sheet, credit, tile
from geolrm.failures import BadInput
from geolrm.pictures import save_picture

SIDE, KEYS, METHODS = 96, ("bowl-0", "plate-1"), ("geolrm", "visual_hull")


def shades(start: int, count: int) -> torch.Tensor:
    """Pictures (count, 3, SIDE, SIDE) whose levels start, start + 1, ... tell them apart."""
    levels = torch.arange(start, start + count) / 255
    return levels[:, None, None, None].expand(count, 3, SIDE, SIDE)


@pytest.fixture
def swept(tmp_path):
    """A sweep of two objects whose pictures say what they are: input 10, truth 100, renders 150 and 200, each plus view."""
    sweep = tmp_path / "sweep"
    write_lines(sweep / "rows.jsonl", [row(method, key, 8, "gso", "mesh") for method in METHODS for key in KEYS])
    for index, method in enumerate(METHODS):
        for key in KEYS:
            folder = artefact_folder(sweep, method, key, 8)
            folder.mkdir(parents=True)
            for name, start, count in (("input", 10, 8), ("truth", 100, 16), ("render", 150 + 50 * index, 16)):
                save_picture(grid(shades(start, count)), folder / f"{name}.png")
    write_catalog(tmp_path, "CC BY 4.0")
    return Arguments(tmp_path / "sheet.png", views=8, datasets=tmp_path / "datasets", sweep=sweep)


def write_catalog(folder, licence):
    catalog = folder / "datasets" / "gso" / "smoke" / "catalog.parquet"
    catalog.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"key": key, "attribution": "Their Makers", "licence": licence} for key in KEYS]
    pq.write_table(pa.Table.from_pylist(rows, pa.schema([(n, pa.string()) for n in rows[0]])), catalog)


def test_every_tile_holds_the_pixels_of_its_view_and_method(swept):
    contact_sheet(swept)
    sheet = np.asarray(Image.open(swept.out))
    for strip in range(len(KEYS)):
        top = MARGIN + LINE + strip * (SIDE + LINE + 2 * GAP)
        for column, level in enumerate((10, 103, 153, 203, 108, 158, 208)):
            left = MARGIN + column * (SIDE + GAP)
            assert (sheet[top : top + SIDE, left : left + SIDE] == level).all()


@pytest.mark.parametrize("count", [1, 2, 5, 8, 16, 21])
def test_a_tile_is_found_wherever_the_grid_laid_it(tmp_path, count):
    save_picture(grid(shades(7, count)), tmp_path / "grid.png")
    for index in range(count):
        assert (np.asarray(tile(tmp_path / "grid.png", count, index)) == 7 + index).all()


@pytest.mark.parametrize("index", [-1, 5])
def test_a_tile_that_the_grid_does_not_hold_is_refused(tmp_path, index):
    save_picture(grid(shades(7, 5)), tmp_path / "grid.png")
    with pytest.raises(BadInput, match="view_missing"):
        tile(tmp_path / "grid.png", 5, index)


def test_the_credit_names_maker_and_licence_once(swept):
    assert credit(swept.datasets / "gso" / "smoke" / "catalog.parquet", list(KEYS)) == "Their Makers, CC BY 4.0"


def test_objects_without_a_licence_are_not_drawn(swept, tmp_path):
    write_catalog(tmp_path, None)
    with pytest.raises(BadInput, match="attribution_missing"):
        contact_sheet(swept)
    assert not swept.out.exists()


def test_pictures_that_the_sweep_did_not_keep_are_said_to_be_missing(swept):
    (artefact_folder(swept.sweep, "geolrm", "plate-1", 8) / "render.png").unlink()
    with pytest.raises(BadInput, match="--artefacts"):
        contact_sheet(swept)


def test_a_view_count_that_was_not_swept_is_refused(swept):
    swept.views = 5
    with pytest.raises(BadInput, match="row_missing"):
        contact_sheet(swept)
