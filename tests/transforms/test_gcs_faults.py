import gc
import logging
import os
import threading

import google_crc32c
import pytest
from gcs_double import cut, damaged, done_but, flipped, kept, lost, meanwhile, reset, slow, status
from gcs_places import FIXTURES, failure

from model.errors import BadInput
from transforms import gcs_calls, gcs_store
from transforms.gcs_bytes import CHUNK_BYTES
from transforms.storage import Source, open_store

PASSING = {str(code): status(code) for code in (408, 429, 500, 502, 503, 504)} | {
    "slower": status(403, "rateLimitExceeded"),
    "reset": reset,
}

double, store = FIXTURES


@pytest.fixture
def hasty(double):
    """The same folder, for what never gets better."""
    return gcs_store.gcs_store("gs://b/out", patience_s=0.3)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(gcs_calls, "FIRST_PAUSE_S", 0.001)


def held(double):
    """Objects below the store's root."""
    return {name.removeprefix("out/"): found.data for name, found in double.buckets["b"].items()}


def written(store, data):
    with store.writer("x") as f:
        f.write(data)


BIG = os.urandom(2 * CHUNK_BYTES + 12_345)
CALLS = {
    "put_if_absent": ("upload", lambda s: s.put_if_absent("x", b"12")),
    "replace_if absent": ("upload", lambda s: s.replace_if("x", b"12", "")),
    "replace_if": ("upload", lambda s: s.replace_if("old", b"12", s.load("old").version)),
    "replace": ("upload", lambda s: s.replace("x", b"12")),
    "writer": ("upload", lambda s: written(s, b"12")),
    "start": ("start", lambda s: written(s, BIG)),
    "chunk": ("chunk", lambda s: written(s, BIG)),
    "finish": ("finish", lambda s: written(s, BIG)),
    "get": ("get", lambda s: s.get("old", 1, 2)),
    "load": ("get", lambda s: s.load("old")),
    "stat": ("stat", lambda s: s.stat("old")),
    "names": ("list", lambda s: s.names("")),
    "folders": ("list", lambda s: s.folders("")),
    "walk": ("list", lambda s: list(s.walk(""))),
    "delete": ("delete", lambda s: s.delete("old")),
    "delete_all": ("delete", lambda s: s.delete_all("d")),
    "join": ("compose", lambda s: s.join("x", b"12", [Source("old", 3)], "scratch").crc32c),
    "concerns": ("bucket", lambda s: s.concerns()),
}
RESULTS = {
    "put_if_absent": True, "replace_if absent": True, "replace_if": True, "get": b"ld", "names": ["old"],
    "folders": ["d"], "concerns": [], "join": google_crc32c.Checksum(b"12old").hexdigest().decode(),
}  # fmt: skip


def prepared(double):
    for name, data in (("old", b"old"), ("d/1", b"1"), ("d/2", b"2")):
        double.put("b", f"out/{name}", data)


def expected(call, before):
    after = dict(before)
    if call in ("delete", "delete_all"):
        return {k: v for k, v in before.items() if (k != "old" if call == "delete" else not k.startswith("d/"))}
    if call == "replace_if":
        after["old"] = b"12"
    elif call == "join":
        after |= {"x": b"12old", "scratch/head": b"12", "scratch/0-00000": b"12old"}
    elif CALLS[call][0] in ("start", "chunk", "finish"):
        after["x"] = BIG
    elif CALLS[call][0] == "upload":
        after["x"] = b"12"
    return after


@pytest.mark.parametrize("fault", PASSING)
@pytest.mark.parametrize("call", CALLS)
def test_what_passes_is_tried_again_and_the_call_does_what_it_does_otherwise(double, store, call, fault):
    prepared(double)
    before = held(double)
    kind, act = CALLS[call]
    double.then(kind, PASSING[fault], PASSING[fault])
    result = act(store)
    assert result == RESULTS.get(call, result)
    assert held(double) == expected(call, before)
    assert not double.faults[kind]


@pytest.mark.parametrize("fault", [lost, done_but(503)], ids=["lost", "503"])
@pytest.mark.parametrize("call", CALLS)
def test_a_call_whose_answer_was_lost_counts_as_done(double, store, call, fault):
    prepared(double)
    before = held(double)
    kind, act = CALLS[call]
    double.then(kind, fault)
    result = act(store)
    assert result == RESULTS.get(call, result)
    assert held(double) == expected(call, before)
    assert double.unfinished == (["out/x"] if call == "start" else [])  # its address is lost: a week, and it is gone


