import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from model.quantise import NO_DATA, dequantise, quantise

vectors = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 9)),
    elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
)


def slow(vector):
    """One vector, one number at a time, in float32 where the contract is float32."""
    scale = np.float32(max(max(abs(float(v)) for v in vector), float(np.float32(1e-12)))) / np.float32(127)
    codes = []
    for v in vector:
        x = float(np.float32(v) / scale)
        down = math.floor(x)
        up = x - down > 0.5 or (x - down == 0.5 and down % 2 == 1)
        codes.append(max(-127, min(127, down + up)))
    return codes, scale


@given(vectors)
def test_codes_are_those_of_the_slow_quantiser(x):
    codes, scale = quantise(x)
    assert codes.dtype == np.int8
    assert scale.dtype == np.float32
    for vector, got, s in zip(x, codes, scale, strict=True):
        assert (got.tolist(), s) == slow(vector)


@given(vectors)
def test_no_code_means_no_data_and_values_come_back_within_half_a_step(x):
    codes, scale = quantise(x)
    assert codes.min() > NO_DATA
    assert (np.abs(dequantise(codes, scale) - x) <= scale[:, None] * 0.5001).all()


def test_ties_go_to_the_even_code():
    assert quantise(np.float32([127, 0.5, 1.5, 2.5, -0.5, -1.5]))[0].tolist() == [127, 0, 2, 2, 0, -2]


def test_zeros_have_codes_and_a_scale_above_zero():
    codes, scale = quantise(np.zeros((2, 3), np.float32))
    assert not codes.any()
    assert (scale > 0).all()


def test_no_data_comes_back_as_nan():
    values = dequantise(np.int8([[1, 2], [NO_DATA, NO_DATA]]), np.float32([0.5, np.nan]))
    np.testing.assert_array_equal(values, np.float32([[0.5, 1], [np.nan, np.nan]]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_without_a_code_are_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantise(np.float32([1, bad]))


@given(vectors, st.floats(2.0**-30, 8, width=32))
def test_the_floor_of_v1_is_of_the_scale_and_that_of_v2_of_the_largest_value(x, floor):
    codes, scale = quantise(x, floor, "scale")
    exact = np.abs(x).max(-1) / np.float32(127)
    np.testing.assert_array_equal(scale, np.maximum(exact, np.float32(floor)))
    np.testing.assert_array_equal(codes, np.rint(x / scale[..., None]).astype(np.int8))
    np.testing.assert_array_equal(
        quantise(x, floor)[1], np.maximum(np.abs(x).max(-1), np.float32(floor)) / np.float32(127)
    )


def test_a_vector_of_zeros_has_the_least_scale():
    zeros = np.zeros((1, 4), np.float32)
    assert quantise(zeros, 1e-8, "scale")[1] == np.float32(1e-8)
    assert quantise(zeros, 1e-12, "largest")[1] == np.float32(1e-12) / np.float32(127)
