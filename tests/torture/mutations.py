"""Mutations: bytes and JSON values that are other than they were, by seed, as disks, networks and malice make them."""

import hashlib
import json
import random
import struct
from collections.abc import Callable
from typing import Any

Mutation = tuple[str, bytes]  # in words, and what became of the bytes
DEPTH = 100_000  # of a JSON bomb: far over what any parser's stack takes
OUTSIDE = (
    "../../../../outside/secret.tif", "/etc/passwd", "file:///etc/passwd", "..", "a\0b", "\\\\host\\share\\x.tif",
    "/vsicurl/http://127.0.0.1:9/x.tif", "http://127.0.0.1:9/x.tif", "%2e%2e/%2e%2e/outside/secret.tif",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 10**40, 1e308, float("nan"), float("inf"), "", "x", "x" * 100_000, [], {}, [[]],
    {"a": {"b": []}}, *OUTSIDE,
)  # fmt: skip


def of_bytes(data: bytes, rng: random.Random, near: int = 0) -> Mutation:
    """Bits, runs and lengths of any file. near: half of the changes fall into so many first bytes, 0: anywhere."""
    what = rng.choice(["bits", "bits", "bits", "byte", "cut", "zeros", "swap", "more", "empty", "number"])
    new = bytearray(data)

    def place(room: int = 1) -> int:
        end = min(near, len(data)) if near and rng.random() < 0.5 else len(data)
        return rng.randrange(max(1, end - room))

    if what == "bits":
        n = rng.choice([1, 1, 2, 8])
        for _ in range(n):
            new[place()] ^= 1 << rng.randrange(8)
        return f"{n} bits flipped", bytes(new)
    if what == "byte":
        at = place()
        new[at] = rng.choice([0, 1, 127, 128, 255])
        return f"byte {at} set to {new[at]}", bytes(new)
    if what == "cut":
        at = place()
        return f"cut to {at} bytes", data[:at]
    if what == "zeros":
        at, n = place(), rng.choice([1, 16, 512, 4096])
        new[at : at + n] = bytes(len(new[at : at + n]))
        return f"{n} zeros at {at}", bytes(new)
    if what == "swap":
        n = rng.choice([8, 64, 1024])
        a, b = place(n), place(n)
        new[a : a + n], new[b : b + n] = data[b : b + n], data[a : a + n]
        return f"{n} bytes at {a} and {b} exchanged", bytes(new[: len(data)])
    if what == "more":
        extra = bytes(rng.randrange(256) for _ in range(rng.choice([1, 100])))
        return f"{len(extra)} bytes more", data + extra
    if what == "number":
        at, size = place(8), rng.choice([2, 4, 8])
        number = rng.choice([0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), len(data), len(data) * 2])
        new[at : at + size] = struct.pack("<Q", number)[:size]
        return f"{size} bytes at {at} are {number}", bytes(new)
    return "nothing in it", b""


def of_json(data: bytes, rng: random.Random) -> Mutation:
    """A value, a key or the form of a JSON file; now and then its bytes."""
    what = rng.choice(["value", "value", "value", "value", "key", "drop", "repeat", "deep", "bytes", "other"])
    if what == "bytes":
        return of_bytes(data, rng)
    if what == "deep":
        opens, closes = rng.choice([("[", "]"), ('{"a":', "}")])
        return "a bomb of nested values", (opens * DEPTH + "1" + closes * DEPTH).encode()
    if what == "other":
        return "another value in its place", json.dumps(rng.choice(VALUES)).encode()
    record = json.loads(data)
    holder, key, path = _any(record, rng)
    if what == "value":
        holder[key] = _other(holder[key], rng)
        return f"{path} is {json.dumps(holder[key])[:60]}", json.dumps(record).encode()
    if what == "drop":
        del holder[key]
        return f"without {path}", json.dumps(record).encode()
    if what == "key" and isinstance(holder, dict):
        name = rng.choice(["", "x", "../x", "__class__", "constructor", *OUTSIDE])
        holder[name] = holder.pop(key)
        return f"{path} is called {name!r}", json.dumps(record).encode()
    if isinstance(holder, list):
        holder += [holder[key]] * rng.choice([1, 1000])
        return f"{path} more often", json.dumps(record).encode()
    text = json.dumps(record)[:-1] + f", {json.dumps(str(key))}: {json.dumps(rng.choice(VALUES))}}}"
    return f"{path} twice", text.encode()


