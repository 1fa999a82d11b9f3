import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from small_scenes import (
    BASE,
    COLS,
    PROFILE,
    ROWS,
    SIDE_PX,
    TEN_M,
    TILE,
    assert_same,
    made,
    optical,
    power,
    radar,
    scl_of,
)

from model.errors import BadInput
from model.families import names, profile_for
from model.profile import PC_L2A, PC_RTC, RULES, S2_BANDS
from transforms.dpixels import FOLLOWED, build, read_stack, scale_s1, unbuildable, unsearched
from transforms.read import ReadError, read_for
from transforms.scenes import ASCENDING, DESCENDING

OTHER = {
    "s1_bands": ("VH", "VV"),
    "s1_scaling": "10 log10 x",
    "s2_bands": ("B01", *S2_BANDS[1:]),
    "coverage_rule": "days under 0.01 % of the region are dropped",
}


@pytest.mark.parametrize("field", [*FOLLOWED, "s2_bands", "coverage_rule"])
def test_a_rule_that_is_not_followed_is_named_and_nothing_is_read(monkeypatch, pool, field):
    # A profile that claims another day rule would otherwise be built under ours.
    value = OTHER.get(field, "another")
    if field in RULES:
        monkeypatch.setitem(RULES[field], value, "in words")
    profile = dataclasses.replace(PROFILE, **{field: value})
    (fault,) = unbuildable(profile)
    assert field in fault and repr(value) in fault
    for ours in FOLLOWED.get(field, ()):
        assert repr(ours) in fault
    with pytest.raises(BadInput, match=rf"profile v2: its {field} "):
        read_stack([], {}, profile, TILE, ROWS, COLS, pool)


def test_every_rule_of_a_profile_is_followed_or_is_none_of_the_d_pixels():
    after = {"day_encoding", "sampler", "randomness", "row_order", "empty_modality", "scale_floor_of"}
    assert set(RULES) == after | (set(FOLLOWED) & set(RULES))
    for field in set(FOLLOWED) & set(RULES):
        assert set(FOLLOWED[field]) <= set(RULES[field])


@pytest.mark.parametrize("name", names())
def test_the_published_families_can_all_be_built(name):
    assert unbuildable(profile_for(name, 192)) == []


