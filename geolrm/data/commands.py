"""`geolrm data`: fetch a data set, show its card, look into its shards and check them.

In: a verb and its options. Out: files below `datasets/`, and what happened in words; the exit status says whether too many
objects failed, or whether any byte of a shard is not what it was. Convention: heavy modules are imported by the verb that
needs them, so that `--help` answers at once. Verified by running each verb against a server on loopback.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from geolrm.failures import BadInput
from geolrm.files import DiskFull, alone_in, write_whole

if TYPE_CHECKING:
    from geolrm.data.fetch import Estimate, Fetched, Ledger, Tally, Task
    from geolrm.data.gobjaverse import Facts
    from geolrm.download import Client

FIRST = 3  # objects of GObjaverse that must land depth on depth before more are fetched
TOLERANCE = 0.5 / 128  # half a voxel at the paper's grid


@dataclass(frozen=True)
class Options:
    """Options that all data sets share."""

    limit: int | None = None
    """Take this many objects: an even sample, the same on every machine; a larger number holds the smaller."""
    only: tuple[str, ...] = ()
    """Take only these categories."""
    license_allow: tuple[str, ...] = ()
    """Take only objects under these licences, for example CC-BY-4.0 CC0-1.0; `commercial` stands for all that allow commercial
    use, `unknown` for objects whose licence is not known. Default: all."""
    dry_run: bool = False
    """Say what it would cost (objects, bytes, hours, disk) and fetch nothing but a small sample to measure by."""
    verify: bool = False
    """Hash what is there already and take in again what does not match its line in fetch.jsonl."""
    root: Path = Path("datasets")
    """The folder under which the data set's folder lies."""
    workers: int = 4
    """Objects, and connections, at a time."""
    requests_per_second: float = 10.0
    """At most, over all connections: be kind to the host."""
    timeout: float = 30.0
    """Seconds without progress after which a connection is given up and taken up anew."""
    attempts: int = 6
    """For one object, with pauses that double from one second on, or as long as the host asks."""
    max_failure_rate: float = 0.05
    """Exit with status 1 if a larger share of the objects failed."""

    def client(self) -> Client:
        from geolrm.download import Client, Manners

        for name in ("workers", "requests_per_second", "timeout", "attempts"):
            if getattr(self, name) <= 0:
                raise BadInput("option_range", f"--{name.replace('_', '-')}", f"{getattr(self, name)} is not above 0")
        return Client(Manners(self.workers, self.requests_per_second, self.timeout, self.attempts))


@dataclass(frozen=True)
class Gso(Options):
    """Google Scanned Objects from Gazebo Fuel: about 1,030 zips of textured meshes, CC BY 4.0, some 13 GB.

    They land in datasets/gso/source; `python -m pipelines.render_meshes --layout gso_zip --input datasets/gso/source` renders
    them. Run again after any break: what is there is kept, half a zip is taken up where it ended.
    """

    base_url: str = ""
    """Another server with Fuel's interface, a mirror. Default: fuel.gazebosim.org."""
    expect: int | None = None
    """How many models the collection must list. Default: 1030, as its owners count, or 1033, as in datasets/gso/names.txt."""

    def run(self) -> int:
        from geolrm.data import gso
        from geolrm.data.fetch import by_hash, estimate
        from geolrm.data.licences import allowed, parse_allowed, spdx

        client, base = self.client(), (self.base_url or gso.BASE_URL).rstrip("/")
        allow = parse_allowed(self.license_allow)
        models = gso.list_models(client, base, gso.OBJECTS if self.expect is None else (self.expect,))
        chosen = [model for model in models if not self.only or set(self.only) & set(model.categories)]
        if self.only and not chosen:
            known = sorted({category for model in models for category in model.categories})
            raise BadInput("category_unknown", "--only", f"no model of {self.only}", f"categories: {', '.join(known)}")
        left_out: dict[str, int] = {}
        for model in chosen:
            if not allowed(model.licence, allow):
                name = f"licence {spdx(model.licence)}"
                left_out[name] = left_out.get(name, 0) + 1
        by_name = {model.name: model for model in chosen if allowed(model.licence, allow)}
        names = by_hash(by_name, gso.SALT)[: self.limit]
        with _ledger(self.root / "gso" / "source", self.dry_run) as ledger:
            tasks = [gso.task(client, base, by_name[name], ledger.path.parent, ledger) for name in names]

            def cost() -> Estimate:
                wanted = _wanted(tasks, ledger)
                urls = [by_name[task.source_id].url(base) for task in wanted]
                return estimate(urls, len(tasks) - len(wanted), ledger, client, 1.0, "zips stay as they are")

            facts = {"source": base, "index_objects": len(models)}
            return _go(self, client, tasks, ledger, left_out, facts, cost)


