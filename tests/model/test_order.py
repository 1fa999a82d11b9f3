import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import BadInput
from model.order import LARGEST, Permutation, batches, epoch_order, hashed, key_of, share_of

counts = st.one_of(st.integers(1, 40), st.integers(41, 5000))
keys = st.integers(0, 2**64 - 1)


@given(counts, keys)
def test_every_record_comes_exactly_once(count, key):
    order = Permutation(count, key)
    assert sorted(order[np.arange(count)].tolist()) == list(range(count))


@given(st.integers(1, LARGEST), keys, st.data())
def test_a_position_gives_one_record_alone_or_among_others_however_many_there_are(count, key, data):
    order = Permutation(count, key)
    some = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=6))
    together = order[np.array(some).reshape(1, -1)]
    assert together.shape == (1, len(some)) and together.dtype == np.int64
    assert [order[i] for i in some] == together[0].tolist()
    assert (together >= 0).all() and (together < count).all()
    assert len(set(together[0].tolist())) == len(set(some))


def slow(count, key, position):
    """One position in Python's own whole numbers."""
    every = 2**64 - 1

    def mixed(seed, k):
        z = (seed + (k + 1) * 0x9E3779B97F4A7C15) & every
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & every
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & every
        return z ^ (z >> 31)

    bits = max(2, (count - 1).bit_length())
    low_bits, high_bits = bits // 2, bits - bits // 2
    while True:
        high, low = divmod(position, 2**low_bits)
        for r in range(0, 10, 2):
            high ^= mixed(mixed(key, r), low) >> (64 - high_bits)
            low ^= mixed(mixed(key, r + 1), high) >> (64 - low_bits)
        position = high * 2**low_bits + low
        if position < count:
            return position


@given(st.one_of(counts, st.integers(1, LARGEST)), keys, st.data())
def test_the_order_of_a_key_is_that_of_the_slow_network(count, key, data):
    """A checkpoint stores a position, which means nothing under another order."""
    at = data.draw(st.integers(0, count - 1))
    assert Permutation(count, key)[at] == slow(count, key, at)


def test_splitmix64_is_the_published_one():
    """The first numbers of Vigna's splitmix64.c from the seed 1234567."""
    numbers = hashed(np.full(1, 1234567, np.uint64), np.arange(3, dtype=np.uint64))
    assert numbers.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_keys_differ_wherever_a_part_or_the_order_differs():
    parts = [(1, 2), (2, 1), (12,), ("1", 2), ("1, 2",), (), (1, 2, 0)]
    assert len({int(key_of(*p)) for p in parts}) == len(parts)


@pytest.mark.parametrize("count", [2, 5, 37])
def test_over_many_keys_every_record_stands_at_every_position_equally_often(count):
    rounds = 2000
    at = np.arange(count)
    seen = np.zeros((count, count))
    for key in range(rounds):
        seen[at, Permutation(count, int(key_of("uniform", key)))[at]] += 1
    expected = rounds / count
    chi2 = ((seen - expected) ** 2 / expected).sum()
    freedom = (count - 1) ** 2
    assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom) + 5


def test_neighbours_come_far_apart():
    """What lies together in the shards must not stay together in a batch."""
    count = 100_000
    records = Permutation(count, 7)[np.arange(count)]
    gaps = np.abs(np.diff(records))
    assert abs(gaps.mean() / (count / 3) - 1) < 0.02  # the mean distance of two random points of a line is a third
    assert (gaps < 100).mean() < 2 * 200 / count


@pytest.mark.parametrize("count", [0, -1, LARGEST + 1])
def test_a_number_of_records_without_an_order_is_refused(count):
    with pytest.raises(BadInput, match=f"{count} records"):
        Permutation(count, 1)


@pytest.mark.parametrize("at", [5, -1, np.array([0, 5]), np.array([-1]), 0.5])
def test_a_position_that_is_not_there_is_an_error(at):
    with pytest.raises(IndexError):
        Permutation(5, 1)[at]


whole = st.tuples(st.integers(1, 90), st.integers(0, 9), st.integers(0, 9), st.integers(3, 30))


@given(whole, st.integers(1, 7), st.integers(1, 7))
def test_ranks_are_disjoint_and_together_the_same_whatever_their_number(numbers, few, many):
    count, seed, epoch, batch = numbers

    def together(world):
        parts = [list(batches(count, seed, epoch, batch, r, world)) for r in range(world)]
        return [np.concatenate(step) for step in zip(*parts, strict=True)]

    worlds = [together(w) for w in (1, min(few, batch), min(many, batch))]
    for steps in worlds:
        assert len(steps) == count // batch
        seen = np.concatenate([*steps, np.zeros(0, np.int64)])
        assert len(set(seen.tolist())) == len(seen) == count // batch * batch
        assert all((a == b).all() for a, b in zip(steps, worlds[0], strict=True))


@given(whole, st.integers(1, 5), st.integers(1, 5), st.data())
def test_going_on_in_the_middle_on_other_ranks_is_as_if_nothing_had_happened(numbers, before, after, data):
    count, seed, epoch, batch = numbers
    uninterrupted = list(batches(count, seed, epoch, batch))
    done = data.draw(st.integers(0, len(uninterrupted)))
    before, after = min(before, batch), min(after, batch)
    first = [list(batches(count, seed, epoch, batch, r, before))[:done] for r in range(before)]
    rest = [list(batches(count, seed, epoch, batch, r, after, start=done * batch)) for r in range(after)]
    steps = [np.concatenate(s) for part in (first, rest) for s in zip(*part, strict=True)]
    assert len(steps) == len(uninterrupted)
    assert all((a == b).all() for a, b in zip(steps, uninterrupted, strict=True))


def test_stored_records_come_in_the_order_of_their_numbers_in_every_epoch_and_on_any_ranks():
    for epoch in (0, 3):
        parts = [list(batches(23, 5, epoch, 5, r, 2, 5, stored=True)) for r in range(2)]
        whole = np.concatenate([np.concatenate(pair) for pair in zip(*parts, strict=True)])
        assert whole.tolist() == list(range(5, 20))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(epoch_order(50, s, e)[np.arange(50)].tolist()) for s in range(5) for e in range(5)}
    assert len(orders) == 25


@given(st.integers(1, 100), st.integers(1, 100))
def test_the_parts_of_a_batch_differ_by_one_record_at_most(batch, world):
    if batch < world:
        with pytest.raises(BadInput, match=f"batch of {batch} records for {world} ranks"):
            share_of(batch, 0, world)
        return
    parts = [share_of(batch, r, world) for r in range(world)]
    sizes = [p.stop - p.start for p in parts]
    assert max(sizes) - min(sizes) <= 1 and parts[0].start == 0 and parts[-1].stop == batch
    assert all(a.stop == b.start for a, b in itertools.pairwise(parts))


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"rank": 2}, "rank 2 of 2"), ({"rank": -1}, "rank -1"), ({"start": 101}, "start 101"), ({"start": -1}, "start")],
)
def test_what_cannot_be_is_refused_before_the_first_batch(changed, message):
    with pytest.raises(BadInput, match=message):
        batches(**{"count": 100, "seed": 1, "epoch": 0, "batch": 10, "rank": 0, "world": 2, "start": 0, **changed})
