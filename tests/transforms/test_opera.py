"""OPERA's bursts: granule records on disk and from CMR, what they lack read from their files."""

import contextlib
import copy
import http.server
import json
import re
import shutil
import threading
import urllib.parse

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from stac_items import SHARED, TILE, optical

from model.errors import BadInput
from model.profile import ES_L2A, OPERA_RTC
from pipeline import inventory
from transforms import grid, hosts, signing
from transforms.catalogs import cmr, headers
from transforms.catalogs.exchange import Patience
from transforms.catalogs.headers import Headers, box_of, local_header
from transforms.catalogs.items import item_boxes, record_of
from transforms.catalogs.opera import box_around, granules_in, item_of
from transforms.catalogs.search import open_catalog
from transforms.catalogs.selection import select
from transforms.http import LOGIN, Fetcher, Retries
from transforms.inventory import read_tile
from transforms.periods import period_of
from transforms.remote import use_fetcher
from transforms.scenes import S1, S2

AWS = SHARED / "golden/scenes_aws"
golden = pytest.mark.skipif(not AWS.is_dir(), reason="no ../shared/golden")
YEAR = period_of("2024")


def name_of(burst="T146-312000-IW2", taken="20240506T160713Z", made="20240507T010713Z", satellite="S1A"):
    return f"OPERA_L2_RTC-S1_{burst}_{taken}_{made}_{satellite}_30_v1.0"


def granule(name=None, folder="opera", start=None, **said):
    """A record as granules.json has it."""
    name = name or name_of()
    taken = re.search(r"_(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z_", name).groups()
    links = [
        {"href": f"{folder}/{name}_{kind}"} for kind in ("VV.tif", "VH.tif", "mask.tif", "BROWSE.png", "VV.tif.md5")
    ]
    return {"title": name, "time_start": start or "{}-{}-{}T{}:{}:{}.000Z".format(*taken), "links": links, **said}


def umm(name=None, folder="https://cumulus.asf.earthdatacloud.nasa.gov/OPERA", orbit="ASCENDING", points=None):
    """The same as granules.umm_json has it."""
    plain = granule(name, folder)
    files = [link["href"] for link in plain["links"]]
    corners = points or [(15.05, 45.98), (15.09, 45.98), (15.09, 46.01), (15.05, 46.01), (15.05, 45.98)]
    ring = {"Boundary": {"Points": [{"Longitude": x, "Latitude": y} for x, y in corners]}}
    return {
        "meta": {"concept-id": f"G{abs(hash(plain['title']))}-ASF"},
        "umm": {
            "GranuleUR": plain["title"],
            "TemporalExtent": {"RangeDateTime": {"BeginningDateTime": plain["time_start"]}},
            "SpatialExtent": {"HorizontalSpatialDomain": {"Geometry": {"GPolygons": [ring]}}},
            "RelatedUrls": [
                *({"Type": "GET DATA VIA DIRECT ACCESS", "URL": f"s3://opera/{f.rpartition('/')[2]}"} for f in files),
                *({"Type": "GET DATA", "URL": f} for f in files),
                {"Type": "USE SERVICE API", "URL": f"https://h/{plain['title']}_VV.tif"},
            ],
            "AdditionalAttributes": [{"Name": "ASCENDING_DESCENDING", "Values": [orbit]}] if orbit else [],
        },
    }


def write_tif(path, orbit="ASCENDING", epsg=32633, left=504_480, top=5_093_880, shape=(28, 45), **tags):
    path.parent.mkdir(parents=True, exist_ok=True)
    transform = rasterio.Affine(30, 0, left, 0, -30, top)
    with rasterio.open(
        path, "w", driver="COG", dtype="float32", count=1, height=shape[0], width=shape[1], crs=f"EPSG:{epsg}",
        transform=transform, nodata=np.nan,
    ) as file:  # fmt: skip
        file.write(np.full((1, *shape), 0.1, np.float32))
        file.update_tags(**({"ORBIT_PASS_DIRECTION": orbit} if orbit else {}), **tags)
    return path


def on_disk(folder, *granules, **tif):
    """A list of granules beside their files."""
    for g in granules:
        for link in g["links"][:2]:
            write_tif(folder / link["href"], **tif)
    (folder / "granules.json").write_text(json.dumps({"feed": {"entry": list(granules)}}))
    return open_catalog(str(folder / "granules.json"), "opera")


