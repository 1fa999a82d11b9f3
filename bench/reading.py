"""Reading of one block's optical year: ours beside odc-stac and async-geotiff, from disk and over a slow loopback.

python bench/reading.py [--dates 4] [--block 2048] [--wait-ms 20] [--json]
Peers that are not installed are said so: pip install odc-stac async-geotiff obstore
"""

import argparse
import asyncio
import contextlib
import dataclasses
import datetime as dt
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from range_server import serve
from table import tell

from model.families import profile_for
from model.profile import S2_BANDS
from transforms.catalogs.source import S2_PIXEL_M
from transforms.dpixels import Stack, build, read_stack
from transforms.grid import tile_of
from transforms.scenes import S2, Asset, Scene

TILE = "33TWL"
SIDE_PX = 6144  # of a file at 10 m: room around the block, as in a real product, without its 10,980
COG_TILE_PX = 1024  # Earth Search's
READERS = 16  # what `embed` has, and what the peers are given
WARM = 9  # a date
ENGINES = ("ours", "odc-stac", "ours, windows", "async-geotiff, windows")
PROFILE = profile_for("v2", 128)


def make_files(folder: Path, dates: int) -> None:
    """COGs that compress as imagery does: a smooth ground and three bits of noise."""
    rng = np.random.default_rng(0)
    tile = tile_of(TILE)
    for band, pixel_m in S2_PIXEL_M.items():
        side = SIDE_PX * 10 // pixel_m
        rows, cols = np.mgrid[0:side, 0:side].astype(np.float32) * (pixel_m / 10_000)
        ground = (2500 + 900 * np.sin(rows) + 700 * np.cos(1.7 * cols)).astype(np.uint16)
        for date in (*range(dates), WARM):
            data = ground + rng.integers(0, 256, ground.shape, np.uint16)
            if band == "SCL":
                data = np.full(ground.shape, 4, np.uint8)
            path = folder / f"{date}-{band}.tif"
            with rasterio.open(
                path,
                "w",
                driver="COG",
                width=side,
                height=side,
                count=1,
                dtype=data.dtype,
                crs=tile.crs,
                transform=rasterio.Affine(pixel_m, 0, tile.left_m, 0, -pixel_m, tile.top_m),
                nodata=0,
                blocksize=COG_TILE_PX,
                compress="DEFLATE",
                predictor=2,
                level=6,
                overviews="NONE",
                num_threads=2,
            ) as file:
                file.write(data, 1)


def scenes_of(dates: int) -> list[Scene]:
    """One a date; with 0 dates the one behind the last, by which a process warms up: its files are read by nobody."""
    tile = tile_of(TILE)
    found = []
    for date in range(dates) if dates else (WARM,):
        assets = [
            Asset(
                band,
                f"{date}-{band}.tif",
                tile.epsg,
                (pixel_m, 0.0, tile.left_m, 0.0, -pixel_m, tile.top_m),
                SIDE_PX * 10 // pixel_m,
                SIDE_PX * 10 // pixel_m,
            )
            for band, pixel_m in S2_PIXEL_M.items()
        ]
        when = f"2024-{date + 1:02d}-01T10:00:00.000000Z"
        found.append(
            Scene(
                TILE,
                S2,
                "s",
                f"S{date}",
                when,
                date,
                "",
                22,
                "",
                "05.11",
                1.0,
                "",
                "",
                1000,
                "",
                True,
                "",
                tuple(assets),
            )
        )
    return found


def stack_of(root: str, dates: int, row: int, side: int) -> Stack:
    """The native windows of the block, by `read_stack`."""
    rows = range(row, row + side)
    scenes = scenes_of(dates)
    if root.startswith("http"):
        scenes = [absolute(s, root) for s in scenes]
    with ThreadPoolExecutor(READERS) as pool:
        return read_stack(scenes, {"s": root}, PROFILE, tile_of(TILE), rows, rows, pool)


def read_ours(root: str, dates: int, row: int, side: int) -> int:
    """`read_stack` and `build`: the d-pixels of the block."""
    stack = stack_of(root, dates, row, side)
    return sum(int(build(stack, PROFILE, part).masks.sum()) for part in parts(stack.rows))


