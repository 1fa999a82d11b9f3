"""Storage: the few verbs that publishing needs, over one output folder."""

import contextlib
import dataclasses
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from model.errors import BadInput

PARTS = ".parts"  # folder of files that are still being written
DAY_S = 86_400


@dataclasses.dataclass(frozen=True)
class Stat:
    """What the store knows of an object. `size_bytes`: its length."""

    size_bytes: int


class Store(Protocol):
    """Objects under one root, named by paths with `/`. Every write is whole or not there at all."""

    @property
    def url(self) -> str: ...
    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes: ...
    def put_if_absent(self, name: str, data: bytes) -> bool: ...
    def replace(self, name: str, data: bytes) -> None: ...
    def writer(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]: ...
    def stat(self, name: str) -> Stat | None: ...
    def names(self, prefix: str) -> list[str]: ...
    def folders(self, prefix: str) -> list[str]: ...
    def delete(self, name: str) -> None: ...
    def delete_all(self, prefix: str) -> None: ...
    def sweep(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class LocalStore:
    """A folder on a local disk. Writes go through a temporary file on the same disk, fsync and a link or rename."""

    root: str

    @property
    def url(self) -> str:
        return self.root

    def path(self, name: str) -> Path:
        """The file of an object.

        Raises:
          BadInput: a name that leads out of the root.
        """
        if name.startswith("/") or ".." in name.split("/"):
            raise BadInput(f"object name {name!r} leads out of {self.root}")
        return Path(self.root) / name

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Bytes of an object from `start` on. Raises FileNotFoundError."""
        with self.path(name).open("rb") as f:
            f.seek(start)
            return f.read() if length is None else f.read(length)

    def _part(self) -> tuple[int, str]:
        parts = Path(self.root) / PARTS
        while not parts.is_file():
            # Another process may sweep the folder away between any two of these calls; mkdir then says that it exists.
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                parts.mkdir(exist_ok=True)
                return tempfile.mkstemp(dir=parts, prefix=f"{socket.gethostname()}-{os.getpid()}-")
        raise NotADirectoryError(f"{parts} is a file: remove it, the folder of unfinished files has that name")

    @contextlib.contextmanager
    def _temporary(self, name: str) -> Iterator[tuple[BinaryIO, Path, Path]]:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Apart from what readers see, on the same disk; the name says whose it is (see `sweep`).
        handle, temporary = self._part()
        try:
            with os.fdopen(handle, "wb") as f:
                yield f, Path(temporary), path
        finally:
            Path(temporary).unlink(missing_ok=True)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Writes an object unless one of this name exists. False: it existed, and stays as it is."""
        with self._temporary(name) as (f, temporary, path):
            f.write(data)
            _settle(f)
            try:
                os.link(temporary, path)  # the one call that creates a whole file or fails
            except FileExistsError:
                return False
            return True

    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        """A file object whose bytes become the object, over what was there, when the block ends without an error."""
        with self._temporary(name) as (f, temporary, path):
            yield f
            _settle(f)
            temporary.replace(path)
            _settle_folder(path.parent)

    def replace(self, name: str, data: bytes) -> None:
        """Writes an object over what was there."""
        with self.writer(name) as f:
            f.write(data)

    def stat(self, name: str) -> Stat | None:
        """Size of an object, or None where there is none."""
        try:
            return Stat(self.path(name).stat().st_size)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def names(self, prefix: str) -> list[str]:
        """Objects directly below `prefix` (a folder), sorted."""
        try:
            with os.scandir(self.path(prefix)) as entries:
                found = [e.name for e in entries if e.is_file()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(f"{prefix}/{n}" if prefix else n for n in found)

    def folders(self, prefix: str) -> list[str]:
        """Folders directly below `prefix`, sorted."""
        try:
            with os.scandir(self.path(prefix)) as entries:
                found = [e.name for e in entries if e.is_dir() and e.name != PARTS]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(f"{prefix}/{n}" if prefix else n for n in found)

    def delete(self, name: str) -> None:
        """Removes an object; nothing happens where there is none."""
        self.path(name).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Removes what dead writers left: of this machine those whose process is gone, of others after a day."""
        parts = Path(self.root) / PARTS
        for part in parts.glob("*"):
            host, _, pid = part.name.rpartition("-")[0].rpartition("-")
            ours = host == socket.gethostname() and pid.isdecimal()  # anything else is not a writer's of this machine
            with contextlib.suppress(FileNotFoundError):
                old = time.time() - part.stat().st_mtime > DAY_S
                if old or (ours and not alive(int(pid))):
                    part.unlink()
        with contextlib.suppress(OSError):  # another writer is at work
            parts.rmdir()

    def delete_all(self, prefix: str) -> None:
        """Removes all objects below a folder, and the folder."""
        top = self.path(prefix)
        for folder, _, files in os.walk(top, topdown=False):
            for file in files:
                (Path(folder) / file).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # somebody else may be writing or removing here
                Path(folder).rmdir()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _settle(f: BinaryIO) -> None:
    """On the disk before it gets its name: a name that stands for half a file would be believed."""
    f.flush()
    os.fsync(f.fileno())
    os.fchmod(f.fileno(), 0o644)  # mkstemp makes files that only their owner can read


def _settle_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_store(url: str) -> Store:
    """The store of an output folder.

    Raises:
      BadInput: a scheme that this release does not write to.
    """
    scheme, found, _ = url.partition("://")
    if found and scheme != "file":
        raise BadInput(f"--out {url}: this release writes to local folders; {scheme}:// is not there yet")
    return LocalStore(str(Path(url.removeprefix("file://")).absolute()))
