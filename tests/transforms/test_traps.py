"""The silent traps of facts/tessera.md, 1.13, that touch a model's inputs: one short test each, by number.

Each shows both sides: what the trap would give, and that it is not what is given here. T4 to T6 and T28 to T30 are of
encoders and files (tests/model); T34 is of threads that time out by signals, which nothing here does.
"""

import dataclasses
import math

import numpy as np
import pytest
from opera_scenes import AWS, burst, radar_of
from small_scenes import BASE, COLS, PROFILE, ROWS, SIDE_PX, TEN_M, TILE, made, optical, power, radar, scl_of

from model.errors import BadInput
from model.families import profile_for
from model.profile import ES_L2A, OPERA_RTC, PC_L2A, PC_RTC, S2_BANDS
from pipeline.dpixels import window_of
from tests import stac_items
from transforms.catalogs.selection import select
from transforms.dpixels import DPixels, load, save, scale_s1, unsearched
from transforms.draws import Place
from transforms.encode import observation_counts, tokens_of
from transforms.read import Patch, ReadError
from transforms.resample import write_10_m
from transforms.samplers import v1_1_indices, v2_indices
from transforms.scenes import ASCENDING, DESCENDING

DAY = "2024-05-01"


def dn_of(**bands):
    """DN by band, 300 in those that are not named."""
    return {b: np.full((SIDE_PX if b in TEN_M else SIDE_PX // 2,) * 2, bands.get(b, 300), np.uint16) for b in S2_BANDS}


def pixels_of(valid2, valid1=None, doys=None):
    """One pixel's d-pixels: DN and radar are the number of the date, from 1 on, where valid."""
    valid1 = np.zeros(0, bool) if valid1 is None else np.asarray(valid1, bool)
    T, up = len(valid2), len(valid1)
    bands = np.broadcast_to(np.arange(1, T + 1, dtype=np.uint16)[:, None, None, None], (T, 1, 1, 10)).copy()
    sar = np.zeros((up, 1, 1, 2), np.int16)
    sar[valid1] = (np.arange(1, up + 1)[valid1])[:, None, None, None]
    return DPixels(
        bands,
        np.asarray(valid2, np.uint8).reshape(T, 1, 1),
        np.arange(1, T + 1, dtype=np.uint16) if doys is None else np.array(doys, np.uint16),
        sar,
        np.arange(1, up + 1, dtype=np.int16),
        np.zeros((0, 1, 1, 2), np.int16),
        np.zeros(0, np.int16),
    )


def token_of(pixels, family="v2"):
    (tokens,) = tokens_of(pixels, np.ones((1, 1), bool), profile_for(family, 192), Place("33TWL", "2024", 0, 0))
    return tokens


def test_t01_bands_of_20_m_come_by_the_rule_of_the_profile_and_the_variants_differ(tmp_path, pool):
    dn = dn_of()
    dn["B05"][:] = np.random.default_rng(0).integers(100, 4000, dn["B05"].shape)
    scenes = [optical(tmp_path, DAY, scl_of(4), dn, 0)]
    mixed, near = (
        made(tmp_path, scenes, pool, profile=profile_for(f, 192)).bands[0, ..., S2_BANDS.index("B05")]
        for f in ("v1.1-mpc", "v1.1-mpc+nearest")
    )
    assert np.isin(near, dn["B05"]).all()
    assert (mixed != near).mean() > 0.9


def test_t02_the_pixels_of_one_set_of_weights_are_refused_to_the_other():
    mpc, aws = profile_for("v1.1-mpc", 192), profile_for("v1.1-aws", 192)
    assert set(unsearched(mpc, [ES_L2A, OPERA_RTC])) == set(unsearched(aws, [PC_L2A, PC_RTC])) == {"optical", "radar"}
    assert unsearched(mpc, [PC_L2A, PC_RTC]) == unsearched(aws, [ES_L2A, OPERA_RTC]) == {}


def test_t03_what_fills_a_bin_is_appended_and_the_two_rules_differ():
    # facts, 1.5: n = 20 in a bin of 24.
    assert v1_1_indices(20, 24).tolist() == [*range(20), 4, 8, 11, 15]
    assert v2_indices(20, 24).tolist() == [*range(20), 2, 7, 12, 17]


@pytest.mark.parametrize(
    ("when", "baseline", "dn"),
    [
        ("2022-01-25T10:00:00Z", "04.00", 1000),  # the day itself, which the reference leaves
        ("2019-07-07T10:00:00Z", "05.00", 1000),  # an old scene made anew
        ("2022-02-10T10:00:00Z", "03.01", 0),  # a new one by the old processor
    ],
)
def test_t07_the_offset_goes_by_baseline_and_not_by_date(when, baseline, dn):
    item = stac_items.optical(PC_L2A, datetime=when, **{"s2:processing_baseline": baseline})
    assert stac_items.scene(item).offset_dn == dn


def test_t08_the_offset_leaves_999_makes_1000_a_zero_that_is_valid_and_comes_after_rounding(tmp_path, pool):
    dn = dn_of(B04=999, B02=1000, B03=1001, B08=1)
    dn["B05"][:, ::2], dn["B05"][:, 1::2] = 999, 1001  # mixed: 1000 -> 0, or 999.5 -> 1000 -> 0
    pixels = made(tmp_path, [optical(tmp_path, DAY, scl_of(4), dn, 0, offset=1000)], pool)
    assert pixels.masks.all()
    assert [set(np.unique(pixels.bands[..., S2_BANDS.index(b)])) for b in ("B04", "B02", "B03", "B08")] == [
        {999}, {0}, {1}, {1},
    ]  # fmt: skip
    assert set(np.unique(pixels.bands[..., S2_BANDS.index("B05")])) <= {0, 1}


def test_t09_items_of_one_search_with_and_without_the_offset_are_told_apart_by_their_own_flag():
    flags = {True: 0, False: 1000}
    for applied, dn in flags.items():
        item = stac_items.optical(ES_L2A, **{"earthsearch:boa_offset_applied": applied})
        assert stac_items.scene(item).offset_dn == dn


def test_t10_two_products_of_one_datatake_are_one_observation():
    records = [
        stac_items.record(
            stac_items.optical(
                PC_L2A, id=name, **{"s2:processing_baseline": b, "s2:datatake_id": f"GS2A_20240506T100000_046000_N{b}"}
            )
        )
        for name, b in (("old", "04.00"), ("new", "05.10"))
    ]
    assert [(s.id, s.kept) for s in sorted(select(records), key=lambda s: s.id)] == [("new", True), ("old", False)]


def test_t11_a_day_is_the_utc_date_and_midnight_divides_passes(tmp_path, pool):
    scene = optical(tmp_path, DAY, scl_of(4), 500, 0)
    late = dataclasses.replace(scene, id="late", order=1, datetime=f"{DAY}T23:59:59.999999Z")
    next_day = dataclasses.replace(scene, id="next", order=2, datetime="2024-05-02T00:00:00.000000Z")
    pixels = made(tmp_path, [scene, late, next_day], pool)
    assert pixels.doys.tolist() == [122, 123]


def test_t12_the_earliest_valid_scene_of_a_day_wins_however_they_are_listed(tmp_path, pool):
    scenes = [optical(tmp_path, DAY, scl_of(4), dn, n) for n, dn in enumerate((500, 700, 900))]
    for listed in (scenes, scenes[::-1], [scenes[1], scenes[0], scenes[2]]):
        assert (made(tmp_path, listed, pool).bands == 500).all()


def test_t13_bands_come_from_the_scene_whose_class_is_valid_and_not_from_the_first(tmp_path, pool):
    scenes = [optical(tmp_path, DAY, scl_of(9), 500, 0), optical(tmp_path, DAY, scl_of(4), 700, 1)]
    pixels = made(tmp_path, scenes, pool)
    assert pixels.masks.all() and (pixels.bands == 700).all()


@pytest.mark.parametrize("band", ["SCL", "B11"])
def test_t14_a_scene_that_lacks_a_file_shifts_no_other_it_stops_the_window(tmp_path, pool, band):
    bare = optical(tmp_path, DAY, scl_of(4), 500, 0)
    bare = dataclasses.replace(bare, assets=tuple(a for a in bare.assets if a.band != band))
    with pytest.raises(ReadError) as error:
        made(tmp_path, [bare, optical(tmp_path, "2024-05-02", scl_of(4), 700, 1)], pool)
    assert (error.value.scene, error.value.band) == (bare.id, band)


def test_t15_pixels_that_are_never_valid_are_the_same_in_every_run(tmp_path, pool):
    scl = scl_of(4)
    scl[:6] = 9
    rng = np.random.default_rng(0)
    scenes = [optical(tmp_path, DAY, scl, {b: rng.integers(1, 9000, v.shape).astype(np.uint16)
                                           for b, v in dn_of().items()}, n) for n in range(3)]  # fmt: skip
    runs = [made(tmp_path, scenes, pool) for _ in range(3)]
    assert not runs[0].masks.all()
    assert all(np.array_equal(runs[0].bands, r.bands) for r in runs)


def test_t16_and_t17_missing_masks_and_days_are_refused_and_never_taken_for_all_or_none(tmp_path):
    pixels = pixels_of([True] * 3)
    for name in ("masks", "doys"):
        save(pixels, tmp_path / name)
        (tmp_path / name / f"{name}.npy").unlink()
        with pytest.raises(BadInput, match=rf"{name}\.npy is missing"):
            load(tmp_path / name, pytest.fail)


@pytest.mark.parametrize("family", ["v1.0-qat", "v1.1-mpc", "v2"])
def test_t18_and_t19_a_pixel_that_is_never_clear_is_not_encoded_from_its_clouds(family):
    pixels = pixels_of([False] * 5, [True] * 3)
    assert observation_counts(pixels)[0, 0].tolist() == [0, 3, 0]
    wanted = observation_counts(pixels)[..., 0] > 0
    assert list(tokens_of(pixels, wanted, profile_for(family, 192), Place("33TWL", "2024", 0, 0))) == []


def test_t20_power_is_scaled_by_20_log10_as_the_weights_saw_it():
    for x in (0.01, 0.05, 0.3, 1.0):
        twice = int((20 * math.log10(np.float32(x)) + 50) * 200)
        true = int((10 * math.log10(np.float32(x)) + 50) * 200)
        assert scale_s1(np.array([x], np.float32)).tolist() == [twice]
        assert x == 1.0 or twice != true


def test_t21_dark_water_is_missing_and_half_an_observation_enters(tmp_path, pool):
    scenes = [radar(tmp_path, DAY, ASCENDING, power(0.1), power(10**-2.5), 0)]
    pixels = made(tmp_path, scenes, pool)
    assert (pixels.sar_ascending == (6000, 0)).all()
    assert (observation_counts(pixels)[..., 1] == 1).all()
    dark = made(tmp_path, [radar(tmp_path, DAY, ASCENDING, power(0.003), power(0.003), 0, "dark")], pool)
    assert not observation_counts(dark)[..., 1].any()


def test_t22_opera_s_30_m_are_mixed_and_planetary_computer_s_10_m_are_taken(tmp_path, pool):
    data = (10 ** np.random.default_rng(0).uniform(-2, 0, (60, 60))).astype(np.float32)
    bursts = [burst(tmp_path, "a", 0, data)]
    taken = dataclasses.replace(AWS, s1_resampling="nearest")
    mixed, near = (radar_of(tmp_path, bursts, pool, p)[0, ..., 0] for p in (AWS, taken))
    assert (mixed != near).mean() > 0.8
    steps = np.arange(1, SIDE_PX**2 + 1, dtype=np.float32).reshape(SIDE_PX, SIDE_PX)
    one = made(tmp_path, [radar(tmp_path, DAY, ASCENDING, steps, steps, 0)], pool)
    inner = slice(ROWS.start - BASE, ROWS.stop - BASE), slice(COLS.start - BASE, COLS.stop - BASE)
    np.testing.assert_array_equal(one.sar_ascending[0, ..., 0], scale_s1(steps)[inner])


def test_t23_and_t25_the_orbits_stay_apart_and_the_ascending_one_comes_first(tmp_path, pool):
    scenes = [
        radar(tmp_path, "2024-05-01", DESCENDING, power(1), power(1), 2),
        radar(tmp_path, "2024-05-09", ASCENDING, power(0.1), power(0.1), 1),
        radar(tmp_path, "2024-05-01", ASCENDING, power(0.1), power(0.1), 3),
        radar(tmp_path, "2024-05-20", DESCENDING, power(1), power(1), 0),
        optical(tmp_path, DAY, scl_of(4), 500, 0),
    ]
    pixels = made(tmp_path, scenes, pool)
    assert (pixels.sar_ascending == 6000).all() and (pixels.sar_descending == 10000).all()
    wanted = np.ones((len(ROWS), len(COLS)), bool)
    (tokens,) = tokens_of(pixels, wanted, PROFILE, Place("33TWL", "2024", 0, 0))
    assert tokens.s1_orbit[0, :4].tolist() == [0, 0, 1, 1]
    assert tokens.s1_doy[0, :4].tolist() == [122, 130, 122, 141]


def test_t24_a_radar_scene_whose_orbit_nobody_knows_is_out_with_a_reason():
    got = stac_items.scene(stac_items.radar(**{"sat:orbit_state": "unknown"}))
    assert not got.kept
    assert got.dropped_reason.startswith("no orbit")


def test_t26_the_last_day_of_a_leap_year_is_366_and_series_go_by_date_over_new_year(tmp_path, pool):
    when = ("2024-12-30", "2024-12-31", "2025-01-01")
    scenes = [optical(tmp_path, d, scl_of(4), 500 + n, n) for n, d in enumerate(when)]
    pixels = made(tmp_path, scenes[::-1], pool)
    assert pixels.doys.tolist() == [365, 366, 1]
    assert pixels.bands[:, 0, 0, 0].tolist() == [500, 501, 502]
    tokens = token_of(pixels_of([True] * 3, doys=[365, 366, 1]))
    assert tokens.s2_doy[0, :3].tolist() == [365, 366, 1]


def test_t27_a_pixel_s_rows_do_not_depend_on_who_is_beside_it():
    few, many = pixels_of([True] * 5 + [False] * 20), pixels_of([True] * 25)
    both = dataclasses.replace(
        few,
        bands=np.concatenate([few.bands, many.bands], axis=2),
        masks=np.concatenate([few.masks, many.masks], axis=2),
        sar_ascending=np.zeros((0, 1, 2, 2), np.int16),
        sar_descending=np.zeros((0, 1, 2, 2), np.int16),
    )
    groups = list(tokens_of(both, np.ones((1, 2), bool), PROFILE, Place("33TWL", "2024", 0, 0)))
    assert [g.key[0] for g in groups] == [8, 32]
    for group, alone in zip(groups, (few, many), strict=True):
        np.testing.assert_array_equal(group.s2, token_of(alone).s2)


def test_t31_what_lies_beyond_a_file_is_not_valid_though_its_zeros_are_numbers(tmp_path, pool):
    pixels = made(tmp_path, [optical(tmp_path, DAY, scl_of(4), 500, 0)], pool, range(BASE - 4, BASE + 4))
    assert not pixels.masks[:, :4].any()
    assert pixels.masks[:, 4:].all()


def test_t32_cirrus_and_snow_are_valid_and_shadow_and_cloud_are_not(tmp_path, pool):
    for value in range(12):
        seen = made(tmp_path, [optical(tmp_path, DAY, scl_of(value), 500, 0, name=f"c{value}")], pool).masks.any()
        assert seen == (value in (4, 5, 6, 7, 10, 11))


def test_t33_a_window_is_of_whole_pixels_of_the_tile_or_refused(tmp_path, pool):
    assert window_of("2001,2003,13,11") == (2001, 2003, 13, 11)
    for text in ("2001.5,0,4,4", "10975,0,8,8", "0,0,4"):
        with pytest.raises(BadInput, match="--window"):
            window_of(text)
    pixels = made(tmp_path, [optical(tmp_path, DAY, scl_of(4), 500, 0)], pool)
    assert pixels.bands.shape[1:3] == (len(ROWS), len(COLS))


@pytest.mark.parametrize(("cloud", "kept"), [(99.99, True), (100.0, False), (None, False)])
def test_t35_a_scene_at_100_percent_or_without_the_property_is_out_and_says_so(cloud, kept):
    got = stac_items.scene(stac_items.optical(**{"eo:cloud_cover": cloud}))
    assert got.kept == kept
    assert kept or got.dropped_reason.startswith("cloud cover")


def test_t36_zero_is_a_value_under_a_valid_class_and_no_data_in_radar(tmp_path, pool):
    scenes = [
        optical(tmp_path, DAY, scl_of(5), dn_of(B04=0), 0),
        optical(tmp_path, DAY, scl_of(5), dn_of(B04=700), 1),
        radar(tmp_path, DAY, ASCENDING, power(0), power(1), 0),
    ]
    pixels = made(tmp_path, scenes, pool)
    assert pixels.masks.all()
    assert not pixels.bands[..., 0].any()  # the second scene does not fill it
    assert (pixels.sar_ascending == (0, 10000)).all()


def patch_of(data):
    whole = slice(0, data.shape[0]), slice(0, data.shape[1])
    return Patch(data, 0, 0, whole, 0, (20, 0, TILE.left_m, 0, -20, TILE.top_m))


def test_t37_taps_without_data_are_dropped_and_a_centre_without_data_stays_empty():
    data = np.full((4, 4), 1600, np.uint16)
    data[1, 2] = 0
    out = np.zeros((4, 4, 1), np.uint16)
    write_10_m(out, [patch_of(data)], TILE, range(2, 6), range(2, 6), True)
    wanted = np.full((4, 4), 1600)
    wanted[:2, 2:] = 0  # of its own four 10 m pixels nothing; its neighbours are no darker for it
    np.testing.assert_array_equal(out[..., 0], wanted)


def test_t38_half_is_rounded_up_before_anything_else():
    data = np.full((4, 4), 1000, np.uint16)
    data[1, 1] = 1002  # corners: 9/16, 3/16 and 1/16 of 2 more
    data[1, 2] = 1006
    out = np.zeros((2, 2, 1), np.uint16)
    write_10_m(out, [patch_of(data)], TILE, range(2, 4), range(2, 4), True)
    slow = [[math.floor(1000 + (9 * 2 + c * 6) / 16 + 0.5) for c in (0, 3)] for _ in (0, 1)]
    assert out[..., 0].tolist() == slow
    offset = np.zeros_like(out)
    write_10_m(offset, [patch_of(data - np.uint16(1))], TILE, range(2, 4), range(2, 4), True, 1000)
    assert offset[..., 0].tolist() == [[v - 1001 if v - 1 >= 1000 else v - 1 for v in row] for row in slow]


def test_t39_a_file_that_cannot_be_read_is_an_error_and_no_date_disappears(tmp_path, pool):
    scenes = [optical(tmp_path, d, scl_of(4), 500, n) for n, d in enumerate(("2024-05-01", "2024-05-02"))]
    (tmp_path / scenes[1].asset("B8A").href).write_bytes(b"<html>busy</html>")
    with pytest.raises(ReadError) as error:
        made(tmp_path, scenes, pool)
    assert (error.value.scene, error.value.band) == (scenes[1].id, "B8A")


def test_t40_a_grid_that_is_given_as_proj_code_is_as_good_as_proj_epsg():
    old, new = stac_items.optical(), stac_items.optical()
    new["properties"]["proj:code"] = f"EPSG:{new['properties'].pop('proj:epsg')}"
    assert stac_items.scene(old).assets == stac_items.scene(new).assets
    assert stac_items.scene(new).kept


def test_t41_the_oldest_optical_and_the_newest_radar_scene_of_a_day_win(tmp_path, pool):
    scenes = [
        optical(tmp_path, DAY, scl_of(4), 500, 0),
        optical(tmp_path, DAY, scl_of(4), 700, 1),
        radar(tmp_path, DAY, ASCENDING, power(0.1), power(0.1), 0, "new"),
        radar(tmp_path, DAY, ASCENDING, power(1), power(1), 1, "old"),
    ]
    pixels = made(tmp_path, scenes, pool)
    assert (pixels.bands == 500).all()
    assert (pixels.sar_ascending == 6000).all()
    items = [stac_items.radar(id=f"r{h}", datetime=f"2024-05-06T0{h}:00:00Z") for h in (1, 2)]
    found = select([stac_items.record(i) for i in items])
    assert [s.id for s in sorted(found, key=lambda s: s.order)] == ["r2", "r1"]
    items = [stac_items.optical(id=f"o{h}", datetime=f"2024-05-06T0{h}:00:00Z") for h in (2, 1)]
    found = select([stac_items.record(i) for i in items])
    assert [s.id for s in sorted(found, key=lambda s: s.order)] == ["o1", "o2"]


def test_every_trap_that_touches_inputs_has_its_test():
    named = {int(n) for name in globals() if name.startswith("test_t") for n in _numbers(name)}
    elsewhere = {4, 5, 6, 28, 29, 30, 34}  # encoders, files, signals: see this module's head
    assert named == set(range(1, 42)) - elsewhere


def _numbers(name):
    return [word[1:] for word in name.split("_") if len(word) == 3 and word[0] == "t" and word[1:].isdigit()]
