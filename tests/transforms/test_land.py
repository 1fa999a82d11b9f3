import importlib.resources
import itertools

import numpy as np
import pyarrow.parquet as pq
import pytest

from model.errors import BadInput
from transforms import grid, land, land_table
from transforms.land import land_fraction, land_tiles

TABLE = importlib.resources.files("transforms").joinpath("data/land.parquet")
SEA = np.zeros((1800, 3600), bool)  # a globe in cells of 0.1 degrees


def test_the_packaged_table_is_small_and_names_tiles_of_the_grid():
    with TABLE.open("rb") as file:
        table = pq.read_table(file)
    assert len(TABLE.read_bytes()) < 500_000
    names = table["tile"].to_pylist()
    assert names == sorted(set(names)) and set(names) <= set(grid.all_names())
    assert all(0 < share <= 1 for share in table["land"].to_pylist())
    assert table.schema.metadata == {b"format": b"tessera-beam/land", b"version": b"1"}


def test_land_tiles_are_as_many_as_others_count():
    # 40 by 40 samples of the same mask give 20,149 with any land, 19,377 above 1 % and 16,432 above half of it.
    assert 20_149 <= len(land_tiles(south_of_60=True)) < 20_149 * 1.03
    assert len(land_tiles(0.01, south_of_60=True)) == pytest.approx(19_377, rel=0.003)
    assert len(land_tiles(0.5, south_of_60=True)) == pytest.approx(16_432, rel=0.001)


@pytest.mark.parametrize(
    ("lon", "lat", "least", "most"),
    [
        (15.5, 45.5, 1, 1),  # Croatia, inland
        (-30.0, 30.0, 0, 0),  # the Atlantic
        (-5.7, -15.97, 0.001, 0.1),  # Saint Helena, 122 km2
        (3.36, -54.42, 0.0005, 0.1),  # Bouvet Island, 49 km2
        (33.0, -1.0, 1, 1),  # Lake Victoria: lakes are land
    ],
)
def test_shares_are_those_of_known_places(lon, lat, least, most):
    shares = [land_fraction(tile.name) for tile in grid.tiles_at(lon, lat)]
    assert shares and all(least <= share <= most for share in shares)


def test_antarctica_is_left_out_unless_asked_for():
    everything, usual = land_tiles(south_of_60=True), land_tiles()
    assert set(usual) < set(everything)
    assert all(grid.bbox_of(name)[3] < -59.9 for name in set(everything) - set(usual))
    assert all(grid.bbox_of(name)[3] > -60.1 for name in usual if name[2] < "F")


def test_a_greater_share_of_land_keeps_fewer_tiles():
    kept = [set(land_tiles(share)) for share in (0, 0.01, 0.5, 1)]
    assert all(more > fewer for more, fewer in itertools.pairwise(kept))
    assert all(land_fraction(name) == 1 for name in kept[-1])


def test_what_is_no_share_or_no_tile_is_refused():
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(BadInput, match=f"least share of land {share}: it must lie between 0 and 1"):
            land_tiles(share)
    with pytest.raises(BadInput, match="nearest name is 33TWL"):
        land_fraction("33twl")


def test_a_table_reads_back_and_newer_or_other_ones_are_refused():
    table = land.table_of({"33TWL": 0.5, "01CCV": 0.25, "33TXL": 0.0})
    assert land.fractions_of(table) == {"01CCV": 0.25, "33TWL": 0.5}
    newer = table.replace_schema_metadata({"format": land.FORMAT, "version": "2"})
    with pytest.raises(BadInput, match="land table version 2: this release reads version 1"):
        land.fractions_of(newer)
    with pytest.raises(BadInput, match="not a tessera-beam/land table"):
        land.fractions_of(table.replace_schema_metadata({}))


def test_a_tile_in_the_sea_is_left_out_and_one_on_land_is_all_land():
    tiles = [grid.tile_of(name) for name in ("33TWL", "01WCQ", "24XWR")]
    assert list(land_table.fractions(SEA, tiles)) == []
    assert list(land_table.fractions(~SEA, tiles)) == [(tile.name, 1.0) for tile in tiles]


@pytest.mark.parametrize("name", ["33TWL", "01WCQ", "60KXG", "35MNM", "24XWR"])
def test_the_share_is_that_of_the_samples_on_land(name):
    rng = np.random.default_rng(7)
    mask = rng.random(SEA.shape) < 0.5
    tile = grid.tile_of(name)
    ((_, share),) = land_table.fractions(mask, [tile])
    places = (np.arange(200) + 0.5) * grid.TILE_PX / 200 - 0.5
    lon, lat = grid.lonlat_of(tile, places[:, None], places[None, :])
    exact = mask[((90 - lat) * 10).astype(int), ((lon + 180) * 10).astype(int) % 3600].mean()
    assert share == pytest.approx(exact, abs=0.002)  # interpolated coordinates move a few samples over a cell's edge


def test_land_within_one_cell_of_a_tile_keeps_it_with_the_least_share():
    tile = grid.tile_of("33TWL")
    west, south, _, north = grid.bbox_of(tile)
    west += 0.5 / land_table.SAMPLES  # the first samples lie half a step inside
    row = int((90 - (south + north) / 2) * 10)
    for cells_west, kept in ((1, [("33TWL", land_table.LEAST)]), (2, [])):
        mask = SEA.copy()
        mask[row, int((west + 180) * 10) - cells_west] = True
        assert list(land_table.fractions(mask, [tile])) == kept


def test_dilation_joins_east_and_west_but_not_the_poles():
    mask = np.zeros((6, 8), bool)
    mask[0, 0] = True
    want = np.zeros((6, 8), bool)
    want[np.ix_([0, 1], [7, 0, 1])] = True
    np.testing.assert_array_equal(land_table.dilated(mask), want)


@pytest.mark.long
@pytest.mark.slow  # the mask and its dilation take 3 GB
def test_the_packaged_table_is_what_its_maker_gives():
    globe = pytest.importorskip("global_land_mask", reason="the land mask is in the dev extra").globe
    names = [*grid.all_names()[::4000], "33TTG", "01NEB", "17LPL", "31XFH", "60GYV"]
    made = dict(land_table.fractions(~globe._mask, [grid.tile_of(n) for n in names if grid.exists(n)]))
    assert 5 < len(made) < len(names)
    for name in filter(grid.exists, names):
        assert land_fraction(name) == pytest.approx(made.get(name, 0.0), abs=1e-7)
