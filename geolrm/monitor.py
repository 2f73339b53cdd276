"""How busy the machine is while work runs.

In: a file, and a block of code. Out: JSON lines in that file, one every few seconds: when, how busy processors and GPUs are, how
much memory the machine and this process use. Convention: names and units are those of MLflow's system metrics, so that its
dashboard knows them; all of the machine is seen, other people's work too; a block that goes on with earlier work adds to the
file, another begins it anew. Trade: one thread and half a millisecond every `EVERY` seconds; GPUs are seen where
nvidia-ml-py is installed (the extra `gpu`). A disk that fills up ends the lines, with a message, never the work. Verified by
blocks of known length, a made-up GPU and a file that cannot be written.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
from tqdm import tqdm

FILE = "system.jsonl"
EVERY = 5.0  # seconds
_MEGABYTE = 1e6


def gpus() -> list[Any]:
    """Handles of NVIDIA's management library, one a GPU; none without a driver, or without nvidia-ml-py."""
    if find_spec("pynvml") is None:
        return []
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]


def _sample_gpu(handle: Any) -> dict[str, float]:
    import pynvml

    asked = {
        "utilization_percentage": lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        "memory_usage_megabytes": lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).used / _MEGABYTE,
        "power_usage_watts": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
    }
    found = {}
    for name, ask in asked.items():
        try:
            found[name] = float(ask())
        except pynvml.NVMLError:  # not every GPU, nor every slice of one, tells everything: what it does not is absent
            continue
    return found


def sample(handles: list[Any]) -> dict[str, float]:
    """One line: `time` in seconds since the epoch, and system metrics as of now; processors since the last call."""
    memory = psutil.virtual_memory()
    found = {
        "time": time.time(),
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / _MEGABYTE,
        "system_memory_usage_percentage": memory.percent,
        "process_memory_megabytes": psutil.Process().memory_info().rss / _MEGABYTE,
    }
    for i, handle in enumerate(handles):
        found |= {f"gpu_{i}_{name}": value for name, value in _sample_gpu(handle).items()}
    return {name: round(value, 2) for name, value in found.items()}


@contextmanager
def watched(file: Path, fresh: bool, every: float = EVERY) -> Iterator[None]:
    """A block during which, and at whose end, lines are added to `file`.

    Args:
        fresh: begin the file anew; else what an earlier block wrote stays, a line that it left unfinished aside.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    done = Event()

    def watch() -> None:
        try:
            with file.open("wb" if fresh else "ab") as lines:
                lines.truncate(file.read_bytes().rfind(b"\n") + 1)
                handles, over = gpus(), False
                psutil.cpu_percent()  # from here on
                while not over:
                    over = done.wait(every)
                    lines.write(json.dumps(sample(handles)).encode() + b"\n")
                    lines.flush()
        except OSError as error:
            tqdm.write(f"!!! {file}: {error}: no more system metrics; the work goes on")

    thread = Thread(target=watch, name="monitor", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