def scenes(catalog, tile=TILE, period=YEAR):
    return select([r for f in catalog.items(tile, period) if (r := record_of(f, tile, catalog.root)) is not None])


# --- the golden list


@golden
@pytest.mark.parametrize(
    "catalogues",
    [
        [(AWS / "items", "earth-search"), (AWS / "catalogue.json", "opera")],
        [(AWS / "catalogue.json", "earth-search"), (AWS / "catalogue.json", "opera")],
        [(AWS / "catalogue.json", None)],
        [(AWS, None)],
    ],
)
def test_the_golden_items_and_granules_make_one_inventory_with_the_days_and_orbits_of_the_reference(
    tmp_path, catalogues
):
    said = json.loads((AWS / "roi.json").read_text())
    out = tmp_path / "i.parquet"
    made = inventory.build([(str(c), p) for c, p in catalogues], YEAR, ["33TWL"], out)
    kept = [s for s in read_tile(out, "33TWL") if s.kept]
    s2, s1 = ([s for s in kept if s.sensor == sensor] for sensor in (S2, S1))
    assert {s.source for s in s2} == {ES_L2A}
    assert {s.source for s in s1} == {OPERA_RTC}
    assert [s.datetime for s in s2] == sorted(s.datetime for s in s2)
    assert {s.datetime[:10] for s in s2} >= set(said["s2_dates"])
    assert "2024-08-17" not in {s.datetime[:10] for s in s2}, "its cloud cover is 100"
    for orbit in ("ascending", "descending"):
        days = [s.datetime[:10] for s in s1 if s.orbit == orbit]
        assert sorted(set(days)) == said[f"sar_{orbit}_dates"]
    listed = json.loads((AWS / "catalogue.json").read_text())["OPERA_L2_RTC-S1_V1"]
    assert [s.id for s in s1] == [g["title"] for g in listed]
    assert [s.order for s in s1] == list(range(len(listed)))
    assert made["tiles"]["33TWL"]["dropped"] == 1


@golden
def test_the_grids_of_the_golden_bursts_are_those_of_their_files():
    for scene in scenes(open_catalog(str(AWS / "catalogue.json"), "opera")):
        assert [a.band for a in scene.assets] == ["VV", "VH"]
        assert scene.offset_dn == 0
        assert scene.platform == "sentinel-1a"
        for asset in scene.assets:
            with rasterio.open(AWS / asset.href) as file:
                assert (asset.height_px, asset.width_px) == file.shape
                assert asset.transform == tuple(file.transform)[:6]
                assert asset.epsg == file.crs.to_epsg()
                assert scene.orbit.upper() == file.tags()["ORBIT_PASS_DIRECTION"]


@golden
def test_a_list_in_another_order_gives_that_order_whatever_the_times(tmp_path):
    listed = json.loads((AWS / "catalogue.json").read_text())["OPERA_L2_RTC-S1_V1"]
    shutil.copytree(AWS / "opera", tmp_path / "opera")
    (tmp_path / "list.json").write_text(json.dumps(listed[::-1]))
    got = scenes(open_catalog(str(tmp_path / "list.json"), "opera"))
    assert [s.id for s in got] == [g["title"] for g in listed[::-1]]


# --- records


@pytest.mark.parametrize("wrap", [lambda g: {"feed": {"entry": g}}, lambda g: {"items": g, "hits": 9}, lambda g: g])
@pytest.mark.parametrize("form", [granule, umm])
def test_granules_are_found_in_every_answer_of_cmr(wrap, form):
    others = [3, None, {"title": "x"}, {"type": "Feature", "id": "a"}]
    assert list(granules_in(wrap([form(), *others]))) == [form()]


def test_stac_records_hold_no_granules():
    assert list(granules_in(optical())) == []
    assert list(granules_in({"type": "FeatureCollection", "features": [optical()], "links": []})) == []


def test_a_umm_record_tells_time_place_orbit_and_the_https_files_of_both_polarisations():
    item = item_of(umm(orbit="DESCENDING"))
    said = item["properties"]
    assert said["datetime"] == "2024-05-06T16:07:13.000Z"
    assert (said["sat:orbit_state"], said["sat:relative_orbit"], said["platform"]) == ("descending", 146, "sentinel-1a")
    assert said["opera:made"] == "2024-05-07T01:07:13Z"
    assert item["bbox"] == [15.05, 45.98, 15.09, 46.01]
    assert {k: a["href"].rpartition("/")[2] for k, a in item["assets"].items()} == {
        "VV": f"{name_of()}_VV.tif",
        "VH": f"{name_of()}_VH.tif",
    }
    assert all(a["href"].startswith("https://cumulus.asf.") for a in item["assets"].values())


