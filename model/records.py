"""Records: pixels with their whole period of observations, nothing drawn and nothing filled, as ragged columns."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

# A time step as one row of bytes: what a record needs of a shard then lies in two places of the file, not in seven.
S2_ROW = np.dtype([("s2", "<u2", (10,)), ("doy", "<i2"), ("valid", "?"), ("spare", "u1")])  # 24 bytes
S1_ROW = np.dtype([("s1", "<i2", (2,)), ("doy", "<i2"), ("valid", "?"), ("orbit", "u1")])  # 8 bytes
HEAD = np.dtype([
    ("tile", "S5"), ("spare", "u1", (3,)), ("row_px", "<i4"), ("col_px", "<i4"), ("lon", "<f8"), ("lat", "<f8"),
    ("land", "<f4"), ("s2", "<u2"), ("s1", "<u2"),
])  # fmt: skip
MOST_STEPS = 2**16 - 1  # of a sensor and record: what a head can say; a year has 366 days of two orbits at most

PIXELS = {"tile": "S5", "row_px": "<i4", "col_px": "<i4", "lon": "<f8", "lat": "<f8", "land": "<f4"}
_S2 = {"s2": "<u2", "s2_valid": "?", "s2_doy": "<i2"}
_S1 = {"s1": "<i2", "s1_valid": "?", "s1_orbit": "u1", "s1_doy": "<i2"}
_WIDTH = {"s2": (10,), "s1": (2,)}

ASCENDING, DESCENDING = 0, 1  # in s1_orbit


@dataclasses.dataclass(frozen=True)
class Records:
    """Ragged columns of N records; record i has the time steps s2[s2_offsets[i] : s2_offsets[i + 1]], s1 likewise.

    Attributes:
      tile: (N,) S5 MGRS names; b"" where a set has no tile.
      row_px, col_px: (N,) int32 in the tile; -1 where none.
      lon, lat: (N,) float64 of the pixel's centre, degrees; NaN where unknown.
      land: (N,) float32 share of the tile that is land, 0..1; NaN where unknown.
      s2_offsets, s1_offsets: (N + 1,) int64.
      s2: (sum T2, 10) uint16 DN after the offset rule, the profile's band order, by date, not standardised.
      s2_valid: (sum T2,) bool. s2_doy: (sum T2,) int16 day of year.
      s1: (sum T1, 2) int16 scaled VV, VH: the ascending orbit by date, then the descending one.
      s1_valid: (sum T1,) bool, any channel not 0. s1_orbit: (sum T1,) uint8, 0 ascending, 1 descending.
      s1_doy: (sum T1,) int16.

    Raises:
      ValueError: columns of other types, shapes or lengths than these.
    """

    tile: NDArray[np.bytes_]
    row_px: NDArray[np.int32]
    col_px: NDArray[np.int32]
    lon: NDArray[np.float64]
    lat: NDArray[np.float64]
    land: NDArray[np.float32]
    s2_offsets: NDArray[np.int64]
    s1_offsets: NDArray[np.int64]
    s2: NDArray[np.uint16]
    s2_valid: NDArray[np.bool_]
    s2_doy: NDArray[np.int16]
    s1: NDArray[np.int16]
    s1_valid: NDArray[np.bool_]
    s1_orbit: NDArray[np.uint8]
    s1_doy: NDArray[np.int16]

    def __post_init__(self) -> None:
        n = len(self.tile)
        wanted = {name: (dtype, (n,)) for name, dtype in PIXELS.items()}
        for sensor, columns in (("s2", _S2), ("s1", _S1)):
            offsets = getattr(self, f"{sensor}_offsets")
            if offsets.shape != (n + 1,) or offsets.dtype != np.int64 or offsets[0] or (np.diff(offsets) < 0).any():
                raise ValueError(f"{sensor}_offsets: {n + 1} int64 that begin with 0 and never fall were expected")
            if n and np.diff(offsets).max() > MOST_STEPS:
                raise ValueError(f"{sensor}: a record has more than {MOST_STEPS} time steps")
            wanted |= {name: (dtype, (int(offsets[-1]), *_WIDTH.get(name, ()))) for name, dtype in columns.items()}
        for name, (dtype, shape) in wanted.items():
            column = getattr(self, name)
            if column.dtype != np.dtype(dtype) or column.shape != shape:
                raise ValueError(f"{name}: {column.dtype} {column.shape}, where {np.dtype(dtype)} {shape} was expected")

    def __len__(self) -> int:
        return len(self.tile)


def packed(records: Records) -> tuple[NDArray[np.void], NDArray[np.void]]:
    """All time steps as rows: (sum T2,) S2_ROW, (sum T1,) S1_ROW."""
    s2, s1 = np.zeros(len(records.s2), S2_ROW), np.zeros(len(records.s1), S1_ROW)
    s2["s2"], s2["doy"], s2["valid"] = records.s2, records.s2_doy, records.s2_valid
    s1["s1"], s1["doy"], s1["valid"], s1["orbit"] = records.s1, records.s1_doy, records.s1_valid, records.s1_orbit
    return s2, s1


def unpacked(
    pixels: Sequence[NDArray[np.generic]],
    s2_n: NDArray[np.integer],
    s1_n: NDArray[np.integer],
    s2: NDArray[np.void],
    s1: NDArray[np.void],
) -> Records:
    """Records from the columns of `PIXELS`, the numbers of time steps (N,) of each, and `packed` rows."""
    names, kept = list(PIXELS), np.ascontiguousarray
    columns = {name: kept(c).astype(PIXELS[name], copy=False) for name, c in zip(names, pixels, strict=True)}
    columns |= {"s2": kept(s2["s2"]), "s2_valid": kept(s2["valid"]), "s2_doy": kept(s2["doy"])}
    columns |= {"s1": kept(s1["s1"]), "s1_valid": kept(s1["valid"])}
    columns |= {"s1_orbit": kept(s1["orbit"]), "s1_doy": kept(s1["doy"])}
    return Records(s2_offsets=offsets_of(s2_n), s1_offsets=offsets_of(s1_n), **columns)


def offsets_of(n: NDArray[np.integer]) -> NDArray[np.int64]:
    """(N + 1,) int64 offsets of pieces of these lengths (N,)."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(n, dtype=np.int64)])


