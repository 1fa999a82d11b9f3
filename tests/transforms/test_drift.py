import csv
import dataclasses
import functools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.families import profile_for
from model.profile import PC_L2A, S2_BANDS
from transforms.dpixels import OpticalLayer, Stack
from transforms.drift import OFFSET_DN, SIDE, Guard, dark_floor, high_scenes, judge
from transforms.grid import Block, tile_of
from transforms.read import Patch
from transforms.scenes import S2, Scene

PROFILE = profile_for("v2", 128)
TILE = tile_of("33TWL")
KOREA = Path(__file__).parents[2] / "../shared/real-data/massijjeong-Parcel-Level-SITS-Crop-Classification"
needs_korea = pytest.mark.skipif(not KOREA.is_dir(), reason="../shared/real-data is not here")

# ---- grounds by nature: mean DN in the order of S2_BANDS, and how a scene of it may differ from the next

GROUNDS = {
    "farmland": (700, 500, 750, 2600, 2800, 1100, 2200, 2600, 2100, 1300),
    "forest": (250, 230, 420, 2600, 2900, 700, 2100, 2600, 1400, 650),
    "desert": (3300, 1500, 2400, 3900, 4100, 3600, 3800, 4000, 5200, 4700),
    "snow": (8800, 9000, 8900, 8500, 8300, 8700, 8600, 8500, 600, 500),
    "water": (250, 450, 420, 180, 160, 250, 180, 170, 110, 90),
    "town": (1400, 1100, 1250, 2000, 2100, 1600, 1800, 2000, 2200, 1800),
}


def year_of(ground, seed, scenes=40, places=400):
    """(S, N, 10) DN and (S, N) clear: places that differ, a season that moves bands apart, haze now and then."""
    rng = np.random.default_rng(seed)
    mean = np.array(GROUNDS[ground], float)
    place = mean * np.exp(rng.normal(0, 0.25, (places, 1)) + rng.normal(0, 0.08, (places, 10)))
    day = np.linspace(0, 1, scenes, endpoint=False)[:, None, None]
    green = np.array([-0.3, -0.25, -0.15, 0.35, 0.35, 0.05, 0.3, 0.35, -0.2, -0.3])
    strength = {"farmland": 1.0, "forest": 0.5, "town": 0.2}.get(ground, 0.02)
    values = place * (1 + strength * green * np.sin(2 * np.pi * day + rng.normal(0, 0.3)))
    haze = np.array([0.7, 1, 0.8, 0.4, 0.4, 0.6, 0.5, 0.4, 0.15, 0.1])
    values += (rng.random((scenes, 1, 1)) < 0.2) * rng.uniform(0, 600, (scenes, 1, 1)) * haze
    if ground == "water":  # glint: about as much in every band
        values += (rng.random((scenes, 1, 1)) < 0.3) * rng.uniform(0, 1500, (scenes, 1, 1))
    values += rng.normal(0, 40, values.shape)
    cover = rng.random((scenes, 1)) ** 2
    clear = rng.random((scenes, places)) > cover
    return np.clip(values, 1, 65535).astype(np.uint16), clear


def judged(values, clear, ground):
    steady = clear & (ground != "water")  # class 6 is not compared
    return judge(values, clear, steady, [f"scene-{n:02d}" for n in range(len(values))], PROFILE)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(list(GROUNDS)), st.integers(0, 10_000))
def test_no_ground_and_no_glint_is_taken_for_an_offset(ground, seed):
    values, clear = year_of(ground, seed)
    assert judged(values, clear, ground).reasons == ()


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([g for g in GROUNDS if g != "water"]),
    st.integers(0, 10_000),
    st.sampled_from([1, 2, 8, 20, 30, 38]),
)
def test_scenes_with_the_offset_left_in_are_found_be_they_few_or_most_and_named_where_few(ground, seed, many):
    values, clear = year_of(ground, seed)
    clear[:5] |= True  # of a scene that nothing is seen of nothing can be said
    missed = np.zeros(len(values), bool)
    missed[np.random.default_rng(seed).permutation(len(values))[: many - 1]] = True
    missed[0] = True
    found = judged(np.where(missed[:, None, None], values + np.uint16(OFFSET_DN), values), clear, ground)
    if ground in ("desert", "snow") and many > 30:
        return  # no dark ground to tell by, and too few dates to differ from
    (reason,) = found.reasons
    assert all(band in reason for band in S2_BANDS)
    if many <= 8:
        assert f"{len(found.scenes)} of {len(values)} scenes lie about 1000 DN above the others" in reason
        high = np.array([f"scene-{n:02d}" in found.scenes for n in range(len(values))])
        assert high[0]
        assert (high == missed)[clear.sum(1) >= 100].mean() > 0.9


@pytest.mark.parametrize("ground", GROUNDS)
def test_where_no_scene_had_it_subtracted_dark_ground_tells(ground):
    values, clear = year_of(ground, 1)
    found = judged(values + np.uint16(OFFSET_DN), clear, ground)
    # Desert and snow are as bright by nature: nothing but other dates can tell there.
    assert bool(found.reasons) == (ground not in ("desert", "snow"))
    if found.reasons:
        assert "as if their offset of 1000 had not been subtracted: B04" in found.reasons[0]


