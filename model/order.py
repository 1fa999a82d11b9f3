"""Order: a keyed permutation of all records that keeps no table, and the batches that it makes from any position on."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import overload

import numpy as np
from numpy.typing import NDArray

from model.errors import BadInput

# splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014; the constants are those
# of Vigna's public-domain splitmix64.c. The k-th number from a seed is one mix of seed + (k + 1) * STEP: no state.
STEP = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio, odd
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27)
_LAST_SHIFT = np.uint64(31)

# Luby and Rackoff (1988) prove four rounds for large halves. Small ones need more: over 1,500 keys, the chi-squared of
# where five records come to stand is 12.7 standard deviations off at four rounds, 4.3 at eight, 1.2 at ten.
ROUNDS = 10
LARGEST = 1 << 62  # records; positions and cycle walking stay within int64


def key_of(*parts: int | str) -> np.uint64:
    """One key from several: other parts, or the same in another order, give another."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()  # JSON: no two lists share a text
    return np.uint64(int.from_bytes(digest[:8], "big"))


def hashed(keys: NDArray[np.uint64], k: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The k-th numbers of splitmix64 from `keys`, in the shape of both together. One of the two is no scalar."""
    z = keys + (k + np.uint64(1)) * STEP
    for factor, shift in zip(_FACTORS, _SHIFTS, strict=True):
        z ^= z >> shift
        z *= factor
    z ^= z >> _LAST_SHIFT
    return z


@dataclasses.dataclass(frozen=True)
class Permutation:
    """A permutation of 0 .. count-1 that is computed, position by position, from its key.

    A Feistel network over the smallest power of two that holds `count`, walked on until the value lies below `count`
    (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002): a bijection for every key, in O(1) memory.
    On average a position is walked through fewer than two values.

    Attributes:
      count: how many records.
      key: from `key_of`. Another key is another permutation.
    """

    count: int
    key: int

    def __post_init__(self) -> None:
        if not 1 <= self.count <= LARGEST:
            raise BadInput(f"{self.count} records to put in order: there must be 1 to 2**62")

    def __len__(self) -> int:
        return self.count

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: NDArray[np.integer]) -> NDArray[np.int64]: ...

    def __getitem__(self, at: int | NDArray[np.integer]) -> int | NDArray[np.int64]:
        """The records at these positions: an int for an int, int64 in the same shape for an array.

        Raises:
          IndexError: a position below 0, or `count` and above.
        """
        positions = np.asarray(at)
        if positions.dtype.kind not in "iu":
            raise IndexError(f"positions are whole numbers, not {positions.dtype}")
        if positions.size and (positions.min() < 0 or positions.max() >= self.count):
            wrong = positions.min() if positions.min() < 0 else positions.max()
            raise IndexError(f"position {wrong} of {self.count} records")
        records = self._walked(positions.astype(np.uint64).ravel()).astype(np.int64).reshape(positions.shape)
        return records if isinstance(at, np.ndarray) else int(records)

    def _walked(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        values = self._mixed(values)
        while len(outside := np.flatnonzero(values >= self.count)):
            values[outside] = self._mixed(values[outside])
        return values

    def _mixed(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """One pass of the network: each round changes one half by what it makes of the other, so it can be undone."""
        bits = max(2, (self.count - 1).bit_length())
        low_bits = np.uint64(bits // 2)
        high, low = values >> low_bits, values & ((np.uint64(1) << low_bits) - np.uint64(1))
        keys = hashed(np.full(1, self.key, np.uint64), np.arange(ROUNDS, dtype=np.uint64))
        to_high, to_low = np.uint64(64 - (bits - bits // 2)), np.uint64(64) - low_bits
        for r in range(0, ROUNDS, 2):
            high = high ^ (hashed(keys[r : r + 1], low) >> to_high)
            low = low ^ (hashed(keys[r + 1 : r + 2], high) >> to_low)
        return (high << low_bits) | low


def epoch_order(count: int, seed: int, epoch: int) -> Permutation:
    """The order of all records in an epoch."""
    return Permutation(count, int(key_of("epoch", seed, epoch)))


def share_of(batch: int, rank: int, world: int) -> slice:
    """Which part of a batch of all ranks is this rank's: parts follow each other, their sizes differ by one at most.

    Raises:
      BadInput: no such rank, or fewer records than ranks.
    """
    if not 0 <= rank < world:
        raise BadInput(f"rank {rank} of {world}: it must lie in 0..{world - 1}")
    if batch < world:
        raise BadInput(f"a batch of {batch} records for {world} ranks: each must have one at least")
    return slice(rank * batch // world, (rank + 1) * batch // world)


def batches(
    count: int,
    seed: int,
    epoch: int,
    batch: int,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    stored: bool = False,
) -> Iterator[NDArray[np.int64]]:
    """The records of this rank, batch after batch, from a position of the epoch on.

    What counts is the batch of all ranks together: the parts of all ranks, put behind each other, are the same for
    every `world`. A run that stopped after `start` records goes on with `start`, on any number of ranks. What is left
    over behind the last whole batch is not seen in this epoch; the next one leaves out others, unless it is `stored`.

    Args:
      count: records altogether.
      batch: records of all ranks together.
      start: records that all ranks together have seen of this epoch.
      stored: whether they come in the order of their numbers, in place of the epoch's own; what is left over is then
        the same in every epoch, and never seen.

    Yields:
      int64 (the rank's part of `batch`,), numbers of records.

    Raises:
      BadInput: before the first batch: a rank, batch or start that cannot be.
    """
    part = share_of(batch, rank, world)
    if not 0 <= start <= count:
        raise BadInput(f"start {start} of an epoch of {count} records: it must lie in 0..{count}")
    order = epoch_order(count, seed, epoch)

    def run() -> Iterator[NDArray[np.int64]]:
        for first in range(start, count - batch + 1, batch):
            positions = np.arange(first + part.start, first + part.stop)
            yield positions if stored else order[positions]

    return run()
