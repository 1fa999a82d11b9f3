"""D-pixels: a window's year of Sentinel-2 and Sentinel-1, masked, in the published layout."""

import dataclasses
import datetime as dt
import itertools
import tokenize
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import BadInput
from model.profile import RULES, S1_BANDS, S2_BANDS, Profile
from transforms.grid import Tile
from transforms.read import Centres, Patch, ReadError, bilinear, centres_in, halo_px, nearest, nearest_across, read_for
from transforms.scenes import ASCENDING, DESCENDING, S1, S2, Asset, Scene


@dataclasses.dataclass(frozen=True)
class DPixels:
    """All observations of a window of H x W pixels; what `bands.npy` and its siblings hold.

    Attributes:
      bands: (T, H, W, 10) uint16 DN after the offset rule, order of the profile, by date. Where `masks` is 0 the
        value is that of the day's first scene and means nothing.
      masks: (T, H, W) uint8, 1 = valid.
      doys: (T,) uint16 day of year, 1..366.
      sar_ascending, sar_descending: (T, H, W, 2) int16 scaled VV, VH by date; 0 = no data.
      sar_ascending_doy, sar_descending_doy: (T,) int16.
    """

    bands: NDArray[np.uint16]
    masks: NDArray[np.uint8]
    doys: NDArray[np.uint16]
    sar_ascending: NDArray[np.int16]
    sar_ascending_doy: NDArray[np.int16]
    sar_descending: NDArray[np.int16]
    sar_descending_doy: NDArray[np.int16]


