import copy
import datetime as dt
import itertools
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stac_items import ALL_BANDS, REAL, SHARED, TILE, optical, radar, real_items, record, ring, scene

from model.errors import BadInput
from model.profile import ES_C1, ES_L2A, PC_L2A, PC_RTC
from transforms import grid
from transforms.catalogs.api import months_of
from transforms.catalogs.hrefs import resolve, stored, unsigned
from transforms.catalogs.items import datetime_of, item_boxes, record_of, tile_id
from transforms.catalogs.registry import BY_NAME, source_of
from transforms.catalogs.search import items_of, open_catalog
from transforms.catalogs.selection import select
from transforms.periods import period_of
from transforms.scenes import S1, S2

MPC = SHARED / "golden/scenes_mpc"
real = pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/real-data")
golden = pytest.mark.skipif(not MPC.is_dir(), reason="no ../shared/golden")

# --- real records


@real
@pytest.mark.parametrize(
    ("name", "tile", "baseline", "offset_dn", "words"),
    [
        ("earth-search-S2A_33TWN_20161202_0_L2A.json", "33TWN", "00.01", 0, "is false; baseline 00.01 is older"),
        ("earth-search-S2A_33TWN_20190707_1_L2A.json", "33TWN", "02.12", 0, "is false; baseline 02.12 is older"),
        ("earth-search-S2A_33TWN_20210629_0_L2A.json", "33TWN", "03.00", 0, "is false; baseline 03.00 is older"),
        ("earth-search-S2B_33TWN_20220130_0_L2A.json", "33TWN", "04.00", 0, "is true"),
        (
            "earth-search-S2B_33TWN_20220226_0_L2A.json",
            "33TWN",
            "04.00",
            1000,
            "is false; baseline 04.00 is 04.00 or newer",
        ),
        ("earth-search-S2A_32TMS_20221207_0_L2A.json", "32TMS", "05.09", 0, "is true"),
    ],
)
def test_the_flag_decides_the_offset_of_real_earth_search_items_whatever_raster_bands_say(
    name, tile, baseline, offset_dn, words
):
    (item,) = real_items(name)
    got = scene(item, grid.tile_of(tile))
    assert (got.source, got.tile, got.baseline, got.offset_dn, got.kept) == (ES_L2A, tile, baseline, offset_dn, True)
    assert words in got.offset_reason
    assert [a.band for a in got.assets] == list(ALL_BANDS)
    assert all(a.href.startswith("https://sentinel-cogs.s3.us-west-2.amazonaws.com/") for a in got.assets)
    assert all(a.href.endswith(f"/{a.band}.tif") for a in got.assets)
    uri = item["properties"]["s2:product_uri"]
    assert f"_R{got.relative_orbit:03d}_" in uri and got.orbit == ""
    assert got.datetime == item["properties"]["datetime"]


@real
def test_real_collection_1_items_take_their_offset_from_their_own_metadata():
    got = [scene(i, grid.tile_of("13TDE")) for i in real_items("earth-search-sentinel-2-c1-l2a-13TDE.json")]
    assert len(got) == 10
    assert {(s.source, s.offset_dn, s.baseline, s.kept, s.platform[:10]) for s in got} == {
        (ES_C1, 1000, "05.10", True, "sentinel-2")
    }
    assert all(a.size_bytes > 0 and a.checksum.startswith("1220") for s in got for a in s.assets)


@real
def test_real_planetary_computer_items_become_scenes_of_their_tiles():
    for name in ("planetary-computer-sentinel-2-l2a.json", "planetary-computer-site2-35MNM.geojson"):
        for item in real_items(name):
            said = item["properties"]
            got = scene(item, grid.tile_of(said["s2:mgrs_tile"]))
            assert got.source == PC_L2A and got.kept
            assert got.offset_dn == (1000 if said["s2:processing_baseline"] >= "04.00" else 0)
            assert (got.orbit, got.relative_orbit) == (said["sat:orbit_state"], said["sat:relative_orbit"])
            assert all(a.href.startswith("https://sentinel2l2a01.blob.core.windows.net/") for a in got.assets)
            assert got.asset("B8A").transform[0] == 20 and got.asset("B8A").width_px == 5490


