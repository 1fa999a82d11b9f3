import numpy as np
import pytest
from sklearn.linear_model import Ridge

from model.errors import BadInput
from model.probing.evaluate import MODEL, UNTRAINED, RecordTask, Source, difference, experiment, interval
from model.probing.heads import DEFAULT, GRID, HEADS, chosen_decay, predict, ridge, standardised
from model.probing.labels import CLASSIFICATION, REGRESSION, Labels
from model.probing.splits import Budget

ALL = Budget(share=1.0)


def classes_in_noise(n=300, dims=16, signal=2.0, seed=0, groups=None):
    """Features of three classes: the first columns say which, the others nothing."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    x = rng.normal(size=(n, dims)).astype(np.float32)
    x[:, :3] += signal * np.eye(3)[y]
    group = np.arange(n) if groups is None else rng.integers(0, groups, n)
    return x, labels_of(np.array(["abc"[c] for c in y]), group)


def labels_of(label, group=None, task=CLASSIFICATION, **more):
    n = len(label)
    group = np.array([f"g{g}" for g in (np.arange(n) if group is None else group)])
    return Labels("made up", task, np.arange(n), label, group, np.full(n, np.nan), np.full(n, np.nan), **more)


def source(x, kind=MODEL):
    return Source("made up", kind, (x,))


@pytest.mark.parametrize("head", HEADS)
def test_a_head_finds_a_planted_class(head):
    x, labels = classes_in_noise(signal=4.0)
    run = next(experiment(RecordTask(labels), [ALL], 2).run(source(x), [head]))
    assert interval(run, "macro_f1").mean > 0.9


@pytest.mark.parametrize("head", HEADS)
def test_a_head_finds_nothing_in_noise(head):
    """Three classes: chance is 1/3; five deviations of the 450 guesses."""
    x, labels = classes_in_noise(signal=0.0)
    run = next(experiment(RecordTask(labels), [ALL], 5).run(source(x), [head]))
    assert interval(run, "balanced_accuracy").mean == pytest.approx(1 / 3, abs=5 * np.sqrt(2 / 9 / 450))


@pytest.mark.parametrize("head", HEADS)
def test_shuffled_labels_score_at_chance_so_nothing_leaks_from_the_test_side(head):
    """Features that tell the classes apart, and which record is which: only a leak could help."""
    x, labels = classes_in_noise(signal=4.0, dims=8)
    wrong = labels_of(np.random.default_rng(9).permutation(labels.label))
    run = next(experiment(RecordTask(wrong), [ALL], 5).run(source(x), [head]))
    assert interval(run, "balanced_accuracy").mean == pytest.approx(1 / 3, abs=5 * np.sqrt(2 / 9 / 450))


@pytest.mark.parametrize("head", HEADS)
def test_what_only_names_the_group_is_worth_nothing(head):
    """Ten groups, each of one class, and features that are the group's own: random pixels would be recognised."""
    rng = np.random.default_rng(5)
    group = np.repeat(np.arange(12), 25)
    y = np.array(["ab"[g % 2] for g in group])
    x = (rng.normal(size=(12, 12))[group] * 5 + rng.normal(size=(300, 12)) * 0.1).astype(np.float32)
    whole = next(experiment(RecordTask(labels_of(y, group)), [ALL], 6).run(source(x), [head]))
    loose = next(experiment(RecordTask(labels_of(y)), [ALL], 2).run(source(x), [head]))
    assert interval(loose, "macro_f1").mean > 0.95
    assert interval(whole, "macro_f1").mean < 0.8


@pytest.mark.parametrize("head", HEADS)
def test_a_head_finds_a_planted_number(head):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 4)).astype(np.float32)
    y = 3.0 * x[:, 0] + 40 + rng.normal(size=400) * 0.1
    run = next(experiment(RecordTask(labels_of(y, task=REGRESSION)), [ALL], 2).run(source(x), [head]))
    assert interval(run, "r2").mean > (0.8 if head == "knn5" else 0.95)
    assert interval(run, "rmse").mean < (1.5 if head == "knn5" else 0.7)


@pytest.mark.parametrize("head", HEADS)
def test_a_number_that_is_noise_is_guessed_no_better_than_by_its_mean(head):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(300, 4)).astype(np.float32), rng.normal(size=300)
    run = next(experiment(RecordTask(labels_of(y, task=REGRESSION)), [ALL], 3).run(source(x), [head]))
    assert interval(run, "r2").mean < 0.05


def test_ridge_is_ridge():
    rng = np.random.default_rng(3)
    for n, dims in ((40, 6), (6, 40)):
        x, y = rng.normal(size=(n, dims)) + 3, rng.normal(size=n) * 4 + 10
        weights, offset = ridge(x, y, 0.3)
        theirs = Ridge(alpha=0.3 * n).fit(x, y)
        np.testing.assert_allclose(weights, theirs.coef_, rtol=1e-6, atol=1e-9)
        assert offset == pytest.approx(theirs.intercept_)


