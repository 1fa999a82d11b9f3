"""Embedding a block: read, build, sample, encode, compress, receipt; whoever completes a tile publishes it."""

import dataclasses
import datetime as dt
import functools
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.errors import BadInput
from model.modelfile import ModelFile, open_model
from transforms import inventory
from transforms.budgets import budget_of as budget_of
from transforms.budgets import check_worker
from transforms.dpixels import Stack, build, read_stack
from transforms.draws import Place
from transforms.drift import Drift, Guard
from transforms.encode import Session, WindowEncoder, device_kind, observation_counts, session_of
from transforms.failures import TWICE, Tally, failure_of
from transforms.fragments import DRIFT, RASTERS, compress, layouts_of, part_of, reasons_of
from transforms.grid import Block, Tile, tile_of
from transforms.heaps import give_back_freed_memory, keep_heaps_few
from transforms.memory import Budget
from transforms.objects import local_file
from transforms.plans import BlockTask, Plan, desk_of
from transforms.preview import Colours, colours_from_json
from transforms.receipts import ATTEMPTS, DONE, FAILED, Desk, Receipt
from transforms.regions import Clip
from transforms.scenes import ASCENDING, DESCENDING, Scene
from transforms.statistics import layer_normed, statistics_of
from transforms.storage import Store, open_store
from transforms.throttle import CarryingPool, Counters, charged
from transforms.watchdog import watched


@dataclasses.dataclass(frozen=True)
class Worker:
    """What a process holds for a run: opened once, shared by its threads.

    Attributes:
      plan: of the run. store: its output. model: the opened file. session: on the plan's provider.
      colours: of the preview. roots: source -> where its relative hrefs begin. frozen: when the inventory was made.
      pool: reads files and compresses tiles; bounds the reads in flight of the whole process.
      tally: what became of the process's blocks so far. seats: of the blocks that may be worked on at once, whatever
        an engine hands over: Prism and Flink give one process many bundles (facts, checked 2.1.2; beam 2.2).
    """

    plan: Plan
    store: Store
    model: ModelFile
    session: Session
    colours: Colours
    roots: dict[str, str]
    frozen: str
    pool: Executor
    tally: Tally = dataclasses.field(default_factory=Tally)
    seats: threading.BoundedSemaphore = dataclasses.field(default_factory=threading.BoundedSemaphore)


def open_worker(plan: Plan) -> Worker:
    """Opens model, session and inventory of a plan.

    Raises:
      BadInput: this machine has not the memory that the plan's largest tile takes.
    """
    store = open_store(plan.out)
    model = open_model(local_file(store, f"_inputs/{plan.model_sha256}.onnx"))
    head = inventory.read_header(inventory_of(plan))
    check_worker(plan, model, inventory_of(plan), head)
    keep_heaps_few()
    seen = {"device": device_kind(plan.provider), "version": plan.version, "started": _now()}
    store.replace(f"_runs/{plan.run}/workers/{socket.gethostname()}-{os.getpid()}.json", json.dumps(seen).encode())
    return Worker(
        plan,
        store,
        model,
        session_of(model, plan.provider, plan.threads),
        colours_from_json(store.get(f"_inputs/{plan.preview}.preview.json")),
        {s.name: s.root for s in head.sources},
        head.frozen,
        CarryingPool(plan.readers, thread_name_prefix="read"),
        seats=threading.BoundedSemaphore(plan.blocks_at_once),
    )


@functools.lru_cache(maxsize=4)  # asked for with every block; its name is its content
def inventory_of(plan: Plan) -> Path:
    """The run's inventory as a file on this machine."""
    return local_file(open_store(plan.out), f"_inputs/{plan.inventory}.parquet")


@functools.lru_cache(maxsize=4)  # a process works on one or two tiles at a time; a tile's rows are some 100 kB
def scenes_at(path: Path, tile: str) -> tuple[Scene, ...]:
    """A tile's rows of an inventory."""
    return tuple(inventory.read_tile(path, tile))


@functools.lru_cache(maxsize=4)
def clip_at(plan: Plan, digest: str) -> Clip | None:
    """What is embedded of a tile, by the digest that its tasks carry; None for all of it."""
    if not digest:
        return None
    return Clip(open_store(plan.out).get(f"_inputs/{digest}.clip.geojson").decode())


@dataclasses.dataclass
class _Made:
    """A block in the making: codes (H, W, dims) or None for nothing, scale, counts (.., 3), reasons, drift, figures."""

    codes: NDArray[np.int8] | None
    scale: NDArray[np.float32]
    counts: NDArray[np.uint16]
    reasons: NDArray[np.uint8]
    drift: Drift
    figures: dict[str, int]
    timings_s: dict[str, float]

    @property
    def rasters(self) -> tuple[NDArray[np.int8] | None, NDArray[np.float32], NDArray[np.uint16], NDArray[np.uint8]]:
        return self.codes, self.scale, self.counts, self.reasons


