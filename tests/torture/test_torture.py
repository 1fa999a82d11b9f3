"""Torture in small: two rounds of kills, and a few of every other fault; the table itself."""

import random

import pytest

from . import kills, mutants, poison, storms, twice
from .ground import make_ground
from .mutations import MUTATE
from .nursery import nursery
from .places import Bucket, Disk, gcs_double
from .run import torture
from .table import LOST, WRONG, Row, as_text, ok

SEED = 7


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return make_ground(tmp_path_factory.mktemp("torture"))


@pytest.fixture(scope="module")
def runs(ground):
    with nursery(ground.folder / "logs") as found:
        yield found


@pytest.fixture(scope="module")
def courses(ground, runs):
    return kills.undisturbed(ground, runs)


@pytest.fixture
def disk(tmp_path):
    return Disk(tmp_path / "out")


@pytest.fixture
def row(request):
    """A row that must be without a fault at the end of the test."""
    found = Row(request.node.name)
    yield found
    assert found.tried and ok([found]), as_text([found], "what was found")


@pytest.mark.slow
def test_after_kill_9_the_next_run_leaves_the_bytes_of_an_undisturbed_one(ground, runs, courses, disk, row):
    kills.kill_rounds(runs, ground, courses, disk, SEED, 1, row)


@pytest.mark.slow
def test_a_kill_amid_the_joining_of_a_tile_on_gcs_is_mended_by_the_next_run(ground, runs, courses, row):
    with gcs_double() as double:
        kills.round_of(runs, courses["replace"], ground, Bucket(double), [kills.Kill("compose", 3, "amid")], row)


@pytest.mark.slow
def test_two_workers_at_one_bundle_make_one_object_each_and_neither_fails(ground, runs, courses, disk, row):
    twice.one_bundle(runs, courses["embed"], ground, disk, row, "33TUL")


@pytest.mark.slow
def test_requests_that_fail_or_get_lost_never_change_a_byte(ground, runs, courses, row):
    with gcs_double() as double:
        storms.gcs_storm(runs, courses["embed"], ground, Bucket(double), str(SEED), row)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(mutants.KINDS.keys() - {"fragments"}))  # those are damaged in other tests too
def test_mutated_inputs_are_refused_in_words_or_read_as_what_they_are(ground, runs, courses, tmp_path, kind, row):
    mutants.mutate(runs, ground, tmp_path / kind, kind, SEED, 4, row)


@pytest.mark.slow
def test_poisoned_blocks_end_as_failed_receipts_and_the_rest_is_published(ground, runs, courses, disk, row):
    poison.poison(runs, ground, disk, row)
    poison.antidote(runs, ground, disk, row)


@pytest.mark.long  # `make torture` does more of them
@pytest.mark.slow
def test_ten_rounds_of_everything(tmp_path):
    rows = torture(tmp_path / "all", SEED, 10, 20)
    assert ok(rows), as_text(rows, "ten rounds")


def test_one_fault_of_any_kind_is_a_table_that_is_not_ok():
    row = Row("a kind")
    row.add([], "first", repeated=2)
    assert ok([row])
    row.add([(LOST, "no item"), (WRONG, "a byte")], "second")
    assert not ok([row])
    text = as_text([row], "Title")
    assert "| a kind | 2 | 0 | 1 | 2 | 1 | 1 | 0 |" in text and "a kind, second: lost: no item" in text


def test_what_differs_is_called_missing_an_orphan_or_wrong():
    found = kills.differences({"a": b"1", "b": b"2"}, {"b": b"3", "c": b"4"})
    assert found == [(LOST, "missing: c"), (LOST, "orphans: a"), (WRONG, "other bytes: b")]


@pytest.mark.parametrize("kind", sorted(MUTATE))
def test_the_same_seed_is_the_same_mutant(kind):
    data = b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0" + bytes(600) if kind == "tiffs" else b'{"a": [1, {"b": "x"}], "c": 2.5}'
    made = [[MUTATE[kind](data, random.Random(n)) for n in range(50)] for _ in range(2)]
    assert made[0] == made[1]
    assert len({mutant for _, mutant in made[0]}) > 20
