"""What several tests share: where the optional shared folder lies, and one thread per process so that suites run side by side."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real scans, parity fixtures and LPIPS weights, named by GEOLRM_SHARED."""
    folder = os.environ.get("GEOLRM_SHARED")
    if not folder or not Path(folder).is_dir():
        pytest.skip("GEOLRM_SHARED names no folder: real scans and weights are not on this machine")
    return Path(folder).resolve()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)
