"""OmniObject3D's native renders and raw scans: poses, scale, axes and depth proved on a closed form in its layout."""

import json

import numpy as np
import pytest
import torch
from source_files import (
    SCAN_SCALE,
    blender_exr,
    omni_cameras,
    omni_renders,
    omni_scan,
    omni_spheres,
    png,
    scan_points,
    seen,
    tar_of,
)

from geolrm.data.fetch import Failed, Fetched, Kept, Ledger
from geolrm.data.object_tar import read_object_tar
from geolrm.data.omniobject3d import renders_task, scans_task, sources
from geolrm.data.reprojection import reprojection_error
from geolrm.failures import BadInput


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return omni_renders("ball_001")


def take_in(files, tmp_path, *, archive=True, count=1):
    """What becomes of the renders of one category."""
    home = tmp_path / "blender_renders"
    home.mkdir(exist_ok=True)
    if archive:
        (home / "ball.tar.gz").write_bytes(tar_of(files, "w:gz"))
    else:
        for name, content in files.items():
            (home / "ball" / name).parent.mkdir(parents=True, exist_ok=True)
            (home / "ball" / name).write_bytes(content)
    ((path, kind),) = sources(tmp_path).items()
    assert kind == "blender_renders"
    (tmp_path / "objects").mkdir(exist_ok=True)
    outcomes = list(
        renders_task(path, tmp_path / "objects", Ledger(tmp_path / "fetch.jsonl"), False).do(lambda _: None)
    )
    assert len(outcomes) == count
    return outcomes[0]


def keys(tmp_path) -> list[str]:
    return sorted(path.stem for path in (tmp_path / "objects").iterdir())


def reason(files, tmp_path) -> str:
    failed = take_in(files, tmp_path)
    assert isinstance(failed, Failed)
    assert "ball_001" in str(failed.error)
    assert not list((tmp_path / "objects").iterdir())
    return failed.error.reason


def changed(files, **changes):
    """The renders with fields of `transforms.json`, or of all of its frames, replaced."""
    record = json.loads(files["ball_001/render/transforms.json"])
    for name, value in changes.items():
        if name == "camera_angle_x":
            record[name] = value
        else:
            for i, frame in enumerate(record["frames"]):
                frame[name] = value(i, frame[name]) if callable(value) else value
    return files | {"ball_001/render/transforms.json": json.dumps(record).encode()}


def with_depths(files, depth_of):
    """The renders with other depth maps: a function of (view, depth (H, W)) gives each EXR."""
    _, depth, _ = seen(omni_cameras(24), 96, *omni_spheres())
    return files | {
        f"ball_001/render/depths/r_{view}_depth0001.exr": depth_of(view, depth[view]) for view in range(len(depth))
    }


@pytest.mark.parametrize("archive", [True, False])
def test_renders_land_depth_on_depth_in_the_object_frame(files, tmp_path, archive):
    fetched = take_in(files, tmp_path, archive=archive)
    assert isinstance(fetched, Fetched)
    assert (fetched.key, fetched.source_id, fetched.category) == ("ball_001", "ball/ball_001", "ball")
    obj = read_object_tar(tmp_path / "objects" / "ball_001.tar", normals=True)
    assert len(obj.views) == 24
    assert obj.meta["dataset"] == "omniobject3d_native"
    directions = torch.nn.functional.normalize(obj.views.cameras.positions, dim=-1)
    nearest = (directions @ directions.T).fill_diagonal_(-2).argmax(-1)
    error = reprojection_error(obj.views, [(i, int(j)) for i, j in enumerate(nearest)])
    assert error.median < 0.5 / 128
    points = obj.views.cameras.unproject(obj.views.depth)[obj.views.depth > 0]
    low, high = points.amin(0), points.amax(0)
    assert (high - low).max() == pytest.approx(1, abs=0.02)  # of the object frame, up to a pixel at the rim
    assert ((low + high) / 2).abs().max() < 0.02


def test_the_way_back_to_the_scan_is_exact_in_scale_and_axes(files, tmp_path):
    take_in(files, tmp_path)
    obj = read_object_tar(tmp_path / "objects" / "ball_001.tar")
    points = obj.views.cameras.unproject(obj.views.depth)[obj.views.depth > 0]
    matrix = torch.tensor(obj.meta["object_to_source"], dtype=torch.float64)
    in_scan = points.double() @ matrix[:3, :3].T + matrix[:3, 3]
    centres, radii = omni_spheres()
    distance = torch.cdist(in_scan, scan_points(centres).double()) - radii.double() / SCAN_SCALE
    size = 1 / SCAN_SCALE
    assert distance.abs().amin(-1).max() < 1e-3 * size


