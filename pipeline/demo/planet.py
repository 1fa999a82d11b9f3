"""Planet: a small synthetic Earth on disk, as STAC catalogues and sparse COGs, and the truth about it.

One island of about 3 km in the common corner of 32TQR, 32TQQ and 33TUL; outside of it the files are empty. They have
the catalogues' own dimensions and block sizes, and no overviews, which the real ones have: nothing here reads them.
"""

import concurrent.futures
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.errors import BadInput
from pipeline.demo import items, sensors
from pipeline.demo.files import write_plane
from pipeline.demo.items import S1_COLLECTION, S2_COLLECTION, Frame
from pipeline.demo.passes import OpticalPass, RadarPass, optical, radar
from pipeline.demo.sensors import BANDS_10M, BANDS_20M, OFFSET_DN, S1_NODATA, Ground, Mask, Optical
from transforms.cog import Layout
from transforms.grid import PIXEL_M, TILE_PX, Tile, tile_of

FORMAT = "tessera-beam/planet"
VERSION = 1  # raised when any byte of a planet changes
MARKER = "planet.json"
TILES = ("32TQQ", "32TQR", "33TUL")
SIZE_M = 3200
S2_BLOCK_PX = 1024  # internal tiles of Earth Search's COGs
S1_BLOCK_PX = 512  # and of Planetary Computer's RTC
# Small islands are for tests: compressing what is empty in large blocks would take most of their time.
_SMALL_M, _SMALL_BLOCK_PX = 1600, 256

Window = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Planet:
    """A planet on disk and what is true of it.

    Windows are (row, col, height, width) in pixels of 10 m from the tile's corner; None is the tile's whole island.

    Attributes:
      folder: holds `catalog.json`.
      seed: of weather, noise and speckle; the landscape is always the same.
      size_m: side of the island, a square in UTM zone 32; a smaller island is the middle of a larger one.
      tiles: which tiles have Sentinel-2 products.
    """

    folder: Path
    seed: int
    size_m: int
    tiles: tuple[str, ...]

    @property
    def catalog(self) -> Path:
        return self.folder / "catalog.json"

    @functools.cached_property
    def optical(self) -> tuple[OpticalPass, ...]:
        """The Sentinel-2 passes by time. A tile has no product of a pass that names it in `left_out`."""
        return optical(self.seed)

    @functools.cached_property
    def radar(self) -> tuple[RadarPass, ...]:
        """The Sentinel-1 scenes by time."""
        return radar()

    @property
    def bbox(self) -> tuple[float, float, float, float]:
        """West, south, east, north of the island in degrees."""
        west, south, east, north = items.lonlat_shape(sensors.island(self.size_m)).bounds
        return west, south, east, north

    def island(self, tile: str) -> Window:
        """The window that holds the island, on whole pixels of 20 m; in zone 33 its corners lie outside of the island.

        Raises:
          BadInput: not a tile of this planet.
        """
        where = self._tile(tile)
        here = self._ground(tile)
        row, col = (where.top_m - here.top_m) // PIXEL_M, (here.left_m - where.left_m) // PIXEL_M
        return row, col, *here.inside.shape

    def s2_ids(self, tile: str) -> dict[str, OpticalPass]:
        """Ids of the tile's Sentinel-2 items, by time."""
        self._tile(tile)
        return {items.s2_id(tile, visit): visit for visit in self.optical if tile not in visit.left_out}

    def s1_ids(self) -> dict[str, RadarPass]:
        """Ids of the Sentinel-1 items, by time. Ascending scenes lie in zone 32, descending ones in zone 33."""
        return {items.s1_id(scene): scene for scene in self.radar}

    def offset_dn(self, item_id: str) -> int:
        """What the files of an item have on top of reflectance x 10,000: 1000 for Sentinel-2, 0 for Sentinel-1.

        Raises:
          BadInput: no item of this planet.
        """
        if item_id in self.s1_ids():
            return 0
        if any(item_id in self.s2_ids(tile) for tile in self.tiles):
            return OFFSET_DN
        raise BadInput(f"item {item_id!r}: this planet has none of that name")

    def class_map(self, tile: str, window: Window | None = None) -> npt.NDArray[np.uint8]:
        """(height, width) uint8 of `landscape.Cover`; 0 outside the island, as the optical products see its edge."""
        here = self._ground(tile)
        return self._cut(tile, np.where(sensors.doubled(here.inside20), here.cover, 0).astype(np.uint8), window)

    def clear(self, tile: str, item_id: str, window: Window | None = None) -> Mask:
        """(height, width) bool: where the product saw the ground, by the classes that the v2 profile lets through.

        False outside the swath and the island, under thick cloud and its shadow, in the dark and where saturated.

        Raises:
          BadInput: not a tile of this planet, or not an item of that tile.
        """
        ids = self.s2_ids(tile)
        if item_id not in ids:
            raise BadInput(f"item {item_id!r}: not a Sentinel-2 item of {tile}; the first one is {next(iter(ids))}")
        return self._cut(tile, self._seen(tile, ids[item_id]).clear, window)

    def observations(self, tile: str, year: int, window: Window | None = None) -> npt.NDArray[np.uint16]:
        """(height, width) uint16: dates of the year on which at least one usable product saw the pixel.

        A product that is all cloud counts for nothing, and an older processing of a datatake neither.
        """
        by_date: dict[object, Mask] = {}
        for visit in self.s2_ids(tile).values():
            day = visit.datatake.date()
            seen = self._seen(tile, visit)
            if day.year == year and not visit.bias_dn and seen.cloud_cover < 100:
                by_date[day] = by_date[day] | seen.clear if day in by_date else seen.clear
        return self._cut(tile, np.asarray(np.sum(list(by_date.values()), axis=0, dtype=np.uint16)), window)

    def _tile(self, tile: str) -> Tile:
        if tile not in self.tiles:
            raise BadInput(f"tile {tile}: this planet has {', '.join(self.tiles)}")
        return tile_of(tile)

    def _ground(self, tile: str) -> Ground:
        return sensors.ground(self._tile(tile).epsg, self.size_m)

    def _seen(self, tile: str, visit: OpticalPass) -> Optical:
        return sensors.see_optical(self._ground(tile), visit, self.seed)

    def _cut(self, tile: str, island: npt.NDArray[Any], window: Window | None) -> npt.NDArray[Any]:
        """A window of the tile from an array over its island; zeros around it."""
        top, left, height, width = self.island(tile)
        if window is None:
            return island
        row, col, down, across = window
        out = np.zeros((down, across), island.dtype)
        y0, y1 = max(row, top), min(row + down, top + height)
        x0, x1 = max(col, left), min(col + across, left + width)
        if y0 < y1 and x0 < x1:
            out[y0 - row : y1 - row, x0 - col : x1 - col] = island[y0 - top : y1 - top, x0 - left : x1 - left]
        return out