def test_a_record_with_s3_links_alone_keeps_those():
    record = umm()
    record["umm"]["RelatedUrls"] = [u for u in record["umm"]["RelatedUrls"] if "DIRECT" in u["Type"]]
    assert item_of(record)["assets"]["VV"]["href"] == f"s3://opera/{name_of()}_VV.tif"


@pytest.mark.parametrize(
    "title",
    [
        "OPERA_L2_RTC-S1-STATIC_T146-312000-IW2_20140403_S1A_30_v1.0",
        "OPERA_L2_CSLC-S1_T146-312000-IW2_20240506T160713Z_20240507T010713Z_S1A_VV_v1.0",
        "../" + name_of(),
        name_of() + "/..",
        "",
    ],
)
def test_what_is_no_burst_of_rtc_s1_is_none(title):
    assert item_of({**granule(), "title": title}) is None


@pytest.mark.parametrize(
    ("said", "box"),
    [
        ({"polygons": [["46.0 15.0 46.2 15.0 46.2 16.0 46.0 15.0"]]}, [15.0, 46.0, 16.0, 46.2]),
        ({"boxes": ["45 14 46 16"]}, [14.0, 45.0, 16.0, 46.0]),
        ({"polygons": [["66 179.5 67 179.5 67 -179.2 66 179.5"]]}, [179.5, 66.0, -179.2, 67.0]),
        ({"polygons": [["46 north"]]}, None),
        ({"polygons": [["146 15"]]}, None),
        ({"boxes": ["1 2 3"]}, None),
        ({"polygons": 5}, None),
        ({}, None),
    ],
)
def test_the_outline_of_a_record_is_its_bbox_and_nonsense_is_none(said, box):
    assert item_of(granule(**said)).get("bbox") == box


@given(st.floats(-180, 180), st.floats(-60, 60), st.floats(0.01, 30))
def test_a_box_around_points_holds_them_all_on_either_side_of_the_antimeridian(lon, lat, width):
    lons = [(v + 180) % 360 - 180 for v in (lon, lon + width / 2, lon + width)]
    west, south, east, north = box_around([(v, lat) for v in lons])
    assert south == north == lat
    boxes = item_boxes({"bbox": [west, south, east, north]})
    assert all(any(b[0] <= v <= b[2] for b in boxes) for v in lons)
    assert sum(b[2] - b[0] for b in boxes) <= 31


# --- files on disk


def test_a_burst_without_an_outline_is_found_by_its_file_and_one_elsewhere_is_not(tmp_path):
    near, far = granule(), granule(name_of("T146-312001-IW2"))
    catalog = on_disk(tmp_path, near)
    write_tif(tmp_path / far["links"][0]["href"], top=6_093_880)
    write_tif(tmp_path / far["links"][1]["href"], top=6_093_880)
    (tmp_path / "granules.json").write_text(json.dumps([near, far]))
    catalog = open_catalog(str(tmp_path / "granules.json"), "opera")
    assert [s.id for s in scenes(catalog)] == [near["title"]]
    assert [s.id for s in scenes(catalog, grid.tile_of("33VWE"))] == []


def test_a_polar_burst_lies_on_the_tiles_that_its_own_projection_says():
    header = headers.Header(3413, (30.0, 0.0, 500_000.0, 0.0, -30.0, -900_000.0), 1000, 2000, "ascending")
    west, south, east, north = box_of(header)
    lon, lat = grid.to_lonlat([530_000], [-915_000], "EPSG:3413")
    assert west < lon[0] < east
    assert south < lat[0] < north
    assert north - south < 1