CHUNK_PX = 1 << 18  # pixels that a reader has in double precision at once: it keeps to the budget of `memory`
LAYOUT = tuple(f.name for f in dataclasses.fields(DPixels))  # the file names of the published layout, less `.npy`
WIDTHS = {"float64": np.float64, "float32": np.float32}  # that `scale_s1` reckons in
# Of every field of a profile that decides about pixels, what is built here. The classes of `scl_invalid`, the order of
# `s2_bands` and each scene's offset are followed as they stand. Anything else is refused: see `unbuildable`.
FOLLOWED: dict[str, tuple[Any, ...]] = {
    "s2_resampling": ("bilinear", "nearest"),
    "s1_resampling": ("nearest",),
    "s1_arithmetic": tuple(WIDTHS),
    "s1_scaling": ("trunc(clip((20 log10 x + 50) * 200, 0, 32767)), x <= 0 is 0",),
    "s1_bands": (S1_BANDS,),
    "day_rule": ("utc-date",),
    "s2_order": ("datetime-ascending",),
    "s1_order": ("datetime-descending",),
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
    passes: tuple[tuple[str, int, NDArray[np.int16]], ...]


def scale_s1(power: NDArray[np.float32], arithmetic: str = "float64") -> NDArray[np.int16]:
    """Linear gamma0 to the stored int16: trunc(clip((20 log10 x + 50) * 200, 0, 32767)); x <= 0 or NaN gives 0.

    20 log10 of a power is twice its decibels; the weights were trained on it (trap T20).

    Args:
      arithmetic: key of `WIDTHS`: the reference takes float64 for RTC and float32 for OPERA, which moves some values
        by 1. In float32 the logarithm is that of float64, rounded: NumPy's own differs from processor to processor.
    """
    flat = power.reshape(-1)
    out = np.empty(flat.shape, np.int16)
    for start in range(0, flat.size, CHUNK_PX):
        x = flat[start : start + CHUNK_PX].astype(np.float64)
        good = x > 0
        y = np.zeros(x.shape, np.float64)
        np.log10(x, out=y, where=good)
        y = y.astype(WIDTHS[arithmetic], copy=False)
        out[start : start + CHUNK_PX] = np.clip(np.where(good, (20 * y + 50) * 200, 0), 0, 32767)
    return out.reshape(power.shape)


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
    return Stack(tile, rows, cols, days, _read_passes(s1, roots, profile, tile, rows, cols, pool))


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
    return tuple(read_for(scene, a, root, tile, rows, cols, halo_px(a, tile) if mixes else 0) for a in assets)


def _at_10_m(patch: Patch, profile: Profile, tile: Tile, rows: range, cols: range) -> NDArray[np.uint16]:
    """A band's DN at each 10 m pixel, 0 where there is none."""
    if profile.s2_resampling == "bilinear":
        return bilinear(patch, tile, rows, cols)
    return nearest(patch, tile, rows, cols, fill=0).astype(np.uint16, copy=False)


def _valid(scl: Patch, profile: Profile, tile: Tile, rows: range, cols: range) -> NDArray[np.bool_] | None:
    """(H, W) True where the scene class is none of the masked ones, None where it is nowhere.

    Outside the file, and where the file has nodata, the class counts as 0.
    """
    table = np.ones(256, bool)
    table[list(profile.scl_invalid)] = False
    # At 20 m first: most windows of a planet lie under cloud or outside the swath on most dates.
    if not (table[0] or table[scl.data[scl.inside]].any()):
        return None
    valid: NDArray[np.bool_] = table[nearest(scl, tile, rows, cols, fill=0)]
    return valid if valid.any() else None


def _read_passes(
    s1: list[Scene], roots: dict[str, str], profile: Profile, tile: Tile, rows: range, cols: range, pool: Executor
) -> tuple[tuple[str, int, NDArray[np.int16]], ...]:
    """S1 by (date, orbit): per polarisation the first scene, in the order of the inventory, whose value is not zero."""
    zones = sorted({a.epsg for s in s1 for a in s.assets if a.epsg != tile.epsg})
    centres = dict(zip(zones, pool.map(lambda epsg: centres_in(tile, epsg, rows, cols), zones), strict=True))
    read = _all_of(pool, [(_read_radar, s, roots[s.source], profile, tile, rows, cols, centres) for s in s1])
    merged: dict[tuple[dt.date, str], tuple[int, NDArray[np.int16]]] = {}
    for scene, values in zip(s1, read, strict=True):
        if values is None:
            continue
        key = (scene.day, scene.orbit)
        if key not in merged:
            merged[key] = (scene.day.timetuple().tm_yday, values)
        else:
            first = merged[key][1]
            np.copyto(first, values, where=first == 0)  # VV and VH of a pixel may come from different scenes
    return tuple((orbit, *merged[day, orbit]) for day, orbit in sorted(merged))


def _read_radar(
    scene: Scene, root: str, profile: Profile, tile: Tile, rows: range, cols: range, centres: dict[int, Centres]
) -> NDArray[np.int16] | None:
    """(H, W, 2) scaled VV, VH of one scene; None when no value of it is positive, as the reference drops it.

    Never None where a pixel without radar is given all time steps: these must not be the window's.
    """
    out = np.zeros((len(rows), len(cols), 2), np.int16)
    seen = profile.empty_modality == "all-steps"
    for k, band in enumerate(profile.s1_bands):
        asset = scene.asset(band)
        if asset is None:
            continue
        if asset.epsg == tile.epsg:
            patch = read_for(scene, asset, root, tile, rows, cols)
            power = nearest(patch, tile, rows, cols, fill=0).astype(np.float32, copy=False)
        else:
            power = nearest_across(scene, asset, root, centres[asset.epsg], fill=0)
        if (power > 0).any():
            seen = True
            out[..., k] = scale_s1(power, profile.s1_arithmetic)
    return out if seen else None


def build(stack: Stack, profile: Profile, rows: range) -> DPixels:
    """The d-pixels of some rows of a stack: mosaic by day, offset, masks, series.

    Args:
      profile: that the stack was read for. rows: of the tile, within the stack's rows.

    Returns:
      DPixels of (len(rows), len(stack.cols)) pixels. A date without a valid pixel in these rows is still there.
    """
    H, W = len(rows), len(stack.cols)
    T = len(stack.days)
    bands = np.zeros((T, H, W, len(profile.s2_bands)), np.uint16)
    masks = np.zeros((T, H, W), bool)
    for t, (_, layers) in enumerate(stack.days):
        for n, layer in enumerate(layers):
            valid = _valid(layer.scl, profile, stack.tile, rows, stack.cols)
            if n and valid is None:
                continue
            wins = masks[t] if valid is None else valid & ~masks[t]
            for k, patch in enumerate(layer.bands):
                value = _at_10_m(patch, profile, stack.tile, rows, stack.cols)
                if offset := layer.scene.offset_dn:
                    np.subtract(value, np.uint16(offset), out=value, where=value >= offset)
                # The first layer lies below the whole day, so that what is never valid is the same in every run.
                if n == 0:
                    bands[t, ..., k] = value
                else:
                    np.copyto(bands[t, ..., k], value, where=wins)
            if valid is not None:
                masks[t] |= valid
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


def save(pixels: DPixels, folder: Path) -> None:
    """Writes the published layout, one `.npy` an array."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in LAYOUT:
        np.save(folder / f"{name}.npy", getattr(pixels, name), allow_pickle=False)


def _read_array(path: Path) -> NDArray[np.generic]:
    # Not `np.load`, which takes an archive for an array too. A damaged header ends in any of these errors.
    try:
        with path.open("rb") as file:
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
    except (ValueError, TypeError, EOFError, OSError, MemoryError, SyntaxError, tokenize.TokenError) as e:
        raise BadInput(f"{path}: not a whole .npy file ({e})") from None


def load(folder: Path, warn: Callable[[str], None]) -> DPixels:
    """Reads the published layout.

    A missing orbit is taken as (0, H, W, 2), with a word to `warn`. Everything else must be there: the reference takes
    missing masks and days for all-valid or day 0 (traps T16, T17).

    Raises:
      BadInput: files missing, unreadable, of wrong dtype or shape, days outside 1..366, masks beyond 0 and 1.
    """
    if not folder.is_dir():
        raise BadInput(f"--dpixels {folder}: no such folder")
    arrays: dict[str, NDArray[np.generic]] = {}
    for name in LAYOUT:
        path = folder / f"{name}.npy"
        if path.exists():
            arrays[name] = _read_array(path)
    for name in ("bands", "masks", "doys"):
        if name not in arrays:
            raise BadInput(f"{folder}: {name}.npy is missing; a d-pixel folder has {', '.join(LAYOUT)}")
    bands = arrays["bands"]
    if bands.ndim != 4 or bands.shape[3] != 10:
        raise BadInput(f"{folder}/bands.npy: shape {bands.shape}; (T, H, W, 10) was expected")
    T, H, W, _ = bands.shape
    for orbit in (ASCENDING, DESCENDING):
        name = f"sar_{orbit}"
        if (name in arrays) != (f"{name}_doy" in arrays):
            there, gone = (name, f"{name}_doy") if name in arrays else (f"{name}_doy", name)
            raise BadInput(f"{folder}: {there}.npy without {gone}.npy")
        if name not in arrays:
            warn(f"{folder}: no {name}.npy; taken as an orbit without any pass")
            arrays[name] = np.zeros((0, H, W, 2), np.int16)
            arrays[f"{name}_doy"] = np.zeros(0, np.int16)
    wanted = {"bands": (np.uint16, (T, H, W, 10)), "masks": (np.uint8, (T, H, W)), "doys": (np.uint16, (T,))}
    for orbit in (ASCENDING, DESCENDING):
        steps = next(iter(arrays[f"sar_{orbit}"].shape), 0)
        wanted[f"sar_{orbit}"] = (np.int16, (steps, H, W, 2))
        wanted[f"sar_{orbit}_doy"] = (np.int16, (steps,))
    for name, (dtype, shape) in wanted.items():
        a = arrays[name]
        if a.shape != shape:
            raise BadInput(f"{folder}/{name}.npy: shape {a.shape}, {shape} was expected")
        if name.endswith(("doys", "_doy")):
            if not np.issubdtype(a.dtype, np.integer) or (a.size and not (a.min() >= 1 and a.max() <= 366)):
                raise BadInput(f"{folder}/{name}.npy: days of year must be whole numbers in 1..366")
            arrays[name] = a.astype(dtype)
        elif name == "masks" and a.dtype == np.bool_:
            arrays[name] = a.view(np.uint8)
        elif a.dtype != dtype:
            raise BadInput(f"{folder}/{name}.npy: dtype {a.dtype}, {np.dtype(dtype)} was expected")
        elif name == "masks" and a.size and a.max() > 1:
            raise BadInput(f"{folder}/masks.npy: it holds {a.max()}; masks are 0 and 1 (1 = valid)")
    return DPixels(**arrays)  # type: ignore[arg-type]