def test_points_of_the_scan_fall_inside_the_masks(files, tmp_path):
    take_in(files, tmp_path)
    obj = read_object_tar(tmp_path / "objects" / "ball_001.tar")
    matrix = torch.tensor(obj.meta["object_to_source"], dtype=torch.float64).inverse()
    centres, radii = omni_spheres()
    directions = torch.nn.functional.normalize(torch.randn(500, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    scan = torch.cat([scan_points(c + 0.97 * r * directions) for c, r in zip(centres, radii, strict=True)]).double()
    points = (scan @ matrix[:3, :3].T + matrix[:3, 3]).float()
    uv, _ = obj.views.cameras.project(points.expand(len(obj.views), -1, -1))
    column, row = (uv * 96).long().clamp(0, 95).unbind(-1)
    inside = torch.stack([obj.views.foreground[i, 0][row[i], column[i]] for i in range(len(obj.views))])
    assert inside.float().mean() > 0.97  # the smallest sphere is ten pixels wide


def test_normals_point_as_the_surface_does(files, tmp_path):
    take_in(files, tmp_path)
    obj = read_object_tar(tmp_path / "objects" / "ball_001.tar", normals=True)
    matrix = torch.tensor(obj.meta["object_to_source"], dtype=torch.float64)
    seen_at = obj.normals.norm(dim=1) > 0.5
    points = obj.views.cameras.unproject(obj.views.depth)[seen_at]
    render = scan_to_render(points.double() @ matrix[:3, :3].T + matrix[:3, 3])
    centres, radii = omni_spheres()
    offsets = render[:, None] - centres
    nearest = (offsets.norm(dim=-1) - radii).abs().argmin(-1)
    true = torch.nn.functional.normalize(offsets[torch.arange(len(render)), nearest], dim=-1).float()
    agreement = (obj.normals.permute(0, 2, 3, 1)[seen_at] * true).sum(-1)
    assert agreement.median() > 0.999
    assert (agreement > 0.9).float().mean() > 0.97


def scan_to_render(points: torch.Tensor) -> torch.Tensor:
    x, y, z = (points * SCAN_SCALE).unbind(-1)
    return torch.stack([x, -z, y], dim=-1)


def test_pictures_arrive_byte_for_byte_and_depth_only_where_they_are_covered(files, tmp_path):
    rgba, _, _ = seen(omni_cameras(24), 96, *omni_spheres())
    half = rgba[3].copy()
    half[:, 48:, 3] //= 2
    take_in(files | {"ball_001/render/images/r_3.png": png(half)}, tmp_path)
    views = read_object_tar(tmp_path / "objects" / "ball_001.tar").views
    assert np.array_equal((views.colour[0].permute(1, 2, 0) * 255).round().byte().numpy(), rgba[0][..., :3])
    assert (views.depth[3, :, 48:] == 0).all()
    assert (views.depth[3, :, :47] > 0).any()


@pytest.mark.parametrize("channels", [("V",), ("Z",), ("R", "G", "B"), ("B", "G", "R", "A")])
def test_depth_is_read_by_the_name_of_its_channel(files, tmp_path, channels):
    fetched = take_in(with_depths(files, lambda _, depth: blender_exr(depth, channels)), tmp_path)
    assert isinstance(fetched, Fetched)


@pytest.mark.parametrize("suffix", ["", "_depth", "_depth0001"])
def test_depth_files_are_found_under_any_of_their_names(tmp_path, suffix):
    assert isinstance(take_in(omni_renders("ball_001", suffix=suffix), tmp_path), Fetched)


# --- what must not get in ---


@pytest.mark.parametrize("axes", [(1, 2), (0, 2), (0, 1)])
def test_poses_with_other_axes_are_refused(files, tmp_path, axes):
    def turn(_, matrix):
        matrix = np.array(matrix)
        matrix[:3, list(axes)] *= -1
        return matrix.tolist()

    assert reason(changed(files, transform_matrix=turn), tmp_path) in ("reprojection", "empty_object")


def test_another_distance_than_the_files_say_is_refused(files, tmp_path):
    def nearer(_, matrix):
        matrix = np.array(matrix)
        matrix[:3, 3] *= 1.2 / 4.0
        return matrix.tolist()

    assert reason(changed(files, transform_matrix=nearer), tmp_path) == "reprojection"


def test_ray_length_in_place_of_planar_depth_is_refused(files, tmp_path):
    _, directions = omni_cameras(24).rays(96, 96)
    length = directions.norm(dim=-1).numpy()
    wrong = with_depths(files, lambda view, depth: blender_exr(depth * length[view]))
    assert reason(wrong, tmp_path) == "reprojection"


def test_scaled_depth_is_refused(files, tmp_path):
    assert reason(with_depths(files, lambda _, depth: blender_exr(depth * 1.05)), tmp_path) == "reprojection"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"scale": lambda i, scale: scale * (1 + i)}, "scale_fields"),
        ({"scale": None}, "scale_fields"),
        ({"scale": -1.0}, "scale_fields"),
        ({"scale": "large"}, "scale_fields"),
        ({"file_path": "r_0"}, "camera_fields"),
        ({"transform_matrix": [[0.0] * 4] * 4}, "pose_zero"),
        ({"camera_angle_x": 30.0}, "fov_out_of_range"),
    ],
)
def test_fields_that_are_wrong_have_their_reasons(files, tmp_path, changes, named):
    assert reason(changed(files, **changes), tmp_path) == named


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("transforms.json", b"{", "camera_fields"),
        ("transforms.json", b"[]", "camera_fields"),
        ("images/r_5.png", b"<html>", "image_unreadable"),
        ("images/r_5.png", None, "view_missing"),
        ("depths/r_5_depth0001.exr", None, "view_missing"),
        ("depths/r_5_depth0001.exr", b"nothing", "exr_unreadable"),
        ("depths/r_5_depth0001.exr", "small", "image_size"),
        ("depths/r_5_depth0001.exr", "other", "exr_channels"),
        ("images/r_5.png", "rgb", "image_channels"),
    ],
)
def test_files_that_are_wrong_have_their_reasons(files, tmp_path, name, content, named):
    special = {
        "small": lambda: blender_exr(np.ones((8, 8), np.float32)),
        "other": lambda: blender_exr(np.ones((96, 96), np.float32), ("Q",)),
        "rgb": lambda: png(np.zeros((96, 96, 3), np.uint8)),
    }
    spoilt = dict(files)
    if content is None:
        del spoilt[f"ball_001/render/{name}"]
    else:
        spoilt[f"ball_001/render/{name}"] = special[content]() if isinstance(content, str) else content
    assert reason(spoilt, tmp_path) == named


