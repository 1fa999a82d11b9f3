"""Writing of one raster's embeddings and scales as COGs: fragments joined, beside GDAL's COG driver and rio-cogeo.

python bench/writing.py [--size 4096] [--threads 2] [--json] [--check]
Everybody gets the same pixels from the same file, the same codec, tiles and number of threads. The peers need the whole
raster as a file first: a plain tiled GeoTIFF, the cheapest one. Its seconds count, and are told apart.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from table import tell

from transforms.assembly import publish_raster, raster_of
from transforms.cog import TILE_PX, ZSTD_LEVEL, Layout, encode_window
from transforms.disk_store import LocalStore
from transforms.fragments import RASTERS, compress, layouts_of, part_of
from transforms.grid import tile_of
from transforms.preview import Colours
from transforms.receipts import DONE, Desk, Receipt

TILE = "33TWL"
DIMS = 128
KEYS = ("embeddings", "scales")
FLOOR, TARGET = 3.0, 5.0  # the peer's seconds over ours
MEMORY_FLOOR = 3.0  # the peer's peak over ours
ENGINES = ("ours", "ours, all assets", "GDAL COG", "rio-cogeo")
PEERS = ("GDAL COG", "rio-cogeo")
COLOURS = Colours(tuple(tuple(1 << 14 if d == i else 0 for d in range(DIMS)) for i in range(3)), (-3,) * 3, (3,) * 3)


def layouts(size_px: int) -> dict[str, Layout]:
    found = layouts_of(tile_of(TILE), DIMS, (("TESSERA_TILE", TILE),))
    return {k: dataclasses.replace(v, height_px=size_px, width_px=size_px) for k, v in found.items()}


def make_pixels(folder: Path, size_px: int) -> None:
    """Codes as encoders give them: near normal, sigma about 30, smooth over some 20 px, with a pixel's own noise."""
    rng = np.random.default_rng(0)
    step = 16
    coarse = rng.normal(0, 28, (size_px // step + 2, size_px // step + 2, DIMS)).astype(np.float32)
    share = (np.arange(size_px) % step / np.float32(step)).astype(np.float32)[:, None]
    col = np.arange(size_px) // step
    noise = rng.normal(0, 12, (TILE_PX, size_px, DIMS)).astype(np.float32)
    with (folder / "embeddings.raw").open("wb") as codes, (folder / "scales.raw").open("wb") as scales:
        for top in range(0, size_px, TILE_PX):
            shift = [int(n) for n in rng.integers(0, (size_px, DIMS))]
            strip = np.roll(noise, shift, (1, 2))
            for y in range(min(TILE_PX, size_px - top)):
                at, part = divmod(top + y, step)
                line = coarse[at] * (1 - part / step) + coarse[at + 1] * (part / step)
                strip[y] += line[col] * (1 - share) + line[col + 1] * share
            strip = strip[: size_px - top]
            np.clip(np.rint(strip), -127, 127).astype(np.int8).tofile(codes)
            size = 0.02 + 0.002 * strip[..., :2].mean(-1) / 28 + rng.normal(0, 1e-4, strip.shape[:2])
            np.abs(size).astype(np.float32).tofile(scales)


def read_pixels(folder: Path, layout: Layout, key: str, row: int, col: int, height: int, width: int) -> NDArray[Any]:
    """A window (height, width, bands) of the raw file, with a request a row: nothing of it stays mapped."""
    dtype, line = np.dtype(layout.dtype), layout.width_px * layout.bands
    found = np.empty((height, width * layout.bands), dtype)
    with (folder / f"{key}.raw").open("rb") as file:
        for y in range(height):
            file.seek(((row + y) * line + col * layout.bands) * dtype.itemsize)
            file.readinto(found[y].data)  # type: ignore[attr-defined]  # a file opened to be read
    return found.reshape(height, width, layout.bands)


def write_ours(source: Path, out: Path, options: argparse.Namespace, all_assets: bool = False) -> float:
    """Block by block: compressed tiles, fragment, receipt; then the joins. Returns the seconds of the first part."""
    begun, size, side = time.perf_counter(), options.size, options.block
    made_of, store, desk = layouts(size), LocalStore(str(out)), Desk("_work")
    with ThreadPoolExecutor(options.threads) as pool:

        def one(row: int, col: int) -> Receipt:
            h, w = min(side, size - row), min(side, size - col)
            pixels = {key: read_pixels(source, made_of[key], key, row, col, h, w) for key in KEYS}
            if all_assets:
                counts, reasons = np.full((h, w, 3), 60, np.uint16), np.zeros((h, w), np.uint8)
                scale = pixels["scales"][..., 0]
                tiles = compress(pixels["embeddings"], scale, counts, reasons, COLOURS, made_of, pool)
            else:
                tiles = {key: compressed(pixels[key], made_of[key], pool) for key in KEYS}
            parts = {key: part_of(tiles[key]) for key in tiles}
            receipt = Receipt(TILE, "2024", "0" * 64, row, col, h, w, DONE, parts=parts)
            for key in tiles:
                with store.writer(desk.fragment_name(receipt.block, key, parts[key])) as f:
                    f.writelines(tiles[key])
            return receipt

        receipts = [one(row, col) for row in range(0, size, side) for col in range(0, size, side)]
    took = time.perf_counter() - begun
    for key in [k for k in RASTERS if k in KEYS or (all_assets and k != "preview")]:
        raster = raster_of(desk, key, made_of[key], receipts)
        publish_raster(store, desk, key, raster, receipts, f"{key}.tif")
    return took


def compressed(pixels: NDArray[Any], layout: Layout, pool: ThreadPoolExecutor) -> list[bytes]:
    """As `fragments.compress` does it, a row of tiles a task."""
    rows = range(0, pixels.shape[0], TILE_PX)
    return [t for found in pool.map(lambda r: encode_window(pixels[r : r + TILE_PX], layout), rows) for t in found]


def write_all(source: Path, out: Path, options: argparse.Namespace) -> float:
    return write_ours(source, out, options, all_assets=True)


def plain_file(source: Path, out: Path, key: str, layout: Layout, threads: int) -> Path:
    """The raster as the plain GeoTIFF that both peers take, written in strips of whole internal tiles."""
    path = out / f"{key}.plain.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=layout.width_px, height=layout.height_px, count=layout.bands,
        dtype=layout.dtype, nodata=layout.nodata, crs=f"EPSG:{layout.epsg}", bigtiff="YES",
        transform=rasterio.Affine(*layout.transform), interleave="pixel", num_threads=threads,
        tiled=True, blockxsize=TILE_PX, blockysize=TILE_PX,
    ) as dst:  # fmt: skip
        for row in range(0, layout.height_px, TILE_PX):
            h = min(TILE_PX, layout.height_px - row)
            strip = read_pixels(source, layout, key, row, 0, h, layout.width_px)
            window = rasterio.windows.Window(0, row, layout.width_px, h)
            dst.write(np.ascontiguousarray(np.moveaxis(strip, -1, 0)), window=window)
    return path


def write_gdal(source: Path, out: Path, options: argparse.Namespace) -> float:
    from rasterio.shutil import copy

    took = 0.0
    for key in KEYS:
        layout, begun = layouts(options.size)[key], time.perf_counter()
        plain = plain_file(source, out, key, layout, options.threads)
        took += time.perf_counter() - begun
        copy(
            plain, out / f"{key}.tif", driver="COG", COMPRESS="ZSTD", LEVEL=ZSTD_LEVEL, BLOCKSIZE=TILE_PX,
            PREDICTOR="STANDARD" if layout.predictor == 2 else "FLOATING_POINT", OVERVIEWS="NONE", STATISTICS="NO",
            BIGTIFF="YES", NUM_THREADS=options.threads,
        )  # fmt: skip
        plain.unlink()
    return took


def write_rio_cogeo(source: Path, out: Path, options: argparse.Namespace) -> float:
    from rio_cogeo.cogeo import cog_translate

    took = 0.0
    for key in KEYS:
        layout, begun = layouts(options.size)[key], time.perf_counter()
        plain = plain_file(source, out, key, layout, options.threads)
        took += time.perf_counter() - begun
        profile = {
            "driver": "GTiff", "interleave": "pixel", "tiled": True, "blockxsize": TILE_PX, "blockysize": TILE_PX,
            "compress": "ZSTD", "zstd_level": ZSTD_LEVEL, "predictor": layout.predictor, "bigtiff": "YES",
            "num_threads": options.threads,
        }  # fmt: skip
        config = {"GDAL_NUM_THREADS": str(options.threads), "GDAL_TIFF_OVR_BLOCKSIZE": str(TILE_PX)}
        cog_translate(
            str(plain), str(out / f"{key}.tif"), profile, overview_level=0, in_memory=False, config=config, quiet=True
        )
        plain.unlink()
    return took


WRITE = {"ours": write_ours, "ours, all assets": write_all, "GDAL COG": write_gdal, "rio-cogeo": write_rio_cogeo}


def missing(engine: str) -> str:
    if engine == "rio-cogeo" and importlib.util.find_spec("rio_cogeo") is None:
        return "not measured: rio-cogeo is not installed"
    return ""


def equal(source: Path, out: Path, size_px: int) -> bool:
    """Whether rasterio reads every pixel of both files as it was."""
    for key in KEYS:
        layout = layouts(size_px)[key]
        with rasterio.open(out / f"{key}.tif", num_threads=2) as file:
            for row in range(0, size_px, 512):
                for col in range(0, size_px, 512):
                    h, w = min(512, size_px - row), min(512, size_px - col)
                    got = np.moveaxis(file.read(window=rasterio.windows.Window(col, row, w, h)), 0, -1)
                    if not np.array_equal(got, read_pixels(source, layout, key, row, col, h, w)):
                        return False
    return True


def child(options: argparse.Namespace) -> None:
    """One engine in a process of its own: imports first, then the clock."""
    source, out = Path(options.source), Path(options.out)
    if options.child == "equal":
        told: dict[str, Any] = {"equal": equal(source, out, options.size)}
    else:
        begun = time.perf_counter()
        first = WRITE[options.child](source, out, options)
        told = {"seconds": time.perf_counter() - begun, "before_s": first, "cpu_s": time.process_time()}
        # Not getrusage: its peak survives exec, so that it would be the parent's.
        status = Path("/proc/self/status").read_text().splitlines()
        told["peak_mb"] = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
    sys.stdout.write(json.dumps(told) + "\n")


def run_child(engine: str, source: Path, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    argv = [sys.executable, __file__, "--child", engine, "--source", str(source), "--out", str(out)]
    argv += [f"--{name}={getattr(options, name)}" for name in ("size", "block", "threads")]
    env = {**os.environ, "TMPDIR": str(out), "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, env=env, cwd=out, check=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@contextlib.contextmanager
def highest(folder: Path) -> Iterator[list[int]]:
    """The most bytes that lay in a folder, looked at ten times a second."""
    most, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            total = 0
            for path in folder.rglob("*"):
                with contextlib.suppress(OSError):  # a temporary file that has gone
                    total += path.stat().st_blocks * 512
            most[0] = max(most[0], total)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def rows_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        source = Path(temporary, "pixels")
        source.mkdir()
        make_pixels(source, options.size)
        for engine in options.engines.split(";"):
            if why := missing(engine):
                found.append({"engine": engine, "seconds": why})
                continue
            with tempfile.TemporaryDirectory(dir=temporary) as place, highest(Path(place)) as most:
                told = run_child(engine, source, Path(place), options)
                sizes = {key: Path(place, f"{key}.tif").stat().st_size for key in KEYS}
                told |= run_child("equal", source, Path(place), options)
                told["size_mb"] = sum(sizes.values()) / 1e6
                told["scratch_mb"] = most[0] / 1e6 - told["size_mb"]
            found.append({"engine": engine, **told})
    ours = next((r for r in found if r["engine"] == "ours"), None)
    for row in found:
        if ours and row["engine"] in PEERS and not isinstance(row["seconds"], str):
            row |= {"ratio": row["seconds"] / ours["seconds"], "floor": FLOOR, "target": TARGET}
            # What the peer itself takes, had the plain file fallen from the sky.
            row["ratio, itself"] = (row["seconds"] - row["before_s"]) / ours["seconds"]
            row["memory"], row["memory floor"] = row["peak_mb"] / ours["peak_mb"], MEMORY_FLOOR
    return found


def failed(row: dict[str, Any]) -> bool:
    low = row.get("floor") and (row["ratio"] < row["floor"] or row["memory"] < row["memory floor"])
    return bool(low) or row.get("equal") is False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096, help="pixels a side of the raster")
    parser.add_argument("--block", type=int, default=1024, help="pixels a side of our blocks")
    parser.add_argument("--threads", type=int, default=2, help="of every engine")
    parser.add_argument("--engines", default=";".join(ENGINES), help="separated by ;")
    parser.add_argument("--folder", help="where the work lies: 3 to 4 times the raster's pixels")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--check", action="store_true", help="exit 4 below a floor")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--source", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return 0
    found = rows_of(options)
    columns = ("engine", "seconds", "before_s", "cpu_s", "peak_mb", "scratch_mb", "size_mb", "equal", "ratio")
    columns += ("floor", "target", "ratio, itself", "memory", "memory floor")
    tell("writing", found, columns, options.json)
    return 4 if options.check and any(failed(row) for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
