"""GObjaverse's layouts: every form gives the same object, depth lands on depth, and each defect has its reason."""

import gzip
import json
import tarfile

import pytest
import torch
from source_files import CENTRES, RADII, USED, gobjaverse_folder, gobjaverse_tar, gobjaverse_views, seen, tar_of

from geolrm.data import gobjaverse
from geolrm.data.fetch import Fetched, Ledger
from geolrm.data.gobjaverse import Facts, local_objects, local_task, split_of
from geolrm.data.object_tar import exr_bytes, read_object_tar
from geolrm.data.reprojection import reprojection_error
from geolrm.data.rig import render_rig, view_roles
from geolrm.failures import BadInput

HALF_VOXEL = 0.5 / 64  # at the pictures' 64 pixels
FACTS = Facts("uid1", "Animals", "CC-BY-4.0", "Dog by Someone")


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return gobjaverse_views()


def take_in(root, tmp_path, identifier="12/3456") -> Fetched:
    """What becomes of the only object of a local copy."""
    objects = local_objects(root)
    assert list(objects) == [identifier]
    folder = tmp_path / "objects"
    folder.mkdir(exist_ok=True)
    ledger = Ledger(tmp_path / "fetch.jsonl")
    (fetched,) = local_task(objects[identifier], identifier, FACTS, folder, ledger).do(lambda _: None)
    return fetched


def reason(files, tmp_path) -> str:
    (tmp_path / "12").mkdir(exist_ok=True)
    (tmp_path / "12" / "3456.tar").write_bytes(gobjaverse_tar("3456", files))
    with pytest.raises(BadInput) as caught:
        take_in(tmp_path, tmp_path)
    assert not list((tmp_path / "objects").iterdir())
    assert "12/3456" in str(caught.value) or "3456.tar" in str(caught.value)
    return caught.value.reason


FORMS = {
    "tar": lambda files: {"12/3456.tar": gobjaverse_tar("3456", files)},
    "tar without campos_512_v4": lambda files: {"12/3456.tar": gobjaverse_tar("3456", files, level="")},
    "tar with dict and dots": lambda files: {
        "12/3456.tar": tar_of({f"./12/3456/campos_512_v4/{name}": content for name, content in files.items()})
    },
    "compressed tar": lambda files: {"12/3456.tar": gzip.compress(gobjaverse_tar("3456", files), 1)},
}


@pytest.mark.parametrize("form", [*FORMS, "folder", "folder without campos_512_v4"])
def test_every_form_on_disk_becomes_the_same_tar_that_lands_depth_on_depth(files, tmp_path, form):
    root = tmp_path / "copy"
    if form in FORMS:
        for name, content in FORMS[form](files).items():
            (root / name).parent.mkdir(parents=True)
            (root / name).write_bytes(content)
    else:
        gobjaverse_folder(root, "12/3456", files, level="campos_512_v4/" if form == "folder" else "")
    fetched = take_in(root, tmp_path)
    assert (fetched.key, fetched.source_id, fetched.licence, fetched.unexpected) == (
        "12_3456",
        "12/3456",
        "CC-BY-4.0",
        (),
    )
    obj = read_object_tar(tmp_path / "objects" / "12_3456.tar", normals=True)
    assert obj.key == "12_3456"
    around = [i for i, role in enumerate(view_roles(obj.views.cameras)) if role in ("orbit", "ring")]
    error = reprojection_error(obj.views[around])
    assert error.median < HALF_VOXEL / 4
    assert error.occluded < 0.1


def test_pixels_and_normals_arrive_as_they_were_seen(files, tmp_path):
    gobjaverse_folder(tmp_path / "copy", "12/3456", files)
    take_in(tmp_path / "copy", tmp_path)
    with tarfile.open(tmp_path / "objects" / "12_3456.tar") as tar:
        for view, suffix in ((0, ".png"), (25, "_nd.exr"), (39, ".json")):
            member = f"12_3456/campos_512_v4/{view:05d}/{view:05d}{suffix}"
            assert tar.extractfile(member).read() == files[f"{view:05d}/{view:05d}{suffix}"]
        assert len(tar.getmembers()) == 40 * len(USED) + 1  # what is not used is not kept
    obj = read_object_tar(tmp_path / "objects" / "12_3456.tar", normals=True)
    depth, normals = obj.views.depth, obj.normals.permute(0, 2, 3, 1)
    points = obj.views.cameras.unproject(depth)[depth > 0]
    offsets = points[:, None] - CENTRES
    nearest = (offsets.norm(dim=-1) - RADII).abs().argmin(-1)
    true = torch.nn.functional.normalize(offsets[torch.arange(len(points)), nearest], dim=-1)
    assert ((normals[depth > 0] * true).sum(-1) > 0.999).all()


