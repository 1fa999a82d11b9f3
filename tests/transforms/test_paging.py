import datetime as dt
import itertools
import random
import threading
from concurrent.futures import CancelledError

import pytest
from faulty_api import cut, drip, empty, faulty_api, html, reset, stall, status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stac_items import optical

from model.errors import BadInput
from model.profile import ES_C1
from transforms import grid
from transforms.catalogs import api as api_module
from transforms.catalogs import paging
from transforms.catalogs.api import ApiCatalog
from transforms.catalogs.crew import Crew
from transforms.catalogs.exchange import SEARCHES, NoAnswer, Patience, Server
from transforms.catalogs.paging import Inexact, Search, Slice, same_server
from transforms.catalogs.registry import BY_NAME
from transforms.periods import period_of
from transforms.wire import retry_after

FAST = Patience(tries=4, first_s=0, answer_s=30)
COLLECTION = "sentinel-2-c1-l2a"
KEYS = {COLLECTION: set(BY_NAME[ES_C1].keys.values())}
TILE = grid.tile_of("33TWL")
BOX = grid.footprint(TILE).bounds
MAY = Slice(COLLECTION, BOX, dt.date(2024, 5, 1), dt.date(2024, 6, 1))


def item(id, day, hour=10, **more):
    made = optical(ES_C1, id=id, datetime=f"{day}T{hour:02d}:00:00Z", **more)
    for asset in made["assets"].values():
        asset["href"] = f"HERE/files/{id}/{asset['href'].removeprefix('./')}"
    return made


DAILY = [item(f"may{n:02d}", f"2024-05-{n:02d}") for n in range(1, 32)]


def search(url, api, patience=FAST):
    return Search(Server(patience), f"{url}/search", bool(api.fields), KEYS)


def ids(items):
    return sorted(i["id"] for i in items)


def days_of(body):
    first, last = (dt.datetime.fromisoformat(t) for t in body["datetime"].split("/"))
    return (last - first).days


# --- slices


def test_a_month_is_searched_in_pages_and_every_item_comes_once():
    with faulty_api(DAILY) as (url, api):
        assert ids(search(url, api).items(MAY)) == ids(DAILY)
    assert len(api.searches) == 4 and {b["limit"] for b in api.searches} == {100}


def test_an_answer_that_fails_for_its_size_is_asked_for_in_halves_of_the_time():
    with faulty_api(DAILY) as (url, api):
        api.fault = lambda body, _: status(502) if days_of(body) > 7 else None
        said = search(url, api)
        assert ids(said.items(MAY)) == ids(DAILY) and said.halved == 6  # 31; 15, 16; 8, 8, 8
    assert min(days_of(b) for b in api.searches) >= 3


@pytest.mark.parametrize("code", [413, 500, 502, 503, 504])
def test_a_day_that_is_too_large_is_asked_for_in_smaller_pages(code):
    items = [item(f"s{n}", "2024-05-07", hour=n) for n in range(9)]
    with faulty_api(items) as (url, api):
        api.fault = lambda body, _: status(code) if body["limit"] > 3 else None
        assert ids(search(url, api).items(MAY)) == ids(items)
    assert {b["limit"] for b in api.searches if days_of(b) == 1} == {100, 50, 25, 12, 6, 3}


def test_the_six_megabytes_of_a_gateway_are_kept_without_a_word_about_them():
    items = [item(f"s{n:02d}", f"2024-05-{1 + n // 4:02d}", hour=n % 4, note="x" * 30_000) for n in range(60)]
    with faulty_api(items) as (url, api):
        api.page, api.answer_bytes = 100, 400_000  # 60 of them have 2 MB
        assert ids(search(url, api).items(MAY)) == ids(items)
    assert any(days_of(b) < 31 for b in api.searches)


def test_what_fails_however_small_is_refused_after_few_requests():
    with faulty_api(DAILY) as (url, api):
        api.fault = lambda *_: status(500)
        with pytest.raises(NoAnswer, match="HTTP status 500") as e:
            search(url, api).items(MAY)
    assert e.value.tries == FAST.tries and len(api.searches) < 30
    assert (days_of(api.searches[-1]), api.searches[-1]["limit"]) == (1, 1)


def test_a_refusal_that_no_smaller_slice_can_mend_is_told_at_once():
    with faulty_api(DAILY) as (url, api):
        api.fault = lambda *_: status(403)
        with pytest.raises(NoAnswer, match="HTTP status 403"):
            search(url, api).items(MAY)
    assert len(api.searches) == 1