@pytest.mark.parametrize(
    ("record", "tags", "orbit", "words"),
    [
        (None, "ASCENDING", "ascending", ""),
        (None, "descending", "descending", ""),
        ("DESCENDING", "DESCENDING", "descending", ""),
        ("DESCENDING", None, "descending", ""),
        ("DESCENDING", "ASCENDING", "", "no orbit: its record and its files do not tell the same direction"),
        (None, None, "", "no orbit: neither its record nor the tag ORBIT_PASS_DIRECTION"),
        (None, "UNKNOWN", "", "no orbit: neither its record"),
    ],
)
def test_the_direction_is_what_record_and_files_agree_on(tmp_path, record, tags, orbit, words):
    # Trap T24: the reference writes "unknown" and loses the pass without a word.
    listed = umm(orbit=record, folder="opera")
    for band in ("VV", "VH"):
        write_tif(tmp_path / f"opera/{name_of()}_{band}.tif", tags)
    (tmp_path / "granules.json").write_text(json.dumps({"items": [listed]}))
    (scene,) = scenes(open_catalog(str(tmp_path / "granules.json"), "opera"))
    assert (scene.orbit, scene.kept) == (orbit, not words)
    assert scene.dropped_reason.startswith(words)


def test_two_files_that_tell_two_directions_have_none(tmp_path):
    catalog = on_disk(tmp_path, granule())
    write_tif(tmp_path / granule()["links"][1]["href"], "DESCENDING")
    (scene,) = scenes(catalog)
    assert scene.dropped_reason.startswith("no orbit: ")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: path.unlink(), "no header: VH is missing"),
        (lambda path: path.write_bytes(b"<VRTDataset/>"), "no header: VH is no GeoTIFF"),
        (lambda path: path.write_bytes(path.read_bytes()[:40]), "no header: VH is no GeoTIFF"),
        (lambda path: write_tif(path, epsg=32633, left=0) and None, ""),
    ],
)
def test_a_file_that_cannot_be_read_drops_its_burst_with_the_reason(tmp_path, harm, words):
    catalog = on_disk(tmp_path, granule(boxes=["45.9 15 46.1 15.2"]))
    harm(tmp_path / granule()["links"][1]["href"])
    (scene,) = scenes(catalog)
    assert scene.kept == (not words)
    assert scene.dropped_reason.startswith(words)
    assert str(tmp_path) not in scene.dropped_reason


def test_a_burst_that_nothing_places_is_counted(tmp_path):
    (tmp_path / "granules.json").write_text(json.dumps([granule()]))
    catalog = open_catalog(str(tmp_path / "granules.json"), "opera")
    assert scenes(catalog) == []
    assert list(catalog.ignored.values()) == [1]


@pytest.mark.parametrize("band", ["VV", "VH"])
def test_a_burst_without_either_polarisation_is_dropped_whole(tmp_path, band):
    record = granule(boxes=["45.9 15 46.1 15.2"])
    record["links"] = [link for link in record["links"] if not link["href"].endswith(f"{band}.tif")]
    for link in record["links"][:1]:
        write_tif(tmp_path / link["href"])
    (tmp_path / "granules.json").write_text(json.dumps([record]))
    (scene,) = scenes(open_catalog(str(tmp_path / "granules.json"), "opera"))
    assert scene.dropped_reason.startswith(f"no band {band}: ")


@pytest.mark.parametrize("folder", ["file:///etc", "/etc", "../..", "/vsicurl/http://h"])
def test_links_out_of_the_list_s_folder_are_refused(tmp_path, folder):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/granules.json").write_text(json.dumps([granule(folder=folder, boxes=["45.9 15 46.1 15.2"])]))
    with pytest.raises(BadInput, match="href"):
        scenes(open_catalog(str(tmp_path / "cat/granules.json"), "opera"))


def test_a_link_to_a_file_out_of_the_folder_is_refused(tmp_path):
    catalog = on_disk(tmp_path / "cat", granule())
    target = tmp_path / "cat" / granule()["links"][0]["href"]
    target.rename(tmp_path / "secret.tif")
    target.symlink_to(tmp_path / "secret.tif")
    with pytest.raises(BadInput, match="leads out"):
        scenes(catalog)


@pytest.mark.parametrize(
    "folder",
    [
        *("https://example.com/OPERA", "http://169.254.169.254/latest", "https://earthdatacloud.nasa.gov.evil.org"),
        *(f"http://{hosts.OPERA[0]}/OPERA", f"https://{hosts.OPERA[0]}:8443/OPERA", "s3://elsewhere"),
    ],
)
def test_files_on_hosts_that_are_not_the_archives_are_refused_before_a_request(tmp_path, folder):
    (tmp_path / "granules.json").write_text(json.dumps([granule(folder=folder, boxes=["45.9 15 46.1 15.2"])]))
    with pytest.raises(BadInput, match=f"{name_of()}: its files cannot be had: .*(no host|alone, not over|bucket)"):
        scenes(open_catalog(str(tmp_path / "granules.json"), "opera"))


