"""Shards: a folder of records that training reads at random, mapped into memory, with a manifest of what they are."""

import collections
import dataclasses
import itertools
import json
import os
import resource
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import BadInput
from model.records import PIXELS, S1_ROW, S2_ROW, Records, chosen, joined, offsets_of, regrouped, runs, unpacked
from model.shard_file import CURE, Header, mapped, parts_of, read_header, settle, sha256_of, write_shard

__all__ = [
    "Batch", "Manifest", "Records", "Shard", "ShardSet", "chosen", "joined", "open_shards", "parts_of", "shard_name",
    "write_set", "write_shard",
]  # fmt: skip

FORMAT = "tessera-beam/shards"
VERSION = 1  # raised when a field is added or changes its meaning; newer sets are refused by number
MANIFEST = "manifest.json"
SHARD_RECORDS = 1 << 14  # of a year with 70 optical and 60 radar dates: 36 MB
MOST_MAPS = 4096  # shards held open at once; a map costs no memory to speak of, but a file handle


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard's entry of the manifest: the file's name, how many records, its bytes, their sha256."""

    name: str
    records: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a set of shards is.

    Attributes:
      profile, profile_sha256: name and digest of the profile whose rules made the pixels; the digest may be "".
      period: its name.
      shards: in the order of the records' numbers.
      sources: collection@provider of what was read.
      every: every n-th pixel of rows and columns was taken; 0 where it was not so.
      min_dates: least number of valid optical dates of a record.
      seed: of the order of the records.
      shard_records: of every shard but the last.
      tiles: that were sampled.
      counts: sampled, kept, and what was left out, by reason.
      exclude: regions kept out: `name`, `sha256` of the file, `bounds` [west, south, east, north], and, unless too
        long, `geojson`, a MultiPolygon as text.
      failed: reads that failed: `tile`, `scene`, `band`, `reason`.
      origin: anything else about where the records come from: inventory, arguments, a data set's name and licence.
    """

    profile: str
    profile_sha256: str
    period: str
    shards: tuple[Shard, ...]
    sources: tuple[str, ...] = ()
    every: int = 0
    min_dates: int = 0
    seed: int = 0
    shard_records: int = SHARD_RECORDS
    tiles: tuple[str, ...] = ()
    counts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    exclude: tuple[Mapping[str, Any], ...] = ()
    failed: tuple[Mapping[str, Any], ...] = ()
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def records(self) -> int:
        return sum(shard.records for shard in self.shards)

    def to_json(self) -> str:
        """Equal manifests give equal text."""
        record = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        return json.dumps(record, sort_keys=True, indent=1) + "\n"


def manifest_from_json(text: str | bytes, said: str = MANIFEST) -> Manifest:
    """Reads what `Manifest.to_json` wrote. `said` names it in messages.

    Raises:
      BadInput: not a manifest, a newer version, or fields that are missing or unknown.
    """
    try:
        fields = json.loads(text)
    except ValueError:
        raise BadInput(f"{said}: not JSON; {CURE}") from None
    if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
        raise BadInput(f"{said}: not the manifest of a set of shards ({FORMAT}); {CURE}")
    if (version := fields.pop("version", None)) != VERSION:
        raise BadInput(f"{said}: version {version}, this release reads {VERSION}; use a newer tessera-beam")
    try:
        fields["shards"] = [Shard(**shard) for shard in fields["shards"]]
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        manifest = Manifest(**values)
    except (TypeError, KeyError) as e:
        raise BadInput(f"{said}: its fields are not those of a manifest ({e}); {CURE}") from None
    for shard in manifest.shards:
        if Path(shard.name).name != shard.name or not shard.name:
            raise BadInput(f"{said}: shard {shard.name!r} does not lie beside it; {CURE}")
    return manifest


@dataclasses.dataclass(frozen=True)
class Batch:
    """N records, padded behind their last time step to the longest of them; padding is not valid, zeros, day 0.

    Attributes:
      s2: (N, T2, 10) uint16. s2_valid: (N, T2) bool. s2_doy: (N, T2) int16.
      s1: (N, T1, 2) int16. s1_valid: (N, T1) bool. s1_orbit: (N, T1) uint8, 0 ascending. s1_doy: (N, T1) int16.
      index: (N,) int64 numbers of the records in their set.
    """

    s2: NDArray[np.uint16]
    s2_valid: NDArray[np.bool_]
    s2_doy: NDArray[np.int16]
    s1: NDArray[np.int16]
    s1_valid: NDArray[np.bool_]
    s1_orbit: NDArray[np.uint8]
    s1_doy: NDArray[np.int16]
    index: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.index)


