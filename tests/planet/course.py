"""The courses of a rehearsal, each a process of its own so that its memory is its own: what it did, as JSON.

python -m tests.planet.course COURSE '{"argument": ..}'
"""

import collections
import dataclasses
import datetime as dt
import functools
import json
import resource
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.demo.run import model_path
from pipeline.finish import finish_run
from pipeline.graph import EmbedTiles, tiles_of
from pipeline.planning import EmbedOptions, make_plan
from pipeline.record import closed, job_name
from pipeline.report import report
from pipeline.status import status
from transforms.disk_store import LocalStore
from transforms.embed import inventory_of
from transforms.inventory import read_header
from transforms.plans import Plan
from transforms.steps import Work
from transforms.storage import Store, open_store

from .earth import planet_tiles, spread, write_year
from .madeup import GraphAlone, WithRecords, log_of
from .store import SCHEME, MemoryStore, memory_store

BLOCK_PX = 2048
BLOCKS = 36  # of a tile
FLAGS = [
    "--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner",
    "--direct_running_mode=in_memory",
]


def memory_mb(what: str) -> float:
    """Of this process: VmRSS now, or VmHWM at most. getrusage would give its parent's peak, which survives exec."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except FileNotFoundError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) * 1024 / 1e6


class Clock:
    """Seconds by the wall and of this process's own work; the latter are what a busy machine does not change."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def told(self, what: str = "") -> dict[str, float]:
        return {
            f"{what}seconds": round(time.perf_counter() - self._wall, 2),
            f"{what}cpu_seconds": round(time.process_time() - self._cpu, 2),
        }


def inventory(path: str, tiles: int, s2: int, s1: int) -> dict[str, Any]:
    """Writes the made-up year of so many tiles."""
    names, clock = planet_tiles(tiles), Clock()
    found = write_year(Path(path), names, s2, s1)
    scenes = sum(record.rows for record in found.counts.values())
    size = Path(path).stat().st_size
    return {"tiles": len(names), "scenes": scenes, "mb": round(size / 1e6, 1), **clock.told()}


def prepare(inventory: str, out: str, tiles: int) -> dict[str, Any]:
    """A run's plan over so many tiles of the inventory, with its inputs in place, made and checked as `embed` does."""
    names = spread(read_header(inventory).tiles, tiles)
    options = EmbedOptions(tiles=tuple(names), device="cpu", block_px=BLOCK_PX, memory_gib=64)
    plan, _, chosen = make_plan(inventory, model_path(), out, options)
    assert chosen == names
    begin(open_store(out), plan, chosen)
    return {"plan": plan.to_json()}


def run_graph(plan: Plan, work: Work, spread_blocks: bool = True) -> None:
    pipeline = beam.Pipeline(options=PipelineOptions(FLAGS))
    _ = pipeline | EmbedTiles(plan, work, spread_blocks)
    pipeline.run().wait_until_finish()


def graph(plan: str, spread_blocks: bool = True) -> dict[str, Any]:
    """The graph alone: tiles are planned as ever, blocks do nothing and leave nothing.

    Returns:
      With the seconds `start_mb`, `inventory_mb` (what the header of the inventory takes, as in every worker) and
      `peak_mb`.
    """
    fixed, _ = in_memory(plan)
    start = memory_mb("VmRSS")
    read_header(inventory_of(fixed))
    opened, clock = memory_mb("VmRSS"), Clock()
    run_graph(fixed, GraphAlone(), spread_blocks)
    memory = {"start_mb": opened, "inventory_mb": opened - start, "peak_mb": memory_mb("VmHWM")}
    return {**clock.told(), **{what: round(mb, 1) for what, mb in memory.items()}}


def on_disk(plan: str, per_million: int, log: str) -> dict[str, Any]:
    """A run that leaves its records in the plan's folder, and its events in a file."""
    fixed, clock = Plan(**json.loads(plan)), Clock()
    run_graph(fixed, WithRecords(per_million, log))
    return clock.told()


def in_memory(plan: str) -> tuple[Plan, MemoryStore]:
    """A plan whose output is a store in memory, with the inputs of the folder that it was prepared for."""
    fixed = Plan(**json.loads(plan))
    store, source = memory_store(f"{SCHEME}://{fixed.run}"), LocalStore(fixed.out)
    for entry in source.walk("_inputs"):
        store.hold(entry.name, source.path(entry.name))
    return dataclasses.replace(fixed, out=store.url), store


