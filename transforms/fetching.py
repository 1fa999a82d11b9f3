"""What a reader of remote files asks of the HTTP layer: one range of bytes of one file, with the file's version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Version:
    """Which state of a remote file an answer came from.

    total_bytes: the file's whole size; tag: its ETag, or its Last-Modified where the host gives no ETag, "" where it
    gives neither. Two answers of one file belong together only where both are equal.
    """

    total_bytes: int
    tag: str


@dataclass(frozen=True)
class Piece:
    """One answered range: its bytes, and the version of the file that they came from."""

    data: bytes
    version: Version


class FetchError(Exception):
    """A range that could not be fetched, after all the retries that the fetcher makes.

    kind: "status", "reset", "short", "changed", "timeout" or "refused"; status: the HTTP status where there was one;
    reason: words for people, without query strings, tokens or user names.
    """

    def __init__(self, kind: str, reason: str, status: int | None = None) -> None:
        super().__init__(kind, reason, status)  # the arguments as given, so that it pickles between processes
        self.kind, self.reason, self.status = kind, reason, status

    def __str__(self) -> str:
        return self.reason


class Fetch(Protocol):
    """Fetches bytes [start, stop) of the file at `url`, an href without credentials (the fetcher signs it)."""

    def __call__(self, url: str, start: int, stop: int, version: Version | None) -> Piece:
        """The range, cut at the end of the file where `stop` lies past it (so a first guess may be too long).

        Where `version` is given and the file is no longer that one, raises FetchError of kind "changed"; never
        returns fewer bytes than the file has there. Safe to call from many threads.
        """
        ...
