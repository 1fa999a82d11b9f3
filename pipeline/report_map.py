"""The report's map: tile footprints, graticule and land as SVG paths, without any outside service."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from shapely.affinity import translate
from shapely.geometry import shape

from transforms.grid import SIDE_M, Tile, tile_of, to_lonlat
from transforms.land import land_tiles
from transforms.stac_geometry import union_of

WIDTH = 1000.0  # of the map, in its own units
_HEIGHTS = (400.0, 580.0)  # least and most: lower is a ribbon, higher leaves the screen
_STEPS = (0.25, 0.5, 1, 2, 5, 10, 20, 30, 45, 60)  # degrees between lines of the graticule
_LAND_SHARE = 0.3  # of a tile, from which on the sketch of the continents counts it as land
_LAND_SPAN = 60.0  # degrees; in a narrower map one-degree squares say nothing about coasts
_M_PER_DEGREE = 111_320.0


@dataclasses.dataclass(frozen=True)
class Frame:
    """A part of the world in longitude and latitude, stretched so that squares in its middle stay squares.

    Attributes:
      west, south, east, north: degrees; east may be beyond 180, so that a map can cross the antimeridian.
      height: of the map where it is WIDTH wide.
    """

    west: float
    south: float
    east: float
    north: float
    height: float

    def place(self, lon: float, lat: float) -> tuple[float, float]:
        """Where a position lies in the map, x to the right, y down."""
        east_of = lon + 360 * math.floor((self.east - lon) / 360)  # the turn that ends at the map's eastern edge
        x = (east_of - self.west) / (self.east - self.west) * WIDTH
        return round(x, 1), round((self.north - lat) / (self.north - self.south) * self.height, 1)


def frame_of(boxes: Iterable[Sequence[float]]) -> Frame:
    """The frame around all boxes (west, south, east, north), with some air."""
    west, south, east, north = union_of(boxes)
    across, up = (east - west) % 360 or 360.0, north - south
    middle, centre = (south + north) / 2, west + across / 2
    squeeze = math.cos(math.radians(min(abs(middle), 70)))
    across, up = max(across * 1.2, 2.0), max(up * 1.2, 1.4)
    low, high = (h / WIDTH for h in _HEIGHTS)
    ratio = up / (across * squeeze)
    if ratio > high:
        across = up / (high * squeeze)
    elif ratio < low:
        up = low * across * squeeze
    if across > 360:
        across = 360.0
    south, north = max(-90.0, middle - up / 2), min(90.0, middle + up / 2)
    height = min(_HEIGHTS[1], max(300.0, (north - south) / (across * squeeze) * WIDTH))
    return Frame(centre - across / 2, south, centre + across / 2, north, round(height, 1))


def path_of(geometry: dict[str, Any], frame: Frame) -> str:
    """SVG path data of a GeoJSON polygon, without what is smaller than a third of the map's unit."""
    outline = shapely.simplify(shape(geometry), (frame.east - frame.west) / WIDTH / 3, preserve_topology=False)
    if outline.is_empty:
        outline = shape(geometry)
    turned = []
    for polygon in shapely.get_parts(outline):
        lons = np.array(polygon.exterior.coords)[:, 0]
        turn = 360 * math.floor((frame.east - float(lons.mean())) / 360)  # one for the whole part, or it would tear
        turned.append(translate(polygon, turn))
    stretch = WIDTH / (frame.east - frame.west)
    parts = []
    for polygon in shapely.get_parts(shapely.union_all(turned)):  # halves at the antimeridian become one again
        points = [
            f"{(lon - frame.west) * stretch:.1f} {frame.place(0, lat)[1]:.1f}"
            for lon, lat in polygon.exterior.coords[:-1]
        ]
        parts.append(f"M{'L'.join(points)}Z")
    return "".join(parts)


