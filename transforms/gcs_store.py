"""Google Cloud Storage as an output folder: writes under generation preconditions, joins made by the service itself."""

import contextlib
import dataclasses
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

from model.errors import BadInput
from transforms.gcs_bucket import concerns_of
from transforms.gcs_bytes import Upload, crc32c, download, stat_of
from transforms.gcs_calls import (
    PATIENCE_S,
    TIMEOUT,
    Changed,
    PastTheEnd,
    library,
    no_bucket,
    patient,
    session,
)
from transforms.media import media_type
from transforms.storage import Entry, Loaded, Source, Stat, StoreError, check_name

T = TypeVar("T")

SOURCES = 32  # of one compose call (https://cloud.google.com/storage/docs/composing-objects)
PAGE = 1000  # names of a listing; the service gives no more at once
DELETES, COMPOSES = 16, 8  # requests at the same time
JOINS = 4  # tries of a join whose parts another worker removed or made of other bytes meanwhile
RENEWALS = 20  # looks at parts that another worker, who joins the same, wrote over with the same bytes
ENTRY_FIELDS = "nextPageToken,items(name,size,generation,crc32c,updated)"


class _Part(NamedTuple):
    """An object on the way of a join. made: what the store said of it when it was written, None for a source."""

    name: str
    size_bytes: int
    made: Stat | None = None


class _Gone(Exception):
    """What was written on the way of a join is there no more, or something else: another worker's doing."""


def gcs_store(url: str, patience_s: float = PATIENCE_S) -> "GcsStore":
    """The store of gs://bucket/folder; the folder may be left out.

    Raises:
      BadInput: no bucket, a folder that is none, or google-cloud-storage is not installed.
    """
    bucket, _, folder = url.removeprefix("gs://").partition("/")
    folder = folder.strip("/")
    if not bucket or any(part in ("", ".", "..") for part in folder.split("/") if folder):
        raise BadInput(f"--out {url}: write gs://bucket/folder")
    library()
    return GcsStore(bucket, folder, patience_s)