@real
def test_real_radar_items_become_scenes_of_the_tiles_they_reach_and_of_no_other():
    for item in real_items("planetary-computer-sentinel-1-rtc.json"):
        west, south, east, north = item["bbox"]
        under = grid.tiles_at((west + east) / 2, (south + north) / 2)
        for tile in under:
            got = scene(item, tile)
            assert (got.source, got.sensor, got.orbit, got.relative_orbit) == (PC_RTC, S1, "descending", 51)
            assert (got.kept, got.offset_dn, got.baseline, got.cloud_cover) == (True, 0, "", None)
            assert [a.band for a in got.assets] == ["VV", "VH"]
            assert got.asset("VV").size_bytes == item["assets"]["vv"]["file:size"]
            assert got.asset("VV").width_px == item["properties"]["proj:shape"][1]
        assert record(item, TILE) is None


@real
@pytest.mark.parametrize(
    ("name", "tile"), [("antimeridian-T01WCQ.json", "01WCQ"), ("antimeridian-T60VXH.json", "60VXH")]
)
def test_real_items_at_the_antimeridian_lie_where_their_tile_lies(name, tile):
    (item,) = real_items(name)
    got = record(item, grid.tile_of(tile), "earth-search")
    assert got.scene.tile == tile and got.scene.datetime.startswith("2023-0")
    # The footprint goes the wrong way round the Earth; turned, it lies on its tile.
    assert got.footprint.intersects(grid.footprint(tile))
    assert got.footprint.bounds[2] - got.footprint.bounds[0] < 5
    assert not got.scene.kept and got.scene.dropped_reason == "not a COG: B04 is a JPEG 2000 file"
    assert record(item, grid.tile_of("01WCR"), "earth-search") is None


@real
@pytest.mark.parametrize("provider", ["earth-search", "planetary-computer"])
def test_the_asset_keys_of_every_real_item_tell_its_provider(provider):
    items = [i for path in sorted(REAL.glob(f"{provider}-*json")) for i in real_items(path.name)]
    assert len(items) > 10 and {source_of(i).provider for i in items} == {provider}


# --- which source, which offset


def test_a_collection_of_two_providers_without_telling_assets_asks_for_as():
    item = optical()
    item["assets"] = {"B4": {"href": "x.tif"}}
    with pytest.raises(BadInput, match="--as earth-search or --as planetary-computer or --as cdse"):
        source_of(item)
    assert source_of(item, "earth-search").name == ES_L2A
    assert source_of(item, "planetary-computer").name == PC_L2A


def test_a_collection_that_is_nobodys_has_no_source():
    assert source_of({**optical(), "collection": "landsat-c2-l2"}) is None
    assert source_of(radar(), "earth-search") is None


@pytest.mark.parametrize(
    ("source", "said", "dn"),
    [
        (PC_L2A, {"s2:processing_baseline": "03.01"}, 0),
        (PC_L2A, {"s2:processing_baseline": "04.00"}, 1000),
        (PC_L2A, {"s2:processing_baseline": "05.10", "datetime": "2016-05-06T10:00:00Z"}, 1000),  # T7: not by date
        (PC_L2A, {"s2:processing_baseline": "03.01", "datetime": "2022-03-01T10:00:00Z"}, 0),
        (PC_L2A, {"s2:processing_baseline": "04.00", "datetime": "2022-01-25T10:00:00Z"}, 1000),
        (PC_L2A, {"s2:processing_baseline": None, "s2:product_uri": "S2A_MSIL2A_20240506T1_N0400_R122_T.SAFE"}, 1000),
        (PC_L2A, {"s2:processing_baseline": None}, None),
        (ES_L2A, {"earthsearch:boa_offset_applied": True}, 0),
        (ES_L2A, {"earthsearch:boa_offset_applied": False}, 1000),
        (ES_L2A, {"earthsearch:boa_offset_applied": False, "s2:processing_baseline": "03.01"}, 0),
        (ES_L2A, {"s2:processing_baseline": "03.01"}, 0),
        (ES_L2A, {}, None),  # nobody knows whether it was applied
        (ES_L2A, {"earthsearch:boa_offset_applied": False, "s2:processing_baseline": None}, None),
        (ES_C1, {}, 1000),
        (ES_C1, {"s2:processing_baseline": "03.01"}, 1000),  # its metadata are truthful
    ],
)
def test_the_offset_follows_provider_flag_and_baseline_and_an_unknown_one_drops_the_scene(source, said, dn):
    got = scene(optical(source, **said))
    assert got.source == source
    assert got.kept == (dn is not None) and got.offset_dn == (dn or 0) and got.offset_reason
    assert got.dropped_reason.startswith("no offset: ") == (dn is None)


