"""Forwards: where a host sent us for a file, kept in this process's memory for as long as that holds."""

import collections
import dataclasses
import datetime as dt
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from typing import NoReturn

from transforms.wire import server_time

LEAST_S = 30.0  # with less life than this a signed URL is not used: the request itself takes time
EARLY_S = 120.0  # of life at which one thread asks for the next one, while the others go on with this one
UNSTATED_S = 300.0  # for a place of which nobody says how long it holds
KEPT = 10_000  # files: a tile's year of bursts, at about 1 KB each


@dataclasses.dataclass(eq=False, repr=False)
class _Place:
    """target: URL with its signature. renew: when to ask for another, ends: when this one is over, by the clock."""

    target: str
    renew: float
    ends: float


class Forwards:
    """Where files lie, by the URL that was asked for; safe from many threads. Neither shown nor pickled."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, most: int = KEPT) -> None:
        """clock: seconds. most: files to remember; those that were asked for longest ago are forgotten first."""
        self._clock, self._most = clock, most
        self._lock = threading.Lock()
        self._known: collections.OrderedDict[str, _Place] = collections.OrderedDict()

    def __repr__(self) -> str:
        return f"Forwards({len(self._known)} files)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("signed URLs stay in their process")

    def find(self, url: str) -> str | None:
        """Where the file lies, None where its host must be asked: nothing is known, or it is over, or is soon."""
        with self._lock:
            known, now = self._known.get(url), self._clock()
            if known is None or known.ends <= now:
                self._known.pop(url, None)
                return None
            self._known.move_to_end(url)
            if known.renew <= now:
                known.renew = now + LEAST_S  # whoever comes meanwhile need not ask too
                return None
            return known.target

    def keep(self, url: str, target: str, life_s: float | None) -> None:
        """Remembers a target that gave the file; life_s: as stated, None where nobody did."""
        life_s = UNSTATED_S if life_s is None else life_s - LEAST_S
        if life_s <= 0:
            return
        now = self._clock()
        with self._lock:
            self._known[url] = _Place(target, now + life_s - min(EARLY_S, life_s / 2), now + life_s)
            self._known.move_to_end(url)
            while len(self._known) > self._most:
                self._known.popitem(last=False)

    def drop(self, url: str, target: str | None = None) -> None:
        """Forgets a target that was refused, any one where none is named; what another thread got since then stays."""
        with self._lock:
            known = self._known.get(url)
            if known is not None and target in (None, known.target):
                del self._known[url]


def life_s(target: str, said: Mapping[str, str]) -> float | None:
    """Seconds that an answer's Location holds, by its headers and its signature; None where neither tells.

    The signatures are those of S3 (X-Amz-Date with X-Amz-Expires) and of CloudFront or older S3 (Expires).
    """
    lives = []
    control = said.get("Cache-Control", "").lower()
    if re.search(r"\b(no-store|no-cache)\b", control):  # RFC 9111, 5.2.2
        lives.append(0.0)
    elif age := re.search(r"\bmax-age=\"?([0-9]{1,9})\b", control):
        lives.append(float(age[1]))
    query = {k.lower(): v[-1] for k, v in urllib.parse.parse_qs(urllib.parse.urlsplit(target).query).items()}
    now = server_time(said)
    try:
        if "x-amz-expires" in query:
            born = dt.datetime.strptime(query["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
            lives.append(_whole(query["x-amz-expires"]) - (now - born).total_seconds())
        elif "expires" in query:
            lives.append(_whole(query["expires"]) - now.timestamp())
    except (KeyError, ValueError):
        lives.append(0.0)  # it ends, and nobody knows when
    # A signature over the Range header is good for that range alone.
    if query.get("x-amz-signedheaders", "host").lower() != "host":
        lives.append(0.0)
    return min(lives, default=None)


def _whole(text: str) -> int:
    if not re.fullmatch("[0-9]{1,12}", text):
        raise ValueError("no number of seconds")
    return int(text)
