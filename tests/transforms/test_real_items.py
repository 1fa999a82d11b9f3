"""Every real item of every provider as a scene, others of their kind, and records that were made to do harm."""

import copy
import json

import pytest
from stac_items import ALL_BANDS, REAL, TILE, optical, radar, real_items, record, scene

from model.errors import BadInput
from model.profile import CDSE_L2A, ES_C1, ES_L2A, PC_L2A, PC_RTC
from transforms import grid
from transforms.catalogs.items import item_boxes
from transforms.catalogs.registry import BY_NAME, PROVIDERS, source_of
from transforms.catalogs.search import open_catalog
from transforms.catalogs.selection import datatake_key, select
from transforms.catalogs.source import S2_PIXEL_M
from transforms.periods import period_of

real = pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/real-data")

HOSTS = {
    ES_L2A: "https://sentinel-cogs.s3.us-west-2.amazonaws.com/sentinel-s2-l2a-cogs/",
    ES_C1: "https://e84-earth-search-sentinel-data.s3.us-west-2.amazonaws.com/sentinel-2-c1-l2a/",
    PC_L2A: "https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/",
    PC_RTC: "https://sentinel1euwestrtc.blob.core.windows.net/sentinel1-grd-rtc/",
}
EVERY = [
    pytest.param(path.name, n, id=f"{path.stem}-{n}")
    for path in (sorted(REAL.glob("*json")) if REAL.is_dir() else [])
    for n in range(len(real_items(path.name)))
]


def tiles_of(item):
    """The tile that an optical item's own words name, those under a radar scene's middle."""
    said = item["properties"]
    name = said.get("s2:mgrs_tile") or str(said.get("grid:code", "")).removeprefix("MGRS-")
    if name:
        return [grid.tile_of(name.rjust(5, "0"))]
    west, south, east, north = item["bbox"]
    return grid.tiles_at((west + east) / 2, (south + north) / 2)


@pytest.mark.parametrize(("name", "n"), EVERY)
def test_every_real_item_becomes_the_scene_that_it_describes(name, n):
    item = real_items(name)[n]
    said, table = item["properties"], source_of(item)
    shown = tiles_of(item)
    assert shown
    for tile in shown:
        got = scene(item, tile)
        assert (got.tile, got.id, got.source) == (tile.name, item["id"], table.name)
        assert got.datetime[:23].rstrip("Z") == said["datetime"][:23].rstrip("Z")
        assert got.platform == said["platform"].lower()
        assert got.orbit == said.get("sat:orbit_state", said.get("sentinel2:orbit_direction", "")).lower()
        assert got.baseline == said.get("s2:processing_baseline", said.get("sentinel2:processing_baseline", ""))
        if name.startswith("antimeridian"):  # of the raw bucket, as JPEG 2000, with the older names of properties
            assert not got.kept
            assert got.dropped_reason == "not a COG: B04 is a JPEG 2000 file"
            assert all(a.href.startswith("s3://sentinel-s2-l2a/tiles/") for a in got.assets)
            assert (got.baseline, got.offset_dn, got.orbit) == ("05.09", 1000, "descending")
            assert "nothing is subtracted" in got.offset_reason
            assert f"_R{got.relative_orbit:03d}_" in said["sentinel2:product_title"]
            assert got.generated == said["sentinel2:generation_time"]
            assert got.datatake == f"GS2{said['platform'][-1].upper()}_{said['sentinel2:product_title'].split('_')[2]}"
            continue
        assert got.kept, got.dropped_reason
        assert [a.band for a in got.assets] == list(table.keys)
        assert {a.href for a in got.assets} == {
            item["assets"][k]["href"].partition("?")[0] for k in table.keys.values()
        }
        assert all(a.href.startswith(HOSTS[got.source]) for a in got.assets)
        if got.sensor == "S2":
            new, flag = got.baseline >= "04.00", said.get("earthsearch:boa_offset_applied")
            assert got.offset_dn == (1000 if new and flag is not True else 0)
            assert f"_R{got.relative_orbit:03d}_" in said["s2:product_uri"]
            assert got.datatake == said["s2:datatake_id"]
        else:
            assert (got.offset_dn, got.relative_orbit) == (0, said["sat:relative_orbit"])


@real
def test_the_real_items_of_the_antimeridian_lie_on_both_sides_of_it():
    for name in ("T01WCQ", "T60VXH"):
        (item,) = real_items(f"antimeridian-{name}.json")
        boxes = item_boxes(item)
        assert len(boxes) == 2
        assert sum(b[2] - b[0] for b in boxes) < 5


