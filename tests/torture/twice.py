"""Twice: two runs of one plan at once, and one bundle that two workers execute."""

import json
import random
import time
from pathlib import Path

from .ground import Ground
from .kills import Course, differences
from .nursery import LOOK_S, Nursery
from .places import Disk, Place, published
from .table import LOST, UNCLEAR, Row

BUNDLE = "torture.twice:bundle"


def two_runs(nursery: Nursery, course: Course, ground: Ground, place: Place, seed: str, row: Row) -> None:
    """The same command twice at once, the second one up to half a run later."""
    rng = random.Random(f"twice {seed}")
    later = rng.choice([0.0, rng.uniform(0, 0.5)]) * course.seconds
    place.begin(course.before)
    first = nursery.start(course.argv(ground, place), **place.env)
    time.sleep(later)
    second = nursery.start(course.argv(ground, place), **place.env)
    faults = []
    for child in (first, second):
        if nursery.wait(child) != 0:
            faults.append((UNCLEAR if child.code is None else LOST, f"exit {child.code}: {child.said[-800:]}"))
    faults += differences(published(place.everything()), course.after)
    row.add(faults, f"{course.name}, the second one {later:.1f} s later")


def bundle(plan_file: str, tiles: str, go: str) -> int:
    """What a worker does with a bundle of all blocks of the tiles, as soon as the file `go` is there."""
    from transforms.embed import embed_block, open_worker
    from transforms.plans import Plan
    from transforms.receipts import DONE
    from transforms.tiles import plan_tile, publish_if_complete

    plan = Plan(**json.loads(Path(plan_file).read_text()))
    worker = open_worker(plan)
    tasks = [task for tile in tiles.split(",") for task in plan_tile(plan, tile)]
    Path(f"{go}.{time.monotonic_ns()}").touch()
    while not Path(go).exists():
        time.sleep(LOOK_S)
    for task in tasks:
        if embed_block(worker, task).status != DONE:
            raise RuntimeError(f"{task.block.name} failed")
        publish_if_complete(worker, task)
    return 0


def one_bundle(nursery: Nursery, course: Course, ground: Ground, place: Place, row: Row, tiles: str) -> None:
    """Two workers execute the same bundle at the same time; then a run writes collection and index."""
    place.begin(course.before)
    # The plan of a run that died before its first block.
    died = nursery.run(
        course.argv(ground, place), {"kill": {"step": "attempt", "nth": 1, "when": "before"}}, **place.env
    )
    assert died.code == -9, died.said
    plan_file, go = ground.folder / "plan.json", ground.folder / "go"
    plan_file.write_bytes(next(v for k, v in place.everything().items() if k.endswith("/plan.json")))
    for old in ground.folder.glob("go*"):
        old.unlink()
    workers = [nursery.start([str(plan_file), tiles, str(go)], call=BUNDLE, **place.env) for _ in range(2)]
    while len(list(ground.folder.glob("go.*"))) < 2 and all(nursery.poll(w) is None for w in workers):
        time.sleep(LOOK_S)
    go.touch()
    faults = []
    for worker in workers:
        if nursery.wait(worker) != 0:
            faults.append((LOST, f"exit {worker.code}: {worker.said[-800:]}"))
    last = nursery.run(course.argv(ground, place), **place.env)
    if last.code != 0:
        faults.append((LOST, f"the run after it: exit {last.code}: {last.said[-500:]}"))
    faults += differences(published(place.everything()), course.after)
    if isinstance(place, Disk) and (place.folder / ".parts").exists():
        faults.append((LOST, "a folder of half-written files stays"))
    row.add(faults, course.name)
