"""Overviews of embeddings: means of vectors, coded again, with scales to match, made tile by tile out of fragments."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from typing import Any, BinaryIO, NamedTuple

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from model.errors import BadInput
from model.quantise import NO_DATA, quantise
from transforms.cog import Layout, decode_tile, encode_tile
from transforms.fragments import places_of
from transforms.pyramid import Level, factors_of, level_layout
from transforms.receipts import Desk, Receipt
from transforms.storage import Store

KEYS = ("embeddings", "scales")
STRIP_TILES = 16  # COG tiles of a fragment's row that are fetched at once: 26 MB of 128 dimensions
QUARTER_ROWS = 16  # of an overview in single precision at once: 4 MB of 128 dimensions, what a core's cache holds

Codes = NDArray[np.int8]
Scale = NDArray[np.float32]


class SpoiltTile(Exception):
    """A fragment of `block` with a COG tile that cannot be decoded, or whose codes and scales disagree."""

    def __init__(self, block: str) -> None:
        super().__init__(block)
        self.block = block


class Pair(NamedTuple):
    """One internal tile of both files: place in the tile grid of its level, codes (T, T, dims), scale (T, T)."""

    row: int
    col: int
    codes: Codes
    scale: Scale


def halved(codes: Codes, scale: Scale, floor: float, floor_of: str) -> tuple[Codes, Scale]:
    """Means of the vectors of 2 x 2 pixels, of those with data, coded again.

    Args:
      codes (2h, 2w, dims), scale (2h, 2w): NaN where there is no data, -128 in every band there.
      floor, floor_of: of the profile's quantiser.

    Returns:
      (h, w, dims), (h, w). A pixel has data where any of its four has.

    Raises:
      ValueError: an odd size, or codes and scales that disagree about where data is.
    """
    if scale.shape[0] % 2 or scale.shape[1] % 2 or codes.shape[:2] != scale.shape:
        raise ValueError(f"codes {codes.shape} and scale {scale.shape}: even and equal sizes were expected")
    h, w, dims = scale.shape[0] // 2, scale.shape[1] // 2, codes.shape[2]
    out, size = np.full((h, w, dims), NO_DATA, np.int8), np.full((h, w), np.nan, np.float32)
    for top in range(0, h, QUARTER_ROWS):
        rows = slice(2 * top, 2 * min(top + QUARTER_ROWS, h))
        there = np.isfinite(scale[rows])
        if not np.array_equal(there, codes[rows, :, 0] != NO_DATA):
            raise ValueError("codes and scales disagree about where data is")
        if not there.any():
            continue
        known = np.where(there, scale[rows], np.float32(0))
        total = np.zeros((there.shape[0] // 2, w, dims), np.float32)
        # In this order, in single precision: the same sum in every tile, whatever lies around it.
        for y, x in itertools.product((0, 1), (0, 1)):
            total += codes[rows][y::2, x::2] * known[y::2, x::2, None]
        count = there.reshape(-1, 2, w, 2).sum((1, 3), dtype=np.uint8)
        some = count > 0
        mean = total[some] / count[some].astype(np.float32)[:, None]
        part = slice(top, top + len(total))
        out[part][some], size[part][some] = quantise(mean, floor, floor_of)
    return out, size


@dataclasses.dataclass
class _Growing:
    """An overview tile whose quarters are still coming: codes, scale, and how many of them are awaited."""

    codes: Codes
    scale: Scale
    awaited: int


class _Writers:
    """The objects of one level's two files, being written."""

    def __init__(self, store: Store, folder: str, layouts: dict[str, Layout], factor: int) -> None:
        self.factor, self.layouts = factor, {k: level_layout(layouts[k], factor) for k in KEYS}
        self.names = {k: f"{folder}/{k}.{factor}" for k in KEYS}
        shape = self.layouts["scales"].tiles_down, self.layouts["scales"].tiles_across
        self.offsets = {k: np.zeros(shape, np.uint64) for k in KEYS}
        self.sizes = {k: np.zeros(shape, np.uint64) for k in KEYS}
        self.at = dict.fromkeys(KEYS, 0)
        self.crc = {k: google_crc32c.Checksum() for k in KEYS}
        self.files: dict[str, BinaryIO] = {}
        self.store, self.stack = store, contextlib.ExitStack()

    def add(self, row: int, col: int, key: str, data: bytes) -> None:
        if key not in self.files:  # nothing is opened for a level without data
            self.files[key] = self.stack.enter_context(self.store.writer(self.names[key]))
        self.files[key].write(data)
        self.crc[key].update(data)
        self.offsets[key][row, col], self.sizes[key][row, col] = self.at[key], len(data)
        self.at[key] += len(data)

    def level(self, key: str) -> Level:
        crc = self.crc[key].hexdigest().decode()
        name = self.names[key] if self.at[key] else ""
        return Level(self.factor, name, self.at[key], crc, self.offsets[key], self.sizes[key])