def test_standardising_knows_the_training_side_alone():
    rng = np.random.default_rng(4)
    train, test = rng.normal(size=(50, 3)) * [1, 5, 9] + [0, 10, 100], rng.normal(size=(20, 3)) * 1000
    a, b = standardised(train, test)
    np.testing.assert_allclose(a.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(a.std(0), 1)
    np.testing.assert_allclose(b, (test - train.mean(0)) / train.std(0))
    np.testing.assert_array_equal(a, standardised(train, test + 1e6)[0])


def test_gaps_become_the_mean_and_what_never_varies_is_left_out():
    train = np.array([[1.0, 7, np.nan], [3, 7, np.nan], [np.nan, 7, np.nan]])
    a, b = standardised(train, np.array([[np.nan, 8.0, 5.0]]))
    assert a.shape == (3, 1) and a[2, 0] == 0 and b.tolist() == [[0.0]]


def test_fused_parts_weigh_alike_whatever_their_width():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(500, 12))
    a, _ = standardised(x, x, (2, 10))
    assert (a[:, :2] ** 2).sum() == pytest.approx((a[:, 2:] ** 2).sum())
    assert (a**2).sum() == pytest.approx(x.size)


def test_the_decay_is_chosen_by_groups_of_the_training_side_and_grows_with_the_noise():
    rng = np.random.default_rng(6)
    x = rng.normal(size=(60, 30))
    clear, noise = x[:, 0] * 5, rng.normal(size=60)
    group = np.arange(60)
    assert chosen_decay(x, clear, group, True, 0) < chosen_decay(x, noise, group, True, 0) == max(GRID)


def test_few_labels_or_one_group_leave_the_decay_at_its_default():
    x = np.random.default_rng(7).normal(size=(40, 3))
    y = np.arange(40) % 8
    assert chosen_decay(x[:16], y[:16], np.arange(16), False, 0) == DEFAULT
    assert chosen_decay(x, y % 2, np.zeros(40), False, 0) == DEFAULT


@pytest.mark.parametrize("head", HEADS)
def test_features_that_say_nothing_give_the_most_frequent_class_or_the_mean(head):
    x, z = np.zeros((5, 1)), np.zeros((2, 1))
    guess = predict(head, CLASSIFICATION, x, np.array([0, 1, 1, 1, 2]), np.arange(5), z, 0)
    assert guess.tolist() == [1, 1]
    guess = predict(head, REGRESSION, x, np.arange(5.0), np.arange(5), z, 0)
    assert guess.tolist() == [2, 2]


@pytest.mark.parametrize("head", HEADS)
def test_the_same_seed_gives_the_same_guesses(head):
    x, labels = classes_in_noise(n=90)
    task = RecordTask(labels)
    a, b = (next(experiment(task, [Budget(share=0.3)], 2).run(source(x), [head])) for _ in range(2))
    np.testing.assert_array_equal(a.sums, b.sums)


def test_an_unknown_head_is_refused():
    with pytest.raises(BadInput, match="'forest': there are knn5, linear, mlp"):
        predict("forest", CLASSIFICATION, np.zeros((2, 1)), np.arange(2), np.arange(2), np.zeros((1, 1)), 0)


def test_the_better_features_are_better_with_an_interval_above_nothing():
    good, labels = classes_in_noise(n=150, signal=2.5)
    bad, _ = classes_in_noise(n=150, signal=0.3)
    made = experiment(RecordTask(labels), [Budget(share=0.3), ALL], 6)
    ours, theirs = (list(made.run(s, ["linear"])) for s in (source(good), source(bad, UNTRAINED)))
    gap = difference(ours, theirs, "macro_f1")
    assert gap.low > 0.1
    assert difference(theirs, ours, "macro_f1").high < -0.1
    each = [difference([a], [b], "macro_f1").mean for a, b in zip(ours, theirs, strict=True)]
    assert gap.mean == pytest.approx(np.mean(each))


def test_less_error_is_better_on_the_sets_own_split_too():
    rng = np.random.default_rng(8)
    y = rng.normal(size=200)
    labels = labels_of(y, np.arange(200) // 4, REGRESSION, test=np.arange(200) // 4 % 3 == 0)
    good, bad = ((y[:, None] + rng.normal(size=(200, 1)) * noise).astype(np.float32) for noise in (0.3, 3.0))
    made = experiment(RecordTask(labels), [Budget(share=0.5), ALL], 3)
    ours, theirs = (list(made.run(source(x), ["linear"])) for x in (good, bad))
    assert all(run.fixed for run in ours)
    assert difference(ours, theirs, "rmse").low > 0
    found = interval(ours[1], "rmse")
    assert found.low < found.mean < found.high < interval(theirs[1], "rmse").low


def test_several_variants_of_a_source_are_a_mean_over_them():
    x, labels = classes_in_noise(signal=3.0)
    noise, _ = classes_in_noise(signal=0.0, seed=1)
    made = experiment(RecordTask(labels), [ALL], 3)
    both = next(made.run(Source("both", UNTRAINED, (x, noise)), ["linear"]))
    alone = [interval(next(made.run(source(v), ["linear"])), "macro_f1").mean for v in (x, noise)]
    assert interval(both, "macro_f1").mean == pytest.approx(np.mean(alone))


def test_a_budget_too_small_for_the_classes_is_left_out_with_its_numbers():
    _, labels = classes_in_noise(n=60)
    made = experiment(RecordTask(labels), [Budget(share=0.01), ALL], 1)
    assert [b.name for b in made.budgets] == ["100 %"]
    assert made.skipped == {"1 %": "0 of 42 labels for 3 classes"}
    with pytest.raises(BadInput, match="no budget"):
        experiment(RecordTask(labels), [Budget(share=0.01)], 1)


def test_one_class_alone_is_nothing_to_tell_apart():
    with pytest.raises(BadInput, match="all labels are alike"):
        experiment(RecordTask(labels_of(np.array(["a"] * 9))), [ALL], 1)
