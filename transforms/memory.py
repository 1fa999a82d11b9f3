"""Memory: what a worker needs for a block, by one formula that `quote` prints and `embed` keeps to."""

import dataclasses
import functools
from collections.abc import Iterator

from model.errors import BadInput
from transforms.cog import TILE_PX as COG_TILE_PX
from transforms.drift import PIXEL_BYTES, SIDE
from transforms.encode import IN_FLIGHT, PENDING_BYTES
from transforms.grid import TILE_PX
from transforms.preview import PAINTED_PX
from transforms.tiff_decode import GDAL_CACHE_BYTES

PROCESS_BYTES = 385 << 20  # interpreter, Beam at work, GDAL, ONNX Runtime with a small model; measured
BUILD_PX = 1 << 16  # pixels whose d-pixels and tokens exist at once

# Freed, and kept by the C library: as such, of the native strips, and of each reader, whose tiles come and go between
# those of the others (measured: 8 MB of a reader on a machine with more to do than it has processors).
HEAPS_BYTES, HEAPS_SHARE, HEAPS_READER_BYTES = 48 << 20, 0.04, 10 << 20

S2_NATIVE_BYTES = 4 * 2 + 6 * 2 / 4 + 1 / 4  # a scene's 10 m pixel: four 10 m bands, six 20 m bands, SCL
S2_BUILT_BYTES = 10 * 2 + 1
S1_BYTES = 2 * 2  # VV, VH int16
CENTRES_BYTES = 2 * 8  # x and y in another zone, float64, for each of two zones at the most
VALID_BYTES = 1  # a scene's mask while a strip is read
TOKEN_BYTES = 10 * 2 + 2, 2 * 2 + 2 + 1  # the row of an optical, a radar token
# A pixel while it is brought to 10 m: six 20 m bands in 32-bit numbers, five arrays of a quarter of the pixels; the ten
# bands of a day's second scene before they go into its first.
RESAMPLE_BYTES = 6 * 4 * 5 // 4 + 10 * 2

ANY_ROWS = 40, 256  # of token rows, the most that any sampler makes: v1.0 always 40, the others 8 to 256

# What a reader holds beside the pixels that it brings. The catalogues' internal tiles (facts, sources-and-cogs 3.2):
# 1024 px of optical bands, hence 2048 px of ours for one of 20 m, and 512 px of radar.
OPTICAL_TILE_PX, RADAR_TILE_PX = 1024, 512
STORED_SHARE = 0.7  # compressed over decoded bytes of a tile: 0.56 to 0.64 of optical bands (remote.py), more of radar
SKEW = 1.15  # a window's box in another zone over the window, each way: meridians converge by 6 degrees at the most
RADAR_BYTES = 12  # a pixel of radar: the file's, ours, and one on the way between, float32
RADAR_CHUNK_BYTES = (1 << 18) * 40  # and those in double precision (radar.CHUNK_PX, read.CHUNK_PX)

# The session's activations, measured of encoders of 64 to 512 in width with 64 and 128 tokens in batches of 256: three
# tensors of the widest layer, four of the scores of four heads, of the longer of the two series.
SESSION_BYTES = 40 << 20
CARD_BYTES = 2 << 30  # of the host, for CUDA's libraries and context where activations lie on a card; assumed
WIDE_TENSORS, SCORE_TENSORS = 3, 4 * 4


@dataclasses.dataclass(frozen=True)
class Load:
    """What a worker's memory depends on; see `budget_for`."""

    block_px: int
    s2_scenes: int
    s1_scenes: int
    dims: int
    readers: int
    micro_batch_px: int
    widest: int
    model_bytes: int
    on_card: bool
    rows: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Budget:
    """How a block is walked, and what that takes.

    Attributes:
      load: what it was reckoned for.
      strip_px: rows read at once, a multiple of the COG tile or the whole block.
      build_px: rows whose d-pixels are built at once.
      parts_bytes: (what, bytes) of everything that is alive at the moment when most is.
      fetches: how many times the files' optical tiles are fetched and decoded: 1 where no strip of a whole tile shares
        one with another.
    """

    load: Load
    strip_px: int
    build_px: int
    parts_bytes: tuple[tuple[str, int], ...]
    fetches: float

    @property
    def total_bytes(self) -> int:
        return sum(n for _, n in self.parts_bytes)

    @property
    def strips(self) -> str:
        """The strips in words; where memory made them low, what that costs and how to have it otherwise."""
        words = f"strips of {self.strip_px} rows"
        tall = next(_budgets(self.load))
        if self.fetches <= tall.fetches:
            return words
        ways = [(f"--memory {_up(tall.total_bytes)}", tall.fetches)]
        for block_px in _smaller(self.load.block_px):
            fit = fitting(dataclasses.replace(self.load, block_px=block_px), self.total_bytes)
            if fit is not None and fit.fetches < self.fetches:
                ways.append((f"--block {block_px}", fit.fetches))
                break
        others = ", ".join(f"{option}: {n:.1f}" for option, n in ways)
        return f"{words}, which fetch optical tiles {self.fetches:.1f} times ({others})"


