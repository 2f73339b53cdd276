"""The harness measured on itself: what it must find in the truth, and that it finds errors which are planted.

In: objects whose truth is known, made up or from shards. Out: a table of checks with their bounds, and the floors that no method
can pass: truth against truth, and Gaussians laid on the true surface through renderer and mesh converter. Convention: every
check goes through `benchmarks.scores`, as a method's rows do. Trade: the Gaussians are discs on sampled points, so their
pictures are a little soft. Verified by breaking the harness on purpose (`tests/benchmarks/test_selftest.py`).

`python -m benchmarks.selftest` ends with status 1 if a check fails.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import protocol
from benchmarks.methods import Reconstruction
from benchmarks.methods.visual_hull import colour_from_views
from benchmarks.round_gaussians import half_spacing
from benchmarks.scores import BACKGROUND, DENSE_POINTS, Scorer, Scores
from geolrm.cameras import OPENCV_TO_BLENDER, Cameras
from geolrm.config import Sweep, load_params
from geolrm.data.loader import ShardDataset
from geolrm.failures import BadInput
from geolrm.files import write_whole
from geolrm.gaussians import Gaussians
from geolrm.metrics.geometry import BOX_DIAGONAL, POINTS, TrueSurface, seeded_draw, surface_scores
from geolrm.metrics.image import DEPTH_MISSING, PSNR_MAX
from geolrm.metrics.perceptual import PerceptualMetrics, load_perceptual
from geolrm.passport import passport
from geolrm.rendering import Rendering, render
from geolrm.views import Views

SEED, KEY = 0, "test-00000"  # of the made-up object
SUPERSAMPLING = 3
THICKNESS, OPACITY = 0.1, 0.95  # of the discs; the first in widths
INSET = 0.7  # pixels that discs lie below the surface, about what the renderer's blur adds to a silhouette
SHIFT, SCALE = 0.05, 1.1  # planted in [-1, 1]^3
MOST_OFF = 0.35  # pixels; a half-pixel error is 0.5
HALF_PIXELS = ((0.5, 0.0), (-0.5, 0.0), (0.0, 0.5), (0.0, -0.5))
AXES = ("x", "y", "z")


@dataclass(frozen=True)
class Subject:
    """An object whose truth is known.

    Attributes:
        views: all its pictures but the test views, `tests` the test views, with depth.
        points: (P, 3) of its surface, object units, with outward normals (P, 3).
    """

    key: str
    views: Views
    tests: Views
    points: Tensor
    normals: Tensor


@dataclass(frozen=True)
class Check:
    """One number and the bounds that it must keep; without bounds it is only printed."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None

    @property
    def passed(self) -> bool:
        """Written so that NaN fails every bound."""
        return (self.low is None or self.value >= self.low) and (self.high is None or self.value <= self.high)

    def __str__(self) -> str:
        bounds = [f"at least {self.low:g}"] if self.low is not None else []
        bounds += [f"at most {self.high:g}"] if self.high is not None else []
        state = "    " if not bounds else "ok  " if self.passed else "FAIL"
        return f"{state} {self.name:62} {self.value:10.4f}  {', '.join(bounds)}".rstrip()


def made_up(size: int, dense: bool) -> Subject:
    """A made-up object at `size` pixels, with as many surface points as its pictures and its `dense` geometry need."""
    from geolrm.data.procedural import draw_object, procedural_object

    rendered = procedural_object(SEED, KEY, size, SUPERSAMPLING)
    count = max(2 * POINTS, DENSE_POINTS if dense else 0, size * size)
    points, normals, _ = draw_object(SEED, KEY)[0].sample_surface(count, np.random.default_rng(SEED))
    assert rendered.test_views is not None
    return Subject(KEY, rendered.views, rendered.test_views, points, normals)


def stored(folder: Path, split: str, count: int) -> Iterator[Subject]:
    """The first objects of a sharded data set. Raises `BadInput` for one without test views, depth or surface."""
    data = ShardDataset(folder, split)
    for key in data.keys[:count]:
        sample = data.sample(key)
        if sample.test_cameras is None or sample.points is None or sample.point_normals is None:
            raise BadInput(
                "no_truth", f"{folder}, {key}", "no test views, or no surface points", "choose another data set"
            )
        everything = sample.views(range(len(sample.roles)))
        yield Subject(key, everything, sample.test_views(), sample.points, sample.point_normals)


def pixel_side(cameras: Cameras, size: int) -> float:
    """What a pixel of pictures of `size` pixels measures at the object's centre, object units, the mean over cameras."""
    return (cameras.positions.norm(dim=-1) / cameras.intrinsics[:, 0, 0]).mean().item() / size


