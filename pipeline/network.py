"""Network: what fetching took in a run, from the counters in its blocks' receipts."""

import dataclasses
from collections import Counter
from collections.abc import Mapping

# What `http.Fetcher` names its counters after, in words.
RETRIED = {
    "429": "429 too many requests", "503": "503 busy", "500": "500", "502": "502", "504": "504", "408": "408",
    "denied": "credential renewed", "reset": "connection lost", "short": "answer cut short", "timeout": "no answer",
    "200": "another page in its place", "206": "another page in its place", "moved": "forwarded",
}  # fmt: skip
FAILED = {
    "status": "HTTP error", "reset": "connection lost", "short": "answer cut short", "timeout": "no answer",
    "changed": "file changed while it was read", "refused": "not allowed",
}  # fmt: skip


def rounded(counters: Mapping[str, float]) -> dict[str, float]:
    """Counters that were added up, as a record keeps them; {} where no block asked a server."""
    return {name: round(amount, 3) for name, amount in sorted(counters.items())}


@dataclasses.dataclass(frozen=True)
class Network:
    """A run's fetching.

    Attributes:
      requests: with those that failed. moved_bytes: of bodies that came whole. tokens: credentials fetched.
      retries, failures: what for, and how often: of requests that were made again, of ranges that were given up.
      cuts: how often a host was asked for half as much at once. quarantined: ranges of files that had failed before.
      fetch_s: from wanting a range to having it, summed over threads; of it, throttled_s: waited for a turn at a host,
        retry_s: waited between tries.
    """

    requests: int
    moved_bytes: int
    tokens: int
    retries: dict[str, int]
    failures: dict[str, int]
    cuts: int
    quarantined: int
    fetch_s: float
    throttled_s: float
    retry_s: float

    @property
    def throttled_share(self) -> float:
        """Of the time that fetching took, 0 to 1."""
        return min(1.0, self.throttled_s / self.fetch_s) if self.fetch_s else 0.0


def network_of(counters: Mapping[str, float]) -> Network | None:
    """What the counters of one or many blocks come to, None where nothing was asked of a server."""
    if not counters:
        return None

    def kinds(prefix: str, names: Mapping[str, str]) -> dict[str, int]:
        found: Counter[str] = Counter()
        for name, n in counters.items():
            if name.startswith(prefix):
                kind = name.removeprefix(prefix)
                found[names.get(kind, kind)] += int(n)
        return dict(found.most_common())

    def whole(name: str) -> int:
        return int(counters.get(name, 0))

    def seconds(name: str) -> float:
        return round(float(counters.get(name, 0.0)), 3)

    return Network(
        requests=whole("requests"),
        moved_bytes=whole("bytes"),
        tokens=whole("tokens"),
        retries=kinds("retries_", RETRIED),
        failures=kinds("failures_", FAILED),
        cuts=whole("cuts"),
        quarantined=whole("quarantined"),
        fetch_s=seconds("fetch_s"),
        throttled_s=seconds("throttled_s"),
        retry_s=seconds("retry_s"),
    )


def told(kinds: Mapping[str, int]) -> str:
    """As "3 (503 busy x 2, connection lost)"; "none" where nothing happened."""
    if not kinds:
        return "none"
    parts = ", ".join(f"{what} x {n:,}" if n > 1 else what for what, n in kinds.items())
    return f"{sum(kinds.values()):,} ({parts})"
