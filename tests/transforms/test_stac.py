import copy
import io
import json
import posixpath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pystac
import pystac.validation
import pytest
import rasterio
import shapely
from hypothesis import given
from hypothesis import strategies as st
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from shapely.geometry import box, shape
from stac_schemas import SCHEMAS, complaints, schema_documents

from model.errors import BadInput
from model.families import profile_for
from model.profile import ES_C1, PC_RTC
from transforms import stac, stac_collection, stac_index
from transforms.grid import tile_of
from transforms.periods import period_of
from transforms.stac import AssetRecord
from transforms.stac_assets import ASSET_KEYS, REASON_BITS
from transforms.stac_collection import CITATION, PAPER, SENTINEL_TERMS, catalog, collection
from transforms.stac_geometry import bbox_of, geometry_of, union_of
from transforms.stac_index import items_parquet, read_items_parquet
from transforms.statistics import NONE, Statistics, of_tile

needs_schemas = pytest.mark.skipif(not SCHEMAS.is_dir(), reason="the published STAC schemas are not in ../shared")
PROFILE = profile_for("v2", 16)
SHA = "ab" * 32
CREATED = "2025-02-03T04:05:06.789Z"


def records(rev8="1f2e3d4c", keys=ASSET_KEYS):
    names = {"thumbnail": "thumbnail.png", "scenes": "scenes.parquet", "blocks": "blocks.parquet"}
    shapes = {"preview": (1098, 1098)}
    return {
        key: AssetRecord(
            f"./{rev8}/{names.get(key, key + '.tif')}", 1000 + i, f"crc{i}==", SHA if i % 2 else "", shapes.get(key)
        )
        for i, key in enumerate(keys)
    }


def an_item(tile="33TWL", period="2024", **changed):
    fields = {
        "tile": tile_of(tile),
        "period": period_of(period),
        "model_name": "untrained-v2",
        "model_sha256": SHA,
        "profile": PROFILE,
        "revision": "1f2e3d4c" + "00" * 28,
        "created": CREATED,
        "assets": records(),
        "counts": {"pixels": 120_560_400, "embedded": 100_000_000, "no_radar": 7},
        "device_kinds": ["cpu avx2"],
        "sources": [PC_RTC, ES_C1],
        "inventory_digest": "cd" * 32,
        "software_version": "0.1.0",
    }
    return stac.item(**{**fields, **changed})


def some_statistics(embedded=True):
    if not embedded:
        return of_tile([NONE], 8)
    block = Statistics({0: 5, 2: 2, 1: 3}, ((0, 0, 7), (2, 5), (7,)), {4000: 6, 4003: 1}, 0.01, 0.0123, 7, 1)
    return of_tile([block], 8)


def a_collection(items, **changed):
    fields = {
        "product": stac.product_record("untrained-v2", SHA, PROFILE),
        "profile": PROFILE,
        "items": items,
        "created": CREATED,
    }
    return collection(**{**fields, **changed})


def without(item, name):
    return {**item, "properties": {k: v for k, v in item["properties"].items() if k != name}}


ITEMS = {
    "plain": lambda: an_item(),
    "clipped": lambda: an_item(clip={"bbox": [15.1, 45.2, 15.3, 45.4]}),
    "of another twelve months": lambda: an_item(period="2023-07-01/2024-06-30"),
    "across the antimeridian": lambda: an_item("01CCV"),
    "with statistics": lambda: an_item(statistics=some_statistics()),
    "with statistics of nothing": lambda: an_item(statistics=some_statistics(embedded=False)),
    "in the place of another": lambda: an_item(folder="1f2e3d4c.1", predecessor="1f2e3d4c"),
    "replaced": lambda: stac.replaced(an_item(statistics=some_statistics(), predecessor="00000000")),
    "replaced, of an older release": lambda: stac.replaced(without(an_item(), "version")),
    "with embeddings alone": lambda: an_item(assets=records(keys=["embeddings"])),
}


