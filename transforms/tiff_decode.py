"""Decoding: a window's pixels from a TIFF's compressed tiles, by GDAL, and refused where they do not check."""

import struct
import zlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.errors
import rasterio.windows
from rasterio.io import MemoryFile

from transforms import tiff
from transforms.cog import predicted
from transforms.heaps import lasting
from transforms.tiff import Damaged, Header, Window

Bytes = bytes | memoryview

GDAL_CACHE_BYTES = 256 << 20  # of the process; the default is 5 % of the machine for each
_DEFLATE = (8, 32946)  # TIFF's two numbers for zlib streams
# What says how a tile is coded; geometry and places are written anew.
_COPIED = (
    *(tiff.BITS, tiff.COMPRESSION, tiff.SAMPLES, tiff.PLANAR, tiff.PREDICTOR, tiff.SAMPLE_FORMAT, tiff.JPEG_TABLES),
    *(tiff.GDAL_NODATA, tiff.LERC_PARAMETERS),
)


def decode(header: Header, window: Window, tiles: Mapping[tuple[int, int], Bytes]) -> npt.NDArray[np.generic]:
    """A window's pixels, (height, width) of the header's dtype; tiles that are not stored read as nodata, else 0.

    GDAL decodes a small file in memory that holds these tiles alone under the fields of the whole one, so that every
    codec that it knows works. It takes some damaged zlib streams for good ones (a stream that runs on past the tile is
    cut there, its checksum unseen), so each is checked: no pixel of a deflate file is other than what was written.
    LZW, ZSTD as libtiff writes it, and plain tiles carry no checksum.

    Args:
      tiles: compressed bytes by (row, column) of every stored tile that the window touches.

    Raises:
      Damaged: a tile of another length than the header says, or one that does not decode to what was written.
      ValueError: as `tiff.tiles_of`.
    """
    rows, cols = tiff.tiles_of(header, window)
    file = _small_file(header, rows, cols, tiles)
    th, tw = header.tile_height_px, header.tile_width_px
    out = lasting((window.height_px, window.width_px), header.dtype)
    try:
        with (
            rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES, GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"),
            MemoryFile(file) as memory,
            memory.open(driver="GTiff", sharing=False) as source,
        ):
            if source.dtypes != (header.dtype,) or source.shape != (len(rows) * th, len(cols) * tw):
                raise Damaged(f"GDAL takes it for {source.shape} px of {source.dtypes}")
            for i in rows:  # row by row: whole tiles are held decoded, to be checked
                top, left = i * th - window.row_px, cols[0] * tw - window.col_px  # of this row in the window
                first, last = max(top, 0), min(top + th, window.height_px)
                whole = (last - first, left, window.width_px) == (th, 0, len(cols) * tw)
                pixels = out[first:last] if whole else np.empty((th, len(cols) * tw), out.dtype)
                part = rasterio.windows.Window(0, (i - rows[0]) * th, len(cols) * tw, th)
                source.read(1, window=part, out=pixels)
                for j in cols if header.compression in _DEFLATE else ():
                    tile = pixels[:, (j - cols[0]) * tw : (j - cols[0] + 1) * tw]
                    if header.counts[i, j] and not _checks(header, tiles[i, j], tile):
                        raise Damaged(f"tile {i}, {j} is damaged: its checksum is not that of its pixels")
                if not whole:
                    out[first:last] = pixels[first - top : last - top, -left : window.width_px - left]
    except rasterio.errors.RasterioError as e:
        raise Damaged(f"its tiles do not decode ({_words(e.__cause__ or e)})") from None
    return out


def _words(error: BaseException) -> str:
    """GDAL's words without the name of the file in memory, which is another one each time."""
    return " ".join(word for word in str(error).split() if "/vsimem/" not in word)