def test_a_missed_offset_is_a_third_to_nine_tenths_of_a_sigma_and_that_alone_is_no_reason():
    values, clear = year_of("farmland", 0)
    right, wrong = (judged(v, clear, "farmland") for v in (values, values + np.uint16(OFFSET_DN)))
    moved = np.subtract(wrong.sigma, right.sigma)
    np.testing.assert_allclose(moved, OFFSET_DN / np.array(PROFILE.s2_std), rtol=1e-6)
    assert 0.35 < moved.min() < moved.max() < 0.95
    bright = judged(*year_of("snow", 0), "snow")
    assert max(bright.sigma) > 3
    assert bright.reasons == ()


def test_numbers_of_another_scale_are_further_off_than_any_ground():
    values, clear = year_of("farmland", 0)
    found = judged((values * 10.0).clip(0, 65535).astype(np.uint16), clear, "farmland")
    assert any("further from the profile's than any ground" in r for r in found.reasons)


def test_mean_and_deviation_are_those_of_the_clear_values():
    values, clear = year_of("town", 0)
    found = judged(values, clear, "town")
    assert found.observations == clear.sum()
    np.testing.assert_allclose(found.mean, values[clear].mean(0))
    np.testing.assert_allclose(found.std, values[clear].std(0))
    np.testing.assert_allclose(found.sigma, (values[clear].mean(0) - PROFILE.s2_mean) / np.array(PROFILE.s2_std))
    record = found.record()
    assert record["observations"] == found.observations
    assert record["mean"] == [round(v, 3) for v in found.mean]


def test_nothing_clear_is_nothing_found():
    values, clear = year_of("town", 0)
    assert judged(values, clear & False, "town").record()["observations"] == 0


def test_too_few_dates_or_places_say_nothing():
    values, clear = year_of("farmland", 0, scenes=4)
    values[0] += OFFSET_DN
    assert not high_scenes(values, clear | True, S2_BANDS).any()
    values, clear = year_of("farmland", 0, places=19)
    values[0] += OFFSET_DN
    assert not high_scenes(values, clear | True, S2_BANDS).any()


@pytest.mark.parametrize(("moved", "high"), [(400, False), (1000, True), (2500, False)])
def test_a_scene_as_far_off_as_snow_or_hardly_off_is_not_one_with_an_offset(moved, high):
    values, clear = year_of("forest", 3)
    clear[:] = True
    values[7] = np.median(values, axis=0) + moved
    assert high_scenes(values, clear, S2_BANDS)[7] == high


def test_a_pixel_with_a_band_of_0_is_not_counted():
    (one,) = layers_of(n=1)
    scl = dataclasses.replace(one.scl, data=np.full_like(one.scl.data, 4))
    red = one.bands[0].data.copy()
    red[:128] = 0
    holed = dataclasses.replace(one, scl=scl, bands=(dataclasses.replace(one.bands[0], data=red), *one.bands[1:]))
    whole = dataclasses.replace(one, scl=scl)
    assert guarded([whole]).observations == 2 * guarded([holed]).observations == SIDE**2


# ---- real scenes


@functools.cache
def korea(name):
    """(S, N, 10) raw DN with the offset in them, and (S, N) where all ten bands are there."""
    with (KOREA / f"sample_{name}.csv").open(encoding="utf-8-sig") as file:
        head, *rows = csv.reader(file)
    dates = sorted({c.partition("_")[2] for c in head if re.fullmatch(r"b\w+_\d{8}", c)})
    at = {column: n for n, column in enumerate(head)}
    columns = [[at.get(f"{band.lower()}_{day}") for band in S2_BANDS] for day in dates]
    raw = np.array([[[float(r[c] or 0) if c is not None else 0 for c in cs] for r in rows] for cs in columns])
    clear = (raw > 0).all(-1)
    return np.where(clear[..., None], raw, 0).round().astype(np.uint16), clear


def subtracted(raw):
    return np.minimum(raw, raw - np.uint16(OFFSET_DN))


@needs_korea
@pytest.mark.parametrize("region", ["us", "nh", "yc", "nj"])
def test_no_real_scene_of_two_years_is_taken_for_one_with_an_offset(region):
    raw, clear = korea(region)
    assert not high_scenes(subtracted(raw), clear, S2_BANDS).any()
    assert dark_floor(subtracted(raw), clear, S2_BANDS) == {}
    assert dark_floor(raw, clear, S2_BANDS)


@needs_korea
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("region", ["us", "nh", "yc", "nj"])
def test_real_scenes_with_the_offset_left_in_are_found_nine_times_in_ten(region, share):
    raw, clear = korea(region)
    rng = np.random.default_rng(0)
    told = clear.sum(1) >= 20
    found = wrongly = missed = right = 0
    for _ in range(3):
        left_in = rng.random(len(raw)) < share
        high = high_scenes(np.where(left_in[:, None, None], raw, subtracted(raw)), clear, S2_BANDS)
        found, missed = found + (high & left_in & told).sum(), missed + (left_in & told).sum()
        wrongly, right = wrongly + (high & ~left_in).sum(), right + (~left_in & told).sum()
    assert found >= 0.9 * missed
    assert wrongly <= 0.15 * right  # named beside those that are wrong; alone they are never


