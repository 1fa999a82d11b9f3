"""A made-up year of the planet: the real land tiles, and for each a lawful list of scenes that nobody ever took."""

import datetime as dt
import hashlib
from collections.abc import Sequence
from pathlib import Path

from model.profile import ES_C1, PC_RTC
from transforms.catalogs.source import S2_PIXEL_M
from transforms.grid import TILE_PX, Tile, tile_of
from transforms.inventory import Inventory, InventoryWriter, SourceRecord
from transforms.land import land_tiles
from transforms.periods import period_of
from transforms.scenes import ASCENDING, DESCENDING, S1, S2, Asset, Scene

TILES = 18_400  # land tiles of the published products (facts, sources and COGs)
S2_SCENES, S1_SCENES = 90, 20  # a tile: 2 million scenes in all
YEAR = period_of("2024")
FROZEN = "2025-01-31T00:00:00Z"
SOURCES = (SourceRecord(ES_C1, "s2", "made up"), SourceRecord(PC_RTC, "s1", "made up"))
_BEGIN = dt.datetime(2024, 1, 1, 10, 30, tzinfo=dt.UTC)


def planet_tiles(count: int = TILES) -> list[str]:
    """So many of the planet's tiles, sorted: of the 18,400 with most land every n-th."""
    least = next(share for share in (0.02, 0.01, 0.0) if len(land_tiles(share)) >= TILES)
    return spread(spread(land_tiles(least), TILES), count)


def spread(names: Sequence[str], count: int) -> list[str]:
    """So many of the names, evenly from the first to the last; all of them where there are fewer."""
    return [names[n * len(names) // count] for n in range(count)] if count < len(names) else list(names)


def scenes_of(name: str, s2: int = S2_SCENES, s1: int = S1_SCENES) -> list[Scene]:
    """A tile's scenes: the days of two swaths for optics, both orbits for radar; every twentieth optical one cloudy."""
    tile = tile_of(name)
    shift = int(hashlib.sha256(name.encode()).hexdigest()[:4], 16) % 5
    scenes = [_optical(tile, n, _BEGIN + dt.timedelta(days=n * 366 // s2, hours=shift)) for n in range(s2)]
    # Radar is ordered from the latest on (`Scene.order`).
    return scenes + [_radar(tile, n, _BEGIN + dt.timedelta(days=365 - n * 360 // s1)) for n in range(s1)]


def _optical(tile: Tile, n: int, moment: dt.datetime) -> Scene:
    id_ = f"S2A_T{tile.name}_{moment:%Y%m%dT%H%M%S}_L2A"
    assets = tuple(
        Asset(band, f"{tile.name}/{id_}/{band}.tif", tile.epsg, _transform(tile, px), side := TILE_PX * 10 // px, side)
        for band, px in S2_PIXEL_M.items()
    )
    cloudy = n % 20 == 19
    return Scene(
        tile.name, S2, ES_C1, id_, _iso(moment), n, "", 22 + n % 2, "sentinel-2a", "05.10", 100.0 if cloudy else 12.5,
        f"{id_}_N05.10", _iso(moment), 1000, "raster:bands declare scale 0.0001, offset -0.1: 1000 DN", not cloudy,
        "cloud cover 100 over 90" if cloudy else "", assets,
    )  # fmt: skip


def _radar(tile: Tile, n: int, moment: dt.datetime) -> Scene:
    id_ = f"S1A_IW_GRDH_1SDV_{moment:%Y%m%dT%H%M%S}_{tile.name}_rtc"
    assets = tuple(
        Asset(band, f"{tile.name}/{id_}/{band}.tif", tile.epsg, _transform(tile, 10), 20_000, 28_000)
        for band in ("VV", "VH")
    )
    return Scene(
        tile.name, S1, PC_RTC, id_, _iso(moment), n, (ASCENDING, DESCENDING)[n % 2], 15, "sentinel-1a", "", None, "",
        "", 0, "radar: nothing to subtract", True, "", assets,
    )  # fmt: skip


def _transform(tile: Tile, pixel_m: int) -> tuple[float, float, float, float, float, float]:
    return float(pixel_m), 0.0, float(tile.left_m), 0.0, -float(pixel_m), float(tile.top_m)


def _iso(moment: dt.datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def write_year(path: Path, tiles: Sequence[str], s2: int = S2_SCENES, s1: int = S1_SCENES) -> Inventory:
    """The frozen year of these tiles, as `inventory build` leaves it."""
    with InventoryWriter(path, YEAR, FROZEN, "made up for a rehearsal") as writer:
        for tile in tiles:
            writer.add(tile, scenes_of(tile, s2, s1))
        return writer.finish(SOURCES)
