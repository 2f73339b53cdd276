"""The stage that renders meshes, from its command line to its files."""

import json
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from mesh_files import FACES, box_files, box_obj, gso_files, scan_files, write_folder, write_tar, write_zip
from PIL import Image

from geolrm.data.meshes import read_source
from geolrm.data.object_tar import read_object_tar
from geolrm.data.pathtrace import MitsubaMissing
from geolrm.data.raycast import Open3DMissing
from geolrm.data.render_tasks import RenderJob
from geolrm.data.reprojection import reprojection_error
from pipelines import render_meshes
from pipelines.render_meshes import main

ROOT = Path(__file__).parent.parent


@pytest.fixture
def params(tmp_path) -> Path:
    """The smoke params, with very small pictures and one process."""
    data = yaml.safe_load((ROOT / "presets/smoke.yaml").read_text())
    data["meshes"].update(resolution=16, supersampling=1, workers=1, max_drop_rate=0.6)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def render(params: Path, layout: str, source: Path, *more: str) -> int:
    fixed = ["--params", str(params), "--root", str(params.parent / "datasets")]
    return main(["--layout", layout, "--input", str(source), *fixed, *more])


def stats(params: Path, dataset: str, run: str) -> dict:
    return json.loads((params.parent / f"datasets/{dataset}/smoke/render.stats.json").read_text())[run]


def objects(params: Path, dataset: str) -> list[Path]:
    return sorted((params.parent / f"datasets/{dataset}/smoke/objects").iterdir())


def test_every_good_object_arrives_among_bad_ones_and_each_bad_one_is_counted_by_its_reason(tmp_path, params, capsys):
    source = tmp_path / "gso"
    write_zip(source / "Good_1.zip", gso_files())
    write_zip(source / "Good_2.zip", gso_files(sides=(0.1, 0.3, 0.2)))
    write_zip(source / "Plain.zip", {"meshes/model.obj": box_obj(library="")})
    for name, absent in (("No_mtl", "meshes/model.mtl"), ("No_texture", "materials/textures/texture.png")):
        files = gso_files()
        del files[absent]
        write_zip(source / f"{name}.zip", files)
    write_zip(source / "Evil.zip", {**gso_files(), "../../evil": b"x"})
    write_zip(source / "Short.zip", gso_files())
    (source / "Short.zip").write_bytes((source / "Short.zip").read_bytes()[:500])
    assert render(params, "gso_zip", source) == 0
    assert [path.name for path in objects(params, "gso")] == ["Good_1.tar", "Good_2.tar", "Plain.tar"]
    seen = stats(params, "gso", "gso_zip/gso")
    reasons = {"material_missing": 1, "texture_missing": 1, "member_path": 1, "zip_unreadable": 1}
    assert seen["dropped"] == reasons
    assert {entry["object"] for entry in seen["dropped_objects"]} == {"No_mtl", "No_texture", "Evil", "Short"}
    assert seen["warnings"] == {"untextured": 1}
    assert (seen["objects"], seen["rendered"], seen["kept"]) == (3, 3, 0)
    assert "material_missing: 1 (No_mtl)" in capsys.readouterr().out


def test_an_object_tar_says_what_the_object_is_apart_from_how_it_came(tmp_path, params):
    turned = {"turn": ((1, 0, 0), (0, 0, 1), (0, -1, 0)), "sides": (2.0, 1.0, 4.0)}
    write_tar(tmp_path / "raw/box.tar.gz", {**scan_files("box", "box_001", **turned), **scan_files("box", "box_002")})
    assert render(params, "raw_scans", tmp_path / "raw", "--dataset", "hope", "--up-exceptions", "box_002", "z") == 0
    one, other = (read_object_tar(path, normals=True) for path in objects(params, "hope"))
    expected = {
        "dataset": "hope",
        "layout": "raw_scans",
        "source_id": "box/box_001",
        "category": "box",
        "licence": "CC BY-NC-SA 4.0",
        "unit": "cm",
        "split": "test",
        "up": "y",
        "surface": "mesh",
        "rig": "own",
    }
    assert {name: one.meta[name] for name in expected} == expected
    assert (other.meta["up"], other.meta["source_id"]) == ("z", "box/box_002")
    to_source = torch.tensor(one.meta["object_to_source"])
    assert torch.allclose(to_source[:3, :3] @ torch.tensor([0.0, 0, 1]), torch.tensor([0.0, 4, 0]), atol=1e-6)
    assert one.points.abs().amax(dim=0).tolist() == pytest.approx([0.25, 0.125, 0.5], abs=1e-4)
    assert len(one.test_views) == 16


