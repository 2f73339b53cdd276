"""LPIPS: where its weights come from, and that it never runs without them."""

import hashlib
import io

import pytest
import torch
from misbehaving_server import Page, serving
from safetensors.torch import load_file, save_file

from geolrm.download import Manners
from geolrm.failures import BadInput
from geolrm.metrics.perceptual import (
    COMMAND,
    FILES,
    LAYERS,
    Lpips,
    fetch_weights,
    load_perceptual,
    source_urls,
    weights_file,
)


@pytest.fixture(autouse=True)
def no_weights_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("GEOLRM_LPIPS_WEIGHTS", raising=False)


@pytest.fixture(scope="module")
def truth():
    noise = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(noise[..., ::4, ::4], 64)  # flat squares of 4 pixels


def blurred(images, width):
    return torch.nn.functional.avg_pool2d(images, width, 1, width // 2, count_include_pad=False)


@pytest.fixture
def alex(shared):
    return Lpips("alex", shared / "weights")


def test_lpips_is_zero_on_itself_symmetric_and_ordered_by_blur(alex, truth):
    assert torch.allclose(alex(truth, truth), torch.zeros(2), atol=1e-6)
    slight, strong = blurred(truth, 3), blurred(truth, 9)
    assert torch.allclose(alex(slight, truth), alex(truth, slight), atol=1e-6)
    assert (alex(slight, truth) > 0.02).all()
    assert (alex(strong, truth) > 2 * alex(slight, truth)).all()


def test_pictures_are_mapped_to_minus_one_to_one_inside(alex, truth):
    other = truth.flip(-1)
    assert torch.allclose(alex(other, truth), alex.network(2 * other - 1, 2 * truth - 1).flatten(), atol=1e-6)
    with pytest.raises(ValueError, match="must lie in"):
        alex(2 * other - 1, truth)


def test_every_tensor_of_the_backbone_comes_from_the_file(alex, shared):
    stored = load_file(shared / "weights" / FILES["alex"])
    loaded = {name.partition(".")[2]: value for name, value in alex.network.net.state_dict().items()}
    assert {f"features.{name}" for name in loaded} == set(stored)
    assert all(torch.equal(stored[f"features.{name}"], value) for name, value in loaded.items())


def test_lpips_has_gradients_in_the_picture_and_none_in_its_weights(alex, truth):
    image = blurred(truth, 3).requires_grad_()
    alex(image, truth).sum().backward()
    assert image.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in alex.parameters())


def test_auto_without_weights_says_so_once_and_gives_none(capsys, truth):
    metrics = load_perceptual("auto")
    line = capsys.readouterr().out
    assert COMMAND in line
    assert line.count("\n") == 1
    assert metrics.distances(truth, truth) == {"lpips_alex": None, "lpips_vgg": None}
    assert set(metrics.missing) == {"alex", "vgg"}


def test_auto_uses_the_backbone_that_is_there(shared, monkeypatch, truth):
    monkeypatch.setenv("GEOLRM_LPIPS_WEIGHTS", str(shared / "weights" / FILES["alex"]))
    metrics = load_perceptual("auto")
    assert metrics.distances(truth, truth)["lpips_alex"].shape == (2,)
    assert metrics.distances(truth, truth)["lpips_vgg"] is None
    assert metrics.sha256["alex"].startswith("9f97fd31")


def test_what_the_named_place_lacks_is_looked_for_in_the_cache(tmp_path, monkeypatch):
    named, cache = tmp_path / "named", tmp_path / "cache" / "geolrm"
    for folder, nets in ((named, ["alex"]), (cache, ["alex", "vgg"])):
        folder.mkdir(parents=True)
        for net in nets:
            (folder / FILES[net]).touch()
    monkeypatch.setenv("GEOLRM_LPIPS_WEIGHTS", str(named))
    assert weights_file("alex") == named / FILES["alex"]
    assert weights_file("vgg") == cache / FILES["vgg"]
    assert weights_file("vgg", named / FILES["alex"]) == cache / FILES["vgg"]


def test_required_stops_without_both_networks(tmp_path):
    with pytest.raises(BadInput, match="lpips_weights_missing") as stop:
        load_perceptual("required")
    assert COMMAND in stop.value.remedy


