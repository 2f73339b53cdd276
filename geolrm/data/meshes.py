"""Scanned and modelled meshes as they come: source layouts, mesh files, their materials, checked and normalised.

In: GSO zips (Gazebo Fuel), OmniObject3D raw scans (one tar.gz a category, or extracted), or folders and zips of OBJ, GLB and
PLY. Out: `TexturedMesh` per object, in its source's frame and then, by `normalised`, in the object frame: z up, centred by its
box, longest side 1, with the transform back. Convention: texture coordinates as OBJ has them (v up), one per face corner;
colours are sRGB. Layout (how the files lie) and data set (what the object is) are two things. Trade: opaque diffuse colour
only; a texture's alpha, roughness and the like are ignored. Archives are read member by member, by name, never extracted.
Verified on meshes written by the tests, on every kind of broken file that they can make, and on ten real scans.
"""

from __future__ import annotations

import hashlib
import io
import posixpath
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from geolrm.data.lighting import linear_to_srgb, srgb_to_linear
from geolrm.failures import BadInput

Layout = Literal["gso_zip", "raw_scans", "folder"]
Up = Literal["x", "y", "z", "-x", "-y", "-z"]
Floats = NDArray[np.float64]

MESH_SUFFIXES = (".obj", ".glb", ".ply")
MAX_MEMBER_BYTES = 2 << 30
NEUTRAL_GREY = 0.6  # sRGB, of a mesh that has neither texture nor colours
UNTEXTURED = "untextured"  # the warning in an object's meta, and what stats count it by

# What parsers of other people's files raise when these are malformed.
MALFORMED = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    EOFError,
    struct.error,
    AssertionError,
)
TRUNCATED = (EOFError, zlib.error, tarfile.ReadError, zipfile.BadZipFile, NotImplementedError, RuntimeError)

# Object frame (z up) from a source frame with another axis up: proper rotations, rows are the object's axes in the source.
ROTATION_FROM_UP: dict[str, tuple[tuple[int, int, int], ...]] = {
    "z": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "-z": ((1, 0, 0), (0, -1, 0), (0, 0, -1)),
    "y": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "-y": ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
    "x": ((0, 0, -1), (0, 1, 0), (1, 0, 0)),
    "-x": ((0, 0, 1), (0, 1, 0), (-1, 0, 0)),
}


@dataclass(frozen=True)
class SourceFacts:
    """What holds for all objects of a data set.

    Attributes:
        licence, attribution: as its owner asks.
        unit: of the source's coordinates, None where the owner does not say.
        up: the axis of the source that points up, by default.
        up_exceptions: objects, by key, that stand otherwise.
    """

    licence: str | None
    attribution: str | None
    unit: str | None
    up: Up
    up_exceptions: dict[str, Up] = field(default_factory=dict)


# Facts about the data sets that we know, whatever layout they come in; datasets/<name>/README.md says where from.
KNOWN_DATASETS: dict[str, SourceFacts] = {
    "gso": SourceFacts("CC BY 4.0", "Google LLC, Google Scanned Objects", "m", "z"),
    "omniobject3d": SourceFacts("CC BY 4.0", "OmniObject3D (Wu et al., CVPR 2023)", None, "y"),
    "hope": SourceFacts("CC BY-NC-SA 4.0", "NVIDIA, HOPE object set", "cm", "y", {"bottle_002": "z"}),
}


