"""Forty kinds of bad object, each made from a good one by one change, in the layout in which it would come: the table of
docs/bad-input.md. A door is a layout with the command that it enters by."""

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from mesh_files import box_files, box_obj, gso_files, png, scan_files, write_folder
from source_files import (
    blender_exr,
    gobjaverse_folder,
    gobjaverse_views,
    omni_cameras,
    omni_renders,
    omni_spheres,
    seen,
    tar_of,
)
from spheres import sphere_object

from geolrm.data.object_tar import _members, exr_bytes

Files = dict[str, bytes]  # of one object; KEY in a name stands for the object's
PAGE = b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n"
SIZE = 16
OWN_VIEW = "KEY/campos_512_v4/00004/00004"
GOB_VIEW = "00004/00004"
RENDERS = "KEY/render/"
RENDERED = {"count": 12, "size": 64}


def unchanged(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Kind:
    """One kind of bad object.

    Attributes:
        door: the layout in which it comes.
        wrong, reason: what is wrong with it, and the name under which it is counted.
        files: what is changed in the files of a good object; `packed`: in the tar or zip that holds them.
        name: its name, where that is what is wrong.
        arrives: suffixes of the names of the good objects that come with it.
    """

    door: str
    wrong: str
    reason: str
    files: Callable[[Files], Files] = unchanged
    packed: Callable[[bytes], bytes] = unchanged
    name: str = ""
    arrives: tuple[str, ...] = ()


# --- changes ---------------------------------------------------------------------------------------------------------


def with_file(name: str, content: bytes | Callable[[bytes], bytes]) -> Callable[[Files], Files]:
    return lambda files: files | {name: content if isinstance(content, bytes) else content(files[name])}


def without(*parts: str) -> Callable[[Files], Files]:
    """Without the files whose names hold one of these."""
    return lambda files: {name: data for name, data in files.items() if not any(part in name for part in parts)}


def with_record(name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Files], Files]:
    """With another content of a JSON file."""
    return with_file(name, lambda data: json.dumps(change(json.loads(data))).encode())


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def one_bit(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


def nothing_seen(files: Files) -> Files:
    blank = exr_bytes(np.zeros((3, SIZE, SIZE), np.float32), np.zeros((SIZE, SIZE), np.float32))
    return {name: blank if name.endswith("_nd.exr") else data for name, data in files.items()}


def moved_away(files: Files) -> Files:
    """With all cameras, and so what they see, 3 units to the side."""

    def move(data: bytes) -> bytes:
        record = json.loads(data)
        return json.dumps(record | {"origin": [record["origin"][0] + 3, *record["origin"][1:]]}).encode()

    return {name: move(data) if name[-10:-5].isdigit() else data for name, data in files.items()}


def pickled_samples(_: bytes) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, points=np.array([{"a": 1}], dtype=object), normals=np.zeros((1, 3)))
    return buffer.getvalue()


def growing_scale(record: dict[str, Any]) -> dict[str, Any]:
    return record | {"frames": [frame | {"scale": 1.0 + i} for i, frame in enumerate(record["frames"])]}


def ray_lengths(files: Files) -> Files:
    """Depth as the length of the ray in place of its share along the axis."""
    cameras = omni_cameras(RENDERED["count"])
    _, depth, _ = seen(cameras, RENDERED["size"], *omni_spheres())
    lengths = depth * cameras.rays(RENDERED["size"], RENDERED["size"])[1].norm(dim=-1).numpy()
    exrs = {f"{RENDERS}depths/r_{view}_depth0001.exr": blender_exr(lengths[view]) for view in range(len(lengths))}
    return files | exrs


def no_texture_coordinates(data: bytes) -> bytes:
    lines = [line for line in data.split(b"\n") if not line.startswith((b"vt", b"f "))]
    return b"\n".join([*lines, b"f 1 2 3"])


def point_cloud(_: Files) -> Files:
    cloud = trimesh.PointCloud(np.random.default_rng(0).random((10, 3)))
    return {"KEY/cloud.ply": cloud.export(file_type="ply")}


def two_of_one_name(files: Files) -> Files:
    return files | {"KEY.obj": box_obj(library="")}


def a_second_one(files: Files) -> Files:
    """Two scans, the second of them with a file that no reader asks for, large enough to be cut within."""
    two = {name.replace("KEY", f"KEY-{part}"): data for part in "ab" for name, data in files.items()}
    return two | {"box/KEY-b/Scan/notes.bin": np.random.default_rng(0).bytes(200_000)}