def make_overviews(
    store: Store, desk: Desk, layouts: dict[str, Layout], receipts: Sequence[Receipt], floor: float, floor_of: str,
    pool: Executor,
) -> dict[str, list[Level]]:  # fmt: skip
    """Makes the overviews of a tile's embeddings and scales, as objects under the desk that publishing joins.

    Each level is made of the one below it. Every COG tile is read once, in the order of the blocks; of the levels only
    those tiles are held that a row of blocks has begun: under 200 MB for a whole tile of 128 dimensions.

    Args:
      receipts: of all blocks, in the order of the tile's rows and columns.
      floor, floor_of: of the profile's quantiser.
      pool: decodes, halves and compresses.

    Returns:
      "embeddings" and "scales": their levels, the largest first.

    Raises:
      SpoiltTile: a fragment that is not what its receipt says. FileNotFoundError: one that is gone.
    """
    factors = factors_of(layouts["embeddings"])
    with contextlib.ExitStack() as stack:
        writers = [_Writers(store, f"{desk.folder}/overviews", layouts, f) for f in factors]
        for w in writers:
            stack.enter_context(w.stack)
        awaited = _awaited(layouts["embeddings"], receipts, len(factors))
        growing: list[dict[tuple[int, int], _Growing]] = [{} for _ in factors]
        for group in _groups(store, desk, receipts):
            _climb(group, layouts, awaited, growing, writers, (floor, floor_of), pool)
        if any(growing):
            raise ValueError("overview tiles that wait for pixels which never came")
    return {key: [w.level(key) for w in writers] for key in KEYS}


class _Raw(NamedTuple):
    """One COG tile of a fragment as it is stored."""

    block: str
    row: int
    col: int
    codes: bytes
    scale: bytes


def _climb(
    group: list[_Raw], layouts: dict[str, Layout], awaited: list[NDArray[np.uint8]],
    growing: list[dict[tuple[int, int], _Growing]], writers: list[_Writers], floor: tuple[float, str], pool: Executor,
) -> None:  # fmt: skip
    """Takes COG tiles of the full image up the levels, as far as overview tiles become complete."""

    def first(raw: _Raw) -> Pair:
        try:
            codes = decode_tile(raw.codes, layouts["embeddings"]).astype(np.int8, copy=False)
            scale = decode_tile(raw.scale, layouts["scales"])[..., 0].astype(np.float32, copy=False)
            return Pair(raw.row, raw.col, *halved(codes, scale, *floor))
        except (BadInput, ValueError):
            raise SpoiltTile(raw.block) from None

    def further(pair: Pair) -> Pair:
        return Pair(pair.row, pair.col, *halved(pair.codes, pair.scale, *floor))

    def packed(pair: Pair) -> tuple[bytes, bytes]:
        kinds = writers[n].layouts
        return encode_tile(pair.codes, kinds["embeddings"]), encode_tile(pair.scale[..., None], kinds["scales"])

    quarters = list(pool.map(first, group))
    for n in range(len(writers)):
        whole = [p for q in quarters if (p := _placed(q, growing[n], awaited[n]))]
        for pair, data in zip(whole, pool.map(packed, whole), strict=True):
            for key, body in zip(KEYS, data, strict=True):
                writers[n].add(pair.row, pair.col, key, body)
        if n + 1 < len(writers):
            quarters = list(pool.map(further, whole))


