"""openEO: real dated Sentinel cubes of Belgium as COGs with STAC items, and back through inventory and d-pixels."""

import dataclasses
import datetime as dt
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.warp
from numpy.typing import NDArray
from rasterio.enums import Resampling

from model.errors import BadInput
from model.families import profile_for
from model.profile import S1_BANDS, S2_BANDS
from pipeline import inventory
from pipeline.dpixels import dpixels
from pipeline.planning import READERS
from pipeline.real.checks import FORMAT, VERSION, Check, compare
from pipeline.real.cubes import MISSING, OPENEO_OPTICAL, OPENEO_RADAR, Cube, doys, power_of, read_cube
from transforms import dpixels as series
from transforms.catalogs.earth_search import KEYS
from transforms.catalogs.earth_search_l2a import FLAG
from transforms.catalogs.source import S2_PIXEL_M
from transforms.cog import Layout, encode_window, write
from transforms.grid import Tile, tiles_at
from transforms.inventory import read_header, read_tile
from transforms.periods import period_of
from transforms.scenes import ASCENDING, DESCENDING

PERIOD = "2023"

# A band of an item <- the band of the cube whose pixels it gets. The cube has B01 B04 B08 B11, all on a 10 m grid. Its
# B11 is there twice: pixel by pixel in the place of B03, and as the 20 m file that a real B11 is.
PIXELS_OF = {
    "B04": "B04", "B08": "B08", "B11": "B11", "SCL": "SCL",
    "B02": "B01", "B03": "B11", "B8A": "B08", "B05": "B04", "B06": "B01", "B07": "B08", "B12": "B11",
}  # fmt: skip
NODATA_POWER = -32768.0  # Planetary Computer's sentinel-1-rtc
_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"
_TILE_PX = 64  # of the files: the cube's 64 x 66 px then lie in more than one internal tile

# The cube does not name the orbits. Sentinel-1 repeats after 12 days and 175 orbits; S1A flew relative orbit 51 on
# 2023-04-13, 31 cycles before scene S1A_.._20240419T045904_.._053498 of Planetary Computer. Counted from there, the
# orbits that Belgium is seen from (37 and 110 at 6 h UTC, 88 and 161 at 18 h) fall on just the cube's dates.
_TRACKS = {
    dt.date(2023, 4, 3): (ASCENDING, 88),
    dt.date(2023, 4, 5): (DESCENDING, 110),
    dt.date(2023, 4, 8): (ASCENDING, 161),
    dt.date(2023, 4, 12): (DESCENDING, 37),
}
_REPEAT_DAYS = 12

NOTES = (
    "B04, B08, B11 and SCL are real; other bands get real pixels of another band: "
    + ", ".join(f"{band} those of {own}" for band, own in PIXELS_OF.items() if band != own),
    "the cube's DN have the 1000 of baseline 04.00 subtracted (B04 goes down to 186): its items say so with "
    f"{FLAG}, as Earth Search does",
    f"{MISSING} becomes the files' nodata (0, class 0, {NODATA_POWER:g}); radar 65534 is a clipped strong scatterer, "
    "and stays",
    "orbits are not in the cube; they follow from its dates and Sentinel-1's cycle of 12 days",
    "radar is sigma0 in the place of sentinel-1-rtc's gamma0",
)


def read(shared: Path) -> tuple[Cube, Cube]:
    """The optical and the radar cube.

    Raises:
      BadInput: as `read_cube`; cubes on different grids.
    """
    s2 = read_cube(shared / OPENEO_OPTICAL, ("B01", "B04", "B08", "B11", "SCL"), "S2-L2A-")
    s1 = read_cube(shared / OPENEO_RADAR, S1_BANDS, "S1-SIGMA0-")
    if (s1.epsg, s1.transform, s1.shape) != (s2.epsg, s2.transform, s2.shape):
        raise BadInput(f"{s1.path}: another grid than {s2.path.name}")
    return s2, s1


def tile_around(cube: Cube) -> Tile:
    """The first MGRS tile, by name, that holds all of the cube.

    Raises:
      BadInput: no such tile, or a cube whose corner or size is off the tile's 20 m grid: its 20 m bands would not be.
    """
    left, bottom, right, top = cube.bounds_m
    for tile in tiles_at(*cube.ring[0]):
        west, south, east, north = tile.bounds_m
        if tile.epsg == cube.epsg and west <= left and right <= east and south <= bottom and top <= north:
            break
    else:
        raise BadInput(f"{cube.path}: no MGRS tile of EPSG:{cube.epsg} holds {cube.bounds_m}")
    if any(v % 20 for v in (left - tile.left_m, tile.top_m - top, right - left, top - bottom)):
        raise BadInput(f"{cube.path}: bounds {cube.bounds_m} are off the 20 m grid of tile {tile.name}")
    return tile


