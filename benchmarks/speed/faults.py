"""Killed with SIGKILL at random moments and run again, the shard stage ends on the bytes of an undisturbed run.

In: object tars, or small procedural objects made here. Out: a JSON file with one row a kill and its passport; exit status 1
unless every row holds. Convention: the victims take turns (a worker, the main process with the scheduler in it, the scheduler of
a cluster of separate processes); the moment is drawn in two steps, so that it falls into the work however busy the machine is: so
many shards must be finished, and then a time passes, at most twice what a shard took undisturbed; a kill that comes after the
catalog is written hits nothing, is drawn again and counted. A row holds if,
right after the kill, every shard that is marked as finished has the undisturbed run's bytes; if a run that lost a worker ended
well by itself; and if the next run ends well, on the undisturbed run's bytes, with no temporary file left. Trade: small objects,
since what differs between moments is which file is half written, not its size; the next run is the stage's own function in this
process, which spares a start of Python and begins while what was killed may still be dying. Verified by itself: stats that are
written before their tar, or a writer without a temporary name, fail it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import tyro
import yaml
from tqdm import tqdm

from geolrm.config import Procedural
from geolrm.failures import BadInput, run_command
from geolrm.files import TEMPORARY, write_whole
from geolrm.passport import passport
from pipelines.render_procedural import render_objects
from pipelines.shard import shard

REPOSITORY = Path(__file__).parents[2]
VICTIMS = ("worker", "main", "scheduler")
DATASET = "faults"
WAIT = 600.0  # seconds after which a run hangs
WORKERS = 2


@dataclass(frozen=True)
class Kill:
    """One kill and what came of it.

    Attributes:
        victim: which process was killed, `delay` seconds after the first file had appeared and `after` shards were finished.
        finished: shards that were marked as finished just after it; `half_written`: temporary files that lay there.
        status: exit status of the run that was disturbed; negative where it was itself the victim.
        truthful: whether every shard marked as finished had the undisturbed run's bytes; after the loss of a worker, all.
        equal: whether the run after it ended well, on the undisturbed run's bytes, and left no temporary file.
    """

    victim: str
    after: int
    delay: float
    finished: int
    half_written: int
    status: int
    truthful: bool
    equal: bool

    @property
    def holds(self) -> bool:
        """Whether nothing was lost: a run that only lost a worker must itself have ended well."""
        return self.truthful and self.equal and (self.victim != "worker" or self.status == 0)


class Bench:
    """A small data set in a folder of its own, and the stage run on it."""

    def __init__(self, folder: Path, objects: list[Path], objects_per_shard: int, params: Path) -> None:
        folder.mkdir()
        self.folder, settings = folder, yaml.safe_load(params.read_text())
        settings["shard"] |= {"objects_per_shard": objects_per_shard, "workers": WORKERS, "max_drop_rate": 0.0}
        self.preset: str = settings["preset"]
        self.params = folder / "params.yaml"
        self.params.write_text(yaml.safe_dump(settings))
        target = folder / DATASET / self.preset / "objects"
        target.mkdir(parents=True)
        for path in objects:
            shutil.copyfile(path, target / path.name)

    def start(self, output: Path, scheduler: str | None = None) -> subprocess.Popen[bytes]:
        """The stage as a process of its own, writing below `output`."""
        command = [sys.executable, "-m", "pipelines.shard", "--dataset", DATASET, "--params", str(self.params)]
        command += ["--root", str(self.folder), "--output", str(output)]
        command += [] if scheduler is None else ["--scheduler", scheduler]
        return background(command)

    def again(self, output: Path) -> int:
        """The stage in this process; its exit status."""
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            return shard(DATASET, self.params, self.folder, str(output))

    def shards(self, output: Path) -> Path:
        return output / DATASET / self.preset / "shards"

    def products(self, output: Path) -> dict[str, str]:
        """SHA-256 of each shard, rows file and catalog by name; stats hold seconds and are left out."""
        files = [*self.shards(output).glob("[!.]*.tar"), *self.shards(output).glob("[!.]*.parquet")]
        files += self.shards(output).parent.glob("catalog.parquet")
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def background(command: list[str]) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address and process of a scheduler with two workers, each a process of its own."""
    file = folder / "scheduler.json"
    file.unlink(missing_ok=True)
    dask = [sys.executable, "-m", "dask"]
    common = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(file)]
    processes = [background([*dask, "scheduler", "--port", "0", *common])]
    try:
        worker = [*dask, "worker", "--nthreads", "1", "--no-nanny", "--local-directory", str(folder), *common]
        processes += [background(worker) for _ in range(WORKERS)]
        wait_until(lambda: file.exists() and file.read_text().endswith("}"), processes[0])  # it is not written at once
        yield json.loads(file.read_text())["address"], processes[0]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait_until(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> bool:
    """Wait for something to happen while a process runs; says whether it did. Raises TimeoutError after `WAIT` seconds."""
    deadline = time.monotonic() + WAIT
    while not condition():
        if process.poll() is not None:
            return bool(condition())
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {process.pid} hangs")
        time.sleep(0.002)
    return True


def writes(folder: Path) -> bool:
    return folder.exists() and any(folder.iterdir())


def small_objects(folder: Path, count: int, size: int, seed: int) -> list[Path]:
    """Object tars of procedural objects, all but two of the split train."""
    settings = Procedural(train=count - 2, val=1, test=1, resolution=size, supersampling=1, workers=1, seed=seed)
    render_objects(settings, folder, 1)
    return sorted(folder.glob("*.tar"))


def a_worker_of(process: subprocess.Popen[bytes], folder: Path) -> int | None:
    """The worker that writes a shard at this moment, or else any: workers are forked from a process that the run has started
    for that, so they are its children's children. None if there is none any more."""
    for name in os.listdir(folder):
        if name.endswith(".tmp"):
            return int(name.split(".")[-2])
    try:
        below = psutil.Process(process.pid).children(recursive=True)
        workers = [child.pid for child in below if child.ppid() != process.pid]
    except psutil.NoSuchProcess:
        return None
    return workers[0] if workers else None


def disturb(bench: Bench, output: Path, victim: str, after: int, delay: float, truth: dict[str, str]) -> Kill | None:
    """Run the stage, kill the victim so long after so many shards, look, run it again; None if the kill came too late."""
    shards = bench.shards(output)
    catalog = shards.parent / "catalog.parquet"

    def at_the_moment(run: subprocess.Popen[bytes]) -> bool:
        """Wait for it; whether there is still work to disturb."""
        wait_until(lambda: writes(shards) and len(list(shards.glob("*.stats.json"))) >= after, run)
        time.sleep(delay)
        return run.poll() is None and not catalog.exists()

    if victim == "scheduler":
        with cluster(bench.folder) as (address, scheduler):
            run = bench.start(output, address)
            hit = at_the_moment(run)
            scheduler.kill()
            run.wait(WAIT)
    else:
        run = bench.start(output)
        hit = at_the_moment(run)
        pid = run.pid if victim == "main" else a_worker_of(run, shards)
        hit = pid is not None and killed(pid) and hit
        run.wait(WAIT)
    if not hit:
        return None
    finished = [path.name.partition(".")[0] for path in shards.glob("*.stats.json")]
    there = bench.products(output)
    truthful = all(
        there.get(f"{name}{kind}") == truth[f"{name}{kind}"] for name in finished for kind in (".tar", ".parquet")
    )
    if "catalog.parquet" in there:
        truthful &= there == truth
    if victim == "worker":  # its run went on to the end
        truthful &= there == truth and len(finished) == sum(name.endswith(".tar") for name in truth)
    half_written = len(list(shards.glob(TEMPORARY)))
    equal = bench.again(output) == 0 and bench.products(output) == truth and not list(shards.glob(TEMPORARY))
    return Kill(victim, after, round(delay, 3), len(finished), half_written, run.returncode, truthful, equal)


def killed(pid: int) -> bool:
    """Kill a process; whether it was still there."""
    try:
        psutil.Process(pid).kill()
    except psutil.NoSuchProcess:
        return False
    return True


def run_faults(
    objects: Path | None = None,
    out: Path = Path("results/speed/faults.json"),
    moments: int = 50,
    limit: int = 8,
    size: int = 32,
    objects_per_shard: int = 2,
    params: Path = Path("presets/smoke.yaml"),
    seed: int = 0,
) -> int:
    """Kill the shard stage at random moments and compare what the next run makes with an undisturbed one.

    Args:
        objects: folder of object tars, such as datasets/procedural/smoke/objects; by default some are made.
        out: JSON file for the rows.
        moments: kills that hit something.
        limit: objects at most, evenly over the folder; or so many made.
        size: pixels a side of those that are made.
        objects_per_shard: so many to a shard.
        params: params file whose preset and voxel resolution are used.
        seed: of the moments, and of the objects.
    """
    if limit < 3 or moments < 1:
        raise BadInput("option_range", "--limit, --moments", f"{limit} objects, {moments} kills: too few")
    draw, rows, late, started = random.Random(seed), list[Kill](), Counter[str](), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="geolrm-faults-") as scratch:
        home = Path(scratch)
        paths = small_objects(home / "made", limit, size, seed) if objects is None else sorted(objects.glob("*.tar"))
        if not paths:
            raise BadInput("objects_missing", str(objects), "no object tars", "render or fetch a data set first")
        chosen = paths[:: max(1, len(paths) // limit)][:limit]
        bench, undisturbed = Bench(home / "bench", chosen, objects_per_shard, params), home / "undisturbed"
        run = bench.start(undisturbed)
        wait_until(lambda: writes(bench.shards(undisturbed)), run)
        first = time.perf_counter()
        wait_until((bench.shards(undisturbed).parent / "catalog.parquet").exists, run)
        span = time.perf_counter() - first
        if run.wait(WAIT) != 0:
            raise BadInput("undisturbed_failed", chosen[0].parent, "the stage fails on these objects undisturbed too")
        truth = bench.products(undisturbed)
        shards = sum(name.endswith(".tar") for name in truth)
        facts = passport(
            objects=[path.stem for path in chosen],
            pixels=size if objects is None else None,
            objects_per_shard=objects_per_shard,
            seed=seed,
            load=os.getloadavg()[0],
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        with tqdm(total=moments, desc="kills") as progress:
            while len(rows) < moments:
                victim, output = VICTIMS[len(rows) % len(VICTIMS)], home / "disturbed"
                after, delay = draw.randrange(shards), draw.uniform(0, 2 * span / shards)
                kill = disturb(bench, output, victim, after, delay, truth)
                shutil.rmtree(output)
                (bench.folder / DATASET / bench.preset / "shard-hashes.json").unlink(missing_ok=True)
                if kill is None:
                    late[victim] += 1
                    continue
                rows.append(kill)
                progress.update()
                summary = summed_up(rows, late, truth) | {
                    "undisturbed_seconds": round(span, 3),
                    "seconds": round(time.perf_counter() - started, 1),
                }
                record = {"summary": summary, "rows": [asdict(row) for row in rows], "passport": facts}
                write_whole(out, json.dumps(record, indent=1) + "\n")  # each time: a benchmark may be stopped too
    print(json.dumps(summary, indent=1))
    return 0 if summary["hold"] == len(rows) else 1


def summed_up(rows: list[Kill], late: Counter[str], truth: dict[str, str]) -> dict[str, Any]:
    """The counts of a record."""
    shards = sum(name.endswith(".tar") for name in truth)
    seen = [row for row in rows if row.victim != "worker"]  # a run that lost a worker had ended when it was looked at
    return {
        "kills": len(rows),
        "hold": sum(row.holds for row in rows),
        "equal": sum(row.equal for row in rows),
        "truthful": sum(row.truthful for row in rows),
        "by_victim": dict(Counter(row.victim for row in rows)),
        "runs_that_lost_a_worker_and_ended_well": sum(row.victim == "worker" and row.status == 0 for row in rows),
        "with_half_written_files": sum(row.half_written > 0 for row in rows),
        "of_main_and_scheduler": {
            "with_no_shard_finished": sum(row.finished == 0 for row in seen),
            "with_some_shards_finished": sum(0 < row.finished < shards for row in seen),
            "with_all_shards_finished": sum(row.finished == shards for row in seen),
        },
        "too_late_and_drawn_again": dict(late),
        "shards": shards,
    }


if __name__ == "__main__":
    sys.exit(run_command(lambda: tyro.cli(run_faults)))
