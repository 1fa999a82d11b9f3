"""The report: one page about an output folder that a browser shows without a server or a network."""

import base64
import dataclasses
import warnings
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.io import MemoryFile

from model.errors import BadInput
from pipeline.network import network_of, told
from pipeline.report_copy import local_copy
from pipeline.report_facts import (
    DONE,
    FAILED,
    MISSING,
    STAGES,
    Facts,
    Record,
    RunFacts,
    TileFacts,
    facts_of,
)
from pipeline.report_map import (
    WIDTH,
    Frame,
    frame_of,
    graticule,
    land_path,
    locator_corner,
    locator_path,
    path_of,
    picture_matrix,
)
from transforms.disk_store import LocalStore
from transforms.grid import TILE_PX, footprint, tile_of
from transforms.stac_geometry import bbox_of, geometry_of
from transforms.storage import open_store

PAGE = "_runs/report.html"  # beside the clocks that it shows: all else in an output is the same in every run
CARDS = 200  # tiles, above which they become rows of a table
TABLE_ROWS = 20_000
FAILURE_ROWS = 2_000
PICTURE_BYTES = 9_000_000  # of all pictures; 12 MB in base64, so that the page stays under 20
MAP_PICTURES = 40  # tiles, above which the map is too small for pictures
LABELLED = 40  # tiles, above which their names would cover each other
DRAWN_BLOCKS = 400  # of a tile, above which they are smaller than a dot
_PNG = b"\x89PNG\r\n\x1a\n"

_STATUS_WORDS = {DONE: "done", FAILED: "failed", MISSING: "not finished"}


@dataclasses.dataclass(frozen=True)
class Segment:
    """A part of a stacked bar. `name`: also of its colour; `share`: 0 to 1."""

    name: str
    label: str
    amount: float
    share: float


def segments(parts: list[tuple[str, str, float]]) -> list[Segment]:
    """(name, label, amount) of what is there as parts of a whole."""
    whole = sum(amount for _, _, amount in parts)
    return [Segment(name, label, amount, amount / whole) for name, label, amount in parts if amount > 0]


def pixel_bar(counts: dict[str, int]) -> list[Segment]:
    """What became of a tile's pixels. `no_radar` is a part of `embedded`."""
    no_radar = counts.get("no_radar", 0)
    return segments(
        [
            ("embedded", "embedded, optical and radar", max(0, counts.get("embedded", 0) - no_radar)),
            ("no-radar", "embedded without radar", no_radar),
            ("no-optical", "no clear optical view", counts.get("no_optical", 0)),
            ("outside", "outside the region", counts.get("outside", 0)),
        ]
    )


def count(n: float) -> str:
    """A number that a person reads at a glance: 950, 12,345, 209 k, 241 M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e5, "k")):
        if n >= limit:
            value = n / (limit if unit != "k" else 1e3)
            return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"
    return f"{n:,.0f}" if n >= 10 or float(n).is_integer() else f"{n:.2g}"


def duration(seconds: float) -> str:
    """12.3 s, 2 min 14 s, 3 h 5 min, 4 d 2 h."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def size(n_bytes: float) -> str:
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n_bytes >= limit:
            return f"{n_bytes / limit:.3g} {unit}"
    return f"{n_bytes:.0f} B"


def share(value: float) -> str:
    """A percentage that says 100 or 0 only where it is that."""
    if 0 < value < 0.001:
        return "< 0.1 %"
    if 0.999 < value < 1:
        return "> 99.9 %"
    return f"{100 * value:.3g} %"


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


class _Album:
    """Pictures within a budget: those that come first get in."""

    def __init__(self) -> None:
        self.left_bytes = PICTURE_BYTES

    def uri(self, png: bytes) -> str:
        if not png.startswith(_PNG) or len(png) > self.left_bytes:
            return ""
        self.left_bytes -= len(png)
        return _data_uri(png)


def _thumbnail(facts: Facts, tile: TileFacts) -> bytes:
    path = facts.out / tile.asset_path("thumbnail")
    return path.read_bytes() if tile.asset_path("thumbnail") and path.is_file() else b""


def _map_picture(facts: Facts, tile: TileFacts, side_px: int) -> bytes:
    """The preview as a small PNG of the whole tile; the thumbnail would not do, for it is cut to where data are."""
    path = facts.out / tile.asset_path("preview")
    if not tile.asset_path("preview") or not path.is_file():
        return b""
    try:
        with rasterio.open(path) as f:
            pixels = f.read((1, 2, 3), out_shape=(3, side_px, side_px))
    except RasterioIOError:
        return b""
    rgba = np.concatenate([pixels, np.where(pixels.any(0, keepdims=True), 255, 0)]).astype(np.uint8)
    with MemoryFile() as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a picture for a page has no place on Earth
        with memory.open(driver="PNG", height=side_px, width=side_px, count=4, dtype="uint8") as f:
            f.write(rgba)
        return bytes(memory.getbuffer())


