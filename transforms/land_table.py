"""The maker of the packaged land table: `python -m transforms.land_table [FILE]`; needs the development extra."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from transforms import grid
from transforms.land import table_of

SAMPLES = 200  # a side: 549 m apart, so that no 30 arc-second cell (926 m north to south) falls between two
COARSE = 21  # a side: exact coordinates every 5.5 km, linear between them (within 4 m at 84 degrees)
LEAST = 1 / SAMPLES**2  # share given to a tile that has no sample on land but one within a cell of it

Mask = npt.NDArray[np.bool_]


def fractions(land: Mask, tiles: Iterable[grid.Tile]) -> Iterator[tuple[str, float]]:
    """Yields (tile, share of land) for each of `tiles` with land on it or within one cell of it.

    A tile is sampled at SAMPLES by SAMPLES points. Its share is that of the points on land. Where there are none, a
    second look at the mask dilated by one cell (1 km) keeps tiles whose islands the mask shifts or draws too small,
    with the share LEAST.

    Args:
      land: (rows, cols) bool over the globe in longitude and latitude, from 90 N, 180 W.
    """
    near = dilated(land)
    places = np.linspace(0, 1, SAMPLES, endpoint=False) + 0.5 / SAMPLES
    weights = _linear(places, COARSE)
    for tile in tiles:
        left, bottom, _, _ = tile.bounds_m
        along = np.linspace(0, grid.SIDE_M, COARSE)
        lon, lat = grid.to_lonlat(left + along[None, :], bottom + along[:, None], tile.crs)
        lon = grid.unwrap(lon, tile.central_meridian)
        if not near[_cells(lon, lat, near.shape, whole=True)].any():
            continue
        cells = _cells(weights @ lon @ weights.T, weights @ lat @ weights.T, land.shape)
        share = float(land[cells].mean())
        if share or near[cells].any():
            yield tile.name, share or LEAST


def dilated(land: Mask) -> Mask:
    """The mask with every cell set that has a set one among its eight neighbours, east and west joined."""
    wide = land.copy()
    wide[1:] |= land[:-1]
    wide[:-1] |= land[1:]
    return np.asarray(wide | np.roll(wide, 1, axis=1) | np.roll(wide, -1, axis=1))


def _linear(places: npt.NDArray[np.float64], points: int) -> npt.NDArray[np.float64]:
    """Weights (place, point) of linear interpolation at `places` in 0..1 between evenly spaced points."""
    position = places[:, None] * (points - 1)
    return np.asarray(np.clip(1 - np.abs(position - np.arange(points)), 0, 1))


def _cells(
    lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64], shape: tuple[int, ...], whole: bool = False
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Indices of the mask cells that hold points, or of the whole rectangle around them with one cell to spare."""
    rows = np.floor((90 - lat) / 180 * shape[0]).astype(np.intp)
    cols = np.floor((lon + 180) / 360 * shape[1]).astype(np.intp)
    if whole:
        rows = np.arange(rows.min() - 1, rows.max() + 2)[:, None]
        cols = np.arange(cols.min() - 1, cols.max() + 2)[None, :]
    return np.clip(rows, 0, shape[0] - 1), cols % shape[1]


def main() -> None:
    from global_land_mask import globe  # development only, and slow to load

    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data" / "land.parquet"
    table = table_of(dict(fractions(~globe._mask, grid.all_tiles())))  # the package's mask is of the sea
    path.parent.mkdir(exist_ok=True)
    pq.write_table(
        table, path, compression="zstd", use_dictionary=["land"], column_encoding={"tile": "DELTA_BYTE_ARRAY"}
    )
    sys.stderr.write(f"{path}: {table.num_rows} tiles with land, {path.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
