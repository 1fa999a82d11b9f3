"""Hosts: the servers that assets may be fetched from, so that no catalogue can send a worker to another one."""

import contextlib
import dataclasses
import functools
import ipaddress
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping

from model.errors import BadInput
from transforms.fetching import FetchError

VARIABLE = "TESSERA_HOSTS"  # further hosts: "mirror.example.org,10.0.0.7:9000,127.0.0.1:*"; worker processes inherit it

# Where each provider keeps its pixels, as the recorded items have it (facts/sources-and-cogs.md 1.2).
PLANETARY_COMPUTER = ("sentinel2l2a01.blob.core.windows.net", "sentinel1euwestrtc.blob.core.windows.net")
EARTH_SEARCH = (
    "sentinel-cogs.s3.us-west-2.amazonaws.com",
    "e84-earth-search-sentinel-data.s3.us-west-2.amazonaws.com",
)
# ASF gives OPERA's files under three names; `datapool` forwards to `cumulus`, and that to a signed URL of CloudFront,
# or of the bucket itself for machines of its own region (asfadmin/thin-egress-app).
OPERA = ("cumulus.asf.earthdatacloud.nasa.gov", "cumulus.asf.alaska.edu", "datapool.asf.alaska.edu")
OPERA_TARGETS = (".cloudfront.net", "asf-cumulus-prod-opera-products.s3.us-west-2.amazonaws.com")
CDSE = ("eodata.dataspace.copernicus.eu",)
# Connections at once that a host lets an account have (documentation.dataspace.copernicus.eu, "Quotas and Limitations":
# 4 of 20 MB/s each, and 2,000 requests a minute, for general users).
AT_ONCE: Mapping[str, int] = dict.fromkeys(CDSE, 4)
PROVIDERS = (*PLANETARY_COMPUTER, *EARTH_SEARCH, *OPERA, *CDSE)
FORWARDS: Mapping[str, tuple[str, ...]] = dict.fromkeys(OPERA, (*OPERA, *OPERA_TARGETS))

_PORTS = {"https": 443, "http": 80}
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: IPv4 hosts as networks with IPv6 alone see them

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclasses.dataclass(frozen=True, order=True)
class Place:
    """One server. scheme: "https" or "http". host: lower case, IPv6 without brackets. port: never None."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        """host:port; the host alone where it is asked over https at its own port, and in no other case."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if (self.scheme, self.port) == ("https", 443) else f"{host}:{self.port}"


