"""Tiled GeoTIFFs that GDAL writes, and their windows as our reader gets them."""

import struct

import numpy as np
import rasterio
import rasterio.windows
from hypothesis import HealthCheck, settings
from rasterio.transform import Affine

from transforms.tiff import Window, parse_header, plan
from transforms.tiff_decode import decode

# Examples write over one file: the folder is the test's, the content each example's.
FEW = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
GRID = Affine(20, 0, 399960, 0, -20, 4500000)


def write(folder, data, **options):
    """A tiled GeoTIFF of `data` (h, w) and its bytes."""
    path = folder / "f.tif"
    profile = {
        "driver": "GTiff", "height": data.shape[0], "width": data.shape[1], "count": 1, "dtype": data.dtype,
        "tiled": True, "blockxsize": 16, "blockysize": 16, "crs": "EPSG:32633", "transform": GRID,
    } | options  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        file.write(data, 1)
    return path.read_bytes()


def whole_header(data):
    return parse_header(data, len(data))


def tiles_in(data, header, window):
    """The tiles of a window, cut out of the ranges that are planned for it."""
    out = {}
    for part in plan(header, window):
        piece = data[part.start : part.stop]
        for i, j in part.tiles:
            at = int(header.offsets[i, j]) - part.start
            out[i, j] = piece[at : at + int(header.counts[i, j])]
    return out


def read(data, header, window):
    return decode(header, window, tiles_in(data, header, window))


def everything(data):
    header = whole_header(data)
    return read(data, header, Window(0, 0, header.height_px, header.width_px))


def noise(rng, shape, dtype):
    """Pixels that compress, with a nodata corner."""
    data = np.cumsum(rng.integers(0, 7, shape), axis=1) % 250 + 1
    data[: shape[0] // 3, : shape[1] // 3] = 0
    return data.astype(dtype) + (rng.random(shape).astype(dtype) if np.dtype(dtype).kind == "f" else 0)


def some_pixels(dtype="uint16", shape=(64, 80)):
    return noise(np.random.default_rng(3), shape, dtype)


def same_as_rasterio(path, data, header, window):
    row, col, height, width = window
    with rasterio.open(path) as file:
        wanted = file.read(1, window=rasterio.windows.Window(col, row, width, height))
        assert (header.height_px, header.width_px) == file.shape
        assert (header.tile_height_px, header.tile_width_px) == file.block_shapes[0]
        assert header.dtype == file.dtypes[0]
        np.testing.assert_equal(header.nodata, file.nodata)  # NaN is NaN
        assert header.epsg == (file.crs.to_epsg() if file.crs else None)
        assert header.transform == tuple(file.transform)[:6]
    got = read(data, header, window)
    assert got.dtype == wanted.dtype
    np.testing.assert_array_equal(got, wanted)


def with_tiles(data, change):
    """The file with its lists of offsets and counts put through `change`."""
    out = bytearray(data)
    (at,) = struct.unpack_from("<I", out, 4)
    (entries,) = struct.unpack_from("<H", out, at)
    places = {}
    for i in range(at + 2, at + 2 + 12 * entries, 12):
        tag, kind, count, place = struct.unpack_from("<HHII", out, i)
        places[tag] = np.frombuffer(out, {3: "<u2", 4: "<u4"}[kind], count, place) if tag in (324, 325) else None
    change(places[324], places[325])
    return bytes(out)