@dataclass(frozen=True)
class Gobjaverse(Options):
    """G-buffer Objaverse: 40 views of each of 280,000 objects (6.5 TB, of which 2.6 TB are kept): one request an object.

    Each becomes datasets/gobjaverse/PRESET/objects/DICT_INSTANCE.tar, ready for `python -m pipelines.shard --dataset gobjaverse`;
    with --addresses that command fetches the objects itself, and nothing of them stays but the shards. The tar is read as it
    comes; only the three files a view that are used are kept. Start with `--limit 100 --dry-run`.
    Categories: Human-Shape, Animals, Daily-Used, Furnitures, Buildings&&Outdoor, Transportations, Plants, Food, Electronics,
    Poor-quality.
    """

    exclude: tuple[str, ...] = ("Poor-quality",)
    """Leave these categories out; `--exclude` with nothing after it leaves none out."""
    source: Path | None = None
    """Take in a local copy instead: a folder of <dict>/<instance>.tar, or of loose files with or without campos_512_v4."""
    annotations: Path | None = None
    """Folder of Objaverse's annotation files (*.json.gz): each object's licence, title and author are stored with it.
    Needed by --license-allow."""
    params: Path = Path("params.yaml")
    """The params file that names the preset."""
    base_url: str = ""
    """Another server with the same files, a mirror."""
    addresses: bool = False
    """Fetch nothing but the first three objects, for a test, and write down where the chosen ones are: the shard stage fetches
    each as it goes, with these options' manners, all its workers together. Other parameters then mean fetching again."""

    def run(self) -> int:
        from geolrm.config import load_params
        from geolrm.data import gobjaverse
        from geolrm.data.fetch import by_hash, estimate, read_stats, stats_path
        from geolrm.data.licences import parse_allowed

        preset = load_params(self.params).preset
        client, base = self.client(), (self.base_url or gobjaverse.BASE_URL).rstrip("/")
        allow = parse_allowed(self.license_allow)
        if allow and self.annotations is None:
            detail = "GObjaverse itself names no licences: they are in Objaverse's annotations"
            raise BadInput("licences_missing", "--license-allow", detail, gobjaverse.ANNOTATIONS_REMEDY)
        local = {} if self.source is None else gobjaverse.local_objects(self.source)
        facts: dict[str, Any] = {"source": base if self.source is None else str(self.source)}
        if self.source is not None and not self.only:
            objects: dict[str, str | None] = dict.fromkeys(local)
        else:
            objects, about = gobjaverse.read_index(client, base, self.only, self.exclude)
            facts |= about
            objects = objects if self.source is None else {name: objects[name] for name in local if name in objects}
        uids = gobjaverse.read_uids(client, base) if self.source is None or self.annotations is not None else {}
        annotations = {}
        if self.annotations is not None:
            annotations = gobjaverse.read_annotations(
                self.annotations, {uids[name] for name in objects if name in uids}
            )
        known, left_out = gobjaverse.permitted(gobjaverse.facts_of(objects, uids, annotations), allow)
        names = by_hash(known, gobjaverse.SPLIT_SALT + "-order")[: self.limit]
        if self.addresses:
            if self.source is not None:
                raise BadInput("option_conflict", "--addresses, --source", "a local copy has no addresses", "name one")
            return self._write_addresses(client, base, self.root / "gobjaverse" / preset, names, known, facts, left_out)
        with _ledger(self.root / "gobjaverse" / preset / "objects", self.dry_run) as ledger:
            folder = ledger.path.parent / "objects"
            if self.source is None:
                tasks = [gobjaverse.remote_task(client, base, name, known[name], folder, ledger) for name in names]
            else:
                tasks = [gobjaverse.local_task(local[name], name, known[name], folder, ledger) for name in names]

            def cost() -> Estimate:
                wanted = _wanted(tasks, ledger)
                there = len(tasks) - len(wanted)
                if self.source is not None:
                    return _local_cost([local[task.source_id] for task in wanted], there, ledger, gobjaverse.KEPT_SHARE)
                urls = [gobjaverse.url_of(base, task.source_id) for task in wanted]
                return estimate(urls, there, ledger, client, gobjaverse.KEPT_SHARE, gobjaverse.KEPT_BASIS)

            def accept(fetched: list[Fetched]) -> dict[str, Any]:
                return gobjaverse.accept([folder / item.file for item in fetched], TOLERANCE)

            done_before = "accepted" in read_stats(stats_path(ledger))
            return _go(self, client, tasks, ledger, left_out, facts, cost, None if done_before else accept)

    def _write_addresses(
        self,
        client: Client,
        base: str,
        home: Path,
        names: list[str],
        known: dict[str, Facts],
        facts: dict[str, Any],
        left_out: dict[str, int],
    ) -> int:
        """Let the first objects land depth on depth, and write down where all of them are; or say what they will cost."""
        import tempfile

        from geolrm.data import gobjaverse
        from geolrm.data.addresses import Address, write_addresses
        from geolrm.data.fetch import Ledger, Tally, estimate, read_stats, report, run, stats_path, write_stats

        with _ledger(home, self.dry_run) as ledger:
            if self.dry_run:
                wanted = [name for name in names if gobjaverse.key_of(name) not in ledger.records]
                urls, share = [gobjaverse.url_of(base, name) for name in wanted], gobjaverse.SHARD_SHARE
                cost = estimate(
                    urls, len(names) - len(wanted), ledger, client, share, gobjaverse.SHARD_BASIS, measure_kept=False
                )
                _say_cost(cost, home, left_out)
                return 0
            tally = Tally()
            try:
                if "accepted" not in read_stats(stats_path(ledger)):
                    with tempfile.TemporaryDirectory(prefix="geolrm-accept-") as scratch:
                        folder = Path(scratch)
                        trial = Ledger(folder / "fetch.jsonl")
                        tasks = [
                            gobjaverse.remote_task(client, base, name, known[name], folder, trial)
                            for name in names[:FIRST]
                        ]
                        run(tasks, trial, client, tally)
                        if tally.fetched:
                            paths = [folder / item.file for item in tally.fetched]
                            facts["accepted"] = gobjaverse.accept(paths, TOLERANCE)
                objects = (
                    (
                        gobjaverse.key_of(name),
                        gobjaverse.split_of(name),
                        Address(name, gobjaverse.url_of(base, name), vars(known[name])),
                    )
                    for name in names
                )
                path = write_addresses(home, objects, client.manners)
            finally:
                write_stats(ledger, tally, left_out, facts)
            print("\n".join(report(tally, home, left_out)))
            print(f"{path}: {len(names):,} objects. Now: python -m pipelines.shard --dataset gobjaverse")
        return 0


