import dataclasses
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slow_samplers import slow_draw, slow_seed, slow_steps, slow_v1_1, slow_v2, splitmix64

from model.errors import BadInput
from model.families import names, profile_for
from transforms import draws, samplers
from transforms.draws import Place, draw, seeds_of
from transforms.samplers import ABSENT, SAMPLERS, sampler_of

GOLDEN = Path(__file__).parents[2] / "../shared/golden"
HERE = Place("33TWL", "2024", 512, 1024)
EVERY = pytest.mark.parametrize("name", SAMPLERS)


def observed(counts, steps, seed=0):
    """(len(counts), steps) with so many valid steps in each row, anywhere."""
    valid = np.zeros((len(counts), steps), bool)
    places = np.random.default_rng(seed).random(valid.shape).argsort(1)
    for row, n, at in zip(valid, counts, places, strict=True):
        row[at[:n]] = True
    return valid


def seeds(n, place=HERE, sensor="s2", profile="v1.0-qat", width=100):
    """Of n pixels, row by row."""
    return seeds_of(profile, place, sensor, *np.divmod(np.arange(n), width))


def by_length(name, valid, seeds):
    """Rows of pixels of any count, as lists; None for an absent row."""
    sampler = SAMPLERS[name]
    lengths = sampler.length(valid.sum(1))
    found = [[]] * len(valid)
    for length in np.unique(lengths):
        group = np.flatnonzero(lengths == length)
        rows = sampler.rows(valid[group], int(length), seeds[group])
        assert rows.shape == (len(group), length)
        assert rows.dtype == np.int64
        for pixel, chosen in zip(group, rows, strict=True):
            found[pixel] = [None if t == ABSENT else int(t) for t in chosen]
    return found


def assert_slow(name, valid, seeds):
    for pixel, chosen in enumerate(by_length(name, valid, seeds)):
        assert chosen == slow_steps(name, valid[pixel], int(seeds[pixel])), (name, valid[pixel].sum())


# ---- every rule


@EVERY
def test_rows_are_the_slow_rule_s_for_every_count_up_to_400(name):
    # Trap T3.
    assert_slow(name, observed(range(401), 400), seeds(401))


@EVERY
@given(st.integers(0, 300), st.integers(0, 2**32 - 1))
def test_rows_are_the_valid_steps_of_each_pixel_by_the_slow_rule(name, steps, seed):
    rng = np.random.default_rng(seed)
    valid = rng.random((6, steps)) < rng.choice([0, 0.05, 0.3, 0.9, 1], (6, 1))
    assert_slow(name, valid, seeds(6))


@EVERY
@pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden is not here")
@pytest.mark.parametrize("tile", ["tile_v1.1-mpc", "tile_v1.1-aws", "tile_v2"])
def test_rows_are_the_slow_rule_s_for_the_masks_of_golden_tiles(name, tile):
    radar = [np.load(GOLDEN / tile / f"sar_{orbit}.npy").any(-1) for orbit in ("ascending", "descending")]
    for valid in (np.load(GOLDEN / tile / "masks.npy") == 1, np.concatenate(radar)):
        valid = valid.reshape(len(valid), -1).T
        assert (valid.sum(1) == 0).any()
        assert_slow(name, valid, seeds(len(valid)))


@EVERY
@given(st.integers(1, 12), st.integers(0, 80), st.integers(0, 2**32 - 1))
def test_a_pixel_s_rows_do_not_depend_on_its_company(name, pixels, steps, seed):
    rng = np.random.default_rng(seed)
    valid = rng.random((pixels, steps)) < 0.6
    alone = [by_length(name, valid[k : k + 1], seeds(pixels)[k : k + 1])[0] for k in range(pixels)]
    order = rng.permutation(pixels)
    shuffled = by_length(name, valid[order], seeds(pixels)[order])
    assert [shuffled[k] for k in np.argsort(order)] == alone


@EVERY
def test_rows_do_not_depend_on_how_many_pixels_are_sampled_at_once(name, monkeypatch):
    valid = observed(np.random.default_rng(0).integers(0, 120, 100), 120)
    whole = by_length(name, valid, seeds(100))
    monkeypatch.setattr(samplers, "CHUNK_PX", 7)
    assert by_length(name, valid, seeds(100)) == whole


