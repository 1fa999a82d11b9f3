"""A loopback server of byte ranges that answers wrongly on purpose, as a seeded plan says."""

import collections
import contextlib
import dataclasses
import hashlib
import http.server
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

FAULTS = (
    "429", "500", "502", "503", "403", "reset", "early-end", "wrong-length", "wrong-range", "slow-drip", "stall",
    "empty-200", "html-200", "html-206", "xml-206", "encoded", "whole-200", "changed", "slow-head", "garbage",
)  # fmt: skip

Plan = Callable[[str, int, int], str | None]  # (path, first byte, n-th request of that range) -> fault or None


def no_faults(_path: str, _start: int, _n: int) -> str | None:
    return None


def in_turn(*faults: str | None) -> Plan:
    """The n-th request of every range gets the n-th of these; the later ones none."""
    return lambda _path, _start, n: faults[n] if n < len(faults) else None


def always(fault: str) -> Plan:
    return lambda _path, _start, _n: fault


def seeded(seed: int, share: float, weights: dict[str, float]) -> Plan:
    """A fault in `share` of all answers, drawn from what is asked and not from when: the same in every order."""
    names = list(weights)

    def plan(path: str, start: int, n: int) -> str | None:
        draw = random.Random(hashlib.sha256(f"{seed} {path} {start} {n}".encode()).digest())
        return draw.choices(names, list(weights.values()))[0] if draw.random() < share else None

    return plan


@dataclasses.dataclass
class Seen:
    """One request: path with query, headers in lower case, the fault that it got."""

    path: str
    headers: dict[str, str]
    fault: str | None


