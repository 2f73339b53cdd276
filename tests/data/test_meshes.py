"""Reading meshes: layouts, file formats, checks, the object frame."""

import io

import numpy as np
import pytest
import trimesh
from mesh_files import (
    FACES,
    atlas,
    box_files,
    box_obj,
    corners,
    gso_files,
    scan_files,
    write_folder,
    write_tar,
    write_zip,
)
from PIL import Image

from geolrm.data.meshes import (
    NEUTRAL_GREY,
    ROTATION_FROM_UP,
    UNTEXTURED,
    Bundle,
    Dropped,
    normalised,
    read_mesh,
    read_source,
    sample_surface,
)
from geolrm.failures import BadInput

BOX = {"sides": (2.0, 1.0, 4.0), "centre": (10.0, -3.0, 0.5)}


def bundle(files: dict[str, bytes], mesh="box.obj") -> Bundle:
    return Bundle("box", "box", None, "test", mesh, files)


def bundles(path, layout) -> dict[str, Bundle]:
    return {item.key: item for item in read_source(path, layout) if isinstance(item, Bundle)}


def reasons(path, layout) -> list[str]:
    return sorted(item.error.reason for item in read_source(path, layout) if isinstance(item, Dropped))


# --- layouts ---


def test_a_gso_zip_gives_its_mesh_with_the_texture_that_lies_elsewhere(tmp_path):
    write_zip(tmp_path / "Mug.zip", gso_files())
    write_zip(tmp_path / "Plate.zip", gso_files(**BOX))
    found = bundles(tmp_path, "gso_zip")
    assert list(found) == ["Mug", "Plate"]
    assert np.array_equal(read_mesh(found["Mug"]).materials[0].texture, atlas())
    assert list(bundles(tmp_path / "Mug.zip", "gso_zip")) == ["Mug"]


def test_raw_scans_are_the_same_from_an_archive_and_extracted(tmp_path):
    files = {**scan_files("box", "box_001"), **scan_files("box", "box_002", **BOX)}
    write_tar(tmp_path / "packed/box.tar.gz", files)
    write_folder(tmp_path / "loose", files)
    packed, loose = bundles(tmp_path / "packed", "raw_scans"), bundles(tmp_path / "loose", "raw_scans")
    assert {key: (b.source_id, b.category) for key, b in packed.items()} == {
        "box_001": ("box/box_001", "box"),
        "box_002": ("box/box_002", "box"),
    }
    category = bundles(tmp_path / "loose/box", "raw_scans")
    for key, item in packed.items():
        assert item.sha256 == loose[key].sha256
        assert category[key].source_id == item.source_id
        assert np.array_equal(read_mesh(item).vertices, read_mesh(category[key]).vertices)


def test_meshes_in_folders_and_zips_are_named_by_what_holds_them(tmp_path):
    write_folder(tmp_path / "mug", box_files())
    write_folder(tmp_path / "pair", {"left.obj": box_obj(library=""), "right.obj": box_obj(library="")})
    write_zip(tmp_path / "juice.zip", box_files(**BOX))
    write_folder(tmp_path, {"alone, at the top.obj": box_obj(library="")})
    found = bundles(tmp_path, "folder")
    assert sorted(found) == ["alone-at-the-top", "juice", "mug", "pair-left", "pair-right"]
    assert read_mesh(found["juice"]).materials[0].texture is not None
    assert read_mesh(found["mug"]).materials[0].texture is not None


def test_two_objects_of_one_name_are_not_written_over_each_other(tmp_path):
    write_zip(tmp_path / "a/mug.zip", gso_files())
    write_zip(tmp_path / "b/mug.zip", gso_files(**BOX))
    assert list(bundles(tmp_path, "gso_zip")) == ["mug"]
    assert reasons(tmp_path, "gso_zip") == ["key_duplicate"]


def test_a_source_that_holds_nothing_of_the_layout_is_said_to(tmp_path):
    with pytest.raises(BadInput, match="source_missing"):
        list(read_source(tmp_path, "gso_zip"))
    with pytest.raises(BadInput, match="source_missing"):
        list(read_source(tmp_path / "nowhere", "folder"))


@pytest.mark.parametrize("name", ["../evil.obj", "/etc/evil.obj", "meshes/../../evil", "C:/evil.obj", "..\\evil.obj"])
def test_a_zip_with_a_member_outside_itself_is_refused_and_its_neighbours_arrive(tmp_path, name):
    write_zip(tmp_path / "good.zip", gso_files())
    write_zip(tmp_path / "evil.zip", {**gso_files(), name: b"x"})
    assert list(bundles(tmp_path, "gso_zip")) == ["good"]
    assert reasons(tmp_path, "gso_zip") == ["member_path"]


