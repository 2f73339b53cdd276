"""Whether the shards in a folder are, byte for byte, what was written: every member hashed again, every row compared.

In: a data set's home, in a folder or a store. Out: one `BadInput` a fault, which names the file, the member and the reason,
the same reasons that the loader gives. The chain is checked from its end: the stats vouch for the shard's file and its rows,
the rows for the place of each member and the hash of `meta.json`, that one for every other member; the catalog must be the
rows of all shards, in order. Trade: each shard is read twice, once as a file and once by members, and one that lies in a
store is copied here first. Verified by planting each fault and by a folder without any.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from geolrm.data.catalog import read_rows
from geolrm.data.inventory import STATS, read_stats_file
from geolrm.data.loader import MemberReader
from geolrm.data.places import Place, names_in, on_disk, read_file
from geolrm.failures import BadInput
from geolrm.files import sha256_of

AGAIN = "run pipelines.shard again: only what does not hold is made anew"


@dataclass
class Verdict:
    """What was looked at, and what is wrong with it."""

    shards: int = 0
    objects: int = 0
    members: int = 0
    bytes: int = 0
    faults: list[BadInput] = field(default_factory=list)


def shard_names(home: Place) -> list[str]:
    """Every name `<split>-%06d` of which any file is there, sorted; temporary files of killed writers are none."""
    names = [name for name in names_in(home / "shards") if not name.startswith(".")]
    kinds = (".tar", ".parquet", STATS)
    return sorted({name.removesuffix(kind) for name in names for kind in kinds if name.endswith(kind)})


def verify(home: Place, workers: int = 1, progress: Callable[[int], object] = lambda _: None) -> Verdict:
    """Check all shards of a home against their stats, their rows and the catalog.

    Args:
        workers: shards at a time; hashing needs a core each.
        progress: told the bytes of each member that was checked.

    Raises:
        BadInput: `shards_missing`; `storage_failed` where a store does not answer.
    """
    names = shard_names(home)
    if not names:
        raise BadInput(
            "shards_missing", home, "nothing in its folder shards/", "name a folder such as datasets/gso/smoke"
        )
    verdict, catalog = Verdict(shards=len(names)), home / "catalog.parquet"
    listed: pa.Table | None = None
    try:
        listed = read_rows(catalog)
    except FileNotFoundError:
        verdict.faults.append(BadInput("catalog_missing", catalog, "no such file", AGAIN))
    except (pa.ArrowException, OSError) as error:
        verdict.faults.append(BadInput("catalog_unreadable", catalog, str(error), f"delete it; {AGAIN}"))
    if listed is not None:
        strangers = set(listed["shard"].to_pylist()) - {f"{name}.tar" for name in names}
        for stranger in sorted(strangers):
            verdict.faults.append(BadInput("shard_missing", home / "shards" / stranger, "the catalog names it", AGAIN))
    with ThreadPoolExecutor(workers) as pool:
        for checked in pool.map(lambda name: check_shard(home, name, listed, progress), names):
            verdict.objects += checked.objects
            verdict.members += checked.members
            verdict.bytes += checked.bytes
            verdict.faults += checked.faults
    return verdict


def check_shard(home: Place, name: str, catalog: pa.Table | None, progress: Callable[[int], object]) -> Verdict:
    """One shard's files, rows and members; the catalog's rows of it stand in where its own cannot be read."""
    tar, rows, stats = (home / "shards" / f"{name}{suffix}" for suffix in (".tar", ".parquet", STATS))
    listed = None if catalog is None else catalog.filter(pc.equal(catalog["shard"], tar.name))
    verdict, vouched, table = Verdict(), {"tar": None, "rows": None}, listed
    try:
        vouched = {kind: entry["sha256"] for kind, entry in read_stats_file(stats)["files"].items()}
    except FileNotFoundError:
        verdict.faults.append(BadInput("stats_missing", stats, "the shard was never finished", AGAIN))
    except BadInput as error:
        _unless_unreachable(error, verdict.faults)
    try:
        content = read_file(rows)
        if vouched["rows"] not in (None, hashlib.sha256(content).hexdigest()):
            verdict.faults.append(BadInput("rows_corrupt", rows, "not the bytes that the stats vouch for", AGAIN))
        else:
            table = read_rows(rows)
            if listed is not None and not table.equals(listed):
                detail = f"its rows of {tar.name} are not those of {rows.name}"
                verdict.faults.append(BadInput("catalog_differs", home / "catalog.parquet", detail, AGAIN))
    except FileNotFoundError:
        verdict.faults.append(BadInput("rows_missing", rows, "no such file", AGAIN))
    except (pa.ArrowException, OSError) as error:
        verdict.faults.append(BadInput("rows_corrupt", rows, str(error), AGAIN))
    try:
        with tempfile.TemporaryDirectory(prefix="geolrm-verify-") as scratch, on_disk(tar, Path(scratch)) as file:
            damaged = list(check_members(tar, file, table, verdict, progress))
            if not damaged and vouched["tar"] not in (None, sha256_of(file)):
                detail = "not the bytes that the stats vouch for, though all its listed members are whole"
                damaged = [BadInput("shard_differs", tar, detail, AGAIN)]
        verdict.faults += damaged
    except FileNotFoundError:
        verdict.faults.append(BadInput("shard_missing", tar, "no such file", AGAIN))
    return verdict


def check_members(
    tar: Place, file: Path, table: pa.Table | None, verdict: Verdict, progress: Callable[[int], object]
) -> Iterator[BadInput]:
    """The faults of the members that the rows list; `file` holds the shard's bytes."""
    for row in [] if table is None else table.select(["key", "sha256", "members"]).to_pylist():
        places = {member["name"]: (member["offset"], member["size"]) for member in row["members"]}
        reader = MemberReader(tar, row["key"], row["sha256"], places, file=file)
        verdict.objects += 1
        try:
            hashes = reader.read_meta()["sha256"]
        except (BadInput, KeyError) as error:
            yield _named(error, tar, row["key"])
            continue
        for name in sorted(hashes.keys() ^ (places.keys() - {"meta.json"})):
            detail = "in only one of the row and the metadata"
            yield BadInput("members_differ", f"{tar}: {row['key']}.{name}", detail, AGAIN)
        for name in sorted(hashes.keys() & places.keys()):
            try:
                reader.read(name)
            except BadInput as error:
                yield error
            verdict.members += 1
            verdict.bytes += places[name][1]
            progress(places[name][1])


def _named(error: BadInput | KeyError, tar: Place, key: str) -> BadInput:
    if isinstance(error, BadInput):
        return error
    return BadInput("members_differ", f"{tar}: {key}", f"the row or the metadata lacks {error}", AGAIN)


def _unless_unreachable(error: BadInput, faults: list[BadInput]) -> None:
    """Count a fault of the data; a store that does not answer says nothing about them."""
    if error.reason == "storage_failed":
        raise error
    faults.append(error)
