"""Assembly: a tile's rasters out of the fragments of its blocks, without a pixel being decompressed or held."""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from transforms.checksums import combined
from transforms.cog import Layout, decode_tile, header, header_size
from transforms.fragments import places_of
from transforms.overviews import SpoiltTile, make_overviews
from transforms.picture import preview_head, reduced
from transforms.pyramid import Level, header_with
from transforms.receipts import Desk, Receipt
from transforms.storage import Source, Stat, Store, StoreError


class DamagedFragment(Exception):
    """A fragment whose bytes are not those that its receipt was written for. `block`: its name."""

    def __init__(self, block: str) -> None:
        super().__init__(block)
        self.block = block


class Raster(NamedTuple):
    """A file to be: `head`, then its overviews, the smallest first, then the fragments of `receipts` in their order.

    stored: sources of the overviews and blocks that have any. crc32c, size_bytes: of the whole, from the parts'.
    """

    head: bytes
    stored: list[Source]
    crc32c: str
    size_bytes: int


def raster_of(
    desk: Desk, key: str, layout: Layout, receipts: Sequence[Receipt], levels: Sequence[Level] = ()
) -> Raster:
    """A raster: GDAL's own header with the place of every COG tile, its overviews if any, then the blocks.

    Args:
      levels: of `overviews_of`, the largest first.
    """
    offsets, sizes = _table(key, layout, receipts)
    if levels:
        return _raster(desk, key, header_with(layout, offsets, sizes, list(levels)), receipts, levels)
    offsets = np.where(sizes > 0, offsets + np.uint64(header_size(layout)), 0).astype(np.uint64)
    return _raster(desk, key, header(layout, offsets, sizes), receipts)


def overviews_of(
    store: Store, desk: Desk, layouts: dict[str, Layout], receipts: Sequence[Receipt], floor: float, floor_of: str,
    pool: Executor,
) -> dict[str, list[Level]]:  # fmt: skip
    """The overviews of "embeddings" and "scales", as objects under the desk that go with it; see `make_overviews`.

    Raises:
      DamagedFragment: a fragment is gone or not what its receipt says.
      FileNotFoundError: one is gone, perhaps because another worker has published the tile.
    """
    try:
        return make_overviews(store, desk, layouts, receipts, floor, floor_of, pool)
    except SpoiltTile as e:
        raise DamagedFragment(e.block) from None


def preview_of(store: Store, desk: Desk, layout: Layout, receipts: Sequence[Receipt]) -> tuple[Raster, bytes]:
    """The preview with its overviews, and the thumbnail as a PNG.

    Raises:
      DamagedFragment: a fragment is not what its receipt says.
    """
    offsets, sizes = _table("preview", layout, receipts)
    places = [(int(r), int(c)) for r, c in zip(*np.nonzero(sizes), strict=True)]
    half = reduced(places, _pixels(store, desk, layout, receipts), layout)
    head, _ = preview_head(half, offsets, sizes, layout)
    return _raster(desk, "preview", head, receipts), half.thumbnail


def publish_raster(store: Store, desk: Desk, key: str, raster: Raster, receipts: Sequence[Receipt], name: str) -> Stat:
    """Joins the parts on the store, and holds the checksum of the result against that of the parts.

    Raises:
      DamagedFragment: a fragment is gone or not what its receipt says.
      StoreError: "damaged", the fragments are right and what the store made of them is not.
    """
    fault, gone = f"{name} is not what its fragments are", None
    try:
        stat = store.join(name, raster.head, raster.stored, f"{desk.folder}/join-{key}")
    except (FileNotFoundError, StoreError) as e:
        if isinstance(e, StoreError) and e.kind != "damaged":
            raise
        stat, fault = None, str(e)
        gone = e if isinstance(e, FileNotFoundError) else None
    if stat is not None and stat.size_bytes == raster.size_bytes and stat.crc32c in ("", raster.crc32c):
        return stat
    for r in receipts:
        if r.parts[key]["size_bytes"] and not whole(store, desk, key, r):
            raise DamagedFragment(r.block)
    if gone is not None:  # overviews: another worker has published the tile and is clearing up
        raise gone
    raise StoreError("damaged", f"{fault}: run embed again")


def whole(store: Store, desk: Desk, key: str, receipt: Receipt) -> bool:
    """Whether a fragment has the size and checksum that its receipt names, by the store's word or by reading it."""
    part, name = receipt.parts[key], desk.fragment_name(receipt.block, key, receipt.parts[key])
    found = store.stat(name)
    if found is None or found.size_bytes != part["size_bytes"]:
        return False
    crc = found.crc32c or google_crc32c.Checksum(store.get(name)).hexdigest().decode()
    return bool(crc == part["crc32c"])


def _raster(desk: Desk, key: str, head: bytes, receipts: Sequence[Receipt], levels: Sequence[Level] = ()) -> Raster:
    above = [(level.name, level.size_bytes, level.crc32c) for level in reversed(levels)]
    blocks = [
        (desk.fragment_name(r.block, key, r.parts[key]), r.parts[key]["size_bytes"], r.parts[key]["crc32c"])
        for r in receipts
    ]
    parts = [part for part in (*above, *blocks) if part[1]]
    crc = google_crc32c.Checksum(head).hexdigest().decode()
    crc = functools.reduce(lambda so_far, p: combined(so_far, p[2], p[1]), parts, crc)
    sources = [Source(name, size) for name, size, _ in parts]
    return Raster(head, sources, crc, len(head) + sum(s.size_bytes for s in sources))


def _table(key: str, layout: Layout, receipts: Sequence[Receipt]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """(tiles_down, tiles_across) offsets, from the first fragment's beginning, and sizes; 0 is not stored."""
    offsets = np.zeros((layout.tiles_down, layout.tiles_across), np.uint64)
    sizes, at = np.zeros_like(offsets), 0
    for r in receipts:
        places = places_of(r.row_px, r.col_px, r.height_px, r.width_px)
        for place, size in zip(places, r.parts[key]["sizes"], strict=True):
            if size:
                offsets[place], sizes[place] = at, size
                at += size
    return offsets, sizes


def _pixels(
    store: Store, desk: Desk, layout: Layout, receipts: Sequence[Receipt]
) -> Iterator[tuple[int, int, NDArray[np.generic]]]:
    """(row, column, pixels) of every stored COG tile of the preview, block by block."""
    for r in receipts:
        part = r.parts["preview"]
        if not part["size_bytes"]:
            continue
        try:
            data, at = store.get(desk.fragment_name(r.block, "preview", part)), 0
        except FileNotFoundError:
            raise DamagedFragment(r.block) from None
        if hashlib.sha256(data).hexdigest() != part["sha256"]:
            raise DamagedFragment(r.block)
        places = places_of(r.row_px, r.col_px, r.height_px, r.width_px)
        for (row, col), size in zip(places, part["sizes"], strict=True):
            if size:
                yield row, col, decode_tile(data[at : at + size], layout)
                at += size
