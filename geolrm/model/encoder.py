"""Hierarchical image encoder: what each picture shows, at two levels (paper, section 3.2, equations 1 and 2).

In: pictures composited on white and their cameras. Out: two feature maps a view of the same number of channels, both covering
the whole frame: low level (a convolution over RGB and Pluecker rays, a quarter of the size) and high level (DINOv2, brought by
a transposed convolution to one cell for every 7 pixels). Convention: maps are sampled in [0, 1] frame coordinates, so each
level resizes the picture to the nearest multiple of its own stride (14 or 4 pixels) instead of dropping the remainder, which
would shift every projection. Trade: each map is normalised over the channels of one pixel, where the public code has
BatchNorm: statistics over 1 to 8 pictures are noise, differ between training and use, and drift when a frozen stage is run
in train mode; here a picture's features depend on that picture alone. Verified by batch independence, by sizes that neither
stride divides, and by the parameter counts of the public code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geolrm import config
from geolrm.cameras import Cameras
from geolrm.failures import BadInput

if TYPE_CHECKING:
    from transformers import Dinov2Model

PATCH = 14  # pixels a side of DINOv2's patches
STRIDE = 4  # pixels a side of the low level's cells
POSITION_IMAGE_SIZE = 518  # DINOv2's position embedding is a grid of 37 x 37 patches, interpolated to any other size
PRETRAINED = "facebook/dinov2-base"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class HierarchicalEncoder(nn.Module):
    """Pictures to a low-level and a high-level feature map.

    Args:
        settings: sizes; `dinov2: pretrained` starts DINOv2 from its published weights.
        pretrained: False leaves DINOv2 as drawn even then, for a caller that is about to fill it from a checkpoint.

    Raises:
        BadInput: `dinov2_weights` when the published weights cannot be had, `dinov2_size` when the sizes are not theirs.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: config.Encoder, pretrained: bool = True) -> None:
        super().__init__()
        download = pretrained and settings.dinov2 == "pretrained"
        self.dinov2 = _published_dinov2(settings) if download else _drawn_dinov2(settings)
        # kernel 4, stride 2, padding 1: doubles the grid and keeps it centred on the frame
        self.high = nn.ConvTranspose2d(settings.dinov2_width, settings.channels, kernel_size=4, stride=2, padding=1)
        self.low = nn.Conv2d(3 + 6, settings.channels, kernel_size=STRIDE, stride=STRIDE)
        self.high_norm = nn.LayerNorm(settings.channels)
        self.low_norm = nn.LayerNorm(settings.channels)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).reshape(3, 1, 1), persistent=False)

    def forward(self, images: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
        """Encode the views of a batch of objects.

        Args:
            images: (B, V, 3, H, W) sRGB in [0, 1], composited on white.
            cameras: (B, V).

        Returns:
            low (B, V, channels, H / 4, W / 4) and high (B, V, channels, H / 7, W / 7), after rounding H and W to the
            nearest multiples of 4 and 14.
        """
        batch, count = images.shape[:2]
        if cameras.shape != (batch, count):
            raise ValueError(f"images of {(batch, count)} views but cameras of {tuple(cameras.shape)}")
        pictures = images.flatten(0, 1)
        low, high = self._low_level(pictures, cameras), self._high_level(pictures)
        return low.unflatten(0, (batch, count)), high.unflatten(0, (batch, count))

    def _low_level(self, pictures: Tensor, cameras: Cameras) -> Tensor:
        """Equation 2: RGB in [-1, 1] beside the Pluecker coordinates (unit direction, moment) of each pixel's ray."""
        pictures = resized_to_multiple(pictures, STRIDE)
        with torch.autocast(pictures.device.type, enabled=False):  # rays stay fp32
            rays = cameras.pluecker(pictures.shape[-2], pictures.shape[-1]).flatten(0, 1)
        return _normalised(self.low(torch.cat([2 * pictures - 1, rays], dim=1)), self.low_norm)

    def _high_level(self, pictures: Tensor) -> Tensor:
        """Equation 1: DINOv2's patch tokens after its last norm, as a map, at twice the patch grid."""
        pictures = resized_to_multiple(pictures, PATCH)
        rows, columns = pictures.shape[-2] // PATCH, pictures.shape[-1] // PATCH
        tokens = self.dinov2(pixel_values=(pictures - self.mean) / self.std).last_hidden_state[:, 1:]  # without CLS
        grid = tokens.transpose(1, 2).unflatten(2, (rows, columns))
        return _normalised(self.high(grid), self.high_norm)


def resized_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """(B, C, H, W) with both sides at their nearest multiple (at least one), antialiased; unchanged where they are one."""
    height, width = (max(1, (side + multiple // 2) // multiple) * multiple for side in images.shape[-2:])
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, (height, width), mode="bilinear", antialias=True, align_corners=False)


def _normalised(features: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Layer normalisation over the channels of each pixel of (B, C, h, w)."""
    return norm(features.movedim(1, -1)).movedim(-1, 1).contiguous()


def _drawn_dinov2(settings: config.Encoder) -> Dinov2Model:
    from transformers import Dinov2Config, Dinov2Model

    sizes = Dinov2Config(
        hidden_size=settings.dinov2_width,
        num_hidden_layers=settings.dinov2_layers,
        num_attention_heads=settings.dinov2_heads,
        image_size=POSITION_IMAGE_SIZE,
        patch_size=PATCH,
        use_mask_token=False,  # only masked pretraining uses it
    )
    return Dinov2Model(sizes)


def _published_dinov2(settings: config.Encoder) -> Dinov2Model:
    from transformers import Dinov2Model

    try:
        model = Dinov2Model.from_pretrained(PRETRAINED, use_mask_token=False)
    except OSError as error:
        first_line = str(error).strip().splitlines()[0]
        remedy = (
            f"fetch it once where there is a network (`hf download {PRETRAINED}`) and bring its cache, "
            "or set `dinov2: scratch` in the encoder section of params.yaml"
        )
        raise BadInput("dinov2_weights", PRETRAINED, f"could not be loaded: {first_line}", remedy) from error
    sizes = model.config.hidden_size, model.config.num_hidden_layers, model.config.num_attention_heads
    wanted = settings.dinov2_width, settings.dinov2_layers, settings.dinov2_heads
    if sizes != wanted:
        detail = f"has width, layers, heads {sizes}, the encoder section asks for {wanted}"
        raise BadInput("dinov2_size", PRETRAINED, detail, "use its sizes, or `dinov2: scratch`")
    return model
