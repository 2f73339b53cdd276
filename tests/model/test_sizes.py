"""The presets' networks: sizes against the published ones."""

from pathlib import Path

import pytest
import torch
from torch import nn

from geolrm.config import Params, load_params
from geolrm.model.proposal import ProposalNetwork
from geolrm.model.reconstruction import ReconstructionNetwork

PRESETS = sorted(Path("presets").glob("*.yaml"))
PUBLIC_CODE = 334_556_304  # parameters of the public implementation
PUBLIC_ENCODER = 91_355_904


def networks(params: Params) -> tuple[ProposalNetwork, ReconstructionNetwork]:
    with torch.device("meta"):
        return (
            ProposalNetwork(params.proposal, pretrained=False),
            ReconstructionNetwork(params.reconstruction, pretrained=False),
        )


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_every_preset_parses_names_itself_and_builds(path: Path) -> None:
    params = load_params(path)
    assert params.preset == path.stem
    assert params.shard.voxel_resolution == params.proposal.voxel_resolution
    networks(params)


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_every_preset_says_on_top_what_it_costs(path: Path) -> None:
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert comment[0].startswith(f"# {path.stem}:")


def test_the_small_preset_stays_below_eleven_million_parameters() -> None:
    proposal, reconstruction = networks(load_params("presets/small.yaml"))
    assert size(proposal) + size(reconstruction) <= 11_000_000


def test_the_paper_preset_differs_from_the_public_code_by_named_parameters_only() -> None:
    """The encoders agree to the last parameter by coincidence: DINOv2's unused mask token (768) makes room for the biases
    of two convolutions (2 x 384)."""
    proposal, reconstruction = networks(load_params("presets/paper.yaml"))
    assert size(proposal.encoder) == size(reconstruction.encoder) == PUBLIC_ENCODER
    token_input = 40 * (384 + 768)  # 39 Fourier features and a bias, instead of a shared vector of width - 3
    shared_vector = (384 - 3) + (768 - 3)
    view_weight_bias = 6 + 16  # one a layer, which the softmax over views cancels
    pictures = (
        (3 * 9 + 1) * 16 + (16 * 9 + 1) * 16 + (16 * 9 + 1) * 8
    )  # to the features whose statistics the U-Net sees
    twice = [
        (28, 12),
        (12, 24),
        (24, 48),
        (72, 24),
        (36, 12),
    ]  # its five pairs of convolutions, from and to so many channels
    carving = pictures + sum(27 * (a * b + b * b) + 4 * b for a, b in twice) + (384 + 1) * 48 + 12
    hints = (8 + 1) * 768  # cues at an anchor point to its token
    total = size(proposal) + size(reconstruction)
    print(f"{total:,} parameters, the public code has {PUBLIC_CODE:,}")
    assert total == PUBLIC_CODE + token_input - shared_vector - view_weight_bias + carving + hints == 334_838_388
