"""InstantMesh's feed-forward networks: posed pictures to a triplane, and what the triplane says at a point.

In: pictures in [0, 1] over white, 16 numbers of camera a picture. Out: planes (B, 3, C, S, S); from them density or signed
distance, lattice deformation, weights and colours. Convention: the model's box is [-1, 1]^3, world z up; every module bears
the name that the published checkpoint gives its tensors, so that loading is by names. Trade: attention is torch's fused one,
exact but summed in another order. Verified by recorded outputs of the published modules, and by names and shapes of all four
published checkpoints.

InstantMesh: Xu et al. 2024, arXiv 2404.07191; the mathematics is that of its public code, commit 08822c5.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PREFIX = "lrm_generator."  # of the model's tensors in a published checkpoint; others there are of the losses
CAMERA_NUMBERS = 16
EDGE_AND_CORNER_WEIGHTS = 12 + 8 + 1  # of a FlexiCubes cell: edges, corners, the cell itself
WEIGHT_FACTOR = 0.1
DENSITY_SHIFT = -1.0
PLANE_AXES = ((0, 1), (0, 2), (2, 1))  # (across, along the rows) of each plane


@dataclass(frozen=True)
class EncoderSizes:
    """The image encoder; the defaults are those of every published checkpoint."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    patch: int = 16
    grid: int = 14  # sides of the table of position embeddings, in patches
    mlp_ratio: int = 4
    eps: float = 1e-12
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TriplaneSizes:
    """The transformer from image tokens to planes."""

    width: int = 1024
    layers: int = 16
    heads: int = 16
    image_width: int = 768
    side: int = 32  # tokens of a plane's side; its pixels are twice as many
    channels: int = 80
    mlp_ratio: int = 4
    block_eps: float = 1e-5
    final_eps: float = 1e-6


@dataclass(frozen=True)
class Sizes:
    """A whole network.

    Attributes:
        hidden, depth: width and number of affine layers of each head.
        surface: signed distance, deformation, weights and colour (the mesh variants), or density and colour (the NeRF ones).
        cells: FlexiCubes cells a side of the lattice, `box` its side in the model's units.
    """

    encoder: EncoderSizes = field(default_factory=EncoderSizes)
    triplane: TriplaneSizes = field(default_factory=TriplaneSizes)
    hidden: int = 64
    depth: int = 4
    surface: bool = True
    cells: int = 128
    box: float = 2.1


_BASE = TriplaneSizes(layers=12, channels=40)
PUBLISHED = {
    "instant_mesh_large": Sizes(),
    "instant_mesh_base": Sizes(triplane=_BASE),
    "instant_nerf_large": Sizes(surface=False),
    "instant_nerf_base": Sizes(triplane=_BASE, surface=False),
}


# --- pictures to tokens ---


class ImageAttention(nn.Module):
    """Self-attention of the tokens (N, T, D) of one picture."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        self.output = nn.ModuleDict({"dense": nn.Linear(width, width)})

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = (
            self.attention[name](tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2) for name in self.attention
        )
        mixed: Tensor = self.output["dense"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return mixed


class ImageLayer(nn.Module):
    """A pre-norm ViT layer whose two normalised streams are shifted and scaled by the camera; no gates."""

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        width = sizes.width
        self.attention = ImageAttention(width, sizes.heads)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, sizes.mlp_ratio * width)})
        self.output = nn.ModuleDict({"dense": nn.Linear(sizes.mlp_ratio * width, width)})
        self.layernorm_before = nn.LayerNorm(width, eps=sizes.eps)
        self.layernorm_after = nn.LayerNorm(width, eps=sizes.eps)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 4 * width))

    def forward(self, tokens: Tensor, camera: Tensor) -> Tensor:
        """Tokens (N, T, D) of N pictures, their cameras' embeddings (N, D)."""
        shift_1, scale_1, shift_2, scale_2 = self.adaLN_modulation(camera)[:, None].chunk(4, dim=-1)
        tokens = tokens + self.attention(self.layernorm_before(tokens) * (1 + scale_1) + shift_1)
        hidden = self.intermediate["dense"](self.layernorm_after(tokens) * (1 + scale_2) + shift_2)
        return tokens + self.output["dense"](F.gelu(hidden))


