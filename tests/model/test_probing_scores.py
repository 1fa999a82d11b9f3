import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from model.probing.scores import (
    balanced_accuracy,
    confusions,
    macro_f1,
    mean_iou,
    moments,
    over_groups,
    over_splits,
    r2,
    rmse,
    t_975,
)

pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=60)


def one_by_one(truth, guess):
    """F1, recall and IoU of each class by counting pixels in sets: the slow way."""
    f1, recall, iou = [], [], []
    for c in sorted(set(truth) | set(guess)):
        t, g = ({i for i, v in enumerate(values) if v == c} for values in (truth, guess))
        f1.append(2 * len(t & g) / (len(t) + len(g)))
        iou.append(len(t & g) / len(t | g))
        if t:
            recall.append(len(t & g) / len(t))
    return [sum(v) / len(v) for v in (f1, recall, iou)]


@given(pairs)
def test_scores_of_classes_are_those_of_counting_one_by_one(rows):
    truth, guess, group = (np.array(v, np.int64) for v in zip(*rows, strict=True))
    sums = confusions(truth, guess, group, 4).sum(0)
    got = [float(score(sums)) for score in (macro_f1, balanced_accuracy, mean_iou)]
    assert got == pytest.approx(one_by_one(truth.tolist(), guess.tolist()))
    assert got[0] == pytest.approx(metrics.f1_score(truth, guess, average="macro"))


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5), st.integers(0, 3)), min_size=2, max_size=40))
def test_scores_of_numbers_are_those_of_the_plain_formulas(rows):
    truth, guess, group = (np.array(v) for v in zip(*rows, strict=True))
    sums = moments(truth, guess, group).sum(0)
    assert float(rmse(sums)) == pytest.approx(np.sqrt(np.mean((truth - guess) ** 2)), abs=1e-12)
    if truth.std() > 1e-3:
        wanted = 1 - ((truth - guess) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()
        assert float(r2(sums)) == pytest.approx(wanted, rel=1e-6, abs=1e-6)


def test_values_that_do_not_vary_have_no_r2():
    assert np.isnan(r2(moments(np.ones(4), np.zeros(4), np.zeros(4, int)).sum(0)))


def test_students_t_is_that_of_the_tables():
    for freedom, wanted in ((1, 12.706), (9, 2.262), (10, 2.228), (12, 2.179), (19, 2.093), (29, 2.045), (200, 1.972)):
        assert t_975(freedom) == pytest.approx(wanted, abs=2e-3)


def test_the_interval_over_splits_is_wider_than_the_naive_one_and_needs_two():
    values = [0.1, 0.2, 0.3, 0.4]
    found = over_splits(values, 70, 30)
    error = np.std(values, ddof=1) * np.sqrt(1 / 4 + 30 / 70)
    assert found.mean == pytest.approx(0.25)
    assert (found.low, found.high) == pytest.approx((0.25 - 3.182 * error, 0.25 + 3.182 * error))
    assert np.isnan(over_splits([0.5], 70, 30).low)


def test_intervals_over_groups_hold_the_true_value_about_as_often_as_they_say():
    """Errors that groups share: 60 fresh test sides of 40 groups; 95 % of 60 is 57, and 50 is four deviations off."""
    rng = np.random.default_rng(3)
    held = 0
    for seed in range(60):
        group = np.repeat(np.arange(40), 5)
        error = rng.normal(size=40)[group] * 0.8 + rng.normal(size=200) * 0.6
        sums = moments(np.zeros(200), error, group)[None, None]
        found = over_groups(rmse, sums, seed=seed, resamples=300)
        held += found.low <= 1.0 <= found.high
    assert 50 <= held <= 60


def test_a_difference_is_paired_what_both_share_cancels():
    rng = np.random.default_rng(4)
    group = np.arange(100)
    shared = rng.normal(size=100) * 5
    a, b = (moments(np.zeros(100), shared + d, group)[None, None] for d in (0.0, 0.2 * np.sign(shared)))
    alone = over_groups(rmse, b)
    gap = over_groups(rmse, b, a)
    assert gap.mean == pytest.approx(float(rmse(b.sum((0, 1, 2))) - rmse(a.sum((0, 1, 2)))))
    assert gap.low > 0 and gap.high - gap.low < 0.1 * (alone.high - alone.low)


def test_a_difference_of_one_thing_to_itself_is_nothing():
    sums = moments(np.arange(10.0), np.arange(10.0)[::-1], np.arange(10) % 5)[None, None]
    found = over_groups(rmse, sums, sums)
    assert (found.mean, found.low, found.high) == (0, 0, 0)


def test_drawing_groups_keeps_groups_whole():
    """Two groups, one right and one wrong: a bootstrap over records would almost never see a perfect score."""
    truth = np.zeros(200, np.int64)
    guess = np.repeat([0, 1], 100)
    sums = confusions(truth, guess, np.repeat([0, 1], 100), 2)[None, None]
    found = over_groups(balanced_accuracy, sums)
    assert (found.low, found.high) == (0, 1)


def test_draws_of_labels_that_differ_widen_the_interval_of_a_fixed_test_side():
    """Ten heads, each off by its own luck, on a test side that is large: 60 fresh sets of ten, as above."""
    rng = np.random.default_rng(5)
    group, held = np.arange(400), 0
    noise = rng.normal(size=400)
    for seed in range(60):
        luck = rng.normal(size=10)
        sums = np.stack([moments(np.zeros(400), noise + 5 + d, group) for d in luck])[:, None]
        base = np.stack([moments(np.zeros(400), noise + 5, group)] * 10)[:, None]
        found = over_groups(rmse, sums, base, seed=seed, resamples=300)
        held += found.low <= 0.0 <= found.high
    assert 50 <= held <= 60


def test_draws_that_are_all_alike_add_nothing_to_the_interval():
    sums = moments(np.arange(40.0), np.arange(40.0)[::-1], np.arange(40) % 20)
    once, often = (over_groups(rmse, np.stack([sums] * n)[:, None]) for n in (1, 7))
    assert (once.mean, once.low, once.high) == pytest.approx((often.mean, often.low, often.high))
