"""A store in this process's memory: what a rehearsal leaves half a million receipts in, and how often it was asked."""

import collections
import contextlib
import io
import itertools
import mmap
import posixpath
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import google_crc32c

from transforms.storage import Entry, Loaded, Source, Stat, StoreError, check_name, serve_scheme

SCHEME = "rehearsal"  # URLs are rehearsal://<name>
_lock = threading.Lock()
_stores: "dict[str, MemoryStore]" = {}


class _Object(NamedTuple):
    data: bytes | mmap.mmap
    version: int
    changed_s: float


class MemoryStore:
    """Objects by folder, so that a listing of a folder costs what is in it. All verbs are whole and thread-safe.

    Attributes:
      asked: how often each verb was called; pages of 1,000 names count as one call each, as in a bucket.
    """

    PAGE = 1000

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: collections.Counter[str] = collections.Counter()
        self._lock = threading.RLock()
        self._files: dict[str, dict[str, _Object]] = {}  # folder -> name in it -> object
        self._folders: dict[str, dict[str, None]] = {}  # folder -> folders in it that hold anything
        self._versions = itertools.count(1)

    @property
    def size_bytes(self) -> int:
        """Of all objects in memory, without their names."""
        with self._lock:
            held = (o.data for files in self._files.values() for o in files.values())
            return sum(len(data) for data in held if isinstance(data, bytes))

    def __len__(self) -> int:
        with self._lock:
            return sum(map(len, self._files.values()))

    def _find(self, name: str) -> _Object | None:
        check_name(name, self.url)
        folder, base = posixpath.split(name)
        return self._files.get(folder, {}).get(base)

    def hold(self, name: str, path: Path) -> None:
        """Makes an object of a file without taking memory for it: an inventory of the planet is large."""
        with path.open("rb") as f, self._lock:
            self._put(name, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))

    def _put(self, name: str, data: bytes | mmap.mmap) -> None:
        folder, base = posixpath.split(name)
        new = folder not in self._files
        self._files.setdefault(folder, {})[base] = _Object(data, next(self._versions), time.time())
        while new and folder:
            above, base = posixpath.split(folder)
            new = base not in self._folders.setdefault(above, {})
            self._folders[above][base] = None
            folder = above

    def _tidy(self, folder: str) -> None:
        """Takes away a folder that holds nothing any more, and those above it likewise."""
        while folder and not self._files.get(folder) and not self._folders.get(folder):
            self._files.pop(folder, None)
            self._folders.pop(folder, None)
            above, base = posixpath.split(folder)
            self._folders.get(above, {}).pop(base, None)
            folder = above

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        with self._lock:
            self.asked["get"] += 1
            found = self._find(name)
        if found is None:
            raise FileNotFoundError(f"{self.url}/{name}")
        if not start and length is None and isinstance(found.data, bytes):
            return found.data
        return found.data[start:] if length is None else found.data[start : start + length]

    def load(self, name: str) -> Loaded:
        with self._lock:
            self.asked["get"] += 1
            found = self._find(name)
        if found is None:
            raise FileNotFoundError(f"{self.url}/{name}")
        return Loaded(bytes(found.data), str(found.version))

    def put_if_absent(self, name: str, data: bytes) -> bool:
        return self.replace_if(name, data, "")

    def replace_if(self, name: str, data: bytes, version: str) -> bool:
        with self._lock:
            self.asked["put"] += 1
            found = self._find(name)
            if (str(found.version) if found else "") != version:
                return False
            self._put(name, bytes(data))
            return True

    def replace(self, name: str, data: bytes) -> None:
        with self._lock:
            self.asked["put"] += 1
            check_name(name, self.url)
            self._put(name, bytes(data))

    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        with io.BytesIO() as f:
            yield f
            self.replace(name, f.getvalue())

    def join(self, name: str, head: bytes, sources: Sequence[Source], scratch: str) -> Stat:
        parts = [head]
        for source in sources:
            data = self.get(source.name)
            if len(data) != source.size_bytes:
                raise StoreError("damaged", f"{source.name} has {len(data)} bytes in place of {source.size_bytes}")
            parts.append(data)
        self.replace(name, whole := b"".join(parts))
        found = self._find(name)
        assert found is not None
        crc = google_crc32c.Checksum(whole).hexdigest().decode()
        return Stat(len(whole), str(found.version), crc, found.changed_s)

    def stat(self, name: str) -> Stat | None:
        with self._lock:
            self.asked["stat"] += 1
            found = self._find(name)
        return None if found is None else Stat(len(found.data), str(found.version), "", found.changed_s)

    def names(self, prefix: str) -> list[str]:
        with self._lock:
            found = sorted(self._files.get(prefix, ()))
            self._listed(len(found))
        return [f"{prefix}/{n}" if prefix else n for n in found]

    def folders(self, prefix: str) -> list[str]:
        with self._lock:
            found = sorted(self._folders.get(prefix, ()))
            self._listed(len(found))
        return [f"{prefix}/{n}" if prefix else n for n in found]

    def _listed(self, names: int) -> None:
        self.asked["list"] += 1 + max(0, names - 1) // self.PAGE

    def walk(self, prefix: str) -> Iterator[Entry]:
        """By name, as `transforms.storage.Store.walk`; what is written or taken away meanwhile may be missed."""
        begun = 0
        for n, entry in enumerate(self._walk(prefix)):
            begun = n + 1
            if n % self.PAGE == 0:
                self._listed(1)
            yield entry
        if not begun:
            self._listed(0)

    def _walk(self, prefix: str) -> Iterator[Entry]:
        with self._lock:
            files = dict(self._files.get(prefix, {}))
            both = sorted([*files, *(f"{n}/" for n in self._folders.get(prefix, ()))])
        for base in both:
            name = f"{prefix}/{base}" if prefix else base
            if base.endswith("/"):
                yield from self._walk(name[:-1])
            else:
                found = files[base]
                yield Entry(name, Stat(len(found.data), str(found.version), "", found.changed_s))

    def delete(self, name: str) -> None:
        with self._lock:
            self.asked["delete"] += 1
            check_name(name, self.url)
            folder, base = posixpath.split(name)
            if self._files.get(folder, {}).pop(base, None) is not None:
                self._tidy(folder)

    def delete_all(self, prefix: str) -> None:
        with self._lock:
            for entry in list(self.walk(prefix)):
                self.delete(entry.name)

    def sweep(self) -> None:
        """Nothing: no writer dies here but with the store itself."""

    def concerns(self) -> list[str]:
        return []


def memory_store(url: str) -> MemoryStore:
    """The store of that URL, an empty one at first; the same one in all of this process until `forget`."""
    with _lock:
        return _stores.setdefault(url, MemoryStore(url))


def forget(url: str) -> None:
    """Frees what a store holds."""
    with _lock:
        _stores.pop(url, None)


serve_scheme(SCHEME, memory_store)
