"""Pictures, film, splat and mesh of one prediction, for eyes and viewers.

In: renders and truth of the test views, the inputs, the prediction once around, the mesh. Out: a folder with `input.png`,
`truth.png`, `render.png`, `error.png` (grids, views in reading order, white background), `turntable.webm` (the prediction
alone, one turn), `gaussians.ply` (standard 3DGS) and `mesh.glb`. Convention: error is the mean absolute error over channels,
black 0 to white at `ERROR_WHITE`, through red and yellow; the turntable's cameras stand as those of our renders do, at
`ELEVATION`. Trade: no file for a mesh without faces, no splat of what is none, no film of nothing. Verified by the sizes and
pixels of a sweep's files.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.methods import Prediction
from geolrm.cameras import Cameras, orbit
from geolrm.data.rig import FOV, RADIUS
from geolrm.gaussians import Gaussians
from geolrm.metrics.image import error_map
from geolrm.pictures import save_film, save_picture

if TYPE_CHECKING:
    from geolrm.meshing import Mesh

ERROR_WHITE = 0.5
TURNTABLE = "turntable.webm"
FRAMES, SECONDS, ELEVATION = 36, 3.0, 20.0  # of one turn


def artefact_folder(output: Path, method: str, key: str, views: int) -> Path:
    """Where the files of one row lie; an object's key may hold slashes, which do not become folders."""
    return output / "artefacts" / method / key.replace("/", "_") / str(views)


def complete(folder: Path, status: str) -> bool:
    """Whether the files of a row of this status are there: the film is written last."""
    return (folder / (TURNTABLE if status == "ok" else "render.png")).exists()


def turntable() -> Cameras:
    """Cameras (FRAMES,) once around the object."""
    azimuths = torch.arange(FRAMES, dtype=torch.float64) * 360 / FRAMES
    return orbit(azimuths, torch.full_like(azimuths, ELEVATION), RADIUS, FOV)


def grid(images: Tensor) -> Tensor:
    """(3, rows H, columns W) one picture of pictures (V, 3, H, W), as square as it gets, white where none is left."""
    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    padded = F.pad(images, (0, 0, 0, 0, 0, 0, 0, rows * columns - count), value=1.0)
    tiled = padded.reshape(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return tiled.reshape(channels, rows * height, columns * width)


def heat(error: Tensor) -> Tensor:
    """(V, 3, H, W) colours of errors (V, 1, H, W): black, red, yellow, white at `ERROR_WHITE`."""
    return torch.cat([(3 * error / ERROR_WHITE - i).clamp(0, 1) for i in range(3)], dim=1)


def save_artefacts(
    folder: Path,
    inputs: Tensor,
    renders: Tensor,
    truth: Tensor,
    prediction: Prediction,
    mesh: Mesh | None,
    turn: Tensor | None,
) -> None:
    """Write the files of one row; pictures are (V, 3, H, W) in [0, 1] on white, `turn` those from `turntable`, if any."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"input": inputs, "truth": truth, "render": renders, "error": heat(error_map(renders, truth))}
    for name, views in pictures.items():
        save_picture(grid(views), folder / f"{name}.png")
    if isinstance(prediction, Gaussians):
        prediction.save_ply(folder / "gaussians.ply")
    if mesh is not None and len(mesh.faces):
        mesh.save_glb(folder / "mesh.glb")
    if turn is not None:
        save_film(turn, folder / TURNTABLE, SECONDS)
