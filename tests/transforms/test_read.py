import dataclasses
import itertools
import pickle

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import rasterio.warp
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from read_files import DIFFERENCES, FEW, TILE, TILED, ZONE_32, a_file, everything, scene, write

from model.profile import OPERA_RTC, PC_RTC
from transforms import read
from transforms.read import (
    ReadError,
    bilinear,
    centres_in,
    halo_px,
    nearest,
    nearest_across,
    plain,
    read_for,
    read_patch,
)
from transforms.scenes import S1
from transforms.tiff import parse_header


def with_holes(rng, h, w, share, top=65536):
    """Random DN of the whole range with nodata pixels and a nodata block."""
    data = rng.integers(1, top, (h, w)).astype(np.uint16)
    data[rng.random((h, w)) < share] = 0
    if share and h > 3 and w > 3:
        r, c = rng.integers(0, h - 2), rng.integers(0, w - 2)
        data[r : r + 3, c : c + 3] = 0
    return data


def sampled(folder, asset, rows, cols):
    patch = read_for(scene(asset), asset, str(folder), TILE, rows, cols, halo_px(asset, TILE))
    return bilinear(patch, TILE, rows, cols)


def picked(folder, asset, rows, cols, fill=0):
    return nearest(read_for(scene(asset), asset, str(folder), TILE, rows, cols), TILE, rows, cols, fill)


def grid_of(rows, cols):
    return TILE.transform @ Affine.translation(cols.start, rows.start)


def warped(folder, asset, rows, cols, resampling):
    """The window by GDAL's warper, 0 where it finds nothing.

    The window is cut from a larger one: for one of a few pixels GDAL takes the source's margin for a change of scale
    and averages over more taps (seen with GDAL 3.10.3: a window of 4 x 4 differs in every pixel, one of 9 x 9 in none).
    """
    margin_px = 40
    top, left = (range(v.start - margin_px, v.stop + margin_px) for v in (rows, cols))
    with rasterio.open(folder / asset.href) as file:
        on = {"crs": TILE.crs, "transform": grid_of(top, left), "height": len(top), "width": len(left)}
        with WarpedVRT(file, resampling=resampling, **on) as vrt:
            whole = vrt.read(1, masked=True).filled(0)
    return whole[margin_px:-margin_px, margin_px:-margin_px]


def slow_bilinear(data, nodata, transform, row, col):
    """One pixel by the recipe of golden/scenes_mpc, step 3."""
    a, _, c, _, e, f = transform
    x, y = TILE.left_m + col * 10 + 5, TILE.top_m - row * 10 - 5
    u, v = (x - c) / a, (y - f) / e
    h, w = data.shape

    def tap(i, j):
        return data[i, j] if 0 <= i < h and 0 <= j < w and data[i, j] != nodata else None

    if tap(int(np.floor(v)), int(np.floor(u))) is None:
        return 0
    i, j = int(np.floor(v - 0.5)), int(np.floor(u - 0.5))
    dv, du = v - 0.5 - i, u - 0.5 - j
    total = weight = 0.0
    for di, dj in itertools.product((0, 1), (0, 1)):
        t = tap(i + di, j + dj)
        w_tap = (dv if di else 1 - dv) * (du if dj else 1 - du)
        if t is not None:
            total, weight = total + w_tap * float(t), weight + w_tap
    return int(np.floor(total / weight + 0.5))


def cases_of(least_px):
    """A file of 10 or 20 m near a window, its corner at any multiple of 5 m from the tile's: every phase there is."""
    phase_m, side_px = st.sampled_from([0, 5, 10, 15]), st.integers(least_px, 24)
    return st.fixed_dictionaries(
        {
            "seed": st.integers(0, 2**32 - 1),
            "size_m": st.sampled_from([10, 20, 20]),
            "phase_m": st.tuples(phase_m, phase_m),
            "shape": st.tuples(side_px, side_px),
            "window": st.tuples(st.integers(-12, 40), st.integers(-12, 40), st.integers(1, 30), st.integers(1, 30)),
            "share": st.sampled_from([0.0, 0.05, 0.5]),
            "nodata": st.sampled_from([0, 0, 0, None, 7]),
        }
    )


cases = cases_of(1)
gdal_cases = cases_of(
    2
)  # of a file that is one pixel wide GDAL takes the scale wrongly, as of a window of a few pixels


