"""Downloads from a server that misbehaves: each fault is mended, or named by its own reason."""

import base64
import hashlib
import json
import os
import threading
import time
from pathlib import Path

import pytest
from misbehaving_server import HTML, Page, Server, serving

from geolrm.download import Client, Manners, RemoteFile, Stopped, download_file
from geolrm.failures import BadInput
from geolrm.files import DiskFull

QUICK = Manners(connections=2, requests_per_second=1000, timeout=0.25, attempts=3, backoff=0.001)
DATA = os.urandom(100_000)


@pytest.fixture
def server():
    with serving() as server:
        server.pages["/a"] = Page(DATA)
        yield server


def read(server: Server, **changes) -> bytes:
    manners = Manners(**{**vars(QUICK), **changes})
    return RemoteFile(Client(manners), f"{server.url}/a").read_all()


def fetch(server: Server, path: Path, *, check=lambda _: None, expected=None):
    return download_file(Client(QUICK), f"{server.url}/a", path, check, lambda *_: None, expected)


def reason(call) -> str:
    with pytest.raises(BadInput) as caught:
        call()
    assert str(caught.value).startswith("http://127.0.0.1")  # every message names what it is about
    return caught.value.reason


@pytest.mark.parametrize(
    "fault", ["stall", "trickle", "reset", "short", "busy", "html", "disguised", 500, 502, 503, 429]
)
def test_what_goes_wrong_once_is_mended(server, fault):
    server.faults["/a"] = [fault]
    assert read(server) == DATA


@pytest.mark.parametrize("fault", ["stall", "trickle", "reset", "short"])
def test_a_break_is_taken_up_where_it_happened_and_not_from_the_beginning(server, fault):
    server.faults["/a"] = [fault, fault]
    assert read(server) == DATA
    first, second, third = server.asked("/a")
    assert first is None
    assert 0 < int(second[6:-1]) < int(third[6:-1]) < len(DATA)


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("stall", "network_stall"),
        ("trickle", "network_stall"),
        ("reset", "network_broken"),
        ("short", "length_mismatch"),
        ("busy", "http_status"),
        ("html", "html_page"),
        ("disguised", "html_page"),
        (500, "http_status"),
        (404, "http_not_found"),
        (410, "http_not_found"),
        (403, "http_forbidden"),
        (418, "http_status"),
    ],
)
def test_what_stays_wrong_has_its_own_reason(server, fault, named):
    server.faults["/a"] = [fault] * 20
    assert reason(lambda: read(server)) == named
    tries = 1 if fault in (404, 410, 403, 418) else QUICK.attempts
    assert len(server.asked("/a")) == tries  # what cannot get better is not asked for again


def test_no_server_at_all_is_a_broken_network():
    with serving() as server:
        url = server.url
    assert reason(lambda: RemoteFile(Client(QUICK), f"{url}/a").read_all()) == "network_broken"


def test_progress_between_breaks_renews_the_attempts(server):
    server.pages["/a"] = Page(os.urandom(9 << 20))
    server.faults["/a"] = ["short"] * (QUICK.attempts + 1)  # the first three bring over a MiB each
    assert read(server) == server.pages["/a"].body


def test_a_server_without_ranges_is_read_again_and_compared(server):
    server.pages["/a"].ranges = False
    server.faults["/a"] = ["reset"]
    assert read(server) == DATA


@pytest.mark.parametrize(
    ("before", "after", "ranges"),
    [
        ({}, DATA[::-1], True),  # another validator
        ({"ETag": ""}, DATA + b"more", True),  # no validator, another size
        ({"ETag": ""}, DATA[::-1], False),  # no validator, no ranges: other bytes
    ],
)
def test_content_that_changes_between_two_attempts_is_noticed(server, before, after, ranges):
    server.pages["/a"] = Page(DATA, dict(before), ranges)
    server.faults["/a"] = ["reset"]
    stream = RemoteFile(Client(QUICK), f"{server.url}/a")
    assert stream.read(1000) == DATA[:1000]
    server.pages["/a"] = Page(after, dict(before), ranges)
    assert reason(stream.read_all) == "content_changed"


