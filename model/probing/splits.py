"""Splits: which labelled records a head is fitted on and which it is tested on, never a group on both sides."""

import dataclasses

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from model.errors import BadInput
from model.order import hashed, key_of

SHARES = (0.01, 0.05, 0.10, 0.30, 1.0)  # of the labels (facts/model.md 5; arXiv 2506.20380 has 1, 30 and 100 %)
SHOTS = (1, 5, 10)  # labels of each class
TEST_SHARE = 0.3  # of the records, where a set has no fixed split
BINS = 5  # parts of equal size into which the values of a regression are put, to be stratified like classes


@dataclasses.dataclass(frozen=True)
class Split:
    """Numbers of labelled records, int64, ascending: `train` and `test` share no group."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Budget:
    """How many labels a head is given: a share of those of the training side, or some of each class.

    Attributes:
      share: 0..1, or None. shots: of each class, or None.
    """

    share: float | None = None
    shots: int | None = None

    def __post_init__(self) -> None:
        if (self.share is None) == (self.shots is None):
            raise BadInput("a budget of labels is a share or a number of shots, one of them")
        if self.share is not None and not 0 < self.share <= 1:
            raise BadInput(f"a share of {self.share} of the labels: it must lie above 0, up to 1")
        if self.shots is not None and self.shots < 1:
            raise BadInput(f"{self.shots} labels of each class: it must be 1 at least")

    @property
    def name(self) -> str:
        return f"{100 * self.share:g} %" if self.share is not None else f"{self.shots}-shot"


def shuffled(n: int, *parts: int | str) -> NDArray[np.int64]:
    """A permutation of 0 .. n-1 that depends on `parts` alone, whatever the release of NumPy."""
    order = np.arange(n)
    return order[np.argsort(hashed(np.full(1, key_of(*parts)), order.astype(np.uint64)), kind="stable")]


def strata_of(label: npt.NDArray[np.generic], bins: int = BINS) -> NDArray[np.int64]:
    """(N,) number of each record's class, or, for numbers, of the part of equal size that its value lies in."""
    parts: NDArray[np.generic] = label
    if label.dtype.kind == "f":
        inner = np.quantile(label.astype(np.float64), np.arange(1, bins) / bins)
        parts = np.searchsorted(np.unique(inner), label, side="right")
    numbers: NDArray[np.int64] = np.unique(parts, return_inverse=True)[1].astype(np.int64)
    return numbers


def hold_out(
    strata: NDArray[np.int64], groups: npt.NDArray[np.generic], share: float = TEST_SHARE, seed: int = 0
) -> Split:
    """Keeps whole groups for testing, about `share` of each class.

    A class that several groups hold stands on both sides wherever the groups let it: the classes in fewest groups are
    seen to first. The other groups then go, one by one in the seed's order, where they bring the classes' shares
    closer to what was asked for.

    Args:
      strata: (N,) from `strata_of`.
      groups: (N,) what must not be split.

    Raises:
      BadInput: fewer than two groups, or a share that leaves a side empty.
    """
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise BadInput(f"{len(names)} group among {len(strata)} labelled records: two at least can be told apart")
    if not 0 < share < 1:
        raise BadInput(f"a share of {share} for testing: it must lie between 0 and 1")
    classes = int(strata.max()) + 1
    counts = np.zeros((len(names), classes))
    np.add.at(counts, (group, strata), 1)
    order = shuffled(len(names), "hold out", seed)
    side = np.full(len(names), -1)  # 1 test, 0 training
    holders = (counts > 0).sum(0)
    for c in np.argsort(holders, kind="stable"):
        if holders[c] < 2:
            continue
        mine = [g for g in order if counts[g, c]]
        for wanted in (1, 0):
            free = [g for g in mine if side[g] < 0]
            if free and not any(side[g] == wanted for g in mine):
                side[free[0]] = wanted
    total = counts.sum(0)
    aim, tested = share * total, counts[side == 1].sum(0)
    for g in order[side[order] < 0]:
        # Squared distances from the aim, each class in units of its own size: what would it be with and without g?
        without = (((tested - aim) / total) ** 2).sum()
        with_it = (((tested + counts[g] - aim) / total) ** 2).sum()
        side[g] = with_it < without
        if side[g]:
            tested = tested + counts[g]
    if len(set(side.tolist())) < 2:  # one class in all groups, and each of them larger than the share
        side[order[0]] = 1 - side[order[0]]
    test = side[group] == 1
    return Split(np.flatnonzero(~test), np.flatnonzero(test))


def fixed(test: NDArray[np.bool_]) -> Split:
    """The split that a set brings with it."""
    return Split(np.flatnonzero(~test), np.flatnonzero(test))


def labelled(strata: NDArray[np.int64], budget: Budget, seed: int) -> NDArray[np.int64]:
    """The records whose labels are given: numbers into `strata`, which is that of the training side. Ascending.

    A share of N labels is N * share, halves up, and 1 at least; classes have their own share of them, and one each
    wherever there are so many. Shots take what a class has where it has fewer. Larger budgets of a seed hold most of
    the smaller ones'.
    """
    counts = np.bincount(strata).astype(np.int64)
    if budget.shots is not None:
        quota = np.minimum(counts, budget.shots).astype(np.int64)
    else:
        assert budget.share is not None
        quota = allotted(counts, max(1, int(np.floor(len(strata) * budget.share + 0.5))))
    order = shuffled(len(strata), "labels", seed)
    rank = np.empty(len(strata), np.int64)
    for c in range(len(counts)):
        mine = order[strata[order] == c]
        rank[mine] = np.arange(len(mine))
    return np.flatnonzero(rank < quota[strata])


def allotted(counts: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """`n` of `counts.sum()` shared out among classes by their sizes: (C,), one each at least where n allows it."""
    share = n * counts / counts.sum()
    least = (counts > 0) & (n >= (counts > 0).sum())
    given: NDArray[np.int64] = np.maximum(np.floor(share).astype(np.int64), least)
    while (short := n - int(given.sum())) != 0:
        step = 1 if short > 0 else -1
        open_ = given < counts if step > 0 else given > least
        gap = np.where(open_, step * (share - given), -np.inf)
        given[int(np.argmax(gap))] += step
    return given
