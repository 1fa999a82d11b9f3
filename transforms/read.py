"""Reading: windows of a scene's files, brought to the tile's 10 m grid exactly as GDAL's warper would."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
import rasterio.errors
import rasterio.warp
import rasterio.windows
from numpy.typing import NDArray

from transforms import jp2, jp2_decode, tiff
from transforms.catalogs.hrefs import is_remote, resolve
from transforms.catalogs.registry import BY_NAME
from transforms.fetching import Fetch, FetchError, Piece, Version
from transforms.grid import PIXEL_M, Tile
from transforms.heaps import lasting
from transforms.remote import GTIFF, HEAD_BYTES, Header, fetcher, read_window
from transforms.scenes import Asset, Scene
from transforms.tiff import Damaged, NotACog, Window
from transforms.tiff_decode import GDAL_CACHE_BYTES

GDAL_OPTIONS: dict[str, str | int] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no side-car files: what lies beside a file says nothing about it
    "GDAL_CACHEMAX": GDAL_CACHE_BYTES,
    # GDAL_NUM_THREADS stays unset: the threads of a process read different files.
}
# The only driver that is asked to open files: others (VRT, WMS, ..) open what a file names, here or in a network.
DRIVER = GTIFF

CHUNK_PX = 1 << 18  # pixels whose positions in another zone are worked out at once
# What the products hold (ESA's S2 bands: uint16). Another type is another scaling, and would be taken without a word.
DTYPES = {"SCL": "uint8", "VV": "float32", "VH": "float32"}

Centres = tuple[NDArray[np.float64], NDArray[np.float64]]  # x, y (H, W) of pixel centres in a file's CRS


class ReadError(Exception):
    """A file that cannot be read, or is not what its item says.

    Attributes:
      scene: item id. `band`: the project's band name. `reason`: what happened, without any query string.
      kind: "file" where the file's content is at fault, else that of the `FetchError`: "status", "timeout", ...
      status: HTTP status where the answer had one that is an error, else None.
    """

    def __init__(self, scene: str, band: str, reason: str, kind: str = "file", status: int | None = None) -> None:
        super().__init__(scene, band, reason, kind, status)  # the arguments, so that it survives pickling
        self.scene, self.band, self.reason, self.kind, self.status = scene, band, reason, kind, status

    def __str__(self) -> str:
        return f"{self.scene} {self.band}: {self.reason}"


def plain(text: str) -> str:
    """A library's message without query strings (they may be signatures) and line breaks."""
    return re.sub(r"\?[^\s'\"]*", "", " ".join(text.split()))


@contextlib.contextmanager
def gdal_env() -> Iterator[None]:
    """GDAL's options, for this thread only (rasterio.Env is thread-local)."""
    with rasterio.Env(**GDAL_OPTIONS):
        yield


@dataclasses.dataclass(frozen=True)
class Patch:
    """A window of one file in its own pixels.

    Attributes:
      data: (h, w) as stored. Where the window leaves the file, zeros that `inside` excludes.
      row_px, col_px: of data[0, 0] in the file; may be negative.
      inside: (rows, cols) slices of `data` that the file covers.
      nodata: the file's nodata value, else that of its source's table, or None.
      transform: the file's geotransform (a, b, c, d, e, f).
    """

    data: NDArray[np.generic]
    row_px: int
    col_px: int
    inside: tuple[slice, slice]
    nodata: float | None
    transform: tuple[float, float, float, float, float, float]

    def valid(self) -> NDArray[np.bool_] | None:
        """(h, w) True where there is data; None when that is everywhere."""
        rows, cols = self.inside
        whole = (rows, cols) == (slice(0, self.data.shape[0]), slice(0, self.data.shape[1]))
        if whole and self.nodata is None:
            return None
        ok = np.zeros(self.data.shape, bool)
        ok[rows, cols] = True
        if self.nodata is not None:
            is_nodata = np.isnan(self.data) if np.isnan(self.nodata) else self.data == self.nodata
            ok &= ~is_nodata
        return None if ok.all() else ok