@dataclasses.dataclass(frozen=True)
class GcsStore:
    """Objects of one bucket below `prefix`, "" for all of it. `version` of an object is its generation.

    Attributes:
      patience_s: how long a call that meets 5xx, 429 or broken connections is tried again.
    """

    bucket: str
    prefix: str
    patience_s: float = PATIENCE_S

    @property
    def url(self) -> str:
        return f"gs://{self.bucket}/{self.prefix}".rstrip("/")

    def _key(self, name: str) -> str:
        check_name(name, self.url)
        return f"{self.prefix}/{name}" if self.prefix else name

    def _blob(self, name: str, replaced: bool = False) -> Any:
        blob = session().client.bucket(self.bucket).blob(self._key(name))
        blob.content_type = media_type(name)
        if replaced:
            blob.cache_control = "no-cache"  # public objects are served from caches for an hour otherwise
        return blob

    def _patient(self, what: str, name: str, once: Callable[[], T]) -> T:
        return patient(what, f"{self.url}/{name}", self.patience_s, once)

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Bytes of an object from `start` on, fewer than `length` where it ends. Raises FileNotFoundError."""
        if length == 0:
            if self.stat(name) is None:
                raise FileNotFoundError(f"{self.url}/{name}")
            return b""
        try:
            return download(self.bucket, self._key(name), start, length, self.patience_s).data
        except PastTheEnd:
            return b""

    def load(self, name: str) -> Loaded:
        """A whole object and its generation, out of one answer. Raises FileNotFoundError."""
        found = download(self.bucket, self._key(name), 0, None, self.patience_s)
        if not found.generation:
            raise StoreError("refused", f"{self.url}: this server tells no generations, items cannot be replaced there")
        return Loaded(*found)

    def _write(self, name: str, data: bytes, precondition: int | None) -> Stat | None:
        """Writes an object; None where the precondition does not hold and what is there is something else."""
        f = Upload(self._blob(name, precondition != 0), precondition, self.patience_s)
        try:
            f.write(data)
            return f.finish()
        except Changed as e:
            f.abandon()
            # The answer to our own write may have been lost: then what is there now is what was sent.
            found = self.stat(name) if e.in_doubt else None
            same = found is not None and (found.size_bytes, found.crc32c) == (len(data), crc32c(data))
            return found if same else None
        except BaseException:
            f.abandon()
            raise

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Writes an object unless one of this name exists. False: it existed, and stays as it is."""
        return self._write(name, data, 0) is not None

    def replace_if(self, name: str, data: bytes, version: str) -> bool:
        """Writes an object over that generation of it, "" for none. False: it is another by now."""
        if version and not version.isdecimal():
            return False  # no generation was ever like that
        return self._write(name, data, int(version or 0)) is not None

    def replace(self, name: str, data: bytes) -> None:
        """Writes an object over what was there."""
        self._write(name, data, None)

    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        """A file object whose bytes become the object when the block ends without an error; 8 MiB of it are held."""
        f = Upload(self._blob(name, replaced=True), None, self.patience_s)
        try:
            yield cast(BinaryIO, f)
            f.finish()
        except BaseException:
            f.abandon()
            raise

    def join(self, name: str, head: bytes, sources: Sequence[Source], scratch: str) -> Stat:
        """Writes `head` and the sources as one object, by nested compose calls of the service.

        Every 32 sources first become an object under `scratch`, whose size is checked, and only what has the right
        size is joined further, by generation: neither a missing nor a wrong source shows at the target. `scratch`
        stays, for whoever removes the sources.

        Raises:
          FileNotFoundError: a source is not there. StoreError: "damaged", a source of another size.
        """
        self._key(name)
        for n in range(JOINS):
            with contextlib.suppress(_Gone):
                return self._joined(name, head, sources, scratch)
            time.sleep(random.uniform(0, 0.1 * 2**n))
        raise StoreError("busy", f"{self.url}/{name}: other workers keep writing its parts over")

    def _joined(self, name: str, head: bytes, sources: Sequence[Source], scratch: str) -> Stat:
        parts = [_Part(s.name, s.size_bytes) for s in sources]
        if head or not parts:
            first = f"{scratch}/head" if parts else name
            stat = cast(Stat, self._write(first, head, None))
            if not parts:
                return stat
            parts.insert(0, _Part(first, stat.size_bytes, stat))
        level = 0
        with ThreadPoolExecutor(COMPOSES) as pool:
            while level == 0 or len(parts) > SOURCES:
                groups = [parts[at : at + SOURCES] for at in range(0, len(parts), SOURCES)]
                names = [f"{scratch}/{level}-{k:05d}" for k in range(len(groups))]
                made = pool.map(self._composed, names, groups)
                parts = [_Part(n, s.size_bytes, s) for n, s in zip(names, made, strict=True)]
                level += 1
        return self._composed(name, parts)

    def _composed(self, name: str, parts: Sequence[_Part]) -> Stat:
        """Up to 32 parts as one object, at once."""
        for _ in range(RENEWALS):
            try:
                stat = self._compose(name, parts)
                break
            except Changed:
                parts = [self._renewed(p) for p in parts]
            except FileNotFoundError:
                self._look_at(parts)
                raise _Gone from None
        else:
            raise _Gone
        expected = sum(p.size_bytes for p in parts)
        if stat.size_bytes != expected:
            self._look_at(parts)
            raise StoreError("damaged", f"{self.url}/{name} has {stat.size_bytes} bytes in place of {expected}")
        return stat

    def _compose(self, name: str, parts: Sequence[_Part]) -> Stat:
        blob = self._blob(name)
        bucket = blob.bucket
        sources = [bucket.blob(self._key(p.name)) for p in parts]
        generations = [p.made and int(p.made.version) for p in parts]

        def once() -> Stat:
            try:
                blob.compose(sources, if_source_generation_match=generations, timeout=TIMEOUT, retry=None)
            except Exception as e:
                if getattr(e, "code", None) == 500:  # what some servers say of a source that is missing
                    self._look_at(parts)
                raise
            return stat_of(blob)

        return self._patient("join of", name, once)

    def _renewed(self, part: _Part) -> _Part:
        """A part as it is now, where it still has the bytes that were written."""
        if part.made is None:
            return part
        now = self.stat(part.name)
        if now is None or (now.size_bytes, now.crc32c) != (part.made.size_bytes, part.made.crc32c):
            raise _Gone
        return part._replace(made=now)

    def _look_at(self, parts: Sequence[_Part]) -> None:
        """Raises what is wrong with the sources among `parts`, if anything is."""
        for part in parts:
            if part.made is None:
                stat = self.stat(part.name)
                if stat is None:
                    raise FileNotFoundError(f"{self.url}/{part.name}")
                if stat.size_bytes != part.size_bytes:
                    what = f"{part.name} has {stat.size_bytes} bytes in place of {part.size_bytes}"
                    raise StoreError("damaged", what)

    def stat(self, name: str) -> Stat | None:
        """What is known of an object, or None where there is none."""
        blob = self._blob(name)

        def once() -> Stat:
            blob.reload(projection="noAcl", timeout=TIMEOUT, retry=None)
            return stat_of(blob)

        try:
            return self._patient("look at", name, once)
        except FileNotFoundError:
            return None

    def _pages(self, prefix: str, delimiter: str | None, fields: str) -> Iterator[tuple[list[Any], list[str]]]:
        """Objects and folders of a listing, page by page, with the names that they have in the bucket."""
        key = self._key(prefix) if prefix else self.prefix
        token: str | None = None

        def once() -> tuple[list[Any], list[str], str | None]:
            found = session().client.list_blobs(
                self.bucket,
                prefix=f"{key}/" if key else None,
                delimiter=delimiter,
                fields=fields,
                page_token=token,
                page_size=PAGE,
                timeout=TIMEOUT,
                retry=None,
            )
            page = next(found.pages, ())
            return list(page), sorted(found.prefixes), found.next_page_token

        while True:
            try:
                objects, folders, token = self._patient("listing of", prefix, once)
            except FileNotFoundError:
                raise no_bucket(self.bucket) from None
            # Some consoles make an empty object "folder/" to show a folder.
            yield [o for o in objects if not o.name.endswith("/")], folders
            if not token:
                return

    def _name(self, key: str) -> str:
        return key[len(self.prefix) + 1 :] if self.prefix else key

    def names(self, prefix: str) -> list[str]:
        """Objects directly below `prefix` (a folder), sorted."""
        pages = self._pages(prefix, "/", "nextPageToken,items(name)")
        return sorted(self._name(o.name) for objects, _ in pages for o in objects)

    def folders(self, prefix: str) -> list[str]:
        """Folders directly below `prefix`, sorted."""
        pages = self._pages(prefix, "/", "nextPageToken,prefixes")
        return sorted({self._name(f.rstrip("/")) for _, folders in pages for f in folders})

    def walk(self, prefix: str) -> Iterator[Entry]:
        """Every object below a folder, by name."""
        for objects, _ in self._pages(prefix, None, ENTRY_FIELDS):
            for blob in objects:
                yield Entry(self._name(blob.name), stat_of(blob))

    def delete(self, name: str) -> None:
        """Removes an object; nothing happens where there is none."""
        blob = self._blob(name)
        with contextlib.suppress(FileNotFoundError):
            self._patient("removal of", name, lambda: blob.delete(timeout=TIMEOUT, retry=None))

    def delete_all(self, prefix: str) -> None:
        """Removes all objects below a folder, which is all that there is of a folder."""
        with ThreadPoolExecutor(DELETES) as pool:
            for objects, _ in self._pages(prefix, None, "nextPageToken,items(name)"):
                for _ in pool.map(self.delete, [self._name(o.name) for o in objects]):
                    pass

    def sweep(self) -> None:
        """Removes nothing: what dead writers left are uploads that were never ended, which nobody sees or pays for,
        and which the service forgets after a week. Parts of joins lie in their `scratch`, with the fragments."""

    def concerns(self) -> list[str]:
        """Settings of the bucket that cost money or stand in the way of removing and replacing.

        Raises:
          BadInput: no such bucket, or rights are missing.
        """
        return concerns_of(self.bucket, self.prefix, self.patience_s)
