"""A loopback server of byte ranges that waits before each answer and counts what it gives."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Counts:
    """Answers that were given. requests: of any method. sent: bytes of bodies. by_path: requests by path."""

    requests: int = 0
    sent: int = 0
    by_path: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, path: str, sent: int) -> None:
        with self.lock:
            self.requests += 1
            self.sent += sent
            self.by_path[path] = self.by_path.get(path, 0) + 1

    def reset(self) -> None:
        with self.lock:
            self.requests = self.sent = 0
            self.by_path = {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    wait_s: float
    counts: Counts

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        return

    def _answer(self, body: bool) -> None:
        path = self.folder / self.path.partition("?")[0].lstrip("/")
        time.sleep(self.wait_s)
        if not path.is_file():
            self.counts.add(self.path, 0)
            self.send_error(404)
            return
        total = path.stat().st_size
        start, stop = 0, total
        asked = self.headers.get("Range")
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1 if last else total, total)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Type", "image/tiff")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{total:x}"')
        self.send_header("Content-Length", str(stop - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{total}")
        self.end_headers()
        if body:
            with path.open("rb") as file:
                file.seek(start)
                self.wfile.write(file.read(stop - start))
        self.counts.add(self.path, stop - start if body else 0)


@contextmanager
def serve(folder: Path, wait_s: float) -> Iterator[tuple[str, Counts]]:
    """URL of the server and its counts; `wait_s` is what a request costs before its first byte."""
    counts = Counts()
    handler = type("Handler", (_Handler,), {"folder": folder, "wait_s": wait_s, "counts": counts})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", counts
    finally:
        server.shutdown()
        thread.join()
