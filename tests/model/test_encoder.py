"""The hierarchical image encoder."""

import copy

import pytest
import torch
from transformers import Dinov2Model

from geolrm.cameras import orbit
from geolrm.config import Encoder
from geolrm.failures import BadInput
from geolrm.model.encoder import HierarchicalEncoder, resized_to_multiple

TINY = Encoder(dinov2="scratch", dinov2_width=24, dinov2_layers=1, dinov2_heads=2, channels=12)


def cameras(count: int):
    return orbit(torch.arange(count) * 360.0 / count, torch.full((count,), 15.0), 2.0, 39.6)[None]


@pytest.fixture
def encoder() -> HierarchicalEncoder:
    torch.manual_seed(0)
    return HierarchicalEncoder(TINY)


@pytest.mark.parametrize(
    ("height", "width", "low", "high"),
    [(56, 56, (14, 14), (8, 8)), (64, 50, (16, 13), (10, 8)), (5, 3, (1, 1), (2, 2))],
)
def test_any_picture_size_gives_maps_that_cover_the_frame(encoder, height, width, low, high) -> None:
    maps = encoder(torch.rand(1, 2, 3, height, width), cameras(2))
    assert [tuple(m.shape) for m in maps] == [(1, 2, 12, *low), (1, 2, 12, *high)]


def test_512_pixels_become_36_patches_that_span_the_whole_picture() -> None:
    """Nothing is cut off: the last column of a picture of 512 pixels shows in the last column of what DINOv2 sees."""
    picture = torch.zeros(1, 3, 512, 512)
    picture[..., -2:] = 1.0
    resized = resized_to_multiple(picture, 14)
    assert resized.shape[-2:] == (518, 518)
    assert (resized[..., -1] > 0.9).all()
    assert resized_to_multiple(picture, 4) is picture


def test_a_pictures_features_depend_on_that_picture_alone(encoder) -> None:
    """No statistics over the batch, in training as in use (the public code's BatchNorm)."""
    images, rig = torch.rand(1, 3, 3, 28, 28), cameras(3)
    together = encoder.train()(images, rig)
    alone = encoder.eval()(images[:, 1:2], rig[:, 1:2])
    for both, one in zip(together, alone, strict=True):
        torch.testing.assert_close(both[:, 1:2], one, atol=1e-5, rtol=1e-5)


def test_the_low_level_sees_where_the_camera_is_and_the_high_level_does_not(encoder) -> None:
    images = torch.rand(1, 1, 3, 28, 28)
    low, high = encoder(images, cameras(2)[:, :1])
    other_low, other_high = encoder(images, cameras(2)[:, 1:])
    assert (low - other_low).abs().max() > 0.1
    torch.testing.assert_close(high, other_high)


def test_a_low_level_cell_lies_where_its_pixels_are(encoder) -> None:
    images = torch.ones(1, 1, 3, 28, 28)
    images[..., 8:12, 20:24] = 0.0
    changed = (encoder(images, cameras(1))[0] - encoder(torch.ones_like(images), cameras(1))[0]).abs().amax(dim=2)
    assert changed[0, 0].nonzero().tolist() == [[2, 5]]


def test_as_many_cameras_as_pictures_are_needed(encoder) -> None:
    with pytest.raises(ValueError, match="views"):
        encoder(torch.rand(1, 2, 3, 28, 28), cameras(3))


def test_weights_that_cannot_be_downloaded_are_bad_input_with_a_way_out(monkeypatch) -> None:
    def offline(*_, **__):
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(Dinov2Model, "from_pretrained", offline)
    wanted = TINY.model_copy(update={"dinov2": "pretrained"})
    with pytest.raises(BadInput, match="couldn't connect") as caught:
        HierarchicalEncoder(wanted)
    assert caught.value.reason == "dinov2_weights"
    assert "dinov2: scratch" in caught.value.remedy
    HierarchicalEncoder(wanted, pretrained=False)  # a checkpoint is about to fill it: no network needed


def test_published_weights_of_another_size_are_bad_input(monkeypatch) -> None:
    published = HierarchicalEncoder(TINY).dinov2
    monkeypatch.setattr(Dinov2Model, "from_pretrained", lambda *_, **__: published)
    wanted = TINY.model_copy(update={"dinov2": "pretrained"})
    HierarchicalEncoder(wanted)
    with pytest.raises(BadInput, match="dinov2_size"):
        HierarchicalEncoder(wanted.model_copy(update={"dinov2_layers": 2}))


def test_a_checkpoint_names_attention_as_the_published_weights_do_whatever_transformers_calls_it(encoder) -> None:
    saved = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    parts = ("query.weight", "query.bias", "key.weight", "key.bias", "value.weight", "value.bias")
    assert {f"dinov2.encoder.layer.0.attention.attention.{part}" for part in parts} < saved.keys()
    assert {f"dinov2.encoder.layer.0.attention.output.dense.{part}" for part in ("weight", "bias")} < saved.keys()
    assert not [name for name in saved if "_proj" in name]
    other = copy.deepcopy(encoder)
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    other.load_state_dict(saved)
    for name, tensor in other.named_parameters():
        torch.testing.assert_close(tensor, dict(encoder.named_parameters())[name], rtol=0, atol=0)
    del saved["dinov2.encoder.layer.0.attention.attention.key.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*layer\.0\.attention"):
        other.load_state_dict(saved)
