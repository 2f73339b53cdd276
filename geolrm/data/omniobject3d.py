"""OmniObject3D from a local copy: raw scans checked where they lie, native renders turned into object tars.

In: the owners' archives, one tar.gz a category, or the same extracted: `raw_scans/<category>/<object>/Scan/Scan.obj`, and
`blender_renders/<category>/<object>/render/{transforms.json,images/r_<i>.png,depths/r_<i>_depth*.exr}`. Out: for scans a
line an archive in the ledger (`pipelines.render_meshes --layout raw_scans` reads them in place); for renders
`<object>.tar` in our object frame, pictures byte for byte. Convention: poses are OpenGL camera-to-world, depth is planar z in
the renders' own frame, which is the scan times its `scale`, then turned from y up to z up; that frame is centred and scaled by
the box of what the views see, and the way back to the scan's coordinates is stored. Normals are taken from the depth maps: the
frame of the owners' normal files is nowhere stated. Trade: an object's files are in memory together (some 200 MB at 100 views of
800 px). Each object must land depth on depth, or it is refused: no wrong axis, scale or kind of depth enters. Verified on renders
of a closed form in this layout, and against the scan that they show.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import OpenEXR
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from geolrm.cameras import Cameras, from_blender, to_gobjaverse
from geolrm.data.fetch import Failed, Fetched, Kept, Ledger, Outcome, Progress, Task
from geolrm.data.meshes import (
    KNOWN_DATASETS,
    ROTATION_FROM_UP,
    Bundle,
    Files,
    FolderFiles,
    TarFiles,
    read_source,
    safe_key,
)
from geolrm.data.object_tar import (
    INPUT_FOLDER,
    MAX_SIDE,
    MAX_VIEWS,
    default_meta,
    exr_bytes,
    json_bytes,
    write_members,
)
from geolrm.data.reprojection import reprojection_error
from geolrm.failures import BadInput
from geolrm.files import sha256_of, write_whole
from geolrm.views import Views

Kind = Literal["raw_scans", "blender_renders"]
KINDS: tuple[Kind, ...] = ("raw_scans", "blender_renders")
DATASET, NATIVE_DATASET = "omniobject3d", "omniobject3d_native"
ARCHIVES = (".tar.gz", ".tgz", ".tar")
WHOLE = 5800  # scans; some 5,900 are published, so fewer are a part
FAR = 1e4  # Blender writes 1e10 where it sees nothing
DEPTH_CHANNELS = ("V", "Z", "Y", "R")  # one channel under any of Blender's names; of R, G, B, which hold the same, R
TOLERANCE = 0.5 / 128  # half a voxel at the paper's grid
CHECKED_VIEWS = 12
FLAT = 0.05  # object units: depths of neighbouring pixels within this lie on one surface, for normals
KEY_REMEDY = (
    "OmniObject3D's hosting wants an account: make one at OpenXLab, create a key pair, then with its own client "
    "(pip install openxlab; openxlab login) get the archives you need, for example\n"
    "     openxlab dataset download --dataset-repo omniobject3d/OmniObject3D-New "
    "--source-path /raw/raw_scans/bread.tar.gz --target-path FOLDER\n"
    "     and run this command again with --source FOLDER"
)
_RENDER = re.compile(
    r"(?P<object>(?:.*/)?[^/]+)/render/(?:(?P<transforms>transforms\.json)"
    r"|images/(?P<image>[^/]+)\.png|depths/(?P<depth>[^/]+?)(?:_depth(?:0001)?)?\.exr)"
)


# --- what there is ---


def sources(root: Path) -> dict[Path, Kind]:
    """Archives, and extracted folders, of a local copy, by what they hold: a folder of that name lies above or at them.

    Raises:
        BadInput: `source_missing`.
    """
    found: dict[Path, Kind] = {}
    for kind in KINDS:
        homes = [root] if root.name == kind or kind in root.parts else sorted(root.rglob(kind))
        for home in homes:
            archives = sorted(p for p in home.rglob("*") if p.is_file() and p.name.lower().endswith(ARCHIVES))
            found |= dict.fromkeys(archives, kind)
            pattern = "Scan.obj" if kind == "raw_scans" else "transforms.json"
            folders = {p.parents[2] for p in home.rglob(pattern)}
            found |= dict.fromkeys(sorted(folders), kind)
    if not found:
        detail = "no folder raw_scans or blender_renders with archives or objects in it"
        raise BadInput("source_missing", root, detail, KEY_REMEDY)
    return found


def category_of(path: Path) -> str:
    """The category that an archive, or an extracted folder, holds."""
    return path.name.partition(".")[0]


def files_of(path: Path) -> Files:
    return FolderFiles(path) if path.is_dir() else TarFiles(path)


# --- raw scans ---


@dataclass
class Census:
    """What was found in all categories: the `names` of sound scans, and how many `failed`."""

    names: set[str] = field(default_factory=set)
    failed: int = 0

    def freeze(self, file: Path) -> str:
        """Write the names to `file`, one a line, if all of OmniObject3D was found and none were written before.

        Returns what to tell: the benchmark's list is drawn from these names, and the first whole ones stay.
        """
        found = sorted(self.names)
        if file.is_file():
            there = set(file.read_text().split())
            more, fewer = len(self.names - there), len(there - self.names)
            return f"{file} stays as it was first found: {more} scans here are not in it, {fewer} of its names not here"
        if self.failed or len(found) < WHOLE:
            why = f"{len(found)} sound scans, {self.failed} failures, of some 5,900"
            return f"{file} is not written from a part of the data set: {why}"
        write_whole(file, "".join(f"{name}\n" for name in found))
        return f"{len(found)} names in {file}, sha256 {sha256_of(file)}, now and for ever: commit it"


def scans_task(path: Path, census: Census | None = None) -> Task:
    """Check a category's scans where they lie: every mesh with its texture unpacks, or is named as failed."""
    census = census or Census()

    def do(progress: Progress) -> Iterator[Outcome]:
        sound = 0
        for item in read_source(path, "raw_scans"):
            if isinstance(item, Bundle):
                sound += 1
                census.names.add(item.key)
                yield Kept(item.source_id)
            else:
                census.failed += 1
                yield Failed(item.source_id, item.error)
        size, digest = _size_and_hash(path)
        progress(size)
        if not sound:
            raise BadInput("source_missing", path, "no sound object in it", "download it again")
        facts = KNOWN_DATASETS[DATASET]
        category = category_of(path)
        yield Fetched(category, category, "", size, digest, str(path), size, digest, facts.licence, category)

    return Task(category_of(path), do)


