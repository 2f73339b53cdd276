"""Objects that become shards without lying here first: where each one is to be had, for the shard stage to fetch as it goes.

In: what `geolrm data fetch gobjaverse --addresses` chose from the index. Out: one file `addresses.json` beside the folder that
object tars would fill; from it the shard stage's inputs, each an `ObjectTar` with an `Address`. Convention: key and split follow
from the object's name, so that shards are planned before anything has come; an input stands for its address and for what is
known of it, never for its bytes, so that a finished shard holds while the source stays. Trade: other parameters mean fetching
again. Verified by comparing the shards with those of fetched object tars, byte by byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from geolrm.data.fetch import Ledger
from geolrm.data.shard_plan import ObjectTar
from geolrm.download import Manners
from geolrm.failures import BadInput
from geolrm.files import write_whole

FILE = "addresses.json"


@dataclass(frozen=True)
class Address:
    """Where one object lies.

    Attributes:
        source_id, url: what the source calls it, and where.
        facts: what is known of it besides its pictures, by the names of `gobjaverse.Facts`.
        known_sha256: of the source's bytes when they came before; None if they never did.
    """

    source_id: str
    url: str
    facts: Mapping[str, str | None]
    known_sha256: str | None = None


def write_addresses(home: Path, objects: Iterable[tuple[str, str, Address]], manners: Manners) -> Path:
    """Write down the objects, each as key, split and address, and how their server is to be treated; the file."""
    lines = [
        {"key": key, "split": split, "source_id": address.source_id, "url": address.url, "facts": dict(address.facts)}
        for key, split, address in objects
    ]
    write_whole(home / FILE, json.dumps({"manners": asdict(manners), "objects": lines}, indent=0) + "\n")
    return home / FILE


def read_addresses(home: Path) -> tuple[list[ObjectTar], Manners | None]:
    """The objects of `addresses.json` with what the ledger beside it knows of them, and the manners; none without the file.

    Raises:
        BadInput: `addresses_unreadable`.
    """
    path = home / FILE
    if not path.exists():
        return [], None
    try:
        record = json.loads(path.read_text())
        manners = Manners(**record["manners"])
        found = [
            (line["key"], line["split"], Address(line["source_id"], line["url"], line["facts"]))
            for line in record["objects"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        remedy = "write it again: geolrm data fetch gobjaverse --addresses"
        raise BadInput("addresses_unreadable", path, f"no list of addresses: {error}", remedy) from error
    ledger, inputs = Ledger(home / "fetch.jsonl"), []
    for key, split, address in found:
        content = json.dumps([address.url, dict(address.facts)], sort_keys=True).encode()
        before = ledger.records.get(key)
        size, known = (0, None) if before is None else (before.source_bytes, before.source_sha256)
        digest = hashlib.sha256(content).hexdigest()
        inputs.append(ObjectTar(key, split, address.url, digest, size, replace(address, known_sha256=known)))
    return inputs, manners


def shared(manners: Manners, workers: int) -> Manners:
    """Each worker's part of these manners: together they ask no more a second, over one connection each at least."""
    connections = max(1, manners.connections // workers)
    return replace(manners, connections=connections, requests_per_second=manners.requests_per_second / workers)
