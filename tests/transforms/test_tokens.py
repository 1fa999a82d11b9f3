import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from token_windows import (
    BATCH_PX,
    EVERY_SAMPLER,
    FEW,
    PLACE,
    Fingerprint,
    assert_same,
    part,
    slow_tokens,
    some_pixels,
    without_passes,
)

from model.errors import BadInput
from model.families import names, profile_for
from transforms.encode import (
    WindowEncoder,
    encode_window,
    observation_counts,
    tokens_of,
)


def assert_slow_tokens(pixels, chosen, profile):
    """Holds every row of every wanted pixel against the slow rule; returns the groups' (t2, t1)."""
    seen, keys = [], []
    for group in tokens_of(pixels, chosen, profile, PLACE):
        keys.append(group.key)
        assert [a.dtype for a in (group.s2, group.s2_doy, group.s1, group.s1_orbit, group.s1_doy)] == [
            np.uint16, np.int16, np.int16, np.uint8, np.int16,
        ]  # fmt: skip
        assert np.all(np.diff(group.where) > 0)
        for n, where in enumerate(group.where):
            seen.append(int(where))
            got = [getattr(group, f)[n].tolist() for f in ("s2", "s2_doy", "s1", "s1_orbit", "s1_doy")]
            assert tuple(got) == slow_tokens(pixels, *divmod(int(where), chosen.shape[1]), profile)
    assert keys == sorted(set(keys))
    assert sorted(seen) == np.flatnonzero(chosen).tolist()
    return keys


@EVERY_SAMPLER
@pytest.mark.parametrize("seed", range(4))
def test_tokens_are_the_slow_rule_pixel_by_pixel(seed, family):
    # Traps T3 (extras appended), T21 (half-zero enters), T23 and T25 (orbit flags, ascending first), T26 (days as the
    # dates go), T27 (a group has one (t2, t1), nothing is padded beyond the pixel's own bin).
    pixels = some_pixels(seed, T=50, up=20, down=25)
    chosen = pixels.masks.any(0) & (np.random.default_rng(seed).random((12, 11)) < 0.8)
    keys = assert_slow_tokens(pixels, chosen, profile_for(family, 192))
    assert keys == [(40, 40)] if family == "v1.0-qat" else len(keys) > 2


@EVERY_SAMPLER
def test_tokens_of_pixels_that_nothing_saw_are_the_slow_rule_too(family):
    # Traps T18 and T19: each family has its own stand-in, for one sensor and for both.
    pixels = some_pixels()
    pixels.masks[:, 1, 3:5] = 0
    assert_slow_tokens(pixels, np.ones((12, 11), bool), profile_for(family, 192))


@pytest.mark.parametrize("family", names())
def test_an_absent_row_is_all_zeros_and_day_0_and_no_other_row_is(family):
    pixels = some_pixels()
    profile = profile_for(family, 192)
    absent = 0
    for group in tokens_of(pixels, pixels.masks.any(0), profile, PLACE):
        gone = group.s1_doy == 0
        assert not group.s1[gone].any() and not group.s1_orbit[gone].any()
        assert (group.s2_doy > 0).all()
        pixels_gone = gone.all(1)
        assert (gone.any(1) == pixels_gone).all()
        absent += pixels_gone.sum()
        if pixels_gone.any():
            assert group.key[1] == (1 if profile.sampler == "v2" else 8)
    nothing = (~np.concatenate([pixels.sar_ascending, pixels.sar_descending]).any((0, -1))) & pixels.masks.any(0)
    assert nothing.any()
    # v1.0 takes all time steps there: zeros as recorded, with real days, are ordinary tokens.
    assert absent == (0 if profile.sampler == "v1.0" else nothing.sum())


@EVERY_SAMPLER
def test_without_any_pass_radar_is_absent_in_every_family(family):
    pixels = without_passes(some_pixels())
    wanted = pixels.masks.any(0)
    profile = profile_for(family, 192)
    rows = {"v1.0": 40, "v1.1": 8, "v2": 1}[profile.sampler]
    assert {key[1] for key in assert_slow_tokens(pixels, wanted, profile)} == {rows}
    for group in tokens_of(pixels, wanted, profile, PLACE):
        assert not (group.s1.any() or group.s1_orbit.any() or group.s1_doy.any())