@dataclass(frozen=True)
class Material:
    """Diffuse colour of some faces.

    Attributes:
        colour: (3,) sRGB in [0, 1], multiplies nothing: it stands where there is no texture.
        texture: (H, W, 3) uint8 sRGB, first row on top (v = 1), or None.
    """

    colour: tuple[float, float, float] = (NEUTRAL_GREY,) * 3
    texture: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class TexturedMesh:
    """Triangles with what colours them.

    Attributes:
        vertices: (N, 3) float64.
        faces: (M, 3) int64.
        materials: at least one.
        face_material: (M,) int64 into materials.
        corner_uv: (M, 3, 2) float32 texture coordinates, v up, or None.
        corner_normals: (M, 3, 3) float32 shading normals, not necessarily unit, zero where unknown; or None.
        vertex_colours: (N, 3) float32 sRGB in [0, 1], which stand where a face has no texture; or None.
        warnings: what was wanting without making the mesh useless, counted in stats.
    """

    vertices: Floats
    faces: NDArray[np.int64]
    materials: tuple[Material, ...]
    face_material: NDArray[np.int64]
    corner_uv: NDArray[np.float32] | None = None
    corner_normals: NDArray[np.float32] | None = None
    vertex_colours: NDArray[np.float32] | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bundle:
    """The files of one object, read but not yet parsed: what travels to a worker.

    Attributes:
        key: file name and key of the object, unique within its data set.
        source_id: what the source calls it, for example `bottle/bottle_001`.
        category: None where the layout names none.
        where: archive or folder, for messages.
        mesh_name: name of the mesh file.
        files: content of the mesh file and of each companion (materials, textures) that exists, by name.
    """

    key: str
    source_id: str
    category: str | None
    where: str
    mesh_name: str
    files: dict[str, bytes] = field(repr=False)

    @property
    def sha256(self) -> str:
        """Hash of names and contents, whatever the order."""
        digest = hashlib.sha256()
        for name in sorted(self.files):
            digest.update(f"{name}\0{len(self.files[name])}\0".encode())
            digest.update(self.files[name])
        return digest.hexdigest()


class Dropped(NamedTuple):
    """An object that cannot be read, by its name in the source and the reason."""

    source_id: str
    error: BadInput


# ---------------------------------------------------------------------------------------------------------- archives


def check_member_path(name: str, where: object) -> None:
    """Raise `BadInput` if an archive's member names a place outside the archive."""
    plain = name.replace("\\", "/")
    if plain.startswith("/") or re.match(r"^[A-Za-z]:", plain) or ".." in plain.split("/"):
        raise BadInput("member_path", where, f"member {name!r} points outside the archive", "do not trust this file")


class Files(Protocol):
    """Named files of a folder or archive. `names` are relative, with forward slashes, safe; `rejected` are the others."""

    where: str
    names: list[str]
    rejected: list[BadInput]

    def read(self, name: str) -> bytes: ...


class FolderFiles:
    """Files below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.where, self.rejected = folder, str(folder), []  # type: tuple[Path, str, list[BadInput]]
        self.names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()


class ZipFiles:
    """Members of a zip. Raises BadInput `zip_unreadable` where there is no whole central directory."""

    def __init__(self, path: Path) -> None:
        self.where, self.rejected, self.names = str(path), [], []  # type: tuple[str, list[BadInput], list[str]]
        try:
            self.archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, EOFError, struct.error) as error:
            raise BadInput("zip_unreadable", path, f"no whole zip: {error}", "download it again") from error
        for info in self.archive.infolist():
            if info.is_dir():
                continue
            try:
                check_member_path(info.orig_filename, path)
                check_member_size(info.file_size, f"{path}!{info.filename}")
                self.names.append(info.filename)
            except BadInput as error:
                self.rejected.append(error)

    def read(self, name: str) -> bytes:
        try:
            return self.archive.read(name)
        except TRUNCATED as error:
            detail = f"member does not unpack: {error}"
            raise BadInput("zip_unreadable", f"{self.where}!{name}", detail, "download it again") from error


class TarFiles:
    """Regular members of a tar or tar.gz; links are left out. A tar cut short still gives what lies before the cut."""

    def __init__(self, path: Path) -> None:
        self.where, self.rejected, self.members = str(path), [], {}  # type: tuple[str, list[BadInput], dict[str, Any]]
        try:
            self.archive = tarfile.open(path, "r:*")  # noqa: SIM115 (kept open while its members are read)
            while (member := self.archive.next()) is not None:
                self._admit(member)
        except (*TRUNCATED, OSError) as error:
            detail = f"the archive ends early or is none: {error}"
            self.rejected.append(BadInput("tar_truncated", path, detail, "download it again"))
        # in the order in which they lie, so that reading them all unpacks the archive once
        self.names = sorted(self.members, key=lambda name: self.members[name].offset_data)

    def _admit(self, member: tarfile.TarInfo) -> None:
        if not member.isreg():
            return
        try:
            check_member_path(member.name, self.where)
            check_member_size(member.size, f"{self.where}!{member.name}")
            self.members[posixpath.normpath(member.name)] = member
        except BadInput as error:
            self.rejected.append(error)

    def read(self, name: str) -> bytes:
        where, member = f"{self.where}!{name}", self.members[name]
        try:
            stream = self.archive.extractfile(member)
            data = stream.read() if stream else b""
        except (*TRUNCATED, OSError) as error:
            raise BadInput("tar_truncated", where, f"member does not unpack: {error}", "download it again") from error
        if len(data) != member.size:
            raise BadInput("tar_truncated", where, f"{len(data)} of {member.size} bytes", "download it again")
        return data


def check_member_size(size: int, where: object) -> None:
    """Raise `BadInput` if a member unpacks to more than any mesh or texture needs."""
    if size > MAX_MEMBER_BYTES:
        raise BadInput("member_too_large", where, f"unpacks to {size} bytes, more than {MAX_MEMBER_BYTES}")


# ----------------------------------------------------------------------------------------------------------- layouts


def safe_key(name: str) -> str:
    """A source's name as a file name: anything but letters, digits, dot, dash and underscore becomes a dash."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "object"


