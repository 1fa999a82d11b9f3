"""Report facts: what an output folder tells about its tiles, failures and runs."""

import dataclasses
import json
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from model.errors import BadInput
from pipeline.suspects import rows_of

DONE, FAILED, MISSING = "done", "failed", "missing"
STAGES = ("read", "build", "encode", "write")
COUNTS = ("pixels", "embedded", "no_optical", "no_radar", "outside")
DATES = ("s2_dates", "s1_ascending_dates", "s1_descending_dates")
RUN_FORMAT, RUN_VERSION = "tessera-beam/run", 3  # 2: `network`; 3: `blocks`, the sums over all

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class BlockFacts:
    """One block of a tile. `done` is False where it failed; `embedded`: share of its pixels, 0 to 1."""

    row_px: int
    col_px: int
    height_px: int
    width_px: int
    done: bool
    embedded: float


@dataclasses.dataclass(frozen=True)
class WarningFacts:
    """What is suspected of a block that was made."""

    tile: str
    period: str
    row_px: int
    col_px: int
    reason: str


@dataclasses.dataclass
class TileFacts:
    """One tile of one period.

    Attributes:
      status: `DONE` (published), `FAILED` (a block of it failed) or `MISSING` (begun or planned, and not published).
      item: its STAC item, without the assets' bands; None while it is not published.
      item_path: of the item, from the output folder.
      counts: pixels by what became of them, as `COUNTS`.
      dates: least and greatest number of observation dates over its blocks, by `DATES`.
      tokens: token rows that the encoder saw.
      blocks: what is known of its blocks; empty where nothing draws them.
      warnings: of its blocks. size_bytes: of all assets.
    """

    tile: str
    period: str
    status: str = MISSING
    item: Record | None = None
    item_path: str = ""
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    dates: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    tokens: int = 0
    blocks: list[BlockFacts] = dataclasses.field(default_factory=list)
    warnings: list[WarningFacts] = dataclasses.field(default_factory=list)
    size_bytes: int = 0

    @property
    def anchor(self) -> str:
        return f"tile-{self.tile}-{self.period}"

    def asset_path(self, key: str) -> str:
        """Of an asset, from the output folder; "" where the item has none."""
        asset = (self.item or {}).get("assets", {}).get(key)
        if not asset or "://" in asset["href"]:
            return ""
        return f"{self.item_path.rpartition('/')[0]}/{asset['href'].removeprefix('./')}"


@dataclasses.dataclass(frozen=True)
class FailureFacts:
    """One block that could not be made, and the command that helps."""

    tile: str
    period: str
    row_px: int
    col_px: int
    scene: str
    band: str
    reason: str
    command: str
    cause: str = ""


@dataclasses.dataclass
class RunFacts:
    """One run over the output folder.

    Attributes:
      record: its run.json, {} where it never came to write one.
      seconds: from start to end; 0 where unknown.
      stages_s: seconds of all blocks by stage; stages overlap, so that their sum may be more than `seconds`.
      done, failed, again: blocks, and how many of them needed more than one attempt.
      pixels: embedded ones.
      devices: kinds of device.
      network: counters of all blocks, as in their receipts.
      slowest: the block that took longest as (seconds, tile, row_px, col_px).
    """

    name: str
    record: Record = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    stages_s: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    done: int = 0
    failed: int = 0
    again: int = 0
    pixels: int = 0
    devices: set[str] = dataclasses.field(default_factory=set)
    network: Counter[str] = dataclasses.field(default_factory=Counter)
    slowest: tuple[float, str, int, int] = (0.0, "", 0, 0)

    def add(self, block: Record) -> None:
        """Counts a block's record in."""
        timings = block.get("timings_s", {})
        for stage in STAGES:
            self.stages_s[stage] += float(timings.get(stage, 0))
        self.network.update(block.get("network", {}))
        done = block["status"] == DONE
        self.done, self.failed = self.done + done, self.failed + (not done)
        self.again += int(block.get("attempts", 1)) > 1
        self.pixels += counts_in(block).get("embedded", 0)
        self.devices |= {block["device"]} if block.get("device") else set()
        took = (float(timings.get("total", 0)), block["tile"], int(block["row_px"]), int(block["col_px"]))
        self.slowest = max(self.slowest, took)

    def sums(self) -> Record:
        """What run.json keeps of all blocks, so that the page need not open half a million records."""
        stages = {stage: round(s, 3) for stage, s in self.stages_s.items()}
        return {"stages_s": stages, "again": self.again, "slowest": list(self.slowest), "devices": sorted(self.devices)}

    def take_sums(self) -> None:
        """Takes from run.json what `add` would have found in the blocks."""
        totals, sums = self.record.get("totals", {}), self.record.get("blocks", {})
        self.done, self.failed = int(totals.get("blocks_done", 0)), int(totals.get("blocks_failed", 0))
        self.pixels = int(totals.get("pixels", 0))
        self.network.update(self.record.get("network", {}))
        self.stages_s |= {stage: float(s) for stage, s in sums.get("stages_s", {}).items() if stage in self.stages_s}
        self.again = int(sums.get("again", 0))
        self.devices.update(sums.get("devices", []))
        if slowest := sums.get("slowest"):
            self.slowest = (float(slowest[0]), str(slowest[1]), int(slowest[2]), int(slowest[3]))

    @property
    def pixels_per_s(self) -> float:
        return self.pixels / self.seconds if self.seconds else 0.0


