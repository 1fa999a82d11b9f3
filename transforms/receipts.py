"""Receipts: the small records that a block ended, and the markers of those that began."""

import dataclasses
import json
import os
import socket
from typing import Any

from model.errors import BadInput
from transforms.failures import HUNG, KILLED
from transforms.storage import Store, alive

FORMAT = "tessera-beam/receipt"
VERSION = 3  # 2: `drift` and `warnings`; 3: `network`
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
      parts: per asset the compressed COG tiles: {"sizes": [...], "size_bytes", "sha256", "crc32c"}.
      timings_s: read, build, encode, write, total.
      network: what fetching took (names of `throttle.Counters.read`), {} where all files are local. Like clocks it is
        not the same in two runs.
      started, ended: UTC, ISO 8601. `host`: of the worker. `attempts`: how often the block was begun.
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
    parts: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    timings_s: dict[str, float] = dataclasses.field(default_factory=dict)
    network: dict[str, float] = dataclasses.field(default_factory=dict)
    started: str = ""
    ended: str = ""
    host: str = ""
    attempts: int = 1

    @property
    def block(self) -> str:
        """Name of the block, as `grid.Block.name` has it."""
        return f"r{self.row_px:05d}_c{self.col_px:05d}"

    def to_json(self) -> bytes:
        fields = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        return json.dumps(fields, sort_keys=True).encode()


def receipt_from_json(data: bytes) -> Receipt:
    """Reads what `Receipt.to_json` wrote.

    Raises:
      BadInput: not a receipt, a damaged one, or one of a newer version.
    """
    try:
        fields = json.loads(data)
    except ValueError as e:
        raise BadInput(f"a receipt that is not JSON: {e}") from None
    if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
        raise BadInput("a file in the place of a receipt is none")
    if (version := fields.pop("version", None)) not in range(1, VERSION + 1):
        raise BadInput(f"receipt version {version}: this release reads 1 to {VERSION}; use a newer tessera-beam")
    try:
        return Receipt(**fields)
    except TypeError as e:  # fields missing or unknown
        raise BadInput(f"a damaged receipt: {e}") from None


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
