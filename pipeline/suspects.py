"""Suspects: blocks that were made though their imagery looks wrong, from what an output folder holds."""

import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow.parquet as pq

from transforms.receipts import DONE, receipt_from_json
from transforms.storage import Store


def suspects(store: Store, items: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every warning of a done block: `period`, `tile`, `row_px`, `col_px`, `reason`, by tile and place.

    Of published tiles from the folded receipts, which are opened only where the item counts pixels under suspicion; of
    the others from the receipts that wait.

    Args:
      items: of the tiles that are published.
    """
    found = [row for item in items for row in _of_published(store, item)]
    for period in store.folders("_work"):
        for tile in store.folders(period):
            for revision in store.folders(tile):
                for desk in store.folders(revision):
                    found += _of_waiting(store, desk)
    return sorted(found, key=lambda r: (r["period"], r["tile"], r["row_px"], r["col_px"], r["reason"]))


def rows_of(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The warnings of a receipt as a dict, or of a row of blocks.parquet (one text of JSON there)."""
    said = record.get("warnings") or []
    for reason in json.loads(said) if isinstance(said, str) else said:
        yield {k: record[k] for k in ("period", "tile", "row_px", "col_px")} | {"reason": reason}


def _of_published(store: Store, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    properties = item["properties"]
    if not properties.get("tessera:counts", {}).get("drift"):
        return
    folder = f"{properties['tessera:period']}/{properties['tessera:tile']}"
    name = f"{folder}/{item['assets']['blocks']['href'].removeprefix('./')}"
    for row in pq.read_table(io.BytesIO(store.get(name))).to_pylist():
        yield from rows_of(row)


def _of_waiting(store: Store, desk: str) -> Iterator[dict[str, Any]]:
    for name in store.names(desk):
        if name.endswith(f".{DONE}.json"):
            receipt = receipt_from_json(store.get(name))
            yield from rows_of(vars(receipt))
