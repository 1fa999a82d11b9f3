"""Where hosts forward to: asked once for a file, kept while it holds, and never told to anybody."""

import datetime as dt
import pickle
import random
import threading

import pytest
from faulty_server import Server, Skipped, in_turn, serve
from hypothesis import given
from hypothesis import strategies as st

from transforms import forwards, hosts, signing
from transforms.fetching import FetchError
from transforms.forwards import EARLY_S, LEAST_S, UNSTATED_S, Forwards, life_s
from transforms.http import Fetcher, Retries
from transforms.signing import Signer, Tokens
from transforms.throttle import Counters, Throttle

DATA = random.Random(2).randbytes(50_000)
DATE = "Tue, 01 Jan 2030 00:00:00 GMT"
MIDNIGHT = 1_893_456_000  # the same, in Unix time


class Archive:
    """A host with a log-in that forwards to signed URLs on another one, as Earthdata's do.

    Attributes:
      live: the signatures that are let in. signed: how many were given. life_s: as stated; "" for not at all.
    """

    def __init__(self, source, store, skipped):
        self.source, self.store, self.live, self.signed, self.life_s = source, store, set(), 0, "3600"
        self.lock = threading.Lock()
        source.routes["/a.tif"] = self.forward
        store.routes["/b.tif"] = self.give
        self.answers = []  # of the store, before it gives anything
        self.url = f"{source.url}/a.tif"
        counters = Counters()
        turns = Throttle(counters=counters, clock=skipped.clock, sleep=skipped.sleep)
        signer = Signer(Tokens(None, key=""), earthdata=(source.place,))
        self.fetch = Fetcher(
            Retries(), turns=turns, signer=signer, counters=counters, sleep=skipped.sleep, clock=skipped.clock
        )

    def forward(self, seen):
        if seen.headers.get("authorization") != "Bearer SECRET":
            return 401, {}, b""
        with self.lock:
            self.signed += 1
            self.live.add(f"SECRET{self.signed}")
            born = f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%SZ}"
            ends = f"X-Amz-Date={born}&X-Amz-Expires={self.life_s}&" if self.life_s else ""
            target = f"{self.store.url}/b.tif?A-userid=SECRET&{ends}X-Amz-Signature=SECRET{self.signed}"
        return 303, {"Location": target}, b""

    def give(self, seen):
        if self.answers:
            return self.answers.pop(0)
        if seen.path.rpartition("Signature=")[2] not in self.live:
            return 403, {}, b"<Error><Code>AccessDenied</Code></Error>"
        start, stop = (int(v) for v in seen.headers["range"].removeprefix("bytes=").split("-"))
        return 206, {"Content-Range": f"bytes {start}-{stop}/{len(DATA)}", "ETag": '"1"'}, DATA[start : stop + 1]

    def read(self, n):
        """Reads n ranges one after the other; each must be right."""
        for k in range(n):
            assert self.fetch(self.url, 100 * k, 100 * k + 100, None).data == DATA[100 * k : 100 * k + 100]

    def asked(self):
        """Requests that came to the archive and to the store."""
        return len(self.source.seen), len(self.store.seen)


@pytest.fixture
def skipped():
    return Skipped()


@pytest.fixture
def archive(skipped, monkeypatch):
    monkeypatch.setenv(signing.EARTHDATA_VARIABLE, "SECRET")
    with serve(Server({})) as source, serve(Server({})) as store, hosts.allowed(source.place, store.place):
        yield Archive(source, store, skipped)


# --- requests


def test_n_ranges_of_a_file_take_n_requests_and_one_to_be_forwarded(archive):
    archive.read(20)
    assert archive.asked() == (1, 20)
    assert archive.fetch.counters.read()["requests"] == 21


def test_the_token_is_never_sent_where_a_file_lies_and_the_signature_never_to_the_archive(archive):
    archive.read(3)
    archive.live.clear()
    archive.read(3)
    assert {s.headers["authorization"] for s in archive.source.seen} == {"Bearer SECRET"}
    assert not any("authorization" in s.headers for s in archive.store.seen)
    assert not any("?" in s.path for s in archive.source.seen)


