"""The shards verb: samples the pixels of an inventory and shuffles them into shards that training reads."""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import shapely
from apache_beam.options.pipeline_options import PipelineOptions

from model import records
from model.errors import BadInput, WorkerLost
from model.families import profile_for
from model.profile import Profile
from model.shards import MANIFEST, SHARD_RECORDS, Manifest, manifest_from_json
from pipeline.engines import Engine, Job, Local
from pipeline.planning import READERS, EmbedOptions, at_hand, check_imagery, region_digest, wanted_tiles, worst_tile
from pipeline.reach import check_reach
from pipeline.shard_graph import HEAD, PLAN, RESULT, TILES, MakeShards
from transforms import inventory
from transforms.dpixels import unsearched
from transforms.grid import TILE_PX, lonlat_of
from transforms.inventory import Inventory
from transforms.land import land_fraction
from transforms.machine import machine
from transforms.objects import kept_file
from transforms.plans import digest_of
from transforms.regions import Region, clip_of, region_from_file
from transforms.sampling import KEPT, SAMPLED, WORK, Rule, SamplePlan, block_px_for, budget_of
from transforms.shuffle import bits_for
from transforms.storage import Store, open_store
from transforms.strata import stratified

NATIVE_DIMS = 128  # of the profile; the width of the output plays no part before the encoder
TOLD = 10  # failures that are told one by one; --json has them all
SHAPE_BYTES = 1 << 18  # of an excluded region's GeoJSON that every model's record carries: some 6,000 corners


@dataclasses.dataclass(frozen=True)
class ShardOptions:
    """What a user may ask of `train shards`.

    Attributes:
      rule: which pixels become records.
      tiles: names, () for all of the inventory. region: pixels wanted, None for whole tiles.
      stratify: tiles to choose by latitude and land, 0 for all.
      exclude: GeoJSON files of regions that are kept out.
      profile: of whose rules the d-pixels are made; one of `families.names()`.
      shard_records, bucket_mb: size of a shard, and of a bucket of the shuffle. seed: of order and choice.
      memory_gib: what reading a block may take. engine: what runs the graph. beam_args: passed to Beam as they are.
    """

    rule: Rule = dataclasses.field(default_factory=Rule)
    tiles: tuple[str, ...] = ()
    region: Region | None = None
    stratify: int = 0
    exclude: tuple[str, ...] = ()
    profile: str = "v2"
    shard_records: int = SHARD_RECORDS
    bucket_mb: int = 256
    seed: int = 0
    memory_gib: float = 8.0
    readers: int = READERS
    engine: Engine = dataclasses.field(default_factory=Local)
    beam_args: tuple[str, ...] = ()


