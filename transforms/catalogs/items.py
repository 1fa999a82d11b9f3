"""Items: one STAC record as a scene of a tile, with the decisions that need no other record."""

import dataclasses
import datetime as dt
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import shapely
from shapely.errors import ShapelyError
from shapely.geometry.base import BaseGeometry

from transforms import grid
from transforms.catalogs.hrefs import resolve, stored
from transforms.catalogs.source import OFFSET_BASELINE, Item, Source, number, said
from transforms.scenes import ASCENDING, DESCENDING, Asset, Scene

__all__ = ["Found", "Record", "datetime_of", "item_boxes", "record_of", "resolve", "tile_id", "utc_text"]

_EDGE_POINTS = (
    21  # of a tile's edge when it is taken to another zone: straight within metres, and this is a test of overlap
)
JPEG_2000 = "JP2OpenJPEG"
CLOUD_LIMIT = 100.0  # ucam-eo/tessera s1_s2_downloader.sh: eo:cloud_cover < 100, strictly


@dataclasses.dataclass(frozen=True)
class Found:
    """An item that a search gave.

    Attributes:
      item: its JSON. location: path or URL of the record. source: whose description it follows.
      place: in the order of the catalogue, where that counts (`Source.order`).
      against: what the catalogue itself found wrong with it ("kind: detail").
    """

    item: Item
    location: str
    source: Source
    place: int = 0
    against: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Record:
    """A scene before the tile's other scenes are known.

    Attributes:
      scene: with its place in the catalogue as `order`.
      footprint: in longitude and latitude, moved by whole turns to the tile's own meridian.
    """

    scene: Scene
    footprint: BaseGeometry


def record_of(found: Found, tile: grid.Tile, root: str) -> Record | None:
    """The item as a scene of `tile`, or None where it shows another tile or has no time.

    What speaks against the scene is in `dropped_reason` ("kind: detail"): the first of what the catalogue found, cloud
    cover, orbit, assets that are missing, of a wrong format or without a grid, offset.

    Raises:
      BadInput: an href that leads out of `root`.
    """
    item, source = found.item, found.source
    properties = item["properties"]
    when = datetime_of(item)
    if when is None or not (_is_tile(item, source, tile) if source.tile else _meets(item, source, tile)):
        return None
    baseline = _baseline(item, source)
    offset = source.offset(item, baseline)
    assets, against = _assets(item, source, found.location, root)
    cloud = number(properties.get(source.cloud_cover))
    orbit = str(said(item, source.orbit) or "").lower()
    orbit = orbit if orbit in (ASCENDING, DESCENDING) else ""
    if source.is_optical:
        against = [*_against_optical(cloud), *against, *_against_grid(assets, source, tile)]
    elif not orbit:
        against = [f"no orbit: {source.orbit} is neither {ASCENDING} nor {DESCENDING}", *against]
    against = [*found.against, *against]
    if offset.dn is None:
        against.append(f"no offset: {offset.reason}")
    scene = Scene(
        tile=tile.name,
        sensor=source.sensor,
        source=source.name,
        id=str(item["id"]),
        datetime=utc_text(when),
        order=found.place,
        orbit=orbit,
        relative_orbit=_relative_orbit(item, source),
        platform=str(properties.get("platform") or "").lower(),
        baseline=baseline,
        cloud_cover=cloud if source.is_optical else None,
        datatake=str(properties.get(source.datatake) or "") or _datatake(item, source),
        generated=_generated(item, source),
        offset_dn=offset.dn or 0,
        offset_reason=offset.reason,
        kept=not against,
        dropped_reason=against[0] if against else "",
        assets=assets,
    )
    return Record(scene, _footprint(item, tile))


def datetime_of(item: Item) -> dt.datetime | None:
    """When the scene was taken (`datetime`, else `start_datetime`), in UTC; None where the item does not say."""
    for key in ("datetime", "start_datetime"):
        if (when := _time(item["properties"].get(key))) is not None:
            return when
    return None


