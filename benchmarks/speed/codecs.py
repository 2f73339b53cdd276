"""Size, encode and decode time of the codecs that a shard could hold its pictures and depth maps in.

In: views of object tars, at their own size and at others. Out: a JSON file with its passport and the Markdown table of
docs/shard-format.md. Convention: bytes and milliseconds per view, single thread, best of several passes over the same views;
all picture codecs listed are lossless and are checked to be so. Trade: Pillow's codecs only, since every install has them.
Verified by the round trip that each row makes before it is timed.
"""

from __future__ import annotations

import io
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from geolrm.files import write_whole

PICTURES: dict[str, dict[str, Any]] = {
    "PNG, level 1": {"format": "PNG", "compress_level": 1},
    "PNG, level 6": {"format": "PNG", "compress_level": 6},
    "lossless WebP, method 0": {"format": "WEBP", "lossless": True, "exact": True, "method": 0, "quality": 50},
    "lossless WebP, method 1": {"format": "WEBP", "lossless": True, "exact": True, "method": 1, "quality": 50},
    "lossless WebP, method 2": {"format": "WEBP", "lossless": True, "exact": True, "method": 2, "quality": 50},
    "lossless WebP, method 3": {"format": "WEBP", "lossless": True, "exact": True, "method": 3, "quality": 50},
    "lossless WebP, method 4": {"format": "WEBP", "lossless": True, "exact": True, "method": 4, "quality": 50},
}
DEPTH_STEPS = {"full 16 bit": 0.0, "2^-13": 2.0**-13, "2^-11": 2.0**-11}
PNG_LEVELS = (1, 6)


def measure(
    images: list[np.ndarray], encode: Callable[[np.ndarray], bytes], decode: Callable[[bytes], np.ndarray], passes: int
) -> dict[str, float]:
    """Mean bytes and the best pass's milliseconds per image, after a round trip that must be exact."""
    encoded = [encode(image) for image in images]
    for image, data in zip(images, encoded, strict=True):
        if not np.array_equal(decode(data), image):
            raise AssertionError("the codec is not lossless")

    def best(work: Callable[[], object]) -> float:
        times = []
        for _ in range(passes):
            start = time.thread_time()
            work()
            times.append(time.thread_time() - start)
        return 1e3 * min(times) / len(images)

    return {
        "bytes": sum(map(len, encoded)) / len(images),
        "encode_ms": best(lambda: [encode(image) for image in images]),
        "decode_ms": best(lambda: [decode(data) for data in encoded]),
    }


def save(image: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, **options)
    return buffer.getvalue()


def load_rgba(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)).convert("RGBA"))


def load_codes(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data))).astype(np.uint16)


def depth_codes(depth: np.ndarray, step: float) -> np.ndarray:
    """16-bit codes of a depth map at that step, or at the finest that its range allows if 0."""
    low, high = depth[depth > 0].min(), depth.max()
    step = step or float(high - low) / 65534
    codes = np.round((depth - low) / step) + 1
    return np.asarray(codes * (depth > 0), dtype=np.uint16)


def run_codecs(
    objects: Path, out: Path = Path("results/speed/codecs.json"), views: int = 4, limit: int = 8, passes: int = 5
) -> int:
    """Measure codecs on views of object tars and print the table.

    Args:
        objects: folder of object tars, such as datasets/procedural/smoke/objects.
        out: JSON file for the numbers.
        views: views taken from each object, evenly over its 40.
        limit: objects at most, evenly over the folder.
        passes: timed passes, of which the best counts.
    """
    from geolrm.data.object_tar import read_object_tar

    paths = sorted(objects.glob("*.tar"))
    pictures, depths = [], []
    for path in paths[:: max(1, len(paths) // limit)][:limit]:
        obj = read_object_tar(path).views
        for i in range(0, len(obj), max(1, len(obj) // views)):
            colour = np.concatenate([obj.colour[i].numpy(), obj.alpha[i].numpy()])
            pictures.append(np.ascontiguousarray((colour * 255).round().astype(np.uint8).transpose(1, 2, 0)))
            if obj.depth is not None and obj.depth[i].any():
                depths.append(obj.depth[i].numpy())
    rows: dict[str, dict[str, float]] = {}
    for name, options in tqdm(PICTURES.items(), desc="pictures"):
        rows[f"colour: {name}"] = measure(pictures, lambda image, o=options: save(image, **o), load_rgba, passes)  # type: ignore[misc]
    for label, step in tqdm(DEPTH_STEPS.items(), desc="depths"):
        codes = [depth_codes(depth, step) for depth in depths]
        for level in PNG_LEVELS:
            name = f"depth: 16-bit PNG, level {level}, step {label}"
            rows[name] = measure(
                codes,
                lambda image, n=level: save(image, format="PNG", compress_level=n),  # type: ignore[misc]
                load_codes,
                passes,
            )
    record = {
        "command": "python benchmarks/speed/codecs.py " + " ".join(sys.argv[1:]),
        "machine": f"{platform.machine()}, {processor()}, one thread",
        "versions": versions(),
        "images": len(pictures),
        "size": list(pictures[0].shape[:2]),
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, json.dumps(record, indent=1) + "\n")
    print(table(record))
    return 0


def processor() -> str:
    """The processor's name as the system gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def versions() -> dict[str, str]:
    from geolrm.data.shard_plan import codec_versions

    return codec_versions() | {"python": platform.python_version()}


def table(record: dict[str, Any]) -> str:
    """The Markdown table of a record."""
    height, width = record["size"]
    lines = [
        f"{record['images']} views of {height} x {width}; {record['machine']}; Pillow {record['versions']['pillow']}, "
        f"libwebp {record['versions']['webp']}, zlib {record['versions']['png_zlib']}.",
        "",
        "| codec | bytes a view | encode, ms | decode, ms |",
        "|---|---:|---:|---:|",
    ]
    for name, row in record["rows"].items():
        lines.append(f"| {name} | {row['bytes']:,.0f} | {row['encode_ms']:.2f} | {row['decode_ms']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(tyro.cli(run_codecs))
