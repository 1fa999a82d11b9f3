"""Throttle: how many requests a host gets at once from this process, found out as it answers, and what it all took."""

import contextlib
import contextvars
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from transforms import hosts

# Requests in flight at one host from a whole fleet. S3 gives a prefix 5,500 reads a second before it answers 503
# (AWS, "Best practices design patterns"); at 0.1 s a read that is 550 at once.
FLEET_IN_FLIGHT = 512
MOST = 64  # at once from one process: what two dozen cores can decode
FIRST = 8  # to begin with

SIZED_BYTES = 256 << 10  # a smaller answer tells of latency, not of throughput
SLOW_SHARE = 0.25  # of the recent best; below that the host, or the way to it, has too much to do
SLOW_RUN = 4  # slow answers in a row: one alone may be chance
BEST_HALF_S = 60.0  # the recent best is halved in this time, so that an old one does not count for ever


def share(workers: int, fleet: int = FLEET_IN_FLIGHT, most: int = MOST) -> int:
    """Most requests in flight at one host from one of so many processes.

    Raises:
      ValueError: no workers at all.
    """
    if workers < 1:
        raise ValueError(f"{workers} workers: at least 1 was expected")
    return max(1, min(most, fleet // workers))


class Counters:
    """What fetching took in this process, by name; safe from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, float] = {}

    def add(self, name: str, amount: float = 1) -> None:
        """Counts here, and in the account of the work that it is done for (`charged`)."""
        self._add(name, amount)
        if (account := _account.get()) is not None and account is not self:
            account._add(name, amount)

    def _add(self, name: str, amount: float) -> None:
        with self._lock:
            self._values[name] = self._values.get(name, 0) + amount

    def read(self) -> dict[str, float]:
        """requests, bytes (of bodies), retries_<kind>, failures_<kind>, cuts, tokens, quarantined; throttled_s: waited
        for a turn at a host, retry_s: waited between tries, fetch_s: from asking for a range to having it, waits and
        all, each a sum over threads. What never happened is missing."""
        with self._lock:
            return dict(self._values)

    def clear(self) -> None:
        """Starts from nothing; with a lock of its own, since a fork may have copied a held one."""
        self._lock, self._values = threading.Lock(), {}


# Whose work a thread does now. A process's threads work for several blocks at once, so that a difference of the
# process's counters would be everyone's; a token or a header that others wait for is on the account of who fetched it.
_account: contextvars.ContextVar[Counters | None] = contextvars.ContextVar("account", default=None)


@contextlib.contextmanager
def charged(account: Counters) -> Iterator[None]:
    """What is fetched inside is counted in `account` too, by this thread and by a `CarryingPool`'s on its behalf."""
    before = _account.set(account)
    try:
        yield
    finally:
        _account.reset(before)


class CarryingPool(ThreadPoolExecutor):
    """Threads that work on the account of whoever gave them the work."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(contextvars.copy_context().run, fn, *args, **kwargs)


COUNTERS = Counters()  # the process's


@dataclasses.dataclass
class Turn:
    """One request's leave to be made.

    Attributes:
      epoch: how often the host's limit had been cut when it began. full: whether the limit was half used or more.
      busy, failed, pause_s, moved_bytes, took_s: what became of it.
    """

    epoch: int
    full: bool
    busy: bool = False
    pause_s: float = 0.0
    moved_bytes: int = 0
    took_s: float = 0.0
    failed: bool = False

    def said_busy(self, pause_s: float = 0.0) -> None:
        """The host asked for less: 429, 503, or no answer in time; and for a pause, where it gave one."""
        self.busy, self.pause_s, self.failed = True, pause_s, True

    def said_no(self) -> None:
        """Any other answer that was not what had been asked for: no reason for more, none for less."""
        self.failed = True

    def brought(self, moved_bytes: int, took_s: float) -> None:
        """A good answer, and how long it took from first to last byte of it."""
        self.moved_bytes, self.took_s = moved_bytes, took_s


@dataclasses.dataclass
class _Gate:
    """One host: how many may be in flight, how many are, and what is known of it. most: that `limit` may grow to."""

    limit: float
    most: int
    flying: int = 0
    epoch: int = 0
    not_before: float = 0.0
    best: float = 0.0
    best_at: float = 0.0
    slow: int = 0


class Throttle:
    """Turns at hosts: halved where a host is busy or slow, one more for every round of good answers.

    A burst of refusals is one sign, not many: only requests that began after the last cut can cause the next.
    """

    def __init__(
        self,
        most: int = MOST,
        least: int = 1,
        counters: Counters = COUNTERS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        caps: Mapping[str, int] = hosts.AT_ONCE,
        workers: int = 1,
    ) -> None:
        """most, least: requests in flight at one host. clock, sleep: seconds, replaced together. caps: what a host lets
        all of `workers` processes have together; each has one, however many they are."""
        if not 1 <= least <= most:
            raise ValueError(f"between {least} and {most} at once: at least 1, and no more than the most, was expected")
        self.most, self.least, self._caps, self._workers = most, least, caps, workers
        self._counters, self._clock, self._sleep = counters, clock, sleep
        self._changed = threading.Condition()
        self._gates: dict[str, _Gate] = {}

    def keep_to(self, most: int, workers: int | None = None) -> None:
        """Another upper bound from now on: this process's share where the number of workers is stated."""
        with self._changed:
            self.most = max(self.least, most)
            self._workers = self._workers if workers is None else workers
            for host, gate in self._gates.items():
                gate.most = self._most_of(host)
                gate.limit = min(gate.limit, float(gate.most))
            self._changed.notify_all()

    @contextlib.contextmanager
    def turn(self, host: str) -> Iterator[Turn]:
        """Waits until this host may be asked, and counts the wait. What the host said is told to the turn."""
        turn = self._wait(host)
        try:
            yield turn
        finally:
            with self._changed:
                self._ended(self._gates[host], turn)
                self._changed.notify_all()

    def limit(self, host: str) -> float:
        """How many requests may be in flight at a host now."""
        with self._changed:
            return self._gate(host).limit

    def _gate(self, host: str) -> _Gate:
        if host not in self._gates:
            most = self._most_of(host)
            self._gates[host] = _Gate(float(max(self.least, min(FIRST, most))), most)
        return self._gates[host]

    def _most_of(self, host: str) -> int:
        cap = self._caps.get(host)
        return self.most if cap is None else max(self.least, min(self.most, cap // self._workers))

    def _wait(self, host: str) -> Turn:
        started = self._clock()
        waited = False
        while True:
            with self._changed:
                gate = self._gate(host)
                pause = gate.not_before - self._clock()
                if pause <= 0 and gate.flying < int(gate.limit):
                    gate.flying += 1
                    if waited:
                        self._counters.add("throttled_s", self._clock() - started)
                    return Turn(gate.epoch, gate.flying >= gate.limit / 2)
                waited = True
                if pause <= 0:
                    self._changed.wait()  # somebody's request is in flight, and every one of them ends
            if pause > 0:
                self._sleep(pause)

    def _ended(self, gate: _Gate, turn: Turn) -> None:
        busy = turn.busy
        if not turn.failed and turn.moved_bytes >= SIZED_BYTES and turn.took_s > 0:
            busy = self._is_slow(gate, turn)
        gate.flying -= 1
        if turn.pause_s > 0:
            gate.not_before = max(gate.not_before, self._clock() + turn.pause_s)
        if busy:
            if turn.epoch == gate.epoch:
                before, gate.limit = gate.limit, max(float(self.least), gate.limit / 2)
                gate.best *= gate.limit / before  # fewer at once bring less: that is no slowness
                gate.epoch += 1
                gate.slow = 0
                self._counters.add("cuts")
        elif not turn.failed and turn.full:  # a limit that is not used need not grow
            gate.limit = min(float(gate.most), gate.limit + 1 / gate.limit)

    def _is_slow(self, gate: _Gate, turn: Turn) -> bool:
        """Whether the host brings much less than it did of late, all requests in flight together.

        One request's own rate would not tell: it falls whenever more of them share a line that is full.
        """
        if gate.flying < gate.limit / 2:
            return False  # not enough in flight to see what the host could do
        now = self._clock()
        flow = turn.moved_bytes / turn.took_s * gate.flying
        gate.best *= 0.5 ** ((now - gate.best_at) / BEST_HALF_S)
        gate.best_at = now
        gate.best = max(gate.best, flow)
        gate.slow = gate.slow + 1 if flow < gate.best * SLOW_SHARE else 0
        return gate.slow >= SLOW_RUN


@dataclasses.dataclass(frozen=True)
class Remembered:
    """Why a file is not asked for again. kind, reason, status: of its FetchError."""

    until: float
    kind: str
    reason: str
    status: int | None


class Quarantine:
    """Files that failed for good, for a while: a block with many windows must not wait for each of them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, most: int = 10_000) -> None:
        """most: files to remember; the oldest are forgotten first."""
        self._clock, self._most = clock, most
        self._lock = threading.Lock()
        self._known: dict[str, Remembered] = {}

    def put(self, name: str, kind: str, reason: str, status: int | None, for_s: float) -> None:
        if for_s <= 0:
            return
        with self._lock:
            self._known.pop(name, None)
            self._known[name] = Remembered(self._clock() + for_s, kind, reason, status)
            while len(self._known) > self._most:
                del self._known[next(iter(self._known))]

    def find(self, name: str) -> Remembered | None:
        """What is remembered of a file, None where nothing is or its time is over."""
        with self._lock:
            known = self._known.get(name)
            if known is not None and known.until <= self._clock():
                del self._known[name]
                return None
            return known

    def clear(self) -> None:
        with self._lock:
            self._known.clear()
