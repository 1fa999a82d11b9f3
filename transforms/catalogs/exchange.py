"""Exchanges: one JSON request to a catalogue's server, tried again with patience, few at once in the whole process."""

import dataclasses
import json
import random
import re
import string
import threading
import time
import urllib.parse
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from model.errors import BadInput
from transforms import wire
from transforms.fetching import FetchError
from transforms.hosts import Hosts, place_of, shown
from transforms.wire import Fault, Wire, retry_after, target_of

SEARCHES = 4  # at once in this process: Planetary Computer asks for few, and bans who asks too much (its issue 427)
SLOTS = threading.BoundedSemaphore(SEARCHES)  # whoever asks a catalogue's server holds one, whatever the catalogue
CONNECT_S = 10.0
ANSWER_BYTES = 64 << 20  # ten times what Earth Search can answer; more is no page of items
# 413 and 5xx may be a matter of size: API gateways say 500, 502 or 503 where a function's answer is over their 6 MB
# or not ready in 30 s (stac-server#226, earth-search#17), Planetary Computer 504 (its issue 240).
HEAVY = frozenset((408, 413, 500, 502, 503, 504))
BUSY = 429

Body = Mapping[str, Any] | None  # of a POST; None for a GET
Check = Callable[[Any], str | None]  # what is wrong with a record, None for a good one


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

    def refusal(self, catalogue: str, where: str = "") -> BadInput:
        """The end of a build, in words: which catalogue, what was asked, the cure."""
        tries = f" after {self.tries} tries" if self.tries > 1 else ""
        wrong = self.status is not None and 300 <= self.status < 500 and self.tries == 1
        unmet = self.status is None and not self.heavy
        cure = "check the URL" if wrong else "check the network and the URL" if unmet else "try again later"
        return BadInput(f"catalogue {catalogue}: {self}{tries}{where}; {cure}")


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
        whole_s = patience.answer_s
        self._wire = Wire(SEARCHES, wire.Patience(min(CONNECT_S, whole_s), whole_s, whole_s, whole_s, whole_s=whole_s))

    def stop(self) -> None:
        """Lets every waiting thread end with Stopped; requests that are under way end by themselves."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def ask(self, url: str, body: Body = None, check: Check = lambda _: None, tries: int | None = None) -> Any:
        """The JSON that a GET, or a POST of `body`, is answered with; as `exchange`."""
        return self.exchange(url, body, check, tries)[0]

    def exchange(
        self,
        url: str,
        body: Body = None,
        check: Check = lambda _: None,
        tries: int | None = None,
        sent: Mapping[str, str] | None = None,
    ) -> tuple[Any, Mapping[str, str]]:
        """The JSON that a GET, or a POST of `body`, is answered with, and the answer's headers.

        Args:
          check: is given the record that was parsed.
          tries: in place of the patience's own, for what may be a matter of size; a pause that the server asks for
            (429, or 503 with Retry-After) does not use them up.
          sent: further headers.

        Raises:
          NoAnswer: no usable answer. Stopped: `stop` was called.
        """
        heavy_tries = tries or self.patience.tries
        failed = busy = 0
        while True:
            try:
                return self._once(url, body, check, sent or {})
            except _Wrong as e:
                wrong = e
            busy_now = wrong.status == BUSY or wrong.asked_s is not None
            failed, busy = (failed, busy + 1) if busy_now else (failed + 1, busy)
            said, heavy = str(wrong), wrong.heavy
            over_long = wrong.asked_s is not None and wrong.asked_s > self.patience.obeyed_s
            if over_long:
                said += f" and the wish to wait {wrong.asked_s:.0f} s"
            if wrong.final or over_long or failed >= heavy_tries or busy >= self.patience.tries:
                raise NoAnswer(said, wrong.status, failed + busy, heavy and not over_long)
            self._pause(self.patience.wait_s(failed + busy, wrong.asked_s), everybody=wrong.asked_s is not None)

    def _pause(self, wait_s: float, everybody: bool) -> None:
        with self._lock:
            self.counts.again += 1
            self.counts.waited_s += wait_s
            if everybody:
                self._not_before = max(self._not_before, time.monotonic() + wait_s)
        if self._stop.wait(wait_s):
            raise Stopped

    def _once(self, url: str, body: Body, check: Check, sent: Mapping[str, str]) -> tuple[Any, Mapping[str, str]]:
        while (left_s := self._not_before - time.monotonic()) > 0:
            if self._stop.wait(left_s):
                raise Stopped
        url = urllib.parse.quote(url, safe=string.punctuation)  # some servers write spaces into their links
        sent = {"Accept": "*/*", "Accept-Encoding": "gzip", **sent}
        data = None
        if body is not None:
            data, sent = json.dumps(body).encode(), {**sent, "Content-Type": "application/json"}
        with SLOTS:
            if self._stop.is_set():
                raise Stopped
            with self._lock:
                self.counts.requests += 1
            try:
                place = place_of(url)
                # Whoever names a catalogue wants it asked; only a cloud's metadata address is never meant.
                named = Hosts(frozenset({(place.host, place.port)}))
                answer = self._wire.get(place, target_of(url), sent, named.check_address, _expected, body=data)
            except FetchError as e:
                raise _Wrong(e.reason, final=True) from None
            except Fault as e:
                if e.status is not None:
                    raise _refused(e) from None
                # A connection that was made and lost may be a matter of size; one that was never made is not.
                said = f"no {'whole ' if e.met else ''}answer ({e.reason})"
                raise _Wrong(said, heavy=e.met and not e.final, final=e.final) from None
        record = _parsed(answer)
        if (said_no := check(record)) is not None:
            raise _Wrong(said_no, 200, heavy=True)
        return record, answer.headers


class _Wrong(Exception):
    """One try that did not bring what was asked for. heavy: as in NoAnswer. final: another brings nothing else."""

    def __init__(
        self,
        said: str,
        status: int | None = None,
        asked_s: float | None = None,
        heavy: bool = False,
        final: bool = False,
    ) -> None:
        super().__init__(said)
        self.status, self.asked_s, self.heavy, self.final = status, asked_s, heavy, final


def _expected(status: int, said: Mapping[str, str]) -> tuple[int, bool]:
    """How many bytes of body a good answer has; raises Fault for another status."""
    if status != 200:
        raise Fault("status", f"HTTP status {status}", status, said)
    length = said.get("Content-Length", "").strip()
    if re.fullmatch("[0-9]{1,18}", length) and int(length) <= ANSWER_BYTES:
        return int(length), True
    return ANSWER_BYTES, False


def _refused(fault: Fault) -> _Wrong:
    """Redirections are not followed: a POST would come back as a GET, which is another search."""
    status = fault.status or 0
    if 300 <= status < 400:
        host = shown(fault.headers.get("Location") or "").partition("/")[0]
        return _Wrong(f"{fault.reason}, which leads to {host or 'another address'}", status, final=True)
    heavy = status in HEAVY
    return _Wrong(fault.reason, status, retry_after(fault.headers), heavy, final=not heavy and status != BUSY)


def _parsed(answer: wire.Answer) -> Any:
    """The JSON of a whole answer; an error in it is a matter of size, as far as one can know."""
    data, how = answer.body, answer.headers.get("Content-Encoding", "identity").strip().lower()
    if how == "gzip":
        opened = zlib.decompressobj(16 + zlib.MAX_WBITS)
        try:
            data = opened.decompress(data, ANSWER_BYTES)
        except zlib.error:
            raise _Wrong("an answer that cannot be unpacked", 200, heavy=True) from None
        if not opened.eof:
            more = len(data) >= ANSWER_BYTES
            what = f"an answer of more than {ANSWER_BYTES >> 20} MiB" if more else "an answer that ends early"
            raise _Wrong(what, 200, heavy=True)
    try:
        return json.loads(data)
    except ValueError:
        kind = answer.headers.get("Content-Type", "").partition(";")[0]
        said = f"an answer that is not JSON ({kind or 'of no type'}, {len(data)} bytes)"
        raise _Wrong(said, 200, heavy=True) from None
