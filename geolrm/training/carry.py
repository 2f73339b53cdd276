"""Results that travel: a machine that is lent for minutes and keeps no disk trains on where the last one stopped.

In: a results folder with finished checkpoints and resume states in full precision. Out: numbered parts of at most 16 MiB, and
from them the folder again. Convention: the parts are one tar, cut; weights travel as they are, AdamW's two moments in 8 bits,
block by block of 256 with its largest value: the first by the root of its share of it, signed, the second by the fourth root,
so that small values keep their size, rounded up from zero since a step is divided by it. Trade: a state that travelled goes on
nearly, not bit for bit; `state.json`, and later `checkpoint.json`, say after which steps it travelled. Parts come from outside
when they are read: members are taken by name, never by path. Verified by error bounds, by a training that goes on after the
trip, by the size of the preset small, and by damaged parts.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory, TemporaryFile

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional as F

from geolrm.failures import BadInput
from geolrm.files import whole_file

PART_BYTES = 16 << 20
TOTAL_BYTES = 60 << 20  # of 64 MiB, which the code shares
BLOCK = 256
MOMENTS = "optimiser.safetensors"
STATE = "state.json"
LEVELS = {"exp_avg": (127, 2), "exp_avg_sq": (255, 4)}  # steps of the code, and the root that is coded


def compressed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Moments by "number.name" in 8 bits, each with its blocks' largest values; anything else as it is."""
    small: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        kind = name.split(".", 1)[-1]
        if kind not in LEVELS:
            small[name] = tensor
            continue
        levels, root = LEVELS[kind]
        flat = tensor.flatten()
        blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
        largest = blocks.abs().amax(dim=1, keepdim=True)
        code = (levels * (blocks.abs() / largest.clamp(min=1e-38)) ** (1 / root)).round()
        if kind == "exp_avg_sq":
            code = torch.where(blocks > 0, code.clamp(min=1), code).to(torch.uint8)
        else:
            code = (code * blocks.sign()).to(torch.int8)
        small[f"{name}.code"] = code.flatten()[: len(flat)].reshape(tensor.shape).contiguous()
        small[f"{name}.largest"] = largest[:, 0].contiguous()
    return small


def restored(small: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `compressed`, up to rounding."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in small.items():
        base, _, part = name.rpartition(".")
        if part == "largest":
            continue
        if part != "code":
            tensors[name] = tensor
            continue
        levels, root = LEVELS[base.split(".", 1)[-1]]
        flat = tensor.flatten().float() / levels
        largest = small[f"{base}.largest"].repeat_interleave(BLOCK)[: len(flat)]
        tensors[base] = (flat.sign() * flat.abs() ** root * largest).reshape(tensor.shape)
    return tensors


def pack(results: Path, folder: Path, part_bytes: int = PART_BYTES, total_bytes: int = TOTAL_BYTES) -> list[Path]:
    """Write what training left under `results` as parts in `folder`; parts of an earlier packing are replaced.

    Raises:
        BadInput: `carry_nothing`, `carry_too_large`.
    """
    stages = [path for path in (results / "proposal", results / "reconstruction") if path.is_dir()]
    files = [path for stage in stages for path in sorted(stage.rglob("*")) if path.is_file() and path.name[0] != "."]
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(results).parts)]
    if not files:
        raise BadInput("carry_nothing", results, "no stage has left anything there", "train first")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("part-*"):
        old.unlink()
    with TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode="w") as tar:
            for path in files:
                data = _outgoing(path)
                info = tarfile.TarInfo(path.relative_to(results).as_posix())
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        size = whole.tell()
        if size > total_bytes:
            detail = f"{size:,} bytes, of which {total_bytes:,} may travel"
            raise BadInput("carry_too_large", results, detail, "train a smaller network, or remove pictures/")
        whole.seek(0)
        parts: list[Path] = []
        while data := whole.read(part_bytes):
            parts.append(folder / f"part-{len(parts):03d}")
            with whole_file(parts[-1]) as temporary:
                temporary.write_bytes(data)
    return parts


def _outgoing(path: Path) -> bytes:
    data = path.read_bytes()
    if path.name == MOMENTS:
        return save(compressed(load(data)))
    if path.name == STATE:
        record = json.loads(data)
        return json.dumps(record | {"carried": [*record.get("carried", []), record["step"]]}, indent=1).encode() + b"\n"
    return data


def unpack(folder: Path, results: Path) -> list[Path]:
    """Put the parts in `folder` back in place under `results`, which must hold no stage yet.

    Raises:
        BadInput: `carry_nothing`, `carry_damaged`, `carry_occupied`.
    """
    parts = sorted(folder.glob("part-*"))
    if not parts:
        raise BadInput("carry_nothing", folder, "no parts there", "pack a results folder first")
    if [path.name for path in parts] != [f"part-{number:03d}" for number in range(len(parts))]:
        raise BadInput("carry_damaged", folder, "a part is missing", "fetch all parts again")
    results.mkdir(parents=True, exist_ok=True)
    written: list[str] = []
    with TemporaryDirectory(dir=results, prefix=".carry-") as temporary:
        try:
            with tarfile.open(fileobj=io.BytesIO(b"".join(path.read_bytes() for path in parts))) as tar:
                for member in tar:
                    written.append(_put(tar, member, Path(temporary), folder))
        except tarfile.TarError as error:
            raise BadInput("carry_damaged", folder, f"no tar ({error})", "fetch all parts again") from error
        stages = sorted({name.split("/", 1)[0] for name in written})
        for stage in stages:
            if (results / stage).exists():
                remedy = "move it away: what travelled does not overwrite what is here"
                raise BadInput("carry_occupied", results / stage, "it is there already", remedy)
        for stage in stages:
            (Path(temporary) / stage).rename(results / stage)
    return [results / name for name in written]


def _put(tar: tarfile.TarFile, member: tarfile.TarInfo, root: Path, where: Path) -> str:
    name = PurePosixPath(member.name)
    file = tar.extractfile(member)
    inside = name.parts and name.parts[0] in ("proposal", "reconstruction") and ".." not in name.parts
    if file is None or not inside or len(name.parts) < 2:
        raise BadInput("carry_damaged", where, f"{member.name!r} is no file of a stage", "pack the results again")
    data = file.read()
    if len(data) != member.size:
        raise BadInput("carry_damaged", where, f"{member.name} is cut short", "fetch all parts again")
    target = root / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if name.name == MOMENTS:
        data = save(restored(load(data)))
    target.write_bytes(data)
    return name.as_posix()
