"""What one reconstruction costs: seconds and bytes, of the method alone.

In: a method and its input views, already on its device. Out: what it made, median seconds, peak bytes. Convention: after a
warm-up that is not counted, three timed runs, fewer where they would take longer than `BUDGETS` (`runs` says how many);
CUDA events and allocated memory on a GPU, wall time and the process's peak resident memory, marked as such, on a CPU. Trade:
resident memory holds everything else in the process too. Verified by a method of known duration and known allocation.
"""

from __future__ import annotations

import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.methods import Method, Prediction
from geolrm.views import Views

RUNS = 3
BUDGETS = {"cpu": 1.0, "cuda": 10.0}  # seconds of timed runs
CPU_MEMORY = "peak resident memory of the whole process"
CUDA_MEMORY = "peak memory allocated on the device"


@dataclass(frozen=True)
class Measured:
    """Attributes: `prediction`; `latency_s` median seconds of `runs`; `peak_memory_bytes` of the first of them."""

    prediction: Prediction
    latency_s: float
    runs: int
    peak_memory_bytes: int


def _reset_resident_peak() -> None:
    """Start the kernel's record of peak resident memory anew, where it lets a process do so."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # another system, or a sandbox: the peak since the process started is what there is
        return


def _resident_peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _timed(method: Method, views: Views) -> tuple[Prediction, float]:
    if views.colour.device.type != "cuda":
        start = time.perf_counter()
        prediction = method.reconstruct(views)
        return prediction, time.perf_counter() - start
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    first.record()
    prediction = method.reconstruct(views)
    last.record()
    torch.cuda.synchronize()
    return prediction, first.elapsed_time(last) / 1000


@torch.no_grad()
def measure(method: Method, views: Views, warm_up: bool) -> Measured:
    """Reconstruct and measure; raises what the method raises."""
    on_cuda = views.colour.device.type == "cuda"
    if warm_up:
        method.reconstruct(views)
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        _reset_resident_peak()
    prediction, seconds = _timed(method, views)
    peak = torch.cuda.max_memory_allocated() if on_cuda else _resident_peak()
    times = [seconds]
    while len(times) < RUNS and sum(times) + seconds <= BUDGETS["cuda" if on_cuda else "cpu"]:
        times.append(_timed(method, views)[1])
    return Measured(prediction, statistics.median(times), len(times), peak)