@pytest.mark.parametrize("call", CALLS)
def test_what_does_not_pass_ends_as_busy_and_writes_nothing_at_the_target(double, hasty, call):
    prepared(double)
    before = held(double)
    kind, act = CALLS[call]
    double.always[kind] = status(503)
    assert "503" in failure("busy", lambda: act(hasty))
    assert {k: v for k, v in held(double).items() if not k.startswith("scratch")} == before
    assert double.unfinished == []


@pytest.mark.parametrize("call", CALLS)
def test_missing_rights_are_refused_at_once_with_the_cure(double, store, call):
    prepared(double)
    kind, act = CALLS[call]
    double.then(kind, status(403, "forbidden"))
    if call == "concerns":
        assert "roles/storage.bucketViewer" in "".join(act(store))
    else:
        text = failure("refused", lambda: act(store))
        assert "403 forbidden" in text
        assert "roles/storage.objectUser on gs://b" in text
    assert double.asked[kind] == (2 if call == "delete_all" else 1)  # two objects, at the same time


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (status(401, "authError"), "refused", "gcloud auth application-default login"),
        (status(403, "quotaExceeded"), "full", "quota"),
        (status(403, "retentionPolicyNotMet"), "refused", "retention policy"),
        (status(400, "invalid"), "refused", "400"),
        (status(405), "refused", "405"),
        (status(403, "not a word: someone@example.com"), "refused", "403"),
    ],
)
def test_refusals_have_their_kind_and_words(double, store, fault, kind, words):
    double.then("upload", fault)
    assert words in failure(kind, lambda: store.replace("x", b"1"))
    assert held(double) == {}


def test_a_bucket_that_is_not_there_is_refused_and_is_no_missing_object(double, monkeypatch):
    store = open_store("gs://none/out")
    for call in ("put_if_absent", "replace", "start", "get", "load", "stat", "names", "walk"):
        assert "no bucket none" in failure("refused", lambda call=call: CALLS[call][1](store))
    with pytest.raises(BadInput, match="no bucket none"):
        store.concerns()


@pytest.mark.parametrize("before", [(), (reset,), (status(503),)], ids=["at once", "reset", "503"])
def test_a_real_race_is_lost_even_when_the_first_try_was_in_doubt(double, store, before):
    double.then("upload", *before, meanwhile(lambda: double.put("b", "out/x", b"theirs")))
    assert store.put_if_absent("x", b"mine") is False
    version = store.load("x").version
    double.then("upload", *before, meanwhile(lambda: double.put("b", "out/x", b"again theirs")))
    assert store.replace_if("x", b"mine", version) is False
    assert held(double) == {"x": b"again theirs"}


def test_a_lost_answer_and_then_another_writer_is_a_race_that_was_lost(double, store):
    version = str(double.put("b", "out/x", b"first"))
    double.then("upload", lost, meanwhile(lambda: double.put("b", "out/x", b"theirs")))
    assert store.replace_if("x", b"mine", version) is False
    assert held(double) == {"x": b"theirs"}


def test_large_objects_are_put_under_the_same_conditions(double, store):
    double.then("finish", lost)
    assert store.put_if_absent("x", BIG) is True
    assert store.put_if_absent("x", BIG) is False
    version = store.stat("x").version
    double.then("finish", meanwhile(lambda: double.put("b", "out/x", b"theirs")))
    assert store.replace_if("x", BIG[::-1], version) is False
    assert held(double) == {"x": b"theirs"}
    assert double.unfinished == []


@pytest.mark.parametrize("fault", [cut(0), cut(1000), cut(99_999), flipped(7)], ids=["0", "1000", "99999", "bit"])
def test_bytes_that_come_short_or_damaged_are_asked_for_again(double, store, hasty, fault):
    data = os.urandom(100_000)
    double.put("b", "out/x", data)
    double.then("get", fault, fault)
    assert store.get("x") == data
    assert double.asked["get"] == 3
    double.always["get"] = fault
    failure("busy", lambda: hasty.get("x"))
    failure("busy", lambda: hasty.load("x"))