# ---- the guard over stacks

SIDE_PX = 300


def layer(name, rng, offset=0, add=0, classes=None):
    """A scene of 300 x 300 px at 10 m from the tile's pixel (0, 0) on."""
    left, top = TILE.left_m, TILE.top_m

    def patch(data, size_m):
        whole = slice(0, data.shape[0]), slice(0, data.shape[1])
        return Patch(data, 0, 0, whole, 0, (size_m, 0, left, 0, -size_m, top))

    half = SIDE_PX // 2
    scl = rng.choice([4, 5, 9], (half, half)).astype(np.uint8) if classes is None else classes
    bands = []
    for k, band in enumerate(S2_BANDS):
        side = SIDE_PX if band in ("B04", "B02", "B03", "B08") else half
        ground = np.random.default_rng(k).normal(GROUNDS["farmland"][k], 60, (side, side))
        data = (ground + rng.normal(0, 30, ground.shape) + add).clip(1, 65535).astype(np.uint16)
        bands.append(patch(data, 10 if side == SIDE_PX else 20))
    scene = Scene("33TWL", S2, PC_L2A, name, "2024-05-01T10:00:00.000000Z", 0, "", None, "", "05.10", 1.0, "", "",
                  offset, "", True, "", ())  # fmt: skip
    return OpticalLayer(scene, patch(scl, 20), tuple(bands))


BLOCK = Block("33TWL", 0, 0, 256, 256)


def guarded(layers, wanted=None, strips=(range(256),), block=BLOCK):
    guard = Guard(PROFILE, block, np.ones((block.height_px, block.width_px), bool) if wanted is None else wanted)
    for rows in strips:
        days = tuple((n + 1, (x,)) for n, x in enumerate(layers))
        guard.add(Stack(TILE, rows, range(256), days, ()))
    return guard.verdict()


def layers_of(seed=0, n=8, **of_first):
    rng = np.random.default_rng(seed)
    return [layer(f"scene-{k}", rng, **(of_first if k == 0 else {})) for k in range(n)]


def test_a_block_with_one_wrong_scene_is_suspected_and_the_scene_named():
    assert guarded(layers_of()).reasons == ()
    found = guarded(layers_of(add=OFFSET_DN))
    assert found.scenes == ("scene-0",)
    assert "1 of 8 scenes" in found.reasons[0] and "scene-0" in found.reasons[0]


def test_a_scene_whose_offset_is_subtracted_is_right():
    assert guarded(layers_of(add=OFFSET_DN, offset=OFFSET_DN)).reasons == ()


def test_the_height_of_strips_changes_nothing():
    layers = layers_of(add=OFFSET_DN)
    whole = guarded(layers)
    for strips in (
        [range(128), range(128, 256)],
        [range(r, r + 1) for r in range(256)],
        [range(3, 256), range(3)],
    ):
        assert guarded(layers, strips=strips) == whole


def test_only_wanted_and_clear_pixels_count():
    layers = layers_of()
    wanted = np.zeros((256, 256), bool)
    wanted[:128, :64] = True
    found = guarded(layers, wanted)
    step = 256 // SIDE
    clear = [x.scl.data[: 128 // 2 : step // 2, : 64 // 2 : step // 2] != 9 for x in layers]
    assert found.observations == sum(int(c.sum()) for c in clear)
    assert guarded(layers, wanted & False).observations == 0


def test_water_and_cirrus_are_counted_but_not_compared():
    rng = np.random.default_rng(0)
    classes = np.full((SIDE_PX // 2, SIDE_PX // 2), 6, np.uint8)
    layers = [layer(f"s{k}", rng, add=OFFSET_DN if k == 0 else 0, classes=classes) for k in range(8)]
    found = guarded(layers)
    assert found.scenes == ()
    assert found.observations == 8 * SIDE**2


def test_the_means_are_those_of_the_files_own_pixels():
    (one,) = layers_of(n=1)
    found = guarded([dataclasses.replace(one, scl=dataclasses.replace(one.scl, data=np.full((150, 150), 4, np.uint8)))])
    for k, patch in enumerate(one.bands):
        step = 256 // SIDE if patch.data.shape[0] == SIDE_PX else 256 // SIDE // 2
        seen = patch.data[: 256 * step // (256 // SIDE) : step, : 256 * step // (256 // SIDE) : step]
        assert found.mean[k] == pytest.approx(seen.mean())


@pytest.mark.parametrize("side_px", [256, 2048, 4096, 10980])
def test_as_many_pixels_of_a_large_block_are_looked_at_as_of_a_small_one(side_px):
    guard = Guard(PROFILE, Block("33TWL", 0, 0, side_px, side_px), np.ones((side_px, side_px), bool))
    assert SIDE**2 * 0.9 < guard.places <= SIDE**2
