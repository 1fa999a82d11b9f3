"""make planet: a global year rehearsed, a table of what it took, and exit code 4 where a limit is missed."""

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from model.errors import BadInput
from transforms.inventory import read_header

from . import course
from .earth import S1_SCENES, S2_SCENES, TILES
from .madeup import read_log

ROOT = Path(__file__).parents[2]
CHECK_FAILED = 4  # as the program's own (design, section 5)
SHARES = (1 / 10, 1 / 3, 1)
KILLED_SHARE = 1 / 10  # of the tiles, in the run that is killed: it writes to a disk
PER_MILLION = 1000  # blocks that fail in the first run: 0.1 %

# Limits of the graph, for all tiles of a planet on two cores.
SECONDS = 120.0  # of its own work: on a machine that others use too the clock on the wall says little
PEAK_MB = 1500.0
BLOCK_BYTES = 1500.0  # memory for each block more

Told = dict[str, Any]


def child(what: str, **arguments: Any) -> subprocess.Popen[str]:
    """A course as a process of its own. What it says on the way goes to stderr."""
    command = [sys.executable, "-m", "tests.planet.course", what, json.dumps(arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def told_by(process: subprocess.Popen[str]) -> Told:
    """What a course said, when it has ended."""
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a course of the rehearsal ended with {process.returncode}")
    return dict(json.loads(out.splitlines()[-1]))


def graphs(inventory: str, folder: Path, tiles: int, shares: Sequence[float]) -> list[Told]:
    """The graph alone at each size, and with a tile's blocks kept together at the largest."""
    rows: list[Told] = []
    for n, (share, spread) in enumerate([*((s, True) for s in shares), (shares[-1], False)]):
        count = max(1, round(tiles * share))
        plan = course.prepare(inventory, str(folder / f"graph{n}"), count)["plan"]
        told = told_by(child("graph", plan=plan, spread_blocks=spread))
        blocks = count * course.BLOCKS
        grown = told["peak_mb"] - told["start_mb"]
        row = {"what": "blocks spread" if spread else "a tile a worker", "tiles": count, "blocks": blocks, **told}
        row["bytes_a_block"] = round(1e6 * grown / blocks)
        if spread and rows:
            before = rows[-1]
            more = (told["peak_mb"] - before["peak_mb"]) / (blocks - before["blocks"])
            row["slope_bytes"] = round(1e6 * more)
        rows.append(row)
    return rows


def killed(inventory: str, folder: Path, tiles: int, per_million: int = PER_MILLION) -> Told:
    """A run that is killed when half of its blocks are done, and the run that goes on; both on this disk."""
    out, log = folder / "killed", folder / "killed.log"
    plan = json.loads(course.prepare(inventory, str(out), tiles)["plan"])
    process = child("on_disk", plan=json.dumps(plan), per_million=per_million, log=str(log))
    half = tiles * course.BLOCKS // 2 * 16  # bytes of the log
    tick = threading.Event()
    while process.poll() is None and not (log.exists() and log.stat().st_size >= half):
        tick.wait(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = course.order_of(read_log(log))
    items = len(list(out.glob("[0-9]*/*/*.json")))
    told = told_by(child("on_disk", plan=json.dumps({**plan, "run": plan["run"] + "-2"}), per_million=0, log=str(log)))
    found = course.order_of(read_log(log))
    return {
        "tiles": tiles, "killed": process.returncode == -signal.SIGKILL, "blocks_before": before["blocks"],
        "items_before": items, "items": len(list(out.glob("[0-9]*/*/*.json"))), "twice": found["twice"],
        # A block that the first run had ended, but for its failures, is not made again. One was in the making.
        "made_again": found["blocks"] - tiles * course.BLOCKS,
        "left": sum(path.is_file() for path in (out / "_work").rglob("*")), **told,
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a rehearsal of all tiles is held to; a smaller one has no limit but the orders of events."""

    seconds: float = SECONDS
    peak_mb: float = PEAK_MB
    block_bytes: float = BLOCK_BYTES


def missed(graph: Sequence[Told], records: Told, kill: Told, limits: Limits | None) -> Iterator[str]:
    """What was not as it has to be, in words."""
    spread = [row for row in graph if "spread" in row["what"]]
    if limits is not None:
        for row in graph:
            if row["cpu_seconds"] > limits.seconds:
                yield f"{row['what']}, {row['blocks']} blocks: {row['cpu_seconds']} s, the limit is {limits.seconds}"
            if row["peak_mb"] > limits.peak_mb:
                yield f"{row['what']}, {row['blocks']} blocks: {row['peak_mb']:.0f} MB, the limit is {limits.peak_mb}"
        if (slope := spread[-1].get("slope_bytes", 0)) > limits.block_bytes:
            yield f"{slope} bytes for each block more, the limit is {limits.block_bytes:.0f}"
    tiles = spread[-1]["tiles"]
    if (records["published"], records["twice"], records["late"], records["left"]) != (tiles, 0, 0, 0):
        yield (
            f"of {tiles} tiles {records['published']} were published, {records['twice']} twice, {records['late']} "
            f"after a block of another tile; {records['left']} objects of theirs are left"
        )
    if records["status_states"] != {"published": tiles}:
        yield f"status says {records['status_states']}"
    if not kill["killed"]:
        yield "the run that was to be killed ended before"
    if (kill["items"], kill["twice"], kill["left"]) != (kill["tiles"], 0, 0):
        yield (
            f"after a kill {kill['items']} of {kill['tiles']} tiles are published, {kill['twice']} twice; "
            f"{kill['left']} files of theirs are left"
        )


def as_text(told: Told) -> str:
    """The table."""
    year, records, kill = told["inventory"], told["records"], told["kill"]
    lines = [
        f"inventory: {year['tiles']} tiles, {year['scenes']} scenes, {year['mb']} MB, {year['seconds']} s "
        f"({year['cpu_seconds']} s of work)"
        if year
        else "inventory: as given",
        "",
        f"{'the graph alone':<18}{'tiles':>7}{'blocks':>9}{'s':>8}{'s work':>8}{'MB':>7}{'B/block':>9}{'slope':>7}",
    ]
    for row in told["graph"]:
        lines.append(
            f"{row['what']:<18}{row['tiles']:>7}{row['blocks']:>9}{row['seconds']:>8.1f}{row['cpu_seconds']:>8.1f}"
            f"{row['peak_mb']:>7.0f}{row['bytes_a_block']:>9}{row.get('slope_bytes', ''):>7}"
        )
    lines += ["", f"{'with records':<18}{'s':>9}{'s work':>9}{'requests':>10}{'MB so far':>11}"]
    lines += [
        f"{what:<18}{records[f'{what}_seconds']:>9.1f}{records[f'{what}_cpu_seconds']:>9.1f}"
        f"{records[f'{what}_requests']:>10}{records[f'{what}_peak_mb']:>11.0f}"
        for what in ("run1", "record1", "run2", "record2", "finish", "status", "report")
    ]
    lines += [
        f"first run: {records['record1_blocks_failed']} blocks failed, {records['record1_tiles_published']} tiles "
        f"published; second: all {records['record2_tiles_published']}, {records['blocks']} blocks ended in both",
        f"at most {records['most_waiting']} blocks waited for their tile; {records['objects']} objects of "
        f"{records['store_mb']} MB in the store's double; page of {records['report_mb']} MB",
        "",
        f"killed at {kill['blocks_before']} of {kill['tiles'] * course.BLOCKS} blocks with {kill['items_before']} "
        f"tiles published; then {kill['items']} of {kill['tiles']}, {kill['twice']} twice, {kill['left']} files left",
        *(f"MISSED: {what}" for what in told["missed"]),
    ]
    return "\n".join(lines)


def rehearse(folder: Path, tiles: int, inventory: Path | None = None, scenes: tuple[int, int] | None = None) -> Told:
    """The whole rehearsal.

    Args:
      folder: an empty one for all that is written. inventory: where the year lies, written there where it is not.
      scenes: of a tile, optical and radar.

    Raises:
      BadInput: the inventory that is there is one of fewer tiles.
    """
    path = inventory or folder / "year.parquet"
    s2, s1 = scenes or (S2_SCENES, S1_SCENES)
    if path.exists() and (there := len(read_header(path).tiles)) < tiles:
        raise BadInput(
            f"--inventory {path}: it has {there} tiles, and {tiles} are asked for: remove it, or ask for fewer"
        )
    year = {} if path.exists() else told_by(child("inventory", path=str(path), tiles=tiles, s2=s2, s1=s1))
    graph = graphs(str(path), folder, tiles, SHARES)
    kill = killed(str(path), folder, min(tiles, max(10, round(tiles * KILLED_SHARE))))  # fewer may end too soon
    plan = course.prepare(str(path), str(folder / "records"), tiles)["plan"]
    records = told_by(child("records", plan=plan, per_million=PER_MILLION))
    told = {"inventory": year, "graph": graph, "kill": kill, "records": records}
    limits = Limits() if tiles >= TILES else None
    return {**told, "missed": list(missed(graph, records, kill, limits))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=TILES, help="of the planet, evenly over it")
    parser.add_argument("--inventory", type=Path, help="where the made-up year is kept from one rehearsal to the next")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tessera-planet-") as folder:
        try:
            told = rehearse(Path(folder), options.tiles, options.inventory)
        except BadInput as e:
            parser.error(str(e))
    sys.stdout.write((json.dumps(told) if options.json else as_text(told)) + "\n")
    return CHECK_FAILED if told["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