def test_a_target_that_is_over_is_asked_for_once_more(archive, skipped):
    archive.read(5)
    skipped.sleep(3600)
    archive.live.clear()
    archive.read(5)
    assert archive.asked() == (2, 10), "nothing was asked of a target that had said its end"


def test_a_target_that_is_refused_before_its_end_is_renewed_once_and_nobody_notices(archive):
    archive.read(5)
    archive.live.clear()
    archive.read(5)
    assert archive.asked() == (2, 11)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_whatever_refuses_a_kept_target_the_archive_is_asked_again_at_once(archive, skipped, status):
    archive.read(1)
    archive.answers = [(status, {}, b"<Error><Code>ExpiredToken</Code></Error>")]
    archive.read(2)
    assert archive.asked() == (2, 4) and skipped.sleeps == []


@pytest.mark.parametrize("status", [400, 403, 404])
def test_a_file_that_is_refused_at_its_new_target_too_is_an_error_with_its_status(archive, status):
    archive.read(1)
    archive.answers = [(status, {}, b"")] * 9
    with pytest.raises(FetchError, match=f"a.tif: HTTP {status}") as e:
        archive.read(1)
    assert (e.value.status, archive.asked()) == (status, (2, 3))
    assert "SECRET" not in str(e.value)


@pytest.mark.parametrize(("status", "asked"), [(503, 1), (429, 1), (500, 2)])
def test_a_busy_target_is_kept_and_one_that_fails_is_not(archive, status, asked):
    archive.read(1)
    archive.answers = [(status, {}, b"")]
    archive.read(1)
    assert archive.asked() == (asked, 3)


def test_a_target_that_breaks_off_is_asked_for_again(archive):
    archive.read(1)
    del archive.store.routes["/b.tif"]
    archive.store.files["/b.tif"], archive.store.plan = DATA, in_turn("reset", "early-end")
    archive.read(1)
    assert archive.asked() == (3, 4)


def test_a_target_whose_end_nobody_states_is_kept_for_minutes(archive, skipped):
    archive.life_s = ""
    archive.read(9)
    skipped.sleep(UNSTATED_S)
    archive.read(9)
    assert archive.asked() == (2, 18)


@pytest.mark.parametrize("life", ["0", "20", "soon", "-3600", "9" * 30])
def test_a_target_that_is_as_good_as_over_is_used_and_not_kept(archive, life):
    archive.life_s = life
    archive.read(3)
    assert archive.asked() == (3, 3)


def test_a_target_on_a_host_that_is_no_longer_allowed_is_not_asked(archive, monkeypatch):
    archive.read(1)
    monkeypatch.setenv(hosts.VARIABLE, archive.source.place)
    with pytest.raises(FetchError, match="forwards to") as e:
        archive.read(1)
    assert e.value.kind == "refused" and archive.asked() == (1, 1)


def test_many_threads_at_a_target_s_end_ask_for_one_and_none_of_them_fails(archive, skipped, pool):
    archive.read(1)
    skipped.sleep(3600 - LEAST_S - EARLY_S + 5)
    got = list(pool.map(lambda k: archive.fetch(archive.url, k, k + 9, None).data, range(40)))
    assert got == [DATA[k : k + 9] for k in range(40)]
    assert archive.asked() == (2, 41)


def test_an_archive_that_stumbles_before_a_target_s_end_costs_nothing_but_a_wait(archive, skipped):
    archive.read(1)
    skipped.sleep(3600 - LEAST_S - EARLY_S + 5)
    forward = archive.source.routes["/a.tif"]
    archive.source.routes["/a.tif"] = lambda _: (500, {}, b"")
    archive.read(9)
    assert archive.asked() == (2, 10)
    archive.source.routes["/a.tif"] = forward
    skipped.sleep(LEAST_S)
    archive.read(9)
    assert archive.asked() == (3, 19)


