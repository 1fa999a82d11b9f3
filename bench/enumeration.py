"""Enumeration of many tiles from an API: scenes per second, peak memory, bytes, and what a planet's year comes to.

python bench/enumeration.py [--tiles 300] [--scenes 300] [--strangers 0] [--check] [--json]
The API is a process of its own on the loopback that answers from prepared text; half of the scenes are radar. Strangers
are items of neighbouring tiles for each one of the tile's own, which an API gives for a box and nobody wants.
"""

import argparse
import datetime as dt
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from model.profile import ES_C1, PC_RTC
from pipeline.inventory import build
from transforms import grid
from transforms.catalogs.registry import BY_NAME
from transforms.catalogs.source import S2_PIXEL_M
from transforms.land import land_tiles
from transforms.periods import period_of

PLANET_SCENES = 2_000_000  # 18,400 land tiles, about 100 each of Sentinel-2 alone (facts of 2025)
PLANET_TILES = 18_400
PEAK_MIB = 2048  # what a small machine has; the floor of this bench
YEAR = period_of("2024")
OPTICAL, RADAR = "sentinel-2-c1-l2a", "sentinel-1-rtc"


def optical_text(tile: str) -> str:
    """An item as Collection 1 has it, trimmed to eleven assets: about 9 kB, with ID, DAY and HOUR to be filled in."""
    where = grid.tile_of(tile)
    west, south, east, north = grid.footprint(where).bounds
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    assets = {
        key: {
            "href": f"https://e84-earth-search-sentinel-data.s3.us-west-2.amazonaws.com/{OPTICAL}/{tile}/ID/{band}.tif",
            "type": "image/tiff; application=geotiff; profile=cloud-optimized",
            "title": f"{band} - {S2_PIXEL_M[band]}m",
            "file:checksum": "1220" + "0f" * 32,
            "file:size": 212_345_678,
            "proj:shape": [109_800 // S2_PIXEL_M[band]] * 2,
            "proj:transform": [S2_PIXEL_M[band], 0, where.left_m, 0, -S2_PIXEL_M[band], where.top_m],
            "raster:bands": [{"nodata": 0, "data_type": "uint16", "scale": 0.0001, "offset": -0.1}],
            "roles": ["data", "reflectance"],
        }
        for band, key in BY_NAME[ES_C1].keys.items()
    }
    properties = {
        "datetime": "DAYTHOUR:00:00.000000Z",
        "platform": "sentinel-2a",
        "eo:cloud_cover": 12.5,
        "proj:epsg": where.epsg,
        "grid:code": f"MGRS-{tile}",
        "s2:processing_baseline": "05.10",
        "s2:datatake_id": "ID_N05.10",
        "s2:generation_time": "DAYT15:00:00.000000Z",
        **{f"s2:statistic_{n}_percentage": n / 7 for n in range(30)},
    }
    return json.dumps(_item(OPTICAL, ring, properties, assets))


def radar_text(tile: str) -> str:
    where = grid.tile_of(tile)
    west, south, east, north = grid.footprint(where).bounds
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    assets = {
        key: {"href": f"https://sentinel1euwestrtc.blob.core.windows.net/sentinel1-grd-rtc/{tile}/ID/{key}.tif"}
        for key in BY_NAME[PC_RTC].keys.values()
    }
    properties = {
        "datetime": "DAYTHOUR:30:00.000000Z",
        "platform": "SENTINEL-1A",
        "sat:orbit_state": "descending",
        "proj:epsg": where.epsg,
        "proj:shape": [20_000, 28_000],
        "proj:transform": [10, 0, where.left_m - 50_000, 0, -10, where.top_m + 50_000],
    }
    return json.dumps(_item(RADAR, ring, properties, assets))


def _item(collection: str, ring: Any, properties: Any, assets: Any) -> dict[str, Any]:
    box = [ring[0][0], ring[0][1], ring[2][0], ring[2][1]]
    shape = {"type": "Polygon", "coordinates": [ring]}
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": "ID", "collection": collection, "bbox": box,
        "geometry": shape, "properties": properties, "assets": assets,
    }  # fmt: skip


