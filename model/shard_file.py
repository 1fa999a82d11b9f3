"""Shard file: records as columns that are mapped into memory, behind a header that says where each one lies.

    8 bytes   magic
    uint32    version
    uint32    bytes of the table
    uint64    bytes of the whole file
    ..        the table, JSON: records, and of each column its dtype, shape and offset from the data's beginning
    ..        the columns, each aligned to 64 bytes; the data begin at the next multiple of 64 behind the table

Everything is little-endian. Equal records give equal bytes.
"""

import dataclasses
import hashlib
import json
import mmap
import os
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import BadInput
from model.records import PIXELS, S1_ROW, S2_ROW, Records, packed

MAGIC = b"TB-SHARD"
VERSION = 1  # raised when a column is added or changes its meaning; newer files are refused by number
ALIGN = 64  # bytes; a cache line
CURE = "copy the set again, or make it again with `tessera-beam train shards`"

_FIXED = struct.Struct("<8sIIQ")
_MOST_TABLE = 1 << 20  # bytes; a table takes some 700
# Where each record's rows begin and end, of both sensors side by side: one place in the file to look at.
_DTYPES = {
    **{name: np.dtype(d) for name, d in PIXELS.items()},
    "offsets": np.dtype("<i8"),
    "s2": S2_ROW,
    "s1": S1_ROW,
}


@dataclasses.dataclass(frozen=True)
class Header:
    """Where the columns of a shard lie.

    Attributes:
      records: how many. size_bytes: of the whole file.
      columns: name -> (shape, first byte in the file).
    """

    records: int
    size_bytes: int
    columns: dict[str, tuple[tuple[int, ...], int]]


def parts_of(records: Records) -> Iterator[bytes]:
    """The bytes of a shard file, piece by piece."""
    s2, s1 = packed(records)
    columns: dict[str, NDArray[Any]] = {name: getattr(records, name) for name in PIXELS}
    columns |= {"offsets": np.stack([records.s2_offsets, records.s1_offsets], axis=1), "s2": s2, "s1": s1}
    table: dict[str, Any] = {"records": len(records), "columns": {}}
    end = 0
    for name, column in columns.items():
        at = _aligned(end)
        table["columns"][name] = {"dtype": _said(_DTYPES[name]), "shape": list(column.shape), "offset": at}
        end = at + column.nbytes
    text = json.dumps(table).encode()
    start = _aligned(_FIXED.size + len(text))
    yield (_FIXED.pack(MAGIC, VERSION, len(text), start + end) + text).ljust(start, b"\0")
    end = 0
    for column in columns.values():
        yield b"\0" * (_aligned(end) - end)
        yield column.tobytes()
        end = _aligned(end) + column.nbytes


def write_shard(path: str | Path, records: Records) -> dict[str, Any]:
    """Writes a shard file; it is there whole or not at all.

    Returns:
      Its entry of the manifest: name, records, bytes, sha256.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    digest, size = hashlib.sha256(), 0
    try:
        with part.open("xb") as file:
            for piece in parts_of(records):
                file.write(piece)
                digest.update(piece)
                size += len(piece)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    settle(path.parent)
    return {"name": path.name, "records": len(records), "bytes": size, "sha256": digest.hexdigest()}


def settle(folder: Path) -> None:
    """Has the names in a folder survive a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_header(path: Path) -> Header:
    """The header of a shard file, held against the file's size.

    Raises:
      BadInput: no such file, not a shard, of a newer version, shorter or longer than it says, or with a column that
        is none of ours or lies outside the file.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            fixed = file.read(_FIXED.size)
            if len(fixed) < _FIXED.size or fixed[: len(MAGIC)] != MAGIC:
                raise BadInput(f"{path}: not a shard (it does not begin with {MAGIC.decode()}); {CURE}")
            _, version, table_bytes, size_bytes = _FIXED.unpack(fixed)
            if version != VERSION:
                raise BadInput(
                    f"{path}: shard version {version}, this release reads {VERSION}; use a newer tessera-beam"
                )
            if size != size_bytes:
                ends = "it ends early" if size < size_bytes else "something was added"
                raise BadInput(f"{path}: {size} bytes, {size_bytes} were written: {ends}; {CURE}")
            text = file.read(min(table_bytes, _MOST_TABLE))
    except OSError as e:
        raise BadInput(f"{path}: cannot be read ({type(e).__name__}); {CURE}") from None
    try:
        table = json.loads(text)
        columns = {
            str(name): (tuple(int(v) for v in c["shape"]), int(c["offset"]), c["dtype"])
            for name, c in table["columns"].items()
        }
        records = int(table["records"])
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BadInput(f"{path}: its table of columns cannot be read; {CURE}") from None
    return Header(records, size_bytes, _placed(path, records, columns, _aligned(_FIXED.size + table_bytes), size))


def _placed(
    path: Path, records: int, columns: dict[str, tuple[tuple[int, ...], int, Any]], start: int, size: int
) -> dict[str, tuple[tuple[int, ...], int]]:
    """The columns with their places in the file, each looked at."""
    placed = {}
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(PIXELS, (records,)) | {"offsets": (records + 1, 2)}
    for name, dtype in _DTYPES.items():
        if name not in columns:
            raise BadInput(f"{path}: no column {name}; {CURE}")
        shape, offset, said = columns[name]
        if said != _said(dtype) or len(shape) != len(shapes.get(name, (0,))) or shape != shapes.get(name, shape):
            raise BadInput(f"{path}: column {name} is {said} {shape}, not what {records} records have; {CURE}")
        end = start + offset + int(np.prod(shape, dtype=object)) * dtype.itemsize
        if min(shape) < 0 or offset < 0 or offset % ALIGN or end > size:
            raise BadInput(f"{path}: column {name} ends at byte {end} of {size}, outside the file; {CURE}")
        placed[name] = (shape, start + offset)
    return placed


def mapped(path: Path, header: Header) -> dict[str, NDArray[Any]]:
    """The columns of a shard, mapped and read-only: nothing is read before it is looked at.

    Raises:
      BadInput: the file is gone or has another size than its header says.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != header.size_bytes:
                raise BadInput(f"{path}: its size changed while it was in use; {CURE}")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as e:
        raise BadInput(f"{path}: cannot be read ({type(e).__name__}); {CURE}") from None
    data.madvise(mmap.MADV_RANDOM)  # a record is a page or two; reading ahead would fetch what nobody asked for
    return {
        name: np.frombuffer(data, _DTYPES[name], int(np.prod(shape)), at).reshape(shape)
        for name, (shape, at) in header.columns.items()
    }


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _said(dtype: np.dtype[Any]) -> Any:
    """A dtype as JSON reads it back."""
    return json.loads(json.dumps(dtype.descr if dtype.names else dtype.str))


def _aligned(at: int) -> int:
    return -(-at // ALIGN) * ALIGN
