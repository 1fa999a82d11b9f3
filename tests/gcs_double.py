"""A double of Google Cloud Storage's JSON API on loopback: strict about preconditions and checksums, with faults."""

import base64
import collections
import contextlib
import dataclasses
import datetime as dt
import email
import hashlib
import http.server
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import google_crc32c

GRANULE = 256 << 10  # of every chunk of a resumable upload but the last
NO_BUCKET = "The specified bucket does not exist."
EPOCH = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@dataclasses.dataclass
class Reply:
    """An answer. cut: so many bytes of the body, then the connection is reset. pause_s: between single bytes."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    cut: int | None = None
    pause_s: float = 0.0


@dataclasses.dataclass
class Request:
    """A request. kind: what it asks for, as `Double.asked` counts it. keep: bytes of a chunk that arrive, None: all."""

    method: str
    path: list[str]
    query: dict[str, str]
    headers: Any
    body: bytes
    kind: str = ""
    keep: int | None = None


# Given the request and what carries it out; None resets the connection without an answer.
Fault = Callable[[Request, Callable[[], Reply]], Reply | None]


def error(status: int, reason: str = "", message: str = "") -> Reply:
    what = {"code": status, "message": message or reason or str(status), "errors": [{"reason": reason}]}
    return Reply(status, json.dumps({"error": what}).encode(), {"Content-Type": "application/json"})


def status(code: int, reason: str = "backendError") -> Fault:
    """An error in place of the work."""
    return lambda _request, _run: error(
        code, reason, f"at https://host/?upload_id=SECRET for someone@example.com {reason}"
    )


def reset(_request: Request, _run: Callable[[], Reply]) -> None:
    """The connection breaks before anything is done."""


def lost(_request: Request, run: Callable[[], Reply]) -> None:
    """The work is done, and nobody hears of it."""
    run()


def done_but(code: int) -> Fault:
    """The work is done, and the answer is an error."""

    def fault(_request: Request, run: Callable[[], Reply]) -> Reply:
        run()
        return error(code, "backendError")

    return fault


def cut(n: int) -> Fault:
    """The answer's body breaks off after n bytes."""
    return lambda _request, run: dataclasses.replace(run(), cut=n)


def slow(pause_s: float) -> Fault:
    """The answer's body comes byte by byte."""
    return lambda _request, run: dataclasses.replace(run(), pause_s=pause_s)


def flipped(at: int) -> Fault:
    """One bit of the answer's body is another."""

    def fault(_request: Request, run: Callable[[], Reply]) -> Reply:
        reply = run()
        body = bytearray(reply.body)
        body[at] ^= 1
        return dataclasses.replace(reply, body=bytes(body))

    return fault


def damaged(old: bytes, new: bytes) -> Fault:
    """What is sent arrives with other bytes."""

    def fault(request: Request, run: Callable[[], Reply]) -> Reply:
        assert old in request.body and len(old) == len(new)
        request.body = request.body.replace(old, new)
        return run()

    return fault


def meanwhile(act: Callable[[], object]) -> Fault:
    """Something else happens first."""

    def fault(_request: Request, run: Callable[[], Reply]) -> Reply:
        act()
        return run()

    return fault


def kept(n: int, answered: bool = True) -> Fault:
    """Of a chunk only the first n bytes arrive."""

    def fault(request: Request, run: Callable[[], Reply]) -> Reply | None:
        request.keep = n
        reply = run()
        return reply if answered else None

    return fault


@dataclasses.dataclass
class Object:
    data: bytes
    generation: int
    properties: dict[str, Any]
    components: int | None = None

    @property
    def crc32c(self) -> str:
        return base64.b64encode(google_crc32c.Checksum(self.data).digest()).decode()


@dataclasses.dataclass
class Session:
    """A resumable upload. done: the object that it became."""

    bucket: str
    properties: dict[str, Any]
    query: dict[str, str]
    data: bytearray = dataclasses.field(default_factory=bytearray)
    done: Reply | None = None


