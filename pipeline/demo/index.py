"""Index: a static catalogue read once, and searched as a STAC API searches."""

import dataclasses
import datetime as dt
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import shapely
from shapely.errors import ShapelyError
from shapely.geometry.base import BaseGeometry

from model.errors import BadInput

Json = dict[str, Any]


class RequestError(Exception):
    """A request that gets an error response: its HTTP status and a sentence."""

    def __init__(self, status: int, description: str) -> None:
        super().__init__(description)
        self.status = status
        self.description = description


@dataclasses.dataclass(frozen=True)
class Entry:
    """An item and what a search asks of it.

    Attributes:
      item: as on disk, with relative hrefs. folder: of the item, relative to the catalogue's.
      shape: its geometry. when: its datetime.
    """

    item: Json
    folder: str
    shape: BaseGeometry
    when: dt.datetime


@dataclasses.dataclass(frozen=True)
class Index:
    """A static catalogue, read once.

    Attributes:
      folder: of `catalog.json`.
      root: its JSON.
      collections: by id.
      entries: items, newest first, ties by id.
    """

    folder: Path
    root: Json
    collections: Mapping[str, Json]
    entries: Sequence[Entry]


def read_index(folder: Path) -> Index:
    """Reads a static catalogue of collections whose items they link to directly.

    Raises:
      BadInput: there is no `catalog.json`.
    """
    folder = folder.resolve()
    if not (folder / "catalog.json").is_file():
        raise BadInput(f"{folder} has no catalog.json: build a planet there first")
    root = json.loads((folder / "catalog.json").read_text(encoding="utf-8"))
    collections: dict[str, Json] = {}
    entries: list[Entry] = []
    for child in _links(root, "child"):
        path = folder / child
        collection = json.loads(path.read_text(encoding="utf-8"))
        collections[collection["id"]] = collection
        for href in _links(collection, "item"):
            item = json.loads((path.parent / href).read_text(encoding="utf-8"))
            where = (path.parent / href).resolve().parent.relative_to(folder).as_posix()
            when = _instant(item["properties"]["datetime"])
            entries.append(Entry(item, where, shapely.geometry.shape(item["geometry"]), when))
    entries.sort(key=lambda e: e.item["id"])
    entries.sort(key=lambda e: e.when, reverse=True)  # as both real providers list them
    return Index(folder, root, collections, entries)


def _links(record: Json, rel: str) -> list[str]:
    return [link["href"] for link in record["links"] if link["rel"] == rel]


def _instant(text: str) -> dt.datetime:
    when = dt.datetime.fromisoformat(text)
    return when if when.tzinfo else when.replace(tzinfo=dt.UTC)


def _interval(text: str) -> tuple[dt.datetime, dt.datetime]:
    """Reads `A`, `A/B`, `A/..` or `../B` of RFC 3339; both ends are included."""
    first, _, last = text.partition("/")
    try:
        start = dt.datetime.min.replace(tzinfo=dt.UTC) if first in ("", "..") else _instant(first)
        if "/" not in text:
            return start, start
        end = dt.datetime.max.replace(tzinfo=dt.UTC) if last in ("", "..") else _instant(last)
    except ValueError:
        raise RequestError(400, f"datetime {text!r}: write 2024-01-01T00:00:00Z/2024-12-31T23:59:59Z") from None
    return start, end


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda a, b: bool(a == b),
    "neq": lambda a, b: bool(a != b),
    "lt": lambda a, b: bool(a < b),
    "lte": lambda a, b: bool(a <= b),
    "gt": lambda a, b: bool(a > b),
    "gte": lambda a, b: bool(a >= b),
    "in": lambda a, b: a in b,
    "startsWith": lambda a, b: str(a).startswith(b),
}


def _matches(item: Json, query: Mapping[str, Mapping[str, Any]]) -> bool:
    """The query extension: an item without the property does not match."""
    for name, tests in query.items():
        value = item["properties"].get(name)
        for operator, wanted in tests.items():
            if operator not in _COMPARE:
                raise RequestError(400, f"query operator {operator!r}: this server knows {', '.join(_COMPARE)}")
            try:
                if value is None or not _COMPARE[operator](value, wanted):
                    return False
            except TypeError:
                raise RequestError(400, f"query {name} {operator} {wanted!r}: the property is {value!r}") from None
    return True


def search(index: Index, asked: Mapping[str, Any]) -> Iterator[Entry]:
    """Entries that match bbox, intersects, datetime, collections, ids and query, in the index's order.

    Raises:
      RequestError: a parameter that cannot be read.
    """
    area: BaseGeometry | None = None
    try:
        if asked.get("bbox"):
            box = [float(v) for v in asked["bbox"]]
            if len(box) not in (4, 6):
                raise RequestError(400, f"bbox {asked['bbox']}: it must have 4 or 6 numbers")
            west, south, east, north = box if len(box) == 4 else (box[0], box[1], box[3], box[4])
            halves = [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]  # RFC 7946, 5.2
            area = shapely.union_all([shapely.box(w, south, e, north) for w, e in halves])
        elif asked.get("intersects"):
            area = shapely.geometry.shape(asked["intersects"])
    except (TypeError, ValueError, AttributeError, ShapelyError) as e:
        raise RequestError(400, f"bbox or intersects cannot be read: {e}") from None
    start, end = _interval(asked["datetime"]) if asked.get("datetime") else (None, None)
    collections, ids, query = asked.get("collections"), asked.get("ids"), asked.get("query") or {}
    for entry in index.entries:
        if collections and entry.item["collection"] not in collections:
            continue
        if ids and entry.item["id"] not in ids:
            continue
        if start is not None and end is not None and not start <= entry.when <= end:
            continue
        if area is not None and not area.intersects(entry.shape):
            continue
        if _matches(entry.item, query):
            yield entry