def test_a_full_cube_is_flagged_as_cropped(tmp_path, params):
    write_folder(tmp_path / "in/cube", box_files())
    write_folder(tmp_path / "in/small", box_files(sides=(0.3, 0.3, 1)))
    assert render(params, "folder", tmp_path / "in", "--dataset", "mine") == 0
    cube, small = (read_object_tar(path) for path in objects(params, "mine"))
    assert cube.meta["cropped_views"]
    assert small.meta["cropped_views"] == []
    assert stats(params, "mine", "folder/in")["cropped_objects"] == ["cube"]
    assert cube.meta["licence"] is None


def test_a_second_run_keeps_what_is_whole_and_current_and_makes_the_rest_again(tmp_path, params):
    source = tmp_path / "gso"
    for i in range(3):
        write_zip(source / f"Box_{i}.zip", gso_files(sides=(1, 1, 0.2 * (i + 1))))
    assert render(params, "gso_zip", source) == 0
    before = [path.read_bytes() for path in objects(params, "gso")]
    cut = objects(params, "gso")[0]
    cut.write_bytes(before[0][: len(before[0]) // 2])
    write_zip(source / "Box_1.zip", gso_files(sides=(0.5, 0.2, 0.2)))
    assert render(params, "gso_zip", source) == 0
    after = [path.read_bytes() for path in objects(params, "gso")]
    assert (stats(params, "gso", "gso_zip/gso")["kept"], stats(params, "gso", "gso_zip/gso")["rendered"]) == (1, 2)
    assert after[0] == before[0]
    assert after[1] != before[1]
    assert after[2] == before[2]
    assert render(params, "gso_zip", source, "--split", "val") == 0
    assert stats(params, "gso", "gso_zip/gso")["kept"] == 0
    assert read_object_tar(objects(params, "gso")[0]).meta["split"] == "val"


def test_an_object_that_became_bad_does_not_leave_its_old_picture_behind(tmp_path, params):
    source = tmp_path / "gso"
    for name in ("A", "B"):
        write_zip(source / f"{name}.zip", gso_files())
    assert render(params, "gso_zip", source) == 0
    files = gso_files()
    files["materials/textures/texture.png"] = b"no image"
    write_zip(source / "B.zip", files)
    assert render(params, "gso_zip", source) == 0
    assert [path.stem for path in objects(params, "gso")] == ["A"]


@pytest.mark.slow
def test_workers_of_a_scheduler_share_the_views_of_an_object_and_make_the_same_bytes(tmp_path, params):
    from distributed import LocalCluster

    write_zip(tmp_path / "gso/Box.zip", gso_files(sides=(0.5, 0.3, 0.4)))
    bad = gso_files()
    bad["materials/textures/texture.png"] = b"no image"
    write_zip(tmp_path / "gso/Bad.zip", bad)
    assert render(params, "gso_zip", tmp_path / "gso") == 0
    alone = objects(params, "gso")[0].read_bytes()
    objects(params, "gso")[0].unlink()
    options = {"processes": False, "dashboard_address": "127.0.0.1:0", "host": "127.0.0.1", "protocol": "tcp"}
    with LocalCluster(n_workers=2, threads_per_worker=1, **options) as cluster:
        more = ["--scheduler", cluster.scheduler_address, "--batch", "6"]
        assert render(params, "gso_zip", tmp_path / "gso", *more) == 0
        log = list(cluster.scheduler.transition_log)
    rendered = {key for key, _, state, *_ in log if state == "memory" and str(key).startswith("render_part")}
    assert len(rendered) == 10  # 40 and 16 views, six at a time
    assert objects(params, "gso")[0].read_bytes() == alone
    seen = stats(params, "gso", "gso_zip/gso")
    assert (seen["rendered"], seen["dropped"]) == (1, {"image_unreadable": 1})
    assert seen["objects_per_hour_and_core"] > 0


def test_an_object_whose_worker_dies_again_and_again_is_dropped_by_name_and_the_rest_goes_on(tmp_path, params):
    from distributed import KilledWorker

    write_zip(tmp_path / "gso/Box.zip", gso_files())
    (bundle,) = read_source(tmp_path / "gso", "gso_zip")
    work = render_meshes.Work(bundle, RenderJob({}, "z", 8, 1, 1, tmp_path / "Box.tar"))
    lost: Future[float] = Future()
    lost.set_exception(KilledWorker("Box", SimpleNamespace(address="tcp://127.0.0.1:1"), 3))
    tally = render_meshes.Tally()
    assert render_meshes.collect({lost: work}, tally) == 1
    assert [entry["reason"] for entry in tally.dropped] == ["worker_killed"]


@pytest.mark.parametrize("option", ["--samples", "--batch"])
def test_an_option_out_of_range_is_named(tmp_path, params, capsys, option):
    write_zip(tmp_path / "gso/Box.zip", gso_files())
    assert render(params, "gso_zip", tmp_path / "gso", option, "0") == 1
    assert f"{option}: 0 is not above 0" in capsys.readouterr().err


def test_other_colours_are_rendered_anew_and_said_to_be_so(tmp_path, params):
    pytest.importorskip("mitsuba", reason="path tracing needs Mitsuba: pip install -e '.[mitsuba]'")
    write_zip(tmp_path / "gso/Box.zip", gso_files(sides=(0.5, 0.3, 0.4)))
    traced = ["--colour", "path", "--samples", "1"]
    for more, kept in (([], 0), ([], 1), (traced, 0), (traced, 1), ([], 0)):
        assert render(params, "gso_zip", tmp_path / "gso", *more) == 0
        assert stats(params, "gso", "gso_zip/gso")["kept"] == kept
        settings = read_object_tar(objects(params, "gso")[0]).meta["render"]
        assert settings.get("samples") == (1 if more else None)


def test_without_mitsuba_only_path_tracing_says_what_to_install(tmp_path, params, capsys, monkeypatch):
    def missing():
        raise MitsubaMissing("path tracing needs Mitsuba: pip install -e '.[mitsuba]'")

    monkeypatch.setattr(render_meshes, "import_mitsuba", missing)
    write_zip(tmp_path / "gso/Box.zip", gso_files())
    assert render(params, "gso_zip", tmp_path / "gso", "--colour", "path") == 1
    assert "pip install -e '.[mitsuba]'" in capsys.readouterr().err
    assert render(params, "gso_zip", tmp_path / "gso") == 0


def test_too_many_bad_objects_fail_the_run_and_are_named(tmp_path, params, capsys):
    write_folder(tmp_path / "in", {"good.obj": box_obj(library=""), "bad.obj": b"v 0 0 0", "worse.obj": b"\0"})
    assert render(params, "folder", tmp_path / "in", "--dataset", "mine") == 1
    error = capsys.readouterr().err
    assert "67% of the objects dropped, more than 60%" in error
    assert "bad (no_faces)" in error
    assert "worse (mesh_unreadable)" in error
    assert [path.stem for path in objects(params, "mine")] == ["good"]


def test_the_check_writes_its_numbers_and_the_sheet_its_pictures(tmp_path, params):
    data = yaml.safe_load(params.read_text())
    data["meshes"]["resolution"] = 48
    params.write_text(yaml.safe_dump(data))
    write_folder(tmp_path / "in/flat", box_files(sides=(0.8, 1, 0.4)))
    more = ["--dataset", "mine", "--check", str(tmp_path / "check.json"), "--sheet", str(tmp_path / "sheet.png")]
    assert render(params, "folder", tmp_path / "in", *more) == 0
    entry = json.loads((tmp_path / "check.json").read_text())["mine/smoke/flat"]
    assert entry["median"] < entry["half_voxel_at_128"]
    assert entry["ok"]
    assert entry["views"] == 36
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (9 * 48, 48)
        top = sheet.getpixel((4 * 48 + 30, 30))  # view 25 looks down on the upper face
        assert top[1] > top[0]  # which is cyan
    assert FACES[4].colour[1] > FACES[4].colour[0]


def test_a_limit_makes_a_trial(tmp_path, params):
    for i in range(3):
        write_zip(tmp_path / f"gso/Box_{i}.zip", gso_files())
    assert render(params, "gso_zip", tmp_path / "gso", "--limit", "2") == 0
    assert len(objects(params, "gso")) == 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--layout", "folder"], "dataset_name"),
        (["--layout", "folder", "--dataset", "../mine"], "dataset_name"),
        (["--layout", "gso_zip"], "source_missing"),
    ],
)
def test_a_run_that_cannot_start_says_why_in_one_line(tmp_path, params, capsys, arguments, reason):
    (tmp_path / "in").mkdir()
    assert main([*arguments, "--input", str(tmp_path / "in"), "--params", str(params), "--root", str(tmp_path)]) == 1
    assert f"[{reason}]" in capsys.readouterr().err


