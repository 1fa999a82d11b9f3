import dataclasses
import itertools

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT

from transforms.grid import tile_of
from transforms.read import Patch, bilinear, centres_in, nearest
from transforms.resample import mix_across, mix_floats, valid_10_m, write_10_m
from transforms.scenes import S1, Asset, Scene

TILE = tile_of("33TWL")
BASE = 2000  # 10 m pixels from the tile's corner, where the small files begin

NODATA = [0, None, 7]


def patch_of(rng, size_m, shift, shape, nodata, speckle, cut=(0, 0, 0, 0)):
    """A file of random DN at `shift` 10 m pixels from the base; `cut` pixels of the patch lie outside, on each side."""
    data = rng.integers(1, 65536, shape).astype(np.uint16)
    data[rng.random(shape) < speckle] = nodata or 0
    top, left, bottom, right = cut
    inside = slice(top, shape[0] - bottom), slice(left, shape[1] - right)
    kept = np.zeros(shape, bool)
    kept[inside] = True
    data[~kept] = 0
    x, y = TILE.left_m + (BASE + shift[1]) * 10, TILE.top_m - (BASE + shift[0]) * 10
    return Patch(data, 0, 0, inside, nodata, (size_m, 0, x, 0, -size_m, y))


cuts = st.tuples(*[st.integers(0, 5)] * 4)
speckles = st.sampled_from([0, 0.02, 0.5, 1])
windows = st.tuples(st.integers(2, 20), st.integers(2, 20), st.integers(1, 19), st.integers(1, 19))


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 999), st.sampled_from(NODATA), speckles, cuts, windows, st.booleans(), st.sampled_from([0, 1000]),
    st.sampled_from([(0, 0), (0, 1), (1, 0), (1, 1)]),
)  # fmt: skip
def test_ten_metres_are_the_slow_rule_for_every_window_hole_and_edge(
    seed, nodata, speckle, cut, window, mixes, offset, shift
):
    # Bands of a scene in any mixture of grids; the slow rule is held to GDAL's warper in test_read.py.
    rng = np.random.default_rng(seed)
    patches = [
        patch_of(rng, 20, shift, (24, 26), nodata, speckle, cut),
        patch_of(rng, 10, (0, 0), (44, 45), 0, speckle),
        patch_of(rng, 20, shift, (24, 26), nodata, speckle, cut),
        patch_of(rng, 20, (0, 0), (23, 23), 0, speckle),
    ]
    row, col, h, w = window
    rows, cols = range(BASE + 2 + row, BASE + 2 + row + h), range(BASE + 2 + col, BASE + 2 + col + w)
    out = np.full((h, w, 6), 9, np.uint16)[..., 1:5]  # as ten bands side by side lie
    write_10_m(out, patches, TILE, rows, cols, mixes, offset)
    for k, patch in enumerate(patches):
        slow = bilinear(patch, TILE, rows, cols) if mixes else nearest(patch, TILE, rows, cols, fill=0)
        slow = slow.astype(np.int64)
        np.testing.assert_array_equal(out[..., k], np.where(slow >= offset, slow - offset, slow))


@pytest.mark.parametrize("mixes", [False, True])
def test_bands_of_one_grid_may_differ_in_their_nodata_value_and_in_what_was_read_of_them(mixes):
    rng = np.random.default_rng(2)
    plain = patch_of(rng, 20, (0, 0), (24, 26), None, 0)
    seven = dataclasses.replace(plain, data=np.where(rng.random((24, 26)) < 0.2, 7, plain.data), nodata=7)
    later = dataclasses.replace(patch_of(rng, 20, (0, 0), (24, 26), None, 0), row_px=2, col_px=1)
    rows, cols = range(BASE + 8, BASE + 29), range(BASE + 7, BASE + 30)
    for patches in ([plain, seven], [seven, plain], [plain, later], [later, plain]):
        out = np.zeros((len(rows), len(cols), 2), np.uint16)
        write_10_m(out, patches, TILE, rows, cols, mixes)
        for k, patch in enumerate(patches):
            slow = bilinear(patch, TILE, rows, cols) if mixes else nearest(patch, TILE, rows, cols, fill=0)
            np.testing.assert_array_equal(out[..., k], slow)


def test_half_is_rounded_up_and_the_greatest_dn_does_not_overflow():
    data = np.full((4, 4), 65535, np.uint16)
    data[1, 1] = 65527  # 9 * 65527 + 7 * 65535 = 16 * 65530.5
    patch = Patch(data, 0, 0, (slice(0, 4), slice(0, 4)), 0, (20, 0, TILE.left_m, 0, -20, TILE.top_m))
    out = np.zeros((2, 2, 1), np.uint16)
    write_10_m(out, [patch], TILE, range(2, 4), range(2, 4), True)
    assert out[0, 0, 0] == 65531


