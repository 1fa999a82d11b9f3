import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import BadInput
from pipeline.waves import TILES, chosen, waves_of, zone_of
from transforms.grid import all_names, tile_of, zone_tiles
from transforms.land import land_tiles

SOME = sorted(random.Random(5).sample([t.name for zone in (1, 31, 32, 33, 60) for t in zone_tiles(zone)], 300))


@given(st.sets(st.sampled_from(SOME)), st.integers(1, 400))
def test_every_tile_is_in_one_wave_and_a_zone_in_no_two(tiles, most):
    waves = waves_of(tiles, most)
    assert sorted(t for w in waves for t in w.tiles) == sorted(tiles)
    zones = [{zone_of(t) for t in w.tiles} for w in waves]
    assert all(one.isdisjoint(other) for n, one in enumerate(zones) for other in zones[:n])
    assert all(len(w.tiles) <= most or len(z) == 1 for w, z in zip(waves, zones, strict=True))
    assert all(len({z[-1] for z in found}) == 1 for found in zones), "north and south are never one wave"


@given(st.lists(st.sampled_from(SOME), min_size=1), st.randoms())
def test_the_same_tiles_give_the_same_waves_in_whatever_order_and_how_often_they_come(tiles, rng):
    shuffled = rng.sample(tiles, len(tiles)) + tiles[:1]
    assert waves_of(shuffled, 50) == waves_of(tiles, 50)


def test_the_zone_of_a_tile_is_that_of_its_coordinates():
    for name in all_names()[::97]:
        epsg = tile_of(name).epsg
        assert zone_of(name) == f"{epsg % 100:02d}{'N' if epsg < 32700 else 'S'}"


def test_northern_zones_come_first_and_from_west_to_east():
    names = [w.name for w in waves_of(["33TWL", "33KWP", "01CCV", "02XNF", "60WWT"], most_tiles=1)]
    assert names == ["zone-02N", "zone-33N", "zone-60N", "zone-01S", "zone-33S"]


def test_small_zones_are_joined_and_named_by_their_ends():
    (north, south) = waves_of(["33TWL", "34TBS", "40RBN", "33KWP"], most_tiles=3)
    assert (north.name, north.tiles) == ("zone-33N-40N", ("33TWL", "34TBS", "40RBN"))
    assert south.name == "zone-33S"


def test_a_planet_is_some_fifty_waves_of_like_sizes():
    waves = waves_of(land_tiles())
    sizes = [len(w.tiles) for w in waves]
    assert 40 < len(waves) < 60 and max(sizes) <= TILES and sorted(sizes)[len(sizes) // 4] > TILES / 2
    assert len({w.name for w in waves}) == len(waves)


def test_all_waves_or_those_that_are_named_in_our_order():
    waves = waves_of(["33TWL", "34TBS", "33KWP"], most_tiles=1)
    assert chosen(waves, "") == waves
    assert [w.name for w in chosen(waves, "zone-33S, zone-33N")] == ["zone-33N", "zone-33S"]


@pytest.mark.parametrize(
    ("asked", "first"), [("zone-35N", "zone-33N-36N"), ("zone-33", "zone-33N-36N"), ("18s", "zone-18S")]
)
def test_an_unknown_wave_is_refused_with_the_nearest_names(asked, first):
    waves = waves_of(["33TWL", "34TBS", "36RTU", "40RBN", "18LWQ"], most_tiles=3)
    with pytest.raises(BadInput, match=f"--waves {asked}: no wave of that name; the nearest: {first}"):
        chosen(waves, asked)


def test_what_is_no_tile_and_waves_of_nothing_are_refused():
    with pytest.raises(BadInput, match="tile 'Rome': names look like 33TWL"):
        waves_of(["Rome"])
    with pytest.raises(BadInput, match="waves of 0 tiles"):
        waves_of(["33TWL"], 0)