def _geometry(tile: TileFacts) -> Record | None:
    if tile.item:
        return dict(tile.item["geometry"])
    try:
        return geometry_of(footprint(tile_of(tile.tile)))
    except BadInput:
        return None  # a folder of somebody's own beside ours is no reason to fail


def _map(facts: Facts, album: _Album) -> Record | None:
    """What the template draws: every tile once, with the worst status of its periods."""
    rank = (FAILED, MISSING, DONE)
    tiles: dict[str, list[TileFacts]] = {}
    for tile in facts.tiles:
        tiles.setdefault(tile.tile, []).append(tile)
    places = {name: g for name, periods in tiles.items() if (g := _geometry(periods[0])) is not None}
    if not places:
        return None
    frame = frame_of(bbox_of(g) for g in places.values())
    labels = {name: _label_place(geometry, frame) for name, geometry in places.items()}
    shapes, pictures = [], []
    for name, geometry in places.items():
        periods = tiles[name]
        shapes.append(
            {
                "path": path_of(geometry, frame),
                "name": name,
                "anchor": periods[0].anchor,
                "status": min((t.status for t in periods), key=rank.index),
                "title": f"{name}: " + ", ".join(f"{t.period} {_STATUS_WORDS[t.status]}" for t in periods),
                "label": labels[name],
            }
        )
        if len(places) <= MAP_PICTURES:
            side_px = 366 if len(places) <= 6 else 183
            if uri := album.uri(
                _map_picture(facts, next((t for t in periods if t.status == DONE), periods[0]), side_px)
            ):
                pictures.append({"uri": uri, "matrix": picture_matrix(tile_of(name), frame)})
    meridians, parallels = graticule(frame)
    centre_lon, centre_lat = (frame.west + frame.east) / 2, (frame.south + frame.north) / 2
    return {
        "width": WIDTH,
        "height": frame.height,
        "shapes": shapes,
        "pictures": pictures,
        "labelled": len(shapes) <= LABELLED,
        "land": land_path(frame),
        "meridians": meridians,
        "parallels": parallels,
        "locator": locator_path() if frame.east - frame.west < 120 else "",
        "corner": locator_corner(labels.values()),
        "locator_at": ((centre_lon + 180) % 360, 90 - centre_lat),
    }


def _label_place(geometry: Record, frame: Frame) -> tuple[float, float]:
    """Per cent of the map's width and height."""
    west, south, east, north = bbox_of(geometry)
    middle = west + ((east - west) % 360) / 2
    x, y = frame.place(middle, (south + north) / 2)
    return round(100 * x / WIDTH, 2), round(100 * y / frame.height, 2)


def _card(facts: Facts, tile: TileFacts, album: _Album) -> Record:
    embedded = tile.counts.get("embedded", 0)
    wanted = embedded + tile.counts.get("no_optical", 0)
    properties = (tile.item or {}).get("properties", {})
    uri = album.uri(_thumbnail(facts, tile))
    return {
        "tile": tile,
        "status": tile.status,
        "word": _STATUS_WORDS[tile.status],
        "picture": uri,
        "blocks": tile.blocks if not uri and len(tile.blocks) <= DRAWN_BLOCKS else [],
        "bar": pixel_bar(tile.counts),
        "made": sum(b.done for b in tile.blocks),
        "failed": sum(not b.done for b in tile.blocks),
        "share": embedded / wanted if wanted else 0.0,
        "tokens": tile.tokens / embedded if embedded else 0.0,
        "devices": properties.get("emb:runtime_parameters", {}).get("device_kinds", []),
        "revision": properties.get("tessera:revision", "")[:8],
        "clip": properties.get("tessera:clip"),
        "files": {key: tile.asset_path(key) for key in ("embeddings", "scales", "scenes") if tile.asset_path(key)},
    }


def _run(run: RunFacts) -> Record:
    labels = {"read": "reading", "build": "building d-pixels", "encode": "encoding", "write": "writing"}
    return {
        "run": run,
        "bar": segments([(stage, labels[stage], run.stages_s[stage]) for stage in STAGES]),
        "devices": sorted(run.devices),
        "interrupted": not run.record.get("ended"),
        "network": network_of(run.network),
    }