@pytest.mark.parametrize(
    ("bands", "dn"),
    [
        ([{"scale": 0.0001, "offset": 0}], 0),
        ([{"scale": 0.0001, "offset": -0.05}], None),
        ([{"scale": 0, "offset": -0.1}], None),
        ([{}], None),
        ("nonsense", None),
    ],
)
def test_collection_1_is_believed_only_where_its_scale_and_offset_make_sense(bands, dn):
    item = optical(ES_C1)
    for asset in item["assets"].values():
        asset["raster:bands"] = bands
    got = scene(item)
    assert got.kept == (dn is not None) and got.offset_dn == (dn or 0)
    item["assets"]["red"]["raster:bands"] = [{"scale": 0.0001, "offset": -0.1}]
    assert not scene(item).kept, "bands of one scene that disagree"


# --- what keeps a scene out


@pytest.mark.parametrize(
    ("cloud", "kept"), [(0, True), (99.9999, True), (100, False), (100.0, False), (None, False), ("5", False)]
)
def test_only_scenes_below_100_percent_cloud_that_say_so_are_kept(cloud, kept):
    got = scene(optical(**{"eo:cloud_cover": cloud}))
    assert got.kept == kept and got.dropped_reason.startswith("cloud cover: ") != kept


@pytest.mark.parametrize("source", [PC_L2A, ES_C1])
@pytest.mark.parametrize("band", ALL_BANDS)
def test_a_missing_band_or_one_without_href_drops_the_scene_by_name(source, band):
    item = optical(source)
    key = BY_NAME[source].keys[band]
    if source == ES_C1 and band != "SCL":
        item["assets"][key] = {"raster:bands": [{"scale": 0.0001, "offset": -0.1}]}
    else:
        del item["assets"][key]
    got = scene(item)
    assert not got.kept and got.dropped_reason.startswith(f"no band {band}: ")
    assert len(got.assets) == 10


@pytest.mark.parametrize("key", ["vv", "vh"])
def test_a_radar_item_without_either_polarisation_is_dropped_whole(key):
    item = radar()
    del item["assets"][key]
    got = scene(item)
    assert not got.kept and got.dropped_reason.startswith(f"no band {key.upper()}: ")


@pytest.mark.parametrize("orbit", [None, "", "unknown", 3])
def test_a_radar_item_without_an_orbit_direction_is_dropped_with_a_reason(orbit):
    got = scene(radar(**{"sat:orbit_state": orbit}))
    assert not got.kept and got.dropped_reason.startswith("no orbit: ") and got.orbit == ""


