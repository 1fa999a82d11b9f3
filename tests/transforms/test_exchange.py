"""Requests to a catalogue's server: what comes is whole, unpacked and within bounds, and words hold no URL."""

import gzip
import json
import zlib

import pytest
from faulty_server import Server as Web
from faulty_server import serve

from transforms.catalogs import exchange
from transforms.catalogs.exchange import NoAnswer, Patience, Server

HASTY = Patience(tries=2, first_s=0, answer_s=30)
RECORD = {"features": [{"id": "ä" * 1000}]}
PACKED = gzip.compress(json.dumps(RECORD).encode(), mtime=0)  # no clock: all workers must collect the same tests


@pytest.fixture
def web():
    with serve(Web({})) as web:
        yield web


def says(web, status, headers, body):
    web.routes["/s"] = lambda _: (status, headers, body)
    return f"{web.url}/s?token=SECRET"


def test_a_packed_answer_is_asked_for_and_unpacked(web):
    url = says(web, 200, {"Content-Encoding": "gzip", "CMR-Hits": "7"}, PACKED)
    record, said = Server(HASTY).exchange(url, sent={"X-A": "b"})
    assert record == RECORD and said["cmr-hits"] == "7"
    assert web.seen[0].headers["accept-encoding"] == "gzip" and web.seen[0].headers["x-a"] == "b"
    assert web.seen[0].path == "/s?token=SECRET"


@pytest.mark.parametrize(
    ("headers", "body", "words"),
    [
        ({"Content-Encoding": "gzip"}, PACKED[:-9], "ends early"),
        ({"Content-Encoding": "gzip"}, PACKED[:40] + b"x" + PACKED[41:], "cannot be unpacked|ends early"),
        ({"Content-Encoding": "gzip"}, b"{}", "cannot be unpacked"),
        ({"Content-Encoding": "br"}, b"\x0b\x02", "not JSON"),
        ({}, b"", "not JSON"),
        ({"Content-Length": "99999"}, b"{}", "no whole answer"),
    ],
)
def test_an_answer_that_is_not_whole_is_tried_again_and_is_a_matter_of_size(web, headers, body, words):
    with pytest.raises(NoAnswer, match=words) as e:
        Server(HASTY).ask(says(web, 200, headers, body))
    assert e.value.heavy and e.value.tries == 2 and len(web.seen) == 2
    assert "SECRET" not in str(e.value) and web.place not in str(e.value)


@pytest.mark.parametrize("packed", [True, False])
def test_no_answer_is_read_or_unpacked_beyond_its_bound(web, monkeypatch, packed):
    monkeypatch.setattr(exchange, "ANSWER_BYTES", 1 << 20)
    body = b" " * (3 << 20)
    made = zlib.compressobj(wbits=31)
    url = says(web, 200, {"Content-Encoding": "gzip"}, made.compress(body) + made.flush()) if packed else None
    with pytest.raises(NoAnswer, match=r"more than 1(,048,576 bytes came| MiB)"):
        Server(HASTY).ask(url or says(web, 200, {}, body))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://169.254.169.254/latest/meta-data", "an address of the machine's own network"),
        ("http://user:SECRET@h.example/s", "user name"),
        ("file:///etc/passwd", "scheme 'file'"),
    ],
)
def test_what_is_no_server_of_files_is_refused_after_no_request(url, words):
    with pytest.raises(NoAnswer, match=words) as e:
        Server(HASTY).ask(url)
    assert (e.value.tries, e.value.heavy) == (1, False) and "SECRET" not in str(e.value)


def test_a_server_that_is_not_there_is_no_matter_of_size():
    with serve(Web({})) as gone:
        url = gone.url
    with pytest.raises(NoAnswer, match="no connection could be made") as e:
        Server(HASTY).ask(url)
    assert (e.value.tries, e.value.heavy) == (2, False)
    assert "check the network" in str(e.value.refusal("x"))


def test_spaces_in_a_link_are_written_as_the_web_has_them(web):
    web.routes["/a%20b"] = lambda _: (200, {}, b"{}")
    assert Server(HASTY).ask(f"{web.url}/a b?x=%2F&y={{}}") == {}
    assert web.seen[0].path.startswith("/a%20b?x=%2F&y=")
