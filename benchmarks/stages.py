"""Stages of a reconstruction, timed apart, as far as a method names them.

In: parts of a method's code, marked by `stage` (a block) or `name_stage` (every forward pass of a network). Out: seconds by
name while `recording`; outside it the marks do nothing. Convention: a name that occurs again adds up; CUDA events on a GPU, wall
time elsewhere; what no mark covers belongs to no stage. Trade: on a GPU a stage is what the device did between its two
events, so work that is still queued counts for the stage that queued it. Verified by stages of known length.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn


class Stopwatch:
    """Seconds from its making to `stop`; on a GPU between two events of the current stream."""

    def __init__(self, on_cuda: bool) -> None:
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if on_cuda else []
        self._seconds = 0.0
        if on_cuda:
            self._events[0].record()
        else:
            self._started = time.perf_counter()

    def stop(self) -> None:
        if self._events:
            self._events[1].record()
        else:
            self._seconds = time.perf_counter() - self._started

    @property
    def seconds(self) -> float:
        """Waits for the device."""
        if not self._events:
            return self._seconds
        self._events[1].synchronize()
        return float(self._events[0].elapsed_time(self._events[1])) / 1000


class _Record:
    def __init__(self, on_cuda: bool) -> None:
        self.on_cuda = on_cuda
        self.watches: list[tuple[str, Stopwatch]] = []

    def start(self, name: str) -> Stopwatch:
        watch = Stopwatch(self.on_cuda)
        self.watches.append((name, watch))
        return watch


_record: ContextVar[_Record | None] = ContextVar("stages", default=None)


@contextmanager
def recording(on_cuda: bool) -> Iterator[dict[str, float]]:
    """A dictionary that holds the seconds of every stage once the block has ended well."""
    record = _Record(on_cuda)
    token = _record.set(record)
    seconds: dict[str, float] = {}
    try:
        yield seconds
    finally:
        _record.reset(token)
    for name, watch in record.watches:
        seconds[name] = seconds.get(name, 0.0) + watch.seconds


@contextmanager
def stage(name: str) -> Iterator[None]:
    """A block that is a stage of this name."""
    record = _record.get()
    watch = record.start(name) if record else None
    yield
    if watch:
        watch.stop()


def name_stage(name: str, network: nn.Module) -> None:
    """From now on every forward pass of `network` is a stage of this name."""
    running: list[Stopwatch | None] = []

    def before(*_: Any) -> None:
        record = _record.get()
        running.append(record.start(name) if record else None)

    def after(*_: Any) -> None:
        if watch := running.pop():
            watch.stop()

    network.register_forward_pre_hook(before)
    network.register_forward_hook(after, always_call=True)
