"""Embeds one block of files made for it, and prints what memory that took beside its budget (see test_memory.py).

python tests/transforms/measure_block_memory.py make FOLDER
python tests/transforms/measure_block_memory.py run FOLDER --block 1024 --readers 16 --radar other --root URL
"""

import argparse
import contextlib
import dataclasses
import datetime as dt
import http.server
import json
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine
from rasterio.warp import transform

from model.modelfile import open_model
from model.profile import PC_L2A, PC_RTC, S2_BANDS
from pipeline.demo.run import model_path
from transforms import hosts, inventory
from transforms.budgets import budget_of
from transforms.catalogs.source import S2_PIXEL_M
from transforms.embed import Worker, embed_window
from transforms.encode import CPU, Session
from transforms.fragments import compress, layouts_of
from transforms.grid import Block, tile_of
from transforms.heaps import keep_heaps_few
from transforms.inventory import SourceRecord, write_inventory
from transforms.periods import period_of
from transforms.plans import Plan
from transforms.preview import Colours
from transforms.scenes import ASCENDING, DESCENDING, S1, S2, Asset, Scene
from transforms.storage import open_store

BATCH_PX = 256
TILE = tile_of("33TWL")
OTHER_EPSG = 32632  # the zone beside the tile's
CORNER_PX = 2048  # of the blocks, at 10 m, as of those in a tile's middle
RADAR = ("none", "same", "other")
PLENTY = 1 << 50


def peak_bytes() -> int:
    """The process's largest resident size so far. Not getrusage, which keeps the parent's from before exec."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


# ---- files that many scenes share: memory does not know, and the disk has less to hold


def make(folder: Path, side_px: int, radars: tuple[str, ...]) -> None:
    """COGs with the catalogues' internal tiles, 1024 px of optical bands and 512 px of radar, compressed as theirs."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for band, size_m in S2_PIXEL_M.items():
        side = side_px * 10 // size_m
        data = np.zeros((side, side), np.uint16)
        filled = slice(None) if size_m > 10 else slice(CORNER_PX, CORNER_PX + 2048)
        data[filled, filled] = rng.integers(1000, 1600, data[filled, filled].shape)  # 1.1 bytes a pixel, as real ones
        if band == "SCL":
            data = rng.choice([4, 5, 9], data.shape, p=[0.5, 0.3, 0.2]).astype(np.uint8)
        write(folder / f"{band}.tif", data, TILE.epsg, size_m, TILE.left_m, TILE.top_m, 0, 1024)
    for radar in radars:
        for band in ("VV", "VH"):
            data = rng.gamma(4, 0.02, (side_px, side_px)).astype(np.float16).astype(np.float32)
            write(folder / f"{radar}-{band}.tif", data, *corner_of(radar, side_px), -32768, 512)


def corner_of(radar: str, side_px: int) -> tuple[int, int, float, float]:
    """EPSG, pixel size, left and top of a radar file that holds the blocks, which lie around its middle."""
    if radar == "same":
        return TILE.epsg, 10, TILE.left_m, TILE.top_m
    centre = CORNER_PX + 1024
    x, y = transform(TILE.crs, f"EPSG:{OTHER_EPSG}", [TILE.left_m + centre * 10], [TILE.top_m - centre * 10])
    return OTHER_EPSG, 10, round(x[0] / 10) * 10 - side_px * 5, round(y[0] / 10) * 10 + side_px * 5


def write(
    path: Path, data: np.ndarray, epsg: int, size_m: int, left_m: float, top_m: float, nodata: float, tile_px: int
) -> None:
    with rasterio.open(
        path, "w", driver="COG", height=data.shape[0], width=data.shape[1], count=1, dtype=data.dtype, nodata=nodata,
        crs=f"EPSG:{epsg}", transform=Affine(size_m, 0, left_m, 0, -size_m, top_m), blocksize=tile_px, level=1,
        compress="DEFLATE", predictor=2 if data.dtype.kind == "u" else 3, overviews="NONE", num_threads=2,
    ) as file:  # fmt: skip
        file.write(data, 1)


