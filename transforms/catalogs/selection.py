"""Selection: which of a tile's scenes are kept, and the order that they are counted in."""

import dataclasses
import json
import re
from collections.abc import Iterable

import shapely
from shapely.geometry.base import BaseGeometry

from transforms.catalogs.items import Record
from transforms.catalogs.registry import RANK
from transforms.scenes import S1, S2, Scene

# Halves of a datatake share a strip of a few lines; the same granule processed twice shares nearly all of its ground.
DUPLICATE_SHARE = 0.5


def select(records: Iterable[Record]) -> list[Scene]:
    """The tile's scenes, S1 then S2, each in its order, with duplicates of a datatake left out.

    The result does not depend on the order of `records`, nor on records that come twice (on two pages, say).
    """
    unique: dict[tuple[str, str], Record] = {}
    for record in records:
        key = (record.scene.source, record.scene.id)
        if key not in unique or _version(record) > _version(unique[key]):
            unique[key] = record
    scenes = _without_duplicates([unique[key] for key in sorted(unique)])
    return in_order(scenes)


def in_order(scenes: Iterable[Scene]) -> list[Scene]:
    """Scenes of one tile numbered afresh: S1 by datetime descending, S2 ascending, ties by id, then source."""
    named = sorted(scenes, key=lambda s: (s.id, s.source))
    s1 = sorted((s for s in named if s.sensor == S1), key=lambda s: s.datetime, reverse=True)
    s2 = sorted((s for s in named if s.sensor == S2), key=lambda s: s.datetime)
    return [dataclasses.replace(s, order=n) for group in (s1, s2) for n, s in enumerate(group)]


def datatake_key(scene: Scene) -> str:
    """What the products of a datatake share: its id without the baseline, else platform, minute, relative orbit."""
    if scene.datatake:
        return re.sub(r"_N\d\d\.\d\d$", "", scene.datatake)
    return f"{scene.platform} {scene.datetime[:16]} {scene.relative_orbit}"


def _version(record: Record) -> tuple[str, str]:
    """Which of two records of one id is the later; by content where neither says, so that the choice never varies."""
    return record.scene.generated, json.dumps(dataclasses.asdict(record.scene), sort_keys=True)


def _without_duplicates(records: list[Record]) -> list[Scene]:
    """Drops optical scenes whose ground another product of the datatake covers: newest baseline, then newest, wins.

    Products over other ground (the halves of two datastrips) are all kept.
    """
    done = [r.scene for r in records if r.scene.sensor != S2 or not r.scene.kept]
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.scene.sensor == S2 and record.scene.kept:
            groups.setdefault(datatake_key(record.scene), []).append(record)
    for group in groups.values():
        winners: list[Record] = []
        best_first = sorted(group, key=lambda r: (r.scene.source, r.scene.id))
        best_first.sort(key=lambda r: (r.scene.baseline, r.scene.generated, -RANK[r.scene.source]), reverse=True)
        for record in best_first:
            same = [w for w in winners if _covered(record.footprint, w.footprint)]
            if not same and not _covered(record.footprint, shapely.union_all([w.footprint for w in winners])):
                winners.append(record)
                done.append(record.scene)
                continue
            by = same[0].scene if same else winners[0].scene
            reason = (
                f"duplicate: {by.id} of {by.source} is the newer product of the same datatake and ground "
                f"(baseline {by.baseline or 'unknown'}, made {by.generated or 'at an unknown time'})"
            )
            done.append(dataclasses.replace(record.scene, kept=False, dropped_reason=reason))
    return done


def _covered(footprint: BaseGeometry, by: BaseGeometry) -> bool:
    if footprint.is_empty or footprint.area == 0:
        return not by.is_empty  # nothing says that it shows other ground
    return bool(footprint.intersection(by).area > DUPLICATE_SHARE * footprint.area)