@pytest.mark.parametrize(("name", "counts"), [("v1.0", [0, 3, 50]), ("v1.1", [0, 1, 7]), ("v2", [1, 3, 7])])
def test_masks_are_left_as_they_were(name, counts):
    valid = observed(counts, 60)
    before = valid.copy()
    SAMPLERS[name].rows(valid, int(SAMPLERS[name].length(counts[0])), seeds(3))
    np.testing.assert_array_equal(valid, before)


@EVERY
def test_lengths_are_those_of_the_profile_s_bins(name):
    n = np.arange(401).reshape(1, 401)
    lengths = SAMPLERS[name].length(n)
    assert lengths.shape == n.shape
    assert lengths.dtype == np.int64
    wanted = {
        "v1.0": [40] * 401,
        "v1.1": [8] + [min(256, -(-k // 8) * 8) for k in range(1, 401)],
        "v2": [1] + [min(256, -(-k // 8) * 8) for k in range(1, 401)],
    }
    assert lengths[0].tolist() == wanted[name]


@pytest.mark.parametrize("name", ["v1.1", "v2"])
@given(st.integers(1, 256))
def test_up_to_256_observations_are_all_kept_in_order_and_extras_appended(name, n):
    valid = observed([n], 300, seed=n)
    (chosen,) = by_length(name, valid, seeds(1))
    there = np.flatnonzero(valid).tolist()
    assert chosen[:n] == there
    assert set(chosen[n:]) <= set(there)


@pytest.mark.parametrize("name", ["v1.1", "v2"])
@given(st.integers(257, 600))
def test_more_than_256_are_thinned_in_order_without_repeats(name, n):
    chosen = SAMPLERS[name].rows(np.ones((1, n), bool), 256)[0]
    assert (np.diff(chosen) > 0).all()


@pytest.mark.parametrize(
    ("rule", "n", "extras"),
    [(slow_v1_1, 20, [4, 8, 11, 15]), (slow_v2, 20, [2, 7, 12, 17]), (slow_v1_1, 3, [0, 1, 1, 1, 2]),
     (slow_v2, 3, [0, 1, 2, 0, 1])],
)  # fmt: skip
def test_the_slow_rules_give_the_extras_that_the_facts_name(rule, n, extras):
    assert rule(n) == [*range(n), *extras]


def test_the_two_paddings_agree_for_65_counts_of_256():
    same = [n for n in range(1, 257) if slow_v1_1(n) == slow_v2(n)]
    fast = [n for n in range(1, 257) if np.array_equal(
        SAMPLERS["v1.1"].rows(np.ones((1, n), bool), -(-n // 8) * 8),
        SAMPLERS["v2"].rows(np.ones((1, n), bool), -(-n // 8) * 8),
    )]  # fmt: skip
    assert same == fast == [1, *(n for n in range(2, 257) if n % 8 in (7, 0))]


# ---- nothing observed


@pytest.mark.parametrize(("name", "rows"), [("v1.1", 8), ("v2", 1)])
@pytest.mark.parametrize("steps", [0, 5, 300])
def test_a_pixel_without_observations_has_absent_rows_and_its_neighbours_their_own(name, rows, steps):
    # Traps T18 and T19.
    assert by_length(name, np.zeros((3, steps), bool), seeds(3)) == [[None] * rows] * 3
    if steps:
        valid = observed([0, 4, 0], steps)
        assert by_length(name, valid, seeds(3))[1] == slow_steps(name, valid[1])


@pytest.mark.parametrize("steps", [1, 17, 40, 140])
def test_v1_0_falls_back_to_all_steps_as_if_all_were_valid(steps):
    # Trap T18: the reference of this family knows no absent rows.
    none, all_of_them = (np.full((5, steps), v) for v in (False, True))
    assert by_length("v1.0", none, seeds(5)) == by_length("v1.0", all_of_them, seeds(5))
    assert by_length("v1.0", observed([0, steps], steps), seeds(2))[0] == by_length("v1.0", none, seeds(5))[0]


def test_v1_0_has_absent_rows_where_there_is_no_step_at_all():
    assert by_length("v1.0", np.zeros((2, 0), bool), seeds(2)) == [[None] * 40] * 2


# ---- draws


def test_the_numbers_are_splitmix64_s():
    # The first numbers of Vigna's splitmix64.c from the seed 1234567, as printed in many ports of it.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
                 16408922859458223821]  # fmt: skip
    assert list(itertools.islice(splitmix64(1234567), 5)) == published
    got = draws._stream(np.array([1234567], np.uint64), np.arange(5, dtype=np.uint64))
    assert [int(v) for v in got] == published


@given(
    st.text(max_size=5), st.text(max_size=5), st.text(max_size=5), st.sampled_from(["s1", "s2"]),
    st.integers(0, 10_979), st.integers(0, 10_979), st.integers(0, 99), st.integers(0, 99),
)  # fmt: skip
def test_seeds_are_those_of_whole_numbers_without_a_machine_s_limits(profile, tile, period, sensor, row, col, y, x):
    got = seeds_of(profile, Place(tile, period, row, col), sensor, np.array([y]), np.array([x]))
    assert got.dtype == np.uint64
    assert int(got[0]) == slow_seed(profile, tile, period, sensor, row + y, col + x)


def test_names_that_run_into_each_other_are_not_one_key():
    one = seeds(1, Place("33TWL", "2024", 0, 0), "s2", "v1.0")
    for place, sensor, profile in (
        (Place("33TWL2", "024", 0, 0), "s2", "v1.0"),
        (Place('33TWL", "2024', "", 0, 0), "s2", "v1.0"),
        (Place("33TWL", "2024s", 0, 0), "2", "v1.0"),
        (Place("2024", "33TWL", 0, 0), "s2", "v1.0"),
    ):
        assert seeds(1, place, sensor, profile) != one


def test_no_two_pixels_of_a_tile_s_corner_have_one_seed():
    y, x = np.divmod(np.arange(1 << 18), 512)
    assert len(np.unique(seeds_of("v1.0-qat", HERE, "s2", y, x))) == 1 << 18


@given(st.integers(1, 400), st.integers(0, 2**64 - 1))
def test_draws_are_sorted_and_without_repeats_where_there_are_enough(n, seed):
    (ranks,) = draw(np.array([n]), 40, np.array([seed], np.uint64))
    assert ranks.tolist() == slow_draw(n, seed)
    assert (np.diff(ranks) >= 0).all()
    assert 0 <= ranks[0] <= ranks[-1] < n
    if n >= 40:
        assert len(set(ranks.tolist())) == 40


def test_with_exactly_40_every_one_is_drawn_once():
    assert draw(np.full(3, 40), 40, seeds(3)).tolist() == [list(range(40))] * 3


def test_hashes_that_are_equal_are_told_apart_by_rank(monkeypatch):
    monkeypatch.setattr(draws, "_stream", lambda s, k: np.full(np.broadcast_shapes(s.shape, k.shape), 7, np.uint64))
    assert draw(np.array([40, 60, 300]), 40, seeds(3)).tolist() == [list(range(40))] * 3


def test_more_observations_than_a_rank_has_bits_are_refused():
    with pytest.raises(ValueError, match="65536 observations of one pixel: 65535 at most"):
        draw(np.array([1 << 16]), 40, seeds(1))


# Fixed inputs, so the same numbers on every run: bounds of five standard deviations are met once and for all.
PIXELS = 20_000


def drawn(n, **key):
    """(PIXELS, n) whether a rank was drawn."""
    there = np.zeros((PIXELS, n), bool)
    np.put_along_axis(there, draw(np.full(PIXELS, n), 40, seeds(PIXELS, **key)), True, axis=1)
    return there


def assert_chi2(statistic, freedom):
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom), (statistic, freedom)


@pytest.mark.parametrize("n", [41, 60, 140])
def test_every_observation_is_drawn_equally_often(n):
    p = 40 / n
    seen = drawn(n).sum(0)
    spread = PIXELS * p * (1 - p) * n / (n - 1)  # 40 a pixel in all: one freedom less
    assert_chi2((((seen - PIXELS * p) ** 2) / spread).sum(), n - 1)


@pytest.mark.parametrize("n", [2, 7, 39])
def test_every_observation_is_drawn_equally_often_with_replacement(n):
    ranks = draw(np.full(PIXELS, n), 40, seeds(PIXELS))
    expected = PIXELS * 40 / n
    assert_chi2(((np.bincount(ranks.ravel()) - expected) ** 2 / expected).sum(), n - 1)


def test_every_pair_of_observations_is_drawn_together_equally_often():
    n = 60
    there = drawn(n).astype(np.float64)
    pairs = (there.T @ there)[np.triu_indices(n, 1)]
    p = 40 * 39 / (n * (n - 1))
    z = (pairs - PIXELS * p) / np.sqrt(PIXELS * p * (1 - p))
    assert np.abs(z).max() < 5
    assert 0.9 < z.std() < 1.1


@pytest.mark.parametrize(
    "other",
    [
        {"place": dataclasses.replace(HERE, col_px=HERE.col_px + 1)},
        {"place": dataclasses.replace(HERE, row_px=HERE.row_px + 1)},
        {"place": dataclasses.replace(HERE, row_px=HERE.row_px + 1, col_px=HERE.col_px + 1)},
        {"place": dataclasses.replace(HERE, row_px=HERE.col_px, col_px=HERE.row_px)},
        {"place": dataclasses.replace(HERE, tile="33TWM")},
        {"place": dataclasses.replace(HERE, period="2025")},
        {"sensor": "s1"},
        {"profile": "v1.0-early"},
    ],
    ids=["right neighbour", "lower", "diagonal", "transposed", "tile", "period", "sensor", "profile"],
)
def test_what_one_pixel_draws_says_nothing_about_another(other):
    n = 60
    common = (drawn(n) & drawn(n, **other)).sum(1)
    mean = 40 * 40 / n
    variance = 40 * (40 / n) * (1 - 40 / n) * (n - 40) / (n - 1)  # hypergeometric
    assert abs(common.mean() - mean) < 5 * np.sqrt(variance / PIXELS)
    assert abs(common.var() / variance - 1) < 5 * np.sqrt(2 / PIXELS)


def test_what_a_pixel_draws_with_replacement_says_nothing_about_its_neighbour():
    n = 20
    one, other = (
        draw(np.full(PIXELS, n), 40, seeds(PIXELS, place=dataclasses.replace(HERE, col_px=HERE.col_px + c)))
        for c in (0, 1)
    )
    sums = np.stack([one.sum(1), other.sum(1)])
    assert abs(np.corrcoef(sums)[0, 1]) < 5 / np.sqrt(PIXELS)


# ---- profiles


@pytest.mark.parametrize("name", names())
def test_every_family_has_its_sampler(name):
    profile = profile_for(name, 192)
    assert sampler_of(profile) is SAMPLERS[profile.sampler]


@pytest.mark.parametrize("name", ["v1.0-qat", "v1.1-mpc", "v2"])
@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("sampler", ("v1.0", "v1.1", "v2")),
        ("sampler_bins", ((40,), tuple(range(8, 257, 8)), (8, 16))),
        ("empty_modality", ("all-steps", "bin-of-absent-rows", "one-absent-row")),
        ("randomness", ("counter", "none")),
    ],
)
def test_a_profile_whose_fields_contradict_its_sampler_is_refused_with_both_named(name, field, values):
    profile = profile_for(name, 192)
    for value in values:
        if value == getattr(profile, field):
            continue
        other = dataclasses.replace(profile, **{field: value})
        with pytest.raises(BadInput, match=rf"profile {re.escape(name)}: its \w+ is .*, and its sampler v\S+ has "):
            sampler_of(other)


def test_a_sampler_that_is_not_here_is_refused_by_the_profile():
    with pytest.raises(BadInput, match=r"sampler 'v3' is not in this release, which has v1\.0, v1\.1, v2"):
        dataclasses.replace(profile_for("v2", 128), sampler="v3")