def picture_matrix(tile: Tile, frame: Frame) -> str:
    """The SVG matrix that lays a picture of 1 x 1 unit over a tile."""
    left, bottom, right, top = tile.bounds_m
    lons, lats = to_lonlat([left, right, left], [top, top, bottom], tile.crs)
    (x, y), (right_x, right_y), (down_x, down_y) = (
        frame.place(float(lon), float(lat)) for lon, lat in zip(lons, lats, strict=True)
    )
    numbers = (right_x - x, right_y - y, down_x - x, down_y - y, x, y)
    return f"matrix({' '.join(f'{v:.2f}' for v in numbers)})"


def graticule(frame: Frame) -> tuple[list[tuple[float, str]], list[tuple[float, str]]]:
    """Meridians as (x, label) and parallels as (y, label)."""

    def lines(low: float, high: float, most: int) -> list[float]:
        step = next((s for s in _STEPS if (high - low) / s <= most), _STEPS[-1])
        return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]

    def label(degrees: float, names: str) -> str:
        sign = "" if degrees in (0, -180) else names[0] if degrees > 0 else names[1]
        return f"{abs(degrees):g}°{sign}"

    meridians = [
        ((lon - frame.west) / (frame.east - frame.west) * WIDTH, label((lon + 180) % 360 - 180, "EW"))
        for lon in lines(frame.west, frame.east, 8)
    ]
    parallels = [(frame.place(0, lat)[1], label(lat, "NS")) for lat in lines(frame.south, frame.north, 6)]
    return [(round(x, 1), text) for x, text in meridians], parallels


@functools.cache
def _land() -> npt.NDArray[np.bool_]:
    """(180, 360) squares of a degree, from 90 N and 180 W, that the land tiles of the packaged table touch."""
    cells = np.zeros((180, 360), np.bool_)
    half = SIDE_M / 2 / _M_PER_DEGREE
    zones: dict[str, list[Tile]] = {}
    for tile in map(tile_of, land_tiles(_LAND_SHARE, south_of_60=True)):
        zones.setdefault(tile.crs, []).append(tile)
    for crs, tiles in zones.items():
        x, y = (np.array([getattr(t, name) for t in tiles]) for name in ("left_m", "top_m"))
        lons, lats = to_lonlat(x + SIDE_M / 2, y - SIDE_M / 2, crs)
        for lon, lat in zip(lons.tolist(), lats.tolist(), strict=True):
            wide = half / math.cos(math.radians(lat))
            top, bottom = max(0, round(90 - lat - half)), min(180, round(90 - lat + half))
            cells[top:bottom, np.arange(round(lon + 180 - wide), round(lon + 180 + wide)) % 360] = True
    return cells


def _land_path(place: Any, turns: Sequence[int]) -> str:
    runs = []
    for row, line in enumerate(_land()):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(np.int8), [0]])))
        for start, stop in edges.reshape(-1, 2).tolist():
            for turn in turns:
                (x0, y0), (x1, y1) = place(start - 180 + turn, 90 - row), place(stop - 180 + turn, 89 - row)
                runs.append(f"M{x0:g} {y0:g}H{x1:g}V{y1:g}H{x0:g}Z")
    return "".join(runs)


def land_path(frame: Frame) -> str:
    """The continents as squares of a degree; "" for a map that is too narrow for them."""
    if frame.east - frame.west < _LAND_SPAN:
        return ""

    def place(lon: float, lat: float) -> tuple[float, float]:
        x = (lon - frame.west) / (frame.east - frame.west) * WIDTH
        return round(min(max(x, 0.0), WIDTH), 1), frame.place(0, lat)[1]

    inside = [t for t in (-360, 0, 360) if 180 + t > frame.west and -180 + t < frame.east]
    return _land_path(place, inside)


def locator_path() -> str:
    """The continents in a picture of 360 x 180."""
    return _land_path(lambda lon, lat: (lon + 180, 90 - lat), [0])


def locator_corner(shapes: Iterable[tuple[float, float]]) -> str:
    """Corner of the map, as "top right", with the fewest tiles; given their middles in per cent of width and height."""
    places = list(shapes)
    corners = {"top right": (100, 0), "top left": (0, 0), "bottom right": (100, 100), "bottom left": (0, 100)}
    return min(
        corners, key=lambda c: sum(abs(x - corners[c][0]) < 33 and abs(y - corners[c][1]) < 45 for x, y in places)
    )
