"""Publishing: the fragments of a complete tile become its assets, and last of all its item."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq

from model.errors import BadInput
from model.profile import Profile
from transforms.assembly import DamagedFragment, overviews_of, preview_of, publish_raster, raster_of
from transforms.fragments import OUTSIDE, RASTERS, layouts_of
from transforms.grid import TILE_PX, Tile, tile_of
from transforms.periods import period_of
from transforms.plans import BlockTask, Plan, desk_of
from transforms.pyramid import Level
from transforms.receipts import DONE, FAILED, Desk, Receipt
from transforms.scene_rows import table_of
from transforms.scenes import Scene
from transforms.stac import folder_of, item, item_path, replaced, replaced_path, to_json
from transforms.stac_assets import AssetRecord
from transforms.statistics import block_columns, of_tile, statistics_of_record
from transforms.storage import Loaded, Store

OVERVIEW_THREADS = 4  # each holds some 40 MB; the blocks of the worker that publishes are done or other processes'


@dataclasses.dataclass(frozen=True)
class TileFacts:
    """What an item says of its tile beyond its blocks.

    Attributes:
      scenes: all rows of the inventory for the tile.
      created: the inventory's freeze time. inventory: its digest.
      clip: record of what part of the tile is embedded, None for all of it.
    """

    scenes: list[Scene]
    created: str
    inventory: str
    clip: dict[str, Any] | None


def published_revision(store: Store, tile: str, period: str, model_name: str) -> str:
    """Revision of a tile's item, "" where the tile is not published."""
    return _revision(published_item(store, tile, period, model_name))


def published_item(store: Store, tile: str, period: str, model_name: str) -> dict[str, Any]:
    """A tile's item, {} where there is none."""
    try:
        found: dict[str, Any] = json.loads(store.get(item_path(tile, period, model_name)))
    except FileNotFoundError:
        return {}
    return found


def publish_tile(
    store: Store, plan: Plan, profile: Profile, tasks: Sequence[BlockTask], facts: TileFacts, version: str,
    overviews: bool = False,
) -> bool:  # fmt: skip
    """Assembles a tile whose blocks are all done, switches its item, and removes its fragments.

    The item is the only object that is ever written over, and only while it is still the one that was there at the
    beginning. Assets of another state of the tile stay: who reads by the old item keeps reading the old bytes. Two
    workers may do this at once: both write the same bytes, and whoever is late finds the item there.

    Args:
      overviews: whether embeddings and scales get overviews, made here of the fragments.

    Returns:
      False when another worker has published this tile meanwhile.

    Raises:
      DamagedFragment: a fragment is not what its receipt says; that receipt is gone, and the block to be made again.
    """
    tile = tile_of(tasks[0].block.tile)
    revision = tasks[0].revision
    desk = desk_of(plan, tasks[0])
    name = item_path(tile.name, plan.period, plan.model_name)
    before = _loaded(store, name)
    old: dict[str, Any] = json.loads(before.data) if before.data else {}
    if _revision(old) == revision and not plan.force:
        clear_work(store, plan.period, tile.name, revision)
        return False
    home = f"{plan.period}/{tile.name}"
    version_folder = _folder(store, home, old, revision)
    folder = f"{home}/{version_folder}"
    try:
        receipts = [_receipt(store, desk, t, plan.period) for t in tasks]
        records = _write_assets(store, folder, tile, profile, plan, receipts, desk, facts, overviews)
    except (DamagedFragment, FileNotFoundError) as e:
        if _loaded(store, name).version != before.version:  # another worker has published and cleared up
            return False
        if isinstance(e, DamagedFragment):
            store.delete(desk.receipt_name(e.block, DONE))  # so that the block is made again
        raise
    counts: dict[str, int] = {}
    for receipt in receipts:
        for what, n in receipt.counts.items():
            # Dates of blocks overlap; pixels and outside are those of the blocks that were begun.
            if not what.endswith("_dates") and what not in ("pixels", "outside"):
                counts[what] = counts.get(what, 0) + n
    counts["pixels"] = TILE_PX**2
    counts["outside"] = TILE_PX**2 - counts["embedded"] - counts["no_optical"]
    told = [statistics_of_record(r.statistics) for r in receipts if r.statistics]
    record = item(
        tile=tile,
        period=period_of(plan.period),
        model_name=plan.model_name,
        model_sha256=plan.model_sha256,
        profile=profile,
        revision=revision,
        created=facts.created,
        assets=records,
        counts=counts,
        device_kinds=sorted({r.device for r in receipts}),
        sources=sorted({s.source for s in facts.scenes}),
        inventory_digest=facts.inventory,
        software_version=version,
        clip=facts.clip,
        overlap=plan.overlap,
        statistics=of_tile(told, OUTSIDE) if len(told) == len(receipts) else None,
        folder=version_folder,
        predecessor=folder_of(old) if old else "",
    )
    if old:  # kept before the switch, so that the new item's link never leads nowhere
        store.put_if_absent(replaced_path(home, folder_of(old)), to_json(replaced(old)))
    if not store.replace_if(name, to_json(record), before.version):
        return False  # another worker was faster, or another run published another revision: that one stays
    clear_work(store, plan.period, tile.name, revision)
    return True


