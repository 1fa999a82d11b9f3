"""Evaluation: features of all sources, heads and budgets of labels on the same splits, summed up with intervals."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from model.errors import BadInput
from model.probing import heads, scores, splits
from model.probing.labels import REGRESSION, Labels
from model.probing.scores import LESS_IS_BETTER, METRICS, Interval, Sums
from model.probing.splits import Budget, Split

Floats = NDArray[np.float32]
Index = NDArray[np.int64]

MODEL, UNTRAINED, BASELINE, OTHER, FUSION = "model", "untrained", "baseline", "other", "fusion"


@dataclasses.dataclass(frozen=True)
class Source:
    """Features of the labelled records.

    Attributes:
      name: in tables. kind: MODEL, UNTRAINED, BASELINE, OTHER or FUSION.
      variants: float32 (N, D) each; several where the source is a mean over them, as over seeds of random weights.
      blocks: widths of fused parts.
      of, dims, precision: the model file's name, the values taken of it and "int8" or "fp32", where it is of a model.
    """

    name: str
    kind: str
    variants: tuple[Floats, ...]
    blocks: tuple[int, ...] = ()
    of: str = ""
    dims: int = 0
    precision: str = ""


class Task(Protocol):
    """What is split and predicted: records, or patches of them."""

    task: str
    classes: int  # or parts of the range, of a regression
    strata: NDArray[np.int64]  # (U,) of the units
    groups: NDArray[np.str_]
    test: NDArray[np.bool_] | None

    def sums(
        self,
        head: str,
        x: Floats,
        train: NDArray[np.int64],
        test: NDArray[np.int64],
        seed: int,
        blocks: tuple[int, ...],
    ) -> Sums:
        """(G, ..) of the groups of the units `test`, in the order of their names."""
        ...


class RecordTask:
    """Classification or regression of records, one by one."""

    def __init__(self, labels: Labels) -> None:
        self.task, self.groups, self.test = labels.task, labels.group, labels.test
        self.strata = splits.strata_of(labels.label)
        regression = labels.task == REGRESSION
        self._y: NDArray[Any] = labels.label.astype(np.float64) if regression else self.strata
        self.classes = int(self.strata.max()) + 1
        self._group = np.unique(labels.group, return_inverse=True)[1].astype(np.int64)

    def sums(
        self,
        head: str,
        x: Floats,
        train: NDArray[np.int64],
        test: NDArray[np.int64],
        seed: int,
        blocks: tuple[int, ...],
    ) -> Sums:
        """As `Task.sums`."""
        y = self._y
        guess: NDArray[Any] = heads.predict(
            head, self.task, x[train], y[train], self._group[train], x[test], seed, blocks
        )
        group = np.unique(self._group[test], return_inverse=True)[1].astype(np.int64)
        if self.task == REGRESSION:
            return scores.moments(y[test], guess, group)
        return scores.confusions(y[test], guess, group, self.classes)


@dataclasses.dataclass(frozen=True)
class Run:
    """One source, head and budget over all splits.

    Attributes:
      source, head, budget: which.
      sums: (S, V, G, ..) of S splits, V variants, G groups of the test side; G is 1 where the splits differ.
      labels: given for training, on average. train, test: units on either side, on average.
      fixed: whether all splits have one test side, so that its groups can be drawn again.
    """

    source: Source
    head: str
    budget: Budget
    sums: Sums
    labels: float
    train: int
    test: int
    fixed: bool

    def scores(self, metric: Callable[[Sums], NDArray[np.float64]]) -> NDArray[np.float64]:
        """(S,) of each split, a mean over variants."""
        mean: NDArray[np.float64] = metric(self.sums.sum(2)).mean(1)
        return mean


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A task with its splits and budgets: the same for all sources, so that differences are paired.

    Attributes:
      task: what is predicted. splits: one a seed. fixed: whether they are all the set's own.
      budgets: that can be had. skipped: names of those that cannot, with the reason.
    """

    task: Task
    splits: tuple[Split, ...]
    fixed: bool
    budgets: tuple[Budget, ...]
    skipped: dict[str, str]

    def run(self, source: Source, names: Sequence[str], budgets: Sequence[Budget] = ()) -> Iterator[Run]:
        """The source's runs, head by head and budget by budget (all of them by default)."""
        for head in names:
            for budget in budgets or self.budgets:
                yield self._run(source, head, budget)

    def _run(self, source: Source, head: str, budget: Budget) -> Run:
        found: list[Sums] = []
        given: list[int] = []
        for seed, split in enumerate(self.splits):
            # All labels of the set's own split, and a head that draws no lots: every seed would be this one again.
            if seed and self.fixed and budget.share == 1 and head not in heads.SEEDED:
                found.append(found[0])
                given.append(given[0])
                continue
            train = split.train[splits.labelled(self.task.strata[split.train], budget, seed)]
            each = [self.task.sums(head, x, train, split.test, seed, source.blocks) for x in source.variants]
            sums = np.stack(each)
            found.append(sums if self.fixed else sums.sum(1, keepdims=True))
            given.append(len(train))
        sides = np.array([(len(s.train), len(s.test)) for s in self.splits]).mean(0)
        return Run(
            source, head, budget, np.stack(found), float(np.mean(given)), int(sides[0]), int(sides[1]), self.fixed
        )


