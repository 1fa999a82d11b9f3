"""S3 signatures: what a request for a file of a closed bucket must carry, made for each request from keys of the
environment."""

import datetime as dt
import email.utils
import hashlib
import hmac
import os
import re
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from typing import NoReturn

from transforms import hosts
from transforms.fetching import FetchError

BUCKET = "eodata"  # of the Copernicus Data Space
REGION = "default"  # documentation.dataspace.copernicus.eu, APIs/S3
# Names of its own, since AWS_ACCESS_KEY_ID is Amazon's key for those whose output lies there, and is nobody else's
# business. It counts where AWS_S3_ENDPOINT says whose key it is, which is how that documentation sets GDAL up.
ID_VARIABLE, SECRET_VARIABLE = "CDSE_S3_ACCESS_KEY", "CDSE_S3_SECRET_KEY"
ENDPOINT_VARIABLE = "CDSE_S3_ENDPOINT"  # another way to the same bucket, of a machine within CREODIAS for one
AWS_ID, AWS_SECRET, AWS_ENDPOINT = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_S3_ENDPOINT"
KEYS_MANAGER = "eodata-s3keysmanager.dataspace.copernicus.eu"  # gives keys to whoever has an account

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
MOST_SKEW_S = 7 * 86_400.0  # a server whose date is further from ours than this is not believed

_ID = re.compile(r"[A-Za-z0-9._~+=-]{4,128}")


class Keys:
    """An access key and its secret. Neither shown nor pickled."""

    __slots__ = ("name", "secret")

    def __init__(self, name: str, secret: str) -> None:
        self.name, self.secret = name, secret

    def __repr__(self) -> str:
        return "Keys()"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys stay in their process")


def endpoint() -> str:
    """Scheme and host where the bucket is asked for, without a slash at the end.

    Raises:
      FetchError: of kind "refused": the environment names another thing than a server.
    """
    said = os.environ.get(ENDPOINT_VARIABLE, "").strip().rstrip("/")
    if not said:
        return f"https://{hosts.CDSE[0]}"
    url = said if "://" in said else f"https://{said}"
    hosts.place_of(url)
    if urllib.parse.urlsplit(url).path or urllib.parse.urlsplit(url).query:
        raise FetchError("refused", f"{ENDPOINT_VARIABLE} is scheme and host alone, as https://{hosts.CDSE[0]}")
    return url


def places() -> frozenset[str]:
    """The servers of the bucket, as `Place` writes them."""
    return frozenset((*hosts.CDSE, str(hosts.place_of(endpoint()))))


def url_of(key: str) -> str:
    """The URL of an object of the bucket, path style. Raises FetchError as `endpoint`."""
    return f"{endpoint()}/{BUCKET}/{urllib.parse.quote(key.lstrip('/'))}"


def keys() -> Keys | None:
    """The keys of the environment, None where there are none.

    Raises:
      FetchError: of kind "refused": one without the other, or no key at all in its place.
    """
    pairs = [(ID_VARIABLE, SECRET_VARIABLE)]
    if _is_the_endpoint(os.environ.get(AWS_ENDPOINT, "")):
        pairs.append((AWS_ID, AWS_SECRET))
    for id_variable, secret_variable in pairs:
        name, secret = (os.environ.get(v, "").strip() for v in (id_variable, secret_variable))
        if not name and not secret:
            continue
        if not name or not secret:
            raise FetchError("refused", f"{id_variable} and {secret_variable} go together: one of them is not set")
        if not _ID.fullmatch(name) or not secret.isascii():
            raise FetchError("refused", f"{id_variable} or {secret_variable} holds no key")
        return Keys(name, secret)
    return None


