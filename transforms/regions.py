"""Regions: the parts of the Earth a user asks for, the tiles they touch, and the pixels of a tile they want.

Lines between two points of a region are straight in longitude and latitude, as RFC 7946 says.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.polygon import orient

from model.errors import BadInput
from transforms import grid

GRID_DEG = 1e-7  # coordinates of regions are multiples of this: 1 cm
_SEGMENT_DEG = 0.01  # longest line taken as straight in UTM too: it bends by less than 0.012 m, 1/800 pixel
_LONGEST_DEG = 90  # of a region's own lines: its GeoJSON cannot be mistaken for one that goes the other way round
_MARGIN_M = 200  # clips reach so far beyond their tile; their cut edges bend by 16 m at most, so no pixel sees them
_REACH_DEG = 18  # no tile ends further from its zone's central meridian (6 degrees, and 110 km at 84.6 N)
_SHOWN = 5  # wrong names listed in one message

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Region:
    """A part of the Earth's surface.

    Attributes:
      shape: valid polygons in longitude and latitude within [-180, 180], cut at the antimeridian, snapped to GRID_DEG,
        in GEOS's normal order, without lines longer than _LONGEST_DEG: what `region_from_geojson` makes of its GeoJSON
        is the same region again.
    """

    shape: shapely.MultiPolygon


@dataclasses.dataclass(frozen=True)
class Clip:
    """What a region wants of one tile.

    Attributes:
      geojson: a MultiPolygon as one line of canonical GeoJSON, cut to the tile and _MARGIN_M around it; empty where the
        region does not touch the tile.
    """

    geojson: str

    @property
    def digest(self) -> str:
        """sha256 of `geojson`, hexadecimal."""
        return hashlib.sha256(self.geojson.encode()).hexdigest()

    @property
    def region(self) -> Region:
        """The part of the region that the clip keeps."""
        return Region(_parsed(self.geojson))

    def mask(self, tile: str, row_px: int, col_px: int, height_px: int, width_px: int) -> npt.NDArray[np.bool_]:
        """The pixels of a window that are wanted.

        Lines are followed in longitude and latitude, and crossings computed from the tile's corner, so that windows of
        any size agree about every pixel.

        Returns:
          (height_px, width_px) bool, True where the pixel's centre lies in the clip.
        """
        return inside(_edges_px(self.geojson, tile), row_px, col_px, height_px, width_px)


def clip_of(region: Region, tile: str) -> Clip | None:
    """What `region` wants of `tile`; None for all of it.

    Raises:
      BadInput: no such tile.
    """
    place = grid.tile_of(tile)
    # Every pixel centre lies in the square that they span, drawn 1 m too large for the bend of its edges.
    centres = grid.outline(place, 1 - grid.PIXEL_M / 2)
    window = grid.outline(place, _MARGIN_M, edge_points=11)
    # Part by part: what lies elsewhere then cannot change so much as the order of the points.
    near = [part for part in _around(region.shape, place.central_meridian) if part.intersects(window)]
    if any(part.covers(centres) for part in near):
        return None
    return Clip(_geojson(_canonical(shapely.MultiPolygon(_parts(part.intersection(window) for part in near)))))


def union_clips(a: Clip, b: Clip) -> Clip:
    """The clip of what either wants, both of the same tile."""
    return a if a == b else Clip(_geojson(_canonical(shapely.union(a.region.shape, b.region.shape))))


def inside(edges: Array, row_px: int, col_px: int, height_px: int, width_px: int) -> npt.NDArray[np.bool_]:
    """Fills polygons by the even-odd rule.

    GDAL's rasteriser computes crossings from the window's corner, where rounding differs between windows; here a
    crossing is the same number whatever the window.

    Args:
      edges: (n, 4) float64, row and column of both ends, in pixels from the tile's corner.

    Returns:
      (height_px, width_px) bool, True where the pixel's centre lies inside.
    """
    parity = np.zeros((height_px, width_px + 1), np.uint8)
    downward = edges[:, 0] <= edges[:, 2]
    r0, c0, r1, c1 = np.where(downward[:, None], edges, edges[:, [2, 3, 0, 1]]).T
    # An edge crosses the rows whose centre line lies in [r0, r1): half open, so that a shared end counts once.
    first = np.maximum(np.ceil(r0 - 0.5).astype(np.int64), row_px)
    stop = np.minimum(np.ceil(r1 - 0.5).astype(np.int64), row_px + height_px)
    counts = np.maximum(stop - first, 0)
    which = np.repeat(np.arange(len(edges)), counts)
    rows = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts) + first[which]
    at = c0[which] + (rows + 0.5 - r0[which]) * (c1 - c0)[which] / (r1 - r0)[which]
    cols = np.clip(np.ceil(at - 0.5).astype(np.int64) - col_px, 0, width_px)  # the first centre right of the crossing
    np.bitwise_xor.at(parity, (rows - row_px, cols), 1)
    np.bitwise_xor.accumulate(parity, axis=1, out=parity)
    return parity[:, :width_px].astype(np.bool_)


@functools.lru_cache(maxsize=8)
def _edges_px(geojson: str, tile: str) -> Array:
    """The lines of a clip, (n, 4) float64: row and column of both ends, pixels from the tile's corner."""
    place = grid.tile_of(tile)
    parts = _around(_parsed(geojson), place.central_meridian)
    rings = [ring for part in parts for ring in (part.exterior, *part.interiors)]
    if not rings:
        return np.zeros((0, 4))
    lonlats = [shapely.get_coordinates(shapely.segmentize(ring, _SEGMENT_DEG)) for ring in rings]
    lon, lat = np.concatenate(lonlats).T
    x, y = grid.to_crs(lon, lat, place.crs)
    points = np.stack([(place.top_m - y) / grid.PIXEL_M, (x - place.left_m) / grid.PIXEL_M], axis=1)
    ends = np.cumsum([len(ring) for ring in lonlats])
    starts = np.setdiff1d(np.arange(len(points)), ends - 1)  # no edge from one ring's end to the next ring's start
    return np.concatenate([points[starts], points[starts + 1]], axis=1)


