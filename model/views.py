"""Views: sparse random draws of a pixel's valid observations, what the two branches of the training see of it."""

import dataclasses

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from model.errors import BadInput
from model.order import hashed, key_of

ABSENT = -1  # in place of a time step: a row that no observation stands behind; day 0, zeros after standardisation
LENGTH = 40  # rows a sensor (arXiv 2506.20380: 40 valid steps per view)

STEP_BITS = 16  # of a hash give way to the time step that it belongs to; 48 are left to decide by

SENSORS = ("s2", "s1")


def draw(valid: NDArray[np.bool_], length: int, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Draws `length` valid time steps of every pixel, ascending.

    Without replacement where a pixel has so many: those whose hashes are the smallest. With replacement where it has
    fewer: `length` hashes scaled to their number. The same keys give the same steps, whatever else is in the batch.

    Args:
      valid: (N, T) which steps are observed, in the order in which the encoder is to see them: by date, the radar's
        ascending orbit before the descending one (the profile's `row_order`).
      length: rows, 1 and more.
      keys: (N,) of the pixels, one for each view and sensor (`keys_of`).

    Returns:
      (N, length) int64 indices into T; ABSENT throughout where no step is valid.

    Raises:
      BadInput: a length below 1, or 2 ** STEP_BITS steps and more.
    """
    pixels, steps = valid.shape
    if length < 1:
        raise BadInput(f"a view of {length} rows: it must have one at least")
    if steps >> STEP_BITS:
        raise BadInput(f"{steps} time steps of one pixel: {(1 << STEP_BITS) - 1} at most can be drawn from")
    rows = np.full((pixels, length), ABSENT, np.int64)
    n = valid.sum(1)
    enough, few = n >= length, (n > 0) & (n < length)
    if enough.any():
        rows[enough] = _without_replacement(valid[enough], length, keys[enough])
    if few.any():
        rows[few] = _with_replacement(valid[few], n[few], length, keys[few])
    rows.sort(axis=1)
    return rows


def _without_replacement(valid: NDArray[np.bool_], length: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    step = np.arange(valid.shape[1], dtype=np.uint64)
    low = np.uint64((1 << STEP_BITS) - 1)
    # The step in place of the lowest bits: no two numbers of a pixel are alike, so there is one answer, whatever the
    # order in which a partition meets them.
    numbers = (hashed(keys[:, None], step) & ~low) | step
    numbers[~valid] = np.uint64(2**64 - 1)
    numbers.partition(length - 1, axis=1)
    return numbers[:, :length] & low


def _with_replacement(
    valid: NDArray[np.bool_], n: NDArray[np.int64], length: int, keys: NDArray[np.uint64]
) -> NDArray[np.int64]:
    numbers = hashed(keys[:, None], np.arange(length, dtype=np.uint64)) >> np.uint64(32)  # products stay below 2 ** 64
    ranks = ((numbers * n[:, None].astype(np.uint64)) >> np.uint64(32)).astype(np.int64)
    there = np.argsort(~valid, axis=1, kind="stable")  # the valid steps first, ascending
    return np.take_along_axis(there, ranks, 1)


def keys_of(index: npt.ArrayLike, *parts: int | str) -> NDArray[np.uint64]:
    """A key for every record: uint64 in the shape of `index`, a function of its number and of `parts` alone."""
    return hashed(np.full(1, key_of(*parts)), np.atleast_1d(np.asarray(index)).astype(np.uint64))


def spread(valid: NDArray[np.bool_], length: int) -> NDArray[np.int64]:
    """`length` valid time steps of every pixel, evenly spread over them: the same in every view and epoch.

    What `draw` is held against: args, shape and order are its own, and so are steps taken twice where there are fewer.
    """
    n = valid.sum(1)
    rows = np.full((len(valid), length), ABSENT, np.int64)
    some = np.flatnonzero(n)
    ranks = (2 * np.arange(length) + 1) * n[some, None] // (2 * length)  # the middle of each of `length` equal parts
    there = np.argsort(~valid[some], axis=1, kind="stable")
    rows[some] = np.take_along_axis(there, ranks, 1)
    return rows


@dataclasses.dataclass(frozen=True)
class ViewRule:
    """How views are drawn.

    Attributes:
      s2_length, s1_length: rows of each sensor.
      shortest: where given, the rows of a sensor are drawn anew at each step, from `shortest` to its length; one number
        for a whole batch, for rows are never padded, and for both views, for their tokens are mixed row by row.
      drop_s2, drop_s1: in how many of the views, as a share, a sensor is left out altogether. Never both: a view keeps
        the rows of the one sensor where the pixel has nothing of the other.
      random: whether rows are drawn; False: both views see the same ones, evenly spread over the valid ones.
    """

    s2_length: int = LENGTH
    s1_length: int = LENGTH
    shortest: int | None = None
    drop_s2: float = 0.0
    drop_s1: float = 0.0
    random: bool = True

    def __post_init__(self) -> None:
        if min(self.s2_length, self.s1_length) < 1:
            raise BadInput(f"views of {self.s2_length} and {self.s1_length} rows: each must have one at least")
        if self.shortest is not None and not 1 <= self.shortest <= min(self.s2_length, self.s1_length):
            raise BadInput(
                f"shortest view of {self.shortest} rows: it must lie in 1..{min(self.s2_length, self.s1_length)}, "
                "the lesser of both lengths"
            )
        if min(self.drop_s2, self.drop_s1) < 0 or self.drop_s2 + self.drop_s1 > 1:
            raise BadInput(f"drop_s2 {self.drop_s2} and drop_s1 {self.drop_s1}: shares of all views, together up to 1")

    def length(self, sensor: str, seed: int, step: int) -> int:
        """Rows of a sensor ("s2", "s1") at a step of the training: the same on every rank."""
        longest = self.s2_length if sensor == "s2" else self.s1_length
        if self.shortest is None:
            return longest
        number = int(keys_of(step, "view length", seed, sensor)[0])
        return self.shortest + number % (longest - self.shortest + 1)


# TESSERA v2 as its users describe it (facts/tessera.md 1.11): lengths of 8 to 16, whole modalities dropped. Nothing
# published says how often: an eighth of the views for each sensor is a choice.
V2_VIEWS = ViewRule(16, 16, shortest=8, drop_s2=0.125, drop_s1=0.125)


@dataclasses.dataclass(frozen=True)
class View:
    """One draw of a batch.

    Attributes:
      s2, s1: int64 (N, rows) indices into each sensor's time steps; ABSENT where nothing stands behind a row.
    """

    s2: NDArray[np.int64]
    s1: NDArray[np.int64]


def two_views(
    s2_valid: NDArray[np.bool_],
    s1_valid: NDArray[np.bool_],
    index: NDArray[np.int64],
    rule: ViewRule,
    seed: int,
    epoch: int,
    step: int,
) -> tuple[View, View]:
    """Two independent draws of a batch.

    Args:
      s2_valid, s1_valid: (N, T2), (N, T1) which steps are observed.
      index: (N,) numbers of the records among all: a record's draw depends on its number, seed and epoch, and, where
        the rule has a `shortest`, on the step; on its neighbours, rank or place in the batch it does not.
      step: of the training, counted from 0.
    """
    lengths = {sensor: rule.length(sensor, seed, step) for sensor in SENSORS}
    views = []
    for view in (0, 1):
        rows = {
            sensor: draw(valid, lengths[sensor], keys_of(index, "view", seed, epoch, view, sensor))
            if rule.random
            else spread(valid, lengths[sensor])
            for sensor, valid in (("s2", s2_valid), ("s1", s1_valid))
        }
        # 53 bits are a float64's; one number decides for both sensors, so that never both are left out.
        lot = (keys_of(index, "drop", seed, epoch, view) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        rows["s1"][(lot < rule.drop_s1) & s2_valid.any(1)] = ABSENT
        without_s2 = (lot >= rule.drop_s1) & (lot < rule.drop_s1 + rule.drop_s2) & s1_valid.any(1)
        rows["s2"][without_s2] = ABSENT
        views.append(View(rows["s2"], rows["s1"]))
    return views[0], views[1]


def take(series: NDArray[np.generic], rows: NDArray[np.int64]) -> NDArray[np.generic]:
    """The rows of a series: (N, T, ..) and (N, length) to (N, length, ..) of the same type, zeros where ABSENT.

    For days of the year that zero is day 0, by which the encoder knows an absent row.
    """
    absent = rows == ABSENT
    if not series.shape[1]:  # no step of any pixel: there is nothing to take from
        return np.zeros((*rows.shape, *series.shape[2:]), series.dtype)
    taken = series[np.arange(len(rows))[:, None], np.where(absent, 0, rows)]
    taken[absent] = 0
    return taken
