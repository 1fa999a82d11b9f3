"""JP2 files as ESA writes them: lossless, in tiles, with and without a list of them; and broken ones."""

import functools
import struct

import numpy as np
from affine import Affine
from rasterio.io import MemoryFile

from transforms.fetching import FetchError, Piece, Version
from transforms.jp2_decode import DRIVER
from transforms.remote import HeaderCache, read_window

URL = "s3://eodata/a/T33TWL_B04_10m.jp2"
BOTH = (DRIVER, "GTiff")
GRID = Affine(10, 0, 399960, 0, -10, 4500000)
SOT, EOC = b"\xff\x90", b"\xff\xd9"


def jp2(pixels, tile_px=64, transform=GRID, epsg=32633, nbits=None, **options):
    """The bytes of a lossless JP2 of `pixels` (h, w), written by GDAL. options: of its driver, as TLM="YES"."""
    h, w = pixels.shape
    profile = {
        "driver": "JP2OpenJPEG", "CODEC": "JP2", "QUALITY": "100", "REVERSIBLE": "YES", "height": h, "width": w,
        "count": 1, "dtype": pixels.dtype, "TILED": "YES", "BLOCKXSIZE": tile_px, "BLOCKYSIZE": tile_px,
        "transform": transform, "crs": None if epsg is None else f"EPSG:{epsg}", **options,
    }  # fmt: skip
    if nbits is not None:
        profile["NBITS"] = nbits
    with MemoryFile() as memory:
        with memory.open(**profile) as file:
            file.write(pixels, 1)
        return bytes(memory.getbuffer())


def split(data):
    """A JP2's bytes up to its codestream, the codestream's main header, and its tile-parts as (tile, bytes)."""
    at = 0
    while data[at + 4 : at + 8] != b"jp2c":
        at += struct.unpack_from(">I", data, at)[0]
    first = at + 10
    while data[first : first + 2] != SOT:
        first += 2 + struct.unpack_from(">H", data, first + 2)[0]
    parts, here = [], first
    while data[here : here + 2] == SOT:
        tile, size = struct.unpack_from(">HI", data, here + 4)
        parts.append((tile, data[here : here + size]))
        here += size
    return data[:at], data[at + 8 : first], parts


def join(boxes, main, parts, tail=EOC):
    """The inverse of `split`."""
    stream = b"".join([main, *(part for _, part in parts), tail])
    return b"".join([boxes, struct.pack(">I4s", 8 + len(stream), b"jp2c"), stream])


def listed(data, tile_bytes=1):
    """A copy with a list of its tile-parts (TLM) that is written with so many bytes for a tile's number, 0 to 2."""
    boxes, main, parts = split(data)
    kind = {0: 0x40, 1: 0x50, 2: 0x60}[tile_bytes]
    entry = struct.Struct(">" + {0: "", 1: "B", 2: "H"}[tile_bytes] + "I")
    body = b"".join(entry.pack(*((tile, len(part)) if tile_bytes else (len(part),))) for tile, part in parts)
    return join(boxes, main + struct.pack(">HHBB", 0xFF55, 4 + len(body), 0, kind) + body, parts)


def sparse(tiles, height_px, width_px, tile_px, dtype, transform, epsg, with_list=False, nbits=None):
    """A large JP2 most of which is 0: made of its tiles, each of them encoded alone.

    Origins of tiles are multiples of 64, the code-blocks' side, times 2^5, their levels, or of a tile that is smaller
    than that in every level: the wavelets have the phase that they have at 0, 0.

    tiles: (row, column) -> pixels of that tile, whole or cut at the raster's edge.
    """
    options = {"RESOLUTIONS": 6, "transform": transform, "epsg": epsg, "nbits": nbits}
    small = jp2(np.zeros((tile_px, tile_px), dtype), tile_px, **options)
    boxes, main, _ = split(small)
    main = bytearray(main)
    struct.pack_into(">2I", main, 8, width_px, height_px)
    at = boxes.index(b"ihdr") + 4
    boxes = boxes[:at] + struct.pack(">2I", height_px, width_px) + boxes[at + 8 :]

    across, parts = -(-width_px // tile_px), []
    for i in range(-(-height_px // tile_px)):
        for j in range(across):
            if (i, j) in tiles:
                part = split(jp2(tiles[i, j], tile_px, **options))[2][0][1]
            else:
                shape = min(tile_px, height_px - i * tile_px), min(tile_px, width_px - j * tile_px)
                part = _nothing(*shape, tile_px, np.dtype(dtype), nbits)
            tile = i * across + j
            parts.append((tile, part[:4] + struct.pack(">H", tile) + part[6:]))
    data = join(boxes, bytes(main), parts)
    return listed(data) if with_list else data


@functools.cache
def _nothing(h, w, tile_px, dtype, nbits):
    """The tile-part of a tile of zeros."""
    return split(jp2(np.zeros((h, w), dtype), tile_px, RESOLUTIONS=6, nbits=nbits))[2][0][1]


def put(raw, at, fmt, *values):
    out = bytearray(raw)
    struct.pack_into(fmt, out, at, *values)
    return bytes(out)


class Shelf:
    """One file in memory behind `Fetch`; `now` gives other bytes from the n-th request on, or an error."""

    def __init__(self, data):
        self.data, self.tag = data, "v1"
        self.asked = []
        self.now = {}

    def __call__(self, url, start, stop, version):
        self.now.get(len(self.asked), lambda: None)()
        self.asked.append((start, min(stop, len(self.data))))
        found = Version(len(self.data), self.tag)
        if version not in (None, found):
            raise FetchError("changed", "the file is another one by now")
        return Piece(self.data[start:stop], found)


def some_pixels(shape=(300, 270), dtype=np.uint16, most=9000, seed=1):
    """A picture with edges and noise, so that no tile is like another; none of it 0."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    wave = (np.sin(x / 17) * np.cos(y / 23) + 1) / 2
    return (1 + wave * (most - 60) + rng.integers(0, 50, shape)).astype(dtype)


def whole(data):
    """What GDAL makes of a file, read in one piece."""
    with MemoryFile(data) as memory, memory.open(driver=DRIVER) as file:
        return file.read(1)


def get(data, window, shelf=None, cache=None):
    return read_window(URL, window, shelf or Shelf(data), headers=cache or HeaderCache(), drivers=BOTH)
