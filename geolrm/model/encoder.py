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

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geolrm import config
from geolrm.cameras import Cameras
from geolrm.failures import BadInput

if TYPE_CHECKING:
    from transformers import Dinov2Model

PATCH = 14  # pixels a side of DINOv2's patches
PICTURES_AT_ONCE = 8  # without gradients: enough to fill a GPU, and little memory beside the maps
STRIDE = 4  # pixels a side of the low level's cells
POSITION_IMAGE_SIZE = 518  # DINOv2's position embedding is a grid of 37 x 37 patches, interpolated to any other size
PRETRAINED = "facebook/dinov2-base"
# How the published weights name attention's tensors, and so our checkpoints; and how newer versions of transformers do.
PUBLISHED_NAMES = (
    (".attention.attention.query.", ".attention.q_proj."),
    (".attention.attention.key.", ".attention.k_proj."),
    (".attention.attention.value.", ".attention.v_proj."),
    (".attention.output.dense.", ".attention.o_proj."),
)
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
        self.register_state_dict_post_hook(_name_as_published)
        self.register_load_state_dict_pre_hook(_name_as_installed)
        # kernel 4, stride 2, padding 1: doubles the grid and keeps it centred on the frame
        norm, bias = NORMS[settings.norm]
        self.high = nn.ConvTranspose2d(
            settings.dinov2_width, settings.channels, kernel_size=4, stride=2, padding=1, bias=bias
        )
        self.low = nn.Conv2d(3 + 6, settings.channels, kernel_size=STRIDE, stride=STRIDE, bias=bias)
        self.high_norm, self.low_norm = norm(settings.channels), norm(settings.channels)
        self.fit, self.rays, self.low_colour = FITS[settings.fit], RAYS[settings.rays], LOW_COLOURS[settings.low_colour]
        POSITION_EMBEDDINGS[settings.position_embedding](self.dinov2)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).reshape(3, 1, 1), persistent=False)

    def forward(self, images: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
        """Encode the views of a batch of objects.

        Args:
            images: (B, V, 3, H, W) sRGB in [0, 1], composited on white.
            cameras: (B, V).

        Returns:
            low (B, V, channels, H / 4, W / 4) and high (B, V, channels, H / 7, W / 7), the channels last in memory, after
            rounding H and W to the nearest multiples of 4 and 14 (down, where `fit` is crop).
        """
        batch, count = images.shape[:2]
        if cameras.shape != (batch, count):
            raise ValueError(f"images of {(batch, count)} views but cameras of {tuple(cameras.shape)}")
        pictures = images.flatten(0, 1)
        flat = Cameras(cameras.camera_to_world.flatten(0, 1), cameras.intrinsics.flatten(0, 1))
        size = len(pictures) if torch.is_grad_enabled() else PICTURES_AT_ONCE
        parts = [slice(first, first + size) for first in range(0, len(pictures), size)]
        low = torch.cat([_kept(self._low_level(pictures[part], flat[part])) for part in parts])
        high = torch.cat([_kept(self._high_level(pictures[part])) for part in parts])
        return low.unflatten(0, (batch, count)), high.unflatten(0, (batch, count))

    def _low_level(self, pictures: Tensor, cameras: Cameras) -> Tensor:
        """Equation 2: RGB in [-1, 1] beside the Pluecker coordinates (unit direction, moment) of each pixel's ray."""
        pictures = self.fit(pictures, STRIDE)
        with torch.autocast(pictures.device.type, enabled=False):  # rays stay fp32
            rays = self.rays(cameras, pictures.shape[-2], pictures.shape[-1])
        colours = self.low_colour(pictures, self.mean, self.std)
        together = torch.cat([colours, rays], dim=1).contiguous(memory_format=torch.channels_last)
        return self.low_norm(self.low(together))

    def _high_level(self, pictures: Tensor) -> Tensor:
        """Equation 1: DINOv2's patch tokens after its last norm, as a map, at twice the patch grid."""
        pictures = self.fit(pictures, PATCH)
        rows, columns = pictures.shape[-2] // PATCH, pictures.shape[-1] // PATCH
        tokens = self.dinov2(pixel_values=imagenet(pictures, self.mean, self.std)).last_hidden_state
        grid = tokens[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))  # without CLS
        return self.high_norm(self.high(grid))


def _kept(features: Tensor) -> Tensor:
    """A map in the type that matrix products run in, in which the networks read it."""
    kind = features.device.type
    return features.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else features


class PixelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel of (B, C, h, w)."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.movedim(1, -1)).movedim(-1, 1)


NORMS = {"layer": (PixelNorm, True), "batch": (nn.BatchNorm2d, False)}  # and whether the convolution before has a bias


def resized_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """(B, C, H, W) with both sides at their nearest multiple (at least one), antialiased; unchanged where they are one."""
    height, width = (max(1, (side + multiple // 2) // multiple) * multiple for side in images.shape[-2:])
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, (height, width), mode="bilinear", antialias=True, align_corners=False)


def cut_by_the_convolution(images: Tensor, multiple: int) -> Tensor:
    """The public code's way: unchanged, so that a convolution of this stride drops the last rows and columns.

    Raises:
        BadInput: `picture_too_small` where nothing would be left.
    """
    if min(images.shape[-2:]) < multiple:
        detail = f"pictures of {images.shape[-1]} x {images.shape[-2]} px have no whole cell of {multiple} px"
        raise BadInput("picture_too_small", "images", detail, f"give pictures of {PATCH} px and more a side")
    return images


FITS = {"resize": resized_to_multiple, "crop": cut_by_the_convolution}


def signed(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Colours in [-1, 1]."""
    return 2 * images - 1


def imagenet(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Colours by ImageNet's mean and standard deviation."""
    return (images - mean) / std


LOW_COLOURS = {"signed": signed, "imagenet": imagenet}


def square_rays(cameras: Cameras, height: int, width: int) -> Tensor:
    """The public code's Pluecker coordinates (..., 6, H, W): directions d not of unit length, moment o x d.

    It reads the horizontal focal length alone, for both axes in pixels, and takes the principal point to be the centre.
    """
    intrinsics = torch.zeros_like(cameras.intrinsics)
    intrinsics[..., 0, 0] = cameras.intrinsics[..., 0, 0]
    intrinsics[..., 1, 1] = cameras.intrinsics[..., 0, 0] * width / height
    intrinsics[..., :2, 2], intrinsics[..., 2, 2] = 0.5, 1.0
    origins, directions = Cameras(cameras.camera_to_world, intrinsics).rays(height, width)
    moments = torch.linalg.cross(origins.expand_as(directions), directions)
    return torch.cat([directions, moments], dim=-1).movedim(-1, -3)


RAYS = {"unit": Cameras.pluecker, "square": square_rays}


def positions_by_size(dinov2: Dinov2Model) -> None:
    """DINOv2's position embedding is brought to the number of patches: what transformers does now."""


def positions_by_factor(dinov2: Dinov2Model) -> None:
    """What transformers 4.34 did, under the public code: scaled by (patches + 0.1) / positions along each axis."""
    embeddings: Any = dinov2.embeddings
    embeddings.interpolate_pos_encoding = partial(_scaled_positions, embeddings)


def _scaled_positions(embeddings: Any, tokens: Tensor, height: int, width: int) -> Tensor:
    known = embeddings.position_embeddings
    side = math.isqrt(known.shape[1] - 1)
    if tokens.shape[1] == known.shape[1] and height == width:
        return known
    grid = known[:, 1:].unflatten(1, (side, side)).movedim(-1, 1)
    rows, columns = (
        length // patch for length, patch in zip((height, width), embeddings.patch_embeddings.patch_size, strict=True)
    )
    factors = (rows + 0.1) / side, (columns + 0.1) / side
    scaled = F.interpolate(grid, scale_factor=factors, mode="bicubic", align_corners=False)
    return torch.cat([known[:, :1], scaled.flatten(2).transpose(1, 2)], dim=1)


POSITION_EMBEDDINGS = {"size": positions_by_size, "factor": positions_by_factor}


def _names(encoder: HierarchicalEncoder, prefix: str) -> list[tuple[str, str]]:
    """Of each of DINOv2's tensors, as installed and as published."""
    names = []
    for name, _ in encoder.dinov2.named_parameters(prefix + "dinov2"):
        published = name
        for ours, newer in PUBLISHED_NAMES:
            published = published.replace(newer, ours)
        names.append((name, published))
    return names


def _name_as_published(encoder: HierarchicalEncoder, tensors: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """A checkpoint then loads under any version of transformers."""
    for installed, published in _names(encoder, prefix):
        tensors[published] = tensors.pop(installed)


def _name_as_installed(encoder: HierarchicalEncoder, tensors: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for installed, published in _names(encoder, prefix):
        if published in tensors:  # what is missing is told by who loads
            tensors[installed] = tensors.pop(published)


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