def test_jp2_assets_and_their_earth_search_twins_are_never_used():
    item = optical(ES_L2A, **{"earthsearch:boa_offset_applied": True})
    item["assets"] |= {f"{k}-jp2": {**v, "href": f"s3://sentinel-s2-l2a/{k}.jp2"} for k, v in item["assets"].items()}
    got = scene(item)
    assert got.kept and all(a.href.endswith(".tif") for a in got.assets)
    item["assets"]["nir"]["href"] = "s3://sentinel-s2-l2a/tiles/B08.jp2"
    assert scene(item).dropped_reason == "not a COG: B08 is a JPEG 2000 file"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"proj:transform": [10, 0, TILE.left_m + 5, 0, -10, TILE.top_m]}, "off the tile's 10 m grid"),
        ({"proj:transform": [60, 0, TILE.left_m, 0, -60, TILE.top_m]}, "pixels of 60 x 60 m"),
        ({"proj:epsg": 32632}, "EPSG:32632"),
    ],
)
def test_an_optical_file_off_its_tiles_grid_is_a_wrong_record(change, words):
    item = optical()
    item["assets"]["B04"] |= change
    got = scene(item)
    assert not got.kept and got.dropped_reason.startswith("wrong grid: ") and words in got.dropped_reason


# --- grids


@pytest.mark.parametrize("level", ["asset", "item"])
@pytest.mark.parametrize("crs", [{"proj:epsg": 32633}, {"proj:code": "EPSG:32633"}])
@pytest.mark.parametrize("length", [6, 9])
def test_grids_are_found_on_asset_or_item_in_either_version_of_the_extension(level, crs, length):
    item = radar()
    for key in ("proj:epsg", "proj:shape", "proj:transform"):
        del item["properties"][key]
    said = {"proj:shape": [900, 800], "proj:transform": [10, 0, 500_000, 0, -10, 5_090_000, 0, 0, 1][:length], **crs}
    if level == "item":
        item["properties"] |= said
    else:
        item["assets"]["vv"] |= said
        item["assets"]["vh"] |= said
    got = scene(item).asset("VV")
    assert (got.epsg, got.height_px, got.width_px) == (32633, 900, 800)
    assert got.transform == (10, 0, 500_000, 0, -10, 5_090_000)


def test_an_assets_own_grid_counts_before_the_items():
    item = optical()
    item["properties"] |= {"proj:shape": [1, 1], "proj:transform": [1, 0, 0, 0, -1, 0]}
    item["assets"]["B04"] |= {"proj:shape": [144, 88], "proj:transform": [10, 0, 503_320, 0, -10, 5_098_360]}
    got = scene(item)
    assert got.kept and (got.asset("B04").height_px, got.asset("B04").width_px) == (144, 88)


@pytest.mark.parametrize(
    "change",
    [
        {"proj:epsg": None},
        {"proj:transform": None},
        {"proj:transform": [10, 0, 1, 0, -10]},
        {"proj:transform": [10, 0, "x", 0, -10, 0]},
        {"proj:transform": [10, 1, 0, 0, -10, 0]},
        {"proj:transform": [10, 0, 0, 0, 10, 0]},
        {"proj:shape": None},
        {"proj:shape": [0, 5]},
        {"proj:shape": [5]},
    ],
)
def test_a_file_whose_place_is_not_said_drops_its_scene(change):
    item = radar()
    item["properties"] |= change
    assert scene(item).dropped_reason.startswith("no grid: VV ")


# --- which tile


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({"grid:code": "MGRS-33TWL"}, "33TWL"),
        ({"grid:code": "MGRS-1WCQ"}, "01WCQ"),
        ({"mgrs:utm_zone": 1, "mgrs:latitude_band": "W", "mgrs:grid_square": "CQ"}, "01WCQ"),
        ({}, ""),
        ({"grid:code": 7}, ""),
    ],
)
def test_tile_names_are_padded_and_read_from_either_field(said, name):
    assert tile_id({"properties": said}, BY_NAME[ES_C1]) == name


def test_an_optical_item_belongs_to_the_tile_it_names_and_not_to_those_it_overlaps():
    assert record(optical(tile="33TWL")) is not None
    assert record(optical(tile="33TWM")) is None