def _receipt(store: Store, desk: Desk, task: BlockTask, period: str) -> Receipt:
    """A block's receipt; raises DamagedFragment for one that is damaged, or of something else."""
    try:
        receipt = desk.read(store, task.block.name, DONE)
    except BadInput:
        raise DamagedFragment(task.block.name) from None
    if not receipt.is_of(task.block, period, task.revision):
        raise DamagedFragment(task.block.name)
    return receipt


def _loaded(store: Store, name: str) -> Loaded:
    """An item with its version, empty where there is none."""
    try:
        return store.load(name)
    except FileNotFoundError:
        return Loaded(b"", "")


def _revision(item: dict[str, Any]) -> str:
    return str(item.get("properties", {}).get("tessera:revision", ""))


def _folder(store: Store, home: str, old: dict[str, Any], revision: str) -> str:
    """Where a revision's assets go: its first 8 digits; a folder beside that when that one was published once before.

    So a reader of an older item never has its files written over, neither by --force nor by a return to old scenes.
    """
    if not old:
        return revision[:8]
    n = int(folder_of(old).partition(".")[2] or 0) + 1 if _revision(old) == revision else 0
    while store.stat(replaced_path(home, name := f"{revision[:8]}.{n}" if n else revision[:8])) is not None:
        n += 1
    return name


def clear_work(store: Store, period: str, tile: str, revision: str) -> None:
    """Removes a published revision's fragments and receipts, and the failures of the tile's other revisions.

    Those are over; their fragments stay, for another run may still use them.
    """
    work = f"_work/{period}/{tile}"
    store.delete_all(f"{work}/{revision[:8]}")
    for other in store.folders(work):
        for desk in store.folders(other):
            for name in store.names(desk):
                if name.endswith(f".{FAILED}.json"):
                    store.delete(name)


def _write_assets(
    store: Store, folder: str, tile: Tile, profile: Profile, plan: Plan, receipts: list[Receipt], desk: Desk,
    facts: TileFacts, overviews: bool,
) -> dict[str, AssetRecord]:  # fmt: skip
    tags = (
        ("TESSERA_MODEL", plan.model_name),
        ("TESSERA_MODEL_SHA256", plan.model_sha256),
        ("TESSERA_REVISION", receipts[0].revision),
        ("TESSERA_PERIOD", plan.period),
        ("TESSERA_TILE", tile.name),
        ("TESSERA_VALUE", "code * scale; -128 in every band and NaN scale: no data"),
    )
    layouts = layouts_of(tile, profile.dims, tags)
    here = f"./{folder.rpartition('/')[2]}"
    records = {}
    levels: dict[str, list[Level]] = {}
    if overviews:
        with ThreadPoolExecutor(OVERVIEW_THREADS) as pool:
            floor, floor_of = profile.scale_floor, profile.scale_floor_of
            levels = overviews_of(store, desk, layouts, receipts, floor, floor_of, pool)
    for key in RASTERS:
        if key == "preview":
            raster, thumbnail = preview_of(store, desk, layouts[key], receipts)
        else:
            raster = raster_of(desk, key, layouts[key], receipts, levels.get(key, ()))
        stat = publish_raster(store, desk, key, raster, receipts, f"{folder}/{key}.tif")
        records[key] = AssetRecord(f"{here}/{key}.tif", stat.size_bytes, raster.crc32c)
    small = {
        "thumbnail": ("thumbnail.png", thumbnail),
        "scenes": ("scenes.parquet", _parquet(table_of(facts.scenes))),
        "blocks": ("blocks.parquet", _parquet(blocks_table(receipts))),
    }
    for key, (name, data) in small.items():
        store.replace(f"{folder}/{name}", data)
        crc, sha = google_crc32c.Checksum(data).hexdigest().decode(), hashlib.sha256(data).hexdigest()
        records[key] = AssetRecord(f"{here}/{name}", len(data), crc, sha)
    return records


def _parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


def blocks_table(receipts: list[Receipt]) -> pa.Table:
    """The receipts of a tile without their clocks, hosts and attempts, a row a block."""
    rows = [
        {
            "tile": r.tile,
            "period": r.period,
            "revision": r.revision,
            "row_px": r.row_px,
            "col_px": r.col_px,
            "height_px": r.height_px,
            "width_px": r.width_px,
            "device": r.device,
            "plan": json.dumps(r.plan, sort_keys=True),
            "warnings": json.dumps(r.warnings),
            **{f"count_{name}": n for name, n in sorted(r.counts.items())},
            **{f"{key}_{what}": r.parts[key][what] for key in RASTERS for what in ("size_bytes", "sha256", "crc32c")},
        }
        for r in receipts
    ]
    table = pa.Table.from_pylist(rows)
    for name, kind, values in block_columns([r.statistics for r in receipts]):
        table = table.append_column(pa.field(name, kind), pa.array(values, kind))
    meta = json.dumps({"format": "tessera-beam/blocks", "version": 3})
    return table.replace_schema_metadata({"tessera_beam": meta})