def test_several_bursts_of_a_day_stand_in_the_order_of_the_list_and_made_again_counts_once(tmp_path):
    late, early = name_of("T146-312001-IW2", "20240506T160716Z"), name_of("T146-312000-IW2", "20240506T160713Z")
    again = name_of("T146-312000-IW2", "20240506T160713Z", made="20250101T000000Z")
    other = name_of("T146-312000-IW2", "20240506T160713Z", satellite="S1C")
    got = scenes(on_disk(tmp_path, *(granule(n) for n in (late, early, again, other))))
    assert [s.id for s in got] == [late, early, again, other]
    assert [s.kept for s in got] == [True, False, True, True]
    assert got[1].dropped_reason.startswith(f"duplicate: {again} was made later")


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(6)))
def test_the_order_of_bursts_does_not_depend_on_the_order_in_which_records_are_read(tmp_path_factory, shuffled):
    folder = tmp_path_factory.mktemp("list")
    records = [granule(name_of(f"T146-31200{n}-IW2", f"2024050{n % 2 + 1}T160713Z")) for n in range(6)]
    catalog = on_disk(folder, *records)
    found = [record_of(f, TILE, catalog.root) for f in catalog.items(TILE, YEAR)]
    assert select([found[n] for n in shuffled]) == select(found)


# --- CMR


@contextlib.contextmanager
def cmr_server(tmp_path, granules, page=None, file=None):
    """A loopback CMR over some granules, which also has their files; `page` and `file` may stand in for its answers.

    Yields (URL of the search, list of requests as (path, query, headers)); files may be fetched from it meanwhile.
    """
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            path, _, query = self.path.partition("?")
            said = urllib.parse.parse_qs(query)
            asked.append((path, said, dict(self.headers)))
            status, headers, body = answer(path, said, self.headers)
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            return

    def answer(path, said, given):
        if path.endswith(".tif"):
            if file is not None:
                return file(path)
            there = tmp_path / path.lstrip("/")
            if not there.is_file():
                return 404, {}, b""
            data = there.read_bytes()
            part = data[: headers.HEADER_BYTES]
            assert given["Range"] == f"bytes=0-{headers.HEADER_BYTES - 1}"
            return 206, {"Content-Range": f"bytes 0-{len(part) - 1}/{len(data)}"}, part
        size, start = int(said["page_size"][0]), given.get(cmr.AFTER, "0")
        if page is not None and (made := page(size, start)) is not None:
            return made
        start = int(start)
        ordered = sorted(granules, key=lambda g: g["umm"]["TemporalExtent"]["RangeDateTime"]["BeginningDateTime"])
        more = {cmr.AFTER: str(start + size)} if start < len(ordered) else {}
        body = json.dumps({"hits": len(ordered), "items": ordered[start : start + size]}).encode()
        return 200, {cmr.HITS: str(len(ordered)), **more}, body

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with hosts.allowed(f"127.0.0.1:{server.server_port}"):
            yield f"http://127.0.0.1:{server.server_port}/search", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No waiting between tries, and nothing remembered from another test's server."""
    monkeypatch.setattr(cmr, "PATIENCE", Patience(tries=2, first_s=0, answer_s=30))
    use_fetcher(Fetcher(Retries(tries=2, first_s=0)))
    yield
    use_fetcher(None)


def mirrored(tmp_path, url, *names, orbit="ASCENDING"):
    """Granules whose files lie on the mirror at `url`."""
    base = url.removesuffix("/search")
    for name in names:
        for band in ("VV", "VH"):
            write_tif(tmp_path / f"files/{name}_{band}.tif")
    return [umm(name, f"{base}/files", orbit) for name in names]


NAMES = [name_of(f"T146-31200{k}-IW2", f"202405{d:02d}T16071{k}Z") for d in range(1, 11) for k in range(3)]


