"""Signing: what a request must carry to be let in, got in the worker when a file is read, and never stored or shown."""

import dataclasses
import datetime as dt
import email.utils
import json
import os
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from typing import NoReturn, Protocol

from transforms import hosts, sigv4
from transforms.fetching import FetchError

# The names of Planetary Computer's own SDK, so that its users have them set already (planetary_computer/settings.py).
KEY_VARIABLE = "PC_SDK_SUBSCRIPTION_KEY"
ENDPOINT_VARIABLE = "PC_SDK_SAS_URL"
ENDPOINT = "https://planetarycomputer.microsoft.com/api/sas/v1/token"  # /<account>/<container>
KEY_HEADER = "Ocp-Apim-Subscription-Key"
EARTHDATA_VARIABLE = "EARTHDATA_TOKEN"

# Public buckets whose files are fetched over https; s3:// hrefs of recorded items name these two, and `sigv4.BUCKET`.
BUCKETS = {
    "sentinel-cogs": "sentinel-cogs.s3.us-west-2.amazonaws.com",
    "e84-earth-search-sentinel-data": "e84-earth-search-sentinel-data.s3.us-west-2.amazonaws.com",
}

# Seconds of life at which a token is renewed, by chance for each: workers that began together do not ask together.
# Tokens live 45 minutes (PlanetaryComputer#388); the SDK renews below 60 s.
RENEW_S = (120.0, 600.0)
LEAST_S = 30.0  # with less life than this a token is not used: the request itself takes time
SHORTEST_S = 5.0  # between two renewals of one token that was refused: then the token is not what is wrong
FAILED_S = 30.0  # a refusal of the endpoint is passed on to whoever asks in this time
TOKEN_BYTES = 16 << 10

_TOKEN = re.compile(r"[A-Za-z0-9%&=._~:+/-]+")
_BEARER = re.compile(r"[A-Za-z0-9._~+/=-]+")  # RFC 6750


class Signed:
    """A URL and headers that may carry rights. Neither shown nor pickled.

    url: what to ask. headers: what to send with it. secret: whether either of them holds a credential.
    """

    __slots__ = ("headers", "secret", "url")

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, secret: bool = False) -> None:
        self.url, self.headers, self.secret = url, dict(headers or {}), secret

    def __repr__(self) -> str:
        return f"Signed({hosts.shown(self.url)!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a signed URL stays in its process")


class Ask(Protocol):
    """Asks a server for a small JSON document; its body and the answer's Date header ("" where there is none)."""

    def __call__(self, url: str, headers: Mapping[str, str]) -> tuple[bytes, str]: ...


def plain_url(href: str) -> str:
    """An href as a URL to fetch: `s3://` of a known bucket over https, any http(s) URL as it is.

    Raises:
      FetchError: of kind "refused": another bucket, or any other scheme.
    """
    parts = urllib.parse.urlsplit(href)
    if parts.scheme.lower() != "s3":
        hosts.place_of(href)
        return href
    if parts.netloc == sigv4.BUCKET:
        return sigv4.url_of(parts.path)
    host = BUCKETS.get(parts.netloc)
    if host is None:
        known = ", ".join(BUCKETS)
        raise FetchError("refused", f"s3 bucket {_word(parts.netloc)}: those that are read are {known}, {sigv4.BUCKET}")
    return f"https://{host}/{urllib.parse.quote(parts.path.lstrip('/'))}"


@dataclasses.dataclass(eq=False, repr=False)
class _Token:
    """A container's token. Times are of the clock; born: when it was got, renew: when to get the next."""

    text: str
    born: float
    renew: float
    ends: float


