"""Where a request may go and what lets it in: redirects, tokens, certificates."""

import concurrent.futures
import json
import logging
import multiprocessing
import socket
import subprocess
import threading

import pytest
from faulty_server import Server, Skipped, in_turn, serve
from http_fetchers import DATA, FIXTURES, VERSION, fetcher_of, patience_for

from model.errors import BadInput
from transforms import hosts, http, signing
from transforms.fetching import FetchError
from transforms.hosts import Hosts, place_of
from transforms.signing import Signer, Tokens

server, skipped, fetch = FIXTURES


# Hosts


def test_a_host_that_nobody_named_gets_no_request():
    with serve(Server({"/a.tif": DATA})) as server:
        with pytest.raises(FetchError, match="TESSERA_HOSTS") as e:
            fetcher_of(Skipped())(f"{server.url}/a.tif", 0, 10, None)
        assert e.value.kind == "refused"
        assert server.connections == 0


def test_a_name_that_stands_for_a_loopback_address_gets_no_connection():
    """What counts is the address at the moment of connecting: no answer of a name server gets around it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        place = place_of(f"http://localhost:{listener.getsockname()[1]}/")

        class OfAProvider(Hosts):
            def check(self, url):
                return place

        with pytest.raises(FetchError, match="private address") as e:
            fetcher_of(Skipped(), allowed=OfAProvider)(f"http://{place}/a", 0, 10, None)
        assert e.value.kind == "refused"
        with pytest.raises(TimeoutError):
            listener.accept()


# The process's own


def test_what_would_be_refused_can_be_known_without_a_request():
    assert http.refusal(f"https://{hosts.CDSE[0]}/a.jp2") is None
    assert http.refusal("s3://sentinel-cogs/a.tif") is None
    assert "TESSERA_HOSTS=mirror.example.org" in http.refusal("https://mirror.example.org/a.tif")
    with hosts.allowed("mirror.example.org"):
        assert http.refusal("https://mirror.example.org/a.tif") is None


def test_a_process_has_one_fetcher_and_a_fork_makes_its_own(server, monkeypatch):
    monkeypatch.setattr(http, "_default", None)
    first = http.default_fetch()
    assert http.default_fetch() is first
    first(f"{server.url}/a.tif", 0, 10, VERSION)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        other, data = pool.apply(_in_another_process, (server.url,))
    assert data == DATA[:10]
    assert other["requests"] == 1


def _in_another_process(url):
    fetch = http.default_fetch()
    piece = fetch(f"{url}/a.tif", 0, 10, VERSION)
    return fetch.counters.read(), piece.data


def test_a_stated_number_of_workers_bounds_what_one_of_them_asks(monkeypatch):
    monkeypatch.setattr(http, "_default", None)
    monkeypatch.setenv(http.WORKERS_VARIABLE, "128")
    assert http.default_fetch().turns.most == 4
    http.set_workers(512)
    assert http.default_fetch().turns.most == 1


@pytest.mark.parametrize("said", ["0", "-1", "many", "1e3", ""])
def test_a_number_of_workers_that_makes_no_sense_is_refused(monkeypatch, said):
    monkeypatch.setattr(http, "_default", None)
    monkeypatch.setenv(http.WORKERS_VARIABLE, said)
    with pytest.raises(BadInput, match=http.WORKERS_VARIABLE):
        http.default_fetch()


# Redirects


def forward(server, to, status=302):
    server.routes["/go.tif"] = lambda _: (status, {"Location": to}, b"")
    return f"{server.url}/go.tif"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_an_allowed_redirect_is_followed_with_the_same_range(server, fetch, status):
    with serve(Server({"/b.tif": DATA})) as other, hosts.allowed(other.place):
        url = forward(server, f"{other.url}/b.tif?Signature=x", status)
        assert fetch(url, 7, 99, None).data == DATA[7:99]
        assert other.seen[0].headers["range"] == "bytes=7-98"


def test_a_relative_redirect_stays_on_its_host(server, fetch):
    assert fetch(forward(server, "a.tif"), 7, 99, None).data == DATA[7:99]


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("http://169.254.169.254/latest/meta-data", "forwards to 169.254.169.254:80"),
        ("http://127.0.0.1:1/a", "forwards to 127.0.0.1:1"),
        ("https://other.example/a?sig=SECRET", "forwards to other.example,"),
        ("file:///etc/passwd", "scheme 'file'"),
        ("https://u:SECRET@a/b", "user name"),
    ],
)
def test_a_redirect_to_any_other_place_is_refused(server, fetch, to, words):
    with pytest.raises(FetchError, match=words) as e:
        fetch(forward(server, to), 0, 10, None)
    assert e.value.kind == "refused" and "SECRET" not in str(e.value)
    assert len(server.seen) == 1


def test_a_redirect_in_a_circle_ends(server, fetch):
    with pytest.raises(FetchError, match="forwarded more than 5 times"):
        fetch(forward(server, "/go.tif"), 0, 10, None)
    assert len(server.seen) == http.HOPS + 1


def test_being_sent_to_log_in_is_a_missing_token(server, skipped, monkeypatch):
    monkeypatch.delenv(signing.EARTHDATA_VARIABLE, raising=False)
    fetch = fetcher_of(skipped, signer=Signer(Tokens(None, key=""), earthdata=(server.place,)))
    with pytest.raises(FetchError, match="EARTHDATA_TOKEN must hold a valid token") as e:
        fetch(forward(server, f"https://{http.LOGIN}/oauth/authorize?client_id=x"), 0, 10, None)
    assert e.value.status == 401


# Credentials


def test_a_bearer_token_does_not_follow_a_redirect_to_another_host(server, skipped, monkeypatch):
    monkeypatch.setenv(signing.EARTHDATA_VARIABLE, "SECRET")
    fetch = fetcher_of(skipped, signer=Signer(Tokens(None, key=""), earthdata=(server.place,)))
    with serve(Server({"/b.tif": DATA})) as other, hosts.allowed(other.place):
        fetch(forward(server, f"{other.url}/b.tif"), 0, 10, None)
        assert server.seen[0].headers["authorization"] == "Bearer SECRET"
        assert "authorization" not in other.seen[0].headers


class Azure:
    """A store that lets in whoever has a live token, and the endpoint that gives them."""

    def __init__(self, server, skipped, life_s=2700):
        self.server, self.skipped, self.life_s = server, skipped, life_s
        self.live, self.given = set(), 0
        self.lock = threading.Lock()
        account = server.place.partition(".")[0]
        server.routes[f"/token/{account}/box"] = self.token
        server.routes["/box/a.tif"] = self.blob
        self.statuses = []

    def fetcher(self, **given):
        fetch = fetcher_of(self.skipped)
        tokens = Tokens(fetch.ask, f"{self.server.url}/token", "KEY", self.skipped.clock, **given)
        fetch._signer = Signer(tokens, azure=(self.server.place,))
        return fetch

    def token(self, seen):
        if self.statuses:
            return self.statuses.pop(0), {}, b""
        with self.lock:
            self.given += 1
            self.live.add(f"SECRET{self.given}")
            said = {"token": f"se=x&sig=SECRET{self.given}", "msft:expiry": "2030-01-01T00:45:00Z"}
        return 200, {"Date": "Tue, 01 Jan 2030 00:00:00 GMT"}, json.dumps(said).encode()

    def blob(self, seen):
        if seen.path.rpartition("sig=")[2] not in self.live:
            return 403, {}, b"<Error><Code>AuthenticationFailed</Code></Error>"
        start, stop = (int(v) for v in seen.headers["range"].removeprefix("bytes=").split("-"))
        head = {"Content-Range": f"bytes {start}-{stop}/{len(DATA)}", "ETag": '"1"'}
        return 206, head, DATA[start : stop + 1]


def test_a_token_is_got_when_a_file_is_read_and_serves_all_reads(server, skipped):
    azure = Azure(server, skipped)
    fetch = azure.fetcher()
    for start in range(10):
        assert fetch(f"{server.url}/box/a.tif", start, start + 10, VERSION).data == DATA[start : start + 10]
    assert azure.given == 1
    assert [s.headers.get(signing.KEY_HEADER.lower()) for s in server.seen] == ["KEY"] + [None] * 10


def test_a_token_that_ends_in_mid_job_is_renewed_and_nobody_notices(server, skipped):
    azure = Azure(server, skipped)
    fetch = azure.fetcher(shortest_s=0.0)
    for start in range(6):
        assert fetch(f"{server.url}/box/a.tif", start, start + 10, VERSION).data == DATA[start : start + 10]
        azure.live.clear()
    assert azure.given == 6
    assert fetch.counters.read()["retries_denied"] == 5


def test_many_threads_with_an_ended_token_renew_it_once(server, skipped):
    azure = Azure(server, skipped)
    fetch = azure.fetcher()
    fetch(f"{server.url}/box/a.tif", 0, 10, VERSION)
    azure.live.clear()
    skipped.sleep(signing.SHORTEST_S + 1)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        pieces = list(pool.map(lambda n: fetch(f"{server.url}/box/a.tif", n, n + 10, VERSION).data, range(64)))
    assert pieces == [DATA[n : n + 10] for n in range(64)]
    assert azure.given == 2


def test_a_file_that_stays_denied_is_asked_for_twice(server, skipped):
    azure = Azure(server, skipped)
    fetch = azure.fetcher()
    server.routes["/box/a.tif"] = lambda _: (403, {}, b"")
    with pytest.raises(FetchError, match=signing.KEY_VARIABLE) as e:
        fetch(f"{server.url}/box/a.tif", 0, 10, None)
    assert e.value.status == 403
    assert len([s for s in server.seen if s.path.startswith("/box")]) == 2


def test_a_token_endpoint_that_stumbles_is_asked_again(server, skipped):
    azure = Azure(server, skipped)
    azure.statuses = [503, 429, 500]
    assert azure.fetcher()(f"{server.url}/box/a.tif", 0, 10, VERSION).data == DATA[:10]


def test_a_token_endpoint_that_wants_an_account_is_told_in_words(server, skipped):
    azure = Azure(server, skipped)
    azure.statuses = [401]
    with pytest.raises(FetchError, match=f"the key in {signing.KEY_VARIABLE} is turned down") as e:
        azure.fetcher()(f"{server.url}/box/a.tif", 0, 10, VERSION)
    assert e.value.status == 401


def test_no_secret_is_logged_even_where_everything_is(server, skipped, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    azure = Azure(server, skipped)
    server.plan = in_turn("500")
    azure.fetcher()(f"{server.url}/box/a.tif", 0, 10, VERSION)
    fetch = fetcher_of(skipped)
    fetch(f"{server.url}/a.tif?sig=SECRET", 0, 10, VERSION)
    assert "GET /box/a.tif" in caplog.text, "otherwise this test tells nothing"
    assert "SECRET" not in caplog.text


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    made = subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            "key.pem",
            "-out",
            "cert.pem",
            "-days",
            "2",
            "-subj",
            "/CN=loopback",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ],
        cwd=folder,
        capture_output=True,
    )
    if made.returncode:
        pytest.skip("no openssl that makes a certificate")
    return folder


@pytest.fixture
def tls(certificate):
    with serve(Server({"/a.tif": DATA}), certificate) as server, hosts.allowed(server.place):
        yield server


@pytest.mark.parametrize("fault", [None, "stall", "slow-drip", "slow-head", "reset", "early-end", "503"])
def test_everything_holds_over_tls(tls, certificate, skipped, monkeypatch, fault):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    fetch = fetcher_of(skipped, patience=patience_for(fault))
    for start in (0, 100, 200):
        tls.plan = in_turn(fault)
        assert fetch(f"{tls.url}/a.tif", start, start + 4000, VERSION).data == DATA[start : start + 4000]


def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(tls, skipped):
    fetch = fetcher_of(skipped)
    with pytest.raises(FetchError, match="certificate") as e:
        fetch(f"{tls.url}/a.tif", 0, 10, None)
    assert e.value.kind == "refused"
    assert skipped.sleeps == []