@dataclasses.dataclass(frozen=True)
class _Found:
    """Where the records of an index lie.

    Attributes:
      order: (n,) places of the index, shard by shard.
      parts: (shard, first, last) of `order`.
      local: (n,) numbers within their shards. first, count: (n, 2) of their rows of S2 and S1. All in that order.
    """

    order: NDArray[np.int64]
    parts: list[tuple[int, int, int]]
    local: NDArray[np.int64]
    first: NDArray[np.int64]
    count: NDArray[np.int64]


class ShardSet:
    """The records of a folder, by number. Threads may share it; to another process it travels as its folder's name."""

    def __init__(self, folder: str | Path, manifest: Manifest, headers: Sequence[Header]) -> None:
        self.folder, self.manifest = Path(folder), manifest
        self._headers = tuple(headers)
        self._starts = offsets_of(np.array([h.records for h in headers], np.int64))
        self._maps: collections.OrderedDict[int, dict[str, NDArray[Any]]] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._most = _most_maps()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __reduce__(self) -> Any:
        return ShardSet, (self.folder, self.manifest, self._headers)

    def take(self, index: NDArray[np.integer]) -> Batch:
        """The records of these numbers (n,), any order, also twice.

        Raises:
          IndexError: no such record. BadInput: a shard that is damaged or gone.
        """
        index = self._checked(index)
        found = self._find(index)
        n = len(index)
        most = found.count.max(axis=0, initial=0)
        s2, s1 = (np.zeros((n, m), dtype) for m, dtype in zip(most.tolist(), (S2_ROW, S1_ROW), strict=True))
        for sensor, into in enumerate((s2, s1)):
            self._copy(found, sensor, into.reshape(-1), found.order * most[sensor])
        kept = np.ascontiguousarray
        return Batch(
            kept(s2["s2"]), kept(s2["valid"]), kept(s2["doy"]),
            kept(s1["s1"]), kept(s1["valid"]), kept(s1["orbit"]), kept(s1["doy"]), index,
        )  # fmt: skip

    def records(self, index: NDArray[np.integer]) -> Records:
        """The same with places, as ragged columns; raises as `take`."""
        index = self._checked(index)
        found = self._find(index)
        count = np.empty_like(found.count)
        count[found.order] = found.count
        rows = []
        for sensor, dtype in enumerate((S2_ROW, S1_ROW)):
            offsets = offsets_of(count[:, sensor])
            into = np.zeros(int(offsets[-1]), dtype)
            self._copy(found, sensor, into, offsets[found.order])
            rows.append(into)
        pixels = [np.zeros(len(index), dtype) for dtype in PIXELS.values()]
        for shard, a, b in found.parts:
            columns = self._columns(shard)
            for name, into in zip(PIXELS, pixels, strict=True):
                into[found.order[a:b]] = columns[name][found.local[a:b]]
        return unpacked(pixels, count[:, 0], count[:, 1], *rows)

    def _checked(self, index: NDArray[np.integer]) -> NDArray[np.int64]:
        index = np.asarray(index)
        if index.ndim != 1 or index.dtype.kind not in "iu":
            raise IndexError(f"numbers of records are whole numbers (n,), not {index.dtype} {index.shape}")
        if len(index) and (index.min() < 0 or index.max() >= len(self)):
            wrong = index.min() if index.min() < 0 else index.max()
            raise IndexError(f"record {wrong} of {len(self)}")
        return index.astype(np.int64)

    def _find(self, index: NDArray[np.int64]) -> _Found:
        order = np.argsort(index, kind="stable")  # by number too: pages that lie side by side are met one by one
        shard = np.searchsorted(self._starts, index[order], side="right") - 1
        local = index[order] - self._starts[shard]
        cuts = [0, *(np.flatnonzero(np.diff(shard)) + 1).tolist(), len(index)] if len(index) else []
        parts = [(int(shard[a]), a, b) for a, b in itertools.pairwise(cuts)]
        first, count = np.empty((len(index), 2), np.int64), np.empty((len(index), 2), np.int64)
        for s, a, b in parts:
            columns = self._columns(s)
            offsets = columns["offsets"]
            first[a:b] = begins = offsets[local[a:b]]
            count[a:b] = ends = offsets[local[a:b] + 1]
            count[a:b] -= begins
            if (begins < 0).any() or (ends < begins).any() or (ends > [len(columns["s2"]), len(columns["s1"])]).any():
                raise BadInput(f"{self._path(s)}: damaged, a record's observations lie outside of it; {CURE}")
        return _Found(order, parts, local, first, count)

    def _copy(self, found: _Found, sensor: int, into: NDArray[np.void], places: NDArray[np.int64]) -> None:
        """The rows of a sensor to `into`, those of each record from its place on."""
        first, count = found.first[:, sensor], found.count[:, sensor]
        rows, targets = runs(first, count), runs(places, count)
        cut = offsets_of(count)
        for shard, a, b in found.parts:
            part = slice(cut[a], cut[b])
            into[targets[part]] = self._columns(shard)["s1" if sensor else "s2"][rows[part]]

    def _columns(self, shard: int) -> dict[str, NDArray[Any]]:
        with self._lock:
            if shard in self._maps:
                self._maps.move_to_end(shard)
                return self._maps[shard]
        columns = mapped(self._path(shard), self._headers[shard])
        with self._lock:
            self._maps[shard] = columns
            while len(self._maps) > self._most:
                self._maps.popitem(last=False)  # unmapped when the last that looks at it lets go
        return columns

    def _path(self, shard: int) -> Path:
        return self.folder / self.manifest.shards[shard].name