def test_without_open3d_the_stage_says_what_to_install_and_writes_nothing(tmp_path, params, capsys, monkeypatch):
    def missing():
        raise Open3DMissing("rendering meshes needs Open3D: pip install -e '.[meshes]'")

    monkeypatch.setattr(render_meshes, "import_open3d", missing)
    write_zip(tmp_path / "gso/Box.zip", gso_files())
    assert render(params, "gso_zip", tmp_path / "gso") == 1
    assert capsys.readouterr().err == "error: rendering meshes needs Open3D: pip install -e '.[meshes]'\n"
    assert not (tmp_path / "datasets").exists()


def test_help_explains_every_option_without_open3d():
    code = "import sys; sys.modules['open3d'] = None; from pipelines.render_meshes import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    for word in ("--layout", "gso_zip", "--up-exceptions", "How the files lie", "contact sheet", "Licence"):
        assert word in done.stdout


@pytest.mark.slow
def test_the_ten_scans_reproject_between_their_views_within_half_a_voxel(shared, tmp_path, params):
    data = yaml.safe_load(params.read_text())
    data["meshes"].update(resolution=128, max_drop_rate=0.0)
    params.write_text(yaml.safe_dump(data))
    scans = shared / "scans"
    check = tmp_path / "check.json"
    for layout, dataset, folder in (
        ("gso_zip", "gso", "gso"),
        ("raw_scans", "hope", "hope/raw_scans"),
        ("folder", "hope", "folder"),
    ):
        assert render(params, layout, scans / folder, "--dataset", dataset, "--check", str(check)) == 0
    record = json.loads(check.read_text())
    assert len(record) == 10
    assert all(entry["median"] < 0.5 / 128 for entry in record.values())
    for dataset, count in (("gso", 4), ("hope", 6)):
        paths = objects(params, dataset)
        assert len(paths) == count
        obj = read_object_tar(paths[0])
        assert reprojection_error(obj.test_views).median < 0.5 / 64
        assert obj.meta["warnings"] == []
        assert obj.views.colour[obj.views.alpha.expand_as(obj.views.colour) == 1].std() > 0.05
