from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from model.errors import BadInput
from model.views import ABSENT, V2_VIEWS, ViewRule, draw, keys_of, spread, take, two_views

masks = hnp.arrays(np.bool_, st.tuples(st.integers(0, 6), st.integers(0, 30)))


@given(masks, st.integers(1, 20), st.integers(0, 2**60))
def test_rows_are_valid_sorted_and_repeated_only_where_there_are_fewer(valid, length, seed):
    rows = draw(valid, length, keys_of(np.arange(len(valid)), seed))
    assert rows.shape == (len(valid), length) and rows.dtype == np.int64
    for mask, chosen in zip(valid, rows, strict=True):
        n = mask.sum()
        if n == 0:
            assert (chosen == ABSENT).all()
            continue
        assert mask[chosen].all()
        assert (np.diff(chosen) >= 0).all()
        if n >= length:
            assert len(set(chosen.tolist())) == length


@given(masks, st.integers(1, 20), st.data())
def test_a_pixel_is_drawn_alike_alone_and_among_others(valid, length, data):
    keys = keys_of(np.arange(len(valid)), 5)
    together = draw(valid, length, keys)
    order = np.array(data.draw(st.permutations(range(len(valid)))), np.int64)
    assert (draw(valid[order], length, keys[order]) == together[order]).all()
    for i in range(len(valid)):
        assert (draw(valid[i : i + 1], length, keys[i : i + 1]) == together[i]).all()


@given(masks, st.integers(1, 20))
def test_spread_rows_are_valid_even_and_alike_in_both_views(valid, length):
    rows = spread(valid, length)
    assert rows.shape == (len(valid), length)
    for mask, chosen in zip(valid, rows, strict=True):
        there = np.flatnonzero(mask)
        slow = [
            there[int(Fraction(2 * i + 1, 2) * len(there) / length)] if len(there) else ABSENT for i in range(length)
        ]
        assert chosen.tolist() == slow
    index = np.arange(len(valid))
    views = two_views(valid, valid, index, ViewRule(length, length, random=False), 1, 2, 3)
    for view in views:
        assert (view.s2 == rows).all() and (view.s1 == rows).all()


def test_the_global_generator_has_no_part_in_it():
    valid = np.ones((4, 30), bool)
    np.random.seed(1)
    first = draw(valid, 10, keys_of(np.arange(4), 1))
    state = np.random.get_state()[1].tolist()
    np.random.seed(2)
    assert (draw(valid, 10, keys_of(np.arange(4), 1)) == first).all()
    np.random.seed(1)
    assert np.random.get_state()[1].tolist() == state


@pytest.mark.parametrize(("steps", "length"), [(9, 4), (4, 9)])
def test_over_many_keys_every_valid_step_is_drawn_equally_often(steps, length):
    """With and without replacement; five deviations of a binomial."""
    pixels = 20_000
    valid = np.zeros((pixels, 2 * steps), bool)
    valid[:, ::2] = True
    rows = draw(valid, length, keys_of(np.arange(pixels), "uniform"))
    seen = np.bincount(rows.ravel(), minlength=2 * steps)[::2]
    expected = pixels * length / steps
    assert seen.sum() == pixels * length
    assert np.abs(seen - expected).max() < 5 * np.sqrt(expected)


def test_two_views_are_independent():
    """Of 20 steps each view has 5, so two share 5 * 5 / 20 on average; the same view again shares all five."""
    index = np.arange(5000)
    valid = np.ones((len(index), 20), bool)
    first, second = two_views(valid, valid, index, ViewRule(5, 5), seed=1, epoch=0, step=0)

    def shared(a, b):
        return np.mean([len(np.intersect1d(x, y)) for x, y in zip(a, b, strict=True)])

    for a, b in ((first.s2, second.s2), (first.s1, second.s1), (first.s2, first.s1)):
        assert abs(shared(a, b) - 1.25) < 0.06
    assert shared(first.s2, first.s2) == 5


def test_a_record_s_views_depend_on_its_number_seed_and_epoch_and_on_nothing_else():
    valid = np.random.default_rng(3).random((6, 25)) < 0.7
    index = np.array([7, 800_000_000, 3, 5, 11, 2])
    rule = ViewRule(8, 6, drop_s1=0.3, drop_s2=0.3)

    def rows(part, **changed):
        views = two_views(valid[part], valid[part], index[part], rule, **{"seed": 1, "epoch": 2, "step": 9, **changed})
        return np.concatenate([r for v in views for r in (v.s2, v.s1)], 1)

    every = rows(slice(None))
    assert (rows(slice(2, 5)) == every[2:5]).all()
    assert (rows(slice(None), step=10) == every).all()
    assert (rows(slice(None), epoch=3) != every).any()
    assert (rows(slice(None), seed=2) != every).any()


