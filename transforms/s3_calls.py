"""Calls to S3: one client a process, retries up to a deadline, and errors in words that hold nothing secret."""

import base64
import contextlib
import importlib.util
import itertools
import os
import random
import threading
import time
from collections.abc import Collection
from typing import Any, Literal

import google_crc32c

from model.errors import BadInput
from transforms.storage import StoreError

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10, 60
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 20.0
DAMAGED_TRIES = 3  # bytes that arrive with another checksum this often are not the wire's fault
CHUNK_BYTES = 64 << 10  # of a body that is being read, between two looks at the clock

# Codes that say "again" beside every 5xx and 429 (API reference, "Error responses"). Those of NOT_DONE, as every
# other 4xx, say too that nothing was written: after the others a write may have happened.
AGAIN = {"RequestTimeout", "OperationAborted", "ConditionalRequestConflict", "BadDigest", "IncompleteBody"}
AGAIN |= {"XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch", "InternalError"}
NOT_DONE = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"}
DAMAGED = {"BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"}
FULL = {"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage"}
CURES = {
    "AccessDenied": "these credentials may not do this: give them s3:GetObject, s3:PutObject, s3:DeleteObject, "
    "s3:AbortMultipartUpload on the prefix, and s3:ListBucket and s3:ListBucketMultipartUploads on the bucket",
    "403": "these credentials may not do this, or the bucket is another account's",
    "NoSuchBucket": "there is no such bucket: create it, or correct --out",
    "RequestTimeTooSkewed": "the clock of this machine is wrong: set it",
    "InvalidAccessKeyId": "the store does not know this access key",
    "SignatureDoesNotMatch": "the secret key does not belong to this access key, or the region is wrong",
    "ExpiredToken": "the session token has run out: log in again",
    "InvalidToken": "the session token is not valid: log in again",
}

_lock = threading.Lock()
_clients: dict[tuple[int, str, float], Any] = {}


class Told(Exception):
    """An answer that the caller asked to be told of. `code`: S3's; `unsure`: an earlier try may have been done."""

    def __init__(self, code: str, unsure: bool) -> None:
        super().__init__(code, unsure)
        self.code, self.unsure = code, unsure


def client_of(endpoint: str, deadline_s: float) -> Any:
    """This process's client for an endpoint ("" for AWS), shared by its threads.

    Raises:
      BadInput: boto3 is not installed. StoreError: "refused", the profile or region of the environment is unusable.
    """
    if importlib.util.find_spec("boto3") is None:
        raise BadInput("--out s3://... needs boto3, which is not installed: pip install 'tessera-beam[s3]'")
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    read_s = min(READ_TIMEOUT_S, deadline_s)
    key = (os.getpid(), endpoint, read_s)  # a forked child must not share sockets with its parent
    with _lock:
        if key not in _clients:
            config = Config(
                connect_timeout=min(CONNECT_TIMEOUT_S, deadline_s),
                read_timeout=read_s,
                # Retried by `asked` alone: it must know whether a write may have happened before it was refused.
                retries={"total_max_attempts": 1, "mode": "standard"},
                max_pool_connections=64,
                tcp_keepalive=True,
                s3={"addressing_style": "path" if endpoint else "auto"},
                # CRC32C is sent and looked at here: botocore can do that only with another package, awscrt.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            )
            try:
                session = boto3.session.Session()
                region = os.environ.get("AWS_REGION") or session.region_name or "us-east-1"
                _clients[key] = session.client("s3", region, endpoint_url=endpoint or None, config=config)
            except (BotoCoreError, ValueError) as e:
                why = f"no S3 client ({type(e).__name__}): correct AWS_PROFILE, AWS_REGION and AWS_ENDPOINT_URL_S3"
                raise StoreError("refused", why) from None
        return _clients[key]


def asked(
    client: Any,
    operation: str,
    what: str,
    deadline_s: float,
    told: Collection[str] = (),
    into: bytearray | None = None,
    **params: Any,
) -> dict[str, Any]:
    """The answer to one operation, tried again until the deadline.

    Args:
      operation: as boto3 names it; what: the object, for words. params: the operation's.
      told: codes that are no error to the caller.
      into: the body is appended to it, whole: read again from its beginning where it breaks off.

    Returns:
      boto3's answer, with "Unsure": a try before the last may have been carried out too.

    Raises:
      Told: an answer of `told`. FileNotFoundError: NoSuchKey. StoreError: all else, with S3's code and no more of
        its text, which may name users and keys.
    """
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        FlexibleChecksumError,
        HTTPClientError,
        IncompleteReadError,
        ResponseStreamingError,
    )
    from botocore.parsers import ResponseParserError

    broken = (
        HTTPClientError,
        IncompleteReadError,
        ResponseStreamingError,
        ResponseParserError,
        ConnectionError,
        _Damaged,
    )
    end = time.monotonic() + deadline_s
    begun = len(into) if into is not None else 0
    unsure, damaged = False, 0
    kind: Literal["busy", "damaged"]
    for n in itertools.count():
        try:
            answer: dict[str, Any] = getattr(client, operation)(**params)
            if into is not None:
                _read(answer, into, end)
            return {**answer, "Unsure": unsure}
        except ClientError as e:
            code, status = str(e.response["Error"].get("Code", "")), _status(e.response)
            if code in told:
                raise Told(code, unsure) from None
            if not (
                code in AGAIN
                or code in NOT_DONE
                or status in (408, 429)
                or (status >= 500 and status not in (501, 507))
            ):
                raise _final(operation, what, code, status) from None
            kind = "damaged" if code in DAMAGED else "busy"
            unsure |= status >= 500 and code not in NOT_DONE
            why = code or str(status)
        except (*broken, FlexibleChecksumError) as e:
            kind = "damaged" if isinstance(e, (_Damaged, FlexibleChecksumError)) else "busy"
            unsure, why = True, type(e).__name__.lstrip("_")
        except BotoCoreError as e:
            raise _unusable(operation, what, type(e).__name__) from None
        if into is not None:
            del into[begun:]
        damaged += kind == "damaged"
        pause = random.uniform(0.5, 1.0) * min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(n, 10))
        if damaged == DAMAGED_TRIES:
            raise StoreError("damaged", f"{what}: {n + 1} tries of {operation} ended with {why}")
        if time.monotonic() + pause > end:
            raise StoreError("busy", f"{what}: {operation} failed for {deadline_s:g} s, at last with {why}")
        time.sleep(pause)
    raise AssertionError("unreachable")


