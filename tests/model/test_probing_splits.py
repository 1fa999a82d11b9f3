import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import BadInput
from model.probing.labels import CLASSIFICATION, REGRESSION, SEGMENTATION, Labels, read_labels, write_labels
from model.probing.splits import Budget, allotted, fixed, hold_out, labelled, shuffled, strata_of

strata = st.lists(st.integers(0, 4), min_size=4, max_size=80).map(
    lambda v: np.unique(v, return_inverse=True)[1].astype(np.int64)
)


@given(strata, st.integers(2, 12), st.floats(0.1, 0.9), st.integers(0, 50))
def test_no_group_is_on_both_sides_and_no_record_on_none(y, groups, share, seed):
    group = np.arange(len(y)) % groups
    split = hold_out(y, group, share, seed)
    assert not set(group[split.train]) & set(group[split.test])
    assert sorted([*split.train, *split.test]) == list(range(len(y)))
    assert len(split.train) and len(split.test)


@given(strata, st.floats(0.1, 0.9), st.integers(0, 50))
def test_records_that_are_their_own_groups_are_split_by_classes_to_one_record(y, share, seed):
    split = hold_out(y, np.arange(len(y)), share, seed)
    for c, n in enumerate(np.bincount(y)):
        tested = (y[split.test] == c).sum()
        assert abs(tested - share * n) <= 1
        if n > 1:
            assert 0 < tested < n


@given(st.lists(st.integers(2, 6), min_size=2, max_size=6), st.integers(1, 5), st.integers(0, 20))
def test_a_class_that_several_groups_hold_is_on_both_sides(groups_a_class, size, seed):
    y = np.repeat(np.arange(len(groups_a_class)), np.array(groups_a_class) * size)
    group = np.arange(len(y)) // size  # each group of one class
    split = hold_out(y, group, 0.3, seed)
    everything = set(range(len(groups_a_class)))
    assert set(y[split.train]) == set(y[split.test]) == everything


def test_groups_that_hold_two_classes_can_keep_both_of_them_on_both_sides():
    y = np.tile([0, 1], 6)
    split = hold_out(y, np.repeat(np.arange(6), 2), 0.3, 1)
    assert set(y[split.train]) == set(y[split.test]) == {0, 1}


def test_another_seed_is_another_split_and_the_same_seed_the_same():
    y, group = np.arange(200) % 4, np.arange(200)
    first, again, other = (hold_out(y, group, 0.3, seed) for seed in (1, 1, 2))
    assert (first.test == again.test).all()
    assert set(first.test.tolist()) != set(other.test.tolist())


@given(strata, st.floats(0.01, 1), st.integers(0, 50))
def test_a_share_of_the_labels_is_exact_and_has_every_class_where_it_can(y, share, seed):
    chosen = labelled(y, Budget(share=share), seed)
    n = max(1, int(np.floor(share * len(y) + 0.5)))
    assert len(chosen) == n == len(set(chosen.tolist()))
    assert (np.diff(chosen) > 0).all()
    if n >= y.max() + 1:
        assert set(y[chosen]) == set(y)
        assert (np.bincount(y[chosen]) <= np.bincount(y)).all()


@given(strata, st.integers(1, 12), st.integers(0, 50))
def test_shots_are_so_many_of_each_class_or_all_that_it_has(y, shots, seed):
    chosen = labelled(y, Budget(shots=shots), seed)
    assert (np.bincount(y[chosen]) == np.minimum(np.bincount(y), shots)).all()


@given(st.lists(st.integers(1, 500), min_size=1, max_size=8), st.floats(0, 1))
def test_what_is_allotted_follows_the_sizes_to_one_label(counts, share):
    counts = np.array(counts)
    n = max(len(counts), round(share * counts.sum()))
    given_ = allotted(counts, n)
    assert given_.sum() == n
    assert (given_ >= 1).all() and (given_ <= counts).all()
    exact = n * counts / counts.sum()
    some = exact >= len(counts)  # where the one label that small classes are given at least weighs little
    assert (np.abs(given_ - exact)[some] <= len(counts)).all()


def test_all_labels_are_all_labels():
    y = np.arange(50) % 3
    assert (labelled(y, Budget(share=1.0), 3) == np.arange(50)).all()