def test_a_place_that_does_not_exist_is_an_error_even_for_auto(tmp_path):
    with pytest.raises(BadInput, match="lpips_weights_missing"):
        load_perceptual("auto", tmp_path / "nowhere")


@pytest.mark.parametrize("damage", ["cut", "tensor missing", "tensor of another shape"])
def test_a_damaged_backbone_is_refused_and_never_replaced_by_random_weights(shared, tmp_path, damage):
    file = tmp_path / FILES["alex"]
    stored = load_file(shared / "weights" / FILES["alex"])
    if damage == "tensor missing":
        del stored["features.3.bias"]
    elif damage == "tensor of another shape":
        stored["features.3.bias"] = stored["features.3.bias"][:5].clone()
    save_file(stored, file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(BadInput, match="lpips_weights_unreadable"):
        Lpips("alex", file)


QUICK = Manners(requests_per_second=1e4, timeout=0.2, attempts=3, backoff=0.0)


@pytest.fixture
def torchvision_here():
    """A server with small states under torchvision's kind of name, one in each of torch's two formats; its URLs by network."""
    with serving() as server:
        urls = {}
        for net, layers in LAYERS.items():
            state = {f"features.{n}.{kind}": torch.ones(2) * n for n in layers for kind in ("weight", "bias")}
            state["classifier.1.weight"] = torch.zeros(3)
            stream = io.BytesIO()
            torch.save(state, stream, _use_new_zipfile_serialization=net == "alex")
            name = f"/{net}-owt-{hashlib.sha256(stream.getvalue()).hexdigest()[:8]}.pth"
            server.pages[name], urls[net] = Page(stream.getvalue()), server.url + name
        yield server, urls


def names_of(net):
    return {f"features.{n}.{kind}" for n in LAYERS[net] for kind in ("weight", "bias")}


def test_weights_are_fetched_once_into_the_cache_with_a_bar_that_knows_its_end(torchvision_here, tmp_path, capsys):
    server, urls = torchvision_here
    files = fetch_weights(urls=urls, manners=QUICK)
    assert files == [weights_file(net) for net in LAYERS] == fetch_weights(urls=urls, manners=QUICK)
    assert len(server.requests) == 2
    for net, file in zip(LAYERS, files, strict=True):
        stored = load_file(file)
        assert set(stored) == names_of(net)
        assert all((stored[name] == int(name.split(".")[1])).all() for name in stored)
    assert sorted(path.name for path in (tmp_path / "cache" / "geolrm").iterdir()) == sorted(FILES.values())
    assert capsys.readouterr().err.count("100%") == 2


def test_what_a_failed_fetch_left_is_taken_up_by_the_next_one(torchvision_here):
    server, urls = torchvision_here
    address = "/" + urls["vgg"].rpartition("/")[2]
    server.faults[address] = ["stall"] * QUICK.attempts
    with pytest.raises(BadInput, match="network_stall"):
        fetch_weights(urls=urls, manners=QUICK)
    assert weights_file("alex") is not None
    assert weights_file("vgg") is None
    server.requests.clear()
    fetch_weights(urls=urls, manners=QUICK)
    [(path, given)] = server.requests
    assert path == address
    assert int(given.removeprefix("bytes=").removesuffix("-")) > 0


def test_a_download_that_is_not_what_its_name_says_is_refused_and_not_kept(torchvision_here, tmp_path):
    server, urls = torchvision_here
    address = "/" + urls["alex"].rpartition("/")[2]
    server.faults[address] = ["wrong", "wrong"]
    with pytest.raises(BadInput, match="hash_mismatch"):
        fetch_weights(urls=urls, manners=QUICK)
    assert list((tmp_path / "cache" / "geolrm").iterdir()) == []
    fetch_weights(urls=urls, manners=QUICK)
    assert server.asked(address) == [None, None, None]


def test_the_addresses_are_torchvisions_with_the_hashes_that_its_names_carry():
    assert source_urls() == {
        "alex": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "vgg": "https://download.pytorch.org/models/vgg16-397923af.pth",
    }