def make_shards(inv_path: str, out: str, options: ShardOptions, say: Callable[[str], None]) -> dict[str, Any]:
    """Makes a set of shards, or finds that it is there.

    Returns:
      The summary: `out`, `records`, `shards`, `bytes`, `counts`, `failed`, `exclude`, `already` where nothing was done.

    Raises:
      BadInput: before any work, and where no pixel was kept.
      WorkerLost: a worker process has ended.
    """
    engine = options.engine
    inv_path = at_hand(inv_path)
    inv = inventory.read_header(inv_path)
    profile = _profile(options.profile, inv, say)
    tiles = tiles_wanted(inv, options)
    check_reach(inv, tiles)
    regions = {path: region_from_file(path) for path in options.exclude}
    plan, manifest, block_bytes = _planned(inv, tiles, out, options, profile, regions)
    name = f"shards-{digest_of(dataclasses.asdict(plan))[:8]}"
    job = Job(name, plan.out, "cpu", block_bytes, options.beam_args)
    engine.check(job)
    store = open_store(plan.out)
    if (there := _claimed(store, manifest)) is not None:
        say(f"{store.url} holds these shards already; delete the folder to have them made again")
        _clear(store)
        return _summary(store, there) | {"already": True}
    for sentence in store.concerns():
        say(f"warning: {sentence}")
    _deposit(store, plan, manifest, Path(inv_path), tiles, options.region, regions)
    buckets, bucket_mb = 1 << plan.bits, plan.bucket_bytes >> 20
    say(
        f"{len(tiles)} tiles, period {manifest.period}, one pixel in {plan.rule.every} x {plan.rule.every}; "
        f"{buckets} buckets of up to {bucket_mb} MB: a worker takes {block_bytes / 2**30:.1f} GiB to read, "
        f"{2 * bucket_mb} MB and four shards to shuffle"
    )
    if warning := _local_room(engine, expected_bytes(inv, tiles, plan.rule, options.region)):
        say(f"warning: {warning}")
    with kept_file(store, f"{WORK}/workers.log") as log, engine.at_work(job, log) as flags:
        try:
            pipeline = beam.Pipeline(options=PipelineOptions(flags))
            _ = pipeline | MakeShards(plan)
            pipeline.run().wait_until_finish()
        except RuntimeError as e:
            if not engine.lost(e):
                raise
            raise WorkerLost(
                f"a worker process has ended (killed, or out of memory), see {store.url}/{WORK}/workers.log; shards "
                "are made in one go: run the same command again, with less --memory or a smaller --bucket-mb"
            ) from e
    done = store.stat(MANIFEST) is not None
    found = manifest_from_json(store.get(MANIFEST if done else RESULT))
    _clear(store)
    if not done and not found.failed:
        left = ", ".join(f"{n} for {reason}" for reason, n in found.counts["left_out"].items() if n)
        raise BadInput(
            f"no pixel of {found.counts[SAMPLED]} was kept ({left or 'none was sampled'}): lower --min-dates or "
            "--every, or take other tiles"
        )
    return _summary(store, found)


def _local_room(engine: Engine, expected: int) -> str:
    """A warning where a runner that shuffles in this machine's memory may not have enough of it; else ""."""
    here = machine()
    if engine.elsewhere or here is None or 2 * expected < here.memory_bytes:
        return ""
    return (
        f"up to {expected / 2**30:.1f} GiB of records, and twice that in memory where every scene is clear: runner "
        f"{engine.name} shuffles on {here.what}, which has {here.memory_bytes / 2**30:.1f} GiB. Take a larger --every, "
        "fewer tiles, or another --runner"
    )


def tiles_wanted(inv: Inventory, options: ShardOptions) -> list[str]:
    """The tiles that are sampled, sorted.

    Raises:
      BadInput: tiles that the inventory has not, or a choice by strata beside a list.
    """
    tiles = wanted_tiles(inv, EmbedOptions(tiles=options.tiles, region=options.region))
    if not options.stratify:
        return tiles
    if options.tiles:
        raise BadInput(f"--stratify {options.stratify} with --tiles: give one of them")
    seen = [t for t in tiles if inv.counts[t].s2]
    return stratified(
        [(t, float(lonlat_of(t, TILE_PX / 2, TILE_PX / 2)[1][()]), land_fraction(t)) for t in seen],
        options.stratify,
        options.seed,
    )


