"""The status verb: what an output folder holds, what is missing and what failed."""

import json
from collections import Counter
from typing import Any

from model.errors import BadInput
from pipeline.finish import failures, published
from pipeline.suspects import suspects
from pipeline.work import TileWork, work_of
from transforms.inventory import read_header
from transforms.objects import local_file
from transforms.storage import Store, open_store


def opened(out: str) -> tuple[Store, dict[str, Any]]:
    """The store and the product record of an output folder.

    Raises:
      BadInput: it is none.
    """
    store = open_store(out)
    try:
        return store, json.loads(store.get("_inputs/product.json"))
    except FileNotFoundError:
        raise BadInput(f"{out} is not an output folder of tessera-beam: it has no _inputs/product.json") from None


def wanted_tiles(store: Store) -> dict[str, set[str]]:
    """Period -> tiles that any run was asked for."""
    wanted: dict[str, set[str]] = {}
    for run in store.folders("_runs"):
        try:
            plan = json.loads(store.get(f"{run}/plan.json"))
        except FileNotFoundError:
            continue
        if plan["tiles"]:
            tiles = json.loads(store.get(f"_inputs/{plan['tiles']}.tiles.json"))
        else:
            tiles = read_header(local_file(store, f"_inputs/{plan['inventory']}.parquet")).tiles
        wanted.setdefault(plan["period"], set()).update(tiles)
    return wanted


def _needed(item: dict[str, Any]) -> dict[str, Any]:
    """The parts of an item that `status` and `suspects` look at: a planet's whole ones take 2 GB of memory."""
    properties = {f"tessera:{k}": item["properties"][f"tessera:{k}"] for k in ("period", "tile", "revision", "counts")}
    return {"properties": properties, "assets": {k: item["assets"][k] for k in ("blocks",) if k in item["assets"]}}


def status(out: str) -> dict[str, Any]:
    """State of every tile: published, or how many blocks are done and failed; warnings of blocks that are done.

    Raises:
      BadInput: not an output folder.
    """
    store, product = opened(out)
    items = {
        (i["properties"]["tessera:period"], i["properties"]["tessera:tile"]): i
        for i in map(_needed, published(store, product["model"]))
    }
    rows, work = [], work_of(store)
    for period, tiles in sorted(wanted_tiles(store).items()):
        for tile in sorted(tiles):
            waiting = work.get((period, tile), TileWork())
            item = items.get((period, tile))
            state = "published" if item else "failed" if waiting.failed else "unfinished" if waiting.done else "missing"
            counts = item["properties"]["tessera:counts"] if item else {}
            rows.append(
                {
                    "period": period,
                    "tile": tile,
                    "state": state,
                    "blocks_done": len(waiting.done),
                    "blocks_failed": len(waiting.failed),
                    "embedded": counts.get("embedded", 0),
                    "revision": item["properties"]["tessera:revision"][:8] if item else "",
                }
            )
    failed = failures(store, work)
    return {
        "out": out,
        "model": product["model"],
        "states": dict(sorted(Counter(r["state"] for r in rows).items())),
        "tiles": rows,
        "failed_by_cause": dict(sorted(Counter(f["cause"] for f in failed).items())),
        "failures": failed,
        "warnings": suspects(store, items.values(), work),
    }
