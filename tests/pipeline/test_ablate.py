"""The ablations: intervals over trainings and splits, what a variant changes, and the program's quick form."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from model.errors import BadInput
from model.probing.scores import Interval, over_splits
from model.records import Records
from model.shards import open_shards, write_set
from pipeline.demo import ablate
from pipeline.training import read_config


def config_with(changes):
    return read_config("demo", ["data.shards=s", *ablate.SHARED, *changes]).as_dict()


@pytest.mark.parametrize("variant", ablate.VARIANTS[1:], ids=lambda v: v.name)
def test_a_variant_changes_what_its_name_says_and_nothing_else(variant):
    base, other = config_with(()), config_with(variant.changes)
    differ = {f"{t}.{k}" for t, fields in base.items() for k, v in fields.items() if other[t][k] != v}
    assert differ == {c.partition("=")[0].replace("-", "_") for c in variant.changes}
    assert variant.paper


def test_names_that_are_none_are_refused_and_the_base_is_always_there():
    assert [v.name for v in ablate.chosen(["mean", "no-mix"])] == ["base", "no-mix", "mean"]
    assert ablate.chosen([]) == ablate.VARIANTS
    with pytest.raises(BadInput, match="--only nomix: there are base, same-dates"):
        ablate.chosen(["nomix"])
    with pytest.raises(BadInput, match="--seeds 0 --steps 5"):
        ablate.Plan(ablate.VARIANTS, 0, 5)


@example([0.0, 2.65e-129], 50, 20)
@example([0.0] * 6 + [0.71875, 0.671875], 50, 171)  # whose degrees of freedom come out as 6.99..
@given(st.lists(st.floats(0, 1), min_size=2, max_size=9), st.integers(50, 500), st.integers(20, 200))
def test_the_interval_of_one_training_is_that_of_its_splits(scores, train, test):
    found = ablate.over_seeds_and_splits(np.array([scores]), train, test)
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(over_splits(scores, train, test)), abs=1e-12)


def test_over_trainings_alone_the_interval_is_students():
    scores = np.repeat([[0.5], [0.6], [0.9]], 4, axis=1)  # splits that all agree
    found = ablate.over_seeds_and_splits(scores, 100, 50)
    reach = 4.303 * np.std([0.5, 0.6, 0.9], ddof=1) / math.sqrt(3)  # t of two degrees of freedom
    assert found.mean == pytest.approx(2 / 3)
    assert found.high - found.mean == pytest.approx(reach) and found.mean - found.low == pytest.approx(reach)


def test_the_interval_holds_the_truth_in_nineteen_of_twenty_experiments():
    """Trainings and splits that each have a part of their own in a score; test side as large as a split is fresh."""
    random, hits = np.random.RandomState(1), 0
    for _ in range(2000):
        scores = random.normal(0, 1, (3, 1)) + random.normal(0, 1, (1, 5)) + random.normal(0, 0.5, (3, 5))
        found = ablate.over_seeds_and_splits(scores, 10**9, 0)
        hits += found.low <= 0 <= found.high
    assert 0.93 < hits / 2000 < 1


def test_a_difference_is_told_only_where_its_interval_leaves_zero():
    told = [ablate.direction(Interval(m, m - 1, m + 1)) for m in (-2, -0.5, 0.5, 2)]
    assert told == ["worse", "cannot be told", "cannot be told", "better"]
    assert ablate.direction(Interval(1, math.nan, math.nan)) == "cannot be told"


def test_by_tile_the_records_are_the_same_and_stand_as_they_were_sampled(tmp_path):
    n, random = 40, np.random.RandomState(2)
    places = random.permutation(n)
    records = Records(
        np.where(places % 2, b"33TUL", b"32TQR").astype("S5"), (places // 10).astype(np.int32), places.astype(np.int32),
        np.zeros(n), np.zeros(n), np.ones(n, np.float32), np.arange(n + 1), np.zeros(n + 1, np.int64),
        np.tile(places[:, None], 10).astype(np.uint16), np.ones(n, bool), np.ones(n, np.int16),
        np.zeros((0, 2), np.int16), np.zeros(0, bool), np.zeros(0, np.uint8), np.zeros(0, np.int16),
    )  # fmt: skip
    shards = write_set(tmp_path / "a", [records], profile_name="v2", period="2024", origin={}, shard_records=16)
    sorted_ = open_shards(ablate.stored_by_tile(shards, tmp_path / "b"))
    found = sorted_.records(np.arange(n))
    keys = list(zip(found.tile.tolist(), found.row_px.tolist(), found.col_px.tolist(), strict=True))
    assert keys == sorted(keys) and sorted(found.col_px.tolist()) == list(range(n))
    assert (found.s2[:, 0] == found.col_px).all()
    assert [s.records for s in sorted_.manifest.shards] == [16, 16, 8]


@pytest.mark.slow
def test_the_quick_form_gives_a_row_with_intervals_for_each_variant_and_goes_on_from_its_folder(tmp_path, capsys):
    pytest.importorskip("torch", reason="the ablations need PyTorch")
    pytest.importorskip("sklearn", reason="the ablations need scikit-learn")
    assert ablate.main(["--quick", "--json", "--work", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [row["variant"] for row in found["rows"]] == ["base", *ablate.QUICK]
    for row in found["rows"]:
        score = row["score"]
        assert 0 < score["low"] <= score["mean"] <= score["high"]
        gap = row["difference"]
        assert (gap is None) == (row["variant"] == "base")
        if gap:
            assert gap["low"] <= gap["mean"] <= gap["high"] and row["paper"] and row["ours"]
            assert gap["mean"] == pytest.approx(score["mean"] - found["rows"][0]["score"]["mean"], abs=1e-5)
    assert "3 runs: some" in err
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("model.onnx")}
    assert len(before) == 3
    assert ablate.main(["--quick", "--work", str(tmp_path)]) == 0  # taken as they are
    table = capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert all(f"\n{row['variant']} " in table for row in found["rows"]) and "one seed" in table