@pytest.mark.parametrize("tile", ["01WCQ", "60VXH", "33TWL"])
@pytest.mark.parametrize("way", ["right", "wrong", "full turn", "none"])
@pytest.mark.parametrize("shape", [None, "bbox", {"type": "Polygon", "coordinates": [[[float("nan"), 0]] * 4]}])
def test_duplicates_are_found_however_an_item_writes_its_place(tile, way, shape):
    where = grid.tile_of(tile)
    west, south, east, north = grid.bbox_of(tile)
    pair = {"right": (west, east), "wrong": (east, west), "full turn": (-180, 180), "none": (None, None)}[way]
    records = []
    for n, baseline in enumerate(("04.00", "05.10")):
        item = optical(PC_L2A, tile, f"s{n}", **{"s2:processing_baseline": baseline, "s2:datatake_id": "d"})
        item |= {"bbox": [pair[0], south, pair[1], north]}
        item["geometry"] = item["geometry"] if shape == "bbox" else shape
        records.append(record(item, where))
    assert [s.id for s in select(records) if s.kept] == ["s1"]


@real
def test_a_folder_s_geojson_files_hold_items_as_well_as_its_json_files(tmp_path):
    (tmp_path / "collections.geojson").write_bytes((REAL / "planetary-computer-site2-35MNM.geojson").read_bytes())
    found = {f.item["id"] for f in open_catalog(str(tmp_path), None).items(grid.tile_of("35MNM"), period_of("2020"))}
    assert found == {i["id"] for i in real_items("planetary-computer-site2-35MNM.geojson")}


def test_an_item_file_that_is_written_anew_is_read_anew(tmp_path):
    found = []
    for baseline in ("02.12", "05.10"):
        item = optical(PC_L2A, TILE.name, "s", **{"s2:processing_baseline": baseline})
        (tmp_path / "s.json").write_text(json.dumps(item))
        year = period_of(item["properties"]["datetime"][:4])
        found += [
            f.item["properties"]["s2:processing_baseline"]
            for f in open_catalog(str(tmp_path), "planetary-computer").items(TILE, year)
        ]
    assert found == ["02.12", "05.10"]


# --- others of their kind


@pytest.mark.parametrize("source", [ES_L2A, ES_C1, PC_L2A, CDSE_L2A])
@pytest.mark.parametrize("tile", ["01WCQ", "60VXH", "05QKB", "33TWL", "31XFH", "01CDH", "32VKM"])
def test_tiles_of_every_zone_and_hemisphere_are_known_in_the_words_of_each_provider(source, tile):
    table = BY_NAME[source]
    item = optical(source, tile, **{"earthsearch:boa_offset_applied": True, "processing:version": "05.11"})
    short = f"{int(tile[:2])}{tile[2:]}"
    for words in (tile, short, f"MGRS-{tile}", f"MGRS-{short}", f"T{tile}"):
        item["properties"][table.tile] = words
        got = scene(item, grid.tile_of(tile), table.provider)
        assert got.kept, got.dropped_reason
        assert got.tile == tile


@pytest.mark.parametrize("platform", ["sentinel-2a", "Sentinel-2C", "SENTINEL-2D"])
def test_satellites_to_come_are_taken_by_the_name_that_they_have(platform):
    assert scene(optical(platform=platform)).platform == platform.lower()
    assert scene(radar(platform="SENTINEL-1C")).platform == "sentinel-1c"


def cdse(**properties):
    """An item as the Copernicus Data Space writes it: STAC 1.1, JPEG 2000 on S3, older ones without a tile."""
    name = "S2C_MSIL2A_20250628T095041_N0511_R079_T33TWL_20250628T154719"
    folder = (
        f"s3://eodata/Sentinel-2/MSI/L2A/2025/06/28/{name}.SAFE/GRANULE/L2A_T33TWL_A004242_20250628T095041/IMG_DATA"
    )
    assets = {}
    for band, pixel_m in S2_PIXEL_M.items():
        for m in {pixel_m, 20, 60}:  # each band is there in its own and in every coarser resolution
            assets[f"{band}_{m}m"] = {
                "href": f"{folder}/R{m}m/T33TWL_20250628T095041_{band}_{m}m.jp2",
                "type": "image/jp2",
                "file:size": 96_000_000 // m,
                "file:checksum": f"d501{m:032d}",
                "bands": [{"name": band}],
                "raster:scale": 0.0001,
                "raster:offset": -0.1,
                "nodata": 0,
                "proj:code": "EPSG:32633",
                "proj:shape": [109_800 // m] * 2,
                "proj:transform": [m, 0, TILE.left_m, 0, -m, TILE.top_m],
                "alternate": {"https": {"href": "https://download.dataspace.copernicus.eu/odata/v1/x/$value"}},
            }
    west, south, east, north = grid.footprint(TILE).bounds
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": name,
        "collection": "sentinel-2-l2a",
        "bbox": [west, south, east, north],
        "geometry": None,
        "properties": {
            "datetime": "2025-06-28T09:50:41.024Z",
            "platform": "sentinel-2c",
            "eo:cloud_cover": 15.3,
            "grid:code": "MGRS-33TWL",
            "processing:version": "05.11",
            "processing:datetime": "2025-06-28T15:47:19.000000Z",
            "eopf:datatake_id": "GS2C_20250628T095041_004242_N05.11",
            "sat:orbit_state": "descending",
            "sat:relative_orbit": 79,
            **properties,
        },
        "assets": assets,
    }


