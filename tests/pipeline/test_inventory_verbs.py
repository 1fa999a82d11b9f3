import contextlib
import dataclasses
import datetime as dt
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from faulty_api import faulty_api, status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.errors import BadInput
from model.profile import ES_C1, PC_L2A, PC_RTC
from pipeline.demo import planet
from pipeline.demo.api import serve
from pipeline.demo.passes import OVERCAST
from pipeline.inventory import amend, build, explain
from pipeline.search_progress import Searched
from transforms import grid
from transforms.catalogs import api
from transforms.inventory import read_header, read_tile
from transforms.periods import period_of

SHARED = Path(__file__).parents[2] / "../shared"
MPC, AWS = SHARED / "golden/scenes_mpc", SHARED / "golden/scenes_aws"
golden = pytest.mark.skipif(not MPC.is_dir(), reason="no ../shared/golden")
NOW = dt.datetime(2025, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
YEAR = period_of("2024")
KEYS = {
    "B04": "red", "B02": "blue", "B03": "green", "B08": "nir", "B8A": "nir08", "B05": "rededge1", "B06": "rededge2",
    "B07": "rededge3", "B11": "swir16", "B12": "swir22", "SCL": "scl",
}  # fmt: skip


def optical(id, when="2024-05-06T10:00:00Z", tile="33TWL", cloud=10.0, href="./{band}.tif", **said):
    """An item as Earth Search's Collection 1 describes it."""
    where = grid.tile_of(tile)
    west, south, east, north = grid.footprint(tile).bounds
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    place = {"proj:shape": [5490, 5490], "proj:transform": [20, 0, where.left_m, 0, -20, where.top_m]}
    fine = {"proj:shape": [10980, 10980], "proj:transform": [10, 0, where.left_m, 0, -10, where.top_m]}
    properties = {
        "datetime": when,
        "platform": "sentinel-2a",
        "eo:cloud_cover": cloud,
        "proj:epsg": where.epsg,
        "grid:code": f"MGRS-{tile}",
        "s2:processing_baseline": "05.10",
        "s2:datatake_id": f"GS2A_{id}_N05.10",
    }
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": id,
        "collection": "sentinel-2-c1-l2a",
        "bbox": [west, south, east, north],
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": properties | said,
        "links": [],
        "assets": {
            key: {"href": href.format(band=band), "raster:bands": [{"scale": 0.0001, "offset": -0.1}]}
            | (fine if band in ("B02", "B03", "B04", "B08") else place)
            for band, key in KEYS.items()
        },
    }


def radar(id, when="2024-05-06T05:00:00Z", orbit="descending"):
    where = grid.tile_of("33TWL")
    west, south, east, north = grid.footprint(where).bounds
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": id,
        "collection": "sentinel-1-rtc",
        "bbox": [west, south, east, north],
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "datetime": when,
            "platform": "SENTINEL-1A",
            "sat:orbit_state": orbit,
            "proj:epsg": where.epsg,
            "proj:shape": [10980, 10980],
            "proj:transform": [10, 0, where.left_m, 0, -10, where.top_m, 0, 0, 1],
        },
        "links": [],
        "assets": {"vv": {"href": f"./{id}_vv.tif"}, "vh": {"href": f"./{id}_vh.tif"}},
    }


ITEMS = [
    optical("jan", "2024-01-31T23:59:59.9Z"),
    optical("may"),
    optical("cloudy", "2024-05-11T10:00:00Z", cloud=100),
    optical("other tile", tile="33TWM"),
    optical("year before", "2023-12-31T23:59:59.999Z"),
    optical("feb", "2024-02-01T00:00:00Z"),
    radar("down"),
    radar("up", "2024-05-06T16:00:00Z", "ascending"),
]


def write(folder, items=ITEMS):
    folder.mkdir(parents=True, exist_ok=True)
    for n, item in enumerate(items):
        (folder / f"{n:03d}.json").write_text(json.dumps(item))
    return folder


@pytest.fixture
def inventory(tmp_path):
    build([(str(write(tmp_path / "cat")), None)], YEAR, ["33TWL"], tmp_path / "i.parquet", now=NOW)
    return tmp_path / "i.parquet"


# --- build


