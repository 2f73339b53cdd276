"""A control: GeoLRM's anchor points as round, nearly opaque Gaussians of one colour, the mean of the input foreground."""

from __future__ import annotations

from benchmarks.methods import Context, Method, Spec
from benchmarks.methods.geolrm import anchors_of, load_networks, precision_on
from benchmarks.round_gaussians import half_spacing, mean_foreground_colour, round_gaussians
from geolrm.gaussians import Gaussians
from geolrm.views import Views

SPEC = Spec(
    what="control: what the second stage adds to the anchor points of the first, in colour and in shape",
    inputs="those of `geolrm`",
    cameras="those of `geolrm`",
    licence="Apache-2.0",
    weights="those of the first stage of `geolrm`",
)


def load(context: Context) -> Method:
    """Raises `BadInput` where a checkpoint is missing or damaged."""
    model, checkpoint = load_networks(context)
    half_voxel = 0.5 / context.params.proposal.voxel_resolution

    def reconstruct(views: Views) -> Gaussians:
        anchors = anchors_of(model, views, context.params.sweep.max_anchors)
        colours = mean_foreground_colour(views).expand(len(anchors), 3)
        return round_gaussians(anchors, colours, half_spacing(anchors, half_voxel))

    return Method(reconstruct, checkpoint, precision_on(context.device))
