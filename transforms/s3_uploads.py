"""Multipart uploads to S3: an object in parts that is whole at the last call, or never there."""

import contextlib
import hashlib
import io
import re
import threading
from collections.abc import Callable
from typing import Any

from transforms.checksums import combined
from transforms.s3_calls import Told, checksum, crc32c_of, crc_header
from transforms.s3_parts import S3
from transforms.storage import StoreError

# Answers of stores that know multipart uploads, but no checksum of the whole of one (an addition of 2025).
NO_CHECKSUM = ("InvalidRequest", "InvalidArgument", "NotImplemented", "UnsupportedOperation", "InvalidHeader")

# Parts in memory at once in this process, of all stores and threads together: 4 of less than 16 MiB. An open writer
# holds up to 8 MiB more, which nobody but it can wait for.
SLOTS = 4
_slots = threading.BoundedSemaphore(SLOTS)


class Upload:
    """One multipart upload: parts in any order and from many threads, then `finish` or `abort`.

    Args:
      call: calls an operation on the bucket with retries (`asked`), with the words for errors as `what`.
      key: of the object. headers: content type and the like.
    """

    def __init__(self, call: Callable[..., dict[str, Any]], what: str, key: str, headers: dict[str, str]) -> None:
        self._call, self._what, self._key = call, what, key
        self._sums = True
        try:
            begun = self._ask(
                "create_multipart_upload",
                NO_CHECKSUM,
                ChecksumAlgorithm="CRC32C",
                ChecksumType="FULL_OBJECT",
                **headers,
            )
        except Told:
            self._sums = False
            begun = self._ask("create_multipart_upload", (), **headers)
        self._id = begun["UploadId"]
        self._parts: dict[int, tuple[dict[str, Any], int]] = {}

    def _ask(self, operation: str, told: tuple[str, ...] = (), **params: Any) -> dict[str, Any]:
        return self._call(operation, self._what, told=told, Key=self._key, **params)

    def send(self, number: int, data: bytes | bytearray) -> None:
        """A part from memory, from number 1 on."""
        crc = {"ChecksumCRC32C": crc_header(checksum(data))} if self._sums else {}
        done = self._ask_open("upload_part", PartNumber=number, Body=data, **crc)
        self._parts[number] = ({"PartNumber": number, "ETag": done["ETag"], **crc}, len(data))

    def copy(self, number: int, source: dict[str, str], etag: str, start: int, stop: int, what: str) -> None:
        """A part that the store copies from an object of it, as long as that has the same ETag.

        Raises:
          FileNotFoundError: the source is not there. StoreError: "damaged", it was written over.
        """
        try:
            done = self._call(
                "upload_part_copy", what, told=("PreconditionFailed", "NoSuchUpload"), Key=self._key,
                UploadId=self._id, PartNumber=number, CopySource=source, CopySourceIfMatch=etag,
                CopySourceRange=f"bytes={start}-{stop - 1}",
            )["CopyPartResult"]  # fmt: skip
        except Told as e:
            if e.code == "NoSuchUpload":
                raise self._lost() from None
            raise StoreError("damaged", f"{what} was written over while it was joined") from None
        crc = crc32c_of(done)
        sums = {"ChecksumCRC32C": crc_header(crc)} if crc and self._sums else {}
        self._parts[number] = ({"PartNumber": number, "ETag": done["ETag"], **sums}, stop - start)

    def _ask_open(self, operation: str, **params: Any) -> dict[str, Any]:
        try:
            return self._ask(operation, ("NoSuchUpload",), UploadId=self._id, **params)
        except Told:
            raise self._lost() from None

    def _lost(self) -> StoreError:
        return StoreError("busy", f"{self._what}: its upload was ended by somebody else: run again")

    @property
    def crc32c(self) -> str:
        """The crc32c of all parts in order, "" where the store did not say that of a copied one."""
        found = [(crc32c_of(part), size) for part, size in self._in_order()]
        if not found or not all(crc for crc, _ in found):
            return ""
        whole = "00000000"
        for crc, size in found:
            whole = combined(whole, crc, size)
        return whole

    @property
    def size_bytes(self) -> int:
        return sum(size for _, size in self._parts.values())

    def _in_order(self) -> list[tuple[dict[str, Any], int]]:
        return [self._parts[n] for n in sorted(self._parts)]

    def finish(self, **condition: str) -> bool:
        """Makes the object of the parts. False: `condition` (IfNoneMatch, IfMatch) did not hold.

        An answer that was lost is looked up: the upload is gone after a success, and the object is ours where its
        size and its checksum or ETag are those of the parts.
        """
        whole = self.crc32c
        sums = {"ChecksumCRC32C": crc_header(whole), "ChecksumType": "FULL_OBJECT"} if whole and self._sums else {}
        try:
            self._ask(
                "complete_multipart_upload", ("NoSuchUpload", "PreconditionFailed", "NoSuchKey"), UploadId=self._id,
                MultipartUpload={"Parts": [part for part, _ in self._in_order()]}, MpuObjectSize=self.size_bytes,
                **sums, **condition,
            )  # fmt: skip
        except Told as e:
            if e.unsure and self._is_there():
                return True
            if e.code == "NoSuchUpload":
                raise self._lost() from None
            return False
        return True

    def _is_there(self) -> bool:
        try:
            found = self._ask("head_object", ("404", "NoSuchKey"), ChecksumMode="ENABLED")
        except Told:
            return False
        if found["ContentLength"] != self.size_bytes:
            return False
        crc = crc32c_of(found)
        if crc and self.crc32c:
            return crc == self.crc32c
        return bool(found["ETag"].strip('"') == self._etag())

    def _etag(self) -> str:
        """That of the whole where the store makes it as S3 does without keys of the owner: MD5 of the parts' MD5s."""
        tags = [str(part["ETag"]).strip('"') for part, _ in self._in_order()]
        if not all(re.fullmatch("[0-9a-f]{32}", t) for t in tags):
            return "unknown"
        return f"{hashlib.md5(bytes.fromhex(''.join(tags)), usedforsecurity=False).hexdigest()}-{len(tags)}"

    def abort(self) -> None:
        """Frees the parts. What cannot be aborted now, `sweep` aborts a day later: no error hides the first one."""
        with contextlib.suppress(Told, StoreError):
            self._ask("abort_multipart_upload", ("NoSuchUpload",), UploadId=self._id)


