"""GeoLRM with the trained weights that come with the package, whatever the preset of the sweep."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.methods import Context, Method, Spec
from benchmarks.methods import geolrm as trained_here
from geolrm.pretrained import load_set
from geolrm.views import Views

NAME = "small"
SPEC = Spec(
    what="GeoLRM with the weights of the package: what a user gets without training, the preset's own weights stay `geolrm`",
    inputs="those of `geolrm`; smaller ones are enlarged to the 256 px of its training",
    cameras="those of `geolrm`",
    licence="Apache-2.0, code and weights of this repository; trained on procedural objects alone",
    weights=f"geolrm/pretrained/{NAME}/, float16; card: geolrm/pretrained/{NAME}.md",
)


def enlarged(views: Views, size: int) -> Views:
    """Views whose shorter side has `size` pixels at least: patches and samples then cover what they did in training."""
    scale = size / min(views.size)
    return views if scale <= 1 else views.resized(*(round(scale * side) for side in views.size))


def load(context: Context) -> Method:
    """Raises `BadInput` where the weights are missing or damaged."""
    model, checkpoint = trained_here.prepared(*load_set(NAME), context.device)
    found = trained_here.method(model, checkpoint, context)
    size = model.reconstruction.settings.optimisation.image_size
    return replace(found, reconstruct=lambda views: found.reconstruct(enlarged(views, size)))
