"""LGM's network: pictures with rays to Gaussians, one a pixel of the output (Tang et al. 2024, arXiv 2402.05054).

In: V pictures with their Pluecker rays, 9 channels. Out: 14 numbers a pixel at half the side. Convention: names and shapes of
the published tensors (`model_fp16_fixrot.safetensors`, code at commit fe8d12c), weights brought to float32; every residual
sum is scaled by sqrt(1/2), what is taken off the skip stack is not. Trade: plain PyTorch in float32, where the public code
runs float16. Verified by recorded outputs of the public modules (`python -m benchmarks.methods.lgm check FOLDER`), and by the
names and shapes of all 376 published tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VIEWS = 4  # that it was trained with
CHANNELS_IN, CHANNELS_OUT = 9, 14
NORM_GROUPS, NORM_EPS = 32, 1e-5
HEADS = 16
DOWN_LAYERS, UP_LAYERS = 2, 3
RESIDUAL = math.sqrt(0.5)


@dataclass(frozen=True)
class Config:
    """Sizes of the U-Net: channels of each level, and whether its layers are followed by attention."""

    down_channels: tuple[int, ...]
    down_attention: tuple[bool, ...]
    mid_attention: bool
    up_channels: tuple[int, ...]
    up_attention: tuple[bool, ...]


BIG = Config(
    down_channels=(64, 128, 256, 512, 1024, 1024),
    down_attention=(False, False, False, True, True, True),
    mid_attention=True,
    up_channels=(1024, 1024, 512, 256, 128),
    up_attention=(True, True, True, False, False),
)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels, eps=NORM_EPS)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after a norm and SiLU, added to the input and scaled."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = _norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = _norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.shortcut = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H, W)."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        return (self.conv2(F.silu(self.norm2(hidden))) + self.shortcut(x)) * RESIDUAL


class ViewAttention(nn.Module):
    """Attention among all pixels of all views of one object; nothing but the rays says which view a pixel is of."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.attn = nn.ModuleDict(
            {"qkv": nn.Linear(channels, 3 * channels, bias=False), "proj": nn.Linear(channels, channels)}
        )

    def forward(self, x: Tensor, views: int) -> Tensor:
        """(B * V, C, H, W), the views of one object side by side -> the same shape."""
        shape = (views, *x.shape[-2:])
        tokens = self.norm(x).unflatten(0, (-1, views)).movedim(2, -1).flatten(1, 3)  # (B, V * H * W, C)
        packed = self.attn["qkv"](tokens).unflatten(-1, (3, HEADS, -1))
        queries, keys, values = packed.permute(2, 0, 3, 1, 4)  # each (B, heads, tokens, head width)
        attended = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)
        back = self.attn["proj"](attended).unflatten(1, shape).movedim(-1, 2).flatten(0, 1)
        return (back + x) * RESIDUAL