def discs(subject: Subject, size: int) -> Gaussians:
    """Gaussians on the true surface, for pictures of `size` pixels: a disc a point, size^2 of them where there are so many,
    half as wide as they lie apart, coloured from all pictures."""
    picked = np.sort(np.random.default_rng(SEED).permutation(len(subject.points))[: size * size])
    points, normals = subject.points[picked].float(), subject.normals[picked].float()
    width = half_spacing(points, 0.01)
    together = Views(
        subject.key,
        Cameras(
            torch.cat([subject.views.cameras.camera_to_world, subject.tests.cameras.camera_to_world]),
            torch.cat([subject.views.cameras.intrinsics, subject.tests.cameras.intrinsics]),
        ),
        torch.cat([subject.views.colour, subject.tests.colour]),
        torch.cat([subject.views.alpha, subject.tests.alpha]),
    )
    colours = colour_from_views(points, normals, together, width.mean().item())
    x, y, z = normals.unbind(-1)
    turn = torch.stack([1 + z, -y, x, torch.zeros_like(z)], dim=-1)  # of the z axis to the normal
    turn[z < -0.9999] = turn.new_tensor([0.0, 1.0, 0.0, 0.0])
    scales = torch.stack([width, width, width * THICKNESS], dim=-1)
    inside = points - INSET * pixel_side(subject.tests.cameras, size) * normals
    return Gaussians.from_activated(inside, colours, points.new_full((len(points),), OPACITY), scales, turn)


def shifted(cameras: Cameras, columns: float, rows: float, size: tuple[int, int]) -> Cameras:
    """Cameras whose pictures lie that many pixels further right and down."""
    intrinsics = cameras.intrinsics.clone()
    intrinsics[:, 0, 2] += columns / size[1]
    intrinsics[:, 1, 2] += rows / size[0]
    return replace(cameras, intrinsics=intrinsics)


def _centres(alpha: Tensor) -> Tensor:
    """(V, 2) mean column and row of pictures (V, 1, H, W), each pixel as heavy as its alpha; NaN for an empty one."""
    height, width = alpha.shape[-2:]
    columns, rows = torch.arange(width) + 0.5, torch.arange(height) + 0.5
    total = alpha[:, 0].sum(dim=(1, 2))
    return torch.stack([(alpha[:, 0] * along).sum(dim=(1, 2)) / total for along in (columns, rows[:, None])], dim=-1)


@dataclass
class Bench:
    """One subject, its scorer, and the Gaussians on its surface."""

    subject: Subject
    settings: Sweep
    perceptual: PerceptualMetrics

    def __post_init__(self) -> None:
        size = self.settings.image_size
        tests = self.subject.tests.resized(size, size)
        self.scorer = Scorer(tests, self.subject.points.double().numpy(), self.settings, self.perceptual)
        self.discs = discs(self.subject, size)

    def seen(self, gaussians: Gaussians, cameras: Cameras | None = None) -> Rendering:
        """Gaussians at the test cameras, or as pictures of other cameras would show them."""
        cameras = cameras or self.scorer.cameras

        def look(_: Cameras, height: int, width: int) -> Rendering:
            return render(gaussians, cameras, height, width, background=BACKGROUND)

        return self.scorer.rendering(Reconstruction(look))

    def scores(self, gaussians: Gaussians, cameras: Cameras | None = None) -> Scores:
        return self.scorer.score_pictures(self.seen(gaussians, cameras))

    def offset(self, cameras: Cameras | None = None) -> tuple[float, float]:
        """Columns and rows by which the masks of the truth's Gaussians lie off the true ones, the mean over views of the
        distance of their centres. That a mask is larger all around changes nothing."""
        apart = _centres(self.seen(self.discs, cameras).alpha) - _centres(self.scorer.test_views.alpha)
        columns, rows = apart.nanmean(dim=0).tolist()
        return columns, rows

    def truth(self) -> Scores:
        """Scores of the true pictures."""
        views = self.scorer.test_views
        assert views.depth is not None
        depth = views.depth

        def look(cameras: Cameras, height: int, width: int) -> Rendering:
            return Rendering(views.composited(BACKGROUND), views.alpha, depth)

        return self.scorer.score_pictures(self.scorer.rendering(Reconstruction(look)))


def _number(scores: Scores, name: str) -> float:
    value = scores[name]
    if value is None:
        raise BadInput("no_truth", name, "cannot be measured on this object", "choose another data set")
    return value


