"""Claims about whole files: what stands under a name is complete, or what stood there before."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from geolrm.files import sha256_of, whole_file, write_whole


def test_text_and_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    write_whole(tmp_path / "text", "größe\n")
    write_whole(tmp_path / "bytes", b"\x00\xff")
    assert (tmp_path / "text").read_bytes() == "größe\n".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bytes", "text"]


def test_an_error_on_the_way_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", "before")

    def fill_the_disk() -> None:
        with whole_file(tmp_path / "file") as temporary:
            temporary.write_text("hal")
            raise OSError(28, "the disk is full")

    with pytest.raises(OSError, match="full"):
        fill_the_disk()
    assert (tmp_path / "file").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_until_the_block_ends_readers_see_what_was_there(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", "before")
    with whole_file(tmp_path / "file") as temporary:
        temporary.write_text("after")
        assert (tmp_path / "file").read_text() == "before"
        assert temporary.parent == tmp_path  # a rename within one file system
    assert (tmp_path / "file").read_text() == "after"


def test_killed_while_writing_the_file_is_whole_and_the_next_writer_cleans_up(tmp_path: Path) -> None:
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
    write_whole(file, "after")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert file.read_text() == "after"


def test_the_hash_is_sha256_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 3_000_000)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"x" * 3_000_000).hexdigest()