def tiles_of(region: Region) -> list[str]:
    """The names of the tiles whose area the region shares, sorted."""
    names = []
    for zone in range(1, 61):
        parts = _around(region.shape, 6 * zone - 183)
        if not parts:
            continue
        tiles, boxes = _zone_boxes(zone)
        shape = shapely.MultiPolygon(parts)
        shapely.prepare(shape)
        within = shapely.contains_properly(shape, boxes)
        names += [tiles[i].name for i in np.flatnonzero(within)]
        for i in np.flatnonzero(~within & shapely.intersects(shape, boxes)):
            square = grid.outline(tiles[i])
            if shape.intersects(square) and not shape.touches(square):
                names.append(tiles[i].name)
    return sorted(names)


@functools.lru_cache(maxsize=60)
def _zone_boxes(zone: int) -> tuple[list[grid.Tile], npt.NDArray[np.object_]]:
    """The tiles of a zone and a rectangle in longitude and latitude around each, slightly too large."""
    tiles = grid.zone_tiles(zone)
    steps = np.array([0, 0.5, 1]) * grid.SIDE_M
    east, north = (a.ravel() for a in np.meshgrid(steps, steps))
    lon, lat = np.zeros((2, len(tiles), 9))
    for epsg in (32600 + zone, 32700 + zone):
        rows = [i for i, tile in enumerate(tiles) if tile.epsg == epsg]
        x = np.array([tiles[i].left_m for i in rows])[:, None] + east
        y = np.array([tiles[i].bounds_m[1] for i in rows])[:, None] + north
        lon[rows], lat[rows] = grid.to_lonlat(x, y, f"EPSG:{epsg}")
    lon = grid.unwrap(lon, 6 * zone - 183)
    spare = 0.1  # degrees: between corner and middle an edge bulges by less (0.02 of latitude at 84 degrees)
    boxes = shapely.box(
        lon.min(axis=1) - spare, lat.min(axis=1) - spare, lon.max(axis=1) + spare, lat.max(axis=1) + spare
    )
    return tiles, boxes


def names_from_list(text: str) -> list[str]:
    """Tiles from "33TWL,33TXL", or from a file given as "@tiles.txt": one name a line, "#" begins a comment.

    Returns:
      Names, sorted, each once.

    Raises:
      BadInput: no such file, no names, or names that are no tiles.
    """
    if text.startswith("@"):
        lines = [line.partition("#")[0] for line in _read(Path(text[1:])).splitlines()]
        said = text
    else:
        lines, said = [text], "--tiles"
    names = sorted({name.strip() for line in lines for name in line.split(",") if name.strip()})
    if not names:
        raise BadInput(f"{said}: no tile names in it; write them as 33TWL,33TXL or one a line")
    wrong = [name for name in names if not grid.exists(name)]
    refusals = []
    for name in wrong[:_SHOWN]:
        try:
            grid.tile_of(name)
        except BadInput as e:
            refusals.append(str(e))
    if refusals:
        raise BadInput("; ".join(refusals) + (f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""))
    return names


