import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import BadInput
from model.modelfile import open_model
from pipeline.demo.run import model_path
from transforms.dpixels import load, save
from transforms.encode import CPU, Session, encode_window
from transforms.preview import REFERENCE, Colours, colours_from_json, colours_of, paint, reference_pixels

DIMS = 16


def some_colours(rng):
    directions = rng.integers(-(1 << 14), (1 << 14) + 1, (3, DIMS))
    return Colours(tuple(map(tuple, directions.tolist())), (-1.5, -2.0, -0.25), (1.0, 2.5, 4.0))


def some_codes(rng, H, W):
    codes = rng.integers(-127, 128, (H, W, DIMS)).astype(np.int8)
    scale = rng.uniform(1e-3, 0.1, (H, W)).astype(np.float32)
    gone = rng.random((H, W)) < 0.3
    codes[gone], scale[gone] = -128, np.nan
    return codes, scale


@settings(deadline=None)
@given(st.integers(1, 17), st.integers(1, 13), st.integers(1, 17), st.integers(1, 13), st.integers(0, 2**32 - 1))
def test_a_pixel_has_the_same_colour_in_blocks_of_any_size(H, W, down, across, seed):
    rng = np.random.default_rng(seed)
    colours, (codes, scale) = some_colours(rng), some_codes(rng, H, W)
    whole = paint(codes, scale, colours)
    for r, c in itertools.product(range(0, H, down), range(0, W, across)):
        where = slice(r, r + down), slice(c, c + across)
        np.testing.assert_array_equal(paint(codes[where], scale[where], colours), whole[where])


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_colour_is_the_projection_between_low_and_high_and_0_is_no_data_alone(seed):
    rng = np.random.default_rng(seed)
    colours, (codes, scale) = some_colours(rng), some_codes(rng, 5, 4)
    painted = paint(codes, scale, colours)
    assert painted.dtype == np.uint8
    for y, x in itertools.product(range(5), range(4)):
        if codes[y, x, 0] == -128:
            assert painted[y, x].tolist() == [0, 0, 0]
            continue
        for k in range(3):
            dot = sum(int(c) * d for c, d in zip(codes[y, x], colours.directions[k], strict=True))
            share = (dot * float(scale[y, x]) / (1 << 14) - colours.low[k]) / (colours.high[k] - colours.low[k])
            wanted = 1 + 254 * min(max(share, 0), 1)
            assert 1 <= painted[y, x, k] <= 255
            assert abs(painted[y, x, k] - wanted) <= 0.5 + 1e-9  # rounded to a whole number


def test_a_projection_is_exact_where_large_terms_cancel():
    # Exact sums are why the block size does not matter: in float32 nothing would be left of the one here.
    directions = ((16_384, *[16_383] * 127),) * 3
    codes = np.array([[[127] * 64 + [-127] * 64]], np.int8)
    scale = np.full((1, 1), 16_384 / 127, np.float32)  # the sum is 127 units of 1 / 16,384: a value of 1
    assert paint(codes, scale, Colours(directions, (0.0,) * 3, (2.0,) * 3)).tolist() == [[[128] * 3]]


def test_nothing_is_painted_where_nothing_is():
    colours = some_colours(np.random.default_rng(0))
    codes, scale = np.full((3, 4, DIMS), -128, np.int8), np.full((3, 4), np.nan, np.float32)
    assert not paint(codes, scale, colours).any()


@given(st.integers(0, 2**32 - 1))
def test_colours_are_read_as_they_were_written(seed):
    colours = some_colours(np.random.default_rng(seed))
    assert colours_from_json(colours.to_json()) == colours


RECORD = json.loads(some_colours(np.random.default_rng(0)).to_json())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (json.dumps(RECORD | {"version": 9}), "version 9: this release reads 1; use a newer tessera-beam"),
        (json.dumps(RECORD | {"format": "tessera-beam/receipt"}), "not a tessera-beam/preview record"),
        (json.dumps({k: v for k, v in RECORD.items() if k != "low"}), "without low"),
        ("{}", "not a tessera-beam/preview record"),
        ("[]", "not a tessera-beam/preview record"),
        ("{", "not JSON"),
    ],
)
def test_what_are_no_colours_is_refused(data, words):
    with pytest.raises(BadInput, match=words):
        colours_from_json(data.encode())


def test_the_reference_pixels_are_a_valid_series_and_the_same_every_time(tmp_path):
    pixels = reference_pixels()
    save(pixels, tmp_path)
    again = reference_pixels()
    for field in dataclasses.fields(pixels):
        for other in (load(tmp_path, pytest.fail), again):
            np.testing.assert_array_equal(getattr(pixels, field.name), getattr(other, field.name))
    assert pixels.masks.all()
    assert pixels.bands.min() > 0
    assert pixels.bands.max() < 20_000  # reflectance below 2
    for orbit in ("ascending", "descending"):
        assert getattr(pixels, f"sar_{orbit}").min() > 0
    for doys in (pixels.doys, pixels.sar_ascending_doy, pixels.sar_descending_doy):
        assert (np.diff(doys.astype(int)) > 0).all()


@pytest.fixture(scope="module")
def model():
    return open_model(model_path())


@pytest.fixture(scope="module")
def session(model):
    return Session(str(model.path), CPU, threads=1)


def test_a_model_s_colours_are_the_same_every_time_and_spread_its_reference_pixels(model, session):
    colours = colours_of(session, model.profile, 64)
    assert colours_of(session, model.profile, 64) == colours
    assert colours_from_json(colours.to_json()) == colours
    directions = np.array(colours.directions)
    assert directions.shape == (3, model.dims)
    # Unit vectors at right angles, in units of 1 / 2**14 and rounded to whole ones.
    np.testing.assert_allclose(directions @ directions.T / 2**28, np.eye(3), atol=1e-3)
    largest = directions[np.arange(3), np.abs(directions).argmax(1)]
    assert (largest > 0).all()  # a direction and its opposite are the same to LAPACK: other signs, other colours
    codes, scale = encode_window(session, model.profile, REFERENCE, reference_pixels(), None, 64)
    painted = paint(codes, scale, colours)
    assert painted.min() >= 1
    # The 2nd and 98th percentile lie a tenth of their distance inside the range: 1 + 254 / 12 and 255 - 254 / 12.
    low, high = np.percentile(painted.reshape(-1, 3), [2, 98], axis=0)
    np.testing.assert_allclose(low, 1 + 254 / 12, atol=2)
    np.testing.assert_allclose(high, 255 - 254 / 12, atol=2)
    assert len(np.unique(painted.reshape(-1, 3), axis=0)) > 100


def test_a_model_of_fewer_than_three_dimensions_still_has_three_colours(model):
    class Narrow:
        def run(self, batch):
            means = batch.s2.mean((1, 2))
            codes = np.stack([np.full(len(means), 127), means / 200], 1)
            return np.clip(codes, -127, 127).astype(np.int8), np.full(len(means), 0.01, np.float32)

    colours = colours_of(Narrow(), dataclasses.replace(model.profile, dims=2), 64)
    assert np.array(colours.directions).shape == (3, 2)
    assert colours.directions[1] == colours.directions[2]
