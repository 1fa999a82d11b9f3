"""Calls to Google Cloud Storage: a client per process, patience with a deadline, errors without secrets."""

import contextlib
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

import requests
import urllib3.exceptions
from requests.adapters import HTTPAdapter

from model.errors import BadInput
from transforms.storage import StoreError

T = TypeVar("T")

PATIENCE_S = 240.0  # how long a call is tried again: outages of minutes are common, longer ones end the block
CONNECT_S = 10.0
READ_S = 60.0  # without a single byte; compose and the end of an upload answer late
TIMEOUT = (CONNECT_S, READ_S)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 16.0  # doubled each time, with jitter (Google's advice on retries)
CONNECTIONS = 64  # kept open and shared by all threads; the library's own ten make the others open new ones
ERROR_BYTES = 64 << 10
SCOPES = ("https://www.googleapis.com/auth/devstorage.read_write",)
# https://cloud.google.com/storage/docs/retry-strategy, and 403 with the reasons that only ask for a slower pace.
PASSING = frozenset({408, 429, 500, 502, 503, 504})
PACE = frozenset({"rateLimitExceeded", "userRateLimitExceeded"})
SIGN_IN = "sign in with 'gcloud auth application-default login', or run as a service account"

_lock = threading.Lock()
_sessions: dict[tuple[int, str], "Session"] = {}


class Session(NamedTuple):
    """The library's client, and the signed HTTP session below it for bytes of objects."""

    client: Any
    http: requests.Session


class Answered(Exception):
    """An answer that is an error: HTTP status, Google's one-word reason, its text (never shown: it holds addresses)."""

    def __init__(self, status: int, reason: str = "", text: str = "") -> None:
        super().__init__(status, reason)
        self.status, self.reason, self.text = status, reason, text


class Broken(Exception):
    """An answer that ended early, came too slowly or is not what its own headers say: worth another try."""


class Changed(Exception):
    """A precondition did not hold. `in_doubt`: an earlier try of the same call may have been what changed it."""

    def __init__(self, in_doubt: bool) -> None:
        super().__init__(in_doubt)
        self.in_doubt = in_doubt


class PastTheEnd(Exception):
    """A range that starts behind an object's last byte."""


def library() -> Any:
    """google.cloud.storage.

    Raises:
      BadInput: it is not installed.
    """
    try:
        from google.cloud import storage
    except ImportError:
        raise BadInput("gs:// needs google-cloud-storage: pip install 'tessera-beam[gcp]'") from None
    return storage


def session() -> Session:
    """The session of this process, made at first use, shared by its threads, and not by processes forked from it.

    Raises:
      StoreError: "refused", no credentials.
    """
    key = (os.getpid(), os.environ.get("STORAGE_EMULATOR_HOST", ""))
    with _lock:
        if key not in _sessions:
            _sessions[key] = _session(anonymous=bool(key[1]))
        return _sessions[key]


def fresh_client() -> Any:
    """Another client over this session: what the library remembers of a bucket, it asks about again at every 404."""
    http = session().http
    return library().Client(project=None, credentials=cast(Any, http).credentials, _http=http)


def _session(anonymous: bool) -> Session:
    # Or the library looks the bucket up, in a thread, beside our first call and with every object that is not there.
    os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "1")
    storage = library()
    import google.auth
    from google.auth.credentials import AnonymousCredentials
    from google.auth.transport.requests import AuthorizedSession

    if anonymous:
        credentials = AnonymousCredentials()
    else:
        try:
            credentials, _ = google.auth.default(scopes=SCOPES)
        except google.auth.exceptions.DefaultCredentialsError:
            raise StoreError("refused", f"gs:// has no credentials here: {SIGN_IN}") from None
    http = AuthorizedSession(credentials)
    for scheme in ("http://", "https://"):
        http.mount(scheme, HTTPAdapter(pool_connections=4, pool_maxsize=CONNECTIONS))
    return Session(storage.Client(project=None, credentials=credentials, _http=http), http)


def patient(what: str, place: str, patience_s: float, once: Callable[[], T], damaged_tries: int = 0) -> T:
    """Runs `once` until it answers, with growing pauses.

    Args:
      what: of the call, for messages: "upload of". place: the object or bucket.
      patience_s: no try starts later than this.
      damaged_tries: how often bytes that did not arrive as they were sent are sent again.

    Raises:
      FileNotFoundError: 404. Changed: 412. PastTheEnd: 416. StoreError: all else that is the store's fault.
    """
    end, pause, in_doubt = time.monotonic() + patience_s, FIRST_PAUSE_S, False
    while True:
        try:
            return once()
        except Exception as e:
            fault = _fault(e)
            if fault is None:
                raise
            if not fault.passing:
                error = _error(fault, what, place, in_doubt)
                if damaged_tries == 0 or not isinstance(error, StoreError) or error.kind != "damaged":
                    raise error from None
                damaged_tries -= 1
            in_doubt = True
            wait = random.uniform(pause / 2, pause)
            if time.monotonic() + wait > end:
                raise StoreError("busy", f"{what} {place} failed for {patience_s:.0f} s: {fault.words}") from None
        time.sleep(wait)
        pause = min(2 * pause, LONGEST_PAUSE_S)


class _Fault(NamedTuple):
    """What an exception of the store says. status: 0 where nothing answered. words: for people."""

    passing: bool
    status: int
    reason: str
    words: str
    text: str = ""


