"""The inventory verbs: freeze the scenes of a run, tell why each is in or out, leave one out on the record."""

import collections
import contextlib
import dataclasses
import datetime as dt
import difflib
import importlib.metadata
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from model.errors import BadInput
from pipeline.coverage import coverage_of, tile_counts, warnings_of
from pipeline.parts import Part, Parts, fingerprint
from pipeline.search_progress import Searched
from transforms import grid
from transforms.catalogs.api import ApiCatalog
from transforms.catalogs.crew import Crew
from transforms.catalogs.hrefs import is_remote
from transforms.catalogs.items import Found, Record, record_of, utc_text
from transforms.catalogs.search import Catalog, open_catalog
from transforms.catalogs.selection import select
from transforms.inventory import Inventory, InventoryWriter, SourceRecord, read_header, read_tile
from transforms.periods import Period
from transforms.scenes import S2, Scene

Progress = Callable[[Searched], None]
TILES_AHEAD = 2  # for each one that is searched: found before their turn to be written, and held until then
ENDING_S = 3.0  # for threads that are in the middle of something when a build is given up


def build(
    catalogs: Sequence[tuple[str, str | None]],
    period: Period,
    tiles: Iterable[str],
    out: str | Path,
    region_note: str | None = None,
    now: dt.datetime | None = None,
    progress: Progress | None = None,
    command: str = "",
    say: Callable[[str], None] = lambda _line: None,
) -> dict[str, Any]:
    """Searches the catalogues, several tiles at once, and writes the inventory in the order of tiles.

    What is found stays beside `out` until the inventory is complete: the same call goes on after a crash or a kill.

    Args:
      catalogs: (what `search.open_catalog` takes, provider whose description the items follow or None).
      tiles: MGRS names. region_note: how they were chosen, for the record.
      now: the freeze time; by default the clock's, when the first of the builds began that this one goes on with.
      command: that begins this build again, for messages. say: is told what a person should know meanwhile.

    Returns:
      The summary: `inventory, period, digest, frozen`; `tiles`: `coverage.tile_counts` of each; `coverage`: over all
      tiles; `dropped`: scenes by kind of reason; `ignored`: items that belong to no source; `kept_tiles`: done by
      earlier builds; `asked`: per API what it took; `warnings`: in words.

    Raises:
      BadInput: an unknown tile or catalogue, a catalogue that fails for good, two catalogues that give one source from
        different roots, or a search that finds no optical scene for any tile.
    """
    if not catalogs:
        raise BadInput("no catalogue: give --catalog a provider, a URL or a path")
    wanted = [grid.tile_of(name) for name in sorted(set(tiles))]
    if not wanted:
        raise BadInput("no tiles: give --tiles, --bbox, --region or --land")
    opened = [open_catalog(text, provider) for text, provider in catalogs]
    parts = Parts(out, _arguments(catalogs, opened, period), utc_text(now or dt.datetime.now(dt.UTC)))
    if parts.dropped:
        say(f"{out}: what an earlier build with other arguments had found is dropped")
    elif len(parts):
        say(f"{out}: goes on with the build of {parts.frozen}; {len(parts)} tiles were searched then")
    at_once = max(int(getattr(c, "tiles_at_once", 1)) for c in opened)
    crew = Crew(at_once, "tile")
    search = _TileSearch(opened, period, parts)
    complete = False
    try:
        found = crew.ahead(search, wanted, at_once * TILES_AHEAD)
        frozen = parts.frozen if now is None else utc_text(now)
        written = _written(
            InventoryWriter(out, period, frozen, region_note or ""), found, len(wanted), period, progress
        )
        complete = True
        if written.inventory is None:
            raise BadInput(_nothing(opened, period, [t.name for t in wanted], written.dropped, written.ignored))
    except BadInput as e:
        if complete or not len(parts):
            raise
        again = f"to go on: {command}" if command else "the same call goes on from there"
        raise BadInput(f"{e}; {len(parts)} of {len(wanted)} tiles are done and kept, {again}") from None
    finally:
        for catalog in opened:
            getattr(catalog, "stop", lambda: None)()
        crew.stop(ENDING_S)
        parts.close(remove=complete)
    return {
        "inventory": str(out),
        "period": period.name,
        "digest": written.inventory.digest,
        "frozen": frozen,
        "tiles": written.tiles,
        "coverage": coverage_of(written.tiles),
        "dropped": dict(sorted(written.dropped.items())),
        "ignored": dict(sorted(_ignored(opened, written.ignored).items())),
        "kept_tiles": written.kept_tiles,
        "asked": {c.text: c.asked() for c in opened if isinstance(c, ApiCatalog)},
        "warnings": [*period.warnings, *warnings_of(written.tiles)],
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


class _TileSearch:
    """Searches a tile: called from several threads."""

    def __init__(self, catalogs: Sequence[Catalog], period: Period, parts: Parts) -> None:
        self._catalogs, self._period, self._parts = catalogs, period, parts
        # A catalogue that does not say that it can give several tiles at once gives one after the other.
        self._locks = [None if hasattr(c, "tiles_at_once") else threading.Lock() for c in catalogs]

    def __call__(self, tile: grid.Tile) -> Part:
        """What an earlier build found, else what the catalogues give, which is then kept."""
        if (kept := self._parts.load(tile.name)) is not None:
            return kept
        sources: dict[str, SourceRecord] = {}
        ignored: collections.Counter[str] = collections.Counter()
        scenes = select(self._records(tile, sources))
        for catalog in self._catalogs:
            if isinstance(catalog, ApiCatalog):
                ignored.update(catalog.ignored_under(tile.name))
        part = Part(tile.name, scenes, tuple(sources.values()), ignored)
        self._parts.save(part)
        return part

    def _records(self, tile: grid.Tile, sources: dict[str, SourceRecord]) -> Iterator[Record]:
        for catalog, lock in zip(self._catalogs, self._locks, strict=True):
            for found in _listed(catalog, lock, tile, self._period):
                record = record_of(found, tile, catalog.root)
                if record is not None:
                    _join(sources, SourceRecord(found.source.name, catalog.root, catalog.text))
                    yield record


def _listed(
    catalog: Catalog, lock: contextlib.AbstractContextManager[Any] | None, tile: grid.Tile, period: Period
) -> Iterable[Found]:
    if lock is None:
        return catalog.items(tile, period)
    with lock:
        return list(catalog.items(tile, period))


def _join(sources: dict[str, SourceRecord], new: SourceRecord) -> None:
    """Raises BadInput where the source has another root already."""
    entry = sources.setdefault(new.name, new)
    if entry.root != new.root:
        raise BadInput(
            f"catalogues {entry.catalog} and {new.catalog} both hold {new.name}: an inventory has one root for "
            "a source; join the folders, or give one of them"
        )


@dataclasses.dataclass
class _Written:
    """What was written: the summary of `build` in the making; no inventory where no tile has an optical scene."""

    tiles: dict[str, Any] = dataclasses.field(default_factory=dict)
    dropped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    ignored: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    kept_tiles: int = 0
    inventory: Inventory | None = None


def _written(
    into: InventoryWriter, found: Iterable[Part], tiles: int, period: Period, progress: Progress | None
) -> _Written:
    """Takes the parts as they come, in the order of tiles; one at a time is held here."""
    said, sources, scenes = _Written(), dict[str, SourceRecord](), 0
    with into as writer:
        for part in found:
            for source in part.sources:
                _join(sources, source)
            writer.add(part.tile, part.scenes)
            said.tiles[part.tile] = tile_counts(part.scenes, period)
            said.dropped.update(_kind(s.dropped_reason) for s in part.scenes if not s.kept)
            said.ignored.update(part.ignored)
            said.kept_tiles += part.kept
            scenes += len(part.scenes)
            if progress is not None:
                progress(Searched(len(said.tiles), tiles, said.kept_tiles, part.tile, scenes))
        if any(counts[S2] for counts in said.tiles.values()):
            said.inventory = writer.finish(sources.values())
    return said


def _arguments(catalogs: Sequence[tuple[str, str | None]], opened: Sequence[Catalog], period: Period) -> list[Any]:
    """All that decides what is found for a tile; not which tiles are wanted, so that more of them may join."""
    files = [None if is_remote(c.root) else fingerprint(c.text) for c in opened]
    roots = [c.root for c in opened]
    return [importlib.metadata.version("tessera-beam"), period.name, [list(c) for c in catalogs], roots, files]


def _ignored(catalogs: Sequence[Catalog], of_tiles: Mapping[str, int]) -> collections.Counter[str]:
    """Items that were passed over: APIs tell them tile by tile, other catalogues at once."""
    said = collections.Counter(of_tiles)
    for catalog in catalogs:
        if not isinstance(catalog, ApiCatalog):
            said.update(catalog.ignored)
    return said


def _kind(reason: str) -> str:
    return reason.partition(":")[0]


def _nothing(
    catalogs: Sequence[Catalog],
    period: Period,
    tiles: Sequence[str],
    reasons: Mapping[str, int],
    of_tiles: Mapping[str, int],
) -> str:
    few = ", ".join(tiles[:5]) + (f" and {len(tiles) - 5} more" if len(tiles) > 5 else "")
    said = f"period {period.name}: no usable Sentinel-2 scene of {few}"
    if reasons:
        said += "; left out: " + ", ".join(f"{n} for {kind}" for kind, n in sorted(reasons.items()))
    for catalog in catalogs:
        passed_over = of_tiles if isinstance(catalog, ApiCatalog) else catalog.ignored
        ignored = ", ".join(f"{n} items of {what}" for what, n in sorted(passed_over.items()))
        has = f"has {catalog.span()}" if catalog.span() else "has nothing there"
        said += f"; {catalog.text} {has}" + (f" (passed over: {ignored})" if ignored else "")
    return f"{said}; choose another period, other tiles or another catalogue"


def _tiles_with(header: Inventory, ids: set[str]) -> list[str]:
    """The tiles under which these scenes stand, from the id column alone.

    Raises:
      BadInput: an id that is nowhere; the message names the closest ones.
    """
    found, everything = list[str](), set[str]()
    with pq.ParquetFile(header.path) as file:
        for batch in file.iter_batches(columns=["tile", "id"]):
            for tile, scene_id in zip(batch["tile"].to_pylist(), batch["id"].to_pylist(), strict=True):
                everything.add(scene_id)
                if scene_id in ids and (not found or found[-1] != tile):
                    found.append(tile)
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
