"""Reading shards: any object, any of its views, in an order that needs no memory of what came before.

In: a data set's folder with `catalog.parquet` and `shards/`, or the same in a store such as S3. Out: `Sample`s, of which only
what is asked for is read and decoded, and the batches of a run. Convention: the order of samples is a pure function of (seed,
epoch), a stream without end in which rank r of w takes every w-th place from r: all ranks together see the same global
batches as one, each sample comes once an epoch, and a run starts at any step without replay. Trade: reads by offset from
local files, every member checked against its hash; from a store a sample comes whole into a cache on this disk, which has a
limit. What is missing, cut short, changed or of another format is a `BadInput` that names the file and the way out. Verified
by comparing ranks, restarts, plain `webdataset`, and by planting damage.
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
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from geolrm.cameras import Cameras
from geolrm.data import shards
from geolrm.data.catalog import read_catalog
from geolrm.data.places import Place, is_remote, place, read_range
from geolrm.data.rig import orbit_views
from geolrm.data.sample_cache import CACHE_BYTES, SampleCache
from geolrm.data.shard_plan import FORMAT_VERSION
from geolrm.failures import BadInput
from geolrm.metrics.perceptual import cache_folder
from geolrm.views import Views


@dataclass
class Sample:
    """One object of a shard. Cameras and metadata are at hand; everything else is read when asked for.

    Attributes:
        key: the object's name, unique within its data set; `dataset` and `split` say where it belongs.
        meta: the sample's metadata, see docs/shard-format.md.
        cameras: (V,) of all input-able views; `roles` (V) names each ("orbit", "ring", "top", "bottom", "other").
    """

    key: str
    dataset: str
    split: str
    meta: dict[str, Any]
    cameras: Cameras
    roles: list[str]
    _members: MemberReader = field(repr=False)

    def views(
        self, indices: Sequence[int], size: tuple[int, int] | None = None, background: float | None = None
    ) -> Views:
        """The input-able views at these positions, in this order; no other is read.

        Args:
            size: (height, width); the same as `resized` afterwards and faster, since nothing is held at full size.
            background: grey level; the same as `over` afterwards and faster, since straight colour is never made.

        Raises:
            BadInput: `too_few_views` for a position that this object does not have.
        """
        return self._views("", self.cameras, indices, depth=True, size=size, background=background)

    @cached_property
    def test_cameras(self) -> Cameras | None:
        """(T,) of the test views, never inputs, or None."""
        return _cameras(self._members, "test.") if self.meta["test_views"] else None

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
        return shards.decode_occupancy(self._members.read(shards.OCCUPANCY), self.meta["voxel_resolution"])

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
        background: float | None = None,
    ) -> Views:
        if not indices or min(indices) < 0 or max(indices) >= len(cameras):
            detail = f"views {list(indices)} asked for, it has {len(cameras)}"
            raise BadInput("too_few_views", self.key, detail, "ask for fewer views, or leave this object out")
        count = len(indices)
        names = [shards.rgba_member(prefix, i) for i in indices]
        names += [shards.depth_member(prefix, i) for i in indices] if depth else []
        planes = map(shards.decode_planes, self._members.read_all(names))
        first = next(planes)
        height, width = size or first.shape[1:]
        # numpy asks for huge pages, torch does not: fresh pages cost more than the arithmetic
        colour, alpha = (np.empty((count, channels, height, width), np.float32) for channels in (3, 1))
        for i, steps in enumerate(itertools.chain([first], itertools.islice(planes, count - 1))):
            shards.fill_picture(steps, colour[i], alpha[i], background)
        depths = None
        if depth:
            depths = np.empty((count, height, width), np.float32)
            for i, steps in enumerate(planes):
                shards.fill_depth(steps, self.meta["depth_scale"], self.meta["depth_offset"], depths[i])
        return Views(
            self.key,
            cameras[list(indices)],
            torch.from_numpy(colour),
            torch.from_numpy(alpha),
            None if depths is None else torch.from_numpy(depths),
            background,
        )


class MemberReader:
    """The members of one sample, read by offset and checked by hash.

    Args:
        shard: the tar that holds it, in a folder or a store.
        sha256: of the sample's metadata, as the catalog names it; it vouches for all bytes of the sample.
        places: offset and size of each member.
        cache: where samples of a store are kept; of a folder, None.
        file: a copy of the whole shard, to read instead.
    """

    def __init__(
        self,
        shard: Place,
        key: str,
        sha256: str,
        places: dict[str, tuple[int, int]],
        cache: SampleCache | None = None,
        file: Path | None = None,
    ) -> None:
        self._shard, self._key, self._sha256, self._places, self._cache = shard, key, sha256, places, cache
        self._file = file or shard
        name = shard.parents[2].name if len(shard.parents) > 2 else "NAME"  # datasets/<name>/<preset>/shards/
        self._remedy = f"delete {shard} and run again: python -m pipelines.shard --dataset {name}; only it is made anew"
        self._hashes: dict[str, str] = {}

    def read_meta(self) -> dict[str, Any]:
        """The sample's metadata, checked against the catalog's hash; its hashes vouch for all other members.

        Raises:
            BadInput: as `read_all`, and `shard_format` where this code reads another version of the format.
        """
        self._hashes = {"meta.json": self._sha256}
        meta: dict[str, Any] = json.loads(self.read("meta.json"))
        if meta["format"] != FORMAT_VERSION:
            detail = f"it has version {meta['format']} of the shard format, this code reads version {FORMAT_VERSION}"
            raise BadInput("shard_format", self._shard, detail, self._remedy)
        self._hashes = meta["sha256"]
        return meta

    def read(self, name: str) -> bytes:
        """One member. Raises as `read_all`."""
        return self.read_all([name])[0]

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        """Several members, for which the file is opened once.

        Raises:
            BadInput: `shard_missing`, `shard_truncated`, `shard_corrupt`; from a store also `storage_failed` and as
                `SampleCache.open`.
        """
        file, start = self._opened()
        with file:
            found = [os.pread(file.fileno(), self._places[n][1], self._places[n][0] - start) for n in names]
        return [self._checked(name, data) for name, data in zip(names, found, strict=True)]

    def _opened(self) -> tuple[BinaryIO, int]:
        """A file that holds the sample's bytes, and the offset in the shard of its first byte."""
        try:
            if self._cache is not None:
                return self._cache.open(self._sha256, self._fetched), self._span[0]
            return self._file.open("rb", buffering=0), 0
        except FileNotFoundError as error:
            raise BadInput(
                "shard_missing", self._shard, "the catalog names it, it is not there", self._remedy
            ) from error

    @property
    def _span(self) -> tuple[int, int]:
        """Where the first member begins and the last one ends."""
        return min(offset for offset, _ in self._places.values()), max(map(sum, self._places.values()))

    def _fetched(self) -> bytes:
        """All members side by side, in one request and checked."""
        start, end = self._span
        data = read_range(self._shard, start, end)
        found = {name: data[offset - start : offset - start + size] for name, (offset, size) in self._places.items()}
        hashes = {"meta.json": self._sha256}
        hashes |= json.loads(self._checked("meta.json", found["meta.json"], hashes))["sha256"]
        for name in hashes:
            self._checked(name, found[name], hashes)
        return data

    def _checked(self, name: str, data: bytes, hashes: dict[str, str] | None = None) -> bytes:
        offset, size = self._places[name]
        where = f"{self._shard}: {self._key}.{name}"
        if len(data) != size:
            detail = f"the file ends before byte {offset + size}: it was cut short"
            raise BadInput("shard_truncated", where, detail, self._remedy)
        if hashlib.sha256(data).hexdigest() != (self._hashes if hashes is None else hashes)[name]:
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
        cache_bytes: how much that folder may hold; what was not used for longest makes room.

    Raises:
        BadInput: `catalog_missing`, `catalog_unreadable`, `split_missing`, `storage_failed`.
    """

    def __init__(
        self, folder: str | Place, split: str, cache: Path | None = None, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self.folder, self.split = place(folder), split
        self._cache = SampleCache(cache or cache_folder() / "samples", cache_bytes) if is_remote(self.folder) else None
        catalog = self.folder / "catalog.parquet"
        rows = read_catalog(catalog, split, ["key", "shard", "sha256", "dataset", "members"])
        if len(rows) == 0:
            raise BadInput("split_missing", catalog, f"no objects of the split {split!r}")
        self._rows = rows.select(["key", "shard", "sha256", "dataset"])
        members = rows["members"].combine_chunks()
        self._bounds = members.offsets.to_numpy()
        self._names, self._offsets, self._sizes = (members.values.field(i) for i in range(3))
        self.keys: list[str] = rows["key"].to_pylist()
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
        index %= len(self)
        row = {name: self._rows[name][index].as_py() for name in self._rows.column_names}
        shard = self.folder / "shards" / row["shard"]
        members = MemberReader(shard, row["key"], row["sha256"], self._places(index), self._cache)
        meta = members.read_meta()
        return Sample(row["key"], row["dataset"], self.split, meta, _cameras(members, ""), meta["roles"], members)

    def _places(self, index: int) -> dict[str, tuple[int, int]]:
        """Offset and size of each member of an object, by name."""
        start, end = self._bounds[index : index + 2]
        names, *places = (part[start:end].to_pylist() for part in (self._names, self._offsets, self._sizes))
        return dict(zip(names, zip(*places, strict=True), strict=True))


def _cameras(members: MemberReader, prefix: str) -> Cameras:
    poses, intrinsics = members.read_all([f"{prefix}cameras.{part}.npy" for part in ("poses", "intrinsics")])
    return Cameras(shards.decode_array(poses), shards.decode_array(intrinsics))


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