def test_building_freezes_the_scenes_of_the_period_and_counts_them(tmp_path):
    seen = []
    catalog = str(write(tmp_path / "cat"))
    said = build([(catalog, None)], YEAR, ["33TWM", "33TWL"], tmp_path / "new/i.parquet", "a box", NOW, seen.append)
    counts = said["tiles"]["33TWL"]
    assert (counts["S2"], counts["S1 ascending"], counts["S1 descending"], counts["dropped"]) == (3, 1, 1, 1)
    assert list(counts["months"]) == [f"2024-{m:02d}" for m in range(1, 13)]
    assert counts["months"]["2024-01"] == {"S2": 1, "S1 ascending": 0, "S1 descending": 0}
    assert counts["months"]["2024-05"] == {"S2": 1, "S1 ascending": 1, "S1 descending": 1}
    assert counts["months_without"]["S1"] == [m for m in counts["months"] if m != "2024-05"]
    assert said["dropped"] == {"cloud cover": 1} and said["frozen"] == "2025-01-02T03:04:05.000000Z"
    assert seen == [Searched(1, 2, 0, "33TWL", 6), Searched(2, 2, 0, "33TWM", 9)]
    header = read_header(tmp_path / "new/i.parquet")
    assert (header.digest, header.frozen, header.region) == (said["digest"], said["frozen"], "a box")
    assert header.tiles == ("33TWL", "33TWM") and header.period == YEAR
    assert header.roots == {ES_C1: catalog, PC_RTC: catalog}
    scenes = read_tile(tmp_path / "new/i.parquet", "33TWL")
    assert [(s.sensor, s.order, s.id, s.kept) for s in scenes] == [
        ("S1", 0, "up", True),
        ("S1", 1, "down", True),
        ("S2", 0, "jan", True),
        ("S2", 1, "feb", True),
        ("S2", 2, "may", True),
        ("S2", 3, "cloudy", False),
    ]
    assert scenes[2].assets[0].href == "B04.tif"
    json.dumps(said)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(ITEMS))
def test_the_same_items_under_other_names_make_the_same_file(tmp_path, items):
    files = []
    for listing in (ITEMS, items):
        shutil.rmtree(tmp_path / "cat", ignore_errors=True)
        build([(str(write(tmp_path / "cat", listing)), None)], YEAR, ["33TWL"], tmp_path / "i.parquet", now=NOW)
        files.append((tmp_path / "i.parquet").read_bytes())
    assert files[0] == files[1]


def test_a_catalogue_that_was_moved_gives_the_same_digest(tmp_path):
    a = build([(str(write(tmp_path / "a")), None)], YEAR, ["33TWL"], tmp_path / "a.parquet")
    b = build([(str(write(tmp_path / "b/c")), None)], YEAR, ["33TWL"], tmp_path / "b.parquet")
    assert a["digest"] == b["digest"]


def test_optical_and_radar_may_come_from_two_catalogues(tmp_path):
    catalogs = [
        (str(write(tmp_path / "s2", ITEMS[:6])), "earth-search"),
        (str(write(tmp_path / "s1", ITEMS[6:])), None),
    ]
    build(catalogs, YEAR, ["33TWL"], tmp_path / "i.parquet")
    assert read_header(tmp_path / "i.parquet").roots == {ES_C1: catalogs[0][0], PC_RTC: catalogs[1][0]}
    whole = build([(str(write(tmp_path / "cat")), None)], YEAR, ["33TWL"], tmp_path / "w.parquet")
    assert whole["digest"] == read_header(tmp_path / "i.parquet").digest


def test_one_source_from_two_roots_is_refused(tmp_path):
    catalogs = [(str(write(tmp_path / name)), None) for name in "ab"]
    with pytest.raises(BadInput, match=r"both hold .*one root for a source"):
        build(catalogs, YEAR, ["33TWL"], tmp_path / "i.parquet")
    assert not (tmp_path / "i.parquet").exists()


