"""The shard: a plain WebDataset tar in which one sample is one object, ready to train on.

In: rendered objects (`object_tar.RenderedObject`). Out: tar members per object, and back. Convention: each view is a member
of its own, so that only the views that are picked get read and decoded; duplicates of earlier views are left out; the
metadata lists the SHA-256 of every other member; times, owners and orders are fixed, so that equal input gives equal
bytes. `docs/shard-format.md` is the contract and a test parses its table. Colour is kept to the bit, depth to 1/16384 of the
object cube; both, and the occupancy, as planes of bytes, each row less the row above it, in zstd. Trade: a quarter more bytes
an object than lossless WebP and JPEG-LS, which take about four times as long to read, and no picture viewer opens them
(`decode_pixels` is four lines);
`benchmarks/speed/codecs.py` measures them against their alternatives. Verified by round trips, by error bounds, by comparing
the fast readers with plain torch, and by reading with `webdataset`.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import tarfile
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import torch
from torch import Tensor

from geolrm.cameras import Cameras
from geolrm.data import rig
from geolrm.data.object_tar import RenderedObject, cropped_views
from geolrm.data.shard_plan import FORMAT_VERSION
from geolrm.failures import BadInput
from geolrm.occupancy import hit_counts, pack, unpack, voxel_indices
from geolrm.resizing import copy_pixels, nearest, pick_depth, resize_pixels, triangle
from geolrm.views import Views

ZSTD_LEVEL = 9
DEPTH_STEP = 2.0**-13  # object units between two depth codes; the error is at most half of it
MAX_DEPTH_ERROR = 1 / (20 * 128)  # a twentieth of a voxel at R = 128
REACH = 1.0  # object units in front of and behind the middle of the cube within which a depth can be the object's
OUTSIDE_SHARE = 0.01  # of an object's surface pixels that may lie more than a voxel outside the cube
KEY = re.compile(r"[A-Za-z0-9_\-+]+")
TAR_BLOCK, TAR_RECORD = 512, 10240
NPY_PREFIX = 10  # bytes before the header of a .npy file of version 1.0, the last two its length
OCCUPANCY = "occupancy.zst"


@dataclass(frozen=True)
class EncodedObject:
    """One sample of a shard: its members' bytes by name without the key, its metadata, and its cameras for the catalog."""

    key: str
    members: dict[str, bytes]
    meta: dict[str, Any]
    cameras: Cameras
    test_cameras: Cameras | None


# --- planes of bytes -------------------------------------------------------------------------------------------------


def encode_planes(planes: np.ndarray) -> bytes:
    """zstd of a .npy file of planes (C, H, W) uint8."""
    buffer = io.BytesIO()
    np.save(buffer, planes, allow_pickle=False)
    return bytes(imagecodecs.zstd_encode(buffer.getvalue(), level=ZSTD_LEVEL))


def decode_planes(data: bytes) -> np.ndarray:
    """(C, H, W) uint8, read-only, of `encode_planes`: `np.load` of the unpacked bytes, whose header is parsed once a shape."""
    plain = bytes(imagecodecs.zstd_decode(data))  # bytes already: no copy
    length = NPY_PREFIX + int.from_bytes(plain[NPY_PREFIX - 2 : NPY_PREFIX], "little")
    return np.frombuffer(plain, np.uint8, offset=length).reshape(_npy_shape(plain[:length]))


@cache
def _npy_shape(header: bytes) -> tuple[int, int, int]:
    """Shape that the header of a .npy file of bytes in rows names. Raises ValueError for any other file."""
    file = io.BytesIO(header)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("planes are .npy files of version 1.0")
    shape, by_columns, kind = np.lib.format.read_array_header_1_0(file)
    if by_columns or kind != np.uint8:
        raise ValueError(f"planes of {kind}, by columns: {by_columns}")
    planes, height, width = shape
    return planes, height, width


def rgba_member(prefix: str, view: int) -> str:
    """Name of the member that holds a view's colour; the prefix is "test." for test views, else empty."""
    return f"{prefix}rgba.{view:02d}.npy.zst"


def depth_member(prefix: str, view: int) -> str:
    """Name of the member that holds a view's depth."""
    return f"{prefix}depth.{view:02d}.npy.zst"


# --- colour and depth ------------------------------------------------------------------------------------------------