def read_patch(scene: Scene, asset: Asset, root: str, row_px: int, col_px: int, height_px: int, width_px: int) -> Patch:
    """Reads a window of a file, given in the file's own pixels; it may lie partly or wholly outside.

    Raises:
      ReadError: the file is missing, ends early, or has another size, grid or number of bands than its item says.
    """
    r0, r1 = (min(max(v, 0), asset.height_px) for v in (row_px, row_px + height_px))
    c0, c1 = (min(max(v, 0), asset.width_px) for v in (col_px, col_px + width_px))
    inside = (slice(r0 - row_px, r1 - row_px), slice(c0 - col_px, c1 - col_px))
    window = Window(r0, c0, r1 - r0, c1 - c0) if r1 > r0 and c1 > c0 else None
    path = resolve(root, asset.href)
    if is_remote(path):
        part, facts = _ranged(scene, asset, path, window, fetcher())
    elif tiff.is_tiled(_begin(path, HEAD_BYTES)) or _is_jp2(path, _formats(scene)[0]):
        # As on a server: GDAL passes over bad tags and zlib's checksums in silence.
        part, facts = _ranged(scene, asset, path, window, _from_disk)
    else:
        part, facts = _local(scene, asset, path, window)
    if part is None:
        inside = (slice(0, 0), slice(0, 0))
        data: NDArray[np.generic] = np.zeros((height_px, width_px), facts.dtype)
    elif part.shape == (height_px, width_px):
        data = part
    else:
        data = lasting((height_px, width_px), facts.dtype)
        data[inside] = part
    return Patch(data, row_px, col_px, inside, _nodata(scene, asset, facts), asset.transform)


def _nodata(scene: Scene, asset: Asset, facts: "Facts") -> float | None:
    """The value without data. Raises ReadError where a file says another one than its source's files have."""
    said, known = facts.nodata, _formats(scene)[1]
    if said is None and known and not np.isnan(known):  # unstored tiles were filled with 0, a value like any other
        raise ReadError(scene.id, asset.band, f"it says no nodata value, and files of {scene.source} have {known:g}")
    if said is None or known is None or said == known or (np.isnan(said) and np.isnan(known)):
        return known if said is None else said
    raise ReadError(scene.id, asset.band, f"its nodata value is {said:g}, and files of {scene.source} have {known:g}")


class Facts(NamedTuple):
    """What a file says of itself; `crs` in words, `epsg` and `transform` None where it has none."""

    shape: tuple[int, int]
    dtype: str
    bands: int
    crs: str
    epsg: int | None
    transform: tuple[float, ...] | None
    nodata: float | None


def _local(scene: Scene, asset: Asset, path: str, window: Window | None) -> tuple[NDArray[np.generic] | None, Facts]:
    """A window of a file on disk, through GDAL."""
    try:
        with gdal_env(), rasterio.open(path, driver=DRIVER) as file:
            epsg = None if file.crs is None else file.crs.to_epsg()
            grid = tuple(file.transform)[:6]
            facts = Facts(file.shape, file.dtypes[0], file.count, str(file.crs), epsg, grid, file.nodata)
            _check(scene, asset, facts)
            if window is None:
                return None, facts
            row_px, col_px, height_px, width_px = window
            part = rasterio.windows.Window(col_px, row_px, width_px, height_px)
            return file.read(1, window=part, out=lasting((height_px, width_px), facts.dtype)), facts
    except rasterio.errors.RasterioError as e:
        cause = f"{e} ({e.__cause__})" if e.__cause__ else str(e)
        raise ReadError(scene.id, asset.band, plain(cause)) from None


def _formats(scene: Scene) -> tuple[tuple[str, ...], float | None]:
    """Drivers that a scene's files may need, and their value without data."""
    source = BY_NAME.get(scene.source)
    return ((GTIFF,), None) if source is None else (source.drivers, source.nodata)


