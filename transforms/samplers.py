"""Samplers: the rules that turn a pixel's valid observations into the token rows that an encoder sees."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from model.errors import BadInput
from model.profile import Profile
from transforms.draws import draw

BINS = tuple(range(8, 257, 8))  # rows (ucam-eo/tessera tessera_infer_v2/student/infer.py, ssl_dataset_v1_1.py)
ABSENT = -1  # in place of a time step: a row that no observation stands behind
CHUNK_PX = 2048  # pixels sampled at once: their numbers stay in the cache


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A rule that turns n valid observations of a sensor into token rows.

    Attributes:
      bins: lengths, ascending: the smallest that holds n is taken, else the largest.
      empty: what stands in where n is 0, a name of the profile's rule `empty_modality`.
      chosen: (n, length) -> which of n >= 1 observations fill the rows; None where they are drawn by lot.
    """

    bins: tuple[int, ...]
    empty: str
    chosen: Callable[[int, int], NDArray[np.int64]] | None

    @property
    def draws(self) -> bool:
        """Whether `rows` needs seeds."""
        return self.chosen is None

    def length(self, n: npt.ArrayLike) -> NDArray[np.int64]:
        """Token rows for `n` valid observations, any shape."""
        count = np.asarray(n, np.int64)
        bins = np.array(self.bins)
        fitting = bins[np.minimum(np.searchsorted(bins, count), len(bins) - 1)]
        return np.where(count == 0, 1, fitting) if self.empty == "one-absent-row" else fitting

    def rows(self, valid: NDArray[np.bool_], length: int, seeds: NDArray[np.uint64] | None = None) -> NDArray[np.int64]:
        """Time steps chosen for pixels that all need `length` rows.

        Args:
          valid: (N, T) which steps are observed, every row with the same `length` of its count.
          seeds: (N,) of the pixels (`draws.seeds_of`), where the rule draws.

        Returns:
          (N, length) indices into T. Where a pixel has no valid step: ABSENT throughout, or, by the rule "all-steps",
          the same choice among all steps; ABSENT then only where T is 0.
        """
        rows = np.empty((len(valid), length), np.int64)
        for start in range(0, len(valid), CHUNK_PX):
            part = slice(start, start + CHUNK_PX)
            rows[part] = self._rows(valid[part], length, None if seeds is None else seeds[part])
        return rows

    def _rows(self, valid: NDArray[np.bool_], length: int, seeds: NDArray[np.uint64] | None) -> NDArray[np.int64]:
        n = valid.sum(1)
        if self.empty == "all-steps" and not n.all():
            valid = valid | (n == 0)[:, None]
            n = valid.sum(1)
        if self.chosen is not None:
            ranks = _table(self.chosen, self.bins, 1 << valid.shape[1].bit_length())[:, :length][n]
        else:
            assert seeds is not None, "a rule that draws needs seeds"
            ranks = draw(n, length, seeds)
        return _steps(valid, n, ranks)


def _steps(valid: NDArray[np.bool_], n: NDArray[np.int64], ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """The time steps of the `ranks`-th valid ones, (N, length); ABSENT in pixels that have none."""
    there = np.flatnonzero(valid)  # pixel by pixel, in each by time
    if not len(there):
        return np.full_like(ranks, ABSENT)
    ranks += (np.cumsum(n) - n)[:, None]
    steps = there.take(ranks, mode="clip")  # an empty pixel's first would be another's, or lie behind the end
    steps -= (np.arange(len(valid)) * valid.shape[1])[:, None]
    steps[n == 0] = ABSENT
    return steps


@functools.lru_cache(maxsize=8)  # half a MB and more each
def _table(chosen: Callable[[int, int], NDArray[np.int64]], bins: tuple[int, ...], size: int) -> NDArray[np.int64]:
    """(size, largest bin) table of what is chosen of n = 0 .. size - 1, rows filled up with 0 behind their length."""
    table = np.zeros((size, bins[-1]), np.int64)
    for n in range(1, size):
        length = next((b for b in bins if b >= n), bins[-1])
        table[n, :length] = chosen(n, length)
    return table


def _middles(n: int, groups: int) -> NDArray[np.int64]:
    """The middle element, len // 2, of each of `groups` parts of 0 .. n-1; the first n % groups are one longer."""
    size, longer = divmod(n, groups)
    group = np.arange(groups)
    return group * size + np.minimum(group, longer) + (size + (group < longer)) // 2


def v1_1_indices(n: int, length: int) -> NDArray[np.int64]:
    """All of them in order, then the interior points of a line from 0 to n-1, rounded half to even; or middles.

    The rule of ucam-eo/tessera tessera_infer_QAT/src/datasets/ssl_dataset_v1_1.py (facts, 1.5): extras are appended,
    never sorted in. More than the largest bin: the middle element of each of `length` groups.
    """
    if n > length:
        return _middles(n, length)
    extras = np.rint(np.linspace(0, n - 1, length - n + 2)[1:-1])
    return np.concatenate([np.arange(n), extras.astype(np.int64)])


def v2_indices(n: int, length: int) -> NDArray[np.int64]:
    """All of them in order, then, to fill the bin, the middle element of each of `remain` groups when remain <= n.

    The rule of ucam-eo/tessera tessera_infer_v2 (facts, 1.5): with remain > n, 0, 1, .. n-1, 0, ..; the extras are
    appended, never sorted in. More than the largest bin: an integer-truncated linspace.
    """
    if n > length:
        return np.linspace(0, n - 1, length).astype(np.int64)
    remain = length - n
    extras = _middles(n, remain) if 0 < remain <= n else np.arange(remain) % n
    return np.concatenate([np.arange(n), extras])


# By the profile's `sampler`. v1.0 draws 40 of n (ucam-eo/tessera tessera_infer{,_QAT}/src/datasets/ssl_dataset.py).
SAMPLERS = {
    "v1.0": Sampler((40,), "all-steps", None),
    "v1.1": Sampler(BINS, "bin-of-absent-rows", v1_1_indices),
    "v2": Sampler(BINS, "one-absent-row", v2_indices),
}


def sampler_of(profile: Profile) -> Sampler:
    """The sampler that a profile asks for.

    Raises:
      BadInput: the profile's other fields say something else about its rows than the sampler that it names.
    """
    sampler = SAMPLERS[profile.sampler]
    ours = {
        "sampler_bins": sampler.bins,
        "empty_modality": sampler.empty,
        "randomness": "counter" if sampler.draws else "none",
        "row_order": "ascending-first",
    }
    for field, value in ours.items():
        if getattr(profile, field) != value:
            raise BadInput(
                f"profile {profile.name}: its {field} is {getattr(profile, field)!r}, "
                f"and its sampler {profile.sampler} has {value!r}"
            )
    return sampler
