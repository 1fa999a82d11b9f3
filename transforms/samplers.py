"""Samplers: the rules that turn a pixel's valid observations into the token rows that an encoder sees."""

import functools

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

LONGEST = 256  # rows; the largest bin (ucam-eo/tessera tessera_infer_v2/student/infer.py)
STEP = 8  # rows between bins


def v2_length(n: npt.ArrayLike) -> NDArray[np.int64]:
    """Token rows for `n` valid observations (any shape): the next multiple of 8 up to 256; 1 row where n is 0."""
    count = np.asarray(n, np.int64)
    return np.where(count == 0, 1, np.clip(-(-count // STEP) * STEP, STEP, LONGEST))


@functools.cache
def v2_indices(n: int) -> NDArray[np.int64]:
    """Which of `n` valid observations (in their order) fill the rows. Shape (v2_length(n),); empty for n = 0.

    The rule of ucam-eo/tessera tessera_infer_v2 (facts, 1.5): all of them in order, then, to fill the bin, the middle
    element of each of `remain` array_split groups when remain <= n, else 0, 1, .. n-1, 0, ..; the extras are appended,
    never sorted in. More than 256: an integer-truncated linspace.
    """
    if n == 0:
        return np.zeros(0, np.int64)
    length = int(v2_length(n))
    if n > length:
        return np.linspace(0, n - 1, length).astype(np.int64)
    remain = length - n
    if remain <= n:
        # array_split gives the first n % remain groups one element more; the middle is element len // 2.
        groups = np.array_split(np.arange(n), remain) if remain else []
        extras = np.array([g[len(g) // 2] for g in groups], np.int64)
    else:
        extras = np.arange(remain, dtype=np.int64) % n
    return np.concatenate([np.arange(n, dtype=np.int64), extras])


@functools.cache
def _v2_table(longest: int) -> NDArray[np.int64]:
    """(longest + 1, LONGEST) table of `v2_indices`, rows filled up with 0 behind their length."""
    table = np.zeros((longest + 1, LONGEST), np.int64)
    for n in range(1, longest + 1):
        rows = v2_indices(n)
        table[n, : len(rows)] = rows
    return table


def v2_rows(valid: NDArray[np.bool_], length: int) -> NDArray[np.int64]:
    """Time steps chosen for pixels that all need `length` rows.

    Args:
      valid: (N, T) which steps are observed, every row with the same `v2_length`.
      length: that length.

    Returns:
      (N, length) indices into T; where a pixel has no valid step at all, zeros (the caller marks them absent).
    """
    n = valid.sum(1)
    # A stable sort of "not valid" brings the valid steps to the front in their own order.
    front = np.argsort(~valid, axis=1, kind="stable")
    wanted = _v2_table(valid.shape[1])[n][:, :length]
    return np.take_along_axis(front, wanted, axis=1)
