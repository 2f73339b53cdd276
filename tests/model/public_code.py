"""The public code's modules written down a second time, from their description alone, for parity fixtures of any size.

Plain functions over dictionaries of weights under the public names; nothing of geolrm is imported. Where the description
gives a rule for single elements (RoPE, the scrambled attention, bilinear samples), this follows the rule element by element.
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

EPS = 1e-5
GENERATOR = torch.Generator()


def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR) * scale


def linear(sd: dict, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, sd[f"{name}.weight"], sd.get(f"{name}.bias"))


def part(sd: dict, name: str) -> dict:
    return {key[len(name) + 1 :]: value for key, value in sd.items() if key.startswith(f"{name}.")}


# --- weights ---


def drawn_linear(name: str, out: int, into: int, bias: bool = True, scale: float = 1.0) -> dict:
    weights = {f"{name}.weight": draw(out, into, scale=scale / math.sqrt(into))}
    return weights | ({f"{name}.bias": draw(out, scale=0.1)} if bias else {})


def drawn_norm(name: str, width: int, bias: bool = True) -> dict:
    return {f"{name}.weight": 1 + draw(width, scale=0.1)} | ({f"{name}.bias": draw(width, scale=0.1)} if bias else {})


def drawn_encoder(dino: dict, channels: int) -> dict:
    width, hidden = dino["hidden_size"], dino["hidden_size"] * dino["mlp_ratio"]
    grid = dino["image_size"] // 14
    sd = {
        "model.embeddings.cls_token": draw(1, 1, width),
        "model.embeddings.mask_token": draw(1, width),
        "model.embeddings.position_embeddings": draw(1, grid * grid + 1, width),
        "model.embeddings.patch_embeddings.projection.weight": draw(width, 3, 14, 14, scale=0.05),
        "model.embeddings.patch_embeddings.projection.bias": draw(width, scale=0.1),
    }
    for i in range(dino["num_hidden_layers"]):
        layer = f"model.encoder.layer.{i}"
        sd |= drawn_norm(f"{layer}.norm1", width) | drawn_norm(f"{layer}.norm2", width)
        for name in ("query", "key", "value"):
            sd |= drawn_linear(f"{layer}.attention.attention.{name}", width, width)
        sd |= drawn_linear(f"{layer}.attention.output.dense", width, width)
        sd |= drawn_linear(f"{layer}.mlp.fc1", hidden, width) | drawn_linear(f"{layer}.mlp.fc2", width, hidden)
        sd |= {f"{layer}.layer_scale{n}.lambda1": 1 + draw(width, scale=0.1) for n in (1, 2)}
    sd |= drawn_norm("model.layernorm", width)
    sd["deconv.0.weight"] = draw(width, channels, 4, 4, scale=0.05)
    sd["low_level_encoder.0.weight"] = draw(channels, 9, 4, 4, scale=0.1)
    for name in ("deconv.1", "low_level_encoder.1"):
        sd |= drawn_norm(name, channels)
        sd[f"{name}.running_mean"] = draw(channels, scale=0.3)
        sd[f"{name}.running_var"] = 0.5 + draw(channels).square()
        sd[f"{name}.num_batches_tracked"] = torch.tensor(7)
    return sd


def drawn_cross_attention(width: int, channels: int, heads: int, points: int) -> dict:
    return (
        drawn_linear("deformable_attention.sampling_offsets", heads * 2 * points * 2, width, scale=2.0)
        | drawn_linear("deformable_attention.attention_weights", heads * 2 * points, width)
        | drawn_linear("deformable_attention.value_proj", width, channels)
        | drawn_linear("output_proj", width, width)
        | drawn_linear("cross_view_weight", 1, width)
    )


def drawn_transformer(width: int, layers: int, channels: int, heads: int, points: int) -> dict:
    hidden = -(-int(2 / 3 * 4 * width) // 256) * 256
    sd = {"query_token": draw(1, 1, width - 3)}
    for i in range(layers):
        for name in ("wq", "wk", "wv", "wo"):
            sd |= drawn_linear(f"layers.{i}.self_attention.{name}", width, width, bias=False)
        crossing = drawn_cross_attention(width, channels, heads, points)
        sd |= {f"layers.{i}.cross_attention.{key}": value for key, value in crossing.items()}
        for name, out, into in (("w1", hidden, width), ("w2", width, hidden), ("w3", hidden, width)):
            sd |= drawn_linear(f"layers.{i}.feed_forward.{name}", out, into, bias=False)
        for name in ("self_attention_norm", "cross_attention_norm", "ffn_norm"):
            sd |= drawn_norm(f"layers.{i}.{name}", width, bias=False)
    return sd | drawn_norm("norm", width, bias=False)


def drawn_cameras(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Blender poses around the origin, looking at it, and intrinsics; horizontal and vertical focal lengths differ."""
    positions = F.normalize(draw(*shape, 3), dim=-1) * 1.6
    back = F.normalize(positions, dim=-1)
    right = F.normalize(torch.linalg.cross(torch.tensor([0.0, 0.0, 1.0]).expand_as(back), back), dim=-1)
    poses = torch.eye(4).repeat(*shape, 1, 1)
    poses[..., :3, :] = torch.stack([right, torch.linalg.cross(back, right), back, positions], dim=-1)
    intrinsics = torch.eye(3).repeat(*shape, 1, 1)
    intrinsics[..., 0, 0], intrinsics[..., 1, 1] = 1.4 + draw(*shape, scale=0.05), 1.4 + draw(*shape, scale=0.05)
    intrinsics[..., :2, 2] = 0.5
    return poses, intrinsics


