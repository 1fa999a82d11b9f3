"""CMR: NASA's granule search, asked for OPERA's bursts of a tile."""

import json
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from model.errors import BadInput
from transforms import grid
from transforms.catalogs.exchange import NoAnswer, Patience, Server
from transforms.catalogs.headers import Headers
from transforms.catalogs.hrefs import is_remote
from transforms.catalogs.items import Found, datetime_of
from transforms.catalogs.opera import CMR_URL, CONCEPT, PROVIDER, SOURCE, granules_in, item_of
from transforms.periods import Period

PAGE_GRANULES = 500  # CMR gives up to 2,000, of some 8 kB each
LEAST_PAGE = 25  # below this a page that fails is not too large
AFTER = "CMR-Search-After"  # header that leads from page to page; its absence is the end
HITS = "CMR-Hits"
# Granules are sorted by provider and start anyhow (CMR search documentation); the name settles bursts of one instant.
SORT = ("start_date", "granule_ur")
PATIENCE = Patience(answer_s=90.0)  # CMR allows itself 180 s; a smaller page comes sooner than that


class CmrCatalog:
    """OPERA RTC-S1 in CMR, searched by tile; files' headers are read once for each burst.

    Attributes:
      text: as the user gave it. root: URL prefix of the search. ignored: what was passed over, with counts.
    """

    def __init__(self, text: str, url: str) -> None:
        self.text, self.root = text, url.rstrip("/")
        self.ignored: dict[str, int] = {}
        self._headers = Headers(self.root)
        self._server = Server(PATIENCE)

    def items(self, tile: grid.Tile, period: Period) -> Iterator[Found]:
        """Yields every burst of the tile's bbox in the period once, by start, then by name.

        Raises:
          BadInput: CMR does not answer, answers with less than it counts, or pages in circles.
        """
        shape = grid.footprint(tile)
        boxes = [part.bounds for part in getattr(shape, "geoms", [shape])]
        found = {}
        for box in boxes:
            for granule in self._granules(box, period):
                item = item_of(granule)
                if item is None:
                    self._ignore("granules that are no RTC-S1 burst")
                elif (when := datetime_of(item)) is None:
                    self._ignore("granules without time")
                elif period.start <= when.date() <= period.end:
                    found[(when, item["id"])] = item
        for place, key in enumerate(sorted(found)):
            location = f"{self.root}/{found[key]['id']}"
            filled, against = self._headers.fill(found[key], location)
            yield Found(filled, location, SOURCE, place, against)

    def span(self) -> str:
        """Nothing is known of CMR's dates without asking it for everything."""
        return ""

    def _ignore(self, what: str) -> None:
        self.ignored[what] = self.ignored.get(what, 0) + 1

    def _granules(self, box: tuple[float, ...], period: Period) -> list[Mapping[str, Any]]:
        """Everything in the box, with pages halved as long as they fail."""
        page = PAGE_GRANULES
        while True:
            least = page // 2 < LEAST_PAGE
            try:
                return self._search(box, period, page, None if least else self._server.patience.size_tries)
            except NoAnswer as e:
                if least or not e.heavy:
                    raise e.refusal(self.text, f", with pages of {page}" if e.heavy else "") from None
                page //= 2

    def _search(self, box: tuple[float, ...], period: Period, page: int, tries: int | None) -> list[Mapping[str, Any]]:
        query = {
            "collection_concept_id": CONCEPT,
            "bounding_box": ",".join(f"{v:.6f}" for v in box),
            "temporal": f"{period.start}T00:00:00Z,{period.end}T23:59:59.999Z",
            "page_size": page,
            "sort_key[]": SORT,
        }
        url = f"{self.root}/granules.umm_json?{urllib.parse.urlencode(query, doseq=True)}"
        granules: dict[str, Mapping[str, Any]] = {}
        after: str | None = None
        while True:
            record, said = self._server.exchange(url, tries=tries, sent={AFTER: after} if after else None)
            before = len(granules)
            granules |= {json.dumps(g.get("meta") or g, sort_keys=True): g for g in granules_in(record)}
            after = said.get(AFTER)
            hits = said.get(HITS) or str(record.get("hits") if isinstance(record, dict) else "")
            if after is None or not hits.isdigit() or len(granules) >= int(hits):
                break
            if len(granules) == before:
                raise BadInput(f"catalogue {self.text}: its pages go in circles")
        if not hits.isdigit():
            raise BadInput(f"catalogue {self.text}: this is not CMR's search for granules; check the URL")
        if len(granules) != int(hits):  # CMR cuts answers that take it too long, with a warning in a header
            raise NoAnswer(f"it counts {hits} granules and gave {len(granules)}", 200, 1, heavy=True)
        return list(granules.values())


def cmr_catalog(text: str, provider: str | None) -> CmrCatalog | None:
    """CMR for `opera`, its source's name, or a URL with `--as opera` (a mirror); None for anything else.

    Raises:
      BadInput: another provider's `--as`, or a URL with a query or a user name.
    """
    if text in (PROVIDER, SOURCE.name):
        if provider not in (None, PROVIDER):
            raise BadInput(f"--catalog {text} --as {provider}: what {PROVIDER} serves follows its own description")
        return CmrCatalog(text, CMR_URL)
    if provider == PROVIDER and is_remote(text):
        parts = urllib.parse.urlsplit(text)
        if parts.scheme not in ("http", "https") or parts.query or parts.fragment or "@" in parts.netloc:
            raise BadInput(f"catalogue at {parts.hostname}: give its URL over HTTP, without query and user name")
        return CmrCatalog(text, text)
    return None
