"""Reading shards: any object, any of its views, in an order that needs no memory of what came before.

In: a data set's folder with `catalog.parquet` and `shards/`, or the same in a store such as S3. Out: `Sample`s, of which only
what is asked for is read and decoded, and the batches of a run. Convention: the order of samples is a pure function of (seed,
epoch), a stream without end in which rank r of w takes every w-th place from r: all ranks together see the same global
batches as one, each sample comes once an epoch, and a run starts at any step without replay. Trade: reads by offset from
local files, every member checked against its hash (a tenth of what decoding it costs); from a store a sample comes whole,
once, into a cache on this disk. What is missing, cut short or changed is a `BadInput` that names the file and the way out.
Verified by comparing ranks, restarts, plain `webdataset`, and by planting damage.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geolrm.cameras import Cameras
from geolrm.data import shards
from geolrm.data.catalog import read_catalog
from geolrm.data.places import Place, is_remote, place, read_range
from geolrm.data.rig import orbit_views
from geolrm.failures import BadInput
from geolrm.files import whole_file
from geolrm.metrics.perceptual import cache_folder
from geolrm.views import Views


@dataclass
class Sample:
    """One object of a shard. Cameras and metadata are at hand; pictures, occupancy and surface are read when asked for.

    Attributes:
        key: the object's name, unique within its data set; `dataset` and `split` say where it belongs.
        meta: the sample's metadata, see docs/shard-format.md.
        cameras: (V,) of all input-able views; `roles` (V) names each ("orbit", "ring", "top", "bottom", "other").
        test_cameras: (T,) of the test views, never inputs, or None.
    """

    key: str
    dataset: str
    split: str
    meta: dict[str, Any]
    cameras: Cameras
    roles: list[str]
    test_cameras: Cameras | None
    _members: MemberReader = field(repr=False)

    def views(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> Views:
        """The input-able views at these positions, in this order; no other is read.

        Args:
            size: (height, width); the same as `resized` afterwards and faster, since nothing is held at full size.

        Raises:
            BadInput: `too_few_views` for a position that this object does not have.
        """
        return self._views("", self.cameras, indices, depth=True, size=size)

    def test_views(self) -> Views:
        """All test views.

        Raises:
            BadInput: `too_few_views` when the object has none.
        """
        if self.test_cameras is None:
            raise BadInput("too_few_views", self.key, "it has no test views", "render it with our rig")
        return self._views("test.", self.test_cameras, range(len(self.test_cameras)), depth=self.meta["test_depth"])

    def orbit_inputs(self, count: int) -> list[int]:
        """Positions of `count` input views spread evenly over the orbit: floor(24 i / count) of its 24 views.

        Raises:
            BadInput: `too_few_views` when the orbit has not 24 views or `count` is above 24.
        """
        return orbit_views(self.key, self.roles, count)

    @cached_property
    def occupancy(self) -> Tensor:
        """(R, R, R) bool, the voxels that depth maps hit; R = meta["voxel_resolution"]."""
        return shards.decode_occupancy(self._members.read("occupancy.zlib"), self.meta["voxel_resolution"])

    @cached_property
    def points(self) -> Tensor | None:
        """(P, 3) float32 samples of the true surface, object units, or None."""
        return self._surface("points")

    @cached_property
    def point_normals(self) -> Tensor | None:
        """(P, 3) float32 unit normals of `points`, 0 where unknown."""
        return self._surface("normals")

    def _surface(self, part: str) -> Tensor | None:
        if self.meta["surface_points"] == 0:
            return None
        return shards.decode_array(self._members.read(f"surface.{part}.npy")).float()

    def _views(
        self,
        prefix: str,
        cameras: Cameras,
        indices: Sequence[int],
        *,
        depth: bool,
        size: tuple[int, int] | None = None,
    ) -> Views:
        if not indices or min(indices) < 0 or max(indices) >= len(cameras):
            detail = f"views {list(indices)} asked for, it has {len(cameras)}"
            raise BadInput("too_few_views", self.key, detail, "ask for fewer views, or leave this object out")
        pictures = [shards.decode_pixels(self._members.read(f"{prefix}rgba.{i:02d}.webp")) for i in indices]
        height, width = size or pictures[0].shape[:2]
        colour, alpha = torch.zeros(len(indices), 3, height, width), torch.zeros(len(indices), 1, height, width)
        for i, pixels in enumerate(pictures):
            shards.fill_picture(pixels, colour[i], alpha[i])
        depths = None
        if depth:
            scale, offset = self.meta["depth_scale"], self.meta["depth_offset"]
            names = [f"{prefix}depth.{i:02d}.jls" for i in indices]
            depths = torch.stack([shards.decode_depth(self._members.read(name), scale, offset, size) for name in names])
        return Views(self.key, cameras[list(indices)], colour, alpha, depths)


class MemberReader:
    """The members of one sample, read by offset and checked by hash.

    Args:
        shard: the tar that holds it, in a folder or a store.
        places: offset and size of each member.
        copy: a file that holds the shard's bytes from that offset on, to read instead.
    """

    def __init__(
        self, shard: Place, key: str, places: dict[str, tuple[int, int]], copy: tuple[Path, int] | None = None
    ) -> None:
        self._shard, self._key, self._places = shard, key, places
        self._file, self._start = copy or (shard, 0)
        name = shard.parents[2].name if len(shard.parents) > 2 else "NAME"  # datasets/<name>/<preset>/shards/
        self._remedy = f"delete {shard} and run again: python -m pipelines.shard --dataset {name}; only it is made anew"
        self._hashes: dict[str, str] = {}

    def read_meta(self, sha256: str) -> dict[str, Any]:
        """The sample's metadata, checked against the catalog's hash; its hashes vouch for all other members."""
        meta: dict[str, Any] = json.loads(self._checked("meta.json", sha256))
        self._hashes = meta["sha256"]
        return meta

    def read(self, name: str) -> bytes:
        """Raises BadInput: `shard_missing`, `shard_truncated`, `shard_corrupt`."""
        return self._checked(name, self._hashes[name])

    def _checked(self, name: str, sha256: str) -> bytes:
        offset, size = self._places[name]
        where = f"{self._shard}: {self._key}.{name}"
        try:
            with self._file.open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), size, offset - self._start)
        except FileNotFoundError as error:
            raise BadInput(
                "shard_missing", self._shard, "the catalog names it, it is not there", self._remedy
            ) from error
        if len(data) != size:
            detail = f"the file ends before byte {offset + size}: it was cut short"
            raise BadInput("shard_truncated", where, detail, self._remedy)
        if hashlib.sha256(data).hexdigest() != sha256:
            detail = "its bytes are not those that the catalog vouches for: damaged, or of another run"
            raise BadInput("shard_corrupt", where, detail, self._remedy)
        return data


class ShardDataset(torch.utils.data.Dataset[Sample]):
    """The objects of one split, by number or key. A map-style dataset: `torch.utils.data.DataLoader` can wrap it.

    Args:
        folder: holds `catalog.parquet` and `shards/`, that is `datasets/<name>/<preset>`, or the same below an address.
        split: such as train, val or test.
        cache: where samples that were fetched from an address are kept, each under the hash of its metadata, which vouches
            for all its bytes; by default `~/.cache/geolrm/samples`. It may be deleted at any time.

    Raises:
        BadInput: `catalog_missing`, `catalog_unreadable`, `split_missing`, `storage_failed`.
    """

    def __init__(self, folder: str | Place, split: str, cache: Path | None = None) -> None:
        self.folder, self.split = place(folder), split
        self._cache = cache
        catalog = self.folder / "catalog.parquet"
        self._rows = read_catalog(catalog, split, ["key", "shard", "sha256", "dataset", "members"])
        if len(self._rows) == 0:
            raise BadInput("split_missing", catalog, f"no objects of the split {split!r}")
        self.keys: list[str] = self._rows["key"].to_pylist()
        self._numbers = {key: number for number, key in enumerate(self.keys)}

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index)

    def sample(self, key_or_index: str | int) -> Sample:
        """One object. Raises KeyError or IndexError for one that is not in this split, BadInput as `MemberReader.read`."""
        index = self._numbers[key_or_index] if isinstance(key_or_index, str) else key_or_index
        if not -len(self) <= index < len(self):
            raise IndexError(f"object {index} of {len(self)}")
        row = {name: self._rows[name][index].as_py() for name in self._rows.column_names}
        places = {member["name"]: (member["offset"], member["size"]) for member in row["members"]}
        shard = self.folder / "shards" / row["shard"]
        copy = self._fetched(shard, row["key"], row["sha256"], places) if is_remote(shard) else None
        members = MemberReader(shard, row["key"], places, copy)
        meta = members.read_meta(row["sha256"])
        test_cameras = _cameras(members, "test.") if meta["test_views"] else None
        return Sample(
            row["key"], row["dataset"], self.split, meta, _cameras(members, ""), meta["roles"], test_cameras, members
        )

    def _fetched(self, shard: Place, key: str, sha256: str, places: dict[str, tuple[int, int]]) -> tuple[Path, int]:
        """The cached copy of a sample, its members side by side, and the offset in the shard at which it begins.

        One request brings all its bytes; only what was checked gets into the cache.
        """
        start, end = min(offset for offset, _ in places.values()), max(map(sum, places.values()))
        copy = (self._cache or cache_folder() / "samples") / sha256[:2] / sha256
        if not copy.exists():
            try:
                data = read_range(shard, start, end)
            except FileNotFoundError as error:
                raise BadInput("shard_missing", shard, "the catalog names it, it is not there") from error
            copy.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(copy) as temporary:
                temporary.write_bytes(data)
                reader = MemberReader(shard, key, places, (temporary, start))
                for name in reader.read_meta(sha256)["sha256"]:
                    reader.read(name)
        return copy, start


def _cameras(members: MemberReader, prefix: str) -> Cameras:
    poses, intrinsics = (
        shards.decode_array(members.read(f"{prefix}cameras.{part}.npy")) for part in ("poses", "intrinsics")
    )
    return Cameras(poses, intrinsics)


# --- order -----------------------------------------------------------------------------------------------------------


def order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of `count` samples in one epoch, (count,) int64: a pure function, the same on every machine."""
    ranks = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(count)
    return np.argsort(ranks, kind="stable")


def stream(count: int, seed: int, start: int, stride: int = 1) -> Iterator[tuple[int, int]]:
    """(epoch, index) at the places start, start + stride, ... of the endless stream of epochs."""
    place, known, permutation = start, -1, np.empty(0, np.int64)
    while True:
        epoch, within = divmod(place, count)
        if epoch != known:
            known, permutation = epoch, order(count, seed, epoch)
        yield epoch, int(permutation[within])
        place += stride


def batches(
    count: int, seed: int, batch: int, rank: int = 0, world: int = 1, start_step: int = 0
) -> Iterator[list[tuple[int, int]]]:
    """(epoch, index) of this rank's `batch` samples out of `count`, for every step from `start_step` on, without end.

    The global batch of step s is the stream's places s * batch * world and following, the same set for 1 rank of batch 2 n
    and 2 ranks of batch n; where an epoch ends inside a batch the next one begins.
    """
    places = stream(count, seed, start_step * batch * world + rank, world)
    while True:
        yield list(itertools.islice(places, batch))
