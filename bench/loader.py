"""Loader on one core: records per CPU second that come out of shards as two views, against what a training step takes.

python bench/loader.py [--set FOLDER] [--records N] [--batch N] [--steps N] [--consumed R] [--json] [--check]
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from table import tell

from model.order import batches
from model.records import offsets_of
from model.shards import Batch, Records, ShardSet, open_shards, write_set
from model.views import ViewRule, take, two_views

DATES, PASSES = 70, 60  # of a pixel in a year, 15 more or less (with two satellites each)
SHARD_RECORDS = 1 << 13
FLOOR = 2.0  # over the loop over records


def drawn(n: int) -> Records:
    """Records of a year, every number drawn."""
    rng = np.random.default_rng(0)
    s2, s1 = (offsets_of(rng.integers(most - 15, most + 16, n)) for most in (DATES, PASSES))
    a, b = int(s2[-1]), int(s1[-1])
    return Records(
        np.full(n, b"33TWL", "S5"), np.arange(n, dtype=np.int32), np.arange(n, dtype=np.int32),
        np.zeros(n), np.zeros(n), np.ones(n, np.float32), s2, s1,
        rng.integers(0, 10_000, (a, 10), np.uint16), rng.random(a) < 0.5, rng.integers(1, 366, a, np.int16),
        rng.integers(1, 10_000, (b, 2), np.int16), np.ones(b, bool), rng.integers(0, 2, b, np.uint8),
        rng.integers(1, 366, b, np.int16),
    )  # fmt: skip


def views_of(batch: Batch, rule: ViewRule, step: int) -> list[NDArray[np.generic]]:
    """All that a step of the training needs of a batch."""
    out = []
    for view in two_views(batch.s2_valid, batch.s1_valid, batch.index, rule, 0, 0, step):
        out += [take(series, view.s2) for series in (batch.s2, batch.s2_doy)]
        out += [take(series, view.s1) for series in (batch.s1, batch.s1_doy, batch.s1_orbit)]
    return out


def looped(found: ShardSet, index: NDArray[np.int64]) -> Batch:
    """The same batch by a loop over records, each taken alone: what is measured against."""
    alone = [found.take(index[i : i + 1]) for i in range(len(index))]
    columns: dict[str, Any] = {"index": index}
    for name in ("s2", "s2_valid", "s2_doy", "s1", "s1_valid", "s1_orbit", "s1_doy"):
        parts = [getattr(b, name) for b in alone]
        column = np.zeros((len(index), max(p.shape[1] for p in parts), *parts[0].shape[2:]), parts[0].dtype)
        for i, part in enumerate(parts):
            column[i, : part.shape[1]] = part[0]
        columns[name] = column
    return Batch(**columns)


def rate(run: Callable[[NDArray[np.int64], int], Any], index: list[NDArray[np.int64]]) -> float:
    """Records per CPU second, over all batches but the first: what other work on the machine disturbs least."""
    run(index[0], 0)
    start = time.process_time()
    for step, part in enumerate(index[1:]):
        run(part, step)
    return sum(map(len, index[1:])) / (time.process_time() - start)


def measured(found: ShardSet, batch: int, steps: int) -> list[dict[str, Any]]:
    index = list(itertools.islice(batches(len(found), 0, 0, batch), steps + 1))
    if len(index) < 2:
        raise SystemExit(f"{len(found)} records hold no two batches of {batch}")
    rule = ViewRule()
    cold = rate(lambda part, step: found.take(part), index)
    taken = rate(lambda part, step: found.take(part), index)
    both = rate(lambda part, step: views_of(found.take(part), rule, step), index)
    loop = rate(lambda part, step: looped(found, part), index[:3])
    return [
        {"what": "take, first pass", "records_s": cold},
        {"what": "take", "records_s": taken},
        {"what": "take by a loop over records", "records_s": loop},
        {"what": "take and two views", "records_s": both},
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", default="", help="folder of shards; without it one is drawn and thrown away")
    parser.add_argument("--records", type=int, default=1 << 16)
    parser.add_argument("--shard-records", type=int, default=SHARD_RECORDS)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--consumed", type=float, default=0.0, help="records a second that a training step takes")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true", help="exit 1 below the floor")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if a.set:
            found = open_shards(a.set)
        else:
            place, said = Path(scratch) / "set", {"profile_name": "v2", "period": "2024", "origin": {"drawn": True}}
            found = write_set(place, [drawn(a.records)], shard_records=a.shard_records, **said)
        rows = measured(found, a.batch, a.steps)
        for row in rows:
            row["times_consumed"] = row["records_s"] / a.consumed if a.consumed else None
        shards = len(found.manifest.shards)
        tell("loader", rows, ("what", "records_s", "times_consumed"), a.json, batch=a.batch, shards=shards)
    by = {row["what"]: row["records_s"] for row in rows}
    if a.check and by["take"] < FLOOR * by["take by a loop over records"]:
        raise SystemExit(f"take is not {FLOOR} times a loop over records")
    if a.check and a.consumed and by["take and two views"] < a.consumed:
        raise SystemExit("the loader gives fewer records than the training takes")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
