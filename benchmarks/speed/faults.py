"""Killed with SIGKILL at random moments and run again, the shard stage ends on the bytes of an undisturbed run.

In: object tars, or small procedural objects made here. Out: a JSON file with one row a kill and its passport, and a page of it
beside; exit status 1 unless every row holds. Convention: the victims take turns (a worker, the main process with the scheduler
in it, the scheduler of a cluster of separate processes); the moment is drawn in two steps, so that it falls into the victim's
work however busy the machine is: so many shards must be finished, and then a time passes, at most what passed undisturbed until
the next one was, or until the catalog was there. A kill that finds no work left (a worker's ends with the last shard, the others'
with the catalog) hits nothing, is drawn again and noted. A row holds if, right after the kill, every shard that is marked as
finished has the undisturbed run's bytes; if a run that lost a worker ended well by itself; and if the next run ends well, on the
undisturbed run's bytes, with no temporary file left. Trade: small objects, since what differs between moments is which file is
half written, not its size; the next run is the stage's own function in this process, which spares a start of Python and begins
while what was killed may still be dying. Stopped and started again it goes on; ended by SIGTERM it ends what it started. Verified
by itself: stats that are written before their tar, or a writer without a temporary name, fail it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
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

    @contextmanager
    def running(self, output: Path, scheduler: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
        """The stage as a process of its own, writing below `output`, until the block ends."""
        command = [sys.executable, "-m", "pipelines.shard", "--dataset", DATASET, "--params", str(self.params)]
        command += ["--root", str(self.folder), "--output", str(output)]
        command += [] if scheduler is None else ["--scheduler", scheduler]
        run = background(command)
        try:
            yield run
        finally:
            run.kill()
            run.wait()

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


def end_in_order() -> None:
    """From now on SIGTERM ends this process as an error does: each block ends what it began."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


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


def timeline(bench: Bench, output: Path) -> list[float]:
    """Run the stage undisturbed: seconds from its first file to each finished shard in turn, and to the catalog.

    Raises:
        BadInput: `undisturbed_failed`.
    """
    shards, seconds = bench.shards(output), list[float]()
    catalog = shards.parent / "catalog.parquet"

    def something_new() -> bool:
        return catalog.exists() or finished(shards) > len(seconds)

    with bench.running(output) as run:
        wait_until(lambda: writes(shards), run)
        first = time.perf_counter()
        while wait_until(something_new, run) and not catalog.exists():
            seconds += [time.perf_counter() - first] * (finished(shards) - len(seconds))
        now = time.perf_counter() - first
        if run.wait(WAIT) != 0:
            raise BadInput("undisturbed_failed", bench.folder, "the stage fails on these objects undisturbed too")
    return [*seconds, *[now] * (finished(shards) + 1 - len(seconds))]


def moment(draw: random.Random, victim: str, seconds: list[float]) -> tuple[int, float]:
    """After how many shards, and how many seconds after that, to kill: within the work of this victim, by the `timeline`."""
    ends = seconds[:-1] if victim == "worker" else seconds
    after = draw.randrange(len(ends))
    return after, draw.uniform(0, ends[after] - ([0.0, *ends])[after])


def finished(shards: Path) -> int:
    return len(list(shards.glob("*.stats.json")))


