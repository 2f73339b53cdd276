"""All views of one object of a shard in one picture, to look at before anything is trained on them.

In: a `Sample`. Out: an image: a tile a view, on white, its position and role below it; input-able views first, then the test
views. Trade: tiles are scaled down to fit, so that the sheet shows what an object is and where it was seen from, not its
pixels. Verified by the colours of known spheres.
"""

from __future__ import annotations

import math

from PIL import Image, ImageDraw, ImageFont

from geolrm.data.loader import Sample
from geolrm.views import Views

CAPTION, GAP = 14, 4  # pixels
INK, CROPPED = (34, 34, 34), (190, 30, 30)


def contact_sheet(sample: Sample, side: int = 128) -> Image.Image:
    """Tiles of at most `side` pixels, in a grid about as wide as it is high; captions of cropped views are red."""
    tiles = [
        (f"{i} {role}", sample.views([i]), i in sample.meta["cropped_views"]) for i, role in enumerate(sample.roles)
    ]
    if sample.test_cameras is not None:
        tests = sample.test_views()
        tiles += [(f"test {i}", tests[i : i + 1], False) for i in range(len(tests))]
    columns = math.ceil(math.sqrt(len(tiles)))
    width, height = side + GAP, side + CAPTION + GAP
    sheet = Image.new("RGB", (columns * width + GAP, math.ceil(len(tiles) / columns) * height + GAP), (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for number, (caption, views, cropped) in enumerate(tiles):
        left, top = GAP + number % columns * width, GAP + number // columns * height
        tile = _picture(views)
        tile.thumbnail((side, side))
        sheet.paste(tile, (left + (side - tile.width) // 2, top + (side - tile.height) // 2))
        draw.text((left, top + side), caption, CROPPED if cropped else INK, font)
    return sheet


def _picture(views: Views) -> Image.Image:
    """The first of some views, on white."""
    return Image.fromarray((views.composited()[0] * 255).round().byte().permute(1, 2, 0).numpy())
