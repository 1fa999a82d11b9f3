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
    port = _free_port()
    with _serving([str(worker_program()), "--pool", str(port)], port, log):
        yield f"localhost:{port}"


@contextlib.contextmanager
def job_service(prism: str, log: Path) -> Iterator[str]:
    """Prism as a service that outlives the programs that hand it jobs; gives its address."""
    port = _free_port()
    with _serving([prism, "--job_port", str(port), "--serve_http=false", "--log_kind", "text"], port, log):
        yield f"localhost:{port}"


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def _serving(command: list[str], port: int, log: Path) -> Iterator[None]:
    with log.open("ab") as out:
        program = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        _until_it_listens(port, program)
        yield
    finally:
        program.terminate()
        program.wait()


def _until_it_listens(port: int, program: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 60
    while program.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port), timeout=1):
            return
        time.sleep(0.05)
    raise AssertionError(f"{program.args[0]} does not listen; it ended with {program.returncode}")
