"""Labels: what is known of the records of a probe set, in the Parquet file beside its manifest."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model.errors import BadInput

FILE = "labels.parquet"
KEY = b"tessera-beam"  # of the file's metadata
CLASSIFICATION, REGRESSION, SEGMENTATION = TASKS = ("classification", "regression", "segmentation")
TRAIN, TEST = "train", "test"  # values of a column that holds a fixed split

_KINDS = {"record": pa.int64(), "group": pa.string(), "lon": pa.float64(), "lat": pa.float64()}
_PATCH_KINDS = {"patch": pa.string(), "row": pa.int32(), "col": pa.int32()}


@dataclasses.dataclass(frozen=True)
class Labels:
    """The labelled records of a probe set.

    Attributes:
      name: of the set. task: one of `TASKS`.
      record: int64 (N,) numbers of records in the shard set, each at most once.
      label: (N,) strings for classes, float64 for a regression.
      group: (N,) strings: records of one group never stand on both sides of a split.
      lon, lat: float64 (N,) degrees, NaN where unknown.
      test: bool (N,) which records a fixed split keeps for testing; None where the set has no fixed split.
      patch, row, col: (N,) strings and int32: where a record lies in which patch, for a segmentation; else None.
    """

    name: str
    task: str
    record: NDArray[np.int64]
    label: NDArray[np.str_] | NDArray[np.float64]
    group: NDArray[np.str_]
    lon: NDArray[np.float64]
    lat: NDArray[np.float64]
    test: NDArray[np.bool_] | None = None
    patch: NDArray[np.str_] | None = None
    row: NDArray[np.int32] | None = None
    col: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise BadInput(f"probe set {self.name}: task {self.task!r} is not one of {', '.join(TASKS)}")
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)[2:]}
        lengths = {name: len(values) for name, values in fields.items() if values is not None}
        if len(set(lengths.values())) != 1:
            raise BadInput(f"probe set {self.name}: its columns have different lengths: {lengths}")
        if not len(self):
            raise BadInput(f"probe set {self.name}: no record has a label")
        if len(np.unique(self.record)) != len(self.record):
            raise BadInput(f"probe set {self.name}: a record has two labels, it must have one")
        wanted = "f" if self.task == REGRESSION else "U"
        if self.label.dtype.kind != wanted:
            words = "numbers" if wanted == "f" else "strings"
            raise BadInput(f"probe set {self.name}: the labels of a {self.task} must be {words}")
        if self.task == REGRESSION and not np.isfinite(self.label.astype(np.float64)).all():
            raise BadInput(f"probe set {self.name}: a label is not a finite number; leave such records out")
        if (self.patch is None) == (self.task == SEGMENTATION):
            raise BadInput(f"probe set {self.name}: patch, row and col belong to a segmentation, and to nothing else")
        if self.test is not None:
            both = set(self.group[self.test].tolist()) & set(self.group[~self.test].tolist())
            if both:
                raise BadInput(f"probe set {self.name}: its fixed split has group {min(both)!r} on both sides")

    def __len__(self) -> int:
        return len(self.record)

    def __getitem__(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> "Labels":
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        taken: dict[str, Any] = {k: v[rows] if isinstance(v, np.ndarray) else v for k, v in values.items()}
        return Labels(**taken)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, sorted; empty for a regression."""
        return () if self.task == REGRESSION else tuple(np.unique(self.label).tolist())


def write_labels(folder: str | Path, labels: Labels) -> Path:
    """Writes `labels.parquet`; the same labels give the same bytes. Returns its path."""
    columns = {name: pa.array(getattr(labels, name).tolist(), kind) for name, kind in _KINDS.items()}
    kind = pa.float64() if labels.task == REGRESSION else pa.string()
    columns["label"] = pa.array(labels.label.tolist(), kind)
    if labels.patch is not None:
        columns |= {name: pa.array(getattr(labels, name).tolist(), k) for name, k in _PATCH_KINDS.items()}
    told = {"task": labels.task, "name": labels.name}
    if labels.test is not None:
        columns["split"] = pa.array(np.where(labels.test, TEST, TRAIN).tolist(), pa.string())
        told["split"] = "split"
    path = Path(folder) / FILE
    table = pa.table(columns).replace_schema_metadata({KEY: json.dumps(told, sort_keys=True).encode()})
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial)
    partial.replace(path)
    return path


def read_labels(folder: str | Path, records: int) -> Labels:
    """Reads the labels of a probe set.

    Args:
      records: how many the shard set holds.

    Raises:
      BadInput: no such file, not one of ours, columns missing or of another kind, a record that the set does not hold.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise BadInput(
            f"{folder} has no {FILE}: a probe set is a shard set with one beside its manifest; "
            "`python -m pipeline.real.sets REAL_DATA OUT` makes those of the real data"
        )
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as e:
        raise BadInput(f"{path} cannot be read as Parquet ({str(e).splitlines()[0]})") from None
    try:
        told = json.loads((table.schema.metadata or {})[KEY])
        name, task, split = str(told["name"]), str(told["task"]), told.get("split")
    except (KeyError, ValueError, TypeError, AttributeError):
        raise BadInput(f"{path} has no record of its task in the metadata key {KEY.decode()!r}") from None
    kinds = {**_KINDS, "label": pa.float64() if task == REGRESSION else pa.string()}
    kinds |= _PATCH_KINDS if task == SEGMENTATION else {}
    kinds |= {split: pa.string()} if split else {}
    there = {field.name: field.type for field in table.schema}
    for column, kind in kinds.items():
        if there.get(column) != kind:
            raise BadInput(f"{path}: column {column} is {there.get(column, 'absent')}, it must be {kind}")
        if column not in ("lon", "lat") and table[column].null_count:
            raise BadInput(f"{path}: column {column} has empty cells; leave such records out")
    rows = {column: table[column].to_numpy(zero_copy_only=False) for column in kinds}
    record = rows["record"]
    if len(record) and (record.min() < 0 or record.max() >= records):
        raise BadInput(f"{path}: records {record.min()} to {record.max()}, and the set holds 0 to {records - 1}")
    test = None
    if split:
        if unknown := sorted(set(rows[split]) - {TRAIN, TEST}):
            raise BadInput(f"{path}: column {split} says {unknown[0]!r}; it must say {TRAIN} or {TEST}")
        test = rows[split] == TEST
    text = {c: np.asarray(rows[c], str) for c in ("group", "patch", "label") if c in rows and kinds[c] == pa.string()}
    lon, lat = (np.asarray(rows[c], np.float64) for c in ("lon", "lat"))
    return Labels(
        name,
        task,
        record,
        text.get("label", rows["label"]),
        text["group"],
        lon,
        lat,
        test,
        text.get("patch"),
        rows.get("row"),
        rows.get("col"),
    )
