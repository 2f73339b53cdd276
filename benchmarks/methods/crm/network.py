"""CRM's network: six faces of an object to a triplane, and the heads that read it (Wang et al. 2024, arXiv 2403.05034).

In: the arranged picture of `faces.py`, 12 channels, three planes side by side. Out: a triplane of features; at points of it
signed distance, deformation and colour; in cells the weights of FlexiCubes. Convention: names and shapes of the published
tensors (`CRM.pth`, code at commit 4964e36, its U-Net that of diffusers 0.24); tensors picture-like, planes along the width.
Trade: plain PyTorch in float32, as the public code runs. Verified by recorded outputs of the public modules
(`python -m benchmarks.methods.crm check FOLDER`), and by the names and shapes of all 629 published tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PICTURE_CHANNELS = 12
NORM_EPS = 1e-5
HEAD_WIDTH = 8
HIDDEN = 512  # width of the heads
SLOWEST = 10_000.0  # of the time's waves, in steps
CUBE_WEIGHTS = 21  # of a cell: 12 edges, 8 corners, 1 for the diagonals of quads
CUBE_SCALE = 0.1


@dataclass(frozen=True)
class Config:
    """Sizes of the U-Net.

    Attributes:
        side: of a plane, in pixels.
        channels: of each level.
        down_attention: whether the layers of each level going down are followed by attention; `up_attention`: coming up.
        learned: channels of the learned plane beside the picture.
        features: channels of the triplane.
        layers: residual blocks a level going down, one more coming up.
        groups: of every group norm.
    """

    side: int = 256
    channels: tuple[int, ...] = (64, 128, 128, 256, 256, 512, 512)
    down_attention: tuple[bool, ...] = (False, False, False, True, True, True, False)
    up_attention: tuple[bool, ...] = (False, True, True, True, False, False, False)
    learned: int = 20
    features: int = 32
    layers: int = 2
    groups: int = 32


class TimeWaves(nn.Module):
    """Time steps (B,) to cosines, then sines (B, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.count = width // 2

    def forward(self, time: Tensor) -> Tensor:
        order = torch.arange(self.count, device=time.device) / self.count
        phase = time[:, None] * torch.exp(-math.log(SLOWEST) * order)
        return torch.cat([phase.cos(), phase.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, 4 * width)
        self.linear_2 = nn.Linear(4 * width, 4 * width)

    def forward(self, waves: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(waves)))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with the time between them, added to the input."""

    def __init__(self, channels_in: int, channels_out: int, time: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in, eps=NORM_EPS)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(time, channels_out)
        self.norm2 = nn.GroupNorm(groups, channels_out, eps=NORM_EPS)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.conv_shortcut = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(F.silu(time))[..., None, None]
        return self.conv2(F.silu(self.norm2(hidden))) + self.conv_shortcut(x)


class Attention(nn.Module):
    """Attention among all pixels of all three planes, heads of 8 channels, added to the input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=NORM_EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).mT  # (B, H * W, C)
        heads = (
            part(tokens).unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2) for part in (self.to_q, self.to_k, self.to_v)
        )
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return self.to_out[0](attended).mT.unflatten(-1, x.shape[-2:]) + x


class Resampling(nn.Module):
    """The convolution with which a level ends: to half the side, or, after doubling it, of the same."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.conv.stride[0] == 2 else F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks of these channels in and out, each followed by attention where the level has it."""

    def __init__(self, channels: list[tuple[int, int]], attention: bool, time: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(*pair, time, groups) for pair in channels)
        self.attentions = nn.ModuleList(Attention(out, groups) for _, out in channels if attention)

    def layer(self, index: int, x: Tensor, time: Tensor) -> Tensor:
        x = self.resnets[index](x, time)
        return self.attentions[index](x) if self.attentions else x


class DownLevel(Level):
    """Pushes what each layer gives on the skip stack; then half the side, pushed too, except on the last level."""

    def __init__(self, channels: list[tuple[int, int]], attention: bool, time: int, groups: int, last: bool) -> None:
        super().__init__(channels, attention, time, groups)
        self.downsamplers = nn.ModuleList([] if last else [Resampling(channels[-1][1], 2)])

    def forward(self, x: Tensor, time: Tensor, skips: list[Tensor]) -> Tensor:
        for index in range(len(self.resnets)):
            x = self.layer(index, x, time)
            skips.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x)
            skips.append(x)
        return x


