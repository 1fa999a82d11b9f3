"""The quote verb: what a run will read, compute, store and cost, before anything is spent."""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import BadInput
from model.modelfile import ModelFile, open_model
from model.weights import flop_per_px
from pipeline.planning import READERS, check_sources, check_tiles, worst_tile
from pipeline.room import bytes_a_pixel
from pipeline.words import memory as memory_words
from transforms import inventory
from transforms.encode import CPU, MICRO_BATCH_PX
from transforms.grid import TILE_PX, Block, blocks_of, tile_of
from transforms.inventory import TileRecord
from transforms.memory import Budget, budget_for
from transforms.regions import Region, clip_of, tiles_of
from transforms.samplers import Sampler, sampler_of
from transforms.scenes import S1, S2, Scene
from transforms.traffic import Traffic, Windows, files_of, traffic_of, whole_windows, windows_of

OTHER_BLOCKS_PX = (1024, 2048)  # whose traffic is told beside that of the block that was asked for


@dataclasses.dataclass(frozen=True)
class Card:
    """A machine to quote for.

    Attributes:
      name: as on price lists. tflops: dense half precision, nominal. share: of that, which TESSERA encoders have
        been seen to reach (12.3 k px/s of v1.1 at 115 tokens on an L40S: 21 %). dollars_h: on demand, list price.
    """

    name: str
    tflops: float
    share: float
    dollars_h: float


# Nominal rates from the vendor's data sheets, list prices of 2026 in US regions (L40S: g6e.xlarge, A100 and L4: the
# smallest machine with one card). They change: --dollars-per-hour overrides.
CARDS = {
    c.name: c
    for c in (Card("L4", 121, 0.21, 0.71), Card("L40S", 362, 0.21, 1.86), Card("A100", 312, 0.21, 3.67),
              Card("H100", 989, 0.21, 6.98))
}  # fmt: skip


def expected_tokens(scenes: list[Scene], sampler: Sampler) -> tuple[float, float]:
    """Token rows of a pixel, from the scenes' cloud cover: an estimate, high where swaths cover a tile in part."""
    days: dict[Any, float] = {}
    for s in scenes:
        if s.kept and s.sensor == S2:
            days[s.day] = max(days.get(s.day, 0.0), 1 - (s.cloud_cover or 0.0) / 100)
    passes = {(s.day, s.orbit) for s in scenes if s.kept and s.sensor == S1}
    return float(sampler.length(round(sum(days.values())))), float(sampler.length(len(passes)))


def quote(
    inv_path: str,
    model_path: str,
    tiles: tuple[str, ...] = (),
    region: Region | None = None,
    block_px: int = 2048,
    memory_gib: float = 8.0,
    card: str = "L40S",
    dollars_h: float | None = None,
) -> dict[str, Any]:
    """Adds up a run.

    Raises:
      BadInput: as `embed` would, and an unknown card.
    """
    if card not in CARDS:
        raise BadInput(f"--card {card}: known are {', '.join(CARDS)}")
    machine = CARDS[card]
    model = open_model(model_path)
    inv = inventory.read_header(inv_path)
    check_sources(model, inv)
    check_tiles(inv, tiles)
    list(blocks_of(inv.tiles[0], block_px))
    names = sorted(set(tiles) or set(inv.tiles))
    if region is not None:
        names = sorted(set(names) & set(tiles_of(region)))
        if not names:
            raise BadInput(f"the region touches none of the tiles of {inv_path}")
    totals = dict.fromkeys(("pixels", "blocks", "s2_scenes", "s1_scenes", "tokens", "flop"), 0.0)
    limit_bytes = int(memory_gib * 2**30)
    budget = _budget(model, *_scenes_in(inv.counts[worst_tile(inv, names)]), block_px, limit_bytes)
    traffic: dict[int, Traffic | None] = dict.fromkeys((block_px, *OTHER_BLOCKS_PX), Traffic())
    for name in names:
        scenes = inventory.read_tile(inv_path, name)
        clip = clip_of(region, name) if region else None
        wanted = None if clip is None else clip.mask(name, 0, 0, TILE_PX, TILE_PX)
        _add_tile(totals, scenes, model, wanted, block_px)
        files = files_of(scenes, inv.roots, model.profile, tile_of(name))
        for side, before in traffic.items():
            try:
                strip_px = _budget(model, *_scenes_in(inv.counts[name]), side, limit_bytes).strip_px
            except BadInput:
                if side == block_px:
                    raise
                traffic[side] = None
                continue
            if before is not None:
                windows = _windows(wanted, side, strip_px)
                traffic[side] = before + traffic_of(files, tile_of(name), windows)
    hours = totals["flop"] / (machine.tflops * 1e12 * machine.share) / 3600
    price = machine.dollars_h if dollars_h is None else dollars_h
    bytes_out = totals["pixels"] * bytes_a_pixel(model.dims)
    largest_px = min(totals["pixels"], TILE_PX**2)
    reading = traffic.pop(block_px)
    assert reading is not None
    return {
        "tiles": len(names),
        "period": inv.period.name,
        "model": model.name,
        "block_px": block_px,
        "blocks": int(totals["blocks"]),
        "pixels": int(totals["pixels"]),
        "s2_scenes": int(totals["s2_scenes"]),
        "s1_scenes": int(totals["s1_scenes"]),
        "bytes_in": int(reading.moved_bytes + reading.local_bytes),
        **_network(reading),
        "other_blocks": {str(side): None if t is None else _network(t) for side, t in traffic.items()},
        "bytes_out": int(bytes_out),
        "fragments_at_rest_bytes": int(largest_px * bytes_a_pixel(model.dims)),
        "tokens": int(totals["tokens"]),
        "tokens_per_pixel": round(totals["tokens"] / totals["pixels"], 1) if totals["pixels"] else 0.0,
        "gflop_per_pixel": round(totals["flop"] / totals["pixels"] / 1e9, 4) if totals["pixels"] else 0.0,
        "card": machine.name,
        "card_share_assumed": machine.share,
        "gpu_hours": round(hours, 4),
        "dollars_per_hour": price,
        "dollars": round(hours * price, 2),
        "memory_per_worker_bytes": budget.total_bytes,
        "memory": memory_words(budget, 1),
        "strip_px": budget.strip_px,
    }