def missing() -> str | None:
    """What is wanting to read the bucket, with the cure; None where nothing is. Nobody is asked whether keys are good.

    Raises:
      FetchError: as `keys` and `endpoint`.
    """
    if keys() is not None:
        return None
    return (
        f"files of the Copernicus Data Space are for holders of keys: set {ID_VARIABLE} and {SECRET_VARIABLE}, "
        f"which {KEYS_MANAGER} gives ({AWS_ID} and {AWS_SECRET} count where {AWS_ENDPOINT}={hosts.CDSE[0]})"
    )


def _is_the_endpoint(said: str) -> bool:
    try:
        return str(hosts.place_of(said if "://" in said else f"https://{said}")) in places()
    except FetchError:
        return False


def headers(url: str, keys: Keys, when: dt.datetime, region: str = REGION) -> dict[str, str]:
    """Headers that sign a GET of `url` (AWS, "Signature Version 4", header form). Which bytes are asked for is free.

    Args:
      when: the time of the request, UTC.
    """
    parts = urllib.parse.urlsplit(url)
    stamp, day = when.strftime("%Y%m%dT%H%M%SZ"), when.strftime("%Y%m%d")
    sent = {"host": _host(parts), "x-amz-content-sha256": EMPTY_SHA256, "x-amz-date": stamp}
    authorization = signature(parts.path, parts.query, sent, keys, f"{day}/{region}/s3/aws4_request")
    return {"x-amz-content-sha256": EMPTY_SHA256, "x-amz-date": stamp, "Authorization": authorization}


def signature(path: str, query: str, sent: Mapping[str, str], keys: Keys, scope: str) -> str:
    """The Authorization header of a GET.

    Args:
      sent: the headers that are signed, names in lower case; x-amz-content-sha256 and x-amz-date among them.
      scope: day/region/service/aws4_request.
    """
    names = ";".join(sorted(sent))
    listed = "".join(f"{name}:{' '.join(sent[name].split())}\n" for name in sorted(sent))
    pairs = sorted((_quoted(k), _quoted(v)) for k, v in urllib.parse.parse_qsl(query, keep_blank_values=True))
    canonical_path = urllib.parse.quote(urllib.parse.unquote(path or "/"), safe="/-_.~")
    canonical_query = "&".join(f"{k}={v}" for k, v in pairs)
    request = f"GET\n{canonical_path}\n{canonical_query}\n{listed}\n{names}\n{sent['x-amz-content-sha256']}"
    digest = hashlib.sha256(request.encode()).hexdigest()
    to_sign = f"AWS4-HMAC-SHA256\n{sent['x-amz-date']}\n{scope}\n{digest}"
    key = f"AWS4{keys.secret}".encode()
    for word in scope.split("/"):
        key = hmac.digest(key, word.encode(), "sha256")
    made = hmac.digest(key, to_sign.encode(), "sha256").hex()
    return f"AWS4-HMAC-SHA256 Credential={keys.name}/{scope}, SignedHeaders={names}, Signature={made}"


def _quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="-_.~")


def _host(parts: urllib.parse.SplitResult) -> str:
    """As HTTP sends it: without the port that its scheme implies."""
    own = {"https": 443, "http": 80}.get(parts.scheme)
    name = parts.hostname or ""
    name = f"[{name}]" if ":" in name else name
    return name if parts.port in (None, own) else f"{name}:{parts.port}"


class Clock:
    """The time that servers go by: ours, put right where one turned a request down and said what time it has.

    S3 takes signatures of the last quarter of an hour alone (RequestTimeTooSkewed).
    """

    def __init__(self, now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._ahead = dt.timedelta()

    def now(self) -> dt.datetime:
        with self._lock:
            return self._now() + self._ahead

    def heard(self, date: str) -> None:
        """Goes by a server's Date header from now on; what is no date, or an odd one, changes nothing."""
        try:
            theirs = email.utils.parsedate_to_datetime(date)
        except (ValueError, TypeError):
            return
        ahead = (theirs if theirs.tzinfo else theirs.replace(tzinfo=dt.UTC)) - self._now()
        if abs(ahead.total_seconds()) <= MOST_SKEW_S:
            with self._lock:
                self._ahead = ahead