def test_the_metadata_says_where_from_and_under_what_licence(files, tmp_path):
    gobjaverse_folder(tmp_path / "copy", "12/3456", files)
    fetched = take_in(tmp_path / "copy", tmp_path)
    meta = read_object_tar(tmp_path / "objects" / "12_3456.tar").meta
    assert {name: meta[name] for name in ("licence", "attribution", "category", "objaverse_uid", "source_id")} == {
        "licence": "CC-BY-4.0",
        "attribution": "Dog by Someone",
        "category": "Animals",
        "objaverse_uid": "uid1",
        "source_id": "12/3456",
    }
    assert (meta["split"], meta["source_sha256"]) == (split_of("12/3456"), fetched.source_sha256)


@pytest.mark.parametrize("axes", [("y", "z"), ("x", "z"), ("x", "y")])
def test_axes_in_another_convention_are_refused_before_more_is_fetched(files, tmp_path, axes):
    turned = dict(files)
    for name in [name for name in files if name.endswith(".json")]:
        record = json.loads(files[name])
        turned[name] = json.dumps(record | {axis: [-value for value in record[axis]] for axis in axes}).encode()
    gobjaverse_folder(tmp_path / "copy", "12/3456", turned)
    fetched = take_in(tmp_path / "copy", tmp_path)
    with pytest.raises(BadInput, match="reprojection"):
        gobjaverse.accept([tmp_path / "objects" / fetched.file], 0.5 / 128)


def test_ray_length_in_place_of_planar_depth_is_refused_and_the_true_depth_is_not(files, tmp_path):
    cameras = render_rig("some")
    _, depth, normals = seen(cameras, 64)
    origins, directions = cameras.rays(64, 64)
    changed = dict(files)
    for view in range(40):
        ray = depth[view] * directions[view].norm(dim=-1).numpy()
        changed[f"{view:05d}/{view:05d}_nd.exr"] = exr_bytes(normals[view].numpy(), ray)
    for name, content in (("good", files), ("bad", changed)):
        gobjaverse_folder(tmp_path / name, "12/3456", content)
        path = tmp_path / "objects" / take_in(tmp_path / name, tmp_path / name).file
        if name == "good":
            assert (
                gobjaverse.accept([tmp_path / name / path.relative_to(tmp_path)], 0.5 / 128)["12_3456"]["median"] < 1e-3
            )
        else:
            with pytest.raises(BadInput, match="reprojection"):
                gobjaverse.accept([tmp_path / name / path.relative_to(tmp_path)], 0.5 / 128)


def test_a_field_of_view_or_an_order_that_is_not_the_expected_one_is_counted_and_kept(files, tmp_path):
    changed = dict(files)
    for name in [name for name in files if name.endswith(".json")]:
        changed[name] = json.dumps(json.loads(files[name]) | {"x_fov": 0.8, "y_fov": 0.8}).encode()
    changed["00003/00003.json"] = changed["00025/00025.json"]
    gobjaverse_folder(tmp_path / "copy", "12/3456", changed)
    assert take_in(tmp_path / "copy", tmp_path).unexpected == ("fov", "roles")


# --- defects ---


def test_a_missing_view_is_named(files, tmp_path):
    less = {name: content for name, content in files.items() if not name.startswith("00017/")}
    assert reason(less, tmp_path) == "view_missing"


@pytest.mark.parametrize("name", ["00004/00004.png", "00004/00004_nd.exr", "00004/00004.json"])
def test_an_error_page_under_the_name_of_data_is_found(files, tmp_path, name):
    assert reason(files | {name: b"<!DOCTYPE HTML><html>NoSuchKey</html>"}, tmp_path) == "html_page"


def test_wrong_bytes_in_a_picture_are_found(files, tmp_path):
    picture = files["00004/00004.png"]
    spoilt = bytearray(picture)
    spoilt[len(picture) // 2] ^= 1
    for content in (bytes(spoilt), picture[: len(picture) // 2], picture[:-4], b"", bytes(500)):
        assert reason(files | {"00004/00004.png": content}, tmp_path) == "image_unreadable"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"not json", "camera_fields"),
        (b"[1]", "camera_fields"),
        (b'{"x": [1, 0, 0]}', "camera_fields"),
        (b"\xff\xfe", "camera_fields"),
        ("zero", "pose_zero"),
        ("mirror", "pose_not_rotation"),
        ("wide", "fov_out_of_range"),
    ],
)
def test_a_camera_that_is_none_is_found(files, tmp_path, content, named):
    good = json.loads(files["00004/00004.json"])
    changes = {
        "zero": {axis: [0.0, 0.0, 0.0] for axis in "xyz"},
        "mirror": {"x": [-value for value in good["x"]]},
        "wide": {"x_fov": 39.6},  # degrees
    }
    if isinstance(content, str):
        content = json.dumps(good | changes[content]).encode()
    assert reason(files | {"00004/00004.json": content}, tmp_path) == named