class Server:
    """What the server has and does; fields may be changed while it runs.

    files: path -> bytes. plan: see `Plan`. drip_s, stall_s: between bytes, before the rest. routes: path -> function of
    the request that gives (status, headers, body) in place of a file. tag: of every file.
    """

    def __init__(self, files: dict[str, bytes], plan: Plan = no_faults) -> None:
        self.files, self.plan = files, plan
        self.tag = '"1"'
        self.tell_tag = True
        self.retry_after = "1"
        self.drip_s, self.stall_s = 0.02, 1.0
        self.routes: dict[str, Callable[[Seen], tuple[int, dict[str, str], bytes]]] = {}
        self.seen: list[Seen] = []
        self.faults: collections.Counter[str] = collections.Counter()
        self.flying = self.most_flying = 0
        self.connections = 0
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.scheme, self.place = "http", ""
        self._counts: collections.Counter[tuple[str, int]] = collections.Counter()

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.place}"

    def draw(self, path: str, start: int) -> str | None:
        with self.lock:
            n = self._counts[path, start]
            self._counts[path, start] += 1
        fault = self.plan(path, start, n)
        if fault is not None:
            with self.lock:
                self.faults[fault] += 1
        return fault


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one segment
    disable_nagle_algorithm = True
    server: "_Listener"

    def setup(self) -> None:
        super().setup()
        with self.server.ours.lock:
            self.server.ours.connections += 1

    def log_message(self, *_: object) -> None:
        return

    def log_request(self, *_: object) -> None:
        return

    def do_GET(self) -> None:
        ours = self.server.ours
        with ours.lock:
            ours.flying += 1
            ours.most_flying = max(ours.most_flying, ours.flying)
        try:
            self._get(ours)
            self.wfile.flush()
        except OSError:  # the client has gone
            self.close_connection = True
        finally:
            with ours.lock:
                ours.flying -= 1

    def _get(self, ours: Server) -> None:
        path = self.path.partition("?")[0]
        seen = Seen(self.path, {k.lower(): v for k, v in self.headers.items()}, None)
        with ours.lock:
            ours.seen.append(seen)
        if path in ours.routes:
            return self._send(*ours.routes[path](seen))
        if path not in ours.files:
            return self._send(404, {}, b"no such file")
        data = ours.files[path]
        first, _, last = seen.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last or len(data)) + 1, len(data))
        if start >= len(data):
            return self._send(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
        seen.fault = fault = ours.draw(path, start)
        head = {"Content-Type": "image/tiff", "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        if ours.tell_tag:
            head["ETag"] = ours.tag
        body = data[start:stop]
        return self._answer(ours, fault, head, body, data)

    def _answer(self, ours: Server, fault: str | None, head: dict[str, str], body: bytes, data: bytes) -> None:
        page = b"<!DOCTYPE html><html><body>Sign in to the network</body></html>"
        pages = {"Content-Type": "text/html; charset=utf-8"}
        match fault:
            case None:
                self._send(206, head, body)
            case "429" | "503":
                self._send(int(fault), {"Retry-After": ours.retry_after}, b"<Error>SlowDown</Error>")
            case "403" | "404" | "410" | "418" | "500" | "502":
                self._send(int(fault), {}, b"<Error>no</Error>")
            case "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
            case "early-end":
                self._send(206, head, body[: len(body) // 2], length=len(body))
                self.close_connection = True
            case "wrong-length":
                self._send(206, head, body[:-1])
            case "wrong-range":
                start = int(head["Content-Range"].removeprefix("bytes ").partition("-")[0])
                moved = data[start + 1 : start + 1 + len(body)]  # true to its own head, but not what was asked for
                said = f"bytes {start + 1}-{start + len(moved)}/{len(data)}"
                self._send(206, {**head, "Content-Range": said}, moved)
            case "slow-drip":
                self._send(206, head, b"", length=len(body))
                self._drip(ours, body)
            case "slow-head":
                self._drip(ours, b"HTTP/1.1 206 Partial Content\r\nX-Waiting: " + b"." * 10_000)
            case "stall":
                self._send(206, head, body[: len(body) // 3], length=len(body))
                self.wfile.flush()
                ours.stopped.wait(ours.stall_s)
                self.close_connection = True
            case "empty-200":
                self._send(200, {"Content-Type": "image/tiff", "ETag": ours.tag}, b"")
            case "html-200":
                self._send(200, pages, page)
            case "html-206":
                self._send(206, {**head, **pages}, (page * (1 + len(body) // len(page)))[: len(body)])
            case "xml-206":
                self._send(206, head, b"<?xml version='1.0'?>".ljust(len(body), b" ")[: len(body)])
            case "encoded":
                self._send(206, {**head, "Content-Encoding": "gzip"}, body)
            case "whole-200":
                self._send(200, {"Content-Type": "image/tiff", "ETag": ours.tag}, data)
            case "changed":
                self._send(206, {**head, "ETag": '"2"'}, bytes(len(body)))
            case "garbage":
                self.wfile.write(b"\x00\x01not http at all\r\n\r\n")
                self.close_connection = True
            case _:
                raise AssertionError(f"the server knows no fault {fault!r}")

    def _drip(self, ours: Server, body: bytes) -> None:
        for i in range(len(body)):
            self.wfile.write(body[i : i + 1])
            self.wfile.flush()
            if ours.stopped.wait(ours.drip_s):
                break
        self.close_connection = True

    def _send(self, status: int, headers: dict[str, str], body: bytes, length: int | None = None) -> None:
        # A route that has a date of its own gives that one alone.
        (self.send_response_only if "Date" in headers else self.send_response)(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)


class _Listener(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    ours: Server

    def handle_error(self, *_: object) -> None:
        return  # clients that go away in mid-answer are what this server is for


@contextlib.contextmanager
def serve(server: Server, certificate: Path | None = None) -> Iterator[Server]:
    """Runs it on a free port of 127.0.0.1, which `server.place` and `server.url` say.

    certificate: folder with cert.pem and key.pem, for TLS.
    """
    listener = _Listener(("127.0.0.1", 0), _Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
        # the handshake is the handler's: one that fails must not stop the listener
        listener.socket = context.wrap_socket(listener.socket, server_side=True, do_handshake_on_connect=False)
        server.scheme = "https"
    listener.ours = server
    server.place = f"127.0.0.1:{listener.server_address[1]}"
    thread = threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        listener.shutdown()
        thread.join()
        listener.server_close()


class Skipped:
    """A clock that runs on by itself and jumps where somebody sleeps: waits without waiting."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.skipped_s = 0.0
        self.sleeps: list[float] = []

    def clock(self) -> float:
        return time.monotonic() + self.skipped_s

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.skipped_s += seconds
            self.sleeps.append(seconds)
