"""Remote files: windows of COGs and JP2s in few requests, with headers kept and changes of a file noticed."""

import collections
import concurrent.futures
import dataclasses
import os
import threading
import urllib.parse
from collections.abc import Callable, Collection

import numpy as np
import numpy.typing as npt

from transforms import jp2, jp2_decode, tiff
from transforms.catalogs.hrefs import unsigned
from transforms.fetching import Fetch, FetchError, Piece, Version
from transforms.jp2_parts import SOT_BYTES
from transforms.scenes import Asset
from transforms.tiff import Damaged, MoreNeeded, NotACog, Window
from transforms.tiff_decode import decode

HEAD_BYTES = 32 << 10  # the first guess: 121 tiles of a Sentinel-2 band make 2 KB, 2,400 of a Sentinel-1 scene 29 KB
GROWTHS = 4  # further requests for one header: its directory, its values, and two for odd ones
CACHE_BYTES = 64 << 20  # headers of 10,000 Sentinel-2 bands: ten years of a tile

# Bytes of a file for a pixel of it, overviews included, where the item does not say: means over the eleven assets with
# file:size of the recorded item of Earth Search's Collection 1 (1.13 to 1.28 of 2 bytes a band, SCL 0.05), and of
# Planetary Computer's Sentinel-1 RTC (840 MB a scene and polarisation; facts/sources-and-cogs.md 1.2).
FILE_BYTES_A_PIXEL = {"SCL": 0.05, "VV": 1.5, "VH": 1.5}
BAND_BYTES_A_PIXEL = 1.2
FULL_SHARE = 0.75  # of a file's bytes: overviews of 1/4, 1/16, ... add a third

GTIFF = "GTiff"  # GDAL's names of the formats that are read; the other one is `jp2_decode.DRIVER`
Header = tiff.Header | jp2_decode.Header


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """A header, and the version of the file that it was read from."""

    header: Header
    version: Version


class HeaderCache:
    """Headers by unsigned href, the least recently used ones dropped; one fetch each, whoever else asks meanwhile."""

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.forked()

    def forked(self) -> None:
        """Starts empty: a forked process has locks that nobody will release."""
        self._lock = threading.Lock()
        self._known: collections.OrderedDict[str, Known] = collections.OrderedDict()
        self._coming: dict[str, concurrent.futures.Future[Known]] = {}
        self._bytes = 0

    def get(self, url: str, fetch: Fetch, drivers: Collection[str] = (GTIFF,)) -> Known:
        """The header of the file at `url`, fetched where it is not known. Errors are not kept.

        Raises:
          NotACog, FetchError: as `fetch_header`; also for those who waited for the same header.
        """
        key = unsigned(url)
        while True:
            with self._lock:
                if key in self._known:
                    self._known.move_to_end(key)
                    return self._known[key]
                coming = self._coming.get(key)
                if coming is None:
                    mine = self._coming[key] = concurrent.futures.Future()
                    break
            try:
                return coming.result()
            except concurrent.futures.CancelledError:  # the thread that fetched it was stopped
                continue
        try:
            known = fetch_header(url, fetch, drivers)
        except Exception as e:
            self._arrived(key, None)
            mine.set_exception(e)
            raise
        except BaseException:
            self._arrived(key, None)
            mine.cancel()
            raise
        self._arrived(key, known)
        mine.set_result(known)
        return known

    def _arrived(self, key: str, known: Known | None) -> None:
        with self._lock:
            del self._coming[key]
            if known is None or known.header.size_bytes > self.limit_bytes:
                return
            self._known[key] = known
            self._bytes += known.header.size_bytes
            while self._bytes > self.limit_bytes:
                self._bytes -= self._known.popitem(last=False)[1].header.size_bytes

    def find(self, url: str) -> Header | None:
        """The header where it is known; nothing is fetched."""
        with self._lock:
            known = self._known.get(unsigned(url))
            return None if known is None else known.header

    def drop(self, url: str, known: Known) -> None:
        """Forgets this header; a newer one of the same file stays."""
        with self._lock:
            if self._known.get(unsigned(url)) is known:
                del self._known[unsigned(url)]
                self._bytes -= known.header.size_bytes

    def clear(self) -> None:
        with self._lock:
            self._known.clear()
            self._bytes = 0


HEADERS = HeaderCache()  # the process's: all its threads read the same files block after block
os.register_at_fork(after_in_child=HEADERS.forked)


