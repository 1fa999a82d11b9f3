"""Publishing: the fragments of a complete tile become its assets, and last of all its item."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model.profile import Profile
from transforms.cog import Layout, decode_tile, header, header_size
from transforms.fragments import RASTERS, layouts_of, places_of
from transforms.grid import TILE_PX, Tile, tile_of
from transforms.inventory import table_of
from transforms.periods import period_of
from transforms.picture import preview_of
from transforms.plans import BlockTask, Plan, desk_of
from transforms.receipts import DONE, FAILED, Receipt
from transforms.scenes import Scene
from transforms.stac import item, item_path, to_json
from transforms.stac_assets import AssetRecord
from transforms.storage import Store

COPY_BYTES = 8 << 20


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


class _Counted:
    """A file that adds up size, sha256 and crc32c of what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha, self._crc = hashlib.sha256(), google_crc32c.Checksum()
        self.size_bytes = 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha.update(data)
        self._crc.update(data)
        self.size_bytes += len(data)

    def record(self, href: str) -> AssetRecord:
        return AssetRecord(href, self.size_bytes, self._crc.hexdigest().decode(), self._sha.hexdigest())


def publish_tile(
    store: Store, plan: Plan, profile: Profile, tasks: Sequence[BlockTask], facts: TileFacts, version: str
) -> bool:
    """Assembles a tile whose blocks are all done, and removes its fragments.

    Two workers may do this at once: both write the same bytes, and whoever is late finds the item there.

    Returns:
      False when another worker has published this revision meanwhile, or a fragment is not what its receipt says.
    """
    tile = tile_of(tasks[0].block.tile)
    revision = tasks[0].revision
    desk = desk_of(plan, tasks[0])
    if published_revision(store, tile.name, plan.period, plan.model_name) == revision:
        if not plan.force:
            clear_work(store, plan.period, tile.name, revision)
            return False
        # The assets will be written over: until the item is there again the tile is not published.
        store.delete(item_path(tile.name, plan.period, plan.model_name))
    try:
        receipts = [desk.read(store, t.block.name, DONE) for t in tasks]
        folder = f"{plan.period}/{tile.name}"
        records = _write_assets(store, f"{folder}/{revision[:8]}", tile, profile, plan, receipts, desk.folder, facts)
    except DamagedFragment as e:
        store.delete(desk.receipt_name(e.block, DONE))  # the next run makes the block again
        return False
    except FileNotFoundError:
        if published_revision(store, tile.name, plan.period, plan.model_name) == revision:
            return False
        raise
    counts: dict[str, int] = {}
    for receipt in receipts:
        for name, n in receipt.counts.items():
            # Dates of blocks overlap; pixels and outside are those of the blocks that were begun.
            if not name.endswith("_dates") and name not in ("pixels", "outside"):
                counts[name] = counts.get(name, 0) + n
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
    store.replace(item_path(tile.name, plan.period, plan.model_name), to_json(record))
    clear_work(store, plan.period, tile.name, revision)
    return True


class DamagedFragment(Exception):
    """A fragment whose bytes are not those that its receipt was written for. `block`: its name."""

    def __init__(self, block: str) -> None:
        super().__init__(block)
        self.block = block


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
    store: Store,
    folder: str,
    tile: Tile,
    profile: Profile,
    plan: Plan,
    receipts: list[Receipt],
    desk: str,
    facts: TileFacts,
) -> dict[str, AssetRecord]:
    tags = (
        ("TESSERA_MODEL", plan.model_name),
        ("TESSERA_MODEL_SHA256", plan.model_sha256),
        ("TESSERA_REVISION", receipts[0].revision),
        ("TESSERA_PERIOD", plan.period),
        ("TESSERA_TILE", tile.name),
        ("TESSERA_VALUE", "code * scale; -128 in every band and NaN scale: no data"),
    )
    layouts = layouts_of(tile, profile.dims, tags)
    records = {}
    for key in RASTERS:
        if key == "preview":
            continue
        with store.writer(f"{folder}/{key}.tif") as f:
            out = _Counted(f)
            for chunk in _assembled(store, desk, key, layouts[key], receipts):
                out.write(chunk)
        records[key] = out.record(f"./{folder.rpartition('/')[2]}/{key}.tif")
    picture, thumbnail = preview_of(_tiles(store, desk, "preview", layouts["preview"], receipts), layouts["preview"])
    small = {
        "preview": ("preview.tif", picture),
        "thumbnail": ("thumbnail.png", thumbnail),
        "scenes": ("scenes.parquet", _parquet(table_of(facts.scenes))),
        "blocks": ("blocks.parquet", _parquet(blocks_table(receipts))),
    }
    for key, (name, data) in small.items():
        with store.writer(f"{folder}/{name}") as f:
            out = _Counted(f)
            out.write(data)
        records[key] = out.record(f"./{folder.rpartition('/')[2]}/{name}")
    return records


def _fragment(desk: str, receipt: Receipt, key: str) -> str:
    return f"{desk}/r{receipt.row_px:05d}_c{receipt.col_px:05d}.{key}.frag"


def _assembled(store: Store, desk: str, key: str, layout: Layout, receipts: list[Receipt]) -> Iterator[bytes]:
    """Header, then the fragments in block order: a COG without a pixel being decompressed."""
    offsets = np.zeros((layout.tiles_down, layout.tiles_across), np.uint64)
    sizes = np.zeros_like(offsets)
    at = header_size(layout)
    for r in receipts:
        places = places_of(r.row_px, r.col_px, r.height_px, r.width_px)
        for place, size in zip(places, r.parts[key]["sizes"], strict=True):
            if size:
                offsets[place], sizes[place] = at, size
                at += size
    yield header(layout, offsets, sizes)
    for r in receipts:
        left = r.parts[key]["size_bytes"]
        name, start, sha = _fragment(desk, r, key), 0, hashlib.sha256()
        while start < left:
            chunk = store.get(name, start, min(COPY_BYTES, left - start))
            if not chunk:
                raise EOFError(f"{name} ends after {start} of {left} bytes; remove {desk} and run embed again")
            yield chunk
            sha.update(chunk)
            start += len(chunk)
        if left and sha.hexdigest() != r.parts[key]["sha256"]:
            raise DamagedFragment(f"r{r.row_px:05d}_c{r.col_px:05d}")


def _tiles(
    store: Store, desk: str, key: str, layout: Layout, receipts: list[Receipt]
) -> Iterator[tuple[int, int, NDArray[np.generic]]]:
    """(row, column, pixels) of every stored COG tile."""
    for r in receipts:
        if not r.parts[key]["size_bytes"]:
            continue
        data, at = store.get(_fragment(desk, r, key)), 0
        if hashlib.sha256(data).hexdigest() != r.parts[key]["sha256"]:
            raise DamagedFragment(f"r{r.row_px:05d}_c{r.col_px:05d}")
        for (row, col), size in zip(
            places_of(r.row_px, r.col_px, r.height_px, r.width_px), r.parts[key]["sizes"], strict=True
        ):
            if size:
                yield row, col, decode_tile(data[at : at + size], layout)
                at += size


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