@pytest.mark.parametrize("fault", [cut(0), cut(500)])
def test_a_range_that_breaks_off_is_asked_for_again_and_never_mixed_with_another_version(double, store, fault):
    old, new = os.urandom(10_000), os.urandom(10_000)
    double.put("b", "out/x", old)
    double.then("get", fault)
    assert store.get("x", 100, 1000) == old[100:1100]
    double.then("get", fault, meanwhile(lambda: double.put("b", "out/x", new)))
    assert store.get("x", 100, 1000) == new[100:1100]


def test_a_server_that_gives_another_range_is_not_believed(double, hasty):
    double.put("b", "out/x", bytes(1000))

    def another(request, run):
        request.headers.replace_header("Range", "bytes=0-9")
        return run()

    double.always["get"] = another
    assert "bytes 0 to 9 came in place of 5 to 14" in failure("busy", lambda: hasty.get("x", 5, 10))


def test_a_server_that_ignores_ranges_still_gives_the_range(double, store):
    double.put("b", "out/x", b"0123456789")

    def whole(request, run):
        del request.headers["Range"]
        return run()

    double.always["get"] = whole
    assert store.get("x", 3, 4) == b"3456"


def test_a_slow_stream_is_given_up(double, hasty):
    double.put("b", "out/x", bytes(2000))
    double.always["get"] = slow(0.01)
    failure("busy", lambda: hasty.get("x"))


def test_a_server_that_says_nothing_is_given_up(double, hasty, monkeypatch):
    monkeypatch.setattr(gcs_calls, "TIMEOUT", (1.0, 0.1))
    over = threading.Event()
    double.put("b", "out/x", b"1")
    double.always["get"] = meanwhile(over.wait)
    try:
        failure("busy", lambda: hasty.get("x"))
    finally:
        over.set()


def test_bytes_that_are_damaged_on_their_way_are_sent_again(double, store):
    double.then("upload", damaged(b"right", b"wrong"))
    assert store.put_if_absent("x", b"right")
    assert held(double) == {"x": b"right"}
    double.always["upload"] = damaged(b"RIGHT", b"WRONG")
    failure("damaged", lambda: store.replace("x", b"RIGHT"))
    assert held(double) == {"x": b"right"}


@pytest.mark.parametrize("kind", ["chunk", "finish"])
def test_a_large_object_that_is_damaged_on_its_way_never_shows(double, store, kind):
    double.put("b", "out/x", b"old")
    part = BIG[5:25] if kind == "chunk" else BIG[-25:-5]
    double.then(kind, damaged(part, part[::-1]))
    failure("damaged", lambda: written(store, BIG))
    assert held(double) == {"x": b"old"}


@pytest.mark.parametrize("answered", [True, False], ids=["answered", "reset"])
@pytest.mark.parametrize(("kind", "n"), [("chunk", 0), ("chunk", 3 << 20), ("finish", 0), ("finish", 5000)])
def test_a_chunk_that_arrives_in_part_is_completed(double, store, kind, n, answered):
    double.then(kind, kept(n, answered), kept(0, answered))
    written(store, BIG)
    assert held(double) == {"x": BIG}
    assert not double.faults[kind]


def test_an_upload_that_the_store_forgot_half_way_is_an_error_and_shows_nothing(double, store):
    double.then("chunk", meanwhile(double.sessions.clear), status(404, "notFound"))
    failure("busy", lambda: written(store, BIG))
    assert held(double) == {}


@pytest.mark.parametrize("answer", [[], [reset], [status(503)], [status(404)]])
def test_an_upload_that_is_given_up_never_shows_and_the_store_is_told(double, store, answer):
    double.then("cancel", *answer)
    with pytest.raises(KeyboardInterrupt), store.writer("x") as f:
        f.write(BIG)
        raise KeyboardInterrupt
    f.close()
    del f
    gc.collect()
    assert held(double) == {}
    assert double.asked["cancel"] == 1
    assert double.asked["finish"] == 0
    assert double.unfinished == ([] if not answer else ["out/x"])


def test_a_writer_that_nobody_ends_never_shows(double, store):
    manager = store.writer("x")
    manager.__enter__().write(BIG)
    del manager
    gc.collect()
    assert held(double) == {}
    assert double.asked["finish"] == 0


