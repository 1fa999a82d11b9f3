import json
import pickle
import threading

import pytest

from transforms import hosts, signing
from transforms.fetching import FetchError
from transforms.signing import FAILED_S, LEAST_S, RENEW_S, SHORTEST_S, Signed, Signer, Tokens, plain_url

DATE = "Sat, 21 Nov 2026 08:00:00 GMT"
ACCOUNT, CONTAINER = "sentinel2l2a01", "sentinel2-l2"
BLOB = f"https://{hosts.PLANETARY_COMPUTER[0]}/{CONTAINER}/33/T/WL/B04.tif"
OPERA = f"https://{hosts.OPERA[0]}/OPERA/a_VV.tif"


class Endpoint:
    """Gives the n-th token as sig=SECRETn, 45 minutes long, to whoever asks; counts."""

    def __init__(self, life="08:45:00Z", date=DATE):
        self.now, self.asked, self.error = 0.0, [], None
        self.life, self.date = life, date
        self.body = None
        self.lock = threading.Lock()

    def clock(self):
        return self.now

    def __call__(self, url, headers):
        with self.lock:
            self.asked.append((url, dict(headers)))
            n = len(self.asked)
        if self.error:
            raise self.error
        token = {"msft:expiry": f"2026-11-21T{self.life}", "token": f"st=x&se=y&sig=SECRET{n}%3D"}
        return self.body if self.body is not None else json.dumps(token).encode(), self.date


