"""Bytes of objects in Google Cloud Storage: ranges that are whole, and uploads that can be given up."""

import base64
import contextlib
import datetime as dt
import io
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar, cast
from urllib.parse import quote

import google_crc32c
import requests

from transforms.gcs_calls import TIMEOUT, Answered, Broken, answer, body, no_bucket, patient, session
from transforms.storage import Stat, StoreError

T = TypeVar("T")

CHUNK_BYTES = 8 << 20  # of a resumable upload: a multiple of 256 KiB, held in memory until the store has it
SLOWEST_BYTES_S = 64 << 10  # a slower answer is given up and asked for again
GRACE_S = 30.0


class Ranged(NamedTuple):
    """Bytes of one version of an object."""

    data: bytes
    generation: str


def stat_of(blob: Any) -> Stat:
    """What the library knows of an object after any answer that describes it."""
    crc = base64.b64decode(blob.crc32c or "").hex()
    return Stat(int(blob.size), str(blob.generation), crc, blob.updated.timestamp())


def crc32c(data: bytes) -> str:
    """Eight hex digits."""
    return str(google_crc32c.Checksum(data).hexdigest().decode())


def download(bucket: str, key: str, start: int, length: int | None, patience_s: float) -> Ranged:
    """A range of an object in one request: all of it, or none. What breaks off is asked for again from its start.

    Raises:
      FileNotFoundError: no such object. PastTheEnd: it is shorter than `start`. StoreError.
    """
    address = f"{session().client.api_endpoint}/download/storage/v1/b/{quote(bucket)}/o/{quote(key, safe='')}?alt=media"
    headers = {"Accept-Encoding": "identity", "Cache-Control": "no-cache"}
    ranged = bool(start) or length is not None
    if ranged:
        headers["Range"] = f"bytes={start}-" + ("" if length is None else str(start + length - 1))

    def once() -> Ranged:
        with answer("GET", address, headers) as response:
            return _ranged(response, start, length, min(GRACE_S, patience_s))

    return patient("read of", f"gs://{bucket}/{key}", patience_s, once)


def _ranged(response: requests.Response, start: int, length: int | None, grace_s: float) -> Ranged:
    partial, headers = response.status_code == 206, response.headers
    if headers.get("Content-Encoding", "identity") != "identity":
        raise Broken("the bytes came compressed, although nobody asked for that")
    expected = _length(headers, start, length) if partial else _number(headers.get("Content-Length"))
    data = b"".join(body(response, expected, grace_s + expected / SLOWEST_BYTES_S))
    if len(data) != expected:
        raise Broken(f"{len(data)} bytes in place of {expected}")
    if not partial:
        told = re.search(r"crc32c=([A-Za-z0-9+/]{6}==)", headers.get("x-goog-hash", ""))
        if told and base64.b64decode(told[1]).hex() != crc32c(data):
            raise Broken("the bytes are not those of the store's checksum")
        data = data[start:] if length is None else data[start : start + length]  # the server may ignore a range
    return Ranged(data, headers.get("x-goog-generation", ""))


def _length(headers: Mapping[str, str], start: int, length: int | None) -> int:
    """How many bytes a 206 must bring, from the object's size that it tells."""
    told = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", headers.get("Content-Range", ""))
    if not told:
        raise Broken("a part of an object came without its place")
    first, last, size = map(int, told.groups())
    end = size if length is None else min(size, start + length)
    if (first, last) != (start, end - 1):
        raise Broken(f"bytes {first} to {last} came in place of {start} to {end - 1}")
    return last - first + 1


def _number(text: str | None) -> int:
    if text is None or not text.isdecimal():
        raise Broken("an answer without its length")
    return int(text)