class Embeddings(nn.Module):
    """Pictures to patch tokens with the class token in front and positions added."""

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.patch, self.grid = sizes.patch, sizes.grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + sizes.grid**2, sizes.width))
        convolution = nn.Conv2d(3, sizes.width, sizes.patch, stride=sizes.patch)
        self.patch_embeddings = nn.ModuleDict({"projection": convolution})

    def positions(self, height: int, width: int) -> Tensor:
        """(1, 1 + h w, D) for pictures of height x width pixels.

        The table is resized by the factor (h + 0.1) / grid, and that factor, not the ratio of sizes, maps coordinates.
        """
        rows, columns = height // self.patch, width // self.patch
        if rows * columns == self.grid**2 and height == width:
            return self.position_embeddings
        table = self.position_embeddings[:, 1:].unflatten(1, (self.grid, self.grid)).movedim(-1, 1)
        factors = ((rows + 0.1) / self.grid, (columns + 0.1) / self.grid)
        resized = F.interpolate(table, scale_factor=factors, mode="bicubic", align_corners=False)
        return torch.cat([self.position_embeddings[:, :1], resized.flatten(2).mT], dim=1)

    def patch_tokens(self, pixels: Tensor) -> Tensor:
        """(N, h w, D), row by row; what is left of a patch at the lower and right border is dropped."""
        tokens: Tensor = self.patch_embeddings["projection"](pixels).flatten(2).mT
        return tokens

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = torch.cat([self.cls_token.expand(len(pixels), -1, -1), self.patch_tokens(pixels)], dim=1)
        return tokens + self.positions(pixels.shape[-2], pixels.shape[-1])


class ImageEncoder(nn.Module):
    """DINO's ViT-B/16, modulated in every layer by the camera of the picture."""

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.mean, self.std = sizes.mean, sizes.std
        layers = nn.ModuleList(ImageLayer(sizes) for _ in range(sizes.layers))
        self.model = nn.ModuleDict(
            {
                "embeddings": Embeddings(sizes),
                "encoder": nn.ModuleDict({"layer": layers}),
                "layernorm": nn.LayerNorm(sizes.width, eps=sizes.eps),
            }
        )
        width = sizes.width
        self.camera_embedder = nn.Sequential(nn.Linear(CAMERA_NUMBERS, width), nn.SiLU(), nn.Linear(width, width))

    def normalised(self, images: Tensor) -> Tensor:
        """Pictures (..., 3, H, W) in [0, 1] as the patch convolution wants them."""
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (images - mean) / std

    def forward(self, images: Tensor, cameras: Tensor) -> Tensor:
        """Pictures (B, V, 3, H, W), cameras (B, V, 16) -> tokens (B V, 1 + h w, D), the class token first."""
        tokens = self.model["embeddings"](self.normalised(images).flatten(0, 1))
        camera = self.camera_embedder(cameras).flatten(0, 1)
        for layer in self.model.get_submodule("encoder.layer").children():
            tokens = layer(tokens, camera)
        out: Tensor = self.model["layernorm"](tokens)
        return out


# --- tokens to planes ---


class TriplaneLayer(nn.Module):
    """Cross-attention to the image tokens, self-attention, MLP, in this order; no attention has a bias."""

    def __init__(self, sizes: TriplaneSizes) -> None:
        super().__init__()
        width, keys, eps = sizes.width, sizes.image_width, sizes.block_eps
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width, eps=eps) for _ in range(3))
        self.cross_attn = nn.MultiheadAttention(width, sizes.heads, bias=False, kdim=keys, vdim=keys, batch_first=True)
        self.self_attn = nn.MultiheadAttention(width, sizes.heads, bias=False, batch_first=True)
        hidden = sizes.mlp_ratio * width
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, width))

    def forward(self, tokens: Tensor, image: Tensor) -> Tensor:
        """Triplane tokens (B, N, D), image tokens (B, T, K), which are not normalised here."""
        tokens = tokens + self.cross_attn(self.norm1(tokens), image, image, need_weights=False)[0]
        normal = self.norm2(tokens)
        tokens = tokens + self.self_attn(normal, normal, normal, need_weights=False)[0]
        return tokens + self.mlp(self.norm3(tokens))


