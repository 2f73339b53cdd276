"""CRM (Wang et al. 2024): six faces with coordinate maps to a mesh, re-implemented here from its paper and public facts.

In: six pictures with depth of the cameras of `faces.own_cameras`, in its order; nothing else is its input. Out: round, opaque
Gaussians on the vertices of its mesh, which `mesh_of_views` gives itself. Convention: the width of the pictures is the
triplane's side; the noise that the network wants is drawn from a fixed seed. Trade: its rays are parallel, ours of 5 degrees
nearly so; what a coordinate map's numbers mean is inferred (`faces.py`). Verified by recorded outputs (`check FOLDER`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.methods import Context, Method, NotApplicable, Spec
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
from benchmarks.methods.crm.network import CRM
from benchmarks.methods.crm.surface import CELLS, colours_at, mesh_of
from benchmarks.methods.mean_colour import half_spacing, round_gaussians
from benchmarks.published import UNTRAINED, VARIABLE, filled, published_file, read_published
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
DIFFERS = "other objects (lists unpublished), cameras, renders and scripts than here"
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


def mesh_of_views(network: CRM, views: Views, side: int, cells: int = CELLS) -> Mesh:
    """The mesh of CRM's six faces in the object frame, on the CPU; possibly empty. Raises as `half_width_of`."""
    half_width = half_width_of(views)
    views = views.resized(side, side)
    picture = arranged(views.composited(GREY), coordinate_maps(views, half_width))[None]
    draw = torch.randn(picture.shape, generator=torch.Generator().manual_seed(SEED)).to(picture)
    time = torch.full((1,), TIME, device=picture.device)
    triplane = network.unet2(noised(picture, NOISE_DEVIATION * draw + NOISE_MEAN), time)[0]
    vertices, faces = mesh_of(network, triplane, cells)
    colours = colours_at(network, triplane, vertices)
    return Mesh(to_object(vertices, half_width).cpu(), faces.flip(-1).cpu(), colours.cpu())


def to_object(vertices: Tensor, half_width: float) -> Tensor:
    """Triplane coordinates (N, 3) in the object frame."""
    return vertices * vertices.new_tensor(TRIPLANE_AXES) * half_width


def method(network: CRM, checkpoint: str) -> Method:
    """The method of a network in eval mode on its device."""
    side = network.unet2.learned_plane.shape[-2]

    @torch.no_grad()
    def reconstruct(views: Views) -> Gaussians:
        mesh = mesh_of_views(network, views, side)
        if not len(mesh.vertices):
            return Gaussians.empty(views.colour.device)
        spacing = half_spacing(mesh.vertices, 1 / CELLS)
        return round_gaussians(mesh.vertices, mesh.colours, spacing).to(views.colour.device)

    return Method(reconstruct, checkpoint)


def load(context: Context) -> Method:
    """Raises `BadInput` where the weights are missing, damaged, or not exactly CRM's by names and shapes."""
    file = published_file(REPOSITORY, FILE)
    return method(filled(CRM, read_published(file), file).to(context.device), sha256_of(file))


def untrained(context: Context) -> Method:
    """The same with random weights, for rows of latency and memory alone: its Gaussians mean nothing."""
    with torch.device(context.device):
        return method(CRM().eval(), UNTRAINED)