def encode_rgba(colour: Tensor, alpha: Tensor) -> bytes:
    """One picture to the bit: colour (3, H, W) and alpha (1, H, W) in [0, 1], exact for 8-bit sources."""
    rgba = (torch.cat([colour, alpha]) * 255).round().clamp(0, 255).byte()
    return encode_pixels(rgba.permute(1, 2, 0).numpy())


def encode_pixels(pixels: np.ndarray) -> bytes:
    """A picture (H, W, 4) uint8 as planes of red less green, green, blue less green, alpha; of each the steps from row to row,
    all modulo 256."""
    planes = pixels.transpose(2, 0, 1).copy()
    planes[[0, 2]] -= planes[1]
    return encode_planes(np.diff(planes, axis=1, prepend=np.uint8(0)))


def decode_pixels(data: bytes) -> np.ndarray:
    """(H, W, 4) uint8 of `encode_pixels`; what `fill_picture` does in one pass with everything after."""
    planes = np.cumsum(decode_planes(data), axis=1, dtype=np.uint8)
    planes[[0, 2]] += planes[1]
    return np.ascontiguousarray(planes.transpose(1, 2, 0))


def fill_picture(steps: np.ndarray, colour: np.ndarray, alpha: np.ndarray, background: float | None = None) -> None:
    """Fill colour (3, h, w) and alpha (1, h, w) float32, in [0, 1], from a picture's planes of steps (4, H, W): as
    `decode_pixels` gives it or, where the sizes differ, as `Views.resized` makes it; `Views.composited` over a background."""
    (height, width), (before, beside) = colour.shape[1:], steps.shape[1:]
    over, grey = background is not None, np.float32(background or 0.0)
    if (height, width) == (before, beside):
        copy_pixels(steps, over, grey, colour, alpha)
    else:
        resize_pixels(steps, *triangle(before, height), *triangle(beside, width), over, grey, colour, alpha)


def decode_rgba(data: bytes) -> tuple[Tensor, Tensor]:
    """Colour (3, H, W) and alpha (1, H, W) in [0, 1] of `encode_rgba`."""
    steps = decode_planes(data)
    colour, alpha = (np.empty((channels, *steps.shape[1:]), np.float32) for channels in (3, 1))
    fill_picture(steps, colour, alpha)
    return torch.from_numpy(colour), torch.from_numpy(alpha)


def depth_code(depth: Tensor, where: object) -> tuple[float, float]:
    """Scale and offset of the depth codes of one object: depth = offset + scale * (code - 1), code 0 = no surface.

    The scale is a power of two and the offset a multiple of it, so that decoding is exact arithmetic.

    Raises:
        BadInput: `depth_range` when the span of depths leaves no 16-bit code an error below a twentieth of a voxel.
    """
    surface = depth[depth > 0].double()
    low, high = (surface.min().item(), surface.max().item()) if len(surface) else (0.0, 0.0)
    scale = DEPTH_STEP
    while (high - math.floor(low / scale) * scale) / scale > 65533:
        scale *= 2
    if scale / 2 > MAX_DEPTH_ERROR:
        detail = f"depths span {low:.3g} to {high:.3g} object units"
        raise BadInput("depth_range", where, detail, "are the depths in object units, is the background 0?")
    return scale, math.floor(low / scale) * scale


def encode_depth(depth: Tensor, scale: float, offset: float) -> bytes:
    """One depth map (H, W) as `encode_codes` of its codes."""
    codes = torch.where(depth > 0, ((depth.double() - offset) / scale).round() + 1, 0.0)
    return encode_codes(codes.numpy().astype(np.uint16))


def encode_codes(codes: np.ndarray) -> bytes:
    """Codes (H, W) uint16, exactly: the steps from row to row modulo 65536, a plane of low bytes, then one of high bytes."""
    steps = np.diff(codes, axis=0, prepend=np.uint16(0))
    return encode_planes(np.stack([steps & 255, steps >> 8]).astype(np.uint8))


def decode_codes(data: bytes) -> np.ndarray:
    """(H, W) uint16 of `encode_codes`; what `fill_depth` does in one pass with everything after."""
    low, high = decode_planes(data).astype(np.uint16)
    return np.cumsum(low + 256 * high, axis=0, dtype=np.uint16)


