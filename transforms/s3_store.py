"""A folder of an S3 bucket as a store: conditional puts, multipart uploads, and joins that the bucket makes itself."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from model.errors import BadInput
from transforms import s3_look
from transforms.disk_store import DAY_S
from transforms.s3_calls import Told, asked, checksum, client_of, crc32c_of, crc_header
from transforms.s3_parts import S3, Part, parts_of
from transforms.s3_uploads import SLOTS, Upload, Writer, slot
from transforms.storage import Entry, Loaded, Source, Stat, StoreError, check_name

DEADLINE_S = 300.0  # for one call with all its retries
KEYS_PER_CALL = 1000  # of a listing and of a delete, S3's most
ONE_PUT_BYTES = 64 << 20  # larger bytes are put in parts, each retried for itself
JOINERS = SLOTS * 2  # threads of a join: copies wait for the store, not for memory
TYPES = {
    ".geojson": "application/geo+json",
    ".html": "text/html",
    ".json": "application/json",
    ".parquet": "application/vnd.apache.parquet",
    ".png": "image/png",
    ".tif": "image/tiff; application=geotiff; profile=cloud-optimized",
}


@dataclasses.dataclass(frozen=True)
class S3Store:
    """A folder of a bucket on S3 or on a store that speaks its language.

    Versions are ETags: equal bytes written twice may have one and the same. A version that a call is conditional
    on stands for those bytes, whoever wrote them.

    Attributes:
      bucket: its name. prefix: the folder, without slashes at its ends; "" for the whole bucket.
      endpoint: of another store than AWS, with its scheme. deadline_s: for one call with all its retries.
    """

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    deadline_s: float = DEADLINE_S

    @property
    def url(self) -> str:
        """The root, as a person writes it."""
        return f"s3://{self.bucket}/{self.prefix}" if self.prefix else f"s3://{self.bucket}"

    def key(self, name: str) -> str:
        """The key of an object. Raises BadInput: a name that leads out of the root."""
        check_name(name, self.url)
        return f"{self.prefix}/{name}" if self.prefix and name else self.prefix or name

    def _folder(self, name: str) -> str:
        """What the keys below a folder begin with."""
        key = self.key(name.rstrip("/"))
        return f"{key}/" if key else ""

    def _name(self, key: str) -> str:
        return key[len(self.prefix) + 1 :] if self.prefix else key

    def _call(self, operation: str, what: str, **params: Any) -> dict[str, Any]:
        client = client_of(self.endpoint, self.deadline_s)
        return asked(client, operation, what, self.deadline_s, Bucket=self.bucket, **params)

    def _ask(self, operation: str, name: str, **params: Any) -> dict[str, Any]:
        return self._call(operation, f"{self.url}/{name}", Key=self.key(name), **params)

    def _read(self, name: str, into: bytearray, **params: Any) -> dict[str, Any]:
        return self._ask("get_object", name, into=into, ChecksumMode="ENABLED", **params)

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Bytes of an object from `start` on, held against its crc32c where they are all. Raises FileNotFoundError."""
        if length == 0:
            start, length = 0, 1  # no range has no bytes; whether there is such an object is asked all the same
            return self.get(name, start, length)[:0]
        ends = "" if length is None else start + length - 1
        wanted = {"Range": f"bytes={start}-{ends}"} if start or length is not None else {}
        found = bytearray()
        with contextlib.suppress(Told):  # behind the end of it
            self._read(name, found, told=("InvalidRange", "416"), **wanted)
        return bytes(found)

    def load(self, name: str) -> Loaded:
        """A whole object and its version. Raises FileNotFoundError."""
        found = bytearray()
        answer = self._read(name, found)
        return Loaded(bytes(found), answer["ETag"])

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Writes an object unless one of this name exists. False: it existed, and stays as it is."""
        return self._put(name, data, IfNoneMatch="*")

    def replace_if(self, name: str, data: bytes, version: str) -> bool:
        """Writes an object over that version of it, "" for none. False: it is another by now."""
        if not version:
            return self.put_if_absent(name, data)
        try:
            return self._put(name, data, IfMatch=version)
        except FileNotFoundError:
            return False

    def replace(self, name: str, data: bytes) -> None:
        """Writes an object over what was there."""
        self._put(name, data)

    def _put(self, name: str, data: bytes | bytearray, **condition: str) -> bool:
        if len(data) > ONE_PUT_BYTES:
            with self._uploading(name) as upload:
                for number, at in enumerate(range(0, len(data), S3.sent), 1):
                    with slot():
                        upload.send(number, data[at : at + S3.sent])
                done = upload.finish(**condition)
                if not done:
                    upload.abort()
                return done
        # The algorithm is named too: botocore would count it by itself only where the sum was not given.
        sums = {"ChecksumAlgorithm": "CRC32C", "ChecksumCRC32C": crc_header(checksum(data))}
        told = ("PreconditionFailed",) if condition else ()
        try:
            self._ask("put_object", name, told=told, Body=data, **sums, **_headers(name), **condition)
        except Told as e:
            # The answer to an earlier try may be the one that was lost: then what lies there is what was sent.
            return e.unsure and self._holds(name, data)
        return True

    def _holds(self, name: str, data: bytes | bytearray) -> bool:
        stat = self.stat(name)
        if stat is None or stat.size_bytes != len(data):
            return False
        if stat.crc32c:
            return stat.crc32c == checksum(data)
        try:
            return self.get(name) == data
        except FileNotFoundError:
            return False

    def _upload(self, name: str) -> Upload:
        return Upload(self._call, f"{self.url}/{name}", self.key(name), _headers(name))

    @contextlib.contextmanager
    def _uploading(self, name: str) -> Iterator[Upload]:
        upload = self._upload(name)
        try:
            yield upload
        except BaseException:
            upload.abort()
            raise

    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        """A file object whose bytes become the object, over what was there, when the block ends without an error."""
        self.key(name)
        f = Writer(lambda: self._upload(name), lambda data: self.replace(name, data))
        try:
            yield cast(BinaryIO, f)
            f.finish()
        except BaseException:
            f.abort()
            raise

    def join(self, name: str, head: bytes, sources: Sequence[Source], scratch: str) -> Stat:
        """Writes `head` and the sources as one object. The store copies all but what is too small for a part.

        Nothing lies under `scratch`: parts are no objects. At most `SLOTS` parts of less than 16 MiB are in memory
        at once, of all joins of this process together.

        Raises:
          FileNotFoundError: a source is not there. StoreError: "damaged", a source of another size or that was
            written over meanwhile; "refused", more parts than S3 takes.
        """
        tags = self._tags(sources)
        try:
            parts = parts_of(len(head), [s.size_bytes for s in sources], S3)
        except ValueError as e:
            raise StoreError("refused", f"{self.url}/{name}: {e}: choose larger blocks") from None
        if len(parts) <= 1 and not any(p.copied for p in parts):
            with slot():
                data = self._bytes(parts[0], head, sources, tags) if parts else bytearray()
                self._put(name, data)
                crc, size = checksum(data), len(data)
        else:
            with self._uploading(name) as upload:
                self._send_all(upload, parts, head, sources, tags)
                upload.finish()
                crc, size = upload.crc32c, upload.size_bytes
        stat = self.stat(name)
        if stat is None:
            raise FileNotFoundError(f"{self.url}/{name} was removed by another process")
        if stat.size_bytes != size:
            raise StoreError("damaged", f"{self.url}/{name} has {stat.size_bytes} bytes in place of {size}")
        return dataclasses.replace(stat, crc32c=stat.crc32c or crc)

    def _send_all(
        self, upload: Upload, parts: Sequence[Part], head: bytes, sources: Sequence[Source], tags: dict[str, str]
    ) -> None:
        def make(number: int, part: Part) -> None:
            if not part.copied:
                with slot():
                    upload.send(number, self._bytes(part, head, sources, tags))
                return
            piece, source = part.pieces[0], sources[part.pieces[0].source]
            place = {"Bucket": self.bucket, "Key": self.key(source.name)}
            upload.copy(number, place, tags[source.name], piece.start, piece.stop, f"{self.url}/{source.name}")

        with ThreadPoolExecutor(JOINERS) as pool:
            tasks = [pool.submit(make, n, part) for n, part in enumerate(parts, 1)]
            try:
                for task in wait(tasks, return_when=FIRST_EXCEPTION).done:
                    task.result()
            finally:  # an abort while a part is on its way would leave that part
                pool.shutdown(wait=True, cancel_futures=True)

    def _bytes(self, part: Part, head: bytes, sources: Sequence[Source], tags: dict[str, str]) -> bytearray:
        data = bytearray()
        for piece in part.pieces:
            if piece.source < 0:
                data += head[piece.start : piece.stop]
                continue
            name, before = sources[piece.source].name, len(data)
            wanted = {"Range": f"bytes={piece.start}-{piece.stop - 1}", "IfMatch": tags[name]}
            with contextlib.suppress(Told):
                self._read(name, data, told=("PreconditionFailed", "InvalidRange", "416"), **wanted)
            if len(data) - before != piece.stop - piece.start:
                raise StoreError("damaged", f"{self.url}/{name} was written over while it was joined")
        return data

    def _tags(self, sources: Sequence[Source]) -> dict[str, str]:
        """The ETag of every source, from listings of their folders: a call for a thousand, not one for each."""
        folders: dict[str, list[str]] = {}
        for s in sources:
            folders.setdefault(s.name.rpartition("/")[0], []).append(self.key(s.name))
        found: dict[str, Any] = {}
        for keys in folders.values():
            begin = os.path.commonprefix(keys)  # noqa: RUF071 of characters, as S3 has it
            for page in self._pages(begin, Delimiter="/"):
                found.update((o["Key"], o) for o in page.get("Contents", []))
        tags = {}
        for s in sources:
            known = found.get(self.key(s.name))
            if known is None:
                raise FileNotFoundError(f"{self.url}/{s.name} is not there")
            if known["Size"] != s.size_bytes:
                what = f"{self.url}/{s.name} has {known['Size']} bytes in place of {s.size_bytes}"
                raise StoreError("damaged", what)
            tags[s.name] = str(known["ETag"])
        return tags

    def stat(self, name: str) -> Stat | None:
        """What is known of an object, or None where there is none; crc32c where the store keeps that of the whole."""
        try:
            found = self._ask("head_object", name, told=("404", "NoSuchKey"), ChecksumMode="ENABLED")
        except Told:
            return None
        return Stat(found["ContentLength"], found["ETag"], crc32c_of(found), found["LastModified"].timestamp())

    def _pages(self, prefix: str, **params: Any) -> Iterator[dict[str, Any]]:
        after: dict[str, str] = {}
        while True:
            page = self._call("list_objects_v2", self.url, Prefix=prefix, MaxKeys=KEYS_PER_CALL, **params, **after)
            yield page
            if not page.get("IsTruncated"):
                return
            after = {"ContinuationToken": page["NextContinuationToken"]}

    def names(self, prefix: str) -> list[str]:
        """Objects directly below `prefix` (a folder), sorted."""
        pages = self._pages(self._folder(prefix), Delimiter="/")
        keys = [o["Key"] for page in pages for o in page.get("Contents", [])]
        return sorted(self._name(k) for k in keys if not k.endswith("/"))

    def folders(self, prefix: str) -> list[str]:
        """Folders directly below `prefix`, sorted."""
        pages = self._pages(self._folder(prefix), Delimiter="/")
        return sorted(self._name(f["Prefix"][:-1]) for page in pages for f in page.get("CommonPrefixes", []))

    def walk(self, prefix: str) -> Iterator[Entry]:
        """Every object below a folder, by name. A listing holds no checksums."""
        for page in self._pages(self._folder(prefix)):
            for o in page.get("Contents", []):
                if not o["Key"].endswith("/"):  # the mark that some tools leave for an empty folder
                    stat = Stat(o["Size"], str(o["ETag"]), "", o["LastModified"].timestamp())
                    yield Entry(self._name(o["Key"]), stat)

    def delete(self, name: str) -> None:
        """Removes an object; nothing happens where there is none."""
        with contextlib.suppress(FileNotFoundError):
            self._ask("delete_object", name)

    def delete_all(self, prefix: str) -> None:
        """Removes all objects below a folder, and the marks that stand for folders."""
        for page in self._pages(self._folder(prefix)):
            keys = [o["Key"] for o in page.get("Contents", [])]
            if keys:
                wanted = {"Objects": [{"Key": k} for k in keys], "Quiet": True}
                refused = self._call("delete_objects", self.url, Delete=wanted).get("Errors", [])
                for one in refused:  # each by itself: with the retries and the words of a call
                    self.delete(self._name(one["Key"]))

    def sweep(self) -> None:
        """Aborts uploads below this root that are older than a day by the store's clock: their writers are dead.

        Without the right to list uploads nothing is swept; `concerns` names the rule of the bucket that does it.
        """
        try:
            for upload, now_s in self._uploads():
                if now_s - upload["Initiated"].timestamp() > DAY_S:
                    what = f"{self.url}/{self._name(upload['Key'])}"
                    with contextlib.suppress(Told):
                        self._call(
                            "abort_multipart_upload", what, told=("NoSuchUpload",), Key=upload["Key"],
                            UploadId=upload["UploadId"],
                        )  # fmt: skip
        except StoreError as e:
            if e.kind != "refused":
                raise

    def _uploads(self) -> Iterator[tuple[dict[str, Any], float]]:
        """Unfinished uploads below the root, each with the store's time."""
        after: dict[str, str] = {}
        while True:
            page = self._call("list_multipart_uploads", self.url, Prefix=self._folder(""), **after)
            date = page["ResponseMetadata"]["HTTPHeaders"].get("date", "")
            now_s = parsedate_to_datetime(date).timestamp() if date else 0.0  # no clock, nothing is old
            for upload in page.get("Uploads", []):
                yield upload, now_s
            if not page.get("IsTruncated"):
                return
            after = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def concerns(self) -> list[str]:
        """What the bucket's settings will do to the bill or the files: sentences with their cure.

        Raises:
          BadInput: there is no such bucket, or it cannot be written to.
        """
        quick = dataclasses.replace(self, deadline_s=min(self.deadline_s, s3_look.DEADLINE_S))
        return s3_look.concerns(quick._call, self.url, self._folder(""))


def _headers(name: str) -> dict[str, str]:
    """The content type, where browsers and map servers go by it."""
    kind = TYPES.get(os.path.splitext(name)[1])  # noqa: PTH122 a key is no path
    return {"ContentType": kind} if kind else {}


def s3_store(url: str) -> S3Store:
    """The store of `s3://bucket/prefix`, at the endpoint of AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL where one is set.

    Raises:
      BadInput: not a bucket's name, or an endpoint that is no http address or that holds a user or password.
    """
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
        # Not shown: what stands before an @ is somebody's key.
        raise BadInput("--out s3://...: a bucket's name is 3 to 63 of a-z, 0-9, '.' and '-', without keys before it")
    if bucket.endswith("--x-s3"):
        raise BadInput(f"--out s3://{bucket}: directory buckets list in no order: choose a general purpose bucket")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    parts = urlsplit(endpoint)
    if endpoint and (parts.scheme not in ("http", "https") or not parts.hostname or "@" in endpoint or parts.query):
        raise BadInput("AWS_ENDPOINT_URL_S3: it must be http(s)://host:port, without user, password or query")
    store = S3Store(bucket, prefix.strip("/"), endpoint)
    check_name(store.prefix, f"s3://{bucket}")
    return store
