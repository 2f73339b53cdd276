"""params.yaml: every mistake names its key, its file and the nearest valid key."""

import copy
from pathlib import Path

import pytest
import yaml

from geolrm.config import load_params, parse_params
from geolrm.failures import BadInput

ROOT = Path(__file__).parent.parent
SMOKE = yaml.safe_load((ROOT / "presets/smoke.yaml").read_text())


@pytest.mark.parametrize("path", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_preset_parses_and_is_named_after_its_file(path):
    assert load_params(path).preset == path.stem


def test_the_repository_holds_the_smoke_preset():
    assert load_params(ROOT / "params.yaml").preset == "smoke"


def changed(**changes: object) -> dict:
    data = copy.deepcopy(SMOKE)
    for dotted, value in changes.items():
        *sections, key = dotted.split("__")
        place = data
        for section in sections:
            place = place[section]
        if value is None:
            del place[key]
        else:
            place[key] = value
    return data


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shard__voxel_resolutoin": 64}, ["shard.voxel_resolutoin", "nearest valid key 'voxel_resolution'"]),
        ({"proposal__optimisation__step": 5}, ["proposal.optimisation.step", "'steps'"]),
        ({"sweeep": {}}, ["'sweeep'", "'sweep'"]),
        ({"sweep__seed": None}, ["missing key 'sweep.seed'"]),
        ({"sweep__objects": "three"}, ["sweep.objects", "'three'"]),
        ({"sweep__objects": 0}, ["sweep.objects"]),
        ({"reconstruction__optimisation__max_inputs": 12}, ["reconstruction.optimisation", "max_inputs"]),
        ({"proposal__voxel_resolution": 30}, ["proposal", "multiple"]),
        ({"shard__voxel_resolution": 64}, ["shard.voxel_resolution 64", "must be equal"]),
        ({"proposal__transformer__heads": 5}, ["multiple of 6"]),
    ],
)
def test_a_mistake_is_named_with_its_file(changes, words):
    with pytest.raises(BadInput) as caught:
        parse_params(changed(**changes), "my-params.yaml")
    for word in ["my-params.yaml", *words]:
        assert word in str(caught.value)


def test_whole_numbers_are_accepted_where_a_real_number_is_meant():
    assert parse_params(changed(reconstruction__losses__mse=1), "here").reconstruction.losses.mse == 1.0


def test_sections_are_frozen():
    params = parse_params(SMOKE, "here")
    with pytest.raises(ValueError, match="frozen"):
        params.sweep.objects = 5


def test_files_that_are_missing_or_no_yaml_are_named(tmp_path):
    with pytest.raises(BadInput, match="params_missing"):
        load_params(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(BadInput, match="params_not_yaml"):
        load_params(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(BadInput, match="params_not_a_mapping"):
        load_params(tmp_path / "list.yaml")
