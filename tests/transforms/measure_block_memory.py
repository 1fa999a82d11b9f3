"""Embeds one block of files made for it, and prints what memory that took beside its budget (see test_memory.py).

python tests/transforms/measure_block_memory.py FOLDER STRIP_PX
"""

import dataclasses
import datetime as dt
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine

from model.modelfile import open_model
from model.profile import PC_L2A, PC_RTC, S2_BANDS
from pipeline.demo.run import model_path
from transforms import inventory
from transforms.embed import Worker, embed_window
from transforms.encode import CPU, Session
from transforms.grid import Block, tile_of
from transforms.inventory import SourceRecord, write_inventory
from transforms.memory import budget_for
from transforms.periods import period_of
from transforms.plans import Plan
from transforms.preview import Colours
from transforms.scenes import ASCENDING, DESCENDING, S1, S2, Asset, Scene
from transforms.storage import open_store

BLOCK_PX, READERS, BATCH_PX = 768, 8, 256
S2_SCENES, S1_SCENES = 50, 30
TILE = tile_of("33TWL")


def peak_bytes() -> int:
    """The process's largest resident size so far. Not getrusage, which keeps the parent's from before exec."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def file_of(folder: Path, band: str, size_m: int, data: np.ndarray, nodata: float) -> Asset:
    h, w = data.shape
    transform = Affine(size_m, 0, TILE.left_m, 0, -size_m, TILE.top_m)
    with rasterio.open(
        folder / f"{band}.tif", "w", driver="GTiff", height=h, width=w, count=1, dtype=data.dtype, nodata=nodata,
        crs=TILE.crs, transform=transform, tiled=True, blockxsize=256, blockysize=256,
    ) as file:  # fmt: skip
        file.write(data, 1)
    return Asset(band, f"{band}.tif", TILE.epsg, tuple(transform)[:6], h, w)


def scenes_in(folder: Path) -> list[Scene]:
    """Scenes that share one set of files: memory does not know, and the disk has less to hold."""
    rng = np.random.default_rng(0)
    side = {10: BLOCK_PX, 20: BLOCK_PX // 2}
    optical = []
    for band in S2_BANDS:
        size = 10 if band in ("B02", "B03", "B04", "B08") else 20
        dn = rng.integers(1, 9000, (side[size],) * 2).astype(np.uint16)
        dn[:, :50] = 0
        optical.append(file_of(folder, band, size, dn, 0))
    optical.append(file_of(folder, "SCL", 20, np.full((side[20],) * 2, 4, np.uint8), 0))
    radar = [
        file_of(folder, b, 10, rng.uniform(0.01, 1, (side[10],) * 2).astype(np.float32), -32768) for b in ("VV", "VH")
    ]
    return [
        one
        for sensor, count, source, assets in ((S2, S2_SCENES, PC_L2A, optical), (S1, S1_SCENES, PC_RTC, radar))
        for one in (scene(sensor, n, source, tuple(assets)) for n in range(count))
    ]


def scene(sensor: str, n: int, source: str, assets: tuple[Asset, ...]) -> Scene:
    when = dt.datetime(2024, 1, 1, 10) + dt.timedelta(days=5 * n if sensor == S2 else 365 - 9 * n)
    time = f"{when.isoformat(timespec='microseconds')}Z"
    orbit, offset = ("", 1000) if sensor == S2 else ((ASCENDING, DESCENDING)[n % 2], 0)
    return Scene(
        TILE.name, sensor, source, f"{sensor}_{n:03d}", time, n, orbit, None, "", "", None, "", "", offset, "", True,
        "", assets,
    )  # fmt: skip


def main(folder: Path, strip_px: int) -> None:
    scenes = scenes_in(folder)
    (folder / "_inputs").mkdir()
    sources = [SourceRecord(name, str(folder), "") for name in (PC_L2A, PC_RTC)]
    path = folder / "_inputs" / "x.parquet"
    write_inventory(path, period_of("2024"), "2025-01-01T00:00:00Z", {TILE.name: scenes}, sources)
    model = open_model(model_path())
    values = {str: "", int: 0, bool: False}
    fields = {f.name: values[f.type] for f in dataclasses.fields(Plan)}  # type: ignore[index]
    plan = Plan(**fields | {"out": str(folder), "inventory": "x", "micro_batch_px": BATCH_PX, "provider": CPU})
    pool = ThreadPoolExecutor(READERS)
    roots = inventory.read_header(path).roots
    session = Session(str(model.path), CPU)
    worker = Worker(plan, open_store(str(folder)), model, session, Colours((), (), ()), roots, "", pool)
    sizes = {
        "block_px": BLOCK_PX,
        "s2_scenes": S2_SCENES,
        "s1_scenes": S1_SCENES,
        "dims": model.dims,
        "readers": READERS,
        "micro_batch_px": BATCH_PX,
        "widest": max(model.encoder.feed_forward, 3 * model.encoder.width),
    }
    limit = 1 << 50
    budget = budget_for(**sizes, limit_bytes=limit)
    while budget.strip_px > strip_px:  # what is asked for one byte less than the strips take gets the next lower ones
        budget = budget_for(**sizes, limit_bytes=budget.total_bytes - 1)
    wanted = np.random.default_rng(1).random((BLOCK_PX, BLOCK_PX)) < 0.02  # encoding all of them takes minutes
    idle = peak_bytes()
    made = embed_window(worker, TILE, Block(TILE.name, 0, 0, BLOCK_PX, BLOCK_PX), wanted, budget)
    found = {
        "strip_px": budget.strip_px,
        "embedded": made.figures["embedded"],
        "idle_bytes": idle,
        "peak_bytes": peak_bytes(),
        "budget_bytes": budget.total_bytes,
        "native_bytes": dict(budget.parts_bytes)["native strips"],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
