import dataclasses

import numpy as np
import pytest
from small_scenes import BASE, COLS, PROFILE, ROWS, SIDE_PX, TILE, optical, radar, scl_of

from model.errors import BadInput
from model.records import Records, chosen, joined
from transforms import sampling
from transforms.dpixels import build, read_stack
from transforms.grid import TILE_PX, Block, lonlat_of
from transforms.land import land_fraction
from transforms.memory import Budget, Load
from transforms.read import ReadError
from transforms.sampling import (
    EXCLUDED,
    FAILED,
    FEW_DATES,
    KEPT,
    NO_DATES,
    SAMPLED,
    Rule,
    block_px_for,
    budget_of,
    sample,
)  # fmt: skip
from transforms.scenes import ASCENDING, DESCENDING

WINDOW = Block(TILE.name, ROWS.start, COLS.start, len(ROWS), len(COLS))
ALL = Rule(1, 1)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Six dates with clouds of their own, one of them twice, and three passes with holes."""
    folder = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(3)
    found = []
    for n, day in enumerate(("2024-02-03", "2024-02-03", "2024-04-01", "2024-06-11", "2024-07-30", "2024-11-02")):
        scl = rng.choice(np.array([4, 5, 8, 9, 0, 6], np.uint8), (SIDE_PX // 2, SIDE_PX // 2))
        dn = {b: rng.integers(1, 9000, (s, s)).astype(np.uint16) for b, s in sizes()}
        found.append(optical(folder, day, scl, dn, n, offset=1000 * (n % 2)))
    found.append(optical(folder, "2024-12-24", scl_of(9), 4000, 6))
    for n, (day, orbit) in enumerate(
        (("2024-01-05", DESCENDING), ("2024-03-05", ASCENDING), ("2024-09-05", DESCENDING))
    ):
        vv = rng.uniform(0.001, 1, (SIDE_PX, SIDE_PX)).astype(np.float32)
        vv[rng.random(vv.shape) < 0.3] = -32768
        found.append(radar(folder, day, orbit, vv, np.where(vv > 0.5, vv, -32768).astype(np.float32), n))
    return folder, found


def sizes():
    ten = ("B04", "B02", "B03", "B08")
    return [(b, SIDE_PX if b in ten else SIDE_PX // 2) for b in PROFILE.s2_bands]


def budget(strip_px=SIDE_PX, build_px=SIDE_PX):
    return Budget(Load(SIDE_PX, 7, 3, 0, 1, 0, 0, 0, False, (40, 256)), strip_px, build_px, (), 1.0)


def sampled(scenes, pool, block=WINDOW, rule=ALL, how=None, **masks):
    folder, found = scenes
    roots = {s.source: str(folder) for s in found}
    return sample(found, roots, PROFILE, TILE, block, rule, pool, how or budget(), **masks)


def looped(scenes, pool, rule, block=WINDOW):
    """The records by a loop over the d-pixels of the whole window, and who was left out and why."""
    folder, found = scenes
    roots = {s.source: str(folder) for s in found}
    rows, cols = (range(a, a + n) for a, n in ((block.row_px, block.height_px), (block.col_px, block.width_px)))
    pixels = build(read_stack(found, roots, PROFILE, TILE, rows, cols, pool), PROFILE, rows)
    out, left = [], {NO_DATES: 0, FEW_DATES: 0}
    for y, row in enumerate(rows):
        for x, col in enumerate(cols):
            if row % rule.every or col % rule.every:
                continue
            steps = [t for t in range(len(pixels.doys)) if pixels.masks[t, y, x]]
            if len(steps) < rule.min_dates:
                left[FEW_DATES if steps else NO_DATES] += 1
                continue
            passes = [
                (getattr(pixels, name)[t, y, x], orbit, getattr(pixels, f"{name}_doy")[t])
                for orbit, name in enumerate(("sar_ascending", "sar_descending"))
                for t in range(len(getattr(pixels, name)))
                if getattr(pixels, name)[t, y, x].any()
            ]
            lon, lat = lonlat_of(TILE, row, col)
            out.append(
                Records(
                    np.array([TILE.name], "S5"), np.array([row], np.int32), np.array([col], np.int32),
                    np.array([float(lon[()])]), np.array([float(lat[()])]),
                    np.array([land_fraction(TILE.name)], np.float32),
                    np.array([0, len(steps)]), np.array([0, len(passes)]),
                    pixels.bands[steps, y, x], np.ones(len(steps), bool), pixels.doys[steps].astype(np.int16),
                    np.array([p[0] for p in passes], np.int16).reshape(-1, 2), np.ones(len(passes), bool),
                    np.array([p[1] for p in passes], np.uint8), np.array([p[2] for p in passes], np.int16),
                )
            )  # fmt: skip
    return joined(out), left


def assert_same(a, b):
    for field in dataclasses.fields(Records):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


@pytest.mark.parametrize("every", [1, 2, 3, 5])
@pytest.mark.parametrize("min_dates", [1, 3])
def test_the_records_are_those_of_a_loop_over_the_window(scenes, pool, every, min_dates):
    rule = Rule(every, min_dates)
    records, counts = sampled(scenes, pool, rule=rule)
    wanted, left = looped(scenes, pool, rule)
    assert_same(records, wanted)
    grid = int(rule.grid(WINDOW).sum())
    assert counts == {SAMPLED: grid, KEPT: len(wanted), EXCLUDED: 0, FAILED: 0} | left
    if every == 1:
        assert min(len(wanted), left[FEW_DATES if min_dates > 1 else NO_DATES]) > 0  # the scenes have something of each


@pytest.mark.parametrize(("strip_px", "build_px"), [(1, 1), (2, 2), (4, 3), (100, 7)])
@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("alone_px", [1, 1 << 13])
def test_strips_and_chunks_of_any_height_give_the_same(scenes, pool, monkeypatch, strip_px, build_px, every, alone_px):
    whole, counts = sampled(scenes, pool, rule=Rule(every, 2))
    monkeypatch.setattr(sampling, "ALONE_PX", alone_px)
    again, counted = sampled(scenes, pool, rule=Rule(every, 2), how=budget(strip_px, build_px))
    assert_same(again, whole)
    assert counted == counts


def test_blocks_of_any_size_give_the_same_records_and_counts(scenes, pool):
    rule = Rule(3, 2)
    whole, counts = sampled(scenes, pool, rule=rule)
    parts, sums = [], dict.fromkeys(counts, 0)
    for row in (0, 5):
        for col in (0, 4, 9):
            height, width = (5 if row == 0 else len(ROWS) - 5), ({0: 4, 4: 5, 9: len(COLS) - 9}[col])
            block = Block(TILE.name, ROWS.start + row, COLS.start + col, height, width)
            records, counted = sampled(scenes, pool, block=block, rule=rule)
            parts.append(records)
            sums = {name: n + counted[name] for name, n in sums.items()}
    found = joined(parts)
    assert_same(chosen(found, np.lexsort((found.col_px, found.row_px))), whole)
    assert sums == counts


def test_pixels_are_counted_in_the_tile(scenes, pool):
    records, _ = sampled(scenes, pool, rule=Rule(4, 1))
    assert len(records) and not (records.row_px % 4).any() and not (records.col_px % 4).any()


def test_what_is_kept_out_is_never_there_and_counted(scenes, pool):
    shape = (WINDOW.height_px, WINDOW.width_px)
    excluded, inside = np.zeros(shape, bool), np.ones(shape, bool)
    excluded[:, 5:] = True
    inside[:4] = False
    records, counts = sampled(scenes, pool, inside=inside, excluded=excluded)
    whole, _ = sampled(scenes, pool)
    y, x = whole.row_px - WINDOW.row_px, whole.col_px - WINDOW.col_px
    assert_same(records, chosen(whole, np.flatnonzero((inside & ~excluded)[y, x])))
    assert counts[EXCLUDED] == int((inside & excluded).sum())
    assert counts[SAMPLED] == int(inside.sum()) == sum(n for name, n in counts.items() if name != SAMPLED)


def test_a_block_that_is_kept_out_as_a_whole_reads_no_file(scenes, pool):
    folder, found = scenes
    nowhere = dict.fromkeys((s.source for s in found), str(folder / "nowhere"))
    everything = np.ones((WINDOW.height_px, WINDOW.width_px), bool)
    records, counts = sample(found, nowhere, PROFILE, TILE, WINDOW, Rule(1, 1), pool, budget(), excluded=everything)
    assert not len(records) and counts[EXCLUDED] == everything.size
    with pytest.raises(ReadError):
        sample(found, nowhere, PROFILE, TILE, WINDOW, Rule(1, 1), pool, budget())


def test_a_window_without_a_scene_has_no_dates(scenes, pool):
    records, counts = sampled(scenes, pool, block=Block(TILE.name, 0, 0, 8, 8))
    assert not len(records) and counts[NO_DATES] == 64


@pytest.mark.parametrize(("every", "min_dates", "words"), [(0, 1, "--every 0"), (1, 0, "--min-dates 0")])
def test_steps_and_dates_below_one_are_refused(every, min_dates, words):
    with pytest.raises(BadInput, match=words):
        Rule(every, min_dates)


@pytest.mark.parametrize("every", [1, 2, 5, 7, 20, 100])
def test_a_blocks_records_are_few_enough_to_wait_and_the_block_is_one_that_tiles_are_cut_into(every):
    px = block_px_for(every)
    assert px % 256 == 0 and (-(-px // every)) ** 2 <= 1 << 17 and 256 <= px <= TILE_PX


def test_more_memory_gives_taller_strips_and_too_little_is_refused(scenes):
    low, high = (budget_of(scenes[1] * 30, 2048, 4, n << 30) for n in (4, 30))
    assert low.strip_px < high.strip_px and low.total_bytes <= 4 << 30
    with pytest.raises(BadInput, match="are allowed: give more --memory"):
        budget_of(scenes[1] * 30, 2048, 4, 1 << 20)


def test_the_small_files_lie_where_this_module_thinks():
    assert BASE < ROWS.start < ROWS.stop < BASE + SIDE_PX
