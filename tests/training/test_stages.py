"""Claims about the two stages: which views they draw, where anchors come from, how they are judged, and that they learn."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_training import STAGES, KnownOccupancy, changed, make_stage, samples

from geolrm.config import Params, parse_params
from geolrm.failures import BadInput
from geolrm.model.reconstruction import ReconstructionNetwork
from geolrm.training.loop import make_optimiser
from geolrm.training.stages import (
    VALIDATION_INPUTS,
    ReconstructionStage,
    draw_views,
    input_count,
    occupancy_scores,
    validation_targets,
)


def poses(views) -> list[tuple[float, ...]]:  # type: ignore[no-untyped-def]
    return [tuple(pose.flatten().tolist()) for pose in views.cameras.camera_to_world]


# --- views -----------------------------------------------------------------------------------------------------------


def test_the_drawn_views_are_a_function_of_seed_epoch_and_key_alone(tiny_params: Params, tiny_dataset: Path) -> None:
    first, second, _ = samples(tiny_dataset, "train")
    o = tiny_params.proposal.optimisation
    expected = poses(draw_views(first, o, epoch=3).views)
    torch.manual_seed(1234)  # nothing else that is random takes part
    draw_views(second, o, epoch=0)
    assert poses(draw_views(first, o, epoch=3).views) == expected
    assert poses(draw_views(first, o, epoch=4).views) != expected
    assert poses(draw_views(first, o.model_copy(update={"seed": 1}), epoch=3).views) != expected
    assert poses(draw_views(replace(first, key="another"), o, epoch=3).views) != expected


def test_no_view_is_drawn_twice_so_no_target_is_an_input(tiny_params: Params, tiny_dataset: Path) -> None:
    o = tiny_params.proposal.optimisation
    for sample in samples(tiny_dataset, "train"):
        tests = {tuple(pose.flatten().tolist()) for pose in sample.test_cameras.camera_to_world}  # type: ignore[union-attr]
        for epoch in range(4):
            drawn = poses(draw_views(sample, o, epoch).views)
            assert len(drawn) == o.views
            assert len(set(drawn)) == o.views
            assert not set(drawn) & tests


def test_every_view_is_drawn_sooner_or_later(tiny_params: Params, tiny_dataset: Path) -> None:
    sample = samples(tiny_dataset, "train")[0]
    o = tiny_params.proposal.optimisation
    seen = {pose for epoch in range(60) for pose in poses(draw_views(sample, o, epoch).views)}
    assert len(seen) == len(sample.roles)


def test_views_are_drawn_at_the_training_size(tiny_params: Params, tiny_dataset: Path) -> None:
    o = changed(tiny_params, "proposal", image_size=28).proposal.optimisation
    assert draw_views(samples(tiny_dataset, "train")[0], o, 0).views.size == (28, 28)


def test_more_views_than_an_object_has_are_bad_input(tiny_params: Params, tiny_dataset: Path) -> None:
    sample = samples(tiny_dataset, "train")[0]
    o = changed(tiny_params, "proposal", views=100).proposal.optimisation
    with pytest.raises(BadInput, match=rf"{sample.key}: 100 views.*too_few_views"):
        draw_views(sample, o, 0)


def test_the_number_of_inputs_covers_its_range_and_depends_on_the_step_alone(tiny_params: Params) -> None:
    o = changed(tiny_params, "proposal", min_inputs=2, max_inputs=5).proposal.optimisation
    counts = [input_count(o, step) for step in range(200)]
    assert set(counts) == {2, 3, 4, 5}
    assert counts == [input_count(o, step) for step in range(200)]
    assert counts != [input_count(o.model_copy(update={"seed": 1}), step) for step in range(200)]


@pytest.mark.parametrize("name", STAGES)
def test_the_first_drawn_views_alone_are_inputs(
    name: str, tiny_params: Params, tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make_stage(tiny_params, name)
    items = [stage.draw(sample, 0) for sample in samples(tiny_dataset, "train")[:2]]
    shown = []
    hook = stage.network.register_forward_pre_hook(lambda _, given: shown.append(given[:2]))
    stage.losses(items, step=5)
    hook.remove()
    images, cameras = shown[0]
    count = input_count(stage.optimisation, 5)
    assert images.shape[:2] == (2, count)
    for image, pose, item in zip(images, cameras.camera_to_world, items, strict=True):
        assert torch.equal(image, item.views[:count].composited(1.0))
        assert torch.equal(pose, item.views.cameras.camera_to_world[:count])


def test_the_second_stage_compares_with_the_other_drawn_views(
    tiny_params: Params, tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make_stage(tiny_params, "reconstruction")
    assert isinstance(stage, ReconstructionStage)
    item = stage.draw(samples(tiny_dataset, "train")[0], 0)
    targets, compare = [], stage._compare
    monkeypatch.setattr(stage, "_compare", lambda g, views: (targets.extend(views), compare(g, views))[1])
    stage.losses([item], step=5)
    count = input_count(stage.optimisation, 5)
    assert poses(targets[0]) == poses(item.views)[count:]
    assert not set(poses(targets[0])) & set(poses(item.views)[:count])


def test_validation_judges_four_fixed_views_that_are_no_inputs(tiny_dataset: Path) -> None:
    sample = samples(tiny_dataset, "val")[0]
    inputs = sample.orbit_inputs(VALIDATION_INPUTS)
    targets = validation_targets(sample, inputs)
    assert len(set(targets)) == 4
    assert not set(targets) & set(inputs)
    assert any(sample.roles[i] != "orbit" for i in targets)


# --- anchors ---------------------------------------------------------------------------------------------------------


def grids(*counts: int, size: int = 16) -> torch.Tensor:
    """Grids whose first so many voxels are occupied."""
    return torch.stack([(torch.arange(size**3) < count).reshape(size, size, size) for count in counts])


def anchors_of(params: Params, root: Path, occupied: torch.Tensor) -> tuple[torch.Tensor, int, list[torch.Tensor]]:
    stage = make_stage(params, "reconstruction", proposal=KnownOccupancy(occupied))
    assert isinstance(stage, ReconstructionStage)
    items = [stage.draw(sample, 0) for sample in samples(root, "train")[: len(occupied)]]
    labels = [item.occupancy for item in items]
    images = torch.stack([item.views[:2].composited(1.0) for item in items])
    return *stage._anchors(images, items[0].views[:2].cameras, labels), labels


def test_the_objects_of_a_batch_share_the_smallest_number_of_anchors(tiny_params: Params, tiny_dataset: Path) -> None:
    anchors, empty, _ = anchors_of(tiny_params, tiny_dataset, grids(50, 20))
    assert anchors.shape == (2, 20, 3)
    assert empty == 0
    many, _, _ = anchors_of(tiny_params, tiny_dataset, grids(500, 400))
    assert many.shape == (2, tiny_params.reconstruction.max_anchors, 3)


def test_an_empty_proposal_falls_back_to_the_label_and_is_counted(tiny_params: Params, tiny_dataset: Path) -> None:
    anchors, empty, labels = anchors_of(tiny_params, tiny_dataset, grids(30, 0))
    assert empty == 1
    assert anchors.shape == (2, 30, 3)
    x, y, z = torch.floor((anchors[1] + 0.5) * 16).long().unbind(-1)
    assert labels[1][x, y, z].all()
    stage = make_stage(tiny_params, "reconstruction", proposal=KnownOccupancy(grids(0, 0)))
    items = [stage.draw(sample, 0) for sample in samples(tiny_dataset, "train")[:2]]
    _, parts = stage.losses(items, 0)
    assert parts["empty_proposals"].item() == 2


def test_the_proposal_stays_as_it_is(tiny_params: Params, tiny_dataset: Path) -> None:
    stage = make_stage(tiny_params, "reconstruction")
    assert isinstance(stage, ReconstructionStage)
    assert not stage.proposal.training
    loss, _ = stage.losses([stage.draw(samples(tiny_dataset, "train")[0], 0)], 0)
    loss.backward()
    assert all(p.grad is None for p in stage.proposal.parameters())
    assert any(p.grad is not None and p.grad.any() for p in stage.network.parameters())


def test_a_perceptual_loss_without_its_network_is_refused(tiny_params: Params) -> None:
    data = tiny_params.model_dump(mode="json")
    data["reconstruction"]["losses"]["lpips"] = 1.0
    params = parse_params(data, "tiny")
    with pytest.raises(ValueError, match=r"losses\.lpips"):
        make_stage(params, "reconstruction")


def test_the_loss_is_the_weighted_sum_of_its_parts(tiny_params: Params, tiny_dataset: Path) -> None:
    data = tiny_params.model_dump(mode="json")
    data["reconstruction"]["losses"] |= {"mse": 2.0, "mask": 0.5, "depth": 0.25, "lpips": 3.0}
    config = parse_params(data, "tiny").reconstruction
    base = make_stage(tiny_params, "reconstruction")
    assert isinstance(base, ReconstructionStage)
    assert isinstance(base.network, ReconstructionNetwork)

    class MeanDifference(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return (a - b).abs().mean()

    stage = ReconstructionStage(base.network, config, base.proposal, MeanDifference())
    loss, parts = stage.losses([stage.draw(samples(tiny_dataset, "train")[0], 0)], 0)
    expected = 2 * parts["mse"] + 0.5 * parts["mask"] + 0.25 * parts["depth"] + 3 * parts["lpips"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STAGES)
def test_bfloat16_is_for_matrix_products_alone(name: str, tiny_params: Params, tiny_dataset: Path) -> None:
    """What leaves the networks, the stream inside and the projections are float32; judging runs in the precision of training."""
    sample = samples(tiny_dataset, "train")[0]
    full = make_stage(tiny_params, name)
    half = make_stage(changed(tiny_params, name, precision="bf16"), name)
    kinds: dict[str, set[torch.dtype]] = {"norm": set(), "linear": set()}
    for module in half.network.transformer.modules():
        kind = "norm" if isinstance(module, torch.nn.RMSNorm) else "linear"
        if isinstance(module, torch.nn.RMSNorm | torch.nn.Linear):
            module.register_forward_hook(lambda _, given, out, kind=kind: kinds[kind].add(out.dtype))
    (exact, _), (near, _) = (stage.losses([stage.draw(sample, 0)], 5) for stage in (full, half))
    assert near.dtype == torch.float32
    assert exact.item() != near.item()
    assert near.item() == pytest.approx(exact.item(), rel=0.02)
    assert kinds["norm"] == {torch.float32}
    assert torch.bfloat16 in kinds["linear"]
    near.backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in half.network.parameters())
    with torch.no_grad():
        judged = [stage.validate(samples(tiny_dataset, "val"))["loss"] for stage in (full, half)]
    assert judged[0] != judged[1]
    assert judged[1] == pytest.approx(judged[0], rel=0.02)


def test_projections_keep_their_bits_under_autocast(tiny_dataset: Path) -> None:
    cameras = samples(tiny_dataset, "train")[0].cameras
    points = torch.rand(50, 3) - 0.5
    expected = cameras.project(points)
    with torch.autocast("cpu", torch.bfloat16):
        found = cameras.project(points)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# --- judging ---------------------------------------------------------------------------------------------------------


def test_overlap_scores_of_known_grids() -> None:
    assert occupancy_scores(grids(60), grids(40)) == pytest.approx({"iou": 40 / 60, "precision": 40 / 60, "recall": 1})
    assert occupancy_scores(grids(10), grids(40)) == pytest.approx({"iou": 0.25, "precision": 1, "recall": 0.25})
    assert occupancy_scores(grids(0), grids(40)) == {"iou": 0, "precision": 0, "recall": 0}


@pytest.mark.parametrize(
    ("name", "metrics"), [("proposal", {"iou", "precision", "recall"}), ("reconstruction", {"psnr"})]
)
def test_validation_is_finite_repeatable_and_names_its_metrics(
    name: str, metrics: set[str], tiny_params: Params, tiny_dataset: Path
) -> None:
    stage = make_stage(tiny_params, name)
    judges = samples(tiny_dataset, "val")
    with torch.no_grad():
        first, second = stage.validate(judges), stage.validate(judges)
    assert first == second
    assert {"loss"} | metrics <= first.keys()
    assert all(math.isfinite(value) for value in first.values())


def test_a_perfect_proposal_is_judged_perfect(tiny_params: Params, tiny_dataset: Path) -> None:
    stage = make_stage(tiny_params, "proposal")
    judges = samples(tiny_dataset, "val")
    stage.network = KnownOccupancy(judges[0].occupancy[None])
    scores = stage.validate(judges)
    assert (scores["iou"], scores["precision"], scores["recall"]) == (1, 1, 1)


@pytest.mark.parametrize("name", STAGES)
def test_pictures_show_truth_and_prediction(name: str, tiny_params: Params, tiny_dataset: Path, tmp_path: Path) -> None:
    stage = make_stage(tiny_params, name)
    with torch.no_grad():
        stage.picture(samples(tiny_dataset, "val")[0], tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == {"proposal": (3 * 16, 2 * 16), "reconstruction": (4 * 42, 3 * 42)}[name]
        if name == "proposal":  # the untrained network proposes nothing: its row is white, the truth's is not
            assert picture.crop((0, 16, 48, 32)).getextrema() == ((255, 255),) * 3
            assert picture.crop((0, 0, 48, 16)).getextrema() != ((255, 255),) * 3


# --- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "steps", "share"), [("proposal", 60, 0.8), ("reconstruction", 40, 0.5)])
def test_one_object_is_learnt(name: str, steps: int, share: float, tiny_params: Params, tiny_dataset: Path) -> None:
    params = changed(tiny_params, name, min_inputs=3, max_inputs=3)
    sample = samples(tiny_dataset, "train")[0]
    stage = make_stage(params, name)
    item = stage.draw(sample, 0)
    optimiser = make_optimiser(stage.network, stage.optimisation)
    for group in optimiser.param_groups:
        group["lr"] = 5e-3
    history = []
    for step in range(steps):
        loss, _ = stage.losses([item], step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(loss.item())
    assert sum(history[-5:]) < share * sum(history[:5]), history[::5]