def experiment(task: Task, budgets: Sequence[Budget], seeds: int, test_share: float = splits.TEST_SHARE) -> Experiment:
    """Makes the splits of a task.

    Args:
      seeds: how many splits; of a set with its own split, how many draws of the labels that are given.

    Raises:
      BadInput: no seeds, one class alone, groups that cannot be told apart, no budget that gives every class a label.
    """
    if seeds < 1:
        raise BadInput(f"{seeds} seeds: there must be 1 at least")
    classes = int(task.strata.max()) + 1
    if task.classes < 2:
        raise BadInput("all labels are alike: there is nothing to tell apart")
    if task.test is not None:
        made = (splits.fixed(task.test),) * seeds
    else:
        made = tuple(splits.hold_out(task.strata, task.groups, test_share, seed) for seed in range(seeds))
    if not all(len(s.train) and len(s.test) for s in made):
        raise BadInput("the split of this set leaves nothing on one side")
    least = min(len(s.train) for s in made)
    kept, skipped = [], {}
    for budget in budgets:
        n = int(np.floor(least * budget.share + 0.5)) if budget.share is not None else classes
        if n < classes:
            parts = "parts of the range" if task.task == REGRESSION else "classes"
            skipped[budget.name] = f"{n} of {least} labels for {classes} {parts}"
        else:
            kept.append(budget)
    if not kept:
        raise BadInput(f"no budget gives each of {classes} classes a label: {skipped}")
    return Experiment(task, made, task.test is not None, tuple(kept), skipped)


def interval(run: Run, metric: str) -> Interval:
    """A score's mean and 95 % interval: over random splits, or over draws and groups of the set's own test side."""
    score = metrics_of(run)[metric]
    if run.fixed:
        return scores.over_groups(score, run.sums)
    return scores.over_splits(run.scores(score).tolist(), run.train, run.test)


def difference(ours: Sequence[Run], theirs: Sequence[Run], metric: str) -> Interval:
    """How much better ours are, in pairs of the same head and budget, with its interval; above 0 is better.

    Of several pairs it is the mean over them.
    """
    score = metrics_of(ours[0])[metric]
    sign = -1.0 if metric in LESS_IS_BETTER else 1.0
    if ours[0].fixed:
        a, b = (np.concatenate([run.sums for run in runs], axis=1) for runs in (ours, theirs))
        return scores.over_groups(lambda sums: sign * score(sums), a, b)
    gaps = [sign * (a.scores(score) - b.scores(score)) for a, b in zip(ours, theirs, strict=True)]
    return scores.over_splits(np.mean(gaps, axis=0).tolist(), ours[0].train, ours[0].test)


def metrics_of(run: Run) -> dict[str, Callable[[Sums], NDArray[np.float64]]]:
    """The metrics whose sums a run holds."""
    shape = run.sums.shape[3:]
    return METRICS[REGRESSION] if len(shape) == 1 else {**METRICS["classification"], **METRICS["segmentation"]}
