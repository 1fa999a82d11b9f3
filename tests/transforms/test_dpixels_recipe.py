import dataclasses
import functools
import itertools

import numpy as np
import pytest
import rasterio
import rasterio.warp
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import Resampling
from rasterio.shutil import copy
from rasterio.transform import Affine
from small_scenes import (
    BASE,
    COLS,
    NEAREST,
    PROFILE,
    ROWS,
    SIDE_PX,
    SINGLE,
    TEN_M,
    TILE,
    made,
    optical,
    radar,
    scl_of,
    slow_scale,
    write,
)

from model.profile import PC_L2A, S2_BANDS
from transforms.dpixels import build, read_stack
from transforms.scenes import ASCENDING, DESCENDING, S1, S2


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


def slow_d_pixel(folder, scenes, row, col, profile):
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
                    if band in TEN_M:
                        dn = int(data[row, col])
                    else:
                        near = profile.s2_resampling == "nearest"
                        dn = int(data[row // 2, col // 2]) if near else mixed(data, row, col)
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
                    found = found or slow_scale(x, profile.s1_arithmetic)
            pair.append(found)
        if any(pair):
            radar_rows.append((orbit, day.timetuple().tm_yday, *pair))
    return optical_rows, radar_rows


@pytest.mark.parametrize(
    ("seed", "profile"), [(0, PROFILE), (1, NEAREST), (2, SINGLE)], ids=["v2", "nearest", "float32"]
)
def test_d_pixels_are_the_slow_recipe_pixel_by_pixel(tmp_path, pool, seed, profile):
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
    pixels = made(tmp_path, shuffled, pool, profile=profile)
    for (y, row), (x, col) in itertools.product(enumerate(ROWS), enumerate(COLS)):
        s2, s1 = slow_d_pixel(tmp_path, scenes, row - BASE, col - BASE, profile)
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


# ---- 20 m bands by nearest neighbour: the training era's rule (trap T1)

BY_NEAREST, BY_BILINEAR = Resampling.nearest, Resampling.bilinear
COG_PX = 300  # side of the files at 10 m: several blocks of 128 px in the 10 m bands, two a side in the 20 m ones


def holed(folder):
    """A clear scene of COGs of random DN with nodata pixels and a nodata block in each band; the array by band."""
    rng = np.random.default_rng(11)
    left, top = TILE.left_m + BASE * 10, TILE.top_m - BASE * 10
    arrays, assets = {}, []
    for band in (*S2_BANDS, "SCL"):
        size_m = 10 if band in TEN_M else 20
        side = COG_PX * 10 // size_m
        data = np.full((side, side), 4, np.uint8)
        if band != "SCL":
            data = rng.integers(1, 65536, (side, side)).astype(np.uint16)
            data[rng.random(data.shape) < 0.1] = 0
            data[40:60, 90:131] = 0
        arrays[band] = data
        name = f"{band}.tif"
        assets.append(write(folder, data, left, top, size_m, TILE.epsg, 0, f"plain_{name}", band))
        copy(folder / f"plain_{name}", folder / name, driver="COG", blocksize=128, compress="deflate", overviews="none")
        assets[-1] = dataclasses.replace(assets[-1], href=name)
    scene = optical(folder, "2024-05-01", scl_of(4), 1, 0)
    return dataclasses.replace(scene, assets=tuple(assets)), arrays


def by_gdal(data, size_m, resampling):
    """A band on the whole 10 m grid by GDAL's warper, in one piece."""
    left, top = TILE.left_m + BASE * 10, TILE.top_m - BASE * 10
    out = np.zeros((COG_PX, COG_PX), np.uint16)
    rasterio.warp.reproject(
        data, out, src_transform=Affine(size_m, 0, left, 0, -size_m, top), src_crs=TILE.crs, src_nodata=0,
        dst_transform=Affine(10, 0, left, 0, -10, top), dst_crs=TILE.crs, dst_nodata=0, resampling=resampling,
    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def cogs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cogs")
    scene, arrays = holed(folder)
    size = {band: 10 if band in TEN_M else 20 for band in S2_BANDS}
    gdal = {r: np.stack([by_gdal(arrays[b], size[b], r) for b in S2_BANDS], -1) for r in (BY_NEAREST, BY_BILINEAR)}
    return folder, scene, gdal


HOWS = [(NEAREST, BY_NEAREST), (PROFILE, BY_BILINEAR)]
ODD_WINDOWS = st.tuples(st.integers(0, 298), st.integers(0, 298), st.integers(1, 90), st.integers(1, 90))


@settings(deadline=None, max_examples=25)
@given(window=ODD_WINDOWS, step=st.integers(1, 40), how=st.sampled_from(HOWS))
def test_bands_of_any_window_in_any_pieces_are_gdal_s_warper_by_the_profile_s_rule(cogs, pool, window, step, how):
    (folder, scene, gdal), (profile, resampling), (row, col, h, w) = cogs, how, window
    rows = range(BASE + row, BASE + min(row + h, COG_PX))
    cols = range(BASE + col, BASE + min(col + w, COG_PX))
    stack = read_stack([scene], {PC_L2A: str(folder)}, profile, TILE, rows, cols, pool)
    pieces = [build(stack, profile, rows[r : r + step]).bands[0] for r in range(0, len(rows), step)]
    wanted = gdal[resampling][row : row + h, col : col + w]
    np.testing.assert_array_equal(np.concatenate(pieces), wanted)


def test_nearest_and_bilinear_agree_at_10_m_and_differ_at_20_m(cogs, pool):
    # Trap T1: the same scenes and weights under the other rule give other embeddings (tessera#11: cosine 0.29).
    folder, scene, _ = cogs
    rows, cols = range(BASE + 7, BASE + 138), range(BASE + 101, BASE + 274)
    near, mixed_ = (made(folder, [scene], pool, rows, cols, profile=p).bands for p in (NEAREST, PROFILE))
    for k, band in enumerate(S2_BANDS):
        there = near[..., k] > 0
        np.testing.assert_array_equal(there, mixed_[..., k] > 0)
        differ = (near[..., k] != mixed_[..., k])[there].mean()
        assert differ == 0 if band in TEN_M else differ > 0.99, band


@pytest.mark.parametrize(("profile", "rows_20_m"), [(NEAREST, 7), (PROFILE, 9)], ids=["nearest", "bilinear"])
def test_nearest_reads_no_pixel_around_the_window(tmp_path, pool, profile, rows_20_m):
    # One more would decode the neighbouring blocks of every 20 m band. Rows 1 to 13 lie in the 20 m rows 0 to 6.
    scene = optical(tmp_path, "2024-05-01", scl_of(4), 500, 0)
    stack = read_stack([scene], {PC_L2A: str(tmp_path)}, profile, TILE, ROWS, COLS, pool)
    ((_, (layer,)),) = stack.days
    heights = {band: patch.data.shape[0] for band, patch in zip(S2_BANDS, layer.bands, strict=True)}
    assert heights == {band: len(ROWS) if band in TEN_M else rows_20_m for band in S2_BANDS}
