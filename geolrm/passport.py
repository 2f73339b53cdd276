"""What a number needs to be believed: code, machine, versions.

In: nothing but the process itself. Out: a flat dictionary that every checkpoint, result row and timing carries, to which the
caller adds what it knows (protocol, data set, checkpoint, precision, seed). Trade: the commit is asked of git where the code
lies in a repository, and null elsewhere. Verified by a test in a repository with and without uncommitted changes.
"""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "numba",
    "numpy",
    "gsplat",
    "lpips",
    "scikit-image",
    "webdataset",
    "open3d",
)


def commit(folder: Path = Path(__file__).parent) -> str | None:
    """Commit of the code in `folder`, with `+` appended where tracked files differ from it; None outside a repository."""
    try:
        head = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run(
            ["git", "-C", folder, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")


def processor() -> str:
    """The processor's name as the operating system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@cache
def _fixed() -> tuple[tuple[str, Any], ...]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return (
        ("commit", commit()),
        ("device", torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"),
        ("processor", processor()),
        ("cores", len(os.sched_getaffinity(0))),
        ("versions", versions),
    )


def passport(**known: Any) -> dict[str, Any]:
    """`commit`, `device`, `processor`, `cores`, `versions`, and what the caller knows beside them."""
    return {**dict(_fixed()), **known}
