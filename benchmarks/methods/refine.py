"""GeoLRM, and then some hundred steps of fitting its Gaussians to the same input pictures."""

from __future__ import annotations

from benchmarks.methods import Context, Method, Spec
from benchmarks.methods.gaussian_fitting import fit
from benchmarks.methods.geolrm import PRECISION, load_networks, precision_on
from benchmarks.stages import stage
from geolrm.gaussians import Gaussians
from geolrm.views import Views

STEPS = 300

SPEC = Spec(
    what=f"the Gaussians of `geolrm`, fitted for {STEPS} steps as `gaussian_fitting` does: what a start by the network is worth",
    inputs="those of `geolrm`, which are also what is fitted to",
    cameras="those of `geolrm`",
    licence="those of `geolrm` and `gaussian_fitting`",
    weights="those of `geolrm`",
)


def load(context: Context) -> Method:
    """Raises `BadInput` where a checkpoint is missing or damaged."""
    model, checkpoint = load_networks(context)

    def reconstruct(views: Views) -> Gaussians:
        start = model.reconstruct(views, context.params.sweep.max_anchors, PRECISION)
        with stage("fitting"):
            return fit(start, views, STEPS) if len(start) else start

    return Method(reconstruct, checkpoint, precision_on(context.device))
