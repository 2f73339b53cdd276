"""Claims about input that does not fit: each has a defined result, or an error that says what to do (docs/bad-input.md)."""

from pathlib import Path

import live_memory
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from geolrm import config
from geolrm.cameras import Cameras, look_at, orbit
from geolrm.failures import BadInput
from geolrm.model import memory, released
from geolrm.model.deformable import project_to_every_view
from geolrm.model.geolrm import GeoLRM
from geolrm.model.memory import Demand
from geolrm.model.proposal import ProposalNetwork
from geolrm.model.reconstruction import ReconstructionNetwork
from geolrm.views import Views

PAPER = config.load_params("presets/paper.yaml")
SMOKE = config.load_params("presets/smoke.yaml")
ENCODER = {"dinov2_width": 24, "dinov2_layers": 1, "dinov2_heads": 2, "channels": 16}
SIZES = {"encoder": SMOKE.proposal.encoder.model_copy(update=ENCODER)} | {
    "transformer": SMOKE.proposal.transformer.model_copy(update={"width": 24, "layers": 1, "heads": 2})
}
PROPOSAL = SMOKE.proposal.model_copy(update={**SIZES, "coarse_resolution": 4, "voxel_resolution": 12})
RECONSTRUCTION = SMOKE.reconstruction.model_copy(update={**SIZES, "max_anchors": 64, "gaussians_per_token": 4})


def built(proposal: config.Proposal, reconstruction: config.Reconstruction) -> GeoLRM:
    torch.manual_seed(0)
    model = GeoLRM(ProposalNetwork(proposal), ReconstructionNetwork(reconstruction)).eval()
    torch.nn.init.constant_(model.proposal.upsampling.bias, 1.0)  # every voxel is occupied
    return model


@pytest.fixture(scope="module", params=["default", "released"])
def model(request) -> GeoLRM:
    if request.param == "default":
        return built(PROPOSAL, RECONSTRUCTION)
    return built(released.released_proposal(PROPOSAL), released.released_reconstruction(RECONSTRUCTION))


def rig(count: int, radius: float = 2.0) -> Cameras:
    return orbit(torch.arange(count) * 360.0 / count, torch.full((count,), 15.0), radius, 39.6)


def seen(cameras: Cameras, height: int = 42, width: int = 42) -> Views:
    shape = len(cameras), 3, height, width
    colour = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    return Views("object", cameras, colour, torch.ones_like(colour[:, :1]))


def finite(gaussians) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in gaussians.tensors)


# --- pictures ---


def test_pictures_of_different_sizes_are_named_with_the_way_out() -> None:
    pictures = [torch.rand(3, 40, 60), torch.rand(4, 20, 30)]
    with pytest.raises(BadInput, match="0: 60 x 40, 1: 30 x 20") as caught:
        Views.from_pictures("mug", pictures, rig(2))
    assert (caught.value.reason, caught.value.where) == ("view_sizes", "mug")
    assert "size" in caught.value.remedy


def test_given_a_size_they_become_views_of_one_object(model) -> None:
    pictures = [torch.full((3, 40, 60), 0.25), torch.cat([torch.full((3, 20, 30), 0.75), torch.zeros(1, 20, 30)])]
    views = Views.from_pictures("mug", pictures, rig(2), size=(28, 42))
    assert views.size == (28, 42)
    torch.testing.assert_close(views.colour[0], torch.full((3, 28, 42), 0.25))
    assert views.alpha[0].min() > 0.999
    assert views.alpha[1].max() == 0  # the second one's own alpha
    assert finite(model.reconstruct(views))


@pytest.mark.parametrize(("pictures", "reason"), [([], "no_views"), ([torch.rand(1, 8, 8)], "view_channels")])
def test_what_is_no_picture_is_refused(pictures, reason) -> None:
    with pytest.raises(BadInput) as caught:
        Views.from_pictures("mug", pictures, rig(1))
    assert caught.value.reason == reason


