import dataclasses
import functools
import itertools
import json

import numpy as np
import pytest
import rasterio
import rasterio.warp
from golden_scenes import AWS_CATALOGUES, GOLDEN, MPC_CATALOGUES, golden_of, part, thinned
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from small_scenes import NEAREST, PASSES, PROFILE, TEN_M, TILE, assert_same

from model.profile import S2_BANDS
from transforms.dpixels import LAYOUT, DPixels, build, read_stack, scale_s1


@pytest.fixture(scope="module")
def golden(golden_out):
    """Of Planetary Computer, optical and radar."""
    return golden_of("scenes_mpc", MPC_CATALOGUES, golden_out)


@pytest.fixture(scope="module")
def golden_aws(golden_out):
    """Of Earth Search, optical alone; with OPERA's radar in test_dpixels_opera.py."""
    return golden_of("scenes_aws", AWS_CATALOGUES[:1], golden_out)


def test_the_golden_d_pixels_are_reproduced_to_the_last_value(golden, pool):
    # Traps T7, T8, T12, T20, T21, T22, T26 (the period crosses New Year), T32, T36, T37, T38, T41; a scene lies in
    # another zone. Where the reference fills at random (trap T15) there is nothing to compare.
    stack = read_stack(golden.scenes, golden.roots, PROFILE, TILE, golden.rows, golden.cols, pool)
    got = build(stack, PROFILE, golden.rows)
    fixed = golden.deterministic[..., None]
    assert fixed.mean() > 0.9
    assert_same(
        dataclasses.replace(got, bands=got.bands * fixed),
        dataclasses.replace(golden.wanted, bands=golden.wanted.bands * fixed),
    )


def test_the_golden_optical_scenes_of_earth_search_are_reproduced_to_the_last_value(golden_aws, pool):
    # Trap T9: these items say that the offset is applied, and nothing is subtracted.
    stack = read_stack(golden_aws.scenes, golden_aws.roots, PROFILE, TILE, golden_aws.rows, golden_aws.cols, pool)
    got, wanted, fixed = build(stack, PROFILE, golden_aws.rows), golden_aws.wanted, golden_aws.deterministic[..., None]
    np.testing.assert_array_equal(got.masks, wanted.masks)
    np.testing.assert_array_equal(got.doys, wanted.doys)
    np.testing.assert_array_equal(got.bands * fixed, wanted.bands * fixed)


@pytest.mark.parametrize(("scenes", "differ"), [("golden", 177_786), ("golden_aws", 174_783)])
def test_nearest_changes_as_many_clear_values_as_the_golden_readme_says_and_none_of_10_m(request, pool, scenes, differ):
    # Trap T1: the training era's d-pixels are other numbers of the same scenes.
    g = request.getfixturevalue(scenes)
    stack = read_stack(g.scenes, g.roots, NEAREST, TILE, g.rows, g.cols, pool)
    got = build(stack, NEAREST, g.rows)
    np.testing.assert_array_equal(got.masks, g.wanted.masks)
    other = (got.bands != g.wanted.bands) & (g.wanted.masks[..., None] > 0)
    ten = [S2_BANDS.index(band) for band in TEN_M]
    assert not other[..., ten].any()
    assert other.sum() == differ


@functools.cache
def granules():
    """The golden OPERA granules by (day, orbit), each its VV and VH file, in the order of the list."""
    folder = GOLDEN / "scenes_aws"
    if not folder.is_dir():
        pytest.skip("../shared/golden is not here")
    found = {}
    for granule in json.loads((folder / "catalogue.json").read_text())["OPERA_L2_RTC-S1_V1"]:
        files = [folder / link["href"] for link in granule["links"]]
        with rasterio.open(files[0]) as file:
            orbit = file.tags()["ORBIT_PASS_DIRECTION"].lower()
        found.setdefault((granule["time_start"][:10], orbit), []).append(files)
    return found


@pytest.mark.parametrize("orbit", PASSES)
def test_opera_s_powers_are_scaled_in_single_precision(orbit):
    # GDAL brings them from 30 m to 10 m here (golden/scenes_aws, README, which allows 1): the reference's logarithm in
    # single precision is that of its processor, so that powers near the border of two values fall on either side.
    roi = json.loads((GOLDEN / "scenes_aws/roi.json").read_text()) if granules() else {}
    on = {"crs": roi["crs"], "transform": Affine(*roi["transform"]), "width": roi["width"], "height": roi["height"]}
    wanted = np.load(GOLDEN / f"scenes_aws/sar_{orbit}.npy")
    got = np.zeros(wanted.shape, np.int16)
    for t, key in enumerate(sorted(k for k in granules() if k[1] == orbit)):
        for files, k in itertools.product(granules()[key], (0, 1)):
            with rasterio.open(files[k]) as file, WarpedVRT(file, resampling=Resampling.bilinear, **on) as vrt:
                value = scale_s1(vrt.read(1), "float32")
            np.copyto(got[t, ..., k], value, where=got[t, ..., k] == 0)
    off = np.abs(got.astype(int) - wanted)
    assert off.max() <= 1
    assert (off == 0).mean() > 0.999


windows = st.tuples(st.integers(0, 75), st.integers(0, 91), st.integers(1, 76), st.integers(1, 92)).map(
    lambda w: (slice(w[0], min(76, w[0] + w[2])), slice(w[1], min(92, w[1] + w[3])))
)


@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(windows, st.integers(1, 40), st.booleans(), st.integers(0, 2**32 - 1))
def test_any_window_of_the_golden_scenes_built_in_any_pieces_is_part_of_the_whole(golden, pool, where, step, masked, n):
    rows, cols = golden.rows[where[0]], golden.cols[where[1]]
    rng = np.random.default_rng(n)
    wanted = rng.random((len(rows), len(cols))) < 0.02 if masked else None
    stack = read_stack(golden.scenes, golden.roots, PROFILE, TILE, rows, cols, pool, wanted)
    expected = part(golden.wanted, *where)
    if masked:
        there = wanted & expected.masks.any(0)
        box = there.any(1).nonzero()[0], there.any(0).nonzero()[0]
        assert [len(stack.rows), len(stack.cols)] == [int(np.ptp(b)) + 1 if len(b) else 0 for b in box]
        if not there.any():
            assert not stack.days
            assert not stack.passes
            return
        inner = [slice(b[0], b[-1] + 1) for b in box]
        assert (stack.rows, stack.cols) == (rows[inner[0]], cols[inner[1]])
        expected = part(expected, *inner)
    pieces = [build(stack, PROFILE, stack.rows[r : r + step]) for r in range(0, len(stack.rows), step)]
    got = DPixels(
        *(
            np.concatenate([getattr(p, name) for p in pieces], axis=1)
            if getattr(pieces[0], name).ndim > 1
            else getattr(pieces[0], name)
            for name in LAYOUT
        )
    )
    assert_same(thinned(got), thinned(expected))
