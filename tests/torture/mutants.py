"""Mutants: inputs and records of every kind, mutated by seed, given to the code that reads them, and judged.

The judgement: refused with one of our own errors, or read as what it was; where it is read as something else, that must
be what the mutated file means to a second reader, or what the record of the other scenes shows to be untouched.
"""

import dataclasses
import json
import random
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .ground import SIZE_M, TILES, Ground
from .mutations import MUTATE
from .nursery import LOOK_S, Nursery
from .places import Disk
from .table import LOST, UNCLEAR, WRONG, Row

BATCH = 50  # cases of one process: what one leaves behind must not hide from the next for long
CASE_S = 60.0  # after which a case hangs; they take a second at most on a machine that does other things too
MEMORY_BYTES = 6 << 30  # of address space, of which libraries alone take 2: what promises more must be seen through
Faults = list[tuple[str, str]]
Judge = Callable[[bytes], Faults]


def mutate(runs: Nursery, ground: Ground, folder: Path, kind: str, seed: int, count: int, row: Row) -> None:
    """Tries `count` mutants of a kind in processes of their own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    given = {"folder": str(ground.folder), "inv": ground.inv, "bbox": ground.bbox, "dropped": ground.dropped}
    if kind in ("receipts", "fragments"):
        given["plan"] = _made(runs, ground, folder)
    first = 0
    while first < count:
        done = folder / f"{first}.jsonl"
        done.touch()
        last = min(count, first + BATCH)
        child = runs.start(
            [kind, json.dumps(given), str(folder), str(done), seed, first, last], call="torture.mutants:batch"
        )  # type: ignore[list-item]
        size, since = 0, time.monotonic()
        while runs.poll(child) is None:
            if (now := done.stat().st_size) != size:
                size, since = now, time.monotonic()
            if time.monotonic() - since > CASE_S:
                child.kill()
            time.sleep(LOOK_S)
        lines = [json.loads(line) for line in done.read_text().splitlines()]
        for line in lines:
            if "faults" in line:
                row.add([tuple(f) for f in line["faults"]], f"seed {seed}, case {line['case']}, {line['what']}")
        first = last
        if lines and "faults" not in lines[-1]:  # it ended in the middle of this one
            how = "hung" if time.monotonic() - since > CASE_S else f"ended its process with {child.code}"
            row.add(
                [(UNCLEAR, f"{how}: {child.said[-800:]}")],
                f"seed {seed}, case {lines[-1]['case']}, {lines[-1]['what']}",
            )
            first = lines[-1]["case"] + 1
        elif child.code != 0:
            raise RuntimeError(f"mutants of {kind}: {child.said[-2000:]}")


def batch(kind: str, given: str, folder: str, done: str, seed: int, first: int, last: int) -> int:
    """The cases of one process; every one is announced before it is tried."""
    world = json.loads(given)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with Path(done).open("a", buffering=1) as log:
        for case in range(first, last):
            rng = random.Random(f"{kind} {seed} {case}")
            original, judge = KINDS[kind](world, Path(folder), rng)
            what, data = MUTATE[kind](original, rng)
            log.write(json.dumps({"case": case, "what": what}) + "\n")
            faults = judged(judge, data) if data != original else []
            log.write(json.dumps({"case": case, "what": what, "faults": faults}) + "\n")
    return 0


def judged(judge: Judge, data: bytes) -> Faults:
    """What a judge finds; one of our own errors is a clear word, any other one is not."""
    from model.errors import BadInput
    from transforms.read import ReadError
    from transforms.storage import StoreError

    try:
        return judge(data)
    except (BadInput, ReadError, StoreError) as e:
        return [] if str(e) else [(UNCLEAR, f"{type(e).__name__} without a word")]
    except Exception as e:
        import traceback

        at = traceback.extract_tb(e.__traceback__)[-1]
        ours = [
            f
            for f in traceback.extract_tb(e.__traceback__)
            if "/torture/" not in f.filename and "site-packages" not in f.filename
        ]
        where = ours[-1] if ours else at
        return [(UNCLEAR, f"{type(e).__name__}: {str(e)[:200]} ({Path(where.filename).name}:{where.lineno})")]


def _made(runs: Nursery, ground: Ground, folder: Path) -> str:
    """An output whose blocks are all done and whose tiles are not published; the plan that made it."""
    place = Disk(folder / "made")
    place.begin({})
    hooks = {"kill": {"step": "compose", "nth": 1, "when": "before"}}
    child = runs.run(ground.embed(place.url, tiles=("33TUL",)), hooks)
    assert child.code == -9, child.said
    return next(str(p) for p in place.folder.glob("_runs/*/plan.json"))


def _items(world: dict[str, Any], folder: Path, rng: random.Random) -> tuple[bytes, Judge]:
    """An item of the catalogue: the other scenes stay what they are, its own files are under the catalogue's root."""
    from pipeline import inventory
    from pipeline.demo.run import FROZEN
    from transforms.catalogs.hrefs import is_remote, resolve
    from transforms.inventory import read_header, read_tile
    from transforms.periods import period_of

    planet = Path(world["folder"]) / "planet"
    kept = sorted(planet.glob("*/*/kept"))
    item = next(rng.choice(kept).parent.glob("*.json"))
    copy = folder / "catalogue"
    if not copy.exists():
        for file in [
            *planet.glob("*.json"),
            *planet.glob("*/collection.json"),
            *(p for k in kept for p in k.parent.glob("*.json")),
        ]:
            (copy / file.relative_to(planet)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy / file.relative_to(planet))
    original = item.read_bytes()

    def judge(data: bytes) -> Faults:
        place = copy / item.relative_to(planet)
        place.write_bytes(data)
        inv = folder / "mutant.parquet"
        try:
            inventory.build([(str(copy), None)], period_of("2024"), TILES, inv, now=FROZEN)
            found = read_header(inv)
            faults: Faults = []
            for tile in TILES:
                was = {s.id: s for s in read_tile(world["inv"], tile)}
                now = {s.id: s for s in read_tile(inv, tile)}
                for name, scene in was.items():
                    if name != item.stem and _decided(now.get(name)) != _decided(scene):
                        faults.append((WRONG, f"{tile}: scene {name} changed with another one's item"))
                for scene in now.values():
                    root = found.roots[scene.source]
                    for asset in scene.assets:
                        path = resolve(root, asset.href)
                        if not is_remote(path) and not Path(path).resolve().is_relative_to(copy.resolve()):
                            faults.append((WRONG, f"{scene.id}:{asset.band} lies at {path}"))
            return faults
        finally:
            place.write_bytes(original)
            for part in folder.glob("*mutant.parquet*"):
                shutil.rmtree(part) if part.is_dir() else part.unlink()

    return original, judge


