"""The protocol `geolrm-bench-v1`: everything that decides a score apart from the data, the method and its weights.

In: nothing; the constants stand where they are used, and are gathered here. Out: the protocol as JSON, the block of
`docs/protocol.md`; its hash, which every result row carries; how a params file departs from it. Convention: the hash is the
sha256 of the block's text, so that `python -m benchmarks.protocol` prints what the page holds, byte for byte; a page that does
not hold it stops the sweep. Trade: a smaller preset runs the same protocol with smaller numbers, and every row lists them as
`deviations`. Verified by the frozen hash and by planting a change in code and page.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.inputs import ViewPlan, nested_orbit
from benchmarks.rows import HEADLINE_VIEWS
from benchmarks.scores import BACKGROUND, DENSE_POINTS, VISIBLE_POINTS
from benchmarks.splits import DATASETS, PROTOCOL, SIZE
from geolrm import meshing
from geolrm.config import Mesh, Sweep
from geolrm.data import rig
from geolrm.failures import BadInput
from geolrm.files import sha256_of, write_whole
from geolrm.metrics import geometry, image

PAGE = Path(__file__).parents[1] / "docs" / "protocol.md"
BEGIN, END = "<!-- protocol:begin -->\n```json\n", "\n```\n<!-- protocol:end -->"
VIEW_COUNTS = (4, 6, 8, 12, 16, 20, 21)
EXAMPLE = "test-00000"  # the object whose random inputs are printed
# The values of the settings of a sweep; a smaller preset departs from them.
SETTINGS: dict[str, Any] = {
    "image_size": 512,
    "mesh": Mesh(resolution=256, cameras=96, image_size=512).model_dump(),
    "full_geometry": True,
}


def content() -> dict[str, Any]:
    """The protocol, JSON-able."""
    cameras = rig.render_rig(EXAMPLE)
    roles = rig.view_roles(cameras)
    distinct = [i for i, role in enumerate(roles) if role != "duplicate"]
    plan = ViewPlan.of(EXAMPLE, cameras[distinct], [roles[i] for i in distinct], has_tests=True)
    return {
        "name": PROTOCOL,
        "objects": {
            "rule": f"the names of smallest sha256(name + {PROTOCOL!r}), smallest first",
            "size": SIZE,
            "lists": "datasets/NAME/NAME-100.txt, drawn from datasets/NAME/names.txt",
            "gso-100": f"sha256 {sha256_of(DATASETS / 'gso' / 'gso-100.txt')}",
            "procedural": {"seed": 0, "keys": "test-00000 to test-00099", "surface": "closed form"},
        },
        "cameras": {
            "fov_degrees": rig.FOV,
            "radius": rig.RADIUS,
            "orbit": f"{rig.ORBIT_VIEWS} views, one elevation an object in {list(rig.ORBIT_ELEVATIONS)}",
            "test": [[11.25 + 22.5 * k, rig.TEST_ELEVATIONS[k % 4]] for k in range(rig.TEST_VIEWS)],
            "native": "a full orbit gives the inputs and the rest is held out; without one, the first 16 of the "
            "farthest-point order are held out and the inputs come from the rest",
        },
        "inputs": {
            "counts": list(VIEW_COUNTS),
            "headline": HEADLINE_VIEWS,
            "orbit": {str(count): list(rig.orbit_inputs(count)) for count in VIEW_COUNTS},
            "nested": nested_orbit(),
            "random": {"rule": "nearest view not taken to directions by sha256(protocol/random/key/number)"}
            | {EXAMPLE: plan.inputs("random", VIEW_COUNTS[-1])},
        },
        "pictures": {
            "image_size": SETTINGS["image_size"],
            "background": BACKGROUND,
            "order": "resized premultiplied, then composited; renders clamped to [0, 1]; no crop",
            "mean": "per view, then object",
            "psnr": {"range": 1, "max": image.PSNR_MAX},
            "psnr_pooled": "one mean squared error over all views of the object",
            "psnr_foreground": "pixels of true alpha > 0.5",
            "ssim": {"window": image.SSIM_WINDOW, "sigma": image.SSIM_SIGMA, "k": list(image.SSIM_K), "range": 1},
            "lpips": "v0.1, inputs in [-1, 1]; lpips_vgg is primary, lpips_alex beside it",
            "mask_iou": f"alpha > {image.SURFACE_ALPHA:g}",
            "depth_error": "median over all pixels of true depth; a pixel without predicted surface counts "
            f"{image.DEPTH_MISSING:.6f}; object units",
        },
        "geometry": {
            "box": "[-1, 1]^3 by the truth's box alone; no alignment, no rescaling",
            "points": geometry.POINTS,
            "distance": "unsquared; cd_sum adds both mean nearest distances, cd_mean halves that",
            "thresholds": list(geometry.THRESHOLDS),
            "100k": DENSE_POINTS,
            "visible": f"{VISIBLE_POINTS} of the hits of the rays through all pixels of the test views",
            "floor": "two draws of the true points that share none",
            "mesh": SETTINGS["mesh"],
            "fusion": {"radius": meshing.RADIUS, "fov": meshing.FOV, "truncation": meshing.TRUNCATION}
            | {"alpha": [meshing.EMPTY_ALPHA, meshing.MIN_ALPHA], "floaters": meshing.MIN_COMPONENT},
        },
        "failures": {
            "empty, failed, out_of_memory": {"pictures": "white, no surface"} | geometry.missing_surface(),
            "not_applicable, not_installed": "not scored",
        },
        "means": "over all scored objects, and over those that every method reconstructed; surfaces of mesh, closed form "
        "and depth apart",
        "intervals": "95 %, percentile bootstrap over objects, the same draws for every method",
    }


def _text(value: Any, indent: int = 0) -> str:
    """JSON with a line for each entry of what does not fit into one."""
    line = json.dumps(value)
    if not isinstance(value, dict) or len(line) <= 100 - indent:
        return line
    entries = [f"{' ' * (indent + 2)}{json.dumps(name)}: {_text(entry, indent + 2)}" for name, entry in value.items()]
    return "{\n" + ",\n".join(entries) + "\n" + " " * indent + "}"


def block() -> str:
    """The protocol's text, as the page holds it."""
    return _text(content())