def test_more_than_256_observations_are_thinned_to_256_from_first_to_last(model):
    pixels = some_pixels(T=300, H=2, W=2)
    pixels.masks[:] = 1
    (group,) = tokens_of(pixels, np.ones((2, 2), bool), model.profile, PLACE)
    assert group.s2.shape == (4, 256, 10)
    steps = [int(299 * i / 255) for i in range(256)]
    np.testing.assert_array_equal(group.s2[0], pixels.bands[steps, 0, 0])


def test_no_pixel_wanted_is_no_token(model):
    assert not list(tokens_of(some_pixels(), np.zeros((12, 11), bool), model.profile, PLACE))


def test_a_profile_that_contradicts_its_sampler_is_refused(model):
    other = dataclasses.replace(model.profile, empty_modality="all-steps")
    with pytest.raises(BadInput, match="its empty_modality is 'all-steps', and its sampler v2 has 'one-absent-row'"):
        next(tokens_of(some_pixels(), np.ones((12, 11), bool), other, PLACE))


def test_counts_are_the_valid_observations_of_each_kind():
    pixels = some_pixels()
    counts = observation_counts(pixels)
    assert counts.dtype == np.uint16
    for y, x in itertools.product(range(12), range(11)):
        assert counts[y, x].tolist() == [
            sum(bool(m) for m in pixels.masks[:, y, x]),
            sum(bool(v.any()) for v in pixels.sar_ascending[:, y, x]),
            sum(bool(v.any()) for v in pixels.sar_descending[:, y, x]),
        ]


@EVERY_SAMPLER
@FEW
@given(st.integers(0, 9), st.integers(1, 12), st.integers(1, 11), st.randoms(use_true_random=False))
def test_strips_in_any_order_give_every_family_s_pixels_the_same_tokens(family, seed, down, across, random):
    # Draws go by the pixel's place in its tile, not by the strip that it comes in.
    profile, pixels = profile_for(family, 32), some_pixels(seed, T=50, up=20, down=25)
    whole = encode_window(Fingerprint(), profile, PLACE, pixels, None, BATCH_PX)
    pieces = list(itertools.product(range(0, 12, down), range(0, 11, across)))
    random.shuffle(pieces)
    with WindowEncoder(Fingerprint(), profile, PLACE, 12, 11, BATCH_PX) as encoder:
        for r, c in pieces:
            piece = part(pixels, slice(r, r + down), slice(c, c + across))
            encoder.add(piece, piece.masks.any(0), r, c)
        encoder.finish()
    assert_same((encoder.codes, encoder.scale), whole)


@EVERY_SAMPLER
@FEW
@given(st.integers(0, 9), st.integers(1, 12), st.integers(1, 11))
def test_blocks_of_any_size_give_every_family_s_pixels_the_same_tokens(family, seed, down, across):
    profile, pixels = profile_for(family, 32), some_pixels(seed, T=50, up=20, down=25)
    codes, scale = encode_window(Fingerprint(), profile, PLACE, pixels, None, BATCH_PX)
    for r, c in itertools.product(range(0, 12, down), range(0, 11, across)):
        window = slice(r, r + down), slice(c, c + across)
        there = dataclasses.replace(PLACE, row_px=PLACE.row_px + r, col_px=PLACE.col_px + c)
        block = encode_window(Fingerprint(), profile, there, part(pixels, *window), None, BATCH_PX)
        assert_same(block, (codes[window], scale[window]))


@pytest.mark.parametrize(
    "other",
    [
        {"tile": "33TWM"},
        {"period": "2024-01-02_2025-01-01"},
        {"row_px": PLACE.row_px + 1},
        {"col_px": PLACE.col_px + 1},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("family", "draws"), [("v1.0-qat", True), ("v1.0-early", True), ("v1.1-mpc", False), ("v2", False)]
)
def test_only_a_family_that_draws_goes_by_the_place(family, draws, other):
    profile, pixels = profile_for(family, 32), some_pixels(T=60, up=30, down=30)
    here, there = (
        encode_window(Fingerprint(), profile, place, pixels, None, BATCH_PX)
        for place in (PLACE, dataclasses.replace(PLACE, **other))
    )
    seen = pixels.masks.any(0)
    assert (here[0] != there[0]).any(-1)[seen].all() == draws
    assert (here[0] != there[0]).any() == draws


def test_two_families_that_draw_do_so_on_their_own(model):
    pixels = some_pixels(T=60, up=30, down=30)
    early, qat = (
        encode_window(Fingerprint(), profile_for(family, 32), PLACE, pixels, None, BATCH_PX)
        for family in ("v1.0-early", "v1.0-qat")
    )
    assert (early[0] != qat[0]).any(-1)[pixels.masks.any(0)].all()
