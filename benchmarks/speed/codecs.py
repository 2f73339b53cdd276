"""Size, encode and decode time of the codecs that a shard could hold its pictures and depth maps in.

In: views of object tars. Out: a JSON file with its passport, and on the screen the Markdown table of docs/shard-format.md.
Convention: bytes and milliseconds of the thread's own processor time per view, one thread, the best of several passes in
which all codecs take turns; each is the code that a shard would use, from arrays to bytes and back. Trade: a few dozen views
stand for millions. Verified by a round trip before timing: exact for colour and depth codes, a stated error for floats.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import imagecodecs
import numpy as np
import OpenEXR
import tyro
from numba import njit
from PIL import Image, features

from geolrm.data.object_tar import read_object_tar
from geolrm.data.shard_plan import codec_versions
from geolrm.data.shards import DEPTH_STEP, ZSTD_LEVEL, decode_planes, encode_codes, encode_pixels
from geolrm.files import write_whole
from geolrm.passport import passport

Encode: TypeAlias = Callable[[np.ndarray], bytes | bytearray]
Decode: TypeAlias = Callable[[Any], np.ndarray]

WEBP = {"lossless": True, "exact": True, "quality": 50}
SHARD = f"planes of row steps, zstd, level {ZSTD_LEVEL}"  # what shards hold


@dataclass(frozen=True)
class Options:
    """Measure codecs on views of object tars and print the table."""

    objects: tuple[Path, ...]
    """Object tars, or folders of them."""
    out: Path = Path("docs/results/codecs.json")
    """Where the result goes."""
    views: int = 4
    """Views taken from each object, evenly over its 40."""
    limit: int = 8
    """Objects at most, evenly over what is there."""
    passes: int = 3
    """Timed passes, of which the best counts."""


def pillow(**options: Any) -> Encode:
    def encode(image: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, **options)
        return buffer.getvalue()

    return encode


def pillow_pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def webp_pixels(data: bytes) -> np.ndarray:
    return np.asarray(imagecodecs.webp_decode(data, hasalpha=True))


def webp(method: int) -> Encode:
    return pillow(format="WEBP", **(WEBP | {"method": method}))


def jpegxl(effort: int) -> Encode:
    return lambda image: imagecodecs.jpegxl_encode(image, lossless=True, effort=effort, numthreads=1)


def zstd_steps(axis: int, level: int) -> Encode:
    """A .npy file, in zstd, of each value's step from its neighbour along an axis; of a picture, channel by channel."""

    def encode(image: np.ndarray) -> bytes:
        steps = np.diff(image, axis=axis, prepend=image.dtype.type(0))
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(np.moveaxis(steps, (0, 1), (-2, -1))))
        return bytes(imagecodecs.zstd_encode(buffer.getvalue(), level=level))

    return encode


def from_steps(axis: int) -> Decode:
    """What undoes `zstd_steps`."""

    def decode(data: bytes) -> np.ndarray:
        planes = np.load(io.BytesIO(imagecodecs.zstd_decode(data)))
        add_steps(planes.reshape(-1, *planes.shape[-2:]), axis == 0)
        return np.moveaxis(planes, (-2, -1), (0, 1))

    return decode


def pixels_of_shard(data: bytes) -> np.ndarray:
    """What the loader's loops do before they resize."""
    planes = decode_planes(data).copy()
    add_steps(planes, True)
    planes[0] += planes[1]
    planes[2] += planes[1]
    return planes.transpose(1, 2, 0)


def codes_of_shard(data: bytes) -> np.ndarray:
    low, high = decode_planes(data)
    codes = low + high * np.uint16(256)
    add_steps(codes[None], True)
    return codes


@njit(cache=True)
def add_steps(planes: Any, down: bool) -> None:
    """Sum the steps of planes (C, H, W) in place, down the columns or along the rows."""
    for c in range(planes.shape[0]):
        if down:
            for i in range(1, planes.shape[1]):
                for j in range(planes.shape[2]):
                    planes[c, i, j] += planes[c, i - 1, j]
        else:
            for i in range(planes.shape[1]):
                for j in range(1, planes.shape[2]):
                    planes[c, i, j] += planes[c, i, j - 1]


