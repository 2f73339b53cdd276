"""How much memory a reconstruction needs, and what to lower where there is less.

In: the networks' settings, how many pictures of which size, how many anchor points. Out: bytes of tensors beside the weights,
for the plain float32 definitions; a clear error where they are not free. Convention: on a CPU the estimate is compared with
the free memory beforehand, since the system kills a process rather than refuse it; on a GPU the device itself refuses, and the
error then names the estimate (fused kernels need less). Trade: the largest of three moments (encoding, carving cues, one
cross-attention), within a tenth of the truth at full size. Verified by counting live tensors, operation by operation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import psutil
import torch

from geolrm.config import Proposal, Reconstruction
from geolrm.failures import BadInput

FLOAT = 4  # bytes
CELLS = 1 / 16 + 1 / 49  # of both feature maps, per pixel
ENCODING = 2.5  # peak of encoding all views, in units of the feature maps it leaves
CARVING = 128  # floats a fine voxel
AVERAGING, SAMPLING = (
    5,
    11,
)  # tensors of a token's width, beside two copies of all views' sums, or of one view's samples


@dataclass(frozen=True)
class Demand:
    """One object's reconstruction: `views` pictures of `size` (height, width) pixels, and so many anchor points."""

    proposal: Proposal
    reconstruction: Reconstruction
    views: int
    size: tuple[int, int]
    anchors: int

    @property
    def bytes(self) -> int:
        """Peak of both stages, beside the weights."""
        cells = self.views * self.size[0] * self.size[1] * CELLS
        features = cells * self.reconstruction.encoder.channels
        encoding = ENCODING * max(features, cells * self.proposal.encoder.channels)
        carving = CARVING * self.proposal.voxel_resolution**3 if self.proposal.carving == "cues" else 0
        sizes = self.reconstruction.transformer
        per_anchor = sizes.width * max(2 * self.views + AVERAGING, 2 * sizes.sampling_points + SAMPLING)
        return int(FLOAT * max(encoding, carving, features + self.anchors * per_anchor))

    def refusal(self, where: str, free: int) -> BadInput:
        """The error where `free` bytes do not do: the estimate, and a number of anchor points that would fit."""
        fewer = self.anchors // 2
        while fewer and replace(self, anchors=fewer).bytes > free:
            fewer //= 2
        detail = (
            f"{self.anchors:,} anchor points and {self.views} views of {self.size[1]} x {self.size[0]} px need about "
            f"{self.bytes / 2**30:,.2f} GiB beside the weights, {free / 2**30:,.2f} GiB are free"
        )
        remedy = "give fewer or smaller pictures: they alone do not fit"
        if fewer and replace(self, anchors=fewer).bytes < self.bytes:
            remedy = f"lower max_anchors (`sweep.max_anchors` in params.yaml) to {fewer:,}, or give fewer or smaller pictures"
        return BadInput("out_of_memory", where, detail, remedy)

    def require(self, where: str, device: torch.device) -> None:
        """Raise `BadInput` `out_of_memory` where a CPU has too little free; a GPU refuses by itself."""
        if device.type == "cpu" and self.bytes > free_bytes(device):
            raise self.refusal(where, free_bytes(device))


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
