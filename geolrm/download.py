"""Bytes from HTTP servers that stall, break off, answer with errors or with the wrong thing.

In: a URL. Out: its bytes in order, as a stream or as a file that is there whole or not at all. Convention: one GET an object;
a connection that breaks or stalls is taken up where it broke (`Range`, with `If-Range` where the server gives a validator),
after a back-off that doubles, or after the time that the server asks for; a file that a killed run left half-done is taken
up likewise. Length, Content-Range, ETag and Content-MD5 are checked where the server gives them, and the SHA-256 of what came
is returned. What cannot be had is a `BadInput` whose reason says which way it failed. Trade: threads and blocking reads, since
the work beside the network (hashing, unpacking) releases the lock too; the HTTP itself is `requests` (proxies, redirects,
connection pools), its back-off urllib3's `Retry`, both long installed by DVC and MLflow. Verified against a server on
loopback that misbehaves in each of these ways.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from urllib3.exceptions import HTTPError, IncompleteRead, MaxRetryError, ReadTimeoutError
from urllib3.util import Retry

from geolrm.failures import BadInput
from geolrm.files import full_disk_named, whole_file, write_whole

CHUNK = 1 << 18
MAX_BYTES = 4 << 30  # more than any object of the data sets; a larger answer is refused before it fills the disk
MAX_INDEX_BYTES = 1 << 30
LONGEST_WAIT = 120.0  # seconds, of a back-off or of what a server asks for
SLOWEST = 1024.0  # bytes a second over a whole timeout; slower is a stall
FORGIVEN_AFTER = 1 << 20  # bytes since the last failure after which it no longer counts
RETRIED = (408, 425, 429, 500, 502, 503, 504)
REASONS = {404: "http_not_found", 410: "http_not_found", 401: "http_forbidden", 403: "http_forbidden"}
CONTENT_REASONS = frozenset({"content_changed", "hash_mismatch", "zip_unreadable", "tar_unreadable", "tar_truncated"})
HTML = re.compile(rb"\s*(?:<!doctype html|<html|<head|<\?xml)", re.IGNORECASE)
NETWORK_REMEDY = "run the same command again: what is done is kept and this goes on where it broke"


class Stopped(Exception):
    """The run was told to end while this was being fetched."""


@dataclass(frozen=True)
class Manners:
    """How a server is treated.

    Attributes:
        connections: at a time.
        requests_per_second: at most, over all connections.
        timeout: seconds without progress after which a connection is given up.
        attempts: for one object, without progress between them.
        backoff: seconds before the third attempt, doubled for each later one; the second is at once.
    """

    connections: int = 4
    requests_per_second: float = 10.0
    timeout: float = 30.0
    attempts: int = 6
    backoff: float = 1.0


@dataclass(frozen=True)
class Downloaded:
    """What came: its size, its SHA-256, and the server's validator for it, if any."""

    bytes: int
    sha256: str
    etag: str | None


class Client:
    """HTTP with manners, for many threads; `stop` ends all of its waits and reads."""

    def __init__(self, manners: Manners) -> None:
        self.manners = manners
        self.stop = threading.Event()
        self._local = threading.local()
        self._pace = threading.Lock()
        self._next = 0.0

    def get(self, url: str, headers: dict[str, str]) -> requests.Response:
        """One GET, its body unread. Raises requests.RequestException, `Stopped`."""
        with self._pace:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + 1 / self.manners.requests_per_second
        self.wait(start - now)
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
            self._local.session.headers["User-Agent"] = "geolrm/0.1"
        identity = {"Accept-Encoding": "identity", **headers}  # or ranges would count compressed bytes
        timeout = self.manners.timeout
        response: requests.Response = self._local.session.get(url, headers=identity, stream=True, timeout=timeout)
        return response

    def wait(self, seconds: float) -> None:
        """Sleep. Raises `Stopped`, at once when the run is told to end."""
        if self.stop.wait(max(seconds, 0.0)):
            raise Stopped

    def patience(self) -> Retry:
        """The attempts that one object has, and the pauses between them."""
        return Retry(
            total=self.manners.attempts - 1,
            backoff_factor=self.manners.backoff,
            backoff_max=LONGEST_WAIT,
            status_forcelist=RETRIED,
            raise_on_status=False,
        )

    def json(self, url: str) -> Any:
        """The JSON document at a URL.

        Raises:
            BadInput: as `RemoteFile`, and `index_unreadable`.
        """
        return self.json_page(url)[0]

    def json_page(self, url: str) -> tuple[Any, RemoteFile]:
        """The same, with the answer it came in (its headers and hash). Raises as `json`."""
        stream = RemoteFile(self, url, limit=MAX_INDEX_BYTES)
        content = stream.read_all()
        try:
            return json.loads(content), stream
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            detail = f"no JSON: {error}"
            raise BadInput("index_unreadable", url, detail, "has the source moved? --base-url names another") from error


