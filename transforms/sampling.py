"""Sampling: every n-th pixel of a window with all that was observed of it, as records for training."""

import collections
import dataclasses
import functools
import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.errors import BadInput
from model.profile import Profile, profile_from_json
from model.records import ASCENDING, DESCENDING, Records, joined, offsets_of
from transforms import inventory
from transforms.dpixels import DPixels, build, read_stack
from transforms.failures import STOPPING, failure_of
from transforms.grid import Block, Tile, lonlat_of, tile_of
from transforms.heaps import give_back_freed_memory, keep_heaps_few
from transforms.land import land_fraction
from transforms.memory import Budget, budget_for
from transforms.objects import local_file
from transforms.regions import Clip, clip_of, region_from_geojson
from transforms.scenes import S1, S2, Scene
from transforms.storage import open_store
from transforms.throttle import CarryingPool

# Counts, as manifests name them. What was sampled was kept or left out for one of the reasons.
SAMPLED, KEPT = "sampled", "kept"
EXCLUDED = "excluded"  # in a region that is kept out
NO_DATES = "no_dates"  # never seen: sea, mostly, where a tile's scenes do not reach it
FEW_DATES = "few_dates"
FAILED = "failed"  # in a block of which a file could not be read
REASONS = (EXCLUDED, NO_DATES, FEW_DATES, FAILED)

