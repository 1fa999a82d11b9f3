"""A full tile of 10,980 x 10,980 x 128 from prepared fragments: published to a folder and a bucket, then read by http.

python bench/full_tile.py [--json] [--check] [--folder DIR]
The bucket is fake-gcs-server's (named by FAKE_GCS_SERVER, on the PATH or in build/bin). Only the pixels are cheap: a
few COG tiles, each of its own numbers, stand everywhere. Names, receipts, joins and item are the real ones.
"""

import argparse
import contextlib
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from range_server import serve
from rasterio.windows import Window
from table import tell

from model.families import profile_for
from transforms.cog import TILE_PX as COG_TILE_PX
from transforms.fragments import NO_OPTICAL, RASTERS, compress, layouts_of, part_of, places_of, reasons_of
from transforms.grid import TILE_PX, tile_of
from transforms.objects import open_raster
from transforms.overviews import halved
from transforms.plans import BlockTask, Plan, desk_of, tasks_of
from transforms.preview import Colours
from transforms.publish import TileFacts, publish_tile
from transforms.reading import open_published
from transforms.receipts import DONE, Receipt
from transforms.scenes import S2, Asset, Scene
from transforms.storage import open_store

TILE, PERIOD, DIMS = "33TWL", "2024", 128
KINDS = 12  # of COG tiles; 12 and the 86 tiles of a row share no pattern with a block
EMPTY_BLOCKS = ((2048, 4096), (8192, 0))  # (row, column) of blocks in which no optical observation was valid
MEMORY_MB, REQUESTS = 500, 4  # what must hold: of our process; of one aligned window over http
REVISION = "5ca1ab1e" * 8
WINDOW_PX = 256
# Aligned: within a block, over the borders of four, and at the tile's end, where the last COG tiles reach beyond it.
WINDOWS = ((4352, 2304), (1920, 1920), (10752, 10724))
COLOURS = Colours(tuple(tuple(1 << 14 if d == i else 0 for d in range(DIMS)) for i in range(3)), (-3,) * 3, (3,) * 3)


def plan_of(out: str) -> Plan:
    return Plan("bench", out, PERIOD, "bench", "0" * 64, "1" * 64, "2" * 64, "", "", 2048, 64, "cpu", 0, 4, 0, 0, False,
                "colours", "0")  # fmt: skip


def facts() -> TileFacts:
    tile = tile_of(TILE)
    asset = Asset("B04", "B04.tif", tile.epsg, tuple(tile.transform)[:6], TILE_PX, TILE_PX)
    scene = Scene(TILE, S2, "s", "S0", "2024-05-01T10:00:00.000000Z", 0, "", 22, "", "05.11", 1.0, "", "", 1000, "",
                  True, "", (asset,))  # fmt: skip
    return TileFacts([scene], "2025-01-01T00:00:00.000000Z", "1" * 64, None)