@dataclasses.dataclass
class Facts:
    """All that the page tells. `tiles` are sorted by name and period; `unnamed`: planned tiles that left no trace."""

    out: Path
    collection: Record
    tiles: list[TileFacts]
    failures: list[FailureFacts]
    runs: list[RunFacts]
    unnamed: int


def _json(path: Path) -> Record:
    """A JSON object.

    Raises:
      BadInput: the file is something else.
    """
    try:
        record = json.loads(path.read_bytes())
    except ValueError as e:
        raise BadInput(f"{path}: not JSON ({e}); if a run was interrupted, start it again") from None
    if not isinstance(record, dict):
        raise BadInput(f"{path}: a {type(record).__name__}, not a JSON object")
    return record


def counts_in(record: Record) -> dict[str, int]:
    """The counts of a block record (a struct), or of a row of blocks.parquet (columns `count_...`)."""
    if "counts" in record:
        return {k: int(v) for k, v in (record["counts"] or {}).items()}
    return {k.removeprefix("count_"): int(v) for k, v in record.items() if k.startswith("count_") and v is not None}


def _add_block(tile: TileFacts, record: Record, keep: bool) -> None:
    counts = counts_in(record)
    embedded, pixels = counts.get("embedded", 0), int(record["height_px"]) * int(record["width_px"])
    for name in DATES:
        if name in counts and embedded:
            low, high = tile.dates.get(name, (counts[name], counts[name]))
            tile.dates[name] = (min(low, counts[name]), max(high, counts[name]))
    tile.tokens += counts.get("tokens", 0)
    tile.warnings += [WarningFacts(**row) for row in rows_of(record)]
    if keep:
        row_px, col_px, height_px, width_px = (int(record[k]) for k in ("row_px", "col_px", "height_px", "width_px"))
        done = record.get("status", DONE) == DONE
        tile.blocks.append(BlockFacts(row_px, col_px, height_px, width_px, done, embedded / pixels))


def _published(out: Path, detailed: bool, paths: Iterable[Path]) -> Iterator[TileFacts]:
    for path in paths:
        item = _json(path)
        if item.get("type") != "Feature":
            continue
        for asset in item["assets"].values():
            asset.pop("raster:bands", None)  # 128 of them an item would fill the memory for nothing
        properties = item["properties"]
        tile = TileFacts(
            tile=properties.get("tessera:tile", path.parent.name),
            period=properties.get("tessera:period", path.parent.parent.name),
            status=DONE,
            item=item,
            item_path=path.relative_to(out).as_posix(),
            counts={k: int(v) for k, v in properties.get("tessera:counts", {}).items() if k in COUNTS},
            size_bytes=sum(int(a.get("file:size", 0)) for a in item["assets"].values()),
        )
        blocks = out / tile.asset_path("blocks")
        wrong = properties.get("tessera:counts", {}).get("drift")
        if (detailed or wrong) and tile.asset_path("blocks") and blocks.is_file():
            for row in pq.read_table(blocks).to_pylist():
                _add_block(tile, row, keep=detailed)
        yield tile


def has_sums(record: Record) -> bool:
    """Whether a run.json tells what the records of its blocks do, but for tiles that are not published."""
    return "blocks" in record


def tile_of_record(name: str) -> tuple[str, str]:
    """(tile, period) of the name of a block's record, `<tile>_<period>_r..._c....json`."""
    tile, _, rest = name.partition("_")
    return tile, rest.rpartition("_r")[0]


