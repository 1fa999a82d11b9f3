"""Kills: runs that end by SIGKILL at chosen steps and at random moments, and the run after them."""

import contextlib
import dataclasses
import json
import random
import time
from pathlib import Path

from . import hooks
from .ground import BLOCK_PX, KILLED_TILES, Ground
from .nursery import LOOK_S, Child, Nursery
from .places import Disk, Place, published
from .table import LOST, UNCLEAR, WRONG, Row

RESUMES = (
    3  # a block that was in flight at two kills is failed once, as its receipt says, and made by the run after that
)
AT_RANDOM = 0.3  # share of kills that come at a moment, not at a step


@dataclasses.dataclass(frozen=True)
class Course:
    """Something to do, and what an undisturbed doing of it leaves.

    Attributes:
      name: in words. argv: without the place. before: what lies there at its beginning. after: what lies there in the
      end, `_runs` left out. steps: how often each step comes. seconds: that it takes.
    """

    name: str
    second: bool
    before: dict[str, bytes]
    after: dict[str, bytes]
    steps: dict[str, int]
    seconds: float

    def argv(self, ground: Ground, place: Place) -> list[str]:
        if self.name == "clean":
            return ["clean", place.url, "--older-than", "0s"]
        return ground.embed(place.url, self.second)


def undisturbed(ground: Ground, nursery: Nursery) -> dict[str, Course]:
    """The three courses: into an empty place, over another revision, and the cleaning after that."""
    place = Disk(ground.folder / "undisturbed")
    courses: dict[str, Course] = {}
    before: dict[str, bytes] = {}
    place.begin({})
    for name, second in (("embed", False), ("replace", True), ("clean", True)):
        course = Course(name, second, before, {}, {}, 0.0)
        trace, headers = ground.folder / "trace.json", ground.folder / "headers.pickle"
        child = nursery.run(course.argv(ground, place), {"trace": str(trace), "headers": str(headers)}, **place.env)
        if child.code != 0:
            raise RuntimeError(f"the undisturbed {name} ended with {child.code}: {child.said}")
        seconds = time.monotonic() - child.began
        after = published(place.everything())
        courses[name] = dataclasses.replace(course, after=after, steps=json.loads(trace.read_text()), seconds=seconds)
        before = after
        known = {t: [r for c in courses.values() for r in _revisions(c.after, t)] for t in KILLED_TILES}
        nursery.ask(do="warm", bbox=ground.bbox, block_px=BLOCK_PX, revisions=known, headers=str(headers))
    return courses


def _revisions(objects: dict[str, bytes], tile: str) -> list[str]:
    return [json.loads(data)["properties"]["tessera:revision"] for name, data in objects.items() if is_item(name, tile)]


def is_item(name: str, tile: str = "") -> bool:
    parts = name.split("/")
    return len(parts) == 3 and name.endswith(".json") and not name.startswith("_") and (not tile or parts[1] == tile)


@dataclasses.dataclass(frozen=True)
class Kill:
    """When a run dies: at the nth time of a step, or after a share of its seconds."""

    step: str = ""
    nth: int = 0
    when: str = ""
    share: float = 0.0

    def __str__(self) -> str:
        return f"{self.when} {self.step} {self.nth}" if self.step else f"after {self.share:.0%} of its time"


def kill_of(rng: random.Random, course: Course, n: int) -> Kill:
    """The nth kill of a course: through all steps in turn, and at a random moment now and then."""
    if rng.random() < AT_RANDOM:
        return Kill(share=rng.uniform(0.05, 0.95))
    there = [s for s in hooks.STEPS if course.steps.get(s)]
    step = there[n % len(there)]
    return Kill(step, rng.randint(1, course.steps[step]), rng.choice(hooks.WHENS))


def killed(nursery: Nursery, course: Course, ground: Ground, place: Place, kill: Kill) -> Child:
    """A run that dies so."""
    spec = {"kill": {"step": kill.step, "nth": kill.nth, "when": kill.when}} if kill.step else {}
    child = nursery.start(course.argv(ground, place), spec, **place.env)
    if not kill.step:
        while nursery.poll(child) is None and time.monotonic() - child.began < kill.share * course.seconds:
            time.sleep(LOOK_S)
        child.kill()
    nursery.wait(child)
    return child