def _any(record: Any, rng: random.Random) -> tuple[Any, Any, str]:
    """A container, a key of it, and the way to it in words."""
    path: list[str] = []
    while True:
        key = rng.choice(list(record)) if isinstance(record, dict) else rng.randrange(len(record))
        path.append(str(key))
        below = record[key]
        if not isinstance(below, dict | list) or not below or rng.random() < 0.15:
            return record, key, "/".join(path)
        record = below


def _other(value: Any, rng: random.Random) -> Any:
    """Another value, near the old one as often as far from it."""
    if isinstance(value, bool):
        return not value if rng.random() < 0.5 else rng.choice(VALUES)
    if isinstance(value, int | float) and rng.random() < 0.5:
        return rng.choice([value + 1, value - 1, -value, value * 2, value * 10**9, str(value)])
    if isinstance(value, str) and value and rng.random() < 0.5:
        at = rng.randrange(len(value))
        return rng.choice([value[:at], value + "x", value[:at] + chr(rng.randrange(33, 126)) + value[at + 1 :]])
    return rng.choice(VALUES)


def of_receipt(data: bytes, rng: random.Random) -> Mutation:
    """As `of_json`; half of them with their sha256 put right again, as somebody would who means it."""
    what, new = of_json(data, rng)
    if rng.random() < 0.5:
        return what, new
    try:
        fields = json.loads(new)
        fields.pop("sha256")
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return what, new
    seal = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    return f"forged: {what}", json.dumps(fields | {"sha256": seal}).encode()


def of_tiff(data: bytes, rng: random.Random) -> Mutation:
    """A tag of a TIFF's directory: another type, count or value, offsets that lie outside; else its bytes."""
    if rng.random() < 0.4:
        return of_bytes(data, rng, near=2048)
    new, entries = bytearray(data), _entries(data)
    if not entries:
        return of_bytes(data, rng, near=2048)
    at, big = rng.choice(entries)
    tag = struct.unpack_from("<H", data, at)[0]
    what = rng.choice(["count", "value", "type", "tag", "array"])
    width, size = (8, "<Q") if big else (4, "<I")
    huge = [0, 1, 2**31 - 1, 2**31, 2 ** (8 * width) - 1, len(data), len(data) - 1, rng.randrange(len(data))]
    if what == "count":
        struct.pack_into(size, new, at + 4, rng.choice(huge))
    elif what == "value":
        struct.pack_into(size, new, at + 4 + width, rng.choice(huge))
    elif what == "type":
        struct.pack_into("<H", new, at + 2, rng.randrange(0, 20))
    elif what == "tag":
        struct.pack_into(
            "<H", new, at, rng.choice([254, 256, 258, 259, 273, 317, 322, 324, 325, 339, 33550, 34735, 42113])
        )
    else:  # one number of the array that the entry points to: of tile offsets, sizes, or geotransform
        kind, count = struct.unpack_from("<H", data, at + 2)[0], struct.unpack_from(size, data, at + 4)[0]
        item = {3: 2, 4: 4, 12: 8, 16: 8}.get(kind, 1)
        where = struct.unpack_from(size, data, at + 4 + width)[0] if count * item > width else at + 4 + width
        place = where + item * rng.randrange(max(1, count))
        if place + item <= len(data):
            number = rng.choice([*huge, 2 ** (8 * item) - 1]) % 2 ** (8 * item)
            new[place : place + item] = number.to_bytes(item, "little")
    return f"{what} of tag {tag}", bytes(new)


def _entries(data: bytes) -> list[tuple[int, bool]]:
    """Positions of the first directory's entries, and whether it is a BigTIFF's."""
    if data[:2] != b"II":
        return []
    if data[2] == 43:
        (first,) = struct.unpack_from("<Q", data, 8)
        (count,) = struct.unpack_from("<Q", data, first)
        return [(first + 8 + 20 * n, True) for n in range(count)]
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    return [(first + 2 + 12 * n, False) for n in range(count)]


MUTATE: dict[str, Callable[[bytes, random.Random], Mutation]] = {
    "items": of_json,
    "tiffs": of_tiff,
    "models": of_bytes,
    "inventories": of_bytes,
    "receipts": of_receipt,
    "fragments": of_bytes,
}
