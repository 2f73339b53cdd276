"""Pictures on the disk.

In: a picture as a tensor. Out: a PNG. Convention: sRGB in [0, 1], clamped, rounded to 8 bits. Trade: none worth a word.
Verified wherever pictures that were written are read back.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Tensor


def save_picture(picture: Tensor, path: Path) -> None:
    """Write a picture (3, H, W), sRGB in [0, 1], as PNG."""
    pixels = (picture.detach().float().clamp(0, 1) * 255).round().byte().movedim(0, -1).cpu().contiguous()
    Image.fromarray(pixels.numpy()).save(path)
