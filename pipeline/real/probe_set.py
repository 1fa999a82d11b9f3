"""Probe sets: real series with labels, brought into the records that training and probes read."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.probing.labels import Labels, write_labels
from model.records import Records, offsets_of
from model.shards import ShardSet, write_set
from transforms.radar import scale_s1

PROFILE = "v2"  # whose band order, offset rule and radar scaling the records follow
LATE = "presto.npz"  # beside the labels: everything that Presto takes of the records, where a set has it


@dataclasses.dataclass(frozen=True)
class ProbeSet:
    """A set before it is written.

    Attributes:
      labels: of some or all of the records. records: all of them.
      period: name of the days that they cover, as far as one name can say it.
      folder: of the real data that it comes from. files: that were read. notes: departures from the profile, in words.
      extra: arrays for `LATE`, one row a record.
    """

    labels: Labels
    records: Records
    period: str
    folder: str
    files: tuple[Path, ...]
    notes: tuple[str, ...]
    extra: dict[str, NDArray[Any]] = dataclasses.field(default_factory=dict)


def ragged(
    s2: NDArray[np.uint16],
    s2_valid: NDArray[np.bool_],
    s2_doy: NDArray[np.int16],
    s1: NDArray[np.int16] | None = None,
    s1_doy: NDArray[np.int16] | None = None,
    lon: NDArray[np.float64] | None = None,
    lat: NDArray[np.float64] | None = None,
) -> Records:
    """Records of N pixels with equal numbers of steps: (N, T2, 10), (N, T2) twice, (N, T1, 2), (N, T1), (N,) twice.

    Radar stands in the ascending series; a step without any is not valid.
    """
    n, t2 = s2_valid.shape
    nowhere = np.full(n, np.nan)
    if s1 is None or s1_doy is None:
        s1, s1_doy = np.zeros((n, 0, 2), np.int16), np.zeros((n, 0), np.int16)
    seen = (s1 != 0).any(-1)
    return Records(
        tile=np.full(n, b"", "S5"),
        row_px=np.full(n, -1, np.int32),
        col_px=np.full(n, -1, np.int32),
        lon=nowhere if lon is None else lon.astype(np.float64),
        lat=nowhere.copy() if lat is None else lat.astype(np.float64),
        land=np.full(n, np.nan, np.float32),
        s2_offsets=offsets_of(np.full(n, t2)),
        s1_offsets=offsets_of(np.full(n, seen.shape[1])),
        s2=s2.reshape(-1, s2.shape[-1]),
        s2_valid=s2_valid.reshape(-1),
        s2_doy=np.ascontiguousarray(s2_doy, np.int16).reshape(-1),
        s1=s1.reshape(-1, 2),
        s1_valid=seen.reshape(-1),
        s1_orbit=np.zeros(seen.size, np.uint8),
        s1_doy=np.ascontiguousarray(s1_doy, np.int16).reshape(-1),
    )


def radar_of(decibels: NDArray[np.float64]) -> NDArray[np.int16]:
    """The stored int16 of backscatter in dB (..); 0 where it is NaN, and at -25 dB or below, as in the layout."""
    return scale_s1(np.nan_to_num(10 ** (decibels / 10), nan=0.0).astype(np.float32))


def write(made: ProbeSet, out: Path) -> ShardSet:
    """Writes shards, labels and, where there is more, `LATE` into a new folder.

    Raises:
      BadInput: a set is there already.
    """
    origin = {
        "kind": "probe set",
        "name": made.labels.name,
        "data": made.folder,
        "files": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in made.files},
        "notes": list(made.notes),
        "s1_orbit": "ascending for all" if made.records.s1_offsets[-1] else "no radar",
    }
    shards = write_set(out, [made.records], profile_name=PROFILE, period=made.period, origin=origin)
    write_labels(out, made.labels)
    if made.extra:
        np.savez(out / LATE, allow_pickle=False, **made.extra)
    return shards
