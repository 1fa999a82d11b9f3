"""The inventory verbs: freeze the scenes of a run, tell why each is in or out, leave one out on the record."""

import collections
import dataclasses
import datetime as dt
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from model.errors import BadInput
from transforms import grid
from transforms.catalogs.items import record_of, utc_text
from transforms.catalogs.search import Catalog, open_catalog
from transforms.catalogs.selection import select
from transforms.inventory import Inventory, InventoryWriter, SourceRecord, read_header, read_tile
from transforms.periods import Period
from transforms.scenes import ASCENDING, DESCENDING, S1, S2, Scene

Progress = Callable[[int, int, str], None]  # tiles done, tiles in all, the one just done


def build(
    catalogs: Sequence[tuple[str, str | None]],
    period: Period,
    tiles: Iterable[str],
    out: str | Path,
    region_note: str | None = None,
    now: dt.datetime | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Searches the catalogues tile by tile and writes the inventory.

    Args:
      catalogs: (what `search.open_catalog` takes, provider whose description the items follow or None).
      tiles: MGRS names. region_note: how they were chosen, for the record.
      now: the freeze time; the clock's by default.

    Returns:
      The summary: `inventory, period, digest, frozen`; `tiles`: per tile the kept scenes by sensor and orbit, how many
      are `dropped`, and `months`: dates with a kept scene; `dropped`: scenes by kind of reason; `ignored`: items that
      belong to no source; `warnings`: in words.

    Raises:
      BadInput: an unknown tile or catalogue, two catalogues that give one source from different roots, or a search
        that finds no optical scene for any tile.
    """
    if not catalogs:
        raise BadInput("no catalogue: give --catalog a provider, a URL or a path")
    wanted = [grid.tile_of(name) for name in sorted(set(tiles))]
    if not wanted:
        raise BadInput("no tiles: give --tiles, --bbox, --region or --land")
    opened = [open_catalog(text, provider) for text, provider in catalogs]
    frozen = utc_text(now or dt.datetime.now(dt.UTC))
    sources: dict[str, SourceRecord] = {}
    reasons: collections.Counter[str] = collections.Counter()
    summary: dict[str, Any] = {}
    with InventoryWriter(out, period, frozen, region_note or "") as writer:
        for done, tile in enumerate(wanted, start=1):
            scenes = select(_records(opened, tile, period, sources))
            writer.add(tile.name, scenes)
            summary[tile.name] = _counts(scenes, period)
            reasons.update(_kind(s.dropped_reason) for s in scenes if not s.kept)
            if progress is not None:
                progress(done, len(wanted), tile.name)
        if not any(counts[S2] for counts in summary.values()):
            raise BadInput(_nothing(opened, period, [t.name for t in wanted], reasons))
        inventory = writer.finish(sources.values())
    return {
        "inventory": str(out),
        "period": period.name,
        "digest": inventory.digest,
        "frozen": frozen,
        "tiles": summary,
        "dropped": dict(sorted(reasons.items())),
        "ignored": {k: n for catalog in opened for k, n in sorted(catalog.ignored.items())},
        "warnings": _warnings(summary),
    }


def explain(inv: str | Path, scene_id: str) -> dict[str, Any]:
    """Every decision about a scene, for each tile that it stands under.

    Returns:
      `scene`; `tiles`: per tile the row as JSON; `text`: the same in words.

    Raises:
      BadInput: no such scene; the message names the closest ids.
    """
    header = read_header(inv)
    rows = _tiles_with(header, {scene_id})
    scenes = [s for tile in rows for s in read_tile(inv, tile) if s.id == scene_id]
    text = "\n".join(line for scene in scenes for line in _story(scene, header))
    return {"scene": scene_id, "tiles": [dataclasses.asdict(s) for s in scenes], "text": text}


def amend(inv: str | Path, drops: Sequence[tuple[str, str | None]], reason: str, out: str | Path) -> dict[str, Any]:
    """Writes `inv` anew without some scenes or bands, with the reason on the record; `inv` itself stays as it is.

    An optical scene needs all its bands and goes as a whole; a radar scene keeps its other polarisation.

    Args:
      drops: (scene, band or None for the whole scene).

    Returns:
      The summary: `inventory, digest`, and `amended`: what was left out, in words.

    Raises:
      BadInput: no drops or no reason, a scene or band that is not there or already left out, or `out` is `inv`.
    """
    header = read_header(inv)
    if not drops or not reason.strip():
        raise BadInput("an amendment needs --drop SCENE[:BAND] and --reason TEXT")
    if Path(out).resolve() == Path(inv).resolve():
        raise BadInput(f"--out {out} is the inventory itself; amendments go into a new file")
    touched = set(_tiles_with(header, {scene for scene, _ in drops}))
    done: dict[str, None] = {}  # a set that remembers the order
    with InventoryWriter(out, header.period, header.frozen, header.region) as writer:
        for tile in header.tiles:
            scenes = read_tile(inv, tile)
            for scene_id, band in drops if tile in touched else ():
                scenes = [_amended(s, band, reason.strip(), done) if s.id == scene_id else s for s in scenes]
            writer.add(tile, scenes)
        amended = writer.finish(header.sources, (*header.amendments, *done))
    return {"inventory": str(out), "digest": amended.digest, "amended": list(done)}


def _records(
    catalogs: Sequence[Catalog], tile: grid.Tile, period: Period, sources: dict[str, SourceRecord]
) -> Iterable[Any]:
    for catalog in catalogs:
        for found in catalog.items(tile, period):
            record = record_of(found, tile, catalog.root)
            if record is None:
                continue
            name = found.source.name
            entry = sources.setdefault(name, SourceRecord(name, catalog.root, catalog.text))
            if entry.root != catalog.root:
                raise BadInput(
                    f"catalogues {entry.catalog} and {catalog.text} both hold {name}: an inventory has one root for "
                    "a source; join the folders, or give one of them"
                )
            yield record


def _counts(scenes: Sequence[Scene], period: Period) -> dict[str, Any]:
    """What the summary says of a tile; a month without a date is listed with 0."""
    kept = [s for s in scenes if s.kept]
    days = {(s.sensor, s.day) for s in kept}
    months = {}
    day = period.start
    while day <= period.end:
        months[f"{day:%Y-%m}"] = {S2: 0, S1: 0}
        day = (day.replace(day=1) + dt.timedelta(days=32)).replace(day=1)
    for sensor, day in days:
        months[f"{day:%Y-%m}"][sensor] += 1
    return {
        S2: sum(s.sensor == S2 for s in kept),
        **{f"{S1} {o}": sum(s.orbit == o for s in kept if s.sensor == S1) for o in (ASCENDING, DESCENDING)},
        "dropped": len(scenes) - len(kept),
        "months": months,
    }


def _kind(reason: str) -> str:
    return reason.partition(":")[0]


def _warnings(tiles: Mapping[str, Mapping[str, Any]]) -> list[str]:
    said = []
    for name, counts in tiles.items():
        if not counts[S2]:
            said.append(f"tile {name}: no Sentinel-2 scene; none of its pixels will have an embedding")
            continue
        if not counts[f"{S1} {ASCENDING}"] + counts[f"{S1} {DESCENDING}"]:
            said.append(f"tile {name}: no Sentinel-1 scene; embeddings are computed without radar")
        if empty := [month for month, dates in counts["months"].items() if not dates[S2]]:
            said.append(f"tile {name}: no Sentinel-2 date in {', '.join(empty)}")
    return said


def _nothing(catalogs: Sequence[Catalog], period: Period, tiles: Sequence[str], reasons: Mapping[str, int]) -> str:
    few = ", ".join(tiles[:5]) + (f" and {len(tiles) - 5} more" if len(tiles) > 5 else "")
    said = f"period {period.name}: no usable Sentinel-2 scene of {few}"
    if reasons:
        said += "; left out: " + ", ".join(f"{n} for {kind}" for kind, n in sorted(reasons.items()))
    for catalog in catalogs:
        ignored = ", ".join(f"{n} items of {what}" for what, n in sorted(catalog.ignored.items()))
        has = f"has {catalog.span()}" if catalog.span() else "has nothing there"
        said += f"; {catalog.text} {has}" + (f" (passed over: {ignored})" if ignored else "")
    return f"{said}; choose another period, other tiles or another catalogue"


def _tiles_with(header: Inventory, ids: set[str]) -> list[str]:
    """The tiles under which these scenes stand, from the id column alone.

    Raises:
      BadInput: an id that is nowhere; the message names the closest ones.
    """
    found, everything = [], set()
    filled = [t for t in header.tiles if header.counts[t].rows]
    with pq.ParquetFile(header.path) as file:
        for group, tile in enumerate(filled):
            here = set(file.read_row_group(group, columns=["id"])["id"].to_pylist())
            if ids & here:
                found.append(tile)
            everything |= here
    for scene_id in sorted(ids - everything):
        near = difflib.get_close_matches(scene_id, sorted(everything), n=3, cutoff=0.4)
        hint = f"; the closest are {', '.join(near)}" if near else ""
        raise BadInput(f"{header.path}: no scene {scene_id}{hint}")
    return found


def _amended(scene: Scene, band: str | None, reason: str, done: dict[str, None]) -> Scene:
    if not scene.kept:
        raise BadInput(f"scene {scene.id} is left out already: {scene.dropped_reason}")
    if band is not None and scene.asset(band) is None:
        raise BadInput(f"scene {scene.id} has no band {band}; it has {', '.join(a.band for a in scene.assets)}")
    others = tuple(a for a in scene.assets if a.band != band)
    if band is None or scene.sensor == S2 or not others:
        what = f"{scene.id}" + (f" (for its band {band})" if band else "")
        done[f"{what}: {reason}"] = None
        said = f"amended: {reason}" + (f" (band {band})" if band else "")
        return dataclasses.replace(scene, kept=False, dropped_reason=said)
    done[f"{scene.id}, band {band}: {reason}"] = None
    return dataclasses.replace(scene, assets=others, dropped_reason=f"amended: {reason} (band {band})")


def _story(scene: Scene, header: Inventory) -> list[str]:
    """A scene in words."""
    orbit = " ".join(str(v) for v in (scene.orbit, scene.relative_orbit) if v not in ("", None))
    rule = "datetime ascending" if scene.sensor == S2 else "datetime descending"
    lines = [
        f"{scene.id} over tile {scene.tile}",
        f"  source      {scene.source}, read from {header.roots.get(scene.source, 'the addresses of its assets')}",
        f"  taken       {scene.datetime} by {scene.platform or 'an unnamed platform'}, orbit {orbit or 'not said'}",
        f"  order       {scene.order} of the tile's {scene.sensor} scenes ({rule}, ties by id)",
    ]
    if scene.sensor == S2:
        cloud = "not said" if scene.cloud_cover is None else f"{scene.cloud_cover:g} %"
        lines += [
            f"  processed   baseline {scene.baseline or 'not said'}, {scene.generated or 'time not said'}",
            f"  clouds      {cloud}",
            f"  datatake    {scene.datatake or 'not said'}",
        ]
    lines.append(f"  offset      {scene.offset_dn} DN: {scene.offset_reason}")
    lines.append(f"  assets      {', '.join(a.band for a in scene.assets) or 'none'}")
    if not scene.kept:
        lines.append(f"  left out    {scene.dropped_reason}")
    elif scene.dropped_reason:
        lines.append(f"  kept, less  {scene.dropped_reason}")
    else:
        lines.append("  kept")
    return lines