@pytest.mark.parametrize(
    ("epsg", "left_m", "meets"),
    [
        (32633, TILE.left_m + 109_790, True),  # the last column of pixels
        (32633, TILE.left_m + 109_800, False),
        (32633, TILE.left_m - 150_000, False),
        (32633, TILE.left_m - 149_990, True),
        (32632, 880_000, True),  # the tile's western edge lies at 965 km east in the neighbour's zone
        (32632, 800_000, False),
    ],
)
def test_a_radar_scene_is_of_a_tile_when_its_file_reaches_into_it(epsg, left_m, meets):
    assert (record(radar(epsg=epsg, left_m=left_m)) is not None) == meets


def test_a_radar_scene_whose_bbox_goes_the_wrong_way_round_is_found_at_the_antimeridian():
    tile = grid.tile_of("01WCQ")
    west, south, east, north = grid.bbox_of(tile)
    assert west > east
    item = radar(epsg=tile.epsg, left_m=tile.left_m, top_m=tile.top_m)
    for bbox in ([west, south, east, north], [east, south, west, north], [-180, south, 180, north]):
        item["bbox"] = bbox
        assert record(item, tile) is not None, bbox
    item["bbox"] = [0, south, 10, north]
    assert record(item, tile) is None


def test_boxes_come_from_three_dimensions_and_from_geometry_too():
    assert item_boxes({"bbox": [1, 2, 0, 3, 4, 9]}) == [(1, 2, 3, 4)]
    assert item_boxes({"geometry": {"type": "Polygon", "coordinates": [ring(1, 2, 3, 4)]}}) == [(1, 2, 3, 4)]
    assert item_boxes({"geometry": {"type": "Polygon", "coordinates": "?"}}) == []


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"datetime": "2024-01-01T01:30:00+02:00"}, "2023-12-31T23:30:00+00:00"),
        ({"datetime": "2024-01-01T01:30:00.5"}, "2024-01-01T01:30:00.500000+00:00"),
        ({"datetime": None, "start_datetime": "2024-01-01 01:30:00Z"}, "2024-01-01T01:30:00+00:00"),
    ],
)
def test_times_are_utc(said, text):
    assert datetime_of({"properties": said}).isoformat() == text


def test_an_item_without_time_is_no_scene():
    assert record(optical(datetime="soon")) is None


# --- duplicates and order