def test_an_object_that_nothing_shows_is_named(files, tmp_path):
    blank = with_depths(files, lambda _, depth: blender_exr(depth * 0))
    assert reason(blank, tmp_path) == "empty_object"


def test_a_bad_object_loses_no_good_one_and_a_second_run_does_only_what_is_missing(files, tmp_path):
    second = {name.replace("ball_001", "ball_002"): content for name, content in files.items()}
    spoilt = second | {"ball_002/render/transforms.json": b"{"}
    assert isinstance(take_in(files | spoilt, tmp_path, count=2), Fetched)
    ledger = Ledger(tmp_path / "fetch.jsonl")
    ledger.add(take_in(files | spoilt, tmp_path, count=2))
    again = take_in(files | second, tmp_path, count=2)
    assert again == Kept("ball/ball_001")  # counted, so that one that fails is one of two
    assert keys(tmp_path) == ["ball_001", "ball_002"]


# --- raw scans ---


def test_raw_scans_are_checked_where_they_lie(tmp_path):
    home = tmp_path / "raw_scans"
    home.mkdir()
    good, bad = omni_scan("ball", "ball_001"), omni_scan("ball", "ball_002")
    (home / "ball.tar.gz").write_bytes(tar_of(good | bad, "w:gz"))
    (home / "cup.tar.gz").write_bytes(tar_of(omni_scan("cup", "cup_001"), "w:gz")[:-60])
    found = sources(tmp_path)
    assert [path.name for path in found] == ["ball.tar.gz", "cup.tar.gz"]
    *sound, outcome = scans_task(home / "ball.tar.gz").do(lambda _: None)
    assert sound == [Kept("ball/ball_001"), Kept("ball/ball_002")]
    assert (outcome.key, outcome.file, outcome.bytes) == ("ball", "", (home / "ball.tar.gz").stat().st_size)
    outcomes: list[Failed] = []
    with pytest.raises(BadInput, match="source_missing"):
        outcomes.extend(scans_task(home / "cup.tar.gz").do(lambda _: None))
    assert "tar_truncated" in {item.error.reason for item in outcomes}


def test_a_folder_without_either_says_how_to_get_them(tmp_path):
    with pytest.raises(BadInput, match="openxlab"):
        sources(tmp_path)
