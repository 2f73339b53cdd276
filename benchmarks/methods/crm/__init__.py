"""CRM (Wang et al. 2024): six faces with coordinate maps to a mesh, re-implemented here from its paper and public facts.

In: six pictures with depth of the cameras of `faces.own_cameras`, in its order; nothing else is its input. Out: its mesh in the
object frame and pictures of it, coloured point by point. Convention: the width of the pictures is the triplane's side; the
noise that the network wants is drawn from a fixed seed. Trade: its rays are parallel, ours of 5 degrees nearly so; what a
coordinate map's numbers mean is inferred (`faces.py`). Verified by recorded outputs (`check FOLDER`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.methods import Context, Method, NotApplicable, Prediction, Spec
from benchmarks.methods.crm.faces import (
    FACES,
    GREY,
    NOISE_DEVIATION,
    NOISE_MEAN,
    TIME,
    TRIPLANE_AXES,
    arranged,
    coordinate_maps,
    noised,
    own_cameras,
)
from benchmarks.methods.crm.network import CRM, Config
from benchmarks.methods.crm.surface import CELLS, colours_at, mesh_of
from benchmarks.pictures import coloured_mesh
from benchmarks.published import DIFFERS, UNTRAINED, VARIABLE, filled, published_file, read_published
from benchmarks.stages import stage
from geolrm.data.raycast import import_open3d
from geolrm.files import sha256_of
from geolrm.gaussians import Gaussians
from geolrm.meshing import Mesh
from geolrm.views import Views

REPOSITORY, FILE = "Zhengyi/CRM", "CRM.pth"
SPEC = Spec(
    what="CRM's reconstruction network, 119 M parameters, plain PyTorch in float32: U-Net to a triplane, FlexiCubes of 80 cells",
    inputs="its own: six faces with coordinate maps on grey; posed perspective pictures are not applicable",
    cameras="fixed: front (-y), left, bottom, back, right, top, parallel rays; the sign of x and y in the maps is inferred",
    licence="code of this repository Apache-2.0, written from the paper; public code and weights MIT",
    weights=f"{FILE} of {REPOSITORY} on Hugging Face, in the folder {VARIABLE}",
)
PAPER = (  # CD is the sum of both unsquared directions in [-1, 1]^3; CRM's own paper has 30 GSO objects and another box
    {
        **{"table": "GeoLRM, GSO", "differs": f"100 objects; how CRM was given posed pictures is not said; {DIFFERS}"},
        **{"psnr": 22.78, "ssim": 0.843, "lpips": 0.190, "cd_sum": 0.213, "fscore_0.2": 0.831},
        **{"latency_s": 0.30, "memory_gb": 5.93},
    },
    {
        **{"table": "GeoLRM, OmniObject3D", "differs": f"100 objects, likewise; {DIFFERS}"},
        **{"psnr": 23.12, "ssim": 0.855, "lpips": 0.175, "cd_sum": 0.204, "fscore_0.2": 0.810},
    },
    {
        **{"table": "InstantMesh, GSO", "differs": f"one picture and diffusion; {DIFFERS}"},
        **{"psnr": 22.20, "ssim": 0.891, "lpips": 0.150, "cd_sum": 0.252, "fscore_0.2": 0.787},
    },
)
OWN = (
    "unet2",
    "sdfMlp",
    "rgbMlp",
    "weightMlp",
)  # parts of the network; the public code would not notice others in the file
SEED = 0  # of the noise
SAME = 1e-3  # by how much a camera's axes may be off
MAX_FOV = 10.0  # degrees, beyond which rays are no longer nearly parallel


def half_width_of(views: Views) -> float:
    """Object units from the middle to the edge of the pictures. Raises `NotApplicable` unless these are CRM's six faces."""
    cameras, wanted = views.cameras, own_cameras().rotations.to(views.colour)
    remedy = "CRM takes its own inputs: render the object with `faces.own_cameras`"
    if len(views) != len(FACES) or (cameras.rotations - wanted).abs().max() > SAME:
        detail = f"CRM takes the six faces {', '.join(FACES)} and no posed pictures; these are {len(views)} others"
        raise NotApplicable("own_inputs", views.key, detail, remedy)
    focal = cameras.intrinsics[0, 0, 0].item()
    if views.depth is None or 2 * torch.tensor(0.5 / focal).atan().rad2deg() > MAX_FOV:
        raise NotApplicable("own_inputs", views.key, "CRM takes depth, and rays that are nearly parallel", remedy)
    return cameras.positions[0].norm().item() * 0.5 / focal


def triplane_of(network: CRM, views: Views, half_width: float) -> Tensor:
    """(C, S, 3 S) planes of the six faces."""
    side = network.unet2.learned_plane.shape[-2]
    views = views.resized(side, side)
    picture = arranged(views.composited(GREY), coordinate_maps(views, half_width))[None]
    draw = torch.randn(picture.shape, generator=torch.Generator().manual_seed(SEED)).to(picture)
    time = torch.full((1,), TIME, device=picture.device)
    planes: Tensor = network.unet2(noised(picture, NOISE_DEVIATION * draw + NOISE_MEAN), time)[0]
    return planes


def method(network: CRM, checkpoint: str, cells: int = CELLS) -> Method:
    """The method of a network in eval mode on its device."""

    @torch.no_grad()
    def reconstruct(views: Views) -> Prediction:
        half_width = half_width_of(views)
        with stage("network"):
            planes = triplane_of(network, views, half_width)
        with stage("mesh"):
            vertices, faces = mesh_of(network, planes, cells)
        if not len(faces):
            return Gaussians.empty(planes.device)
        to_object = half_width * planes.new_tensor(TRIPLANE_AXES)

        def colour(points: Tensor) -> Tensor:
            return colours_at(network, planes, points / to_object)

        with stage("colours"):
            colours = colours_at(network, planes, vertices)
        return coloured_mesh(Mesh(vertices * to_object, faces.flip(-1), colours), colour)

    return Method(reconstruct, checkpoint)


def load(context: Context) -> Method:
    """Raises `BadInput` where the weights are missing, damaged, or not exactly CRM's; `Open3DMissing` without Open3D."""
    import_open3d()
    file = published_file(REPOSITORY, FILE)
    tensors = read_published(file)
    own = {name: tensor for name, tensor in tensors.items() if name.partition(".")[0] in OWN}
    if others := sorted(tensors.keys() - own):
        print(f"{file}: {len(others)} tensors are of no part of the network and left aside, {others[0]} for one")
    return method(filled(CRM, own, file).to(context.device), sha256_of(file))


def drawn(device: torch.device, config: Config, cells: int = CELLS) -> Method:
    """The same with random weights, for rows of latency and memory alone: its mesh is a rough ball, whatever is shown."""
    with device:
        return method(CRM(config).eval(), UNTRAINED, cells)


def untrained(context: Context) -> Method:
    """`drawn` in its published size."""
    return drawn(context.device, Config())
