"""OPERA's bursts of our own on disk, and the radar of a window that holds them."""

import numpy as np
import rasterio
from rasterio.transform import Affine

from model.families import profile_for
from model.profile import OPERA_RTC, PC_RTC
from transforms.dpixels import build, read_stack
from transforms.grid import tile_of
from transforms.scenes import ASCENDING, S1, Asset, Scene

TILE = tile_of("33TWL")
AWS = profile_for("v1.1-aws", 192)
BASE = 3000
ROWS, COLS = range(BASE, BASE + 30), range(BASE, BASE + 24)
ROOTS = {OPERA_RTC: "", PC_RTC: ""}


def burst(folder, name, order, data, when="2024-05-01T05:00:00.000000Z", epsg=TILE.epsg, corner=None):
    """A burst whose VV and VH are `data` and twice it; `corner` in metres, the test window's own when left out."""
    left, top = corner or (TILE.left_m + (BASE - 30) * 10, TILE.top_m - (BASE - 30) * 10)
    left, top = left // 30 * 30, top // 30 * 30
    transform = Affine(30, 0, left, 0, -30, top)
    assets = []
    for band, values in (("VV", data), ("VH", 2 * data)):
        with rasterio.open(
            folder / f"{name}_{band}.tif", "w", driver="GTiff", height=data.shape[0], width=data.shape[1], count=1,
            dtype="float32", nodata=np.nan, crs=f"EPSG:{epsg}", transform=transform,
        ) as file:  # fmt: skip
            file.write(values, 1)
        assets.append(Asset(band, f"{name}_{band}.tif", epsg, tuple(transform)[:6], *data.shape))
    return Scene("33TWL", S1, OPERA_RTC, name, when, order, ASCENDING, 22, "sentinel-1a", "", None, "", "", 0, "", True,
                 "", tuple(assets))  # fmt: skip


def radar_of(folder, scenes, pool, profile=AWS, rows=ROWS, cols=COLS):
    stack = read_stack(scenes, dict.fromkeys(ROOTS, str(folder)), profile, TILE, rows, cols, pool)
    return build(stack, profile, rows).sar_ascending


def whole(value):
    return np.full((60, 60), value, np.float32)
