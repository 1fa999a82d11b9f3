"""A small catalogue as Earth Search's Collection 1 and Planetary Computer describe scenes, with one of every kind."""

import datetime as dt
import json

from transforms import grid
from transforms.periods import period_of

NOW = dt.datetime(2025, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
YEAR = period_of("2024")
KEYS = {
    "B04": "red", "B02": "blue", "B03": "green", "B08": "nir", "B8A": "nir08", "B05": "rededge1", "B06": "rededge2",
    "B07": "rededge3", "B11": "swir16", "B12": "swir22", "SCL": "scl",
}  # fmt: skip


def optical(id, when="2024-05-06T10:00:00Z", tile="33TWL", cloud=10.0, href="./{band}.tif", **said):
    """An item as Earth Search's Collection 1 describes it."""
    where = grid.tile_of(tile)
    west, south, east, north = grid.footprint(tile).bounds
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    place = {"proj:shape": [5490, 5490], "proj:transform": [20, 0, where.left_m, 0, -20, where.top_m]}
    fine = {"proj:shape": [10980, 10980], "proj:transform": [10, 0, where.left_m, 0, -10, where.top_m]}
    properties = {
        "datetime": when,
        "platform": "sentinel-2a",
        "eo:cloud_cover": cloud,
        "proj:epsg": where.epsg,
        "grid:code": f"MGRS-{tile}",
        "s2:processing_baseline": "05.10",
        "s2:datatake_id": f"GS2A_{id}_N05.10",
    }
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": id,
        "collection": "sentinel-2-c1-l2a",
        "bbox": [west, south, east, north],
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": properties | said,
        "links": [],
        "assets": {
            key: {"href": href.format(band=band), "raster:bands": [{"scale": 0.0001, "offset": -0.1}]}
            | (fine if band in ("B02", "B03", "B04", "B08") else place)
            for band, key in KEYS.items()
        },
    }


def radar(id, when="2024-05-06T05:00:00Z", orbit="descending"):
    where = grid.tile_of("33TWL")
    west, south, east, north = grid.footprint(where).bounds
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": id,
        "collection": "sentinel-1-rtc",
        "bbox": [west, south, east, north],
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "datetime": when,
            "platform": "SENTINEL-1A",
            "sat:orbit_state": orbit,
            "proj:epsg": where.epsg,
            "proj:shape": [10980, 10980],
            "proj:transform": [10, 0, where.left_m, 0, -10, where.top_m, 0, 0, 1],
        },
        "links": [],
        "assets": {"vv": {"href": f"./{id}_vv.tif"}, "vh": {"href": f"./{id}_vh.tif"}},
    }


ITEMS = [
    optical("jan", "2024-01-31T23:59:59.9Z"),
    optical("may"),
    optical("cloudy", "2024-05-11T10:00:00Z", cloud=100),
    optical("other tile", tile="33TWM"),
    optical("year before", "2023-12-31T23:59:59.999Z"),
    optical("feb", "2024-02-01T00:00:00Z"),
    radar("down"),
    radar("up", "2024-05-06T16:00:00Z", "ascending"),
]


def write(folder, items=ITEMS):
    folder.mkdir(parents=True, exist_ok=True)
    for n, item in enumerate(items):
        (folder / f"{n:03d}.json").write_text(json.dumps(item))
    return folder