@given(st.dates(dt.date(2016, 1, 1), dt.date(2030, 1, 1)), st.integers(1, 40), st.integers(1, 100))
def test_halves_cover_the_time_of_a_slice_and_end_with_one_item_of_one_day(first, days, page):
    whole = Slice(COLLECTION, BOX, first, first + dt.timedelta(days), page)
    waiting, leaves = [whole], []
    while waiting:
        part = waiting.pop()
        halves = part.smaller()
        waiting += halves
        if not halves:
            leaves.append(part)
    assert {(x.days, x.page) for x in leaves} == {(1, 1)}
    assert sorted(x.first for x in leaves) == [first + dt.timedelta(n) for n in range(days)]


# --- exactness


def test_an_item_on_two_pages_counts_once():
    with faulty_api(DAILY) as (url, api):
        api.pages = lambda pages: [pages[0], *([a[-1], *b] for a, b in itertools.pairwise(pages))]
        got = search(url, api).items(MAY)
    assert ids(got) == ids(DAILY)
    assert len(api.searches) == 4, "nothing was missing, so nothing was asked for twice"


def test_two_records_of_one_item_that_differ_both_come():
    newer = item("may07", "2024-05-07", note="newer")
    with faulty_api(DAILY) as (url, api):
        api.pages = lambda pages: [*pages, [newer]]
        got = [i for i in search(url, api).items(MAY) if i["id"] == "may07"]
    assert [i["properties"].get("note") for i in got] == [None, "newer"]


def test_an_item_that_a_duplicate_pushed_out_is_found_in_a_smaller_slice():
    with faulty_api(DAILY) as (url, api):
        api.page = 8  # the pages of a whole month lose one; those of half a month do not
        api.pages = lambda pages: [*pages[:2], [pages[1][-1], *pages[2][1:]], *pages[3:]] if len(pages) > 2 else pages
        assert ids(search(url, api).items(MAY)) == ids(DAILY)


def test_never_fewer_than_the_server_counts():
    with faulty_api(DAILY) as (url, api):
        api.pages = lambda pages: [[i for i in page if i["id"] != "may07"] for page in pages]
        with pytest.raises(Inexact, match="1 items counted and 0 given"):
            search(url, api).items(MAY)
    smallest = [b for b in api.searches if days_of(b) == 1 and "05-07" in b["datetime"]]
    assert len(smallest) >= 2, "a day that miscounts is asked for again"


def test_parts_that_agree_with_themselves_and_not_with_the_whole_are_refused():
    with faulty_api(DAILY) as (url, api):
        hidden = api.found
        api.found = lambda body: [i for i in hidden(body) if days_of(body) > 20 or i["id"] != "may07"]
        api.matched = lambda n: n + (n > 30)
        with pytest.raises(Inexact, match="32 items counted and 31 given, and its parts have 30"):
            search(url, api).items(MAY)


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("window", [4, 8])
def test_more_items_than_a_server_pages_through_are_searched_in_parts(monkeypatch, counts, window):
    monkeypatch.setattr(paging, "WINDOW_ITEMS", window)
    with faulty_api(DAILY) as (url, api):
        api.page, api.window, api.counts = 4, window, counts
        assert ids(search(url, api).items(MAY)) == ids(DAILY)


def test_a_window_of_10_000_is_never_taken_for_all_there_is():
    with faulty_api(DAILY) as (url, api):
        api.matched = lambda n: 10_000 if n > 20 else n
        assert ids(search(url, api).items(MAY)) == ids(DAILY)
        api.matched = lambda _n: 10_000
        with pytest.raises(Inexact, match="10000 items or more"):
            search(url, api).items(MAY)
        assert days_of(api.searches[-1]) == 1


def test_a_window_without_a_count_ends_in_a_refusal_or_in_smaller_slices(monkeypatch):
    monkeypatch.setattr(paging, "WINDOW_ITEMS", 5)
    items = [item(f"s{n}", "2024-05-07", hour=n) for n in range(9)]
    with faulty_api(items) as (url, api):
        api.counts, api.page = False, 2
        with pytest.raises(Inexact, match="5 items or more, and a search gives no further"):
            search(url, api).items(MAY)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_the_pages_and_their_limits_the_items_are_those_of_the_days(data):
    days = data.draw(st.lists(st.integers(1, 31), min_size=1, max_size=40))
    items = [item(f"s{n}", f"2024-05-{day:02d}", hour=n % 24) for n, day in enumerate(days)]
    most = data.draw(st.integers(1, 40))
    seed = random.Random(data.draw(st.integers(0, 1 << 30)))  # drawn from on the server's threads
    faults = data.draw(st.lists(st.sampled_from([status(500), status(429), html, empty, reset, cut]), max_size=5))
    with faulty_api(items) as (url, api):
        api.page, api.counts = data.draw(st.integers(1, 12)), data.draw(st.booleans())
        api.pages = lambda pages: [p + seed.sample(p, seed.randint(0, 1)) for p in pages]

        def fault(body, before):
            if len(api.found(body)) > most and days_of(body) > 1:
                return status(502)
            return faults.pop() if faults and before == 0 else None

        api.fault = fault
        assert ids(search(url, api).items(MAY)) == ids(items)