@needs_schemas
@pytest.mark.parametrize("name", ITEMS)
def test_items_satisfy_every_schema_that_they_declare(name):
    assert complaints(ITEMS[name]()) == []


@needs_schemas
def test_the_collection_satisfies_every_schema_that_it_declares():
    both = a_collection([an_item(), an_item("01CCV")], source_urls={ES_C1: "https://catalogue.example/collections/s2"})
    assert complaints(both) == []


@needs_schemas
def test_the_catalogue_satisfies_the_core_schema_and_leads_to_the_collection():
    product = stac.product_record("untrained-v2", SHA, PROFILE)
    assert complaints(catalog(product)) == []
    assert [x["href"] for x in catalog(product)["links"] if x["rel"] == "child"] == ["./collection.json"]
    assert complaints({**catalog(product), "links": 1})


def test_the_collection_says_whose_data_it_is_made_of_and_what_to_cite():
    made = a_collection([an_item("33TWL", "2023"), an_item("33TWL", "2024")])
    links = {link["rel"]: link for link in made["links"]}
    assert made["license"] == "various"
    assert a_collection([an_item()], licence="CC0-1.0")["license"] == "CC0-1.0"
    assert links["license"]["href"] == SENTINEL_TERMS
    assert links["cite-as"]["href"] == PAPER
    assert made["tessera:citation"] == CITATION
    assert made["tessera:attribution"] == "Contains modified Copernicus Sentinel data 2023-2024"
    assert links["derived_from"]["href"] == f"./_inputs/{SHA}.json"


def test_a_replaced_item_leads_to_the_same_files_and_to_the_one_in_its_place():
    item = an_item(folder="1f2e3d4c.1", predecessor="1f2e3d4c", assets=records("1f2e3d4c.1"))
    kept = stac.replaced(item)
    for old, new in zip(item["links"], kept["links"], strict=False):
        assert posixpath.normpath(posixpath.join("1f2e3d4c.1", new["href"])) == posixpath.normpath(old["href"])
    for key, asset in item["assets"].items():
        assert kept["assets"][key]["href"] == f"./{asset['href'].rpartition('/')[2]}"
    assert kept["links"][-1] == {
        "rel": "latest-version", "href": "../33TWL_2024_untrained-v2.json", "type": "application/geo+json",
    }  # fmt: skip
    assert kept["properties"] == item["properties"] | {
        "deprecated": True, "emb:quantization": kept["properties"]["emb:quantization"],
    }  # fmt: skip
    assert kept["properties"]["emb:quantization"]["link"]["href"] == "./scales.tif"


def test_statistics_stand_in_the_item_and_beside_the_bands_that_they_are_of():
    item = an_item(statistics=some_statistics())
    said = item["properties"]["tessera:statistics"]
    assert said["norm"] == {"checked": 7, "astray": 1}
    assert said["observations"]["s1_ascending"] == {
        "minimum": 0, "maximum": 1, "p01": 0, "p05": 0, "p25": 0, "p50": 1, "p75": 1, "p95": 1, "p99": 1,
    }  # fmt: skip
    names = [b["name"] for b in item["assets"]["observations"]["raster:bands"]]
    assert names == ["S2", "S1 ascending", "S1 descending"]
    assert item["assets"]["scales"]["raster:bands"][0]["nodata"] == "nan"
    assert item["assets"]["scales"]["raster:bands"][0]["statistics"]["maximum"] == 0.0123
    assert "tessera:statistics" not in an_item()["properties"]


@needs_schemas
@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("assets", "scales", "raster:bands", 0, "statistics"), {"median": 1}),
        (("assets", "observations", "raster:bands", 0, "histogram", "buckets"), [1.5, 1, 1]),
    ],
)
def test_the_schemas_complain_of_statistics_that_the_raster_extension_has_not(path, wrong):
    spoilt = copy.deepcopy(an_item(statistics=some_statistics()))
    at = spoilt
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = wrong
    assert complaints(spoilt)


