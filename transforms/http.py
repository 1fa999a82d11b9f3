"""HTTP: ranges of remote files, whole and of one version, from servers that fail, stall and lie."""

import dataclasses
import os
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping

from model.errors import BadInput
from transforms import hosts, signing, throttle
from transforms.catalogs.hrefs import unsigned
from transforms.fetching import Fetch, FetchError, Piece, Version
from transforms.forwards import Forwards, life_s
from transforms.hosts import Hosts, Place
from transforms.signing import Signed, Signer, Tokens
from transforms.throttle import COUNTERS, Counters, Quarantine, Throttle
from transforms.wire import Answer, Fault, Patience, Wire, retry_after, target_of

WORKERS_VARIABLE = "TESSERA_WORKERS"  # how many processes read at once in the whole run; 1 where it is not set

DENIED = frozenset((401, 403))  # a credential that has ended, as a rule
BUSY = frozenset((429, 503))  # RFC 6585, RFC 9110; S3's SlowDown and Azure's ServerBusy are 503
PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))  # what another try may cure; other 4xx will not change
MOVED = frozenset((301, 302, 303, 307, 308))
GONE = frozenset((404, 410))
HOPS = 5  # OPERA's files are two away
LOGIN = "urs.earthdata.nasa.gov"  # being sent there means: without a valid token

_CHANGED = "the file is not the one that it was a moment ago: another"
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_TOTAL = re.compile(r"bytes \*/([0-9]{1,18})")
_PAGES = re.compile(r"(text/html|text/xml|application/xml|application/xhtml\+xml|application/json)\b")


@dataclasses.dataclass(frozen=True)
class Retries:
    """How often and how long a range is tried for.

    Attributes:
      tries: with the first one. bad_tries: that brought something else than the file: that heals less often.
      total_s: for all tries and the waits between them; turns at a host are waited for besides.
      first_s, longest_s: a wait is by chance between 0 and first_s x 2^n, at most longest_s ("full jitter").
      obeyed_s: longest Retry-After that is obeyed.
      gone_s, failed_s: how long a file is not asked for again that is not there or no file, or that failed otherwise.
    """

    tries: int = 8
    bad_tries: int = 4
    total_s: float = 300.0
    first_s: float = 0.5
    longest_s: float = 30.0
    obeyed_s: float = 60.0
    gone_s: float = 300.0
    failed_s: float = 60.0


