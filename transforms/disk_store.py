"""The store of a disk: a folder whose files appear whole, or not at all."""

import contextlib
import dataclasses
import fcntl
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import google_crc32c

from transforms.storage import Entry, Loaded, Source, Stat, StoreError, alive, check_name

PARTS = ".parts"  # folder of files that are still being written
FOLDER_TRIES = 100  # each lost to another run that removes a folder in the same microseconds
DAY_S = 86_400
COPY_BYTES = 8 << 20


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
        check_name(name, self.root)
        return Path(self.root) / name

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Bytes of an object from `start` on. Raises FileNotFoundError."""
        with self.path(name).open("rb") as f:
            f.seek(start)
            return f.read() if length is None else f.read(length)

    def load(self, name: str) -> Loaded:
        """A whole object and its version, of one and the same file. Raises FileNotFoundError."""
        with self.path(name).open("rb") as f:
            return Loaded(f.read(), _version(os.fstat(f.fileno())))

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
                _into_place(os.link, temporary, path)  # the one call that creates a whole file or fails
            except FileExistsError:
                return False
            return True

    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        """A file object whose bytes become the object, over what was there, when the block ends without an error."""
        with self._temporary(name) as (f, temporary, path):
            yield f
            _settle(f)
            _into_place(os.replace, temporary, path)
            _settle_folder(path.parent)

    def replace(self, name: str, data: bytes) -> None:
        """Writes an object over what was there."""
        with self.writer(name) as f:
            f.write(data)

    def replace_if(self, name: str, data: bytes, version: str) -> bool:
        """Writes an object over that version of it, "" for none. False: it is another by now."""
        if not version:
            return self.put_if_absent(name, data)
        with self._temporary(name) as (f, temporary, path):
            f.write(data)
            _settle(f)
            with _alone(path.parent):
                if (now := self.stat(name)) is None or now.version != version:
                    return False
                temporary.replace(path)
            _settle_folder(path.parent)
            return True

    def join(self, name: str, head: bytes, sources: Sequence[Source], scratch: str) -> Stat:
        """Writes `head` and the sources one after another, copied by the kernel, then reads the whole for its crc32c.

        Raises:
          FileNotFoundError: a source is not there. StoreError: "damaged", a source of another size.
        """
        crc = google_crc32c.Checksum()
        with self._temporary(name) as (f, temporary, path):
            f.write(head)
            f.flush()
            for source in sources:
                with self.path(source.name).open("rb") as part:
                    found = os.fstat(part.fileno()).st_size
                    if found != source.size_bytes:
                        what = f"{source.name} has {found} bytes in place of {source.size_bytes}"
                        raise StoreError("damaged", what)
                    _copied(part.fileno(), f.fileno(), found)
            _settle(f)
            with temporary.open("rb") as written:
                while chunk := written.read(COPY_BYTES):
                    crc.update(chunk)
            temporary.replace(path)
            _settle_folder(path.parent)
        stat = self.stat(name)
        if stat is None:
            raise FileNotFoundError(f"{name} was removed by another process")
        return dataclasses.replace(stat, crc32c=crc.hexdigest().decode())

    def stat(self, name: str) -> Stat | None:
        """What is known of an object, or None where there is none. A disk keeps no checksum."""
        try:
            return _stat(self.path(name).stat())
        except (FileNotFoundError, NotADirectoryError):
            return None

    def walk(self, prefix: str) -> Iterator[Entry]:
        """Every object below a folder, by name."""
        try:
            with os.scandir(self.path(prefix)) as found:
                entries = sorted(found, key=lambda e: e.name + "/" * e.is_dir(follow_symlinks=False))
        except (FileNotFoundError, NotADirectoryError):
            return
        for e in entries:
            name = f"{prefix}/{e.name}" if prefix else e.name
            if e.is_dir(follow_symlinks=False):
                if name != PARTS:
                    yield from self.walk(name)
            elif stat := self.stat(name):
                yield Entry(name, stat)

    def concerns(self) -> list[str]:
        """Nothing that is known before the first write; `embed` looks at the room on the disk."""
        return []

    def names(self, prefix: str) -> list[str]:
        """Objects directly below `prefix` (a folder), sorted."""
        try:
            with os.scandir(self.path(prefix)) as entries:
                found = [e.name for e in entries if e.is_file()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(f"{prefix}/{n}" if prefix else n for n in found)

    def folders(self, prefix: str) -> list[str]:
        """Folders directly below `prefix`, sorted; not an empty one, which a writer has made for its first file."""
        try:
            with os.scandir(self.path(prefix)) as entries:
                found = [e.name for e in entries if e.is_dir() and e.name != PARTS and _holds_any(e.path)]
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


def _holds_any(folder: str) -> bool:
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as found:
        return next(found, None) is not None
    return False


def _stat(found: os.stat_result) -> Stat:
    return Stat(found.st_size, _version(found), "", found.st_mtime)


def _version(found: os.stat_result) -> str:
    """Every write is a new file: its inode, or the time at which that was used again, is another."""
    return f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds off other writers of this folder that ask for it too, between a look at a file and its replacement.

    Network disks that cannot lock a folder are not held off: there the look and the write are microseconds apart.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # takes the lock away too


def _copied(source: int, target: int, size_bytes: int) -> None:
    """Copies within the kernel, where disks allow it without moving a byte; by read and write where not."""
    left = size_bytes
    while left:
        try:
            n = os.copy_file_range(source, target, left)
        except OSError:  # two kinds of disks, or one that has no such call
            chunk = os.read(source, min(left, COPY_BYTES))
            n = len(chunk)
            while chunk:
                chunk = chunk[os.write(target, chunk) :]
        if not n:
            raise StoreError("damaged", f"a part ended {left} bytes early while it was copied")
        left -= n


def _into_place(act: Callable[[Path, Path], None], temporary: Path, path: Path) -> None:
    """Gives a file its name. Another run that clears a tile's work away may take the folder in this very moment."""
    for _ in range(FOLDER_TRIES):
        try:
            act(temporary, path)
            return
        except FileNotFoundError:
            if not temporary.exists():
                raise
            path.parent.mkdir(parents=True, exist_ok=True)
    raise StoreError("busy", f"{path.parent} is removed by another run again and again")


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