def planted(folder, case):
    """The case's file, its asset, the window's rows and columns."""
    rng = np.random.default_rng(case["seed"])
    data = with_holes(rng, *case["shape"], case["share"])
    if case["nodata"] == 7:
        data[data == 0] = 7
    py, px = case["phase_m"]
    base = 1000  # px from the tile's corner
    asset = write(
        folder, data, TILE.left_m + base * 10 + px, TILE.top_m - base * 10 - py, case["size_m"],
        nodata=case["nodata"],
    )  # fmt: skip
    row, col, h, w = case["window"]
    return data, asset, range(base + row, base + row + h), range(base + col, base + col + w)


@FEW
@given(gdal_cases)
def test_bilinear_is_gdal_s_warper_to_the_dn(tmp_path, case):
    # Traps T37 (taps near nodata) and T38 (half up).
    _, asset, rows, cols = planted(tmp_path, case)
    got = sampled(tmp_path, asset, rows, cols)
    assert got.dtype == np.uint16
    np.testing.assert_array_equal(got, warped(tmp_path, asset, rows, cols, Resampling.bilinear))


@FEW
@given(cases)
def test_bilinear_is_the_slow_recipe_pixel_by_pixel(tmp_path, case):
    # Trap T37: dropped taps are renormalised; a centre in nodata stays nodata.
    data, asset, rows, cols = planted(tmp_path, case)
    wanted = [[slow_bilinear(data, case["nodata"], asset.transform, r, c) for c in cols] for r in rows]
    np.testing.assert_array_equal(sampled(tmp_path, asset, rows, cols), np.array(wanted))


def test_bilinear_equals_reproject_over_a_file_of_many_blocks(tmp_path):
    rng = np.random.default_rng(3)
    data = with_holes(rng, 300, 260, 0.05)
    asset = write(
        tmp_path, data, TILE.left_m + 510, TILE.top_m - 330, 20, tiled=True, blockxsize=64, blockysize=64,
        compress="deflate",
    )  # fmt: skip
    rows, cols = range(20, 660), range(40, 590)
    wanted = np.zeros((len(rows), len(cols)), np.uint16)
    rasterio.warp.reproject(
        data, wanted, src_transform=Affine(*asset.transform), src_crs=TILE.crs, dst_transform=grid_of(rows, cols),
        dst_crs=TILE.crs, resampling=Resampling.bilinear, src_nodata=0, dst_nodata=0,
    )  # fmt: skip
    np.testing.assert_array_equal(sampled(tmp_path, asset, rows, cols), wanted)


def test_half_is_rounded_up(tmp_path):
    # Trap T38. Weights 9, 3, 3, 1 sixteenths: (9 * 2 + 3 * 2 + 3 * 2 + 1 * 10) / 16 = 2.5.
    asset = write(tmp_path, np.array([[2, 2], [2, 10]], np.uint16), TILE.left_m, TILE.top_m, 20)
    assert sampled(tmp_path, asset, range(1, 2), range(1, 2)).tolist() == [[3]]


@pytest.mark.parametrize("nodata", [0, None])
def test_half_is_rounded_up_where_no_tap_is_missing(tmp_path, nodata):
    # Trap T38. Of values this small one in sixteen lies half way.
    data = np.random.default_rng(8).integers(1, 9, (16, 16)).astype(np.uint16)
    asset = write(tmp_path, data, TILE.left_m, TILE.top_m, 20, nodata=nodata)
    sixteenths = 9 * data[:-1, :-1] + 3 * data[:-1, 1:] + 3 * data[1:, :-1] + data[1:, 1:]
    assert (sixteenths % 16 == 8).sum() > 5
    inner = range(3, 29)
    wanted = [[slow_bilinear(data, nodata, asset.transform, r, c) for c in inner] for r in inner]
    np.testing.assert_array_equal(sampled(tmp_path, asset, inner, inner), np.array(wanted))


