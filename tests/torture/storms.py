"""Storms: stores that fail, lie, forget and come late, disks that are full or closed, and clocks that are wrong."""

import contextlib
import logging
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

from .ground import Ground
from .kills import Course, differences, whole
from .nursery import Nursery
from .places import DOUBLES, Bucket, Disk, Place, published
from .table import LOST, UNCLEAR, Row

OPERATIONS = (
    "get_object", "head_object", "put_object", "delete_object", "delete_objects", "list_objects_v2",
    "create_multipart_upload", "upload_part", "upload_part_copy", "complete_multipart_upload",
)  # fmt: skip
CHANCE = (0.02, 0.3)  # of a request to be hit, drawn for each storm
# Of a failed run: one of these is said, and never only a traceback's last line.
WORDS = ("busy", "try", "refused", "No space left", "Read-only", "Permission", "run embed again", "again", "damaged")


def weather(nursery: Nursery, course: Course, ground: Ground, place: Place, what: str, row: Row, hooks: Any) -> None:
    """A run in a storm, then one in calm: the first is published right or fails clearly, the second publishes all."""
    first = nursery.run(course.argv(ground, place), hooks, **place.env)
    left = place.everything()
    faults = whole(left, course)
    if first.code is None:
        faults.append((UNCLEAR, f"hung: {first.said[-300:]}"))
    elif first.code == 0:
        faults += differences(published(left), course.after)
    elif first.code not in (1, 2, 3) or not any(w in first.said for w in WORDS) or "Traceback" in first.said:
        faults.append((UNCLEAR, f"exit {first.code}: {first.said[-1500:]}"))
    row.missed += first.code == 0
    if isinstance(place, Bucket):
        calm(place)
    last = nursery.run(course.argv(ground, place), {}, **place.env)
    if last.code != 0:
        faults.append((LOST, f"the run in calm ended with {last.code}: {last.said[-500:]}"))
    faults += differences(published(place.everything()), course.after)
    row.add(faults, f"{course.name}, {what} (exit {first.code})")


def calm(place: Bucket) -> None:
    place.double.always.clear()
    place.double.faults.clear()
    place.double.unlisted.clear()


def gcs_storm(nursery: Nursery, course: Course, ground: Ground, place: Bucket, seed: str, row: Row) -> None:
    """Every request has a chance to be answered with 5xx or 429, broken, lost after it was done, slow or cut."""
    if str(DOUBLES) not in sys.path:
        sys.path.append(str(DOUBLES))
    import gcs_double as double

    rng = random.Random(f"storm {seed}")
    chance = rng.uniform(*CHANCE)
    place.begin(course.before)
    kinds: list[tuple[str, Callable[[Any, Any], Any]]] = [
        ("503", double.status(503)),
        ("429", double.status(429, "rateLimitExceeded")),
        ("reset", double.reset),
        ("lost", double.lost),
        ("done, but 502", double.done_but(502)),
        ("cut", double.cut(rng.randint(0, 60))),
        ("slow", double.slow(0.0005)),
        ("raced", lambda request, run: raced(place, rng, request, run)),
        ("late in listings", lambda request, run: late(place, rng, request, run)),
    ]
    some = rng.sample(kinds, rng.randint(1, 4))

    def fault(request: Any, run: Callable[[], Any]) -> Any:
        if rng.random() >= chance:
            return run()
        return rng.choice(some)[1](request, run)

    for kind in (
        "get",
        "list",
        "stat",
        "upload",
        "start",
        "chunk",
        "finish",
        "ask",
        "compose",
        "copy",
        "delete",
        "bucket",
    ):
        place.double.always[kind] = fault
    weather(nursery, course, ground, place, f"{chance:.0%} of {', '.join(n for n, _ in some)}", row, {"quick": True})


def raced(place: Bucket, rng: random.Random, request: Any, run: Callable[[], Any]) -> Any:
    """Another worker has just written the same object with the same bytes: the generation is another one, 412."""
    objects = place.double.buckets["bucket"]
    name = next((p for p in reversed(request.path) if p in objects), None)
    if name and request.kind in ("upload", "finish", "compose") and "_work" in name:
        place.double.put("bucket", name, objects[name].data)
    return run()


