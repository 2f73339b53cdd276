"""Claims about the weights that come with the package: what was trained is what loads, in half the bytes, or a plain no."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_networks import PROPOSAL, RECONSTRUCTION, pictures, plant, rig

import geolrm
from geolrm import cli, pretrained
from geolrm.failures import BadInput
from geolrm.metrics.image import psnr
from geolrm.model.geolrm import GeoLRM
from geolrm.model.proposal import ProposalNetwork
from geolrm.model.reconstruction import ReconstructionNetwork
from geolrm.rendering import render
from geolrm.training.checkpoint import load_geolrm, save_checkpoint
from geolrm.views import Views

REPOSITORY = Path(__file__).parents[1]


def save_training(folder: Path, **facts: object) -> GeoLRM:
    """Two untrained networks, as training leaves them, whose proposal says yes everywhere."""
    torch.manual_seed(3)
    model = GeoLRM(ProposalNetwork(PROPOSAL), ReconstructionNetwork(RECONSTRUCTION)).eval()
    plant(model, 1.0)
    save_checkpoint(folder / "proposal", "proposal", model.proposal, PROPOSAL, {"steps": 7})
    sha = json.loads((folder / "proposal" / "checkpoint.json").read_text())["sha256"]
    facts = {"steps": 9, "proposal_sha256": sha} | facts
    save_checkpoint(folder / "reconstruction", "reconstruction", model.reconstruction, RECONSTRUCTION, facts)
    return model


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of sets, with the cards of two and the weights of the first, `tiny`."""
    folder = tmp_path / "sets"
    folder.mkdir()
    for name in ("tiny", "absent"):
        (folder / f"{name}.md").write_text("a card\n")
    monkeypatch.setattr(pretrained, "ROOT", folder)
    save_training(tmp_path / "trained")
    pretrained.publish(tmp_path / "trained", folder / "tiny")
    return folder


def refused(name: str) -> BadInput:
    with pytest.raises(BadInput) as caught:
        geolrm.load_pretrained(name)
    return caught.value