def asset_of(
    root: str, name: str, band: str, epsg: int, size_m: int, left_m: float, top_m: float, side_px: int
) -> Asset:
    side = side_px * 10 // size_m
    href = f"{root}/{name}.tif" if root else f"{name}.tif"
    return Asset(band, href, epsg, (float(size_m), 0.0, left_m, 0.0, -float(size_m), top_m), side, side)


def scenes_of(root: str, s2: int, s1: int, radar: str, side_px: int) -> list[Scene]:
    """`root`: "" for files on disk, else a URL under which /N/NAME.tif is NAME.tif for every N: each scene its own."""
    scenes = []
    for sensor, count, source in ((S1, s1 if radar != "none" else 0, PC_RTC), (S2, s2, PC_L2A)):
        for n in range(count):
            here = f"{root}/{n}" if root else ""
            if sensor == S2:
                bands = (*S2_BANDS, "SCL")
                assets = [
                    asset_of(here, b, b, TILE.epsg, S2_PIXEL_M[b], TILE.left_m, TILE.top_m, side_px) for b in bands
                ]
            else:
                assets = [asset_of(here, f"{radar}-{b}", b, *corner_of(radar, side_px), side_px) for b in ("VV", "VH")]
            scenes.append(scene(sensor, n, source, tuple(assets)))
    return scenes


def scene(sensor: str, n: int, source: str, assets: tuple[Asset, ...]) -> Scene:
    when = dt.datetime(2024, 1, 1, 10) + dt.timedelta(days=5 * n if sensor == S2 else 365 - 5 * n)
    time = f"{when.isoformat(timespec='microseconds')}Z"
    orbit, offset = ("", 1000) if sensor == S2 else ((ASCENDING, DESCENDING)[n % 2], 0)
    return Scene(
        TILE.name, sensor, source, f"{sensor}_{n:03d}", time, n, orbit, None, "", "", None, "", "", offset, "", True,
        "", assets,
    )  # fmt: skip


class Ranges(http.server.BaseHTTPRequestHandler):
    """Gives byte ranges of the files of `folder` under any first part of a path."""

    protocol_version = "HTTP/1.1"
    folder: Path

    def do_GET(self) -> None:
        path = self.folder / self.path.rpartition("/")[2]
        first, last = (int(v) for v in self.headers["Range"].removeprefix("bytes=").split("-"))
        total = path.stat().st_size
        last = min(last, total - 1)
        self.send_response(206)
        for name, value in (
            ("Content-Type", "image/tiff"), ("ETag", f'"{total:x}"'), ("Content-Length", last + 1 - first),
            ("Content-Range", f"bytes {first}-{last}/{total}"),
        ):  # fmt: skip
            self.send_header(name, str(value))
        self.end_headers()
        with path.open("rb") as file:
            file.seek(first)
            self.wfile.write(file.read(last + 1 - first))

    def log_message(self, *_: object) -> None:
        return


def serve(folder: Path) -> None:
    """Serves until it is ended, from a process of its own; the URL is the first line of its output."""
    handler = type("Handler", (Ranges,), {"folder": folder})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


# ---- one block


def wanted_of(block_px: int, build_px: int) -> np.ndarray:
    """Some pixels of everywhere, and all of the middle: to encode all of them takes minutes on a CPU."""
    wanted = np.random.default_rng(1).random((block_px, block_px)) < 0.005
    wanted[0, 0] = wanted[-1, -1] = True
    middle = block_px // 2 // build_px * build_px
    wanted[middle : middle + build_px] = True
    return wanted