def test_cmr_is_paged_to_its_end_and_each_burst_s_header_is_read_once(tmp_path, monkeypatch):
    granules = []
    monkeypatch.setattr(cmr, "PAGE_GRANULES", 7)
    with cmr_server(tmp_path, granules) as (url, asked):
        granules += mirrored(tmp_path, url, *NAMES)
        catalog = open_catalog(url, "opera")
        got = scenes(catalog)
    assert [s.id for s in got] == sorted(NAMES, key=lambda n: n[32:47])
    assert all(s.kept and s.orbit == "ascending" for s in got)
    assert {a.epsg for s in got for a in s.assets} == {32633}
    # Hrefs on the mirror itself that lie out of the search's own folder stay whole.
    assert all(a.href.startswith("http://127.0.0.1:") for s in got for a in s.assets)
    searches = [a for a in asked if a[0].endswith("granules.umm_json")]
    assert len(searches) == 5
    query = searches[0][1]
    assert query["collection_concept_id"] == ["C2777436413-ASF"]
    assert query["sort_key[]"] == ["start_date", "granule_ur"]
    assert query["temporal"] == ["2024-01-01T00:00:00Z,2024-12-31T23:59:59.999Z"]
    west, south, east, north = (float(v) for v in query["bounding_box"][0].split(","))
    assert west < 15.1 < east
    assert south < 46 < north
    assert len([a for a in asked if a[0].endswith(".tif")]) == 3


def test_a_tile_across_the_antimeridian_is_searched_on_both_sides(tmp_path):
    with cmr_server(tmp_path, []) as (url, asked):
        assert scenes(open_catalog(url, "opera"), grid.tile_of("01WCQ")) == []
    boxes = [[float(v) for v in a[1]["bounding_box"][0].split(",")] for a in asked]
    assert len(boxes) == 2
    assert {-180.0, 180.0} <= {v for box in boxes for v in box}


def test_pages_that_fail_are_halved_until_they_come(tmp_path):
    granules = []
    with cmr_server(tmp_path, granules, lambda size, start: (504, {}, b"") if size > 125 else None) as (url, asked):
        granules += mirrored(tmp_path, url, *NAMES[:3])
        assert len(scenes(open_catalog(url, "opera"))) == 3
    sizes = [int(a[1]["page_size"][0]) for a in asked if "page_size" in a[1]]
    assert sorted(set(sizes), reverse=True) == [500, 250, 125]


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (lambda size, start: (503, {}, b""), "HTTP status 503 after 2 tries, with pages of 31; try again later"),
        (lambda size, start: (200, {}, b"<html>"), "not JSON"),
        (lambda size, start: (200, {cmr.HITS: "9"}, b'{"items": []}'), "it counts 9 granules and gave 0"),
        (lambda size, start: (200, {cmr.HITS: "9", cmr.AFTER: "x"}, json.dumps([umm()]).encode()), "go in circles"),
        (lambda size, start: (200, {}, b"{}"), "this is not CMR"),
        (lambda size, start: (404, {}, b""), "HTTP status 404; check the URL"),
        (lambda size, start: (302, {"Location": "http://169.254.169.254/"}, b""), "HTTP status 302"),
    ],
)
def test_an_answer_that_is_not_the_whole_truth_is_refused_in_words(tmp_path, page, words):
    with cmr_server(tmp_path, [], page) as (url, _), pytest.raises(BadInput, match=words) as e:
        scenes(open_catalog(url, "opera"))
    assert "?" not in str(e.value)


def test_a_server_that_is_not_there_is_said_at_once(tmp_path):
    with cmr_server(tmp_path, []) as (url, asked):
        pass
    with pytest.raises(BadInput, match=r"no answer \(no connection could be made\) after 2 tries; check the network"):
        scenes(open_catalog(url, "opera"))
    assert asked == []


def test_a_granule_on_two_pages_counts_once(tmp_path, monkeypatch):
    first, second = umm(NAMES[0]), umm(NAMES[1])

    def page(size, start):
        items = [first, second] if start == "0" else [second, umm(NAMES[2])]
        more = {cmr.AFTER: "2"} if start == "0" else {}
        return 200, {cmr.HITS: "3", **more}, json.dumps({"items": items}).encode()

    with cmr_server(tmp_path, [], page) as (url, _):
        catalog = open_catalog(url, "opera")
        monkeypatch.setattr(Headers, "fill", lambda self, item, location: (item, ()))
        assert [f.item["id"] for f in catalog.items(TILE, YEAR)] == NAMES[:3]