def test_a_pixel_whose_centre_is_nodata_stays_nodata_and_its_neighbours_do_without_it(tmp_path):
    # Trap T37: `read(out_shape=.., resampling=bilinear)` fills the hole instead.
    data = np.array([[100, 0], [200, 300]], np.uint16)
    asset = write(tmp_path, data, TILE.left_m, TILE.top_m, 20)
    got = sampled(tmp_path, asset, range(4), range(4))
    assert not got[:2, 2:].any()
    assert got[1, 1] == (9 * 100 + 3 * 200 + 1 * 300 + 13 // 2) // 13


@settings(FEW, max_examples=15)
@given(cases, st.integers(4, 13), st.integers(4, 13))
def test_windows_of_any_size_agree(tmp_path, case, down, across):
    _, asset, rows, cols = planted(tmp_path, case)
    for sample in (sampled, picked):
        whole = sample(tmp_path, asset, rows, cols)
        for r, c in itertools.product(range(0, len(rows), down), range(0, len(cols), across)):
            piece = sample(tmp_path, asset, rows[r : r + down], cols[c : c + across])
            np.testing.assert_array_equal(piece, whole[r : r + down, c : c + across])


@FEW
@given(cases)
def test_nearest_is_the_file_pixel_that_holds_the_centre(tmp_path, case):
    data, asset, rows, cols = planted(tmp_path, case)
    got = picked(tmp_path, asset, rows, cols, fill=3)
    a, _, c, _, e, f = asset.transform
    for (y, row), (x, col) in itertools.product(enumerate(rows), enumerate(cols)):
        i = int(np.floor((TILE.top_m - row * 10 - 5 - f) / e))
        j = int(np.floor((TILE.left_m + col * 10 + 5 - c) / a))
        there = 0 <= i < data.shape[0] and 0 <= j < data.shape[1] and data[i, j] != case["nodata"]
        assert got[y, x] == (data[i, j] if there else 3)


@FEW
@given(gdal_cases)
def test_nearest_is_gdal_s_warper(tmp_path, case):
    _, asset, rows, cols = planted(tmp_path, case)
    wanted = warped(tmp_path, asset, rows, cols, Resampling.nearest)
    np.testing.assert_array_equal(picked(tmp_path, asset, rows, cols), wanted)


def test_a_file_on_the_tile_s_grid_is_read_without_a_halo(tmp_path):
    # One pixel more would decode the neighbouring blocks of every 10 m band.
    data = np.arange(1, 401, dtype=np.uint16).reshape(20, 20)
    on = write(tmp_path, data, TILE.left_m + 100, TILE.top_m - 100, 10, name="on.tif")
    beside = write(tmp_path, data, TILE.left_m + 105, TILE.top_m - 100, 10, name="beside.tif")
    coarse = write(tmp_path, data, TILE.left_m + 100, TILE.top_m - 100, 20, name="coarse.tif")
    assert [halo_px(a, TILE) for a in (on, beside, coarse)] == [0, 1, 1]
    np.testing.assert_array_equal(sampled(tmp_path, on, range(10, 30), range(10, 30)), data)


def test_a_grid_that_is_not_at_quarters_is_refused(tmp_path):
    asset = write(tmp_path, np.ones((9, 9), np.uint16), TILE.left_m + 3, TILE.top_m, 20)
    with pytest.raises(ValueError, match="quarters were expected"):
        sampled(tmp_path, asset, range(2, 4), range(2, 4))


def other_zone(folder, rng, nodata=-32768.0):
    """A radar file in the next zone that covers part of a window of the tile, and the window."""
    rows, cols = range(5000, 5024), range(300, 331)
    x, y = centres_in(TILE, ZONE_32, rows, cols)
    data = rng.random((40, 33)).astype(np.float32)
    data[rng.random(data.shape) < 0.2] = -32768
    left, top = np.floor(x.min() / 10) * 10 + 30, np.ceil(y.max() / 10) * 10 - 40
    return data, write(folder, data, left, top, 10, epsg=ZONE_32, nodata=nodata, band="VV"), rows, cols


def test_nearest_across_zones_is_a_proj_transform_of_every_single_pixel(tmp_path):
    data, asset, rows, cols = other_zone(tmp_path, np.random.default_rng(5))
    got = nearest_across(scene(asset), asset, str(tmp_path), centres_in(TILE, ZONE_32, rows, cols), fill=-1)
    a, _, c, _, e, f = asset.transform
    outside = holes = 0
    for (y, row), (x, col) in itertools.product(enumerate(rows), enumerate(cols)):
        xs, ys = rasterio.warp.transform(
            TILE.crs, f"EPSG:{ZONE_32}", [TILE.left_m + col * 10 + 5], [TILE.top_m - row * 10 - 5]
        )
        i, j = int(np.floor((ys[0] - f) / e)), int(np.floor((xs[0] - c) / a))
        inside = 0 <= i < data.shape[0] and 0 <= j < data.shape[1]
        outside += not inside
        holes += inside and data[i, j] == -32768
        assert got[y, x] == (data[i, j] if inside and data[i, j] != -32768 else -1)
    assert outside and holes  # both kinds of "no data" were met


@settings(FEW, max_examples=8)
@given(st.integers(3, 12), st.integers(3, 12))
def test_nearest_across_zones_does_not_depend_on_the_window(tmp_path, down, across):
    # GDAL's approximate transformer picks other pixels in other windows (golden/scenes_mpc, README).
    _, asset, rows, cols = other_zone(tmp_path, np.random.default_rng(6))

    def of(rows, cols):
        return nearest_across(scene(asset), asset, str(tmp_path), centres_in(TILE, ZONE_32, rows, cols), fill=0)

    whole = of(rows, cols)
    for r, c in itertools.product(range(0, len(rows), down), range(0, len(cols), across)):
        np.testing.assert_array_equal(of(rows[r : r + down], cols[c : c + across]), whole[r : r + down, c : c + across])


def test_pixels_of_another_zone_are_worked_out_in_pieces_of_any_size(tmp_path, monkeypatch):
    _, asset, rows, cols = other_zone(tmp_path, np.random.default_rng(7))
    found = []
    for chunk_px in (1 << 30, 100, 1):
        monkeypatch.setattr(read, "CHUNK_PX", chunk_px)
        centres = centres_in(TILE, ZONE_32, rows, cols)
        found.append((*centres, nearest_across(scene(asset), asset, str(tmp_path), centres, fill=0)))
    for other in found[1:]:
        for got, wanted in zip(other, found[0], strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_a_file_in_another_zone_that_lies_elsewhere_gives_the_fill(tmp_path):
    data = np.ones((4, 4), np.float32)
    asset = write(tmp_path, data, 300000, 4000000, 10, epsg=ZONE_32, nodata=None, band="VV")
    centres = centres_in(TILE, ZONE_32, range(3), range(2))
    assert (nearest_across(scene(asset), asset, str(tmp_path), centres, fill=0) == np.zeros((3, 2))).all()


def test_nan_can_be_the_nodata_value(tmp_path):
    data = np.array([[1, np.nan]], np.float32)
    asset = write(tmp_path, data, TILE.left_m, TILE.top_m, 10, nodata=np.nan, band="VV")
    assert picked(tmp_path, asset, range(1), range(3), fill=5).tolist() == [[1, 5, 5]]


@pytest.mark.parametrize("kept", [0, 3, 100, 0.5, 0.99])
def test_a_file_that_ends_early_is_an_error_and_never_zeros(tmp_path, kept):
    # Trap T39: the reference drops the date without a word.
    asset = a_file(tmp_path, compress="deflate")
    file = tmp_path / asset.href
    whole = file.read_bytes()
    file.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else kept])
    with pytest.raises(ReadError) as error:
        everything(tmp_path, asset)
    assert (error.value.scene, error.value.band) == ("S2A_X", "B05")
    assert error.value.reason


