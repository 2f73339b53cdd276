"""Claims about shards at scale: workers of a cluster over TCP, an object store that fails, and a loader that reads from it."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from s3_server import Store, s3_server
from s3fs import S3FileSystem
from spheres import sphere_object, write_params, write_spheres

from geolrm.data.loader import ShardDataset
from geolrm.data.places import place, read_file, write_at
from geolrm.data.shard_build import build_shard
from geolrm.data.verification import verify
from geolrm.failures import BadInput
from pipelines import shard as stage

REPOSITORY = Path(__file__).parents[2]
BUCKET = "some-bucket"
NAMES = [f"train-{i:06d}" for i in range(3)] + ["val-000000"]


@dataclass
class Cluster:
    """A scheduler and two workers, three processes that talk over TCP, and the store that the workers know."""

    address: str
    scheduler: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]]
    store: Store


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    file = tmp_path_factory.mktemp("cluster") / "scheduler.json"
    with s3_server(BUCKET) as (store, variables), pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        quiet: Any = {
            "env": environment,
            "cwd": file.parent,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
        }
        common = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(file)]
        dask = [sys.executable, "-m", "dask"]
        processes = [subprocess.Popen([*dask, "scheduler", "--port", "0", *common], **quiet)]
        try:
            worker = [*dask, "worker", "--nthreads", "1", "--no-nanny", "--preload", "geolrm.data.shard_build", *common]
            processes += [subprocess.Popen(worker, **quiet) for _ in range(2)]
            deadline = time.monotonic() + 240
            while not (file.exists() and file.read_text().endswith("}")):  # it is not written at once
                assert processes[0].poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            address = json.loads(file.read_text())["address"]
            with stage.dask_client(1, address) as client:
                client.wait_for_workers(2, timeout=240)
            yield Cluster(address, processes[0], processes[1:], store)
        finally:
            for process in processes:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven spheres, and what one process makes of them in a folder."""
    root = tmp_path_factory.mktemp("undisturbed")
    write_spheres(root / "spheres" / "smoke" / "objects", {"train": 6, "val": 1}, size=24)
    write_params(root / "params.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "build_shards", lambda jobs, *_: [build_shard(job) for job in jobs] and [])
        assert stage.shard("spheres", params=root / "params.yaml", root=root) == 0
    return root / "spheres" / "smoke"


def products(home: Any) -> dict[str, bytes]:
    """Shards, rows and catalog of a home, in a folder or in the store."""
    files = [home / "shards" / f"{name}{kind}" for name in NAMES for kind in (".tar", ".parquet")]
    return {path.name: path.read_bytes() for path in (*files, home / "catalog.parquet")}


def run(undisturbed: Path, output: str, cluster: Cluster, patience: float = 60) -> int:
    root = undisturbed.parents[1]
    return stage.shard(
        "spheres", params=root / "params.yaml", root=root, output=output, scheduler=cluster.address, patience=patience
    )


def test_two_workers_over_tcp_share_the_work_and_make_the_same_bytes(
    cluster: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    assert cluster.address.startswith("tcp://127.0.0.1:")
    assert run(undisturbed, str(tmp_path), cluster) == 0
    home = tmp_path / "spheres" / "smoke"
    assert products(home) == products(undisturbed)
    stats = [json.loads((home / "shards" / f"{name}.stats.json").read_text()) for name in NAMES]
    assert {int(entry["worker"].rpartition(":")[2]) for entry in stats} == {worker.pid for worker in cluster.workers}


def test_a_store_that_fails_in_mid_shard_and_comes_back_gets_the_same_bytes(
    cluster: Cluster, undisturbed: Path
) -> None:
    cluster.store.fail_after(4, refusals=3)  # at least one shard has been put in part
    assert run(undisturbed, f"s3://{BUCKET}/back", cluster) == 0
    assert cluster.store.refused == 3
    home = place(f"s3://{BUCKET}/back/spheres/smoke")
    assert products(home) == products(undisturbed)
    verdict = verify(home)
    assert (verdict.shards, verdict.objects, verdict.faults) == (4, 7, [])


def test_a_store_that_refuses_every_request_once_is_read_and_written_all_the_same(
    cluster: Cluster,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, home = undisturbed.parents[1], place(f"s3://{BUCKET}/fitful/spheres/smoke")
    pauses: list[float] = []
    monkeypatch.setattr("geolrm.data.places.time", SimpleNamespace(sleep=pauses.append))
    monkeypatch.setattr(stage, "build_shards", lambda jobs, *_: [stage.build(job, 7) for job in jobs] and [])
    for said in ("0 kept, 4 to make", "4 kept, 0 to make"):
        (undisturbed / "shard-hashes.json").unlink()  # so that the second run reads every byte
        cluster.store.refuse_each_once()
        output = f"s3://{BUCKET}/fitful"
        assert stage.shard("spheres", params=root / "params.yaml", root=root, output=output, patience=7) == 0
        told = capsys.readouterr()
        assert f"4 shards, {said}" in told.out
        assert "Service Unavailable; asking again for 7 s" in told.err
    cluster.store.refuse_each_once()
    assert verify(home).faults == []
    cluster.store.refuse_each_once()
    assert ShardDataset(str(home), "train", tmp_path).sample("train-00003").views([2]).colour.isfinite().all()
    refused = cluster.store.refused
    cluster.store.recover()
    assert refused > 0
    assert {1.0} <= set(pauses) <= {1.0, 2.0, 4.0}  # a file is up to three requests: what it is, its folder, its bytes
    assert products(home) == products(undisturbed)


def test_a_store_that_stays_away_ends_the_run_in_plain_words_and_keeps_what_was_finished(
    cluster: Cluster, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.store.fail_after(7)
    with pytest.raises(BadInput) as failed:  # nor can the totals be read
        run(undisturbed, f"s3://{BUCKET}/gone", cluster, patience=0)
    assert failed.value.reason == "storage_failed"
    assert "run the same command again" in str(failed.value)
    cluster.store.recover()
    home = place(f"s3://{BUCKET}/gone/spheres/smoke")
    whole = products(undisturbed)
    there = {path.name: path.read_bytes() for path in (home / "shards").iterdir() if path.suffix != ".json"}
    assert there
    assert all(whole[name] == data for name, data in there.items())
    assert not (home / "catalog.parquet").exists()
    finished = sum(path.name.endswith(".stats.json") for path in (home / "shards").iterdir())
    capsys.readouterr()
    assert run(undisturbed, f"s3://{BUCKET}/gone", cluster) == 0
    assert f"4 shards, {finished} kept, {4 - finished} to make" in capsys.readouterr().out
    assert products(home) == whole


def test_the_loader_reads_from_the_store_and_then_from_its_cache(
    cluster: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    home = place(f"s3://{BUCKET}/read")
    for name, data in products(undisturbed).items():
        write_at(home / name if name == "catalog.parquet" else home / "shards" / name, data)
    samples = []
    for turn in range(2):
        cluster.store.gets.clear()
        stored = ShardDataset(f"s3://{BUCKET}/read", "train", tmp_path)
        samples.append(stored.sample("train-00003"))
        views = samples[turn].views([30, 2])
        assert [path for path in cluster.store.gets if path.endswith(".tar")] == (
            [f"/{BUCKET}/read/shards/train-000001.tar"] if turn == 0 else []
        )
    obj = sphere_object("train-00003")
    assert torch.equal(views.colour, obj.views.colour[[samples[0].meta["source_views"][i] for i in (30, 2)]])
    damaged = bytearray(products(undisturbed)["train-000000.tar"])
    damaged[3000] ^= 1
    write_at(home / "shards" / "train-000000.tar", bytes(damaged))
    with pytest.raises(BadInput) as error:
        stored.sample("train-00000")
    assert error.value.reason == "shard_corrupt"
    assert len([path for path in tmp_path.rglob("??/*") if path.is_file()]) == 1  # nothing bad got into the cache
    write_at(home / "shards" / "train-000000.tar", products(undisturbed)["train-000000.tar"])
    assert stored.sample("train-00000").key == "train-00000"


def test_what_no_store_can_mend_is_named_at_once(
    cluster: Cluster, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput) as missing:
        write_at(place("s3://no-such-bucket/x"), b"")
    with pytest.raises(BadInput) as unsupported:
        place("abcd://bucket/x")
    assert [missing.value.reason, unsupported.value.reason] == ["storage_missing", "storage_unsupported"]
    with monkeypatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        patch.setenv("HOME", str(undisturbed))  # where no keys lie either
        patch.setattr("geolrm.data.places.time", None)  # no pause is made
        S3FileSystem.clear_instance_cache()
        with pytest.raises(BadInput) as keyless:
            read_file(place(f"s3://{BUCKET}/x"))
        S3FileSystem.clear_instance_cache()
    assert "credentials" in str(keyless.value)
    import dask

    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}), pytest.raises(BadInput) as alone:
        stage.build_shards([stage.ShardJob("a", "a", "a", "a", 1, 1, ())], 1, "tcp://127.0.0.1:9", 0)
    assert alone.value.reason == "scheduler_unreachable"


def test_a_scheduler_that_is_killed_ends_the_run_in_plain_words_and_the_next_one_makes_the_same_bytes(
    cluster: Cluster, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last claim of this file: it takes the cluster with it."""
    home = tmp_path / "spheres" / "smoke"

    def kill_when_one_is_finished() -> None:
        while not list((home / "shards").glob("*.stats.json")):
            time.sleep(0.001)
        cluster.scheduler.kill()

    killer = threading.Thread(target=kill_when_one_is_finished, daemon=True)
    killer.start()
    with pytest.raises(BadInput) as lost:
        run(undisturbed, str(tmp_path), cluster)
    killer.join()
    assert lost.value.reason == "scheduler_lost"
    monkeypatch.setattr(stage, "build_shards", lambda jobs, *_: [build_shard(job) for job in jobs] and [])
    root = undisturbed.parents[1]
    assert stage.shard("spheres", params=root / "params.yaml", root=root, output=str(tmp_path)) == 0
    assert products(home) == products(undisturbed)
