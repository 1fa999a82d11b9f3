"""stac-geoparquet: STAC items as Parquet, one file or a folder of them, so that the planet is listed without an API.

Works best where rows are sorted by place: a tile then touches the row groups around it and no others.
"""

import dataclasses
import datetime as dt
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from model.errors import BadInput
from transforms import grid
from transforms.catalogs import opera
from transforms.catalogs.headers import Headers
from transforms.catalogs.hrefs import root_of_folder
from transforms.catalogs.items import Found, datetime_of, item_boxes, tile_id
from transforms.catalogs.registry import SOURCES, source_of
from transforms.catalogs.source import Source, number
from transforms.inventory import METADATA_KEY
from transforms.periods import Period

SUFFIXES = (".parquet", ".geoparquet")
BATCH_ROWS = 256  # items in memory at once: some 10 kB each as dictionaries
INDEX_ROWS = 4_000_000  # rows whose place and day are remembered; some 120 bytes each
_TILE_COLUMNS = ("grid:code", "s2:mgrs_tile")
# What tells where and when an item is; anything else is read for the items of the tile alone.
_NARROW = (
    *("id", "collection", "datetime", "start_datetime", "bbox", "s2:product_uri", *_TILE_COLUMNS),
    *("mgrs:utm_zone", "mgrs:latitude_band", "mgrs:grid_square"),
)
_NOT_PROPERTIES = frozenset(("id", "type", "collection", "geometry", "bbox", "assets", "links", "stac_version",
                             "stac_extensions"))  # fmt: skip
# A scene across the antimeridian has its east west of its west; nothing can be said of such groups from their extremes.
_FAR_LONGITUDE = 140

_Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class _Group:
    """A row group and what its statistics tell.

    Attributes:
      path: of the file. number: of the group. first_row: counted through all files.
      box: (west, south, east, north) around its items. days: first and last. tiles: least and greatest name, as
        written, for each column of names. None where the statistics do not say.
    """

    path: str
    number: int
    rows: int
    first_row: int
    box: _Box | None
    days: tuple[dt.date, dt.date] | None
    tiles: tuple[tuple[str, str] | None, ...]


_Entry = tuple[int, dt.date, str, tuple[_Box, ...]]  # row in the group, day, tile or "", boxes of radar


class ParquetCatalog:
    """Items in Parquet, read group by group: statistics first, then place and time, then whole items of the tile.

    Attributes:
      text: as the user gave it. root: folder that hrefs stay in. ignored: what was passed over, with counts.
    """

    def __init__(self, text: str, path: Path, files: Sequence[Path], provider: str | None) -> None:
        """
        Raises:
          BadInput: files that are no Parquet, or none of them holds STAC items.
        """
        self.text = text
        self.root = root_of_folder(path if path.is_dir() else path.parent)
        self.ignored: dict[str, int] = {}
        self._provider = provider
        self._headers = Headers(self.root)
        self._groups: list[_Group] = []
        self._index: OrderedDict[_Group, list[_Entry]] = OrderedDict()
        self._counted: set[_Group] = set()
        rows = 0
        for file in files:
            where = f"{self.root}/{file.relative_to(path).as_posix() if path.is_dir() else file.name}"
            metadata = _metadata(where)
            if missing := {"id", "collection", "datetime", "assets"} - set(metadata.schema.to_arrow_schema().names):
                if not path.is_dir():
                    raise BadInput(_no_items(text, metadata, missing))
                self._ignore("Parquet files without STAC items")
                continue
            for group in _groups(where, metadata, rows):
                self._groups.append(group)
                rows += group.rows
        if not self._groups:
            raise BadInput(f"catalogue {text}: its Parquet files hold no STAC items")

    def items(self, tile: grid.Tile, period: Period) -> Iterator[Found]:
        """Yields the items of the tile, and radar items around it, of the period, in the order of the files.

        Raises:
          BadInput: a file that cannot be read, or items that need `--as`.
        """
        shape = grid.footprint(tile)
        for group in self._groups:
            if not _may_hold(group, tile, period):
                continue
            rows = [
                row
                for row, day, name, boxes in self._entries(group)
                if period.start <= day <= period.end
                and (name == tile.name or any(shape.intersects(shapely.box(*box)) for box in boxes))
            ]
            for row, item in _items(group, rows):
                source = source_of(item, self._provider)
                if source is None:
                    continue  # counted by `_entries`
                against: tuple[str, ...] = ()
                if source is opera.SOURCE:
                    item, against = self._headers.fill(item, group.path)
                yield Found(item, group.path, source, group.first_row + row, against)

    def span(self) -> str:
        """First and last day by the files' statistics, "" where they have none."""
        days = [day for group in self._groups if group.days for day in group.days]
        return f"{min(days)}..{max(days)}" if days else ""

    def _ignore(self, what: str) -> None:
        self.ignored[what] = self.ignored.get(what, 0) + 1

    def _entries(self, group: _Group) -> list[_Entry]:
        """Place and day of the group's items; the groups used last are remembered."""
        if group not in self._index:
            self._index[group] = self._entries_of(group)
            self._counted.add(group)
            while sum(g.rows for g in self._index) > INDEX_ROWS and len(self._index) > 1:
                self._index.popitem(last=False)
        self._index.move_to_end(group)
        return self._index[group]

    def _entries_of(self, group: _Group) -> list[_Entry]:
        first = group not in self._counted  # what is passed over is counted once
        entries: list[_Entry] = []
        for row, item in _rows(group, _NARROW, None):
            sources = [s for s in SOURCES if item["collection"] in s.collections]
            sources = [s for s in sources if self._provider in (None, s.provider)]
            entry = _entry(row, item, sources)
            if isinstance(entry, str):
                if first:
                    of = f" of {self._provider}" if self._provider and not sources else ""
                    self._ignore(entry + of)
                continue
            entries.append(entry)
        return entries


