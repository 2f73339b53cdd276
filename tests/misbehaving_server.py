"""An HTTP server on loopback that can misbehave on demand: a page for each address, and a list of faults to come first."""

import hashlib
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

HTML = b"<!DOCTYPE html><html><body>Sorry, too busy</body></html>"


@dataclass
class Page:
    """What lies at an address. `ranges`: whether the server knows Range; `md5`: a Content-MD5 header."""

    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    md5: str | None = None


class Server(ThreadingHTTPServer):
    """`faults[address]` are taken from the front, one a request; when none is left the page is served well.

    Faults: an int is a status; `busy` is 503 with Retry-After: 0; `stall` sends a third and then nothing; `trickle` a byte
    now and then; `reset` a third, then cuts the connection hard; `short` announces all and sends a third; `wrong` flips
    bytes; `html` is a page of words with status 200, `disguised` the same as if it were data.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, Page] = {}
        self.faults: dict[str, list[str | int]] = defaultdict(list)
        self.requests: list[tuple[str, str | None]] = []
        self.open = self.most_open = 0
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.delay = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def asked(self, address: str) -> list[str | None]:
        """The Range headers of the requests for an address."""
        return [given for path, given in self.requests if path == address]

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are what these tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            address = unquote(self.path)
            server.requests.append((address, self.headers.get("Range")))
            fault = server.faults[address].pop(0) if server.faults[address] else None
            server.open += 1
            server.most_open = max(server.most_open, server.open)
        try:
            time.sleep(server.delay)
            self.answer(server.pages.get(address), fault)
        finally:
            with server.lock:
                server.open -= 1

    def answer(self, page: Page | None, fault: str | int | None) -> None:
        if page is None or isinstance(fault, int):
            self.send(fault if isinstance(fault, int) else 404, b"no", {"Content-Type": "text/plain"})
        elif fault == "busy":
            self.send(503, b"later", {"Retry-After": "0"})
        elif fault in ("html", "disguised"):
            self.send(200, HTML, {"Content-Type": "text/html" if fault == "html" else "application/octet-stream"})
        else:
            self.serve(page, fault)

    def serve(self, page: Page, fault: str | int | None) -> None:
        body, start, status = page.body, 0, 200
        headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()[:16]}"', **page.headers}
        given = self.headers.get("Range")
        if given and page.ranges and self.headers.get("If-Range") in (None, headers["ETag"]):
            first, _, last = given.removeprefix("bytes=").partition("-")
            start, status = int(first), 206
            stop = min(int(last) + 1, len(body)) if last else len(body)
            if start >= len(body):
                return self.send(416, b"", {})
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(body)}"
            body = body[start:stop]
        elif page.md5 is not None:
            headers["Content-MD5"] = page.md5
        if fault == "wrong":
            middle = len(body) // 2
            body = body[:middle] + bytes(byte ^ 0x5A for byte in body[middle : middle + 40]) + body[middle + 40 :]
        if fault in (None, "wrong"):
            return self.send(status, body, headers)
        self.start(status, len(body), headers)
        self.wfile.write(body[: len(body) // 3])
        self.wfile.flush()
        self.close_connection = True
        if fault == "stall":
            self.server.released.wait(20)
        elif fault == "trickle":
            for byte in body[len(body) // 3 :]:
                if self.server.released.wait(0.05):
                    return
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def start(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.start(status, len(body), headers)
        self.wfile.write(body)


@contextmanager
def serving() -> Iterator[Server]:
    """A server for the length of a block."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
