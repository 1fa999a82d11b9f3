import datetime as dt
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
from stac_schemas import SCHEMAS, schema_documents

from model.errors import BadInput
from pipeline.demo import passes
from pipeline.demo.files import write_plane
from pipeline.demo.landscape import Cover, land
from pipeline.demo.planet import MARKER, TILES, build
from pipeline.demo.seasons import backscatter, reflectance
from transforms.cog import Layout
from transforms.grid import STEP_PX, lonlat_of, tile_of, to_crs

S2, S1 = "sentinel-2-c1-l2a", "sentinel-1-rtc"
BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12", "SCL")
REAL = Path(__file__).parents[2] / "../shared/real-data/stac"


@pytest.fixture(scope="module")
def planet(tmp_path_factory):
    return build(tmp_path_factory.mktemp("planet") / "p", size_m=640)


def item_of(planet, collection, id_):
    return json.loads((planet.folder / collection / id_ / f"{id_}.json").read_text())


def of_day(planet, tile, day):
    return [id_ for id_, visit in planet.s2_ids(tile).items() if visit.datatake.date() == day]


def read(path, window=None, scale=1):
    """A window (row, col, height, width) of a file whose pixels are `scale` times 10 m."""
    if window is not None:
        row, col, height, width = (v // scale for v in window)
        window = ((row, row + height), (col, col + width))
    with rasterio.open(path) as src:
        return src.read(1, window=window)


def optical(planet, tile, id_, band):
    fine = band in ("B02", "B03", "B04", "B08")
    return read(planet.folder / S2 / id_ / f"{band}.tif", planet.island(tile), 1 if fine else 2)


def radar(planet, id_, pol):
    """The scene's data over the island, in its own zone."""
    tile = {32632: "32TQR", 32633: "33TUL"}[planet.s1_ids()[id_].epsg]
    row, col, height, width = planet.island(tile)
    with rasterio.open(planet.folder / S1 / id_ / f"iw-{pol}.rtc.tiff") as src:
        top, left = src.index(tile_of(tile).left_m + 10 * col + 5, tile_of(tile).top_m - 10 * row - 5)
        return src.read(1, window=((top, top + height), (left, left + width)))


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
    for id_, visit in planet.s2_ids("32TQR").items():
        if visit.plain_snow:
            continue
        scl = optical(planet, "32TQR", id_, "SCL")
        blue = optical(planet, "32TQR", id_, "B02")[::2, ::2].astype(float)
        ground = blue[np.isin(scl, (4, 5, 6))]
        if ground.size > 50 and (scl == 9).sum() > 50:
            assert blue[scl == 9].min() > np.percentile(ground, 99)
        if ground.size > 50 and (scl == 3).sum() > 50:
            assert blue[scl == 3].mean() < ground.mean()


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
    for id_, visit in planet.s2_ids("32TQR").items():
        seen = (optical(planet, "32TQR", id_, "B04") > 0).mean()
        if visit.orbit == 22:
            assert 0.5 < seen < 0.9
        elif not visit.part:
            assert seen > 0.9


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


def places(side_m=3200, step_m=20):
    axis = np.arange(-side_m / 2 + step_m / 2, side_m / 2, step_m, dtype=np.float32)
    return np.meshgrid(axis, -axis)


def test_the_landscape_has_every_cover():
    there = land(*places())
    shares = {c: (there.cover == c).mean() for c in Cover if c != Cover.OUTSIDE}
    assert min(shares.values()) > 0.01 and max(shares.values()) < 0.2


def test_the_landscape_is_a_function_of_place():
    u, v = places()
    whole, part = land(u, v), land(u[30:70, 20:90], v[30:70, 20:90])
    np.testing.assert_array_equal(part.cover, whole.cover[30:70, 20:90])
    day = dt.date(2024, 6, 1)
    np.testing.assert_allclose(reflectance(part, day), reflectance(whole, day)[30:70, 20:90], rtol=1e-5)


def test_the_year_is_believable():
    there = land(*places())

    def ndvi(cover, *day):
        seen = reflectance(there, dt.date(2024, *day))[there.cover == cover]
        return float(((seen[:, 6] - seen[:, 2]) / (seen[:, 6] + seen[:, 2])).mean())

    assert ndvi(Cover.MAIZE, 7, 25) > 0.7 > 0.4 > ndvi(Cover.MAIZE, 4, 20)
    assert ndvi(Cover.WHEAT, 5, 10) > 0.7 > 0.35 > ndvi(Cover.WHEAT, 7, 25)
    assert ndvi(Cover.DECIDUOUS, 7, 1) - ndvi(Cover.DECIDUOUS, 1, 15) > 0.3
    assert abs(ndvi(Cover.EVERGREEN, 7, 1) - ndvi(Cover.EVERGREEN, 1, 15)) < 0.1
    assert ndvi(Cover.RICE, 5, 20) < 0.1 < 0.6 < ndvi(Cover.RICE, 8, 10)
    assert ndvi(Cover.WATER, 7, 1) < 0

    def vv(cover, *day):
        power = backscatter(there, dt.date(2024, *day), descending=True)[..., 0]
        return 10 * np.log10(power[there.cover == cover].mean())

    assert vv(Cover.TOWN, 6, 1) > -6 > -16 > vv(Cover.WATER, 6, 1)
    assert vv(Cover.RICE, 5, 20) < vv(Cover.RICE, 8, 10) - 5


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
