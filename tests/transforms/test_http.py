import collections
import concurrent.futures
import contextlib
import dataclasses
import os
import pickle
import random
import socket
import threading
import time

import pytest
from faulty_server import FAULTS, Server, Skipped, always, in_turn, no_faults, seeded, serve
from http_fetchers import DATA, FIXTURES, HASTY, VERSION, fetcher_of, patience_for
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms import hosts, wire
from transforms.fetching import FetchError, Version
from transforms.http import wanted
from transforms.wire import Fault, Patience

server, skipped, fetch = FIXTURES


# Ranges


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_any_range_brings_exactly_its_bytes_cut_at_the_end(data):
    with serve(Server({"/a.tif": DATA[:5000]})) as server, hosts.allowed(server.place):
        fetch = fetcher_of(Skipped())
        for _ in range(5):
            start = data.draw(st.integers(0, 4999))
            stop = start + data.draw(st.integers(1, 6000))
            piece = fetch(f"{server.url}/a.tif", start, stop, None)
            assert piece.data == DATA[:5000][start:stop]
            assert piece.version == Version(5000, '"1"')


def test_one_connection_serves_many_requests(server, fetch):
    for start in range(0, 50_000, 1000):
        fetch(f"{server.url}/a.tif", start, start + 1000, VERSION)
    assert server.connections == 1
    assert {k: v for k, v in fetch.counters.read().items() if k != "fetch_s"} == {"requests": 50, "bytes": 50_000}
    assert server.seen[0].headers["range"] == "bytes=0-999"
    assert server.seen[0].headers["accept-encoding"] == "identity"


def test_errors_with_short_bodies_keep_the_connection(server, fetch):
    server.plan = in_turn("429", "500", "403", "html-200")
    fetch(f"{server.url}/a.tif", 0, 100, VERSION)
    assert server.connections == 1


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 5), (6, 5)])
def test_a_range_that_is_none_is_refused(fetch, start, stop):
    with pytest.raises(ValueError, match="no range"):
        fetch("https://a.example/a", start, stop, None)


def test_a_start_past_the_end_is_an_error_with_its_status(server, fetch):
    with pytest.raises(FetchError) as e:
        fetch(f"{server.url}/a.tif", 300_000, 300_001, VERSION)
    assert (e.value.kind, e.value.status) == ("status", 416)
    fetch(f"{server.url}/a.tif", 0, 10, VERSION)  # and says nothing of the file's other ranges


def test_a_200_is_taken_where_the_whole_file_was_asked_for(server, fetch):
    server.plan = always("whole-200")
    piece = fetch(f"{server.url}/a.tif", 0, len(DATA) + 100, None)
    assert (piece.data, piece.version) == (DATA, VERSION)
    with pytest.raises(FetchError, match="part of the file was asked for"):
        fetch(f"{server.url}/a.tif", 0, len(DATA) - 1, None)


# Faults


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_tried_again_until_the_right_bytes_come(server, skipped, fault):
    server.plan = in_turn(fault)
    fetch = fetcher_of(skipped, patience=patience_for(fault))
    if fault == "changed":
        with pytest.raises(FetchError) as e:
            fetch(f"{server.url}/a.tif", 100, 3100, VERSION)
        assert e.value.kind == "changed"
        assert len(server.seen) == 1, "at once"
    assert fetch(f"{server.url}/a.tif", 100, 3100, VERSION).data == DATA[100:3100]
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    ("fault", "kind", "status", "requests"),
    [
        ("429", "status", 429, 8),
        ("503", "status", 503, 8),
        ("500", "status", 500, 8),
        ("403", "status", 403, 2),
        ("404", "status", 404, 1),
        ("410", "status", 410, 1),
        ("418", "status", 418, 1),
        ("reset", "reset", None, 8),
        ("garbage", "reset", None, 8),
        ("early-end", "short", None, 8),
        ("wrong-length", "short", None, 8),
        ("wrong-range", "short", None, 8),
        ("slow-drip", "timeout", None, 8),
        ("slow-head", "timeout", None, 8),
        ("stall", "timeout", None, 8),
        ("empty-200", "status", 200, 4),
        ("html-200", "status", 200, 4),
        ("whole-200", "status", 200, 4),
        ("html-206", "status", 206, 4),
        ("xml-206", "status", 206, 4),
        ("encoded", "status", 206, 4),
        ("changed", "changed", 206, 1),
    ],
)
def test_a_fault_that_stays_ends_in_a_typed_error_without_hanging(server, skipped, fault, kind, status, requests):
    server.plan = always(fault)
    fetch = fetcher_of(skipped, patience=patience_for(fault))
    with pytest.raises(FetchError) as e:
        fetch(f"{server.url}/a.tif?sig=SECRET", 100, 3100, VERSION)
    assert (e.value.kind, e.value.status) == (kind, status)
    assert len(server.seen) == requests
    assert f"{server.place}/a.tif" in str(e.value)
    assert "SECRET" not in str(e.value) + repr(e.value.args)
    again = pickle.loads(pickle.dumps(e.value))
    assert (again.kind, again.status, str(again)) == (e.value.kind, e.value.status, str(e.value))
    assert skipped.skipped_s <= 300


