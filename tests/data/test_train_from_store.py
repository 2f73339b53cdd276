"""Claims about training and sweeps on shards in an object store: the same results as from a folder."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml
from s3_server import Store, s3_server
from tiny_training import changed

from benchmarks.rows import GEOMETRY_METRICS, PICTURE_METRICS
from benchmarks.sweep_views import Arguments, sweep
from geolrm.config import Params
from geolrm.data.places import place, write_at
from pipelines import train_proposal, train_reconstruction

BUCKET = "training"
ADDRESS = f"s3://{BUCKET}/datasets"
STEPS = {"steps": 2, "validate_every": 2, "checkpoint_every": 2, "warmup": 1}


@dataclass
class Stored:
    """A folder to run stages in, without data, and the store that has it."""

    root: Path
    store: Store


@pytest.fixture(scope="module")
def stored(tiny_params: Params, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    root, home = tmp_path_factory.mktemp("stored"), tiny_dataset / "datasets" / "procedural" / tiny_params.preset
    params = changed(changed(tiny_params, "proposal", **STEPS), "reconstruction", **STEPS)
    (root / "params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json")))
    with s3_server(BUCKET) as (store, variables), pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        there = place(ADDRESS) / "procedural" / tiny_params.preset
        for path in (home / "catalog.parquet", *(home / "shards").glob("*.tar")):
            write_at(there / path.relative_to(home).as_posix(), path.read_bytes())
        yield Stored(root, store)


def results(root: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in root.glob("results/tiny/*/checkpoint.safetensors")}


def test_both_stages_trained_from_a_store_are_those_trained_from_a_folder(
    stored: Stored, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(stored.root / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    for stage in (train_proposal, train_reconstruction):
        stage.main(datasets=str(tiny_dataset / "datasets"))
    monkeypatch.chdir(stored.root)
    train_proposal.main(datasets=ADDRESS, workers=1)  # a forked process needs a connection of its own
    train_reconstruction.main(datasets=ADDRESS)
    assert results(stored.root) == results(tmp_path)
    assert set(results(tmp_path)) == {"proposal", "reconstruction"}
    assert any(path.endswith(".tar") for path in stored.store.gets)


def test_a_sweep_over_a_store_gives_the_rows_of_one_over_a_folder(
    stored: Stored, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stored.root)
    scores = []
    for datasets in (str(tiny_dataset / "datasets"), ADDRESS):
        arguments = Arguments(datasets=datasets, methods=("white",), views=(4,), output=tmp_path / str(len(scores)))
        (row,) = sweep(replace(arguments, device="cpu", processes="shared"))["procedural"]
        scores.append(
            {name: row[name] for name in ("object", "input_views", "status", *PICTURE_METRICS, *GEOMETRY_METRICS)}
        )
    assert scores[0] == scores[1]
    assert scores[0]["status"] == "empty"
    assert scores[0]["psnr"] > 0


def test_the_cache_of_a_sweep_over_a_store_has_the_limit_that_is_asked_for(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(stored.root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = Arguments(datasets=ADDRESS, methods=("white",), views=(4,), device="cpu", processes="shared")
    rows = sweep(replace(arguments, output=tmp_path / "sweep", cache_gib=0.0))
    assert rows == {"procedural": []}
    assert "cache_too_small" in capsys.readouterr().out
