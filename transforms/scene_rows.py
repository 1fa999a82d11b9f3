"""Scene rows: scenes as the rows of a Parquet table, and back."""

import dataclasses
import datetime as dt
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from transforms.scenes import Asset, Scene

# Since version 1: one row per (tile, scene), kept and dropped, sorted by tile, sensor, order. Columns are the fields of
# `scenes.Scene`, assets a list of the fields of `scenes.Asset`; units are in the names.
SCHEMA = pa.schema(
    [
        pa.field("tile", pa.string(), nullable=False),
        pa.field("sensor", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("datetime", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("order", pa.int32(), nullable=False),
        pa.field("orbit", pa.string(), nullable=False),
        pa.field("relative_orbit", pa.int32()),
        pa.field("platform", pa.string(), nullable=False),
        pa.field("baseline", pa.string(), nullable=False),
        pa.field("cloud_cover", pa.float64()),
        pa.field("datatake", pa.string(), nullable=False),
        pa.field("generated", pa.string(), nullable=False),
        pa.field("offset_dn", pa.int32(), nullable=False),
        pa.field("offset_reason", pa.string(), nullable=False),
        pa.field("kept", pa.bool_(), nullable=False),
        pa.field("dropped_reason", pa.string(), nullable=False),
        pa.field(
            "assets",
            pa.list_(
                pa.struct(
                    [
                        pa.field("band", pa.string(), nullable=False),
                        pa.field("href", pa.string(), nullable=False),
                        pa.field("epsg", pa.int32(), nullable=False),
                        pa.field("transform", pa.list_(pa.float64()), nullable=False),
                        pa.field("height_px", pa.int32(), nullable=False),
                        pa.field("width_px", pa.int32(), nullable=False),
                        pa.field("size_bytes", pa.int64()),
                        pa.field("checksum", pa.string(), nullable=False),
                    ]
                )
            ),
            nullable=False,
        ),
    ]
)


def table_of(scenes: Sequence[Scene]) -> pa.Table:
    """Scenes as the rows of SCHEMA, in the order given."""
    rows = [row_of(s) | {"datetime": dt.datetime.fromisoformat(s.datetime)} for s in scenes]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def scenes_of(table: pa.Table) -> list[Scene]:
    """What `table_of` was given."""
    scenes = []
    for row in table.to_pylist():
        row["datetime"] = row["datetime"].isoformat(timespec="microseconds").replace("+00:00", "Z")
        row["assets"] = tuple(Asset(**a | {"transform": tuple(a["transform"])}) for a in row["assets"])
        scenes.append(Scene(**row))
    return scenes


_ASSET_FIELDS = tuple(f.name for f in dataclasses.fields(Asset))
_SCENE_FIELDS = tuple(f.name for f in dataclasses.fields(Scene) if f.name != "assets")


def row_of(scene: Scene) -> dict[str, Any]:
    """A scene as a row: as `dataclasses.asdict`, without its deep copies: this is done for two million scenes."""
    assets = [{name: getattr(a, name) for name in _ASSET_FIELDS} for a in scene.assets]
    for a in assets:  # whole numbers of an item come back from Parquet as floats, and digests must not notice
        a["transform"] = tuple(map(float, a["transform"]))
    return {name: getattr(scene, name) for name in _SCENE_FIELDS} | {"assets": assets}
