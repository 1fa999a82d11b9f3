"""Outlines: tile footprints as GeoJSON and the boxes around them, on both sides of the antimeridian."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry
from shapely.geometry.polygon import orient


def geometry_of(shape: BaseGeometry) -> dict[str, Any]:
    """GeoJSON of a polygon or of one that is split at the antimeridian: rings counter-clockwise, 7 decimals (1 cm)."""
    parts = shape.geoms if isinstance(shape, MultiPolygon) else [shape]
    polygons = [
        [[[round(x, 7), round(y, 7)] for x, y in ring.coords] for ring in (part.exterior, *part.interiors)]
        for part in (orient(p) for p in parts if isinstance(p, Polygon))
    ]
    if len(polygons) == 1:
        return {"type": "Polygon", "coordinates": polygons[0]}
    return {"type": "MultiPolygon", "coordinates": sorted(polygons)}


def bbox_of(geometry: Mapping[str, Any]) -> list[float]:
    """West, south, east, north. West is greater than east where the parts meet at the antimeridian (RFC 7946, 5.2)."""
    polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    boxes = []
    for polygon in polygons:
        lons, lats = zip(*polygon[0], strict=True)
        boxes.append([min(lons), min(lats), max(lons), max(lats)])
    return union_of(boxes)


def union_of(boxes: Iterable[Sequence[float]]) -> list[float]:
    """The smallest bbox around all, which may cross the antimeridian.

    Raises:
      ValueError: no boxes.
    """
    south, north = 90.0, -90.0
    spans: list[tuple[float, float]] = []
    for west, low, east, high in boxes:
        south, north = min(south, low), max(north, high)
        spans += [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]
    if not spans:
        raise ValueError("the bbox of nothing")
    merged: list[list[float]] = []
    for west, east in sorted(spans):
        if merged and west <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], east)
        else:
            merged.append([west, east])
    # What lies between two neighbours on the circle is a gap; the bbox starts after the widest one.
    gaps = [(merged[0][0] + 360 - merged[-1][1], 0)]
    gaps += [(merged[i][0] - merged[i - 1][1], i) for i in range(1, len(merged))]
    widest = max(gaps, key=lambda g: (g[0], -g[1]))[1]
    return [merged[widest][0], south, merged[widest - 1][1], north]
