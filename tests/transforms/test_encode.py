import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from token_windows import BATCH_PX, FEW, PLACE, assert_same, part, slow_tokens, some_pixels, without_passes

from model.families import profile_for
from transforms import encode
from transforms.encode import (
    CPU,
    Session,
    Tokens,
    WindowEncoder,
    encode_window,
    tokens_of,
)

GOLDEN = Path(__file__).parents[2] / "../shared/golden"


@pytest.fixture(scope="module")
def session(model):
    return Session(str(model.path), CPU, threads=1)


class Spy:
    """A session that keeps what it was given."""

    def __init__(self, session):
        self.session, self.batches = session, []

    def run(self, batch):
        self.batches.append(batch)
        return self.session.run(batch)


def test_pixels_without_optical_have_no_data_and_no_other_pixel_has(model, session):
    # Traps T18, T19 and T36: neither cloudy rows nor zeros are encoded; -128 and NaN mean "no data" and nothing else.
    pixels = some_pixels()
    codes, scale = encode_window(session, model.profile, PLACE, pixels, None, BATCH_PX)
    seen = pixels.masks.any(0)
    assert seen.any()
    assert not seen.all()
    assert (codes[~seen] == -128).all()
    assert np.isnan(scale[~seen]).all()
    assert codes[seen].min() >= -127
    assert np.isfinite(scale[seen]).all()
    assert (scale[seen] > 0).all()


def test_pixels_that_are_not_wanted_have_no_data_and_change_no_other(model, session):
    pixels = some_pixels()
    wanted = np.random.default_rng(1).random((12, 11)) < 0.5
    whole = encode_window(session, model.profile, PLACE, pixels, None, BATCH_PX)
    codes, scale = encode_window(session, model.profile, PLACE, pixels, wanted, BATCH_PX)
    np.testing.assert_array_equal(codes, np.where(wanted[..., None], whole[0], -128))
    np.testing.assert_array_equal(scale, np.where(wanted, whole[1], np.float32(np.nan)))


def test_a_pixel_without_radar_is_encoded_with_one_row_of_day_0(model, session):
    # Traps T18 and T19: what stands for an absent modality is the profile's rule, one row of zeros, not all rows.
    pixels = some_pixels()
    y, x = next((y, x) for y, x in itertools.product((1, 2), (3, 4)) if pixels.masks[:, y, x].any())
    s2, s2_doy = slow_tokens(pixels, y, x, profile_for("v2", 128))[:2]
    row = Tokens(
        np.zeros(BATCH_PX, np.int64),
        np.tile(np.array(s2, np.uint16), (BATCH_PX, 1, 1)),
        np.tile(np.array(s2_doy, np.int16), (BATCH_PX, 1)),
        np.zeros((BATCH_PX, 1, 2), np.int16),
        np.zeros((BATCH_PX, 1), np.uint8),
        np.zeros((BATCH_PX, 1), np.int16),
    )
    wanted = session.run(row)
    codes, scale = encode_window(session, model.profile, PLACE, pixels, None, BATCH_PX)
    np.testing.assert_array_equal(codes[y, x], wanted[0][0])
    assert scale[y, x] == wanted[1][0]


def test_a_window_without_any_radar_pass_is_encoded(model, session):
    pixels = some_pixels()
    bare = without_passes(pixels)
    zeros = dataclasses.replace(
        pixels, sar_ascending=pixels.sar_ascending * 0, sar_descending=pixels.sar_descending * 0
    )
    assert_same(
        encode_window(session, model.profile, PLACE, bare, None, BATCH_PX),
        encode_window(session, model.profile, PLACE, zeros, None, BATCH_PX),
    )


def test_a_window_of_cloud_makes_no_batch(model, session):
    spy, pixels = Spy(session), some_pixels()
    clouds = dataclasses.replace(pixels, masks=pixels.masks * 0)
    codes, scale = encode_window(spy, model.profile, PLACE, clouds, None, BATCH_PX)
    assert not spy.batches
    assert (codes == -128).all()
    assert codes.shape == (12, 11, model.dims)
    assert np.isnan(scale).all()