def test_the_larger_budget_of_a_seed_holds_the_smaller_ones_shots():
    y = np.arange(90) % 3
    one, five = (set(labelled(y, Budget(shots=n), 7).tolist()) for n in (1, 5))
    assert one < five


def test_numbers_are_stratified_by_parts_of_equal_size():
    values = np.random.default_rng(1).normal(size=1000)
    parts = strata_of(values)
    assert np.bincount(parts).tolist() == [200] * 5
    assert values[parts == 0].max() < values[parts == 4].min()


def test_numbers_of_few_values_make_fewer_parts_and_no_empty_one():
    parts = strata_of(np.array([1.0] * 90 + [2.0] * 10))
    assert set(parts) == {0} or set(parts) == {0, 1}
    assert np.bincount(parts).min() > 0


def test_a_permutation_does_not_ask_the_global_generator():
    np.random.seed(1)
    first = shuffled(100, "a", 1)
    np.random.seed(2)
    assert (shuffled(100, "a", 1) == first).all() and (shuffled(100, "a", 2) != first).any()
    assert sorted(first) == list(range(100))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: Budget(), "one of them"),
        (lambda: Budget(share=0.1, shots=2), "one of them"),
        (lambda: Budget(share=0), "share of 0"),
        (lambda: Budget(shots=0), "0 labels"),
        (lambda: hold_out(np.zeros(3, int), np.zeros(3, int)), "1 group"),
        (lambda: hold_out(np.zeros(3, int), np.arange(3), 1.0), "share of 1.0"),
    ],
)
def test_what_cannot_be_split_is_refused(wrong, words):
    with pytest.raises(BadInput, match=words):
        wrong()


def made(task=CLASSIFICATION, n=12, **change):
    label = np.arange(n) * 0.5 if task == REGRESSION else np.array([f"c{i % 3}" for i in range(n)])
    values = {
        "name": "made up",
        "task": task,
        "record": np.arange(n) * 2,
        "label": label,
        "group": np.array([f"g{i // 2}" for i in range(n)]),
        "lon": np.where(np.arange(n) % 4 == 0, np.nan, np.arange(n) * 1.0),
        "lat": np.arange(n) * -1.0,
    }
    if task == SEGMENTATION:
        values |= {"patch": np.array(["p"] * n), "row": np.arange(n, dtype=np.int32), "col": np.zeros(n, np.int32)}
    return Labels(**values | change)


@pytest.mark.parametrize("task", [CLASSIFICATION, REGRESSION, SEGMENTATION])
@pytest.mark.parametrize("split", [False, True])
def test_labels_come_back_as_they_were_written(tmp_path, task, split):
    labels = made(task, test=np.arange(12) // 2 % 3 == 0 if split else None)
    path = write_labels(tmp_path, labels)
    back = read_labels(tmp_path, 24)
    for name, value in vars(labels).items():
        got = getattr(back, name)
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(got, value)
            assert got.dtype.kind == value.dtype.kind
        else:
            assert got == value
    content = path.read_bytes()
    write_labels(tmp_path, labels)
    assert path.read_bytes() == content


def test_labels_of_records_that_the_set_does_not_hold_are_refused(tmp_path):
    write_labels(tmp_path, made())
    with pytest.raises(BadInput, match=r"0 to 22.*0 to 21"):
        read_labels(tmp_path, 22)


def test_a_shard_set_without_labels_is_no_probe_set(tmp_path):
    with pytest.raises(BadInput, match=r"no labels\.parquet"):
        read_labels(tmp_path, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "ranking"}, "ranking"),
        ({"record": np.zeros(12, np.int64)}, "two labels"),
        ({"lon": np.zeros(3)}, "different lengths"),
        ({"label": np.arange(12)}, "must be strings"),
        ({"patch": np.array(["p"] * 12)}, "segmentation"),
        ({"test": np.arange(12) == 0}, "'g0' on both sides"),
    ],
)
def test_labels_that_contradict_themselves_are_refused(change, words):
    with pytest.raises(BadInput, match=words):
        made(**change)


def test_a_regression_has_no_empty_label():
    with pytest.raises(BadInput, match="not a finite number"):
        made(REGRESSION, label=np.full(12, np.nan))


def test_the_sets_own_split_is_kept():
    split = fixed(np.array([True, False, True]))
    assert split.test.tolist() == [0, 2] and split.train.tolist() == [1]