def companion(files: Files, base: str, name: str) -> str | None:
    """The file that `base` (a mesh or material file) means by `name`, or None if there is none.

    Looked for beside `base`, then in Fuel's `materials/textures`, then anywhere by its bare name if one file alone has it;
    upper and lower case are one, because scans are exported on systems where they are.
    """
    plain = name.strip().strip('"').replace("\\", "/")
    by_lower = {candidate.lower(): candidate for candidate in files.names}
    folder = posixpath.dirname(base)
    fuel = posixpath.join(posixpath.dirname(folder), "materials/textures", posixpath.basename(plain))
    for candidate in (posixpath.normpath(posixpath.join(folder, plain)), fuel):
        if candidate.lower() in by_lower:
            return by_lower[candidate.lower()]
    bare = posixpath.basename(plain).lower()
    below = [candidate for candidate in files.names if posixpath.basename(candidate).lower() == bare]
    inside = [candidate for candidate in below if candidate.startswith(folder + "/" if folder else "")]
    return inside[0] if len(inside) == 1 else None


def _mentioned(data: bytes, keyword: bytes) -> list[str]:
    """Arguments of the lines of an OBJ or MTL file that start with a keyword."""
    return [
        m.decode("utf-8", "replace").strip() for m in re.findall(rb"(?mi)^[ \t]*" + keyword + rb"[ \t]+(.+?)\s*$", data)
    ]


def _texture_file(argument: str) -> str:
    """File name in a `map_Kd` line, whose options (`-s 1 1 1`, `-clamp on`) come first."""
    words = argument.split()
    while len(words) > 1 and words[0].startswith("-"):
        words = words[1:]
        while len(words) > 1 and re.fullmatch(r"on|off|[-+0-9.eE]+", words[0]):
            words = words[1:]
    return " ".join(words) if argument.startswith("-") else argument


def gather(files: Files, mesh_name: str, key: str, source_id: str, category: str | None = None) -> Bundle:
    """Read a mesh file and, for an OBJ, the materials and textures that it names and that exist.

    Companions are stored under the names that the mesh uses for them. Raises BadInput where an archive does not unpack.
    """
    contents = {mesh_name: files.read(mesh_name)}
    if mesh_name.lower().endswith(".obj"):
        for library in _mentioned(contents[mesh_name], b"mtllib"):
            material_file = companion(files, mesh_name, library)
            if material_file is None:
                continue
            contents[library] = files.read(material_file)
            for argument in _mentioned(contents[library], b"map_Kd"):
                texture = _texture_file(argument)
                texture_file = companion(files, material_file, texture)
                if texture_file is not None:
                    contents[texture] = files.read(texture_file)
    return Bundle(safe_key(key), source_id, category, files.where, mesh_name, contents)


