"""Claims about the training loop: stopped anywhere it goes on to the same bits, and it says what it does."""

import json
import math
import multiprocessing
import os
import re
import shutil
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_training import CLOCKS, FACTS, STAGES, changed, lines, make_stage, run, samples, split, state_bytes

from geolrm.config import Params
from geolrm.training import loop
from geolrm.training.checkpoint import load_model, read_tensors
from geolrm.training.loop import TrainingDiverged, WorkerLost, learning_rate, train

BEFORE_LAST = 5  # of the six steps: where a resume state still lies beside nothing else


@pytest.fixture(scope="module", params=STAGES)
def undisturbed(
    request: pytest.FixtureRequest, tiny_params: Params, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A stage trained to its last but one step without a stop."""
    folder = tmp_path_factory.mktemp(request.param)
    run(make_stage(tiny_params, request.param), tiny_dataset, folder, stop_after=BEFORE_LAST)
    return request.param, folder


@pytest.fixture(scope="module")
def finished(tiny_params: Params, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The proposal stage trained to its end; tests that train on copy it."""
    folder = tmp_path_factory.mktemp("finished")
    run(make_stage(tiny_params, "proposal"), tiny_dataset, folder)
    return folder


# --- going on --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", range(1, BEFORE_LAST))
def test_stopped_after_any_step_weights_moments_and_losses_are_bit_equal(
    undisturbed: tuple[str, Path], stop: int, tiny_params: Params, tiny_dataset: Path, tmp_path: Path
) -> None:
    name, expected = undisturbed
    run(make_stage(tiny_params, name), tiny_dataset, tmp_path, stop_after=stop)
    run(make_stage(tiny_params, name, seed=99), tiny_dataset, tmp_path, stop_after=BEFORE_LAST)
    assert state_bytes(tmp_path) == state_bytes(expected)
    assert lines(tmp_path) == lines(expected)


def test_the_state_holds_two_moments_of_every_weight(undisturbed: tuple[str, Path], tiny_params: Params) -> None:
    name, folder = undisturbed
    count = sum(1 for p in make_stage(tiny_params, name).network.parameters() if p.requires_grad)
    (state,) = (folder / "resume").iterdir()
    moments = read_tensors(state / "optimiser.safetensors")
    assert {key.split(".", 1)[1] for key in moments} == {"step", "exp_avg", "exp_avg_sq"}
    assert len(moments) == 3 * count


def test_lines_after_the_newest_state_are_taken_back(
    undisturbed: tuple[str, Path], tiny_params: Params, tiny_dataset: Path, tmp_path: Path
) -> None:
    name, expected = undisturbed
    run(make_stage(tiny_params, name), tiny_dataset, tmp_path, stop_after=2)
    with (tmp_path / "steps.jsonl").open("a") as file:
        file.write(
            '{"step": 3, "loss": 1e9}\n{"step": 4, "lo'
        )  # steps taken after the state, the last line torn by a kill
    run(make_stage(tiny_params, name), tiny_dataset, tmp_path, stop_after=BEFORE_LAST)
    assert lines(tmp_path) == lines(expected)


def test_a_state_half_written_by_a_killed_run_is_ignored_and_removed(
    undisturbed: tuple[str, Path], tiny_params: Params, tiny_dataset: Path, tmp_path: Path
) -> None:
    name, expected = undisturbed
    run(make_stage(tiny_params, name), tiny_dataset, tmp_path, stop_after=2)
    torn = tmp_path / "resume" / ".step-000004.tmp"
    torn.mkdir()
    (torn / "network.safetensors").write_bytes(b"half")
    run(make_stage(tiny_params, name), tiny_dataset, tmp_path, stop_after=BEFORE_LAST)
    assert state_bytes(tmp_path) == state_bytes(expected)
    assert [path.name for path in (tmp_path / "resume").iterdir()] == [f"step-{BEFORE_LAST:06d}"]


def test_a_state_killed_while_it_was_removed_is_never_taken(
    tiny_params: Params, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed within the removal of a state of other parameters, of a higher number: the next run starts well."""
    run(make_stage(tiny_params, "proposal"), tiny_dataset, tmp_path, stop_after=4, facts={"params": "other"})

    def killed(folder: Path, **_: object) -> None:
        for record in Path(folder).rglob("state.json"):
            record.unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            run(make_stage(tiny_params, "proposal"), tiny_dataset, tmp_path, stop_after=2)
    run(make_stage(tiny_params, "proposal"), tiny_dataset, tmp_path, stop_after=2)
    assert [path.name for path in (tmp_path / "resume").iterdir()] == ["step-000002"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "resume", "steps.jsonl", "system.jsonl"]


@pytest.mark.parametrize(
    "facts", [{"params": "other", "catalog_sha256": "0"}, {"params": "tiny", "catalog_sha256": "1"}]
)
def test_a_state_of_other_parameters_or_data_is_not_used_and_says_so(
    facts: dict[str, str], tiny_params: Params, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(make_stage(tiny_params, "proposal", seed=5), tiny_dataset, tmp_path, stop_after=3, facts=facts)
    capsys.readouterr()
    run(make_stage(tiny_params, "proposal"), tiny_dataset, tmp_path, stop_after=1)
    assert "other parameters or data: starting anew" in "".join(capsys.readouterr())
    assert [line["step"] for line in lines(tmp_path)] == [0, 1]


def test_a_state_left_by_other_parameters_never_continues_another_trainings_lines(
    tiny_params: Params, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters changed and changed back, with a kill between before any state: the lines are of one training."""
    run(make_stage(tiny_params, "proposal"), tiny_dataset, tmp_path / "a", stop_after=4)
    run(make_stage(tiny_params, "proposal"), tiny_dataset, tmp_path / "b", stop_after=3)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_resume_state", lambda *_: None)
        run(
            make_stage(tiny_params, "proposal", 7),
            tiny_dataset,
            tmp_path / "b",
            stop_after=3,
            facts={"params": "other"},
        )
    run(make_stage(tiny_params, "proposal"), tiny_dataset, tmp_path / "b", stop_after=4)
    assert lines(tmp_path / "b") == lines(tmp_path / "a")


def test_a_finished_run_started_again_trains_anew_to_the_same_bytes(
    finished: Path, tiny_params: Params, tiny_dataset: Path, tmp_path: Path
) -> None:
    again = shutil.copytree(finished, tmp_path / "again")
    before = (again / "steps.jsonl").read_text()
    run(make_stage(tiny_params, "proposal"), tiny_dataset, again)
    assert (again / "checkpoint.safetensors").read_bytes() == (finished / "checkpoint.safetensors").read_bytes()
    assert lines(again) == lines(finished)
    assert sorted(path.name for path in again.iterdir()) == [
        "checkpoint.json",
        "checkpoint.safetensors",
        "pictures",
        "steps.jsonl",
        "system.jsonl",
    ]
    assert (again / "steps.jsonl").read_text() != before  # other clocks: the steps were taken again


def test_killed_between_the_last_state_and_the_checkpoint_no_step_is_repeated(
    finished: Path, tiny_params: Params, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            run(make_stage(tiny_params, "proposal"), tiny_dataset, tmp_path)
    before = (tmp_path / "steps.jsonl").read_text()
    run(make_stage(tiny_params, "proposal", seed=3), tiny_dataset, tmp_path)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == (finished / "checkpoint.safetensors").read_bytes()
    assert (tmp_path / "steps.jsonl").read_text() == before


def test_decoding_processes_change_no_bit(
    undisturbed: tuple[str, Path], tiny_params: Params, tiny_dataset: Path, tmp_path: Path
) -> None:
    name, expected = undisturbed
    if name == "reconstruction":
        pytest.skip("the proposal stage shows it")
    stage = make_stage(tiny_params, name)
    data, judges = split(tiny_dataset, "train"), samples(tiny_dataset, "val")
    train(stage, data, judges, tmp_path, FACTS, workers=1, stop_after=BEFORE_LAST)
    assert state_bytes(tmp_path) == state_bytes(expected)


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STAGES)
def test_a_loss_that_is_no_number_stops_with_the_objects_and_keeps_the_last_good_state(
    name: str, tiny_params: Params, tiny_dataset: Path, tmp_path: Path
) -> None:
    params = changed(tiny_params, name, batch=2)
    run(make_stage(params, name), tiny_dataset, tmp_path, stop_after=2)
    good = state_bytes(tmp_path)
    stage = make_stage(params, name)
    original = stage.losses

    def poisoned(items: list, step: int):  # type: ignore[no-untyped-def, type-arg]
        if step == 3:
            with torch.no_grad():
                next(iter(stage.network.parameters())).fill_(math.nan)
        return original(items, step)

    stage.losses = poisoned  # type: ignore[method-assign]
    with pytest.raises(TrainingDiverged) as caught:
        run(stage, tiny_dataset, tmp_path)
    message = str(caught.value)
    assert f"{name}:" in message
    assert "at step 4" in message
    assert message.count("train-0000") == 2
    assert "resume/step-000002" in message
    assert state_bytes(tmp_path) == good
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_a_gradient_that_is_no_number_stops_before_it_reaches_the_weights(
    tiny_params: Params, tiny_dataset: Path, tmp_path: Path
) -> None:
    stage = make_stage(tiny_params, "proposal")
    parameter = next(iter(stage.network.parameters()))
    parameter.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(TrainingDiverged, match=r"gradient norm is nan at step 1 on train-.*no state had been saved"):
        run(stage, tiny_dataset, tmp_path)
    assert all(torch.isfinite(p).all() for p in stage.network.parameters())


def _train_until_a_worker_is_killed(params: Params, dataset: Path, folder: Path, said: Connection) -> None:
    """Torch raises a worker's death wherever the process is, later once more: this process has nothing else to do."""
    multiprocessing.set_start_method("fork", force=True)  # of its data worker, whose draw is the closure below
    torch.set_num_threads(1)  # as in the tests' own process: other sums round otherwise
    stage = make_stage(changed(params, "proposal", checkpoint_every=1), "proposal")
    draw, calls = stage.draw, []

    def killed(sample, epoch):  # type: ignore[no-untyped-def]
        calls.append(sample.key)
        if len(calls) == 11:  # in the worker, of step 6: it decodes up to four steps ahead
            os.kill(os.getpid(), signal.SIGKILL)
        return draw(sample, epoch)

    stage.draw = killed  # type: ignore[method-assign]
    try:
        train(stage, split(dataset, "train"), samples(dataset, "val"), folder, FACTS, workers=1)
    except WorkerLost as lost:
        said.send(str(lost))
    os._exit(0)


def test_a_killed_data_worker_says_so_and_the_next_run_goes_on_to_the_same_bits(
    tiny_params: Params, tiny_dataset: Path, tmp_path: Path
) -> None:
    run(make_stage(tiny_params, "proposal"), tiny_dataset, tmp_path / "undisturbed", stop_after=BEFORE_LAST)
    folder = tmp_path / "killed"
    context = multiprocessing.get_context("spawn")
    hears, says = context.Pipe(duplex=False)
    child = context.Process(target=_train_until_a_worker_is_killed, args=(tiny_params, tiny_dataset, folder, says))
    child.start()
    says.close()  # so that a child that ends without a word is heard
    assert hears.poll(240), "the training said nothing for four minutes"
    heard = hears.recv()
    assert re.search(
        r"a data worker was killed; the last good state is .*step-00000[1-5]: run the command again", heard
    )
    child.join()
    run(make_stage(tiny_params, "proposal", seed=9), tiny_dataset, folder, stop_after=BEFORE_LAST)
    assert lines(folder) == lines(tmp_path / "undisturbed")
    assert state_bytes(folder) == state_bytes(tmp_path / "undisturbed")


def test_out_of_time_it_saves_stops_and_says_how_to_go_on(
    undisturbed: tuple[str, Path],
    tiny_params: Params,
    tiny_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, expected = undisturbed
    data, judges = split(tiny_dataset, "train"), samples(tiny_dataset, "val")
    for piece in range(1, 4):
        train(make_stage(tiny_params, name, seed=piece - 1), data, judges, tmp_path, FACTS, minutes=0.0)
        assert f"the time is up after step {piece} of 6" in "".join(capsys.readouterr())
        assert next(iter(state_bytes(tmp_path))).startswith(f"resume/step-{piece:06d}")
    train(make_stage(tiny_params, name), data, judges, tmp_path, FACTS, minutes=60.0, stop_after=BEFORE_LAST)
    assert state_bytes(tmp_path) == state_bytes(expected)
    assert lines(tmp_path) == lines(expected)


# --- the step --------------------------------------------------------------------------------------------------------


def test_two_batches_of_one_accumulated_give_the_gradients_of_a_batch_of_two(
    tiny_params: Params, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = []
    for number, (batch, accumulate) in enumerate(((2, 1), (1, 2))):
        one_count = {"min_inputs": 3, "max_inputs": 3, "clip": 1e9}
        params = changed(tiny_params, "reconstruction", batch=batch, accumulate=accumulate, **one_count)
        stage = make_stage(params, "reconstruction")
        run(stage, tiny_dataset, tmp_path / str(number), stop_after=1)
        gradients.append({name: p.grad for name, p in stage.network.named_parameters()})
    assert any(g.abs().max() > 1e-4 for g in gradients[0].values() if g is not None)
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-3, atol=1e-6)


def test_the_learning_rate_warms_up_linearly_and_falls_as_a_cosine_to_zero(tiny_params: Params) -> None:
    rate = 1e-3
    o = changed(tiny_params, "proposal", steps=100, warmup=20, learning_rate=rate).proposal.optimisation
    assert learning_rate(0, o) == pytest.approx(rate / 20)
    assert learning_rate(9, o) == pytest.approx(rate / 2)
    assert learning_rate(19, o) == pytest.approx(rate)
    assert learning_rate(20, o) == pytest.approx(rate)
    assert learning_rate(40, o) == pytest.approx(rate * (1 + math.cos(math.pi / 4)) / 2)
    assert learning_rate(60, o) == pytest.approx(rate / 2)
    assert learning_rate(100, o) == pytest.approx(0, abs=1e-12)
    without = changed(tiny_params, "proposal", steps=100, warmup=0, learning_rate=rate).proposal.optimisation
    assert learning_rate(0, without) == pytest.approx(rate)


def test_only_matrices_decay(tiny_params: Params) -> None:
    network = make_stage(tiny_params, "proposal").network
    decaying, others = loop.make_optimiser(network, tiny_params.proposal.optimisation).param_groups
    assert decaying["weight_decay"] == tiny_params.proposal.optimisation.weight_decay
    assert others["weight_decay"] == 0
    assert all(p.ndim >= 2 for p in decaying["params"])
    assert all(p.ndim < 2 for p in others["params"])
    assert len(decaying["params"]) + len(others["params"]) == sum(1 for p in network.parameters() if p.requires_grad)


def test_the_gradient_is_clipped_to_its_norm(tiny_params: Params, tiny_dataset: Path, tmp_path: Path) -> None:
    stage = make_stage(changed(tiny_params, "proposal", clip=0.01), "proposal")
    run(stage, tiny_dataset, tmp_path, stop_after=1)
    norm = torch.stack([p.grad.norm() for p in stage.network.parameters() if p.grad is not None]).norm().item()
    assert norm == pytest.approx(0.01, rel=1e-3)
    assert lines(tmp_path)[-1]["gradient_norm"] > 0.01  # the line tells the norm before clipping


# --- what is written -------------------------------------------------------------------------------------------------


def test_every_step_and_every_validation_has_its_line(
    undisturbed: tuple[str, Path], tiny_params: Params, tiny_dataset: Path
) -> None:
    name, folder = undisturbed
    written = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    steps = [line for line in written if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5]
    parts = {
        "proposal": {"bce", "geometric", "semantic"},
        "reconstruction": {"mse", "mask", "depth", "empty_proposals"},
    }[name]
    promised = {"step", "loss", "learning_rate", "gradient_norm", *CLOCKS} | {f"loss/{part}" for part in parts}
    for line in steps:
        assert promised <= line.keys()
        assert all(math.isfinite(value) for value in line.values())
        assert 0 <= line["data_wait_s"] <= line["step_s"]
        assert line["memory_bytes"] > 1e6
    judged = [line for line in written if "validation/loss" in line]
    assert [line["step"] for line in judged] == [0, 3]
    metrics = {"proposal": {"iou", "precision", "recall"}, "reconstruction": {"psnr"}}[name]
    assert {f"validation/{metric}" for metric in metrics} <= judged[0].keys()


def test_the_untrained_network_and_the_last_step_are_validated_and_every_validation_leaves_its_picture(
    tiny_params: Params, tiny_dataset: Path, tmp_path: Path
) -> None:
    params = changed(tiny_params, "proposal", steps=5, validate_every=2)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "step-000009.png").write_bytes(b"of an earlier, longer run")
    run(make_stage(params, "proposal"), tiny_dataset, tmp_path)
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in pictures] == [f"step-{step:06d}.png" for step in (0, 2, 4, 5)]
    assert [line["step"] for line in lines(tmp_path) if "validation/loss" in line] == [0, 2, 4, 5]
    with Image.open(pictures[0]) as picture:
        assert picture.convert("RGB").getextrema() != ((255, 255),) * 3


def test_a_finished_run_leaves_a_checkpoint_that_says_what_it_was_trained_on(
    finished: Path, tiny_params: Params
) -> None:
    network, record = load_model(finished)
    assert not network.training
    assert record["stage"] == "proposal"
    assert record["steps"] == tiny_params.proposal.optimisation.steps
    assert record["config"] == tiny_params.proposal.model_dump(mode="json")
    assert {"commit", "device", "versions", "seed"} <= record["passport"].keys()
    assert {name: record[name] for name in FACTS} == FACTS
