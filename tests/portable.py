"""Programs of Beam's that a portable run needs: Prism, and a worker pool in a process of its own."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def prism_program() -> str | None:
    """Prism, named by PRISM, on the PATH or where `make prism-program` builds it."""
    named = os.environ.get("PRISM")
    return named or shutil.which("prism") or shutil.which(ROOT / "build/bin/prism")


def worker_program() -> Path:
    """Our own starter of workers, beside this Python: pools and runners look for programs in the PATH."""
    return Path(sys.executable).parent / "tessera-beam-worker"


@contextlib.contextmanager
def worker_pool(log: Path) -> Iterator[str]:
    """A worker pool; gives its address."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with log.open("ab") as out:
        pool = subprocess.Popen([worker_program(), "--pool", str(port)], stdout=out, stderr=out)
    try:
        _until_it_listens(port, pool)
        yield f"localhost:{port}"
    finally:
        pool.terminate()
        pool.wait()


def _until_it_listens(port: int, pool: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 60
    while pool.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port), timeout=1):
            return
        time.sleep(0.05)
    raise AssertionError(f"the worker pool does not listen; it ended with {pool.returncode}")
