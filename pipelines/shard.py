"""The shard stage: object tars -> WebDataset shards, their rows and stats, and the merged catalog.

In: `datasets/<name>/<preset>/objects/*.tar`, and objects that `addresses.json` beside them names: a worker fetches these as
it goes and keeps nothing of them but the shard; or, with `draw`, nothing but the params. Out:
`shards/<split>-%06d.{tar,parquet,stats.json}` and `catalog.parquet` beside them, or below an address such as
s3://bucket/datasets. Convention: shards that still hold are kept, all others made anew, leftovers removed; killed at any
moment and run again, it ends with the same bytes. Trade: one shard is one task, so a killed worker costs its shard's work and
nothing else. Runs on a local Dask cluster of processes (loopback only, no dashboard) or any scheduler whose workers see the
same object tars. Exit status 1 when too many objects were dropped or a shard could not be written, said at the end, when
everything else is done. Verified by tests/data/test_shard_pipeline.py and test_cluster.py.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from tqdm import tqdm

from geolrm.config import Procedural, load_params
from geolrm.data.addresses import read_addresses, shared
from geolrm.data.catalog import merge_catalogs, write_if_changed
from geolrm.data.fetch import Ledger, as_fetched
from geolrm.data.places import PATIENCE, Place, is_remote, place, remove, upload
from geolrm.data.shard_plan import (
    Drawing,
    HashCache,
    ObjectTar,
    ShardJob,
    find_objects,
    holds,
    plan_shards,
    read_stats,
    remember,
    remove_leftovers,
)
from geolrm.failures import BadInput, run_command
from geolrm.files import DiskFull, alone_in

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

    from geolrm.download import Manners

NAMED_DROPS = 10
READERS = 8  # threads that look at what is there: hashing, or waiting for a store


@contextmanager
def dask_client(workers: int, scheduler: str | None) -> Iterator[Client]:
    """A client of the scheduler at that address, or of a local cluster of that many one-thread processes."""
    import dask

    quiet = {"distributed.logging": {"distributed": "critical"}, "distributed.admin.system-monitor.gil.enabled": False}
    dask.config.set(quiet | {"distributed.worker.multiprocessing-method": "forkserver"})
    from distributed import Client

    if scheduler is not None:
        try:
            client = Client(scheduler)
        except (OSError, ValueError) as error:
            remedy = "start it: dask scheduler --host ADDRESS (docs/cluster.md)"
            raise BadInput("scheduler_unreachable", scheduler, f"no Dask scheduler answers: {error}", remedy) from error
        with client:
            yield client
    else:
        with local_cluster(workers) as cluster, Client(cluster) as client:
            yield client


def local_cluster(workers: int) -> LocalCluster:
    """That many one-thread processes, forked from one that has torch loaded already (3 s of a core for each that has not).

    They listen on loopback only, at ports that are free, so that clusters can run at once; they have no dashboard, and end
    with this process, however it ends.
    """
    import logging

    from distributed import LocalCluster
    from distributed.utils import get_mp_context

    get_mp_context().set_forkserver_preload(["distributed", "geolrm.data.shard_build", "geolrm.hits"])
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",  # None would be port 8787, and a warning where that is taken
        worker_dashboard_address=None,
        scheduler_kwargs={"dashboard": False},
        memory_limit=0,
        local_directory=tempfile.gettempdir(),
        silence_logs=logging.CRITICAL,
    )


def build(job: ShardJob, patience: float = PATIENCE) -> None:
    """Build a shard in a worker: the main process itself never needs torch. For a store it is built on the worker's own disk
    and uploaded whole, the stats last: they vouch for the other two."""
    from geolrm.data.shard_build import build_shard

    done = read_stats(job, patience)
    if done is not None and done.get("fingerprint") == job.fingerprint:
        return  # by an earlier turn of this task: the cluster does it again where the worker that had done it died
    if not is_remote(job.tar):
        build_shard(job)
        return
    with tempfile.TemporaryDirectory(prefix="geolrm-shard-") as scratch:
        local = replace(job, folder=scratch)
        build_shard(local)
        remove(job.stats, patience)  # from here until the new stats are there, the shard does not hold
        for source, target in ((local.tar, job.tar), (local.rows, job.rows), (local.stats, job.stats)):
            upload(source, target, patience)


def build_shards(
    jobs: list[ShardJob], workers: int, scheduler: str | None = None, patience: float = PATIENCE
) -> list[str]:
    """Build shards on Dask workers; returns what went wrong, in words, per shard that could not be built.

    Raises:
        BadInput: `scheduler_unreachable` where there is none at that address, `scheduler_lost` where it ended before the work.
    """
    failures = []
    with dask_client(min(workers, len(jobs)), scheduler) as client:
        from distributed import CancelledError, KilledWorker, as_completed

        if any(job.manners is not None for job in jobs):
            count = max(1, len(client.nthreads()))
            jobs = [replace(job, manners=job.manners and shared(job.manners, count)) for job in jobs]
        largest_first = sorted(jobs, key=lambda job: (-sum(item.bytes for item in job.objects), job.name))
        futures = {
            client.submit(build, job, patience, key=f"{job.name}-{job.fingerprint}", pure=False): job
            for job in largest_first
        }
        with tqdm(total=sum(len(job.objects) for job in jobs), desc="shard", unit="object") as progress:
            for future in as_completed(list(futures)):
                job = futures[future]
                try:
                    future.result()
                except DiskFull as error:
                    failures.append(f"{job.name}: {error.strerror}")
                except BadInput as error:  # of the storage: bad objects are counted where they are met
                    failures.append(f"{job.name}: {error}")
                except KilledWorker as error:
                    failures.append(f"{job.name}: its worker died again and again, out of memory perhaps ({error})")
                except CancelledError as error:
                    detail = f"the scheduler has gone while {job.name} was still to be made"
                    remedy = "start one and run the same command again: it goes on here"
                    raise BadInput("scheduler_lost", scheduler, detail, remedy) from error
                progress.update(len(job.objects))
    return failures


def report(jobs: list[ShardJob], max_drop_rate: float, patience: float = PATIENCE) -> list[str]:
    """Print the totals of all shards; returns a complaint if too many objects were dropped."""
    stats = [found for job in jobs if (found := read_stats(job, patience)) is not None]
    count = sum(entry["objects_in"] for entry in stats)
    dropped: list[dict[str, Any]] = [drop for entry in stats for drop in entry["dropped"]]
    bytes_in, bytes_out = (sum(entry[name] for entry in stats) for name in ("bytes_in", "bytes_out"))
    before = f"{bytes_in / 1e6:,.1f} MB of object tars -> " if bytes_in else ""  # what is drawn comes from nothing
    print(f"{len(stats)} shards, {count - len(dropped)} of {count} objects, {before}{bytes_out / 1e6:,.1f} MB")
    if not dropped:
        return []
    reasons = Counter(drop["reason"] for drop in dropped)
    lines = [f"dropped {len(dropped)}: " + ", ".join(f"{reason} {n}" for reason, n in reasons.most_common())]
    lines += [f"  {drop['key']}: {drop['detail']}" for drop in dropped[:NAMED_DROPS]]
    if len(dropped) > NAMED_DROPS:
        lines.append(f"  and {len(dropped) - NAMED_DROPS} more, in the shards' .stats.json")
    print("\n".join(lines), file=sys.stderr)
    if len(dropped) <= max_drop_rate * count:
        return []
    return [f"{len(dropped)} of {count} objects dropped, more than shard.max_drop_rate = {max_drop_rate:g} allows"]


def shard(
    dataset: str,
    params: Path = Path("params.yaml"),
    root: Path = Path("datasets"),
    output: str | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    patience: float = PATIENCE,
    draw: Literal["cpu", "cuda"] | None = None,
) -> int:
    """Turn the objects of a data set into shards and their catalog: its object tars, and those that it has addresses of.

    Args:
        dataset: name of the folder under the root, such as procedural or gso.
        params: the params file; its preset names the folder under the data set's.
        root: where the data sets lie.
        output: write shards and catalog below this folder or address instead, as <dataset>/<preset>/..., for example
            s3://bucket/datasets. The address and keys of an S3 server come from where its tools look for them
            (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, ~/.aws), on the workers' machines too.
        workers: processes of the local cluster; by default shard.workers of the params file.
        scheduler: address of a running Dask scheduler to use instead, such as tcp://127.0.0.1:8786; its workers must see
            the same folders.
        patience: seconds for which a store that fails is asked again, whether it is read or written.
        draw: read no object tars: draw the procedural objects of the params, traced on this device by each worker.
    """
    settings = load_params(params)
    home = (root / dataset / settings.preset).resolve()
    target = home if output is None else resolved(place(output)) / dataset / settings.preset
    folder, started = target / "shards", time.perf_counter()
    if not is_remote(folder):
        folder.mkdir(parents=True, exist_ok=True)
    workers = workers or settings.shard.workers
    with alone_in(home if is_remote(folder) else folder), ThreadPoolExecutor(READERS) as readers:
        cache = HashCache(home / "shard-hashes.json", patience)
        drawing = None if draw is None else drawing_of(settings.procedural, draw, dataset, scheduler)
        objects, manners = inputs(home, cache, workers) if drawing is None else (drawing.objects(), None)
        jobs = plan_shards(objects, folder, dataset, settings.shard, drawing)
        jobs = [replace(job, manners=manners) for job in jobs]
        removed = remove_leftovers(folder, jobs, patience)
        held = readers.map(lambda job: holds(job, cache), jobs)
        stale = [job for job, fine in zip(jobs, held, strict=True) if not fine]
        print(
            f"{dataset}/{settings.preset}: {len(jobs)} shards, {len(jobs) - len(stale)} kept, {len(stale)} to make, "
            f"{len(removed)} leftover files removed"
        )
        catalog = target / "catalog.parquet"
        if stale:
            remove(catalog, patience)  # a catalog that is there speaks of the shards that are there
        for job in stale:
            remove(job.stats, patience)  # so that what is there while workers build was built by them
        failures = build_shards(stale, workers, scheduler, patience) if stale else []
        if not failures:
            write_if_changed(catalog, merge_catalogs((job.rows for job in jobs), patience), patience)
        failures += report(jobs, settings.shard.max_drop_rate, patience)
        for job in stale:
            remember(job, cache)
        if manners is not None:
            note(home, jobs, patience)
        cache.save()
    print(f"{time.perf_counter() - started:.1f} s")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def inputs(home: Path, cache: HashCache, threads: int) -> tuple[list[ObjectTar], Manners | None]:
    """The object tars of a data set, the objects that it has addresses of and no tar, and how their server is to be treated.

    Raises:
        BadInput: `objects_missing`, `addresses_unreadable`.
    """
    addressed, manners = read_addresses(home)
    if addressed and not any((home / "objects").glob("*.tar")):
        return addressed, manners
    there = find_objects(home / "objects", cache, threads)
    keys = {item.key for item in there}
    return there + [item for item in addressed if item.key not in keys], manners


def note(home: Path, jobs: list[ShardJob], patience: float) -> None:
    """Bring to the ledger beside the addresses what came for shards, by any run; no tar of it lies here."""
    ledger = Ledger(home / "fetch.jsonl")
    for job in jobs:
        for record in (read_stats(job, patience) or {}).get("fetched", []):
            fetched = as_fetched(record)
            if ledger.records.get(fetched.key) != fetched:
                ledger.add(fetched)


def drawing_of(settings: Procedural, device: Literal["cpu", "cuda"], dataset: str, scheduler: str | None) -> Drawing:
    """What is drawn in place of reading. Raises BadInput `draw_other` for another data set than the one that is drawn,
    `draw_device` where this machine's own workers would have no such device."""
    if dataset != "procedural":
        raise BadInput("draw_other", dataset, "only procedural objects can be drawn", "--dataset procedural")
    if device == "cuda" and scheduler is None:
        import torch

        if not torch.cuda.is_available():
            raise BadInput("draw_device", "--draw cuda", "torch sees no CUDA device here", "--draw cpu")
    return Drawing(settings, device)


def resolved(where: Place) -> Place:
    """A folder's absolute path, as workers with another working directory need it."""
    return where if is_remote(where) else where.resolve()


if __name__ == "__main__":
    sys.exit(run_command(lambda: tyro.cli(shard)))