class Refused(Exception):
    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


class Double:
    """The service.

    Attributes:
      buckets: name -> objects by name. settings: of each bucket, as `GET /b/<bucket>` gives them, and `granted`.
      asked: how often each kind of request came. log: (kind, object) in their order.
      faults: kind -> what happens to its next requests, one each. always: to those that have none there.
      unlisted: object -> how many listings still leave it out. sessions: resumable uploads that were not given up, by
      id. connections: how many were opened.
    """

    def __init__(self) -> None:
        self.buckets: dict[str, dict[str, Object]] = {}
        self.settings: dict[str, dict[str, Any]] = collections.defaultdict(dict)
        self.asked: collections.Counter[str] = collections.Counter()
        self.log: list[tuple[str, str]] = []
        self.faults: dict[str, collections.deque[Fault]] = collections.defaultdict(collections.deque)
        self.always: dict[str, Fault] = {}
        self.unlisted: dict[str, int] = {}
        self.sessions: dict[str, Session] = {}
        self.connections = 0
        self._lock = threading.RLock()
        self._generation = int(EPOCH.timestamp() * 1e6)
        self.url = ""

    @property
    def unfinished(self) -> list[str]:
        """Objects whose upload was begun, and neither ended nor given up."""
        return [s.properties["name"] for s in self.sessions.values() if not s.done]

    def then(self, kind: str, *faults: Fault) -> None:
        """What happens to the next requests of a kind, one each."""
        self.faults[kind].extend(faults)

    def put(self, bucket: str, name: str, data: bytes) -> int:
        """Writes an object as somebody else would; its generation."""
        with self._lock:
            self._generation += 1
            self.buckets[bucket][name] = Object(data, self._generation, {})
            return self._generation

    def answer(self, request: Request) -> Reply | None:
        try:
            request.kind, name, work = self._routed(request)
        except Refused as e:
            return e.reply

        def run() -> Reply:
            try:
                with self._lock:
                    return work()
            except Refused as e:
                return e.reply

        with self._lock:
            self.asked[request.kind] += 1
            self.log.append((request.kind, name))
            waiting = self.faults[request.kind]
            fault = waiting.popleft() if waiting else self.always.get(request.kind)
        return fault(request, run) if fault else run()

    def _routed(self, request: Request) -> tuple[str, str, Callable[[], Reply]]:
        path, query, method = request.path, request.query, request.method
        if path[:4] == ["upload", "storage", "v1", "b"] and path[5:] == ["o"]:
            return self._routed_upload(request, path[4])
        if path[:1] == ["download"]:
            path = path[1:]
        if path[:3] != ["storage", "v1", "b"]:
            if method in ("GET", "HEAD") and len(path) > 1:  # as plain readers ask
                name = "/".join(path[1:])
                return "get", name, lambda: self._get(request, path[0], name)
            raise Refused(error(404, "notFound"))
        bucket, rest = path[3], path[4:]
        if not rest:
            return "bucket", "", lambda: self._bucket(bucket)
        if rest == ["iam", "testPermissions"]:
            return "rights", "", lambda: self._rights(request, bucket)
        if rest == ["o"]:
            return "list", query.get("prefix", ""), lambda: self._list(bucket, query)
        name = rest[1]
        if rest[2:] == ["compose"]:
            return "compose", name, lambda: self._compose(request, bucket, name)
        if rest[2:3] in (["copyTo"], ["rewriteTo"]):
            return "copy", name, lambda: self._copy(request, bucket, name, rest[2], rest[4], rest[6])
        if method == "DELETE":
            return "delete", name, lambda: self._delete(query, bucket, name)
        if query.get("alt") == "media":
            return "get", name, lambda: self._get(request, bucket, name)
        return "stat", name, lambda: described(bucket, name, self._found(query, bucket, name))

    def _objects(self, bucket: str) -> dict[str, Object]:
        if bucket not in self.buckets:
            raise Refused(error(404, "notFound", NO_BUCKET))
        return self.buckets[bucket]

    def _check(self, query: dict[str, str], old: Object | None, prefix: str = "if") -> None:
        generation, meta = (old.generation, 1) if old else (0, 0)
        for field, is_so in (
            ("GenerationMatch", lambda v: v == generation),
            ("GenerationNotMatch", lambda v: v != generation),
            ("MetagenerationMatch", lambda v: v == meta),
            ("MetagenerationNotMatch", lambda v: v != meta),
        ):
            if prefix + field in query and not is_so(int(query[prefix + field])):
                raise Refused(error(412, "conditionNotMet", "At least one of the pre-conditions did not hold."))

    def _found(self, query: dict[str, str], bucket: str, name: str) -> Object:
        found = self._objects(bucket).get(name)
        if found is None or query.get("generation", str(found.generation)) != str(found.generation):
            raise Refused(error(404, "notFound", f"No such object: {bucket}/{name}"))
        self._check(query, found)
        return found

    def _write(
        self, query: dict[str, str], bucket: str, properties: dict[str, Any], data: bytes, components: int | None = None
    ) -> Reply:
        name = properties.get("name") or query["name"]
        objects = self._objects(bucket)
        self._check(query, objects.get(name))
        made = Object(data, self._generation + 1, dict(properties), components)
        md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
        for field, right in (("crc32c", made.crc32c), ("md5Hash", md5)):
            if properties.get(field) not in (None, right):
                raise Refused(error(400, "invalid", f"Provided {field} doesn't match calculated {field}."))
        self._generation += 1
        objects[name] = made
        return described(bucket, name, made)

    def _routed_upload(self, request: Request, bucket: str) -> tuple[str, str, Callable[[], Reply]]:
        query, how = request.query, request.query.get("uploadType")
        session = self.sessions.get(query.get("upload_id", ""))
        if "upload_id" in query:
            if session is None:
                return "chunk", "", lambda: error(404, "notFound", "no such upload")
            name = session.properties.get("name", "")
            if request.method == "DELETE":
                return "cancel", name, lambda: self._cancel(query)
            told = re.fullmatch(r"bytes (?:\*|(\d+)-(\d+))/(\*|\d+)", request.headers["Content-Range"])
            kind = "ask" if told[1] is None else "chunk" if told[3] == "*" else "finish"
            return kind, name, lambda: self._chunk(request, session, told)
        if how == "resumable":
            properties = json.loads(request.body or b"{}")
            name = properties.get("name") or query["name"]
            return "start", name, lambda: self._start(request, bucket, {**properties, "name": name})
        if how == "multipart":
            return "upload", query.get("name", ""), lambda: self._write(query, bucket, *multipart(request))
        given = {"name": query["name"], "contentType": request.headers.get("Content-Type")}
        return "upload", query["name"], lambda: self._write(query, bucket, given, request.body)

    def _start(self, request: Request, bucket: str, properties: dict[str, Any]) -> Reply:
        self._check(request.query, self._objects(bucket).get(properties["name"]))
        upload = f"SECRET{len(self.log)}"
        kind = request.headers.get("X-Upload-Content-Type")
        self.sessions[upload] = Session(bucket, {"contentType": kind, **properties}, request.query)
        where = f"{self.url}/upload/storage/v1/b/{quote(bucket)}/o?uploadType=resumable&upload_id={upload}"
        return Reply(200, headers={"Location": where})

    def _cancel(self, query: dict[str, str]) -> Reply:
        del self.sessions[query["upload_id"]]
        return Reply(499)

    def _chunk(self, request: Request, session: Session, told: re.Match[str]) -> Reply:
        if session.done:
            return session.done
        if told[1] is not None:
            first, data = int(told[1]), request.body
            if int(told[2]) - first + 1 != len(data) or (told[3] == "*" and len(data) % GRANULE):
                return error(400, "badRequest")
            if first > len(session.data):
                return error(503, "backendError")
            session.data[first:] = data if request.keep is None else data[: request.keep]
        if told[3] != "*" and len(session.data) == int(told[3]):
            given = re.search(r"crc32c=([^,]+)", request.headers.get("X-Goog-Hash", ""))
            properties = {**session.properties, **({"crc32c": given[1]} if given else {})}
            session.done = self._write(session.query, session.bucket, properties, bytes(session.data))
            return session.done
        return Reply(308, headers={"Range": f"bytes=0-{len(session.data) - 1}"} if session.data else {})

    def _get(self, request: Request, bucket: str, name: str) -> Reply:
        found = self._found(request.query, bucket, name)
        md5 = base64.b64encode(hashlib.md5(found.data).digest()).decode()
        headers = {
            "Content-Type": found.properties.get("contentType") or "application/octet-stream",
            "X-Goog-Generation": str(found.generation),
            "X-Goog-Hash": f"crc32c={found.crc32c},md5={md5}",
        }
        told = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range") or "")
        if not told:
            return Reply(200, found.data, headers)
        size = len(found.data)
        first = int(told[1]) if told[1] else max(0, size - int(told[2]))
        end = min(size, int(told[2]) + 1) if told[1] and told[2] else size
        if first >= size:
            return error(416, "requestedRangeNotSatisfiable")
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
        return Reply(206, found.data[first:end], headers)

    def _list(self, bucket: str, query: dict[str, str]) -> Reply:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        after = base64.b64decode(query.get("pageToken", "")).decode()
        most, items, prefixes = int(query.get("maxResults", 1000)), [], []
        token = last = ""
        for name, found in sorted(self._objects(bucket).items()):
            if not name.startswith(prefix):
                continue
            left = self.unlisted.get(name, 0)
            if left:
                self.unlisted[name] = left - 1
                continue
            folder, inside, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            key = prefix + folder + inside if inside else name
            if key <= after or key in prefixes:
                continue
            if len(items) + len(prefixes) == most:
                token = base64.b64encode(last.encode()).decode()
                break
            last = key
            if inside:
                prefixes.append(key)
            else:
                items.append(json.loads(described(bucket, name, found).body))
        answer: dict[str, Any] = {"kind": "storage#objects"}
        answer |= {"items": items} if items else {}
        answer |= {"prefixes": prefixes} if prefixes else {}
        answer |= {"nextPageToken": token} if token else {}
        return as_json(chosen(answer, query.get("fields")))

    def _compose(self, request: Request, bucket: str, name: str) -> Reply:
        asked = json.loads(request.body)
        objects, parts, components = self._objects(bucket), [], 0
        if not 1 <= len(asked["sourceObjects"]) <= 32:
            return error(400, "invalid", "The number of source components provided exceeds the maximum (32)")
        for source in asked["sourceObjects"]:
            found = objects.get(source["name"])
            generation = source.get("generation")
            if found is None or str(generation or found.generation) != str(found.generation):
                return error(404, "notFound", f"No such object: {bucket}/{source['name']}")
            wanted = {k: str(v) for k, v in source.get("objectPreconditions", {}).items()}
            self._check(wanted, found)
            parts.append(found.data)
            components += found.components or 1
        properties = {**asked.get("destination", {}), "name": name}
        return self._write(request.query, bucket, properties, b"".join(parts), components)

    def _copy(self, request: Request, bucket: str, name: str, verb: str, bucket2: str, name2: str) -> Reply:
        source = self._objects(bucket).get(name)
        if source is None:
            return error(404, "notFound", f"No such object: {bucket}/{name}")
        self._check(request.query, source, "ifSource")
        properties = {**source.properties, **json.loads(request.body or b"{}"), "name": name2}
        reply = self._write(request.query, bucket2, properties, source.data, source.components)
        if verb == "copyTo":
            return reply
        size = len(source.data)
        return as_json(
            {"done": True, "objectSize": size, "totalBytesRewritten": size, "resource": json.loads(reply.body)}
        )

    def _delete(self, query: dict[str, str], bucket: str, name: str) -> Reply:
        self._found(query, bucket, name)
        del self.buckets[bucket][name]
        return Reply(204)

    def _bucket(self, bucket: str) -> Reply:
        self._objects(bucket)
        usual = {"name": bucket, "location": "EUROPE-WEST4", "locationType": "region", "storageClass": "STANDARD"}
        return as_json({**usual, **{k: v for k, v in self.settings[bucket].items() if k != "granted"}})

    def _rights(self, request: Request, bucket: str) -> Reply:
        self._objects(bucket)
        asked = request.query["permissions"].split("\n")
        granted = self.settings[bucket].get("granted", asked)
        return as_json({"permissions": [p for p in asked if p in granted]})


