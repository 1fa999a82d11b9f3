"""Receipts: the small records that a block ended, and the markers of those that began."""

import dataclasses
import hashlib
import json
import os
import re
import socket
from typing import Any, get_origin

from model.errors import BadInput
from transforms.failures import HUNG, KILLED, TWICE
from transforms.fragments import RASTERS, places_of
from transforms.grid import Block
from transforms.statistics import statistics_of_record
from transforms.storage import Store, alive

FORMAT = "tessera-beam/receipt"
VERSION = 4  # 2: `drift` and `warnings`; 3: `network`; 4: `statistics` and `run`
SEALED = 4  # from this version on a receipt holds its own sha256
MOST = 1 << 62  # beyond any count; the columns of blocks.parquet have 64 bits
DONE = "done"
FAILED = "failed"
HUNG_MARK = b" hung"
ATTEMPTS = 2  # a block that killed its worker this often is failed, not tried again (design, section 2)


@dataclasses.dataclass(frozen=True)
class Receipt:
    """What became of one block.

    Attributes:
      tile, period, revision: what it is a part of.
      row_px, col_px, height_px, width_px: the block's window in its tile.
      status: `DONE` or `FAILED`.
      cause, reason, scene, band: why it failed (`failures.CAUSES`, and in words) and on which file; "" where that does
        not apply.
      plan: block size, micro-batch and provider that the block was made with; a mismatch redoes an unfinished block.
      device: kind of device: provider and instruction set or card.
      counts: pixels, embedded, no_optical, no_radar, outside, drift (those embedded of a suspected block), dates and
        tokens.
      drift: what the guard measured on the block's clear pixels (`drift.Drift.record`), {} where it looked at none.
      warnings: what is suspected of the block though it is done, in words.
      statistics: of the block's pixels (`statistics.Statistics.to_record`), {} in receipts of older versions.
      parts: per asset the compressed COG tiles: {"sizes": [...], "size_bytes", "sha256", "crc32c"}.
      timings_s: read, build, encode, write, total.
      network: what fetching took (names of `throttle.Counters.read`), {} where all files are local. Like clocks it is
        not the same in two runs.
      started, ended: UTC, ISO 8601. `host`: of the worker. `attempts`: how often the block was begun.
      run: that wrote it, "" in receipts of older versions.
    """

    tile: str
    period: str
    revision: str
    row_px: int
    col_px: int
    height_px: int
    width_px: int
    status: str
    cause: str = ""
    reason: str = ""
    scene: str = ""
    band: str = ""
    plan: dict[str, Any] = dataclasses.field(default_factory=dict)
    device: str = ""
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    drift: dict[str, Any] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)
    statistics: dict[str, Any] = dataclasses.field(default_factory=dict)
    parts: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    timings_s: dict[str, float] = dataclasses.field(default_factory=dict)
    network: dict[str, float] = dataclasses.field(default_factory=dict)
    started: str = ""
    ended: str = ""
    host: str = ""
    attempts: int = 1
    run: str = ""

    @property
    def block(self) -> str:
        """Name of the block, as `grid.Block.name` has it."""
        return f"r{self.row_px:05d}_c{self.col_px:05d}"

    def to_json(self) -> bytes:
        fields = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        return json.dumps(fields | {"sha256": _seal(fields)}, sort_keys=True).encode()

    def is_of(self, block: Block, period: str, revision: str) -> bool:
        """Whether this is what became of that block of that revision, and its parts are such as its window has.

        Receipts lie where others can write. What they say decides where the COG tiles of a published file are.
        """
        mine = Block(self.tile, self.row_px, self.col_px, self.height_px, self.width_px)
        if (mine, self.period, self.revision) != (block, period, revision):
            return False
        places = len(list(places_of(block.row_px, block.col_px, block.height_px, block.width_px)))
        return all(_is_part(self.parts.get(key), places) for key in RASTERS) and all(
            type(self.counts.get(what)) is int for what in ("embedded", "no_optical")
        )


def _is_part(part: Any, places: int) -> bool:
    if not isinstance(part, dict) or not isinstance(sizes := part.get("sizes"), list):
        return False
    numbers = len(sizes) == places and all(type(n) is int and n >= 0 for n in sizes)
    sums = re.fullmatch("[0-9a-f]{64} [0-9a-f]{8}", f"{part.get('sha256')} {part.get('crc32c')}")
    return numbers and sums is not None and part.get("size_bytes") == sum(sizes)


