"""The end of a run: collection, index and failures, written from what the store holds."""

import io
import json
import re
import zlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.modelfile import open_model
from pipeline.record import closed, unattended
from pipeline.work import TileWork, opened, side_by_side, work_of
from transforms import inventory
from transforms.embed import inventory_of
from transforms.failures import cure
from transforms.objects import local_file
from transforms.plans import Plan
from transforms.stac import item_path, model_path, to_json
from transforms.stac_collection import LICENCE, LICENCE_FORM, catalog, collection
from transforms.stac_index import items_parquet
from transforms.stac_model import model_item
from transforms.storage import Store, open_store

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

    folders = (folder for period in periods for folder in store.folders(period))
    return (item for item in side_by_side(read, folders) if item is not None)


def failures(store: Store, work: dict[tuple[str, str], TileWork] | None = None) -> list[dict[str, Any]]:
    """The failed blocks of tiles that are not published, by tile and place. `work`: of `work_of`, if at hand."""
    names = [name for found in (work_of(store) if work is None else work).values() for name in found.failed]
    rows = [
        {n: getattr(r, n) for n in FAILURES.names if n != "command"} | {"command": cure(r.cause, r.scene, r.band)}
        for r in opened(store, names)
    ]
    return sorted(rows, key=lambda r: (r["period"], r["tile"], r["row_px"], r["col_px"]))


def licence_there(store: Store) -> str:
    """The licence that the operator has written into the collection, which every run writes anew.

    "various" where nothing stands there, or what STAC does not take: a run's end is no place to refuse anything.
    """
    try:
        said = json.loads(store.get("collection.json")).get("license")
    except (FileNotFoundError, ValueError, AttributeError):
        return LICENCE
    return said if isinstance(said, str) and re.fullmatch(LICENCE_FORM, said) else LICENCE


def _unpacked(held: list[bytes]) -> Iterator[dict[str, Any]]:
    """Items that were packed: each is read from the store once, and a planet's are 40 MB in memory, not 2 GB."""
    return (json.loads(zlib.decompress(data)) for data in held)


def finish_run(plan: Plan) -> dict[str, Any]:
    """Writes items, failures, collection and the model's own item. Returns counts for the summary.

    `created` of the collection is the freeze time of the run's inventory: no clock stands in a published file.
    """
    store = open_store(plan.out)
    model = open_model(local_file(store, f"_inputs/{plan.model_sha256}.onnx"))
    held = [zlib.compress(json.dumps(item).encode(), 1) for item in published(store, plan.model_name)]
    if held:
        store.put_if_absent(model_path(plan.model_sha256), to_json(model_item(model)))
        product = json.loads(store.get("_inputs/product.json"))
        record = collection(
            product=product,
            profile=model.profile,
            items=_unpacked(held),
            created=inventory.read_header(inventory_of(plan)).frozen,
            licence=plan.licence or licence_there(store),
        )
        with store.writer("items.parquet") as f:
            items_parquet(_unpacked(held), f, record)
        store.replace("collection.json", to_json(record))
        store.replace("catalog.json", to_json(catalog(product)))
    failed = failures(store)
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(failed, schema=FAILURES), out, compression="zstd")
    store.replace("failures.parquet", out.getvalue())
    if unattended(store, plan):
        closed(store, plan)  # else the program that waits does it, and measures how long it was
    store.sweep()
    return {"tiles_published": len(held), "blocks_failed": len(failed)}