def npz(codes: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, codes=codes)
    return buffer.getvalue()


def npz_codes(data: bytes) -> np.ndarray:
    return np.asarray(np.load(io.BytesIO(data))["codes"])


def exr(kind: type, compression: Any) -> Encode:
    def encode(depth: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        header = {"compression": compression, "type": OpenEXR.scanlineimage}
        OpenEXR.File(header, {"Z": depth.astype(kind)}, num_threads=0).write(buffer)
        return buffer.getvalue()

    return encode


def exr_depth(data: bytes) -> np.ndarray:
    image = OpenEXR.File(io.BytesIO(data), separate_channels=True, num_threads=0)
    return np.asarray(image.channels()["Z"].pixels)


COLOUR: dict[str, tuple[Encode, Decode]] = {
    "PNG, level 1": (pillow(format="PNG", compress_level=1), pillow_pixels),
    "PNG, level 6": (pillow(format="PNG", compress_level=6), pillow_pixels),
    "QOI": (imagecodecs.qoi_encode, imagecodecs.qoi_decode),
    "lossless WebP, method 0": (webp(0), webp_pixels),
    "lossless WebP, method 1": (webp(1), webp_pixels),
    "lossless WebP, method 1, read by Pillow": (webp(1), pillow_pixels),
    "lossless WebP, method 3": (webp(3), webp_pixels),
    "lossless JPEG XL, effort 1": (jpegxl(1), lambda data: imagecodecs.jpegxl_decode(data, numthreads=1)),
    "lossless JPEG XL, effort 2": (jpegxl(2), lambda data: imagecodecs.jpegxl_decode(data, numthreads=1)),
    "column steps, zstd, level 9": (zstd_steps(1, 9), from_steps(1)),
    "row steps, zstd, level 9": (zstd_steps(0, 9), from_steps(0)),
    "row steps, zstd, level 3": (zstd_steps(0, 3), from_steps(0)),
    "row steps, zstd, level 15": (zstd_steps(0, 15), from_steps(0)),
    SHARD: (encode_pixels, pixels_of_shard),
}
CODES: dict[str, tuple[Encode, Decode]] = {
    "16-bit PNG, level 1": (pillow(format="PNG", compress_level=1), pillow_pixels),
    "16-bit PNG, level 6": (pillow(format="PNG", compress_level=6), pillow_pixels),
    "JPEG-LS": (imagecodecs.jpegls_encode, imagecodecs.jpegls_decode),
    "lossless JPEG XL, effort 1": (jpegxl(1), lambda data: imagecodecs.jpegxl_decode(data, numthreads=1)),
    "16-bit column steps, zstd, level 9": (zstd_steps(1, 9), from_steps(1)),
    "16-bit row steps, zstd, level 9": (zstd_steps(0, 9), from_steps(0)),
    SHARD: (encode_codes, codes_of_shard),
    "npz": (npz, npz_codes),
}
FLOATS: dict[str, tuple[Encode, Decode]] = {
    "EXR, float32, ZIP": (exr(np.float32, OpenEXR.ZIP_COMPRESSION), exr_depth),
    "EXR, half, ZIP": (exr(np.float16, OpenEXR.ZIP_COMPRESSION), exr_depth),
    "EXR, half, PIZ": (exr(np.float16, OpenEXR.PIZ_COMPRESSION), exr_depth),
}
STEPS = {"2^-13": DEPTH_STEP, "all 16 bits": 0.0, "2^-11": 2.0**-11}


def depth_codes(depth: np.ndarray, step: float) -> np.ndarray:
    """16-bit codes of a depth map (H, W) at that step, or at the finest that its range allows if 0."""
    surface = depth[depth > 0]
    low, high = float(surface.min()), float(surface.max())
    step = step or (high - low) / 65534
    return np.asarray((np.round((depth - low) / step) + 1) * (depth > 0), dtype=np.uint16)


def round_trip_error(name: str, images: list[np.ndarray], encode: Encode, decode: Decode) -> tuple[float, float]:
    """Mean bytes, and the largest error of a round trip. Raises AssertionError where codes or colours come back changed."""
    encoded = [encode(image) for image in images]
    error = 0.0
    for image, data in zip(images, encoded, strict=True):
        back = decode(data)
        if image.dtype != np.float32 and not np.array_equal(back, image):
            raise AssertionError(f"{name} is not lossless")
        error = max(error, float(np.abs(back.astype(np.float64) - image).max()))
    return sum(map(len, encoded)) / len(images), error


def thread_ms(work: Callable[[Any], object], items: list[Any]) -> float:
    """Milliseconds of this thread per item."""
    start = time.thread_time()
    for item in items:
        work(item)
    return 1e3 * (time.thread_time() - start) / len(items)


def measure(codecs: dict[str, tuple[list[np.ndarray], Encode, Decode]], passes: int) -> dict[str, dict[str, float]]:
    """Bytes a view, largest error, and the best pass's milliseconds a view, of each codec on its images."""
    rows, encoded = {}, {}
    for name, (images, encode, decode) in codecs.items():
        size, error = round_trip_error(name, images, encode, decode)
        rows[name] = {"bytes": round(size), "error": error, "encode_ms": float("inf"), "decode_ms": float("inf")}
        encoded[name] = [encode(image) for image in images]
    for _ in range(passes):
        for name, (images, encode, decode) in codecs.items():
            row = rows[name]
            row["encode_ms"] = min(row["encode_ms"], round(thread_ms(encode, images), 3))
            row["decode_ms"] = min(row["decode_ms"], round(thread_ms(decode, encoded[name]), 3))
    return rows


def pictures_of(options: Options) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """RGBA pictures (H, W, 4) uint8 and depth maps (H, W) float32 of the chosen views."""
    paths = [p for place in options.objects for p in (sorted(place.glob("*.tar")) if place.is_dir() else [place])]
    pictures, depths = [], []
    for path in paths[:: max(1, -(-len(paths) // options.limit))]:
        views = read_object_tar(path).views
        for i in range(0, len(views), -(-len(views) // options.views)):
            rgba = np.concatenate([views.colour[i].numpy(), views.alpha[i].numpy()])
            pictures.append(np.ascontiguousarray((rgba * 255).round().astype(np.uint8).transpose(1, 2, 0)))
            if views.depth is not None and views.depth[i].any():
                depths.append(views.depth[i].numpy())
    return pictures, depths


def table(record: dict[str, Any]) -> str:
    """The Markdown table of a record."""
    height, width = record["size"]
    lines = [
        f"{record['pictures']} views of {height} x {width}; {record['passport']['processor']}, one thread.",
        "",
        "| codec | bytes a view | encode, ms | decode, ms | depth error, voxels at R = 128 |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in record["rows"].items():
        error = f"{128 * row['error']:.1g}" if row["error"] else ("" if name.startswith("colour") else "0")
        lines.append(f"| {name} | {row['bytes']:,} | {row['encode_ms']:.2f} | {row['decode_ms']:.2f} | {error} |")
    return "\n".join(lines)


def main(options: Options) -> None:
    pictures, depths = pictures_of(options)
    codecs = {f"colour: {name}": (pictures, *codec) for name, codec in COLOUR.items()}
    for label, step in STEPS.items():
        codes = [depth_codes(depth, step) for depth in depths]
        chosen = CODES if step == DEPTH_STEP else {SHARD: CODES[SHARD]}
        codecs |= {f"depth: {name}, step {label}": (codes, *codec) for name, codec in chosen.items()}
    codecs |= {f"depth: {name}": (depths, *codec) for name, codec in FLOATS.items()}
    rows = measure(codecs, options.passes)
    for label, step in STEPS.items():  # the codec is exact; what rounds is the step
        for name in (name for name in rows if name.endswith(f"step {label}")):
            span = max(float(depth.max() - depth[depth > 0].min()) for depth in depths)
            rows[name]["error"] = (step or span / 65534) / 2
    codecs_used = codec_versions() | {"pillow": version("pillow"), "webp": str(features.version("webp"))}
    about = passport(command=" ".join(sys.argv[1:]), passes=options.passes, codecs=codecs_used)
    record = {"pictures": len(pictures), "size": list(pictures[0].shape[:2]), "rows": rows, "passport": about}
    write_whole(options.out, json.dumps(record, indent=1) + "\n")
    print(table(record))


if __name__ == "__main__":
    main(tyro.cli(Options))
