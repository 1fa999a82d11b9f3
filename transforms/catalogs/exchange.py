"""Exchanges: one JSON request to a catalogue's server, tried again with patience, few at once in the whole process."""

import dataclasses
import datetime as dt
import email.utils
import http.client
import json
import random
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

import requests
import urllib3.exceptions

SEARCHES = 4  # at once in this process: Planetary Computer asks for few, and bans who asks too much (its issue 427)
SLOTS = threading.BoundedSemaphore(SEARCHES)  # whoever asks a catalogue's server holds one, whatever the catalogue
CONNECT_S = 10.0
ANSWER_BYTES = 64 << 20  # ten times what Earth Search can answer; more is no page of items
_CHUNK_BYTES = 1 << 16
# 413 and 5xx may be a matter of size: API gateways say 500, 502 or 503 where a function's answer is over their 6 MB
# or not ready in 30 s (stac-server#226, earth-search#17), Planetary Computer 504 (its issue 240).
HEAVY = frozenset((408, 413, 500, 502, 503, 504))
BUSY = 429


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long a server is waited for.

    Attributes:
      tries: of one request, the first one too. size_tries: of one that a smaller one can replace.
      first_s, longest_s: waits between tries, doubled from the first to the longest, half of each by chance.
      obeyed_s: longest Retry-After that is waited for; a server that wants more is given up.
      answer_s: for one answer, from first to last byte.
    """

    tries: int = 10
    size_tries: int = 2
    first_s: float = 0.5
    longest_s: float = 30.0
    obeyed_s: float = 600.0
    answer_s: float = 60.0

    def wait_s(self, tried: int, asked_s: float | None) -> float:
        """Seconds to wait after `tried` tries; what the server asked for is kept, and spread a little upwards."""
        step = min(self.first_s * 2.0 ** (tried - 1), self.longest_s)
        if asked_s is not None:
            return asked_s + random.uniform(0, step)  # by chance, to keep threads apart
        return random.uniform(step / 2, step)


class NoAnswer(Exception):
    """A request without a usable answer after all tries; the text says what came, without any URL.

    Attributes:
      status: HTTP, or None. tries: how many there were. heavy: a smaller request may get one.
    """

    def __init__(self, said: str, status: int | None, tries: int, heavy: bool) -> None:
        super().__init__(said)
        self.status, self.tries, self.heavy = status, tries, heavy


class Stopped(Exception):
    """The search is being given up; nobody waits for the answer any more."""


@dataclasses.dataclass
class Counts:
    """What a server was asked: requests sent, those that were sent again, and the seconds waited in between."""

    requests: int = 0
    again: int = 0
    waited_s: float = 0.0


class Server:
    """One catalogue's server, asked from any thread.

    Attributes:
      counts: what it was asked until now.
    """

    def __init__(self, patience: Patience) -> None:
        self.patience, self.counts = patience, Counts()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._not_before = 0.0  # monotonic; a server that asks for a pause asks all threads
        self._local = threading.local()

    def stop(self) -> None:
        """Lets every waiting thread end with Stopped; requests that are under way end by themselves."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def ask(
        self,
        url: str,
        body: Mapping[str, Any] | None = None,
        check: Callable[[Any], str | None] = lambda _record: None,
        tries: int | None = None,
    ) -> Any:
        """The JSON that a GET, or a POST of `body`, is answered with.

        Args:
          check: says what is wrong with a record that was parsed, None for a good one.
          tries: in place of the patience's own, for what may be a matter of size; a pause that the server asks for
            (429, or 503 with Retry-After) does not use them up.

        Raises:
          NoAnswer: no usable answer. Stopped: `stop` was called.
        """
        heavy_tries = tries or self.patience.tries
        failed = busy = 0
        while True:
            status: int | None = None
            asked_s: float | None = None
            try:
                status, headers, data = self._once(url, body)
                said, heavy, record = _judged(status, headers, data, check)
                if not said:
                    return record
                if not heavy and status != BUSY:
                    raise NoAnswer(said, status, failed + busy + 1, False)
                asked_s = _retry_after(headers)
            except _Broken as e:
                said, heavy = str(e), e.heavy
            busy_now = status == BUSY or asked_s is not None
            failed, busy = (failed, busy + 1) if busy_now else (failed + 1, busy)
            tried = failed + busy
            over_long = asked_s is not None and asked_s > self.patience.obeyed_s
            if over_long:
                said += f" and the wish to wait {asked_s:.0f} s"
            if over_long or failed >= heavy_tries or busy >= self.patience.tries:
                raise NoAnswer(said, status, tried, heavy and not over_long)
            self._pause(self.patience.wait_s(tried, asked_s), everybody=asked_s is not None)

    def _pause(self, wait_s: float, everybody: bool) -> None:
        with self._lock:
            self.counts.again += 1
            self.counts.waited_s += wait_s
            if everybody:
                self._not_before = max(self._not_before, time.monotonic() + wait_s)
        if self._stop.wait(wait_s):
            raise Stopped

    def _once(self, url: str, body: Mapping[str, Any] | None) -> tuple[int, Mapping[str, str], bytes]:
        while (left_s := self._not_before - time.monotonic()) > 0:
            if self._stop.wait(left_s):
                raise Stopped
        with SLOTS:
            if self._stop.is_set():
                raise Stopped
            with self._lock:
                self.counts.requests += 1
            try:
                return self._exchanged(url, body)
            except requests.exceptions.ConnectionError as e:
                # A connection that was made and lost may be a matter of size; one that was never made is not.
                unmade = isinstance(e, requests.exceptions.ConnectTimeout) or "NewConnectionError" in repr(e)
                raise _Broken("no answer", not unmade) from None
            except (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError):
                raise _Broken("no whole answer", True) from None

    def _exchanged(self, url: str, body: Mapping[str, Any] | None) -> tuple[int, Mapping[str, str], bytes]:
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()  # is not meant for several threads
        session: requests.Session = self._local.session
        ends = time.monotonic() + self.patience.answer_s
        # Redirections are not followed: a POST would come back as a GET, which is another search.
        answer = session.request(
            "GET" if body is None else "POST",
            url,
            json=body,
            timeout=(min(CONNECT_S, self.patience.answer_s), self.patience.answer_s),
            allow_redirects=False,
            stream=True,
        )
        with answer:
            chunks, size = [], 0
            # Piece by piece, so that neither a slow drip nor an endless answer holds a slot for ever.
            while chunk := answer.raw.read1(_CHUNK_BYTES, decode_content=True):
                chunks.append(chunk)
                size += len(chunk)
                if size > ANSWER_BYTES:
                    raise _Broken(f"an answer of more than {ANSWER_BYTES >> 20} MiB", True)
                if time.monotonic() > ends:
                    raise _Broken(f"no whole answer within {self.patience.answer_s:g} s", True)
            length = answer.headers.get("Content-Length", "")
            if length.isdigit() and answer.raw.tell() != int(length):
                raise _Broken("an answer that ends early", True)
        return answer.status_code, answer.headers, b"".join(chunks)


