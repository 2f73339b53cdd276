"""LPIPS: where its weights come from, and that it never runs without them."""

import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import load_file, save_file

from geolrm.failures import BadInput
from geolrm.metrics.perceptual import COMMAND, FILES, LAYERS, Lpips, fetch_weights, load_perceptual, weights_file


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


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def test_weights_are_fetched_once_into_the_cache(tmp_path):
    """A server of our own stands in for torchvision's; the layers beside the features are left out."""
    served = tmp_path / "served"
    served.mkdir()
    urls = {}
    for net, layers in LAYERS.items():
        state = {f"features.{n}.{kind}": torch.ones(2) * n for n in layers for kind in ("weight", "bias")}
        torch.save(state | {"classifier.1.weight": torch.zeros(3)}, served / f"{net}-0123.pth")
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Quiet(*a, directory=str(served)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        urls = {net: f"http://127.0.0.1:{server.server_port}/{net}-0123.pth" for net in LAYERS}
        files = fetch_weights(urls=urls, check_hash=False)
        with pytest.raises(BadInput, match="download_failed"):  # the digest in the name is compared
            fetch_weights(tmp_path / "checked", urls=urls)
    finally:
        server.shutdown()
        server.server_close()
    assert files == [weights_file(net) for net in LAYERS] == fetch_weights(urls=urls)  # nobody serves any more
    assert set(load_file(files[0])) == {f"features.{n}.{kind}" for n in LAYERS["alex"] for kind in ("weight", "bias")}
    assert not list((tmp_path / "checked").iterdir())
