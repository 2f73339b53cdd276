"""Claims about the catalog: equal rows give equal bytes, and its offsets lead to the members of the shard."""

import hashlib
import tarfile
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from spheres import build_all, sphere_object

from geolrm.data.catalog import SCHEMA, merge_catalogs, read_catalog, rows_to_parquet, write_if_changed


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("catalog")
    build_all(home, {"train": 3, "val": 1})
    return home


def test_offsets_lead_to_the_bytes_that_tarfile_finds(home: Path) -> None:
    for row in read_catalog(home / "catalog.parquet").to_pylist():
        path = home / "shards" / row["shard"]
        data = path.read_bytes()
        with tarfile.open(path) as tar:
            found = {m.name: (m.offset_data, m.size) for m in tar if m.name.startswith(f"{row['key']}.")}
        places = {f"{row['key']}.{m['name']}": (m["offset"], m["size"]) for m in row["members"]}
        assert places == found
        offset, size = places[f"{row['key']}.meta.json"]
        assert hashlib.sha256(data[offset : offset + size]).hexdigest() == row["sha256"]


def test_rows_say_where_each_object_was_seen_from(home: Path) -> None:
    row = read_catalog(home / "catalog.parquet", "val").to_pylist()[0]
    obj = sphere_object("val-00000", "val")
    kept = [i for i in range(40) if i not in (24, 39)]
    assert torch.equal(torch.tensor(row["camera_to_world"]).reshape(-1, 4, 4), obj.views.cameras.camera_to_world[kept])
    assert torch.equal(torch.tensor(row["intrinsics"]).reshape(-1, 3, 3), obj.views.cameras.intrinsics[kept])
    assert (row["dataset"], row["split"], row["licence"], row["surface"]) == (
        "spheres",
        "val",
        "CC0-1.0",
        "closed form",
    )


def test_the_catalog_is_the_rows_of_all_shards_in_order(home: Path) -> None:
    catalog = read_catalog(home / "catalog.parquet")
    assert catalog["key"].to_pylist() == ["train-00000", "train-00001", "train-00002", "val-00000"]
    assert catalog["shard"].to_pylist() == ["train-000000.tar"] * 2 + ["train-000001.tar", "val-000000.tar"]
    assert read_catalog(home / "catalog.parquet", "train").num_rows == 3


def test_equal_rows_give_equal_bytes(home: Path) -> None:
    rows = pq.read_table(home / "shards" / "train-000000.parquet").to_pylist()
    assert rows_to_parquet(rows) == rows_to_parquet(rows) == (home / "shards" / "train-000000.parquet").read_bytes()


def test_each_shard_is_a_trio_of_data_rows_and_stats(home: Path) -> None:
    names = sorted(path.name for path in (home / "shards").iterdir())
    shards = ("train-000000", "train-000001", "val-000000")
    assert names == sorted(f"{shard}{kind}" for shard in shards for kind in (".parquet", ".stats.json", ".tar"))


def test_pandas_pyarrow_and_duckdb_read_the_same_values_of_every_column(home: Path) -> None:
    for path in (home / "catalog.parquet", *sorted((home / "shards").glob("*.parquet"))):
        truth = pq.read_table(path).to_pylist()
        frame = pd.read_parquet(path)
        relation = duckdb.connect().read_parquet(str(path))
        assert list(frame.columns) == relation.columns == SCHEMA.names
        assert relation.to_arrow_table().to_pylist() == truth
        assert [plain(row) for row in frame.to_dict("records")] == truth


def plain(value: Any) -> Any:
    """What pandas gives as arrays, as lists."""
    if isinstance(value, np.ndarray | list):
        return [plain(item) for item in value]
    return {name: plain(item) for name, item in value.items()} if isinstance(value, dict) else value


def test_duckdb_answers_questions_across_all_shards(home: Path) -> None:
    database = duckdb.connect()
    found = database.sql(
        f"SELECT split, count(*), sum(occupied_voxels) FROM '{home}/shards/*.parquet' GROUP BY ALL ORDER BY 1"
    )
    rows = read_catalog(home / "catalog.parquet").to_pylist()
    voxels = {split: sum(row["occupied_voxels"] for row in rows if row["split"] == split) for split in ("train", "val")}
    assert found.fetchall() == [("train", 3, voxels["train"]), ("val", 1, voxels["val"])]
    question = f"SELECT member.size FROM (SELECT unnest(members) AS member FROM '{home}/catalog.parquet' WHERE key = 'val-00000')"
    sizes = [size for (size,) in database.sql(question).fetchall()]
    assert sizes == [member["size"] for member in rows[-1]["members"]]


def test_shards_of_nothing_merge_into_an_empty_catalog(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(rows_to_parquet([]))
    (tmp_path / "all.parquet").write_bytes(merge_catalogs([tmp_path / "a.parquet"]))
    assert read_catalog(tmp_path / "all.parquet").num_rows == 0


def test_a_file_that_already_holds_the_bytes_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "catalog.parquet"
    assert write_if_changed(path, b"one")
    before = path.stat().st_mtime_ns
    assert not write_if_changed(path, b"one")
    assert path.stat().st_mtime_ns == before
    assert write_if_changed(path, b"two")
