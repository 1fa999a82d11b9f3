"""Blocks and tiles that cost nothing: what a worker leaves of them on the store, without a pixel."""

import array
import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from model.modelfile import ModelFile, open_model
from transforms.embed import _leave, inventory_of
from transforms.failures import INPUT, Tally
from transforms.grid import tile_of
from transforms.inventory import read_header
from transforms.objects import local_file
from transforms.periods import period_of
from transforms.plans import BlockTask, Plan, desk_of, tasks_of
from transforms.publish import clear_work, published_item
from transforms.receipts import DONE, FAILED, Receipt
from transforms.stac import item, item_path, to_json
from transforms.stac_assets import ASSET_KEYS, AssetRecord
from transforms.steps import Work
from transforms.storage import Store, open_store

DEVICE = "made up"
PER_MILLION = 1_000_000
NOTHING = hashlib.sha256(b"\0").hexdigest()
PART = {"sizes": [1], "size_bytes": 1, "sha256": NOTHING, "crc32c": "527d5351"}  # a fragment of one byte


@dataclasses.dataclass
class Hand:
    """What a process holds. Named as `transforms.embed.Worker` has it, for the record of a block is written by that."""

    plan: Plan
    store: Store
    model: ModelFile
    frozen: str
    log: "Log"
    tally: Tally = dataclasses.field(default_factory=Tally)


class Log:
    """What happened, in its order: the end of a block and the publication of a tile, as numbers in a file or in memory.

    A file outlives the process; an entry is one write of 16 bytes at its end, so that a killed process leaves no half.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._entries = array.array("q")
        self._handle = None if path is None else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def add(self, tile: str, published: bool) -> None:
        entry = array.array("q", [int.from_bytes(tile.encode()), int(published)])
        if self._handle is None:
            self._entries.extend(entry)
        else:
            os.write(self._handle, entry.tobytes())

    def __iter__(self) -> Iterator[tuple[str, bool]]:
        return _entries(self._entries)


def read_log(path: Path) -> Iterator[tuple[str, bool]]:
    """(tile, whether that is its publication, else the end of a block of it) of a log in a file."""
    found = array.array("q")
    found.frombytes(path.read_bytes())
    return _entries(found)


def _entries(found: "array.array[int]") -> Iterator[tuple[str, bool]]:
    for tile, published in zip(found[::2], found[1::2], strict=True):
        yield tile.to_bytes(5).decode(), bool(published)


_logs: dict[str, Log] = {}  # run -> in this process


def log_of(plan: Plan, path: str = "") -> Log:
    return _logs.setdefault(plan.run, Log(Path(path) if path else None))


def open_hand(plan: Plan, log: str = "") -> Hand:
    store = open_store(plan.out)
    model = open_model(local_file(store, f"_inputs/{plan.model_sha256}.onnx"))
    return Hand(plan, store, model, read_header(inventory_of(plan)).frozen, log_of(plan, log))


def fails(task: BlockTask, per_million: int) -> bool:
    """The same blocks in every rehearsal."""
    place = hashlib.sha256(f"{task.block.tile} {task.block.name}".encode()).digest()
    return int.from_bytes(place[:8]) % PER_MILLION < per_million


def make_block(hand: Hand, task: BlockTask, per_million: int = 0) -> Receipt:
    """Marker, fragment, receipt and the run's record of a block, as `transforms.embed.embed_block` writes them."""
    plan, store, block = hand.plan, hand.store, task.block
    desk = desk_of(plan, task)
    try:
        return desk.read(store, block.name, DONE)
    except FileNotFoundError:
        pass
    pixels = block.height_px * block.width_px
    receipt = Receipt(
        block.tile, plan.period, task.revision, block.row_px, block.col_px, block.height_px, block.width_px, DONE,
        plan=plan.blocks_made_with, device=DEVICE, attempts=desk.begin(store, block.name), run=plan.run,
        started="2025-02-01T00:00:00.000Z", ended="2025-02-01T00:01:00.000Z", host="rehearsal",
    )  # fmt: skip
    if fails(task, per_million):
        what = {"cause": INPUT, "reason": "made up to fail", "scene": f"S2A_T{block.tile}_20240101T103000_L2A"}
        receipt = dataclasses.replace(receipt, status=FAILED, band="B04", **what)
    else:
        store.replace(desk.fragment_name(block.name, "embeddings", PART), b"\0")
        counts = {"pixels": pixels, "embedded": pixels, "no_optical": 0, "no_radar": 0, "outside": 0, "drift": 0}
        timings = {"read": 20.0, "build": 5.0, "encode": 30.0, "write": 2.0, "total": 40.0}
        receipt = dataclasses.replace(receipt, counts=counts, timings_s=timings, parts={"embeddings": PART})
    _leave(hand, desk, block, receipt)  # type: ignore[arg-type]
    hand.log.add(block.tile, False)
    return receipt


def publish(hand: Hand, task: BlockTask) -> bool:
    """The item of a tile whose blocks are all done, then its work cleared away, as `transforms.publish` does it."""
    plan, store, tile = hand.plan, hand.store, task.block.tile
    tasks = tasks_of(tile, task.revision, None, plan.block_px)
    statuses = desk_of(plan, task).statuses(store)
    if any(statuses.get(t.block.name) != DONE for t in tasks):
        return False
    if published_item(store, tile, plan.period, plan.model_name):
        clear_work(store, plan.period, tile, task.revision)
        return False
    record = item(
        tile=tile_of(tile), period=period_of(plan.period), model_name=plan.model_name,
        model_sha256=plan.model_sha256, profile=hand.model.profile, revision=task.revision, created=hand.frozen,
        assets={key: AssetRecord(f"./{task.revision[:8]}/{key}", 1, "527d5351") for key in ASSET_KEYS},
        counts={"pixels": 10_980**2, "embedded": 10_980**2, "no_optical": 0, "outside": 0},
        device_kinds=[DEVICE], sources=[], inventory_digest=plan.inventory, software_version=plan.version,
    )  # fmt: skip
    if not store.replace_if(item_path(tile, plan.period, plan.model_name), to_json(record), ""):
        return False
    hand.log.add(tile, True)
    clear_work(store, plan.period, tile, task.revision)
    return True


@dataclasses.dataclass(frozen=True)
class WithRecords(Work):
    """Made-up blocks that leave all their records.

    Attributes:
      per_million: blocks that fail. log: file of events, "" to keep them in memory.
    """

    per_million: int = 0
    log: str = ""

    def open(self, plan: Plan) -> Hand:
        return open_hand(plan, self.log)

    def block(self, worker: Hand, task: BlockTask) -> Receipt:
        return make_block(worker, task, self.per_million)

    def publish(self, worker: Hand, task: BlockTask) -> bool:
        return publish(worker, task)


class GraphAlone(Work):
    """Tiles are planned as ever; blocks do nothing and leave nothing."""

    def open(self, plan: Plan) -> None:
        pass

    def block(self, worker: None, task: BlockTask) -> Receipt:
        b = task.block
        return Receipt(b.tile, "", task.revision, b.row_px, b.col_px, b.height_px, b.width_px, DONE)

    def publish(self, worker: None, task: BlockTask) -> bool:
        return False