def product(id, baseline, hours, share=(0.0, 1.0), datatake="GS2A_20240506T100000_046000", source=PC_L2A, **said):
    """A product of a datatake over a part of the tile, from west to east."""
    item = optical(
        source,
        id=id,
        **{
            "s2:processing_baseline": baseline,
            "s2:generation_time": f"2024-05-07T{hours:02d}:00:00Z",
            "s2:datatake_id": datatake and f"{datatake}_N{baseline}",
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


def test_a_datatake_that_two_catalogues_hold_is_observed_once():
    assert kept([product("a", "05.10", 1, source=ES_L2A), product("b", "05.10", 1, source=ES_C1)]) == {"b"}


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


MANY = [
    *(product(f"p{b}{h}{n}", b, h, share) for b in ("02.12", "05.10") for h in (1, 2) for n, share in
      enumerate([(0, 1), (0, 0.5), (0.5, 1)])),
    *(record(radar(id=f"r{n}", datetime=f"2024-05-0{n % 3 + 1}T05:00:00Z")) for n in range(6)),
]  # fmt: skip


@settings(deadline=None)
@given(st.permutations(MANY), st.lists(st.sampled_from(MANY)))
def test_neither_the_order_of_a_listing_nor_items_on_two_pages_change_the_selection(order, again):
    assert select([*order, *again]) == select(MANY)


# --- hrefs


@pytest.mark.parametrize(
    ("href", "bare"),
    [
        ("https://h/a.tif?sv=2021&se=2024&sr=c&sig=abc%3D", "https://h/a.tif"),
        ("https://h/a.tif?X-Amz-Algorithm=A&X-Amz-Signature=ab", "https://h/a.tif"),
        ("https://h/a.tif?Expires=1&Signature=ab&Key-Pair-Id=K", "https://h/a.tif"),
        ("https://h/a.tif?token=ab#here", "https://h/a.tif"),
        ("https://h/a.tif?version=3&band=1", "https://h/a.tif?version=3&band=1"),
        ("a.tif?sig=1", "a.tif?sig=1"),
    ],
)
def test_signatures_are_not_stored_and_other_queries_are(href, bare):
    assert unsigned(href) == bare


@pytest.mark.parametrize(
    ("href", "root", "location", "kept"),
    [
        ("./a.tif", "/cat", "/cat/items/x/x.json", "items/x/a.tif"),
        ("../../a.tif", "/cat", "/cat/items/x/x.json", "a.tif"),
        ("/cat/deep/a.tif", "/cat", "/cat/x.json", "deep/a.tif"),
        ("file:///cat/a%20b.tif", "/cat", "/cat/x.json", "a b.tif"),
        ("https://h/a.tif?sig=1", "/cat", "/cat/x.json", "https://h/a.tif"),
        ("s3://bucket/a.tif", "/cat", "/cat/x.json", "s3://bucket/a.tif"),
        ("./a.tif", "http://h/v1", "http://h/v1/collections/c/items/x", "collections/c/items/a.tif"),
        ("http://h/v1/files/a.tif", "http://h/v1", "http://h/v1/collections/c/items/x", "files/a.tif"),
        ("http://h/files/a.tif", "http://h/v1", "http://h/v1/collections/c/items/x", "http://h/files/a.tif"),
    ],
)
def test_hrefs_are_kept_relative_to_the_catalogue_and_resolve_to_what_they_meant(href, root, location, kept):
    assert stored(href, location, root, "x") == kept
    if href.startswith("http"):
        assert resolve(root, kept) == unsigned(href)


@pytest.mark.parametrize(
    ("href", "root", "location"),
    [
        ("../../etc/passwd", "/cat", "/cat/x.json"),
        ("./../../cat2/a.tif", "/cat", "/cat/i/x.json"),
        ("/etc/passwd", "/cat", "/cat/x.json"),
        ("/category/a.tif", "/cat", "/cat/x.json"),
        ("//host/a.tif", "/cat", "/cat/x.json"),
        ("file:///etc/passwd", "/cat", "/cat/x.json"),
        ("file:///etc/passwd", "http://h/v1", "http://h/v1/items/x"),
        ("/vsicurl/http://h/a.tif", "/cat", "/cat/x.json"),
        ("ftp://h/a.tif", "/cat", "/cat/x.json"),
        ("https://user:word@h/a.tif", "/cat", "/cat/x.json"),
        ("a\n.tif", "/cat", "/cat/x.json"),
        ("../../../a.tif", "http://h/v1", "http://h/v1/collections/x"),
        ("%2e%2e/%2e%2e/secret", "http://h/v1", "http://h/v1/items/x"),
        (".", "/cat", "/cat/x.json"),
    ],
)
def test_hrefs_out_of_the_catalogue_are_refused_by_item_and_without_secrets(href, root, location):
    with pytest.raises(BadInput, match="item x: href") as e:
        stored(href, location, root, "x")
    assert "word" not in str(e.value)


@pytest.mark.parametrize("root", ["/cat", "https://h/cat"])
@pytest.mark.parametrize("href", ["../a.tif", "a/../../b.tif", "/etc/passwd", ""])
def test_resolving_never_leaves_the_root(root, href):
    if root.startswith("https") and href.startswith("/"):
        assert resolve(root, href).startswith("https://h/cat/")
        return
    with pytest.raises(BadInput, match="leads out of the catalogue"):
        resolve(root, href)


def test_a_link_in_the_catalogue_that_points_out_of_it_is_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "secret.tif").touch()
    (tmp_path / "cat/real.tif").touch()
    (tmp_path / "cat/a.tif").symlink_to("../secret.tif")
    (tmp_path / "alias").symlink_to("cat")
    with pytest.raises(BadInput, match="leads out"):
        resolve(str(tmp_path / "cat"), "a.tif")
    assert resolve(str(tmp_path / "alias"), "real.tif") == str(tmp_path / "alias/real.tif")


@settings(deadline=None)
@given(st.text("ab./\\%2e", max_size=12))
def test_what_is_stored_always_resolves_below_the_root(href):
    try:
        kept_ = stored(href, "/cat/items/x.json", "/cat", "x")
    except BadInput:
        return
    path = os.path.normpath(resolve("/cat", kept_))
    assert path.startswith("/cat/") and path == os.path.normpath(f"/cat/items/{href}")


# --- catalogues on disk


def write(folder, *items, name="item"):
    folder.mkdir(parents=True, exist_ok=True)
    for n, item in enumerate(items):
        (folder / f"{name}{n}.json").write_text(json.dumps(item))
    return folder


def found(catalog, period="2024", tiles=("33TWL",)):
    return sorted(f.item["id"] for _, f in items_of(catalog, [grid.tile_of(t) for t in tiles], period_of(period)))


ITEMS = [
    optical(id="here"),
    optical(id="elsewhere", tile="33TWM"),
    optical(id="before", datetime="2023-12-31T23:59:59.999Z"),
    optical(id="first", datetime="2024-01-01T00:00:00Z"),
    optical(id="last", datetime="2024-12-31T23:59:59.999Z"),
    optical(id="after", datetime="2025-01-01T00:00:00Z"),
    radar(id="near"),
    radar(id="far", left_m=200_000, top_m=6_000_000),
]
EXPECTED = ["first", "here", "last", "near"]


def test_a_folder_of_items_is_searched_with_everything_that_is_no_item_left_alone(tmp_path):
    write(tmp_path / "deep/er", *ITEMS[:4])
    write(tmp_path, *ITEMS[4:])
    (tmp_path / "roi.json").write_text('{"period": [1]}')
    (tmp_path / "number.json").write_text("3")
    catalog = open_catalog(str(tmp_path))
    assert found(catalog) == EXPECTED and catalog.span() == "2023-12-31..2025-01-01"


@pytest.mark.parametrize("wrap", [lambda items: items, lambda items: {"type": "FeatureCollection", "features": items}])
def test_a_file_of_many_items_is_a_catalogue(tmp_path, wrap):
    (tmp_path / "all.json").write_text(json.dumps(wrap(ITEMS)))
    assert found(open_catalog(str(tmp_path / "all.json"))) == EXPECTED
    assert found(open_catalog(str(tmp_path))) == EXPECTED


def test_a_list_of_item_paths_is_a_catalogue(tmp_path):
    write(tmp_path / "items", *ITEMS)
    paths = [f"items/item{n}.json" for n in range(len(ITEMS))]
    (tmp_path / "list.json").write_text(json.dumps({"sentinel-2-l2a": paths[:6], "sentinel-1-rtc": paths[6:]}))
    catalog = open_catalog(str(tmp_path / "list.json"))
    assert found(catalog) == EXPECTED and catalog.root == str(tmp_path)


def static(folder):
    """A static catalogue with a collection in between, links both ways, and one item that nobody links to."""
    write(folder / "s2/items", *ITEMS)
    (folder / "s2/items/item0.json").rename(folder / "s2/items/unlinked.json")
    links = [{"rel": "item", "href": f"./items/item{n}.json"} for n in range(1, len(ITEMS))]
    up = [{"rel": "parent", "href": "../catalog.json"}, {"rel": "child", "href": "../catalog.json"}]
    (folder / "s2/collection.json").write_text(json.dumps({"type": "Collection", "id": "c", "links": [*links, *up]}))
    links = [{"rel": "child", "href": "./s2/collection.json"}, {"rel": "self", "href": "https://h/catalog.json"}]
    (folder / "catalog.json").write_text(json.dumps({"type": "Catalog", "id": "r", "links": links}))
    return folder


def test_a_static_catalogue_is_what_its_links_reach_and_may_link_in_circles(tmp_path):
    static(tmp_path)
    assert found(open_catalog(str(tmp_path))) == ["first", "last", "near"]


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ({"rel": "item", "href": "./gone.json"}, "which is missing"),
        ({"rel": "child", "href": "../other/catalog.json"}, "leads out of the catalogue"),
        ({"rel": "item", "href": "https://h/item.json"}, "read from disk"),
    ],
)
def test_links_that_a_static_catalogue_cannot_have_are_refused(tmp_path, link, words):
    (tmp_path / "catalog.json").write_text(json.dumps({"type": "Catalog", "id": "r", "links": [link]}))
    with pytest.raises(BadInput, match=words):
        open_catalog(str(tmp_path))