@pytest.mark.parametrize("name", ["../box_009/Scan/Scan.obj", "/box/box_009/Scan/Scan.obj"])
def test_a_tar_member_outside_the_archive_is_refused_and_its_neighbours_arrive(tmp_path, name):
    files = {**scan_files("box", "box_001"), name: b"x", **scan_files("box", "box_002")}
    path = write_tar(tmp_path / "box.tar.gz", files)
    assert list(bundles(path, "raw_scans")) == ["box_001", "box_002"]
    assert reasons(path, "raw_scans") == ["member_path"]


def test_a_link_in_a_tar_is_not_followed(tmp_path):
    import tarfile

    (tmp_path / "secret").write_text("secret")
    with tarfile.open(tmp_path / "box.tar.gz", "w:gz") as archive:
        link = tarfile.TarInfo("box/box_001/Scan/Scan.obj")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
        archive.addfile(link)
    with pytest.raises(BadInput, match="source_missing"):
        list(read_source(tmp_path / "box.tar.gz", "raw_scans"))


def test_a_tar_cut_short_still_gives_the_objects_before_the_cut(tmp_path):
    noise = np.random.default_rng(0).bytes(200_000)
    files = {**scan_files("box", "box_001"), **scan_files("box", "box_002"), "box/box_002/Scan/zz": noise}
    path = write_tar(tmp_path / "box.tar.gz", files)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 100_000])
    assert list(bundles(path, "raw_scans")) == ["box_001", "box_002"]
    assert reasons(path, "raw_scans") == ["tar_truncated"]


def test_a_zip_cut_short_is_refused_and_its_neighbours_arrive(tmp_path):
    write_zip(tmp_path / "good.zip", gso_files())
    path = write_zip(tmp_path / "short.zip", gso_files())
    path.write_bytes(path.read_bytes()[:-100])
    assert list(bundles(tmp_path, "gso_zip")) == ["good"]
    assert reasons(tmp_path, "gso_zip") == ["zip_unreadable"]


def test_a_zip_whose_bytes_rotted_is_refused(tmp_path):
    path = write_zip(tmp_path / "rotten.zip", gso_files())
    data = bytearray(path.read_bytes())
    data[60:80] = bytes(20)
    path.write_bytes(data)
    assert reasons(path, "gso_zip") == ["zip_unreadable"]


# --- file formats and what can be wrong with them ---


def broken(name: str) -> dict[str, bytes]:
    files = box_files()
    obj = files["box.obj"]
    match name:
        case "no faces":
            files["box.obj"] = b"\n".join(line for line in obj.split(b"\n") if not line.startswith(b"f "))
        case "material absent":
            del files["box.mtl"]
        case "material not in file":
            files["box.mtl"] = b"newmtl other\nKd 1 0 0\n"
        case "texture absent":
            del files["texture.png"]
        case "texture cut short":
            files["texture.png"] = files["texture.png"][:60]
        case "texture no image":
            files["texture.png"] = b"<html>404</html>"
        case "NaN vertex":
            files["box.obj"] = obj.replace(b"v -0.5 ", b"v nan ", 1)
        case "face beyond vertices":
            files["box.obj"] = obj + b"\nf 1/1 2/2 999/3"
        case "face beyond texture coordinates":
            files["box.obj"] = obj + b"\nf 1/1 2/2 3/999"
        case "flat":
            files["box.obj"] = b"mtllib box.mtl\nusemtl skin\nv 1 1 1\nvt 0 0\nf 1/1 1/1 1/1"
        case "words for numbers":
            files["box.obj"] = obj.replace(b"v 0.5 ", b"v half ", 1)
        case "words in faces":
            files["box.obj"] = obj.replace(b"f ", b"f one ", 1)
        case "not an OBJ":
            files["box.obj"] = bytes(range(256)) * 8
        case "no texture coordinates":
            lines = [line for line in obj.split(b"\n") if not line.startswith(b"vt")]
            files["box.obj"] = b"\n".join([*lines[:-6], b"f 1 2 3"])
        case "one face without texture coordinates":
            files["box.obj"] = obj + b"\nf 1 2 3"
        case "colour that is none":
            files["box.mtl"] = b"newmtl skin\nKd red\n"
    return files


