"""API: a planet's catalogue served on the loopback as a STAC API with paging, its files with byte ranges."""

import base64
import contextlib
import functools
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.demo.index import Entry, Index, Json, RequestError, read_index, search

PAGE = 10  # items a page where the client does not say; small, so that every search pages
MAX_PAGE = 100  # Earth Search: larger pages run into its 6 MB limit
_CHUNK_BYTES = 1 << 20
CONFORMANCE = (
    "https://api.stacspec.org/v1.0.0/core",
    "https://api.stacspec.org/v1.0.0/collections",
    "https://api.stacspec.org/v1.0.0/ogcapi-features",
    "https://api.stacspec.org/v1.0.0/item-search",
    "https://api.stacspec.org/v1.0.0/item-search#query",
    "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/core",
    "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/geojson",
)


def served_item(entry: Entry, url: str) -> Json:
    """The item as the API gives it: links and assets with absolute URLs of the server at `url`."""
    item = entry.item
    home = f"{url}/collections/{item['collection']}"
    links = [
        {"rel": "self", "type": "application/geo+json", "href": f"{home}/items/{item['id']}"},
        {"rel": "collection", "type": "application/json", "href": home},
        {"rel": "parent", "type": "application/json", "href": home},
        {"rel": "root", "type": "application/json", "href": url},
    ]
    assets = {
        key: asset | {"href": f"{url}/files/{entry.folder}/{asset['href'].removeprefix('./')}"}
        for key, asset in item["assets"].items()
    }
    return item | {"links": links, "assets": assets}


def _page(index: Index, url: str, path: str, asked: Mapping[str, Any], posted: bool) -> Json:
    """One page of a search, with the link to the next one, which repeats the request from a token on."""
    try:
        limit = min(int(asked.get("limit") or PAGE), MAX_PAGE)
        start = int(base64.urlsafe_b64decode(asked["token"]).decode()) if asked.get("token") else 0
    except ValueError:
        raise RequestError(400, "limit and token must be those of a link of this server") from None
    if limit < 1 or start < 0:
        raise RequestError(400, f"limit {limit}: it must be at least 1")
    found = list(search(index, asked))
    shown = found[start : start + limit]
    links: list[Json] = [{"rel": "root", "type": "application/json", "href": url}]
    if start + limit < len(found):
        token = base64.urlsafe_b64encode(str(start + limit).encode()).decode()
        link: Json = {"rel": "next", "type": "application/geo+json", "href": f"{url}{path}"}
        if posted:
            links.append(link | {"method": "POST", "body": {**asked, "limit": limit, "token": token}})
        else:
            plain = {k: v if isinstance(v, str) else _written(k, v) for k, v in asked.items()}
            query = urllib.parse.urlencode({**plain, "limit": limit, "token": token})
            links.append(link | {"method": "GET", "href": f"{link['href']}?{query}"})
    return {
        "type": "FeatureCollection",
        "features": [served_item(entry, url) for entry in shown],
        "links": links,
        "numberMatched": len(found),
        "numberReturned": len(shown),
    }


def _written(key: str, value: Any) -> str:
    """A parameter as a GET request has it: lists with commas, objects as JSON."""
    return json.dumps(value) if key in ("query", "intersects") else ",".join(str(v) for v in value)


def _read(parameters: Mapping[str, str]) -> Json:
    """GET parameters as a POST body has them."""
    asked: Json = dict(parameters)
    for key in ("bbox", "collections", "ids"):
        if key in asked:
            asked[key] = asked[key].split(",")
    for key in ("query", "intersects"):
        if key in asked:
            try:
                asked[key] = json.loads(asked[key])
            except ValueError:
                raise RequestError(400, f"{key} {asked[key]!r} is not JSON") from None
    return asked


def respond(index: Index, url: str, path: str, asked: Mapping[str, Any], posted: bool = False) -> Json:
    """The JSON of one request, `path` without the server's URL.

    Raises:
      RequestError: nothing there, or a request that cannot be read.
    """
    parts = [urllib.parse.unquote(p) for p in path.split("/") if p]
    if not parts:
        return _landing(index, url)
    if parts == ["conformance"]:
        return {"conformsTo": list(CONFORMANCE)}
    if parts == ["search"]:
        return _page(index, url, "/search", asked, posted)
    if parts == ["collections"]:
        every = [_collection(index, url, name) for name in index.collections]
        return {"collections": every, "links": [{"rel": "root", "type": "application/json", "href": url}]}
    if parts[0] == "collections" and parts[1] in index.collections:
        match parts[2:]:
            case []:
                return _collection(index, url, parts[1])
            case ["items"]:
                return _page(index, url, f"/collections/{parts[1]}/items", {**asked, "collections": [parts[1]]}, False)
            case ["items", id_]:
                for entry in search(index, {"collections": [parts[1]], "ids": [id_]}):
                    return served_item(entry, url)
    raise RequestError(404, f"{path}: not here")