@needs_schemas
@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("stac_version",), "1.1.0"),
        (("properties", "emb:quantization", "rule"), "max"),
        (("properties", "grid:code"), "33TWL"),
        (("properties", "proj:shape"), [1]),
        (("assets", "reasons", "classification:bitfields"), []),
        (("assets", "scales", "file:checksum"), "XYZ"),
    ],
)
def test_the_schemas_complain_of_a_spoilt_item(path, wrong):
    spoilt = copy.deepcopy(an_item())
    at = spoilt
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = wrong
    assert complaints(spoilt)


@needs_schemas
def test_pystac_validates_and_reads_both_without_a_network():
    validator = JsonSchemaSTACValidator()
    validator.schema_cache = schema_documents()
    item = an_item()
    for record in (item, a_collection([item])):
        uris = pystac.validation.validate_dict(copy.deepcopy(record), validator=validator)
        assert len(uris) == 1 + len(record["stac_extensions"])
    read = pystac.Item.from_dict(copy.deepcopy(item), preserve_dict=True)
    assert read.id == "33TWL_2024_untrained-v2" and set(read.assets) == set(ASSET_KEYS)
    assert pystac.Collection.from_dict(a_collection([item])).extent.spatial.bboxes == [item["bbox"]]


def test_the_item_says_where_when_and_with_what():
    item = an_item(revision="0123456789" + "ab" * 27)
    properties = item["properties"]
    assert properties["proj:code"] == "EPSG:32633" and properties["grid:code"] == "MGRS-33TWL"
    assert properties["proj:transform"] == [10, 0, 499980, 0, -10, 5100000]  # ESA's corner of 33TWL
    assert properties["proj:bbox"] == [499980, 5100000 - 109800, 499980 + 109800, 5100000]
    assert (properties["start_datetime"], properties["end_datetime"]) == (
        "2024-01-01T00:00:00Z",
        "2024-12-31T23:59:59Z",
    )
    assert properties["datetime"] is None and properties["created"] == "2025-02-03T04:05:06.789000Z"
    assert properties["tessera:sources"] == [PC_RTC, ES_C1]
    links = {link["rel"]: link["href"] for link in item["links"]}
    assert links["collection"] == "../../collection.json" and links["emb:model"] == f"../../_inputs/{SHA}.onnx"


def test_assets_carry_size_checksums_and_bands():
    assets = an_item()["assets"]
    rasters = {"embeddings", "scales", "observations", "reasons", "preview"}
    assert set(assets) == rasters | {"thumbnail", "scenes", "blocks"}
    assert {key for key, asset in assets.items() if "raster:bands" in asset} == rasters
    assert assets["scales"]["file:checksum"] == "1220" + SHA and "file:checksum" not in assets["embeddings"]
    assert assets["embeddings"]["file:size"] == 1000 and assets["embeddings"]["tessera:crc32c"] == "crc0=="
    assert [b["nodata"] for b in assets["embeddings"]["raster:bands"]] == [-128] * PROFILE.dims
    assert assets["scales"]["raster:bands"][0]["nodata"] == "nan"
    assert assets["preview"]["proj:transform"] == [100, 0, 499980, 0, -100, 5100000]


def test_the_reason_flags_have_the_bits_of_the_design():
    fields = an_item()["assets"]["reasons"]["classification:bitfields"]
    values = {f["name"]: 1 << f["offset"] for f in fields}
    assert values == {
        "no_optical": 1, "no_radar": 2, "too_few": 4, "outside": 8, "read_failed": 16, "drift_suspected": 32,
    }  # fmt: skip
    assert len(fields) == len(REASON_BITS)