def test_tiles_without_optical_scenes_are_recorded_and_warned_of(tmp_path):
    said = build([(str(write(tmp_path / "cat")), None)], YEAR, ["33TWL", "01CCV"], tmp_path / "i.parquet")
    assert any(w.startswith("tile 01CCV: no Sentinel-2 scene") for w in said["warnings"])
    assert any(w.startswith("tile 33TWL: no Sentinel-2 date in 2024-03, 2024-04, 2024-06") for w in said["warnings"])
    assert read_tile(tmp_path / "i.parquet", "01CCV") == []
    said = build([(str(write(tmp_path / "s2", ITEMS[:6])), None)], YEAR, ["33TWL"], tmp_path / "i.parquet")
    assert any(w == "tile 33TWL: no Sentinel-1 scene; embeddings are computed without radar" for w in said["warnings"])


@pytest.mark.parametrize(
    ("period", "tile", "words"),
    [
        ("2031", "33TWL", "period 2031: no usable Sentinel-2 scene of 33TWL; .* has 2023-12-31..2024-05-11"),
        ("2024", "01CCV", "no usable Sentinel-2 scene of 01CCV"),
        ("2024", "33XYZ", "33XYZ"),
    ],
)
def test_a_search_that_finds_nothing_says_what_there_is_and_leaves_no_file(tmp_path, period, tile, words):
    catalog = str(write(tmp_path / "cat"))
    with pytest.raises(BadInput, match=words):
        build([(catalog, None)], period_of(period), [tile], tmp_path / "i.parquet")
    assert [p.name for p in tmp_path.iterdir()] == ["cat"]


def test_a_search_that_finds_only_what_cannot_be_used_says_why(tmp_path):
    items = [optical("a", cloud=100), {**optical("b"), "collection": "landsat-c2-l2"}]
    with pytest.raises(BadInput, match=r"left out: 1 for cloud cover; .*1 items of collection landsat-c2-l2"):
        build([(str(write(tmp_path / "cat", items)), None)], YEAR, ["33TWL"], tmp_path / "i.parquet")


def test_an_item_that_leads_out_of_its_catalogue_stops_the_build(tmp_path):
    items = [*ITEMS, optical("evil", href="../../etc/{band}")]
    with pytest.raises(BadInput, match=r"item evil: href '../../etc/B04' leads out of the catalogue"):
        build([(str(write(tmp_path / "cat", items)), None)], YEAR, ["33TWL"], tmp_path / "i.parquet")


@pytest.mark.parametrize(("catalogs", "tiles"), [([], ["33TWL"]), ([("earth-search", None)], [])])
def test_nothing_to_search_or_nowhere_is_refused(tmp_path, catalogs, tiles):
    with pytest.raises(BadInput, match=r"no catalogue|no tiles"):
        build(catalogs, YEAR, tiles, tmp_path / "i.parquet")


@golden
def test_the_golden_scenes_of_planetary_computer_are_read_as_their_readme_says(tmp_path):
    period = period_of("2021-02-01/2022-01-31")
    said = build([(str(MPC / "items"), "planetary-computer")], period, ["33TWL"], tmp_path / "i.parquet", now=NOW)
    counts = said["tiles"]["33TWL"]
    assert (counts["S2"], counts["S1 ascending"], counts["S1 descending"]) == (9, 6, 5)
    assert said["dropped"] == {"cloud cover": 1}
    scenes = read_tile(tmp_path / "i.parquet", "33TWL")
    assert {s.datetime[:10] for s in scenes if not s.kept} == {"2021-06-11"}
    offsets = {s.datetime[:10]: s.offset_dn for s in scenes if s.source == PC_L2A}
    assert {day for day, dn in offsets.items() if dn} == {"2022-01-28", "2022-01-30"}
    listed = json.loads((MPC / "catalogue.json").read_text())
    newest_first = [Path(p).stem for p in listed["sentinel-1-rtc"]]
    assert [s.id for s in scenes if s.sensor == "S1"] == newest_first
    assert {s.asset("VV").epsg for s in scenes if s.datetime.startswith("2021-06-17")} == {32632}
    again = build([(str(MPC / "catalogue.json"), None)], period, ["33TWL"], tmp_path / "j.parquet", now=NOW)
    assert again["tiles"] == said["tiles"]


@golden
def test_the_golden_scenes_of_earth_search_have_no_offset(tmp_path):
    build([(str(AWS / "items"), "earth-search")], YEAR, ["33TWL"], tmp_path / "i.parquet")
    scenes = read_tile(tmp_path / "i.parquet", "33TWL")
    assert len(scenes) == 10 and {s.offset_dn for s in scenes} == {0} and sum(s.kept for s in scenes) == 9


