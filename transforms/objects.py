"""Objects of a store as libraries want them: a file on this machine's disk, or a raster that rasterio opens."""

import contextlib
import io
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import rasterio
from rasterio.io import DatasetReader

from transforms.disk_store import LocalStore
from transforms.storage import Store, alive

COPIES = "tessera-beam-inputs"  # folders of copies in the machine's temporary folder: <COPIES>-<process>-<random>
COPY_BYTES = 8 << 20
# Read at once where GDAL asks for a few bytes: the header and index of a tile of 10,980 px (100 KB, facts checked 3.C).
AHEAD_BYTES = 128 << 10

_lock = threading.Lock()
_folder: tuple[int, tempfile.TemporaryDirectory[str]] | None = None


def local_file(store: Store, name: str) -> Path:
    """An object as a file on this machine: itself, or a copy that goes when the process ends.

    A process copies a version of an object once. What processes left that were killed is removed by the next one.

    Raises:
      FileNotFoundError: no such object. OSError: no room for the copy.
    """
    if isinstance(store, LocalStore):
        return store.path(name)
    stat = store.stat(name)
    if stat is None:
        raise FileNotFoundError(f"{store.url}/{name}")
    with _lock:
        kind = Path(name).suffix
        copy = _copies() / f"{_safe(name)}.{_safe(stat.version)}{kind}"
        if not copy.exists():
            part = copy.with_suffix(".part")
            with part.open("wb") as f:
                for start in range(0, stat.size_bytes, COPY_BYTES):
                    f.write(store.get(name, start, min(COPY_BYTES, stat.size_bytes - start)))
            again = store.stat(name)
            if again is None or again.version != stat.version or part.stat().st_size != stat.size_bytes:
                part.unlink()
                raise FileNotFoundError(f"{store.url}/{name} was written over while it was read: run again")
            part.replace(copy)
        return copy


@contextlib.contextmanager
def kept_file(store: Store, name: str) -> Iterator[Path]:
    """A file that others write to meanwhile, and that is an object of the store in the end, also after an error."""
    if isinstance(store, LocalStore):
        yield store.path(name)
        return
    with tempfile.TemporaryDirectory(prefix=f"{COPIES}-{os.getpid()}-") as folder:
        path = Path(folder) / Path(name).name
        try:
            yield path
        finally:
            if path.exists():
                store.replace(name, path.read_bytes())


@contextlib.contextmanager
def open_raster(store: Store, name: str) -> Iterator[DatasetReader]:
    """A raster of the store, read by ranges through the store itself: no other way to it needs to be set up."""
    if isinstance(store, LocalStore):
        with rasterio.open(store.path(name), driver="GTiff") as f:
            yield f
        return

    path = f"store/{name}"  # rasterio finds its opener by the folder: a bare name has none

    def opener(asked: str, mode: str = "rb") -> BinaryIO:
        if asked != path or mode != "rb":  # side-car files: what lies beside a file says nothing about it
            raise FileNotFoundError(asked)
        return cast(BinaryIO, io.BufferedReader(ObjectFile(store, name), AHEAD_BYTES))

    with (
        rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"),
        rasterio.open(path, driver="GTiff", opener=opener) as f,
    ):
        yield f


class ObjectFile(io.RawIOBase):
    """An object as a seekable file; every read is a request of the store.

    Raises:
      FileNotFoundError: no such object.
    """

    def __init__(self, store: Store, name: str) -> None:
        super().__init__()
        stat = store.stat(name)
        if stat is None:
            raise FileNotFoundError(f"{store.url}/{name}")
        self._store, self._name, self._size, self._at = store, name, stat.size_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence] + offset)
        return self._at

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        data = self._store.get(self._name, self._at, min(len(view), max(0, self._size - self._at)))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def _safe(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text)[-100:]


def _copies() -> Path:
    """This process's folder of copies; a forked child gets one of its own."""
    global _folder
    if _folder is None or _folder[0] != os.getpid():
        _clear_up()
        folder = tempfile.TemporaryDirectory(prefix=f"{COPIES}-{os.getpid()}-", ignore_cleanup_errors=True)
        _folder = os.getpid(), folder
    return Path(_folder[1].name)


def _clear_up() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{COPIES}-*-*"):
        pid = folder.name.split("-")[-2]
        if pid.isdecimal() and not alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)
