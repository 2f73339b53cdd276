"""Claims about results that travel: in few small files, nearly what they were, and nothing else is let in."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from tiny_training import FACTS, lines, make_stage, run

from geolrm.config import Params, load_params
from geolrm.failures import BadInput
from geolrm.training import carry
from geolrm.training.carry import compressed, pack, restored, unpack
from geolrm.training.checkpoint import load_model, read_tensors, save_checkpoint, save_resume_state
from geolrm.training.loop import make_optimiser


def state_of(folder: Path) -> Path:
    (state,) = (folder / "resume").iterdir()
    return state


@pytest.fixture(scope="module")
def stopped(tiny_params: Params, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a proposal stage that was stopped after half of its steps."""
    results = tmp_path_factory.mktemp("results")
    run(make_stage(tiny_params, "proposal"), tiny_dataset, results / "proposal", stop_after=3)
    return results


def test_moments_keep_their_size_over_seven_decades_and_none_becomes_zero() -> None:
    random = torch.Generator().manual_seed(0)
    sizes = 10 ** (-7 * torch.rand(30, 101, generator=random))
    signed = sizes.sqrt() * torch.where(torch.rand(sizes.shape, generator=random) < 0.5, -1.0, 1.0)
    moments = {"0.step": torch.tensor(7.0), "0.exp_avg": signed, "0.exp_avg_sq": sizes, "1.exp_avg_sq": torch.zeros(5)}
    found = restored(compressed(moments))
    assert found.keys() == moments.keys()
    assert found["0.step"] == 7
    assert not found["1.exp_avg_sq"].any()
    for name, levels, root in (("0.exp_avg", 127, 2), ("0.exp_avg_sq", 255, 4)):
        share = moments[name].abs() ** (1 / root)  # of a block's largest, which is at most 1
        bound = root * share ** (root - 1) * 0.5 / levels + 3 * root * (0.5 / levels) ** 2
        assert ((found[name] - moments[name]).abs() <= bound).all()
    assert (found["0.exp_avg_sq"] > 0).all()
    tiny = restored(compressed({"0.exp_avg_sq": torch.tensor([1.0, 1e-14])}))["0.exp_avg_sq"]
    assert tiny[1] > 0  # or the next step would be divided by nothing
    nearly = found["0.exp_avg_sq"] / sizes
    assert ((nearly > 0.6) & (nearly < 1.6)).all()


def test_a_training_goes_on_after_the_trip_nearly_as_if_it_had_stayed(
    stopped: Path, tiny_params: Params, tiny_dataset: Path, tmp_path: Path
) -> None:
    parts = pack(stopped, tmp_path / "parts", part_bytes=20_000)
    assert len(parts) > 2
    assert all(path.stat().st_size <= 20_000 for path in parts)
    unpack(tmp_path / "parts", tmp_path / "there")
    before, there = state_of(stopped / "proposal"), state_of(tmp_path / "there/proposal")
    assert (there / "network.safetensors").read_bytes() == (before / "network.safetensors").read_bytes()
    stayed = shutil.copytree(stopped, tmp_path / "stayed")
    for results in (stayed, tmp_path / "there"):
        run(make_stage(tiny_params, "proposal", seed=8), tiny_dataset, results / "proposal")
    one, other = lines(stayed / "proposal"), lines(tmp_path / "there/proposal")
    assert [line["step"] for line in one] == [line["step"] for line in other]
    assert one != other
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, rel=5e-3, abs=1e-3)
    assert load_model(tmp_path / "there/proposal")[1]["carried"] == [3]
    assert "carried" not in load_model(stayed / "proposal")[1]


@pytest.mark.slow
def test_the_preset_small_travels_at_its_largest(tmp_path: Path) -> None:
    """A finished first stage beside a second one in the middle of its training, with drawn moments."""
    params = load_params("presets/small.yaml")
    first, second = make_stage(params, "proposal"), make_stage(params, "reconstruction")
    save_checkpoint(tmp_path / "results/proposal", "proposal", first.network, first.config, FACTS)
    optimiser = make_optimiser(second.network, second.optimisation)
    for parameter in second.network.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimiser.step()
    save_resume_state(tmp_path / "results/reconstruction", 100, second.network, optimiser, FACTS)
    parts = pack(tmp_path / "results", tmp_path / "parts")
    sizes = [path.stat().st_size for path in parts]
    assert max(sizes) <= 16 << 20
    assert sum(sizes) <= 60 << 20
    assert len(sizes) <= 4
    unpack(tmp_path / "parts", tmp_path / "there")
    there = read_tensors(state_of(tmp_path / "there/reconstruction") / "optimiser.safetensors")
    assert there.keys() == read_tensors(state_of(tmp_path / "results/reconstruction") / "optimiser.safetensors").keys()
    load_model(tmp_path / "there/proposal")


def test_what_is_too_large_to_travel_is_refused(stopped: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="carry_too_large"):
        pack(stopped, tmp_path, total_bytes=10_000)


def test_a_missing_part_a_cut_one_and_no_part_are_told_and_leave_nothing(stopped: Path, tmp_path: Path) -> None:
    parts = pack(stopped, tmp_path / "parts", part_bytes=20_000)
    cut = parts[-1].read_bytes()
    for damage in ("cut", "missing", "none"):
        if damage == "cut":
            parts[0].write_bytes(parts[0].read_bytes()[:300])
            for path in parts[1:]:
                path.unlink()
        elif damage == "missing":
            parts[0].unlink()
            parts[-1].write_bytes(cut)
        else:
            parts[-1].unlink()
        with pytest.raises(BadInput, match="carry_nothing" if damage == "none" else "carry_damaged"):
            unpack(tmp_path / "parts", tmp_path / "there")
        assert not (tmp_path / "there").exists() or not list((tmp_path / "there").iterdir())


@pytest.mark.parametrize("name", ["../stowaway", "proposal/../../stowaway", "/stowaway", "elsewhere/file", "proposal"])
def test_a_member_that_is_no_file_of_a_stage_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    with tarfile.open(tmp_path / "parts/part-000", "w") as tar:
        info = tarfile.TarInfo(name)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    with pytest.raises(BadInput, match="is no file of a stage"):
        unpack(tmp_path / "parts", tmp_path / "there")
    assert not list(tmp_path.rglob("stowaway"))


def test_what_is_there_is_not_overwritten(stopped: Path, tmp_path: Path) -> None:
    pack(stopped, tmp_path / "parts")
    unpack(tmp_path / "parts", tmp_path / "there")
    record = json.loads((state_of(tmp_path / "there/proposal") / carry.STATE).read_text())
    assert record["carried"] == [3]
    with pytest.raises(BadInput, match="carry_occupied"):
        unpack(tmp_path / "parts", tmp_path / "there")