def open_shards(folder: str | Path, check: bool = False) -> ShardSet:
    """Opens a set of shards.

    Args:
      check: whether the sha256 of every shard is made and compared too: all bytes are read once. Sizes and headers
        always are.

    Raises:
      BadInput: no set there, or a shard that is gone, ends early, is of another size, version or content than the
        manifest says; the message names it and the cure.
    """
    if "://" in str(folder):
        raise BadInput(f"{folder}: shards are mapped into memory, which takes a disk; copy the folder to one")
    path = Path(folder) / MANIFEST
    try:
        text = path.read_bytes()
    except OSError:
        raise BadInput(f"{folder}: no {MANIFEST} there; `tessera-beam train shards` makes a set of shards") from None
    manifest = manifest_from_json(text, str(path))
    headers = []
    for shard in manifest.shards:
        place = Path(folder) / shard.name
        header = read_header(place)
        if header.size_bytes != shard.bytes:
            raise BadInput(f"{place}: {header.size_bytes} bytes, the manifest says {shard.bytes}; {CURE}")
        if header.records != shard.records:
            raise BadInput(f"{place}: {header.records} records, the manifest says {shard.records}; {CURE}")
        if check and sha256_of(place) != shard.sha256:
            raise BadInput(f"{place}: its sha256 is not the manifest's: other content; {CURE}")
        headers.append(header)
    return ShardSet(folder, manifest, headers)


def shard_name(number: int, count: int) -> str:
    """The file of a shard: "shard-00003-of-00012.bin"."""
    return f"shard-{number:05d}-of-{count:05d}.bin"


def write_set(
    folder: str | Path,
    batches: Iterable[Records],
    *,
    profile_name: str,
    period: str,
    origin: Mapping[str, Any],
    shard_records: int = SHARD_RECORDS,
    profile_sha256: str = "",
    sources: Sequence[str] = (),
) -> ShardSet:
    """Writes records as they come into a new set, in one process; one shard's records are held at a time.

    Args:
      batches: of any sizes; what they hold is cut into shards of `shard_records`, in their order.
      origin: JSON: where the records come from.

    Raises:
      BadInput: a set is there already, or there are no records.
    """
    folder = Path(folder)
    if (folder / MANIFEST).exists():
        raise BadInput(f"{folder}: a set of shards is there already; delete it or take another folder")
    if shard_records < 1:
        raise BadInput(f"shards of {shard_records} records: they must have one at least")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for n, records in enumerate(regrouped(batches, shard_records)):
        written.append(write_shard(folder / f"shard-{n:05d}.part", records))  # their number is not known yet
    if not written:
        raise BadInput(f"{folder}: no records to write")
    shards = []
    for n, entry in enumerate(written):
        name = shard_name(n, len(written))
        (folder / entry["name"]).replace(folder / name)
        shards.append(Shard(**entry | {"name": name}))
    manifest = Manifest(
        profile_name, profile_sha256, period, tuple(shards), tuple(sources), shard_records=shard_records,
        counts={"kept": sum(s.records for s in shards)}, origin=dict(origin),
    )  # fmt: skip
    part = folder / f".{MANIFEST}.{os.getpid()}"
    with part.open("w") as file:
        file.write(manifest.to_json())
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / MANIFEST)
    settle(folder)
    return open_shards(folder)


def _most_maps() -> int:
    """How many shards may be held open: half of the handles that this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_MAPS if soft == resource.RLIM_INFINITY else max(16, min(MOST_MAPS, soft // 2))