# Pixels from a sampled row to the next from which on rows are built one by one: those between are not wanted, but a
# call costs as much as some 5,000 of them (measured: 45 ms, and 10 us a pixel of 30 dates).
ALONE_PX = 1 << 13
BLOCK_PX = 2048  # read at once, as by the main job
BLOCK_RECORDS = 1 << 17  # of a block at most: they wait in memory until all of it could be read
WORK = "_work"  # folder of what a run needs on the way; it goes when the set is complete


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which pixels become records.

    Attributes:
      every: rows and columns of the tile that are multiples of it.
      min_dates: least number of valid optical dates.
    """

    every: int = 20
    min_dates: int = 20

    def __post_init__(self) -> None:
        if self.every < 1:
            raise BadInput(f"--every {self.every}: give 1 for all pixels, 20 for each 20th of rows and columns")
        if self.min_dates < 1:
            raise BadInput(f"--min-dates {self.min_dates}: a pixel without a date teaches nothing; give 1 or more")

    def grid(self, block: Block) -> NDArray[np.bool_]:
        """(H, W) True for pixels of a block that the rule takes; counted in the tile: any block says the same."""
        rows = (np.arange(block.height_px) + block.row_px) % self.every == 0
        cols = (np.arange(block.width_px) + block.col_px) % self.every == 0
        grid: NDArray[np.bool_] = rows[:, None] & cols
        return grid


def block_px_for(every: int) -> int:
    """The side of the blocks that are sampled: so that one's records are few enough to wait in memory."""
    return next((px for px in (BLOCK_PX, 1024, 512) if (-(-px // every)) ** 2 <= BLOCK_RECORDS), 256)


def sample(
    scenes: Sequence[Scene],
    roots: dict[str, str],
    profile: Profile,
    tile: Tile,
    block: Block,
    rule: Rule,
    pool: Executor,
    budget: Budget,
    inside: NDArray[np.bool_] | None = None,
    excluded: NDArray[np.bool_] | None = None,
) -> tuple[Records, dict[str, int]]:
    """The records of a block, walked in strips.

    An observation is a date on which the profile's mask lets the pixel through, and a pass of which a channel is not
    zero. What lies under a masked date is not kept: which scenes are read at all depends on the window.

    Args:
      inside, excluded: (H, W) pixels of the region that is asked for, and of those that are kept out.

    Returns:
      The records by row and column, and the counts by name: `SAMPLED`, `KEPT` and `REASONS`.

    Raises:
      ReadError: the first file that cannot be read.
    """
    sampled = rule.grid(block) if inside is None else rule.grid(block) & inside
    wanted = sampled if excluded is None else sampled & ~excluded
    n_sampled, n_wanted = int(sampled.sum()), int(wanted.sum())
    kept: list[Records] = []
    few = 0
    cols = range(block.col_px, block.col_px + block.width_px)
    stop = block.row_px + block.height_px
    for first in range(block.row_px, stop, budget.strip_px) if n_wanted else ():
        rows = range(first, min(first + budget.strip_px, stop))
        stack = read_stack(
            scenes, roots, profile, tile, rows, cols, pool, wanted[rows.start - block.row_px : rows.stop - block.row_px]
        )
        for part in _built_at_once(stack.rows, len(stack.cols), rule.every, budget.build_px):
            pixels = build(stack, profile, part)
            row, col = part.start - block.row_px, stack.cols.start - block.col_px
            here = wanted[row : row + len(part), col : col + len(stack.cols)]
            records, too_few = records_of(pixels, here, tile, part.start, stack.cols.start, rule.min_dates)
            kept.append(records)
            few += too_few
        give_back_freed_memory()
    records = joined(kept)
    counts = {SAMPLED: n_sampled, KEPT: len(records), EXCLUDED: n_sampled - n_wanted, FEW_DATES: few, FAILED: 0}
    return records, counts | {NO_DATES: n_wanted - len(records) - few}


def _built_at_once(rows: range, width_px: int, every: int, build_px: int) -> Iterator[range]:
    """The rows whose d-pixels are made at once: those that are sampled, or all where few lie between."""
    if every * width_px >= ALONE_PX:
        yield from (range(r, r + 1) for r in range(-(-rows.start // every) * every, rows.stop, every))
    else:
        yield from (range(r, min(r + build_px, rows.stop)) for r in range(rows.start, rows.stop, build_px))


def records_of(
    pixels: DPixels, wanted: NDArray[np.bool_], tile: Tile, row_px: int, col_px: int, min_dates: int
) -> tuple[Records, int]:
    """The records of some pixels of a window.

    Args:
      wanted: (H, W). row_px, col_px: of the window's corner in the tile.

    Returns:
      The records of those with `min_dates` valid optical dates, and how many had fewer, but one at least.
    """
    n = pixels.masks.sum(0, dtype=np.int64)
    y, x = np.nonzero(wanted & (n >= min_dates))
    few = int((wanted & (n > 0) & (n < min_dates)).sum())
    s2_valid = pixels.masks[:, y, x].T.astype(bool)  # (N, T2)
    s1 = np.concatenate([pixels.sar_ascending[:, y, x], pixels.sar_descending[:, y, x]]).swapaxes(0, 1)  # (N, T1, 2)
    s1_valid = s1.any(-1)
    orbits = [len(pixels.sar_ascending_doy), len(pixels.sar_descending_doy)]
    orbit = np.repeat(np.array([ASCENDING, DESCENDING], np.uint8), orbits)
    s1_doy = np.concatenate([pixels.sar_ascending_doy, pixels.sar_descending_doy]).astype(np.int16)
    shape = s1_valid.shape
    lon, lat = lonlat_of(tile, y + row_px, x + col_px)
    return Records(
        tile=np.full(len(y), tile.name, "S5"),
        row_px=(y + row_px).astype(np.int32),
        col_px=(x + col_px).astype(np.int32),
        lon=lon,
        lat=lat,
        land=np.full(len(y), land_fraction(tile.name), np.float32),
        s2_offsets=offsets_of(s2_valid.sum(1)),
        s1_offsets=offsets_of(s1_valid.sum(1)),
        s2=pixels.bands[:, y, x].swapaxes(0, 1)[s2_valid],
        s2_valid=np.ones(int(s2_valid.sum()), bool),
        s2_doy=np.broadcast_to(pixels.doys.astype(np.int16), s2_valid.shape)[s2_valid],
        s1=s1[s1_valid],
        s1_valid=np.ones(int(s1_valid.sum()), bool),
        s1_orbit=np.broadcast_to(orbit, shape)[s1_valid],
        s1_doy=np.broadcast_to(s1_doy, shape)[s1_valid],
    ), few


@dataclasses.dataclass(frozen=True)
class SamplePlan:
    """A run of sampling, as every worker must know it.

    Attributes:
      out: the output folder or URL; what workers need lies in `WORK` there.
      inventory: digest; it lies at `WORK`/<digest>.parquet.
      profile: as JSON.
      rule: which pixels. block_px: side of the blocks.
      region: digest of the region at `WORK`/<digest>.geojson, "" for whole tiles. exclude: of those kept out.
      readers: files read at once, per process. memory_bytes: what a block may take of a worker.
      blocks_at_once: that a worker process works on.
      seed: of the order. bits: of the hash that choose the bucket. bucket_bytes: of a bucket, as expected at most.
      shard_records: of every shard but the last.
    """

    out: str
    inventory: str
    profile: str
    rule: Rule
    block_px: int
    region: str
    exclude: tuple[str, ...]
    readers: int
    memory_bytes: int
    blocks_at_once: int
    seed: int
    bits: int
    bucket_bytes: int
    shard_records: int


@dataclasses.dataclass(frozen=True)
class Worker:
    """What a process holds for a run: opened once, shared by its threads; `seats` of blocks that are read at once."""

    plan: SamplePlan
    profile: Profile
    inventory: Path
    roots: dict[str, str]
    pool: Executor
    seats: threading.BoundedSemaphore


@dataclasses.dataclass(frozen=True)
class Sampled:
    """What became of a block: its records and counts; where it failed none, and why, as the manifest says it."""

    records: Records
    counts: Mapping[str, int]
    failure: Mapping[str, str | int] | None = None


def open_worker(plan: SamplePlan) -> Worker:
    """Opens the inventory of a plan. Raises BadInput where it or the profile is not what the plan says."""
    keep_heaps_few()
    path = local_file(open_store(plan.out), f"{WORK}/{plan.inventory}.parquet")
    roots = inventory.read_header(path).roots
    pool = CarryingPool(plan.readers, thread_name_prefix="read")
    seats = threading.BoundedSemaphore(plan.blocks_at_once)
    return Worker(plan, profile_from_json(plan.profile), path, roots, pool, seats)


def budget_of(scenes: Iterable[Scene], block_px: int, readers: int, memory_bytes: int) -> Budget:
    """How a block of a tile with these scenes is walked: as if it were embedded by a model that takes no memory.

    Raises:
      BadInput: not even the lowest strip fits.
    """
    kept = collections.Counter(s.sensor for s in scenes if s.kept)
    try:
        return budget_for(
            block_px=block_px,
            s2_scenes=kept[S2],
            s1_scenes=kept[S1],
            dims=0,
            readers=readers,
            micro_batch_px=0,
            widest=0,
            limit_bytes=memory_bytes,
        )
    except BadInput as e:  # it tells of blocks too, whose size follows from the step here
        raise BadInput(f"{str(e).partition(': use')[0]}: give more --memory") from None


def sample_block(worker: Worker, block: Block) -> Sampled:
    """Samples a block of a plan. Where a file of it cannot be read, no record but the failure; the run goes on.

    Raises:
      OSError, StoreError: this machine's disk or the output's store does not work.
    """
    plan = worker.plan
    tile, size = tile_of(block.tile), (block.row_px, block.col_px, block.height_px, block.width_px)
    with worker.seats:
        inside = _mask(plan.out, plan.region, block.tile, size) if plan.region else None
        excluded: NDArray[np.bool_] | None = None
        for digest in plan.exclude:
            mask = _mask(plan.out, digest, block.tile, size)
            excluded = mask if excluded is None else excluded | mask
        try:
            scenes = _scenes(worker.inventory, block.tile)
            budget = budget_of(scenes, plan.block_px, plan.readers, plan.memory_bytes)
            records, counts = sample(
                scenes, worker.roots, worker.profile, tile, block, plan.rule, worker.pool, budget, inside, excluded
            )
        except Exception as e:  # the border of the unit of failure: whatever a block does, the run goes on
            failure = failure_of(e)
            if failure.cause in STOPPING or isinstance(e, BadInput):
                raise
            sampled = plan.rule.grid(block) if inside is None else plan.rule.grid(block) & inside
            out = int((sampled & excluded).sum()) if excluded is not None else 0
            n = int(sampled.sum())
            counts = dict.fromkeys((KEPT, NO_DATES, FEW_DATES), 0) | {SAMPLED: n, EXCLUDED: out, FAILED: n - out}
            where: dict[str, str | int] = {"tile": block.tile, "row_px": block.row_px, "col_px": block.col_px}
            return Sampled(joined(()), counts, where | dataclasses.asdict(failure))
    return Sampled(records, counts)


@functools.lru_cache(maxsize=4)  # a process works on one or two tiles at a time
def _scenes(path: Path, tile: str) -> tuple[Scene, ...]:
    return tuple(inventory.read_tile(path, tile))


def _mask(out: str, digest: str, tile: str, window: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """The pixels of a window (row, col, height, width) whose centres lie in a region of the plan."""
    clip = _clip(out, digest, tile)
    return np.ones(window[2:], bool) if clip is None else clip.mask(tile, *window)


@functools.lru_cache(maxsize=32)
def _clip(out: str, digest: str, tile: str) -> Clip | None:
    text = open_store(out).get(f"{WORK}/{digest}.geojson")
    return clip_of(region_from_geojson(json.loads(text)), tile)