def stored(cube: Cube, band: str) -> NDArray[np.uint16]:
    """(T, h, w) DN that the file of a band gets: every pixel at 10 m, the north-west one of four at 20 m; 0 is nodata.

    Raises:
      BadInput: a band of its own at 20 m whose four pixels differ: the cube was resampled, and has no 20 m pixels.
    """
    dn = cube.bands[PIXELS_OF[band]]
    values = np.where(dn == MISSING, 0, dn).astype(np.uint16)
    if S2_PIXEL_M[band] == 10:
        return values
    coarse = values[:, ::2, ::2]
    if PIXELS_OF[band] == band and not np.array_equal(coarse.repeat(2, 1).repeat(2, 2), values):
        raise BadInput(f"{cube.path}: {band} differs within 20 m: it was resampled, and its own pixels are lost")
    return coarse


def write_catalogue(s2: Cube, s1: Cube, tile: Tile, folder: Path) -> None:
    """A static STAC catalogue of both cubes: Earth Search's sentinel-2-l2a, Planetary Computer's sentinel-1-rtc."""
    files = {band: stored(s2, band) for band in PIXELS_OF}
    power = {band: np.where(s1.bands[band] == MISSING, NODATA_POWER, power_of(s1.bands[band])) for band in S1_BANDS}
    made: dict[str, list[dict[str, Any]]] = {"sentinel-2-l2a": [], "sentinel-1-rtc": []}
    for t, day in enumerate(s2.days):
        item = _item(s2, f"S2_{tile.name}_{day:%Y%m%d}_L2A", day, "sentinel-2-l2a", _optical(s2, tile, t))
        for band, values in files.items():
            dtype = "uint8" if band == "SCL" else "uint16"
            item["assets"][KEYS[band]] = _write(
                s2, folder / "sentinel-2-l2a" / item["id"] / f"{band}.tif", values[t].astype(dtype), S2_PIXEL_M[band], 0
            )
        made["sentinel-2-l2a"].append(item)
    for t, day in enumerate(s1.days):
        item = _item(s1, f"S1_{day:%Y%m%d}_rtc", day, "sentinel-1-rtc", _radar(day))
        for band, linear in power.items():
            path = folder / "sentinel-1-rtc" / item["id"] / f"{band}.tif"
            item["assets"][band.lower()] = _write(s1, path, linear[t].astype(np.float32), 10, NODATA_POWER)
        made["sentinel-1-rtc"].append(item)
    for collection, items in made.items():
        for item in items:
            _write_json(folder / collection / item["id"] / "item.json", item)
        links = [{"rel": "item", "href": f"./{item['id']}/item.json"} for item in items]
        _write_json(folder / collection / "collection.json", _collection(collection, items, links))
    links = [{"rel": "child", "href": f"./{collection}/collection.json"} for collection in made]
    root = {"type": "Catalog", "id": "openeo-belgium", "stac_version": "1.0.0", "description": "; ".join(NOTES)}
    _write_json(folder / "catalog.json", root | {"links": links})


