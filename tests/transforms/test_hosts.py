import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import BadInput
from transforms import hosts
from transforms.fetching import FetchError
from transforms.hosts import Hosts, Place, allowed, current, place_of, shown

PUBLIC = Hosts()


def named(said):
    with allowed(said):
        return current()


@pytest.fixture(autouse=True)
def nobody_named_hosts(monkeypatch):
    monkeypatch.delenv(hosts.VARIABLE, raising=False)


@pytest.mark.parametrize(
    "url",
    [
        "https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/33/T/WL/a.tif",
        "https://sentinel1euwestrtc.blob.core.windows.net/sentinel1-grd-rtc/a.tif",
        "https://sentinel-cogs.s3.us-west-2.amazonaws.com/sentinel-s2-l2a-cogs/33/a.tif",
        "https://e84-earth-search-sentinel-data.s3.us-west-2.amazonaws.com/sentinel-2-c1-l2a/a.tif",
        "https://cumulus.asf.earthdatacloud.nasa.gov/OPERA/a.tif",
        "https://datapool.asf.alaska.edu/RTC/OPERA-S1/a.tif",
        "https://eodata.dataspace.copernicus.eu/eodata/a.jp2",
        "HTTPS://Sentinel-Cogs.S3.us-west-2.amazonaws.com:443/a.tif",
    ],
)
def test_the_providers_own_hosts_may_be_asked(url):
    assert PUBLIC.check(url).scheme == "https"


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "/vsicurl/https://sentinel-cogs.s3.us-west-2.amazonaws.com/a.tif",
        "ftp://sentinel-cogs.s3.us-west-2.amazonaws.com/a.tif",
        "gs://bucket/a.tif",
        "https:///a.tif",
        "https://sentinel-cogs.s3.us-west-2.amazonaws.com:0/a.tif",
        "https://sentinel-cogs.s3.us-west-2.amazonaws.com:99999/a.tif",
        "https://me:pass@sentinel-cogs.s3.us-west-2.amazonaws.com/a.tif",
        "https://sentinel-cogs.s3.us-west-2.amazonaws.com@evil.example/a.tif",
        "https://evil.example\\@sentinel-cogs.s3.us-west-2.amazonaws.com/a.tif",
        "https://sentinel-cogs.s3.us-west-2.amazonaws.com/a b.tif",
        "https://sentinel-cogs.s3.us-west-2.amazonaws.com/a\r\nHost: evil",
        "https://sentinel-cogs.s3.us-west-2.amazonaws.com./a.tif",
        "https://sentinel-cogs。s3.us-west-2.amazonaws.com/a.tif",
        "https://[::1/a.tif",
    ],
)
def test_what_is_no_plain_url_of_a_server_is_refused(url):
    with pytest.raises(FetchError) as e:
        PUBLIC.check(url)
    assert e.value.kind == "refused"
    assert "pass" not in str(e.value)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "sentinel-cogs.s3.us-west-2.amazonaws.com.evil.example",
        "evil-sentinel2l2a01.blob.core.windows.net",
        "other.blob.core.windows.net",
        "d1.cloudfront.net",
        "localhost",
        "metadata.google.internal",
        "169.254.169.254",
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "10.0.0.7",
        "192.168.1.1",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[fe80::1]",
        "[fd00:ec2::254]",
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_any_other_host_is_refused_and_the_cure_is_named(scheme, host):
    with pytest.raises(FetchError, match="TESSERA_HOSTS") as e:
        PUBLIC.check(f"{scheme}://{host}/a.tif?sig=SECRET")
    assert e.value.kind == "refused"
    assert "SECRET" not in str(e.value)


@pytest.mark.parametrize("end", ["http://{}/a.tif", "https://{}:8443/a.tif"])
def test_a_provider_is_asked_over_https_at_its_own_port_alone(end):
    with pytest.raises(FetchError, match="over https at port 443 alone"):
        PUBLIC.check(end.format(hosts.EARTH_SEARCH[0]))


def test_hosts_that_the_user_names_are_allowed_with_their_ports():
    mirror = named("mirror.example.org, 127.0.0.1:8123 10.0.0.7:*,[::1]:9000")
    for url in (
        *("https://mirror.example.org/a", "http://MIRROR.example.org/a", "http://127.0.0.1:8123/a"),
        *("http://10.0.0.7:5/a", "https://10.0.0.7/a", "http://[::1]:9000/a", f"https://{hosts.CDSE[0]}/a"),
    ):
        mirror.check(url)
    for url in ("https://mirror.example.org:8443/a", "http://127.0.0.1/a", "http://127.0.0.1:8124/a", "http://[::1]/a"):
        with pytest.raises(FetchError, match="no host of a provider"):
            mirror.check(url)


