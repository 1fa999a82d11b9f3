import json
import threading
import urllib.error
import urllib.request

import numpy as np
import pystac_client
import pytest
import rasterio

from model.errors import BadInput
from pipeline.demo.api import MAX_PAGE, byte_range, respond, serve
from pipeline.demo.index import RequestError, read_index, search
from pipeline.demo.planet import build

EVERYWHERE = [-180, -90, 180, 90]


@pytest.fixture(scope="module")
def planet(tmp_path_factory):
    return build(tmp_path_factory.mktemp("planet") / "p", size_m=40, tiles=("32TQR",))


@pytest.fixture(scope="module")
def index(planet):
    return read_index(planet.folder)


@pytest.fixture(scope="module")
def url(planet):
    with serve(planet.folder) as url:
        yield url


def get(url, headers=None, data=None):
    with urllib.request.urlopen(urllib.request.Request(url, data, headers or {})) as reply:
        return reply.status, dict(reply.headers), reply.read()


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_search_pages_through_every_item_once(planet, url, method):
    client = pystac_client.Client.open(url)
    found = client.search(
        method=method,
        collections=["sentinel-2-c1-l2a"],
        bbox=list(planet.bbox),
        datetime="2024-01-01T00:00:00Z/2024-12-31T23:59:59Z",
        limit=4,
    )
    pages = [page["features"] for page in found.pages_as_dicts()]
    assert max(map(len, pages)) == 4 and len(pages) > 5
    ids = [item["id"] for page in pages for item in page]
    wanted = [id_ for id_, visit in planet.s2_ids("32TQR").items() if visit.datatake.year == 2024]
    assert sorted(ids) == sorted(wanted)
    times = [item["properties"]["datetime"] for page in pages for item in page]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_query_looks_at_properties(planet, url, method):
    client = pystac_client.Client.open(url)
    found = client.search(method=method, collections=["sentinel-1-rtc"], query={"sat:orbit_state": {"eq": "ascending"}})
    ids = {item["id"] for item in found.items_as_dicts()}
    assert ids == {id_ for id_, scene in planet.s1_ids().items() if scene.orbit_state == "ascending"}


def test_ids_find_their_items(planet, url):
    wanted = list(planet.s1_ids())[3:5]
    found = pystac_client.Client.open(url).search(ids=wanted)
    assert {item.id for item in found.items()} == set(wanted)


def test_the_client_finds_collections_and_their_items(planet, url):
    client = pystac_client.Client.open(url)
    assert {c.id for c in client.get_collections()} == {"sentinel-2-c1-l2a", "sentinel-1-rtc"}
    some = next(iter(planet.s1_ids()))
    assert client.get_collection("sentinel-1-rtc").get_item(some).id == some


def test_gdal_reads_an_asset_over_http_as_from_disk(planet, url):
    item = next(pystac_client.Client.open(url).search(collections=["sentinel-2-c1-l2a"]).items())
    href = item.assets["red"].href
    assert href.startswith(url)
    row, col, height, width = planet.island("32TQR")
    window = ((row, row + height), (col, col + width))
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"), rasterio.open(href) as src:
        served = src.read(1, window=window)
    with rasterio.open(planet.folder / "sentinel-2-c1-l2a" / item.id / "B04.tif") as src:
        np.testing.assert_array_equal(served, src.read(1, window=window))
    assert served.any()


def test_a_range_gets_its_bytes_alone(planet, url):
    some = next(iter(planet.s1_ids()))
    name = f"sentinel-1-rtc/{some}/iw-vv.rtc.tiff"
    data = (planet.folder / name).read_bytes()
    status, headers, body = get(f"{url}/files/{name}", {"Range": "bytes=16-115"})
    assert (status, body) == (206, data[16:116])
    assert headers["Content-Range"] == f"bytes 16-115/{len(data)}"
    assert get(f"{url}/files/{name}", {"Range": "bytes=-7"})[2] == data[-7:]
    assert get(f"{url}/files/{name}")[::2] == (200, data)


