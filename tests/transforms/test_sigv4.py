import datetime as dt
import pickle
import urllib.parse

import numpy as np
import pytest
from faulty_server import serve
from hypothesis import given
from hypothesis import strategies as st
from jp2_files import GRID, jp2, some_pixels
from s3_server import KEY, SECRET, Bucket

from model.profile import CDSE_L2A
from transforms import hosts, http, remote, sigv4
from transforms.fetching import FetchError
from transforms.http import Fetcher
from transforms.read import ReadError, read_patch
from transforms.scenes import S2, Asset, Scene
from transforms.signing import Signer, Tokens, missing, plain_url
from transforms.sigv4 import EMPTY_SHA256, Clock, Keys, headers, signature
from transforms.throttle import Counters, Throttle

PATH = "/eodata/Sentinel-2/MSI/L2A/x.SAFE/T33TWL_B04_10m.jp2"
HREF = f"s3:/{PATH}"
NOW = dt.datetime(2026, 11, 3, 12, 0, 0, tzinfo=dt.UTC)
VARIABLES = (
    *(sigv4.ID_VARIABLE, sigv4.SECRET_VARIABLE, sigv4.ENDPOINT_VARIABLE),
    *(sigv4.AWS_ID, sigv4.AWS_SECRET, sigv4.AWS_ENDPOINT),
)


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def keys(monkeypatch):
    monkeypatch.setenv(sigv4.ID_VARIABLE, KEY)
    monkeypatch.setenv(sigv4.SECRET_VARIABLE, SECRET)


# The signature


@pytest.mark.parametrize(
    ("path", "query", "more", "expected"),
    [  # docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html, its three GETs
        (
            *("/test.txt", "", {"range": "bytes=0-9"}),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        ("/", "lifecycle", {}, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        ("/", "max-keys=2&prefix=J", {}, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
    ],
)
def test_the_published_examples_come_out(path, query, more, expected):
    keys = Keys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    sent = {
        "host": "examplebucket.s3.amazonaws.com",
        "x-amz-content-sha256": EMPTY_SHA256,
        "x-amz-date": "20130524T000000Z",
        **more,
    }
    made = signature(path, query, sent, keys, "20130524/us-east-1/s3/aws4_request")
    assert made == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
        f"SignedHeaders={';'.join(sorted(sent))}, Signature={expected}"
    )


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40), st.text(max_size=8))
def test_a_bucket_lets_in_whoever_signs_whatever_the_object_is_called(name, word):
    url = f"https://h.example:8443/eodata/{urllib.parse.quote(name + word)}"
    bucket = Bucket({}, clock=lambda: NOW)

    class Seen:
        path = urllib.parse.urlsplit(url).path
        headers = {"host": "h.example:8443"} | {
            k.lower(): v for k, v in headers(url, Keys(KEY, SECRET), NOW + dt.timedelta(minutes=14)).items()
        }

    assert bucket._why_not(Seen) == ""
    Seen.headers["host"] = "other.example"
    assert bucket._why_not(Seen) == "SignatureDoesNotMatch"


# Hrefs and keys


def test_an_href_of_the_data_space_is_path_style_at_its_endpoint(monkeypatch):
    assert plain_url(HREF) == f"https://eodata.dataspace.copernicus.eu{PATH}"
    assert plain_url("s3://eodata/a b+c.jp2") == "https://eodata.dataspace.copernicus.eu/eodata/a%20b%2Bc.jp2"
    monkeypatch.setenv(sigv4.ENDPOINT_VARIABLE, "https://eodata.cloudferro.com/")
    assert plain_url(HREF) == f"https://eodata.cloudferro.com{PATH}"
    assert "TESSERA_HOSTS=eodata.cloudferro.com" in http.refusal(HREF)  # a host that is named like all others
    with hosts.allowed("eodata.cloudferro.com"):
        assert http.refusal(HREF) is None


@pytest.mark.parametrize("said", ["ftp://a.example", "https://u:SECRET@a.example", "https://a.example/x", "a b"])
def test_an_endpoint_that_is_no_server_is_refused(monkeypatch, said):
    monkeypatch.setenv(sigv4.ENDPOINT_VARIABLE, said)
    with pytest.raises(FetchError) as e:
        plain_url(HREF)
    assert e.value.kind == "refused" and "SECRET" not in str(e.value)