def _small_file(header: Header, rows: range, cols: range, tiles: Mapping[tuple[int, int], Bytes]) -> bytes:
    """A BigTIFF of just these rows and columns of tiles."""
    parts: list[Bytes] = []
    for i in rows:
        for j in cols:
            part = tiles[i, j] if header.counts[i, j] else b""
            if len(part) != header.counts[i, j]:
                raise Damaged(f"tile {i}, {j} has {len(part):,} bytes where the header says {header.counts[i, j]:,}")
            parts.append(part)
    sizes = [len(part) for part in parts]
    pixels = (len(rows) * header.tile_height_px, len(cols) * header.tile_width_px)

    def numbers(*values: int) -> tuple[int, int, bytes]:
        return 16, len(values), struct.pack(f"{header.order}{len(values)}Q", *values)

    fields: dict[int, tuple[int, int, bytes]] = {tag: header.tags[tag] for tag in _COPIED if tag in header.tags}
    one, zero, step = (struct.pack(header.order + "d", v) for v in (1, 0, 10))
    fields |= {
        tiff.HEIGHT: numbers(pixels[0]),
        tiff.WIDTH: numbers(pixels[1]),
        tiff.TILE_HEIGHT: numbers(header.tile_height_px),
        tiff.TILE_WIDTH: numbers(header.tile_width_px),
        tiff.PHOTOMETRIC: (3, 1, struct.pack(header.order + "H", 1)),  # a palette would be wanted for 3
        tiff.PIXEL_SCALE: (12, 3, step + step + one),  # any place will do: rasterio warns of files without one
        tiff.TIE_POINTS: (12, 6, zero * 6),
        tiff.COUNTS: numbers(*sizes),
        tiff.OFFSETS: numbers(*sizes),  # of the same length as the places, which follow from it
    }
    at = _directory_bytes(fields)
    places = []
    for size in sizes:
        places.append(at if size else 0)
        at += size
    fields[tiff.OFFSETS] = numbers(*places)
    return b"".join([_directory(fields, header.order), *parts])


def _directory_bytes(fields: Mapping[int, tuple[int, int, bytes]]) -> int:
    return 16 + 8 + 20 * len(fields) + 8 + sum(len(raw) for _, _, raw in fields.values() if len(raw) > 8)


def _directory(fields: Mapping[int, tuple[int, int, bytes]], order: str) -> bytes:
    """A BigTIFF's first bytes and its one directory, with the values behind it."""
    magic = {"<": b"II", ">": b"MM"}[order]
    out = [magic, struct.pack(order + "HHHQQ", 43, 8, 0, 16, len(fields))]
    behind: list[bytes] = []
    at = 16 + 8 + 20 * len(fields) + 8
    for tag, (kind, count, raw) in sorted(fields.items()):
        out.append(struct.pack(order + "HHQ", tag, kind, count))
        if len(raw) > 8:
            out.append(struct.pack(order + "Q", at))
            behind.append(raw)
            at += len(raw)
        else:
            out.append(raw.ljust(8, b"\0"))
    return b"".join([*out, bytes(8), *behind])


def _checks(header: Header, stream: Bytes, pixels: npt.NDArray[np.generic]) -> bool:
    """Whether a zlib stream ends with the checksum of what it decodes to, and decodes to a whole tile.

    `pixels`, what GDAL made of it, are put back through the predictor: a tenth of the time of inflating twice.
    """
    if header.number(tiff.BITS, 1) == 8 * pixels.itemsize:
        steps = predicted(pixels[:, :, None], header.predictor)
        if header.order == ">" and steps.itemsize > 1:
            steps = steps.byteswap()
        if zlib.adler32(steps.data) == int.from_bytes(stream[-4:], "big"):
            return True
    # Padding behind the stream, samples of fewer bits: the slow way.
    whole = header.tile_height_px * (-(-header.tile_width_px * header.number(tiff.BITS, 1) // 8))
    inflate = zlib.decompressobj()
    try:
        return len(inflate.decompress(stream, whole + 1)) == whole and inflate.eof
    except zlib.error:
        return False