def _size_and_hash(path: Path) -> tuple[int, str]:
    if path.is_file():
        return path.stat().st_size, sha256_of(path)
    digest, size = hashlib.sha256(), 0
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_of(file)}\0".encode())
        size += file.stat().st_size
    return size, digest.hexdigest()


# --- native renders ---


@dataclass(frozen=True)
class RenderFiles:
    """The files of one object's renders, read but not decoded: `pictures` and `depths` by their stem, `r_0`."""

    name: str
    transforms: bytes
    pictures: dict[str, bytes]
    depths: dict[str, bytes]

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256(self.transforms)
        for group in (self.pictures, self.depths):
            for stem in sorted(group):
                digest.update(f"{stem}\0{len(group[stem])}\0".encode() + group[stem])
        return digest.hexdigest()

    @property
    def bytes(self) -> int:
        return len(self.transforms) + sum(
            len(data) for group in (self.pictures, self.depths) for data in group.values()
        )


def renders_task(path: Path, folder: Path, ledger: Ledger, verify: bool) -> Task:
    """Turn the renders of a category into object tars, object by object; what the ledger holds is left as it is."""

    def do(progress: Progress) -> Iterator[Outcome]:
        files, category = files_of(path), category_of(path)
        for error in files.rejected:
            yield Failed(category, error)
        by_object: dict[str, list[str]] = defaultdict(list)
        for name in files.names:
            if match := _RENDER.fullmatch(name):
                by_object[match["object"]].append(name)
        if not by_object:
            raise BadInput("source_missing", path, "no <object>/render/transforms.json in it", "is it blender_renders?")
        for prefix, names in by_object.items():
            name = prefix.rpartition("/")[2]
            target = folder / f"{safe_key(name)}.tar"
            if ledger.holds(target.stem, target, verify):
                yield Kept(f"{category}/{name}")
                continue
            try:
                found = _gather(files, name, names)
                progress(found.bytes)
                ledger.check_source(target.stem, found.sha256)
                yield convert(found, category, str(path), target)
            except BadInput as error:
                yield Failed(f"{category}/{name}", error)

    return Task(category_of(path), do)


def _gather(files: Files, name: str, names: list[str]) -> RenderFiles:
    """Read an object's files in the order in which they lie."""
    transforms, pictures, depths = b"", dict[str, bytes](), dict[str, bytes]()
    for path in names:
        match = _RENDER.fullmatch(path)
        assert match is not None  # they were chosen by it
        data = files.read(path)
        if match["transforms"]:
            transforms = data
        elif match["image"]:
            pictures[match["image"]] = data
        else:
            depths[match["depth"]] = data
    return RenderFiles(name, transforms, pictures, depths)


