"""OPERA RTC-S1: radar as 30 m bursts, from granule records of NASA's Common Metadata Repository (CMR)."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from model.profile import OPERA_RTC
from transforms.catalogs.source import BY_CATALOGUE, Item, Offset, Source, number
from transforms.scenes import ASCENDING, DESCENDING, S1

PROVIDER = "opera"
CMR_URL = "https://cmr.earthdata.nasa.gov/search"
CONCEPT = "C2777436413-ASF"  # OPERA_L2_RTC-S1_V1; CMR-STAC is not used, its asset keys are guesses (nasa/cmr-stac#326)
COLLECTION = "OPERA_L2_RTC-S1_V1"
ORBIT_TAG = "ORBIT_PASS_DIRECTION"  # of the GeoTIFFs; granules.json has nothing like it
ORBIT_ATTRIBUTE = "ASCENDING_DESCENDING"  # its twin among the additional attributes of granules.umm_json

# OPERA RTC-S1 product specification: burst, acquisition, production, satellite, pixel size in metres, version.
_NAME = re.compile(
    r"OPERA_L2_RTC-S1_(?P<burst>T(?P<track>\d{3})-\d{6}-IW\d)_(?P<taken>\d{8}T\d{6}Z)_(?P<made>\d{8}T\d{6}Z)"
    r"_(?P<satellite>S1[A-Z])_(?P<pixel_m>\d+)_v(?P<version>\d+\.\d+)"
)
_DATA_LINKS = ("GET DATA", "GET DATA VIA DIRECT ACCESS")  # UMM-G: over HTTPS, from S3


def _no_offset(_item: Item, _baseline: str) -> Offset:
    return Offset(0, "radar: nothing to subtract")


SOURCE = Source(
    name=OPERA_RTC,
    sensor=S1,
    collections=(COLLECTION,),
    keys={"VV": "VV", "VH": "VH"},
    pixel_m={},  # 30 m in the burst's own zone or polar projection; read through its own geotransform
    offset=_no_offset,
    generated="opera:made",
    datatake="opera:acquisition",
    order=BY_CATALOGUE,
    nodata=math.nan,  # outside a burst; the tag of its own files says so
)


def granules_in(record: object) -> Iterator[Mapping[str, Any]]:
    """The granule records in what CMR answers or in a list of them: granules.json, granules.umm_json, or plain dicts.

    STAC items, and anything else, give none.
    """
    if isinstance(record, Mapping):
        feed = record.get("feed")
        inner = [feed.get("entry")] if isinstance(feed, Mapping) else list(record.values())
        if record.get("type") in ("Feature", "FeatureCollection", "Catalog", "Collection"):
            return
        for part in inner:
            yield from granules_in(part) if isinstance(part, list) else ()
    elif isinstance(record, list):
        yield from (r for r in record if isinstance(r, Mapping) and _is_granule(r))


def burst_of(item: Item) -> str:
    """What bursts on one and the same grid share: OPERA cuts every acquisition of a burst by a fixed frame."""
    return str(item["properties"].get("opera:burst") or item["id"])


def item_of(granule: Mapping[str, Any]) -> dict[str, Any] | None:
    """A granule as a STAC-like item without a grid, or None for what is no RTC-S1 burst (static layers, say).

    Its assets are the VV and VH files; HTTPS links come before those of S3. `bbox` is missing where the record has no
    outline, `sat:orbit_state` where it does not tell the direction: both are in the files.
    """
    umm = granule.get("umm")
    umm = umm if isinstance(umm, Mapping) else {}
    title = next((t for t in (granule.get("title"), umm.get("GranuleUR")) if isinstance(t, str)), "")
    name = _NAME.fullmatch(title)
    if name is None:
        return None
    properties = {
        "datetime": _start(granule, umm),
        "platform": f"sentinel-{name['satellite'][1:].lower()}",
        "sat:relative_orbit": int(name["track"]),
        "opera:burst": f"{name['burst']}_{name['pixel_m']}_v{name['version']}",
        "opera:acquisition": f"{name['burst']}_{name['taken']}_{name['satellite']}",
        "opera:made": f"{name['made'][:4]}-{name['made'][4:6]}-{name['made'][6:11]}:{name['made'][11:13]}"
        f":{name['made'][13:]}",
        "sat:orbit_state": orbit_of(_attribute(umm, ORBIT_ATTRIBUTE)),
    }
    item: dict[str, Any] = {
        "type": "Feature",
        "id": title,
        "collection": COLLECTION,
        "geometry": None,
        "properties": properties,
        "assets": {band: {"href": href} for band in SOURCE.keys if (href := _href(granule, umm, title, band))},
    }
    if box := box_around(_outline(granule, umm)):
        item["bbox"] = list(box)
    return item


def orbit_of(said: object) -> str:
    """ "ascending" or "descending" for what CMR or a file says of a pass, "" for anything else."""
    word = str(said or "").strip().lower()
    return word if word in (ASCENDING, DESCENDING) else ""


def box_around(points: Sequence[tuple[float, float]]) -> tuple[float, float, float, float] | None:
    """(west, south, east, north) of (longitude, latitude) points, west > east across the antimeridian; None for none.

    Points more than half a turn apart lie on both sides of it: a burst is 90 km long.
    """
    if not points:
        return None
    lon, lat = [p[0] for p in points], [p[1] for p in points]
    west, east = min(lon), max(lon)
    if east - west > 180:
        west, east = min(v for v in lon if v > 0), max(v for v in lon if v <= 0)
    return west, min(lat), east, max(lat)


def _is_granule(record: Mapping[str, Any]) -> bool:
    return isinstance(record.get("umm"), Mapping) or (isinstance(record.get("title"), str) and "links" in record)


def _start(granule: Mapping[str, Any], umm: Mapping[str, Any]) -> str | None:
    """When the acquisition began: its UTC date is the day that the burst counts for."""
    extent = umm.get("TemporalExtent")
    extent = extent if isinstance(extent, Mapping) else {}
    span = extent.get("RangeDateTime")
    said = (
        granule.get("time_start"),
        span.get("BeginningDateTime") if isinstance(span, Mapping) else None,
        extent.get("SingleDateTime"),
    )
    return next((s for s in said if isinstance(s, str)), None)


def _attribute(umm: Mapping[str, Any], name: str) -> object:
    attributes = umm.get("AdditionalAttributes")
    for attribute in attributes if isinstance(attributes, list) else []:
        if isinstance(attribute, Mapping) and attribute.get("Name") == name:
            values = attribute.get("Values")
            return values[0] if isinstance(values, list) and len(values) == 1 else None
    return None


def _href(granule: Mapping[str, Any], umm: Mapping[str, Any], title: str, band: str) -> str | None:
    """The link to one polarisation's file: exactly the granule's name, so that no mask, browse or checksum is taken."""
    links, related = granule.get("links"), umm.get("RelatedUrls")
    said = [link.get("href") for link in links if isinstance(link, Mapping)] if isinstance(links, list) else []
    for kind in _DATA_LINKS:
        for url in related if isinstance(related, list) else []:
            if isinstance(url, Mapping) and url.get("Type") == kind:
                said.append(url.get("URL"))
    fits = [s for s in said if isinstance(s, str) and s.partition("?")[0].rpartition("/")[2] == f"{title}_{band}.tif"]
    fits.sort(key=lambda s: s.startswith("s3://"))  # S3 gives its files to machines of its own region alone
    return fits[0] if fits else None


def _outline(granule: Mapping[str, Any], umm: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Every (longitude, latitude) that a record gives of its ground; empty where one of them makes no sense."""
    points: list[tuple[object, object]] = []
    for ring in _strings(granule.get("polygons")):  # "lat lon lat lon ..."
        points += [(b, a) for a, b in zip(ring[::2], ring[1::2], strict=False)]
    for box in _strings(granule.get("boxes")):  # "south west north east"
        points += [(box[1], box[0]), (box[3], box[2])] if len(box) == 4 else [(None, None)]
    node: Any = umm
    for key in ("SpatialExtent", "HorizontalSpatialDomain", "Geometry"):
        node = node.get(key) if isinstance(node, Mapping) else None
    shapes = node if isinstance(node, Mapping) else {}
    for polygon in _mappings(shapes.get("GPolygons")):
        boundary = polygon.get("Boundary")
        for point in _mappings(boundary.get("Points") if isinstance(boundary, Mapping) else None):
            points.append((point.get("Longitude"), point.get("Latitude")))
    for sides in _mappings(shapes.get("BoundingRectangles")):
        points += [(sides.get(f"{h}BoundingCoordinate"), sides.get(f"{v}BoundingCoordinate"))
                   for h, v in (("West", "South"), ("East", "North"))]  # fmt: skip
    found = [(number(lon), number(lat)) for lon, lat in points]
    right = [(x, y) for x, y in found if x is not None and y is not None and abs(x) <= 180 and abs(y) <= 90]
    return right if len(right) == len(found) else []


def _strings(value: object) -> list[list[float | None]]:
    """The numbers in strings that are nested in lists, as granules.json writes rings and boxes."""
    if isinstance(value, str):
        return [[_float(word) for word in value.split()]]
    return [ring for part in value for ring in _strings(part)] if isinstance(value, list) else []


def _float(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [v for v in value if isinstance(v, Mapping)] if isinstance(value, list) else []