def rows_at_most(scenes: int, rows: tuple[int, int]) -> int:
    """Token rows of a pixel with so many scenes, by a sampler whose bins, of eights, go from `rows[0]` to `rows[1]`."""
    return min(rows[1], max(rows[0], -(-scenes // 8) * 8))


def native_bytes(s2_scenes: int, s1_scenes: int) -> float:
    """Of a 10 m pixel as it is read."""
    return s2_scenes * S2_NATIVE_BYTES + s1_scenes * S1_BYTES


def _reading(load: Load, strip_px: int) -> int:
    """Bytes that all readers hold beside the native strip, at the worst of the optical and the radar files.

    As if all were fetched: files on disk take less, and one number serves `quote`, which cannot know mirrors.
    """
    height, width = strip_px, load.block_px

    def held(scenes: int, tiles_bytes: int, a_row_bytes: int, patch_bytes: int, placed_bytes: int) -> int:
        """One sensor's, of a reader a scene: in GDAL's cache and its own; the ranges as they came and joined."""
        readers = min(load.readers, scenes)
        fetched = int(2 * STORED_SHARE * tiles_bytes) + a_row_bytes + patch_bytes
        return max(min(GDAL_CACHE_BYTES, readers * tiles_bytes) + readers * fetched, readers * placed_bytes)

    rows, cols = ((px // 2 + 1) // OPTICAL_TILE_PX + 2 for px in (height, width))  # 20 m, with a halo of a pixel
    tile = OPTICAL_TILE_PX**2 * 2
    optical = held(load.s2_scenes, rows * cols * tile, (cols + 1) * tile, 0, 0)
    rows, cols = ((int(px * SKEW) - 1) // RADAR_TILE_PX + 2 for px in (height, width))
    tile, area = RADAR_TILE_PX**2 * 4, height * width
    placed = area * RADAR_BYTES + RADAR_CHUNK_BYTES
    radar = held(load.s1_scenes, rows * cols * tile, (cols + 1) * tile, int(area * SKEW**2) * 4, placed)
    return max(optical, radar + (2 * CENTRES_BYTES * area if load.s1_scenes else 0))


def _budget(load: Load, strip_px: int) -> Budget:
    """The part of a block's life that takes most: reading, building and encoding, or compressing."""
    build_px = max(1, min(strip_px, BUILD_PX // load.block_px))
    strip, build, block = strip_px * load.block_px, build_px * load.block_px, load.block_px**2
    s2, s1, batch_px = load.s2_scenes, load.s1_scenes, load.micro_batch_px
    t2, t1 = rows_at_most(s2, load.rows), rows_at_most(s1, load.rows)
    row_bytes = t2 * TOKEN_BYTES[0] + t1 * TOKEN_BYTES[1] + 8
    groups = (t2 // 8 + 1) * (t1 // 8 + 1)
    longest = max(t2, t1)
    activations = 4 * (WIDE_TENSORS * longest * load.widest + SCORE_TENSORS * longest**2)
    session = batch_px * (IN_FLIGHT + 1) * row_bytes + (
        CARD_BYTES if load.on_card else SESSION_BYTES + batch_px * activations
    )
    native = int(strip * native_bytes(s2, s1))
    always = (
        ("process", PROCESS_BYTES + 2 * load.model_bytes),
        ("heaps", HEAPS_BYTES + int(HEAPS_SHARE * native) + load.readers * HEAPS_READER_BYTES),
        ("drift guard", s2 * SIDE**2 * PIXEL_BYTES),
    )
    output = ("output", block * (load.dims + 4 + 3 * 2 + 1))
    reading = (("reading", _reading(load, strip_px)), ("masks", strip * s2 * VALID_BYTES))
    encoding = (
        ("d-pixels", build * (s2 * S2_BUILT_BYTES + s1 * S1_BYTES + RESAMPLE_BYTES)),
        # Valid ones, both orbits' radar in one array, time steps as chosen, and where they lie.
        ("sampling", build * (s2 + s1 + s1 * S1_BYTES + 8 * (t2 + t1 + longest))),
        ("tokens", build * row_bytes + min(PENDING_BYTES, groups * batch_px * row_bytes)),
        ("session", session),
    )
    phases: tuple[tuple[tuple[str, int], ...], ...]
    if strip_px < load.block_px:  # the next strip is read while this one is encoded
        phases = ((*always, output, ("native strips", 2 * native), *reading, *encoding),)
    else:  # codes there are from the first batch on
        counts = ("output", block * (4 + 3 * 2 + 1))
        phases = (
            (*always, counts, ("native strips", native), *reading),
            (*always, output, ("native strips", native), *encoding),
        )
    a_row = COG_TILE_PX**2 * load.dims
    fragments = ("fragments", block * (load.dims + 4))  # compressed; counted as if nothing were gained
    compressing = ("compressing", load.readers * (3 * a_row + PAINTED_PX * load.dims * 9))
    phases += ((*always, output, fragments, compressing, ("session", session)),)
    most = max(phases, key=lambda parts: sum(n for _, n in parts))
    return Budget(load, strip_px, build_px, most, _fetches(load.block_px, strip_px))


@functools.lru_cache(maxsize=256)
def _fetches(block_px: int, strip_px: int) -> float:
    """Optical bytes that a tile's strips fetch over those that it has; 8 of 10 m bands to 3 of 20 m ones.

    Without the halo of 20 m bands, which is the same for all strips of a block.
    """

    def times(tile_px: int, windows: list[tuple[int, int]]) -> float:
        """Internal tiles that windows of one axis touch, each its own, over those that there are."""
        touched = sum((stop - 1) // tile_px - start // tile_px + 1 for start, stop in windows)
        return touched / -(-TILE_PX // tile_px)

    blocks = [(a, min(a + block_px, TILE_PX)) for a in range(0, TILE_PX, block_px)]
    strips = [(a, min(a + strip_px, stop)) for start, stop in blocks for a in range(start, stop, strip_px)]
    shares = ((8, OPTICAL_TILE_PX), (3, 2 * OPTICAL_TILE_PX))
    return sum(share * times(px, strips) * times(px, blocks) for share, px in shares) / sum(n for n, _ in shares)


def _budgets(load: Load) -> Iterator[Budget]:
    """Ways to walk a block, the dearest in memory first, the cheapest in bytes fetched."""
    heights = [load.block_px, *(h for h in (1024, 512, 256, COG_TILE_PX) if h < load.block_px)]
    least: int | None = None
    for strip_px in heights:
        budget = _budget(load, strip_px)
        if least is None or budget.total_bytes < least:  # strips of half a block can take more than all of it
            least = budget.total_bytes
            yield budget


def budget_for(
    *,
    block_px: int,
    s2_scenes: int,
    s1_scenes: int,
    dims: int,
    readers: int,
    micro_batch_px: int,
    widest: int,
    limit_bytes: int,
    model_bytes: int = 0,
    on_card: bool = False,
    rows: tuple[int, int] = ANY_ROWS,
) -> Budget:
    """The tallest strips that fit: low ones fetch and decode the catalogue's 1024 px tiles again and again.

    Args:
      s2_scenes, s1_scenes: of the tile, kept ones.
      widest: the encoder's widest layer, for the session's activations.
      model_bytes: size of the model file.
      on_card: whether the session's activations lie on a card.
      rows: smallest and largest bin of the sampler.

    Raises:
      BadInput: not even the lowest strip fits; the message gives the block size and the memory that would.
    """
    load = Load(block_px, s2_scenes, s1_scenes, dims, readers, micro_batch_px, widest, model_bytes, on_card, rows)
    if (found := fitting(load, limit_bytes)) is not None:
        return found
    least = min(b.total_bytes for b in _budgets(load))
    fits = block_that_fits(load, limit_bytes)
    raise BadInput(
        f"a block of {block_px} px with {s2_scenes} optical and {s1_scenes} radar scenes needs {_gib(least)} a worker, "
        f"and {_gib(limit_bytes)} are allowed: "
        + (
            f"use --block {fits} or --memory {_up(least)}"
            if fits
            else f"use --memory {_up(least)}; no --block is enough"
        )
    )


def fitting(load: Load, limit_bytes: int) -> Budget | None:
    """The tallest strips within the limit, None where there are none."""
    return next((b for b in _budgets(load) if b.total_bytes <= limit_bytes), None)


def _smaller(block_px: int) -> list[int]:
    """Sides of smaller blocks that lie well on the files' internal tiles, the largest first."""
    return [px for px in (4096, 2048, 1024, 512, 256) if px < block_px]


def block_that_fits(load: Load, limit_bytes: int) -> int | None:
    """The side of the largest smaller block that can be walked within the limit, px; None where none can."""
    fit = (px for px in _smaller(load.block_px) if fitting(dataclasses.replace(load, block_px=px), limit_bytes))
    return next(fit, None)


def _gib(n: int) -> str:
    return f"{n / 2**30:.1f} GiB"


def _up(n: int) -> str:
    """GiB as an option, rounded up to a tenth."""
    return f"{-(-n * 10 // 2**30) / 10:.1f}"
