"""Every kind of place that a store can be: a fresh, empty one of each, for the tests that all of them must pass."""

import contextlib
import functools
import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import gcs_double
import pytest
import s3_double

from transforms import gcs_store, s3_store
from transforms.disk_store import LocalStore
from transforms.storage import Store

BIN = Path(__file__).parents[1] / "build/bin"
_numbers = itertools.count()
_servers = contextlib.ExitStack()  # started at first use


@contextlib.contextmanager
def servers_ended() -> Iterator[None]:
    """Ends the servers of all places behind the tests that used them."""
    try:
        yield
    finally:
        _servers.close()
        for started in STARTED:
            started.cache_clear()


@contextlib.contextmanager
def disk() -> Iterator[Store]:
    with tempfile.TemporaryDirectory() as folder:
        yield LocalStore(f"{folder}/out")


@functools.cache
def _double() -> gcs_double.Double:
    return _servers.enter_context(gcs_double.running("bucket"))


@contextlib.contextmanager
def gcs() -> Iterator[Store]:
    with _on(_double().url) as store:
        yield store


def fake_gcs_binary() -> str | None:
    """fake-gcs-server, where it is found: named by FAKE_GCS_SERVER, on the PATH, or made by `make fake-gcs-server`."""
    named = os.environ.get("FAKE_GCS_SERVER")
    if named:
        return named
    return shutil.which("fake-gcs-server") or shutil.which("fake-gcs-server", path=str(BIN))


@contextlib.contextmanager
def fake_gcs_server(backend: str = "filesystem") -> Iterator[str]:
    """Its URL, while it runs with a bucket named `bucket`; skips where it is not found."""
    binary = fake_gcs_binary()
    if binary is None:
        pytest.skip("no fake-gcs-server here: run `make fake-gcs-server`, or name it in FAKE_GCS_SERVER")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{s.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "bucket").mkdir()
        port = host.partition(":")[2]
        options = {"scheme": "http", "host": "127.0.0.1", "port": port, "public-host": host, "backend": backend}
        options |= {"external-url": f"http://{host}", "filesystem-root": folder, "log-level": "error"}
        command = [binary, *(word for k, v in options.items() for word in (f"-{k}", v))]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            _wait_for(f"http://{host}/_internal/healthcheck", process)
            yield f"http://{host}"
        finally:
            process.terminate()
            process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1000):
        with contextlib.suppress(OSError), urllib.request.urlopen(url) as answer:
            if answer.status == 200:
                return
        if process.poll() is not None:
            break
        time.sleep(0.02)
    raise RuntimeError("fake-gcs-server did not start")


@functools.cache
def _fake() -> str:
    return _servers.enter_context(fake_gcs_server())


@contextlib.contextmanager
def fake_gcs() -> Iterator[Store]:
    with _on(_fake()) as store:
        yield store


@contextlib.contextmanager
def _on(url: str) -> Iterator[Store]:
    """A folder of its own in the bucket of a server that speaks GCS, with listings in short pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", url)
        patch.setattr(gcs_store, "PAGE", 50)
        store = gcs_store.gcs_store(f"gs://bucket/test {next(_numbers)}/out", patience_s=10.0)
        yield store
        store.delete_all("")


@functools.cache
def _moto() -> s3_double.Road:
    return _servers.enter_context(s3_double.moto())


@contextlib.contextmanager
def s3() -> Iterator[Store]:
    road = _moto()
    with pytest.MonkeyPatch.context() as patch:
        s3_double.dummy_keys(patch, road.url)
        patch.setattr(s3_store, "KEYS_PER_CALL", 50)
        store = s3_double.bucket(f"test {next(_numbers)}/out", [s3_double.rule(**s3_double.ABORT)])
        yield store
        store.delete_all("")


STARTED = [_double, _fake, _moto]  # what is kept from test to test, until the servers are ended
PLACES: dict[str, Callable[[], contextlib.AbstractContextManager[Store]]] = {
    "disk": disk,
    "gcs": gcs,
    "fake-gcs-server": fake_gcs,
    "moto": s3,
}
