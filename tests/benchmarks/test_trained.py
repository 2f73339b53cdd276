"""Claims about the page of a trained preset: its verdicts are what the rows say, and it says what is not there yet."""

import json
from pathlib import Path

import pytest
import torch
from small_networks import PROPOSAL, RECONSTRUCTION
from synthetic_results import row, write_lines, write_results
from tiny_training import KnownOccupancy

from benchmarks import trained
from benchmarks.occupancy import judge
from benchmarks.splits import SCANS, SCANS_TEST, SCANS_VAL, split_list
from geolrm import pretrained
from geolrm.data.loader import ShardDataset
from geolrm.failures import BadInput
from geolrm.model.proposal import ProposalNetwork
from geolrm.model.reconstruction import ReconstructionNetwork
from geolrm.training.checkpoint import save_checkpoint

ROOT = Path(__file__).parents[2]
PSNR = {4: 25.0, 6: 26.0, 8: 28.0, 12: 29.0, 16: 29.5, 20: 31.5}  # of geolrm, dB: 24.5, 27 and 29 are asked
BELOW = {
    "gaussian_fitting": 2.5,
    "visual_hull": 8.0,
    "white": 15.0,
}  # dB under geolrm at every count; 3 asked at 4, 2 at 8
SCAN_KEYS = {name: [k for part in (SCANS_VAL, SCANS_TEST) for k in split_list(name, part) or []] for name in SCANS}
BAD = "box_003"  # a test scan, 1 dB below the others


def made_row(method: str, dataset: str, key: str, views: int, **values: object) -> dict:
    psnr = PSNR[views] - BELOW.get(method, 0.0) - (1.0 if key == BAD else 0.0)
    values = {"psnr": psnr, "psnr_foreground": psnr - 3, "fscore_0.1": 0.9} | values
    return row("geolrm", "test-00001", views, dataset, "mesh") | {"method": method, "object": key, **values}


def sweep(results: Path, scans: dict[str, list[str]] = SCAN_KEYS, made_up: int = 64, **values: object) -> None:
    methods = ("geolrm", *BELOW)
    keys = scans | {"procedural": [f"test-{i:05d}" for i in range(made_up)]}
    for dataset, own in keys.items():
        rows = [made_row(m, dataset, k, v, **values) for m in methods for k in own for v in PSNR]
        write_lines(results / "sweep" / dataset / "rows.jsonl", rows)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = write_results(tmp_path / "results" / "small")
    sweep(folder, made_up=5)
    return folder


def verdicts(results: Path) -> dict[str, list[str]]:
    return {line[0]: line[1:] for line in trained.claims(trained.collect(results)["groups"])}


def test_the_verdict_of_a_claim_is_what_its_rows_say(results: Path) -> None:
    found = verdicts(results)
    mean, worst, said = found["test scans, 4 views: PSNR of at least 24.5 dB (aim: 27)"]
    assert mean.startswith("24.80")  # four of five at 25.0, one at 24.0
    assert (worst, said) == (f"24.00 ({BAD})", "held in the mean, missed by 1 of 5 objects")
    assert found["test scans, 8 views: PSNR of at least 27 dB (aim: 29)"][2] == "held by the mean and by each object"
    assert (
        found["test scans, 20 views: PSNR of at least 29 dB (aim: 31)"][2]
        == "aim reached by the mean and by each object"
    )
    assert found["all ten scans, 4 views: PSNR of at least 24.5 dB (aim: 27)"][0].startswith("24.90")
    assert found["test scans, 4 views: PSNR above `gaussian_fitting` by at least 3 dB"][2] == "missed"
    assert found["test scans, 8 views: PSNR above `gaussian_fitting` by at least 2 dB"][0].startswith("+2.50")
    assert found["test scans, 12 views: PSNR above `visual_hull`"][2] == "held by the mean and by each object"
    assert found["test scans, 8 views: F-score at 0.1 of at least 0.85"][2] == "held by the mean and by each object"


def test_a_rise_holds_where_its_interval_is_above_zero_and_says_on_how_many_objects(results: Path) -> None:
    rises = {name: line[2] for name, line in verdicts(results).items() if "rises" in name}
    assert len(rises) == 3
    assert set(rises.values()) == {"holds, on 5 objects of 64"}
    sweep(results, psnr=20.0)
    rises = {name: line[2] for name, line in verdicts(results).items() if "rises" in name}
    assert set(rises.values()) == {"fails"}


def test_what_was_not_swept_is_not_measured(results: Path) -> None:
    for dataset in SCANS:
        file = results / "sweep" / dataset / "rows.jsonl"
        kept = [line for line in file.read_text().splitlines(keepends=True) if "gaussian_fitting" not in line]
        file.write_text("".join(kept))
    found = verdicts(results)
    assert found["test scans, 4 views: PSNR above `gaussian_fitting` by at least 3 dB"] == ["–", "–", "not measured"]


def test_a_mean_over_some_of_the_scans_is_refused(results: Path) -> None:
    sweep(results, scans=SCAN_KEYS | {"gso": ["plate", "white_bowl"]})
    with pytest.raises(BadInput, match=r"scans_incomplete"):
        trained.collect(results)


def test_a_training_that_did_not_end_is_refused(results: Path) -> None:
    (results / "proposal" / "checkpoint.json").unlink()
    with pytest.raises(BadInput, match="training_missing"):
        trained.collect(results)


