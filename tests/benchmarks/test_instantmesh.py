"""InstantMesh: published names and shapes, recorded outputs, FlexiCubes and pictures on closed forms."""

import csv
import json
import math
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_sweep_views import BallSample

from benchmarks import flexicubes
from benchmarks.fixtures import check_file, check_folder
from benchmarks.methods import Context, Reconstruction, load_method, method_names, sources
from benchmarks.methods import instantmesh as adapter
from benchmarks.methods.instantmesh import cameras, surface
from benchmarks.methods.instantmesh.check import KINDS
from benchmarks.methods.instantmesh.network import (
    PREFIX,
    PUBLISHED,
    EncoderSizes,
    InstantMesh,
    Sizes,
    TriplaneSizes,
)
from benchmarks.published import filled, read_published, under
from geolrm.failures import BadInput
from geolrm.meshing import Mesh

SMALL = Sizes(
    EncoderSizes(width=24, layers=1, heads=2),
    TriplaneSizes(width=16, layers=1, heads=2, image_width=24, side=4, channels=4),
    hidden=8,
    cells=24,
)
INPUTS = BallSample("test-0").views([0, 6, 12, 18])


def context(tmp_path) -> Context:
    return Context(None, tmp_path, torch.device("cpu"), lambda key, count: INPUTS)


def small_network(seed: int = 0) -> InstantMesh:
    torch.manual_seed(seed)
    network = InstantMesh(SMALL)
    network.synthesizer["decoder"] = adapter.BallDecoder(SMALL.triplane.channels, SMALL.hidden, SMALL.depth)
    return network.eval()


def test_it_is_found_and_all_its_files_count_for_its_hash():
    assert "instantmesh" in method_names()
    found = {file.name for file in sources("instantmesh")}
    assert {"__init__.py", "network.py", "surface.py", "flexicubes.py", "pictures.py", "published.py"} <= found


@pytest.mark.parametrize("variant", sorted(PUBLISHED))
def test_the_network_has_the_published_names_and_shapes(variant, shared):
    with (shared / "reference" / "instantmesh-state-dict.tsv").open() as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["variant"] == variant]
    published = {row["key"]: tuple(json.loads(row["shape"])) for row in rows}
    with torch.device("meta"):
        network = InstantMesh(PUBLISHED[variant])
    ours = {PREFIX + name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert ours == published
    assert not list(network.buffers())


def test_every_recorded_output_is_reproduced(shared, capsys):
    assert check_folder(KINDS, shared / "fixtures" / "instantmesh-parity") == 0
    assert "70 of 70" in capsys.readouterr().out


def changed(source, folder, change):
    """A copy of a fixture with its tensors changed."""
    tensors = load_file(source)
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    change(tensors)
    target = folder / source.name
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target, metadata)
    return target


def test_a_changed_number_face_or_name_is_found(shared, tmp_path):
    source = shared / "fixtures" / "instantmesh-parity" / "flexicubes.safetensors"
    number = check_file(KINDS, changed(source, tmp_path, lambda t: t["out.vertices_blob"][7].add_(2e-4)))
    assert [d.output for d in number if not d.holds] == ["out.vertices_blob"]
    mirrored = check_file(
        KINDS, changed(source, tmp_path, lambda t: t.update({"out.faces_blob": t["out.faces_blob"].flip(1)}))
    )
    assert [d.output for d in mirrored if not d.holds] == ["out.faces_blob"]
    with pytest.raises(ValueError, match=r"only recorded.*out\.more"):
        check_file(KINDS, changed(source, tmp_path, lambda t: t.update({"out.more": torch.zeros(1)})))
    with pytest.raises(BadInput, match=r"in\.weight is missing"):
        check_file(KINDS, changed(source, tmp_path, lambda t: t.pop("in.weight")))