def _product(facts: Facts) -> Record:
    """What is said once of the whole folder: from the collection, or from an item or a run where it is not there."""
    collection = facts.collection
    item = next((t.item for t in facts.tiles if t.item), None) or {}
    properties = item.get("properties", {})
    product = collection.get("tessera:product", {})
    last_run = facts.runs[-1].record if facts.runs else {}
    return {
        "title": collection.get("title") or "TESSERA embeddings",
        "model": product.get("model") or properties.get("tessera:model") or str(last_run.get("model") or ""),
        "model_sha256": product.get("model_sha256") or properties.get("tessera:model_sha256", ""),
        "profile": product.get("profile") or properties.get("tessera:profile", ""),
        "profile_digest": product.get("profile_digest") or properties.get("tessera:profile_digest", ""),
        "dims": product.get("dimensions") or properties.get("tessera:dimensions") or 0,
        "overlap": product.get("overlap") or properties.get("tessera:overlap", ""),
        "sources": sorted({s for t in facts.tiles if t.item for s in t.item["properties"].get("tessera:sources", [])}),
        "periods": sorted({t.period for t in facts.tiles}),
        "devices": sorted({d for r in facts.runs for d in r.devices}),
        "licence": collection.get("license", ""),
        "software": properties.get("processing:version", ""),
        "size_bytes": sum(t.size_bytes for t in facts.tiles),
    }


def _example(facts: Facts, dims: int) -> Record | None:
    """A published tile for the page's code: files, item, and a small box in its middle."""
    tile = next((t for t in facts.tiles if t.asset_path("embeddings") and t.asset_path("scales")), None)
    if tile is None or tile.item is None:
        return None
    west, south, east, north = tile.item["bbox"]
    lon, lat = west + ((east - west) % 360) / 2, (south + north) / 2
    return {
        "embeddings": tile.asset_path("embeddings"),
        "scales": tile.asset_path("scales"),
        "item": tile.item_path,
        "dims": dims,
        "middle_px": TILE_PX // 2,
        "bbox": [round(v, 4) for v in (lon - 0.01, lat - 0.01, lon + 0.01, lat + 0.01)],
    }


def context_of(facts: Facts) -> dict[str, Any]:
    """All that the template is given."""
    album = _Album()
    product = _product(facts)
    by_status = {s: sum(t.status == s for t in facts.tiles) for s in (DONE, FAILED, MISSING)}
    by_status[MISSING] += facts.unnamed
    seconds, pixels = sum(r.seconds for r in facts.runs), sum(r.pixels for r in facts.runs)
    as_cards = len(facts.tiles) <= CARDS
    totals: dict[str, int] = {}
    for tile in facts.tiles:
        for name, n in tile.counts.items():
            totals[name] = totals.get(name, 0) + n
    map_ = _map(facts, album)
    return {
        "product": product,
        "untrained": product["model"].rpartition("/")[2].startswith("untrained"),
        "for_show": product["model"].rpartition("/")[2].startswith("demo-"),
        "status": by_status,
        "tiles": len(facts.tiles) + facts.unnamed,
        "totals": totals,
        "bar": pixel_bar(totals),
        "blocks": {k: sum(getattr(r, k) for r in facts.runs) for k in ("done", "failed", "again")},
        "seconds": seconds,
        "rate": pixels / seconds if seconds else 0.0,
        "map": map_,
        "cards": [_card(facts, t, album) for t in facts.tiles] if as_cards else [],
        "rows": [] if as_cards else facts.tiles[:TABLE_ROWS],
        "rows_left": 0 if as_cards else max(0, len(facts.tiles) - TABLE_ROWS),
        "warnings": [w for t in facts.tiles for w in t.warnings][:FAILURE_ROWS],
        "warnings_all": sum(len(t.warnings) for t in facts.tiles),
        "failures": facts.failures[:FAILURE_ROWS],
        "failures_all": len(facts.failures),
        "runs": [_run(r) for r in facts.runs],
        "example": _example(facts, product["dims"]),
        "words": _STATUS_WORDS,
        "side_px": TILE_PX,
        "name": facts.out.resolve().name,
    }


def render(facts: Facts) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline"),
        autoescape=True,  # ids, reasons and commands come from catalogues and files of others
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "duration": duration, "size": size, "share": share, "told": told}
    return environment.get_template("report.html.j2").render(context_of(facts))


def report(out_folder: str | Path) -> str:
    """Writes the page into an output folder and returns where it lies.

    The page holds everything that it shows. Pieces that are not there yet are left out, so that an output can be
    looked at while it grows.

    Raises:
      BadInput: not a folder that this project writes.
    """
    store = open_store(str(out_folder))
    if isinstance(store, LocalStore):
        facts = facts_of(store.root, CARDS)
        path = facts.out / PAGE
        path.parent.mkdir(exist_ok=True)
        path.write_text(render(facts), encoding="utf-8")
        return str(Path(str(out_folder).removeprefix("file://")) / PAGE)
    with local_copy(store, CARDS) as folder:
        page = render(facts_of(folder, CARDS))
    store.replace(PAGE, page.encode())
    return f"{store.url}/{PAGE}"