@pytest.mark.parametrize(
    ("defect", "reason"),
    [
        ("no faces", "no_faces"),
        ("material absent", "material_missing"),
        ("material not in file", "material_missing"),
        ("texture absent", "texture_missing"),
        ("texture cut short", "image_unreadable"),
        ("texture no image", "image_unreadable"),
        ("NaN vertex", "vertices_not_finite"),
        ("face beyond vertices", "face_index"),
        ("face beyond texture coordinates", "face_index"),
        ("flat", "no_extent"),
        ("words for numbers", "mesh_unreadable"),
        ("words in faces", "mesh_unreadable"),
        ("not an OBJ", "mesh_unreadable"),
        ("no texture coordinates", "uv_missing"),
        ("one face without texture coordinates", "uv_not_finite"),
        ("colour that is none", "material_unreadable"),
    ],
)
def test_a_broken_obj_is_refused_with_its_reason(defect, reason):
    with pytest.raises(BadInput) as error:
        read_mesh(bundle(broken(defect)))
    assert error.value.reason == reason


@pytest.mark.parametrize("suffix", ["glb", "ply"])
@pytest.mark.parametrize("damage", ["garbage", "half", "empty"])
def test_a_broken_glb_or_ply_is_refused_with_its_reason(suffix, damage):
    whole = trimesh.creation.icosphere(subdivisions=2).export(file_type=suffix)
    data = {"garbage": b"garbage " * 100, "half": whole[: len(whole) // 2], "empty": b""}[damage]
    with pytest.raises(BadInput) as error:
        read_mesh(bundle({f"box.{suffix}": data}, f"box.{suffix}"))
    assert error.value.reason in ("mesh_unreadable", "no_faces", "face_index")


def test_a_point_cloud_is_no_mesh():
    data = trimesh.PointCloud(np.random.default_rng(0).random((10, 3))).export(file_type="ply")
    with pytest.raises(BadInput, match="no_faces"):
        read_mesh(bundle({"box.ply": data}, "box.ply"))


def test_a_mesh_that_names_no_material_is_grey_and_says_so():
    mesh = read_mesh(bundle({"box.obj": box_obj(library="")}))
    assert mesh.warnings == (UNTEXTURED,)
    assert mesh.materials[0].colour == (NEUTRAL_GREY,) * 3
    assert mesh.materials[0].texture is None


def test_vertex_colours_of_an_obj_are_read_and_need_no_texture():
    data = b"v 0 0 0 1 0 0\nv 1 0 0 0 1 0\nv 0 1 0 0 0 1\nf 1 2 3"
    mesh = read_mesh(bundle({"box.obj": data}))
    assert np.array_equal(mesh.vertex_colours, np.eye(3))
    assert mesh.warnings == ()


def test_polygons_negative_indices_and_several_materials_are_read():
    data = (
        b"mtllib box.mtl\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nusemtl red\nf -4 -3 -2 -1\nv 0 0 1\n"
        b"usemtl dark blue\nf 1 2 \\\n -1"
    )
    mesh = read_mesh(bundle({"box.obj": data, "box.mtl": b"newmtl dark blue\nKd 0 0 0.5\n\nnewmtl red\nKd 1 0 0\n"}))
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 4]]
    colours = [mesh.materials[i].colour for i in mesh.face_material]
    assert colours == [(1, 0, 0), (1, 0, 0), (0, 0, 0.5)]


def test_texture_options_and_another_case_of_the_file_name_do_not_hide_the_texture(tmp_path):
    files = box_files()
    files["box.mtl"] = b"newmtl skin\nmap_Kd -s 1 1 1 -clamp on Texture.PNG\n"
    write_folder(tmp_path / "mug", files)
    assert read_mesh(bundles(tmp_path, "folder")["mug"]).materials[0].texture is not None


def box_trimesh() -> trimesh.Trimesh:
    points, uv = corners()
    faces = np.concatenate([[[4 * i + 3, 4 * i + 2, 4 * i + 1], [4 * i + 3, 4 * i + 1, 4 * i]] for i in range(6)])
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(atlas()))
    visual = trimesh.visual.TextureVisuals(uv=uv.reshape(-1, 2), material=material)
    return trimesh.Trimesh(points.reshape(-1, 3), faces, visual=visual, process=False)


def test_a_glb_carries_the_same_texture_and_coordinates_as_the_obj():
    from_glb = read_mesh(bundle({"box.glb": box_trimesh().export(file_type="glb")}, "box.glb"))
    from_obj = read_mesh(bundle(box_files()))
    assert np.array_equal(from_glb.materials[0].texture, from_obj.materials[0].texture)
    order_glb = np.lexsort(from_glb.vertices[from_glb.faces].mean(axis=1).round(6).T)
    order_obj = np.lexsort(from_obj.vertices[from_obj.faces].mean(axis=1).round(6).T)
    centres_glb, centres_obj = from_glb.corner_uv.mean(axis=1)[order_glb], from_obj.corner_uv.mean(axis=1)[order_obj]
    assert np.allclose(centres_glb, centres_obj, atol=1e-5)


