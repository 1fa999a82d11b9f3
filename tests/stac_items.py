"""Items as each provider describes them, and what becomes of them: for every test of catalogues."""

import json
from pathlib import Path

from model.profile import PC_L2A
from transforms import grid
from transforms.catalogs.items import Found, Record, record_of
from transforms.catalogs.registry import BY_NAME, source_of
from transforms.catalogs.source import S2_PIXEL_M

SHARED = Path(__file__).parents[1] / "../shared"
REAL = SHARED / "real-data/stac"

TILE = grid.tile_of("33TWL")
ALL_BANDS = tuple(S2_PIXEL_M)


def optical(source=PC_L2A, tile="33TWL", id="scene", **properties):
    """An item as that source would describe it, over its whole tile; properties in the source's own words."""
    table, where = BY_NAME[source], grid.tile_of(tile)
    west, south, east, north = grid.footprint(where).bounds
    assets = {
        key: {
            "href": f"./{band}.tif",
            "proj:shape": [109_800 // S2_PIXEL_M[band]] * 2,
            "proj:transform": [S2_PIXEL_M[band], 0, where.left_m, 0, -S2_PIXEL_M[band], where.top_m],
            "raster:bands": [{"scale": 0.0001, "offset": -0.1}],
        }
        for band, key in table.keys.items()
    }
    said = {
        "datetime": "2024-05-06T10:00:00.123Z",
        "platform": "Sentinel-2A",
        "eo:cloud_cover": 10.0,
        "proj:epsg": where.epsg,
        table.tile: tile if table.tile == "s2:mgrs_tile" else f"MGRS-{tile}",
        "s2:processing_baseline": "05.10",
        "s2:generation_time": "2024-05-06T15:00:00Z",
    }
    return {
        "type": "Feature",
        "id": id,
        "collection": table.collections[0],
        "bbox": [west, south, east, north],
        "geometry": {"type": "Polygon", "coordinates": [ring(west, south, east, north)]},
        "properties": said | properties,
        "assets": assets,
    }


def ring(west, south, east, north):
    return [[west, south], [east, south], [east, north], [west, north], [west, south]]


def radar(id="pass", epsg=32633, left_m=480_000, top_m=5_110_000, shape=(15_000, 15_000), **properties):
    lon, lat = grid.to_lonlat([left_m, left_m + 10 * shape[1]], [top_m, top_m - 10 * shape[0]], f"EPSG:{epsg}")
    return {
        "type": "Feature",
        "id": id,
        "collection": "sentinel-1-rtc",
        "bbox": [lon[0] - 0.1, lat[1] - 0.1, lon[1] + 0.1, lat[0] + 0.1],
        "geometry": {"type": "Polygon", "coordinates": [ring(lon[0], lat[1], lon[1], lat[0])]},
        "properties": {
            "datetime": "2024-05-06T05:00:00Z",
            "platform": "SENTINEL-1A",
            "sat:orbit_state": "descending",
            "proj:epsg": epsg,
            "proj:shape": list(shape),
            "proj:transform": [10, 0, left_m, 0, -10, top_m, 0, 0, 1],
        }
        | properties,
        "assets": {"vv": {"href": "./vv.tif"}, "vh": {"href": "./vh.tif"}},
    }


def record(item, tile=TILE, provider=None) -> Record | None:
    return record_of(Found(item, "/cat/items/item.json", source_of(item, provider)), tile, "/cat")


def scene(item, tile=TILE, provider=None):
    return record(item, tile, provider).scene


def real_items(name):
    said = json.loads((REAL / name).read_text())
    return said if isinstance(said, list) else said.get("features", [said])
