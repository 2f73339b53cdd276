"""Claims about weights on disk: what was saved is what is loaded, and whatever does not fit is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import STAGES, changed, make_stage

from geolrm.config import Params, parse_params
from geolrm.failures import BadInput
from geolrm.files import sha256_of
from geolrm.model.geolrm import GeoLRM
from geolrm.training.checkpoint import (
    load_geolrm,
    load_model,
    load_resume_state,
    newest_resume_state,
    save_checkpoint,
    save_resume_state,
)
from geolrm.training.loop import make_optimiser


@pytest.fixture
def saved(tiny_params: Params, tmp_path: Path) -> Path:
    """Folder with the checkpoints of two untrained stages."""
    for name in STAGES:
        stage = make_stage(tiny_params, name)
        save_checkpoint(tmp_path / name, name, stage.network, stage.config, {"steps": 7})
    return tmp_path


def weights(folder: Path) -> Path:
    return folder / "checkpoint.safetensors"


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of a checkpoint, its record's hash with them."""
    tensors = load_file(weights(folder))
    change(tensors)
    save_file(tensors, weights(folder))
    edit_record(folder, sha256=sha256_of(weights(folder)))


def edit_record(folder: Path, **values: object) -> None:
    side = folder / "checkpoint.json"
    side.write_text(json.dumps(json.loads(side.read_text()) | values))


def refused(folder: Path, reason: str) -> str:
    with pytest.raises(BadInput) as caught:
        load_model(folder)
    assert caught.value.reason == reason
    return str(caught.value)


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("by_file", [False, True])
def test_what_was_saved_is_loaded_bit_for_bit_in_eval_mode(
    name: str, by_file: bool, saved: Path, tiny_params: Params
) -> None:
    network, record = load_model(weights(saved / name) if by_file else saved / name)
    expected = make_stage(tiny_params, name).network.state_dict()
    found = network.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert not network.training
    assert (record["stage"], record["steps"]) == (name, 7)


def test_both_stages_load_as_one_model(saved: Path) -> None:
    model, records = load_geolrm(saved)
    assert isinstance(model, GeoLRM)
    assert not model.training
    assert {name: record["stage"] for name, record in records.items()} == {name: name for name in STAGES}


def test_two_checkpoints_of_one_stage_are_no_model(saved: Path) -> None:
    shutil.rmtree(saved / "reconstruction")
    shutil.copytree(saved / "proposal", saved / "reconstruction")
    with pytest.raises(BadInput, match="checkpoint_mismatch"):
        load_geolrm(saved)


def test_a_missing_tensor_is_named(saved: Path) -> None:
    edit_weights(saved / "proposal", lambda tensors: tensors.pop("upsampling.bias"))  # type: ignore[arg-type, return-value]
    assert "missing upsampling.bias" in refused(saved / "proposal", "checkpoint_mismatch")


def test_an_extra_tensor_is_named(saved: Path) -> None:
    edit_weights(saved / "proposal", lambda tensors: tensors.update(stowaway=torch.zeros(1)))
    assert "extra stowaway" in refused(saved / "proposal", "checkpoint_mismatch")


def test_a_checkpoint_of_another_size_is_refused_with_both_shapes(saved: Path, tiny_params: Params) -> None:
    config = json.loads((saved / "proposal" / "checkpoint.json").read_text())["config"]
    config["transformer"]["width"] = 24
    edit_record(saved / "proposal", config=config)
    message = refused(saved / "proposal", "checkpoint_mismatch")
    assert "upsampling.weight is (64, 12), expected (64, 24)" in message
    assert "another size" in message


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_weights_cut_short_are_said_to_be(share: float, saved: Path) -> None:
    file = weights(saved / "proposal")
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    assert "cut short" in refused(saved / "proposal", "checkpoint_unreadable")


def test_weights_of_another_run_are_told_by_their_hash(saved: Path, tiny_params: Params) -> None:
    other = make_stage(tiny_params, "proposal", seed=1).network
    save_file({name: tensor.contiguous() for name, tensor in other.state_dict().items()}, weights(saved / "proposal"))
    assert "hash" in refused(saved / "proposal", "checkpoint_unreadable")


@pytest.mark.parametrize("file", ["checkpoint.json", "checkpoint.safetensors"])
def test_a_missing_file_says_which_and_what_makes_it(file: str, saved: Path) -> None:
    (saved / "proposal" / file).unlink()
    message = refused(saved / "proposal", "checkpoint_missing")
    assert file in message
    assert "dvc repro" in message


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"stage": "third", "sha256": "0", "config": {}}'])
def test_a_record_that_is_none_is_refused(content: str, saved: Path) -> None:
    (saved / "proposal" / "checkpoint.json").write_text(content)
    refused(saved / "proposal", "checkpoint_unreadable")


def test_a_record_whose_configuration_is_none_of_ours_is_refused(saved: Path) -> None:
    edit_record(saved / "proposal", config={"width": 3})
    refused(saved / "proposal", "checkpoint_unreadable")


def test_a_full_disk_leaves_the_checkpoint_before_it(
    saved: Path, tiny_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geolrm import tensors

    before = {path.name: path.read_bytes() for path in (saved / "proposal").iterdir()}

    def full(_: object, path: Path) -> None:
        Path(path).write_bytes(b"as far as it went")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensors, "save_file", full)
    stage = make_stage(tiny_params, "proposal", seed=1)
    with pytest.raises(OSError, match="the disk is full"):
        save_checkpoint(saved / "proposal", "proposal", stage.network, stage.config, {})
    assert {path.name: path.read_bytes() for path in (saved / "proposal").iterdir()} == before
    load_model(saved / "proposal")


def test_a_resume_state_keeps_weights_and_moments(tiny_params: Params, tmp_path: Path) -> None:
    stage = make_stage(tiny_params, "proposal")
    optimiser = make_optimiser(stage.network, stage.optimisation)
    for parameter in stage.network.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimiser.step()
    save_resume_state(tmp_path, 3, stage.network, optimiser, {"params": "tiny"})
    save_resume_state(tmp_path, 12, stage.network, optimiser, {"params": "tiny"})
    newest = newest_resume_state(tmp_path)
    assert newest is not None
    assert (newest[0].name, newest[1]) == ("step-000012", {"step": 12, "params": "tiny"})
    assert len(list((tmp_path / "resume").iterdir())) == 1

    other = make_stage(tiny_params, "proposal", seed=1)
    again = make_optimiser(other.network, other.optimisation)
    load_resume_state(newest[0], other.network, again)
    for one, two in zip(stage.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(one, two)
        if one in optimiser.state:
            assert all(torch.equal(optimiser.state[one][name], again.state[two][name]) for name in optimiser.state[one])
    assert again.state_dict()["param_groups"] == optimiser.state_dict()["param_groups"]


def test_a_state_of_another_size_is_refused(tiny_params: Params, tmp_path: Path) -> None:
    stage = make_stage(tiny_params, "proposal")
    save_resume_state(tmp_path, 1, stage.network, make_optimiser(stage.network, stage.optimisation), {})
    data = changed(tiny_params, "proposal").model_dump(mode="json")
    data["proposal"]["transformer"]["width"] = 24
    other = make_stage(parse_params(data, "tiny"), "proposal")
    with pytest.raises(BadInput, match="expected"):
        load_resume_state(
            tmp_path / "resume" / "step-000001", other.network, make_optimiser(other.network, other.optimisation)
        )