def _gathered(files: Files, found: list[tuple[str, str, str | None]], named: bool) -> Iterator[Bundle | Dropped]:
    """Bundles of (mesh name, source id, category); the key is the source id, or its last part if `named` by that."""
    for mesh_name, source_id, category in found:
        key = source_id.rsplit("/", 1)[-1] if named else source_id
        try:
            yield gather(files, mesh_name, key, source_id, category)
        except BadInput as error:
            yield Dropped(source_id, error)


def gso_zip(path: Path) -> Iterator[Bundle | Dropped]:
    """One zip of Gazebo Fuel, one object: `meshes/model.obj`, its texture in `materials/textures/`."""
    try:
        files = ZipFiles(path)
        if files.rejected:
            raise files.rejected[0]
        meshes = [name for name in files.names if name.lower().endswith(".obj")]
        preferred = [name for name in meshes if name.lower().endswith("meshes/model.obj")] or meshes
        if len(preferred) != 1:
            detail = f"{len(meshes)} OBJ files, expected meshes/model.obj"
            raise BadInput("mesh_missing", path, detail, "is this a Gazebo Fuel zip? try --layout folder")
        yield gather(files, preferred[0], path.stem, path.stem)
    except BadInput as error:
        yield Dropped(path.stem, error)


def _raw_scans(files: Files, category: str | None) -> Iterator[Bundle | Dropped]:
    """OmniObject3D's `<category>/<object>/Scan/Scan.obj`, of which a given folder may leave out the category."""
    for error in files.rejected:
        yield Dropped(posixpath.basename(files.where), error)
    found = []
    for name in files.names:
        parts = name.split("/")
        if len(parts) < 3 or parts[-2].lower() != "scan" or parts[-1].lower() != "scan.obj":
            continue
        kind = parts[-4] if len(parts) > 3 else category
        found.append((name, f"{kind}/{parts[-3]}" if kind else parts[-3], kind))
    yield from _gathered(files, found, named=True)


def _loose(files: Files, whole: str | None) -> Iterator[Bundle | Dropped]:
    """Every OBJ, GLB and PLY. A mesh alone in its folder is called as the folder is, `whole` at the root; others by path."""
    for error in files.rejected:
        yield Dropped(whole or files.where, error)
    meshes = [name for name in files.names if name.lower().endswith(MESH_SUFFIXES)]
    folders = [posixpath.dirname(name) for name in meshes]
    if whole and not meshes and not files.rejected:
        yield Dropped(whole, BadInput("mesh_missing", files.where, "no OBJ, GLB or PLY file in it"))
    found: list[tuple[str, str, str | None]] = []
    for name, folder in zip(meshes, folders, strict=True):
        alone = whole is not None and len(meshes) == 1
        inner = folder if folder and folders.count(folder) == 1 else posixpath.splitext(name)[0]
        found.append((name, whole if alone and whole else f"{whole}/{inner}" if whole else inner, None))
    yield from _gathered(files, found, named=False)


def read_source(path: Path, layout: Layout) -> Iterator[Bundle | Dropped]:
    """All objects below `path`, in sorted order of archives; what cannot be read is `Dropped` and loses nothing else.

    Args:
        path: gso_zip: a zip or a folder of zips. raw_scans: a category's tar.gz, a folder of such, the extracted folder
            (above or at the category). folder: a mesh file, a folder searched in depth, zips of meshes among or instead.

    Raises BadInput `source_missing` if there is no such path or nothing in it has the layout.
    """
    if not path.exists():
        raise BadInput("source_missing", path, "no such file or folder")
    seen: set[str] = set()
    for item in _layout_items(path, layout):
        key = item.key if isinstance(item, Bundle) else None
        if key is not None and key in seen:
            error = BadInput("key_duplicate", path, f"two objects are called {key!r}", "render them as two data sets")
            item = Dropped(key, error)
        yield item
        seen |= {key} if key is not None else {""}
    if not seen:
        raise BadInput("source_missing", path, f"nothing in it has the layout {layout}", "see --help for the layouts")


