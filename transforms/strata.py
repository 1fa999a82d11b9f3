"""Strata: which tiles are sampled where nobody names them, spread over latitude and over the share of land."""

import collections
from collections.abc import Iterable

import numpy as np

from model.errors import BadInput
from model.order import hashed, key_of

LATITUDES_DEG = 10  # of a band; vegetation zones are some 20 wide
LAND_CLASSES = 4  # up to a quarter of the tile, up to a half, ..


def stratum_of(lat: float, land: float) -> tuple[int, int]:
    """The cell of a tile by the latitude of its centre, degrees, and its share of land, 0..1."""
    return int(lat // LATITUDES_DEG), min(int(land * LAND_CLASSES), LAND_CLASSES - 1)


def stratified(tiles: Iterable[tuple[str, float, float]], n: int, seed: int) -> list[str]:
    """Chooses tiles so that every cell of latitude and land has as many as any other, as far as it has them.

    The cells are gone round in an order that the seed gives, each gives one tile at a time, in an order that the seed
    gives. The first tiles of a larger choice are those of a smaller one; the order of `tiles` plays no part.

    Args:
      tiles: (name, latitude of the centre, share of land).
      n: how many.

    Returns:
      Names, sorted.

    Raises:
      BadInput: fewer tiles than `n`, or `n` below 1.
    """
    known = sorted(tiles)
    if not 1 <= n <= len(known):
        raise BadInput(f"--stratify {n}: there are {len(known)} tiles to choose from; give 1 to {len(known)}")

    def lot(*what: str | int) -> int:
        return int(hashed(np.full(1, key_of("stratify", seed, *what)), np.zeros(1, np.uint64))[0])

    cells: dict[tuple[int, int], list[str]] = collections.defaultdict(list)
    for name, lat, land in known:
        cells[stratum_of(lat, land)].append(name)
    queues = {cell: sorted(names, key=lambda name: lot("tile", name)) for cell, names in cells.items()}
    order = sorted(queues, key=lambda cell: lot("cell", *cell))
    longest = max(map(len, queues.values()))
    gone_round = [queues[cell][i] for i in range(longest) for cell in order if i < len(queues[cell])]
    return sorted(gone_round[:n])