def test_keys_that_are_missing_are_named_with_where_to_get_them(monkeypatch):
    for name, value in ((sigv4.AWS_ID, "AMAZONS"), (sigv4.AWS_SECRET, "x")):
        monkeypatch.setenv(name, value)  # somebody's output lies on Amazon: that key is nobody else's business
    assert "set CDSE_S3_ACCESS_KEY and CDSE_S3_SECRET_KEY, which eodata-s3keysmanager" in missing(HREF)
    assert missing("https://sentinel-cogs.s3.us-west-2.amazonaws.com/a.tif") is None
    with pytest.raises(FetchError, match="set CDSE_S3_ACCESS_KEY") as e:
        Signer(Tokens(None)).sign(plain_url(HREF))
    assert e.value.kind == "refused"
    monkeypatch.setenv(sigv4.AWS_ENDPOINT, "https://s3.amazonaws.com")
    assert missing(HREF)
    monkeypatch.setenv(sigv4.AWS_ENDPOINT, "eodata.dataspace.copernicus.eu")  # as the provider's own pages set it
    assert missing(HREF) is None
    assert "Credential=AMAZONS/" in Signer(Tokens(None)).sign(plain_url(HREF)).headers["Authorization"]


@pytest.mark.parametrize("pair", [("KEY1", ""), ("", "s"), ("a b", "s"), ("KEY1", "clé")])
def test_half_a_pair_or_no_key_is_refused_without_showing_it(monkeypatch, pair):
    monkeypatch.setenv(sigv4.ID_VARIABLE, pair[0])
    monkeypatch.setenv(sigv4.SECRET_VARIABLE, pair[1])
    with pytest.raises(FetchError, match="CDSE_S3_") as e:
        missing(HREF)
    assert "KEY1" not in str(e.value) and "clé" not in str(e.value)


def test_no_key_and_no_signature_is_shown_or_pickled(keys):
    signer = Signer(Tokens(None))
    signed = signer.sign(plain_url(HREF))
    assert signed.secret
    for thing in (signed, signer, sigv4.keys()):
        assert not {KEY, SECRET, signed.headers["Authorization"][-64:]} & {*str(thing).split(), repr(thing)}
        assert KEY not in repr(thing) and "Signature" not in repr(thing)
        with pytest.raises(TypeError, match="process"):
            pickle.dumps(thing)


def test_nobody_else_gets_a_signature_and_a_presigned_url_stays_as_it_is(keys):
    signer = Signer(Tokens(None))
    assert not signer.sign("https://sentinel-cogs.s3.us-west-2.amazonaws.com/a.tif").headers
    assert not signer.sign("http://eodata.dataspace.copernicus.eu/eodata/a.jp2").headers  # without TLS: another place
    assert not signer.sign(f"{plain_url(HREF)}?X-Amz-Signature=0").headers


def test_a_clock_goes_by_a_server_that_turned_a_request_down_and_by_nobody_odd():
    clock = Clock(lambda: NOW)
    clock.heard("Tue, 03 Nov 2026 13:30:00 GMT")
    assert clock.now() == NOW + dt.timedelta(minutes=90)
    for odd in ("", "yesterday", "Tue, 03 Nov 1970 13:30:00 GMT"):
        clock.heard(odd)
        assert clock.now() == NOW + dt.timedelta(minutes=90)
    clock.heard("Tue, 03 Nov 2026 12:00:00 GMT")
    assert clock.now() == NOW


def test_a_signature_refused_for_its_time_is_made_by_the_servers_clock(keys):
    late = Clock(lambda: NOW - dt.timedelta(hours=2))
    signer = Signer(Tokens(None), clock=late)
    url = plain_url(HREF)
    refused = signer.sign(url)
    assert refused.headers["x-amz-date"] == "20261103T100000Z"
    signer.heard(f"https://{hosts.EARTH_SEARCH[0]}/a", "Tue, 03 Nov 2026 23:00:00 GMT")  # another host: not its clock
    signer.heard(url, "Tue, 03 Nov 2026 12:00:01 GMT")
    assert signer.sign(url, refused).headers["x-amz-date"] == "20261103T120001Z"


# Quotas


def test_the_data_space_has_four_connections_for_all_workers_together():
    host = hosts.CDSE[0]
    gate = Throttle(counters=Counters())
    assert gate.limit(host) == 4
    assert gate.limit("other.example") == 8
    for _ in range(200):
        turns = [gate.turn(host) for _ in range(4)]
        for turn in [(t, t.__enter__()) for t in turns]:
            turn[0].__exit__(None, None, None)
    assert gate.limit(host) == 4  # it does not grow
    gate.keep_to(64, workers=2)
    assert gate.limit(host) == 2
    gate.keep_to(64, workers=100)
    assert gate.limit(host) == 1
    assert Throttle(counters=Counters(), workers=3).limit(host) == 1


# From one end to the other


@pytest.fixture
def pixels():
    return some_pixels((300, 270))


@pytest.fixture
def bucket(pixels, keys, monkeypatch):
    bucket = Bucket({PATH: jp2(pixels, 64, nbits=15, TLM="YES")})
    with serve(bucket.server), hosts.allowed(bucket.server.place):
        monkeypatch.setenv(sigv4.ENDPOINT_VARIABLE, bucket.server.url)
        remote.use_fetcher(Fetcher(sleep=lambda _: None))
        yield bucket
    remote.use_fetcher(None)


