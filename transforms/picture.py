"""Pictures: the preview's overviews and header, and the thumbnail, from the preview's internal tiles."""

import dataclasses
import io
import warnings
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from transforms.cog import Layout, encode_tile
from transforms.pyramid import pyramid_header

THUMBNAIL_PX = 512
OVERVIEWS = (2, 4, 8, 16, 32)  # 10,980 px down to 344: one screen
HALVED_ROWS = 128  # of the halved image at once: the sums of a whole tile would take 500 MB

Picture = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Reduced:
    """A preview at half its size, of the part that holds data.

    Attributes:
      pixels: (h, w, 3) uint8, 0 is no data. row, col: of its corner, in internal tiles of the full image.
      thumbnail: a PNG of it.
    """

    pixels: Picture
    row: int
    col: int
    thumbnail: bytes


def reduced(
    places: Collection[tuple[int, int]], tiles: Iterable[tuple[int, int, NDArray[np.generic]]], layout: Layout
) -> Reduced:
    """Halves a preview tile by tile: 90 MB for a whole tile of 10,980 px, in place of the 362 MB of all its pixels.

    Args:
      places: (row, column) of the internal tiles that are stored.
      tiles: those, (row, column, pixels (tile_px, tile_px, 3) uint8), in any order; 0 is no data.
      layout: of the preview.
    """
    if not places:
        return Reduced(np.zeros((0, 0, 3), np.uint8), 0, 0, thumbnail(np.zeros((1, 1, 3), np.uint8)))
    T = layout.tile_px
    rows, cols = [r for r, _ in places], [c for _, c in places]
    row, col = min(rows), min(cols)
    down, across = max(rows) + 1 - row, max(cols) + 1 - col
    half = np.zeros((down * T // 2, across * T // 2, 3), np.uint8)
    # A small island is shown pixel by pixel; of a larger one the halved image has all that the thumbnail can show.
    whole = max(down, across) * T <= 2 * THUMBNAIL_PX
    full = np.zeros((down * T, across * T, 3) if whole else (0, 0, 3), np.uint8)
    for r, c, pixels in tiles:
        y, x = (r - row) * T, (c - col) * T
        half[y // 2 : (y + T) // 2, x // 2 : (x + T) // 2] = _halved(pixels.astype(np.uint8, copy=False))
        if whole:
            full[y : y + T, x : x + T] = pixels
    return Reduced(half, row, col, thumbnail(full if whole else half))


def preview_head(
    half: Reduced, offsets: NDArray[np.uint64], sizes: NDArray[np.uint64], layout: Layout
) -> tuple[bytes, int]:
    """Everything of the preview's file in front of its full image: header and overviews.

    GDAL's COG driver would look at every pixel of the tile, also of one that holds a small island.

    Args:
      half: of `reduced`.
      offsets, sizes: (tiles_down, tiles_across) of the full image's tiles, from the first of them on; 0 is not stored.
      layout: of the preview.

    Returns:
      The bytes, and how many of them are the header.
    """
    data, tables = pyramid_header(layout, OVERVIEWS)
    out = bytearray(data)
    levels = [half.pixels]
    for _ in OVERVIEWS[1:]:
        levels.append(_halved(levels[-1]))
    whole = io.BytesIO()  # its value is the buffer itself: a list of tiles would be joined to a copy of 100 MB
    whole.write(out)
    T = layout.tile_px
    for n in reversed(range(len(levels))):  # a reader that zooms in finds the small images in front
        factor = OVERVIEWS[n]
        height, width = -(-layout.height_px // factor), -(-layout.width_px // factor)
        shape = -(-height // T), -(-width // T)
        where, lengths = np.zeros(shape, np.uint64), np.zeros(shape, np.uint64)
        top, left = half.row * T // factor, half.col * T // factor
        for place, pixels in _squares(levels[n][: height - top, : width - left], top, left, layout):
            body = encode_tile(pixels, layout)
            if body:
                where[place], lengths[place] = whole.tell(), len(body)
                whole.write(body)
        tables[n + 1].fill(out, where, lengths)
    tables[0].fill(out, np.where(sizes > 0, offsets + np.uint64(whole.tell()), 0).astype(np.uint64), sizes)
    whole.seek(0)
    whole.write(out)
    return whole.getvalue(), len(out)


def _halved(picture: Picture) -> Picture:
    """Means of 2 x 2 pixels, of those with data."""
    h, w = -(-picture.shape[0] // 2), -(-picture.shape[1] // 2)
    means = np.empty((h, w, 3), np.uint8)
    for top in range(0, h, HALVED_ROWS):
        rows = min(HALVED_ROWS, h - top)
        part = picture[2 * top : 2 * (top + rows)]
        even = np.zeros((2 * rows, 2 * w, 3), np.uint8)
        even[: part.shape[0], : part.shape[1]] = part
        total = _four(even.astype(np.uint16))
        mean = (total + 2) >> 2
        there = _four((even > 0).astype(np.uint8)).astype(np.uint16)
        some = there < 4
        mean[some] = (total[some] + there[some] // 2) // np.maximum(there[some], 1)
        means[top : top + rows] = mean
    return means


def _four(values: NDArray[Any]) -> NDArray[Any]:
    """Sums of 2 x 2 pixels."""
    rows = values[::2] + values[1::2]
    total: NDArray[Any] = rows[:, ::2] + rows[:, 1::2]
    return total


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