def test_no_signature_is_shown_logged_or_pickled(archive, caplog):
    with caplog.at_level("DEBUG"):
        archive.read(2)
        archive.live.clear()
        archive.read(2)
    kept = archive.fetch._forwards
    assert "SECRET" in kept.find(archive.url)
    assert "SECRET" not in caplog.text + repr(kept) + f"{kept} {archive.fetch!r} {next(iter(kept._known.values()))!r}"
    with pytest.raises(TypeError, match="stay in their process"):
        pickle.dumps(kept)


# --- what is said of a target's end


@pytest.mark.parametrize(
    ("query", "said", "seconds"),
    [
        ("", {}, None),
        ("sig=1", {"Cache-Control": "private"}, None),
        ("", {"Cache-Control": "private, max-age=3540"}, 3540),
        ("", {"cache-control": "no-store"}, None),  # headers come without regard to case; a plain dict has it
        ("", {"Cache-Control": "no-store, max-age=3540"}, 0),
        ("Expires=1893459600&Signature=x&Key-Pair-Id=k", {}, 3600),
        ("X-Amz-Date=20291231T235000Z&X-Amz-Expires=3600&X-Amz-SignedHeaders=host", {}, 3000),
        ("X-Amz-Date=20300101T000000Z&X-Amz-Expires=3600", {"Cache-Control": "private, max-age=3540"}, 3540),
        ("X-Amz-Date=20300101T000000Z&X-Amz-Expires=3600", {"Cache-Control": "max-age=9999"}, 3600),
        ("X-Amz-Date=20300101T000000Z&X-Amz-Expires=3600&X-Amz-SignedHeaders=host%3Brange", {}, 0),
        ("X-Amz-Expires=3600", {}, 0),
        ("X-Amz-Date=yesterday&X-Amz-Expires=3600", {}, 0),
        ("Expires=Tue", {}, 0),
        ("Expires=" + "9" * 400, {}, 0),
    ],
)
def test_a_target_holds_as_long_as_its_headers_and_its_signature_both_say(query, said, seconds):
    assert life_s(f"https://d1.cloudfront.net/a.tif?{query}", {"Date": DATE, **said}) == seconds


def test_the_forwarding_server_s_own_clock_counts_not_ours():
    late = {"Date": "Tue, 01 Jan 2030 00:50:00 GMT"}
    assert life_s(f"https://h.example/a?Expires={MIDNIGHT + 3600}", late) == 600


@given(st.one_of(st.none(), st.floats(-100, 10_000)), st.lists(st.floats(0, 500), max_size=30))
def test_no_target_is_given_out_after_its_end_and_each_is_while_it_is_young(life, steps):
    now = [0.0]
    kept = Forwards(lambda: now[0])
    kept.keep("a", "target", life)
    ends = UNSTATED_S if life is None else life - LEAST_S
    for step in steps:
        found = kept.find("a")
        assert found is None or now[0] < ends
        if ends > 0 and now[0] < ends - min(EARLY_S, ends / 2):
            assert found == "target"
        now[0] += step
    assert kept.find("b") is None


def test_forgetting_an_old_target_leaves_the_new_one():
    kept = Forwards(lambda: 0.0)
    kept.keep("a", "old", 3600)
    kept.keep("a", "new", 3600)
    kept.drop("a", "old")
    assert kept.find("a") == "new"
    kept.drop("a")
    assert kept.find("a") is None


def test_the_files_that_were_asked_for_longest_ago_are_forgotten_first():
    kept = Forwards(lambda: 0.0, most=2)
    kept.keep("a", "1", 3600)
    kept.keep("b", "2", 3600)
    assert kept.find("a") == "1"
    kept.keep("c", "3", 3600)
    assert [kept.find(x) for x in "abc"] == ["1", None, "3"]
    assert forwards.KEPT >= 1000