@pytest.mark.parametrize(("height", "width"), [(45, 61), (14, 100), (43, 29)])
def test_sides_that_the_strides_do_not_divide_work_in_both_modes(model, height, width) -> None:
    gaussians = model.reconstruct(seen(rig(2), height, width))
    assert len(gaussians) == 64 * 4
    assert finite(gaussians)


def test_below_one_patch_the_default_enlarges_and_the_public_codes_way_is_an_error(model) -> None:
    small = seen(rig(2), 9, 30)
    if model.proposal.settings.encoder.fit == "resize":
        assert finite(model.reconstruct(small))
    else:
        with pytest.raises(BadInput, match="30 x 9 px have no whole cell of 14") as caught:
            model.reconstruct(small)
        assert caught.value.reason == "picture_too_small"


# --- cameras and anchor points ---


@pytest.mark.parametrize("radius", [0.3, 1e-3])
def test_a_camera_inside_the_object_sees_what_is_in_front_of_it(model, radius) -> None:
    """Finite in both modes; one whose neighbours are outside leaves the others' say as it is."""
    assert finite(model.reconstruct(seen(rig(3, radius))))


def test_what_lies_behind_a_camera_inside_the_object_takes_nothing_from_its_picture() -> None:
    model = built(PROPOSAL, RECONSTRUCTION).reconstruction
    camera = Cameras(look_at(torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([1.0, 0.0, 0.0])), rig(1).intrinsics)[None]
    anchors = torch.tensor([[[0.3, 0.0, 0.0], [-0.3, 0.0, 0.0]]])
    ahead, behind = ([], [])
    for picture in (torch.zeros(1, 1, 3, 42, 42), torch.ones(1, 1, 3, 42, 42)):
        _, shares = model.transformer(anchors, model.encoder(picture, camera), camera)
        assert shares[0, 0].tolist() == [1, 0]
        colours = model(picture, camera, anchors)[0].sh_dc
        ahead.append(colours[:4])
        behind.append(colours[4:])
    assert (ahead[0] - ahead[1]).abs().min() > 0.1
    assert (behind[0] - behind[1]).abs().max() < 0.1 * (ahead[0] - ahead[1]).abs().max()


def test_a_point_beside_a_camera_lies_outside_its_frame_in_the_public_codes_projection() -> None:
    """It divides by zero there."""
    camera = Cameras(look_at(torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([1.0, 0.0, 0.0])), rig(1).intrinsics)[None]
    uv, _ = project_to_every_view(torch.tensor([[[0.0, 0.2, 0.0], [0.0, 0.0, 0.0], [0.4, 0.0, 0.0]]]), camera)
    assert torch.isfinite(uv).all()
    assert (uv[0, 0, :2].abs().amax(dim=-1) > 100).all()
    torch.testing.assert_close(uv[0, 0, 2], torch.tensor([0.5, 0.5]))


def test_an_anchor_that_no_view_sees_becomes_grey_gaussians(model) -> None:
    """Its tokens still attend to the others; no picture gives it a colour."""
    network = model.reconstruction
    anchors = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.0, 50.0]]])
    views = seen(rig(3))
    with torch.no_grad():
        (gaussians,) = network(views.colour[None], views.cameras[None], anchors)
    assert finite(gaussians)
    if network.settings.colours == "pictures":
        torch.nn.init.zeros_(network.head.output.weight)
        with torch.no_grad():
            (gaussians,) = network(views.colour[None], views.cameras[None], anchors)
        torch.testing.assert_close(gaussians.colours[4:], torch.full((4, 3), 0.5))


def test_no_anchor_points_give_no_gaussians(model) -> None:
    views = seen(rig(2))
    sets = model.reconstruction(views.colour[None], views.cameras[None], torch.zeros(1, 0, 3))
    assert [len(one) for one in sets] == [0]
    assert len(model.reconstruct(views, max_anchors=0)) == 0
    with pytest.raises(BadInput, match="max_anchors"):
        model.reconstruct(views, max_anchors=-1)


# --- memory ---


