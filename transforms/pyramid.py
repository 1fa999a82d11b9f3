"""Pyramid: the header of a COG with overviews, GDAL's own directories one after another."""

import dataclasses
import functools
import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.errors import BadInput
from transforms.cog import Layout, Template, directories, empty_header, template_from

SMALL_PX = 512  # overviews are halved until the longest side is shorter
_NEW_SUBFILE_TYPE, _LONG, _REDUCED = 254, 4, 1  # TIFF 6.0, section 8: bit 0 is a reduced version of another image
# Georeference and metadata (GeoTIFF 1.1, GDAL's GTiff driver): of the full image alone. GDAL_NODATA stays.
_OF_THE_FULL_IMAGE = frozenset({33550, 33922, 34264, 34735, 34736, 34737, 42112})
_WIDTH_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


class Level(NamedTuple):
    """One overview whose internal tiles lie in an object of a store, one after another.

    Attributes:
      factor: by which the full image is larger.
      name: of the object, "" where no tile is stored. size_bytes, crc32c: of it.
      offsets, sizes: (tiles_down, tiles_across) uint64: place in the object and bytes of each tile; 0 is not stored.
    """

    factor: int
    name: str
    size_bytes: int
    crc32c: str
    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint64]


def factors_of(layout: Layout) -> tuple[int, ...]:
    """Factors of the overviews of a file: halved until the longest side is shorter than SMALL_PX."""
    side, factors = max(layout.height_px, layout.width_px), [1]
    while -(-side // factors[-1]) >= SMALL_PX:
        factors.append(factors[-1] * 2)
    return tuple(factors[1:])


def level_layout(layout: Layout, factor: int) -> Layout:
    """The layout of an overview: no names and tags, pixels `factor` times as large."""
    a, b, c, d, e, f = layout.transform
    return dataclasses.replace(
        layout,
        height_px=-(-layout.height_px // factor),
        width_px=-(-layout.width_px // factor),
        transform=(a * factor, b, c, d, e * factor, f),
        band_names=(),
        tags=(),
    )


def pyramid_header(layout: Layout, factors: tuple[int, ...]) -> tuple[bytes, list[Template]]:
    """The header of a file with overviews, empty, and the tables of each of its images, the full one first.

    Each directory is that of GDAL's own empty file of that size. GDAL's way to a file with empty overviews would be to
    build them, and it reads every pixel for that: a minute and gigabytes at 128 bands.

    Args:
      layout: of the full image. factors: of the overviews, ascending.
    """
    layouts = [layout, *(level_layout(layout, f) for f in factors)]
    data = _joined(tuple(empty_header(x) for x in layouts))
    found = directories(data)
    tables = [template_from(data, at, x.tiles_down * x.tiles_across) for at, x in zip(found, layouts, strict=True)]
    return data, tables


def header_with(layout: Layout, offsets: NDArray[np.uint64], sizes: NDArray[np.uint64], levels: list[Level]) -> bytes:
    """The header of a file whose overviews' objects follow it, the smallest first, and then the full image's tiles.

    Args:
      offsets, sizes: (tiles_down, tiles_across) of the full image, from its first tile on; 0 is not stored.
      levels: of all factors, ascending.
    """
    data, tables = pyramid_header(layout, tuple(level.factor for level in levels))
    out, at = bytearray(data), len(data)
    for level, table in reversed(list(zip(levels, tables[1:], strict=True))):
        table.fill(out, _placed(level.offsets, level.sizes, at), level.sizes)
        at += level.size_bytes
    tables[0].fill(out, _placed(offsets, sizes, at), sizes)
    return bytes(out)


def _placed(offsets: NDArray[np.uint64], sizes: NDArray[np.uint64], at: int) -> NDArray[np.uint64]:
    return np.where(sizes > 0, offsets + np.uint64(at), 0).astype(np.uint64)


@functools.lru_cache(maxsize=16)  # the files of one run have the same few headers but for their tags
def _joined(headers: tuple[bytes, ...]) -> bytes:
    """One file of the directories of several, the first as it is, the others as reduced images behind it."""
    out = bytearray(headers[0])
    (last,) = directories(headers[0])
    for data in headers[1:]:
        out += bytes(-len(out) % 8)  # BigTIFF: values lie at multiples of 8
        (entries,) = struct.unpack_from("<Q", out, last)
        struct.pack_into("<Q", out, last + 8 + 20 * entries, len(out))
        last = len(out)
        out += _directory(data, last)
    return bytes(out)


def _directory(data: bytes, at: int) -> bytes:
    """The directory of a file with one image, with all that it points to, as that of a reduced image to lie at `at`."""
    (first,) = directories(data)
    (count,) = struct.unpack_from("<Q", data, first)
    entries = [struct.unpack_from("<HHQ8s", data, first + 8 + 20 * n) for n in range(count)]
    kept = [e for e in entries if e[0] not in _OF_THE_FULL_IMAGE and e[0] != _NEW_SUBFILE_TYPE]
    kept.insert(0, (_NEW_SUBFILE_TYPE, _LONG, 1, struct.pack("<II", _REDUCED, 0)))
    if [e[0] for e in kept] != sorted(e[0] for e in kept):
        raise BadInput("GDAL's header has its tags out of order")
    values = bytearray()
    out = struct.pack("<Q", len(kept))
    behind = at + 8 + 20 * len(kept) + 8
    for tag, kind, n, value in kept:
        size = n * _WIDTH_BYTES[kind]
        if size > 8:
            (where,) = struct.unpack("<Q", value)
            values += bytes(-(behind + len(values)) % 8)
            value = struct.pack("<Q", behind + len(values))
            values += data[where : where + size]
        out += struct.pack("<HHQ8s", tag, kind, n, value)
    return out + bytes(8) + bytes(values)
