"""Traffic: the requests and bytes that the blocks of a tile take, added up before any of them is read."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import rasterio.warp
from numpy.typing import NDArray

from model.profile import OPERA_RTC, PC_L2A, PC_RTC, Profile
from transforms.catalogs.hrefs import is_remote
from transforms.grid import PIXEL_M, Block, Tile, blocks_of
from transforms.read import halo_px
from transforms.remote import BAND_BYTES_A_PIXEL, FILE_BYTES_A_PIXEL, FULL_SHARE, HEAD_BYTES
from transforms.scenes import S2, Asset, Scene
from transforms.tiff import MAX_RANGE_BYTES

# Side of the files' internal tiles: 1024 px at Earth Search (facts, sources-and-cogs 3.1). The others are GDAL's
# default for COGs, which is what is believed of Planetary Computer and OPERA; no item says it.
FILE_TILE_PX = 1024
FILE_TILE_PX_OF = {PC_L2A: 512, PC_RTC: 512, OPERA_RTC: 512}
# OPERA's files are two forwards away (`hosts.OPERA`): two requests more for the first range of each (`forwards`).
FORWARDS_OF = {OPERA_RTC: 2}
# A window's edges bend in another zone's CRS: by 25 m over a whole tile (its meridians converge by 6 degrees more or
# less times the sine of the latitude). Corners alone are moved, and this is added all around.
BEND_M = 30.0

Boxes = NDArray[np.int64]  # (n, 5): first row, behind the last, first column, behind the last, number of the block


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What reading takes at most; faults, and what clouds spare, are not foreseen.

    Attributes:
      ranges: requests for pixels. headers: requests for headers, with forwards, each once, as where one process makes
        the tile and keeps them. headers_again: the same where every block is read by a process that has none of them.
      moved_bytes: what comes over the network, with `headers_again`.
      needed_bytes: of it, those that hold wanted pixels, each counted once.
      local_bytes: the same of files that no server has.
    """

    ranges: int = 0
    headers: int = 0
    headers_again: int = 0
    moved_bytes: float = 0.0
    needed_bytes: float = 0.0
    local_bytes: float = 0.0

    def __add__(self, other: "Traffic") -> "Traffic":
        ours, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Traffic(*(a + b for a, b in zip(ours, theirs, strict=True)))

    @property
    def requests(self) -> int:
        return self.ranges + self.headers

    @property
    def requests_at_most(self) -> int:
        return self.ranges + self.headers_again

    @property
    def moved_per_needed(self) -> float | None:
        """Bytes that move for one that is needed; None where nothing comes from a server."""
        return self.moved_bytes / self.needed_bytes if self.needed_bytes else None


@dataclasses.dataclass(frozen=True)
class Windows:
    """The windows of a tile that are read one after another, in its 10 m pixels.

    Attributes:
      blocks: how many they belong to. strips: what scene classes are read for. boxes: what the other files are read
        for at most: what is wanted of a strip.
    """

    blocks: int
    strips: Boxes
    boxes: Boxes


def windows_of(blocks: Iterable[Block], strip_px: int, wanted: NDArray[np.bool_] | None = None) -> Windows:
    """As `embed.embed_window` walks some blocks of a tile.

    Args:
      wanted: (TILE_PX, TILE_PX) pixels of the tile to be embedded; None for all.
    """
    strips, boxes = [], []
    n = -1
    for n, b in enumerate(blocks):
        for row in range(b.row_px, b.row_px + b.height_px, strip_px):
            stop = min(row + strip_px, b.row_px + b.height_px)
            strips.append((row, stop, b.col_px, b.col_px + b.width_px, n))
            if wanted is None:
                continue
            inside = wanted[row:stop, b.col_px : b.col_px + b.width_px]
            y, x = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            if len(y):
                boxes.append((row + y[0], row + y[-1] + 1, b.col_px + x[0], b.col_px + x[-1] + 1, n))
    both = [np.array(found, np.int64).reshape(-1, 5) for found in (strips, boxes)]
    return Windows(n + 1, both[0], both[0] if wanted is None else both[1])


