"""What one reconstruction costs: seconds and bytes, of the method alone.

In: a method and its input views, already on its device. Out: what it made, median and 90th percentile of its seconds, seconds of
the stages that it names, peak bytes. Convention: after runs that are not counted (`EFFORTS` says how many) come timed ones, fewer
of both where they would take longer than their budget (`runs` says how many are timed); CUDA events, and memory allocated and
reserved on a GPU, less what the harness holds there; wall time and the process's peak resident memory, marked as such, on a CPU.
Trade: resident memory holds everything else in the process too; the first object pays for the many runs, later ones for a few.
Verified by methods of known duration and known allocation.
"""

from __future__ import annotations

import resource
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.methods import Method, Prediction
from benchmarks.stages import Stopwatch, recording
from geolrm.views import Views

CPU_MEMORY = "peak resident memory of the whole process"
CUDA_MEMORY = "peak memory allocated on the device"


@dataclass(frozen=True)
class Effort:
    """Attributes: `warm_ups` not counted; timed `runs`; `budget` seconds, beyond which no further run is begun."""

    warm_ups: int
    runs: int
    budget: float


EFFORTS = {  # of the first object of a view count in a process, and of those after it
    "cpu": (Effort(1, 3, 1.0), Effort(0, 3, 1.0)),
    "cuda": (Effort(3, 10, 10.0), Effort(1, 3, 2.0)),
}


@dataclass(frozen=True)
class Measured:
    """What was made and what it cost.

    Attributes:
        prediction: of the first timed run.
        latency_s: median of `runs` timed runs; `latency_p90_s` their 90th percentile.
        stages: median seconds of each stage that the method names.
        peak_memory_bytes: of the first timed run, see `CPU_MEMORY` and `CUDA_MEMORY`.
        peak_reserved_bytes: likewise, what the allocator held of the device; None on a CPU.
    """

    prediction: Prediction
    latency_s: float
    latency_p90_s: float
    runs: int
    stages: dict[str, float]
    peak_memory_bytes: int
    peak_reserved_bytes: int | None


@dataclass(frozen=True)
class _Run:
    prediction: Prediction
    seconds: float
    stages: dict[str, float]


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


def _run(method: Method, views: Views, on_cuda: bool) -> _Run:
    if on_cuda:
        torch.cuda.synchronize()
    with recording(on_cuda) as stages:
        watch = Stopwatch(on_cuda)
        prediction = method.reconstruct(views)
        watch.stop()
    return _Run(prediction, watch.seconds, stages)


@torch.no_grad()
def measure(method: Method, views: Views, first: bool, harness_bytes: int = 0) -> Measured:
    """Reconstruct and measure; raises what the method raises.

    Args:
        first: whether nothing of this size was run in this process before.
        harness_bytes: allocated on the device by others than the method, not to be counted.
    """
    on_cuda = views.colour.device.type == "cuda"
    effort = EFFORTS["cuda" if on_cuda else "cpu"][0 if first else 1]
    if on_cuda:
        torch.cuda.empty_cache()  # what scoring left with the allocator is no part of what the method reserves
    spent, left = 0.0, effort.warm_ups + 1  # the last of these is the first that counts
    while left:
        if on_cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            _reset_resident_peak()
        done = _run(method, views, on_cuda)
        spent, left = spent + done.seconds, left - 1
        if spent > effort.budget:
            left = min(left, 1 if first else 0)  # what is this slow, and not new here, needs no warming up
    peak = torch.cuda.max_memory_allocated() - harness_bytes if on_cuda else _resident_peak()
    reserved = torch.cuda.max_memory_reserved() - harness_bytes if on_cuda else None
    times, stages = [done.seconds], {name: [seconds] for name, seconds in done.stages.items()}
    while len(times) < effort.runs and sum(times) + done.seconds <= effort.budget:
        again = _run(method, views, on_cuda)
        times.append(again.seconds)
        for name, seconds in again.stages.items():
            stages.setdefault(name, []).append(seconds)
    medians = {name: statistics.median(found) for name, found in stages.items()}
    p90 = float(np.percentile(times, 90))
    return Measured(done.prediction, statistics.median(times), p90, len(times), medians, peak, reserved)
