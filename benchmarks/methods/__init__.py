"""The methods of the benchmark: one module each, named as the method is.

In: posed input pictures of one object. Out: its Gaussians, or another `Reconstruction`, in the object frame of the cameras. A
module holds `SPEC`, which says what the method is given and under which terms, and `load(context)`, which returns a `Method`.
Convention: `load` raises `BadInput` or ImportError where something to install or fetch is missing (the rows say
`not_installed`); `reconstruct` raises `NotApplicable` for inputs that the method cannot take, and any other error of its own
becomes a row `failed`. Trade: a method is found by its module's name, so that a new one is a new file and no other change.
Verified by `tests/benchmarks`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from geolrm.cameras import Cameras
from geolrm.config import Params
from geolrm.failures import BadInput
from geolrm.gaussians import Gaussians
from geolrm.rendering import Rendering
from geolrm.views import Views

if TYPE_CHECKING:
    from geolrm.meshing import Mesh


class NotApplicable(BadInput):
    """The method cannot take these inputs (their number, their cameras): no score, and no fault of the method."""


@dataclass(frozen=True)
class Spec:
    """What a reader must know to compare a method with others, in a line each.

    Attributes:
        what: what it does; for a control, what beating it shows.
        inputs: which pictures it is given.
        cameras: which cameras it is given, and in which convention.
        licence: of its code and weights.
        weights: where they are.
        paper: its published numbers and how their protocol is known to differ; empty where there are none.
    """

    what: str
    inputs: str
    cameras: str
    licence: str
    weights: str
    paper: str = ""


@dataclass(frozen=True)
class Context:
    """What a method may know beside its input pictures.

    Attributes:
        params: the whole params file.
        results: folder of the preset's results, where its checkpoints lie.
        device: where to compute; input pictures arrive there.
        other_views: (key, count) -> as many input views, chosen by the same rule, of another object of the data set.
    """

    params: Params
    results: Path
    device: torch.device
    other_views: Callable[[str, int], Views]


@dataclass(frozen=True)
class Reconstruction:
    """What a method makes that is no set of Gaussians: a field, a mesh, pictures.

    Attributes:
        render: cameras (V,), height, width -> its pictures over white, with alpha and depth.
        mesh: -> its surface in the object frame; None for a method that claims none: its geometry and depth are not scored.
    """

    render: Callable[[Cameras, int, int], Rendering]
    mesh: Callable[[], Mesh] | None = None


Prediction = Gaussians | Reconstruction


@dataclass(frozen=True)
class Method:
    """A loaded method.

    Attributes:
        reconstruct: input views -> Gaussians on the same device, possibly none, or a `Reconstruction`. A pure function. Parts of
            it may be named by `benchmarks.stages`; rows then have the seconds of each.
        checkpoint: hash of the weights, None for a method without.
        precision: of its matrix products, for the passport.
    """

    reconstruct: Callable[[Views], Prediction]
    checkpoint: str | None = None
    precision: str = "float32"


def method_names() -> list[str]:
    """Names of all methods: the modules of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def check_method(name: str) -> None:
    """Raise `BadInput` unless there is a method of this name."""
    if name not in method_names():
        known = ", ".join(method_names())
        raise BadInput(
            "method_unknown", name, "no such method", f"methods are the modules of benchmarks/methods: {known}"
        )


def sources(name: str) -> list[Path]:
    """Files of a method's own code: its module or package, those of the benchmarks that it imports from, those that they do."""
    benchmarks = __name__.removesuffix("methods")
    found: set[Path] = set()
    left, seen = {f"{__name__}.{name}"}, set()
    while left:
        module = import_module(left.pop())
        seen.add(module.__name__)
        file = Path(str(module.__file__))
        found |= set(file.parent.rglob("*.py")) if file.name == "__init__.py" else {file}
        values = vars(module).values()
        used = {
            value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) for value in values
        }
        left |= {m for m in used if m and m.startswith(benchmarks)} - seen - {__name__}
    return sorted(found)


def spec(name: str) -> Spec:
    """What the method of this name is."""
    check_method(name)
    found: Spec = import_module(f"{__name__}.{name}").SPEC
    return found


def published(name: str) -> tuple[dict[str, Any], ...]:
    """What papers say of this method, from its module's `PAPER`: per table its name (`table`), how its protocol differs
    (`differs`), and of psnr, ssim, lpips, cd_sum, fscore_0.2, latency_s, memory_gb those that it has. None for most methods."""
    check_method(name)
    return tuple(getattr(import_module(f"{__name__}.{name}"), "PAPER", ()))


def load_method(name: str, context: Context) -> Method:
    """Load the method of this name. Raises what its `load` raises."""
    check_method(name)
    loaded: Method = import_module(f"{__name__}.{name}").load(context)
    return loaded


def load_untrained(name: str, context: Context) -> Method | None:
    """The method with random weights, for its costs alone; None for one that offers no such thing (`untrained`)."""
    untrained = getattr(import_module(f"{__name__}.{name}"), "untrained", None)
    return untrained(context) if untrained else None
