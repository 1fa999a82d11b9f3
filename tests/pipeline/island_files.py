"""The synthetic planet's files, read over its island."""

import json

import rasterio

from transforms.grid import tile_of

S2, S1 = "sentinel-2-c1-l2a", "sentinel-1-rtc"
BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12", "SCL")


def item_of(planet, collection, id_):
    return json.loads((planet.folder / collection / id_ / f"{id_}.json").read_text())


def of_day(planet, tile, day):
    return [id_ for id_, visit in planet.s2_ids(tile).items() if visit.datatake.date() == day]


def read(path, window=None, scale=1):
    """A window (row, col, height, width) of a file whose pixels are `scale` times 10 m."""
    if window is not None:
        row, col, height, width = (v // scale for v in window)
        window = ((row, row + height), (col, col + width))
    with rasterio.open(path) as src:
        return src.read(1, window=window)


def optical(planet, tile, id_, band):
    fine = band in ("B02", "B03", "B04", "B08")
    return read(planet.folder / S2 / id_ / f"{band}.tif", planet.island(tile), 1 if fine else 2)


def radar(planet, id_, pol):
    """The scene's data over the island, in its own zone."""
    tile = {32632: "32TQR", 32633: "33TUL"}[planet.s1_ids()[id_].epsg]
    row, col, height, width = planet.island(tile)
    with rasterio.open(planet.folder / S1 / id_ / f"iw-{pol}.rtc.tiff") as src:
        top, left = src.index(tile_of(tile).left_m + 10 * col + 5, tile_of(tile).top_m - 10 * row - 5)
        return src.read(1, window=((top, top + height), (left, left + width)))