def _scenes_in(tile: TileRecord) -> tuple[int, int]:
    """Kept optical and radar scenes."""
    return tile.s2, tile.s1_ascending + tile.s1_descending


def _budget(model: ModelFile, s2_scenes: int, s1_scenes: int, block_px: int, limit_bytes: int) -> Budget:
    return budget_for(
        block_px=block_px,
        s2_scenes=s2_scenes,
        s1_scenes=s1_scenes,
        dims=model.dims,
        readers=READERS,
        micro_batch_px=MICRO_BATCH_PX[CPU],
        widest=max(model.encoder.feed_forward, 3 * model.encoder.width),
        limit_bytes=limit_bytes,
    )


def _blocks(wanted: NDArray[np.bool_] | None, block_px: int) -> list[Block]:
    """The blocks of a tile with a pixel that is wanted."""
    return [
        b
        for b in blocks_of("", block_px)
        if wanted is None or wanted[b.row_px : b.row_px + b.height_px, b.col_px : b.col_px + b.width_px].any()
    ]


def _add_tile(
    totals: dict[str, float], scenes: list[Scene], model: ModelFile, wanted: NDArray[np.bool_] | None, block_px: int
) -> None:
    pixels = float(TILE_PX**2 if wanted is None else wanted.sum())
    t2, t1 = expected_tokens(scenes, sampler_of(model.profile))
    totals["pixels"] += pixels
    totals["blocks"] += len(_blocks(wanted, block_px))
    totals["tokens"] += pixels * (t2 + t1)
    totals["flop"] += pixels * flop_per_px(model.encoder, t2, t1)
    for s in scenes:
        if s.kept:
            totals["s2_scenes" if s.sensor == S2 else "s1_scenes"] += 1


def _windows(wanted: NDArray[np.bool_] | None, block_px: int, strip_px: int) -> Windows:
    if wanted is None:
        return whole_windows(block_px, strip_px)
    return windows_of(_blocks(wanted, block_px), strip_px, wanted)


def _network(t: Traffic) -> dict[str, Any]:
    """What an operator plans with. Bytes that are needed are those of local files too."""
    return {
        "requests": t.requests,
        "requests_at_most": t.requests_at_most,
        "bytes_moved": int(t.moved_bytes),
        "bytes_needed": int(t.needed_bytes + t.local_bytes),
        "bytes_moved_per_byte_needed": None if t.moved_per_needed is None else round(t.moved_per_needed, 2),
    }


def as_text(q: dict[str, Any]) -> str:
    """The quote as lines for a person."""
    return "\n".join(
        (
            f"{q['tiles']} tiles, period {q['period']}, {q['model']}: {q['blocks']:,} blocks, {q['pixels']:,} pixels",
            f"scenes      {q['s2_scenes']:,} optical, {q['s1_scenes']:,} radar",
            f"bytes in    {q['bytes_in'] / 1e9:,.2f} GB at most, out {q['bytes_out'] / 1e9:,.2f} GB; "
            f"fragments at rest {q['fragments_at_rest_bytes'] / 1e9:,.2f} GB a tile in work"
            " (on a disk twice that while it is published)",
            *_network_words(q),
            f"tokens      {q['tokens_per_pixel']:,} a pixel (from cloud cover), {q['gflop_per_pixel']} GFLOP a pixel",
            f"encoder     {q['gpu_hours']:,} h of one {q['card']} at {q['card_share_assumed']:.0%} of its nominal rate,"
            f" ${q['dollars']:,} at ${q['dollars_per_hour']}/h",
            q["memory"],
        )
    )


def _network_words(q: dict[str, Any]) -> list[str]:
    """Requests and bytes with this block size, and a line for each of the others."""
    if not q["requests"]:
        return ["requests    none: the files are on disk"]
    lines = [
        f"requests    {q['requests']:,} at most, {q['requests_at_most']:,} where workers share the blocks of a tile",
        f"            {_moved(q)} with --block {q['block_px']}: files come in whole internal tiles",
    ]
    for side, other in q["other_blocks"].items():
        told = "needs more than --memory allows"
        if other is not None:
            told = f"{_moved(other)}, {other['bytes_moved'] / 1e9:,.2f} GB, {other['requests']:,} requests"
        lines.append(f"            --block {side}: {told}")
    return lines


def _moved(network: dict[str, Any]) -> str:
    ratio = network["bytes_moved_per_byte_needed"]
    return f"{ratio:,.{2 if ratio < 100 else 0}f} bytes move for one that is needed"
