"""Fragments: one block's part of every raster asset, as compressed COG tiles."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from transforms.cog import TILE_PX as COG_TILE_PX
from transforms.cog import Layout, encode_window
from transforms.grid import TILE_PX, Tile
from transforms.preview import Colours, paint

# Bits of the reasons asset (design, section 6). READ_FAILED and DRIFT stand in the files' description from the start.
NO_OPTICAL, NO_RADAR, TOO_FEW, OUTSIDE, READ_FAILED, DRIFT = 1, 2, 4, 8, 16, 32

RASTERS = ("embeddings", "scales", "observations", "reasons", "preview")


def layouts_of(tile: Tile, dims: int, tags: tuple[tuple[str, str], ...]) -> dict[str, Layout]:
    """The COG layout of every raster asset of a tile.

    What is not stored reads as nodata: -128, NaN, "outside". `observations` has none, so that it reads as 0.
    """
    a, b, c, d, e, f = tuple(tile.transform)[:6]

    def layout(bands: int, dtype: str, nodata: float | None, names: tuple[str, ...], predictor: int) -> Layout:
        return Layout(
            height_px=TILE_PX,
            width_px=TILE_PX,
            bands=bands,
            dtype=dtype,
            tile_px=COG_TILE_PX,
            nodata=nodata,
            epsg=tile.epsg,
            transform=(a, b, c, d, e, f),
            band_names=names,
            tags=tags,
            predictor=predictor,
        )

    return {
        "embeddings": layout(dims, "int8", -128, tuple(f"E{i:03d}" for i in range(dims)), 2),
        "scales": layout(1, "float32", float("nan"), ("scale",), 3),
        "observations": layout(3, "uint16", None, ("S2", "S1 ascending", "S1 descending"), 2),
        "reasons": layout(1, "uint8", OUTSIDE, ("reasons",), 2),
        "preview": layout(3, "uint8", 0, ("red", "green", "blue"), 2),
    }


def reasons_of(counts: NDArray[np.uint16], wanted: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(H, W) bit flags from the observation counts (H, W, 3) and the pixels that are wanted.

    Radar is not looked at where no optical observation is valid, so `NO_RADAR` never stands beside `NO_OPTICAL`.
    """
    flags = np.full(wanted.shape, NO_OPTICAL, np.uint8)
    optical = counts[..., 0] > 0
    if optical.any():
        flags[optical] = np.where((counts[optical, 1] | counts[optical, 2]) == 0, NO_RADAR, 0)
    flags[~wanted] = OUTSIDE
    return flags


def compress(
    codes: NDArray[np.int8] | None,
    scale: NDArray[np.float32],
    counts: NDArray[np.uint16],
    reasons: NDArray[np.uint8],
    colours: Colours,
    layouts: dict[str, Layout],
    pool: Executor,
) -> dict[str, list[bytes]]:
    """Every raster's COG tiles of a block, row by row of tiles; b"" for a tile of nodata alone.

    Args:
      codes (H, W, dims), scale (H, W), counts (H, W, 3), reasons (H, W): of the block; codes None where nothing is.
    """

    empty = [b""] * -(-scale.shape[1] // COG_TILE_PX)

    def one_row(row: int) -> dict[str, list[bytes]]:
        window = slice(row, row + COG_TILE_PX)
        pixels: dict[str, NDArray[Any]] = {"observations": counts[window], "reasons": reasons[window][..., None]}
        if codes is not None and np.isfinite(scale[window]).any():  # nothing to look through at 128 bands
            pixels["embeddings"] = codes[window]
            pixels["scales"] = scale[window][..., None]
            pixels["preview"] = paint(codes[window], scale[window], colours)
        made = {name: encode_window(np.ascontiguousarray(a), layouts[name]) for name, a in pixels.items()}
        return {name: made.get(name, empty) for name in RASTERS}

    tiles: dict[str, list[bytes]] = {name: [] for name in RASTERS}
    for row in pool.map(one_row, range(0, scale.shape[0], COG_TILE_PX)):
        for name in RASTERS:
            tiles[name] += row[name]
    return tiles


def part_of(tiles: list[bytes]) -> dict[str, Any]:
    """What a receipt says of one asset's part: sizes of its COG tiles, size, sha256 and crc32c of all of them."""
    sha, crc = hashlib.sha256(), google_crc32c.Checksum()
    for tile in tiles:
        sha.update(tile)
        crc.update(tile)
    return {
        "sizes": [len(t) for t in tiles],
        "size_bytes": sum(len(t) for t in tiles),
        "sha256": sha.hexdigest(),
        "crc32c": crc.hexdigest().decode(),
    }


def places_of(row_px: int, col_px: int, height_px: int, width_px: int) -> Iterator[tuple[int, int]]:
    """(row, column) in the tile's COG of each COG tile of a block, in the order of its fragment."""
    for row in range(row_px // COG_TILE_PX, -(-(row_px + height_px) // COG_TILE_PX)):
        for col in range(col_px // COG_TILE_PX, -(-(col_px + width_px) // COG_TILE_PX)):
            yield row, col
