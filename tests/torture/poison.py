"""Poison: a file that ends whoever reads it, a block that is out of memory each time, and one that never ends."""

import io
import json
from pathlib import Path

import pyarrow.parquet as pq

from transforms.receipts import FAILED

from .ground import TILES, Ground
from .kills import differences, is_item
from .nursery import Nursery
from .places import Disk, Place, published
from .table import LOST, UNCLEAR, Row

RUNS = 8  # two for each poison that ends its process, and one that comes to the end
DEADLINE_S = 2.0  # for the watchdog: a healthy step takes a tenth of it
CRASHES, STARVES, HANGS = "32TQR", "33TUL r10240_c00000", "33TUL r10496_c00256"
CAUSES = {"32TQR": "killed", "r10240_c00000": "memory", "r10496_c00256": "hung"}


def poison(nursery: Nursery, ground: Ground, place: Place, row: Row) -> None:
    """One try: exactly three failed receipts, the rest published, and the same in `failures.parquet`."""
    place.begin({})
    scene = next(iter(ground.kept_scenes(CRASHES)))
    spec = {"abort": f"{scene}/", "memory": STARVES, "hang": HANGS}
    env = place.env | {"TESSERA_DEADLINE_S": str(DEADLINE_S)}
    faults: list[tuple[str, str]] = []
    said, codes = "", []
    for _ in range(RUNS):
        child = nursery.run(ground.embed(place.url, tiles=TILES), spec, **env)
        said, codes = child.said, [*codes, child.code]
        if child.code in (0, 3, None):
            break
    if codes[-1] != 3:
        faults.append((UNCLEAR, f"the runs ended with {codes}, the last one is to be 3: {said[-500:]}"))
    left = place.everything()
    receipts = [json.loads(data) for name, data in left.items() if name.endswith(f".{FAILED}.json")]
    found = sorted((r["tile"], r["cause"]) for r in receipts)
    want = [("32TQR", "killed"), ("33TUL", "hung"), ("33TUL", "memory")]
    if found != want:
        faults.append((LOST, f"failed receipts {found} in place of {want}"))
    if [n.split("/")[1] for n in left if is_item(n)] != ["32TQQ"]:
        faults.append((LOST, f"published: {[n for n in left if is_item(n)]}, 32TQQ was to be"))
    if sum(n.endswith(".done.json") for n in left) != 2:
        faults.append((LOST, "the two blocks beside the poisoned ones are not both done"))
    table = (
        pq.read_table(io.BytesIO(left.get("failures.parquet", b""))).to_pylist() if "failures.parquet" in left else []
    )
    if sorted((r["tile"], r["cause"]) for r in table) != want or not all(r["command"] for r in table):
        faults.append((LOST, f"failures.parquet holds {table}"))
    row.add(faults, f"{len(codes)} runs", repeated=len(codes) - 1)


def antidote(nursery: Nursery, ground: Ground, place: Place, row: Row) -> None:
    """Behind `poison`: without the poison everything is published, with the bytes of a run that never had it."""
    child = nursery.run(ground.embed(place.url, tiles=TILES), **place.env)
    found = published(place.everything())
    other = Disk(Path(str(ground.folder / "never poisoned")))
    other.begin({})
    nursery.run(ground.embed(other.url, tiles=TILES))
    faults = differences(found, published(other.everything()))
    if child.code:
        faults.append((UNCLEAR, f"exit {child.code}: {child.said[-500:]}"))
    row.add(faults, "the same command without the poison")
