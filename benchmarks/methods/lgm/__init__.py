"""LGM (Tang et al. 2024): four pictures to 65,536 Gaussians by a U-Net, re-implemented here from its paper and public facts.

In: four posed pictures. Out: Gaussians in the object frame. Convention: the pictures are widened (or cropped) to the field of
view of its training and brought to its side with antialiasing, the first camera to its place and distance (`frame.py`).
Trade: float32, where the public code computes in float16; the object fills less of a picture than in training, since only a
camera's field of view can be changed and not its distance. Verified by `python -m benchmarks.methods.lgm check FOLDER`.
"""

from __future__ import annotations

import torch

from benchmarks.methods import Context, Method, NotApplicable, Spec
from benchmarks.methods.lgm.frame import FOV, RADIUS, Frame, network_input, with_field_of_view
from benchmarks.methods.lgm.network import BIG, LGM, VIEWS, Config
from benchmarks.published import DIFFERS, UNTRAINED, VARIABLE, filled, published_file, read_published
from geolrm.files import sha256_of
from geolrm.gaussians import Gaussians
from geolrm.views import Views

REPOSITORY, FILE = "ashawkey/LGM", "model_fp16_fixrot.safetensors"
SPEC = Spec(
    what="LGM `big`, 415 M parameters, plain PyTorch in float32: asymmetric U-Net, one Gaussian per pixel of four 128 x 128 maps",
    inputs="exactly 4 pictures, brought to 49.1 degrees and 256 x 256, white background",
    cameras="exact; moved so that the first one stands at distance 1.5 and its axes are the world's",
    licence="code of this repository Apache-2.0, written from the paper; public code and weights MIT",
    weights=f"{FILE} of {REPOSITORY} on Hugging Face, in the folder {VARIABLE}",
)
PAPER = (  # LGM's own paper has a user study and no such numbers; CD is the sum of both unsquared directions in [-1, 1]^3
    {
        **{"table": "GeoLRM, GSO", "differs": f"100 objects, posed pictures, converter of LGM; {DIFFERS}"},
        **{"psnr": 20.76, "ssim": 0.832, "lpips": 0.227, "cd_sum": 0.295, "fscore_0.2": 0.703},
        **{"latency_s": 0.07, "memory_gb": 7.23},
    },
    {
        **{"table": "GeoLRM, OmniObject3D", "differs": f"100 objects, posed pictures, converter of LGM; {DIFFERS}"},
        **{"psnr": 21.94, "ssim": 0.824, "lpips": 0.203, "cd_sum": 0.256, "fscore_0.2": 0.787},
    },
    {
        **{"table": "InstantMesh, GSO", "differs": f"one picture and diffusion, no posed pictures; {DIFFERS}"},
        **{"psnr": 21.54, "ssim": 0.871, "lpips": 0.216, "cd_sum": 0.345, "fscore_0.2": 0.671},
    },
    {"table": "GRM, GSO", "differs": f"4 posed pictures, 64 test views near them; {DIFFERS}", "psnr": 23.79},
    {"table": "GS-LRM, GSO", "differs": f"4 posed pictures at elevation 20; {DIFFERS}", "psnr": 21.44},
)
SIDE = 256  # of its input pictures
CENTRED = 1e-3  # by how much a principal point may miss the middle, of the picture's side
AIMED = 0.02  # by how much the first camera's axis may miss the origin, of its distance


def check_cameras(views: Views) -> None:
    """Raise `NotApplicable` for views that the network cannot take."""
    height, width = views.size
    intrinsics = views.cameras.intrinsics
    if len(views) != VIEWS:
        raise NotApplicable("view_count", views.key, f"LGM takes {VIEWS} views, not {len(views)}")
    focal = intrinsics[0, 0, 0]
    same = (intrinsics[:, [0, 1], [0, 1]] - focal).abs().max() <= CENTRED * focal
    if height != width or not same or (intrinsics[:, :2, 2] - 0.5).abs().max() > CENTRED:
        raise NotApplicable("not_centred", views.key, "LGM takes square pictures of one centred camera")
    origin = views.cameras[0].world_to_camera[:3, 3]
    if origin[:2].norm() > AIMED * origin[2]:
        raise NotApplicable(
            "first_camera", views.key, "LGM's first camera looks at the object's centre; this one does not"
        )


def method(network: LGM, checkpoint: str, products: torch.dtype | None = None) -> Method:
    """The method of a network in eval mode on its device.

    Args:
        products: in which half precision the network multiplies; None: float32.
    """

    @torch.no_grad()
    def reconstruct(views: Views) -> Gaussians:
        check_cameras(views)
        views = with_field_of_view(views, FOV).resized(SIDE, SIDE)
        first = views.cameras[0]
        frame = Frame.of_first(first, RADIUS / first.positions.norm().item())
        images = network_input(views.composited(), frame.cameras(views.cameras))
        with torch.autocast(images.device.type, products, enabled=products is not None):
            predicted = network(images[None])[0]
        return frame.gaussians_to_object(predicted.float())

    return Method(reconstruct, checkpoint, str(products or torch.float32).removeprefix("torch."))


def load(context: Context) -> Method:
    """Raises `BadInput` where the weights are missing, damaged, or not exactly LGM's by names and shapes."""
    file = published_file(REPOSITORY, FILE)
    network = filled(LGM, read_published(file), file).to(context.device)
    return method(network, sha256_of(file))


def drawn(device: torch.device, config: Config, half: bool = False) -> Method:
    """The same with random weights, for rows of latency and memory alone: its Gaussians mean nothing.

    Args:
        half: half-precision products: float16 on a GPU, as the public code computes, bfloat16 on a CPU.
    """
    products = (torch.float16 if device.type == "cuda" else torch.bfloat16) if half else None
    with device:
        return method(LGM(config).eval(), UNTRAINED, products)


def untrained(context: Context) -> Method:
    """`drawn` in its published size."""
    return drawn(context.device, BIG)
