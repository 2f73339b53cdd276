"""Pictures of the dashboard and of the report, taken in a real browser.

In: `results/<preset>/report.html` and the MLflow store (after `dvc repro`), a Chromium. Out: `report.png` and `mlflow.png`
beside this file, or in another folder. Convention: the server binds to loopback and runs in a process group of its own, which
is stopped whole at the end. Trade: the browser is driven through its own DevTools protocol (aiohttp comes with DVC), so that
pages have real time to draw and no browser driver is a dependency. Verified by looking at what it writes.

    python docs/images/screenshots.py --preset smoke
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import tyro

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0"),
)
# MLflow greets a new browser with a chat panel: close it. Its charts are many: show the ones that are read first.
TIDY = """
    document.querySelector('[data-component-id="mlflow.assistant.chat_panel.close"]')?.click();
    document.querySelector('input[placeholder="Search metric charts"]')?.select();
"""
CHARTS = "^psnr|ssim|cd_sum|fscore_0.1|latency"


@contextmanager
def process_group(command: list[str], **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own; the whole group is stopped at the end."""
    process = subprocess.Popen(
        command,
        env=os.environ | environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def wait_for(server: subprocess.Popen[bytes], address: str, seconds: float = 120) -> None:
    """Return once `address` answers; a server that ended is an error, even if something else answers there."""
    end = time.monotonic() + seconds
    while True:
        if server.poll() is not None:
            sys.exit("error: the MLflow server ended at once: is the port taken? choose another with --port")
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > end:
                sys.exit(f"error: {address} did not answer within {seconds:.0f} s")
            time.sleep(0.5)


async def photograph(port: int, address: str, picture: Path, size: tuple[int, int], seconds: float) -> None:
    """Open `address` in a new tab, give it `seconds` to draw, and save what a window of `size` shows."""
    numbers = itertools.count(1)
    async with aiohttp.ClientSession() as session:
        async with session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as answer:
            tab = await answer.json(content_type=None)
        async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as channel:

            async def call(method: str, **params: Any) -> Any:
                number = next(numbers)
                await channel.send_json({"id": number, "method": method, "params": params})
                while (message := await channel.receive_json()).get("id") != number:
                    pass
                return message["result"]

            width, height = size
            await call(
                "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
            )
            await call("Page.navigate", url=address)
            for _ in range(2):
                await asyncio.sleep(seconds / 2)
                await call("Runtime.evaluate", expression=TIDY)
                await call("Input.insertText", text=CHARTS)  # goes to the search box where the page has one
            await asyncio.sleep(4)
            shot = await call("Page.captureScreenshot", format="png")
    picture.write_bytes(base64.b64decode(shot["data"]))
    print(f"{picture} {width} x {height}")


def experiment(address: str, name: str) -> str:
    """Id of an experiment by its name, asked of the server."""
    query = f"{address}/api/2.0/mlflow/experiments/get-by-name?experiment_name={name}"
    with urllib.request.urlopen(query, timeout=30) as answer:
        return str(json.load(answer)["experiment"]["experiment_id"])


def main(
    preset: str = "smoke",
    name: str = "geolrm-bench-v1/smoke",
    tracking_uri: str = "sqlite:///mlflow.db",
    output: Path = Path(__file__).parent,
    browser: str = "chromium",
    port: int = 5077,
    seconds: float = 20.0,
) -> None:
    """Take both pictures; run it where `dvc repro` ran.

    Args:
        preset: whose results to show.
        name: of the experiment to show.
        tracking_uri: MLflow store.
        output: folder of the pictures.
        browser: a Chromium or Chrome.
        port: free port for the MLflow server.
        seconds: that a page gets to draw itself.
    """
    report = Path("results", preset, "report.html").resolve()
    if not report.exists():
        sys.exit(f"error: {report}: no such file; run `dvc repro` first")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            sys.exit(f"error: something answers on port {port} already: choose another with --port")
    address, profile = f"http://127.0.0.1:{port}", Path(tempfile.mkdtemp())
    server = ["mlflow", "server", "--backend-store-uri", tracking_uri, "--host", "127.0.0.1", "--port", str(port)]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (
        process_group([*server, "--workers", "1"], **quiet) as serving,
        process_group([browser, *FLAGS, f"--user-data-dir={profile}"]),
    ):
        marker = profile / "DevToolsActivePort"
        while not marker.exists() or not marker.read_text().strip():
            time.sleep(0.2)
        debugging = int(marker.read_text().splitlines()[0])
        asyncio.run(photograph(debugging, report.as_uri(), output / "report.png", (1280, 1500), min(seconds, 8)))
        wait_for(serving, f"{address}/health")
        charts = f"{address}/#/experiments/{experiment(address, name)}/runs?compareRunsMode=CHART"
        asyncio.run(photograph(debugging, charts, output / "mlflow.png", (1600, 1200), seconds))
    shutil.rmtree(profile, ignore_errors=True)


if __name__ == "__main__":
    tyro.cli(main)
