"""Google Scanned Objects from Gazebo Fuel: the collection listed and counted, each object's zip fetched and checked.

In: Fuel's listing of one collection, page by page. Out: `<name>.zip` as Fuel gives it, which `pipelines.render_meshes --layout
gso_zip` reads, with the licence that Fuel's record names in the ledger. Convention: the listing is filtered by collection, and
its count must be the collection's own (`X-Total-Count`) and the known one. Trade: zips stay whole, since a zip's directory lies
at its end; every member that is used is unpacked once, which checks its CRC. Verified against a server on loopback that pages,
miscounts and misbehaves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from geolrm.data.fetch import Fetched, Ledger, Progress, Task
from geolrm.data.licences import spdx
from geolrm.data.meshes import Dropped, gso_zip, safe_key
from geolrm.download import Client, download_file
from geolrm.failures import BadInput

BASE_URL = "https://fuel.gazebosim.org"
COLLECTION = "Scanned Objects by Google Research"
OWNER = "GoogleResearch"
OBJECTS = (1030, 1033)  # as the owners count, and the names as published (datasets/gso/names.txt)
PER_PAGE = 100
MAX_PAGES = 1000
SALT = "geolrm-bench-v1"  # of the order in which --limit takes objects; the split gso-100-v1 is its first hundred


@dataclass(frozen=True)
class Model:
    """One record of Fuel's listing."""

    name: str
    version: int
    licence: str | None
    categories: tuple[str, ...]

    @property
    def key(self) -> str:
        return safe_key(self.name)

    def url(self, base: str) -> str:
        """Of its zip, at this version."""
        name = quote(self.name)
        return f"{base}/1.0/{OWNER}/models/{name}/{self.version}/{name}.zip"


def list_models(client: Client, base: str, expected: Collection[int]) -> list[Model]:
    """The collection's models, sorted by name.

    Raises:
        BadInput: as `Client.json`; `index_unreadable`; `count_differs` where pages, header and `expected` disagree.
    """
    url: str | None = f"{base}/1.0/models?per_page={PER_PAGE}&q=collections:{quote(COLLECTION)}"
    models: dict[str, Model] = {}
    announced: int | None = None
    for _ in range(MAX_PAGES):
        assert url is not None
        records, stream = client.json_page(url)
        response = stream.answer
        if not isinstance(records, list):
            raise BadInput(
                "index_unreadable", url, "no list of models", "has the source moved? --base-url names another"
            )
        for record in records:
            model = _model(record, url)
            if model is not None:
                models[model.name] = model
        total = response.headers.get("X-Total-Count", "")
        announced = int(total) if total.isdigit() else announced
        following = response.links.get("next", {}).get("url")
        if not following:
            break
        url, before = urljoin(url, following), url
        if urlsplit(url).netloc != urlsplit(before).netloc:
            raise BadInput(
                "index_unreadable", before, f"its next page is on another host: {url}", "do not trust this server"
            )
    if announced is not None and announced != len(models):
        detail = f"its pages hold {len(models)} models of {OWNER}, its header says {announced}"
        raise BadInput(
            "count_differs", base, detail, "run the same command again; pages may have changed while being read"
        )
    if len(models) not in expected:
        detail = (
            f"the collection {COLLECTION!r} holds {len(models)} models, expected were {' or '.join(map(str, expected))}"
        )
        raise BadInput(
            "count_differs", base, detail, f"look at the collection; --expect {len(models)} accepts it as it is"
        )
    return [models[name] for name in sorted(models)]


def _model(record: Any, url: str) -> Model | None:
    """A listing's record, None where it belongs to another owner."""
    if not isinstance(record, dict) or not isinstance(record.get("name"), str) or not record["name"]:
        raise BadInput("index_unreadable", url, f"no model: {str(record)[:80]}")
    if record.get("owner", OWNER) != OWNER:
        return None
    version, categories = record.get("version"), record.get("categories") or ()
    return Model(
        record["name"],
        version if isinstance(version, int) and version > 0 else 1,
        record.get("license_name") if isinstance(record.get("license_name"), str) else None,
        tuple(str(category) for category in categories) if isinstance(categories, list | tuple) else (str(categories),),
    )


def task(client: Client, base: str, model: Model, folder: Path, ledger: Ledger) -> Task:
    """Fetch one object's zip."""
    url, target = model.url(base), folder / f"{model.key}.zip"

    def do(progress: Progress) -> Iterator[Fetched]:
        earlier = ledger.records.get(model.key)
        expected = earlier.source_sha256 if earlier is not None and earlier.source == url else None
        came = download_file(client, url, target, check_zip, lambda size, _: progress(size), expected)
        yield Fetched(
            model.key,
            model.name,
            target.name,
            came.bytes,
            came.sha256,
            url,
            came.bytes,
            came.sha256,
            model.licence if spdx(model.licence) == "unknown" else spdx(model.licence),
            ", ".join(model.categories) or None,
        )

    return Task(model.name, do, target, model.key)


def check_zip(path: Path) -> None:
    """Raise `BadInput` unless a zip holds a mesh with what it names, each member sound."""
    with path.open("rb") as file:
        if not file.read(2) == b"PK":
            raise BadInput(
                "zip_unreadable", path, "its first bytes are not those of a zip", "run the same command again"
            )
    for item in gso_zip(path):
        if isinstance(item, Dropped):
            raise item.error