def truth_checks(bench: Bench) -> Iterator[Check]:
    """The truth as prediction, and nothing as prediction."""
    truth = bench.truth()
    for name, best in (("psnr", PSNR_MAX), ("psnr_pooled", PSNR_MAX), ("psnr_foreground", PSNR_MAX), ("ssim", 1.0)):
        yield Check(f"truth as prediction: {name}", _number(truth, name), low=best - 1e-4)
    # where a pixel holds a surface that its centre misses, alpha and depth of a picture disagree
    yield Check("truth as prediction: mask_iou", _number(truth, "mask_iou"), low=1.0)
    yield Check("truth as prediction: depth_error", _number(truth, "depth_error"), high=0.0)
    for net in bench.perceptual.networks:
        yield Check(f"truth as prediction: lpips_{net}", _number(truth, f"lpips_{net}"), high=1e-5)
    nothing = bench.scorer.nothing
    for name in ("psnr", "psnr_foreground", "ssim"):
        yield Check(f"all white: {name}, what every method must beat", _number(nothing, name))
    yield Check(
        "all white: psnr below that of the truth's Gaussians",
        _number(nothing, "psnr"),
        high=_number(bench.scores(bench.discs), "psnr"),
    )
    yield Check("empty: mask_iou", _number(nothing, "mask_iou"), high=0.0)
    yield Check("empty: depth_error", _number(nothing, "depth_error"), DEPTH_MISSING - 1e-6, DEPTH_MISSING + 1e-6)
    yield Check("empty: cd_sum", _number(nothing, "cd_sum"), 2 * BOX_DIAGONAL, 2 * BOX_DIAGONAL)
    yield Check("empty: fscore_0.2", _number(nothing, "fscore_0.2"), high=0.0)


def geometry_checks(bench: Bench) -> Iterator[Check]:
    """True points as prediction: as they are, shifted, scaled."""
    truth, floor = bench.scorer.surfaces[""], bench.scorer.floor
    assert floor is not None
    points = bench.subject.points.double().numpy()
    other = seeded_draw(points, 2, POINTS)
    yield Check(f"truth against truth, {floor['points']} points each: cd_sum, the floor", floor["cd_sum"], high=0.08)
    for name in ("fscore_0.2", "fscore_0.1", "fscore_0.05"):
        yield Check(f"truth against truth: {name}", floor[name], low=0.9 if name == "fscore_0.05" else 0.9999)
    step = np.array([SHIFT / truth.scale, 0.0, 0.0])
    moved = surface_scores(other + step, truth)["cd_sum"]
    yield Check(f"shifted by {SHIFT}: cd_sum", moved, low=0.2 * SHIFT, high=2 * SHIFT + floor["cd_sum"])
    unmoved = surface_scores(other, truth)["cd_sum"]
    yield Check(f"shifted by {SHIFT}: cd_sum above that of the unmoved", moved - unmoved, low=0.1 * SHIFT)
    grown = (other - truth.centre) * SCALE + truth.centre
    scaled = surface_scores(grown, truth)["cd_sum"]
    yield Check(f"scaled by {SCALE}: cd_sum above that of the unscaled", scaled - unmoved, low=0.02)
    own = TrueSurface.from_points(grown, SEED, len(grown))
    yield Check(
        f"scaled by {SCALE}: cd_sum if its own box were used, as that of the unscaled",
        surface_scores(own.points / truth.scale + truth.centre, truth)["cd_sum"] - unmoved,
        -0.02,
        0.02,
    )


def gaussian_checks(bench: Bench) -> Iterator[Check]:
    """Gaussians on the true surface through renderer and mesh converter: the floor of every row of Gaussians."""
    scores, pixel = bench.scores(bench.discs), pixel_side(bench.scorer.cameras, bench.settings.image_size)
    for name in ("psnr", "psnr_foreground", "ssim"):
        yield Check(f"Gaussians on the true surface: {name}", _number(scores, name))
    yield Check("Gaussians on the true surface: mask_iou", _number(scores, "mask_iou"), low=0.85)
    yield Check("Gaussians on the true surface: depth_error", _number(scores, "depth_error"), high=2 * pixel)
    for name, value in zip(("columns", "rows"), bench.offset(), strict=True):
        yield Check(f"Gaussians on the true surface: {name} that their masks are off", value, -MOST_OFF, MOST_OFF)
    mesh = bench.scorer.mesh(bench.discs)
    assert mesh is not None
    geometry = bench.scorer.score_mesh(mesh)
    floor, voxel = bench.scorer.floor, bench.scorer.surfaces[""].scale / bench.settings.mesh.resolution
    assert floor is not None
    for name, value in geometry.items():
        if name.startswith("cd_sum"):
            yield Check(
                f"Gaussians on the true surface, through the converter: {name}", value, high=floor["cd_sum"] + 3 * voxel
            )
        elif name.startswith("fscore"):
            yield Check(f"Gaussians on the true surface, through the converter: {name}", value)


