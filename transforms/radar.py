"""Radar: a window's Sentinel-1 passes, brought to 10 m, scaled and merged as the profile says."""

import datetime as dt
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.profile import Profile
from transforms.grid import Tile
from transforms.heaps import lasting, scene_was_read
from transforms.read import Centres, centres_in, nearest, nearest_across, read_for
from transforms.resample import mix_across, mix_floats
from transforms.scenes import Asset, Scene

CHUNK_PX = 1 << 18  # pixels that a reader has in double precision at once: it keeps to the budget of `memory`
WIDTHS = {"float64": np.float64, "float32": np.float32}  # that `scale_s1` reckons in

Pass = tuple[str, int, NDArray[np.int16]]  # orbit, day of year, (H, W, 2) scaled VV, VH


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


def read_passes(
    s1: Sequence[Scene],
    roots: dict[str, str],
    profile: Profile,
    tile: Tile,
    rows: range,
    cols: range,
    pool: Executor,
) -> tuple[Pass, ...]:
    """S1 by (date, orbit), dates ascending: per polarisation the first scene whose value is not zero.

    Args:
      s1: kept scenes in the inventory's order, which is the catalogue's where the profile asks for that; "the latest
        wins" is made sure of here.

    Raises:
      ReadError: the first file that cannot be read.
    """
    if profile.s1_order == "datetime-descending":
        s1 = sorted(s1, key=lambda s: s.datetime, reverse=True)  # stable: of one time the inventory's first stays first
    zones = sorted({a.epsg for s in s1 for a in s.assets if a.epsg != tile.epsg})
    centres = dict(zip(zones, pool.map(lambda epsg: centres_in(tile, epsg, rows, cols), zones), strict=True))
    tasks = [pool.submit(_read_pass, s, roots[s.source], profile, tile, rows, cols, centres) for s in s1]
    try:
        read = [t.result() for t in tasks]
    finally:
        for t in tasks:
            t.cancel()
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


def _read_pass(
    scene: Scene, root: str, profile: Profile, tile: Tile, rows: range, cols: range, centres: dict[int, Centres]
) -> NDArray[np.int16] | None:
    """(H, W, 2) scaled VV, VH of one scene; None when no value of it is positive, as the reference drops it.

    Never None where a pixel without radar is given all time steps: these must not be the window's.
    """
    out: NDArray[Any] = lasting((len(rows), len(cols), 2), np.int16)
    seen = profile.empty_modality == "all-steps"
    for k, band in enumerate(profile.s1_bands):
        asset = scene.asset(band)
        if asset is None:
            continue
        power = _power(scene, asset, root, profile, tile, rows, cols, centres)
        if (power > 0).any():
            seen = True
            out[..., k] = scale_s1(power, profile.s1_arithmetic)
        del power  # it would stay while the next band is read
    scene_was_read()
    return out if seen else None


def _power(
    scene: Scene,
    asset: Asset,
    root: str,
    profile: Profile,
    tile: Tile,
    rows: range,
    cols: range,
    centres: dict[int, Centres],
) -> NDArray[np.float32]:
    """(H, W) linear power at the tile's 10 m pixel centres, 0 where there is none."""
    mixes = profile.s1_resampling == "bilinear"
    if asset.epsg != tile.epsg:
        across = mix_across if mixes else nearest_across
        return across(scene, asset, root, centres[asset.epsg], fill=0)
    patch = read_for(scene, asset, root, tile, rows, cols, 1 if mixes else 0)
    if mixes:
        return mix_floats(patch, tile, rows, cols, fill=0)
    return nearest(patch, tile, rows, cols, fill=0).astype(np.float32, copy=False)