def test_a_drip_is_given_up_by_its_rate_long_before_its_time_is_over(server, skipped):
    server.plan = always("slow-drip")
    patient = dataclasses.replace(HASTY, stall_s=30.0, whole_s=60.0)  # only the rate can end it
    with pytest.raises(FetchError, match="too few to go on"):
        fetcher_of(skipped, patience=patient, tries=1)(f"{server.url}/a.tif", 0, 4000, None)


def test_a_drip_that_keeps_the_rate_is_waited_for(server, skipped):
    server.plan = always("slow-drip")
    patient = dataclasses.replace(HASTY, least_bytes_s=5.0)
    assert fetcher_of(skipped, patience=patient, tries=1)(f"{server.url}/a.tif", 0, 20, None).data == DATA[:20]


def test_a_whole_page_with_status_200_and_no_type_is_no_file(server, fetch):
    server.routes["/b.tif"] = lambda _: (200, {}, b"\n<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>")
    with pytest.raises(FetchError, match="HTML or XML") as e:
        fetch(f"{server.url}/b.tif", 0, 32768, None)
    assert e.value.status == 200


@pytest.mark.parametrize("kind", ["application/json", "text/html", "Application/XML; charset=utf-8", "text/xml"])
def test_a_whole_answer_of_a_type_that_no_image_has_is_no_file(server, fetch, kind):
    server.routes["/b.tif"] = lambda _: (200, {"Content-Type": kind}, b"not allowed")
    with pytest.raises(FetchError, match="in place of the file") as e:
        fetch(f"{server.url}/b.tif", 0, 32768, None)
    assert e.value.status == 200


@pytest.mark.parametrize("field", ["size", "tag"])
def test_another_version_is_told_at_once(server, fetch, field):
    other = Version(len(DATA) + 1, '"1"') if field == "size" else Version(len(DATA), '"0"')
    with pytest.raises(FetchError) as e:
        fetch(f"{server.url}/a.tif", 0, 100, other)
    assert e.value.kind == "changed"
    fetch(f"{server.url}/a.tif", 0, 100, VERSION)  # not in quarantine


def test_a_file_that_shrank_below_the_range_has_changed(server, fetch):
    server.files["/a.tif"] = DATA[:1000]
    with pytest.raises(FetchError) as e:
        fetch(f"{server.url}/a.tif", 5000, 6000, VERSION)
    assert e.value.kind == "changed"