@pytest.mark.parametrize("status", [401, 403])
def test_a_host_that_refuses_its_files_ends_the_search_with_what_to_set(tmp_path, status, monkeypatch):
    monkeypatch.setenv(signing.EARTHDATA_VARIABLE, "word")
    granules = []
    with cmr_server(tmp_path, granules, file=lambda path: (status, {}, b"")) as (url, asked):
        granules += mirrored(tmp_path, url, name_of())
        place = url.removeprefix("http://").removesuffix("/search")
        tokens = signing.Tokens(None, key="")
        use_fetcher(Fetcher(signer=signing.Signer(tokens, earthdata=(place,))))
        with pytest.raises(BadInput, match=f"HTTP {status}.*EARTHDATA_TOKEN may have ended") as e:
            scenes(open_catalog(url, "opera"))
    assert "word" not in str(e.value)
    assert asked[-1][2]["Authorization"] == "Bearer word"


def test_being_sent_to_log_in_ends_the_search_with_what_to_set(tmp_path, monkeypatch):
    monkeypatch.delenv(signing.EARTHDATA_VARIABLE, raising=False)
    granules = []
    login = f"https://{LOGIN}/oauth/authorize?client_id=word"
    with cmr_server(tmp_path, granules, file=lambda path: (302, {"Location": login}, b"")) as (url, _):
        granules += mirrored(tmp_path, url, name_of())
        place = url.removeprefix("http://").removesuffix("/search")
        use_fetcher(Fetcher(signer=signing.Signer(signing.Tokens(None, key=""), earthdata=(place,))))
        with pytest.raises(BadInput, match=r"sent to log in.*EARTHDATA_TOKEN must hold a valid token") as e:
            scenes(open_catalog(url, "opera"))
    assert "word" not in str(e.value)


def test_a_mirror_that_nobody_named_is_refused_with_the_cure_before_a_request(tmp_path, monkeypatch):
    granules = []
    with cmr_server(tmp_path, granules) as (url, asked):
        granules += mirrored(tmp_path, url, name_of())
        monkeypatch.delenv(hosts.VARIABLE)
        place = url.removeprefix("http://").removesuffix("/search")
        with pytest.raises(BadInput, match=f"name it in TESSERA_HOSTS={place}"):
            scenes(open_catalog(url, "opera"))
        monkeypatch.setenv(hosts.VARIABLE, place)
    assert [a[0] for a in asked] == ["/search/granules.umm_json"]


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (lambda path: (404, {}, b""), "answers with HTTP status 404"),
        (lambda path: (500, {}, b""), "answers with HTTP status 500"),
        (lambda path: (200, {}, b"<html>log in</html>"), "answers with something else than the file"),
        (lambda path: (200, {"Content-Type": "text/html"}, b"x" * 70_000), "answers with something else than the file"),
        (lambda path: (200, {}, b"x"), "is no GeoTIFF with its directories in front"),
        (lambda path: (200, {}, b""), "answers with something else than the file"),
        (lambda path: (206, {}, b"II*"), "does not come whole"),
        (lambda path: (302, {"Location": path + "?sig=word"}, b""), "leads from one address to the next"),
        (lambda path: (302, {"Location": "http://169.254.169.254/a.tif"}, b""), "leads on to a host that is not read"),
        (lambda path: (302, {}, b""), "answers with HTTP status 302"),
    ],
)
def test_a_file_that_its_host_does_not_give_drops_the_burst_with_the_reason(tmp_path, caplog, file, words):
    granules = []
    with caplog.at_level("DEBUG"), cmr_server(tmp_path, granules, file=file) as (url, _):
        granules += mirrored(tmp_path, url, name_of())
        (scene,) = scenes(open_catalog(url, "opera"))
    assert scene.dropped_reason.startswith(f"no header: VV {words}")
    assert "word" not in caplog.text
    assert "bounding_box" not in caplog.text


def test_a_record_is_never_changed_by_reading_it(tmp_path):
    record = granule()
    before = copy.deepcopy(record)
    on_disk(tmp_path, record)
    item_of(record)
    assert record == before


def test_the_header_of_a_file_is_the_same_by_path_and_by_its_first_bytes(tmp_path):
    path = write_tif(tmp_path / "a.tif", "DESCENDING", shape=(900, 3000))
    whole = local_header(str(path))
    assert headers.parse(path.read_bytes()[: headers.HEADER_BYTES]) == whole
    assert whole == headers.Header(32633, (30.0, 0.0, 504_480.0, 0.0, -30.0, 5_093_880.0), 900, 3000, "descending")


def test_a_url_with_a_query_or_a_user_is_refused_without_showing_it():
    for url in ("https://h/search?token=word", "https://user:word@h/search"):
        with pytest.raises(BadInput) as e:
            open_catalog(url, "opera")
        assert "word" not in str(e.value)