def _is_jp2(path: str, drivers: tuple[str, ...]) -> bool:
    """Whether a file is a JPEG 2000 one of a source that may have such, by its first bytes: names may say anything."""
    return jp2_decode.DRIVER in drivers and jp2.is_jp2(_begin(path, len(jp2.SIGNATURE)))


def _begin(path: str, length: int) -> bytes:
    """A file's first bytes; none of one that GDAL has words for: it says what is wrong with it, as for all others."""
    try:
        with Path(path).open("rb") as file:
            return file.read(length)
    except OSError:
        return b""


def _from_disk(url: str, start: int, stop: int, version: Version | None) -> Piece:
    """As `fetching.Fetch`, of a file on disk: what GDAL is given of a JP2 is bounded wherever the file lies."""
    try:
        with Path(url).open("rb") as file:
            facts = os.fstat(file.fileno())
            found = Version(facts.st_size, f"{facts.st_ino} {facts.st_mtime_ns}")
            if version not in (None, found):
                raise FetchError("changed", "the file is not the one that it was a moment ago")
            file.seek(start)
            return Piece(file.read(stop - start), found)
    except OSError as e:
        raise FetchError("file", f"{e.strerror or type(e).__name__}") from None


def _ranged(
    scene: Scene, asset: Asset, url: str, window: Window | None, fetch: Fetch
) -> tuple[NDArray[np.generic] | None, Facts]:
    """A window of a file on a server, or of a JP2, in the ranges that it needs."""

    def facts_of(header: Header) -> Facts:
        crs = "None" if header.epsg is None else f"EPSG:{header.epsg}"
        shape = header.height_px, header.width_px
        return Facts(shape, header.dtype, 1, crs, header.epsg, header.transform, header.nodata)

    try:
        part, header = read_window(
            url, window, fetch, lambda h: _check(scene, asset, facts_of(h)), drivers=_formats(scene)[0]
        )
    except FetchError as e:
        raise ReadError(scene.id, asset.band, plain(e.reason), e.kind, e.status) from None
    except (NotACog, Damaged) as e:
        raise ReadError(scene.id, asset.band, plain(str(e))) from None
    return part, facts_of(header)


def _check(scene: Scene, asset: Asset, file: Facts) -> None:
    """The file against its item: a wrong geotransform would move every pixel without a word."""
    height, width = file.shape
    if (height, width) != (asset.height_px, asset.width_px):
        what = f"the file is {height} x {width} px, its item says {asset.height_px} x {asset.width_px}"
    elif file.dtype != (dtype := DTYPES.get(asset.band, "uint16")):
        what = f"the file holds {file.dtype}, {dtype} digital numbers were expected"
    elif file.bands != 1:
        what = f"the file has {file.bands} bands, one was expected"
    elif file.epsg is None or file.epsg != asset.epsg:
        what = f"the file's CRS is {file.crs}, its item says EPSG:{asset.epsg}"
    elif file.transform is None or not np.allclose(file.transform, asset.transform, rtol=0, atol=1e-6):  # metres
        what = f"the file's geotransform is {file.transform}, its item says {asset.transform}"
    else:
        return
    raise ReadError(scene.id, asset.band, what)