class _Box:
    """What is known of one container's token; `lock` is held by the one thread that asks for it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.token: _Token | None = None
        self.failed: tuple[float, FetchError] | None = None


class Tokens:
    """Planetary Computer's SAS tokens, one for each storage account and container, shared by all threads."""

    def __init__(
        self,
        ask: Ask,
        endpoint: str | None = None,
        key: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[float, float], float] = random.uniform,
        shortest_s: float = SHORTEST_S,
    ) -> None:
        """endpoint, key: from the environment where None is given. shortest_s: between two renewals after a 403."""
        self._ask, self._clock, self._chance, self._shortest_s = ask, clock, chance, shortest_s
        self._endpoint = (endpoint or os.environ.get(ENDPOINT_VARIABLE) or ENDPOINT).rstrip("/")
        self._key = os.environ.get(KEY_VARIABLE, "") if key is None else key
        self._guard = threading.Lock()
        self._boxes: dict[tuple[str, str], _Box] = {}

    def __repr__(self) -> str:
        return f"Tokens({hosts.shown(self._endpoint)!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("tokens stay in their process")

    def get(self, account: str, container: str, refused: str | None = None) -> str:
        """A token that lives; another than `refused` where there is one to be had.

        One thread asks the endpoint, the others wait for it, or go on with the old token where that still lives.

        Raises:
          FetchError: the endpoint gives none.
        """
        with self._guard:
            box = self._boxes.setdefault((account, container), _Box())
        token = box.token
        if token is not None and self._serves(token, refused):
            if self._clock() < token.renew or not box.lock.acquire(blocking=False):
                return token.text
        else:
            box.lock.acquire()
        try:
            return self._renewed(box, account, container, refused)
        finally:
            box.lock.release()

    def _renewed(self, box: _Box, account: str, container: str, refused: str | None) -> str:
        """The token of a box whose lock is held, after a look at what others got meanwhile."""
        token, now = box.token, self._clock()
        serves = token is not None and self._serves(token, refused)
        if token is not None and serves and now < token.renew:
            return token.text
        if box.failed is not None and now < box.failed[0]:
            if token is not None and serves:
                return token.text
            raise FetchError(*box.failed[1].args)  # one of its own for each thread
        try:
            box.token = self._asked(account, container)
        except FetchError as e:
            box.failed = (now + FAILED_S, e)
            if token is not None and serves:
                return token.text  # it lives for a while: another try comes before its end
            raise
        box.failed = None
        return box.token.text

    def _serves(self, token: _Token, refused: str | None) -> bool:
        now = self._clock()
        if token.text == refused and now >= token.born + self._shortest_s:
            return False
        return now < token.ends - LEAST_S

    def _asked(self, account: str, container: str) -> _Token:
        url = f"{self._endpoint}/{account}/{container}"
        now = self._clock()
        try:
            body, date = self._ask(url, {KEY_HEADER: self._key} if self._key else {})
        except FetchError as e:
            if e.status in (401, 403):
                why = f"the key in {KEY_VARIABLE} is turned down" if self._key else f"{KEY_VARIABLE} must hold a key"
                raise FetchError("status", f"no token for {account}/{container}: {why}", e.status) from None
            raise FetchError(e.kind, f"no token for {account}/{container}: {e}", e.status) from None
        text, life_s = _parsed(body, date, f"{account}/{container}")
        early_s = min(self._chance(*RENEW_S), life_s / 2)
        return _Token(text, now, now + life_s - early_s, now + life_s)


def _parsed(body: bytes, date: str, what: str) -> tuple[str, float]:
    """Token and its life in seconds, by the server's own clock where the answer has one.

    Raises:
      FetchError: an answer that is no token, or one that has ended.
    """
    try:
        said = json.loads(body)
        token, expiry = said["token"], dt.datetime.fromisoformat(said["msft:expiry"])
        ends = expiry if expiry.tzinfo else expiry.replace(tzinfo=dt.UTC)
    except (ValueError, KeyError, TypeError):
        raise FetchError("short", f"no token for {what}: the endpoint's answer holds none") from None
    if not isinstance(token, str) or not _TOKEN.fullmatch(token.lstrip("?")):
        raise FetchError("short", f"no token for {what}: the endpoint's answer is no query string")
    try:
        now = email.utils.parsedate_to_datetime(date)
    except ValueError:
        now = dt.datetime.now(dt.UTC)
    life_s = (ends - (now if now.tzinfo else now.replace(tzinfo=dt.UTC))).total_seconds()
    if life_s <= LEAST_S:
        raise FetchError("status", f"no token for {what}: the one that came ends in {life_s:.0f} s")
    return token.lstrip("?"), life_s


