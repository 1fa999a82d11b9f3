import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import BadInput
from model.families import profile_for
from transforms.cog import TILE_PX as COG_TILE_PX
from transforms.grid import TILE_PX
from transforms.memory import ANY_ROWS, BUILD_PX, budget_for, rows_at_most
from transforms.samplers import sampler_of

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
def test_more_of_anything_never_takes_less(given_sizes, which):
    step = 256 if which == "block_px" else 7
    more = given_sizes | {which: given_sizes[which] + step}
    less, larger = (budget_for(**s, limit_bytes=PLENTY).total_bytes for s in (given_sizes, more))
    assert larger >= less


@pytest.mark.parametrize("which", sorted(SIZES))
def test_a_good_deal_more_of_anything_takes_more(which):
    """Of reading and encoding the one counts that takes more: what is in the other may grow a little unseen."""
    less, larger = (
        budget_for(**SIZES | {which: factor * SIZES[which]}, limit_bytes=PLENTY).total_bytes for factor in (1, 8)
    )
    assert larger > less


def test_a_model_s_weights_count_and_activations_on_a_card_do_not():
    of_a_card = SIZES | {"readers": 1, "micro_batch_px": 4096, "widest": 2048}
    here = budget_for(**of_a_card, limit_bytes=PLENTY).total_bytes
    assert budget_for(**of_a_card, model_bytes=1 << 28, limit_bytes=PLENTY).total_bytes > here + (1 << 28)
    assert budget_for(**of_a_card, on_card=True, limit_bytes=PLENTY).total_bytes < here


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
    budgets = all_budgets(SIZES)
    assert [b.strip_px for b in budgets] == [2048, 512, 256, COG_TILE_PX]  # half a block takes as much as all of it


@given(sizes)
def test_no_strips_are_taken_that_need_more_than_taller_ones(given_sizes):
    """Half a block, say: the next strip is read while one is encoded."""
    budgets = all_budgets(given_sizes)
    assert [b.strip_px for b in budgets] == sorted({b.strip_px for b in budgets}, reverse=True)
    totals = [b.total_bytes for b in budgets]
    assert totals == sorted(set(totals), reverse=True)


