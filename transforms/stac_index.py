"""The index: all items of an output folder in one stac-geoparquet file."""

import datetime as dt
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from shapely.geometry import shape

from model.errors import BadInput
from transforms.stac import item_path, rebased, utc
from transforms.stac_assets import ASSET_KEYS, COUNTED, REASON_BITS
from transforms.stac_geometry import geometry_of, union_of
from transforms.statistics import PERCENTILES

INDEX_VERSION = "1.1.0"  # of the stac-geoparquet specification (radiantearth/stac-geoparquet-spec)
GEO_VERSION = "1.1.0"  # of GeoParquet: the first with bbox columns
ROW_GROUP_ITEMS = 500  # an item is about 100 KB as Python and Arrow objects, so a group takes some 50 MB

_TIME = pa.timestamp("us", tz="UTC")
_LINK = pa.struct([(name, pa.string()) for name in ("rel", "href", "type", "title")])
_QUANTIZATION = pa.struct(
    [("method", pa.string()), ("original_dtype", pa.string()), ("quantized_dtype", pa.string()), ("link", _LINK)]
)
_RUNTIME = pa.struct(
    [
        ("sampler", pa.string()),
        ("s2_bands", pa.list_(pa.string())),
        ("s1_bands", pa.list_(pa.string())),
        ("device_kinds", pa.list_(pa.string())),
    ]
)
_BITFIELD_CLASS = pa.struct([("value", pa.int64()), ("name", pa.string()), ("description", pa.string())])
_BITFIELD = pa.struct(
    [
        ("name", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("description", pa.string()),
        ("classes", pa.list_(_BITFIELD_CLASS)),
    ]
)


def _range(number: pa.DataType) -> pa.DataType:
    return pa.struct([(name, number) for name in ("minimum", "maximum", *(f"p{q:02d}" for q in PERCENTILES))])


_STATISTICS = pa.struct(
    [
        ("embedded", pa.int64()),
        ("reasons", pa.struct([(name, pa.int64()) for name in ("clear", *(name for name, _ in REASON_BITS))])),
        ("observations", pa.struct([(name, _range(pa.int64())) for name in COUNTED])),
        ("scales", _range(pa.float64())),
        ("norm", pa.struct([("checked", pa.int64()), ("astray", pa.int64())])),
    ]
)
_FIGURES = [
    (
        "statistics",
        pa.struct([(name, pa.float64()) for name in ("minimum", "maximum", "mean", "stddev", "valid_percent")]),
    ),
    (
        "histogram",
        pa.struct([("count", pa.int64()), ("min", pa.int64()), ("max", pa.int64()), ("buckets", pa.list_(pa.int64()))]),
    ),
]
# Properties become columns of their own; what `tessera:clip` says differs from region to region, so it stays JSON.
_PROPERTIES: dict[str, pa.DataType] = {
    "title": pa.string(),
    "version": pa.string(),
    "datetime": _TIME,
    "start_datetime": _TIME,
    "end_datetime": _TIME,
    "created": _TIME,
    "gsd": pa.float64(),
    "grid:code": pa.string(),
    "proj:code": pa.string(),
    "proj:bbox": pa.list_(pa.float64()),
    "proj:shape": pa.list_(pa.int64()),
    "proj:transform": pa.list_(pa.float64()),
    "processing:level": pa.string(),
    "processing:software": pa.struct([("tessera-beam", pa.string())]),
    "processing:version": pa.string(),
    "processing:lineage": pa.string(),
    "emb:quantization": _QUANTIZATION,
    "emb:runtime_parameters": _RUNTIME,
    "tessera:tile": pa.string(),
    "tessera:period": pa.string(),
    "tessera:model": pa.string(),
    "tessera:model_sha256": pa.string(),
    "tessera:profile": pa.string(),
    "tessera:profile_digest": pa.string(),
    "tessera:dimensions": pa.int64(),
    "tessera:overlap": pa.string(),
    "tessera:revision": pa.string(),
    "tessera:inventory": pa.string(),
    "tessera:sources": pa.list_(pa.string()),
    "tessera:counts": pa.struct([]),  # its fields are those that the items have
    "tessera:statistics": _STATISTICS,
    "tessera:clip": pa.string(),
    "tessera:warnings": pa.list_(pa.string()),
}
_JSON_COLUMNS = ("tessera:clip",)
_TIME_COLUMNS = tuple(name for name, kind in _PROPERTIES.items() if kind == _TIME)


def _asset_type(key: str) -> pa.DataType:
    fields = [
        ("href", pa.string()),
        ("type", pa.string()),
        ("title", pa.string()),
        ("description", pa.string()),
        ("roles", pa.list_(pa.string())),
        ("file:size", pa.int64()),
        ("file:checksum", pa.string()),
        ("tessera:crc32c", pa.string()),
        ("proj:shape", pa.list_(pa.int64())),
        ("proj:transform", pa.list_(pa.float64())),
    ]
    nodata = pa.string() if key == "scales" else pa.int64()  # "nan" there, a number elsewhere
    band = [("name", pa.string()), ("data_type", pa.string()), ("nodata", nodata)]
    if key in ("observations", "scales"):
        band += _FIGURES
    fields.append(("raster:bands", pa.list_(pa.struct(band))))
    if key == "reasons":
        fields.append(("classification:bitfields", pa.list_(_BITFIELD)))
    return pa.struct(fields)


def _schema(counts: Iterable[str]) -> pa.Schema:
    columns: list[tuple[str, pa.DataType]] = [
        ("type", pa.string()),
        ("stac_version", pa.string()),
        ("stac_extensions", pa.list_(pa.string())),
        ("id", pa.string()),
        ("collection", pa.string()),
        ("geometry", pa.binary()),
        ("bbox", pa.struct([(name, pa.float64()) for name in ("xmin", "ymin", "xmax", "ymax")])),
        *_PROPERTIES.items(),
        ("links", pa.list_(_LINK)),
        ("assets", pa.struct([(key, _asset_type(key)) for key in ASSET_KEYS])),
    ]
    counted = pa.struct([(name, pa.int64()) for name in sorted(counts)])
    return pa.schema(
        [
            (name, counted if name == "tessera:counts" else kind)
            for name, kind in columns
            if name != "tessera:counts" or len(counted)  # Parquet has no struct without fields
        ]
    )


def _row(item: Mapping[str, Any]) -> dict[str, Any]:
    properties = dict(item["properties"])
    if unknown := sorted(set(properties) - set(_PROPERTIES)):
        raise BadInput(
            f"item {item['id']} has {', '.join(unknown)}, which this release does not write; use a newer one"
        )
    for name in _TIME_COLUMNS:
        if properties.get(name) is not None:
            properties[name] = dt.datetime.fromisoformat(properties[name])
    for name in _JSON_COLUMNS:
        if name in properties:
            properties[name] = json.dumps(properties[name], sort_keys=True)
    return {
        **{k: item[k] for k in ("type", "stac_version", "stac_extensions", "id", "collection", "links", "assets")},
        "geometry": shapely.to_wkb(shape(item["geometry"]), byte_order=1),
        "bbox": dict(zip(("xmin", "ymin", "xmax", "ymax"), item["bbox"], strict=True)),
        **properties,
    }


def _geo(types: Iterable[str], bbox: list[float]) -> bytes:
    corners = {name: ["bbox", name] for name in ("xmin", "ymin", "xmax", "ymax")}
    column = {
        "encoding": "WKB",  # without a "crs" it is OGC:CRS84: longitude, latitude
        "geometry_types": sorted(types),
        "bbox": bbox,
        "covering": {"bbox": corners},
    }
    geo = {"version": GEO_VERSION, "primary_column": "geometry", "columns": {"geometry": column}}
    return json.dumps(geo, sort_keys=True).encode()


def items_parquet(
    items: Iterable[Mapping[str, Any]], out: Path | BinaryIO, collection: Mapping[str, Any] | None = None
) -> int:
    """Writes items as stac-geoparquet, sorted by id, and returns how many. Their order does not change the bytes.

    Hrefs start from the output folder, where the file lies, and no longer from each item's own folder.

    Args:
      items: of `transforms.stac.item`; read once, held compressed (about 2 KB each).
      out: a path, or a binary file that is open for writing.
      collection: kept in the file's metadata without its links to items.

    Raises:
      BadInput: no items, two of one id, or one with fields that this release does not know.
    """
    held: list[tuple[str, bytes]] = []
    boxes: list[list[float]] = []
    types: set[str] = set()
    counts: set[str] = set()
    for item in items:
        properties = item["properties"]
        place = item_path(properties["tessera:tile"], properties["tessera:period"], properties["tessera:model"])
        moved = rebased(item, place.rpartition("/")[0])
        moved["links"] = [*moved["links"], {"rel": "canonical", "href": f"./{place}", "type": "application/geo+json"}]
        held.append((item["id"], zlib.compress(json.dumps(moved).encode(), 1)))
        boxes.append(item["bbox"])
        types.add(item["geometry"]["type"])
        counts |= set(properties["tessera:counts"])
    if not held:
        raise BadInput("items.parquet needs an item: nothing is published here yet")
    held.sort()
    if twice := sorted({a[0] for a, b in itertools.pairwise(held) if a[0] == b[0]}):
        raise BadInput(f"items with one id: {', '.join(twice[:3])}")
    index: dict[str, Any] = {"version": INDEX_VERSION}
    if collection is not None:
        bare = {**collection, "links": [link for link in collection["links"] if link["rel"] != "item"]}
        index["collections"] = {collection["id"]: bare}
    schema = _schema(counts).with_metadata(
        {"geo": _geo(types, union_of(boxes)), "stac-geoparquet": json.dumps(index, sort_keys=True).encode()}
    )
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for start in range(0, len(held), ROW_GROUP_ITEMS):
            rows = [_row(json.loads(zlib.decompress(data))) for _, data in held[start : start + ROW_GROUP_ITEMS]]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema), row_group_size=ROW_GROUP_ITEMS)
    return len(held)