def run(options: argparse.Namespace) -> dict[str, object]:
    folder = Path(options.folder)
    scenes = scenes_of(options.root, options.s2, options.s1, options.radar, options.side)
    out = Path(tempfile.mkdtemp(dir=folder))
    (out / "_inputs").mkdir()
    sources = [SourceRecord(name, str(folder), "") for name in (PC_L2A, PC_RTC)]
    path = out / "_inputs" / "x.parquet"
    write_inventory(path, period_of("2024"), "2025-01-01T00:00:00Z", {TILE.name: scenes}, sources)
    model = open_model(options.model or model_path())
    values = {str: "", int: 0, bool: False}
    fields = {f.name: values[f.type] for f in dataclasses.fields(Plan)}  # type: ignore[index]
    fields |= {"out": str(out), "inventory": "x", "period": "2024", "micro_batch_px": BATCH_PX, "provider": CPU}
    plan = Plan(**fields | {"block_px": options.block, "readers": options.readers, "memory_bytes": PLENTY})
    pool = ThreadPoolExecutor(options.readers)
    roots = inventory.read_header(path).roots
    colours = Colours(((1,) * model.dims,) * 3, (0.0,) * 3, (1.0,) * 3)
    worker = Worker(plan, open_store(str(out)), model, Session(str(model.path), CPU), colours, roots, "", pool)
    assert keep_heaps_few()
    budget = budget_of(plan, model, scenes)
    while options.strip and budget.strip_px > options.strip:  # one byte less than the strips take: the next lower ones
        budget = budget_of(dataclasses.replace(plan, memory_bytes=budget.total_bytes - 1), model, scenes)
    block = Block(TILE.name, CORNER_PX, CORNER_PX, options.block, options.block)
    idle, began = peak_bytes(), time.perf_counter()
    if options.trace:
        threading.Thread(target=trace, daemon=True).start()
    made = embed_window(worker, TILE, block, wanted_of(options.block, budget.build_px), budget)
    walked = peak_bytes()
    if options.trace:
        sys.stderr.write(f"embedded {made.timings_s}\n")
    assert made.codes is not None
    rng = np.random.default_rng(2)
    for row in range(0, options.block, 64):  # what compresses as little as real codes do
        part = made.codes[row : row + 64]
        part[...] = rng.normal(0, 40, part.shape).clip(-127, 127)
    made.scale[...] = 1
    layouts = layouts_of(TILE, model.profile.dims, ())
    compress(made.codes, made.scale, made.counts, made.reasons, worker.colours, layouts, pool)
    return {
        "strip_px": budget.strip_px,
        "embedded": made.figures["embedded"],
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_s": round(time.process_time(), 1),
        "timings_s": {k: round(v, 1) for k, v in made.timings_s.items()},
        "idle_bytes": idle,
        "walked_bytes": walked,
        "peak_bytes": peak_bytes(),
        "budget_bytes": budget.total_bytes,
        "parts_bytes": dict(budget.parts_bytes),
    }


def trace() -> None:
    began = time.perf_counter()
    while True:
        text = Path("/proc/self/statm").read_text().split()
        sys.stderr.write(f"{time.perf_counter() - began:.1f} {int(text[1]) * 4096 / 2**20:.0f}\n")
        time.sleep(0.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=("make", "serve", "run"))
    parser.add_argument("folder")
    parser.add_argument(
        "--side", type=int, default=6144, help="of the files at 10 m; 2048 and the largest block at least"
    )
    parser.add_argument("--block", type=int, default=1024)
    parser.add_argument("--strip", type=int, default=0, help="the height of strips, 0 for the tallest")
    parser.add_argument("--readers", type=int, default=16)
    parser.add_argument("--s2", type=int, default=60)
    parser.add_argument("--s1", type=int, default=40)
    parser.add_argument("--radar", choices=RADAR, default="same", help="make: other for both")
    parser.add_argument("--root", default="", help="URL of a server that has the files")
    parser.add_argument("--model", default="")
    parser.add_argument("--trace", action="store_true")
    options = parser.parse_args()
    if options.verb == "make":
        make(Path(options.folder), options.side, RADAR[1:] if options.radar == "other" else RADAR[1:2])
    elif options.verb == "serve":
        serve(Path(options.folder))
    else:
        with hosts.allowed(options.root.partition("//")[2]) if options.root else contextlib.nullcontext():
            print(json.dumps(run(options)))


if __name__ == "__main__":
    main()