# --- explain


def test_explaining_tells_every_decision_in_words(inventory):
    text = explain(inventory, "may")["text"]
    for words in ("33TWL", ES_C1, "baseline 05.10", "1000 DN", "10 %", "order       2", "raster:bands declare", "kept"):
        assert words in text
    assert "left out    cloud cover: 100 %" in explain(inventory, "cloudy")["text"]
    assert "orbit ascending" in explain(inventory, "up")["text"]
    json.dumps(explain(inventory, "may"))


def test_explaining_an_unknown_scene_names_the_closest(inventory):
    with pytest.raises(BadInput, match="no scene clody; the closest are cloudy"):
        explain(inventory, "clody")


# --- amend


def test_amending_leaves_a_scene_out_on_the_record_and_the_original_as_it_was(inventory, tmp_path):
    before = inventory.read_bytes()
    said = amend(inventory, [("may", None)], "haze", tmp_path / "j.parquet")
    scenes = {s.id: s for s in read_tile(tmp_path / "j.parquet", "33TWL")}
    assert not scenes["may"].kept and scenes["may"].dropped_reason == "amended: haze"
    old, new = read_header(inventory), read_header(tmp_path / "j.parquet")
    assert inventory.read_bytes() == before
    assert new.digest == said["digest"] != old.digest and new.counts["33TWL"].digest != old.counts["33TWL"].digest
    assert new.counts["33TWL"].s2 == 2 and new.amendments == ("may: haze",) and new.frozen == old.frozen
    assert "left out    amended: haze" in explain(tmp_path / "j.parquet", "may")["text"]
    others = [s for s in read_tile(inventory, "33TWL") if s.id != "may"]
    assert [s for i, s in scenes.items() if i != "may"] == others


def test_dropping_a_band_takes_an_optical_scene_and_leaves_a_radar_one_its_other_polarisation(inventory, tmp_path):
    amend(inventory, [("may", "B11"), ("up", "VH")], "cut short", tmp_path / "j.parquet")
    scenes = {s.id: s for s in read_tile(tmp_path / "j.parquet", "33TWL")}
    assert not scenes["may"].kept and "B11" in scenes["may"].dropped_reason
    assert scenes["up"].kept and [a.band for a in scenes["up"].assets] == ["VV"]
    assert "kept, less  amended: cut short (band VH)" in explain(tmp_path / "j.parquet", "up")["text"]
    said = amend(tmp_path / "j.parquet", [("up", "VV")], "that too", tmp_path / "k.parquet")
    assert not {s.id: s for s in read_tile(tmp_path / "k.parquet", "33TWL")}["up"].kept
    assert read_header(tmp_path / "k.parquet").amendments == (
        "may (for its band B11): cut short",
        "up, band VH: cut short",
        *said["amended"],
    )


@pytest.mark.parametrize(
    ("drops", "reason", "words"),
    [
        ([("mai", None)], "x", "no scene mai; the closest are may"),
        ([("may", "VV")], "x", "scene may has no band VV; it has B04"),
        ([("cloudy", None)], "x", "left out already: cloud cover"),
        ([], "x", "needs --drop"),
        ([("may", None)], " ", "needs --drop"),
    ],
)
def test_an_amendment_that_changes_nothing_is_refused(inventory, tmp_path, drops, reason, words):
    with pytest.raises(BadInput, match=words):
        amend(inventory, drops, reason, tmp_path / "j.parquet")
    assert not (tmp_path / "j.parquet").exists()


def test_an_amendment_never_writes_over_its_inventory(inventory):
    with pytest.raises(BadInput, match="is the inventory itself"):
        amend(inventory, [("may", None)], "x", inventory)


# --- an API


@contextlib.contextmanager
def loopback(items, faults=(), circles=False):
    """A STAC API that answers in pages of two, and with the faults first."""
    left = list(faults)
    with faulty_api(items) as (url, api):
        api.page, api.circle = 2, circles
        api.fault = lambda *_: status(left.pop()) if left else None
        yield url, api