def _placed(quarter: Pair, growing: dict[tuple[int, int], _Growing], awaited: NDArray[np.uint8]) -> Pair | None:
    """Puts a halved tile into the tile above it; that one, when nothing of it is awaited any more."""
    place = quarter.row // 2, quarter.col // 2
    h, w, dims = quarter.codes.shape
    if place not in growing:
        codes, scale = np.full((2 * h, 2 * w, dims), NO_DATA, np.int8), np.full((2 * h, 2 * w), np.nan, np.float32)
        growing[place] = _Growing(codes, scale, int(awaited[place]))
    tile, y, x = growing[place], quarter.row % 2 * h, quarter.col % 2 * w
    tile.codes[y : y + h, x : x + w], tile.scale[y : y + h, x : x + w] = quarter.codes, quarter.scale
    tile.awaited -= 1
    if tile.awaited:
        return None
    del growing[place]
    return Pair(*place, tile.codes, tile.scale)


def _awaited(layout: Layout, receipts: Sequence[Receipt], levels: int) -> list[NDArray[np.uint8]]:
    """Of every level, how many of the four tiles below each of its tiles are stored."""
    there = np.zeros((layout.tiles_down, layout.tiles_across), bool)
    for r in receipts:
        places = places_of(r.row_px, r.col_px, r.height_px, r.width_px)
        codes, scales = r.parts["embeddings"]["sizes"], r.parts["scales"]["sizes"]
        for place, size, other in zip(places, codes, scales, strict=True):
            if bool(size) != bool(other):
                raise SpoiltTile(r.block)
            there[place] = size > 0
    found = []
    for _ in range(levels):
        h, w = -(-there.shape[0] // 2), -(-there.shape[1] // 2)
        even = np.zeros((2 * h, 2 * w), bool)
        even[: there.shape[0], : there.shape[1]] = there
        found.append(even.reshape(h, 2, w, 2).sum((1, 3), dtype=np.uint8))
        there = found[-1] > 0
    return found


def _groups(store: Store, desk: Desk, receipts: Sequence[Receipt]) -> Iterator[list[_Raw]]:
    """The stored COG tiles of every block, a few of two rows at a time."""
    for r in receipts:
        if not r.parts["embeddings"]["size_bytes"]:
            continue
        places = list(places_of(r.row_px, r.col_px, r.height_px, r.width_px))
        across = places[-1][1] - places[0][1] + 1
        starts = {key: np.cumsum([0, *r.parts[key]["sizes"]]) for key in KEYS}
        for top in range(0, len(places), 2 * across):
            for left in range(0, across, STRIP_TILES):
                tiles: list[_Raw] = []
                for begin in range(top + left, min(top + 2 * across, len(places)), across):
                    end = min(begin - left + across, begin + STRIP_TILES)
                    tiles += _strip(store, desk, r, places, starts, begin, end)
                if tiles:
                    yield tiles


def _strip(
    store: Store, desk: Desk, r: Receipt, places: list[tuple[int, int]], starts: dict[str, NDArray[Any]], begin: int,
    end: int,
) -> list[_Raw]:  # fmt: skip
    """The stored ones of a fragment's tiles begin..end, with one request to each of the two fragments."""
    data = {}
    for key in KEYS:
        at, size = int(starts[key][begin]), int(starts[key][end] - starts[key][begin])
        if not size:
            return []
        data[key] = store.get(desk.fragment_name(r.block, key, r.parts[key]), at, size)
        if len(data[key]) != size:
            raise SpoiltTile(r.block)

    def part(key: str, n: int) -> bytes:
        a, b = (int(starts[key][k] - starts[key][begin]) for k in (n, n + 1))
        return data[key][a:b]

    raws = [_Raw(r.block, *places[n], part("embeddings", n), part("scales", n)) for n in range(begin, end)]
    return [raw for raw in raws if raw.codes]
