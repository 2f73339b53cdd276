"""Object tars: round trips, GObjaverse's own variants, and every defect under its own reason."""

import dataclasses
import io
import json
import os
import tarfile

import numpy as np
import OpenEXR
import pytest
import torch
from PIL import Image

from geolrm.cameras import Cameras
from geolrm.data import object_tar
from geolrm.data.object_tar import RenderedObject, default_meta, read_object_tar, write_object_tar
from geolrm.data.rig import RADIUS, render_rig
from geolrm.data.rig import test_rig as rig_of_tests
from geolrm.failures import BadInput
from geolrm.views import Views

SIDE = 16
KEY = "val-00007"
FOLDER = f"{KEY}/campos_512_v4"


def some_views(cameras: Cameras, seed: int) -> Views:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(cameras), 1, SIDE, SIDE)
    alpha = torch.zeros(shape)
    alpha[:, :, 4:-4, 4:-4] = 1
    colour = (torch.rand(len(cameras), 3, SIDE, SIDE, generator=generator) * 255).round() / 255 * alpha
    depth = (RADIUS + 0.4 * torch.rand(shape, generator=generator) - 0.2) * alpha
    return Views(KEY, cameras, colour, alpha, depth[:, 0])


@pytest.fixture(scope="module")
def obj() -> RenderedObject:
    views = some_views(render_rig(KEY), 0)
    generator = torch.Generator().manual_seed(2)
    normals = torch.nn.functional.normalize(torch.randn(40, 3, SIDE, SIDE, generator=generator), dim=1) * views.alpha
    points = torch.rand(100, 3, generator=generator) - 0.5
    meta = default_meta(KEY) | {
        "dataset": "made up",
        "rig": "own",
        "surface": "mesh",
        "licence": "CC0-1.0",
        "extra": [1],
    }
    return RenderedObject(
        KEY, views, normals, some_views(rig_of_tests(), 1), points, torch.nn.functional.normalize(points), meta
    )


@pytest.fixture(scope="module")
def members(obj, tmp_path_factory) -> dict[str, bytes]:
    """The members of a good tar, for tests to spoil."""
    path = tmp_path_factory.mktemp("good") / "good.tar"
    write_object_tar(path, obj)
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def write_raw(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def exr(channels, side=SIDE, dtype=np.float32):
    buffer = io.BytesIO()
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {name: np.full((side, side), 1, dtype) for name in channels}).write(buffer)
    return buffer.getvalue()


def png(mode="RGBA", size=(SIDE, SIDE), kind="PNG"):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format=kind)
    return buffer.getvalue()


def as_native(members, *, level=True):
    """What GObjaverse gives of the same object: 40 views and nothing else, at either depth of folders."""
    prefix = f"{FOLDER}/"
    names = [name for name in members if name.startswith(prefix)]
    return {name if level else name.replace(prefix, f"{KEY}/"): members[name] for name in names}


def reason_of(path) -> BadInput:
    with pytest.raises(BadInput) as caught:
        read_object_tar(path)
    return caught.value


# --- what is good ---


def test_an_object_comes_back_as_it_was_written(obj, tmp_path):
    write_object_tar(tmp_path / "object.tar", obj)
    again = read_object_tar(tmp_path / "object.tar", normals=True)
    assert again.key == KEY
    for mine, theirs in ((obj.views, again.views), (obj.test_views, again.test_views)):
        assert torch.equal(mine.depth, theirs.depth)  # float32, no loss
        assert torch.equal(mine.alpha, theirs.alpha)
        assert (mine.colour - theirs.colour).abs().max() < 1e-6
        assert torch.allclose(mine.cameras.camera_to_world, theirs.cameras.camera_to_world, atol=1e-6)
        assert torch.allclose(mine.cameras.intrinsics, theirs.cameras.intrinsics, atol=1e-5)
    assert (obj.normals - again.normals).abs().max() < 1e-3  # half floats
    assert torch.equal(obj.points, again.points)
    assert torch.equal(obj.point_normals, again.point_normals)
    assert again.meta == obj.meta | {"cropped_views": []}
    assert read_object_tar(tmp_path / "object.tar").normals is None