def _layers(channels: list[tuple[int, int]], attention: bool) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Residual blocks of these channels in and out, and the attention after each (none: an empty list)."""
    nets = nn.ModuleList(ResidualBlock(*pair) for pair in channels)
    return nets, nn.ModuleList(ViewAttention(out) for _, out in channels if attention)


class DownLevel(nn.Module):
    """Residual blocks, then half the side, except on the last level."""

    def __init__(self, channels_in: int, channels_out: int, attention: bool, last: bool) -> None:
        super().__init__()
        channels = [(channels_in, channels_out)] + [(channels_out, channels_out)] * (DOWN_LAYERS - 1)
        self.nets, self.attns = _layers(channels, attention)
        self.downsample = None if last else nn.Conv2d(channels_out, channels_out, 3, stride=2, padding=1)

    def forward(self, x: Tensor, skips: list[Tensor], views: int) -> Tensor:
        """Pushes what each layer gives on `skips`."""
        for index, net in enumerate(self.nets):
            x = net(x)
            if self.attns:
                x = self.attns[index](x, views)
            skips.append(x)
        if self.downsample is not None:
            x = self.downsample(x)
            skips.append(x)
        return x


class Middle(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int, attention: bool) -> None:
        super().__init__()
        self.nets = nn.ModuleList(ResidualBlock(channels, channels) for _ in range(2))
        self.attns = nn.ModuleList([ViewAttention(channels)] if attention else [])

    def forward(self, x: Tensor, views: int) -> Tensor:
        x = self.nets[0](x)
        for attention in self.attns:
            x = attention(x, views)
        return self.nets[1](x)


class UpLevel(nn.Module):
    """Residual blocks, each with the newest skip beside its input, then twice the side, except on the last level."""

    def __init__(self, channels_in: int, skips: list[int], channels_out: int, attention: bool, last: bool) -> None:
        super().__init__()
        before = [channels_in] + [channels_out] * (len(skips) - 1)
        self.nets, self.attns = _layers(
            [(x + skip, channels_out) for x, skip in zip(before, skips, strict=True)], attention
        )
        self.upsample = None if last else nn.Conv2d(channels_out, channels_out, 3, padding=1)

    def forward(self, x: Tensor, skips: list[Tensor], views: int) -> Tensor:
        """Pops from `skips`."""
        for index, net in enumerate(self.nets):
            x = net(torch.cat([x, skips.pop()], dim=1))
            if self.attns:
                x = self.attns[index](x, views)
        if self.upsample is None:
            return x
        return self.upsample(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class UNet(nn.Module):
    """More levels down than up: the three oldest entries of the skip stack are never used by the published sizes."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        down, up = config.down_channels, config.up_channels
        stack = [down[0]]  # channels of what lies on the skip stack
        self.conv_in = nn.Conv2d(CHANNELS_IN, down[0], 3, padding=1)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        for level, channels in enumerate(down):
            last = level == len(down) - 1
            self.down_blocks.append(DownLevel(down[max(level - 1, 0)], channels, config.down_attention[level], last))
            stack += [channels] * (DOWN_LAYERS + (not last))
        self.mid_block = Middle(down[-1], config.mid_attention)
        for level, channels in enumerate(up):
            skips = [stack.pop() for _ in range(UP_LAYERS)]
            before = up[level - 1] if level else down[-1]
            last = level == len(up) - 1
            self.up_blocks.append(UpLevel(before, skips, channels, config.up_attention[level], last))
        self.norm_out = _norm(up[-1])
        self.conv_out = nn.Conv2d(up[-1], CHANNELS_OUT, 3, padding=1)

    def forward(self, x: Tensor, views: int) -> Tensor:
        """(B * V, 9, H, W) -> (B * V, 14, h, w)."""
        x = self.conv_in(x)
        skips = [x]
        for level in self.down_blocks:
            x = level(x, skips, views)
        x = self.mid_block(x, views)
        for level in self.up_blocks:
            x = level(x, skips, views)
        return self.conv_out(F.silu(self.norm_out(x)))


class LGM(nn.Module):
    """The whole network."""

    def __init__(self, config: Config = BIG) -> None:
        super().__init__()
        self.unet = UNet(config)
        self.conv = nn.Conv2d(CHANNELS_OUT, CHANNELS_OUT, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Gaussians in the network's frame.

        Args:
            images: (B, V, 9, H, W): normalised colour, o x d, d (`frame.network_input`); sides divisible by the
                U-Net's 2 ^ (levels - 1), 32 for the published sizes.

        Returns:
            (B, V * h * w, 14) in the order view, row, column: position (3), opacity, standard deviations (3), unit
            quaternion wxyz, colour (3).
        """
        batch, views = images.shape[:2]
        raw = self.conv(self.unet(images.flatten(0, 1), views)).unflatten(0, (batch, views))
        position, opacity, scale, rotation, colour = raw.movedim(2, -1).flatten(1, 3).split([3, 1, 3, 4, 3], dim=-1)
        return torch.cat(
            [
                position.clamp(-1, 1),
                opacity.sigmoid(),
                0.1 * F.softplus(scale),
                F.normalize(rotation, dim=-1),
                0.5 * colour.tanh() + 0.5,
            ],
            dim=-1,
        )
