"""Searches by a tile's name in place of its box: fewer requests, and never an item less."""

import datetime as dt

import pytest
from faulty_api import faulty_api, status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stac_items import optical

from model.profile import ES_C1
from transforms import grid
from transforms.catalogs.api import ApiCatalog
from transforms.catalogs.exchange import Patience
from transforms.catalogs.items import tile_id
from transforms.catalogs.registry import BY_NAME
from transforms.periods import period_of

TILE = grid.tile_of("33TWL")
YEAR = period_of("2024")
TILES = ("33TWL", "33TVL", "33TXL", "33TWM", "33TWK", "33TVM")  # those around it overlap its box
CODE = BY_NAME[ES_C1].tile
FAST = Patience(tries=3, first_s=0, answer_s=30)


def item(n, tile="33TWL", code="MGRS-33TWL", month=None):
    day = f"2024-{month or 1 + n % 12:02d}-{1 + n % 28:02d}"
    made = optical(ES_C1, id=f"S2A_{tile}_{n:03d}_L2A", datetime=f"{day}T10:00:00Z")
    west, south, east, north = grid.footprint(tile).bounds
    made["bbox"] = [west, south, east, north]
    made["geometry"] = None
    made["properties"][CODE] = code
    if code is None:
        del made["properties"][CODE]
    for asset in made["assets"].values():
        asset["href"] = f"HERE/files/{n}/{asset['href'].removeprefix('./')}"
    return made


def around(n_each=12):
    return [item(100 * k + n, tile, f"MGRS-{tile}") for k, tile in enumerate(TILES) for n in range(n_each)]


def found(items, period=YEAR, tile=TILE, **ways):
    """Ids that a search of the tile gives of the tile itself, and the bodies that the server was asked."""
    with faulty_api(items) as (url, api):
        api.page = 100
        for name, way in ways.items():
            setattr(api, name, way)
        catalog = ApiCatalog(url, url, "earth-search")
        got = [f.item for f in catalog.items(tile, period)]
    return sorted(i["id"] for i in got if f"_{tile.name}_" in i["id"]), api.searches


def ours(items, tile="33TWL"):
    return sorted(i["id"] for i in items if f"_{tile}_" in i["id"])


def test_a_year_of_a_tile_takes_two_counts_and_one_search_and_brings_no_neighbour():
    items = around()
    with faulty_api(items) as (url, api):
        api.page, api.query = 100, "yes"
        got = [f.item["id"] for f in ApiCatalog(url, url, "earth-search").items(TILE, YEAR)]
    assert sorted(got) == ours(items)
    assert [b["limit"] for b in api.searches] == [1, 1, 100]
    boxed, searches = found(items)
    assert boxed == ours(items) and len(searches) == 12


def test_names_without_their_first_zero_are_found_too():
    tile = grid.tile_of("01WCQ")
    items = [item(n, "01WCQ", code) for n, code in enumerate(("MGRS-01WCQ", "MGRS-1WCQ", "MGRS-1WCQ"))]
    for n, made in enumerate(items):
        made["bbox"] = list(grid.footprint(tile).geoms[n % 2].bounds)
    got, searches = found(items, tile=tile, query="yes")
    assert got == ours(items, "01WCQ") and any("MGRS-1WCQ" in str(b.get("query")) for b in searches)


@pytest.mark.parametrize(
    "ways",
    [
        {"query": "ignored"},
        {"query": "refused"},
        {"query": "yes", "counts": False},
        {"query": "yes", "matched": lambda n: n + 1 if n > 60 else n},  # of the whole box, one too many
        {"query": "yes", "fault": lambda body, _: status(500) if "query" in body else None},
        {"query": "yes", "fault": lambda body, _: status(501) if "query" in body else None},
        {"query": "yes", "window": 30},
    ],
)
def test_where_the_server_does_not_do_as_it_says_the_box_is_searched(ways, monkeypatch):
    monkeypatch.setattr("transforms.catalogs.api.PATIENCE", FAST)
    items = around()
    got, searches = found(items, **ways)
    assert got == ours(items)
    assert sum("query" not in b and b["limit"] == 100 for b in searches) >= 12


@pytest.mark.parametrize("code", [None, "33TWL", "T33TWL", "mgrs-33TWL", ["MGRS-33TWL"], "MGRS-10SEG"])
@pytest.mark.parametrize("how_many", [1, 12])
def test_items_that_name_their_tile_in_another_way_are_not_lost(code, how_many):
    items = around() + [item(900 + n, code=code) for n in range(how_many)]
    got, _ = found(items, query="yes")
    assert got == ours(items)


def test_a_tile_of_which_nothing_is_named_is_searched_by_its_box():
    items = [item(n, code=None) for n in range(5)]
    got, _ = found(items, query="yes")
    assert got == ours(items)


def test_few_months_are_searched_by_the_box():
    _, searches = found(around(), period_of("2024-03-01/2024-05-31"), query="yes")
    assert len(searches) == 3 and not any("query" in b for b in searches)


def test_a_server_that_was_wrong_once_is_not_asked_that_way_again():
    with faulty_api(around()) as (url, api):
        api.page, api.query = 100, "ignored"
        catalog = ApiCatalog(url, url, "earth-search")
        for _ in range(3):
            list(catalog.items(TILE, YEAR))
    assert len(api.searches) == 3 + 3 * 12


def test_a_heavy_year_is_asked_for_in_halves():
    def fault(body, _):
        first, last = (dt.datetime.fromisoformat(t) for t in body["datetime"].split("/"))
        return status(502) if body["limit"] > 1 and (last - first).days > 100 else None

    items = around()
    got, searches = found(items, query="yes", fault=fault)
    assert got == ours(items) and all("query" in b for b in searches if b["limit"] > 1)


CODES = st.sampled_from(["MGRS-33TWL", "33TWL", None, "MGRS-33TVL", "MGRS-33TWM", "", "MGRS-1"])


@given(st.lists(st.tuples(CODES, st.sampled_from(["33TWL", "33TVL"])), min_size=1, max_size=25), st.booleans())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_items_say_of_their_tile_the_name_finds_what_the_box_finds(said, counts):
    """Of the items whose tile is this one by the rule of `items.tile_id`."""
    items = [item(n, tile, code) for n, (code, tile) in enumerate(said)]
    for made in items:
        made["bbox"] = list(grid.footprint("33TWL").bounds)

    def of_tile(**ways):
        with faulty_api(items) as (url, api):
            api.page = 100
            for name, way in ways.items():
                setattr(api, name, way)
            got = list(ApiCatalog(url, url, "earth-search").items(TILE, YEAR))
        return sorted(f.item["id"] for f in got if tile_id(f.item, f.source) == "33TWL")

    assert of_tile(query="yes", counts=counts) == of_tile()