def region_from_bbox(text: str) -> Region:
    """A region from "W,S,E,N" in degrees; W > E means across the antimeridian.

    Raises:
      BadInput: not four numbers, out of range, or without area.
    """
    said = f"bbox {text}"
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        raise BadInput(f"{said}: write four numbers W,S,E,N, in degrees, e.g. 14.9,45.5,15.1,45.7") from None
    if not all(map(math.isfinite, (west, south, east, north))):
        raise BadInput(f"{said}: write four numbers W,S,E,N, in degrees")
    if max(abs(south), abs(north)) > 90:
        raise BadInput(f"{said}: latitudes end at 90; the order is W,S,E,N, longitude first")
    if max(abs(west), abs(east)) > 180:
        raise BadInput(f"{said}: longitudes lie in -180..180; across the antimeridian W is greater than E")
    if south >= north:
        raise BadInput(f"{said}: south {south:g} is not below north {north:g}; the order is W,S,E,N")
    if west == east:
        raise BadInput(f"{said}: west and east are the same; all around the Earth is -180 to 180")
    return _region(shapely.box(west, south, east + 360 if west > east else east, north), said)


def region_from_file(path: str | Path) -> Region:
    """A region from a GeoJSON file: a geometry, Feature or FeatureCollection of polygons, holes included.

    Features without a geometry are passed over. A ring that leaps from one side of +-180 to the other is taken to cross
    it; a ring that crosses itself is read by the even-odd rule.

    Raises:
      BadInput: no such file, not GeoJSON, other than polygons, not longitude and latitude, or without area.
    """
    said = f"region {path}"
    try:
        record = json.loads(_read(Path(path)))
    except ValueError as e:
        raise BadInput(f"{said}: not GeoJSON ({e}); convert it: ogr2ogr -t_srs EPSG:4326 region.geojson FILE") from None
    return region_from_geojson(record, said)


def region_from_geojson(record: Any, said: str = "region") -> Region:
    """A region from a GeoJSON object as `json.loads` gives it; see `region_from_file`. `said` names it in messages."""
    crs = record.get("crs") if isinstance(record, dict) else None
    if crs and not str(crs).replace("::", ":").rstrip("'}").endswith(("CRS84", "4326")):
        raise BadInput(f"{said}: its crs is {crs}; GeoJSON is longitude and latitude: ogr2ogr -t_srs EPSG:4326")
    return _region(shapely.union_all(list(_shapes(record, said))), said)


def _shapes(record: Any, said: str) -> Iterator[shapely.Geometry]:
    """The polygons of a GeoJSON object, as they are given."""
    kind = record.get("type") if isinstance(record, dict) else None
    children = {"FeatureCollection": "features", "GeometryCollection": "geometries"}
    try:
        if kind in children:
            for child in record[children[kind]]:
                yield from _shapes(child, said)
        elif kind == "Feature":
            if record["geometry"] is not None:
                yield from _shapes(record["geometry"], said)
        elif kind == "Polygon":
            yield _polygon(record["coordinates"], said)
        elif kind == "MultiPolygon":
            for rings in record["coordinates"]:
                yield _polygon(rings, said)
        elif kind in ("Point", "MultiPoint", "LineString", "MultiLineString"):
            raise BadInput(f"{said}: it holds a {kind}, which has no area; give polygons (a buffer around it, say)")
        else:
            raise BadInput(f"{said}: not GeoJSON: type {kind!r} instead of a Feature, FeatureCollection or geometry")
    except (KeyError, TypeError, IndexError) as e:
        raise BadInput(f"{said}: a {kind} that is not as RFC 7946 has it ({type(e).__name__}: {e})") from None


def _polygon(rings: Any, said: str) -> shapely.Geometry:
    """A polygon from GeoJSON rings, its rings unwrapped where they leap across the antimeridian."""
    unwrapped: list[Array] = []
    for ring in rings:
        try:
            points = np.array([position[:2] for position in ring], np.float64)
        except ValueError:
            points = np.zeros((0, 2))
        if points.ndim != 2 or points.shape[1:] != (2,) or len(points) < 4 or not np.isfinite(points).all():
            raise BadInput(f"{said}: a ring must be a list of four or more [longitude, latitude] pairs")
        lon, lat = points.T
        if np.abs(lon).max() > 360 or np.abs(lat).max() > 90:
            at = points[np.argmax(np.maximum(np.abs(lon) / 360, np.abs(lat) / 90))]
            cure = (
                "these look like projected coordinates: ogr2ogr -t_srs EPSG:4326"
                if np.abs(points).max() > 360
                else "the order is longitude, latitude"
            )
            raise BadInput(f"{said}: point {at[0]:g}, {at[1]:g} is not a longitude and latitude; {cure}")
        unwrapped.append(np.stack([_unwrapped(lon, unwrapped, said), lat], axis=1))
    return shapely.make_valid(shapely.Polygon(unwrapped[0], unwrapped[1:])) if unwrapped else shapely.Polygon()