def read_windows(root: str, dates: int, row: int, side: int) -> int:
    """`read_stack` alone: the native windows, as async-geotiff reads them."""
    stack = stack_of(root, dates, row, side)
    return sum(b.data.size for _, layers in stack.days for layer in layers for b in (layer.scl, *layer.bands))


def absolute(scene: Scene, root: str) -> Scene:
    return dataclasses.replace(
        scene, assets=tuple(dataclasses.replace(a, href=f"{root}/{a.href}") for a in scene.assets)
    )


def parts(rows: range) -> list[range]:
    """As `embed` builds: a few rows at once."""
    return [rows[i : i + 32] for i in range(0, len(rows), 32)]


def read_odc(root: str, dates: int, row: int, side: int) -> int:
    """odc-stac over the same files, then the same mask and offset in NumPy."""
    import odc.stac
    import pystac
    from odc.geo.geobox import GeoBox

    tile = tile_of(TILE)
    transform = rasterio.Affine(10, 0, tile.left_m + row * 10, 0, -10, tile.top_m - row * 10)
    items = []
    for scene in scenes_of(dates):
        item = pystac.Item(scene.id, None, None, dt.datetime.fromisoformat(scene.datetime), {})
        lon_lat = [[-180, -90], [180, -90], [180, 90], [-180, 90], [-180, -90]]
        item.geometry = {"type": "Polygon", "coordinates": [lon_lat]}
        for asset in scene.assets:
            a, b, c, d, e, f = asset.transform
            item.add_asset(
                asset.band,
                pystac.Asset(
                    f"{root}/{asset.href}",
                    media_type=pystac.MediaType.COG,
                    roles=["data"],
                    extra_fields={
                        "proj:epsg": asset.epsg,
                        "proj:shape": [asset.height_px, asset.width_px],
                        "proj:transform": [a, b, c, d, e, f],
                        "raster:bands": [{"data_type": "uint8" if asset.band == "SCL" else "uint16", "nodata": 0}],
                    },
                ),
            )
        item.stac_extensions = [
            "https://stac-extensions.github.io/projection/v1.1.0/schema.json",
            "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
        ]
        items.append(item)
    odc.stac.configure_rio(
        cloud_defaults=True, GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_HTTP_MERGE_CONSECUTIVE_RANGES="YES"
    )
    found = odc.stac.load(
        items,
        bands=[*S2_BANDS, "SCL"],
        geobox=GeoBox((side, side), transform, tile.crs),
        resampling={"*": "bilinear", "SCL": "nearest"},
        pool=READERS,
    )
    valid = ~np.isin(found["SCL"].values, PROFILE.scl_invalid)
    for band in S2_BANDS:
        values = found[band].values
        np.subtract(values, np.uint16(1000), out=values, where=values >= 1000)
    return int(valid.sum())


def read_async(root: str, dates: int, row: int, side: int) -> int:
    """async-geotiff: the same native windows alone, their halos too, without resampling, mask and mosaic."""
    from async_geotiff import GeoTIFF
    from async_geotiff import Window as Part
    from obstore.store import HTTPStore, LocalStore

    if root.startswith("http"):
        store: Any = HTTPStore(root, client_options={"allow_http": True})
    else:
        store = LocalStore(root)

    async def one(gate: asyncio.Semaphore, href: str, pixel_m: int, halo: int) -> int:
        async with gate:
            file = await GeoTIFF.open(href, store=store)
            at, size = row * 10 // pixel_m - halo, side * 10 // pixel_m + 2 * halo
            return int((await file.read(window=Part(at, at, size, size))).data.size)

    async def all_of() -> int:
        gate = asyncio.Semaphore(READERS)
        jobs = [
            one(gate, a.href, S2_PIXEL_M[a.band], int(S2_PIXEL_M[a.band] == 20 and a.band != "SCL"))
            for s in scenes_of(dates)
            for a in s.assets
        ]
        return sum(await asyncio.gather(*jobs))

    return asyncio.run(all_of())


