"""The benchmark's lists of objects: which objects of a data set a number is the mean over.

In: the names of a data set's objects as its owner publishes them, `datasets/<data set>/names.txt`, one a line; those of
OmniObject3D are written when all of it is first fetched. Out: the list of a split, `datasets/<data set>/<split>.txt`, names one a
line, and `<split>.json` with its hash. Convention: a split of N objects holds the N names with the smallest sha256 of name +
protocol, as UTF-8, in that order: nobody chose them, and the first ten are a draw of ten. Trade: a list is frozen once it is
written, so that objects which its source adds or removes later do not change it; a list that was changed is refused. Verified by
drawing the committed lists again from the committed names, and by planting other names and another list.

The ten scans of docs/real-scans.md have two lists, `scans-val` to choose a recipe by and `scans-test` to look at in the end:
the ten names in the order of sha256 of the name alone, the first five and the last five.

A sweep that asks for the list of a data set whose names are there draws it; `python -m benchmarks.splits --dataset NAME` does so
without a sweep, and says if the names would give another list by now.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from geolrm.failures import BadInput
from geolrm.files import sha256_of, write_whole

PROTOCOL = "geolrm-bench-v1"
SIZE = 100
NAMES = "names.txt"
DATASETS = Path(__file__).parents[1] / "datasets"
SCANS = ("gso", "hope")  # the data sets of the ten scans
SCANS_VAL, SCANS_TEST = "scans-val", "scans-test"
VAL_SCANS = 5


def rank(name: str) -> str:
    """What names are ordered by: the hex digest of sha256(name + protocol)."""
    return hashlib.sha256(f"{name}{PROTOCOL}".encode()).hexdigest()


def list_hash(names: list[str]) -> str:
    """sha256 of a list as its file holds it."""
    return hashlib.sha256(_text(names).encode()).hexdigest()


def _text(names: list[str]) -> str:
    return "".join(f"{name}\n" for name in names)


def draw(names: list[str], size: int = SIZE) -> list[str]:
    """The `size` names of smallest rank, smallest first; all of them where there are no more."""
    return sorted(set(names), key=rank)[:size]


def draw_scans(names: list[str]) -> dict[str, list[str]]:
    """The lists of the scans of these names: the first `VAL_SCANS` in the order of sha256, and the rest."""
    ordered = sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return {SCANS_VAL: ordered[:VAL_SCANS], SCANS_TEST: ordered[VAL_SCANS:]}


def read_names(path: Path) -> list[str]:
    """Names of a list, one a line. Raises `BadInput` for a name that stands twice, and for an empty list."""
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    twice = next((name for i, name in enumerate(sorted(names)[1:]) if sorted(names)[i] == name), None)
    if twice or not names:
        detail = f"{twice} stands twice" if twice else "no names"
        raise BadInput("split_list", path, detail, "one name a line, each once")
    return names


def split_list(dataset: str, split: str, datasets: Path = DATASETS) -> list[str] | None:
    """The objects of a split that is a list, in its order; None for a split of the catalog's own (train, val, test).

    The benchmark's list is drawn where it is not there and the names are. Raises `BadInput` (`split_changed`) for a list that is
    no longer what was frozen.
    """
    path = datasets / dataset / f"{split}.txt"
    if split == f"{dataset}-{SIZE}" and not path.is_file() and (datasets / dataset / NAMES).is_file():
        freeze(dataset, datasets)
    if not path.is_file() or path.name == NAMES:
        return None
    record = path.with_suffix(".json")
    if record.is_file() and json.loads(record.read_text())["sha256"] != sha256_of(path):
        raise BadInput("split_changed", path, f"it is not the list that {record.name} has the hash of", "restore it")
    return read_names(path)


def freeze(dataset: str, datasets: Path = DATASETS, size: int = SIZE) -> Path:
    """Draw the list `<data set>-<size>` from the data set's names and write it with its hash, once and for all.

    Raises `BadInput`: no names, fewer than `size`, or the list is there and these names would give another.
    """
    source, path = datasets / dataset / NAMES, datasets / dataset / f"{dataset}-{size}.txt"
    if not source.is_file():
        remedy = "write the names that the source publishes there, one a line"
        raise BadInput("names_missing", source, "no such file", remedy)
    names = read_names(source)
    if len(names) < size:
        raise BadInput("names_missing", source, f"{len(names)} names for a split of {size}", "list all of them")
    drawn = draw(names, size)
    if path.is_file():
        if read_names(path) != drawn:
            remedy = "keep the list: results stand on it; a new draw needs a new protocol"
            raise BadInput("split_frozen", path, f"{source.name} would give another list now", remedy)
        return path
    record = {"protocol": PROTOCOL, "names": len(names), "names_sha256": sha256_of(source), "sha256": list_hash(drawn)}
    write_whole(path.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    write_whole(path, _text(drawn))  # last: a list without its hash would hold whatever it says
    return path


if __name__ == "__main__":
    import sys

    import tyro

    def main(dataset: str, size: int = SIZE) -> None:
        """Freeze the list of a data set (datasets/DATASET/names.txt -> datasets/DATASET/DATASET-SIZE.txt)."""
        print(freeze(dataset, size=size))

    try:
        tyro.cli(main)
    except BadInput as error:
        sys.exit(f"error: {error}")
