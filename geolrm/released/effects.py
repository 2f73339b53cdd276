"""What each of the public code's choices does, in numbers that need no training.

In: nothing; seeds are fixed and networks are small, with random weights. Out: one row a choice, default beside released, for
docs/released-vs-paper.md (`python -m geolrm.released.effects` prints them). Convention: relative change is the root mean
square of the difference over that of the default. Trade: random weights show that and how strongly a choice acts, not what it
costs in quality; that takes training (the choices are ablations). Verified by a test that compares the page with a new run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geolrm.cameras import orbit
from geolrm.config import Encoder, Transformer
from geolrm.model import rope
from geolrm.model.deformable import project_anchors
from geolrm.model.encoder import HierarchicalEncoder, square_rays
from geolrm.model.reconstruction import pad_at_origin
from geolrm.model.transformer import SELF_ATTENTIONS, GeometryTransformer
from geolrm.occupancy import even_subsample, occupancy_from_points, random_subsample, voxel_corners

TRANSFORMER = {"width": 96, "layers": 8, "heads": 4, "sampling_points": 4}
ENCODER = {"dinov2": "scratch", "dinov2_width": 24, "dinov2_layers": 1, "dinov2_heads": 2, "channels": 12}


def change(changed: Tensor, default: Tensor) -> float:
    """Relative change."""
    return ((changed - default).square().mean().sqrt() / default.square().mean().sqrt()).item()


def self_attention() -> tuple[str, str, str]:
    tokens, points = torch.randn(1, 50, 96), torch.rand(1, 50, 3) - 0.5
    touched, turned = {}, {}
    for name, kind in SELF_ATTENTIONS.items():
        torch.manual_seed(1)
        layer = kind(96, 4)
        here = rope.rotations(points, 24)
        before = layer(tokens, here)
        moved = tokens.clone()
        moved[0, 7] = torch.randn(96)
        touched[name] = ((layer(moved, here) - before).abs().amax(dim=-1) > 0).sum().item()
        turned[name] = change(layer(tokens, rope.rotations(points.flip(1), 24)), before)
    return (
        "`transformer.self_attention: heads`",
        f"one token changed: {touched['tokens']} of 50 outputs change; other positions: {turned['tokens']:.2f} relative change",
        f"{touched['heads']} of 50, of other tokens by place in memory; {turned['heads']:.0e}: RoPE has no effect",
    )


def residual() -> tuple[str, str, str]:
    """Root mean square of the stream after eight blocks."""
    cameras = orbit(torch.arange(4) * 90.0, torch.full((4,), 15.0), 2.0, 39.6)[None]
    features = torch.randn(1, 4, 12, 20, 20), torch.randn(1, 4, 12, 10, 10)
    sizes = {}
    for name in ("stream", "normalised"):
        torch.manual_seed(2)
        network = GeometryTransformer(Transformer.model_validate(TRANSFORMER | {"residual": name}), 12)
        last = network.blocks[-1]
        kept: list[Tensor] = []
        last.register_forward_hook(lambda _, __, output, kept=kept: kept.append(output[0]))
        network(torch.rand(1, 200, 3) - 0.5, features, cameras)
        sizes[name] = kept[0].square().mean().sqrt().item()
    return (
        "`transformer.residual: normalised`",
        f"root mean square of the stream after eight untrained blocks {sizes['stream']:.2f}",
        f"{sizes['normalised']:.2f}: each block starts anew from unit size",
    )


def projection() -> tuple[str, str, str]:
    cameras = orbit(torch.arange(8) * 45.0, torch.zeros(8), 0.8, 39.6)[None]
    _, visible = project_anchors(torch.rand(1, 4000, 3) - 0.5, cameras)
    unseen = 100 * (~visible).float().mean().item()
    return (
        "`transformer.projection: every`",
        f"eight close cameras (radius 0.8): the {unseen:.0f} % of pairs of view and point without sight have no weight",
        f"all {unseen:.0f} % keep one in the softmax; points behind a camera sample their mirror image",
    )


def positions() -> tuple[str, str, str]:
    axis = voxel_corners(torch.arange(128), 128)
    training, inference = (len(rope.index_positions(axis, 128, scale).unique()) for scale in (0.5, 1.0))
    return (
        "`transformer.positions: index`",
        "128 fine voxels have 128 positions",
        f"{training} with the training's scale, {inference} with the inference's",
    )


def grid() -> tuple[str, str, str]:
    fine, coarse = voxel_corners(torch.arange(128), 128), voxel_corners(torch.arange(16), 16)
    coarse_gap = ((coarse - fine.view(16, 8).mean(dim=1)).abs().max() * 127).item()
    label_gap = ((fine - (torch.arange(128) / 128 - 0.5)).abs().max() * 128).item()
    return (
        "`grid: corners` (both networks)",
        "a coarse anchor lies in the middle of its block; labels and anchor points share one grid",
        f"up to {coarse_gap:.1f} voxels off; labels and decoded points up to {label_gap:.1f} voxel apart",
    )


def subset() -> tuple[str, str, str]:
    surface = 0.4 * torch.nn.functional.normalize(torch.randn(200_000, 3), dim=-1)
    voxels = occupancy_from_points(surface, 64)[0].nonzero()
    gaps = []
    for pick in (even_subsample, random_subsample):
        nearest = torch.cdist(voxels.float(), pick(voxels, 2048).float()).amin(dim=1)
        gaps.append(f"{nearest.mean():.2f} voxels, at most {nearest.max():.1f}")
    return (
        "`reconstruction.subset: random`",
        f"sphere at R = 64, 2,048 anchor points: a surface voxel lies {gaps[0]} from the nearest",
        gaps[1],
    )


def padding() -> tuple[str, str, str]:
    padded = pad_at_origin(torch.rand(5000, 3) - 0.5, 8192)
    spurious = 32 * (padded == 0).all(dim=-1).sum().item()
    return (
        "`reconstruction.padding: origin`",
        "5,000 voxels give 160,000 Gaussians",
        f"{32 * len(padded):,} with 8,192 tokens, {spurious:,} of them at the origin, and the other tokens attend to them",
    )


def offsets() -> tuple[str, str, str]:
    default, one_sided = (0.2 * reach(torch.zeros(())).item() * 128 for reach in (torch.tanh, torch.sigmoid))
    return (
        "`reconstruction.offsets: one_sided`",
        f"a raw 0 moves a Gaussian by {default:.0f} voxels of 1/128, both ways reachable",
        f"by {one_sided:.1f} along each axis; none can lie below its anchor point",
    )


def colours() -> tuple[str, str, str]:
    raw = torch.randn(100_000, requires_grad=True)
    raw.clamp(-0.5, 0.5).sum().backward()
    assert raw.grad is not None
    return (
        "`reconstruction.colours: tokens`",
        "start from the pictures, sigmoid: every channel has a gradient",
        f"from the token alone, cut off: {100 * (raw.grad == 0).float().mean():.0f} % of standard normal channels have none",
    )


def norm() -> tuple[str, str, str]:
    """Change of one picture's features, in training, when the other picture of the batch is another one."""
    cameras = orbit(torch.tensor([0.0, 90.0]), torch.zeros(2), 2.0, 39.6)[None]
    images = torch.rand(1, 2, 3, 56, 56)
    changes = []
    for name in ("layer", "batch"):
        torch.manual_seed(3)
        encoder = HierarchicalEncoder(Encoder.model_validate(ENCODER | {"norm": name})).train()
        other = torch.cat([images[:, :1], torch.zeros(1, 1, 3, 56, 56)], dim=1)
        with torch.enable_grad():
            changes.append(
                change(encoder(other, cameras)[0][:, 0].detach(), encoder(images, cameras)[0][:, 0].detach())
            )
    return (
        "`encoder.norm: batch`",
        f"the other picture of a batch of two turned black, in training: {changes[0]:.2f} relative change of this one's features",
        f"{changes[1]:.2f}; and its statistics drift where a frozen network stays in training mode",
    )


