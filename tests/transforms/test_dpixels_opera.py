import dataclasses
import functools
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import Affine

from model.families import profile_for
from model.profile import OPERA_RTC, PC_RTC
from pipeline import inventory as inventory_verb
from tests.transforms.test_dpixels import GOLDEN, LAYOUT, part, thinned
from transforms import inventory
from transforms.dpixels import DPixels, build, read_stack, scale_s1
from transforms.grid import tile_of
from transforms.periods import period_of
from transforms.read import centres_in
from transforms.scenes import ASCENDING, S1, Asset, Scene

TILE = tile_of("33TWL")
AWS, MPC = profile_for("v1.1-aws", 192), profile_for("v1.1-mpc", 192)
OFF_BY_ONE = 1e-3  # of the radar values: float32 logarithms of processors differ (golden/scenes_aws, README, step 3)

# Profile and catalogues of each golden folder, as the command line takes them.
PROVIDERS = {
    "scenes_aws": (AWS, [("items", "earth-search"), ("catalogue.json", "opera")]),
    "scenes_mpc": (MPC, [("catalogue.json", "planetary-computer")]),
}
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden is not here")


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(4) as executor:
        yield executor


@functools.cache
def golden_of(folder, out):
    """Scenes, roots, ROI (rows, cols) and the reference's d-pixels of a golden folder."""
    _, catalogs = PROVIDERS[folder]
    roi = json.loads((GOLDEN / folder / "roi.json").read_text())
    path = out / f"{folder}.parquet"
    listed = [(str(GOLDEN / folder / name), provider) for name, provider in catalogs]
    inventory_verb.build(listed, period_of("/".join(roi["period"])), ["33TWL"], path)
    row, col = int(TILE.top_m - roi["transform"][5]) // 10, int(roi["transform"][2] - TILE.left_m) // 10
    wanted = DPixels(**{name: np.load(GOLDEN / folder / f"{name}.npy") for name in LAYOUT})
    scenes, roots = inventory.read_tile(path, "33TWL"), inventory.read_header(path).roots
    return scenes, roots, range(row, row + roi["height"]), range(col, col + roi["width"]), wanted


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("golden")


def made_around(folder, out, pool, rows, cols):
    scenes, roots, *_ = golden_of(folder, out)
    profile = PROVIDERS[folder][0]
    stack = read_stack(scenes, roots, profile, TILE, rows, cols, pool)
    return build(stack, profile, rows)


def differing(got, wanted):
    """How many radar values differ, and by how much at most; everything else must be equal where the mask is 1."""
    for name in ("masks", "doys", "sar_ascending_doy", "sar_descending_doy"):
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name), err_msg=name)
    clear = wanted.masks[..., None] > 0
    np.testing.assert_array_equal(got.bands * clear, wanted.bands * clear)
    off = [np.abs(getattr(got, n).astype(int) - getattr(wanted, n)) for n in ("sar_ascending", "sar_descending")]
    return sum(int((o > 0).sum()) for o in off), max(int(o.max()) for o in off), sum(o.size for o in off)


@needs_golden
@pytest.mark.parametrize("folder", PROVIDERS)
def test_the_golden_d_pixels_of_each_provider_are_reproduced(folder, out, pool):
    # Traps T2, T22, T24 (an orbit that only the file's tag tells), T41 (OPERA in the order of its list).
    *_, rows, cols, wanted = golden_of(folder, out)
    count, most, of = differing(made_around(folder, out, pool, rows, cols), wanted)
    if folder == "scenes_mpc":
        assert count == 0
    else:
        assert most <= 1
        assert count <= OFF_BY_ONE * of, count


