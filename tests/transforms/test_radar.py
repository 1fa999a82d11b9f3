import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_scenes import BASE, COLS, PROFILE, ROWS, SIDE_PX, SINGLE, made, radar, slow_scale

from transforms.dpixels import scale_s1
from transforms.scenes import ASCENDING

STEP = np.float32(10**-2.5)


def test_radar_is_scaled_in_the_width_of_the_profile(tmp_path, pool):
    x = np.random.default_rng(1).uniform(0.0033, 2, 400_000).astype(np.float32)
    (moved,) = np.nonzero(scale_s1(x, "float32") != scale_s1(x))
    data = np.resize(x[moved], (SIDE_PX, SIDE_PX))
    scenes = [radar(tmp_path, "2024-05-01", ASCENDING, data, data, 0)]
    inner = slice(ROWS.start - BASE, ROWS.stop - BASE), slice(COLS.start - BASE, COLS.stop - BASE)
    for profile in (PROFILE, SINGLE):
        got = made(tmp_path, scenes, pool, profile=profile).sar_ascending[0, ..., 1]
        np.testing.assert_array_equal(got, scale_s1(data, profile.s1_arithmetic)[inner])


def test_the_planted_powers_give_the_table_of_the_golden_readme():
    # Trap T20 (power as if it were amplitude) and T21 (dark values become 0); README of golden/scenes_mpc, point 7.
    vv = [0, STEP, np.nextafter(STEP, np.float32(1)), 0.0032, 1e6, 491000, -0.5, 1, 0.99 * 10**-2.5, 0.1]
    assert scale_s1(np.array(vv, np.float32)).tolist() == [0, 0, 0, 20, 32767, 32764, 0, 10000, 0, 6000]
    vh = [np.nan, 1e-6, 0.00316319, 0.1, 0, 2, np.inf, -np.inf]
    assert scale_s1(np.array(vh, np.float32)).tolist() == [0, 0, 0, 6000, 0, 11204, 32767, 0]


@given(st.lists(st.floats(width=32), min_size=1, max_size=50), st.sampled_from(["float64", "float32"]))
def test_scaling_is_the_slow_formula_in_its_width_for_every_float(values, arithmetic):
    x = np.array(values, np.float32)
    got = scale_s1(x, arithmetic)
    assert got.dtype == np.int16
    assert got.tolist() == [slow_scale(v, arithmetic) for v in x.tolist()]


def test_the_width_of_the_arithmetic_moves_some_values_by_one():
    x = np.random.default_rng(1).uniform(0.0033, 2, 400_000).astype(np.float32)
    off = scale_s1(x, "float32").astype(int) - scale_s1(x)
    assert set(np.unique(off)) == {-1, 0, 1}
    np.testing.assert_array_equal(scale_s1(x), scale_s1(x, "float64"))
    with pytest.raises(KeyError):
        scale_s1(x, "float16")


def test_scaling_is_in_double_precision_where_single_would_give_other_values():
    # The reference takes float64 for RTC, float32 for OPERA (golden/scenes_mpc: 245 values differ there).
    x = np.random.default_rng(0).uniform(0.0033, 2, (600, 500)).astype(np.float32)
    wanted = np.array([int((20 * math.log10(v) + 50) * 200) for v in x.ravel().tolist()]).reshape(x.shape)
    np.testing.assert_array_equal(scale_s1(x), wanted)
    half_single = (20 * np.log10(x).astype(np.float64) + 50) * 200
    assert (half_single.astype(np.int16) != wanted).any()
