import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stac_items import optical, radar, record, ring

from model.profile import CDSE_L2A, ES_C1, ES_L2A, OPERA_RTC, PC_L2A
from transforms.catalogs.registry import BY_NAME
from transforms.catalogs.selection import select
from transforms.scenes import S1, S2


def product(id, baseline, hours, share=(0.0, 1.0), datatake="GS2A_20240506T100000_046000", source=PC_L2A, **said):
    """A product of a datatake over a part of the tile, from west to east, in the words of its source."""
    words = BY_NAME[source]
    item = optical(
        source,
        id=id,
        **{
            words.baseline: baseline,
            words.generated: f"2024-05-07T{hours:02d}:00:00Z",
            words.datatake: datatake and f"{datatake}_N{baseline}",
            "earthsearch:boa_offset_applied": True,
        },
        **said,
    )
    west, south, east, north = item["bbox"]
    a, b = (west + (east - west) * s for s in share)
    item["geometry"]["coordinates"] = [ring(a, south, b, north)]
    return record(item)


def kept(records):
    return {s.id for s in select(records) if s.kept}


def test_of_a_datatake_the_newest_baseline_wins_then_the_newest_product():
    assert kept([product("a", "04.00", 3), product("b", "05.10", 1), product("c", "05.10", 2)]) == {"c"}


def test_the_halves_of_a_datatake_are_both_kept_whatever_their_baselines():
    west, east = product("w", "05.10", 1, (0, 0.55)), product("e", "04.00", 1, (0.45, 1))
    assert kept([west, east]) == {"w", "e"}
    assert kept([west, east, product("old", "02.12", 1)]) == {"w", "e"}, "what the halves cover together is a duplicate"
    west, east = product("w", "05.10", 1, (0, 0.47)), product("e", "05.10", 1, (0.53, 1))
    assert kept([west, east, product("old", "02.12", 1)]) == {"w", "e"}, "even where a gap lies between them"


@pytest.mark.parametrize(("east", "expected"), [(1.07, {"new", "old"}), (1.04, {"new"})])
def test_a_product_is_a_duplicate_where_another_covers_nine_tenths_of_its_ground(east, expected):
    # The older one lies from 0.5 to `east` of the tile's width, the newer one ends at 1: 88 % of it, or 93 %.
    assert kept([product("new", "05.10", 1), product("old", "04.00", 1, (0.5, east))]) == expected


def test_products_of_different_datatakes_are_no_duplicates():
    assert kept([product("a", "04.00", 1), product("b", "05.10", 1, datatake="GS2A_20240506T095000_046001")]) == {
        "a",
        "b",
    }


def test_without_a_datatake_id_platform_minute_and_orbit_tell():
    same = {"datatake": "", "sat:relative_orbit": 122}
    assert kept([product("a", "04.00", 1, **same), product("b", "05.10", 1, **same)]) == {"b"}
    other = same | {"sat:relative_orbit": 79}
    assert kept([product("a", "04.00", 1, **same), product("b", "05.10", 1, **other)]) == {"a", "b"}


def test_of_one_id_that_is_listed_twice_the_later_record_is_taken():
    old, new = (product("same", "05.10", hours, **{"eo:cloud_cover": float(hours)}) for hours in (1, 3))
    for listing in ([old, new], [new, old]):
        (scene,) = select(listing)
        assert scene.cloud_cover == 3


def test_a_datatake_that_two_catalogues_hold_is_observed_once():
    assert kept([product("a", "05.10", 1, source=ES_L2A), product("b", "05.10", 1, source=ES_C1)]) == {"b"}
    # The order of preference is the registry's, not that of names.
    assert kept([product("a", "05.10", 1, source=CDSE_L2A), product("b", "05.10", 1, source=PC_L2A)]) == {"b"}


def test_a_dropped_product_drops_no_other_and_a_duplicate_names_its_winner():
    cloudy = product("cloudy", "05.10", 1, **{"eo:cloud_cover": 100})
    a, b = product("a", "04.00", 1), product("b", "05.00", 1)
    scenes = {s.id: s for s in select([cloudy, a, b])}
    assert scenes["b"].kept and not scenes["a"].kept
    assert scenes["a"].dropped_reason.startswith("duplicate: b of ")


def test_scenes_are_ordered_by_time_upwards_for_s2_and_downwards_for_s1_ties_by_id():
    days = ["2024-05-06", "2024-05-02", "2024-05-06", "2024-05-09"]
    s2 = [
        record(optical(id=i, datetime=f"{d}T10:00:00Z", **{"s2:datatake_id": i}))
        for i, d in zip("bcad", days, strict=True)
    ]
    s1 = [record(radar(id=i, datetime=f"{d}T05:00:00Z")) for i, d in zip("bcad", days, strict=True)]
    got = [(s.sensor, s.order, s.id) for s in select([*s2, *s1])]
    assert got == [(S1, n, i) for n, i in enumerate("dabc")] + [(S2, n, i) for n, i in enumerate("cabd")]


def test_a_burst_that_is_listed_twice_keeps_its_first_place():
    def listed(id, place):
        found = record(radar(id=id))
        return dataclasses.replace(found, scene=dataclasses.replace(found.scene, source=OPERA_RTC, order=place))

    twice = [listed("first", 0), listed("second", 5), listed("first", 9)]
    for records in (twice, twice[::-1]):
        assert [(s.id, s.order) for s in select(records)] == [("first", 0), ("second", 1)]


MANY = [
    *(product(f"p{b}{h}{n}", b, h, share) for b in ("02.12", "05.10") for h in (1, 2) for n, share in
      enumerate([(0, 1), (0, 0.5), (0.5, 1)])),
    *(record(radar(id=f"r{n}", datetime=f"2024-05-0{n % 3 + 1}T05:00:00Z")) for n in range(6)),
]  # fmt: skip


@settings(deadline=None)
@given(st.permutations(MANY), st.lists(st.sampled_from(MANY)))
def test_neither_the_order_of_a_listing_nor_items_on_two_pages_change_the_selection(order, again):
    assert select([*order, *again]) == select(MANY)
