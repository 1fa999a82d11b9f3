"""Scores: macro-F1, balanced accuracy, mean IoU, RMSE and R2 from sums over groups, and how far to trust them."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from model.order import key_of
from model.probing.labels import CLASSIFICATION, REGRESSION, SEGMENTATION

Sums = NDArray[np.float64]  # (.., C, C) a confusion matrix: truth by guess; or (.., 4): n, sum of e2, of y, of y2

RESAMPLES = 1000
LEVEL = 0.95

# Quantiles of Student's t at 97.5 % for 1, 2, .. degrees of freedom (any table); beyond, by Cornish and Fisher.
_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_Z_975 = 1.959964


def confusions(truth: NDArray[np.int64], guess: NDArray[np.int64], group: NDArray[np.int64], classes: int) -> Sums:
    """(G, C, C) counts of each group, truth by guess; `group` numbers them 0 .. G-1."""
    out = np.zeros((int(group.max(initial=-1)) + 1, classes, classes))
    np.add.at(out, (group, truth, guess), 1)
    return out


def moments(truth: NDArray[np.float64], guess: NDArray[np.float64], group: NDArray[np.int64]) -> Sums:
    """(G, 4) of each group: how many, sum of squared errors, of true values, of their squares."""
    out = np.zeros((int(group.max(initial=-1)) + 1, 4))
    np.add.at(out, group, np.stack([np.ones_like(truth), (guess - truth) ** 2, truth, truth**2], axis=-1))
    return out


def macro_f1(sums: Sums) -> NDArray[np.float64]:
    """Mean F1 of the classes that occur, in truth or guess: (..)."""
    hit = np.diagonal(sums, axis1=-2, axis2=-1)
    both = sums.sum(-1) + sums.sum(-2)
    return _mean_where(2 * hit, both)


def balanced_accuracy(sums: Sums) -> NDArray[np.float64]:
    """Mean share that was recognised of the classes that occur in truth: (..)."""
    return _mean_where(np.diagonal(sums, axis1=-2, axis2=-1), sums.sum(-1))


def mean_iou(sums: Sums) -> NDArray[np.float64]:
    """Mean intersection over union of the classes that occur, in truth or guess: (..)."""
    hit = np.diagonal(sums, axis1=-2, axis2=-1)
    return _mean_where(hit, sums.sum(-1) + sums.sum(-2) - hit)


def _mean_where(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    there = whole > 0
    ratio = np.divide(part, whole, out=np.zeros_like(part), where=there)
    mean: NDArray[np.float64] = ratio.sum(-1) / np.maximum(there.sum(-1), 1)
    return mean


def rmse(sums: Sums) -> NDArray[np.float64]:
    """Root of the mean squared error, in the label's unit: (..)."""
    root: NDArray[np.float64] = np.sqrt(sums[..., 1] / sums[..., 0])
    return root


def r2(sums: Sums) -> NDArray[np.float64]:
    """Share of the variance that is explained: (..); NaN where the true values do not vary."""
    spread = sums[..., 3] - sums[..., 2] ** 2 / sums[..., 0]
    flat = spread <= 1e-12 * np.maximum(sums[..., 3], 1e-300)
    explained: NDArray[np.float64] = np.where(flat, np.nan, 1 - sums[..., 1] / np.where(flat, 1, spread))
    return explained


# The first of a task is the one that its tables and differences show.
METRICS: dict[str, dict[str, Callable[[Sums], NDArray[np.float64]]]] = {
    CLASSIFICATION: {"macro_f1": macro_f1, "balanced_accuracy": balanced_accuracy},
    REGRESSION: {"rmse": rmse, "r2": r2},
    SEGMENTATION: {"mean_iou": mean_iou, "macro_f1": macro_f1},
}
LESS_IS_BETTER = frozenset({"rmse"})


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean and the interval that holds the true one in 95 of 100 such experiments; NaN where that cannot be said."""

    mean: float
    low: float
    high: float


def t_975(freedom: int) -> float:
    """Quantile of Student's t at 97.5 %."""
    if freedom <= len(_T_975):
        return _T_975[freedom - 1]
    z = _Z_975
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def over_splits(values: Sequence[float], train: int, test: int) -> Interval:
    """The mean over repeated random splits of one set.

    Splits of a set overlap, so their scores vary less than those of fresh sets would: the variance of the mean is
    s2 * (1 / splits + test / train) after Nadeau and Bengio, "Inference for the generalization error", 2003.

    Args:
      values: a score, or a difference of two, for each split.
      train, test: records on either side, all of them, whatever the budget of labels.
    """
    scores = np.asarray(values, np.float64)
    mean = float(scores.mean())
    if len(scores) < 2:
        return Interval(mean, np.nan, np.nan)
    error = float(scores.std(ddof=1)) * np.sqrt(1 / len(scores) + test / train)
    reach = t_975(len(scores) - 1) * error
    return Interval(mean, mean - reach, mean + reach)


def over_groups(
    score: Callable[[Sums], NDArray[np.float64]],
    sums: Sums,
    less: Sums | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """The mean of a score over runs on one fixed test side, by drawing its groups and the draws of labels again.

    Percentiles of a bootstrap (of both at once: Owen, "The pigeonhole bootstrap", 2007). Groups alone would call a few
    lucky labels a difference: at 1 % of the labels what is drawn matters more than what is tested on.

    Args:
      sums: (S, R, G, ..) of S draws of labels, R runs with each (budgets, variants) and G groups.
      less: (S, R2, G, ..) of what is subtracted: the difference's own interval, from the same draws.
    """
    draws, _, groups = sums.shape[:3]

    def of(weights: NDArray[np.float64], what: Sums) -> NDArray[np.float64]:
        flat = what.reshape(-1, groups, int(np.prod(what.shape[3:])))
        drawn = np.einsum("bg,rgk->brk", weights, flat).reshape(len(weights), *what.shape[:2], *what.shape[3:])
        mean: NDArray[np.float64] = score(drawn).mean(2)
        return mean

    def value(weights: NDArray[np.float64], lots: NDArray[np.float64]) -> NDArray[np.float64]:
        each = of(weights, sums) - (0 if less is None else of(weights, less))  # (B, S)
        mean: NDArray[np.float64] = np.where(lots > 0, lots * each, 0).sum(1) / draws
        return mean

    mean = float(value(np.ones((1, groups)), np.ones((1, draws)))[0])
    if groups < 2:
        return Interval(mean, np.nan, np.nan)
    random = np.random.RandomState(int(key_of("bootstrap", seed)) % 2**32)  # the legacy generator's stream is frozen
    weights = random.multinomial(groups, np.full(groups, 1 / groups), resamples).astype(np.float64)
    lots = random.multinomial(draws, np.full(draws, 1 / draws), resamples).astype(np.float64)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(value(weights, lots), [tail, 100 - tail])
    return Interval(mean, float(low), float(high))