def serve(tiles: list[str], scenes: int, strangers: int, ready: Any) -> None:
    """Answers until it is ended; says its address first."""
    texts: dict[tuple[float, ...], dict[str, list[str]]] = {}
    for n, tile in enumerate(tiles):
        box = tuple(grid.footprint(grid.tile_of(tile)).bounds)
        others = [tiles[(n + k + 1) % len(tiles)] for k in range(strangers)]
        texts[box] = {OPTICAL: [optical_text(t) for t in (tile, *others)], RADAR: [radar_text(tile)]}
    days = [dt.date(2024, 1, 1) + dt.timedelta(n) for n in range(366)]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            url = f"http://{self.headers['Host']}"
            links = [{"rel": "search", "href": f"{url}/search"}, {"rel": "data", "href": f"{url}/collections"}]
            classes = ["https://api.stacspec.org/v1.0.0/item-search#fields"]
            said = {"collections": [{"id": OPTICAL}, {"id": RADAR}]} if "coll" in self.path else {
                "type": "Catalog", "id": "bench", "links": links, "conformsTo": classes,
            }  # fmt: skip
            self._answer(json.dumps(said).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            collection = body["collections"][0]
            first, last = (dt.date.fromisoformat(t[:10]) for t in body["datetime"].split("/"))
            each = scenes // 2
            wanted = [
                text.replace("ID", f"S{k}_{n:03d}_{hash(tuple(body['bbox'])) & 0xFFFF:04x}")
                .replace("DAY", str(day))
                .replace("HOUR", f"{n * 7 % 24:02d}")
                for n in range(each)
                if first <= (day := days[n * 366 // each]) < last
                for k, text in enumerate(texts[tuple(body["bbox"])][collection])
            ]
            start, limit = int(body.get("token", 0)), body["limit"]
            links = []
            if start + limit < len(wanted):
                link = {"rel": "next", "href": f"http://{self.headers['Host']}/search", "method": "POST"}
                links = [link | {"body": body | {"token": str(start + limit)}}]
            features = ",".join(wanted[start : start + limit])
            head = f'{{"type":"FeatureCollection","numberMatched":{len(wanted)},"links":{json.dumps(links)},'
            self._answer(f'{head}"features":[{features}]}}'.encode())

        def _answer(self, data: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/geo+json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    ready.put(f"http://127.0.0.1:{server.server_port}")
    server.serve_forever()


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(tiles: int, scenes: int, strangers: int) -> dict[str, Any]:
    names = sorted(list(land_tiles())[:: max(1, PLANET_TILES // tiles)][:tiles])
    names = [n for n in names if getattr(grid.footprint(grid.tile_of(n)), "geom_type", "") == "Polygon"]
    ready: Any = multiprocessing.get_context("spawn").Queue()
    spawn = multiprocessing.get_context("spawn")
    server = spawn.Process(target=serve, args=(names, scenes, strangers, ready), daemon=True)
    server.start()
    try:
        url = ready.get(timeout=120)
        before = peak_mib()
        with tempfile.TemporaryDirectory() as folder:
            out, largest = Path(folder) / "i.parquet", [0]

            def look(state: Any) -> None:
                parts = Path(folder) / ".i.parquet.parts"
                if state.done in (state.tiles // 2, state.tiles):
                    largest[0] = sum(p.stat().st_size for p in parts.glob("*.part")) // max(1, state.done)

            begun, cpu = time.perf_counter(), time.process_time()
            said = build([(url, None)], YEAR, names, out, progress=look)
            seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
            size = out.stat().st_size
    finally:
        server.terminate()
    found = sum(n["S2"] + n["S1 ascending"] + n["S1 descending"] + n["dropped"] for n in said["tiles"].values())
    after = peak_mib()
    # The summary grows with tiles; all else is bounded by the tiles that are searched at once.
    per_tile_kib = len(json.dumps(said["tiles"])) / 1024 / len(names)
    return {
        "tiles": len(names),
        "scenes": found,
        "strangers": strangers,
        "requests": said["asked"][url]["requests"],
        "seconds": round(seconds, 1),
        "scenes_per_s": round(found / seconds),
        "cpu_ms_per_scene": round(1000 * cpu / found, 2),
        "mib_before": round(before),
        "mib_peak": round(after),
        "summary_kib_per_tile": round(per_tile_kib, 2),
        "inventory_bytes_per_scene": round(size / found),
        "part_bytes_per_tile": largest[0],
        "planet_hours_at_this_rate": round(PLANET_SCENES / (found / seconds) / 3600, 1),
        "planet_inventory_mib": round(PLANET_SCENES * size / found / 2**20),
        "planet_parts_mib": round(PLANET_TILES * largest[0] / 2**20),
        "floor_mib": PEAK_MIB,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=300)
    parser.add_argument("--scenes", type=int, default=300, help="of a tile, half of them radar")
    parser.add_argument("--strangers", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="exit 4 where the peak is over the floor")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    row = measure(options.tiles, options.scenes, options.strangers)
    if options.json:
        print(json.dumps(row))
    else:
        for name, value in row.items():
            print(f"{name:28} {value:>12,}")
    return 4 if options.check and row["mib_peak"] > PEAK_MIB else 0


if __name__ == "__main__":
    sys.exit(main())
