"""The quote verb: what a run will read, compute, store and cost, before anything is spent."""

import dataclasses
from typing import Any

from model.errors import BadInput
from model.modelfile import ModelFile, open_model
from model.weights import flop_per_px
from pipeline.embed import READERS, check_sources, check_tiles, worst_tile
from pipeline.words import memory as memory_words
from transforms import inventory
from transforms.encode import CPU, MICRO_BATCH_PX
from transforms.grid import TILE_PX, blocks_of
from transforms.memory import budget_for
from transforms.regions import Region, clip_of, tiles_of
from transforms.samplers import Sampler, sampler_of
from transforms.scenes import S1, S2, Scene

# Compressed share of the raw codes: int8, predictor 2, ZSTD (facts, sources-and-cogs 4.2, embedding-like data).
CODES_RATIO = 0.78
SCALE_RATIO = 0.78
# Compressed bytes of a scene's 10 m pixel where the item does not say its size: 4 bands at 10 m and 6 at 20 m of
# 16 bits at about 0.5 (facts, beam 6.1), and two float32 planes of radar that hardly compress.
S2_PIXEL_BYTES, S1_PIXEL_BYTES = 5.6, 7.0


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
    totals = dict.fromkeys(("pixels", "blocks", "s2_scenes", "s1_scenes", "bytes_in", "tokens", "flop"), 0.0)
    for name in names:
        _add_tile(totals, name, inventory.read_tile(inv_path, name), model, region, block_px)
    worst = inv.counts[worst_tile(inv, names)]
    budget = budget_for(
        block_px=block_px,
        s2_scenes=worst.s2,
        s1_scenes=worst.s1_ascending + worst.s1_descending,
        dims=model.dims,
        readers=READERS,
        micro_batch_px=MICRO_BATCH_PX[CPU],
        widest=max(model.encoder.feed_forward, 3 * model.encoder.width),
        limit_bytes=int(memory_gib * 2**30),
    )
    hours = totals["flop"] / (machine.tflops * 1e12 * machine.share) / 3600
    price = machine.dollars_h if dollars_h is None else dollars_h
    bytes_out = totals["pixels"] * (model.dims * CODES_RATIO + 4 * SCALE_RATIO)
    largest_px = min(totals["pixels"], TILE_PX**2)
    return {
        "tiles": len(names),
        "period": inv.period.name,
        "model": model.name,
        "blocks": int(totals["blocks"]),
        "pixels": int(totals["pixels"]),
        "s2_scenes": int(totals["s2_scenes"]),
        "s1_scenes": int(totals["s1_scenes"]),
        "bytes_in": int(totals["bytes_in"]),
        "bytes_out": int(bytes_out),
        "fragments_at_rest_bytes": int(largest_px * (model.dims * CODES_RATIO + 4 * SCALE_RATIO)),
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


def _add_tile(
    totals: dict[str, float], name: str, scenes: list[Scene], model: ModelFile, region: Region | None, block_px: int
) -> None:
    clip = clip_of(region, name) if region else None
    if clip is None:
        pixels, blocks = float(TILE_PX**2), sum(1 for _ in blocks_of(name, block_px))
        read_px = pixels
    else:
        mask = clip.mask(name, 0, 0, TILE_PX, TILE_PX)
        windows = [
            b
            for b in blocks_of(name, block_px)
            if mask[b.row_px : b.row_px + b.height_px, b.col_px : b.col_px + b.width_px].any()
        ]
        pixels, blocks = float(mask.sum()), len(windows)
        read_px = float(sum(b.height_px * b.width_px for b in windows))  # whole blocks are read
    t2, t1 = expected_tokens(scenes, sampler_of(model.profile))
    totals["pixels"] += pixels
    totals["blocks"] += blocks
    totals["tokens"] += pixels * (t2 + t1)
    totals["flop"] += pixels * flop_per_px(model.encoder, t2, t1)
    for s in (s for s in scenes if s.kept):
        totals["s2_scenes" if s.sensor == S2 else "s1_scenes"] += 1
        totals["bytes_in"] += _bytes_of(s, read_px)


def _bytes_of(scene: Scene, read_px: float) -> float:
    """Bytes of a scene that the wanted blocks need: its files' share, or a typical figure where sizes are unknown."""
    bands = scene.assets
    if all(a.size_bytes is not None for a in bands):
        share = [
            min(1.0, read_px * 100 / (a.height_px * a.width_px * abs(a.transform[0] * a.transform[4]))) for a in bands
        ]
        return sum((a.size_bytes or 0) * s for a, s in zip(bands, share, strict=True))
    return read_px * (S2_PIXEL_BYTES if scene.sensor == S2 else S1_PIXEL_BYTES)


def as_text(q: dict[str, Any]) -> str:
    """The quote as lines for a person."""
    return "\n".join(
        (
            f"{q['tiles']} tiles, period {q['period']}, {q['model']}: {q['blocks']:,} blocks, {q['pixels']:,} pixels",
            f"scenes      {q['s2_scenes']:,} optical, {q['s1_scenes']:,} radar",
            f"bytes in    {q['bytes_in'] / 1e9:,.2f} GB at most, out {q['bytes_out'] / 1e9:,.2f} GB; "
            f"fragments at rest {q['fragments_at_rest_bytes'] / 1e9:,.2f} GB a tile in work",
            f"tokens      {q['tokens_per_pixel']:,} a pixel (from cloud cover), {q['gflop_per_pixel']} GFLOP a pixel",
            f"encoder     {q['gpu_hours']:,} h of one {q['card']} at {q['card_share_assumed']:.0%} of its nominal rate,"
            f" ${q['dollars']:,} at ${q['dollars_per_hour']}/h",
            q["memory"],
        )
    )
