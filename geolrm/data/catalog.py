"""The catalog: one Parquet row per object, saying where its bytes lie and what they are.

In: samples as they were written to a shard. Out: `<shard>.parquet` beside each shard and one merged `catalog.parquet`, from
which a loader reads any member of any object without opening a tar. Convention: offsets are those of a member's first
byte; `sha256` is the hash of the sample's `meta.json`, which lists the hashes of all other members, so that one hash per row
vouches for every byte. Trade: poses are repeated from the shard (5 KB an object) so that views can be chosen and data sets
compared without touching it. The writer's options are pinned and no time is stored: equal rows give equal bytes. Verified
by building twice, and by reading with pyarrow, pandas and the offsets.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from geolrm.data.places import PATIENCE, Place, is_remote, read_file, write_at
from geolrm.failures import BadInput

if TYPE_CHECKING:  # the catalog is read and merged without torch
    from geolrm.data.shards import EncodedObject

ROWS_PER_GROUP = 1024
_TEXTS = ("dataset", "split", "layout", "source_id", "licence", "attribution", "unit", "surface", "rig")
_COUNTS = (
    "height",
    "width",
    "voxel_resolution",
    "occupied_voxels",
    "voxels_seen_once",
    "refused_points",
    "surface_points",
    "test_views",
)
_POSES = pa.list_(pa.list_(pa.float32()))
SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        *(pa.field(name, pa.string()) for name in _TEXTS),
        *(pa.field(name, pa.int64(), nullable=False) for name in _COUNTS),
        pa.field("object_to_source", pa.list_(pa.float64())),
        pa.field("roles", pa.list_(pa.string())),
        pa.field("cropped_views", pa.list_(pa.int64())),
        pa.field("camera_to_world", _POSES),
        pa.field("intrinsics", _POSES),
        pa.field("test_camera_to_world", _POSES),
        pa.field("test_intrinsics", _POSES),
        pa.field(
            "members",
            pa.list_(pa.struct([("name", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])),
            nullable=False,
        ),
    ]
)


def catalog_row(sample: EncodedObject, shard: str, members: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of one sample in the shard of that file name, its members placed as `ShardWriter.add` says."""
    meta, test = sample.meta, sample.test_cameras
    return {
        "key": sample.key,
        "shard": shard,
        "sha256": hashlib.sha256(sample.members["meta.json"]).hexdigest(),
        **{name: meta[name] for name in (*_TEXTS, *_COUNTS, "roles", "cropped_views")},
        "object_to_source": [value for row in meta["object_to_source"] for value in row],
        "camera_to_world": sample.cameras.camera_to_world.flatten(1).tolist(),
        "intrinsics": sample.cameras.intrinsics.flatten(1).tolist(),
        "test_camera_to_world": [] if test is None else test.camera_to_world.flatten(1).tolist(),
        "test_intrinsics": [] if test is None else test.intrinsics.flatten(1).tolist(),
        "members": members,
    }


def rows_to_parquet(rows: Iterable[dict[str, Any]]) -> bytes:
    """Parquet file of catalog rows."""
    return _table_to_parquet(pa.Table.from_pylist(list(rows), schema=SCHEMA))


def merge_catalogs(paths: Iterable[Place], patience: float = PATIENCE) -> bytes:
    """Parquet file of all rows of these files, in this order."""
    tables = [read_rows(path, patience) for path in paths]
    return _table_to_parquet(pa.concat_tables(tables) if tables else SCHEMA.empty_table())


def read_rows(path: Place, patience: float = PATIENCE) -> pa.Table:
    """All rows of a shard or a catalog. Raises FileNotFoundError, pa.ArrowInvalid, BadInput as `steadily`."""
    return pq.read_table(pa.BufferReader(read_file(path, patience)), schema=SCHEMA)


def write_if_changed(path: Place, data: bytes, patience: float = PATIENCE) -> bool:
    """Write a file whole unless it already holds these bytes; says whether it wrote."""
    with suppress(FileNotFoundError):
        if read_file(path, patience) == data:
            return False
    write_at(path, data, patience)
    return True


def read_catalog(path: Place, split: str | None = None, columns: list[str] | None = None) -> pa.Table:
    """Rows of a catalog, of one split or of all, in the order of shards and keys.

    Raises:
        BadInput: `catalog_missing`, `catalog_unreadable`.
    """
    filters = None if split is None else [("split", "=", split)]
    try:
        # pyarrow's threads must hold no Python file: the interpreter can abort when it ends
        source = pa.BufferReader(read_file(path)) if is_remote(path) else path
        return pq.read_table(source, columns=columns, filters=filters)
    except FileNotFoundError as error:
        remedy = "make it: python -m pipelines.shard --dataset NAME"
        raise BadInput("catalog_missing", path, "no such file", remedy) from error
    except (pa.ArrowInvalid, OSError) as error:
        remedy = "delete it and run pipelines.shard again: it is made from the rows beside the shards"
        raise BadInput("catalog_unreadable", path, str(error), remedy) from error


def _table_to_parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        version="2.6",
        data_page_version="1.0",
        compression="zstd",
        compression_level=3,
        row_group_size=ROWS_PER_GROUP,
        use_dictionary=True,
        write_statistics=True,
    )
    return buffer.getvalue()