def tiles_read(block_px, strip_px, tile_px):
    """Slow and obvious: the internal tiles that each strip of each block of a tile touches, counted one by one."""
    n = 0
    for row in range(0, TILE_PX, block_px):
        for col in range(0, TILE_PX, block_px):
            for top in range(row, min(row + block_px, TILE_PX), strip_px):
                bottom = min(top + strip_px, row + block_px, TILE_PX)
                rows = {y // tile_px for y in range(top, bottom)}
                cols = {x // tile_px for x in range(col, min(col + block_px, TILE_PX))}
                n += len(rows) * len(cols)
    return n


@pytest.mark.parametrize(("block_px", "strip_px"), [(2048, 2048), (2048, 512), (2048, 128), (1024, 1024), (1024, 256)])
def test_fetches_are_the_tiles_of_all_strips_over_those_that_there_are(block_px, strip_px):
    given_sizes = SIZES | {"block_px": block_px}
    budget = next(b for b in all_budgets(given_sizes) if b.strip_px == strip_px)
    shares = {1024: 8, 2048: 3}  # bytes of bands of 10 and of 20 m, whose 1024 px are 2048 of ours
    wanted = sum(n * tiles_read(block_px, strip_px, px) / (-(-TILE_PX // px)) ** 2 for px, n in shares.items()) / 11
    assert budget.fetches == pytest.approx(wanted)


@pytest.mark.parametrize("profile", ["v1.0-early", "v1.1-mpc", "v2"])
def test_no_sampler_makes_more_rows_than_are_counted(profile):
    sampler = sampler_of(profile_for(profile, 128))
    for scenes in range(1, 400):
        most = rows_at_most(scenes, (sampler.bins[0], sampler.bins[-1]))
        assert max(sampler.length(np.arange(1, scenes + 1))) <= most <= rows_at_most(scenes, ANY_ROWS)


def test_blocks_of_2048_px_read_each_tile_once():
    assert budget_for(**SIZES, limit_bytes=PLENTY).fetches == 1


def test_low_strips_say_what_they_cost_and_what_would_cost_less():
    """And what they say is so."""
    tall, *_, low = all_budgets(SIZES)
    assert tall.strips == "strips of 2048 rows"
    words, number = low.strips, r"(\d+\.\d)"
    once = rf"--memory {number}: 1\.0, --block (\d+): {number}"
    found = re.fullmatch(rf"strips of 128 rows, which fetch optical tiles {number} times \({once}\)", words)
    assert found, words
    times, memory, block, better = found.groups()
    assert float(times) == pytest.approx(low.fetches, abs=0.05) and float(better) < float(times)
    assert budget_for(**SIZES, limit_bytes=int(float(memory) * 2**30)).strip_px == 2048
    other = budget_for(**SIZES | {"block_px": int(block)}, limit_bytes=low.total_bytes)
    assert other.fetches == pytest.approx(float(better), abs=0.05)


def test_what_a_block_is_made_into_is_counted_to_the_byte():
    px, dims = 512, 64
    made = (np.int8, dims), (np.float32, 1), (np.uint16, 3), (np.uint8, 1)  # codes, scale, counts, reasons
    budget = budget_for(**SIZES | {"block_px": px, "dims": dims}, limit_bytes=PLENTY)
    assert dict(budget.parts_bytes)["output"] == sum(np.empty((px, px, n), t).nbytes for t, n in made)


def test_while_a_strip_is_encoded_the_next_one_is_read():
    native = {b.strip_px: dict(b.parts_bytes)["native strips"] for b in all_budgets(SIZES)}
    assert {px: n / native[2048] for px, n in native.items()} == pytest.approx(
        {2048: 1, 512: 2 / 4, 256: 2 / 8, 128: 2 / 16}
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


@given(sizes, st.integers(1 << 27, 1 << 33))
def test_a_refusal_names_a_block_and_a_memory_that_would_do(given_sizes, limit):
    try:
        budget_for(**given_sizes, limit_bytes=limit)
        return
    except BadInput as e:
        text = str(e)
    amounts = "{block_px} px with {s2_scenes} optical and {s1_scenes} radar scenes needs".format(**given_sizes)
    assert f"a block of {amounts}" in text
    assert f"{limit / 2**30:.1f} GiB are allowed" in text
    memory = float(re.search(r"--memory (\d+\.\d)", text)[1])
    budget_for(**given_sizes, limit_bytes=int(memory * 2**30))
    if block := re.search(r"--block (\d+)", text):
        assert int(block[1]) < given_sizes["block_px"]
        budget_for(**given_sizes | {"block_px": int(block[1])}, limit_bytes=limit)
    else:
        assert "no --block is enough" in text
        with pytest.raises(BadInput):
            budget_for(**given_sizes | {"block_px": 256}, limit_bytes=limit)


# ---- what a block really takes

MEASURE = Path(__file__).with_name("measure_block_memory.py")
LEAST, MOST = 0.6, 1.0  # of its budget, that a block must take: one that nobody comes near would be believed by nobody


def measured(*arguments):
    ran = subprocess.run(
        [sys.executable, str(MEASURE), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


def files_of(folder, side_px):
    """The files that all scenes share, and the URL of a server that has them, a process of its own."""
    measured("make", folder, "--side", side_px, "--radar", "other" if side_px > 3072 else "same")
    command = [sys.executable, str(MEASURE), "serve", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return server, {"local": "", "served": server.stdout.readline().strip()}


@contextlib.contextmanager
def at_hand(folder, side_px):
    server, roots = files_of(folder, side_px)
    try:
        yield lambda where, *more: json.loads(
            measured("run", folder, "--side", side_px, "--root", roots[where], *more).splitlines()[-1]
        )
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def small_files(tmp_path_factory):
    with at_hand(tmp_path_factory.mktemp("small") / "files", 3072) as run:
        yield run


@pytest.fixture(scope="module")
def large_files(tmp_path_factory):
    with at_hand(tmp_path_factory.mktemp("large") / "files", 6144) as run:
        yield run


def check(found, strip_px):
    assert found["strip_px"] == strip_px
    assert found["embedded"] > 0
    assert LEAST <= found["peak_bytes"] / found["budget_bytes"] <= MOST, found


only_linux = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")


@pytest.mark.slow
@only_linux
def test_a_small_block_takes_what_its_budget_says(small_files):
    check(small_files("served", "--block", 256, "--readers", 4, "--s2", 12, "--s1", 8), 256)


@only_linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ("block_px", "readers", "radar", "where", "strip_px"),
    [
        (512, 4, "same", "local", 512),
        (512, 16, "other", "served", 512),
        (1024, 4, "other", "served", 1024),
        (1024, 16, "same", "local", 1024),
        (1024, 16, "other", "served", 256),
        pytest.param(2048, 4, "same", "local", 2048, marks=pytest.mark.long),
        pytest.param(2048, 16, "other", "served", 2048, marks=pytest.mark.long),
    ],
)
def test_a_block_takes_what_its_budget_says(large_files, block_px, readers, radar, where, strip_px):
    sizes = ("--block", block_px, "--readers", readers, "--radar", radar, "--strip", strip_px)
    check(large_files(where, *sizes, "--s2", 24, "--s1", 16), strip_px)
