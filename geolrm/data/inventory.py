"""What lies in a folder of shards, in numbers: the rows and totals behind `geolrm data ls`, `show` and `stats`.

In: a data set's home (`datasets/<name>/<preset>`, or the same in a store): `shards/` with their stats, `catalog.parquet`.
Out: rows of text for people, or one dictionary. Convention: counts of objects, drops, bytes and seconds come from the shards'
stats, what is known of each object from the catalog; nothing is decoded and no shard is opened. Verified on small shards
whose numbers are known.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from geolrm.data.catalog import read_catalog
from geolrm.data.places import Place, names_in, read_file, steadily
from geolrm.failures import BadInput

STATS = ".stats.json"


def table(rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of left-justified columns; numbers are set to the right, with separators. The first row is the heading."""
    texts = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    right = [all(isinstance(row[i], int) for row in rows[1:]) for i in range(len(widths))]
    return [
        "  ".join(
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in texts
    ]


def shard_stats(home: Place) -> list[dict[str, Any]]:
    """The stats of all finished shards, in order.

    Raises:
        BadInput: `shards_missing` where there is none, `stats_unreadable`.
    """
    names = [name for name in names_in(home / "shards") if name.endswith(STATS)]
    if not names:
        remedy = (
            "name a folder such as datasets/gso/smoke, or make its shards: python -m pipelines.shard --dataset NAME"
        )
        raise BadInput("shards_missing", home, "no finished shard in its folder shards/", remedy)
    return [read_stats_file(home / "shards" / name) for name in names]


def read_stats_file(path: Place) -> dict[str, Any]:
    """One shard's stats. Raises FileNotFoundError, BadInput: `stats_unreadable`."""
    content = read_file(path)
    try:
        found = json.loads(content)
        found["files"]["tar"]["sha256"], found["files"]["rows"]["sha256"], found["shard"]
    except (ValueError, KeyError, TypeError) as error:
        detail = f"not the stats of a shard: {type(error).__name__} {error}"
        raise BadInput("stats_unreadable", path, detail, "delete it and run pipelines.shard again") from error
    return dict(found)


def homes(root: Place) -> list[Place]:
    """The folder itself if it holds shards, else the folders `<data set>/<preset>` below it that do, sorted."""
    if names_in(root / "shards"):
        return [root]
    folders = steadily(lambda: list(root.glob("*/*/shards")), root)
    return sorted(path.parent for path in folders if names_in(path))


def list_homes(found: Iterable[Place]) -> list[list[object]]:
    """One row a data set and preset."""
    rows: list[list[object]] = [["folder", "shards", "objects", "dropped", "bytes", "splits"]]
    for home in found:
        stats = shard_stats(home)
        splits: Counter[str] = Counter()
        for entry in stats:
            splits[entry["split"]] += entry["objects_out"]
        words = ", ".join(f"{split} {count:,}" for split, count in sorted(splits.items()))
        counts = [sum(entry[name] for entry in stats) for name in ("objects_in", "objects_out", "bytes_out")]
        rows.append([str(home), len(stats), counts[1], counts[0] - counts[1], counts[2], words])
    return rows


def list_shards(home: Place) -> list[list[object]]:
    """One row a shard."""
    rows: list[list[object]] = [["shard", "objects", "dropped", "bytes", "why dropped"]]
    for entry in shard_stats(home):
        why = ", ".join(f"{reason} {count}" for reason, count in entry["drops"].items())
        dropped = entry["objects_in"] - entry["objects_out"]
        rows.append([entry["shard"], entry["objects_out"], dropped, entry["bytes_out"], why])
    return rows


def list_objects(home: Place, split: str | None = None) -> list[list[object]]:
    """One row an object."""
    columns = [
        "key",
        "split",
        "shard",
        "height",
        "width",
        "roles",
        "test_views",
        "occupied_voxels",
        "licence",
        "members",
    ]
    rows: list[list[object]] = [["object", "split", "shard", "views", "tests", "pixels", "voxels", "bytes", "licence"]]
    for row in read_catalog(home / "catalog.parquet", split, columns).to_pylist():
        size = sum(member["size"] for member in row["members"])
        pixels = f"{row['width']} x {row['height']}"
        rows.append(
            [row["key"], row["split"], row["shard"], len(row["roles"]), row["test_views"], pixels]
            + [row["occupied_voxels"], size, row["licence"] or "unknown"]
        )
    return rows


def find_object(home: Place, key: str) -> dict[str, Any]:
    """The catalog row of one object.

    Raises:
        BadInput: `object_unknown`, with the nearest keys.
    """
    import difflib

    catalog = read_catalog(home / "catalog.parquet")
    keys = catalog["key"].to_pylist()
    if key not in keys:
        near = ", ".join(difflib.get_close_matches(key, keys, n=5, cutoff=0.4)) or ", ".join(keys[:5])
        raise BadInput("object_unknown", home, f"no object {key!r} among {len(keys):,}", f"near it: {near}")
    row: dict[str, Any] = catalog.slice(keys.index(key), 1).to_pylist()[0]
    return row


def kind_of(member: str) -> str:
    """What a member is, without its view's number: `rgba`, `test.depth`, `surface`, ..."""
    parts = member.split(".")
    return ".".join(parts[:2]) if parts[0] == "test" else parts[0]


def describe(row: dict[str, Any]) -> list[list[object]]:
    """What the catalog knows of one object, as rows of name and value."""
    roles = ", ".join(f"{role} {count}" for role, count in Counter(row["roles"]).items())
    sizes: Counter[str] = Counter()
    for member in row["members"]:
        sizes[kind_of(member["name"])] += member["size"]
    share = row["occupied_voxels"] / row["voxel_resolution"] ** 3
    facts = {name: row[name] for name in ("key", "dataset", "split", "shard", "layout", "source_id", "licence")}
    facts |= {
        "attribution": row["attribution"],
        "views": f"{len(row['roles'])} of {row['width']} x {row['height']} ({roles})",
        "cropped views": ", ".join(map(str, row["cropped_views"])) or "none",
        "test views": row["test_views"],
        "voxels": f"{row['occupied_voxels']:,} of {row['voxel_resolution']}^3 ({share:.2%})",
        "refused points": row["refused_points"],
        "surface": f"{row['surface_points']:,} points from {row['surface']}",
        "bytes": f"{sum(sizes.values()):,} ({', '.join(f'{kind} {size:,}' for kind, size in sorted(sizes.items()))})",
        "meta.json sha256": row["sha256"],
    }
    return [[name, "unknown" if value is None else value] for name, value in facts.items()]


def merged_stats(home: Place) -> dict[str, Any]:
    """The stats of all shards as one: counts, drops by reason, bytes, seconds, what share of their grids the labels fill and
    how many of their voxels fewer than two views hit."""
    stats = shard_stats(home)
    grids = read_catalog(
        home / "catalog.parquet", columns=["occupied_voxels", "voxels_seen_once", "voxel_resolution"]
    ).to_pylist()
    drops, kinds, seconds, splits = (Counter[str]() for _ in range(4))
    for entry in stats:
        drops.update(entry["drops"])
        kinds.update(entry["member_bytes"])
        for step, time in entry["seconds"].items():
            seconds[step] += time
        splits[entry["split"]] += entry["objects_out"]
    total = {
        name: sum(entry[name] for entry in stats) for name in ("objects_in", "objects_out", "bytes_in", "bytes_out")
    }
    occupied, volume = (
        sum(row["occupied_voxels"] for row in grids),
        sum(row["voxel_resolution"] ** 3 for row in grids),
    )
    return {
        "shards": len(stats),
        **total,
        "objects_by_split": dict(sorted(splits.items())),
        "dropped_by_reason": dict(drops.most_common()),
        "bytes_by_member": dict(kinds.most_common()),
        "refused_points": sum(entry["refused_points"] for entry in stats),
        "occupied_voxels": occupied,
        "share_of_volume": occupied / volume if volume else None,
        "voxels_seen_by_fewer_than_two_views": sum(row["voxels_seen_once"] for row in grids),
        "seconds_by_step": {step: round(time, 3) for step, time in seconds.items()},
    }


def stats_lines(merged: dict[str, Any]) -> list[str]:
    """`merged_stats` in words."""

    def listed(counts: dict[str, int], unit: str = "") -> str:
        return ", ".join(f"{name} {count:,}{unit}" for name, count in counts.items()) or "none"

    dropped = merged["objects_in"] - merged["objects_out"]
    seen, occupied = merged["voxels_seen_by_fewer_than_two_views"], merged["occupied_voxels"]
    share = f" ({seen / occupied:.2%})" if occupied else ""
    seconds = merged["seconds_by_step"]
    rate = f", {merged['objects_in'] / seconds['total']:.2f} objects a second and core" if seconds.get("total") else ""
    steps = ", ".join(f"{step} {time:,.1f}" for step, time in seconds.items() if step != "total")
    rows: list[list[object]] = [
        ["shards", f"{merged['shards']:,}"],
        ["objects", f"{merged['objects_out']:,} ({listed(merged['objects_by_split'])})"],
        ["dropped", f"{dropped:,} of {merged['objects_in']:,} ({listed(merged['dropped_by_reason'])})"],
        ["bytes", f"{merged['bytes_out']:,} of shards from {merged['bytes_in']:,} of object tars"],
        ["bytes by member", listed(merged["bytes_by_member"])],
        ["occupied voxels", f"{occupied:,}"],
        ["share of the volume", "-" if merged["share_of_volume"] is None else f"{merged['share_of_volume']:.3%}"],
        ["seen by fewer than two views", f"{seen:,} voxels{share}"],
        ["refused depth pixels", f"{merged['refused_points']:,}"],
        ["seconds of one core", f"{seconds.get('total', 0.0):,.1f}{rate} ({steps})"],
    ]
    return table([["", ""], *rows])[1:]