def test_an_exr_that_is_none_is_found(files, tmp_path):
    assert reason(files | {"00004/00004_nd.exr": b"v/1\x01"}, tmp_path) == "exr_unreadable"
    assert reason(files | {"00004/00004_nd.exr": bytes(5000)}, tmp_path) == "exr_unreadable"


def test_a_tar_cut_short_is_found(files, tmp_path):
    whole = gobjaverse_tar("3456", files)
    (tmp_path / "12").mkdir()
    for content, named in ((whole[: len(whole) // 2], "tar_truncated"), (b"x" * 2000, "tar_unreadable")):
        (tmp_path / "12" / "3456.tar").write_bytes(content)
        with pytest.raises(BadInput) as caught:
            take_in(tmp_path, tmp_path)
        assert caught.value.reason == named


def test_hostile_members_are_refused_or_ignored(files, tmp_path):
    (tmp_path / "12").mkdir()
    content = {f"3456/{name}": data for name, data in files.items()}
    (tmp_path / "12" / "3456.tar").write_bytes(tar_of({"../../evil": b"x", **content}))
    with pytest.raises(BadInput, match="member_path"):
        take_in(tmp_path, tmp_path)
    (tmp_path / "12" / "3456.tar").write_bytes(tar_of({**content, "7/00000/00000.png": b"x"}))
    with pytest.raises(BadInput, match="2 objects"):
        take_in(tmp_path, tmp_path)
    assert not (tmp_path.parent / "evil").exists()


def test_a_folder_that_holds_none_is_said_to(tmp_path):
    with pytest.raises(BadInput, match="source_missing"):
        local_objects(tmp_path)


def test_other_bytes_than_an_earlier_run_took_in_are_refused(files, tmp_path):
    gobjaverse_folder(tmp_path / "copy", "12/3456", files)
    ledger = Ledger(tmp_path / "fetch.jsonl")
    ledger.add(take_in(tmp_path / "copy", tmp_path))
    gobjaverse_folder(tmp_path / "copy", "12/3456", {"00000/00000.png": files["00001/00001.png"]})
    with pytest.raises(BadInput, match="source_changed"):
        take_in(tmp_path / "copy", tmp_path)


# --- licences and splits ---


def annotations(folder, entries):
    folder.mkdir()
    (folder / "000-000.json.gz").write_bytes(gzip.compress(json.dumps(entries).encode()))
    return folder


def test_licence_and_author_come_from_the_annotations(tmp_path):
    entries = {
        "u1": {
            "license": "by",
            "name": "Dog",
            "user": {"username": "ann", "displayName": "Ann"},
            "viewerUrl": "https://x/u1",
        },
        "u2": {"license": "by-nc", "name": "Cat", "user": {"username": "bob"}},
        "u3": {"license": "by", "name": "not asked for"},
    }
    table = gobjaverse.read_annotations(annotations(tmp_path / "a", entries), {"u1", "u2"})
    facts = gobjaverse.facts_of({"0/1": None, "0/2": None, "0/3": None}, {"0/1": "u1", "0/2": "u2"}, table)
    assert [facts[name].licence for name in facts] == ["CC-BY-4.0", "CC-BY-NC-4.0", None]
    assert facts["0/1"].attribution.startswith("Dog by Ann (https://x/u1)")
    kept, left_out = gobjaverse.permitted(facts, ("CC-BY-4.0",))
    assert (list(kept), left_out) == (["0/1"], {"licence CC-BY-NC-4.0": 1, "licence unknown": 1})


def test_annotations_that_are_not_there_or_broken_say_what_to_do(tmp_path):
    with pytest.raises(BadInput, match="load_annotations"):
        gobjaverse.read_annotations(tmp_path, set())
    (tmp_path / "000-000.json.gz").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="licences_unreadable"):
        gobjaverse.read_annotations(tmp_path, set())


def test_one_percent_of_the_objects_is_test_and_one_val():
    splits = [split_of(f"{i % 100}/{i}") for i in range(20_000)]
    for split in ("test", "val"):
        assert 150 < splits.count(split) < 250