def protocol_hash() -> str:
    """sha256 of the block."""
    return hashlib.sha256(block().encode()).hexdigest()


def deviations(settings: Sweep) -> list[str]:
    """How a sweep's settings depart from the protocol, in words; none for the protocol itself."""
    found = []
    for name, value in SETTINGS.items():
        own = settings.model_dump()[name]
        pairs = {f"{name}.{k}": (own[k], value[k]) for k in value} if isinstance(value, dict) else {name: (own, value)}
        found += [f"{place} {mine}, not {theirs}" for place, (mine, theirs) in pairs.items() if mine != theirs]
    return found


def stamped(page: str, where: object = PAGE) -> str:
    """The page with the block and its hash as they are now. Raises `BadInput` where its markers are missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BadInput("protocol_page", where, "the block's markers are missing", "restore them from the history")
    lines = [f"Hash: `{protocol_hash()}`" if line.startswith("Hash: `") else line for line in before.splitlines()]
    return "\n".join(lines) + f"\n{BEGIN}{block()}{END}{after}"


def check_page(page: Path = PAGE) -> None:
    """Raise `BadInput` unless the page says what the code does."""
    if not page.is_file():
        raise BadInput("protocol_page", page, "no such file", "run from a clone of the repository")
    text = page.read_text()
    if stamped(text, page) != text:
        remedy = "`python -m benchmarks.protocol --write`, and a new name if results stand on the old one"
        raise BadInput("protocol_page", page, "it does not say what the code does", remedy)


def main(write: bool = False) -> None:
    """Print the protocol and say whether docs/protocol.md holds it.

    Args:
        write: bring the page up to date.
    """
    if write:
        write_whole(PAGE, stamped(PAGE.read_text()))
    print(f"{block()}\nhash {protocol_hash()}")
    check_page()


if __name__ == "__main__":
    import tyro

    try:
        tyro.cli(main)
    except BadInput as error:
        sys.exit(f"error: {error}")