def _without_nulls(value: Any) -> Any:
    """Parquet fills absent fields with nulls; STAC leaves them out."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v) for v in value]
    return value


def read_items_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """The items of a file of `items_parquet`, in the order of their ids, hrefs starting from the file's folder.

    Raises:
      BadInput: not stac-geoparquet, or of another version.
    """
    with pq.ParquetFile(path) as file:
        found = json.loads((file.schema_arrow.metadata or {}).get(b"stac-geoparquet", b"{}")).get("version")
        if found != INDEX_VERSION:
            raise BadInput(f"{path}: stac-geoparquet version {found}; this release reads {INDEX_VERSION}")
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                yield _item(row)


def _item(row: dict[str, Any]) -> dict[str, Any]:
    row = _without_nulls(row)
    properties = {name: row.pop(name) for name in _PROPERTIES if name in row}
    for name in _TIME_COLUMNS:
        if name in properties:
            properties[name] = utc(properties[name])
    for name in _JSON_COLUMNS:
        if name in properties:
            properties[name] = json.loads(properties[name])
    return {
        **row,
        "geometry": geometry_of(shapely.from_wkb(row["geometry"])),
        "bbox": [row["bbox"][name] for name in ("xmin", "ymin", "xmax", "ymax")],
        "properties": {"datetime": None, **properties},
    }