READ = {
    "ours": read_ours,
    "odc-stac": read_odc,
    "ours, windows": read_windows,
    "async-geotiff, windows": read_async,
}
NEEDS = {"odc-stac": ("odc.stac",), "async-geotiff, windows": ("async_geotiff", "obstore")}
# What each is held against in the same run, with floor and target of the peer's seconds over ours.
PEERS = {"odc-stac": ("ours", 1.0, 1.5), "async-geotiff, windows": ("ours, windows", 0.7, 1.0)}


def missing(engine: str) -> str:
    for name in NEEDS.get(engine, ()):
        with contextlib.suppress(ModuleNotFoundError):
            if importlib.util.find_spec(name):
                continue
        return f"not measured: {name.partition('.')[0]} is not installed"
    return ""


def child(engine: str, root: str, dates: int, row: int, side: int) -> None:
    """One engine in a process of its own: imports first, then the clock."""
    READ[engine](root, 0, row, 64)  # imports, pools and caches of code
    if hasattr(sys.stdin, "readline"):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
    begun, cpu = time.perf_counter(), time.process_time()
    total = READ[engine](root, dates, row, side)
    told = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu, "total": total}
    # Not getrusage: its peak survives exec, so that it would be the parent's.
    status = Path("/proc/self/status").read_text().splitlines()
    told["peak_mb"] = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
    sys.stdout.write(json.dumps(told) + "\n")


def measure(engine: str, root: str, counts: Any, options: argparse.Namespace) -> dict[str, Any]:
    host = root.partition("//")[2]
    argv = [sys.executable, __file__, "--child", engine, "--root", root, "--dates", str(options.dates)]
    argv += ["--block", str(options.block), "--row", str(options.row)]
    with subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TESSERA_HOSTS": host, "PYTHONPATH": str(Path(__file__).parents[1])},
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        if counts:
            counts.reset()
        process.stdin.write("\n")
        process.stdin.flush()
        told: dict[str, Any] = json.loads(process.stdout.readline())
    if counts:
        told |= {"requests": counts.requests, "sent": counts.sent, "most": max(counts.by_path.values(), default=0)}
    return told


def needed_bytes(folder: Path, options: argparse.Namespace) -> float:
    """What the block's own pixels take in the files: their share of each file's bytes."""
    return sum(
        p.stat().st_size * (options.block / SIDE_PX) ** 2
        for p in folder.glob("*.tif")
        if not p.name.startswith(f"{WARM}-")
    )


def rows_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_files(folder, options.dates)
        needed = needed_bytes(folder, options)
        with serve(folder, options.wait_ms / 1000) as (url, counts):
            for place, root in (("disk", str(folder)), ("http", url)):
                for engine in options.engines.split(";"):
                    row: dict[str, Any] = {"place": place, "engine": engine}
                    if why := missing(engine):
                        found.append(row | {"seconds": why})
                        continue
                    runs = [
                        measure(engine, root, counts if place == "http" else None, options)
                        for _ in range(options.repeats)
                    ]
                    best = min(runs, key=lambda r: float(r["seconds"]))
                    if place == "http":
                        best["amplification"] = best["sent"] / needed
                        best["requests_per_asset"] = best["requests"] / (options.dates * len(S2_PIXEL_M))
                    found.append(row | best)
    for row in found:
        if row["engine"] not in PEERS or isinstance(row["seconds"], str):
            continue
        name, row["floor"], row["target"] = PEERS[row["engine"]]
        ours = next((r for r in found if r["engine"] == name and r["place"] == row["place"]), None)
        row["over_ours"] = row["seconds"] / ours["seconds"] if ours else "not measured"
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dates", type=int, default=4)
    parser.add_argument("--block", type=int, default=2048)
    parser.add_argument("--row", type=int, default=2048, help="first row and column of the block")
    parser.add_argument("--wait-ms", type=float, default=20, help="what a request costs before its first byte")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engines", default=";".join(ENGINES), help="separated by ;")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--root", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.root, options.dates, options.row, options.block)
        return 0
    found = rows_of(options)
    columns = ("place", "engine", "seconds", "cpu_seconds", "peak_mb", "requests", "requests_per_asset", "most")
    columns += ("sent", "amplification", "over_ours", "floor", "target")
    tell("reading", found, columns, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