def test_damaged_bytes_in_a_tile_are_an_error(tmp_path):
    asset = a_file(tmp_path, compress="deflate")
    file = tmp_path / asset.href
    data = bytearray(file.read_bytes())
    data[-3000:-2000] = bytes(1000)
    file.write_bytes(data)
    with pytest.raises(ReadError):
        everything(tmp_path, asset)


@settings(FEW, max_examples=100)
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_a_bit_that_flipped_in_a_zlib_tile_is_an_error_or_changes_no_pixel(tmp_path, share, bit):
    # GDAL (3.10.3) gives wrong pixels for 285 of these 1,728 bits: where more comes out of the stream than the tile
    # has room for, it stops before the checksum. No pixel: deflate fills its last byte up with bits that mean nothing.
    slope = np.add.outer(np.arange(16), np.arange(16)) + np.random.default_rng(1).integers(0, 3, (16, 16))
    tiled = {"tiled": True, "blockxsize": 16, "blockysize": 16}
    asset = write(tmp_path, slope.astype(np.uint16), TILE.left_m, TILE.top_m, 20, compress="deflate", **tiled)
    data = bytearray((tmp_path / asset.href).read_bytes())
    header = parse_header(bytes(data), len(data))
    data[int(header.offsets[0, 0]) + int(share * int(header.counts[0, 0]))] ^= 1 << bit
    (tmp_path / asset.href).write_bytes(data)
    try:
        got = everything(tmp_path, asset).data
    except ReadError:
        return
    np.testing.assert_array_equal(got, slope)


def test_a_missing_file_is_named(tmp_path):
    asset = dataclasses.replace(a_file(tmp_path), href="gone.tif")
    with pytest.raises(ReadError, match=r"S2A_X B05: .*gone\.tif"):
        everything(tmp_path, asset)


@pytest.mark.parametrize(("change", "words"), DIFFERENCES)
def test_a_file_that_is_not_what_its_item_says_is_refused_with_both_sides(tmp_path, change, words):
    asset = dataclasses.replace(a_file(tmp_path), **change)
    with pytest.raises(ReadError, match=words):
        everything(tmp_path, asset)