@contextlib.contextmanager
def serving(handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def strip(scenes):
    """Scenes without their hrefs' folder, which an API and a folder name differently."""
    return [
        (s.sensor, s.order, s.id, s.kept, s.offset_dn, s.dropped_reason, [a.band for a in s.assets]) for s in scenes
    ]


MANY = [optical(f"may{n}", f"2024-05-{n:02d}T10:00:00Z") for n in range(7, 16)]


def test_an_api_gives_what_a_folder_gives_page_by_page_and_month_by_month(tmp_path):
    items = [*ITEMS, *MANY]
    folder = build([(str(write(tmp_path / "cat", items)), None)], YEAR, ["33TWL"], tmp_path / "f.parquet")
    with loopback(items) as (url, served):
        said = build([(url, None)], YEAR, ["33TWL"], tmp_path / "a.parquet")
    assert said["tiles"] == folder["tiles"]
    assert strip(read_tile(tmp_path / "a.parquet", "33TWL")) == strip(read_tile(tmp_path / "f.parquet", "33TWL"))
    assert all(s["limit"] <= 100 and len(s["collections"]) == 1 for s in served.searches)
    assert len({s["datetime"] for s in served.searches}) == 12
    assert read_header(tmp_path / "a.parquet").roots == {ES_C1: url, PC_RTC: url}


def test_hrefs_of_an_api_do_not_depend_on_where_it_listens(tmp_path):
    digests = []
    for name in "ab":
        items = [optical("may", href="HERE/files/{band}.tif")]
        with loopback(items) as (url, _api):
            items[0]["assets"] = json.loads(json.dumps(items[0]["assets"]).replace("HERE", url))
            digests.append(build([(url, None)], YEAR, ["33TWL"], tmp_path / f"{name}.parquet")["digest"])
    assert digests[0] == digests[1]
    assert read_tile(tmp_path / "a.parquet", "33TWL")[0].assets[0].href == "files/B04.tif"


def test_a_busy_api_is_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(api, "PATIENCE", api.Patience(first_s=0))
    with loopback(ITEMS, faults=[429, 502, 503, 504]) as (url, _api):
        said = build([(url, None)], YEAR, ["33TWL"], tmp_path / "i.parquet")
    assert said["tiles"]["33TWL"]["S2"] == 3


def test_an_api_that_keeps_failing_is_named_with_its_status(tmp_path, monkeypatch):
    monkeypatch.setattr(api, "PATIENCE", api.Patience(tries=3, first_s=0))
    said = r"HTTP status 503 after 3 tries \(sentinel-1-rtc over tile 33TWL, 2024-01\); try again later"
    with loopback(ITEMS, faults=[503] * 1000) as (url, _api), pytest.raises(BadInput, match=f"{url}: {said}"):
        build([(url, None)], YEAR, ["33TWL"], tmp_path / "i.parquet")
    with pytest.raises(BadInput, match=f"catalogue {url}: no answer"):
        build([(url, None)], YEAR, ["33TWL"], tmp_path / "i.parquet")


class Answer(BaseHTTPRequestHandler):
    """Says one thing to everybody."""

    status: int
    body: bytes

    def do_GET(self):
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_):
        return


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"", "not a STAC API"),
        (200, b"<html>", "not a STAC API"),
        (200, b"[]", "not a STAC API"),
        (200, b"{}", "not a STAC API"),
        (200, b'{"type": "Feature"}', "not a STAC API"),
        (404, b"{}", "HTTP status 404; check the URL"),
        (403, b"{}", "HTTP status 403; check the URL"),
    ],
)
def test_a_url_that_is_no_api_is_refused(tmp_path, status, body, words):
    handler = type("Handler", (Answer,), {"status": status, "body": body})
    with serving(handler) as url, pytest.raises(BadInput, match=f"catalogue {url}: .*{words}"):
        build([(url, None)], YEAR, ["33TWL"], tmp_path / "i.parquet")


@pytest.mark.parametrize("url", ["https://h/v1?token=word", "https://me:word@h/v1"])
def test_a_url_with_secrets_is_refused_without_showing_them(tmp_path, url):
    with pytest.raises(BadInput, match="catalogue at h: give its URL without query and user name") as e:
        build([(url, None)], YEAR, ["33TWL"], tmp_path / "i.parquet")
    assert "word" not in str(e.value)


