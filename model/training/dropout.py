"""Dropout by key: which values a record's embedding is made without, whatever batch or rank it stands in."""

import torch
from torch import Tensor

# PyTorch's own dropout draws from one stream in the order in which batches come: two ranks, a batch in parts, a second
# pass over the same part or a training that was stopped would each drop something else.

BITS = 53  # of a number decide, as many as a float64 holds


def _signed(number: int) -> int:
    """The int64 with the bits of a uint64: PyTorch multiplies no unsigned ones, and signed ones wrap alike."""
    return number - (1 << 64) if number >> 63 else number


# splitmix64, as in order.py.
STEP = _signed(0x9E3779B97F4A7C15)
ROUNDS = (30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB))
LAST = 31


def _shifted(z: Tensor, by: int) -> Tensor:
    """A shift to the right that brings zeros, of signed numbers too."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def hashed(keys: Tensor, count: int) -> Tensor:
    """`order.hashed` of int64 keys (n,), numbers 0 to `count`: int64 (n, count) with its bits."""
    k = torch.arange(1, count + 1, device=keys.device, dtype=torch.int64)
    z = keys[:, None] + k * STEP
    for shift, factor in ROUNDS:
        z = (z ^ _shifted(z, shift)) * factor
    return z ^ _shifted(z, LAST)


def keep(keys: Tensor, width: int, share: float, dtype: torch.dtype) -> Tensor:
    """Factors (n, width): 0 for a `share` of all, and what makes up for them for the rest.

    Args:
      keys: int64 (n,), one for each row (`views.keys_of`, its bits as int64).
      share: in 0..1, 1 left out.
    """
    numbers = _shifted(hashed(keys, width), 64 - BITS)
    return (numbers >= int(share * 2**BITS)).to(dtype) / (1 - share)
