"""LPIPS: where its weights come from, and that it never runs without them."""

import hashlib
import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import load_file, save_file

from geolrm.failures import BadInput
from geolrm.metrics import perceptual
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


class Torchvision(ThreadingHTTPServer):
    """A server that stands in for torchvision's; `cuts` says after how many bytes the next answers break off."""

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.asked, self.cuts = files, [], []
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.urls = {
            net: f"http://127.0.0.1:{self.server_port}/{name}" for net, name in zip(LAYERS, files, strict=True)
        }


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.lstrip("/")
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.server.asked.append((name, start))
        content = self.server.files.get(name, b"")[start:]
        if not content:
            self.send_error(416 if name in self.server.files else 404)
            return
        self.send_response(206)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.server.cuts.pop(0)] if self.server.cuts else content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def torchvision_here(monkeypatch):
    """Small states under torchvision's kind of name, one in each of torch's two formats, with layers beside the features."""
    monkeypatch.setattr(perceptual, "PAUSE", 0.0)
    files = {}
    for net, layers in LAYERS.items():
        state = {f"features.{n}.{kind}": torch.ones(2) * n for n in layers for kind in ("weight", "bias")}
        stream = io.BytesIO()
        torch.save(
            state | {"classifier.1.weight": torch.zeros(3)}, stream, _use_new_zipfile_serialization=net == "alex"
        )
        content = stream.getvalue()
        files[f"{net}-owt-{hashlib.sha256(content).hexdigest()[:8]}.pth"] = content
    server = Torchvision(files)
    yield server
    server.shutdown()
    server.server_close()


def names_of(net):
    return {f"features.{n}.{kind}" for n in LAYERS[net] for kind in ("weight", "bias")}


def test_weights_are_fetched_once_into_the_cache(torchvision_here, tmp_path):
    files = fetch_weights(urls=torchvision_here.urls)
    assert files == [weights_file(net) for net in LAYERS] == fetch_weights(urls=torchvision_here.urls)
    assert len(torchvision_here.asked) == 2
    for net, file in zip(LAYERS, files, strict=True):
        stored = load_file(file)
        assert set(stored) == names_of(net)
        assert all((stored[name] == int(name.split(".")[1])).all() for name in stored)
    assert sorted(path.name for path in (tmp_path / "cache" / "geolrm").iterdir()) == sorted(FILES.values())


def test_a_download_that_breaks_off_is_taken_up_where_it_broke(torchvision_here):
    torchvision_here.cuts = [1000, 500]
    fetch_weights(urls=torchvision_here.urls)
    alex, vgg = torchvision_here.files
    assert torchvision_here.asked == [(alex, 0), (alex, 1000), (alex, 1500), (vgg, 0)]


def test_what_a_failed_fetch_left_is_taken_up_by_the_next_one(torchvision_here):
    alex, vgg = torchvision_here.files
    torchvision_here.cuts = [len(torchvision_here.files[alex]), 600, 0, 0, 0]
    with pytest.raises(BadInput, match="download_failed") as stop:
        fetch_weights(urls=torchvision_here.urls)
    assert f"it ended after 600 of {len(torchvision_here.files[vgg]):,} bytes" in stop.value.detail
    assert weights_file("alex") is not None
    assert weights_file("vgg") is None
    torchvision_here.asked.clear()
    fetch_weights(urls=torchvision_here.urls)
    assert torchvision_here.asked == [(vgg, 600)]


def test_a_download_that_is_not_what_its_name_says_is_refused_and_not_kept(torchvision_here):
    alex = next(iter(torchvision_here.files))
    whole = torchvision_here.files[alex]
    torchvision_here.files[alex] = whole[:-1] + bytes([whole[-1] ^ 1])
    with pytest.raises(BadInput, match="download_damaged"):
        fetch_weights(urls=torchvision_here.urls)
    assert weights_file("alex") is None
    torchvision_here.files[alex] = whole
    fetch_weights(urls=torchvision_here.urls)
    assert [start for _, start in torchvision_here.asked] == [0, 0, 0]


def test_leftovers_longer_than_the_file_are_fetched_anew(torchvision_here, tmp_path):
    (tmp_path / "cache" / "geolrm").mkdir(parents=True)
    (tmp_path / "cache" / "geolrm" / f"{FILES['alex']}.download").write_bytes(b"x" * 1_000_000)
    fetch_weights(urls=torchvision_here.urls)
    assert [start for _, start in torchvision_here.asked] == [1_000_000, 0, 0]


def test_an_address_that_is_gone_is_said_at_once(torchvision_here):
    torchvision_here.urls["alex"] += "x"
    with pytest.raises(BadInput, match="404"):
        fetch_weights(urls=torchvision_here.urls)
    assert len(torchvision_here.asked) == 1


def test_the_addresses_are_torchvisions_with_the_hashes_that_its_names_carry():
    assert source_urls() == {
        "alex": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "vgg": "https://download.pytorch.org/models/vgg16-397923af.pth",
    }