# --- modules ---


def dinov2(sd: dict, images: torch.Tensor, dino: dict) -> torch.Tensor:
    """(V, width, h, w); pre-norm ViT with LayerScale, the last norm applied."""
    heads, eps = dino["num_attention_heads"], dino["layer_norm_eps"]
    patches = F.conv2d(
        images, *(sd[f"embeddings.patch_embeddings.projection.{n}"] for n in ("weight", "bias")), stride=14
    )
    rows, columns = patches.shape[-2:]
    x = torch.cat([sd["embeddings.cls_token"].expand(len(images), 1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
    known = sd["embeddings.position_embeddings"]
    side = math.isqrt(known.shape[1] - 1)
    if (rows, columns) == (side, side):
        x = x + known
    else:
        grid = known[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        factor = ((rows + 0.1) / side, (columns + 0.1) / side)
        grid = F.interpolate(grid, scale_factor=factor, mode="bicubic", align_corners=False)
        x = x + torch.cat([known[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
    width = x.shape[-1]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (width,), sd[f"{name}.weight"], sd[f"{name}.bias"], eps)

    for i in range(dino["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        y = norm(f"{layer}.norm1", x)
        q, k, v = (
            linear(sd, f"{layer}.attention.attention.{n}", y).unflatten(-1, (heads, -1)).transpose(1, 2)
            for n in ("query", "key", "value")
        )
        y = ((q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + linear(sd, f"{layer}.attention.output.dense", y) * sd[f"{layer}.layer_scale1.lambda1"]
        y = linear(sd, f"{layer}.mlp.fc2", F.gelu(linear(sd, f"{layer}.mlp.fc1", norm(f"{layer}.norm2", x))))
        x = x + y * sd[f"{layer}.layer_scale2.lambda1"]
    return norm("layernorm", x)[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))


def rays(poses: torch.Tensor, intrinsics: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(V, 6, H, W): direction of the pixel and moment, both of that length."""
    focal = intrinsics[:, 0, 0, None, None] * width
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x, y = (column + 0.5 - width / 2) / focal, -(row + 0.5 - height / 2) / focal
    direction = torch.stack([x, y, -torch.ones_like(x)], dim=-1)
    direction = torch.einsum("vab,vhwb->vhwa", poses[:, :3, :3], direction)
    origin = poses[:, None, None, :3, 3].expand_as(direction)
    return torch.cat([direction, torch.linalg.cross(origin, direction)], dim=-1).permute(0, 3, 1, 2)


def encoder(sd: dict, images: torch.Tensor, poses: torch.Tensor, intrinsics: torch.Tensor, dino: dict, train: bool):
    """Low and high level (V, C, h, w)."""
    x = (images - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]

    def batch_norm(name: str, x: torch.Tensor) -> torch.Tensor:
        mean, variance = sd[f"{name}.running_mean"], sd[f"{name}.running_var"]
        if train:
            mean, variance = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), unbiased=False)
        x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        return x * sd[f"{name}.weight"][:, None, None] + sd[f"{name}.bias"][:, None, None]

    high = F.conv_transpose2d(dinov2(part(sd, "model"), x, dino), sd["deconv.0.weight"], stride=2, padding=1)
    low = torch.cat([x, rays(poses, intrinsics, *images.shape[-2:])], dim=1)
    low = F.conv2d(low, sd["low_level_encoder.0.weight"], stride=4)
    return batch_norm("low_level_encoder.1", low), batch_norm("deconv.1", high)


def project(points: torch.Tensor, poses: torch.Tensor, intrinsics: torch.Tensor) -> torch.Tensor:
    """(B, N, 3) into (B, V) cameras: (B, V, N, 2)."""
    homogeneous = F.pad(points, (0, 1), value=1.0)
    a, b, c = (
        torch.einsum("bvij,bvjk,bnk->ibvn", intrinsics, torch.inverse(poses)[:, :, :3], homogeneous)[i]
        for i in range(3)
    )
    return torch.stack([1 - a / c, b / c], dim=-1)


def rotate(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """x (B, S, H, D) by integer positions (B, S, 3), channel by channel."""
    x, quarter = x.clone(), x.shape[-1] // 6
    for axis in range(3):
        for k in range(quarter):
            angle = (positions[..., axis] * 10000 ** (-k / quarter))[..., None]
            u, v = 2 * axis * quarter + k, (2 * axis + 1) * quarter + k
            one, two = x[..., u].clone(), x[..., v].clone()
            x[..., u], x[..., v] = one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin()
    return x


def self_attention(sd: dict, x: torch.Tensor, positions: torch.Tensor, heads: int, tokens: bool) -> torch.Tensor:
    q, k, v = (linear(sd, name, x).unflatten(-1, (heads, -1)) for name in ("wq", "wk", "wv"))
    q, k = rotate(q, positions), rotate(k, positions)
    scale = q.shape[-1] ** -0.5
    if tokens:
        scores = torch.einsum("bshd,bthd->bhst", q, k) * scale
        return linear(sd, "wo", torch.einsum("bhst,bthd->bshd", scores.softmax(-1), v).flatten(2))
    mixed = (torch.einsum("bshd,bsgd->bshg", q, k) * scale).softmax(-1) @ v
    scrambled = torch.zeros_like(mixed)
    length = x.shape[1]
    for h in range(heads):
        for s in range(length):
            scrambled[:, (h * length + s) // heads, (h * length + s) % heads] = mixed[:, s, h]
    return linear(sd, "wo", scrambled.flatten(2))


def bilinear(image: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Samples (D, ...) of (D, h, w) at pixel coordinates (centres at whole numbers), zero outside."""
    height, width = image.shape[-2:]
    total = torch.zeros(len(image), *x.shape)
    for row in (y.floor(), y.floor() + 1):
        for column in (x.floor(), x.floor() + 1):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            weight = (1 - (x - column).abs()) * (1 - (y - row).abs()) * inside
            total += weight * image[:, row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()]
    return total


def cross_attention(
    sd: dict, n: torch.Tensor, value: torch.Tensor, shapes: list, places: torch.Tensor, heads: int
) -> dict:
    batch, views, length = places.shape[:3]
    offsets = linear(sd, "deformable_attention.sampling_offsets", n).reshape(batch, length, heads, 2, -1, 2)
    logits = linear(sd, "deformable_attention.attention_weights", n).reshape(batch, length, heads, -1)
    weights = logits.softmax(-1).view(offsets.shape[:-1])
    value = linear(sd, "deformable_attention.value_proj", value)
    per_view = torch.zeros(batch, views, length, n.shape[-1])
    width = n.shape[-1] // heads
    for b in range(batch):
        for view in range(views):
            for h in range(heads):
                start = 0
                for level, (rows, columns) in enumerate(shapes):
                    one = value[b, view, start : start + rows * columns, h * width : (h + 1) * width]
                    start += rows * columns
                    spots = places[b, view, :, None] + offsets[b, :, h, level] / torch.tensor([columns, rows])
                    samples = bilinear(
                        one.T.unflatten(1, (rows, columns)), spots[..., 0] * columns - 0.5, spots[..., 1] * rows - 0.5
                    )
                    summed = (samples * weights[b, :, h, level]).sum(-1).T
                    per_view[b, view, :, h * width : (h + 1) * width] += summed
    view_logits = linear(sd, "cross_view_weight", per_view)
    out = linear(sd, "output_proj", (per_view * view_logits.softmax(1)).sum(1)) + n
    return {"offsets": offsets, "logits": logits, "per_view": per_view, "view_logits": view_logits, "out": out}


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight


def indices(points: torch.Tensor, grid: int, scale: float) -> torch.Tensor:
    return torch.trunc((points / scale + 1) * (grid - 1) / 2).long()


def transformer(sd: dict, points, value, shapes, places, heads: int, grid: int, scale: float, tokens: bool) -> dict:
    positions = indices(points, grid, scale)
    x = torch.cat([points, sd["query_token"].expand(*points.shape[:2], -1)], dim=-1)
    outputs = {"xyzs_idx": positions}
    for i in range(1 + max(int(key.split(".")[1]) for key in sd if key.startswith("layers."))):
        layer = part(sd, f"layers.{i}")
        attended = self_attention(
            part(layer, "self_attention"), rms_norm(x, layer["self_attention_norm.weight"]), positions, heads, tokens
        )
        h = x + attended
        n = rms_norm(h, layer["cross_attention_norm.weight"])
        h = cross_attention(part(layer, "cross_attention"), n, value, shapes, places, heads)["out"]
        y, feed = rms_norm(h, layer["ffn_norm.weight"]), part(layer, "feed_forward")
        x = h + linear(feed, "w2", F.silu(linear(feed, "w1", y)) * linear(feed, "w3", y))
        outputs |= {f"block{i}": x, f"selfattn{i}": attended}
    return outputs | {"latents": rms_norm(x, sd["norm.weight"])}


# --- fixtures ---


def flattened(maps) -> tuple[torch.Tensor, list]:
    shapes = [tuple(level.shape[-2:]) for level in maps]
    return torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1), shapes


def save(folder: Path, name: str, sd: dict, tensors: dict, metadata: dict) -> None:
    tensors = {f"sd.{key}": value for key, value in sd.items()} | tensors
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    save_file({key: value.clone().contiguous() for key, value in tensors.items()}, folder / name, metadata=text)


def dino_config(width: int, heads: int, layers: int = 1, image: int = 70) -> dict:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "mlp_ratio": 3,
        "patch_size": 14,
        "image_size": image,
        "layer_norm_eps": 1e-6,
    }


def encoder_fixture(folder: Path, views: int, height: int, width: int, heads: int) -> None:
    dino, channels = dino_config(8 * heads, heads, layers=2), 10
    sd = drawn_encoder(dino, channels)
    images, (poses, intrinsics) = torch.rand(views, 3, height, width, generator=GENERATOR), drawn_cameras(views)
    low, high = encoder(sd, images, poses, intrinsics, dino, train=False)
    features, shapes = flattened((low, high))
    trained, _ = flattened(encoder(sd, images, poses, intrinsics, dino, train=True))
    outputs = {
        "mid.high": high,
        "mid.low": low,
        "mid.ray_embedding_view0_every4": rays(poses, intrinsics, height, width)[0, :, ::4, ::4],
        "out.features": features[None],
        "out.features_bn_train_mode": trained[None],
        "out.spatial_shapes": torch.tensor(shapes),
    }
    inputs = {"in.images": images[None], "in.Ks": intrinsics[None], "in.c2ws": poses[None]}
    save(folder, "encoder.safetensors", sd, inputs | outputs, {"dino": dino, "out_dim": str(channels)})


def transformer_fixture(folder: Path, tokens: bool, heads: int, views: int, length: int, points: int) -> None:
    width, channels, grid, shapes = 12 * heads, 8, 64, [(6, 9), (3, 4)]
    sd = drawn_transformer(width, 2, channels, heads, points)
    xyzs = torch.rand(2, length, 3, generator=GENERATOR) - 0.5
    poses, intrinsics = drawn_cameras(2, views)
    value = draw(2, views, sum(h * w for h, w in shapes), channels)
    places = project(xyzs, poses, intrinsics)
    outputs = {"mid.reference_points_cam": places}
    for scale in (0.5, 0.8):
        results = transformer(sd, xyzs, value, shapes, places, heads, grid, scale, tokens)
        names = {name: f"{'out' if name == 'latents' else 'mid'}.{name}_scale{scale}" for name in results}
        outputs |= {names[name]: result for name, result in results.items()}
    inputs = {"in.xyzs": xyzs, "in.img_feats": value, "in.spatial_shapes": torch.tensor(shapes)}
    deformable = {"query_dim": width, "value_dim": channels, "num_heads": heads, "num_levels": 2, "num_points": points}
    metadata = {
        "attention": "tokens (flash branch)" if tokens else "heads-inside-token (fp32 branch)",
        "model_args": {
            "dim": width,
            "n_layers": 2,
            "n_heads": heads,
            "grid_size": grid,
            "deform_att_cfg": {"query_dim": width, "deformable_attention": deformable},
        },
    }
    save(
        folder,
        f"transformer_{tokens}.safetensors",
        sd,
        inputs | {"in.c2ws": poses, "in.Ks": intrinsics} | outputs,
        metadata,
    )


def deformable_fixture(folder: Path, heads: int, views: int, points: int) -> None:
    width, channels, length, shapes = 6 * heads, 7, 11, [(5, 8), (4, 3)]
    sd = drawn_cross_attention(width, channels, heads, points)
    queries, value = draw(2, length, width), draw(2, views, sum(h * w for h, w in shapes), channels)
    places = torch.rand(2, views, length, 2, generator=GENERATOR) * 1.6 - 0.3
    found = cross_attention(sd, queries, value, shapes, places, heads)
    tensors = {
        "in.query": queries,
        "in.value": value,
        "in.reference_points_cam": places,
        "in.spatial_shapes": torch.tensor(shapes),
        "in.level_start_index": torch.tensor([0, 40]),
        "mid.raw_offsets_view0": found["offsets"],
        "mid.attn_logits_view0": found["logits"],
        "mid.per_view": found["per_view"],
        "mid.view_logits": found["view_logits"],
        "out": found["out"],
    }
    deformable = {"query_dim": width, "value_dim": channels, "num_heads": heads, "num_levels": 2, "num_points": points}
    save(folder, "deformable.safetensors", sd, tensors, {"cfg": {"deformable_attention": deformable}})


def head_fixture(folder: Path, width: int, count: int) -> None:
    sd = drawn_linear("latent_decoder.0", 14 * count, width) | drawn_linear(
        "latent_decoder.2", 14 * count, 14 * count, scale=9
    )
    xyzs, latents = torch.rand(1, 13, 3, generator=GENERATOR) - 0.5, draw(1, 13, width)
    raw = linear(sd, "latent_decoder.2", F.silu(linear(sd, "latent_decoder.0", latents)))
    x = raw.reshape(1, -1, 14)
    centre = xyzs.repeat_interleave(count, dim=1) + 0.3 * x[..., :3].sigmoid()
    opacity, scales = x[..., 3:4].sigmoid(), 0.05 * x[..., 4:7].sigmoid()
    turned = x[..., 7:11] / x[..., 7:11].norm(dim=-1, keepdim=True)
    colour = x[..., 11:].clamp(-0.5, 0.5) + 0.5
    kept = opacity[0, :, 0] >= 0.005
    poses, intrinsics = drawn_cameras(1, 3)
    view = torch.inverse(poses[0] @ torch.diag(torch.tensor([1.0, -1, -1, 1]))).transpose(1, 2)
    tangent, distance = 1 / (2 * intrinsics[0, :, 1, 1]), poses[0, :, :3, 3].norm(dim=-1)
    near, far = distance - 0.867, distance + 0.867
    projection = torch.zeros(3, 4, 4)
    for i in range(3):
        projection[i, 0, 0] = projection[i, 1, 1] = 1 / tangent[i]
        projection[i, 2, 2], projection[i, 2, 3] = (far[i] + near[i]) / (far[i] - near[i]), 1
        projection[i, 3, 2] = -far[i] * near[i] / (far[i] - near[i])
    tensors = {
        "in.xyzs": xyzs,
        "in.latents": latents,
        "in.render_c2ws": poses,
        "in.render_Ks": intrinsics,
        "mid.raw_decoder": raw,
        "out.gaussians": torch.cat([centre, opacity, scales, turned, colour], dim=-1),
        "out.ply_table": torch.cat([centre, colour, opacity, scales, turned], dim=-1)[0, kept],
        "out.raster_viewmatrix": view,
        "out.raster_projmatrix": view @ projection,
        "out.raster_campos": -poses[0, :, :3, 3],
        "out.raster_tanfovx": tangent,
        "out.raster_tanfovy": tangent,
    }
    sizes = {"transformer_dim": str(width), "gs_per_token": str(count), "offset_max": "0.3", "scale_max": "0.05"}
    save(folder, "head.safetensors", sd, tensors, sizes)


def proposal_fixture(folder: Path, heads: int, views: int) -> None:
    width, channels, grid, block, points = 12 * heads, 8, 12, 4, 3
    dino = dino_config(12, 3)
    sd = {f"encoder.{key}": value for key, value in drawn_encoder(dino, channels).items()}
    transforming = drawn_transformer(width, 1, channels, heads, points)
    sd |= {f"transformer.{key}": value for key, value in transforming.items()}
    sd |= drawn_linear("upsample", block**3, width)
    images, (poses, intrinsics) = torch.rand(views, 3, 56, 56, generator=GENERATOR), drawn_cameras(views)
    coarse, n = torch.linspace(-1, 1, grid // block) * 0.5, grid // block
    xyzs = torch.stack(torch.meshgrid(coarse, coarse, coarse, indexing="ij"), dim=-1).reshape(1, -1, 3)
    value, shapes = flattened(encoder(part(sd, "encoder"), images, poses, intrinsics, dino, train=False))
    places = project(xyzs, poses[None], intrinsics[None])
    axis = torch.linspace(-0.5, 0.5, grid)
    tensors = {"in.images": images[None], "in.Ks": intrinsics[None], "in.c2ws": poses[None]}
    tensors |= {"const.xyzs_coarse": xyzs[0], "const.xyzs_full_axis": axis}
    for mode, tokens in (("token_attention", True), ("official_fp32", False)):
        latents = transformer(transforming, xyzs, value[None], shapes, places, heads, grid, 0.5, tokens)["latents"]
        blocks = linear(sd, "upsample", latents)[0]
        logits = torch.zeros(grid, grid, grid)
        for i in range(n**3):
            x, y, z = (block * c for c in (i // n**2, i // n % n, i % n))
            logits[x : x + block, y : y + block, z : z + block] = blocks[i].reshape(block, block, block)
        occupied = torch.stack([axis[c] for c in (logits > 0).nonzero().T], dim=-1)
        torch.manual_seed(3)
        few = occupied[torch.randperm(len(occupied))[:20]]
        tensors |= {
            f"out.logits_{mode}": logits[None],
            f"out.num_occupied_{mode}": torch.tensor(len(occupied)),
            f"out.pts_padded_first_{mode}": torch.cat([occupied, torch.zeros(2, 3)])[None],
            f"out.pts_max20_seed3_{mode}": few[None],
        }
    arguments = {
        "encoder_feat_dim": channels,
        "transformer_dim": width,
        "transformer_layers": 1,
        "transformer_heads": heads,
        "grid_size": grid,
        "token_res": block,
        "num_deform_points": points,
        "scale": 0.5,
        "max_seq_len": 4000,
    }
    save(folder, "proposal.safetensors", sd, tensors, {"dino": dino, "kwargs": arguments})


def write_fixtures(folder: Path, seed: int, heads: int, views: int) -> None:
    """One file of each kind that has weights."""
    GENERATOR.manual_seed(seed)
    folder.mkdir(exist_ok=True)
    encoder_fixture(folder, views, 56 + 14 * seed, 84, heads)
    for tokens in (True, False):
        transformer_fixture(folder, tokens, heads, views, length=13 + 4 * seed, points=seed + 1)
    deformable_fixture(folder, heads, views, points=seed + 2)
    head_fixture(folder, 9 + seed, count=seed + 1)
    proposal_fixture(folder, heads, views)
