import hashlib
import itertools
import json
from collections import Counter
from pathlib import Path

import jsonschema
import numpy as np
import pystac
import pytest
import rasterio
import referencing
from hypothesis import given, settings
from hypothesis import strategies as st
from island_files import BANDS, S1, S2, item_of, radar, read
from stac_schemas import SCHEMAS, schema_documents

from model.errors import BadInput
from pipeline.demo.files import write_plane
from pipeline.demo.planet import MARKER, TILES, build
from transforms.cog import Layout
from transforms.grid import STEP_PX, tile_of

REAL = Path(__file__).parents[2] / "../shared/real-data/stac"


def test_the_catalogue_is_read_by_pystac_and_its_hrefs_lead_to_files(planet):
    root = pystac.Catalog.from_file(str(planet.catalog))
    counts = Counter(item.collection_id for item in root.get_items(recursive=True))
    assert counts == {S2: sum(len(planet.s2_ids(t)) for t in TILES), S1: len(planet.s1_ids())}
    for item in itertools.islice(root.get_items(recursive=True), 0, None, 17):
        for asset in item.assets.values():
            assert not asset.href.startswith(("/", "http"))
            assert Path(asset.get_absolute_href()).is_file()


@pytest.mark.skipif(not SCHEMAS.is_dir(), reason="the published STAC schemas are not in ../shared")
def test_records_are_valid_by_the_published_schemas(planet):
    documents = schema_documents()
    registry = referencing.Registry().with_resources(
        (address, referencing.Resource.from_contents(document)) for address, document in documents.items()
    )
    records = [json.loads(next(planet.folder.glob(f"{name}/*/*.json")).read_text()) for name in (S2, S1)]
    records += [json.loads((planet.folder / name / "collection.json").read_text()) for name in (S2, S1)]
    records.append(json.loads(planet.catalog.read_text()))
    checked = 0
    for record in records:
        kind = {"Feature": "item"}.get(record["type"], record["type"].lower())
        core = f"https://schemas.stacspec.org/v1.0.0/{kind}-spec/json-schema/{kind}.json"
        for address in [core, *(record.get("stac_extensions", []))]:
            if address in documents:
                jsonschema.Draft7Validator(documents[address], registry=registry).validate(record)
                checked += 1
    assert checked >= 5 + 3  # the core of each; file, grid and raster of the Sentinel-2 item


@pytest.mark.parametrize(
    "collection, file", [(S2, f"earth-search-{S2}-13TDE.json"), (S1, f"planetary-computer-{S1}.json")]
)
def test_items_have_the_keys_and_types_of_real_ones(planet, collection, file):
    if not (REAL / file).exists():
        pytest.skip("../shared/real-data is absent")
    records = json.loads((REAL / file).read_text())
    real = (records["features"] if isinstance(records, dict) else records)[0]
    ids = planet.s2_ids("32TQR") if collection == S2 else planet.s1_ids()
    ours = item_of(planet, collection, next(iter(ids)))
    assert set(ours) == set(real)
    extra = {k for k in real["properties"] if k.startswith(("storage:", "earthsearch:", "processing:"))}
    assert set(ours["properties"]) == set(real["properties"]) - extra
    for key, value in ours["properties"].items():
        numeric = isinstance(value, int | float)
        assert isinstance(real["properties"][key], int | float if numeric else type(value)), key
    assert set(ours["stac_extensions"]) <= set(real["stac_extensions"])
    for key, asset in ours["assets"].items():
        assert set(asset) == set(real["assets"][key]), key
        for field in ("eo:bands", "raster:bands", "gsd", "roles", "type", "title"):
            assert asset.get(field) == real["assets"][key].get(field), (key, field)


def test_items_say_what_their_files_are(planet):
    for tile in TILES:
        id_ = list(planet.s2_ids(tile))[3]
        item = item_of(planet, S2, id_)
        assert item["properties"]["grid:code"] == f"MGRS-{tile}"
        for asset in item["assets"].values():
            path = planet.folder / S2 / id_ / asset["href"]
            data = path.read_bytes()
            assert asset["file:size"] == len(data)
            assert asset["file:checksum"] == "1220" + hashlib.sha256(data).hexdigest()
            with rasterio.open(path) as src:
                assert [src.height, src.width] == asset["proj:shape"]
                assert list(src.transform)[:6] == asset["proj:transform"]
                assert src.crs.to_epsg() == item["properties"]["proj:epsg"] == tile_of(tile).epsg
                assert src.nodata == 0 and src.profile["compress"] == "deflate"
    for id_ in list(planet.s1_ids())[:2]:
        item = item_of(planet, S1, id_)
        for asset in item["assets"].values():
            path = planet.folder / S1 / id_ / asset["href"]
            assert asset["file:size"] == path.stat().st_size
            assert asset["file:checksum"] == hashlib.md5(path.read_bytes()).hexdigest()
            with rasterio.open(path) as src:
                assert [src.height, src.width] == item["properties"]["proj:shape"]
                assert list(src.transform) == item["properties"]["proj:transform"]
                assert (src.dtypes, src.nodata) == (("float32",), -32768)
                assert src.transform.c % 10 == src.transform.f % 10 == 0


def test_the_full_planet_has_the_catalogues_own_blocks(tmp_path):
    planet = build(tmp_path / "p", size_m=1600, tiles=("33TUL",))
    item = next(iter(planet.s2_ids("33TUL")))
    for band in BANDS:
        with rasterio.open(planet.folder / S2 / item / f"{band}.tif") as src:
            assert src.block_shapes == [(1024, 1024)]
            assert src.shape == ((10_980,) * 2 if band in ("B02", "B03", "B04", "B08") else (5_490,) * 2)


