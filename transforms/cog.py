"""COG: a Cloud-Optimized GeoTIFF as a header in front of tiles that are compressed on their own, in any order."""

import dataclasses
import functools
import math
import struct
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import rasterio
from rasterio.io import DatasetWriter, MemoryFile

from model.errors import BadInput

TILE_PX = 128  # facts/checked.md 3.D: 4 times cheaper than 256 for points and chips, for 0.3 % more bytes
ZSTD_LEVEL = 1  # facts/checked.md 3.D: levels 1, 3 and 9 give the same size after predictor 2


class Deflate(NamedTuple):
    """Parameters of zlib."""

    level: int
    memory: int
    strategy: int


# What the predictor leaves is noise and runs: Z_RLE took 7 ms and 140 KB for a tile of 1024 px with 10 % of data, where
# the default strategy took 8 ms and 157 KB at level 1, 19 ms and 149 KB at level 6.
DEFLATE = Deflate(level=1, memory=9, strategy=zlib.Z_RLE)

_TILE_OFFSETS = 324  # TIFF 6.0, section 15
_TILE_BYTE_COUNTS = 325
_NUMBERS: dict[int, np.dtype[Any]] = {  # TIFF types SHORT, LONG, LONG8
    3: np.dtype("<u2"),
    4: np.dtype("<u4"),
    16: np.dtype("<u8"),
}
_DTYPES = frozenset({"uint8", "int8", "uint16", "int16", "uint32", "int32", "float32"})