def build(
    folder: Path,
    seed: int = 0,
    size_m: int = SIZE_M,
    tiles: tuple[str, ...] = TILES,
    report: Callable[[int, int], None] | None = None,
) -> Planet:
    """Builds the planet in `folder`, or takes the one that is there. Equal parameters give equal bytes.

    An island of 3,200 m takes 97 MB and some ten seconds; one of 640 m (for tests) 12 MB and three, with internal
    tiles of 256 px instead of the catalogues' own.

    Args:
      folder: made where it is missing; empty, or of an earlier build.
      size_m: a multiple of 40 up to 3200.
      tiles: of TILES; Sentinel-1 scenes are all built.
      report: called with products done and products in all, from this thread.

    Raises:
      BadInput: parameters out of range, or a folder that holds another planet or something else.
    """
    if not 0 < size_m <= SIZE_M or size_m % 40:
        raise BadInput(f"an island of {size_m} m: it must be a multiple of 40 m, at most {SIZE_M} m")
    if not tiles or not set(tiles) <= set(TILES) or len(set(tiles)) < len(tiles):
        raise BadInput(f"tiles {', '.join(tiles) or 'none'}: a planet has some of {', '.join(TILES)}")
    if not 0 <= seed < 2**31:
        raise BadInput(f"seed {seed}: it must lie in 0..{2**31 - 1}")
    planet = Planet(folder, seed, size_m, tuple(sorted(tiles)))
    said = {"format": FORMAT, "version": VERSION, "seed": seed, "size_m": size_m, "tiles": list(planet.tiles)}
    marker = folder / MARKER
    if _is_there(marker, said):
        return planet
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(marker, said | {"complete": False})
    _write_all(planet, report)
    _write_json(marker, said | {"complete": True})
    return planet


