"""The record of a run: what became of its blocks and tiles, for the summary and the page."""

import dataclasses
import datetime as dt
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pipeline.network import rounded
from pipeline.report_facts import RUN_VERSION, RunFacts
from pipeline.work import side_by_side
from transforms.embed import stop_name
from transforms.encode import device_kind
from transforms.failures import cure
from transforms.periods import period_of
from transforms.plans import Plan
from transforms.receipts import FAILED
from transforms.storage import Store
from transforms.tiles import plan_tile


def _blocks(store: Store, plan: Plan) -> Iterator[dict[str, Any]]:
    """What a run's blocks left of themselves, in the order of their names; a planet has half a million of them."""
    return map(json.loads, side_by_side(store.get, store.names(f"_runs/{plan.run}/blocks")))


def job_name(plan: Plan) -> str:
    """The object that says how a run was begun: command, moment, tiles, blocks, engine, whether anybody waits."""
    return f"_runs/{plan.run}/job.json"


def unattended(store: Store, plan: Plan) -> bool:
    """Whether a run was begun by a program that did not wait for its end."""
    try:
        return not json.loads(store.get(job_name(plan)))["waits"]
    except FileNotFoundError:
        return False


def closed(store: Store, plan: Plan, seconds: float | None = None) -> dict[str, Any]:
    """Writes and returns what became of a run, from what its blocks left on the store.

    `stopped`: why no further block was begun, "" where all were.

    Args:
      seconds: that it took; from its first moment until now where nobody has waited.
    """
    job = json.loads(store.get(job_name(plan)))
    began, ended = dt.datetime.fromisoformat(job["started"]), dt.datetime.now(dt.UTC)
    tiles, expected = job["tiles"], job["blocks"]
    seconds = (ended - began).total_seconds() if seconds is None else seconds
    run, in_doubt, failed = RunFacts(plan.run), 0, list[dict[str, Any]]()
    for block in _blocks(store, plan):
        run.add(block)
        in_doubt += block["counts"].get("drift", 0) > 0
        if block["status"] == FAILED:
            failed.append(block | {"command": cure(block["cause"], block["scene"], block["band"])})
    # What a further run would still do: the tiles whose item is missing, older, or of another run's region.
    again = dataclasses.replace(plan, force=False)
    left = side_by_side(lambda tile: bool(plan_tile(again, tile)), tiles)
    unfinished = [tile for tile, some in zip(tiles, left, strict=True) if some]
    try:
        stopped = store.get(stop_name(plan.run)).decode()
    except FileNotFoundError:
        stopped = ""
    summary = {
        "format": "tessera-beam/run",
        "version": RUN_VERSION,
        "run": plan.run,
        "started": began.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "ended": ended.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "seconds": round(seconds, 2),
        "command": job["command"],
        "model": plan.model_name,
        "inventory": plan.inventory,
        "period": plan.period,
        "warnings": list(period_of(plan.period).warnings),
        "runner": job["runner"],
        "device": ", ".join(sorted(run.devices)) or device_kind(plan.provider),
        "out": plan.out,
        "totals": {
            "tiles": len(tiles),
            "blocks": expected,
            "blocks_done": run.done,
            "blocks_failed": len(failed),
            "failed_by_cause": dict(sorted(Counter(f["cause"] for f in failed).items())),
            "blocks_skipped": max(0, expected - run.done - run.failed),
            "blocks_in_doubt": in_doubt,
            "pixels": run.pixels,
            "tiles_published": len(tiles) - len(unfinished),
        },
        "network": rounded(run.network),
        "blocks": run.sums(),
        "stopped": stopped,
        "unfinished": unfinished[:20],
        "failures": [
            {k: f[k] for k in ("tile", "row_px", "col_px", "scene", "band", "reason", "command")} for f in failed[:20]
        ],
    }
    store.replace(f"_runs/{plan.run}/run.json", json.dumps(summary, indent=1, sort_keys=True).encode())
    return summary