@functools.cache
def kind_of(n: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes (128, 128, 128) and scale of the n-th COG tile: squares of 8 px, so that they are small when compressed."""
    rng = np.random.default_rng(n)
    side = COG_TILE_PX // 8
    codes = np.clip(np.rint(rng.normal(0, 30, (side, side, DIMS))), -127, 127).astype(np.int8)
    codes = codes.repeat(8, 0).repeat(8, 1)
    scale = rng.uniform(0.01, 0.05, (side, side)).astype(np.float32).repeat(8, 0).repeat(8, 1)
    if n == 0:  # one of them has a hole
        codes[40:90, 30:100], scale[40:90, 30:100] = -128, np.nan
    return codes, scale


def number_of(row: int, col: int) -> int:
    """Which COG tile stands at a place of the tile's COG."""
    return (row * 5 + col * 7 + row * col % 3) % KINDS


def expected(row_px: int, col_px: int, height: int, width: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes and scales of a window, from the rule alone."""
    codes = np.full((height, width, DIMS), -128, np.int8)
    scale = np.full((height, width), np.nan, np.float32)
    for y in range(height):
        for x0 in range(0, width, COG_TILE_PX):
            r, c = divmod(row_px + y, COG_TILE_PX), divmod(col_px + x0, COG_TILE_PX)
            if c[1]:
                raise ValueError(f"column {col_px}: windows that are checked begin at a COG tile's border")
            block = (row_px + y) // 2048 * 2048, (col_px + x0) // 2048 * 2048
            if block not in EMPTY_BLOCKS:
                n = min(COG_TILE_PX, width - x0)
                one, size = kind_of(number_of(r[0], c[0]))
                codes[y, x0 : x0 + n], scale[y, x0 : x0 + n] = one[r[1], :n], size[r[1], :n]
    return codes, scale


def prepare(out: str) -> dict[str, Any]:
    """Fragments and receipts of every block, each kind of COG tile compressed once for each shape it has."""
    plan, store = plan_of(out), open_store(out)
    layouts = layouts_of(tile_of(TILE), DIMS, ())
    tasks = tasks_of(TILE, REVISION, None, plan.block_px)
    begun, total = time.perf_counter(), 0
    with ThreadPoolExecutor(2) as pool:

        @functools.cache
        def tile(n: int, h: int, w: int) -> dict[str, bytes]:
            there = n >= 0
            codes, scale = kind_of(n) if there else (None, np.full((COG_TILE_PX, COG_TILE_PX), np.nan, np.float32))
            codes, scale = None if codes is None else codes[:h, :w], scale[:h, :w]
            counts = (np.isfinite(scale)[..., None] * np.array([60, 30, 30])).astype(np.uint16)
            reasons = reasons_of(counts, np.ones((h, w), bool))
            return {k: v[0] for k, v in compress(codes, scale, counts, reasons, COLOURS, layouts, pool).items()}

        for task in tasks:
            b, desk = task.block, desk_of(plan, task)
            empty = (b.row_px, b.col_px) in EMPTY_BLOCKS
            found = []
            for row, col in places_of(b.row_px, b.col_px, b.height_px, b.width_px):
                h, w = (min(COG_TILE_PX, TILE_PX - at * COG_TILE_PX) for at in (row, col))
                found.append(tile(-1 if empty else number_of(row, col), h, w))
            parts = {}
            for key in RASTERS:
                parts[key] = part_of([t[key] for t in found])
                total += parts[key]["size_bytes"]
                if parts[key]["size_bytes"]:
                    with store.writer(desk.fragment_name(b.name, key, parts[key])) as f:
                        f.writelines(t[key] for t in found)
            px = b.height_px * b.width_px
            counts = {"pixels": px, "embedded": 0 if empty else px, "no_optical": px if empty else 0, "no_radar": 0}
            counts |= {"outside": 0, "drift": 0, "tokens": px * 90}
            receipt = Receipt(
                TILE, PERIOD, REVISION, b.row_px, b.col_px, b.height_px, b.width_px, DONE,
                plan=plan.blocks_made_with, device="cpu", counts=counts, parts=parts,
            )  # fmt: skip
            desk.write(store, b.name, receipt)
    return {"seconds": time.perf_counter() - begun, "mb": total / 1e6}


def publish(out: str, overviews: bool) -> dict[str, Any]:
    plan, store = plan_of(out), open_store(out)
    tasks: tuple[BlockTask, ...] = tasks_of(TILE, REVISION, None, plan.block_px)
    begun = time.perf_counter()
    done = publish_tile(store, plan, profile_for("v2", DIMS), tasks, facts(), "0", overviews)
    left = sum(1 for _ in store.walk("_work"))
    return {"seconds": time.perf_counter() - begun, "published": done, "left_over": left}


def name_of(key: str) -> str:
    return f"{PERIOD}/{TILE}/{REVISION[:8]}/{key}.tif"


def windows_right(read: Any) -> bool:
    """Whether codes and scales of every window are those of the rule; `read(key, window)` gives (bands, h, w)."""
    for row, col in WINDOWS:
        h, w = min(WINDOW_PX, TILE_PX - row), min(WINDOW_PX, TILE_PX - col)
        col -= col % COG_TILE_PX
        codes, scale = expected(row, col, h, w)
        got = np.moveaxis(read("embeddings", Window(col, row, w, h)), 0, -1)
        if not np.array_equal(got, codes):
            return False
        if not np.array_equal(read("scales", Window(col, row, w, h))[0], scale, equal_nan=True):
            return False
    return True


def overviews_right(store: Any) -> dict[str, Any]:
    """Whether the first overviews, where there are any, are the coded means of the rule's pixels."""
    path = {key: store.path(name_of(key)) for key in ("embeddings", "scales")}
    with rasterio.open(path["embeddings"]) as file:
        if not file.overviews(1):
            return {}
    profile, right = profile_for("v2", DIMS), True
    for row, col in WINDOWS[:2]:
        codes, scale = halved(*expected(row, col, WINDOW_PX, WINDOW_PX), profile.scale_floor, profile.scale_floor_of)
        window = Window(col // 2, row // 2, WINDOW_PX // 2, WINDOW_PX // 2)
        with rasterio.open(path["embeddings"], overview_level=0) as file:
            right &= np.array_equal(np.moveaxis(file.read(window=window), 0, -1), codes)
        with rasterio.open(path["scales"], overview_level=0) as file:
            right &= np.array_equal(file.read(1, window=window), scale, equal_nan=True)
    return {"overviews": bool(right)}


def check(out: str) -> dict[str, Any]:
    """What others make of the published files."""
    store = open_store(out)

    def read(key: str, window: Window) -> NDArray[Any]:
        with open_raster(store, name_of(key)) as file:
            found: NDArray[Any] = file.read(window=window)
            return found

    told: dict[str, Any] = {"rasterio": windows_right(read)}
    row, col = EMPTY_BLOCKS[0]
    told["empty reads as nodata"] = bool((read("embeddings", Window(col, row, 8, 8)) == -128).all())
    told["empty has its reason"] = bool((read("reasons", Window(col, row, 8, 8)) == NO_OPTICAL).all())
    if "://" in out:
        return told
    told |= overviews_right(store)
    import tifffile
    from rio_cogeo.cogeo import cog_validate

    for key in RASTERS:
        valid, errors, _ = cog_validate(store.path(name_of(key)), quiet=True)  # type: ignore[attr-defined]
        told[f"{key} is a COG"] = valid and not errors
    with tifffile.TiffFile(store.path(name_of("embeddings"))) as tif:  # type: ignore[attr-defined]
        page = tif.pages[0]
        across = -(-TILE_PX // COG_TILE_PX)
        counts = np.array(page.databytecounts).reshape(-1, across)
        shape = page.shape == (TILE_PX, TILE_PX, DIMS)
        n = 2048 // COG_TILE_PX
        sparse = not any(counts[r // 128 : r // 128 + n, c // 128 : c // 128 + n].any() for r, c in EMPTY_BLOCKS)
        told["tifffile"] = shape and int((counts == 0).sum()) == sum(
            len(list(places_of(r, c, min(2048, TILE_PX - r), min(2048, TILE_PX - c)))) for r, c in EMPTY_BLOCKS
        )
        told["empty blocks are sparse"] = sparse
    return told


def read_window(url: str, ours: bool) -> dict[str, Any]:
    """One aligned window over http, in a process whose GDAL has read nothing yet."""
    row, col = WINDOWS[0]
    window = Window(col, row, WINDOW_PX, WINDOW_PX)
    begun = time.perf_counter()
    with open_published(url) if ours else rasterio.open(url) as file:
        got = np.moveaxis(file.read(window=window), 0, -1)
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "right": bool(np.array_equal(got, expected(row, col, WINDOW_PX, WINDOW_PX)[0]))}


def child(what: str, options: argparse.Namespace) -> dict[str, Any]:
    argv = [sys.executable, __file__, "--child", what, "--out", options.out]
    argv += ["--overviews"] * options.overviews
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, env=env, check=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def fake_gcs_binary() -> str | None:
    build = str(Path(__file__).parents[1] / "build/bin")
    named = os.environ.get("FAKE_GCS_SERVER")
    return named or shutil.which("fake-gcs-server") or shutil.which("fake-gcs-server", path=build)


@contextlib.contextmanager
def emulator(binary: str, folder: Path) -> Iterator[str]:
    """Its URL, while it serves a bucket named `bucket` from a folder."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    (folder / "bucket").mkdir(parents=True)
    options = {"scheme": "http", "host": "127.0.0.1", "port": port, "public-host": f"127.0.0.1:{port}"}
    options |= {"backend": "filesystem", "filesystem-root": folder, "log-level": "error"}
    argv = [binary, *(str(word) for k, v in options.items() for word in (f"-{k}", v))]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    try:
        for _ in range(500):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/_internal/healthcheck"):
                break
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def one_place(place: str, options: argparse.Namespace) -> dict[str, Any]:
    row: dict[str, Any] = {"place": place}
    prepared = child("prepare", options)
    row |= {"fragments_mb": prepared["mb"], "prepare_s": prepared["seconds"]}
    told = child("publish", options)
    row |= {"publish_s": told["seconds"], "peak_mb": told["peak_mb"], "left_over": told["left_over"]}
    row |= {"memory_limit_mb": MEMORY_MB, "checks": {"published": told["published"]}}
    checked = child("check", options)
    row["checks"] |= {k: v for k, v in checked.items() if k not in ("peak_mb",)}
    return row


def rows_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        options.out = f"{temporary}/out"
        found.append(one_place("folder", options))
        with serve(Path(temporary, "out"), 0.0) as (url, counts):
            options.out = f"{url}/{name_of('embeddings')}"
            for engine in ("ours", "default"):
                counts.reset()
                told = child(f"read {engine}", options)
                row = {"place": f"http, {engine} options", "requests": counts.requests, "moved_mb": counts.sent / 1e6}
                row |= {"read_s": told["seconds"], "checks": {"window": told["right"]}}
                found.append(row | ({"request_limit": REQUESTS} if engine == "ours" else {}))
    if options.folder_alone:
        return found
    binary = fake_gcs_binary()
    if binary is None:
        why = "not measured: no fake-gcs-server here; run `make fake-gcs-server`"
        return [*found, {"place": "fake-gcs-server", "publish_s": why}]
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as temporary,
        emulator(binary, Path(temporary, "gcs")) as url,
    ):
        os.environ["STORAGE_EMULATOR_HOST"] = url
        options.out = "gs://bucket/out"
        found.append(one_place("fake-gcs-server", options))
    return found


def in_words(checks: dict[str, Any]) -> str:
    wrong = [k for k, v in checks.items() if v is not True]
    return f"{len(checks)} right" if not wrong else "WRONG: " + ", ".join(wrong)


def failed(row: dict[str, Any]) -> bool:
    return (
        row.get("peak_mb", 0) > MEMORY_MB
        or row.get("requests", 0) > row.get("request_limit", 1e9)
        or row.get("left_over", 0) > 0
        or not all(v is True for v in row.get("checks", {}).values())
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--overviews", action="store_true", help="publish embeddings and scales with overviews")
    parser.add_argument("--folder", help="where the work lies: 3 GB")
    parser.add_argument("--folder-alone", action="store_true", help="leave the bucket out")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--check", action="store_true", help="exit 4 where something does not hold")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, _, how = options.child.partition(" ")
        if what == "read":
            told = read_window(options.out, how == "ours")
        else:
            verbs = {"prepare": prepare, "check": check, "publish": lambda out: publish(out, options.overviews)}
            told = verbs[what](options.out)
        # Not getrusage: its peak survives exec, so that it would be the parent's.
        status = Path("/proc/self/status").read_text().splitlines()
        told["peak_mb"] = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
        sys.stdout.write(json.dumps(told) + "\n")
        return 0
    found = rows_of(options)
    columns = ("place", "fragments_mb", "prepare_s", "publish_s", "peak_mb", "memory_limit_mb", "left_over")
    columns += ("requests", "request_limit", "moved_mb", "read_s", "checks")
    shown = found if options.json else [r | {"checks": in_words(r["checks"])} if "checks" in r else r for r in found]
    tell("full_tile", shown, columns, options.json)
    return 4 if options.check and any(failed(row) for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