def test_a_grid_on_neither_quarters_nor_halves_is_refused_rather_than_rounded():
    rng = np.random.default_rng(0)
    patch = patch_of(rng, 20, (0, 0), (10, 10), 0, 0)
    moved = dataclasses.replace(patch, transform=(20, 0, patch.transform[2] + 3, 0, -20, patch.transform[5]))
    with pytest.raises(ValueError, match="quarters were expected"):
        write_10_m(
            np.zeros((2, 2, 1), np.uint16), [moved], TILE, range(BASE + 4, BASE + 6), range(BASE + 4, BASE + 6), True
        )


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 999), st.sampled_from([0, None, 9]), cuts, windows, st.sets(st.integers(0, 11)))
def test_valid_pixels_are_those_of_the_nearest_class_and_outside_is_class_0(seed, nodata, cut, window, invalid):
    rng = np.random.default_rng(seed)
    scl = patch_of(rng, 20, (1, 0), (24, 26), nodata, 0, cut)
    kept = np.zeros(scl.data.shape, bool)
    kept[scl.inside] = True
    scl = dataclasses.replace(scl, data=np.where(kept, rng.integers(0, 12, kept.shape), 0).astype(np.uint8))
    table = np.ones(256, bool)
    table[list(invalid)] = False
    row, col, h, w = window
    rows, cols = range(BASE + 1 + row, BASE + 1 + row + h), range(BASE + col, BASE + col + w)
    wanted = table[nearest(scl, TILE, rows, cols, fill=0)]
    got = valid_10_m(scl, table, TILE, rows, cols)
    if got is None:
        assert not wanted.any()
    else:
        np.testing.assert_array_equal(got, wanted)


# ---- radar of 30 m


def burst(folder, data, epsg, left, top, nodata=np.nan, size_m=30):
    transform = Affine(size_m, 0, left, 0, -size_m, top)
    with rasterio.open(
        folder / "vv.tif", "w", driver="GTiff", height=data.shape[0], width=data.shape[1], count=1, dtype="float32",
        nodata=nodata, crs=f"EPSG:{epsg}", transform=transform,
    ) as file:  # fmt: skip
        file.write(data, 1)
    asset = Asset("VV", "vv.tif", epsg, tuple(transform)[:6], *data.shape)
    scene = Scene("33TWL", S1, "rtc-s1@opera", "burst", "2024-05-01T05:00:00.000000Z", 0, "ascending", 22, "", "", None,
                  "", "", 0, "", True, "", (asset,))  # fmt: skip
    return scene, asset


def powers(rng, shape, holes):
    data = (10 ** rng.uniform(-4, 1, shape)).astype(np.float32)
    data[rng.random(shape) < holes] = np.nan
    data[rng.random(shape) < 0.05] = 0  # a value, and averaged
    return data


def slow_mix(data, v, u, fill=0):
    """One point by the recipe of golden/scenes_aws: four taps, those without data dropped, the rest renormalised."""
    h, w = data.shape
    if not (0 <= int(np.floor(v)) < h and 0 <= int(np.floor(u)) < w) or np.isnan(
        data[int(np.floor(v)), int(np.floor(u))]
    ):
        return fill
    i, j = int(np.floor(v - 0.5)), int(np.floor(u - 0.5))
    total = weight = 0.0
    for di, dj in itertools.product((0, 1), (0, 1)):
        if 0 <= i + di < h and 0 <= j + dj < w and not np.isnan(data[i + di, j + dj]):
            share = (1 - abs(v - 0.5 - i - di)) * (1 - abs(u - 0.5 - j - dj))
            total, weight = total + share * float(data[i + di, j + dj]), weight + share
    return total / weight


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 999), st.sampled_from([0, 0.1, 0.6]), windows, st.sampled_from([-20, -10, 0, 10]))
def test_a_burst_is_brought_to_ten_metres_by_the_slow_recipe(seed, holes, window, shift_m):
    rng = np.random.default_rng(seed)
    data = powers(rng, (12, 14), holes)
    patch = Patch(data, 0, 0, (slice(0, 12), slice(0, 14)), np.nan,
                  (30, 0, TILE.left_m + BASE * 10 + shift_m, 0, -30, TILE.top_m - BASE * 10))  # fmt: skip
    row, col, h, w = window
    rows, cols = range(BASE + row - 4, BASE + row - 4 + h), range(BASE + col - 4, BASE + col - 4 + w)
    got = mix_floats(patch, TILE, rows, cols, fill=0)
    for (y, r), (x, c) in itertools.product(enumerate(rows), enumerate(cols)):
        v, u = (r - BASE + 0.5) / 3, ((c - BASE + 0.5) * 10 - shift_m) / 30
        assert got[y, x] == pytest.approx(slow_mix(data, v, u), rel=1e-6, abs=1e-12)


def by_gdal(folder, rows, cols):
    """A window on the tile's grid by GDAL's warper, with as exact a transform as it can be asked for."""
    left, top = TILE.left_m + cols.start * 10, TILE.top_m - rows.start * 10
    on = {"crs": TILE.crs, "transform": Affine(10, 0, left, 0, -10, top), "width": len(cols), "height": len(rows)}
    with (
        rasterio.open(folder / "vv.tif") as file,
        WarpedVRT(file, resampling=Resampling.bilinear, tolerance=1e-9, **on) as vrt,
    ):
        return vrt.read(1)