def missing(href: str) -> str | None:
    """What the environment lacks for a file to be let in to, with the cure; None where it lacks nothing that is known.

    Raises:
      FetchError: as `plain_url`, or credentials that make no sense.
    """
    return sigv4.missing() if str(hosts.place_of(plain_url(href))) in sigv4.places() else None


class Signer:
    """Signs URLs by the host they go to: a SAS token for Planetary Computer, a bearer token for OPERA, a signature of
    each request for the Copernicus Data Space, else nothing."""

    def __init__(
        self,
        tokens: Tokens,
        azure: tuple[str, ...] = hosts.PLANETARY_COMPUTER,
        earthdata: tuple[str, ...] = hosts.OPERA,
        clock: sigv4.Clock | None = None,
    ) -> None:
        """azure, earthdata: hosts whose files need such a credential, as `Place` writes them: without a port over
        https alone. clock: of signatures."""
        self._tokens, self._azure, self._earthdata = tokens, azure, earthdata
        self._clock = clock or sigv4.Clock()

    def __repr__(self) -> str:
        return "Signer()"

    def __reduce__(self) -> NoReturn:
        raise TypeError("credentials stay in their process")

    def sign(self, url: str, refused: Signed | None = None) -> Signed:
        """What to ask for a URL without a credential of ours; got anew where `refused` was turned down.

        Raises:
          FetchError: no token can be had; a bearer token that is none.
        """
        place = str(hosts.place_of(url))
        if place in self._azure:
            parts = urllib.parse.urlsplit(url)
            if "sig" in urllib.parse.parse_qs(parts.query):
                return Signed(url, secret=True)  # somebody signed it; ours on top would be refused
            account, container = place.partition(".")[0], parts.path.lstrip("/").partition("/")[0]
            if not _NAMED.fullmatch(container):
                raise FetchError("refused", f"{hosts.shown(url)} names no container")
            old = _query_after(refused.url, parts.query) if refused is not None else None
            token = self._tokens.get(account, container, old)
            query = f"{parts.query}&{token}" if parts.query else token
            return Signed(parts._replace(query=query, fragment="").geturl(), secret=True)
        if place in self._earthdata and (token := os.environ.get(EARTHDATA_VARIABLE, "").strip()):
            if not _BEARER.fullmatch(token):
                raise FetchError("refused", f"{EARTHDATA_VARIABLE} holds no bearer token")
            return Signed(url, {"Authorization": f"Bearer {token}"}, secret=True)
        if place in sigv4.places():
            if "X-Amz-Signature" in urllib.parse.parse_qs(urllib.parse.urlsplit(url).query):
                return Signed(url, secret=True)  # somebody signed it
            keys = sigv4.keys()
            if keys is None:
                raise FetchError("refused", sigv4.missing() or "no keys")
            return Signed(url, sigv4.headers(url, keys, self._clock.now()), secret=True)
        return Signed(url)

    def heard(self, url: str, date: str) -> None:
        """What time a server has that turned down a request for `url`: the next one is signed by its clock."""
        if str(hosts.place_of(url)) in sigv4.places():
            self._clock.heard(date)

    def cure(self, url: str) -> str:
        """What a person can do where a host lets nobody in; "" where nothing is known."""
        place = str(hosts.place_of(url))
        if place in self._earthdata:
            missing = not os.environ.get(EARTHDATA_VARIABLE, "").strip()
            return f"; {EARTHDATA_VARIABLE} {'must hold' if missing else 'may have ended: it must hold'} a valid token"
        if place in sigv4.places():
            return f"; the keys in {sigv4.ID_VARIABLE} may have ended, or this machine's clock is wrong"
        return f"; an account's key in {KEY_VARIABLE} may be needed" if place in self._azure else ""


_NAMED = re.compile(r"[a-z0-9$-]{1,63}")  # Azure: names of containers


def _query_after(url: str, own: str) -> str:
    """The part of a signed URL's query that its token added."""
    query = urllib.parse.urlsplit(url).query
    return query.removeprefix(f"{own}&") if own else query


def _word(text: str) -> str:
    """A name out of somebody's href, for a message."""
    return repr(text.rpartition("@")[2][:80])
