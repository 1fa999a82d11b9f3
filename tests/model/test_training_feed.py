"""Schedule and feed: the rate of every step, and the batches from any step on."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_sets import small_set

from model.errors import BadInput
from model.shards import open_shards
from model.training.feed import feed, made_ahead, pairs, taught
from model.training.schedule import position, share_of_rate, steps_of
from model.training.tables import Schedule
from model.views import ViewRule


def slow_rates(steps, schedule):
    """The same, step by step: up by equal parts, level, down along half a cosine."""
    up, level = round(schedule.warmup * steps), round(schedule.plateau * steps)
    rates = [(i + 1) / up for i in range(up)] + [1.0] * level
    down = steps - len(rates)
    rates += [
        schedule.floor + (1 - schedule.floor) * 0.5 * (1 + math.cos(math.pi * (i + 1) / down)) for i in range(down)
    ]
    return rates[:steps]


shares = st.integers(0, 10).flatmap(lambda a: st.tuples(st.just(a / 10), st.integers(0, 10 - a).map(lambda b: b / 10)))


@given(st.integers(1, 60), shares, st.sampled_from([0.0, 0.1, 1.0]))
def test_the_rate_is_that_of_a_slow_reference(steps, two, floor):
    schedule = Schedule(steps=steps, warmup=two[0], plateau=two[1], floor=floor)
    expected = slow_rates(steps, schedule)
    got = [share_of_rate(s, steps, schedule) for s in range(steps)]
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_the_rate_rises_stays_and_falls_to_its_floor():
    rates = [share_of_rate(s, 100, Schedule(steps=100, warmup=0.1, plateau=0.3, floor=0.05)) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9:40] == [1.0] * 31
    assert (np.diff(rates[40:]) < 0).all() and rates[-1] == pytest.approx(0.05)


def test_epochs_are_whole_batches_and_too_few_records_are_refused():
    assert steps_of(Schedule(epochs=2.5), 103, 10) == 25
    assert steps_of(Schedule(steps=7), 103, 10) == 7
    assert position(23, 103, 10) == (2, 30)
    with pytest.raises(BadInput, match=r"batch = 104: the shard set has 103 records"):
        steps_of(Schedule(steps=7), 103, 104)
    with pytest.raises(BadInput, match=r"epochs = 0.05: of 103 records that is no step of 10"):
        steps_of(Schedule(epochs=0.05), 103, 10)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return open_shards(small_set(tmp_path_factory.mktemp("set") / "shards").folder)


def fed(shards, steps, rank=0, world=1):
    return list(feed(shards, pairs(ViewRule(5, 4, shortest=2), 7), 7, 16, steps, rank, world))


def same(one, other):
    return all(
        np.array_equal(a, b)
        for x, y in ((one.first, other.first), (one.second, other.second))
        for a, b in zip(x, y, strict=True)
    )


def test_what_is_fed_at_a_step_does_not_depend_on_where_the_training_began(shards):
    whole = fed(shards, range(11))
    assert [f.step for f in whole] == [*range(11)] and [f.epoch for f in whole] == [s // 4 for s in range(11)]
    for start in (1, 3, 4, 10):
        for ours, theirs in zip(fed(shards, range(start, 11)), whole[start:], strict=True):
            assert np.array_equal(ours.index, theirs.index) and same(ours, theirs)


def test_ranks_have_the_parts_of_one_batch(shards):
    whole = fed(shards, range(6))
    parts = [fed(shards, range(6), r, 3) for r in range(3)]
    for step, theirs in enumerate(whole):
        ours = [p[step] for p in parts]
        assert np.array_equal(np.concatenate([o.index for o in ours]), theirs.index)
        for name in ("first", "second"):
            for field in range(5):
                joined = np.concatenate([getattr(o, name)[field] for o in ours])
                assert np.array_equal(joined, getattr(theirs, name)[field])


def test_views_hold_observations_of_their_record_under_their_days(shards):
    for f in fed(shards, range(4)):
        batch = shards.take(f.index)
        for view in (f.first, f.second):
            assert view.s2.dtype == np.uint16 and view.s1_orbit.dtype == np.uint8
            for i in range(len(f.index)):
                real = {(*s, d) for s, d, v in zip(batch.s2[i].tolist(), batch.s2_doy[i].tolist(), batch.s2_valid[i],
                                                   strict=True) for s in [tuple(s)] if v}  # fmt: skip
                assert {(*s, d) for s, d in zip(view.s2[i].tolist(), view.s2_doy[i].tolist(), strict=True)} <= real
                if not batch.s1_valid[i].any():
                    assert not view.s1_doy[i].any() and not view.s1[i].any()


def test_student_and_teacher_have_views_of_their_own_lengths(shards):
    draw = taught(ViewRule(3, 2), ViewRule(6, 5), 7)
    (f,) = feed(shards, draw, 7, 16, range(1))
    assert f.first.s2.shape[1] == 3 and f.first.s1.shape[1] == 2
    assert f.second.s2.shape[1] == 6 and f.second.s1.shape[1] == 5


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_items_made_ahead_are_the_same_in_their_order(ahead):
    assert list(made_ahead(iter(range(9)), ahead)) == [*range(9)]
    assert list(made_ahead(iter(()), ahead)) == []


@pytest.mark.parametrize("ahead", [0, 2])
def test_what_goes_wrong_while_a_batch_is_made_is_raised_where_it_is_used(ahead):
    def items():
        yield 1
        raise BadInput("shard-00001-of-00002.bin: damaged")

    got = made_ahead(items(), ahead)
    assert next(got) == 1
    with pytest.raises(BadInput, match="shard-00001"):
        next(got)


def test_no_thread_is_left_when_it_is_given_up():
    before = threading.active_count()
    items = made_ahead(iter(range(100)), 2)
    next(items)
    items.close()
    assert threading.active_count() == before
