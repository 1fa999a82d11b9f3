"""Cubes: dated bands on one 10 m grid, as openEO writes them to NetCDF."""

import dataclasses
import datetime as dt
import hashlib
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.errors
from numpy.typing import NDArray

from model.errors import BadInput
from transforms.grid import PIXEL_M, to_lonlat
from transforms.read import plain

# In the folder of real data; the READMEs beside them say where they come from.
WORLDCEREAL = "WorldCereal-worldcereal-classification/worldcereal_preprocessed_inputs.nc"
OPENEO_OPTICAL = "Open-EO-openeo-gfmap/cdse_sentinel2_l2a.nc"
OPENEO_RADAR = "Open-EO-openeo-gfmap/cdse_sentinel1_grd.nc"

DN = NDArray[np.uint16]
MISSING = 65535  # openEO's "no data" in uint16. Not 65534: Open-EO/openeo-gfmap clips radar there, see `power_of`

# Open-EO/openeo-gfmap, compress_backscatter_uint16: DN = 10 ** ((10 log10(power) + 83) / 20), clipped to 1..65534.
RADAR_DB = 83.0


@dataclasses.dataclass(frozen=True)
class Cube:
    """A NetCDF file's bands.

    Attributes:
      path: of the file.
      epsg: of its grid. transform: (a, b, c, d, e, f) as rasterio has it, 10 m, north-up.
      days: of its T steps, ascending.
      bands: name -> (T, H, W) uint16, as stored; `MISSING` where there is nothing.
    """

    path: Path
    epsg: int
    transform: tuple[float, float, float, float, float, float]
    days: tuple[dt.date, ...]
    bands: Mapping[str, DN]

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        height, width = next(iter(self.bands.values())).shape[1:]
        return height, width

    @property
    def bounds_m(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top."""
        a, _, left, _, e, top = self.transform
        return left, top + e * self.shape[0], left + a * self.shape[1], top

    @property
    def ring(self) -> list[list[float]]:
        """Its outline in longitude and latitude, counter-clockwise and closed, to 1e-6 degrees (11 cm)."""
        left, bottom, right, top = self.bounds_m
        x, y = [left, right, right, left, left], [bottom, bottom, top, top, bottom]
        lon, lat = to_lonlat(x, y, f"EPSG:{self.epsg}")
        return [[round(float(u), 6), round(float(v), 6)] for u, v in zip(lon, lat, strict=True)]

    @property
    def origin(self) -> dict[str, str]:
        """What a record says of where the pixels came from."""
        return {"file": self.path.name, "sha256": hashlib.sha256(self.path.read_bytes()).hexdigest()}


def can_read() -> bool:
    """Whether rasterio's GDAL reads NetCDF; the wheels' does."""
    with rasterio.Env() as env:
        return "netCDF" in env.drivers()


def read_cube(path: Path, names: Iterable[str], prefix: str) -> Cube:
    """Reads bands of a cube as they are stored: no mask, no scale.

    GDAL declares nodata 32769 for such files (netCDF's default of int16, read as unsigned), which is an ordinary DN.

    Args:
      names: of bands; the file's variables are called `prefix` + name.

    Raises:
      BadInput: no such file, not a NetCDF file, a variable that it lacks, another dtype, a grid that is not 10 m and
        north-up in a projected CRS, or bands that disagree about grid or days.
    """
    bands: dict[str, DN] = {}
    grids = set()
    for name in names:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)  # of the file as a whole
                with rasterio.open(f'netcdf:"{path.resolve()}":{prefix}{name}') as file:
                    bands[name] = file.read()
                    a, b, c, d, e, f = tuple(file.transform)[:6]
                    grids.add((file.crs.to_epsg() if file.crs else None, (a, b, c, d, e, f), _days(path, file.tags())))
        except rasterio.errors.RasterioError as error:
            raise BadInput(f"{path}: no band {prefix}{name} can be read ({plain(str(error))})") from None
        if bands[name].dtype != np.uint16:
            raise BadInput(f"{path}: {prefix}{name} is {bands[name].dtype}; uint16 was expected")
    if len(grids) != 1:
        raise BadInput(f"{path}: its bands lie on {len(grids)} different grids or dates; one was expected")
    epsg, transform, days = grids.pop()
    a, b, _, d, e, _ = transform
    if epsg is None or (a, b, d, e) != (PIXEL_M, 0, 0, -PIXEL_M):
        raise BadInput(f"{path}: EPSG:{epsg}, {transform}; a UTM grid of {PIXEL_M} m, north-up, was expected")
    return Cube(path, epsg, transform, days, bands)


def _days(path: Path, tags: Mapping[str, Any]) -> tuple[dt.date, ...]:
    """The days of the steps, from GDAL's copy of the time axis."""
    since = re.fullmatch(r"days since (\d{4}-\d{2}-\d{2}).*", tags.get("t#units", ""))
    steps = tags.get("NETCDF_DIM_t_VALUES", "").strip("{}")
    if since is None or not re.fullmatch(r"\d+(,\d+)*", steps):
        raise BadInput(
            f"{path}: the time axis is {steps!r} {tags.get('t#units')!r}; whole days since a date were expected"
        )
    days = tuple(dt.date.fromisoformat(since[1]) + dt.timedelta(int(n)) for n in steps.split(","))
    if list(days) != sorted(set(days)):
        raise BadInput(f"{path}: its dates do not ascend")
    return days


def doys(cube: Cube) -> NDArray[np.int16]:
    """(T,) days of year."""
    return np.array([day.timetuple().tm_yday for day in cube.days], np.int16)


def power_of(dn: DN) -> NDArray[np.float32]:
    """Linear backscatter of a cube's radar: 10 ** ((20 log10 DN - 83) / 10) as float32, NaN where `MISSING`.

    65534 is what the cube's maker clips strong scatterers to (13.3 dB and more: roofs and masts), so it stays a value.
    """
    linear = (dn.astype(np.float64) ** 2 * 10 ** (-RADAR_DB / 10)).astype(np.float32)
    return np.where(dn == MISSING, np.float32(np.nan), linear)
