"""STAC APIs: searched once, tile by tile and month by month, as plain dictionaries."""

import collections
import dataclasses
import datetime as dt
import itertools
import threading
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from model.errors import BadInput
from transforms import grid, regions
from transforms.catalogs.crew import Crew
from transforms.catalogs.exchange import SEARCHES, NoAnswer, Patience, Server
from transforms.catalogs.hrefs import is_remote
from transforms.catalogs.items import Found, datetime_of
from transforms.catalogs.paging import Inexact, Search, Slice, pages_of, same_server
from transforms.catalogs.registry import API_URLS, BY_NAME, SOURCES, source_of
from transforms.catalogs.source import Item
from transforms.periods import Period

PATIENCE = Patience()
FEW_MONTHS = 5  # from here on two counts and a search by the tile's name are less than a search of each month
# The conformance class of https://github.com/stac-api-extensions/fields, in whatever version.
_FIELDS = "item-search#fields"
_QUERY = "item-search#query"  # https://github.com/stac-api-extensions/query
_MARGIN_DEG = 0.1  # around a box, for tiles whose items reach into it


class ApiCatalog:
    """A STAC API, searched by tile; several tiles may be asked for at once, from threads of their own.

    Attributes:
      text: as the user gave it. root: its URL. ignored: what was passed over, with counts.
      tiles_at_once: that keep it busy without asking it for more than `SEARCHES` things at a time.
    """

    tiles_at_once = SEARCHES

    def __init__(self, text: str, url: str, provider: str | None, only: str | None = None) -> None:
        """`only`: the one source (collection@provider) to search, else all of them that the API has."""
        self.text, self.root = text, url.rstrip("/")
        self.ignored: dict[str, int] = {}
        self._provider, self._only = provider, only
        self._server = Server(PATIENCE)
        self._lock = threading.Lock()
        self._opened: tuple[list[str], Search, Crew] | None = None
        self._tile_names: dict[str, str] = {}  # collection -> property that the server can search for a tile's name
        self._passed_over: dict[str, dict[str, int]] = {}

    def items(self, tile: grid.Tile, period: Period) -> Iterator[Found]:
        """Yields every item of the tile's bbox in the period, twice only where two records of one id differ.

        Raises:
          BadInput: the API does not answer, cannot search, gives less than it counts, or pages in circles.
          Stopped, CancelledError: `stop` was called.
        """
        names, search, crew = self._open()
        shape = grid.footprint(tile)
        boxes = [part.bounds for part in getattr(shape, "geoms", [shape])]
        months = [tuple(dt.date.fromisoformat(t[:10]) for t in month) for month in months_of(period)]
        wholes = [Slice(c, box, months[0][0], months[-1][1]) for c in names for box in boxes]
        seen: dict[tuple[object, str], list[Item]] = {}
        passed_over: collections.Counter[str] = collections.Counter()

        def chosen(whole: Slice) -> list[Item] | None:
            return self._chosen(search, whole, tile) if len(months) >= FEW_MONTHS else None

        def searched(part: Slice) -> list[Item]:
            return self._search(search, part, tile)

        at_once = list(crew.ahead(chosen, wholes, len(wholes)))
        left = [w for w, items in zip(wholes, at_once, strict=True) if items is None]
        parts = [dataclasses.replace(w, first=first, until=until) for w in left for first, until in months]
        by_month = crew.ahead(searched, parts, max(1, len(parts)))
        for items in itertools.chain((items for items in at_once if items is not None), by_month):
            for item in items:
                same = seen.setdefault((item.get("collection"), item["id"]), [])
                if item in same:
                    continue
                same.append(item)
                if (why := self._against(item)) is not None:
                    passed_over[why] += 1
                    continue
                when, source = datetime_of(item), source_of(item, self._provider)
                if when is None or not period.start <= when.date() <= period.end:
                    continue
                if source is not None and source.name == (self._only or source.name):
                    yield Found(item, self._location(item), source)
        with self._lock:
            self._passed_over[tile.name] = dict(passed_over)
            for why, n in passed_over.items():
                self.ignored[why] = self.ignored.get(why, 0) + n

    def ignored_under(self, tile: str) -> dict[str, int]:
        """What was passed over in the search of this tile, told once."""
        with self._lock:
            return self._passed_over.pop(tile, {})

    def asked(self) -> dict[str, float]:
        """What it took until now: requests, those sent again, seconds waited for it, searches made in parts."""
        counts, halved = self._server.counts, self._opened[1].halved if self._opened else 0
        return {
            "requests": counts.requests,
            "again": counts.again,
            "waited_s": round(counts.waited_s, 1),
            "halved": halved,
        }

    def stop(self) -> None:
        """Ends every search that waits or has not begun; nothing more can be asked."""
        self._server.stop()
        if self._opened is not None:
            self._opened[2].stop()

    def span(self) -> str:
        """Nothing is known of an API's dates without asking it for everything."""
        return ""

    def _open(self) -> tuple[list[str], Search, Crew]:
        """Ids of the collections to search, those of ours that the API lists; its search; who does it."""
        with self._lock:
            if self._opened is None:
                known = [
                    s for s in SOURCES if self._provider in (None, s.provider) and s.name == (self._only or s.name)
                ]
                names = sorted({s.collections[0] for s in known})
                landing = self._landing()
                url = self._link(landing, "search")
                if self.root not in API_URLS.values():
                    listed = self._listed(self._link(landing, "data"))
                    if not listed & set(names):
                        raise BadInput(f"catalogue {self.text}: it has none of the collections {', '.join(names)}")
                    names = [n for n in names if n in listed]
                keys = {n: {k for s in known if n in s.collections for k in s.keys.values()} for n in names}
                classes = landing.get("conformsTo")
                offered = [str(c) for c in (classes if isinstance(classes, list) else ())]
                trims = any(c.endswith(_FIELDS) for c in offered)
                if any(c.endswith(_QUERY) for c in offered):
                    self._tile_names = {n: s.tile for s in known for n in s.collections[:1] if s.tile}
                self._opened = names, Search(self._server, url, trims, keys), Crew(SEARCHES, "search")
            return self._opened

    def _landing(self) -> Any:
        """The landing page; what answers with something else is no API, and is not asked for it with patience."""
        tries: int | None = PATIENCE.size_tries
        while True:
            try:
                return self._server.ask(self.root, None, _no_landing, tries)
            except NoAnswer as e:
                if e.status == 200:
                    raise BadInput(
                        f"catalogue {self.text}: this is not a STAC API with item search ({e}); "
                        "download a static catalogue and give its folder"
                    ) from None
                if tries is None or not e.heavy:
                    raise e.refusal(self.text) from None
                tries = None

    def _listed(self, url: str) -> set[str]:
        """Ids of all collections of the API."""
        ids: set[str] = set()
        try:
            for page in pages_of(self._server, url, _no_collections):
                ids |= {str(c.get("id")) for c in page["collections"] if isinstance(c, dict)}
        except NoAnswer as e:
            raise e.refusal(self.text, " for the list of its collections") from None
        return ids

    def _link(self, landing: Mapping[str, Any], rel: str) -> str:
        """Where the landing page says that its search or its collections are, on the same server."""
        named = (x["href"] for x in landing["links"] if x.get("rel") == rel and isinstance(x.get("href"), str))
        href = next(named, "collections")
        url = same_server(urllib.parse.urljoin(f"{self.root}/", href), self.root)
        if url is None:
            host = urllib.parse.urlsplit(href).hostname
            raise BadInput(f"catalogue {self.text}: its {rel} link leads to another server, {host}; give that URL")
        return url

    def _search(self, search: Search, part: Slice, tile: grid.Tile) -> list[Item]:
        where = f" ({part.collection} over tile {tile.name}, {part.name})"
        try:
            return search.items(part)
        except NoAnswer as e:
            raise e.refusal(self.text, where) from None
        except Inexact as e:
            raise BadInput(
                f"catalogue {self.text}: {e}{where}; a part of the scenes would be missing, so try again later, "
                "or take another catalogue"
            ) from None
        except BadInput as e:
            raise BadInput(f"catalogue {self.text}: {e}{where}") from None

    def _chosen(self, search: Search, whole: Slice, tile: grid.Tile) -> list[Item] | None:
        """All items of a tile by its name: a box brings those of its neighbours too. None where the box is safer."""
        if (name := self._tile_names.get(whole.collection)) is None:
            return None
        west, south, east, north = whole.box
        box = (max(-180.0, west - _MARGIN_DEG), max(-90.0, south - _MARGIN_DEG),
               min(180.0, east + _MARGIN_DEG), min(90.0, north + _MARGIN_DEG))  # fmt: skip
        around = set(regions.tiles_of(regions.region_from_bbox(",".join(map(str, box))))) - {tile.name}
        try:
            return search.chosen(whole, name, _codes(name, [tile.name]), _codes(name, sorted(around)))
        except BadInput as e:
            raise BadInput(f"catalogue {self.text}: {e} (tile {tile.name})") from None

    def _against(self, item: Item) -> str | None:
        """Why an item is passed over, None for a good one."""
        if not isinstance(item.get("properties"), dict):
            return "items without properties"
        if datetime_of(item) is None:
            return "items without datetime"
        if source_of(item, self._provider) is None:
            return f"collection {item.get('collection')}" + (f" of {self._provider}" if self._provider else "")
        return None

    def _location(self, item: Item) -> str:
        """Where relative hrefs of the item start: its self link, else its address by the API's own rules."""
        links = item.get("links")
        for link in links if isinstance(links, list) else []:
            if link.get("rel") == "self" and is_remote(str(link.get("href"))):
                return str(link["href"])
        return f"{self.root}/collections/{item.get('collection')}/items/{item['id']}"


