"""Small textured boxes as files, for the tests of meshes: each face has a colour of its own and one light quadrant.

The light quadrant is the upper left one as seen from outside with `FACES[...].up` upwards, so that a flipped, turned or
mirrored texture shows.
"""

import io
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

CELL = 16  # texels of one face's square in the atlas


class Face(NamedTuple):
    normal: tuple[int, int, int]
    up: tuple[int, int, int]
    colour: tuple[int, int, int]
    light: tuple[int, int, int]


FACES = (
    Face((1, 0, 0), (0, 0, 1), (200, 40, 40), (250, 190, 190)),
    Face((-1, 0, 0), (0, 0, 1), (40, 160, 60), (200, 250, 200)),
    Face((0, 1, 0), (0, 0, 1), (40, 60, 200), (190, 200, 250)),
    Face((0, -1, 0), (0, 0, 1), (190, 170, 30), (250, 250, 180)),
    Face((0, 0, 1), (0, 1, 0), (30, 170, 180), (190, 250, 250)),
    Face((0, 0, -1), (0, 1, 0), (170, 50, 170), (250, 190, 250)),
)


def atlas() -> np.ndarray:
    """(CELL, 6 CELL, 3) uint8: the faces side by side."""
    cells = []
    for face in FACES:
        cell = np.broadcast_to(np.array(face.colour, np.uint8), (CELL, CELL, 3)).copy()
        cell[: CELL // 2, : CELL // 2] = face.light
        cells.append(cell)
    return np.concatenate(cells, axis=1)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def corners(sides=(1.0, 1.0, 1.0), centre=(0.0, 0.0, 0.0)) -> tuple[np.ndarray, np.ndarray]:
    """(6, 4, 3) corners of each face, upper left first, clockwise as seen from outside; (6, 4, 2) their UV, v up."""
    points, uv = [], []
    for i, face in enumerate(FACES):
        normal, up = np.array(face.normal), np.array(face.up)
        side = np.cross(-normal, up)  # to the right
        square = np.array([normal + up - side, normal + up + side, normal - up + side, normal - up - side])
        points.append(square * np.array(sides) / 2 + np.array(centre))
        half = 0.5 / CELL  # of a texel: lookups between texels stay within the face's own square
        left, right, top, bottom = (i + half) / 6, (i + 1 - half) / 6, 1 - half, half
        uv.append([(left, top), (right, top), (right, bottom), (left, bottom)])
    return np.array(points), np.array(uv)


def box_obj(sides=(1.0, 1.0, 1.0), centre=(0.0, 0.0, 0.0), library="box.mtl", turn=None) -> bytes:
    """An OBJ of four-sided faces wound outwards; `turn` (3, 3) turns its vertices, as another up axis would."""
    points, uv = corners(sides, centre)
    points = points.reshape(-1, 3) if turn is None else points.reshape(-1, 3) @ np.array(turn).T
    lines = [f"mtllib {library}"] if library else []
    lines += [f"v {x:.9g} {y:.9g} {z:.9g}" for x, y, z in points]
    lines += [f"vt {u:.9g} {v:.9g}" for u, v in uv.reshape(-1, 2)]
    lines += ["usemtl skin"] if library else []
    for i in range(6):
        lines.append("f " + " ".join(f"{4 * i + k + 1}/{4 * i + k + 1}" for k in (3, 2, 1, 0)))
    return "\n".join(lines).encode()


def box_files(**box) -> dict[str, bytes]:
    """The files of one box: OBJ, MTL, PNG."""
    material = b"newmtl skin\nKd 1 1 1\nmap_Kd texture.png\n"
    return {"box.obj": box_obj(**box), "box.mtl": material, "texture.png": png(atlas())}


def gso_files(**box) -> dict[str, bytes]:
    """The same in the layout of Gazebo Fuel."""
    files = box_files(**box)
    return {
        "meshes/model.obj": box_obj(**{**box, "library": "model.mtl"}),
        "meshes/model.mtl": files["box.mtl"],
        "materials/textures/texture.png": files["texture.png"],
        "model.config": b"<model/>",
    }


def scan_files(category: str, name: str, **box) -> dict[str, bytes]:
    """The same in the layout of OmniObject3D's raw scans."""
    folder = f"{category}/{name}/Scan"
    return {
        f"{folder}/Scan.obj": box_obj(**{**box, "library": "Scan.mtl"}),
        f"{folder}/Scan.mtl": b"newmtl skin\nmap_Kd Scan.jpg\n",
        f"{folder}/Scan.jpg": png(atlas()),  # a PNG by content: readers go by the bytes
    }


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path
