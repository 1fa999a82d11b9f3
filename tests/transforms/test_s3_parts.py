import functools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.s3_parts import MIB, S3, Limits, parts_of

# S3's own numbers in small: a part has 5 bytes at least, those that are sent 8.
SMALL = Limits(least=5, copied=40, sent=8, parts=10_000)
sizes = st.lists(st.integers(1, 30), max_size=9)


def told(parts, head, sizes):
    """Every byte of the plan in its order, as (source, place)."""
    return [(p.source, k) for part in parts for p in part.pieces for k in range(p.start, p.stop)]


def sent(parts):
    """Bytes of sources that pass through this process."""
    return sum(p.stop - p.start for part in parts if not part.copied for p in part.pieces if p.source >= 0)


def fewest(head, sizes, least):
    """The fewest bytes that must be sent, from all plans there are: byte by byte, each one sent or copied.

    A part that is copied lies in one source; every part but the last has `least` bytes. Neighbouring parts of one
    kind need not be told apart: a run of sent bytes of `least` or more is one part, so is a copied range.
    """
    of = [-1] * head + [n for n, s in enumerate(sizes) for _ in range(s)]

    @functools.cache
    def cost(at, kind, run):
        """Of the bytes from `at` on, where the run so far has `run` bytes (`least`: or more) of that kind."""
        if at == len(of):
            return 0
        found = []
        for next_kind in ("sent", "copied"):
            if next_kind == "copied" and of[at] < 0:
                continue
            price = int(next_kind == "sent" and of[at] >= 0)
            goes_on = kind == next_kind and (kind == "sent" or of[at - 1] == of[at])
            if goes_on:
                found.append(price + cost(at + 1, next_kind, min(run + 1, least)))
            elif at == 0 or run >= least:
                found.append(price + cost(at + 1, next_kind, 1))
        return min(found, default=10**9)

    return cost(0, "", 0)


@given(st.integers(0, 12), sizes)
def test_the_parts_hold_every_byte_once_and_in_order(head, sizes):
    want = [(-1, k) for k in range(head)] + [(n, k) for n, s in enumerate(sizes) for k in range(s)]
    assert told(parts_of(head, sizes, SMALL), head, sizes) == want


@given(st.integers(0, 12), sizes)
def test_every_part_is_one_that_the_store_takes(head, sizes):
    parts = parts_of(head, sizes, SMALL)
    for part in parts:
        assert part.size_bytes > 0
        if part.copied:
            assert len(part.pieces) == 1
            assert part.pieces[0].source >= 0
            assert part.size_bytes <= SMALL.copied
        else:
            assert part.size_bytes < 2 * SMALL.sent
    assert all(part.size_bytes >= SMALL.least for part in parts[:-1])


@given(st.integers(0, 12), sizes)
def test_no_more_is_sent_than_the_best_of_all_plans_sends(head, sizes):
    if head + sum(sizes) < 2 * SMALL.sent:
        assert all(not p.copied for p in parts_of(head, sizes, SMALL))
    else:
        assert sent(parts_of(head, sizes, SMALL)) == fewest(head, sizes, SMALL.least)


def test_a_run_that_lacks_bytes_takes_them_from_the_neighbour_that_stays_large_enough():
    # 4 bytes lack one. The source behind them has 5: without one it must be sent whole; the one before has enough.
    assert sent(parts_of(0, [30, 4, 5, 30], SMALL)) == 5
    assert [p.copied for p in parts_of(0, [30, 4, 5, 30], SMALL)] == [True, False, True, True]


def test_a_tile_of_large_fragments_sends_its_header_and_the_rest_of_its_first_part_alone():
    parts = parts_of(100_000, [60 * MIB] * 121)
    assert sent(parts) == 5 * MIB - 100_000
    assert len(parts) == 122


def test_what_is_small_altogether_is_sent_as_one_part():
    assert [p.size_bytes for p in parts_of(1000, [4 * MIB, 6 * MIB])] == [1000 + 10 * MIB]
    assert parts_of(0, []) == []


def test_what_is_larger_than_a_part_may_be_is_copied_in_equal_parts():
    parts = parts_of(0, [1300 * MIB])
    assert [p.size_bytes for p in parts] == [1300 * MIB // 3, 1300 * MIB // 3, 1300 * MIB // 3 + 1]


def test_more_parts_than_an_upload_has_are_refused():
    with pytest.raises(ValueError, match="10001 parts are more than the 10000"):
        parts_of(0, [S3.least] * 10_001)


def test_ten_thousand_fragments_of_any_size_are_planned_at_once():
    random.seed(1)
    drawn = [int(1 + 12 * MIB * random.random() ** 3) for _ in range(10_000)]
    parts = parts_of(100_000, drawn)
    assert sum(p.size_bytes for p in parts) == 100_000 + sum(drawn)
    assert all(p.size_bytes >= S3.least for p in parts[:-1])