def _fault(e: Exception) -> _Fault | None:
    """None: not the store's fault, so not to be dressed up as such."""
    from google.api_core.exceptions import GoogleAPICallError
    from google.auth.exceptions import GoogleAuthError, TransportError
    from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

    if isinstance(e, Answered):
        return _answered(e.status, e.reason, e.text)
    if isinstance(e, GoogleAPICallError):
        # The library reads the reason out of some answers; of those to uploads it keeps the whole text.
        return _answered(int(e.code or 0), *_told(e.response.text if e.response is not None else str(e.message)))
    if isinstance(e, InvalidResponse):
        return _answered(int(e.response.status_code), *_told(e.response.text))
    if isinstance(e, DataCorruption | Broken):
        return _Fault(True, 0, "", str(e) if isinstance(e, Broken) else "bytes arrived damaged")
    if isinstance(e, GoogleAuthError):
        if isinstance(e, TransportError) or e.retryable:
            return _Fault(True, 0, "", "the service that signs in did not answer")
        return _Fault(False, 401, "", "")
    passing = (
        requests.ConnectionError,  # also of TLS and proxies
        requests.Timeout,
        requests.exceptions.ChunkedEncodingError,
        requests.exceptions.ContentDecodingError,
        requests.exceptions.JSONDecodeError,  # half an answer, or a proxy's page
        urllib3.exceptions.HTTPError,
        ConnectionError,
        TimeoutError,
    )
    return _Fault(True, 0, "", f"the connection broke ({type(e).__name__})") if isinstance(e, passing) else None


def _answered(status: int, reason: str, text: str) -> _Fault:
    reason = reason if re.fullmatch(r"[A-Za-z]{1,40}", reason) else ""
    words = f"HTTP {status}" + f" {reason}" * bool(reason)
    return _Fault(status in PASSING or (status == 403 and reason in PACE), status, reason, words, text)


def _error(fault: _Fault, what: str, place: str, in_doubt: bool) -> Exception:
    bucket = urlsplit(place).netloc
    if fault.status == 412:
        return Changed(in_doubt)
    if fault.status == 416:
        return PastTheEnd()
    if fault.status == 404 and "bucket does not exist" in fault.text:
        return no_bucket(bucket)
    if fault.status == 404:
        return FileNotFoundError(place)
    if fault.status == 401:
        return StoreError("refused", f"{what} {place} was refused: the sign-in is missing or has run out: {SIGN_IN}")
    if fault.reason == "quotaExceeded":
        return StoreError("full", f"{what} {place} was refused ({fault.words}): raise the quota of the project")
    if "retention" in fault.reason.lower() or "hold" in fault.reason.lower():
        cure = f"take the retention policy or hold off gs://{bucket}"
        return StoreError("refused", f"{what} {place} was refused ({fault.words}): {cure}, or use another bucket")
    if fault.status == 403:
        cure = f"grant this account roles/storage.objectUser on gs://{bucket}"
        return StoreError("refused", f"{what} {place} was refused ({fault.words}): {cure}")
    if fault.status == 400 and re.search("crc32c|md5|hash|checksum", fault.text, re.IGNORECASE):
        return StoreError("damaged", f"{what} {place}: other bytes arrived than were sent; run embed again")
    return StoreError("refused", f"{what} {place} was refused ({fault.words})")


def no_bucket(bucket: str) -> StoreError:
    return StoreError("refused", f"there is no bucket {bucket}: create it, or mend gs://{bucket}")


@contextlib.contextmanager
def answer(
    method: Literal["GET", "PUT", "DELETE"], url: str, headers: Mapping[str, str], data: bytes | None = None
) -> Iterator[requests.Response]:
    """One request, whose body is read by the caller. Raises Answered where it is neither 2xx nor 308 (go on)."""
    response = session().http.request(
        method, url, headers=dict(headers), data=data, stream=True, timeout=TIMEOUT, allow_redirects=False
    )
    try:
        if not (200 <= response.status_code < 300 or response.status_code == 308):
            raise _refusal(response)
        yield response
    finally:
        response.close()  # a connection whose answer was read to its end has gone back to the others by then


def _refusal(response: requests.Response) -> Answered:
    with contextlib.suppress(Exception):
        text = b"".join(body(response, ERROR_BYTES, CONNECT_S)).decode("utf-8", "replace")
        return Answered(response.status_code, *_told(text))
    return Answered(response.status_code)


def _told(text: str) -> tuple[str, str]:
    """(reason, message) of an error's body; answers that are no JSON are a message as they stand."""
    try:
        error = json.loads(text)["error"]
        return str(error["errors"][0]["reason"]), str(error["message"])
    except (ValueError, LookupError, TypeError):
        return "", text


def body(response: requests.Response, most_bytes: int, limit_s: float) -> Iterator[bytes]:
    """An answer's body as it comes.

    Raises:
      Broken: more than `most_bytes`, or still not at its end after `limit_s`.
    """
    end, got = time.monotonic() + limit_s, 0
    while chunk := response.raw.read1(1 << 20, decode_content=False):
        got += len(chunk)
        if got > most_bytes:
            raise Broken(f"more than the {most_bytes} bytes that were announced")
        yield chunk
        if time.monotonic() > end:
            raise Broken(f"{got} bytes in {limit_s:.0f} s")