def _decided(scene: Any) -> Any:
    """What decides a scene's pixels: not its place in the order of all, nor what its neighbours make of it."""
    return None if scene is None else (scene.datetime, scene.offset_dn, scene.assets)


def _tiffs(world: dict[str, Any], folder: Path, rng: random.Random) -> tuple[bytes, Judge]:
    """A file of a scene: read as it was, or as a second reader (tifffile) reads the mutant too."""
    import numpy as np

    from transforms.grid import tile_of
    from transforms.inventory import read_header, read_tile
    from transforms.read import read_for

    tile = rng.choice(TILES)
    roots = read_header(world["inv"]).roots
    here = [s for s in read_tile(world["inv"], tile) if s.kept and s.assets[0].epsg == tile_of(tile).epsg]
    scene = rng.choice(here)
    asset = rng.choice(scene.assets)
    original = (Path(roots[scene.source]) / asset.href).read_bytes()
    rows, cols = _island(tile)

    def read(root: str, href: str) -> Any:
        return read_for(scene, dataclasses.replace(asset, href=href), root, tile_of(tile), rows, cols)

    was = read(roots[scene.source], asset.href)

    def judge(data: bytes) -> Faults:
        path = folder / "mutant.tif"
        path.write_bytes(data)
        now = read(str(folder), path.name)
        same = now.data.shape == was.data.shape and np.array_equal(
            now.data, was.data, equal_nan=now.data.dtype.kind == "f"
        )
        if same and (now.nodata == was.nodata or np.isnan([now.nodata or 0, was.nodata or 0]).all()):
            return []
        other = _by_tifffile(path, now)
        if other is not None and np.array_equal(other, now.data, equal_nan=now.data.dtype.kind == "f"):
            return []  # so the file says, whoever reads it
        n = int((now.data != was.data).sum()) if now.data.shape == was.data.shape else -1
        said = "cannot read it" if other is None else "reads something else"
        return [(WRONG, f"{scene.id}:{asset.band}: {n} pixels are others, and tifffile {said}; nodata {now.nodata}")]

    return original, judge


