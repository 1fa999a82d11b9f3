"""Paging: every item of a box and some days, exactly as many as the server counts, in slices that it can answer."""

import dataclasses
import datetime as dt
import json
import urllib.parse
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from model.errors import BadInput
from transforms.catalogs.exchange import NoAnswer, Server
from transforms.catalogs.hrefs import is_remote
from transforms.catalogs.source import Item

PAGE_ITEMS = 100  # Earth Search answers at most 6 MB, and its items have 22-33 kB (stac-server#226)
WINDOW_ITEMS = 10_000  # OpenSearch pages no further, and counts no further (Earth Search; old Copernicus API)
IDLE_PAGES = 10  # in a row without anything new; an honest server may have one where an item comes twice
_FOUND = dict[str, list[Item]]  # id -> its records, more than one where they differ
_Request = tuple[str, dict[str, Any] | None]  # address; body of a POST, None for a GET


@dataclasses.dataclass(frozen=True)
class Slice:
    """What one search asks for.

    Attributes:
      collection: its id. box: west, south, east, north in degrees.
      first, until: days; from the first instant of one to the first instant of the other, both included, since servers
        differ in how they read fractions of a day's last second, and what comes twice is counted once.
      page: items on a page.
      only: (property, values), for items with one of them alone (the query extension); None for all.
    """

    collection: str
    box: tuple[float, ...]
    first: dt.date
    until: dt.date
    page: int = PAGE_ITEMS
    only: tuple[str, tuple[str, ...]] | None = None

    @property
    def days(self) -> int:
        return (self.until - self.first).days

    @property
    def name(self) -> str:
        """The month, or the days of a part of one."""
        if self.first.day == 1 and self.days > 27:
            return f"{self.first:%Y-%m}"
        last = self.until - dt.timedelta(days=1)
        return f"{self.first}" if self.days == 1 else f"{self.first}/{last}"

    def smaller(self, pages_too: bool = True) -> list["Slice"]:
        """Halves of the time, down to a day, then of the page, down to one item; empty where neither is left."""
        if self.days > 1:
            middle = self.first + dt.timedelta(days=self.days // 2)
            return [dataclasses.replace(self, until=middle), dataclasses.replace(self, first=middle)]
        return [dataclasses.replace(self, page=self.page // 2)] if pages_too and self.page > 1 else []


class Inexact(Exception):
    """A slice of which the server does not give all; the text says how one knows.

    Attributes:
      matched: items that it counts, or None. over: they are more than it pages through.
    """

    def __init__(self, said: str, matched: int | None, over: bool = False) -> None:
        super().__init__(said)
        self.matched, self.over = matched, over


class Search:
    """The item search of one STAC API.

    Attributes:
      halved: slices that had to be asked for in smaller ones.
    """

    def __init__(self, server: Server, url: str, trims: bool, keys: Mapping[str, Collection[str]]) -> None:
        """
        Args:
          url: of the search. trims: whether the server has the fields extension.
          keys: collection -> keys of the assets that are read.
        """
        self.halved = 0
        self._server, self._url, self._keys = server, url, keys
        self._trims = dict.fromkeys(keys, trims)
        self._unproven: set[str] = set()  # collections of which no property told all items of a tile
        self._honest: set[str] = set()  # collections of which trimmed items were seen to lack nothing that others have

    def items(self, part: Slice) -> list[Item]:
        """Every item of the slice, without what is not read; twice only where two records of one id differ.

        Raises:
          NoAnswer: no answer, however small the slice. Inexact: never as many as the server counts.
          BadInput: pages in circles, or on another server. Stopped: the search is given up.
        """
        return [record for records in self._all(part).values() for record in records]

    def chosen(self, part: Slice, name: str, ours: tuple[str, ...], others: tuple[str, ...]) -> list[Item] | None:
        """The items of the slice whose property `name` is one of `ours`, None where nothing proves that these are all.

        The proof is a sum: with those whose property is one of `others`, which are all that may lie here, they are as
        many as the server counts without any wish. Items without the property, or with another spelling of it, and
        servers that pass over the wish break the sum; so does whatever came between two counts. Nothing is lost then:
        the box is searched.

        Raises:
          BadInput, Stopped: as `items`.
        """
        if part.collection in self._unproven:
            return None
        try:
            both = self._count(part)
            rest = self._count(dataclasses.replace(part, only=(name, others))) if both else None
            if not both or rest is None or both >= WINDOW_ITEMS:
                self._unproven |= {part.collection} if both is None else set()
                return None
            found = self.items(dataclasses.replace(part, only=(name, ours)))
        except (NoAnswer, Inexact) as e:
            if not isinstance(e, NoAnswer) or not e.heavy:
                self._unproven.add(part.collection)  # it does not know the wish
            return None
        if len({item["id"] for item in found}) + rest == both:
            return found
        self._unproven.add(part.collection)
        return None

    def _count(self, part: Slice) -> int | None:
        """How many items the server counts in a slice, None where it does not count. Raises NoAnswer."""
        body = _body(dataclasses.replace(part, page=1), None)
        return _matched(self._server.ask(self._url, body, _no_page, self._server.patience.size_tries))

    def _all(self, part: Slice) -> _FOUND:
        try:
            return self._exactly(part)
        except NoAnswer as e:
            smaller = part.smaller() if e.heavy else []
            failure: NoAnswer | Inexact = e
        except Inexact as e:
            smaller = part.smaller(pages_too=False)
            failure = e
        if not smaller:
            raise failure
        self.halved += 1
        found: _FOUND = {}
        for each in smaller:
            for records in self._all(each).values():
                for record in records:
                    _take(found, record)
        if isinstance(failure, Inexact) and not failure.over and len(found) < (failure.matched or 0):
            raise Inexact(f"{failure}, and its parts have {len(found)}", failure.matched)
        return found

    def _exactly(self, part: Slice) -> _FOUND:
        """One search, page by page, asked again where it miscounts and cannot be halved."""
        patience = self._server.patience
        smallest = not part.smaller()
        for left in reversed(range(patience.size_tries if part.days == 1 else 1)):
            try:
                return self._once(part, patience.tries if smallest else patience.size_tries)
            except Inexact as e:
                if e.over or not left:
                    raise
        raise AssertionError("the last try has raised")

    def _once(self, part: Slice, tries: int) -> _FOUND:
        if self._trims[part.collection]:
            try:
                found = self._pages(part, tries, trimmed=True)
            except NoAnswer as e:
                if e.status is None or not 400 <= e.status < 500 or e.status in (401, 403, 404, 408, 413, 429):
                    raise
                # A refusal of the request itself: without its only optional word it may be understood.
                found = self._pages(part, tries, trimmed=False)
                self._trims[part.collection] = False
                return found
            keys = () if part.collection in self._honest else self._keys[part.collection]
            if not any(_lacks(record, keys) for records in found.values() for record in records):
                return found
            # Either some items have no more, or the server takes the wish for these fields too far.
            whole = self._pages(part, tries, trimmed=False)
            relative = any(_lacks(record, ()) for records in found.values() for record in records)
            if _shape(whole) == _shape(found) and not relative:
                self._honest.add(part.collection)
            else:
                self._trims[part.collection] = False
            return whole
        return self._pages(part, tries, trimmed=False)

    def _pages(self, part: Slice, tries: int, trimmed: bool) -> _FOUND:
        keys = self._keys[part.collection]
        url: str = self._url
        body: dict[str, Any] | None = _body(part, keys if trimmed else None)
        found: _FOUND = {}
        seen: set[str] = set()
        idle, matched = 0, None
        while True:
            asked = json.dumps([url, body], sort_keys=True)
            if asked in seen or idle > IDLE_PAGES:
                raise BadInput(f"the pages of {part.collection}, {part.name}, go in circles")
            seen.add(asked)
            try:
                page = self._server.ask(url, body, _no_page, tries)
            except NoAnswer as e:
                if len(seen) > 1 and e.status is not None and 400 <= e.status < 500 and e.status != 429:
                    raise Inexact(f"HTTP status {e.status} on page {len(seen)}", matched, over=True) from None
                raise
            matched = _matched(page)
            if matched is not None and matched >= WINDOW_ITEMS:
                raise Inexact(f"{matched} items or more, of which a search gives {WINDOW_ITEMS}", matched, over=True)
            before = len(found)
            for record in page["features"]:
                _take(found, _kept(record, keys))
            if len(found) >= WINDOW_ITEMS:
                raise Inexact(f"{WINDOW_ITEMS} items or more, and a search gives no further ones", None, over=True)
            idle = 0 if len(found) > before else idle + 1
            following = _next(page, url, body)
            if following is None:
                break
            url, body = following
        if matched is not None and matched != len(found):
            raise Inexact(f"{matched} items counted and {len(found)} given", matched)
        return found


def _body(part: Slice, keys: Collection[str] | None) -> dict[str, Any]:
    """A search as POST has it; `fields` only with `keys`. All properties are asked for, since they are small."""
    asked: dict[str, Any] = {
        "collections": [part.collection],
        "bbox": list(part.box),
        "datetime": f"{part.first}T00:00:00Z/{part.until}T00:00:00Z",
        "limit": part.page,
    }
    if part.only is not None:
        asked["query"] = {part.only[0]: {"in": list(part.only[1])}}
    if keys is not None:
        include = ["id", "type", "collection", "bbox", "geometry", "properties", *(f"assets.{k}" for k in sorted(keys))]
        asked["fields"] = {"include": include, "exclude": ["links"]}
    return asked


def _no_page(page: Any) -> str | None:
    """What keeps a record from being a page of items."""
    if not isinstance(page, dict) or not isinstance(page.get("features"), list):
        return "JSON that is no page of items"
    if not all(isinstance(f, dict) and isinstance(f.get("id"), str) for f in page["features"]):
        return "a page with items that have no id"
    links = page.get("links", [])
    if not isinstance(links, list) or not all(isinstance(link, dict) for link in links):
        return "a page whose links are no links"
    return None


def _matched(page: Mapping[str, Any]) -> int | None:
    """Items that the server counts for the whole search; older servers say it in `context`."""
    context = page.get("context")
    for said in (page.get("numberMatched"), context.get("matched") if isinstance(context, dict) else None):
        if isinstance(said, int) and not isinstance(said, bool) and said >= 0:
            return said
    return None


def _next(
    page: Mapping[str, Any], url: str, body: Mapping[str, Any] | None
) -> tuple[str, dict[str, Any] | None] | None:
    """Address and body of the next page, None after the last one.

    Raises:
      BadInput: it lies on another server: a catalogue has no say in whom else this machine talks to.
    """
    link = next((x for x in page.get("links", ()) if x.get("rel") == "next" and isinstance(x.get("href"), str)), None)
    if link is None:
        return None
    where = same_server(urllib.parse.urljoin(url, link["href"]), url)
    if where is None:
        host = urllib.parse.urlsplit(link["href"]).hostname
        raise BadInput(f"its next page lies on another server, {host}; give the address of that one")
    if str(link.get("method", "GET")).upper() != "POST":
        return where, None
    said = link.get("body")
    said = said if isinstance(said, dict) else {}
    return where, {**(body or {}), **said} if link.get("merge") is True else said


def same_server(url: str, asked: str) -> str | None:
    """`url` with the scheme of `asked`, None where its host or port is another.

    Servers behind a proxy write http into links where they are asked over https.
    """
    there, here = urllib.parse.urlsplit(url), urllib.parse.urlsplit(asked)
    if there.netloc.lower() != here.netloc.lower() or there.scheme not in ("http", "https"):
        return None
    return there._replace(scheme=here.scheme).geturl()


def _kept(record: dict[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """An item without the assets and links that nothing reads: a year of a tile is held at once."""
    assets, links = record.get("assets"), record.get("links")
    if isinstance(assets, dict):
        record["assets"] = {k: assets[k] for k in keys if k in assets}
    if isinstance(links, list):
        record["links"] = [x for x in links if isinstance(x, dict) and x.get("rel") == "self"]
    return record


def _take(found: _FOUND, record: Item) -> None:
    same = found.setdefault(str(record["id"]), [])
    if record not in same:
        same.append(record)


def _lacks(record: Item, keys: Collection[str]) -> bool:
    """Whether a trimmed item may have more to say: a part of it is missing, or an asset, or the place of one."""
    if not all(isinstance(record.get(part), dict) for part in ("geometry", "properties", "assets")):
        return True
    if any(key not in record["assets"] for key in keys):
        return True
    hrefs = [a.get("href") if isinstance(a, dict) else None for a in record["assets"].values()]
    # Relative ones start at the item's own link, which a trimmed answer leaves out.
    return not all(isinstance(href, str) and is_remote(href) for href in hrefs)


def _shape(found: _FOUND) -> dict[str, Any]:
    """What a trimmed answer must share with a whole one."""
    return {i: [(r.get("geometry"), r.get("properties"), r.get("assets")) for r in rs] for i, rs in found.items()}


def pages_of(server: Server, url: str, check: Callable[[Any], str | None]) -> Iterator[dict[str, Any]]:
    """The pages of a listing that is read by GET, each once. Raises as `Search.items`."""
    seen: set[str] = set()
    while url not in seen:
        seen.add(url)
        page: dict[str, Any] = server.ask(url, None, check)
        yield page
        following = _next(page, url, None)
        if following is None or following[1] is not None:
            return
        url = following[0]
