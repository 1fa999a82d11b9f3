"""Headers: grid and orbit direction of GeoTIFFs, for catalogues whose records tell neither."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.errors
import rasterio.io

from model.errors import BadInput
from transforms import grid
from transforms.catalogs.hrefs import is_remote, resolve, stored
from transforms.catalogs.opera import ORBIT_TAG, SOURCE, box_around, burst_of, orbit_of
from transforms.catalogs.source import Item
from transforms.fetching import FetchError
from transforms.http import DENIED, refusal
from transforms.remote import fetcher

HEADER_BYTES = 1 << 16  # a COG's directories stand in front: 12-40 kB for a burst with its overviews
# Words for the inventory: what a fetcher says of a file has its place and the time that it took.
_FAILURES = {
    "refused": "leads on to a host that is not read from",
    "status": "leads from one address to the next without an end",  # where it has none of HTTP's
    "timeout": "gives no answer in time",
    "reset": "gives no answer",
    "short": "does not come whole",
}


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
      epsg: of its grid. transform: geotransform (a, b, c, d, e, f), metres. height_px, width_px: its size.
      orbit: "ascending", "descending", or "" where it has no such tag.
    """

    epsg: int
    transform: tuple[float, float, float, float, float, float]
    height_px: int
    width_px: int
    orbit: str


class Unreadable(Exception):
    """A file whose header cannot be had; the text says why, without a path, a query or a token."""


class Headers:
    """Fills in what granule records lack, from local files one by one, from remote ones once for each burst."""

    def __init__(self, root: str) -> None:
        """`root`: folder or URL prefix of the catalogue."""
        self._root = root
        self._bursts: dict[str, Header] = {}

    def fill(self, item: Item, location: str) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The item with grids, orbit direction and bbox, and what speaks against it ("kind: detail").

        Raises:
          BadInput: an href out of the catalogue, a host that is not read from, or no right to read it.
        """
        assets, against, orbits = {}, [], {orbit_of(item["properties"].get(SOURCE.orbit))}
        box = None
        for band, fields in _files(item):
            if "proj:transform" in fields or "proj:transform" in item["properties"]:
                assets[band] = fields  # a STAC item, which has its grid
                continue
            try:
                header = self._header(item, str(fields["href"]), location)
            except Unreadable as e:
                assets[band] = fields
                against.append(f"no header: {band} {e}")
                continue
            orbits.add(header.orbit)
            assets[band] = {
                **fields,
                "proj:epsg": header.epsg,
                "proj:transform": list(header.transform),
                "proj:shape": [header.height_px, header.width_px],
            }
            box = box or box_of(header)
        said = sorted(orbits - {""})
        if len(said) > 1:
            against.append("no orbit: its record and its files do not tell the same direction")
        elif not said and not against:
            against.append(f"no orbit: neither its record nor the tag {ORBIT_TAG} of its files tells the direction")
        orbit = said[0] if len(said) == 1 else ""
        filled = {**item, "properties": {**item["properties"], SOURCE.orbit: orbit}, "assets": assets}
        if box is not None and "bbox" not in filled:
            filled["bbox"] = list(box)
        return filled, tuple(against)

    def box(self, item: Item, location: str) -> tuple[float, float, float, float] | None:
        """(west, south, east, north) from the first file that can be read, None where none can."""
        for _, fields in _files(item):
            try:
                return box_of(self._header(item, str(fields["href"]), location))
            except Unreadable:
                continue
        return None

    def _header(self, item: Item, href: str, location: str) -> Header:
        where = resolve(self._root, stored(href, location, self._root, str(item["id"])))
        if not is_remote(where):
            return local_header(where)
        if (burst := burst_of(item)) not in self._bursts:
            self._bursts[burst] = parse(_start_of(where, str(item["id"])))
        return self._bursts[burst]


def _start_of(url: str, item_id: str) -> bytes:
    """The first bytes of a remote file, with the rights, from the hosts and with the patience of all reading."""
    refused = f"item {item_id}: its files cannot be had"
    if (why := refusal(url)) is not None:
        raise BadInput(f"{refused}: {why}")
    try:
        return fetcher()(url, 0, HEADER_BYTES, None).data
    except FetchError as e:
        if e.status in DENIED:
            raise BadInput(f"{refused}: {e.reason}") from None
        if e.status is None:
            raise Unreadable(_FAILURES.get(e.kind, "gives no answer")) from None
        said = "something else than the file" if e.status in (200, 206) else f"HTTP status {e.status}"
        raise Unreadable(f"answers with {said}") from None


def _files(item: Item) -> list[tuple[str, dict[str, Any]]]:
    """The bands of an item that have a file."""
    said = item.get("assets")
    pairs = [(band, said.get(band)) for band in SOURCE.keys] if isinstance(said, dict) else []
    return [(band, f) for band, f in pairs if isinstance(f, dict) and isinstance(f.get("href"), str) and f["href"]]


def local_header(path: str) -> Header:
    """Raises Unreadable for a file that is missing or no GeoTIFF on a known grid."""
    if not Path(path).is_file():
        raise Unreadable("is missing")
    try:
        with rasterio.open(path, driver="GTiff") as file:
            return _header(file)
    except rasterio.errors.RasterioError:
        raise Unreadable("is no GeoTIFF, or cut short") from None


def parse(start: bytes) -> Header:
    """The header of a COG from its first bytes. Raises Unreadable as `local_header`."""
    try:
        with rasterio.io.MemoryFile(start) as memory, memory.open(driver="GTiff") as file:
            return _header(file)
    except rasterio.errors.RasterioError:
        raise Unreadable("is no GeoTIFF with its directories in front") from None


def box_of(header: Header) -> tuple[float, float, float, float] | None:
    """(west, south, east, north) of a file, west > east across the antimeridian; None off its projection."""
    a, _, x, _, e, y = header.transform
    along = np.linspace(0, 1, 21)
    u = np.concatenate([along, np.ones(21), along, np.zeros(21)]) * header.width_px
    v = np.concatenate([np.zeros(21), along, np.ones(21), along]) * header.height_px
    lon, lat = grid.to_lonlat(x + a * u, y + e * v, f"EPSG:{header.epsg}")
    if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
        return None
    return box_around([(float(p), float(q)) for p, q in zip(lon, lat, strict=True)])


def _header(file: rasterio.io.DatasetReader) -> Header:
    epsg = file.crs.to_epsg() if file.crs is not None else None
    a, b, x, d, e, y = tuple(file.transform)[:6]
    if epsg is None or b or d or a <= 0 or e >= 0:
        raise Unreadable("has no north-up grid in a projection with an EPSG code")
    return Header(epsg, (a, b, x, d, e, y), file.height, file.width, orbit_of(file.tags().get(ORBIT_TAG)))
