"""The inventory: the frozen list of scenes for a run, one Parquet file whose row groups hold a few tiles each."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.errors import BadInput
from transforms.catalogs.registry import BY_NAME
from transforms.catalogs.source import BY_CATALOGUE
from transforms.periods import Period, period_of
from transforms.scene_rows import SCHEMA, row_of, scenes_of, table_of
from transforms.scenes import ASCENDING, DESCENDING, S2, Scene

FORMAT = "tessera-beam/inventory"
VERSION = 2  # raised when a column or a field of the metadata is added or changes its meaning; newer files are refused
DIGEST_VERSION = 1  # of what the digest is made of: rows, tiles, period; how they lie in the file is not in it
METADATA_KEY = b"tessera_beam"

# Every worker holds the footer: 527 MB of it at 18,400 row groups (pyarrow 25; 25 columns each), a sixteenth of that at
# so many tiles a group. A tile is then read with up to fifteen others, some 0.1 MB each.
TILES_A_GROUP = 16


@dataclasses.dataclass(frozen=True)
class SourceRecord:
    """One source of an inventory.

    Attributes:
      name: collection@provider. root: folder or URL prefix that its relative hrefs start from.
      catalog: as the user gave it.
    """

    name: str
    root: str
    catalog: str


@dataclasses.dataclass(frozen=True)
class TileRecord:
    """What the header says of one tile.

    Attributes:
      name: MGRS name. rows: scenes, kept and dropped.
      s2, s1_ascending, s1_descending: kept scenes. dropped: scenes that are left out.
      digest: `tile_digest` of its scenes.
    """

    name: str
    rows: int
    s2: int
    s1_ascending: int
    s1_descending: int
    dropped: int
    digest: str


@dataclasses.dataclass(frozen=True)
class Inventory:
    """The header of an inventory file.

    Attributes:
      path: of the file.
      period: that the scenes were searched for.
      frozen: when, ISO 8601, UTC.
      tiles: MGRS names, sorted, those without a scene too.
      sources: where scenes come from. digest: over all rows, tiles and the period; not over roots and clocks.
      counts: tile -> TileRecord.
      overlap: "full": every pixel of a tile is its own.
      region: how the tiles were chosen, in words; "" for a list of tiles.
      amendments: what was left out afterwards, in words.
    """

    path: str
    period: Period
    frozen: str
    tiles: tuple[str, ...]
    sources: tuple[SourceRecord, ...]
    digest: str
    counts: Mapping[str, TileRecord]
    overlap: str = "full"
    region: str = ""
    amendments: tuple[str, ...] = ()

    @property
    def roots(self) -> dict[str, str]:
        """Source name -> root of its relative hrefs."""
        return {s.name: s.root for s in self.sources}


def tile_digest(scenes: Iterable[Scene]) -> str:
    """sha256 over what decides a tile's pixels: its kept scenes, their files and their offset, in any order.

    Not in it: roots, clocks, cloud cover, the words of reasons, and places in the order, which follow from time and id;
    but where a source's order is its catalogue's, which nothing else tells, the order of its kept scenes is in it.
    """
    scenes = list(scenes)
    words = ("order", "cloud_cover", "offset_reason", "kept", "dropped_reason")
    kept = [{k: v for k, v in row_of(s).items() if k not in words} for s in scenes if s.kept]
    listed = sorted((s for s in scenes if s.kept and _as_listed(s.source)), key=lambda s: (s.source, s.order))
    order = [_canonical(["order", [[s.source, s.id] for s in listed]])] if listed else []
    return _digest(sorted(_canonical(s) for s in kept) + order)


def _as_listed(source: str) -> bool:
    return source in BY_NAME and BY_NAME[source].order == BY_CATALOGUE


def rows_digest(scenes: Iterable[Scene]) -> str:
    """sha256 over every field of every row, in any order."""
    return _digest(sorted(_canonical(row_of(s)) for s in scenes))


class InventoryWriter:
    """Writes an inventory tile by tile; the file appears under its name only when `finish` was called.

    As a context manager it removes what it wrote where `finish` was not reached.
    """

    def __init__(self, path: str | Path, period: Period, frozen: str, region: str = "") -> None:
        self._path = Path(path)
        self._temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        self._period, self._frozen, self._region = period, frozen, region
        self._tiles: list[TileRecord] = []
        self._rows: list[tuple[str, str]] = []
        self._group: list[pa.Table] = []
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # A worker reads the whole footer before its tile: statistics of 18,400 row groups would swell it.
        self._parquet = pq.ParquetWriter(
            self._temporary, SCHEMA, compression="zstd", write_statistics=False, use_dictionary=False, store_schema=True
        )

    def add(self, tile: str, scenes: Sequence[Scene]) -> TileRecord:
        """Appends a tile; tiles come in the order of their names, scenes in any.

        Raises:
          ValueError: a tile out of order, or a scene of another tile.
        """
        if self._tiles and tile <= self._tiles[-1].name:
            raise ValueError(f"tile {tile} after {self._tiles[-1].name}: tiles are written in the order of their names")
        if strangers := sorted({s.tile for s in scenes} - {tile}):
            raise ValueError(f"scenes of {strangers[0]} under tile {tile}")
        ordered = sorted(scenes, key=lambda s: (s.sensor, s.order, s.id, s.source))
        kept = [s for s in ordered if s.kept]
        orbits = [s.orbit for s in kept if s.sensor != S2]
        record = TileRecord(
            tile,
            len(ordered),
            len(kept) - len(orbits),
            orbits.count(ASCENDING),
            orbits.count(DESCENDING),
            len(ordered) - len(kept),
            tile_digest(ordered),
        )
        if ordered:
            self._group.append(table_of(ordered))
        if len(self._group) == TILES_A_GROUP:
            self._write_group()
        self._tiles.append(record)
        self._rows.append((tile, rows_digest(ordered)))
        return record

    def _write_group(self) -> None:
        if self._group:
            table = pa.concat_tables(self._group)
            self._parquet.write_table(table, row_group_size=len(table))
            self._group.clear()

    def finish(self, sources: Iterable[SourceRecord], amendments: Sequence[str] = ()) -> Inventory:
        """Writes the header and puts the file in its place, over an older one."""
        sources = tuple(sorted(sources, key=lambda s: (s.name, s.root, s.catalog)))
        digest = _digest([FORMAT, str(DIGEST_VERSION), self._period.name, *map(_canonical, self._rows)])
        header = {
            "format": FORMAT,
            "version": VERSION,
            "period": self._period.name,
            "frozen": self._frozen,
            "tiles": [list(dataclasses.astuple(t)) for t in self._tiles],
            "sources": [dataclasses.asdict(s) for s in sources],
            "digest": digest,
            "overlap": "full",
            "region": self._region,
            "amendments": list(amendments),
            "tiles_a_group": TILES_A_GROUP,
        }
        self._write_group()
        self._parquet.add_key_value_metadata({METADATA_KEY: _canonical(header).encode()})
        self._parquet.close()
        self._temporary.replace(self._path)
        return _inventory(self._path, header)

    def __enter__(self) -> "InventoryWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parquet.close()
        self._temporary.unlink(missing_ok=True)


def read_header(path: str | Path) -> Inventory:
    """What an inventory says of itself, without reading a row.

    Raises:
      BadInput: no such file, not an inventory, cut short, or of a newer version.
    """
    return _opened(path)[1]


def read_tile(path: str | Path, tile: str) -> list[Scene]:
    """The scenes of one tile, kept and dropped, sorted by sensor and order; reads the row group that it lies in only.

    Raises:
      BadInput: as `read_header`; a tile that is not in the inventory.
    """
    metadata, _, places = _opened(path)
    place = _placed(path, places, tile)
    scenes: list[Scene] = []
    try:
        if place.group is not None:
            with pq.ParquetFile(path, metadata=metadata) as file:
                table = file.read_row_group(place.group)
            scenes = scenes_of(table.filter(pc.equal(table["tile"], tile)))
        digest = tile_digest(scenes)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as e:
        raise BadInput(f"{path}: tile {tile} cannot be read ({e}); build the inventory again") from None
    if digest != place.digest:
        raise BadInput(f"{path}: the scenes of tile {tile} are not those that were frozen; build the inventory again")
    return scenes


def write_inventory(
    path: str | Path,
    period: Period,
    frozen: str,
    tiles: Mapping[str, Sequence[Scene]],
    sources: Iterable[SourceRecord],
    region: str = "",
) -> Inventory:
    """Writes an inventory whose scenes are all at hand."""
    with InventoryWriter(path, period, frozen, region) as writer:
        for tile in sorted(tiles):
            writer.add(tile, tiles[tile])
        return writer.finish(sources)


class _Place(NamedTuple):
    """The row group that a tile lies in, None for one without scenes, and the digest of its scenes (`tile_digest`)."""

    group: int | None
    digest: str


_Opened = tuple[Any, Inventory, dict[str, _Place]]


def _placed(path: str | Path, places: dict[str, _Place], tile: str) -> _Place:
    if tile not in places:
        raise BadInput(f"{path}: tile {tile} is not in it; it has {_few(sorted(places))}")
    return places[tile]


def frozen_digest(path: str | Path, tile: str) -> str:
    """What `tile_digest` gave when a tile was frozen; `read_tile` holds the scenes against it. Raises as that."""
    return _placed(path, _opened(path)[2], tile).digest


def _opened(path: str | Path) -> _Opened:
    """(Parquet footer, what it says, tile -> where its scenes are), kept while the file stays the same."""
    try:
        stat = os.stat(path)  # noqa: PTH116 - takes str and Path alike
    except OSError:
        raise BadInput(f"inventory {path}: no such file; make one with tessera-beam inventory build") from None
    return _footer(str(path), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=8)  # a worker reads tile after tile of one inventory, whose footer is large for the planet
def _footer(path: str, _size_bytes: int, _mtime_ns: int) -> _Opened:
    try:
        metadata = pq.read_metadata(path)
        text = (metadata.metadata or {}).get(METADATA_KEY)
    except (pa.ArrowException, OSError, ValueError) as e:
        raise BadInput(
            f"inventory {path}: not a Parquet file, or cut short ({e}); make it with tessera-beam inventory build"
        ) from None
    try:
        header = json.loads(text) if text else {}
    except (ValueError, RecursionError) as e:
        raise BadInput(f"inventory {path}: its header is damaged ({e}); build it again") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise BadInput(f"{path} is a Parquet file but no inventory; make one with tessera-beam inventory build")
    if header["version"] > VERSION:
        raise BadInput(
            f"inventory {path} has version {header['version']}: this release reads up to {VERSION}; "
            "use a newer tessera-beam"
        )
    places: dict[str, _Place] = {}
    filled = 0
    try:
        found = _inventory(path, header)
        together = int(header["tiles_a_group"]) if header["version"] > 1 else 1
        for record in found.counts.values():
            places[record.name] = _Place(filled // together if record.rows else None, record.digest)
            filled += bool(record.rows)
        groups = -(-filled // together)
    except (ValueError, ZeroDivisionError, KeyError, TypeError, AttributeError) as e:
        raise BadInput(f"inventory {path}: its header is damaged ({e}); build it again") from None
    if groups != metadata.num_row_groups:
        raise BadInput(f"inventory {path}: {metadata.num_row_groups} row groups for {filled} tiles; build it again")
    return metadata, found, places


def _inventory(path: str | Path, header: Mapping[str, Any]) -> Inventory:
    records = [TileRecord(*t) for t in header["tiles"]]
    return Inventory(
        path=str(path),
        period=period_of(header["period"]),
        frozen=header["frozen"],
        tiles=tuple(r.name for r in records),
        sources=tuple(SourceRecord(**s) for s in header["sources"]),
        digest=header["digest"],
        counts={r.name: r for r in records},
        overlap=header["overlap"],
        region=header["region"],
        amendments=tuple(header["amendments"]),
    )


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