def records(plan: str, per_million: int) -> dict[str, Any]:
    """The whole course in memory: a run with failures, one that goes on without them, then what the verbs say of it."""
    first, store = in_memory(plan)
    told: dict[str, Any] = {"start_mb": memory_mb("VmRSS")}
    plans = [dataclasses.replace(first, run=f"{first.run}-{n}") for n in (1, 2)]
    tiles = sorted(tiles_of(plans[0]))
    store.asked.clear()
    for n, (now, failing) in enumerate(zip(plans, (per_million, 0), strict=True), start=1):
        begin(store, now, tiles)
        clock = Clock()
        run_graph(now, WithRecords(failing))
        asked = {f"run{n}_requests": sum(store.asked.values()), f"run{n}_peak_mb": memory_mb("VmHWM")}
        told |= _said(clock.told(f"run{n}_") | asked)
        told |= _asked(store, f"record{n}_", functools.partial(_record, store, now))
    told |= _said(order_of([*log_of(plans[0]), *log_of(plans[1])]))
    told |= _asked(store, "finish_", lambda: finish_run(plans[1]))
    told |= _asked(store, "status_", lambda: {"states": status(store.url)["states"]})
    told |= _asked(store, "report_", lambda: {"page": report(store.url)})
    told["report_mb"] = round(len(store.get("_runs/report.html")) / 1e6, 1)
    told |= {
        "objects": len(store),
        "store_mb": round(store.size_bytes / 1e6, 1),
        "left": len(list(store.walk("_work"))),
    }
    return {**told, "peak_mb": memory_mb("VmHWM")}


def begin(store: Store, plan: Plan, tiles: list[str]) -> None:
    """What `embed` leaves of a run before it starts the graph."""
    job = {
        "command": "a rehearsal", "started": dt.datetime.now(dt.UTC).isoformat(), "tiles": tiles,
        "blocks": len(tiles) * BLOCKS, "runner": "local", "waits": True,
    }  # fmt: skip
    store.replace(f"_runs/{plan.run}/plan.json", plan.to_json().encode())
    store.replace(job_name(plan), json.dumps(job).encode())


def _record(store: Store, plan: Plan) -> dict[str, Any]:
    found = closed(store, plan, 1.0)["totals"]
    return {name: found[name] for name in ("blocks_done", "blocks_failed", "tiles_published")}


def _asked(store: MemoryStore, what: str, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `act` says, how long it took, how often the store was asked meanwhile, and the peak up to its end."""
    store.asked.clear()
    clock = Clock()
    said = act()
    told: dict[str, Any] = {f"{what}{name}": value for name, value in said.items()}
    asked = {f"{what}requests": sum(store.asked.values()), f"{what}peak_mb": memory_mb("VmHWM")}
    return _said(told | clock.told(what) | asked)


def _said(told: dict[str, Any]) -> dict[str, Any]:
    """The same, said on the way too: the whole course of a planet takes the better part of an hour."""
    sys.stderr.write(json.dumps(told) + "\n")
    return told


def order_of(events: Iterable[tuple[str, bool]]) -> dict[str, int]:
    """What the order of events says of publication.

    Returns:
      published: tiles. twice: publications of a tile beyond its first. late: tiles during whose wait, between the end
      of their last block and their publication, a block of another tile ended. most_waiting: the most blocks that ever
      waited for their tiles at once. blocks: that ended.
    """
    waiting: collections.Counter[str] = collections.Counter()
    published: collections.Counter[str] = collections.Counter()
    late = most = total = blocks = 0
    before = ""
    for tile, is_published in events:
        if is_published:
            published[tile] += 1
            late += before != tile
            total -= waiting.pop(tile, 0)
        else:
            blocks += 1
            waiting[tile] += 1
            total += 1
            most = max(most, total)
        before = tile
    return {
        "published": len(published), "twice": sum(published.values()) - len(published), "late": late,
        "most_waiting": most, "blocks": blocks,
    }  # fmt: skip


COURSES: dict[str, Callable[..., dict[str, Any]]] = {
    "inventory": inventory, "prepare": prepare, "graph": graph, "on_disk": on_disk, "records": records,
}  # fmt: skip


if __name__ == "__main__":
    sys.stdout.write(json.dumps(COURSES[sys.argv[1]](**json.loads(sys.argv[2]))) + "\n")
