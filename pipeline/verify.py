"""The verify verb: published tiles against their items, and random windows against their sources."""

import dataclasses
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import google_crc32c
import numpy as np
import rasterio
import rasterio.windows

from model.modelfile import open_model
from pipeline.finish import published
from pipeline.planning import READERS
from pipeline.status import opened
from transforms import inventory
from transforms.cog import TILE_PX as COG_TILE_PX
from transforms.dpixels import build, read_stack
from transforms.draws import Place
from transforms.encode import MICRO_BATCH_PX, device_kind, encode_window, provider_for, session_of
from transforms.fragments import OUTSIDE
from transforms.grid import TILE_PX, tile_of
from transforms.objects import local_file, open_raster
from transforms.read import ReadError
from transforms.storage import Store

SAMPLE_PX = COG_TILE_PX  # side of a recomputed window: one internal tile
READ_BYTES = 8 << 20
# Between kinds of devices codes may differ by one step, in a small share (design, section 2): the last bits of a float
# decide on which side of a half it falls. The share is the one that export parity is held to.
CODES_OFF_SHARE = 2e-4


@dataclasses.dataclass(frozen=True)
class Finding:
    """One check of one tile. `detail`: what was found, in words."""

    tile: str
    period: str
    check: str
    ok: bool
    detail: str


def verify(out: str, recompute: int, seed: int, device: str) -> dict[str, Any]:
    """Checks every published tile: assets there, of the size and checksums that the item says, and sound inside.

    Args:
      recompute: how many random windows to make again from the sources. seed: of the choice.

    Raises:
      BadInput: not an output folder.
    """
    store, product = opened(out)
    items = list(published(store, product["model"]))
    findings: list[Finding] = []
    sound: list[dict[str, Any]] = []
    for item in items:
        files = list(_assets(store, item))
        findings += files
        if all(f.ok for f in files):  # what lies in a damaged file tells nothing
            findings.append(_codes(store, item))
            sound.append(item)
    if recompute and sound:
        findings += _recomputed(store, sound, recompute, seed, device)
    bad = [f for f in findings if not f.ok]
    return {
        "out": out,
        "tiles": len(items),
        "checks": len(findings),
        "failed": len(bad),
        "windows_recomputed": sum(f.check == "recompute" for f in findings),
        "findings": [dataclasses.asdict(f) for f in (bad or findings)][:200],
        "ok": bool(items) and not bad,
    }


def _place(item: dict[str, Any], key: str) -> str:
    """Name of an asset's object."""
    p = item["properties"]
    return f"{p['tessera:period']}/{p['tessera:tile']}/{item['assets'][key]['href'].removeprefix('./')}"


def _finding(item: dict[str, Any], check: str, fault: str) -> Finding:
    p = item["properties"]
    return Finding(p["tessera:tile"], p["tessera:period"], check, not fault, fault or "ok")


def _assets(store: Store, item: dict[str, Any]) -> Iterator[Finding]:
    for key, asset in sorted(item["assets"].items()):
        name = _place(item, key)
        found = store.stat(name)
        if found is None:
            yield _finding(item, key, f"{name} is missing")
            continue
        if found.size_bytes != asset["file:size"]:
            yield _finding(item, key, f"{name} has {found.size_bytes} bytes, its item says {asset['file:size']}")
            continue
        sha, crc = hashlib.sha256(), google_crc32c.Checksum()
        for start in range(0, found.size_bytes, READ_BYTES):
            chunk = store.get(name, start, READ_BYTES)
            sha.update(chunk)
            crc.update(chunk)
        wrong = [
            what
            for what, got, said in (
                ("sha256", sha.hexdigest(), asset.get("file:checksum", "")[4:]),
                ("crc32c", crc.hexdigest().decode(), asset.get("tessera:crc32c", "")),
            )
            if said and got != said
        ]
        yield _finding(item, key, f"{name}: {' and '.join(wrong)} differ from the item's" if wrong else "")