def test_a_file_with_two_bands_is_refused(tmp_path):
    asset = a_file(tmp_path)
    with rasterio.open(tmp_path / asset.href) as file:
        profile, data = file.profile, file.read(1)
    with rasterio.open(tmp_path / asset.href, "w", **profile | {"count": 2}) as file:
        file.write(np.stack([data, data]))
    with pytest.raises(ReadError, match="has 2 bands, one was expected"):
        everything(tmp_path, asset)


@pytest.mark.parametrize(
    ("band", "dtype", "words"),
    [
        ("B05", np.int16, "holds int16, uint16 digital numbers"),
        ("B05", np.float32, "holds float32, uint16 digital numbers"),
        ("SCL", np.uint16, "holds uint16, uint8 digital numbers"),
        ("VV", np.int16, "holds int16, float32 digital numbers"),
    ],
)
def test_a_file_of_another_type_is_refused(tmp_path, band, dtype, words):
    # Another type is another scaling: reflectance as a fraction, decibels for power.
    asset = write(tmp_path, np.ones((4, 4), dtype), TILE.left_m, TILE.top_m, 10, band=band)
    with pytest.raises(ReadError, match=words):
        everything(tmp_path, asset)


def test_a_file_without_a_crs_is_refused(tmp_path):
    asset = a_file(tmp_path)
    with rasterio.open(tmp_path / asset.href) as file:
        profile, data = file.profile, file.read()
    with rasterio.open(tmp_path / asset.href, "w", **profile | {"crs": None}) as file:
        file.write(data)
    with pytest.raises(ReadError, match=r"CRS is None, its item says EPSG:32633"):
        everything(tmp_path, asset)


def test_a_window_that_misses_the_file_is_no_data(tmp_path):
    asset = a_file(tmp_path)
    patch = read_patch(scene(asset), asset, str(tmp_path), 100, -50, 7, 5)
    assert patch.data.shape == (7, 5)
    assert not patch.valid().any()


def test_a_window_that_misses_the_file_still_finds_that_the_file_is_gone(tmp_path):
    asset = dataclasses.replace(a_file(tmp_path), href="gone.tif")
    with pytest.raises(ReadError):
        read_patch(scene(asset), asset, str(tmp_path), 100, -50, 7, 5)


def test_an_optical_file_of_another_zone_is_refused(tmp_path):
    asset = a_file(tmp_path, epsg=ZONE_32)
    with pytest.raises(ReadError, match=r"EPSG:32632 is not that of tile 33TWL"):
        read_for(scene(asset), asset, str(tmp_path), TILE, range(4), range(4))


def test_a_read_error_survives_pickling():
    error = pickle.loads(pickle.dumps(ReadError("S2A_X", "B05", "gone")))
    assert (error.scene, error.band, error.reason, str(error)) == ("S2A_X", "B05", "gone", "S2A_X B05: gone")
    error = pickle.loads(pickle.dumps(ReadError("S2A_X", "B05", "gone", "status", 404)))
    assert (error.kind, error.status) == ("status", 404)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="?"), max_size=20))
def test_no_query_string_is_ever_shown(text):
    token = "sig=SECRET&se=2030"
    for url in (f"https://h/f.tif?{token}", f"/vsicurl/https://h/f.tif?{token}"):
        assert "SECRET" not in plain(f"{text}'{url}': {text}\n{url} {text}")
        assert "SECRET" not in plain(f"{text} {url}")


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize(
    ("source", "nodata", "wanted"),
    [
        (PC_RTC, -32768, -32768),
        (PC_RTC, None, "it says no nodata value, and files of .* have -32768"),
        (PC_RTC, -32764, "its nodata value is -32764, and files of .* have -32768"),
        (OPERA_RTC, None, np.nan),
        (OPERA_RTC, np.nan, np.nan),
        (OPERA_RTC, 0, "its nodata value is 0, and files of .* have nan"),
        ("x@y", 7, 7),
        ("x@y", None, None),
    ],
)
def test_the_value_without_data_is_the_one_that_files_of_the_source_have(tmp_path, source, nodata, wanted, tiled):
    data = np.random.default_rng(1).random((64, 64)).astype(np.float32)
    asset = write(tmp_path, data, TILE.left_m, TILE.top_m, 10, nodata=nodata, band="VV", **(TILED if tiled else {}))
    of_it = dataclasses.replace(scene(asset), source=source, sensor=S1)
    if isinstance(wanted, str):
        with pytest.raises(ReadError, match=wanted):
            read_patch(of_it, asset, str(tmp_path), 0, 0, 64, 64)
    else:
        found = read_patch(of_it, asset, str(tmp_path), 0, 0, 64, 64).nodata
        assert found == wanted or np.isnan([found, wanted]).all()
