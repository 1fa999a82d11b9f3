"""The samplers one step at a time, as facts/tessera.md 1.5 words them: what the fast ones are held against."""

import hashlib
import json

WRAP = 2**64 - 1


def splitmix64(seed):
    """The generator of Steele, Lea and Flood, by Vigna's C code: an endless stream of whole numbers."""
    while True:
        seed = (seed + 0x9E3779B97F4A7C15) & WRAP
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WRAP
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WRAP
        yield z ^ (z >> 31)


def slow_seed(profile, tile, period, sensor, row, col):
    """Number row * 2^32 + col of the stream of the names' own seed: jumped to, since the seed only ever counts up."""
    digest = hashlib.sha256(json.dumps([profile, tile, period, sensor]).encode()).digest()
    start = int.from_bytes(digest[:8], "big") + (row * 2**32 + col) * 0x9E3779B97F4A7C15
    return next(splitmix64(start & WRAP))


def slow_draw(n, seed):
    """v1.0: 40 of n by the smallest hashes, or 40 hashes scaled to n."""
    stream = splitmix64(seed)
    if n >= 40:
        hashes = [next(stream) >> 16 for _ in range(n)]
        return sorted(sorted(range(n), key=lambda rank: (hashes[rank], rank))[:40])
    return sorted((next(stream) >> 32) * n >> 32 for _ in range(40))


def middles(n, groups):
    """The middle element of each of `groups` groups of 0 .. n-1, the first n % groups of which are one longer."""
    left, out = list(range(n)), []
    for k in range(groups):
        size = n // groups + (1 if k < n % groups else 0)
        group, left = left[:size], left[size:]
        out.append(group[len(group) // 2])
    return out


def bin_of(n):
    return next((b for b in range(8, 257, 8) if b >= n), 256)


def slow_v1_1(n):
    if n > 256:
        return middles(n, 256)
    extra = bin_of(n) - n
    step = (n - 1) / (extra + 1)
    return [*range(n), *(round(k * step) for k in range(1, extra + 1))]  # Python rounds half to even


def slow_v2(n):
    if n > 256:
        step = (n - 1) / 255
        return [*(int(k * step) for k in range(255)), n - 1]
    extra = bin_of(n) - n
    return [*range(n), *(middles(n, extra) if 0 < extra <= n else (k % n for k in range(extra)))]


def slow_steps(sampler, valid, seed=None):
    """Time steps of one pixel; None for an absent row."""
    there = [t for t, v in enumerate(valid) if v]
    if sampler == "v1.0":
        there = there or list(range(len(valid)))
        return [there[k] for k in slow_draw(len(there), seed)] if there else [None] * 40
    if not there:
        return [None] * (8 if sampler == "v1.1" else 1)
    return [there[k] for k in (slow_v1_1 if sampler == "v1.1" else slow_v2)(len(there))]