def source_positions(
    transform: tuple[float, float, float, float, float, float], tile: Tile, rows: range, cols: range
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the centres of a tile's 10 m pixels lie in a file of the same CRS: v (rows,), u (cols,), in its pixels."""
    a, _, c, _, e, f = transform
    row = np.arange(rows.start, rows.stop, dtype=np.float64)
    col = np.arange(cols.start, cols.stop, dtype=np.float64)
    return (tile.top_m - (row + 0.5) * PIXEL_M - f) / e, (tile.left_m + (col + 0.5) * PIXEL_M - c) / a


def halo_px(asset: Asset, tile: Tile) -> int:
    """File pixels that `bilinear` needs around a window: none where the file lies on the tile's own 10 m grid.

    A needless halo is not free: it makes GDAL decode the neighbouring 1024 px blocks.
    """
    a, _, c, _, e, f = asset.transform
    on_grid = (a, e) == (PIXEL_M, -PIXEL_M) and (c - tile.left_m) % PIXEL_M == 0 and (f - tile.top_m) % PIXEL_M == 0
    return 0 if on_grid else 1


def read_for(scene: Scene, asset: Asset, root: str, tile: Tile, rows: range, cols: range, halo: int = 0) -> Patch:
    """Reads what the tile's pixels rows x cols need of a file of the same CRS, with `halo` file pixels around.

    Raises:
      ReadError: as `read_patch`; also a file whose CRS is not the tile's.
    """
    if asset.epsg != tile.epsg:
        raise ReadError(scene.id, asset.band, f"CRS EPSG:{asset.epsg} is not that of tile {tile.name}")
    v, u = source_positions(asset.transform, tile, rows, cols)
    r0, r1 = int(np.floor(v[0])) - halo, int(np.floor(v[-1])) + halo + 1
    c0, c1 = int(np.floor(u[0])) - halo, int(np.floor(u[-1])) + halo + 1
    return read_patch(scene, asset, root, r0, c0, r1 - r0, c1 - c0)


def nearest(patch: Patch, tile: Tile, rows: range, cols: range, fill: int) -> NDArray[np.generic]:
    """The file pixel in which each 10 m pixel's centre lies; (rows, cols), `fill` where there is no data."""
    v, u = source_positions(patch.transform, tile, rows, cols)
    i = np.floor(v).astype(np.int64) - patch.row_px
    j = np.floor(u).astype(np.int64) - patch.col_px
    out = patch.data[i][:, j]
    ok = patch.valid()
    if ok is not None:
        out[~ok[i][:, j]] = fill
    return out


def bilinear(patch: Patch, tile: Tile, rows: range, cols: range) -> NDArray[np.uint16]:
    """Bilinear at each 10 m pixel's centre, (rows, cols) uint16, equal to GDAL's warper to the DN.

    Taps without data are dropped and the rest is renormalised; where the file pixel that holds the centre has no data,
    the result is 0; half is rounded up (recipe: golden/scenes_mpc, traps T37 and T38). The patch needs a halo of one
    pixel. Files on the 10 m grid are copied.

    Raises:
      ValueError: a grid whose pixel centres are not at quarters of the file's pixels (no Sentinel-2 product has one).
    """
    v, u = source_positions(patch.transform, tile, rows, cols)
    i, wi = _taps(v)
    j, wj = _taps(u)
    i -= patch.row_px
    j -= patch.col_px
    ok = patch.valid()
    if not wi.any() and not wj.any():  # the file's own pixels, nothing to weigh
        out = patch.data[i][:, j]
        if ok is not None:
            out[~ok[i][:, j]] = 0
        return out.astype(np.uint16, copy=False)
    # Whole numbers throughout: weights in quarters an axis, sixteenths in all; 16 * 65535 fits 32 bits.
    src = patch.data.astype(np.uint32)
    if ok is not None:
        src *= ok
    total = _weigh(src, i, wi, j, wj)
    if ok is None:
        return ((total + 8) >> 4).astype(np.uint16)
    weight = _weigh(ok.astype(np.uint32), i, wi, j, wj)
    out32 = (2 * total + weight) // np.maximum(2 * weight, 1)
    centre_row = np.floor(v).astype(np.int64) - patch.row_px
    centre_col = np.floor(u).astype(np.int64) - patch.col_px
    out32[~ok[centre_row][:, centre_col]] = 0
    return out32.astype(np.uint16)


def _taps(position: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """First of the two pixels around each position, and the second one's weight in quarters."""
    first = np.floor(position - 0.5)
    quarters = (position - 0.5 - first) * 4
    weight = np.rint(quarters)
    if np.abs(quarters - weight).max() > 1e-6:  # 10 m over 10 or 20 m is exact but for rounding
        raise ValueError(f"pixel centres at {quarters[0] / 4:.3f} of the file's pixels; quarters were expected")
    return first.astype(np.int64), weight.astype(np.uint32)


def _weigh(
    a: NDArray[np.uint32], i: NDArray[np.int64], wi: NDArray[np.uint32], j: NDArray[np.int64], wj: NDArray[np.uint32]
) -> NDArray[np.uint32]:
    """Sum of the four taps times their weights in sixteenths."""
    four = np.uint32(4)
    down: NDArray[np.uint32] = a[i] * (four - wi)[:, None] + a[i + 1] * wi[:, None]
    out: NDArray[np.uint32] = down[:, j] * (four - wj) + down[:, j + 1] * wj
    return out


def nearest_across(scene: Scene, asset: Asset, root: str, centres: Centres, fill: float) -> NDArray[np.float32]:
    """The file pixel in which each point lies, for a file in another zone.

    Args:
      centres: of the points, by PROJ for every one: GDAL's approximate transformer picks other pixels for 1 % of
        them, and which ones depends on the window (facts, 1.2).
      fill: value where the file has no data.

    Returns:
      (H, W) float32.

    Raises:
      ReadError: as `read_patch`.
    """
    a, _, c, _, e, f = asset.transform
    shape = centres[0].shape

    def position(low: float, high: float, origin: float, step: float, size: int) -> tuple[int, int]:
        ends = sorted(int(np.floor((v - origin) / step)) for v in (low, high))
        return max(ends[0], 0), min(ends[1] + 1, size)

    c0, c1 = position(float(centres[0].min()), float(centres[0].max()), c, a, asset.width_px)
    r0, r1 = position(float(centres[1].min()), float(centres[1].max()), f, e, asset.height_px)
    if r1 <= r0 or c1 <= c0:
        return np.full(shape, fill, np.float32)
    patch = read_patch(scene, asset, root, r0, c0, r1 - r0, c1 - c0)
    out = np.full(shape, fill, np.float32)  # not before: reading takes most, and many do so at once
    ok, rows = patch.valid(), max(1, CHUNK_PX // shape[1])
    for start in range(0, shape[0], rows):  # in pieces: whole numbers of 64 bits for a block would be 130 MB
        part = slice(start, start + rows)
        j = np.floor((centres[0][part] - c) / a).astype(np.int64) - c0
        i = np.floor((centres[1][part] - f) / e).astype(np.int64) - r0
        hit = (i >= 0) & (i < r1 - r0) & (j >= 0) & (j < c1 - c0)
        if ok is not None:
            hit[hit] = ok[i[hit], j[hit]]
        out[part][hit] = patch.data[i[hit], j[hit]]
    return out


def centres_in(tile: Tile, epsg: int, rows: range, cols: range) -> Centres:
    """x, y (rows, cols) in EPSG:`epsg` of the tile's 10 m pixel centres, each by an exact PROJ transform."""
    x = tile.left_m + (np.arange(cols.start, cols.stop) + 0.5) * PIXEL_M
    y = tile.top_m - (np.arange(rows.start, rows.stop) + 0.5) * PIXEL_M
    out_x, out_y = np.empty((len(y), len(x))), np.empty((len(y), len(x)))
    step = max(1, CHUNK_PX // len(x))
    for start in range(0, len(y), step):  # in pieces: rasterio takes and gives lists, of 60 bytes a point
        xx, yy = np.meshgrid(x, y[start : start + step])
        moved: Any = rasterio.warp.transform(tile.crs, f"EPSG:{epsg}", xx.ravel(), yy.ravel())
        out_x[start : start + step] = np.reshape(moved[0], xx.shape)
        out_y[start : start + step] = np.reshape(moved[1], xx.shape)
    return out_x, out_y
