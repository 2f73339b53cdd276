"""What papers say is quoted once, and as they say it."""

import re
from pathlib import Path

import pytest

from benchmarks.comparison import PAPER_SWEEP
from benchmarks.methods import published

ROOT = Path(__file__).parents[2]
METHODS = {"LGM": "lgm", "CRM": "crm", "InstantMesh": "instantmesh", "Ours": "geolrm"}
FIELDS = ("psnr", "ssim", "lpips", "cd_sum", "fscore_0.2", "latency_s", "memory_gb")


@pytest.fixture(scope="module")
def paper(shared):
    return (shared / "reference" / "paper.txt").read_text()


def test_every_number_of_geolrms_main_tables_is_quoted_and_no_other(paper):
    for name, method in METHODS.items():
        gso, omniobject3d = re.findall(rf"^\| {name} \|([\d.| ]+)\|$", paper, re.M)[:2]
        for table, cells in (("GeoLRM, GSO", gso), ("GeoLRM, OmniObject3D", omniobject3d)):
            said = dict(zip(FIELDS, map(float, cells.split("|")), strict=False))
            (ours,) = [quoted for quoted in published(method) if quoted["table"] == table]
            assert {field: ours[field] for field in FIELDS if field in ours} == said, (method, table)


def test_table_3_is_quoted_as_it_stands(paper):
    numbers = re.search(r"Num Input PSNR SSIM .*? Ours ((?:4|8) [\d. ]+)", paper)[1].split()
    lines = [list(map(float, numbers[i : i + 9])) for i in range(0, 45, 9)]
    for i, method in enumerate(("InstantMesh", "GeoLRM")):
        assert PAPER_SWEEP[method] == {int(line[0]): tuple(line[1 + i :: 2]) for line in lines}


def test_table_3_stands_in_one_file():
    telling = "24.79"  # GeoLRM at 16 views
    files = [
        *(ROOT / "benchmarks").rglob("*.py"),
        *(ROOT / "notebooks").glob("*.ipynb"),
        *(ROOT / "geolrm").rglob("*.py"),
    ]
    assert [file.name for file in files if telling in file.read_text()] == ["comparison.py"]
