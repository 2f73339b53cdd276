"""Bad input as a value: an error that names its reason, its place and the way out.

Everything that comes from outside (archives, images, poses, meshes, shards, checkpoints, parameters) is checked where it
enters, and what fails the check raises `BadInput`. A loop over objects catches exactly this class, counts it by `reason`
in the stats or result rows, and goes on with the next object; any other exception is a defect and stops the run.
Reasons are short snake_case nouns, stable across versions, because dashboards and tests group by them. Every command ends
by `run_command`: what a person can put right is one plain message and status 1, a defect keeps its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool

from geolrm.files import disk_full


class BadInput(ValueError):
    """Input that cannot be used.

    Args:
        reason: stable snake_case name that stats and result rows count by, for example `pose_not_rotation`.
        where: the file, archive member, object key or parameter at fault.
        detail: what was seen, in plain words.
        remedy: what the user can do about it, if anything.
    """

    def __init__(self, reason: str, where: object, detail: str, remedy: str = "") -> None:
        self.reason = reason
        self.where = str(where)
        self.detail = detail
        self.remedy = remedy
        super().__init__(f"{where}: {detail} [{reason}]" + (f"\n  -> {remedy}" if remedy else ""))

    def __reduce__(self) -> tuple[type[BadInput], tuple[str, str, str, str]]:
        """Survive the trip between processes (Dask workers pickle their exceptions)."""
        return type(self), (self.reason, self.where, self.detail, self.remedy)


def run_command(main: Callable[[], int | None], *plain: type[Exception]) -> int:
    """Run a command to its exit status. Bad input, a full disk, a killed worker and `plain` end it with one message on stderr.

    Args:
        main: the command; returns its status, None for 0.
        plain: further errors whose text says all that is needed.
    """
    told: tuple[type[Exception], ...] = (BadInput, *plain)
    try:
        return main() or 0
    except told as error:
        message = str(error)
    except BrokenProcessPool:
        message = (
            "a worker process was killed: run the command again to go on where it stopped, with fewer --workers if "
            "memory ran out"
        )
    except Exception as error:
        full = disk_full(error)
        if full is None:
            raise
        message = str(full.strerror)
    print(f"error: {message}", file=sys.stderr)
    return 1
