"""Hrefs: where assets lie, without signatures, and never outside their catalogue."""

import os
import posixpath
import re
import urllib.parse
from pathlib import Path

from model.errors import BadInput

REMOTE = ("https", "http", "s3", "gs")  # what the reader opens
# Query parameters that give rights to whoever has the URL: Azure SAS, presigned S3 and GCS URLs, CloudFront, keys.
_SIGNATURES = frozenset(
    (
        *("sig", "signature", "x-amz-signature", "x-amz-security-token", "x-goog-signature", "awsaccesskeyid"),
        *("googleaccessid", "key-pair-id", "token", "access_token", "api_key", "apikey", "subscription-key"),
    )
)


def scheme_of(href: str) -> str:
    """Lower-case scheme of a URL, "" for a path."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/", href)
    return match.group(1).lower() if match else ""


def is_remote(href: str) -> bool:
    return scheme_of(href) in REMOTE


def unsigned(href: str) -> str:
    """`href` without its query where that carries a signature or a token; any other query stays. No fragment.

    Signed URLs expire and must not be stored or shown: readers sign anew.
    """
    if not is_remote(href):
        return href
    parts = urllib.parse.urlsplit(href)
    names = {name.lower() for name, _ in urllib.parse.parse_qsl(parts.query, keep_blank_values=True)}
    return parts._replace(query="" if names & _SIGNATURES else parts.query, fragment="").geturl()


def stored(href: str, location: str, root: str, item_id: str) -> str:
    """The href as the inventory keeps it: relative to `root` where the asset lies under it, else an absolute URL.

    Args:
      href: as the item has it.
      location: path or URL of the item's own record; relative hrefs start there.
      root: folder or URL prefix of the catalogue.

    Raises:
      BadInput: a path or URL out of the root, a scheme that is not read, a name and password, control characters.
    """
    said = unsigned(href)
    refused = f"item {item_id}: href {_shown(said)}"
    if not said.isprintable():
        raise BadInput(f"{refused} holds control characters")
    if "@" in urllib.parse.urlsplit(said).netloc:
        raise BadInput(f"{refused} carries a user name; credentials belong in the reader's environment")
    if is_remote(said):
        within = _below_url(said, root) if is_remote(root) else None
        return said if within is None else within
    scheme = scheme_of(said)
    if scheme not in ("", "file"):
        raise BadInput(f"{refused}: files are read over {', '.join(REMOTE)} or from the catalogue's own folder")
    path = urllib.parse.unquote(urllib.parse.urlsplit(said).path) if scheme else said
    if is_remote(root):
        within = None if scheme else _below_url(urllib.parse.urljoin(location, said), root)
    else:
        within = _below_folder(posixpath.join(posixpath.dirname(location), path), root)
    if within is None:
        raise BadInput(
            f"{refused} leads out of the catalogue at {_shown(root)}: copy the file into it or mend the item"
        )
    return within


def resolve(root: str, href: str) -> str:
    """The path or URL to open for an href that `stored` made. Links are followed, and must end under the root too.

    Raises:
      BadInput: the href leads out of the root.
    """
    if is_remote(href):
        return href
    refused = f"href {_shown(href)} leads out of the catalogue at {_shown(root)}"
    if is_remote(root):
        url = f"{root.rstrip('/')}/{href}"
        if _below_url(url, root) is None:
            raise BadInput(refused)
        return url
    path = posixpath.join(root, href)
    if _below_folder(path, root) is None or _below_folder(os.path.realpath(path), os.path.realpath(root)) is None:
        raise BadInput(refused)
    return path


def root_of_folder(folder: Path) -> str:
    """A folder as the root of its hrefs: absolute, with forward slashes."""
    return Path(os.path.abspath(folder)).as_posix()  # noqa: PTH100 - keeps links as the user named them


def _below_folder(path: str, root: str) -> str | None:
    """`path` relative to `root`, or None where it lies elsewhere."""
    path, root = posixpath.normpath(path), posixpath.normpath(root)
    prefix = root if root.endswith("/") else root + "/"
    return path[len(prefix) :] if path.startswith(prefix) else None


def _below_url(url: str, root: str) -> str | None:
    """`url` relative to the URL prefix `root`, None where it lies elsewhere or has dots that a server would follow."""
    a, b = urllib.parse.urlsplit(url), urllib.parse.urlsplit(root)
    prefix = b.path.rstrip("/") + "/"
    if (a.scheme, a.netloc) != (b.scheme, b.netloc) or not a.path.startswith(prefix):
        return None
    if ".." in urllib.parse.unquote(a.path).replace("\\", "/").split("/"):
        return None
    below = a.path[len(prefix) :]
    return (f"{below}?{a.query}" if a.query else below) or None


def _shown(href: str) -> str:
    """For messages: no query, no user name."""
    if not is_remote(href):
        return repr(href)
    parts = urllib.parse.urlsplit(href)
    return repr(parts._replace(query="", fragment="", netloc=parts.netloc.rpartition("@")[2]).geturl())
