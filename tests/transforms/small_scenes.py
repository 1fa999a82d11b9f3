"""Small scenes on disk, a few pixels wide, and the d-pixels that are made of them."""

import dataclasses
import math

import numpy as np
import rasterio
import rasterio.warp
from rasterio.transform import Affine

from model.families import profile_for
from model.profile import PC_L2A, PC_RTC, S2_BANDS
from transforms.dpixels import LAYOUT, build, read_stack
from transforms.grid import tile_of
from transforms.scenes import ASCENDING, DESCENDING, S1, S2, Asset, Scene

TILE = tile_of("33TWL")
PROFILE = profile_for("v2", 128)
NEAREST = profile_for("v1.1-mpc+nearest", 192)
SINGLE = dataclasses.replace(PROFILE, s1_arithmetic="float32")
TEN_M = ("B04", "B02", "B03", "B08")
BASE = 2000  # px from the tile's corner: where the small files of these tests lie
ROWS, COLS = range(BASE + 1, BASE + 14), range(BASE + 3, BASE + 14)  # an odd window inside them
SIDE_PX = 24  # of a file, at 10 m
PASSES = (ASCENDING, DESCENDING)


def assert_same(got, wanted):
    for name in LAYOUT:
        a, b = getattr(got, name), getattr(wanted, name)
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)


def scl_of(value):
    return np.full((SIDE_PX // 2, SIDE_PX // 2), value, np.uint8)


def optical(folder, when, scl, dn, order, offset=0, name=None):
    """An S2 scene; `scl` (12, 12) at 20 m, `dn` one number for all bands or {band: (h, w)}."""
    name = name or f"S2_{when}_{order}"
    left, top = TILE.left_m + BASE * 10, TILE.top_m - BASE * 10
    assets = []
    for band in (*S2_BANDS, "SCL"):
        size_m = 10 if band in TEN_M else 20
        side = SIDE_PX * 10 // size_m
        data = scl if band == "SCL" else dn[band] if isinstance(dn, dict) else np.full((side, side), dn, np.uint16)
        assets.append(write(folder, data, left, top, size_m, TILE.epsg, 0, f"{name}_{band}.tif", band))
    return Scene(
        "33TWL", S2, PC_L2A, name, f"{when}T10:00:{order:02d}.000000Z", order, "descending", 122, "sentinel-2a",
        "05.10", 10.0, "", "", offset, "", True, "", tuple(assets),
    )  # fmt: skip


def radar(folder, when, orbit, vv, vh, order, name=None):
    """An S1 scene on the tile's grid; `vv`, `vh` (24, 24) float32 or None for a missing file."""
    name = name or f"S1_{when}_{orbit}_{order}"
    left, top = TILE.left_m + BASE * 10, TILE.top_m - BASE * 10
    assets = tuple(
        write(folder, a, left, top, 10, TILE.epsg, -32768, f"{name}_{band}.tif", band)
        for band, a in (("VV", vv), ("VH", vh))
        if a is not None
    )
    return Scene(
        "33TWL", S1, PC_RTC, name, f"{when}T05:00:00.000000Z", order, orbit, 22, "sentinel-1a", "", None, "", "", 0, "",
        True, "", assets,
    )  # fmt: skip


def write(folder, data, left_m, top_m, size_m, epsg, nodata, name, band):
    h, w = data.shape
    transform = Affine(size_m, 0, left_m, 0, -size_m, top_m)
    with rasterio.open(
        folder / name, "w", driver="GTiff", height=h, width=w, count=1, dtype=data.dtype, nodata=nodata,
        crs=f"EPSG:{epsg}", transform=transform,
    ) as file:  # fmt: skip
        file.write(data, 1)
    return Asset(band, name, epsg, tuple(transform)[:6], h, w)


def power(value):
    return np.full((SIDE_PX, SIDE_PX), value, np.float32)


def made(folder, scenes, pool, rows=ROWS, cols=COLS, wanted=None, profile=PROFILE):
    roots = {PC_L2A: str(folder), PC_RTC: str(folder)}
    stack = read_stack(scenes, roots, profile, TILE, rows, cols, pool, wanted)
    return build(stack, profile, stack.rows)


def slow_scale(x, arithmetic):
    """One power by the formula, in the width that is asked for."""
    if not x > 0:
        return 0
    number = np.float32 if arithmetic == "float32" else np.float64
    y = (number(20) * number(math.log10(x)) + number(50)) * number(200)
    assert y.dtype == number
    return int(min(max(y, 0), 32767))
