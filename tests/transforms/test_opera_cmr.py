"""OPERA's bursts from CMR: pages, headers of files, and hosts that refuse."""

import contextlib
import http.server
import json
import threading
import urllib.parse

import pytest
from opera_granules import YEAR, name_of, scenes, umm, write_tif
from stac_items import TILE

from model.errors import BadInput
from transforms import grid, hosts, signing
from transforms.catalogs import cmr, headers
from transforms.catalogs.exchange import Patience
from transforms.catalogs.headers import Headers
from transforms.catalogs.search import open_catalog
from transforms.http import LOGIN, Fetcher, Retries
from transforms.remote import use_fetcher


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


def test_a_url_with_a_query_or_a_user_is_refused_without_showing_it():
    for url in ("https://h/search?token=word", "https://user:word@h/search"):
        with pytest.raises(BadInput) as e:
            open_catalog(url, "opera")
        assert "word" not in str(e.value)
