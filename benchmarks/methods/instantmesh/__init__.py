"""InstantMesh (Xu et al. 2024), mesh variant: posed pictures to a triplane to a mesh, re-implemented here from public facts.

In: any number of posed square pictures. Out: the mesh in the object frame, and its pictures, coloured point by point. Convention:
pictures on white, resized to 320 pixels as published; our object frame is scaled by 2 into its box. Trade: trained with 6
views, so more are extrapolation; fields of view of 30 and 50 degrees were seen, ours lies between. FlexiCubes is decoded
exactly, so nothing is lost to marching cubes. Verified by `python -m benchmarks.methods.instantmesh check FOLDER`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.methods import Context, Method, NotApplicable, Prediction, Spec
from benchmarks.methods.instantmesh.cameras import OBJECT_SCALE, in_their_frame, input_numbers
from benchmarks.methods.instantmesh.network import PREFIX, PUBLISHED, InstantMesh, Sizes, SurfaceDecoder
from benchmarks.methods.instantmesh.surface import colours_at, mesh_of
from benchmarks.pictures import coloured_mesh
from benchmarks.published import DIFFERS, UNTRAINED, VARIABLE, filled, published_file, read_published, under
from benchmarks.stages import stage
from geolrm.data.raycast import import_open3d
from geolrm.files import sha256_of
from geolrm.gaussians import Gaussians
from geolrm.meshing import Mesh
from geolrm.views import Views

REPOSITORY, VARIANT = "TencentARC/InstantMesh", "instant_mesh_large"
SPEC = Spec(
    what="InstantMesh `instant_mesh_large`, 378.7 M parameters, plain PyTorch in float32: triplane, FlexiCubes of 128^3 cells",
    inputs="any number of square pictures (trained with 6), on white, resized to 320 x 320 by antialiased bicubics",
    cameras="exact, as 16 numbers a view; the object frame scaled by 2 into its box [-1, 1]^3",
    licence="code of this repository Apache-2.0, written from facts; public code Apache-2.0, parts of it NVIDIA-proprietary",
    weights=f"{VARIANT}.ckpt of {REPOSITORY} on Hugging Face, in the folder {VARIABLE}",
)
PAPER = (  # CD is the sum of both unsquared directions in [-1, 1]^3
    {
        **{
            "table": "GeoLRM, GSO",
            "differs": f"100 objects, posed pictures; seconds and GB on another GPU; {DIFFERS}",
        },
        **{"psnr": 23.19, "ssim": 0.856, "lpips": 0.166, "cd_sum": 0.186, "fscore_0.2": 0.854},
        **{"latency_s": 0.78, "memory_gb": 23.12},
    },
    {
        **{"table": "GeoLRM, OmniObject3D", "differs": f"100 objects, posed pictures; {DIFFERS}"},
        **{"psnr": 23.86, "ssim": 0.860, "lpips": 0.139, "cd_sum": 0.178, "fscore_0.2": 0.834},
    },
    {
        **{
            "table": "InstantMesh, GSO, mesh",
            "differs": f"300 objects, one picture and diffusion, meshes rescaled; {DIFFERS}",
        },
        **{"psnr": 22.79, "ssim": 0.897, "lpips": 0.120, "cd_sum": 0.180, "fscore_0.2": 0.880},
    },
    {
        **{
            "table": "InstantMesh, OmniObject3D orbit, mesh",
            "differs": f"130 objects, one picture and diffusion; {DIFFERS}",
        },
        **{"psnr": 21.95, "cd_sum": 0.203},
    },
)
SIDE = 320
BALL = 0.6  # radius, in its box, of the surface that random weights are given: some 50,000 triangles, as published meshes have


def network_inputs(views: Views) -> tuple[Tensor, Tensor]:
    """Pictures (1, V, 3, 320, 320) and cameras (1, V, 16). Raises `NotApplicable` for pictures that are not square."""
    if views.size[0] != views.size[1]:
        raise NotApplicable("not_square", views.key, f"pictures of {views.size} pixels; InstantMesh takes square ones")
    pictures = views.composited()
    pictures = F.interpolate(pictures, (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return pictures[None], input_numbers(in_their_frame(views.cameras))[None]


def method(network: InstantMesh, checkpoint: str) -> Method:
    """The method of a network in eval mode, on its device."""

    @torch.no_grad()
    def reconstruct(views: Views) -> Prediction:
        with stage("network"):
            planes = network(*network_inputs(views))
        with stage("mesh"):
            vertices, faces = mesh_of(network, planes)
        if not len(faces):
            return Gaussians.empty(planes.device)
        with stage("colours"):
            mesh = Mesh(vertices / OBJECT_SCALE, faces, colours_at(network, planes, vertices))

        def colour(points: Tensor) -> Tensor:
            return colours_at(network, planes, points * OBJECT_SCALE)

        return coloured_mesh(mesh, colour)

    return Method(reconstruct, checkpoint)


def load(context: Context) -> Method:
    """Raises `BadInput` where the weights are missing, damaged, or not exactly InstantMesh's; `Open3DMissing` without Open3D."""
    import_open3d()
    file = published_file(REPOSITORY, f"{VARIANT}.ckpt")
    tensors = under(PREFIX, read_published(file))  # others in there are of the losses
    network = filled(lambda: InstantMesh(PUBLISHED[VARIANT]), tensors, file)
    return method(network.to(context.device), sha256_of(file))


class BallDecoder(SurfaceDecoder):
    """Random heads whose surface is a ball, so that a mesh of ordinary size is decoded; the heads' work is done all the same."""

    def fields(self, planes: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        _, deformation = super().fields(planes, points)
        return points.norm(dim=-1, keepdim=True) - BALL, deformation


def drawn(device: torch.device, sizes: Sizes) -> Method:
    """The same with random weights, for rows of latency and memory alone: its mesh is a ball, whatever the pictures show."""
    with device:
        network = InstantMesh(sizes)
        network.synthesizer["decoder"] = BallDecoder(sizes.triplane.channels, sizes.hidden, sizes.depth)
    return method(network.eval().requires_grad_(False), UNTRAINED)


def untrained(context: Context) -> Method:
    """`drawn` in its published size."""
    return drawn(context.device, PUBLISHED[VARIANT])