def read(pixels, row=0, col=0, height=300, width=270, href=HREF):
    asset = Asset("B04", href, 32633, tuple(GRID)[:6], *pixels.shape)
    scene = Scene(
        "33TWL", S2, CDSE_L2A, "S2A_X", "2024-05-01T10:00:00.000000Z", 0, "descending", 122, "sentinel-2a", "05.10",
        10.0, "", "", 0, "", True, "", (asset,),
    )  # fmt: skip
    return read_patch(scene, asset, "", row, col, height, width)


def test_a_window_of_an_s3_href_is_read_in_signed_ranges(bucket, pixels):
    patch = read(pixels, 100, 100, 60, 80)
    np.testing.assert_array_equal(patch.data, pixels[100:160, 100:180])
    assert patch.nodata == 0
    assert not bucket.refused and len(bucket.asked) >= 2
    for seen in bucket.server.seen:
        assert SECRET not in seen.path + "".join(seen.headers.values())


def refuse(status, code):
    return lambda *_: (status, {"Content-Type": "application/xml"}, f"<Error><Code>{code}</Code></Error>".encode())


def page(*_):
    return 200, {"Content-Type": "text/html"}, b"<!DOCTYPE html><html>Sign in</html>"


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize(
    "fault",
    [refuse(403, "RequestTimeTooSkewed"), refuse(403, "AccessDenied"), refuse(503, "SlowDown"), refuse(429, "x"), page],
)
def test_a_fault_that_passes_costs_a_request_and_no_pixel(bucket, pixels, fault, at):
    bucket.objects[PATH] = jp2(pixels, 64, nbits=15)
    bucket.plan = {at: fault}
    np.testing.assert_array_equal(read(pixels).data, pixels)


def test_a_403_is_signed_anew_at_once(bucket, pixels):
    bucket.plan = {0: refuse(403, "RequestTimeTooSkewed")}
    read(pixels)
    signatures = [s.headers["authorization"] for s in bucket.server.seen[:2]]
    assert all(s.startswith("AWS4-HMAC-SHA256 Credential=") for s in signatures)
    assert bucket.asked[0] == bucket.asked[1]


def test_keys_that_are_turned_down_are_an_error_that_names_them_and_shows_nothing(bucket, pixels, monkeypatch):
    monkeypatch.setenv(sigv4.SECRET_VARIABLE, "not-the-secret")
    with pytest.raises(ReadError, match="HTTP 403; the keys in CDSE_S3_ACCESS_KEY may have ended") as e:
        read(pixels)
    assert (e.value.kind, e.value.status) == ("status", 403)
    assert set(bucket.refused) == {"SignatureDoesNotMatch"}
    assert not any(word in str(e.value) for word in ("not-the-secret", KEY, "Signature="))


def test_a_page_with_status_200_that_stays_is_an_error(bucket, pixels):
    bucket.plan = dict.fromkeys(range(100), page)
    with pytest.raises(ReadError, match="text/html in place of the file") as e:
        read(pixels)
    assert (e.value.kind, e.value.status) == ("status", 200)


def test_an_object_that_is_cut_is_an_error_of_the_file(bucket, pixels):
    bucket.objects[PATH] = bucket.objects[PATH][:-5000]
    with pytest.raises(ReadError, match="the file has") as e:
        read(pixels)
    assert e.value.kind == "file"


def test_an_object_that_is_replaced_between_two_requests_is_of_one_version_or_an_error(bucket, pixels):
    other = pixels[::-1].copy()

    def replace(*answer):
        bucket.objects[PATH], bucket.tags[PATH] = jp2(other, 64, nbits=15, TLM="YES"), '"2"'
        return answer

    bucket.plan = {0: replace}
    np.testing.assert_array_equal(read(pixels).data, other)

    def touch(*answer):
        bucket.tags[PATH] += "x"
        return answer

    remote.HEADERS.clear()
    bucket.plan = dict.fromkeys(range(200), touch)
    with pytest.raises(ReadError) as e:
        read(pixels)
    assert e.value.kind == "changed"


def test_a_tile_part_that_points_outside_is_an_error_of_the_file(bucket, pixels):
    data = bytearray(jp2(pixels, 64, nbits=15))
    at = data.index(b"\xff\x90\x00\x0a\x00\x03") + 6
    data[at : at + 4] = (1 << 30).to_bytes(4, "big")
    bucket.objects[PATH] = bytes(data)
    with pytest.raises(ReadError, match="leads out of the codestream") as e:
        read(pixels)
    assert e.value.kind == "file"