def test_nothing_is_stored_outside_the_island(planet):
    for tile in TILES:
        id_ = next(iter(planet.s2_ids(tile)))
        row, col, height, width = planet.island(tile)
        whole = read(planet.folder / S2 / id_ / "B08.tif")
        assert whole[row : row + height, col : col + width].any()
        whole[row : row + height, col : col + width] = 0
        assert not whole.any()


def test_a_border_of_blocks_runs_through_the_island_of_every_tile_both_ways(planet):
    for tile in TILES:
        row, col, height, width = planet.island(tile)
        assert row // STEP_PX < (row + height - 1) // STEP_PX
        assert col // STEP_PX < (col + width - 1) // STEP_PX


def test_equal_parameters_give_equal_bytes(tmp_path):
    one, other = (build(tmp_path / name, seed=5, size_m=80, tiles=("32TQQ",)) for name in "ab")
    names = [p.relative_to(one.folder) for p in sorted(one.folder.rglob("*")) if p.is_file()]
    assert names == [p.relative_to(other.folder) for p in sorted(other.folder.rglob("*")) if p.is_file()]
    assert len(names) > 400
    for name in names:
        assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes(), name


def test_another_seed_changes_the_weather_and_not_the_land(tmp_path):
    one, other = (build(tmp_path / str(seed), seed=seed, size_m=80, tiles=("32TQR",)) for seed in (0, 1))
    np.testing.assert_array_equal(one.class_map("32TQR"), other.class_map("32TQR"))
    assert [v.cloud for v in one.optical] != [v.cloud for v in other.optical]
    id_ = next(iter(one.s1_ids()))
    assert (radar(one, id_, "vv") != radar(other, id_, "vv")).any()


def test_a_smaller_island_is_the_middle_of_a_larger_one(planet, tmp_path):
    small = build(tmp_path / "p", size_m=120, tiles=("32TQR",))
    np.testing.assert_array_equal(small.class_map("32TQR"), planet.class_map("32TQR", small.island("32TQR")))


def test_the_planet_that_is_there_is_taken_as_it_is(planet):
    before = {p: p.stat().st_mtime_ns for p in planet.folder.rglob("*")}
    assert build(planet.folder, size_m=640) == planet
    assert {p: p.stat().st_mtime_ns for p in planet.folder.rglob("*")} == before


def test_an_interrupted_build_is_finished(tmp_path):
    planet = build(tmp_path / "p", size_m=40, tiles=("32TQR",))
    whole = {p: p.read_bytes() for p in planet.folder.rglob("*") if p.is_file()}
    marker = planet.folder / MARKER
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"complete": False}))
    planet.catalog.unlink()
    some = next(iter(planet.s1_ids()))
    (planet.folder / S1 / some / "iw-vv.rtc.tiff").write_bytes(b"half of i")
    build(tmp_path / "p", size_m=40, tiles=("32TQR",))
    assert {p: p.read_bytes() for p in planet.folder.rglob("*") if p.is_file()} == whole


def test_another_planet_or_other_files_in_the_folder_are_refused(planet, tmp_path):
    with pytest.raises(BadInput, match=r"another planet \(seed 0 instead of 7\)"):
        build(planet.folder, seed=7, size_m=640)
    with pytest.raises(BadInput, match="size_m 640 instead of 320"):
        build(planet.folder, size_m=320)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BadInput, match="other files"):
        build(tmp_path)


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"size_m": 650}, "650 m.*multiple of 40"),
        ({"size_m": 4000}, "at most 3200"),
        ({"size_m": 0}, "0 m"),
        ({"tiles": ("32TQS",)}, "32TQS.*32TQQ"),
        ({"tiles": ()}, "none"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_planets_that_cannot_be_are_refused(tmp_path, asked, message):
    with pytest.raises(BadInput, match=message):
        build(tmp_path / "p", **asked)
    assert not (tmp_path / "p").exists()


def test_questions_about_other_tiles_and_items_are_refused(planet):
    with pytest.raises(BadInput, match=r"31TCJ.*32TQQ"):
        planet.class_map("31TCJ")
    with pytest.raises(BadInput, match=r"'x'.*32TQR"):
        planet.clear("32TQR", "x")
    with pytest.raises(BadInput, match="'x'"):
        planet.offset_dn("x")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([("uint16", 0, 2), ("uint8", 0, 2), ("float32", -32768.0, 3)]),
    st.tuples(st.integers(0, 90), st.integers(0, 90), st.integers(1, 80), st.integers(1, 80)),
    st.integers(0, 2**32 - 1),
)
def test_a_small_picture_in_a_large_file_reads_back(tmp_path_factory, kind, window, seed):
    dtype, nodata, predictor = kind
    row, col, height, width = window
    layout = Layout(
        height_px=200,
        width_px=180,
        bands=1,
        dtype=dtype,
        tile_px=32,
        nodata=nodata,
        epsg=32633,
        transform=(10, 0, 0, 0, -10, 0),
        codec="deflate",
        predictor=predictor,
    )
    rng = np.random.default_rng(seed)
    plane = rng.integers(0, 255, (height, width)).astype(dtype)
    plane[: height // 2] = nodata
    path = tmp_path_factory.mktemp("plane") / "a.tif"
    assert write_plane(path, layout, plane, row, col) == path.read_bytes()
    want = np.full((200, 180), nodata, dtype)
    want[row : row + height, col : col + width] = plane
    np.testing.assert_array_equal(read(path), want)
