"""Headers: grid and orbit direction of GeoTIFFs, for catalogues whose records tell neither."""

import dataclasses
import ipaddress
import os
import urllib.parse
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.errors
import rasterio.io
import urllib3
from urllib3.exceptions import HTTPError

from model.errors import BadInput
from transforms import grid
from transforms.catalogs import web
from transforms.catalogs.hrefs import is_remote, resolve, stored
from transforms.catalogs.opera import ORBIT_TAG, SOURCE, box_around, burst_of, orbit_of
from transforms.catalogs.source import Item

TOKEN_VARIABLE = "EARTHDATA_TOKEN"
# Where NASA keeps the files and where it sends readers to log in; the token goes to these alone.
HOSTS = ("earthdatacloud.nasa.gov", "earthdata.nasa.gov", "asf.alaska.edu")
HEADER_BYTES = 1 << 16  # a COG's directories stand in front: 12-40 kB for a burst with its overviews
REDIRECTS = 8  # the archive sends a reader to the login, back, and on to a signed URL
TIMEOUT_S = 60.0  # without a limit a lost connection hangs for ever


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
        """`root`: folder or URL prefix of the catalogue; its own host may be read too (a private mirror)."""
        self._root = root
        self._own = urllib.parse.urlsplit(root).netloc if is_remote(root) else ""
        self._bursts: dict[str, Header] = {}
        self._pool: urllib3.PoolManager | None = None

    def fill(self, item: Item, location: str) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The item with grids, orbit direction and bbox, and what speaks against it ("kind: detail").

        Raises:
          BadInput: an href out of the catalogue, a host that is none of the archive's, or no right to read it.
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
            self._bursts[burst] = parse(self._start_of(where, str(item["id"])))
        return self._bursts[burst]

    def _start_of(self, url: str, item_id: str) -> bytes:
        """The first bytes of a remote file, over as many redirections as the archive's login takes."""
        self._pool = self._pool or web.pool(TIMEOUT_S)
        parts = urllib.parse.urlsplit(url)
        host = f"item {item_id}: its files lie on {parts.hostname}"
        if parts.scheme not in ("http", "https") or not (parts.netloc == self._own or is_archive(url)):
            raise BadInput(f"{host}, which is no host of the archive ({', '.join(HOSTS)}); mirror them with the record")
        for _ in range(REDIRECTS):
            try:
                answer = self._pool.request(
                    "GET", url, headers=request_headers(url), redirect=False, preload_content=False
                )
                with answer:
                    data = answer.read(HEADER_BYTES)
            except HTTPError as e:
                raise Unreadable(f"gives no answer ({type(e).__name__})") from None
            if answer.status in (301, 302, 303, 307, 308):
                url = urllib.parse.urljoin(url, answer.headers.get("Location") or "")
                if not self._may_follow(url):
                    raise Unreadable("leads on to a host that is not read from")
                continue
            if answer.status in (401, 403):
                raise BadInput(
                    f"{host}, which refuses to give them (HTTP status {answer.status}): "
                    f"set {TOKEN_VARIABLE} to an Earthdata Login token"
                )
            if answer.status not in (200, 206):
                raise Unreadable(f"answers with HTTP status {answer.status}")
            return data
        raise Unreadable("leads from one address to the next without an end")

    def _may_follow(self, url: str) -> bool:
        """Signed URLs lie on hosts of their own; numbers, this machine and plain HTTP are never among them."""
        parts = urllib.parse.urlsplit(url)
        if parts.netloc == self._own and parts.scheme in ("http", "https"):
            return True
        name = parts.hostname or ""
        return (
            parts.scheme == "https" and "." in name and not name.endswith((".local", ".internal")) and not _is_ip(name)
        )


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
    if not start:  # a MemoryFile of nothing is a new file
        raise Unreadable("comes empty")
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


def is_archive(url: str) -> bool:
    """Whether an address is one of the archive's own, over HTTPS."""
    parts = urllib.parse.urlsplit(url)
    name = (parts.hostname or "").lower()
    return parts.scheme == "https" and any(name == host or name.endswith(f".{host}") for host in HOSTS)


def request_headers(url: str) -> dict[str, str]:
    """The token goes to the archive's own hosts over HTTPS, and to nobody that it redirects to."""
    token = os.environ.get(TOKEN_VARIABLE, "")
    wanted = {"Range": f"bytes=0-{HEADER_BYTES - 1}"}
    return {**wanted, "Authorization": f"Bearer {token}"} if token and is_archive(url) else wanted


def _header(file: rasterio.io.DatasetReader) -> Header:
    epsg = file.crs.to_epsg() if file.crs is not None else None
    a, b, x, d, e, y = tuple(file.transform)[:6]
    if epsg is None or b or d or a <= 0 or e >= 0:
        raise Unreadable("has no north-up grid in a projection with an EPSG code")
    return Header(epsg, (a, b, x, d, e, y), file.height, file.width, orbit_of(file.tags().get(ORBIT_TAG)))


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.rpartition(".")[2].isdigit()
    return True
