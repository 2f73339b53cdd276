"""Claims about files that are there whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from geolrm.files import TEMPORARY, DiskFull, disk_full, sha256_of, whole_file, write_whole


def test_a_file_appears_whole_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "old")
    with whole_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert sha256_of(path) == hashlib.sha256(b"new").hexdigest()


def interrupted_write(path: Path) -> None:
    with whole_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "old")
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_a_temporary_file_is_found_by_the_pattern_that_owners_sweep(tmp_path: Path) -> None:
    with whole_file(tmp_path / "file.tar") as temporary:
        temporary.touch()
        assert list(tmp_path.glob(TEMPORARY)) == [temporary]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_in_plain_words_also_from_another_process(tmp_path: Path, number: int) -> None:
    with pytest.raises(DiskFull) as error, whole_file(tmp_path / "file"):
        raise OSError(number, os.strerror(number))
    told = pickle.loads(pickle.dumps(error.value))
    assert isinstance(told, DiskFull)
    assert told.errno == number
    for words in ("the disk is full", "bytes are free", str(tmp_path / "file"), "run the same command again"):
        assert words in str(told.strerror)


@pytest.mark.parametrize(
    "words",
    [
        "Error while serializing: I/O error: No space left on device (os error 28)",  # safetensors
        'Failed to write pixel data to image file "x.exr". No space left on device.',  # OpenEXR
        "(sqlite3.OperationalError) database or disk is full\n[SQL: ...]",  # MLflow's store
    ],
)
def test_a_full_disk_is_known_by_the_words_of_those_who_give_no_number(tmp_path: Path, words: str) -> None:
    with pytest.raises(DiskFull) as error, whole_file(tmp_path / "file"):
        raise RuntimeError(words)
    assert error.value.errno == errno.ENOSPC
    assert disk_full(error.value) is error.value  # said once
    told = disk_full(RuntimeError(words))
    assert told is not None
    assert words.partition("\n")[0] in str(told.strerror)
    assert "\n" not in str(told.strerror)


def test_other_faults_of_a_disk_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output") as error, whole_file(tmp_path / "file"):
        raise OSError(errno.EIO, "Input/output error")
    assert not isinstance(error.value, DiskFull)
    assert disk_full(ValueError("the space left of the device")) is None


def test_killed_while_writing_the_file_is_whole_and_its_leftover_can_be_swept(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_whole(file, "before")
    code = (
        "import os, signal, sys; from pathlib import Path; from geolrm.files import whole_file\n"
        "with whole_file(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('hal'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code, str(file)], env=environment)
    assert done.returncode == -signal.SIGKILL
    assert file.read_text() == "before"
    for leftover in tmp_path.glob(TEMPORARY):
        leftover.unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