class Fetcher:
    """Fetches ranges; one object serves all threads of a process. See `fetching.Fetch`."""

    def __init__(
        self,
        retries: Retries = Retries(),
        patience: Patience | None = None,
        turns: Throttle | None = None,
        signer: Signer | None = None,
        allowed: Callable[[], Hosts] = hosts.current,
        counters: Counters = COUNTERS,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[float, float], float] = random.uniform,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """allowed: the allow-list at this moment. sleep, chance, clock: of waits and memory, not of sockets."""
        self.retries, self.counters = retries, counters
        self.turns = turns or Throttle(counters=counters)
        self.quarantine = Quarantine(clock)
        self._wire = Wire(self.turns.most, patience or Patience())
        self._signer = signer or Signer(Tokens(self.ask))
        self._forwards = Forwards(clock)
        self._allowed, self._sleep, self._chance = allowed, sleep, chance

    def __repr__(self) -> str:
        return "Fetcher()"

    def __call__(self, url: str, start: int, stop: int, version: Version | None) -> Piece:
        """As `fetching.Fetch`.

        Raises:
          FetchError: kind "refused": the URL may not be fetched; "changed": another version; "status": what HTTP said
            (200 and 206 where a page came in place of the file); "short", "reset", "timeout": as the words say. Of
            files in quarantine, the error that brought them there.
          ValueError: an empty or negative range.
        """
        if not 0 <= start < stop:
            raise ValueError(f"bytes {start} to {stop}: that is no range")
        plain = signing.plain_url(url)
        place = self._allowed().check(plain)
        name = unsigned(plain)
        if known := self.quarantine.find(name):
            self.counters.add("quarantined")
            raise FetchError(known.kind, f"{known.reason}; not asked again for a while", known.status)

        began = time.monotonic()
        try:
            return self._range(plain, place, start, stop, version)
        except FetchError as e:
            self.counters.add(f"failures_{e.kind}")
            self._forwards.drop(plain)
            if e.kind not in ("changed", "refused") and e.status != 416:  # 416 is about the range, not the file
                lasting = e.status in GONE or e.status in (200, 206)
                for_s = self.retries.gone_s if lasting else self.retries.failed_s
                self.quarantine.put(name, e.kind, e.reason, e.status, for_s)
            raise
        finally:
            self.counters.add("fetch_s", time.monotonic() - began)

    def ask(self, url: str, headers: Mapping[str, str]) -> tuple[bytes, str]:
        """A small document from a server that the program itself is told to ask; as `signing.Ask`. No redirects."""
        allowed = dataclasses.replace(self._allowed(), providers=(hosts.place_of(url).host,))
        place = allowed.check(url)

        def expect(status: int, _said: Mapping[str, str]) -> tuple[int, bool]:
            if status != 200:
                raise Fault("status", f"HTTP {status}", status, _said, final=status not in PASSING)
            return signing.TOKEN_BYTES, False

        def once(spell: _Spell) -> Answer:
            return self._get(place, target_of(url), headers, allowed, expect, spell)

        answer = self._tried(hosts.shown(url), place, once)
        self.counters.add("tokens")
        return answer.body, answer.headers.get("Date", "")

    def _range(self, plain: str, place: Place, start: int, stop: int, version: Version | None) -> Piece:
        allowed = self._allowed()
        refused: tuple[str, Signed] | None = None  # what was turned down last, and for which URL
        denied = False

        def expect(status: int, said: Mapping[str, str]) -> tuple[int, bool]:
            return wanted(status, said, start, stop, version)[0], True

        def followed(spell: _Spell, kept: str | None) -> Answer:
            """One request, and those that it is forwarded to. Rights are those of each host, never carried along."""
            nonlocal refused
            url, here = (plain, place) if kept is None else (kept, allowed.check_forward(place, kept))
            lives: list[float] = []
            for _ in range(HOPS + 1):
                signed = self._signer.sign(url, refused[1] if refused and refused[0] == url else None)
                sent = {"Range": f"bytes={start}-{stop - 1}", **signed.headers}
                try:
                    answer = self._get(here, target_of(signed.url), sent, allowed, expect, spell)
                    if _is_page(answer.body, start):
                        raise Fault("status", f"HTTP {answer.status} with HTML or XML", answer.status)
                    if url not in (plain, kept):
                        self._forwards.keep(plain, url, min(lives, default=None))
                    return answer
                except Fault as fault:
                    if fault.status in DENIED:
                        refused = url, signed
                        self._signer.heard(url, fault.headers.get("Date", ""))  # a wrong clock is a wrong signature
                    if fault.kind != "moved":
                        raise
                    url = urllib.parse.urljoin(url, fault.headers.get("Location", ""))
                    if hosts.place_of(url).host == LOGIN:
                        raise Fault("status", "HTTP 401 (sent to log in)", 401, final=True) from None
                    here = allowed.check_forward(place, url)
                    if (said_s := life_s(url, fault.headers)) is not None:
                        lives.append(said_s)
            raise Fault("status", f"forwarded more than {HOPS} times", final=True)

        def once(spell: _Spell) -> Answer:
            nonlocal denied
            kept = self._forwards.find(plain)
            try:
                return followed(spell, kept)
            except Fault as fault:
                if kept is not None and fault.status not in BUSY:
                    self._forwards.drop(plain, kept)  # whatever is wrong with it: the file's own host knows better
                over = kept is not None and fault.final  # S3 says 400 where the signer's own session has ended
                if fault.status not in DENIED and not over:
                    raise
                if not denied:
                    denied = True
                    self.counters.add("retries_denied")
                    return once(spell)  # at once, signed anew
                reason = f"{fault.reason}{self._signer.cure(plain) if fault.status in DENIED else ''}"
                raise Fault(fault.kind, reason, fault.status, final=True) from None

        answer = self._tried(hosts.shown(plain), place, once)
        self.counters.add("bytes", len(answer.body))
        found = wanted(answer.status, answer.headers, start, stop, version)[1]
        if version is not None and found != version:  # not before the body is whole: a head that was cut lies too
            raise FetchError("changed", f"{hosts.shown(plain)}: {_CHANGED} size, ETag or date", answer.status)
        return Piece(answer.body, found)

    def _tried(self, what: str, place: Place, once: "Callable[[_Spell], Answer]") -> Answer:
        """Tries until an answer comes, patience ends, or another try would bring nothing else.

        Raises:
          FetchError: what the last try came to.
        """
        spell = _Spell(self.retries.total_s)
        bad = 0
        for n in range(1, self.retries.tries + 1):
            try:
                return once(spell)
            except Fault as e:
                fault = e
            bad += fault.kind == "status" and fault.status in (200, 206)
            wait_s = self._chance(0, min(self.retries.longest_s, self.retries.first_s * 2.0 ** (n - 1)))
            asked_s = min(retry_after(fault.headers) or 0.0, self.retries.obeyed_s)
            if (
                fault.final
                or n == self.retries.tries
                or bad >= self.retries.bad_tries
                or spell.left() <= wait_s + asked_s
            ):
                break
            self.counters.add(f"retries_{fault.status if fault.kind == 'status' else fault.kind}")
            if fault.status in BUSY:
                spell.spend(asked_s)  # all of this process wait for it, at the next turn
            else:
                wait_s += asked_s
            spell.spend(wait_s)
            self.counters.add("retry_s", wait_s)
            self._sleep(wait_s)
        tried = f" ({n} tries in {spell.spent_s:.0f} s)" if n > 1 else ""
        raise FetchError(fault.kind, f"{what}: {fault.reason}{tried}", fault.status) from None

    def _get(
        self,
        place: Place,
        target: str,
        headers: Mapping[str, str],
        allowed: Hosts,
        expect: Callable[[int, Mapping[str, str]], tuple[int, bool]],
        spell: "_Spell",
    ) -> Answer:
        """One request at its turn, whose outcome the host's gate is told."""
        with self.turns.turn(str(place)) as turn:
            self.counters.add("requests")
            began = time.monotonic()
            try:
                answer = self._wire.get(place, target, headers, allowed.check_address, expect, max(spell.left(), 1e-3))
            except Fault as fault:
                if fault.status in BUSY:
                    turn.said_busy(min(retry_after(fault.headers) or 0.0, self.retries.obeyed_s))
                elif fault.kind == "timeout":
                    turn.said_busy()
                else:
                    turn.said_no()
                raise
            except BaseException:
                turn.said_no()
                raise
            finally:
                spell.spend(time.monotonic() - began)
            turn.brought(len(answer.body), time.monotonic() - began)
            return answer


