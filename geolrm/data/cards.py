"""Cards of data sets: what each is, under what terms, how it lies, and which objects its splits hold.

In: `datasets/<name>/card.yaml` and the lists that it names. Out: the card, checked; its text, which `geolrm data card NAME`
prints and `datasets/<name>/README.md` repeats. Convention: a split is a committed list, one name a line, held to its
hash; or a rule, where the objects are too many to list. Trade: one more file a data set, so that no fact stands twice by hand.
Verified by rendering every card and by planting each kind of mistake.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from geolrm.failures import BadInput

DATASETS = Path(__file__).parents[2] / "datasets"
GENERATED = "<!-- from card.yaml, by: geolrm data card {name} --write -->"


class Strict(BaseModel):
    """A part of a card that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Split(Strict):
    """Some objects of a data set under a name: a committed list with its hash, or a rule that names them."""

    name: str
    rule: str
    file: str | None = None
    count: int | None = None
    sha256: str | None = None


class Card(Strict):
    """What there is to know about a data set; `facts` are its further rows, in order."""

    name: str
    title: str
    what: str
    source: str
    licence: str
    attribution: str
    layout: str
    cameras: str
    surface: str
    facts: dict[str, str] = {}
    splits: Annotated[tuple[Split, ...], Field(strict=False)] = ()  # YAML has lists
    notes: str = ""


def card_names(root: Path = DATASETS) -> list[str]:
    """Data sets that have a card."""
    return sorted(path.parent.name for path in root.glob("*/card.yaml"))


def read_card(name: str, root: Path = DATASETS) -> Card:
    """The card of a data set, its lists checked against their hashes.

    Raises:
        BadInput: `card_missing`, `card_unreadable`, `split_changed`.
    """
    path = root / name / "card.yaml"
    if not path.is_file() or Path(name).name != name:
        remedy = f"choose one of {', '.join(card_names(root)) or 'none: run this in a clone of the repository'}"
        raise BadInput("card_missing", path, "no such card", remedy)
    try:
        card = Card.model_validate(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, ValidationError) as error:
        raise BadInput("card_unreadable", path, str(error), "mend the named field") from error
    if card.name != name:
        raise BadInput("card_unreadable", path, f"it is the card of {card.name!r}", "mend the field 'name'")
    for split in card.splits:
        if split.file is not None:
            split_objects(card, split.name, root)
    return card


def split_objects(card: Card, name: str, root: Path = DATASETS) -> list[str]:
    """The objects of a committed split, in order.

    Raises:
        BadInput: `split_missing`, `split_changed`.
    """
    split = next((split for split in card.splits if split.name == name), None)
    if split is None or split.file is None:
        lists = ", ".join(split.name for split in card.splits if split.file) or "none"
        raise BadInput("split_missing", card.name, f"no list {name!r}", f"its lists: {lists}")
    path = root / card.name / split.file
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise BadInput("split_missing", path, "no such file", "git checkout brings it back") from error
    objects, found = content.decode().splitlines(), hashlib.sha256(content).hexdigest()
    if found != split.sha256 or len(objects) != split.count:
        detail = f"{len(objects)} objects, SHA-256 {found}; the card says {split.count}, {split.sha256}"
        raise BadInput("split_changed", path, detail, "a split never changes: give a new one a new name")
    return objects


def render(card: Card) -> str:
    """The card as Markdown."""
    rows = {
        "what": card.what,
        "source": card.source,
        "licence": card.licence,
        "attribution": card.attribution,
        "layout": card.layout,
        "cameras": card.cameras,
        "surface": card.surface,
        **card.facts,
    }
    lines = [GENERATED.format(name=card.name), f"# {card.name}: {card.title}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {' '.join(text.split()).replace('|', chr(92) + '|')} |" for name, text in rows.items()]
    if card.splits:
        lines += ["", "| split | objects | rule | list | SHA-256 |", "|---|---:|---|---|---|"]
        for split in card.splits:
            listed = f"[{split.file}]({split.file})" if split.file else ""
            hashed = f"`{split.sha256}`" if split.sha256 else ""
            lines.append(
                f"| `{split.name}` | {split.count or ''} | {' '.join(split.rule.split())} | {listed} | {hashed} |"
            )
    if card.notes:
        lines += ["", card.notes.strip("\n").rstrip()]
    return "\n".join(lines) + "\n"
