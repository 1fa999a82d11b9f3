"""STAC APIs: searched once, tile by tile and month by month, over pystac-client, as plain dictionaries."""

import datetime as dt
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pystac_client
from pystac_client.errors import ClientTypeError
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from urllib3.util.retry import Retry

from model.errors import BadInput
from transforms import grid
from transforms.catalogs.hrefs import is_remote
from transforms.catalogs.items import Found, datetime_of
from transforms.catalogs.registry import API_URLS, BY_NAME, SOURCES, source_of
from transforms.periods import Period

PAGE_ITEMS = 100  # Earth Search answers at most 6 MB, and its items have 22-33 kB (stac-server#226)
SEARCHES = 4  # at once: Planetary Computer asks for few (PlanetaryComputer#427)
TIMEOUT_S = 60.0  # a slow page takes half of that; without a limit a lost connection hangs for ever

# Searches are POSTs that change nothing, so any method may be tried again; Retry-After is obeyed. Waits add up to 30 s.
RETRY = Retry(
    total=6,
    backoff_factor=0.5,
    backoff_jitter=0.5,
    backoff_max=30,
    status_forcelist=(429, 502, 503, 504),
    allowed_methods=None,
    raise_on_status=False,
)


class ApiCatalog:
    """A STAC API, searched by tile."""

    def __init__(self, text: str, url: str, provider: str | None, only: str | None = None) -> None:
        """`only`: the one source (collection@provider) to search, else all of them that the API has."""
        self.text, self.root = text, url.rstrip("/")
        self.ignored: dict[str, int] = {}
        self._provider, self._only = provider, only
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(SEARCHES, thread_name_prefix="search")
        self._collections: list[str] | None = None

    def items(self, tile: grid.Tile, period: Period) -> Iterator[Found]:
        """Yields every item of the tile's bbox in the period once.

        Raises:
          BadInput: the API does not answer, cannot search, or pages in circles.
        """
        shape = grid.footprint(tile)
        boxes = [part.bounds for part in getattr(shape, "geoms", [shape])]
        jobs = [(c, box, month) for c in self._names() for box in boxes for month in months_of(period)]
        seen = set()
        for items in self._pool.map(lambda job: self._search(*job), jobs):
            for item in items:
                key = (item.get("collection"), item["id"])
                when = datetime_of(item)
                if key in seen or when is None or not period.start <= when.date() <= period.end:
                    continue
                seen.add(key)
                source = source_of(item, self._provider)
                if source is not None and source.name == (self._only or source.name):
                    yield Found(item, self._location(item), source)

    def span(self) -> str:
        """Nothing is known of an API's dates without asking it for everything."""
        return ""

    def _names(self) -> list[str]:
        """Ids of the collections to search: those of the provider, else those of ours that the API lists."""
        if self._collections is None:
            known = [s for s in SOURCES if self._provider in (None, s.provider) and s.name == (self._only or s.name)]
            names = sorted({s.collections[0] for s in known})
            if self.root not in API_URLS.values():
                with _failures(self.text):
                    listed = {c.id for c in self._client().get_collections()}
                if not listed & set(names):
                    raise BadInput(f"catalogue {self.text}: it has none of the collections {', '.join(names)}")
                names = [n for n in names if n in listed]
            self._collections = names
        return self._collections

    def _client(self) -> Any:
        """This thread's own client: the session below it is not meant for several threads."""
        if not hasattr(self._local, "client"):
            io = StacApiIO(max_retries=RETRY, timeout=TIMEOUT_S)
            self._local.client = pystac_client.Client.open(self.root, stac_io=io)
        return self._local.client

    def _search(self, collection: str, box: tuple[float, ...], month: tuple[str, str]) -> list[Mapping[str, Any]]:
        items: dict[str, Mapping[str, Any]] = {}
        with _failures(self.text):
            search = self._client().search(
                collections=[collection], bbox=list(box), datetime="/".join(month), limit=PAGE_ITEMS
            )
            for page in search.pages_as_dicts():
                before = len(items)
                items |= {i["id"]: i for i in page["features"] if isinstance(i.get("properties"), dict) and "id" in i}
                if len(items) == before:
                    raise BadInput(f"catalogue {self.text}: the pages of {collection}, {month[0][:7]} go in circles")
        return list(items.values())

    def _location(self, item: Mapping[str, Any]) -> str:
        """Where relative hrefs of the item start: its self link, else its address by the API's own rules."""
        links = item.get("links")
        for link in links if isinstance(links, list) else []:
            if link.get("rel") == "self" and is_remote(str(link.get("href"))):
                return str(link["href"])
        return f"{self.root}/collections/{item.get('collection')}/items/{item['id']}"


def months_of(period: Period) -> list[tuple[str, str]]:
    """First and last instant of each calendar month of a period, RFC 3339; the last is the next one's first.

    Closed on both sides, since servers differ in how they read fractions of the last second; items that come twice are
    counted once.
    """
    starts = [period.start]
    while (following := (starts[-1].replace(day=1) + dt.timedelta(days=32)).replace(day=1)) <= period.end:
        starts.append(following)
    ends = [*starts[1:], period.end + dt.timedelta(days=1)]
    return [(f"{a}T00:00:00Z", f"{b}T00:00:00Z") for a, b in zip(starts, ends, strict=True)]


# What pystac-client raises on JSON that is no landing page or no item collection, and on text that is no JSON.
_NOT_AN_API = (ClientTypeError, NotImplementedError, AttributeError, KeyError, TypeError, ValueError)


class _failures:  # noqa: N801 - a context manager, read as a phrase
    """Turns what pystac-client raises into BadInput that names the catalogue and shows no URL with a query."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, APIError | OSError):
            status = getattr(error, "status_code", None)
            if status is not None and status not in RETRY.status_forcelist:
                raise BadInput(f"catalogue {self.text}: HTTP status {status}; check the URL") from error
            said = f"HTTP status {status}" if status else "no answer"
            raise BadInput(f"catalogue {self.text}: {said} after {RETRY.total} retries; try again later") from error
        if isinstance(error, _NOT_AN_API) and not isinstance(error, BadInput):
            raise BadInput(
                f"catalogue {self.text}: this is not a STAC API with item search; "
                "download a static catalogue and give its folder"
            ) from error


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