def test_a_hash_in_the_header_is_held_to(server):
    server.pages["/a"].md5 = base64.b64encode(hashlib.md5(DATA).digest()).decode()
    assert read(server) == DATA
    server.faults["/a"] = ["wrong"]
    assert reason(lambda: read(server)) == "hash_mismatch"


def test_more_than_any_object_is_refused(server):
    stream = RemoteFile(Client(QUICK), f"{server.url}/a", limit=1000)
    assert reason(stream.read_all) == "too_large"


def test_an_index_that_is_no_json_is_refused(server):
    assert reason(lambda: Client(QUICK).json(f"{server.url}/a")) == "index_unreadable"


def test_requests_are_paced(server):
    client, start = Client(Manners(requests_per_second=20)), time.monotonic()
    for _ in range(5):
        client.get(f"{server.url}/a", {}).close()
    assert time.monotonic() - start >= 4 / 20


def test_being_told_to_stop_ends_a_stalled_read(server):
    server.faults["/a"] = ["stall"] * 9
    client = Client(Manners(timeout=0.2, attempts=100, backoff=60))
    threading.Timer(0.6, client.stop.set).start()
    start = time.monotonic()
    with pytest.raises(Stopped):
        RemoteFile(client, f"{server.url}/a").read_all()
    assert time.monotonic() - start < 5


# --- files ---


def test_a_file_takes_its_name_when_it_is_whole(server, tmp_path):
    came = fetch(server, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA
    assert (came.bytes, came.sha256) == (len(DATA), hashlib.sha256(DATA).hexdigest())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_later_run_takes_up_half_a_file(server, tmp_path):
    server.faults["/a"] = ["stall"] * QUICK.attempts
    assert reason(lambda: fetch(server, tmp_path / "a")) == "network_stall"
    half = (tmp_path / ".a.part").stat().st_size
    assert 0 < half < len(DATA)
    assert not (tmp_path / "a").exists()
    server.requests.clear()
    assert fetch(server, tmp_path / "a").sha256 == hashlib.sha256(DATA).hexdigest()
    assert server.asked("/a") == [f"bytes={half}-"]


def test_half_a_file_of_content_that_changed_since_is_thrown_away(server, tmp_path):
    server.faults["/a"] = ["stall"] * QUICK.attempts
    assert reason(lambda: fetch(server, tmp_path / "a")) == "network_stall"
    server.pages["/a"] = Page(DATA[::-1])
    fetch(server, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA[::-1]


def test_a_file_read_to_its_end_by_a_killed_run_is_not_asked_for_again(server, tmp_path):
    (tmp_path / ".a.part").write_bytes(DATA)
    about = {"url": f"{server.url}/a", "etag": None, "total": len(DATA)}
    (tmp_path / ".a.part.json").write_text(json.dumps(about))
    assert fetch(server, tmp_path / "a").sha256 == hashlib.sha256(DATA).hexdigest()
    assert server.requests == []


def test_spoilt_content_is_fetched_once_more_from_the_beginning(server, tmp_path):
    def check(path: Path) -> None:
        if path.read_bytes() != DATA:
            raise BadInput("zip_unreadable", f"{server.url}/a", "spoilt")

    server.faults["/a"] = ["wrong"]
    fetch(server, tmp_path / "a", check=check)
    assert (tmp_path / "a").read_bytes() == DATA
    assert server.asked("/a") == [None, None]
    server.faults["/a"] = ["wrong", "wrong"]
    assert reason(lambda: fetch(server, tmp_path / "b", check=check)) == "zip_unreadable"
    assert not list(tmp_path.glob("*b*"))


def test_other_bytes_than_an_earlier_run_got_are_refused(server, tmp_path):
    assert reason(lambda: fetch(server, tmp_path / "a", expected="0" * 64)) == "source_changed"
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_in_plain_words(server, tmp_path, monkeypatch):
    real = Path.open

    def full(path: Path, mode: str = "r", *rest, **more):
        if mode == "ab":
            raise OSError(28, "No space left on device")
        return real(path, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DiskFull, match="the disk is full"):
        fetch(server, tmp_path / "a")


def test_an_error_page_is_recognised_whatever_it_calls_itself(server, tmp_path):
    server.pages["/a"] = Page(b"\n  " + HTML)
    assert reason(lambda: fetch(server, tmp_path / "a")) == "html_page"
    assert not list(tmp_path.iterdir())