def embed_window(
    worker: Worker,
    tile: Tile,
    block: Block,
    wanted: NDArray[np.bool_],
    budget: Budget,
    beat: Callable[[], None] = lambda: None,
) -> _Made:
    """Codes of a block, walked in strips: the next strip is read while this one is built and encoded.

    Args:
      beat: called whenever a strip has been read or some rows have been built and handed to the encoder.

    Raises:
      ReadError: a file of the block cannot be read.
    """
    profile = worker.model.profile
    scenes = scenes_at(inventory_of(worker.plan), tile.name)
    strips = [
        range(r, min(r + budget.strip_px, block.row_px + block.height_px))
        for r in range(block.row_px, block.row_px + block.height_px, budget.strip_px)
    ]
    cols = range(block.col_px, block.col_px + block.width_px)
    place = Place(tile.name, worker.plan.period, block.row_px, block.col_px)
    size = block.height_px, block.width_px
    counts = np.zeros((*size, 3), np.uint16)
    timings = {"read": 0.0, "build": 0.0, "encode": 0.0}
    guard = Guard(profile, block, wanted)
    dates = dict.fromkeys(("s2_dates", "s1_ascending_dates", "s1_descending_dates"), 0)

    def read(rows: range) -> Stack:
        begun = time.perf_counter()
        inside = wanted[rows.start - block.row_px : rows.stop - block.row_px]
        stack = read_stack(scenes, worker.roots, profile, tile, rows, cols, worker.pool, inside)
        timings["read"] += time.perf_counter() - begun  # one reader thread a block: nobody else adds to it
        return stack

    with (
        CarryingPool(1, thread_name_prefix="strip") as ahead,
        WindowEncoder(worker.session, profile, place, *size, worker.plan.micro_batch_px) as encoder,
    ):
        coming = ahead.submit(read, strips[0])
        for following in (*strips[1:], None):
            stack = coming.result()
            give_back_freed_memory()
            beat()
            if following is not None:
                coming = ahead.submit(read, following)
            for key, n in _dates(stack).items():
                dates[key] = max(dates[key], n)
            guard.add(stack)
            for start in range(stack.rows.start, stack.rows.stop, budget.build_px):
                begun = time.perf_counter()
                rows = range(start, min(start + budget.build_px, stack.rows.stop))
                pixels = build(stack, profile, rows)
                row, col = rows.start - block.row_px, stack.cols.start - block.col_px
                window = slice(row, row + len(rows)), slice(col, col + len(stack.cols))
                seen = observation_counts(pixels)
                there = wanted[window] & (seen[..., 0] > 0)
                counts[window] = np.where(there[..., None], seen, 0)
                encoder.add(pixels, there, row, col)
                timings["build"] += time.perf_counter() - begun
                beat()
        encoder.finish()
        timings["encode"] = encoder.encode_s
        tokens = encoder.tokens
    reasons = reasons_of(counts, wanted)
    there = wanted & (counts[..., 0] > 0)
    drift = guard.verdict()
    if drift.reasons:
        reasons[there] |= DRIFT
    figures = {
        "pixels": int(wanted.size),
        "embedded": int(there.sum()),
        "no_optical": int((wanted & ~there).sum()),
        "no_radar": int((there & (counts[..., 1:] == 0).all(-1)).sum()),
        "outside": int((~wanted).sum()),
        "drift": int(there.sum()) if drift.reasons else 0,
        "tokens": tokens,
        **dates,
    }
    return _Made(None if encoder.empty else encoder.codes, encoder.scale, counts, reasons, drift, figures, timings)


def _dates(stack: Stack) -> dict[str, int]:
    """Observation dates of a stack, as a receipt counts them."""
    orbits = [orbit for orbit, _, _ in stack.passes]
    return {
        "s2_dates": len(stack.days),
        "s1_ascending_dates": orbits.count(ASCENDING),
        "s1_descending_dates": orbits.count(DESCENDING),
    }


def embed_block(worker: Worker, task: BlockTask) -> Receipt:
    """Makes one block, or finds it made; writes its fragments, then its receipt. Waits for one of the worker's seats.

    Returns:
      The receipt, `DONE` or `FAILED`. A block that has ended its worker twice is failed without a third attempt.
    """
    with worker.seats:  # before the attempt begins: a block that waits is not to blame for the end of its worker
        return _made_at_its_seat(worker, task)


