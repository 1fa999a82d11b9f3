import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.network import FAILED, RETRIED, network_of, rounded, told
from pipeline.words import network as in_words
from transforms import http

FETCHING = {
    "requests": 1200, "bytes": 3_450_000_000, "tokens": 2, "cuts": 1, "quarantined": 4, "retries_503": 7,
    "retries_reset": 2, "retries_200": 1, "retries_206": 1, "failures_status": 1, "fetch_s": 200.0,
    "throttled_s": 30.04, "retry_s": 12.5,
}  # fmt: skip


def test_counters_become_what_an_operator_asks_about():
    n = network_of(FETCHING)
    assert (n.requests, n.moved_bytes, n.tokens, n.cuts, n.quarantined) == (1200, 3_450_000_000, 2, 1, 4)
    assert n.retries == {"503 busy": 7, "connection lost": 2, "another page in its place": 2}
    assert n.failures == {"HTTP error": 1}
    assert n.throttled_share == pytest.approx(0.1502)
    assert (n.fetch_s, n.throttled_s, n.retry_s) == (200.0, 30.04, 12.5)


def test_a_run_over_local_files_has_no_network():
    assert network_of({}) is None and rounded({}) == {}


def test_kinds_are_told_most_frequent_first():
    assert told(network_of(FETCHING).retries) == "11 (503 busy x 7, connection lost x 2, another page in its place x 2)"
    assert told({"no answer": 1}) == "1 (no answer)"
    assert told({}) == "none"


def test_a_quiet_run_is_one_line_and_a_troubled_one_says_why():
    quiet = network_of({"requests": 10, "bytes": 20_000_000, "fetch_s": 3.0, "throttled_s": 0.1})
    assert in_words(quiet) == ["  from servers: 10 requests, 0.02 GB"]
    first, second = in_words(network_of(FETCHING))
    assert first == "  from servers: 1,200 requests, 3.45 GB"
    assert second.startswith("    retries 11 (503 busy x 7,") and "given up 1 (HTTP error)" in second
    assert second.endswith("15% of the time for it was waiting for a turn at a busy host")


@given(st.dictionaries(st.sampled_from([*FETCHING, "retries_strange", "failures_strange"]), st.integers(0, 10**9)))
def test_no_retry_and_no_failure_is_lost_whatever_its_kind(counters):
    n = network_of(counters)
    if n is None:
        assert counters == {}
        return
    assert sum(n.retries.values()) == sum(v for k, v in counters.items() if k.startswith("retries_"))
    assert sum(n.failures.values()) == sum(v for k, v in counters.items() if k.startswith("failures_"))
    assert 0 <= n.throttled_share <= 1


def test_what_the_fetcher_tries_again_has_words():
    assert {str(status) for status in http.PASSING - {425}} | {"denied", "200", "206"} <= RETRIED.keys()
    assert {"status", "reset", "short", "timeout", "changed", "refused"} == FAILED.keys()  # as `fetching.FetchError`