@pytest.mark.parametrize(
    "said", ["https://mirror.example.org", "me@mirror", "a/b", "host:port", "host:0", "host:70000", "[::1", "-x"]
)
def test_a_name_in_the_variable_that_makes_no_sense_is_refused_by_name(said):
    with pytest.raises(BadInput, match="is no host; write host, host:port"), allowed(said):
        pass


@pytest.mark.parametrize(
    "said", ["169.254.169.254", "[fe80::1]:80", "0.0.0.0", "[::ffff:169.254.169.254]", "224.0.0.1"]
)
def test_the_metadata_address_cannot_even_be_named(said):
    with pytest.raises(BadInput, match="never fetched"), allowed(said):
        pass


def test_allowing_a_host_ends_with_its_block_and_reaches_processes_that_start_in_it(monkeypatch):
    monkeypatch.setenv(hosts.VARIABLE, "mirror.example.org")
    with allowed("127.0.0.1:8000"):
        assert hosts.os.environ[hosts.VARIABLE] == "mirror.example.org,127.0.0.1:8000"
        current().check("http://127.0.0.1:8000/a")
        current().check("https://mirror.example.org/a")
    with pytest.raises(FetchError):
        current().check("http://127.0.0.1:8000/a")


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "100.64.0.1", "::1", "fd00::1", "::ffff:10.0.0.1"),
        *("169.254.169.254", "0.0.0.0", "fe80::1%eth0", "64:ff9b::a00:1", "2002:7f00:1::", "168.63.129.16"),
    ],
)
def test_a_provider_whose_name_stands_for_a_private_address_is_refused(address):
    with pytest.raises(FetchError, match="stands for") as e:
        PUBLIC.check_address(place_of(f"https://{hosts.CDSE[0]}/a"), address)
    assert e.value.kind == "refused"


@pytest.mark.parametrize("address", ["52.218.1.1", "2600:1fa0::1", "64:ff9b::34da:101"])
def test_a_provider_at_a_public_address_is_asked(address):
    PUBLIC.check_address(place_of(f"https://{hosts.CDSE[0]}/a"), address)


def test_a_named_host_may_be_private_but_never_the_metadata_address():
    mirror, place = named("mirror.example.org"), Place("https", "mirror.example.org", 443)
    mirror.check_address(place, "10.0.0.1")
    mirror.check_address(place, "127.0.0.1")
    for address in ("169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "0.0.0.0"):
        with pytest.raises(FetchError, match="no files"):
            mirror.check_address(place, address)


@given(st.ip_addresses())
def test_no_provider_is_ever_reached_at_an_address_that_is_not_global(ip):
    place = place_of(f"https://{hosts.CDSE[0]}/a")
    try:
        PUBLIC.check_address(place, str(ip))
    except FetchError:
        return
    assert ip.is_global or ip in ipaddress.ip_network("64:ff9b::/96") or (ip.version == 6 and ip.sixtofour is not None)
    assert not (ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified)


def test_opera_may_forward_to_its_signed_urls_and_nobody_else_may():
    start = place_of(f"https://{hosts.OPERA[2]}/a")
    for url in (
        *(f"https://{hosts.OPERA[0]}/a", "https://d111111abcdef8.cloudfront.net/a?Signature=x"),
        "https://asf-cumulus-prod-opera-products.s3.us-west-2.amazonaws.com/a?X-Amz-Signature=x",
    ):
        PUBLIC.check_forward(start, url)
    for url in (
        *("https://evil.example/a", "https://cloudfront.net.evil.example/a", "https://evilcloudfront.net/a"),
        *("http://d111111abcdef8.cloudfront.net/a", "http://169.254.169.254/latest", "file:///etc/passwd"),
        "https://u:p@d111111abcdef8.cloudfront.net/a",
    ):
        with pytest.raises(FetchError) as e:
            PUBLIC.check_forward(start, url)
        assert e.value.kind == "refused"
    with pytest.raises(FetchError, match="forwards to"):
        PUBLIC.check_forward(place_of(f"https://{hosts.CDSE[0]}/a"), "https://d111111abcdef8.cloudfront.net/a")


def test_a_mirror_forwards_only_to_hosts_that_are_named_too_and_never_from_https_to_http():
    mirror = named("a.example,b.example")
    start = place_of("https://a.example/x")
    mirror.check_forward(start, "https://b.example/x")
    for url in ("http://b.example/x", "https://c.example/x", f"https://{hosts.CDSE[0]}/x"):
        with pytest.raises(FetchError):
            mirror.check_forward(start, url)


@given(st.text(max_size=40), st.text(max_size=10))
def test_what_is_shown_of_a_url_has_no_query_and_no_line_break(path, host):
    text = shown(f"https://me:SECRET@{host}/{path}?sig=SECRET")
    assert text.isprintable() and text.isascii()


def test_what_is_shown_of_a_url_is_host_and_path():
    assert shown("https://me:pass@a.example:8/b/c.tif?sig=x#y") == "a.example:8/b/c.tif"