class RemoteFile:
    """The bytes of one URL in order, from a position on; breaks are mended where they happen.

    Attributes:
        position: of the next byte.
        total: bytes in all, None while unknown.
        etag: of the content, None where the server gives none.
        response: the open answer, None between two attempts and at the end.
        answer: the latest good answer, for its headers.

    Raises:
        BadInput: from `read`: `http_not_found`, `http_forbidden`, `http_status`, `network_stall`, `network_broken`,
            `length_mismatch` (the server never gives all that it announced), `content_changed` (between two attempts),
            `hash_mismatch`, `html_page` (in place of data), `too_large`; `Stopped`.
    """

    def __init__(self, client: Client, url: str, *, limit: int = MAX_BYTES) -> None:
        self.client, self.url, self.limit = client, url, limit
        self.position = 0
        self.total: int | None = None
        self.etag: str | None = None
        self.response: requests.Response | None = None
        self.answer = requests.Response()
        self.digest = hashlib.sha256()
        self._md5: Any = None  # counted only where the server says what it should be
        self._expected_md5 = ""
        self._patience, self._since_failure = client.patience(), 0
        self._start, self._since = 0.0, 0  # of the window in which slowness is measured
        self._ended = False

    def take_up(self, prefix: Path, etag: str | None, total: int | None) -> None:
        """Go on after the bytes of a file, the beginning of the same content as the validator or the size says."""
        with prefix.open("rb") as file:
            while chunk := file.read(CHUNK):
                self._count(chunk)
        self.etag, self.total = etag, total

    def read(self, size: int = CHUNK) -> bytes:
        """Up to `size` bytes, at least one before the end, none at it."""
        while not self._ended:
            if self.client.stop.is_set():
                raise Stopped
            try:
                if self.response is None and self.total is not None and self.position == self.total:
                    data = b""  # a file that a killed run had read to its end
                elif self.response is None:
                    self._open()
                    continue
                else:
                    data = self._read_some(self.response, size)
            except (requests.RequestException, HTTPError, OSError) as error:
                self._again(error)
                continue
            if not data:
                self._finish()
                return b""
            if self.position == 0 and HTML.match(data):
                self._refuse_html("its first bytes are those of an HTML page")
                continue
            self._count(data)
            self._since_failure += len(data)
            if self.position > self.limit:
                raise BadInput("too_large", self.url, f"more than {self.limit:,} bytes")
            return data
        return b""

    def read_all(self) -> bytes:
        """All bytes from the position to the end."""
        chunks = []
        while chunk := self.read():
            chunks.append(chunk)
        return b"".join(chunks)

    def drain(self) -> Downloaded:
        """Read to the end, so that length and hashes are checked, and say what came."""
        while self.read():
            pass
        return Downloaded(self.position, self.digest.hexdigest(), self.etag)

    def close(self) -> None:
        """Give the connection back."""
        if self.response is not None:
            self.response.close()
            self.response = None

    def _count(self, data: bytes) -> None:
        self.digest.update(data)
        if self._md5 is not None:
            self._md5.update(data)
        self.position += len(data)

    def _open(self) -> None:
        """Ask for the bytes from the position on, and check that the answer is about the same content."""
        headers = {}
        if self.position:
            headers["Range"] = f"bytes={self.position}-"
            if self.etag and not self.etag.startswith("W/"):  # only a strong validator may guard a range
                headers["If-Range"] = self.etag
        response = self.client.get(self.url, headers)
        status = response.status_code
        if status in RETRIED:
            self._again(None, response)
            return
        if status == 416:
            response.close()
            raise BadInput("content_changed", self.url, f"has no byte {self.position} any more", NETWORK_REMEDY)
        if status not in (200, 206):
            response.close()
            raise _refused(self.url, status)
        self.response = self.answer = response
        self._start, self._since = time.monotonic(), 0
        if "html" in response.headers.get("Content-Type", ""):
            self._refuse_html("the server answers with an HTML page")
            return
        if self.position == 0 and "Content-MD5" in response.headers:
            self._md5 = hashlib.md5(usedforsecurity=False)
            self._expected_md5 = response.headers["Content-MD5"]
        start, total = _extent(response)
        etag = response.headers.get("ETag")
        changed = (total is not None and self.total not in (None, total)) or (etag and self.etag not in (None, etag))
        if changed or (status == 206 and start != self.position):
            self.close()
            detail = f"now {total} bytes ({etag}), before {self.total} ({self.etag})"
            raise BadInput("content_changed", self.url, detail, NETWORK_REMEDY)
        self.total, self.etag = total if self.total is None else self.total, etag or self.etag
        if self.total is not None and self.total > self.limit:
            self.close()
            raise BadInput("too_large", self.url, f"{self.total:,} bytes, more than {self.limit:,}")
        if status == 200 and self.position:
            self._skip_known(response)

    def _skip_known(self, response: requests.Response) -> None:
        """Read again what is known already, of a server that gives no ranges, and check that it still is the same."""
        known, digest = self.position, hashlib.sha256()
        while known:
            data = self._read_some(response, min(CHUNK, known))
            if not data:
                break
            digest.update(data)
            known -= len(data)
        if digest.digest() != self.digest.digest():
            self.close()
            raise BadInput("content_changed", self.url, f"its first {self.position} bytes changed", NETWORK_REMEDY)

    def _read_some(self, response: requests.Response, size: int) -> bytes:
        """Up to `size` bytes as they come; a trickle is a stall like silence."""
        data: bytes = response.raw.read1(size)
        self._since += len(data)
        seconds = time.monotonic() - self._start
        if data and seconds > self.client.manners.timeout:
            if self._since < SLOWEST * seconds:
                raise TimeoutError(f"{self._since} bytes in {seconds:.1f} s")
            self._start, self._since = time.monotonic(), 0
        return data

    def _refuse_html(self, seen: str) -> None:
        """A page of words in place of data passes on a busy server, and stays on one that has nothing else."""
        self.close()
        if self.position == 0:  # what it announced was the page's
            self.total, self.etag, self._md5, self._expected_md5 = None, None, None, ""
        try:
            self._pause(BadInput("html_page", self.url, seen), None)
        except MaxRetryError as error:
            raise BadInput(
                "html_page", self.url, seen, "open the address in a browser: it says what is wrong"
            ) from error

    def _again(self, error: Exception | None, response: requests.Response | None = None) -> None:
        """Close, pause, and let `read` ask again; raise what happened when the attempts are used up."""
        self.close()
        if self._since_failure >= FORGIVEN_AFTER:
            self._patience = self.client.patience()
        self._since_failure = 0
        try:
            self._pause(error, response)
        except MaxRetryError as last:
            raise self._gave_up(error, response) from last

    def _pause(self, error: Exception | None, response: requests.Response | None) -> None:
        raw = None if response is None else response.raw
        self._patience = self._patience.increment("GET", self.url, response=raw, error=error)
        asked = None if raw is None else self._patience.get_retry_after(raw)
        if response is not None:
            response.close()
        self.client.wait(min(asked or self._patience.get_backoff_time(), LONGEST_WAIT))

    def _gave_up(self, error: Exception | None, response: requests.Response | None) -> BadInput:
        attempts = self.client.manners.attempts
        if response is not None:
            return _refused(self.url, response.status_code)
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, TimeoutError | ReadTimeoutError | requests.Timeout):
                detail = (
                    f"no progress within {self.client.manners.timeout:g} s at byte {self.position}, {attempts} times"
                )
                return BadInput("network_stall", self.url, detail, NETWORK_REMEDY)
            if isinstance(cause, IncompleteRead):
                detail = f"ends at byte {self.position} of {self.total}, {attempts} times"
                return BadInput("length_mismatch", self.url, detail, NETWORK_REMEDY)
            nested = cause.args[1] if len(cause.args) > 1 and isinstance(cause.args[1], BaseException) else None
            cause = cause.__cause__ or cause.__context__ or nested
        detail = f"the connection broke at byte {self.position}, {attempts} times: {error}"
        return BadInput("network_broken", self.url, detail, NETWORK_REMEDY)

    def _finish(self) -> None:
        self.close()
        if self.total is not None and self.position != self.total:
            detail = f"{self.position} bytes, announced were {self.total}"
            raise BadInput("length_mismatch", self.url, detail, NETWORK_REMEDY)
        found = "" if self._md5 is None else base64.b64encode(self._md5.digest()).decode()
        if found != self._expected_md5:
            detail = f"Content-MD5 is {self._expected_md5}, the bytes give {found}"
            raise BadInput("hash_mismatch", self.url, detail, NETWORK_REMEDY)
        self._ended = True