def _codes(store: Store, item: dict[str, Any]) -> Finding:
    """-128 in one band means -128 in all and a NaN scale, and the counts and reasons agree with it."""
    fault = ""
    embedded = 0
    with (
        open_raster(store, _place(item, "embeddings")) as codes_file,
        open_raster(store, _place(item, "scales")) as scale_file,
        open_raster(store, _place(item, "observations")) as counts_file,
        open_raster(store, _place(item, "reasons")) as reasons_file,
    ):
        step = COG_TILE_PX * 8
        for row in range(0, TILE_PX, step):
            for col in range(0, TILE_PX, step):
                window = rasterio.windows.Window(col, row, min(step, TILE_PX - col), min(step, TILE_PX - row))
                scale = scale_file.read(1, window=window)
                there = np.isfinite(scale)
                counts = counts_file.read(1, window=window)
                if not there.any() and not counts.any():
                    continue  # also keeps an empty tile from being decoded at 128 bands
                reasons = reasons_file.read(1, window=window)
                codes = codes_file.read(window=window)
                embedded += int(there.sum())
                at = f"window at row {row}, col {col}"
                if ((codes == -128).any(0) != ~there).any() or ((codes == -128).all(0) != ~there).any():
                    fault = f"{at}: codes of -128 and scales of NaN do not mark the same pixels"
                elif (there & (scale <= 0)).any():
                    fault = f"{at}: a scale of 0 or less"
                elif (there & (counts == 0)).any():
                    fault = f"{at}: an embedding without an optical observation"
                elif (~there & (counts > 0)).any():
                    fault = f"{at}: an observed pixel without an embedding"
                elif (there & ((reasons & OUTSIDE) > 0)).any():
                    fault = f"{at}: an embedding outside the region"
    said = item["properties"]["tessera:counts"]["embedded"]
    if not fault and embedded != said:
        fault = f"{embedded} pixels have an embedding, the item says {said}"
    return _finding(item, "codes", fault)


def _recomputed(store: Store, items: list[dict[str, Any]], n: int, seed: int, device: str) -> Iterator[Finding]:
    """Random windows, drawn from internal tiles that hold an embedding, made again from the sources."""
    rng = np.random.default_rng(seed)
    items = [item for item in items if item["properties"]["tessera:counts"]["embedded"]]
    if not items:
        return
    for _ in range(n):
        item = items[rng.integers(len(items))]
        p = item["properties"]
        tile = tile_of(p["tessera:tile"])
        model = open_model(local_file(store, f"_inputs/{p['tessera:model_sha256']}.onnx"))
        path = local_file(store, f"_inputs/{p['tessera:inventory']}.parquet")
        provider = provider_for(device, model)
        session = session_of(model, provider)
        with open_raster(store, _place(item, "scales")) as scale_file:
            places = _full_places(scale_file)
            if not places:
                continue
            row, col = places[rng.integers(len(places))]
            height, width = min(SAMPLE_PX, TILE_PX - row), min(SAMPLE_PX, TILE_PX - col)
            window = rasterio.windows.Window(col, row, width, height)
            scale = scale_file.read(1, window=window)
        with open_raster(store, _place(item, "embeddings")) as codes_file:
            codes = np.moveaxis(codes_file.read(window=window), 0, -1)
        with open_raster(store, _place(item, "reasons")) as reasons_file:
            wanted = (reasons_file.read(1, window=window) & OUTSIDE) == 0
        there = np.isfinite(scale)
        rows, cols = range(row, row + height), range(col, col + width)
        with ThreadPoolExecutor(READERS) as pool:
            scenes = inventory.read_tile(path, tile.name)
            roots = inventory.read_header(path).roots
            try:
                pixels = build(read_stack(scenes, roots, model.profile, tile, rows, cols, pool), model.profile, rows)
            except ReadError as e:
                yield _finding(item, "recompute", f"a source cannot be read: {e}")
                continue
        place = Place(tile.name, p["tessera:period"], row, col)
        again, scale_again = encode_window(session, model.profile, place, pixels, wanted, MICRO_BATCH_PX[provider])
        off = np.abs(codes.astype(np.int16) - again)
        same_kind = p["emb:runtime_parameters"]["device_kinds"] == [device_kind(provider)]
        share, most = float((off > 0)[there].mean()), int(off.max())
        fault = ""
        if (np.isfinite(scale_again) != there).any():
            fault = "other pixels have an embedding"
        elif same_kind and (most or not np.array_equal(scale, scale_again, equal_nan=True)):
            fault = f"{share:.2%} of the codes differ, by {most} at most, on the same kind of device"
        elif most > 1 or share > CODES_OFF_SHARE:
            fault = f"{share:.2%} of the codes differ, by {most} at most; {CODES_OFF_SHARE:.2%} by 1 are allowed"
        at = f"window {row},{col},{height},{width}"
        yield _finding(item, "recompute", f"{at}: {fault}" if fault else "")


def _full_places(scale_file: rasterio.io.DatasetReader) -> list[tuple[int, int]]:
    """Corners of the internal tiles that hold an embedding."""
    step = COG_TILE_PX * 8
    found = []
    for row in range(0, TILE_PX, step):
        for col in range(0, TILE_PX, step):
            window = rasterio.windows.Window(col, row, min(step, TILE_PX - col), min(step, TILE_PX - row))
            there = np.isfinite(scale_file.read(1, window=window))
            for r in range(0, there.shape[0], COG_TILE_PX):
                for c in range(0, there.shape[1], COG_TILE_PX):
                    if there[r : r + COG_TILE_PX, c : c + COG_TILE_PX].any():
                        found.append((row + r, col + c))
    return found
