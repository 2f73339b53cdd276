"""Reconstruction network: anchor points and pictures to 3D Gaussians (paper, section 3.2, equations 7 to 9).

In: posed pictures and the anchor points of each object. Out: `gaussians_per_token` Gaussians for every anchor point. A shallow
network turns each token into 14 numbers a Gaussian: offset, opacity, scale, rotation, colour. Convention: a mean is its anchor
plus max_offset * tanh, the same reach both ways (the public code's sigmoid moves one way only); a standard deviation is
max_scale * sigmoid; opacity and colour go through sigmoids; what is stored is the logit, the logarithm and the SH coefficient,
computed from the raw numbers without a detour through the activated value. A Gaussian's colour starts from what the pictures
show where its mean projects, averaged over the views that see its anchor with the view weights of the last block, and the head
adds to it (the paper decodes colour from the token alone: 1.3 dB less after 400 steps on true voxels, LOG.md). Trade: each
Gaussian stays near its anchor, so a voxel that the proposal missed stays empty. Verified by bounds, symmetry, permutation of
anchors, colours of flat pictures, and the first render's scale.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geolrm import config
from geolrm.cameras import Cameras
from geolrm.gaussians import SH_C0, Gaussians
from geolrm.model import execution
from geolrm.model.carving import HINTS, look_up
from geolrm.model.encoder import HierarchicalEncoder
from geolrm.model.transformer import GeometryTransformer
from geolrm.model.visibility import sees
from geolrm.occupancy import anchor_points

PARTS = {"offset": 3, "opacity": 1, "scale": 3, "quaternion": 4, "colour": 3}
INITIAL_OPACITY = 0.7
HIDDEN = 0.01  # how much a view counts for the colour of points that others hide from it: enough where all views are so
COLOUR_MARGIN = 0.02  # pictures' colours are clamped this far from 0 and 1, where their logit would stiffen
INITIAL_SPREAD = 0.01  # of the last layer's weights: the first Gaussians follow its bias


class GaussianHead(nn.Module):
    """Tokens to Gaussians.

    At first every token emits the same set: centres drawn within half an anchor spacing, standard deviations of half of
    it, opacity 0.7, the pictures' colours. The spacing is that of `max_anchors` points on one square unit of surface.
    """

    def __init__(self, settings: config.Reconstruction) -> None:
        super().__init__()
        self.count = settings.gaussians_per_token
        self.max_offset, self.max_scale = settings.max_offset, settings.max_scale
        size = self.count * sum(PARTS.values())
        self.reach, self.paint = OFFSETS[settings.offsets], COLOURS[settings.colours]
        self.hidden = nn.Linear(settings.transformer.width, size)
        self.output = nn.Linear(size, size)
        self._initialise(spacing=settings.max_anchors**-0.5)

    def _initialise(self, spacing: float) -> None:
        nn.init.normal_(self.output.weight, std=INITIAL_SPREAD)
        reach = min(0.5 * spacing / self.max_offset, 0.9)
        share = min(0.5 * spacing / self.max_scale, 0.9)
        with torch.no_grad():
            bias = self.output.bias.zero_().view(self.count, -1)
            offset, opacity, scale, quaternion, _ = bias.split(list(PARTS.values()), dim=-1)
            offset.uniform_(-reach, reach).atanh_()
            opacity.fill_(math.log(INITIAL_OPACITY / (1 - INITIAL_OPACITY)))
            scale.fill_(math.log(share / (1 - share)))
            quaternion[:, 0] = 1.0

    def forward(
        self, tokens: Tensor, anchors: Tensor, images: Tensor, cameras: Cameras, shares: Tensor
    ) -> list[Gaussians]:
        """Decode the tokens of a batch of objects, all at once but for the colours.

        Args:
            tokens: (B, N, width).
            anchors: (B, N, 3) object units.
            images: (B, V, 3, H, W) in [0, 1].
            cameras: (B, V).
            shares: (B, V, N) how much each token trusts each view, adding up to 1 or 0 over the views.

        Returns:
            B times N * count Gaussians, token-major, float32.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            raw = self.output(F.silu(self.hidden(tokens.float()))).view(len(tokens), -1, sum(PARTS.values()))
        offset, opacity, scale, quaternion, colour = raw.split(list(PARTS.values()), dim=-1)
        means = anchors.repeat_interleave(self.count, dim=1) + self.max_offset * self.reach(offset)  # equation 7
        painted = [
            self.paint(colour[b], means[b], anchors[b], images[b], cameras[b], shares[b]) for b in range(len(tokens))
        ]
        opacity_logits = opacity[..., 0]  # equation 9
        log_scales = math.log(self.max_scale) + F.logsigmoid(scale)  # equation 8
        shaped = (means, opacity_logits, log_scales, F.normalize(quaternion, dim=-1))
        return [
            Gaussians(means, sh_dc, opacity_logits, log_scales, quaternions)
            for sh_dc, means, opacity_logits, log_scales, quaternions in zip(
                painted, *(part.unbind() for part in shaped), strict=True
            )
        ]