@dataclass(frozen=True)
class Omniobject3d(Options):
    """OmniObject3D from a local copy (its hosting wants an account; without --source this says how to get one).

    Raw scans are checked where they lie (then: python -m pipelines.render_meshes --layout raw_scans), and their names written
    down, once, where all are there; native renders become datasets/omniobject3d_native/PRESET/objects/OBJECT.tar. Categories
    are the archives' names.
    """

    source: Path | None = None
    """The folder that holds raw_scans/ or blender_renders/, with archives (<category>.tar.gz) or the same extracted."""
    params: Path = Path("params.yaml")
    """The params file that names the preset."""

    def run(self) -> int:
        from geolrm.config import load_params
        from geolrm.data import omniobject3d
        from geolrm.data.licences import allowed, parse_allowed
        from geolrm.data.meshes import KNOWN_DATASETS

        if self.source is None:
            detail = "OmniObject3D cannot be fetched without a key"
            raise BadInput("source_needs_key", "omniobject3d", detail, omniobject3d.KEY_REMEDY)
        licence = KNOWN_DATASETS[omniobject3d.DATASET].licence
        if not allowed(licence, parse_allowed(self.license_allow)):
            raise BadInput("licence_not_allowed", "--license-allow", f"all of OmniObject3D is {licence}")
        preset, client = load_params(self.params).preset, self.client()
        found = omniobject3d.sources(self.source)
        found = {
            path: kind for path, kind in found.items() if not self.only or omniobject3d.category_of(path) in self.only
        }
        if not found:
            raise BadInput("category_unknown", "--only", f"no archive of {self.only} in {self.source}")
        status, census = 0, omniobject3d.Census()
        for kind in omniobject3d.KINDS:
            paths = [path for path in found if found[path] == kind][: self.limit]
            if not paths:
                continue
            native = kind == "blender_renders"
            home = self.root / (omniobject3d.NATIVE_DATASET if native else omniobject3d.DATASET)
            with _ledger(home / preset / "objects" if native else home / "source", self.dry_run) as ledger:
                if native:
                    folder = ledger.path.parent / "objects"
                    tasks = [omniobject3d.renders_task(path, folder, ledger, self.verify) for path in paths]
                else:
                    tasks = [omniobject3d.scans_task(path, census) for path in paths]

                def cost(paths: list[Path] = paths, ledger: Ledger = ledger, share: float = float(native)) -> Estimate:
                    return _local_cost(paths, 0, ledger, share)

                status |= _go(self, client, tasks, ledger, {}, {"source": str(self.source)}, cost)
                if not native and not self.dry_run:
                    print(census.freeze(home / "names.txt"))
        return status


