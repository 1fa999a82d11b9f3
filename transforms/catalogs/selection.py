"""Selection: which of a tile's scenes are kept, and the order that they are counted in."""

import dataclasses
import json
import re
from collections.abc import Iterable

import shapely
from shapely.geometry.base import BaseGeometry

from transforms.catalogs.items import Record
from transforms.catalogs.registry import BY_NAME, RANK
from transforms.catalogs.source import BY_CATALOGUE
from transforms.scenes import S1, S2, Scene

# Halves of a datatake share a strip of a few lines; the same granule processed twice shares nearly all of its ground,
# less some percent where processors draw the edge of the data differently. An older product that has more ground than
# that to itself stays: the scenes of a day are mosaicked anyway, and dropping it would lose the ground.
DUPLICATE_SHARE = 0.9


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
    """Scenes of one tile numbered afresh: S1 by datetime descending, S2 ascending, ties by id, then source.

    Scenes of a source that is taken in its catalogue's order keep the order that they have, behind the other S1.
    """
    named = sorted(scenes, key=lambda s: (s.id, s.source))
    s1 = sorted((s for s in named if s.sensor == S1 and not _listed(s)), key=lambda s: s.datetime, reverse=True)
    listed = sorted((s for s in named if s.sensor == S1 and _listed(s)), key=lambda s: (s.order, s.datetime))
    s2 = sorted((s for s in named if s.sensor == S2), key=lambda s: s.datetime)
    return [dataclasses.replace(s, order=n) for group in ([*s1, *listed], s2) for n, s in enumerate(group)]


def datatake_key(scene: Scene) -> str:
    """What the products of a datatake share: satellite and start, else platform, minute, relative orbit.

    Ids of datatakes go on with orbit and baseline ("GS2A_20240506T100000_046000_N05.10"), names of products do not.
    """
    if match := re.match(r"GS2[A-Z]_\d{8}T\d{6}", scene.datatake):
        return match[0]
    return scene.datatake or f"{scene.platform} {scene.datetime[:16]} {scene.relative_orbit}"


def _listed(scene: Scene) -> bool:
    source = BY_NAME.get(scene.source)
    return source is not None and source.order == BY_CATALOGUE


def _version(record: Record) -> tuple[str, str, int]:
    """Which of two records of one id is the later; by content where neither says, so that the choice never varies."""
    fields = {**dataclasses.asdict(record.scene), "order": 0}
    return record.scene.generated, json.dumps(fields, sort_keys=True), -record.scene.order  # the first of its twins


def _without_duplicates(records: list[Record]) -> list[Scene]:
    """Drops optical scenes whose ground another product of the datatake covers: newest baseline, then newest, wins.

    Products over other ground (the halves of two datastrips) are all kept. Of a radar burst that was made twice from
    one acquisition the newest wins.
    """
    done = _without_old_bursts([r.scene for r in records if r.scene.sensor != S2 or not r.scene.kept])
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


def _without_old_bursts(scenes: list[Scene]) -> list[Scene]:
    """OPERA makes bursts anew, and CMR lists both for some time (their acquisition is the same to the second)."""
    newest: dict[str, Scene] = {}
    for scene in scenes:
        if scene.kept and scene.sensor == S1 and _listed(scene) and scene.datatake:
            other = newest.setdefault(scene.datatake, scene)
            newest[scene.datatake] = max(other, scene, key=lambda s: (s.generated, s.id))
    done = []
    for scene in scenes:
        by = newest.get(scene.datatake) if scene.kept and scene.sensor == S1 and _listed(scene) else None
        if by is not None and by != scene:
            reason = (
                f"duplicate: {by.id} was made later of the same burst (made {by.generated or 'at an unknown time'})"
            )
            scene = dataclasses.replace(scene, kept=False, dropped_reason=reason)
        done.append(scene)
    return done


def _covered(footprint: BaseGeometry, by: BaseGeometry) -> bool:
    return bool(footprint.intersection(by).area > DUPLICATE_SHARE * footprint.area)
