"""TIFF: the header of a tiled single-band GeoTIFF from the first bytes of its file, and which bytes a window needs."""

import dataclasses
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

# TIFF 6.0 (sections 8 and 15), TechNote 3, GeoTIFF 1.1 (OGC 19-008r4), GDAL's GTiff page.
SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 254, 256, 257, 258, 259, 262, 266
SAMPLES, PLANAR, PREDICTOR, TILE_WIDTH, TILE_HEIGHT, OFFSETS, COUNTS = 277, 284, 317, 322, 323, 324, 325
SAMPLE_FORMAT, JPEG_TABLES, PIXEL_SCALE, TIE_POINTS, MATRIX, GEO_KEYS = 339, 347, 33550, 33922, 34264, 34735
GDAL_METADATA, GDAL_NODATA, LERC_PARAMETERS = 42112, 42113, 50674
_WANTED = frozenset(
    (
        *(SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, SAMPLES, PLANAR, PREDICTOR, TILE_WIDTH),
        *(TILE_HEIGHT, OFFSETS, COUNTS, SAMPLE_FORMAT, JPEG_TABLES, PIXEL_SCALE, TIE_POINTS, MATRIX, GEO_KEYS),
        *(GDAL_METADATA, GDAL_NODATA, LERC_PARAMETERS),
    )
)
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_NUMBERS = {1: "u1", 3: "u2", 4: "u4", 12: "f8", 16: "u8"}  # what the numeric tags above may be stored as
_KINDS = {1: "uint", 2: "int", 3: "float"}  # SampleFormat; 4 is "undefined", 5 and 6 are complex

# Limits: a Sentinel-2 band has 121 tiles of 1024 px and 2 KB of header; the longest files known (Sentinel-1 RTC of
# Planetary Computer, 29,000 px with tiles of 512) have 2,400 tiles. Far above both, and still nothing to choke on.
MAX_HEADER_BYTES = 4 << 20  # what is not within the file's first 4 MiB is not laid out for the cloud
MAX_METADATA_BYTES = 256 << 10  # words that nothing here depends on are left out where they lie further in
MAX_TILE_BYTES = 64 << 20  # decoded
MAX_SIDE_PX = 1 << 24
MAX_ENTRIES = 4096
# Read rather than a second request. At 20 ms and 100 MB/s a request is worth 2 MB, but no more than 1.1 bytes may move
# for one that is needed, and a row of two tiles of 1024 px is some 2 MB.
GAP_BYTES = 32 << 10
MAX_RANGE_BYTES = 16 << 20  # longer ones are cut between tiles: less to hold, and to fetch again after a fault


class NotACog(Exception):
    """A file that is no tiled single-band GeoTIFF with its header in front; the message is the reason."""


class Damaged(Exception):
    """Tiles that do not decode to what was written; the message is the reason."""


class MoreNeeded(Exception):
    """The header goes on after the bytes that were given: `stop` of the file's first bytes are needed."""

    def __init__(self, stop: int) -> None:
        super().__init__(stop)
        self.stop = stop


class Tag(NamedTuple):
    """A TIFF field as it is stored: `raw` are `values` values of TIFF type `kind` in the file's byte order."""

    kind: int
    values: int
    raw: bytes


class Window(NamedTuple):
    """A rectangle in the pixels of a file."""

    row_px: int
    col_px: int
    height_px: int
    width_px: int


