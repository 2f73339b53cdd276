"""A control: nothing at all. Its white pictures score what the empty part of the frame is worth."""

from __future__ import annotations

from benchmarks.methods import Context, Method, Spec
from geolrm.gaussians import Gaussians
from geolrm.views import Views

SPEC = Spec(
    what="control: all-white pictures and no surface; says how much of a score is background",
    inputs="none is looked at",
    cameras="none is looked at",
    licence="Apache-2.0",
    weights="none",
)


def load(context: Context) -> Method:
    """Never fails."""

    def reconstruct(views: Views) -> Gaussians:
        return Gaussians.empty(views.colour.device)

    return Method(reconstruct)
