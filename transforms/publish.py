"""Publishing: the fragments of a complete tile become its assets, and last of all its item."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Sequence
from typing import Any

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq

from model.profile import Profile
from transforms.assembly import DamagedFragment, preview_of, publish_raster, raster_of
from transforms.fragments import RASTERS, layouts_of
from transforms.grid import TILE_PX, Tile, tile_of
from transforms.inventory import table_of
from transforms.periods import period_of
from transforms.plans import BlockTask, Plan, desk_of
from transforms.receipts import DONE, FAILED, Desk, Receipt
from transforms.scenes import Scene
from transforms.stac import item, item_path, to_json
from transforms.stac_assets import AssetRecord
from transforms.storage import Loaded, Store


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
    return str(published_item(store, tile, period, model_name).get("properties", {}).get("tessera:revision", ""))


def published_item(store: Store, tile: str, period: str, model_name: str) -> dict[str, Any]:
    """A tile's item, {} where there is none."""
    try:
        found: dict[str, Any] = json.loads(store.get(item_path(tile, period, model_name)))
    except FileNotFoundError:
        return {}
    return found


def publish_tile(
    store: Store, plan: Plan, profile: Profile, tasks: Sequence[BlockTask], facts: TileFacts, version: str
) -> bool:
    """Assembles a tile whose blocks are all done, switches its item, and removes its fragments.

    The item is the only object that is ever written over, and only while it is still the one that was there at the
    beginning. Assets of another state of the tile stay: who reads by the old item keeps reading the old bytes. Two
    workers may do this at once: both write the same bytes, and whoever is late finds the item there.

    Returns:
      False when another worker has published this tile meanwhile, or a fragment is not what its receipt says.
    """
    tile = tile_of(tasks[0].block.tile)
    revision = tasks[0].revision
    desk = desk_of(plan, tasks[0])
    name = item_path(tile.name, plan.period, plan.model_name)
    before = _loaded(store, name)
    there = _properties(before)
    if there.get("tessera:revision") == revision and not plan.force:
        clear_work(store, plan.period, tile.name, revision)
        return False
    folder = f"{plan.period}/{tile.name}/{_folder(before, revision)}"
    try:
        receipts = [desk.read(store, t.block.name, DONE) for t in tasks]
        records = _write_assets(store, folder, tile, profile, plan, receipts, desk, facts)
    except DamagedFragment as e:
        store.delete(desk.receipt_name(e.block, DONE))  # the next run makes the block again
        return False
    except FileNotFoundError:
        if _loaded(store, name).version != before.version:  # another worker has published and cleared up
            return False
        raise
    counts: dict[str, int] = {}
    for receipt in receipts:
        for what, n in receipt.counts.items():
            # Dates of blocks overlap; pixels and outside are those of the blocks that were begun.
            if not what.endswith("_dates") and what not in ("pixels", "outside"):
                counts[what] = counts.get(what, 0) + n
    counts["pixels"] = TILE_PX**2
    counts["outside"] = TILE_PX**2 - counts["embedded"] - counts["no_optical"]
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
    )
    if not store.replace_if(name, to_json(record), before.version):
        return False  # another worker was faster, or another run published another revision: that one stays
    clear_work(store, plan.period, tile.name, revision)
    return True


def _loaded(store: Store, name: str) -> Loaded:
    """An item with its version, empty where there is none."""
    try:
        return store.load(name)
    except FileNotFoundError:
        return Loaded(b"", "")


def _properties(item: Loaded) -> dict[str, Any]:
    return dict(json.loads(item.data).get("properties", {})) if item.data else {}


def _folder(before: Loaded, revision: str) -> str:
    """Where a revision's assets go: its first 8 digits; when it is made once more, a folder beside that.

    So a reader of the item that is there never has its files written over, not even by --force.
    """
    if not before.data or _properties(before).get("tessera:revision") != revision:
        return revision[:8]
    used = str(json.loads(before.data)["assets"]["embeddings"]["href"]).removeprefix("./").partition("/")[0]
    _, _, n = used.partition(".")
    return f"{revision[:8]}.{int(n or 0) + 1}"


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
    facts: TileFacts,
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
    for key in RASTERS:
        if key == "preview":
            raster, thumbnail = preview_of(store, desk, layouts[key], receipts)
        else:
            raster = raster_of(desk, key, layouts[key], receipts)
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
    meta = json.dumps({"format": "tessera-beam/blocks", "version": 2})
    return table.replace_schema_metadata({"tessera_beam": meta})
