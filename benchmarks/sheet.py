"""The contact sheet of a sweep: what methods made of each object, beside the truth, in one picture.

In: the rows and pictures that a sweep kept (`artefacts/`) and the catalog of its data set. Out: a PNG, a row an object: one
input, then, for each test view chosen, the truth and every method's render; below them whom to name, and under which licence.
Convention: tiles are the sweep's own pixels, unscaled, on white. Trade: only what a sweep kept can be shown (its option
`--artefacts`). An object without attribution or licence in the catalog is refused: the sheet is made to be published.
Verified by the pixels of planted artefacts.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import tyro
from PIL import Image, ImageDraw, ImageFont

from benchmarks.artefacts import artefact_folder
from benchmarks.estimates import HEADLINE, METRICS
from benchmarks.rows import Key, Row, key_of, read_rows
from geolrm.config import load_params
from geolrm.failures import BadInput, run_command
from geolrm.files import whole_file

MARGIN, GAP, LINE = 12, 6, 17  # pixels
INK, QUIET, RULE = (34, 34, 34), (105, 105, 105), (225, 225, 225)


@dataclass
class Arguments:
    """Draw the contact sheet of a sweep: a row an object, an input beside truth and renders of test views."""

    out: Path
    """The PNG to write."""
    dataset: str = "gso"
    """Data set that was swept."""
    methods: tuple[str, ...] = ("geolrm", "visual_hull")
    """Methods to show, from left to right."""
    views: int = 8
    """Number of input views of the rows to show."""
    test_views: tuple[int, ...] = (3, 8)
    """Which test views, counted from 0."""
    params: Path = Path("params.yaml")
    """Params file; its preset names the folders of data and results."""
    datasets: Path = Path("datasets")
    """Folder of the data sets."""
    sweep: Path | None = None
    """Folder of the sweep (results/<preset>/sweep/<data set>)."""


@dataclass(frozen=True)
class Strip:
    """One object's row: its name, what to write below, and its tiles."""

    key: str
    note: str
    tiles: list[Image.Image]


def tile(picture: Path, count: int, index: int) -> Image.Image:
    """Tile `index` of a picture of `count` tiles as `artefacts.grid` lays them out. Raises `BadInput`."""
    if not 0 <= index < count:
        raise BadInput("view_missing", picture, f"view {index} of {count}", "ask for one that is there")
    if not picture.exists():
        raise BadInput("artefact_missing", picture, "the sweep kept no such picture", "sweep with more --artefacts")
    columns = math.ceil(math.sqrt(count))
    with Image.open(picture) as whole:
        width, height = whole.width // columns, whole.height // math.ceil(count / columns)
        left, top = index % columns * width, index // columns * height
        return whole.convert("RGB").crop((left, top, left + width, top + height))


def credit(catalog: Path, keys: list[str]) -> str:
    """Whom to name for these objects. Raises `BadInput` where an object's catalog row does not say it."""
    rows = {row["key"]: row for row in pq.read_table(catalog, columns=["key", "attribution", "licence"]).to_pylist()}
    found: dict[tuple[str, str], None] = {}
    for key in keys:
        row = rows.get(key)
        if row is None or not row["attribution"] or not row["licence"]:
            remedy = "render the meshes again with --attribution and --licence"
            raise BadInput("attribution_missing", f"{catalog}, {key}", "not known whom a picture must name", remedy)
        found[row["attribution"], row["licence"]] = None
    return "; ".join(f"{attribution}, {licence}" for attribution, licence in found)


def strips(rows: dict[Key, Row], folder: Path, arguments: Arguments) -> list[Strip]:
    """The rows of the sheet. Raises `BadInput`: a method was not swept over an object, or its pictures were not kept."""
    result = []
    for key in sorted({key for _, key, _ in rows}):
        wanted = [(method, key, arguments.views) for method in arguments.methods]
        if absent := [name for name in wanted if name not in rows]:
            where = f"{folder}/rows.jsonl"
            raise BadInput("row_missing", where, f"no row of {absent[0]}", "sweep these methods and views first")
        first = rows[wanted[0]]
        places = [artefact_folder(folder, *name) for name in wanted]
        tiles = [tile(places[0] / "input.png", len(first["input_views"]), 0)]
        for view in arguments.test_views:
            tiles.append(tile(places[0] / "truth.png", first["test_views"], view))
            tiles += [tile(place / "render.png", first["test_views"], view) for place in places]
        scores = [
            f"{name} {METRICS[HEADLINE].text(rows[name, key, arguments.views][HEADLINE])}" for name, _, _ in wanted
        ]
        result.append(Strip(key, f"{METRICS[HEADLINE].label}, all test views: {', '.join(scores)}", tiles))
    if not result:
        raise BadInput("no_results", folder / "rows.jsonl", "no rows", "run benchmarks/sweep_views.py first")
    return result


def draw(found: list[Strip], heads: list[str], footer: list[str]) -> Image.Image:
    """The sheet: column heads, one strip an object with its name and note below, the footer."""
    side = found[0].tiles[0].width
    width = 2 * MARGIN + len(heads) * (side + GAP) - GAP
    step = side + LINE + 2 * GAP
    height = 2 * MARGIN + LINE + len(found) * step + len(footer) * LINE
    sheet = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    lefts = [MARGIN + column * (side + GAP) for column in range(len(heads))]
    for left, head in zip(lefts, heads, strict=True):
        pen.text((left, MARGIN), head, INK, font)
    for index, strip in enumerate(found):
        top = MARGIN + LINE + index * step
        for left, picture in zip(lefts, strip.tiles, strict=True):
            sheet.paste(picture, (left, top))
        pen.text((MARGIN, top + side + 2), strip.key, INK, font)
        pen.text((width - MARGIN, top + side + 2), strip.note, QUIET, font, anchor="ra")
        pen.line((MARGIN, top + side + LINE + 3, width - MARGIN, top + side + LINE + 3), RULE)
    for index, line in enumerate(footer):
        pen.text((MARGIN, height - MARGIN - (len(footer) - index) * LINE), line, INK, font)
    return sheet


def contact_sheet(arguments: Arguments) -> None:
    """Write the sheet. Raises `BadInput`."""
    preset = load_params(arguments.params).preset
    folder = arguments.sweep or Path("results") / preset / "sweep" / arguments.dataset
    rows = {key_of(row): row for row in read_rows(folder / "rows.jsonl")}
    found = strips(rows, folder, arguments)
    catalog = arguments.datasets / arguments.dataset / preset / "catalog.parquet"
    passport = rows[arguments.methods[0], found[0].key, arguments.views]["passport"]
    checkpoint = f", checkpoint {passport['checkpoint_hash'][:10]}" if passport["checkpoint_hash"] else ""
    footer = [
        f"Objects: {credit(catalog, [strip.key for strip in found])}. Changed: rendered at "
        f"{found[0].tiles[0].width} px under this project's light.",
        f"Preset {preset}{checkpoint}; {arguments.views} input views. Views are counted from 0; test views are never inputs.",
    ]
    heads = ["input view 0"]
    for view in arguments.test_views:
        heads += [f"truth, test view {view}", *arguments.methods]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(arguments.out) as temporary:
        draw(found, heads, footer).save(temporary, format="PNG", optimize=True)
    print(f"{arguments.out}: {len(found)} objects, {arguments.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    sys.exit(run_command(lambda: contact_sheet(tyro.cli(Arguments))))