@dataclasses.dataclass(frozen=True)
class Layout:
    """Everything about a file but its pixels: equal layouts have headers of equal length.

    Attributes:
      height_px, width_px, bands: size of the raster.
      dtype: numpy name, one of uint8 int8 uint16 int16 uint32 int32 float32.
      tile_px: side of an internal tile, a multiple of 16.
      nodata: the file's nodata value, NaN allowed, or None. What is not stored reads as this (as 0 where None).
      epsg: of the grid.
      transform: (a, b, c, d, e, f) as rasterio has it, x = a col + b row + c; north-up: b = d = 0, e < 0.
      band_names: descriptions, one a band, or ().
      tags: (key, value) pairs of the file's GDAL metadata.
      codec: "zstd" or "deflate".
      predictor: 1 none, 2 horizontal differences (integers), 3 floating point (float32).
    """

    height_px: int
    width_px: int
    bands: int
    dtype: str
    tile_px: int
    nodata: float | None
    epsg: int
    transform: tuple[float, float, float, float, float, float]
    band_names: tuple[str, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()
    codec: str = "zstd"
    predictor: int = 2

    def __post_init__(self) -> None:
        if min(self.height_px, self.width_px, self.bands) < 1:
            raise BadInput(f"a raster of {self.height_px} x {self.width_px} x {self.bands}: no side may be under 1")
        if self.dtype not in _DTYPES:
            raise BadInput(f"dtype {self.dtype!r}: a COG of ours holds one of {', '.join(sorted(_DTYPES))}")
        if self.tile_px < 16 or self.tile_px % 16:
            raise BadInput(f"tiles of {self.tile_px} px: TIFF wants a multiple of 16")
        if self.codec not in ("zstd", "deflate"):
            raise BadInput(f"codec {self.codec!r}: it must be zstd or deflate")
        floating = np.dtype(self.dtype).kind == "f"
        if self.predictor not in ((1, 3) if floating else (1, 2)):
            raise BadInput(f"predictor {self.predictor} for {self.dtype}: 2 is for integers, 3 for float32, 1 for both")
        if self.nodata is not None and not floating:
            limits = np.iinfo(self.dtype)
            if not (limits.min <= self.nodata <= limits.max and float(self.nodata).is_integer()):
                raise BadInput(f"nodata {self.nodata} does not fit {self.dtype}")
        _, b, _, d, e, _ = self.transform
        if b or d or e >= 0:
            raise BadInput(f"transform {self.transform}: only north-up grids are written (b = d = 0, e < 0)")
        if self.band_names and len(self.band_names) != self.bands:
            raise BadInput(f"{len(self.band_names)} band names for {self.bands} bands")

    @property
    def tiles_down(self) -> int:
        return -(-self.height_px // self.tile_px)

    @property
    def tiles_across(self) -> int:
        return -(-self.width_px // self.tile_px)

    @property
    def fill(self) -> float:
        """The value of pixels that are not stored."""
        return 0 if self.nodata is None else self.nodata


def predicted(pixels: npt.NDArray[np.generic], predictor: int) -> npt.NDArray[Any]:
    """One tile (row, column, band) after the TIFF predictor, before compression: contiguous, little-endian."""
    rows, cols, bands = pixels.shape
    if predictor == 2:
        plain = np.ascontiguousarray(pixels).view(f"u{pixels.itemsize}")  # differences wrap at the sample's width
        steps = np.empty(plain.shape, f"<u{pixels.itemsize}")
        steps[:, :1] = plain[:, :1]
        np.subtract(plain[:, 1:], plain[:, :-1], out=steps[:, 1:])
        return steps
    little = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("<"), copy=False))
    if predictor == 1:
        return little
    # Adobe Photoshop TIFF Technical Note 3: a row's bytes by significance, highest first, then byte differences
    # from the sample one pixel earlier, across the borders of the byte planes too.
    raw = little.view(np.uint8).reshape(rows, cols * bands, pixels.itemsize)
    planes = raw[:, :, ::-1].transpose(0, 2, 1).reshape(rows, cols * pixels.itemsize, bands)
    out = planes.copy()
    np.subtract(planes[:, 1:], planes[:, :-1], out=out[:, 1:])
    return out


def encode_tile(pixels: npt.NDArray[np.generic], layout: Layout) -> bytes:
    """Compresses one internal tile.

    Args:
      pixels: (tile_px, tile_px, bands) of the layout's dtype.

    Returns:
      One ZSTD frame or zlib stream; b"" where every sample is nodata, for such tiles are not stored.

    Raises:
      BadInput: another shape or dtype.
    """
    wanted = (layout.tile_px, layout.tile_px, layout.bands)
    if pixels.shape != wanted or pixels.dtype != np.dtype(layout.dtype):
        raise BadInput(f"a tile of {pixels.shape} {pixels.dtype}: the layout wants {wanted} {layout.dtype}")
    empty = np.isnan(pixels) if math.isnan(layout.fill) else pixels == pixels.dtype.type(layout.fill)
    if empty.all():
        return b""
    data = predicted(pixels, layout.predictor)
    if layout.codec == "deflate":
        deflate = zlib.compressobj(DEFLATE.level, zlib.DEFLATED, zlib.MAX_WBITS, DEFLATE.memory, DEFLATE.strategy)
        return deflate.compress(data.data) + deflate.flush()
    packed: bytes = pa.Codec("zstd", compression_level=ZSTD_LEVEL).compress(pa.py_buffer(data), asbytes=True)
    return packed


def decode_tile(data: bytes, layout: Layout) -> npt.NDArray[np.generic]:
    """The pixels (tile_px, tile_px, bands) that `encode_tile` was given; all nodata for b"".

    Raises:
      BadInput: the data is damaged or of another layout.
    """
    dtype = np.dtype(layout.dtype)
    shape = (layout.tile_px, layout.tile_px, layout.bands)
    if not data:
        return np.full(shape, layout.fill, dtype)
    size = math.prod(shape) * dtype.itemsize
    try:
        if layout.codec == "deflate":
            plain = zlib.decompress(data, bufsize=size)
        else:
            plain = pa.Codec("zstd").decompress(data, decompressed_size=size, asbytes=True)
    except (zlib.error, OSError, ValueError) as e:
        raise BadInput(f"a tile of {len(data)} bytes is not {layout.codec} data: {e}") from None
    if len(plain) != size:
        raise BadInput(f"a tile of {len(plain)} bytes: the layout's tiles have {size}")
    if layout.predictor == 3:
        rows, cols, bands = shape
        steps = np.frombuffer(plain, np.uint8).reshape(rows, cols * dtype.itemsize, bands)
        planes = np.cumsum(steps, axis=1, dtype=np.uint8).reshape(rows, dtype.itemsize, cols * bands)
        little = np.ascontiguousarray(planes.transpose(0, 2, 1)[:, :, ::-1])
        return little.view(dtype.newbyteorder("<")).reshape(shape).astype(dtype, copy=False)
    if layout.predictor == 2:
        unsigned = np.frombuffer(plain, f"<u{dtype.itemsize}").reshape(shape)
        return np.cumsum(unsigned, axis=1, dtype=unsigned.dtype).astype(f"u{dtype.itemsize}", copy=False).view(dtype)
    return np.frombuffer(plain, dtype.newbyteorder("<")).reshape(shape).astype(dtype)


def encode_window(pixels: npt.NDArray[np.generic], layout: Layout) -> list[bytes]:
    """Compresses the tiles that cover a window whose north-west corner is a tile's, row by row.

    Args:
      pixels: (height, width, bands) of the layout's dtype, any height and width; the last tiles are filled with nodata.

    Raises:
      BadInput: another number of bands or another dtype.
    """
    height, width, bands = pixels.shape
    if bands != layout.bands or pixels.dtype != np.dtype(layout.dtype):
        raise BadInput(f"a window of {bands} bands {pixels.dtype}: the layout wants {layout.bands} {layout.dtype}")
    side = layout.tile_px
    tiles = []
    for row in range(0, height, side):
        for col in range(0, width, side):
            tile = pixels[row : row + side, col : col + side]
            if tile.shape[:2] != (side, side):
                whole = np.full((side, side, bands), layout.fill, layout.dtype)
                whole[: tile.shape[0], : tile.shape[1]] = tile
                tile = whole
            tiles.append(encode_tile(tile, layout))
    return tiles


@dataclasses.dataclass(frozen=True)
class Template:
    """GDAL's own header for a layout, and where its tile tables stand.

    Attributes:
      data: the header, its tables all zero.
      offsets_at, counts_at: position of TileOffsets and TileByteCounts.
      offsets_type, counts_type: width of their numbers, which libtiff chooses by the size of a tile.
    """

    data: bytes
    offsets_at: int
    counts_at: int
    offsets_type: np.dtype[Any]
    counts_type: np.dtype[Any]

    def fill(self, out: bytearray, offsets: npt.NDArray[np.uint64], counts: npt.NDArray[np.uint64]) -> None:
        """Writes the tile tables into a copy of the header."""
        np.frombuffer(out, self.offsets_type, offsets.size, self.offsets_at)[:] = offsets.ravel()
        np.frombuffer(out, self.counts_type, counts.size, self.counts_at)[:] = counts.ravel()


def directories(data: bytes) -> list[int]:
    """Positions of the directories of a little-endian BigTIFF: the image first, then its overviews.

    Raises:
      BadInput: other bytes.
    """
    order, version, width, zero, at = struct.unpack_from("<2sHHHQ", data)
    if (order, version, width, zero) != (b"II", 43, 8, 0):
        raise BadInput(f"GDAL wrote no little-endian BigTIFF but {data[:16].hex()}; a GDAL with BIGTIFF=YES is needed")
    found = []
    while at:
        found.append(at)
        (entries,) = struct.unpack_from("<Q", data, at)
        (at,) = struct.unpack_from("<Q", data, at + 8 + 20 * entries)
    return found


def _table(data: bytes, wanted: int, directory: int) -> tuple[int, np.dtype[Any], int]:
    """Position, number type and length of a tag of one directory."""
    (entries,) = struct.unpack_from("<Q", data, directory)
    for at in range(directory + 8, directory + 8 + 20 * entries, 20):
        tag, kind, count, value = struct.unpack_from("<HHQQ", data, at)
        if tag == wanted:
            dtype = _NUMBERS[kind]
            return (at + 12 if count * dtype.itemsize <= 8 else value), dtype, count  # short values stand in the entry
    raise BadInput(f"GDAL's header has no tag {wanted}: it wrote no tiled file")


@functools.lru_cache(maxsize=64)  # a whole-tile header has 100 KB; one run has five layouts a tile
def _template(layout: Layout, nodata: str) -> Template:
    """The header of `layout` (whose own nodata is None: NaN would not be equal to itself) with this nodata."""
    profile = template_profile(layout) | {"nodata": float(nodata) if nodata else None}
    with MemoryFile() as memory:
        with memory.open(**profile) as dst:
            describe(dst, layout)
        data = bytes(memory.read())
    return template_from(data, directories(data)[0], layout.tiles_down * layout.tiles_across)


def template_from(data: bytes, directory: int, tiles: int) -> Template:
    offsets_at, offsets_type, found = _table(data, _TILE_OFFSETS, directory)
    counts_at, counts_type, _ = _table(data, _TILE_BYTE_COUNTS, directory)
    if found != tiles:
        raise BadInput(f"GDAL's header has {found} tiles, not {tiles}")
    return Template(data, offsets_at, counts_at, offsets_type, counts_type)


def describe(dst: DatasetWriter, layout: Layout) -> None:
    """Gives an open file the layout's band names and tags."""
    for band, name in enumerate(layout.band_names, 1):
        dst.set_band_description(band, name)
    if layout.tags:
        dst.update_tags(**dict(layout.tags))


def template_profile(layout: Layout) -> dict[str, Any]:
    """How GDAL is to create an empty file of the layout, nodata left out."""
    return {
        "driver": "GTiff",
        "height": layout.height_px,
        "width": layout.width_px,
        "count": layout.bands,
        "dtype": layout.dtype,
        "crs": rasterio.CRS.from_epsg(layout.epsg),
        "transform": rasterio.Affine(*layout.transform),
        "tiled": True,
        "blockxsize": layout.tile_px,
        "blockysize": layout.tile_px,
        "interleave": "pixel",  # users read all bands of few pixels: one request a tile
        "compress": layout.codec,
        "predictor": layout.predictor,
        "bigtiff": "yes",  # one layout of the directory to patch, whatever the size
        "endianness": "little",  # the tiles are little-endian on every machine
        "sparse_ok": True,  # no tile is stored, so the bytes are the header alone
    }


def _template_of(layout: Layout) -> Template:
    nodata = "" if layout.nodata is None else repr(float(layout.nodata))
    return _template(dataclasses.replace(layout, nodata=None), nodata)


def empty_header(layout: Layout) -> bytes:
    """GDAL's own header of an empty sparse file of this layout: one directory, its tile tables all zero."""
    return _template_of(layout).data


def header_size(layout: Layout) -> int:
    """Bytes of the header: where the first tile of a file may begin. It does not depend on the tiles."""
    return len(_template_of(layout).data)


def header(layout: Layout, offsets: npt.ArrayLike, counts: npt.ArrayLike) -> bytes:
    """The header of a file whose tiles lie at known places.

    A file is this header followed by the tiles in any order. It is GDAL's own header of an empty sparse file with the
    two tile tables filled in, so CRS, nodata and metadata are written by GDAL.

    Args:
      offsets, counts: (tiles_down * tiles_across,) or (tiles_down, tiles_across), row by row: position from the start
        of the file (the header included) and bytes of each tile. A count of 0 is a tile that is not stored.

    Raises:
      BadInput: another number of tiles, an offset inside the header, or a tile too long for the file's table.
    """
    template = _template_of(layout)
    where = np.asarray(offsets, np.uint64).ravel()
    sizes = np.asarray(counts, np.uint64).ravel()
    tiles = layout.tiles_down * layout.tiles_across
    if where.size != tiles or sizes.size != tiles:
        raise BadInput(f"{where.size} offsets and {sizes.size} counts: the layout has {tiles} tiles")
    stored = sizes > 0
    if stored.any() and int(where[stored].min()) < len(template.data):
        raise BadInput(f"offset {where[stored].min()}: the header takes the first {len(template.data)} bytes")
    if int(sizes.max()) > np.iinfo(template.counts_type).max:
        raise BadInput(f"a tile of {sizes.max()} bytes: the file's table holds {template.counts_type} numbers")
    out = bytearray(template.data)
    template.fill(out, np.where(stored, where, 0), sizes)
    return bytes(out)


def assemble(layout: Layout, tiles: Mapping[tuple[int, int], bytes]) -> bytes:
    """A whole small file: header, then the tiles row by row; tiles that are missing or b"" are not stored.

    Args:
      tiles: encoded tiles by (row, column) of the tile grid.

    Raises:
      BadInput: a tile outside the grid.
    """
    counts = np.zeros((layout.tiles_down, layout.tiles_across), np.uint64)
    for row, col in tiles:
        if not (0 <= row < layout.tiles_down and 0 <= col < layout.tiles_across):
            raise BadInput(f"tile {row, col}: the layout has {layout.tiles_down} x {layout.tiles_across}")
        counts[row, col] = len(tiles[row, col])
    flat = counts.ravel()
    offsets = header_size(layout) + np.cumsum(flat, dtype=np.uint64) - flat
    return header(layout, offsets, counts) + b"".join(tiles[key] for key in sorted(tiles))


def write(path: Path, layout: Layout, tiles: Mapping[tuple[int, int], bytes]) -> None:
    """Writes `assemble(layout, tiles)`, so that `path` holds the whole file or what it held before.

    Raises:
      BadInput: a tile outside the grid.
      OSError: the folder cannot be written.
    """
    data = assemble(layout, tiles)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # same folder: a rename is atomic within a file system
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