def parquet_files(path: Path) -> list[Path]:
    """The Parquet files of a catalogue: the file itself, or those of a folder that holds no STAC items as JSON."""
    if path.is_file():
        return [path] if path.name.lower().endswith(SUFFIXES) else []
    if any(f.name != "collection.json" for f in path.rglob("*.json")):
        return []
    return sorted(f for f in path.rglob("*") if f.name.lower().endswith(SUFFIXES) and f.is_file())


def _entry(row: int, item: Mapping[str, Any], sources: Sequence[Source]) -> _Entry | str:
    """Where and when an item is, or why it is passed over."""
    if not sources:
        return f"collection {item['collection']}"
    when = datetime_of(item)
    if when is None:
        return "items without datetime"
    if not sources[0].is_optical:
        boxes = tuple(item_boxes(item))
        return (row, when.date(), "", boxes) if boxes else "radar items without bbox and geometry"
    # The same collection of several providers: each writes the tile into a field of its own.
    name = next((n for s in sources if (n := tile_id(item, s))), "")
    return (row, when.date(), name, ()) if name else "optical items without a tile"


def _metadata(path: str) -> Any:
    try:
        return pq.read_metadata(path)
    except (pa.ArrowException, OSError) as e:
        raise BadInput(f"{path}: not a Parquet file, or cut short ({e}); take it out of the catalogue") from None


def _no_items(text: str, metadata: Any, missing: set[str]) -> str:
    if METADATA_KEY in (metadata.metadata or {}):
        return f"catalogue {text}: this is an inventory already; give it to embed, dpixels or quote"
    return f"catalogue {text}: not stac-geoparquet, it has no columns {', '.join(sorted(missing))}"


def _groups(path: str, metadata: Any, first_row: int) -> Iterator[_Group]:
    columns = {metadata.schema.column(n).path: n for n in range(metadata.num_columns)}
    for number_ in range(metadata.num_row_groups):
        group = metadata.row_group(number_)
        edges = [_range(group, columns.get(f"bbox.{k}")) for k in ("xmin", "ymin", "xmax", "ymax")]
        west, south, east, north = edges
        box = None if None in edges else (west[0], south[0], east[1], north[1])
        days = _range(group, columns.get("datetime"))
        yield _Group(
            path,
            number_,
            group.num_rows,
            first_row,
            box,
            (days[0].date(), days[1].date()) if days and isinstance(days[0], dt.datetime) else None,
            tuple(_range(group, columns.get(name)) for name in _TILE_COLUMNS),
        )
        first_row += group.num_rows


def _range(group: Any, column: int | None) -> Any:
    """Least and greatest value of a column of a group; None where it is not known or some rows have none."""
    statistics = None if column is None else group.column(column).statistics
    if statistics is None or not statistics.has_min_max or statistics.null_count != 0:
        return None
    try:
        return statistics.min, statistics.max
    except ValueError:  # nanoseconds that Python's times do not hold
        return None


