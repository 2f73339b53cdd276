"""A control: each test view is answered with the input picture taken from the nearest direction."""

from __future__ import annotations

from torch.nn import functional as F

from benchmarks.methods import Context, Method, Reconstruction, Spec
from geolrm.cameras import Cameras
from geolrm.rendering import Rendering
from geolrm.views import Views

SPEC = Spec(
    what="control: the nearest input picture as it is; says how much of a score needs no geometry at all",
    inputs="any number of posed pictures, composited on white",
    cameras="exact, OpenCV camera-to-world, object frame; only their positions are used",
    licence="Apache-2.0",
    weights="none",
)


def nearest(cameras: Cameras, views: Views) -> list[int]:
    """For each camera (V,) the input view whose direction from the object's centre is nearest, the first of equals."""
    towards, given = (F.normalize(c.positions, dim=-1) for c in (cameras, views.cameras))
    return (towards @ given.T).argmax(dim=-1).tolist()


def load(context: Context) -> Method:
    """Never fails."""

    def reconstruct(views: Views) -> Reconstruction:
        def look(cameras: Cameras, height: int, width: int) -> Rendering:
            seen = views[nearest(cameras, views)].resized(height, width)
            return Rendering(seen.composited(), seen.alpha, seen.alpha.new_zeros(len(seen), height, width))

        return Reconstruction(look)

    return Method(reconstruct)