def _made_at_its_seat(worker: Worker, task: BlockTask) -> Receipt:
    plan, store, block = worker.plan, worker.store, task.block
    desk, began, clock = desk_of(plan, task), _now(), time.perf_counter()
    if found := made(store, desk, task, plan.period, device_kind(plan.provider)):
        return found
    if found := desk.standing(store, block.name):
        return found if found.run == plan.run else _leave(worker, desk, block, dataclasses.replace(found, run=plan.run))
    tile = tile_of(block.tile)
    head = Receipt(
        tile.name, plan.period, task.revision, block.row_px, block.col_px, block.height_px, block.width_px, FAILED,
        plan=plan.blocks_made_with, device=device_kind(plan.provider), started=began, host=socket.gethostname(),
        run=plan.run,
    )  # fmt: skip
    attempt = desk.begin(store, block.name)
    if not attempt:
        cause = desk.ended_by(store, block.name)
        receipt = dataclasses.replace(head, cause=cause, reason=TWICE[cause], ended=_now(), attempts=ATTEMPTS)
        return _leave(worker, desk, block, receipt)
    head, account = dataclasses.replace(head, attempts=attempt), Counters()
    try:
        clip = clip_at(plan, task.clip)
        wanted = (
            np.ones((block.height_px, block.width_px), bool)
            if clip is None
            else clip.mask(tile.name, block.row_px, block.col_px, block.height_px, block.width_px)
        )
        budget = budget_of(plan, worker.model, scenes_at(inventory_of(plan), tile.name))
        what = f"tile {tile.name}, block at row {block.row_px}, col {block.col_px}"
        with charged(account), watched(what, lambda: desk.hung(store, block.name, attempt)) as watch:
            made_now = embed_window(worker, tile, block, wanted, budget, watch.beat)
        give_back_freed_memory()
        begun = time.perf_counter()
        codes, scale, counts, reasons = made_now.rasters
        figures = statistics_of(codes, scale, counts, reasons, layer_normed(worker.model), worker.pool)
        parts = _write_fragments(worker, desk, tile, block, made_now)
        timings = made_now.timings_s | {"write": time.perf_counter() - begun, "total": time.perf_counter() - clock}
        receipt = dataclasses.replace(
            head,
            status=DONE,
            counts=made_now.figures,
            drift=made_now.drift.record(),
            warnings=list(made_now.drift.reasons),
            statistics=figures.to_record(),
            parts=parts,
            timings_s={k: round(v, 3) for k, v in timings.items()},
            ended=_now(),
        )
    except (KeyboardInterrupt, SystemExit):
        desk.withdraw(store, block.name, attempt)
        raise
    except Exception as e:  # the border of the unit of failure: whatever a block does, the run goes on
        receipt = dataclasses.replace(head, **dataclasses.asdict(failure_of(e)), ended=_now())
    network = {name: round(amount, 3) for name, amount in sorted(account.read().items())}
    return _leave(worker, desk, block, dataclasses.replace(receipt, network=network))


def made(store: Store, desk: Desk, task: BlockTask, period: str, device: str) -> Receipt | None:
    """The receipt of a block that is done on this kind of device, with all of its fragments there."""
    block = task.block
    try:
        receipt = desk.read(store, block.name, DONE)
    except (FileNotFoundError, BadInput):
        return None
    if receipt.device != device or not receipt.is_of(block, period, task.revision):
        return None
    for key in RASTERS:
        size = receipt.parts[key]["size_bytes"]
        if size:
            found = store.stat(desk.fragment_name(block.name, key, receipt.parts[key]))
            if found is None or found.size_bytes != size or found.crc32c not in ("", receipt.parts[key]["crc32c"]):
                return None
    return receipt


def _write_fragments(
    worker: Worker, desk: Desk, tile: Tile, block: Block, made_now: _Made
) -> dict[str, dict[str, object]]:
    layouts = layouts_of(tile, worker.model.profile.dims, ())
    tiles = compress(*made_now.rasters, worker.colours, layouts, worker.pool)
    parts = {}
    for key in RASTERS:
        parts[key] = part_of(tiles[key])
        if parts[key]["size_bytes"]:
            with worker.store.writer(desk.fragment_name(block.name, key, parts[key])) as f:
                f.writelines(tiles[key])
    return parts


def _leave(worker: Worker, desk: Desk, block: Block, receipt: Receipt) -> Receipt:
    """Writes the receipt, and what the run's own folder keeps of it: published tiles lose their receipts."""
    store, plan = worker.store, worker.plan
    desk.write(store, block.name, receipt)
    record = {k: v for k, v in dataclasses.asdict(receipt).items() if k not in ("parts", "plan", "statistics")}
    name = f"{block.tile}_{plan.period}_{block.name}.json"
    store.replace(f"_runs/{plan.run}/blocks/{name}", json.dumps(record, sort_keys=True).encode())
    if receipt.status == FAILED:
        store.replace(f"_runs/{plan.run}/failed/{name}", b"")
    stop = worker.tally.add(receipt.cause)
    if receipt.status == FAILED and plan.max_failures and not stop:
        failed = len(store.names(f"_runs/{plan.run}/failed"))
        stop = f"{failed} blocks have failed, and --max-failures is {plan.max_failures}" * (failed >= plan.max_failures)
    if stop:
        store.put_if_absent(stop_name(plan.run), stop.encode())
    return receipt


def stop_name(run: str) -> str:
    """The object that says why a run begins no further block; absent while it goes on."""
    return f"_runs/{run}/stop.txt"


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