@FEW
@given(st.integers(0, 9), st.integers(1, 12), st.integers(1, 11), st.randoms(use_true_random=False))
def test_any_partition_added_in_any_order_gives_the_same_bytes(model, session, seed, down, across, random):
    pixels = some_pixels(seed)
    whole = encode_window(session, model.profile, PLACE, pixels, None, BATCH_PX)
    pieces = list(itertools.product(range(0, 12, down), range(0, 11, across)))
    random.shuffle(pieces)
    with WindowEncoder(session, model.profile, PLACE, 12, 11, BATCH_PX) as encoder:
        for r, c in pieces:
            piece = part(pixels, slice(r, r + down), slice(c, c + across))
            encoder.add(piece, piece.masks.any(0), r, c)
        encoder.finish()
    assert_same((encoder.codes, encoder.scale), whole)


@FEW
@given(st.integers(0, 9), st.integers(0, 11), st.integers(0, 10))
def test_a_pixel_s_bytes_do_not_depend_on_its_neighbours(model, session, seed, y, x):
    # Trap T27: a batch's other pixels are strangers.
    pixels = some_pixels(seed)
    codes, scale = encode_window(session, model.profile, PLACE, pixels, None, BATCH_PX)
    alone = encode_window(session, model.profile, PLACE, part(pixels, slice(y, y + 1), slice(x, x + 1)), None, BATCH_PX)
    assert_same(alone, (codes[y : y + 1, x : x + 1], scale[y : y + 1, x : x + 1]))


def test_every_batch_has_the_plan_s_pixels_and_one_pair_of_lengths(model, session):
    # Trap T27 and design, section 2: a batch's size changes its results, so it is never what is left.
    spy, pixels = Spy(session), some_pixels(H=30, W=30)
    encode_window(spy, model.profile, PLACE, pixels, None, BATCH_PX)
    assert {len(b) for b in spy.batches} == {BATCH_PX}
    for batch in spy.batches:
        assert {len(a) for a in (batch.s2, batch.s2_doy, batch.s1, batch.s1_orbit, batch.s1_doy)} == {BATCH_PX}
        assert batch.s2_doy.shape[1] == batch.s2.shape[1]
        assert batch.s1_doy.shape[1] == batch.s1_orbit.shape[1] == batch.s1.shape[1]
    keys = [b.key for b in spy.batches]
    assert len(set(keys)) < len(keys)  # some group filled more than one


def test_waiting_rows_that_grow_too_large_go_early_and_change_nothing(model, session, monkeypatch):
    pixels = some_pixels()
    whole = encode_window(session, model.profile, PLACE, pixels, None, BATCH_PX)
    monkeypatch.setattr(encode, "PENDING_BYTES", 4000)
    spy = Spy(session)
    with WindowEncoder(spy, model.profile, PLACE, 12, 11, BATCH_PX) as encoder:
        for r in range(12):
            row = part(pixels, slice(r, r + 1), slice(None))
            encoder.add(row, row.masks.any(0), r)
            waiting = sum(t.nbytes for group in encoder._waiting.values() for t in group)
            assert waiting <= 4000
        early = encoder.batches
        encoder.finish()
    assert early > 0
    assert_same((encoder.codes, encoder.scale), whole)
    assert {len(b) for b in spy.batches} == {BATCH_PX}


def test_batches_tokens_and_seconds_are_counted(model, session):
    spy, pixels = Spy(session), some_pixels()
    wanted = pixels.masks.any(0)
    with WindowEncoder(spy, model.profile, PLACE, 12, 11, BATCH_PX) as encoder:
        assert encoder.empty
        encoder.add(pixels, wanted)
        encoder.finish()
    assert not encoder.empty
    assert encoder.batches == len(spy.batches)
    assert encoder.encode_s > 0
    groups = tokens_of(pixels, wanted, model.profile, PLACE)
    assert encoder.tokens == sum(len(g) * sum(g.key) for g in groups)  # what fills a batch up is not counted


def test_an_error_of_the_session_reaches_the_caller(model):
    class Broken:
        def run(self, batch):
            raise RuntimeError("out of memory on the card")

    with pytest.raises(RuntimeError, match="out of memory on the card"):
        encode_window(Broken(), model.profile, PLACE, some_pixels(), None, BATCH_PX)


@pytest.mark.parametrize("threads", [1, 2])
def test_results_do_not_depend_on_the_session_s_threads(model, session, threads):
    pixels = some_pixels()
    other = Session(str(model.path), CPU, threads)
    assert_same(
        encode_window(other, model.profile, PLACE, pixels, None, BATCH_PX),
        encode_window(session, model.profile, PLACE, pixels, None, BATCH_PX),
    )
