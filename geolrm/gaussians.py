"""A set of 3D Gaussians, and its file.

In: what a network, a visual hull or a PLY file gives. Out: activated values for the rasterizer, the standard 3DGS PLY.
Convention: stored exactly as the standard PLY holds it (SH DC colour, logit opacity, log scale, quaternion wxyz), so that
writing and reading back is exact; object frame, world z up. Trade: spherical harmonics of degree 0 only, as the model emits.
Verified by an exact round trip, by the header's column order, and by reading files that carry `f_rest` columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plyfile
import torch
from torch import Tensor
from torch.nn import functional as F

from geolrm.failures import BadInput

SH_C0 = 0.28209479177387814  # spherical harmonic Y_0^0: colour = 0.5 + SH_C0 * f_dc
COLUMNS = (
    *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)


@dataclass(frozen=True)
class Gaussians:
    """N 3D Gaussians.

    Attributes:
        means: (N, 3) centres, object frame.
        sh_dc: (N, 3) colour as SH DC coefficients.
        opacity_logits: (N,).
        log_scales: (N, 3) natural logarithm of the standard deviations, object units.
        quaternions: (N, 4) wxyz, of any non-zero length.
    """

    means: Tensor
    sh_dc: Tensor
    opacity_logits: Tensor
    log_scales: Tensor
    quaternions: Tensor

    def __post_init__(self) -> None:
        n = len(self.means)
        shapes = [tuple(t.shape) for t in self.tensors]
        if shapes != [(n, 3), (n, 3), (n,), (n, 3), (n, 4)]:
            raise ValueError(f"means, sh_dc, opacity_logits, log_scales, quaternions have shapes {shapes}")

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.means, self.sh_dc, self.opacity_logits, self.log_scales, self.quaternions

    @classmethod
    def from_activated(
        cls, means: Tensor, colours: Tensor, opacities: Tensor, scales: Tensor, quaternions: Tensor
    ) -> Gaussians:
        """From colours (N, 3) in [0, 1], opacities (N,) in (0, 1) and standard deviations (N, 3)."""
        return cls(means, (colours - 0.5) / SH_C0, torch.logit(opacities, eps=1e-6), scales.log(), quaternions)

    @classmethod
    def empty(cls, device: torch.device | str = "cpu") -> Gaussians:
        return cls(*(torch.zeros(shape, device=device) for shape in ((0, 3), (0, 3), (0,), (0, 3), (0, 4))))

    def __len__(self) -> int:
        return len(self.means)

    def __getitem__(self, index: Tensor | slice) -> Gaussians:
        return Gaussians(*(t[index] for t in self.tensors))

    def to(self, device: torch.device | str) -> Gaussians:
        return Gaussians(*(t.to(device) for t in self.tensors))

    def detach(self) -> Gaussians:
        return Gaussians(*(t.detach() for t in self.tensors))

    @property
    def colours(self) -> Tensor:
        """(N, 3) sRGB, not below 0 (3DGS clamps there, and only there)."""
        return (0.5 + SH_C0 * self.sh_dc).clamp(min=0)

    @property
    def opacities(self) -> Tensor:
        """(N,) in (0, 1)."""
        return torch.sigmoid(self.opacity_logits)

    @property
    def scales(self) -> Tensor:
        """(N, 3) standard deviations along the Gaussian's own axes, object units."""
        return self.log_scales.exp()

    @property
    def unit_quaternions(self) -> Tensor:
        """(N, 4) wxyz of length 1."""
        return F.normalize(self.quaternions, dim=-1)

    def save_ply(self, path: Path | str) -> None:
        """Write the standard 3DGS PLY (binary little endian), which common splat viewers open."""
        rows = np.zeros(len(self), dtype=[(name, "<f4") for name in COLUMNS])
        values = {"x": self.means, "f_dc_0": self.sh_dc, "opacity": self.opacity_logits[:, None]}
        values |= {"scale_0": self.log_scales, "rot_0": self.quaternions}
        for first, tensor in values.items():
            start = COLUMNS.index(first)
            for i, column in enumerate(tensor.detach().float().cpu().numpy().T):
                rows[COLUMNS[start + i]] = column
        plyfile.PlyData([plyfile.PlyElement.describe(rows, "vertex")], byte_order="<").write(str(path))

    @classmethod
    def load_ply(cls, path: Path | str) -> Gaussians:
        """Read a 3DGS PLY. Raises `BadInput` for a file of another kind or with view-dependent colour (f_rest not 0)."""
        try:
            vertex = plyfile.PlyData.read(str(path))["vertex"]
        except (plyfile.PlyParseError, KeyError, UnicodeDecodeError) as error:
            raise BadInput("not_a_splat", path, f"no readable PLY with vertices ({error})") from error
        names = {p.name for p in vertex.properties}
        missing = [c for c in COLUMNS if c not in names and c not in ("nx", "ny", "nz")]
        if missing:
            raise BadInput("not_a_splat", path, f"columns {', '.join(missing)} are missing", "expected a 3DGS PLY")
        if any(np.any(vertex[name]) for name in names if name.startswith("f_rest")):
            raise BadInput("not_a_splat", path, "colours depend on the view (f_rest), only SH degree 0 is supported")

        def columns(*wanted: str) -> Tensor:
            return torch.from_numpy(np.stack([np.asarray(vertex[c], dtype=np.float32) for c in wanted], axis=-1))

        return cls(
            columns("x", "y", "z"),
            columns("f_dc_0", "f_dc_1", "f_dc_2"),
            columns("opacity")[:, 0],
            columns("scale_0", "scale_1", "scale_2"),
            columns("rot_0", "rot_1", "rot_2", "rot_3"),
        )
