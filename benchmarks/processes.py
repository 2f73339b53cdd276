"""Work in a process of its own, so that no peak of memory, no cache and no crash of one method reaches the next.

In: a function that is given a `tell`. Out: what it tells, as it comes, and how its process ended: an error is raised here as if
it had been raised here, a crash is returned as the signal. Convention: where a GPU is used the process starts anew, since a
device does not survive a fork; else it is forked, which costs no import; the caller has then computed nothing in parallel before.
Trade: a worker whose parent was killed notices at the next `tell`, and ends. Verified by workers that raise, crash, and lose
their parent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from geolrm.failures import BadInput
from geolrm.files import DiskFull

Tell = Callable[[Any], None]
# What ends a process by its own doing, or the system's for want of memory; any other signal was meant to stop the sweep.
CRASHES = tuple(signal.Signals[f"SIG{name}"] for name in ("KILL", "SEGV", "BUS", "ABRT", "FPE", "ILL"))


class Stopped(Exception):
    """A worker was told to end by a signal from outside."""


def _work(work: Callable[[Tell], None], sending: Connection, receiving: Connection | None) -> None:
    if receiving is not None:
        receiving.close()  # so that telling fails once the parent is gone
    try:
        work(lambda message: sending.send(("told", message)))
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(1)
    except Exception as error:
        error.add_note("In the method's process:\n" + "".join(traceback.format_exception(error)))
        with contextlib.suppress(BrokenPipeError):
            sending.send(("raised", _portable(error)))
        raise SystemExit(1) from error


def _portable(error: Exception) -> Exception:
    """The error itself where its class survives the way between processes, else its text."""
    if isinstance(error, BadInput) or type(error).__module__ in ("builtins", DiskFull.__module__):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")


def in_own_process(
    work: Callable[[Tell], None], hear: Tell, start: Literal["fork", "spawn"] = "fork"
) -> signal.Signals | None:
    """Run `work(tell)` in a process of its own until it ends; whatever it tells is given to `hear`.

    Returns the signal of a crash, None where it ended well. Raises what `work` raised, and `Stopped`.
    """
    context: Any = get_context(start)
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(work, sending, receiving if start == "fork" else None))
    process.start()
    sending.close()
    error: Exception | None = None
    try:
        while True:
            try:
                kind, content = receiving.recv()
            except EOFError:
                break
            if kind == "raised":
                error = content
            else:
                hear(content)
        process.join()
    finally:
        if process.is_alive():
            process.terminate()
            process.join()
        receiving.close()
    if error is not None:
        raise error
    if process.exitcode == 0:
        return None
    ended = signal.Signals(-process.exitcode) if process.exitcode < 0 else None
    if ended not in CRASHES:
        raise Stopped(f"a worker ended with status {process.exitcode}")
    return ended


def memory_kills() -> int:
    """How many processes this machine's system has ended for want of memory; 0 where it does not say."""
    counters = Path("/proc/vmstat")
    lines = counters.read_text().splitlines() if counters.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
