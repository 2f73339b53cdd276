"""GeoLRM: posed pictures of an object to 3D Gaussians. See README.md for the tour, docs/conventions.md for the frames."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from geolrm.pretrained import load_pretrained as load_pretrained
else:

    def __getattr__(name: str) -> object:
        """`load_pretrained`, imported when it is asked for: `import geolrm` alone loads no torch."""
        if name == "load_pretrained":
            return import_module("geolrm.pretrained").load_pretrained
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