@pytest.mark.parametrize("holes", [0, 0.1])
def test_a_burst_of_the_same_zone_is_what_gdal_s_warper_makes_of_it(tmp_path, holes):
    data = powers(np.random.default_rng(3), (90, 80), holes)
    burst(tmp_path, data, TILE.epsg, TILE.left_m + BASE * 10, TILE.top_m - BASE * 10)
    patch = Patch(data, 0, 0, (slice(0, 90), slice(0, 80)), np.nan,
                  (30, 0, TILE.left_m + BASE * 10, 0, -30, TILE.top_m - BASE * 10))  # fmt: skip
    rows, cols = range(BASE - 7, BASE + 281), range(BASE - 5, BASE + 250)
    got, wanted = mix_floats(patch, TILE, rows, cols, fill=np.nan), by_gdal(tmp_path, rows, cols)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
    np.testing.assert_allclose(got, wanted, rtol=5e-7, atol=1e-9)  # the golden README's own limit


ZONES = [32632, 32634]


def neighbour(tile, epsg, seed=5, side=130, holes=0.03):
    """A burst of another zone around the tile's test window: (data, left, top), corners at multiples of 30 m."""
    x, y = centres_in(tile, epsg, range(BASE, BASE + 1), range(BASE, BASE + 1))
    left, top = (float(x[0, 0]) // 30 - side // 2) * 30, (float(y[0, 0]) // 30 + side // 2) * 30
    return powers(np.random.default_rng(seed), (side, side), holes), left, top


@pytest.mark.parametrize("epsg", ZONES)
def test_a_burst_of_another_zone_is_taken_at_the_exact_place_of_every_pixel(tmp_path, epsg):
    data, left, top = neighbour(TILE, epsg)
    scene, asset = burst(tmp_path, data, epsg, left, top)
    rows, cols = range(BASE - 250, BASE + 250), range(BASE - 231, BASE + 240)
    got = mix_across(scene, asset, str(tmp_path), centres_in(TILE, epsg, rows, cols), fill=-1)
    rng = np.random.default_rng(0)
    for y, x in zip(rng.integers(0, len(rows), 300), rng.integers(0, len(cols), 300), strict=True):
        at = centres_in(TILE, epsg, range(rows[y], rows[y] + 1), range(cols[x], cols[x] + 1))
        v, u = (top - float(at[1][0, 0])) / 30, (float(at[0][0, 0]) - left) / 30
        assert got[y, x] == pytest.approx(slow_mix(data, v, u, -1), rel=1e-5, abs=1e-9)
    # GDAL's default transform, good to an eighth of a pixel, is off by 0.1 % in the median here, and by 40 % at times.
    wanted = by_gdal(tmp_path, rows, cols)
    assert (np.isnan(wanted) == (got < 0)).all()
    np.testing.assert_allclose(got[got >= 0], wanted[got >= 0], rtol=5e-7, atol=1e-9)
    assert (got > 0).mean() > 0.2


@pytest.mark.parametrize("epsg", [*ZONES, TILE.epsg])
@settings(deadline=None, max_examples=15)
@given(windows, st.integers(0, 3))
def test_any_window_of_a_burst_is_part_of_a_larger_one(tmp_path_factory, epsg, window, seed):
    folder = tmp_path_factory.mktemp("part")
    data, left, top = neighbour(TILE, epsg, seed, side=24, holes=0.2)
    scene, asset = burst(folder, data, epsg, left, top)
    rows, cols = range(BASE - 20, BASE + 50), range(BASE - 20, BASE + 50)  # within the burst, and beyond its edges

    def made(rows, cols):
        centres = centres_in(TILE, epsg, rows, cols)
        return mix_across(scene, asset, str(folder), centres, fill=0)

    row, col, h, w = window
    part = slice(row, row + h), slice(col, col + w)
    np.testing.assert_array_equal(made(rows[part[0]], cols[part[1]]), made(rows, cols)[part])


def test_a_burst_that_lies_elsewhere_is_nothing(tmp_path):
    data, left, top = neighbour(TILE, 32632)
    scene, asset = burst(tmp_path, data, 32632, left + 90_000, top)
    centres = centres_in(TILE, 32632, range(BASE, BASE + 9), range(BASE, BASE + 9))
    assert not mix_across(scene, asset, str(tmp_path), centres, fill=0).any()


def test_an_infinite_power_is_not_weighed_into_a_finite_one():
    data = np.ones((6, 6), np.float32)
    data[2, 2] = np.inf
    patch = Patch(data, 0, 0, (slice(0, 6), slice(0, 6)), np.nan,
                  (30, 0, TILE.left_m + BASE * 10, 0, -30, TILE.top_m - BASE * 10))  # fmt: skip
    got = mix_floats(patch, TILE, range(BASE, BASE + 18), range(BASE, BASE + 18), fill=0)
    assert not np.isfinite(got[7, 7])
    assert (got[:3] == 1).all()