def test_the_bands_come_in_the_profile_s_order(tmp_path, pool):
    dn = {
        b: np.full((SIDE_PX if b in TEN_M else SIDE_PX // 2,) * 2, 100 + k, np.uint16) for k, b in enumerate(S2_BANDS)
    }
    scene = optical(tmp_path, "2024-05-01", scl_of(4), dn, 0)
    turned = dataclasses.replace(PROFILE, s2_bands=S2_BANDS[::-1])
    assert unbuildable(turned) == []
    assert made(tmp_path, [scene], pool).bands[0, 0, 0].tolist() == list(range(100, 110))
    assert made(tmp_path, [scene], pool, profile=turned).bands[0, 0, 0].tolist() == list(range(109, 99, -1))


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


def test_a_later_scene_that_is_masked_in_these_rows_takes_nothing_away(tmp_path, pool):
    late = scl_of(9)
    late[:3] = 4  # clear in rows 0 to 5
    scenes = [optical(tmp_path, "2024-05-01", scl_of(4), 500, 0), optical(tmp_path, "2024-05-01", late, 700, 1)]
    stack = read_stack(scenes, {PC_L2A: str(tmp_path)}, PROFILE, TILE, ROWS, COLS, pool)
    below = build(stack, PROFILE, range(BASE + 6, ROWS.stop))
    assert below.masks.all()
    assert (below.bands == 500).all()


def test_a_scene_that_is_clear_only_where_no_pixel_is_wanted_is_not_read_further(tmp_path, pool):
    north = scl_of(9)
    north[:3] = 4
    scenes = [optical(tmp_path, "2024-05-01", scl_of(4), 500, 0), optical(tmp_path, "2024-05-02", north, 700, 1)]
    for band in S2_BANDS:
        (tmp_path / f"S2_2024-05-02_1_{band}.tif").unlink()
    wanted = np.zeros((len(ROWS), len(COLS)), bool)
    wanted[-3:] = True
    assert made(tmp_path, scenes, pool, wanted=wanted).doys.tolist() == [122]


@pytest.mark.parametrize("gone", ["SCL", "B04", "VV"])
def test_after_the_first_error_no_further_scene_is_begun(tmp_path, monkeypatch, gone):
    days = [f"2024-05-{n + 1:02d}" for n in range(6)]
    scenes = [optical(tmp_path, day, scl_of(4), 500, n) for n, day in enumerate(days)]
    scenes += [radar(tmp_path, day, ASCENDING, power(1), power(1), 5 - n) for n, day in enumerate(days)]
    first = f"S1_{max(days)}" if gone == "VV" else f"S2_{min(days)}"  # radar is read newest first
    next(tmp_path.glob(f"{first}*_{gone}.tif")).unlink()
    begun, told = [], threading.Event()

    def seen(scene, asset, *rest):
        if asset.band == gone:
            begun.append(scene.id)
            if not scene.id.startswith(first):
                told.wait()  # the one that had begun when the error was told
        return read_for(scene, asset, *rest)

    for module in ("dpixels", "radar"):
        monkeypatch.setattr(f"transforms.{module}.read_for", seen)
    with ThreadPoolExecutor(1) as one:
        try:
            with pytest.raises(ReadError):
                made(tmp_path, scenes, one)
        finally:
            told.set()
        one.submit(int).result()  # whatever was left in the queue comes before it
    assert begun[0].startswith(first)
    assert len(begun) <= 2


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


def test_a_file_whose_corner_lies_a_tenth_of_a_metre_from_where_its_item_says_is_refused(tmp_path, pool):
    scene = optical(tmp_path, "2024-05-01", scl_of(4), 500, 0)
    a, b, c, d, e, f = scene.assets[0].transform
    moved = dataclasses.replace(scene.assets[0], transform=(a, b, c + 0.1, d, e, f))
    with pytest.raises(ReadError, match="geotransform"):
        made(tmp_path, [dataclasses.replace(scene, assets=(moved, *scene.assets[1:]))], pool)


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


def test_the_radar_of_some_rows_is_of_these_rows(tmp_path, pool):
    steps = np.arange(1, SIDE_PX * SIDE_PX + 1, dtype=np.float32).reshape(SIDE_PX, SIDE_PX)
    scenes = [
        optical(tmp_path, "2024-05-01", scl_of(4), 500, 0),
        radar(tmp_path, "2024-05-01", ASCENDING, steps, steps, 0),
    ]
    stack = read_stack(scenes, {PC_L2A: str(tmp_path), PC_RTC: str(tmp_path)}, PROFILE, TILE, ROWS, COLS, pool)
    whole, some = (build(stack, PROFILE, rows).sar_ascending for rows in (ROWS, ROWS[4:9]))
    np.testing.assert_array_equal(some, whole[:, 4:9])


def test_a_profile_without_radar_sources_was_never_to_be_searched_for_radar():
    optical_alone = dataclasses.replace(PROFILE, s1_sources=())
    assert unsearched(optical_alone, PROFILE.s2_sources) == {}
    assert unsearched(PROFILE, PROFILE.s2_sources) == {"radar": PROFILE.s1_sources}
    assert unsearched(optical_alone, PROFILE.s1_sources) == {"optical": PROFILE.s2_sources}


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


def test_where_all_time_steps_stand_in_for_radar_they_are_the_tile_s_and_not_the_window_s(tmp_path, pool):
    # Trap T18 (v1.0): a pixel without radar is given every pass; which ones must not depend on the block it lies in.
    west = power(1)
    west[:, 6:] = -32768
    scenes = [
        radar(tmp_path, "2024-05-01", ASCENDING, west, west, 1),
        radar(tmp_path, "2024-05-02", ASCENDING, power(1), power(1), 0),
    ]
    halves = range(BASE, BASE + 6), range(BASE + 6, BASE + 12)
    for name, wanted in (("v1.0-qat", [[122, 123], [122, 123]]), ("v2", [[122, 123], [123]])):
        profile = profile_for(name, 128)
        pixels = [made(tmp_path, scenes, pool, ROWS, cols, profile=profile) for cols in halves]
        assert [p.sar_ascending_doy.tolist() for p in pixels] == wanted
        assert not pixels[1].sar_ascending[:-1].any()
        assert (pixels[1].sar_ascending[-1] == 10000).all()


def test_no_scene_at_all_is_an_empty_series(tmp_path, pool):
    pixels = made(tmp_path, [], pool)
    assert pixels.bands.shape == (0, len(ROWS), len(COLS), 10)
    assert pixels.masks.shape == (0, len(ROWS), len(COLS))