def tokens_of(endpoint, **given):
    return Tokens(endpoint, clock=endpoint.clock, chance=lambda low, high: (low + high) / 2, **given)


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch):
    for name in (signing.KEY_VARIABLE, signing.ENDPOINT_VARIABLE, signing.EARTHDATA_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def test_a_token_is_asked_for_once_and_kept_for_each_account_and_container():
    endpoint = Endpoint()
    tokens = tokens_of(endpoint)
    assert {tokens.get(ACCOUNT, CONTAINER) for _ in range(5)} == {"st=x&se=y&sig=SECRET1%3D"}
    tokens.get(ACCOUNT, "other")
    assert [url for url, _ in endpoint.asked] == [
        f"{signing.ENDPOINT}/{ACCOUNT}/{CONTAINER}",
        f"{signing.ENDPOINT}/{ACCOUNT}/other",
    ]


def test_the_subscription_key_goes_to_the_endpoint_alone(monkeypatch):
    monkeypatch.setenv(signing.KEY_VARIABLE, "KEY")
    monkeypatch.setenv(signing.ENDPOINT_VARIABLE, "https://tokens.example/t/")
    endpoint = Endpoint()
    signed = Signer(tokens_of(endpoint)).sign(BLOB)
    assert endpoint.asked == [(f"https://tokens.example/t/{ACCOUNT}/{CONTAINER}", {signing.KEY_HEADER: "KEY"})]
    assert signed.headers == {} and "KEY" not in signed.url


def test_a_token_is_renewed_before_its_end_at_a_moment_of_its_own():
    endpoint = Endpoint()
    tokens = tokens_of(endpoint)
    tokens.get(ACCOUNT, CONTAINER)
    early = sum(RENEW_S) / 2
    endpoint.now = 45 * 60 - early - 1
    tokens.get(ACCOUNT, CONTAINER)
    assert len(endpoint.asked) == 1
    endpoint.now += 2
    assert tokens.get(ACCOUNT, CONTAINER).endswith("SECRET2%3D")


def test_a_short_token_is_renewed_in_the_middle_of_its_life():
    endpoint = Endpoint(life="08:01:40Z")
    tokens = tokens_of(endpoint)
    tokens.get(ACCOUNT, CONTAINER)
    endpoint.now = 49
    tokens.get(ACCOUNT, CONTAINER)
    assert len(endpoint.asked) == 1
    endpoint.now = 51
    tokens.get(ACCOUNT, CONTAINER)
    assert len(endpoint.asked) == 2


def test_the_endpoints_own_clock_counts_not_ours():
    """The answer's Date says how long the token lives, though by our clock it ended long ago or never will."""
    for date in (DATE, "Wed, 21 Nov 2001 08:00:00 GMT"):
        endpoint = Endpoint(date=date, life="08:00:20Z" if date == DATE else "08:45:00Z")
        if date == DATE:
            with pytest.raises(FetchError, match="ends in 20 s"):
                tokens_of(endpoint).get(ACCOUNT, CONTAINER)
        else:
            tokens_of(endpoint).get(ACCOUNT, CONTAINER)


def test_a_renewal_that_fails_costs_nothing_while_the_old_token_lives():
    endpoint = Endpoint()
    tokens = tokens_of(endpoint)
    first = tokens.get(ACCOUNT, CONTAINER)
    endpoint.now, endpoint.error = 44 * 60, FetchError("status", "HTTP 503", 503)
    assert tokens.get(ACCOUNT, CONTAINER) == first
    assert tokens.get(ACCOUNT, CONTAINER) == first
    assert len(endpoint.asked) == 2, "a failed renewal is not repeated by every request"
    endpoint.now = 45 * 60 - LEAST_S + 1
    with pytest.raises(FetchError, match="HTTP 503"):
        tokens.get(ACCOUNT, CONTAINER)


def test_a_refused_token_is_renewed_once_for_all_who_had_it():
    endpoint = Endpoint()
    tokens = tokens_of(endpoint)
    old = tokens.get(ACCOUNT, CONTAINER)
    endpoint.now = SHORTEST_S + 1
    new = {tokens.get(ACCOUNT, CONTAINER, refused=old) for _ in range(20)}
    assert len(new) == 1 and old not in new
    assert len(endpoint.asked) == 2


def test_a_token_refused_as_soon_as_it_came_is_not_what_is_wrong():
    endpoint = Endpoint()
    tokens = tokens_of(endpoint)
    for _ in range(20):
        tokens.get(ACCOUNT, CONTAINER, refused=tokens.get(ACCOUNT, CONTAINER))
    assert len(endpoint.asked) == 1


def test_many_threads_cause_one_request():
    endpoint = Endpoint()
    tokens, gate, got = tokens_of(endpoint), threading.Barrier(16), []

    def work():
        gate.wait()
        got.append(tokens.get(ACCOUNT, CONTAINER))

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(endpoint.asked) == 1 and len(set(got)) == 1 and len(got) == 16


def test_a_refusal_by_the_endpoint_is_passed_on_for_a_while_and_names_the_key():
    endpoint = Endpoint()
    endpoint.error = FetchError("status", "HTTP 401", 401)
    tokens = tokens_of(endpoint)
    for _ in range(10):
        with pytest.raises(FetchError, match=f"{signing.KEY_VARIABLE} must hold a key") as e:
            tokens.get(ACCOUNT, CONTAINER)
        assert e.value.status == 401
    assert len(endpoint.asked) == 1
    endpoint.now, endpoint.error = FAILED_S + 1, None
    tokens.get(ACCOUNT, CONTAINER)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b"null",
        b'{"token": "sig=x"}',
        b'{"token": 7, "msft:expiry": "2026-11-21T08:45:00Z"}',
        b'{"token": "", "msft:expiry": "2026-11-21T08:45:00Z"}',
        b'{"token": "sig=x y", "msft:expiry": "2026-11-21T08:45:00Z"}',
        b'{"token": "sig=x\\r\\nHost: a", "msft:expiry": "2026-11-21T08:45:00Z"}',
        b'{"token": "sig=x", "msft:expiry": "soon"}',
        b'{"token": "sig=x", "msft:expiry": "2026-11-21T07:00:00Z"}',
        b"\xff\xfe",
    ],
)
def test_what_is_no_token_is_refused(body):
    endpoint = Endpoint()
    endpoint.body = body
    with pytest.raises(FetchError, match="no token for sentinel2l2a01/sentinel2-l2"):
        tokens_of(endpoint).get(ACCOUNT, CONTAINER)


def test_signing_adds_the_token_after_a_query_that_was_there():
    signer = Signer(tokens_of(Endpoint()))
    assert signer.sign(BLOB).url == f"{BLOB}?st=x&se=y&sig=SECRET1%3D"
    assert signer.sign(f"{BLOB}?versionid=7").url == f"{BLOB}?versionid=7&st=x&se=y&sig=SECRET1%3D"


