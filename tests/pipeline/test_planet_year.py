from collections import Counter

import numpy as np
import pytest
from island_files import BANDS, S2, item_of, of_day, optical, radar

from pipeline.demo import passes
from pipeline.demo.landscape import land
from pipeline.demo.planet import TILES
from pipeline.demo.seasons import backscatter
from transforms.grid import lonlat_of, tile_of, to_crs


def test_the_year_has_its_dates(planet):
    for tile in TILES:
        dates = {v.datatake.date() for v in planet.s2_ids(tile).values() if v.datatake.year == 2024}
        assert len(dates) == (28 if tile == "32TQQ" else 29)
        assert len({v.datatake.date() for v in planet.s2_ids(tile).values() if v.datatake.year == 2025}) == 8
    by_orbit = Counter((s.orbit_state, s.start.year, s.epsg) for s in planet.s1_ids().values())
    assert by_orbit == {
        ("ascending", 2024, 32632): 13,  # one date is two slices
        ("descending", 2024, 32633): 12,
        ("ascending", 2025, 32632): 3,
        ("descending", 2025, 32633): 3,
    }


def test_what_is_clear_is_what_the_scene_classes_say(planet):
    for tile in TILES:
        row, col, _, width = planet.island(tile)
        for id_ in planet.s2_ids(tile):
            scl = optical(planet, tile, id_, "SCL").repeat(2, 0).repeat(2, 1)
            clear = planet.clear(tile, id_)
            np.testing.assert_array_equal(clear, ~np.isin(scl, (0, 1, 2, 3, 8, 9)))
        window = (row - 3, col + 5, 9, width)
        np.testing.assert_array_equal(planet.clear(tile, id_, window)[3:, : width - 5], clear[:6, 5:])
        assert not planet.clear(tile, id_, window)[:3].any()


def test_bands_and_classes_end_at_the_same_edges(planet):
    for tile in TILES:
        for id_ in list(planet.s2_ids(tile))[::6]:
            seen = optical(planet, tile, id_, "SCL") > 0
            for band in BANDS[:-1]:
                here = optical(planet, tile, id_, band) > 0
                wanted = seen if here.shape == seen.shape else seen.repeat(2, 0).repeat(2, 1)
                np.testing.assert_array_equal(here, wanted)


def test_cloud_cover_is_the_share_of_cloud_among_what_was_seen(planet):
    for id_ in planet.s2_ids("33TUL"):
        scl = optical(planet, "33TUL", id_, "SCL")
        share = 100 * np.isin(scl, (8, 9, 10)).sum() / (scl > 0).sum()
        properties = item_of(planet, S2, id_)["properties"]
        assert properties["eo:cloud_cover"] == pytest.approx(share, abs=1e-6)
        nodata = 100 * (1 - (scl > 0).sum() / 5490**2)
        assert properties["s2:nodata_pixel_percentage"] == pytest.approx(nodata, abs=1e-6)


def test_every_class_of_cloud_shadow_and_ground_occurs(planet):
    seen = Counter()
    for id_ in planet.s2_ids("32TQR"):
        seen.update(optical(planet, "32TQR", id_, "SCL").ravel().tolist())
    assert set(seen) >= {0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11}


def test_clouds_are_bright_and_shadows_dark_in_the_blue(planet):
    compared = Counter()
    for id_, visit in planet.s2_ids("32TQR").items():
        if visit.plain_snow:
            continue
        scl = optical(planet, "32TQR", id_, "SCL")
        blue = optical(planet, "32TQR", id_, "B02")[::2, ::2].astype(float)
        ground = blue[np.isin(scl, (4, 5, 6))]
        if ground.size > 50 and (scl == 9).sum() > 50:
            assert blue[scl == 9].min() > np.percentile(ground, 99)
            compared["cloud"] += 1
        if ground.size > 50 and (scl == 3).sum() > 50:
            assert blue[scl == 3].mean() < ground.mean()
            compared["shadow"] += 1
    assert min(compared["cloud"], compared["shadow"]) >= 3


def test_the_two_tiles_of_a_zone_have_the_same_pixels_but_for_one_date(planet):
    north, south = ({v.number: id_ for id_, v in planet.s2_ids(tile).items()} for tile in ("32TQR", "32TQQ"))
    (alone,) = set(north) - set(south)
    assert planet.optical[alone].datatake.date() == passes.ONLY_NORTH
    assert set(south) < set(north)
    for number in list(south)[::4]:
        for band in ("B04", "B11", "SCL"):
            np.testing.assert_array_equal(
                optical(planet, "32TQR", north[number], band), optical(planet, "32TQQ", south[number], band)
            )


def test_both_zones_see_the_same_ground(planet):
    row, col, height, width = planet.island("33TUL")
    lon, lat = lonlat_of("33TUL", *np.mgrid[row : row + height, col : col + width])
    x, y = to_crs(lon, lat, tile_of("32TQR").crs)
    top, left, down, across = planet.island("32TQR")
    i = np.floor((tile_of("32TQR").top_m - y) / 10).astype(int) - top
    j = np.floor((x - tile_of("32TQR").left_m) / 10).astype(int) - left
    inner = (i > 2) & (j > 2) & (i < down - 3) & (j < across - 3)
    there = planet.class_map("32TQR")
    around = np.stack([np.roll(there, (a, b), (0, 1)) for a in (-1, 0, 1) for b in (-1, 0, 1)])
    plain = (around == there).all(0)  # away from borders a neighbour's pixel centre has the same cover
    inner[inner] &= plain[i[inner], j[inner]]
    assert inner.sum() > 500
    # A thing narrower than a pixel may lie between the centres of one grid and on those of the other.
    assert (planet.class_map("33TUL")[inner] == there[i[inner], j[inner]]).mean() > 0.998