def _may_hold(group: _Group, tile: grid.Tile, period: Period) -> bool:
    """Whether the statistics of a group leave room for an item of the tile in the period."""
    if group.days and (group.days[1] < period.start or group.days[0] > period.end):
        return False
    short = f"{int(tile.name[:2])}{tile.name[2:]}"
    names = [form + name for form in ("", "MGRS-", "T") for name in {tile.name, short}]
    for extremes in group.tiles:  # a column that every row fills: no radar among them
        if extremes and not any(extremes[0] <= name <= extremes[1] for name in names):
            return False
    if group.box is None:
        return True
    west, south, east, north = group.box
    parts = getattr(grid.footprint(tile), "geoms", [grid.footprint(tile)])
    for w, s, e, n in (part.bounds for part in parts):
        far = max(abs(w), abs(e)) > _FAR_LONGITUDE
        if s <= north and n >= south and (far or (w <= east and e >= west)):
            return True
    return False


def _items(group: _Group, rows: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Whole items of some rows, with the assets that any source of ours knows."""
    if rows:
        yield from _rows(group, None, set(rows))


def _rows(group: _Group, names: Sequence[str] | None, wanted: set[int] | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (row of the group, item), a batch in memory at a time.

    Args:
      names: of the columns, where the file has them; None for all that an item needs. wanted: rows; None for all.
    """
    try:
        with pq.ParquetFile(group.path) as file:
            columns = (
                _columns(file.schema_arrow) if names is None else [n for n in names if n in file.schema_arrow.names]
            )
            if "bbox" not in file.schema_arrow.names:
                columns.append("geometry")
            row = 0
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group.number], columns=columns):
                here = [k for k in range(batch.num_rows) if wanted is None or row + k in wanted]
                taken = _in_microseconds(batch.take(here)).to_pylist() if here else []
                for k, values in zip(here, taken, strict=True):
                    yield row + k, _item(values)
                row += batch.num_rows
    except (pa.ArrowException, OSError) as e:
        raise BadInput(f"{group.path}: cannot be read ({e}); copy it again") from None


def _in_microseconds(batch: Any) -> Any:
    """Some writers give times in nanoseconds, which Python's do not hold; what is cut off is below a microsecond."""
    for n, field in enumerate(batch.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            batch = batch.set_column(n, field.name, batch.column(n).cast(pa.timestamp("us", field.type.tz), safe=False))
    return batch


def _columns(schema: Any) -> list[str]:
    """Every column but links and assets that are none of ours: thumbnails, other bands, JPEG 2000 twins."""
    keys = {key for source in SOURCES for key in source.keys.values()}
    columns = [name for name in schema.names if name not in ("links", "assets")]
    assets = schema.field("assets").type
    if not pa.types.is_struct(assets):
        return [*columns, "assets"]
    return columns + [f"assets.{field.name}" for field in assets if field.name in keys]


def _item(values: Mapping[str, Any]) -> dict[str, Any]:
    """A row as the STAC item that it was made of, without what is null."""
    assets = values.get("assets")
    assets = json.loads(assets) if isinstance(assets, str) else assets
    item: dict[str, Any] = {
        "type": "Feature",
        "id": str(values.get("id")),
        "collection": values.get("collection"),
        "geometry": _geometry(values.get("geometry")),
        "properties": _plain({k: v for k, v in values.items() if k not in _NOT_PROPERTIES}),
        "assets": _plain(assets) if isinstance(assets, Mapping) else {},
    }
    if box := _bbox(values.get("bbox")):
        item["bbox"] = box
    return item


def _bbox(value: object) -> list[float] | None:
    """A bbox from its struct or list; None where a side is missing."""
    if isinstance(value, Mapping):
        value = [value.get(k) for k in ("xmin", "ymin", "xmax", "ymax")]
    numbers = [number(v) for v in value] if isinstance(value, list) else []
    return [v for v in numbers if v is not None] if numbers and None not in numbers else None


def _geometry(value: object) -> dict[str, Any] | None:
    if not isinstance(value, bytes):
        return None
    shape = shapely.from_wkb(value, on_invalid="ignore")
    return None if shape is None else dict(shapely.geometry.mapping(shape))


def _plain(value: Any) -> Any:
    """As JSON would have it: times as text, no keys without a value."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, dt.datetime):
        when = value if value.tzinfo else value.replace(tzinfo=dt.UTC)
        return when.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
    return value