def convert(found: RenderFiles, category: str, source: str, target: Path) -> Fetched:
    """Write the object tar of one object's native renders.

    Raises:
        BadInput: `camera_fields`, `pose_*`, `scale_fields`, `view_missing`, `image_unreadable`, `image_channels`,
            `image_size`, `exr_unreadable`, `exr_channels`, `empty_object`, `reprojection`. DiskFull.
    """
    where = f"{source}: {found.name}"
    cameras, stems, scale = read_transforms(found.transforms, f"{where}/transforms.json")
    lacking = [stem for stem in stems if stem not in found.pictures or stem not in found.depths]
    if lacking:
        detail = f"{len(lacking)} of {len(stems)} frames lack their picture or depth: {', '.join(lacking[:3])}..."
        raise BadInput("view_missing", where, detail, "unpack or download this object again")
    alphas = [picture_alpha(found.pictures[stem], f"{where}/images/{stem}.png") for stem in stems]
    masked = [
        read_depth(found.depths[stem], alpha, f"{where}/depths/{stem}")
        for stem, alpha in zip(stems, alphas, strict=True)
    ]
    centre, size = box_of(masked, cameras, where)
    cameras = Cameras(moved(cameras.camera_to_world, centre, size), cameras.intrinsics)
    masked = [depth / size for depth in masked]
    check_agreement(masked, cameras, where)
    key = target.stem
    members: dict[str, bytes] = {}
    for view, (stem, depth) in enumerate(zip(stems, masked, strict=True)):
        prefix = f"{key}/{INPUT_FOLDER}/{view:05d}/{view:05d}"
        members[f"{prefix}.png"] = found.pictures[stem]
        members[f"{prefix}.json"] = json_bytes(to_gobjaverse(cameras[view]))
        members[f"{prefix}_nd.exr"] = exr_bytes(normals_of(depth, cameras[view]).numpy(), depth.numpy())
    facts = KNOWN_DATASETS[DATASET]
    meta = default_meta(f"{category}/{found.name}") | {
        "dataset": NATIVE_DATASET,
        "layout": "blender_renders",
        "split": "test",
        "licence": facts.licence,
        "attribution": facts.attribution,
        "category": category,
        "input_views": len(stems),
        "object_to_source": object_to_scan(centre, size, scale).tolist(),
        "source_sha256": found.sha256,
    }
    write_members(target, members | {f"{key}/meta.json": json_bytes(meta)})
    written, digest = target.stat().st_size, sha256_of(target)
    return Fetched(
        key,
        f"{category}/{found.name}",
        target.name,
        written,
        digest,
        source,
        found.bytes,
        found.sha256,
        facts.licence,
        category,
    )


def read_transforms(data: bytes, where: str) -> tuple[Cameras, list[str], float]:
    """Cameras (V,), the stem of each frame's files, and the factor from the scan's units to the renders'.

    Raises:
        BadInput: `camera_fields`, `pose_*`, `fov_out_of_range`, `scale_fields`.
    """
    try:
        record = json.loads(data)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise BadInput("camera_fields", where, f"no JSON: {error}", "download this object again") from error
    if not isinstance(record, dict):
        raise BadInput("camera_fields", where, "no JSON object")
    cameras = from_blender(record, where)
    frames: list[dict[str, Any]] = record["frames"]
    if len(frames) > MAX_VIEWS:
        raise BadInput("camera_fields", where, f"{len(frames)} frames, more than {MAX_VIEWS}")
    stems = [
        str(frame.get("file_path", "")).replace("\\", "/").rpartition("/")[2].removesuffix(".png") for frame in frames
    ]
    if len(set(stems)) != len(stems) or "" in stems:
        raise BadInput("camera_fields", where, "frames without a file_path of their own")
    scales = {frame.get("scale") for frame in frames}
    scale = scales.pop() if len(scales) == 1 else None
    if not isinstance(scale, int | float) or isinstance(scale, bool) or not 0 < scale < float("inf"):
        raise BadInput(
            "scale_fields", where, "frames lack one positive 'scale'", "is this OmniObject3D's transforms.json?"
        )
    return cameras, stems, float(scale)