# --- pages that lead astray


def test_a_next_link_to_the_page_itself_is_refused():
    with faulty_api(DAILY) as (url, api):
        api.circle = True
        with pytest.raises(BadInput, match="the pages of sentinel-2-c1-l2a, 2024-05, go in circles"):
            search(url, api).items(MAY)
    assert len(api.searches) <= 2


def test_endless_pages_without_anything_new_are_refused():
    with faulty_api(DAILY[:1]) as (url, api):
        api.counts = False
        api.pages = lambda pages: pages * 1000
        with pytest.raises(BadInput, match="go in circles"):
            search(url, api).items(MAY)
    assert len(api.searches) < 20


@pytest.mark.parametrize(
    ("link", "leads_to"),
    [
        ("https://h/v1/search?token=2", "https://h/v1/search?token=2"),
        ("http://h/v1/search", "https://h/v1/search"),  # what a server behind a proxy writes
        ("http://169.254.169.254/latest", None),
        ("https://h:8443/v1", None),
        ("https://me:word@h/v1", None),
        ("file:///etc/passwd", None),
    ],
)
def test_a_page_lies_on_the_server_that_was_asked(link, leads_to):
    assert same_server(link, "https://h/v1/search") == leads_to


# --- faults of one answer


@pytest.mark.parametrize("fault", [status(429), status(500), status(503, Retry_After="0"), html, empty, reset, cut])
def test_a_fault_that_passes_costs_one_more_request(fault):
    with faulty_api(DAILY[:3]) as (url, api):
        api.fault = lambda _body, before: fault if before == 0 else None
        said = search(url, api)
        assert ids(said.items(MAY)) == ids(DAILY[:3])
        assert len(api.searches) == 2 and said.halved == 0 and said._server.counts.again == 1


@pytest.mark.parametrize("fault", [stall, drip])
def test_a_server_that_never_ends_its_answer_is_given_up_and_asked_again(fault):
    with faulty_api(DAILY[:3]) as (url, api):
        api.fault = lambda _body, before: fault if before == 0 else None
        patience = Patience(tries=3, first_s=0, answer_s=0.5)
        assert ids(search(url, api, patience).items(MAY)) == ids(DAILY[:3])
        assert len(api.searches) == 2


def test_a_server_that_asks_for_a_pause_gets_it_from_every_thread():
    with faulty_api(DAILY[:3]) as (url, api):
        api.fault = lambda _body, before: status(429, Retry_After="1") if before == 0 else None
        server = Server(FAST)
        search_ = Search(server, f"{url}/search", False, KEYS)
        assert ids(search_.items(MAY)) == ids(DAILY[:3])
        assert server.counts.waited_s >= 1 and server.counts.again == 1
        assert server._not_before > 0


def test_a_server_that_asks_for_too_long_a_pause_is_given_up_at_once():
    with faulty_api(DAILY) as (url, api):
        api.fault = lambda *_: status(429, Retry_After="86400")
        with pytest.raises(NoAnswer, match="HTTP status 429 and the wish to wait 86400 s"):
            search(url, api).items(MAY)
    assert len(api.searches) == 1


def test_a_redirection_is_not_followed_since_a_search_would_come_back_as_another_one():
    with faulty_api(DAILY) as (url, api):
        api.fault = lambda *_: status(301, Location="http://elsewhere.test/search?token=word")
        with pytest.raises(NoAnswer, match=r"HTTP status 301, which leads to elsewhere\.test$"):
            search(url, api).items(MAY)


@given(st.integers(1, 60), st.none() | st.floats(0, 1000))
def test_waits_grow_to_a_limit_and_never_undercut_what_the_server_asked_for(tried, asked_s):
    patience = Patience()
    step = min(patience.first_s * 2 ** (tried - 1), patience.longest_s)
    wait_s = patience.wait_s(tried, asked_s)
    assert step / 2 <= wait_s <= step if asked_s is None else asked_s <= wait_s <= asked_s + step


@pytest.mark.parametrize(("said", "seconds"), [("7", 7), ("", None), ("soon", None), ("-1", None)])
def test_retry_after_is_a_number_of_seconds_or_a_date(said, seconds):
    assert retry_after({"Retry-After": said}) == seconds
    assert retry_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}) > 1e6


# --- fields