def test_weights_are_loaded_by_name_and_every_misfit_is_named(tmp_path):
    weights = {PREFIX + name: tensor for name, tensor in small_network().state_dict().items()}
    file = tmp_path / "small.ckpt"
    torch.save({"state_dict": weights | {"lpips.weight": torch.zeros(2)}, "epoch": 3}, file)
    read = under(PREFIX, read_published(file))
    network = filled(lambda: InstantMesh(SMALL), read, file)
    assert torch.equal(network.transformer.pos_embed, weights[PREFIX + "transformer.pos_embed"])
    wrong = dict(read)
    wrong["more"], wrong["transformer.norm.bias"] = torch.zeros(1), torch.zeros(3)
    del wrong["encoder.model.layernorm.weight"]
    with pytest.raises(BadInput) as error:
        filled(lambda: InstantMesh(SMALL), wrong, file)
    for name in ("missing encoder.model.layernorm.weight", "extra more", "transformer.norm.bias is (3,)"):
        assert name in str(error.value)


class Harmful:
    def __reduce__(self):
        return sys.exit, (1,)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    torch.save({"state_dict": Harmful()}, tmp_path / "bad.ckpt")
    with pytest.raises(BadInput, match="checkpoint_unreadable"):
        read_published(tmp_path / "bad.ckpt")


def test_absent_weights_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOLRM_BASELINE_WEIGHTS", str(tmp_path))
    with pytest.raises(BadInput, match="TencentARC/InstantMesh"):
        load_method("instantmesh", context(tmp_path))


def test_marching_cubes_stay_within_a_cell_of_flexicubes():
    cells = 24
    points = flexicubes.lattice(cells, 2.1)
    turned = points @ torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    sdf = turned.abs().amax(dim=-1) - 0.55  # a tilted cube
    dual, _ = flexicubes.decode(sdf, points, cells)
    primal, faces = surface.marching_cubes(-sdf.reshape(3 * (cells + 1,)), 0.0)
    primal = (primal / cells - 0.5) * 2.1
    assert torch.cdist(dual, primal).amin(dim=1).max() < 2.1 / cells * math.sqrt(3)
    a, b, c = primal[faces].unbind(1)
    assert (a * torch.linalg.cross(b, c)).sum() / 6 == pytest.approx(1.1**3, rel=0.03)  # outward


def test_our_frame_is_half_of_theirs():
    numbers = cameras.input_numbers(cameras.in_their_frame(INPUTS.cameras))
    assert torch.allclose(numbers[:, [3, 7, 11]], 2 * INPUTS.cameras.positions)
    backward = numbers[:, :12].reshape(-1, 3, 4)[..., 2]
    assert torch.allclose(backward, torch.nn.functional.normalize(INPUTS.cameras.positions, dim=-1), atol=1e-5)


def test_the_adapter_gives_mesh_and_pictures_in_the_object_frame():
    made = adapter.method(small_network(), "small").reconstruct(INPUTS)
    assert isinstance(made, Reconstruction)
    assert isinstance(mesh := made.mesh(), Mesh)
    assert (mesh.vertices.norm(dim=-1) - adapter.BALL / 2).abs().max() < 0.02
    rendering = made.render(INPUTS.cameras, 32, 32)
    middle = rendering.depth[:, 15:17, 15:17]
    distance = INPUTS.cameras.positions.norm(dim=-1)[:, None, None]
    assert torch.allclose(middle, (distance - adapter.BALL / 2).expand_as(middle), atol=0.02)
    corner = rendering.colour[:, :, 0, 0]
    assert torch.equal(corner, torch.ones_like(corner))
    assert (rendering.depth[rendering.alpha[:, 0] == 0] == 0).all()


def test_the_pictures_and_the_cameras_matter_and_their_order_does_not():
    network = small_network()
    pictures, numbers = adapter.network_inputs(INPUTS)
    assert pictures.shape == (1, 4, 3, 320, 320)
    pictures = pictures[..., 120:184, 120:184]
    planes = network(pictures, numbers)
    assert torch.allclose(planes, network(pictures.flip(1), numbers.flip(1)), atol=1e-5)
    assert not torch.allclose(planes, network(pictures, numbers.flip(1)), atol=1e-5)
    assert not torch.allclose(planes, network(1 - pictures, numbers), atol=1e-5)


def test_a_density_that_is_nowhere_high_is_no_surface():
    assert len(surface.marching_cubes(torch.zeros(4, 4, 4), 10.0)[1]) == 0