def fill_depth(steps: np.ndarray, scale: float, offset: float, depth: np.ndarray) -> None:
    """Fill depth (h, w) float32, 0 = no surface, from planes of steps (2, H, W): exact arithmetic also in float32, whose 24
    bits hold every code; where the sizes differ, the nearest pixels' depth, as `Views.resized` picks them."""
    (before, beside), (height, width) = steps.shape[1:], depth.shape
    places = nearest(before, height), nearest(beside, width)
    pick_depth(steps, *places, np.float32(scale), np.float32(offset - scale), depth)


def decode_depth(data: bytes, scale: float, offset: float) -> Tensor:
    """Depth map (H, W), 0 = no surface, of `encode_depth`."""
    steps = decode_planes(data)
    depth = np.empty(steps.shape[1:], np.float32)
    fill_depth(steps, scale, offset, depth)
    return torch.from_numpy(depth)


# --- arrays and metadata ---------------------------------------------------------------------------------------------


def encode_array(array: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array.contiguous().numpy(), allow_pickle=False)
    return buffer.getvalue()


def decode_array(data: bytes) -> Tensor:
    return torch.from_numpy(np.load(io.BytesIO(data), allow_pickle=False))


def encode_occupancy(grid: Tensor) -> bytes:
    """Packed bits of a grid (R, R, R) in zstd."""
    return bytes(imagecodecs.zstd_encode(pack(grid), level=ZSTD_LEVEL))


def decode_occupancy(data: bytes, resolution: int) -> Tensor:
    return unpack(bytes(imagecodecs.zstd_decode(data)), resolution)


def surface_from_depth(views: Views, normals: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """Points (N, 3) and unit normals (N, 3) of depth maps, one per voxel of a grid of that resolution.

    One point per voxel evens out what many views see against what few do; where two pixels hit a voxel the first one's
    stays. Normals: (V, 3, H, W) in the world, 0 where unknown.
    """
    if views.depth is None:
        raise ValueError(f"{views.key}: views without depth have no surface")
    seen = views.depth > 0
    points = views.cameras.unproject(views.depth)[seen]
    directions = normals.permute(0, 2, 3, 1)[seen]
    inside = ((points + 0.5) * resolution).floor()
    kept = ((inside >= -1) & (inside <= resolution)).all(dim=-1)
    points, directions = points[kept], directions[kept]
    x, y, z = voxel_indices(points, resolution)[0].unbind(-1)
    _, first = np.unique(((x * resolution + y) * resolution + z).numpy(), return_index=True)
    picked = torch.from_numpy(np.sort(first))
    return points[picked], directions[picked]


def even_draw(count: int, wanted: int, key: str) -> Tensor:
    """At most `wanted` of `count` row numbers, sorted; a pure function of its arguments."""
    if count <= wanted:
        return torch.arange(count)
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big")
    ranks = np.random.Philox(key=seed).random_raw(count)
    return torch.from_numpy(np.sort(np.argsort(ranks, kind="stable")[:wanted]))


# --- one object ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DistinctViews:
    """An object's views without duplicates (V; 38 of GObjaverse's 40), their roles, and their numbers in the object tar."""

    views: Views
    roles: list[str]
    numbers: list[int]


def distinct_views(views: Views) -> DistinctViews:
    """Leave out each view whose pose equals an earlier one's."""
    roles = rig.view_roles(views.cameras)
    kept = [i for i, role in enumerate(roles) if role != "duplicate"]
    return DistinctViews(views[kept], [roles[i] for i in kept], kept)


def without_stray_depth(views: Views) -> tuple[Views, int]:
    """The views with depth set to no surface where it lies farther than `REACH` from the plane through the origin that faces
    the camera, where nothing of the cube can be, and the number of such pixels: stray hits of a ray tracer, or an object
    that was never normalised. They would stretch the depth codes of all other pixels."""
    if views.depth is None:
        return views, 0
    centre = -(views.cameras.positions * views.cameras.rotations[..., 2]).sum(-1)
    stray = (views.depth > 0) & ((views.depth - centre[:, None, None]).abs() > REACH)
    return replace(views, depth=views.depth.masked_fill(stray, 0.0)), int(stray.sum())


@dataclass(frozen=True)
class Label:
    """Occupancy of one object: grid (R, R, R) bool; how many of its voxels fewer than two views hit; pixels in no voxel."""

    grid: Tensor
    seen_once: int
    refused: int


def label(views: Views, resolution: int, stray: int = 0) -> Label:
    """Occupancy label of an object's views.

    Args:
        stray: pixels that `without_stray_depth` has taken from these views already; they count as refused.

    Raises:
        BadInput: `empty_object` (no surface in any view), `outside_cube`.
    """
    surface = stray + (0 if views.depth is None else int((views.depth > 0).sum()))
    if views.depth is None or surface == 0:
        detail = "no view shows any surface"
        raise BadInput("empty_object", views.key, detail, "check that the object was loaded and lies inside the cube")
    counts, refused = hit_counts(views.depth, views.cameras, resolution)
    share = (refused + stray) / surface
    if share > OUTSIDE_SHARE:
        detail = f"{share:.1%} of the surface pixels lie more than a voxel outside the cube [-0.5, 0.5]^3"
        raise BadInput("outside_cube", views.key, detail, "normalise the object by its box before rendering it")
    return Label(counts > 0, int((counts == 1).sum()), refused + stray)


def encode_object(
    obj: RenderedObject,
    kept: DistinctViews,
    occupancy: Label,
    surface: tuple[Tensor, Tensor],
) -> EncodedObject:
    """Members and metadata of one sample.

    Args:
        obj: the object as its tar holds it; supplies test views and metadata.
        kept: its distinct views, with depth.
        occupancy: the label that its distinct views give.
        surface: points (P, 3) in the object frame and unit normals (P, 3).
    """
    views, test = kept.views, obj.test_views
    if views.depth is None:
        raise ValueError(f"{obj.key}: views without depth")
    depths = [views.depth] if test is None or test.depth is None else [views.depth, test.depth]
    scale, offset = depth_code(torch.cat([depth.reshape(-1) for depth in depths]), obj.key)
    members = _view_members("", views, scale, offset)
    if test is not None:
        members |= _view_members("test.", test, scale, offset)
    members[OCCUPANCY] = encode_occupancy(occupancy.grid)
    members["surface.points.npy"] = encode_array(surface[0].float())
    members["surface.normals.npy"] = encode_array(surface[1].half())
    meta = {
        **obj.meta,
        "format": FORMAT_VERSION,
        "key": obj.key,
        "height": views.size[0],
        "width": views.size[1],
        "roles": kept.roles,
        "source_views": kept.numbers,
        "cropped_views": cropped_views(views),
        "test_views": 0 if test is None else len(test),
        "test_depth": test is not None and test.depth is not None,
        "depth_scale": scale,
        "depth_offset": offset,
        "voxel_resolution": occupancy.grid.shape[0],
        "occupied_voxels": int(occupancy.grid.sum()),
        "voxels_seen_once": occupancy.seen_once,
        "refused_points": occupancy.refused,
        "surface_points": len(surface[0]),
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(members.items())},
    }
    members["meta.json"] = json.dumps(meta, sort_keys=True, allow_nan=False).encode()
    return EncodedObject(obj.key, members, meta, views.cameras, None if test is None else test.cameras)


