import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.samplers import v2_indices, v2_length, v2_rows


def slow_reference(n):
    """The rule as facts/tessera.md 1.5 words it, one step at a time."""
    if n == 0:
        return []
    length = next((b for b in range(8, 257, 8) if b >= n), 256)
    if n > length:
        return [int(x) for x in np.linspace(0, n - 1, 256)]
    out = list(range(n))
    remain = length - n
    if 0 < remain <= n:
        for group in np.array_split(np.arange(n), remain):
            out.append(int(group[len(group) // 2]))
    else:
        out += [k % n for k in range(remain)]
    return out


def test_the_rule_is_the_reference_s_for_every_count_up_to_400():
    for n in range(401):
        assert v2_indices(n).tolist() == slow_reference(n), n


@pytest.mark.parametrize(("n", "extras"), [(20, [2, 7, 12, 17]), (3, [0, 1, 2, 0, 1])])
def test_extras_are_appended_and_never_sorted_in(n, extras):
    assert v2_indices(n).tolist() == [*range(n), *extras]


def test_no_observation_needs_one_row():
    assert v2_length(np.arange(0, 10)).tolist() == [1, 8, 8, 8, 8, 8, 8, 8, 8, 16]
    assert v2_length(np.array([256, 257, 400])).tolist() == [256, 256, 256]


@given(st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_rows_are_the_valid_steps_of_each_pixel_in_their_order(steps, seed):
    rng = np.random.default_rng(seed)
    valid = rng.random((6, steps)) < rng.random()
    lengths = v2_length(valid.sum(1))
    for length in np.unique(lengths):
        group = valid[lengths == length]
        got = v2_rows(group, int(length))
        assert got.shape == (len(group), length)
        for pixel, chosen in zip(group, got, strict=True):
            steps_there = np.flatnonzero(pixel)
            if len(steps_there):
                assert chosen.tolist() == steps_there[slow_reference(len(steps_there))].tolist()
