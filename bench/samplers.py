"""Samplers on one core: pixels sampled per CPU second, beside a loop over pixels in NumPy and a copy of the same bytes.

python bench/samplers.py [--samplers v1.0,v2] [--json] [--check]
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from table import tell

from transforms.draws import Place, seeds_of
from transforms.samplers import SAMPLERS

STEPS = 140  # time steps of a year with two satellites
OBSERVATIONS = (60, 110)  # of them valid in a pixel, 10 more or less
PIXELS, PEER_PIXELS = 1 << 16, 1 << 11  # the first is what is built at once (transforms/memory.py)
PLACE = Place("33TWL", "2024", 0, 0)
# Over the loop: floor, target. A rule that falls back to Python for each pixel has a ratio of about 1.
FLOORS = {"v1.0": (5.0, 10.0), "v1.1": (8.0, 20.0), "v2": (8.0, 20.0)}
REPEATS = 4


def rate(run: Callable[[], Any], n: int) -> float:
    """Pixels per CPU second, best of a few: what other work on the machine disturbs least."""
    best_s = float("inf")
    for _ in range(REPEATS):
        start = time.process_time()
        run()
        best_s = min(best_s, time.process_time() - start)
    return n / best_s


def masks_of(n: int) -> NDArray[np.bool_]:
    """(PIXELS, STEPS) with n - 10 .. n + 10 valid steps a pixel, as a window of clouds has them."""
    rng = np.random.default_rng(0)
    counts = rng.integers(n - 10, n + 11, (PIXELS, 1))
    return rng.random((PIXELS, STEPS)).argsort(1) < counts


def ours(name: str, valid: NDArray[np.bool_]) -> NDArray[np.int64] | None:
    """Lengths, groups, seeds and rows of all pixels, as `encode.tokens_of` asks for them."""
    sampler = SAMPLERS[name]
    seeds = seeds_of("bench", PLACE, "s2", *np.divmod(np.arange(len(valid)), 256)) if sampler.draws else None
    lengths = sampler.length(valid.sum(1))
    rows = None
    for length in np.unique(lengths):
        group = np.flatnonzero(lengths == length)
        rows = sampler.rows(valid[group], int(length), None if seeds is None else seeds[group])
    return rows


def loop(name: str, valid: NDArray[np.bool_]) -> NDArray[np.int64] | None:
    """The same rules pixel by pixel in plain NumPy; v1.0 with NumPy's own generator."""
    rng = np.random.default_rng(0)
    rows = None
    for pixel in valid:
        there = np.flatnonzero(pixel)
        n = len(there)
        if name == "v1.0":
            rows = np.sort(rng.choice(there, 40, replace=n < 40))
            continue
        extra = -(-n // 8) * 8 - n
        if name == "v1.1":
            more = np.rint(np.linspace(0, n - 1, extra + 2)[1:-1]).astype(np.int64)
        else:
            more = np.array([g[len(g) // 2] for g in np.array_split(np.arange(n), extra)] if extra else [], np.int64)
        rows = there[np.concatenate([np.arange(n), more])]
    return rows


def copy(name: str, valid: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Reads the masks and writes as many numbers as there are token rows: less cannot be moved."""
    length = int(SAMPLERS[name].length(valid.sum(1)).max())
    np.copyto(np.empty_like(valid), valid)
    return np.zeros((len(valid), length), np.int64) + 1


def rows(names: list[str]) -> list[dict[str, Any]]:
    found = []
    for name in names:
        for n in OBSERVATIONS:
            valid = masks_of(n)
            ours(name, valid[:1])  # tables
            floor, target = FLOORS[name]
            row: dict[str, Any] = {"sampler": name, "observations": f"{n} of {STEPS}", "floor": floor, "target": target}
            row["ours"] = rate(lambda v=valid, s=name: ours(s, v), PIXELS)
            row["loop"] = rate(lambda v=valid, s=name: loop(s, v[:PEER_PIXELS]), PEER_PIXELS)
            row["limit"] = rate(lambda v=valid, s=name: copy(s, v), PIXELS)
            row["ratio"] = row["ours"] / row["loop"]
            found.append(row)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samplers", default=",".join(SAMPLERS), help=f"of {', '.join(SAMPLERS)}")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--check", action="store_true", help="exit 4 below a floor")
    options = parser.parse_args()
    if unknown := sorted(set(options.samplers.split(",")) - set(SAMPLERS)):
        parser.error(f"--samplers {','.join(unknown)}: it must be of {', '.join(SAMPLERS)}")
    found = rows(options.samplers.split(","))
    columns = ("sampler", "observations", "ours", "loop", "limit", "ratio", "floor", "target")
    tell("samplers", found, columns, options.json)
    return 4 if options.check and any(r["ratio"] < r["floor"] for r in found) else 0


if __name__ == "__main__":
    sys.exit(main())