@pytest.mark.parametrize(
    "header, expected",
    [
        (None, None),
        ("bytes=0-0", (0, 0)),
        ("bytes=10-", (10, 99)),
        ("bytes=90-400", (90, 99)),
        ("bytes=-5", (95, 99)),
        ("bytes=-500", (0, 99)),
        ("bytes=0-1,5-6", None),
        ("bytes=-", None),
    ],
)
def test_ranges_are_read_as_rfc_9110_has_them(header, expected):
    assert byte_range(header, 100) == expected


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=7-6", "bytes=-0"])
def test_a_range_outside_the_file_is_refused(header):
    with pytest.raises(RequestError, match="100 bytes") as e:
        byte_range(header, 100)
    assert e.value.status == 416


@pytest.mark.parametrize(
    "path",
    [
        "/files/../planet.json",
        "/files/%2e%2e/%2e%2e/etc/passwd",
        "/collections/nothing",
        "/collections/a/items/b",
        "/x",
    ],
)
def test_what_is_not_in_the_catalogue_is_not_found(url, path):
    with pytest.raises(urllib.error.HTTPError) as e:
        get(url + path)
    assert e.value.code == 404
    assert json.loads(e.value.read())["code"] == "404"


@pytest.mark.parametrize(
    "asked, word",
    [
        ({"bbox": [1, 2, 3]}, "4 or 6"),
        ({"bbox": ["a", 2, 3, 4]}, "bbox"),
        ({"datetime": "yesterday"}, "yesterday"),
        ({"limit": "many"}, "limit"),
        ({"limit": -1}, "limit -1"),
        ({"token": "@"}, "token"),
        ({"query": {"eo:cloud_cover": {"near": 5}}}, "near"),
        ({"query": {"eo:cloud_cover": {"lt": "5"}}}, "eo:cloud_cover"),
        ({"intersects": {"type": "Nothing"}}, "intersects"),
    ],
)
def test_a_request_that_cannot_be_read_is_refused_by_name(url, index, asked, word):
    with pytest.raises(RequestError, match=word) as refused:
        respond(index, url, "/search", asked, posted=True)
    assert refused.value.status == 400
    with pytest.raises(urllib.error.HTTPError) as e:
        get(f"{url}/search", {"Content-Type": "application/json"}, json.dumps(asked).encode())
    assert e.value.code == 400


def test_a_page_is_never_longer_than_the_server_allows(index):
    page = respond(index, "http://x", "/search", {"limit": 10_000}, posted=True)
    assert page["numberReturned"] == min(MAX_PAGE, page["numberMatched"]) == len(page["features"])


def test_bboxes_cross_the_antimeridian_and_have_heights(index):
    assert list(search(index, {"bbox": [170, -90, -170, 90]})) == []
    assert len(list(search(index, {"bbox": EVERYWHERE}))) == len(index.entries)
    assert len(list(search(index, {"bbox": [12, 45, 0, 13, 46, 9000]}))) == len(index.entries)
    assert len(list(search(index, {"bbox": [12, 45, -170, 46]}))) == len(index.entries)


def test_an_interval_includes_its_ends_and_may_be_open(index):
    first, last = index.entries[-1], index.entries[0]
    text = first.item["properties"]["datetime"]
    assert [e.item["id"] for e in search(index, {"datetime": text})] == [first.item["id"]]
    assert len(list(search(index, {"datetime": f"{text}/.."}))) == len(index.entries)
    assert len(list(search(index, {"datetime": f"../{text}"}))) == 1
    assert list(search(index, {"datetime": last.item["properties"]["datetime"] + "/.."})) == [last]


def test_many_clients_are_served_at_once(planet, url):
    name = f"{url}/files/sentinel-1-rtc/{next(iter(planet.s1_ids()))}/iw-vv.rtc.tiff"
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(len(get(name)[2]))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 16 and len(set(answers)) == 1


def test_a_folder_without_a_catalogue_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"no catalog\.json"), serve(tmp_path):
        raise AssertionError("served nothing")
