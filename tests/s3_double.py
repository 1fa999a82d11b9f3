"""A loopback road to moto's S3 server, on which a test plants faults and sees every request.

What moto 5.2 leaves out and S3 has (API reference of UploadPartCopy and CompleteMultipartUpload), the road adds: the
ETag that a copied source must have, the one that the object must have at the end of an upload, and NoSuchUpload.
"""

import contextlib
import dataclasses
import http.client
import importlib.machinery
import itertools
import os
import socket
import struct
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import google_crc32c
import pytest

from transforms import s3_calls
from transforms.s3_calls import client_of
from transforms.s3_parts import MIB
from transforms.storage import Source, open_store

KEY, SECRET, TOKEN = "AKIATESTONLY", "very+secret/key", "a-session-token"
_numbers = itertools.count()


def error(status, code):
    """An answer as S3 words it, with a name in it that nobody may repeat."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>of SECRETUSER</Message></Error>"
    return status, [("Content-Type", "application/xml")], body.encode()


class Seen:
    """A request: what it does, as boto3 names it, its path and query, headers in lower case, and body."""

    def __init__(self, method, target, headers, body):
        parts = urlsplit(target)
        self.path, self.query = parts.path, parse_qs(parts.query, keep_blank_values=True)
        self.headers, self.body = headers, body
        self.does = self._does(method)

    def _does(self, method):
        q, below = self.query, self.path.strip("/").count("/") > 0
        if method == "PUT" and "partNumber" in q:
            return "upload_part_copy" if "x-amz-copy-source" in self.headers else "upload_part"
        if method == "POST":
            names = {"uploads": "create_multipart_upload", "uploadId": "complete_multipart_upload"}
            return next((v for k, v in names.items() if k in q), "delete_objects")
        if method == "DELETE":
            return "abort_multipart_upload" if "uploadId" in q else "delete_object"
        if method == "GET" and not below:
            return (
                "list_multipart_uploads" if "uploads" in q else "list_objects_v2" if "list-type" in q else "get_bucket"
            )
        if not below:
            return f"{method.lower()}_bucket"
        return {"PUT": "put_object", "GET": "get_object", "HEAD": "head_object"}[method]


class Road:
    """Hands requests on to moto.

    Attributes:
      seen: every request, in order. faults: what happens to the next ones of an operation, first come first served,
        as functions of (request, handler, forward); None lets one through. rules: the same for all of an operation.
    """

    def __init__(self, host, port):
        self.seen, self.faults, self.rules, self._lock = [], {}, {}, threading.Lock()
        self._writes = threading.Lock()  # moto looks at conditions and writes in two steps, the service in one
        road = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_):
                pass

            def handle_any(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                seen = Seen(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                with road._lock:
                    road.seen.append(seen)
                    queue = road.faults.get(seen.does, [])
                    fault = queue.pop(0) if queue else road.rules.get(seen.does)

                def ask(method, path, body, left=()):
                    hop = http.client.HTTPConnection(host, port, timeout=60)
                    try:
                        left = {"connection", "expect", *left}
                        headers = {k: v for k, v in self.headers.items() if k.lower() not in left}
                        hop.request(method, path, body, headers)
                        answer = hop.getresponse()
                        return answer.status, answer.getheaders(), answer.read()
                    finally:
                        hop.close()

                def tag(path):
                    left = {k for k in seen.headers if k not in ("authorization", "host")}
                    return {k.lower(): v for k, v in ask("HEAD", path, None, left)[1]}.get("etag")

                def forward():
                    if seen.does == "upload_part_copy" and (wanted := seen.headers.get("x-amz-copy-source-if-match")):
                        found = tag("/" + seen.headers["x-amz-copy-source"].lstrip("/"))
                        if found != wanted:
                            return error(412, "PreconditionFailed") if found else error(404, "NoSuchKey")
                    last = seen.does == "complete_multipart_upload"
                    if last and seen.headers.get("if-match") not in (None, tag(seen.path)):
                        return error(412, "PreconditionFailed")
                    status, headers, answer = ask(self.command, self.path, body)
                    if last and status == 500:
                        return error(404, "NoSuchUpload")
                    return status, headers, answer

                if fault is None:
                    one_at_a_time = {"if-match", "if-none-match"} & set(seen.headers) and self.command != "GET"
                    with road._writes if one_at_a_time else contextlib.nullcontext():
                        answer = forward()
                    self.reply(*answer)
                else:
                    fault(seen, self, forward)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

            def reply(self, status, headers, body, length=None):
                """An answer; `length` in its head where that is not the truth."""
                self.send_response_only(status)
                for key, value in headers:
                    if key.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(key, value)
                told = dict(headers).get("Content-Length") if self.command == "HEAD" else None
                self.send_header("Content-Length", str(length or told or len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def did(self, operation):
        """The requests of one operation so far."""
        return [s for s in self.seen if s.does == operation]


@contextlib.contextmanager
def moto():
    """A road to moto while it runs, skips where moto is not installed.

    moto takes CRC32 for CRC32C where the package crc32c is not there, and gives the sums that it was sent, or makes
    its own at the end of an upload: none is ever held against the bytes by it.
    """
    server = pytest.importorskip("moto.server", reason="moto is not installed")
    crc32c = types.ModuleType("crc32c")
    crc32c.__spec__ = importlib.machinery.ModuleSpec("crc32c", None)
    crc32c.crc32c = lambda data: google_crc32c.value(bytes(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "crc32c", crc32c)
        running = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        running.start()
        road = Road(*running.get_host_and_port())
        try:
            yield road
        finally:
            road.close()
            running.stop()


def dummy_keys(patch, url):
    """The environment of a machine that may use that server, and no other."""
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_ENDPOINT_URL", "HTTP_PROXY", "http_proxy"):
        patch.delenv(name, raising=False)
    patch.setenv("AWS_ACCESS_KEY_ID", KEY)
    patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    patch.setenv("AWS_SESSION_TOKEN", TOKEN)
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    patch.setenv("AWS_ENDPOINT_URL_S3", url)


def bucket(folder, rules=(), **settings):
    """A store in a new bucket, with these lifecycle rules."""
    name = f"bucket-{next(_numbers)}"  # moto keeps buckets as long as the process lives
    store = dataclasses.replace(open_store(f"s3://{name}/{folder}"), deadline_s=30.0)
    client_of(store.endpoint, store.deadline_s).create_bucket(Bucket=name, **settings)
    if rules:
        keep = {"Rules": list(rules)}
        client_of(store.endpoint, 30.0).put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration=keep)
    return store


def rule(prefix="", **what):
    """A lifecycle rule for keys that begin with `prefix`."""
    return {"ID": f"{prefix}{what}", "Status": "Enabled", "Filter": {"Prefix": prefix}, **what}


ABORT = {"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2}}


def refused(status, code):
    """Answered with this error; the store does nothing."""

    def fault(seen, handler, forward):
        handler.reply(*error(status, code))

    return fault


def lost(seen, handler, forward):
    """Done by the store, and the line is cut before the answer."""
    forward()
    cut(seen, handler, forward)


def cut(seen, handler, forward):
    """The line is reset before the store hears of it."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    os.close(handler.connection.detach())