@functools.lru_cache(maxsize=32)  # one tile's are every tile's
def whole_windows(block_px: int, strip_px: int) -> Windows:
    """Those of a whole tile. Raises BadInput as `grid.blocks_of`."""
    return windows_of(blocks_of("", block_px), strip_px)


class _Grid(NamedTuple):
    """Files that lie on one grid and are read for the same windows: they cost the same but for their bytes."""

    classes: bool
    epsg: int
    transform: tuple[float, float, float, float, float, float]
    height_px: int
    width_px: int
    halo: int
    tile_px: int
    remote: bool
    forwards: int


Files = Mapping[_Grid, tuple[int, float]]  # how many lie on each grid, and their bytes together


def files_of(scenes: Sequence[Scene], roots: Mapping[str, str], profile: Profile, tile: Tile) -> Files:
    """The files of a tile that a profile has read, by what they cost.

    Args:
      scenes: the tile's rows of the inventory. roots: source name -> where its relative hrefs begin.
    """
    found: dict[_Grid, tuple[int, float]] = {}
    halos: dict[tuple[bool, tuple[float, ...]], int] = {}
    for s in scenes:
        if not s.kept:
            continue
        optical = s.sensor == S2
        bands = profile.s2_bands if optical else profile.s1_bands
        rooted = is_remote(roots.get(s.source, ""))
        tile_px, forwards = FILE_TILE_PX_OF.get(s.source, FILE_TILE_PX), FORWARDS_OF.get(s.source, 0)
        for a in s.assets:
            if (classes := optical and a.band == "SCL") or a.band in bands:
                if (sort := (optical, a.transform)) not in halos:
                    halos[sort] = _halo(a, profile, tile, optical)
                halo, remote = 0 if classes else halos[sort], rooted or is_remote(a.href)
                key = _Grid(classes, a.epsg, a.transform, a.height_px, a.width_px, halo, tile_px, remote, forwards)
                count, size = found.get(key, (0, 0.0))
                found[key] = count + 1, size + (a.size_bytes or _typical_bytes(a))
    return found


def traffic_of(files: Files, tile: Tile, windows: Windows) -> Traffic:
    """What reading a tile's windows takes, from what its items say: `remote.assumed_reads`, many files at a time.

    Bytes are spread evenly over each file, of which overviews are a quarter.
    """
    total = Traffic()
    for classes, epsg in sorted({(g.classes, g.epsg) for g in files}):
        grids = [g for g in files if (g.classes, g.epsg) == (classes, epsg)]
        numbers = np.array([files[g] for g in grids])
        total += _of_grids(grids, numbers, tile, windows.strips if classes else windows.boxes)
    return total


def _halo(asset: Asset, profile: Profile, tile: Tile, optical: bool) -> int:
    """File pixels around a window that are read with it: see `dpixels`, `radar` and `resample.mix_across`."""
    if optical:
        return halo_px(asset, tile) if profile.s2_resampling == "bilinear" else 0
    return 1 if profile.s1_resampling == "bilinear" else 0


def _typical_bytes(asset: Asset) -> float:
    return FILE_BYTES_A_PIXEL.get(asset.band, BAND_BYTES_A_PIXEL) * asset.height_px * asset.width_px


