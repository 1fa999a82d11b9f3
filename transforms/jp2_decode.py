"""Decoding JPEG 2000: a JP2's grid and the pixels of a window from the tile-parts that hold them, by GDAL."""

import contextlib
import dataclasses
import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.errors
from rasterio.io import DatasetReader, MemoryFile

from transforms import jp2
from transforms.heaps import lasting
from transforms.jp2 import Codestream
from transforms.jp2_parts import EOC, LEAST_PART_BYTES, SOD, SOT, Ask, Part, plan
from transforms.tiff import Damaged, NotACog, Window
from transforms.tiff_decode import GDAL_CACHE_BYTES

DRIVER = "JP2OpenJPEG"
OPTIONS: dict[str, str | int] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_CACHEMAX": GDAL_CACHE_BYTES,
    "GDAL_NUM_THREADS": 1,  # this driver takes every core where nothing is said; our threads read different files
}


@dataclasses.dataclass(frozen=True, eq=False)
class Header:
    """What a JP2 is, in the words of `tiff.Header`.

    Attributes:
      image: its codestream, sizes and tiles.
      epsg, transform: as there. nodata: always None, for which the format has no place.
    """

    image: Codestream
    epsg: int | None
    transform: tuple[float, float, float, float, float, float] | None
    nodata: float | None = None

    @property
    def height_px(self) -> int:
        return self.image.height_px

    @property
    def width_px(self) -> int:
        return self.image.width_px

    @property
    def dtype(self) -> str:
        return self.image.dtype

    @property
    def size_bytes(self) -> int:
        """Memory that it takes, roughly."""
        return self.image.size_bytes


def is_there() -> bool:
    """Whether this GDAL was built with the one driver that is used."""
    with rasterio.Env() as env:
        return DRIVER in env.drivers()


def parse_header(start: bytes, total_bytes: int) -> Header:
    """The header of a JP2 of which `start` are the first bytes; GDAL reads the grid out of its boxes.

    Raises:
      MoreNeeded, NotACog, Damaged: as `jp2.parse`; NotACog also for what GDAL does not take for such a file.
    """
    image = jp2.parse(start, total_bytes)
    # OpenJPEG reads on until the first tile-part begins; more of it is not looked at.
    head = struct.pack(">H", jp2.SOC) + image.siz + image.others
    stub = head + struct.pack(">HHHIBBHH", SOT, 10, 0, LEAST_PART_BYTES, 0, 1, SOD, EOC)
    try:
        with _opened(image, stub) as file:
            if file.dtypes != (image.dtype,) or file.shape != (image.height_px, image.width_px):
                raise NotACog(f"GDAL takes it for {file.shape} px of {file.dtypes}")
            epsg = None if file.crs is None else file.crs.to_epsg()
            a, b, c, d, e, f = tuple(file.transform)[:6]
    except rasterio.errors.RasterioError as error:
        raise NotACog(f"GDAL does not read its header ({_words(error.__cause__ or error)})") from None
    grid = None if (a, b, c, d, e, f) == (1, 0, 0, 0, 1, 0) else (a, b, c, d, e, f)
    return Header(image, epsg, grid)


def read(header: Header, window: Window, ask: Ask) -> npt.NDArray[np.generic]:
    """A window's pixels, (height, width) of the header's dtype.

    Each tile is decoded on its own, so that what is held besides the window is one tile and one range of bytes.
    A codestream has no checksums: bytes that changed inside a tile may decode to other pixels without a word.

    Args:
      ask: brings bytes of the file; called first along the file where the places of tiles are not known, then for them.

    Raises:
      Damaged: tiles that are not where they were to be, or that do not decode.
      ValueError: as `Codestream.tiles_of`.
    """
    image = header.image
    parts = image.parts.of(image.tiles_of(window), ask)
    out = lasting((window.height_px, window.width_px), header.dtype)
    missing = {tile: [p for p in parts if p.tile == tile] for tile in {p.tile for p in parts}}
    held: dict[Part, bytes] = {}
    for span in plan(parts):
        data = ask(span.start, span.stop)
        for part in span.parts:
            held[part] = data[part.start - span.start : part.start - span.start + part.size]
        for tile in [t for t, wanted in missing.items() if all(part in held for part in wanted)]:
            wanted = missing.pop(tile)
            _paste(out, window, image, tile, jp2.alone(image, tile, [(part, held.pop(part)) for part in wanted]))
    return out


def _paste(out: npt.NDArray[np.generic], window: Window, image: Codestream, tile: int, codestream: bytes) -> None:
    """Decodes a tile, and puts what the window has of it in its place."""
    row, col, height, width = image.box_of(tile)
    top, left = max(row, window.row_px), max(col, window.col_px)
    bottom = min(row + height, window.row_px + window.height_px)
    right = min(col + width, window.col_px + window.width_px)
    try:
        with _opened(image, codestream) as file:
            if file.dtypes != (image.dtype,) or file.shape != (height, width):
                raise Damaged(f"GDAL takes tile {tile} for {file.shape} px of {file.dtypes}")
            pixels = file.read(1)
    except rasterio.errors.RasterioError as error:
        raise Damaged(f"tile {tile} does not decode ({_words(error.__cause__ or error)})") from None
    out[top - window.row_px : bottom - window.row_px, left - window.col_px : right - window.col_px] = pixels[
        top - row : bottom - row, left - col : right - col
    ]


@contextlib.contextmanager
def _opened(image: Codestream, codestream: bytes) -> Iterator[DatasetReader]:
    """A small JP2 in memory under the whole one's boxes."""
    box = struct.pack(">I4s", 8 + len(codestream), b"jp2c")
    with (
        rasterio.Env(**OPTIONS),
        MemoryFile(b"".join([image.boxes, box, codestream])) as memory,
        memory.open(driver=DRIVER, sharing=False) as file,
    ):
        yield file


def _words(error: BaseException) -> str:
    """GDAL's words without the name of the file in memory, which is another one each time."""
    return " ".join(word for word in str(error).split() if "/vsimem/" not in word)
