"""Licences under one name each, and which of them a user allows.

In: a licence as a source writes it (`by-nc`, `Creative Commons - Attribution`, `CC BY 4.0`). Out: its SPDX identifier where we
know it, and whether a list of allowed licences admits it. Convention: an object without a known licence is `unknown`, and is
admitted only by that word: silence is no permission. Trade: versions are told apart only where the source tells them;
Objaverse's short names are those of Creative Commons 4.0, as Sketchfab grants them. Verified name by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from geolrm.failures import BadInput

UNKNOWN = "unknown"
COMMERCIAL = "commercial"  # in a list of allowed licences: every known one that does not forbid commercial use
KNOWN = (
    "CC0-1.0",
    "CC-BY-4.0",
    "CC-BY-SA-4.0",
    "CC-BY-ND-4.0",
    "CC-BY-NC-4.0",
    "CC-BY-NC-SA-4.0",
    "CC-BY-NC-ND-4.0",
    "CC-BY-3.0",
    "CC-BY-SA-3.0",
    "Apache-2.0",
    "MIT",
)
_WORDS = {
    "attribution": "by",
    "sharealike": "sa",
    "noncommercial": "nc",
    "noderivatives": "nd",
    "noderivs": "nd",
}


def spdx(name: str | None) -> str:
    """The SPDX identifier of a licence, `unknown` where the name is none that we know."""
    if name is None:
        return UNKNOWN
    plain = name.lower().replace("share alike", "sharealike").replace("share-alike", "sharealike")
    plain = re.sub(r"\bnon[ -](?=commercial)", "non", plain)
    plain = re.sub(r"\bno[ -](?=deriv)", "no", plain)
    for known in KNOWN:
        if plain == known.lower():
            return known
    if re.search(r"\bcc[ -]?0\b|public domain", plain):
        return "CC0-1.0"
    words = [_WORDS.get(word, word) for word in re.findall(r"[a-z]+", plain)]
    if "by" not in words or not set(words) <= {
        "cc",
        "creative",
        "commons",
        "by",
        "nc",
        "sa",
        "nd",
        "international",
        "v",
    }:
        return UNKNOWN
    version = match[0] if (match := re.search(r"\d\.\d", plain)) else "4.0"
    parts = [part for part in ("nc", "sa", "nd") if part in words]
    return "-".join(["CC", "BY", *(part.upper() for part in parts), version])


def allowed(name: str | None, allow: Sequence[str]) -> bool:
    """Whether a list of allowed licences (`parse_allowed`; empty: no restriction) admits this one."""
    identifier = spdx(name)
    commercial = COMMERCIAL in allow and identifier != UNKNOWN and "-NC" not in identifier
    return not allow or identifier in allow or commercial


def parse_allowed(names: Iterable[str]) -> tuple[str, ...]:
    """A user's list of allowed licences as identifiers.

    Raises:
        BadInput: `licence_unknown`, for a word that names none.
    """
    parsed = []
    for name in names:
        identifier = name if name in (UNKNOWN, COMMERCIAL) else spdx(name)
        if identifier == UNKNOWN and name != UNKNOWN:
            remedy = f"name some of {', '.join(KNOWN)}, or {COMMERCIAL}, or {UNKNOWN}"
            raise BadInput("licence_unknown", "--license-allow", f"{name!r} is no licence that we know", remedy)
        parsed.append(identifier)
    return tuple(parsed)
