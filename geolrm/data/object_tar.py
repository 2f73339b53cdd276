"""Object tars: everything known of one object in one file, in GObjaverse's own layout.

In: a `RenderedObject` to write; or a tar that we wrote or that comes from GObjaverse, to read. Out: the tar, or the object
checked. Convention: per view `{key}/campos_512_v4/{vvvvv}/{vvvvv}.png` (8-bit straight RGBA), `.json` (camera) and `_nd.exr`
(R, G, B = world normal as (-R, -B, G), A = planar depth, 0 = no surface); ours add `{key}/test/{vvvvv}/...`,
`{key}/meta.json` and `{key}/surface.npz`, which the real ones lack. Trade: written whole or not at all and the same bytes
every time, at the price of re-encoding; normals are kept as half floats, depth as float32. Input is hostile: members are
found by name in memory, nothing is ever extracted to disk, and each defect is a `BadInput` with its own reason. Verified by
round trips and by planting every defect.
"""

from __future__ import annotations

import io
import json
import os
import re
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import OpenEXR
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from geolrm.cameras import Cameras, from_gobjaverse, to_gobjaverse
from geolrm.data.rig import TEST_VIEWS, VIEWS
from geolrm.failures import BadInput
from geolrm.files import whole_file
from geolrm.views import Views

INPUT_FOLDER, TEST_FOLDER = "campos_512_v4", "test"
NATIVE_RADIUS = 0.867  # sqrt(3) / 2, the object radius that every reader of GObjaverse assumes
MAX_SIDE = 8192
MAX_VIEWS = 100  # shards number views with two digits
META_KEYS = ("dataset", "layout", "source_id", "split", "licence", "attribution", "unit")
SURFACES = ("mesh", "closed form", "depth")
RIGS = ("own", "native")
_PNG_LEVEL = 1
_MEMBER = re.compile(
    rf"(?P<key>[^/]+)/(?:(?P<folder>{INPUT_FOLDER}|test)/)?(?P<view>\d{{5}})/(?P=view)(?P<suffix>\.png|\.json|_nd\.exr)"
)


@dataclass(frozen=True)
class RenderedObject:
    """One object as pictures, geometry and facts.

    Attributes:
        key: the object's name, unique within its data set; the top folder in the tar.
        views: the input-able views, 40 in GObjaverse's rig and ours, depth included.
        normals: (40, 3, H, W) world unit normals, 0 where there is no surface; None where they were not read.
        test_views: the 16 test views, or None.
        points: (P, 3) samples of the true surface, object units, with point_normals (P, 3) unit; or both None.
        meta: `META_KEYS` as strings (or None where unknown), `object_to_source` (4x4 nested lists, object frame to source
            frame), `surface` (where true geometry comes from, one of `SURFACES`), `rig` (one of `RIGS`), `cropped_views`
            (input views whose mask touches the frame), and whatever else the source says.
    """

    key: str
    views: Views
    normals: Tensor | None
    test_views: Views | None
    points: Tensor | None
    point_normals: Tensor | None
    meta: dict[str, Any]


def default_meta(key: str) -> dict[str, Any]:
    """The facts that hold for a GObjaverse tar, which carries none."""
    return {
        "dataset": "gobjaverse",
        "layout": "gobjaverse",
        "source_id": key,
        "split": None,
        "licence": None,
        "attribution": None,
        "unit": None,
        "object_to_source": torch.eye(4).tolist(),
        "surface": "depth",
        "rig": "native",
    }


def cropped_views(views: Views) -> list[int]:
    """Positions of the views whose foreground (alpha > 0.5) touches the frame."""
    mask = views.foreground[:, 0]
    touches = mask[:, 0].any(-1) | mask[:, -1].any(-1) | mask[:, :, 0].any(-1) | mask[:, :, -1].any(-1)
    return torch.nonzero(touches).flatten().tolist()


# --- writing ---


def write_object_tar(path: Path, obj: RenderedObject) -> None:
    """Write an object tar: whole or not at all, the same bytes for the same object.

    Raises ValueError if the object lacks what the format needs, OSError if the disk refuses (nothing is left behind).
    """
    write_members(path, dict(_members(obj)))  # encoded before the file is opened: a bad object touches no disk


