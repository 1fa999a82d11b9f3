"""Faulty API: a STAC API on the loopback that pages, counts and trims, and misbehaves as a test asks it to."""

import collections
import contextlib
import copy
import datetime as dt
import functools
import json
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CORE = "https://api.stacspec.org/v1.0.0"
CLASSES = [f"{CORE}/core", f"{CORE}/item-search", f"{CORE}/collections"]
FIELDS = f"{CORE}/item-search#fields"
QUERY = f"{CORE}/item-search#query"


@functools.cache
def _when(text):
    return dt.datetime.fromisoformat(text)


class Api:
    """What the server holds and does; tests set its attributes.

    Attributes:
      items: STAC items; hrefs may hold HERE for the server's own URL.
      counts: whether it says numberMatched. page: most items of a page.
      fields: "" (not offered), "yes", "refused" (offered, then 400), "greedy" (assets are left out altogether).
      query: "" (not offered), "yes", "ignored" (offered, then not heeded), "refused" (offered, then 400).
      window: items that it pages through; a page beyond is a 400, and it counts no further.
      answer_bytes: a longer answer is a 502, as behind a gateway.
      fault: (search body, how often this very body came before) -> None, or one of the answers below.
      pages: what a search's features become, (features of all pages as lists) -> the same.
      searches: bodies that came, in order. most: of them at once.
    """

    def __init__(self, items):
        self.items, self.counts, self.page, self.fields = items, True, 10, ""
        self.query = ""
        self.window, self.answer_bytes = 10_000, 1 << 30
        self.fault = lambda _body, _before: None
        self.pages = lambda pages: pages
        self.matched = lambda n: n
        self.circle = False
        self.searches, self.now, self.most = [], 0, 0
        self.lock = threading.Lock()
        self.before = collections.Counter()
        self.gate = threading.Event()  # what answers of `stall` wait for

    def found(self, body):
        first, last = (dt.datetime.fromisoformat(t) for t in body["datetime"].split("/"))
        west, south, east, north = body["bbox"]
        wanted = body.get("query", {}) if self.query == "yes" else {}
        return [
            i
            for i in self.items
            if i["collection"] in body["collections"]
            and first <= _when(i["properties"]["datetime"]) <= last
            and all(i["properties"].get(name) in said["in"] for name, said in wanted.items())
            and i["bbox"][0] <= east and i["bbox"][2] >= west and i["bbox"][1] <= north and i["bbox"][3] >= south
        ]  # fmt: skip


def status(code, **headers):
    """An error with a JSON body."""
    return lambda handler: handler.answer({"code": str(code)}, code, headers)


def html(handler):
    """A page for people, with status 200."""
    handler.raw(b"<html><body>Down for maintenance</body></html>", "text/html")


def empty(handler):
    handler.raw(b"", "application/json")


def reset(handler):
    """The connection is torn down without an answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def cut(handler):
    """Less than Content-Length says."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.wfile.write(b'{"type": "FeatureCollection", "features": []}')
    handler.close_connection = True


def stall(handler):
    """Nothing, until the test is over."""
    handler.api.gate.wait()
    handler.close_connection = True


def drip(handler):
    """A byte now and then: no single wait is long, and there is no end."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    with contextlib.suppress(OSError):
        while not handler.api.gate.wait(0.02):
            handler.wfile.write(b" ")
    handler.close_connection = True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    api: Api

    def do_GET(self):
        url = f"http://{self.headers['Host']}"
        if self.path == "/":
            links = [
                {"rel": "search", "href": f"{url}/search", "method": "POST", "type": "application/geo+json"},
                {"rel": "data", "href": f"{url}/collections"},
            ]
            classes = [*CLASSES, *([FIELDS] if self.api.fields else []), *([QUERY] if self.api.query else [])]
            self.answer({"type": "Catalog", "id": "faulty", "conformsTo": classes, "links": links})
        elif self.path == "/collections":
            self.answer({"collections": [{"id": i} for i in sorted({i["collection"] for i in self.api.items})]})
        else:
            self.answer({}, 404)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        api, key = self.api, json.dumps(body, sort_keys=True)
        with api.lock:
            api.searches.append(body)
            api.now += 1
            api.most = max(api.most, api.now)
            before = api.before[key]
            api.before[key] += 1
        try:
            fault = api.fault(body, before)
            if fault is not None:
                fault(self)
            else:
                self.search(body)
        finally:
            with api.lock:
                api.now -= 1

    def search(self, body):
        api, url = self.api, f"http://{self.headers['Host']}"
        if "fields" in body and api.fields == "refused":
            self.answer({"description": "unknown word: fields"}, 400)
            return
        if "query" in body and api.query == "refused":
            self.answer({"description": "unknown word: query"}, 400)
            return
        found, size = api.found(body), min(body["limit"], api.page)
        pages = api.pages([found[n : n + size] for n in range(0, len(found), size)]) or [[]]
        n = int(body.get("token", 0))
        if n * size >= api.window:
            self.answer({"description": "Result window is too large"}, 400)
            return
        links = []
        if n + 1 < len(pages) or api.circle:
            token = str(n if api.circle else n + 1)
            links = [{"rel": "next", "href": f"{url}/search", "method": "POST", "body": body | {"token": token}}]
        features = [self.given(item, body.get("fields")) for item in pages[n]]
        page = {"type": "FeatureCollection", "features": features, "links": links}
        if api.counts:
            page["numberMatched"] = api.matched(min(len(found), api.window))
        data = json.dumps(page).replace("HERE", url).encode()
        if len(data) > api.answer_bytes:
            self.answer({"message": "Internal server error"}, 502)
        else:
            self.raw(data, "application/geo+json")

    def given(self, item, fields):
        if fields is None:
            return item
        wanted = {name.partition(".")[2] for name in fields["include"] if name.startswith("assets.")}
        item = copy.copy(item)
        item["assets"] = {} if self.api.fields == "greedy" else {k: v for k, v in item["assets"].items() if k in wanted}
        item.pop("links", None)
        return item

    def answer(self, said, code=200, headers=()):
        self.raw(json.dumps(said).encode(), "application/json", code, headers)

    def raw(self, data, kind, code=200, headers=()):
        self.send_response(code)
        for name, value in dict(headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        return


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        """Clients that hang up are part of the tests."""


@contextlib.contextmanager
def faulty_api(items):
    """Gives (URL, Api) while the context lasts."""
    api = Api(items)
    with Server(("127.0.0.1", 0), type("Bound", (Handler,), {"api": api})) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", api
        finally:
            api.gate.set()
            server.shutdown()
            thread.join()