@dataclasses.dataclass
class _Spell:
    """The time for all tries of one range: of requests and waits, not of turns that others have."""

    total_s: float
    spent_s: float = 0.0

    def left(self) -> float:
        return self.total_s - self.spent_s

    def spend(self, seconds: float) -> None:
        self.spent_s += seconds


def wanted(status: int, said: Mapping[str, str], start: int, stop: int, version: Version | None) -> tuple[int, Version]:
    """Whether an answer's head is that of bytes [start, stop) of the file: their number, and the file's version.

    A range that passes the file's end is cut there. A 200 is taken only where the whole file is that range.

    Raises:
      Fault: it is not, of kind "moved" where the request is forwarded.
      FetchError: of kind "changed": the file ends before `start` now; `version` is only looked at for that.
    """
    if status not in (200, 206):
        raise _not_it(status, said, version)
    kind = _PAGES.match(said.get("Content-Type", "").strip().lower())
    if kind:
        raise Fault("status", f"HTTP {status} with {kind[1]} in place of the file", status)
    if said.get("Content-Encoding", "identity").strip().lower() not in ("identity", ""):
        raise Fault("status", f"HTTP {status} with a Content-Encoding that nobody asked for", status)
    length = said.get("Content-Length", "").strip()
    if status == 206:
        match = _RANGE.fullmatch(said.get("Content-Range", "").strip())
        if match is None:
            raise Fault("short", "HTTP 206 without a Content-Range that says which bytes came")
        first, last, total = (int(v) for v in match.groups())
    else:
        if not re.fullmatch("[0-9]{1,18}", length) or not int(length):
            raise Fault("status", "HTTP 200 with nothing, or without its length", status)
        first, last, total = 0, int(length) - 1, int(length)
        if start or stop < total:
            raise Fault("status", f"HTTP 200 with {total:,} bytes where a part of the file was asked for", status)
    found = Version(total, said.get("ETag") or said.get("Last-Modified") or "")
    if (first, last) != (start, min(stop, total) - 1) or last < first:
        raise Fault("short", f"bytes {first} to {last} of {total} came for bytes {start} to {stop - 1}")
    if length and length != str(last - first + 1):
        raise Fault("short", f"{length} bytes were announced for bytes {first} to {last}")
    return last - first + 1, found


