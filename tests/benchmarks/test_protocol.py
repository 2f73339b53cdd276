"""The protocol: its lists are what its rule draws, its page says what the code does, and its version 1 stays as it is."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import protocol, splits
from benchmarks.inputs import ViewPlan, farthest_point_order, nested_orbit
from geolrm.cameras import orbit
from geolrm.config import load_params
from geolrm.data.rig import render_rig, view_roles
from geolrm.failures import BadInput
from geolrm.files import sha256_of
from geolrm.metrics import image

ROOT = Path(__file__).parents[2]
FROZEN = "d75c5e772ab482ae030c45faf414d954ed695f16770653716d019f32e053d790"


def plan(key: str = "test-00000", has_tests: bool = True) -> ViewPlan:
    cameras = render_rig(key)
    roles = view_roles(cameras)
    distinct = [i for i, role in enumerate(roles) if role != "duplicate"]
    return ViewPlan.of(key, cameras[distinct], [roles[i] for i in distinct], has_tests)


# ------------------------------------------------------------------------------------------------------------- objects


def test_gso_100_is_what_the_rule_draws_from_the_published_names():
    names = splits.read_names(ROOT / "datasets" / "gso" / "names.txt")
    listed = splits.split_list("gso", "gso-100")
    assert len(names) == 1033
    assert listed == splits.draw(names)
    assert len(set(listed)) == 100
    assert listed[:2] == ["Twinlab_100_Whey_Protein_Fuel_Chocolate", "Ecoforms_Plant_Pot_GP9_SAND"]
    ranks = [splits.rank(name) for name in names]
    assert sorted(ranks)[99] == splits.rank(listed[-1])  # nothing outside the list ranks before its last


def test_the_ten_scans_are_parted_by_the_hash_of_their_names_alone():
    listed = {
        name: [key for dataset in splits.SCANS for key in splits.split_list(dataset, name)]
        for name in (splits.SCANS_VAL, splits.SCANS_TEST)
    }
    everything = [key for keys in listed.values() for key in keys]
    assert len(set(everything)) == len(everything) == 10
    drawn = splits.draw_scans(everything)
    assert {name: sorted(keys) for name, keys in drawn.items()} == {name: sorted(k) for name, k in listed.items()}
    assert drawn["scans-val"] == ["popcorn", "plate", "chefmate_8_frypan", "bottle_001", "can_004"]
    for dataset in splits.SCANS:  # each list in the order of the draw
        for name, keys in drawn.items():
            own = splits.split_list(dataset, name)
            assert own == [key for key in keys if key in own]


def test_the_committed_names_are_the_published_ones(shared):
    published = (shared / "reference" / "gso-names.txt").read_text().split()
    assert splits.read_names(ROOT / "datasets" / "gso" / "names.txt") == published


def test_a_list_is_frozen_once_it_is_drawn(tmp_path):
    folder = tmp_path / "toys"
    folder.mkdir()
    (folder / "names.txt").write_text("".join(f"toy_{i:03d}\n" for i in range(250)))
    first = splits.freeze("toys", tmp_path)
    drawn = first.read_text()
    assert len(drawn.split()) == 100
    assert splits.freeze("toys", tmp_path).read_text() == drawn
    (folder / "names.txt").write_text("".join(f"toy_{i:03d}\n" for i in range(260)))
    with pytest.raises(BadInput, match="split_frozen"):
        splits.freeze("toys", tmp_path)
    assert first.read_text() == drawn
    assert splits.split_list("toys", "toys-100", tmp_path) == drawn.split()
    assert splits.split_list("toys", "test", tmp_path) is None


def test_the_list_is_drawn_when_it_is_first_asked_for_and_one_that_was_changed_is_refused(tmp_path):
    folder = tmp_path / "toys"
    folder.mkdir()
    assert splits.split_list("toys", "toys-100", tmp_path) is None  # no names yet
    (folder / "names.txt").write_text("".join(f"toy_{i:03d}\n" for i in range(250)))
    listed = splits.split_list("toys", "toys-100", tmp_path)
    record = json.loads((folder / "toys-100.json").read_text())
    assert record["sha256"] == sha256_of(folder / "toys-100.txt") == splits.list_hash(listed)
    assert (record["names"], record["names_sha256"]) == (250, sha256_of(folder / "names.txt"))
    (folder / "names.txt").write_text("".join(f"toy_{i:03d}\n" for i in range(260)))
    assert splits.split_list("toys", "toys-100", tmp_path) == listed  # frozen
    (folder / "toys-100.txt").write_text("".join(f"{name}\n" for name in reversed(listed)))
    with pytest.raises(BadInput, match="split_changed"):
        splits.split_list("toys", "toys-100", tmp_path)


def test_the_page_names_the_eight_objects_that_are_kept():
    named = splits.split_list("gso", "gso-100")[: load_params(ROOT / "presets" / "paper.yaml").sweep.artefacts]
    assert len(named) == 8
    assert ", ".join(f"`{name}`" for name in named) in " ".join(protocol.PAGE.read_text().split())


@pytest.mark.parametrize("names", ["", "a\nb\na\n"])
def test_a_list_of_nothing_or_with_a_name_twice_is_refused(tmp_path, names):
    (tmp_path / "names.txt").write_text(names)
    with pytest.raises(BadInput, match="split_list"):
        splits.read_names(tmp_path / "names.txt")


# -------------------------------------------------------------------------------------------------------------- inputs


def test_orbit_inputs_are_the_floor_of_24_i_over_v():
    for count in protocol.VIEW_COUNTS:
        assert plan().inputs("orbit", count) == [24 * i // count for i in range(count)]


def test_nested_inputs_add_views_and_every_prefix_is_well_spread():
    order = nested_orbit()
    assert sorted(order) == list(range(24))
    for count in range(1, 25):
        taken = sorted(plan().inputs("nested", count))
        assert taken == sorted(order[:count])
        gaps = [(b - a) % 24 or 24 for a, b in zip(taken, taken[1:] + taken[:1], strict=True)]
        assert max(gaps) <= 2 * 24 / count  # no arc without a view is twice the even one
        sides = [sum(half * 12 <= i < half * 12 + 12 for i in taken) for half in range(2)]
        assert abs(sides[0] - sides[1]) <= 1  # nor do they gather on one side


def test_an_object_with_test_views_holds_nothing_else_out():
    assert plan().held_out == []
    assert len(plan().pool) == 38


def test_random_inputs_hang_on_the_object_alone_and_leave_the_ring():
    first, other = plan().inputs("random", 12), plan("test-00001").inputs("random", 12)
    assert first == plan().inputs("random", 20)[:12]
    assert len(set(first)) == 12
    assert first != other
    elevations = torch.stack(
        [plan(f"test-{i:05d}").cameras[plan(f"test-{i:05d}").inputs("random", 8)].positions[:, 2] for i in range(20)]
    )
    assert (elevations.abs() > 1.9).float().mean() > 0.1  # top and bottom, which the other sets never take
    assert (elevations < -1.9).any()


def test_native_cameras_with_an_orbit_hold_out_the_rest():
    native = plan(has_tests=False)
    assert native.inputs("orbit", 6) == [0, 4, 8, 12, 16, 20]
    assert native.held_out == list(range(24, 38))
    for name in ("orbit", "nested", "random"):
        assert not set(native.inputs(name, 20)) & set(native.held_out)


def test_native_cameras_without_an_orbit_hold_out_sixteen_well_spread_ones():
    generator = torch.Generator().manual_seed(0)
    cameras = orbit(torch.rand(60, generator=generator) * 360, torch.rand(60, generator=generator) * 85, 2.0, 40.0)
    native = ViewPlan.of("a", cameras, ["other"] * 60, has_tests=False)
    assert len(native.held_out) == 16
    assert 0 in native.held_out
    for name in ("orbit", "nested", "random"):
        picked = native.inputs(name, 21)
        assert len(set(picked)) == 21
        assert not set(picked) & set(native.held_out)
    with pytest.raises(BadInput, match="too_few_views"):
        native.inputs("orbit", 45)
    with pytest.raises(BadInput, match="no_test_views"):
        ViewPlan.of("a", cameras[:10], ["other"] * 10, has_tests=False)


def test_farthest_points_on_a_line_halve_it():
    places = torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 7, 8])
    assert farthest_point_order((places[:, None] - places).abs())[:3] == [0, 8, 4]


# ------------------------------------------------------------------------------------------------------ page and hash


def test_version_1_is_frozen():
    """Whoever turns this red has made another protocol: it needs another name."""
    assert protocol.protocol_hash() == FROZEN


def test_the_page_says_what_the_code_does():
    protocol.check_page()
    page = protocol.PAGE.read_text()
    assert f"Hash: `{FROZEN}`" in page
    assert protocol.block() in page


@pytest.mark.parametrize("where", ["code", "page"])
def test_a_page_that_says_something_else_stops_the_sweep(where, monkeypatch, tmp_path):
    page = tmp_path / "protocol.md"
    page.write_text(protocol.PAGE.read_text())
    protocol.check_page(page)
    if where == "code":
        monkeypatch.setattr(image, "SSIM_SIGMA", 2.0)
    else:
        page.write_text(page.read_text().replace('"points": 16384', '"points": 10000'))
    with pytest.raises(BadInput, match="protocol_page"):
        protocol.check_page(page)
    page.write_text(protocol.stamped(page.read_text()))
    protocol.check_page(page)


def test_the_paper_preset_runs_the_protocol_and_smaller_ones_say_how_they_differ():
    assert protocol.deviations(load_params(ROOT / "presets" / "paper.yaml").sweep) == []
    smoke = protocol.deviations(load_params(ROOT / "presets" / "smoke.yaml").sweep)
    assert "image_size 128, not 512" in smoke
    assert "mesh.resolution 96, not 256" in smoke
    assert "full_geometry False, not True" in smoke
