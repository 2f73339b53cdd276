"""Posed pictures of one object.

In: colour, alpha, depth and cameras of V views, read from a shard, rendered, or given by a user. Out: the same, picked,
resized, composited. Convention: colour is sRGB in [0, 1] with straight alpha, composited exactly once (white by default),
after any resizing of colour premultiplied by alpha; depth is planar z in object units, 0 = no surface, masked first and
resized by nearest neighbour only. Views that were read over a background say which, and are taken over no other. Trade: square
or not, all views of an object share one size. Verified by tests on flat colours at silhouettes and on depth edges that
resizing must not invent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from geolrm.cameras import Cameras
from geolrm.failures import BadInput


@dataclass(frozen=True)
class Views:
    """V posed pictures of one object.

    Attributes:
        key: the object's name, unique within its data set.
        cameras: (V,).
        colour: (V, 3, H, W) sRGB in [0, 1], straight alpha; where `background` is set, composited over it.
        alpha: (V, 1, H, W) in [0, 1].
        depth: (V, H, W) planar z, 0 = no surface; None where only pictures are known.
        background: grey level that lies under `colour` already, or None.
    """

    key: str
    cameras: Cameras
    colour: Tensor
    alpha: Tensor
    depth: Tensor | None = None
    background: float | None = None

    def __post_init__(self) -> None:
        count, _, height, width = self.colour.shape
        if self.alpha.shape != (count, 1, height, width) or len(self.cameras) != count:
            raise ValueError(
                f"{self.key}: colour {self.colour.shape}, alpha {self.alpha.shape}, {len(self.cameras)} cameras"
            )
        if self.depth is not None and self.depth.shape != (count, height, width):
            raise ValueError(f"{self.key}: colour {self.colour.shape}, depth {self.depth.shape}")

    @classmethod
    def from_pictures(
        cls, key: str, pictures: Sequence[Tensor], cameras: Cameras, size: tuple[int, int] | None = None
    ) -> Views:
        """Views of pictures that may differ in size.

        Args:
            pictures: V RGB or RGBA tensors (3 or 4, H, W) in [0, 1], straight alpha; opaque without it.
            cameras: (V,), whose normalised intrinsics hold at any size.
            size: (height, width) that all are brought to; needed where they differ.

        Raises:
            BadInput: `no_views`; `view_channels`; `view_sizes` where the pictures differ and no size is given.
        """
        if not pictures:
            raise BadInput("no_views", key, "there is no picture", "give at least one view")
        for i, picture in enumerate(pictures):
            if picture.ndim != 3 or len(picture) not in (3, 4):
                detail = f"picture {i} has shape {tuple(picture.shape)}"
                raise BadInput("view_channels", key, detail, "give RGB or RGBA, channels first")
        sizes = [(p.shape[-2], p.shape[-1]) for p in pictures]
        if size is None and len(set(sizes)) > 1:
            detail = "pictures of different sizes: " + ", ".join(f"{i}: {w} x {h}" for i, (h, w) in enumerate(sizes))
            raise BadInput("view_sizes", key, detail, "give `size` to bring all to one height and width")
        alphas = [p[3:] if len(p) == 4 else torch.ones_like(p[:1]) for p in pictures]
        views = [
            cls(key, cameras[i : i + 1], p[None, :3], alpha[None]).resized(*(size or sizes[0]))
            for i, (p, alpha) in enumerate(zip(pictures, alphas, strict=True))
        ]
        return cls(key, cameras, torch.cat([v.colour for v in views]), torch.cat([v.alpha for v in views]))

    def __len__(self) -> int:
        return len(self.colour)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.colour.shape[-2], self.colour.shape[-1]

    def __getitem__(self, index: Sequence[int] | slice) -> Views:
        """The views at these positions, in this order."""
        picked = index if isinstance(index, slice) else list(index)
        depth = None if self.depth is None else self.depth[picked]
        return replace(
            self, cameras=self.cameras[picked], colour=self.colour[picked], alpha=self.alpha[picked], depth=depth
        )

    def to(self, device: torch.device | str) -> Views:
        return self._with_tensors(lambda tensor: tensor.to(device))

    def pin_memory(self) -> Views:
        """The same views in memory from which a GPU reads by itself."""
        return self._with_tensors(Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> Views:
        poses, intrinsics = change(self.cameras.camera_to_world), change(self.cameras.intrinsics)
        depth = None if self.depth is None else change(self.depth)
        colour, alpha = change(self.colour), change(self.alpha)
        return replace(self, cameras=Cameras(poses, intrinsics), colour=colour, alpha=alpha, depth=depth)

    def composited(self, background: float | Tensor = 1.0) -> Tensor:
        """(V, 3, H, W) pictures over a background: a grey level or a (3,) colour. Raises ValueError for one that is not
        the background that they lie over already."""
        if self.background is not None:
            if isinstance(background, Tensor) or background != self.background:
                raise ValueError(f"{self.key}: composited over {self.background}, asked for over {background}")
            return self.colour
        if isinstance(background, Tensor):
            background = background.reshape(1, 3, 1, 1)
        return (self.colour * self.alpha).add_(
            background * (1 - self.alpha)
        )  # in place: fresh pages cost more than sums

    def over(self, background: float) -> Views:
        """The same views, composited over a grey level."""
        return replace(self, colour=self.composited(background), background=background)

    @property
    def foreground(self) -> Tensor:
        """(V, 1, H, W) bool, true alpha > 0.5: the pixels of every foreground metric."""
        return self.alpha > 0.5

    def resized(self, height: int, width: int) -> Views:
        """The same views at another size: colour and alpha antialiased (premultiplied), depth by nearest neighbour."""
        if self.size == (height, width):
            return self
        visible = self.colour * self.alpha if self.background is None else self.colour
        smooth = F.interpolate(
            torch.cat([visible, self.alpha], dim=1),
            (height, width),
            mode="bilinear",
            antialias=True,
            align_corners=False,
        )
        colour, alpha = smooth[:, :3], smooth[:, 3:].clamp(0, 1)
        if self.background is None:
            colour = torch.where(alpha > 1e-4, colour / alpha.clamp(min=1e-4), 0.0)
        colour = colour.clamp(0, 1)
        depth = self.depth
        if depth is not None:
            depth = F.interpolate(depth[:, None], (height, width), mode="nearest-exact")[:, 0]
        return replace(self, colour=colour, alpha=alpha, depth=depth)