def runs(starts: NDArray[np.int64], n: NDArray[np.int64]) -> NDArray[np.int64]:
    """starts[0], starts[0] + 1, .. (n[0] of them), then those of starts[1], and so on."""
    ends = np.cumsum(n)
    return np.repeat(starts - (ends - n), n) + np.arange(ends[-1] if len(n) else 0)


def chosen(records: Records, index: NDArray[np.integer] | slice) -> Records:
    """Some of the records, in the order of `index`."""
    at = np.arange(len(records))[index]
    columns = {name: getattr(records, name)[at] for name in PIXELS}
    for sensor, names in (("s2", _S2), ("s1", _S1)):
        offsets = getattr(records, f"{sensor}_offsets")
        n = np.diff(offsets)[at]
        rows = runs(offsets[at], n)
        columns |= {name: getattr(records, name)[rows] for name in names} | {f"{sensor}_offsets": offsets_of(n)}
    return Records(**columns)


def joined(parts: Iterable[Records]) -> Records:
    """All records of some parts, one behind the other; none of no part."""
    parts = list(parts)
    columns: dict[str, NDArray[np.generic]] = {
        name: np.concatenate([np.zeros((0, *_WIDTH.get(name, ())), dtype), *(getattr(p, name) for p in parts)])
        for name, dtype in {**PIXELS, **_S2, **_S1}.items()
    }
    for sensor in ("s2", "s1"):
        lengths = [np.diff(getattr(p, f"{sensor}_offsets")) for p in parts]
        columns[f"{sensor}_offsets"] = offsets_of(np.concatenate([np.zeros(0, np.int64), *lengths]))
    return Records(**columns)  # type: ignore[arg-type]


def regrouped(batches: Iterable[Records], size: int) -> Iterator[Records]:
    """The same records in the same order, `size` at a time; the last piece is what is left."""
    waiting: list[Records] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= size:
            whole = joined(waiting)
            full = len(whole) // size * size
            for start in range(0, full, size):
                yield chosen(whole, slice(start, start + size))
            waiting = [chosen(whole, slice(full, None))]
    if rest := joined(waiting):
        yield rest


def to_bytes(records: Records) -> bytes:
    """Records as bytes, format 1: their number, a HEAD of each, all S2_ROWs, all S1_ROWs. Equal in, equal out."""
    heads = np.zeros(len(records), HEAD)
    for name in PIXELS:
        heads[name] = getattr(records, name)
    heads["s2"], heads["s1"] = np.diff(records.s2_offsets), np.diff(records.s1_offsets)
    return len(records).to_bytes(4, "little") + b"".join(a.tobytes() for a in (heads, *packed(records)))


def from_bytes(data: bytes) -> Records:
    """What `to_bytes` made."""
    some = rows_in([data])
    return some.picked(np.arange(len(some.heads)))


@dataclasses.dataclass(frozen=True)
class Rows:
    """Records as `to_bytes` holds them: (N,) HEAD, and the rows of all, record by record, S2_ROW and S1_ROW."""

    heads: NDArray[np.void]
    s2: NDArray[np.void]
    s1: NDArray[np.void]

    def picked(self, index: NDArray[np.integer]) -> Records:
        """Some of them, in the order of `index`."""
        heads = self.heads[index]
        parts = []
        for rows, sensor in ((self.s2, "s2"), (self.s1, "s1")):
            n = heads[sensor].astype(np.int64)
            parts.append(rows[runs(offsets_of(self.heads[sensor])[index], n)])
        return unpacked([heads[name] for name in PIXELS], heads["s2"], heads["s1"], *parts)


def rows_in(pieces: Sequence[bytes]) -> Rows:
    """All records of what `to_bytes` made, piece by piece, in one copy; of one piece alone without any."""
    found: list[tuple[NDArray[np.void], ...]] = []
    for data in pieces:
        heads = np.frombuffer(data, HEAD, count_in(data), 4)
        n2, n1 = (int(heads[sensor].sum(dtype=np.int64)) for sensor in ("s2", "s1"))
        s2 = np.frombuffer(data, S2_ROW, n2, 4 + heads.nbytes)
        found.append((heads, s2, np.frombuffer(data, S1_ROW, n1, 4 + heads.nbytes + s2.nbytes)))
    if len(found) == 1:
        return Rows(*found[0])
    kinds = (HEAD, S2_ROW, S1_ROW)
    return Rows(*(np.concatenate([np.zeros(0, kind), *(f[k] for f in found)]) for k, kind in enumerate(kinds)))


def count_in(data: bytes) -> int:
    """How many records `to_bytes` was given."""
    return int.from_bytes(data[:4], "little")