def write_members(path: Path, members: dict[str, bytes]) -> None:
    """Write a tar of these members, sorted by name, without times and owners: whole or not at all."""
    with whole_file(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in sorted(members.items()):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def _members(obj: RenderedObject) -> Iterator[tuple[str, bytes]]:
    if "/" in obj.key or obj.key in ("", ".", ".."):
        raise ValueError(f"{obj.key!r} cannot name a folder in a tar")
    if len(obj.views) != VIEWS or obj.normals is None:
        raise ValueError(
            f"{obj.key}: {len(obj.views)} views, normals {obj.normals is not None}; need {VIEWS} and normals"
        )
    meta = {**obj.meta, "cropped_views": cropped_views(obj.views)}
    check_meta(meta, obj.key)
    yield f"{obj.key}/meta.json", json_bytes(meta)
    yield from view_members(f"{obj.key}/{INPUT_FOLDER}", obj.views, obj.normals)
    if obj.test_views is not None:
        if len(obj.test_views) != TEST_VIEWS:
            raise ValueError(f"{obj.key}: {len(obj.test_views)} test views, not {TEST_VIEWS}")
        yield from view_members(f"{obj.key}/{TEST_FOLDER}", obj.test_views, None)
    if obj.points is not None and obj.point_normals is not None:
        yield f"{obj.key}/surface.npz", surface_bytes(obj.points.cpu().numpy(), obj.point_normals.cpu().numpy())


def surface_bytes(points: np.ndarray, normals: np.ndarray) -> bytes:
    """`surface.npz` of samples (P, 3) of the true surface and their unit normals (P, 3)."""
    buffer = io.BytesIO()
    np.savez(buffer, points=points, normals=normals)
    return buffer.getvalue()


def view_members(folder: str, views: Views, normals: Tensor | None, first: int = 0) -> Iterator[tuple[str, bytes]]:
    """Name and content of the three files of each view in a folder of the tar.

    Args:
        views: with depth.
        normals: (V, 3, H, W) world unit normals; None writes zeros, as test views have them.
        first: number of the first of the views.
    """
    if views.depth is None:
        raise ValueError(f"{folder}: views without depth")
    depth = views.depth.float().cpu().numpy()
    for i in range(len(views)):
        stem = f"{folder}/{first + i:05d}/{first + i:05d}"
        normal = np.zeros((3, *views.size), np.float32) if normals is None else normals[i].float().cpu().numpy()
        yield f"{stem}.png", png_bytes(views.colour[i], views.alpha[i])
        yield f"{stem}.json", json_bytes(to_gobjaverse(views.cameras[i]))
        yield f"{stem}_nd.exr", exr_bytes(normal, depth[i])


def json_bytes(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, indent=1, allow_nan=False).encode()


def png_bytes(colour: Tensor, alpha: Tensor) -> bytes:
    """8-bit PNG of colour (3, H, W) and alpha (1, H, W) in [0, 1]."""
    rgba = (torch.cat([colour, alpha]).clamp(0, 1) * 255).round().byte().cpu().movedim(0, -1).numpy()
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, format="PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()


def exr_bytes(normal: np.ndarray, depth: np.ndarray) -> bytes:
    """EXR of a world normal (3, H, W), as half floats in GObjaverse's Unity-like frame, and a depth (H, W) float32."""
    x, y, z = (np.ascontiguousarray(axis, dtype=np.float16) for axis in normal)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    channels = {"R": -x, "G": z, "B": -y, "A": np.ascontiguousarray(depth)}
    buffer = io.BytesIO()
    OpenEXR.File(header, channels, num_threads=0).write(buffer)
    return buffer.getvalue()


# --- reading ---


def read_object_tar(path: Path, *, normals: bool = False) -> RenderedObject:
    """Read and check an object tar, ours or GObjaverse's (with or without its `campos_512_v4` level).

    Depth of foreign renders (rig "native") is cleaned as GObjaverse's readers do: no surface nearer than
    |origin| - 0.867, and the pixels next to no surface dropped, since depth at edges is unreliable there.

    Args:
        path: the tar.
        normals: decode normals too.

    Raises:
        BadInput: by reason: tar_missing, tar_unreadable, tar_truncated, member_path, view_missing, image_unreadable,
            image_channels, image_size, exr_unreadable, exr_channels, camera_fields, pose_*, fov_out_of_range,
            meta_fields, surface_fields.
    """
    try:
        with open(path, "rb") as file:
            _check_tar(file, path)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                return _read(tar, path, normals)
    except FileNotFoundError as error:
        raise BadInput("tar_missing", path, "no such file") from error
    except tarfile.ReadError as error:
        reason = "tar_truncated" if "unexpected end of data" in str(error) else "tar_unreadable"
        raise BadInput(reason, path, str(error), "fetch or render this object again") from error


def is_whole(path: Path) -> bool:
    """Whether a tar of ours has its end and all its members, by their headers; their content is not decoded."""
    try:
        with open(path, "rb") as file:
            _check_tar(file, path)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                content = _ViewFiles(tar, path)
    except (BadInput, FileNotFoundError, tarfile.ReadError):
        return False
    files = 3 * VIEWS, 3 * TEST_VIEWS
    return (len(content.inputs), len(content.tests)) == files and f"{content.key}/meta.json" in content.members


def _check_tar(file: io.BufferedReader, path: Path) -> None:
    """A tar begins with the header of a member, as a web page under its name does not, and ends on two blocks of zeros, as a
    file that was cut short, wherever, does not."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(tarfile.BLOCKSIZE)
    if len(head) == tarfile.BLOCKSIZE:
        try:
            tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            detail = f"it does not begin as a tar does: {error}"
            raise BadInput("tar_unreadable", path, detail, "fetch or render this object again") from error
    file.seek(max(0, size - 1024))
    if size < 1024 or any(file.read(1024)):
        raise BadInput("tar_truncated", path, f"its {size} bytes lack the end of archive", "fetch or render it again")
    file.seek(0)


def _read(tar: tarfile.TarFile, path: Path, with_normals: bool) -> RenderedObject:
    content = _ViewFiles(tar, path)
    meta = default_meta(content.key) | content.json(f"{content.key}/meta.json", optional=True)
    check_meta(meta, f"{path}: meta.json")
    native = meta["rig"] == "native"
    views, normals = content.views(content.inputs, meta.get("input_views", VIEWS), native, with_normals)
    meta["cropped_views"] = cropped_views(views)
    tests = content.views(content.tests, TEST_VIEWS, native, False)[0] if content.tests else None
    points, point_normals = content.surface()
    return RenderedObject(content.key, views, normals, tests, points, point_normals, meta)


class _ViewFiles:
    """The members of one tar, indexed by what they are."""

    def __init__(self, tar: tarfile.TarFile, path: Path) -> None:
        self.tar, self.path = tar, path
        self.members: dict[str, tarfile.TarInfo] = {}
        self.inputs: dict[tuple[int, str], str] = {}
        self.tests: dict[tuple[int, str], str] = {}
        keys = set()
        for member in tar:
            name = member.name.removeprefix("./")
            if name.startswith("/") or "\\" in name or ".." in name.split("/"):
                remedy = "do not trust the source of this tar"
                raise BadInput("member_path", f"{path}: {member.name}", "a member outside the tar's folder", remedy)
            if not member.isreg():  # folders, and links, which are never followed
                continue
            self.members[name] = member
            if match := _MEMBER.fullmatch(name):
                keys.add(match["key"])
                target = self.tests if match["folder"] == "test" else self.inputs
                target[int(match["view"]), match["suffix"]] = name
        if len(keys) != 1:
            detail = f"views of {len(keys)} objects, expected one"
            raise BadInput("view_missing" if not keys else "tar_unreadable", path, detail, "is this an object tar?")
        (self.key,) = keys

    def bytes(self, name: str) -> bytes:
        stream = self.tar.extractfile(self.members[name])
        assert stream is not None  # regular members only
        return stream.read()

    def where(self, name: str) -> str:
        return f"{self.path}: {name}"

    def json(self, name: str, *, optional: bool = False) -> dict[str, Any]:
        if optional and name not in self.members:
            return {}
        reason = "meta_fields" if name.endswith("/meta.json") else "camera_fields"
        try:
            record = json.loads(self.bytes(name))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise BadInput(reason, self.where(name), f"no JSON: {error}") from error
        if not isinstance(record, dict):
            raise BadInput(reason, self.where(name), "no JSON object")
        return record

    def surface(self) -> tuple[Tensor | None, Tensor | None]:
        """Surface samples (P, 3) and their normals (P, 3), or None and None where the tar holds none."""
        name = f"{self.key}/surface.npz"
        if name not in self.members:
            return None, None
        try:
            with np.load(io.BytesIO(self.bytes(name)), allow_pickle=False) as arrays:
                points, normals = (torch.from_numpy(arrays[part].astype(np.float32)) for part in ("points", "normals"))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise BadInput("surface_fields", self.where(name), f"no surface samples: {error}") from error
        if points.ndim != 2 or points.shape[1] != 3 or normals.shape != points.shape or not points.isfinite().all():
            raise BadInput("surface_fields", self.where(name), f"{points.shape} points, {normals.shape} normals")
        return points, normals

    def views(
        self, names: dict[tuple[int, str], str], count: int, native: bool, with_normals: bool
    ) -> tuple[Views, Tensor | None]:
        """The views 0 to count - 1 of one folder."""
        rgba: list[np.ndarray] = []
        cameras: list[Cameras] = []
        depths: list[Tensor] = []
        normals: list[Tensor] = []
        for view in range(count):
            for suffix in (".png", ".json", "_nd.exr"):
                if (view, suffix) not in names:
                    detail = f"{view:05d}{suffix} of {count} views is missing"
                    raise BadInput("view_missing", self.where(self.key), detail, "fetch or render this object again")
            png, camera, exr = (names[view, suffix] for suffix in (".png", ".json", "_nd.exr"))
            image = _decode_png(self.bytes(png), self.where(png))
            if rgba and image.shape != rgba[0].shape:
                detail = f"{image.shape[:2]} pixels, the views before it {rgba[0].shape[:2]}"
                raise BadInput("image_size", self.where(png), detail)
            cameras.append(from_gobjaverse(self.json(camera), self.where(camera)))
            normal, depth = _decode_exr(self.bytes(exr), image.shape[:2], self.where(exr))
            if native:
                depth = clean_native_depth(depth, cameras[-1])
            if with_normals:
                normals.append(F.normalize(normal, dim=0) * (depth > 0))
            rgba.append(image)
            depths.append(depth)
        stacked = torch.from_numpy(np.stack(rgba)).movedim(-1, 1).float() / 255
        all_cameras = Cameras(
            torch.stack([camera.camera_to_world for camera in cameras]),
            torch.stack([camera.intrinsics for camera in cameras]),
        )
        views = Views(self.key, all_cameras, stacked[:, :3], stacked[:, 3:], torch.stack(depths))
        return views, torch.stack(normals) if with_normals else None


def clean_native_depth(depth: Tensor, camera: Cameras) -> Tensor:
    """GObjaverse's depth (H, W) without what its readers refuse: see `read_object_tar`; `camera` of shape ()."""
    invalid = depth < max(camera.positions.norm().item() - NATIVE_RADIUS, 1e-6)
    dilated = F.max_pool2d(invalid[None, None].float(), 3, stride=1, padding=1)[0, 0] > 0
    return depth.masked_fill(dilated, 0.0)


def _decode_png(content: bytes, where: str) -> np.ndarray:
    """(H, W, 4) uint8."""
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            if max(image.size) > MAX_SIDE:
                raise BadInput("image_size", where, f"{image.size} pixels, more than {MAX_SIDE} a side")
            if image.mode != "RGBA":
                raise BadInput("image_channels", where, f"mode {image.mode}, expected RGBA")
            return np.asarray(image)
    except BadInput:
        raise
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise BadInput("image_unreadable", where, str(error), "fetch or render this view again") from error


def _decode_exr(content: bytes, size: tuple[int, ...], where: str) -> tuple[Tensor, Tensor]:
    """World normal (3, H, W) as stored and depth (H, W) with 0 for no surface, of an EXR that must have this size."""
    try:
        header = OpenEXR.File(io.BytesIO(content), separate_channels=True, header_only=True, num_threads=0)
        found = sorted(channel.name for part in header.parts for channel in part.header["channels"])
        if found != sorted("RGBA"):
            raise BadInput("exr_channels", where, f"channels {found}, expected R, G, B, A")
        low, high = header.header()["dataWindow"]
        found_size = (int(high[1] - low[1] + 1), int(high[0] - low[0] + 1))
        if found_size != tuple(size):  # before any pixel is read: a header can claim any size
            raise BadInput("image_size", where, f"{found_size} pixels, its picture {tuple(size)}")
        image = OpenEXR.File(io.BytesIO(content), separate_channels=True, num_threads=0)
        planes = {name: image.channels()[name].pixels for name in "RGBA"}
    except BadInput:
        raise
    except (RuntimeError, TypeError, KeyError, ValueError) as error:
        raise BadInput("exr_unreadable", where, str(error), "fetch or render this view again") from error
    red, green, blue, depth = (torch.from_numpy(np.array(planes[name], dtype=np.float32)) for name in "RGBA")
    if depth.shape != tuple(size):
        raise BadInput("exr_channels", where, f"depth of {tuple(depth.shape)} pixels in a picture of {tuple(size)}")
    depth = torch.where(torch.isfinite(depth) & (depth > 0), depth, 0.0)
    return torch.nan_to_num(torch.stack([-red, -blue, green])), depth


def check_meta(meta: dict[str, Any], where: str) -> None:
    """Raise `BadInput` (meta_fields) unless the facts of an object tar are complete and of the right kind."""
    for key in META_KEYS:
        if key not in meta or not isinstance(meta[key], str | None):
            raise BadInput("meta_fields", where, f"{key!r} is missing or no text")
    for key, allowed in (("surface", SURFACES), ("rig", RIGS)):
        if meta.get(key) not in allowed:
            raise BadInput("meta_fields", where, f"{key!r} is {meta.get(key)!r}, expected one of {allowed}")
    count = meta.get("input_views", VIEWS)
    if not isinstance(count, int) or not 1 <= count <= MAX_VIEWS:
        raise BadInput("meta_fields", where, f"'input_views' is {count!r}, expected 1 to {MAX_VIEWS}")
    try:
        matrix = torch.tensor(meta["object_to_source"], dtype=torch.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput("meta_fields", where, "'object_to_source' is missing or no matrix") from error
    if matrix.shape != (4, 4) or not torch.isfinite(matrix).all():
        raise BadInput("meta_fields", where, f"'object_to_source' has shape {tuple(matrix.shape)} or is not finite")