class Upload(io.RawIOBase):
    """A file whose bytes become an object when `finish` is called, and nothing at all when it is not.

    Closing it does not finish it, so neither an error nor the end of the process publishes half an object (the
    library's own writer sends what it has when it is closed or collected). What is given up is forgotten by the store.
    """

    def __init__(self, blob: Any, precondition: int | None, patience_s: float) -> None:
        super().__init__()
        self._blob, self._precondition, self._patience_s = blob, precondition, patience_s
        self._place = f"gs://{blob.bucket.name}/{blob.name}"
        self._held, self._sent, self._url, self._unsure = bytearray(), 0, "", False
        self._crc = google_crc32c.Checksum()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._sent + len(self._held)

    def write(self, data: Any) -> int:
        if self.closed:
            raise ValueError("write to a closed file")
        view = memoryview(data).cast("B")
        for at in range(0, len(view), CHUNK_BYTES):
            part = bytes(view[at : at + CHUNK_BYTES])
            self._crc.update(part)
            self._held += part
            while len(self._held) > CHUNK_BYTES:  # the last byte stays: only `finish` may send it
                self._send(CHUNK_BYTES, last=False)
        return len(view)

    def finish(self) -> Stat:
        """Sends the rest. Returns what the store says of the object.

        Raises:
          Changed: the precondition did not hold. StoreError: also "damaged", where other bytes arrived.
        """
        if not self._url:
            return self._small()
        found = cast(Mapping[str, Any], self._send(len(self._held), last=True))
        if int(found.get("size", -1)) != self._sent or found.get("crc32c") != self._crc_base64():
            self._remove(found)
            raise StoreError("damaged", f"upload of {self._place}: other bytes arrived than were sent; run embed again")
        changed = dt.datetime.fromisoformat(str(found["updated"]))
        return Stat(self._sent, str(found["generation"]), self._crc.hexdigest().decode(), changed.timestamp())

    def abandon(self) -> None:
        """Gives the upload up; where the store does not hear of it, it forgets it within a week."""
        url, self._url = self._url, ""
        self._held.clear()
        if url:
            with contextlib.suppress(Exception), answer("DELETE", url, {"Content-Length": "0"}):
                pass

    def _crc_base64(self) -> str:
        return base64.b64encode(self._crc.digest()).decode()

    def _small(self) -> Stat:
        def once() -> Stat:
            self._blob.upload_from_string(
                bytes(self._held),
                content_type=self._blob.content_type,
                checksum="crc32c",
                if_generation_match=self._precondition,
                timeout=TIMEOUT,
                retry=None,
            )
            return stat_of(self._blob)

        stat = self._to_bucket(once, damaged_tries=2)
        if (stat.size_bytes, stat.crc32c) != (len(self._held), self._crc.hexdigest().decode()):
            self._remove({"generation": stat.version})
            raise StoreError("damaged", f"upload of {self._place}: other bytes arrived than were sent; run embed again")
        return stat

    def _begin(self) -> str:
        def once() -> str:
            return str(
                self._blob.create_resumable_upload_session(
                    content_type=self._blob.content_type,
                    if_generation_match=self._precondition,
                    checksum=None,
                    timeout=TIMEOUT,
                    retry=None,
                )
            )

        return self._to_bucket(once)

    def _to_bucket(self, once: Callable[[], T], damaged_tries: int = 0) -> T:
        try:
            return patient("upload of", self._place, self._patience_s, once, damaged_tries)
        except FileNotFoundError:
            raise no_bucket(self._blob.bucket.name) from None

    def _send(self, length: int, last: bool) -> Mapping[str, Any] | None:
        """Sends `length` of the bytes that are held, again from where the store stands after a broken request."""
        self._url = self._url or self._begin()
        goal = self._sent + length

        def once() -> Mapping[str, Any] | None:
            if self._unsure:
                found = self._ask(b"", f"bytes */{goal if last else '*'}", {})
                self._unsure = False
                if found is not None:
                    return found
            while self._sent < goal:
                data = bytes(self._held[: goal - self._sent])
                before = self._sent
                self._unsure = True
                extra = {"X-Goog-Hash": f"crc32c={self._crc_base64()}"} if last else {}
                found = self._ask(data, f"bytes {before}-{goal - 1}/{goal if last else '*'}", extra)
                self._unsure = False
                if found is not None:
                    return found
                if self._sent == before:
                    raise Broken("the store kept nothing of what was sent")
            if last:
                self._unsure = True
                raise Broken("the store has every byte and does not end the upload")
            return None

        try:
            found = patient("upload of", self._place, self._patience_s, once)
        except FileNotFoundError:
            raise StoreError(
                "busy", f"upload of {self._place}: the store forgot it half-way; run embed again"
            ) from None
        if found is not None and not last:
            self._remove(found)
            raise StoreError("damaged", f"upload of {self._place}: the store ended it half-way; run embed again")
        return found

    def _ask(self, data: bytes, content_range: str, extra: Mapping[str, str]) -> Mapping[str, Any] | None:
        headers = {"Content-Range": content_range, "Content-Length": str(len(data)), **extra}
        try:
            with answer("PUT", self._url, headers, data) as response:
                text = b"".join(body(response, 1 << 20, GRACE_S))
                if response.status_code in (200, 201):
                    found = _object(text)
                    self._sent += len(self._held)
                    self._held.clear()
                    return found
                if response.status_code != 308:
                    raise Answered(response.status_code)
                kept = re.fullmatch(r"bytes=0-(\d+)", response.headers.get("Range", ""))
        except Answered as e:
            if e.status == 410:
                raise Answered(404) from None
            raise
        now = int(kept[1]) + 1 if kept else 0
        if not self._sent <= now <= self._sent + len(self._held):
            raise StoreError("busy", f"upload of {self._place}: the store lost a part of it; run embed again")
        del self._held[: now - self._sent]
        self._sent = now
        return None

    def _remove(self, found: Mapping[str, Any]) -> None:
        with contextlib.suppress(Exception):
            self._blob.delete(if_generation_match=int(found["generation"]), timeout=TIMEOUT, retry=None)


def _object(text: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        raise Broken("the answer to an upload ended early") from None
    if not isinstance(found, dict):
        raise Broken("the answer to an upload is no object")
    return found
