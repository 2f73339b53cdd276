"""Procedural objects as training data without shards: drawn as they are asked for, traced where training runs.

In: the `procedural` section of params.yaml and a voxel resolution. Out: the interface of `ShardDataset`: samples by number or
key, with cameras, roles, views and occupancy. Convention: an object is the one that `pipelines.render_procedural` writes under
the same seed and key, so that shards and this source differ by the codecs' rounding alone, and as many objects as one asks for
cost no disk; `sample` draws the scene on the CPU (a data worker may), its views and label are traced on the device. Trade: the
label comes from one ray a pixel of each view, where shards leave out specks that the rays for colour miss. Verified against
shards of the same objects (tests/data/test_procedural_source.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geolrm.cameras import Cameras
from geolrm.config import Procedural
from geolrm.data.procedural import draw_object, render_scene
from geolrm.data.procedural.scene import Scene
from geolrm.data.rig import orbit_views, render_rig, view_roles
from geolrm.failures import BadInput
from geolrm.occupancy import occupancy_from_depth
from geolrm.views import Views


@dataclass
class GeneratedSample:
    """One object: `key`, `cameras` (V,) and `roles` (V) as those of a `Sample`; views and label are traced when asked for."""

    key: str
    scene: Scene
    cameras: Cameras
    roles: list[str]
    settings: Procedural
    voxel_resolution: int
    device: torch.device

    def views(
        self, indices: Sequence[int], size: tuple[int, int] | None = None, background: float | None = None
    ) -> Views:
        """The views at these positions, in this order, on the device, of that height and width, over a grey level or
        straight. Raises BadInput `too_few_views`."""
        if not indices or min(indices) < 0 or max(indices) >= len(self.cameras):
            detail = f"views {list(indices)} asked for, it has {len(self.cameras)}"
            raise BadInput("too_few_views", self.key, detail, "ask for fewer views")
        views = self._traced(list(indices), self.settings.supersampling)
        views = views if size is None else views.resized(*size)
        return views if background is None else views.over(background)

    def orbit_inputs(self, count: int) -> list[int]:
        """Positions of `count` input views spread evenly over the orbit."""
        return orbit_views(self.key, self.roles, count)

    @property
    def occupancy(self) -> Tensor:
        """(R, R, R) bool on the device: the voxels that the depth maps of all views hit."""
        views = self._traced(list(range(len(self.cameras))), supersampling=1)
        assert views.depth is not None
        return occupancy_from_depth(views.depth, views.cameras, self.voxel_resolution)[0]

    def _traced(self, indices: list[int], supersampling: int) -> Views:
        scene, cameras = self.scene.to(self.device), self.cameras[indices]
        views, _ = render_scene(scene, self.key, cameras, self.settings.resolution, supersampling, self.device)
        return views


class GeneratedDataset(torch.utils.data.Dataset[GeneratedSample]):
    """The procedural objects of one split, which no disk holds.

    Args:
        settings: the `procedural` section; its count of the split is the length.
        split: train, val or test.
        voxel_resolution: of the occupancy label.
        device: where views and labels are traced.
    """

    def __init__(self, settings: Procedural, split: str, voxel_resolution: int, device: torch.device) -> None:
        self.settings, self.split, self.voxel_resolution, self.device = settings, split, voxel_resolution, device
        self.count: int = {"train": settings.train, "val": settings.val, "test": settings.test}[split]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> GeneratedSample:
        return self.sample(index)

    def sample(self, index: int) -> GeneratedSample:
        """Object number `index`. Raises IndexError beyond the split, BadInput as `draw_object`."""
        if not 0 <= index < len(self):
            raise IndexError(f"object {index} of {len(self)}")
        key = f"{self.split}-{index:05d}"
        scene, _, _ = draw_object(self.settings.seed, key, self.settings.variety)
        rig = render_rig(key)
        roles = view_roles(rig)
        kept = [i for i, role in enumerate(roles) if role != "duplicate"]
        own = [roles[i] for i in kept]
        return GeneratedSample(key, scene, rig[kept], own, self.settings, self.voxel_resolution, self.device)
