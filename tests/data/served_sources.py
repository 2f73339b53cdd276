"""The listings and files of Gazebo Fuel and of GObjaverse, as pages of the server on loopback."""

import json
from typing import Any
from urllib.parse import quote

from misbehaving_server import Page, Server
from source_files import gobjaverse_tar

LISTING = "/1.0/models?per_page=100&q=collections:Scanned Objects by Google Research"


def fuel_record(name: str, **more: Any) -> dict[str, Any]:
    """One model as Fuel lists it."""
    licence = "Creative Commons - Attribution"
    return {"name": name, "owner": "GoogleResearch", "version": 1, "license_name": licence, "filesize": 5, **more}


def fuel_address(name: str, version: int = 1) -> str:
    return f"/1.0/GoogleResearch/models/{name}/{version}/{name}.zip"


def serve_fuel(
    server: Server, records: list[dict[str, Any]], zips: dict[str, bytes], total: int | None = None, pages: int = 3
) -> None:
    """Fuel's listing in pages, `total` of them announced, and the zips by name."""
    total = len(zips) if total is None else total
    for page in range(pages):
        address = LISTING if page == 0 else f"{LISTING}&page={page + 1}"
        headers = {"X-Total-Count": str(total)}
        if page + 1 < pages:
            headers["Link"] = f'<{quote(LISTING, safe="/?&=:")}&page={page + 2}>; rel="next"'
        server.pages[address] = Page(json.dumps(records[page::pages]).encode(), headers)
    versions = {record["name"]: record.get("version", 1) for record in records}
    for name, content in zips.items():
        server.pages[fuel_address(name, versions[name])] = Page(content)


def tar_address(name: str) -> str:
    return f"/objaverse_tar/{name}.tar"


def serve_gobjaverse(server: Server, objects: dict[str, dict[str, bytes]], categories: dict[str, list[str]]) -> None:
    """GObjaverse's index, the lists of some categories, the table of Objaverse's identifiers, and a tar an object."""

    def put(name: str, content: object) -> None:
        server.pages[f"/{name}"] = Page(json.dumps(content).encode())

    put("gobjaverse_280k.json", list(objects))
    for category, names in categories.items():
        put(f"gobjaverse_280k_split/gobjaverse_280k_{category}.json", names)
    put("gobjaverse_280k_index_to_objaverse.json", {name: f"000-000/u{i}.glb" for i, name in enumerate(objects)})
    for name, files in objects.items():
        server.pages[tar_address(name)] = Page(gobjaverse_tar(name.partition("/")[2], files))