@dataclasses.dataclass(frozen=True, eq=False)
class Header:
    """What the first (full resolution) image of a file is, and where its tiles lie.

    Attributes:
      height_px, width_px, tile_height_px, tile_width_px: sizes; tiles at the right and lower edge are whole ones.
      dtype: numpy name, as GDAL reads it.
      compression, predictor: TIFF's numbers (8 deflate, 50000 ZSTD, 5 LZW, 1 none; 1 none, 2 integer, 3 float).
      nodata: as rasterio gives it; None where there is none, or one that the dtype cannot hold.
      epsg: of the CRS; None where it has no code.
      transform: (a, b, c, d, e, f) as rasterio has it; None where the file has none that is affine.
      offsets, counts: (tiles down, tiles across) uint64, bytes; both 0 for a tile that is not stored.
      order: "<" or ">".
      tags: the other fields that this module knows, as stored.
      stop: the header's tags lie in the file's first `stop` bytes.
    """

    height_px: int
    width_px: int
    tile_height_px: int
    tile_width_px: int
    dtype: str
    compression: int
    predictor: int
    nodata: float | None
    epsg: int | None
    transform: tuple[float, float, float, float, float, float] | None
    offsets: npt.NDArray[np.uint64]
    counts: npt.NDArray[np.uint64]
    order: str
    tags: Mapping[int, Tag]
    stop: int

    @property
    def size_bytes(self) -> int:
        """Memory that it takes, roughly."""
        return 4096 + self.offsets.nbytes + self.counts.nbytes + sum(200 + len(tag.raw) for tag in self.tags.values())

    def number(self, tag: int, default: int) -> int:
        return _one(self.tags, tag, self.order, default)

    def text(self, tag: int) -> str:
        """A text field such as GDAL_METADATA (XML), "" where there is none."""
        return _text(self.tags, tag)


