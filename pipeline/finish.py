"""The end of a run: collection, index and failures, written from what the store holds."""

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.modelfile import open_model
from transforms import inventory
from transforms.embed import inventory_of
from transforms.failures import cure
from transforms.objects import local_file
from transforms.plans import Plan
from transforms.receipts import FAILED, receipt_from_json
from transforms.stac import collection, item_path, to_json
from transforms.stac_index import items_parquet
from transforms.storage import Store, open_store

LISTERS = 16  # requests to the store at once: a planet has 18,400 folders
FAILURES = pa.schema(
    [
        ("tile", pa.string()),
        ("period", pa.string()),
        ("row_px", pa.int32()),
        ("col_px", pa.int32()),
        ("scene", pa.string()),
        ("band", pa.string()),
        ("cause", pa.string()),
        ("reason", pa.string()),
        ("command", pa.string()),
    ]
)


def published(store: Store, model_name: str) -> Iterator[dict[str, Any]]:
    """Every item of the output, by period and tile."""
    periods = [f for f in store.folders("") if not f.startswith("_")]

    def read(folder: str) -> dict[str, Any] | None:
        period, tile = folder.split("/")
        try:
            found: dict[str, Any] = json.loads(store.get(item_path(tile, period, model_name)))
        except FileNotFoundError:
            return None
        return found

    with ThreadPoolExecutor(LISTERS) as pool:
        for period in periods:
            for item in pool.map(read, store.folders(period)):
                if item is not None:
                    yield item


def failures(store: Store) -> list[dict[str, Any]]:
    """The failed blocks of tiles that are not published, by tile and place."""
    desks = [
        desk
        for period in store.folders("_work")
        for tile in store.folders(period)
        for revision in store.folders(tile)
        for desk in store.folders(revision)
    ]

    def read(desk: str) -> list[dict[str, Any]]:
        found = []
        for name in store.names(desk):
            if name.endswith(f".{FAILED}.json"):
                r = receipt_from_json(store.get(name))
                row = {n: getattr(r, n) for n in FAILURES.names if n != "command"}
                found.append(row | {"command": cure(r.cause, r.scene, r.band)})
        return found

    with ThreadPoolExecutor(LISTERS) as pool:
        rows = [row for found in pool.map(read, desks) for row in found]
    return sorted(rows, key=lambda r: (r["period"], r["tile"], r["row_px"], r["col_px"]))


def finish_run(plan: Plan) -> dict[str, Any]:
    """Writes `items.parquet`, `failures.parquet` and `collection.json`. Returns counts for the summary.

    `created` of the collection is the freeze time of the run's inventory: no clock stands in a published file.
    """
    store = open_store(plan.out)
    profile = open_model(local_file(store, f"_inputs/{plan.model_sha256}.onnx")).profile
    tiles = sum(1 for _ in published(store, plan.model_name))
    if tiles:
        record = collection(
            product=json.loads(store.get("_inputs/product.json")),
            profile=profile,
            items=published(store, plan.model_name),  # read anew: a planet's items do not fit in memory
            created=inventory.read_header(inventory_of(plan)).frozen,
        )
        with store.writer("items.parquet") as f:
            items_parquet(published(store, plan.model_name), f, record)
        store.replace("collection.json", to_json(record))
    failed = failures(store)
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(failed, schema=FAILURES), out, compression="zstd")
    store.replace("failures.parquet", out.getvalue())
    store.sweep()
    return {"tiles_published": tiles, "blocks_failed": len(failed)}
