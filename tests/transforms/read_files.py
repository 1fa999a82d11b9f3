"""Files of a made-up scene and how they are read, from disk and from a server."""

import numpy as np
import rasterio
import rasterio.shutil
import rasterio.warp
from hypothesis import HealthCheck, settings
from rasterio.transform import Affine

from transforms.grid import tile_of
from transforms.read import (
    read_patch,
)
from transforms.scenes import S2, Asset, Scene

TILE = tile_of("33TWL")
ZONE_32 = 32632  # the zone west of the tile's own
# Examples write over one file: the folder is the test's, the content each example's.
FEW = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def scene(*assets):
    return Scene(
        "33TWL", S2, "x@y", "S2A_X", "2024-05-01T10:00:00.000000Z", 0, "descending", 122, "sentinel-2a", "05.10", 10.0,
        "", "", 0, "", True, "", assets,
    )  # fmt: skip


def write(folder, data, left_m, top_m, size_m, epsg=TILE.epsg, nodata=0, name="f.tif", band="B05", **options):
    """A GeoTIFF and the asset that describes it; `data` (h, w)."""
    h, w = data.shape
    transform = Affine(size_m, 0, left_m, 0, -size_m, top_m)
    profile = {"driver": "GTiff", "height": h, "width": w, "count": 1, "dtype": data.dtype, "nodata": nodata} | options
    with rasterio.open(folder / name, "w", crs=f"EPSG:{epsg}", transform=transform, **profile) as file:
        file.write(data, 1)
    return Asset(band, name, epsg, tuple(transform)[:6], h, w)


def a_file(folder, **options):
    data = np.random.default_rng(1).integers(1, 9999, (64, 64)).astype(np.uint16)
    return write(folder, data, TILE.left_m, TILE.top_m, 20, tiled=True, blockxsize=16, blockysize=16, **options)


def everything(folder, asset):
    return read_patch(scene(asset), asset, str(folder), 0, 0, asset.height_px, asset.width_px)


DIFFERENCES = [
    ({"height_px": 65}, "64 x 64 px, its item says 65 x 64"),
    ({"width_px": 63}, "64 x 64 px, its item says 64 x 63"),
    ({"epsg": 32634}, "CRS is EPSG:32633, its item says EPSG:32634"),
    ({"transform": (20.0, 0.0, TILE.left_m + 20.0, 0.0, -20.0, TILE.top_m)}, "geotransform"),
    ({"transform": (10.0, 0.0, TILE.left_m, 0.0, -10.0, TILE.top_m)}, "geotransform"),
]
TILED = {"tiled": True, "blockxsize": 16, "blockysize": 16}
