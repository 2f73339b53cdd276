"""A control: GeoLRM with the right anchor points and cameras, but the pictures of another object in its second stage."""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.methods import Context, Method, Spec
from benchmarks.methods.geolrm import PRECISION, anchors_of, load_networks, precision_on
from geolrm.gaussians import Gaussians
from geolrm.model.execution import in_precision
from geolrm.views import Views

SPEC = Spec(
    what="control: how much of GeoLRM's score comes from the pictures, and not from anchors and learned averages",
    inputs="stage 1: the object's own pictures; stage 2: those of the next object of the split, same positions on the orbit",
    cameras="the object's own in both stages",
    licence="Apache-2.0",
    weights="those of `geolrm`",
)


def load(context: Context) -> Method:
    """Raises `BadInput` where a checkpoint is missing or damaged."""
    model, checkpoint = load_networks(context)

    @torch.no_grad()
    def reconstruct(views: Views) -> Gaussians:
        other = context.other_views(views.key, len(views)).resized(*views.size).to(context.device)
        anchors = anchors_of(model, views, context.params.sweep.max_anchors)
        if len(anchors) == 0:
            return Gaussians.empty(context.device)
        wrong = replace(views, colour=other.colour, alpha=other.alpha, depth=None)
        with in_precision(PRECISION, context.device):
            return model.reconstruction(wrong.composited()[None], views.cameras[None], anchors[None])[0]

    return Method(reconstruct, checkpoint, precision_on(context.device))