def fit() -> tuple[str, str, str]:
    lost = 512 % 14
    return (
        "`encoder.fit: crop`",
        "512 px are resized to 518: nothing is lost",
        f"the last {lost} px are not seen, and the map, stretched over the frame, is up to {lost} px off",
    )


def position_embedding() -> tuple[str, str, str]:
    torch.manual_seed(4)
    encoders = [
        HierarchicalEncoder(Encoder.model_validate(ENCODER | {"position_embedding": name}))
        for name in ("size", "factor")
    ]
    encoders[1].load_state_dict(encoders[0].state_dict())
    tokens = torch.zeros(1, 1025, 24)
    known = [e.dinov2.embeddings.interpolate_pos_encoding(tokens, 448, 448)[:, 1:] for e in encoders]
    return (
        "`encoder.position_embedding: factor`",
        "448 px: resized to 32 x 32 patches",
        f"by 32.1 / 37: {change(known[1], known[0]):.2f} relative change of a random embedding (learned ones are smoother)",
    )


def rays() -> tuple[str, str, str]:
    camera = orbit(torch.zeros(1), torch.zeros(1), 2.0, 39.6)
    longest = square_rays(camera, 448, 448)[0, :3].norm(dim=0).max().item()
    return (
        "`encoder.rays: square`",
        "unit directions, both focal lengths and the principal point",
        f"lengths of 1 to {longest:.2f} at 39.6 degrees; the vertical focal length and the principal point are not read",
    )


def low_colour() -> tuple[str, str, str]:
    return (
        "`encoder.low_colour: imagenet`",
        "RGB from -1 to 1",
        f"from {-0.485 / 0.229:.2f} to {(1 - 0.406) / 0.225:.2f}, another scale in each channel",
    )


EFFECTS = (
    *(self_attention, residual, projection, positions, grid, offsets, padding, subset, colours),
    *(norm, fit, position_embedding, rays, low_colour),
)


@torch.no_grad()
def rows() -> list[str]:
    """Lines of the page's table."""
    lines = []
    for effect in EFFECTS:
        torch.manual_seed(0)
        with torch.enable_grad() if effect is colours else torch.no_grad():
            lines.append("| " + " | ".join(effect()) + " |")
    return lines


if __name__ == "__main__":
    print("\n".join(rows()))
