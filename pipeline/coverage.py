"""Coverage: how many dates an inventory has, by month and orbit, and which tiles have too few."""

import datetime as dt
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transforms.periods import Period
from transforms.scenes import ASCENDING, DESCENDING, S1, S2, Scene

KINDS = (S2, f"{S1} {ASCENDING}", f"{S1} {DESCENDING}")
WORST = 10  # tiles that are named; all are in the JSON


def tile_counts(scenes: Sequence[Scene], period: Period) -> dict[str, Any]:
    """What a summary says of one tile.

    Returns:
      Kept scenes by kind (`KINDS`); `dropped`: the others; `months`: month -> kind -> dates (UTC days) with a kept
      scene; `months_without`: sensor -> months that have none.
    """
    kept = [s for s in scenes if s.kept]
    months = {month: dict.fromkeys(KINDS, 0) for month in _months(period)}
    for kind, day in {(_kind(s), s.day) for s in kept}:
        months[f"{day:%Y-%m}"][kind] += 1
    return {
        **{kind: sum(_kind(s) == kind for s in kept) for kind in KINDS},
        "dropped": len(scenes) - len(kept),
        "months": months,
        "months_without": {
            S2: [m for m, n in months.items() if not n[S2]],
            S1: [m for m, n in months.items() if not _radar(n)],
        },
    }


def coverage_of(tiles: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The same over all tiles.

    Returns:
      `months`: month -> kind -> `median` and `fewest` dates of a tile, and `tiles_without` any; how many
      `tiles_without_optical` and `tiles_without_radar` there are at all, and `tiles_with_empty_months`, optically;
      `worst`: the tiles with most to warn of, at most `WORST`.
    """
    everything = list(tiles.values())
    names = list(everything[0]["months"]) if everything else []
    worst = sorted((_badness(name, n), name) for name, n in tiles.items() if _lacks(n))
    return {
        "tiles": len(tiles),
        "tiles_without_optical": sum(not n[S2] for n in everything),
        "tiles_without_radar": sum(not _radar(n) for n in everything),
        "tiles_with_empty_months": sum(bool(n["months_without"][S2]) for n in everything),
        "months": {m: {kind: _spread([n["months"][m][kind] for n in everything]) for kind in KINDS} for m in names},
        "worst": [
            {
                "tile": name,
                "optical_dates": _dates(tiles[name], KINDS[:1]),
                "radar_dates": _dates(tiles[name], KINDS[1:]),
                "months_without_optical": tiles[name]["months_without"][S2],
            }
            for _, name in worst[:WORST]
        ],
    }


def warnings_of(tiles: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for each tile without optical scenes, without radar, or with a month without an optical date."""
    said = []
    for name, counts in tiles.items():
        if not counts[S2]:
            said.append(f"tile {name}: no Sentinel-2 scene; none of its pixels will have an embedding")
            continue
        if not _radar(counts):
            said.append(f"tile {name}: no Sentinel-1 scene; embeddings are computed without radar")
        if empty := counts["months_without"][S2]:
            said.append(f"tile {name}: no Sentinel-2 date in {', '.join(empty)}")
    return said


def _kind(scene: Scene) -> str:
    return S2 if scene.sensor == S2 else f"{S1} {scene.orbit}"


def _months(period: Period) -> Iterable[str]:
    day = period.start
    while day <= period.end:
        yield f"{day:%Y-%m}"
        day = (day.replace(day=1) + dt.timedelta(days=32)).replace(day=1)


def _radar(counts: Mapping[str, Any]) -> int:
    return int(sum(counts[kind] for kind in KINDS[1:]))


def _lacks(counts: Mapping[str, Any]) -> bool:
    return not counts[S2] or not _radar(counts) or bool(counts["months_without"][S2])


def _dates(counts: Mapping[str, Any], kinds: Sequence[str]) -> int:
    return int(sum(month[kind] for month in counts["months"].values() for kind in kinds))


def _badness(name: str, counts: Mapping[str, Any]) -> tuple[Any, ...]:
    """Sorts the tile with least first: empty months, then radar, then optical dates."""
    return (-len(counts["months_without"][S2]), bool(_radar(counts)), _dates(counts, KINDS[:1]), name)


def _spread(dates: Sequence[int]) -> dict[str, float]:
    return {"median": statistics.median(dates), "fewest": min(dates), "tiles_without": sum(not n for n in dates)}