@needs_golden
@pytest.mark.parametrize("side", [256, 1024, 77, 333])
@pytest.mark.parametrize("folder", PROVIDERS)
def test_golden_pixels_are_the_same_out_of_any_window(folder, side, out, pool):
    *_, rows, cols, wanted = golden_of(folder, out)
    pieces = []
    for first_row in range(rows.start // side * side, rows.stop, side):
        for first_col in range(cols.start // side * side, cols.stop, side):
            window = range(first_row, first_row + side), range(first_col, first_col + side)
            at = [slice(max(w.start, r.start) - w.start, min(w.stop, r.stop) - w.start)
                  for w, r in zip(window, (rows, cols), strict=True)]  # fmt: skip
            pixels = thinned(part(made_around(folder, out, pool, *window), *at))
            there = [slice(max(w.start, r.start) - r.start, min(w.stop, r.stop) - r.start)
                     for w, r in zip(window, (rows, cols), strict=True)]  # fmt: skip
            pieces.append(differing(pixels, thinned(part(wanted, *there))))
    assert pieces
    counts, most, sizes = zip(*pieces, strict=True)
    assert max(most) <= (0 if folder == "scenes_mpc" else 1)
    assert sum(counts) <= OFF_BY_ONE * sum(sizes)


# ---- bursts of our own

BASE = 3000
ROWS, COLS = range(BASE, BASE + 30), range(BASE, BASE + 24)
ROOTS = {OPERA_RTC: "", PC_RTC: ""}


def burst(folder, name, order, data, when="2024-05-01T05:00:00.000000Z", epsg=TILE.epsg, corner=None):
    """A burst whose VV and VH are `data` and twice it; `corner` in metres, the test window's own when left out."""
    left, top = corner or (TILE.left_m + (BASE - 30) * 10, TILE.top_m - (BASE - 30) * 10)
    left, top = left // 30 * 30, top // 30 * 30
    transform = Affine(30, 0, left, 0, -30, top)
    assets = []
    for band, values in (("VV", data), ("VH", 2 * data)):
        with rasterio.open(
            folder / f"{name}_{band}.tif", "w", driver="GTiff", height=data.shape[0], width=data.shape[1], count=1,
            dtype="float32", nodata=np.nan, crs=f"EPSG:{epsg}", transform=transform,
        ) as file:  # fmt: skip
            file.write(values, 1)
        assets.append(Asset(band, f"{name}_{band}.tif", epsg, tuple(transform)[:6], *data.shape))
    return Scene("33TWL", S1, OPERA_RTC, name, when, order, ASCENDING, 22, "sentinel-1a", "", None, "", "", 0, "", True,
                 "", tuple(assets))  # fmt: skip


def radar_of(folder, scenes, pool, profile=AWS, rows=ROWS, cols=COLS):
    stack = read_stack(scenes, dict.fromkeys(ROOTS, str(folder)), profile, TILE, rows, cols, pool)
    return build(stack, profile, rows).sar_ascending


def whole(value):
    return np.full((60, 60), value, np.float32)


def test_the_first_burst_of_the_list_wins_where_it_sees_whatever_its_time(tmp_path, pool):
    half = whole(0.1)
    half[:, 14:] = np.nan
    later_first = [
        burst(tmp_path, "b", 0, half, "2024-05-01T05:00:09.000000Z"),
        burst(tmp_path, "a", 1, whole(1), "2024-05-01T05:00:00.000000Z"),
    ]
    got = radar_of(tmp_path, later_first, pool)
    assert set(np.unique(got[0, ..., 0])) == {6000, 10000}
    assert got[0, 0, 0, 0] == 6000
    turned = [dataclasses.replace(s, order=1 - s.order) for s in later_first]
    assert (radar_of(tmp_path, turned, pool)[0, ..., 0] == 10000).all()


def test_a_profile_that_wants_the_latest_scene_takes_it_whatever_the_list_says(tmp_path, pool):
    scenes = [
        burst(tmp_path, "a", 0, whole(1), "2024-05-01T05:00:00.000000Z"),
        burst(tmp_path, "b", 1, whole(0.1), "2024-05-01T05:00:09.000000Z"),
    ]
    latest = dataclasses.replace(AWS, s1_order="datetime-descending")
    assert (radar_of(tmp_path, scenes, pool)[0, ..., 0] == 10000).all()
    assert (radar_of(tmp_path, scenes, pool, latest)[0, ..., 0] == 6000).all()


def test_a_burst_of_thirty_metres_is_not_taken_by_nearest_neighbour(tmp_path, pool):
    # Trap T22.
    data = (10 ** np.random.default_rng(0).uniform(-2, 0, (60, 60))).astype(np.float32)
    scenes = [burst(tmp_path, "a", 0, data)]
    near = dataclasses.replace(AWS, s1_resampling="nearest")
    mixed, taken = (radar_of(tmp_path, scenes, pool, p)[0, ..., 0] for p in (AWS, near))
    assert np.isin(taken, scale_s1(data, "float32")).all()
    assert 0.05 < (mixed == taken).mean() < 0.2  # one 10 m pixel of nine lies on a 30 m pixel's own centre


@pytest.mark.parametrize("epsg", [32632, 32634])
@settings(deadline=None, max_examples=10)
@given(st.integers(0, 20), st.integers(0, 15), st.integers(1, 9), st.integers(1, 9))
def test_bursts_of_another_zone_join_those_of_the_tile_s_own_the_same_in_every_window(
    tmp_path_factory, pool, epsg, row, col, h, w
):
    folder = tmp_path_factory.mktemp("zones")
    x, y = centres_in(TILE, epsg, ROWS, COLS)
    corner = float(x.min()) - 600, float(y.max()) + 600
    rng = np.random.default_rng(0)
    own = whole(1)
    own[:, 33:] = np.nan
    across = (10 ** rng.uniform(-2, 0, (60, 60))).astype(np.float32)
    scenes = [burst(folder, "own", 0, own), burst(folder, "across", 1, across, epsg=epsg, corner=corner)]
    full = radar_of(folder, scenes, pool)
    assert full.shape[0] == 1
    assert (full[0, :, 0, 0] == 10000).all()
    assert (full > 0).all()
    window = radar_of(folder, scenes, pool, rows=ROWS[row : row + h], cols=COLS[col : col + w])
    np.testing.assert_array_equal(window, full[:, row : row + h, col : col + w])