def _seal(fields: dict[str, Any]) -> str:
    """sha256 over all fields: disks and networks change bytes that still are JSON."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def receipt_from_json(data: bytes) -> Receipt:
    """Reads what `Receipt.to_json` wrote.

    Raises:
      BadInput: not a receipt, a damaged one, or one of a newer version.
    """
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise BadInput(f"a receipt that is not JSON: {e}") from None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise BadInput("a file in the place of a receipt is none")
    version, said = fields.get("version"), fields.pop("sha256", None)
    if type(version) is not int or version not in range(1, VERSION + 1):
        raise BadInput(f"receipt version {version}: this release reads 1 to {VERSION}; use a newer tessera-beam")
    whole = said == _seal(fields)
    del fields["format"], fields["version"]
    try:
        receipt = Receipt(**fields)
        if receipt.statistics:
            statistics_of_record(receipt.statistics)
    except (TypeError, ValueError) as e:  # fields missing or unknown; no statistics
        raise BadInput(f"a damaged receipt: {e}") from None
    for field in dataclasses.fields(Receipt):
        if type(getattr(receipt, field.name)) is not (get_origin(field.type) or field.type):
            raise BadInput(f"a damaged receipt: {field.name} is not of type {field.type}")
    if receipt.status not in (DONE, FAILED):
        raise BadInput(f"a damaged receipt: its status is {receipt.status[:40]!r}")
    if any(type(n) is not int or not 0 <= n < MOST for n in receipt.counts.values()):
        raise BadInput("a damaged receipt: its counts are not all whole numbers")
    if any(type(s) not in (int, float) for s in (*receipt.timings_s.values(), *receipt.network.values())):
        raise BadInput("a damaged receipt: its times are not all numbers")
    if version >= SEALED and not whole:
        raise BadInput("a damaged receipt: its sha256 is not that of what it says")
    return receipt


def whoami() -> bytes:
    """Host and process, as an attempt's marker holds them."""
    return f"{socket.gethostname()} {os.getpid()}".encode()


def _at_work(store: Store, marker: str) -> bool:
    """Whether the writer of an attempt's marker is another process of this machine that is still alive.

    Two runs over one output may make the same block at once: that is waste, not death.
    """
    try:
        host, _, pid = store.get(marker).removesuffix(HUNG_MARK).decode().rpartition(" ")
    except FileNotFoundError:  # it has ended meanwhile
        return True
    return host == socket.gethostname() and pid.isdigit() and int(pid) != os.getpid() and alive(int(pid))


@dataclasses.dataclass(frozen=True)
class Desk:
    """The unfinished blocks of one tile revision made with one plan: receipts, attempts and fragments.

    Attributes:
      folder: `_work/<period>/<tile>/<rev8>/<plan8>` on the store.
    """

    folder: str

    def receipt_name(self, block: str, status: str) -> str:
        """The status stands in the name, so that a listing tells whether a tile is complete."""
        return f"{self.folder}/{block}.{status}.json"

    def fragment_name(self, block: str, key: str, part: dict[str, Any]) -> str:
        """A fragment is named after what it holds: two workers at one block never write over each other's."""
        return f"{self.folder}/{block}.{key}.{part['sha256'][:8]}.frag"

    def statuses(self, store: Store) -> dict[str, str]:
        """Block name -> `DONE` or `FAILED`, from one listing. A block that was done after it had failed is done."""
        found: dict[str, str] = {}
        for name in store.names(self.folder):
            block, _, rest = name.rpartition("/")[2].partition(".")
            status = rest.removesuffix(".json")
            if status in (DONE, FAILED) and found.get(block) != DONE:
                found[block] = status
        return found

    def read(self, store: Store, block: str, status: str) -> Receipt:
        return receipt_from_json(store.get(self.receipt_name(block, status)))

    def write(self, store: Store, block: str, receipt: Receipt) -> None:
        """Writes a receipt and removes what it replaces: attempts, and the failure of an earlier run."""
        store.replace(self.receipt_name(block, receipt.status), receipt.to_json())
        if receipt.status == DONE:
            store.delete(self.receipt_name(block, FAILED))
        for n in range(1, ATTEMPTS + 1):
            store.delete(f"{self.folder}/{block}.attempt{n}")

    def standing(self, store: Store, block: str) -> Receipt | None:
        """The failed receipt of a block that ended its workers, until the run that wrote it has come to its end.

        Whoever starts a dead run again wants the other blocks: tried anew each time, a few such blocks would end every
        run before it gets to them. Who has seen a run's end and asks once more gets another try.
        """
        try:
            receipt = self.read(store, block, FAILED)
        except (FileNotFoundError, BadInput):
            return None
        ended = not receipt.run or store.stat(f"_runs/{receipt.run}/run.json") is not None
        return None if ended or receipt.cause not in TWICE else receipt

    def hung(self, store: Store, block: str, attempt: int) -> None:
        """Notes in an attempt's marker that its process is ended by the watchdog."""
        store.replace(f"{self.folder}/{block}.attempt{attempt}", whoami() + HUNG_MARK)

    def ended_by(self, store: Store, block: str) -> str:
        """Why the attempts of a block came to nothing: `failures.HUNG` where the watchdog ended the last one."""
        try:
            marker = store.get(f"{self.folder}/{block}.attempt{ATTEMPTS}")
        except FileNotFoundError:
            return KILLED
        return HUNG if marker.endswith(HUNG_MARK) else KILLED

    def withdraw(self, store: Store, block: str, attempt: int) -> None:
        """Takes an attempt back: the worker was asked to stop, the block did not stop it."""
        store.delete(f"{self.folder}/{block}.attempt{attempt}")

    def begin(self, store: Store, block: str) -> int:
        """Marks an attempt. Returns its number, or 0 when the block has already killed `ATTEMPTS` workers."""
        for n in range(1, ATTEMPTS + 1):
            name = f"{self.folder}/{block}.attempt{n}"
            if store.put_if_absent(name, whoami()) or _at_work(store, name):
                return n
        return 0