def parse_header(start: bytes, total_bytes: int) -> Header:
    """The header of a file of which `start` are the first bytes.

    Raises:
      MoreNeeded: `start` is too short, and with how many bytes to go on.
      NotACog: not a TIFF, or one in strips, with several bands, a header behind the pixels, tiles outside the file or
        over one another, or sizes that no such file has.
    """
    order, big, at = _preamble(start, total_bytes)
    tags, stop = _fields(start, total_bytes, order, big, at)
    if _one(tags, SUBFILE, order, 0):
        raise NotACog("its first image is an overview or a mask")
    if (bands := _one(tags, SAMPLES, order, 1)) != 1:
        raise NotACog(f"the file has {bands} bands, one was expected")
    if not {TILE_WIDTH, TILE_HEIGHT, OFFSETS, COUNTS} <= tags.keys():
        raise NotACog("it is stored in strips, not in tiles; remote files must be COGs")
    height, width = (_one(tags, tag, order) for tag in (HEIGHT, WIDTH))
    tile_height, tile_width = (_one(tags, tag, order) for tag in (TILE_HEIGHT, TILE_WIDTH))
    dtype = _dtype(tags, order)
    if not (0 < height <= MAX_SIDE_PX and 0 < width <= MAX_SIDE_PX):
        raise NotACog(f"a raster of {height:,} x {width:,} px")
    if not (tile_height and tile_width) or tile_height % 16 or tile_width % 16:
        raise NotACog(f"tiles of {tile_height:,} x {tile_width:,} px: TIFF wants multiples of 16")
    tile_bytes = tile_height * tile_width * np.dtype(dtype).itemsize
    if tile_bytes > MAX_TILE_BYTES:
        raise NotACog(f"tiles of {tile_height:,} x {tile_width:,} px: {tile_bytes:,} bytes each")
    if _one(tags, FILL_ORDER, order, 1) != 1 or _one(tags, PHOTOMETRIC, order, 1) not in (1, 3):
        raise NotACog("its bits are reversed or its values inverted (FillOrder, PhotometricInterpretation)")
    if (predictor := _one(tags, PREDICTOR, order, 1)) not in (1, 2, 3):
        raise NotACog(f"predictor {predictor}: 1, 2 and 3 are known")
    shape = -(-height // tile_height), -(-width // tile_width)
    offsets, counts = (_numbers(tags[tag], order) for tag in (OFFSETS, COUNTS))
    if len(offsets) != shape[0] * shape[1] or len(counts) != len(offsets):
        raise NotACog(f"{len(offsets):,} tiles and {len(counts):,} sizes are listed for {shape[0]} x {shape[1]} tiles")
    _check_tiles(offsets, counts, total_bytes, 2 * tile_bytes + 1024)  # no codec doubles what it is given
    return Header(
        height_px=height,
        width_px=width,
        tile_height_px=tile_height,
        tile_width_px=tile_width,
        dtype=dtype,
        compression=_one(tags, COMPRESSION, order, 1),
        predictor=predictor,
        nodata=_nodata(tags, dtype),
        epsg=_epsg(tags, order),
        transform=_transform(tags, order),
        offsets=offsets.astype(np.uint64).reshape(shape),
        counts=counts.astype(np.uint64).reshape(shape),
        order=order,
        tags={tag: field for tag, field in tags.items() if tag not in (OFFSETS, COUNTS)},
        stop=stop,
    )


def is_tiled(start: bytes) -> bool:
    """Whether a file that begins so is a TIFF whose first directory is among these bytes and speaks of tiles."""
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    if order is None or len(start) < 16:
        return False
    big = struct.unpack(order + "H", start[2:4])[0] == 43
    (at,) = struct.unpack(order + ("Q" if big else "I"), start[8:16] if big else start[4:8])
    head, entry = (8, 20) if big else (2, 12)
    entries = int.from_bytes(start[at : at + head], "little" if order == "<" else "big")
    stop = min(len(start) - 1, at + head + entry * min(entries, MAX_ENTRIES))
    found = {struct.unpack_from(order + "H", start, i)[0] for i in range(at + head, stop, entry)}
    return bool(found & {TILE_WIDTH, TILE_HEIGHT})


def _preamble(start: bytes, total_bytes: int) -> tuple[str, bool, int]:
    """Byte order, whether it is a BigTIFF, and where the first directory lies."""
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    magic = struct.unpack(order + "H", start[2:4])[0] if order and len(start) >= 4 else None
    if (len(start) >= 4 and magic not in (42, 43)) or len(start) == total_bytes < 16:
        raise NotACog(_other_format(start))
    _within(start, total_bytes, 0, 16)
    assert order is not None  # there are 4 bytes, and they begin a TIFF
    if magic == 42:
        return order, False, struct.unpack(order + "I", start[4:8])[0]
    if struct.unpack(order + "HH", start[4:8]) != (8, 0):
        raise NotACog("a BigTIFF whose offsets are not of 8 bytes")
    return order, True, struct.unpack(order + "Q", start[8:16])[0]


def _other_format(start: bytes) -> str:
    head = start.lstrip(b"\xef\xbb\xbf\r\n\t ")[:16].lower()
    if not start:
        return "it is empty"
    if head.startswith(b"<vrt"):
        return "it is a VRT, not a GeoTIFF: such files name other files, and are never opened"
    if head.startswith(b"<"):
        return "it is a page of HTML or XML, not a GeoTIFF"
    if start[4:6] == b"jP" or start.startswith(b"\xff\x4f\xff\x51"):
        return "it is a JPEG 2000 file, not a GeoTIFF"
    return "it is not a GeoTIFF"


def _within(start: bytes, total_bytes: int, at: int, size: int) -> bytes:
    """`size` bytes of the header from `at` on."""
    stop = at + size
    if stop > total_bytes:
        raise NotACog(f"its header leads to byte {stop:,}, the file has {total_bytes:,}")
    if stop > MAX_HEADER_BYTES:
        raise NotACog(f"its header leads to byte {stop:,}: it is not laid out as a COG, header first")
    if stop > len(start):
        raise MoreNeeded(stop)
    return start[at:stop]


def _fields(start: bytes, total_bytes: int, order: str, big: bool, at: int) -> tuple[dict[int, Tag], int]:
    """The fields that are wanted of the directory at `at`, and where the last of their bytes lies."""
    head, entry, inline = (8, 20, 8) if big else (2, 12, 4)
    if at < 8:
        raise NotACog("it holds no image")
    (entries,) = struct.unpack(order + ("Q" if big else "H"), _within(start, total_bytes, at, head))
    if not 0 < entries <= MAX_ENTRIES:
        raise NotACog(f"a directory of {entries:,} fields")
    body = _within(start, total_bytes, at + head, entries * entry)
    where: dict[int, tuple[int, int, int]] = {}  # type, count, place of the values
    for i in range(0, len(body), entry):
        tag, kind, count = struct.unpack_from(order + ("HHQ" if big else "HHI"), body, i)
        if tag not in _WANTED:
            continue
        if tag in where or kind not in _SIZES or not count:
            raise NotACog(f"its field {tag} is listed twice, empty or of an unknown type")
        place = at + head + i + entry - inline
        if count * _SIZES[kind] > inline:
            (place,) = struct.unpack_from(order + ("Q" if big else "I"), body, i + entry - inline)
        if tag != GDAL_METADATA or place + count <= min(total_bytes, MAX_METADATA_BYTES):
            where[tag] = kind, count, place
    stop = max([at + head + len(body)] + [place + count * _SIZES[kind] for kind, count, place in where.values()])
    _within(start, total_bytes, 0, stop)
    tags = {t: Tag(k, n, start[place : place + n * _SIZES[k]]) for t, (k, n, place) in where.items()}
    return tags, stop


def _numbers(tag: Tag, order: str) -> npt.NDArray[Any]:
    if tag.kind not in _NUMBERS:
        raise NotACog(f"numbers were expected where a field has type {tag.kind}")
    return np.frombuffer(tag.raw, order + _NUMBERS[tag.kind])


def _one(tags: Mapping[int, Tag], tag: int, order: str, default: int | None = None) -> int:
    if tag not in tags:
        if default is None:
            raise NotACog(f"it lacks field {tag}")
        return default
    value = _numbers(tags[tag], order)
    if len(value) != 1 or not np.issubdtype(value.dtype, np.integer):
        raise NotACog(f"one whole number was expected in field {tag}")
    return int(value[0])


def _text(tags: Mapping[int, Tag], tag: int) -> str:
    if tag not in tags:
        return ""
    return tags[tag].raw.partition(b"\0")[0].decode("utf-8", "replace")


def _dtype(tags: Mapping[int, Tag], order: str) -> str:
    """As GDAL reads it: unsigned numbers of 1 to 15 bits (NBITS) are held in the next larger type."""
    bits, kind = _one(tags, BITS, order, 1), _one(tags, SAMPLE_FORMAT, order, 1)
    held = next((size for size in (8, 16, 32, 64) if bits <= size), 0)
    whole = bits == held and (kind, bits) not in ((3, 8), (3, 16))
    if kind not in _KINDS or not bits or not (whole or (kind == 1 and bits < 16)):
        raise NotACog(f"samples of {bits} bits and kind {kind} are not read")
    return f"{_KINDS[kind]}{held}"


def _nodata(tags: Mapping[int, Tag], dtype: str) -> float | None:
    if GDAL_NODATA not in tags:
        return None
    said = _text(tags, GDAL_NODATA).strip()
    try:
        value = float(said)
    except ValueError:
        raise NotACog(f"its nodata value is {said[:40]!r}") from None
    if np.dtype(dtype).kind != "f":
        limits = np.iinfo(dtype)
        return value if limits.min <= value <= limits.max else None  # no pixel can hold it
    return value


def _keys(tags: Mapping[int, Tag], order: str) -> dict[int, int]:
    """The GeoKeys that are numbers of their own."""
    if GEO_KEYS not in tags:
        return {}
    values = _numbers(tags[GEO_KEYS], order)
    rows = values[4 : len(values) // 4 * 4].reshape(-1, 4)
    return {int(key): int(value) for key, place, count, value in rows if place == 0 and count == 1}


def _epsg(tags: Mapping[int, Tag], order: str) -> int | None:
    """GTModelType 1 is projected, with its code in 3072; 2 is geographic, 2048. 32767 is "defined by hand"."""
    keys = _keys(tags, order)
    code = keys.get({1: 3072, 2: 2048}.get(keys.get(1024, 0), 0), 0)
    return code if 1024 <= code < 32767 else None


def _transform(tags: Mapping[int, Tag], order: str) -> tuple[float, float, float, float, float, float] | None:
    def floats(tag: int) -> list[float]:
        return [float(v) for v in _numbers(tags[tag], order)] if tag in tags else []

    scale, ties, matrix = floats(PIXEL_SCALE), floats(TIE_POINTS), floats(MATRIX)
    if len(scale) >= 2 and scale[0] > 0 and scale[1] > 0 and len(ties) == 6:
        a, b, d, e = scale[0], 0.0, 0.0, -scale[1]
        c, f = ties[3] - ties[0] * a, ties[4] - ties[1] * e
    elif not scale and len(matrix) == 16:
        a, b, c, d, e, f = (matrix[k] for k in (0, 1, 3, 4, 5, 7))
    else:
        return None
    if _keys(tags, order).get(1025) == 2:  # GTRasterType: the coordinates are of pixel centres
        c, f = c - (a + b) / 2, f - (d + e) / 2
    return (a, b, c, d, e, f) if all(np.isfinite((a, b, c, d, e, f))) else None


def _check_tiles(offsets: npt.NDArray[Any], counts: npt.NDArray[Any], total_bytes: int, most_bytes: int) -> None:
    """Every tile lies within the file, is of a size that can be, and shares its bytes with no other."""
    if not (np.issubdtype(offsets.dtype, np.unsignedinteger) and np.issubdtype(counts.dtype, np.unsignedinteger)):
        raise NotACog("its tiles' places are no whole numbers")
    if ((offsets == 0) != (counts == 0)).any():
        raise NotACog("a tile has a place and no size, or a size and no place")
    if counts.max() > most_bytes:
        raise NotACog("a tile is larger than it can be")
    if counts.max() > total_bytes or offsets.max() > total_bytes:
        raise NotACog(f"it ends early, or its index is damaged: a tile leads out of the file's {total_bytes:,} bytes")
    at, size = offsets.astype(np.int64), counts.astype(np.int64)  # the file's size fits
    if (at + size).max() > total_bytes:
        raise NotACog(f"a tile ends at byte {(at + size).max():,}, the file has {total_bytes:,}")
    both = np.unique(np.stack([at, size])[:, size > 0], axis=1)  # by place; equal tiles may be stored once
    if (both[0, :-1] + both[1, :-1] > both[0, 1:]).any() or (both.size and both[0, 0] < 8):
        raise NotACog("its tiles lie over one another")


@dataclasses.dataclass(frozen=True)
class Range:
    """Bytes [start, stop) of a file, and the tiles (row, column) that they hold."""

    start: int
    stop: int
    tiles: tuple[tuple[int, int], ...]


def tiles_of(header: Header, window: Window) -> tuple[range, range]:
    """Rows and columns of the tiles that a window touches.

    Raises:
      ValueError: an empty window, or one that leaves the raster.
    """
    row, col, height, width = window
    if min(row, col) < 0 or min(height, width) < 1 or row + height > header.height_px or col + width > header.width_px:
        raise ValueError(f"{window} is not within {header.height_px} x {header.width_px} px")
    th, tw = header.tile_height_px, header.tile_width_px
    return range(row // th, (row + height - 1) // th + 1), range(col // tw, (col + width - 1) // tw + 1)


def plan(header: Header, window: Window, gap_bytes: int = GAP_BYTES) -> list[Range]:
    """The ranges that hold a window's tiles, in the file's order; none for tiles that are not stored.

    Neighbours in the file are one range where at most `gap_bytes` lie between them: a row of internal tiles as a rule,
    several rows where the window is as wide as the raster. No range of several tiles is over MAX_RANGE_BYTES.

    Raises:
      ValueError: as `tiles_of`.
    """
    rows, cols = tiles_of(header, window)
    places = [(int(header.offsets[i, j]), int(header.counts[i, j]), (i, j)) for i in rows for j in cols]
    out: list[Range] = []
    for start, size, tile in sorted(place for place in places if place[1]):
        last = out[-1] if out else None
        if last and start - last.stop <= gap_bytes and start + size - last.start <= MAX_RANGE_BYTES:
            out[-1] = Range(last.start, max(last.stop, start + size), (*last.tiles, tile))
        else:
            out.append(Range(start, start + size, (tile,)))
    return out