def test_normals_are_stored_in_the_unity_like_frame_of_gobjaverse(obj, members):
    """World (x, y, z) = (-R, -B, G), by channel name."""
    image = OpenEXR.File(io.BytesIO(members[f"{FOLDER}/00003/00003_nd.exr"]), separate_channels=True)
    planes = {name: channel.pixels.astype(np.float32) for name, channel in image.channels().items()}
    x, y, z = obj.normals[3].numpy()
    for name, expected in (("R", -x), ("B", -y), ("G", z)):
        assert np.abs(planes[name] - expected).max() < 1e-3
    assert np.array_equal(planes["A"], obj.views.depth[3].numpy())


def test_the_same_object_gives_the_same_bytes_in_sorted_order(obj, tmp_path):
    for name in ("a.tar", "b.tar"):
        write_object_tar(tmp_path / name, obj)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames() == sorted(tar.getnames())
        assert {(member.mtime, member.uid, member.gid) for member in tar} == {(0, 0, 0)}
    assert object_tar.is_whole(tmp_path / "a.tar")


def test_nothing_is_left_of_a_write_that_failed(obj, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    (tmp_path / "object.tar").write_bytes(b"the old one")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="the disk is full"):
        write_object_tar(tmp_path / "object.tar", obj)
    assert [path.name for path in tmp_path.iterdir()] == ["object.tar"]
    assert (tmp_path / "object.tar").read_bytes() == b"the old one"


def test_an_object_without_40_views_is_not_written(obj, tmp_path):
    with pytest.raises(ValueError, match="39 views"):
        write_object_tar(tmp_path / "object.tar", dataclasses.replace(obj, views=obj.views[:39]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("level", [True, False])
@pytest.mark.parametrize("dot", ["", "./"])
def test_gobjaverse_tars_are_read_at_both_prefixes(obj, members, tmp_path, level, dot):
    native = {dot + name: content for name, content in as_native(members, level=level).items()}
    read = read_object_tar(write_raw(tmp_path / "native.tar", native), normals=True)
    assert read.key == KEY
    assert (read.meta["dataset"], read.meta["rig"], read.meta["surface"]) == ("gobjaverse", "native", "depth")
    assert read.test_views is None
    assert read.points is None
    assert torch.equal(read.views.alpha, obj.views.alpha)


def test_depth_of_foreign_renders_is_cleaned_and_ours_is_not(obj, members, tmp_path):
    native = as_native(members)
    values = np.full((SIDE, SIDE), 2.0, np.float32)
    values[5, 5] = 1.0  # nearer than |origin| - 0.867
    values[12, 12] = np.nan
    plane = np.zeros_like(values)
    buffer = io.BytesIO()
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"R": plane, "G": plane + 1, "B": plane, "A": values}).write(buffer)
    native[f"{FOLDER}/00000/00000_nd.exr"] = buffer.getvalue()
    depth = read_object_tar(write_raw(tmp_path / "native.tar", native)).views.depth[0]
    expected = torch.full((SIDE, SIDE), 2.0)
    expected[4:7, 4:7] = expected[11:14, 11:14] = 0
    assert torch.equal(depth, expected)
    own = members | {f"{FOLDER}/00000/00000_nd.exr": buffer.getvalue()}
    kept = read_object_tar(write_raw(tmp_path / "own.tar", own)).views.depth[0]
    assert kept[5, 5] == 1
    assert int((kept == 0).sum()) == 1  # the pixel that is no number


def test_a_mask_that_touches_the_frame_is_flagged(obj, tmp_path):
    alpha = obj.views.alpha.clone()
    alpha[7, 0, 0, 5] = 1
    alpha[30, 0, 5, -1] = 1
    views = dataclasses.replace(obj.views, alpha=alpha)
    write_object_tar(tmp_path / "object.tar", dataclasses.replace(obj, views=views))
    assert read_object_tar(tmp_path / "object.tar").meta["cropped_views"] == [7, 30]
    with tarfile.open(tmp_path / "object.tar") as tar:
        assert json.load(tar.extractfile(f"{KEY}/meta.json"))["cropped_views"] == [7, 30]