def late(place: Bucket, rng: random.Random, request: Any, run: Callable[[], Any]) -> Any:
    """What was just written is not in the next listings."""
    answer = run()
    name = request.query.get("name")
    if name and request.kind in ("upload", "finish"):
        place.double.unlisted[name] = rng.randint(1, 3)
    return answer


def disk_storm(nursery: Nursery, course: Course, ground: Ground, place: Disk, seed: str, row: Row) -> None:
    """From its nth write on the disk is full, over quota, read-only, closed or broken; often only for a while."""
    rng = random.Random(f"disk {seed}")
    place.begin(course.before)
    writes = sum(n for step, n in course.steps.items() if step not in ("read", "build", "encode"))
    refuse = {
        "nth": rng.randint(0, 3 * writes),
        "errno": rng.choice(["ENOSPC", "ENOSPC", "EDQUOT", "EROFS", "EACCES", "EIO"]),
        "for": rng.choice([0, 0, 1, 3]),
    }
    what = f"{refuse['errno']} at write {refuse['nth']}{' once' if refuse['for'] == 1 else ''}"
    weather(nursery, course, ground, place, what, row, {"refuse": refuse})


def skewed(nursery: Nursery, course: Course, ground: Ground, place: Place, seed: str, row: Row) -> None:
    """A clock that is days ahead or behind, and another one at the next run."""
    rng = random.Random(f"skew {seed}")
    place.begin(course.before)
    hooks = {"skew_s": rng.choice([-1, 1]) * rng.uniform(3600, 400 * 86_400)}
    weather(nursery, course, ground, place, f"a clock that is {hooks['skew_s'] / 86_400:+.0f} days off", row, hooks)
    row.missed -= 1  # it has no effect, which is what is wanted


@contextlib.contextmanager
def s3_road() -> Iterator[Any]:
    """The road to moto, and None where moto is not there."""
    sys.path += [p for p in (str(DOUBLES),) if p not in sys.path]
    import pytest
    import s3_double

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for every request
    try:
        with s3_double.moto() as road, pytest.MonkeyPatch.context() as patch:
            s3_double.dummy_keys(patch, road.url)
            yield road
    except pytest.skip.Exception:
        yield None


class Moto:
    """A new bucket of moto's for every try."""

    def __init__(self, road: Any) -> None:
        import s3_double

        self._double, self.road = s3_double, road
        self.env = {
            "AWS_ACCESS_KEY_ID": s3_double.KEY, "AWS_SECRET_ACCESS_KEY": s3_double.SECRET,
            "AWS_SESSION_TOKEN": s3_double.TOKEN, "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL_S3": road.url,
            "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/nonexistent",
            "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent", "AWS_PROFILE": "",
        }  # fmt: skip
        del self.env["AWS_PROFILE"]
        self.url = ""

    def begin(self, holds: dict[str, bytes]) -> None:
        self.road.rules.clear()
        self.store = self._double.bucket("out", [self._double.rule(**self._double.ABORT)])
        self.url = self.store.url
        for name, data in holds.items():
            self.store.replace(name, data)

    def everything(self) -> dict[str, bytes]:
        self.road.rules.clear()
        return {e.name: self.store.get(e.name) for e in self.store.walk("")}


def s3_storm(nursery: Nursery, course: Course, ground: Ground, place: Moto, seed: str, row: Row) -> None:
    """As `gcs_storm`, over the road to moto."""
    import s3_double as double

    rng = random.Random(f"s3 {seed}")
    chance = rng.uniform(*CHANCE)
    place.begin(course.before)
    kinds = [
        ("503", double.refused(503, "SlowDown")),
        ("500", double.refused(500, "InternalError")),
        ("lost", double.lost),
        ("cut", double.cut),
        ("short", double.short),
    ]
    some = rng.sample(kinds, rng.randint(1, 3))

    def fault(seen: Any, handler: Any, forward: Callable[[], Any]) -> None:
        if rng.random() >= chance:
            handler.reply(*forward())
        else:
            rng.choice(some)[1](seen, handler, forward)

    for operation in OPERATIONS:
        place.road.rules[operation] = fault
    weather(nursery, course, ground, place, f"{chance:.0%} of {', '.join(n for n, _ in some)}", row, {"quick": True})
