"""Fusion: embeddings of several sources side by side, each alone, in pairs and all of them."""

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.errors import BadInput

Floats = NDArray[np.float32]


def read_features(path: str | Path, records: int) -> Floats:
    """Embeddings made elsewhere: a .npy file (N, D) of numbers, one row a record of the set; NaN for "none here".

    Raises:
      BadInput: no such file, not such an array, another number of rows, infinities.
    """
    try:
        x = np.load(path, allow_pickle=False)
    except OSError:
        raise BadInput(f"{path} cannot be read; --fuse takes .npy files") from None
    except ValueError as e:
        raise BadInput(f"{path} is not a .npy file of numbers ({e})") from None
    if not isinstance(x, np.ndarray) or x.ndim != 2 or x.dtype.kind not in "iuf" or not x.shape[1]:
        told = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else "an archive"
        raise BadInput(f"{path}: {told}; it must hold numbers (records, dims)")
    if len(x) != records:
        raise BadInput(f"{path}: {len(x):,} rows, and the set has {records:,} records; a row a record, in their order")
    if np.isinf(x).any():
        raise BadInput(f"{path}: infinities among its values; NaN marks records without an embedding")
    return x.astype(np.float32)


def combinations(names: list[str]) -> list[tuple[str, ...]]:
    """Pairs, and all of them where there are more than two; each alone is a source of its own already."""
    found: list[tuple[str, ...]] = list(itertools.combinations(names, 2))
    return [*found, tuple(names)] if len(names) > 2 else found


def fused(
    parts: Mapping[str, NDArray[np.float32]], names: tuple[str, ...]
) -> tuple[NDArray[np.float32], tuple[int, ...]]:
    """Parts side by side (N, sum of D), and their widths, by which a head gives each the same weight."""
    chosen = [parts[name] for name in names]
    return np.concatenate(chosen, axis=1), tuple(x.shape[1] for x in chosen)
