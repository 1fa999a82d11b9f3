"""Catalogues on disk: static STAC catalogues, folders of items, item collections, lists of item paths and granules."""

import dataclasses
import datetime as dt
import functools
import itertools
import json
import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import shapely

from model.errors import BadInput
from transforms import grid
from transforms.catalogs import opera
from transforms.catalogs.headers import Headers
from transforms.catalogs.hrefs import is_remote, root_of_folder, stored
from transforms.catalogs.items import Found, datetime_of, item_boxes, tile_id
from transforms.catalogs.registry import source_of
from transforms.catalogs.source import Source
from transforms.periods import Period


@dataclasses.dataclass(frozen=True)
class _Entry:
    """Where an item is and when; small, so that a large catalogue's index fits and its items are read tile by tile.

    Attributes:
      path: of the record. number: which item of that file. source: whose description. day: UTC date.
      place: among all items, in the order of the catalogue.
    """

    path: str
    number: int
    source: Source
    day: dt.date
    place: int


class FileCatalog:
    """Items on disk, indexed at once and read again when their tile's turn comes.

    Attributes:
      text: as the user gave it. root: folder that hrefs stay in.
      ignored: what was passed over, with counts.
    """

    def __init__(self, text: str, path: Path, provider: str | None) -> None:
        """
        Raises:
          BadInput: no such file, not JSON, not a catalogue, a link out of the folder, or items that need `--as`.
        """
        self.text = text
        self.root = root_of_folder(path if path.is_dir() else path.parent)
        self.ignored: dict[str, int] = {}
        self._provider = provider
        self._tiles: dict[str, list[_Entry]] = {}
        self._radar: list[tuple[_Entry, shapely.Polygon]] = []
        self._days: set[dt.date] = set()
        self._headers = Headers(self.root)
        self._places = itertools.count()
        for file in _item_files(path, self.root):
            self._index(file)
        self._boxes = shapely.STRtree([box for _, box in self._radar])

    def items(self, tile: grid.Tile, period: Period) -> Iterator[Found]:
        """Yields the items of the tile, and radar items around it, of the period, once each."""
        near = set(self._tiles.get(tile.name, ()))
        shape = grid.footprint(tile)
        near |= {self._radar[i][0] for i in self._boxes.query(shape, predicate="intersects")}
        for entry in sorted(near, key=lambda e: e.place):
            if not period.start <= entry.day <= period.end:
                continue
            item = _items_in(entry.path)[entry.number]
            against: tuple[str, ...] = ()
            if entry.source is opera.SOURCE:
                item, against = self._headers.fill(item, entry.path)
            yield Found(item, entry.path, entry.source, entry.place, against)

    def span(self) -> str:
        """First and last day of what the catalogue holds, "" where it holds nothing."""
        return f"{min(self._days)}..{max(self._days)}" if self._days else ""

    def _index(self, path: str) -> None:
        for number, item in enumerate(_items_in(path)):
            source = source_of(item, self._provider)
            if source is None:
                self._ignore(
                    f"collection {item.get('collection')}" + (f" of {self._provider}" if self._provider else "")
                )
                continue
            if (when := datetime_of(item)) is None:
                self._ignore("items without datetime")
                continue
            entry = _Entry(path, number, source, when.date(), next(self._places))
            self._days.add(entry.day)
            if not source.tile:
                boxes = item_boxes(item)
                if not boxes and source is opera.SOURCE and (box := self._headers.box(item, path)) is not None:
                    boxes = item_boxes({"bbox": list(box)})
                self._radar += [(entry, shapely.box(*box)) for box in boxes]
                if not boxes:
                    self._ignore("radar items without bbox and geometry, nor a file that shows where they lie")
            elif name := tile_id(item, source):
                self._tiles.setdefault(name, []).append(entry)
            else:
                self._ignore(f"optical items without {source.tile}")

    def _ignore(self, what: str) -> None:
        self.ignored[what] = self.ignored.get(what, 0) + 1