def _island(tile: str) -> tuple[range, range]:
    """The island's window, some pixels larger."""
    from pipeline.demo.planet import Planet

    row, col, height, width = Planet(Path(), 0, SIZE_M, TILES).island(tile)
    return range(row - 10, row + height + 10), range(col - 10, col + width + 10)


def _by_tifffile(path: Path, patch: Any) -> Any:
    """The window of a patch as tifffile reads it, None where it cannot."""
    import numpy as np
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            page, (rows, cols) = file.pages[0], patch.inside
            down, across = page.tilelength, page.tilewidth
            r0, c0 = patch.row_px + rows.start, patch.col_px + cols.start
            r1, c1 = patch.row_px + rows.stop, patch.col_px + cols.stop
            whole = np.full((-(-r1 // down) * down, -(-c1 // across) * across), page.nodata, patch.data.dtype)
            for r in range(r0 // down, -(-r1 // down)):
                for c in range(c0 // across, -(-c1 // across)):
                    n = r * -(-page.imagewidth // across) + c
                    if page.databytecounts[n]:
                        file.filehandle.seek(page.dataoffsets[n])
                        tile, _, _ = page.decode(file.filehandle.read(page.databytecounts[n]), n)
                        part = tile[0, ..., 0]
                        whole[r * down : r * down + part.shape[0], c * across : c * across + part.shape[1]] = part
            found = np.zeros_like(patch.data)
            found[rows, cols] = whole[r0:r1, c0:c1]
            return found
    except Exception:
        return None


def _models(world: dict[str, Any], folder: Path, rng: random.Random) -> tuple[bytes, Judge]:
    """A model file: opened as what it was, with the codes that it gave."""
    import numpy as np

    from model.modelfile import open_model
    from pipeline.demo.run import model_path
    from transforms.encode import Tokens, session_of

    original = Path(model_path()).read_bytes()

    def codes(path: str) -> Any:
        model = open_model(path)
        numbers = np.random.default_rng(1)
        batch = Tokens(
            np.arange(64), numbers.integers(1, 9000, (64, 8, 10)).astype(np.uint16),
            numbers.integers(1, 366, (64, 8)).astype(np.int16), numbers.integers(1, 9000, (64, 4, 2)).astype(np.int16),
            np.zeros((64, 4), np.uint8), numbers.integers(1, 366, (64, 4)).astype(np.int16),
        )  # fmt: skip
        return model.profile, session_of(model, "CPUExecutionProvider", 1).run(batch)

    def judge(data: bytes) -> Faults:
        path = folder / f"{Path(model_path()).stem}.onnx"
        path.write_bytes(data)
        was, now = codes(model_path()), codes(str(path))
        if was[0] != now[0]:
            return [(WRONG, "opened with another profile")]
        if not all(np.array_equal(a, b) for a, b in zip(was[1], now[1], strict=True)):
            return [(WRONG, "opened, and its codes are others")]
        return []

    return original, judge


def _inventories(world: dict[str, Any], folder: Path, rng: random.Random) -> tuple[bytes, Judge]:
    """An inventory: read as what it was."""
    from transforms.inventory import read_header, read_tile

    original = Path(world["inv"]).read_bytes()

    def judge(data: bytes) -> Faults:
        path = folder / f"{rng.randrange(10**9)}.parquet"  # footers are remembered by name, size and time
        path.write_bytes(data)
        was, now = read_header(world["inv"]), read_header(path)
        faults: Faults = []
        for field in ("period", "tiles", "overlap"):
            if getattr(was, field) != getattr(now, field):
                faults.append((WRONG, f"{field} is {getattr(now, field)}"))
        if [(s.name, s.root) for s in was.sources] != [(s.name, s.root) for s in now.sources]:
            faults.append((WRONG, f"sources are {now.sources}"))
        for tile in was.tiles:
            scenes = {s.id: s for s in read_tile(path, tile) if s.kept}
            if any(_decided(scenes.get(s.id)) != _decided(s) for s in read_tile(world["inv"], tile) if s.kept):
                faults.append((WRONG, f"{tile}: other scenes than were frozen"))
        return faults

    return original, judge


def _desks(what: str) -> Any:
    def kind(world: dict[str, Any], folder: Path, rng: random.Random) -> tuple[bytes, Judge]:
        """A receipt or fragment of a tile that is about to be published: published right, or not at all."""
        made = Path(world["plan"]).parents[2]
        chosen = rng.choice(sorted(made.glob(f"_work/**/*{what}"))).relative_to(made)
        want = folder / "right"
        if not want.exists():
            _publish(world, made, want)

        def judge(data: bytes) -> Faults:
            out = folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(made, out)
            (out / chosen).write_bytes(data)
            published = _publish(world, out, out)
            right, found = _tile(want), _tile(out)
            if published and _is_receipt(data):  # forged: what it says of itself is believed, pixels are not
                right, found = ({k: v for k, v in of.items() if k.endswith(".tif")} for of in (right, found))
            if published and found != right:
                other = sorted(k for k in right.keys() | found.keys() if right.get(k) != found.get(k))
                return [(WRONG, f"published with other bytes: {', '.join(other[:3])}")]
            return [] if published else [(LOST, "neither published nor refused with a word")]

        return (made / chosen).read_bytes(), judge

    return kind


def _is_receipt(data: bytes) -> bool:
    from model.errors import BadInput
    from transforms.receipts import receipt_from_json

    try:
        return bool(receipt_from_json(data))
    except BadInput:
        return False


def _publish(world: dict[str, Any], made: Path, out: Path) -> bool:
    """What the next run does: blocks that are not done are made, then the tile is published."""
    from transforms import embed, tiles
    from transforms.plans import Plan

    if made != out:
        shutil.copytree(made, out)
    for cached in (embed.inventory_of, embed.clip_at, tiles._region, embed.scenes_at):
        cached.cache_clear()
    plan = dataclasses.replace(Plan(**json.loads(Path(world["plan"]).read_text())), out=str(out))
    worker = embed.open_worker(plan)
    tasks = tiles.plan_tile(plan, "33TUL")
    for _ in range(2):  # a receipt that proves to be wrong at publication is the next run's work
        done = [embed.embed_block(worker, t).status for t in tasks]
        if set(done) == {"done"} and tiles.publish_if_complete(worker, tasks[-1]):
            return True
    return False


def _tile(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted((out / "2024").rglob("*")) if p.is_file()}


KINDS: dict[str, Any] = {
    "items": _items,
    "tiffs": _tiffs,
    "models": _models,
    "inventories": _inventories,
    "receipts": _desks(".done.json"),
    "fragments": _desks(".frag"),
}