class _Damaged(Exception):
    """A body whose bytes have another checksum than the store names."""


def _read(answer: dict[str, Any], into: bytearray, end: float) -> None:
    """Appends a body, and holds it against the checksum of the object where the answer is the whole of it."""
    from botocore.exceptions import ReadTimeoutError

    body, begun = answer["Body"], len(into)
    with contextlib.closing(body):
        while chunk := body.read(CHUNK_BYTES):
            into += chunk
            if time.monotonic() > end:
                raise ReadTimeoutError(endpoint_url="")
    crc = crc32c_of(answer) if "ContentRange" not in answer else ""
    if crc and crc != checksum(into[begun:] if begun else into):
        raise _Damaged


def _status(response: dict[str, Any]) -> int:
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _final(operation: str, what: str, code: str, status: int) -> Exception:
    # A body that is empty or broken off leaves the status alone. It can be that of the bucket: then the look before
    # work or the next write says so.
    if code == "NoSuchKey" or (operation == "get_object" and code == "404"):
        return FileNotFoundError(f"{what} is not there")
    said = f"{what}: {operation} was refused ({code or status})"
    if code in FULL or status == 507:
        return StoreError("full", f"{what}: the store is full ({code or status}): free space, or have the quota raised")
    cure = CURES.get(code, "")
    return StoreError("refused", f"{said}: {cure}" if cure else said)


def _unusable(operation: str, what: str, name: str) -> StoreError:
    if "Credential" in name or "Token" in name or "SSO" in name:
        cure = "no usable credentials: set AWS_PROFILE or AWS_ACCESS_KEY_ID, or log in again"
    else:
        cure = "the request could not be made: look at AWS_PROFILE, AWS_REGION and AWS_ENDPOINT_URL_S3"
    return StoreError("refused", f"{what}: {operation} ({name}): {cure}")


def checksum(data: bytes | bytearray) -> str:
    """The crc32c of bytes, eight hex digits."""
    crc = 0
    for at in range(0, len(data), 1 << 20):  # google_crc32c takes bytes alone: a bytearray is not copied at once
        crc = google_crc32c.extend(crc, bytes(data[at : at + (1 << 20)]))
    return f"{crc:08x}"


def crc_header(crc32c: str) -> str:
    """A crc32c as S3 writes it: base64 of its four bytes."""
    return base64.b64encode(bytes.fromhex(crc32c)).decode()


def crc32c_of(answer: dict[str, Any]) -> str:
    """The crc32c of a whole object or part from S3's answer, "" where it gives none.

    That of a multipart upload may be one of the checksums of its parts ("COMPOSITE", or "...==-3"): no use to us.
    """
    found = str(answer.get("ChecksumCRC32C") or "")
    if not found or "-" in found or answer.get("ChecksumType") == "COMPOSITE":
        return ""
    try:
        raw = base64.b64decode(found, validate=True)
    except ValueError:
        return ""
    return raw.hex() if len(raw) == 4 else ""
