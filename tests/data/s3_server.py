"""A real S3 server on loopback that can fail on demand: moto's, behind a switch."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from s3fs import S3FileSystem
from werkzeug.serving import WSGIRequestHandler, make_server


class Store:
    """`fail_after(n)` begins an outage once n more uploads are done: so many requests, or all until `recover`, are answered by
    503, an upload before its bytes are read, and the connection closed. `refuse_each_once()` answers every request so when it
    comes for the first time. `puts` and `gets` are the paths that were served."""

    def __init__(self) -> None:
        self.app = DomainDispatcherApplication(create_backend_app)
        self.left: int | None = None
        self.refusals: int | None = None
        self.refused = 0
        self.asked: set[tuple[str, ...]] | None = None
        self.puts: list[str] = []
        self.gets: list[str] = []
        self.lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        with self.lock:
            down = self.left == 0 or self._comes_first(method, path, environ["QUERY_STRING"])
            if down:
                self.refused += 1
                if self.refused == self.refusals:
                    self.recover()
            elif method == "PUT":
                self.puts.append(path)
                self.left = None if self.left is None else self.left - 1
            elif method == "GET":
                self.gets.append(path)
        if not down:
            return self.app(environ, start_response)  # type: ignore[no-any-return]
        start_response("503 Service Unavailable", [("Content-Length", "0"), ("Connection", "close")])
        return []

    def fail_after(self, puts: int, refusals: int | None = None) -> None:
        self.refused, self.left, self.refusals, self.asked = 0, puts, refusals, None

    def refuse_each_once(self) -> None:
        self.refused, self.refusals, self.asked = 0, None, set()

    def recover(self) -> None:
        self.left, self.asked = None, None

    def _comes_first(self, *request: str) -> bool:
        if self.asked is None or request in self.asked:
            return False
        self.asked.add(request)
        return True


class Quiet(WSGIRequestHandler):
    """No log: connections that end early are what these tests are about."""

    def log(self, *_: object) -> None: ...


@contextmanager
def s3_server(bucket: str) -> Iterator[tuple[Store, dict[str, str]]]:
    """The running store with an empty bucket, and the variables by which a process finds it. Connections that fsspec keeps of
    an earlier server, or would keep of this one, are forgotten: it knows them by their options, not by these variables."""
    store = Store()
    server = make_server("127.0.0.1", 0, store, threaded=True, request_handler=Quiet)  # type: ignore[arg-type]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    found = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
    }
    keys = {"aws_access_key_id": found["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": found["AWS_SECRET_ACCESS_KEY"]}
    boto3.client("s3", endpoint_url=url, region_name=found["AWS_DEFAULT_REGION"], **keys).create_bucket(Bucket=bucket)
    store.puts.clear()
    S3FileSystem.clear_instance_cache()
    try:
        yield store, found
    finally:
        S3FileSystem.clear_instance_cache()
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
