"""Storage: the few verbs that publishing needs, over one output folder, on a disk or in a bucket."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, Protocol

from model.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Stat:
    """What the store knows of an object.

    Attributes:
      size_bytes: its length.
      version: another one after every write: generation, ETag, or inode and time of change.
      crc32c: eight hex digits where the store keeps it, "" where it does not (disks).
      changed_s: time of the last write by the store's clock, seconds since 1970.
    """

    size_bytes: int
    version: str
    crc32c: str
    changed_s: float


class Loaded(NamedTuple):
    """A whole small object, and the version that these bytes are."""

    data: bytes
    version: str


class Entry(NamedTuple):
    """One object of a listing."""

    name: str
    stat: Stat


class Source(NamedTuple):
    """An object that becomes a part of a joined one. `size_bytes`: of it, more than 0."""

    name: str
    size_bytes: int


class StoreError(Exception):
    """A store that does not do what it is asked, after its own retries.

    kind: "refused" (rights, no such bucket), "busy" (5xx, 429, broken connections, for too long), "full" (quota) or
    "damaged" (what it holds is not what was sent); reason: words for people, without tokens or query strings.
    """

    def __init__(self, kind: Literal["refused", "busy", "full", "damaged"], reason: str) -> None:
        super().__init__(kind, reason)  # the arguments as given, so that it pickles between processes
        self.kind, self.reason = kind, reason

    def __str__(self) -> str:
        return self.reason


class Store(Protocol):
    """Objects under one root, named by paths with `/`. Every write is whole or not there at all.

    Every verb raises BadInput for a name that leads out of the root, and StoreError (disks: OSError) where the store
    fails. All may be called from many threads. A write whose answer was lost is looked up before it counts as failed.
    """

    @property
    def url(self) -> str:
        """The root, as a person writes it."""
        ...

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Bytes of an object from `start` on, fewer than `length` where it ends. Raises FileNotFoundError."""
        ...

    def load(self, name: str) -> Loaded:
        """A whole object with its version, for `replace_if`. Raises FileNotFoundError."""
        ...

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Writes an object unless one of this name exists. False: it existed, and stays as it is."""
        ...

    def replace_if(self, name: str, data: bytes, version: str) -> bool:
        """Writes an object over that version of it; "" stands for "there is none". False: it is another by now."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Writes an object over what was there."""
        ...

    def writer(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """A file object whose bytes become the object, over what was there, when the block ends without an error."""
        ...

    def join(self, name: str, head: bytes, sources: Sequence[Source], scratch: str) -> Stat:
        """Writes `head` and then the sources' bytes in their order as one object, over what was there.

        The bytes of large sources do not pass through this process where the store can copy them itself. What it
        needs on the way lies under the folder `scratch`, in names that a second try uses again, and may stay there.

        Returns:
          The new object's, always with its crc32c where the store can be asked for it or the bytes are at hand.

        Raises:
          FileNotFoundError: a source is not there. StoreError: "damaged", a source of another size.
        """
        ...

    def stat(self, name: str) -> Stat | None:
        """What is known of an object, None where there is none."""
        ...

    def names(self, prefix: str) -> list[str]:
        """Objects directly below `prefix` (a folder), sorted."""
        ...

    def folders(self, prefix: str) -> list[str]:
        """Folders directly below `prefix`, sorted."""
        ...

    def walk(self, prefix: str) -> Iterator[Entry]:
        """Every object below a folder at any depth, by name; "" for all. What changes meanwhile may be left out."""
        ...

    def delete(self, name: str) -> None:
        """Removes an object; nothing happens where there is none."""
        ...

    def delete_all(self, prefix: str) -> None:
        """Removes all objects below a folder, and the folder."""
        ...

    def sweep(self) -> None:
        """Removes what dead writers left."""
        ...

    def concerns(self) -> list[str]:
        """A look at the place before work: sentences for the operator, each with its cure; [] where all is well.

        Raises:
          BadInput: it cannot be written to at all.
        """
        ...


def check_name(name: str, root: str) -> None:
    """Raises BadInput for an object name that leads out of its root, or that no store takes as it stands."""
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise BadInput(f"object name {name!r} leads out of {root}")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


_SCHEMES: dict[str, Callable[[str], Store]] = {}


def serve_scheme(scheme: str, opener: Callable[[str], Store]) -> None:
    """Has `open_store` open the URLs of a further scheme with `opener`, in this process: a store of somebody's own."""
    _SCHEMES[scheme] = opener


def open_store(url: str) -> Store:
    """The store of an output folder.

    Raises:
      BadInput: a scheme that this release does not write to.
    """
    from transforms.disk_store import LocalStore  # which builds on this module

    scheme, found, _ = url.partition("://")
    if found and scheme == "gs":
        from transforms.gcs_store import gcs_store  # takes a package that only some installations have

        return gcs_store(url)
    if found and scheme == "s3":
        from transforms.s3_store import s3_store  # likewise

        return s3_store(url)
    if found and scheme in _SCHEMES:
        return _SCHEMES[scheme](url)
    if found and scheme != "file":
        raise BadInput(f"--out {url}: this release writes to folders, gs:// and s3://")
    return LocalStore(str(Path(url.removeprefix("file://")).absolute()))