def test_more_anchors_than_fit_say_what_they_need_and_what_would_fit(monkeypatch) -> None:
    demand = Demand(PAPER.proposal, PAPER.reconstruction, 21, (512, 512), 1_000_000)
    monkeypatch.setattr(memory, "free_bytes", lambda _: 6 * 2**30)
    with pytest.raises(BadInput) as caught:
        demand.require("mug", torch.device("cpu"))
    message = str(caught.value)
    assert caught.value.reason == "out_of_memory"
    assert "1,000,000 anchor points and 21 views of 512 x 512 px need about" in message
    assert "6.00 GiB are free" in message
    fits = int(message.partition("params.yaml) to ")[2].partition(", or")[0].replace(",", ""))
    assert Demand(PAPER.proposal, PAPER.reconstruction, 21, (512, 512), fits).bytes <= 6 * 2**30
    Demand(PAPER.proposal, PAPER.reconstruction, 21, (512, 512), fits).require("mug", torch.device("cpu"))
    monkeypatch.setattr(memory, "free_bytes", lambda _: 2**20)
    with pytest.raises(BadInput, match="fewer or smaller pictures: they alone do not fit"):
        demand.require("mug", torch.device("cpu"))


def test_a_gpu_that_runs_out_says_the_same(monkeypatch) -> None:
    model = built(PROPOSAL, RECONSTRUCTION)

    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model.reconstruction, "forward", full)
    with pytest.raises(BadInput, match="64 anchor points and 2 views of 42 x 42 px") as caught:
        model.reconstruct(seen(rig(2)))
    assert caught.value.reason == "out_of_memory"
    assert "pictures" in caught.value.remedy


@pytest.mark.gpu
def test_a_gpu_that_really_refuses_says_the_same() -> None:
    model = built(PROPOSAL, RECONSTRUCTION).cuda()
    views = seen(rig(64), 448, 448)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.001)  # 80 to 140 MiB; the pictures alone take 190
    try:
        with pytest.raises(BadInput, match="64 views of 448 x 448 px need about") as caught:
            model.reconstruct(views)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert caught.value.reason == "out_of_memory"
    assert isinstance(caught.value.__cause__, torch.cuda.OutOfMemoryError)
    assert len(model.reconstruct(seen(rig(2)))) > 0, "and goes on"


@pytest.mark.parametrize(
    ("views", "side", "anchors"), [(21, 512, 16384), (21, 512, 65536), (4, 512, 16384), (21, 256, 4096)]
)
def test_the_estimate_is_near_what_the_full_size_model_holds(views, side, anchors) -> None:
    """Counted operation by operation on tensors without content, so nothing is computed."""
    with torch.device("meta"):
        networks = ProposalNetwork(PAPER.proposal, False), ReconstructionNetwork(PAPER.reconstruction, False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        proposal, reconstruction = (network.to_empty(device="cpu") for network in networks)
        images, points = torch.empty(1, views, 3, side, side), torch.empty(1, anchors, 3)
        cameras = Cameras(torch.empty(1, views, 4, 4), torch.empty(1, views, 3, 3))
        held = max(
            live_memory.peak_bytes(lambda: proposal(images, cameras)),
            live_memory.peak_bytes(lambda: reconstruction(images, cameras, points)),
        )
    estimate = Demand(PAPER.proposal, PAPER.reconstruction, views, (side, side), anchors).bytes
    print(f"{views} views of {side} px, {anchors} anchors: {held / 2**30:.2f} GiB, estimate {estimate / 2**30:.2f}")
    assert 0.9 < estimate / held < 1.1


def test_live_memory_counts_what_is_held_at_once() -> None:
    def compute():
        first = torch.zeros(1000)  # 4,000 bytes
        second = first + 1
        del first
        third = second * 2
        return second, third.view(10, 100)

    assert live_memory.peak_bytes(compute) == 8000


def test_every_reason_is_documented() -> None:
    page = Path("docs/bad-input.md").read_text()
    for reason in ("view_sizes", "view_channels", "no_views", "picture_too_small", "max_anchors", "out_of_memory"):
        assert f"`{reason}`" in page
