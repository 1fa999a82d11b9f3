"""Baselines: what can be had of a pixel's series without any encoder."""

import numpy as np
from numpy.typing import NDArray

from model.shards import Batch

Floats = NDArray[np.float32]

MONTHS = 12
# Last day of each month of a year without a 29th of February: in a leap year a day at a month's end moves by one.
_MONTH_ENDS = np.cumsum([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
YEAR_DAYS = 365.25
WAVES = 2  # a year and half a year: mean, two sines, two cosines a channel
SHRINK = 1e-2  # of an observation, added to the normal equations: fewer than five dates have a fit too
PCA_DIMS = 32
MOST_MASKED = 0.1  # share of all steps
FITTED_ON = 20_000  # records at most that principal components are found from


def month_of(doy: NDArray[np.int16]) -> NDArray[np.int64]:
    """0..11 of days of the year 1..366."""
    return np.minimum(np.searchsorted(_MONTH_ENDS, doy), MONTHS - 1).astype(np.int64)


def medians(values: NDArray[np.generic], valid: NDArray[np.bool_], doy: NDArray[np.int16]) -> Floats:
    """Median of the valid observations of each calendar month: (N, T, C) to (N, 12, C), NaN where there is none."""
    n, steps, channels = values.shape
    out = np.full((n, MONTHS, channels), np.nan, np.float32)
    month = np.where(valid, month_of(doy), MONTHS)
    order = np.argsort(month, axis=1, kind="stable")
    sorted_ = np.take_along_axis(month, order, 1)
    for m in range(MONTHS):
        inside = sorted_ == m
        longest = int(inside.sum(1).max(initial=0))
        if not longest:
            continue
        first, count = np.argmax(inside, 1), inside.sum(1)
        at = np.minimum(first[:, None] + np.arange(longest), steps - 1)
        rows = np.take_along_axis(order, at, 1)
        taken = np.take_along_axis(values, rows[..., None], 1).astype(np.float32)
        taken[np.arange(longest) >= count[:, None]] = np.nan
        some = count > 0
        out[some, m] = np.nanmedian(taken[some], axis=1)
    return out


def filled(months: Floats) -> Floats:
    """Gaps of (N, 12, C) filled by straight lines around the year; NaN where a channel has no month at all."""
    out = months.copy()
    at = np.arange(MONTHS)
    for i, c in np.argwhere(np.isnan(months).any(1) & ~np.isnan(months).all(1)):
        there = ~np.isnan(months[i, :, c])
        out[i, :, c] = np.interp(at, at[there], months[i, there, c], period=MONTHS)
    return out


def _sensors(batch: Batch) -> tuple[tuple[NDArray[np.generic], NDArray[np.bool_], NDArray[np.int16]], ...]:
    """Of each sensor that any record has: values, valid, days. Both orbits of the radar are one series."""
    pairs = ((batch.s2, batch.s2_valid, batch.s2_doy), (batch.s1, batch.s1_valid, batch.s1_doy))
    return tuple(p for p in pairs if p[1].any())


def monthly(batch: Batch) -> Floats:
    """Monthly composites: medians of what is valid, gaps filled. (N, 12 * channels) DN."""
    return np.concatenate([filled(medians(*s)).reshape(len(batch), -1) for s in _sensors(batch)], axis=1)


def harmonic(batch: Batch) -> Floats:
    """Mean, sines and cosines of a year and half a year, by least squares: (N, 5 * channels) DN; NaN without a date."""
    return np.concatenate([_harmonic(*s) for s in _sensors(batch)], axis=1)


def _harmonic(values: NDArray[np.generic], valid: NDArray[np.bool_], doy: NDArray[np.int16]) -> Floats:
    angle = 2 * np.pi * doy.astype(np.float64) / YEAR_DAYS
    waves = [np.ones_like(angle)]
    for k in range(1, WAVES + 1):
        waves += [np.cos(k * angle), np.sin(k * angle)]
    design = np.stack(waves, axis=-1) * valid[..., None]  # (N, T, 5)
    y = np.where(valid[..., None], values, 0).astype(np.float64)
    count = valid.sum(1)
    mean = y.sum(1) / np.maximum(count, 1)[:, None]
    y = (y - mean[:, None]) * valid[..., None]  # what is shrunk then is the departure from the mean, not the mean
    normal = np.einsum("ntk,ntl->nkl", design, design) + SHRINK * np.eye(design.shape[-1])
    fit = np.linalg.solve(normal, np.einsum("ntk,ntc->nkc", design, y))
    fit[:, 0] += mean
    fit[count == 0] = np.nan
    out: Floats = fit.reshape(len(values), -1).astype(np.float32)
    return out


def components(series: Floats, dims: int = PCA_DIMS) -> Floats:
    """Principal components of standardised series (N, D): (N, dims) or fewer.

    They are found from all records, tested ones included, without a label: as an encoder's pre-training may see them.
    """
    every = max(1, len(series) // FITTED_ON)
    known = series[::every].astype(np.float64)
    there = ~np.isnan(known).all(0)
    mean, std = np.nanmean(known[:, there], 0), np.nanstd(known[:, there], 0)
    std[std == 0] = 1

    def scaled(x: Floats) -> NDArray[np.float64]:
        out: NDArray[np.float64] = np.nan_to_num((x[:, there] - mean) / std, nan=0.0)
        return out

    _, s, axes = np.linalg.svd(scaled(series[::every]), full_matrices=False)
    kept = min(dims, int((s > 1e-9 * s[0]).sum()))
    out: Floats = (scaled(series) @ axes[:kept].T).astype(np.float32)
    return out


def steps(batch: Batch) -> Floats | None:
    """The observations themselves, one after the other, NaN where masked; None where that cannot be had.

    Every record must have equally many steps, and `MOST_MASKED` of them at most may be masked.
    """
    parts = []
    for values, valid, doy in _sensors(batch):
        padded = not doy.all()  # by day 0: a record has fewer steps than another, whose n-th is not its n-th
        if padded or valid.mean() < 1 - MOST_MASKED:
            return None
        known = np.where(valid[..., None], values, np.nan)
        parts.append(known.reshape(len(batch), -1).astype(np.float32))
    return np.concatenate(parts, axis=1)