def test_a_server_with_the_fields_extension_is_asked_for_what_is_read():
    long = item("s", "2024-05-07")
    long["assets"] |= {f"more{n}": {"href": "HERE/x.tif"} for n in range(30)}
    with faulty_api([long]) as (url, api):
        api.fields = "yes"
        (got,) = search(url, api).items(MAY)
    (body,) = api.searches
    assert {n.partition(".")[2] for n in body["fields"]["include"] if "." in n} == KEYS[COLLECTION]
    assert set(got["assets"]) == KEYS[COLLECTION] and got["properties"] == long["properties"]


@pytest.mark.parametrize("fields", ["", "refused", "greedy"])
def test_a_server_that_cannot_trim_is_asked_for_whole_items_from_then_on(fields):
    with faulty_api(DAILY) as (url, api):
        api.fields = fields
        said = search(url, api)
        june = Slice(COLLECTION, BOX, dt.date(2024, 6, 1), dt.date(2024, 7, 1))
        got = said.items(MAY)
        before = len(api.searches)
        said.items(june)
    assert ids(got) == ids(DAILY) and all(set(i["assets"]) == KEYS[COLLECTION] for i in got)
    assert before < len(api.searches) and not any("fields" in b for b in api.searches[before:])


def test_items_that_lack_an_asset_do_not_end_the_trimming_of_all_others():
    lacking = item("s", "2024-05-07")
    del lacking["assets"]["scl"]
    with faulty_api([*DAILY, lacking]) as (url, api):
        api.fields, api.page = "yes", 100
        said = search(url, api)
        assert "scl" not in next(i for i in said.items(MAY) if i["id"] == "s")["assets"]
        asked = ["fields" in b for b in api.searches]
        assert asked == [True, False], "a whole answer told that nothing else was there"
        said.items(MAY)
        assert ["fields" in b for b in api.searches[2:]] == [True]


def test_relative_hrefs_need_the_link_that_a_trimmed_item_leaves_out():
    local = optical(ES_C1, id="s", datetime="2024-05-07T10:00:00Z")
    local["links"] = [{"rel": "self", "href": "http://h/deep/s.json"}, {"rel": "root", "href": "http://h"}]
    with faulty_api([local]) as (url, api):
        api.fields = "yes"
        (got,) = search(url, api).items(MAY)
    assert got["links"] == local["links"][:1]


# --- threads


def test_searches_of_all_catalogues_and_threads_together_are_few(monkeypatch):
    monkeypatch.setattr(api_module, "PATIENCE", FAST)
    full = threading.Barrier(SEARCHES, timeout=20)  # breaks where fewer than that are ever asked at once
    numbers = itertools.count()
    with faulty_api(DAILY) as (url, api):

        def fault(_body, _before):
            if next(numbers) < SEARCHES:
                full.wait()

        api.fault = fault
        catalogs = [ApiCatalog(url, url, None) for _ in range(3)]
        crew = Crew(6, "test")
        jobs = [crew.submit(lambda c: ids(f.item for f in c.items(TILE, period_of("2024"))), c) for c in catalogs * 2]
        assert [job.result() for job in jobs] == [ids(DAILY)] * 6
        for catalog in catalogs:
            catalog.stop()
        crew.stop()
    assert api.most == SEARCHES and not full.broken


def test_a_crew_gives_results_in_order_and_runs_no_further_ahead_than_it_may():
    begun, taken, lock = [], [], threading.Lock()

    def job(n):
        with lock:
            begun.append(n)
            assert n < len(taken) + 5
        return n * n

    crew = Crew(3, "test")
    for result in crew.ahead(job, range(50), window=4):
        taken.append(result)
    crew.stop()
    assert taken == [n * n for n in range(50)] and sorted(begun) == list(range(50))


def test_a_crew_that_stopped_leaves_nobody_waiting():
    begun, go = threading.Event(), threading.Event()
    crew = Crew(1, "test")
    first, second = crew.submit(lambda: begun.set() or go.wait()), crew.submit(len, "never")
    begun.wait()
    crew.stop()
    go.set()
    assert first.result() is True
    with pytest.raises(CancelledError):
        second.result()
    with pytest.raises(CancelledError):
        crew.submit(len, "late").result()


def test_all_threads_of_a_crew_end_when_it_stops():
    crew = Crew(5, "ends")
    assert crew.submit(len, "one").result() == 3
    crew.stop(60)
    assert not [t.name for t in threading.enumerate() if t.name.startswith("ends-")]


def test_what_a_job_raises_is_raised_in_its_turn():
    crew = Crew(2, "test")
    results = crew.ahead(lambda n: 1 // n, [1, 0, 1], window=3)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
    crew.stop()