@contextmanager
def _ledger(folder: Path, dry_run: bool) -> Iterator[Ledger]:
    """The ledger of a folder of objects: beside a folder `objects`, in any other. The folder is made and locked, but for a
    dry run, which leaves no trace."""
    from geolrm.data.fetch import Ledger

    path = (folder.parent if folder.name == "objects" else folder) / "fetch.jsonl"
    if dry_run:
        yield Ledger(path)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        yield Ledger(path)


def _wanted(tasks: list[Task], ledger: Ledger) -> list[Task]:
    return [task for task in tasks if task.target is None or not ledger.holds(task.key, task.target)]


def _local_cost(paths: list[Path], there: int, ledger: Ledger, kept_share: float) -> Estimate:
    """What taking in local files will cost: their sizes are known, the speed only from an earlier run."""
    from geolrm.data.fetch import Estimate, read_stats, readable, stats_path

    total = sum(file.stat().st_size for path in paths for file in ([path] if path.is_file() else path.rglob("*")))
    rate = read_stats(stats_path(ledger)).get("bytes_per_second")
    basis = f"{readable(rate)}/s: measured in the run before" if rate else "speed not measured yet: try --limit 1 first"
    kept = f"at most {kept_share:.0%} of the source's bytes are written"
    return Estimate(len(paths), there, total, total * kept_share, total / rate if rate else None, (basis, kept))


def _go(
    options: Options,
    client: Client,
    tasks: list[Task],
    ledger: Ledger,
    left_out: dict[str, int],
    facts: dict[str, Any],
    cost: Any,
    accept: Any = None,
) -> int:
    """Print the cost, or do the tasks and print what became of them; the exit status."""
    from geolrm.data.fetch import Tally, report, run, write_stats

    folder = ledger.path.parent
    if options.dry_run:
        _say_cost(cost(), folder, left_out)
        return 0
    tally = Tally()
    try:
        if accept is not None and tasks:
            run(tasks[:FIRST], ledger, client, tally, options.verify)
            if tally.fetched:
                facts["accepted"] = accept(tally.fetched)
            tasks = tasks[FIRST:]
        run(tasks, ledger, client, tally, options.verify)
    finally:
        write_stats(ledger, tally, left_out, facts)
        print("\n".join(report(tally, folder, left_out)))
    return _status(options, tally, ledger)


