import copy

import pytest
from stac_items import ALL_BANDS, REAL, TILE, optical, radar, real_items, record, ring, scene

from model.errors import BadInput
from model.profile import ES_C1, ES_L2A, PC_L2A, PC_RTC
from transforms import grid
from transforms.catalogs.items import datetime_of, item_boxes, tile_id
from transforms.catalogs.registry import BY_NAME, source_of
from transforms.scenes import S1

real = pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/real-data")


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
        assert under
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
        ({"proj:transform": [10, 0, TILE.left_m, 0, -10, TILE.top_m - 5]}, "off the tile's 10 m grid"),
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


@pytest.mark.parametrize("shape", [[0, 1], [1.5, 1], [1e40, 1], [10**40, 1], [1], "x", [None, 1]])
def test_a_shape_that_no_image_has_leaves_the_asset_out_with_words(shape):
    item = radar()
    item["properties"]["proj:shape"] = shape
    found = scene(item)
    assert found.asset("VV") is None and "proj:shape" in found.dropped_reason


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


def test_records_are_never_changed_by_reading_them():
    item = optical()
    before = copy.deepcopy(item)
    record(item)
    assert item == before
