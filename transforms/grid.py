"""The Sentinel-2 grid: tiles from their MGRS names, their blocks, and the way between pixels and longitude, latitude.

The names follow the Military Grid Reference System (letters of the WGS 84 scheme), the squares ESA's grid: 109.8 km,
snapped to 60 m. `all_names` gives the 56,686 names of ESA's list by a rule, so that no list has to be shipped.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import shapely
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform as _reproject
from shapely.geometry.polygon import orient

from model.errors import BadInput

PIXEL_M = 10
TILE_PX = 10_980  # side of every Sentinel-2 MGRS tile at 10 m (109.8 km; ESA S2 PSD, section on tiling)
STEP_PX = 256  # blocks start on pairs of 128 px COG tiles, so that neither image nor first overview shares one
SIDE_M = TILE_PX * PIXEL_M

LONLAT = "EPSG:4326"
_SNAP_M = 60  # corners are multiples of 60 m, so that the 10, 20 and 60 m bands share them
_SQUARE_M = 100_000  # side of an MGRS square
_FALSE_NORTHING_M = 10_000_000  # of the southern UTM zones
_BANDS = "CDEFGHJKLMNPQRSTUVWX"  # 8 degrees of latitude each from 80 S; C and X go on to the end of the grid
_ROWS = "ABCDEFGHJKLMNPQRSTUV"  # repeat every 2,000 km; even zones begin at F
_COLUMNS = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")  # by zone modulo 3, from 100 km easting on
_FIRST_ROW, _LAST_ROW = -93, 93  # ESA's grid, in squares from the equator: 83.7 S to 84.6 N
_EDGE_POINTS = 21  # of a footprint, which then lies within 4 m of the tile up to 84 degrees of latitude

# Squares at the widened zones of Norway and Svalbard that the rule of `_squares` would keep and ESA's list leaves out,
# because tiles of the western neighbour cover what they would add.
_LEFT_OUT = frozenset({"32VJH", "32VJJ", "32VJK", "32VKH", "32WME", "34WDE", "36WVE"})

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, order=True)
class Tile:
    """A Sentinel-2 MGRS tile: TILE_PX squared pixels of PIXEL_M in its UTM zone.

    Attributes:
      name: MGRS name, e.g. "33TWL".
      epsg: of its UTM zone; 326zz for bands N to X, else 327zz.
      left_m, top_m: north-west corner.
    """

    name: str
    epsg: int
    left_m: int
    top_m: int

    @property
    def crs(self) -> str:
        return f"EPSG:{self.epsg}"

    @property
    def transform(self) -> Affine:
        """From (col, row) at 10 m to easting, northing."""
        return Affine(PIXEL_M, 0, self.left_m, 0, -PIXEL_M, self.top_m)

    @property
    def bounds_m(self) -> tuple[int, int, int, int]:
        """Left, bottom, right, top."""
        return self.left_m, self.top_m - SIDE_M, self.left_m + SIDE_M, self.top_m

    @property
    def central_meridian(self) -> int:
        """Longitude in the middle of the tile's zone."""
        return _central_meridian(self.epsg % 100)


@dataclasses.dataclass(frozen=True, order=True)
class Block:
    """A window of one tile, the element that travels through the pipeline.

    Attributes:
      tile: MGRS name, e.g. "33TWL".
      row_px, col_px: north-west corner, pixels from the tile's own corner.
      height_px, width_px: size; shorter than the plan's block in the last row and column.
    """

    tile: str
    row_px: int
    col_px: int
    height_px: int
    width_px: int

    @property
    def name(self) -> str:
        """As it stands in the names of fragments and receipts, e.g. "r00000_c02048"."""
        return f"r{self.row_px:05d}_c{self.col_px:05d}"


def blocks_of(tile: str, size_px: int) -> Iterator[Block]:
    """Yields the blocks that cover `tile` once, row by row.

    Raises:
      BadInput: `size_px` is not a positive multiple of STEP_PX.
    """
    if size_px <= 0 or size_px % STEP_PX:
        raise BadInput(f"block size {size_px} px: it must be a positive multiple of {STEP_PX}")
    for row in range(0, TILE_PX, size_px):
        for col in range(0, TILE_PX, size_px):
            yield Block(tile, row, col, min(size_px, TILE_PX - row), min(size_px, TILE_PX - col))