class UpLevel(Level):
    """Each layer has the newest skip beside its input; then twice the side, except on the last level."""

    def __init__(self, channels: list[tuple[int, int]], attention: bool, time: int, groups: int, last: bool) -> None:
        super().__init__(channels, attention, time, groups)
        self.upsamplers = nn.ModuleList([] if last else [Resampling(channels[-1][1], 1)])

    def forward(self, x: Tensor, time: Tensor, skips: list[Tensor]) -> Tensor:
        for index in range(len(self.resnets)):
            x = self.layer(index, torch.cat([x, skips.pop()], dim=1), time)
        for upsampler in self.upsamplers:
            x = upsampler(x)
        return x


class Middle(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int, time: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(channels, channels, time, groups) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(channels, groups)])

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x, time)), time)


class UNet(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        levels, first = config.channels, config.channels[0]
        time, groups = 4 * first, config.groups
        stack = [first]  # channels of what lies on the skip stack
        self.conv_in = nn.Conv2d(PICTURE_CHANNELS + config.learned, first, 3, padding=1)
        self.time_proj = TimeWaves(first)
        self.time_embedding = TimeEmbedding(first)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        x = first
        for level, width in enumerate(levels):
            last = level == len(levels) - 1
            pairs = [(x, width)] + [(width, width)] * (config.layers - 1)
            self.down_blocks.append(DownLevel(pairs, config.down_attention[level], time, groups, last))
            stack += [width] * (config.layers + (not last))
            x = width
        self.mid_block = Middle(x, time, groups)
        for level, width in enumerate(reversed(levels)):
            last = level == len(levels) - 1
            before = [x] + [width] * config.layers
            pairs = [(channels + stack.pop(), width) for channels in before]
            self.up_blocks.append(UpLevel(pairs, config.up_attention[level], time, groups, last))
            x = width
        self.conv_norm_out = nn.GroupNorm(groups, first, eps=NORM_EPS)
        self.conv_out = nn.Conv2d(first, config.features, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        embedded = self.time_embedding(self.time_proj(time))
        x = self.conv_in(x)
        skips = [x]
        for level in self.down_blocks:
            x = level(x, embedded, skips)
        x = self.mid_block(x, embedded)
        for level in self.up_blocks:
            x = level(x, embedded, skips)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class TriplaneUNet(nn.Module):
    """The U-Net with a learned plane beside its picture."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.learned_plane = nn.Parameter(torch.randn(1, config.learned, config.side, 3 * config.side))
        self.unet = UNet(config)

    def forward(self, picture: Tensor, time: Tensor) -> Tensor:
        """Picture (B, 12, S, 3 S), time steps (B,) -> triplane (B, features, S, 3 S)."""
        plane = self.learned_plane.expand(len(picture), -1, -1, -1)
        return self.unet(torch.cat([picture, plane], dim=1), time)


class Head(nn.Module):
    """Features to values, by three linear layers with ReLU between them."""

    def __init__(self, features: int, out: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(features, hidden), nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


def features_at(triplane: Tensor, points: Tensor) -> Tensor:
    """Features (N, C), summed over the planes, of a triplane (C, S, 3 S) at points (N, 3) of [-1, 1]^3; clamped outside."""
    x, y, z = points.unbind(-1)
    places = torch.stack([torch.stack(pair, dim=-1) for pair in ((x, y), (y, z), (z, x))])  # column, row
    planes = triplane.unflatten(-1, (3, -1)).movedim(-2, 0)  # (3, C, S, S)
    sampled = F.grid_sample(planes, places[:, None], padding_mode="border", align_corners=True)
    return sampled[:, :, 0].sum(dim=0).T


class Decoder(nn.Module):
    """The three heads."""

    def __init__(self, features: int = 32, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.sdfMlp, self.rgbMlp = Head(features, 4, hidden), Head(features, 3, hidden)
        self.weightMlp = nn.Sequential(nn.Linear(8 * features, hidden), nn.SiLU(), nn.Linear(hidden, CUBE_WEIGHTS))

    def weights(self, corners: Tensor) -> Tensor:
        """Weights (N, 21) of cells by the features (N, 8, C) of their corners."""
        return CUBE_SCALE * self.weightMlp(corners.flatten(1))


class CRM(Decoder):
    """The whole network."""

    def __init__(self, config: Config | None = None) -> None:
        config = config or Config()
        super().__init__(config.features)
        self.unet2 = TriplaneUNet(config)
