"""Wire: one HTTP request and its answer, within a time that no server can stretch."""

import contextlib
import dataclasses
import datetime as dt
import email.utils
import logging
import math
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import urllib3
import urllib3.connection
import urllib3.connectionpool
import urllib3.exceptions

from transforms.fetching import FetchError
from transforms.hosts import Place

DRAIN_BYTES = 16 << 10  # of an error's body: reading it costs less than a new connection
CHUNK_BYTES = 1 << 18

_LOGGERS = ("urllib3.connectionpool", "urllib3.poolmanager", "urllib3.util.retry")


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long one request may take.

    Attributes:
      connect_s: for a connection with its TLS, each address of a host. first_s: until the answer's headers are there.
      stall_s: without a single byte. window_s, least_bytes_s: each such time must bring so many bytes a second.
      whole_s: from the start to the last byte.
    """

    connect_s: float = 10.0
    first_s: float = 30.0
    stall_s: float = 20.0
    window_s: float = 10.0
    least_bytes_s: float = 8192.0
    whole_s: float = 120.0


class Fault(Exception):
    """A request without the answer that was wanted.

    kind: as in FetchError. reason: without host, path and query. status: of HTTP, where there was one. headers: too.
    final: another try would bring nothing else. met: whether there was a connection at all.
    """

    met = True

    def __init__(
        self,
        kind: str,
        reason: str,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        final: bool = False,
    ) -> None:
        super().__init__(reason)
        self.kind, self.reason, self.status, self.final = kind, reason, status, final
        self.headers: Mapping[str, str] = headers if headers is not None else {}


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came: status, headers (names in any case), body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


# Says how many bytes of body an answer must have, and whether exactly (else: at most); raises Fault where it is not the
# answer that was wanted.
Expect = Callable[[int, Mapping[str, str]], tuple[int, bool]]
CheckAddress = Callable[[Place, str], None]


class _Guard:
    """One request's time. The watch ends its connection when it is over, whatever the thread is waiting in."""

    def __init__(self, place: Place, check: CheckAddress, patience: Patience, whole_s: float) -> None:
        self.place, self.check, self.connect_s = place, check, patience.connect_s
        now = time.monotonic()
        self.end = now + whole_s
        self.deadline = min(self.end, now + patience.first_s)
        self.over = self.met = False
        self._killer: socket.socket | None = None
        self._lock = threading.Lock()

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def attach(self, killer: socket.socket) -> None:
        with self._lock:
            self._killer, self.met = killer, True
            if self.over:
                _shut(killer)

    def stop(self) -> None:
        with self._lock:
            self.over = True
            if self._killer is not None:
                _shut(self._killer)

    def release(self) -> None:
        with self._lock:
            self._killer = None