def fetch_header(url: str, fetch: Fetch, drivers: Collection[str] = (GTIFF,)) -> Known:
    """The header of a remote file, in one request as a rule. Its first bytes tell the format, never its name.

    Args:
      drivers: GDAL's names of the formats that the file may have.

    Raises:
      NotACog, Damaged: as `tiff.parse_header` or `jp2_decode.parse_header`; also a header that never ends.
      FetchError: as the fetcher; kind "changed" where the file changed between two requests.
    """
    piece = _fetched(fetch, url, 0, HEAD_BYTES, None)
    version, data = piece.version, piece.data
    for left in range(GROWTHS, -1, -1):
        try:
            return Known(_parsed(data, version.total_bytes, drivers), version)
        except MoreNeeded as more:
            if not left:
                break
            stop = -(-more.stop // HEAD_BYTES) * HEAD_BYTES
        data += _fetched(fetch, url, len(data), stop, version).data
    raise NotACog(f"its header is in more than {GROWTHS + 1} pieces")


def _parsed(start: bytes, total_bytes: int, drivers: Collection[str]) -> Header:
    if jp2_decode.DRIVER in drivers and jp2.is_jp2(start):
        return jp2_decode.parse_header(start, total_bytes)
    if GTIFF not in drivers:
        raise NotACog(f"it is no file of {' or '.join(drivers)}")
    return tiff.parse_header(start, total_bytes)


def _check_driver(header: Header, drivers: Collection[str]) -> None:
    """A header out of the cache may have been fetched for a source that allows more."""
    if isinstance(header, jp2_decode.Header) and jp2_decode.DRIVER not in drivers:
        raise NotACog("it is a JPEG 2000 file, not a GeoTIFF")


def _fetched(fetch: Fetch, url: str, start: int, stop: int, version: Version | None) -> Piece:
    """One range, of that version and whole: what the fetcher promises is checked, for wrong pixels look like others."""
    piece = fetch(url, start, stop, version)
    if version is not None and piece.version != version:
        raise FetchError("changed", "the file changed while it was read")
    wanted = min(stop, piece.version.total_bytes) - start
    if len(piece.data) != wanted:
        raise FetchError("short", f"{len(piece.data):,} bytes came of a range of {wanted:,}")
    return piece


def read_window(
    url: str,
    window: Window | None,
    fetch: Fetch,
    accept: Callable[[Header], None] = lambda header: None,
    headers: HeaderCache = HEADERS,
    drivers: Collection[str] = (GTIFF,),
) -> tuple[npt.NDArray[np.generic] | None, Header]:
    """A window of a remote file, and the file's header.

    The header is one request where it is not known, then each row of internal tiles one; a JP2 that does not list its
    tiles takes one more for each of them up to the last that is wanted, once while its header is known. Where the file
    changes between two requests, or what came cannot be decoded, header and tiles are read once more from the start,
    then refused: the pixels are all of one version.

    Args:
      window: within the raster, or None to read and check the header alone.
      accept: raises where the header is not what was expected; called before any pixel is read.
      drivers: as `fetch_header`.

    Returns:
      (height, width) of the header's dtype, None without a window; the header.

    Raises:
      FetchError: a range that cannot be had; kind "changed" where the file changes again and again.
      NotACog, Damaged: what the file is, or how it is damaged.
      ValueError: a window that leaves the raster.
    """
    for again in (True, False):
        known = None
        try:
            known = headers.get(url, fetch, drivers)
            _check_driver(known.header, drivers)
            accept(known.header)
            return (None if window is None else _pixels(url, window, fetch, known)), known.header
        except Exception as e:
            if known is not None and not _lasting(e):
                headers.drop(url, known)  # a header that did not serve is not kept: the file may be replaced
            if not (again and _worth_another(e)):
                raise
    raise AssertionError  # the second attempt returned or raised


def _worth_another(error: Exception) -> bool:
    """Whether the bytes were another version's or nonsense, which reading anew may cure; the fetcher retried others."""
    if isinstance(error, FetchError):
        return error.kind == "changed" or error.status in (412, 416)  # RFC 9110: precondition failed, range outside
    return isinstance(error, (NotACog, Damaged))


def _lasting(error: Exception) -> bool:
    """Whether the header is as good as before: the network failed, not the file."""
    return isinstance(error, FetchError) and not _worth_another(error)


def _pixels(url: str, window: Window, fetch: Fetch, known: Known) -> npt.NDArray[np.generic]:
    header = known.header
    if isinstance(header, jp2_decode.Header):
        return jp2_decode.read(
            header, window, lambda start, stop: _fetched(fetch, url, start, stop, known.version).data
        )
    tiles: dict[tuple[int, int], memoryview] = {}
    for part in tiff.plan(header, window):
        data = memoryview(_fetched(fetch, url, part.start, part.stop, known.version).data)
        for i, j in part.tiles:
            start = int(header.offsets[i, j]) - part.start
            tiles[i, j] = data[start : start + int(header.counts[i, j])]
    return decode(header, window, tiles)


@dataclasses.dataclass(frozen=True)
class Reads:
    """What reading takes: requests, bytes that move, and bytes of them that hold wanted pixels."""

    requests: int
    moved_bytes: int
    needed_bytes: int

    def __add__(self, other: "Reads") -> "Reads":
        return Reads(
            self.requests + other.requests,
            self.moved_bytes + other.moved_bytes,
            self.needed_bytes + other.needed_bytes,
        )


NO_READS = Reads(0, 0, 0)


def plan_reads(header: Header, window: Window, known: bool = True, gap_bytes: int = tiff.GAP_BYTES) -> Reads:
    """What `read_window` does for a window of a file with this header; `known` where the header is in the cache.

    A byte of a tile is needed in so far as the tile's pixels within the raster lie in the window.

    Raises:
      ValueError: as `tiff.tiles_of`.
    """
    if isinstance(header, jp2_decode.Header):
        return _head(known) + Reads(*jp2.plan_reads(header.image, window, gap_bytes))
    ranges = tiff.plan(header, window, gap_bytes)
    rows, cols = tiff.tiles_of(header, window)
    tall = [_share(window.row_px, window.height_px, i, header.tile_height_px, header.height_px) for i in rows]
    wide = [_share(window.col_px, window.width_px, j, header.tile_width_px, header.width_px) for j in cols]
    counts = header.counts[rows.start : rows.stop, cols.start : cols.stop].astype(np.float64)
    needed = round(float(np.asarray(tall) @ counts @ np.asarray(wide)))
    return _head(known) + Reads(len(ranges), sum(part.stop - part.start for part in ranges), needed)


def assumed_reads(asset: Asset, window: Window, tile_px: int = 1024, known: bool = False) -> Reads:
    """As `plan_reads`, from what the item says: internal tiles of one size, each row of them one request.

    Bytes are spread evenly over the raster; where the item has no size, by FILE_BYTES_A_PIXEL. A file that is named
    .jp2 is taken for one without a list of its tiles, as ESA wrote them before baseline 05.12: where its header is not
    known, each tile up to the last wanted one is a request more.

    Raises:
      ValueError: an empty window, or one that leaves the raster.
    """
    row, col, height, width = window
    if min(row, col) < 0 or min(height, width) < 1 or row + height > asset.height_px or col + width > asset.width_px:
        raise ValueError(f"{window} is not within {asset.height_px} x {asset.width_px} px")
    area = asset.height_px * asset.width_px
    file_bytes = asset.size_bytes or FILE_BYTES_A_PIXEL.get(asset.band, BAND_BYTES_A_PIXEL) * area
    is_jp2 = urllib.parse.urlsplit(asset.href).path.lower().endswith(".jp2")  # a guess here, never when it is read
    per_pixel = file_bytes * (1 if is_jp2 and asset.size_bytes else FULL_SHARE) / area  # JP2s hold no second copies
    tall, wide = _covered(row, height, tile_px, asset.height_px), _covered(col, width, tile_px, asset.width_px)
    last_row, last_col = (row + height - 1) // tile_px, (col + width - 1) // tile_px
    rows = last_row - row // tile_px + 1
    hops = last_row * -(-asset.width_px // tile_px) + last_col if is_jp2 and not known else 0
    return (
        _head(known)
        + Reads(hops, hops * SOT_BYTES, 0)
        + Reads(rows, round(tall * wide * per_pixel), round(height * width * per_pixel))
    )


def _head(known: bool) -> Reads:
    return NO_READS if known else Reads(1, HEAD_BYTES, 0)


def _covered(start: int, size: int, tile_px: int, whole_px: int) -> int:
    """Pixels of the tiles that [start, start + size) touches, along one axis."""
    return min(-(-(start + size) // tile_px) * tile_px, whole_px) - start // tile_px * tile_px


def _share(start: int, size: int, tile: int, tile_px: int, whole_px: int) -> float:
    """Of one tile's pixels along one axis, those in [start, start + size)."""
    first, last = tile * tile_px, min((tile + 1) * tile_px, whole_px)
    return (min(start + size, last) - max(start, first)) / (last - first)


_chosen: Fetch | None = None


def fetcher() -> Fetch:
    """The process's HTTP layer, made when the first remote file is read."""
    if _chosen is not None:
        return _chosen
    from transforms.http import default_fetch

    return default_fetch()


def use_fetcher(fetch: Fetch | None) -> None:
    """Reads through this one from now on; None for the default. Headers that another one brought are forgotten."""
    global _chosen
    _chosen = fetch
    HEADERS.clear()
