"""Files: sparse COGs of a whole tile or scene with one small picture in them."""

import functools
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from transforms.cog import DEFLATE, Layout, assemble, predicted

_ADLER = 65_521  # RFC 1950


def write_plane(path: Path, layout: Layout, plane: npt.NDArray[np.generic], row: int, col: int) -> bytes:
    """Writes a file of nodata with `plane` (H, W) at row and column, and gives its bytes.

    `layout` has one band and the codec deflate; tiles without data are not stored.
    """
    side = layout.tile_px
    fill = np.dtype(layout.dtype).type(layout.fill)
    tiles: dict[tuple[int, int], bytes] = {}
    for tile_row in range(row // side, (row + plane.shape[0] - 1) // side + 1):
        first, last = max(tile_row * side - row, 0), min((tile_row + 1) * side - row, plane.shape[0])
        for tile_col in range(col // side, (col + plane.shape[1] - 1) // side + 1):
            left, right = max(tile_col * side - col, 0), min((tile_col + 1) * side - col, plane.shape[1])
            part = plane[first:last, left:right]
            if (part == fill).all():
                continue
            rows = np.full((last - first, side, 1), fill, layout.dtype)
            x = col + left - tile_col * side
            rows[:, x : x + right - left, 0] = part
            tiles[tile_row, tile_col] = _tile(rows, row + first - tile_row * side, layout)
    data = assemble(layout, tiles)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return data


def _tile(rows: npt.NDArray[np.generic], at: int, layout: Layout) -> bytes:
    """A tile of nodata with these rows from row `at` on, as one zlib stream.

    A deflate stream may be cut at a full flush, so that the many blank rows around an island are compressed once in a
    planet: this is a third of the work of `cog.encode_tile`.
    """
    blank = np.full((1, layout.tile_px, 1), layout.fill, layout.dtype)
    still = predicted(blank, layout.predictor).tobytes()
    steps = predicted(rows, layout.predictor)
    pieces = [*_runs(still, at)]
    pieces.append((_segment(steps.data), zlib.adler32(steps.data), steps.nbytes))
    pieces += _runs(still, layout.tile_px - at - len(rows))
    low, high = 1, 0
    for _, adler, size in pieces:  # adler32_combine of zlib
        high = (high + (adler >> 16) + size * (low - 1)) % _ADLER
        low = (low + (adler & 0xFFFF) - 1) % _ADLER
    end = b"\x03\x00" + (high << 16 | low).to_bytes(4, "big")  # an empty last block (RFC 1951), then the checksum
    return b"\x78\x01" + b"".join(piece for piece, _, _ in pieces) + end


def _segment(data: bytes | memoryview) -> bytes:
    deflate = zlib.compressobj(DEFLATE.level, zlib.DEFLATED, -zlib.MAX_WBITS, DEFLATE.memory, DEFLATE.strategy)
    return deflate.compress(data) + deflate.flush(zlib.Z_FULL_FLUSH)


@functools.lru_cache(maxsize=256)  # powers of two of some ten kinds of blank row
def _run(still: bytes, power: int) -> tuple[bytes, int, int]:
    rows = still * 2**power
    return _segment(rows), zlib.adler32(rows), len(rows)


def _runs(still: bytes, count: int) -> list[tuple[bytes, int, int]]:
    """Segments of that many equal rows: compressed bytes, checksum and length of each."""
    return [_run(still, power) for power in range(count.bit_length()) if count >> power & 1]