def test_a_glb_of_several_placed_parts_keeps_their_places_and_their_own_colours():
    scene = trimesh.Scene()
    for i, colour in enumerate(([1.0, 0, 0, 1], [0.2, 0.2, 0.2, 1])):
        part = trimesh.creation.box()
        part.visual = trimesh.visual.TextureVisuals(
            material=trimesh.visual.material.PBRMaterial(baseColorFactor=colour)
        )
        scene.add_geometry(part, transform=trimesh.transformations.translation_matrix([5.0 * i, 0, 0]))
    mesh = read_mesh(bundle({"box.glb": scene.export(file_type="glb")}, "box.glb"))
    middle = mesh.vertices[mesh.faces].mean(axis=1)[:, 0]
    near = {mesh.materials[i].colour for i in mesh.face_material[middle < 2]}
    far = {mesh.materials[i].colour for i in mesh.face_material[middle > 2]}
    assert np.allclose(list(near), [(1, 0, 0)], atol=1e-3)
    assert np.allclose(list(far), [(0.4845,) * 3], atol=3e-3)  # glTF's factors are linear light: 0.2 is sRGB 0.4845


def test_vertex_colours_of_a_ply_are_srgb_as_they_stand():
    ball = trimesh.creation.icosphere(subdivisions=1)
    ball.visual = trimesh.visual.ColorVisuals(ball, vertex_colors=np.tile([51, 102, 204, 255], (len(ball.vertices), 1)))
    mesh = read_mesh(bundle({"box.ply": ball.export(file_type="ply")}, "box.ply"))
    assert np.allclose(mesh.vertex_colours, [0.2, 0.4, 0.8], atol=1e-6)
    assert mesh.warnings == ()


# --- the object frame ---


@pytest.mark.parametrize("up", sorted(ROTATION_FROM_UP))
def test_the_object_is_centred_its_longest_side_one_and_the_way_back_is_kept(up):
    mesh = read_mesh(bundle(box_files(**BOX)))
    inside, back = normalised(mesh, up)
    low, high = inside.vertices.min(axis=0), inside.vertices.max(axis=0)
    assert np.allclose(low, -high)
    assert np.isclose((high - low).max(), 1)
    assert np.allclose(inside.vertices @ back[:3, :3].T + back[:3, 3], mesh.vertices)
    assert np.isclose(np.linalg.det(back[:3, :3]), 4.0**3)  # the source's longest side, and no mirror image
    axis = np.zeros(3)
    axis["xyz".index(up[-1])] = -1 if up.startswith("-") else 1
    assert np.allclose(back[:3, :3] @ [0, 0, 1], 4 * axis)


def test_a_stray_vertex_that_no_face_uses_does_not_shrink_the_object():
    files = box_files()
    files["box.obj"] += b"\nv 100 100 100"
    inside, _ = normalised(read_mesh(bundle(files)), "z")
    assert np.isclose(np.ptp(inside.vertices[inside.faces].reshape(-1, 3), axis=0).max(), 1)


def test_surface_points_lie_on_the_faces_in_proportion_to_their_areas():
    mesh, _ = normalised(read_mesh(bundle(box_files(sides=(4.0, 2.0, 1.0)))), "z")
    points, normals = sample_surface(mesh, 20_000, seed=1)
    half = np.array([0.5, 0.25, 0.125])
    assert np.allclose((np.abs(points) / half).max(axis=1), 1, atol=1e-5)
    share = [(normals @ np.array(face.normal) > 0.99).mean() for face in FACES]
    assert np.allclose(share, np.array([2, 2, 4, 4, 8, 8]) / 28, atol=0.02)
    assert np.allclose((points * normals).sum(axis=1), np.abs(normals) @ half, atol=1e-5)  # outwards
    again, _ = sample_surface(mesh, 20_000, seed=1)
    assert np.array_equal(points, again)


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "CMYK", "1", "16 bits"])
def test_a_texture_of_any_kind_of_image_is_read_as_rgb(mode):
    grey = Image.new("RGB", (8, 8), (255, 255, 255) if mode == "1" else (102, 102, 102))
    image = Image.fromarray(np.full((8, 8), 102 * 257, np.uint16)) if mode == "16 bits" else grey.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    texture = read_mesh(bundle({**box_files(), "texture.png": buffer.getvalue()})).materials[0].texture
    assert texture.shape == (8, 8, 3)
    assert texture.dtype == np.uint8
    assert (texture == (255 if mode == "1" else 102)).all()
