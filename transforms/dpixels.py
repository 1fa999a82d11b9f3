"""D-pixels: a window's year of Sentinel-2 and Sentinel-1, masked, in the published layout."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import BadInput
from model.profile import RULES, S1_BANDS, S2_BANDS, Profile
from transforms.grid import Tile
from transforms.heaps import scene_was_read
from transforms.layout import LAYOUT, DPixels, load, save
from transforms.radar import WIDTHS, Pass, read_passes, scale_s1
from transforms.read import Patch, ReadError, halo_px, read_for
from transforms.resample import valid_10_m, write_10_m
from transforms.scenes import ASCENDING, DESCENDING, S1, S2, Asset, Scene

__all__ = [
    "FOLLOWED", "LAYOUT", "DPixels", "OpticalLayer", "Stack", "build", "load", "read_stack", "save", "scale_s1",
    "unbuildable", "unsearched",
]  # fmt: skip


CHUNK_PX = 1 << 16  # pixels of a day that are made at once: a band's 32-bit numbers stay in the cache
# Of every field of a profile that decides about pixels, what is built here. The classes of `scl_invalid`, the order of
# `s2_bands` and each scene's offset are followed as they stand. Anything else is refused: see `unbuildable`.
FOLLOWED: dict[str, tuple[Any, ...]] = {
    "s2_resampling": ("bilinear", "nearest"),
    "s1_resampling": ("nearest", "bilinear"),
    "s1_arithmetic": tuple(WIDTHS),
    "s1_scaling": ("trunc(clip((20 log10 x + 50) * 200, 0, 32767)), x <= 0 is 0",),
    "s1_bands": (S1_BANDS,),
    "day_rule": ("utc-date",),
    "s2_order": ("datetime-ascending",),
    "s1_order": ("datetime-descending", "catalogue-order"),
    "offset_rule": ("subtract-where-at-least",),
}


def unbuildable(profile: Profile) -> list[str]:
    """The rules of a profile that this builder does not follow, each in words with both sides; none: it can be built.

    The published layout knows nothing of them, so pixels built by another rule would be embedded without a word.
    """
    faults = []
    for field, ours in FOLLOWED.items():
        if (value := getattr(profile, field)) not in ours:
            words = RULES.get(field, {}).get(value, "")
            here = " or ".join(repr(v) for v in ours)
            faults.append(f"its {field} is {value!r}{words and f' ({words})'}, {here} is what is built here")
    if sorted(profile.s2_bands) != sorted(S2_BANDS):
        faults.append(f"its s2_bands are {profile.s2_bands}, {S2_BANDS} in any order are what is built here")
    if profile.coverage_rule.partition(":")[0] != "none":
        faults.append(f"its coverage_rule is {profile.coverage_rule!r}, no date is left out here")
    return faults


def unsearched(profile: Profile, sources: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The sensors that a profile takes and an inventory of these sources never searched, with the sources it takes.

    A profile without any radar source declares the mode "optical alone"; none that is published does.
    """
    takes = {"optical": profile.s2_sources, "radar": profile.s1_sources}
    return {sensor: names for sensor, names in takes.items() if names and not {*names} & {*sources}}


@dataclasses.dataclass(frozen=True)
class OpticalLayer:
    """One S2 scene over a window, native: its scene classes and the profile's bands."""

    scene: Scene
    scl: Patch
    bands: tuple[Patch, ...]


@dataclasses.dataclass(frozen=True)
class Stack:
    """What was read for a window of a tile, at native resolution.

    Attributes:
      tile: it belongs to. `rows`, `cols`: the 10 m pixels that were read; empty ranges where nothing is valid.
      days: S2 by UTC date: (day of year, layers in the order in which they win).
      passes: S1 by UTC date and orbit, dates ascending: (orbit, day of year, (H, W, 2) int16).
    """

    tile: Tile
    rows: range
    cols: range
    days: tuple[tuple[int, tuple[OpticalLayer, ...]], ...]
    passes: tuple[Pass, ...]


def _ordered(scenes: Iterable[Scene], sensor: str) -> list[Scene]:
    return sorted((s for s in scenes if s.sensor == sensor and s.kept), key=lambda s: s.order)


def read_stack(
    scenes: Sequence[Scene],
    roots: dict[str, str],
    profile: Profile,
    tile: Tile,
    rows: range,
    cols: range,
    pool: Executor,
    wanted: NDArray[np.bool_] | None = None,
) -> Stack:
    """Reads a window of a tile: scene classes first, then the rest of the scenes of which a pixel is valid.

    Args:
      scenes: the tile's rows of the inventory. roots: source name -> root of its relative hrefs.
      pool: runs the reads; one task a scene.
      wanted: (H, W) pixels to be embedded. The other files are then read only for the box of those among them that
        have a valid optical observation: without one there is no embedding, whatever the radar saw. None reads all of
        the window.

    Returns:
      The stack; its rows and cols are that box, or the whole window without `wanted`.

    Raises:
      ReadError: the first file that cannot be read.
      BadInput: a profile with a rule that this builder does not follow.
    """
    if rules := unbuildable(profile):
        raise BadInput(f"profile {profile.name}: {'; '.join(rules)}")
    s2 = _ordered(scenes, S2)
    s1 = _ordered(scenes, S1)
    classes = _all_of(pool, [(_read_classes, s, roots[s.source], tile, rows, cols) for s in s2])
    valid = [_valid(scl, profile, tile, rows, cols) for scl in classes]
    if wanted is not None:
        rows, cols, inner = _box(valid, wanted, rows, cols)
        if not rows:
            return Stack(tile, rows, cols, (), ())
        valid = [None if v is None or not v[inner].any() else v for v in valid]
    seen = [(s, scl) for s, scl, v in zip(s2, classes, valid, strict=True) if v is not None]
    bands = _all_of(pool, [(_read_bands, s, roots[s.source], profile, tile, rows, cols) for s, _ in seen])
    layers = [OpticalLayer(s, scl, b) for (s, scl), b in zip(seen, bands, strict=True)]
    layers.sort(key=lambda x: (x.scene.day, x.scene.order))
    by_day = itertools.groupby(layers, lambda x: x.scene.day)
    days = tuple((day.timetuple().tm_yday, tuple(group)) for day, group in by_day)
    return Stack(tile, rows, cols, days, read_passes(s1, roots, profile, tile, rows, cols, pool))


