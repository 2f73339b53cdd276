"""Geometry-aware transformer: anchor points that look at one another and at the pictures (paper, section 3.2).

In: anchor points, feature maps, cameras. Out: one token a point. Each block is self-attention over tokens with 3D RoPE,
deformable cross-attention to the views, and a SwiGLU network, each after an RMSNorm and added to the stream (equations 4 to
6; the public code attends across the heads of one token in float32, and adds cross-attention to the normalised stream).
Convention: both networks are instances of this one; tokens carry no order, so permuting the points permutes the tokens.
Trade: a token starts as Fourier features of its coordinates through a linear layer, whose bias is the paper's shared
learnable feature; three raw coordinates beside it (the public code) are 3 channels of some hundred, which a short training
hardly hears. Verified by permutations of points and views, and by parameter counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geolrm import config
from geolrm.cameras import Cameras
from geolrm.model import rope
from geolrm.model.deformable import PROJECTIONS, DeformableCrossAttention

NORM_EPS = 1e-5
OCTAVES = 6  # of the token input: the finest wave is 1/32 of the cube's side long


class TokenInput(nn.Module):
    """Anchor points (B, N, 3) to tokens (B, N, width): coordinates and their sines and cosines, linearly mapped."""

    waves: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3 + 3 * 2 * OCTAVES, width)
        self.register_buffer("waves", 2 * math.pi * 2.0 ** torch.arange(OCTAVES), persistent=False)

    def forward(self, anchors: Tensor) -> Tensor:
        phases = (anchors[..., None] * self.waves).flatten(-2)
        with torch.autocast(anchors.device.type, enabled=False):  # the stream, which blocks add to, stays fp32
            return self.linear(torch.cat([2 * anchors, phases.sin(), phases.cos()], dim=-1))


class RawTokenInput(nn.Module):
    """The public code's token: three coordinates in object units, then a learned vector that all tokens share."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shared = nn.Parameter(torch.randn(1, 1, width - 3))

    def forward(self, anchors: Tensor) -> Tensor:
        return torch.cat([anchors, self.shared.expand(*anchors.shape[:2], -1)], dim=-1)


TOKEN_INPUTS = {"fourier": TokenInput, "raw": RawTokenInput}


class TokenAttention(nn.Module):
    """Self-attention over the tokens of one object, with 3D RoPE on queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, tokens: Tensor, rotations: tuple[Tensor, Tensor]) -> Tensor:
        """Tokens (B, N, width), rotations from `rope.rotations` -> (B, N, width)."""
        packed = self.queries_keys_values(tokens).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = packed.permute(2, 0, 3, 1, 4)  # each (B, heads, N, head width)
        queries, keys = rope.rotate(queries, *rotations), rope.rotate(keys, *rotations)
        return self.output(self.attend(queries, keys, values))

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Each (B, heads, N, head width) -> (B, N, width)."""
        return F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)


class HeadAttention(TokenAttention):
    """What the public code computes in float32: the heads of one token attend to one another, and no token to another.

    The result (B, heads, N, head width) is then read in memory order as (B, N, width), so that row r holds the heads of
    several tokens. Queries and keys of one token are turned alike, so RoPE has no effect.
    """

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        queries_of_token, keys_of_token, values_of_token = (t.transpose(1, 2) for t in (queries, keys, values))
        attended = F.scaled_dot_product_attention(queries_of_token, keys_of_token, values_of_token)
        return attended.transpose(1, 2).reshape(len(queries), queries.shape[2], -1)


SELF_ATTENTIONS = {"tokens": TokenAttention, "heads": HeadAttention}


class SwiGLU(nn.Module):
    """Gated feed-forward network, two thirds of the usual hidden width of 4, rounded up to a multiple."""

    def __init__(self, width: int, multiple: int) -> None:
        super().__init__()
        hidden = math.ceil(8 * width / 3 / multiple) * multiple
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(tokens)) * self.up(tokens))


def carry_stream(tokens: Tensor, normalised: Tensor) -> Tensor:
    """Equation 5 adds cross-attention to the stream."""
    return tokens


def carry_normalised(tokens: Tensor, normalised: Tensor) -> Tensor:
    """The public code adds it to what cross-attention was given, so that every block starts from a normalised stream."""
    return normalised


RESIDUALS = {"stream": carry_stream, "normalised": carry_normalised}


class Block(nn.Module):
    """Equations 4 to 6."""

    def __init__(self, settings: config.Transformer, channels: int) -> None:
        super().__init__()
        width = settings.width
        self.self_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.self_attention = SELF_ATTENTIONS[settings.self_attention](width, settings.heads)
        self.cross_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.cross_attention = DeformableCrossAttention(width, channels, settings.heads, settings.sampling_points)
        self.carry = RESIDUALS[settings.residual]
        self.feed_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.feed_forward = SwiGLU(width, settings.feed_forward_multiple)

    def forward(
        self,
        tokens: Tensor,
        rotations: tuple[Tensor, Tensor],
        features: tuple[Tensor, Tensor],
        uv: Tensor,
        visible: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B, N, width) after the block, and the share that each view had in it (B, V, N)."""
        tokens = tokens + self.self_attention(self.self_norm(tokens), rotations)
        normalised = self.cross_norm(tokens)
        seen, shares = self.cross_attention(normalised, features, uv, visible)
        tokens = self.carry(tokens, normalised) + seen
        return tokens + self.feed_forward(self.feed_norm(tokens)), shares


def _positions(settings: config.Transformer) -> Callable[[Tensor], Tensor]:
    choices: dict[str, Callable[[Tensor], Tensor]] = {
        "real": rope.real_positions,
        "index": partial(rope.index_positions, grid=settings.index_grid, scale=settings.index_scale),
    }
    return choices[settings.positions]


class GeometryTransformer(nn.Module):
    """Anchor points to tokens that have seen the pictures and one another.

    Args:
        settings: sizes.
        channels: of the encoder's feature maps.
    """

    def __init__(self, settings: config.Transformer, channels: int) -> None:
        super().__init__()
        self.head_width = settings.width // settings.heads
        self.project, self.positions = PROJECTIONS[settings.projection], _positions(settings)
        self.token_input = TOKEN_INPUTS[settings.token_input](settings.width)
        self.blocks = nn.ModuleList(Block(settings, channels) for _ in range(settings.layers))
        self.norm = nn.RMSNorm(settings.width, eps=NORM_EPS)

    def forward(
        self, anchors: Tensor, features: tuple[Tensor, Tensor], cameras: Cameras, hints: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Look at the pictures.

        Args:
            anchors: (B, N, 3) in object units.
            features: low and high level, (B, V, channels, h, w).
            cameras: (B, V).
            hints: (B, N, width), what else is known of each token at first.

        Returns:
            Tokens (B, N, width), and the share that each view had in the last block (B, V, N): how much the token trusts it.
        """
        with torch.autocast(anchors.device.type, enabled=False):  # projections, angles and the token stream stay fp32
            uv, visible = self.project(anchors, cameras)
            rotations = rope.rotations(anchors, self.head_width, self.positions)
            tokens = self.token_input(anchors)
            tokens = tokens if hints is None else tokens + hints
        shares = visible.float()
        for block in self.blocks:
            tokens, shares = block(tokens, rotations, features, uv, visible)
        return self.norm(tokens), shares