def _say_cost(cost: Estimate, folder: Path, left_out: dict[str, int]) -> None:
    print("\n".join(cost.lines(folder)))
    for reason, count in left_out.items():
        print(f"left out, {reason}: {count}")


def _status(options: Options, tally: Tally, ledger: Ledger) -> int:
    if tally.failure_rate <= options.max_failure_rate:
        return 0
    limit = f"{tally.failure_rate:.1%} of the objects failed, more than {options.max_failure_rate:.1%}"
    print(f"error: {limit}: {ledger.path.with_name('fetch.stats.json')} names them", file=sys.stderr)
    return 1


@dataclass(frozen=True)
class Fetch:
    """Fetch a data set, or take in a local copy of it."""

    source: (
        Annotated[Gso, tyro.conf.subcommand("gso")]
        | Annotated[Omniobject3d, tyro.conf.subcommand("omniobject3d")]
        | Annotated[Gobjaverse, tyro.conf.subcommand("gobjaverse")]
    )

    def run(self) -> int:
        try:
            return self.source.run()
        except DiskFull as error:
            raise BadInput("disk_full", error.filename, str(error.strerror)) from error
        except KeyboardInterrupt:
            print("stopped; the same command goes on here", file=sys.stderr)
            return 130


@dataclass(frozen=True)
class Card:
    """Show a data set's card: what it is, its licence, layout, cameras, splits; and what of it is on this machine."""

    name: tyro.conf.Positional[str]
    """gso, gobjaverse, omniobject3d, omniobject3d_native, hope, procedural."""
    license_allow: tuple[str, ...] = ()
    """Count what is on this machine and under one of these licences (as in `geolrm data fetch`)."""
    root: Path = Path("datasets")
    """The folder under which data sets lie on this machine."""
    write: bool = False
    """Write the card to datasets/NAME/README.md instead."""

    def run(self) -> int:
        from geolrm.data.cards import DATASETS, read_card, render

        card = read_card(self.name)
        if self.write:
            write_whole(DATASETS / self.name / "README.md", render(card))
            return 0
        print(render(card))
        for line in self._here():
            print(line)
        return 0

    def _here(self) -> Iterator[str]:
        """What lies on this machine: objects taken in and sharded, and their licences."""
        from collections import Counter

        from geolrm.data.catalog import read_catalog
        from geolrm.data.fetch import Ledger
        from geolrm.data.licences import allowed, parse_allowed, spdx

        allow = parse_allowed(self.license_allow)
        home = self.root / self.name
        catalogs = [("sharded", path) for path in sorted(home.glob("*/catalog.parquet"))]
        for what, path in [("fetched", path) for path in sorted(home.glob("*/fetch.jsonl"))] + catalogs:
            if what == "fetched":
                licences = [record.licence for record in Ledger(path).records.values()]
            else:
                licences = read_catalog(path, columns=["licence"])["licence"].to_pylist()
            counts = ", ".join(f"{name} {count:,}" for name, count in Counter(map(spdx, licences)).most_common())
            kept = f"; allowed {sum(allowed(licence, allow) for licence in licences):,}" if allow else ""
            yield f"here, {path.parent}: {len(licences):,} objects {what} ({counts}){kept}"


@dataclass(frozen=True)
class Ls:
    """List what is there: the sharded data sets below a folder; for one of them its shards, or its objects."""

    folder: tyro.conf.Positional[str] = "datasets"
    """The folder of all data sets; or one, such as datasets/gso/smoke; or the same in a store, as s3://bucket/gso/smoke."""
    objects: bool = False
    """One line an object instead of one a shard."""
    split: str | None = None
    """Only the objects of this split (with --objects)."""

    def run(self) -> int:
        from geolrm.data import inventory
        from geolrm.data.places import place

        folder = place(self.folder)
        found = inventory.homes(folder)
        if not found:
            remedy = "make shards first: python -m pipelines.shard --dataset NAME"
            raise BadInput("shards_missing", folder, "no sharded data set in it or below it", remedy)
        if self.objects:
            for home in found:
                print("\n".join(inventory.table(inventory.list_objects(home, self.split))))
        else:
            rows = inventory.list_shards(folder) if found == [folder] else inventory.list_homes(found)
            print("\n".join(inventory.table(rows)))
        return 0