def half_exr_header(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


# --- the kinds -------------------------------------------------------------------------------------------------------

OBJECT_TAR, GOB_TAR, GOB_FOLDER = "object tar", "GObjaverse tar", "GObjaverse files"
GSO, SCANS, NATIVE, MESHES = "GSO zip", "OmniObject3D scans", "OmniObject3D renders", "meshes"
RGB = png(np.zeros((SIZE, SIZE, 3), np.uint8))
WIDER = png(np.zeros((SIZE, SIZE + 1, 4), np.uint8))

KINDS = (
    Kind(OBJECT_TAR, "the tar is cut short", "tar_truncated", packed=half),
    Kind(OBJECT_TAR, "a web page under the tar's name", "tar_unreadable", packed=lambda _: PAGE * 40),
    Kind(
        OBJECT_TAR,
        "views of two objects in one tar",
        "tar_unreadable",
        lambda files: files | {"second/campos_512_v4/00000/00000.png": b""},
    ),
    Kind(OBJECT_TAR, "a test view is missing", "view_missing", without("KEY/test/00015")),
    Kind(OBJECT_TAR, "a web page under a picture's name", "image_unreadable", with_file(f"{OWN_VIEW}.png", PAGE)),
    Kind(OBJECT_TAR, "a picture without alpha", "image_channels", with_file(f"{OWN_VIEW}.png", RGB)),
    Kind(OBJECT_TAR, "a picture of another size than the others", "image_size", with_file(f"{OWN_VIEW}.png", WIDER)),
    Kind(OBJECT_TAR, "a depth map cut short", "exr_unreadable", with_file(f"{OWN_VIEW}_nd.exr", half_exr_header)),
    Kind(
        OBJECT_TAR,
        "a depth map without the channel of depth",
        "exr_channels",
        with_file(f"{OWN_VIEW}_nd.exr", blender_exr(np.ones((SIZE, SIZE)), ("R", "G", "B"))),
    ),
    Kind(
        OBJECT_TAR,
        "a camera at no place (NaN)",
        "pose_not_finite",
        with_record(f"{OWN_VIEW}.json", lambda record: record | {"origin": [float("nan"), 0.0, 2.0]}),
    ),
    Kind(
        OBJECT_TAR,
        "a field of view in degrees",
        "fov_out_of_range",
        with_record(f"{OWN_VIEW}.json", lambda record: record | {"x_fov": 39.6}),
    ),
    Kind(
        OBJECT_TAR,
        "metadata without the way back to the source",
        "meta_fields",
        with_record("KEY/meta.json", lambda record: record | {"object_to_source": None}),
    ),
    Kind(OBJECT_TAR, "surface samples that hold code", "surface_fields", with_file("KEY/surface.npz", pickled_samples)),
    Kind(OBJECT_TAR, "no view shows any surface", "empty_object", nothing_seen),
    Kind(OBJECT_TAR, "the object lies outside the cube", "outside_cube", moved_away),
    Kind(
        OBJECT_TAR,
        "another object under this one's name",
        "key_mismatch",
        lambda files: {name.replace("KEY", "other"): data for name, data in files.items()},
    ),
    Kind(OBJECT_TAR, "a name with characters that part names in a shard", "key_characters", name="train-a.b"),
    Kind(GOB_TAR, "a view is missing", "view_missing", without("00017/")),
    Kind(GOB_TAR, "a web page under a picture's name", "html_page", with_file(f"{GOB_VIEW}.png", PAGE)),
    Kind(GOB_TAR, "a picture with one wrong bit", "image_unreadable", with_file(f"{GOB_VIEW}.png", one_bit)),
    Kind(
        GOB_TAR,
        "a camera of zeros",
        "pose_zero",
        with_record(f"{GOB_VIEW}.json", lambda record: record | {axis: [0.0, 0.0, 0.0] for axis in "xyz"}),
    ),
    Kind(GOB_TAR, "a member that leads out of the tar", "member_path", with_file("../../../evil", b"x")),
    Kind(GOB_FOLDER, "a depth map of no bytes", "exr_unreadable", with_file(f"{GOB_VIEW}_nd.exr", b"")),
    Kind(
        GOB_FOLDER,
        "a camera without its place",
        "camera_fields",
        with_record(f"{GOB_VIEW}.json", lambda record: {name: record[name] for name in record if name != "origin"}),
    ),
    Kind(
        GOB_FOLDER,
        "a mirrored camera",
        "pose_not_rotation",
        with_record(f"{GOB_VIEW}.json", lambda record: record | {"x": [-value for value in record["x"]]}),
    ),
    Kind(GSO, "the zip is cut short", "zip_unreadable", packed=lambda data: data[:-100]),
    Kind(GSO, "no mesh in the zip", "mesh_missing", without("meshes/")),
    Kind(GSO, "the material file is missing", "material_missing", without("model.mtl")),
    Kind(GSO, "the texture is missing", "texture_missing", without("texture.png")),
    Kind(
        SCANS,
        "the archive is cut short; what lies before the cut arrives",
        "tar_truncated",
        a_second_one,
        lambda data: data[:-100_000],
        arrives=("-a", "-b"),
    ),
    Kind(SCANS, "a texture cut short", "image_unreadable", with_file("box/KEY/Scan/Scan.jpg", half)),
    Kind(
        SCANS,
        "words in place of coordinates",
        "mesh_unreadable",
        with_file("box/KEY/Scan/Scan.obj", lambda data: data.replace(b"v 0.5 ", b"v half ", 1)),
    ),
    Kind(
        NATIVE,
        "frames that do not share one scale",
        "scale_fields",
        with_record(f"{RENDERS}transforms.json", growing_scale),
    ),
    Kind(NATIVE, "depth as the ray's length", "reprojection", ray_lengths),
    Kind(
        NATIVE,
        "depth under no known channel name",
        "exr_channels",
        with_file(
            f"{RENDERS}depths/r_5_depth0001.exr", blender_exr(np.ones((RENDERED["size"],) * 2, np.float32), ("Q",))
        ),
    ),
    Kind(MESHES, "a point cloud", "no_faces", point_cloud),
    Kind(
        MESHES,
        "a face with a vertex that does not exist",
        "face_index",
        with_file("KEY/box.obj", lambda data: data + b"\nf 1/1 2/2 999/3"),
    ),
    Kind(
        MESHES,
        "a vertex that is no number (NaN)",
        "vertices_not_finite",
        with_file("KEY/box.obj", lambda data: data.replace(b"v 0.5 ", b"v nan ", 1)),
    ),
    Kind(
        MESHES,
        "a texture without coordinates for it",
        "uv_missing",
        with_file("KEY/box.obj", no_texture_coordinates),
    ),
    Kind(MESHES, "a second object of the same name", "key_duplicate", two_of_one_name, arrives=("",)),
)


def name_of(kind: Kind) -> str:
    """The bad object's name: its number in the table, unless the name is what is wrong."""
    number = KINDS.index(kind) + 1
    return kind.name or (f"train-{number:05d}" if kind.door == OBJECT_TAR else str(number))


# --- the doors -------------------------------------------------------------------------------------------------------


@cache
def good_files(door: str) -> Files:
    """The files of a good object as they come in at this door."""
    if door == OBJECT_TAR:
        return dict(_members(sphere_object("KEY", size=SIZE)))
    if door in (GOB_TAR, GOB_FOLDER):
        return gobjaverse_views(size=48)
    if door == NATIVE:
        return omni_renders("KEY", **RENDERED)
    boxes = {GSO: gso_files(), SCANS: scan_files("box", "KEY")}
    return boxes.get(door) or {f"KEY/{name}": data for name, data in box_files().items()}


def put(door: str, folder: Path, name: str, kind: Kind | None = None) -> None:
    """Put one object where the command of a door looks for it, a good one or one of that kind."""
    files, packed = (good_files(door), unchanged) if kind is None else (kind.files(good_files(door)), kind.packed)
    files = {path.replace("KEY", name): data for path, data in files.items()}
    if door == OBJECT_TAR:
        target, data = folder / f"{name}.tar", tar_of(files)
    elif door == GOB_TAR:
        target = folder / "9" / f"{name}.tar"
        data = tar_of({f"{name}/campos_512_v4/{path}": content for path, content in files.items()})
    elif door == GOB_FOLDER:
        return gobjaverse_folder(folder, f"9/{name}", files, level="")
    elif door == GSO:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for path, content in files.items():
                archive.writestr(path, content)
        target, data = folder / f"{name}.zip", buffer.getvalue()
    elif door == MESHES:
        write_folder(folder, files)
        return None
    else:  # an archive each, in the folder whose name says what they hold
        kept = "raw_scans" if door == SCANS else "blender_renders"
        target, data = folder / kept / f"{name}.tar.gz", tar_of(files, "w:gz")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(packed(data))
    return None