@contextlib.contextmanager
def raw(*answers):
    """A server that sends each of these bytes to one connection and closes it; gives its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = f"127.0.0.1:{listener.getsockname()[1]}"

        def answer():
            for said in answers:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(said)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with hosts.allowed(place):
            yield f"http://{place}/a"
        thread.join(10)
        assert not thread.is_alive(), "an answer was not asked for"


HEAD = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-99/200000\r\n"
TAGGED = HEAD + b'ETag: "1"\r\n'


@pytest.mark.parametrize(
    "wrong",
    [
        HEAD + b"Content-Length: 100\r\n",
        TAGGED + b"Connection: close\r\n\r\n" + DATA[:50],
        TAGGED + b"Connection: close\r\n\r\n" + DATA[:150],
        TAGGED + b"Content-Length: 100\r\n\r\n" + DATA[:99],
        TAGGED + b"Content-Length: 100\r\nContent-Length: 50\r\n\r\n" + DATA[:100],
        TAGGED + b"Transfer-Encoding: chunked\r\n\r\n32\r\n" + DATA[:50] + b"\r\n0\r\n\r\n",
        TAGGED + b"Transfer-Encoding: chunked\r\n\r\n32\r\n" + DATA[:50] + b"\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + DATA[:100],
        b"HTTP/1.1 206 Partial Content\r\nConnection: close\r\n\r\n" + DATA[:100],
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-99/*\r\nConnection: close\r\n\r\n" + DATA[:100],
        b"HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
        b"",
    ],
    ids=[
        *("head cut before its ETag", "ends early without a length", "too long without a length", "one byte short"),
        *("two lengths", "chunks that are short", "chunks without an end", "200 without a length", "no Content-Range"),
        *("unknown total", "304", "204", "nothing"),
    ],
)
def test_an_answer_that_is_cut_or_lies_about_its_length_is_tried_again(wrong):
    right = TAGGED + b"Content-Length: 100\r\n\r\n" + DATA[:100]
    with raw(wrong, right) as url:
        assert fetcher_of(Skipped())(url, 0, 100, VERSION).data == DATA[:100]


def test_chunks_that_make_up_the_range_are_taken():
    body = b"32\r\n" + DATA[:50] + b"\r\n32\r\n" + DATA[50:100] + b"\r\n0\r\n\r\n"
    with raw(TAGGED + b"Transfer-Encoding: chunked\r\n\r\n" + body) as url:
        assert fetcher_of(Skipped())(url, 0, 100, VERSION).data == DATA[:100]


def test_a_server_that_is_not_there_ends_in_an_error():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        place = f"127.0.0.1:{gone.getsockname()[1]}"
    with hosts.allowed(place), pytest.raises(FetchError) as e:
        fetcher_of(Skipped())(f"http://{place}/a", 0, 10, None)
    assert e.value.kind == "reset"


def test_a_server_that_accepts_and_says_nothing_ends_in_an_error():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        with hosts.allowed(place):
            for scheme in ("http", "https"):
                with pytest.raises(FetchError) as e:
                    fetcher_of(Skipped(), patience=HASTY, tries=2, failed_s=0)(f"{scheme}://{place}/a", 0, 10, None)
                assert e.value.kind == "timeout"


# Waits


def test_retry_after_is_obeyed_by_every_thread_and_bounded(server, skipped):
    fetch = fetcher_of(skipped, obeyed_s=20.0)
    server.retry_after = "3600"
    server.plan = in_turn("429")
    fetch(f"{server.url}/a.tif", 0, 10, VERSION)
    assert skipped.skipped_s == pytest.approx(20, abs=0.6)
    assert fetch.counters.read()["throttled_s"] == pytest.approx(20, abs=1)


def test_retry_after_as_a_date_counts_from_the_servers_own_clock(server, skipped):
    fetch = fetcher_of(skipped)
    said = {"Retry-After": "Mon, 01 Jan 2001 00:00:20 GMT", "Date": "Mon, 01 Jan 2001 00:00:10 GMT"}
    assert wire.retry_after(said) == 10
    assert wire.retry_after({"Retry-After": "soon"}) is None
    assert wire.retry_after({}) is None
    assert fetch.retries.obeyed_s >= 10


def test_waits_are_random_between_nothing_and_a_doubling_bound(server, skipped):
    drawn = []
    fetch = fetcher_of(skipped)
    fetch._chance = lambda low, high: drawn.append((low, high)) or high
    server.plan = always("500")
    with pytest.raises(FetchError):
        fetch(f"{server.url}/a.tif", 0, 10, None)
    assert drawn == [(0, min(30.0, 0.5 * 2**n)) for n in range(8)]
    assert skipped.sleeps == [high for _, high in drawn[:-1]]


def test_all_tries_together_keep_to_their_time(server, skipped):
    fetch = fetcher_of(skipped, total_s=5.0, tries=1000)
    fetch._chance = lambda low, high: high
    server.plan = always("500")
    with pytest.raises(FetchError, match=r"tries in"):
        fetch(f"{server.url}/a.tif", 0, 10, None)
    assert skipped.skipped_s <= 5.0


def test_the_counters_say_what_happened(server, fetch):
    server.plan = in_turn("429", "reset", "early-end", "html-200", "403")
    fetch(f"{server.url}/a.tif", 0, 10, VERSION)
    said = fetch.counters.read()
    assert {k: v for k, v in said.items() if not k.endswith("_s")} == {
        "requests": 6, "bytes": 10, "cuts": 1, "retries_429": 1, "retries_reset": 1, "retries_short": 1,
        "retries_200": 1, "retries_denied": 1,
    }  # fmt: skip
    assert said["retry_s"] > 0


def test_a_host_that_refuses_is_asked_for_less_at_once(server, skipped):
    fetch = fetcher_of(skipped)
    before = fetch.turns.limit(server.place)
    server.plan = in_turn("503")
    fetch(f"{server.url}/a.tif", 0, 10, VERSION)
    assert fetch.turns.limit(server.place) < before


# Quarantine


def test_a_file_that_is_gone_is_not_asked_for_again_for_a_while(server, fetch, skipped):
    for start in (0, 100, 200):
        with pytest.raises(FetchError) as e:
            fetch(f"{server.url}/none.tif?sig=a{start}", start, start + 10, None)
        assert e.value.status == 404
    assert "not asked again for a while" in str(e.value)
    assert len(server.seen) == 1
    assert fetch.counters.read()["quarantined"] == 2
    skipped.sleep(fetch.retries.gone_s + 1)
    server.files["/none.tif"] = DATA
    assert fetch(f"{server.url}/none.tif", 0, 10, None).data == DATA[:10]


def test_a_file_that_failed_every_try_is_left_alone_for_less_long(server, fetch, skipped):
    server.plan = always("500")
    with pytest.raises(FetchError):
        fetch(f"{server.url}/a.tif", 0, 10, None)
    server.plan = no_faults
    with pytest.raises(FetchError, match="not asked again"):
        fetch(f"{server.url}/a.tif", 0, 10, None)
    skipped.sleep(fetch.retries.failed_s + 1)
    fetch(f"{server.url}/a.tif", 0, 10, None)


# All of it

MIXED = {
    **dict.fromkeys(FAULTS, 10.0),
    "stall": 1.0,
    "slow-drip": 1.0,
    "slow-head": 0.3,
    "changed": 1.0,
    "garbage": 3.0,
}


@pytest.mark.slow
def test_ten_thousand_faulty_answers_leave_every_byte_right_or_a_typed_error():
    """16 threads, every fault in its share, seeded: what comes is the file's own, and all of it ends."""
    seed = int(os.environ.get("SEED", "20261121"))
    files = {f"/{n}.tif": random.Random(f"{seed} {n}").randbytes(40_000) for n in range(170)}
    hasty = Patience(first_s=0.3, stall_s=0.06, window_s=0.05, whole_s=1.0)
    outcome = collections.Counter()
    began = time.monotonic()
    with serve(Server(files, seeded(seed, 0.62, MIXED))) as server, hosts.allowed(server.place):
        fetch = fetcher_of(
            Skipped(), least=8, patience=hasty, tries=12, bad_tries=12, total_s=1e6, gone_s=0, failed_s=0
        )

        def read(job):
            path, start = job
            try:
                piece = fetch(f"{server.url}{path}", start, start + 1000, Version(40_000, '"1"'))
            except FetchError as e:
                return e.kind
            return "right" if piece.data == files[path][start : start + 1000] else "wrong"

        jobs = [(path, start) for path in files for start in range(0, 40_000, 1000)]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            outcome.update(pool.map(read, jobs))
        assert sum(server.faults.values()) >= 10_000, server.faults
        assert set(server.faults) == set(FAULTS)
    assert outcome["wrong"] == 0, outcome
    assert set(outcome) <= {"right", "status", "reset", "short", "timeout", "changed"}
    assert outcome["right"] > 0.95 * len(jobs), outcome
    said = fetch.counters.read()
    # A request that is given up before the server has read its head is counted here alone.
    assert len(server.seen) <= said["requests"] <= 1.01 * len(server.seen)
    assert said["bytes"] == outcome["right"] * 1000 + outcome["changed"] * 1000
    print(
        f"{sum(server.faults.values())} faults, {len(jobs)} ranges, {time.monotonic() - began:.1f} s, {dict(outcome)}"
    )


SMALL = st.integers(0, 12)


@pytest.mark.slow
@given(
    st.sampled_from([206] * 6 + [200] * 3 + [204, 302, 304, 404, 416, 500]),
    st.fixed_dictionaries(
        {"Content-Range": st.tuples(SMALL, SMALL, SMALL).map(lambda v: "bytes {}-{}/{}".format(*v)) | st.text()},
        optional={
            "Content-Length": SMALL.map(str) | st.text(max_size=5),
            "Content-Type": st.sampled_from(["image/tiff", "text/html", "text/plain", ""]),
            "Content-Encoding": st.sampled_from(["identity", "gzip", ""]),
            "ETag": st.text(max_size=5),
            "Location": st.text(max_size=5),
        },
    ),
    st.integers(0, 10),
    st.integers(1, 10),
)
@settings(max_examples=2000)
def test_no_head_of_an_answer_is_taken_unless_it_fits_the_range(status, said, start, size):
    try:
        length, version = wanted(status, said, start, start + size, None)
    except (Fault, FetchError):
        return
    assert status in (200, 206)
    assert length == min(start + size, version.total_bytes) - start > 0
    if status == 200:
        assert (start, length) == (0, version.total_bytes)