def test_items_of_no_known_collection_are_counted_and_passed_over(tmp_path):
    write(tmp_path, *ITEMS, {**optical(), "collection": "landsat-c2-l2"})
    catalog = open_catalog(str(tmp_path))
    assert found(catalog) == EXPECTED and catalog.ignored == {"collection landsat-c2-l2": 1}
    catalog = open_catalog(str(tmp_path), "planetary-computer")
    assert found(catalog) == EXPECTED and catalog.ignored == {"collection landsat-c2-l2 of planetary-computer": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("erth-search", "no such folder, file or provider.*earth-search"),
        ("some/where", "some/where: no such folder or file"),
        ("items.json", "items.json: no such folder or file"),
    ],
)
def test_a_catalogue_that_is_not_there_is_refused_by_name(text, words):
    with pytest.raises(BadInput, match=words):
        open_catalog(text)


def test_a_provider_that_is_not_known_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(BadInput, match="--as google: this release knows earth-search, planetary-computer"):
        open_catalog(str(tmp_path), "google")
    with pytest.raises(BadInput, match="follows its own description"):
        open_catalog("earth-search", "planetary-computer")


def test_a_cut_item_is_refused_by_path_and_not_passed_over(tmp_path):
    write(tmp_path, optical())
    whole = (tmp_path / "item0.json").read_text()
    (tmp_path / "item0.json").write_text(whole[:-10])
    with pytest.raises(BadInput, match=r"item0\.json is not JSON"):
        open_catalog(str(tmp_path))