def round_of(
    nursery: Nursery, course: Course, ground: Ground, place: Place, kills: list[Kill], row: Row, strict: bool = True
) -> None:
    """Kills in a row, then runs until one ends well; what is there then, and what was there at every kill."""
    place.begin(course.before)
    faults: list[tuple[str, str]] = []
    hit = repeated = 0
    done: set[str] = set()
    seen = set(records(course.before))
    for kill in kills:
        child = killed(nursery, course, ground, place, kill)
        if child.code == 0:
            continue
        if child.code not in (-9, 3):
            faults.append((UNCLEAR, f"{kill}: exit {child.code}: {child.said[-500:]}"))
        hit += 1
        left = place.everything()
        faults += whole(left, course)
        again = {b for name, b in records(left).items() if name not in seen} & done
        seen |= set(records(left))
        if again:
            faults.append((LOST, f"{kill}: made once more though they were done: {', '.join(sorted(again))}"))
        done |= done_blocks(left, course)
        repeated += len(in_flight(left))
        if len(in_flight(left)) > 1:
            faults.append((LOST, f"{kill}: {len(in_flight(left))} blocks in flight of one process"))
    for attempt in range(RESUMES):
        before = set(records(place.everything()))
        child = nursery.run(course.argv(ground, place), **place.env)
        again = {b for name, b in records(place.everything()).items() if name not in before} & done
        if again:
            faults.append((LOST, f"made once more though they were done: {', '.join(sorted(again))}"))
        if child.code != 3 or len(kills) < 2 or attempt == RESUMES - 1:
            break
    if child.code != 0:
        kind = UNCLEAR if child.code is None else LOST
        faults.append((kind, f"the next run ended with {child.code}: {child.said[-500:]}"))
    faults += differences(published(place.everything()), course.after)
    if isinstance(place, Disk) and (place.folder / ".parts").exists():
        faults.append((LOST, "a folder of half-written files stays"))
    row.add(faults, f"{course.name}, {'; '.join(map(str, kills))}", repeated, missed=not hit)


def differences(found: dict[str, bytes], want: dict[str, bytes]) -> list[tuple[str, str]]:
    """Objects that are missing, that nobody needs, and that have other bytes."""
    faults = []
    if missing := sorted(want.keys() - found.keys()):
        faults.append((LOST, f"missing: {', '.join(missing[:5])}"))
    if more := sorted(found.keys() - want.keys()):
        faults.append((LOST, f"orphans: {', '.join(more[:5])}"))
    if other := sorted(k for k in found.keys() & want.keys() if found[k] != want[k]):
        faults.append((WRONG, f"other bytes: {', '.join(other[:5])}"))
    return faults


def whole(left: dict[str, bytes], course: Course) -> list[tuple[str, str]]:
    """Whether every item that is there names assets that are there, to the byte: what a reader may meet at any time."""
    faults = []
    for name, data in left.items():
        if not is_item(name):
            continue
        state = next((s for s in (course.after, course.before) if s.get(name) == data), None)
        if state is None:
            faults.append((WRONG, f"{name} is neither the old item nor the new one"))
            continue
        home = name.rpartition("/")[0]
        for asset in json.loads(data)["assets"].values():
            path = f"{home}/{asset['href'].removeprefix('./')}"
            if not asset["href"].startswith("../") and left.get(path) != state.get(path):
                faults.append((WRONG, f"{name} is there and {path} is not what it says"))
    return faults


def records(left: dict[str, bytes]) -> dict[str, str]:
    """Records of blocks that runs have made: name of the record -> tile and block."""
    found = {}
    for name, data in left.items():
        parts = name.split("/")
        if parts[0] == "_runs" and parts[2:3] == ["blocks"]:
            with contextlib.suppress(ValueError):
                if json.loads(data)["status"] == "done":
                    found[name] = Path(name).stem
    return found


def done_blocks(left: dict[str, bytes], course: Course) -> set[str]:
    """Blocks (as records name them) with a receipt, or of a tile that is published as it has to be."""
    found = set()
    for name in left:
        parts = name.split("/")
        if parts[0] == "_work" and name.endswith(".done.json"):
            found.add(f"{parts[2]}_{parts[1]}_{parts[-1].partition('.')[0]}")
    over = {name.split("/")[1] for name, data in left.items() if is_item(name) and course.after.get(name) == data}
    return found | {b for b in records(left).values() if b.split("_")[0] in over}


def in_flight(left: dict[str, bytes]) -> set[str]:
    """Blocks with the marker of an attempt, and neither receipt nor published tile."""
    begun = {n.partition(".attempt")[0] for n in left if ".attempt" in n}
    return {b for b in begun if f"{b}.done.json" not in left and f"{b}.failed.json" not in left}


def kill_rounds(
    nursery: Nursery, ground: Ground, courses: dict[str, Course], place: Place, seed: int, rounds: int, row: Row
) -> None:
    """Rounds of kills: most of them into an empty place, some over another revision, some of cleaning."""
    for n in range(rounds):
        rng = random.Random(f"kill {seed} {place.url.partition('://')[0]} {n}")
        draw = rng.random()
        course = courses["embed" if draw < 0.6 else "replace" if draw < 0.85 else "clean"]
        twice = rng.random() < 0.15
        kills = [kill_of(rng, course, rng.randrange(len(hooks.STEPS))) for _ in range(1 + twice)]
        round_of(nursery, course, ground, place, kills, row)
