"""Draws: random numbers that are a pure function of where a pixel lies, for samplers that choose by lot."""

import dataclasses
import hashlib
import json

import numpy as np
from numpy.typing import NDArray

from model.order import hashed as _stream

RANK_BITS = 16  # of a hash give way to the rank that it belongs to; 48 are left to decide by


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a window lies.

    Attributes:
      tile: MGRS name; for a folder of d-pixels, the folder's own name.
      period: its name; "" for a folder of d-pixels.
      row_px, col_px: the window's first pixel, counted from the tile's own.
    """

    tile: str
    period: str
    row_px: int
    col_px: int


def seeds_of(profile: str, place: Place, sensor: str, y: NDArray[np.int64], x: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A seed for every pixel: (N,) uint64, for the pixels at rows `y` and columns `x` (N,) of the window.

    It depends on the profile's name, tile, period, sensor and the pixel's place in the tile, and on nothing else: any
    block, strip, batch or retry that holds the pixel gives it the same numbers.
    """
    key = json.dumps([profile, place.tile, place.period, sensor]).encode()  # JSON: no two lists share a text
    start = np.uint64(int.from_bytes(hashlib.sha256(key).digest()[:8], "big"))
    at = ((y + place.row_px).astype(np.uint64) << np.uint64(32)) + (x + place.col_px).astype(np.uint64)
    return _stream(np.full(1, start), at)


def draw(n: NDArray[np.int64], length: int, seeds: NDArray[np.uint64]) -> NDArray[np.int64]:
    """`length` ranks out of 0 .. n-1 for every pixel, ascending.

    Without replacement where n >= length: those ranks whose hashes are the smallest. With replacement where it is
    less: `length` hashes scaled to n.

    Args:
      n: (N,) how many there are, less than 2 ** RANK_BITS. Where it is 0, so are the ranks.
      seeds: (N,) of the pixels.

    Returns:
      (N, length) int64.
    """
    if n.max(initial=0) >> RANK_BITS:
        raise ValueError(f"{n.max()} observations of one pixel: {(1 << RANK_BITS) - 1} at most can be drawn from")
    ranks = np.empty((len(n), length), np.int64)
    enough = n >= length
    for some, rule in ((enough, _without_replacement), (~enough, _with_replacement)):
        if some.any():
            ranks[some] = rule(n[some], length, seeds[some])
    ranks.sort(axis=1)
    return ranks


def _without_replacement(n: NDArray[np.int64], length: int, seeds: NDArray[np.uint64]) -> NDArray[np.uint64]:
    rank = np.arange(n.max(), dtype=np.uint64)
    low = np.uint64((1 << RANK_BITS) - 1)
    # The rank in place of the lowest bits: no two numbers of a pixel are alike, so there is one answer, whatever the
    # order in which a partition meets them. What lies beyond n is greater than any that is chosen.
    keys = _stream(seeds[:, None], rank)
    keys &= ~low
    keys |= rank
    keys[rank >= n[:, None].astype(np.uint64)] = np.uint64(2**64 - 1)
    keys.partition(length - 1, axis=1)
    return keys[:, :length] & low


def _with_replacement(n: NDArray[np.int64], length: int, seeds: NDArray[np.uint64]) -> NDArray[np.uint64]:
    numbers = _stream(seeds[:, None], np.arange(length, dtype=np.uint64))
    numbers >>= np.uint64(32)  # the product must stay under 2 ** 64
    numbers *= n[:, None].astype(np.uint64)
    numbers >>= np.uint64(32)
    return numbers