OFFSETS = {"symmetric": torch.tanh, "one_sided": torch.sigmoid}


def paint_from_pictures(
    colour: Tensor, means: Tensor, anchors: Tensor, images: Tensor, cameras: Cameras, shares: Tensor
) -> Tensor:
    """SH of the sigmoid of raw numbers (M, 3) plus the logit of what the pictures show at means (M, 3), not through others."""
    seen = picture_colours(means.detach(), images, cameras, shares * torch.where(sees(anchors, cameras), 1.0, HIDDEN))
    return 0.5 / SH_C0 * (0.5 * (colour + torch.logit(seen, eps=COLOUR_MARGIN))).tanh()


def paint_from_tokens(
    colour: Tensor, means: Tensor, anchors: Tensor, images: Tensor, cameras: Cameras, shares: Tensor
) -> Tensor:
    """SH of the public code's colours: raw numbers (M, 3) plus a half, cut off outside [0, 1], without a gradient there."""
    return colour.clamp(-0.5, 0.5) / SH_C0


COLOURS = {"pictures": paint_from_pictures, "tokens": paint_from_tokens}


def picture_colours(points: Tensor, images: Tensor, cameras: Cameras, shares: Tensor) -> Tensor:
    """What the pictures show at points.

    Args:
        points: (M, 3) object units.
        images: (V, 3, H, W) in [0, 1].
        cameras: (V,).
        shares: (V, N) weights of the views, each for M / N points in a row.

    Returns:
        (M, 3) the weighted mean over the views that see the point, grey where none does.
    """
    if not (torch.is_grad_enabled() and shares.requires_grad) and (kernel := execution.kernel("pictures", points)):
        return kernel.picture_colours(points, images, cameras, shares)
    group = len(points) // shares.shape[1]
    if torch.is_grad_enabled() and shares.requires_grad:  # training, where launches count: all views at once
        colours, visible = look_up(points, images, cameras)
        weights = shares.repeat_interleave(group, dim=1)[..., None] * visible
        return ((weights * colours).sum(dim=0) + 0.5e-6) / (weights.sum(dim=0) + 1e-6)
    total, weight = points.new_zeros(len(points), 3), points.new_full((len(points), 1), 1e-6)
    total = total + 0.5 * weight
    for view in range(len(images)):  # one view at a time: the colours of all views at once would grow with V
        colours, visible = look_up(points, images[view : view + 1], cameras[view : view + 1])
        share = shares[view].repeat_interleave(group)[:, None] * visible[0]
        total, weight = total + share * colours[0], weight + share
    return total / weight


def leave(anchors: Tensor, count: int) -> Tensor:
    """Only what is occupied becomes a token."""
    return anchors


def pad_at_origin(anchors: Tensor, count: int) -> Tensor:
    """The public code's way: `count` anchors, the missing ones at the origin, attended to and decoded like the others."""
    return torch.cat([anchors, anchors.new_zeros(count - len(anchors), 3)])


PADDINGS = {"none": leave, "origin": pad_at_origin}


class ReconstructionNetwork(nn.Module):
    """Stage 2.

    Args:
        settings: sizes.
        pretrained: see `HierarchicalEncoder`.
    """

    def __init__(self, settings: config.Reconstruction, pretrained: bool = True) -> None:
        super().__init__()
        self.settings, self.max_anchors = settings, settings.max_anchors
        self.pad = PADDINGS[settings.padding]
        self.encoder = HierarchicalEncoder(settings.encoder, pretrained)
        self.transformer = GeometryTransformer(settings.transformer, settings.encoder.channels)
        self.carving = HINTS[settings.carving](settings.transformer.width)
        self.head = GaussianHead(settings)

    def anchors_of(self, occupied: Tensor, max_count: int) -> Tensor:
        """(N, 3) at most max_count anchor points of a grid (R, R, R) bool."""
        return self.pad(anchor_points(occupied, max_count, self.settings.grid, self.settings.subset), max_count)

    def forward(self, images: Tensor, cameras: Cameras, anchors: Tensor) -> list[Gaussians]:
        """Reconstruct a batch of objects.

        Args:
            images: (B, V, 3, H, W) sRGB in [0, 1], composited on white, V from 1 up.
            cameras: (B, V).
            anchors: (B, N, 3) object units, N not bound by max_anchors; where it is 0, so are the Gaussians.

        Returns:
            B sets of N * gaussians_per_token Gaussians; those of anchor i start at i * gaussians_per_token.
        """
        if anchors.shape[1] == 0:
            return [Gaussians.empty(anchors.device) for _ in anchors]
        hints = self.carving.hint(anchors, images, cameras)
        tokens, shares = self.transformer(anchors, self.encoder(images, cameras), cameras, hints)
        with torch.autocast(images.device.type, enabled=False):  # from the tokens on, all is fp32
            return self.head(tokens, anchors, images, cameras, shares)