def _is_page(body: bytes, start: int) -> bool:
    """Whether text came with an image's headers. No image begins with "<"; by chance, no range with a page's words."""
    text = body[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return text.startswith(b"<" if start == 0 else (b"<?xml", b"<!doctype", b"<html", b"<error>"))


def _not_it(status: int, said: Mapping[str, str], version: Version | None) -> Exception:
    """What a status other than 200 and 206 comes to."""
    if status in MOVED and said.get("Location"):
        return Fault("moved", "forwarded", status, said)
    if status == 416 and version is not None:
        match = _TOTAL.fullmatch(said.get("Content-Range", "").strip())
        if match and int(match[1]) != version.total_bytes:
            return FetchError("changed", f"{_CHANGED} size", status)
    final = 400 <= status < 500 and status not in PASSING | DENIED
    return Fault("status", f"HTTP {status}", status, said, final)


_lock = threading.Lock()
_default: Fetcher | None = None


def default_fetch() -> Fetch:
    """The process's fetcher, made when it is first asked for; all threads share its connections, tokens and turns.

    Raises:
      BadInput: what the environment says of workers or hosts makes no sense.
    """
    return _fetcher()


def set_workers(workers: int) -> None:
    """States how many processes read at once in the whole run: each gets its share of what a host is asked.

    Raises:
      ValueError: fewer than one.
    """
    _fetcher().turns.keep_to(throttle.share(workers), workers)


def refusal(href: str) -> str | None:
    """Why an href would not be fetched, None where it would: for a look at all hosts of an inventory before work.

    Raises:
      BadInput: as `hosts.current`.
    """
    try:
        hosts.current().check(signing.plain_url(href))
    except FetchError as e:
        return e.reason
    return None


def _fetcher() -> Fetcher:
    global _default
    with _lock:
        if _default is None:
            said = os.environ.get(WORKERS_VARIABLE, "1")
            if not re.fullmatch(r"[1-9]\d{0,6}", said):
                raise BadInput(f"{WORKERS_VARIABLE}={said!r}: the number of worker processes was expected, 1 or more")
            hosts.current()
            _default = Fetcher(turns=Throttle(throttle.share(int(said)), workers=int(said)))
        return _default


def _forked() -> None:
    """A forked process has no watch, and shares sockets with its parent: it makes a fetcher of its own."""
    global _lock, _default
    _lock, _default = threading.Lock(), None
    COUNTERS.clear()


os.register_at_fork(after_in_child=_forked)