def test_equal_arguments_give_equal_bytes_and_order_does_not_matter():
    one = an_item(device_kinds=["b", "a", "a"], sources=[ES_C1, PC_RTC], counts={"a": 1, "b": 2})
    other = an_item(
        device_kinds=["a", "b"],
        sources=[PC_RTC, ES_C1],
        counts={"b": np.int64(2), "a": 1},
        assets=dict(reversed(records().items())),
    )
    assert stac.to_json(one) == stac.to_json(other)
    assert stac.to_json(a_collection([one, an_item("33TWM")])) == stac.to_json(a_collection([an_item("33TWM"), one]))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"assets": records() | {"extra": AssetRecord("./x", 1, "")}}, "extra"),
        ({"assets": records(keys=["scales"])}, "without an asset 'embeddings'; given: scales"),
        ({"model_name": "a/b"}, "'a/b'"),
        ({"created": "yesterday"}, "'yesterday'"),
        ({"created": "2024-01-01T00:00:00"}, "time zone"),
    ],
)
def test_bad_arguments_are_refused_by_name(changed, says):
    with pytest.raises(BadInput, match=says):
        an_item(**changed)


def test_a_tile_across_the_antimeridian_is_split_and_its_bbox_crosses():
    item = an_item("01CCV")
    west, south, east, north = item["bbox"]
    assert item["geometry"]["type"] == "MultiPolygon" and west > 0 > east and south < north < 0
    for part in shape(item["geometry"]).geoms:
        assert part.exterior.is_ccw and part.bounds[2] - part.bounds[0] < 10


boxes = st.tuples(st.integers(-180, 180), st.integers(-90, 89), st.integers(1, 120), st.integers(1, 60)).map(
    lambda b: [b[0], b[1], (b[0] + b[2] + 180) % 360 - 180, min(90, b[1] + b[3])]
)


def degrees_in(span):
    """The half degrees of longitude that a west-east span covers, one by one."""
    west, east = span
    return {d / 2 for d in range(-360, 361) if (west <= d / 2 <= east if west <= east else not east < d / 2 < west)}


@given(st.lists(boxes, min_size=1, max_size=6))
def test_the_union_covers_every_box_and_no_shorter_span_between_their_edges_does(given_boxes):
    west, south, east, north = union_of(given_boxes)
    assert south == min(b[1] for b in given_boxes) and north == max(b[3] for b in given_boxes)
    wanted = set().union(*(degrees_in((b[0], b[2])) for b in given_boxes))
    length = (east - west) % 360 if (west, east) != (-180, 180) else 360
    assert wanted <= degrees_in((west, east)) | {180.0, -180.0}
    for w in {b[0] for b in given_boxes}:
        for e in {b[2] for b in given_boxes}:
            if (e - w) % 360 < length and w != e:
                assert not wanted - {180.0, -180.0} <= degrees_in((w, e))


@given(st.integers(-180, 170), st.integers(-80, 70))
def test_the_bbox_of_a_plain_polygon_is_its_bounds(west, south):
    assert bbox_of(geometry_of(box(west, south, west + 7, south + 3))) == [west, south, west + 7, south + 3]


def test_the_collection_sums_its_items_up():
    items = [an_item("33TWL", "2024"), an_item("33TWL", "2023"), an_item("34TCR", "2024")]
    made = a_collection(iter(items))
    assert made["extent"]["temporal"]["interval"] == [["2023-01-01T00:00:00Z", "2024-12-31T23:59:59Z"]]
    bbox = made["extent"]["spatial"]["bbox"][0]
    assert bbox == list(shapely.union_all([shape(i["geometry"]) for i in items]).bounds)
    assert made["summaries"]["proj:code"] == ["EPSG:32633", "EPSG:32634"]
    assert made["summaries"]["tessera:period"] == ["2023", "2024"]
    hrefs = [link["href"] for link in made["links"] if link["rel"] == "item"]
    assert hrefs[0] == "./2023/33TWL/33TWL_2023_untrained-v2.json" and len(hrefs) == 3
    assert stac.product_of(made) == stac.product_record("untrained-v2", SHA, PROFILE)