def _layout_items(path: Path, layout: Layout) -> Iterator[Bundle | Dropped]:
    suffixes = {"gso_zip": (".zip",), "raw_scans": (".tar.gz", ".tgz", ".tar"), "folder": (".zip",)}[layout]
    entries = sorted(path.rglob("*")) if path.is_dir() else [path]
    archives = [p for p in entries if p.is_file() and p.name.lower().endswith(suffixes)]
    for archive in archives:
        if layout == "gso_zip":
            yield from gso_zip(archive)
        elif layout == "raw_scans":
            yield from _raw_scans(TarFiles(archive), None)
        else:
            try:
                yield from _loose(ZipFiles(archive), archive.stem)
            except BadInput as error:
                yield Dropped(archive.stem, error)
    if path.is_dir() and layout == "raw_scans":
        yield from _raw_scans(FolderFiles(path), path.name)
    if path.is_dir() and layout == "folder":
        yield from _loose(FolderFiles(path), None)
    if path.is_file() and layout == "folder" and path.name.lower().endswith(MESH_SUFFIXES):
        yield from _gathered(FolderFiles(path.parent), [(path.name, path.stem, None)], named=False)


# ------------------------------------------------------------------------------------------------------------ parsing


def read_texture(data: bytes, where: object) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 of an image file; alpha is dropped. Raises BadInput `image_unreadable`."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode.startswith("I"):  # 16 bits of grey, which Pillow's conversion would clip
                grey = (np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, *MALFORMED) as error:
        raise BadInput("image_unreadable", where, f"no readable image: {error}", "export the texture again") from error


def read_materials(bundle: Bundle, libraries: list[str]) -> dict[str, Material]:
    """Materials of the OBJ's libraries by name. Raises BadInput `material_missing`, `texture_missing`, `image_unreadable`."""
    materials: dict[str, Material] = {}
    for library in libraries:
        where = f"{bundle.where}!{library}"
        if library not in bundle.files:
            remedy = "put the .mtl beside the .obj"
            raise BadInput(
                "material_missing", where, f"{bundle.mesh_name} names a material file that is absent", remedy
            )
        name = ""
        for line in bundle.files[library].decode("utf-8", "replace").splitlines():
            keyword, _, argument = line.strip().partition(" ")
            if keyword == "newmtl":
                name = argument.strip()
                materials[name] = Material()
            elif keyword.lower() == "map_kd":
                texture = _texture_file(argument.strip())
                if texture not in bundle.files:
                    remedy = "put the texture beside the .mtl, or in materials/textures"
                    raise BadInput("texture_missing", where, f"texture {texture!r} is absent", remedy)
                pixels = read_texture(bundle.files[texture], f"{bundle.where}!{texture}")
                materials[name] = replace(materials.get(name, Material()), texture=pixels)
            elif keyword == "Kd":
                try:
                    r, g, b = (min(max(float(word), 0.0), 1.0) for word in argument.split()[:3])
                except ValueError as error:
                    raise BadInput("material_unreadable", where, f"no colour: {line.strip()!r}") from error
                materials[name] = replace(materials.get(name, Material()), colour=(r, g, b))
    return materials


def _corner(word: bytes, counts: tuple[int, int, int]) -> tuple[int, int, int]:
    """Zero-based (vertex, texture, normal) of an OBJ face's corner `v/vt/vn`, -1 where absent; negative counts backwards."""
    indices = [-1, -1, -1]
    for i, part in enumerate(word.split(b"/")[:3]):
        if part:
            value = int(part)
            indices[i] = value - 1 if value > 0 else counts[i] + value
    return indices[0], indices[1], indices[2]


def _scan_obj(data: bytes) -> tuple[dict[bytes, list[list[bytes]]], list[Any], list[int], list[str]]:
    """Split an OBJ into its number rows, the corners (M, 3, 3) of its triangles, their materials, the materials' names."""
    rows: dict[bytes, list[list[bytes]]] = {b"v": [], b"vt": [], b"vn": []}
    corners: list[Any] = []
    face_material: list[int] = []
    names: list[str] = []
    current = -1
    for line in data.replace(b"\\\n", b" ").splitlines():
        words = line.split()
        if not words:
            continue
        if words[0] in rows:
            rows[words[0]].append(words[1:])
        elif words[0] == b"f":
            counts = (len(rows[b"v"]), len(rows[b"vt"]), len(rows[b"vn"]))
            polygon = [_corner(word, counts) for word in words[1:]]
            for i in range(1, len(polygon) - 1):  # a fan: right for convex polygons
                corners.append((polygon[0], polygon[i], polygon[i + 1]))
                face_material.append(current)
        elif words[0] == b"usemtl":
            name = line.split(None, 1)[1].decode("utf-8", "replace").strip() if len(words) > 1 else ""
            if name not in names:
                names.append(name)
            current = names.index(name)
    return rows, corners, face_material, names