def disturb(bench: Bench, output: Path, victim: str, after: int, delay: float, truth: dict[str, str]) -> Kill | None:
    """Run the stage, kill the victim so long after so many shards, look, run it again; None if the kill came too late."""
    shards, count = bench.shards(output), sum(name.endswith(".tar") for name in truth)
    catalog = shards.parent / "catalog.parquet"

    def at_the_moment(run: subprocess.Popen[bytes]) -> bool:
        """Wait for it; whether the victim still has work."""
        wait_until(lambda: writes(shards) and finished(shards) >= after, run)
        time.sleep(delay)
        left = finished(shards) < count if victim == "worker" else not catalog.exists()
        return left and run.poll() is None

    if victim == "scheduler":
        with cluster(bench.folder) as (address, scheduler), bench.running(output, address) as run:
            hit = at_the_moment(run)
            scheduler.kill()
            run.wait(WAIT)
    else:
        with bench.running(output) as run:
            hit = at_the_moment(run)
            pid = run.pid if victim == "main" else a_worker_of(run, shards)
            hit = pid is not None and killed(pid) and hit
            run.wait(WAIT)
    if not hit:
        return None
    done = [path.name.partition(".")[0] for path in shards.glob("*.stats.json")]
    there = bench.products(output)
    truthful = all(
        there.get(f"{name}{kind}") == truth[f"{name}{kind}"] for name in done for kind in (".tar", ".parquet")
    )
    if "catalog.parquet" in there:
        truthful &= there == truth
    if victim == "worker":  # its run went on to the end
        truthful &= there == truth and len(done) == count
    half_written = len(list(shards.glob(TEMPORARY)))
    equal = bench.again(output) == 0 and bench.products(output) == truth and not list(shards.glob(TEMPORARY))
    return Kill(victim, after, round(delay, 3), len(done), half_written, run.returncode, truthful, equal)


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
    limit: int = 24,
    size: int = 32,
    objects_per_shard: int = 3,
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
    end_in_order()
    with tempfile.TemporaryDirectory(prefix="geolrm-faults-") as scratch:
        home = Path(scratch)
        paths = small_objects(home / "made", limit, size, seed) if objects is None else sorted(objects.glob("*.tar"))
        if not paths:
            raise BadInput("objects_missing", str(objects), "no object tars", "render or fetch a data set first")
        chosen = paths[:: max(1, len(paths) // limit)][:limit]
        bench, undisturbed = Bench(home / "bench", chosen, objects_per_shard, params), home / "undisturbed"
        seconds = timeline(bench, undisturbed)
        truth = bench.products(undisturbed)
        facts = passport(
            objects=[path.stem for path in chosen],
            pixels=size if objects is None else None,
            objects_per_shard=objects_per_shard,
            shards=len(seconds) - 1,
            seed=seed,
            load=os.getloadavg()[0],
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        rows, late, spent = taken_up(out, facts)
        with tqdm(total=moments, initial=len(rows), desc="kills") as progress:
            while len(rows) < moments:
                started = time.perf_counter()
                victim, output = VICTIMS[len(rows) % len(VICTIMS)], home / "disturbed"
                after, delay = moment(random.Random(f"{seed} {len(rows) + len(late)}"), victim, seconds)
                kill = disturb(bench, output, victim, after, delay, truth)
                shutil.rmtree(output)
                (bench.folder / DATASET / bench.preset / "shard-hashes.json").unlink(missing_ok=True)
                spent += time.perf_counter() - started
                if kill is None:
                    late.append({"victim": victim, "after": after, "delay": round(delay, 3)})
                else:
                    rows.append(kill)
                    progress.update()
                record = {
                    "summary": summed_up(rows, late, facts["shards"])
                    | {"undisturbed_seconds": [round(second, 3) for second in seconds], "seconds": round(spent, 1)},
                    "rows": [asdict(row) for row in rows],
                    "too_late": late,
                    "passport": facts,
                }
                write_whole(out, json.dumps(record, indent=1) + "\n")  # each time: a benchmark may be stopped too
                write_whole(out.with_suffix(".md"), page(record))
    print(json.dumps(summed_up(rows, late, facts["shards"]), indent=1))
    return 0 if all(row.holds for row in rows) else 1


def taken_up(out: Path, facts: dict[str, Any]) -> tuple[list[Kill], list[dict[str, Any]], float]:
    """The kills, the draws that came too late and the seconds of an earlier run with the same code, objects and seed."""
    with suppress(FileNotFoundError, ValueError, KeyError):
        record = json.loads(out.read_text())
        if record["passport"] | {"load": None} == facts | {"load": None}:
            return [Kill(**row) for row in record["rows"]], record["too_late"], record["summary"]["seconds"]
    return [], [], 0.0


def summed_up(rows: list[Kill], late: list[dict[str, Any]], shards: int) -> dict[str, Any]:
    """The counts of a record."""
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
        "too_late_and_drawn_again": dict(Counter(draw["victim"] for draw in late)),
        "shards": shards,
    }


NAMES = {
    "worker": "a worker",
    "main": "the main process, with the scheduler in it",
    "scheduler": "the scheduler of a cluster",
}


def page(record: dict[str, Any]) -> str:
    """A record as a page."""
    about, summary, shards = record["passport"], record["summary"], record["summary"]["shards"]
    lines = [
        "# Kills at random moments",
        "",
        "Written by `python -m benchmarks.speed.faults`, with every row in the JSON file beside it. The shard stage makes "
        f"{shards} shards of {len(about['objects'])} small objects and is disturbed by SIGKILL; then the same command runs "
        "again. A kill holds if every shard that was marked as finished right after it had the undisturbed run's bytes, and if "
        "after the second run shards, rows and catalog are byte-equal to the undisturbed run's, with no temporary file left. "
        "A run that lost a worker must end well by itself.",
        "",
        f"**{summary['hold']} of {summary['kills']} hold.** A moment is drawn as a number of finished shards, and a time after "
        "that within what passed undisturbed until the next; one that found the victim's work done was drawn again.",
        "",
        "| killed | kills | hold | half-written files lay there | no shard finished | some | all | drawn again: too late |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for victim in VICTIMS:
        rows = [Kill(**row) for row in record["rows"] if row["victim"] == victim]
        late = summary["too_late_and_drawn_again"].get(victim, 0)
        # a run that lost a worker had gone on to its end when it was looked at: what it had then is what `after` says
        had = [row.after if victim == "worker" else row.finished for row in rows]
        counts = [len(rows), sum(row.holds for row in rows), sum(row.half_written > 0 for row in rows)]
        counts += [had.count(0), sum(0 < number < shards for number in had), had.count(shards), late]
        lines.append(f"| {NAMES[victim]} | {' | '.join(map(str, counts))} |")
    lines += [
        "",
        f"{summary['seconds'] / 60:.0f} minutes on {about['cores']} cores ({about['processor']}), commit "
        f"`{str(about['commit'])[:10]}`, seed {about['seed']}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(lambda: tyro.cli(run_faults)))