@contextlib.contextmanager
def slot() -> Any:
    """Room for one part in memory. Nobody who holds one may ask for another."""
    with _slots:
        yield


class Writer(io.RawIOBase):
    """A file that is written from its beginning to its end: parts of 8 MiB, and one put for less than a part.

    Args:
      begin: starts the upload, when there is more than a part. put: writes all there is, when there is not.
    """

    def __init__(self, begin: Callable[[], Upload], put: Callable[[bytes], None]) -> None:
        super().__init__()
        self._begin, self._put = begin, put
        self._held, self._sent_bytes, self._parts = bytearray(), 0, 0
        self._upload: Upload | None = None

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        """Bytes written so far."""
        return self._sent_bytes + len(self._held)

    def write(self, data: Any) -> int:
        """Takes all bytes; sends what is a part or more."""
        view, at = memoryview(data).cast("B"), 0
        while at < len(view):
            if len(self._held) == S3.sent:  # and not sooner: what may be the last part must not be empty
                self._send()
            take = min(len(view) - at, S3.sent - len(self._held))
            self._held += view[at : at + take]
            at += take
        return len(view)

    def _send(self) -> None:
        if self._parts == S3.parts:
            raise StoreError("refused", f"an object of more than {S3.parts} parts of {S3.sent} bytes cannot be written")
        self._upload = self._upload or self._begin()
        self._parts += 1
        self._upload.send(self._parts, self._held)
        self._sent_bytes += len(self._held)
        self._held = bytearray()

    def finish(self) -> None:
        """Makes the object."""
        if self._upload is None:
            self._put(bytes(self._held))
            return
        if self._held:
            self._send()
        self._upload.finish()

    def abort(self) -> None:
        """Leaves nothing."""
        if self._upload is not None:
            self._upload.abort()