def _take(table: Floats, index: NDArray[np.int64], missing: float, where: str, what: str) -> NDArray[np.float32]:
    """Rows of a table for indices of any shape, `missing` where the index is -1. Raises BadInput `face_index`."""
    if index.size and (index.max() >= len(table) or index.min() < -1):
        raise BadInput("face_index", where, f"a face names a {what} that does not exist")
    padded = np.concatenate([table, np.full((1, table.shape[1]), missing)])
    return padded[index].astype(np.float32)


def read_obj(bundle: Bundle) -> TexturedMesh:
    """Parse an OBJ with its materials. Raises BadInput, see `read_mesh`."""
    where = f"{bundle.where}!{bundle.mesh_name}"
    data = bundle.files[bundle.mesh_name]
    try:
        rows, corner_list, material_list, names = _scan_obj(data)
        positions = np.array([row[:3] for row in rows[b"v"]], dtype=np.float64).reshape(-1, 3)
        uv = np.array([row[:2] for row in rows[b"vt"]], dtype=np.float64).reshape(-1, 2)
        normals = np.array([row[:3] for row in rows[b"vn"]], dtype=np.float64).reshape(-1, 3)
        coloured = bool(rows[b"v"]) and all(len(row) >= 6 for row in rows[b"v"])
        colours = np.array([row[3:6] for row in rows[b"v"]], dtype=np.float32) if coloured else None
    except MALFORMED as error:
        raise BadInput("mesh_unreadable", where, f"no OBJ: {error}", "export the mesh again") from error
    if not len(positions):
        raise BadInput("mesh_unreadable", where, "no vertex in it", "export the mesh again")
    corners = np.array(corner_list, dtype=np.int64).reshape(-1, 3, 3)
    if corners.size and (corners[..., 0].max() >= len(positions) or corners[..., 0].min() < 0):
        raise BadInput("face_index", where, "a face names a vertex that does not exist", "export the mesh again")
    library = read_materials(bundle, _mentioned(data, b"mtllib"))
    missing = [name for name in names if name not in library] if library else []
    if missing:
        raise BadInput("material_missing", where, f"material {missing[0]!r} is in no .mtl file")
    face_material = np.array(material_list, dtype=np.int64)
    materials = [library.get(name, Material()) for name in names]
    if not materials or (face_material < 0).any():  # faces before any usemtl take a material of their own
        face_material = np.where(face_material < 0, len(materials), face_material)
        materials.append(next(iter(library.values())) if len(library) == 1 else Material())
    corner_uv = _take(uv, corners[..., 1], np.nan, where, "texture coordinate") if len(uv) else None
    corner_normals = _take(normals, corners[..., 2], 0.0, where, "normal") if len(normals) else None
    bare = not library and colours is None
    return TexturedMesh(
        positions,
        corners[..., 0],
        tuple(materials),
        face_material,
        corner_uv,
        corner_normals,
        colours,
        (UNTEXTURED,) if bare else (),
    )


def _to_srgb(linear: Any) -> Floats:
    """sRGB of linear light, any shape."""
    return linear_to_srgb(torch.from_numpy(np.clip(np.asarray(linear, dtype=np.float64), 0, 1))).numpy()


def _to_linear(srgb: Any) -> Floats:
    """Linear light of sRGB, any shape."""
    return srgb_to_linear(torch.from_numpy(np.clip(np.asarray(srgb, dtype=np.float64), 0, 1))).numpy()


