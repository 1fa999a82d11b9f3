import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import BadInput
from transforms.cog import TILE_PX as COG_TILE_PX
from transforms.memory import BUILD_PX, budget_for

SIZES = {
    "block_px": 2048,
    "s2_scenes": 70,
    "s1_scenes": 60,
    "dims": 128,
    "readers": 16,
    "micro_batch_px": 256,
    "widest": 1024,
}
PLENTY = 1 << 50

sizes = st.fixed_dictionaries(
    {
        "block_px": st.integers(1, 20).map(lambda n: n * 256),
        "s2_scenes": st.integers(1, 400),  # without one nothing is encoded, and no batch takes anything
        "s1_scenes": st.integers(0, 400),
        "dims": st.integers(1, 1024),
        "readers": st.integers(1, 64),
        "micro_batch_px": st.integers(1, 8192),
        "widest": st.integers(16, 16384),
    }
)


@given(sizes, st.sampled_from(sorted(SIZES)))
def test_more_of_anything_takes_more(given_sizes, which):
    step = 256 if which == "block_px" else 7
    more = given_sizes | {which: given_sizes[which] + step}
    less, larger = (budget_for(**s, limit_bytes=PLENTY).total_bytes for s in (given_sizes, more))
    assert larger > less


@given(sizes)
def test_the_total_is_the_sum_of_parts_that_are_all_named_and_none_negative(given_sizes):
    budget = budget_for(**given_sizes, limit_bytes=PLENTY)
    assert budget.total_bytes == sum(n for _, n in budget.parts_bytes)
    assert len({name for name, _ in budget.parts_bytes}) == len(budget.parts_bytes)
    assert min(n for _, n in budget.parts_bytes) >= 0


def test_with_memory_enough_a_block_is_read_at_once():
    budget = budget_for(**SIZES, limit_bytes=PLENTY)
    assert budget.strip_px == 2048
    assert budget.build_px * 2048 <= BUILD_PX


def all_budgets(given_sizes):
    """From the tallest strips down: each is what one byte less than the one before it leaves."""
    budgets, limit = [], PLENTY
    while True:
        try:
            budgets.append(budget_for(**given_sizes, limit_bytes=limit))
        except BadInput:
            return budgets
        assert budgets[-1].total_bytes <= limit
        limit = budgets[-1].total_bytes - 1


def test_strips_get_lower_down_to_a_row_of_cog_tiles_as_the_limit_gets_smaller():
    assert [b.strip_px for b in all_budgets(SIZES)] == [2048, 1024, 512, 256, COG_TILE_PX]


def test_what_a_block_is_made_into_is_counted_to_the_byte():
    px, dims = 512, 64
    made = (np.int8, dims), (np.float32, 1), (np.uint16, 3), (np.uint8, 1)  # codes, scale, counts, reasons
    budget = budget_for(**SIZES | {"block_px": px, "dims": dims}, limit_bytes=PLENTY)
    assert dict(budget.parts_bytes)["output"] == sum(np.empty((px, px, n), t).nbytes for t, n in made)


def test_while_a_strip_is_encoded_the_next_one_is_read():
    native = {b.strip_px: dict(b.parts_bytes)["native strips"] for b in all_budgets(SIZES)}
    assert {px: n / native[2048] for px, n in native.items()} == pytest.approx(
        {2048: 1, 1024: 2 / 2, 512: 2 / 4, 256: 2 / 8, 128: 2 / 16}
    )


@given(sizes, st.integers(1 << 28, 1 << 36))
def test_the_tallest_strips_that_fit_are_taken_and_a_limit_below_the_lowest_is_refused(given_sizes, limit):
    budgets = all_budgets(given_sizes)
    for budget in budgets:
        assert 1 <= budget.build_px <= budget.strip_px <= given_sizes["block_px"]
        assert budget.strip_px == given_sizes["block_px"] or budget.strip_px % COG_TILE_PX == 0
    fitting = [b for b in budgets if b.total_bytes <= limit]
    if fitting:
        assert budget_for(**given_sizes, limit_bytes=limit) == fitting[0]
    else:
        with pytest.raises(BadInput):
            budget_for(**given_sizes, limit_bytes=limit)


def test_a_refusal_names_the_block_the_scenes_and_both_amounts():
    with pytest.raises(BadInput) as error:
        budget_for(**SIZES, limit_bytes=1 << 30)
    text = str(error.value)
    assert "a block of 2048 px with 70 optical and 60 radar scenes needs" in text
    assert "GiB" in text
    assert "1.0 GiB are allowed" in text
    assert "--block" in text
    assert "--memory" in text


# ---- what a block really takes

MEASURE = Path(__file__).with_name("measure_block_memory.py")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("strip_px", [768, 256])
def test_a_block_takes_no_more_than_its_budget(tmp_path, strip_px):
    ran = subprocess.run(
        [sys.executable, str(MEASURE), str(tmp_path), str(strip_px)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["strip_px"] == strip_px
    assert found["embedded"] > 0
    assert found["peak_bytes"] <= found["budget_bytes"], found
    # The measure sees what it is meant to see: the native strips alone are more than this.
    assert found["peak_bytes"] - found["idle_bytes"] > found["native_bytes"] / 2, found