def test_a_set_holds_the_trained_weights_rounded_to_half_the_bits(root: Path, tmp_path: Path) -> None:
    trained, _ = load_geolrm(tmp_path / "trained")
    loaded = geolrm.load_pretrained("tiny")
    assert not loaded.training
    assert next(loaded.parameters()).dtype == torch.float32
    mine, theirs = loaded.state_dict(), trained.state_dict()
    assert all(torch.equal(mine[name], tensor.half().float()) for name, tensor in theirs.items())
    for stage in ("proposal", "reconstruction"):
        tensors = load_file(root / "tiny" / stage / "checkpoint.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


def test_loading_needs_no_params_file_and_no_results(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(tmp_path / "trained")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert geolrm.load_pretrained("tiny").reconstruction.settings == RECONSTRUCTION


def test_float16_weights_render_what_the_trained_ones_do(root: Path, tmp_path: Path) -> None:
    views = Views("object", rig(4)[0], pictures(4)[0], torch.ones(4, 1, 42, 42))
    cameras = rig(7)[0]
    sets = (load_geolrm(tmp_path / "trained")[0], geolrm.load_pretrained("tiny"))
    full, half = (render(model.reconstruct(views), cameras, 42, 42, background=1.0).colour for model in sets)
    assert not torch.equal(full, half)
    assert full.std() > 0.02  # there is something to see
    assert psnr(half, full).min() > 45  # dB; some 55 seen


def test_a_set_says_what_it_was_made_from(root: Path, tmp_path: Path) -> None:
    for stage, steps in (("proposal", 7), ("reconstruction", 9)):
        before = json.loads((tmp_path / "trained" / stage / "checkpoint.json").read_text())
        record = json.loads((root / "tiny" / stage / "checkpoint.json").read_text())
        assert (record["trained_sha256"], record["steps"]) == (before["sha256"], steps)
        assert record["config"] == before["config"]
        described = pretrained.describe(root / "tiny", stage)
        assert described.sha256 == record["sha256"] != before["sha256"]
        tensors = load_file(root / "tiny" / stage / "checkpoint.safetensors")
        assert described.parameters == sum(tensor.numel() for tensor in tensors.values())


def test_an_unknown_name_is_told_with_the_nearest_and_all_there_are(root: Path) -> None:
    error = refused("tinny")
    assert error.reason == "pretrained_unknown"
    assert "the nearest is 'tiny'" in str(error)
    assert "there are: absent, tiny" in str(error)


def test_weights_that_are_not_there_say_how_to_get_them(root: Path) -> None:
    error = refused("absent")
    assert error.reason == "checkpoint_missing"
    assert str(root / "absent") in error.where
    assert "git checkout" in error.remedy
    assert "geolrm checkpoint publish" in error.remedy


def test_damaged_weights_are_refused(root: Path) -> None:
    file = root / "tiny" / "reconstruction" / "checkpoint.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    error = refused("tiny")
    assert error.reason == "checkpoint_unreadable"
    assert "git checkout" in error.remedy


def test_weights_over_the_limit_are_refused_and_nothing_is_written(root: Path, tmp_path: Path) -> None:
    size = sum(file.stat().st_size for file in (root / "tiny").rglob("*.safetensors"))
    pretrained.publish(tmp_path / "trained", tmp_path / "fits", limit=size)
    with pytest.raises(BadInput, match="weights_too_large"):
        pretrained.publish(tmp_path / "trained", tmp_path / "large", limit=size - 1)
    assert not (tmp_path / "large").exists()


def test_networks_that_were_not_trained_together_are_no_set(tmp_path: Path) -> None:
    save_training(tmp_path / "trained", proposal_sha256="another")
    with pytest.raises(BadInput, match="another proposal network"):
        pretrained.publish(tmp_path / "trained", tmp_path / "set")


def test_weights_beyond_float16_are_refused_by_name(tmp_path: Path) -> None:
    model = save_training(tmp_path / "trained")
    with torch.no_grad():
        model.proposal.upsampling.bias[0] = 1e5
    save_checkpoint(tmp_path / "trained" / "proposal", "proposal", model.proposal, PROPOSAL, {})
    sha = json.loads((tmp_path / "trained" / "proposal" / "checkpoint.json").read_text())["sha256"]
    facts = {"proposal_sha256": sha}
    save_checkpoint(
        tmp_path / "trained" / "reconstruction", "reconstruction", model.reconstruction, RECONSTRUCTION, facts
    )
    with pytest.raises(BadInput, match=r"weights_overflow") as caught:
        pretrained.publish(tmp_path / "trained", tmp_path / "set")
    assert "upsampling.bias" in str(caught.value)


def test_a_set_is_not_made_from_a_set(root: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="weights_published"):
        pretrained.publish(root / "tiny", tmp_path / "again")


def test_one_command_makes_a_set_and_says_what_it_is(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["geolrm", "checkpoint", "publish", str(tmp_path / "trained"), "absent"])
    assert cli.main() == 0
    said = capsys.readouterr().out
    for stage in pretrained.STAGES:
        network = pretrained.describe(root / "absent", stage)
        assert f"{network.parameters:,} parameters, {network.size:,} bytes, sha256 {network.sha256}" in said
    assert "of at most 22" in said
    assert isinstance(geolrm.load_pretrained("absent"), GeoLRM)


def test_the_limit_is_22_mebibytes() -> None:
    assert pretrained.LIMIT_BYTES == 22 * 1024 * 1024


def test_importing_the_package_alone_loads_no_torch_and_knows_no_other_name() -> None:
    code = "import sys, geolrm; assert 'torch' not in sys.modules; geolrm.load_pretrained; geolrm.load_pretrain"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert "has no attribute 'load_pretrain'" in done.stderr


def test_wheels_carry_the_cards_and_the_sets() -> None:
    import tomllib

    patterns = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "geolrm"
    ]
    package = REPOSITORY / "geolrm"
    carried = {path for pattern in patterns for path in package.glob(pattern)}
    assert {path for path in (package / "pretrained").rglob("*") if path.suffix not in (".py", ".pyc", "")} <= carried
    assert carried