def _read_run(folder: Path, published: Container[tuple[str, str]]) -> tuple[RunFacts, list[Record]]:
    """A run, and the records of its blocks: of tiles that are not published alone where its end has the sums."""
    run = RunFacts(folder.name)
    if (folder / "run.json").is_file():
        run.record = _json(folder / "run.json")
        if (version := run.record.get("version")) not in range(1, RUN_VERSION + 1):
            raise BadInput(
                f"{folder / 'run.json'}: version {version}; this release reads 1 to {RUN_VERSION}; use a newer one"
            )
        run.seconds = float(run.record.get("seconds") or 0)
    summed = has_sums(run.record)
    paths = sorted((folder / "blocks").rglob("*.json"))
    records = [_json(path) for path in paths if not (summed and tile_of_record(path.name) in published)]
    if summed or not records:
        run.take_sums()
    else:
        for record in records:
            run.add(record)
    if run.record.get("device") and not run.devices:
        run.devices.add(run.record["device"])
    return run, records


def _failure_rows(out: Path, left: Iterable[tuple[Record, str]]) -> list[FailureFacts]:
    """From failures.parquet, or from the block records that are left failed where no run came to write it."""
    names = [f.name for f in dataclasses.fields(FailureFacts)]
    path = out / "failures.parquet"
    if path.is_file():
        rows = pq.read_table(path).to_pylist()
    else:
        rows = [{**record, "command": command} for record, command in left]
    found = []
    for row in rows:
        texts = {k: row.get(k) or "" for k in names if not k.endswith("_px")}
        found.append(FailureFacts(**texts, row_px=int(row.get("row_px") or 0), col_px=int(row.get("col_px") or 0)))
    return sorted(found, key=dataclasses.astuple)


def _cure(out: Path, record: Record, run: RunFacts) -> str:
    if not record.get("scene"):
        return str(run.record.get("command") or "")
    asset = ":".join(filter(None, (record["scene"], record.get("band", ""))))
    inventory = str(run.record.get("inventory") or "INV")
    if (kept := out / "_inputs" / f"{inventory}.parquet").is_file():  # runs name it by digest
        inventory = str(kept)
    return f"tessera-beam inventory amend {inventory} --drop {asset} --reason unreadable --out INV2"


def facts_of(out_folder: str | Path, detailed_tiles: int) -> Facts:
    """Reads an output folder. Blocks of each tile are kept only where it has at most `detailed_tiles` tiles.

    Raises:
      BadInput: no folder, none that this project writes, or a file of a newer version in it.
    """
    out = Path(out_folder)
    if "://" in str(out_folder) or not out.is_dir():
        raise BadInput(f"{out_folder}: report reads a local output folder; copy it here or give its path")
    paths = sorted(p for p in out.glob("[0-9]*/*/*.json") if p.is_file())
    run_folders = sorted(p for p in out.glob("_runs/*") if p.is_dir())
    if not (out / "collection.json").is_file() and not paths and not run_folders:
        raise BadInput(f"{out}: no collection.json, items or _runs in it; give the --out folder of an embed run")
    detailed = len(paths) <= detailed_tiles
    tiles = {(t.tile, t.period): t for t in _published(out, detailed, paths)}
    runs = []
    left: dict[tuple[str, str, int, int], tuple[Record, str]] = {}
    unpublished: dict[tuple[str, str, int, int], Record] = {}
    for run, records in sorted(
        (_read_run(f, tiles) for f in run_folders), key=lambda r: r[0].record.get("started") or r[0].name
    ):
        runs.append(run)
        for record in records:
            key = (record["tile"], record["period"], int(record["row_px"]), int(record["col_px"]))
            left.pop(key, None)
            if record["status"] != DONE:
                left[key] = (record, _cure(out, record, run))
            if tiles.get(key[:2], TileFacts("", "")).status != DONE:
                unpublished[key] = record
    for (name, period, _, _), record in sorted(unpublished.items()):
        tile = tiles.setdefault((name, period), TileFacts(name, period))
        for count, n in counts_in(record).items():
            if count in COUNTS:
                tile.counts[count] = tile.counts.get(count, 0) + n
        _add_block(tile, record, keep=detailed)
    for folder in out.glob("_work/*/*"):  # fragments of tiles that a killed run left behind
        tiles.setdefault((folder.name, folder.parent.name), TileFacts(folder.name, folder.parent.name))
    failures = _failure_rows(out, left.values())
    for failure in failures:
        tile = tiles.setdefault((failure.tile, failure.period), TileFacts(failure.tile, failure.period))
        tile.status = FAILED if tile.status == MISSING else tile.status
    collection = _json(out / "collection.json") if (out / "collection.json").is_file() else {}
    planned = max((int(r.record.get("totals", {}).get("tiles") or 0) for r in runs), default=0)
    return Facts(
        out, collection, [tiles[k] for k in sorted(tiles)], failures, runs, unnamed=max(0, planned - len(tiles))
    )
