"""The weights of the package as a method: the same model whatever the preset, and a plain row where they are not here."""

from pathlib import Path

import pytest
import torch
from small_networks import PROPOSAL, RECONSTRUCTION, plant
from test_sweep_views import BallSample

from benchmarks.methods import Context, geolrm_small, load_method, sources
from geolrm import pretrained
from geolrm.config import load_params
from geolrm.failures import BadInput
from geolrm.model.geolrm import GeoLRM
from geolrm.model.proposal import ProposalNetwork
from geolrm.model.reconstruction import ReconstructionNetwork
from geolrm.training.checkpoint import save_checkpoint

PRESET = load_params(Path(__file__).parents[2] / "presets" / "smoke.yaml")
TRAINED_AT = PRESET.reconstruction.optimisation.image_size


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A sweep of another preset, without results of its own, beside a tiny set of the name."""
    torch.manual_seed(1)
    model = GeoLRM(ProposalNetwork(PROPOSAL), ReconstructionNetwork(RECONSTRUCTION))
    plant(model, 1.0)
    save_checkpoint(tmp_path / "trained" / "proposal", "proposal", model.proposal, PROPOSAL, {})
    save_checkpoint(tmp_path / "trained" / "reconstruction", "reconstruction", model.reconstruction, RECONSTRUCTION, {})
    monkeypatch.setattr(pretrained, "ROOT", tmp_path / "sets")
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "small.md").write_text("a card\n")
    pretrained.publish(tmp_path / "trained", tmp_path / "sets" / "small")
    params = PRESET.model_copy(update={"sweep": PRESET.sweep.model_copy(update={"max_anchors": 50})})
    return Context(params, tmp_path / "no results", torch.device("cpu"), lambda key, count: None)


def test_it_computes_what_the_set_does_at_the_anchor_points_of_the_sweep(context):
    inputs = BallSample("test-0").views([0, 6, 12, 18]).resized(TRAINED_AT, TRAINED_AT)
    made = load_method("geolrm_small", context)
    expected = pretrained.load_pretrained("small").reconstruct(inputs, 50, "auto")
    found = made.reconstruct(inputs)
    assert len(found) == len(expected) == 50 * RECONSTRUCTION.gaussians_per_token
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found.tensors, expected.tensors, strict=True))
    assert len(made.checkpoint) == 64


def test_it_sees_small_pictures_at_the_size_of_its_training_and_large_ones_as_they_are(context):
    inputs = BallSample("test-0").views([0, 12])
    height, width = inputs.size
    assert geolrm_small.enlarged(inputs, height // 2) is inputs
    assert geolrm_small.enlarged(inputs.resized(10, 20), 30).size == (30, 60)
    made, small = load_method("geolrm_small", context), inputs.resized(TRAINED_AT // 2, TRAINED_AT // 2)
    expected = made.reconstruct(small.resized(TRAINED_AT, TRAINED_AT))
    assert torch.equal(made.reconstruct(small).means, expected.means)


def test_without_the_weights_it_is_refused_with_the_way_to_them(context):
    (pretrained.ROOT / "small" / "proposal" / "checkpoint.json").unlink()
    with pytest.raises(BadInput, match=r"checkpoint_missing[\s\S]*geolrm checkpoint publish"):
        load_method("geolrm_small", context)


def test_rows_know_its_code():
    assert {file.name for file in sources("geolrm_small")} == {"geolrm_small.py", "geolrm.py", "stages.py"}