def test_one_corner_is_never_clear_and_another_has_no_radar(planet):
    for tile in TILES:
        inside = planet.class_map(tile) > 0
        counts = planet.observations(tile, 2024)
        never = inside & (counts == 0)
        assert 10 < never.sum() < 0.1 * inside.sum()
        rows, cols = np.nonzero(never)
        assert rows.max() < inside.shape[0] / 3 and cols.min() > inside.shape[1] / 2
        assert counts.max() > 15
    for id_ in planet.s1_ids():
        data = radar(planet, id_, "vv")
        low, left = -len(data) // 25, len(data) // 25
        assert (data[low:, :left] == -32768).all()
    seen = optical(planet, "32TQR", next(iter(planet.s2_ids("32TQR"))), "B04")
    assert (seen[-3:, :3] > 0).all()


def test_a_swath_edge_cuts_the_island_of_the_western_orbit(planet):
    orbits = Counter()
    for id_, visit in planet.s2_ids("32TQR").items():
        seen = (optical(planet, "32TQR", id_, "B04") > 0).mean()
        if visit.orbit == 22:
            assert 0.5 < seen < 0.9
        elif not visit.part:
            assert seen > 0.9
        orbits["western" if visit.orbit == 22 else "other"] += not visit.part
    assert min(orbits["western"], orbits["other"]) >= 3


def test_the_overcast_day_is_all_cloud(planet):
    (id_,) = of_day(planet, "32TQR", passes.OVERCAST)
    assert item_of(planet, S2, id_)["properties"]["eo:cloud_cover"] == 100
    assert not planet.clear("32TQR", id_).any()


def test_the_halves_of_a_datatake_share_some_columns(planet):
    west, east = of_day(planet, "32TQR", passes.HALVES)
    one, other = (optical(planet, "32TQR", id_, "B04") for id_ in (west, east))
    both = (one > 0) & (other > 0)
    assert 2 <= both.any(0).sum() <= 8
    assert ((one > 0) | (other > 0)).mean() > 0.95
    assert (one[both] != other[both]).any()
    records = [item_of(planet, S2, id_)["properties"] for id_ in (west, east)]
    assert len({r["s2:datatake_id"] for r in records}) == 1
    assert records[0]["datetime"] < records[1]["datetime"]


def test_a_reprocessed_product_is_newer_and_otherwise_the_same_datatake(planet):
    old, new = of_day(planet, "33TUL", passes.REPROCESSED)
    one, other = (item_of(planet, S2, id_) for id_ in (old, new))
    assert one["geometry"] == other["geometry"]
    for field in ("s2:processing_baseline", "s2:generation_time"):
        assert one["properties"][field] < other["properties"][field]
    takes = [r["properties"]["s2:datatake_id"].rsplit("_", 1)[0] for r in (one, other)]
    assert takes[0] == takes[1]
    clear = planet.clear("33TUL", old) & planet.clear("33TUL", new)
    drift = optical(planet, "33TUL", old, "B08")[clear].astype(float) - optical(planet, "33TUL", new, "B08")[clear]
    assert np.median(drift) > 0


def test_two_slices_share_a_strip_and_one_scene_has_no_vh(planet):
    first, second = (id_ for id_, s in planet.s1_ids().items() if s.start.date() == passes.SLICES)
    one, other = (radar(planet, id_, "vv") > 0 for id_ in (first, second))
    assert 2 <= (one & other).any(1).sum() <= 12
    assert one.any() and other.any() and not (one == other).all()
    (empty,) = (id_ for id_, s in planet.s1_ids().items() if s.without_vh)
    assert (radar(planet, empty, "vh") == -32768).all()
    assert (radar(planet, empty, "vv") > 0).any()


def test_speckle_is_that_of_four_looks(planet):
    """The ratio of power and its mean has mean 1 and variance 1/4 (gamma distribution of order 4)."""
    id_, scene = next((i, s) for i, s in planet.s1_ids().items() if s.epsg == 32632)
    row, col, height, width = planet.island("32TQR")
    x = tile_of("32TQR").left_m + 10 * (col + np.arange(width)) + 5 - 774_500
    y = tile_of("32TQR").top_m - 10 * (row + np.arange(height)) - 5 - 4_997_740
    u, v = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
    mean = backscatter(land(u, v), scene.start.date(), descending=False)[..., 0]
    seen = radar(planet, id_, "vv")
    ratio = (seen / mean)[seen > 0]
    # 4,000 values: the mean is known to 0.008, the variance to 0.01 (one deviation each).
    assert ratio.mean() == pytest.approx(1, abs=0.04)
    assert ratio.var() == pytest.approx(0.25, abs=0.05)