def _geometry_material(visual: Any, is_gltf: bool) -> tuple[Material, bool]:
    """Material of one trimesh geometry, and whether it says anything (glTF's factors are linear light)."""
    material = getattr(visual, "material", None)
    texture = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    factor = getattr(material, "baseColorFactor", None)
    colour = np.full(3, 1.0)
    if factor is not None:
        colour = np.asarray(factor, dtype=np.float64)[:3] / (255.0 if np.asarray(factor).dtype.kind in "ui" else 1.0)
    linear = _to_linear(colour) if not is_gltf else colour
    if texture is not None:
        pixels = np.asarray(texture.convert("RGB"))
        if not np.allclose(linear, 1.0):
            pixels = np.round(_to_srgb(_to_linear(pixels / 255.0) * linear) * 255).astype(np.uint8)
        return Material(texture=pixels), True
    if factor is not None:
        r, g, b = _to_srgb(linear).tolist()
        return Material(colour=(r, g, b)), True
    return Material(), False


def _geometry(geometry: Any, is_gltf: bool) -> TexturedMesh:
    """One trimesh geometry as a mesh of one material."""
    faces = np.asarray(geometry.faces, dtype=np.int64)
    vertices = np.asarray(geometry.vertices, dtype=np.float64)
    visual = geometry.visual
    attributes = getattr(visual, "vertex_attributes", {})
    colours = None
    if visual.kind == "vertex":
        colours = np.asarray(visual.vertex_colors)
    elif "color" in attributes:
        colours = np.asarray(attributes["color"])
    if colours is not None:
        colours = colours[:, :3].astype(np.float32) / (255.0 if colours.dtype == np.uint8 else 1.0)
        colours = _to_srgb(colours).astype(np.float32) if is_gltf else np.clip(colours, 0, 1)
    material, said = _geometry_material(visual, is_gltf)
    uv = getattr(visual, "uv", None)
    corner_uv = np.asarray(uv, dtype=np.float32)[:, :2][faces] if uv is not None and len(faces) else None
    stored = geometry._cache.cache.get("vertex_normals")  # only those of the file: trimesh would compute the others
    corner_normals = None
    if stored is not None and len(stored) == len(vertices) and len(faces):
        corner_normals = np.asarray(stored, dtype=np.float32)[faces]
    warnings = () if said or colours is not None else (UNTEXTURED,)
    index = np.zeros(len(faces), dtype=np.int64)
    return TexturedMesh(vertices, faces, (material,), index, corner_uv, corner_normals, colours, warnings)


def _joined(parts: list[TexturedMesh]) -> TexturedMesh:
    """Several meshes as one."""
    if len(parts) == 1:
        return parts[0]
    vertex_offsets = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    material_offsets = np.cumsum([0] + [len(part.materials) for part in parts[:-1]])
    uv = [np.full((len(p.faces), 3, 2), np.nan) if p.corner_uv is None else p.corner_uv for p in parts]
    normals = [np.zeros((len(p.faces), 3, 3)) if p.corner_normals is None else p.corner_normals for p in parts]
    colours = None
    if any(part.vertex_colours is not None for part in parts):
        blank = [np.broadcast_to(part.materials[0].colour, (len(part.vertices), 3)) for part in parts]
        chosen = [b if p.vertex_colours is None else p.vertex_colours for p, b in zip(parts, blank, strict=True)]
        colours = np.concatenate(chosen).astype(np.float32)
    return TexturedMesh(
        np.concatenate([part.vertices for part in parts]),
        np.concatenate([part.faces + offset for part, offset in zip(parts, vertex_offsets, strict=True)]),
        tuple(material for part in parts for material in part.materials),
        np.concatenate([p.face_material + offset for p, offset in zip(parts, material_offsets, strict=True)]),
        np.concatenate(uv).astype(np.float32),
        np.concatenate(normals).astype(np.float32),
        colours,
        tuple(sorted({warning for part in parts for warning in part.warnings})),
    )