def test_a_pixel_without_radar_has_absent_rows_of_day_0_and_zeros():
    valid = np.ones((2, 6), bool)
    radar = np.array([[False] * 4, [True, False, True, True]])
    view, _ = two_views(valid, radar, np.arange(2), ViewRule(3, 3), 1, 0, 0)
    assert (view.s1[0] == ABSENT).all() and (view.s1[1] != ABSENT).all()
    bands, days = np.full((2, 4, 2), 77, np.int16), np.arange(1, 9, dtype=np.int16).reshape(2, 4)
    assert take(days, view.s1)[0].tolist() == [0, 0, 0]
    assert not take(bands, view.s1)[0].any() and (take(bands, view.s1)[1] == 77).all()


@given(st.data())
def test_what_is_taken_is_what_stands_at_the_rows(data):
    n, t, length = (data.draw(st.integers(0, 4)) for _ in range(3))
    series = np.random.default_rng(1).integers(1, 99, (n, t, 3)).astype(np.uint16)
    rows = np.full((n, length), ABSENT) if t == 0 else np.random.default_rng(2).integers(ABSENT, t, (n, length))
    got = take(series, rows)
    assert got.dtype == np.uint16 and got.shape == (n, length, 3)
    for i in range(n):
        for j in range(length):
            assert (got[i, j] == (series[i, rows[i, j]] if rows[i, j] != ABSENT else 0)).all()


def test_lengths_are_drawn_anew_at_each_step_between_their_bounds():
    rule = ViewRule(16, 12, shortest=8)
    lengths = {s: [rule.length(s, 1, step) for step in range(2000)] for s in ("s2", "s1")}
    assert set(lengths["s2"]) == set(range(8, 17)) and set(lengths["s1"]) == set(range(8, 13))
    assert np.abs(np.bincount(lengths["s2"])[8:] - 2000 / 9).max() < 5 * np.sqrt(2000 / 9)
    assert abs(np.corrcoef(lengths["s2"], lengths["s1"])[0, 1]) < 0.1
    assert ViewRule(16, 12).length("s1", 1, 5) == 12


def test_both_views_of_a_step_have_one_length():
    valid = np.ones((3, 20), bool)
    for step in range(20):
        a, b = two_views(valid, valid, np.arange(3), V2_VIEWS, 1, 0, step)
        assert a.s2.shape == b.s2.shape and a.s1.shape == b.s1.shape


def test_a_sensor_is_left_out_as_often_as_asked_and_never_both():
    index = np.arange(20_000)
    valid = np.ones((len(index), 4), bool)
    for view in two_views(valid, valid, index, ViewRule(2, 2, drop_s2=0.2, drop_s1=0.3), 1, 0, 0):
        s2, s1 = ((rows == ABSENT).all(1) for rows in (view.s2, view.s1))
        assert abs(s2.mean() - 0.2) < 0.015 and abs(s1.mean() - 0.3) < 0.017
        assert not (s2 & s1).any()
        assert ((view.s2 == ABSENT).any(1) == s2).all() and ((view.s1 == ABSENT).any(1) == s1).all()


def test_the_two_views_of_a_pixel_leave_out_sensors_independently():
    index = np.arange(20_000)
    valid = np.ones((len(index), 2), bool)
    gone = [(v.s1 == ABSENT).all(1) for v in two_views(valid, valid, index, ViewRule(1, 1, drop_s1=0.5), 1, 0, 0)]
    assert abs((gone[0] & gone[1]).mean() - 0.25) < 0.016


def test_optical_rows_stay_where_a_pixel_has_no_radar():
    valid, none = np.ones((500, 3), bool), np.zeros((500, 3), bool)
    for view in two_views(valid, none, np.arange(500), ViewRule(2, 2, drop_s2=1.0), 1, 0, 0):
        assert (view.s2 != ABSENT).all()


def test_radar_rows_stay_where_a_pixel_has_no_optical_ones():
    none, valid = np.zeros((500, 3), bool), np.ones((500, 3), bool)
    for view in two_views(none, valid, np.arange(500), ViewRule(2, 2, drop_s1=1.0), 1, 0, 0):
        assert (view.s1 != ABSENT).all()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"s2_length": 0}, "0 and 40 rows"),
        ({"shortest": 0}, "shortest view of 0 rows"),
        ({"shortest": 41}, "shortest view of 41 rows"),
        ({"drop_s2": 0.6, "drop_s1": 0.6}, "together up to 1"),
        ({"drop_s1": -0.1}, "drop_s1 -0.1"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_refused_by_name(rule, message):
    with pytest.raises(BadInput, match=message):
        ViewRule(**rule)


def test_a_view_without_rows_and_a_series_too_long_are_refused():
    with pytest.raises(BadInput, match="view of 0 rows"):
        draw(np.ones((1, 3), bool), 0, keys_of([0], 1))
    with pytest.raises(BadInput, match="65536 time steps"):
        draw(np.ones((1, 65536), bool), 3, keys_of([0], 1))
