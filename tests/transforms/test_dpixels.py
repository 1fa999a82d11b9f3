import dataclasses
import functools
import itertools
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy
from rasterio.transform import Affine

from model.errors import BadInput
from model.families import profile_for
from model.profile import PC_L2A, PC_RTC, S2_BANDS
from pipeline import inventory as inventory_verb
from transforms import inventory
from transforms.dpixels import LAYOUT, DPixels, build, load, read_stack, save, scale_s1
from transforms.grid import tile_of
from transforms.periods import period_of
from transforms.read import ReadError
from transforms.scenes import ASCENDING, DESCENDING, S1, S2, Asset, Scene

GOLDEN = Path(__file__).parents[2] / "../shared/golden/scenes_mpc"
TILE = tile_of("33TWL")
PROFILE = profile_for("v2", 128)
TEN_M = ("B04", "B02", "B03", "B08")
BASE = 2000  # px from the tile's corner: where the small files of these tests lie
ROWS, COLS = range(BASE + 1, BASE + 14), range(BASE + 3, BASE + 14)  # an odd window inside them
SIDE_PX = 24  # of a file, at 10 m


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(4) as executor:
        yield executor


def assert_same(got, wanted):
    for name in LAYOUT:
        a, b = getattr(got, name), getattr(wanted, name)
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)


def part(pixels, rows, cols):
    """The d-pixels of a sub-window, all dates kept."""
    return dataclasses.replace(
        pixels,
        bands=pixels.bands[:, rows, cols],
        masks=pixels.masks[:, rows, cols],
        sar_ascending=pixels.sar_ascending[:, rows, cols],
        sar_descending=pixels.sar_descending[:, rows, cols],
    )


def thinned(pixels):
    """Without the dates of which nothing is there: which of these are kept depends on the window that was read.

    Where the mask is 0 the bands mean nothing, and depend on it too: they are set to 0.
    """
    seen = pixels.masks.any((1, 2))
    up, down = (getattr(pixels, f"sar_{o}").any((1, 2, 3)) for o in (ASCENDING, DESCENDING))
    return DPixels(
        (pixels.bands * pixels.masks[..., None])[seen],
        pixels.masks[seen],
        pixels.doys[seen],
        pixels.sar_ascending[up],
        pixels.sar_ascending_doy[up],
        pixels.sar_descending[down],
        pixels.sar_descending_doy[down],
    )


# ---- the golden scenes


@dataclasses.dataclass(frozen=True)
class Golden:
    """The golden scenes as an inventory, and what the reference made of them."""

    scenes: list
    roots: dict
    rows: range
    cols: range
    wanted: DPixels
    deterministic: np.ndarray


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    if not GOLDEN.is_dir():
        pytest.skip("../shared/golden/scenes_mpc is not here")
    out = tmp_path_factory.mktemp("golden") / "mpc.parquet"
    roi = json.loads((GOLDEN / "roi.json").read_text())
    inventory_verb.build(
        [(str(GOLDEN / "catalogue.json"), "planetary-computer")], period_of("_".join(roi["period"])), ["33TWL"], out
    )
    row, col = int(TILE.top_m - roi["transform"][5]) // 10, int(roi["transform"][2] - TILE.left_m) // 10
    wanted = DPixels(**{name: np.load(GOLDEN / f"{name}.npy") for name in LAYOUT})
    return Golden(
        inventory.read_tile(out, "33TWL"),
        inventory.read_header(out).roots,
        range(row, row + roi["height"]),
        range(col, col + roi["width"]),
        wanted,
        np.load(GOLDEN / "deterministic.npy"),
    )


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


# ---- small scenes of our own against a slow reference