def tile_of(name: str) -> Tile:
    """The tile of that name.

    Raises:
      BadInput: no such tile in ESA's grid; the message gives the nearest name that is one.
    """
    if exists(name):
        return _tile_of(name)
    near = _nearest_name(name)
    said = f"tile {name!r}: not a Sentinel-2 tile"
    raise BadInput(f"{said}; the nearest name is {near}" if near else f"{said}; names look like 33TWL")


def exists(name: str) -> bool:
    """Whether ESA's grid has a tile of that name."""
    return re.fullmatch(r"[0-9]{2}[A-Z]{3}", name) is not None and name in _squares(int(name[:2]))


@functools.cache
def _tile_of(name: str) -> Tile:
    """The rule that reproduces every footprint of ESA's grid: floor and ceiling to 60 m, northings signed."""
    zone = int(name[:2])
    column, row = _squares(zone)[name]
    left = column * _SQUARE_M // _SNAP_M * _SNAP_M
    top = -(-(row + 1) * _SQUARE_M // _SNAP_M) * _SNAP_M
    return Tile(name, (32600 if row >= 0 else 32700) + zone, left, top if row >= 0 else top + _FALSE_NORTHING_M)


@functools.cache
def all_names() -> tuple[str, ...]:
    """The names of all tiles, sorted: the 56,686 of ESA's list."""
    return tuple(sorted(name for zone in range(1, 61) for name in _squares(zone)))


def all_tiles() -> Iterator[Tile]:
    """Yields every tile of the grid, sorted by name."""
    return (_tile_of(name) for name in all_names())


def zone_tiles(zone: int) -> list[Tile]:
    """The tiles of a UTM zone, sorted by name."""
    return [_tile_of(name) for name in sorted(_squares(zone))]


@functools.cache
def _squares(zone: int) -> dict[str, tuple[int, int]]:
    """The squares of a zone: name to (column, row), in squares from easting 0 and from the equator.

    ESA's list has a square where it touches the zone, once, under the latitude band that its middle lies in. At the
    zone's western meridian a square is left out where its own midline lies wholly outside, since the zone to the west
    covers the rest. Zone 1 keeps those squares, and zone 60 leaves them out at its eastern meridian instead.
    Found by comparison with ESA's list (the copy in cmosig/sentle): all 56,686 names agree and none is left over.
    """
    squares = {}
    for row in range(_FIRST_ROW, _LAST_ROW + 1) if 1 <= zone <= 60 else ():
        bands = [_band(row * _SQUARE_M + part) for part in (0, _SQUARE_M // 2, _SQUARE_M)]
        edges = [_zone_edges(zone, band) for band in (bands[0], bands[2])]
        if (own := _zone_edges(zone, bands[1])) is None:
            continue
        west = min(min(_edge_eastings(edge[0])[row - _FIRST_ROW :][:2]) for edge in (own, *filter(None, edges)))
        east = max(max(_edge_eastings(edge[1])[row - _FIRST_ROW :][:2]) for edge in (own, *filter(None, edges)))
        for column, letter in enumerate(_COLUMNS[zone % 3], start=1):
            name = f"{zone:02d}{bands[1]}{letter}{_ROWS[(row + (0 if zone % 2 else 5)) % 20]}"
            begins = (column + (1 if zone == 1 else 0.5)) * _SQUARE_M > west
            ends = (column + (0.5 if zone == 60 else 0)) * _SQUARE_M < east
            if begins and ends and name not in _LEFT_OUT:
                squares[name] = column, row
    return squares


def _zone_edges(zone: int, band: str) -> tuple[int, int] | None:
    """The meridians that bound a zone in a band, in degrees from its centre; None where there is no such zone."""
    if band == "V" and zone in (31, 32):  # south-west Norway
        return (-3, 0) if zone == 31 else (-6, 3)
    if band == "X" and 31 <= zone <= 37:  # Svalbard
        return {31: (-3, 6), 33: (-6, 6), 35: (-6, 6), 37: (-6, 3)}.get(zone)
    return -3, 3


@functools.cache
def _edge_eastings(degrees: int) -> tuple[float, ...]:
    """Eastings of the meridian that lies `degrees` east of a zone's centre, at the lower edge of each row and the top.

    Interpolated between points 1 km apart: exact to centimetres, where the rule of `_squares` needs 100 m.
    """
    lats = np.linspace(-85.5, 85.5, 17_101)
    eastings, northings = to_crs(np.full(lats.shape, _central_meridian(31) + degrees), lats, "EPSG:32631")
    rows = np.arange(_FIRST_ROW, _LAST_ROW + 2) * _SQUARE_M
    return tuple(np.interp(rows, northings, eastings).tolist())


@functools.cache
def _band(northing_m: int) -> str:
    """The latitude band at a northing (negative in the south) on a central meridian."""
    _, lats = to_lonlat(np.array([500_000.0]), np.array([float(northing_m)]), "EPSG:32631")
    return _BANDS[min(max(int((lats[0] + 80) // 8), 0), len(_BANDS) - 1)]


def _central_meridian(zone: int) -> int:
    return 6 * zone - 183


def _nearest_name(name: str) -> str | None:
    """A valid name that was probably meant, or None where nothing is near."""
    tidy = re.sub(r"[^0-9A-Z]", "", name.upper()).removeprefix("MGRS").removeprefix("T")
    match = re.fullmatch(r"(\d{1,2})([A-Z])([A-Z])([A-Z])", tidy)
    if match is None:
        return None
    zone, *letters = match.groups()
    tidy = f"{int(zone):02d}{''.join(letters)}"

    def steps(other: str) -> tuple[int, int, str]:
        zones = abs(int(tidy[:2]) - int(other[:2]))
        apart = [min(zones, 60 - zones) if zones < 60 else zones]
        apart += [abs(ord(a) - ord(b)) for a, b in zip(tidy[2:], other[2:], strict=True)]
        return sum(n > 0 for n in apart), sum(apart), other

    return min(all_names(), key=steps)


def to_lonlat(x: npt.ArrayLike, y: npt.ArrayLike, crs: str) -> tuple[Array, Array]:
    """Coordinates in `crs` to longitude and latitude (WGS 84), as PROJ computes them; any shape, float64."""
    return _transformed(x, y, crs, LONLAT)


def to_crs(lon: npt.ArrayLike, lat: npt.ArrayLike, crs: str) -> tuple[Array, Array]:
    """Longitude and latitude to coordinates in `crs`, as PROJ computes them; any shape, float64."""
    return _transformed(lon, lat, LONLAT, crs)


def _transformed(x: npt.ArrayLike, y: npt.ArrayLike, source: str, target: str) -> tuple[Array, Array]:
    xs, ys = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
    out = _reproject(_crs(source), _crs(target), xs.ravel(), ys.ravel())
    return np.asarray(out[0], np.float64).reshape(xs.shape), np.asarray(out[1], np.float64).reshape(xs.shape)


@functools.cache
def _crs(name: str) -> CRS:
    return CRS.from_string(name)  # takes longer than a thousand points


def lonlat_of(tile: Tile | str, rows: npt.ArrayLike, cols: npt.ArrayLike) -> tuple[Array, Array]:
    """Longitude and latitude of pixel centres.

    Args:
      rows, cols: of pixels, from the tile's north-west corner; they broadcast. -0.5 is the corner's own edge.

    Returns:
      Two float64 arrays of the broadcast shape, longitudes in [-180, 180].
    """
    tile = _as_tile(tile)
    x = tile.left_m + (np.asarray(cols, np.float64) + 0.5) * PIXEL_M
    y = tile.top_m - (np.asarray(rows, np.float64) + 0.5) * PIXEL_M
    return to_lonlat(x, y, tile.crs)


def pixel_of(tile: Tile | str, lon: float, lat: float) -> tuple[int, int] | None:
    """Row and column of the pixel that holds a point, or None where the point lies outside the tile."""
    tile = _as_tile(tile)
    x, y = to_crs([lon], [lat], tile.crs)
    row, col = (tile.top_m - y[0]) / PIXEL_M, (x[0] - tile.left_m) / PIXEL_M
    return (int(row), int(col)) if 0 <= row < TILE_PX and 0 <= col < TILE_PX else None


def tiles_at(lon: float, lat: float) -> list[Tile]:
    """All tiles that hold a point, sorted by name; more than one in overlaps, none beyond the grid's ends.

    Raises:
      BadInput: not a longitude in [-180, 180] and a latitude in [-90, 90].
    """
    if not (-180 <= lon <= 180 and -90 <= lat <= 90):
        raise BadInput(f"point {lon},{lat}: write longitude (-180 to 180), then latitude (-90 to 90)")
    if not -85 < lat < 86:  # beyond every tile of the grid, where meridians crowd
        return []
    found = []
    # A tile begins in its zone, 6 degrees wide on either side at most, and ends within 110 km of it.
    reach = 6 + 110 / (111 * float(np.cos(np.radians(lat))))
    for zone in range(1, 61):
        if abs((lon - _central_meridian(zone) + 180) % 360 - 180) > reach:
            continue
        x, y = to_crs([lon], [lat], f"EPSG:{32600 + zone}")
        column, row = int(x[0] // _SQUARE_M), int(y[0] // _SQUARE_M)
        near = {(column + dc, row + dr) for dc in (-1, 0, 1) for dr in (-1, 0, 1)}
        names = [name for name, square in _squares(zone).items() if square in near]
        found += [_tile_of(name) for name in names if pixel_of(name, lon, lat) is not None]
    return sorted(found)


def outline(tile: Tile | str, margin_m: float = 0, edge_points: int = 101) -> shapely.Polygon:
    """The tile's square, and so much around it, in longitude and latitude: one polygon, which may pass +-180.

    Counter-clockwise from the north-west corner, `edge_points` on each edge. Straight lines between 101 points lie
    within 0.2 m of the square's edges up to 84 degrees of latitude, between 21 within 4 m, between 11 within 16 m.
    """
    tile = _as_tile(tile)
    left, bottom, _, _ = tile.bounds_m
    along = np.linspace(0, 1, edge_points)[:-1]
    zeros, ones = np.zeros_like(along), np.ones_like(along)
    side = SIDE_M + 2 * margin_m
    x = left - margin_m + side * np.concatenate([zeros, along, ones, 1 - along])
    y = bottom - margin_m + side * np.concatenate([1 - along, zeros, along, ones])
    lon, lat = to_lonlat(x, y, tile.crs)
    return shapely.Polygon(np.stack([unwrap(lon, tile.central_meridian), lat], axis=1))


def footprint(tile: Tile | str) -> shapely.Polygon | shapely.MultiPolygon:
    """The tile in longitude and latitude, 21 points an edge, rounded to 1e-7 degrees (1 cm).

    Outer rings run counter-clockwise. A tile across the antimeridian is cut there into two polygons (RFC 7946, 3.1.9).
    """
    return split_antimeridian(outline(tile, edge_points=_EDGE_POINTS))


def bbox_of(tile: Tile | str) -> tuple[float, float, float, float]:
    """West, south, east, north of the footprint; west > east across the antimeridian (RFC 7946, 5.2)."""
    shape = footprint(tile)
    if isinstance(shape, shapely.Polygon):
        west, south, east, north = shape.bounds
    else:
        _, south, _, north = shape.bounds
        west = max(part.bounds[0] for part in shape.geoms)
        east = min(part.bounds[2] for part in shape.geoms)
    return west, south, east, north


def unwrap(lon: npt.ArrayLike, around: float) -> Array:
    """Longitudes moved by whole turns to within 180 degrees of `around`; float64, same shape."""
    values = np.asarray(lon, np.float64)
    turned: Array = values - 360 * np.round((values - around) / 360)
    return turned


def split_antimeridian(shape: shapely.Polygon | shapely.MultiPolygon) -> shapely.Polygon | shapely.MultiPolygon:
    """Polygons whose longitudes may pass +-180 by less than a turn, cut there and moved into [-180, 180].

    Rounded to 1e-7 degrees; outer rings counter-clockwise; parts from west to east by their western edge.
    """
    parts: list[shapely.Polygon] = []
    for shift in (-360, 0, 360):
        piece = shapely.intersection(shape, shapely.box(-180 - shift, -90, 180 - shift, 90))
        piece = shapely.transform(piece, functools.partial(_shifted, degrees=shift))
        parts += [orient(p) for p in getattr(piece, "geoms", [piece]) if isinstance(p, shapely.Polygon) and p.area > 0]
    parts.sort(key=lambda p: p.bounds)
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def _shifted(coordinates: Array, degrees: float) -> Array:
    moved: Array = np.round(coordinates + np.array([degrees, 0.0]), 7)
    return moved


def _as_tile(tile: Tile | str) -> Tile:
    return tile if isinstance(tile, Tile) else tile_of(tile)