@pytest.mark.parametrize("text", ["3", "{}", '{"type": "Feature"}', '{"a": 1}'])
def test_a_file_that_is_no_catalogue_is_refused(tmp_path, text):
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(BadInput, match="neither a STAC catalogue, nor items, nor a list"):
        open_catalog(str(tmp_path / "f.json"))


@golden
@pytest.mark.parametrize("where", ["", "items", "catalogue.json"])
def test_the_golden_scenes_are_found_as_folder_and_as_list(where):
    catalog = open_catalog(str(MPC / where))
    ids = found(catalog, "2021-02-01/2022-01-31")
    listed = json.loads((MPC / "catalogue.json").read_text())
    assert ids == sorted(Path(p).stem for paths in listed.values() for p in paths)
    records = [record_of(f, TILE, catalog.root) for f in catalog.items(TILE, period_of("2021-02-01/2022-01-31"))]
    for asset in (a for r in records for a in r.scene.assets):
        assert Path(resolve(catalog.root, asset.href)).is_file()


# --- months


@pytest.mark.parametrize("period", ["2024", "2023-07-15/2024-07-14", "2024-02-29/2025-02-28", "2023-12-31/2024-12-30"])
def test_months_cover_the_period_without_a_gap(period):
    period = period_of(period)
    months = months_of(period)
    assert months[0][0] == f"{period.start}T00:00:00Z"
    assert months[-1][1] == f"{period.end + dt.timedelta(days=1)}T00:00:00Z"
    assert all(a[1] == b[0] and a[0] < a[1] for a, b in itertools.pairwise(months))
    assert len({a[:7] for a, _ in months}) == len(months)


def test_records_are_never_changed_by_reading_them():
    item = optical()
    before = copy.deepcopy(item)
    record(item)
    assert item == before
