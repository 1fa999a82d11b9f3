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
import rasterio.warp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy
from rasterio.enums import Resampling
from rasterio.shutil import copy
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT

from model.errors import BadInput
from model.families import names, profile_for
from model.profile import PC_L2A, PC_RTC, RULES, S2_BANDS
from pipeline import inventory as inventory_verb
from transforms import inventory
from transforms.dpixels import FOLLOWED, LAYOUT, DPixels, build, load, read_stack, save, scale_s1, unbuildable
from transforms.grid import tile_of
from transforms.periods import period_of
from transforms.read import ReadError
from transforms.scenes import ASCENDING, DESCENDING, S1, S2, Asset, Scene

GOLDEN = Path(__file__).parents[2] / "../shared/golden"
TILE = tile_of("33TWL")
PROFILE = profile_for("v2", 128)
NEAREST = profile_for("v1.1-mpc+nearest", 192)
SINGLE = dataclasses.replace(PROFILE, s1_arithmetic="float32")
TEN_M = ("B04", "B02", "B03", "B08")
BASE = 2000  # px from the tile's corner: where the small files of these tests lie
ROWS, COLS = range(BASE + 1, BASE + 14), range(BASE + 3, BASE + 14)  # an odd window inside them
SIDE_PX = 24  # of a file, at 10 m
PASSES = (ASCENDING, DESCENDING)


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


@functools.cache
def golden_of(catalogue, provider, out):
    """The golden scenes of a provider; `catalogue` from the golden folder."""
    if not GOLDEN.is_dir():
        pytest.skip("../shared/golden is not here")
    folder = GOLDEN / catalogue.parts[0]
    roi = json.loads((folder / "roi.json").read_text())
    inventory_verb.build([(str(GOLDEN / catalogue), provider)], period_of("_".join(roi["period"])), ["33TWL"], out)
    row, col = int(TILE.top_m - roi["transform"][5]) // 10, int(roi["transform"][2] - TILE.left_m) // 10
    wanted = DPixels(**{name: np.load(folder / f"{name}.npy") for name in LAYOUT})
    return Golden(
        inventory.read_tile(out, "33TWL"),
        inventory.read_header(out).roots,
        range(row, row + roi["height"]),
        range(col, col + roi["width"]),
        wanted,
        np.load(folder / "deterministic.npy"),
    )


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """Of Planetary Computer, optical and radar."""
    out = tmp_path_factory.mktemp("golden") / "mpc.parquet"
    return golden_of(Path("scenes_mpc/catalogue.json"), "planetary-computer", out)


@pytest.fixture(scope="module")
def golden_aws(tmp_path_factory):
    """Of Earth Search, optical alone; with OPERA's radar in test_dpixels_opera.py."""
    return golden_of(Path("scenes_aws/items"), "earth-search", tmp_path_factory.mktemp("golden") / "aws.parquet")


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


def made(folder, scenes, pool, rows=ROWS, cols=COLS, wanted=None, profile=PROFILE):
    roots = {PC_L2A: str(folder), PC_RTC: str(folder)}
    stack = read_stack(scenes, roots, profile, TILE, rows, cols, pool, wanted)
    return build(stack, profile, stack.rows)


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


def slow_scale(x, arithmetic):
    """One power by the formula, in the width that is asked for."""
    if not x > 0:
        return 0
    number = np.float32 if arithmetic == "float32" else np.float64
    y = (number(20) * number(math.log10(x)) + number(50)) * number(200)
    assert y.dtype == number
    return int(min(max(y, 0), 32767))


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


# ---- rules that are not built here


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


# ---- radar scaling

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