def utc_text(when: dt.datetime) -> str:
    """ISO 8601 with microseconds and "Z", so that texts sort like times."""
    return when.astimezone(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def tile_id(item: Item, source: Source) -> str:
    """MGRS name as grid.tile_of writes it ("01WCQ" for the "MGRS-1WCQ" of some items), "" where the item has none."""
    properties = item["properties"]
    name = properties.get(source.tile)
    if not name and "mgrs:grid_square" in properties:
        name = "".join(str(properties.get(f"mgrs:{k}", "")) for k in ("utm_zone", "latitude_band", "grid_square"))
    match = re.fullmatch(r"(?:MGRS-|T)?(\d{1,2})([A-Z]{3})", str(name or ""))
    match = match or _named(item, r"_T(\d{2})([A-Z]{3})(?:_|\.|$)")
    return f"{int(match[1]):02d}{match[2]}" if match else ""


def item_boxes(item: Item) -> list[tuple[float, float, float, float]]:
    """(west, south, east, north) of the item, cut in two at the antimeridian; empty where it says nothing usable.

    A bbox with west > east crosses the antimeridian (RFC 7946, 5.2). So does one wider than half a turn: no scene is,
    and providers write those the wrong way round, except that the full turn says nothing about longitude.
    """
    values = item.get("bbox")
    numbers = [number(v) for v in values] if isinstance(values, Sequence) else []
    if len(numbers) == 6:
        numbers = [numbers[i] for i in (0, 1, 3, 4)]
    if len(numbers) != 4 or None in numbers:
        geometry = _geometry(item)
        if geometry is None:
            return []
        numbers = list(geometry.bounds)
    west, south, east, north = (float(v) for v in numbers if v is not None)
    if west <= east and east - west > 180 and east - west < 360:
        west, east = east, west
    if west <= east:
        return [(west, south, east, north)]
    return [(west, south, 180.0, north), (-180.0, south, east, north)]


def _time(value: object) -> dt.datetime | None:
    if not isinstance(value, str):
        return None
    try:
        when = dt.datetime.fromisoformat(value)
    except ValueError:
        return None
    return when.replace(tzinfo=dt.UTC) if when.tzinfo is None else when.astimezone(dt.UTC)


def _named(item: Item, pattern: str) -> re.Match[str] | None:
    """What the product's own name says (ESA S2 PSD: S2A_MSIL2A_<datatake>_N0510_R122_T33TWL_<made>)."""
    for name in (said(item, "s2:product_uri"), item.get("id")):
        if match := re.search(pattern, str(name or "")):
            return match
    return None


def _baseline(item: Item, source: Source) -> str:
    """ "05.10", from the property or from the product's name; "" where unknown, contradictory, and for radar.

    A JSON number has lost its last zero: 5.1 is 05.10. Where property and name lie on either side of the baseline that
    brought the offset, nobody knows which of them the pixels follow.
    """
    if not source.is_optical:
        return ""
    value = said(item, source.baseline)
    text = f"{value:05.2f}" if number(value) is not None else str(value)
    match = re.fullmatch(r"N?(\d{1,2})\.(\d{1,2})", text) or re.fullmatch(r"N?(\d{2})(\d{2})", text)
    stated = f"{int(match[1]):02d}.{match[2]:<02}" if match else ""
    match = _named(item, r"_N(\d{2})(\d{2})(?:_|$)")
    named = f"{match[1]}.{match[2]}" if match else ""
    if stated and named and (stated >= OFFSET_BASELINE) != (named >= OFFSET_BASELINE):
        return ""
    return stated or named


def _relative_orbit(item: Item, source: Source) -> int | None:
    """From the property, else from the name of the S2 product (`_R122_`): Earth Search has only that."""
    value = number(said(item, source.relative_orbit))
    if value is not None:
        return int(value)
    match = _named(item, r"_R(\d{3})_") if source.is_optical else None
    return int(match[1]) if match else None


def _datatake(item: Item, source: Source) -> str:
    """Satellite and start from the product's name, in the words of a datatake's id; "" where it has another form."""
    match = _named(item, r"^(S2[A-Z])_MSIL2A_(\d{8}T\d{6})_") if source.is_optical else None
    return f"G{match[1]}_{match[2]}" if match else ""


def _generated(item: Item, source: Source) -> str:
    when = _time(said(item, source.generated))
    return "" if when is None else utc_text(when)


def _against_optical(cloud: float | None) -> list[str]:
    if cloud is None:
        return ["cloud cover: the item has no eo:cloud_cover"]
    if cloud >= CLOUD_LIMIT:
        return [f"cloud cover: {cloud:g} %, and only scenes below {CLOUD_LIMIT:g} % are used"]
    return []


def _against_grid(assets: tuple[Asset, ...], source: Source, tile: grid.Tile) -> list[str]:
    """S2 files lie on their tile's own grid; a record that says otherwise is wrong (Element84/earth-search#48)."""
    left, bottom, right, top = tile.bounds_m
    for asset in assets:
        size = source.pixel_m[asset.band]
        a, _, x, _, e, y = asset.transform
        if asset.epsg != tile.epsg:
            return [f"wrong grid: {asset.band} is in EPSG:{asset.epsg}, tile {tile.name} in EPSG:{tile.epsg}"]
        if (a, e) != (size, -size):
            return [f"wrong grid: {asset.band} has pixels of {a:g} x {-e:g} m instead of {size} m"]
        if (x - tile.left_m) % size or (tile.top_m - y) % size:
            return [f"wrong grid: the corner {x:g}, {y:g} of {asset.band} is off the tile's {size} m grid"]
        if x < left or y > top or x + size * asset.width_px > right or y - size * asset.height_px < bottom:
            return [f"wrong grid: {asset.band} of {asset.height_px} x {asset.width_px} px reaches out of {tile.name}"]
    return []


def _assets(item: Item, source: Source, location: str, root: str) -> tuple[tuple[Asset, ...], list[str]]:
    """The assets in the order of the table, and what is wrong with those that are not among them."""
    files = item.get("assets")
    files = files if isinstance(files, Mapping) else {}
    assets, against = [], []
    for band, key in source.keys.items():
        fields = files.get(key)
        href = fields.get("href") if isinstance(fields, Mapping) else None
        if not isinstance(fields, Mapping) or not isinstance(href, str) or not href:
            against.append(f"no band {band}: the item has no asset {key}" + (" with an href" if fields else ""))
            continue
        where = stored(href, location, root, str(item["id"]))
        is_jp2 = where.partition("?")[0].lower().endswith(".jp2") or "jp2" in str(fields.get("type") or "")
        if is_jp2 and JPEG_2000 not in source.drivers:  # named all the same: the scene is left out, its files are known
            against.append(f"not a COG: {band} is a JPEG 2000 file")
        placed = _grid_of(fields, item["properties"])
        if isinstance(placed, str):
            against.append(f"no grid: {band} {placed}")
            continue
        epsg, transform, (height_px, width_px) = placed
        size, checksum = number(fields.get("file:size")), fields.get("file:checksum")
        size_bytes = None if size is None else int(size)
        digest = checksum if isinstance(checksum, str) else ""
        assets.append(Asset(band, where, epsg, transform, height_px, width_px, size_bytes, digest))
    return tuple(assets), against


MAX_SIDE_PX = 1 << 24  # as of files (transforms.tiff); the largest tile of any grid has 10,980

_Grid = tuple[int, tuple[float, float, float, float, float, float], tuple[int, int]]


def _grid_of(fields: Mapping[str, Any], properties: Mapping[str, Any]) -> _Grid | str:
    """EPSG, geotransform, (height, width) in pixels, each from the asset or else from the item; or what is amiss."""

    def of(key: str) -> Any:
        return fields[key] if fields.get(key) is not None else properties.get(key)

    code = next((c for where in (fields, properties) if (c := _epsg(where)) is not None), None)
    if code is None:
        return "has neither proj:epsg nor proj:code"
    values, shape = of("proj:transform"), of("proj:shape")
    if not isinstance(values, list) or len(values) not in (6, 9) or None in (numbers := [number(v) for v in values]):
        return "has no proj:transform of 6 or 9 numbers"
    a, b, x, d, e, y = (float(v) for v in numbers[:6] if v is not None)
    if b or d or a <= 0 or e >= 0:
        return f"has a proj:transform that is not north-up: {a:g}, {b:g}, {d:g}, {e:g}"
    size = [number(v) for v in shape] if isinstance(shape, list) else []
    if len(size) != 2 or not all(v is not None and 0 < v < MAX_SIDE_PX and v.is_integer() for v in size):
        return "has no proj:shape of height and width"
    return code, (a, b, x, d, e, y), (int(size[0] or 0), int(size[1] or 0))


def _epsg(fields: Mapping[str, Any]) -> int | None:
    """Of `proj:epsg` (version 1 of the extension; a float in some Parquet files) or `proj:code` ("EPSG:32633")."""
    value = number(fields.get("proj:epsg"))
    text = f"{value:.0f}" if value is not None else str(fields.get("proj:epsg") or fields.get("proj:code") or "")
    code = re.fullmatch(r"(?:EPSG:)?(\d{4,6})", text)
    return int(code[1]) if code else None


def _is_tile(item: Item, source: Source, tile: grid.Tile) -> bool:
    return tile_id(item, source) == tile.name


def _meets(item: Item, source: Source, tile: grid.Tile) -> bool:
    """Whether a radar scene shows some of the tile: by its file's own extent, else by its bbox."""
    if not (near := _boxes_meet(item_boxes(item), tile)):
        return near
    files = item.get("assets")
    for key in source.keys.values():
        fields = files.get(key) if isinstance(files, Mapping) else None
        if not isinstance(fields, Mapping) or isinstance(placed := _grid_of(fields, item["properties"]), str):
            continue
        epsg, (a, _, x, _, e, y), (height_px, width_px) = placed
        extent = shapely.box(x, y + e * height_px, x + a * width_px, y)
        return bool(extent.intersection(_square(tile, epsg)).area > 0)
    return near


def _boxes_meet(boxes: list[tuple[float, float, float, float]], tile: grid.Tile) -> bool:
    shape = grid.footprint(tile)
    return any(shape.intersects(shapely.box(*box)) for box in boxes)


def _square(tile: grid.Tile, epsg: int) -> BaseGeometry:
    """The tile's square in another zone; empty where that projection has no such place."""
    left, bottom, right, top = tile.bounds_m
    if epsg == tile.epsg:
        return shapely.box(left, bottom, right, top)
    ring = shapely.segmentize(shapely.box(left, bottom, right, top), (right - left) / (_EDGE_POINTS - 1)).exterior
    corners = np.asarray(ring.coords)
    lon, lat = grid.to_lonlat(corners[:, 0], corners[:, 1], tile.crs)
    points = np.stack(grid.to_crs(lon, lat, f"EPSG:{epsg}"), axis=1)
    return shapely.make_valid(shapely.Polygon(points)) if np.isfinite(points).all() else shapely.Polygon()


def _geometry(item: Item) -> BaseGeometry | None:
    geometry = item.get("geometry")
    try:
        shape = shapely.geometry.shape(geometry) if isinstance(geometry, dict) else None
    except (
        ShapelyError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        IndexError,
    ):  # as many as there are ways to err
        return None
    if shape is None or shape.is_empty or not np.isfinite(shapely.get_coordinates(shape)).all():
        return None
    return shape


def _footprint(item: Item, tile: grid.Tile) -> BaseGeometry:
    """The item's geometry, else its bbox, around the tile's own meridian, whichever way round it was written.

    The whole tile where neither makes sense: nothing says that the item shows less.
    """
    shape = _geometry(item)
    if shape is None:
        shape = shapely.union_all([shapely.box(*box) for box in item_boxes(item)])

    def turned(points: Any) -> Any:
        return np.stack([grid.unwrap(points[:, 0], tile.central_meridian), points[:, 1]], axis=1)

    valid = shapely.make_valid(shapely.transform(shape, turned))
    parts = shapely.get_parts(shapely.get_parts(valid))  # areas alone: seams become lines when they are turned
    areas = [p for p in parts if p.geom_type == "Polygon" and p.area > 0]
    return shapely.union_all(areas) if areas else grid.outline(tile)