def _refused(url: str, status: int) -> BadInput:
    remedies = {
        "http_not_found": "the source no longer has it; the other objects are not affected",
        "http_forbidden": "the source wants a key or refuses this address",
        "http_status": "the server has trouble: run the same command again later",
    }
    reason = REASONS.get(status, "http_status")
    return BadInput(reason, url, f"the server answers {status}", remedies[reason])


def _extent(response: requests.Response) -> tuple[int, int | None]:
    """First byte of an answer and the size of the whole, None where the server does not say."""
    if response.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None:
            return -1, None
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def twice_if_spoilt(fetch: Callable[[], Any]) -> Any:
    """What `fetch` returns; where content came spoilt, once more from the beginning. Raises as `fetch`."""
    try:
        return fetch()
    except BadInput as error:
        if error.reason not in CONTENT_REASONS:
            raise
    return fetch()


def download_file(
    client: Client,
    url: str,
    path: Path,
    check: Callable[[Path], None],
    progress: Callable[[int, RemoteFile], None],
    expected_sha256: str | None = None,
) -> Downloaded:
    """Fetch a file; it takes its name once all of its bytes are there and `check` (raises BadInput) accepts them.

    Meanwhile it is `.NAME.part`, with what is known of it in `.NAME.part.json`, which a later run takes up. `progress` is
    told how many bytes just came, and of the stream they came from, for its `position` and `total`.

    Raises:
        BadInput: as `RemoteFile`, and as `check`; `source_changed` where the hash is not `expected_sha256`.
        DiskFull: from `whole_file`.
    """
    part = path.with_name(f".{path.name}.part")
    known = part.with_name(f"{part.name}.json")

    def once() -> Downloaded:
        stream = RemoteFile(client, url)
        about = _read_about(known, url)
        if about is None:
            part.unlink(missing_ok=True)
        elif part.exists():
            stream.take_up(part, about["etag"], about["total"])
        try:
            with full_disk_named(path), part.open("ab") as file:
                while chunk := stream.read():
                    if about is None:
                        about = {"url": url, "etag": stream.etag, "total": stream.total}
                        write_whole(known, json.dumps(about))
                    file.write(chunk)
                    progress(len(chunk), stream)
            if expected_sha256 not in (None, stream.digest.hexdigest()):
                detail = f"its SHA-256 is {stream.digest.hexdigest()}, in an earlier run it was {expected_sha256}"
                raise BadInput("source_changed", url, detail, "delete its line in fetch.jsonl to accept the new one")
            check(part)
        except BadInput as error:
            if error.reason not in ("network_stall", "network_broken", "http_status", "length_mismatch"):
                part.unlink(missing_ok=True)  # what came is not the beginning of what is wanted
                known.unlink(missing_ok=True)
            raise
        finally:
            stream.close()
        result = stream.drain()
        with whole_file(path) as temporary:
            part.replace(temporary)
        known.unlink(missing_ok=True)
        return result

    downloaded: Downloaded = twice_if_spoilt(once)
    return downloaded


def _read_about(known: Path, url: str) -> dict[str, Any] | None:
    """What an earlier run noted of a half-done file, if it is of this URL and can be told from changed content."""
    with suppress(FileNotFoundError, ValueError, TypeError, KeyError):
        about = json.loads(known.read_text())
        if about["url"] == url and (about["etag"] or about["total"]):
            return {"etag": about["etag"], "total": about["total"]}
    return None
