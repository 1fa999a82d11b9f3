"""Work: the receipts of unfinished tiles, from one listing of an output folder."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from transforms.receipts import DONE, FAILED, Receipt, receipt_from_json
from transforms.storage import Store

LISTERS = 16  # requests to the store at once: a planet has 18,400 folders
BATCH = 512  # answers that wait in memory: an item is some 20 kB, and the half million of a planet would not fit

T = TypeVar("T")
R = TypeVar("R")


@dataclasses.dataclass
class TileWork:
    """Names of a tile's receipts, of all its unfinished revisions."""

    done: list[str] = dataclasses.field(default_factory=list)
    failed: list[str] = dataclasses.field(default_factory=list)


def work_of(store: Store) -> dict[tuple[str, str], TileWork]:
    """(period, tile) -> the receipts that wait. A published tile has none, so that a planet's listing is short.

    One listing and not a few requests a tile: `_work/<period>/<tile>/<revision>/<desk>/<block>.done.json`.
    """
    found: dict[tuple[str, str], TileWork] = {}
    for entry in store.walk("_work"):
        parts = entry.name.split("/")
        for status in (DONE, FAILED):
            if len(parts) == 6 and parts[5].endswith(f".{status}.json"):
                work = found.setdefault((parts[1], parts[2]), TileWork())
                (work.done if status == DONE else work.failed).append(entry.name)
    return found


def opened(store: Store, names: Iterable[str]) -> Iterator[Receipt]:
    """The receipts of these names, in their order, without those that a run takes away meanwhile."""

    def read(name: str) -> bytes | None:
        try:
            return store.get(name)
        except FileNotFoundError:
            return None

    return (receipt_from_json(data) for data in side_by_side(read, names) if data is not None)


def side_by_side(ask: Callable[[T], R], things: Iterable[T]) -> Iterator[R]:
    """What a store answers for each of many things, in their order; `LISTERS` are asked at once, `BATCH` held."""
    rest = iter(things)
    with ThreadPoolExecutor(LISTERS) as pool:
        while batch := list(itertools.islice(rest, BATCH)):
            yield from pool.map(ask, batch)