def place_of(url: str) -> Place:
    """The server that a URL names.

    Raises:
      FetchError: of kind "refused": another scheme than https and http, a user name, characters that programs read
        differently, no host, a port that is none.
    """
    if not url.isascii() or not url.isprintable() or "\\" in url or " " in url:
        raise _refused("a URL with spaces, control characters, backslashes or letters beyond ASCII is not fetched")
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise _refused("that is no URL") from None
    scheme = parts.scheme.lower()
    if scheme not in _PORTS:
        raise _refused(f"scheme {scheme or 'none'!r}: remote files are fetched over https")
    if "@" in parts.netloc:
        raise _refused("a URL with a user name is not fetched; credentials belong in the environment")
    if not (_NAME.fullmatch(host) or _literal(host)) or port == 0:
        raise _refused("a URL without a plain host name is not fetched")
    return Place(scheme, host, port or _PORTS[scheme])


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The allow-list.

    Attributes:
      named: (host, port) that the user named; port 0 stands for 443 and 80, -1 for any. They may lie in private
        networks and be asked without TLS.
      providers: hosts that everyone may ask, over https at its own port, and at public addresses alone.
      forwards: provider's host -> names, or suffixes with a leading dot, to which it may forward a request.
    """

    named: frozenset[tuple[str, int]] = frozenset()
    providers: tuple[str, ...] = PROVIDERS
    forwards: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=lambda: FORWARDS, hash=False)

    def names(self, place: Place) -> bool:
        """Whether the user named this server."""
        ports = {place.port, -1} | ({0} if place.port in _PORTS.values() else set())
        return any((place.host, port) in self.named for port in ports)

    def check(self, url: str) -> Place:
        """The server of a URL that may be fetched.

        Raises:
          FetchError: of kind "refused", with the reason and the cure.
        """
        place = place_of(url)
        if self.names(place):
            return place
        if place.host not in self.providers:
            raise _refused(
                f"{place} is no host of a provider; where it is a mirror of yours, name it in {VARIABLE}={place}"
            )
        self._check_provider(place)
        return place

    def check_forward(self, start: Place, url: str) -> Place:
        """The server that an answer forwards to, where a request that began at `start` may follow.

        Raises:
          FetchError: of kind "refused".
        """
        place = place_of(url)
        if self.names(place) and (place.scheme == "https" or start.scheme == "http"):
            return place
        known = any(
            place.host.endswith(name) if name.startswith(".") else place.host == name
            for name in (*self.forwards.get(start.host, ()), start.host)
        )
        if not known or self.names(start):
            raise _refused(f"{start} forwards to {place}, which is not its own; a mirror is named in {VARIABLE}")
        self._check_provider(place)
        return place

    def check_address(self, place: Place, address: str) -> None:
        """Whether a connection may go to this address, the one that the host's name stands for at this moment.

        Raises:
          FetchError: of kind "refused".
        """
        ip = _plain(ipaddress.ip_address(address.partition("%")[0]))
        if _never(ip):
            raise _refused(f"{place} stands for {ip}, an address of the machine's own network that has no files")
        if not ip.is_global and not self.names(place):
            raise _refused(
                f"{place} stands for the private address {ip}; where that is right, name it in {VARIABLE}={place}"
            )

    def _check_provider(self, place: Place) -> None:
        if place.scheme != "https" or place.port != _PORTS["https"]:
            raise _refused(f"{place.host} is asked over https at port 443 alone, not over {place.scheme}:{place.port}")


def current() -> Hosts:
    """The process's allow-list: the providers, and what `TESSERA_HOSTS` names at this moment.

    Raises:
      BadInput: a name in `TESSERA_HOSTS` that makes no sense.
    """
    return _parsed(os.environ.get(VARIABLE, ""))


@contextlib.contextmanager
def allowed(*names: str) -> Iterator[None]:
    """Adds hosts while it lasts, for loopback servers of the demo, tests and benchmarks; see `current`.

    It sets the environment variable, so processes that start meanwhile have them too. Not for use from many threads.
    """
    before = os.environ.get(VARIABLE)
    said = ",".join(name for name in (before, *names) if name)
    _parsed(said)
    os.environ[VARIABLE] = said
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before


def shown(url: str) -> str:
    """A URL as messages have it: host and path, without query and user name."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return "a URL that makes no sense"
    text = f"{parts.netloc.rpartition('@')[2]}{parts.path}"
    return text.encode("ascii", "backslashreplace").decode() if text.isprintable() else ascii(text)


@functools.lru_cache(maxsize=16)
def _parsed(said: str) -> Hosts:
    """The allow-list for the text of `TESSERA_HOSTS`."""
    named = set()
    for word in said.replace(",", " ").split():
        match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:/@\[\]]+)(?::(\d{1,5}|\*))?", word)
        host = match[1].strip("[]").lower() if match else ""
        ip = _literal(host)
        port = 0 if match is None or match[2] is None else -1 if match[2] == "*" else int(match[2])
        if not match or not (ip or _NAME.fullmatch(host)) or port > 65535 or match[2] == "0":
            raise BadInput(f"{VARIABLE}: {word!r} is no host; write host, host:port or host:* with commas between")
        if ip and _never(_plain(ip)):
            raise BadInput(f"{VARIABLE}: {word} is a metadata, multicast or unspecified address and is never fetched")
        named.add((host, port))
    return Hosts(frozenset(named))


def _literal(host: str) -> Address | None:
    """The address that a host is, or None where it is a name. 127.1, octal and the like are neither (RFC 3986)."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _plain(ip: Address) -> Address:
    """The IPv4 address inside an IPv6 one that only carries it to its end: what counts is where packets go."""
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped or ip.sixtofour:
            return ip.ipv4_mapped or ip.sixtofour or ip
        if ip in _NAT64:
            return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip


# Link-local but by name: AWS over IPv6, Alibaba, Azure.
_METADATA = tuple(ipaddress.ip_address(a) for a in ("fd00:ec2::254", "100.100.100.200", "168.63.129.16"))


def _never(ip: Address) -> bool:
    """Link-local (with 169.254.169.254, the metadata address of every cloud), multicast, unspecified."""
    return ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip in _METADATA


def _refused(why: str) -> FetchError:
    return FetchError("refused", why)