def _all_of(pool: Executor, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The results of (function, arguments ..) in order; the first error cancels what has not begun."""
    tasks = [pool.submit(*call) for call in calls]
    try:
        return [t.result() for t in tasks]
    finally:
        for t in tasks:
            t.cancel()


def _box(
    valid: list[NDArray[np.bool_] | None], wanted: NDArray[np.bool_], rows: range, cols: range
) -> tuple[range, range, tuple[slice, slice]]:
    """The smallest window with every pixel that is wanted and valid in a scene, and where it lies in rows x cols."""
    seen = np.zeros(wanted.shape, bool)
    for v in valid:
        if v is not None:
            seen |= v
    seen &= wanted
    y, x = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    if not len(y):
        return range(0), range(0), (slice(0, 0), slice(0, 0))
    inner = slice(int(y[0]), int(y[-1]) + 1), slice(int(x[0]), int(x[-1]) + 1)
    return rows[inner[0]], cols[inner[1]], inner


def _asset(scene: Scene, band: str) -> Asset:
    asset = scene.asset(band)
    if asset is None:
        raise ReadError(scene.id, band, "the scene has no such asset")
    return asset


def _read_classes(scene: Scene, root: str, tile: Tile, rows: range, cols: range) -> Patch:
    return read_for(scene, _asset(scene, "SCL"), root, tile, rows, cols)


def _read_bands(scene: Scene, root: str, profile: Profile, tile: Tile, rows: range, cols: range) -> tuple[Patch, ...]:
    assets = [_asset(scene, band) for band in profile.s2_bands]
    mixes = profile.s2_resampling == "bilinear"
    bands = tuple(read_for(scene, a, root, tile, rows, cols, halo_px(a, tile) if mixes else 0) for a in assets)
    scene_was_read()
    return bands


def _valid(scl: Patch, profile: Profile, tile: Tile, rows: range, cols: range) -> NDArray[np.bool_] | None:
    """(H, W) True where the scene class is none of the masked ones, None where it is nowhere."""
    table = np.ones(256, bool)
    table[list(profile.scl_invalid)] = False
    return valid_10_m(scl, table, tile, rows, cols)


def build(stack: Stack, profile: Profile, rows: range) -> DPixels:
    """The d-pixels of some rows of a stack: mosaic by day, offset, masks, series.

    Args:
      profile: that the stack was read for. rows: of the tile, within the stack's rows.

    Returns:
      DPixels of (len(rows), len(stack.cols)) pixels. A date without a valid pixel in these rows is still there.
    """
    H, W, T = len(rows), len(stack.cols), len(stack.days)
    bands = np.empty((T, H, W, len(profile.s2_bands)), np.uint16)
    masks = np.zeros((T, H, W), bool)
    step = max(2, CHUNK_PX // max(W, 1) // 2 * 2)
    for start in range(0, H, step):  # a few rows at a time, so that a day's ten bands stay in the cache
        part = slice(start, start + step)
        for t, (_, layers) in enumerate(stack.days):
            _mosaic(bands[t, part], masks[t, part], layers, profile, stack.tile, rows[part], stack.cols)
    first = rows.start - stack.rows.start
    window = slice(first, first + H)
    radar = {}
    for orbit in (ASCENDING, DESCENDING):
        passes = [(doy, v[window]) for o, doy, v in stack.passes if o == orbit]
        radar[orbit] = (
            np.stack([v for _, v in passes]) if passes else np.zeros((0, H, W, 2), np.int16),
            np.array([doy for doy, _ in passes], np.int16),
        )
    return DPixels(
        bands,
        masks.view(np.uint8),
        np.array([doy for doy, _ in stack.days], np.uint16),
        *radar[ASCENDING],
        *radar[DESCENDING],
    )


def _mosaic(
    bands: NDArray[np.uint16],
    masks: NDArray[np.bool_],
    layers: Sequence[OpticalLayer],
    profile: Profile,
    tile: Tile,
    rows: range,
    cols: range,
) -> None:
    """Fills a day's `bands` (H, W, 10) and `masks` (H, W): of each pixel the first layer that is valid there.

    The first layer lies below the whole day, so that what is never valid is the same in every run.
    """
    mixes = profile.s2_resampling == "bilinear"
    for n, layer in enumerate(layers):
        valid = _valid(layer.scl, profile, tile, rows, cols)
        if n and valid is None:
            continue
        wins = None if n == 0 or valid is None else valid & ~masks
        if wins is None:
            write_10_m(bands, layer.bands, tile, rows, cols, mixes, layer.scene.offset_dn)
        else:
            values = np.empty_like(bands)
            write_10_m(values, layer.bands, tile, rows, cols, mixes, layer.scene.offset_dn)
            np.copyto(bands, values, where=wins[..., None])
        if valid is not None:
            masks |= valid