class _Broken(Exception):
    """An exchange that did not come to an end."""

    def __init__(self, said: str, heavy: bool) -> None:
        super().__init__(said)
        self.heavy = heavy


def _judged(
    status: int, headers: Mapping[str, str], data: bytes, check: Callable[[Any], str | None]
) -> tuple[str, bool, Any]:
    """(what is wrong, "" for nothing; whether a smaller request may be better; the record)."""
    if 300 <= status < 400:
        host = urllib.parse.urlsplit(headers.get("Location") or "").hostname
        return f"HTTP status {status}, which leads to {host or 'another address'}", False, None
    if status != 200:
        return f"HTTP status {status}", status in HEAVY, None
    try:
        record = json.loads(data)
    except ValueError:
        kind = headers.get("Content-Type", "").partition(";")[0]
        return f"an answer that is not JSON ({kind or 'of no type'}, {len(data)} bytes)", True, None
    wrong = check(record)
    return wrong or "", True, record


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from a number or a date (RFC 9110, 10.2.3); None where the header says neither."""
    said = (headers.get("Retry-After") or "").strip()
    if said.isdigit():
        return float(said)
    try:
        when = email.utils.parsedate_to_datetime(said)
    except (TypeError, ValueError):
        return None
    when = when if when.tzinfo else when.replace(tzinfo=dt.UTC)
    return max(0.0, (when - dt.datetime.now(dt.UTC)).total_seconds())
