"""Regions drawn for tests: by hand, and in shares of a tile."""

import json

import numpy as np
from hypothesis import settings

from model.errors import BadInput
from transforms import grid
from transforms.grid import TILE_PX
from transforms.regions import region_from_geojson

untimed = settings(deadline=None, max_examples=30)
HOLED = {
    "type": "Polygon",
    "coordinates": [
        [[15.1, 45.2], [16.1, 45.3], [15.9, 45.9], [15.2, 45.8], [15.1, 45.2]],
        [[15.4, 45.4], [15.8, 45.4], [15.6, 45.7], [15.4, 45.4]],
    ],
}


def _write(tmp_path, record, name="region.geojson"):
    path = tmp_path / name
    path.write_text(record if isinstance(record, str) else json.dumps(record))
    return path


def _polygon(*points):
    return {"type": "Polygon", "coordinates": [[*map(list, points), list(points[0])]]}


def _region_on(name, points):
    """A region from points in shares of a tile's side, or None where they enclose nothing."""
    rows, cols = np.array(points).T * TILE_PX
    lon, lat = grid.lonlat_of(name, rows, cols)
    ring = [[float(x), float(y)] for x, y in zip(lon, lat, strict=True)]
    try:
        return region_from_geojson(_polygon(*ring))
    except BadInput as e:
        assert "no area" in str(e)
        return None
