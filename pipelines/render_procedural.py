"""Stage `render_procedural`: draws the procedural objects of a preset and writes them as object tars.

In: the `procedural` section of params.yaml. Out: `datasets/procedural/<preset>/objects/<split>-<number>.tar` and a manifest
that holds the hash of all that shapes a tar. Convention: a key is `train-00000`, `val-00000`, `test-00000`, and an object
is a function of (seed, key), so that changing a count changes no other object. Trade: each tar is written whole under its
name or not at all, so a run that was killed goes on where it was; what the manifest does not vouch for is rendered again.
Verified by killing it, and by the same bytes from one worker, two, and a resumed run.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Literal

import torch
import tyro
from tqdm import tqdm

from geolrm.config import Procedural, load_params
from geolrm.data import object_tar, procedural
from geolrm.failures import BadInput, run_command
from geolrm.files import TEMPORARY, write_whole

MANIFEST = "manifest.json"
Device = Literal["cpu", "cuda"]


def render_objects(settings: Procedural, folder: Path, workers: int, device: Device = "cpu") -> Counter[str]:
    """Render what is missing or stale in a folder of object tars, and remove what does not belong there.

    Returns:
        How many objects were "kept" and "rendered", and how many failed under each reason of `BadInput`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _sweep_stale(settings, folder, device)
    wanted = procedural.keys(settings)
    missing = [key for key in wanted if not object_tar.is_whole(folder / f"{key}.tar")]
    counts = Counter(kept=len(wanted) - len(missing), rendered=0)
    jobs = [(settings, key, folder / f"{key}.tar", device) for key in missing]
    results = _in_processes(jobs, workers) if workers > 1 and len(jobs) > 1 else map(_render_one, jobs)
    for reason in tqdm(results, total=len(jobs), desc="procedural objects", unit="object"):
        counts[reason or "rendered"] += 1
    return counts


def _sweep_stale(settings: Procedural, folder: Path, device: Device) -> None:
    """Leave only tars that the manifest vouches for and that are still wanted."""
    manifest = folder / MANIFEST
    content = procedural.drawn_from(settings, device)
    text = json.dumps({"hash": hashlib.sha256(json.dumps(content).encode()).hexdigest(), **content}, indent=1) + "\n"
    current = manifest.exists() and manifest.read_text() == text
    if not current:
        manifest.unlink(missing_ok=True)  # first: were we killed among the tars below, none of them would be trusted
    names = {f"{key}.tar" for key in procedural.keys(settings)} if current else set()
    for path in [*folder.glob("*.tar"), *folder.glob(TEMPORARY)]:
        if path.name not in names:
            path.unlink()
    if not current:
        write_whole(manifest, text)


def _render_one(job: tuple[Procedural, str, Path, Device]) -> str:
    """Render one object; returns "" or the reason why there is none."""
    settings, key, path, device = job
    try:
        obj = procedural.procedural_object(
            settings.seed, key, settings.resolution, settings.supersampling, torch.device(device), settings.variety
        )
        object_tar.write_object_tar(path, obj)
    except BadInput as error:
        tqdm.write(str(error))
        return error.reason
    return ""


def _in_processes(jobs: list[tuple[Procedural, str, Path, Device]], workers: int) -> Iterator[str]:
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=spawn, initializer=_start_worker)
    try:
        for future in as_completed([pool.submit(_render_one, job) for job in jobs]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # a full disk: what waits is not rendered in vain


def _start_worker() -> None:
    """One thread a worker; and a worker whose parent was killed does not stay behind."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def main(params: Path = Path("params.yaml"), workers: int | None = None, device: Device = "cpu") -> int:
    """Draw and render procedural objects as object tars; run again, it goes on where it was stopped.

    Args:
        params: the params file; its section `procedural` says what to draw, its preset names the output folder.
        workers: processes; the params file's number if not given.
        device: where rays are traced; cpu and cuda give the same objects up to rounding, not the same bytes.
    """
    parsed = load_params(params)
    folder = Path("datasets/procedural") / parsed.preset / "objects"
    counts = render_objects(parsed.procedural, folder, workers or parsed.procedural.workers, device)
    summary = ", ".join(f"{count} {what}" for what, count in counts.items())
    print(f"{folder}: {summary}")
    return int(counts["kept"] + counts["rendered"] < len(procedural.keys(parsed.procedural)))


if __name__ == "__main__":
    sys.exit(run_command(lambda: tyro.cli(main)))
