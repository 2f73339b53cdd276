"""Claims about the shard stage: killed, starved of disk or fed bad objects, it loses nothing and ends on the same bytes."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from spheres import sphere_object, write_params, write_spheres

from geolrm.config import Params, load_params
from geolrm.data.object_tar import write_object_tar
from geolrm.data.shard_build import build_shard
from geolrm.data.shard_plan import HashCache, find_objects, plan_shards
from geolrm.failures import BadInput
from pipelines import shard as stage

REPOSITORY = Path(__file__).parents[2]
COUNTS = {"train": 6, "val": 1, "test": 1}


def command(root: Path, *options: str) -> list[str]:
    arguments = ["--dataset", "spheres", "--root", str(root), "--params", str(root / "params.yaml"), *options]
    return [sys.executable, "-m", "pipelines.shard", *arguments]


def start(root: Path, *options: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command(root, *options), env=environment, cwd=REPOSITORY, text=True, **pipes)  # type: ignore[call-overload, no-any-return]


def run(root: Path, *options: str) -> tuple[int, str]:
    process = start(root, *options)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def products(root: Path) -> dict[str, bytes]:
    """Shards, rows and catalog by name; stats hold times and are left out."""
    home = root / "spheres" / "smoke"
    paths = [path for path in (home / "shards").iterdir() if not path.name.endswith(".stats.json")]
    assert not [path.name for path in paths if path.suffix not in (".tar", ".parquet")]
    return {path.name: path.read_bytes() for path in [*paths, home / "catalog.parquet"]}


def stats_of(root: Path, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((root / "spheres" / "smoke" / "shards" / f"{name}.stats.json").read_bytes())
    return found


def copy_inputs(source: Path, root: Path, **params: float) -> Path:
    (root / "spheres" / "smoke").mkdir(parents=True)
    shutil.copytree(source / "spheres" / "smoke" / "objects", root / "spheres" / "smoke" / "objects")
    write_params(root / "params.yaml", **params)
    return root


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of eight spheres and what an undisturbed run with two workers makes of it."""
    root = tmp_path_factory.mktemp("undisturbed")
    write_spheres(root / "spheres" / "smoke" / "objects", COUNTS, size=40)
    write_params(root / "params.yaml")
    status, output = run(root)
    assert status == 0, output
    return root


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build shards in this process, one after the other: for claims that are not about the cluster."""
    from geolrm.data.shard_build import build_shard

    def build_here(jobs: list[stage.ShardJob], *_: object) -> list[str]:
        for job in jobs:
            build_shard(job)
        return []

    monkeypatch.setattr(stage, "build_shards", build_here)


def shard_here(root: Path) -> int:
    return stage.shard("spheres", params=root / "params.yaml", root=root)


def test_each_split_becomes_shards_of_sorted_keys(undisturbed: Path) -> None:
    names = sorted(products(undisturbed))
    assert [name for name in names if name.endswith(".tar")] == [
        "test-000000.tar",
        "train-000000.tar",
        "train-000001.tar",
        "train-000002.tar",
        "val-000000.tar",
    ]
    stats = stats_of(undisturbed, "train-000001")
    assert (stats["objects_in"], stats["objects_out"], stats["drops"]) == (2, 2, {})
    assert set(stats["seconds"]) == {"read", "occupancy", "surface", "encode", "write", "total"}  # type: ignore[call-overload]


def test_one_process_makes_the_same_bytes_as_two_workers(undisturbed: Path, tmp_path: Path, in_process: None) -> None:
    assert shard_here(copy_inputs(undisturbed, tmp_path)) == 0
    assert products(tmp_path) == products(undisturbed)


def test_a_run_with_nothing_changed_touches_nothing(undisturbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> list[str]:
        raise AssertionError("a shard was made anew")

    monkeypatch.setattr(stage, "build_shards", refuse)
    home = undisturbed / "spheres" / "smoke"
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file()}
    assert shard_here(undisturbed) == 0
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again_it_makes_the_same_bytes(undisturbed: Path, tmp_path: Path) -> None:
    root = copy_inputs(undisturbed, tmp_path)
    folder = root / "spheres" / "smoke" / "shards"
    for moment in (0.0, 0.07, 0.2):  # seconds after a first sign of each stage of the work
        process = start(root)
        wait_until(lambda: folder.exists() and any(name.endswith(".tmp") for name in os.listdir(folder)), process)
        time.sleep(moment)
        process.kill()
        process.communicate(timeout=30)
    status, output = run(root)
    assert status == 0, output
    assert products(root) == products(undisturbed)


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_shard_made_again(undisturbed: Path, tmp_path: Path) -> None:
    root = copy_inputs(undisturbed, tmp_path)
    folder = root / "spheres" / "smoke" / "shards"
    process = start(root)
    writer = re.compile(r"\.tar\.(\d+)\.tmp$")
    pids: list[int] = []

    def a_worker_writes() -> bool:
        pids.extend(int(m[1]) for name in os.listdir(folder) if (m := writer.search(name))) if folder.exists() else None
        return bool(pids)

    wait_until(a_worker_writes, process)
    assert pids[0] in {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
    with contextlib.suppress(ProcessLookupError):
        os.kill(pids[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert finished(products_with_leftovers(root)) == products(undisturbed)


def products_with_leftovers(root: Path) -> dict[str, bytes]:
    home = root / "spheres" / "smoke"
    paths = [path for path in (home / "shards").iterdir() if not path.name.endswith(".stats.json")]
    return {path.name: path.read_bytes() for path in [*paths, home / "catalog.parquet"]}


def finished(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if not name.endswith(".tmp")}


def wait_until(condition: object, process: subprocess.Popen[str], limit: float = 60) -> None:
    assert callable(condition)
    deadline = time.monotonic() + limit
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_bad_object_is_counted_and_all_others_arrive(undisturbed: Path, tmp_path: Path, in_process: None) -> None:
    root = copy_inputs(undisturbed, tmp_path, max_drop_rate=0.5)
    objects = root / "spheres" / "smoke" / "objects"
    cut = objects / "train-00001.tar"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (objects / "train-00004.tar").write_text("<html>404</html>")
    write_object_tar(objects / "val-00000.tar", sphere_object("val-00000", "val", 40, shift=3.0))
    assert shard_here(root) == 0
    assert stats_of(root, "train-000000")["drops"] == {"tar_truncated": 1}
    assert stats_of(root, "val-000000")["drops"] == {"outside_cube": 1}
    drops = stats_of(root, "train-000002")["dropped"]
    assert [drop["key"] for drop in drops] == ["train-00004"]  # type: ignore[attr-defined]
    good, bad = products(undisturbed), products(root)
    assert bad["train-000001.tar"] == good["train-000001.tar"]
    assert bad["test-000000.tar"] == good["test-000000.tar"]
    assert sum(int(str(stats_of(root, name)["objects_out"])) for name in ("train-000000", "train-000002")) == 2


def test_too_many_bad_objects_fail_the_stage_after_all_else_is_written(
    undisturbed: Path, tmp_path: Path, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_inputs(undisturbed, tmp_path, max_drop_rate=0.1)
    (root / "spheres" / "smoke" / "objects" / "train-00001.tar").write_bytes(b"")
    assert shard_here(root) == 1
    complaint = capsys.readouterr().err
    assert "train-00001: " in complaint
    assert "tar_truncated" in complaint
    assert "1 of 8 objects dropped, more than shard.max_drop_rate = 0.1" in complaint
    assert products(root)["train-000002.tar"] == products(undisturbed)["train-000002.tar"]
    assert shard_here(root) == 1  # and it stays failed until the object or the limit changes


def test_other_objects_per_shard_make_exactly_the_stale_shards_anew(
    undisturbed: Path, tmp_path: Path, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "again"
    shutil.copytree(undisturbed, root)
    write_params(root / "params.yaml", objects_per_shard=3)
    assert shard_here(root) == 0
    # val and test hold one object each, as before; train's three shards of two become two of three
    assert "4 shards, 2 kept, 2 to make, 3 leftover files removed" in capsys.readouterr().out
    write_params(root / "params.yaml", objects_per_shard=2)
    assert shard_here(root) == 0
    assert products(root) == products(undisturbed)


def test_a_changed_object_makes_its_shard_alone_anew(
    undisturbed: Path, tmp_path: Path, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "again"
    shutil.copytree(undisturbed, root)
    write_object_tar(root / "spheres/smoke/objects/train-00002.tar", sphere_object("train-00002", "train", 48))
    assert shard_here(root) == 0
    assert "5 shards, 4 kept, 1 to make" in capsys.readouterr().out
    before, after = products(undisturbed), products(root)
    assert {name for name in after if after[name] != before[name]} == {
        "train-000001.tar",
        "train-000001.parquet",
        "catalog.parquet",
    }


@pytest.mark.parametrize("damage", ["cut short", "a byte changed", "removed", "no stats"])
def test_a_damaged_shard_is_made_anew(undisturbed: Path, tmp_path: Path, in_process: None, damage: str) -> None:
    root = tmp_path / "again"
    shutil.copytree(undisturbed, root)
    victim = root / "spheres" / "smoke" / "shards" / "train-000001.tar"
    if damage == "cut short":
        os.truncate(victim, victim.stat().st_size - 512)
    elif damage == "a byte changed":
        data = bytearray(victim.read_bytes())
        data[3000] ^= 1
        victim.write_bytes(data)
    elif damage == "removed":
        victim.unlink()
    else:
        victim.with_suffix(".stats.json").unlink()
    assert shard_here(root) == 0
    assert products(root) == products(undisturbed)


@pytest.mark.slow
def test_a_full_disk_is_named_loses_nothing_and_a_second_run_finishes(
    undisturbed: Path, tmp_path: Path, small_disk: Callable[[Path, int], Callable[[int], None]], in_process: None
) -> None:
    root = copy_inputs(undisturbed, tmp_path / "root")
    shards = root / "spheres" / "smoke" / "shards"
    whole = products(undisturbed)
    needed = sum(len(data) for name, data in whole.items() if name != "catalog.parquet")
    resize = small_disk(shards, (needed - 200_000) >> 10)
    status, output = run(root)
    assert status == 1
    assert "the disk is full" in output
    assert "run the same command again" in output
    assert "Traceback" not in output
    assert not [name for name in os.listdir(shards) if name.endswith(".tmp")]
    for path in shards.glob("*.tar"):
        assert path.read_bytes() == whole[path.name]
    resize(4 << 10)
    assert shard_here(root) == 0
    assert products(root) == whole


@pytest.mark.slow
def test_killed_under_dvc_repro_it_is_finished_by_the_next_one(undisturbed: Path, tmp_path: Path) -> None:
    root = copy_inputs(undisturbed, tmp_path)
    folder = root / "spheres" / "smoke" / "shards"
    outputs = [{f"spheres/smoke/{name}": {"persist": True, "cache": False}} for name in ("shards", "catalog.parquet")]
    arguments = [argument.replace(str(root), ".") for argument in command(root)]
    stages = {"shard": {"cmd": shlex.join(arguments), "deps": ["spheres/smoke/objects"], "outs": outputs}}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    dvc = [sys.executable, "-m", "dvc"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "1"}
    subprocess.run([*dvc, "init", "--no-scm", "-q"], cwd=root, env=environment, check=True)
    killed = subprocess.Popen([*dvc, "repro"], cwd=root, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (folder.exists() and any(folder.iterdir())):
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.kill()  # dvc alone: the stage that it started lives on, and the next one has to wait for it
    killed.wait()
    again = subprocess.run([*dvc, "repro"], cwd=root, env=environment, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stdout + again.stderr
    assert products(root) == products(undisturbed)


def test_a_task_that_the_cluster_does_again_leaves_the_finished_shard_alone(undisturbed: Path, tmp_path: Path) -> None:
    """As it does where a worker dies after its task: the run may end before the second turn does."""
    home = copy_inputs(undisturbed, tmp_path) / "spheres" / "smoke"
    (home / "shards").mkdir()
    settings = load_params(tmp_path / "params.yaml").shard
    found = find_objects(home / "objects", HashCache(home / "shard-hashes.json"), 1)
    job = plan_shards(found, home / "shards", "spheres", settings)[0]
    stage.build(job)
    before = {path: path.stat().st_mtime_ns for path in (job.tar, job.rows, job.stats)}
    stage.build(job)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    stage.build(replace(job, fingerprint="another"))
    assert job.stats.stat().st_mtime_ns > before[job.stats]


def test_a_folder_without_objects_is_named(tmp_path: Path) -> None:
    write_params(tmp_path / "params.yaml")
    with pytest.raises(BadInput) as error:
        shard_here(tmp_path)
    assert error.value.reason == "objects_missing"


@pytest.mark.slow
def test_two_local_clusters_run_at_once_without_a_word_and_listen_on_loopback_alone(recwarn) -> None:
    with stage.dask_client(1, None) as one, stage.dask_client(1, None) as other:
        assert one.submit(sum, (1, 2)).result() == other.submit(sum, (1, 2)).result() == 3
        services = [client.cluster.scheduler.http_server for client in (one, other)]
    assert [str(warning.message) for warning in recwarn if "Port" in str(warning.message)] == []
    assert {server.address for server in services} == {"127.0.0.1"}


@pytest.mark.slow
def test_workers_of_a_scheduler_that_runs_elsewhere_make_the_same_bytes(undisturbed: Path, tmp_path: Path) -> None:
    from distributed import LocalCluster

    root = copy_inputs(undisturbed, tmp_path)
    options = {"processes": False, "dashboard_address": "127.0.0.1:0", "host": "127.0.0.1", "protocol": "tcp"}
    with LocalCluster(n_workers=1, threads_per_worker=1, **options) as cluster:
        status, output = run(root, "--scheduler", cluster.scheduler_address)
    assert status == 0, output
    assert products(root) == products(undisturbed)


# --- without object tars ---


def test_shards_that_are_drawn_have_the_bytes_of_those_made_from_object_tars(
    tiny_params: Params,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(stage, "build_shards", lambda jobs, *_: [build_shard(job) for job in jobs] and [])

    def drawn(params: Params) -> str:
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json")))
        assert stage.shard("procedural", params=tmp_path / "params.yaml", root=tmp_path, draw="cpu") == 0
        return capsys.readouterr().out

    home, expected = tmp_path / "procedural" / "tiny", tiny_dataset / "datasets" / "procedural" / "tiny"
    assert "object tars" not in drawn(tiny_params)
    names = ["catalog.parquet", *(f"shards/{path.name}" for path in (expected / "shards").glob("*.tar"))]
    assert len(names) > 3
    for name in names:
        assert (home / name).read_bytes() == (expected / name).read_bytes()
    assert not (home / "objects").exists()
    assert f"{len(names) - 1} kept, 0 to make" in drawn(tiny_params)
    other = tiny_params.model_copy(update={"procedural": tiny_params.procedural.model_copy(update={"seed": 1})})
    assert f"0 kept, {len(names) - 1} to make" in drawn(other)


@pytest.mark.parametrize(
    ("dataset", "device", "reason"), [("gso", "cpu", "draw_other"), ("procedural", "cuda", "draw_device")]
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_touched(
    dataset: str, device: Any, reason: str, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(BadInput, match=reason):
        stage.shard(dataset, params=tiny_dataset / "params.yaml", root=tmp_path, draw=device)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".tar", ".parquet", ".json")]