def picture_alpha(data: bytes, where: str) -> Tensor:
    """Alpha (H, W) in [0, 1] of a PNG. Raises BadInput `image_unreadable`, `image_channels`, `image_size`."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if max(image.size) > MAX_SIDE:
                raise BadInput("image_size", where, f"{image.size} pixels, more than {MAX_SIDE} a side")
            if image.mode != "RGBA":
                raise BadInput("image_channels", where, f"mode {image.mode}, expected RGBA")
            return torch.from_numpy(np.asarray(image)[..., 3].copy()).float() / 255
    except BadInput:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadInput("image_unreadable", where, str(error), "unpack or download this object again") from error


def read_depth(data: bytes, alpha: Tensor, where: str) -> Tensor:
    """Planar depth (H, W) in the renders' units, 0 where nothing is seen or the picture is not wholly covered.

    Raises:
        BadInput: `exr_unreadable`, `exr_channels`, `image_size`.
    """
    try:
        image = OpenEXR.File(io.BytesIO(data), separate_channels=True, num_threads=0)
        channels = {name.rpartition(".")[2]: channel.pixels for name, channel in image.channels().items()}
    except (RuntimeError, TypeError, KeyError, ValueError) as error:
        raise BadInput("exr_unreadable", where, str(error), "unpack or download this object again") from error
    name = next((name for name in DEPTH_CHANNELS if name in channels), None)
    if name is None:
        raise BadInput("exr_channels", where, f"channels {sorted(channels)}, expected one of {DEPTH_CHANNELS}")
    depth = torch.from_numpy(np.array(channels[name], dtype=np.float32))
    if depth.shape != alpha.shape:
        raise BadInput("image_size", where, f"{tuple(depth.shape)} pixels, its picture {tuple(alpha.shape)}")
    seen = torch.isfinite(depth) & (depth > 0) & (depth < FAR) & (alpha == 1)
    return torch.where(seen, depth, 0.0)


def box_of(depths: list[Tensor], cameras: Cameras, where: str) -> tuple[Tensor, float]:
    """Centre (3,) float64 and longest side of the box of all that the views see; pixels at edges do not count.

    Raises:
        BadInput: `empty_object`.
    """
    lows, highs = [], []
    for view, depth in enumerate(depths):
        inner = F.max_pool2d((depth == 0)[None, None].float(), 3, stride=1, padding=1)[0, 0] == 0
        points = cameras[view].unproject(depth)[inner].double()
        if len(points):
            lows.append(points.amin(0))
            highs.append(points.amax(0))
    if not lows:
        raise BadInput("empty_object", where, "no view shows any surface")
    low, high = torch.stack(lows).amin(0), torch.stack(highs).amax(0)
    return (low + high) / 2, (high - low).max().item()


def moved(poses: Tensor, centre: Tensor, size: float) -> Tensor:
    """Poses (V, 4, 4) in the frame in which `centre` is the origin and `size` is 1."""
    poses = poses.clone()
    poses[:, :3, 3] = ((poses[:, :3, 3].double() - centre) / size).float()
    return poses


def object_to_scan(centre: Tensor, size: float, scale: float) -> Tensor:
    """4x4 float64 from our object frame to the coordinates of the raw scan, which is y up and not scaled."""
    to_render = torch.eye(4, dtype=torch.float64)
    to_render[:3, :3] *= size
    to_render[:3, 3] = centre
    to_scan = torch.eye(4, dtype=torch.float64)
    to_scan[:3, :3] = torch.tensor(ROTATION_FROM_UP["y"], dtype=torch.float64).T / scale
    return to_scan @ to_render


def check_agreement(depths: list[Tensor], cameras: Cameras, where: str) -> None:
    """Raise BadInput `reprojection` unless the depth of views lands on that of their nearest neighbours."""
    chosen = list(range(0, len(depths), max(1, len(depths) // CHECKED_VIEWS)))[:CHECKED_VIEWS]
    directions = F.normalize(cameras.positions, dim=-1)
    likeness = directions @ directions.T
    likeness.fill_diagonal_(-2)
    nearest = {view: int(likeness[view].argmax()) for view in chosen}
    views = sorted({*nearest, *nearest.values()})
    depth = torch.stack([depths[view] for view in views])
    blank = torch.zeros(len(views), 1, *depth.shape[1:])
    picked = Views(where, cameras[views], blank.expand(-1, 3, -1, -1), blank, depth)
    error = reprojection_error(picked, [(views.index(a), views.index(b)) for a, b in nearest.items()])
    if error.median >= TOLERANCE or error.occluded > 0.5:
        detail = (
            f"depth does not land on depth: median error {error.median:.4f} of the object's size, "
            f"{error.occluded:.0%} behind what another view sees; half a voxel is {TOLERANCE:.4f}"
        )
        raise BadInput("reprojection", where, detail, "poses, depth or scale are not those of this layout: report it")


def normals_of(depth: Tensor, camera: Cameras) -> Tensor:
    """World unit normals (3, H, W) of a depth map (H, W), 0 where a pixel and its four neighbours are not one surface."""
    points = camera.unproject(depth)
    across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
    around = torch.stack([depth[1:-1, 2:], depth[1:-1, :-2], depth[2:, 1:-1], depth[:-2, 1:-1], depth[1:-1, 1:-1]])
    flat = (around > 0).all(0) & (around.amax(0) - around.amin(0) < FLAT)
    normals = F.normalize(torch.linalg.cross(down, across), dim=-1)  # x right, y down: towards the camera
    full = torch.zeros_like(points)
    full[1:-1, 1:-1] = torch.where(flat[..., None], normals, 0.0)
    return full.permute(2, 0, 1)