@dataclass(frozen=True)
class Show:
    """Show one object of a sharded data set: where it comes from, its views, label, members and bytes."""

    folder: tyro.conf.Positional[str]
    """A data set's folder, such as datasets/gso/smoke, or the same in a store."""
    key: tyro.conf.Positional[str]
    """The object; `geolrm data ls FOLDER --objects` lists them."""
    sheet: Path | None = None
    """Write a contact sheet of all its views to this PNG file."""

    def run(self) -> int:
        from geolrm.data import inventory
        from geolrm.data.places import place

        folder = place(self.folder)
        row = inventory.find_object(folder, self.key)
        print("\n".join(inventory.table([["", ""], *inventory.describe(row)])[1:]))
        if self.sheet is not None:
            from geolrm.data.contact_sheet import contact_sheet
            from geolrm.data.loader import ShardDataset
            from geolrm.files import whole_file

            picture = contact_sheet(ShardDataset(folder, row["split"]).sample(self.key))
            with whole_file(self.sheet) as temporary:
                picture.save(temporary, "PNG")
            print(f"{self.sheet}: {picture.width} x {picture.height}")
        return 0


@dataclass(frozen=True)
class Stats:
    """Sum up the stats of all shards: objects, drops by reason, bytes, occupied voxels and their share of the volume, seconds."""

    folder: tyro.conf.Positional[str]
    """A data set's folder, such as datasets/gso/smoke, or the same in a store."""
    json: bool = False
    """Print one JSON object instead of words."""

    def run(self) -> int:
        import json

        from geolrm.data import inventory
        from geolrm.data.places import place

        merged = inventory.merged_stats(place(self.folder))
        print(json.dumps(merged, indent=1) if self.json else "\n".join(inventory.stats_lines(merged)))
        return 0


@dataclass(frozen=True)
class Verify:
    """Hash every member of every shard again and compare with what vouches for it; exit with status 1 on any fault.

    The stats vouch for a shard's file and its rows, the rows for each object's meta.json, that for all other members; the
    catalog must be the rows of all shards. Each fault is a line: file, member, what is wrong, [reason].
    """

    folder: tyro.conf.Positional[str]
    """A data set's folder, such as datasets/gso/smoke, or the same in a store."""
    workers: int = 2
    """Shards at a time."""

    def run(self) -> int:
        from tqdm import tqdm

        from geolrm.data.places import place
        from geolrm.data.verification import verify

        if self.workers < 1:
            raise BadInput("option_range", "--workers", f"{self.workers} is not above 0")
        started = time.perf_counter()
        with tqdm(desc="verify", unit="B", unit_scale=True) as progress:
            verdict = verify(place(self.folder), self.workers, progress.update)
        for fault in verdict.faults:
            print(f"fault: {fault}", file=sys.stderr)
        print(
            f"{self.folder}: {verdict.shards:,} shards, {verdict.objects:,} objects, {verdict.members:,} members, "
            f"{verdict.bytes:,} bytes hashed in {time.perf_counter() - started:.1f} s: {len(verdict.faults) or 'no'} faults"
        )
        return 1 if verdict.faults else 0


@dataclass(frozen=True)
class Data:
    """Data sets: fetch them, read their cards, look into their shards and check them."""

    verb: (
        Annotated[Fetch, tyro.conf.subcommand("fetch")]
        | Annotated[Card, tyro.conf.subcommand("card")]
        | Annotated[Ls, tyro.conf.subcommand("ls")]
        | Annotated[Show, tyro.conf.subcommand("show")]
        | Annotated[Stats, tyro.conf.subcommand("stats")]
        | Annotated[Verify, tyro.conf.subcommand("verify")]
    )

    def run(self) -> None:
        sys.exit(self.verb.run())