def test_the_cost_of_float16_is_the_largest_difference_of_any_row(results: Path) -> None:
    assert trained.collect(results)["float16"] is None
    file = results / "sweep" / "gso" / "rows.jsonl"
    halved = [made_row("geolrm_small", "gso", "plate", v, psnr=PSNR[v] + 0.01 * v) for v in PSNR]
    file.write_text(file.read_text() + "".join(json.dumps(one) + "\n" for one in halved))
    cost = trained.collect(results)["float16"]
    assert (cost["rows"], cost["object"], cost["views"]) == (6, "plate", 20)
    assert cost["largest_db"] == pytest.approx(0.2)


def test_occupancy_stands_beside_by_view_count(results: Path) -> None:
    records = [
        {"dataset": d, "object": k, "views": v, "iou": v / 100, "precision": 0.5, "recall": 0.75}
        for d, keys in SCAN_KEYS.items()
        for k in keys
        for v in (4, 8)
    ]
    for dataset in SCANS:
        own = [record for record in records if record["dataset"] == dataset]
        write_lines(results / "sweep" / dataset / "occupancy.jsonl", own)
    found = trained.collect(results)
    assert found["occupancy"]["test scans"]["8"]["iou"]["mean"] == pytest.approx(0.08)
    assert "| intersection over union | 0.040 [0.040, 0.040] | 0.080 [0.080, 0.080] |" in page_of(results)


def page_of(results: Path) -> str:
    config = {"optimisation": {"batch": 4, "accumulate": 1, "seed": 7}}
    for stage in trained.STAGES:
        side = results / stage / "checkpoint.json"
        side.write_text(json.dumps(json.loads(side.read_text()) | {"config": config, "carried": [100, 200]}))
    out = results.parent / "page"
    trained.write(trained.Arguments(results=results, out=out, card=results / "no card.md"))
    trained.write(trained.Arguments(out=out, card=results / "no card.md", check=True))
    return (out / "small.md").read_text()


def test_one_command_makes_the_page_with_its_pictures_and_says_if_it_is_stale(results: Path) -> None:
    text = page_of(results)
    out = results.parent / "page"
    for name in ("small-views.svg", "small-training.svg", "small-proposal.png", "small-reconstruction.png"):
        assert f"]({name})" in text
        assert (out / name).stat().st_size > 100
    assert "| proposal | 300 | 4 | 0.02 | 4.00 |" in text  # 300 steps of a quarter of a second
    assert "| 4.00 % |" in text  # 0.01 s of 0.25 s
    assert "100, 200" in text
    before = (out / "small-training.svg").read_bytes()
    trained.draw_charts(trained.training_rows(results), out / "again.svg")
    assert (out / "again.svg").read_bytes() == before
    (out / "small.md").write_text(text.replace("24.80", "24.81"))
    with pytest.raises(BadInput, match="page_stale"):
        trained.write(trained.Arguments(out=out, card=results / "no card.md", check=True))


def test_the_card_has_the_numbers_of_the_weights_beside_it_and_of_no_others(results: Path, tmp_path: Path) -> None:
    networks = {"proposal": ProposalNetwork(PROPOSAL), "reconstruction": ReconstructionNetwork(RECONSTRUCTION)}
    made = tmp_path / "made"
    for stage, network in networks.items():
        save_checkpoint(made / stage, stage, network, network.settings, {})
    card = tmp_path / "small.md"
    pretrained.publish(made, tmp_path / "small")
    with pytest.raises(BadInput, match="weights_differ"):
        trained.card_numbers("small", trained.collect(results), card)
    for stage in networks:
        side = results / stage / "checkpoint.json"
        side.write_text((made / stage / "checkpoint.json").read_text())
    text = trained.card_numbers("small", trained.collect(results), card)
    for stage, network in networks.items():
        described = pretrained.describe(tmp_path / "small", stage)
        count = sum(tensor.numel() for tensor in network.state_dict().values())
        assert f"| {stage} | {count:,} | {described.size:,} | `{described.sha256}` |" in text
    assert "| `geolrm` | 24.80 [24.40, 25.00] |" in text


def test_before_training_page_and_card_say_so(tmp_path: Path) -> None:
    assert trained.NOT_YET in trained.page("small", None, tmp_path)
    assert trained.card_numbers("small", None, tmp_path / "small.md") == trained.NOT_YET


def test_the_committed_page_and_card_are_what_the_committed_numbers_say() -> None:
    results = ROOT / "docs" / "results"
    card = ROOT / "geolrm" / "pretrained" / "small.md"
    for path, text in trained.texts("small", results / "small.json", results / "small.md", card).items():
        assert path.read_text() == text


def test_a_network_that_knows_the_answer_has_every_voxel(tiny_dataset: Path) -> None:
    data = ShardDataset(tiny_dataset / "datasets" / "procedural" / "tiny", "test")
    key = data.keys[0]
    truth = data.sample(key).occupancy
    found = judge(KnownOccupancy(truth[None]), data, [key], [1, 4], torch.device("cpu"))
    assert [(one["views"], one["iou"], one["precision"], one["recall"]) for one in found] == [
        (1, 1, 1, 1),
        (4, 1, 1, 1),
    ]
    half = truth.clone()
    half[: truth.shape[0] // 2] = False
    (one,) = judge(KnownOccupancy(half[None]), data, [key], [4], torch.device("cpu"))
    assert (one["precision"], one["voxels"]) == (1, int(half.sum()))
    assert one["recall"] == pytest.approx(half.sum().item() / truth.sum().item())