class _Watch:
    """The thread that ends connections whose time is over; started with the first request."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._live: set[_Guard] = set()
        self._wakes_at = -math.inf
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def over(self, guard: _Guard) -> Iterator[None]:
        with self._changed:
            self._live.add(guard)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="fetch-watch", daemon=True)
                self._thread.start()
            elif guard.deadline < self._wakes_at:
                self._changed.notify()
        _here.guard = guard
        try:
            yield
        finally:
            _here.guard = None
            guard.release()
            with self._changed:
                self._live.discard(guard)

    def _run(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                late = [g for g in self._live if g.deadline <= now]
                self._live.difference_update(late)
                if not late:
                    self._wakes_at = min((g.deadline for g in self._live), default=math.inf)
                    self._changed.wait(None if self._wakes_at == math.inf else self._wakes_at - now)
            for guard in late:
                guard.stop()


_here = threading.local()  # .guard: of the request that this thread is making


class _Guarded(urllib3.connection.HTTPConnection):
    """A connection to an address that was looked at first, which the watch can end."""

    _killer: socket.socket | None = None

    def _new_conn(self) -> socket.socket:
        guard: _Guard = _here.guard
        place = guard.place
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
        for *_, address in found:
            guard.check(place, str(address[0]))
        error: OSError = OSError("the name has no address")
        for family, kind, protocol, _, address in found:
            left = min(guard.connect_s, guard.left())
            if left <= 0:
                raise TimeoutError("no connection in time")
            sock = socket.socket(family, kind, protocol)
            try:
                for option in self.socket_options or ():
                    sock.setsockopt(*option)
                sock.settimeout(left)
                sock.connect(address)
            except OSError as e:
                sock.close()
                error = e
                continue
            self._forget()
            self._killer = sock.dup()  # ends the connection under TLS and buffers, which are not for two threads
            guard.attach(self._killer)
            return sock
        raise error

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self._killer is not None:  # a connection that was kept
            _here.guard.attach(self._killer)
        super().request(*args, **kwargs)

    def close(self) -> None:
        super().close()
        self._forget()

    def _forget(self) -> None:
        killer, self._killer = self._killer, None
        if killer is not None:
            guard: _Guard | None = getattr(_here, "guard", None)
            if guard is not None:
                guard.release()  # not while the watch shuts it: its number may be another socket's by then
            killer.close()


class _GuardedTLS(_Guarded, urllib3.connection.HTTPSConnection):
    pass


class _Pool(urllib3.connectionpool.HTTPConnectionPool):
    ConnectionCls = _Guarded


class _PoolTLS(urllib3.connectionpool.HTTPSConnectionPool):
    ConnectionCls = _GuardedTLS


class Wire:
    """Connections of this process, kept between requests; safe from many threads."""

    def __init__(self, kept: int, patience: Patience = Patience()) -> None:
        """kept: connections that stay open for each host."""
        self.patience = patience
        self._pools = urllib3.PoolManager(num_pools=32, maxsize=kept, retries=False)
        self._pools.pool_classes_by_scheme = {"http": _Pool, "https": _PoolTLS}
        self._watch = _Watch()
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            if _without_queries not in logger.filters:
                logger.addFilter(_without_queries)

    def get(
        self,
        place: Place,
        target: str,
        headers: Mapping[str, str],
        check: CheckAddress,
        expect: Expect,
        whole_s: float | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """One GET, or a POST of `body`; redirects are answers like others.

        Args:
          target: path and query.
          headers: with "Accept-Encoding" where an encoded body may come; it is given as it came.
          check: looks at each address of the host before a connection is made; raises FetchError.
          whole_s: less time than its patience.

        Raises:
          Fault: no answer, none in time, or not the one that was expected.
          FetchError: as `check`.
        """
        guard = _Guard(place, check, self.patience, min(self.patience.whole_s, whole_s or math.inf))
        host = f"[{place.host}]" if ":" in place.host else place.host
        pool = self._pools.connection_from_host(host, place.port, place.scheme)
        timeout = urllib3.Timeout(connect=self.patience.connect_s, read=self.patience.stall_s)
        response: urllib3.BaseHTTPResponse | None = None
        with self._watch.over(guard):
            try:
                response = pool.urlopen(
                    "GET" if body is None else "POST",
                    target,
                    body=body,
                    headers={"Accept-Encoding": "identity", **headers},
                    retries=False,
                    redirect=False,
                    timeout=timeout,
                    preload_content=False,
                    decode_content=False,
                )
                guard.deadline = guard.end
                said = response.headers
                try:
                    length, exact = expect(response.status, said)
                except Fault:
                    _drain(response)
                    raise
                return Answer(response.status, said, self._body(response, length, exact))
            except Exception as e:
                if guard.over:  # whatever came of it: a head that was cut short parses as a shorter head
                    fault: Exception = Fault("timeout", "the answer took too long")
                else:
                    fault = e if isinstance(e, (Fault, FetchError)) else _fault(e, guard.met)
                if isinstance(fault, Fault):
                    fault.met = guard.met
                raise fault from None
            finally:
                if response is not None and not _is_done(response):
                    response.close()

    def _body(self, response: urllib3.BaseHTTPResponse, length: int, exact: bool) -> bytes:
        """The body, and not a byte more; slower than the patience allows is a fault."""
        chunks, got = [], 0
        since, then = time.monotonic(), 0
        while got <= length:
            chunk = response.read1(min(CHUNK_BYTES, length - got + 1), decode_content=False)
            if not chunk:
                break
            chunks.append(chunk)
            got += len(chunk)
            now = time.monotonic()
            if now - since >= self.patience.window_s:
                if got - then < self.patience.least_bytes_s * (now - since) and got < length:
                    raise Fault("timeout", f"{got - then:,} bytes in {now - since:.3g} s are too few to go on")
                since, then = now, got
        if got > length:
            raise Fault("short", f"more than {length:,} bytes came")
        if exact and got < length:
            raise Fault("short", f"{got:,} of {length:,} bytes came")
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def target_of(url: str) -> str:
    """Path and query of a URL."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"


def retry_after(said: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, None where it does not say; a date counts from the server's own clock."""
    text = said.get("Retry-After", "").strip()
    if re.fullmatch("[0-9]{1,9}", text):
        return float(text)
    try:
        return max(0.0, (_moment(text) - server_time(said)).total_seconds())
    except (ValueError, TypeError):
        return None


def server_time(said: Mapping[str, str]) -> dt.datetime:
    """When an answer was given by the server's own clock, by ours where it does not tell."""
    try:
        return _moment(said["Date"])
    except (KeyError, ValueError, TypeError):
        return dt.datetime.now(dt.UTC)


def _moment(text: str) -> dt.datetime:
    found = email.utils.parsedate_to_datetime(text)
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)


def _is_done(response: urllib3.BaseHTTPResponse) -> bool:
    """Whether all was read, so that the connection is in the pool again."""
    return bool(response.connection is None)


def _drain(response: urllib3.BaseHTTPResponse) -> None:
    """Reads a short error's body, so that the connection can serve the next try."""
    length = response.headers.get("Content-Length", "")
    if re.fullmatch("[0-9]{1,9}", length) and int(length) <= DRAIN_BYTES:
        with contextlib.suppress(Exception):  # closed by the caller, then
            while response.read1(CHUNK_BYTES, decode_content=False):
                pass


def _fault(error: Exception, met: bool) -> Fault:
    """What urllib3, ssl or a socket raised, in the words of FetchError: their own hold URLs."""
    causes = [error, error.__cause__, error.__context__, *error.args]
    if any(isinstance(e, ssl.SSLCertVerificationError) for e in causes):
        return Fault("refused", "its certificate is not valid for that host", final=True)
    timeouts = (urllib3.exceptions.TimeoutError, TimeoutError)
    if any(isinstance(e, timeouts) for e in causes):
        return Fault("timeout", "no byte came in time")
    if any(isinstance(e, socket.gaierror) for e in causes):
        return Fault("reset", "the host's name is not known")
    if any(isinstance(e, urllib3.exceptions.IncompleteRead) for e in causes):
        return Fault("short", "the answer ended early")
    if isinstance(error, (urllib3.exceptions.HTTPError, OSError)):
        return Fault("reset", "the connection broke" if met else "no connection could be made")
    return Fault("reset", f"the answer was not HTTP ({type(error).__name__})")


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is closed already
        sock.shutdown(socket.SHUT_RDWR)


def _without_queries(record: logging.LogRecord) -> bool:
    """Takes queries out of urllib3's debug lines: they are signatures."""
    if isinstance(record.args, tuple):
        record.args = tuple(a.partition("?")[0] if isinstance(a, str) else a for a in record.args)
    return True