class TriplaneTransformer(nn.Module):
    """Learned triplane tokens, in the order plane, row, column, that look at the image tokens."""

    def __init__(self, sizes: TriplaneSizes) -> None:
        super().__init__()
        self.side = sizes.side
        self.pos_embed = nn.Parameter(torch.randn(1, 3 * sizes.side**2, sizes.width) / sizes.width**0.5)
        self.layers = nn.ModuleList(TriplaneLayer(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width, eps=sizes.final_eps)
        self.deconv = nn.ConvTranspose2d(sizes.width, sizes.channels, 2, stride=2)

    def forward(self, image: Tensor) -> Tensor:
        """Image tokens (B, T, K) -> planes (B, 3, C, 2 side, 2 side)."""
        tokens = self.pos_embed.expand(len(image), -1, -1)
        for layer in self.layers:
            tokens = layer(tokens, image)
        planes = self.norm(tokens).unflatten(1, (3, self.side, self.side)).movedim(-1, 2)
        upsampled: Tensor = self.deconv(planes.flatten(0, 1))
        return upsampled.unflatten(0, (-1, 3))


# --- planes to fields ---


def plane_features(planes: Tensor, points: Tensor) -> Tensor:
    """Bilinear lookup of points (B, P, 3) in planes (B, 3, C, S, S) -> (B, 3, P, C), 0 outside the box [-1, 1]^3."""
    across = points[..., [axes[0] for axes in PLANE_AXES]]
    down = points[..., [axes[1] for axes in PLANE_AXES]]
    grid = torch.stack([across, down], dim=-1).transpose(1, 2)  # (B, 3, P, 2)
    sampled = F.grid_sample(planes.flatten(0, 1), grid.flatten(0, 1)[:, None], align_corners=False)
    return sampled[:, :, 0].mT.unflatten(0, (-1, 3))


def point_features(planes: Tensor, points: Tensor) -> Tensor:
    """(B, P, 3 C): the features of the three planes side by side."""
    return plane_features(planes, points).transpose(1, 2).flatten(2)


def head(inputs: int, outputs: int, hidden: int, depth: int) -> nn.Sequential:
    """`depth` affine layers with ReLU between them."""
    widths = [inputs, *[hidden] * (depth - 1), outputs]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def to_colour(raw: Tensor) -> Tensor:
    """sRGB, up to 0.001 beyond [0, 1] on either side."""
    return 1.002 * torch.sigmoid(raw) - 0.001


class DensityDecoder(nn.Module):
    """Density and colour, of the NeRF variants."""

    def __init__(self, channels: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.net = head(3 * channels, 4, hidden, depth)

    def forward(self, planes: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Raw density (B, P, 1) and colours (B, P, 3) at points (B, P, 3)."""
        raw = self.net(point_features(planes, points))
        return raw[..., :1], to_colour(raw[..., 1:])


def density(raw: Tensor) -> Tensor:
    """Density per unit of length."""
    return F.softplus(raw + DENSITY_SHIFT)


class SurfaceDecoder(nn.Module):
    """Signed distance (negative inside, of no unit), lattice deformation, FlexiCubes weights, colour: the mesh variants."""

    def __init__(self, channels: int, hidden: int, depth: int) -> None:
        super().__init__()
        features = 3 * channels
        self.net_sdf = head(features, 1, hidden, depth)
        self.net_deformation = head(features, 3, hidden, depth)
        self.net_rgb = head(features, 3, hidden, depth)
        self.net_weight = head(8 * features, EDGE_AND_CORNER_WEIGHTS, hidden, depth)

    def fields(self, planes: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distance (B, P, 1) and raw deformation (B, P, 3)."""
        features = point_features(planes, points)
        return self.net_sdf(features), self.net_deformation(features)

    def weights(self, planes: Tensor, corners: Tensor) -> Tensor:
        """Raw weights (N, 21) of cells with corners (N, 8, 3), of one object with planes (1, 3, C, S, S)."""
        features = point_features(planes, corners.reshape(1, -1, 3)).reshape(len(corners), -1)
        raw: Tensor = self.net_weight(features)
        return raw * WEIGHT_FACTOR

    def colour(self, planes: Tensor, points: Tensor) -> Tensor:
        """(B, P, 3)."""
        return to_colour(self.net_rgb(point_features(planes, points)))


class InstantMesh(nn.Module):
    """The whole feed-forward part."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.encoder = ImageEncoder(sizes.encoder)
        self.transformer = TriplaneTransformer(sizes.triplane)
        decoder = SurfaceDecoder if sizes.surface else DensityDecoder
        self.synthesizer = nn.ModuleDict({"decoder": decoder(sizes.triplane.channels, sizes.hidden, sizes.depth)})

    @property
    def decoder(self) -> nn.Module:
        """A `SurfaceDecoder` or a `DensityDecoder`."""
        return self.synthesizer["decoder"]

    def forward(self, images: Tensor, cameras: Tensor) -> Tensor:
        """Pictures (B, V, 3, H, W) in [0, 1] over white, cameras (B, V, 16) -> planes (B, 3, C, S, S)."""
        tokens = self.encoder(images, cameras)
        planes: Tensor = self.transformer(tokens.unflatten(0, images.shape[:2]).flatten(1, 2))
        return planes