def test_a_planet_of_items_is_linked_by_the_index_alone(monkeypatch):
    monkeypatch.setattr(stac_collection, "LINKED_ITEMS", 1)
    made = a_collection([an_item("33TWL"), an_item("33TWM")])
    assert not [link for link in made["links"] if link["rel"] == "item"]
    assert made["assets"]["items"]["href"] == "./items.parquet"


def test_a_collection_refuses_nothing_and_other_products():
    with pytest.raises(BadInput, match="nothing is published"):
        a_collection([])
    with pytest.raises(BadInput, match="33TWL_2024_other is of another product than untrained-v2"):
        a_collection([an_item(model_name="other")])


@pytest.mark.parametrize(("record", "says"), [({}, "not an output"), ({"version": 2}, "version 2.*newer")])
def test_a_foreign_or_newer_product_is_refused(record, says):
    full = {**stac.product_record("m", SHA, PROFILE), **record} if record else None
    with pytest.raises(BadInput, match=says):
        stac.product_of({"id": "x", "tessera:product": full})


@pytest.fixture
def several():
    clip = {"bbox": [15.1, 45.2, 15.3, 45.4], "note": None}
    return [
        an_item("34TCR", clip=clip, counts={"pixels": 1, "outside": 2}),
        an_item("33TWL", assets=records(keys=["embeddings", "scales", "scenes"])),
        an_item("33TWL", "2023-07-01/2024-06-30", statistics=some_statistics()),
        an_item("33TWM", statistics=some_statistics(embedded=False), folder="1f2e3d4c.1", predecessor="1f2e3d4c"),
        an_item("01CCV", created="2025-01-01T00:00:00Z"),
    ]


def test_the_index_gives_every_item_back_sorted_with_hrefs_from_the_output_folder(tmp_path, several):
    assert items_parquet(iter(several), tmp_path / "items.parquet") == 5
    read = list(read_items_parquet(tmp_path / "items.parquet"))
    for got, given_item in zip(read, sorted(several, key=lambda i: i["id"]), strict=True):
        folder = "{tessera:period}/{tessera:tile}".replace(":", "_").format(
            **{k.replace(":", "_"): v for k, v in got["properties"].items()}
        )
        assert got["links"].pop()["href"] == f"./{folder}/{got['id']}.json"
        assert got["assets"]["embeddings"]["href"] == f"./{folder}/1f2e3d4c/embeddings.tif"
        assert got == stac.rebased(given_item, folder)


def test_rebased_hrefs_lead_to_the_same_file_and_leave_addresses_alone():
    item = an_item()
    item["links"].append({"rel": "about", "href": "https://tessera.example/x"})
    hrefs = {link["rel"]: link["href"] for link in stac.rebased(item, "2024/33TWL")["links"]}
    assert hrefs["collection"] == "./collection.json" and hrefs["emb:model"] == f"./_inputs/{SHA}.onnx"
    assert hrefs["emb:source-data"] == "./2024/33TWL/1f2e3d4c/scenes.parquet"
    assert hrefs["about"] == "https://tessera.example/x"