def _of_grids(grids: list[_Grid], files: NDArray[np.float64], tile: Tile, boxes: Boxes) -> Traffic:
    """Of files of one CRS; `files` (grids, 2): how many on each, and their bytes together."""
    if not len(boxes):
        return Traffic()
    count, size = files[:, :1], files[:, 1:]
    across = grids[0].epsg != tile.epsg
    sizes = np.array([(g.height_px, g.width_px, g.halo, g.tile_px) for g in grids], np.int64)
    height, width, halo, side = (sizes[:, [k]] for k in range(4))
    a, c, e, f = (np.array([g.transform[k] for g in grids])[:, None] for k in (0, 2, 4, 5))
    left, right, top, bottom = _edges_m(tile, boxes, grids[0].epsg)
    # First and last pixel, and the one behind it; of a window in the tile's own CRS, without a bend.
    bend = BEND_M if across else 0.0
    r0, r1 = _span((top + bend - f) / e, (bottom - bend - f) / e, halo, height)
    c0, c1 = _span((left - bend - c) / a, (right + bend - c) / a, halo, width)
    hit = (r1 > r0) & (c1 > c0)
    per_px = size * FULL_SHARE / (height * width)
    tall = np.where(hit, np.minimum(-(-r1 // side) * side, height) - r0 // side * side, 0)
    wide = np.where(hit, np.minimum(-(-c1 // side) * side, width) - c0 // side * side, 0)
    moved = (tall * wide * per_px).sum(1)
    one = per_px / count  # of one file
    row_bytes, tile_bytes = side * wide * one, side * side * one
    pieces = np.where(row_bytes > MAX_RANGE_BYTES, row_bytes // np.maximum(MAX_RANGE_BYTES - tile_bytes, 1) + 1, 1)
    rows = np.where(hit, (r1 - 1) // side - r0 // side + 1, 0)
    # Of a turned window the box is larger than what it holds.
    n0, n1 = _span((top - f) / e, (bottom - f) / e, 0, height)
    m0, m1 = _span((left - c) / a, (right - c) / a, 0, width)
    own = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) * PIXEL_M**2
    share = np.minimum(1.0, own / ((top - bottom + PIXEL_M) * (right - left + PIXEL_M))) if across else 1.0
    needed = (np.maximum(n1 - n0, 0) * np.maximum(m1 - m0, 0) * share * per_px).sum(1)
    # A file of another zone is not so much as opened where the window lies beside it.
    opened = hit if across else np.ones_like(hit)
    starts = np.flatnonzero(np.diff(boxes[:, 4], prepend=-1))
    by_block = np.logical_or.reduceat(opened, starts, axis=1)
    forwards, remote = np.array([g.forwards for g in grids]), np.array([g.remote for g in grids])
    times = count[:, 0] * remote
    opened_bytes = (by_block.sum(1) * times * np.minimum(HEAD_BYTES, size[:, 0] / count[:, 0])).sum()
    return Traffic(
        ranges=int(((rows * pieces).sum(1) * times).sum()),
        headers=int((by_block.any(1) * times * (1 + forwards)).sum()),
        headers_again=int((by_block.sum(1) * times * (1 + forwards)).sum()),
        moved_bytes=float((moved * remote).sum() + opened_bytes),
        needed_bytes=float((needed * remote).sum()),
        local_bytes=float((needed * ~remote).sum()),
    )


def _span(
    first: NDArray[np.float64], last: NDArray[np.float64], halo: NDArray[np.int64] | int, size: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The file's pixels from the one that holds a position to the one that holds another, `halo` more around them."""
    lower = np.clip(np.floor(first).astype(np.int64) - halo, 0, size)
    upper = np.clip(np.floor(last).astype(np.int64) + halo + 1, 0, size)
    return lower, upper


def _edges_m(tile: Tile, boxes: Boxes, epsg: int) -> tuple[NDArray[np.float64], ...]:
    """West, east, north and south of windows' outermost pixel centres in a CRS, (n,) each."""
    at = boxes.T.astype(np.float64)
    x = [tile.left_m + (at[2] + 0.5) * PIXEL_M, tile.left_m + (at[3] - 0.5) * PIXEL_M]
    y = [tile.top_m - (at[0] + 0.5) * PIXEL_M, tile.top_m - (at[1] - 0.5) * PIXEL_M]
    if epsg == tile.epsg:
        return x[0], x[1], y[0], y[1]
    moved = rasterio.warp.transform(tile.crs, f"EPSG:{epsg}", np.concatenate([*x, *x]), np.repeat(y, 2, axis=0).ravel())
    east, north = (np.asarray(v, np.float64).reshape(4, -1) for v in moved[:2])
    return east.min(0), east.max(0), north.max(0), north.min(0)