def _is_there(marker: Path, said: Mapping[str, Any]) -> bool:
    """Whether the folder holds this planet whole.

    Raises:
      BadInput: it holds something else.
    """
    folder = marker.parent
    if not marker.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise BadInput(f"{folder} holds other files: name an empty or a new folder for the planet")
        return False
    try:
        found = json.loads(marker.read_text())
    except ValueError:
        raise BadInput(f"{marker} is damaged: remove {folder} and build the planet again") from None
    complete = found.pop("complete", False)
    if found != said:
        differ = ", ".join(f"{k} {found.get(k)} instead of {said[k]}" for k in said if found.get(k) != said[k])
        raise BadInput(f"{folder} holds another planet ({differ}): name another folder, or remove this one")
    return bool(complete)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def _write_all(planet: Planet, report: Callable[[int, int], None] | None) -> None:
    zones = {tile_of(tile).epsg for tile in planet.tiles}
    jobs: list[Callable[[], list[dict[str, Any]]]] = [
        functools.partial(_write_optical, planet, epsg, visit) for visit in planet.optical for epsg in sorted(zones)
    ]
    jobs += [functools.partial(_write_radar, planet, scene) for scene in planet.radar]
    for epsg in sorted(zones | {scene.epsg for scene in planet.radar}):
        sensors.ground(epsg, planet.size_m)  # before the threads, which would each compute it
    records: list[dict[str, Any]] = []
    # Over small arrays threads only take turns at the interpreter: measured, two are slower than one.
    workers = 1 if planet.size_m < _SMALL_M else min(8, os.cpu_count() or 1)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for done, made in enumerate(pool.map(lambda job: job(), jobs), 1):
            records += made
            if report is not None:
                report(done, len(jobs))
    records.sort(key=lambda r: (r["properties"]["datetime"], r["id"]))
    for name in (S2_COLLECTION, S1_COLLECTION):
        mine = [r for r in records if r["collection"] == name]
        _write_json(planet.folder / name / "collection.json", items.collection(name, mine))
    _write_json(planet.catalog, items.catalog((S2_COLLECTION, S1_COLLECTION)))


def _write_optical(planet: Planet, epsg: int, visit: OpticalPass) -> list[dict[str, Any]]:
    """Files and items of one pass for the tiles of a zone, which are cuts of one picture."""
    tiles = [t for t in planet.tiles if tile_of(t).epsg == epsg and t not in visit.left_out]
    if not tiles:
        return []
    here = sensors.ground(epsg, planet.size_m)
    seen = sensors.see_optical(here, visit, planet.seed)
    block_px = S2_BLOCK_PX if planet.size_m >= _SMALL_M else _SMALL_BLOCK_PX
    planes: dict[str, npt.NDArray[np.generic]] = {"SCL": seen.scl}
    planes |= {band: seen.fine[..., i] for i, band in enumerate(BANDS_10M)}
    planes |= {band: seen.coarse[..., i] for i, band in enumerate(BANDS_20M)}
    reach = sensors.optical_reach(visit, planet.size_m)
    records = []
    for tile in tiles:
        where = tile_of(tile)
        folder = planet.folder / S2_COLLECTION / items.s2_id(tile, visit)
        files = {}
        for band, plane in planes.items():
            pixel_m = items.S2_ASSETS[band][-1]
            layout = Layout(
                height_px=TILE_PX * PIXEL_M // pixel_m,
                width_px=TILE_PX * PIXEL_M // pixel_m,
                bands=1,
                dtype=plane.dtype.name,
                tile_px=block_px,
                nodata=0,
                epsg=epsg,
                transform=(pixel_m, 0, where.left_m, 0, -pixel_m, where.top_m),
                codec="deflate",
            )
            row, col = (where.top_m - here.top_m) // pixel_m, (here.left_m - where.left_m) // pixel_m
            files[band] = write_plane(folder / f"{band}.tif", layout, plane, row, col)
        records.append(items.s2_item(tile, visit, reach, seen.scl, files))
        _write_json(folder / f"{folder.name}.json", records[-1])
    return records


def _write_radar(planet: Planet, scene: RadarPass) -> list[dict[str, Any]]:
    """Files and item of one scene."""
    here = sensors.ground(scene.epsg, planet.size_m)
    power = sensors.see_radar(here, scene, planet.seed)
    # Every scene has a frame of its own, as real ones have: smaller than theirs (13,000 x 28,000), larger than a tile.
    row, col = 4100 + 37 * scene.number, 5200 + 53 * scene.number
    frame = Frame(
        scene.epsg, here.left_m - 10 * col, here.top_m + 10 * row, 12_000 + scene.number, 14_000 - scene.number
    )
    layout = Layout(
        height_px=frame.height_px,
        width_px=frame.width_px,
        bands=1,
        dtype="float32",
        tile_px=S1_BLOCK_PX if planet.size_m >= _SMALL_M else _SMALL_BLOCK_PX,
        nodata=S1_NODATA,
        epsg=scene.epsg,
        transform=(10, 0, frame.left_m, 0, -10, frame.top_m),
        codec="deflate",
        predictor=3,
    )
    folder = planet.folder / S1_COLLECTION / items.s1_id(scene)
    files = {
        key: write_plane(folder / f"iw-{key}.rtc.tiff", layout, power[..., i], row, col)
        for i, key in enumerate(("vv", "vh"))
    }
    reach = sensors.radar_reach(scene, planet.size_m)
    record = items.s1_item(scene, reach, frame, files)
    _write_json(folder / f"{folder.name}.json", record)
    return [record]