def _unwrapped(lon: Array, before: list[Array], said: str) -> Array:
    """Longitudes of a ring without leaps; a hole comes to lie in the outer ring `before[0]`."""
    leaps = np.diff(lon)
    doubtful = (np.abs(leaps) > 180) & (np.abs(leaps) < 270)
    if doubtful.any():
        i = int(np.argmax(doubtful))
        raise BadInput(
            f"{said}: the line from longitude {lon[i]:g} to {lon[i + 1]:g} may go either way round; add a point "
            "between them, or cut the polygon at the antimeridian (RFC 7946, 3.1.9)"
        )
    # A line of exactly 360 degrees is the edge of a map of the whole Earth, not a leap.
    turns = np.where((np.abs(leaps) >= 270) & (np.abs(leaps) < 360), -np.sign(leaps), 0)
    smooth = lon + 360 * np.concatenate([[0], np.cumsum(turns)])
    if turns.sum():
        raise BadInput(f"{said}: a ring goes once around a pole; cut it at the antimeridian (RFC 7946, 3.1.9)")
    if before:
        outer = before[0][:, 0]
        smooth = smooth + 360 * np.round(((outer.min() + outer.max()) - (smooth.min() + smooth.max())) / 720)
    return np.asarray(smooth)


def _region(shape: shapely.Geometry, said: str) -> Region:
    """The canonical region of polygons whose longitudes may pass +-180."""
    canonical = _canonical(shape)
    if canonical.is_empty:
        raise BadInput(f"{said}: it has no area; give at least one polygon")
    return Region(_canonical(shapely.segmentize(canonical, _LONGEST_DEG)))


def _canonical(shape: shapely.Geometry) -> shapely.MultiPolygon:
    """The polygons of a shape, cut at the antimeridian and moved into [-180, 180], as `Region.shape` has them."""
    pieces = []
    for turn in (-360, 0, 360):
        within = shapely.box(-180 - turn, -90, 180 - turn, 90)
        pieces += _parts(_moved(shapely.intersection(part, within), turn) for part in _parts([shape]))
    snapped = shapely.set_precision(shapely.set_precision(shapely.union_all(pieces), GRID_DEG), 0)
    ordered = shapely.normalize(shapely.MultiPolygon(_parts([snapped])))
    # Rounding again gives the shortest decimals, adding zero removes its sign.
    exact = shapely.transform(ordered, lambda points: np.round(points, 7) + 0.0)
    return shapely.MultiPolygon([orient(part) for part in exact.geoms])


def _parts(shapes: Iterable[shapely.Geometry]) -> list[shapely.Polygon]:
    """The polygons with area among shapes and their members."""
    return [
        part
        for shape in shapes
        for part in shapely.get_parts(shapely.get_parts(shapely.force_2d(shape)))
        if isinstance(part, shapely.Polygon) and part.area > 0
    ]


def _moved(shape: shapely.Geometry, degrees: float) -> Any:
    return shapely.transform(shape, lambda points: points + np.array([degrees, 0.0])) if degrees else shape


def _around(shape: shapely.MultiPolygon, middle: int) -> list[shapely.Polygon]:
    """The parts of a canonical shape that tiles of the zone around `middle` may touch, whole across +-180."""
    west, east = middle - _REACH_DEG, middle + _REACH_DEG
    near: list[shapely.Polygon] = []
    for turn in (-360, 0, 360):
        moved = [_moved(p, turn) for p in shape.geoms if p.bounds[0] + turn < east and p.bounds[2] + turn > west]
        near += moved
    if west >= -180 and east <= 180:
        return near
    strip = shapely.box(west, -90, east, 90)
    return _parts([shapely.union_all([part.intersection(strip) for part in near])])


def _geojson(shape: shapely.MultiPolygon) -> str:
    coordinates = [[shapely.get_coordinates(ring).tolist() for ring in (p.exterior, *p.interiors)] for p in shape.geoms]
    return json.dumps({"type": "MultiPolygon", "coordinates": coordinates}, separators=(",", ":"))


def _parsed(geojson: str) -> shapely.MultiPolygon:
    """What `_geojson` wrote."""
    shape = shapely.from_geojson(geojson)
    if not isinstance(shape, shapely.MultiPolygon):
        raise BadInput(f"clip {geojson[:60]!r}: not the GeoJSON of a MultiPolygon")
    return shape


def _read(path: Path) -> str:
    """The text of a file the user named."""
    try:
        return path.read_text(encoding="utf-8-sig")  # Windows editors put a mark in front
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except (IsADirectoryError, PermissionError, UnicodeDecodeError) as e:
        raise BadInput(f"{path}: not a readable text file ({type(e).__name__})") from None