def _landing(index: Index, url: str) -> Json:
    search_link = {"rel": "search", "type": "application/geo+json", "href": f"{url}/search"}
    links = [
        {"rel": "self", "type": "application/json", "href": url},
        {"rel": "root", "type": "application/json", "href": url},
        {"rel": "conformance", "type": "application/json", "href": f"{url}/conformance"},
        {"rel": "data", "type": "application/json", "href": f"{url}/collections"},
        search_link | {"method": "GET"},
        search_link | {"method": "POST"},
        *(
            {"rel": "child", "type": "application/json", "href": f"{url}/collections/{name}"}
            for name in index.collections
        ),
    ]
    return {**index.root, "conformsTo": list(CONFORMANCE), "links": links}


def _collection(index: Index, url: str, name: str) -> Json:
    home = f"{url}/collections/{name}"
    links = [
        {"rel": "self", "type": "application/json", "href": home},
        {"rel": "root", "type": "application/json", "href": url},
        {"rel": "parent", "type": "application/json", "href": url},
        {"rel": "items", "type": "application/geo+json", "href": f"{home}/items"},
    ]
    return {**index.collections[name], "links": links}


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First and last byte that a Range header asks for, or None for the whole file.

    Raises:
      RequestError: a range outside the file, with status 416. Several ranges get the whole file, as RFC 9110 allows.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if match is None or match[0] == "bytes=-":
        return None
    if match[1]:
        first, last = int(match[1]), min(int(match[2]) if match[2] else size - 1, size - 1)
    else:
        first, last = max(0, size - int(match[2])), size - 1
    if first > last:
        raise RequestError(416, f"{header}: the file has {size} bytes")
    return first, last


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers one client; the index is only read, so threads share it."""

    protocol_version = "HTTP/1.1"  # a reader keeps its connection for all ranges of a file
    disable_nagle_algorithm = True  # header and body leave in two writes; without this each answer waits 40 ms

    def __init__(self, index: Index, *args: Any) -> None:
        self.index = index
        super().__init__(*args)

    def do_GET(self) -> None:
        self._answer(posted=False)

    def do_HEAD(self) -> None:
        self._answer(posted=False)

    def do_POST(self) -> None:
        self._answer(posted=True)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: the demo's output is the run's."""

    def _answer(self, posted: bool) -> None:
        host, port = self.connection.getsockname()[:2]
        url = f"http://{host}:{port}"
        parts = urllib.parse.urlsplit(self.path)
        try:
            if parts.path.startswith("/files/"):
                self._file(parts.path.removeprefix("/files/"))
                return
            if posted:
                try:
                    asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
                except ValueError:
                    raise RequestError(400, "the body is not JSON") from None
            else:
                asked = _read(dict(urllib.parse.parse_qsl(parts.query)))
            self._json(200, respond(self.index, url, parts.path, asked, posted))
        except RequestError as e:
            self._json(e.status, {"code": str(e.status), "description": e.description})

    def _json(self, status: int, value: Json) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/geo+json" if "features" in value else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _file(self, name: str) -> None:
        path = (self.index.folder / urllib.parse.unquote(name)).resolve()
        if not path.is_relative_to(self.index.folder) or not path.is_file():
            raise RequestError(404, f"{name}: no such file")
        size = path.stat().st_size
        wanted = byte_range(self.headers.get("Range"), size)
        first, last = wanted or (0, size - 1)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Type", "image/tiff" if path.suffix in (".tif", ".tiff") else "application/json")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        if self.command == "HEAD":
            return
        with path.open("rb") as file:
            file.seek(first)
            left = last - first + 1
            while left > 0 and (chunk := file.read(min(left, _CHUNK_BYTES))):
                self.wfile.write(chunk)
                left -= len(chunk)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True  # a reader that holds a connection open does not hold up the end

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that hang up: GDAL does whenever it has read enough."""


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serves the catalogue in `folder` on a free port of the loopback while the context lasts; gives the API's URL.

    Raises:
      BadInput: there is no catalogue.
    """
    index = read_index(folder)
    with _Server(("127.0.0.1", 0), functools.partial(_Handler, index)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
