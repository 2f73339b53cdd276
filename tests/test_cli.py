"""Claims about command lines: every one explains itself, and what is wrong is said in one plain line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from geolrm import cli
from geolrm.config import load_params

REPOSITORY = Path(__file__).parents[1]
SCRIPTS = {
    "pipelines.render_procedural": ["--params", "--workers", "--device"],
    "pipelines.render_meshes": ["--params"],
    "pipelines.shard": ["--dataset", "--params", "--root", "--workers", "--scheduler"],
    "pipelines.train_proposal": ["--params", "--dataset", "--workers"],
    "pipelines.train_reconstruction": ["--params", "--dataset", "--workers"],
    "pipelines.report": ["--params", "--datasets", "--tracking-uri", "--stage-seconds"],
    "benchmarks.sweep_views": ["--params", "--dataset", "--views", "--methods", "--objects", "--lpips", "--weights"],
    "benchmarks.compare_baselines": ["--params", "--results", "--sweeps", "--views", "--output"],
}
STAGES = [name for name in SCRIPTS if name != "pipelines.render_meshes"]


def run(folder: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def geolrm(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["geolrm", *arguments])
    return cli.main()


@pytest.mark.parametrize("name", ["smoke", "small", "paper"])
def test_a_preset_becomes_the_params_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "params.yaml"
    geolrm(monkeypatch, "preset", name, "--params", str(file))
    assert file.read_bytes() == (REPOSITORY / "presets" / f"{name}.yaml").read_bytes()
    assert load_params(file).preset == name
    assert f"is the preset {name}" in capsys.readouterr().out


def test_an_unknown_preset_names_those_there_are_and_leaves_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("as it was")
    assert geolrm(monkeypatch, "preset", "smal", "--params", str(file)) == 1
    said = capsys.readouterr().err
    assert "error: smal: no such preset" in said
    assert "paper, small, smoke" in said
    assert file.read_text() == "as it was"


def test_the_doctor_names_a_backend_or_a_way_out_for_every_operation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    geolrm(monkeypatch, "doctor")
    printed = capsys.readouterr().out.splitlines()
    for operation in (
        "python",
        "torch",
        "device",
        "rendering",
        "deformable attention",
        "token attention",
        "mesh rendering",
        "mesh extraction",
        "LPIPS (alex)",
        "LPIPS (vgg)",
        "DINOv2",
        "tracking",
        "pipeline",
    ):
        (line,) = [line for line in printed if line.startswith(f"{operation:<24} ")]
        assert len(line.split()) > len(operation.split())
    for line in printed:
        if " missing " in line:
            assert "pip install" in line or "geolrm weights fetch" in line or "apt" in line


@pytest.mark.parametrize(
    ("cached", "said"), [(None, "hf download facebook/dinov2-base"), ("/cache/x", "reads /cache/x")]
)
def test_the_doctor_says_whether_published_dinov2_is_here_and_else_how_to_get_it(
    cached: str | None, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: cached)
    assert geolrm(monkeypatch, "doctor") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("DINOv2")]
    assert said in line


def test_the_doctor_names_a_folder_of_weights_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GEOLRM_LPIPS_WEIGHTS", str(tmp_path / "nowhere"))
    assert geolrm(monkeypatch, "doctor") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("LPIPS")]
    assert len(lines) == 2
    assert all("nowhere: no such file or folder" in line and " missing " in line for line in lines)


def test_the_command_lists_its_verbs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        geolrm(monkeypatch, "--help")
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in ("preset", "doctor", "weights", "checkpoint"))


def test_the_documented_command_fetches_the_weights_of_lpips(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("geolrm.metrics.perceptual.fetch_weights", lambda: [Path("alex"), Path("vgg")])
    geolrm(monkeypatch, "weights", "fetch", "lpips")
    assert capsys.readouterr().out.split() == ["alex", "vgg"]


def test_converting_a_checkpoint_that_is_not_there_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = str(tmp_path / "a.ckpt"), str(tmp_path / "b.safetensors")
    assert geolrm(monkeypatch, "checkpoint", "convert", *files) == 1
    assert "checkpoint_missing" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", SCRIPTS)
def test_every_script_explains_every_option(module: str, tmp_path: Path) -> None:
    done = run(tmp_path, module, "--help")
    assert done.returncode == 0, done.stderr
    for option in SCRIPTS[module]:
        assert option in done.stdout
    explained = [line for line in done.stdout.splitlines() if "│ --" in line or "│ -h" in line]
    assert len(explained) >= len(SCRIPTS[module])


@pytest.mark.parametrize("module", STAGES)
def test_a_params_file_with_an_unknown_key_ends_every_stage_in_one_plain_message(module: str, tmp_path: Path) -> None:
    text = (REPOSITORY / "presets/smoke.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("\nsweep:\n", "\nsweep:\n  viewss: [4]\n"))
    arguments = ["--dataset", "procedural"] if module == "pipelines.shard" else []
    done = run(tmp_path, module, *arguments)
    assert done.returncode == 1
    assert "unknown key 'sweep.viewss', nearest valid key 'views'" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["params.yaml"]