def _codes(name: str, tiles: Iterable[str]) -> tuple[str, ...]:
    """How items write the names of tiles: as the grid extension does, or plainly; some leave a first zero out."""
    prefix = "MGRS-" if name == "grid:code" else ""
    return tuple(f"{prefix}{word}" for tile in tiles for word in dict.fromkeys((tile, tile.lstrip("0"))))


def months_of(period: Period) -> list[tuple[str, str]]:
    """First and last instant of each calendar month of a period, RFC 3339; the last is the next one's first."""
    starts = [period.start]
    while (following := (starts[-1].replace(day=1) + dt.timedelta(days=32)).replace(day=1)) <= period.end:
        starts.append(following)
    ends = [*starts[1:], period.end + dt.timedelta(days=1)]
    return [(f"{a}T00:00:00Z", f"{b}T00:00:00Z") for a, b in zip(starts, ends, strict=True)]


def _no_landing(record: Any) -> str | None:
    """What keeps a record from being the landing page of an API that can be searched."""
    links = record.get("links") if isinstance(record, dict) else None
    if not isinstance(links, list) or not all(isinstance(x, dict) for x in links):
        return "JSON that is no landing page"
    found = any(x.get("rel") == "search" and isinstance(x.get("href"), str) for x in links)
    return None if found else "a landing page without a link to a search"


def _no_collections(record: Any) -> str | None:
    if isinstance(record, dict) and isinstance(record.get("collections"), list):
        return None
    return "JSON that is no list of collections"


def api_catalog(text: str, provider: str | None) -> ApiCatalog | None:
    """The API that a text names: a provider, one of its sources (collection@provider) or a URL; None for anything else.

    Raises:
      BadInput: a provider's name with another provider's `--as`, or a URL with a query or a user name.
    """
    named = BY_NAME[text].provider if text in BY_NAME else text
    if named in API_URLS:
        if provider not in (None, named):
            raise BadInput(f"--catalog {text} --as {provider}: what {named} serves follows its own description")
        return ApiCatalog(text, API_URLS[named], named, text if text in BY_NAME else None)
    if text.startswith(("http://", "https://")):
        bare = text.partition("?")[0]
        if bare != text or "@" in urllib.parse.urlsplit(text).netloc:
            host = urllib.parse.urlsplit(bare).netloc.rpartition("@")[2]
            raise BadInput(
                f"catalogue at {host}: give its URL without query and user name; the inventory would keep them"
            )
        return ApiCatalog(text, text, provider)
    return None
