"""Pictures: the preview COG with its overviews, and the thumbnail, from the preview's internal tiles."""

import dataclasses
import warnings
from collections.abc import Iterable

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from model.errors import BadInput
from transforms.cog import Layout, Template, describe, directories, encode_tile, template_from, template_profile

THUMBNAIL_PX = 512
OVERVIEWS = (2, 4, 8, 16, 32)  # 10,980 px down to 344: one screen

Picture = NDArray[np.uint8]


def preview_of(tiles: Iterable[tuple[int, int, NDArray[np.generic]]], layout: Layout) -> tuple[bytes, bytes]:
    """The preview COG and the thumbnail PNG.

    Args:
      tiles: (row, column, pixels (tile_px, tile_px, 3) uint8) of the stored internal tiles; 0 is no data.
      layout: of the preview's fragments, in tiles of half the side of the preview's own.
    """
    T = layout.tile_px
    held = {(row, col): pixels for row, col, pixels in tiles}
    if not held:
        return pyramid(np.zeros((0, 0, 3), np.uint8), 0, 0, layout), thumbnail(np.zeros((1, 1, 3), np.uint8))
    r0, c0 = min(r for r, _ in held) // 2 * 2, min(c for _, c in held) // 2 * 2
    r1, c1 = max(r for r, _ in held) // 2 * 2 + 2, max(c for _, c in held) // 2 * 2 + 2
    part = np.zeros(((r1 - r0) * T, (c1 - c0) * T, 3), np.uint8)
    for (row, col), pixels in held.items():
        part[(row - r0) * T : (row - r0 + 1) * T, (col - c0) * T : (col - c0 + 1) * T] = pixels
    return pyramid(part, r0 * T, c0 * T, layout), thumbnail(part)


def pyramid(part: Picture, row: int, col: int, layout: Layout) -> bytes:
    """A COG with overviews of a raster in which only `part`, whose corner is (row, col), holds data.

    GDAL's COG driver would look at every pixel of the tile, also of one that holds a small island.

    Args:
      part: (H, W, 3) uint8; row and col are multiples of 2 * tile_px, hence of every overview's pixel.
    """
    wide = dataclasses.replace(layout, tile_px=2 * layout.tile_px)
    data, tables = pyramid_header(wide, OVERVIEWS)
    out = bytearray(data)
    levels = [part]
    for _ in OVERVIEWS:
        levels.append(_halved(levels[-1]))
    at, bodies = len(out), []
    for n in reversed(range(len(levels))):  # a reader that zooms in finds the small images in front
        height, width = -(-layout.height_px // 2**n), -(-layout.width_px // 2**n)
        shape = -(-height // wide.tile_px), -(-width // wide.tile_px)
        offsets, sizes = np.zeros(shape, np.uint64), np.zeros(shape, np.uint64)
        for place, pixels in _squares(
            levels[n][: height - row // 2**n, : width - col // 2**n], row >> n, col >> n, wide
        ):
            body = encode_tile(pixels, wide)
            if body:
                offsets[place], sizes[place] = at, len(body)
                at += len(body)
                bodies.append(body)
        tables[n].fill(out, offsets, sizes)
    return bytes(out) + b"".join(bodies)


def pyramid_header(layout: Layout, factors: tuple[int, ...]) -> tuple[bytes, list[Template]]:
    """The header of a file with overviews, empty, and the tables of each of its images, the full one first.

    Args:
      layout: of the full image. factors: of the overviews, ascending.
    """
    with rasterio.Env(SPARSE_OK_OVERVIEW="YES"), MemoryFile() as memory:
        with memory.open(**template_profile(layout), nodata=layout.nodata) as dst:
            describe(dst, layout)
            dst.build_overviews(factors, Resampling.nearest)  # of nothing: the quickest way to the directories
        data = bytes(memory.read())
    found = directories(data)
    shapes = [(-(-layout.height_px // f), -(-layout.width_px // f)) for f in (1, *factors)]
    sizes = [-(-h // layout.tile_px) * -(-w // layout.tile_px) for h, w in shapes]
    if len(found) != len(sizes):
        raise BadInput(f"GDAL's header has {len(found)} images, not {len(sizes)}")
    return data, [template_from(data, at, n) for at, n in zip(found, sizes, strict=True)]


def _halved(picture: Picture) -> Picture:
    """Means of 2 x 2 pixels, of those with data."""
    h, w = -(-picture.shape[0] // 2), -(-picture.shape[1] // 2)
    even = np.zeros((2 * h, 2 * w, 3), np.uint16)
    even[: picture.shape[0], : picture.shape[1]] = picture
    boxes = even.reshape(h, 2, w, 2, 3)
    there = np.maximum((boxes > 0).sum((1, 3), dtype=np.uint16), 1)
    means: Picture = ((boxes.sum((1, 3), dtype=np.uint16) + there // 2) // there).astype(np.uint8)
    return means


def _squares(part: Picture, row: int, col: int, layout: Layout) -> Iterable[tuple[tuple[int, int], Picture]]:
    """Place and pixels of the internal tiles that `part`, at (row, col), reaches into."""
    T = layout.tile_px
    if not part.size:
        return
    for r in range(row // T, -(-(row + part.shape[0]) // T)):
        for c in range(col // T, -(-(col + part.shape[1]) // T)):
            square = np.zeros((T, T, 3), np.uint8)
            y0, x0 = max(r * T, row), max(c * T, col)
            y1, x1 = min(r * T + T, row + part.shape[0]), min(c * T + T, col + part.shape[1])
            square[y0 - r * T : y1 - r * T, x0 - c * T : x1 - c * T] = part[y0 - row : y1 - row, x0 - col : x1 - col]
            yield (r, c), square


def thumbnail(whole: Picture) -> bytes:
    """A PNG of the part with data, at most THUMBNAIL_PX wide and high; transparent where there is none."""
    there = whole.max(-1)
    rows, cols = np.flatnonzero(there.max(1)), np.flatnonzero(there.max(0))
    part = whole[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1] if len(rows) else whole[:1, :1]
    while max(part.shape[:2]) > THUMBNAIL_PX:
        part = _halved(part)
    alpha = np.where(part.any(-1), 255, 0).astype(np.uint8)
    grow = max(1, THUMBNAIL_PX // 2 // max(part.shape[:2]))  # a small region is shown large enough to see
    rgba = np.concatenate([part, alpha[..., None]], -1).repeat(grow, 0).repeat(grow, 1)
    with MemoryFile() as png, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a picture for browsers has no place on Earth
        with png.open(driver="PNG", height=rgba.shape[0], width=rgba.shape[1], count=4, dtype="uint8") as f:
            f.write(np.moveaxis(rgba, -1, 0))
        return bytes(png.read())
