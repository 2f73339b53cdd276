"""Claims about how a command ends: well, with one plain message, or with the traceback of a defect."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool

import pytest

from geolrm.failures import BadInput, run_command


def raising(error: BaseException) -> Callable[[], int]:
    def main() -> int:
        raise error

    return main


@pytest.mark.parametrize(("result", "status"), [(None, 0), (0, 0), (3, 3)])
def test_a_command_that_ends_well_keeps_its_status(
    result: int | None, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(lambda: result) == status
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            BadInput("reason", "params.yaml", "what was seen", "way out"),
            "params.yaml: what was seen [reason]\n  -> way out",
        ),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "the disk is full: [Errno 28] No space left on device; "),
        (BrokenProcessPool("a process was terminated abruptly"), "a worker process was killed: run the command again"),
        (ArithmeticError("the command's own"), "the command's own\n"),
    ],
)
def test_what_a_person_can_put_right_is_one_message_and_status_1(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(raising(error), ArithmeticError) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {said}")


@pytest.mark.parametrize("error", [ArithmeticError("of nobody"), OSError(errno.EIO, "broken"), KeyboardInterrupt()])
def test_a_defect_keeps_its_traceback(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised:
        run_command(raising(error))
    assert raised.value is error