# --- what is bad ---


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 0.9, 0.999, 1.0])
def test_a_tar_cut_short_anywhere_is_truncated(obj, tmp_path, share):
    path = tmp_path / "object.tar"
    write_object_tar(path, obj)
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    path.write_bytes(path.read_bytes()[: int((last.offset_data + last.size) * share)])
    assert reason_of(path).reason == "tar_truncated"
    assert not object_tar.is_whole(path)


def test_a_tar_cut_between_two_members_is_truncated(members, tmp_path):
    path = write_raw(tmp_path / "object.tar", members)
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[100].offset
    path.write_bytes(path.read_bytes()[:offset])
    assert reason_of(path).reason == "tar_truncated"


def test_what_is_no_tar_is_unreadable(tmp_path):
    (tmp_path / "page.tar").write_bytes(b"<html>404</html>" * 200 + bytes(2048))
    assert reason_of(tmp_path / "page.tar").reason == "tar_unreadable"
    assert reason_of(tmp_path / "none.tar").reason == "tar_missing"


@pytest.mark.parametrize("name", ["../evil.txt", f"{KEY}/../../evil.txt", "/etc/evil.txt", "..\\evil.txt"])
def test_a_member_outside_the_folder_is_refused(members, tmp_path, name):
    error = reason_of(write_raw(tmp_path / "object.tar", members | {name: b"evil"}))
    assert error.reason == "member_path"
    assert name in str(error)
    assert [path.name for path in tmp_path.iterdir()] == ["object.tar"]


