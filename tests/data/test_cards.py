"""Cards: every data set has one, the READMEs say what they say, and lists are held to their hashes."""

import shutil
from pathlib import Path

import pytest
import yaml

from geolrm.data.cards import DATASETS, card_names, read_card, render, split_objects
from geolrm.data.fetch import by_hash
from geolrm.data.gso import SALT
from geolrm.data.licences import spdx
from geolrm.data.meshes import KNOWN_DATASETS
from geolrm.failures import BadInput


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of the cards, for tests to spoil."""
    for name in card_names():
        (tmp_path / name).mkdir()
        for path in (*(DATASETS / name).glob("*.yaml"), *(DATASETS / name).glob("*.txt")):
            shutil.copy(path, tmp_path / name)
    return tmp_path


def spoilt(root: Path, **changes) -> Path:
    path = root / "gso" / "card.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    return root


def test_every_data_set_has_a_card():
    folders = sorted(path.parent.name for path in DATASETS.glob("*/README.md"))
    assert card_names() == folders
    assert {"gso", "gobjaverse", "omniobject3d", "omniobject3d_native", "hope", "procedural"} <= set(folders)


@pytest.mark.parametrize("name", card_names())
def test_a_readme_is_its_card_rendered(name):
    written = (DATASETS / name / "README.md").read_text()
    assert written == render(read_card(name)), f"geolrm data card {name} --write"


def test_cards_and_mesh_readers_name_the_same_licences():
    for name, facts in KNOWN_DATASETS.items():
        card = read_card(name)
        assert spdx(facts.licence) != "unknown"
        assert card.licence.startswith(facts.licence)
        assert card.attribution == facts.attribution


def test_the_hundred_of_gso_are_the_first_by_hash_and_what_a_limit_of_100_takes():
    card = read_card("gso")
    names = split_objects(card, "names")
    assert len(names) == len(set(names)) == 1033
    assert split_objects(card, "gso-100") == by_hash(names, SALT)[:100]


def test_a_list_that_changed_is_refused(root):
    path = root / "gso" / "gso-100.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(["Another_Object", *lines[1:]]) + "\n")
    with pytest.raises(BadInput, match="split_changed"):
        read_card("gso", root)
    path.unlink()
    with pytest.raises(BadInput, match="split_missing"):
        read_card("gso", root)


def test_a_list_that_the_card_does_not_know_is_named_with_those_it_knows(root):
    with pytest.raises(BadInput, match="gso-100"):
        split_objects(read_card("gso", root), "gso-99", root)


@pytest.mark.parametrize("changes", [{"licens": "MIT"}, {"licence": 4}, {"name": "gos"}, {"splits": [{"name": "x"}]}])
def test_a_card_with_a_mistake_is_refused(root, changes):
    with pytest.raises(BadInput, match="card_unreadable"):
        read_card("gso", spoilt(root, **changes))


@pytest.mark.parametrize("name", ["nonsense", "../datasets/gso", ""])
def test_an_unknown_card_is_named_with_those_there_are(name):
    with pytest.raises(BadInput, match="choose one of gobjaverse, gso"):
        read_card(name)