def test_pages_that_go_in_circles_are_no_endless_search(tmp_path):
    with loopback(ITEMS, circles=True) as (url, _api), pytest.raises(BadInput, match="go in circles"):
        build([(url, None)], YEAR, ["33TWL"], tmp_path / "i.parquet")


def test_an_api_without_our_collections_is_refused(tmp_path):
    items = [{**optical("a"), "collection": "landsat-c2-l2"}]
    with loopback(items) as (url, _api), pytest.raises(BadInput, match=r"none of the collections .*sentinel-1-rtc"):
        build([(url, None)], YEAR, ["33TWL"], tmp_path / "i.parquet")


def test_an_antimeridian_tile_is_searched_on_both_sides(tmp_path):
    item = optical("edge", tile="01WCQ")
    west, south, east, north = grid.bbox_of("01WCQ")
    item["bbox"] = [-180.0, south, east, north]  # the eastern part alone: a server that cuts there finds it only so
    with loopback([item]) as (url, served):
        said = build([(url, None)], YEAR, ["01WCQ"], tmp_path / "i.parquet")
    assert said["tiles"]["01WCQ"]["S2"] == 1
    boxes = {tuple(s["bbox"]) for s in served.searches}
    assert len(boxes) == 2 and all(w < e for w, _, e, _ in boxes)
    assert {round(w, 6) for w, *_ in boxes} == {-180.0, round(west, 6)}


# --- the synthetic planet


@pytest.fixture(scope="module")
def small_planet(tmp_path_factory):
    return planet.build(tmp_path_factory.mktemp("planet") / "p", size_m=640)


def test_the_planets_scenes_are_taken_as_its_truth_says(small_planet, tmp_path):
    said = build([(str(small_planet.folder), None)], YEAR, small_planet.tiles, tmp_path / "i.parquet", now=NOW)
    assert said["dropped"] == {"cloud cover": 3, "duplicate": 3} and not said["ignored"]
    for tile in small_planet.tiles:
        scenes = {s.id: s for s in read_tile(tmp_path / "i.parquet", tile)}
        visits = {i: v for i, v in small_planet.s2_ids(tile).items() if v.datatake.year == 2024}
        assert {i for i, s in scenes.items() if s.sensor == "S2"} == set(visits)
        for scene_id, visit in visits.items():
            scene = scenes[scene_id]
            assert scene.kept == (not visit.bias_dn and visit.datatake.date() != OVERCAST)
            assert scene.offset_dn == small_planet.offset_dn(scene_id)
            assert (scene.baseline, scene.relative_orbit) == (visit.baseline, visit.orbit)
        passes = {i: p for i, p in small_planet.s1_ids().items() if p.start.year == 2024}
        assert {i: scenes[i].orbit for i in passes} == {i: p.orbit_state for i, p in passes.items()}
        assert {scenes[i].asset("VV").epsg for i in passes} == {32632, 32633}
        for asset in (a for s in scenes.values() for a in s.assets):
            assert (small_planet.folder / asset.href).stat().st_size == asset.size_bytes


def test_the_planets_api_and_its_static_catalogue_give_the_same_scenes_and_decisions(small_planet, tmp_path):
    folder = build([(str(small_planet.folder), None)], YEAR, small_planet.tiles, tmp_path / "f.parquet", now=NOW)
    with serve(small_planet.folder) as url:
        served = build([(url, None)], YEAR, small_planet.tiles, tmp_path / "a.parquet", now=NOW)
    same = ("tiles", "dropped", "warnings", "period", "frozen")
    assert {k: served[k] for k in same} == {k: folder[k] for k in same}
    for tile in small_planet.tiles:
        from_folder = [under(s, "files/") for s in read_tile(tmp_path / "f.parquet", tile)]
        assert read_tile(tmp_path / "a.parquet", tile) == from_folder
    with serve(small_planet.folder) as url:  # on another port, a month's pages in another order or not
        assert build([(url, None)], YEAR, small_planet.tiles, tmp_path / "b.parquet")["digest"] == served["digest"]


def under(scene, prefix):
    return dataclasses.replace(scene, assets=tuple(dataclasses.replace(a, href=prefix + a.href) for a in scene.assets))