def planted_checks(bench: Bench) -> Iterator[Check]:
    """Errors that are planted in a lopsided object: each is seen."""
    truth, size = bench.scores(bench.discs), bench.scorer.test_views.size
    foreground = _number(truth, "psnr_foreground")
    for columns, rows in HALF_PIXELS:
        cameras, name = (
            shifted(bench.scorer.cameras, columns, rows, size),
            f"half a pixel planted ({columns:+g}, {rows:+g})",
        )
        yield Check(f"{name}: pixels seen", max(map(abs, bench.offset(cameras))), low=MOST_OFF)
        lost = _number(truth, "psnr") - _number(bench.scores(bench.discs, cameras), "psnr")
        yield Check(f"{name}: dB of PSNR lost", lost, low=0.1)
    for axis, name in enumerate(AXES):
        means, turns = bench.discs.means.clone(), bench.discs.quaternions.clone()
        means[:, axis] *= -1
        turns[:, 1:] *= -1
        turns[:, 1 + axis] *= -1  # the mirror image of a disc's turn
        flipped = _number(bench.scores(replace(bench.discs, means=means, quaternions=turns)), "psnr_foreground")
        yield Check(f"world {name} flipped: dB lost", foreground - flipped, low=1.0)
    cameras = bench.scorer.cameras
    wrong: dict[str, Callable[[Tensor], Tensor]] = {
        "OpenGL cameras taken for OpenCV": lambda pose: pose @ OPENCV_TO_BLENDER,
        "y up taken for z up": lambda pose: (
            pose.new_tensor([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]) @ pose
        ),
        "world-to-camera taken for camera-to-world": lambda pose: torch.linalg.inv(pose),
    }
    for name, change in wrong.items():
        lost = foreground - _number(
            bench.scores(bench.discs, replace(cameras, camera_to_world=change(cameras.camera_to_world))),
            "psnr_foreground",
        )
        yield Check(f"{name}: dB lost", lost, low=1.0)
    seen = bench.seen(bench.discs)
    _, directions = cameras.rays(*bench.scorer.test_views.size)
    along_ray = replace(seen, depth=seen.depth * directions.norm(dim=-1))
    planar = _number(bench.scorer.score_pictures(seen), "depth_error")
    lost = _number(bench.scorer.score_pictures(along_ray), "depth_error") - planar
    yield Check("distance along the ray taken for planar depth: added depth_error", lost, low=0.001)


def run(subject: Subject, settings: Sweep, perceptual: PerceptualMetrics, planted: bool = True) -> list[Check]:
    """The checks of one subject; `planted` errors need a lopsided one, since a plate that is turned is the same plate."""
    bench = Bench(subject, settings, perceptual)
    parts = (truth_checks, geometry_checks, gaussian_checks) + ((planted_checks,) if planted else ())
    return [check for part in parts for check in part(bench)]


def main(
    params: Path = Path("params.yaml"),
    dataset: str | None = None,
    objects: int = 1,
    datasets: Path = Path("datasets"),
    weights: Path | None = None,
    output: Path | None = None,
) -> int:
    """Measure the harness on itself, at the sizes of the section `sweep` of the params file.

    Args:
        params: the params file.
        dataset: a sharded data set to take objects from, beside the made-up one in which errors are planted.
        objects: how many of its objects, the first of the split.
        datasets: folder of the data sets.
        weights: file or folder of the LPIPS backbones.
        output: JSON file to write the numbers to.
    """
    parsed = load_params(params)
    settings = parsed.sweep
    protocol.check_page()
    perceptual = load_perceptual("auto", weights)
    named = [("made up", made_up(settings.image_size, settings.full_geometry))]
    if dataset is not None:
        named += [(dataset, one) for one in stored(datasets / dataset / parsed.preset, settings.split, objects)]
    found: dict[str, list[Check]] = {}
    for source, subject in named:
        name = f"{source}: {subject.key}"
        found[name] = run(subject, settings, perceptual, planted=source == "made up")
        print(f"\n{name}", *found[name], sep="\n", flush=True)
    failed = [f"{key}: {check.name}" for key, checks in found.items() for check in checks if not check.passed]
    if output is not None:
        values = {key: {check.name: check.value for check in checks} for key, checks in found.items()}
        record = {"format": "geolrm-selftest-1", "failed": failed, "values": values}
        facts = {"protocol_hash": protocol.protocol_hash(), "deviations": protocol.deviations(settings)}
        write_whole(output, json.dumps(record | {"passport": passport(**facts)}, indent=1) + "\n")
    print(f"\n{sum(map(len, found.values()))} checks, {len(failed)} failed", *failed, sep="\n!!! ")
    return int(bool(failed))


if __name__ == "__main__":
    import tyro

    try:
        sys.exit(tyro.cli(main))
    except BadInput as error:
        sys.exit(f"error: {error}")