SOURCES = [Source(f"s/{k}", k + 1) for k in range(70)]
JOINED = b"head" + b"".join(bytes([k]) * (k + 1) for k in range(70))


def with_sources(double):
    for k in range(70):
        double.put("b", f"out/s/{k}", bytes([k]) * (k + 1))


@pytest.mark.parametrize("fault", [status(503), status(429), reset, lost, done_but(500)])
def test_a_join_comes_through_faults_of_every_of_its_calls(double, store, fault):
    with_sources(double)
    double.then("compose", *[fault] * 4)
    double.then("upload", fault)
    assert store.join("x", b"head", SOURCES, "scratch").crc32c == google_crc32c.Checksum(JOINED).hexdigest().decode()
    assert held(double)["x"] == JOINED


@pytest.mark.parametrize("name", ["scratch/head", "scratch/0-00000", "scratch/0-00002"])
@pytest.mark.parametrize("what", ["other bytes", "same bytes", "removed"])
def test_parts_that_another_worker_writes_over_are_never_joined_unseen(double, store, name, what):
    with_sources(double)

    def disturb():
        if what == "removed":
            double.buckets["b"].pop(f"out/{name}", None)
        elif f"out/{name}" in double.buckets["b"]:
            same = double.buckets["b"][f"out/{name}"].data
            double.put("b", f"out/{name}", same if what == "same bytes" else same[::-1] + b"!")

    # Of 4 composes the first two may come before what they disturb is there; the last one joins all.
    double.then("compose", *[meanwhile(disturb)] * 4)
    stat = store.join("x", b"head", SOURCES, "scratch")
    assert held(double)["x"] == JOINED
    assert stat.size_bytes == len(JOINED)


def test_parts_that_are_always_other_bytes_end_as_busy(double, store):
    with_sources(double)
    double.always["compose"] = meanwhile(lambda: double.put("b", "out/scratch/head", os.urandom(4)))
    assert "other workers" in failure("busy", lambda: store.join("x", b"head", SOURCES, "scratch"))
    assert "x" not in held(double)


def test_a_source_that_goes_while_it_is_joined_is_named(double, store):
    with_sources(double)
    double.always["compose"] = meanwhile(lambda: double.buckets["b"].pop("out/s/40", None))
    with pytest.raises(FileNotFoundError, match="s/40"):
        store.join("x", b"head", SOURCES, "scratch")
    assert "x" not in held(double)


def test_listings_go_on_where_a_page_failed_and_ask_for_nothing_that_is_not_used(double, store, monkeypatch):
    monkeypatch.setattr(gcs_store, "PAGE", 7)
    with_sources(double)
    double.then("list", status(503), lambda _request, run: run(), reset)
    assert store.names("s") == sorted(s.name for s in SOURCES)
    seen = []

    def noted(_request, run):
        seen.append(run())
        return seen[-1]

    double.always["list"] = noted
    store.names("s")
    assert all(b"crc32c" not in reply.body and b"updated" not in reply.body for reply in seen)
    assert len(seen) == 10


def test_what_a_listing_leaves_out_for_a_while_is_left_out_and_nothing_else(double, store):
    with_sources(double)
    double.unlisted["out/s/5"] = 1
    assert len(store.names("s")) == 69
    assert store.get("s/5") == bytes([5]) * 6
    assert len(store.names("s")) == 70
    double.unlisted["out/s/5"] = 1
    store.delete_all("s")
    assert list(held(double)) == ["s/5"]
    store.delete_all("s")
    assert held(double) == {}


def test_every_call_is_one_request_on_a_connection_that_is_used_again(double, store):
    store.put_if_absent("x", b"123")
    store.put_if_absent("x", b"123")
    store.replace_if("x", b"456", store.load("x").version)
    store.get("x", 1, 1)
    store.get("y/x".partition("/")[2])
    store.stat("x")
    store.stat("none")
    store.names("")
    store.delete("x")
    assert double.asked == {"upload": 3, "get": 3, "stat": 2, "list": 1, "delete": 1}
    assert double.connections == 1


def test_nothing_that_is_logged_shows_an_upload(double, store, caplog):
    with caplog.at_level(logging.INFO):
        double.then("chunk", status(503), reset)
        written(store, BIG)
    assert "SECRET" not in caplog.text