def _write_json(path: Path, record: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


def _collection(id_: str, items: list[dict[str, Any]], links: list[dict[str, str]]) -> dict[str, Any]:
    times = sorted(item["properties"]["datetime"] for item in items)
    return {
        "type": "Collection",
        "id": id_,
        "stac_version": "1.0.0",
        "description": "A cube of Open-EO/openeo-gfmap, in the form of the collection of this name.",
        "license": "Apache-2.0",
        "extent": {"spatial": {"bbox": [items[0]["bbox"]]}, "temporal": {"interval": [[times[0], times[-1]]]}},
        "links": links,
    }


def _item(cube: Cube, id_: str, day: dt.date, collection: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    lon, lat = zip(*cube.ring, strict=True)
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": id_,
        "collection": collection,
        "geometry": {"type": "Polygon", "coordinates": [cube.ring]},
        "bbox": [min(lon), min(lat), max(lon), max(lat)],
        # The cube has days and no hours.
        "properties": {"datetime": f"{day}T00:00:00Z", "proj:epsg": cube.epsg, **properties},
        "assets": {},
        "links": [{"rel": "collection", "href": "../collection.json"}],
    }


def _optical(cube: Cube, tile: Tile, t: int) -> dict[str, Any]:
    clouds = np.isin(cube.bands["SCL"][t], (8, 9, 10)).mean()
    # The property speaks of the whole product: a window in cloud does not make it 100 %, which would drop the scene.
    return {"grid:code": f"MGRS-{tile.name}", "eo:cloud_cover": round(min(100 * float(clouds), 99.9), 2), FLAG: True}


def _radar(day: dt.date) -> dict[str, Any]:
    for first, (orbit, number) in _TRACKS.items():
        if (day - first).days % _REPEAT_DAYS == 0:
            return {"sat:orbit_state": orbit, "sat:relative_orbit": number}
    raise BadInput(f"radar of {day}: none of the four tracks over Belgium passes on that day")


def _write(cube: Cube, path: Path, plane: NDArray[np.generic], pixel_m: int, nodata: float) -> dict[str, Any]:
    """Writes one band's COG; returns its asset."""
    _, _, left, _, _, top = cube.transform
    layout = Layout(
        height_px=plane.shape[0],
        width_px=plane.shape[1],
        bands=1,
        dtype=plane.dtype.name,
        tile_px=_TILE_PX,
        nodata=nodata,
        epsg=cube.epsg,
        transform=(pixel_m, 0, left, 0, -pixel_m, top),
        codec="deflate",  # as the providers' own files
        predictor=1,  # one for whole and floating numbers
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    tiles = encode_window(plane[..., None], layout)
    write(path, layout, {divmod(n, layout.tiles_across): data for n, data in enumerate(tiles)})
    return {
        "href": f"./{path.name}",
        "type": _TYPE,
        "proj:shape": list(plane.shape),
        "proj:transform": list(layout.transform),
        "raster:bands": [{"nodata": nodata, "data_type": plane.dtype.name, "spatial_resolution": pixel_m}],
    }


def warped(cube: Cube, coarse: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """(T, H, W): 20 m bands on the cube's grid, bilinear by GDAL's own warper."""
    _, _, left, _, _, top = cube.transform
    out = np.zeros((len(coarse), *cube.shape), np.uint16)
    for source, target in zip(coarse, out, strict=True):
        rasterio.warp.reproject(
            source,
            target,
            src_transform=rasterio.Affine(20, 0, left, 0, -20, top),
            src_crs=f"EPSG:{cube.epsg}",
            src_nodata=0,
            dst_transform=rasterio.Affine(*cube.transform),
            dst_crs=f"EPSG:{cube.epsg}",
            dst_nodata=0,
            resampling=Resampling.bilinear,
        )
    return out


def round_trip(s2: Cube, s1: Cube, out: Path, warn: Callable[[str], None]) -> dict[str, Any]:
    """Cubes -> COGs and items -> inventory -> d-pixels, compared with the cubes.

    Returns:
      `files`: catalogue, inventory, d-pixels and record; `checks`; `facts`: what the data look like, in words.

    Raises:
      BadInput: cubes that lie in no tile or off its grid, without a valid pixel, or resampled.
    """
    tile = tile_around(s2)
    root = out / "openeo"
    write_catalogue(s2, s1, tile, root / "catalogue")
    inv = str(root / "inventory.parquet")
    built = inventory.build([(str(root / "catalogue"), None)], period_of(PERIOD), [tile.name], inv)
    left, _, _, top = s2.bounds_m
    H, W = s2.shape
    row, col = int(tile.top_m - top) // 10, int(left - tile.left_m) // 10
    dpixels(inv, "v2", tile.name, f"{row},{col},{H},{W}", str(root / "dpixels"), warn)
    got = series.load(root / "dpixels", warn)
    scenes = read_tile(inv, tile.name)
    # Once more with no class masked, so that dates under cloud are compared too; the verb leaves them out.
    every = dataclasses.replace(profile_for("v2", native_dims=1), scl_invalid=(0,))
    with ThreadPoolExecutor(READERS) as pool:
        rows, cols = range(row, row + H), range(col, col + W)
        stack = series.read_stack(scenes, read_header(inv).roots, every, tile, rows, cols, pool)
    cloudy = series.build(stack, every, rows)
    record = {
        "format": FORMAT,
        "version": VERSION,
        "sources": [s2.origin, s1.origin],
        "tile": tile.name,
        "window": [row, col, H, W],
        "pixels_of": PIXELS_OF,
        "notes": NOTES,
    }
    _write_json(root / "record.json", record)
    checks = [*optical_checks(s2, got, "valid dates"), *optical_checks(s2, cloudy, "all dates", masked=(0,))]
    return {
        "files": [str(root / "catalogue/catalog.json"), inv, str(root / "dpixels"), str(root / "record.json")],
        "checks": [*checks, *radar_checks(s1, got)],
        "facts": [*NOTES, *built["warnings"], *_facts(s2, s1, tile, row, col)],
    }


# What is compared at once: bands of one pixel size, the real ones apart from the stand-ins.
_GROUPS = {
    "B04 B08, the cube's DN": ("B04", "B08"),
    "B01 B11 in the places of B02 B03, the cube's DN": ("B02", "B03"),
    "B11 from 20 m, by GDAL's warper": ("B11",),
    "other 20 m bands, by GDAL's warper": ("B8A", "B05", "B06", "B07", "B12"),
}


def optical_checks(
    cube: Cube, got: series.DPixels, which: str, masked: tuple[int, ...] = profile_for("v2", 1).scl_invalid
) -> list[Check]:
    """Days, masks and bands of the dates with a valid pixel, at every pixel: the cube's own DN, or GDAL's bilinear."""
    valid = ~np.isin(np.where(cube.bands["SCL"] == MISSING, 0, cube.bands["SCL"]), masked)
    seen = valid.any((1, 2))
    said = f"openEO S2, {which}"
    checks = [
        compare(f"{said}: days of year", got.doys, doys(cube)[seen]),
        compare(f"{said}: masks from SCL", got.masks, valid[seen]),
    ]
    if len(got.doys) != seen.sum():
        return checks
    for what, bands in _GROUPS.items():
        wanted = [stored(cube, band)[seen] for band in bands]
        if S2_PIXEL_M[bands[0]] == 20:
            wanted = [warped(cube, dn) for dn in wanted]
        read = got.bands[..., [S2_BANDS.index(band) for band in bands]]
        checks.append(compare(f"{said}: {what}", read, np.stack(wanted, axis=-1)))
    return checks


def radar_checks(cube: Cube, got: series.DPixels) -> list[Check]:
    """Both orbits against `scale_s1` of the float32 power, and against the formula on the cube's DN in float64."""
    checks = []
    power = [power_of(cube.bands[band]) for band in S1_BANDS]
    # 20 log10 of a power is twice its decibels, and the DN's decibels are 20 log10 DN - 83.
    decibels = [20 * np.log10(np.maximum(cube.bands[band], 1).astype(np.float64)) - 83 for band in S1_BANDS]
    direct = [np.trunc(np.clip((2 * db + 50) * 200, 0, 32767)) for db in decibels]
    for band, exact in zip(S1_BANDS, direct, strict=True):
        exact[cube.bands[band] == MISSING] = 0
    for orbit in (ASCENDING, DESCENDING):
        seen = np.array([_radar(day)["sat:orbit_state"] == orbit for day in cube.days])
        values, days = getattr(got, f"sar_{orbit}"), getattr(got, f"sar_{orbit}_doy")
        wanted = np.stack([series.scale_s1(p[seen]) for p in power], axis=-1)
        checks += [
            compare(f"openEO S1 {orbit}: days of year", days, doys(cube)[seen]),
            compare(f"openEO S1 {orbit}: VV VH by scale_s1", values, wanted),
            # float32 files round the power by up to 6e-8 of it: 0.0001 of a step, which truncation can make one step.
            compare(
                f"openEO S1 {orbit}: VV VH from DN in float64, to 1",
                values,
                np.stack([d[seen] for d in direct], axis=-1),
                allowed=1,
            ),
        ]
    return checks


def _facts(s2: Cube, s1: Cube, tile: Tile, row: int, col: int) -> list[str]:
    valid = ~np.isin(s2.bands["SCL"], profile_for("v2", 1).scl_invalid)
    seen = [f"{day:%d %b} {share:.1%}" for day, share in zip(s2.days, valid.mean((1, 2)), strict=True) if share]
    clipped = sum(int((s1.bands[b] == MISSING - 1).sum()) for b in S1_BANDS)
    missing = sum(int((c.bands[b] == MISSING).sum()) for c in (s2, s1) for b in c.bands)
    red = s2.bands["B04"]
    dark = (series.scale_s1(power_of(s1.bands["VH"])) == 0).mean()
    return [
        f"tile {tile.name}, row {row}, column {col}: on its 10 m and 20 m grids",
        f"{len(seen)} of {len(s2.days)} optical dates have a valid pixel: {', '.join(seen)}",
        f"B04 {red.min()}..{red.max()}, {np.percentile(red[valid], 50):.0f} in the middle of valid ones; "
        f"{clipped} radar values clipped at 65534, {missing} values missing in both cubes",
        f"{dark:.2%} of VH lie under -25 dB, which the layout holds as 0",
    ]