def _view_members(prefix: str, views: Views, scale: float, offset: float) -> dict[str, bytes]:
    members = {
        f"{prefix}cameras.poses.npy": encode_array(views.cameras.camera_to_world.float()),
        f"{prefix}cameras.intrinsics.npy": encode_array(views.cameras.intrinsics.float()),
    }
    for i in range(len(views)):
        members[rgba_member(prefix, i)] = encode_rgba(views.colour[i], views.alpha[i])
        if views.depth is not None:
            members[depth_member(prefix, i)] = encode_depth(views.depth[i], scale, offset)
    return members


# --- the tar ---------------------------------------------------------------------------------------------------------


class ShardWriter:
    """Appends samples to a tar and says where each member's bytes lie. Equal samples give equal bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.position = 0

    def add(self, sample: EncodedObject) -> list[dict[str, Any]]:
        """Write a sample, members sorted by name; returns `{name, offset, size}` of each, offset of its first byte."""
        places = []
        for name, data in sorted(sample.members.items()):
            header = tarfile.TarInfo(f"{sample.key}.{name}")
            header.size, header.mode = len(data), 0o644  # time, owner and group stay 0
            self._write(header.tobuf(tarfile.GNU_FORMAT))
            places.append({"name": name, "offset": self.position, "size": len(data)})
            self._write(data)
            self._write(b"\0" * (-len(data) % TAR_BLOCK))
        return places

    def close(self) -> None:
        """Write the end of the archive; the file stays open."""
        self._write(b"\0" * (2 * TAR_BLOCK))
        self._write(b"\0" * (-self.position % TAR_RECORD))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.position += len(data)
