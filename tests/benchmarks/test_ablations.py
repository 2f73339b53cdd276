"""Claims about ablations: each changes what it names and nothing else, a run is judged whole, the page says what was run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import RECONSTRUCTION, pictures, rig

from benchmarks import ablations
from benchmarks.ablations import ABLATIONS, GROWTH, INPUTS, Page, Run, merged, new_network, page, run_one, settings_of
from geolrm.config import Params, load_params
from geolrm.failures import BadInput
from geolrm.metrics.perceptual import load_perceptual
from geolrm.model import rope
from geolrm.model.proposal import ProposalNetwork
from geolrm.model.reconstruction import ReconstructionNetwork
from geolrm.training.checkpoint import save_checkpoint
from geolrm.training.loop import make_optimiser
from pipelines.training_data import TrainingData

CPU = torch.device("cpu")
ALTERED = {name for name, ablation in ABLATIONS.items() if ablation.alter is not ablations.untouched}
ANCHORS = torch.rand(1, 30, 3, generator=torch.Generator().manual_seed(0)) - 0.5
SECTION = RECONSTRUCTION.model_copy(
    update={"optimisation": RECONSTRUCTION.optimisation.model_copy(update={"steps": 100, "warmup": 12})}
)


def section_of(name: str) -> Any:
    return settings_of(ABLATIONS[name], SECTION, steps=50, anchors=64)


def network_of(name: str) -> ReconstructionNetwork:
    return new_network(ABLATIONS[name], section_of(name), CPU).eval()


def leaves(data: dict[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in data.items():
        found |= leaves(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": value}
    return found


# --- what is changed ---


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_the_settings_that_it_names_and_no_other(name: str) -> None:
    plain, changed = (leaves(section_of(one).model_dump()) for one in ("full", name))
    differing = {key for key in plain if plain[key] != changed[key]}
    named = leaves(ABLATIONS[name].settings)
    assert plain.keys() == changed.keys()
    assert differing == {key for key in named if named[key] != plain[key]}
    assert differing or name in {"full", "points_2"} | ALTERED
    assert {key: changed[key] for key in named} == named
    assert (plain["optimisation.steps"], plain["optimisation.warmup"], plain["max_anchors"]) == (50, 6, 64)


@pytest.mark.parametrize("name", sorted(ALTERED - {"points_0"}))
def test_what_is_altered_from_outside_starts_from_the_weights_of_the_full_model(name: str) -> None:
    full, altered = network_of("full").state_dict(), network_of(name).state_dict()
    assert full.keys() == altered.keys()
    assert all(torch.equal(full[key], altered[key]) for key in full)


@pytest.mark.parametrize("name", sorted(set(ABLATIONS) - {"full", "fixed_views", "random_subset", "corner_grid"}))
@torch.no_grad()
def test_every_ablation_of_the_network_changes_what_it_makes(name: str) -> None:
    images, cameras = pictures(3), rig(3)
    made = [network_of(one)(images, cameras, ANCHORS)[0] for one in ("full", name)]
    if len(made[0]) == len(made[1]):
        same = [torch.allclose(a, b, atol=1e-7) for a, b in zip(made[0].tensors, made[1].tensors, strict=True)]
        assert not all(same)


@torch.no_grad()
def test_without_pluecker_rays_the_low_level_does_not_know_the_cameras() -> None:
    images, cameras = pictures(3), rig(3)
    other = cameras[:, torch.tensor([1, 2, 0])]
    low, high = network_of("no_pluecker").encoder(images, cameras)
    assert torch.equal(low, network_of("no_pluecker").encoder(images, other)[0])
    assert not torch.equal(low, network_of("no_pluecker").encoder(images.flip(1), cameras)[0])
    full_low, full_high = network_of("full").encoder(images, cameras)
    assert not torch.equal(full_low, network_of("full").encoder(images, other)[0])
    assert torch.equal(high, full_high)


@pytest.mark.parametrize(("name", "silent"), [("no_low_level", 0), ("no_high_level", 1)])
def test_without_a_level_its_map_is_zero_the_other_is_as_before_and_it_does_not_learn(name: str, silent: int) -> None:
    images, cameras = pictures(2), rig(2)
    network = network_of(name)
    maps, full = network.encoder(images, cameras), network_of("full").encoder(images, cameras)
    assert maps[silent].abs().max() == 0
    assert maps[silent].shape == full[silent].shape
    assert torch.equal(maps[1 - silent], full[1 - silent])
    frozen = {key.split(".")[1] for key, p in network.named_parameters() if not p.requires_grad}
    assert frozen == set(ABLATIONS[name].alter.keywords["parts"])  # type: ignore[attr-defined]


@torch.no_grad()
def test_without_rope_scores_do_not_know_where_tokens_are_but_the_tokens_do() -> None:
    layer = network_of("full").transformer.blocks[0].self_attention
    tokens, moved = torch.randn(1, 30, 24), ANCHORS.flip(1)
    for name, knows in (("full", True), ("no_rope", False)):
        transformer = network_of(name).transformer
        turns = [turned(transformer, places) for places in (ANCHORS, moved)]
        outputs = [layer(tokens, turn) for turn in turns]
        assert torch.equal(*outputs) != knows
        assert not torch.equal(transformer.token_input(ANCHORS), transformer.token_input(moved))


def turned(transformer: Any, places: torch.Tensor) -> Any:
    return rope.rotations(places, transformer.head_width, transformer.positions)


def test_with_no_sampling_points_features_are_read_at_the_projection_and_stay_there() -> None:
    network = network_of("points_0")
    attention = network.transformer.blocks[0].cross_attention
    assert attention.points == 1
    optimiser = make_optimiser(network, section_of("points_0").optimisation)
    loss = torch.stack([t.sum() for t in network(pictures(3), rig(3), ANCHORS)[0].tensors]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    assert all(block.cross_attention.offsets.weight.abs().max() == 0 for block in network.transformer.blocks)
    assert all(block.cross_attention.offsets.bias.abs().max() == 0 for block in network.transformer.blocks)
    assert network_of("points_4").transformer.blocks[0].cross_attention.offsets.bias.abs().max() > 0


def test_fixed_views_that_cannot_be_drawn_are_refused() -> None:
    few = SECTION.model_copy(update={"optimisation": SECTION.optimisation.model_copy(update={"views": 6})})
    with pytest.raises(BadInput, match="ablation_views"):
        settings_of(ABLATIONS["fixed_views"], few, 10, 64)


# --- a run ---


@pytest.fixture(scope="module")
def home(tiny_dataset: Path, tiny_params: Params) -> Path:
    """The tiny data set with a proposal network, which proposes everything."""
    torch.manual_seed(0)
    network = ProposalNetwork(tiny_params.proposal)
    torch.nn.init.constant_(network.upsampling.bias, 5.0)
    folder = tiny_dataset / "results" / tiny_params.preset / "proposal"
    save_checkpoint(folder, "proposal", network, tiny_params.proposal, {})
    return tiny_dataset


def test_a_run_is_trained_judged_kept_and_goes_on_when_it_was_stopped(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    monkeypatch.delenv("GEOLRM_LPIPS_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "nothing"))
    params = load_params("params.yaml")
    folder, data = (
        Path("results") / params.preset / "ablations",
        TrainingData.of(params, "procedural", datasets="datasets", cache_gib=0),
    )
    perceptual = load_perceptual("auto")
    assert "stopped" in run_one("no_rope", params, data, perceptual, steps=3, anchors=16, minutes=1e-9)
    Run(("no_rope",), steps=3, anchors=16, minutes=0.0)()
    assert "no_rope: no time left" in capsys.readouterr().out
    assert not (folder / "no_rope" / "scores.json").exists()
    Run(("no_rope", "full"), steps=3, anchors=16)()
    assert capsys.readouterr().out.count("done") == 2
    result = json.loads((folder / "no_rope" / "scores.json").read_text())
    steps = [json.loads(line) for line in (folder / "no_rope" / "steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == [1, 2, 3]
    asked = [(row["inputs"], row["max_anchors"], row["anchors"]) for row in result["rows"]]
    assert asked == [*((inputs, 16, 16) for inputs in INPUTS), (6, 16 * GROWTH, 16 * GROWTH)]
    assert all(0 < row["psnr"] < 60 and row["lpips_vgg"] is None for row in result["rows"])
    (folder / "full" / "scores.json").unlink()  # as if killed before it was judged
    times = (folder / "full" / "checkpoint.json").stat().st_mtime_ns
    Run(("no_rope", "full"), steps=3, anchors=16)()
    out = capsys.readouterr().out
    assert "no_rope: kept" in out
    assert "full: done" in out
    assert (folder / "full" / "checkpoint.json").stat().st_mtime_ns == times
    Page(folder, home / "ablations.md")()
    text = (home / "ablations.md").read_text()
    assert "not run yet" in text
    assert f"| `no_rope` | without 3D RoPE | {result_mean(result):.2f} |" in text


def result_mean(result: dict[str, Any]) -> float:
    rows = [row["psnr"] for row in result["rows"] if (row["inputs"], row["max_anchors"]) == (6, 16)]
    return sum(rows) / len(rows)


def test_an_unknown_ablation_is_named() -> None:
    with pytest.raises(BadInput, match="no_ropes"):
        Run(("no_ropes",))()


# --- the page ---


def planted(name: str, better: float, grown: float) -> dict[str, Any]:
    rows = []
    for number in range(4):
        for inputs, most in (*((n, 100) for n in INPUTS), (6, 400)):
            psnr = 20 + number + better + (grown if most == 400 else 0.0) + (inputs - 6) / 10
            row = {"object": f"val-{number}", "inputs": inputs, "max_anchors": most, "anchors": most, "psnr": psnr}
            rows.append(row | {"ssim": 0.8, "psnr_foreground": 15.0, "lpips_vgg": 0.25, "lpips_alex": None})
    optimisation = {"steps": 7, "batch": 1, "accumulate": 1, "image_size": 64, "seed": 3}
    facts = {"params": {"optimisation": optimisation, "max_anchors": 100}, "ablation": name, "proposal_sha256": "p"}
    about = {"preset": "small", "device": "a GPU", "commit": "c" * 40, "seed": 3}
    return {"format": ablations.FORMAT, "name": name, "facts": facts, "passport": about, "rows": rows}


def test_the_page_holds_planted_means_paired_differences_and_the_papers_numbers() -> None:
    text = page({"full": planted("full", 0.0, 0.5), "no_rope": planted("no_rope", -0.25, 0.1)})
    assert "| `full` | the preset as it is | 21.50 | +0.00 [+0.00, +0.00] | 0.800 | 0.250 | +0.00 | 20.73 |" in text
    assert "| `no_rope` | without 3D RoPE | 21.25 | -0.25 [-0.25, -0.25] | 0.800 | 0.250 | -0.21 | 20.52 |" in text
    assert "| `full` | 21.30 | 21.50 | 21.70 | 22.10 | 19.94 | 21.16 | 22.04 |" in text
    assert "| `no_rope` | +0.10 [+0.10, +0.10] | +0.2 |" in text
    assert "| `points_8` | 8 sampling points | not run yet |" in text
    assert "7 steps at 64 px, 100 anchor points, 4 objects, a GPU" in text


@pytest.mark.parametrize("what", ["steps", "seed", "proposal"])
def test_results_that_cannot_be_compared_are_refused(what: str) -> None:
    other = planted("no_rope", 0.0, 0.0)
    if what == "proposal":
        other["facts"]["proposal_sha256"] = "q"
    else:
        other["facts"]["params"]["optimisation"][what] = 99
    with pytest.raises(BadInput, match="no_rope"):
        page({"full": planted("full", 0.0, 0.0), "no_rope": other})


def test_the_committed_page_is_the_one_that_its_results_give() -> None:
    folder = Path(__file__).parents[2] / "docs" / "results"
    collected = folder / "ablations.json"
    results = json.loads(collected.read_text()) if collected.exists() else {}
    text = (folder / "ablations.md").read_text()
    assert text == page(results)
    assert ("**Not run yet**" in text) == (not results)


def test_nested_settings_are_merged() -> None:
    assert merged({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}}) == {"a": {"b": 1, "c": 4}, "d": 3}