def described(bucket: str, name: str, found: Object) -> Reply:
    when = EPOCH + dt.timedelta(microseconds=found.generation - int(EPOCH.timestamp() * 1e6))
    fields = {
        **found.properties,
        "bucket": bucket,
        "name": name,
        "size": str(len(found.data)),
        "generation": str(found.generation),
        "metageneration": "1",
        "crc32c": found.crc32c,
        "updated": when.isoformat().replace("+00:00", "Z"),
        "timeCreated": when.isoformat().replace("+00:00", "Z"),
    }
    return as_json(fields | ({"componentCount": found.components} if found.components else {}))


def as_json(value: Any) -> Reply:
    return Reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})


def chosen(answer: dict[str, Any], fields: str | None) -> dict[str, Any]:
    """A listing with only the fields that were asked for."""
    if not fields:
        return answer
    wanted = dict(re.findall(r"(\w+)(?:\(([^)]*)\))?", fields))
    kept = {k: v for k, v in answer.items() if k in wanted}
    inner = wanted.get("items", "")
    if inner and "items" in kept:
        kept["items"] = [{k: v for k, v in item.items() if k in inner.split(",")} for item in kept["items"]]
    return kept


def multipart(request: Request) -> tuple[dict[str, Any], bytes]:
    """(properties, bytes) of a body with two parts."""
    boundary = email.message_from_string(f"Content-Type: {request.headers['Content-Type']}\n\n").get_param("boundary")
    _, first, second, _ = request.body.split(b"--" + str(boundary).encode())
    told, _, data = second.partition(b"\r\n\r\n")
    properties = json.loads(first.partition(b"\r\n\r\n")[2])
    kind = email.message_from_bytes(told.lstrip()).get_content_type()
    return {"contentType": kind, **properties}, data[:-2]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    double: Double

    def setup(self) -> None:
        super().setup()
        self.double.connections += 1

    def log_message(self, *_: object) -> None:
        pass

    def do_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        at = urlsplit(self.path)
        query: dict[str, str] = {}
        for key, value in parse_qsl(at.query, keep_blank_values=True):
            query[key] = f"{query[key]}\n{value}" if key in query else value
        path = [unquote(piece) for piece in at.path[1:].split("/")]
        reply = self.double.answer(Request(self.command, path, query, self.headers, body))
        if reply is None:
            return self.cut_off()
        head = [f"HTTP/1.1 {reply.status} x", f"Content-Length: {len(reply.body)}"]
        head += [f"{k}: {v}" for k, v in reply.headers.items()]
        data = b"" if self.command == "HEAD" else reply.body
        self.wfile.write("\r\n".join([*head, "", ""]).encode() + (b"" if reply.pause_s else data[: reply.cut]))
        if reply.pause_s:
            for n in range(len(data)):
                self.wfile.write(data[n : n + 1])
                time.sleep(reply.pause_s)
        if reply.cut is not None:
            self.cut_off()
        return None

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_any  # noqa: N815

    def cut_off(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, ValueError, OSError):  # whoever asked has gone
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


@contextlib.contextmanager
def running(*buckets: str) -> Iterator[Double]:
    """A double with these empty buckets; its `url` is what STORAGE_EMULATOR_HOST is set to."""
    double = Double()
    double.buckets = {b: {} for b in buckets}
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"double": double}))
    double.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield double
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