def test_the_index_is_geoparquet_with_native_times_and_a_bbox_column(tmp_path, several):
    items_parquet(several, tmp_path / "items.parquet", a_collection(several))
    schema = pq.read_schema(tmp_path / "items.parquet")
    geo = json.loads(schema.metadata[b"geo"])
    column = geo["columns"]["geometry"]
    assert geo["version"] == "1.1.0" and column["encoding"] == "WKB" and "crs" not in column
    assert column["geometry_types"] == ["MultiPolygon", "Polygon"]
    assert column["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
    index = json.loads(schema.metadata[b"stac-geoparquet"])
    assert index["version"] == "1.1.0"
    assert not [link for link in index["collections"]["embeddings-untrained-v2"]["links"] if link["rel"] == "item"]
    table = pq.read_table(tmp_path / "items.parquet")
    assert table["start_datetime"].type == pa.timestamp("us", tz="UTC")
    assert table["bbox"][1].as_py()["xmin"] == pytest.approx(table["bbox"][2].as_py()["xmin"])
    places = shapely.from_wkb(table["geometry"].to_pylist())
    assert [p.equals(shape(i["geometry"])) for p, i in zip(places, sorted(several, key=lambda i: i["id"]), strict=True)]


def test_the_order_of_items_and_the_kind_of_file_do_not_change_the_index(tmp_path, several):
    items_parquet(several, tmp_path / "items.parquet")
    buffer = io.BytesIO()
    items_parquet(reversed(several), buffer)
    assert buffer.getvalue() == (tmp_path / "items.parquet").read_bytes()


def test_row_groups_hold_so_many_items_and_no_more(tmp_path, monkeypatch, several):
    monkeypatch.setattr(stac_index, "ROW_GROUP_ITEMS", 3)
    items_parquet(several, tmp_path / "items.parquet")
    metadata = pq.read_metadata(tmp_path / "items.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [3, 2]
    assert len(list(read_items_parquet(tmp_path / "items.parquet"))) == 5


def test_an_index_of_nothing_twins_or_unknown_fields_is_refused(tmp_path):
    with pytest.raises(BadInput, match="nothing is published"):
        items_parquet([], tmp_path / "x")
    with pytest.raises(BadInput, match="one id: 33TWL_2024_untrained-v2"):
        items_parquet([an_item(), an_item()], tmp_path / "x")
    newer = an_item()
    newer["properties"]["tessera:later"] = 1
    with pytest.raises(BadInput, match=r"tessera:later.*newer"):
        items_parquet([newer], tmp_path / "x")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "plain.parquet")
    with pytest.raises(BadInput, match=r"plain\.parquet: stac-geoparquet version None"):
        list(read_items_parquet(tmp_path / "plain.parquet"))


def test_odc_stac_loads_the_embeddings_from_where_the_item_says_they_are(tmp_path):
    odc_stac = pytest.importorskip("odc.stac")
    item = an_item()
    folder = tmp_path / "2024/33TWL/1f2e3d4c"
    folder.mkdir(parents=True)
    side_px = 256  # the files are cut to a corner of the tile; their place is what the item says of the whole
    place = rasterio.Affine(*item["properties"]["proj:transform"])
    codes = np.random.default_rng(3).integers(-127, 128, (PROFILE.dims, side_px, side_px)).astype(np.int8)
    scales = np.random.default_rng(4).random((1, side_px, side_px), np.float32)
    for name, pixels, nodata in (("embeddings", codes, -128), ("scales", scales, np.nan)):
        with rasterio.open(
            folder / f"{name}.tif", "w", driver="COG", count=len(pixels), height=side_px, width=side_px,
            dtype=pixels.dtype, nodata=nodata, crs=item["properties"]["proj:code"], transform=place,
        ) as f:  # fmt: skip
            f.write(pixels)
    path = tmp_path / "2024/33TWL" / f"{item['id']}.json"
    path.write_bytes(stac.to_json(item))
    wanted = {"x": (499980, 499980 + 1280), "y": (5100000 - 1280, 5100000), "crs": "EPSG:32633", "resolution": 10}
    loaded = odc_stac.load([pystac.Item.from_file(str(path))], ["embeddings.1", "embeddings.16", "scales"], **wanted)
    assert loaded.odc.crs == "EPSG:32633" and loaded["embeddings.1"].dtype == np.int8
    assert loaded["embeddings.1"].attrs["nodata"] == -128
    np.testing.assert_array_equal(loaded["embeddings.1"].values[0], codes[0, :128, :128])
    np.testing.assert_array_equal(loaded["embeddings.16"].values[0], codes[15, :128, :128])
    np.testing.assert_array_equal(loaded["scales"].values[0], scales[0, :128, :128])
