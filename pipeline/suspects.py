"""Suspects: blocks that were made though their imagery looks wrong, from what an output folder holds."""

import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow.parquet as pq

from pipeline.work import TileWork, opened, work_of
from transforms.storage import Store


def suspects(
    store: Store, items: Iterable[dict[str, Any]], work: dict[tuple[str, str], TileWork] | None = None
) -> list[dict[str, Any]]:
    """Every warning of a done block: `period`, `tile`, `row_px`, `col_px`, `reason`, by tile and place.

    Of published tiles from the folded receipts, which are opened only where the item counts pixels under suspicion; of
    the others from the receipts that wait.

    Args:
      items: of the tiles that are published. work: of `work_of`, if at hand.
    """
    found = [row for item in items for row in _of_published(store, item)]
    names = [name for waiting in (work_of(store) if work is None else work).values() for name in waiting.done]
    found += [row for receipt in opened(store, names) for row in rows_of(vars(receipt))]
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