def test_a_link_is_never_followed(members, tmp_path):
    with tarfile.open(tmp_path / "object.tar", "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if name.endswith("00004.png"):
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    assert reason_of(tmp_path / "object.tar").reason == "view_missing"


@pytest.mark.parametrize("suffix", [".png", ".json", "_nd.exr"])
def test_a_missing_view_is_named(members, tmp_path, suffix):
    left = {name: content for name, content in members.items() if name != f"{FOLDER}/00013/00013{suffix}"}
    error = reason_of(write_raw(tmp_path / "object.tar", left))
    assert error.reason == "view_missing"
    assert f"00013{suffix}" in str(error)


def test_a_missing_test_view_is_named_and_a_tar_of_something_else_has_no_views(members, tmp_path):
    left = {name: content for name, content in members.items() if not name.startswith(f"{KEY}/test/00015")}
    error = reason_of(write_raw(tmp_path / "object.tar", left))
    assert error.reason == "view_missing"
    assert "00015.png of 16" in str(error)
    assert reason_of(write_raw(tmp_path / "other.tar", {"readme.txt": b"hello"})).reason == "view_missing"
    two = members | {name.replace(KEY, "second"): content for name, content in members.items()}
    assert reason_of(write_raw(tmp_path / "two.tar", two)).reason == "tar_unreadable"


SPOILED_PICTURES = {
    "text": (lambda good: b"<html>404</html>", "image_unreadable"),
    "empty": (lambda good: b"", "image_unreadable"),
    "cut": (lambda good: good[: len(good) // 2], "image_unreadable"),
    "header only": (lambda good: good[:30], "image_unreadable"),
    "short header chunk": (lambda good: good[:8] + b"\0\0\0\2IHDR\0\0" + good[16:], "image_unreadable"),
    "jpeg": (lambda good: png("RGB", kind="JPEG"), "image_unreadable"),
    "no alpha": (lambda good: png("RGB"), "image_channels"),
    "other size": (lambda good: png(size=(SIDE, SIDE + 1)), "image_size"),
    "huge": (lambda good: png(size=(8193, 1)), "image_size"),
}


@pytest.mark.parametrize("name", SPOILED_PICTURES)
@pytest.mark.parametrize("view", [f"{FOLDER}/00002/00002.png", f"{KEY}/test/00001/00001.png"])
def test_a_spoiled_picture_is_refused_and_named(members, tmp_path, name, view):
    spoil, reason = SPOILED_PICTURES[name]
    error = reason_of(write_raw(tmp_path / "object.tar", members | {view: spoil(members[view])}))
    assert (error.reason, view in str(error)) == (reason, True)


SPOILED_EXRS = {
    "text": (lambda good: b"<html>404</html>", "exr_unreadable"),
    "empty": (lambda good: b"", "exr_unreadable"),
    "header only": (lambda good: good[:100], "exr_unreadable"),
    "cut": (lambda good: good[: len(good) * 2 // 3], "exr_unreadable"),
    "no depth": (lambda good: exr("RGB"), "exr_channels"),
    "other names": (lambda good: exr("XYZA"), "exr_channels"),
    "one more": (lambda good: exr("RGBAZ"), "exr_channels"),
    "other size": (lambda good: exr("RGBA", SIDE * 2), "image_size"),
}


@pytest.mark.parametrize("name", SPOILED_EXRS)
def test_a_spoiled_exr_is_refused_and_named(members, tmp_path, name):
    spoil, reason = SPOILED_EXRS[name]
    view = f"{FOLDER}/00038/00038_nd.exr"
    error = reason_of(write_raw(tmp_path / "object.tar", members | {view: spoil(members[view])}))
    assert (error.reason, view in str(error)) == (reason, True)


def test_an_exr_of_half_floats_is_read(members, tmp_path):
    view = f"{FOLDER}/00000/00000_nd.exr"
    path = write_raw(tmp_path / "object.tar", members | {view: exr("RGBA", dtype=np.float16)})
    assert (read_object_tar(path).views.depth[0] == 1).all()


SPOILED_CAMERAS = {
    "zero": ({"x": [0, 0, 0], "y": [0, 0, 0], "z": [0, 0, 0]}, "pose_zero"),
    "skewed": ({"x": [1.0, 0.3, 0.0], "y": [0.0, 1.0, 0.0], "z": [0.0, 0.0, 1.0]}, "pose_not_rotation"),
    "not finite": ({"origin": [float("nan"), 0.0, 2.0]}, "pose_not_finite"),
    "fov in degrees": ({"x_fov": 39.6}, "fov_out_of_range"),
    "fov zero": ({"y_fov": 0.0}, "fov_out_of_range"),
    "short": ({"origin": [1.0, 2.0]}, "camera_fields"),
    "words": ({"x_fov": "wide"}, "camera_fields"),
    "no origin": ({"origin": None}, "camera_fields"),
}


@pytest.mark.parametrize("name", SPOILED_CAMERAS)
def test_a_spoiled_camera_is_refused_and_named(members, tmp_path, name):
    changes, reason = SPOILED_CAMERAS[name]
    view = f"{FOLDER}/00010/00010.json"
    record = json.loads(members[view]) | changes
    record = {key: value for key, value in record.items() if value is not None}
    error = reason_of(write_raw(tmp_path / "object.tar", members | {view: json.dumps(record).encode()}))
    assert (error.reason, view in str(error)) == (reason, True)


@pytest.mark.parametrize("content", [b"", b"<html>", b"[1, 2]", b"\xff\xfe", b"[" * 100000])
def test_a_camera_that_is_no_json_object_is_refused(members, tmp_path, content):
    view = f"{FOLDER}/00010/00010.json"
    assert reason_of(write_raw(tmp_path / "object.tar", members | {view: content})).reason == "camera_fields"


@pytest.mark.parametrize(
    "changes",
    [
        {"surface": "guessed"},
        {"rig": None},
        {"object_to_source": [[1, 0], [0, 1]]},
        {"object_to_source": "identity"},
        {"licence": 4},
        {"object_to_source": [[float("inf")] * 4] * 4},
    ],
)
def test_spoiled_facts_are_refused(members, tmp_path, changes):
    name = f"{KEY}/meta.json"
    spoiled = members | {name: json.dumps(json.loads(members[name]) | changes).encode()}
    assert reason_of(write_raw(tmp_path / "object.tar", spoiled)).reason == "meta_fields"


def _npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 no zip",
        _npz(points=np.zeros((3, 3))),
        _npz(points=np.zeros((3, 2)), normals=np.zeros((3, 2))),
        _npz(points=np.full((3, 3), np.nan), normals=np.zeros((3, 3))),
        _npz(points=np.array([{"pickled": 1}], dtype=object), normals=np.zeros((3, 3))),
    ],
)
def test_spoiled_surface_samples_are_refused(members, tmp_path, content):
    spoiled = members | {f"{KEY}/surface.npz": content}
    assert reason_of(write_raw(tmp_path / "object.tar", spoiled)).reason == "surface_fields"
