"""Pictures and short films on the disk.

In: one picture, or several, as a tensor. Out: a PNG, or a WebM film of VP9. Convention: sRGB in [0, 1], clamped, rounded to 8
bits; films in BT.709, and tagged so. Trade: VP9 halves the resolution of colours; it plays in every browser, in the report and in
MLflow's artifact viewer (which knows mp4, mov, mkv, webm and avi), is free of patents, and libvpx is not under the GPL, as the
usual encoder of H.264 is. Verified wherever pictures that were written are read back.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

# Constant quality. 36 frames take 0.07 s and 20 KB at 128 px, 0.6 s and some 60 KB at 512, on one thread.
VP9 = {"crf": "20", "b": "0", "deadline": "good", "cpu-used": "4"}
BT709, LIMITED = 1, 1  # as FFmpeg counts colour spaces and ranges


def to_bytes(pictures: Tensor) -> np.ndarray:
    """Pictures (..., 3, H, W), sRGB in [0, 1], as 8-bit pixels (..., H, W, 3)."""
    pixels = (pictures.detach().float().clamp(0, 1) * 255).round().byte().movedim(-3, -1)
    return pixels.cpu().contiguous().numpy()


def save_picture(picture: Tensor, path: Path) -> None:
    """Write a picture (3, H, W), sRGB in [0, 1], as PNG."""
    Image.fromarray(to_bytes(picture)).save(path)


def save_film(pictures: Tensor, path: Path, seconds: float) -> None:
    """Write pictures (N, 3, H, W), sRGB in [0, 1], as a WebM film that lasts so many seconds."""
    import av  # FFmpeg is loaded where a film is made

    count, _, height, width = pictures.shape
    with av.open(str(path), "w", format="webm") as film:
        stream = film.add_stream("libvpx-vp9", rate=Fraction(count / seconds).limit_denominator(1000), options=VP9)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        context = stream.codec_context
        context.thread_count = 1
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED
        for pixels in to_bytes(pictures):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            film.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709")))
        film.mux(stream.encode())