def read_with_trimesh(bundle: Bundle) -> TexturedMesh:
    """Parse a GLB or PLY. Raises BadInput, see `read_mesh`."""
    import trimesh

    where, kind = f"{bundle.where}!{bundle.mesh_name}", bundle.mesh_name.rsplit(".", 1)[-1].lower()
    stream = io.BytesIO(bundle.files[bundle.mesh_name])
    try:
        scene = trimesh.load_scene(stream, file_type=kind, process=False, maintain_order=True)
        geometries = [g for g in scene.dump(concatenate=False) if isinstance(g, trimesh.Trimesh)]
        parts = [_geometry(geometry, kind == "glb") for geometry in geometries]
    except (*MALFORMED, OSError, NotImplementedError, ImportError) as error:
        raise BadInput("mesh_unreadable", where, f"no {kind.upper()}: {error}", "export the mesh again") from error
    if not parts:
        raise BadInput("no_faces", where, "no triangle mesh in it (a point cloud, perhaps)")
    return _joined(parts)


def read_mesh(bundle: Bundle) -> TexturedMesh:
    """Parse and check the mesh of one object.

    Raises BadInput with one of mesh_unreadable, no_faces, face_index, vertices_not_finite, no_extent, uv_missing,
    uv_not_finite, material_missing, material_unreadable, texture_missing, image_unreadable. A mesh that names no material
    and has no vertex colours is no failure: it is grey and carries the warning `untextured`.
    """
    mesh = read_obj(bundle) if bundle.mesh_name.lower().endswith(".obj") else read_with_trimesh(bundle)
    where = f"{bundle.where}!{bundle.mesh_name}"
    if not len(mesh.faces):
        raise BadInput("no_faces", where, "not one face", "export the mesh with its faces")
    if mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices):
        raise BadInput("face_index", where, "a face names a vertex that does not exist", "export the mesh again")
    if not np.isfinite(mesh.vertices).all():
        raise BadInput("vertices_not_finite", where, "a vertex is NaN or infinite", "clean the mesh")
    corners = mesh.vertices[mesh.faces]
    if not np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=-1).any():
        raise BadInput("no_extent", where, "no face has an area", "clean the mesh")
    textured = np.array([material.texture is not None for material in mesh.materials])[mesh.face_material]
    if textured.any():
        if mesh.corner_uv is None:
            raise BadInput("uv_missing", where, "a texture, but no texture coordinates", "export the mesh with its UVs")
        if not np.isfinite(mesh.corner_uv[textured]).all():
            detail = "a textured face without texture coordinates, or with NaN for them"
            raise BadInput("uv_not_finite", where, detail, "export the mesh with its UVs")
    return mesh


def normalised(mesh: TexturedMesh, up: Up) -> tuple[TexturedMesh, Floats]:
    """The mesh in the object frame: rotated to z up, centred by its box, its longest side 1 (DESIGN, section 3).

    Only vertices that faces use count for the box: scans carry stray ones.

    Returns:
        the mesh, and (4, 4) float64 object_to_source: a point of the object frame to the source's frame and unit.
    """
    rotation = np.array(ROTATION_FROM_UP[up], dtype=np.float64)
    turned = mesh.vertices @ rotation.T
    used = turned[np.unique(mesh.faces)]
    low, high = used.min(axis=0), used.max(axis=0)
    centre, side = (low + high) / 2, float((high - low).max())
    object_to_source = np.eye(4)
    object_to_source[:3, :3] = rotation.T * side
    object_to_source[:3, 3] = rotation.T @ centre
    normals = mesh.corner_normals
    if normals is not None:
        normals = (normals @ rotation.T.astype(np.float32)).astype(np.float32)
    return replace(mesh, vertices=(turned - centre) / side, corner_normals=normals), object_to_source


def sample_surface(mesh: TexturedMesh, count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """`count` points (count, 3) drawn by area, each with its face's unit normal (count, 3); the same for the same seed."""
    corners = mesh.vertices[mesh.faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    areas = np.linalg.norm(cross, axis=-1)
    random = np.random.Generator(np.random.PCG64(seed))
    cumulative = np.cumsum(areas)
    face = np.searchsorted(cumulative, random.random(count) * cumulative[-1], side="right").clip(max=len(areas) - 1)
    root, second = np.sqrt(random.random(count))[:, None], random.random(count)[:, None]
    picked = corners[face]
    points = (1 - root) * picked[:, 0] + root * (1 - second) * picked[:, 1] + root * second * picked[:, 2]
    normals = cross[face] / np.maximum(areas[face], 1e-30)[:, None]
    return points.astype(np.float32), normals.astype(np.float32)