def expected_bytes(inv: Inventory, tiles: Sequence[str], rule: Rule, region: Region | None) -> int:
    """Bytes of the records of some tiles at most: as if every scene were a clear date of all of its tile."""
    total = 0.0
    for tile in tiles:
        n = inv.counts[tile]
        record = (
            records.HEAD.itemsize
            + n.s2 * records.S2_ROW.itemsize
            + (n.s1_ascending + n.s1_descending) * records.S1_ROW.itemsize
        )
        total += (-(-TILE_PX // rule.every)) ** 2 * _share(tile, region) * record
    return int(total)


def _share(tile: str, region: Region | None) -> float:
    """Which part of a tile a region wants, roughly."""
    clip = clip_of(region, tile) if region else None
    if clip is None:
        return 1.0
    whole = shapely.box(*_box_of(tile)).area
    return min(1.0, float(clip.region.shape.area) / whole)


def _box_of(tile: str) -> tuple[float, float, float, float]:
    """The middle of a tile's sides in degrees: of about its area."""
    middle, ends = TILE_PX / 2, (0, TILE_PX)
    south, north = sorted(float(lonlat_of(tile, row, middle)[1][()]) for row in ends)
    lon = [float(lonlat_of(tile, middle, col)[0][()]) for col in ends]
    width = (lon[1] - lon[0]) % 360
    return 0.0, south, width, north


def _profile(name: str, inv: Inventory, say: Callable[[str], None]) -> Profile:
    """The profile by whose rules the pixels are made. Raises BadInput where they cannot be made of the inventory."""
    profile = profile_for(name, native_dims=NATIVE_DIMS)
    check_imagery(profile, f"profile {profile.name}", inv)
    missing = unsearched(profile, [s.name for s in inv.sources])
    if "optical" in missing:
        raise BadInput(
            f"{inv.path} has no optical source; profile {profile.name} wants {' or '.join(missing['optical'])}: "
            "build the inventory again with a second --catalog"
        )
    if "radar" in missing:
        say(f"warning: {inv.path} was never searched for radar: a model trained on these shards sees none")
    return profile


def _planned(
    inv: Inventory, tiles: list[str], out: str, options: ShardOptions, profile: Profile, exclude: dict[str, Region]
) -> tuple[SamplePlan, Manifest, int]:
    """The plan, the manifest as far as it is known before work, and bytes of memory that reading a block takes.

    Raises:
      BadInput: numbers that cannot be.
    """
    rule, engine = options.rule, options.engine
    if options.shard_records < 1 or options.bucket_mb < 1:
        raise BadInput(f"--shard-records {options.shard_records}, --bucket-mb {options.bucket_mb}: give 1 or more")
    block_px, memory = block_px_for(rule.every), int(options.memory_gib * 2**30) // max(1, engine.blocks_at_once)
    scenes = inventory.read_tile(inv.path, worst_tile(inv, tiles))
    budget = budget_of(scenes, block_px, options.readers, memory)
    bits = bits_for(expected_bytes(inv, tiles, rule, options.region), options.bucket_mb << 20)
    plan = SamplePlan(
        out=out.rstrip("/") if out.startswith(("gs://", "s3://")) else open_store(out).url,
        inventory=inv.digest,
        profile=profile.to_json(),
        rule=rule,
        block_px=block_px,
        region=region_digest(options.region),
        exclude=tuple(region_digest(region) for region in exclude.values()),
        readers=options.readers,
        memory_bytes=memory,
        blocks_at_once=engine.blocks_at_once,
        seed=options.seed,
        bits=bits,
        bucket_bytes=options.bucket_mb << 20,
        shard_records=options.shard_records,
    )
    kept_out = tuple(_named(path, region) for path, region in exclude.items())
    manifest = Manifest(
        profile.name,
        profile.digest,
        inv.period.name,
        (),
        sources=tuple(s.name for s in inv.sources),
        every=rule.every,
        min_dates=rule.min_dates,
        seed=options.seed,
        shard_records=options.shard_records,
        tiles=tuple(tiles),
        exclude=kept_out,
        origin={
            "made by": f"tessera-beam {importlib.metadata.version('tessera-beam')}, train shards",
            "inventory": inv.digest,
            "region": plan.region,
            "stratify": options.stratify,
            "buckets": 1 << bits,
        },
    )
    return plan, manifest, budget.total_bytes


def _named(path: str, region: Region) -> dict[str, Any]:
    """An excluded region as the manifest has it: with its shape, unless it is so long that bounds must do."""
    sha256, shape = hashlib.sha256(Path(path).read_bytes()).hexdigest(), str(shapely.to_geojson(region.shape))
    known = {"geojson": shape} if len(shape) <= SHAPE_BYTES else {}
    return {"name": Path(path).name, "sha256": sha256, "bounds": list(region.shape.bounds), **known}


def _claimed(store: Store, manifest: Manifest) -> Manifest | None:
    """Claims an empty folder for a set; gives the manifest where the same set is there already.

    Raises:
      BadInput: another set is there, finished or not, or something else.
    """
    wanted = json.loads(manifest.to_json())
    if store.stat(MANIFEST) is not None:
        found = manifest_from_json(store.get(MANIFEST), f"{store.url}/{MANIFEST}")
        there = dataclasses.replace(found, shards=(), counts={}, failed=())
        _refuse_other(store, wanted, json.loads(there.to_json()))
        return found
    try:
        _refuse_other(store, wanted, json.loads(store.get(PLAN)))
    except FileNotFoundError:
        if foreign := [*store.names(""), *(f for f in store.folders("") if f != WORK)]:
            raise BadInput(f"{store.url} holds other files ({foreign[0]}): choose another --out") from None
        if not store.put_if_absent(PLAN, manifest.to_json().encode()):
            return _claimed(store, manifest)  # another run has claimed it in this moment
    return None


def _refuse_other(store: Store, wanted: dict[str, Any], there: dict[str, Any]) -> None:
    flat = [{**side, **side["origin"]} for side in (wanted, there)]
    differ = sorted(k for k in {*flat[0], *flat[1]} - {"origin", "made by"} if flat[0].get(k) != flat[1].get(k))
    if differ:
        words = "; ".join(f"{k}: there {_short(flat[1].get(k))}, now {_short(flat[0].get(k))}" for k in differ)
        raise BadInput(f"{store.url} holds other shards ({words}): choose another --out, or delete the folder")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}.."


def _deposit(
    store: Store,
    plan: SamplePlan,
    manifest: Manifest,
    inv: Path,
    tiles: list[str],
    region: Region | None,
    exclude: Mapping[str, Region],
) -> None:
    """Puts what the workers need where they find it."""
    store.replace(f"{WORK}/{plan.inventory}.parquet", inv.read_bytes())
    store.replace(TILES, json.dumps(tiles).encode())
    store.replace(HEAD, manifest.to_json().encode())
    for found in (region, *exclude.values()):
        if found is not None:
            store.replace(f"{WORK}/{region_digest(found)}.geojson", shapely.to_geojson(found.shape).encode())


def _clear(store: Store) -> None:
    store.delete_all(WORK)
    store.sweep()


def _summary(store: Store, manifest: Manifest) -> dict[str, Any]:
    return {
        "out": store.url,
        "records": manifest.records,
        "shards": len(manifest.shards),
        "bytes": sum(s.bytes for s in manifest.shards),
        "tiles": len(manifest.tiles),
        "period": manifest.period,
        "profile": manifest.profile,
        "counts": manifest.counts,
        "exclude": list(manifest.exclude),
        "failed": list(manifest.failed),
        "already": False,
    }


def words(r: dict[str, Any]) -> str:
    """The summary as a person reads it."""
    counts, left = r["counts"], r["counts"].get("left_out", {})
    lines = [
        f"{r['out']}  {r['records']:,} records in {r['shards']} shards, {r['bytes'] / 1e6:,.1f} MB",
        f"  {r['tiles']} tiles, period {r['period']}, profile {r['profile']}",
        f"  sampled {counts.get(SAMPLED, 0):,} pixels, kept {counts.get(KEPT, 0):,}; left out: "
        + (", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in left.items() if n) or "none"),
        *(f"  kept out: {e['name']}, sha256 {e['sha256'][:12]}" for e in r["exclude"]),
    ]
    for f in r["failed"][:TOLD]:
        lines.append(
            f"  failed: {f['tile']} row {f['row_px']} col {f['col_px']}: {f['scene']} {f['band']} {f['reason']}"
        )
    if len(r["failed"]) > TOLD:
        lines.append(f"  and {len(r['failed']) - TOLD} more failed blocks")
    return "\n".join(lines)
