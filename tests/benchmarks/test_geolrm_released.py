"""The public code's GeoLRM as a method: found where its weights are, refused by name where they are not."""

import pytest
import torch
from test_sweep_views import BallSample

from benchmarks.methods import Context, geolrm_released, sources
from benchmarks.published import UNTRAINED
from geolrm.failures import BadInput
from geolrm.files import sha256_of
from geolrm.model.geolrm import GeoLRM
from geolrm.model.proposal import ProposalNetwork
from geolrm.model.reconstruction import ReconstructionNetwork
from geolrm.model.released import released_proposal, released_reconstruction


@pytest.fixture
def model(tiny_params) -> GeoLRM:
    torch.manual_seed(0)
    proposal = ProposalNetwork(released_proposal(tiny_params.proposal), pretrained=False)
    return GeoLRM(
        proposal, ReconstructionNetwork(released_reconstruction(tiny_params.reconstruction), pretrained=False)
    ).eval()


def test_the_converted_file_comes_before_the_published_one_and_its_hash_is_the_rows(
    model, tiny_params, tmp_path, monkeypatch
):
    monkeypatch.setenv("GEOLRM_BASELINE_WEIGHTS", str(tmp_path))
    context = Context(tiny_params, tmp_path, torch.device("cpu"), lambda key, count: None)
    with pytest.raises(BadInput, match=r"geolrm\.ckpt.*GEOLRM_BASELINE_WEIGHTS"):
        geolrm_released.load(context)
    read = []
    monkeypatch.setattr(geolrm_released, "load_released_checkpoint", lambda file: read.append(file) or model)
    for name in ("geolrm.ckpt", "geolrm.safetensors"):
        (tmp_path / name).write_text(name)
        made = geolrm_released.load(context)
        assert made.checkpoint == sha256_of(tmp_path / name)
    assert [file.name for file in read] == ["geolrm.ckpt", "geolrm.safetensors"]
    assert made.precision == "float32"


def test_it_computes_what_the_released_mode_does(model):
    inputs = BallSample("test-0").views([0, 6, 12, 18]).resized(42, 42)
    with torch.no_grad():
        made = geolrm_released.method(model, "c", 64).reconstruct(inputs)
        expected = model.reconstruct(inputs, 64, "fp32")
    assert len(made) == len(expected) > 0
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(made.tensors, expected.tensors, strict=True))


def test_rows_know_its_code():
    assert {"geolrm_released.py", "planted.py", "published.py", "stages.py"} == {
        file.name for file in sources("geolrm_released")
    }


def test_random_weights_are_offered_for_costs_alone_and_propose_a_sphere(tiny_params, tmp_path, monkeypatch):
    monkeypatch.setattr(geolrm_released, "PUBLISHED_PROPOSAL", released_proposal(tiny_params.proposal))
    monkeypatch.setattr(
        geolrm_released, "PUBLISHED_RECONSTRUCTION", released_reconstruction(tiny_params.reconstruction)
    )
    made = geolrm_released.untrained(Context(tiny_params, tmp_path, torch.device("cpu"), lambda key, count: None))
    assert made.checkpoint == UNTRAINED
    gaussians = made.reconstruct(BallSample("test-0").views([0, 6, 12, 18]).resized(42, 42))
    assert len(gaussians) >= tiny_params.reconstruction.gaussians_per_token