def _item_files(path: Path, root: str) -> Iterator[str]:
    """The files that hold the items of a catalogue, as absolute paths, each once."""
    if path.is_dir():
        if (path / "catalog.json").is_file():
            yield from _linked_files(posixpath.join(root, "catalog.json"), root)
            return
        found = sorted(f for f in path.rglob("*") if f.suffix.lower() in (".json", ".geojson"))
        yield from (posixpath.join(root, f.relative_to(path).as_posix()) for f in found)
        return
    file = posixpath.join(root, path.name)
    record = _json(file)
    if isinstance(record, dict) and record.get("type") in ("Catalog", "Collection"):
        yield from _linked_files(file, root)
    elif isinstance(record, dict) and record and all(isinstance(v, list) for v in record.values()):
        yield from _listed_files(file, record, root)
        if _items_in(file):
            yield file
    elif _items_in(file):
        yield file
    else:
        raise BadInput(f"catalogue {path}: neither a STAC catalogue, nor items, nor a list of item paths")


def _linked_files(first: str, root: str) -> Iterator[str]:
    """Follows the child and item links of a static catalogue; plain JSON, one file in memory at a time."""
    waiting, seen = [first], {first}
    while waiting:
        file = waiting.pop(0)
        record = _json(file)
        links = record.get("links") if isinstance(record, dict) else None
        for link in links if isinstance(links, list) else []:
            if not isinstance(link, dict) or link.get("rel") not in ("child", "item"):
                continue
            href = str(link.get("href"))
            if is_remote(href):
                raise BadInput(f"{file} links to {href.partition('?')[0]}: a static catalogue is read from disk, whole")
            target = posixpath.join(root, stored(href, file, root, posixpath.basename(file)))
            if target in seen:
                continue
            seen.add(target)
            if not Path(target).is_file():
                raise BadInput(f"{file} links to {href}, which is missing")
            if link["rel"] == "item":
                yield target
            else:
                waiting.append(target)


def _listed_files(file: str, record: Mapping[str, list[Any]], root: str) -> Iterator[str]:
    """Item paths by collection, relative to the list."""
    seen = set()
    for collection, paths in record.items():
        for path in paths:
            if isinstance(path, dict) and any(opera.granules_in([path])):
                continue  # the list holds the granules themselves
            if not isinstance(path, str):
                raise BadInput(f"{file}: the entries of {collection} are neither item paths nor granules of CMR")
            target = posixpath.join(root, stored(path, file, root, collection))
            if not Path(target).is_file():
                raise BadInput(f"{file} lists {path}, which is missing")
            if target not in seen:
                seen.add(target)
                yield target


def _items_in(path: str) -> tuple[Mapping[str, Any], ...]:
    """The STAC items of a JSON file: an Item, a FeatureCollection, a list, or granules of CMR; none for other JSON."""
    try:
        stat = Path(path).stat()
    except OSError:
        return _items_at(path, 0, 0)  # says what is wrong
    return _items_at(path, stat.st_mtime_ns, stat.st_size)  # a file that was written anew is read anew


@functools.lru_cache(maxsize=4)  # one file may hold many items, and they are asked for one after the other
def _items_at(path: str, _changed_ns: int, _size_bytes: int) -> tuple[Mapping[str, Any], ...]:
    record = _json(path)
    granules = [item for granule in opera.granules_in(record) if (item := opera.item_of(granule)) is not None]
    if isinstance(record, dict):
        record = record["features"] if isinstance(record.get("features"), list) else [record]
    return (*(i for i in record if _is_item(i)), *granules) if isinstance(record, list) else tuple(granules)


def _is_item(record: object) -> bool:
    return (
        isinstance(record, dict)
        and record.get("type") == "Feature"
        and isinstance(record.get("id"), str)
        and isinstance(record.get("properties"), dict)
        and "assets" in record
    )


def _json(path: str) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as e:
        raise BadInput(f"{path} is not JSON ({e}); mend it or take it out of the catalogue") from None
    except OSError as e:
        raise BadInput(f"{path} cannot be read: {e.strerror}") from None