@pytest.mark.parametrize("url", [BLOB, f"{BLOB}?versionid=7"])
def test_signing_anew_after_a_refusal_brings_another_token(url):
    endpoint = Endpoint()
    signer = Signer(tokens_of(endpoint))
    first = signer.sign(url)
    endpoint.now = SHORTEST_S + 1
    second = signer.sign(url, first)
    assert first.url != second.url and second.url.endswith("SECRET2%3D")


def test_a_url_that_somebody_signed_is_left_as_it_is():
    endpoint = Endpoint()
    assert Signer(tokens_of(endpoint)).sign(f"{BLOB}?sig=theirs").url == f"{BLOB}?sig=theirs"
    assert endpoint.asked == []


@pytest.mark.parametrize("path", ["", "/", "/UPPER/x", "/a%2Fb/c"])
def test_a_blob_without_a_container_is_refused(path):
    with pytest.raises(FetchError, match="no container"):
        Signer(tokens_of(Endpoint())).sign(f"https://{hosts.PLANETARY_COMPUTER[0]}{path}")


def test_the_bearer_token_goes_to_operas_hosts_and_nobody_else(monkeypatch):
    monkeypatch.setenv(signing.EARTHDATA_VARIABLE, "eyJ.SECRET-token_\n")
    signer = Signer(tokens_of(Endpoint()))
    for host in hosts.OPERA:
        assert signer.sign(f"https://{host}/a").headers == {"Authorization": "Bearer eyJ.SECRET-token_"}
    for url in (
        *(f"http://{hosts.OPERA[0]}/a", f"https://{hosts.OPERA[0]}:8443/a", f"https://{hosts.EARTH_SEARCH[0]}/a"),
        *(BLOB, "https://d1.cloudfront.net/a", f"https://{hosts.OPERA[0]}.evil.example/a"),
    ):
        assert signer.sign(url).headers == {}


def test_a_bearer_token_that_would_add_headers_is_refused_without_being_shown(monkeypatch):
    monkeypatch.setenv(signing.EARTHDATA_VARIABLE, "SECRET\r\nX-Evil: 1")
    with pytest.raises(FetchError, match="EARTHDATA_TOKEN holds no bearer token") as e:
        Signer(tokens_of(Endpoint())).sign(OPERA)
    assert "SECRET" not in str(e.value)


def test_no_credential_is_shown_or_pickled(monkeypatch):
    monkeypatch.setenv(signing.EARTHDATA_VARIABLE, "SECRET")
    monkeypatch.setenv(signing.KEY_VARIABLE, "SECRET")
    tokens = tokens_of(Endpoint())
    signer = Signer(tokens)
    for thing in (signer.sign(BLOB), signer.sign(OPERA), tokens, signer, tokens._boxes[ACCOUNT, CONTAINER].token):
        assert "SECRET" not in repr(thing) + str(thing) + f"{thing}"
    for thing in (signer.sign(BLOB), tokens, signer):
        with pytest.raises(TypeError, match="process"):
            pickle.dumps(thing)


@pytest.mark.parametrize(
    ("href", "url"),
    [
        ("s3://sentinel-cogs/a/b.tif", "https://sentinel-cogs.s3.us-west-2.amazonaws.com/a/b.tif"),
        (
            "s3://e84-earth-search-sentinel-data/a b?.tif",
            "https://e84-earth-search-sentinel-data.s3.us-west-2.amazonaws.com/a%20b",
        ),
        ("https://x.example/a?b=c", "https://x.example/a?b=c"),
    ],
)
def test_public_buckets_are_fetched_over_https(href, url):
    assert plain_url(href) == url


@pytest.mark.parametrize("href", ["s3://sentinel-s2-l2a/tiles/a.jp2", "s3://KEY:SECRET@b/a", "gs://b/a", "file:///a"])
def test_other_buckets_and_schemes_are_refused(href):
    with pytest.raises(FetchError) as e:
        plain_url(href)
    assert e.value.kind == "refused" and "SECRET" not in str(e.value)


def test_a_signed_url_says_whether_it_carries_a_secret():
    assert Signed("https://a.example/x").secret is False
    assert Signer(tokens_of(Endpoint())).sign(BLOB).secret is True
