"""Fixtures of the baselines: what is compared, in which order, and what counts as a failure."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.fixtures import check_folder, faces_in_order, outputs_of, read_fixture, renamed, vertex_order
from geolrm.failures import BadInput

KINDS = {"in.x": lambda fixture: {"out.y": 2 * fixture.inputs["x"] + fixture.config["more"]}}
X = torch.arange(3.0)
# A tetrahedron, its faces turned outwards.
CORNERS = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
FACES = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])


def write(folder, name="a", config='{"more": 1}', **tensors):
    tensors = {"in.x": X, "out.y": 2 * X + 1} | {key.replace("_", ".", 1): value for key, value in tensors.items()}
    save_file(
        {key: value for key, value in tensors.items() if value is not None},
        folder / f"{name}.safetensors",
        {"config": config},
    )


def test_a_folder_holds_where_every_recorded_number_is_reproduced(tmp_path, capsys):
    write(tmp_path)
    write(tmp_path, "b", in_x=X.half())
    assert check_folder(KINDS, tmp_path) == 0
    assert "2 of 2 outputs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"out_y": 2 * X + 1.001}, "TOO FAR"),
        ({"out_y": 2 * X * torch.nan}, "TOO FAR"),
        ({"out_y": torch.zeros(4)}, "recorded (4,)"),
        ({"out_y": None}, "only ours ['out.y']"),
        ({"mid_z": X + 1}, "only recorded ['mid.z']"),
        ({"in_x": None}, "fixture_unknown"),
        ({"config": "{}"}, "config: more is missing"),
        ({"config": "{"}, "fixture_unreadable"),
    ],
)
def test_a_file_that_fails_is_named_and_does_not_hide_the_others(tmp_path, capsys, change, said):
    write(tmp_path, "wrong", **change)
    write(tmp_path, "right")
    assert check_folder(KINDS, tmp_path) == 1
    printed = capsys.readouterr().out
    assert said in printed
    assert "right.safetensors out.y" in printed
    assert "1 of " in printed


def test_an_empty_folder_is_no_success(tmp_path):
    with pytest.raises(BadInput, match="no_fixtures"):
        check_folder(KINDS, tmp_path)


def test_what_is_asked_for_and_not_there_is_named_in_full(tmp_path):
    write(tmp_path)
    fixture = read_fixture(tmp_path / "a.safetensors")
    for part, name, said in (("inputs", "z", "in.z"), ("weights", "w", "sd.w"), ("recorded", "out.z", "out.z")):
        with pytest.raises(BadInput, match=f"{said} is missing .fixture_incomplete"):
            getattr(fixture, part)[name]


def test_outputs_of_parts_are_those_that_are_recorded():
    network = nn.Sequential(nn.ReLU(), nn.Flatten(0), nn.Softsign())
    x, parts = torch.tensor([[-1.0, 3.0]]), ((r"mid\.part(\d)", r"\1"),)
    result, kept = outputs_of(network, parts, ["mid.part0", "out.y"], lambda: network(x))
    assert torch.equal(result, torch.tensor([0, 0.75]))
    assert kept.keys() == {"mid.part0"}
    assert torch.equal(kept["mid.part0"], x.clamp(min=0))
    with pytest.raises(ValueError, match="no part 7"):
        outputs_of(network, parts, ["mid.part7"], lambda: network(x))
    with pytest.raises(ValueError, match="did not run"):
        outputs_of(network, parts, ["mid.part0"], lambda: x)


# --- meshes ---


def shuffled() -> tuple[torch.Tensor, torch.Tensor]:
    """The tetrahedron with its vertices and faces in another order, each face from another corner on."""
    order = torch.tensor([2, 0, 3, 1])
    return CORNERS[order] + 1e-6, torch.argsort(order)[FACES[[3, 1, 0, 2]].roll(1, dims=1)]


def test_a_mesh_in_another_order_comes_into_the_recorded_one():
    vertices, faces = shuffled()
    order = vertex_order(vertices, CORNERS, "")
    assert torch.allclose(vertices[order], CORNERS, atol=1e-5)
    assert torch.equal(faces_in_order(renamed(faces, order), FACES, ""), FACES)


@pytest.mark.parametrize("change", ["turned over", "another corner", "twice"])
def test_a_face_that_differs_shows(change):
    vertices, faces = shuffled()
    faces = renamed(faces, vertex_order(vertices, CORNERS, ""))
    if change == "turned over":
        faces[2] = faces[2].flip(0)
    elif change == "another corner":
        faces[2] = torch.tensor([0, 1, 2])
    else:
        faces[2] = faces[1]
    assert not torch.equal(faces_in_order(faces, FACES, ""), FACES)


def test_meshes_of_other_sizes_or_whose_vertices_do_not_pair_off_are_told():
    with pytest.raises(BadInput, match="3 vertices, recorded 4"):
        vertex_order(CORNERS[:3], CORNERS, "")
    with pytest.raises(BadInput, match="1 vertices are nearest to none"):
        vertex_order(CORNERS[[0, 1, 2, 2]], CORNERS[[0, 1, 2, 0]], "")
    with pytest.raises(BadInput, match="3 faces, recorded 4"):
        faces_in_order(FACES[:3], FACES, "")
