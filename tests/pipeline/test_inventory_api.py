import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from earth_search_items import ITEMS, YEAR, optical, write
from faulty_api import faulty_api, status

from model.errors import BadInput
from model.profile import ES_C1, PC_RTC
from pipeline.inventory import build
from transforms import grid
from transforms.catalogs import api
from transforms.inventory import read_header, read_tile


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
