"""Invariance: how alike the embeddings of one pixel are, made from disjoint halves of its observations."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.order import hashed
from model.shards import Batch
from model.views import keys_of

Floats = NDArray[np.float32]
Encode = Callable[[Batch], Floats]  # records to (N, D); NaN where there is none

MOST = 512  # records that are looked at
PARTS = 4  # of equal size, by number of dates and by cloudiness


def halves(batch: Batch, seed: int) -> tuple[Batch, Batch]:
    """Every pixel's valid observations cut at random into two equal parts; of odd ones the first has one more."""
    s2, s1 = (_first_half(getattr(batch, f"{s}_valid"), keys_of(batch.index, "halves", seed, s)) for s in ("s2", "s1"))
    # Of each half the other one's go: v1.0 sees all steps of a radar without a valid one.
    return (
        _without(batch, batch.s2_valid & ~s2, batch.s1_valid & ~s1),
        _without(batch, batch.s2_valid & s2, batch.s1_valid & s1),
    )


def _without(batch: Batch, s2: NDArray[np.bool_], s1: NDArray[np.bool_]) -> Batch:
    """The batch as if these observations (N, T2), (N, T1) had never been made: where they stood, it is padded."""
    return dataclasses.replace(
        batch,
        s2=np.where(s2[..., None], 0, batch.s2).astype(np.uint16),
        s2_valid=batch.s2_valid & ~s2,
        s2_doy=np.where(s2, 0, batch.s2_doy).astype(np.int16),
        s1=np.where(s1[..., None], 0, batch.s1).astype(np.int16),
        s1_valid=batch.s1_valid & ~s1,
        s1_orbit=np.where(s1, 0, batch.s1_orbit).astype(np.uint8),
        s1_doy=np.where(s1, 0, batch.s1_doy).astype(np.int16),
    )


def _first_half(valid: NDArray[np.bool_], keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
    lots = hashed(keys[:, None], np.arange(valid.shape[1], dtype=np.uint64)).astype(np.float64)
    lots[~valid] = np.inf
    rank = np.argsort(np.argsort(lots, axis=1, kind="stable"), axis=1, kind="stable")
    first: NDArray[np.bool_] = valid & (rank < (valid.sum(1)[:, None] + 1) // 2)
    return first


def without_radar(batch: Batch) -> Batch:
    """The same pixels as if no radar pass had been seen."""
    return _without(batch, np.zeros_like(batch.s2_valid), np.ones_like(batch.s1_valid))


def cosine(a: Floats, b: Floats) -> NDArray[np.float64]:
    """(N,) of rows (N, D); NaN where a row is zero."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        out: NDArray[np.float64] = (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))
    return out


def alike(a: Floats, b: Floats) -> dict[str, Any]:
    """How much more alike the two embeddings of a pixel are than those of different pixels.

    Returns:
      `pixels`; `cosine` of the pairs, and `chance`, that of pixels with others; `centred`, the cosine after the mean of
      all embeddings is taken away: an encoder that gives all pixels nearly the same reaches a cosine of 1 and a centred
      one of 0; `found`: share of pixels whose other half is the nearest of all by that measure.
    """
    good = np.isfinite(a).all(1) & np.isfinite(b).all(1)
    x, y = a[good].astype(np.float64), b[good].astype(np.float64)
    n = len(x)
    if n < 2:
        return {"pixels": n, "cosine": None, "chance": None, "centred": None, "found": None}
    middle = np.concatenate([x, y]).mean(0)
    near = _unit(x - middle) @ _unit(y - middle).T
    plain = _unit(x) @ _unit(y).T
    return {
        "pixels": n,
        "cosine": float(np.diagonal(plain).mean()),
        "chance": float((plain.sum() - np.trace(plain)) / (n * (n - 1))),
        "centred": float(np.diagonal(near).mean()),
        "found": float((near.argmax(1) == np.arange(n)).mean()),
    }


def _unit(x: NDArray[np.float64]) -> NDArray[np.float64]:
    out: NDArray[np.float64] = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    return out


def measure(batch: Batch, encode: Encode, seed: int = 0) -> dict[str, Any]:
    """The invariance of an encoder on some records.

    Returns:
      `halves`: `alike` of disjoint halves; `by_dates`, `by_clouds`: the same in parts of equal size, by valid optical
      dates and by the share of optical dates that are masked, with the range of each part; nothing by clouds where no
      record has a masked date, for `train shards` keeps none; `radar_removed`: all observations against the optical
      ones alone, None where there is no radar.
    """
    whole = encode(batch)
    a, b = (encode(half) for half in halves(batch, seed))
    dates = batch.s2_valid.sum(1)
    acquired = _acquired(batch)
    clouds = 1 - dates / np.maximum(acquired, 1)
    radar = batch.s1_valid.any(1)
    return {
        "halves": alike(a, b),
        "by_dates": _in_parts(a, b, dates.astype(np.float64)),
        "by_clouds": _in_parts(a, b, clouds) if clouds.any() else [],
        "radar_removed": alike(whole[radar], encode(without_radar(batch))[radar]) if radar.any() else None,
    }


def _acquired(batch: Batch) -> NDArray[np.int64]:
    """Optical dates of each record, masked ones too; padding is day 0."""
    count: NDArray[np.int64] = (batch.s2_doy > 0).sum(1)
    return count


def _in_parts(a: Floats, b: Floats, by: NDArray[np.float64]) -> list[dict[str, Any]]:
    edges = np.unique(np.quantile(by, np.arange(1, PARTS) / PARTS))
    part = np.searchsorted(edges, by, side="right")
    return [
        {"from": float(by[part == p].min()), "to": float(by[part == p].max()), **alike(a[part == p], b[part == p])}
        for p in np.unique(part)
    ]
