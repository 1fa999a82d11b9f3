import dataclasses

import numpy as np
import pytest
from golden_scenes import AWS_CATALOGUES, GOLDEN, MPC_CATALOGUES, golden_of, part, thinned
from hypothesis import given, settings
from hypothesis import strategies as st
from opera_scenes import AWS, COLS, ROWS, TILE, burst, radar_of, whole

from model.families import profile_for
from transforms.dpixels import build, read_stack, scale_s1
from transforms.read import centres_in

MPC = profile_for("v1.1-mpc", 192)
OFF_BY_ONE = 1e-3  # of the radar values: float32 logarithms of processors differ (golden/scenes_aws, README, step 3)

PROVIDERS = {"scenes_aws": (AWS, AWS_CATALOGUES), "scenes_mpc": (MPC, MPC_CATALOGUES)}  # by golden folder
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden is not here")


def made_around(golden, profile, pool, rows, cols):
    stack = read_stack(golden.scenes, golden.roots, profile, TILE, rows, cols, pool)
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
def test_the_golden_d_pixels_of_each_provider_are_reproduced(folder, golden_out, pool):
    # Traps T2, T22, T24 (an orbit that only the file's tag tells), T41 (OPERA in the order of its list).
    profile, catalogues = PROVIDERS[folder]
    golden = golden_of(folder, catalogues, golden_out)
    count, most, of = differing(made_around(golden, profile, pool, golden.rows, golden.cols), golden.wanted)
    if folder == "scenes_mpc":
        assert count == 0
    else:
        assert most <= 1
        assert count <= OFF_BY_ONE * of, count


@needs_golden
@pytest.mark.parametrize(
    ("folder", "side"),
    [
        pytest.param(folder, side, marks=[pytest.mark.slow] if side == 1024 else [])
        for folder in PROVIDERS
        for side in (256, 1024, 77, 333)
    ],
)
def test_golden_pixels_are_the_same_out_of_any_window(folder, side, golden_out, pool):
    profile, catalogues = PROVIDERS[folder]
    golden = golden_of(folder, catalogues, golden_out)
    rows, cols, wanted = golden.rows, golden.cols, golden.wanted
    pieces = []
    for first_row in range(rows.start // side * side, rows.stop, side):
        for first_col in range(cols.start // side * side, cols.stop, side):
            window = range(first_row, first_row + side), range(first_col, first_col + side)
            at = [slice(max(w.start, r.start) - w.start, min(w.stop, r.stop) - w.start)
                  for w, r in zip(window, (rows, cols), strict=True)]  # fmt: skip
            pixels = thinned(part(made_around(golden, profile, pool, *window), *at))
            there = [slice(max(w.start, r.start) - r.start, min(w.stop, r.stop) - r.start)
                     for w, r in zip(window, (rows, cols), strict=True)]  # fmt: skip
            pieces.append(differing(pixels, thinned(part(wanted, *there))))
    assert pieces
    counts, most, sizes = zip(*pieces, strict=True)
    assert max(most) <= (0 if folder == "scenes_mpc" else 1)
    assert sum(counts) <= OFF_BY_ONE * sum(sizes)


# ---- bursts of our own


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