def scl_of(value):
    return np.full((SIDE_PX // 2, SIDE_PX // 2), value, np.uint8)


def optical(folder, when, scl, dn, order, offset=0, name=None):
    """An S2 scene; `scl` (12, 12) at 20 m, `dn` one number for all bands or {band: (h, w)}."""
    name = name or f"S2_{when}_{order}"
    left, top = TILE.left_m + BASE * 10, TILE.top_m - BASE * 10
    assets = []
    for band in (*S2_BANDS, "SCL"):
        size_m = 10 if band in TEN_M else 20
        side = SIDE_PX * 10 // size_m
        data = scl if band == "SCL" else dn[band] if isinstance(dn, dict) else np.full((side, side), dn, np.uint16)
        assets.append(write(folder, data, left, top, size_m, TILE.epsg, 0, f"{name}_{band}.tif", band))
    return Scene(
        "33TWL", S2, PC_L2A, name, f"{when}T10:00:{order:02d}.000000Z", order, "descending", 122, "sentinel-2a",
        "05.10", 10.0, "", "", offset, "", True, "", tuple(assets),
    )  # fmt: skip


def radar(folder, when, orbit, vv, vh, order, name=None):
    """An S1 scene on the tile's grid; `vv`, `vh` (24, 24) float32 or None for a missing file."""
    name = name or f"S1_{when}_{orbit}_{order}"
    left, top = TILE.left_m + BASE * 10, TILE.top_m - BASE * 10
    assets = tuple(
        write(folder, a, left, top, 10, TILE.epsg, -32768, f"{name}_{band}.tif", band)
        for band, a in (("VV", vv), ("VH", vh))
        if a is not None
    )
    return Scene(
        "33TWL", S1, PC_RTC, name, f"{when}T05:00:00.000000Z", order, orbit, 22, "sentinel-1a", "", None, "", "", 0, "",
        True, "", assets,
    )  # fmt: skip


def write(folder, data, left_m, top_m, size_m, epsg, nodata, name, band):
    h, w = data.shape
    transform = Affine(size_m, 0, left_m, 0, -size_m, top_m)
    with rasterio.open(
        folder / name, "w", driver="GTiff", height=h, width=w, count=1, dtype=data.dtype, nodata=nodata,
        crs=f"EPSG:{epsg}", transform=transform,
    ) as file:  # fmt: skip
        file.write(data, 1)
    return Asset(band, name, epsg, tuple(transform)[:6], h, w)


def power(value):
    return np.full((SIDE_PX, SIDE_PX), value, np.float32)


def made(folder, scenes, pool, rows=ROWS, cols=COLS, wanted=None):
    roots = {PC_L2A: str(folder), PC_RTC: str(folder)}
    stack = read_stack(scenes, roots, PROFILE, TILE, rows, cols, pool, wanted)
    return build(stack, PROFILE, stack.rows)


@functools.cache
def content(path):
    with rasterio.open(path) as file:
        return file.read(1)


def mixed(data, row, col):
    """One 10 m pixel of a 20 m file that begins at row 0, column 0: golden/scenes_mpc, README, step 3."""
    v, u = row / 2 + 0.25, col / 2 + 0.25
    if not data[int(v), int(u)]:
        return 0
    i, j = int(np.floor(v - 0.5)), int(np.floor(u - 0.5))
    total = weight = 0.0
    for di, dj in itertools.product((0, 1), (0, 1)):
        dn = int(data[i + di, j + dj])
        if dn:
            w = (1 - abs(v - 0.5 - i - di)) * (1 - abs(u - 0.5 - j - dj))
            total, weight = total + w * dn, weight + w
    return int(np.floor(total / weight + 0.5))


def slow_d_pixel(folder, scenes, row, col):
    """One pixel's year by the recipe: [(day of year, ten values)], [(orbit, day of year, VV, VH)], zeros left out.

    `row`, `col`: from the files' corner.
    """
    s2 = sorted((s for s in scenes if s.sensor == S2), key=lambda s: s.datetime)
    s1 = sorted((s for s in scenes if s.sensor == S1), key=lambda s: s.order)  # newest first
    optical_rows = []
    for day in sorted({s.day for s in s2}):
        for scene in (s for s in s2 if s.day == day):
            if content(folder / scene.asset("SCL").href)[row // 2, col // 2] not in (0, 1, 2, 3, 8, 9):
                values = []
                for band in S2_BANDS:
                    data = content(folder / scene.asset(band).href)
                    dn = int(data[row, col]) if band in TEN_M else mixed(data, row, col)
                    values.append(dn - scene.offset_dn if dn >= scene.offset_dn else dn)
                optical_rows.append((day.timetuple().tm_yday, values))
                break
    radar_rows = []
    for day, orbit in sorted({(s.day, s.orbit) for s in s1}):
        pair = []
        for band in ("VV", "VH"):
            found = 0
            for scene in (s for s in s1 if (s.day, s.orbit) == (day, orbit)):
                if asset := scene.asset(band):
                    x = float(content(folder / asset.href)[row, col])
                    y = (20 * np.log10(x) + 50) * 200 if x > 0 else 0
                    found = found or int(min(max(y, 0), 32767))
            pair.append(found)
        if any(pair):
            radar_rows.append((orbit, day.timetuple().tm_yday, *pair))
    return optical_rows, radar_rows


@pytest.mark.parametrize("seed", range(3))
def test_d_pixels_are_the_slow_recipe_pixel_by_pixel(tmp_path, pool, seed):
    rng = np.random.default_rng(seed)
    half = SIDE_PX // 2
    days = ["2023-12-30", "2023-12-31", "2024-01-01", "2024-03-01"]
    scenes = []
    for order in range(7):
        scl = rng.choice(np.arange(12, dtype=np.uint8), (half, half))
        dn = {
            b: rng.integers(0, 3000, (SIDE_PX,) * 2 if b in TEN_M else (half, half)).astype(np.uint16) for b in S2_BANDS
        }
        scenes.append(optical(tmp_path, days[order * len(days) // 7], scl, dn, order, int(rng.choice([0, 1000]))))
    for order, (day, orbit) in enumerate(sorted(itertools.product(days, (ASCENDING, DESCENDING)), reverse=True) * 2):
        a, b = (10 ** rng.uniform(-4, 1, (2, SIDE_PX, SIDE_PX))).astype(np.float32)
        for x in (a, b):
            x[rng.random(x.shape) < 0.4] = rng.choice([-32768, 0, -1])
        scenes.append(radar(tmp_path, day, orbit, a, None if order == 3 else b, order))
    # The catalogue's order is newest first; of one time the id decides, here as in the inventory's `order`.
    radars = sorted((s for s in scenes if s.sensor == S1), key=lambda s: s.datetime, reverse=True)
    scenes = [s for s in scenes if s.sensor == S2] + [dataclasses.replace(s, order=n) for n, s in enumerate(radars)]
    shuffled = [scenes[i] for i in rng.permutation(len(scenes))]
    pixels = made(tmp_path, shuffled, pool)
    for (y, row), (x, col) in itertools.product(enumerate(ROWS), enumerate(COLS)):
        s2, s1 = slow_d_pixel(tmp_path, scenes, row - BASE, col - BASE)
        got = [(int(pixels.doys[t]), pixels.bands[t, y, x].tolist()) for t in np.flatnonzero(pixels.masks[:, y, x])]
        assert got == s2
        passes = [
            (orbit, int(doy), *v.tolist())
            for orbit in (ASCENDING, DESCENDING)
            for doy, v in zip(
                getattr(pixels, f"sar_{orbit}_doy"), getattr(pixels, f"sar_{orbit}")[:, y, x], strict=True
            )
            if v.any()
        ]
        assert passes == sorted(s1, key=lambda p: p[0])


def test_the_earlier_item_wins_where_its_class_is_valid_and_brings_all_ten_bands(tmp_path, pool):
    # Traps T12 and T13.
    early, late = scl_of(4), scl_of(4)
    early[3] = 9  # rows 6 and 7
    scenes = [optical(tmp_path, "2024-05-01", early, 500, 0), optical(tmp_path, "2024-05-01", late, 700, 1)]
    pixels = made(tmp_path, scenes[::-1], pool)
    assert pixels.masks.all()
    rows = np.array(ROWS) - BASE
    assert (pixels.bands[0, np.isin(rows, (6, 7))] == 700).all()
    assert (pixels.bands[0, ~np.isin(rows, (6, 7))] == 500).all()


def test_a_zero_in_the_winner_s_band_stays_and_its_mask_is_1(tmp_path, pool):
    # Trap T36: validity of S2 is the scene class alone.
    holes = {b: np.full((SIDE_PX if b in TEN_M else SIDE_PX // 2,) * 2, 300, np.uint16) for b in S2_BANDS}
    holes["B04"][:] = 0
    scenes = [optical(tmp_path, "2024-05-01", scl_of(5), holes, 0), optical(tmp_path, "2024-05-01", scl_of(5), 700, 1)]
    pixels = made(tmp_path, scenes, pool)
    assert pixels.masks.all()
    assert not pixels.bands[..., 0].any()
    assert (pixels.bands[..., 1:] == 300).all()


@pytest.mark.parametrize("value", range(12))
def test_thin_cirrus_and_snow_are_valid_and_the_masked_classes_are_the_profile_s(tmp_path, pool, value):
    # Trap T32: 10 and 11 are data.
    pixels = made(tmp_path, [optical(tmp_path, "2024-05-01", scl_of(value), 500, 0)], pool)
    valid = value in (4, 5, 6, 7, 10, 11)
    assert len(pixels.doys) == valid
    assert pixels.masks.all() == valid or not valid


def test_a_scene_without_its_classes_is_an_error_and_never_all_valid(tmp_path, pool):
    # Traps T14 (indices shift) and T16 (missing SCL: everything valid).
    scene = optical(tmp_path, "2024-05-01", scl_of(4), 500, 0)
    bare = dataclasses.replace(scene, assets=tuple(a for a in scene.assets if a.band != "SCL"))
    with pytest.raises(ReadError, match="SCL: the scene has no such asset"):
        made(tmp_path, [bare, optical(tmp_path, "2024-05-02", scl_of(4), 500, 1)], pool)


def test_a_scene_without_a_band_is_an_error_by_name(tmp_path, pool):
    scene = optical(tmp_path, "2024-05-01", scl_of(4), 500, 0)
    bare = dataclasses.replace(scene, assets=tuple(a for a in scene.assets if a.band != "B11"))
    with pytest.raises(ReadError) as error:
        made(tmp_path, [bare], pool)
    assert (error.value.scene, error.value.band) == (scene.id, "B11")


@pytest.mark.parametrize("gone", ["B8A", "SCL", "VH"])
def test_a_file_that_cannot_be_read_stops_the_window_and_drops_no_date(tmp_path, pool, gone):
    # Traps T24 and T39: the reference logs it and goes on without the date.
    scenes = [
        optical(tmp_path, "2024-05-01", scl_of(4), 500, 0),
        radar(tmp_path, "2024-05-01", ASCENDING, power(1), power(1), 0),
    ]
    next(tmp_path.glob(f"*_{gone}.tif")).unlink()
    with pytest.raises(ReadError) as error:
        made(tmp_path, scenes, pool)
    assert error.value.band == gone


def test_the_files_of_a_scene_under_cloud_are_not_opened(tmp_path, pool):
    scenes = [optical(tmp_path, "2024-05-01", scl_of(4), 500, 0), optical(tmp_path, "2024-05-02", scl_of(9), 500, 1)]
    for band in S2_BANDS:
        (tmp_path / f"S2_2024-05-02_1_{band}.tif").unlink()
    assert made(tmp_path, scenes, pool).doys.tolist() == [122]


def test_dropped_scenes_are_not_read(tmp_path, pool):
    kept = optical(tmp_path, "2024-05-01", scl_of(4), 500, 0)
    dropped = dataclasses.replace(kept, id="gone", order=1, kept=False, assets=())
    assert made(tmp_path, [dropped, kept], pool).doys.tolist() == [122]


def test_the_offset_comes_after_resampling_and_leaves_smaller_values(tmp_path, pool):
    # Trap T8: 999 stays, 1000 becomes 0 with mask 1. B05's pixels of 998 and 1002 mix to 999, 1000 and 1001.
    dn = {b: np.full((SIDE_PX if b in TEN_M else SIDE_PX // 2,) * 2, 4000, np.uint16) for b in S2_BANDS}
    dn["B04"][:, :] = np.resize([999, 1000, 1001, 1, 0, 65535], (SIDE_PX, SIDE_PX))
    dn["B05"][:, ::2], dn["B05"][:, 1::2] = 998, 1002
    with_offset = optical(tmp_path, "2024-05-01", scl_of(4), dn, 0, offset=1000)
    raw = made(tmp_path, [dataclasses.replace(with_offset, offset_dn=0)], pool)
    got = made(tmp_path, [with_offset], pool)
    assert set(np.unique(raw.bands[..., S2_BANDS.index("B05")])) == {999, 1001}
    assert set(np.unique(got.bands[..., S2_BANDS.index("B04")])) == {999, 0, 1, 64535}
    assert set(np.unique(got.bands[..., S2_BANDS.index("B05")])) == {999, 1}
    assert got.masks.all()
    np.testing.assert_array_equal(got.bands, np.where(raw.bands >= 1000, raw.bands - 1000, raw.bands))


def test_the_offset_is_each_scene_s_own_within_a_day(tmp_path, pool):
    # Traps T7 and T9: two products of one day may differ in it.
    early, late = scl_of(4), scl_of(4)
    early[:, 4:] = 8
    scenes = [
        optical(tmp_path, "2022-01-25", early, 1500, 0, offset=1000),
        optical(tmp_path, "2022-01-25", late, 1500, 1, offset=0),
    ]
    pixels = made(tmp_path, scenes, pool)
    assert (pixels.bands[0, :, np.array(COLS) < BASE + 8] == 500).all()
    assert (pixels.bands[0, :, np.array(COLS) >= BASE + 8] == 1500).all()


def test_scenes_of_one_utc_date_are_one_observation_and_midnight_divides(tmp_path, pool):
    # Trap T11: the day is the first ten characters of the UTC time, wherever the sun stands.
    late = optical(tmp_path, "2024-05-01", scl_of(4), 500, 0)
    late = dataclasses.replace(late, datetime="2024-05-01T23:59:59.900000Z")
    early = optical(tmp_path, "2024-05-02", scl_of(4), 700, 1)
    early = dataclasses.replace(early, datetime="2024-05-02T00:00:00.000000Z")
    assert made(tmp_path, [late, early], pool).doys.tolist() == [122, 123]
    same = dataclasses.replace(early, datetime="2024-05-01T00:00:01.000000Z", order=0)
    assert made(tmp_path, [dataclasses.replace(late, order=1), same], pool).bands[0, 0, 0, 0] == 700


def test_the_last_day_of_a_leap_year_is_366_and_days_follow_the_dates_over_new_year(tmp_path, pool):
    # Trap T26.
    when = ("2024-12-31", "2025-01-01")
    scenes = [optical(tmp_path, d, scl_of(4), 500 + n, n) for n, d in enumerate(when)]
    scenes += [radar(tmp_path, d, DESCENDING, power(1), power(1), 1 - n) for n, d in enumerate(when)]
    pixels = made(tmp_path, scenes, pool)
    assert pixels.doys.tolist() == pixels.sar_descending_doy.tolist() == [366, 1]
    assert pixels.bands[:, 0, 0, 0].tolist() == [500, 501]


def test_what_is_never_valid_is_the_same_in_every_run(tmp_path, pool):
    # Trap T15: the reference fills it at random.
    scl = scl_of(9)
    scl[6:] = 4
    scenes = [optical(tmp_path, "2024-05-01", scl, dn, n) for n, dn in enumerate((500, 700))]
    first, second = (made(tmp_path, order, pool) for order in (scenes, scenes[::-1]))
    assert_same(first, second)
    assert not first.masks[0, 0, 0]
    assert first.bands[0, 0, 0, 0] == 500


def test_the_newest_radar_scene_wins_per_polarisation_and_a_dark_pixel_is_filled_by_the_other(tmp_path, pool):
    # Traps T21, T36 and T41: newest first, the opposite of S2; VV and VH may come from different scenes.
    new = radar(tmp_path, "2024-05-01", ASCENDING, power(0.1), power(1e-6), 0, name="new")
    old = radar(tmp_path, "2024-05-01", ASCENDING, power(1), power(1), 1, name="old")
    pixels = made(tmp_path, [old, new], pool)
    assert (pixels.sar_ascending == (6000, 10000)).all()


def test_a_polarisation_without_data_is_zero_and_the_pass_stays(tmp_path, pool):
    # Trap T21: half-zero observations enter.
    half = radar(tmp_path, "2024-05-01", DESCENDING, power(1), power(-32768), 0)
    none = radar(tmp_path, "2024-05-02", DESCENDING, power(-0.5), power(-32768), 1)
    pixels = made(tmp_path, [half, none], pool)
    assert (pixels.sar_descending == (10000, 0)).all()
    assert pixels.sar_descending_doy.tolist() == [122]
    assert pixels.sar_ascending.shape == (0, len(ROWS), len(COLS), 2)


def test_radar_is_taken_by_nearest_and_the_orbits_stay_apart(tmp_path, pool):
    # Traps T22, T23 and T25.
    steps = np.arange(1, SIDE_PX * SIDE_PX + 1, dtype=np.float32).reshape(SIDE_PX, SIDE_PX)
    scenes = [
        radar(tmp_path, "2024-05-01", DESCENDING, steps, steps, 1),
        radar(tmp_path, "2024-05-01", ASCENDING, steps[::-1].copy(), steps, 0),
    ]
    pixels = made(tmp_path, scenes, pool)
    inner = slice(ROWS.start - BASE, ROWS.stop - BASE), slice(COLS.start - BASE, COLS.stop - BASE)
    np.testing.assert_array_equal(pixels.sar_descending[0, ..., 0], scale_s1(steps)[inner])
    np.testing.assert_array_equal(pixels.sar_ascending[0, ..., 0], scale_s1(steps[::-1])[inner])


def test_outside_the_file_nothing_is_valid(tmp_path, pool):
    # Trap T31: the zeros beyond an edge are not observations.
    scenes = [
        optical(tmp_path, "2024-05-01", scl_of(4), 500, 0),
        radar(tmp_path, "2024-05-01", ASCENDING, power(1), power(1), 0),
    ]
    pixels = made(tmp_path, scenes, pool, range(BASE - 5, BASE + 30), range(BASE - 3, BASE + 4))
    inside = np.zeros((35, 7), bool)
    inside[5 : 5 + SIDE_PX, 3:] = True
    np.testing.assert_array_equal(pixels.masks[0], inside)
    np.testing.assert_array_equal(pixels.bands[0, ..., 0], np.where(inside, 500, 0))
    np.testing.assert_array_equal(pixels.sar_ascending[0, ..., 0], np.where(inside, 10000, 0))


def test_without_a_wanted_pixel_in_the_clear_no_band_and_no_radar_is_read(tmp_path, pool):
    scl = scl_of(9)
    scl[:6] = 4  # clear north of row 12
    scenes = [
        optical(tmp_path, "2024-05-01", scl, 500, 0),
        radar(tmp_path, "2024-05-01", ASCENDING, power(1), power(1), 0),
    ]
    for file in tmp_path.glob("*.tif"):
        if not file.name.endswith("_SCL.tif"):
            file.unlink()
    wanted = np.zeros((len(ROWS), len(COLS)), bool)
    wanted[-1] = True  # row 13
    pixels = made(tmp_path, scenes, pool, wanted=wanted)
    assert pixels.bands.shape == (0, 0, 0, 10)
    wanted[0, 0] = True
    with pytest.raises(ReadError):
        made(tmp_path, scenes, pool, wanted=wanted)


def test_no_scene_at_all_is_an_empty_series(tmp_path, pool):
    pixels = made(tmp_path, [], pool)
    assert pixels.bands.shape == (0, len(ROWS), len(COLS), 10)
    assert pixels.masks.shape == (0, len(ROWS), len(COLS))


# ---- radar scaling

STEP = np.float32(10**-2.5)


def test_the_planted_powers_give_the_table_of_the_golden_readme():
    # Trap T20 (power as if it were amplitude) and T21 (dark values become 0); README of golden/scenes_mpc, point 7.
    vv = [0, STEP, np.nextafter(STEP, np.float32(1)), 0.0032, 1e6, 491000, -0.5, 1, 0.99 * 10**-2.5, 0.1]
    assert scale_s1(np.array(vv, np.float32)).tolist() == [0, 0, 0, 20, 32767, 32764, 0, 10000, 0, 6000]
    vh = [np.nan, 1e-6, 0.00316319, 0.1, 0, 2, np.inf, -np.inf]
    assert scale_s1(np.array(vh, np.float32)).tolist() == [0, 0, 0, 6000, 0, 11204, 32767, 0]


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_scaling_is_the_slow_formula_in_double_precision_for_every_float(values):
    x = np.array(values, np.float32)
    wanted = []
    for v in x.astype(np.float64):
        y = (20 * np.log10(v) + 50) * 200 if v > 0 else 0.0
        wanted.append(int(min(max(y, 0.0), 32767.0)))
    got = scale_s1(x)
    assert got.dtype == np.int16
    assert got.tolist() == wanted


def test_scaling_is_in_double_precision_where_single_would_give_other_values():
    # The reference takes float64 for RTC, float32 for OPERA (golden/scenes_mpc: 245 values differ there).
    x = np.random.default_rng(0).uniform(0.0033, 2, (600, 500)).astype(np.float32)
    wanted = np.array([int((20 * math.log10(v) + 50) * 200) for v in x.ravel().tolist()]).reshape(x.shape)
    np.testing.assert_array_equal(scale_s1(x), wanted)
    half_single = (20 * np.log10(x).astype(np.float64) + 50) * 200
    assert (half_single.astype(np.int16) != wanted).any()


# ---- the published layout


def some_pixels(T=3, H=2, W=4, up=2, down=1, seed=0):
    rng = np.random.default_rng(seed)

    def days(n):
        return np.sort(rng.choice(np.arange(1, 367), n, replace=False))

    return DPixels(
        rng.integers(0, 65536, (T, H, W, 10)).astype(np.uint16),
        rng.integers(0, 2, (T, H, W)).astype(np.uint8),
        days(T).astype(np.uint16),
        rng.integers(0, 32768, (up, H, W, 2)).astype(np.int16),
        days(up).astype(np.int16),
        rng.integers(0, 32768, (down, H, W, 2)).astype(np.int16),
        days(down).astype(np.int16),
    )


def refuse(message):
    raise AssertionError(message)


@settings(deadline=None, max_examples=25)
@given(st.tuples(*[st.integers(0, 4)] * 5), st.integers(0, 99))
def test_what_is_saved_is_loaded(tmp_path_factory, sizes, seed):
    folder = tmp_path_factory.mktemp("layout")
    T, H, W, up, down = sizes
    pixels = some_pixels(T, H + 1, W + 1, up, down, seed)
    save(pixels, folder)
    assert sorted(p.name for p in folder.iterdir()) == sorted(f"{name}.npy" for name in LAYOUT)
    assert_same(load(folder, refuse), pixels)


@pytest.mark.parametrize("orbit", [ASCENDING, DESCENDING])
def test_a_missing_orbit_is_no_pass_and_is_said(tmp_path, orbit):
    pixels = some_pixels()
    save(pixels, tmp_path)
    for name in (f"sar_{orbit}", f"sar_{orbit}_doy"):
        (tmp_path / f"{name}.npy").unlink()
    said = []
    got = load(tmp_path, said.append)
    empty = {f"sar_{orbit}": np.zeros((0, 2, 4, 2), np.int16), f"sar_{orbit}_doy": np.zeros(0, np.int16)}
    assert_same(got, dataclasses.replace(pixels, **empty))
    assert len(said) == 1
    assert f"no sar_{orbit}.npy" in said[0]


@pytest.mark.parametrize("name", LAYOUT)
def test_one_missing_file_is_refused_by_name(tmp_path, name):
    # Traps T16 (missing masks) and T17 (missing days).
    save(some_pixels(), tmp_path)
    (tmp_path / f"{name}.npy").unlink()
    with pytest.raises(BadInput, match=rf"{name}\.npy( is missing|$)"):
        load(tmp_path, refuse)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no such folder"):
        load(tmp_path / "none", refuse)


P = some_pixels()
BROKEN = {
    "bands of another type": ("bands", P.bands.astype(np.int32), "dtype int32, uint16 was expected"),
    "bands of the other byte order": ("bands", P.bands.astype(">u2"), "dtype >u2, uint16 was expected"),
    "nine bands": ("bands", P.bands[..., :9], r"\(T, H, W, 10\) was expected"),
    "bands without time": ("bands", P.bands[0], r"\(T, H, W, 10\) was expected"),
    "bands of nothing": ("bands", np.uint16(3), r"\(T, H, W, 10\) was expected"),
    "a mask too few": ("masks", P.masks[1:], r"shape \(2, 2, 4\), \(3, 2, 4\) was expected"),
    "masks of another type": ("masks", P.masks.astype(np.float32), "dtype float32, uint8 was expected"),
    "masks of 0 and 255": ("masks", P.masks * np.uint8(255), "0 and 1"),
    "day 0": ("doys", P.doys * 0, r"1\.\.366"),
    "day 367": ("doys", P.doys * 0 + 367, r"1\.\.366"),
    "days as dates": ("doys", P.doys.astype("datetime64[D]"), "whole numbers"),
    "days with fractions": ("doys", P.doys + 0.5, "whole numbers"),
    "days of two dimensions": ("doys", P.doys[None], r"shape \(1, 3\)"),
    "radar days that wrap": ("sar_ascending_doy", np.array([70_000, 1], np.int32), r"1\.\.366"),
    "radar of one channel": ("sar_ascending", P.sar_ascending[..., :1], r"shape \(2, 2, 4, 1\)"),
    "radar of another window": ("sar_descending", P.sar_descending[:, 1:], r"shape \(1, 1, 4, 2\)"),
    "radar of nothing": ("sar_descending", np.int16(3), r"shape \(\)"),
    "radar as floats": ("sar_descending", P.sar_descending.astype(np.float32), "dtype float32, int16"),
    "a radar day too many": ("sar_descending_doy", np.array([1, 2], np.int16), r"shape \(2,\), \(1,\) was expected"),
    "objects": ("doys", np.array([1, 2, 3], object), "not a whole .npy file"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_folder_with_something_else_in_it_is_refused_with_what_was_expected(tmp_path, case):
    name, array, words = BROKEN[case]
    save(P, tmp_path)
    np.save(tmp_path / f"{name}.npy", array)
    with pytest.raises(BadInput, match=words) as error:
        load(tmp_path, refuse)
    assert f"{name}.npy" in str(error.value)


def test_the_first_and_the_last_day_of_a_leap_year_are_days(tmp_path):
    # Trap T26.
    pixels = dataclasses.replace(
        P, doys=np.array([1, 60, 366], np.uint16), sar_ascending_doy=np.array([366, 1], np.int16)
    )
    save(pixels, tmp_path)
    assert_same(load(tmp_path, refuse), pixels)


def test_masks_of_truth_values_are_masks(tmp_path):
    save(P, tmp_path)
    np.save(tmp_path / "masks.npy", P.masks.astype(bool))
    assert_same(load(tmp_path, refuse), P)


def npz(folder):
    np.savez(folder / "x.npz", P.masks)
    return (folder / "x.npz").read_bytes()


def huge(folder):
    path = folder / "huge"
    with path.open("wb") as f:
        npy.write_array_header_1_0(f, {"descr": "|u1", "fortran_order": False, "shape": (1 << 50, 1 << 10)})
    return path.read_bytes()


@pytest.mark.parametrize(
    "content",
    [
        lambda _: b"",
        lambda _: b"PK\x03\x04 not a zip",
        npz,
        huge,
        lambda _: b"\x93NUMPY\x01\x00\x10\x00{'descr': '|u1',",
        lambda _: b"\x93NUMPY\x09\x00",
        lambda _: b"\x93NUMPY\x01\x00\x05\x00((((\n",
    ],
    ids=["nothing", "half a zip", "an npz", "a huge header", "half a header", "a new version", "brackets"],
)
def test_a_file_that_is_no_array_is_refused_by_name(tmp_path, content):
    save(P, tmp_path)
    (tmp_path / "masks.npy").write_bytes(content(tmp_path))
    with pytest.raises(BadInput, match=r"masks\.npy: not a whole \.npy file"):
        load(tmp_path, refuse)


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    save(P, tmp_path)
    (tmp_path / "masks.npy").unlink()
    (tmp_path / "masks.npy").mkdir()
    with pytest.raises(BadInput, match=r"masks\.npy: not a whole \.npy file"):
        load(tmp_path, refuse)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(LAYOUT), st.data())
def test_bytes_cut_off_or_changed_are_refused_or_still_an_array(tmp_path_factory, name, data):
    folder = tmp_path_factory.mktemp("damaged")
    save(P, folder)
    file = folder / f"{name}.npy"
    whole = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        file.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        with pytest.raises(BadInput):
            load(folder, refuse)
    else:
        at = data.draw(st.integers(0, 127))
        whole[at] = data.draw(st.integers(0, 255))
        file.write_bytes(whole)
        try:
            got = load(folder, refuse)
        except BadInput as e:
            assert str(folder) in str(e)
        else:
            assert [getattr(got, n).shape for n in LAYOUT] == [getattr(P, n).shape for n in LAYOUT]
