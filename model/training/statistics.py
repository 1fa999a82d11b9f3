"""Statistics: what a shard set's own observations are standardised by, where a family's numbers do not suit them."""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import BadInput
from model.order import epoch_order
from model.profile import Profile
from model.shards import ShardSet

RECORDS = 1 << 16  # of a set at most, drawn by key: 4 million optical observations place a mean to 5e-4 deviations
AT_ONCE = 1 << 12
DECIMALS = 4  # as the published statistics have them


def own_statistics(shards: ShardSet, profile: Profile, seed: int, records: int = RECORDS) -> Profile:
    """The profile with means and deviations of the valid observations of some records, drawn by key.

    A sensor, or an orbit, of which there are none keeps the profile's own numbers.

    Raises:
      BadInput: no optical observation at all, or a band that has one value only.
    """
    order = epoch_order(len(shards), seed, 0)
    sums: dict[str, list[NDArray[np.float64]]] = {"s2": [], "ascending": [], "descending": []}
    for first in range(0, min(records, len(shards)), AT_ONCE):
        batch = shards.take(order[np.arange(first, min(first + AT_ONCE, records, len(shards)))])
        orbits = {"ascending": batch.s1_orbit == 0, "descending": batch.s1_orbit == 1}
        seen = {"s2": batch.s2[batch.s2_valid], **{o: batch.s1[batch.s1_valid & w] for o, w in orbits.items()}}
        for name, values in seen.items():
            x = values.astype(np.float64)
            sums[name].append(np.stack([np.full(x.shape[1], len(x)), x.sum(0), np.square(x).sum(0)]))
    fields: dict[str, Any] = {}
    for name, parts in sums.items():
        count, total, squares = np.sum(parts, axis=0)
        if not count[0]:
            continue
        mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
        if not (deviation > 0).all():
            raise BadInput(f"{shards.folder}: a channel of {name} has one value in all records: it cannot be scaled")
        stem = "s2" if name == "s2" else f"s1_{name}"
        fields[f"{stem}_mean"] = tuple(np.round(mean, DECIMALS).tolist())
        fields[f"{stem}_std"] = tuple(np.round(deviation, DECIMALS).tolist())
    if "s2_mean" not in fields:
        raise BadInput(f"{shards.folder}: no valid optical observation in {min(records, len(shards)):,} records")
    return dataclasses.replace(profile, **fields)