def short(seen, handler, forward):
    """The answer ends after half of its body."""
    status, headers, body = forward()
    handler.reply(status, headers, body[: len(body) // 2], length=len(body))
    handler.close_connection = True


def flipped(seen, handler, forward):
    """One bit of the body is another."""
    status, headers, body = forward()
    handler.reply(status, headers, bytes([body[0] ^ 1]) + body[1:])


def hung(seen, handler, forward):
    """No answer ever: the line stays open until the other end gives up."""
    handler.connection.recv(1)
    handler.close_connection = True


def uploads(store):
    """Keys of the unfinished uploads of its bucket."""
    found = client_of(store.endpoint, store.deadline_s).list_multipart_uploads(Bucket=store.bucket)
    return [u["Key"] for u in found.get("Uploads", [])]


def impatient(store):
    """The same store, with a second for every call."""
    return dataclasses.replace(store, deadline_s=1.0)


def crc(data):
    return google_crc32c.Checksum(data).hexdigest().decode()


def some(size, seed=1):
    """Bytes of this size, others for another seed."""
    return (bytes((seed * k * k + k) % 251 for k in range(4096)) * (size // 4096 + 1))[:size]


def put_all(store, sizes):
    """(sources of these sizes that lie in the store, their bytes one after another)"""
    sources, whole = [], b""
    for n, size in enumerate(sizes):
        data = some(size, n + 2)
        store.replace(f"work/{n:03d}.bin", data)
        sources.append(Source(f"work/{n:03d}.bin", size))
        whole += data
    return sources, whole


def everything(store):
    """Every verb once, with what it must give."""
    assert store.put_if_absent("a/1", b"one")
    assert store.get("a/1") == b"one"
    assert store.stat("a/1").crc32c == crc(b"one")
    assert store.replace_if("a/1", b"two", store.load("a/1").version)
    store.replace("a/2", some(100_000))
    with store.writer("a/3") as f:
        f.write(some(20 * MIB))
    sources = [Source("a/3", 20 * MIB), Source("a/2", 100_000)]
    want = b"head" + some(20 * MIB) + some(100_000)
    assert store.join("b/out", b"head", sources, "a/join").crc32c == crc(want)
    assert store.get("b/out") == want
    assert store.names("a") == ["a/1", "a/2", "a/3"]
    assert store.folders("") == ["a", "b"]
    assert [e.name for e in store.walk("")] == ["a/1", "a/2", "a/3", "b/out"]
    store.delete("a/1")
    store.delete_all("a")
    assert [e.name for e in store.walk("")] == ["b/out"]
    store.sweep()


@pytest.fixture(name="moto", scope="module")
def _moto():
    with moto() as road:
        yield road


@pytest.fixture(name="road")
def _road(moto, monkeypatch):
    """The road without faults, to which this process's environment leads."""
    moto.seen, moto.faults, moto.rules = [], {}, {}
    dummy_keys(monkeypatch, moto.url)
    monkeypatch.setattr(s3_calls, "FIRST_PAUSE_S", 0.01)
    return moto


@pytest.fixture(name="store")
def _store(road):
    """A store in a bucket of its own, which must be left without unfinished uploads."""
    found = bucket("out/here")
    yield found
    road.faults, road.rules = {}, {}
    assert uploads(found) == []


FIXTURES = _moto, _road, _store  # for a test file to take: `moto, road, store = s3_double.FIXTURES`