def test_an_item_of_the_data_space_is_its_native_jpeg_2000_files_with_the_offset_of_its_baseline():
    got = scene(cdse())
    assert (got.source, got.kept, got.offset_dn, got.baseline) == (CDSE_L2A, True, 1000, "05.11")
    assert (got.orbit, got.relative_orbit, got.platform) == ("descending", 79, "sentinel-2c")
    assert got.generated == "2025-06-28T15:47:19.000000Z"
    assert [a.band for a in got.assets] == list(ALL_BANDS)
    for asset in got.assets:
        assert asset.href.startswith("s3://eodata/")
        assert asset.href.endswith(f"_{asset.band}_{S2_PIXEL_M[asset.band]}m.jp2")
        assert (asset.epsg, asset.width_px) == (32633, 109_800 // S2_PIXEL_M[asset.band])
        assert asset.size_bytes
        assert asset.checksum


def test_an_older_item_of_the_data_space_is_read_by_its_name():
    item = cdse(**{"grid:code": None, "processing:version": None, "sat:relative_orbit": None, "eopf:datatake_id": None})
    got = scene(item)
    assert (got.tile, got.baseline, got.offset_dn, got.relative_orbit) == ("33TWL", "05.11", 1000, 79)
    assert datatake_key(got) == datatake_key(scene(cdse())) == "GS2C_20250628T095041"


def test_jpeg_2000_is_read_from_the_data_space_alone():
    for source in (ES_L2A, ES_C1, PC_L2A):
        item = optical(source, **{"earthsearch:boa_offset_applied": True})
        for asset in item["assets"].values():
            asset["type"] = "image/jp2"
        assert scene(item, provider=BY_NAME[source].provider).dropped_reason == "not a COG: B04 is a JPEG 2000 file"
    assert [s.name for s in BY_NAME.values() if "JP2OpenJPEG" in s.drivers] == [CDSE_L2A]
    assert all("GTiff" in s.drivers for s in BY_NAME.values())


def test_products_of_a_datatake_are_one_observation_in_whatever_words_two_catalogues_name_it():
    said = {"s2:datatake_id": "GS2C_20250628T095041_004242_N05.11", "datetime": "2025-06-28T09:54:00Z"}
    twin = optical(PC_L2A, id="twin", **said, **{"s2:processing_baseline": "05.12"})
    for item in (cdse(), cdse(**{"eopf:datatake_id": None})):
        kept = [s.id for s in select([record(twin), record(item)]) if s.kept]
        assert kept == ["twin"]


def test_bands_of_stac_1_1_declare_their_offset_in_either_place():
    for fields in (
        {"bands": [{"raster:scale": 0.0001, "raster:offset": -0.1}]},
        {"bands": [{"name": "red"}], "raster:scale": 0.0001, "raster:offset": -0.1},
    ):
        item = optical(ES_C1)
        for asset in item["assets"].values():
            del asset["raster:bands"]
            asset |= fields
        assert (scene(item).offset_dn, scene(item).kept) == (1000, True)


@pytest.mark.parametrize(
    ("key", "code"), [("proj:epsg", 32633), ("proj:epsg", 32633.0), ("proj:epsg", "32633"), ("proj:code", "EPSG:32633")]
)
def test_the_projection_is_read_in_every_form_and_an_assets_own_comes_first(key, code):
    item = optical()
    item["properties"]["proj:epsg"] = 32632
    for asset in item["assets"].values():
        asset[key] = code
        asset["proj:shape"] = [float(v) for v in asset["proj:shape"]]
    assert scene(item).kept


@pytest.mark.parametrize("missing", ["platform", "s2:generation_time", "s2:datatake_id", "sat:relative_orbit"])
def test_fields_that_decide_nothing_may_be_missing(missing):
    item = optical()
    item["properties"].pop(missing, None)
    assert scene(item).kept


# --- records that were made to do harm


def write(folder, *items):
    for n, item in enumerate(items):
        (folder / f"{n}.json").write_text(json.dumps(item))
    return folder


def built(folder, provider=None):
    catalog = open_catalog(str(folder), provider)
    found = list(catalog.items(TILE, period_of("2024")))
    return [record(f.item, provider=f.source.provider).scene for f in found]


CATALOGUES = {
    "earth-search": lambda: optical(ES_L2A, **{"earthsearch:boa_offset_applied": True}),
    "earth-search c1": lambda: optical(ES_C1),
    "planetary-computer": lambda: optical(PC_L2A),
    "planetary-computer radar": radar,
    "cdse": lambda: cdse(datetime="2024-06-28T09:50:41.024Z"),
}
HREFS = ["file:///etc/passwd", "/etc/passwd", "../../secret.tif", "/vsicurl/http://h/a.tif"]


def refused(item, provider):
    """What becomes of a scene: "" where it is kept."""
    try:
        got = scene(item, provider=provider)
    except BadInput as e:
        return str(e)
    return got.dropped_reason


@pytest.mark.parametrize("name", CATALOGUES)
@pytest.mark.parametrize("href", HREFS)
def test_an_href_out_of_the_catalogue_is_refused_whoever_wrote_it(name, href):
    item = CATALOGUES[name]()
    provider = name.partition(" ")[0]
    assert refused(item, provider) == ""
    table = source_of(item, provider)
    for key in table.keys.values():
        bad = copy.deepcopy(item)
        bad["assets"][key]["href"] = href
        assert "href" in refused(bad, provider)


@pytest.mark.parametrize("name", CATALOGUES)
@pytest.mark.parametrize("harm", ["gone", "no href", "href of another kind", "no asset at all", "assets as a list"])
def test_a_band_without_a_file_drops_the_scene_by_name_whoever_wrote_it(name, harm):
    provider = name.partition(" ")[0]
    table = source_of(CATALOGUES[name](), provider)
    for band, key in table.keys.items():
        item = CATALOGUES[name]()
        if harm == "gone":
            del item["assets"][key]
        elif harm == "no href":
            del item["assets"][key]["href"]
        elif harm == "href of another kind":
            item["assets"][key]["href"] = ["a.tif"]
        else:
            item["assets"] = {} if harm == "no asset at all" else []
            band = next(iter(table.keys))
        assert refused(item, provider).startswith(f"no band {band}: ")


@pytest.mark.parametrize("name", [n for n in CATALOGUES if "radar" not in n])
@pytest.mark.parametrize("shape", [[10_981, 10_980], [10**9, 1], [0, 5], [-5, 5], [10.5, 5], "10980", [True, 1], None])
def test_a_wrong_shape_drops_the_scene_whoever_wrote_it(name, shape):
    item = CATALOGUES[name]()
    provider = name.partition(" ")[0]
    key = source_of(item, provider).keys["B04"]
    item["assets"][key]["proj:shape"] = shape
    assert refused(item, provider).startswith(("wrong grid: B04", "no grid: B04"))


def test_the_harmful_items_of_a_folder_are_dropped_and_the_others_stay(tmp_path):
    good, without = optical(PC_L2A, id="good"), optical(PC_L2A, id="without")
    del without["assets"]["SCL"]
    scenes = built(write(tmp_path, good, without))
    assert {s.id: s.dropped_reason.partition(":")[0] for s in scenes} == {"good": "", "without": "no band SCL"}


def linking(folder, links):
    (folder / "catalog.json").write_text(json.dumps({"type": "Catalog", "id": "c", "links": links}))
    return str(folder)


ROUND_AND_ROUND = [{"rel": r, "href": "./catalog.json"} for r in ("child", "item", "self", "next")]


@pytest.mark.parametrize("links", [ROUND_AND_ROUND, None, 3, [None]], ids=["itself", "none", "number", "nothing"])
def test_links_of_a_static_catalogue_that_lead_nowhere_end_the_search_and_never_hang(tmp_path, links):
    assert list(open_catalog(linking(tmp_path, links)).items(TILE, period_of("2024"))) == []


@pytest.mark.parametrize("link", [{"rel": "item"}, {"rel": "child", "href": 5}])
def test_links_of_a_static_catalogue_without_an_address_are_refused(tmp_path, link):
    with pytest.raises(BadInput, match=r"catalog\.json links to (None|5), which is missing"):
        open_catalog(linking(tmp_path, [link]))


def test_json_that_is_nested_without_end_is_refused_by_name(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(BadInput, match=r"deep\.json is not JSON"):
        open_catalog(str(tmp_path))


def test_every_provider_can_be_named():
    assert set(PROVIDERS) == {"earth-search", "planetary-computer", "cdse", "opera"}
    for provider in PROVIDERS:
        catalog = open_catalog(provider)
        assert catalog.text == provider
        assert catalog.root.startswith("https://")
    for name, source in BY_NAME.items():
        assert open_catalog(name).root == open_catalog(source.provider).root
        with pytest.raises(BadInput, match="follows its own description"):
            open_catalog(name, next(p for p in PROVIDERS if p != source.provider))
